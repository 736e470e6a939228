import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from skimage.measure import perimeter_crofton
from skimage.morphology import convex_hull_image

from microplastics.measurement.outline import crofton_perimeter, measure_hull, with_border

MASKS = arrays(bool, st.tuples(st.integers(1, 30), st.integers(1, 30))).filter(np.any)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(MASKS)
def test_the_perimeter_is_that_of_scikit_image(mask):
    padded = with_border(mask)
    assert crofton_perimeter(mask) == pytest.approx(perimeter_crofton(padded, directions=4))


@pytest.mark.parametrize("seed", range(6))
def test_the_hull_is_counted_as_scikit_image_draws_it(seed):
    rng = np.random.default_rng(seed)
    mask = np.zeros((40, 50), bool)
    mask[rng.integers(0, 40, 9), rng.integers(0, 50, 9)] = True
    drawn = convex_hull_image(mask, offset_coordinates=False)
    assert measure_hull(mask).area == np.count_nonzero(drawn)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(MASKS)
def test_the_hull_is_no_smaller_than_the_mask(mask):
    assert measure_hull(mask).area >= np.count_nonzero(mask)


@pytest.mark.parametrize("sides", [(5, 9), (12, 12), (2, 30), (1, 7)])
def test_the_width_of_a_rectangle_on_the_grid_is_exact(sides):
    assert measure_hull(np.ones(sides, bool)).feret_min == min(sides)


def test_a_pixel_has_the_size_of_a_pixel():
    assert measure_hull(np.ones((1, 1), bool)) == (1.0, 1.0, 1)
