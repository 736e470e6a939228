"""Whole filters, rendered in pieces into a tiled TIFF, with COCO annotations beside it."""

import contextlib
import dataclasses
import functools
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np
import tifffile
from tqdm import tqdm

from microplastics.synthetic.camera import (
    Camera,
    Scene,
    draw_camera,
    draw_cast,
    draw_demosaic,
    generator,
    plane_noise,
    scratch,
)
from microplastics.synthetic.dataset import RENDERER_VERSION
from microplastics.synthetic.filters import (
    DARK_FILTERS,
    bare_filter,
    draw_dirt,
    enclose_bubbles,
    scatter_dirt,
    shed_fibers,
)
from microplastics.synthetic.particles import BEAD, FIBER, MAKERS, Particle, make_long_fiber, paint
from microplastics.synthetic.scene import Ground, Preset, annotate, find_preset, place
from microplastics.utils.errors import UserError
from microplastics.utils.io import atomic_write, write_json
from microplastics.utils.system import available_processors, map_in_processes

# Side of the texture that cells are cut from, of a cell, and of the band where two fade over, in
# px. Cells are set off by half a cell, so that a window of whole cells meets as few as can be.
_TEXTURE, _CELL, _BAND = 2048, 512, 64
# The weave of a mesh would not go on from cell to cell.
_UNFIT = ("nylon_mesh",)


@dataclasses.dataclass(frozen=True)
class Membrane:
    """Where the membrane lies, in px.

    Attributes:
        center: (x, y).
        radius: of the membrane's edge.
        deposit_radius: of the disc through which the sample ran; all particles lie in it. The
            funnel covered the ring around it.
    """

    center: tuple[float, float]
    radius: float
    deposit_radius: float


def draw_membrane(seed: int, size: int) -> Membrane:
    """Draw where the membrane lies in a frame of ``size`` px."""
    rng = generator(seed, "membrane")
    x, y = size * (0.5 + rng.uniform(-0.008, 0.008, 2))
    radius = size * rng.uniform(0.47, 0.482)
    return Membrane((float(x), float(y)), radius, radius * rng.uniform(0.92, 0.95))


class FilterGround:
    """An empty filter, drawn window by window.

    Attributes:
        filter: name of the filter.
        dark: whether particles shine on a dark ground.
        light: unit vector (x, y) in the image that points to the lamp.
        membrane: where it lies.
    """

    def __init__(self, seed: int, size: int, preset_name: str, filter_name: str | None = None):
        preset = find_preset(preset_name)
        shares = filters_of(preset_name) if filter_name is None else {filter_name: 1.0}
        rng = generator(seed, "filter")
        self.filter, self.light, gray, self._color = bare_filter(rng, _TEXTURE, shares)
        self._gray = np.clip(gray, 0, 1.1).astype(np.float32)
        self.dark = self.filter in DARK_FILTERS
        self.membrane = draw_membrane(seed, size)
        self._mean = float(self._gray.mean()) * self._color
        self._seed, self._preset = seed, preset
        rng = generator(seed, "deposit")
        self._dirt = preset.dirt * draw_dirt(rng)
        fibrous = self.filter in ("glass_fiber", "cellulose")
        self._stain = rng.uniform(0.25, 0.6) if rng.random() < 0.45 and fibrous else 0.0
        self._keys = [int(k) for k in rng.integers(2**63, size=8)]
        self._wobble = rng.normal(0, 0.0012, 5), rng.uniform(0, 6.28, 5)
        self._cake = 1 - rng.uniform(0.0, 0.05) * np.array([1.0, 0.75, 0.6])
        self._around = rng.uniform(0.02, 0.09) * rng.uniform(0.8, 1.1, 3)
        self._clamp = rng.uniform(0.03, 0.09)

    def sample(self, rng: np.random.Generator, side: int) -> Scene:
        """A random clean piece of the filter, for trying colours on.

        Args:
            rng: where the place comes from.
            side: in px, at most 2048.
        """
        y, x = rng.integers(0, _TEXTURE - side + 1, 2)
        canvas = self._gray[y : y + side, x : x + side, None] * self._color
        return Scene(canvas, self.light, self.filter, self.dark, origin=(0, 0))

    def window(self, left: int, top: int, side: int) -> Scene:
        """Draw a square window of the filter, lit evenly.

        Args:
            left, top: in px; it may reach beyond the frame.
            side: in px.

        Returns:
            The scene, its ``origin`` at (left, top).
        """
        canvas = np.zeros((side, side, 3), np.float32)
        weight = np.zeros((side, side), np.float32)
        for row in _cells_of(top, side):
            for column in _cells_of(left, side):
                if self._meets(row, column):
                    self._add_cell(canvas, weight, (row, column), (left, top))
        # Fading two unlike textures over evenly would take contrast from the band between them.
        canvas /= np.sqrt(np.maximum(weight, 1e-6))[..., None]
        canvas += self._mean
        self._discolor(canvas, left, top)
        self._cut_out(canvas, left, top)
        return Scene(canvas, self.light, self.filter, self.dark, origin=(left, top))

    def _meets(self, row: int, column: int) -> bool:
        """Whether a cell may show something of the membrane."""
        off = np.array([column, row]) * _CELL - self.membrane.center
        return math.hypot(*off) < self.membrane.radius * 1.01 + _CELL

    def _add_cell(
        self,
        canvas: np.ndarray,
        weight: np.ndarray,
        cell: tuple[int, int],
        origin: tuple[int, int],
    ) -> None:
        """Add a cell's deviation from the mean, faded out at its border, and its squared weight."""
        side = _CELL + _BAND
        # Keys are natural numbers, and cells begin at -1.
        key = (self._seed, "cell", *(number + 8 for number in cell))
        scene = self.sample(generator(*key), side)
        x, y = (number * _CELL for number in cell[::-1])
        local = math.exp(0.5 * float(plane_noise(self._keys[0], x, y, (1, 1), 1500.0)[0, 0]))
        scatter_dirt(generator(*key, "debris"), scene, self._dirt * local)
        enclose_bubbles(generator(*key, "bubbles"), scene, self._preset.bubbles)
        shed_fibers(generator(*key, "shed"), scene, self._preset.dirt)
        scratch(generator(*key, "scratch"), scene, self._preset.dirt)
        (rows, part_rows), (columns, part_columns) = (
            _overlap(number * _CELL - side // 2, side, start, canvas.shape[0])
            for number, start in zip(cell, origin[::-1], strict=True)
        )
        fade = _fade()
        mix = fade[part_rows, None] * fade[None, part_columns]
        canvas[rows, columns] += mix[..., None] * (
            scene.canvas[part_rows, part_columns] - self._mean
        )
        weight[rows, columns] += mix**2

    def _discolor(self, canvas: np.ndarray, left: int, top: int) -> None:
        """Let silt discolour parts of the filter: soft brown clouds with a grainy edge."""
        if not self._stain:
            return
        cloud, weight = np.zeros(canvas.shape[:2], np.float32), 1.0
        for key, cell in zip(self._keys[1:5], (1300, 420, 6, 2.5), strict=True):
            cloud += weight * plane_noise(key, left, top, cloud.shape, cell)
            weight *= 0.45
        amount = self._stain * np.clip((cloud - 0.5) * 0.6, 0, 1)
        canvas *= 1 - amount[..., None] * np.array([0.45, 0.28, 0.16], np.float32)

    def _cut_out(self, canvas: np.ndarray, left: int, top: int) -> None:
        """Cut the membrane out round, with the funnel's print, its edge and what lies around."""
        side, membrane = canvas.shape[0], self.membrane
        x = np.arange(side, dtype=np.float32) + np.float32(left + 0.5 - membrane.center[0])
        y = np.arange(side, dtype=np.float32) + np.float32(top + 0.5 - membrane.center[1])
        r = np.hypot(x[None], y[:, None])
        angle = np.arctan2(y[:, None], x[None])
        waves = zip(*self._wobble, strict=True)
        edge = sum(a * np.cos((k + 2) * angle + b) for k, (a, b) in enumerate(waves))
        inside = membrane.radius * (1 + edge) - r
        deposit = membrane.deposit_radius - r
        # What ran through left a thin cake; the funnel pressed a line around it.
        cake = np.clip(deposit / 40 + 0.5, 0, 1)[..., None]
        canvas *= 1 - cake * (1 - self._cake).astype(np.float32)
        toward = np.cos(angle - math.atan2(self.light[1], self.light[0]))
        tone = 1 - self._clamp * np.exp(-((deposit / 9) ** 2))
        tone += self._clamp * toward * np.exp(-(((deposit + 12) / 10) ** 2))
        # The edge is bent a little: lit on one side, shaded on the other.
        tone += (0.16 * toward - 0.05) * np.exp(-((inside / 14) ** 2))
        canvas *= tone[..., None]
        dust = plane_noise(self._keys[5], left, top, (side, side), 2.2) - 2.1
        gray = 1 + 0.12 * plane_noise(self._keys[6], left, top, (side, side), 700.0)
        gray += 0.5 * np.exp(np.minimum(inside, 0) / 60) + 2.0 * np.clip(dust, 0, 1)
        cover = np.clip(inside / 2.5 + 0.5, 0, 1)[..., None]
        around = gray[..., None] * self._around.astype(np.float32)
        canvas *= cover
        canvas += (1 - cover) * around
        np.clip(canvas, 0, 1.1, out=canvas)


def filters_of(preset_name: str) -> dict[str, float]:
    """The preset's filters that whole filters can be made of, and how often each is drawn."""
    filters = find_preset(preset_name).filters
    shares = {name: share for name, share in filters.items() if name not in _UNFIT}
    total = sum(shares.values())
    return {name: share / total for name, share in shares.items()}


def _cells_of(start: int, side: int) -> range:
    """Numbers of the cells that a window meets along an axis; cell 0 has its middle at 0."""
    half = (_CELL + _BAND) // 2
    return range(math.ceil((start - half + 1) / _CELL), (start + side + half - 1) // _CELL + 1)


def _overlap(begin: int, length: int, start: int, side: int) -> tuple[slice, slice]:
    """What a cell and a window share along an axis: in the window, and in the cell."""
    low, high = max(begin, start), min(begin + length, start + side)
    return slice(low - start, high - start), slice(low - begin, high - begin)


@functools.cache
def _fade() -> np.ndarray:
    """Weight of a cell along an axis: 1, falling to 0 over the bands at its ends."""
    place = np.arange(_CELL + _BAND, dtype=np.float32) + 0.5
    return np.clip(np.minimum(place, place[::-1]) / _BAND, 0, 1)


MIN_SIZE, MAX_SIZE = 1024, 40_000
MAX_PARTICLES = 50_000
# Particles on a megapixel of the membrane unless told otherwise, for 6.5 on 256 x 256 px.
_PARTICLES_PER_MPX = 15.0
# Share of the particles that are fibres longer than windows are, and their lengths as shares of
# the frame's side.
_LONG_SHARE, _LONG = 0.02, (0.06, 0.3)
# Touching particles occur on every whole filter.
_TOUCHING = 0.12
# Frame that the makers of shapes are told: their sizes in px do not grow with the filter.
_FRAME = 512
# Colours and places that are tried for a particle.
_COLORS, _PLACES = 20, 40
# A particle keeps off the border of the disc where the sample ran through, in px.
_CLEARANCE = 6.0
# Pieces in which fibres are painted, and what is painted around each, in px.
BLOCK, BLOCK_MARGIN = 256, 16


@dataclasses.dataclass(frozen=True)
class MosaicSettings:
    """What a whole filter is rendered from.

    Attributes:
        size: side of the picture in px.
        um_per_px: micrometres per pixel.
        seed: 0 or more.
        particles: how many to lay; None takes the preset's density, thinned out.
        preset: name of a preset.
        filter_name: one of the preset's filters; None draws one.
        jpeg_quality: of the TIFF's tiles; None compresses without loss.
    """

    size: int
    um_per_px: float
    seed: int
    particles: int | None
    preset: str
    filter_name: str | None
    jpeg_quality: int | None

    def check(self) -> None:
        """Raise UserError for what cannot be rendered."""
        if not MIN_SIZE <= self.size <= MAX_SIZE:
            raise UserError(
                f"--size is {self.size}: give a side between {MIN_SIZE} and {MAX_SIZE} px."
            )
        # Written so that NaN fails it too.
        if not 1e-6 <= self.um_per_px <= 1e6:
            raise UserError(
                f"--um-per-px is {self.um_per_px:g}: give micrometres per pixel between "
                "1e-06 and 1e+06."
            )
        if self.seed < 0:
            raise UserError(f"--seed is {self.seed}: give 0 or more.")
        if self.particles is not None and not 0 <= self.particles <= MAX_PARTICLES:
            raise UserError(
                f"--particles is {self.particles}: give between 0 and {MAX_PARTICLES} particles."
            )
        if self.jpeg_quality is not None and not 1 <= self.jpeg_quality <= 100:
            raise UserError(f"--jpeg-quality is {self.jpeg_quality}: give 1 to 100.")
        if BEAD in find_preset(self.preset).mix:
            raise UserError(
                f"--preset {self.preset} has no whole filter: choose one of fibres, fragments "
                "and films."
            )
        fit = filters_of(self.preset)
        if self.filter_name is not None and self.filter_name not in fit:
            raise UserError(
                f"--preset {self.preset} has no whole filter '{self.filter_name}': choose one of "
                f"{', '.join(fit)}."
            )

    def manifest(self) -> dict[str, Any]:
        """What the file's bytes depend on, as JSON."""
        return {"renderer_version": RENDERER_VERSION, **dataclasses.asdict(self)}

    def count(self, membrane: Membrane) -> int:
        """How many particles are to be laid."""
        if self.particles is not None:
            return self.particles
        density = _PARTICLES_PER_MPX * find_preset(self.preset).particles_per_256 / 6.5
        return min(round(density * math.pi * membrane.deposit_radius**2 / 1e6), MAX_PARTICLES)


@dataclasses.dataclass(frozen=True)
class Laid:
    """A particle in its place.

    Attributes:
        particle: in px of the whole filter.
        look: key of the random stream that paints it.
    """

    particle: Particle
    look: tuple[int | str, ...]


@functools.lru_cache(maxsize=1)
def ground_of(settings: MosaicSettings) -> FilterGround:
    """The empty filter; each process draws its texture once."""
    return FilterGround(settings.seed, settings.size, settings.preset, settings.filter_name)


def plan_particles(
    settings: MosaicSettings, workers: int = 1, progress: bool = True
) -> tuple[list[Laid], list[dict[str, Any]]]:
    """Make and place the particles: films lowest, then fragments, fibres across all.

    Long fibres come first among fibres, while there is room for them. What finds no room, or no
    colour that stands out, is neither drawn nor annotated.

    Args:
        settings: what is rendered.
        workers: processes.
        progress: whether to show a progress bar on stderr, where that is a terminal.

    Returns:
        The particles, lowest first, and the COCO annotation of each without ids, see
        :func:`microplastics.synthetic.masks.annotate`.
    """
    preset = find_preset(settings.preset)
    preset = dataclasses.replace(preset, touching=max(preset.touching, _TOUCHING))
    membrane = ground_of(settings).membrane
    tasks = _tasks(settings, preset, settings.count(membrane))
    made = tqdm(
        map_in_processes(_make, tasks, min(workers, max(len(tasks) // 16, 1)), chunk=16),
        total=len(tasks),
        desc="Laying particles",
        unit="particle",
        disable=None if progress else True,
    )
    rng, ground = generator(settings.seed, "places"), Ground(settings.size, None, preset)
    laid, annotations = [], []
    for particle, look in made:
        placed = None if look is None else _find_place(rng, particle, ground, membrane)
        if placed is None:
            continue
        annotation = annotate(placed, settings.size, settings.um_per_px)
        ground.take(placed, annotation)
        laid.append(Laid(placed, look))
        annotations.append(annotation)
    return laid, annotations


def _tasks(settings: MosaicSettings, preset: Preset, count: int) -> list[tuple]:
    """(settings, number, kind, length of a long fibre or None) of each particle, lowest first."""
    rng = generator(settings.seed, "kinds")
    kinds = rng.choice(list(preset.mix), size=count, p=list(preset.mix.values()))
    kinds = sorted((int(kind) for kind in kinds), key=list(preset.mix).index)
    fibers = kinds.count(FIBER)
    long = min(max(round(_LONG_SHARE * count), 3), fibers)
    lengths = settings.size * np.exp(rng.uniform(*np.log(_LONG), long))
    lengths[:1] = settings.size * _LONG[1]
    given = [None] * (count - fibers) + [float(v) for v in lengths] + [None] * (fibers - long)
    numbered = enumerate(zip(kinds, given, strict=True))
    return [(settings, number, kind, length) for number, (kind, length) in numbered]


def _make(task: tuple) -> tuple[Particle, tuple[int | str, ...] | None]:
    """Make a particle about the origin, and find a look that stands out from the filter."""
    settings, number, kind, length = task
    rng = generator(settings.seed, "particle", number)
    particle = MAKERS[kind](rng, _FRAME) if length is None else make_long_fiber(rng, length)
    x, y, side = trial_window(particle)
    min_contrast = find_preset(settings.preset).min_contrast
    for attempt in range(_COLORS):
        look = (settings.seed, "look", number, attempt)
        scene = ground_of(settings).sample(rng, side)
        moved = particle.moved(-x, -y)
        if paint(generator(*look), moved, scene, min_contrast, tries=1):
            return particle, look
    return particle, None


def trial_window(particle: Particle) -> tuple[int, int, int]:
    """Left, top and side of what is painted at a time: all of a particle, or a block of a fibre."""
    if particle.category_id == FIBER:
        x, y = np.floor(particle.core[len(particle.core) // 2]).astype(int)
        return int(x) - BLOCK // 2, int(y) - BLOCK // 2, BLOCK
    # A pixel more than the margin of 8 px that painting takes, so that nothing is cut off.
    left, top, right, bottom = particle.outline.bounds
    x, y = math.floor(left) - 9, math.floor(top) - 9
    return x, y, max(math.ceil(right) - x, math.ceil(bottom) - y) + 10


def _find_place(
    rng: np.random.Generator, particle: Particle, ground: Ground, membrane: Membrane
) -> Particle | None:
    """Move a particle to where it lies on the membrane and has room; None where there is none."""
    for _ in range(_PLACES):
        placed = place(rng, particle, ground)
        edge = np.asarray(placed.outline.exterior.coords) - membrane.center
        if np.hypot(*edge.T).max() > membrane.deposit_radius - _CLEARANCE:
            continue
        # All of it is inside the frame: its area needs no mask yet.
        if ground.has_room(placed, {"area": placed.outline.area}):
            return placed
    return None


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


# Side of the pieces in px: some 200 MB are in use while one is drawn.
CHUNK = 1024
# A pyramid's levels are this many times smaller each; the least has at least so many px a side.
_SHRINK, _LEAST_LEVEL = 4, 512
# Starting a process costs a few seconds: fewer pieces than this are rendered without.
_CHUNKS_WORTH_A_PROCESS = 16
_JPEG_QUALITY = 92


def render_mosaic(
    output: str | os.PathLike,
    size: int = 10_000,
    um_per_px: float = 2.0,
    seed: int = 0,
    particles: int | None = None,
    preset: str = "default",
    filter_name: str | None = None,
    jpeg_quality: int | None = _JPEG_QUALITY,
    workers: int | None = None,
    chunk: int = CHUNK,
    progress: bool = True,
) -> Path:
    """Render a stitched photograph of a whole filter, with annotations that are exact.

    The TIFF (BigTIFF from 4 GB of pixels on) has tiles of 512 px, the scale in its resolution
    tags, and smaller copies as SubIFDs. Neither ``workers`` nor ``chunk`` changes the picture (but
    for a rounding to the next grey value here and there with another ``chunk``); no process ever
    holds more than a strip of it and a copy of a sixteenth. Both files take their names when they
    are whole; where they are there already they are left as they are.

    Args:
        output: path of the TIFF; the annotations lie beside it, with the suffix ``.json``.
        size: side of the picture in px, 1,024 to 40,000.
        um_per_px: micrometres per pixel.
        seed: 0 or more.
        particles: how many to lay; None takes 15 on a megapixel for ``preset`` ``default``, and
            for the others as many more or fewer as their pictures hold.
        preset: name of one of :data:`microplastics.synthetic.presets.PRESETS`.
        filter_name: one of the preset's filters; None draws one.
        jpeg_quality: of the tiles, 1 to 100; None compresses without loss (deflate).
        workers: processes; None takes the processors there are, or none for a small picture.
        chunk: side in px of the pieces that are rendered at a time, a multiple of 512.
        progress: whether to show progress bars on stderr, where that is a terminal.

    Returns:
        Path of the annotation file.

    Raises:
        UserError: a parameter makes no sense, the files cannot be written, or others are there.
    """
    settings = MosaicSettings(
        size, float(um_per_px), seed, particles, preset, filter_name, jpeg_quality
    )
    image = Path(output)
    _check_arguments(image, settings, workers, chunk)
    annotations = image.with_suffix(".json")
    if _is_complete(image, annotations, settings):
        return annotations
    starts = [(x, y) for y in range(0, size, chunk) for x in range(0, size, chunk)]
    if workers is None:
        workers = available_processors() if len(starts) >= _CHUNKS_WORTH_A_PROCESS else 1
    laid, entries = plan_particles(settings, workers, progress)
    pieces = _render_pieces(settings, laid, starts, chunk, workers, progress)
    with atomic_write(image, "wb") as file:
        _write_tiff(file, settings, _strips(pieces, size, chunk))
        # Renamed first: a JSON without its image is done again, an image without JSON is foreign.
        coco = _coco(settings, image.name, file.seek(0, os.SEEK_END), entries)
        write_json(annotations, coco)
    return annotations


def _check_arguments(
    image: Path, settings: MosaicSettings, workers: int | None, chunk: int
) -> None:
    settings.check()
    if workers is not None and workers < 1:
        raise UserError(f"--workers is {workers}: give the number of processes, 1 or more.")
    if chunk < TILE or chunk % TILE:
        raise ValueError(f"chunk is {chunk}: a multiple of {TILE} is needed")
    if image.suffix.lower() not in (".tif", ".tiff"):
        raise UserError(f"--output {image} is no TIFF: give a name that ends in .tif.")


def _is_complete(image: Path, annotations: Path, settings: MosaicSettings) -> bool:
    """Whether both files are there; refuse to overwrite what another command has written."""
    if not annotations.exists() and not image.exists():
        return False
    info = None
    with contextlib.suppress(OSError, ValueError, RecursionError, AttributeError):
        info = json.loads(annotations.read_text(encoding="utf-8")).get("info")
    if not isinstance(info, dict) or any(
        info.get(name, info) != value for name, value in settings.manifest().items()
    ):
        other = image if image.exists() else annotations
        raise UserError(
            f"{other} is there and is not what would be rendered: delete it with its JSON, or "
            "choose another --output."
        )
    return image.exists() and image.stat().st_size == info.get("bytes")


def _render_pieces(
    settings: MosaicSettings,
    laid: Sequence[Laid],
    starts: Sequence[tuple[int, int]],
    chunk: int,
    workers: int,
    progress: bool,
) -> Iterable[np.ndarray]:
    """Render the pieces whose upper left corners are ``starts``, one after another."""
    tasks = [
        (settings, x, y, chunk, [one for one in laid if meets(one, x, y, chunk)]) for x, y in starts
    ]
    return tqdm(
        map_in_processes(_render, tasks, min(workers, len(tasks)), chunk=1),
        total=len(tasks),
        desc="Rendering",
        unit="piece",
        disable=None if progress else True,
    )


def _render(task: tuple[MosaicSettings, int, int, int, Sequence[Laid]]) -> np.ndarray:
    return render_window(*task)


def _strips(pieces: Iterable[np.ndarray], size: int, chunk: int) -> Iterator[np.ndarray]:
    """Join pieces to strips over the whole width."""
    row = []
    for piece in pieces:
        row.append(piece)
        if len(row) == -(-size // chunk):
            strip, row = np.concatenate(row, axis=1), []
            yield strip


def _write_tiff(file: IO[bytes], settings: MosaicSettings, strips: Iterable[np.ndarray]) -> None:
    size, quality = settings.size, settings.jpeg_quality
    levels = _empty_levels(size)
    options: dict[str, Any] = {"photometric": "rgb", "tile": (TILE, TILE)}
    if quality is None:
        options |= {"compression": "adobe_deflate", "predictor": True}
    else:
        options |= {"compression": "jpeg", "compressionargs": {"level": quality}}
    per_cm = 1e4 / settings.um_per_px
    # The name of a temporary file is a number, which tifffile does not take.
    handle = tifffile.FileHandle(file, name="filter.tif", size=0)
    with tifffile.TiffWriter(handle, bigtiff=3 * size**2 >= 2**32) as tiff:
        tiff.write(
            _tiles(strips, levels),
            shape=(size, size, 3),
            dtype=np.uint8,
            resolution=(per_cm, per_cm),
            resolutionunit="CENTIMETER",
            software="microplastics",
            description="Rendered photograph of a whole filter (no real sample)",
            metadata=None,
            subifds=len(levels),
            **options,
        )
        for number, level in enumerate(levels, start=1):
            fewer = per_cm / _SHRINK**number
            resolution = {"resolution": (fewer, fewer), "resolutionunit": "CENTIMETER"}
            tiff.write(level, subfiletype=1, metadata=None, **resolution, **options)


def _tiles(strips: Iterable[np.ndarray], levels: list[np.ndarray]) -> Iterator[np.ndarray]:
    """Cut RGB tiles, row by row, out of BGR strips, and fill the pyramid on the way."""
    top = 0
    for strip in strips:
        strip = strip[..., ::-1]
        _shrink_into(levels, strip, top)
        top += len(strip)
        for y in range(0, len(strip), TILE):
            for x in range(0, strip.shape[1], TILE):
                tile = strip[y : y + TILE, x : x + TILE]
                missing = [(0, TILE - side) for side in tile.shape[:2]]
                yield np.pad(tile, [*missing, (0, 0)], "edge")


def _empty_levels(size: int) -> list[np.ndarray]:
    levels, side = [], size // _SHRINK
    while side >= _LEAST_LEVEL:
        levels.append(np.zeros((side, side, 3), np.uint8))
        side //= _SHRINK
    return levels


def _shrink_into(levels: list[np.ndarray], strip: np.ndarray, top: int) -> None:
    """Put a strip that begins at row ``top`` into each level of the pyramid."""
    for level in levels:
        rows, columns = (side // _SHRINK for side in strip.shape[:2])
        if not rows:
            return
        whole = np.ascontiguousarray(strip[: rows * _SHRINK, : columns * _SHRINK])
        strip = cv2.resize(whole, (columns, rows), interpolation=cv2.INTER_AREA)
        top //= _SHRINK
        part = level[top : top + rows]
        part[:] = strip[: len(part), : level.shape[1]]


def _coco(
    settings: MosaicSettings, name: str, length: int, entries: list[dict[str, Any]]
) -> dict[str, Any]:
    ground = ground_of(settings)
    membrane = ground.membrane
    image = {
        "id": 1,
        "file_name": name,
        "width": settings.size,
        "height": settings.size,
        "um_per_px": settings.um_per_px,
        "filter": ground.filter,
        "membrane": {
            "center": [round(v, 2) for v in membrane.center],
            "radius": round(membrane.radius, 2),
            "deposit_radius": round(membrane.deposit_radius, 2),
        },
    }
    preset = find_preset(settings.preset)
    info = {
        "description": "Rendered photograph of a whole filter with microplastics (no real sample)",
        **settings.manifest(),
        "particles_wanted": settings.count(membrane),
        "bytes": length,
    }
    annotations = [{"id": i, "image_id": 1, **entry} for i, entry in enumerate(entries, start=1)]
    return {
        "info": info,
        "images": [image],
        "annotations": annotations,
        "categories": preset.categories,
    }
