"""Stitching of detections across overlapping windows."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from microplastics.inference.stitching.clustering import cluster, resolve
from microplastics.inference.stitching.fibers import join_fibers
from microplastics.inference.stitching.matching import Detections, Fragments, PackedMasks
from microplastics.inference.stitching.merging import duplicates, join_coarse, merge
from microplastics.structures.view import tight


@dataclasses.dataclass(frozen=True)
class Stitched:
    """Every particle of an image once, from top to bottom.

    Attributes:
        masks: N bool arrays of shape (h, w), tight about the particle, unpacked one at a time.
        offsets: (N, 2) int64, x and y of the masks' first pixels in the image.
        classes: (N,) int64.
        scores: (N,) float64.
        notes: number of detections dropped or changed, by the reason.
    """

    masks: PackedMasks
    offsets: np.ndarray
    classes: np.ndarray
    scores: np.ndarray
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
        self.image_size = image_size
        self._join_broken = join_broken
        self._windows: dict[tuple[int, int, int, int], int] = {}
        self._window: list[int] = []
        self._fine, self._coarse = [Detections.of([], [], [])], [Detections.of([], [], [])]
        self._scale = 1.0
        self._empty = 0

    def add(
        self,
        window: Sequence[int],
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
            ValueError: a mask leaves its window, or the lengths differ.
        """
        x, y, width, height = window
        box = (x, y, x + width, y + height)
        found = self._tight(box, masks, offsets, classes, scores)
        self._fine.append(found)
        self._window += [self._windows.setdefault(box, len(self._windows))] * len(found)

    def add_coarse(
        self,
        masks: Sequence[np.ndarray],
        offsets: Any,
        classes: Any,
        scores: Any,
        *,
        scale: float,
    ) -> None:
        """Add detections on the shrunk image, each particle once.

        Args:
            masks: N bool crops in px of the whole image, scaled up from those found by
                :func:`microplastics.inference.stitching.merging.enlarge`.
            offsets, classes, scores: as of :meth:`add`.
            scale: px of the whole image in one px of the shrunk one, the same in all calls.

        Raises:
            ValueError: a mask leaves the image, or the lengths differ.
        """
        box = (0, 0, *self.image_size[::-1])
        self._coarse.append(self._tight(box, masks, offsets, classes, scores))
        self._scale = scale

    def finish(self) -> Stitched:
        """Merge everything into particles. More windows may be added afterwards."""
        notes: Counter[str] = Counter()
        windows = np.array(list(self._windows), dtype=np.int64).reshape(-1, 4)
        window = np.array(self._window, dtype=np.int64)
        fragments = Fragments(windows, self.image_size, window, Detections.cat(self._fine))
        fragments, overlaps, joined, split = resolve(fragments)
        notes["fragments split because another window tells their particles apart"] = split
        sets, loose = cluster(fragments, overlaps, joined)
        merged = merge(fragments, sets, loose)
        dropped = duplicates(fragments, merged, loose)
        notes["duplicates and slivers of other particles"] = len(dropped)
        merged = merged.take(np.delete(np.arange(len(merged)), dropped))
        coarse = Detections.cat(self._coarse)
        if len(coarse):
            merged = join_coarse(fragments, merged, coarse, self._scale, notes)
        if self._join_broken:
            merged = join_fibers(merged, self.image_size, notes)
        notes["empty masks"] = self._empty
        order = (merged.scores, merged.classes, merged.areas, *merged.boxes.T[[2, 3, 0, 1]])
        merged = merged.take(np.lexsort(order))
        return Stitched(
            PackedMasks(merged.masks),
            merged.boxes[:, :2].copy(),
            merged.classes,
            merged.scores,
            {reason: count for reason, count in notes.items() if count},
        )

    def _tight(self, box: Sequence[int], masks: Sequence[np.ndarray], *columns: Any) -> Detections:
        """Tighten masks, which must lie inside x0, y0, x1, y1; count the empty ones."""
        offsets, classes, scores = columns
        offsets = np.asarray(offsets, dtype=np.int64).reshape(-1, 2).tolist()
        rows = [
            (tight(np.ascontiguousarray(mask, dtype=bool), x, y), kind, score)
            for mask, (x, y), kind, score in zip(masks, offsets, classes, scores, strict=True)
        ]
        kept = [row for row in rows if row[0].mask.size]
        self._empty += len(rows) - len(kept)
        found = Detections.of(*zip(*kept, strict=True)) if kept else Detections.of([], [], [])
        outside = ((found.boxes[:, :2] < box[:2]) | (found.boxes[:, 2:] > box[2:])).any(axis=1)
        if outside.any():
            mask = found.boxes[outside][0].tolist()
            raise ValueError(f"A mask covers {mask}; expected a box inside {list(box)}")
        return found
