"""Anchors, sizes and mask resolution of a config against the particles."""

import math

import cv2
import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import transforms as T
from detectron2.layers import paste_masks_in_image
from detectron2.modeling import build_anchor_generator, build_backbone
from detectron2.structures import BitMasks, Boxes, BoxMode, pairwise_iou
from hypothesis import given, settings
from hypothesis import strategies as st
from support import ROOT, user_error

from microplastics.config import get_cfg, load_config
from microplastics.data.anchors import AnchorGrid, resized_size
from microplastics.data.doctor.findings import CODES
from microplastics.data.doctor.model_fit import (
    mask_round_trip,
    mask_width,
    measure_fit,
)
from microplastics.structures.crop_masks import CropMasks

QUICK = f"{ROOT}/configs/microplastics_quick.yaml"


def config(*opts, file=QUICK):
    return load_config(file, opts)


def disc(radius, size=256, center=None):
    y, x = np.mgrid[:size, :size] + 0.5
    cx, cy = center or (size / 2, size / 2)
    return (x - cx) ** 2 + (y - cy) ** 2 <= radius**2


def strip(length, width, angle, size=256):
    """A straight fibre across the middle of an image."""
    y, x = np.mgrid[:size, :size] + 0.5 - size / 2
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    return (abs(x * c + y * s) <= length / 2) & (abs(y * c - x * s) <= width / 2)


def image_dict(masks, classes=None, image_id=0, crowd=()):
    """A data set dict as ``load_instances`` gives it, of full-frame masks."""
    annotations = []
    for number, mask in enumerate(masks):
        rle = mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))
        annotations.append(
            {
                "id": 100 * image_id + number + 1,
                "iscrowd": int(number in crowd),
                "bbox": mask_util.toBbox(rle).tolist(),
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": classes[number] if classes else 0,
                "segmentation": rle,
            }
        )
    height, width = masks[0].shape
    return {
        "file_name": f"images/{image_id}.png",
        "image_id": image_id,
        "height": height,
        "width": width,
        "annotations": annotations,
    }


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(0, 1000), st.integers(1, 2000))
@settings(max_examples=60, deadline=None)
def test_the_resize_is_that_of_detectron2(height, width, min_size, max_size):
    image = np.broadcast_to(np.uint8(0), (height, width))
    transform = T.ResizeShortestEdge(min_size, max_size).get_transform(image)
    if min_size:
        wanted = max(1, transform.new_h), max(1, transform.new_w)
    else:
        wanted = height, width
    assert resized_size(height, width, min_size, max_size) == wanted


def test_figures_class_by_class():
    dicts = [
        image_dict([strip(200, 3, 40), disc(30)], [0, 1]),
        image_dict([disc(30), disc(3), disc(60)], [1, 1, 0], image_id=1, crowd=[2]),
    ]
    opts = ("INPUT.MIN_SIZE_TEST", 128)
    fit, findings = measure_fit(config(*opts), "quick.yaml", dicts, ["Fiber", "Film"])
    assert fit.config_file == "quick.yaml"
    assert (fit.sampled, fit.mask_size) == (4, 28)
    # Halved: the fibre is 1.5 px wide, the small disc 2.7 px.
    assert fit.small == {"Fiber": 1, "Film": pytest.approx(1 / 3), "all": 0.5}
    assert fit.no_anchor == {"Fiber": 0, "Film": pytest.approx(1 / 3), "all": 0.25}
    assert list(fit.mask_iou) == ["Fiber", "Film", "all"]
    assert fit.mask_iou["Fiber"][28] < 0.75 < 0.9 < fit.mask_iou["Film"][112]
    overall = (fit.mask_iou["Fiber"][56] + 3 * fit.mask_iou["Film"][56]) / 4
    assert fit.mask_iou["all"][56] == pytest.approx(overall)
    by_code = {finding.code: finding for finding in findings}
    assert list(by_code) == ["no_anchor", "too_small", "mask_resolution"]
    assert {finding.severity for finding in findings} == {"warning"}
    small = by_code["too_small"]
    assert small.count == 2
    assert "Fiber 100.0%, Film 33.3%, all 50.0%" in small.what
    worst = small.examples[0]
    assert worst.text.startswith("annotation 1 of image 0 ('0.png') (1.")
    assert worst.image == "images/0.png"
    assert worst.box == tuple(dicts[0]["annotations"][0]["bbox"])
    assert by_code["no_anchor"].examples[0].annotation_id == 102
    resolution = by_code["mask_resolution"]
    assert resolution.fix == CODES["mask_resolution"].fix  # no mask size suffices
    assert resolution.examples[0].annotation_id == 1
    assert f"(IoU {fit.mask_iou['Fiber'][28]:.2f} at 28 x 28)" in resolution.examples[0].text


def test_a_larger_mask_is_recommended_if_it_suffices():
    dicts = [image_dict([strip(200, 12, 40)])]
    fit, (finding,) = measure_fit(config("INPUT.MIN_SIZE_TEST", 0), "q", dicts, ["Fiber"])
    size = min(size for size, iou in fit.mask_iou["all"].items() if iou >= 0.9)
    assert finding.code == "mask_resolution"
    assert finding.fix.startswith(f"Set MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION {size // 2}: ")
    assert "times the time of the mask head" in finding.fix


def test_boxes_between_the_anchors_are_found():
    # 12 px lie between the anchors of 8 and of 16 px, whose places are 4 px and 8 px apart.
    rng = np.random.default_rng(0)
    masks = []
    for x, y in rng.integers(0, 240, (60, 2)):
        mask = np.zeros((256, 256), bool)
        mask[y : y + 12, x : x + 12] = True
        masks.append(mask)
    cfg = config("INPUT.MIN_SIZE_TEST", 256)
    fit, findings = measure_fit(cfg, "quick.yaml", [image_dict(masks)], ["Bead"])
    (finding,) = [finding for finding in findings if finding.code == "no_anchor"]
    assert finding.severity == "warning"
    assert finding.count == round(60 * fit.no_anchor["all"]) > 3
    assert "allow_low_quality_matches" in finding.consequence
    assert "microplastics anchors" in finding.fix


def test_large_round_particles_give_no_finding():
    dicts = [image_dict([disc(40), disc(33, center=(60, 60))])]
    fit, findings = measure_fit(config(), "quick.yaml", dicts, ["Bead"])
    assert findings == []
    assert fit.no_anchor == fit.small == {"Bead": 0, "all": 0}


def test_nothing_is_measured_without_particles():
    empty = {"file_name": "a.png", "image_id": 0, "height": 9, "width": 9, "annotations": []}
    for dicts in ([], [empty], [image_dict([disc(20)], crowd=[0])]):
        fit, findings = measure_fit(config(), "quick.yaml", dicts, ["Bead"])
        assert (fit.sampled, fit.mask_iou, findings) == (0, {}, [])


def test_a_sample_represents_its_class():
    masks = [disc(20) for _ in range(6)] + [strip(200, 2, 45)]
    dicts, names = [image_dict(masks, [1] * 6 + [0])], ["Fiber", "Bead"]
    cfg = config("INPUT.MIN_SIZE_TEST", 0)
    fit, again = (measure_fit(cfg, "q", dicts, names, sample=2)[0] for _ in range(2))
    assert fit.sampled == 3 and again == fit
    assert fit.small == {"Fiber": 1, "Bead": 0, "all": pytest.approx(1 / 7)}


def test_grown_boxes_and_further_upsampling_are_known():
    keys = ("MODEL.ROI_HEADS.NAME", "ParticleROIHeads", "MODEL.ROI_MASK_HEAD.BOX_SCALE", 2.0)
    keys += ("MODEL.ROI_MASK_HEAD.NAME", "ParticleMaskHead", "MODEL.ROI_MASK_HEAD.UPSAMPLINGS", 2)
    dicts = [image_dict([strip(200, 12, 40)])]
    plain, _ = measure_fit(config("INPUT.MIN_SIZE_TEST", 0), "q", dicts, ["Fiber"])
    fit, (finding,) = measure_fit(config("INPUT.MIN_SIZE_TEST", 0, *keys), "q", dicts, ["Fiber"])
    assert fit.mask_size == 56
    assert fit.mask_iou["all"][56] == pytest.approx(plain.mask_iou["all"][28], abs=0.02)
    assert finding.fix.startswith("Set MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION 28: ")


def test_a_head_with_another_mask_size_is_measured_too():
    cfg = config("MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", 20)
    fit, _ = measure_fit(cfg, "q", [image_dict([disc(20)])], ["Bead"])
    assert fit.mask_size == 40
    assert list(fit.mask_iou["Bead"]) == [28, 40, 56, 112]


@pytest.mark.parametrize("name, missed", [("vitdet_b", 1), ("r50_semantic", 0)])
def test_other_architectures_are_measured_too(name, missed):
    cfg = config("INPUT.MIN_SIZE_TEST", 0, file=name)
    fit, findings = measure_fit(cfg, name, [image_dict([strip(200, 3, 0)])], ["Fiber"])
    assert fit.no_anchor["Fiber"] == missed  # a segmentation has no anchors
    assert ("no_anchor" in {finding.code for finding in findings}) == bool(missed)


def test_a_polygon_is_outlined_like_a_mask():
    outline, _ = cv2.findContours(disc(40).astype(np.uint8), 0, 1)
    dic = image_dict([disc(40)])
    dic["annotations"][0]["segmentation"] = [outline[0].astype(float).ravel().tolist()]
    fit, _ = measure_fit(config(), "q", [dic], ["Bead"])
    assert fit.mask_iou["Bead"][28] > 0.93


R50 = f"{ROOT}/configs/microplastics_r50.yaml"


def all_anchors(cfg, height, width):
    """Detectron2's own anchors of one padded image."""
    backbone = build_backbone(cfg)
    shapes = backbone.output_shape()
    features = [shapes[name] for name in cfg.MODEL.RPN.IN_FEATURES]
    generator = build_anchor_generator(cfg, features)
    pad = max(1, backbone.size_divisibility)
    height, width = -(-height // pad) * pad, -(-width // pad) * pad
    with torch.no_grad():
        maps = backbone(torch.zeros(1, 3, height, width))
    return Boxes.cat(generator([maps[name] for name in cfg.MODEL.RPN.IN_FEATURES]))


@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_the_nearest_grid_position_is_as_good_as_all_anchors(offset):
    cfg = config("MODEL.ANCHOR_GENERATOR.OFFSET", offset)
    size = 150, 210
    anchors = all_anchors(cfg, *size)
    random = np.random.default_rng(0)
    sides = np.exp(random.uniform(np.log(2), np.log(200), (400, 2)))
    start = random.uniform(-20, 1, (400, 2)) + random.random((400, 2)) * size[::-1]
    boxes = np.concatenate([start, start + sides], axis=1)
    brute = pairwise_iou(Boxes(torch.tensor(boxes, dtype=torch.float32)), anchors).max(dim=1)[0]
    ours = AnchorGrid.from_config(cfg).best_iou(boxes, np.tile(size, (400, 1)))
    assert ours == pytest.approx(brute.numpy(), abs=1e-5)
    assert 0.2 < (ours < 0.5).mean() < 0.8


def test_a_box_equal_to_an_anchor_is_matched_wholly():
    cfg = config()
    anchors = all_anchors(cfg, 128, 128).tensor.numpy()[::97]
    best = AnchorGrid.from_config(cfg).best_iou(anchors, np.tile((128, 128), (len(anchors), 1)))
    assert best == pytest.approx(np.ones(len(anchors)), abs=1e-5)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("MODEL.RPN.IN_FEATURES", "['p2', 'p9']", "'p9'"),
        ("MODEL.ANCHOR_GENERATOR.SIZES", "[[8], [16]]", "MODEL.ANCHOR_GENERATOR"),
        ("MODEL.BACKBONE.NAME", "nothing", "MODEL.BACKBONE"),
        ("MODEL.ANCHOR_GENERATOR.NAME", "RotatedAnchorGenerator", "DefaultAnchorGenerator"),
    ],
)
def test_a_config_without_usable_anchors_is_named(key, value, words):
    cfg = get_cfg()
    cfg.merge_from_file(QUICK)
    cfg.merge_from_list([key, value])
    with user_error("config_invalid", "mine.yaml", words):
        AnchorGrid.from_config(cfg, "mine.yaml")


@pytest.mark.parametrize(
    ("mask", "width"),
    [
        (strip(120, 4, 0), 4),
        (strip(120, 6, 30), 6),
        (strip(120, 8, 45), 8),
        (disc(90) & ~disc(86), 4),  # a fibre curled to a ring
        (disc(10), math.sqrt(math.pi) * 10),
        (np.ones((5, 5), bool), 5),
        (np.ones((1, 1), bool), 1),
        (np.zeros((0, 0), bool), 0),
    ],
)
def test_the_width_is_that_of_the_particle_itself(mask, width):
    assert mask_width(mask) == pytest.approx(width, rel=0.12)


def round_trip(mask, resized=None):
    masks = CropMasks.from_bitmasks(mask[None])
    boxes = masks.get_bounding_boxes().tensor.numpy()
    return mask_round_trip(masks, boxes, resized or mask.shape, (28, 56, 112))[:, 0]


def test_a_thin_diagonal_fibre_loses_more_than_a_disc():
    fibre, bead = round_trip(strip(240, 6, 40)), round_trip(disc(40))
    assert fibre[0] < 0.65 < 0.85 < fibre[1] < 0.9 < fibre[2] < bead[0]
    assert bead[0] > 0.95
    assert bead[2] > 0.985


def test_a_mask_that_fills_its_box_comes_back_whole():
    mask = np.zeros((100, 90), bool)
    mask[10:66, 20:76] = True
    assert round_trip(mask).tolist() == [1, 1, 1]
    assert round_trip(mask, (200, 180)).tolist() == [1, 1, 1]


def test_a_large_mask_is_judged_on_a_smaller_copy(monkeypatch):
    whole = round_trip(disc(110), (512, 512))
    monkeypatch.setattr("microplastics.data.doctor.model_fit._MAX_MASK_PIXELS", 150**2)
    assert round_trip(disc(110), (512, 512)) == pytest.approx(whole, abs=0.01)


def test_the_round_trip_is_that_of_detectron2():
    mask = strip(200, 5, 33)
    bits = BitMasks(torch.from_numpy(mask[None]))
    boxes = bits.get_bounding_boxes().tensor
    target = bits.crop_and_resize(boxes, 28).float()
    back = paste_masks_in_image(target, Boxes(boxes), mask.shape)[0].numpy()
    assert round_trip(mask)[0] == pytest.approx((back & mask).sum() / (back | mask).sum())
