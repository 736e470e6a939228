"""Fragments of overlapping windows and their agreement."""

import copy
import dataclasses
import functools
import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import cv2
import numpy as np

from microplastics.structures.view import View, box_of, clip, common_pixels, tight

AGREE = 0.5  # least IoU of two views of one particle
TOLERANCE = 2  # px by which outlines may differ
TOLERANT = 0.6  # least fraction of both masks that lies within the tolerance of the other
MARGIN = 8  # px along a window's inner border where masks are unreliable
_SPECK = 0.05  # of both fragments: too little to join them if the rest disagrees
_PLAIN_PIXELS = 4096  # smaller masks are kept as they are
_DEFLATED_PIXELS = 65536  # larger ones are compressed
_UNPACKED = 256  # recently used fragments that stay unpacked
_FAR = 1 << 30

# Numbers of a fragment of the first and of the second window.
Pair = tuple[int, int]


def meeting(boxes: np.ndarray, box: Sequence[int]) -> np.ndarray:
    """Return (N,) bool: which of N boxes x0, y0, x1, y1 have pixels in common with another one."""
    return ((boxes[:, :2] < box[2:]) & (boxes[:, 2:] > box[:2])).all(axis=1)


def tolerant_fraction(own: View, other: View) -> float:
    """Return the fraction of a mask within :data:`TOLERANCE` of another; 0 if one is empty."""
    pixels = int(np.count_nonzero(own.mask))
    return common_pixels(own, dilated(other, TOLERANCE)) / pixels if pixels else 0.0


def union(views: Sequence[View]) -> View:
    """Merge masks into one that has all their pixels."""
    boxes = np.array([box_of(view) for view in views])
    x0, y0 = boxes[:, :2].min(axis=0).tolist()
    x1, y1 = boxes[:, 2:].max(axis=0).tolist()
    whole = View(np.zeros((y1 - y0, x1 - x0), dtype=bool), x0, y0)
    for view in views:
        clip(whole, box_of(view)).mask[:] |= view.mask
    return whole


def dilated(view: View, pixels: int) -> View:
    """Grow a mask by a disc of a radius in px; its array grows with it."""
    if not view.mask.size:
        return view
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * pixels + 1,) * 2)
    framed = np.pad(view.mask, pixels).view(np.uint8)
    return View(cv2.dilate(framed, kernel).view(bool), view.x - pixels, view.y - pixels)


def paint(canvas: View, part: View, value: int = True) -> None:
    """Set the pixels of a mask in another array, as far as they lie in it."""
    part = clip(part, box_of(canvas))
    clip(canvas, box_of(part)).mask[part.mask] = value


def pieces(view: View, connectivity: int = 4) -> list[View]:
    """Separate the connected pieces of a mask.

    Two windows see the same 4-connected piece of a particle in a region, however each has cut the
    rest of it. With diagonal neighbours that fails for parts that were separated without them.
    """
    if not view.mask.any():
        return []
    mask = np.ascontiguousarray(view.mask).view(np.uint8)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=connectivity)
    return [
        View(labels[y : y + height, x : x + width] == label, view.x + x, view.y + y)
        for label, (x, y, width, height, _) in enumerate(stats[1:].tolist(), 1)
    ]


def common_matrix(first: Sequence[View], second: Sequence[View]) -> np.ndarray:
    """Count (n, m) int64 pixels that are in both of any two of n and m masks."""
    common = np.zeros((len(first), len(second)), dtype=np.int64)
    if not common.size:
        return common
    boxes = [np.array([box_of(view) for view in views]) for views in (first, second)]
    low = np.maximum(boxes[0][:, None, :2], boxes[1][None, :, :2])
    high = np.minimum(boxes[0][:, None, 2:], boxes[1][None, :, 2:])
    for i, j in np.argwhere((low < high).all(axis=2)).tolist():
        common[i, j] = common_pixels(first[i], second[j])
    return common


def iou_of(common: np.ndarray, areas: Sequence[np.ndarray]) -> np.ndarray:
    """Return (n, m) IoU of masks, from the pixels in common and those of each."""
    return common / (areas[0][:, None] + areas[1] - common)


class PackedMasks(Sequence[np.ndarray]):
    """Masks of :func:`pack`, unpacked one at a time: a thin fibre takes 1/50 of its box."""

    def __init__(self, packed: np.ndarray) -> None:
        self._packed = packed

    def __len__(self) -> int:
        return len(self._packed)

    def __getitem__(self, number: int) -> np.ndarray:
        return unpack(self._packed[number])


def pack(mask: np.ndarray) -> tuple[tuple[int, int], np.ndarray | bytes]:
    """Give the shape of a mask and a small copy: the box of a fibre is nearly empty."""
    if mask.size <= _PLAIN_PIXELS:
        return mask.shape, mask.copy()
    bits = np.packbits(mask)
    return mask.shape, bits if mask.size <= _DEFLATED_PIXELS else zlib.compress(bits, 1)


def unpack(packed: tuple[tuple[int, int], np.ndarray | bytes]) -> np.ndarray:
    """Return the (h, w) bool array of a mask of :func:`pack`, to be read only."""
    shape, bits = packed
    if isinstance(bits, bytes):
        bits = np.frombuffer(zlib.decompress(bits), np.uint8)
    if bits.dtype == bool:
        return bits
    return np.unpackbits(bits, count=shape[0] * shape[1]).reshape(shape).view(bool)


def objects(items: Collection[Any]) -> np.ndarray:
    """Make a column of lists or packed masks."""
    return np.fromiter(items, dtype=object, count=len(items))


@dataclasses.dataclass
class Detections:
    """Masks of one image and their attributes, one row each.

    Attributes:
        masks: (N,) packed, tight.
        boxes: (N, 4) int64 x0, y0, x1, y1 in px.
        areas: (N,) int64 px.
        classes: (N,) int64.
        scores: (N,) float64.
        members: (N,) lists of numbers: the fragments that a particle is made of.
    """

    masks: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    classes: np.ndarray
    scores: np.ndarray
    members: np.ndarray

    @classmethod
    def of(
        cls,
        views: Sequence[View],
        classes: object,
        scores: object,
        members: Sequence[list[int]] | None = None,
    ) -> "Detections":
        """Pack tight masks, and compute their boxes and areas."""
        return cls(
            objects([pack(view.mask) for view in views]),
            np.array([box_of(view) for view in views], dtype=np.int64).reshape(-1, 4),
            np.array([np.count_nonzero(view.mask) for view in views], dtype=np.int64),
            np.asarray(classes, dtype=np.int64),
            np.asarray(scores, dtype=np.float64),
            objects([[]] * len(views) if members is None else members),
        )

    @classmethod
    def cat(cls, parts: Iterable["Detections"]) -> "Detections":
        """Concatenate rows; at least one part."""
        columns = zip(*(vars(part).values() for part in parts), strict=True)
        return cls(*(np.concatenate(column) for column in columns))

    def __len__(self) -> int:
        return len(self.masks)

    def view(self, number: int) -> View:
        """Unpack a mask."""
        return View(unpack(self.masks[number]), *self.boxes[number, :2].tolist())

    def take(self, numbers: Sequence[int] | np.ndarray) -> "Detections":
        """Select rows by number."""
        numbers = np.asarray(numbers, dtype=np.int64)
        return type(self)(*(column[numbers] for column in vars(self).values()))


class Fragments:
    """All fragments of one image, in an order that does not depend on the order of windows.

    Attributes:
        windows: (M, 4) int64 x0, y0, x1, y1 in px, row by row.
        image_size: height and width in px.
        inner: (M, 4) bool, which of these sides lie inside the image.
        window: (N,) int64 window of each fragment; ascending.
        bounds: (M + 1,) numbers: where the fragments of each window begin.
        found: the fragments.
        view: unpacks a fragment by its number.
    """

    def __init__(
        self,
        windows: np.ndarray,
        image_size: tuple[int, int],
        window: np.ndarray,
        found: Detections,
    ) -> None:
        by_row = np.lexsort(windows.T[[2, 3, 0, 1]])
        self.windows = windows[by_row]
        self.image_size = image_size
        self.inner = self.windows != (0, 0, *image_size[::-1])
        window = np.argsort(by_row)[window]
        order = np.lexsort((found.scores, found.classes, found.areas, *found.boxes.T[::-1], window))
        self.window, self.found = window[order], found.take(order)
        self.bounds = np.searchsorted(self.window, np.arange(len(windows) + 1)).tolist()
        # Neighbouring windows need the same ones.
        self.view = functools.lru_cache(_UNPACKED)(self.found.view)

    def __len__(self) -> int:
        return len(self.window)

    def border_gaps(self, numbers: Sequence[int] | slice = slice(None)) -> np.ndarray:
        """Return (n, 4) px from fragments to the sides of their windows; huge at the image's."""
        window = self.window[numbers]
        gaps = np.abs(self.found.boxes[numbers] - self.windows[window])
        return np.where(self.inner[window], gaps, _FAR)

    def whole(self) -> np.ndarray:
        """Return (N,) bool: which fragments keep the margin to their window's inner borders."""
        return self.border_gaps().min(axis=1, initial=MARGIN + 1) > MARGIN

    def inner_distance(self, window: int, box: Sequence[int]) -> np.ndarray:
        """Compute the distance of each pixel of a box from its window's nearest inner border.

        Returns:
            (height, width) of the box, int64 px, 1 at the border; huge without inner borders.
        """
        sides = np.where(self.inner[window], self.windows[window], (-_FAR, -_FAR, _FAR, _FAR))
        x, y = np.arange(box[0], box[2]), np.arange(box[1], box[3])
        across = np.minimum(x - sides[0] + 1, sides[2] - x)
        down = np.minimum(y - sides[1] + 1, sides[3] - y)
        return np.minimum(across, down[:, None])

    def trusted(self, margin: int) -> np.ndarray:
        """Return (M, 4) int64 boxes of the windows without a margin at their inner borders."""
        return self.windows + self.inner * np.array([1, 1, -1, -1]) * margin

    def replaced(self, parts: dict[int, list[View]]) -> "Fragments":
        """Cut fragments, by number, into parts with a pixel each and their class and score."""
        kept = [number for number in range(len(self)) if number not in parts]
        origin = [number for number, views in parts.items() for _ in views]
        views = [tight(*view) for group in parts.values() for view in group]
        cut = Detections.of(views, self.found.classes[origin], self.found.scores[origin])
        return Fragments(
            self.windows,
            self.image_size,
            self.window[kept + origin],
            Detections.cat([self.found.take(kept), cut]),
        )


class Overlap:
    """Two overlapping windows and their fragments inside the common region.

    Attributes:
        fragments: of all windows.
        windows: numbers of the two.
        region: x0, y0, x1, y1 of the common region.
        numbers: for each of the two, the fragments with pixels in the region.
        areas: for each of the two, (n,) int64 pixels of these fragments in the region.
        common: (n, m) int64 pixels that are in both.
    """

    def __init__(self, fragments: Fragments, first: int, second: int, region: Sequence[int]):
        self.fragments = fragments
        self.windows = (first, second)
        self.region = tuple(region)
        views, self.numbers, self.areas = [], [], []
        for window in self.windows:
            start, stop = fragments.bounds[window : window + 2]
            meets = meeting(fragments.found.boxes[start:stop], self.region)
            numbers = (start + np.flatnonzero(meets)).tolist()
            parts = [clip(fragments.view(number), self.region) for number in numbers]
            areas = np.array([np.count_nonzero(part.mask) for part in parts], dtype=np.int64)
            views.append([part for part, area in zip(parts, areas, strict=True) if area])
            self.numbers.append([n for n, area in zip(numbers, areas, strict=True) if area])
            self.areas.append(areas[areas > 0])
        self.common = common_matrix(*views)

    def flipped(self) -> "Overlap":
        """Return the overlap with its two windows exchanged."""
        other = copy.copy(self)
        other.windows, other.numbers = self.windows[::-1], self.numbers[::-1]
        other.areas, other.common = self.areas[::-1], self.common.T
        return other

    def view(self, side: int, index: int) -> View:
        """Return the part of a fragment inside the region, by its position in ``numbers``."""
        return clip(self.fragments.view(self.numbers[side][index]), self.region)

    def region_area(self) -> int:
        """Return the px of the region."""
        x0, y0, x1, y1 = self.region
        return (x1 - x0) * (y1 - y0)

    def iou(self) -> np.ndarray:
        """Return (n, m) IoU inside the region."""
        return iou_of(self.common, self.areas)


def overlaps_of(fragments: Fragments) -> Iterator[Overlap]:
    """Yield every two windows that share pixels and both have fragments there."""
    windows = fragments.windows
    for first in range(len(windows)):
        low = np.maximum(windows[first, :2], windows[first + 1 :, :2])
        high = np.minimum(windows[first, 2:], windows[first + 1 :, 2:])
        for index in np.flatnonzero((low < high).all(axis=1)).tolist():
            region = (*low[index].tolist(), *high[index].tolist())
            overlap = Overlap(fragments, first, first + 1 + index, region)
            if all(overlap.numbers):
                yield overlap


def agreement(overlap: Overlap) -> tuple[list[Pair], list[Pair], list[int]]:
    """Match the fragments of two windows one to one, by the pixels that both could see.

    Equal ones first. Then each 4-connected piece inside the region is matched by itself: a bent
    fibre may be one fragment in a window and two in the other, but a piece of it is the same in
    both. Fragments that agree as a whole but not piece by piece come last.

    Returns:
        pairs of fragments that are each other's only best match; pairs that are equal to others
        as well; and the fragments without an equal one, which may be linked nevertheless.
    """
    numbers, common = overlap.numbers, overlap.common
    equal = (common == overlap.areas[0][:, None]) & (common == overlap.areas[1])
    rows, columns = equal.sum(axis=1), equal.sum(axis=0)
    sure, tied = [], []
    for i, j in np.argwhere(equal).tolist():
        pairs = sure if rows[i] == columns[j] == 1 else tied
        pairs.append((numbers[0][i], numbers[1][j]))
    rest = [np.flatnonzero(rows == 0).tolist(), np.flatnonzero(columns == 0).tolist()]
    loose = [numbers[side][index] for side in (0, 1) for index in rest[side]]
    if all(rest):
        matched = _match_pieces(overlap, rest)
        linked = [{pair[side] for pair in matched} for side in (0, 1)]
        rest = [[i for i in rest[side] if i not in linked[side]] for side in (0, 1)]
        matched += greedy_pairs(overlap.iou(), AGREE, rest)
        sure += [(numbers[0][i], numbers[1][j]) for i, j in matched]
    return sure, tied, loose


def greedy_pairs(
    values: np.ndarray, least: float, among: Sequence[Sequence[int]] | None = None
) -> list[Pair]:
    """Match rows and columns one to one, the highest values first.

    Args:
        values: (n, m).
        least: lowest value of a pair.
        among: rows and columns that may be used; all by default.
    """
    if among is None:
        among = [range(size) for size in values.shape]
    if not all(among):
        return []
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
    """Return positions of fragments that have a matching piece."""
    views, areas, owners = [], [], []
    for side in (0, 1):
        found = [(k, piece) for k in rest[side] for piece in pieces(overlap.view(side, k))]
        owners.append([k for k, _ in found])
        views.append([piece for _, piece in found])
        areas.append(np.array([np.count_nonzero(piece.mask) for _, piece in found]))
    pairs = greedy_pairs(iou_of(common_matrix(*views), areas), AGREE)
    matched: dict[Pair, int] = {}
    for i, j in pairs:
        pair = owners[0][i], owners[1][j]
        matched[pair] = matched.get(pair, 0) + int(max(areas[0][i], areas[1][j]))
    unmatched = [
        set(np.delete(owners[side], [pair[side] for pair in pairs]).tolist()) for side in (0, 1)
    ]
    return [
        (i, j)
        for (i, j), pixels in matched.items()
        if pixels >= _SPECK * min(overlap.areas[0][i], overlap.areas[1][j])
        or not (i in unmatched[0] or j in unmatched[1])
    ]
