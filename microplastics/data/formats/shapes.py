"""What annotation tools draw, as COCO polygons or RLE: circles, ellipses, boxes, lines, masks."""

import base64
import io
import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import shapely
from PIL import Image

from microplastics.data.segmentation import COORDINATE_LIMIT, NUMBERS, SegmentationError, measure
from microplastics.structures import rle as runs

Polygons = list[list[float]]
Segmentation = Polygons | dict[str, Any]

_OFF = 0.1  # px that a polygon may be off the curve that it stands for
_LEAST_VERTICES = 16
# Outlining a line of n points may meet n * n crossings: more points are drawn piece by piece.
_OUTLINED_POINTS = 100
_DRAWN_POINTS = 2_000
_SIMPLIFIED_POINTS = 20_000


class ShapeError(Exception):
    """A shape that gives no area; ``code`` is that of a note."""

    def __init__(self, code: str, detail: str = ""):
        super().__init__(code, detail)
        self.code, self.detail = code, detail


def numbers(*values: Any) -> list[float]:
    """Return a stranger's values as floats.

    Raises:
        ShapeError: one of them is no finite number of a size that occurs in images.
    """
    for value in values:
        # The comparison is False for NaN.
        if type(value) not in NUMBERS or not -COORDINATE_LIMIT <= value <= COORDINATE_LIMIT:
            raise ShapeError("shape_broken", "not a usable number")
    return [float(value) for value in values]


def flat_points(values: Sequence[Any], least: int) -> np.ndarray:
    """Return a stranger's ``[x0, y0, x1, y1, …]`` as float64 of shape (N, 2).

    Args:
        values: the coordinates in px.
        least: the fewest points that make the shape.

    Raises:
        ShapeError: too few of them, an odd number, or no finite numbers.
    """
    if len(values) % 2 or len(values) < 2 * least:
        raise ShapeError("shape_broken", f"{len(values)} coordinates")
    if not NUMBERS.issuperset(map(type, values)):
        raise ShapeError("shape_broken", "coordinates that are no numbers")
    try:
        array = np.array(values, np.float64)
    except OverflowError:
        raise ShapeError("shape_broken", "coordinates out of any image") from None
    if array.size and not np.abs(array).max() <= COORDINATE_LIMIT:  # also where it is NaN
        raise ShapeError("shape_broken", "coordinates out of any image or not finite")
    return array.reshape(-1, 2)


def point_pairs(pairs: Any, least: int) -> np.ndarray:
    """Return a stranger's ``[[x0, y0], [x1, y1], …]`` as float64 of shape (N, 2).

    Args:
        pairs: the points in px.
        least: the fewest points that make the shape.

    Raises:
        ShapeError: as :func:`flat_points`.
    """
    if type(pairs) is not list or any(type(pair) is not list or len(pair) != 2 for pair in pairs):
        raise ShapeError("shape_broken", "points are not [[x, y], …]")
    return flat_points(list(chain.from_iterable(pairs)), least)


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
        x: of its first corner in px, about which it is turned.
        y: of its first corner in px.
        width: in px; a negative one reaches to the left.
        height: in px; a negative one reaches up.
        degrees: turned clockwise on the screen (y downwards).

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
    """Return the regular polygon of the circle's centre and area (see :func:`ellipse_polygon`)."""
    return ellipse_polygon(x, y, radius, radius)


def ellipse_polygon(x: float, y: float, rx: float, ry: float, radians: float = 0) -> Polygons:
    """Return a polygon of the ellipse's area, nowhere 0.1 px or more off it.

    It is the regular n-gon whose area is that of the unit circle, (n / 2) R² sin(2π / n) = π,
    scaled and turned with the ellipse, which keeps the ratio of the areas. At most it is
    r π² / (3 n²) off, r the larger half axis.

    Args:
        x: of the centre in px.
        y: of the centre in px.
        rx: half axis in px that lies along x before it is turned.
        ry: the other half axis in px.
        radians: turned clockwise on the screen (y downwards).

    Raises:
        ShapeError: a half axis is not positive.
    """
    if rx <= 0 or ry <= 0:
        raise ShapeError("shape_broken", "a radius that is not positive")
    sides = max(_LEAST_VERTICES, math.ceil(1.05 * math.pi * math.sqrt(max(rx, ry) / (3 * _OFF))))
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
        raise ShapeError("shape_broken", "three points on one line are no circle")
    a, b = ax * ax + ay * ay, bx * bx + by * by
    x, y = (by * a - ay * b) / twice, (ax * b - bx * a) / twice
    return (*numbers(float(origin[0] + x), float(origin[1] + y)), *numbers(math.hypot(x, y)))


def line_area(points: np.ndarray, width: float | None, size: tuple[int, int]) -> Segmentation:
    """Return a line drawn with a width: as long as the line (flat ends), corners rounded.

    Polygons, or RLE of a line that encloses a hole or has over 100 points after what is not
    needed for a twentieth of a pixel is left out.

    Args:
        points: (N, 2) float64 in px.
        width: of the line in px; None for none.
        size: height and width of the image in px, for the RLE of a line that encloses holes.

    Raises:
        ShapeError: there is no width, or the line has no length or far too many points.
    """
    if width is None:
        raise ShapeError("shape_without_area", "a line without a width")
    if len(points) < 2 or len(points) > _SIMPLIFIED_POINTS:
        raise ShapeError("shape_broken", f"a line of {len(points)} points")
    line = shapely.LineString(points)
    if len(points) > _OUTLINED_POINTS:
        line = line.simplify(_OFF / 2, preserve_topology=False)
        points = np.asarray(line.coords)
    if line.length == 0:
        raise ShapeError("shape_broken", "a line without length")
    if len(points) > _DRAWN_POINTS:
        raise ShapeError("shape_broken", f"a line of {len(points)} points")
    if len(points) > _OUTLINED_POINTS:
        return _drawn_line(points, width, size)
    turn = math.acos(max(1 - _OFF / max(width, _OFF), 0.0))
    segments = max(4, math.ceil(math.pi / 4 / turn))
    area = line.buffer(width / 2, quad_segs=segments, cap_style="flat")
    parts = [part for part in shapely.get_parts(area) if part.area > 0]
    if not parts:
        raise ShapeError("shape_broken", "a line without length")
    if not any(part.interiors for part in parts):
        return [np.asarray(part.exterior.coords)[:-1].reshape(-1).tolist() for part in parts]
    return _drawn_line(points, width, size)


def crop_rle(crop: np.ndarray, x0: int, y0: int, size: tuple[int, int]) -> dict[str, Any]:
    """Return a crop of a mask as COCO RLE of the whole image.

    Args:
        crop: (h, w) bool array.
        x0: its left column in the image; what lies outside of the image is cut off.
        y0: its upper row in the image.
        size: height and width of the image in px.

    Raises:
        ShapeError: no pixel of it lies in the image.
    """
    height, width = size
    crop = crop[max(0, -y0) : max(0, height - y0), max(0, -x0) : max(0, width - x0)]
    starts, ends = runs.runs_of_crop(crop, (max(0, x0), max(0, y0)), height)
    if not len(starts):
        raise ShapeError("shape_outside", "a mask without a pixel in the image")
    counts = runs.encode_counts(runs.counts_of_runs(starts, ends, height * width))
    return {"size": [height, width], "counts": counts.decode("ascii")}


def png_crop(text: Any, limits: tuple[int, int]) -> np.ndarray:
    """Decode a mask that is a PNG in base64.

    Args:
        text: a stranger's value.
        limits: greatest height and width in px; more is not decoded.

    Returns:
        bool array, true where the PNG is not 0.

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
    except Exception as error:  # hostile bytes make decoders raise nearly anything
        raise ShapeError("shape_broken", "a mask that is no PNG in base64") from error


def union(parts: Sequence[Segmentation], size: tuple[int, int]) -> Segmentation:
    """Join segmentations into one: polygons stay polygons, with a mask all become one RLE.

    Args:
        parts: polygons or compressed RLEs of the same image.
        size: height and width of the image in px.

    Raises:
        coco_load.SegmentationError: a part that has to become a mask cannot be used.
    """
    if len(parts) == 1:
        return parts[0]
    if all(isinstance(part, list) for part in parts):
        return list(chain.from_iterable(parts))
    height, width = size
    rles = []
    for part in parts:
        checked = measure(part, height, width).segmentation
        if isinstance(checked, list):
            rles += mask_util.frPyObjects(checked, height, width)
        else:
            rles.append(checked)
    return _as_text(mask_util.merge(rles))


def _drawn_line(points: np.ndarray, width: float, size: tuple[int, int]) -> dict[str, Any]:
    """Draw a line as one rectangle a segment and one disc a corner, as RLE."""
    steps = np.diff(points, axis=0)
    lengths = np.hypot(*steps.T)
    kept = lengths > 0
    starts, steps = points[:-1][kept], steps[kept] / lengths[kept, None]
    ends = points[1:][kept]
    across = np.stack([-steps[:, 1], steps[:, 0]], axis=1) * (width / 2)
    bands = np.stack([starts - across, ends - across, ends + across, starts + across], axis=1)
    (disc,) = circle_polygon(0, 0, width / 2)
    discs = ends[:-1, None] + np.reshape(disc, (-1, 2))
    found = []
    for piece in chain(bands.reshape(len(bands), -1), discs.reshape(len(discs), -1)):
        try:
            usable = measure([piece.tolist()], *size).segmentation
        except SegmentationError:  # no pixel of it lies in the image
            continue
        for rle in mask_util.frPyObjects(usable, *size):
            found.append(runs.runs_of_counts(runs.decode_counts(rle["counts"])))
    starts, ends = map(np.concatenate, zip(*found, strict=True)) if found else ([], [])
    if not len(starts):
        raise ShapeError("shape_outside", "a line without a pixel in the image")
    order = np.argsort(starts, kind="stable")
    starts, ends = starts[order], np.maximum.accumulate(ends[order])
    first = np.concatenate(([True], starts[1:] > ends[:-1]))
    last = np.concatenate((first[1:], [True]))
    counts = runs.counts_of_runs(starts[first], ends[last], size[0] * size[1])
    return {"size": list(size), "counts": runs.encode_counts(counts).decode("ascii")}


def _as_text(rle: dict[str, Any]) -> dict[str, Any]:
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}
