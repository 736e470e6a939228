"""In which reading of an EXIF rotation masks lie on edges."""

import cv2
import numpy as np
import pycocotools.mask as mask_util
import pytest

from microplastics.data.images import turn
from microplastics.data.orientation import (
    STORED,
    UNSURE,
    UPRIGHT,
    keeps_size,
    reading,
    turn_segmentation,
)

RINGS = [
    [[12.0, 10.0, 52.0, 10.0, 52.0, 26.0, 12.0, 26.0]],
    [[20.0, 60.0, 40.0, 60.0, 30.0, 100.0]],
    [[70.0, 30.0, 90.0, 40.0, 78.0, 62.0]],
    [[96.0, 90.0, 112.0, 90.0, 112.0, 96.0, 96.0, 96.0]],
]


def picture(rings):
    image = np.random.default_rng(0).normal(120, 4, (120, 120, 3))
    for [ring] in rings:
        cv2.fillPoly(image, [np.int32(np.reshape(ring, (-1, 2)))], (60, 70, 80))
    return np.clip(image, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("orientation", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("as_rle", [False, True])
def test_the_picture_decides(orientation, as_rle):
    stored = picture(RINGS)
    masks = RINGS
    if as_rle:
        masks = [mask_util.frPyObjects(ring, 120, 120)[0] for ring in RINGS]
    upright = turn(stored, orientation)
    assert keeps_size(orientation, 120, 120)
    assert reading(upright, orientation, masks) == STORED
    turned = [turn_segmentation(mask, orientation, 120, 120) for mask in masks]
    assert reading(upright, orientation, turned) == UPRIGHT
    if as_rle:  # exactly as the pixels of the image
        for mask, other in zip(masks, turned, strict=True):
            expected = turn(mask_util.decode(mask), orientation)
            assert (mask_util.decode(other) == expected).all()


def test_a_picture_without_edges_or_masks_does_not():
    noise = np.random.default_rng(1).integers(0, 256, (120, 120, 3), np.uint8)
    assert reading(noise, 3, RINGS) == UNSURE
    assert reading(np.zeros((120, 120, 3), np.uint8), 3, RINGS) == UNSURE
    assert reading(picture(RINGS), 3, []) == UNSURE
    assert keeps_size(4, 40, 30) and not keeps_size(6, 40, 30) and not keeps_size(1, 9, 9)
