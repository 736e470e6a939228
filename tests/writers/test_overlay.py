import cv2
import numpy as np
import pytest

from microplastics.utils.errors import UserError
from microplastics.writers import overlay
from microplastics.writers.overlay import write_overlay

ORANGE = (0, 94, 213)  # BGR of Fiber


def near(picture, color, tolerance=40):
    return (np.abs(picture.astype(int) - color).max(axis=2) <= tolerance).sum()


def grey(height, width):
    return np.full((height, width, 3), 120, dtype=np.uint8)


def test_small_images_are_enlarged_and_outlined_in_the_colours_of_the_classes(
    make_result, photograph, tmp_path
):
    result = make_result(photo=photograph(grey(40, 50)))
    assert write_overlay(result, tmp_path / "x.png") == {}
    page = cv2.imread(str(tmp_path / "x.png"))
    assert page.shape[1] == 800 and page.shape[0] > 640  # 16 times, below the caption
    picture = page[-640:]
    # The fibre's outline runs along the edges of its pixels, its middle stays to be seen.
    assert np.abs(picture[4 * 16 - 2 : 4 * 16 + 3, 100].astype(int) - ORANGE).max(axis=1).min() < 40
    assert (picture[5 * 16, 100] == 120).all()
    assert near(page[:-640], ORANGE) > 100  # the legend


def test_large_images_become_a_thumbnail_on_which_thin_fibres_stay(
    make_result, photograph, tmp_path, monkeypatch
):
    monkeypatch.setattr(overlay, "MAX_SIDE", 1000)
    fibre = np.ones((2, 3000), dtype=bool)
    speck = np.ones((3, 3), dtype=bool)
    photo = photograph(np.broadcast_to(np.uint8(120), (6000, 8000, 3)))
    result = make_result(
        (fibre, speck),
        ((1000, 2000), (6000, 4000)),
        ("Fiber", "Fiber"),
        size=(6000, 8000),
        photo=photo,
    )
    write_overlay(result, tmp_path / "x.png")
    picture = cv2.imread(str(tmp_path / "x.png"))[-750:]
    assert picture.shape == (750, 1000, 3)
    along = picture[247:255, 130:490].astype(int)
    assert (np.abs(along - ORANGE).max(axis=2).min(axis=0) < 60).all()
    assert near(picture[490:512, 740:762], ORANGE) > 15  # a ring about the speck


def test_thousands_of_numbers_are_placed_or_counted(make_result, photograph, tmp_path):
    rng = np.random.default_rng(0)
    offsets = rng.integers(0, 890, (2000, 2))
    masks, classes = [np.ones((8, 8), dtype=bool)] * 2000, ["Film"] * 2000
    result = make_result(masks, offsets, classes, size=(900, 900), photo=photograph(grey(900, 900)))
    notes = write_overlay(result, tmp_path / "x.png")
    assert 200 < notes["overlay_numbers_left_out"] < 1900
    alone = make_result(masks[:1], offsets[:1], ["Film"], photo=photograph(grey(900, 900)))
    assert write_overlay(alone, tmp_path / "y.png") == {}


def test_a_scale_bar_stands_above_the_photograph(make_result, photograph, tmp_path):
    """50 px of 2 µm enlarged 16 times: a bar of 20 µm is 10 px long, and 160 px of the picture."""
    write_overlay(make_result(photo=photograph(grey(40, 50))), tmp_path / "x.png")
    page = cv2.imread(str(tmp_path / "x.png"))
    strip = page[-640 - 25 : -640]
    longest = max(int((row.max(axis=1) < 60).sum()) for row in strip[:, :200])
    assert abs(longest - 160) <= 4
    write_overlay(make_result(photo=photograph(grey(40, 50)), um_per_px=None), tmp_path / "y.png")
    assert cv2.imread(str(tmp_path / "y.png")).shape[0] < page.shape[0]


def test_an_image_without_a_particle_is_drawn_too(make_result, photograph, tmp_path):
    result = make_result((), (), (), photo=photograph(grey(40, 50)))
    assert write_overlay(result, tmp_path / "x.png") == {}
    assert (cv2.imread(str(tmp_path / "x.png"))[-640:] == 120).all()


def test_endless_names_are_shortened(make_result, photograph, tmp_path):
    result = make_result(image="x" * 100_000, photo=photograph(grey(40, 50)))
    assert write_overlay(result, tmp_path / "x.png") == {}
    assert cv2.imread(str(tmp_path / "x.png")).shape[0] < 800


def test_an_overlay_that_cannot_be_written_names_it(make_result, photograph, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="Cannot write .*x.png"):
        write_overlay(make_result(photo=photograph(grey(40, 50))), tmp_path / "file" / "x.png")
