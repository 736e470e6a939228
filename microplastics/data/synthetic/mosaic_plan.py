"""What lies where on a whole filter: its particles, their places and their annotations."""

import dataclasses
import functools
import math
from typing import Any

import numpy as np
from tqdm import tqdm

from microplastics.data.pool import map_in_processes
from microplastics.data.synthetic.fields import generator
from microplastics.data.synthetic.masks import annotate
from microplastics.data.synthetic.mosaic_ground import (
    FilterGround,
    Membrane,
    filters_of,
)
from microplastics.data.synthetic.particles import (
    BEAD,
    FIBER,
    MAKERS,
    Particle,
    make_long_fiber,
)
from microplastics.data.synthetic.presets import Preset, find_preset
from microplastics.data.synthetic.scene import Ground, place
from microplastics.data.synthetic.shading import paint
from microplastics.data.synthetic.storage import RENDERER_VERSION
from microplastics.errors import UserError

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
        :func:`microplastics.data.synthetic.masks.annotate`.
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
