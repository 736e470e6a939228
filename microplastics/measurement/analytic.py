"""Shapes of known size, for measurement errors.

A pixel is inside if its centre is, without smoothing: the definition of a mask.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.spatial import cKDTree
from scipy.special import ellipe
from shapely.geometry import MultiPoint
from shapely.geometry.base import BaseGeometry

from microplastics.measurement.shape import Kind, measure

_SPACING = 0.05  # px between the points of a curve
QUANTITIES = (
    "equivalent_diameter",
    "perimeter",
    "feret_max",
    "feret_min",
    "length",
    "width",
)


class AnalyticShape(NamedTuple):
    """A shape around the origin.

    Attributes:
        name: with its sizes in px.
        kind: as :func:`microplastics.measurement.measure` takes it.
        inside: takes (N, 2) x and y in px, returns (N,) bool.
        reach: largest distance of its points from the origin, in px.
        truth: area in px² and :data:`QUANTITIES` in px.
    """

    name: str
    kind: Kind
    inside: Callable[[np.ndarray], np.ndarray]
    reach: float
    truth: dict[str, float]


def draw(shape: AnalyticShape, angle: float, shift: Sequence[float]) -> np.ndarray:
    """Draw a shape.

    Args:
        shape: the shape.
        angle: rotation in radians.
        shift: x and y from a pixel's centre to the shape's, in px.

    Returns:
        (h, w) bool with a margin.
    """
    side = math.ceil(shape.reach + max(abs(shift[0]), abs(shift[1]))) + 1
    y, x = np.mgrid[-side : side + 1, -side : side + 1]
    points = np.stack([x.ravel(), y.ravel()], axis=1) - shift
    cosine, sine = math.cos(angle), math.sin(angle)
    turned = points @ np.array([[cosine, -sine], [sine, cosine]])
    return shape.inside(turned).reshape(x.shape)


def disc(radius: float) -> AnalyticShape:
    """Make a disc of a radius in px."""
    truth = _truth(math.pi * radius**2, 2 * math.pi * radius, 2 * radius, 2 * radius)
    return AnalyticShape(
        f"disc, radius {radius:g}",
        "other",
        lambda p: (p * p).sum(axis=1) <= radius**2,
        radius,
        truth,
    )


def ring(radius: float, width: float) -> AnalyticShape:
    """Make a closed ring of a fibre: radius of its centreline and width in px."""
    outer = 2 * radius + width
    truth = _truth(2 * math.pi * radius * width, 4 * math.pi * radius, outer, outer)
    truth.update(length=2 * math.pi * radius, width=width)
    return AnalyticShape(
        f"ring, radius {radius:g}, {width:g} wide",
        "fiber",
        lambda p: np.abs(np.hypot(*p.T) - radius) <= width / 2,
        outer / 2,
        truth,
    )


def rectangle(length: float, width: float) -> AnalyticShape:
    """Make a rectangle of two sides in px, the longer one first."""
    diagonal = math.hypot(length, width)
    truth = _truth(length * width, 2 * (length + width), diagonal, width)
    return AnalyticShape(
        f"rectangle {length:g} × {width:g}",
        "other",
        lambda p: (np.abs(p[:, 0]) <= length / 2) & (np.abs(p[:, 1]) <= width / 2),
        diagonal / 2,
        truth,
    )


def ellipse(length: float, width: float) -> AnalyticShape:
    """Make an ellipse of two axes in px, the longer one first."""
    perimeter = 2 * length * float(ellipe(1 - (width / length) ** 2))
    truth = _truth(math.pi * length * width / 4, perimeter, length, width)
    return AnalyticShape(
        f"ellipse {length:g} × {width:g}",
        "other",
        lambda p: (2 * p[:, 0] / length) ** 2 + (2 * p[:, 1] / width) ** 2 <= 1,
        length / 2,
        truth,
    )


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
    turn = np.linspace(0, 2 * np.pi * turns, 20_000)
    distance = radius + pitch * turn / (2 * np.pi)
    core = distance[:, None] * np.stack([np.cos(turn), np.sin(turn)], axis=1)
    return tube(f"coil of {turns:g} turns, {width:g} wide", core, width)


def tube(name: str, core: np.ndarray, width: float) -> AnalyticShape:
    """Make the points within half a width of a line that does not come near itself.

    Args:
        name: of the shape.
        core: (N, 2) points of the line in px.
        width: in px.
    """
    steps = np.hypot(*np.diff(core, axis=0).T)
    along = np.concatenate([[0.0], np.cumsum(steps)])
    fine = np.linspace(0, along[-1], math.ceil(along[-1] / _SPACING) + 1)
    core = np.stack([np.interp(fine, along, values) for values in core.T], axis=1)
    core -= core.mean(axis=0)
    tree = cKDTree(core)
    hull = MultiPoint(core).convex_hull
    wide, narrow = _extents(hull)
    length = float(along[-1])
    truth = _truth(
        length * width + math.pi * width**2 / 4,
        2 * length + math.pi * width,
        wide + width,
        narrow + width,
    )
    truth.update(length=length + width, width=width)
    return AnalyticShape(
        name,
        "fiber",
        lambda p: tree.query(p, distance_upper_bound=width)[0] <= width / 2,
        float(np.hypot(*core.T).max()) + width / 2,
        truth,
    )


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
    """Measure a shape at random places and angles.

    Args:
        shape: the shape.
        drawings: number of drawings.
        rng: for places and angles.

    Returns:
        measured minus true values of each of :data:`QUANTITIES` in px, (drawings,); and
        ``circularity`` and ``solidity`` as measured.
    """
    found = []
    for _ in range(drawings):
        mask = draw(shape, rng.uniform(0, 2 * np.pi), rng.uniform(-0.5, 0.5, 2))
        found.append(measure(mask, kind=shape.kind))
    errors = {
        name: np.array([getattr(one, name) for one in found]) - shape.truth[name]
        for name in QUANTITIES
    }
    for name in ("circularity", "solidity"):
        errors[name] = np.array([getattr(one, name) for one in found])
    return errors


def error_table(drawings: int, seed: int) -> str:
    """Make a Markdown table of all standard shapes' errors: mean, smallest and largest.

    Args:
        drawings: number of drawings of each shape.
        seed: of places and angles.

    Returns:
        the table.
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


def _truth(area: float, perimeter: float, feret_max: float, feret_min: float) -> dict[str, float]:
    return {
        "area": area,
        "equivalent_diameter": math.sqrt(4 * area / math.pi),
        "perimeter": perimeter,
        "feret_max": feret_max,
        "feret_min": feret_min,
        "length": feret_max,
        "width": feret_min,
    }


def _extents(hull: BaseGeometry) -> tuple[float, float]:
    """Largest and smallest Feret diameter of a polygon or a line."""
    points = np.asarray(hull.coords if hull.geom_type == "LineString" else hull.exterior.coords)
    angles = np.linspace(0, np.pi, 7200, endpoint=False)
    widths = np.ptp(points @ np.stack([np.cos(angles), np.sin(angles)]), axis=0)
    return float(widths.max()), float(widths.min())
