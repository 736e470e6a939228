import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shapely.geometry import LineString, Polygon

from microplastics.synthetic.camera import generator
from microplastics.synthetic.filters import render_filter
from microplastics.synthetic.particles import (
    FIBER,
    FILM,
    FRAGMENT,
    MAKERS,
    MAX_ASPECT_RATIO,
    NEEDLE,
    Particle,
    feret_diameters,
    make_bead,
    opened,
    paint_bead,
    sphere_look,
)


def straight_fiber(length, radius, x=0.0, y=0.0):
    core = np.array([[x, y], [x + length, y]])
    return Particle(FIBER, LineString(core).buffer(radius, quad_segs=64), core, radius)


@given(st.floats(0, 7), st.floats(1, 50), st.floats(1, 50))
def test_feret_of_a_turned_rectangle(angle, width, height):
    turn = [[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]]) @ turn
    largest, smallest = feret_diameters(corners)
    assert largest == pytest.approx(math.hypot(width, height))
    assert smallest == pytest.approx(min(width, height))


def test_feret_of_a_triangle_and_of_a_line():
    assert feret_diameters(np.array([[0, 0], [4, 0], [0, 3]])) == pytest.approx((5, 2.4))
    assert feret_diameters(np.array([[0.0, 0], [1, 1], [3, 3]])) == pytest.approx((18**0.5, 0))


def test_truth_of_a_straight_fiber():
    truth = straight_fiber(40, 3).truth(0.5)
    assert truth["length_um"] == truth["feret_max_um"] == 23
    assert truth["width_um"] == truth["feret_min_um"] == 3
    assert truth["area_um2"] == pytest.approx((40 * 6 + 9 * math.pi) / 4, rel=1e-4)
    assert truth["perimeter_um"] == pytest.approx((80 + 6 * math.pi) / 2, rel=1e-4)


def test_truth_of_a_curled_fiber_follows_its_bend():
    angle = np.linspace(0, math.pi, 200)
    core = 20 * np.stack([np.cos(angle), np.sin(angle)], 1)
    truth = Particle(FIBER, LineString(core).buffer(2), core, 2.0).truth(1.0)
    assert truth["length_um"] == pytest.approx(20 * math.pi + 4, rel=1e-4)
    assert truth["feret_max_um"] == pytest.approx(44)
    assert truth["feret_min_um"] == pytest.approx(24, rel=1e-4)
    assert truth["width_um"] == 4


@pytest.mark.parametrize("kind", [FIBER, FRAGMENT, FILM])
@given(seed=st.integers(0, 10**6), size=st.sampled_from([64, 256, 2000]))
def test_every_shape_is_sound(kind, seed, size):
    particle = MAKERS[kind](generator(seed), size)
    truth = particle.truth(1.0)
    assert particle.outline.is_valid and isinstance(particle.outline, Polygon)
    assert truth["width_um"] <= truth["length_um"]
    assert truth["feret_min_um"] <= truth["feret_max_um"] <= truth["length_um"] + 1e-6
    hull = np.asarray(particle.outline.convex_hull.exterior.coords)
    assert feret_diameters(hull)[0] == pytest.approx(truth["feret_max_um"], rel=0.02)
    if kind == FIBER:
        assert 3 <= truth["width_um"] <= 10
        assert truth["length_um"] <= MAX_ASPECT_RATIO * truth["width_um"] + 1e-6
        assert truth["area_um2"] <= truth["length_um"] * truth["width_um"]


def test_moving_changes_no_measure():
    particle = MAKERS[FILM](generator(3), 256)
    moved = particle.moved(12.5, -7)
    assert moved.truth(2.0) == pytest.approx(particle.truth(2.0))
    assert moved.outline.bounds[0] == pytest.approx(particle.outline.bounds[0] + 12.5)


def test_a_bead_is_a_disc():
    truth = make_bead(generator(1), 512, 80).truth(0.5)
    diameter = truth["length_um"]
    assert diameter == pytest.approx(40, rel=0.15)
    assert truth["width_um"] == truth["feret_max_um"] == truth["feret_min_um"] == diameter
    assert truth["area_um2"] == pytest.approx(math.pi / 4 * diameter**2, rel=2e-3)
    assert truth["perimeter_um"] == pytest.approx(math.pi * diameter, rel=1e-3)


def test_opening_removes_only_needles():
    square = Polygon([(0, 0), (10, 0), (10, 10), (0, 10)])
    assert opened(square).equals(square)
    needle = Polygon([(10, 4.8), (20, 5), (10, 5.2)])
    assert opened(square.union(needle)).symmetric_difference(square).area < 0.05


@pytest.mark.parametrize("kind", [FRAGMENT, FILM])
@given(seed=st.integers(0, 10**6))
def test_no_outline_ends_in_a_needle(kind, seed):
    outline = MAKERS[kind](generator(seed), 256).outline
    assert opened(outline).hausdorff_distance(outline) <= NEEDLE


def painted(name, seed, min_contrast=0.0):
    rng = generator(seed)
    scene = render_filter((seed, name), 128, {name: 1.0})
    before = scene.canvas.copy()
    bead = make_bead(rng, 128, 40).moved(64, 64)
    done = paint_bead(rng, bead, scene, sphere_look(rng, 40), min_contrast)
    return done, scene.canvas - before


@pytest.mark.parametrize("seed", range(8))
def test_a_dark_ring_in_bright_field_and_light_in_dark_field(seed):
    rows, columns = np.mgrid[:128, :128] + 0.5
    r = np.hypot(rows - 64, columns - 64) / 20
    ring, outside = (r > 0.75) & (r < 1), r > 1.7
    done, bright = painted("gold_membrane", seed)
    assert done and bright[ring].mean() < -0.01
    assert np.abs(bright[outside]).max() < 0.02
    done, dark = painted("black_membrane", seed)
    assert done and dark.mean(2)[r < 1].max() > 0.15
    assert dark[r < 1].mean() > 5 * abs(dark[outside].mean())


def test_a_bead_that_cannot_be_seen_is_not_painted():
    done, change = painted("clear_membrane", 1, min_contrast=0.9)
    assert not done and not change.any()
