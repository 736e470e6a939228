"""Shapes, true measures and looks of particles."""

import dataclasses
import math
from types import SimpleNamespace

import cv2
import numpy as np
from numpy.random import Generator
from shapely import affinity
from shapely.geometry import LineString, MultiPoint, Point, Polygon, box
from shapely.geometry.base import BaseGeometry

from microplastics.synthetic.camera import Scene, fractal_noise, relief, smooth_noise, walk

FIBER, FRAGMENT, FILM, BEAD = 1, 2, 3, 4
CATEGORIES = [
    {"id": FIBER, "name": "Fiber", "supercategory": "microplastic"},
    {"id": FRAGMENT, "name": "Fragment", "supercategory": "microplastic"},
    {"id": FILM, "name": "Film", "supercategory": "microplastic"},
]
BEAD_CATEGORIES = [{"id": 1, "name": "Bead", "supercategory": "microplastic"}]
# Maximum ratio of a fibre's length to its width.
MAX_ASPECT_RATIO = 70
# Tips thinner than 2 TIP px belong to an outline but to no pixel of its mask. Outlines have such
# tips of at most NEEDLE px, see :func:`opened`.
TIP, NEEDLE = 0.4, 0.75
# Samples per pixel along each axis at which shapes are filled.
_SAMPLES = 3
# Colours by the names that labs use, R G B of 0 to 255.
_COLORS = {
    "blue": (42, 78, 172),
    "navy": (28, 38, 92),
    "black": (34, 34, 38),
    "red": (178, 44, 48),
    "green": (44, 122, 78),
    "white": (238, 238, 232),
    "yellow": (214, 178, 60),
    "violet": (112, 62, 130),
    "transparent": (206, 212, 212),
}
_ON_BRIGHT = {
    FIBER: ("blue", "blue", "navy", "black", "black", "red", "green", "violet", "transparent"),
    FRAGMENT: ("blue", "red", "green", "black", "yellow", "white", "violet", "navy"),
}
_ON_DARK = {
    FIBER: ("blue", "red", "green", "white", "white", "transparent", "transparent", "yellow"),
    FRAGMENT: ("blue", "red", "green", "white", "white", "yellow"),
}
_FILM_ON_BRIGHT = (
    (150, 185, 205),
    (170, 170, 150),
    (140, 180, 150),
    (185, 165, 185),
    (120, 130, 140),
)
_FILM_ON_DARK = ((150, 175, 190), (190, 190, 180), (140, 175, 150), (180, 150, 175))
# Light that beads scatter in dark field, B G R, and its frequency.
_SCATTER = np.array([(0.95, 1.0, 0.97), (0.7, 0.98, 0.95), (0.25, 0.7, 1.0), (0.95, 0.8, 1.0)])
_SCATTER_FREQUENCY = (0.5, 0.22, 0.13, 0.15)


@dataclasses.dataclass(frozen=True)
class Particle:
    """A whole particle in px, including the part outside the frame."""

    category_id: int  # FIBER, FRAGMENT, FILM or BEAD
    outline: Polygon  # with holes if a fibre crosses itself
    core: np.ndarray  # float64 (N, 2): a fibre's centreline, a bead's centre, else the corners
    radius: float = 0.0  # half the width of a fibre or bead, 0 for the others

    def turned(self, angle: float) -> "Particle":
        """Turn by an angle in rad about the origin, from x towards y."""
        matrix = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
        outline = affinity.rotate(self.outline, angle, origin=(0, 0), use_radians=True)
        return dataclasses.replace(self, outline=outline, core=self.core @ matrix)

    def moved(self, dx: float, dy: float) -> "Particle":
        """Shift by (dx, dy) px."""
        outline = affinity.translate(self.outline, dx, dy)
        return dataclasses.replace(self, outline=outline, core=self.core + (dx, dy))

    def truth(self, um_per_px: float) -> dict[str, float]:
        """Compute the true measures of the whole particle.

        A fibre is the set of points within ``radius`` of its centreline. Its length is the
        centreline's plus its width, and each Feret diameter is the centreline's plus its width
        (the support function of a sum is the sum of the support functions). A bead is the same
        about a single point. For the others length is the maximum and width the minimum Feret
        diameter. Area and perimeter come from the outline (shoelace formula).
        """
        width = 2 * self.radius
        feret_max, feret_min = (diameter + width for diameter in feret_diameters(self.core))
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
    """Open a shape (erode, then dilate) by TIP px, which removes tips thinner than 2 TIP.

    Joins are mitred, so that blunt corners and curves do not change.
    """
    mitre = {"join_style": "mitre", "mitre_limit": 2.0}
    return shape.buffer(-TIP, **mitre).buffer(TIP, **mitre).intersection(shape)


def feret_diameters(points: np.ndarray) -> tuple[float, float]:
    """Compute the largest and smallest Feret diameter of the convex hull of ``points``.

    The smallest width of a convex polygon is perpendicular to one of its edges (the theorem of
    rotating calipers: Shamos 1978; Toussaint 1983). It is 0 for points on a line.
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


def make_fiber(rng: Generator, size: int) -> Particle:
    """Draw a fibre around the origin: a tube of 3 to 10 px around a smooth curve.

    Half of them are nearly straight, most others curl, a few are coiled; some are far longer, up
    to 1.3 times ``size``, the side of the image in px.
    """
    style = rng.choice(3, p=[0.56, 0.36, 0.08])
    width = _lognormal(rng, (7.0, 6.0, 5.0)[style], 0.22, (4.5, 3.0, 3.0)[style], 10.0)
    longest = min(MAX_ASPECT_RATIO * width, 1.3 * size)
    median = 72 if rng.random() > 0.06 else 300
    length = _lognormal(rng, median, 0.42, min(7 * width, 40.0), min(longest, 2 * median))
    return _curled_tube(rng, int(style), width, min(length, longest))


def make_long_fiber(rng: Generator, length: float) -> Particle:
    """Draw a fibre of a given length in px around the origin: a thread of 5 to 10 px."""
    width = _lognormal(rng, 7.0, 0.2, 5.0, 10.0)
    style = int(rng.choice(3, p=[0.4, 0.5, 0.1]))
    return _curled_tube(rng, style, width, length, waves=4 + int(length / 300))


def make_fragment(rng: Generator, size: int) -> Particle:
    """Draw a fragment around the origin: an angular chip with broken edges."""
    span = _lognormal(rng, 30, 0.33, 13, min(95, 0.4 * size))
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


def make_film(rng: Generator, size: int) -> Particle:
    """Draw a film around the origin: a large soft outline, often cut straight somewhere."""
    span = _lognormal(rng, 56, 0.30, 28, min(150, 0.5 * size))
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
            # A half plane that removes a slice: a cut edge.
            plane = box(-4, -4, rng.uniform(0.45, 0.85), 4)
            shape = shape.intersection(affinity.rotate(plane, rng.uniform(0, 360), origin=(0, 0)))
        if not isinstance(shape, Polygon) or shape.is_empty:
            continue
        points = np.asarray(shape.exterior.coords)[:-1] @ _rotation(rng)
        particle = _polygon_particle(FILM, _broken(rng, points, 0.02), span)
        if particle is not None:
            return particle


def make_bead(rng: Generator, size: int, diameter: float | None = None) -> Particle:
    """Draw a bead around the origin, a sphere seen as a disc.

    ``diameter`` is that of its batch in px, which varies by 4 %; None for a batch of its own.
    """
    diameter = bead_diameter(rng) if diameter is None else diameter
    radius = min(diameter * rng.normal(1, 0.04), 0.4 * size) / 2
    outline = Point(0, 0).buffer(radius, quad_segs=16 if radius < 30 else 32)
    return Particle(BEAD, outline, np.zeros((1, 2)), radius)


def bead_diameter(rng: Generator) -> float:
    """Draw the diameter of a batch of beads in px: two thirds of the batches are small."""
    if rng.random() < 0.65:
        return _lognormal(rng, 25, 0.25, 16, 42)
    return _lognormal(rng, 82, 0.22, 50, 130)


MAKERS = {FIBER: make_fiber, FRAGMENT: make_fragment, FILM: make_film, BEAD: make_bead}


def paint(rng: Generator, particle: Particle, scene: Scene, min_contrast: float) -> bool:
    """Paint a particle onto the scene in a colour that stands out from the ground.

    Returns:
        Whether it was painted: False, with the scene unchanged, if five colours in succession
        have a :func:`contour_contrast` below ``min_contrast``.
    """
    crop = _Crop(particle, scene.canvas.shape[0], margin=int(5 + 3 * scene.throw))
    coverage = crop.coverage(particle.outline)
    below = scene.canvas[crop.window]
    draw = {FIBER: _tube, FRAGMENT: _facets, FILM: _sheet}[particle.category_id]
    for _ in range(5):
        color, alpha = draw(rng, particle, scene, crop, coverage)
        layer = color, alpha * coverage
        painted, alpha = _composite(rng, particle, scene, below, layer, coverage)
        if contour_contrast(painted, below, coverage) >= min_contrast:
            scene.canvas[crop.window] = painted
            if scene.cover is not None:
                scene.cover[crop.window] += (1 - scene.cover[crop.window]) * alpha
            return True
    return False


def contour_contrast(painted: np.ndarray, below: np.ndarray, coverage: np.ndarray) -> float:
    """Compute the colour difference that a particle makes just inside its contour.

    ``painted`` and ``below`` are float32 (h, w, 3) with and without the particle, ``coverage`` is
    float32 (h, w), the fraction of each pixel inside the outline.

    Returns:
        The 30th percentile along the contour of the root mean square difference over the
        channels, 0 to 1: most of the contour stands out at least as much.
    """
    inside = coverage >= 0.5
    deep = cv2.erode(inside.astype(np.uint8), np.ones((5, 5), np.uint8), borderValue=1) > 0
    rim = inside & ~deep
    if not rim.any():
        return 0.0
    difference = painted[rim] - below[rim]
    return float(np.percentile(np.sqrt((difference**2).mean(1)), 30))


def sphere_look(rng: Generator, diameter: float) -> SimpleNamespace:
    """Draw the look of all beads of a picture, taken by one microscope at one focus.

    Only beads of a large ``diameter``, in px, scatter mainly from the rim.
    """
    large = diameter > 46
    return SimpleNamespace(
        # Depth of the dark ring in bright field, and width of rings as a fraction of the radius.
        ring=rng.uniform(0.08, 0.42),
        width=rng.uniform(0.12, 0.26) if large else rng.uniform(0.18, 0.34),
        # Brightness of the middle relative to the ground in bright field, and its colour, BGR.
        core=rng.uniform(-0.08, 0.16) if large else rng.uniform(-0.3, 0.08),
        tint=np.array([0.95, 1.02, 0.96]) + rng.normal(0, 0.03, 3),
        # Strength of the light around the outline.
        halo=rng.uniform(0.0, 0.12),
        # Bright spots in dark field, 0 for an even ring, and direction of the first one in rad.
        lobes=int(rng.choice([0, 4], p=[0.3, 0.7])),
        turn=rng.uniform(0, np.pi),
        # Distance of the light from the centre in dark field, in radii, and its overexposure.
        middle=rng.uniform(0.82, 0.98) if large else rng.uniform(0.4, 0.72),
        glare=rng.lognormal(-0.2, 0.5),
    )


def paint_bead(
    rng: Generator, bead: Particle, scene: Scene, look: SimpleNamespace, min_contrast: float
) -> bool:
    """Paint a bead, and the light around it, as :func:`paint` does; three attempts are made."""
    crop = _Crop(bead, scene.canvas.shape[0], margin=8 + int(0.6 * bead.radius))
    rows, columns = np.mgrid[: crop.shape[0], : crop.shape[1]].astype(np.float32)
    x = columns + np.float32(crop.origin[0] + 0.5 - bead.core[0, 0])
    y = rows + np.float32(crop.origin[1] + 0.5 - bead.core[0, 1])
    polar = np.hypot(x, y) / np.float32(bead.radius), np.arctan2(y, x)
    coverage = crop.coverage(bead.outline)
    below = scene.canvas[crop.window]
    painter = _scattering if scene.dark else _refracting
    for _ in range(3):
        painted = painter(rng, below, polar, coverage, look, scene)
        # Not all beads lie in the focal plane.
        blur = rng.uniform(0.0, 0.07) * bead.radius
        if blur > 0.3:
            painted = below + cv2.GaussianBlur(painted - below, (0, 0), blur)
        if contour_contrast(painted, below, coverage) >= min_contrast:
            scene.canvas[crop.window] = painted
            return True
    return False


def _lognormal(rng: Generator, median: float, sigma: float, low: float, high: float) -> float:
    """Draw a log-normal number, clipped to [low, high] (to low if low > high)."""
    return float(max(low, min(high, median * np.exp(sigma * rng.standard_normal()))))


def _curled_tube(
    rng: Generator, style: int, width: float, length: float, waves: int = 4
) -> Particle:
    """Draw a tube about a smooth curve: nearly straight (style 0), curled (1) or coiled (2)."""
    count = max(int((length - width) / 2.0), 8)
    step = (length - width) / count
    along = np.linspace(0, 1, count)
    # The heading turns in a few slow waves, whose strength makes the style.
    turn = (0.5, 2.0, 5.0)[style] * (0.3 + rng.random())
    heading = rng.uniform(0, 2 * np.pi) + turn * rng.choice([-1, 1]) * (along - 0.5)
    for wave in range(1, waves):
        swing = (0.10, 0.55, 0.8)[style] * rng.standard_normal() / wave
        heading = heading + swing * np.sin(2 * np.pi * wave * along * 0.8 + rng.uniform(0, 6.28))
    # No bend tighter than the tube itself allows.
    bend = np.diff(heading)
    limit = step / (1.3 * width)
    heading = heading[0] + np.concatenate([[0], np.cumsum(np.clip(bend, -limit, limit))])
    core = walk((0.0, 0.0), heading, step)
    core -= core.mean(0)
    outline = LineString(core).buffer(width / 2, quad_segs=16).simplify(0.03)
    return Particle(FIBER, outline, core, width / 2)


def _polygon_particle(category_id: int, points: np.ndarray, span: float) -> Particle | None:
    """Scale to a maximum Feret diameter of ``span`` px; None for an unfit outline."""
    points = points * (span / feret_diameters(points)[0])
    outline = Polygon(points - points.mean(0))
    if not outline.is_valid or feret_diameters(points)[1] < 0.35 * span:
        return None
    # No tips that the mask would not show.
    if opened(outline).hausdorff_distance(outline) > NEEDLE:
        return None
    return Particle(category_id, outline, np.asarray(outline.exterior.coords)[:-1])


def _broken(rng: Generator, points: np.ndarray, amount: float) -> np.ndarray:
    """Break each long edge twice (midpoint displacement)."""
    for _ in range(2):
        following = np.roll(points, -1, axis=0)
        edges = following - points
        lengths = np.hypot(*edges.T)
        shift = amount * rng.standard_normal(len(points)) * lengths
        normals = np.stack([-edges[:, 1], edges[:, 0]], 1) / lengths[:, None]
        place = rng.uniform(0.3, 0.7, len(points))[:, None]
        middles = points + place * edges + shift[:, None] * normals
        together = np.stack([points, middles], 1).reshape(-1, 2)
        points = together[np.stack([np.full(len(points), True), lengths > 0.25], 1).ravel()]
    return points


def _rotation(rng: Generator) -> np.ndarray:
    angle = rng.uniform(0, 2 * np.pi)
    return np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])


class _Crop:
    """A window of ``margin`` px around a particle, drawn at _SAMPLES per pixel."""

    def __init__(self, particle: Particle, size: int, margin: int = 8):
        left, top, right, bottom = (int(v) for v in particle.outline.bounds)
        rows = slice(max(top - margin, 0), min(bottom + margin + 1, size))
        columns = slice(max(left - margin, 0), min(right + margin + 1, size))
        self.window = rows, columns
        self.shape = rows.stop - rows.start, columns.stop - columns.start
        self.origin = np.array([columns.start, rows.start])

    def canvas(self, *channels: int) -> np.ndarray:
        """Make an empty drawing, uint8."""
        return np.zeros((self.shape[0] * _SAMPLES, self.shape[1] * _SAMPLES, *channels), np.uint8)

    def fixed(self, points: np.ndarray) -> np.ndarray:
        """Convert px to samples in OpenCV's 1/16 fixed point, with integers at pixel centres."""
        samples = (np.asarray(points) - self.origin) * _SAMPLES - 0.5
        return np.round(samples * 16).astype(np.int32)

    def fill(self, canvas: np.ndarray, value, *rings: np.ndarray) -> None:
        """Fill a polygon and its holes (px of the image) on a drawing."""
        cv2.fillPoly(canvas, [self.fixed(ring) for ring in rings], value, shift=4)

    def reduce(self, canvas: np.ndarray) -> np.ndarray:
        """Average a drawing to pixels, float32, 0 to 1."""
        small = cv2.resize(canvas, self.shape[::-1], interpolation=cv2.INTER_AREA)
        return small.astype(np.float32) / 255

    def coverage(self, outline: Polygon) -> np.ndarray:
        """Compute the fraction of each pixel inside an outline, float32."""
        canvas = self.canvas()
        self.fill(canvas, 255, *(r.coords for r in (outline.exterior, *outline.interiors)))
        return self.reduce(canvas)


def _composite(rng: Generator, particle: Particle, scene: Scene, below, layer, coverage):
    """Lay (colour, alpha) of a particle with its shadow over pixels; return both as blurred."""
    color, alpha = layer
    solid = {FIBER: 0.8, FRAGMENT: 1.0, FILM: 0.35}[particle.category_id]
    throw = -scene.light * rng.uniform(1.2, 2.6) * solid * scene.throw
    move = np.array([[1, 0, throw[0]], [0, 1, throw[1]]], np.float32)
    shadow = cv2.warpAffine(coverage, move, coverage.shape[::-1])
    shadow = cv2.GaussianBlur(shadow, (0, 0), rng.uniform(1.0, 2.0))
    strength = solid * rng.uniform(0.15, 0.4) * (0.4 if scene.dark else 1.0)
    # Particles lie at different depths: each has its own slight defocus.
    blur = rng.uniform(0.0, 0.75)
    color = color * alpha[..., None]
    if blur > 0.25:
        color, alpha = cv2.GaussianBlur(color, (0, 0), blur), cv2.GaussianBlur(alpha, (0, 0), blur)
    shaded = below * (1 - strength * shadow * (1 - alpha))[..., None]
    return shaded * (1 - alpha[..., None]) + color, alpha


def _bgr(rng: Generator, rgb: tuple[int, int, int]) -> np.ndarray:
    color = np.array(rgb[::-1], np.float32) / 255
    # Weathering bleaches: part of the colour gives way to its own grey, a little lighter.
    faded = rng.beta(1.2, 3.0)
    color = color + faded * (color.mean() * 1.05 + 0.03 - color)
    color = color * rng.uniform(0.8, 1.2) + rng.normal(0, 0.02, 3)
    return np.clip(color, 0.03, 1).astype(np.float32)


def _pick(rng: Generator, particle: Particle, scene: Scene) -> tuple[str, np.ndarray]:
    names = (_ON_DARK if scene.dark else _ON_BRIGHT)[particle.category_id]
    name = str(rng.choice(names))
    return name, _bgr(rng, _COLORS[name])


def _tube(rng: Generator, fiber: Particle, scene: Scene, crop: _Crop, coverage: np.ndarray):
    """Draw a fibre: darker rims, a highlight along the side that faces the light."""
    # Short quadrilaterals, strip by strip: its later part lies on top where it crosses itself.
    name, color = _pick(rng, fiber, scene)
    faint = scene.faint > 0 and rng.random() < scene.faint
    if faint:
        name, color = "transparent", _bgr(rng, _COLORS["transparent"])
    core, radius = fiber.core, fiber.radius
    tangent = np.gradient(core, axis=0)
    tangent /= np.hypot(*tangent.T)[:, None]
    # Drawn a little beyond the tube on all sides; the coverage trims it.
    beyond = radius + 1
    first, last = core[0] - beyond * tangent[0], core[-1] + beyond * tangent[-1]
    line = np.concatenate([[first], core, [last]])
    tangent = np.concatenate([tangent[:1], tangent, tangent[-1:]])
    normal = np.stack([-tangent[:, 1], tangent[:, 0]], 1)
    edges = np.linspace(-1, 1, 10)
    across = (edges[1:] + edges[:-1]) / 2
    edges[[0, -1]] *= beyond / radius
    canvas = crop.canvas(2)
    # The colour drifts along a fibre: dye, twist and depth vary.
    drift = 1 + rng.uniform(0.02, 0.13) * _wander(rng, len(line))
    for start in range(0, len(line) - 1, 3):
        part = slice(start, start + 4)
        towards = float(normal[part].mean(0) @ scene.light)
        values = _tube_profile(across, towards, name == "transparent", scene.dark)
        values = [(min(int(t * drift[start]), 255), a) for t, a in values]
        lines = line[part, None] + radius * edges[:, None] * normal[part, None]
        for strip, value in enumerate(values):
            crop.fill(canvas, value, np.concatenate([lines[:, strip], lines[::-1, strip + 1]]))
    tone, alpha = np.moveaxis(crop.reduce(canvas), 2, 0)
    if faint:
        alpha = alpha * rng.uniform(0.35, 0.7)
    depth, cell = rng.uniform(0.02, 0.07), rng.uniform(1.5, 5)
    grain = 1 + depth * smooth_noise(rng, crop.shape, cell)
    return _glossy(color, 2 * tone * grain, 0.45), alpha


def _wander(rng: Generator, count: int) -> np.ndarray:
    """Draw smooth random numbers about 0, float64 (count,)."""
    knots = rng.standard_normal(max(count // 8, 2) + 2)
    return np.interp(np.linspace(0, len(knots) - 1, count), np.arange(len(knots)), knots)


def _warped(rng: Generator, field: np.ndarray, reach: float, cell: float) -> np.ndarray:
    """Bend a field's straight lines by random shifts of about ``reach`` px."""
    rows, columns = np.mgrid[: field.shape[0], : field.shape[1]].astype(np.float32)
    x = columns + reach * smooth_noise(rng, field.shape, cell)
    y = rows + reach * smooth_noise(rng, field.shape, cell)
    return cv2.remap(field, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _tube_profile(across: np.ndarray, towards: float, clear: bool, dark: bool):
    """Compute brightness (128: plain colour) and opacity across a tube, 0 to 255."""
    up = np.sqrt(1 - across**2)
    highlight = np.exp(-(((across - 0.4 * towards) / 0.3) ** 2))
    if clear:
        # Glassy: the rims refract the light away, or towards the camera in dark field.
        tone = (1.15 if dark else 0.40) + (0.0 if dark else 0.5) * up**2 + 0.5 * highlight
        alpha = 0.9 - 0.45 * up**2 + 0.25 * highlight
    else:
        tone = 0.55 + 0.35 * up + 0.22 * across * towards + 0.4 * highlight
        alpha = np.full_like(up, 0.97)
    values = np.clip(np.stack([tone / 2, alpha], 1), 0, 1) * 255
    return [(int(t), int(a)) for t, a in values]


def _glossy(color: np.ndarray, tone: np.ndarray, gloss: float) -> np.ndarray:
    """Multiply a colour by brightness; brightness above 1.1 is white light off the surface."""
    shine = gloss * np.clip(tone - 1.1, 0, 1)
    return np.clip(color * np.minimum(tone, 1.1)[..., None] + shine[..., None], 0, 1.05)


def _facets(rng: Generator, fragment: Particle, scene: Scene, crop: _Crop, coverage: np.ndarray):
    """Draw a chip: flat faces from its corners to a ridge or plateau, each lit differently."""
    _, color = _pick(rng, fragment, scene)
    outline = fragment.core
    span = float(np.ptp(outline, axis=0).max())
    corners = np.asarray(fragment.outline.simplify(0.08 * span).exterior.coords)[:-1]
    middle = outline.mean(0) + rng.normal(0, 0.07 * span, 2)
    # A ridge, a plateau, or a flat plate with bevelled edges.
    inner = middle + float(rng.choice([0.0, 0.35, 0.6, 0.85])) * (corners - middle)
    inner = inner + rng.normal(0, 0.025 * span, inner.shape)
    canvas = crop.canvas()
    # Faces exceed the outline; the coverage trims them.
    outer = middle + 1.7 * (corners - middle)
    crop.fill(canvas, 128, outer)
    steep = rng.uniform(0.1, 0.38)
    for i, j in enumerate(np.roll(np.arange(len(corners)), -1)):
        along = corners[j] - corners[i]
        outward = np.array([along[1], -along[0]]) / max(np.hypot(*along), 1e-6)
        if outward @ (corners[i] - middle) < 0:
            outward = -outward
        tone = 0.88 + steep * float(outward @ scene.light) + rng.normal(0, 0.05)
        tone += 0.45 * (rng.random() < 0.05)
        face = np.stack([outer[i], outer[j], inner[j], inner[i]])
        crop.fill(canvas, int(np.clip(tone / 2, 0.1, 1) * 255), face)
    crop.fill(canvas, int(np.clip(0.5 + rng.normal(0, 0.04), 0, 1) * 255), inner)
    tone = _warped(rng, 2 * crop.reduce(canvas), 0.07 * span, max(span / 5, 3))
    # Broken plastic is dull and scarred: grain, and shell-like fracture marks.
    fracture = relief(smooth_noise(rng, crop.shape, max(span / 7, 2.5)), scene.light)
    tone *= 1 + rng.uniform(0.04, 0.11) * fractal_noise(rng, crop.shape, (1.6, 4, 9), 0.8)
    tone += rng.uniform(0.1, 0.6) * fracture
    edge = cv2.GaussianBlur(coverage, (0, 0), 1.1)
    # A worn edge catches the light on one side and turns away from it on the other.
    tone += rng.uniform(0.3, 1.0) * relief(edge, scene.light) - 0.18 * (1 - edge)
    return _glossy(color, tone, 0.55), np.full(crop.shape, 0.985, np.float32)


def _sheet(rng: Generator, film: Particle, scene: Scene, crop: _Crop, coverage: np.ndarray):
    """Draw a film: tinted, transparent, with a darker edge, wrinkles and folds."""
    tints = _FILM_ON_DARK if scene.dark else _FILM_ON_BRIGHT
    color = _bgr(rng, tints[rng.integers(len(tints))])
    alpha = np.full(crop.shape, rng.uniform(0.34, 0.52), np.float32)
    tone = np.full(crop.shape, 0.95 if scene.dark else 0.88, np.float32)
    sign = 1.0 if scene.dark else -1.0
    edge = coverage * (1 - cv2.GaussianBlur(coverage, (0, 0), 1.3)) * 2
    tone += sign * rng.uniform(0.25, 0.5) * edge
    alpha += rng.uniform(0.3, 0.5) * edge
    rows, columns = np.mgrid[: crop.shape[0], : crop.shape[1]].astype(np.float32)
    bounds = np.reshape(film.outline.bounds, (2, 2))
    center = [float(c) for c in bounds.mean(0) - crop.origin]
    span = float(np.ptp(bounds, axis=0).max())
    for _ in range(int(rng.integers(0, 4))):
        angle, place = rng.uniform(0, 2 * np.pi), rng.uniform(-0.35, 0.35) * span
        x, y = columns - center[0], rows - center[1]
        across = x * math.cos(angle) + y * math.sin(angle) - place
        across += 0.03 * span * smooth_noise(rng, crop.shape, span / 3)
        breadth = rng.uniform(0.06, 0.22) * span
        # The film is double between the fold, which shines, and the flap's end, a line.
        double = np.clip(np.minimum(across, breadth - across) + 0.5, 0, 1)
        end = np.exp(-(((across - breadth) / 0.9) ** 2))
        alpha += rng.uniform(0.1, 0.22) * double
        alpha += 0.3 * np.exp(-((across / 1.1) ** 2)) + 0.2 * end
        tone += float(rng.choice([-0.25, 0.4])) * np.exp(-((across / 1.2) ** 2))
        tone += sign * 0.3 * end
    ripple = fractal_noise(rng, crop.shape, (span / 2, span / 5), 0.6)
    wrinkles = relief(_crumple(rng, crop.shape, span), scene.light)
    tone += wrinkles + 0.05 * ripple
    alpha += 0.6 * np.abs(wrinkles)
    sheen = np.clip(ripple - 1.0, 0, 1) * rng.uniform(0, 0.5)
    return _glossy(color, tone + sheen, 0.7), np.clip(alpha + 0.3 * sheen, 0, 0.93)


def _crumple(rng: Generator, shape: tuple[int, int], span: float) -> np.ndarray:
    """Draw the height of a crumpled sheet: sharp creases of slow waves, stretched one way."""
    angle, stretch = rng.uniform(0, 2 * np.pi), rng.uniform(1.0, 3.5)
    cell = span * rng.uniform(0.14, 0.3)
    side = int(1.5 * max(shape)) + 8
    height = -np.abs(fractal_noise(rng, (side, side), (cell, cell / 2), 0.5))
    turn = cv2.getRotationMatrix2D((side / 2, side / 2), math.degrees(angle), 1.0)
    turn[:, 0] *= stretch
    turn[0, 2] = side / 2 - turn[0, 0] * side / 2 - turn[0, 1] * side / 2
    turn[1, 2] = side / 2 - turn[1, 0] * side / 2 - turn[1, 1] * side / 2
    bent = cv2.warpAffine(height, turn, (side, side), borderMode=cv2.BORDER_REFLECT_101)
    top, left = (side - shape[0]) // 2, (side - shape[1]) // 2
    bent = cv2.GaussianBlur(bent[top : top + shape[0], left : left + shape[1]], (0, 0), 0.6)
    return bent * rng.uniform(0.3, 1.1)


def _refracting(rng: Generator, below, polar, coverage, look: SimpleNamespace, scene: Scene):
    """Draw a ball lens in bright field: its rim deflects the light, its middle focuses it."""
    r, angle = polar
    depth = look.ring * rng.uniform(0.8, 1.2)
    # The condenser is never quite centred: one side of the ring is darker.
    toward = np.arctan2(scene.light[1], scene.light[0])
    depth = depth * (1 + 0.25 * np.cos(angle - toward))
    gain = 1 - depth * np.exp(-(((r - 1 + 0.6 * look.width) / look.width) ** 2))
    core = np.clip(1 - (r / 0.9) ** 2, 0, 1)
    gain = gain + (look.core + 0.06 * rng.standard_normal()) * core
    gain = gain + 0.5 * look.halo * np.exp(-(((r - 0.42) / 0.12) ** 2))
    tinted = gain[..., None] * (1 + coverage[..., None] * (look.tint - 1))
    halo = look.halo * np.exp(-(((r - 1.12) / 0.1) ** 2)) * (1 - coverage)
    # Red and blue come to focus in different planes: a violet and a green side.
    fringe = 0.05 * np.exp(-(((r - 1) / 0.12) ** 2)) * np.cos(angle - look.turn)
    tinted = tinted + fringe[..., None] * np.array([1.0, -0.6, 0.6])
    inside = below * np.clip(tinted, 0.1, 1.6)
    mix = coverage[..., None]
    return (below * (1 + halo[..., None]) * (1 - mix) + inside * mix).astype(np.float32)


def _scattering(rng: Generator, below, polar, coverage, look: SimpleNamespace, scene: Scene):
    """Draw light from the rim in dark field, in lobes if there are few lamps, with its glow."""
    r, angle = polar
    ring = np.exp(-(((r - look.middle) / (0.5 * look.width + 0.1)) ** 2))
    lobes = 1.0
    if look.lobes:
        lobes = 0.15 + 0.85 * np.cos(0.5 * look.lobes * (angle - look.turn)) ** 4
    body = np.clip(1 - r**4, 0, 1) * rng.uniform(0.03, 0.2)
    light = look.glare * rng.uniform(0.7, 1.3) * (ring * lobes + body)
    light = light * (1 + 0.2 * smooth_noise(rng, r.shape, 4.0))
    glow = look.glare * (0.3 + look.halo * 4) * 0.16 * np.exp(-np.clip(r - 0.9, 0, 9) * 6)
    color = _SCATTER[rng.choice(len(_SCATTER), p=_SCATTER_FREQUENCY)]
    # Lenses split the colours across the bead: one side greenish, the other violet.
    split = 0.2 * r * np.cos(angle - look.turn)
    color = color * (1 + split[..., None] * np.array([0.4, -1.0, 0.5]))
    light = np.clip(light, 0, None) * np.clip(coverage + 0.4 * (r < 1.15), 0, 1) + glow
    return np.clip(below + color * light[..., None], 0, 1.15).astype(np.float32)
