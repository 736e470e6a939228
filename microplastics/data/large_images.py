"""Images of any size, read by region: the pixels of ``data.images.read_image`` there.

TIFFs of all kinds (BigTIFF, OME-TIFF, pyramids; tiles or strips) are read piece by piece, so
that memory does not grow with the image. Other formats know no pieces and are decoded whole.
"""

import contextlib
import io
import logging
import math
import os
import struct
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np
from PIL import Image

from microplastics.data.images import (
    AXES_SWAPPED,
    EXIF_ORIENTATION,
    MAX_PIXELS,
    MAX_SAMPLES,
    PERCENTILES,
    image_size,
    is_deep_tiff,
    open_image,
    read_image,
    reading,
    stretch,
    turn,
)
from microplastics.utils.errors import UserError

if TYPE_CHECKING:
    import tifffile

_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR = 0, 1, 2, 3, 5, 6
_JPEG_COMPRESSION = 7
_ASSOCIATED_ALPHA = 1
_BGR, _FIRST, _FOUR = slice(2, None, -1), slice(0, 1), slice(0, 4)


class Colour(NamedTuple):
    """Which samples of a pixel are read, and what is made of them.

    Attributes:
        samples: of a pixel, in the order in which ``to_bgr`` takes them.
        to_bgr: makes (h, w, 3) uint8 BGR of (h, w, samples); of a deep image after its stretch.
        deep: whether the samples must be stretched to 8 bits first.
    """

    samples: slice
    to_bgr: Callable[[np.ndarray], np.ndarray]
    deep: bool = False


def colour_of(page: Any, image: Image.Image | None) -> Colour | None:
    """How a page is read.

    Args:
        page: tifffile's page.
        image: the same page opened with Pillow, or None if Pillow does not know it.

    Returns:
        None where the file must be read whole: rare colour spaces, which Pillow converts.
    """
    if image is None or is_deep_tiff(image):
        return _deep(page)
    photometric, bits = int(page.photometric), page.bitspersample
    planar = int(page.planarconfig) == 2 and page.samplesperpixel > 1
    extras = tuple(page.extrasamples)
    packed_jpeg = int(page.compression) == _JPEG_COMPRESSION
    if photometric == _RGB and bits == 8 and page.samplesperpixel >= 3:
        if extras[:1] == (_ASSOCIATED_ALPHA,):
            return None if planar or len(extras) > 1 else Colour(_FOUR, _undo_alpha)
        return Colour(_BGR, _as_it_is)
    if photometric == _YCBCR and packed_jpeg and bits == 8 and page.samplesperpixel == 3:
        return None if planar else Colour(_BGR, _as_it_is)  # the decoder gives RGB
    if photometric == _CMYK and bits == 8 and not (planar or packed_jpeg or extras):
        return Colour(_FOUR, _cmyk)
    if (
        planar
        or _ASSOCIATED_ALPHA in extras
        or page.samplesperpixel > 2
        or bits not in (1, 2, 4, 8)
    ):
        return None
    if photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO):
        levels = np.arange(1 << bits) * (255 // ((1 << bits) - 1))
        if photometric == _WHITE_IS_ZERO:
            levels = levels[::-1]
        return Colour(_FIRST, _Lookup(np.repeat(levels[:, None], 3, axis=1)))
    if photometric == _PALETTE and page.colormap is not None:
        if page.colormap.shape != (3, 1 << bits):
            return None
        return Colour(_FIRST, _Lookup(page.colormap[::-1].T // 256))
    return None


def _deep(page: Any) -> Colour | None:
    photometric, samples = int(page.photometric), page.samplesperpixel
    if (
        photometric not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB)
        or samples > MAX_SAMPLES
        or page.dtype.kind not in "uif"
    ):
        return None
    deep = page.dtype != np.uint8
    if photometric == _RGB and samples >= 3:
        return Colour(_BGR, _as_it_is, deep)
    return Colour(_FIRST, _white_is_zero if photometric == _WHITE_IS_ZERO else _grey, deep)


class _Lookup:
    """Grey levels or numbers of colours to BGR by a table of (levels, 3)."""

    def __init__(self, table: np.ndarray):
        self._table = np.zeros((256, 3), np.uint8)
        self._table[: len(table)] = table

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        return self._table[samples[:, :, 0].view(np.uint8)]


def _as_it_is(samples: np.ndarray) -> np.ndarray:
    return samples.view(np.uint8)


def _grey(samples: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(np.ascontiguousarray(samples[:, :, 0]), cv2.COLOR_GRAY2BGR)


def _white_is_zero(samples: np.ndarray) -> np.ndarray:
    return 255 - _grey(samples)


def _undo_alpha(samples: np.ndarray) -> np.ndarray:
    size = samples.shape[1::-1]
    image = Image.frombytes("RGBA", size, samples.tobytes(), "raw", "RGBa")
    return np.asarray(image)[:, :, 2::-1]


def _cmyk(samples: np.ndarray) -> np.ndarray:
    image = Image.frombytes("CMYK", samples.shape[1::-1], samples.tobytes())
    return np.asarray(image.convert("RGB"))[:, :, ::-1]


Block = tuple[int, int, np.ndarray]


def shrink(
    blocks: Iterable[Block], size: tuple[int, int], shrunk_size: tuple[int, int]
) -> np.ndarray:
    """Average each pixel of the shrunk image over the area that it covers, parts of px included.

    Args:
        blocks: (x, y, uint8 array of shape (h, w, 3)) each, in px; they cover the image once, and
            none begins above the one before by more than their rows of blocks.
        size: (width, height) of the image, in px.
        shrunk_size: (width, height) of the result, in px; neither larger than the image's.

    Returns:
        uint8 array of shape (height, width, 3).
    """
    (width, height), (out_width, out_height) = size, shrunk_size
    out = np.empty((out_height, out_width, 3), np.uint8)
    # Sums of the rows that are not complete yet, and the number of px that they hold.
    sums: dict[int, np.ndarray] = {}
    missing: dict[int, int] = {}
    for x, y, block in blocks:
        rows, columns = block.shape[:2]
        top, down = _weights(y, y + rows, height, out_height)
        left, across = _weights(x, x + columns, width, out_width)
        part = (down @ block.reshape(rows, -1).astype(np.float32)).reshape(-1, columns, 3)
        part = np.einsum("ij,rjc->ric", across, part, optimize=True)
        for offset, values in enumerate(part):
            row = top + offset
            if row not in sums:
                sums[row] = np.zeros((out_width, 3), np.float32)
                first, last = row * height // out_height, -(-(row + 1) * height // out_height)
                missing[row] = (last - first) * width
            sums[row][left : left + len(values)] += values
            first = max(y, row * height // out_height)
            last = min(y + rows, -(-(row + 1) * height // out_height))
            missing[row] -= (last - first) * columns
            if missing[row] == 0:
                out[row] = np.rint(sums.pop(row))
                del missing[row]
    if sums:
        raise ValueError("the blocks do not cover the image")
    return out


def _weights(start: int, stop: int, full: int, out: int) -> tuple[int, np.ndarray]:
    """Shares of the px start … stop - 1 in the means of the px of the result that they meet.

    Returns:
        (first px of the result, (px of the result, stop - start) float32).
    """
    first, last = start * out // full, -(-stop * out // full)
    # In units of 1 / out px, so that all is whole numbers.
    result = np.arange(first, last)[:, None] * full
    image = np.arange(start, stop)[None] * out
    overlap = np.minimum(result + full, image + out) - np.maximum(result, image)
    return first, (np.maximum(overlap, 0) / full).astype(np.float32)


Limits = tuple[float, float] | None


def stretch_limits(blocks: Callable[[], Iterable[np.ndarray]], dtype: np.dtype) -> Limits:
    """Find what :func:`microplastics.data.images.to_uint8` makes 0 and 255, exactly.

    The values are never held together: their bits are read as integers of the same order, and
    the percentiles are narrowed down by 16 bits in each pass (a radix selection): one pass over
    the image for 8 and 16 bits, two for 32, four for 64.

    Args:
        blocks: gives the image in blocks of any shape, from its start at each call.
        dtype: of the blocks; unsigned, signed or float.

    Returns:
        (low, high), or None where no value is finite.
    """
    dtype = np.dtype(dtype)
    shift = dtype.itemsize * 8
    digits = min(16, shift)
    prefixes: list[int] = [0, 0]
    ranks: list[int] = [0, 0]
    smallest = largest = None
    while shift:
        shift -= digits
        counts = [np.zeros(1 << digits, np.int64) for _ in PERCENTILES]
        first = smallest is None
        total = 0
        for block in blocks():
            values = block.reshape(-1)
            if dtype.kind == "f":
                values = values[np.isfinite(values)]
            if values.size == 0:
                continue
            keys = _keys(values)
            if first:
                total += keys.size
                ends = int(keys.min()), int(keys.max())
                smallest = ends[0] if smallest is None else min(smallest, ends[0])
                largest = ends[1] if largest is None else max(largest, ends[1])
            _count(keys, prefixes, shift, digits, counts)
        if smallest is None:
            return None
        if first:
            ranks = [_rank(total, share, dtype) for share in PERCENTILES]
        for number, count in enumerate(counts if not first else [counts[0], counts[0]]):
            cumulated = np.cumsum(count)
            digit = int(np.searchsorted(cumulated, ranks[number]))
            ranks[number] -= int(cumulated[digit] - count[digit])
            prefixes[number] = prefixes[number] << digits | digit
    low, high = (_value(key, dtype) for key in prefixes)
    if low == high:
        low, high = _value(smallest, dtype), _value(largest, dtype)
    return low, high


def _count(
    keys: np.ndarray, prefixes: list[int], shift: int, digits: int, counts: list[np.ndarray]
) -> None:
    """Count the next digit of the keys that begin with each prefix, in place."""
    bits = keys.dtype.itemsize * 8
    mask = (1 << digits) - 1
    if shift + digits == bits:  # no prefix yet: one count serves both percentiles
        digit = keys >> keys.dtype.type(shift)
        counts[0] += np.bincount(digit.astype(np.int64), minlength=mask + 1)
        return
    heads = keys >> keys.dtype.type(shift + digits)
    for prefix, count in zip(prefixes, counts, strict=True):
        chosen = keys[heads == keys.dtype.type(prefix)]
        digit = (chosen >> keys.dtype.type(shift)) & keys.dtype.type(mask)
        count += np.bincount(digit.astype(np.int64), minlength=mask + 1)


def _rank(total: int, share: float, dtype: np.dtype) -> int:
    """Place, from 1, of a percentile among the sorted values, rounded as ``to_uint8`` does."""
    if dtype == np.uint16:
        return int(max(1, np.ceil(share * total)))
    # As numpy.quantile does: the inverted distribution function, one subtracted before rounding.
    return int(max(0, np.ceil(total * np.float64(share) - 1))) + 1


def _keys(values: np.ndarray) -> np.ndarray:
    """Unsigned integers in the order of the values."""
    unsigned = np.dtype(f"u{values.dtype.itemsize}")
    sign = unsigned.type(1 << (values.dtype.itemsize * 8 - 1))
    keys = np.ascontiguousarray(values).view(unsigned)
    if values.dtype.kind == "i":
        return keys ^ sign
    if values.dtype.kind == "f":
        return np.where(keys & sign, ~keys, keys | sign)
    return keys


def _value(key: int, dtype: np.dtype) -> float:
    bits = dtype.itemsize * 8
    sign = 1 << (bits - 1)
    if dtype.kind == "i":
        key ^= sign
    elif dtype.kind == "f":
        key = key ^ sign if key & sign else key ^ ((1 << bits) - 1)
    return float(np.array([key], np.dtype(f"u{dtype.itemsize}")).view(dtype)[0])


# Bytes of unpacked tiles or strips that are kept: a row of 1024 px windows of 20,000 px RGB.
CACHE_BYTES = 64 << 20
# A row of windows of a wider striped image may take so much, or its strips would be unpacked
# again for each window.
MAX_CACHE_BYTES = 512 << 20
# None, the CCITT ones, LZW, JPEG, Deflate (two numbers), PackBits, LZMA, Zstandard (two numbers),
# JPEG 2000 (four numbers), WebP.
_NONE, _JPEG, _WEBP = 1, 7, 50001
_JPEG_2000 = (33003, 33004, 33005, 34712)
_COMPRESSIONS = frozenset(
    (_NONE, 2, 3, 4, 5, _JPEG, 8, 32946, 32773, 34925, 34926, 50000, *_JPEG_2000, _WEBP)
)
# Frames in the head of a JPEG stream; the three left out are other markers.
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_BARE = frozenset((0x01, *range(0xD0, 0xDA)))
_BLOCK = 512


class SegmentCache:
    """Keeps the unpacked tiles and strips used last, within a number of bytes.

    The one used last is kept however large it is.

    Attributes:
        max_bytes: what all of them may take.
        nbytes: what they take.
    """

    def __init__(self, max_bytes: int = CACHE_BYTES):
        self.max_bytes = max_bytes
        self.nbytes = 0
        self._segments: OrderedDict[Hashable, np.ndarray] = OrderedDict()

    def get(self, key: Hashable, decode: Callable[[], np.ndarray]) -> np.ndarray:
        """The segment of that key, unpacked by ``decode`` if it is not kept."""
        segment = self._segments.get(key)
        if segment is None:
            segment = self._segments[key] = decode()
            self.nbytes += segment.nbytes
            while self.nbytes > self.max_bytes and len(self._segments) > 1:
                self.nbytes -= self._segments.popitem(last=False)[1].nbytes
        else:
            self._segments.move_to_end(key)
        return segment

    def clear(self) -> None:
        """Keep none."""
        self._segments.clear()
        self.nbytes = 0


class TiffPixels:
    """The samples of one page of a TIFF as they are stored: not turned, no colour converted.

    Only the tiles or strips that a region meets are read; of uncompressed strips only the rows.
    A page whose tiles or strips are compressed and larger than ``max_segment_pixels`` is refused.

    Attributes:
        width, height: of the page, in px.
        dtype: of the samples.
    """

    def __init__(
        self,
        path: str,
        tiff: "tifffile.TiffFile",
        page: "tifffile.TiffPage",
        cache: SegmentCache,
        max_segment_pixels: int,
    ):
        """
        Args:
            path: the file, for messages.
            tiff: the open file; its handle is used.
            page: a page that :func:`is_readable` accepts.
            cache: for the unpacked tiles and strips; pages may share it.
            max_segment_pixels: the most that one tile or strip may have.

        Raises:
            UserError: a tile or strip is too large.
            ValueError: the page is damaged, or the file ends before its pixels do.
        """
        self._path, self._file, self._page, self._cache = path, tiff.filehandle, page, cache
        self.width, self.height = page.imagewidth, page.imagelength
        self.dtype = np.dtype(page.dtype)
        self._planar = int(page.planarconfig) == 2 and page.samplesperpixel > 1
        self._samples = page.samplesperpixel
        if page.is_tiled:
            self._down, self._across = page.tilelength, page.tilewidth
        else:
            self._down, self._across = min(page.rowsperstrip, self.height), self.width
        if min(self.width, self.height, self._down, self._across, self._samples) < 1:
            raise ValueError("a side of 0 px")
        self._columns = math.ceil(self.width / self._across)
        self._rows = math.ceil(self.height / self._down)
        self._by_rows = _has_plain_rows(page)
        self._row_bytes = self.width * self.dtype.itemsize * (1 if self._planar else self._samples)
        if not self._by_rows:
            self._check_segment_size(max_segment_pixels)
        self._check_extent()

    def read(self, x0: int, y0: int, x1: int, y1: int, samples: slice) -> np.ndarray:
        """Read a region.

        Args:
            x0, y0, x1, y1: in px, inside the page, x1 and y1 not included.
            samples: which samples of a pixel, and in which order.

        Returns:
            (y1 - y0, x1 - x0, samples) array of :attr:`dtype`. Tiles and strips that the file
            leaves out hold the fill value of the tag GDAL_NODATA, or 0.

        Raises:
            ValueError, or whatever else a decoder raises: the file is damaged.
        """
        chosen = range(self._samples)[samples]
        out = np.empty((y1 - y0, x1 - x0, len(chosen)), self.dtype)
        self._widen_cache(y1 - y0)
        part = self._read_rows if self._by_rows else self._read_segments
        if self._planar:
            for channel, plane in enumerate(chosen):
                part(out[:, :, channel : channel + 1], plane, x0, y0, slice(None))
        else:
            part(out, 0, x0, y0, samples)
        return out

    def blocks(self) -> Iterator[tuple[int, int, int, int]]:
        """Regions that cover the page, row by row, such that each segment is unpacked once.

        Yields:
            x0, y0, x1, y1 in px; the sides are at most 512 px.
        """
        down, across = min(self._down, self.height), min(self._across, self.width)
        if not self._page.is_tiled:  # thin strips together, as far as the cache holds them
            row_bytes = self._row_bytes * (self._samples if self._planar else 1)
            rows = max(1, min(_BLOCK, self._cache.max_bytes // 2 // row_bytes))
            down *= max(1, rows // down)
        for top in range(0, self.height, down):
            for left in range(0, self.width, across):
                bottom, right = min(top + down, self.height), min(left + across, self.width)
                for y in range(top, bottom, _BLOCK):
                    for x in range(left, right, _BLOCK):
                        yield x, y, min(x + _BLOCK, right), min(y + _BLOCK, bottom)

    def _widen_cache(self, rows: int) -> None:
        """Have room for all strips that a row of windows of so many px meets."""
        if self._page.is_tiled or self._by_rows:
            return
        planes = self._samples if self._planar else 1
        wanted = (rows + 2 * self._down) * self._row_bytes * planes
        self._cache.max_bytes = max(self._cache.max_bytes, min(wanted, MAX_CACHE_BYTES))

    def _read_rows(self, out: np.ndarray, plane: int, x0: int, y0: int, samples: slice) -> None:
        """Fill (h, w, samples) from uncompressed strips."""
        page = self._page
        stored = self.dtype.newbyteorder(page.parent.byteorder)
        count = 1 if self._planar else self._samples
        pixel_bytes = count * self.dtype.itemsize
        for row in range(len(out)):
            strip, below = divmod(y0 + row, self._down)
            index = plane * self._rows + strip
            if self._is_missing(index):
                out[row] = page.nodata
                continue
            start = page.dataoffsets[index] + below * self._row_bytes + x0 * pixel_bytes
            data = self._bytes(start, out.shape[1] * pixel_bytes)
            out[row] = np.frombuffer(data, stored).reshape(-1, count)[:, samples]

    def _read_segments(self, out: np.ndarray, plane: int, x0: int, y0: int, samples: slice) -> None:
        """Fill (h, w, samples) from tiles, or from compressed strips."""
        down, across = self._down, self._across
        y1, x1 = y0 + out.shape[0], x0 + out.shape[1]
        for top in range(y0 // down * down, y1, down):
            for left in range(x0 // across * across, x1, across):
                rows = slice(max(top, y0), min(top + down, y1))
                columns = slice(max(left, x0), min(left + across, x1))
                target = out[rows.start - y0 : rows.stop - y0, columns.start - x0 :]
                target = target[:, : columns.stop - columns.start]
                index = (plane * self._rows + top // down) * self._columns + left // across
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
                    raise ValueError(f"its {self._name(index)} is too small")
                target[:] = piece[:, :, samples]

    def _decode(self, index: int) -> np.ndarray:
        page = self._page
        data = self._bytes(page.dataoffsets[index], page.databytecounts[index])
        headers = {"jpegtables": page.jpegtables}
        if page.jpegheader is not None:  # of NDPI, whose tiles are cut out of one JPEG stream
            headers["jpegheader"] = page.jpegheader
        else:
            self._check_coded_size(data, index)
        try:
            segment, _, _ = page.decode(data, index, **headers)
        except Exception as error:
            raise ValueError(f"its {self._name(index)}: {error}") from error
        return segment[0]

    def _bytes(self, offset: int, count: int) -> bytes:
        self._file.seek(offset)
        data = self._file.read(count)
        if len(data) != count:
            raise ValueError("the file ends before its pixels do")
        return data

    def _is_missing(self, index: int) -> bool:
        page = self._page
        # Some writers give no length of a single strip.
        return page.dataoffsets[index] == 0 or (
            page.databytecounts[index] == 0 and not (self._by_rows and self._rows == 1)
        )

    def _name(self, index: int) -> str:
        word = "tile" if self._page.is_tiled else "strip"
        return f"{word} {index + 1} of {len(self._page.dataoffsets)}"

    def _check_segment_size(self, limit: int) -> None:
        if self._down * self._across <= limit:
            return
        word = "tile" if self._page.is_tiled else "strip"
        raise UserError(
            f"{self._path} keeps its pixels in {word}s of {self._across} x {self._down} px, each "
            f"of which must be unpacked whole, above the limit of {limit} pixels (a possible "
            "decompression bomb); save it as a tiled TIFF, or give --allow-large if you trust it."
        )

    def _check_extent(self) -> None:
        """Each tile or strip is named, and lies inside the file."""
        page = self._page
        planes = self._samples if self._planar else 1
        count = self._rows * self._columns * planes
        if min(len(page.dataoffsets), len(page.databytecounts)) < count:
            raise ValueError(f"it names {len(page.dataoffsets)} of its {count} tiles or strips")
        for index in range(count):
            if self._is_missing(index):
                continue
            length = page.databytecounts[index]
            if self._by_rows:
                rows = min(self._down, self.height - index % self._rows * self._down)
                needed = rows * self._row_bytes
                if length < needed and self._rows > 1:
                    raise ValueError(f"its {self._name(index)} is too small")
                length = needed
            if page.dataoffsets[index] + length > self._file.size:
                raise ValueError(f"the file ends before its {self._name(index)} does")

    def _check_coded_size(self, data: bytes, index: int) -> None:
        """Refuse a picture in a tile that is larger than the tile: decoders would unpack it."""
        compression = int(self._page.compression)
        if compression == _JPEG:
            width, height, samples = _jpeg_size(data)
        elif compression in _JPEG_2000:
            width, height, samples = _jpeg_2000_size(data)
        elif compression == _WEBP:
            with Image.open(io.BytesIO(data), formats=("WEBP",)) as image:
                width, height, samples = *image.size, self._samples
        else:
            return
        # Coders pad to blocks at most.
        if width * height * samples > (self._across + 64) * (self._down + 64) * self._samples:
            raise ValueError(f"its {self._name(index)} holds {width} x {height} x {samples} values")


def is_readable(page: Any) -> bool:
    """Whether :class:`TiffPixels` can read a page of a TIFF."""
    return (
        page.dtype is not None
        and page.imagedepth == 1
        and page.tiledepth in (0, 1)
        and int(page.compression) in _COMPRESSIONS
        and isinstance(page.bitspersample, int)
        and 0 not in page.shaped
    )


def _has_plain_rows(page: Any) -> bool:
    return (
        not page.is_tiled
        and int(page.compression) == _NONE
        and page.predictor == 1
        and page.fillorder == 1
        and page.bitspersample == page.dtype.itemsize * 8
        and not page.is_subsampled
    )


def _jpeg_size(data: bytes) -> tuple[int, int, int]:
    """(width, height, samples) that the frame header of a JPEG states (ITU T.81, B.2.2)."""
    place = 2
    while place + 10 <= len(data):
        if data[place] != 0xFF:
            break
        marker = data[place + 1]
        if marker == 0xFF:  # padding
            place += 1
        elif marker in _JPEG_BARE:
            place += 2
        elif marker in _JPEG_FRAMES:
            height, width = (
                int.from_bytes(data[place + at : place + at + 2], "big") for at in (5, 7)
            )
            return width, height, data[place + 9]
        else:
            place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    raise ValueError("a JPEG without a frame")


def _jpeg_2000_size(data: bytes) -> tuple[int, int, int]:
    """(width, height, samples) that the head of a codestream states (ITU T.800, A.5.1)."""
    place = data.find(b"\xff\x4f\xff\x51")  # behind the boxes of a JP2 file, or at the start
    if place < 0 or len(data) < place + 42:
        raise ValueError("a JPEG 2000 without a head")
    right, bottom, left, top = struct.unpack_from(">4I", data, place + 8)
    return right - left, bottom - top, struct.unpack_from(">H", data, place + 40)[0]


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
