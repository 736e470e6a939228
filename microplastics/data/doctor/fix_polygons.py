"""Mending the polygons of one annotation, without changing what they mean."""

from collections.abc import Callable
from typing import Any

import numpy as np
import shapely

from microplastics.data.coco_load import COORDINATE_LIMIT, NUMBERS
from microplastics.data.doctor.geometry import (
    are_valid,
    only_touches,
    polygon_points,
    repair,
)

_SLIVER = 0.01  # px²; no pixel is covered by it
_HOLES = 200  # of one polygon; each costs two cuts through it
_CUTS = 10_000

# Takes the kind of change, its reason, and details.
Note = Callable[..., None]


def mend_polygons(
    polygons: list[Any], width: int, height: int, note: Note
) -> list[list[float]] | None:
    """Make every polygon of an annotation valid and clip it to the image.

    Repeated points are taken out, polygons that cross themselves are made valid as the even-odd
    rule fills them, which COCO masks are drawn by, and holes that this leaves are opened by a cut
    into two polygons. Polygons of no area and repeats of another are left out.

    Args:
        polygons: COCO polygons, of which some may be unusable.
        width: of the image in px.
        height: of the image in px.
        note: takes every change.

    Returns:
        The mended polygons, empty where nothing can be kept; None where a polygon is broken in a
        way that cannot be mended without a guess.
    """
    if not all(map(_is_mendable, polygons)):
        return None
    kept: list[list[float]] = []
    seen: set[tuple[float, ...]] = set()
    for number, polygon in enumerate(polygons):
        for part in _mend(polygon, number, width, height, note):
            key = tuple(part)
            if key in seen:
                note("polygon_dropped", "repeats another polygon", polygon=number)
                continue
            seen.add(key)
            kept.append(part)
    return kept


def _is_mendable(polygon: Any) -> bool:
    """Whether it is a list of pairs of finite numbers, however few."""
    return (
        type(polygon) is list
        and len(polygon) % 2 == 0
        and NUMBERS.issuperset(map(type, polygon))
        and all(-COORDINATE_LIMIT <= value <= COORDINATE_LIMIT for value in polygon)
    )


def _mend(
    polygon: list[float], number: int, width: int, height: int, note: Note
) -> list[list[float]]:
    if len(polygon) < 6:
        note("polygon_dropped", f"has {len(polygon) // 2} points", polygon=number)
        return []
    points = polygon_points(polygon)
    ring = _without_repeats(points)
    if len(ring) < len(points):
        removed = len(points) - len(ring)
        note("points_removed", f"{removed} repeated points", polygon=number)
    outside = bool((ring < 0).any() or (ring > (width, height)).any())
    sound = len(ring) >= 3 and (bool(are_valid([ring])[0]) or only_touches(ring))
    if sound and not outside:
        return [polygon if len(ring) == len(points) else _flat(ring)]
    if not sound:
        note("polygon_mended", "crosses itself or encloses nothing", polygon=number)
    if outside:
        note("polygon_clipped", "reaches out of the image", polygon=number)
    try:
        geometry = repair(ring)
        if geometry is None:
            note("polygon_dropped", "crosses itself too often to be made valid", polygon=number)
            return []
        if outside:
            geometry = shapely.intersection(geometry, shapely.box(0, 0, width, height))
        rings = _finish(_rings(geometry, number, note), width, height, number, note)
    except shapely.errors.GEOSException as error:
        note("polygon_dropped", f"cannot be made valid ({error})", polygon=number)
        return []
    if not rings:
        note("polygon_dropped", "nothing of it is left", polygon=number)
    return list(map(_flat, rings))


def _without_repeats(points: np.ndarray) -> np.ndarray:
    """Take out points that follow themselves; the first one at the end stays."""
    differs = (points[1:] != points[:-1]).any(axis=1)
    return points[np.concatenate([[True], differs])]


def _flat(ring: np.ndarray) -> list[float]:
    return ring.reshape(-1).tolist()


def _rings(geometry: shapely.Geometry, number: int, note: Note) -> list[np.ndarray]:
    """Outlines of the polygonal parts of a geometry, those with holes cut open."""
    outlines = []
    for part in shapely.get_parts(geometry):
        if part.is_empty:
            continue
        if shapely.get_type_id(part) == shapely.GeometryType.MULTIPOLYGON:
            outlines += _rings(part, number, note)
        elif shapely.get_type_id(part) != shapely.GeometryType.POLYGON:
            words = f"a {part.geom_type} without area"
            note("polygon_dropped", words, polygon=number)
        else:
            outlines += _opened(part, number, note)
    return outlines


def _opened(polygon: shapely.Polygon, number: int, note: Note) -> list[np.ndarray]:
    """Cut a polygon with holes into polygons without, by lines through the holes."""
    if shapely.get_num_interior_rings(polygon) > _HOLES:
        note("polygon_dropped", f"has more than {_HOLES} holes", polygon=number)
        return []
    waiting, outlines = [polygon], []
    for _ in range(_CUTS):
        if not waiting:
            return outlines
        part = waiting.pop()
        if not part.interiors:
            outlines.append(shapely.get_coordinates(part)[:-1])
            continue
        x = shapely.Polygon(part.interiors[0]).representative_point().x
        x0, y0, x1, y1 = part.bounds
        for half in (
            shapely.box(x0 - 1, y0 - 1, x, y1 + 1),
            shapely.box(x, y0 - 1, x1 + 1, y1 + 1),
        ):
            pieces = shapely.get_parts(shapely.intersection(part, half))
            waiting += [p for p in pieces if p.geom_type == "Polygon" and p.area > 0]
    note("polygon_dropped", "cannot be cut into polygons without holes", polygon=number)
    return []


def _finish(
    rings: list[np.ndarray], width: int, height: int, number: int, note: Note
) -> list[np.ndarray]:
    """Keep the rings that are valid once their last digits lie inside the image.

    Parts that cover no pixel go, unless nothing else is left.
    """
    kept, areas = [], []
    for ring in rings:
        ring = _without_repeats(np.clip(ring, 0, (width, height)))
        while len(ring) > 3 and (ring[0] == ring[-1]).all():
            ring = ring[:-1]
        if len(ring) >= 3 and are_valid([ring])[0]:
            kept.append(ring)
            areas.append(float(shapely.area(shapely.Polygon(ring))))
    if areas and max(areas) >= _SLIVER:
        kept = [ring for ring, area in zip(kept, areas, strict=True) if area >= _SLIVER]
    if len(kept) < len(rings):
        words = f"{len(rings) - len(kept)} parts of less than {_SLIVER} px²"
        note("polygon_dropped", words, polygon=number)
    return kept
