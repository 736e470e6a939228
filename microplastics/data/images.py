"""Reading of images of any bit depth as 8-bit BGR.

8-bit files give the pixels of ``detectron2.data.detection_utils.read_image(path, "BGR")``. Deeper
ones (16-bit grey or colour, 32-bit, float) are stretched linearly so that the 0.1 and 99.9
percentiles of the image become 0 and 255.
"""

import contextlib
import io
import os
import stat
import threading
import warnings
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from microplastics.utils.errors import UserError

if TYPE_CHECKING:
    import tifffile

# Pillow's own limit for a decompression bomb: 256 MB of 24-bit pixels, doubled.
MAX_PIXELS = 178_956_970
NO_LIMIT = 1 << 62  # if only the header is read, or the size is bounded otherwise
MAX_SAMPLES = 5
PERCENTILES = (0.001, 0.999)
EXIF_ORIENTATION = 274
AXES_SWAPPED = (5, 6, 7, 8)
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB = 0, 1, 2
# Only plain raster formats: Pillow would pass an EPS to Ghostscript, which executes it.
_FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "GIF", "PPM", "WEBP", "JPEG2000")
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_bomb_check_lock = threading.Lock()

# From half of Pillow's limit on; check_pixels refuses what is too large.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def read_image(
    path: str | os.PathLike,
    expected_size: tuple[int, int] | None = None,
    max_pixels: int | None = None,
) -> np.ndarray:
    """Read an image file as 8-bit BGR, turned upright by its EXIF orientation.

    - 8 bits per channel (grey, RGB, palette, YCbCr, CMYK, 1 bit): the pixels of Detectron2's
      ``read_image(path, "BGR")``; CMYK is converted by Pillow, an alpha channel is dropped.
    - 16-bit grey or colour (PNG, TIFF), 32-bit integer, float: stretched over all colour channels
      together by :func:`to_uint8`; an alpha channel is dropped.
    - Several frames or pages in one file: the first.

    Args:
        path: JPEG, PNG, TIFF, BMP, GIF, PPM, WebP or JPEG 2000 file.
        expected_size: (width, height) in px of the annotations, or None.
        max_pixels: images of more pixels are refused before they are decoded; ``MAX_PIXELS``
            (178,956,970) if None.

    Returns:
        uint8 array of shape (H, W, 3), BGR, contiguous and writable.

    Raises:
        UserError: ``file_missing``, ``image_invalid``, ``image_too_large``, or ``image_size`` if
            it differs from ``expected_size``.
    """
    path = os.fspath(path)
    with open_image(path, max_pixels) as image:
        if image is None or is_deep_tiff(image):
            array, rotated = _read_tiff(path, max_pixels)
        else:
            rotated = header_orientation(image) in AXES_SWAPPED
            sixteen_bit = is_deep_png(image)
            image.load()
            # Asked after loading, in which Pillow turns a TIFF upright.
            orientation = _orientation(image)
            array = decode_with_opencv(path) if sixteen_bit else _pillow_array(image)
            array = np.ascontiguousarray(turn(_to_bgr(array), orientation))
    size = (array.shape[1], array.shape[0])
    if expected_size is not None and size != tuple(expected_size):
        raise UserError(
            f"{path} {size_mismatch(size, tuple(expected_size), rotated)}.", code="image_size"
        )
    return array


def image_header(
    path: str | os.PathLike, max_pixels: int | None = None, content: bytes | None = None
) -> tuple[tuple[int, int], bool]:
    """Read the size that :func:`read_image` gives, from the header only.

    Args:
        path: image file.
        max_pixels: images of more pixels are refused; ``MAX_PIXELS`` if None.
        content: of an image that is not a file; ``path`` then is its name in messages.

    Returns:
        (width, height) in px after the EXIF orientation, and whether that swaps them.

    Raises:
        UserError: as :func:`read_image`, as far as the header shows it.
    """
    size, orientation = _stored_header(os.fspath(path), max_pixels, content)
    swapped = orientation in AXES_SWAPPED
    return (size[::-1] if swapped else size), swapped


def stored_orientation(path: str | os.PathLike, max_pixels: int | None = None) -> int:
    """Read the EXIF orientation, 1 to 8, of an image file from its header.

    Raises:
        UserError: as :func:`image_header`.
    """
    _, orientation = _stored_header(os.fspath(path), max_pixels)
    return orientation if orientation in range(1, 9) else 1


def _stored_header(
    path: str, max_pixels: int | None, content: bytes | None = None
) -> tuple[tuple[int, int], int | None]:
    """Return (width, height) as stored and the EXIF orientation in the header of an image."""
    with open_image(path, max_pixels, content) as image:
        if image is None:
            with _tiff_page(path, max_pixels) as page:
                size = page.imagewidth, page.imagelength
                return size, page.tags.valueof(EXIF_ORIENTATION)
        # Pillow before 11.1 gives a TIFF's size as stored, later ones as turned upright.
        is_tiff = image.format == "TIFF"
        width, height = (image.tag_v2[256], image.tag_v2[257]) if is_tiff else image.size
        return (int(width), int(height)), header_orientation(image)


def size_mismatch(size: tuple[int, int], expected: tuple[int, int], rotated: bool) -> str:
    """Describe an image whose (width, height) differs from its annotations, with the fix.

    Args:
        size: in px of the image as it is read.
        expected: in px in the JSON.
        rotated: the EXIF orientation of the file swaps width and height.
    """
    fix = "annotate this file, or replace it by the annotated one"
    if size == expected[::-1]:
        fix = "width and height are swapped, as if an EXIF rotation was lost; " + fix
        if rotated:
            fix = (
                "it is turned by its EXIF rotation and was annotated without it; save it upright "
                "without the EXIF tag and export the annotations again"
            )
    return (
        f"is {size[0]} x {size[1]} px (width x height) but the JSON says "
        f"{expected[0]} x {expected[1]} px: {fix}"
    )


@contextlib.contextmanager
def open_image(
    path: str, max_pixels: int | None, content: bytes | None = None
) -> Iterator[Image.Image | None]:
    """Open an image file of up to ``max_pixels`` with Pillow, reading only its header.

    ``content`` is that of an image which is not a file.

    Yields:
        the image, not loaded yet, or None for a TIFF that Pillow does not know.

    Raises:
        UserError: ``file_missing``, ``image_invalid`` (also for any error in the block) or
            ``image_too_large``.
    """
    with reading(path):
        if content is None and not stat.S_ISREG(
            os.stat(path).st_mode
        ):  # opening a pipe would block
            raise UserError(
                f"{path} is not a file; give the path of an image.", code="image_invalid"
            )
        # By file object: from a name Pillow maps some TIFFs into memory and then confuses the
        # sides of those with an orientation.
        with open(path, "rb") if content is None else io.BytesIO(content) as file:
            image = _identify(file)
            known = content is None and image is None and file.read(4).startswith(_TIFF_MAGIC)
            if image is None and not known:
                raise UserError(
                    f"{path} is not an image or its header is damaged; expected JPEG, PNG, TIFF, "
                    "BMP, GIF, PPM, WebP or JPEG 2000.",
                    code="image_invalid",
                )
            if image is not None:
                check_pixels(path, *image.size, max_pixels)
            yield image


@contextlib.contextmanager
def reading(path: str) -> Iterator[None]:
    """Turn any error of a decoder in a ``with`` block into a ``UserError`` about the file."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(
            f"{path} does not exist; put the image there or correct its path.", code="file_missing"
        ) from error
    except PermissionError as error:
        raise UserError(
            f"{path} is not readable; change its permissions.", code="image_invalid"
        ) from error
    except MemoryError as error:
        raise UserError(
            f"{path} does not fit in memory; cut it into smaller images.", code="image_too_large"
        ) from error
    except Exception as error:  # damaged bytes make decoders raise nearly anything
        raise UserError(
            f"{path} cannot be read as an image ({str(error) or type(error).__name__}): it is "
            "damaged or cut off; copy it again, or save it as PNG.",
            code="image_invalid",
        ) from error


def check_pixels(path: str, width: int, height: int, max_pixels: int | None) -> None:
    """Raise ``image_too_large`` for an image above ``max_pixels`` (``MAX_PIXELS`` if None)."""
    limit = MAX_PIXELS if max_pixels is None else max_pixels
    if width * height > limit:
        raise UserError(
            f"{path} is {width} x {height} px, above the limit of {limit} pixels (a possible "
            "decompression bomb); cut it up, or raise INPUT.MAX_PIXELS if a config is used.",
            code="image_too_large",
        )


def is_deep_png(image: Image.Image) -> bool:
    """Return whether Pillow would reduce 16-bit colour, or grey with alpha, to its high bytes."""
    return image.format == "PNG" and any(
        image.mode != "I;16" and ";16" in str(tile[3]) for tile in image.tile
    )


def is_deep_tiff(image: Image.Image) -> bool:
    """Return whether tifffile reads a TIFF: Pillow has neither 16-bit colour nor WhiteIsZero."""
    return image.format == "TIFF" and image.mode != "CMYK" and max(image.tag_v2.get(258, (1,))) > 8


def decode_with_opencv(path: str) -> np.ndarray:
    """Decode an image file as stored, (H, W) or (H, W, C): all of its bits, and BGR or BGRA."""
    array = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if array is None:
        raise ValueError("the decoder refused it")
    return array


def to_uint8(array: np.ndarray) -> np.ndarray:
    """Stretch an image of any bit depth linearly to 8 bits.

    The limits of :func:`stretch_limits` become 0 and 255. A constant image becomes 0. NaN becomes
    0. 8-bit arrays are returned unchanged.
    """
    return array if array.dtype == np.uint8 else stretch(array, stretch_limits(array))


def stretch_limits(values: np.ndarray) -> tuple[float, float] | None:
    """Return the values that become 0 and 255: the 0.1 and 99.9 percentiles.

    A percentile is the smallest value that at least this fraction of the finite values does not
    exceed. If both are equal, the minimum and maximum are returned; None if no value is finite.
    """
    if values.dtype == np.uint16:
        return limits_of_counts(np.bincount(values.reshape(-1), minlength=65536))
    values = values.reshape(-1).astype(np.float64)
    values = values[np.isfinite(values)]
    if not values.size:
        return None
    low, high = np.quantile(values, PERCENTILES, method="inverted_cdf")
    return (low, high) if low != high else (values.min(), values.max())


def limits_of_counts(counts: np.ndarray) -> tuple[float, float]:
    """Return :func:`stretch_limits` of values 0, 1, 2, … that occur ``counts`` times."""
    ranks = [max(1, np.ceil(p * counts.sum())) for p in PERCENTILES]
    low, high = np.searchsorted(np.cumsum(counts), ranks)
    return (low, high) if low != high else tuple(np.flatnonzero(counts)[[0, -1]])


def stretch(values: np.ndarray, limits: tuple[float, float] | None) -> np.ndarray:
    """Map ``limits`` to 0 and 255 linearly and clip; NaN, equal or no limits give 0."""
    if limits is None or limits[0] == limits[1]:
        return np.zeros(values.shape, np.uint8)
    if values.dtype == np.uint16:
        return stretch(np.arange(65536), limits)[values]
    # Halved first: the span of two huge floats would overflow to infinity.
    low, span = limits[0] / 2.0, limits[1] / 2.0 - limits[0] / 2.0
    with np.errstate(over="ignore"):
        scaled = np.clip((values.astype(np.float64) / 2.0 - low) / span, 0.0, 1.0)
    return np.rint(np.nan_to_num(scaled, nan=0.0) * 255.0).astype(np.uint8)


def turn(array: np.ndarray, orientation: int) -> np.ndarray:
    """Turn an (H, W, …) array upright by its EXIF orientation."""
    if orientation in AXES_SWAPPED:
        array = array.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    return array


def _identify(file: IO[bytes]) -> Image.Image | None:
    # Pillow's limit is a global of the process: lifted while the header is read, since TIFFs that
    # are read by window may be larger. check_pixels refuses what is too large.
    with _bomb_check_lock:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(file, formats=_FORMATS)
        except UnidentifiedImageError:
            file.seek(0)
            return None
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(EXIF_ORIENTATION, 1))
    except Exception:  # cameras write broken EXIF blocks; Detectron2 takes them as upright too
        return 1


def header_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8, in the header of an image that is not loaded yet."""
    if image.format == "TIFF":
        return image.tag_v2.get(EXIF_ORIENTATION) or 1
    # Asking a PNG for EXIF that its header lacks would decode all of it.
    if image.format == "PNG" and "exif" not in image.info:
        return 1
    return _orientation(image)


def _pillow_array(image: Image.Image) -> np.ndarray:
    """Return a loaded image as deep grey (H, W), or as 8-bit BGR (H, W, 3)."""
    if image.mode.startswith("I") or image.mode == "F":
        return np.asarray(image)
    if image.mode != "RGB":
        image = image.convert("RGB")
    return cv2.cvtColor(np.asarray(image), cv2.COLOR_RGB2BGR)


def _to_bgr(array: np.ndarray) -> np.ndarray:
    """Stretch grey (H, W) or (H, W, 1 or 2), or BGR (H, W, 3 or more), to 8-bit BGR."""
    if array.ndim == 3 and array.shape[2] >= 3:
        return to_uint8(array[:, :, :3])
    grey = to_uint8(array[:, :, 0] if array.ndim == 3 else array)
    return cv2.cvtColor(np.ascontiguousarray(grey), cv2.COLOR_GRAY2BGR)


@contextlib.contextmanager
def _tiff_page(path: str, max_pixels: int | None) -> Iterator["tifffile.TiffPage"]:
    """Open the first page of a TIFF, complete and within ``max_pixels``."""
    import tifffile  # slow to import and seldom needed

    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        if not page.imagewidth * page.imagelength:
            raise ValueError("a side of 0 px")
        check_pixels(path, page.imagewidth, page.imagelength, max_pixels)
        check_complete(page, os.path.getsize(path))
        yield page


def check_complete(page: "tifffile.TiffPage", file_size: int) -> None:
    """Raise ``ValueError`` if a tile or strip of a page ends after the file, in bytes."""
    ends = map(int.__add__, page.dataoffsets, page.databytecounts)
    if max(ends, default=0) > file_size:
        raise ValueError("the file ends before its pixels do")


def _read_tiff(path: str, max_pixels: int | None) -> tuple[np.ndarray, bool]:
    """Read the first page of a TIFF of more than 8 bits per channel as 8-bit BGR.

    Returns:
        (uint8 array of shape (H, W, 3), whether its orientation swaps the sides).
    """
    with _tiff_page(path, max_pixels) as page:
        photometric, samples = int(page.photometric), page.samplesperpixel
        if photometric not in (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB) or page.imagedepth != 1:
            raise ValueError(f"a TIFF of photometric {page.photometric.name} and this depth")
        if samples > MAX_SAMPLES:
            raise ValueError(f"a TIFF of {samples} channels")
        array = page.asarray()
        orientation = page.tags.valueof(EXIF_ORIENTATION) or 1
    if int(page.planarconfig) == 2 and samples > 1:
        array = array.transpose(1, 2, 0)
    if samples > 1:
        array = array[:, :, 2::-1] if photometric == RGB and samples >= 3 else array[:, :, 0]
    bgr = _to_bgr(array)
    if photometric == WHITE_IS_ZERO:
        bgr = 255 - bgr
    return np.ascontiguousarray(turn(bgr, orientation)), orientation in AXES_SWAPPED
