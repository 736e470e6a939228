"""Images of any size, read by window.

Windows have the pixels of ``data.images.read_image``. TIFFs (BigTIFF, OME-TIFF, pyramids; tiles or
strips) are decoded piece by piece, so memory does not grow with the image. Other formats are
decoded whole.
"""

import contextlib
import io
import logging
import math
import os
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np
from PIL import Image

from microplastics.data.images import (
    AXES_SWAPPED,
    BLACK_IS_ZERO,
    EXIF_ORIENTATION,
    MAX_PIXELS,
    MAX_SAMPLES,
    RGB,
    WHITE_IS_ZERO,
    check_complete,
    image_size,
    is_deep_tiff,
    limits_of_counts,
    open_image,
    read_image,
    reading,
    stretch,
    stretch_limits,
    turn,
)
from microplastics.utils.errors import UserError

if TYPE_CHECKING:
    import tifffile

logger = logging.getLogger(__name__)

# Bytes of decoded tiles or strips that are kept: a row of 1024 px windows of 20,000 px RGB.
CACHE_BYTES = 64 << 20
# Limit for wider images of strips, which a row of windows would decode again for each window.
_MAX_CACHE_BYTES = 512 << 20
_WINDOW_ROWS = 1024
_NO_LIMIT = 1 << 62
# Reduced pages and SubIFDs that are searched for levels of a pyramid.
_MAX_LEVELS = 32
# Pages of a stack that are counted.
_MAX_PAGES = 10_000
# Values from which the percentiles of a 32 or 64-bit image are computed.
_SAMPLED_VALUES = 4_000_000
_BAND_BYTES = 12 << 20

_YCBCR, _ASSOCIATED_ALPHA = 6, 1
_NONE, _JPEG = 1, 7
# By how Pillow names them: JPEG, JPEG 2000 (four numbers), WebP.
_CODED = {7: "JPEG", 50001: "WEBP", **dict.fromkeys((33003, 33004, 33005, 34712), "JPEG2000")}
# None, CCITT, LZW, Deflate (two numbers), PackBits, LZMA, Zstandard (two numbers).
_COMPRESSIONS = {_NONE, 2, 3, 4, 5, 8, 32946, 32773, 34925, 34926, 50000, *_CODED}


class ImageReader(ABC):
    """An open image; made by :func:`open_reader`. Threads may share it.

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
        """Read a window.

        Args:
            x0, y0: upper left px.
            x1, y1: lower right px, exclusive.

        Returns:
            uint8 array of shape (y1 - y0, x1 - x0, 3), BGR, contiguous and writable: the pixels of
            ``read_image(path)[y0:y1, x0:x1]``.

        Raises:
            ValueError: the window is empty or not inside the image.
            UserError: ``image_invalid``, the file is damaged there.
        """
        if not (0 <= x0 < x1 <= self.width and 0 <= y0 < y1 <= self.height):
            raise ValueError(
                f"({x0}, {y0}) to ({x1}, {y1}) is not a window of {self.path}, which is "
                f"{self.width} x {self.height} px"
            )
        with self._lock, reading(self.path):
            return self._read(x0, y0, x1, y1)

    def overview(self, max_side: int) -> tuple[np.ndarray, float]:
        """Read the whole image downscaled by area means, from a level of a pyramid if there is one.

        Args:
            max_side: largest side of the result in px.

        Returns:
            (uint8 array of shape (h, w, 3), BGR; px of the image per px of the result along the
            longer side, 1.0 if the image is not longer than ``max_side``).

        Raises:
            UserError: ``image_invalid``, the file is damaged.
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
        """Free decoded pieces; reading them again decodes them again."""

    @abstractmethod
    def _read(self, x0: int, y0: int, x1: int, y1: int) -> np.ndarray: ...

    @abstractmethod
    def _shrunk(self, size: tuple[int, int]) -> np.ndarray:
        """Return the whole image resized to (width, height) px."""


class WholeImage(ImageReader):
    """An image that is decoded whole at the first read, and kept."""

    def __init__(self, path: str):
        super().__init__(path, *image_size(path, _NO_LIMIT))
        with reading(path):
            if not (self.width and self.height):
                raise ValueError("a side of 0 px")
        self.decoded: np.ndarray | None = None

    def _read(self, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        return self._decode()[y0:y1, x0:x1].copy()

    def _shrunk(self, size: tuple[int, int]) -> np.ndarray:
        return cv2.resize(self._decode(), size, interpolation=cv2.INTER_AREA)

    def release(self) -> None:
        """Keep the image, which would have to be decoded whole again."""

    def _decode(self) -> np.ndarray:
        if self.decoded is None:
            self.decoded = read_image(self.path, (self.width, self.height), _NO_LIMIT)
        return self.decoded


class Colour(NamedTuple):
    """How stored samples become BGR.

    Attributes:
        samples: which samples of a pixel, as BGR or grey.
        inverted: 0 is white.
        deep: the samples must be stretched to 8 bits.
    """

    samples: slice
    inverted: bool = False
    deep: bool = False

    def to_bgr(self, samples: np.ndarray) -> np.ndarray:
        """Return (h, w, 3) uint8 BGR of (h, w, samples) uint8."""
        if samples.shape[2] == 1:
            samples = cv2.cvtColor(np.ascontiguousarray(samples[:, :, 0]), cv2.COLOR_GRAY2BGR)
        return 255 - samples if self.inverted else samples


def _colour_of(page: "tifffile.TiffPage", image: Image.Image | None) -> Colour | None:
    """Return how a page is read; None if Pillow must convert it whole (rare colours).

    Args:
        page: page of a TIFF.
        image: the same page opened with Pillow, or None if Pillow does not know it.
    """
    photometric, samples = int(page.photometric), page.samplesperpixel
    bgr, grey = slice(2, None, -1), slice(0, 1)
    if image is None or is_deep_tiff(image):
        known = photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB) and samples <= MAX_SAMPLES
        if not known or page.dtype.kind not in "uif":
            return None
        is_rgb = photometric == RGB and samples >= 3
        return Colour(
            bgr if is_rgb else grey,
            photometric == WHITE_IS_ZERO and not is_rgb,
            page.dtype != np.uint8,
        )
    if page.bitspersample != 8 or _ASSOCIATED_ALPHA in page.extrasamples:
        return None
    if photometric == RGB and samples >= 3:
        return Colour(bgr)
    if photometric == _YCBCR and int(page.compression) == _JPEG and samples == 3:
        return Colour(bgr)  # the decoder gives RGB
    if photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO) and samples <= 2:
        return Colour(grey, photometric == WHITE_IS_ZERO)
    return None


class _SegmentCache:
    """The decoded tiles and strips used last, within a number of bytes; at least the latest."""

    def __init__(self) -> None:
        self.max_bytes = CACHE_BYTES
        self._nbytes = 0
        self._segments: OrderedDict[Hashable, np.ndarray] = OrderedDict()

    def get(self, key: Hashable, decode: Callable[[], np.ndarray]) -> np.ndarray:
        """Return the segment of a key, decoded if it is not kept."""
        if key not in self._segments:
            self._segments[key] = decode()
            self._nbytes += self._segments[key].nbytes
            while self._nbytes > self.max_bytes and len(self._segments) > 1:
                self._nbytes -= self._segments.popitem(last=False)[1].nbytes
        self._segments.move_to_end(key)
        return self._segments[key]

    def clear(self) -> None:
        """Drop all segments."""
        self._segments.clear()
        self._nbytes = 0


class _TiffPage:
    """The samples of one page of a TIFF as stored: not turned, colours not converted.

    Only the tiles or strips of a window are read; of uncompressed strips only its rows.

    Attributes:
        width, height: of the page, in px.
        dtype: of the samples.
        row_bytes: of one row of samples.
    """

    def __init__(
        self,
        path: str,
        tiff: "tifffile.TiffFile",
        page: "tifffile.TiffPage",
        cache: _SegmentCache,
        max_segment_pixels: int,
    ):
        """
        Args:
            path: the file, for messages.
            tiff: the open file; its handle is used.
            page: a page that :func:`_is_readable` accepts.
            cache: for the decoded tiles and strips; pages may share it.
            max_segment_pixels: limit of one tile or strip.

        Raises:
            UserError: ``image_too_large``, a compressed tile or strip is above the limit.
            ValueError: the page is damaged, or the file ends before its pixels do.
        """
        self._file, self._page, self._cache = tiff.filehandle, page, cache
        self.width, self.height = page.imagewidth, page.imagelength
        self.dtype = np.dtype(page.dtype)
        self._down, self._across = min(page.rowsperstrip, self.height), self.width
        if page.is_tiled:
            self._down, self._across = page.tilelength, page.tilewidth
        if min(self.width, self.height, self._down, self._across, page.samplesperpixel) < 1:
            raise ValueError("a side of 0 px")
        self._columns = math.ceil(self.width / self._across)
        self._count = self._columns * math.ceil(self.height / self._down)
        self._pixel_bytes = self.dtype.itemsize * page.samplesperpixel
        self.row_bytes = self.width * self._pixel_bytes
        self._by_rows = _has_plain_rows(page)
        if not self._by_rows and self._down * self._across > max_segment_pixels:
            raise UserError(
                f"{path} is stored in {'tiles' if page.is_tiled else 'strips'} of {self._across} x "
                f"{self._down} px, each decoded whole, above the limit of {max_segment_pixels} "
                "pixels (a possible decompression bomb); save it as a tiled TIFF, or give "
                "--allow-large if you trust it.",
                code="image_too_large",
            )
        listed = min(len(page.dataoffsets), len(page.databytecounts))
        if listed < self._count:
            raise ValueError(f"it lists {listed} of its {self._count} tiles or strips")
        check_complete(page, self._file.size)

    def cache_bytes(self) -> int:
        """Bytes of all pieces that a row of windows meets."""
        rows = 2 * self._down + (0 if self._page.is_tiled else _WINDOW_ROWS)
        return CACHE_BYTES if self._by_rows else min(rows * self.row_bytes, _MAX_CACHE_BYTES)

    def read(self, x0: int, y0: int, x1: int, y1: int, samples: slice) -> np.ndarray:
        """Read a window.

        Args:
            x0, y0, x1, y1: in px, inside the page, x1 and y1 exclusive.
            samples: which samples of a pixel, and in which order.

        Returns:
            (y1 - y0, x1 - x0, samples) array of :attr:`dtype`. Tiles and strips missing in the
            file are filled with the tag GDAL_NODATA, or 0.

        Raises:
            ValueError, or any error of a decoder: the file is damaged.
        """
        chosen = len(range(self._page.samplesperpixel)[samples])
        out = np.empty((y1 - y0, x1 - x0, chosen), self.dtype)
        if self._by_rows:
            for row, line in enumerate(out, y0):
                self._read_row(line, x0, row, samples)
            return out
        down, across = self._down, self._across
        for top in range(y0 // down * down, y1, down):
            for left in range(x0 // across * across, x1, across):
                rows = slice(max(top, y0), min(top + down, y1))
                columns = slice(max(left, x0), min(left + across, x1))
                target = out[rows.start - y0 : rows.stop - y0, columns.start - x0 :]
                target = target[:, : columns.stop - columns.start]
                index = top // down * self._columns + left // across
                if self._is_missing(index):
                    target[:] = self._page.nodata
                    continue
                segment = self._cache.get(
                    (self._page.offset, index), lambda index=index: self._decode(index)
                )
                piece = segment[
                    rows.start - top : rows.stop - top, columns.start - left : columns.stop - left
                ]
                if piece.shape[:2] != target.shape[:2]:
                    raise ValueError("a tile or strip is too small")
                target[:] = piece[:, :, samples]
        return out

    def values(self, samples: slice) -> Iterator[np.ndarray]:
        """Yield all samples of the page, each piece once."""
        if self._by_rows:
            rows = max(1, _BAND_BYTES // self.row_bytes)
            for y in range(0, self.height, rows):
                yield self.read(0, y, self.width, min(y + rows, self.height), samples)
            return
        for index in range(self._count):
            top = index // self._columns * self._down
            left = index % self._columns * self._across
            shape = (min(self._down, self.height - top), min(self._across, self.width - left))
            if self._is_missing(index):
                fill = np.full((*shape, self._page.samplesperpixel), self._page.nodata, self.dtype)
                yield fill[:, :, samples]
            else:
                yield self._decode(index)[: shape[0], : shape[1], samples]

    def _read_row(self, line: np.ndarray, x0: int, y: int, samples: slice) -> None:
        """Fill (w, samples) from an uncompressed strip."""
        strip, below = divmod(y, self._down)
        if self._is_missing(strip):
            line[:] = self._page.nodata
            return
        start = self._page.dataoffsets[strip] + below * self.row_bytes + x0 * self._pixel_bytes
        data = self._bytes(start, len(line) * self._pixel_bytes)
        stored = self.dtype.newbyteorder(self._page.parent.byteorder)
        line[:] = np.frombuffer(data, stored).reshape(len(line), -1)[:, samples]

    def _decode(self, index: int) -> np.ndarray:
        page = self._page
        data = self._bytes(page.dataoffsets[index], page.databytecounts[index])
        headers = {"jpegtables": page.jpegtables}
        if page.jpegheader is not None:  # of NDPI, whose tiles are cut out of one JPEG stream
            headers["jpegheader"] = page.jpegheader
        elif int(page.compression) in _CODED:
            self._check_coded_size(data)
        return page.decode(data, index, **headers)[0][0]

    def _check_coded_size(self, data: bytes) -> None:
        """Refuse coded data of a larger image than its tile, which would be decoded whole."""
        with Image.open(io.BytesIO(data), formats=(_CODED[int(self._page.compression)],)) as image:
            # Coders pad to blocks.
            if image.width * image.height > (self._across + 64) * (self._down + 64):
                raise ValueError(f"a tile contains {image.width} x {image.height} px")

    def _bytes(self, offset: int, count: int) -> bytes:
        self._file.seek(offset)
        data = self._file.read(count)
        if len(data) != count:
            raise ValueError("the file ends before its pixels do")
        return data

    def _is_missing(self, index: int) -> bool:
        # Some writers give no length of a single strip.
        unknown = self._by_rows and self._count == 1
        lengths = self._page.databytecounts
        return self._page.dataoffsets[index] == 0 or (lengths[index] == 0 and not unknown)


def _is_readable(page: "tifffile.TiffPage") -> bool:
    """Return whether :class:`_TiffPage` can read a page of a TIFF."""
    return (
        page.dtype is not None
        and page.imagedepth == 1
        and page.tiledepth in (0, 1)
        and int(page.compression) in _COMPRESSIONS
        and isinstance(page.bitspersample, int)
        and (int(page.planarconfig) == 1 or page.samplesperpixel == 1)
        and 0 not in page.shaped
    )


def _has_plain_rows(page: "tifffile.TiffPage") -> bool:
    return (
        not page.is_tiled
        and int(page.compression) == _NONE
        and page.predictor == 1
        and page.fillorder == 1
        and page.bitspersample == page.dtype.itemsize * 8
        and not page.is_subsampled
    )


class TiffReader(ImageReader):
    """A TIFF that is read tile by tile or strip by strip."""

    def __init__(self, path: str, tiff: "tifffile.TiffFile", colour: Colour, max_segment: int):
        """
        Args:
            path: the file.
            tiff: the open file, whose first page is read.
            colour: how that page is read.
            max_segment: limit of px of one tile or strip.
        """
        page = tiff.pages[0]
        orientation = page.tags.valueof(EXIF_ORIENTATION)
        self._orientation = orientation if orientation in range(2, 9) else 1
        self._swapped = self._orientation in AXES_SWAPPED
        self._tiff, self._colour, self._max_segment = tiff, colour, max_segment
        self._cache = _SegmentCache()
        self._pixels = _TiffPage(path, tiff, page, self._cache, max_segment)
        self._cache.max_bytes = max(CACHE_BYTES, self._pixels.cache_bytes())
        self._limits: tuple[float, float] | None = None
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
        """See :meth:`ImageReader.release`."""
        with self._lock:
            self._cache.clear()

    def _stored(self, pixels: _TiffPage, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        """Return a window as stored, in BGR."""
        samples = pixels.read(x0, y0, x1, y1, self._colour.samples)
        if self._colour.deep:
            if not self._limits_known:
                self._limits, self._limits_known = self._find_limits(), True
            samples = stretch(samples, self._limits)
        return self._colour.to_bgr(samples.view(np.uint8))

    def _find_limits(self) -> tuple[float, float] | None:
        """Find the limits of :func:`stretch`: exact for 16 bits, else of evenly sampled values."""
        pixels, samples = self._pixels, self._colour.samples
        blocks = (block.reshape(-1) for block in pixels.values(samples))
        if pixels.dtype == np.uint16:
            return limits_of_counts(sum(np.bincount(block, minlength=65536) for block in blocks))
        values = pixels.width * pixels.height * len(range(MAX_SAMPLES)[samples])
        step = values // _SAMPLED_VALUES | 1  # odd, so that the samples do not form columns
        return stretch_limits(np.concatenate([block[::step] for block in blocks]))

    def _shrunk(self, size: tuple[int, int]) -> np.ndarray:
        width, height = size[::-1] if self._swapped else size
        pixels = self._fitting_level((width, height))
        shrunk = np.empty((height, width, 3), np.uint8)
        rows = max(1, _BAND_BYTES // (3 * pixels.width) * height // pixels.height)
        for top in range(0, height, rows):
            bottom = min(top + rows, height)
            # In units of 1 / height px of the image, so that all numbers are whole.
            first, last = top * pixels.height // height, -(-bottom * pixels.height // height)
            band = self._stored(pixels, 0, first, pixels.width, last)
            band = cv2.resize(band, (width, last - first), interpolation=cv2.INTER_AREA)
            starts = np.arange(top, bottom)[:, None] * pixels.height
            stored = np.arange(first, last)[None] * height
            overlap = np.minimum(starts + pixels.height, stored + height)
            overlap = np.maximum(overlap - np.maximum(starts, stored), 0) / pixels.height
            means = overlap.astype(np.float32) @ band.reshape(last - first, -1).astype(np.float32)
            shrunk[top:bottom] = np.rint(means).reshape(bottom - top, width, 3)
        return np.require(turn(shrunk, self._orientation), requirements=["C", "W", "O"])

    def _fitting_level(self, size: tuple[int, int]) -> _TiffPage:
        """Return the smallest level of the pyramid that is not smaller than (width, height) px."""
        best = self._pixels
        for page in _reduced_pages(self._tiff):
            width, height = page.imagewidth, page.imagelength
            if width < size[0] or height < size[1] or width >= best.width:
                continue
            # Levels are rounded to whole px, up or down.
            skew = abs(width * self._pixels.height - height * self._pixels.width)
            if skew > self._pixels.width + self._pixels.height:
                continue
            if _layout(page) != _layout(self._tiff.pages[0]) or not _is_readable(page):
                continue
            best = _TiffPage(self.path, self._tiff, page, self._cache, self._max_segment)
        return best


def _layout(page: "tifffile.TiffPage") -> tuple:
    return page.photometric, page.samplesperpixel, page.bitspersample, page.sampleformat


def _count_alike(tiff: "tifffile.TiffFile") -> int:
    """Count the pages after the first that have its size."""
    first = tiff.pages[0]
    return sum(
        (page.imagewidth, page.imagelength) == (first.imagewidth, first.imagelength)
        for page in islice(tiff.pages, 1, _MAX_PAGES)
    )


def _reduced_pages(tiff: "tifffile.TiffFile") -> Iterator["tifffile.TiffPage"]:
    """Yield pages that may be levels of a pyramid: SubIFDs, and pages marked as reduced."""
    first = tiff.pages[0]
    if first.pages is not None:
        yield from islice(first.pages, _MAX_LEVELS)
    for page in islice(tiff.pages, 1, _MAX_LEVELS + 1):
        # Aperio's levels are not marked.
        if page.is_reduced or first.is_svs:
            yield page


@contextlib.contextmanager
def open_reader(
    path: str | os.PathLike, *, max_pixels: int | None = None, allow_large: bool = False
) -> Iterator[ImageReader]:
    """Open an image of any size, to be read by window.

    - TIFF, BigTIFF, OME-TIFF: the first page, tile by tile or strip by strip, of any size. Decoded
      pieces are kept within 64 MB (of striped images wider than 20,000 px or so as much as a row
      of windows needs, 512 MB at most), so that windows read row by row decode each strip once.
      With an orientation that swaps the sides, read column by column. A TIFF that is one
      compressed strip is decoded whole.
    - Deep images are stretched as a whole, as by ``read_image``, which reads the file once in
      bounded memory. The percentiles are exact for unsigned 16 bits; otherwise they are
      those of up to about 4,000,000 evenly spaced values.
    - JPEG, PNG, BMP, … and rare TIFFs (palette, CMYK, CIELAB, 1 to 4 bits, YCbCr without JPEG,
      premultiplied alpha, channels in separate planes) are decoded whole at the first read and
      kept.

    Args:
        path: image file.
        max_pixels: limit for an image decoded whole, and for a single tile or strip;
            ``data.images.MAX_PIXELS`` (178,956,970) if None.
        allow_large: lift that limit for a trusted file.

    Raises:
        UserError: ``file_missing``, ``image_invalid`` or ``image_too_large``.
    """
    path = os.fspath(path)
    limit = MAX_PIXELS if max_pixels is None else max_pixels
    with contextlib.ExitStack() as stack:
        reader: ImageReader | None = _open_tiff(path, limit, allow_large, stack)
        if reader is None:
            reader = WholeImage(path)
            if reader.width * reader.height > limit and not allow_large:
                raise UserError(
                    f"{path} is {reader.width} x {reader.height} px and must be decoded whole, "
                    f"above the limit of {limit} pixels (a possible decompression bomb); save it "
                    "as a tiled TIFF, or give --allow-large if you trust it.",
                    code="image_too_large",
                )
        yield reader


def _open_tiff(
    path: str, limit: int, allow_large: bool, stack: contextlib.ExitStack
) -> TiffReader | None:
    """Return None for other formats, and for TIFFs that must be decoded whole."""
    with open_image(path, _NO_LIMIT) as image:
        if image is not None and image.format != "TIFF":
            return None
        import tifffile  # slow to import and seldom needed

        tiff = stack.enter_context(tifffile.TiffFile(path))
        page = tiff.pages[0]
        colour = _colour_of(page, image) if _is_readable(page) else None
        if colour is None:
            logger.debug("%s is read whole: %s", path, page)
            return None
        if allow_large:
            # A trusted image may be one large piece; a piece larger than its image is a bomb.
            limit = max(limit, (page.imagewidth + 1024) * (page.imagelength + 1024))
        return TiffReader(path, tiff, colour, limit)
