"""Predictions as Instances, as plain arrays, and as particles."""

import numpy as np
import pytest
import torch
from detectron2.data import Metadata
from detectron2.structures import Boxes, Instances
from detectron2.utils.visualizer import Visualizer

from microplastics.inference import Predictions, to_particles
from microplastics.structures.crop_masks import CropMasks

NAMES = ["Fiber", "Fragment", "Film"]


@pytest.fixture
def predictions():
    """Three particles on 40 x 60 px; the mask of the second is empty."""
    crops = [np.zeros((6, 9), bool), np.zeros((5, 5), bool), np.ones((3, 4), bool)]
    crops[0][1:5, 2:8] = True
    crops[0][1, 2] = False
    masks = CropMasks(crops, [(10, 20), (1, 1), (56, 37)], (40, 60))
    boxes = Boxes(torch.tensor([[11.5, 20.5, 18, 25], [1, 1, 6, 6], [56, 37, 60, 40]]))
    return Predictions(
        (40, 60),
        pred_boxes=boxes,
        scores=torch.tensor([0.9, 0.8, 0.7]),
        pred_classes=torch.tensor([2, 0, 1]),
        pred_masks=masks,
    )


def test_plain_arrays(predictions):
    arrays = predictions.to_dict()
    assert arrays["masks"].shape == (3, 40, 60) and arrays["masks"].dtype == bool
    assert arrays["masks"].sum(axis=(1, 2)).tolist() == [23, 0, 12]
    assert arrays["labels"].tolist() == [3, 1, 2] and arrays["labels"].dtype == np.int64
    assert arrays["boxes"].dtype == arrays["scores"].dtype == np.float32
    assert arrays["boxes"][0].tolist() == [11.5, 20.5, 18, 25]
    none = predictions[predictions.scores > 1].to_dict()
    assert none["masks"].shape == (0, 40, 60) and none["boxes"].shape == (0, 4)
    predictions.remove("pred_masks")
    assert "masks" not in predictions.to_dict()


def test_the_type_stays(predictions):
    picked = [
        predictions[0],
        predictions[1:],
        predictions[torch.tensor([True, False, True])],
        predictions[torch.tensor([2, 0])],
        predictions.to("cpu"),
        Predictions.cat([predictions, predictions]),
        Predictions.cat([Instances((40, 60), **predictions.get_fields())]),
    ]
    assert all(type(each) is Predictions for each in picked)
    assert [len(each) for each in picked] == [1, 2, 2, 2, 3, 6, 3]
    assert picked[3].scores.tolist() == pytest.approx([0.7, 0.9])
    assert picked[3].pred_masks.area().tolist() == [12, 23]
    assert len(Instances.cat([predictions, predictions]).pred_masks) == 6


@pytest.mark.parametrize("chosen", [slice(None), slice(0, 0)])
def test_the_visualizer_draws_them(predictions, chosen):
    canvas = np.full((40, 60, 3), 100, np.uint8)
    metadata = Metadata(name="drawn", thing_classes=NAMES)
    drawn = Visualizer(canvas, metadata).draw_instance_predictions(predictions[chosen])
    changed = (drawn.get_image() != 100).any(axis=2).sum()
    assert changed > 50 if chosen == slice(None) else changed == 0


def test_particles_leave_out_empty_masks_and_say_so(predictions):
    image = np.arange(40 * 60 * 3, dtype=np.uint32).reshape(40, 60, 3).astype(np.uint8)
    particles, empty = to_particles(predictions, "a.png", NAMES, image)
    assert empty == 1 and len(particles) == 2
    assert (particles.image, particles.image_size) == ("a.png", (40, 60))
    assert [mask.shape for mask in particles.masks] == [(4, 6), (3, 4)]
    assert particles.offsets.tolist() == [[12, 21], [56, 37]]
    assert particles.classes == ["Film", "Fragment"] and particles.ids.tolist() == [1, 2]
    assert particles.scores.tolist() == pytest.approx([0.9, 0.7])
    full = predictions.pred_masks.to_bitmasks().numpy()
    for pixels, mask in zip(particles.pixels, full[[0, 2]], strict=True):
        assert np.array_equal(pixels, image[mask])
    assert to_particles(predictions, "a.png", NAMES)[0].pixels is None


def test_no_particles_at_all(predictions):
    particles, empty = to_particles(predictions[1], "a.png", NAMES, np.zeros((40, 60, 3), np.uint8))
    assert (len(particles), empty) == (0, 1)
    assert particles.offsets.shape == (0, 2) and particles.pixels == []


def test_what_makes_no_particles_is_an_error(predictions):
    with pytest.raises(ValueError, match="Class 2 is none of the 2 names"):
        to_particles(predictions, "a", NAMES[:2])
    with pytest.raises(ValueError, match=r"\(9, 9\) px for masks of \(40, 60\)"):
        to_particles(predictions, "a", NAMES, np.zeros((9, 9, 3), np.uint8))
    predictions.remove("pred_masks")
    with pytest.raises(ValueError, match="no masks"):
        to_particles(predictions, "a", NAMES)
