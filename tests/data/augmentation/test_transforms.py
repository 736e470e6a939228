"""microplastics/data/augmentation/transforms.py."""

import cv2
import numpy as np
import pytest
from detectron2.data import transforms as T
from hypothesis import given, settings
from hypothesis import strategies as st

from microplastics.data.augmentation import transforms as p
from microplastics.data.augmentation.transforms import (
    FastResizeTransform,
    RandomParticleCrop,
    RandomRotation,
    ResizeWithJitter,
    WarpTransform,
    inner_size,
)
from microplastics.data.mapper import affine_matrix
from microplastics.structures.crop_masks import CropMasks
from microplastics.utils.system import seeded

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


def picture(height=120, width=160):
    """A white blot on black, and its mask."""
    image = np.zeros((height, width, 3), np.uint8)
    cv2.ellipse(image, (90, 50), (40, 12), 25, 0, 360, (255, 255, 255), -1)
    return image, CropMasks.from_bitmasks(image[None, :, :, 0] > 0)


def iou(mask, image):
    drawn = image[:, :, 0] >= 128
    return (mask & drawn).sum() / (mask | drawn).sum()


def moved(transform, masks, image):
    out = transform.apply_image(image)
    matrix = affine_matrix(T.TransformList([transform]))
    return out, masks.affine(matrix, out.shape[:2])


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_right_angles_are_exact(turns):
    image, masks = picture()
    transform = T.RotationTransform(120, 160, 90 * turns)
    out, turned = moved(transform, masks, image)
    assert np.array_equal(out, np.rot90(image, turns))
    assert np.array_equal(turned.to_bitmasks()[0].numpy(), out[:, :, 0] > 0)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**16), frame=st.sampled_from(["same", "expand", "inside"]))
def test_mask_and_picture_turn_together(seed, frame):
    image, masks = picture()
    with seeded(seed):
        transform = RandomRotation(180.0, frame, "black").get_transform(image, None)
    out, turned = moved(transform, masks, image)
    if turned.area().item() > 200:
        assert iou(turned.to_bitmasks()[0].numpy(), out) >= 0.97
    if frame == "same":
        assert out.shape == image.shape
    if frame == "expand":
        assert turned.area().item() == pytest.approx(masks.area().item(), rel=0.02)


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(20, 300),
    height=st.integers(20, 300),
    angle=st.floats(-np.pi, np.pi, allow_nan=False),
)
def test_the_inner_frame_has_no_border_in_it(width, height, angle):
    size = inner_size(width, height, angle)
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * size / 2
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    # Of a size of at least a pixel, which a very thin image may not hold.
    if (size > 1).all():
        assert (np.abs(corners @ turn) <= np.array([width, height]) / 2 + 1e-3).all()


def test_a_right_angle_keeps_the_whole_frame():
    assert inner_size(160, 120, np.pi / 2).tolist() == [120, 160]
    assert inner_size(160, 120, 0.0).tolist() == [160, 120]


@pytest.mark.parametrize("border", ["reflect", "median", "black"])
def test_no_border_holds_a_second_particle(border):
    image = np.full((100, 100, 3), 200, np.uint8)
    image[30:70, 2:12] = 20
    shift = np.array([[1.0, 0.0, 40.0], [0.0, 1.0, 0.0]])
    boxes = np.array([[2, 30, 12, 70]])
    out = WarpTransform(shift, (100, 100), border, boxes).apply_image(image)
    assert np.array_equal(out[:, 40:], image[:, :60])
    assert (out[:, :39] == (0 if border == "black" else 200)).all()


def test_reflection_mirrors_the_ground():
    image = np.random.default_rng(0).integers(0, 256, (50, 50, 3), dtype=np.uint8)
    shift = np.array([[1.0, 0.0, 10.0], [0.0, 1.0, 0.0]])
    out = WarpTransform(shift, (50, 50)).apply_image(image)
    assert np.array_equal(out[:, 10:], image[:, :40])
    assert np.array_equal(out[:, :10], image[:, 10:0:-1])


def test_size_jitter_keeps_to_its_bounds_and_the_longest_side():
    image = np.zeros((100, 200, 3), np.uint8)
    heights = []
    for seed in range(60):
        with seeded(seed):
            resize = ResizeWithJitter((100,), 300, "choice", (0.5, 2.0), 1.0)
            heights.append(resize.get_transform(image).new_h)
    assert min(heights) >= 50 and max(heights) == 150  # 2 x would be 400 px wide
    assert min(heights) < 60


def test_without_jitter_the_size_is_detectron2s():
    image = np.zeros((75, 100, 3), np.uint8)
    plain = T.ResizeShortestEdge((80,), 90, "choice").get_transform(image)
    own = ResizeWithJitter((80,), 90, "choice", (0.5, 0.6), 0.0).get_transform(image)
    assert (own.new_h, own.new_w) == (plain.new_h, plain.new_w)


@pytest.mark.parametrize("size", [(80, 107), (30, 40), (200, 77)])
def test_the_fast_resize_is_at_most_a_level_away_from_pillows(size):
    image = np.random.default_rng(0).integers(0, 256, (75, 100, 3), dtype=np.uint8)
    image.setflags(write=False)
    exact = T.ResizeTransform(75, 100, *size).apply_image(image).astype(int)
    fast = FastResizeTransform(75, 100, *size).apply_image(image)
    assert fast.flags.c_contiguous and fast.dtype == np.uint8
    difference = np.abs(fast.astype(int) - exact)
    assert difference.max() <= 1 and difference.mean() < 0.01


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
