import numpy as np
import pytest

from microplastics.measurement.color import NAMED_COLORS, color_names, median_lab


def pixels(*colors):
    return np.array(colors, np.uint8).reshape(-1, 3)


@pytest.mark.parametrize(
    ("bgr", "lab"),
    [
        ((255, 255, 255), (100.0, 0.0, 0.0)),
        ((0, 0, 0), (0.0, 0.0, 0.0)),
        ((0, 0, 255), (53.24, 80.09, 67.20)),
        ((255, 0, 0), (32.30, 79.19, -107.86)),
    ],
)
def test_lab_is_that_of_srgb_under_d65(bgr, lab):
    assert median_lab(pixels(bgr)) == pytest.approx(lab, abs=0.05)


def test_the_median_leaves_a_minority_out():
    assert median_lab(pixels(*[(9, 9, 9)] * 3, *[(250, 0, 0)] * 2)) == median_lab(pixels((9, 9, 9)))


@pytest.mark.parametrize(
    ("bgr", "name"),
    [
        ((15, 15, 15), "black"),
        ((128, 128, 128), "grey"),
        ((250, 250, 250), "white"),
        ((30, 30, 200), "red"),
        ((0, 0, 255), "red"),
        ((20, 130, 240), "orange"),
        ((40, 220, 240), "yellow"),
        ((60, 140, 50), "green"),
        ((200, 190, 60), "cyan"),
        ((180, 90, 30), "blue"),
        ((255, 0, 0), "blue"),
        ((80, 40, 30), "blue"),
        ((150, 50, 130), "purple"),
        ((190, 170, 250), "pink"),
        ((40, 70, 110), "brown"),
        ((170, 200, 220), "beige"),
    ],
)
def test_colors_have_their_names(bgr, name):
    assert color_names([median_lab(pixels(bgr))]) == [name]


def test_every_named_color_is_nearest_to_itself():
    names, labs = zip(*NAMED_COLORS, strict=True)
    assert color_names(labs) == list(names)
    assert color_names([]) == []
