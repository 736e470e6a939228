"""Polygons: valid ones, repeated points, polygons inside polygons."""

from collections.abc import Iterator, Sequence

import numpy as np
import shapely

from microplastics.data.coco_check import MeasuredEntry
from microplastics.data.coco_findings import Place
from microplastics.data.doctor.collector import Collector, at_place
from microplastics.data.doctor.dataset import Dataset

_CHUNK = 20_000  # annotations looked at together
_PARTS = 1_000  # polygons of one annotation that are compared with each other
# Noding an outline that crosses itself costs time and memory with every crossing.
_CROSSINGS = 200_000
_TOUCH_TOLERANCE = 1e-6  # of the area


def check_polygons(dataset: Dataset, collector: Collector) -> None:
    """Find polygons that are not as they should be, among those that can be measured."""
    measured = [m for m in dataset.examined.measured if isinstance(m.entry["segmentation"], list)]
    for start in range(0, len(measured), _CHUNK):
        chunk = measured[start : start + _CHUNK]
        rings = [polygon_points(polygon) for m in chunk for polygon in m.entry["segmentation"]]
        owners = np.repeat(
            np.arange(len(chunk)), [len(m.entry["segmentation"]) for m in chunk]
        ).tolist()
        repeated = _repeats_points(rings)
        for index in np.flatnonzero(repeated):
            _report(dataset, collector, "points_repeated", chunk[owners[index]])
        for index in np.flatnonzero(~are_valid(rings)):
            code = "polygon_touching" if only_touches(rings[index]) else "polygon_crossing"
            _report(dataset, collector, code, chunk[owners[index]])
        for entry in chunk:
            if len(entry.entry["segmentation"]) > 1:
                _check_parts(dataset, collector, entry)


def _report(dataset: Dataset, collector: Collector, code: str, m: MeasuredEntry) -> None:
    place = Place("annotation", m.index, m.entry, m.image)
    collector.add(code, lambda: at_place(place, "", dataset.json_file, dataset.image_root))


def polygon_points(polygon: Sequence[float]) -> np.ndarray:
    """Points of a COCO polygon as float64 of shape (N, 2)."""
    return np.array(polygon, np.float64).reshape(-1, 2)


def _repeats_points(rings: list[np.ndarray]) -> np.ndarray:
    """Whether a point of each ring follows itself; the first one at the end does not count."""
    if not rings:
        return np.zeros(0, bool)
    points = np.concatenate(rings)
    owners = np.repeat(np.arange(len(rings)), [len(ring) for ring in rings])
    same = (points[1:] == points[:-1]).all(axis=1) & (owners[1:] == owners[:-1])
    found = np.zeros(len(rings), bool)
    found[owners[1:][same]] = True
    return found


def are_valid(rings: Sequence[np.ndarray]) -> np.ndarray:
    """Whether each ring is a valid polygon: it neither crosses nor touches itself.

    Args:
        rings: (N_i, 2) float64 arrays of x and y in px, N_i at least 3, all finite.

    Returns:
        bool array, one a ring.
    """
    valid = np.zeros(len(rings), bool)
    enough = [i for i, ring in enumerate(rings) if _can_close(ring)]
    if enough:
        owners = np.repeat(np.arange(len(enough)), [len(rings[i]) for i in enough])
        points = np.concatenate([rings[i] for i in enough])
        polygons = shapely.polygons(shapely.linearrings(points, indices=owners))
        valid[enough] = shapely.is_valid(polygons)
    return valid


def _can_close(ring: np.ndarray) -> bool:
    """Whether GEOS takes it: it wants four points in a closed ring."""
    return len(ring) > 3 or (len(ring) == 3 and bool((ring[0] != ring[2]).any()))


def only_touches(ring: np.ndarray) -> bool:
    """Whether an invalid ring has the mask that it seems to have.

    That is so where what the even-odd rule fills, by which COCO masks are drawn, has the area
    that the shoelace formula gives; a loop that is passed twice, or the other way round, has not.

    Args:
        ring: (N, 2) float64, x and y in px.
    """
    parts = repair(ring)
    if parts is None:
        return False
    area = shapely.area(shapely.Polygon(ring)) if len(ring) > 3 else 0.0
    filled = float(shapely.area(parts))
    return area > 0 and abs(filled - area) <= _TOUCH_TOLERANCE * area


def repair(ring: np.ndarray) -> shapely.Geometry | None:
    """Make a ring valid, filled by the even-odd rule.

    Args:
        ring: (N, 2) float64, x and y in px.

    Returns:
        a valid geometry, which may hold lines and points too; None where the ring crosses itself
        too often to be worth it.
    """
    if not _can_close(ring):
        return shapely.GeometryCollection()
    if crosses_too_often(ring):
        return None
    return shapely.make_valid(shapely.Polygon(ring))


def crosses_too_often(ring: np.ndarray) -> bool:
    """Whether more pairs of a ring's edges may cross than can be worked on."""
    if len(ring) ** 2 <= _CROSSINGS:
        return False
    edges = shapely.linestrings(np.stack([ring, np.roll(ring, -1, axis=0)], axis=1))
    tree = shapely.STRtree(edges)
    step = max(1, 2 * 10**7 // len(edges))
    pairs = 0
    for start in range(0, len(edges), step):
        pairs += tree.query(edges[start : start + step]).shape[1]
        # Each edge meets itself and its neighbours, and every pair is counted twice.
        if pairs > 5 * len(edges) + 2 * _CROSSINGS:
            return True
    return False


def _check_parts(dataset: Dataset, collector: Collector, m: MeasuredEntry) -> None:
    """Find polygons of one annotation that are equal, or lie inside each other."""
    polygons = m.entry["segmentation"]
    different = list({tuple(polygon): None for polygon in polygons})
    if len(different) < len(polygons):
        _report(dataset, collector, "polygon_repeated", m)
    if len(different) > _PARTS:
        _report(dataset, collector, "unchecked", m)
    elif len(different) > 1 and _has_inner(different):
        _report(dataset, collector, "polygon_hole", m)


def _has_inner(polygons: list[Sequence[float]]) -> bool:
    """Whether one of the valid ones among polygons lies inside another."""
    rings = [polygon_points(polygon) for polygon in polygons]
    rings = [ring for ring, valid in zip(rings, are_valid(rings), strict=True) if valid]
    return any(True for _ in _inner_pairs(rings))


def _inner_pairs(rings: list[np.ndarray]) -> Iterator[tuple[int, int]]:
    boxes = np.array([[*ring.min(axis=0), *ring.max(axis=0)] for ring in rings]).reshape(-1, 4)
    shapes = [shapely.Polygon(ring) for ring in rings]
    for outer, shape in enumerate(shapes):
        box = boxes[outer]
        inside = (boxes[:, :2] >= box[:2]).all(axis=1) & (boxes[:, 2:] <= box[2:]).all(axis=1)
        inside[outer] = False
        candidates = np.flatnonzero(inside)
        if len(candidates):
            shapely.prepare(shape)
            for inner in candidates[shapely.contains(shape, [shapes[i] for i in candidates])]:
                yield outer, int(inner)
