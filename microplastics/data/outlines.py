"""Masks as polygons that rasterise to the same pixels.

pycocotools fills by the even-odd rule and asks at the centre of each pixel column. So an outline
along the pixels' edges is exact, a line that is walked to and fro counts for nothing, and a hole
is a ring like any other. ``cv2.findContours`` goes through pixel centres instead: half a pixel is
lost on each side, and a particle of one pixel has no area.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import shapely

from microplastics.errors import UserError
from microplastics.structures import rle as runs

if TYPE_CHECKING:  # the formats import this module
    from microplastics.data.formats.notes import Notes

_OVERLAP_TOLERANCE = 1e-6


def mask_to_polygons(mask: np.ndarray, offset: tuple[int, int] = (0, 0)) -> list[np.ndarray]:
    """Outline a mask along the edges of its pixels.

    Rasterised by pycocotools, the polygons give the mask again, pixel for pixel. Pixels that
    touch at a corner belong to the same part (8-connected): a thin slanting fibre is one ring.
    Holes are joined to the ring around them by a vertical cut of no width, and run the other way
    around, so that filling by either rule and the shoelace formula leave them out as well.

    Args:
        mask: (H, W) bool or integers, non-zero inside.
        offset: x and y of the mask's first pixel, in px, added to all points.

    Returns:
        one (N, 2) float64 array of x and y in px for each part, from top to bottom, clockwise,
        with points at corners alone and the first point not repeated.
    """
    return _trace(mask, offset)[0]


def join_parts(polygons: list[np.ndarray]) -> np.ndarray:
    """Make one ring of several, joined by lines of no width.

    Rasterised by pycocotools, the ring gives the pixels of all of them. Rings that overlap are
    united first, since an even-odd filling would leave out what two of them cover.

    Args:
        polygons: (N_i, 2) arrays of x and y in px, at least one.

    Returns:
        (N, 2) float64 array, the first point not repeated.
    """
    rings = [np.asarray(polygon, dtype=np.float64).reshape(-1, 2) for polygon in polygons]
    if len(rings) > 1:
        rings = _without_overlap(rings)
    if len(rings) == 1:
        return rings[0]
    rings.sort(key=lambda ring: (ring[:, 0].min(), ring[:, 1].min()))
    # A chain: each ring is left for the next one at the point nearest to it, and gone on with
    # from there once all that follow have been walked around.
    there, back = [], []
    leave = rings[0][0]
    for ring, following in zip(rings, [*rings[1:], None], strict=True):
        ring = np.roll(ring, -_nearest(ring, leave), axis=0)
        ring = np.concatenate([ring, ring[:1]])
        turn = len(ring) - 1 if following is None else _nearest(ring, following.mean(axis=0))
        leave = ring[turn]
        there.append(ring[: turn + 1])
        back.append(ring[turn:] if following is not None else ring[:0])
    return np.concatenate([*there, *back[::-1]])[:-1]


def segmentation_to_polygons(
    segmentation: list[list[float]] | dict[str, Any],
    height: int,
    width: int,
    notes: "Notes",
    where: str,
) -> list[np.ndarray]:
    """Give a COCO segmentation as polygons.

    Args:
        segmentation: polygons, which pass unchanged, or an RLE, which is outlined by
            :func:`mask_to_polygons` in its own box.
        height: of the image in px.
        width: of the image in px.
        notes: takes ``mask_outlined``, and ``hole_bridged`` where there are holes.
        where: the place of the instance, for notes and errors.

    Returns:
        (N, 2) float64 arrays of x and y in px; none for an RLE without a pixel.

    Raises:
        UserError: the RLE is malformed or of another size.
    """
    if not isinstance(segmentation, dict):
        return [np.asarray(polygon, dtype=np.float64).reshape(-1, 2) for polygon in segmentation]
    try:
        if list(segmentation["size"]) != [height, width]:
            raise ValueError(f"it is of size {list(segmentation['size'])}")
        counts = runs.check_counts(runs.decode_counts(segmentation["counts"]), (height, width))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{where} has an RLE that does not fit its image of {width} x {height} px ({error}); "
            "export the annotation again."
        ) from error
    crop, x0, y0 = runs.crop_of_runs(*runs.runs_of_counts(counts), height)
    polygons, holes = _trace(crop, (x0, y0))
    notes.add("mask_outlined", where)
    if holes:
        notes.add("hole_bridged", where, f"{holes} holes" if holes > 1 else "")
    return polygons


def _trace(mask: np.ndarray, offset: tuple[int, int]) -> tuple[list[np.ndarray], int]:
    """Give the polygons of :func:`mask_to_polygons` and the number of holes.

    In every row the corners of the outline come in pairs, the ends of its horizontal edges, and
    so they do in every column. Going by turns to the partner in the row and the partner in the
    column leads around a ring.
    """
    padded, x0, y0 = _padded_box(np.asarray(mask) != 0)
    if padded is None:
        return [], 0
    ys, xs, partners, _ = outline_corners(padded, 8)
    shift = np.array([x0 + offset[0], y0 + offset[1]], dtype=np.float64)
    rings = outline_rings(partners)
    starts = [ring[0] for ring in rings]
    # The first corner met is the left end of the ring's topmost edge: a hole lies under it, or
    # the particle.
    inside = padded[ys[starts] + 1, xs[starts] + 1].tolist()
    holes = [ring for ring, particle in zip(rings, inside, strict=True) if not particle]
    rings = [ring for ring, particle in zip(rings, inside, strict=True) if particle]
    # Counter-clockwise: a program that fills by the non-zero rule would fill them otherwise.
    holes = [ring[:1] + ring[:0:-1] for ring in holes]
    if holes:
        ys, xs, rings = _bridge(padded, ys, xs, rings, holes)
    points = np.column_stack([xs, ys]) + shift
    return [points[ring] for ring in rings], len(holes)


def _padded_box(mask: np.ndarray) -> tuple[np.ndarray | None, int, int]:
    """Cut a mask down to its box, with one empty pixel around it; x0 and y0 of the box."""
    rows = np.flatnonzero(mask.any(axis=1))
    if not len(rows):
        return None, 0, 0
    band = mask[rows[0] : rows[-1] + 1]
    columns = np.flatnonzero(band.any(axis=0))
    box = band[:, columns[0] : columns[-1] + 1]
    return np.pad(box, 1), int(columns[0]), int(rows[0])


def outline_corners(
    padded: np.ndarray, connectivity: int
) -> tuple[np.ndarray, np.ndarray, list[int], bool]:
    """Find the corners of a mask's outline, row by row.

    Where two pixels touch at a corner, the corner stands twice: as the right end of the edge to
    its left, then as the left end of the edge to its right.

    Args:
        padded: (h + 2, w + 2) bool with an empty border.
        connectivity: 8 keeps such pixels in one ring, 4 in two.

    Returns:
        y and x in px of the unpadded mask, the number of each corner's partner in its column (the
        partner in the row of corner i is corner i ^ 1), and whether any corner stands twice.
    """
    left, right = padded[:, :-1], padded[:, 1:]
    edges = left ^ right  # vertical edges
    times = (edges[:-1] ^ edges[1:]).astype(np.uint8)
    saddle = edges[:-1] & edges[1:] & (left[:-1] ^ left[1:])
    doubled = bool(saddle.any())
    times[saddle] = 2
    ys, xs = np.nonzero(times)
    if not doubled:
        order = np.argsort(xs, kind="stable")
    else:
        repeats = times[ys, xs]
        second = np.zeros(int(repeats.sum()), dtype=np.int8)
        second[np.cumsum(repeats)[repeats == 2] - 1] = 1
        ys, xs = np.repeat(ys, repeats), np.repeat(xs, repeats)
        # Of pixels upper left and lower right the edge to the left bends up around the one, or
        # goes on below around both; of the other two the other way about.
        first = second if connectivity == 4 else -second
        order = np.lexsort((np.where(left[ys, xs], first, -first), ys, xs))
    partners = np.empty(len(ys), dtype=np.int64)
    partners[order[0::2]], partners[order[1::2]] = order[1::2], order[0::2]
    return ys, xs, partners.tolist(), doubled


def outline_rings(partners: list[int]) -> list[list[int]]:
    """Follow the corners around every ring, clockwise from the left end of its topmost edge.

    Args:
        partners: of each corner the one that it shares its column's edge with, as of
            :func:`outline_corners`.

    Returns:
        Numbers of the corners of each ring.
    """
    seen = [False] * len(partners)
    rings = []
    for start in range(0, len(partners), 2):
        if seen[start]:
            continue
        ring, corner = [], start
        while True:
            partner = corner ^ 1
            seen[corner & ~1] = True
            ring += (corner, partner)
            corner = partners[partner]
            if corner == start:
                break
        rings.append(ring)
    return rings


def _bridge(
    padded: np.ndarray,
    ys: np.ndarray,
    xs: np.ndarray,
    rings: list[list[int]],
    holes: list[list[int]],
) -> tuple[np.ndarray, np.ndarray, list[list[int]]]:
    """Join holes to the ring above them.

    From the left end of a hole's topmost edge the cut goes straight up to the next edge: of the
    outer ring, or of another hole, which is joined in its turn. The mask lies below that edge, and
    so all rings run along it to the right.

    Args:
        padded: (h + 2, w + 2) bool with an empty border.
        ys: y of the corners in px.
        xs: x of the corners in px.
        rings: corners of the outer rings, clockwise.
        holes: corners of the holes, counter-clockwise from the left end of the topmost edge.

    Returns:
        y and x of the corners with those of the cuts appended, and the rings with their holes.
    """
    following = [0] * len(ys)
    for ring in (*rings, *holes):
        for corner, after in zip(ring, ring[1:] + ring[:1], strict=True):
            following[corner] = after
    height, width = padded.shape
    left, upper = xs[[hole[0] for hole in holes]], ys[[hole[0] for hole in holes]]
    # Row y of the padded mask lies above the corners of that number, column x + 1 right of x.
    empty_row = np.where(padded, 0, np.arange(height, dtype=np.int32)[:, None])
    tops = np.maximum.accumulate(empty_row, axis=0)[upper, left + 1].astype(np.int64)
    edges = np.searchsorted(ys * width + xs, tops * width + left, side="right") - 1
    cuts: dict[int, list[tuple[int, int, list[int]]]] = {}
    for edge, x, top, hole in zip(edges.tolist(), left.tolist(), tops.tolist(), holes, strict=True):
        cuts.setdefault(edge, []).append((x, top, hole))
    new_xs, new_ys = [], []
    for corner, places in cuts.items():
        end = following[corner]
        for x, top, hole in sorted(places, key=lambda place: place[0]):
            arrive = len(following)
            # To the cut's upper end, down the hole's left side, around it, and up again.
            following[corner] = arrive
            following += (hole[1], end)
            following[hole[0]] = corner = arrive + 1
            new_xs += (x, x)
            new_ys += (top, top)
    return np.append(ys, new_ys), np.append(xs, new_xs), [_follow(following, r[0]) for r in rings]


def _follow(following: list[int], start: int) -> list[int]:
    ring, corner = [start], following[start]
    while corner != start:
        ring.append(corner)
        corner = following[corner]
    return ring


def _without_overlap(rings: list[np.ndarray]) -> list[np.ndarray]:
    """Unite rings that overlap; the outlines and the holes of what they cover."""
    low = np.array([ring.min(axis=0) for ring in rings])
    high = np.array([ring.max(axis=0) for ring in rings])
    order = np.argsort(low[:, 0])
    low, high = low[order], high[order]
    if (low[1:, 0] >= np.maximum.accumulate(high[:-1, 0])).all():
        return rings
    shapes = shapely.make_valid([shapely.Polygon(ring) for ring in rings if len(ring) > 2])
    united = shapely.unary_union(shapes)
    if united.area >= shapely.area(shapes).sum() * (1 - _OVERLAP_TOLERANCE):
        return rings
    parts = [part for part in shapely.get_parts(united) if part.geom_type == "Polygon"]
    outlines = [ring for part in parts for ring in (part.exterior, *part.interiors)]
    return [shapely.get_coordinates(outline)[:-1] for outline in outlines]


def _nearest(ring: np.ndarray, point: np.ndarray) -> int:
    return int(np.square(ring - point).sum(axis=1).argmin())
