"""What particles look like: tubes, facets and translucent sheets, lit from one side."""

import dataclasses
import math

import cv2
import numpy as np
from shapely.geometry import Polygon

from microplastics.data.synthetic.background import Scene
from microplastics.data.synthetic.fields import (
    fractal_noise,
    plane_noise,
    relief,
    smooth_noise,
)
from microplastics.data.synthetic.particles import FIBER, FRAGMENT, Particle

# Shapes are filled at this many samples a pixel along each axis, then averaged.
SAMPLES = 3
# Least colour difference (0 to 1) between a particle and what lies under it along its contour.
MIN_CONTRAST = 0.13
_MARGIN = 8

# Colours as labs name them, R G B of 0 to 255.
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


@dataclasses.dataclass
class Layer:
    """A painted particle over a window of the canvas.

    Attributes:
        window: (rows, columns) of the canvas.
        color: float32 (h, w, 3), BGR.
        alpha: float32 (h, w), how much of ``color`` covers what is below.
        coverage: float32 (h, w), the share of each pixel inside the outline.
    """

    window: tuple[slice, slice]
    color: np.ndarray
    alpha: np.ndarray
    coverage: np.ndarray


class Crop:
    """The window of a particle and ``margin`` px around it, drawn at SAMPLES a pixel."""

    def __init__(self, particle: Particle, size: int, margin: int = _MARGIN):
        left, top, right, bottom = particle.outline.bounds
        self.left, self.top = max(int(left) - margin, 0), max(int(top) - margin, 0)
        self.right = min(int(right) + margin + 1, size)
        self.bottom = min(int(bottom) + margin + 1, size)
        self.shape = (self.bottom - self.top, self.right - self.left)
        self.window = (slice(self.top, self.bottom), slice(self.left, self.right))
        self.origin = np.array([self.left, self.top])

    def canvas(self, *channels: int) -> np.ndarray:
        return np.zeros((self.shape[0] * SAMPLES, self.shape[1] * SAMPLES, *channels), np.uint8)

    def fixed(self, points: np.ndarray) -> np.ndarray:
        """Image px -> samples in OpenCV's 1/16 fixed point; its pixel centres are integers."""
        samples = (np.asarray(points) - self.origin) * SAMPLES - 0.5
        return np.round(samples * 16).astype(np.int32)

    def fill(self, canvas: np.ndarray, points: np.ndarray, value) -> None:
        cv2.fillPoly(canvas, [self.fixed(points)], value, shift=4)

    def holds(self, points: np.ndarray, margin: float) -> np.ndarray:
        """Which points lie in the window or within ``margin`` px of it, bool (N,)."""
        off = points - self.origin
        return ((off > -margin) & (off < np.array(self.shape[::-1]) + margin)).all(1)

    def reduce(self, canvas: np.ndarray) -> np.ndarray:
        small = cv2.resize(canvas, self.shape[::-1], interpolation=cv2.INTER_AREA)
        return small.astype(np.float32) / 255

    def coverage(self, outline: Polygon) -> np.ndarray:
        canvas = self.canvas()
        rings = [outline.exterior, *outline.interiors]
        cv2.fillPoly(canvas, [self.fixed(r.coords) for r in rings], 255, shift=4)
        return self.reduce(canvas)


def paint(
    rng: np.random.Generator,
    particle: Particle,
    scene: Scene,
    min_contrast: float = MIN_CONTRAST,
    tries: int = 5,
) -> bool:
    """Paint a particle onto the scene in a colour that stands out from what is below it.

    Args:
        rng: where the numbers come from.
        particle: what to paint; it may reach beyond the frame.
        scene: changed in place.
        min_contrast: least :func:`contour_contrast`.
        tries: colours that are tried.

    Returns:
        Whether it was painted: False, and the scene unchanged, where every colour tried comes
        out below ``min_contrast`` along the contour.
    """
    crop = Crop(particle, scene.canvas.shape[0])
    coverage = crop.coverage(particle.outline)
    below = scene.canvas[crop.window]
    for _ in range(tries):
        if particle.category_id == FIBER:
            color, alpha = _tube(rng, particle, scene, crop)
        elif particle.category_id == FRAGMENT:
            color, alpha = _facets(rng, particle, scene, crop)
        else:
            color, alpha = _sheet(rng, particle, scene, crop, coverage)
        layer = Layer(crop.window, color, alpha * coverage, coverage)
        painted, alpha = _composite(rng, layer, particle, scene)
        if contour_contrast(painted, below, coverage) >= min_contrast:
            scene.canvas[crop.window] = painted
            if scene.cover is not None:
                scene.cover[crop.window] += (1 - scene.cover[crop.window]) * alpha
            return True
    return False


def contour_contrast(painted: np.ndarray, below: np.ndarray, coverage: np.ndarray) -> float:
    """Colour difference that a particle makes just inside its contour.

    Args:
        painted: float32 (h, w, 3) with the particle.
        below: float32 (h, w, 3) without it.
        coverage: float32 (h, w), the share of each pixel inside the outline.

    Returns:
        The 30th percentile along the contour of the root mean square difference over the
        channels: most of the contour stands out at least that much.
    """
    inside = coverage >= 0.5
    deep = cv2.erode(inside.astype(np.uint8), np.ones((5, 5), np.uint8), borderValue=1) > 0
    rim = inside & ~deep
    if not rim.any():
        return 0.0
    difference = painted[rim] - below[rim]
    return float(np.percentile(np.sqrt((difference**2).mean(1)), 30))


def _composite(
    rng: np.random.Generator, layer: Layer, particle: Particle, scene: Scene
) -> tuple[np.ndarray, np.ndarray]:
    """Lay the painted particle and its shadow over the canvas.

    Returns:
        Its window as it would be, and how much of it the particle covers.
    """
    solid = {FIBER: 0.8, FRAGMENT: 1.0}.get(particle.category_id, 0.35)
    throw = -scene.light * rng.uniform(1.2, 2.6) * solid
    move = np.array([[1, 0, throw[0]], [0, 1, throw[1]]], np.float32)
    shadow = cv2.warpAffine(layer.coverage, move, layer.coverage.shape[::-1])
    shadow = cv2.GaussianBlur(shadow, (0, 0), rng.uniform(1.0, 2.0))
    strength = solid * rng.uniform(0.15, 0.4) * (0.4 if scene.dark else 1.0)
    # Particles lie at different depths: each has its own slight defocus.
    blur = rng.uniform(0.0, 0.75)
    color, alpha = layer.color * layer.alpha[..., None], layer.alpha
    if blur > 0.25:
        color, alpha = cv2.GaussianBlur(color, (0, 0), blur), cv2.GaussianBlur(alpha, (0, 0), blur)
    shaded = scene.canvas[layer.window] * (1 - strength * shadow * (1 - alpha))[..., None]
    return shaded * (1 - alpha[..., None]) + color, alpha


def _bgr(rng: np.random.Generator, rgb: tuple[int, int, int]) -> np.ndarray:
    color = np.array(rgb[::-1], np.float32) / 255
    # Weathering bleaches: part of the colour gives way to its own grey, a little lighter.
    faded = rng.beta(1.2, 3.0)
    color = color + faded * (color.mean() * 1.05 + 0.03 - color)
    color = color * rng.uniform(0.8, 1.2) + rng.normal(0, 0.02, 3)
    return np.clip(color, 0.03, 1).astype(np.float32)


def _pick(rng: np.random.Generator, particle: Particle, scene: Scene) -> tuple[str, np.ndarray]:
    names = (_ON_DARK if scene.dark else _ON_BRIGHT)[particle.category_id]
    name = str(rng.choice(names))
    return name, _bgr(rng, _COLORS[name])


def _tube(rng: np.random.Generator, fiber: Particle, scene: Scene, crop: Crop):
    """A fibre: darker rims, a highlight along the side that faces the light.

    The tube is drawn as short quadrilaterals, strip beside strip, so that where it crosses
    itself the later part lies on top.
    """
    name, color = _pick(rng, fiber, scene)
    core, radius = fiber.core, fiber.radius
    tangent = np.gradient(core, axis=0)
    tangent /= np.hypot(*tangent.T)[:, None]
    # Drawn a little beyond the tube on all sides; the coverage cuts it to shape.
    beyond = radius + 1
    first, last = core[0] - beyond * tangent[0], core[-1] + beyond * tangent[-1]
    line = np.concatenate([[first], core, [last]])
    tangent = np.concatenate([tangent[:1], tangent, tangent[-1:]])
    normal = np.stack([-tangent[:, 1], tangent[:, 0]], 1)
    edges = np.linspace(-1, 1, 10)
    across = (edges[1:] + edges[:-1]) / 2
    edges[[0, -1]] *= beyond / radius
    canvas = crop.canvas(2)
    # The colour drifts along a fibre: dye, twist and depth are not even.
    drift = 1 + rng.uniform(0.02, 0.13) * _wander(rng, len(line))
    near = crop.holds(line, beyond + 2)
    for start in range(0, len(line) - 1, 3):
        part = slice(start, start + 4)
        if not near[part].any():
            continue
        towards = float(normal[part].mean(0) @ scene.light)
        values = _tube_profile(across, towards, name == "transparent", scene.dark)
        values = [(min(int(t * drift[start]), 255), a) for t, a in values]
        lines = line[part, None] + radius * edges[:, None] * normal[part, None]
        for strip, value in enumerate(values):
            crop.fill(canvas, np.concatenate([lines[:, strip], lines[::-1, strip + 1]]), value)
    tone, alpha = np.moveaxis(crop.reduce(canvas), 2, 0)
    depth, cell = rng.uniform(0.02, 0.07), rng.uniform(1.5, 5)
    if scene.origin is None:
        grain = 1 + depth * smooth_noise(rng, crop.shape, cell)
    else:
        left, top = crop.left + scene.origin[0], crop.top + scene.origin[1]
        grain = 1 + depth * plane_noise(int(rng.integers(2**63)), left, top, crop.shape, cell)
    return _glossy(color, 2 * tone * grain, 0.45), alpha


def _wander(rng: np.random.Generator, count: int) -> np.ndarray:
    """A smooth random walk about 0, float64 (count,)."""
    knots = rng.standard_normal(max(count // 8, 2) + 2)
    return np.interp(np.linspace(0, len(knots) - 1, count), np.arange(len(knots)), knots)


def _warped(rng: np.random.Generator, field: np.ndarray, reach: float, cell: float) -> np.ndarray:
    """Bend a field's straight lines by random shifts of about ``reach`` px."""
    rows, columns = np.mgrid[: field.shape[0], : field.shape[1]].astype(np.float32)
    x = columns + reach * smooth_noise(rng, field.shape, cell)
    y = rows + reach * smooth_noise(rng, field.shape, cell)
    return cv2.remap(field, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _tube_profile(
    across: np.ndarray, towards: float, clear: bool, dark: bool
) -> list[tuple[int, int]]:
    """Brightness (128 is the plain colour) and opacity over a tube's width, both 0 to 255."""
    up = np.sqrt(1 - across**2)
    highlight = np.exp(-(((across - 0.4 * towards) / 0.3) ** 2))
    if clear:
        # Glassy: the rims refract the light away, or towards us in dark field.
        tone = (1.15 if dark else 0.40) + (0.0 if dark else 0.5) * up**2 + 0.5 * highlight
        alpha = 0.9 - 0.45 * up**2 + 0.25 * highlight
    else:
        tone = 0.55 + 0.35 * up + 0.22 * across * towards + 0.4 * highlight
        alpha = np.full_like(up, 0.97)
    values = np.clip(np.stack([tone / 2, alpha], 1), 0, 1) * 255
    return [(int(t), int(a)) for t, a in values]


def _glossy(color: np.ndarray, tone: np.ndarray, gloss: float) -> np.ndarray:
    """Plain colour times brightness; what exceeds 1.1 is white light off the surface."""
    shine = gloss * np.clip(tone - 1.1, 0, 1)
    return np.clip(color * np.minimum(tone, 1.1)[..., None] + shine[..., None], 0, 1.05)


def _facets(rng: np.random.Generator, fragment: Particle, scene: Scene, crop: Crop):
    """A chip: flat faces between its corners and a ridge or plateau, each with its own light."""
    _, color = _pick(rng, fragment, scene)
    outline = fragment.core
    span = float(np.ptp(outline, axis=0).max())
    corners = np.asarray(fragment.outline.simplify(0.08 * span).exterior.coords)[:-1]
    middle = outline.mean(0) + rng.normal(0, 0.07 * span, 2)
    # A ridge, a plateau, or a flat plate with bevelled edges.
    inner = middle + float(rng.choice([0.0, 0.35, 0.6, 0.85])) * (corners - middle)
    inner = inner + rng.normal(0, 0.025 * span, inner.shape)
    canvas = crop.canvas()
    # Faces reach beyond the outline; the coverage cuts them to shape.
    outer = middle + 1.7 * (corners - middle)
    crop.fill(canvas, outer, 128)
    steep = rng.uniform(0.1, 0.38)
    for i, j in enumerate(np.roll(np.arange(len(corners)), -1)):
        along = corners[j] - corners[i]
        outward = np.array([along[1], -along[0]]) / max(np.hypot(*along), 1e-6)
        if outward @ (corners[i] - middle) < 0:
            outward = -outward
        tone = 0.88 + steep * float(outward @ scene.light) + rng.normal(0, 0.05)
        tone += 0.45 * (rng.random() < 0.05)
        face = np.stack([outer[i], outer[j], inner[j], inner[i]])
        crop.fill(canvas, face, int(np.clip(tone / 2, 0.1, 1) * 255))
    crop.fill(canvas, inner, int(np.clip(0.5 + rng.normal(0, 0.04), 0, 1) * 255))
    tone = _warped(rng, 2 * crop.reduce(canvas), 0.07 * span, max(span / 5, 3))
    # Broken plastic is dull and scarred: grain, and shell-like fracture marks.
    fracture = relief(smooth_noise(rng, crop.shape, max(span / 7, 2.5)), scene.light)
    tone *= 1 + rng.uniform(0.04, 0.11) * fractal_noise(rng, crop.shape, (1.6, 4, 9), 0.8)
    tone += rng.uniform(0.1, 0.6) * fracture
    coverage = crop.coverage(fragment.outline)
    edge = cv2.GaussianBlur(coverage, (0, 0), 1.1)
    # A worn edge catches the light on one side and turns away from it on the other.
    tone += rng.uniform(0.3, 1.0) * relief(edge, scene.light) - 0.18 * (1 - edge)
    return _glossy(color, tone, 0.55), np.full(crop.shape, 0.985, np.float32)


def _sheet(
    rng: np.random.Generator, film: Particle, scene: Scene, crop: Crop, coverage: np.ndarray
):
    """A film: tinted, seen through, with a darker edge, wrinkles and parts folded over."""
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
        across = (
            (columns - center[0]) * math.cos(angle) + (rows - center[1]) * math.sin(angle) - place
        )
        across += 0.03 * span * smooth_noise(rng, crop.shape, span / 3)
        breadth = rng.uniform(0.06, 0.22) * span
        # Two layers lie between the fold and the flap's end: the fold shines, the end is a line.
        alpha += rng.uniform(0.1, 0.22) * _between(across, 0, breadth)
        alpha += 0.3 * np.exp(-((across / 1.1) ** 2)) + 0.2 * np.exp(
            -(((across - breadth) / 0.9) ** 2)
        )
        tone += float(rng.choice([-0.25, 0.4])) * np.exp(-((across / 1.2) ** 2))
        tone += sign * 0.3 * np.exp(-(((across - breadth) / 0.9) ** 2))
    ripple = fractal_noise(rng, crop.shape, (span / 2, span / 5), 0.6)
    wrinkles = relief(_crumple(rng, crop.shape, span), scene.light)
    tone += wrinkles + 0.05 * ripple
    alpha += 0.6 * np.abs(wrinkles)
    sheen = np.clip(ripple - 1.0, 0, 1) * rng.uniform(0, 0.5)
    return _glossy(color, tone + sheen, 0.7), np.clip(alpha + 0.3 * sheen, 0, 0.93)


def _crumple(rng: np.random.Generator, shape: tuple[int, int], span: float) -> np.ndarray:
    """Height of a crumpled sheet: sharp creases where slow waves, drawn out one way, fold."""
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


def _between(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.clip(np.minimum(values - low, high - values) + 0.5, 0, 1)
