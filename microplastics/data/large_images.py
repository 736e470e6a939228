"""Images of any size, read by window.

Windows have the pixels of ``data.images.read_image``. TIFFs (BigTIFF, OME-TIFF, pyramids) are
decoded tile by tile or strip by strip, so memory does not grow with the image. Other formats are
decoded whole.
"""

import contextlib
import functools
import io
import logging
import os
import threading
from collections.abc import Iterator
from itertools import chain, islice
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
    NO_LIMIT,
    RGB,
    WHITE_IS_ZERO,
    check_complete,
    image_header,
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
# Reduced pages and SubIFDs that are searched for levels of a pyramid.
_MAX_LEVELS = 32
# Pages of a stack that are counted.
_MAX_PAGES = 10_000
# Values from which the percentiles of a 32 or 64-bit image are computed.
_SAMPLED_VALUES = 4_000_000
_BAND_BYTES = 12 << 20

_YCBCR, _JPEG, _ASSOCIATED_ALPHA = 6, 7, 1
# By how Pillow names them: JPEG, JPEG 2000 (four numbers), WebP.
_CODED = {7: "JPEG", 50001: "WEBP", **dict.fromkeys((33003, 33004, 33005, 34712), "JPEG2000")}
# None, CCITT, LZW, Deflate (two numbers), PackBits, LZMA, Zstandard (two numbers).
_COMPRESSIONS = {1, 2, 3, 4, 5, 8, 32946, 32773, 34925, 34926, 50000, *_CODED}


class ImageReader:
    """An open image; made by :func:`open_reader`. Threads may share it.

    It is decoded whole at the first read, and kept.

    Attributes:
        path: the file.
        width, height: in px, upright.
        other_pages: pages of the same size in the file, such as a stack's, which are not read.
        decoded: (height, width, 3) uint8 BGR after the first read, else None.
    """

    other_pages: int = 0

    def __init__(self, path: str, width: int, height: int):
        self.path, self.width, self.height = path, width, height
        self.decoded: np.ndarray | None = None
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
        side = max(self.width, self.height)
        with self._lock, reading(self.path):
            if side <= max_side:
                return self._read(0, 0, self.width, self.height), 1.0
            size = tuple(max(1, round(s * max_side / side)) for s in (self.width, self.height))
            return self._shrunk(size), side / max_side

    def release(self) -> None:
        """Free decoded pieces of a TIFF; reading them again decodes them again."""

    def _read(self, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        return self._whole()[y0:y1, x0:x1].copy()

    def _shrunk(self, size: tuple[int, int]) -> np.ndarray:
        """Return the whole image resized to (width, height) px."""
        return cv2.resize(self._whole(), size, interpolation=cv2.INTER_AREA)

    def _whole(self) -> np.ndarray:
        if self.decoded is None:
            self.decoded = read_image(self.path, (self.width, self.height), NO_LIMIT)
        return self.decoded


class _Colour(NamedTuple):
    """How stored samples become BGR."""

    samples: slice  # of a pixel, as BGR or grey
    inverted: bool  # 0 is white
    deep: bool  # to be stretched to 8 bits


def _colour_of(page: "tifffile.TiffPage", image: Image.Image | None) -> _Colour | None:
    """Return how a page, also opened with Pillow, is read by window; None for rare kinds."""
    photometric, samples = int(page.photometric), page.samplesperpixel
    compression = int(page.compression)
    is_deep = image is None or is_deep_tiff(image)
    is_ycbcr = photometric == _YCBCR and compression == _JPEG and samples == 3 and not is_deep
    is_rgb = is_ycbcr or (photometric == RGB and samples >= 3)  # the decoder turns YCbCr into RGB
    is_known = (
        (is_ycbcr or photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB))
        and samples <= MAX_SAMPLES
        and (is_deep or (page.bitspersample == 8 and _ASSOCIATED_ALPHA not in page.extrasamples))
    )
    is_readable = (
        page.dtype is not None
        and page.dtype.kind in "uif"
        and isinstance(page.bitspersample, int)
        and compression in _COMPRESSIONS
        and (int(page.planarconfig) == 1 or samples == 1)
        and page.imagedepth == 1
        and page.tiledepth in (0, 1)
        and 0 not in page.shaped
    )
    if not (is_known and is_readable):
        return None
    return _Colour(
        slice(2, None, -1) if is_rgb else slice(0, 1),
        photometric == WHITE_IS_ZERO,
        is_deep and page.dtype != np.uint8,
    )


class _TiffPage:
    """The samples of one page of a TIFF as stored: not turned, colours not converted.

    Only the tiles or strips of a window are read; if they are not compressed, only its pixels.
    """

    def __init__(self, path: str, page: "tifffile.TiffPage", max_piece_pixels: int):
        self._file, self._page = page.parent.filehandle, page
        self.width, self.height = page.imagewidth, page.imagelength
        self.dtype = np.dtype(page.dtype)
        # An uncompressed image, often a single strip, can be read from any pixel on.
        self._is_plain = not page.is_tiled and page.is_final and page.dataoffsets[0] > 0
        self._down, self._across = min(page.rowsperstrip, self.height), self.width
        if page.is_tiled:
            self._down, self._across = page.tilelength, page.tilewidth
        if self._down * self._across > max_piece_pixels and not self._is_plain:
            raise UserError(
                f"{path} is stored in {'tiles' if page.is_tiled else 'strips'} of {self._across} x "
                f"{self._down} px, each decoded whole, above the limit of {max_piece_pixels} "
                "pixels (a possible decompression bomb); save it as a tiled TIFF, or give "
                "--allow-large if you trust it.",
                code="image_too_large",
            )
        check_complete(page, self._file.size)
        self._pixel_bytes = self.dtype.itemsize * page.samplesperpixel
        self.row_bytes = self.width * self._pixel_bytes
        # All pieces that a row of windows meets.
        rows = 2 * self._down + (0 if page.is_tiled else _WINDOW_ROWS)
        cache_bytes = max(CACHE_BYTES, min(rows * self.row_bytes, _MAX_CACHE_BYTES))
        pieces = cache_bytes // (self._down * self._across * self._pixel_bytes)
        self._piece = functools.lru_cache(max(pieces, 1))(self._decode)

    def release(self) -> None:
        """Free the decoded pieces."""
        self._piece.cache_clear()

    def read(self, x0: int, y0: int, x1: int, y1: int, samples: slice) -> np.ndarray:
        """Read (y1 - y0, x1 - x0, samples) of a window; missing pieces have GDAL_NODATA, or 0."""
        chosen = len(range(self._page.samplesperpixel)[samples])
        out = np.empty((y1 - y0, x1 - x0, chosen), self.dtype)
        if self._is_plain:
            stored = self.dtype.newbyteorder(self._page.parent.byteorder)
            for row, line in enumerate(out, y0):
                start = self._page.dataoffsets[0] + row * self.row_bytes + x0 * self._pixel_bytes
                values = self._file.read_array(
                    stored, len(line) * self._page.samplesperpixel, start
                )
                line[:] = values.reshape(len(line), -1)[:, samples]
            return out
        for top in range(y0 // self._down * self._down, y1, self._down):
            for left in range(x0 // self._across * self._across, x1, self._across):
                piece = self._piece(top, left)
                upper, lower = max(top, y0), min(top + self._down, y1)
                start, end = max(left, x0), min(left + self._across, x1)
                part = piece[upper - top : lower - top, start - left : end - left, samples]
                out[upper - y0 : lower - y0, start - x0 : end - x0] = part
        return out

    def bands(self, samples: slice) -> Iterator[np.ndarray]:
        """Yield all samples of the page in bands of few bytes, from top to bottom."""
        rows = max(1, _BAND_BYTES // self.row_bytes)
        for y in range(0, self.height, rows):
            yield self.read(0, y, self.width, min(y + rows, self.height), samples)

    def _decode(self, top: int, left: int) -> np.ndarray:
        """Return the (h, w, samples) piece with this upper left px."""
        page = self._page
        index = top // self._down * -(-self.width // self._across) + left // self._across
        data = None
        if page.dataoffsets[index] and page.databytecounts[index]:
            self._file.seek(page.dataoffsets[index])
            data = self._file.read(page.databytecounts[index])
            if int(page.compression) in _CODED and page.jpegheader is None:
                self._check_coded_size(data)
        tables = {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader}
        piece, _, shape = page.decode(data, index, **tables)
        return np.full(shape[1:], page.nodata, self.dtype) if piece is None else piece[0]

    def _check_coded_size(self, data: bytes) -> None:
        """Refuse coded data of a larger image than its tile, which would be decoded whole."""
        with Image.open(io.BytesIO(data), formats=(_CODED[int(self._page.compression)],)) as image:
            # Coders pad to blocks.
            if image.width * image.height > (self._across + 64) * (self._down + 64):
                raise ValueError(f"a tile contains {image.width} x {image.height} px")


class TiffReader(ImageReader):
    """A TIFF that is read tile by tile or strip by strip."""

    def __init__(self, path: str, tiff: "tifffile.TiffFile", colour: _Colour, max_piece: int):
        page = tiff.pages[0]
        orientation = page.tags.valueof(EXIF_ORIENTATION)
        self._orientation = orientation if orientation in range(2, 9) else 1
        self._swapped = self._orientation in AXES_SWAPPED
        self._tiff, self._colour, self._max_piece = tiff, colour, max_piece
        self._pixels = _TiffPage(path, page, max_piece)
        width, height = self._pixels.width, self._pixels.height
        super().__init__(path, *((height, width) if self._swapped else (width, height)))
        if not page.is_svs:
            size = page.imagewidth, page.imagelength
            pages = islice(tiff.pages, 1, _MAX_PAGES)
            self.other_pages = sum((p.imagewidth, p.imagelength) == size for p in pages)

    def release(self) -> None:
        with self._lock:
            self._pixels.release()

    def _read(self, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        if self._orientation in (2, 3, 6, 7):
            x0, x1 = self.width - x1, self.width - x0
        if self._orientation in (3, 4, 7, 8):
            y0, y1 = self.height - y1, self.height - y0
        if self._swapped:
            x0, y0, x1, y1 = y0, x0, y1, x1
        return self._upright(self._stored(self._pixels, x0, y0, x1, y1))

    def _upright(self, stored: np.ndarray) -> np.ndarray:
        return np.require(turn(stored, self._orientation), requirements=["C", "W", "O"])

    def _stored(self, pixels: _TiffPage, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        """Return a window as stored, in BGR."""
        samples = pixels.read(x0, y0, x1, y1, self._colour.samples)
        if self._colour.deep:
            samples = stretch(samples, self._limits)
        bgr = samples.view(np.uint8)
        if bgr.shape[2] == 1:
            bgr = cv2.cvtColor(bgr, cv2.COLOR_GRAY2BGR)
        return 255 - bgr if self._colour.inverted else bgr

    @functools.cached_property
    def _limits(self) -> tuple[float, float] | None:
        """The limits of :func:`stretch`: exact for 16 bits, else of evenly sampled values."""
        pixels, samples = self._pixels, self._colour.samples
        bands = (band.reshape(-1) for band in pixels.bands(samples))
        if pixels.dtype == np.uint16:
            return limits_of_counts(sum(np.bincount(band, minlength=65536) for band in bands))
        values = pixels.width * pixels.height * len(range(MAX_SAMPLES)[samples])
        step = values // _SAMPLED_VALUES | 1  # odd, so that the samples do not form columns
        return stretch_limits(np.concatenate([band[::step] for band in bands]))

    def _shrunk(self, size: tuple[int, int]) -> np.ndarray:
        width, height = size[::-1] if self._swapped else size
        self.release()
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
        pixels.release()
        return self._upright(shrunk)

    def _fitting_level(self, size: tuple[int, int]) -> _TiffPage:
        """Return the smallest level of the pyramid that is not smaller than (width, height) px."""
        first, best = self._tiff.pages[0], self._pixels
        pages = islice(self._tiff.pages, 1, _MAX_LEVELS + 1)
        # Aperio's levels are not marked.
        reduced = (page for page in pages if page.is_reduced or first.is_svs)
        for page in chain(islice(first.pages or (), _MAX_LEVELS), reduced):
            width, height = page.imagewidth, page.imagelength
            fits = size[0] <= width < best.width and size[1] <= height
            # Levels are rounded to whole px, up or down.
            skew = abs(width * self._pixels.height - height * self._pixels.width)
            is_level = skew <= self._pixels.width + self._pixels.height
            if fits and is_level and _layout(page) == _layout(first):
                best = _TiffPage(self.path, page, self._max_piece)
        return best


def _layout(page: "tifffile.TiffPage") -> tuple:
    colour = page.photometric, page.samplesperpixel, page.bitspersample, page.sampleformat
    return *colour, page.compression, page.planarconfig, page.imagedepth, page.tiledepth


@contextlib.contextmanager
def open_reader(
    path: str | os.PathLike, *, max_pixels: int | None = None, allow_large: bool = False
) -> Iterator[ImageReader]:
    """Open an image of any size, to be read by window.

    - TIFF, BigTIFF, OME-TIFF: the first page, tile by tile or strip by strip. Decoded pieces are
      kept within 64 MB, or as much as a row of windows needs (512 MB at most), so windows read row
      by row decode each piece once.
    - Deep images are stretched as a whole, as by ``read_image``, from percentiles that take one
      pass over the file. They are exact for unsigned 16 bits, else of about 4,000,000 evenly
      spaced values.
    - JPEG, PNG, BMP, … and rare TIFFs (palette, CMYK, CIELAB, 1 to 4 bits, YCbCr without JPEG,
      premultiplied alpha, channels in separate planes) are decoded whole.

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
            reader = ImageReader(path, *image_header(path, NO_LIMIT)[0])
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
    with open_image(path, NO_LIMIT) as image:
        if image is not None and image.format != "TIFF":
            return None
        import tifffile  # slow to import and seldom needed

        tiff = stack.enter_context(tifffile.TiffFile(path))
        page = tiff.pages[0]
        colour = _colour_of(page, image)
        if colour is None:
            logger.debug("%s is read whole: %s", path, page)
            return None
        if allow_large:
            # A trusted image may be one large piece; a piece larger than its image is a bomb.
            limit = max(limit, (page.imagewidth + 1024) * (page.imagelength + 1024))
        return TiffReader(path, tiff, colour, limit)
