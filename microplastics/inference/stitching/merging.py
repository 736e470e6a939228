"""Particles from sets of fragments and from the coarse pass."""

import dataclasses
import math
from collections import Counter, defaultdict
from collections.abc import Sequence

import cv2
import numpy as np

from microplastics.inference.stitching.matching import (
    MARGIN,
    Detections,
    Fragments,
    dilated,
    meeting,
    objects,
    paint,
    pieces,
    union,
)
from microplastics.structures.view import View, box_of, clip, common_pixels, tight

_WHOLE_WEIGHT = 4.0  # of an uncut fragment, in the vote for the class
_NESTED = 0.8  # least fraction of a particle inside another one that makes it a duplicate
_BESIDE = 4  # px between a sliver and the particle that it is part of
_INSIDE = 0.8  # least fraction of a fine particle that must lie in the coarse mask
_PARTLY = 0.5  # the same, for a fine particle to count as an explanation of the coarse mask
_EXPLAINED = 0.3  # fraction of the coarse mask that particles with known ends may explain


def merge(fragments: Fragments, sets: list[list[int]], loose: set[int]) -> Detections:
    """Merge sets of fragments, some of which differ in another window that sees them (loose)."""
    single = [members for members in sets if len(members) == 1]
    several = [members for members in sets if len(members) > 1]
    votes = np.array([_class_and_score(fragments, members) for members in several])
    joined = Detections.of(
        [tight(*union(_credible(fragments, members, loose))) for members in several],
        *votes.reshape(-1, 2).T,
        several,
    )
    unchanged = fragments.found.take([number for (number,) in single])
    unchanged = dataclasses.replace(unchanged, members=objects(single))
    return Detections.cat([unchanged, joined])


def _class_and_score(fragments: Fragments, members: list[int]) -> tuple[int, float]:
    """Vote for the class, and score the uncut fragments, or all if all are cut."""
    scores, areas = fragments.found.scores[members], fragments.found.areas[members]
    whole = fragments.border_gaps(members).min(axis=1) > 0
    weights = scores * areas * np.where(whole, _WHOLE_WEIGHT, 1.0)
    score = scores[whole].max() if whole.any() else np.average(scores, weights=areas)
    return _heaviest(fragments.found.classes[members], weights), score


def _heaviest(classes: np.ndarray, weights: np.ndarray) -> int:
    """Return the class with the largest sum of weights, the lowest of equal ones."""
    return int(np.bincount(classes, weights).argmax())


def _credible(fragments: Fragments, members: list[int], loose: set[int]) -> list[View]:
    """Return the fragments of a particle without the pixels that better views deny."""
    views = [fragments.view(number) for number in members]
    if loose.isdisjoint(members):
        return views
    windows = fragments.window[members].tolist()
    by_window: dict[int, list[View]] = defaultdict(list)
    for view, window in zip(views, windows, strict=True):
        by_window[window].append(view)
    seen = {window: union(by_window[window]) for window in sorted(by_window)}
    kept = [View(view.mask.copy(), view.x, view.y) for view in views]
    for view, own in zip(kept, windows, strict=True):
        for window, other in seen.items():
            if window != own:
                _deny(fragments, view, own, window, other)
    return kept if any(view.mask.any() for view in kept) else views


def _deny(fragments: Fragments, view: View, own: int, window: int, seen: View) -> None:
    """Remove pixels from a fragment that another window sees from farther inside and denies.

    A window decides on pixels near to what it saw of the particle. It has missed anything far from
    that as a whole, and the other view stands, unless the pixel is near that view's own border.
    """
    part = clip(view, fragments.windows[window].tolist())
    box = box_of(part)
    denied = part.mask.copy()
    paint(View(denied, part.x, part.y), seen, False)
    if not denied.any():
        return
    distance = fragments.inner_distance(own, box)
    other = fragments.inner_distance(window, box)
    denied &= (other > distance) | ((other == distance) & (window < own))
    if not denied.any():
        return
    around = (box[0] - MARGIN, box[1] - MARGIN, box[2] + MARGIN, box[3] + MARGIN)
    reach = np.zeros_like(denied)
    paint(View(reach, part.x, part.y), dilated(clip(seen, around), MARGIN))
    part.mask[denied & (reach | (distance <= MARGIN))] = False


def duplicates(fragments: Fragments, merged: Detections, loose: set[int]) -> list[int]:
    """Number the particles inside others, and slivers beside them, that a window denies.

    A window that shows the larger one and has the place of the smaller one well inside would have
    seen it; a small particle that lies on a large one is confirmed by every window. A mask that
    lies only in the strip along its window's inner border is most often the rest of a particle
    whose larger part lies beyond. Only particles with loose fragments are looked at.
    """
    trusted = fragments.trusted(MARGIN)
    seen = [set(fragments.window[members].tolist()) for members in merged.members]
    dropped = []
    for number, members in enumerate(merged.members):
        if loose.isdisjoint(members):
            continue
        box = merged.boxes[number]
        denying = set(np.flatnonzero(_holds(trusted, box)).tolist()) - seen[number]
        if not denying:
            continue
        sliver = _is_sliver(fragments, members)
        view = merged.view(number)
        around = dilated(view, _BESIDE) if sliver else view
        near = meeting(merged.boxes, box + np.array([-1, -1, 1, 1]) * _BESIDE)
        near &= merged.areas > merged.areas[number]
        for other in np.flatnonzero(near).tolist():
            if denying.isdisjoint(seen[other]):
                continue
            target = clip(merged.view(other), box_of(around))
            if sliver:
                part_of = common_pixels(view, dilated(target, _BESIDE)) >= view.mask.sum() / 2
            else:
                part_of = common_pixels(view, target) >= _NESTED * merged.areas[number]
            if part_of:
                dropped.append(number)
                break
    return dropped


def _holds(boxes: np.ndarray, box: Sequence[int]) -> np.ndarray:
    """Return (N,) bool: which boxes x0, y0, x1, y1 contain another one."""
    return (boxes[:, :2] <= box[:2]).all(axis=1) & (boxes[:, 2:] >= box[2:]).all(axis=1)


def _is_sliver(fragments: Fragments, members: list[int]) -> bool:
    """Whether all fragments lie in the strips along their windows' inner borders."""
    trusted = fragments.trusted(2 * MARGIN)[fragments.window[members]].tolist()
    return all(
        np.count_nonzero(clip(fragments.view(member), box).mask)
        <= fragments.found.areas[member] / 10
        for member, box in zip(members, trusted, strict=True)
    )


def _open_ends(fragments: Fragments, merged: Detections) -> np.ndarray:
    """Find, (N,) bool, particles that end at a window's border although nothing shows that they do.

    No window shows such a particle whole, and somewhere it meets the inner border of a window that
    saw it and does not continue on the other side.
    """
    gaps, whole = fragments.border_gaps(), fragments.whole()
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
    """Whether a mask reaches a side of a window and no other window shows how it continues.

    The window is x0, y0, x1, y1, and ``side`` the index of one of them; ``others`` are (n, 4)
    trusted boxes of the other windows that see the particle.
    """
    at, axis = window[side], side % 2
    inside, outside = list(window), list(box_of(view))
    if side < 2:
        inside[axis + 2] = at + MARGIN
        outside[axis], outside[axis + 2] = at - MARGIN - 1, at
    else:
        inside[axis] = at - MARGIN
        outside[axis], outside[axis + 2] = at, at + MARGIN + 1
    beyond = dilated(clip(view, outside), MARGIN + 1)
    for contact in pieces(clip(view, inside), connectivity=8):
        center = np.argwhere(contact.mask).mean(axis=0)[::-1] + (contact.x, contact.y)
        seen = (others[:, :2] <= center) & (others[:, 2:] > center)
        if not common_pixels(contact, beyond) and not seen.all(axis=1).any():
            return True
    return False


def enlarge(
    mask: np.ndarray, offset: Sequence[int], scale: float, image_size: Sequence[int]
) -> tuple[np.ndarray, tuple[int, int]]:
    """Scale a mask of the shrunk image up to the whole image and smooth its outline.

    Args:
        mask: (h, w) bool crop in px of the shrunk image.
        offset: x and y of its first pixel there.
        scale: px of the whole image in one px of the shrunk one.
        image_size: height and width of the whole image in px.

    Returns:
        the crop in px of the whole image, and x and y of its first pixel there.
    """
    framed = np.pad(mask, 1, mode="edge").astype(np.uint8) * np.uint8(255)
    # A mask that does not touch the shrunk image's border must not grow into the frame.
    (x, y), (height, width) = offset, mask.shape
    if x > 0:
        framed[:, 0] = 0
    if y > 0:
        framed[0] = 0
    if x + width < math.ceil(image_size[1] / scale):
        framed[:, -1] = 0
    if y + height < math.ceil(image_size[0] / scale):
        framed[-1] = 0
    size = tuple(max(1, round(side * scale)) for side in framed.shape[::-1])
    large = cv2.resize(framed, size, interpolation=cv2.INTER_LINEAR) >= 128
    view = View(large, round((x - 1) * scale), round((y - 1) * scale))
    view = clip(view, (0, 0, image_size[1], image_size[0]))
    return view.mask, (view.x, view.y)


def join_coarse(
    fragments: Fragments,
    merged: Detections,
    coarse: Detections,
    scale: float,
    notes: Counter[str],
) -> Detections:
    """Use the coarse pass for what is larger than a window, and for nothing else.

    Args:
        fragments, merged: of the fine pass.
        coarse: detections of the coarse pass, in px of the whole image.
        scale: px of the whole image in one px of the shrunk one.
        notes: counts what became of each detection.
    """
    ends, trusted = _open_ends(fragments, merged), fragments.trusted(MARGIN)
    tolerance = math.ceil(scale)
    x, y = coarse.boxes[:, 0], coarse.boxes[:, 1]
    best_first = np.lexsort((coarse.classes, coarse.areas, y, x, -coarse.scores))
    for number in best_first.tolist():
        if _holds(trusted, coarse.boxes[number]).any():
            notes["coarse detections left out: a window has their place whole"] += 1
            continue
        view = coarse.view(number)
        fractions = _fractions_inside(merged, dilated(view, tolerance))
        settled = np.flatnonzero(~ends & (fractions >= _PARTLY))
        if _explained(merged, settled, view, tolerance) >= _EXPLAINED * coarse.areas[number]:
            notes["coarse detections left out: the fine pass has found what is there"] += 1
            continue
        scraps = np.flatnonzero(ends & (fractions >= _INSIDE))
        outcome = "join fine ones" if len(scraps) else "stand by themselves"
        notes[f"coarse detections that {outcome}"] += 1
        kept = np.setdiff1d(np.arange(len(merged)), scraps)
        joined = _with_scraps(merged.take(scraps), coarse.take([number]), scale)
        merged = Detections.cat([merged.take(kept), joined])
        ends = np.append(ends[kept], False)
    return merged


def _fractions_inside(merged: Detections, grown: View) -> np.ndarray:
    """Return (N,) fractions of the particles that lie in the grown coarse mask."""
    fractions = np.zeros(len(merged))
    for number in np.flatnonzero(meeting(merged.boxes, box_of(grown))).tolist():
        fractions[number] = common_pixels(merged.view(number), grown) / merged.areas[number]
    return fractions


def _explained(merged: Detections, settled: np.ndarray, view: View, tolerance: int) -> int:
    """Count the pixels of the coarse mask that lie in or near particles whose ends are known."""
    under = np.zeros_like(view.mask)
    for number in settled.tolist():
        paint(View(under, view.x, view.y), dilated(merged.view(number), tolerance))
    return int(np.count_nonzero(under & view.mask))


def _with_scraps(scraps: Detections, found: Detections, scale: float) -> Detections:
    """Merge one coarse detection with the fine particles that it joins."""
    whole = found.view(0)
    if len(scraps):
        whole = _filled(whole, union([scraps.view(k) for k in range(len(scraps))]), scale)
    voters = Detections.cat([found, scraps])
    weights = voters.scores * voters.areas
    weights[0] *= _WHOLE_WEIGHT
    members = [number for each in scraps.members for number in each]
    kind = _heaviest(voters.classes, weights)
    return Detections.of([tight(*whole)], [kind], found.scores, [members])


def _filled(coarse: View, fine: View, scale: float) -> View:
    """Return the fine pixels, and the coarse mask wherever the fine windows saw nothing.

    The coarse outline is off by one of its pixels, so near to fine pixels it only closes gaps.
    """
    reach = math.ceil(2 * scale)
    frame = union([fine, coarse])
    known, inside, near = (np.zeros_like(frame.mask) for _ in range(3))
    for mask, view in ((known, fine), (inside, coarse), (near, dilated(fine, reach))):
        paint(View(mask, frame.x, frame.y), view)
    far = inside & ~near
    if far.any():
        kernel = np.ones((2 * reach + 1,) * 2, np.uint8)
        both = np.pad(known | far, reach).view(np.uint8)
        closed = cv2.morphologyEx(both, cv2.MORPH_CLOSE, kernel)[reach:-reach, reach:-reach] > 0
        beside = cv2.dilate(far.view(np.uint8), kernel).view(bool)
        known |= far | (closed & inside & beside)
    return View(known, frame.x, frame.y)
