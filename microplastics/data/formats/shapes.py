"""Drawn shapes as COCO polygons or RLE."""

import base64
import contextlib
import io
import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import shapely
from PIL import Image

from microplastics.data.coco import ERRORS
from microplastics.data.formats.base import Notes
from microplastics.data.segmentation import (
    COORDINATE_LIMIT,
    NUMBERS,
    Measured,
    SegmentationError,
    measure,
)
from microplastics.structures import rle as runs

Polygons = list[list[float]]
Segmentation = Polygons | dict[str, Any]

_TOLERANCE = 0.1  # px between a polygon and the curve that it approximates
_MIN_VERTICES = 16
# The outline of a line of n points may have n * n crossings: longer lines are drawn in pieces.
_OUTLINED_POINTS = 100
_DRAWN_POINTS = 2_000
_SIMPLIFIED_POINTS = 20_000
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


def numbers(*values: Any) -> list[float]:
    """Return unchecked values as floats.

    Raises:
        ShapeError: a value is not a finite number of a size that occurs in images.
    """
    return _checked(values).tolist()


def flat_points(values: Sequence[Any], minimum: int) -> np.ndarray:
    """Return unchecked ``[x0, y0, x1, y1, …]`` as float64 of shape (N, 2).

    Args:
        values: coordinates in px.
        minimum: number of points that the shape needs.

    Raises:
        ShapeError: too few coordinates, an odd number, or values that are not finite numbers.
    """
    if len(values) % 2 or len(values) < 2 * minimum:
        raise ShapeError("shape_broken", f"{len(values)} coordinates")
    return _checked(values).reshape(-1, 2)


def _checked(values: Sequence[Any]) -> np.ndarray:
    if not NUMBERS.issuperset(map(type, values)):
        raise ShapeError("shape_broken", "values that are not numbers")
    try:
        array = np.array(values, np.float64)
    except OverflowError:
        array = np.full(1, np.inf)
    if not np.abs(array).max(initial=0) <= COORDINATE_LIMIT:  # also if NaN
        raise ShapeError("shape_broken", "numbers outside of any image or not finite")
    return array


def point_pairs(pairs: Any, minimum: int) -> np.ndarray:
    """Return unchecked ``[[x0, y0], [x1, y1], …]`` as float64 of shape (N, 2).

    Args:
        pairs: points in px.
        minimum: number of points that the shape needs.

    Raises:
        ShapeError: as :func:`flat_points`.
    """
    if type(pairs) is not list or any(type(pair) is not list or len(pair) != 2 for pair in pairs):
        raise ShapeError("shape_broken", "points are not [[x, y], …]")
    return flat_points(list(chain.from_iterable(pairs)), minimum)


def polygon(points: np.ndarray) -> Polygons:
    """Return (N, 2) points as COCO polygons.

    Raises:
        ShapeError: fewer than 3 points.
    """
    if len(points) < 3:
        raise ShapeError("shape_broken", f"{len(points)} points")
    return [points.reshape(-1).tolist()]


def box_polygon(x: float, y: float, width: float, height: float, degrees: float = 0) -> Polygons:
    """Return a box as a polygon of 4 points.

    Args:
        x: of the first corner in px.
        y: of the first corner in px.
        width: in px; negative to the left of the corner.
        height: in px; negative above the corner.
        degrees: clockwise rotation on the screen (y downwards) about the first corner.

    Raises:
        ShapeError: it has no area.
    """
    if width == 0 or height == 0:
        raise ShapeError("shape_broken", "a box without area")
    if not degrees:
        return [[x, y, x + width, y, x + width, y + height, x, y + height]]
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    across, down = (width * cos, width * sin), (-height * sin, height * cos)
    flat = [x, y, x + across[0], y + across[1]]
    flat += [x + across[0] + down[0], y + across[1] + down[1], x + down[0], y + down[1]]
    return [flat]


def circle_polygon(x: float, y: float, radius: float) -> Polygons:
    """Return a regular polygon with centre and area of a circle (see :func:`ellipse_polygon`)."""
    return ellipse_polygon(x, y, radius, radius)


def ellipse_polygon(x: float, y: float, rx: float, ry: float, radians: float = 0) -> Polygons:
    """Return a polygon with the area of an ellipse, less than 0.1 px away from it everywhere.

    The regular n-gon with the area of the unit circle, (n / 2) R² sin(2π / n) = π, is scaled and
    rotated, which keeps the ratio of the areas. Its distance is at most r π² / (3 n²) for the
    larger half axis r.

    Args:
        x: of the centre in px.
        y: of the centre in px.
        rx: half axis in px, along x before the rotation.
        ry: the other half axis in px.
        radians: clockwise rotation on the screen (y downwards).

    Raises:
        ShapeError: a half axis is not positive.
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


def circle_through(points: np.ndarray) -> tuple[float, float, float]:
    """Return centre x, y and radius in px of the circle through (3, 2) points.

    Raises:
        ShapeError: the points lie on one line.
    """
    origin, (ax, ay), (bx, by) = points[0], points[1] - points[0], points[2] - points[0]
    twice = 2 * (ax * by - ay * bx)
    if abs(twice) < 1e-9:
        raise ShapeError("shape_broken", "a circle through three points on one line")
    a, b = ax * ax + ay * ay, bx * bx + by * by
    x, y = (by * a - ay * b) / twice, (ax * b - bx * a) / twice
    return (*numbers(float(origin[0] + x), float(origin[1] + y)), *numbers(math.hypot(x, y)))


def line_area(points: np.ndarray, width: float | None, size: tuple[int, int]) -> Segmentation:
    """Return the area of a line drawn with a width: flat ends, rounded corners.

    Args:
        points: (N, 2) float64 in px.
        width: of the line in px, or None.
        size: height and width of the image in px.

    Returns:
        polygons; RLE if the line encloses a hole, or has over 100 points after those that matter
        less than a twentieth of a pixel are left out.

    Raises:
        ShapeError: there is no width, or the line has no length or far too many points.
    """
    if width is None:
        raise ShapeError("shape_without_area", "a line without a width")
    if len(points) < 2 or len(points) > _SIMPLIFIED_POINTS:
        raise ShapeError("shape_broken", f"a line of {len(points)} points")
    line = shapely.LineString(points)
    if len(points) > _OUTLINED_POINTS:
        line = line.simplify(_TOLERANCE / 2, preserve_topology=False)
        points = np.asarray(line.coords)
    if line.length == 0:
        raise ShapeError("shape_broken", "a line without length")
    if len(points) > _DRAWN_POINTS:
        raise ShapeError("shape_broken", f"a line of {len(points)} points")
    if len(points) > _OUTLINED_POINTS:
        return _drawn_line(points, width, size)
    turn = math.acos(max(1 - _TOLERANCE / max(width, _TOLERANCE), 0.0))
    segments = max(4, math.ceil(math.pi / 4 / turn))
    area = line.buffer(width / 2, quad_segs=segments, cap_style="flat")
    parts = [part for part in shapely.get_parts(area) if part.area > 0]
    if not parts:
        raise ShapeError("shape_broken", "a line without length")
    if not any(part.interiors for part in parts):
        return [np.asarray(part.exterior.coords)[:-1].reshape(-1).tolist() for part in parts]
    return _drawn_line(points, width, size)


def crop_rle(crop: np.ndarray, x0: int, y0: int, size: tuple[int, int]) -> dict[str, Any]:
    """Return a crop of a mask as COCO RLE of the whole image, cut at its border.

    Args:
        crop: (h, w) bool array.
        x0: left column of the crop in the image.
        y0: upper row of the crop in the image.
        size: height and width of the image in px.

    Raises:
        ShapeError: the mask has no pixel in the image.
    """
    height, width = size
    crop = crop[max(0, -y0) : max(0, height - y0), max(0, -x0) : max(0, width - x0)]
    starts, ends = runs.runs_of_crop(crop, (max(0, x0), max(0, y0)), height)
    if not len(starts):
        raise ShapeError("shape_outside", "a mask without a pixel in the image")
    counts = runs.encode_counts(runs.counts_of_runs(starts, ends, height * width))
    return {"size": [height, width], "counts": counts.decode("ascii")}


def png_crop(text: Any, limits: tuple[int, int]) -> np.ndarray:
    """Decode a mask from a PNG in base64.

    Args:
        text: unchecked value.
        limits: largest height and width in px that are decoded.

    Returns:
        (h, w) bool array, true for pixels other than 0.

    Raises:
        ShapeError: it is something else, or larger.
    """
    if not isinstance(text, str) or not text:
        raise ShapeError("shape_broken", "a mask without its picture")
    try:
        with Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=["PNG"]) as png:
            if png.height > limits[0] or png.width > limits[1]:
                raise ShapeError("shape_broken", f"a mask of {png.width} x {png.height} px")
            if png.mode not in ("1", "L", "P", "I", "I;16"):
                raise ShapeError("shape_broken", f"a mask of mode {png.mode}")
            return np.asarray(png) != 0
    except ShapeError:
        raise
    except Exception as error:  # decoders raise nearly anything on damaged bytes
        raise ShapeError("shape_broken", "a mask that is not a PNG in base64") from error


def measured_segmentation(
    segmentation: Any, height: int, width: int, notes: Notes, where: str
) -> Measured | None:
    """Check and measure a segmentation; what cannot be used is noted.

    Polygons are cut at the image's border (``shape_clipped``), parts of fewer than 3 points are
    left out (``part_broken``), RLE becomes compressed.

    Args:
        segmentation: COCO polygons or RLE, unchecked.
        height: of the image in px.
        width: of the image in px.
        notes: takes what is changed and left out.
        where: place of the instance.

    Returns:
        the segmentation with its area and box, or None if it is left out.
    """
    if type(segmentation) is list:
        segmentation = _usable_parts(segmentation, notes, where)
    try:
        measured = measure(segmentation, height, width)
    except SegmentationError as error:
        detail = error.detail or ERRORS[error.code][0]
        notes.add(_NOTES.get(error.code, "shape_broken"), where, detail)
        return None
    if measured.clipped:
        notes.add("shape_clipped", where)
    rle = measured.segmentation
    if isinstance(rle, dict) and isinstance(rle["counts"], bytes):
        rle["counts"] = rle["counts"].decode("ascii")
    return measured


def union(parts: Sequence[Segmentation], size: tuple[int, int]) -> Segmentation:
    """Join segmentations: polygons stay polygons; with a mask they all become one RLE.

    Args:
        parts: polygons or compressed RLEs that :func:`measured_segmentation` has checked.
        size: height and width of the image in px.
    """
    if all(isinstance(part, list) for part in parts):
        return list(chain.from_iterable(parts))
    rles = []
    for part in parts:
        rles += mask_util.frPyObjects(part, *size) if isinstance(part, list) else [part]
    return _merged(rles)


def _usable_parts(polygons: list, notes: Notes, where: str) -> list:
    if polygons and NUMBERS.issuperset(map(type, polygons)):  # one polygon without its brackets
        return [polygons]
    if len(polygons) < 2:
        return polygons
    usable = [part for part in polygons if not (type(part) is list and len(part) < 6)]
    if not usable:
        return polygons
    for _ in range(len(polygons) - len(usable)):
        notes.add("part_broken", where)
    return usable


def _drawn_line(points: np.ndarray, width: float, size: tuple[int, int]) -> dict[str, Any]:
    """Draw a line as RLE: a rectangle for each segment and a disc for each corner."""
    steps = np.diff(points, axis=0)
    lengths = np.hypot(*steps.T)
    kept = lengths > 0
    starts, steps = points[:-1][kept], steps[kept] / lengths[kept, None]
    ends = points[1:][kept]
    across = np.stack([-steps[:, 1], steps[:, 0]], axis=1) * (width / 2)
    bands = np.stack([starts - across, ends - across, ends + across, starts + across], axis=1)
    (disc,) = circle_polygon(0, 0, width / 2)
    discs = ends[:-1, None] + np.reshape(disc, (-1, 2))
    rles = []
    for piece in chain(bands.reshape(len(bands), -1), discs.reshape(len(discs), -1)):
        with contextlib.suppress(SegmentationError):  # a piece without a pixel in the image
            rles += mask_util.frPyObjects(measure([piece.tolist()], *size).segmentation, *size)
    if not rles:
        raise ShapeError("shape_outside", "a line without a pixel in the image")
    return _merged(rles)


def _merged(rles: list[dict[str, Any]]) -> dict[str, Any]:
    merged = mask_util.merge(rles)
    return {"size": list(map(int, merged["size"])), "counts": merged["counts"].decode("ascii")}
