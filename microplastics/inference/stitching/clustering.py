"""Clusters of fragments that are one particle."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from scipy.cluster.hierarchy import DisjointSet
from scipy.ndimage import distance_transform_edt
from scipy.spatial import cKDTree

from microplastics.inference.stitching.overlaps import (
    AGREE,
    MARGIN,
    TOLERANT,
    Fragments,
    Overlap,
    Pair,
    View,
    agreement,
    box_of,
    clip,
    common_pixels,
    greedy_pairs,
    overlaps_of,
    paint,
    pieces,
    tolerant_fraction,
    union,
)

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

    Args:
        fragments: all of them.

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
            for side in (0, 1):
                for merged, group in _conflicts(overlap, side):
                    number, others = overlap.numbers[side][merged], overlap.numbers[1 - side]
                    if _belong_together(overlap, side, merged, group):
                        joined.update((number, others[part]) for part in group)
                    elif turn < _ROUNDS and number not in parts:
                        parts[number] = _cut_along(overlap, side, merged, group)
        if not parts:
            break
        split += len(parts)
        fragments = fragments.replaced(parts)
    return fragments, overlaps, sorted(joined), split


def _conflicts(overlap: Overlap, side: int) -> list[tuple[int, list[int]]]:
    """Return positions of merged fragments on a side, and of their parts on the other."""
    common, iou = overlap.common, overlap.iou()
    if side == 1:
        common, iou = common.T, iou.T
    own, other = overlap.areas[side], overlap.areas[1 - side]
    inside = (common >= _CONTAINED * other) & (other >= _PART * own[:, None])
    found = []
    for row in np.flatnonzero(inside.sum(axis=1) >= 2).tolist():
        if (iou[row] == 1).any():
            continue
        elsewhere = np.delete(iou, row, axis=0)
        free = inside[row] & ~(elsewhere >= AGREE).any(axis=0)
        group = _apart(overlap, side, np.flatnonzero(free).tolist())
        if len(group) >= 2:
            found += [(row, part) for part in _by_piece(overlap, side, row, group)]
    return found


def _apart(overlap: Overlap, side: int, group: list[int]) -> list[int]:
    """Select the parts that are not nested in a larger one."""
    areas = overlap.areas[1 - side]
    kept: dict[int, View] = {}
    for index in sorted(group, key=lambda i: (-areas[i], i)):
        view = overlap.view(1 - side, index)
        if all(common_pixels(view, other) <= areas[index] / 2 for other in kept.values()):
            kept[index] = view
    return list(kept)


def _by_piece(overlap: Overlap, side: int, row: int, group: list[int]) -> list[list[int]]:
    """Group the parts by the connected piece of the merged fragment that they lie in."""
    view = overlap.view(side, row)
    labels, areas = pieces(view)
    owners: dict[int, list[int]] = defaultdict(list)
    covered: dict[int, int] = defaultdict(int)
    for index in group:
        part = clip(overlap.view(1 - side, index), box_of(view))
        under = clip(View(labels, view.x, view.y), box_of(part)).mask[part.mask]
        counts = np.bincount(under, minlength=len(areas) + 1)
        counts[0] = 0
        label = int(counts.argmax())
        owners[label].append(index)
        covered[label] += int(counts[label])
    return [
        found
        for label, found in owners.items()
        if len(found) >= 2 and covered[label] >= _COVERED * areas[label - 1]
    ]


def _belong_together(overlap: Overlap, side: int, merged: int, group: list[int]) -> bool:
    """Whether each part connects to another one, along a fibre or at its window's border."""
    views = [overlap.view(1 - side, index) for index in group]
    window = overlap.windows[1 - side]
    fibre = is_thin(overlap.view(side, merged))
    for index, view in enumerate(views):
        joints = (joint_of(view, other) for other in views[:index] + views[index + 1 :])
        if not any(
            (fibre and joint.end_to_end)
            or near_border(overlap.fragments, window, joint.first, MARGIN)
            for joint in joints
        ):
            return False
    return True


def near_border(fragments: Fragments, window: int, pixel: tuple[int, int], reach: int) -> bool:
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
        first, second: x and y of the two pixels that are nearest to each other.
        gap: px between them.
        end_to_end: whether both masks end there and continue one another.
    """

    first: tuple[int, int]
    second: tuple[int, int]
    gap: float
    end_to_end: bool


def joint_of(first: View, second: View) -> Joint:
    """Find the nearest points of two masks, and whether both end there.

    Args:
        first, second: the masks, neither empty.
    """
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
    at = (*(tuple(spot.tolist()) for spot in spots), float(distances[nearest_own]))
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


def _cut_along(overlap: Overlap, side: int, merged: int, group: list[int]) -> list[View]:
    """Assign each pixel of the merged fragment to the nearest part.

    Pixels outside the other window go to the parts that this window cuts, if there are any.
    """
    fragments = overlap.fragments
    whole = fragments.view(overlap.numbers[side][merged])
    parts = [clip(overlap.view(1 - side, index), box_of(whole)) for index in group]
    numbers = [overlap.numbers[1 - side][index] for index in group]
    cut = fragments.border_gaps(numbers).min(axis=1) <= MARGIN
    if not cut.any():
        cut[:] = True
    owner = _nearest(whole, parts)
    outside = np.ones_like(whole.mask)
    clip(View(outside, whole.x, whole.y), overlap.region).mask[:] = False
    beyond = _nearest(whole, [parts[k] for k in np.flatnonzero(cut).tolist()])
    owner[outside] = np.flatnonzero(cut)[beyond[outside]]
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


class Clusters:
    """Disjoint sets of fragments."""

    def __init__(self, fragments: Fragments) -> None:
        self._sets = DisjointSet(range(len(fragments)))
        whole = fragments.whole()
        self._whole: dict[int, set[int]] = {
            number: {window}
            for number, window in enumerate(fragments.window.tolist())
            if whole[number]
        }

    def find(self, fragment: int) -> int:
        """Return the number that represents a fragment's set."""
        return self._sets[fragment]

    def join(self, first: int, second: int) -> None:
        """Merge two sets."""
        whole = [self._whole.get(self.find(fragment), set()) for fragment in (first, second)]
        if self._sets.merge(first, second):
            self._whole[self.find(first)] = whole[0] | whole[1]

    def may_join(self, first: int, second: int) -> bool:
        """Whether they are one set, or no window shows both sets whole and thus separately."""
        first, second = self.find(first), self.find(second)
        whole = self._whole
        return first == second or whole.get(first, set()).isdisjoint(whole.get(second, set()))

    def members(self) -> list[list[int]]:
        """Return the sets in ascending order, each ascending."""
        return sorted(sorted(members) for members in self._sets.subsets())


def cluster(
    fragments: Fragments, overlaps: list[Overlap], joined: Iterable[Pair]
) -> tuple[Clusters, set[int]]:
    """Link fragments, the surest evidence first.

    Args:
        fragments: all of them.
        overlaps: every two windows that share pixels.
        joined: pairs known to belong together.

    Returns:
        the sets, and the fragments that differ in another window which sees them.
    """
    clusters = Clusters(fragments)
    linked: list[tuple[Overlap, set[Pair]]] = []
    tied, loose = [], set()
    for first, second in joined:
        clusters.join(first, second)
    together = set(joined)
    for overlap in overlaps:
        found = agreement(overlap)
        for first, second in found.sure:
            clusters.join(first, second)
        tied += [(*pair, len(linked)) for pair in found.tied]
        loose.update(found.loose)
        linked.append((overlap, set(found.sure)))
    _resolve_ties(fragments, clusters, tied, linked)
    # A large region is far from the corners of windows and says more than a small one.
    linked.sort(key=lambda each: (-_area(each[0]), each[0].windows))
    for overlap, pairs in linked:
        inside = [set(numbers) for numbers in overlap.numbers]
        pairs |= {(a, b) for a, b in together if a in inside[0] and b in inside[1]}
        pairs |= {(b, a) for a, b in together if b in inside[0] and a in inside[1]}
        _link_loosely(clusters, overlap, pairs)
    return clusters, loose


def _area(overlap: Overlap) -> int:
    x0, y0, x1, y1 = overlap.region
    return (x1 - x0) * (y1 - y0)


def _resolve_ties(
    fragments: Fragments,
    clusters: Clusters,
    tied: list[tuple[float, int, int, int]],
    linked: list[tuple[Overlap, set[Pair]]],
) -> None:
    """Match fragments that agree with several: as other windows do, then by class and direction."""
    classes, scores = fragments.found.classes, fragments.found.scores
    used: list[set[int]] = [set() for _ in linked]

    def order(tie: tuple[float, int, int, int]) -> tuple:
        iou, a, b, place = tie
        apart = clusters.find(a) != clusters.find(b)
        other = bool(classes[a] != classes[b])
        bend = round(_bend(fragments, a, b, linked[place][0].region), 2)
        return -iou, apart, other, bend, abs(float(scores[a] - scores[b])), a, b

    rivals: dict[int, tuple[set[int], set[int]]] = {}
    for _, a, b, place in tied:
        sides = rivals.setdefault(place, (set(), set()))
        sides[0].add(a)
        sides[1].add(b)

    def taken(a: int, b: int, place: int) -> bool:
        """Whether other windows have already assigned one of the two to a rival of the other."""
        first, second = clusters.find(a), clusters.find(b)
        return first != second and (
            any(clusters.find(rival) == second for rival in rivals[place][0])
            or any(clusters.find(rival) == first for rival in rivals[place][1])
        )

    for _, a, b, place in sorted(tied, key=order):
        if a not in used[place] and b not in used[place] and not taken(a, b, place):
            used[place].update((a, b))
            linked[place][1].add((a, b))
            clusters.join(a, b)


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
            if clusters.may_join(a, b):
                clusters.join(a, b)
                pairs.add((a, b))
                free = [[k for k in free[0] if k != i], [k for k in free[1] if k != j]]


def _tolerant(overlap: Overlap, free: list[list[int]], _: set[Pair]) -> list[Pair]:
    """Match free fragments whose outlines are within a tolerance, margins left out."""
    boxes = overlap.fragments.trusted(MARGIN)[list(overlap.windows)]
    low, high = boxes[:, :2].max(axis=0), boxes[:, 2:].min(axis=0)
    if (low >= high).any() or not all(free):
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
    """Match free fragments that their window cuts with a larger one of the other window.

    A fragment that its own window shows inside the same particle is another particle on top of it.
    """
    found, numbers = [], overlap.numbers
    for side in (0, 1):
        common = overlap.common if side == 0 else overlap.common.T
        trusted = overlap.fragments.trusted(MARGIN)[overlap.windows[1 - side]].tolist()
        for index in free[side]:
            others = np.flatnonzero(common[index]).tolist()
            own = overlap.view(side, index)
            reliable = np.count_nonzero(clip(own, trusted).mask) >= overlap.areas[side][index] / 2
            if not (others and reliable and _is_cut_inside(overlap, side, own)):
                continue
            fractions = [tolerant_fraction(own, overlap.view(1 - side, k)) for k in others]
            best = int(np.argmax(fractions))
            if fractions[best] < TOLERANT:
                continue
            target = numbers[1 - side][others[best]]
            twins = {pair[side] for pair in pairs if pair[1 - side] == target}
            if any(
                tolerant_fraction(own, overlap.view(side, k)) >= TOLERANT
                for k, number in enumerate(numbers[side])
                if number in twins
            ):
                continue
            pair = (index, others[best])
            found.append(pair if side == 0 else pair[::-1])
    return found


def _is_cut_inside(overlap: Overlap, side: int, view: View) -> bool:
    """Whether a fragment ends near a border of its window that lies inside the other window."""
    own, other = (overlap.fragments.windows[overlap.windows[k]] for k in (side, 1 - side))
    beyond = np.concatenate([other[:2] < own[:2], other[2:] > own[2:]])
    return bool(((np.abs(box_of(view) - own) <= MARGIN) & beyond).any())


def _end_to_end(overlap: Overlap, free: list[list[int]], _: set[Pair]) -> list[Pair]:
    """Match free thin fragments that end opposite each other, both near their windows' borders."""
    fragments = overlap.fragments
    x0, y0, x1, y1 = overlap.region
    reach = max(MARGIN, min(x1 - x0, y1 - y0) // 2)
    close = np.zeros(overlap.common.shape)
    for i in free[0]:
        for j in free[1]:
            views = [
                fragments.view(overlap.numbers[side][index]) for side, index in enumerate((i, j))
            ]
            boxes = np.array([box_of(view) for view in views])
            apart = (boxes[:, :2].max(axis=0) - boxes[:, 2:].min(axis=0)).max()
            if apart > reach or not all(is_thin(view) for view in views):
                continue
            # The ends that matter lie in or near the region.
            around = (x0 - reach, y0 - reach, x1 + reach, y1 + reach)
            ends = [clip(view, around) for view in views]
            joint = joint_of(*ends)
            lost = all(
                near_border(fragments, window, pixel, 2 * MARGIN)
                for window, pixel in zip(overlap.windows, joint[:2], strict=True)
            )
            if lost and joint.end_to_end and joint.gap <= reach:
                close[i, j] = 1 / (1 + joint.gap)
    return greedy_pairs(close, 1e-9, free)
