import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from microplastics.synthetic.camera import (
    bar_text,
    burn_in,
    fractal_noise,
    generator,
    plan_scale_bar,
    relief,
    smooth_noise,
)
from microplastics.synthetic.particles import contour_contrast


def test_contrast_is_measured_on_the_rim():
    below = np.zeros((20, 20, 3), np.float32)
    coverage = np.zeros((20, 20), np.float32)
    coverage[4:16, 4:16] = 1
    painted = below.copy()
    painted[4:16, 4:16] = 0.5
    assert contour_contrast(painted, below, coverage) == pytest.approx(0.5)
    painted[4:16, 4:16] = 0
    painted[8:12, 8:12] = 1
    assert contour_contrast(painted, below, coverage) == 0


def test_fields_have_their_scale():
    field = fractal_noise(generator(1), (128, 128), (16, 4))
    assert field.dtype == np.float32 and abs(field.mean()) < 1e-4
    assert field.std() == pytest.approx(1, abs=1e-4)
    fine, coarse = (smooth_noise(generator(2), (128, 128), cell) for cell in (2, 20))
    assert np.abs(np.diff(fine)).mean() > 3 * np.abs(np.diff(coarse)).mean()


def test_relief_is_bright_on_the_side_of_the_lamp():
    ramp = np.tile(np.arange(9, dtype=np.float32), (9, 1))
    assert relief(ramp, np.array([1.0, 0]))[4, 4] == pytest.approx(-1)
    assert relief(ramp, np.array([-1.0, 0]))[4, 4] == pytest.approx(1)


@pytest.mark.parametrize("um, text", [(0.5, "500 nm"), (2.5, "2.5 µm"), (750, "750 µm")])
def test_scale_bar_text(um, text):
    assert bar_text(um) == text and bar_text(1000 * um * 2).endswith("m")


@given(seed=st.integers(0, 10**6), size=st.integers(64, 900), scale=st.floats(1e-4, 1e4))
def test_scale_bar_is_drawn_as_it_says(seed, size, scale):
    bar = plan_scale_bar(generator(seed), size, scale)
    if bar is None:
        return
    assert bar["px"] == pytest.approx(bar["um"] / scale, abs=0.5)
    x, y, width, height = bar["bbox"]
    assert 0 <= x and 0 <= y and x + width <= size and y + height <= size
    image = np.full((size, size, 3), 200, np.uint8)
    bar["plate"] = False
    burn_in(image, bar)
    ink = image[..., 0] < 200
    assert ink[y : y + height, x : x + width].sum() == ink.sum()
    rows = [row for row in image[..., 0] == 0 if row.sum() >= bar["px"]]
    assert {int(np.ptp(np.nonzero(row)[0])) + 1 for row in rows} == {bar["px"]}
