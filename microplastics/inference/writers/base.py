"""What every writer takes, and what the registry knows of it."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd

from microplastics.data.catalog import class_colors
from microplastics.measurement.calibration import Calibration
from microplastics.measurement.particles import Particles
from microplastics.measurement.region import Region


class ImageSource(Protocol):
    """What an overlay asks of a photograph; ``ImageRegions`` gives it."""

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
        region: where particles count; overlays show its outline.
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
