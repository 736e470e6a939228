import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from microplastics.errors import UserError
from microplastics.measurement.concentration import (
    Sampling,
    concentration_columns,
    parse_volume,
)
from microplastics.measurement.intervals import poisson_interval


@pytest.mark.parametrize(
    ("text", "liters"),
    [
        ("2 L", 2),
        ("2l", 2),
        ("0.5 m3", 500),
        (" 0.5 m³ ", 500),
        ("300 mL", 0.3),
        ("3e2 ml", 0.3),
        ("5 dL", 0.5),
        ("1 litre", 1),
        ("1.5 hl", 150),
        ("10 cm3", 0.01),
    ],
)
def test_volumes(text, liters):
    assert parse_volume(text) == pytest.approx(liters)


@pytest.mark.parametrize(
    "text",
    ["", "2", "L", "0,5 L", "1.2.3 L", "-2 L", "0 L", "1e999 L", "nan L", "2 gallons", "9" * 10**6],
)
def test_what_is_no_volume_is_said(text):
    with pytest.raises(UserError, match="is no volume; write a positive number") as error:
        parse_volume(text)
    assert len(str(error.value)) < 250


@given(st.text(max_size=30))
def test_any_text_is_a_volume_or_an_error(text):
    try:
        assert parse_volume(text) > 0
    except UserError:
        pass


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0.0,), "The sampled volume is 0 L"),
        (({"river": np.nan},), "The sampled volume of river is nan L"),
        ((1.0, 0.0), "The counted fraction is 0"),
        ((1.0, 1.1), "at most 1"),
        ((1.0, np.nan), "The counted fraction is nan"),
        ((1.0, 0.5, 100.0), "give one of them"),
        ((1.0, 1.0, -3.0), "The filter's area is -3 mm²"),
    ],
)
def test_errors_are_said(arguments, words):
    with pytest.raises(UserError, match=words):
        Sampling(*arguments)


def test_the_counted_volume_follows_from_the_area():
    sampling = Sampling({"a": 2.0, "b": 1.0}, filter_area_mm2=100)
    assert sampling.counted_liters(["a", "b"], np.array([50.0, 100.0])).tolist() == [1, 1]
    with pytest.raises(UserError, match="a have no scale"):
        sampling.counted_liters(["a"], np.array([np.nan]))
    assert Sampling(3.0, 0.5).counted_liters(["a"], np.array([np.nan])).tolist() == [1.5]


def test_intervals_scale_as_the_estimates():
    counts = np.array([0.0, 12.0])
    found = concentration_columns(counts, poisson_interval(counts), np.array([0.5, 0.5]), "_x")
    assert found["particles_per_l_x"].tolist() == [0, 24]
    assert found["particles_per_m3_x"].tolist() == [0, 24_000]
    assert found["particles_per_l_x_low"][1] == pytest.approx(poisson_interval(12).low * 2)
    assert list(found) == [
        *("particles_per_l_x", "particles_per_l_x_low", "particles_per_l_x_high"),
        *("particles_per_m3_x", "particles_per_m3_x_low", "particles_per_m3_x_high"),
    ]
