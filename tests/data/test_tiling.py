import logging

import numpy as np
import pytest
from detectron2.structures import BoxMode
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as mask_util
from support import user_error

from microplastics.config import get_cfg
from microplastics.data.tiling import Tiling, choose_tiling, tile_dicts, windows_of
from microplastics.structures.crop_masks import CropMasks


def square(x, y, side):
    return [float(v) for v in (x, y, x + side, y, x + side, y + side, x, y + side)]


def record(*polygons, size=(200, 100), **extra):
    annotations = []
    for polygon in polygons:
        points = np.reshape(polygon, (-1, 2))
        start, end = points.min(axis=0), points.max(axis=0)
        box = {"bbox": [*start, *(end - start)], "bbox_mode": BoxMode.XYWH_ABS}
        annotations.append({**box, "category_id": 1, "segmentation": [polygon], **extra})
    width, height = size
    return {
        "file_name": "a.png",
        "width": width,
        "height": height,
        "image_id": 7,
        "annotations": annotations,
    }


@settings(max_examples=200, deadline=None)
@given(
    width=st.integers(1, 500),
    height=st.integers(1, 500),
    tile=st.integers(1, 200),
    data=st.data(),
)
def test_windows_cover_every_pixel_and_overlap_as_told(width, height, tile, data):
    overlap = data.draw(st.integers(0, tile - 1).filter(lambda o: tile - o > 3 or tile < 4))
    found = windows_of(width, height, tile, overlap)
    assert len(set(found)) == len(found)
    assert {window[2:] for window in found} == {(min(tile, width), min(tile, height))}
    for axis, side in ((0, width), (1, height)):
        starts = sorted({window[axis] for window in found})
        assert starts[0] == 0 and starts[-1] + min(tile, side) == side
        gaps = np.diff(starts)
        assert (gaps <= tile - overlap).all() and (gaps > 0).all()


def test_small_images_stay_whole_and_the_input_unchanged():
    small, large = record(size=(100, 100)), record(square(5, 5, 10))
    before = repr(large)
    tiled = tile_dicts([small, large], 100, 20, 0.1)
    assert tiled[0] is small and repr(large) == before
    assert [t["window"] for t in tiled[1:]] == [(x, 0, 100, 100) for x in (0, 80, 100)]
    for tile in tiled[1:]:
        assert (tile["width"], tile["height"], tile["full_size"]) == (100, 100, (200, 100))
        assert tile["image_id"] == 7 and tile["file_name"] == "a.png"


def test_whole_particles_are_shifted_and_cut_ones_clipped():
    tiled = tile_dicts([record(square(90, 40, 20), square(110, 10, 4))], 100, 0, 0.1)
    left, right = tiled
    (piece,) = left["annotations"]
    assert CropMasks.from_rles([piece["segmentation"]]).area().item() == 200
    assert (piece["bbox"], piece["whole_area"]) == ([90, 40, 100, 60], 400)
    cut, whole = right["annotations"]
    assert cut["bbox"] == [0, 40, 10, 60]
    assert whole["segmentation"] == [square(10, 10, 4)] and "whole_area" not in whole
    assert whole["bbox"] == [10, 10, 14, 14] and whole["bbox_mode"] == BoxMode.XYXY_ABS


def test_fragments_below_the_visible_fraction_are_dropped_and_counted(caplog):
    caplog.set_level(logging.INFO)
    image = record(square(95, 40, 50))
    left, right = tile_dicts([image], 100, 0, 0.2)
    assert (len(left["annotations"]), left["dropped_annotations"]) == (0, 1)
    assert (len(right["annotations"]), right["dropped_annotations"]) == (1, 0)
    assert "2 windows of 1 images, 1 of the windows without a particle" in caplog.text
    assert "1 fragments of particles dropped" in caplog.text
    left, _ = tile_dicts([image], 100, 0, 0.1)
    assert len(left["annotations"]) == 1
    left, _ = tile_dicts([image], 100, 0, 0.1, min_pixels=251)
    assert left["dropped_annotations"] == 1


def test_rle_and_crowds_are_clipped_too():
    image = record(square(90, 40, 20), iscrowd=1)
    rle = mask_util.frPyObjects(image["annotations"][0]["segmentation"], 100, 200)[0]
    image["annotations"][0]["segmentation"] = rle
    left, right = tile_dicts([image], 100, 0, 0.1)
    for tile in (left, right):
        (piece,) = tile["annotations"]
        assert piece["iscrowd"] == 1
        assert CropMasks.from_rles([piece["segmentation"]], (100, 100)).area().item() == 200


@settings(max_examples=30, deadline=None)
@given(
    tile=st.integers(20, 150),
    tenths=st.integers(0, 9),
    squares=st.lists(
        st.tuples(st.integers(0, 180), st.integers(0, 80), st.integers(3, 20)), max_size=6
    ),
)
def test_windows_show_the_same_pixels_of_masks_as_the_image(tile, tenths, squares):
    image = record(*[square(*s) for s in squares])
    full = CropMasks.from_coco([a["segmentation"] for a in image["annotations"]], (100, 200))
    frame = np.zeros((100, 200), bool)
    for mask in full:
        frame |= mask
    for window in tile_dicts([image], tile, tenths * tile // 10, 0.0):
        x, y, w, h = window.get("window", (0, 0, 200, 100))
        segmentations = [a["segmentation"] for a in window["annotations"]]
        union = np.zeros((h, w), bool)
        for mask in CropMasks.from_coco(segmentations, (h, w)):
            assert mask.any()
            union |= mask
        assert np.array_equal(union, frame[y : y + h, x : x + w])


@pytest.mark.parametrize("fraction, kept", [(0.0, 0), (0.5, 5), (1.0, 10), (0.25, 2)])
def test_a_fraction_of_the_empty_windows_is_kept_evenly(fraction, kept):
    tiled = tile_dicts([record(size=(1000, 100))], 100, 0, 0.1, empty_fraction=fraction)
    assert len(tiled) == kept
    assert tiled == tile_dicts([record(size=(1000, 100))], 100, 0, 0.1, empty_fraction=fraction)


def test_a_window_with_nothing_but_a_crowd_is_one_without_a_particle():
    crowd = record(square(10, 10, 20), size=(200, 100), iscrowd=1)
    assert not tile_dicts([crowd], 100, 0, 0.1, empty_fraction=0.0)
    assert [len(d["annotations"]) for d in tile_dicts([crowd], 100, 0, 0.1)] == [1, 0]


def test_a_box_that_is_wrong_does_not_hide_a_mask():
    image = record(square(90, 40, 20))
    image["annotations"][0]["bbox"] = [0, 0, 5, 5]
    for as_rle in (False, True):
        if as_rle:
            polygons = image["annotations"][0]["segmentation"]
            image["annotations"][0]["segmentation"] = mask_util.frPyObjects(polygons, 100, 200)[0]
        left, right = tile_dicts([image], 100, 0, 0.1)
        assert len(left["annotations"]) == len(right["annotations"]) == 1


@pytest.fixture
def cfg():
    cfg = get_cfg()
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 800, 1333
    return cfg


def test_an_image_like_the_trainings_is_predicted_whole(cfg):
    assert choose_tiling(cfg, (750, 1000), training_side=750) is None
    assert choose_tiling(cfg, (750, 1200), training_side=750) is None
    # Smaller ones are enlarged, as Detectron2 does.
    assert choose_tiling(cfg, (200, 200), training_side=750) is None
    assert choose_tiling(cfg, (9000, 9000), training_side=750, tile=0) is None


def test_windows_show_particles_as_large_as_the_training_did(cfg):
    assert choose_tiling(cfg, (9000, 12000), training_side=750) == Tiling(750, 188, 4, 800 / 750)
    # Without word of the training's images they count as not resized.
    assert choose_tiling(cfg, (9000, 12000)) == Tiling(800, 200, 4, 1.0)
    cfg.INPUT.TILE.SIZE = 400
    assert choose_tiling(cfg, (9000, 12000)) == Tiling(400, 100, 4, 2.0)


def test_the_largest_particle_decides_overlap_and_coarse_pass(cfg):
    size = (9000, 12000)
    assert choose_tiling(cfg, size, largest=300) == Tiling(800, 300, 0, 1.0)
    assert choose_tiling(cfg, size, largest=2000) == Tiling(800, 400, 3, 1.0)
    assert choose_tiling(cfg, size, largest=2000, coarse=False) == Tiling(800, 400, 0, 1.0)
    assert choose_tiling(cfg, (900, 1000), tile=800, overlap=32) == Tiling(800, 32, 2, 1.0)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"tile": 10}, "--tile is 10"),
        ({"overlap": 31}, "--overlap is 31"),
        ({"largest": float("nan")}, "--largest is nan"),
        ({"tile": 100, "overlap": 60}, "--overlap is 60"),
    ],
)
def test_options_that_are_refused(cfg, options, name):
    for size in ((1, 1), (5000, 5000)):
        with user_error("option_invalid", name):
            choose_tiling(cfg, size, **options)
