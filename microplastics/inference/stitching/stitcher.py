"""Stitching of detections across overlapping windows."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from microplastics.inference.stitching.clustering import cluster, resolve
from microplastics.inference.stitching.fibers import join_fibers
from microplastics.inference.stitching.merging import Merged, duplicates, join_coarse, merge
from microplastics.inference.stitching.overlaps import (
    Detections,
    Fragments,
    PackedMasks,
    tight,
)

Window = tuple[int, int, int, int]


@dataclasses.dataclass(frozen=True)
class Stitched:
    """Every particle of an image once, from top to bottom.

    Attributes:
        image_size: height and width in px.
        masks: N bool arrays of shape (h, w), tight about the particle, unpacked one at a time.
        offsets: (N, 2) int64, x and y of the masks' first pixels in the image.
        classes: (N,) int64.
        scores: (N,) float64.
        windows_seen: (N,) int64 number of windows that show a part of the particle; 0 if only the
            coarse pass found it.
        touches_edge: (N,) bool, whether the mask meets the border of the image.
        coarse: (N,) bool, whether the coarse pass contributed to the mask.
        notes: number of detections dropped or changed, by the reason.
    """

    image_size: tuple[int, int]
    masks: PackedMasks
    offsets: np.ndarray
    classes: np.ndarray
    scores: np.ndarray
    windows_seen: np.ndarray
    touches_edge: np.ndarray
    coarse: np.ndarray
    notes: dict[str, int]

    def __len__(self) -> int:
        return len(self.masks)


class Stitcher:
    """Collects the detections of overlapping windows and merges them into particles.

    Windows may come in any order and size; the result is the same. They should overlap: nothing
    else shows which fragments belong together. ``docs/stitching.md`` describes the rules.
    """

    def __init__(self, image_size: tuple[int, int], *, join_broken: bool = False) -> None:
        """
        Args:
            image_size: height and width of the image in px.
            join_broken: join thin pieces that lie end to end and that no window shows as one:
                models break fibres, perfect masks are not broken.
        """
        self.image_size = (int(image_size[0]), int(image_size[1]))
        self.join_broken = join_broken
        self._windows: dict[Window, int] = {}
        self._found: list[Detections] = [Detections.of([], [], [])]
        self._window: list[int] = []
        self._coarse: list[Detections] = [Detections.of([], [], [])]
        self._scales: list[float] = []
        self._empty = 0

    def __len__(self) -> int:
        """Return the number of fragments so far."""
        return len(self._window)

    def add(
        self,
        window: Window,
        masks: Sequence[np.ndarray],
        offsets: Any,
        classes: Any,
        scores: Any,
    ) -> None:
        """Add the detections of one window; a window without detections counts too.

        Args:
            window: x, y, width and height in px of the image.
            masks: N bool arrays of shape (h, w), crops.
            offsets: (N, 2) x and y of their first pixels, in px of the whole image.
            classes: (N,) numbers.
            scores: (N,) in [0, 1].

        Raises:
            ValueError: the window leaves the image, a mask its window, or the lengths differ.
        """
        x, y, width, height = (int(value) for value in window)
        if x < 0 or y < 0 or x + width > self.image_size[1] or y + height > self.image_size[0]:
            raise ValueError(
                f"Window {window} leaves the image; expected a part of {self.image_size}"
            )
        corners = (x, y, x + width, y + height)
        found = self._checked(corners, masks, offsets, classes, scores)
        self._found.append(found)
        self._window += [self._windows.setdefault(corners, len(self._windows))] * len(found)

    def add_coarse(
        self,
        masks: Sequence[np.ndarray],
        offsets: Any,
        classes: Any,
        scores: Any,
        *,
        scale: float,
    ) -> None:
        """Add the detections on the shrunk image, each particle once.

        Args:
            masks: N bool crops in px of the whole image, scaled up from those found by
                :func:`microplastics.inference.stitching.merging.enlarge`.
            offsets: (N, 2) x and y of their first pixels, in px of the whole image.
            classes: (N,) numbers.
            scores: (N,) in [0, 1].
            scale: px of the whole image in one px of the shrunk one, at least 1.

        Raises:
            ValueError: a mask leaves the image, the scale is below 1, or the lengths differ.
        """
        if not 1 <= scale < np.inf:
            raise ValueError(f"The scale is {scale}; expected at least 1")
        corners = (0, 0, self.image_size[1], self.image_size[0])
        found = self._checked(corners, masks, offsets, classes, scores)
        self._coarse.append(found)
        self._scales += [float(scale)] * len(found)

    def finish(self) -> Stitched:
        """Merge everything into particles. More windows may be added afterwards."""
        merged, fragments, notes = self._particles()
        if self._empty:
            notes["empty masks"] = self._empty
        order = np.lexsort(
            (merged.scores, merged.classes, merged.areas, *merged.boxes.T[[2, 3, 0, 1]])
        )
        merged = merged.take(order)
        height, width = self.image_size
        edge = (merged.boxes[:, :2] == 0).any(axis=1)
        edge |= (merged.boxes[:, 2:] == (width, height)).any(axis=1)
        seen = [len(set(fragments.window[each].tolist())) for each in merged.members]
        return Stitched(
            self.image_size,
            merged.masks,
            merged.boxes[:, :2].copy(),
            merged.classes,
            merged.scores,
            np.array(seen, dtype=np.int64),
            edge,
            merged.coarse,
            notes,
        )

    def _checked(
        self,
        corners: tuple[int, int, int, int],
        masks: Sequence[np.ndarray],
        offsets: Any,
        classes: Any,
        scores: Any,
    ) -> Detections:
        """Tighten masks and check that they lie inside x0, y0, x1, y1; count the empty ones."""
        classes = np.asarray(classes, dtype=np.int64).reshape(-1)
        scores = np.asarray(scores, dtype=np.float64).reshape(-1)
        offsets = np.asarray(offsets, dtype=np.int64).reshape(-1, 2).tolist()
        if not len(masks) == len(offsets) == len(classes) == len(scores):
            raise ValueError(
                f"{len(masks)} masks have {len(offsets)} offsets, {len(classes)} classes and "
                f"{len(scores)} scores; expected one each"
            )
        views = [
            tight(np.ascontiguousarray(mask, dtype=bool), left, top)
            for mask, (left, top) in zip(masks, offsets, strict=True)
        ]
        kept = [number for number, view in enumerate(views) if view.mask.size]
        found = Detections.of([views[number] for number in kept], classes[kept], scores[kept])
        outside = (found.boxes[:, :2] < corners[:2]) | (found.boxes[:, 2:] > corners[2:])
        if outside.any():
            box = found.boxes[outside.any(axis=1)][0].tolist()
            raise ValueError(f"A mask covers {box}; expected a box inside {list(corners)}")
        self._empty += len(views) - len(kept)
        return found

    def _particles(self) -> tuple[Merged, Fragments, dict[str, int]]:
        notes: dict[str, int] = {}
        fragments = Fragments(
            np.array(list(self._windows), dtype=np.int64).reshape(-1, 4),
            self.image_size,
            np.array(self._window, dtype=np.int64),
            Detections.cat(self._found),
        )
        fragments, overlaps, joined, split = resolve(fragments)
        if split:
            notes["fragments split because another window tells their particles apart"] = split
        clusters, loose = cluster(fragments, overlaps, joined)
        merged = merge(fragments, clusters.members(), loose)
        dropped = duplicates(fragments, merged, loose)
        if len(dropped):
            notes["duplicates and slivers of other particles"] = len(dropped)
            merged = merged.take(np.delete(np.arange(len(merged)), dropped))
        if self._scales:
            coarse = Detections.cat(self._coarse)
            merged = join_coarse(fragments, merged, coarse, np.array(self._scales), notes)
        if self.join_broken:
            merged = join_fibers(merged, self.image_size, notes)
        return merged, fragments, notes
