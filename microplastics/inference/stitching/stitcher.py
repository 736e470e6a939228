"""Putting together what overlapping windows of one image have found.

``docs/stitching.md`` tells how it decides.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from microplastics.inference.stitching.clustering import cluster, resolve
from microplastics.inference.stitching.fibers import join_fibers
from microplastics.inference.stitching.merging import (
    CoarseDetections,
    Merged,
    duplicates,
    join_coarse,
    merge,
)
from microplastics.inference.stitching.overlaps import Fragments, PackedMasks, box_of, tight

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
        windows_seen: (N,) int64 windows that have a share in the particle; 0 where only the
            coarse pass saw it.
        touches_edge: (N,) bool, whether the mask meets the border of the image.
        coarse: (N,) bool, whether the coarse pass has a share in the mask.
        notes: what was left out or changed on the way, by what it was, and how often.
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
    """Collects the detections of overlapping windows and makes particles of them.

    Windows may come in any order and be of several sizes; the result is the same. They should
    overlap: where they do not, nothing tells which fragments belong together.
    """

    def __init__(self, image_size: tuple[int, int], *, join_broken: bool = False) -> None:
        """
        Args:
            image_size: height and width of the image in px.
            join_broken: join thin pieces that lie end to end, which no window shows as one: a
                model breaks fibres, perfect masks are not broken.
        """
        self.image_size = (int(image_size[0]), int(image_size[1]))
        self.join_broken = join_broken
        self._windows: dict[Window, int] = {}
        self._window: list[int] = []
        self._masks = PackedMasks()
        self._boxes: list[tuple[int, int, int, int]] = []
        self._areas: list[int] = []
        self._classes: list[np.ndarray] = []
        self._scores: list[np.ndarray] = []
        self._coarse = CoarseDetections(self.image_size)
        self._empty = 0

    def __len__(self) -> int:
        """Fragments collected so far."""
        return len(self._masks)

    def add(
        self,
        window: Window,
        masks: Sequence[np.ndarray],
        offsets: Any,
        classes: Any,
        scores: Any,
    ) -> None:
        """Add what was found in one window; one in which nothing was found counts too.

        Args:
            window: x, y, width and height in px of the image.
            masks: N bool arrays of shape (h, w), crops.
            offsets: (N, 2) x and y of their first pixels, in px of the whole image.
            classes: (N,) numbers.
            scores: (N,) in [0, 1].

        Raises:
            ValueError: the window leaves the image, a mask its window, or the numbers disagree.
        """
        x, y, width, height = (int(value) for value in window)
        if x < 0 or y < 0 or x + width > self.image_size[1] or y + height > self.image_size[0]:
            raise ValueError(f"Window {window} leaves the image of {self.image_size}")
        classes, scores, offsets = checked(masks, offsets, classes, scores)
        number = self._windows.setdefault((x, y, width, height), len(self._windows))
        kept = []
        for index, (mask, (left, top)) in enumerate(zip(masks, offsets, strict=True)):
            view = tight(np.ascontiguousarray(mask, dtype=bool), left, top)
            if not view.mask.size:
                self._empty += 1
                continue
            box = box_of(view)
            if box[0] < x or box[1] < y or box[2] > x + width or box[3] > y + height:
                raise ValueError(f"A mask with the box {box} leaves its window {window}")
            kept.append(index)
            self._masks.append(view.mask)
            self._boxes.append(box)
            self._areas.append(int(np.count_nonzero(view.mask)))
        self._window += [number] * len(kept)
        self._classes.append(classes[kept])
        self._scores.append(scores[kept])

    def add_coarse(
        self,
        masks: Sequence[np.ndarray],
        offsets: Any,
        classes: Any,
        scores: Any,
        *,
        scale: float,
    ) -> None:
        """Add what was found on the whole image shrunk; each thing there once.

        Args:
            masks: N bool crops in px of the whole image: of those found scaled up by ``scale``,
                which :func:`microplastics.inference.stitching.merging.enlarge` does.
            offsets: (N, 2) x and y of their first pixels, in px of the whole image.
            classes: (N,) numbers.
            scores: (N,) in [0, 1].
            scale: px of the whole image in one px of the shrunk one, at least 1.

        Raises:
            ValueError: a mask leaves the image, or the numbers disagree.
        """
        classes, scores, offsets = checked(masks, offsets, classes, scores)
        self._empty += self._coarse.add(masks, offsets, classes, scores, float(scale))

    def finish(self) -> Stitched:
        """Put everything together. More windows may be added after it."""
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

    def _particles(self) -> tuple[Merged, Fragments, dict[str, int]]:
        notes: dict[str, int] = {}
        corners = [(x, y, x + width, y + height) for x, y, width, height in self._windows]
        fragments = Fragments(
            np.array(corners, dtype=np.int64).reshape(-1, 4),
            self.image_size,
            np.array(self._window, dtype=np.int64),
            np.array(self._boxes, dtype=np.int64).reshape(-1, 4),
            np.array(self._areas, dtype=np.int64),
            np.concatenate([np.zeros(0, np.int64), *self._classes]),
            np.concatenate([np.zeros(0), *self._scores]),
            self._masks,
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
        if len(self._coarse):
            merged = join_coarse(fragments, merged, self._coarse, notes)
        if self.join_broken:
            merged = join_fibers(merged, self.image_size, notes)
        return merged, fragments, notes


def checked(
    masks: Sequence[np.ndarray], offsets: Any, classes: Any, scores: Any
) -> tuple[np.ndarray, np.ndarray, list[list[int]]]:
    """Classes as int64, scores as float64 and offsets as lists, one for each mask.

    Raises:
        ValueError: the numbers disagree.
    """
    classes = np.asarray(classes, dtype=np.int64).reshape(-1)
    scores = np.asarray(scores, dtype=np.float64).reshape(-1)
    offsets = np.asarray(offsets, dtype=np.int64).reshape(-1, 2).tolist()
    if not len(masks) == len(offsets) == len(classes) == len(scores):
        raise ValueError(
            f"{len(masks)} masks have {len(offsets)} offsets, {len(classes)} classes and "
            f"{len(scores)} scores"
        )
    return classes, scores, offsets
