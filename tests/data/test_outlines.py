"""Outlines along pixel edges, held against pycocotools' rasterisation."""

import numpy as np
import pycocotools.mask as mask_util
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from microplastics.data.formats.codes import NOTES
from microplastics.data.formats.notes import Notes
from microplastics.data.outlines import join_parts, mask_to_polygons, segmentation_to_polygons
from microplastics.errors import UserError

_MASKS = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=14))


def raster(polygons, height, width):
    rles = mask_util.frPyObjects([ring.reshape(-1).tolist() for ring in polygons], height, width)
    return mask_util.decode(mask_util.merge(rles)).astype(bool)


def raster_one(ring, height, width):
    """By even-odd, also for the one ring that frPyObjects would take for a box."""
    return raster([ring], height, width)


def blob(size, seed):
    rng = np.random.default_rng(seed)
    noise = rng.random((size // 8, size // 8))
    return np.kron(noise, np.ones((8, 8))) > 0.5


@settings(max_examples=400, deadline=None)
@given(_MASKS)
def test_rasterise_to_the_same_pixels(mask):
    polygons = mask_to_polygons(mask)
    if not mask.any():
        assert polygons == []
        return
    assert np.array_equal(raster(polygons, *mask.shape), mask)
    total = np.zeros(mask.shape, int)
    for ring in polygons:
        total += raster([ring], *mask.shape)
        assert ring.dtype == np.float64 and ring.shape[1] == 2
    assert np.array_equal(total, mask)  # no pixel twice


@settings(max_examples=200, deadline=None)
@given(_MASKS)
def test_one_ring_a_part(mask):
    import cv2

    parts = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)[0] - 1
    assert len(mask_to_polygons(mask)) == parts


@settings(max_examples=300, deadline=None)
@given(_MASKS.filter(np.any), st.integers(0, 50), st.integers(0, 50))
def test_joined_parts_rasterise_to_the_same_pixels(mask, x, y):
    ring = join_parts(mask_to_polygons(mask, (x, y)))
    full = np.zeros((y + mask.shape[0] + 3, x + mask.shape[1] + 3), bool)
    full[y : y + mask.shape[0], x : x + mask.shape[1]] = mask
    assert np.array_equal(raster([ring], *full.shape), full)


@settings(max_examples=100, deadline=None)
@given(
    hnp.arrays(float, (3, 5, 2), elements=st.floats(0, 9).map(lambda v: round(v, 3))),
)
def test_joined_free_polygons_keep_their_pixels(points):
    polygons = [ring + [0, 12 * index] for index, ring in enumerate(points)]
    assert np.array_equal(raster([join_parts(polygons)], 40, 12), raster(polygons, 40, 12))


@settings(max_examples=300, deadline=None)
@given(_MASKS)
def test_holes_run_the_other_way(mask):
    # What other programs need: the shoelace formula and the non-zero rule.
    y, x = np.mgrid[: mask.shape[0], : mask.shape[1]] + 0.5
    area, winding = 0, np.zeros(mask.shape, int)
    for ring in mask_to_polygons(mask):
        (x0, y0), (x1, y1) = ring.T, np.roll(ring, -1, axis=0).T
        area += (x0 * y1 - x1 * y0).sum() / 2
        for xa, ya, yb in zip(x0, y0, y1, strict=True):  # vertical edges alone meet a row's centres
            winding += np.where(
                (y > min(ya, yb)) & (y < max(ya, yb)) & (x < xa), np.sign(yb - ya), 0
            ).astype(int)
    assert area == mask.sum()
    assert np.array_equal(winding, mask)


def test_overlapping_parts_are_united():
    square = np.array([[0, 0], [10, 0], [10, 10], [0, 10]], float)
    ring = join_parts([square, square + 5])
    assert np.array_equal(raster([ring], 20, 20), raster([square, square + 5], 20, 20))


def test_points_at_corners_alone():
    mask = np.zeros((6, 8), bool)
    mask[2:5, 3:7] = True
    (ring,) = mask_to_polygons(mask, offset=(100, 200))
    assert ring.tolist() == [[103, 202], [107, 202], [107, 205], [103, 205]]


def test_slanting_line_is_one_ring():
    assert len(mask_to_polygons(np.eye(50, dtype=bool))) == 1
    assert len(mask_to_polygons(np.eye(50, dtype=bool)[::-1])) == 1


@pytest.mark.parametrize("seed", range(3))
def test_large_mask_with_holes_in_holes(seed):
    mask = blob(400, seed)
    polygons = mask_to_polygons(mask)
    assert np.array_equal(raster(polygons, 400, 400), mask)
    assert np.array_equal(raster([join_parts(polygons)], 400, 400), mask)


def test_polygons_pass_unchanged():
    notes = Notes(NOTES)
    (ring,) = segmentation_to_polygons([[0.5, 1, 9, 1, 9, 7.25]], 10, 10, notes, "a")
    assert ring.tolist() == [[0.5, 1], [9, 1], [9, 7.25]]
    assert len(notes) == 0


@settings(max_examples=100, deadline=None)
@given(_MASKS)
def test_rles_are_outlined(mask):
    rle = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    notes = Notes(NOTES)
    polygons = segmentation_to_polygons(rle, *mask.shape, notes, "a")
    assert notes.count("mask_outlined") == 1
    if mask.any():
        assert np.array_equal(raster(polygons, *mask.shape), mask)
    else:
        assert polygons == []


def test_bridged_holes_are_noted():
    mask = np.ones((3, 3), np.uint8)
    mask[1, 1] = 0
    notes = Notes(NOTES)
    segmentation_to_polygons(mask_util.encode(np.asfortranarray(mask)), 3, 3, notes, "a.json, 4")
    assert notes.as_dict()["hole_bridged"]["places"] == ["a.json, 4"]


@pytest.mark.parametrize(
    "rle", [{"size": [3, 3], "counts": "~~"}, {"size": [4, 3], "counts": "09"}, {"size": 3}]
)
def test_broken_rles_are_named(rle):
    with pytest.raises(UserError, match="a.json, 4 has an RLE that does not fit"):
        segmentation_to_polygons(rle, 3, 3, Notes(NOTES), "a.json, 4")
