"""One picture: a filter, what lies on it, and the annotations."""

from typing import Any

import numpy as np
from shapely.geometry import box

from microplastics.data.synthetic.background import Scene, render_filter
from microplastics.data.synthetic.debris import scatter_debris
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
from microplastics.data.synthetic.particles import FIBER, FILM, FRAGMENT, MAKERS, Particle
from microplastics.data.synthetic.shading import paint

EMPTY_SHARE = 0.05
SCALE_BAR_SHARE = 0.35
# Particles on 256 x 256 px (median), and at most on one picture whatever its size.
PARTICLES_PER_256 = 6.5
MAX_PARTICLES = 400
_MIX = {FILM: 0.25, FRAGMENT: 0.29, FIBER: 0.46}
# Shares of a particle's pixels: seen of it at least, seen inside the frame at least.
_MIN_VISIBLE, _MIN_INSIDE = 0.6, 0.4
_MIN_AREA_PX = 60
# Shares of a particle's pixels that it may have in common with one of its kind.
_MAX_COMPACT_OVERLAP, _MAX_CROSSING = 0.06, 0.3


def render_image(
    seed: tuple[int | str, ...], size: int, um_per_px: float
) -> tuple[np.ndarray, dict[str, Any], list[dict[str, Any]]]:
    """Draw one photograph of a filter, with annotations that are exact.

    The picture depends on the arguments alone: the same ones give the same bytes, in any process
    of the same machine and library versions. Each part (filter, particles, camera, …) has a
    random stream of its own.

    Args:
        seed: key of the picture, such as ``(seed, "train", index)``.
        size: side in px, at least 64.
        um_per_px: micrometres per pixel.

    Returns:
        image: uint8 (size, size, 3), BGR, as the camera gives it before JPEG.
        record: COCO image entry without ``id`` and ``file_name``: ``width``, ``height``,
            ``um_per_px``, ``filter``, ``jpeg_quality`` and, where one is burnt in, ``scale_bar``
            with ``um``, ``px`` (drawn length, whole pixels) and ``bbox``.
        annotations: COCO annotations without ``id`` and ``image_id``, see
            :func:`microplastics.data.synthetic.masks.annotate`.
    """
    scene = render_filter(seed, size)
    rng = generator(*seed, "optics")
    record = {"width": size, "height": size, "um_per_px": um_per_px, "filter": scene.filter}
    record["jpeg_quality"] = jpeg_quality(rng)
    bar = plan_scale_bar(rng, size, um_per_px) if rng.random() < SCALE_BAR_SHARE else None
    scatter_debris(generator(*seed, "debris"), scene)
    scratch(rng, scene)
    annotations = _lay_particles(generator(*seed, "particles"), scene, um_per_px, bar)
    soil_lens(rng, scene)
    image = expose(rng, scene)
    if bar is not None:
        draw_scale_bar(image, bar)
        record["scale_bar"] = {name: bar[name] for name in ("um", "px", "bbox")}
    return image, record, annotations


def _count(rng: np.random.Generator, size: int) -> int:
    """How many particles: log-normal about a density, with some pictures empty."""
    if rng.random() < EMPTY_SHARE:
        return 0
    median = max(PARTICLES_PER_256 * (size / 256) ** 2, 1.0)
    return int(np.clip(round(rng.lognormal(np.log(median), 0.5)), 1, MAX_PARTICLES))


def _lay_particles(
    rng: np.random.Generator, scene: Scene, um_per_px: float, bar: dict | None
) -> list[dict[str, Any]]:
    """Make, place and paint the particles: films lowest, then fragments, fibres across all.

    One that in six places finds no room, or no colour that stands out, is neither drawn nor
    annotated: what is annotated can be seen, and what is drawn is annotated.
    """
    size = scene.canvas.shape[0]
    number = _count(rng, size)
    kinds = rng.choice(list(_MIX), size=number, p=list(_MIX.values()))
    ground = _Ground(size, bar)
    annotations = []
    for kind in sorted(kinds, key=list(_MIX).index):
        particle = MAKERS[kind](rng, size)
        for _ in range(6):
            placed = _place(rng, particle, ground)
            annotation = annotate(placed, size, um_per_px)
            if annotation is None or not ground.has_room(placed, annotation):
                continue
            if paint(rng, placed, scene):
                ground.take(placed, annotation)
                annotations.append(annotation)
                break
    return annotations


def _place(rng: np.random.Generator, particle: Particle, ground: "_Ground") -> Particle:
    """Move a particle somewhere; a quarter of the fibres across one that is there already."""
    if particle.category_id == FIBER and ground.fibers and rng.random() < 0.25:
        other = ground.fibers[rng.integers(len(ground.fibers))].core
        target = other[rng.integers(len(other))]
        return particle.moved(*(target - particle.core[rng.integers(len(particle.core))]))
    return particle.moved(*rng.uniform(0.0, ground.size, 2))


class _Ground:
    """What lies where: decides whether one more particle has room."""

    def __init__(self, size: int, bar: dict | None):
        self.size = size
        self.fibers: list[Particle] = []
        self.bar = None
        if bar is not None:
            x, y, width, height = bar["bbox"]
            self.bar = box(x - 4, y - 4, x + width + 4, y + height + 4)
        # Of each particle: itself, its pixels inside the frame, how many of them are covered.
        self._laid: list[tuple[Particle, float, float]] = []

    def has_room(self, particle: Particle, annotation: dict[str, Any]) -> bool:
        """Whether it is seen well enough and leaves those below it well enough seen."""
        area = annotation["area"]
        inside = area / particle.outline.area
        if area < _MIN_AREA_PX or inside < _MIN_INSIDE:
            return False
        if self.bar is not None and particle.outline.intersection(self.bar).area > 0.05 * area:
            return False
        for other, other_area, covered in self._laid:
            shared = _shared_area(particle, other)
            both_compact = FIBER not in (particle.category_id, other.category_id)
            if both_compact and shared > _MAX_COMPACT_OVERLAP * min(area, other_area):
                return False
            if shared > _MAX_CROSSING * area and particle.category_id == other.category_id:
                return False
            if covered + shared > (1 - _MIN_VISIBLE) * other_area:
                return False
        return True

    def take(self, particle: Particle, annotation: dict[str, Any]) -> None:
        """Note a painted particle."""
        self._laid = [
            (other, area, covered + _shared_area(particle, other))
            for other, area, covered in self._laid
        ]
        self._laid.append((particle, annotation["area"], 0.0))
        if particle.category_id == FIBER:
            self.fibers.append(particle)


def _shared_area(one: Particle, other: Particle) -> float:
    a, b = one.outline.bounds, other.outline.bounds
    if a[0] > b[2] or b[0] > a[2] or a[1] > b[3] or b[1] > a[3]:
        return 0.0
    return one.outline.intersection(other.outline).area
