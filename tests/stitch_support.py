"""Scenes and views for the tests of stitching."""

import cv2
import numpy as np

from microplastics.inference.stitching.stitcher import Stitcher

LEFT, RIGHT = (0, 0, 120, 160), (80, 0, 120, 160)  # overlap by 40 columns
SEAM = [LEFT, RIGHT]
SIZE = (160, 200)


def starts(side, tile, overlap):
    return [0] if side <= tile else [*range(0, side - tile, tile - overlap), side - tile]


def windows_of(size, tile, overlap):
    tile = min(size, tile)
    places = starts(size, tile, overlap)
    return [(x, y, tile, tile) for y in places for x in places]


def blank(size=SIZE):
    return np.zeros(size, np.uint8)


def line(*points, width=4, size=SIZE):
    points = np.array([points], np.int32)
    return cv2.polylines(blank(size), points, False, 1, width).astype(bool)


def disc(x, y, radius, size=SIZE):
    return cv2.circle(blank(size), (x, y), radius, 1, -1).astype(bool)


def shown(mask, window, parts=False):
    """Return the crops of a full-frame mask that a window sees."""
    x, y, width, height = window
    crop = mask[y : y + height, x : x + width]
    if not parts:
        return [crop] if crop.any() else []
    count, labels = cv2.connectedComponents(np.ascontiguousarray(crop, np.uint8))
    return [labels == number for number in range(1, count)]


def add(stitcher, window, masks, classes=None, scores=None, parts=False):
    crops = [(k, crop) for k, mask in enumerate(masks) for crop in shown(mask, window, parts)]
    stitcher.add(
        window,
        [crop for _, crop in crops],
        [window[:2]] * len(crops),
        [0 if classes is None else classes[k] for k, _ in crops],
        [0.9 if scores is None else scores[k] for k, _ in crops],
    )


def stitch(views, size=SIZE, parts=False):
    """Stitch pairs of a window and the full-frame masks that it shows."""
    stitcher = Stitcher(size)
    for window, masks in views:
        add(stitcher, window, masks, parts=parts)
    return stitcher.finish()


def full(found, index, size=SIZE):
    mask, (x, y) = found.masks[index], found.offsets[index]
    whole = np.zeros(size, bool)
    whole[y : y + mask.shape[0], x : x + mask.shape[1]] = mask
    return whole


def moved(mask, dx, dy):
    matrix = np.array([[1, 0, dx], [0, 1, dy]], np.float32)
    size = mask.shape[::-1]
    return cv2.warpAffine(mask.astype(np.uint8), matrix, size, flags=cv2.INTER_NEAREST) > 0


def iou(one, other):
    return (one & other).sum() / (one | other).sum()


def assert_found(found, truth, size=SIZE, least=1.0):
    assert len(found) == len(truth)
    masks = [full(found, index, size) for index in range(len(found))]
    for mask in truth:
        best = max(range(len(masks)), key=lambda i: iou(masks[i], mask))
        assert iou(masks.pop(best), mask) >= least
