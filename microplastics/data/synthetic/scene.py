"""One picture: a filter, what lies on it, and the annotations."""

import functools
import math
from collections import defaultdict
from typing import Any

import numpy as np
from shapely.geometry import box

from microplastics.data.synthetic.background import Scene, render_filter
from microplastics.data.synthetic.beads import paint_bead, sphere_look
from microplastics.data.synthetic.blanks import Blanks, photographed_filter
from microplastics.data.synthetic.debris import enclose_bubbles, scatter_debris, shed_fibers
from microplastics.data.synthetic.fields import generator
from microplastics.data.synthetic.masks import annotate
from microplastics.data.synthetic.optics import (
    draw_scale_bar,
    expose,
    jpeg_quality,
    plan_scale_bar,
    scratch,
    soil_lens,
)
from microplastics.data.synthetic.particles import (
    BEAD,
    FIBER,
    MAKERS,
    Particle,
    bead_diameter,
    make_bead,
)
from microplastics.data.synthetic.presets import MAX_PARTICLES, PRESETS, Preset
from microplastics.data.synthetic.shading import paint

# Share of a particle's pixels that lie inside the frame at least, and how many.
_MIN_INSIDE, _MIN_AREA_PX = 0.4, 60
# Share of a picture that beads cover at most.
_MAX_BEAD_COVER = 0.28
# Squares by which neighbours are looked up, in px.
_CELL = 128


def render_image(
    seed: tuple[int | str, ...],
    size: int,
    um_per_px: float,
    preset: Preset = PRESETS["default"],
    blanks: Blanks | None = None,
) -> tuple[np.ndarray, dict[str, Any], list[dict[str, Any]]]:
    """Draw one photograph of a filter, with annotations that are exact.

    The picture depends on the arguments alone: the same ones give the same bytes, in any process
    of the same machine and library versions. Each part (filter, particles, camera, …) has a
    random stream of its own.

    Args:
        seed: key of the picture, such as ``(seed, "train", index)``.
        size: side in px, at least 64.
        um_per_px: micrometres per pixel.
        preset: what is drawn.
        blanks: photographs of empty filters that take the place of the drawn filter with its
            dirt, light and camera; None draws the filter.

    Returns:
        image: uint8 (size, size, 3), BGR, as the camera gives it before JPEG.
        record: COCO image entry without ``id`` and ``file_name``: ``width``, ``height``,
            ``um_per_px``, ``filter``, ``jpeg_quality`` and, where one is burnt in, ``scale_bar``
            with ``um``, ``px`` (drawn length, whole pixels) and ``bbox``; ``background`` names
            the photograph under the particles.
        annotations: COCO annotations without ``id`` and ``image_id``, see
            :func:`microplastics.data.synthetic.masks.annotate`.
    """
    if blanks is None:
        scene, camera = render_filter(seed, size, preset.filters), None
    else:
        scene, camera = photographed_filter(seed, size, blanks)
    rng = generator(*seed, "optics")
    record = {"width": size, "height": size, "um_per_px": um_per_px, "filter": scene.filter}
    record["jpeg_quality"] = jpeg_quality(rng)
    has_bar = rng.random() < preset.scale_bar_share
    bar = plan_scale_bar(rng, size, um_per_px) if has_bar else None
    if camera is None:
        scatter_debris(generator(*seed, "debris"), scene, preset.dirt)
        enclose_bubbles(generator(*seed, "bubbles"), scene, preset.bubbles)
        shed_fibers(generator(*seed, "shed"), scene, preset.dirt)
        scratch(rng, scene, preset.dirt)
    annotations = _lay_particles(generator(*seed, "particles"), scene, um_per_px, bar, preset)
    if camera is None:
        soil_lens(rng, scene)
        image = expose(rng, scene, preset.blur)
    else:
        image = camera.retake(rng, scene)
        record["background"] = camera.name
    if bar is not None:
        draw_scale_bar(image, bar)
        record["scale_bar"] = {name: bar[name] for name in ("um", "px", "bbox")}
    return image, record, annotations


def _count(rng: np.random.Generator, size: int, preset: Preset) -> int:
    """How many particles: log-normal about a density, with some pictures empty."""
    if rng.random() < preset.empty_share or not preset.particles_per_256:
        return 0
    median = max(preset.particles_per_256 * (size / 256) ** 2, 1.0)
    return int(np.clip(round(rng.lognormal(np.log(median), preset.spread)), 1, MAX_PARTICLES))


def _lay_particles(
    rng: np.random.Generator, scene: Scene, um_per_px: float, bar: dict | None, preset: Preset
) -> list[dict[str, Any]]:
    """Make, place and paint the particles: films lowest, then fragments, fibres across all.

    One that in six places finds no room, or no colour that stands out, is neither drawn nor
    annotated: what is annotated can be seen, and what is drawn is annotated.
    """
    size = scene.canvas.shape[0]
    number = _count(rng, size, preset)
    kinds = rng.choice(list(preset.mix), size=number, p=list(preset.mix.values()))
    makers, painters, room = _hands(rng, preset, size)
    ground = Ground(size, bar, preset)
    annotations = []
    for kind in sorted(kinds[:room], key=list(preset.mix).index):
        particle = makers[kind](rng, size)
        for _ in range(6):
            placed = place(rng, particle, ground)
            annotation = annotate(placed, size, um_per_px)
            if annotation is None or not ground.has_room(placed, annotation):
                continue
            if painters[kind](rng, placed, scene, min_contrast=preset.min_contrast):
                ground.take(placed, annotation)
                annotation["category_id"] = preset.category_id(placed.category_id)
                annotations.append(annotation)
                break
    return annotations


def _hands(rng: np.random.Generator, preset: Preset, size: int) -> tuple[dict, dict, int]:
    """What makes and what paints each kind, and for how many there is room.

    The beads of a picture are of one batch; large ones are fewer.
    """
    makers, painters = dict(MAKERS), dict.fromkeys(MAKERS, paint)
    room = MAX_PARTICLES
    if BEAD in preset.mix:
        diameter = bead_diameter(rng)
        look = sphere_look(rng, diameter)
        makers[BEAD] = functools.partial(make_bead, diameter=diameter)
        painters[BEAD] = functools.partial(paint_bead, look=look)
        room = max(int(_MAX_BEAD_COVER * size**2 / (np.pi / 4 * diameter**2)), 1)
    return makers, painters, room


def place(rng: np.random.Generator, particle: Particle, ground: "Ground") -> Particle:
    """Move a particle somewhere, or across or against one that is there already.

    Args:
        rng: where the numbers come from.
        particle: about the origin.
        ground: what lies where.
    """
    preset = ground.preset
    if particle.category_id == FIBER:
        if ground.fibers and rng.random() < preset.crossing:
            other = ground.fibers[rng.integers(len(ground.fibers))].core
            target = other[rng.integers(len(other))]
            return particle.moved(*(target - particle.core[rng.integers(len(particle.core))]))
    elif ground.compact and preset.touching and rng.random() < preset.touching:
        other = ground.compact[rng.integers(len(ground.compact))]
        return _set_against(rng, particle, other)
    return particle.moved(*rng.uniform(0.0, ground.size, 2))


def _set_against(rng: np.random.Generator, particle: Particle, other: Particle) -> Particle:
    """Move a particle up to another one from a random side until they touch."""
    angle = rng.uniform(0, 2 * np.pi)
    toward = np.array([np.cos(angle), np.sin(angle)])
    reach = sum(
        np.hypot(*np.ptp(np.reshape(p.outline.bounds, (2, 2)), axis=0)) for p in (particle, other)
    )
    center = np.mean(np.reshape(other.outline.bounds, (2, 2)), axis=0)
    placed = particle.moved(*(center + reach * toward))
    for _ in range(12):
        # No step goes farther than the gap: the outlines cannot pass through each other.
        gap = placed.outline.distance(other.outline)
        if gap < 0.3:
            break
        placed = placed.moved(*(-gap * toward))
    return placed


class Ground:
    """What lies where: decides whether one more particle has room."""

    def __init__(self, size: int, bar: dict | None, preset: Preset):
        self.size, self.preset = size, preset
        self.fibers: list[Particle] = []
        self.compact: list[Particle] = []
        self.bar = None
        if bar is not None:
            x, y, width, height = bar["bbox"]
            self.bar = box(x - 4, y - 4, x + width + 4, y + height + 4)
        # Of each particle: itself, its pixels inside the frame, how many of them are covered.
        self._laid: list[tuple[Particle, float, float]] = []
        # Numbers of the particles whose boxes meet each square of _CELL px.
        self._cells: dict[tuple[int, int], set[int]] = defaultdict(set)

    def has_room(self, particle: Particle, annotation: dict[str, Any]) -> bool:
        """Whether it is seen well enough and leaves those below it well enough seen.

        Args:
            particle: where it is to lie.
            annotation: its annotation, of which ``area`` counts.
        """
        area = annotation["area"]
        inside = area / particle.outline.area
        if area < _MIN_AREA_PX or inside < _MIN_INSIDE:
            return False
        if self.bar is not None and particle.outline.intersection(self.bar).area > 0.05 * area:
            return False
        for number in self._near(particle):
            other, other_area, covered = self._laid[number]
            shared = _shared_area(particle, other)
            both_compact = FIBER not in (particle.category_id, other.category_id)
            if both_compact and shared > self.preset.max_overlap * min(area, other_area):
                return False
            if (
                shared > self.preset.max_crossing * area
                and particle.category_id == other.category_id
            ):
                return False
            if covered + shared > (1 - self.preset.min_visible) * other_area:
                return False
        return True

    def take(self, particle: Particle, annotation: dict[str, Any]) -> None:
        """Note a painted particle."""
        for number in self._near(particle):
            other, area, covered = self._laid[number]
            self._laid[number] = other, area, covered + _shared_area(particle, other)
        for cell in _cells(particle):
            self._cells[cell].add(len(self._laid))
        self._laid.append((particle, annotation["area"], 0.0))
        (self.fibers if particle.category_id == FIBER else self.compact).append(particle)

    def _near(self, particle: Particle) -> set[int]:
        """Numbers of the particles that may share pixels with one."""
        return set().union(*(self._cells[cell] for cell in _cells(particle) if cell in self._cells))


def _cells(particle: Particle) -> list[tuple[int, int]]:
    """The squares of _CELL px that a particle's box meets."""
    left, top, right, bottom = (math.floor(v / _CELL) for v in particle.outline.bounds)
    return [(x, y) for x in range(left, right + 1) for y in range(top, bottom + 1)]


def _shared_area(one: Particle, other: Particle) -> float:
    a, b = one.outline.bounds, other.outline.bounds
    if a[0] > b[2] or b[0] > a[2] or a[1] > b[3] or b[1] > a[3]:
        return 0.0
    return one.outline.intersection(other.outline).area
