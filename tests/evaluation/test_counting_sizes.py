"""microplastics/evaluation/counting_sizes.py."""

import math

import numpy as np
import pytest

from microplastics.errors import UserError
from microplastics.evaluation.counting_sizes import (
    SizeBins,
    agreement,
    measure_sizes,
    read_scales,
)


def test_bins_are_named_after_their_bounds():
    assert SizeBins().names == ("<32px", "32-96px", ">=96px")
    assert SizeBins((20, 0.5e3), "um").names == ("<20um", "20-500um", ">=500um")
    assert SizeBins(()).names == ("any size",)
    assert SizeBins((5,), names=("small", "large")).names == ("small", "large")


def test_a_bound_belongs_to_the_bin_above():
    sizes = np.array([[0, 9.9, 0], [0, 10, 0], [0, 25, 0]])
    assert SizeBins((10, 20)).assign(sizes, np.ones(3)).tolist() == [0, 1, 2]
    assert SizeBins((10, 20), "um").assign(sizes, np.full(3, 2.0)).tolist() == [1, 2, 2]


@pytest.mark.parametrize(
    "bounds", [(3, 2), (2, 2), (0,), (-1, 4), (float("nan"),), ("a",), (True,), range(1, 102)]
)
def test_bounds_that_make_no_bins(bounds):
    with pytest.raises(UserError, match="SIZE_BOUNDS is .* ascending numbers above 0"):
        SizeBins(bounds)


def test_an_unknown_unit():
    with pytest.raises(UserError, match="SIZE_UNIT is 'mm'; use px or um"):
        SizeBins((1,), "mm")


def test_only_fibres_have_a_centreline():
    arc = np.zeros((60, 60), dtype=bool)
    arc[10:50, 10:14] = arc[46:50, 10:50] = True  # an L of 76 px along its middle
    fiber, film, none = measure_sizes(
        [(arc, 0, 0), (arc, 5, 5), (arc[:5, :5], 0, 0)], [0, 1, 0], ["fibre", "Film"]
    )
    assert fiber[0] > 1.25 * fiber[1] and film[0] == film[1] == fiber[1]
    assert fiber[2] == film[2] == np.count_nonzero(arc)
    assert none.tolist() == [0, 0, 0]


def test_scales_that_are_none_are_left_out():
    values = [2, 0.5, "2", None, True, -1, 0, float("nan"), float("inf"), 1e308, 1e-300, [2]]
    images = [{"id": i, "um_per_px": value} for i, value in enumerate(values)]
    assert read_scales([*images, {"id": 99}, "image", None]) == {0: 2.0, 1: 0.5}


def test_agreement_is_that_of_bland_and_altman():
    figures = agreement(np.array([1.0, 4.0, 4.0]), np.array([2.0, 2.0, 2.0]))
    deviation = math.sqrt(3)
    assert figures == pytest.approx(
        {
            "bias": 1,
            "MAE": 5 / 3,
            "loa_low": 1 - 1.96 * deviation,
            "loa_high": 1 + 1.96 * deviation,
            "MAPE": 100 * 5 / 6,
        }
    )
    assert all(math.isnan(value) for value in agreement(np.zeros(0), np.zeros(0)).values())
