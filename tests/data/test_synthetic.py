import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as mask_util
from pycocotools.coco import COCO
from shapely.geometry import LineString, Polygon

from microplastics.data.synthetic import render_dataset, render_image
from microplastics.data.synthetic.fields import fractal_noise, generator, relief, smooth_noise
from microplastics.data.synthetic.masks import annotate
from microplastics.data.synthetic.optics import bar_text, draw_scale_bar, plan_scale_bar
from microplastics.data.synthetic.particles import (
    CATEGORIES,
    FIBER,
    FILM,
    FRAGMENT,
    MAKERS,
    MAX_ASPECT_RATIO,
    Particle,
    feret_diameters,
)
from microplastics.data.synthetic.shading import MIN_CONTRAST, contour_contrast
from microplastics.errors import UserError


@pytest.fixture(scope="module")
def pictures():
    return [render_image((5, "train", index), 256, 2.0) for index in range(24)]


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    root = tmp_path_factory.mktemp("rendered")
    return root, render_dataset(root, {"train": 4, "val": 2}, 96, 4.0, 7, progress=False)


def decoded(annotation, size):
    rle = annotation["segmentation"]
    if isinstance(rle, list):
        (rle,) = mask_util.frPyObjects(rle, size, size)
    return mask_util.decode(rle)


def content(root):
    return {p.relative_to(root): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def straight_fiber(length, radius, x=0.0, y=0.0):
    core = np.array([[x, y], [x + length, y]])
    return Particle(FIBER, LineString(core).buffer(radius, quad_segs=64), core, radius)


# geometry


@given(st.floats(0, 7), st.floats(1, 50), st.floats(1, 50))
def test_feret_of_a_turned_rectangle(angle, width, height):
    turn = [[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]]) @ turn
    largest, smallest = feret_diameters(corners)
    assert largest == pytest.approx(math.hypot(width, height))
    assert smallest == pytest.approx(min(width, height))


def test_feret_of_a_triangle_and_of_a_line():
    assert feret_diameters(np.array([[0, 0], [4, 0], [0, 3]])) == pytest.approx((5, 2.4))
    assert feret_diameters(np.array([[0.0, 0], [1, 1], [3, 3]])) == pytest.approx((18**0.5, 0))


def test_truth_of_a_straight_fiber():
    truth = straight_fiber(40, 3).truth(0.5)
    assert truth["length_um"] == truth["feret_max_um"] == 23
    assert truth["width_um"] == truth["feret_min_um"] == 3
    assert truth["area_um2"] == pytest.approx((40 * 6 + 9 * math.pi) / 4, rel=1e-4)
    assert truth["perimeter_um"] == pytest.approx((80 + 6 * math.pi) / 2, rel=1e-4)


def test_truth_of_a_curled_fiber_follows_its_bend():
    angle = np.linspace(0, math.pi, 200)
    core = 20 * np.stack([np.cos(angle), np.sin(angle)], 1)
    truth = Particle(FIBER, LineString(core).buffer(2), core, 2.0).truth(1.0)
    assert truth["length_um"] == pytest.approx(20 * math.pi + 4, rel=1e-4)
    assert truth["feret_max_um"] == pytest.approx(44)
    assert truth["feret_min_um"] == pytest.approx(24, rel=1e-4)
    assert truth["width_um"] == 4


@pytest.mark.parametrize("kind", [FIBER, FRAGMENT, FILM])
@given(seed=st.integers(0, 10**6), size=st.sampled_from([64, 256, 2000]))
def test_every_shape_is_sound(kind, seed, size):
    particle = MAKERS[kind](generator(seed), size)
    truth = particle.truth(1.0)
    assert particle.outline.is_valid and isinstance(particle.outline, Polygon)
    assert truth["width_um"] <= truth["length_um"]
    assert truth["feret_min_um"] <= truth["feret_max_um"] <= truth["length_um"] + 1e-6
    hull = np.asarray(particle.outline.convex_hull.exterior.coords)
    assert feret_diameters(hull)[0] == pytest.approx(truth["feret_max_um"], rel=0.02)
    if kind == FIBER:
        assert 3 <= truth["width_um"] <= 10
        assert truth["length_um"] <= MAX_ASPECT_RATIO * truth["width_um"] + 1e-6
        assert truth["area_um2"] <= truth["length_um"] * truth["width_um"]


def test_moving_changes_no_measure():
    particle = MAKERS[FILM](generator(3), 256)
    moved = particle.moved(12.5, -7)
    assert moved.truth(2.0) == pytest.approx(particle.truth(2.0))
    assert moved.outline.bounds[0] == pytest.approx(particle.outline.bounds[0] + 12.5)


# annotations


def test_annotation_of_a_square_is_exact():
    corners = np.array([[10.0, 20], [16, 20], [16, 25], [10, 25]])
    annotation = annotate(Particle(FRAGMENT, Polygon(corners), corners), 64, 2.0)
    assert annotation["area"] == 30 and annotation["bbox"] == [10, 20, 6, 5]
    assert not annotation["touches_edge"] and annotation["iscrowd"] == 0
    assert annotation["truth"]["area_um2"] == 120


def test_truth_is_whole_where_the_frame_cuts():
    annotation = annotate(straight_fiber(40, 3, x=-20, y=30), 64, 1.0)
    assert annotation["touches_edge"] and annotation["truth"]["length_um"] == 46
    assert annotation["area"] == pytest.approx(20 * 6 + 4.5 * math.pi, abs=3)
    assert min(annotation["segmentation"][0]) >= 0
    assert annotate(straight_fiber(40, 3, x=-60), 64, 1.0) is None


def test_a_ring_is_rle_with_its_hole():
    angle = np.linspace(0, 2 * math.pi, 200)
    core = 32 + 15 * np.stack([np.cos(angle), np.sin(angle)], 1)
    particle = Particle(FIBER, LineString(core).buffer(2.5), core, 2.5)
    annotation = annotate(particle, 64, 1.0)
    assert annotation["segmentation"]["size"] == [64, 64]
    mask = decoded(annotation, 64)
    assert mask[32, 32] == 0 and mask[32, 47] == 1
    assert annotation["area"] == mask.sum() == pytest.approx(2 * math.pi * 15 * 5, rel=0.01)


def test_pieces_left_by_the_frame_are_one_annotation():
    core = np.array([[10.0, 50], [30, 80], [50, 50]])
    annotation = annotate(Particle(FIBER, LineString(core).buffer(3), core, 3.0), 64, 1.0)
    count, _ = cv2.connectedComponents(decoded(annotation, 64))
    assert count - 1 == 2 and isinstance(annotation["segmentation"], dict)


def test_area_and_box_are_those_of_the_mask(pictures):
    assert sum(len(annotations) for _, _, annotations in pictures) > 80
    for _, _, annotations in pictures:
        for annotation in annotations:
            mask = decoded(annotation, 256)
            assert annotation["area"] == mask.sum() > 0
            x, y, width, height = cv2.boundingRect(mask)
            assert annotation["bbox"] == [x, y, width, height]


def test_masks_agree_with_the_drawn_geometry(pictures):
    ratios = [
        annotation["area"] * 4 / annotation["truth"]["area_um2"]
        for _, _, annotations in pictures
        for annotation in annotations
        if not annotation["touches_edge"]
    ]
    assert len(ratios) > 40
    assert np.median(ratios) == pytest.approx(1, abs=0.005)
    assert np.abs(np.log(ratios)).max() < 0.08


def test_particles_stand_out_from_what_surrounds_them(pictures):
    low = total = 0
    for image, _, annotations in pictures:
        masks = [decoded(a, 256) for a in annotations]
        anything = np.any(masks, axis=0) if masks else None
        for mask in masks:
            around = (cv2.dilate(mask, np.ones((13, 13), np.uint8)) > 0) & ~anything
            if around.sum() < 30:
                continue
            rim = (mask > 0) & (cv2.erode(mask, np.ones((5, 5), np.uint8)) == 0)
            off = np.abs(image[rim].mean(0) - image[around].mean(0)).max()
            low, total = low + (off < 12), total + 1
    assert total > 80 and low <= 0.02 * total


def test_all_that_makes_a_filter_photograph_occurs(pictures):
    kinds = {a["category_id"] for _, _, annotations in pictures for a in annotations}
    assert kinds == {1, 2, 3}
    records = [record for _, record, _ in pictures]
    assert len({r["filter"] for r in records}) >= 4
    assert 3 <= sum("scale_bar" in r for r in records) <= 16
    assert len({r["jpeg_quality"] for r in records}) > 5
    counts = [len(annotations) for _, _, annotations in pictures]
    assert max(counts) >= 2 * np.median(counts)


def test_a_twentieth_of_the_pictures_are_empty():
    counts = [len(render_image((1, "e", i), 64, 1.0)[2]) for i in range(120)]
    assert 0.01 < np.mean(np.array(counts) == 0) < 0.2


# drawing


def test_contrast_is_that_of_the_rim():
    below = np.zeros((20, 20, 3), np.float32)
    coverage = np.zeros((20, 20), np.float32)
    coverage[4:16, 4:16] = 1
    painted = below.copy()
    painted[4:16, 4:16] = 0.5
    assert contour_contrast(painted, below, coverage) == pytest.approx(0.5)
    painted[4:16, 4:16] = 0
    painted[8:12, 8:12] = 1
    assert contour_contrast(painted, below, coverage) == 0 < MIN_CONTRAST


def test_fields_have_their_scale():
    field = fractal_noise(generator(1), (128, 128), (16, 4))
    assert field.dtype == np.float32 and abs(field.mean()) < 1e-4
    assert field.std() == pytest.approx(1, abs=1e-4)
    fine, coarse = (smooth_noise(generator(2), (128, 128), cell) for cell in (2, 20))
    assert np.abs(np.diff(fine)).mean() > 3 * np.abs(np.diff(coarse)).mean()


def test_relief_is_bright_on_the_side_of_the_lamp():
    ramp = np.tile(np.arange(9, dtype=np.float32), (9, 1))
    assert relief(ramp, np.array([1.0, 0]))[4, 4] == pytest.approx(-1)
    assert relief(ramp, np.array([-1.0, 0]))[4, 4] == pytest.approx(1)


@pytest.mark.parametrize("um, text", [(0.5, "500 nm"), (2.5, "2.5 µm"), (750, "750 µm")])
def test_scale_bar_text(um, text):
    assert bar_text(um) == text and bar_text(1000 * um * 2).endswith("m")


@given(seed=st.integers(0, 10**6), size=st.integers(64, 900), scale=st.floats(1e-4, 1e4))
def test_scale_bar_is_drawn_as_it_says(seed, size, scale):
    bar = plan_scale_bar(generator(seed), size, scale)
    if bar is None:
        return
    assert bar["px"] == pytest.approx(bar["um"] / scale, abs=0.5)
    x, y, width, height = bar["bbox"]
    assert 0 <= x and 0 <= y and x + width <= size and y + height <= size
    image = np.full((size, size, 3), 200, np.uint8)
    bar["style"]["plate"] = False
    draw_scale_bar(image, bar)
    ink = image[..., 0] < 200
    assert ink[y : y + height, x : x + width].sum() == ink.sum()
    rows = [row for row in image[..., 0] == 0 if row.sum() >= bar["px"]]
    assert {int(np.ptp(np.nonzero(row)[0])) + 1 for row in rows} == {bar["px"]}


# the data set


def test_layout_and_ids(rendered):
    root, paths = rendered
    assert paths == {s: root / f"annotations/instances_{s}.json" for s in ("train", "val")}
    coco = json.loads(paths["train"].read_text())
    assert coco["categories"] == CATEGORIES
    assert [(c["id"], c["name"]) for c in CATEGORIES] == [
        (1, "Fiber"),
        (2, "Fragment"),
        (3, "Film"),
    ]
    assert [i["id"] for i in coco["images"]] == [1, 2, 3, 4]
    assert [a["id"] for a in coco["annotations"]] == list(range(1, len(coco["annotations"]) + 1))
    for image in coco["images"]:
        assert cv2.imread(str(root / "train" / image["file_name"])).shape == (96, 96, 3)
        assert (image["width"], image["height"], image["um_per_px"]) == (96, 96, 4.0)
    assert sorted(p.name for p in root.iterdir()) == [
        "annotations",
        "synthetic.json",
        "train",
        "val",
    ]


def test_pycocotools_reads_it(rendered, capsys):
    coco = COCO(str(rendered[1]["train"]))
    for annotation in coco.anns.values():
        assert coco.annToMask(annotation).sum() == annotation["area"]


def test_same_seed_same_bytes(rendered, tmp_path):
    render_dataset(tmp_path, {"train": 4, "val": 2}, 96, 4.0, 7, workers=2, progress=False)
    assert content(tmp_path) == content(rendered[0])


def test_more_images_leave_the_first_as_they_are(rendered, tmp_path):
    before = content(rendered[0])
    for counts in ({"train": 3, "val": 1}, {"train": 5, "val": 1}):
        render_dataset(tmp_path, counts, 96, 4.0, 7, progress=False)
    after = content(tmp_path)
    for index in range(4):
        name = Path(f"train/train_{index:06d}.jpg")
        assert after[name] == before[name]
    assert (
        len(json.loads((tmp_path / "annotations/instances_train.json").read_text())["images"]) == 5
    )


def test_seeds_and_splits_differ():
    images = [render_image(key, 64, 1.0)[0] for key in [(1, "a", 0), (2, "a", 0), (1, "b", 0)]]
    assert len({image.tobytes() for image in images}) == 3


def test_a_finished_data_set_is_left_alone(tmp_path, monkeypatch):
    render_dataset(tmp_path, {"train": 2}, 64, 1.0, 0, progress=False)
    before = content(tmp_path)
    times = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    render_dataset(tmp_path, {"train": 2}, 64, 1.0, 0, progress=False)
    assert times == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    (tmp_path / "train/train_000001.jpg").write_bytes(b"damaged")
    render_dataset(tmp_path, {"train": 2}, 64, 1.0, 0, progress=False)
    assert content(tmp_path) == before


def test_an_interrupted_run_is_finished_by_the_next(tmp_path, monkeypatch):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    render_dataset(whole, {"train": 3}, 64, 1.0, 0, progress=False)
    calls = []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return render_image(*args)

    with monkeypatch.context() as patch:
        patch.setattr("microplastics.data.synthetic.dataset.render_image", interrupted)
        with pytest.raises(KeyboardInterrupt):
            render_dataset(cut, {"train": 3}, 64, 1.0, 0, progress=False)
    assert not json.loads((cut / "synthetic.json").read_text())["complete"]
    (cut / "train/.train_000001.jpg.abc").write_bytes(b"half")
    render_dataset(cut, {"train": 3}, 64, 1.0, 0, progress=False)
    assert content(cut) == content(whole)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"size": 63}, "--size is 63: give a side between 64"),
        ({"size": 9000}, "between 64 and 8192 px"),
        ({"counts": {"train": -1}}, "--train is -1: give the number of images, 0 or more"),
        ({"counts": {"train": 0, "val": 0}}, "nothing to render"),
        ({"counts": {"../up": 1}}, "cannot name a split"),
        ({"um_per_px": 0.0}, "--um-per-px is 0: give micrometres per pixel"),
        ({"um_per_px": math.nan}, "--um-per-px is nan"),
        ({"um_per_px": -2.0}, "--um-per-px is -2"),
        ({"um_per_px": math.inf}, "--um-per-px is inf"),
        ({"seed": -1}, "--seed is -1: give 0 or more"),
        ({"workers": 0}, "--workers is 0: give the number of processes"),
    ],
)
def test_nonsense_is_refused(tmp_path, change, words):
    with pytest.raises(UserError, match=words):
        render_dataset(**{"output": tmp_path, "counts": {"train": 1}, "size": 64} | change)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change, words",
    [
        ({"seed": 8}, "holds another rendering .seed 7.: delete it or choose another --output"),
        ({"size": 64}, "size 96"),
        ({"um_per_px": 1.0}, "um_per_px 4.0"),
        ({"counts": {"train": 3, "val": 2}}, "4 train images"),
    ],
)
def test_another_rendering_is_not_overwritten(rendered, change, words):
    before = content(rendered[0])
    same = {"counts": {"train": 4, "val": 2}, "size": 96, "um_per_px": 4.0, "seed": 7}
    with pytest.raises(UserError, match=words):
        render_dataset(rendered[0], **same | change, progress=False)
    assert content(rendered[0]) == before


@pytest.mark.parametrize("name", ["train/mine.jpg", "annotations/instances_train.json"])
def test_foreign_data_is_not_overwritten(tmp_path, name):
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match="'train' that this command did not write"):
        render_dataset(tmp_path, {"train": 1}, 64, progress=False)
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"counts": {"train": "x"}}', "[" * 100000])
def test_a_damaged_manifest_is_named(tmp_path, text):
    (tmp_path / "synthetic.json").write_text(text)
    with pytest.raises(UserError, match="synthetic.json .*: delete it or choose another --output"):
        render_dataset(tmp_path, {"train": 1}, 64, progress=False)


def test_output_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot write .*file"):
        render_dataset(tmp_path / "file/data", {"train": 1}, 64, progress=False)
    with pytest.raises(UserError, match="Cannot write .*file"):
        render_dataset(tmp_path / "file", {"train": 1}, 64, progress=False)
