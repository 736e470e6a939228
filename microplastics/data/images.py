"""Reading photographs of any bit depth as 8-bit BGR, in one defined way.

8-bit files give the pixels that ``detectron2.data.detection_utils.read_image(path, "BGR")``
gives. Deeper ones (16-bit grey or colour, 32-bit, float) are stretched linearly so that the
0.1 and the 99.9 percentile of the image become 0 and 255.
"""

import contextlib
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

# Pillow's own bound for a decompression bomb: 256 MB of 24-bit pixels, doubled.
MAX_PIXELS = 178_956_970
# Only plain raster formats: Pillow would hand an EPS to Ghostscript, which runs it.
_FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "GIF", "PPM", "WEBP", "JPEG2000")
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_bomb_check_lock = threading.Lock()

# Pillow warns from half of its bound on; check_pixels says what is too large, and TIFFs that are
# read by region may be.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


@contextlib.contextmanager
def open_image(path: str, max_pixels: int | None) -> Iterator[Image.Image | None]:
    """Open an image file with Pillow, its header alone, for a ``with`` block.

    Args:
        path: image file.
        max_pixels: images of more pixels are refused; ``MAX_PIXELS`` if None.

    Yields:
        the image, not loaded yet, or None for a TIFF that Pillow does not know.

    Raises:
        UserError: the file is missing, empty, no image or too large, or a decoder raised anything
            in the block.
    """
    with reading(path):
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            raise UserError(f"{path} is not a file; give the path of an image file.")
        if status.st_size == 0:
            raise UserError(f"{path} is empty (0 bytes); copy it again from where it came.")
        # By file object, not by name: from a name Pillow maps some TIFFs into memory and then
        # mixes up the sides of those with an orientation.
        with open(path, "rb") as file:
            image = _identify(file)
            if image is None and not file.read(4).startswith(_TIFF_MAGIC):
                raise UserError(
                    f"{path} is not an image that can be read, or its head is damaged; save it "
                    "as JPEG, PNG, TIFF, BMP, GIF, PPM, WebP or JPEG 2000."
                )
            if image is not None:
                check_pixels(path, *image.size, max_pixels)
            yield image


@contextlib.contextmanager
def reading(path: str) -> Iterator[None]:
    """Turn whatever decoders raise in a ``with`` block into a sentence about the file.

    Args:
        path: image file, for the message.

    Raises:
        UserError: anything was raised in the block.
    """
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(
            f"{path} does not exist; put the image there or correct its path."
        ) from error
    except PermissionError as error:
        raise UserError(f"{path} is not readable; change its permissions.") from error
    except MemoryError as error:
        raise UserError(f"{path} does not fit in memory; cut it into smaller images.") from error
    except Exception as error:  # hostile bytes make decoders raise nearly anything
        raise UserError(
            f"{path} cannot be read as an image ({str(error) or type(error).__name__}): it is "
            "damaged or cut off; copy it again from where it came, or save it as PNG."
        ) from error


def check_pixels(path: str, width: int, height: int, max_pixels: int | None) -> None:
    """Refuse an image that would take too much memory.

    Args:
        path: image file, for the message.
        width: in px.
        height: in px.
        max_pixels: the most that it may have; ``MAX_PIXELS`` if None.

    Raises:
        UserError: it has more.
    """
    limit = MAX_PIXELS if max_pixels is None else max_pixels
    if width * height > limit:
        raise UserError(
            f"{path} is {width} x {height} px, above the limit of {limit} pixels (a possible "
            "decompression bomb); cut it into smaller images, or raise INPUT.MAX_PIXELS if you "
            "trust it."
        )


def is_deep_png(image: Image.Image) -> bool:
    """Whether Pillow would cut 16-bit colour, or grey with alpha, down to its high bytes."""
    return image.format == "PNG" and any(
        image.mode != "I;16" and ";16" in str(tile[3]) for tile in image.tile
    )


def decode_with_opencv(path: str) -> np.ndarray:
    """Decode an image file as it is stored: all of its bits, and channels as BGR or BGRA.

    Returns:
        (H, W) or (H, W, C) array.

    Raises:
        ValueError: OpenCV cannot.
    """
    array = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if array is None:
        raise ValueError("the decoder refused it")
    return array


def _identify(file: IO[bytes]) -> Image.Image | None:
    try:
        try:
            return Image.open(file, formats=_FORMATS)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            # Pillow's bound is a global of the process: lifted while the header is read.
            with _bomb_check_lock:
                bound, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
                try:
                    return Image.open(file, formats=_FORMATS)
                finally:
                    Image.MAX_IMAGE_PIXELS = bound
    except UnidentifiedImageError:
        file.seek(0)
        return None


__all__ = ["MAX_PIXELS", "image_header", "image_size", "read_image", "size_mismatch", "to_uint8"]

EXIF_ORIENTATION = 274
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
AXES_SWAPPED = (5, 6, 7, 8)
MAX_SAMPLES = 5
PERCENTILES = (0.001, 0.999)


def read_image(
    path: str | os.PathLike,
    expected_size: tuple[int, int] | None = None,
    max_pixels: int | None = None,
) -> np.ndarray:
    """Read an image file as 8-bit BGR, turned upright by its EXIF orientation.

    - 8 bits a channel (grey, RGB, palette, YCbCr, CMYK, 1 bit): the pixels of Detectron2's
      ``read_image(path, "BGR")``; CMYK is converted by Pillow, an alpha channel is dropped.
    - 16-bit grey or colour (PNG, TIFF), 32-bit integer, float: stretched over the image and all
      its colour channels together by :func:`to_uint8`; an alpha channel is dropped.
    - Several frames or pages in one file: the first.

    Args:
        path: JPEG, PNG, TIFF, BMP, GIF, PPM, WebP or JPEG 2000 file.
        expected_size: (width, height) in px that the annotations claim, or None.
        max_pixels: images of more pixels are refused before they are decoded; ``MAX_PIXELS``
            (178,956,970) if None.

    Returns:
        uint8 array of shape (H, W, 3), BGR, contiguous and writable.

    Raises:
        UserError: the file is missing, empty, broken, no image, too large, or not of
            ``expected_size``.
    """
    path = os.fspath(path)
    with open_image(path, max_pixels) as image:
        if image is None or is_deep_tiff(image):
            array, rotated = _read_tiff(path, max_pixels)
        else:
            rotated = _swaps_axes(image)
            sixteen_bit = is_deep_png(image)
            image.load()
            # Asked after loading: Pillow turns a TIFF upright while it loads it.
            orientation = _orientation(image)
            if sixteen_bit:
                array = _to_bgr(decode_with_opencv(path), colour=True)
                array = np.ascontiguousarray(turn(array, orientation))
            else:
                if orientation in _TRANSPOSE:
                    image = image.transpose(_TRANSPOSE[orientation])
                array = _pillow_to_bgr(image)
    size = (array.shape[1], array.shape[0])
    if expected_size is not None and size != tuple(expected_size):
        raise UserError(f"{path} {size_mismatch(size, tuple(expected_size), rotated)}.")
    return array


def image_size(path: str | os.PathLike, max_pixels: int | None = None) -> tuple[int, int]:
    """Read the size that :func:`read_image` would give, from the header alone.

    Args:
        path: image file.
        max_pixels: images of more pixels are refused; ``MAX_PIXELS`` if None.

    Returns:
        (width, height) in px, after the EXIF orientation.

    Raises:
        UserError: as :func:`read_image`, as far as the header shows it.
    """
    size, _ = image_header(path, max_pixels)
    return size


def image_header(
    path: str | os.PathLike, max_pixels: int | None = None
) -> tuple[tuple[int, int], bool]:
    """Like :func:`image_size`, and whether the EXIF orientation swaps width and height.

    Returns:
        ((width, height) in px after the EXIF orientation, swapped by EXIF).
    """
    path = os.fspath(path)
    with open_image(path, max_pixels) as image:
        if image is None:
            with _tiff_page(path, max_pixels) as page:
                width, height = page.imagewidth, page.imagelength
                swapped = _tag(page, EXIF_ORIENTATION) in AXES_SWAPPED
        else:
            # Pillow before 11.1 gives a TIFF's size as stored, later ones as turned upright.
            stored = [image.tag_v2[256], image.tag_v2[257]] if image.format == "TIFF" else None
            width, height = map(int, stored or image.size)
            swapped = _swaps_axes(image)
    return ((height, width) if swapped else (width, height)), swapped


def size_mismatch(size: tuple[int, int], expected: tuple[int, int], rotated: bool) -> str:
    """Words for an image that is not of the size that its annotations claim, with the mend.

    Args:
        size: (width, height) in px of the image as it is read.
        expected: (width, height) in px in the JSON.
        rotated: the EXIF orientation of the file swaps width and height.
    """
    words = (
        f"is {size[0]} x {size[1]} px (width x height) but the JSON says "
        f"{expected[0]} x {expected[1]} px"
    )
    if size != expected[::-1]:
        return f"{words}: annotate this very file, or put the annotated one in its place"
    if rotated:
        return (
            f"{words}: the photograph is turned by its EXIF rotation and was annotated without "
            "it; save it upright without the EXIF tag and export the annotations again"
        )
    return (
        f"{words}: width and height are swapped, as when an EXIF rotation was lost; put the file "
        "that was annotated in its place, or correct the JSON"
    )


def to_uint8(array: np.ndarray) -> np.ndarray:
    """Stretch an image of any bit depth linearly to 8 bits.

    The 0.1 and 99.9 percentiles of all finite values (of all channels together, the smallest
    value that at least that part of the values does not exceed) become 0 and 255; where both are
    the same value, the minimum and maximum do. A constant image becomes 0. NaN becomes 0. 8-bit
    arrays are returned as they are.

    Args:
        array: numeric array of any shape.

    Returns:
        uint8 array of the same shape.
    """
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.uint16:
        levels = np.arange(65536)
        counts = np.bincount(array.reshape(-1), minlength=65536)
        low, high = np.searchsorted(
            np.cumsum(counts), [max(1, np.ceil(p * array.size)) for p in PERCENTILES]
        )
        if low == high:
            low, high = levels[counts > 0][[0, -1]]
        return stretch(levels, low, high)[array]
    values = array.astype(np.float64)
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return np.zeros(array.shape, np.uint8)
    low, high = np.quantile(finite, PERCENTILES, method="inverted_cdf")
    if low == high:
        low, high = finite.min(), finite.max()
    return stretch(values, low, high)


def stretch(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Map ``low`` to 0 and ``high`` to 255 linearly, cut off beyond; NaN and no span give 0."""
    if low == high:
        return np.zeros(values.shape, np.uint8)
    # Halved first: the span of two huge floats would overflow to infinity.
    low, span = low / 2.0, high / 2.0 - low / 2.0
    with np.errstate(over="ignore"):
        scaled = np.clip((values / 2.0 - low) / span, 0.0, 1.0)
    return np.rint(np.nan_to_num(scaled, nan=0.0) * 255.0).astype(np.uint8)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(EXIF_ORIENTATION, 1))
    except Exception:  # cameras write broken EXIF blocks; Detectron2 too takes those as upright
        return 1


def _swaps_axes(image: Image.Image) -> bool:
    """Whether the orientation in the header of an image not yet loaded swaps its sides."""
    if image.format == "TIFF":
        return image.tag_v2.get(EXIF_ORIENTATION) in AXES_SWAPPED
    # Asking a PNG for EXIF that its head lacks would decode all of it.
    if image.format == "PNG" and "exif" not in image.info:
        return False
    return _orientation(image) in AXES_SWAPPED


def turn(array: np.ndarray, orientation: int) -> np.ndarray:
    """Turn an (H, W, …) array upright by its EXIF orientation."""
    if orientation in AXES_SWAPPED:
        array = array.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    return array


def is_deep_tiff(image: Image.Image) -> bool:
    """Whether tifffile reads it: Pillow has no 16-bit colour and ignores WhiteIsZero in grey."""
    return image.format == "TIFF" and image.mode != "CMYK" and max(image.tag_v2.get(258, (1,))) > 8


def _pillow_to_bgr(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I") or image.mode == "F":
        return _to_bgr(np.asarray(image), colour=False)
    if image.mode != "RGB":
        image = image.convert("RGB")
    return cv2.cvtColor(np.asarray(image), cv2.COLOR_RGB2BGR)


def _to_bgr(array: np.ndarray, colour: bool) -> np.ndarray:
    """Stretch deep grey (H, W) or (H, W, C), or BGR (H, W, 3 or more), to 8-bit BGR."""
    if colour and array.ndim == 3 and array.shape[2] >= 3:
        return np.ascontiguousarray(to_uint8(array[:, :, :3]))
    grey = to_uint8(array[:, :, 0] if array.ndim == 3 else array)
    return cv2.cvtColor(np.ascontiguousarray(grey), cv2.COLOR_GRAY2BGR)


@contextlib.contextmanager
def _tiff_page(path: str, max_pixels: int | None) -> Iterator["tifffile.TiffPage"]:
    """The first page of a TIFF, whole and within ``max_pixels``."""
    import tifffile  # slow to import and seldom needed

    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        check_pixels(path, page.imagewidth, page.imagelength, max_pixels)
        length = os.path.getsize(path)
        if any(
            offset + count > length
            for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True)
        ):
            raise ValueError("the file ends before its pixels do")
        yield page


def _tag(page: "tifffile.TiffPage", code: int) -> object:
    return page.tags[code].value if code in page.tags else None


def _read_tiff(path: str, max_pixels: int | None) -> tuple[np.ndarray, bool]:
    """Read the first page of a TIFF of more than 8 bits a channel as 8-bit BGR.

    Returns:
        (uint8 array of shape (H, W, 3), whether its orientation swaps the sides).
    """
    white_is_zero, black_is_zero, rgb = 0, 1, 2
    with _tiff_page(path, max_pixels) as page:
        photometric, orientation = int(page.photometric), _tag(page, EXIF_ORIENTATION) or 1
        samples, planar = page.samplesperpixel, int(page.planarconfig) == 2
        if photometric not in (white_is_zero, black_is_zero, rgb) or page.imagedepth != 1:
            raise ValueError(f"a TIFF of photometric {page.photometric.name} and this depth")
        if samples > MAX_SAMPLES:
            raise ValueError(f"a TIFF of {samples} channels")
        try:
            array = page.asarray()
        except ValueError:
            # Without the package imagecodecs tifffile has no LZW or JPEG; OpenCV has, but
            # neither planar layout nor every orientation nor WhiteIsZero.
            if planar or orientation != 1 or photometric == white_is_zero:
                raise
            array = decode_with_opencv(path)
            if array.ndim == 3 and photometric == rgb:
                array = array[:, :, [2, 1, 0]]
        if planar and samples > 1:
            array = array.transpose(1, 2, 0)
    colour = photometric == rgb and samples >= 3
    if array.shape[:2] != (page.imagelength, page.imagewidth):
        raise ValueError("its pixels do not fill its size")
    bgr = _to_bgr(array[:, :, 2::-1] if colour else array, colour)
    if photometric == white_is_zero:
        bgr = 255 - bgr
    return np.ascontiguousarray(turn(bgr, orientation)), orientation in AXES_SWAPPED
