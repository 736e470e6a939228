"""ParticleVisualizer: what can be seen in its pictures."""

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import Metadata
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances, PolygonMasks
from hypothesis import given, settings
from hypothesis import strategies as st

from microplastics.report.visualizer import (
    LabelPlacer,
    ParticleVisualizer,
    crop_path,
    mask_paths,
    outline_points,
    picture_scale,
)
from microplastics.structures.crop_masks import CropMasks

COLORS = [[213, 94, 0], [0, 114, 178]]
METADATA = Metadata(thing_classes=["Fiber", "Film"], thing_colors=COLORS)
GREY = np.full((40, 60, 3), 128, np.uint8)


def draw(masks, boxes=((0, 0, 1, 1),), classes=(0,), image=GREY, scale=8, labels=False, **options):
    visualizer = ParticleVisualizer(image, METADATA, scale, labels)
    return visualizer.draw_particles(boxes, classes, masks, **options).get_image()


def bitmap(*rows_columns):
    mask = np.zeros(GREY.shape[:2], bool)
    for y0, y1, x0, x1 in rows_columns:
        mask[y0:y1, x0:x1] = True
    return mask


def touched(picture):
    """Boolean (H, W): pixels that are no longer grey."""
    return (picture != 128).any(axis=2)


@pytest.mark.parametrize(
    "size, scale",
    [((256, 256), 4), ((512, 512), 2), ((600, 800), 1), ((799, 3), 2), ((5000, 10000), 0.4)],
)
def test_small_images_are_enlarged_by_whole_factors_and_large_ones_shrunk(size, scale):
    assert picture_scale(*size) == scale


@pytest.mark.parametrize("size", [(40, 60), (1, 1), (7, 900), (300, 1300)])
@pytest.mark.parametrize("scale", [None, 1.0, 3.0, 0.31])
def test_the_photograph_stays_as_it_is_where_nothing_is_drawn(size, scale):
    image = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    scale = picture_scale(*size) if scale is None else scale
    picture = ParticleVisualizer(image, METADATA, scale).get_output().get_image()
    assert picture.shape[:2] == tuple(max(1, round(side * scale)) for side in size)
    if scale >= 1:
        assert (picture == image.repeat(int(scale), 0).repeat(int(scale), 1)).all()


def test_outlines_have_the_colour_of_the_class_and_run_between_pixels():
    picture = draw([bitmap((10, 30, 10, 40))])
    for y, x in ((20 * 8, 10 * 8), (20 * 8, 40 * 8), (10 * 8, 25 * 8), (30 * 8, 25 * 8)):
        around = picture[y - 1 : y + 2, x - 1 : x + 2].reshape(-1, 3).astype(int)
        assert np.abs(around - COLORS[0]).max(axis=1).min() <= 10
    # Inside a faint fill: still mostly the photograph.
    inside = picture[20 * 8, 25 * 8].astype(int)
    assert np.abs(inside - (0.85 * 128 + 0.15 * np.array(COLORS[0]))).max() <= 2
    assert not touched(picture)[: 9 * 8].any()


@pytest.mark.parametrize("side", [1, 2, 3])
def test_no_mask_is_too_small_to_be_seen(side):
    mask = bitmap((20, 20 + side, 30, 30 + side))
    for scale in (1, 8):
        changed = touched(draw([mask], scale=scale))
        assert changed.sum() > 60
        assert changed[int(20.5 * scale), int(30.5 * scale)]


def test_a_particle_below_a_pixel_is_ringed():
    polygon = [[30.2, 20.2, 30.4, 20.2, 30.4, 20.4]]
    changed = touched(draw([polygon]))
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    assert 14 <= np.ptp(rows) <= 20 and 14 <= np.ptp(columns) <= 20


def test_holes_are_not_filled():
    mask = bitmap((5, 35, 10, 50))
    mask[15:25, 20:40] = False
    picture = draw([mask])
    assert not touched(picture)[17 * 8 : 23 * 8, 22 * 8 : 38 * 8].any()
    assert touched(picture)[10 * 8, 30 * 8]


def test_overlapping_parts_of_a_polygon_are_filled_whichever_way_they_turn():
    one = [10, 10, 40, 10, 40, 30, 10, 30]
    back = [20, 15, 20, 25, 30, 25, 30, 15]
    picture = draw([[one, back]])
    assert touched(picture)[20 * 8, 25 * 8]


def test_every_kind_of_mask_gives_the_same_picture():
    mask = bitmap((5, 15, 10, 30), (12, 20, 25, 28))
    rle = mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))
    expected = draw(CropMasks.from_bitmasks(mask[None]))
    as_tensor = torch.from_numpy(mask[None])
    for masks in ([rle], [mask], mask[None], as_tensor, BitMasks(as_tensor)):
        assert (draw(masks) == expected).all()
    polygons = [[[10, 5, 30, 5, 30, 15, 10, 15]]]
    assert (draw(polygons) == draw(PolygonMasks(polygons))).all()


def test_full_frames_are_not_made(monkeypatch):
    def refuse(*_):
        raise AssertionError("full frame")

    monkeypatch.setattr(CropMasks, "to_bitmasks", refuse)
    monkeypatch.setattr(CropMasks, "_full", refuse)
    monkeypatch.setattr("detectron2.utils.visualizer.GenericMask.__init__", refuse)
    size = (900, 1000)
    masks = CropMasks([np.ones((9, 9), bool)] * 3, [(0, 0), (500, 400), (991, 891)], size)
    predictions = Instances(size, pred_boxes=masks.get_bounding_boxes(), pred_masks=masks)
    predictions.pred_classes, predictions.scores = torch.tensor([0, 1, 0]), torch.ones(3)
    image = np.full((*size, 3), 128, np.uint8)
    picture = ParticleVisualizer(image, METADATA).draw_instance_predictions(predictions)
    assert all(touched(picture.get_image())[y, x] for x, y in ((4, 9), (500, 404), (991, 895)))


def test_the_smallest_particle_lies_on_top():
    large, small = bitmap((0, 40, 0, 60)), bitmap((18, 22, 28, 32))
    boxes = ((0, 0, 60, 40), (28, 18, 32, 22))
    one = draw([large, small], boxes, (0, 1))
    other = draw([small, large], boxes[::-1], (1, 0))
    assert (one == other).all()


def test_without_masks_boxes_are_drawn_and_an_empty_mask_gives_a_dashed_box():
    box = ((10, 10, 50, 30),)
    solid = touched(draw(None, box))
    dashed = draw(CropMasks.from_bitmasks(bitmap()[None]), box)
    assert (
        solid[10 * 8, 10 * 8 : 50 * 8].all() and not solid[12 * 8 : 28 * 8, 12 * 8 : 48 * 8].any()
    )

    def coloured(picture):
        # The middle of the line, without its white rim.
        row = picture[10 * 8, 12 * 8 : 48 * 8].astype(int)
        return (np.abs(row - COLORS[0]).max(axis=1) < 60).mean()

    assert coloured(draw(None, box)) == 1
    assert 0.3 < coloured(dashed) < 0.9


def test_labels_name_class_and_score(monkeypatch):
    texts = []
    monkeypatch.setattr(
        ParticleVisualizer, "draw_text", lambda _, text, *a, **k: texts.append(text)
    )
    draw([bitmap((2, 9, 2, 9))] * 2, ((2, 2, 9, 9),) * 2, (0, 1), scores=(0.934, 1), labels=True)
    assert sorted(texts) == ["Fiber 93%", "Film 100%"]
    texts.clear()
    annotation = {
        "bbox": [2, 2, 7, 7],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": 0,
        "iscrowd": 1,
    }
    single = Metadata(thing_classes=["Bead"])
    for metadata in (METADATA, single):
        ParticleVisualizer(GREY, metadata).draw_dataset_dict({"annotations": [annotation]})
    assert texts == ["Fiber crowd", "crowd"]


def test_an_image_without_particles_is_no_trouble():
    assert not touched(draw([], np.zeros((0, 4)), ())).any()
    nothing = Instances((40, 60), pred_boxes=Boxes(torch.zeros(0, 4)))
    nothing.pred_classes, nothing.scores = torch.zeros(0, dtype=torch.int64), torch.zeros(0)
    visualizer = ParticleVisualizer(GREY, METADATA)
    assert not touched(visualizer.draw_instance_predictions(nothing).get_image()).any()
    assert not touched(visualizer.draw_dataset_dict({}).get_image()).any()


def test_paths_of_masks_without_a_pixel_are_none():
    assert crop_path(np.zeros((0, 0), bool), (0, 0)) is None
    assert mask_paths([None, []], (4, 4)) == [None, None]


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_labels_stay_inside_the_image_and_off_each_other(data):
    width, height = data.draw(st.integers(60, 300)), data.draw(st.integers(60, 300))
    number = st.floats(-20, 320, allow_nan=False)
    boxes = data.draw(st.lists(st.tuples(number, number), min_size=1, max_size=6))
    outlines = [np.array([(x, y), (x + 5, y), (x + 5, y + 9)]) for x, y in boxes]
    placer = LabelPlacer(width, height, outlines)
    for outline in outlines:
        x, y = placer.place(outline, (30, 8), 2)
        assert 0 <= x <= width - 30 and 0 <= y <= height - 8


def test_two_labels_of_neighbours_do_not_cover_each_other():
    outlines = [np.array([(50.0, 50.0), (52, 52)]), np.array([(54.0, 50.0), (56, 52)])]
    placer = LabelPlacer(200, 200, outlines)
    (x0, y0), (x1, y1) = (placer.place(outline, (40, 10), 2) for outline in outlines)
    assert abs(x0 - x1) >= 40 or abs(y0 - y1) >= 10


def test_outline_points_are_evenly_spaced():
    square = mask_paths([[[0, 0, 12, 0, 12, 12, 0, 12]]], (20, 20))[0]
    steps = np.hypot(*np.diff(outline_points(square, 49), axis=0).T)
    assert steps == pytest.approx(np.ones(48))
