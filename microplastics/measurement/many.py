"""Measuring the particles of many images, and how far each lies from the next one."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import shapely
from scipy.spatial import cKDTree
from tqdm import tqdm

from microplastics.data.pool import available_processors, map_in_processes
from microplastics.measurement.outline import with_border
from microplastics.measurement.shape import Cut, Kind, Shape, cut, measure_cuts

_BATCH = 100  # particles that a process takes at a time
# Below this starting the processes, which import the package, takes longer than they save.
_WORTH_PROCESSES = 20_000


class Item(NamedTuple):
    """One particle to measure; the arguments of :func:`microplastics.measurement.measure`."""

    mask: np.ndarray
    offset: tuple[int, int] = (0, 0)
    image_size: tuple[int, int] | None = None
    image: np.ndarray | None = None
    kind: Kind = "other"
    pixels: np.ndarray | None = None


def measure_many(items: Iterable[Item], processes: int | None = None) -> list[Shape]:
    """Measure many particles; the same results as one by one, in their order.

    Only the crops travel to other processes, never an image.

    Args:
        items: the particles.
        processes: None takes as many as pay.

    Raises:
        ValueError: a mask is empty, or lies outside of its image.
        UserError: a process was killed.
    """
    cuts = [cut(*item) for item in items]
    if processes is None:
        processes = available_processors() if len(cuts) >= _WORTH_PROCESSES else 1
    batches = [cuts[start : start + _BATCH] for start in range(0, len(cuts), _BATCH)]
    shapes: list[Shape] = []
    silent = None if len(cuts) >= _WORTH_PROCESSES else True
    with tqdm(total=len(cuts), desc="measuring", unit="particle", disable=silent) as progress:
        for batch in map_in_processes(measure_cuts, batches, processes, chunk=1):
            shapes += batch
            progress.update(len(batch))
    return shapes


def nearest_distances(
    masks: Sequence[np.ndarray], offsets: Sequence[tuple[int, int]]
) -> np.ndarray:
    """Distance of each particle to the nearest other one of its image, from edge to edge.

    Not from centre to centre: the centre of a curled fibre lies outside of it, and what counts
    for picking or spectroscopy is the gap. It is the smallest distance of two pixel centres less
    one, so that masks whose pixels share an edge are 0 apart, as are masks that overlap; two whose
    pixels touch at a corner are √2 - 1 apart.

    Args:
        masks: N arrays of shape (h, w), non-zero inside, each with at least one pixel.
        offsets: N pairs, x and y of the masks' first pixels in their common image.

    Returns:
        (N,) float64 in px; NaN where there is no other particle.

    Raises:
        ValueError: a mask is empty, or the numbers do not agree.
    """
    if len(masks) != len(offsets):
        raise ValueError(f"{len(masks)} masks have {len(offsets)} offsets")
    cuts = [cut(mask, offset) for mask, offset in zip(masks, offsets, strict=True)]
    if len(cuts) < 2:
        return np.full(len(cuts), np.nan)
    borders = [_border(particle) for particle in cuts]
    boxes = np.array([(c.x0, c.y0, c.x0 + c.mask.shape[1], c.y0 + len(c.mask)) for c in cuts])
    # One that is near bounds the search for the nearest: most are far from most others.
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    _, near = cKDTree(centers).query(centers, k=2)
    near = np.where(near[:, 0] == np.arange(len(cuts)), near[:, 1], near[:, 0])
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
        if gaps[index] == 0 and _overlap(cuts[one], cuts[other]):
            squares[one] = 0.0
        elif other != near[one]:
            squares[one] = _apart(borders[one], borders[other], squares[one])
    return np.maximum(np.sqrt(squares) - 1, 0)


def _border(particle: Cut) -> cKDTree:
    """The centres of a mask's pixels that have a neighbour outside."""
    padded = with_border(particle.mask)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    rows, columns = np.nonzero(particle.mask & ~inner)
    points = np.stack([columns + particle.x0, rows + particle.y0], axis=1)
    # A tree for one or two questions is not worth balancing.
    return cKDTree(points, compact_nodes=False, balanced_tree=False)


def _apart(one: cKDTree, other: cKDTree, bound: float) -> float:
    """Smallest squared distance of points of two trees, or ``bound`` where that is less."""
    small, large = sorted((one, other), key=lambda tree: tree.n)
    distances, _ = large.query(small.data, distance_upper_bound=math.sqrt(bound) + 1e-9)
    return min(bound, round(float(distances.min()) ** 2) if np.isfinite(distances).any() else bound)


def _overlap(one: Cut, other: Cut) -> bool:
    """Whether two masks share a pixel."""
    left, top = max(one.x0, other.x0), max(one.y0, other.y0)
    right = min(one.x0 + one.mask.shape[1], other.x0 + other.mask.shape[1])
    bottom = min(one.y0 + len(one.mask), other.y0 + len(other.mask))
    if left >= right or top >= bottom:
        return False
    parts = [c.mask[top - c.y0 : bottom - c.y0, left - c.x0 : right - c.x0] for c in (one, other)]
    return bool((parts[0] & parts[1]).any())
