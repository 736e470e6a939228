"""microplastics/data/augmentation/photometric.py."""

import cv2
import numpy as np
import pytest

from microplastics.data.augmentation import photometric as p
from microplastics.data.rng import seeded

COLOURS = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
GREY = np.repeat(COLOURS[:, :, :1], 3, axis=2)
FLAT = np.full((200, 200, 3), 128, np.uint8)


def applied(augmentation, image, seed=0):
    with seeded(seed):
        return augmentation.get_transform(image).apply_image(image)


ALL = [
    p.RandomBrightness(0.5, 1.5),
    p.RandomContrast(0.5, 1.5),
    p.RandomSaturation(0.5, 1.5),
    p.RandomHue(30.0),
    p.RandomBlur(0.5, 2.0),
    p.RandomNoise((1, 5), (0, 0.5)),
    p.RandomJPEG(30, 90),
]


@pytest.mark.parametrize("augmentation", ALL, ids=lambda a: type(a).__name__)
def test_a_seed_repeats_it_another_does_not_and_the_input_stays(augmentation):
    image = COLOURS.copy()
    image.setflags(write=False)  # as in the cache
    out = applied(augmentation, image)
    assert out.shape == image.shape and out.dtype == np.uint8
    assert np.array_equal(applied(augmentation, image), out)
    assert not np.array_equal(applied(augmentation, image, 1), out)
    # A window of a larger image has gaps between its rows.
    view = np.concatenate([image, image], axis=1)[:, :50]
    assert np.array_equal(applied(augmentation, view), out)


@pytest.mark.parametrize("augmentation", ALL, ids=lambda a: type(a).__name__)
def test_particles_stay_where_they_are(augmentation):
    points = np.array([[1.5, 2.5], [30.0, 4.0]])
    with seeded(0):
        assert np.array_equal(augmentation.get_transform(COLOURS).apply_coords(points), points)


@pytest.mark.parametrize("augmentation", ALL[:6], ids=lambda a: type(a).__name__)
def test_a_grey_camera_stays_grey(augmentation):
    out = applied(augmentation, GREY).astype(int)
    assert np.ptp(out, axis=2).max() <= 1
    assert not isinstance(augmentation, p.RandomNoise) or np.ptp(out, axis=2).max() == 0


def test_brightness_is_a_factor_and_contrast_keeps_the_mean():
    assert (applied(p.RandomBrightness(1.5, 1.5), FLAT) == 192).all()
    assert (applied(p.RandomBrightness(3.0, 3.0), FLAT) == 255).all()
    half = FLAT.copy()
    half[:100], half[100:] = 108, 148
    out = applied(p.RandomContrast(2.0, 2.0), half)
    assert (out[:100] == 88).all() and (out[100:] == 168).all()


def test_no_saturation_is_grey_and_a_full_turn_of_hue_is_none():
    out = applied(p.RandomSaturation(0.0, 0.0), COLOURS)
    assert np.ptp(out.astype(int), axis=2).max() == 0
    luma = cv2.cvtColor(COLOURS, cv2.COLOR_BGR2GRAY).astype(int)
    assert np.abs(out[:, :, 0] - luma).max() <= 1


def test_hue_turns_colours_and_keeps_their_brightness():
    image = np.full((4, 4, 3), (90, 110, 150), np.uint8)
    out = applied(p.RandomHue(90.0), image, seed=2)
    assert np.abs(out.astype(int) - image).max() > 10
    luma = [cv2.cvtColor(i, cv2.COLOR_BGR2GRAY)[0, 0] for i in (image, out)]
    assert abs(int(luma[0]) - int(luma[1])) <= 2


@pytest.mark.parametrize("kind", ["gaussian", "defocus"])
def test_blur_has_the_standard_deviation_it_says(kind):
    dot = np.zeros((61, 61, 3), np.uint8)
    dot[28:33, 28:33] = 255
    out = applied(p.RandomBlur(3.0, 3.0, kind), dot)[:, :, 0].astype(float)
    offsets = np.arange(61) - 30
    variance = (out.sum(axis=0) * offsets**2).sum() / out.sum()
    assert np.sqrt(variance - 2) == pytest.approx(3.0, rel=0.08)  # 2: that of the 5 px


def test_noise_has_the_variance_it_says():
    for level in (50, 200):
        flat = np.full((300, 300, 3), level, np.uint8)
        flat[0, 0] = (level, level + 1, level)  # a colour camera
        out = applied(p.RandomNoise((3.0, 3.0), (0.2, 0.2)), flat).astype(float)
        assert out.mean() == pytest.approx(level, abs=0.1)
        assert out.var() == pytest.approx(9 + 0.2 * level, rel=0.03)


def test_the_lower_the_quality_the_further_from_the_original():
    errors = []
    for quality in (95, 60, 20):
        out = applied(p.RandomJPEG(quality, quality), COLOURS)
        errors.append(np.abs(out.astype(int) - COLOURS).mean())
    assert errors == sorted(errors) and errors[0] < errors[2]


def test_images_too_long_for_jpeg_stay_as_they_are():
    image = np.random.default_rng(0).integers(0, 256, (1, 65501, 3), np.uint8)
    transform = p.RandomJPEG(10, 10).get_transform(image)
    assert np.array_equal(transform.apply_image(image), image)
