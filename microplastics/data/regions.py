"""Images of any size, read by region: the pixels of ``data.images.read_image`` there.

TIFFs of all kinds (BigTIFF, OME-TIFF, pyramids; tiles or strips) are read piece by piece, so
that memory does not grow with the image. Other formats know no pieces and are decoded whole.
"""

import contextlib
import logging
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

import cv2
import numpy as np

from microplastics.data.image_files import open_image, reading
from microplastics.data.images import (
    AXES_SWAPPED,
    EXIF_ORIENTATION,
    MAX_PIXELS,
    image_size,
    read_image,
    stretch,
    turn,
)
from microplastics.data.regions_colour import Colour, colour_of
from microplastics.data.regions_shrink import shrink
from microplastics.data.regions_stretch import Limits, stretch_limits
from microplastics.data.regions_tiff import SegmentCache, TiffPixels, is_readable
from microplastics.errors import UserError

if TYPE_CHECKING:
    import tifffile

__all__ = ["ImageRegions", "open_regions"]

logger = logging.getLogger(__name__)

_NO_LIMIT = 1 << 62
# Reduced pages and SubIFDs that are looked through for levels of a pyramid.
_MAX_LEVELS = 32
# Pages of a stack that are counted.
_MAX_PAGES = 10_000


class ImageRegions(ABC):
    """An open image; made by :func:`open_regions`. One thread may read ahead of another.

    Attributes:
        path: the file.
        width, height: in px, upright.
        other_pages: pages of the same size in the file, such as a stack's, which are not read.
    """

    path: str
    width: int
    height: int
    other_pages: int = 0

    def __init__(self, path: str, width: int, height: int):
        self.path, self.width, self.height = path, width, height
        self._lock = threading.RLock()

    def read(self, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        """Read a region.

        Args:
            x0, y0: left upper px.
            x1, y1: right lower px, not included.

        Returns:
            uint8 array of shape (y1 - y0, x1 - x0, 3), BGR, contiguous and writable: what
            ``read_image(path)[y0:y1, x0:x1]`` is.

        Raises:
            ValueError: the region is empty or not inside the image.
            UserError: the file is damaged there.
        """
        if not (0 <= x0 < x1 <= self.width and 0 <= y0 < y1 <= self.height):
            raise ValueError(
                f"({x0}, {y0}) to ({x1}, {y1}) is no region of {self.path}, which is "
                f"{self.width} x {self.height} px"
            )
        with self._lock, reading(self.path):
            return self._read(x0, y0, x1, y1)

    def overview(self, max_side: int) -> tuple[np.ndarray, float]:
        """Read the whole image shrunk: area means, of the fitting level where there are levels.

        Args:
            max_side: the longer side of the result, in px, at most.

        Returns:
            (uint8 array of shape (h, w, 3), BGR; px of the image per px of it along the longer
            side, 1.0 if the image is no longer than ``max_side``).

        Raises:
            UserError: the file is damaged.
        """
        if max_side < 1:
            raise ValueError(f"an overview of {max_side} px")
        side = max(self.width, self.height)
        with self._lock, reading(self.path):
            if side <= max_side:
                return self._read(0, 0, self.width, self.height), 1.0
            size = tuple(max(1, round(s * max_side / side)) for s in (self.width, self.height))
            small = self._shrunk(size)
            self.release()
            return small, side / max_side

    @abstractmethod
    def release(self) -> None:
        """Let go of unpacked pieces: what is read again is unpacked again."""

    @abstractmethod
    def _read(self, x0: int, y0: int, x1: int, y1: int) -> np.ndarray: ...

    @abstractmethod
    def _shrunk(self, size: tuple[int, int]) -> np.ndarray:
        """The whole image shrunk to (width, height) px."""


class WholeImage(ImageRegions):
    """An image that is decoded whole at the first read, and kept."""

    def __init__(self, path: str):
        super().__init__(path, *image_size(path, _NO_LIMIT))
        with reading(path):
            if not (self.width and self.height):
                raise ValueError("a side of 0 px")
        self._image: np.ndarray | None = None

    def _read(self, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        return self._decoded()[y0:y1, x0:x1].copy()

    def _shrunk(self, size: tuple[int, int]) -> np.ndarray:
        return cv2.resize(self._decoded(), size, interpolation=cv2.INTER_AREA)

    def release(self) -> None:
        """Keep the image: it would have to be decoded whole once more."""

    def _decoded(self) -> np.ndarray:
        if self._image is None:
            self._image = read_image(self.path, (self.width, self.height), _NO_LIMIT)
        return self._image


class TiffRegions(ImageRegions):
    """A TIFF that is read tile by tile or strip by strip."""

    def __init__(self, path: str, tiff: "tifffile.TiffFile", colour: Colour, max_segment: int):
        """
        Args:
            path: the file.
            tiff: the open file, whose first page is read.
            colour: how that page is read.
            max_segment: px that one tile or strip may have.
        """
        page = tiff.pages[0]
        orientation = page.tags.valueof(EXIF_ORIENTATION)
        self._orientation = orientation if orientation in range(2, 9) else 1
        self._swapped = self._orientation in AXES_SWAPPED
        self._tiff, self._colour, self._max_segment = tiff, colour, max_segment
        self._cache = SegmentCache()
        self._pixels = TiffPixels(path, tiff, page, self._cache, max_segment)
        self._limits: Limits = None
        self._limits_known = not colour.deep
        width, height = self._pixels.width, self._pixels.height
        super().__init__(path, *((height, width) if self._swapped else (width, height)))
        self.other_pages = 0 if page.is_svs else _count_alike(tiff)

    def _read(self, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        if self._orientation in (2, 3, 6, 7):
            x0, x1 = self.width - x1, self.width - x0
        if self._orientation in (3, 4, 7, 8):
            y0, y1 = self.height - y1, self.height - y0
        if self._swapped:
            x0, y0, x1, y1 = y0, x0, y1, x1
        bgr = turn(self._stored(self._pixels, x0, y0, x1, y1), self._orientation)
        return np.require(bgr, requirements=["C", "W", "O"])

    def release(self) -> None:
        """See :meth:`ImageRegions.release`."""
        with self._lock:
            self._cache.clear()

    def _stored(self, pixels: TiffPixels, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        """A region as it is stored, in BGR."""
        samples = pixels.read(x0, y0, x1, y1, self._colour.samples)
        if self._colour.deep:
            samples = self._stretched(samples)
        return self._colour.to_bgr(samples)

    def _stretched(self, samples: np.ndarray) -> np.ndarray:
        if not self._limits_known:
            pixels, chosen = self._pixels, self._colour.samples
            self._limits = stretch_limits(
                lambda: (pixels.read(*block, chosen) for block in pixels.blocks()), pixels.dtype
            )
            self._limits_known = True
        if self._limits is None:
            return np.zeros(samples.shape, np.uint8)
        if samples.dtype == np.uint16:
            return stretch(np.arange(65536), *self._limits)[samples]
        return stretch(samples.astype(np.float64), *self._limits)

    def _shrunk(self, size: tuple[int, int]) -> np.ndarray:
        if self._swapped:
            size = size[::-1]
        pixels = self._fitting_level(size)
        blocks = (
            (x0, y0, self._stored(pixels, x0, y0, x1, y1)) for x0, y0, x1, y1 in pixels.blocks()
        )
        shrunk = shrink(blocks, (pixels.width, pixels.height), size)
        return np.require(turn(shrunk, self._orientation), requirements=["C", "W", "O"])

    def _fitting_level(self, size: tuple[int, int]) -> TiffPixels:
        """The smallest level of the pyramid that is no smaller than (width, height) px."""
        best = self._pixels
        for page in _reduced_pages(self._tiff):
            width, height = page.imagewidth, page.imagelength
            if width < size[0] or height < size[1] or width >= best.width:
                continue
            # Levels are rounded to whole px, up or down.
            skew = abs(width * self._pixels.height - height * self._pixels.width)
            if skew > self._pixels.width + self._pixels.height:
                continue
            if _layout(page) != _layout(self._tiff.pages[0]) or not is_readable(page):
                continue
            best = TiffPixels(self.path, self._tiff, page, self._cache, self._max_segment)
        return best


def _layout(page: "tifffile.TiffPage") -> tuple:
    return (
        page.photometric,
        page.planarconfig,
        page.samplesperpixel,
        page.bitspersample,
        page.sampleformat,
        page.extrasamples,
    )


def _count_alike(tiff: "tifffile.TiffFile") -> int:
    """Pages after the first that are as large as it."""
    first = tiff.pages[0]
    return sum(
        (page.imagewidth, page.imagelength) == (first.imagewidth, first.imagelength)
        for page in islice(tiff.pages, 1, _MAX_PAGES)
    )


def _reduced_pages(tiff: "tifffile.TiffFile") -> Iterator["tifffile.TiffPage"]:
    """Pages that may be levels of a pyramid: SubIFDs, and pages marked as reduced."""
    first = tiff.pages[0]
    if first.pages is not None:
        yield from islice(first.pages, _MAX_LEVELS)
    for page in islice(tiff.pages, 1, _MAX_LEVELS + 1):
        # Aperio's levels follow each other without a mark.
        if page.is_reduced or first.is_svs:
            yield page


@contextlib.contextmanager
def open_regions(
    path: str | os.PathLike, *, max_pixels: int | None = None, allow_large: bool = False
) -> Iterator[ImageRegions]:
    """Open an image of any size, to be read by region.

    - TIFF, BigTIFF, OME-TIFF: the first page, tile by tile or strip by strip; its size is not
      limited. Unpacked pieces are kept within 64 MB (of striped images wider than 20,000 px or
      so: what a row of windows needs, 512 MB at most), so that windows that come row by row
      unpack each strip once. An orientation that swaps the sides turns strips into columns:
      then come column by column. A TIFF that is one compressed strip is unpacked whole.
    - Deep images are stretched over the whole image, as ``read_image`` does, which takes a
      reading of the whole file at first (two for 32 bits, four for 64), in bounded memory.
    - JPEG, PNG, BMP, … and TIFFs in rare colours (CIELAB, YCbCr without JPEG) are decoded whole
      at the first read and kept.

    Args:
        path: image file.
        max_pixels: of an image that must be decoded whole, and of a single tile or strip;
            ``data.images.MAX_PIXELS`` (178,956,970) if None.
        allow_large: lift that limit, for a file that is trusted.

    Raises:
        UserError: the file is missing, empty, cut off, no image, or too large.
    """
    path = os.fspath(path)
    limit = MAX_PIXELS if max_pixels is None else max_pixels
    with contextlib.ExitStack() as stack:
        regions: ImageRegions | None = _open_tiff(path, limit, allow_large, stack)
        if regions is None:
            regions = WholeImage(path)
            if regions.width * regions.height > limit and not allow_large:
                raise UserError(
                    f"{path} is {regions.width} x {regions.height} px and must be decoded whole, "
                    f"above the limit of {limit} pixels (a possible decompression bomb); save it "
                    "as a tiled TIFF, or give --allow-large if you trust it."
                )
        yield regions


def _open_tiff(
    path: str, limit: int, allow_large: bool, stack: contextlib.ExitStack
) -> TiffRegions | None:
    """None for what is no TIFF, or one that must be read whole."""
    with open_image(path, _NO_LIMIT) as image:
        if image is not None and image.format != "TIFF":
            return None
        import tifffile  # slow to import and seldom needed

        tiff = stack.enter_context(tifffile.TiffFile(path))
        page = tiff.pages[0]
        colour = colour_of(page, image) if is_readable(page) else None
        if colour is None:
            logger.debug("%s is read whole: %s", path, page)
            return None
        if allow_large:
            # A trusted image may be one large piece; a piece larger than its image is a bomb.
            padded = (page.imagewidth + 1024) * (page.imagelength + 1024)
            limit = max(limit, padded)
        return TiffRegions(path, tiff, colour, limit)
