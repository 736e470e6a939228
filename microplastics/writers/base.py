"""Formats, results and file names of outputs."""

import dataclasses
import functools
import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd

from microplastics.calibration import Calibration
from microplastics.data.catalog import class_colors
from microplastics.roi.region import Region
from microplastics.structures.particles import Particles

# Unsafe in file names of Windows, macOS or a shell.
_UNSAFE = re.compile(r'[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff<>:"\\|?*%~]')
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
# File systems take 255 bytes; a suffix and the mark of a temporary file come on top.
_MAX_BYTES, _HASH_DIGITS = 160, 8


class ImageSource(Protocol):
    """What an overlay asks of a photograph; ``ImageReader`` gives it."""

    width: int
    height: int

    def overview(self, max_side: int) -> tuple[np.ndarray, float]:
        """Give the whole image, (h, w, 3) uint8 BGR with no side above ``max_side``, and how many
        px of the image one px of it is."""


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
    image: ImageSource | None = None
    region: Region | None = None

    def __post_init__(self) -> None:
        if len(self.particles) != len(self.table):
            raise ValueError(f"{len(self.particles)} particles, but {len(self.table)} rows")
        unknown = set(self.particles.classes) - set(self.class_names)
        if unknown:
            raise ValueError(f"Classes {sorted(unknown)} are not among {list(self.class_names)}")

    @functools.cached_property
    def class_numbers(self) -> list[int]:
        """Number from 0 of each particle's class."""
        numbers = {name: number for number, name in enumerate(self.class_names)}
        return [numbers[name] for name in self.particles.classes]

    @functools.cached_property
    def colors(self) -> list[list[int]]:
        """RGB in 0–255 of each class."""
        return class_colors(self.class_names)


ImageWriter = Callable[[ImageResult, Path], dict[str, int]]


@dataclasses.dataclass(frozen=True)
class Format:
    """One output format.

    Attributes:
        name: what ``--formats`` calls it.
        files: below the output folder, with ``{}`` for the name of the image; a format without it
            has one file for the whole run.
        write: writes the file of one image, whole or not at all, and counts what it had to leave
            out by name; None for a format of the whole run (``write_run``).
        needs_image: whether it looks at the photograph.
    """

    name: str
    files: tuple[str, ...]
    write: ImageWriter | None = None
    needs_image: bool = False


def output_names(images: Sequence[str]) -> dict[str, str]:
    """Choose the stem of each image's output files.

    Folders come in front, joined by ``__``: ``a/x.jpg`` gives ``a__x.jpg``. The image's own suffix
    stays, so that ``x.jpg`` and ``x.png`` differ. Unsafe characters become ``_``. Long stems are
    cut. A stem that is cut, or that another image has too (regardless of case and of how accents
    are encoded), gets ``~`` and a part of the name's SHA-256.

    Args:
        images: names of the images, each once; the order does not matter.
    """
    stems = {image: _stem(image) for image in images}
    short = {
        image: stem.encode()[:_MAX_BYTES].decode(errors="ignore") for image, stem in stems.items()
    }
    times = Counter(map(_fold, short.values()))
    return {
        image: (
            stem if stem == stems[image] and times[_fold(stem)] == 1 else f"{stem}~{_digest(image)}"
        )
        for image, stem in short.items()
    }


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


def _digest(image: str) -> str:
    return hashlib.sha256(image.encode("utf-8", "surrogatepass")).hexdigest()[:_HASH_DIGITS]
