"""microplastics/data/augmentation/crop.py."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from microplastics.data.augmentation.crop import RandomParticleCrop
from microplastics.data.rng import seeded

IMAGE = np.zeros((300, 400, 3), np.uint8)


def window(crop, boxes, seed, image=IMAGE):
    with seeded(seed):
        t = crop.get_transform(image, boxes)
    assert t.apply_image(image).shape[:2] == (t.h, t.w)
    return t.x0, t.y0, t.w, t.h


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    height=st.integers(1, 500),
    width=st.integers(1, 500),
    shift=st.floats(0, 1),
)
def test_the_window_lies_inside_and_shows_a_particles_centre(seed, height, width, shift):
    boxes = np.array([[10, 10, 14, 14], [380, 280, 398, 298]], dtype=np.float32)
    x, y, w, h = window(RandomParticleCrop(height, width, shift), boxes, seed)
    assert (w, h) == (min(width, 400), min(height, 300))
    assert 0 <= x <= 400 - w and 0 <= y <= 300 - h
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    # Half a pixel: windows begin at whole ones.
    inside = (centers >= (x - 0.5, y - 0.5)) & (centers <= (x + w + 0.5, y + h + 0.5))
    assert inside.all(axis=1).any()


def test_both_particles_get_their_turn():
    boxes = np.array([[10, 10, 14, 14], [380, 280, 398, 298]], dtype=np.float32)
    crop = RandomParticleCrop(50, 50, 0.0)
    assert {window(crop, boxes, s)[:2] for s in range(20)} == {(0, 0), (350, 250)}


def test_blanks_and_particles_out_of_view_leave_it_to_chance():
    crop = RandomParticleCrop(50, 60)
    for boxes in (None, np.zeros((0, 4)), np.array([[-50.0, 10, -20, 30]])):
        places = {window(crop, boxes, seed)[:2] for seed in range(30)}
        assert len(places) > 25
