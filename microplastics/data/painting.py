"""Scale bars painted over, alike in training, prediction and measuring."""

from collections.abc import Sequence
from typing import Protocol

import cv2
import numpy as np

from microplastics.calibration.scale_bar import Box, find_scale_bars

# Pixels around a box that its place is filled from.
_RIM = 8
_MAX_FILLED = 300_000  # px of a box; a larger one gets one colour
# Fraction of a particle's box on a painted one from which on the particle is not to be seen.
_HIDDEN = 0.5


class Regions(Protocol):
    """An image that is read by window."""

    width: int
    height: int

    def read(self, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        """Give a region, uint8 (y1 - y0, x1 - x0, 3), BGR."""


class PaintedRegions:
    """An image whose boxes are painted over with what surrounds them.

    What takes the place of a box is found at the first read that shows it, and kept.
    """

    def __init__(self, regions: Regions, boxes: Sequence[Box]):
        """Paint ``boxes``, x, y, width and height in px, of an image over."""
        self.width, self.height, self._regions = regions.width, regions.height, regions
        self._boxes = boxes
        self._patches: dict[Box, np.ndarray] = {}

    def read(self, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        """Give a region, (y1 - y0, x1 - x0, 3) uint8 BGR."""
        image = self._regions.read(x0, y0, x1, y1)
        for box in self._boxes:
            x, y, width, height = box
            left, top = max(x, x0), max(y, y0)
            right, bottom = min(x + width, x1), min(y + height, y1)
            if left < right and top < bottom:
                if box not in self._patches:
                    self._patches[box] = self._patch(box)
                part = self._patches[box][top - y : bottom - y, left - x : right - x]
                image[top - y0 : bottom - y0, left - x0 : right - x0] = part
        return image

    def _patch(self, box: Box) -> np.ndarray:
        """The pixels that take the place of a box, uint8 (height, width, 3)."""
        x, y, width, height = box
        x0, y0 = max(x - _RIM, 0), max(y - _RIM, 0)
        x1, y1 = min(x + width + _RIM, self.width), min(y + height + _RIM, self.height)
        frame = self._regions.read(x0, y0, x1, y1)
        hidden = np.zeros(frame.shape[:2], np.uint8)
        for u, v, w, h in self._boxes:
            hidden[max(v - y0, 0) : max(v + h - y0, 0), max(u - x0, 0) : max(u + w - x0, 0)] = 1
        own = slice(y - y0, y - y0 + height), slice(x - x0, x - x0 + width)
        if hidden.all() or width * height > _MAX_FILLED:
            around = frame[hidden == 0] if not hidden.all() else frame.reshape(-1, 3)
            frame[own] = np.median(around, axis=0)
            return frame[own]
        # One colour would leave a rectangle with edges, which looks like a particle.
        return cv2.inpaint(frame, hidden, _RIM / 2, cv2.INPAINT_NS)[own]


class Picture:
    """An image in memory that is read by window, uint8 (height, width, 3), BGR."""

    def __init__(self, image: np.ndarray):
        self.height, self.width = image.shape[:2]
        self._image = image

    def read(self, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        """Give a copy of a region."""
        return self._image[y0:y1, x0:x1].copy()


def boxes_to_paint(regions: Regions) -> list[Box]:
    """Boxes x, y, width and height in px of all that looks like a scale bar or its label."""
    bars = find_scale_bars(regions.read, regions.width, regions.height)
    return [box for bar in bars for box in bar.boxes]


def are_hidden(boxes: np.ndarray, painted: Sequence[Box]) -> np.ndarray:
    """Tell which particles are not to be seen where boxes are painted over, bool (N,).

    Args:
        boxes: (N, 4) x0, y0, x1, y1 of the particles, px.
        painted: x, y, width and height of what is painted over, px.
    """
    x, y, width, height = np.asarray(painted, np.float64).reshape(-1, 4).T
    wide, high = (
        np.minimum(boxes[:, None, i + 2], start + size) - np.maximum(boxes[:, None, i], start)
        for i, start, size in ((0, x, width), (1, y, height))
    )
    area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    common = (wide.clip(0) * high.clip(0)).max(axis=1, initial=0)
    return common >= _HIDDEN * np.maximum(area, 1e-9)


def paint_scale_bars(image: np.ndarray) -> np.ndarray:
    """Paint what looks like a scale bar or its label over; a copy if there is one.

    Args:
        image: uint8 (height, width, 3), BGR.
    """
    picture = Picture(image)
    boxes = boxes_to_paint(picture)
    if not boxes:
        return image
    return PaintedRegions(picture, boxes).read(0, 0, picture.width, picture.height)
