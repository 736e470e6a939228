"""What a model of a config can see of the particles, class by class, and its findings."""

import math

import cv2
import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from hypothesis import given, settings
from hypothesis import strategies as st
from support import ROOT

from microplastics.config import load_config
from microplastics.data.doctor import model_fit
from microplastics.data.doctor.model_fit import measure_fit, resized_size

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
    assert fit.small_share == {"Fiber": 1, "Film": pytest.approx(1 / 3), "all": 0.5}
    assert fit.no_anchor_share == {"Fiber": 0, "Film": pytest.approx(1 / 3), "all": 0.25}
    assert list(fit.mask_iou) == ["Fiber", "Film", "all"]
    assert fit.mask_iou["Fiber"][28] < 0.75 < 0.9 < fit.mask_iou["Film"][112]
    overall = (fit.mask_iou["Fiber"][56] + 3 * fit.mask_iou["Film"][56]) / 4
    assert fit.mask_iou["all"][56] == pytest.approx(overall)
    by_code = {finding.code: finding for finding in findings}
    assert list(by_code) == ["no_anchor", "too_small", "mask_resolution"]
    assert {finding.severity for finding in findings} == {"warning"}
    small = by_code["too_small"]
    assert small.count == 2
    assert "of 4 particles looked at" in small.what
    assert "Fiber 100.0 %, Film 33.3 %, all 50.0 %" in small.what
    worst = small.examples[0]
    assert worst.text.startswith("annotation 1 of image 0 ('0.png') (1.")
    assert worst.image == "images/0.png"
    assert worst.box == tuple(dicts[0]["annotations"][0]["bbox"])
    assert by_code["no_anchor"].examples[0].annotation_id == 102
    resolution = by_code["mask_resolution"]
    assert "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION 56" in resolution.mend
    assert resolution.mend.endswith("no size of mask brings back what the resize takes away.")
    assert resolution.examples[0].annotation_id == 1
    assert f"(IoU {fit.mask_iou['Fiber'][28]:.2f} at 28 x 28)" in resolution.examples[0].text


def test_a_larger_mask_is_proposed_where_it_is_enough():
    dicts = [image_dict([strip(200, 12, 40)])]
    fit, (finding,) = measure_fit(config("INPUT.MIN_SIZE_TEST", 0), "q", dicts, ["Fiber"])
    size = min(size for size, iou in fit.mask_iou["all"].items() if iou >= 0.9)
    assert finding.code == "mask_resolution"
    assert finding.mend.startswith(f"Set MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION {size // 2}: ")
    assert finding.mend.endswith("times the time of the mask head.")


def test_the_mend_of_anchors_holds():
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
    assert finding.count == round(60 * fit.no_anchor_share["all"]) > 3
    assert "allow_low_quality_matches" in finding.consequence
    words = finding.mend
    sizes = words[words.index("[[") : words.index("]]") + 2]
    assert "MODEL.ANCHOR_GENERATOR.SIZES" in words
    mended = config("MODEL.ANCHOR_GENERATOR.SIZES", sizes)
    better, _ = measure_fit(mended, "quick.yaml", [image_dict(masks)], ["Bead"])
    assert f"{100 * better.no_anchor_share['all']:.1f} % are left" in words
    assert better.no_anchor_share["all"] < fit.no_anchor_share["all"]


def test_large_round_particles_give_no_finding():
    dicts = [image_dict([disc(40), disc(33, center=(60, 60))])]
    fit, findings = measure_fit(config(), "quick.yaml", dicts, ["Bead"])
    assert findings == []
    assert fit.no_anchor_share == fit.small_share == {"Bead": 0, "all": 0}


def test_without_particles_nothing_is_measured():
    empty = {"file_name": "a.png", "image_id": 0, "height": 9, "width": 9, "annotations": []}
    for dicts in ([], [empty], [image_dict([disc(20)], crowd=[0])]):
        fit, findings = measure_fit(config(), "quick.yaml", dicts, ["Bead"])
        assert (fit.sampled, fit.mask_iou, findings) == (0, {}, [])


def test_a_sample_stands_for_its_class(monkeypatch):
    monkeypatch.setattr(model_fit, "MAX_PER_CLASS", 2)
    masks = [disc(20) for _ in range(6)] + [strip(200, 2, 45)]
    dicts = [image_dict(masks, [1] * 6 + [0])]
    fit, _ = measure_fit(config("INPUT.MIN_SIZE_TEST", 0), "q", dicts, ["Fiber", "Bead"])
    assert fit.sampled == 3
    assert fit.small_share == {"Fiber": 1, "Bead": 0, "all": pytest.approx(1 / 7)}
    again, _ = measure_fit(config("INPUT.MIN_SIZE_TEST", 0), "q", dicts, ["Fiber", "Bead"])
    assert again == fit


def test_a_head_with_another_mask_size_is_measured_too():
    cfg = config("MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", 20)
    fit, _ = measure_fit(cfg, "q", [image_dict([disc(20)])], ["Bead"])
    assert fit.mask_size == 40
    assert list(fit.mask_iou["Bead"]) == [28, 40, 56, 112]


def test_a_polygon_is_outlined_like_a_mask():
    outline, _ = cv2.findContours(disc(40).astype(np.uint8), 0, 1)
    dic = image_dict([disc(40)])
    dic["annotations"][0]["segmentation"] = [outline[0].astype(float).ravel().tolist()]
    fit, _ = measure_fit(config(), "q", [dic], ["Bead"])
    assert fit.mask_iou["Bead"][28] > 0.93
