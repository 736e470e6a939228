"""microplastics/measurement/centerline.py."""

import math

import numpy as np
import pytest
from scipy.ndimage import binary_dilation
from scipy.spatial import cKDTree

from benchmarks.measurement_errors import draw, ring, sine, straight
from microplastics.measurement import measure
from microplastics.measurement.centerline import Arm, skeletonise

WIDTHS = [3, 4, 6, 10]


def line(start, angle, length):
    along = np.linspace(0, length, round(length * 20))[:, None]
    return np.array(start) + along * (math.cos(angle), math.sin(angle))


def circle(radius, start, stop):
    turn = np.linspace(start, stop, 4000)
    return radius * np.stack([np.cos(turn), np.sin(turn)], axis=1)


def fiber(lines, width, turn=0.0):
    """Draw the points within half a width of lines, all turned by an angle."""
    matrix = [[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]]
    points = np.concatenate(lines) @ np.array(matrix) + (0.2, 0.4)
    points -= np.floor(points.min(axis=0)) - width
    x, y = np.meshgrid(*(np.arange(0, math.ceil(m) + width) for m in points.max(axis=0)))
    apart = cKDTree(points).query(np.stack([x.ravel(), y.ravel()], axis=1))[0]
    return measure(apart.reshape(x.shape) <= width / 2, kind="fiber")


def topology(shape):
    return shape.branches, shape.crossings, shape.loops


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("degrees", [90, 60, 45])
@pytest.mark.parametrize("turn", [0.0, 0.4, 1.1])
def test_two_crossing_fibers_give_the_longer_one(width, degrees, turn):
    angle = math.radians(degrees)
    lines = [
        line((-40, 0), 0, 100),
        line((-30 * math.cos(angle), -30 * math.sin(angle)), angle, 70),
    ]
    shape = fiber(lines, width, turn)
    assert topology(shape) == (0, 1, 0)
    assert shape.length == pytest.approx(100 + width, rel=0.025)
    assert shape.centerline_length > 170 - 3 * width
    assert shape.width == pytest.approx(width, rel=0.06)


@pytest.mark.parametrize("width", WIDTHS)
def test_the_longest_arms_of_different_fibers_are_not_joined(width):
    """The arms are 70, 20 (one fibre) and 60, 10 long: 130 would turn a corner."""
    shape = fiber([line((-70, 0), 0, 90), line((0, -15), math.pi / 2, 75)], width, 0.3)
    assert topology(shape) == (0, 1, 0)
    assert shape.length == pytest.approx(90 + width, rel=0.03)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_branch_is_followed_to_where_it_is_longest(width):
    lines = [line((0, 0), 0, 60), line((60, 0), 0.6, 40), line((60, 0), -0.6, 30)]
    shape = fiber(lines, width, 0.7)
    assert topology(shape) == (1, 0, 0)
    assert shape.length == pytest.approx(100 + width, rel=0.025)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_loop_is_walked_around_and_its_crossing_gone_straight_over(width):
    around = circle(25, -math.pi / 4, 5 * math.pi / 4)
    ends = [line(around[0], math.pi / 4 + math.pi, 70), line(around[-1], -math.pi / 4, 70)]
    shape = fiber([*ends, around], width, 0.9)
    assert topology(shape) == (0, 1, 1)
    assert shape.length == pytest.approx(140 + 25 * 1.5 * math.pi + width, rel=0.02)
    assert shape.centerline_length == shape.length


@pytest.mark.parametrize("width", WIDTHS)
def test_a_ring_is_as_long_as_its_centerline(width):
    shape = measure(draw(ring(25, width), 0, (0.3, 0.1)), kind="fiber")
    assert topology(shape) == (0, 0, 1)
    assert shape.length == pytest.approx(50 * math.pi, rel=0.005)
    assert shape.width == pytest.approx(width, rel=0.02)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_ring_with_a_tail_is_walked_around(width):
    shape = fiber([circle(25, 0, 2 * math.pi), line((25, 0), 0, 50)], width, 0.2)
    assert topology(shape) == (1, 0, 1)
    assert shape.length == pytest.approx(50 * math.pi + 50 + width / 2, rel=0.02)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_figure_of_eight_is_closed(width):
    turn = np.linspace(0, 2 * np.pi, 8000)
    eight = np.stack([50 * np.sin(turn), 25 * np.sin(2 * turn)], axis=1)
    shape = fiber([eight], width)
    assert topology(shape) == (0, 1, 2)
    assert shape.length == pytest.approx(np.hypot(*np.diff(eight, axis=0).T).sum(), rel=0.01)


@pytest.mark.parametrize("width", [4, 6, 10])
@pytest.mark.parametrize("seed", range(4))
def test_a_ragged_outline_does_not_lengthen(width, seed):
    rng = np.random.default_rng(seed)
    mask = draw(straight(100, width), rng.uniform(0, 3), rng.uniform(-0.5, 0.5, 2))
    ragged = mask | (binary_dilation(mask) & (rng.random(mask.shape) < 0.35))
    shape = measure(ragged, kind="fiber")
    # The outline itself reaches up to a pixel farther at either end.
    assert -1.5 < shape.length - 100 < 3


def test_pinholes_are_no_loops():
    mask = draw(sine(160, 20, 80, 8), 0.3, (0, 0))
    whole = measure(mask, kind="fiber")
    rows, columns = np.nonzero(mask)
    inside = np.flatnonzero(
        [mask[r - 2 : r + 3, c - 2 : c + 3].all() for r, c in zip(rows, columns, strict=True)]
    )
    for index in inside[::40]:
        mask[rows[index], columns[index]] = False
    pierced = measure(mask, kind="fiber")
    assert pierced.holes > 10
    assert topology(pierced) == topology(whole) == (0, 0, 0)
    assert pierced.length == pytest.approx(whole.length, abs=1e-9)


def test_a_broken_straight_fiber_is_as_long_as_a_whole_one_and_as_wide():
    mask = draw(straight(100, 4), 0.5, (0, 0))
    whole = measure(mask, kind="fiber")
    middle = mask.shape[1] // 2
    mask[:, middle - 3 : middle + 4] = False
    broken = measure(mask, kind="fiber")
    assert broken.parts == 2
    assert broken.length == pytest.approx(whole.length, abs=1)
    assert broken.centerline_length == pytest.approx(whole.length - 8, abs=4)
    assert broken.width == pytest.approx(whole.width, rel=0.03)


def test_a_broken_curved_fiber_is_the_sum_of_its_parts():
    mask = draw(sine(160, 20, 80, 4), 0.0, (0, 0))
    whole = measure(mask, kind="fiber")
    middle = mask.shape[1] // 2
    mask[:, middle - 1 : middle + 2] = False
    broken = measure(mask, kind="fiber")
    assert broken.parts == 2
    assert whole.length - 8 < broken.length == broken.centerline_length < whole.length


def test_far_parts_are_at_least_as_long_as_they_are_apart():
    mask = np.zeros((3, 80), bool)
    mask[1, :5] = mask[1, -5:] = True
    shape = measure(mask, kind="fiber")
    assert shape.length == shape.feret_max == pytest.approx(80, abs=0.5)
    assert shape.width == pytest.approx(1, rel=0.05)


def test_a_compact_mask_called_a_fiber_has_its_largest_diameter_as_length():
    shape = measure(np.ones((20, 20)), kind="fiber")
    assert shape.length == shape.feret_max


@pytest.mark.parametrize("density", [0.3, 0.5, 0.7, 0.95])
def test_noise_ends_in_finite_numbers_soon(density):
    mask = np.random.default_rng(3).random((120, 120)) < density
    shape = measure(mask, kind="fiber")
    assert math.isfinite(shape.length) and shape.width > 0


def graph(mask):
    skeleton = skeletonise(np.pad(mask, 1).astype(bool))
    degrees = sorted(len(darts) for darts in skeleton.darts().values())
    return skeleton, degrees


def test_a_line_is_one_arm():
    skeleton, degrees = graph(np.ones((3, 30)))
    assert len(skeleton.arms) == 1 and degrees == [1, 1]


def test_a_pixel_is_an_arm_of_no_length():
    skeleton, degrees = graph(np.ones((1, 1)))
    (arm,) = skeleton.arms.values()
    assert len(arm.points) == 1 and arm.length == 0 and degrees == [1, 1]
    assert not arm.closed


def test_a_clump_of_junctions_is_a_pixel():
    mask = np.array([[1, 1, 0, 0], [1, 0, 1, 1], [1, 1, 0, 1], [1, 1, 1, 1]])
    skeleton, degrees = graph(mask)
    assert [arm.length for arm in skeleton.arms.values()] == [0] and degrees == [1, 1]


def test_a_frame_is_a_ring():
    mask = np.ones((20, 30))
    mask[3:-3, 3:-3] = 0
    skeleton, degrees = graph(mask)
    (arm,) = skeleton.arms.values()
    assert arm.closed and degrees == []
    assert (arm.points[0] == arm.points[-1]).all()


def test_a_cross_is_four_arms_at_one_node():
    mask = np.zeros((41, 41))
    mask[18:23] = mask[:, 18:23] = 1
    skeleton, degrees = graph(mask)
    assert len(skeleton.arms) == 4 and degrees == [1, 1, 1, 1, 4]


def test_a_spur_as_long_as_the_fiber_is_wide_is_taken_off():
    mask = np.zeros((20, 60))
    mask[8:14] = 1
    mask[5:8, 30] = 1
    assert graph(mask)[1] == [1, 1]
    mask[:8, 30:33] = 1
    assert graph(mask)[1] == [1, 1, 1, 3]


@pytest.mark.parametrize(
    ("points", "length"),
    [([(0, 0), (1, 0), (2, 0)], 2 * 0.948), ([(0, 0), (1, 1), (2, 1)], 1.340 + 0.948)],
)
def test_steps_are_corrected(points, length):
    assert Arm(np.array(points), (0, 1)).length == pytest.approx(length)


def test_corrected_steps_are_on_average_as_long_as_the_line():
    lengths = []
    for angle in np.linspace(0, np.pi / 4, 90, endpoint=False):
        x = np.arange(200)
        y = np.rint(x * np.tan(angle)).astype(int)
        true = np.hypot(x[-1], y[-1])
        lengths.append(Arm(np.stack([x, y], axis=1), (0, 1)).length / true)
    assert np.mean(lengths) == pytest.approx(1, abs=0.01)
