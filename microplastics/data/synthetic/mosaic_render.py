"""A window of a whole filter as a stitched photograph shows it."""

import dataclasses
import functools
import math
from collections.abc import Sequence

import cv2
import numpy as np

from microplastics.data.synthetic.background import Scene
from microplastics.data.synthetic.fields import generator, plane_noise
from microplastics.data.synthetic.mosaic_plan import (
    BLOCK,
    BLOCK_MARGIN,
    Laid,
    MosaicSettings,
    ground_of,
    trial_window,
)
from microplastics.data.synthetic.optics import Camera, draw_camera, draw_cast, draw_demosaic
from microplastics.data.synthetic.particles import FIBER
from microplastics.data.synthetic.presets import find_preset
from microplastics.data.synthetic.shading import paint

# Side of the squares whose noise has a random stream of its own, in px.
TILE = 512
# What the lens takes from beyond a window, and what demosaicing does, in px.
_PAD, _NOISE_PAD = 16, 3
# What a particle may throw beyond its outline: shadow and defocus, in px.
_REACH = 10


def render_window(
    settings: MosaicSettings, left: int, top: int, side: int, laid: Sequence[Laid]
) -> np.ndarray:
    """Draw a window of a whole filter; windows that meet or overlap agree.

    Args:
        settings: what is rendered.
        left, top: of the window, in px, multiples of 512, 0 or more.
        side: of the window in px, a multiple of 512.
        laid: the particles, lowest first; those elsewhere change nothing.

    Returns:
        uint8 (h, w, 3), BGR, cut at the frame.
    """
    x, y, padded = left - _PAD, top - _PAD, side + 2 * _PAD
    scene = ground_of(settings).window(x, y, padded)
    for one in laid:
        _paint_over(scene, one)
    camera, light = _camera(settings), _light(settings)
    image = camera.focus(scene.canvas * light.window(x, y, padded))
    width, height = (min(side, settings.size - start) for start in (left, top))
    result = np.empty((side, side, 3), np.uint8)
    for row in range(0, height, TILE):
        for column in range(0, width, TILE):
            low, high = _PAD - _NOISE_PAD, _PAD + TILE + _NOISE_PAD
            tile = image[row + low : row + high, column + low : column + high].copy()
            noise = _noise(settings.seed, left + column, top + row)
            inner = slice(_NOISE_PAD, -_NOISE_PAD)
            result[row : row + TILE, column : column + TILE] = camera.sense(tile, noise)[
                inner, inner
            ]
    return result[:height, :width]


def _noise(seed: int, left: int, top: int) -> np.ndarray:
    """Standard normal numbers for a tile and the pad around it, float32 (h, w, 3).

    What neighbours share, strips over their borders and squares over their corners, has random
    streams of its own: demosaicing is not to show where tiles meet.
    """
    border, side = 2 * _NOISE_PAD, TILE + 2 * _NOISE_PAD
    noise = np.empty((side, side, 3), np.float32)
    parts = [(0, border), (border, TILE), (TILE, side)]
    for y, (first_row, last_row) in enumerate(parts):
        for x, (first, last) in enumerate(parts):
            # Even numbers are borders, odd ones what lies between them.
            key = [2 * (start // TILE) + place for start, place in ((left, x), (top, y))]
            shape = (last_row - first_row, last - first, 3)
            rng = generator(seed, "noise", *key)
            noise[first_row:last_row, first:last] = rng.standard_normal(shape, dtype=np.float32)
    return noise


def meets(one: Laid, left: int, top: int, side: int) -> bool:
    """Whether a particle may show in a window of :func:`render_window`."""
    x0, y0, x1, y1 = one.particle.outline.bounds
    margin = _PAD + _REACH
    across = x0 < left + side + margin and x1 > left - margin
    return across and y0 < top + side + margin and y1 > top - margin


def _paint_over(scene: Scene, one: Laid) -> None:
    """Paint what a scene shows of a particle, as every scene that shows it does."""
    particle = one.particle
    if particle.category_id != FIBER:
        _paint_piece(scene, one, trial_window(particle), 0)
        return
    # A long fibre would fill the memory in one piece.
    side = scene.canvas.shape[0]
    near = particle.core - scene.origin
    reach = particle.radius + _REACH
    near = particle.core[((near > -reach) & (near < side + reach)).all(1)]
    corners = [near + reach * np.array(sign) for sign in ((-1, -1), (-1, 1), (1, -1), (1, 1))]
    blocks = np.unique(np.floor(np.concatenate(corners) / BLOCK).astype(int), axis=0)
    for x, y in blocks * BLOCK:
        window = (int(x) - BLOCK_MARGIN, int(y) - BLOCK_MARGIN, BLOCK + 2 * BLOCK_MARGIN)
        _paint_piece(scene, one, window, BLOCK_MARGIN)


def _paint_piece(scene: Scene, one: Laid, window: tuple[int, int, int], margin: int) -> None:
    """Paint a window of a particle on a canvas of its own, and put all but a margin back."""
    left, top, side = window
    x, y = left - scene.origin[0], top - scene.origin[1]
    total = scene.canvas.shape[0]
    inner = [slice(max(start + margin, 0), min(start + side - margin, total)) for start in (y, x)]
    if any(part.stop <= part.start for part in inner):
        return
    piece = tuple(
        slice(part.start - start, part.stop - start)
        for part, start in zip(inner, (y, x), strict=True)
    )
    canvas = np.zeros((side, side, 3), np.float32)
    canvas[piece] = scene.canvas[tuple(inner)]
    alone = dataclasses.replace(scene, canvas=canvas, origin=(left, top))
    paint(generator(*one.look), one.particle.moved(-left, -top), alone, 0.0, tries=1)
    scene.canvas[tuple(inner)] = alone.canvas[piece]


@functools.lru_cache(maxsize=1)
def _camera(settings: MosaicSettings) -> Camera:
    rng = generator(settings.seed, "camera")
    camera = draw_camera(rng, find_preset(settings.preset).blur)
    return dataclasses.replace(camera, demosaic=draw_demosaic(rng))


@functools.lru_cache(maxsize=1)
def _light(settings: MosaicSettings) -> "_Light":
    return _Light(settings.seed, settings.size)


class _Light:
    """Light over a stitched photograph: uneven as a whole, and field by field.

    The stitching has levelled the fields, but not quite: each has its own gain, all share what is
    left of the lens's vignetting, and the dust on the camera comes again in every field.
    """

    def __init__(self, seed: int, size: int):
        rng = generator(seed, "light")
        self._size = size
        angle, slope = rng.uniform(0, 2 * np.pi), rng.uniform(0.02, 0.10)
        self._slope = slope * math.cos(angle), slope * math.sin(angle)
        self._fall, self._clouds = rng.uniform(0.02, 0.10), rng.uniform(0.005, 0.02)
        self._gain = (rng.uniform(0.88, 1.05) * draw_cast(rng)).astype(np.float32)
        width = rng.uniform(1000, 1500)
        self._field = round(width), round(0.75 * width)
        self._start = [-int(rng.integers(length)) for length in self._field]
        self._vignette, self._uneven = rng.uniform(0.012, 0.04), rng.uniform(0.004, 0.011)
        self._dust = [
            (rng.uniform(0, self._field[0]), rng.uniform(0, self._field[1]), rng.uniform(4, 10))
            for _ in range(int(rng.poisson(1.5)))
        ]
        self._veil = rng.uniform(0.015, 0.04)
        self._keys = [int(key) for key in rng.integers(2**63, size=2)]

    def window(self, left: int, top: int, side: int) -> np.ndarray:
        """Factor on the light of a window, float32 (side, side, 3)."""
        u, v = (
            (np.arange(start, start + side, dtype=np.float32) + 0.5) / (self._size / 2) - 1
            for start in (left, top)
        )
        u, v = u[None], v[:, None]
        light = 1 + self._slope[0] * u + self._slope[1] * v - self._fall * (u**2 + v**2) / 2
        shape = (side, side)
        light += self._clouds * plane_noise(self._keys[0], left, top, shape, self._size / 4)
        light *= self._fields(left, top, side)
        return light[..., None] * self._gain

    def _fields(self, left: int, top: int, side: int) -> np.ndarray:
        places = [
            np.divmod(np.arange(start, start + side) - first, length)
            for start, first, length in zip((left, top), self._start, self._field, strict=True)
        ]
        (column, x), (row, y) = places
        gains = plane_noise(
            self._keys[1], int(column[0]), int(row[0]), (len(set(row)), len(set(column))), 1.0
        )
        gain = gains[np.ix_(row - row[0], column - column[0])] * self._uneven
        off = [
            ((place + 0.5) / length * 2 - 1).astype(np.float32) ** 2
            for place, length in zip((x, y), self._field, strict=True)
        ]
        light = 1 + gain - self._vignette * (off[0][None] + off[1][:, None]) / 2
        for dust_x, dust_y, radius in self._dust:
            far = np.hypot((x - dust_x)[None], (y - dust_y)[:, None]) / radius
            light *= 1 - self._veil * np.exp(-(far.astype(np.float32) ** 4))
        # Stitching fades neighbours over into each other.
        return cv2.blur(light.astype(np.float32), (7, 7))
