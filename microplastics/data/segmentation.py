"""COCO segmentations: validation, measurement and conversion to polygons.

pycocotools is C without checks: malformed run lengths or endless outlines crash it or exhaust the
memory, so everything is validated here first.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pycocotools.mask as mask_util
import shapely

from microplastics.structures import rle as runs
from microplastics.structures.crop_masks import CropMasks
from microplastics.utils.errors import UserError

if TYPE_CHECKING:
    from microplastics.data.formats.base import Notes

# Beyond any image, and small enough for exact arithmetic in float64.
COORDINATE_LIMIT = 10**7
# pycocotools allocates five points for every pixel of an outline.
OUTLINE_LIMIT = 2 * 10**6
NUMBERS = frozenset((int, float))


class SegmentationError(Exception):
    """A segmentation that cannot be used; ``code`` is a key of ``coco.ERRORS``."""

    def __init__(self, code: str, detail: str = ""):
        super().__init__(code, detail)
        self.code, self.detail = code, detail


@dataclass(frozen=True)
class Measured:
    """A segmentation that is safe for pycocotools, and measurements of its mask.

    Attributes:
        segmentation: polygons within the image, or compressed RLE.
        area: pixels of the mask; below one pixel the area of the polygons.
        box: x, y, width, height in px: of the polygons' points, or of the RLE's pixels.
        clipped: polygons left the image and were clipped at its border.
        subpixel: the mask has no pixel.
    """

    segmentation: list[list[float]] | dict[str, Any]
    area: float
    box: tuple[float, float, float, float]
    clipped: bool = False
    subpixel: bool = False


@contextlib.contextmanager
def usable_masks(image: str) -> Iterator[None]:
    """Name the image if the masks that ``CropMasks`` makes in a ``with`` block cannot be made.

    Raises:
        UserError: ``annotations_invalid``, for a ``ValueError``.
    """
    try:
        yield
    except ValueError as error:
        raise UserError(
            f"A mask of {image} cannot be used ({error}); export the masks again.",
            code="annotations_invalid",
        ) from error


def measure(segmentation: Any, height: int, width: int) -> Measured:
    """Validate and measure a COCO segmentation.

    Args:
        segmentation: list of polygons ``[x0, y0, x1, y1, …]`` in px, or RLE
            ``{"size": [height, width], "counts": list or str}``.
        height, width: of the image, in px.

    Raises:
        SegmentationError: with the code of the problem.
    """
    if isinstance(segmentation, list):
        return _measure_polygons(segmentation, height, width)
    if isinstance(segmentation, dict):
        return _measure_rle(segmentation, height, width)
    raise SegmentationError("segmentation_type", f"it is {type(segmentation).__name__}")


def _measure_polygons(polygons: list, height: int, width: int) -> Measured:
    if not polygons or not any(polygons):
        raise SegmentationError("segmentation_empty")
    if type(polygons[0]) in NUMBERS:
        raise SegmentationError("polygon_flat")
    usable, points, clipped, length = [], [], False, 0.0
    for polygon in polygons:
        outline = _polygon_points(polygon)
        low, high = outline.min(axis=0), outline.max(axis=0)
        if low.min() < 0 or high[0] > width or high[1] > height:
            clipped = True
            outline = _clip(outline, width, height)
            if len(outline) < 3 or _shoelace(outline) == 0:
                continue
            polygon = outline.reshape(-1).tolist()
        length += np.abs(np.diff(outline, axis=0, append=outline[:1])).max(axis=1).sum()
        if length > OUTLINE_LIMIT:
            raise SegmentationError("outline_long", f"{length:.0f} px")
        usable.append(polygon)
        points.append(outline)
    if not usable:
        raise SegmentationError("polygon_outside")
    rles = mask_util.frPyObjects(usable, height, width)
    area = float(mask_util.area(mask_util.merge(rles) if len(rles) > 1 else rles[0]))
    subpixel = area == 0
    if subpixel:
        area = sum(_shoelace(outline) for outline in points)
        if area < 1e-3:
            raise SegmentationError("zero_area")
        if 2 * area / length >= 1:  # mean width: too wide to miss every pixel
            raise SegmentationError("zero_area", "its outline is traced twice")
    every = points[0] if len(points) == 1 else np.concatenate(points)
    (x0, y0), (x1, y1) = every.min(axis=0).tolist(), every.max(axis=0).tolist()
    return Measured(usable, area, (x0, y0, x1 - x0, y1 - y0), clipped, subpixel)


def _polygon_points(polygon: Any) -> np.ndarray:
    """Return the points of one polygon as float64 of shape (N, 2)."""
    if type(polygon) is not list:
        raise SegmentationError("segmentation_type", f"a polygon is {type(polygon).__name__}")
    if not NUMBERS.issuperset(map(type, polygon)):
        raise SegmentationError("polygon_numbers")
    if len(polygon) % 2:
        raise SegmentationError("polygon_odd", f"{len(polygon)} coordinates")
    if len(polygon) < 6:
        raise SegmentationError("polygon_points", f"{len(polygon) // 2} points")
    try:
        flat = np.array(polygon, np.float64)
    except OverflowError:
        raise SegmentationError("polygon_numbers") from None
    if not np.abs(flat).max() <= COORDINATE_LIMIT:  # also True for NaN
        raise SegmentationError("polygon_numbers")
    return flat.reshape(-1, 2)


def _shoelace(points: np.ndarray) -> float:
    """Area enclosed by (N, 2) points (shoelace formula)."""
    x, y = (points - points[0]).T
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)


def _clip(points: np.ndarray, width: int, height: int) -> np.ndarray:
    """Clip (N, 2) points of a polygon at the image's border (Sutherland and Hodgman 1974)."""
    for axis, border, sign in ((0, 0, 1), (0, width, -1), (1, 0, 1), (1, height, -1)):
        if not len(points):
            break
        depth = (points[:, axis] - border) * sign  # >= 0 inside
        following, next_depth = np.roll(points, -1, axis=0), np.roll(depth, -1)
        crosses = (depth >= 0) != (next_depth >= 0)
        span = np.where(crosses, depth - next_depth, 1.0)
        crossing = points + (following - points) * (depth / span)[:, None]
        crossing[:, axis] = border
        # Each point is followed by the crossing of the edge that begins there.
        both = np.stack([points, crossing], axis=1).reshape(-1, 2)
        points = both[np.stack([depth >= 0, crosses], axis=1).reshape(-1)]
    return points


def _measure_rle(rle: dict, height: int, width: int) -> Measured:
    if not rle:
        raise SegmentationError("segmentation_empty")
    size = rle.get("size")
    if type(size) is not list or len(size) != 2 or not all(type(side) is int for side in size):
        raise SegmentationError("rle_counts", "no size [height, width]")
    if size != [height, width]:
        raise SegmentationError("rle_size", f"size {size}, image [{height}, {width}]")
    try:
        counts = runs.counts_of_rle(rle)
    except (KeyError, ValueError) as error:
        raise SegmentationError("rle_counts", str(error)) from error
    starts, ends = runs.runs_of_counts(counts)
    if not len(starts):
        raise SegmentationError("rle_empty")
    if isinstance(rle["counts"], list):
        rle = {"counts": runs.encode_counts(counts)}
    x0, y0, x1, y1 = map(float, runs.box_of_runs(starts, ends, height))
    safe = {"size": size, "counts": rle["counts"]}
    return Measured(safe, float((ends - starts).sum()), (x0, y0, x1 - x0, y1 - y0))


def mask_points(segmentation: list[list[float]] | dict[str, Any]) -> np.ndarray:
    """Return points whose convex hull is that of a mask of :class:`Measured`.

    Returns:
        (N, 2) float64, x and y in px: the points of polygons, or corners of pixels of an RLE.
    """
    if isinstance(segmentation, list):
        points = [np.array(polygon, np.float64).reshape(-1, 2) for polygon in segmentation]
        return np.concatenate(points)
    height = segmentation["size"][0]
    starts, ends = runs.runs_of_counts(runs.counts_of_rle(segmentation))
    (x0, y0), (x1, y1) = np.divmod(starts, height), np.divmod(ends - 1, height)
    # A run over the end of a column reaches the lower border of the image in its first column and
    # the upper border in its last, and fills the columns between them.
    over = x1 > x0
    bottom, top = np.where(over, height, y1 + 1), np.where(over, 0, y0)
    corners = [(x0, y0), (x0 + 1, top), (x0, bottom), (x0 + 1, bottom)]
    corners += [(x1, top), (x1 + 1, top), (x1, np.where(x1 > x0 + 1, height, y1 + 1))]
    corners += [(x1 + 1, y1 + 1)]
    return np.concatenate([np.stack(corner, axis=1) for corner in corners]).astype(np.float64)


def mask_to_polygons(mask: np.ndarray, offset: tuple[int, int] = (0, 0)) -> list[np.ndarray]:
    """Outline a mask along the edges of its pixels.

    Rasterised by pycocotools, the polygons reproduce the mask exactly. Pixels that touch at a
    corner belong to one part (8-connected), so a thin slanting fibre is one ring. Holes are joined
    to the ring around them by a vertical cut without width, and run in the opposite direction:
    both fill rules and the shoelace formula leave them out.

    Args:
        mask: (H, W) bool or integers, non-zero inside.
        offset: x and y of the mask's first pixel in px, added to all points.

    Returns:
        One (N, 2) float64 array of x and y in px for each part, from top to bottom, clockwise,
        with points only at corners and the first point not repeated.
    """
    return _trace(mask, offset)[0]


def join_parts(polygons: list[np.ndarray]) -> np.ndarray:
    """Join several rings into one by lines without width.

    Rasterised by pycocotools, the ring covers the pixels of all of them. Overlapping rings are
    united first, since even-odd filling would leave out the overlap.

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
    # A chain: each ring is left at its point nearest to the next one, and completed after all
    # following rings have been traced.
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
    segmentation: list[list[float]] | dict[str, Any], notes: "Notes", where: str
) -> list[np.ndarray]:
    """Convert a COCO segmentation to polygons.

    Args:
        segmentation: as in :class:`Measured`; polygons stay unchanged, an RLE is outlined by
            :func:`mask_to_polygons`.
        notes: receives ``mask_outlined``, and ``hole_bridged`` if there are holes.

    Returns:
        (N, 2) float64 arrays of x and y in px; an empty list for an RLE without a pixel.
    """
    if not isinstance(segmentation, dict):
        return [np.asarray(polygon, dtype=np.float64).reshape(-1, 2) for polygon in segmentation]
    mask = CropMasks.from_rles([segmentation])
    polygons, holes = _trace(mask.crops[0], mask.offsets[0])
    notes.add("mask_outlined", where)
    if holes:
        notes.add("hole_bridged", where, f"{holes} holes" if holes > 1 else "")
    return polygons


def _trace(mask: np.ndarray, offset: tuple[int, int]) -> tuple[list[np.ndarray], int]:
    """Return the polygons of :func:`mask_to_polygons` and the number of holes.

    In every row the corners of the outline come in pairs, the ends of its horizontal edges, and
    likewise in every column. Alternating between the partner in the row and the partner in the
    column follows a ring.
    """
    tight = CropMasks.from_bitmasks(np.asarray(mask)[None] != 0)
    if not tight.crops[0].size:
        return [], 0
    padded, shift = np.pad(tight.crops[0], 1), (tight.offsets[0] + offset).astype(np.float64)
    ys, xs, partners, _ = outline_corners(padded, 8)
    rings = outline_rings(partners)
    starts = [ring[0] for ring in rings]
    # The first corner is the left end of the ring's topmost edge. Below it is the particle, or a
    # hole.
    inside = padded[ys[starts] + 1, xs[starts] + 1].tolist()
    holes = [ring for ring, particle in zip(rings, inside, strict=True) if not particle]
    rings = [ring for ring, particle in zip(rings, inside, strict=True) if particle]
    # Counter-clockwise: otherwise the non-zero rule would fill them.
    holes = [ring[:1] + ring[:0:-1] for ring in holes]
    if holes:
        ys, xs, rings = _bridge(padded, ys, xs, rings, holes)
    points = np.column_stack([xs, ys]) + shift
    return [points[ring] for ring in rings], len(holes)


def outline_corners(
    padded: np.ndarray, connectivity: int
) -> tuple[np.ndarray, np.ndarray, list[int], bool]:
    """Find the corners of a mask's outline, row by row.

    A corner at which two pixels touch is listed twice: as the right end of the edge to its left,
    then as the left end of the edge to its right.

    Args:
        padded: (h + 2, w + 2) bool with an empty border.
        connectivity: 8 keeps such pixels in one ring, 4 in two.

    Returns:
        y and x in px of the unpadded mask, the index of each corner's partner in its column (the
        partner of corner i in its row is i ^ 1), and whether any corner is listed twice.
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
        # With pixels upper left and lower right, the edge to the left bends up around the first
        # pixel (4), or continues below around both (8); with the other two it is reversed.
        first = second if connectivity == 4 else -second
        order = np.lexsort((np.where(left[ys, xs], first, -first), ys, xs))
    partners = np.empty(len(ys), dtype=np.int64)
    partners[order[0::2]], partners[order[1::2]] = order[1::2], order[0::2]
    return ys, xs, partners.tolist(), doubled


def outline_rings(partners: list[int]) -> list[list[int]]:
    """Follow the corners of :func:`outline_corners` around every ring.

    Returns:
        Indices of the corners of each ring, clockwise from the left end of its topmost edge.
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
    """Join holes to the ring above them; returns corners with those of the cuts, and the rings.

    From the left end of a hole's topmost edge, where it begins, the cut goes straight up to the
    next edge, of the outer ring or of another hole that is joined as well. The mask is below that
    edge, so all rings run along it to the right.
    """
    following = [0] * len(ys)
    for ring in (*rings, *holes):
        for corner, after in zip(ring, ring[1:] + ring[:1], strict=True):
            following[corner] = after
    height, width = padded.shape
    left, upper = xs[[hole[0] for hole in holes]], ys[[hole[0] for hole in holes]]
    # Row y of the padded mask is above the corners at y, column x + 1 is right of those at x.
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
            # To the upper end of the cut, down to the hole, around it, and up again.
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
    """Unite overlapping rings; returns the outlines and holes of their union."""
    shapes = shapely.make_valid([shapely.Polygon(ring) for ring in rings if len(ring) > 2])
    united = shapely.unary_union(shapes)
    if united.area >= shapely.area(shapes).sum() * (1 - 1e-6):  # only touching
        return rings
    parts = [part for part in shapely.get_parts(united) if part.geom_type == "Polygon"]
    outlines = [ring for part in parts for ring in (part.exterior, *part.interiors)]
    return [shapely.get_coordinates(outline)[:-1] for outline in outlines]


def _nearest(ring: np.ndarray, point: np.ndarray) -> int:
    return int(np.square(ring - point).sum(axis=1).argmin())
