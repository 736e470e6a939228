"""Reading COCO JSON from strangers, and measuring its segmentations safely.

pycocotools is C without checks: malformed run lengths or endless outlines make it crash or eat
the memory, so that everything is validated here before it sees it.
"""

import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pycocotools.mask as mask_util
import shapely

from microplastics.structures import rle as runs
from microplastics.utils.errors import UserError

if TYPE_CHECKING:
    from microplastics.data.formats.base import Notes

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


# Beyond any image, and small enough for exact arithmetic in float64.
COORDINATE_LIMIT = 10**7
# pycocotools keeps five points for every pixel of an outline.
OUTLINE_LIMIT = 2 * 10**6
NUMBERS = frozenset((int, float))


def read_json(
    path: str | os.PathLike,
    expected: type | tuple[type, ...] = dict,
    meant: str = "an object with images, annotations and categories; export as COCO instance "
    "segmentation",
) -> Any:
    """Read a JSON file (UTF-8, with or without BOM; UTF-16 and UTF-32 too).

    Args:
        path: the file.
        expected: what it must hold: ``dict``, ``list`` or both.
        meant: words for that and for the mend, which follow ``not``.

    Returns:
        what it holds.

    Raises:
        UserError: the file is missing or unreadable, not JSON, cut off (with line and column),
            wrongly encoded, nested too deep, or holds something other than ``expected``.
    """
    path = os.fspath(path)
    try:
        with open(path, "rb") as file:
            content = file.read()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"Cannot read {path}: {reason}; correct the path.") from error
    if not content.strip():
        raise UserError(f"{path} is empty, not JSON; export the annotations again.")
    try:
        data = json.loads(content)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        if not error.doc[error.pos :].strip() or error.msg.startswith("Unterminated"):
            words = f"is cut off: the JSON ends unfinished at {where}"
        else:
            words = f"is not JSON: {error.msg} at {where}"
        raise UserError(f"{path} {words}; export or copy it again.") from error
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path} is not {error.encoding} text: byte {error.start} (line {line}) does not "
            "decode; save it as UTF-8."
        ) from error
    except RecursionError as error:
        raise UserError(
            f"{path} is nested too deep to be annotations; export them again."
        ) from error
    except ValueError as error:  # a number of thousands of digits
        raise UserError(f"{path} is not usable JSON: {error}; export it again.") from error
    if not isinstance(data, expected):
        raise UserError(f"{path} holds a JSON {type(data).__name__}, not {meant}.")
    return data


class SegmentationError(Exception):
    """A segmentation that cannot be used; ``code`` is one of those in ``coco_check``."""

    def __init__(self, code: str, detail: str = ""):
        super().__init__(code, detail)
        self.code, self.detail = code, detail


@dataclass(frozen=True)
class Measured:
    """A segmentation that is safe for pycocotools, with what its mask measures.

    Attributes:
        segmentation: polygons within the image, or compressed RLE.
        area: pixels of the mask; below one pixel the area of the polygons.
        box: x, y, width, height in px: of the polygons' points, or of the RLE's pixels.
        clipped: polygons reached out of the image and were cut at its border.
        subpixel: the mask has no pixel.
    """

    segmentation: list[list[float]] | dict[str, Any]
    area: float
    box: tuple[float, float, float, float]
    clipped: bool = False
    subpixel: bool = False


def measure(segmentation: Any, height: int, width: int) -> Measured:
    """Validate and measure a COCO segmentation.

    Args:
        segmentation: list of polygons ``[x0, y0, x1, y1, …]`` in px, or RLE
            ``{"size": [height, width], "counts": list or str}``.
        height: of the image, in px.
        width: of the image, in px.

    Raises:
        SegmentationError: with the code of what is wrong.
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
        if 2 * area / length >= 1:  # its mean width: too wide to miss every pixel
            raise SegmentationError("zero_area", "its outline runs round twice")
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
    if not np.abs(flat).max() <= COORDINATE_LIMIT:  # also where it is NaN
        raise SegmentationError("polygon_numbers")
    return flat.reshape(-1, 2)


def _shoelace(points: np.ndarray) -> float:
    """Area enclosed by (N, 2) points (shoelace formula)."""
    x, y = (points - points[0]).T
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)


def _clip(points: np.ndarray, width: int, height: int) -> np.ndarray:
    """Cut a polygon at the border of the image (Sutherland and Hodgman 1974).

    Args:
        points: (N, 2) float64, x and y in px.
        width: right border.
        height: lower border.

    Returns:
        (M, 2) float64; M is 0 where nothing of it lies inside.
    """
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
    size, counts = rle.get("size"), rle.get("counts")
    if not rle:
        raise SegmentationError("segmentation_empty")
    if type(size) is not list or len(size) != 2 or not all(type(side) is int for side in size):
        raise SegmentationError("rle_counts", "no size [height, width]")
    if size != [height, width]:
        raise SegmentationError("rle_size", f"size {size}, image [{height}, {width}]")
    runs = _uncompressed(counts)
    if runs is None or not len(runs) or runs.min() < 0:
        raise SegmentationError("rle_counts", "malformed counts")
    # Not by sum(), which hostile runs could make overflow.
    if len(runs) > 2 * height * width + 2 or runs.max() > height * width:
        raise SegmentationError("rle_counts", "runs longer than the image")
    ends = np.cumsum(runs)
    if ends[-1] != height * width:
        raise SegmentationError("rle_counts", f"{ends[-1]} of {height * width} pixels")
    area = int(runs[1::2].sum())
    if area == 0:
        raise SegmentationError("rle_empty")
    if isinstance(counts, list):
        rle = mask_util.frPyObjects({"size": size, "counts": counts}, height, width)
    else:
        rle = {"size": size, "counts": counts}
    return Measured(rle, float(area), _rle_box(runs, ends, height))


def _rle_box(runs: np.ndarray, ends: np.ndarray, height: int) -> tuple[float, ...]:
    """Box of the ones of column-wise runs (0s first) that end before ``ends``."""
    ones = runs[1::2] > 0
    last = ends[1::2][ones] - 1
    first = ends[1::2][ones] - runs[1::2][ones]
    (x0, y0), (x1, y1) = np.divmod(first, height), np.divmod(last, height)
    left, right = int(x0.min()), int(x1.max())
    several = bool((x0 < x1).any())  # a run over a column's end touches both borders
    top = 0 if several else int(y0.min())
    bottom = height - 1 if several else int(y1.max())
    return float(left), float(top), float(right - left + 1), float(bottom - top + 1)


def mask_points(segmentation: list[list[float]] | dict[str, Any]) -> np.ndarray:
    """Points whose convex hull is that of a mask.

    Args:
        segmentation: as in :class:`Measured`.

    Returns:
        (N, 2) float64, x and y in px: the polygons' points, or corners of the RLE's pixels.
    """
    if isinstance(segmentation, list):
        return np.concatenate([np.array(polygon, np.float64) for polygon in segmentation]).reshape(
            -1, 2
        )
    counts, height = segmentation["counts"], segmentation["size"][0]
    runs = _uncompressed(counts.decode("ascii") if isinstance(counts, bytes) else counts)
    ends = np.cumsum(runs)
    ones = runs[1::2] > 0
    last, first = ends[1::2][ones] - 1, ends[1::2][ones] - runs[1::2][ones]
    (x0, y0), (x1, y1) = np.divmod(first, height), np.divmod(last, height)
    # A run over a column's end touches the image's lower border in its first column and the
    # upper one in its last, and fills the columns between.
    over = x1 > x0
    bottom = np.where(over, height, y1 + 1)
    corners = [(x0, y0), (x0 + 1, y0), (x0, bottom), (x0 + 1, bottom)]
    top = np.zeros(np.count_nonzero(over), np.int64)
    left, right, low = x1[over], x1[over] + 1, y1[over] + 1
    corners += [(left, top), (right, top), (left, low), (right, low)]
    columns = x1[over] - x0[over] > 1
    before = left[columns]
    corners += [(x0[over][columns] + 1, top[columns]), (before, top[columns] + height)]
    return np.concatenate([np.stack(corner, axis=1) for corner in corners]).astype(np.float64)


def _uncompressed(counts: Any) -> np.ndarray | None:
    """Run lengths as int64 from a list or from pycocotools' string; None if malformed."""
    if type(counts) is list:
        if not all(type(count) is int and 0 <= count < 2**32 for count in counts):
            return None
        return np.array(counts, np.int64)
    if type(counts) is not str or not counts or not counts.isascii():
        return None
    # rleFrString of cocoapi: groups of 5 bits from 48 up, bit 32 says that another follows, the
    # last one's bit 16 is the sign; from the fourth run on, differences to the run before last.
    codes = np.frombuffer(counts.encode("ascii"), np.uint8).astype(np.int64) - 48
    if codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        return None
    ends = np.flatnonzero((codes & 32) == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    place = np.arange(len(codes)) - np.repeat(starts, ends - starts + 1)
    if place.max() > 6:
        return None
    runs = np.add.reduceat((codes & 31) << (5 * place), starts)
    negative = (codes[ends] & 16) > 0
    runs[negative] -= np.int64(1) << (5 * (place[ends][negative] + 1))
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs
