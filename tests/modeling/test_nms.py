"""microplastics/modeling/nms.py."""

import numpy as np
import pytest
import torch
from detectron2.layers import batched_nms
from detectron2.structures import Boxes, Instances, pairwise_iou
from support import user_error

from microplastics.config import load_config
from microplastics.modeling.interface import check_architecture
from microplastics.modeling.nms import NMS, mask_nms, soft_nms
from microplastics.modeling.postprocessing import postprocess


def detections(boxes, scores, classes, masks=None, size=(80, 100)):
    found = Instances(size)
    found.pred_boxes = Boxes(torch.as_tensor(boxes, dtype=torch.float32))
    found.scores = torch.as_tensor(scores, dtype=torch.float32)
    found.pred_classes = torch.as_tensor(classes)
    if masks is not None:
        found.pred_masks = masks
    return found


def crowd(count=40, seed=0):
    """Overlapping boxes of two classes with blobs in them, best score first."""
    rng = np.random.default_rng(seed)
    start = rng.uniform(0, 50, (count, 2))
    boxes = np.concatenate([start, start + rng.uniform(10, 30, (count, 2))], axis=1)
    scores = np.sort(rng.uniform(0.06, 1, count))[::-1].copy()
    coarse = torch.from_numpy(rng.uniform(0, 1, (count, 1, 4, 4)).astype(np.float32))
    masks = torch.nn.functional.interpolate(coarse, size=(14, 14), mode="bilinear")
    return detections(boxes, scores, rng.integers(0, 2, count), masks)


def test_crossing_fibres_stay_and_duplicates_go():
    lower, upper = torch.zeros(2, 1, 28, 28)
    lower[0], upper[0] = torch.eye(28), torch.eye(28).flip(0)
    box = [10, 10, 66, 66]
    masks = torch.stack([lower, upper, lower, lower])
    found = detections([box] * 4, [0.9, 0.8, 0.7, 0.6], [0, 0, 0, 1], masks)
    assert mask_nms(found, NMS("mask")).scores.tolist() == pytest.approx([0.9, 0.8, 0.6])
    left = batched_nms(found.pred_boxes.tensor, found.scores, found.pred_classes, 0.9)
    assert left.tolist() == [0, 3]  # Detectron2's, by boxes


@pytest.mark.parametrize("threshold", [0.1, 0.3])
def test_mask_nms_is_the_greedy_loop_over_full_frames(threshold):
    found = crowd()
    frames = postprocess(found, 80, 100).pred_masks.to_bitmasks().numpy()
    kept = []
    for index, frame in enumerate(frames):
        same = [k for k in kept if found.pred_classes[k] == found.pred_classes[index]]
        ious = [(frame & frames[k]).sum() / (frame | frames[k]).sum() for k in same]
        if frame.any() and max(ious, default=0) <= threshold:
            kept.append(index)
    result = mask_nms(found, NMS("mask", mask_threshold=threshold))
    assert torch.equal(result.scores, found.scores[kept]) and 5 < len(kept) < 40
    assert len(result.pred_masks) == len(kept)


def textbook_soft_nms(found, weight, min_score):
    """Bodla et al. 2017, figure 3, class by class."""
    result = []
    for number in (0, 1):
        one = found[found.pred_classes == number]
        rest = {k: float(score) for k, score in enumerate(one.scores)}
        iou = pairwise_iou(one.pred_boxes, one.pred_boxes).double().numpy()
        while rest:
            best = max(rest, key=rest.get)
            result.append((rest.pop(best), number, *one.pred_boxes.tensor[best].tolist()))
            rest = {k: score * weight(iou[best, k]) for k, score in rest.items()}
    return sorted((each for each in result if each[0] > min_score), reverse=True)


@pytest.mark.parametrize("min_score", [0.05, 0.2])
@pytest.mark.parametrize("kind", ["soft_linear", "soft_gaussian"])
def test_soft_nms_is_the_textbooks(kind, min_score):
    weight = {
        "soft_linear": lambda iou: 1 - iou if iou >= 0.2 else 1,
        "soft_gaussian": lambda iou: np.exp(-(iou**2) / 0.7),
    }[kind]
    found = crowd(seed=1)
    expected = textbook_soft_nms(found, weight, min_score)
    result = soft_nms(found, NMS(kind, box_threshold=0.2, sigma=0.7, min_score=min_score))
    columns = [result.scores[:, None], result.pred_classes[:, None], result.pred_boxes.tensor]
    np.testing.assert_allclose(torch.cat(columns, dim=1).numpy(), expected, rtol=1e-5)
    assert not torch.isin(result.scores, found.scores).all()


@pytest.mark.parametrize("kind", ["mask", "soft_linear", "soft_gaussian"])
def test_no_detections(kind):
    masks = torch.zeros(0, 1, 28, 28)
    found = detections(torch.zeros(0, 4), [], torch.zeros(0, dtype=torch.int64), masks)
    assert len((mask_nms if kind == "mask" else soft_nms)(found, NMS(kind))) == 0


def test_settings_are_checked():
    heads = "MODEL.ROI_HEADS"
    cfg = load_config("quick", [f"{heads}.NMS", "mask"])
    with user_error("config_invalid", "StandardROIHeads", "ParticleROIHeads"):
        check_architecture(cfg)
    particles = (f"{heads}.NAME", "ParticleROIHeads", f"{heads}.NMS", "mask")
    check_architecture(load_config("quick", particles))
    for key, value in (
        *(("NMS", "fast"), ("SOFT_NMS_SIGMA", 0.0), ("MASK_NMS.THRESH", 1.5)),
        *(("MASK_NMS.CANDIDATE_THRESH", 0.0), ("MASK_NMS.CANDIDATES", 0)),
    ):
        with user_error("config_invalid", f"{heads}.{key} is {value}"):
            NMS.from_config(load_config("quick", [*particles, f"{heads}.{key}", value]))
    with user_error("config_invalid", "mask"):
        NMS.from_config(load_config("quick", [*particles, "MODEL.MASK_ON", "False"]))
