"""Tiles of photographs for the page of a review."""

import contextlib
import threading
from collections import OrderedDict

import cv2
import numpy as np

from microplastics.data.large_images import ImageReader, open_reader
from microplastics.review.session import ReviewImage
from microplastics.runs.images import RunOptions

SIDE = 512  # px of a tile

# Longest side of what is kept of a photograph, from which its coarse tiles are cut.
_OVERVIEW = 4096
_OPEN = 3  # photographs
_TILES = 1500  # JPEGs of about 60 kB
_QUALITY = 90


class Tiles:
    """Photographs as tiles: level 0 has their own px, each further level half of them.

    Tiles of the fine levels are read by region; the coarse ones come from an overview of at most
    4,096 px, which a pyramid in the file gives at once. Threads may share it.
    """

    def __init__(self, options: RunOptions):
        """Set the limits for images that are decoded whole."""
        self._options = options
        self._open: OrderedDict[str, tuple[contextlib.ExitStack, _Photograph]] = OrderedDict()
        self._tiles: OrderedDict[tuple[str, int, int, int], bytes] = OrderedDict()
        self._lock = threading.Lock()

    def __enter__(self) -> "Tiles":
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            while self._open:
                self._open.popitem()[1][0].close()

    def tile(self, image: ReviewImage, level: int, column: int, row: int) -> bytes | None:
        """Cut out a tile.

        Args:
            image: whose photograph it is.
            level: px of the photograph along a px of the tile are 2**level.
            column, row: of the tile, from 0.

        Returns:
            A JPEG of at most 512 x 512 px; None outside of the photograph.

        Raises:
            UserError: the photograph cannot be read.
        """
        key = image.path, level, column, row
        with self._lock:
            if key not in self._tiles:
                pixels = self._photograph(image.path).cut(level, column, row)
                if pixels is None:
                    return None
                quality = [cv2.IMWRITE_JPEG_QUALITY, _QUALITY]
                self._tiles[key] = cv2.imencode(".jpg", pixels, quality)[1].tobytes()
                if len(self._tiles) > _TILES:
                    self._tiles.popitem(last=False)
            self._tiles.move_to_end(key)
            return self._tiles[key]

    def _photograph(self, path: str) -> "_Photograph":
        if path not in self._open:
            with contextlib.ExitStack() as stack:
                options = self._options
                reader = stack.enter_context(
                    open_reader(
                        path, max_pixels=options.max_pixels, allow_large=options.allow_large
                    )
                )
                photograph = _Photograph(reader)
                self._open[path] = stack.pop_all(), photograph
            if len(self._open) > _OPEN:
                self._open.popitem(last=False)[1][0].close()
        self._open.move_to_end(path)
        return self._open[path][1]


class _Photograph:
    def __init__(self, reader: ImageReader):
        self._reader = reader
        side = max(reader.width, reader.height)
        self._coarse = max(0, (-(-side // _OVERVIEW) - 1).bit_length())
        self._pyramid = [reader.overview(-(-side >> self._coarse))[0]]

    def cut(self, level: int, column: int, row: int) -> np.ndarray | None:
        """The pixels of a tile; None outside."""
        step = SIDE << level
        x0, y0 = column * step, row * step
        if x0 >= self._reader.width or y0 >= self._reader.height:
            return None
        if level < self._coarse:
            x1, y1 = min(x0 + step, self._reader.width), min(y0 + step, self._reader.height)
            pixels = self._reader.read(x0, y0, x1, y1)
            size = -(-(x1 - x0) >> level), -(-(y1 - y0) >> level)
            return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA) if level else pixels
        while level - self._coarse >= len(self._pyramid):
            finer = self._pyramid[-1]
            half = -(-finer.shape[1] // 2), -(-finer.shape[0] // 2)
            self._pyramid.append(cv2.resize(finer, half, interpolation=cv2.INTER_AREA))
        found = self._pyramid[level - self._coarse]
        x, y = column * SIDE, row * SIDE
        return found[y : y + SIDE, x : x + SIDE] if x < found.shape[1] else None
