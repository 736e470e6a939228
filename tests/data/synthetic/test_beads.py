import numpy as np
import pytest

from microplastics.data.synthetic.background import render_filter
from microplastics.data.synthetic.beads import paint_bead, sphere_look
from microplastics.data.synthetic.fields import generator
from microplastics.data.synthetic.particles import make_bead


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
