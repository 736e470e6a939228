"""How the stored samples of a TIFF become 8-bit BGR, as ``data.images.read_image`` has it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image

from microplastics.data.images import MAX_SAMPLES, is_deep_tiff

_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR = 0, 1, 2, 3, 5, 6
_JPEG = 7
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
    packed_jpeg = int(page.compression) == _JPEG
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
