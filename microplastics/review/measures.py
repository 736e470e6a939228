"""Measures of an image's particles, kept as long as their masks are."""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from microplastics.data.large_images import open_reader
from microplastics.inference.tiled import particle_pixels
from microplastics.measurement.nearest import Neighbors
from microplastics.measurement.shape import Item
from microplastics.measurement.table import parse_size_classes, particle_table
from microplastics.review.source import SourceImage
from microplastics.runs.images import RunOptions
from microplastics.structures.particles import Particles

if TYPE_CHECKING:
    from microplastics.review.session import Particle

_MORE = ("state", "origin", "changed", "reviewer", "time", "comment")


class Measures:
    """Measures of the particles of one image; only what changed is measured again."""

    def __init__(self, image: SourceImage, options: RunOptions, is_fiber: Callable[[str], bool]):
        """Begin with the measures of a run, if there are some.

        Args:
            image: with its particles.
            options: by which they are measured.
            is_fiber: tells of a class whether it is measured along its centreline.
        """
        self._image, self._options, self._is_fiber = image, options, is_fiber
        self._rows: pd.DataFrame | None = None
        # What was measured: masks, and whether as fibres; and between which masks distances are.
        self._of: dict[int, tuple[np.ndarray, bool]] = {}
        self._neighbors, self._living = Neighbors(), {}
        if image.rows is not None:
            found = image.particles
            self._keep(image.rows, zip(found.masks, found.classes, strict=True))

    def _keep(self, rows: pd.DataFrame, of: Iterable[tuple[np.ndarray, str]]) -> None:
        rows = rows.set_index(rows["particle"].to_numpy())
        for id_, (mask, name) in zip(rows.index.tolist(), of, strict=True):
            self._of[id_] = (mask, self._is_fiber(name))
        if self._rows is not None:
            kept = self._rows.drop(index=rows.index, errors="ignore")
            rows = pd.concat([each for each in (kept, rows) if len(each)])
        self._rows = rows

    def table(self, particles: Sequence["Particle"], every: bool = False) -> pd.DataFrame:
        """Give the table of :meth:`microplastics.review.Review.table`."""
        shown = [each for each in particles if every or each.counts]
        self._measure(shown)
        rows = self._rows.loc[[each.id for each in shown]].reset_index(drop=True)
        rows["class"] = pd.Series([each.class_name for each in shown], dtype=rows["class"].dtype)
        scale = self._image.calibration
        distances = self._nearest(particles, shown)
        rows["nearest_um" if scale else "nearest_px"] = distances * (
            scale.um_per_px if scale else 1.0
        )
        if every:
            for name in _MORE:
                rows[name] = [getattr(each, name) for each in shown]
        if self._image.region is not None:
            inside = self._image.region.contains(rows[["x", "y"]].to_numpy(np.float64))
            rows = rows[inside].reset_index(drop=True)
        return rows

    def sizes(self, particles: Sequence["Particle"]) -> pd.DataFrame:
        """Give the rows of :meth:`microplastics.review.Review.sizes`."""
        self._measure(particles)
        rows = self._rows.loc[[each.id for each in particles]].reset_index(drop=True)
        rows["inside"] = True
        if self._image.region is not None:
            rows["inside"] = self._image.region.contains(rows[["x", "y"]].to_numpy(np.float64))
        return rows

    def _nearest(self, particles: Sequence["Particle"], shown: Sequence["Particle"]) -> np.ndarray:
        """Distances in px to the nearest particle that counts; NaN for those that do not."""
        living = {each.id: each for each in particles if each.counts}
        masks = {id_: each.mask for id_, each in living.items()}
        changed = [
            id_ for id_ in {**self._living, **masks} if self._living.get(id_) is not masks.get(id_)
        ]
        if changed:
            items = {id_: Item(each.mask, each.offset) for id_, each in living.items()}
            self._neighbors.update(items, changed)
            self._living = masks
        distances = np.full(len(shown), np.nan)
        counted = [number for number, each in enumerate(shown) if each.counts]
        distances[counted] = self._neighbors.distances(shown[number].id for number in counted)
        return distances

    def _measure(self, particles: Sequence["Particle"]) -> None:
        """Measure what has not been measured as it is now."""
        stale = [
            each
            for each in particles
            if each.id not in self._of
            or self._of[each.id][0] is not each.mask
            or self._of[each.id][1] != self._is_fiber(each.class_name)
        ]
        if not stale and self._rows is not None:
            return
        masks = [each.mask for each in stale]
        offsets = np.array([each.offset for each in stale], dtype=np.int64).reshape(-1, 2)
        options, image = self._options, self._image
        pixels = None
        if image.path and stale:
            with open_reader(
                image.path, max_pixels=options.max_pixels, allow_large=options.allow_large
            ) as reader:
                pixels = particle_pixels(reader, masks, offsets)
        found = Particles(
            image.name,
            (image.height, image.width),
            masks,
            offsets,
            [each.class_name for each in stale],
            np.array([each.score for each in stale], dtype=np.float64),
            np.array([each.id for each in stale], dtype=np.int64),
            pixels,
        )
        rows = particle_table(
            found,
            image.calibration,
            size_classes=parse_size_classes(options.size_classes),
            min_size=options.min_size,
            fiber_classes=set(filter(self._is_fiber, found.classes)),
            processes=1,
        )
        self._keep(rows, [(each.mask, each.class_name) for each in stale])
