"""The second, coarse pass: things larger than a window, seen whole on the shrunk image."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from microplastics.inference.stitch_fragments import (
    Fragments,
    PackedMasks,
    View,
    box_of,
    clip,
    common_pixels,
    dilated,
    tight,
    union,
)
from microplastics.inference.stitch_merge import WHOLE_WEIGHT, Merged, open_ends
from microplastics.inference.stitch_overlaps import MARGIN

_INSIDE = 0.8  # least share of a fine particle that must lie in the coarse mask
_PARTLY = 0.5  # the same, for a fine particle to count as an explanation of the coarse mask
_EXPLAINED = 0.3  # share of the coarse mask that particles with known ends may explain


def enlarge(
    mask: np.ndarray, offset: Sequence[int], scale: float, image_size: Sequence[int]
) -> tuple[np.ndarray, tuple[int, int]]:
    """Scale a mask of the shrunk image up to the whole image, its outline smoothed.

    Args:
        mask: (h, w) bool crop in px of the shrunk image.
        offset: x and y of its first pixel there.
        scale: px of the whole image in one px of the shrunk one.
        image_size: height and width of the whole image in px.

    Returns:
        the crop in px of the whole image, and x and y of its first pixel there.
    """
    framed = cv2.copyMakeBorder(
        np.ascontiguousarray(mask).view(np.uint8) * np.uint8(255), *[1] * 4, cv2.BORDER_REPLICATE
    )
    # What does not touch the shrunk image's border must not grow into the frame.
    edges = (0, 0, math.ceil(image_size[1] / scale), math.ceil(image_size[0] / scale))
    x, y = int(offset[0]), int(offset[1])
    height, width = mask.shape
    if x > edges[0]:
        framed[:, 0] = 0
    if y > edges[1]:
        framed[0] = 0
    if x + width < edges[2]:
        framed[:, -1] = 0
    if y + height < edges[3]:
        framed[-1] = 0
    size = tuple(max(1, round(side * scale)) for side in framed.shape[::-1])
    large = cv2.resize(framed, size, interpolation=cv2.INTER_LINEAR) >= 128
    view = View(large, round((x - 1) * scale), round((y - 1) * scale))
    view = clip(view, (0, 0, int(image_size[1]), int(image_size[0])))
    return view.mask, (view.x, view.y)


class CoarseDetections:
    """What the coarse pass has found, in px of the whole image."""

    def __init__(self, image_size: tuple[int, int]) -> None:
        self.image_size = image_size
        self._masks = PackedMasks()
        self._rows: list[tuple[int, int, int, int, float, float]] = []

    def __len__(self) -> int:
        return len(self._rows)

    def add(
        self,
        masks: Sequence[np.ndarray],
        offsets: Sequence[Sequence[int]],
        classes: np.ndarray,
        scores: np.ndarray,
        scale: float,
    ) -> int:
        """Add detections; gives back how many were empty.

        Raises:
            ValueError: a mask leaves the image, or the scale is below 1.
        """
        if not 1 <= scale < math.inf:
            raise ValueError(f"The scale of a shrunk image is at least 1, not {scale}")
        empty = 0
        columns = (masks, offsets, classes.tolist(), scores.tolist())
        for mask, (x, y), kind, score in zip(*columns, strict=True):
            view = tight(np.ascontiguousarray(mask, dtype=bool), x, y)
            if not view.mask.size:
                empty += 1
                continue
            box = box_of(view)
            if min(box) < 0 or box[2] > self.image_size[1] or box[3] > self.image_size[0]:
                raise ValueError(f"A coarse mask with the box {box} leaves the image")
            self._masks.append(view.mask)
            area = int(np.count_nonzero(view.mask))
            self._rows.append((view.x, view.y, area, kind, score, scale))
        return empty

    def best_first(self) -> list["_Coarse"]:
        """The detections by falling score."""
        order = sorted(range(len(self)), key=lambda i: (-self._rows[i][4], *self._rows[i]))
        return [_Coarse(self._masks, index, *self._rows[index]) for index in order]


class _Coarse(NamedTuple):
    masks: PackedMasks
    index: int
    x: int
    y: int
    area: int
    kind: int
    score: float
    scale: float

    def view(self) -> View:
        return View(self.masks[self.index], self.x, self.y)


def join_coarse(
    fragments: Fragments, merged: Merged, coarse: CoarseDetections, notes: dict[str, int]
) -> Merged:
    """Use the coarse pass for what is larger than a window, and for nothing else.

    Args:
        fragments: of the fine pass.
        merged: its particles.
        coarse: detections of the coarse pass.
        notes: where it is counted what became of each.
    """
    ends = open_ends(fragments, merged)

    def count(what: str) -> None:
        notes[what] = notes.get(what, 0) + 1

    for found in coarse.best_first():
        view = found.view()
        if _fits_window(fragments, box_of(view)):
            count("coarse detections left out: a window has their place whole")
            continue
        tolerance = math.ceil(found.scale)
        grown = dilated(view, tolerance)
        shares = _shares(merged, grown)
        settled = np.flatnonzero(~ends & (shares >= _PARTLY))
        if _explained(merged, settled, view, tolerance) >= _EXPLAINED * found.area:
            count("coarse detections left out: the fine pass has found what is there")
            continue
        scraps = np.flatnonzero(ends & (shares >= _INSIDE))
        count(
            "coarse detections that join fine ones"
            if len(scraps)
            else "coarse detections that stand by themselves"
        )
        kept = np.setdiff1d(np.arange(len(merged)), scraps)
        merged = _with(merged, kept, scraps.tolist(), found, view)
        ends = np.append(ends[kept], False)
    return merged


def _fits_window(fragments: Fragments, box: tuple[int, int, int, int]) -> bool:
    trusted = fragments.trusted(MARGIN)
    return bool(((trusted[:, :2] <= box[:2]) & (trusted[:, 2:] >= box[2:])).all(axis=1).any())


def _shares(merged: Merged, grown: View) -> np.ndarray:
    """(N,) share of each particle that lies in the grown coarse mask."""
    box = box_of(grown)
    near = (merged.boxes[:, :2] < box[2:]).all(axis=1) & (merged.boxes[:, 2:] > box[:2]).all(axis=1)
    shares = np.zeros(len(merged))
    for number in np.flatnonzero(near).tolist():
        shares[number] = common_pixels(merged.view(number), grown) / merged.areas[number]
    return shares


def _explained(merged: Merged, settled: np.ndarray, view: View, tolerance: int) -> int:
    """Pixels of the coarse mask that lie in or near particles whose ends are known."""
    under = np.zeros_like(view.mask)
    for number in settled.tolist():
        part = clip(dilated(merged.view(number), tolerance), box_of(view))
        clip(View(under, view.x, view.y), box_of(part)).mask[part.mask] = True
    return int(np.count_nonzero(under & view.mask))


def _with(
    merged: Merged, kept: np.ndarray, scraps: list[int], found: _Coarse, view: View
) -> Merged:
    """Put a coarse detection, and the scraps that it takes in, in place of these scraps."""
    classes, weights = [found.kind], [found.score * found.area * WHOLE_WEIGHT]
    classes += merged.classes[scraps].tolist()
    weights += (merged.scores[scraps] * merged.areas[scraps]).tolist()
    kinds, place = np.unique(classes, return_inverse=True)
    kind = kinds[np.bincount(place, weights).argmax()]
    whole = view
    if scraps:
        whole = tight(*_filled(view, union([merged.view(k) for k in scraps]), found.scale))
    rest = merged.take(kept)
    rest.masks.append(whole.mask)
    members = [number for scrap in scraps for number in merged.members[scrap]]
    return Merged(
        rest.masks,
        np.vstack([rest.boxes, box_of(whole)]),
        np.append(rest.areas, np.count_nonzero(whole.mask)),
        np.append(rest.classes, kind),
        np.append(rest.scores, found.score),
        [*rest.members, members],
        np.append(rest.coarse, True),
    )


def _filled(coarse: View, fine: View, scale: float) -> View:
    """The fine pixels, and the coarse mask where the fine windows saw nothing.

    The coarse outline is off by its own pixel, so near to fine ones it is not used, but for
    closing the gaps between the two.
    """
    reach = math.ceil(2 * scale)
    frame = union([fine, coarse])
    box = box_of(frame)
    near = clip(dilated(fine, reach), box)
    known = np.zeros_like(frame.mask)
    clip(View(known, frame.x, frame.y), box_of(fine)).mask[fine.mask] = True
    far = np.zeros_like(frame.mask)
    clip(View(far, frame.x, frame.y), box_of(coarse)).mask[coarse.mask] = True
    inside = far.copy()
    clip(View(far, frame.x, frame.y), box_of(near)).mask[near.mask] = False
    if far.any():
        kernel = np.ones((2 * reach + 1,) * 2, np.uint8)
        both = cv2.copyMakeBorder((known | far).view(np.uint8), *[reach] * 4, cv2.BORDER_CONSTANT)
        closed = cv2.morphologyEx(both, cv2.MORPH_CLOSE, kernel)[reach:-reach, reach:-reach] > 0
        beside = cv2.dilate(far.view(np.uint8), kernel).view(bool)
        known |= far | (closed & inside & beside)
    return View(known, frame.x, frame.y)
