"""What is drawn: the shapes of fibres, fragments and films, and their true measures.

Shapes are vectors in pixels, where pixel (row i, column j) covers [j, j+1] x [i, i+1] as in COCO
polygons. The measures are taken from these vectors and never from pixels.
"""

import dataclasses
import math

import numpy as np
from shapely import affinity
from shapely.geometry import LineString, MultiPoint, Point, Polygon, box
from shapely.geometry.base import BaseGeometry

from microplastics.data.synthetic.fields import lognormal

FIBER, FRAGMENT, FILM, BEAD = 1, 2, 3, 4
CATEGORIES = [
    {"id": FIBER, "name": "Fiber", "supercategory": "microplastic"},
    {"id": FRAGMENT, "name": "Fragment", "supercategory": "microplastic"},
    {"id": FILM, "name": "Film", "supercategory": "microplastic"},
]
BEAD_CATEGORIES = [{"id": 1, "name": "Bead", "supercategory": "microplastic"}]
# A fibre is at most this many times as long as wide.
MAX_ASPECT_RATIO = 70
# A tip thinner than 2 TIP px belongs to an outline but to no pixel of its mask: outlines are made
# with such tips of at most NEEDLE px, see :func:`opened`.
TIP, NEEDLE = 0.4, 0.75


@dataclasses.dataclass(frozen=True)
class Particle:
    """One particle as it is drawn, whole, wherever the frame cuts it.

    Attributes:
        category_id: FIBER, FRAGMENT, FILM or BEAD.
        outline: its outline in px; a fibre that meets itself has holes.
        core: float64 (N, 2): a fibre's centreline, a bead's centre, else the outline's corners,
            in px.
        radius: half the width of a fibre's tube or of a bead in px, 0 for the others.
    """

    category_id: int
    outline: Polygon
    core: np.ndarray
    radius: float = 0.0

    def moved(self, dx: float, dy: float) -> "Particle":
        """Shift by (dx, dy) px."""
        return dataclasses.replace(
            self, outline=affinity.translate(self.outline, dx, dy), core=self.core + (dx, dy)
        )

    def truth(self, um_per_px: float) -> dict[str, float]:
        """True measures of the whole particle.

        A fibre is the set of points within ``radius`` of its centreline: its length is that of
        the centreline and the two end radii, its width the tube's, and each Feret diameter that
        of the centreline plus the tube's width (the support function of a sum is the sum of the
        support functions). A bead is the same about a single point. For the others length is the
        maximum and width the minimum Feret diameter. Area and perimeter are those of the outline
        (shoelace formula).

        Args:
            um_per_px: micrometres per pixel.

        Returns:
            ``length_um``, ``width_um``, ``feret_max_um``, ``feret_min_um``, ``area_um2``,
            ``perimeter_um``.
        """
        feret_max, feret_min = feret_diameters(self.core)
        width = 2 * self.radius
        feret_max, feret_min = feret_max + width, feret_min + width
        length, breadth = feret_max, feret_min
        if self.category_id == FIBER:
            steps = np.diff(self.core, axis=0)
            length, breadth = float(np.hypot(*steps.T).sum()) + width, width
        return {
            "length_um": length * um_per_px,
            "width_um": breadth * um_per_px,
            "feret_max_um": feret_max * um_per_px,
            "feret_min_um": feret_min * um_per_px,
            "area_um2": self.outline.area * um_per_px**2,
            "perimeter_um": self.outline.length * um_per_px,
        }


def opened(shape: BaseGeometry) -> BaseGeometry:
    """Open a shape (erode, then dilate) by TIP px: tips, necks and slivers thinner than 2 TIP go.

    Joins are mitred, so that blunt corners and curves stay as they are.
    """
    mitre = {"join_style": "mitre", "mitre_limit": 2.0}
    return shape.buffer(-TIP, **mitre).buffer(TIP, **mitre).intersection(shape)


def feret_diameters(points: np.ndarray) -> tuple[float, float]:
    """Largest and smallest Feret diameter of the convex hull of ``points``.

    The smallest width of a convex polygon is taken at right angles to one of its edges (the
    theorem behind rotating calipers: Shamos 1978; Toussaint 1983).

    Args:
        points: float (N, 2), N >= 1.

    Returns:
        (largest, smallest) in the unit of ``points``; the smallest of points on a line is 0.
    """
    hull = MultiPoint(points).convex_hull
    if not isinstance(hull, Polygon):
        minx, miny, maxx, maxy = hull.bounds
        return math.hypot(maxx - minx, maxy - miny), 0.0
    corners = np.asarray(hull.exterior.coords)
    edges = np.diff(corners, axis=0)
    corners = corners[:-1]
    apart = corners[:, None] - corners[None]
    normals = np.stack([-edges[:, 1], edges[:, 0]], 1) / np.hypot(*edges.T)[:, None]
    reach = corners @ normals.T
    return float(np.hypot(*apart.T).max()), float(np.ptp(reach, axis=0).min())


def make_fiber(rng: np.random.Generator, size: int) -> Particle:
    """Draw a fibre around the origin: a tube of 3 to 10 px around a smooth curve.

    Half of them are nearly straight, most others curl, a few are coiled; some are far longer.

    Args:
        rng: where the numbers come from.
        size: side of the image in px; a fibre is at most 1.3 times as long.
    """
    style = rng.choice(3, p=[0.56, 0.36, 0.08])
    width = lognormal(rng, (7.0, 6.0, 5.0)[style], 0.22, (4.5, 3.0, 3.0)[style], 10.0)
    longest = min(MAX_ASPECT_RATIO * width, 1.3 * size)
    median = 72 if rng.random() > 0.06 else 300
    length = lognormal(rng, median, 0.42, min(7 * width, 40.0), min(longest, 2 * median))
    return _curled_tube(rng, int(style), width, min(length, longest))


def make_long_fiber(rng: np.random.Generator, length: float) -> Particle:
    """Draw a fibre around the origin that is as long as told: a thread of 5 to 10 px.

    Args:
        rng: where the numbers come from.
        length: its length in px.
    """
    width = lognormal(rng, 7.0, 0.2, 5.0, 10.0)
    style = int(rng.choice(3, p=[0.4, 0.5, 0.1]))
    return _curled_tube(rng, style, width, length, waves=4 + int(length / 300))


def _curled_tube(
    rng: np.random.Generator, style: int, width: float, length: float, waves: int = 4
) -> Particle:
    """A tube about a smooth curve: nearly straight (style 0), curled (1) or coiled (2)."""
    count = max(int((length - width) / 2.0), 8)
    step = (length - width) / count
    along = np.linspace(0, 1, count)
    # The heading turns by a few slow waves: their number and strength make the style.
    turn = (0.5, 2.0, 5.0)[style] * (0.3 + rng.random())
    heading = rng.uniform(0, 2 * np.pi) + turn * rng.choice([-1, 1]) * (along - 0.5)
    for wave in range(1, waves):
        swing = (0.10, 0.55, 0.8)[style] * rng.standard_normal() / wave
        heading = heading + swing * np.sin(2 * np.pi * wave * along * 0.8 + rng.uniform(0, 6.28))
    # No bend tighter than the tube itself allows.
    bend = np.diff(heading)
    limit = step / (1.3 * width)
    heading = heading[0] + np.concatenate([[0], np.cumsum(np.clip(bend, -limit, limit))])
    steps = step * np.stack([np.cos(heading), np.sin(heading)], 1)
    core = np.concatenate([[[0.0, 0.0]], np.cumsum(steps, axis=0)])
    core -= core.mean(0)
    outline = LineString(core).buffer(width / 2, quad_segs=16).simplify(0.03)
    return Particle(FIBER, outline, core, width / 2)


def make_fragment(rng: np.random.Generator, size: int) -> Particle:
    """Draw a fragment around the origin: an angular chip with broken edges.

    Args:
        rng: where the numbers come from.
        size: side of the image in px; a fragment spans at most 0.4 of it.
    """
    span = lognormal(rng, 30, 0.33, 13, min(95, 0.4 * size))
    while True:
        corners = int(rng.integers(5, 10))
        spacing = rng.dirichlet(np.full(corners, 4.0))
        angles = 2 * np.pi * (np.cumsum(spacing) + rng.random())
        radii = rng.uniform(0.72, 1.1, corners)
        if rng.random() < 0.3:
            radii[rng.integers(corners)] *= 0.6
        points = radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)
        points[:, 1] *= rng.uniform(0.5, 1.0)
        points = _broken(rng, points @ _rotation(rng), 0.035)
        particle = _polygon_particle(FRAGMENT, points, span)
        if particle is not None:
            return particle


def make_film(rng: np.random.Generator, size: int) -> Particle:
    """Draw a film around the origin: a large soft outline, often cut straight somewhere.

    Args:
        rng: where the numbers come from.
        size: side of the image in px; a film spans at most 0.5 of it.
    """
    span = lognormal(rng, 56, 0.30, 28, min(150, 0.5 * size))
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    while True:
        radius = np.ones_like(angles)
        for wave in range(2, 7):
            swing = 0.22 * rng.standard_normal() / wave**0.8
            radius += swing * np.cos(wave * angles + rng.uniform(0, 6.28))
        points = np.maximum(radius, 0.45)[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)
        points[:, 1] *= rng.uniform(0.5, 0.95)
        shape = Polygon(points)
        for _ in range(int(rng.integers(0, 4))):
            # A half plane that takes off a slice: a cut edge.
            cut = affinity.rotate(
                box(-4, -4, rng.uniform(0.45, 0.85), 4), rng.uniform(0, 360), origin=(0, 0)
            )
            shape = shape.intersection(cut)
        if not isinstance(shape, Polygon) or shape.is_empty:
            continue
        points = np.asarray(shape.exterior.coords)[:-1] @ _rotation(rng)
        particle = _polygon_particle(FILM, _broken(rng, points, 0.02), span)
        if particle is not None:
            return particle


def make_bead(rng: np.random.Generator, size: int, diameter: float | None = None) -> Particle:
    """Draw a bead around the origin: a sphere, seen as a disc.

    Args:
        rng: where the numbers come from.
        size: side of the image in px; a bead spans at most 0.4 of it.
        diameter: of the batch, in px; its beads vary by 4 %. A batch of its own if None.
    """
    diameter = bead_diameter(rng) if diameter is None else diameter
    radius = min(diameter * rng.normal(1, 0.04), 0.4 * size) / 2
    outline = Point(0, 0).buffer(radius, quad_segs=16 if radius < 30 else 32)
    return Particle(BEAD, outline, np.zeros((1, 2)), radius)


def bead_diameter(rng: np.random.Generator) -> float:
    """Draw the diameter of a batch of beads in px: two thirds of the batches are small."""
    if rng.random() < 0.65:
        return lognormal(rng, 25, 0.25, 16, 42)
    return lognormal(rng, 82, 0.22, 50, 130)


MAKERS = {FIBER: make_fiber, FRAGMENT: make_fragment, FILM: make_film, BEAD: make_bead}


def _polygon_particle(category_id: int, points: np.ndarray, span: float) -> Particle | None:
    """Scale to a maximum Feret diameter of ``span`` px.

    None where the outline crosses itself, is too slender, or ends in a needle: a tip of more than
    NEEDLE px that an opening (erosion, dilation) by TIP px takes off, which no pixel would show.
    """
    points = points * (span / feret_diameters(points)[0])
    outline = Polygon(points - points.mean(0))
    if not outline.is_valid or feret_diameters(points)[1] < 0.35 * span:
        return None
    if opened(outline).hausdorff_distance(outline) > NEEDLE:
        return None
    return Particle(category_id, outline, np.asarray(outline.exterior.coords)[:-1])


def _broken(rng: np.random.Generator, points: np.ndarray, amount: float) -> np.ndarray:
    """Put one or two displaced points on each long edge (midpoint displacement)."""
    for _ in range(2):
        following = np.roll(points, -1, axis=0)
        edges = following - points
        lengths = np.hypot(*edges.T)
        shift = amount * rng.standard_normal(len(points)) * lengths
        normals = np.stack([-edges[:, 1], edges[:, 0]], 1) / lengths[:, None]
        share = rng.uniform(0.3, 0.7, len(points))[:, None]
        middles = points + share * edges + shift[:, None] * normals
        together = np.stack([points, middles], 1).reshape(-1, 2)
        points = together[np.stack([np.full(len(points), True), lengths > 0.25], 1).ravel()]
    return points


def _rotation(rng: np.random.Generator) -> np.ndarray:
    angle = rng.uniform(0, 2 * np.pi)
    return np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
