"""The graph of fragments: which of them are one particle."""

from collections.abc import Iterable, Sequence

import numpy as np

from microplastics.inference.stitch_conflicts import is_thin, joint_of, near_border
from microplastics.inference.stitch_fragments import Fragments, box_of, clip
from microplastics.inference.stitch_overlaps import (
    MARGIN,
    TOLERANT,
    Overlap,
    Pair,
    agreement,
    greedy_pairs,
    tolerant_share,
)

_AROUND = 32  # px on both sides of a region in which fibres show where they go


class Clusters:
    """Disjoint sets of fragments."""

    def __init__(self, fragments: Fragments) -> None:
        self._parent = list(range(len(fragments)))
        whole = np.flatnonzero(fragments.border_gaps().min(axis=1, initial=MARGIN + 1) > MARGIN)
        self._whole: dict[int, set[int]] = {
            number: {window}
            for number, window in zip(whole.tolist(), fragments.window[whole].tolist(), strict=True)
        }

    def find(self, fragment: int) -> int:
        """The number that stands for a fragment's set."""
        parent = self._parent
        while parent[fragment] != fragment:
            parent[fragment] = parent[parent[fragment]]
            fragment = parent[fragment]
        return fragment

    def join(self, first: int, second: int) -> None:
        """Make two sets one."""
        low, high = sorted((self.find(first), self.find(second)))
        if low == high:
            return
        self._parent[high] = low
        whole = self._whole.pop(high, None)
        if whole:
            self._whole.setdefault(low, set()).update(whole)

    def may_join(self, first: int, second: int) -> bool:
        """Whether no window shows both sets whole: it would have told them apart."""
        sets = [self._whole.get(self.find(fragment), set()) for fragment in (first, second)]
        return sets[0].isdisjoint(sets[1])

    def members(self) -> list[list[int]]:
        """The sets, each ascending."""
        sets: dict[int, list[int]] = {}
        for fragment in range(len(self._parent)):
            sets.setdefault(self.find(fragment), []).append(fragment)
        return list(sets.values())


def cluster(
    fragments: Fragments, overlaps: list[Overlap], joined: Iterable[Pair]
) -> tuple[Clusters, set[int]]:
    """Link fragments, the surest evidence first.

    Args:
        fragments: all of them.
        overlaps: every two windows that share pixels.
        joined: pairs known to belong together.

    Returns:
        the sets, and the fragments that are not the same in some other window which sees them.
    """
    clusters = Clusters(fragments)
    linked: list[tuple[Overlap, set[Pair]]] = []
    tied, loose = [], set()
    for first, second in joined:
        clusters.join(first, second)
    together = set(joined)
    for overlap in overlaps:
        if not overlap.twins().all(axis=None):
            overlap.look(fragments)
        found = agreement(overlap)
        overlap.forget()
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
        _link_loosely(fragments, clusters, overlap, pairs)
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
    """Match what agrees with several: as other windows do, then of one class and direction."""
    classes, scores = fragments.classes, fragments.scores
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
        """Whether other windows have already given one of the two to a rival of the other."""
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
    """How far two fragments around a region are from one straight line, in px."""
    x0, y0, x1, y1 = region
    reach = _AROUND
    around = (x0 - reach, y0 - reach, x1 + reach, y1 + reach)
    views = [clip(fragments.view(number), around) for number in (a, b)]
    points = np.concatenate([np.argwhere(v.mask) + (v.y, v.x) for v in views])
    return float(np.sqrt(max(0.0, np.linalg.eigvalsh(np.cov(points, rowvar=False, ddof=0))[0])))


def _link_loosely(
    fragments: Fragments, clusters: Clusters, overlap: Overlap, pairs: set[Pair]
) -> None:
    """Link what agrees in neither pixels nor pieces, in one overlap."""
    linked = [{pair[side] for pair in pairs} for side in (0, 1)]
    free = [
        [i for i, number in enumerate(overlap.numbers[side]) if number not in linked[side]]
        for side in (0, 1)
    ]
    if not any(free):
        return
    overlap.look(fragments)
    for link in (_tolerant, _contained, _end_to_end):
        for i, j in link(fragments, overlap, free, pairs):
            a, b = overlap.numbers[0][i], overlap.numbers[1][j]
            if clusters.find(a) == clusters.find(b) or clusters.may_join(a, b):
                clusters.join(a, b)
                pairs.add((a, b))
                free = [[k for k in free[0] if k != i], [k for k in free[1] if k != j]]
    overlap.forget()


def _tolerant(
    fragments: Fragments, overlap: Overlap, free: list[list[int]], _: set[Pair]
) -> list[Pair]:
    """Free fragments whose outlines are within a tolerance, margins left out."""
    region = np.array(overlap.region)
    for window in overlap.windows:
        box = fragments.trusted(MARGIN)[window]
        region[:2] = np.maximum(region[:2], box[:2])
        region[2:] = np.minimum(region[2:], box[2:])
    if (region[:2] >= region[2:]).any() or not all(free):
        return []
    inner = [[clip(view, region.tolist()) for view in views] for views in overlap.views]
    shares = np.zeros(overlap.common.shape)
    for i in free[0]:
        for j in free[1]:
            if overlap.common[i, j]:
                own, other = inner[0][i], inner[1][j]
                shares[i, j] = min(tolerant_share(own, other), tolerant_share(other, own))
    return greedy_pairs(shares, TOLERANT, free)


def _contained(
    fragments: Fragments, overlap: Overlap, free: list[list[int]], pairs: set[Pair]
) -> list[Pair]:
    """Free fragments that are cut where the other window sees on, and lie in one of its own.

    Not those that lie in the same thing in their own window too: they are something else on it.
    """
    found, views = [], overlap.views
    for side in (0, 1):
        numbers = overlap.numbers
        common = overlap.common if side == 0 else overlap.common.T
        trusted = fragments.trusted(MARGIN)[overlap.windows[1 - side]].tolist()
        cut = _cut_before(fragments, overlap, side)
        for index in free[side]:
            others = np.flatnonzero(common[index]).tolist()
            own = views[side][index]
            reliable = np.count_nonzero(clip(own, trusted).mask)
            if not others or not cut[index] or reliable < overlap.areas[side][index] / 2:
                continue
            shares = [tolerant_share(own, views[1 - side][k]) for k in others]
            best = int(np.argmax(shares))
            if shares[best] < TOLERANT:
                continue
            target = numbers[1 - side][others[best]]
            twins = {pair[side] for pair in pairs if pair[1 - side] == target}
            if any(
                tolerant_share(own, views[side][k]) >= TOLERANT
                for k, number in enumerate(numbers[side])
                if number in twins
            ):
                continue
            pair = (index, others[best])
            found.append(pair if side == 0 else pair[::-1])
    return found


def _cut_before(fragments: Fragments, overlap: Overlap, side: int) -> np.ndarray:
    """(n,) bool: which fragments end near a border beyond which the other window sees on."""
    own, other = (fragments.windows[overlap.windows[k]] for k in (side, 1 - side))
    beyond = np.concatenate([other[:2] < own[:2], other[2:] > own[2:]])
    boxes = np.array([box_of(view) for view in overlap.views[side]]).reshape(-1, 4)
    return ((np.abs(boxes - own) <= MARGIN) & beyond).any(axis=1)


def _end_to_end(
    fragments: Fragments, overlap: Overlap, free: list[list[int]], _: set[Pair]
) -> list[Pair]:
    """Free thin fragments that end opposite each other, both near their windows' borders."""
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
