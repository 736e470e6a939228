import json

import numpy as np
import pycocotools.mask as mask_util
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from microplastics.data.formats.base import NOTES, Notes
from microplastics.data.segmentation import (
    SegmentationError,
    join_parts,
    mask_points,
    mask_to_polygons,
    measure,
    segmentation_to_polygons,
)


def test_square_polygon():
    measured = measure([[2, 3, 6, 3, 6, 8, 2, 8]], 20, 30)
    assert measured.area == 20 and measured.box == (2, 3, 4, 5)
    assert not measured.clipped and not measured.subpixel


def test_polygon_is_clipped_at_the_border():
    measured = measure([[-5, -5, 5, -5, 5, 5, -5, 5]], 20, 30)
    assert measured.clipped and measured.area == 25 and measured.box == (0, 0, 5, 5)
    measured = measure([[20, 10, 45, 10, 45, 35, 20, 35]], 20, 30)
    assert measured.area == 100 and measured.box == (20, 10, 10, 10)


def test_part_outside_is_left_out():
    inside = [2.0, 3.0, 6.0, 3.0, 6.0, 8.0, 2.0, 8.0]
    measured = measure([inside, [100, 100, 110, 100, 110, 110]], 20, 30)
    assert measured.segmentation == [inside] and measured.clipped


def test_overlapping_parts_count_once():
    part = [2, 3, 6, 3, 6, 8, 2, 8]
    assert measure([part, part], 20, 30).area == 20


def test_mask_without_a_pixel_has_the_area_of_its_polygon():
    measured = measure([[2.1, 3.1, 2.3, 3.1, 2.3, 3.3, 2.1, 3.3]], 20, 30)
    assert measured.subpixel and measured.area == pytest.approx(0.04)


@pytest.mark.parametrize(
    ("segmentation", "code"),
    [
        ([], "segmentation_empty"),
        ({}, "segmentation_empty"),
        ([[]], "segmentation_empty"),
        (None, "segmentation_type"),
        ("polygon", "segmentation_type"),
        ([{"x": 1}], "segmentation_type"),
        ([1, 1, 5, 1, 5, 5], "polygon_flat"),
        ([[1, 1, 5, 5]], "polygon_points"),
        ([[1, 1, 5, 1, 5]], "polygon_odd"),
        ([[1, 1, 5, 1, 5, "5"]], "polygon_numbers"),
        ([[1, 1, 5, 1, 5, True]], "polygon_numbers"),
        ([[1, 1, 5, 1, 5, None]], "polygon_numbers"),
        ([[1, 1, 5, 1, 5, float("nan")]], "polygon_numbers"),
        ([[1, 1, 5, 1, 5, float("inf")]], "polygon_numbers"),
        ([[1, 1, 5, 1, 5, 10**400]], "polygon_numbers"),
        ([[1, 1, 5, 1, 5, 1e9]], "polygon_numbers"),
        ([[31, 1, 40, 1, 40, 9]], "polygon_outside"),
        ([[1, 1, 5, 5, 9, 9]], "zero_area"),
        ([[1, 1, 9, 1, 9, 9, 1, 9] * 2], "zero_area"),  # even-odd: traced twice is nothing
        ([[0, 0, 30, 20, 0, 1] * 40000], "outline_long"),
        ({"counts": [0, 600]}, "rle_counts"),
        ({"size": [20, 30]}, "rle_counts"),
        ({"size": [30, 20], "counts": [0, 600]}, "rle_size"),
        ({"size": [20, 30], "counts": [0, 599]}, "rle_counts"),
        ({"size": [20, 30], "counts": [0, 601]}, "rle_counts"),
        ({"size": [20, 30], "counts": [-1, 601]}, "rle_counts"),
        ({"size": [20, 30], "counts": [0, 600.0]}, "rle_counts"),
        ({"size": [20, 30], "counts": [2**31, 2**31, 600]}, "rle_counts"),
        ({"size": [20, 30], "counts": []}, "rle_counts"),
        ({"size": [20, 30], "counts": [600]}, "rle_empty"),
        ({"size": [20, 30], "counts": ""}, "rle_counts"),
        ({"size": [20, 30], "counts": "é"}, "rle_counts"),
        ({"size": [20, 30], "counts": "oooo"}, "rle_counts"),
        ({"size": [20, 30], "counts": "ooooooooooo0"}, "rle_counts"),
        ({"size": [20, 30], "counts": "1 2"}, "rle_counts"),
    ],
)
def test_refused_segmentations(segmentation, code):
    with pytest.raises(SegmentationError) as raised:
        measure(segmentation, 20, 30)
    assert raised.value.code == code


masks = st.builds(
    lambda seed, height, width, density: np.random.default_rng(seed).random((height, width))
    < density,
    st.integers(0, 2**32),
    st.integers(1, 40),
    st.integers(1, 40),
    st.floats(0.02, 1),
).filter(np.any)


@given(masks)
def test_rle_measures_as_pycocotools_says(mask):
    rle = mask_util.encode(np.asfortranarray(mask, np.uint8))
    text = {"size": rle["size"], "counts": rle["counts"].decode()}
    runs, last = [0], 0
    for pixel in mask.T.ravel().tolist():
        if pixel != last:
            runs.append(0)
        runs[-1], last = runs[-1] + 1, pixel
    for given_rle in (text, {"size": list(mask.shape), "counts": runs}):
        measured = measure(given_rle, *mask.shape)
        assert measured.area == mask.sum()
        assert measured.box == tuple(mask_util.toBbox(rle))
        assert (mask_util.decode(measured.segmentation) == mask).all()


@given(
    st.text("0123456789:;<=>?@ABCOPQ_`abno", max_size=30)
    | st.text(max_size=10)
    | st.lists(st.integers(-5, 700), max_size=6)
    | st.lists(st.integers(), max_size=3)
)
def test_hostile_runs_are_refused_or_fill_the_image(counts):
    try:
        measured = measure({"size": [20, 30], "counts": counts}, 20, 30)
    except SegmentationError:
        return
    mask = mask_util.decode(measured.segmentation)
    assert mask.shape == (20, 30) and mask.sum() == measured.area > 0


@given(
    st.lists(st.floats(-100, 130) | st.integers(-100, 130), min_size=6, max_size=16).filter(
        lambda polygon: len(polygon) % 2 == 0
    )
)
def test_polygons_stay_in_the_image(polygon):
    try:
        measured = measure([polygon], 20, 30)
    except SegmentationError as error:
        assert error.code in ("polygon_outside", "zero_area")
        return
    points = np.array(measured.segmentation[0]).reshape(-1, 2)
    assert (points >= 0).all() and (points <= [30, 20]).all()
    assert json.dumps(measured.segmentation)
    x, y, width, height = measured.box
    assert [x, y] == points.min(axis=0).tolist()
    assert np.allclose([x + width, y + height], points.max(axis=0))
    assert measured.area <= 600


@given(st.integers(0, 2**32))
def test_cut_polygon_covers_what_the_whole_one_covers(seed):
    """Against a picture large enough to hold the whole polygon."""
    rng = np.random.default_rng(seed)
    polygon = rng.integers(-40, 80, 2 * rng.integers(3, 8)).astype(float)
    large = mask_util.decode(mask_util.frPyObjects([(polygon + 50).tolist()], 150, 150))[..., 0]
    true = large[50:90, 50:90].sum()
    try:
        area = measure([polygon.tolist()], 40, 40).area
    except SegmentationError:
        area = 0.0
    # Only pixels on the outline may fall differently.
    assert abs(area - float(true)) <= 40


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 9), st.floats(0.05, 0.95))
def test_points_span_the_pixels(seed, height, width, density):
    mask = np.random.default_rng(seed).random((height, width)) < density
    mask[0, 0] = True
    counts = mask_util.encode(np.asfortranarray(mask, np.uint8))["counts"]
    y, x = np.nonzero(mask)
    pixels = shapely.union_all(shapely.box(x, y, x + 1, y + 1)).convex_hull
    for form in (counts, counts.decode()):
        points = mask_points({"size": [height, width], "counts": form})
        assert shapely.MultiPoint(points).convex_hull.equals(pixels)


def test_points_of_polygons():
    assert mask_points([[1, 2, 3, 4, 5, 6], [7, 8, 9, 1, 2, 3]]).tolist() == [
        [1, 2],
        [3, 4],
        [5, 6],
        [7, 8],
        [9, 1],
        [2, 3],
    ]


_MASKS = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=14))


def raster(polygons, height, width):
    rles = mask_util.frPyObjects([ring.reshape(-1).tolist() for ring in polygons], height, width)
    return mask_util.decode(mask_util.merge(rles)).astype(bool)


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
        for xa, ya, yb in zip(
            x0, y0, y1, strict=True
        ):  # only vertical edges meet the centres of a row
            winding += np.where(
                (y > min(ya, yb)) & (y < max(ya, yb)) & (x < xa), np.sign(yb - ya), 0
            ).astype(int)
    assert area == mask.sum()
    assert np.array_equal(winding, mask)


def test_overlapping_parts_are_united():
    square = np.array([[0, 0], [10, 0], [10, 10], [0, 10]], float)
    ring = join_parts([square, square + 5])
    assert np.array_equal(raster([ring], 20, 20), raster([square, square + 5], 20, 20))


def test_points_only_at_corners():
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
    (ring,) = segmentation_to_polygons([[0.5, 1, 9, 1, 9, 7.25]], notes, "a")
    assert ring.tolist() == [[0.5, 1], [9, 1], [9, 7.25]]
    assert len(notes) == 0


@settings(max_examples=100, deadline=None)
@given(_MASKS)
def test_rles_are_outlined(mask):
    rle = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    notes = Notes(NOTES)
    polygons = segmentation_to_polygons(rle, notes, "a")
    assert notes.count("mask_outlined") == 1
    if mask.any():
        assert np.array_equal(raster(polygons, *mask.shape), mask)
    else:
        assert polygons == []


def test_bridged_holes_are_noted():
    mask = np.ones((3, 3), np.uint8)
    mask[1, 1] = 0
    notes = Notes(NOTES)
    segmentation_to_polygons(mask_util.encode(np.asfortranarray(mask)), notes, "a.json, 4")
    assert notes.as_dict()["hole_bridged"]["places"] == ["a.json, 4"]
