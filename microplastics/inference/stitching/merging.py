"""The second, coarse pass: things larger than a window, seen whole on the shrunk image."""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from microplastics.inference.stitching.overlaps import (
    MARGIN,
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

WHOLE_WEIGHT = 4.0  # of a fragment that no window cuts, in the vote for the class
_NESTED = 0.8  # least share of a particle inside of another one that makes it a duplicate
_BESIDE = 4  # px between a sliver and the particle that it is part of


@dataclasses.dataclass
class Merged:
    """Particles, in no particular order.

    Attributes:
        masks: N masks, tight.
        boxes: (N, 4) int64 x0, y0, x1, y1.
        areas: (N,) int64 px.
        classes: (N,) int64.
        scores: (N,) float64.
        members: for each the numbers of its fragments.
        coarse: (N,) bool, whether the coarse pass has a share in it.
    """

    masks: PackedMasks
    boxes: np.ndarray
    areas: np.ndarray
    classes: np.ndarray
    scores: np.ndarray
    members: list[list[int]]
    coarse: np.ndarray

    def __len__(self) -> int:
        return len(self.masks)

    def view(self, particle: int) -> View:
        """Unpack a particle's mask."""
        x, y = self.boxes[particle, :2].tolist()
        return View(self.masks[particle], x, y)

    def take(self, order: np.ndarray) -> "Merged":
        """Select particles by number."""
        numbers = np.asarray(order).tolist()
        return Merged(
            self.masks.take(numbers),
            self.boxes[order],
            self.areas[order],
            self.classes[order],
            self.scores[order],
            [self.members[number] for number in numbers],
            self.coarse[order],
        )


def merge(fragments: Fragments, sets: list[list[int]], loose: set[int]) -> Merged:
    """Put each set of fragments together.

    Args:
        fragments: all of them.
        sets: the fragments of each particle.
        loose: fragments that are not the same in every window which sees them.
    """
    masks, order, boxes, areas, several = PackedMasks(), [], [], [], []
    classes = np.empty(len(sets), dtype=np.int64)
    scores = np.empty(len(sets))
    for number, members in enumerate(sets):
        if len(members) == 1:
            order.append(members[0])
            continue
        several.append(number)
        whole = union(_votes(fragments, members, loose))
        if not loose.isdisjoint(members):
            whole = tight(*whole)
        masks.append(whole.mask)
        boxes.append(box_of(whole))
        areas.append(np.count_nonzero(whole.mask))
        classes[number], scores[number] = class_and_score(fragments, members)
    alone = np.array([number for number, each in enumerate(sets) if len(each) == 1], dtype=int)
    classes[alone], scores[alone] = fragments.classes[order], fragments.scores[order]
    together = fragments.masks.take(order)
    together.extend(masks)
    place = np.concatenate([alone, np.array(several, dtype=int)])
    merged = Merged(
        together,
        np.concatenate([fragments.boxes[order], np.array(boxes, np.int64).reshape(-1, 4)]),
        np.concatenate([fragments.areas[order], np.array(areas, np.int64)]),
        classes[place],
        scores[place],
        [sets[number] for number in place.tolist()],
        np.zeros(len(sets), dtype=bool),
    )
    return merged


def class_and_score(fragments: Fragments, members: list[int]) -> tuple[int, float]:
    """The class with most score times area, whole fragments counting more, and the score.

    Returns:
        class, and the largest score of a fragment that no window cuts; where all are cut the mean
        of all scores weighted by area.
    """
    scores, areas = fragments.scores[members], fragments.areas[members]
    whole = fragments.border_gaps(members).min(axis=1) > 0
    weights = scores * areas * np.where(whole, WHOLE_WEIGHT, 1.0)
    votes: dict[int, float] = {}
    for kind, weight in zip(fragments.classes[members].tolist(), weights.tolist(), strict=True):
        votes[kind] = votes.get(kind, 0.0) + weight
    winner = max(sorted(votes), key=votes.__getitem__)
    if whole.any():
        return winner, float(scores[whole].max())
    return winner, float(np.average(scores, weights=areas))


def _votes(fragments: Fragments, members: list[int], loose: set[int]) -> list[View]:
    """The fragments of a particle without what better views deny."""
    views = [fragments.view(number) for number in members]
    if loose.isdisjoint(members):
        return views
    windows = fragments.window[members].tolist()
    seen = {
        window: union([v for v, w in zip(views, windows, strict=True) if w == window])
        for window in set(windows)
    }
    kept = []
    for view, own in zip(views, windows, strict=True):
        mask = view.mask.copy()
        for window in sorted(seen):
            if window != own:
                _deny(fragments, View(mask, view.x, view.y), own, window, seen[window])
        kept.append(View(mask, view.x, view.y))
    return kept if any(view.mask.any() for view in kept) else views


def _deny(fragments: Fragments, view: View, own: int, window: int, seen: View) -> None:
    """Take from a fragment the pixels that another window sees from farther inside and denies.

    A window has a say on pixels near to what it saw of the particle. What is far from that it has
    missed as a whole, and the other view stands, unless that is near its own border.
    """
    part = clip(view, fragments.windows[window].tolist())
    box = box_of(part)
    if not part.mask.any():
        return
    denied = part.mask.copy()
    here = clip(seen, box)
    clip(View(denied, part.x, part.y), box_of(here)).mask[here.mask] = False
    if not denied.any():
        return
    distance = fragments.inner_distance(own, box)
    other = fragments.inner_distance(window, box)
    denied &= (other > distance) | ((other == distance) & (window < own))
    if not denied.any():
        return
    near = dilated(clip(seen, _grown(box, MARGIN)), MARGIN)
    reach = np.zeros_like(denied)
    spot = clip(near, box)
    clip(View(reach, part.x, part.y), box_of(spot)).mask[...] = spot.mask
    part.mask[denied & (reach | (distance <= MARGIN))] = False


def _grown(box: tuple[int, int, int, int], pixels: int) -> tuple[int, int, int, int]:
    return box[0] - pixels, box[1] - pixels, box[2] + pixels, box[3] + pixels


def duplicates(fragments: Fragments, merged: Merged, loose: set[int]) -> np.ndarray:
    """Find particles inside of others, and slivers beside them, that a window denies.

    A window that shows the larger one and has the place of the smaller one well inside would have
    seen it. A small particle that lies on a large one is confirmed by every window instead. What
    a window shows within a strip along its inner border alone is most often the rest of a
    particle whose larger part lies beyond.

    Returns:
        numbers of the particles to drop.
    """
    trusted = fragments.trusted(MARGIN)
    seen = [set(fragments.window[members].tolist()) for members in merged.members]
    dropped = []
    for number, members in enumerate(merged.members):
        if loose.isdisjoint(members):
            continue
        box = merged.boxes[number]
        denying = (trusted[:, :2] <= box[:2]).all(axis=1) & (trusted[:, 2:] >= box[2:]).all(axis=1)
        denying = set(np.flatnonzero(denying).tolist()) - seen[number]
        if not denying:
            continue
        sliver = _is_sliver(fragments, members)
        near = (merged.boxes[:, :2] < box[2:] + _BESIDE).all(axis=1)
        near &= (merged.boxes[:, 2:] > box[:2] - _BESIDE).all(axis=1)
        near &= merged.areas > merged.areas[number]
        view = merged.view(number)
        around = dilated(view, _BESIDE) if sliver else view
        for other in np.flatnonzero(near).tolist():
            if denying.isdisjoint(seen[other]):
                continue
            target = clip(merged.view(other), box_of(around))
            if sliver:
                shared = common_pixels(view, dilated(target, _BESIDE)) >= view.mask.sum() / 2
            else:
                shared = common_pixels(view, target) >= _NESTED * merged.areas[number]
            if shared:
                dropped.append(number)
                break
    return np.array(dropped, dtype=np.int64)


def _is_sliver(fragments: Fragments, members: list[int]) -> bool:
    """Whether all fragments lie in the strips along their windows' inner borders."""
    trusted = fragments.trusted(2 * MARGIN)[fragments.window[members]].tolist()
    return all(
        np.count_nonzero(clip(fragments.view(member), box).mask) <= fragments.areas[member] / 10
        for member, box in zip(members, trusted, strict=True)
    )


def open_ends(fragments: Fragments, merged: Merged) -> np.ndarray:
    """Tell which particles end at a window's border though nothing shows that they end there.

    Returns:
        (N,) bool: no window shows the particle whole, and somewhere it meets the inner border of
        a window that saw it and is not to be found on the other side.
    """
    gaps = fragments.border_gaps()
    whole = gaps.min(axis=1, initial=MARGIN + 1) > MARGIN
    trusted = fragments.trusted(MARGIN)
    result = np.zeros(len(merged), dtype=bool)
    for number, members in enumerate(merged.members):
        if whole[members].any():
            continue
        view = merged.view(number)
        windows = fragments.window[members]
        result[number] = any(
            _stops(
                view, fragments.windows[window].tolist(), side, trusted[windows[windows != window]]
            )
            for member, window in zip(members, windows.tolist(), strict=True)
            for side in np.flatnonzero(gaps[member] <= MARGIN).tolist()
        )
    return result


def _stops(view: View, window: list[int], side: int, others: np.ndarray) -> bool:
    """Whether a mask reaches a side of a window and no other window shows how it goes on.

    Args:
        view: the particle.
        window: x0, y0, x1, y1.
        side: which of them.
        others: (n, 4) trusted boxes of the other windows that have a share in the particle.
    """
    at, axis = window[side], side % 2
    inside, outside = list(window), list(box_of(view))
    first, last = axis, axis + 2  # of the box, along the axis that the side is across
    if side < 2:
        inside[first], inside[last] = at, at + MARGIN
        outside[first], outside[last] = at - MARGIN - 1, at
    else:
        inside[first], inside[last] = at - MARGIN, at
        outside[first], outside[last] = at, at + MARGIN + 1
    own = clip(view, inside)
    if not own.mask.any():
        return False
    contacts, labels, _, centers = cv2.connectedComponentsWithStats(
        np.ascontiguousarray(own.mask).view(np.uint8), connectivity=8
    )
    on = dilated(clip(view, outside), MARGIN + 1)
    reached = clip(View(labels, own.x, own.y), box_of(on))
    goes_on = set(np.unique(reached.mask[clip(on, box_of(reached)).mask]).tolist())
    centers = centers + (own.x, own.y)
    return any(
        not ((others[:, :2] <= center) & (others[:, 2:] > center)).all(axis=1).any()
        for contact, center in enumerate(centers)
        if contact and contact not in goes_on
    )


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
