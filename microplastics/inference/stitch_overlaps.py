"""What two overlapping windows saw of the same place, and which fragments agree there."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np

from microplastics.inference.stitch_fragments import (
    Fragments,
    View,
    box_of,
    clip,
    common_pixels,
    dilated,
)

AGREE = 0.5  # least IoU at which two views show one thing
TOLERANCE = 2  # px by which outlines may differ
TOLERANT = 0.6  # least share of both that lies within the tolerance of the other
MARGIN = 8  # px along a window's inner border where masks are not to be trusted
_SPECK = 0.05  # of both fragments: too little to join them when the rest disagrees

# Numbers of a fragment of the first and of the second window.
Pair = tuple[int, int]


class Overlap:
    """Two windows, and their fragments inside of what they share.

    Attributes:
        windows: numbers of the two.
        region: x0, y0, x1, y1 of what they share.
        numbers: for each of the two, the fragments with pixels in the region.
        areas: for each of the two, how many pixels these have there, (n,) int64.
        common: (n, m) int64 pixels that are in both.
    """

    def __init__(self, fragments: Fragments, first: int, second: int, region: Sequence[int]):
        self.windows = (first, second)
        self.region = tuple(region)
        sides = [_inside(fragments, window, self.region) for window in self.windows]
        self.numbers = [[number for number, _, _ in side] for side in sides]
        self.views = [[view for _, view, _ in side] for side in sides]
        self.areas = [np.array([area for *_, area in side], dtype=np.int64) for side in sides]
        self.common = np.zeros([len(side) for side in sides], dtype=np.int64)
        if not all(sides):
            return
        boxes = [np.array([box_of(v) for v in views]).reshape(-1, 4) for views in self.views]
        low = np.maximum(boxes[0][:, None, :2], boxes[1][None, :, :2])
        high = np.minimum(boxes[0][:, None, 2:], boxes[1][None, :, 2:])
        for i, j in np.argwhere((low < high).all(axis=2)).tolist():
            self.common[i, j] = common_pixels(self.views[0][i], self.views[1][j])

    def iou(self) -> np.ndarray:
        """(n, m) IoU inside of the region."""
        return self.common / (self.areas[0][:, None] + self.areas[1] - self.common)

    def twins(self) -> np.ndarray:
        """(n, m) bool: equal to the last pixel."""
        return (self.common == self.areas[0][:, None]) & (self.common == self.areas[1])

    def forget(self) -> None:
        """Let go of the masks; :meth:`look` brings them back."""
        self.views = [[], []]

    def look(self, fragments: Fragments) -> None:
        """Unpack the masks again."""
        if not any(self.views):
            self.views = [
                [clip(fragments.view(number), self.region) for number in numbers]
                for numbers in self.numbers
            ]


def _inside(
    fragments: Fragments, window: int, region: Sequence[int]
) -> list[tuple[int, View, int]]:
    """Number, mask and pixels of what a window shows inside of a region."""
    members = fragments.members(window)
    low, high = fragments.boxes[members, :2], fragments.boxes[members, 2:]
    meets = ((low < region[2:]) & (high > region[:2])).all(axis=1)
    numbers = np.flatnonzero(meets)
    inside = ((low[numbers] >= region[:2]) & (high[numbers] <= region[2:])).all(axis=1)
    numbers += members.start
    areas = np.where(inside, fragments.areas[numbers], 0).tolist()
    found = []
    for number, area in zip(numbers.tolist(), areas, strict=True):
        view = fragments.view(number)
        if not area:
            view = clip(view, region)
            area = int(np.count_nonzero(view.mask))
        if area:
            found.append((number, view, area))
    return found


def overlaps_of(fragments: Fragments, among: set[int] | None = None) -> Iterator[Overlap]:
    """Every two windows that share pixels and have both found something there.

    Args:
        fragments: of all windows.
        among: only pairs with one of these windows.
    """
    windows = fragments.windows
    for first in range(len(windows)):
        low = np.maximum(windows[first, :2], windows[first + 1 :, :2])
        high = np.minimum(windows[first, 2:], windows[first + 1 :, 2:])
        for index in np.flatnonzero((low < high).all(axis=1)).tolist():
            second = first + 1 + index
            if among is None or first in among or second in among:
                region = (*low[index].tolist(), *high[index].tolist())
                overlap = Overlap(fragments, first, second, region)
                if all(overlap.numbers):
                    yield overlap


class Agreement(NamedTuple):
    """Links between the fragments of two windows, by number.

    Attributes:
        sure: pairs of which each is the other's only best.
        tied: pairs that agree as well as others do, with their IoU.
        loose: fragments without an equal twin, which may be linked nevertheless.
    """

    sure: list[Pair]
    tied: list[tuple[float, int, int]]
    loose: list[int]


def agreement(overlap: Overlap) -> Agreement:
    """Match the fragments of two windows one to one, by the pixels that both could see.

    Equal ones first. Of the rest each 4-connected piece inside of the region is matched by
    itself: a bent fibre may be one fragment in a window and two in the other, but a piece of it
    is the same in both. What agrees as a whole though not piece by piece comes last.
    """
    twins = overlap.twins()
    rows, columns = twins.sum(axis=1), twins.sum(axis=0)
    sure, tied = [], []
    numbers = overlap.numbers
    for i, j in np.argwhere(twins).tolist():
        if rows[i] == columns[j] == 1:
            sure.append((numbers[0][i], numbers[1][j]))
        else:
            tied.append((1.0, numbers[0][i], numbers[1][j]))
    rest = [np.flatnonzero(rows == 0).tolist(), np.flatnonzero(columns == 0).tolist()]
    loose = [numbers[side][index] for side in (0, 1) for index in rest[side]]
    if not all(rest):
        return Agreement(sure, tied, loose)
    by_pieces = _match_pieces(overlap, rest)
    linked = [{pair[side] for pair in by_pieces} for side in (0, 1)]
    rest = [[i for i in rest[side] if i not in linked[side]] for side in (0, 1)]
    wholly = greedy_pairs(overlap.iou(), AGREE, rest) if all(rest) else []
    sure += [(numbers[0][i], numbers[1][j]) for i, j in by_pieces + wholly]
    return Agreement(sure, tied, loose)


def greedy_pairs(
    values: np.ndarray, least: float, among: Sequence[Sequence[int]] | None = None
) -> list[Pair]:
    """Rows and columns one to one, the highest values first.

    Args:
        values: (n, m).
        least: leave pairs below alone.
        among: rows and columns that may be used; all when left out.
    """
    if among is None:
        among = [range(size) for size in values.shape]
    part = values[np.ix_(*among)]
    rows, columns = np.nonzero(part >= least)
    order = np.argsort(-part[rows, columns], kind="stable")
    pairs, used = [], (set(), set())
    for i, j in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if i not in used[0] and j not in used[1]:
            used[0].add(i)
            used[1].add(j)
            pairs.append((among[0][i], among[1][j]))
    return pairs


def _match_pieces(overlap: Overlap, rest: list[list[int]]) -> list[Pair]:
    """Positions of fragments that have a matching piece."""
    labels, areas, owners = [], [], []
    for side in (0, 1):
        found = [pieces(overlap.views[side][index]) for index in rest[side]]
        labels.append([label for label, _ in found])
        areas.append(np.concatenate([area for _, area in found]))
        owners.append(np.repeat(rest[side], [len(area) for _, area in found]))
    starts = [np.searchsorted(owners[side], rest[side]).tolist() for side in (0, 1)]
    common = np.zeros((len(areas[0]), len(areas[1])), dtype=np.int64)
    for i, j in np.argwhere(overlap.common[np.ix_(*rest)] > 0).tolist():
        first = View(labels[0][i], *overlap.views[0][rest[0][i]][1:])
        second = View(labels[1][j], *overlap.views[1][rest[1][j]][1:])
        own = clip(first, box_of(second))
        other = clip(second, box_of(own)).mask
        both = (own.mask > 0) & (other > 0)
        where = own.mask[both] - 1 + starts[0][i], other[both] - 1 + starts[1][j]
        np.add.at(common, where, 1)
    pairs = greedy_pairs(common / (areas[0][:, None] + areas[1] - common), AGREE)
    matched: dict[Pair, int] = {}
    for i, j in pairs:
        pair = int(owners[0][i]), int(owners[1][j])
        matched[pair] = matched.get(pair, 0) + int(max(areas[0][i], areas[1][j]))
    unmatched = [
        set(owners[side]) & set(np.delete(owners[side], [p[side] for p in pairs]).tolist())
        for side in (0, 1)
    ]
    return [
        (i, j)
        for (i, j), pixels in matched.items()
        if pixels >= _SPECK * min(overlap.areas[0][i], overlap.areas[1][j])
        or not (i in unmatched[0] or j in unmatched[1])
    ]


def pieces(view: View) -> tuple[np.ndarray, np.ndarray]:
    """4-connected pieces of a mask: labels from 1, and the pixels of each.

    Of a particle's piece in a region two windows see the same, however each has cut the rest of
    it; with diagonal neighbours that would not hold for parts that were told apart without them.
    """
    mask = np.ascontiguousarray(view.mask).view(np.uint8)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
    return labels, stats[1:, cv2.CC_STAT_AREA].astype(np.int64)


def tolerant_share(own: View, other: View) -> float:
    """Share of a mask's pixels within :data:`TOLERANCE` of another mask; 0 where one is empty."""
    pixels = int(np.count_nonzero(own.mask))
    return common_pixels(own, dilated(other, TOLERANCE)) / pixels if pixels else 0.0
