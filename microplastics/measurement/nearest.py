"""Distances of particles to their nearest neighbours."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import shapely
from scipy.spatial import cKDTree

from microplastics.measurement.outline import with_border
from microplastics.measurement.shape import Item
from microplastics.structures.view import View, common_pixels


def nearest_distances(
    masks: Sequence[np.ndarray], offsets: Sequence[tuple[int, int]]
) -> np.ndarray:
    """Measure the distance of each particle to the nearest other one, from edge to edge.

    Not from centre to centre: the centre of a curled fibre lies outside of it, and picking or
    spectroscopy need the gap. It is the smallest distance of two pixel centres less one, so that
    masks with a common pixel edge are 0 apart, as are masks that overlap; masks that touch at a
    corner are √2 - 1 apart.

    Args:
        masks: N arrays of shape (h, w), non-zero inside, each with at least one pixel.
        offsets: N pairs, x and y of the masks' first pixels in their common image.

    Returns:
        (N,) float64 in px; NaN for a single particle.

    Raises:
        ValueError: a mask is empty, or the numbers do not agree.
    """
    items = [Item(mask, offset).trimmed() for mask, offset in zip(masks, offsets, strict=True)]
    if len(items) < 2:
        return np.full(len(items), np.nan)
    borders = [_border(item) for item in items]
    corners = np.array([item.offset for item in items])
    boxes = np.hstack([corners, corners + [item.mask.shape[::-1] for item in items]])
    # A near neighbour bounds the search for the nearest: most particles are far apart.
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    _, near = cKDTree(centers).query(centers, k=2)
    near = np.where(near[:, 0] == np.arange(len(items)), near[:, 1], near[:, 0])
    pairs = {(min(pair), max(pair)) for pair in enumerate(near.tolist())}
    apart = {pair: _apart(borders[pair[0]], borders[pair[1]], math.inf) for pair in pairs}
    squares = np.array([apart[min(pair), max(pair)] for pair in enumerate(near.tolist())])
    frames = shapely.box(*boxes.T)
    reach = np.sqrt(squares) + 1  # boxes run along the pixels' edges, half a pixel outside
    ones, others = shapely.STRtree(frames).query(frames, predicate="dwithin", distance=reach)
    gaps = shapely.distance(frames[ones], frames[others])
    for index in np.argsort(gaps, kind="stable"):
        one, other = ones[index], others[index]
        if one == other or (gaps[index] > 0 and gaps[index] ** 2 >= squares[one]):
            continue
        if gaps[index] == 0 and _overlap(items[one], items[other]):
            squares[one] = 0.0
        elif other != near[one]:
            squares[one] = _apart(borders[one], borders[other], squares[one])
    return np.maximum(np.sqrt(squares) - 1, 0)


class Neighbors:
    """Distances of an image's particles to the nearest other one, while particles come and go.

    They equal those of :func:`nearest_distances` of the particles that are there; a change costs
    a few milliseconds among thousands of particles.
    """

    def __init__(self) -> None:
        self._items: dict[Any, Item] = {}
        self._distances: dict[Any, float] = {}
        self._borders: dict[Any, cKDTree] = {}

    def update(self, items: Mapping[Any, Item], keys: Iterable[Any]) -> None:
        """Put particles in place of those of the same keys.

        Args:
            items: all that are there now, trimmed, by key.
            keys: of the particles that came, went or changed since the last time.
        """
        changed = dict.fromkeys(keys)
        boxes = [_box(self._items[key]) for key in changed if key in self._items]
        boxes += [_box(items[key]) for key in changed if key in items]
        for key in changed:
            self._borders.pop(key, None)
            self._distances.pop(key, None)
        self._items = dict(items)
        if len(changed) > len(items) / 4:
            every = [(item.mask, item.offset) for item in items.values()]
            found = nearest_distances(*zip(*every, strict=True)) if every else []
            self._distances = dict(zip(items, map(float, found), strict=True))
            return
        names, frames = list(items), np.array([_box(item) for item in items.values()])
        near = np.array([self._distances.get(name, np.inf) for name in names])
        reached = np.zeros(len(names), dtype=bool)
        for box in boxes:
            # NaN, of a particle that was alone, is reached by all.
            reached |= ~(_gaps(box, frames) > near + 2)
        for index in np.flatnonzero(reached).tolist():
            self._distances[names[index]] = self._nearest(index, names, frames)

    def distances(self, keys: Iterable[Any]) -> np.ndarray:
        """Give the distances of particles, (N,) float64 in px; NaN for a single one."""
        return np.array([self._distances[key] for key in keys], dtype=np.float64)

    def _nearest(self, index: int, names: list[Any], frames: np.ndarray) -> float:
        gaps, square = _gaps(frames[index], frames), math.inf
        for other in np.argsort(gaps, kind="stable").tolist():
            if other == index:
                continue
            if gaps[other] > 0 and gaps[other] ** 2 >= square:
                break
            if gaps[other] == 0 and _overlap(self._items[names[index]], self._items[names[other]]):
                return 0.0
            square = _apart(self._border(names[index]), self._border(names[other]), square)
        return max(math.sqrt(square) - 1, 0.0) if math.isfinite(square) else math.nan

    def _border(self, key: Any) -> cKDTree:
        if key not in self._borders:
            self._borders[key] = _border(self._items[key])
        return self._borders[key]


def _box(item: Item) -> tuple[int, int, int, int]:
    (x, y), (height, width) = item.offset, item.mask.shape
    return x, y, x + width, y + height


def _gaps(box: Sequence[int], boxes: np.ndarray) -> np.ndarray:
    """Distances in px from one box to (N, 4) others, 0 if they touch."""
    x0, y0, x1, y1 = np.asarray(boxes).reshape(-1, 4).T
    across = np.maximum(np.maximum(x0 - box[2], box[0] - x1), 0)
    down = np.maximum(np.maximum(y0 - box[3], box[1] - y1), 0)
    return np.hypot(across, down)


def _border(item: Item) -> cKDTree:
    """The centres of a mask's pixels that have a neighbour outside."""
    padded = with_border(item.mask)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    rows, columns = np.nonzero(item.mask & ~inner)
    points = np.stack([columns, rows], axis=1) + item.offset
    # Balancing a tree takes longer than one or two queries.
    return cKDTree(points, compact_nodes=False, balanced_tree=False)


def _apart(one: cKDTree, other: cKDTree, bound: float) -> float:
    """Smallest squared distance of points of two trees, or ``bound`` if that is less."""
    small, large = sorted((one, other), key=lambda tree: tree.n)
    distances, _ = large.query(small.data, distance_upper_bound=math.sqrt(bound) + 1e-9)
    return min(bound, round(float(distances.min()) ** 2) if np.isfinite(distances).any() else bound)


def _overlap(one: Item, other: Item) -> bool:
    return common_pixels(View(one.mask, *one.offset), View(other.mask, *other.offset)) > 0
