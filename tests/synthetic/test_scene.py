import dataclasses
import math

import cv2
import numpy as np
import pytest
from pycocotools import mask as mask_util
from shapely.geometry import LineString, Polygon, box
from support import user_error

from microplastics.synthetic import PRESETS, render_image
from microplastics.synthetic.camera import Scene, defocus, generator
from microplastics.synthetic.filters import DARK_FILTERS, lay_dish, print_grid, render_filter
from microplastics.synthetic.particles import (
    BEAD,
    FIBER,
    FILM,
    FRAGMENT,
    MAKERS,
    Particle,
    make_bead,
)
from microplastics.synthetic.scene import MAX_PARTICLES, _set_against, annotate, find_preset


@pytest.fixture(scope="module")
def pictures():
    return [render_image((5, "train", index), 256, 2.0) for index in range(24)]


def decoded(annotation, size):
    rle = annotation["segmentation"]
    if isinstance(rle, list):
        (rle,) = mask_util.frPyObjects(rle, size, size)
    return mask_util.decode(rle)


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


def test_seeds_and_splits_differ():
    images = [render_image(key, 64, 1.0)[0] for key in [(1, "a", 0), (2, "a", 0), (1, "b", 0)]]
    assert len({image.tobytes() for image in images}) == 3


def annotations_of(name, count, size):
    preset = PRESETS[name]
    return [render_image((2, name, i), size, 1.0, preset)[2] for i in range(count)]


def test_dense_is_four_to_six_times_as_dense():
    plain = np.mean([len(a) for a in annotations_of("default", 24, 160)])
    dense = [len(a) for a in annotations_of("dense", 12, 160)]
    assert 3 < np.mean(dense) / plain < 6
    assert min(dense) > 4 and max(dense) <= MAX_PARTICLES


def test_a_blank_is_never_annotated_but_is_not_bare():
    pictures = [render_image((3, "blank", i), 128, 1.0, PRESETS["blank"]) for i in range(6)]
    assert not any(annotations for _, _, annotations in pictures)
    assert all(image.std() > 2 for image, _, _ in pictures)
    assert len({record["filter"] for _, record, _ in pictures}) > 1


def test_beads_are_discs_of_one_batch():
    spreads = []
    for annotations in annotations_of("beads", 12, 256):
        whole = [a for a in annotations if not a["touches_edge"]]
        assert all(a["category_id"] == 1 for a in annotations)
        for annotation in whole:
            assert annotation["bbox"][2] == pytest.approx(annotation["bbox"][3], abs=2)
            assert annotation["area"] == pytest.approx(annotation["truth"]["area_um2"], rel=0.03)
        diameters = [a["truth"]["length_um"] for a in annotations]
        if len(diameters) > 2:
            spreads.append(np.std(diameters) / np.mean(diameters))
    assert len(spreads) > 5 and max(spreads) < 0.12


@pytest.mark.parametrize("kind", MAKERS)
def test_set_against_another_it_touches_and_does_not_overlap(kind):
    rng = generator(4, kind)
    other = make_bead(rng, 256, 40).moved(100, 100)
    placed = _set_against(rng, MAKERS[kind](rng, 256), other)
    assert placed.outline.intersection(other.outline).area < 1e-6
    assert placed.outline.distance(other.outline) < 2
    assert BEAD in MAKERS


@pytest.mark.parametrize("name", ["dish", "gridded"])
def test_a_photographed_dish_or_grid_is_repeatable_and_exactly_annotated(name):
    ratios, captions = [], 0
    preset = dataclasses.replace(PRESETS[name], caption_fraction=0.7)
    for index in range(8):
        image, record, annotations = render_image((6, name, index), 224, 8.0, preset)
        if index == 0:
            again = render_image((6, name, index), 224, 8.0, preset)
            assert again[0].tobytes() == image.tobytes() and again[1:] == (record, annotations)
        for annotation in annotations:
            mask = decoded(annotation, 224)
            assert annotation["area"] == mask.sum()
            if not annotation["touches_edge"]:
                ratios.append(annotation["area"] * 64 / annotation["truth"]["area_um2"])
            if "caption" in record:
                x, y, width, height = record["caption"]["bbox"]
                assert mask[y : y + height, x : x + width].sum() <= 0.06 * mask.sum()
        captions += "caption" in record
        assert captions == 0 or 0 < len(record.get("caption", {"text": "-"})["text"]) < 50
    assert len(ratios) > 15 and np.median(ratios) == pytest.approx(1, abs=0.01)
    assert 2 < captions <= 8


@pytest.mark.parametrize("name", ["dish", "gridded"])
def test_walls_lines_and_captions_are_not_annotated(name):
    bare = dataclasses.replace(PRESETS[name], particles_per_256=0, caption_fraction=1.0)
    pictures = [render_image((6, name, i), 320, 8.0, bare) for i in range(3)]
    assert not any(annotations for _, _, annotations in pictures)
    assert len({image.tobytes() for image, _, _ in pictures}) == 3
    assert all("caption" in record for _, record, _ in pictures)


def test_particles_lie_inside_the_dish():
    walls = count = 0
    for index in range(8):
        key = (8, "dish", index)
        scene = render_filter(key, 160, {"dish": 1.0})
        before = scene.canvas.copy()
        bottom = lay_dish(generator(*key, "dish"), scene)
        if bottom is None:
            continue
        # The bottom's edge is in the picture, and the wall is seen on it.
        assert bottom.boundary.intersects(box(10, 10, 150, 150))
        assert np.abs(scene.canvas - before).max() > 0.15
        walls += 1
        for annotation in render_image(key, 160, 4.0, PRESETS["dish"])[2]:
            if isinstance(annotation["segmentation"], list):
                outline = np.reshape(annotation["segmentation"][0], (-1, 2))
                assert bottom.buffer(0.05).contains(LineString(outline))
                count += 1
    assert 3 <= walls <= 8 and count > 5


def test_squares_have_3_mm_and_fibers_lie_along_their_lines():
    scene = render_filter((1, "g"), 256, {"gridded_cellulose": 1.0})
    before = scene.canvas.copy()
    grid = print_grid(generator(1), scene, 20.0)
    assert grid.pitch == 150
    rows, columns = np.mgrid[:256, :256] + 0.5
    off = np.minimum(*(np.abs(grid.offset(family, columns, rows)) for family in (0, 1)))
    darker = (before - scene.canvas).mean(2)
    assert darker[off < 0.5].mean() > 0.1 and darker[off > 8].max() < 1e-6
    for um_per_px, pitch in ((1.0, 0.9 * 256), (1000.0, 0.35 * 256)):
        assert print_grid(generator(1), scene, um_per_px).pitch == pytest.approx(pitch)
    for seed in range(6):
        fiber = straight_fiber(40, 3)
        placed = grid.onto(generator(seed), fiber, (256, 256))
        assert placed.truth(1.0) == pytest.approx(fiber.truth(1.0), rel=1e-6)
        offsets = np.array([[grid.offset(f, *p) for p in placed.core] for f in (0, 1)])
        assert np.abs(offsets).max(1).min() < 12


@pytest.mark.parametrize("size", [(260, 195), (150, 200)])
def test_a_picture_need_not_be_square(size):
    width, height = size
    low = bars = count = 0
    for index in range(6):
        image, record, annotations = render_image((7, "wide", index), size, 4.0, PRESETS["dish"])
        assert image.shape == (height, width, 3)
        assert (record["width"], record["height"]) == size
        for burnt in (record[name] for name in ("scale_bar", "caption") if name in record):
            x, y, w, h = burnt["bbox"]
            assert 0 <= x and x + w <= width and 0 <= y and y + h <= height
            bars += 1
        for annotation in annotations:
            rle = annotation["segmentation"]
            if isinstance(rle, list):
                (rle,) = mask_util.frPyObjects(rle, height, width)
            mask = mask_util.decode(rle)
            assert mask.shape == (height, width) and mask.sum() == annotation["area"]
            x, y, w, h = annotation["bbox"]
            touches = min(x, y) <= 0 or x + w >= width or y + h >= height
            assert annotation["touches_edge"] or not touches
            low, count = max(low, y + h), count + 1
    assert low > 0.85 * height and bars > 3 and count > 10


def test_defocus_blurs_one_side_more():
    rng = generator(3)
    canvas = rng.random((128, 128, 3), dtype=np.float32)
    scene = Scene(canvas.copy(), np.array([1.0, 0.0]), "dish", False)
    defocus(rng, scene, 2.0)
    detail = [piece.std() for half in np.vsplit(scene.canvas, 4) for piece in np.hsplit(half, 4)]
    assert scene.canvas.mean() == pytest.approx(canvas.mean(), abs=0.01)
    assert min(detail) < 0.5 * max(detail) <= 0.5 * canvas.std()


def straight_fiber(length, radius, x=0.0, y=0.0):
    core = np.array([[x, y], [x + length, y]])
    return Particle(FIBER, LineString(core).buffer(radius, quad_segs=64), core, radius)


def test_annotation_of_a_square_is_exact():
    corners = np.array([[10.0, 20], [16, 20], [16, 25], [10, 25]])
    annotation = annotate(Particle(FRAGMENT, Polygon(corners), corners), 64, 2.0)
    assert annotation["area"] == 30 and annotation["bbox"] == [10, 20, 6, 5]
    assert not annotation["touches_edge"] and annotation["iscrowd"] == 0
    assert annotation["truth"]["area_um2"] == 120


def test_truth_is_whole_if_the_frame_cuts():
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


def wedge(length):
    """Make a fibre that leaves the frame so flatly that it ends in ``length`` px below 1 px."""
    core = np.array([[20.0, 10], [20.0 + 10 * length, 0]])
    core[:, 1] -= 3
    return Particle(FIBER, LineString(core).buffer(3, quad_segs=16), core, 3.0)


def test_the_frame_leaves_no_tip_thinner_than_a_pixel():
    annotation = annotate(wedge(18), 256, 1.0)
    points = np.reshape(annotation["segmentation"][0], (-1, 2))
    x, y, width, height = annotation["bbox"]
    assert annotation["touches_edge"]
    assert annotation["truth"]["width_um"] == 6
    assert np.abs(points.min(0) - (x, y)).max() < 1
    assert np.abs(points.max(0) - (x + width, y + height)).max() < 1


@pytest.mark.parametrize("kind", MAKERS)
def test_the_polygon_spans_the_box_of_its_mask(kind):
    worst = cut = 0
    for seed in range(300):
        rng = generator(seed, "span", kind)
        particle = MAKERS[kind](rng, 256)
        for _ in range(3):
            annotation = annotate(particle.moved(*rng.uniform(0, 256, 2)), 256, 1.0)
            if annotation is None or isinstance(annotation["segmentation"], dict):
                continue
            points = np.reshape(annotation["segmentation"][0], (-1, 2))
            assert (points != np.roll(points, 1, axis=0)).any(axis=1).all()  # none repeated
            x, y, width, height = annotation["bbox"]
            off = np.concatenate([points.min(0) - (x, y), points.max(0) - (x + width, y + height)])
            worst, cut = max(worst, np.abs(off).max()), cut + annotation["touches_edge"]
    # What check_instances calls bbox_differs begins at 2 px.
    assert worst < 1.8 and cut > 50


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_a_preset_makes_sense(preset):
    assert sum(preset.filters.values()) == pytest.approx(1)
    assert sum(preset.mix.values()) == pytest.approx(1)
    assert set(preset.mix) <= set(MAKERS)
    for name in ("empty_fraction", "scale_bar_fraction", "crossing", "touching", "max_overlap"):
        assert 0 <= getattr(preset, name) <= 1
    assert preset.max_crossing <= 1 - preset.min_visible + 0.3
    ids = [category["id"] for category in preset.categories]
    assert ids == list(range(1, len(preset.mix) + 1))


def test_category_ids():
    for kind, number in ((FIBER, 1), (FRAGMENT, 2), (FILM, 3), (BEAD, 1)):
        particle = MAKERS[kind](generator(1), 256).moved(128, 128)
        assert annotate(particle, 256, 1.0)["category_id"] == number


def test_an_unknown_preset_is_refused():
    with user_error("option_invalid", "Default", "glass-filter"):
        find_preset("Default")


@pytest.mark.parametrize("name", sorted({f for p in PRESETS.values() for f in p.filters}))
def test_every_filter_is_drawn_dark_or_bright(name):
    scene = render_filter((1, name), 96, {name: 1.0})
    assert scene.filter == name and scene.dark == (name in DARK_FILTERS)
    level = scene.canvas.mean()
    assert level < 0.6 if scene.dark else level > 0.25
