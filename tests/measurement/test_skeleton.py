import numpy as np
import pytest

from microplastics.measurement.skeleton import Arm, skeletonise


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
