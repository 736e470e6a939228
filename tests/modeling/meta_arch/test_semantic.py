"""Particles as connected components of a semantic segmentation."""

import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from scipy import ndimage
from support import user_error

from microplastics.engine import Trainer
from microplastics.structures.crop_masks import CropMasks

# A film, a fragment and a fibre on it, and a fragment by itself.
BOXES = [[4, 4, 40, 36], [50, 10, 60, 20], [10, 10, 34, 12]]
CLASSES = [2, 1, 0]


@pytest.fixture
def segmentor(tiny_cfg):
    """Builds the tiny quick_semantic in evaluation mode."""

    def build(*opts):
        torch.manual_seed(0)
        return Trainer.build_model(tiny_cfg(*opts, name="quick_semantic")).eval()

    return build


def bitmasks():
    masks = torch.zeros(len(BOXES), 48, 64, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, BOXES, strict=True):
        mask[y0:y1, x0:x1] = True
    return masks


MASKS = {
    "polygon": lambda: PolygonMasks(
        [[np.array([x0, y0, x1, y0, x1, y1, x0, y1], float)] for x0, y0, x1, y1 in BOXES]
    ),
    "bitmask": lambda: BitMasks(bitmasks()),
    "crops": lambda: CropMasks.from_bitmasks(bitmasks()),
}


def item(masks):
    fields = {"gt_boxes": Boxes(torch.tensor(BOXES)), "gt_classes": torch.tensor(CLASSES)}
    instances = Instances((48, 64), **fields, gt_masks=masks)
    return {"image": torch.zeros(3, 48, 64, dtype=torch.uint8), "instances": instances}


@pytest.mark.parametrize("kind", MASKS)
def test_small_particles_are_painted_over_large_ones(segmentor, kind):
    expected = torch.full((48, 64), 3)
    for index in (0, 1, 2):  # in the order of their areas
        expected[bitmasks()[index]] = CLASSES[index]
    assert torch.equal(segmentor().semantic_target(item(MASKS[kind]())), expected)


def test_an_image_without_particles_is_background(segmentor):
    blank = item(MASKS["bitmask"]())
    blank["instances"] = blank["instances"][:0]
    assert (segmentor().semantic_target(blank) == 3).all()


def test_a_perfect_segmentation_gives_the_particles_back(segmentor):
    model = segmentor()
    target = model.semantic_target(item(MASKS["crops"]()))
    found = model.to_instances(20 * torch.nn.functional.one_hot(target).permute(2, 0, 1).float())
    assert sorted(found.pred_classes.tolist()) == sorted(CLASSES) and found.scores.min() > 0.999
    order = torch.argsort(found.pred_classes).flip(0)
    expected = bitmasks()
    expected[0] &= ~expected[2]  # the film below the fibre is not in sight
    assert torch.equal(found.pred_masks[order], expected)
    assert found.pred_boxes.tensor[order].tolist() == BOXES


@pytest.mark.parametrize("threshold, cap, pixels", [(0.0, 1000, 1), (0.5, 1000, 5), (0.3, 7, 1)])
def test_components_and_scores_are_scipys(segmentor, threshold, cap, pixels):
    noise = np.random.default_rng(0).normal(size=(4, 80, 100))
    logits = 40 * ndimage.gaussian_filter(noise, (0, 3, 3))
    model = segmentor(
        *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", threshold, "TEST.DETECTIONS_PER_IMAGE", cap),
        *("MODEL.SEM_SEG_HEAD.MIN_PIXELS", pixels),
    )
    found = model.to_instances(torch.from_numpy(logits))

    probabilities = np.exp(logits) / np.exp(logits).sum(axis=0)
    expected = []
    for number in range(3):
        labels, count = ndimage.label(probabilities.argmax(axis=0) == number, np.ones((3, 3)))
        for label in range(1, count + 1):
            mask = labels == label
            score = probabilities[number][mask].mean()
            if mask.sum() >= pixels and score > threshold:
                expected.append((score, number, mask))
    expected = sorted(expected, key=lambda each: -each[0])[:cap]
    assert 3 < len(expected) == len(found)
    scores, classes, masks = zip(*expected, strict=True)
    np.testing.assert_allclose(found.scores, scores, rtol=1e-5)
    assert found.pred_classes.tolist() == list(classes)
    assert np.array_equal(found.pred_masks, np.stack(masks))


def test_it_learns_from_masks(tiny_cfg):
    with user_error("config_invalid", "MODEL.MASK_ON"):
        Trainer.build_model(tiny_cfg("MODEL.MASK_ON", False, name="quick_semantic"))
