"""Scale bars painted over, alike in training, prediction and measuring."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from microplastics.calibration.scale_bar import Box, find_scale_bars

# Pixels around a box whose colour takes its place.
_RIM = 8


class Regions(Protocol):
    """An image that is read by window."""

    width: int
    height: int

    def read(self, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        """Give a region, uint8 (y1 - y0, x1 - x0, 3), BGR."""


class PaintedRegions:
    """An image whose boxes are painted over in the colour of what surrounds them."""

    def __init__(self, regions: Regions, boxes: Sequence[Box]):
        """Paint ``boxes``, x, y, width and height in px, of an image over."""
        self.width, self.height, self._regions = regions.width, regions.height, regions
        self._patches = [(box, self._surrounding(box)) for box in boxes]

    def read(self, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        """Give a region, (y1 - y0, x1 - x0, 3) uint8 BGR."""
        image = self._regions.read(x0, y0, x1, y1)
        for (x, y, width, height), color in self._patches:
            left, top = max(x - x0, 0), max(y - y0, 0)
            image[top : max(y + height - y0, 0), left : max(x + width - x0, 0)] = color
        return image

    def _surrounding(self, box: Box) -> np.ndarray:
        x, y, width, height = box
        x0, y0 = max(x - _RIM, 0), max(y - _RIM, 0)
        x1, y1 = min(x + width + _RIM, self.width), min(y + height + _RIM, self.height)
        frame = self._regions.read(x0, y0, x1, y1)
        around = np.ones(frame.shape[:2], dtype=bool)
        around[y - y0 : y - y0 + height, x - x0 : x - x0 + width] = False
        return np.median(frame[around] if around.any() else frame.reshape(-1, 3), axis=0)


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
