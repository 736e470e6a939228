"""Filters as a microscope shows them: their texture, weave, pores, printed lines and stains."""

import dataclasses
import math
from collections.abc import Mapping

import cv2
import numpy as np

from microplastics.data.synthetic.fields import fractal_noise, generator, relief, smooth_noise

# Filters on which particles shine.
DARK_FILTERS = ("dark_polycarbonate", "black_membrane", "glowing_membrane")


@dataclasses.dataclass
class Scene:
    """A picture while it is being drawn.

    Attributes:
        canvas: float32 (size, size, 3), BGR, 0 black to 1 white, changed in place.
        light: unit vector (x, y) in the image that points to the lamp.
        filter: name of the filter, or ``"photograph"``.
        dark: whether particles shine on a dark ground.
        cover: float32 (size, size), how much of each pixel of a photographed filter particles
            cover; None on a rendered one.
        origin: (x, y) of the canvas in a larger picture that is drawn in pieces, which then agree
            where they meet; None where the canvas is the picture.
    """

    canvas: np.ndarray
    light: np.ndarray
    filter: str
    dark: bool
    cover: np.ndarray | None = None
    origin: tuple[int, int] | None = None


def render_filter(key: tuple[int | str, ...], size: int, shares: Mapping[str, float]) -> Scene:
    """Draw an empty filter.

    Args:
        key: key of the picture's random stream.
        size: side of the picture in px.
        shares: how often each filter is drawn; they add up to 1.

    Returns:
        The scene, lit evenly; light, optics and camera come later.
    """
    rng = generator(*key, "filter")
    kind, light, gray, color = bare_filter(rng, size, shares)
    canvas = gray[..., None] * color
    scene = Scene(np.clip(canvas, 0, 1.1).astype(np.float32), light, kind, kind in DARK_FILTERS)
    if kind in ("glass_fiber", "cellulose") and rng.random() < 0.45:
        _stain(rng, scene.canvas)
    if kind in ("cellulose", "polycarbonate") and rng.random() < 0.25:
        _printed_grid(rng, scene.canvas)
    return scene


def bare_filter(
    rng: np.random.Generator, size: int, shares: Mapping[str, float]
) -> tuple[str, np.ndarray, np.ndarray, np.ndarray]:
    """Draw the texture of a filter, without stains and print.

    Args:
        rng: where the numbers come from.
        size: side of the picture in px.
        shares: how often each filter is drawn; they add up to 1.

    Returns:
        Name of the filter, direction of the light (see :class:`Scene`), float (size, size)
        brightness, and float32 (3,) colour, BGR, that it is multiplied by.
    """
    kind = str(rng.choice(list(shares), p=list(shares.values())))
    angle = rng.uniform(0, 2 * np.pi)
    light = np.array([math.cos(angle), math.sin(angle)])
    gray, color = _DRAW[kind](rng, size, light)
    return kind, light, gray, np.asarray(color, np.float32)


def _glass_fiber(rng: np.random.Generator, size: int, light: np.ndarray):
    """A mat of fine glass fibres: layers of thin threads, the deeper ones blurred."""
    height = np.zeros((size, size), np.float32)
    for blur, weight in ((2.2, 1.0), (1.1, 0.8), (0.0, 0.5)):
        count = int(size * size / 420)
        start = rng.uniform(-20, size + 20, (count, 1, 2))
        heading = rng.uniform(0, 2 * np.pi, (count, 1))
        bend = rng.normal(0, 0.25, (count, 1)) * np.arange(4)
        reach = rng.uniform(6, 30, (count, 1, 1)) * np.arange(4)[None, :, None] / 1.5
        angle = heading + bend
        points = start + reach * np.stack([np.cos(angle), np.sin(angle)], 2)
        layer = np.zeros((size, size), np.uint8)
        lines = list(np.round(points * 16).astype(np.int32))
        for shade in (90, 150, 210):
            part = lines[shade // 60 - 1 :: 3]
            cv2.polylines(layer, part, False, shade, 1, cv2.LINE_AA, shift=4)
        threads = layer.astype(np.float32) / 255
        height += weight * (cv2.GaussianBlur(threads, (0, 0), blur) if blur else threads)
    tufts = fractal_noise(rng, height.shape, (40, 14, 6), 0.7)
    depth = rng.uniform(0.05, 0.09)
    gray = rng.uniform(0.72, 0.84) + depth * (height - height.mean()) + 0.014 * tufts
    gray += rng.uniform(0.12, 0.3) * relief(cv2.GaussianBlur(height, (0, 0), 0.7), light)
    return gray, rng.normal((0.97, 0.99, 1.0), 0.012)


def _cellulose(rng: np.random.Generator, size: int, light: np.ndarray):
    """A felt of mixed cellulose esters: fine sponge with pores."""
    shape = (size, size)
    sponge = fractal_noise(rng, shape, (2.2, 4.5, 9), 0.7)
    clouds = fractal_noise(rng, shape, (70, 25), 0.5)
    pores = np.clip(fractal_noise(rng, shape, (2.8, 5), 0.6) - 1.3, 0, 1.5)
    gray = rng.uniform(0.70, 0.88) + 0.015 * clouds - rng.uniform(0.04, 0.09) * pores
    gray += rng.uniform(0.03, 0.055) * relief(sponge, light) + 0.009 * sponge
    return gray, rng.normal((0.93, 0.98, 1.0), 0.02)


def _polycarbonate(rng: np.random.Generator, size: int, light: np.ndarray):
    """A smooth track-etched membrane: round pores of one size, a few of them doublets."""
    gray = _track_etched(rng, size, light, rng.uniform(0.03, 0.09))
    gray += rng.uniform(0.55, 0.78)
    return gray, rng.choice([(0.93, 0.99, 1.0), (1.0, 1.0, 0.95), (0.8, 0.93, 1.0)])


def _dark_polycarbonate(rng: np.random.Generator, size: int, light: np.ndarray):
    """The same membrane black or in dark field: particles shine on it, its pores glimmer."""
    gray = rng.uniform(0.07, 0.15) - _track_etched(rng, size, light, rng.uniform(0.03, 0.07))
    return gray, rng.choice([(0.85, 0.95, 1.0), (1.0, 0.97, 0.93), (0.75, 0.9, 1.0)])


def _track_etched(rng: np.random.Generator, size: int, light: np.ndarray, depth: float):
    """Grey values of pores (below 0) and faint unevenness, about 0."""
    count = int(size * size / rng.uniform(90, 420))
    pores = np.zeros((size, size), np.float32)
    where = rng.integers(0, size, (2, count))
    np.add.at(pores, tuple(where), rng.uniform(0.6, 1.0, count).astype(np.float32))
    sigma = rng.uniform(0.8, 1.3)
    pores = np.minimum(cv2.GaussianBlur(pores, (0, 0), sigma) * (6.28 * sigma**2), 1.6)
    uneven = fractal_noise(rng, pores.shape, (90, 30, 3), 0.5)
    return 0.012 * uneven - depth * pores - 1.2 * depth * relief(-pores, light)


def _nylon_mesh(rng: np.random.Generator, size: int, light: np.ndarray):
    """A plain weave of threads over and under each other, holes between them."""
    pitch, angle = rng.uniform(7, 12), rng.uniform(0, np.pi / 2)
    rows, columns = np.mgrid[:size, :size].astype(np.float32)
    warp = smooth_noise(rng, (size, size), 60) * 1.2
    across = (columns * math.cos(angle) + rows * math.sin(angle) + warp) / pitch
    along = (rows * math.cos(angle) - columns * math.sin(angle) + warp) / pitch
    # A thread is a half cylinder over its pitch; which one lies on top alternates.
    over = np.cos(np.pi * across) * np.cos(np.pi * along)
    one = np.abs(np.sin(np.pi * across)) + 0.35 * over
    other = np.abs(np.sin(np.pi * along)) - 0.35 * over
    height = np.maximum(one, other)
    holes = np.clip(0.55 - height, 0, 1)
    grain = fractal_noise(rng, height.shape, (3, 40), 0.8)
    gray = rng.uniform(0.66, 0.8) + 0.05 * (height - 0.8) - rng.uniform(0.15, 0.35) * holes
    gray += 0.10 * relief(height, light) + 0.012 * grain
    return gray, rng.normal((0.95, 0.98, 1.0), 0.02)


def _gold_membrane(rng: np.random.Generator, size: int, light: np.ndarray):
    """A gold-coated membrane under a strong objective: brown to orange, grained, clouded."""
    grain = fractal_noise(rng, (size, size), (2.0, 3.5, 7), 0.7)
    clouds = fractal_noise(rng, (size, size), (size / 3, size / 8), 0.6)
    gray = rng.uniform(0.42, 0.75) + rng.uniform(0.004, 0.03) * grain
    gray += rng.uniform(0.005, 0.03) * clouds
    if rng.random() < 0.25:
        gray -= _holes(rng, size) * rng.uniform(0.1, 0.4)
    return gray, np.array([0.35, 0.66, 1.0]) + rng.normal(0, (0.06, 0.04, 0.01))


def _clear_membrane(rng: np.random.Generator, size: int, light: np.ndarray):
    """A bare membrane out of the grain's focus: an even blue-grey haze."""
    haze = fractal_noise(rng, (size, size), (size / 3, size / 9, 6), 0.4)
    gray = rng.uniform(0.55, 0.74) + rng.uniform(0.004, 0.012) * haze
    if rng.random() < 0.3:
        gray += 0.2 * _holes(rng, size)
    return gray, rng.normal((0.97, 1.0, 0.93), 0.02)


def _black_membrane(rng: np.random.Generator, size: int, light: np.ndarray):
    """A dark field: black, with a faint brown glimmer of the membrane's pores."""
    glimmer = np.clip(fractal_noise(rng, (size, size), (2.5, 5), 0.7) - 0.6, 0, 2)
    clouds = np.clip(1 + 0.7 * fractal_noise(rng, (size, size), (size / 3,)), 0, 3)
    gray = rng.uniform(0.01, 0.06) * clouds + rng.uniform(0.0, 0.12) * glimmer
    return gray, np.array([0.35, 0.6, 1.0]) + rng.normal(0, 0.08, 3)


def _glowing_membrane(rng: np.random.Generator, size: int, light: np.ndarray):
    """A dark field that the membrane itself scatters full of light: olive, soft, clouded."""
    clouds = fractal_noise(rng, (size, size), (size / 2, size / 5, size / 14), 0.6)
    grain = fractal_noise(rng, (size, size), (3.0, 6), 0.7)
    gray = rng.uniform(0.33, 0.66) + rng.uniform(0.01, 0.04) * clouds + 0.006 * grain
    return gray, rng.choice([(0.55, 0.9, 1.0), (0.42, 0.8, 1.0), (0.75, 0.98, 1.0)])


def _holes(rng: np.random.Generator, size: int) -> np.ndarray:
    """Coarse pores, 0 to 1: soft dark discs of one size."""
    pores = np.zeros((size, size), np.float32)
    where = rng.integers(0, size, (2, int(size * size / rng.uniform(150, 700))))
    pores[tuple(where)] = 1
    sigma = rng.uniform(1.0, 2.4)
    return np.minimum(cv2.GaussianBlur(pores, (0, 0), sigma) * (6.28 * sigma**2), 1)


_DRAW = {
    "glass_fiber": _glass_fiber,
    "cellulose": _cellulose,
    "polycarbonate": _polycarbonate,
    "nylon_mesh": _nylon_mesh,
    "dark_polycarbonate": _dark_polycarbonate,
    "gold_membrane": _gold_membrane,
    "clear_membrane": _clear_membrane,
    "black_membrane": _black_membrane,
    "glowing_membrane": _glowing_membrane,
}


def _stain(rng: np.random.Generator, canvas: np.ndarray) -> None:
    """Let silt discolour parts of the filter: soft brown clouds with a grainy edge."""
    shape = canvas.shape[:2]
    cloud = fractal_noise(rng, shape, (max(shape) / 3, max(shape) / 8, 6, 2.5), 0.45)
    amount = np.clip((cloud - 0.5) * 0.5, 0, 1) * rng.uniform(0.25, 0.7)
    tint = np.array([0.55, 0.72, 0.84], np.float32) * rng.uniform(0.9, 1.05)
    canvas *= 1 - amount[..., None] * (1 - tint)


def _printed_grid(rng: np.random.Generator, canvas: np.ndarray) -> None:
    """Print the grid that counting filters carry: straight lines of ink soaked into the felt."""
    size = canvas.shape[0]
    pitch = max(rng.uniform(0.55, 1.3) * size, 180)
    angle, width = rng.uniform(-0.2, 0.2), rng.uniform(5, 11)
    rows, columns = np.mgrid[:size, :size].astype(np.float32)
    lines = np.zeros((size, size), np.float32)
    for x, y in ((columns, rows), (rows, -columns)):
        place = x * math.cos(angle) + y * math.sin(angle) + rng.uniform(0, pitch)
        off = np.abs(np.mod(place, pitch) - pitch / 2)
        lines = np.maximum(lines, np.clip((width / 2 - off) / 2.5 + 0.5, 0, 1))
    lines *= np.clip(0.75 + 0.25 * fractal_noise(rng, (size, size), (3, 8)), 0, 1)
    inks = np.array([(0.55, 0.75, 0.45), (0.6, 0.6, 0.6), (0.85, 0.6, 0.45)], np.float32)
    ink = inks[rng.integers(len(inks))]
    canvas *= 1 - (rng.uniform(0.5, 0.8) * lines)[..., None] * (1 - ink)
