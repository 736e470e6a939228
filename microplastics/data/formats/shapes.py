"""Drawn shapes as COCO polygons or RLE.

Everywhere ``record`` is the image of a shape, ``where`` its place, for messages, and ``notes``
takes what is changed or left out.
"""

import contextlib
import io
import math
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import shapely
from PIL import Image

from microplastics.data.coco import ERRORS, show
from microplastics.data.formats.base import ImageRecord, Notes
from microplastics.data.images import MAX_PIXELS
from microplastics.data.segmentation import (
    COORDINATE_LIMIT,
    NUMBERS,
    Measured,
    SegmentationError,
    measure,
)
from microplastics.structures import rle as runs
from microplastics.structures.crop_masks import CropMasks

Polygons = list[list[float]]
Segmentation = Polygons | dict[str, Any]

_TOLERANCE = 0.1  # px between a polygon and the curve that it approximates
_MIN_VERTICES = 16
# The outline of a line of n points may have n * n crossings: longer lines are drawn in pieces.
_OUTLINED_POINTS = 100
_DRAWN_POINTS = 2_000
# Kind of a shape: how many numbers it has, or at least has.
_LENGTHS = {"box": (4, 5, 8), "circle": (3,), "ellipse": (4, 5)}
_LEAST = {"polygon": 6, "line": 4}
_NOTES = {  # by the codes of SegmentationError
    "polygon_outside": "shape_outside",
    "zero_area": "shape_without_area",
    "rle_empty": "shape_without_area",
}


class ShapeError(Exception):
    """A shape without a usable area; ``code`` is the code of a note."""

    def __init__(self, code: str, detail: str = ""):
        super().__init__(code, detail)
        self.code, self.detail = code, detail


@contextlib.contextmanager
def noting(notes: Notes, where: str) -> Iterator[None]:
    """Note a :class:`ShapeError` that ends a ``with`` block."""
    try:
        yield
    except ShapeError as error:
        notes.add(error.code, where, error.detail)


def area_of(
    kind: str, values: Any, record: ImageRecord, line_width: float | None, notes: Notes, where: str
) -> Segmentation:
    """Return the area of a shape; what was made of it is noted.

    Args:
        kind: ``"polygon"`` or ``"line"`` (x0, y0, x1, y1, …), ``"box"`` (x and y of a corner,
            width and height from there; or four corners), ``"circle"`` (centre, radius),
            ``"ellipse"`` (centre, both half axes), ``"mask"`` (its RLE) or ``"point"``. A box,
            about its corner, and an ellipse may be turned by a fifth number in radians,
            clockwise on the screen.
        values: unchecked list of these numbers, in px.
        line_width: width of lines in px, if they have one.

    Raises:
        ShapeError: it has no area, or is malformed.
    """
    if kind == "mask":
        return values
    if kind == "point":
        raise ShapeError("shape_without_area", "a point")
    if not isinstance(values, list):
        raise ShapeError("shape_broken", f"a {kind} of {show(values)}")
    many = kind in _LEAST and len(values) >= _LEAST[kind] and len(values) % 2 == 0
    if not many and len(values) not in _LENGTHS.get(kind, ()):
        raise ShapeError("shape_broken", f"a {kind} of {len(values)} numbers")
    coordinates = numbers(values).tolist()
    if kind == "polygon":
        return [coordinates]
    if kind == "line":
        area = _line_area(np.reshape(coordinates, (-1, 2)), line_width, record)
    elif kind == "box":
        area = [coordinates] if len(coordinates) == 8 else _box_polygon(*coordinates)
    else:
        x, y, radius, *others = coordinates
        area = _ellipse_polygon(x, y, radius, *(others or [radius]))
    notes.add({"line": "line_as_polygon", "box": "box_only"}.get(kind, "curve_as_polygon"), where)
    return area


def numbers(values: Sequence[Any]) -> np.ndarray:
    """Return unchecked values, finite numbers of sizes that occur in images, as float64."""
    if not NUMBERS.issuperset(map(type, values)):
        raise ShapeError("shape_broken", "values that are not numbers")
    try:
        array = np.array(values, np.float64)
    except OverflowError:
        array = np.full(1, np.inf)
    if not np.abs(array).max(initial=0) <= COORDINATE_LIMIT:  # also if NaN
        raise ShapeError("shape_broken", "numbers outside of any image or not finite")
    return array


def points(values: Any) -> np.ndarray:
    """Return unchecked ``[x0, y0, x1, y1, …]``, of at least two points, as (N, 2) float64."""
    if not isinstance(values, list) or len(values) < 4 or len(values) % 2:
        raise ShapeError("shape_broken", "points are not x0, y0, x1, y1, …")
    return numbers(values).reshape(-1, 2)


def flat(pairs: Any) -> list[Any]:
    """Return unchecked ``[[x0, y0], [x1, y1], …]`` as ``[x0, y0, x1, y1, …]``."""
    if type(pairs) is not list or any(type(pair) is not list or len(pair) != 2 for pair in pairs):
        raise ShapeError("shape_broken", "points are not [[x, y], …]")
    return list(chain.from_iterable(pairs))


def _box_polygon(x: float, y: float, width: float, height: float, radians: float = 0) -> Polygons:
    if width == 0 or height == 0:
        raise ShapeError("shape_broken", "a box without area")
    cos, sin = math.cos(radians), math.sin(radians)
    corners = ((0, 0), (width, 0), (width, height), (0, height))
    turned = ((x + a * cos - b * sin, y + a * sin + b * cos) for a, b in corners)
    return [list(chain.from_iterable(turned))]


def _ellipse_polygon(x: float, y: float, rx: float, ry: float, radians: float = 0) -> Polygons:
    """Return a polygon with the area of an ellipse, less than 0.1 px away from it everywhere.

    The regular n-gon with the area of the unit circle, (n / 2) R² sin(2π / n) = π, is scaled and
    rotated, which keeps the ratio of the areas. Its distance is at most r π² / (3 n²) for the
    larger half axis r.
    """
    if rx <= 0 or ry <= 0:
        raise ShapeError("shape_broken", "a radius that is not positive")
    sides = max(
        _MIN_VERTICES, math.ceil(1.05 * math.pi * math.sqrt(max(rx, ry) / (3 * _TOLERANCE)))
    )
    angle = 2 * math.pi * np.arange(sides) / sides
    scale = math.sqrt(2 * math.pi / (sides * math.sin(2 * math.pi / sides)))
    along, across = rx * scale * np.cos(angle), ry * scale * np.sin(angle)
    cos, sin = math.cos(radians), math.sin(radians)
    points = np.stack([x + along * cos - across * sin, y + along * sin + across * cos], axis=1)
    return [points.reshape(-1).tolist()]


def _line_area(points: np.ndarray, width: float | None, record: ImageRecord) -> Segmentation:
    """Return the area of a line drawn with a width: flat ends, rounded corners.

    Returns:
        polygons; RLE if the line encloses a hole, or has over 100 points after those that matter
        less than a twentieth of a pixel are left out.
    """
    if width is None:
        raise ShapeError("shape_without_area", "a line without a width")
    line = shapely.LineString(points)
    if _OUTLINED_POINTS < len(points) <= 50 * _DRAWN_POINTS:
        line = line.simplify(_TOLERANCE / 2, preserve_topology=False)
        points = np.asarray(line.coords)
    if len(points) > _DRAWN_POINTS:
        raise ShapeError("shape_broken", f"a line of {len(points)} points")
    if line.length == 0:
        raise ShapeError("shape_broken", "a line without length")
    if len(points) > _OUTLINED_POINTS:
        return _drawn_line(points, width, record)
    turn = math.acos(max(1 - _TOLERANCE / max(width, _TOLERANCE), 0.0))
    segments = max(4, math.ceil(math.pi / 4 / turn))
    area = line.buffer(width / 2, quad_segs=segments, cap_style="flat")
    parts = [part for part in shapely.get_parts(area) if part.area > 0]
    if not parts or any(part.interiors for part in parts):
        return _drawn_line(points, width, record)
    return [np.asarray(part.exterior.coords)[:-1].reshape(-1).tolist() for part in parts]


def _drawn_line(points: np.ndarray, width: float, record: ImageRecord) -> dict[str, Any]:
    """Draw a line as RLE: a rectangle for each segment and a disc for each corner."""
    steps = np.diff(points, axis=0)
    lengths = np.hypot(*steps.T)
    kept = lengths > 0
    starts, ends = points[:-1][kept], points[1:][kept]
    steps = steps[kept] / lengths[kept, None]
    across = np.stack([-steps[:, 1], steps[:, 0]], axis=1) * (width / 2)
    bands = np.stack([starts - across, ends - across, ends + across, starts + across], axis=1)
    (disc,) = _ellipse_polygon(0, 0, width / 2, width / 2)
    discs = ends[:-1, None] + np.reshape(disc, (-1, 2))
    rles = []
    for piece in chain(bands.reshape(-1, 8), discs.reshape(-1, len(disc))):
        with contextlib.suppress(SegmentationError):  # a piece without a pixel in the image
            piece = measure([piece.tolist()], *record.size).segmentation
            rles += mask_util.frPyObjects(piece, *record.size)
    if not rles:
        raise ShapeError("shape_outside", "a line without a pixel in the image")
    return _merged(rles)


def crop_rle(crop: np.ndarray, x0: int, y0: int, size: tuple[int, int]) -> dict[str, Any]:
    """Return a crop of a mask as COCO RLE of the whole image, cut at its border.

    Args:
        crop: (h, w) bool array.
        x0, y0: of its upper left px in the image.
        size: height and width of the image in px.

    Raises:
        ShapeError: the mask has no pixel in the image.
    """
    height, width = size
    crop = crop[max(0, -y0) : max(0, height - y0), max(0, -x0) : max(0, width - x0)]
    if not crop.any():
        raise ShapeError("shape_outside", "a mask without a pixel in the image")
    return CropMasks([crop], [(max(0, x0), max(0, y0))], size).to_rles(as_str=True)[0]


def png_mask(content: bytes, largest: tuple[int, int]) -> np.ndarray:
    """Decode the PNG of a mask: (h, w) bool, what is neither 0 nor transparent.

    Args:
        content: unchecked bytes.
        largest: height and width in px that the mask may have.

    Raises:
        ShapeError: it is malformed or larger.
    """
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as png:
            check_mask_size(png.height, png.width, largest)
            if png.mode in ("RGBA", "LA") or "transparency" in png.info:
                return np.asarray(png.convert("RGBA").getchannel("A")) != 0
            if png.mode not in ("1", "L", "P", "I", "I;16"):
                raise ShapeError("shape_broken", f"a mask of mode {png.mode}")
            return np.asarray(png) != 0
    except ShapeError:
        raise
    except Exception as error:  # decoders raise nearly anything on damaged bytes
        raise ShapeError("shape_broken", "a mask that is not a PNG in base64") from error


def check_mask_size(height: int, width: int, largest: tuple[int, int]) -> None:
    """Raise :class:`ShapeError` for an empty mask, or one larger than height and width in px."""
    fits = 0 < height <= largest[0] and 0 < width <= largest[1]
    if not fits or height * width > MAX_PIXELS:
        raise ShapeError("shape_broken", f"a mask of {width} x {height} px")


def with_holes(
    outline: Any, holes: Sequence[Any], record: ImageRecord, notes: Notes, where: str
) -> Segmentation:
    """Return the area of an outline without its holes: the polygon, or RLE if there are holes.

    Args:
        outline: unchecked ``[[x0, y0], [x1, y1], …]`` in px.
        holes: such lists.
        record: its image.
        notes: takes what is changed.
        where: place of the shape.

    Raises:
        ShapeError: it has no area, or is malformed.
    """
    area = area_of("polygon", flat(outline), record, None, notes, where)
    cut = []
    for hole in holes:
        try:
            cut.append(_drawn_ring(flat(hole), record, notes, where))
        except ShapeError as error:
            if error.code not in ("shape_outside", "shape_without_area"):  # it cuts nothing
                raise
    if not cut:
        return area
    outer = _drawn_ring(area[0], record, notes, where)
    return _even_odd([outer, mask_util.merge([outer, mask_util.merge(cut)], True)], record.size)


def even_odd(rings: Sequence[Any], record: ImageRecord, notes: Notes, where: str) -> Segmentation:
    """Return the area that an odd number of rings encloses (see :func:`with_holes`)."""
    drawn = [_drawn_ring(flat(ring), record, notes, where) for ring in rings]
    return _even_odd(drawn, record.size)


def _drawn_ring(values: list[Any], record: ImageRecord, notes: Notes, where: str) -> dict[str, Any]:
    """Draw one polygon as compressed RLE."""
    if len(values) < 6:
        raise ShapeError("shape_broken", f"a polygon of {len(values)} numbers")
    ring = checked([numbers(values).tolist()], record, notes, where).segmentation
    return mask_util.frPyObjects(ring, *record.size)[0]


def _even_odd(rles: Sequence[dict[str, Any]], size: tuple[int, int]) -> dict[str, Any]:
    """Return the pixels that an odd number of RLEs holds."""
    edges = [runs.runs_of_counts(runs.counts_of_rle(rle)) for rle in rles]
    starts, ends = np.sort(np.concatenate(list(chain.from_iterable(edges)))).reshape(-1, 2).T
    kept = ends > starts
    if not kept.any():
        raise ShapeError("shape_without_area", "an outline filled by its holes")
    counts = runs.counts_of_runs(starts[kept], ends[kept], size[0] * size[1])
    return {"size": list(size), "counts": runs.encode_counts(counts).decode("ascii")}


def checked(segmentation: Any, record: ImageRecord, notes: Notes, where: str) -> Measured:
    """Check and measure a segmentation.

    Polygons are cut at the image's border (``shape_clipped``), parts of fewer than 3 points are
    left out (``part_broken``), RLE becomes compressed.

    Args:
        segmentation: COCO polygons or RLE, unchecked.
        record: its image.
        notes: takes what is changed and left out.
        where: place of the instance.

    Raises:
        ShapeError: it cannot be used.
    """
    if type(segmentation) is list:
        if segmentation and NUMBERS.issuperset(map(type, segmentation)):
            segmentation = [segmentation]  # one polygon without its brackets
        usable = [part for part in segmentation if type(part) is not list or len(part) >= 6]
        for _ in range(len(segmentation) - len(usable) if usable else 0):
            notes.add("part_broken", where)
        segmentation = usable or segmentation
    try:
        measured = measure(segmentation, *record.size)
    except SegmentationError as error:
        code = _NOTES.get(error.code, "shape_broken")
        raise ShapeError(code, error.detail or ERRORS[error.code]) from error
    if measured.clipped:
        notes.add("shape_clipped", where)
    rle = measured.segmentation
    if isinstance(rle, dict) and isinstance(rle["counts"], bytes):
        rle["counts"] = rle["counts"].decode("ascii")
    return measured


def union(parts: Sequence[Segmentation], size: tuple[int, int]) -> Segmentation:
    """Join segmentations: polygons stay polygons; with a mask they all become one RLE.

    Args:
        parts: polygons or compressed RLEs that are :func:`checked`.
        size: height and width of the image in px.
    """
    if all(isinstance(part, list) for part in parts):
        return list(chain.from_iterable(parts))
    rles = []
    for part in parts:
        rles += mask_util.frPyObjects(part, *size) if isinstance(part, list) else [part]
    return _merged(rles)


def _merged(rles: list[dict[str, Any]]) -> dict[str, Any]:
    merged = mask_util.merge(rles)
    return {"size": list(map(int, merged["size"])), "counts": merged["counts"].decode("ascii")}
