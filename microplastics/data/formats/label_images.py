"""Label images: pixels that are numbers of particles, read without loss and cut into masks.

``data.images`` is for photographs and stretches deep ones to 8 bits; here every value counts.
"""

import os
from typing import Any

import cv2
import numpy as np
from PIL import Image

from microplastics.data.image_files import (
    check_pixels,
    decode_with_opencv,
    is_deep_png,
    open_image,
)
from microplastics.errors import UserError
from microplastics.structures import rle as runs

# Particles of one image: beyond it the file is a photograph, or noise.
MAX_INSTANCES = 50_000
# Pillow's modes whose pixels are the numbers themselves; those of P are indices of a palette.
_PLAIN_MODES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L", "F")
_LOSSY = ("JPEG", "JPEG2000", "WEBP")
_VOID, _VOID_COLOUR = 255, [224, 224, 192]
_WHITE_IS_ZERO, _PHOTOMETRIC = 0, 262
_TOO_MANY = (
    "has {} particles or more, which a photograph or noise has but no mask; put label images or "
    "binary masks there"
)


def read_label_image(
    path: str | os.PathLike, max_pixels: int | None = None
) -> tuple[np.ndarray, bool]:
    """Read a PNG, TIFF, BMP, GIF or PPM of whole numbers as it is stored.

    Of a palette the indices are taken, whatever colours they stand for, and the 255 that VOC
    paints around its objects is background. A colour becomes R * 65536 + G * 256 + B; an alpha
    channel is dropped. Float pixels must be whole numbers, as ImageJ's label maps are.

    Args:
        path: the file.
        max_pixels: more are refused before they are decoded; ``data.images.MAX_PIXELS`` if None.

    Returns:
        (H, W) array of integers from 0 up, and whether the file is in colour.

    Raises:
        UserError: the file is missing, broken, too large, compressed with loss, of several
            pages, or holds numbers that are negative or not whole.
    """
    path = os.fspath(path)
    with open_image(path, max_pixels) as image:
        if image is not None and image.format in _LOSSY:
            raise UserError(
                f"{path} is compressed with loss, which changes the numbers of particles; save "
                "masks as PNG or TIFF."
            )
        if image is None or image.format == "TIFF":
            array = _read_tiff(path, max_pixels, image)
        elif is_deep_png(image):
            array = decode_with_opencv(path)
        else:
            array = _read_pillow(image)
        return _whole_numbers(array, path)


def instance_rles(labels: np.ndarray) -> tuple[list[int], list[dict[str, Any]], np.ndarray]:
    """Give the mask of every number in a label image, in one pass over it.

    Args:
        labels: (H, W) integers, 0 background.

    Returns:
        the numbers in ascending order, their compressed COCO RLEs (``counts`` as str), and their
        areas in px.

    Raises:
        ValueError: there are more than ``MAX_INSTANCES``.
    """
    size = [int(side) for side in labels.shape]
    line = labels.ravel(order="F")
    edges = np.flatnonzero(line[1:] != line[:-1]) + 1
    starts = np.concatenate(([0], edges))
    values = line[starts]
    lengths = np.diff(starts, append=line.size)
    kept = np.flatnonzero(values)
    kept = kept[np.argsort(values[kept], kind="stable")]
    if not len(kept):
        return [], [], np.zeros(0, np.int64)
    values, starts, lengths = values[kept], starts[kept], lengths[kept]
    first = np.flatnonzero(np.concatenate(([True], values[1:] != values[:-1])))
    if len(first) > MAX_INSTANCES:
        raise ValueError(_TOO_MANY.format(MAX_INSTANCES))
    counts = [
        runs.counts_of_runs(begin, begin + length, line.size)
        for begin, length in zip(
            np.split(starts, first[1:]), np.split(lengths, first[1:]), strict=True
        )
    ]
    texts = runs.encode_counts_batch(counts)
    rles = [{"size": list(size), "counts": text.decode("ascii")} for text in texts]
    return values[first].tolist(), rles, np.add.reduceat(lengths, first)


def connected_parts(mask: np.ndarray) -> np.ndarray:
    """Number the 8-connected parts of a mask from 1, as (H, W) int32.

    Raises:
        ValueError: there are more than ``MAX_INSTANCES``.
    """
    count, labels = cv2.connectedComponents((mask != 0).astype(np.uint8), connectivity=8)
    if count - 1 > MAX_INSTANCES:
        raise ValueError(_TOO_MANY.format(MAX_INSTANCES))
    return labels


def _read_pillow(image: Image.Image) -> np.ndarray:
    if getattr(image, "n_frames", 1) > 1:
        raise ValueError(f"it has {image.n_frames} frames; save each as a file of its own")
    if image.mode == "LA":
        image = image.getchannel(0)
    elif image.mode == "PA":
        raise ValueError("a palette with transparency; save it without")
    elif image.mode in ("RGB", "RGBA", "RGBX"):
        return np.asarray(image)[:, :, 2::-1]
    elif image.mode not in _PLAIN_MODES:
        raise ValueError(f"its mode {image.mode} is not one of masks; save it as grey PNG")
    array = np.asarray(image)
    palette = image.getpalette("RGB") if image.mode == "P" else None
    if palette is not None and palette[3 * _VOID : 3 * _VOID + 3] == _VOID_COLOUR:
        array = np.where(array == _VOID, 0, array)
    return array


def _read_tiff(path: str, max_pixels: int | None, image: Image.Image | None) -> np.ndarray:
    import tifffile  # slow to import and seldom needed

    with tifffile.TiffFile(path) as tiff:
        if len(tiff.pages) > 1:
            raise ValueError(f"it has {len(tiff.pages)} pages; save each as a file of its own")
        page = tiff.pages[0]
        check_pixels(path, page.imagewidth, page.imagelength, max_pixels)
        if page.samplesperpixel > 4 or page.imagedepth != 1:
            raise ValueError(f"it has {page.samplesperpixel} channels and depth {page.imagedepth}")
        ends = [sum(each) for each in zip(page.dataoffsets, page.databytecounts, strict=True)]
        if max(ends, default=0) > os.path.getsize(path):
            raise ValueError("the file ends before its pixels do")
        try:
            array = page.asarray()
        except ValueError:
            # Without the package imagecodecs tifffile has no LZW; Pillow has.
            if image is None:
                raise
            array = _read_pillow(image)
            if image.mode in ("1", "L") and page.photometric == _WHITE_IS_ZERO:
                array = (255 if image.mode == "L" else 1) - array.astype(np.uint8)
            return array
        if array.ndim == 3 and int(page.planarconfig) == 2:
            array = array.transpose(1, 2, 0)
        if array.shape[:2] != (page.imagelength, page.imagewidth):
            raise ValueError("its pixels do not fill its size")
    return array[:, :, 2::-1] if array.ndim == 3 and array.shape[2] >= 3 else array


def _whole_numbers(array: np.ndarray, path: str) -> tuple[np.ndarray, bool]:
    """Turn grey (H, W), grey with alpha, or BGR pixels into numbers from 0 up."""
    colour = False
    if array.ndim == 3 and array.shape[2] < 3:
        array = array[:, :, 0]
    if array.ndim == 3:
        blue, green, red = (array[:, :, channel] for channel in range(3))
        if np.array_equal(blue, green) and np.array_equal(green, red):
            array = blue
        elif array.dtype != np.uint8:
            raise ValueError("it has colours of more than 8 bits; save it as grey PNG or TIFF")
        else:
            colour = True
            array = red.astype(np.int32) << 16 | green.astype(np.int32) << 8 | blue
    if array.dtype.kind == "b":
        array = array.astype(np.uint8)
    if array.dtype.kind == "f":
        array = array.astype(np.float64)
        with np.errstate(invalid="ignore"):
            whole = (array == np.rint(array)) & (np.abs(array) < 2**31)  # False for NaN
        if not whole.all():
            raise UserError(f"{path} has pixels that are not whole numbers; save a label image.")
        array = array.astype(np.int64)
    if array.dtype.kind not in "iu":
        raise ValueError(f"its pixels are of type {array.dtype}")
    if array.dtype.kind == "i" and array.size and array.min() < 0:
        raise UserError(
            f"{path} has negative pixels ({array.min()}); number particles from 1, background 0."
        )
    if array.dtype.itemsize > 4 and array.size and array.max() >= 2**53:
        raise UserError(f"{path} has the number {array.max()}; number the particles from 1.")
    return array, colour
