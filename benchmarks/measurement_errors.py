"""Print how far measurements are off on shapes of known size, as in docs/measurement.md.

python benchmarks/measurement_errors.py

A pixel is inside if its centre is, without smoothing: the definition of a mask.
"""

import argparse
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import shapely
from shapely import LinearRing, LineString, Point
from shapely.geometry.base import BaseGeometry

from microplastics.measurement.shape import Kind, measure

_SPACING = 0.2  # px between the points of a curve
_QUARTER = 128  # corners of a quarter of a circle
QUANTITIES = (
    "equivalent_diameter",
    "perimeter",
    "feret_max",
    "feret_min",
    "length",
    "width",
)


class AnalyticShape(NamedTuple):
    """A shape around the origin."""

    name: str  # with its sizes in px
    kind: Kind
    outline: BaseGeometry  # a polygon in px
    truth: dict[str, float]  # area in px², and QUANTITIES in px


def draw(shape: AnalyticShape, angle: float, shift: Sequence[float]) -> np.ndarray:
    """Draw a shape as (h, w) bool with a margin.

    ``angle`` is in radians, ``shift`` x and y in px from a pixel's centre to the shape's.
    """
    reach = np.hypot(*shapely.get_coordinates(shape.outline).T).max()
    side = math.ceil(reach + max(abs(shift[0]), abs(shift[1]))) + 1
    y, x = np.mgrid[-side : side + 1, -side : side + 1]
    points = np.stack([x.ravel(), y.ravel()], axis=1) - shift
    cosine, sine = math.cos(angle), math.sin(angle)
    turned = points @ np.array([[cosine, -sine], [sine, cosine]])
    shapely.prepare(shape.outline)
    return shapely.intersects_xy(shape.outline, turned).reshape(x.shape)


def disc(radius: float) -> AnalyticShape:
    """Make a disc of a radius in px."""
    return _compact(f"disc, radius {radius:g}", Point(0, 0).buffer(radius, _QUARTER))


def rectangle(length: float, width: float) -> AnalyticShape:
    """Make a rectangle of two sides in px, the longer one first."""
    outline = shapely.box(-length / 2, -width / 2, length / 2, width / 2)
    return _compact(f"rectangle {length:g} × {width:g}", outline)


def ellipse(length: float, width: float) -> AnalyticShape:
    """Make an ellipse of two axes in px, the longer one first."""
    round_one = Point(0, 0).buffer(1, _QUARTER)
    outline = shapely.transform(round_one, lambda points: points * (length / 2, width / 2))
    return _compact(f"ellipse {length:g} × {width:g}", outline)


def ring(radius: float, width: float) -> AnalyticShape:
    """Make a closed ring of a fibre: radius of its centreline and width in px."""
    core = LinearRing(Point(0, 0).buffer(radius, _QUARTER).exterior)
    return _fiber(f"ring, radius {radius:g}, {width:g} wide", core, width, core.length)


def straight(length: float, width: float) -> AnalyticShape:
    """Make a straight fibre with round ends: length from tip to tip and width in px."""
    core = np.array([[width - length, 0.0], [length - width, 0.0]]) / 2
    return tube(f"straight fibre {length:g} long, {width:g} wide", core, width)


def arc(radius: float, angle: float, width: float) -> AnalyticShape:
    """Make a fibre along an arc: radius and width in px, angle in radians."""
    turn = np.linspace(0, angle, math.ceil(radius * angle / _SPACING))
    core = radius * np.stack([np.cos(turn), np.sin(turn)], axis=1)
    name = f"arc, radius {radius:g}, {math.degrees(angle):.0f}°, {width:g} wide"
    return tube(name, core, width)


def sine(length: float, amplitude: float, period: float, width: float) -> AnalyticShape:
    """Make a fibre along a sine wave; all in px."""
    x = np.linspace(0, length, math.ceil(3 * length / _SPACING))
    core = np.stack([x, amplitude * np.sin(2 * np.pi * x / period)], axis=1)
    name = f"sine, amplitude {amplitude:g}, period {period:g}, {width:g} wide"
    return tube(name, core, width)


def coil(radius: float, pitch: float, turns: float, width: float) -> AnalyticShape:
    """Make a fibre coiled to a spiral: innermost radius, pitch and width in px."""
    turn = np.linspace(0, 2 * np.pi * turns, 2000)
    distance = radius + pitch * turn / (2 * np.pi)
    core = distance[:, None] * np.stack([np.cos(turn), np.sin(turn)], axis=1)
    return tube(f"coil of {turns:g} turns, {width:g} wide", core, width)


def tube(name: str, core: np.ndarray, width: float) -> AnalyticShape:
    """Make the points within half a width, in px, of a line that does not come near itself.

    ``core`` are (N, 2) points of the line in px.
    """
    line = LineString(core)
    middle = line.centroid
    line = shapely.transform(line, lambda points: points - (middle.x, middle.y))
    return _fiber(name, line, width, line.length + width)


def standard_shapes() -> list[AnalyticShape]:
    """Make the shapes of the error table."""
    return [
        *(disc(radius) for radius in (3, 5, 10, 20, 40, 60)),
        *(rectangle(side, side) for side in (6, 10, 20, 40)),
        *(rectangle(*sides) for sides in ((20, 10), (40, 4), (60, 6), (60, 20))),
        *(ellipse(*axes) for axes in ((16, 8), (30, 24), (40, 16), (80, 20))),
        *(straight(*sizes) for sizes in ((30, 3), (60, 4), (150, 4), (60, 6), (150, 10))),
        *(arc(radius, math.pi, width) for width in (3, 4, 6) for radius in (10, 20, 40)),
        *(arc(radius, math.pi, 10) for radius in (15, 20, 40)),
        *(sine(160, 20, 80, width) for width in (3, 4, 6, 10)),
        sine(80, 8, 40, 4),
        *(coil(14, 18, 2, width) for width in (3, 4, 6, 10)),
        *(ring(25, width) for width in (3, 4, 6, 10)),
    ]


def measure_errors(
    shape: AnalyticShape, drawings: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Measure a number of drawings of a shape at random places and angles.

    Returns:
        measured minus true values of each of :data:`QUANTITIES` in px, (drawings,); and
        ``circularity`` and ``solidity`` as measured.
    """
    masks = [
        draw(shape, rng.uniform(0, 2 * np.pi), rng.uniform(-0.5, 0.5, 2)) for _ in range(drawings)
    ]
    found = [measure(mask, kind=shape.kind) for mask in masks]
    names = (*QUANTITIES, "circularity", "solidity")
    values = {name: np.array([getattr(one, name) for one in found]) for name in names}
    return {name: value - shape.truth.get(name, 0) for name, value in values.items()}


def error_table(drawings: int, seed: int) -> str:
    """Make a Markdown table of all standard shapes' errors: mean, smallest and largest.

    Each shape is drawn ``drawings`` times at places and angles by the seed.
    """
    heads = ("shape", "eq. diameter %", "perimeter %", "Feret max px", "Feret min px")
    heads += ("length px", "length %", "width %", "circularity")
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    rng = np.random.default_rng(seed)
    for shape in standard_shapes():
        errors = measure_errors(shape, drawings, rng)
        percent = {name: 100 * errors[name] / shape.truth[name] for name in QUANTITIES}
        cells = (percent["equivalent_diameter"], percent["perimeter"], errors["feret_max"])
        cells += (errors["feret_min"], errors["length"], percent["length"], percent["width"])
        row = [f"{v.mean():+.1f} [{v.min():+.1f} {v.max():+.1f}]" for v in cells]
        circularity = errors["circularity"]
        row.append(f"{circularity.mean():.2f} [{circularity.min():.2f} {circularity.max():.2f}]")
        lines.append("| " + " | ".join([shape.name, *row]) + " |")
    return "\n".join(lines)


def _fiber(name: str, core: BaseGeometry, width: float, length: float) -> AnalyticShape:
    shape = _compact(name, core.buffer(width / 2, _QUARTER))
    return shape._replace(kind="fiber", truth={**shape.truth, "length": length, "width": width})


def _compact(name: str, outline: BaseGeometry) -> AnalyticShape:
    angles = np.linspace(0, np.pi, 7200, endpoint=False)
    corners = shapely.get_coordinates(outline.convex_hull)
    extents = np.ptp(corners @ np.stack([np.cos(angles), np.sin(angles)]), axis=0)
    wide, narrow = float(extents.max()), float(extents.min())
    truth = {
        "area": outline.area,
        "equivalent_diameter": math.sqrt(4 * outline.area / math.pi),
        "perimeter": outline.length,
        "feret_max": wide,
        "feret_min": narrow,
        "length": wide,
        "width": narrow,
    }
    return AnalyticShape(name, "other", outline, truth)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--drawings", type=int, default=100, help="times that a shape is drawn")
    parser.add_argument("--seed", type=int, default=0)
    print(error_table(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
