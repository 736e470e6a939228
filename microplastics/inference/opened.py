"""An image of a run, opened: its pixels, its scale, and where no particle can lie."""

import contextlib
import dataclasses
import logging
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import pandas as pd

from microplastics.data.regions import ImageRegions, open_regions
from microplastics.inference.image_list import InputImage
from microplastics.inference.options import RunOptions
from microplastics.measurement.calibration import Calibration
from microplastics.measurement.calibration_sources import resolve_calibration
from microplastics.measurement.calibration_table import CalibrationTable, read_calibration_csv
from microplastics.measurement.particles import Particles
from microplastics.measurement.region import Region
from microplastics.measurement.region_files import RegionSource

logger = logging.getLogger(__name__)

Box = tuple[int, int, int, int]

# Pixels around a scale bar whose colour takes its place.
_RIM = 8
# Share of a particle that lies on a scale bar or its text from which on it is none.
_ON_BAR = 0.5


class ArrayImage:
    """An image in memory, read as :class:`microplastics.data.regions.ImageRegions` is."""

    def __init__(self, pixels: np.ndarray):
        """
        Args:
            pixels: (H, W, 3) uint8 BGR.
        """
        self.pixels = pixels
        self.height, self.width = pixels.shape[:2]

    def read(self, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        """Give a region, (y1 - y0, x1 - x0, 3) uint8 BGR."""
        return self.pixels[y0:y1, x0:x1]

    def overview(self, max_side: int) -> tuple[np.ndarray, float]:
        """Give the image with no side above ``max_side``, and px of the image per px of it."""
        side = max(self.width, self.height)
        if side <= max_side:
            return self.pixels, 1.0
        size = [max(1, round(each * max_side / side)) for each in (self.width, self.height)]
        return cv2.resize(self.pixels, size, interpolation=cv2.INTER_AREA), side / max_side


class PaintedRegions:
    """An image whose boxes are painted over in the colour of what surrounds them."""

    def __init__(self, regions: ImageRegions | ArrayImage, boxes: Sequence[Box]):
        """
        Args:
            regions: the image.
            boxes: x, y, width and height in px.
        """
        self.width, self.height = regions.width, regions.height
        self._regions, self._boxes = regions, list(boxes)
        self._colors = [self._surrounding(box) for box in boxes]

    def read(self, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        """Give a region, (y1 - y0, x1 - x0, 3) uint8 BGR."""
        image = self._regions.read(x0, y0, x1, y1)
        if self._boxes:
            image = image.copy()
        for (x, y, width, height), color in zip(self._boxes, self._colors, strict=True):
            rows = slice(max(y - y0, 0), max(y + height - y0, 0))
            image[rows, max(x - x0, 0) : max(x + width - x0, 0)] = color
        return image

    def _surrounding(self, box: Box) -> np.ndarray:
        x, y, width, height = box
        x0, y0 = max(x - _RIM, 0), max(y - _RIM, 0)
        x1, y1 = min(x + width + _RIM, self.width), min(y + height + _RIM, self.height)
        frame = self._regions.read(x0, y0, x1, y1)
        around = np.ones(frame.shape[:2], dtype=bool)
        around[y - y0 : y - y0 + height, x - x0 : x - x0 + width] = False
        return np.median(frame[around] if around.any() else frame.reshape(-1, 3), axis=0)


@dataclasses.dataclass(frozen=True)
class Opened:
    """What is known of an image before its particles are.

    Attributes:
        image: which one.
        regions: its pixels; None where there is no photograph, as of masks alone.
        calibration: its scale, or None.
        boxes: x, y, width and height in px of what is no particle: the scale bar and its text.
        notes: what of the file was not used, such as a word on its scale, and why.
        region: where particles count; None is everywhere.
    """

    image: InputImage
    regions: ImageRegions | ArrayImage | None
    calibration: Calibration | None
    boxes: list[Box]
    notes: list[str]
    region: Region | None = None


class Opener:
    """Opens images by the options of a run."""

    def __init__(self, options: RunOptions, region_source: RegionSource | None = None):
        """
        Args:
            options: of the run.
            region_source: where particles count; None is everywhere.

        Raises:
            UserError: the calibration table cannot be read.
        """
        self._options = options
        self._region_source = region_source
        self.table: CalibrationTable | None = None
        if options.calibration is not None:
            self.table = read_calibration_csv(options.calibration)

    @contextlib.contextmanager
    def open(self, image: InputImage) -> Iterator[Opened]:
        """Open one image; it is closed when the block ends.

        Args:
            image: which one.

        Raises:
            UserError: it cannot be read, or its scale or region cannot be told.
        """
        options = self._options
        with open_regions(
            image.path, max_pixels=options.max_pixels, allow_large=options.allow_large
        ) as regions:
            calibration, boxes, notes = self.scale(image.path, regions)
            if regions.other_pages:
                logger.warning(
                    "%s: only the first of its %d pages is looked at; save each as a file of its "
                    "own to have all.",
                    image.path,
                    regions.other_pages + 1,
                )
                notes = [*notes, f"{regions.other_pages} more pages were not looked at"]
            region = self.region(image.name, (regions.height, regions.width), regions)
            yield Opened(image, regions, calibration, boxes, notes, region)

    def scale(
        self, path: str, regions: ImageRegions | None = None
    ) -> tuple[Calibration | None, list[Box], list[str]]:
        """The scale of an image, as :func:`resolve_calibration` gives it.

        Args:
            path: of the image; without a photograph its name.
            regions: its pixels; None where there is no photograph, and so neither metadata nor a
                scale bar.

        Raises:
            UserError: sources disagree, or one of them is no scale.
        """
        options = self._options
        return resolve_calibration(
            path,
            regions.width if regions else 0,
            regions.height if regions else 0,
            regions.read if regions else None,
            um_per_px=options.um_per_px,
            table=self.table,
            scale_bar_um=options.scale_bar_um if regions else None,
            use_metadata=regions is not None and not options.ignore_metadata,
        )

    def region(
        self, name: str, size: tuple[int, int], regions: ImageRegions | None = None
    ) -> Region | None:
        """Where particles of an image count; None is everywhere.

        Args:
            name: of the image.
            size: its height and width in px.
            regions: its pixels; None where there is no photograph.

        Raises:
            UserError: it cannot be told.
        """
        if self._region_source is None:
            return None
        return self._region_source.of_image(name, size, regions.overview if regions else None)


def without_boxes(particles: Particles, boxes: Sequence[Box]) -> tuple[Particles, int]:
    """Leave out what lies on a scale bar or its text with at least half of its pixels.

    Args:
        particles: of an image.
        boxes: x, y, width and height in px of what is no particle.

    Returns:
        The other particles, numbered anew, and how many were left out.
    """
    kept = [
        number
        for number, (mask, (x, y)) in enumerate(
            zip(particles.masks, particles.offsets.tolist(), strict=True)
        )
        if not any(_lies_on(mask, x, y, box) for box in boxes)
    ]
    if len(kept) == len(particles):
        return particles, 0
    ids = np.arange(1, len(kept) + 1, dtype=np.int64)
    return dataclasses.replace(_only(particles, kept), ids=ids), len(particles) - len(kept)


def within(
    particles: Particles, table: pd.DataFrame, region: Region | None
) -> tuple[Particles, pd.DataFrame]:
    """Leave out what has its centroid outside of the region.

    Each particle has one centroid, so that those of several regions add up, and none is more
    likely to count because it is large. Numbers stay, and so do distances to what is left out.

    Args:
        particles: of an image.
        table: their measures, a row each.
        region: where particles count; None is everywhere.

    Returns:
        The other particles and their rows.
    """
    if region is None:
        return particles, table
    inside = region.contains(table[["x", "y"]].to_numpy(np.float64))
    kept = np.flatnonzero(inside).tolist()
    return _only(particles, kept), table[inside].reset_index(drop=True)


def _only(particles: Particles, kept: Sequence[int]) -> Particles:
    pixels = particles.pixels
    return dataclasses.replace(
        particles,
        masks=[particles.masks[number] for number in kept],
        offsets=particles.offsets[kept],
        classes=[particles.classes[number] for number in kept],
        scores=particles.scores[kept],
        ids=particles.ids[kept],
        pixels=None if pixels is None else [pixels[number] for number in kept],
    )


def _lies_on(mask: np.ndarray, x: int, y: int, box: Box) -> bool:
    left, top, width, height = box
    inside = mask[
        max(top - y, 0) : max(top + height - y, 0), max(left - x, 0) : max(left + width - x, 0)
    ]
    return np.count_nonzero(inside) >= _ON_BAR * np.count_nonzero(mask)
