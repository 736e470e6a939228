"""Whole filters as tiled TIFFs with COCO annotations."""

import contextlib
import dataclasses
import functools
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np
import shapely
import tifffile
from numpy.random import Generator
from tqdm import tqdm

from microplastics.synthetic import camera, filters
from microplastics.synthetic.camera import Scene, generator, smooth_noise
from microplastics.synthetic.dataset import check_parameters, choose_workers
from microplastics.synthetic.particles import BEAD, FIBER, MAKERS, make_long_fiber
from microplastics.synthetic.scene import Ground, Preset, find_preset, lay
from microplastics.utils.errors import UserError, check_option
from microplastics.utils.io import atomic_write, read_json, write_json
from microplastics.utils.system import map_in_processes

# Must be raised whenever the same parameters give another picture.
_VERSION = 3
MIN_SIZE, MAX_SIZE = 1024, 10_000
MAX_PARTICLES = 50_000
# Side in px of the tiles of the TIFF, and of the smallest copy in its pyramid.
_TILE, _SMALLEST_COPY = 512, 512
# Particles per megapixel of membrane by default, for presets with 6.5 on 256 x 256 px.
_PARTICLES_PER_MPX = 15.0
# Fraction of the particles that are long fibres, and their lengths as fractions of the side.
_LONG_FRACTION, _LONG = 0.02, (0.06, 0.3)
# Touching particles occur on every whole filter.
_TOUCHING = 0.12
# Image side passed to the makers of shapes: sizes in px do not grow with the filter.
_FRAME = 512
# Places tried for a particle, and its distance in px to the edge of the deposit.
_PLACES, _CLEARANCE = 40, 6.0
# Side in px of the texture, of the blocks cut from it, and of the band in which two blocks fade.
_TEXTURE, _BLOCK, _BAND = 2048, 1024, 64
# Rows processed at a time, and rows around them that lens and stitching reach, in px.
_ROWS, _PAD = 128, 16
# Slow changes are drawn at a resolution lower by this factor.
_COARSE = 16
# The weave of a mesh cannot continue from block to block; walls and print are not drawn here.
_UNFIT = ("nylon_mesh", "dish", "gridded_cellulose")


@dataclasses.dataclass(frozen=True)
class Membrane:
    """Position of the membrane in px."""

    center: tuple[float, float]  # (x, y)
    radius: float  # of the membrane's edge
    deposit_radius: float  # of the disc inside the funnel, in which all particles lie


def render_mosaic(
    output: str | os.PathLike,
    size: int = 10_000,
    um_per_px: float = 2.0,
    seed: int = 0,
    particles: int | None = None,
    preset: str = "default",
    filter_name: str | None = None,
    jpeg_quality: int | None = 92,
    workers: int | None = None,
) -> Path:
    """Render a stitched photograph of a whole filter, with exact annotations.

    The TIFF has tiles of 512 px, the scale in its resolution tags, and smaller copies as SubIFDs.
    Equal arguments give equal bytes, with any number of ``workers``. Both files are written
    completely or not at all; existing files of the same rendering are kept. Memory: 11 bytes per
    pixel (1.1 GB at 10,000 px) besides the libraries.

    Args:
        output: path of the TIFF; the annotations are written beside it, with the suffix ``.json``.
        size: side of the picture in px, 1,024 to 10,000.
        um_per_px: micrometres per pixel.
        seed: 0 or more.
        particles: number of particles; None takes 15 per megapixel of membrane for ``preset``
            ``default``, and in proportion to their density for the others.
        preset: name in :data:`microplastics.synthetic.scene.PRESETS`, without beads, dish and
            gridded.
        filter_name: one of the preset's filters; None draws one.
        jpeg_quality: of the tiles, 1 to 100; None compresses without loss (deflate).
        workers: processes; None uses all processors for large pictures.

    Returns:
        Path of the annotation file.

    Raises:
        UserError: a parameter is invalid, or the files cannot be written or belong to another
            rendering.
    """
    um_per_px = float(um_per_px)
    check_parameters(size, (MIN_SIZE, MAX_SIZE), um_per_px, seed)
    check_option(
        0 <= (particles or 0) <= MAX_PARTICLES, "--particles", particles, f"0 to {MAX_PARTICLES}"
    )
    quality = 100 if jpeg_quality is None else jpeg_quality
    check_option(1 <= quality <= 100, "--jpeg-quality", quality, "1 to 100")
    plain, fit = BEAD not in find_preset(preset).mix, _filters(preset)
    expected = "a preset of fibres, fragments and films on a filter without a printed grid"
    check_option(plain and bool(fit), "--preset", preset, expected)
    known, expected = filter_name is None or filter_name in fit, f"one of {', '.join(fit)}"
    check_option(known, "--filter", filter_name, f"{expected} for --preset {preset}")
    workers = choose_workers(workers, size**2)
    path = Path(output)
    is_tiff = path.suffix.lower() in (".tif", ".tiff")
    check_option(is_tiff, "--output", path, "a name that ends in .tif")
    # Everything that the file's bytes depend on.
    settings = {
        "renderer_version": _VERSION,
        "size": size,
        "um_per_px": um_per_px,
        "seed": seed,
        "particles": particles,
        "preset": preset,
        "filter_name": filter_name,
        "jpeg_quality": jpeg_quality,
    }
    annotations = path.with_suffix(".json")
    if _is_complete(path, annotations, settings):
        return annotations
    membrane = draw_membrane(seed, size)
    if particles is None:
        density = _PARTICLES_PER_MPX * find_preset(preset).particles_per_256 / 6.5
        particles = round(density * math.pi * membrane.deposit_radius**2 / 1e6)
        particles = min(particles, MAX_PARTICLES)
    scene = _empty_filter(seed, size, (preset, filter_name), membrane, workers)
    entries = _lay_particles(seed, scene, find_preset(preset), membrane, particles, um_per_px)
    image = _photograph(seed, scene.canvas, find_preset(preset).blur)
    with atomic_write(path, "wb") as file:
        _write_tiff(file, image, um_per_px, jpeg_quality)
        info = {
            "description": "Rendered photograph of a whole filter with microplastics (no real "
            "sample)",
            **settings,
            "particles_wanted": particles,
            "bytes": file.seek(0, os.SEEK_END),
        }
        record = {
            "id": 1,
            "file_name": path.name,
            "filter": scene.filter,
            "membrane": {k: np.round(v, 2).tolist() for k, v in vars(membrane).items()},
            "width": size,
            "height": size,
            "um_per_px": um_per_px,
        }
        coco = {
            "info": info,
            "images": [record],
            "annotations": [{"id": i, "image_id": 1, **e} for i, e in enumerate(entries, 1)],
            "categories": find_preset(preset).categories,
        }
        # Renamed first: an annotation file without its image is rendered again.
        write_json(annotations, coco)
    return annotations


def draw_membrane(seed: int, size: int) -> Membrane:
    """Draw the position of the membrane in a frame of ``size`` px."""
    rng = generator(seed, "membrane")
    x, y = size * (0.5 + rng.uniform(-0.008, 0.008, 2))
    radius = size * rng.uniform(0.47, 0.482)
    return Membrane((float(x), float(y)), radius, radius * rng.uniform(0.92, 0.95))


def _filters(preset_name: str) -> dict[str, float]:
    """Return the preset's filters that whole filters can be made of, and their frequencies."""
    every = find_preset(preset_name).filters
    fit = {name: weight for name, weight in every.items() if name not in _UNFIT}
    return {name: weight / sum(fit.values()) for name, weight in fit.items()}


def _is_complete(image: Path, annotations: Path, settings: dict[str, Any]) -> bool:
    """Whether both files of this rendering exist; refuse to overwrite others."""
    if not annotations.exists() and not image.exists():
        return False
    info = None
    with contextlib.suppress(UserError):  # missing or not ours, as the sentence below says
        info = read_json(annotations).get("info")
    if not isinstance(info, dict) or any(info.get(n) != value for n, value in settings.items()):
        raise UserError(
            f"{image if image.exists() else annotations} exists and holds other data; delete it "
            "with its JSON, or choose another --output.",
            code="output_exists",
        )
    return image.exists() and image.stat().st_size == info.get("bytes")


def _empty_filter(
    seed: int, size: int, kind: tuple[str, str | None], membrane: Membrane, workers: int
) -> Scene:
    """Draw the filter with its dirt on the stage, lit evenly, as float16."""
    # Blocks are cut from one texture, soiled each on its own, then faded over into each other.
    texture = _texture(seed, *kind)
    canvas = np.empty((size, size, 3), np.float16)
    canvas[:] = texture.canvas.mean((0, 1))
    starts = range(-_BAND, size, _BLOCK - _BAND)
    rng = generator(seed, "dirt")
    dirt = find_preset(kind[0]).dirt * filters.draw_dirt(rng)
    dirt = dirt * np.exp(0.5 * smooth_noise(rng, (len(starts), len(starts)), 1.5))
    tasks = [
        (x, y, seed, kind, float(dirt[j, i]))
        for j, y in enumerate(starts)
        for i, x in enumerate(starts)
    ]
    blocks = map_in_processes(_block, tasks, min(workers, len(tasks)), chunk=1)
    blocks = tqdm(blocks, "Rendering", len(tasks), unit="block", disable=None)
    for (x, y, *_), block in zip(tasks, blocks, strict=True):
        inside = block[max(-y, 0) : size - y, max(-x, 0) : size - x]
        canvas[max(y, 0) : y + _BLOCK, max(x, 0) : x + _BLOCK] += inside
    scene = Scene(canvas, texture.light, texture.filter, texture.dark)
    _stain(seed, scene)
    _mount(seed, scene, membrane)
    return scene


@functools.lru_cache(maxsize=1)
def _texture(seed: int, preset: str, filter_name: str | None) -> Scene:
    choice = _filters(preset) if filter_name is None else {filter_name: 1.0}
    return filters.bare_filter(generator(seed, "filter"), _TEXTURE, choice)


def _block(task: tuple[int, int, int, tuple[str, str | None], float]) -> np.ndarray:
    """Draw a block's deviation from the texture's mean, faded out at its border, as float16."""
    left, top, seed, kind, dirt = task
    preset, texture = find_preset(kind[0]), _texture(seed, *kind)
    rng = generator(seed, "block", left + _BAND, top + _BAND)
    x, y = rng.integers(0, _TEXTURE - _BLOCK + 1, 2)
    piece = texture.canvas[y : y + _BLOCK, x : x + _BLOCK].copy()
    scene = dataclasses.replace(texture, canvas=piece)
    filters.scatter_debris(rng, scene, dirt)
    filters.enclose_bubbles(rng, scene, preset.bubbles)
    filters.shed_fibers(rng, scene, preset.dirt)
    camera.scratch(rng, scene, preset.dirt)
    place = np.arange(_BLOCK, dtype=np.float32) + 0.5
    # The squares of the weights add up to 1: a plain mean of unlike textures would lose contrast.
    fade = np.sqrt(np.clip(np.minimum(place, place[::-1]) / _BAND, 0, 1))
    deviation = scene.canvas - texture.canvas.mean((0, 1))
    return (deviation * (fade[:, None] * fade)[..., None]).astype(np.float16)


def _strips(size: int) -> Iterator[slice]:
    for top in range(0, size, _ROWS):
        yield slice(top, min(top + _ROWS, size))


def _coarse_noise(rng: Generator, size: int, cell: float, scale: int = _COARSE) -> np.ndarray:
    """Draw noise over the picture at 1 / ``scale`` of the resolution."""
    side = size // scale + 2
    return smooth_noise(rng, (side, side), cell / scale)


def _enlarge(coarse: np.ndarray, rows: slice, size: int, scale: int = _COARSE) -> np.ndarray:
    """Return rows of coarse noise at full resolution, float32 (rows, size)."""
    matrix = np.array([[1 / scale, 0, 0], [0, 1 / scale, rows.start / scale]], np.float32)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(coarse, matrix, (size, rows.stop - rows.start), flags=flags)


def _stain(seed: int, scene: Scene) -> None:
    """Discolour parts of a fibrous filter with silt: soft brown clouds with a grainy edge."""
    size, rng = len(scene.canvas), generator(seed, "stain")
    if scene.filter not in ("glass_fiber", "cellulose") or rng.random() > 0.45:
        return
    strength = rng.uniform(0.25, 0.6)
    clouds = _coarse_noise(rng, size, 1300) + 0.45 * _coarse_noise(rng, size, 420)
    grain = 0.25 * _coarse_noise(rng, size, 6, scale=3)
    for rows in _strips(size):
        cloud = _enlarge(clouds, rows, size) + _enlarge(grain, rows, size, scale=3)
        amount = strength * np.clip((cloud - 0.5) * 0.6, 0, 1)
        scene.canvas[rows] *= 1 - amount[..., None] * np.array([0.45, 0.28, 0.16], np.float32)


def _mount(seed: int, scene: Scene, membrane: Membrane) -> None:
    """Cut the membrane out round, with the funnel's print, and put it on the dark stage."""
    size, rng = len(scene.canvas), generator(seed, "mount")
    wobble = np.stack([rng.normal(0, 0.0012, 5), rng.uniform(0, 6.28, 5)], 1)
    cake = (rng.uniform(0.0, 0.05) * np.array([1.0, 0.75, 0.6])).astype(np.float32)
    stage = (rng.uniform(0.02, 0.09) * rng.uniform(0.8, 1.1, 3)).astype(np.float32)
    clamp, haze = rng.uniform(0.03, 0.09), _coarse_noise(rng, size, 700)
    x = np.arange(size, dtype=np.float32)[None] + np.float32(0.5 - membrane.center[0])
    for rows in _strips(size):
        y = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None]
        y += np.float32(0.5 - membrane.center[1])
        r, angle = np.hypot(x, y), np.arctan2(y, x)
        edge = sum(a * np.cos((k + 2) * angle + b) for k, (a, b) in enumerate(wobble))
        inside, deposit = membrane.radius * (1 + edge) - r, membrane.deposit_radius - r
        canvas = scene.canvas[rows].astype(np.float32)
        # The sample left a thin cake; the funnel pressed a line around it.
        canvas *= 1 - np.clip(deposit / 40 + 0.5, 0, 1)[..., None] * cake
        toward = np.cos(angle - math.atan2(scene.light[1], scene.light[0]))
        tone = 1 - clamp * np.exp(-((deposit / 9) ** 2))
        tone += clamp * toward * np.exp(-(((deposit + 12) / 10) ** 2))
        # The edge is bent a little: lit on one side, shaded on the other.
        tone += (0.16 * toward - 0.05) * np.exp(-((inside / 14) ** 2))
        dust = np.clip(smooth_noise(rng, r.shape, 2.2) - 2.1, 0, 1)
        gray = 1 + 0.12 * _enlarge(haze, rows, size) + 2.0 * dust
        gray += 0.5 * np.exp(np.minimum(inside, 0) / 60)
        cover = np.clip(inside / 2.5 + 0.5, 0, 1)[..., None]
        canvas = canvas * tone[..., None] * cover + (1 - cover) * gray[..., None] * stage
        scene.canvas[rows] = np.clip(canvas, 0, 1.1)


def _lay_particles(
    seed: int, scene: Scene, preset: Preset, membrane: Membrane, count: int, um_per_px: float
) -> list[dict[str, Any]]:
    """Paint the particles: films lowest, then fragments, fibres across all, long ones first."""
    size = len(scene.canvas)
    preset = dataclasses.replace(preset, touching=max(preset.touching, _TOUCHING))
    disc = shapely.Point(membrane.center).buffer(membrane.deposit_radius - _CLEARANCE, quad_segs=90)
    ground = Ground(size, (), preset, disc)
    rng, annotations = generator(seed, "places"), []
    particles = list(_make_particles(generator(seed, "kinds"), size, preset.mix, count))
    for particle in tqdm(particles, "Laying particles", unit="particle", disable=None):
        annotation = lay(rng, particle, scene, ground, um_per_px, places=_PLACES)
        if annotation is not None:
            annotations.append(annotation)
    return annotations


def _make_particles(rng: Generator, size: int, mix: Mapping[int, float], count: int):
    """Make particles about the origin, lowest layer first."""
    kinds = sorted(rng.choice(list(mix), size=count, p=list(mix.values())), key=list(mix).index)
    fibers = kinds.count(FIBER)
    number = min(max(round(_LONG_FRACTION * count), 3), fibers)
    lengths = size * np.exp(rng.uniform(*np.log(_LONG), number))
    lengths[:1] = size * _LONG[1]
    for kind in kinds[: count - fibers]:
        yield MAKERS[kind](rng, _FRAME)
    for length in lengths:
        yield make_long_fiber(rng, length)
    for _ in range(fibers - number):
        yield MAKERS[FIBER](rng, _FRAME)


def _photograph(seed: int, canvas: np.ndarray, blur: tuple[float, float]) -> np.ndarray:
    """Light the scene and photograph it with one camera, uint8 (size, size, 3), RGB."""
    size, rng = len(canvas), generator(seed, "camera")
    lens = camera.draw_camera(rng, blur)
    demosaic = rng.random() < camera.MOSAIC
    light = _light(seed, size)
    image = np.empty(canvas.shape, np.uint8)
    noise, drawn = np.empty((0, size, 3), np.float32), 0
    for rows in _strips(size):
        padded = slice(max(rows.start - _PAD, 0), min(rows.stop + _PAD, size))
        strip = lens.focus(canvas[padded].astype(np.float32) * light(padded))
        # Demosaicing correlates noise across the border of strips: it continues there.
        old = noise[len(noise) - (drawn - padded.start) :]
        new = rng.standard_normal((padded.stop - drawn, *strip.shape[1:]), dtype=np.float32)
        noise, drawn = np.concatenate([old, new]), padded.stop
        taken = lens.sense(strip, noise, demosaic)[..., ::-1]
        image[rows] = taken[rows.start - padded.start :][: rows.stop - rows.start]
    return image


def _light(seed: int, size: int) -> Callable[[slice], np.ndarray]:
    """Draw uneven light; return a function that gives rows of it, float32 (rows, size, 3)."""
    rng = generator(seed, "light")
    angle, slope = rng.uniform(0, 2 * np.pi), rng.uniform(0.02, 0.10)
    slopes = slope * math.cos(angle), slope * math.sin(angle)
    fall = rng.uniform(0.02, 0.10)
    clouds = rng.uniform(0.005, 0.02) * _coarse_noise(rng, size, size / 4)
    cast = (rng.uniform(0.88, 1.05) * camera.draw_cast(rng)).astype(np.float32)
    # The stitching has levelled the microscope's fields, but not quite: each has its own gain, and
    # all have in common a residue of the lens's vignetting and the dust on the camera.
    width = round(rng.uniform(1000, 1500))
    height = round(0.75 * width)
    start = rng.integers((height, width))
    y, x = np.mgrid[:height, :width].astype(np.float32)
    u, v = (x + 0.5) / width * 2 - 1, (y + 0.5) / height * 2 - 1
    field = 1 - rng.uniform(0.012, 0.04) * (u**2 + v**2) / 2
    veil = rng.uniform(0.015, 0.04)
    for _ in range(rng.poisson(1.5)):
        far = np.hypot(x - rng.uniform(0, width), y - rng.uniform(0, height))
        field *= 1 - veil * np.exp(-((far / rng.uniform(4, 10)) ** 4))
    fields = (size // height + 2, size // width + 2)
    gains = rng.uniform(0.004, 0.011) * rng.standard_normal(fields, dtype=np.float32)

    def strip(rows: slice) -> np.ndarray:
        y = np.arange(rows.start, rows.stop)[:, None]
        x = np.arange(size)[None]
        v, u = (2 * place.astype(np.float32) / size - 1 for place in (y, x))
        light = 1 + slopes[0] * u + slopes[1] * v - fall * (u**2 + v**2) / 2
        light += _enlarge(clouds, rows, size)
        y, x = y + start[0], x + start[1]
        fields = field[y % height, x % width] + gains[y // height, x // width]
        # Stitching fades neighbours over into each other.
        return (light * cv2.blur(fields, (7, 7)))[..., None] * cast

    return strip


def _write_tiff(
    file: IO[bytes], image: np.ndarray, um_per_px: float, jpeg_quality: int | None
) -> None:
    """Write an RGB picture and its copies, each a quarter as large, as a tiled pyramid."""
    copies = [image]
    while (side := copies[-1].shape[0] // 4) >= _SMALLEST_COPY:
        copies.append(cv2.resize(copies[-1], (side, side), interpolation=cv2.INTER_AREA))
    options: dict[str, Any] = {"photometric": "rgb", "tile": (_TILE, _TILE), "metadata": None}
    if jpeg_quality is None:
        options |= {"compression": "adobe_deflate", "predictor": True}
    else:
        options |= {"compression": "jpeg", "compressionargs": {"level": jpeg_quality}}
    first = {
        "subifds": len(copies) - 1,
        "software": "microplastics",
        "description": "Rendered photograph of a whole filter (no real sample)",
    }
    # The name of a temporary file is a number, which tifffile does not accept.
    handle = tifffile.FileHandle(file, name="filter.tif", size=0)
    with tifffile.TiffWriter(handle) as tiff:
        for number, copy in enumerate(copies):
            per_cm = (1e4 / um_per_px / 4**number,) * 2
            other = {"subfiletype": 1} if number else first
            tiff.write(copy, resolution=per_cm, resolutionunit="CENTIMETER", **options, **other)
