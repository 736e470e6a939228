"""What a mask loses in the crop of a mask head, and how wide it is."""

import math

import numpy as np
import pytest
import torch
from detectron2.layers import paste_masks_in_image
from detectron2.structures import BitMasks, Boxes

from microplastics.data.doctor.mask_fit import mask_round_trip, mask_width
from microplastics.structures.crop_masks import CropMasks


def disc(radius, size=256, center=None):
    y, x = np.mgrid[:size, :size] + 0.5
    cx, cy = center or (size / 2, size / 2)
    return (x - cx) ** 2 + (y - cy) ** 2 <= radius**2


def strip(length, width, angle, size=256):
    """A straight fibre across the middle of an image."""
    y, x = np.mgrid[:size, :size] + 0.5 - size / 2
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    return (abs(x * c + y * s) <= length / 2) & (abs(y * c - x * s) <= width / 2)


@pytest.mark.parametrize(
    ("mask", "width"),
    [
        (strip(120, 4, 0), 4),
        (strip(120, 6, 30), 6),
        (strip(120, 8, 45), 8),
        (disc(90) & ~disc(86), 4),  # a fibre curled to a ring
        (disc(10), math.sqrt(math.pi) * 10),
        (np.ones((5, 5), bool), 5),
        (np.ones((1, 1), bool), 1),
        (np.zeros((0, 0), bool), 0),
    ],
)
def test_the_width_is_that_of_the_particle_itself(mask, width):
    assert mask_width(mask) == pytest.approx(width, rel=0.12)


def round_trip(mask, resized=None):
    masks = CropMasks.from_bitmasks(mask[None])
    boxes = masks.get_bounding_boxes().tensor.numpy()
    return mask_round_trip(masks, boxes, resized or mask.shape, (28, 56, 112))[:, 0]


def test_a_thin_diagonal_fibre_loses_more_than_a_disc():
    fibre, bead = round_trip(strip(240, 6, 40)), round_trip(disc(40))
    assert fibre[0] < 0.65 < 0.85 < fibre[1] < 0.9 < fibre[2] < bead[0]
    assert bead[0] > 0.95
    assert bead[2] > 0.985


def test_a_mask_that_fills_its_box_comes_back_whole():
    mask = np.zeros((100, 90), bool)
    mask[10:66, 20:76] = True
    assert round_trip(mask).tolist() == [1, 1, 1]
    assert round_trip(mask, (200, 180)).tolist() == [1, 1, 1]


def test_a_large_mask_is_judged_on_a_smaller_copy(monkeypatch):
    whole = round_trip(disc(110), (512, 512))
    monkeypatch.setattr("microplastics.data.doctor.mask_fit._MAX_MASK_PIXELS", 150**2)
    assert round_trip(disc(110), (512, 512)) == pytest.approx(whole, abs=0.01)


def test_the_round_trip_is_that_of_detectron2():
    mask = strip(200, 5, 33)
    bits = BitMasks(torch.from_numpy(mask[None]))
    boxes = bits.get_bounding_boxes().tensor
    target = bits.crop_and_resize(boxes, 28).float()
    back = paste_masks_in_image(target, Boxes(boxes), mask.shape)[0].numpy()
    assert round_trip(mask)[0] == pytest.approx((back & mask).sum() / (back | mask).sum())
