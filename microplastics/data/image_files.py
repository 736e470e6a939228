"""Opening image files from strangers: regular files of raster formats, of a bounded size."""

import contextlib
import os
import stat
import threading
import warnings
from collections.abc import Iterator
from typing import IO

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from microplastics.errors import UserError

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
