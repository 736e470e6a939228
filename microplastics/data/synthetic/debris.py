"""What lies on real filters beside plastic and is not annotated: grains, threads, flakes, specks.

It is kept apart from plastic by what a microscopist goes by: natural matter is smaller, duller,
brownish, uneven in width or soft in outline.
"""

import math

import cv2
import numpy as np

from microplastics.data.synthetic.background import Scene
from microplastics.data.synthetic.fields import fractal_noise, relief, smooth_noise


def scatter_debris(rng: np.random.Generator, scene: Scene, amount: float = 1.0) -> None:
    """Scatter natural matter over a scene: little on a clean filter, much on a dirty one.

    Args:
        rng: where the numbers come from.
        scene: changed in place.
        amount: factor on all of it.
    """
    scatter_dirt(rng, scene, amount * draw_dirt(rng))


def draw_dirt(rng: np.random.Generator) -> float:
    """Draw how dirty a filter is: log-normal, mostly below 1."""
    return rng.lognormal(-0.35, 0.8)


def scatter_dirt(rng: np.random.Generator, scene: Scene, dirt: float) -> None:
    """Scatter natural matter as densely as told.

    Args:
        rng: where the numbers come from.
        scene: changed in place.
        dirt: see :func:`draw_dirt`.
    """
    size = scene.canvas.shape[0]
    dirt = dirt * (size / 256) ** 2
    _specks(rng, scene, int(min(14 * dirt, 4000)))
    for draw, mean in ((_grain, 2.5), (_flake, 1.0), (_thread, 0.9), (_pollen, 0.35)):
        for _ in range(min(int(rng.poisson(mean * dirt)), 400)):
            draw(rng, scene)


def enclose_bubbles(rng: np.random.Generator, scene: Scene, mean: float) -> None:
    """Enclose air bubbles: round, colourless, a broad dark rim about a bright middle.

    In dark field the rim is what shines, as a thin ring.

    Args:
        rng: where the numbers come from.
        scene: changed in place.
        mean: mean number on 256 x 256 px.
    """
    size = scene.canvas.shape[0]
    for _ in range(min(int(rng.poisson(mean * (size / 256) ** 2)), 400)):
        radius = rng.uniform(5, 15)
        window, x, y = _window(rng, scene, 3 * radius)
        r = np.hypot(x, y) / radius
        rim = rng.uniform(0.72, 0.86)
        shade = np.exp(-(((r - rim) / (0.55 * (1 - rim))) ** 2)) * np.clip((1 - r) * radius, 0, 1)
        # The lamp is mirrored on the side that faces it.
        spot = np.hypot(x / radius - 0.4 * scene.light[0], y / radius - 0.4 * scene.light[1])
        shine = np.exp(-((spot / 0.16) ** 2)) + (0.35 * np.exp(-((r / 0.4) ** 2)))
        if scene.dark:
            window += (0.45 * shade + 0.4 * shine)[..., None].astype(np.float32)
        else:
            window *= (1 - rng.uniform(0.5, 0.8) * shade + 0.25 * shine)[..., None]


def shed_fibers(rng: np.random.Generator, scene: Scene, amount: float = 1.0) -> None:
    """Shed a fibrous filter's own fibres: colourless, 1 to 2 px thin, seen by their relief alone.

    Args:
        rng: where the numbers come from.
        scene: changed in place; a filter without fibres stays as it is.
        amount: factor on their number.
    """
    if scene.filter not in ("glass_fiber", "cellulose"):
        return
    size = scene.canvas.shape[0]
    for _ in range(min(int(rng.poisson(0.5 * amount * (size / 256) ** 2)), 400)):
        count, reach = 12, rng.uniform(40, 170)
        heading = rng.uniform(0, 6.28) + np.cumsum(rng.normal(0, 0.06, count))
        steps = reach / count * np.stack([np.cos(heading), np.sin(heading)], 1)
        points = rng.uniform(0, size, 2) + np.cumsum(steps, 0)
        low = np.maximum(np.floor(points.min(0)).astype(int) - 4, 0)
        high = np.minimum(np.ceil(points.max(0)).astype(int) + 5, size)
        if (high <= low).any():
            continue
        line = np.zeros((high - low)[::-1], np.uint8)
        fixed = np.round((points - low - 0.5) * 16).astype(np.int32)
        cv2.polylines(line, [fixed], False, 255, 1, cv2.LINE_AA, shift=4)
        soft = cv2.GaussianBlur(line.astype(np.float32) / 255, (0, 0), rng.uniform(0.6, 0.9))
        shade = rng.uniform(0.5, 1.2) * relief(soft, scene.light) - rng.uniform(0.0, 0.14) * soft
        scene.canvas[low[1] : high[1], low[0] : high[0]] += shade[..., None]


def _specks(rng: np.random.Generator, scene: Scene, count: int) -> None:
    """Dots of 1 to 3 px: soot, silt, dust."""
    size = scene.canvas.shape[0]
    for sigma in (0.55, 0.9):
        dots = np.zeros((size, size), np.float32)
        where = rng.integers(0, size, (2, max(count // 2, 0)))
        dots[tuple(where)] = rng.uniform(0.15, 1.0, where.shape[1])
        dots = cv2.GaussianBlur(dots, (0, 0), sigma) * (5.5 * sigma**2)
        if scene.dark:
            scene.canvas += 0.25 * np.minimum(dots, 1)[..., None]
        else:
            tint = np.array([0.35, 0.42, 0.5], np.float32)
            scene.canvas *= 1 - 0.75 * np.minimum(dots, 1)[..., None] * (1 - tint)


def _window(rng: np.random.Generator, scene: Scene, span: float):
    """A square of the canvas somewhere, with coordinates about its middle; None off the frame."""
    size, half = scene.canvas.shape[0], int(span / 2) + 4
    x, y = rng.uniform(0, size), rng.uniform(0, size)
    left, top = max(int(x) - half, 0), max(int(y) - half, 0)
    window = scene.canvas[top : int(y) + half + 1, left : int(x) + half + 1]
    rows, columns = np.mgrid[: window.shape[0], : window.shape[1]].astype(np.float32)
    return window, columns + np.float32(left + 0.5 - x), rows + np.float32(top + 0.5 - y)


def _blend(window: np.ndarray, alpha: np.ndarray, color: np.ndarray) -> None:
    window += alpha[..., None] * (color - window)


def _blob(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, radius: float, rough: float):
    """How far inside an irregular round outline each pixel lies, in px; below 0 outside."""
    angle, turn = np.arctan2(y, x), rng.uniform(0, np.pi)
    stretch = rng.uniform(1.0, 1.7)
    u = (x * math.cos(turn) + y * math.sin(turn)) / stretch
    v = y * math.cos(turn) - x * math.sin(turn)
    wobble = sum(
        rng.normal(0, rough / wave) * np.cos(wave * angle + rng.uniform(0, 6.28))
        for wave in range(2, 6)
    )
    return radius * (1 + wobble) - np.hypot(u, v)


def _grain(rng: np.random.Generator, scene: Scene) -> None:
    """A mineral grain: small, rounded, glassy, with a dark rim and a spark of light."""
    radius = rng.uniform(1.8, 4.2)
    window, x, y = _window(rng, scene, 5 * radius)
    inside = _blob(rng, x, y, radius, 0.12)
    alpha = np.clip(inside + 0.5, 0, 1)
    tone = (
        rng.uniform(0.8, 1.05)
        + 0.25 * (x * float(scene.light[0]) + y * float(scene.light[1])) / radius
    )
    tone -= 0.35 * np.exp(-((inside / 1.1) ** 2))
    color = rng.choice([(0.62, 0.74, 0.82), (0.72, 0.78, 0.8), (0.5, 0.62, 0.74)])
    color = color * (0.45 if scene.dark else 1.0)
    _blend(window, 0.62 * alpha, np.clip(color * tone[..., None], 0, 1))


def _flake(rng: np.random.Generator, scene: Scene) -> None:
    """A flake of organic matter: soft, mottled, brown, see-through at its edge."""
    radius = rng.uniform(4, 11)
    window, x, y = _window(rng, scene, 5 * radius)
    inside = _blob(rng, x, y, radius, 0.25)
    inside += 0.3 * radius * fractal_noise(rng, x.shape, (radius / 2, 2.5), 0.6)
    alpha = np.clip(inside / (0.7 * radius), 0, 1) * rng.uniform(0.25, 0.5)
    color = rng.choice([(0.30, 0.42, 0.54), (0.26, 0.36, 0.42), (0.36, 0.5, 0.55)])
    color = color * (0.5 if scene.dark else 1.15)
    mottle = 1 + 0.15 * smooth_noise(rng, x.shape, 2.5)
    _blend(window, alpha, color * mottle[..., None])


def _thread(rng: np.random.Generator, scene: Scene) -> None:
    """An organic thread: thinner than any fibre here, dull brown, uneven, fading out."""
    size, span = scene.canvas.shape[0], rng.uniform(18, 70)
    start = rng.uniform(0, size, 2)
    heading = rng.uniform(0, 6.28) + np.cumsum(rng.normal(0, 0.35, 16))
    steps = span / 16 * np.stack([np.cos(heading), np.sin(heading)], 1)
    points = np.concatenate([[start], start + np.cumsum(steps, 0)])
    low = np.maximum(np.floor(points.min(0)).astype(int) - 4, 0)
    high = np.minimum(np.ceil(points.max(0)).astype(int) + 5, size)
    if (high <= low).any():
        return
    line = np.zeros((high - low)[::-1], np.uint8)
    fixed = np.round((points - low - 0.5) * 16).astype(np.int32)
    cv2.polylines(line, [fixed], False, 255, 1, cv2.LINE_AA, shift=4)
    soft = cv2.GaussianBlur(line.astype(np.float32) / 255, (0, 0), rng.uniform(0.5, 0.8))
    soft *= np.clip(0.8 + 0.4 * smooth_noise(rng, soft.shape, 6), 0, 1.2)
    color = np.array([0.30, 0.40, 0.50]) * rng.uniform(0.7, 1.2)
    window = scene.canvas[low[1] : high[1], low[0] : high[0]]
    _blend(window, np.clip(rng.uniform(0.4, 0.75) * soft, 0, 1), color)


def _pollen(rng: np.random.Generator, scene: Scene) -> None:
    """A pollen grain or spore: a small even yellow-brown ball."""
    radius = rng.uniform(3.0, 5.0)
    window, x, y = _window(rng, scene, 3 * radius)
    r = np.hypot(x, y) / radius
    alpha = np.clip((1 - r) * radius + 0.5, 0, 1)
    ball = np.sqrt(np.clip(1 - r**2, 0, 1))
    tone = (
        0.55 + 0.35 * ball + 0.2 * (x * float(scene.light[0]) + y * float(scene.light[1])) / radius
    )
    tone = tone + 0.4 * relief(smooth_noise(rng, x.shape, 1.5), scene.light)
    color = np.array([0.36, 0.62, 0.78]) * rng.uniform(0.8, 1.05) * (0.6 if scene.dark else 1.0)
    _blend(window, 0.8 * alpha, np.clip(color * tone[..., None], 0, 1))
