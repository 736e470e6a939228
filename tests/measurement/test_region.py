import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from microplastics.errors import UserError
from microplastics.measurement.region import Region

SIZE = (60, 80)
CENTERS = np.stack(np.meshgrid(np.arange(80) + 0.5, np.arange(60) + 0.5), axis=-1).reshape(-1, 2)
SQUARE = np.array([[10, 20], [50, 20], [50, 45], [10, 45]], float)


def cells(region):
    return region.contains(CENTERS).reshape(SIZE)


@settings(deadline=None, max_examples=60)
@given(st.floats(-30, 110), st.floats(-30, 90), st.floats(1, 90), st.integers(0, 2**32 - 1))
def test_a_circle_counts_the_pixels_whose_centre_is_inside(x, y, radius, seed):
    inside = np.hypot(CENTERS[:, 0] - x, CENTERS[:, 1] - y).reshape(SIZE) < radius
    if not inside.any():
        with pytest.raises(UserError, match="no pixel inside the image of 80 x 60 px"):
            Region.from_circle((x, y), radius, SIZE)
        return
    region = Region.from_circle((x, y), radius, SIZE)
    assert (cells(region) == inside).all()
    assert region.area_px == inside.sum()
    rng = np.random.default_rng(seed)
    for _ in range(20):
        x0, y0 = rng.integers(0, 80), rng.integers(0, 60)
        x1, y1 = rng.integers(x0, 81), rng.integers(y0, 61)
        if inside[y0:y1, x0:x1].any():
            assert region.meets(x0, y0, x1, y1)


def test_the_outline_of_a_cut_circle_stays_in_the_image():
    region = Region.from_circle((10, 30), 25, SIZE)
    (outline,) = region.outlines()
    assert outline.min() >= 0 and (outline[0] == outline[-1]).all()
    assert shapely.Polygon(outline).area == pytest.approx(region.area_px, rel=0.01)
    assert region.source == "circle at (10.0, 30.0), radius 25.0 px"


def test_points_outside_of_the_image_and_nan_are_outside():
    region = Region.from_circle((0, 0), 1000, SIZE)
    points = [[-0.1, 5], [80, 5], [5, 60], [np.nan, 5], [np.inf, 5], [0, 0], [79.9, 59.9]]
    assert region.contains(points).tolist() == [False] * 5 + [True] * 2
    assert not region.meets(-20, 0, 0, 10) and not region.meets(80, 0, 90, 10)
    assert region.meets(-20, 0, 1, 10)


def test_polygons_unite_and_leave_their_holes_out():
    hole = np.array([[20, 30], [30, 30], [30, 40], [20, 40]])
    region = Region.from_polygons([[SQUARE, hole], [SQUARE + 5]], SIZE, "m.geojson")
    inside = np.zeros(SIZE, bool)
    inside[20:45, 10:50] = True
    inside[30:40, 20:30] = False
    inside[25:50, 15:55] = True
    assert (cells(region) == inside).all()
    assert region.area_px == inside.sum()
    assert region.source == "m.geojson"


def test_a_hole_is_outlined_and_not_met():
    hole = np.array([[15, 25], [45, 25], [45, 40], [15, 40]])
    region = Region.from_polygons([[SQUARE, hole]], SIZE, "m")
    assert len(region.outlines()) == 2
    assert not region.meets(20, 30, 40, 35) and region.meets(20, 30, 46, 35)


def test_both_lobes_of_a_bow_tie_count():
    region = Region.from_polygons([[np.array([[0, 0], [40, 40], [40, 0], [0, 40]])]], SIZE, "m")
    assert region.area_px == 800
    assert region.contains([[1.5, 20], [38, 20], [20, 1.5]]).tolist() == [True, True, False]


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**32 - 1), st.integers(3, 12))
def test_the_grid_agrees_with_exact_geometry(seed, count):
    rng = np.random.default_rng(seed)
    rings = [rng.uniform(-20, 100, (count, 2)) for _ in range(3)]
    exact = Region.from_polygons([[ring] for ring in rings], SIZE, "m")
    # The same with so many points on its edges that it is drawn on the grid.
    share = np.linspace(0, 1, 300, endpoint=False)[:, None]
    fine = [
        (ring[:, None] + share * (np.roll(ring, -1, axis=0) - ring)[:, None]).reshape(-1, 2)
        for ring in rings
    ]
    drawn = Region.from_polygons([[ring] for ring in fine], SIZE, "m")
    assert (cells(drawn) == cells(exact)).mean() > 0.999
    assert drawn.area_px == cells(drawn).sum()
    for box in rng.integers(0, 60, (30, 2)):
        x, y = box.tolist()
        if cells(drawn)[y : y + 3, x : x + 3].any():
            assert drawn.meets(x, y, x + 3, y + 3)


@pytest.mark.parametrize("grid", [False, True])
@settings(deadline=None, max_examples=40)
@given(
    st.tuples(*[st.integers(0, 160)] * 2),
    st.tuples(*[st.integers(0, 120)] * 2),
    st.lists(st.tuples(st.integers(0, 159), st.integers(0, 119)), min_size=1, max_size=30),
)
def test_a_point_lies_in_one_of_two_polygons_that_abut(grid, xs, ys, points):
    """A line from border to border parts the image, and points in halves of a px."""
    start, end = (xs[0] / 2, 0), (xs[1] / 2, 60)
    if ys[0] % 2:
        start, end = (0, ys[0] / 2), (80, ys[1] / 2)
        sides = [[start, end, (80, -5), (0, -5)], [end, start, (0, 65), (80, 65)]]
    else:
        sides = [[start, end, (-5, 60), (-5, 0)], [end, start, (85, 0), (85, 60)]]
    share = np.linspace(0, 1, 64)[:, None]
    on_line = np.rint((np.array(start) * (1 - share) + np.array(end) * share) * 2) / 2
    points = np.concatenate([np.array(points) / 2, on_line, CENTERS])
    points = points[(points < (80, 60)).all(axis=1)]
    # Many more polygons far away have these drawn on the grid.
    far = [[SQUARE + (1000 + 50 * i, 0)] for i in range(600)] if grid else []
    regions = [
        Region.from_polygons([[np.array(side)], *far], SIZE, "m")
        for side in sides
        if abs(shapely.Polygon(side).intersection(shapely.box(0, 0, 80, 60)).area) > 100
    ]
    count = sum(region.contains(points).astype(int) for region in regions)
    if len(regions) == 2:
        assert (count == 1).all()


def test_abutting_rectangles_and_triangles_share_no_point():
    left, right = (np.array([[x, 0], [x + 40, 0], [x + 40, 60], [x, 60]]) for x in (0, 40))
    upper, lower = ([[0, 0], [60, 0], [60, 60]], [[0, 0], [60, 60], [0, 60]])
    line = np.column_stack([np.arange(0, 60, 0.5)] * 2)
    for one, other, points in (
        (left, right, np.column_stack([np.full(120, 40.0), np.arange(0, 60, 0.5)])),
        (np.array(upper), np.array(lower), line),
    ):
        regions = [Region.from_polygons([[ring]], SIZE, "m") for ring in (one, other)]
        first, second = (region.contains(points) for region in regions)
        assert (first ^ second).all()


def test_the_borders_of_the_image_belong_to_a_polygon_that_covers_it():
    region = Region.from_polygons([[np.array([[0, 0], [80, 0], [80, 60], [0, 60]])]], SIZE, "m")
    last = np.nextafter((80, 60), 0)
    assert region.contains([[0, 0], last, (0, last[1])]).all()


def test_a_polygon_of_a_huge_image_takes_no_grid():
    angle = np.linspace(0, 2 * np.pi, 100_000, endpoint=False)
    ring = np.column_stack([np.cos(angle), np.sin(angle)]) * 90_000 + 100_000
    region = Region.from_polygons([[ring]], (200_000, 200_000), "m")
    assert region.area_px == pytest.approx(np.pi * 90_000**2, rel=1e-6)
    assert region.contains([[10_001, 100_000], [9_999, 100_000]]).tolist() == [True, False]


@pytest.mark.parametrize(
    ("ring", "words"),
    [
        ([[0, 0], [1, np.nan], [5, 5]], "no place in an image"),
        ([[0, 0], [1e308, 0], [5, 5]], "no place in an image"),
        ([[0, 0], [5, 5]], "fewer than 3 points"),
        ([[100, 100], [120, 100], [120, 120]], "no pixel inside the image of 80 x 60 px"),
        ([[5, 5], [20, 5], [30, 5]], "no pixel inside"),
        (np.zeros((2_000_001, 2)), "simplify its outline"),
    ],
)
def test_a_polygon_that_cannot_be_used_is_refused(ring, words):
    with pytest.raises(UserError, match=f"m.geojson has .*{words}"):
        Region.from_polygons([[np.array(ring)]], SIZE, "m.geojson")


def test_wild_outlines_end_in_a_sentence():
    wild = np.random.default_rng(0).uniform(0, 5000, (100_000, 2))
    with pytest.raises(UserError, match="too many long outlines"):
        Region.from_polygons([[wild]], (5000, 5000), "m")


def test_a_mask_is_scaled_up_by_the_nearest():
    mask = np.zeros((6, 8), bool)
    mask[1:4, 1:5] = True
    mask[2, 2] = False
    region = Region.from_mask(mask, SIZE, "m.png")
    big = np.kron(mask, np.ones((10, 10), bool))
    assert (cells(region) == big).all()
    assert region.area_px == 1100
    assert not region.meets(21, 21, 29, 29) and region.meets(21, 21, 31, 29)
    outer, hole = sorted(map(shapely.Polygon, region.outlines()), key=lambda p: -p.area)
    assert outer.bounds == (10, 10, 50, 40)
    assert hole.bounds == (20, 20, 30, 30)


def test_an_odd_scale_of_a_mask_counts_each_pixel_once():
    mask = np.random.default_rng(1).random((17, 23)) < 0.5
    region = Region.from_mask(mask, SIZE, "m")
    assert region.area_px == cells(region).sum()
    rest = Region.from_mask(~mask, SIZE, "m")
    assert region.area_px + rest.area_px == 60 * 80


def test_a_large_mask_is_outlined_by_the_majority():
    mask = np.zeros((2600, 4000), bool)
    mask[400:2000, 800:3200] = True
    mask[1000:1200, 1000:1400] = False
    mask[5::8, 5::8] ^= True  # single cells, in and out
    outer, hole = Region.from_mask(mask, (5200, 8000), "m").outlines()
    assert shapely.Polygon(outer).bounds == (1600, 800, 6400, 4000)
    assert shapely.Polygon(hole).bounds == (2000, 2000, 2800, 2400)
    (line,) = Region.from_mask(np.arange(4000) == 2001 * np.ones((9, 1)), (9, 4000), "m").outlines()
    assert shapely.Polygon(line).bounds == (2000, 0, 2004, 9)


def test_the_outlines_of_noise_are_few():
    noise = np.random.default_rng(0).random((4096, 4096)) < 0.5
    outlines = Region.from_mask(noise, (8192, 8192), "m").outlines()
    assert 0 < sum(map(len, outlines)) <= 150_000
    assert max(ring.max() for ring in outlines) <= 8192


def test_a_mask_without_a_pixel_is_refused():
    with pytest.raises(UserError, match="m.png has no pixel inside"):
        Region.from_mask(np.zeros((6, 8), bool), SIZE, "m.png")
