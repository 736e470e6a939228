"""Results of images, and the names of their files."""

import dataclasses
import functools
import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pandas as pd

from microplastics.calibration import Calibration
from microplastics.data.catalog import class_colors
from microplastics.data.large_images import ImageReader
from microplastics.roi.region import Region
from microplastics.structures.particles import Particles

# Unsafe in file names of Windows, macOS or a shell.
_UNSAFE = re.compile(r'[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff<>:"\\|?*%~]')
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
# File systems take 255 bytes; a suffix and the mark of a temporary file come on top.
_MAX_BYTES, _HASH_DIGITS = 160, 8


@dataclasses.dataclass(frozen=True)
class ImageResult:
    """The finished result of one image.

    Attributes:
        particles: N particles in px of the image.
        table: N rows in the same order, the columns of ``particles.csv``.
        class_names: of the model or data set, in order: they give category ids (from 1), colours
            and ROI groups.
        calibration: of the image, if there is one.
        image: the photograph; only overlays look at it.
        region: region of interest; overlays show its outline.
    """

    particles: Particles
    table: pd.DataFrame
    class_names: Sequence[str]
    calibration: Calibration | None = None
    image: ImageReader | None = None
    region: Region | None = None

    @property
    def provenance(self) -> dict[str, Any]:
        """Name of the image, its size in px and its scale, None if that is not known."""
        height, width = self.particles.image_size
        return {
            "image": self.particles.image,
            "width": width,
            "height": height,
            "um_per_px": self.calibration.um_per_px if self.calibration else None,
            "calibration_source": self.calibration.source if self.calibration else None,
        }

    @functools.cached_property
    def class_numbers(self) -> list[int]:
        """Number from 0 of each particle's class."""
        numbers = {name: number for number, name in enumerate(self.class_names)}
        return [numbers[name] for name in self.particles.classes]

    @functools.cached_property
    def colors(self) -> list[list[int]]:
        """RGB in 0–255 of each class."""
        return class_colors(self.class_names)


def output_names(images: Sequence[str]) -> dict[str, str]:
    """Choose the stem of each image's output files.

    Folders come in front, joined by ``__``: ``a/x.jpg`` gives ``a__x.jpg``. The image's own suffix
    stays, so that ``x.jpg`` and ``x.png`` differ. Unsafe characters become ``_``. Long stems are
    cut. A stem that is cut, or that another image has too (regardless of case and of how accents
    are encoded), gets ``~`` and a part of the name's SHA-256.

    Args:
        images: names of the images, each once; the order does not matter.
    """
    whole = {image: _stem(image) for image in images}
    stems = {
        image: stem.encode()[:_MAX_BYTES].decode(errors="ignore") for image, stem in whole.items()
    }
    times = Counter(map(_fold, stems.values()))
    for image, stem in stems.items():
        if stem != whole[image] or times[_fold(stem)] > 1:
            digest = hashlib.sha256(image.encode("utf-8", "surrogatepass")).hexdigest()
            stems[image] = f"{stem}~{digest[:_HASH_DIGITS]}"
    return stems


def printable(name: str) -> str:
    """Make a file's name one that tables and pictures can hold.

    Bytes that are not UTF-8 become ``\\udc80``, line feeds ``\\n``, other control characters
    ``\\x07``.
    """
    escaped = _CONTROL.sub(lambda match: repr(match[0])[1:-1], name)
    return escaped.encode("utf-8", "backslashreplace").decode("utf-8")


def _stem(image: str) -> str:
    # Leading dots hide a file; Windows drops dots and blanks at the end.
    return _UNSAFE.sub("_", image.replace("/", "__")).strip(". ") or "_"


def _fold(stem: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFKC", stem).casefold())
