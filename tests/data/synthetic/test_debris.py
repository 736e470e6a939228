import numpy as np
import pytest

from microplastics.data.synthetic.background import render_filter
from microplastics.data.synthetic.debris import enclose_bubbles, scatter_debris, shed_fibers
from microplastics.data.synthetic.fields import generator


def drawn(draw, name, *arguments):
    """What a kind of debris changes on a filter."""
    scene = render_filter((1, name), 256, {name: 1.0})
    before = scene.canvas.copy()
    draw(generator(2), scene, *arguments)
    return scene.canvas - before


@pytest.mark.parametrize("name", ["cellulose", "dark_polycarbonate"])
def test_more_dirt_changes_more(name):
    none, some, much = (np.abs(drawn(scatter_debris, name, a)).mean() for a in (0.0, 1.0, 4.0))
    assert none == 0 < some < much


def test_bubbles_darken_a_bright_filter_and_shine_in_dark_field():
    bright, dark = (drawn(enclose_bubbles, n, 4.0) for n in ("cellulose", "dark_polycarbonate"))
    assert bright.min() < -0.3
    assert dark.min() >= 0 and dark.max() > 0.3
    assert not drawn(enclose_bubbles, "cellulose", 0.0).any()


def test_only_fibrous_filters_shed_fibers_and_without_colour():
    shed = drawn(shed_fibers, "glass_fiber", 8.0)
    assert np.abs(shed).max() > 0.05
    assert np.ptp(shed, axis=2).max() < 1e-5
    assert not drawn(shed_fibers, "polycarbonate", 8.0).any()
