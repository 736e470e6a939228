import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import user_error

from microplastics.measurement.table import (
    DEFAULT_SIZE_CLASSES,
    SCHEMES,
    SizeClasses,
    parse_size_classes,
)

BOUNDS = st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=12, unique=True).map(sorted)


def test_bins_are_half_open():
    bins = parse_size_classes("10, 50,100")
    assert bins.labels == ["<10 um", "10-50 um", "50-100 um", ">=100 um"]
    assert bins.columns == ["below_10_um", "10_50_um", "50_100_um", "from_100_um"]
    assert bins.bins(np.array([0.1, 9.99, 10, 49.9, 50, 100, 1e9])).tolist() == [
        *(0, 0, 1, 1, 2, 3, 3)
    ]


@pytest.mark.parametrize("name", SCHEMES)
def test_schemes_are_known_by_name(name):
    assert parse_size_classes(f" {name.upper()} ").bounds == SCHEMES[name]
    assert 5000.0 in SCHEMES[name]
    assert len(set(parse_size_classes(name).columns)) == len(SCHEMES[name]) + 1


def test_the_default_has_its_name():
    assert parse_size_classes("default") == DEFAULT_SIZE_CLASSES


@given(BOUNDS, st.floats(0, 2e6))
def test_each_size_lies_in_the_bin_of_its_label(bounds, size):
    classes = parse_size_classes(",".join(map(repr, bounds)))
    assert classes == SizeClasses(tuple(bounds))
    number = int(classes.bins(np.array([size]))[0])
    assert number == 0 or bounds[number - 1] <= size
    assert number == len(bounds) or size < bounds[number]
    assert len(set(classes.labels)) == len(set(classes.columns)) == len(bounds) + 1


@pytest.mark.parametrize(
    "text",
    [
        *("", "10;50", "10,ten", "x" * 5000, "50,10", "10,10", "0,10", "-5,10", "nan", "10,inf"),
        ",".join(map(str, range(1, 200))),
    ],
)
def test_what_is_not_a_size_class_is_refused(text):
    words = "expected one of default, ", "at most 100 positive", "for example 10,50,100,500"
    with user_error("option_invalid", "size classes", text[:20], *words) as error:
        parse_size_classes(text)
    assert len(str(error.value)) < 250
