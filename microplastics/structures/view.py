"""Masks as parts of an image."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np


class View(NamedTuple):
    """A bool mask, or part of one, and the position of its first pixel in the image."""

    mask: np.ndarray
    x: int
    y: int


def tight(mask: np.ndarray, x: int, y: int) -> View:
    """Cut a mask down to its pixels; the shape of an empty one is (0, 0)."""
    left, top, width, height = cv2.boundingRect(mask.view(np.uint8))
    return View(mask[top : top + height, left : left + width], x + left, y + top)


def clip(view: View, box: Sequence[int]) -> View:
    """Cut out the part of a mask inside a box x0, y0, x1, y1; a view of the same memory."""
    height, width = view.mask.shape
    x0, y0 = max(box[0], view.x), max(box[1], view.y)
    x1, y1 = min(box[2], view.x + width), min(box[3], view.y + height)
    x1, y1 = max(x0, x1), max(y0, y1)
    return View(view.mask[y0 - view.y : y1 - view.y, x0 - view.x : x1 - view.x], x0, y0)


def box_of(view: View) -> tuple[int, int, int, int]:
    """Return x0, y0, x1, y1 of a mask's array."""
    height, width = view.mask.shape
    return view.x, view.y, view.x + width, view.y + height


def common_pixels(first: View, second: View) -> int:
    """Count the pixels that are in both of two masks."""
    own, ox, oy = first
    other, tx, ty = second
    x0, y0 = (ox if ox > tx else tx), (oy if oy > ty else ty)
    x1, y1 = ox + own.shape[1], oy + own.shape[0]
    x1, y1 = min(x1, tx + other.shape[1]), min(y1, ty + other.shape[0])
    if x0 >= x1 or y0 >= y1:
        return 0
    part = own[y0 - oy : y1 - oy, x0 - ox : x1 - ox]
    return int(np.count_nonzero(part & other[y0 - ty : y1 - ty, x0 - tx : x1 - tx]))


def canonical(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Turn and flip a mask into one of its eight positions, the same whichever is given.

    Thinning and sums of floats depend on the position; a particle's size must not.

    Returns:
        the mask there; and a (2, 2) matrix and a (2,) shift, which bring x and y back from it.
    """
    positions = [
        ((mask.T if swapped else mask)[::down, ::right], swapped, np.array([right, down]))
        for swapped, down, right in itertools.product((False, True), (1, -1), (1, -1))
    ]
    lying, swapped, flips = min(positions, key=lambda each: (each[0].shape, each[0].tobytes()))
    matrix, shift = np.diag(flips), np.where(flips < 0, np.array(lying.shape[::-1]) - 1, 0)
    lying = np.ascontiguousarray(lying)
    return (lying, matrix[::-1], shift[::-1]) if swapped else (lying, matrix, shift)
