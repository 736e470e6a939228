"""Measurements against shapes whose size is known; docs/measurement.md has the whole table."""

import math

import numpy as np
import pytest

from benchmarks.measurement_errors import (
    arc,
    coil,
    disc,
    draw,
    ellipse,
    error_table,
    measure_errors,
    rectangle,
    ring,
    sine,
    standard_shapes,
    straight,
)

SHAPES = {shape.name: shape for shape in standard_shapes()}
CURVED = [
    arc(20, math.pi, 4),
    arc(40, math.pi, 4),
    sine(160, 20, 80, 4),
    sine(80, 8, 40, 4),
    coil(14, 18, 2, 4),
]


def errors(shape, drawings=16):
    return measure_errors(shape, drawings, np.random.default_rng(11))


@pytest.mark.parametrize(
    "shape", [disc(5), rectangle(20, 10), ellipse(40, 16), straight(60, 4), ring(25, 6)]
)
def test_drawings_have_the_area_that_the_truth_names(shape):
    rng = np.random.default_rng(0)
    areas = [
        np.count_nonzero(draw(shape, rng.uniform(0, 6.3), rng.uniform(-0.5, 0.5, 2)))
        for _ in range(60)
    ]
    assert np.mean(areas) == pytest.approx(shape.truth["area"], rel=0.01)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_feret_diameters(shape):
    found = errors(shape)
    assert abs(found["feret_max"].mean()) < 0.45
    assert np.percentile(np.abs(found["feret_max"]), 75) < 1
    assert np.abs(found["feret_max"]).max() < 1.7
    assert -0.6 < found["feret_min"].mean() < 0.3
    assert np.abs(found["feret_min"]).max() < 1.4


@pytest.mark.parametrize("radius", [3, 5, 10, 20, 40, 60])
def test_discs(radius):
    found = errors(disc(radius))
    assert np.abs(found["feret_max"]).max() < 1
    assert np.abs(found["equivalent_diameter"]).mean() < 0.1
    assert found["circularity"].mean() == pytest.approx(1, abs=0.04)
    assert (found["solidity"] == 1).all()
    if radius >= 10:
        assert np.abs(found["equivalent_diameter"]).max() < 0.01 * 2 * radius


@pytest.mark.parametrize("shape", CURVED, ids=[shape.name for shape in CURVED])
def test_the_length_of_curved_fibers_4_px_wide_is_within_2_percent(shape):
    found, true = errors(shape)["length"], shape.truth["length"]
    assert abs(found.mean()) < 0.015 * true
    assert np.percentile(np.abs(found), 90) < 0.02 * true


@pytest.mark.parametrize("width", [3, 4, 6, 10])
def test_the_width_of_a_fiber_is_within_5_percent(width):
    for shape in (straight(150, width), arc(40, math.pi, width), ring(25, width)):
        assert np.abs(errors(shape)["width"]).max() < 0.05 * width, shape.name


@pytest.mark.parametrize("width", [2, 3, 5, 8, 10])
def test_the_length_of_straight_fibers(width):
    found = errors(straight(15 * width, width))
    assert abs(found["length"].mean()) < 0.5
    assert np.abs(found["length"]).max() < 2


def test_the_table_has_a_row_for_each_shape():
    rows = error_table(drawings=1, seed=0).splitlines()
    assert rows[0].startswith("| shape | eq. diameter % |") and len(rows) == 2 + len(SHAPES)
    assert {row.count("|") for row in rows} == {10}
