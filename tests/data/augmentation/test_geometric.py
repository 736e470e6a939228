"""microplastics/data/augmentation/geometric.py."""

import cv2
import numpy as np
import pytest
from detectron2.data import transforms as T
from hypothesis import given, settings
from hypothesis import strategies as st

from microplastics.data.augmentation.geometric import (
    FastResizeTransform,
    RandomRightAngle,
    RandomRotation,
    ResizeWithJitter,
    RightAngleTransform,
    WarpTransform,
    inner_size,
)
from microplastics.data.mapper import affine_matrix
from microplastics.data.rng import seeded
from microplastics.structures.crop_masks import CropMasks


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
def test_right_angles_are_exact_and_their_inverse_too(turns):
    image, masks = picture()
    transform = RightAngleTransform(120, 160, turns)
    out, turned = moved(transform, masks, image)
    assert np.array_equal(out, np.rot90(image, turns))
    assert np.array_equal(turned.to_bitmasks()[0].numpy(), out[:, :, 0] > 0)
    points = np.random.default_rng(0).uniform(0, 100, (5, 2))
    back = transform.inverse().apply_coords(transform.apply_coords(points))
    assert back == pytest.approx(points)
    assert np.array_equal(transform.inverse().apply_image(out), image)


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


def test_every_turn_comes_and_a_seed_repeats_it():
    image = picture()[0]
    turns = []
    for seed in range(20):
        with seeded(seed):
            turns.append(RandomRightAngle().get_transform(image).turns)
    assert set(turns) == {1, 2, 3}
    with seeded(7):
        assert RandomRightAngle().get_transform(image).turns == turns[7]


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
