"""Clusters of fragments that are one particle."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from scipy.cluster.hierarchy import DisjointSet
from scipy.ndimage import distance_transform_edt
from scipy.spatial import cKDTree

from microplastics.inference.stitching.matching import (
    AGREE,
    MARGIN,
    TOLERANT,
    Fragments,
    Overlap,
    Pair,
    agreement,
    common_matrix,
    greedy_pairs,
    overlaps_of,
    paint,
    pieces,
    tolerant_fraction,
    union,
)
from microplastics.structures.view import View, box_of, clip, common_pixels

_CONTAINED = 0.6  # least fraction of a part inside the merged fragment
_PART = 0.1  # least area of a part, as a fraction of the merged fragment
_COVERED = 0.5  # least fraction of the merged fragment that its parts cover
_THIN = 3.0  # area / width²: a fibre
_STRAIGHT = 0.85  # least cosine of the angle between two ends that continue one another
_ONE_SIDED = 0.3  # of the radius: how far the pixels around an end lie to one side of it
_ROUNDS = 3  # of splitting: a split may show that a third window merges the same particles
_REACH = 12  # px around the nearest points of two masks that show their directions
_AROUND = 32  # px on both sides of a region in which fibres show their direction


def resolve(fragments: Fragments) -> tuple[Fragments, list[Overlap], list[Pair], int]:
    """Find fragments that another window shows as several, and split or join them.

    The window that separates the particles is believed, because merged touching particles are far
    more frequent than broken ones: the merged fragment is cut along the parts. Parts that lie end
    to end along a fibre, or meet at their own window's border, belong together instead.

    Returns:
        the fragments, their overlaps, pairs that belong together, and the number
        of fragments that were split.
    """
    split = 0
    for turn in range(_ROUNDS + 1):
        overlaps: list[Overlap] = []
        joined: set[Pair] = set()
        parts: dict[int, list[View]] = {}
        for overlap in overlaps_of(fragments):
            overlaps.append(overlap)
            for seen in (overlap, overlap.flipped()):
                for merged, group in _conflicts(seen):
                    number = seen.numbers[0][merged]
                    if _belong_together(seen, merged, group):
                        joined.update((number, seen.numbers[1][part]) for part in group)
                    elif turn < _ROUNDS and number not in parts:
                        parts[number] = _cut_along(seen, merged, group)
        if not parts:
            break
        split += len(parts)
        fragments = fragments.replaced(parts)
    return fragments, overlaps, sorted(joined), split


def _conflicts(overlap: Overlap) -> list[tuple[int, list[int]]]:
    """Return positions of merged fragments of the first window, and of their parts."""
    common, iou, (own, other) = overlap.common, overlap.iou(), overlap.areas
    inside = (common >= _CONTAINED * other) & (other >= _PART * own[:, None])
    found = []
    for row in np.flatnonzero(inside.sum(axis=1) >= 2).tolist():
        if (iou[row] == 1).any():
            continue
        elsewhere = np.delete(iou, row, axis=0)
        free = inside[row] & ~(elsewhere >= AGREE).any(axis=0)
        group = _apart(overlap, np.flatnonzero(free).tolist())
        if len(group) >= 2:
            found += [(row, part) for part in _by_piece(overlap, row, group)]
    return found


def _apart(overlap: Overlap, group: list[int]) -> list[int]:
    """Select the parts that are not nested in a larger one."""
    areas = overlap.areas[1]
    kept: dict[int, View] = {}
    for index in sorted(group, key=lambda i: (-areas[i], i)):
        view = overlap.view(1, index)
        if all(common_pixels(view, other) <= areas[index] / 2 for other in kept.values()):
            kept[index] = view
    return list(kept)


def _by_piece(overlap: Overlap, row: int, group: list[int]) -> list[list[int]]:
    """Group the parts by the connected piece of the merged fragment that they lie in."""
    connected = pieces(overlap.view(0, row))
    common = common_matrix([overlap.view(1, index) for index in group], connected)
    owners = common.argmax(axis=1)
    covered = np.bincount(owners, common.max(axis=1), minlength=len(connected))
    areas = [np.count_nonzero(piece.mask) for piece in connected]
    return [
        [index for index, owner in zip(group, owners, strict=True) if owner == number]
        for number in dict.fromkeys(owners.tolist())
        if (owners == number).sum() >= 2 and covered[number] >= _COVERED * areas[number]
    ]


def _belong_together(overlap: Overlap, merged: int, group: list[int]) -> bool:
    """Whether each part connects to another one, along a fibre or at its window's border."""
    views = [overlap.view(1, index) for index in group]
    fibre = is_thin(overlap.view(0, merged))

    def connected(index: int) -> bool:
        joints = (joint_of(views[index], other) for other in views[:index] + views[index + 1 :])
        return any(
            (fibre and joint.end_to_end)
            or near_border(overlap.fragments, overlap.windows[1], joint.spots[0], MARGIN)
            for joint in joints
        )

    return all(map(connected, range(len(views))))


def near_border(fragments: Fragments, window: int, pixel: Sequence[int], reach: int) -> bool:
    """Whether a pixel of a window lies within a distance of one of its inner borders, in px."""
    x, y = pixel
    return bool(fragments.inner_distance(window, (x, y, x + 1, y + 1))[0, 0] <= reach)


def is_thin(view: View) -> bool:
    """Whether a mask is several times as long as wide, bent or not."""
    framed = np.pad(view.mask, 1).view(np.uint8)
    width = 2 * float(cv2.distanceTransform(framed, cv2.DIST_L2, 3).max()) - 1
    return np.count_nonzero(view.mask) >= _THIN * max(width, 2) ** 2


class Joint(NamedTuple):
    """Nearest points of two masks.

    Attributes:
        spots: x and y of the pixel of each that is nearest to the other.
        gap: px between them.
        end_to_end: whether both masks end there and continue one another.
    """

    spots: list[list[int]]
    gap: float
    end_to_end: bool


def joint_of(first: View, second: View) -> Joint:
    """Find the nearest points of two masks with pixels, and whether both end there."""
    points = [np.argwhere(v.mask)[:, ::-1] + (v.x, v.y) for v in (first, second)]
    distances, nearest = cKDTree(points[1]).query(points[0])
    nearest_own = int(distances.argmin())
    spots = points[0][nearest_own], points[1][nearest[nearest_own]]
    ends, ways = [], []
    for own, spot, other in zip(points, spots, spots[::-1], strict=True):
        # The middle of the end: its nearest pixel may be a corner of it.
        local = own[((own - spot) ** 2).sum(axis=1) <= (_REACH / 2) ** 2]
        away = np.hypot(*(local - other).T)
        end = local[away <= away.min() + 1.5].mean(axis=0)
        offsets = own - end
        ends.append(end)
        ways.append(offsets[(offsets**2).sum(axis=1) <= _REACH**2].mean(axis=0))
    at = [spot.tolist() for spot in spots], float(distances[nearest_own])
    lengths = [float(np.hypot(*way)) for way in ways]
    if min(lengths) < _ONE_SIDED * _REACH:
        return Joint(*at, False)
    cosine = -float(ways[0] @ ways[1]) / (lengths[0] * lengths[1])
    gap = ends[1] - ends[0]
    if np.hypot(*gap) > 4:
        # Over a gap the direction of the gap must fit as well.
        along = -float(ways[0] @ gap) / (lengths[0] * float(np.hypot(*gap)))
        cosine = min(cosine, along)
    return Joint(*at, cosine >= _STRAIGHT)


def _cut_along(overlap: Overlap, merged: int, group: list[int]) -> list[View]:
    """Assign each pixel of the merged fragment to the nearest part.

    Pixels outside the other window go to the parts that this window cuts, if there are any.
    """
    fragments = overlap.fragments
    whole = fragments.view(overlap.numbers[0][merged])
    parts = [clip(overlap.view(1, index), box_of(whole)) for index in group]
    numbers = [overlap.numbers[1][index] for index in group]
    cut = np.flatnonzero(fragments.border_gaps(numbers).min(axis=1) <= MARGIN)
    if not len(cut):
        cut = np.arange(len(parts))
    owner = _nearest(whole, parts)
    outside = np.ones_like(whole.mask)
    clip(View(outside, whole.x, whole.y), overlap.region).mask[:] = False
    owner[outside] = cut[_nearest(whole, [parts[k] for k in cut.tolist()])[outside]]
    views = []
    for number, part in enumerate(parts):
        # Where parts overlap, as crossing fibres do, each keeps all of its own.
        shared = View(clip(whole, box_of(part)).mask & part.mask, part.x, part.y)
        views.append(union([View(whole.mask & (owner == number), whole.x, whole.y), shared]))
    return [view for view in views if view.mask.any()]


def _nearest(whole: View, parts: list[View]) -> np.ndarray:
    """Return for each pixel of a mask's array the number of the part nearest to it."""
    seeds = np.full(whole.mask.shape, -1, dtype=np.int32)
    for number, part in enumerate(parts):
        paint(View(seeds, whole.x, whole.y), part, number)
    rows, columns = distance_transform_edt(seeds < 0, return_distances=False, return_indices=True)
    return seeds[rows, columns]


class Clusters(DisjointSet):
    """Sets of fragments, and the windows that show a fragment of each as a whole."""

    def __init__(self, fragments: Fragments) -> None:
        super().__init__(range(len(fragments)))
        self._windows: dict[int, set[int]] = defaultdict(set)
        for number in np.flatnonzero(fragments.whole()).tolist():
            self._windows[number].add(int(fragments.window[number]))

    def merge(self, first: int, second: int) -> None:
        """Merge the sets of two fragments."""
        windows = self._windows[self[first]] | self._windows[self[second]]
        super().merge(first, second)
        self._windows[self[first]] = windows

    def may_merge(self, first: int, second: int) -> bool:
        """Whether they are in one set, or no window shows both sets whole and thus separately."""
        first, second = self[first], self[second]
        return first == second or self._windows[first].isdisjoint(self._windows[second])


def cluster(
    fragments: Fragments, overlaps: list[Overlap], joined: Iterable[Pair]
) -> tuple[list[list[int]], set[int]]:
    """Link fragments, the surest evidence first; some pairs are known to belong together.

    Returns:
        the sets, in order; and the fragments that differ in another window which sees them.
    """
    clusters = Clusters(fragments)
    linked: list[tuple[Overlap, set[Pair]]] = []
    tied, loose = [], set()
    together = set()
    for first, second in joined:
        clusters.merge(first, second)
        together |= {(first, second), (second, first)}
    for overlap in overlaps:
        sure, equal, others = agreement(overlap)
        for first, second in sure:
            clusters.merge(first, second)
        tied += [(*pair, len(linked)) for pair in equal]
        loose.update(others)
        linked.append((overlap, set(sure)))
    _resolve_ties(fragments, clusters, tied, linked)
    # A large region is far from the corners of windows and says more than a small one.
    linked.sort(key=lambda each: (-each[0].region_area(), each[0].windows))
    for overlap, pairs in linked:
        first, second = map(set, overlap.numbers)
        pairs |= {(a, b) for a, b in together if a in first and b in second}
        _link_loosely(clusters, overlap, pairs)
    return sorted(map(sorted, clusters.subsets())), loose


def _resolve_ties(
    fragments: Fragments,
    clusters: Clusters,
    tied: list[tuple[int, int, int]],
    linked: list[tuple[Overlap, set[Pair]]],
) -> None:
    """Match fragments that equal several: as other windows do, then by class and direction.

    ``tied`` are pairs, with the position of their overlap in ``linked``, which has overlaps and
    their pairs so far. ``clusters`` and ``linked`` receive the pairs.
    """
    classes, scores = fragments.found.classes, fragments.found.scores
    used: set[tuple[int, int]] = set()

    def order(tie: tuple[int, int, int]) -> tuple:
        a, b, place = tie
        apart = clusters[a] != clusters[b]
        other = bool(classes[a] != classes[b])
        bend = round(_bend(fragments, a, b, linked[place][0].region), 2)
        return apart, other, bend, abs(float(scores[a] - scores[b])), a, b

    rivals: dict[int, tuple[set[int], set[int]]] = {}
    for a, b, place in tied:
        sides = rivals.setdefault(place, (set(), set()))
        sides[0].add(a)
        sides[1].add(b)

    def taken(a: int, b: int, place: int) -> bool:
        """Whether other windows have already assigned one of the two to a rival of the other."""
        first, second = clusters[a], clusters[b]
        return first != second and (
            any(clusters[rival] == second for rival in rivals[place][0])
            or any(clusters[rival] == first for rival in rivals[place][1])
        )

    for a, b, place in sorted(tied, key=order):
        both = {(place, a), (place, b)}
        if used.isdisjoint(both) and not taken(a, b, place):
            used |= both
            linked[place][1].add((a, b))
            clusters.merge(a, b)


def _bend(fragments: Fragments, a: int, b: int, region: Sequence[int]) -> float:
    """Measure how far two fragments near a region deviate from one straight line, in px."""
    x0, y0, x1, y1 = region
    around = (x0 - _AROUND, y0 - _AROUND, x1 + _AROUND, y1 + _AROUND)
    views = [clip(fragments.view(number), around) for number in (a, b)]
    points = np.concatenate([np.argwhere(v.mask) + (v.y, v.x) for v in views])
    return float(np.sqrt(max(0.0, np.linalg.eigvalsh(np.cov(points, rowvar=False, ddof=0))[0])))


def _link_loosely(clusters: Clusters, overlap: Overlap, pairs: set[Pair]) -> None:
    """Link the fragments of one overlap that agree neither in pixels nor in pieces."""
    linked = [{pair[side] for pair in pairs} for side in (0, 1)]
    free = [
        [i for i, number in enumerate(overlap.numbers[side]) if number not in linked[side]]
        for side in (0, 1)
    ]
    if not any(free):
        return
    for link in (_tolerant, _contained, _end_to_end):
        for i, j in link(overlap, free, pairs):
            a, b = overlap.numbers[0][i], overlap.numbers[1][j]
            if clusters.may_merge(a, b):
                clusters.merge(a, b)
                pairs.add((a, b))
                free = [[k for k in free[0] if k != i], [k for k in free[1] if k != j]]


def _tolerant(overlap: Overlap, free: list[list[int]], _: set[Pair]) -> list[Pair]:
    """Match free fragments whose outlines are within a tolerance, margins left out."""
    boxes = overlap.fragments.trusted(MARGIN)[list(overlap.windows)]
    low, high = boxes[:, :2].max(axis=0), boxes[:, 2:].min(axis=0)
    if (low >= high).any():
        return []
    region = (*low.tolist(), *high.tolist())
    fractions = np.zeros(overlap.common.shape)
    for i in free[0]:
        for j in free[1]:
            if overlap.common[i, j]:
                own, other = (clip(overlap.view(*k), region) for k in ((0, i), (1, j)))
                fractions[i, j] = min(tolerant_fraction(own, other), tolerant_fraction(other, own))
    return greedy_pairs(fractions, TOLERANT, free)


def _contained(overlap: Overlap, free: list[list[int]], pairs: set[Pair]) -> list[Pair]:
    """Match free fragments that their window cuts with a larger one of the other window."""
    flipped = {pair[::-1] for pair in pairs}
    back = _contained_in_second(overlap.flipped(), free[1], flipped)
    return _contained_in_second(overlap, free[0], pairs) + [pair[::-1] for pair in back]


def _contained_in_second(overlap: Overlap, free: list[int], pairs: set[Pair]) -> list[Pair]:
    """Match free fragments of the first window.

    A fragment that its own window shows inside the same particle is another particle on top of it.
    """
    found, numbers = [], overlap.numbers
    own_window, other_window = overlap.fragments.windows[list(overlap.windows)]
    beyond = np.concatenate([other_window[:2] < own_window[:2], other_window[2:] > own_window[2:]])
    trusted = overlap.fragments.trusted(MARGIN)[overlap.windows[1]].tolist()
    for index in free:
        others = np.flatnonzero(overlap.common[index]).tolist()
        own = overlap.view(0, index)
        reliable = np.count_nonzero(clip(own, trusted).mask) >= overlap.areas[0][index] / 2
        # Near a border of its window that lies inside the other window.
        cut = ((np.abs(box_of(own) - own_window) <= MARGIN) & beyond).any()
        if not (others and reliable and cut):
            continue
        fractions = [tolerant_fraction(own, overlap.view(1, k)) for k in others]
        best = int(np.argmax(fractions))
        target = numbers[1][others[best]]
        twins = {first for first, second in pairs if second == target}
        if fractions[best] >= TOLERANT and not any(
            tolerant_fraction(own, overlap.view(0, k)) >= TOLERANT
            for k, number in enumerate(numbers[0])
            if number in twins
        ):
            found.append((index, others[best]))
    return found


def _end_to_end(overlap: Overlap, free: list[list[int]], _: set[Pair]) -> list[Pair]:
    """Match free thin fragments that end opposite each other, both near their windows' borders."""
    fragments = overlap.fragments
    x0, y0, x1, y1 = overlap.region
    reach = max(MARGIN, min(x1 - x0, y1 - y0) // 2)
    close = np.zeros(overlap.common.shape)
    for i in free[0]:
        for j in free[1]:
            numbers = overlap.numbers[0][i], overlap.numbers[1][j]
            views = [fragments.view(number) for number in numbers]
            boxes = np.array([box_of(view) for view in views])
            apart = (boxes[:, :2].max(axis=0) - boxes[:, 2:].min(axis=0)).max()
            if apart > reach or not all(is_thin(view) for view in views):
                continue
            # The ends that matter lie in or near the region.
            around = (x0 - reach, y0 - reach, x1 + reach, y1 + reach)
            ends = [clip(view, around) for view in views]
            joint = joint_of(*ends)
            lost = all(
                near_border(fragments, window, spot, 2 * MARGIN)
                for window, spot in zip(overlap.windows, joint.spots, strict=True)
            )
            if lost and joint.end_to_end and joint.gap <= reach:
                close[i, j] = 1 / (1 + joint.gap)
    return greedy_pairs(close, 1e-9, free)
