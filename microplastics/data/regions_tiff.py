"""The stored samples of one page of a TIFF, unpacked tile by tile or strip by strip."""

import io
import math
import struct
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from microplastics.errors import UserError

if TYPE_CHECKING:
    import tifffile

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
