"""Presets and rendered images with annotations."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import shapely
from numpy.random import Generator
from pycocotools import mask as mask_util
from shapely.geometry import Polygon, box

from microplastics.structures.crop_masks import CropMasks
from microplastics.synthetic import camera, filters, particles
from microplastics.synthetic.camera import Scene, generator
from microplastics.synthetic.particles import BEAD, FIBER, FILM, FRAGMENT, Particle
from microplastics.utils.errors import check_option

# Maximum number of particles on a picture of any size and preset.
MAX_PARTICLES = 400
# Minimum fraction of a particle inside the frame, and minimum number of its pixels there.
_MIN_INSIDE, _MIN_AREA_PX = 0.4, 60
# Maximum fraction of a picture that beads cover.
_MAX_BEAD_COVER = 0.28

_FILTERS = {
    "glass_fiber": 0.28,
    "cellulose": 0.28,
    "polycarbonate": 0.20,
    "nylon_mesh": 0.10,
    "dark_polycarbonate": 0.14,
}
_BEAD_FILTERS = {
    "gold_membrane": 0.34,
    "clear_membrane": 0.18,
    "black_membrane": 0.30,
    "glowing_membrane": 0.18,
}
_MIX = {FILM: 0.25, FRAGMENT: 0.29, FIBER: 0.46}


@dataclasses.dataclass(frozen=True)
class Preset:
    """Parameters of one kind of picture."""

    filters: Mapping[str, float]  # frequency of each; they add up to 1
    mix: Mapping[int, float]  # the same of each kind of particle, lowest layer first
    particles_per_256: float = 6.5  # on 256 x 256 px (median); 0 for blanks
    spread: float = 0.5  # standard deviation of the logarithm of their number
    empty_fraction: float = 0.05  # of the pictures, without a particle
    scale_bar_fraction: float = 0.35  # of the pictures, with a burnt-in scale bar
    dirt: float = 1.0  # factor on natural debris, scratches and the filter's own loose fibres
    bubbles: float = 0.12  # of air, on 256 x 256 px (mean)
    crossing: float = 0.25  # fraction of the fibres that are laid across another one
    touching: float = 0.0  # fraction of the other particles that are set against another one
    max_overlap: float = 0.06  # fraction of a particle that another may cover, both no fibres
    max_crossing: float = 0.3  # fraction of a particle that another of its kind may cover
    min_visible: float = 0.6  # fraction of a particle that must stay uncovered
    min_contrast: float = 0.13  # colour difference (0 to 1) along most of a particle's contour
    blur: tuple[float, float] = (0.35, 0.95)  # range of the lens's, standard deviation in px
    defocus: float = 0.0  # of the lens away from the plane in focus, the same at most
    faint: float = 0.0  # fraction of the fibres that are colourless and nearly transparent
    throw: float = 1.0  # factor on the distance of particles from their shadows
    along_lines: float = 0.3  # fraction of the fibres along the lines of a gridded membrane
    caption_fraction: float = 0.0  # of the pictures, with a burnt-in line of text

    @property
    def categories(self) -> list[dict[str, Any]]:
        """COCO categories: the project's three, or the single one of beads."""
        return particles.BEAD_CATEGORIES if BEAD in self.mix else particles.CATEGORIES


PRESETS: Mapping[str, Preset] = {
    "default": Preset(_FILTERS, _MIX),
    "glass-filter": Preset({"glass_fiber": 1.0}, {FILM: 0.16, FRAGMENT: 0.26, FIBER: 0.58}),
    "cellulose": Preset({"cellulose": 1.0}, {FILM: 0.2, FRAGMENT: 0.3, FIBER: 0.5}, dirt=1.3),
    "darkfield": Preset({"dark_polycarbonate": 1.0}, _MIX, particles_per_256=8.0),
    "dense": Preset(
        _FILTERS,
        {FILM: 0.13, FRAGMENT: 0.37, FIBER: 0.5},
        particles_per_256=32.0,
        spread=0.25,
        empty_fraction=0.0,
        crossing=0.5,
        touching=0.5,
        max_overlap=0.12,
        max_crossing=0.4,
        min_visible=0.5,
    ),
    "blank": Preset(_FILTERS, _MIX, particles_per_256=0.0, dirt=3.0, bubbles=0.6),
    "dish": Preset(
        {"dish": 1.0},
        {FILM: 0.2, FRAGMENT: 0.4, FIBER: 0.4},
        scale_bar_fraction=0.6,
        bubbles=0.2,
        min_contrast=0.06,
        defocus=1.6,
        faint=0.3,
        throw=2.5,
        caption_fraction=0.5,
    ),
    "gridded": Preset(
        {"gridded_cellulose": 1.0},
        {FILM: 0.15, FRAGMENT: 0.3, FIBER: 0.55},
        dirt=1.3,
        min_contrast=0.06,
        defocus=1.0,
        faint=0.3,
        caption_fraction=0.15,
    ),
    "beads": Preset(
        _BEAD_FILTERS,
        {BEAD: 1.0},
        particles_per_256=4.5,
        spread=0.6,
        scale_bar_fraction=0.0,
        dirt=0.25,
        bubbles=0.0,
        touching=0.45,
        min_contrast=0.035,
        blur=(0.8, 2.4),
    ),
}


def find_preset(name: str) -> Preset:
    """Return a preset by name, or raise UserError."""
    check_option(name in PRESETS, "--preset", name, f"one of {', '.join(PRESETS)}")
    return PRESETS[name]


def render_image(
    seed: tuple[int | str, ...],
    size: int | tuple[int, int],
    um_per_px: float,
    preset: Preset = PRESETS["default"],
    blanks: filters.Blanks | None = None,
) -> tuple[np.ndarray, dict[str, Any], list[dict[str, Any]]]:
    """Draw one photograph of a filter, with exact annotations.

    Equal arguments give equal bytes in any process of the same machine and library versions. Each
    part (filter, particles, camera, …) has a random stream of its own.

    Args:
        seed: key of the picture, such as ``(seed, "train", index)``.
        size: side, or width and height, in px, at least 64.
        um_per_px: micrometres per pixel.
        preset: one of :data:`PRESETS`.
        blanks: photographs of empty filters that replace the drawn filter with its dirt, light
            and camera; None draws the filter.

    Returns:
        image: uint8 (height, width, 3), BGR, before JPEG.
        record: COCO image entry without ``id`` and ``file_name``: ``width``, ``height``,
            ``um_per_px``, ``filter``, ``jpeg_quality``, ``scale_bar`` if there is one (``um``,
            ``px``: drawn length in whole pixels, ``bbox``), ``caption`` if there is one (``text``,
            ``bbox``), and ``background``, the name of the photograph, if there are ``blanks``.
        annotations: COCO annotations without ``id`` and ``image_id``, see :func:`annotate`.
    """
    width, height = frame = frame_of(size)
    # Everything is drawn on a square, from which the frame is cut.
    side, photograph, disc, grid = max(frame), None, None, None
    if blanks is None:
        scene = filters.render_filter(seed, side, preset.filters)
    else:
        scene, photograph = filters.photographed_filter(seed, side, blanks)
    scene = dataclasses.replace(scene, throw=preset.throw, faint=preset.faint)
    rng = generator(*seed, "optics")
    record = {"width": width, "height": height, "um_per_px": um_per_px, "filter": scene.filter}
    record["jpeg_quality"] = int(rng.integers(84, 98))
    has_bar = rng.random() < preset.scale_bar_fraction
    bar = camera.plan_scale_bar(rng, width, um_per_px, height) if has_bar else None
    burnt = {"scale_bar": bar, "caption": _plan_caption(seed, frame, bar, preset)}
    burnt = {name: each for name, each in burnt.items() if each is not None}
    if photograph is None:
        disc, grid = _use(rng, seed, scene, um_per_px, preset)
    ground = Ground(size, [each["bbox"] for each in burnt.values()], preset, disc, grid)
    annotations = _lay_particles(generator(*seed, "particles"), scene, um_per_px, ground)
    if photograph is None:
        if preset.defocus:
            camera.defocus(generator(*seed, "defocus"), scene, preset.defocus)
        camera.soil_lens(rng, scene)
        image = camera.expose(rng, scene, preset.blur)
    else:
        image = photograph.retake(rng, scene)
        record["background"] = photograph.name
    image = np.ascontiguousarray(image[:height, :width])
    for name, each in burnt.items():
        camera.burn_in(image, each)
        record[name] = {key: each[key] for key in each if key not in ("ink", "plate")}
    return image, record, annotations


def frame_of(size: int | tuple[int, int]) -> tuple[int, int]:
    """Return the width and height in px of a picture of ``size``, a side or both."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


class Ground:
    """Particles laid so far, which decide whether another one has room."""

    def __init__(
        self,
        size: int | tuple[int, int],
        burnt: Sequence[Sequence[int]],
        preset: Preset,
        disc: Polygon | None = None,
        grid: filters.Grid | None = None,
    ):
        # The boxes of what is burnt in stay free; all particles must lie completely in the disc.
        self.frame, self.preset, self.disc, self.grid = frame_of(size), preset, disc, grid
        shapely.prepare(disc)
        self.fibers: list[Particle] = []
        self.compact: list[Particle] = []  # the other particles
        self.burnt = [box(x - 4, y - 4, x + w + 4, y + h + 4) for x, y, w, h in burnt]
        # Each particle with its number of pixels inside the frame and of covered pixels.
        self._laid: list[tuple[Particle, float, float]] = []
        self._boxes = np.empty((0, 4))

    def has_room(self, particle: Particle, annotation: dict[str, Any]) -> bool:
        """Whether a placed particle, and all below it, would be visible enough."""
        area = annotation["area"]
        inside = area / particle.outline.area
        if area < _MIN_AREA_PX or inside < _MIN_INSIDE:
            return False
        if any(particle.outline.intersection(each).area > 0.05 * area for each in self.burnt):
            return False
        for number in self._near(particle):
            other, other_area, covered = self._laid[number]
            overlap = particle.outline.intersection(other.outline).area
            kinds = particle.category_id, other.category_id
            if FIBER not in kinds and overlap > self.preset.max_overlap * min(area, other_area):
                return False
            if kinds[0] == kinds[1] and overlap > self.preset.max_crossing * area:
                return False
            if covered + overlap > (1 - self.preset.min_visible) * other_area:
                return False
        return True

    def take(self, particle: Particle, annotation: dict[str, Any]) -> None:
        """Record a painted particle."""
        for number in self._near(particle):
            other, area, covered = self._laid[number]
            covered += particle.outline.intersection(other.outline).area
            self._laid[number] = other, area, covered
        self._boxes = np.vstack([self._boxes, particle.outline.bounds])
        self._laid.append((particle, annotation["area"], 0.0))
        (self.fibers if particle.category_id == FIBER else self.compact).append(particle)

    def _near(self, particle: Particle) -> np.ndarray:
        """Return the numbers of the particles whose boxes meet that of a particle."""
        left, top, right, bottom = particle.outline.bounds
        x, y, x_end, y_end = self._boxes.T
        return np.flatnonzero((x <= right) & (x_end >= left) & (y <= bottom) & (y_end >= top))


def lay(
    rng: Generator,
    particle: Particle,
    scene: Scene,
    ground: Ground,
    um_per_px: float,
    painter: Callable[..., bool] = particles.paint,
    places: int = 6,
) -> dict[str, Any] | None:
    """Place, paint and annotate a particle about the origin.

    Returns:
        Its annotation, see :func:`annotate`; None, and nothing is painted, if every one of
        ``places`` lacks room or a colour that stands out.
    """
    for _ in range(places):
        placed = _place(rng, particle, ground)
        if ground.disc is not None and not ground.disc.contains(placed.outline):
            continue
        annotation = annotate(placed, ground.frame, um_per_px)
        if annotation is None or not ground.has_room(placed, annotation):
            continue
        if painter(rng, placed, scene, min_contrast=ground.preset.min_contrast):
            ground.take(placed, annotation)
            return annotation
    return None


def annotate(
    particle: Particle, size: int | tuple[int, int], um_per_px: float
) -> dict[str, Any] | None:
    """Annotate a particle: its whole body inside the frame, including parts under others.

    ``size`` is the side, or width and height, of the frame in px.

    One simple outline becomes a polygon; an outline with holes or in several pieces becomes RLE,
    rasterised ring by ring by pycocotools. ``area`` and ``bbox`` describe the mask.

    Returns:
        A COCO annotation without ids, with ``truth`` (see :meth:`Particle.truth`) and
        ``touches_edge``: the frame cuts the particle, or its mask meets the border, and ``truth``
        exceeds the visible part. None if no pixel of it is inside the frame.
    """
    columns, rows = frame_of(size)
    left, top, right, bottom = particle.outline.bounds
    cut = min(left, top) < 0 or right > columns or bottom > rows
    shape = particle.outline
    if cut:
        # A tube cut at a flat angle leaves a wedge with a tip that no pixel of the mask shows.
        shape = particles.opened(shape.intersection(box(0, 0, columns, rows)))
    # Clipping can leave points and lines, and collections of multipolygons.
    parts = shapely.get_parts(shapely.get_parts(shape))
    pieces = [part for part in parts if isinstance(part, Polygon) and part.area > 0.5]
    if not pieces:
        return None
    if len(pieces) == 1 and not pieces[0].interiors:
        segmentation: Any = [_ring(pieces[0].exterior)]
        rle = mask_util.frPyObjects(segmentation, rows, columns)[0]
    else:
        rle = segmentation = _rings_to_rle(pieces, columns, rows)
    area = int(mask_util.area(rle))
    if area == 0:
        return None
    x, y, width, height = (float(v) for v in mask_util.toBbox(rle))
    meets = min(x, y) <= 0 or x + width >= columns or y + height >= rows
    return {
        # Beads are the only class of their data sets.
        "category_id": 1 if particle.category_id == BEAD else particle.category_id,
        "segmentation": segmentation,
        "area": area,
        "bbox": [x, y, width, height],
        "iscrowd": 0,
        "touches_edge": bool(cut or meets),
        "truth": {k: float(f"{v:.8g}") for k, v in particle.truth(um_per_px).items()},
    }


def _ring(ring) -> list[float]:
    # A hundredth of a pixel is finer than the fifth to which pycocotools rounds.
    points = np.round(np.asarray(ring.coords)[:-1], 2)
    return points[(points != np.roll(points, 1, axis=0)).any(axis=1)].ravel().tolist()


def _rings_to_rle(pieces: list[Polygon], columns: int, rows: int) -> dict[str, Any]:
    """Rasterise polygons with holes inside the box that holds them, as full-frame RLE."""
    bounds = np.array([piece.bounds for piece in pieces])
    x, y = (int(v) for v in bounds[:, :2].min(0))
    right, bottom = (int(v) + 2 for v in bounds[:, 2:].max(0))
    right, bottom = min(right, columns), min(bottom, rows)
    mask = np.zeros((bottom - y, right - x), np.uint8)
    for piece in pieces:
        left, top, right, bottom = (int(v) for v in piece.bounds)
        width, height = min(right + 2, columns) - left, min(bottom + 2, rows) - top
        window = np.zeros((height, width), np.uint8)
        for ring, value in [(piece.exterior, 1)] + [(hole, 0) for hole in piece.interiors]:
            points = np.reshape(_ring(ring), (-1, 2)) - (left, top)
            rle = mask_util.frPyObjects([points.ravel().tolist()], height, width)[0]
            window[mask_util.decode(rle) > 0] = value
        mask[top - y : top - y + height, left - x : left - x + width] |= window
    return CropMasks([mask > 0], [(x, y)], (rows, columns)).to_rles(as_str=True)[0]


def _count(rng: Generator, area: int, preset: Preset) -> int:
    """Draw the number of particles: log-normal about a density, with some pictures empty."""
    if rng.random() < preset.empty_fraction or not preset.particles_per_256:
        return 0
    median = max(preset.particles_per_256 * (area / 256**2), 1.0)
    return int(np.clip(round(rng.lognormal(np.log(median), preset.spread)), 1, MAX_PARTICLES))


def _use(
    rng: Generator, seed: tuple[int | str, ...], scene: Scene, um_per_px: float, preset: Preset
) -> tuple[Polygon | None, filters.Grid | None]:
    """Print and soil an empty filter; return the bottom of its dish, and its grid."""
    disc = grid = None
    if scene.filter == "gridded_cellulose":
        grid = filters.print_grid(generator(*seed, "grid"), scene, um_per_px)
    debris = generator(*seed, "debris")
    filters.scatter_debris(debris, scene, preset.dirt * filters.draw_dirt(debris))
    filters.enclose_bubbles(generator(*seed, "bubbles"), scene, preset.bubbles)
    filters.shed_fibers(generator(*seed, "shed"), scene, preset.dirt)
    camera.scratch(rng, scene, preset.dirt)
    if scene.filter == "dish":
        disc = filters.lay_dish(generator(*seed, "dish"), scene)
    return disc, grid


def _plan_caption(
    seed: tuple[int | str, ...], frame: tuple[int, int], bar: dict | None, preset: Preset
) -> dict[str, Any] | None:
    rng = generator(*seed, "caption")
    has_caption = rng.random() < preset.caption_fraction
    return camera.plan_caption(rng, *frame, bar) if has_caption else None


def _lay_particles(
    rng: Generator, scene: Scene, um_per_px: float, ground: Ground
) -> list[dict[str, Any]]:
    """Make, place and paint the particles: films lowest, then fragments, fibres across all."""
    preset, size, area = ground.preset, min(ground.frame), math.prod(ground.frame)
    number = _count(rng, area, preset)
    kinds = rng.choice(list(preset.mix), size=number, p=list(preset.mix.values()))
    makers, painter = particles.MAKERS, particles.paint
    if BEAD in preset.mix:
        # The beads of a picture are of one batch; large ones are fewer.
        diameter = particles.bead_diameter(rng)
        painter = functools.partial(particles.paint_bead, look=particles.sphere_look(rng, diameter))
        makers = {BEAD: functools.partial(particles.make_bead, diameter=diameter)}
        kinds = kinds[: max(int(_MAX_BEAD_COVER * area / (np.pi / 4 * diameter**2)), 1)]
    annotations = []
    for kind in sorted(kinds, key=list(preset.mix).index):
        particle = makers[kind](rng, size)
        annotations.append(lay(rng, particle, scene, ground, um_per_px, painter))
    return [annotation for annotation in annotations if annotation is not None]


def _place(rng: Generator, particle: Particle, ground: Ground) -> Particle:
    """Move a particle from the origin to a random place, or across or against an earlier one."""
    preset = ground.preset
    if particle.category_id == FIBER:
        if ground.grid is not None and rng.random() < preset.along_lines:
            return ground.grid.onto(rng, particle, ground.frame)
        if ground.fibers and rng.random() < preset.crossing:
            other = ground.fibers[rng.integers(len(ground.fibers))].core
            target = other[rng.integers(len(other))]
            return particle.moved(*(target - particle.core[rng.integers(len(particle.core))]))
    elif ground.compact and preset.touching and rng.random() < preset.touching:
        other = ground.compact[rng.integers(len(ground.compact))]
        return _set_against(rng, particle, other)
    return particle.moved(*rng.uniform(0.0, ground.frame))


def _set_against(rng: Generator, particle: Particle, other: Particle) -> Particle:
    """Move a particle towards another one from a random side until they touch."""
    angle = rng.uniform(0, 2 * np.pi)
    toward = np.array([np.cos(angle), np.sin(angle)])
    boxes = np.reshape([particle.outline.bounds, other.outline.bounds], (2, 2, 2))
    reach = np.hypot(*np.ptp(boxes, axis=1).T).sum()
    placed = particle.moved(*(boxes[1].mean(axis=0) + reach * toward))
    for _ in range(12):
        # No step exceeds the gap: the outlines cannot pass through each other.
        gap = placed.outline.distance(other.outline)
        if gap < 0.3:
            break
        placed = placed.moved(*(-gap * toward))
    return placed
