"""Empty filters, drawn or photographed, and their debris."""

import collections
import dataclasses
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
from numpy.random import Generator
from shapely.geometry import Point, Polygon
from tqdm import tqdm

from microplastics.data.coco import load_instances
from microplastics.data.formats.layout import IMAGE_SUFFIXES, list_files
from microplastics.data.images import read_image
from microplastics.synthetic.camera import (
    Scene,
    draw_hairline,
    fractal_noise,
    generator,
    relief,
    scratch,
    smooth_noise,
    walk,
)
from microplastics.synthetic.particles import Particle
from microplastics.utils.errors import UserError
from microplastics.utils.io import atomic_write

# Filters on which particles shine.
DARK_FILTERS = ("dark_polycarbonate", "black_membrane", "glowing_membrane")
# Filters with stains and loose fibres of their own.
_FIBROUS = ("glass_fiber", "cellulose", "gridded_cellulose")
# Side of the squares of gridded membranes in µm.
_SQUARE_UM = 3000.0
# A photograph below this median brightness (0 to 1) counts as dark field.
_DARK_BELOW = 0.35
# Approximate brightness of the drawn filters, which particles are shaded for.
_PLAIN_LEVEL = 0.8
# Decoded photographs that a process keeps.
_CACHE_BYTES = 256 * 2**20
_cache: collections.OrderedDict[str, np.ndarray] = collections.OrderedDict()
_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Blanks:
    """Photographs of empty filters."""

    root: str  # their folder
    files: tuple[str, ...]  # their paths below it with "/", sorted
    bytes: int  # total size of the files


@dataclasses.dataclass(frozen=True)
class Grid:
    """Two families of parallel lines, printed at right angles."""

    angle: float  # of the first family's normal to the x axis, in rad
    pitch: float  # distance of neighbouring lines in px
    shifts: tuple[float, float]  # of both families along their normals in px
    width: float  # of a line in px

    def offset(self, family: int, x, y):
        """Compute how far (x, y) lie beyond the nearest line of family 0 or 1, in px."""
        x, y = ((x, y), (y, -x))[family]
        place = x * math.cos(self.angle) + y * math.sin(self.angle) + self.shifts[family]
        return np.mod(place, self.pitch) - self.pitch / 2

    def onto(self, rng: Generator, particle: Particle, frame: tuple[int, int]) -> Particle:
        """Turn and move a fibre from the origin along a random line of a frame (px)."""
        family, point = int(rng.integers(2)), rng.uniform(0, frame)
        normal = self.angle + (0, math.pi / 2)[family]
        off = self.offset(family, *point) + rng.normal(0, 0.5 * self.width)
        chord = particle.core[-1] - particle.core[0]
        turn = normal + math.pi / 2 - math.atan2(chord[1], chord[0]) + rng.normal(0, 0.06)
        return particle.turned(turn).moved(
            *(point - off * np.array([math.cos(normal), math.sin(normal)]))
        )


@dataclasses.dataclass(frozen=True)
class Photograph:
    """A photographed filter, with the camera that drawn particles must look taken by."""

    name: str  # its path below its folder
    pixels: np.ndarray  # float32 (size, size, 3), BGR, 0 to 1: the piece under the particles
    light: np.ndarray  # float32, broadcast against it: factor from the evenly lit scene to it
    blur: float  # of the lens, standard deviation in px
    noise: float  # of a channel, standard deviation, 0 to 1

    def retake(self, rng: Generator, scene: Scene) -> np.ndarray:
        """Add the particles drawn on its scene, with blur and noise: uint8 (size, size, 3), BGR."""
        drawn = scene.canvas * self.light - self.pixels
        cover = scene.cover
        if self.blur > 0.3:
            drawn = cv2.GaussianBlur(drawn, (0, 0), self.blur)
            cover = cv2.GaussianBlur(cover, (0, 0), self.blur)
        # A particle hides the photograph's noise below it, and gets as much of its own.
        noise = cv2.GaussianBlur(rng.standard_normal(drawn.shape, dtype=np.float32), (0, 0), 0.6)
        noise *= self.noise / max(float(noise.std()), 1e-6)
        hidden = np.sqrt(np.clip(1 - (1 - cover) ** 2, 0, 1))
        image = self.pixels + drawn + noise * hidden[..., None]
        return np.clip(image * 255 + 0.5, 0, 255).astype(np.uint8)


def render_filter(key: tuple[int | str, ...], size: int, filters: Mapping[str, float]) -> Scene:
    """Draw an empty filter, lit evenly; ``filters`` are frequencies that add up to 1."""
    rng = generator(*key, "filter")
    scene = bare_filter(rng, size, filters)
    if scene.filter in _FIBROUS and rng.random() < 0.45:
        _stain(rng, scene.canvas)
    if scene.filter in ("cellulose", "polycarbonate") and rng.random() < 0.25:
        _printed_grid(rng, scene.canvas)
    return scene


def bare_filter(rng: Generator, size: int, filters: Mapping[str, float]) -> Scene:
    """Draw the texture of a filter, without stains and print, see :func:`render_filter`."""
    kind = str(rng.choice(list(filters), p=list(filters.values())))
    angle = rng.uniform(0, 2 * np.pi)
    light = np.array([math.cos(angle), math.sin(angle)])
    gray, color = _DRAW[kind](rng, size, light)
    canvas = np.clip(gray[..., None] * np.asarray(color, np.float32), 0, 1.1).astype(np.float32)
    return Scene(canvas, light, kind, kind in DARK_FILTERS)


def draw_dirt(rng: Generator) -> float:
    """Draw the dirtiness of a filter: log-normal, mostly below 1."""
    return rng.lognormal(-0.35, 0.8)


def scatter_debris(rng: Generator, scene: Scene, dirt: float) -> None:
    """Scatter natural matter over a scene, with a density as of :func:`draw_dirt`."""
    size = scene.canvas.shape[0]
    dirt = dirt * (size / 256) ** 2
    _specks(rng, scene, int(min(14 * dirt, 4000)))
    for draw, mean in ((_grain, 2.5), (_flake, 1.0), (_thread, 0.9), (_pollen, 0.35)):
        for _ in range(min(int(rng.poisson(mean * dirt)), 400)):
            draw(rng, scene)


def enclose_bubbles(rng: Generator, scene: Scene, mean: float) -> None:
    """Enclose air bubbles, ``mean`` on 256 x 256 px: round, colourless, with a bright middle.

    The rim is broad and dark in bright field, and a thin bright ring in dark field.
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


def shed_fibers(rng: Generator, scene: Scene, amount: float) -> None:
    """Shed a fibrous filter's own fibres: colourless, 1 to 2 px thin, visible by their relief."""
    if scene.filter not in _FIBROUS:
        return
    size = scene.canvas.shape[0]
    for _ in range(min(int(rng.poisson(0.5 * amount * (size / 256) ** 2)), 400)):
        count, reach = 12, rng.uniform(40, 170)
        heading = rng.uniform(0, 6.28) + np.cumsum(rng.normal(0, 0.06, count))
        start = rng.uniform(0, size, 2)
        window, line = draw_hairline(scene, walk(start, heading, reach / count)[1:])
        if not line.size:
            continue
        soft = cv2.GaussianBlur(line, (0, 0), rng.uniform(0.6, 0.9))
        shade = rng.uniform(0.5, 1.2) * relief(soft, scene.light) - rng.uniform(0.0, 0.14) * soft
        window += shade[..., None]


def find_blanks(folder: str | os.PathLike) -> Blanks:
    """Find the images in a folder and its sub-folders, by their suffix.

    Hidden files and folders are skipped; other files are named in a warning.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(
            f"--backgrounds {root} is not a folder; expected a folder of blank images.",
            code="file_missing",
        )
    names, others = [], []
    for name in list_files(root, None):
        is_image = Path(name).suffix.lower() in IMAGE_SUFFIXES and (root / name).is_file()
        (names if is_image else others).append(name)
    if not names:
        raise UserError(
            f"--backgrounds {root} contains no image; put blank filter images there.",
            code="input_empty",
        )
    if others:
        words = "%d files in %s are not images and are ignored, such as %s."
        _logger.warning(words, len(others), root, min(others))
    total = sum((root / name).stat().st_size for name in names)
    return Blanks(os.fspath(root), tuple(sorted(names)), total)


def check_blanks(blanks: Blanks, size: int) -> None:
    """Refuse photographs that cannot be decoded, or have a side below half of ``size``."""
    for name in tqdm(blanks.files, "Checking backgrounds", unit="image", disable=None):
        path = Path(blanks.root, name)
        height, width = read_image(path).shape[:2]
        # A smaller one would show its mirror image more often than itself.
        if 2 * min(height, width) < size:
            raise UserError(
                f"{path} is {width} x {height} px; expected at least half of --size {size} on "
                "each side.",
                code="image_size",
            )


def photographed_filter(
    key: tuple[int | str, ...], size: int, blanks: Blanks
) -> tuple[Scene, Photograph]:
    """Take a random piece of a random photograph as an empty filter.

    It is turned by right angles, mirrored and made up to 8 % brighter or darker at random; a
    photograph smaller than the picture is continued by its mirror image.

    Returns:
        The scene, evenly lit, and the photograph that finishes it.
    """
    rng = generator(*key, "background")
    name = blanks.files[rng.integers(len(blanks.files))]
    path = os.path.join(blanks.root, name)
    image = _decoded(path)
    short = [max(size - side, 0) for side in image.shape[:2]]
    if any(short):
        edges = (short[0] // 2, -(-short[0] // 2), short[1] // 2, -(-short[1] // 2))
        image = cv2.copyMakeBorder(image, *edges, cv2.BORDER_REFLECT_101)
    top, left = (int(rng.integers(side - size + 1)) for side in image.shape[:2])
    piece = np.rot90(image[top : top + size, left : left + size], int(rng.integers(4)))
    if rng.random() < 0.5:
        piece = piece[:, ::-1]
    photograph = np.ascontiguousarray(piece, np.float32) / 255
    photograph = np.clip(photograph * np.float32(rng.uniform(0.92, 1.08)), 0, 1)
    blur, noise = camera_of(photograph[..., 1])
    dark = float(np.median(photograph.mean(2))) < _DARK_BELOW
    lamp = _light(photograph, dark)
    angle = rng.uniform(0, 2 * np.pi)
    direction = np.array([np.cos(angle), np.sin(angle)])
    cover = np.zeros((size, size), np.float32)
    scene = Scene(photograph / lamp, direction, "photograph", dark, cover)
    return scene, Photograph(name, photograph, lamp, blur, noise)


def camera_of(gray: np.ndarray) -> tuple[float, float]:
    """Estimate blur and noise from the spectrum of a photograph.

    Model of the power at spatial frequency f (cycles per pixel): a f^-p exp(-(2 pi f s)^2) + n,
    a natural texture (Field 1987) with the lens's Gaussian blur s and white noise n.

    Returns:
        (standard deviation of the blur in px, 0.3 to 4; of the noise, 0 to 0.1).
    """
    height, width = (min(side, 512) for side in gray.shape)
    window = np.hanning(height)[:, None] * np.hanning(width)[None]
    part = (gray[:height, :width] - gray[:height, :width].mean()) * window
    power = np.abs(np.fft.rfft2(part)) ** 2 / (window**2).sum()
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    bins = np.minimum((radius * 80).astype(int), 41)
    counts = np.bincount(bins.ravel(), minlength=42)
    mean = np.bincount(bins.ravel(), power.ravel(), minlength=42) / np.maximum(counts, 1)
    # The lowest frequencies are the lamp; only the spectrum's corners go beyond 0.5.
    f, mean = (np.arange(4, 40) + 0.5) / 80, np.maximum(mean[4:40], 1e-9)
    best = (np.inf, 0.6, 0.0)
    for exponent in (1.0, 1.5, 2.0):
        for blur in np.linspace(0.3, 4.0, 38):
            texture = f**-exponent * np.exp(-((2 * np.pi * f * blur) ** 2))
            basis = np.stack([texture / texture[0], np.full_like(f, mean[-1])], 1) / mean[:, None]
            weights = np.linalg.lstsq(basis, np.ones_like(f), rcond=None)[0].clip(0)
            error = float(((basis @ weights - 1) ** 2).sum())
            if error < best[0]:
                best = (error, float(blur), float(np.sqrt(weights[1] * mean[-1])))
    return best[1], min(best[2], 0.1)


def largest_free_square(boxes: np.ndarray, width: int, height: int) -> tuple[int, int, int]:
    """Find the largest square of an image that overlaps no box, float (N, 4), x0, y0, x1, y1.

    A pixel with chessboard distance d to the nearest occupied pixel is the centre of a free
    square of side 2 d - 1. Boxes may reach out of the image.

    Returns:
        left, top and side in px; the side is 0 if no pixel is free.
    """
    # A frame of occupied pixels: the square ends at the border.
    free = np.pad(np.ones((height, width), np.uint8), 1)
    edges = np.concatenate([np.floor(boxes[:, :2]), np.ceil(boxes[:, 2:])], axis=1)
    for left, top, right, bottom in 1 + edges.clip(0, (width, height) * 2).astype(int):
        free[top:bottom, left:right] = 0
    distance = cv2.distanceTransform(free, cv2.DIST_C, 3)
    row, column = np.unravel_index(int(distance.argmax()), distance.shape)
    radius = int(distance[row, column])
    # Four adjacent centres of such squares are the middle of a square of side 2 d.
    full = distance == radius
    middle = full[:-1, :-1] & full[1:, :-1] & full[:-1, 1:] & full[1:, 1:]
    if not middle.any():
        return int(column) - radius, int(row) - radius, 2 * radius - 1
    row, column = np.unravel_index(int(middle.argmax()), middle.shape)
    return int(column) - radius, int(row) - radius, 2 * radius


def cut_blank_windows(
    json_file: str | os.PathLike,
    image_root: str | os.PathLike,
    output: str | os.PathLike,
    min_size: int = 256,
    margin: int = 25,
) -> tuple[list[Path], list[str]]:
    """Write the largest particle-free square of each image of a COCO JSON as a PNG.

    Images without a square of ``min_size`` px are skipped. ``margin`` px are kept free around each
    particle, for its halo.

    Returns:
        The files written, and the images skipped.
    """
    if min_size < 1 or margin < 0:
        raise UserError(
            f"--min-size {min_size} or --margin {margin} is too small; expected at least 1 and "
            "0 px.",
            code="option_invalid",
        )
    output, written, without = Path(output), [], []
    for image in tqdm(load_instances(json_file, image_root), desc="Cutting", disable=None):
        boxes = np.array([a["bbox"] for a in image["annotations"]], float).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        boxes += (-margin, -margin, margin, margin)
        x, y, side = largest_free_square(boxes, image["width"], image["height"])
        if side < min_size:
            without.append(image["file_name"])
            continue
        pixels = read_image(image["file_name"], expected_size=(image["width"], image["height"]))
        source = Path(image["file_name"])
        folder = output / os.path.relpath(source.parent, image_root)
        path = folder / f"{source.stem}_{x}_{y}.png"
        if path in written:
            path = folder / f"{source.stem}_{source.suffix[1:]}_{x}_{y}.png"
        _, encoded = cv2.imencode(".png", pixels[y : y + side, x : x + side])
        with atomic_write(path, "wb") as file:
            file.write(encoded.tobytes())
        written.append(path)
    if not written:
        raise UserError(
            f"{json_file} has no image with a particle-free square of {min_size} px; lower "
            "--min-size or --margin.",
            code="input_empty",
        )
    return written, without


def _glass_fiber(rng: Generator, size: int, light: np.ndarray):
    """Draw a mat of fine glass fibres: layers of thin threads, the deeper ones blurred."""
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


def _cellulose(rng: Generator, size: int, light: np.ndarray):
    """Draw a felt of mixed cellulose esters: fine sponge with pores."""
    shape = (size, size)
    sponge = fractal_noise(rng, shape, (2.2, 4.5, 9), 0.7)
    clouds = fractal_noise(rng, shape, (70, 25), 0.5)
    pores = np.clip(fractal_noise(rng, shape, (2.8, 5), 0.6) - 1.3, 0, 1.5)
    gray = rng.uniform(0.70, 0.88) + 0.015 * clouds - rng.uniform(0.04, 0.09) * pores
    gray += rng.uniform(0.03, 0.055) * relief(sponge, light) + 0.009 * sponge
    return gray, rng.normal((0.93, 0.98, 1.0), 0.02)


def _gridded_cellulose(rng: Generator, size: int, light: np.ndarray):
    """Draw the felt of a gridded membrane without its print, with shallow wrinkles."""
    gray, color = _cellulose(rng, size, light)
    folds = -np.abs(fractal_noise(rng, (size, size), (size / 2.5, size / 6), 0.4))
    folds = cv2.GaussianBlur(folds, (0, 0), size / 170)
    return gray + size / 512 * rng.uniform(0.3, 2.5) * relief(folds, light), color


def _dish(rng: Generator, size: int, light: np.ndarray):
    """Draw the bottom of a dish of clear plastic on a stage: smooth, with cloudy reflections."""
    clouds = fractal_noise(rng, (size, size), (size / 2, size / 5, size / 20), 0.4)
    grain = fractal_noise(rng, (size, size), (2.5, 6), 0.6)
    gray = rng.uniform(0.62, 0.88) + rng.uniform(0.01, 0.035) * clouds
    gray += rng.uniform(0.003, 0.012) * grain
    return gray, rng.choice([(1.0, 1.0, 1.0), (1.0, 0.97, 0.92), (0.86, 0.94, 1.0)])


def _polycarbonate(rng: Generator, size: int, light: np.ndarray):
    """Draw a smooth track-etched membrane: round pores of one size, a few of them doublets."""
    gray = _track_etched(rng, size, light, rng.uniform(0.03, 0.09))
    gray += rng.uniform(0.55, 0.78)
    return gray, rng.choice([(0.93, 0.99, 1.0), (1.0, 1.0, 0.95), (0.8, 0.93, 1.0)])


def _dark_polycarbonate(rng: Generator, size: int, light: np.ndarray):
    """Draw a track-etched membrane black or in dark field, with glimmering pores."""
    gray = rng.uniform(0.07, 0.15) - _track_etched(rng, size, light, rng.uniform(0.03, 0.07))
    return gray, rng.choice([(0.85, 0.95, 1.0), (1.0, 0.97, 0.93), (0.75, 0.9, 1.0)])


def _track_etched(rng: Generator, size: int, light: np.ndarray, depth: float):
    """Draw the grey values of pores (below 0) and faint unevenness (about 0)."""
    count = int(size * size / rng.uniform(90, 420))
    pores = np.zeros((size, size), np.float32)
    spots = rng.integers(0, size, (2, count))
    np.add.at(pores, tuple(spots), rng.uniform(0.6, 1.0, count).astype(np.float32))
    sigma = rng.uniform(0.8, 1.3)
    pores = np.minimum(cv2.GaussianBlur(pores, (0, 0), sigma) * (6.28 * sigma**2), 1.6)
    uneven = fractal_noise(rng, pores.shape, (90, 30, 3), 0.5)
    return 0.012 * uneven - depth * pores - 1.2 * depth * relief(-pores, light)


def _nylon_mesh(rng: Generator, size: int, light: np.ndarray):
    """Draw a plain weave of threads over and under each other, holes between them."""
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


def _gold_membrane(rng: Generator, size: int, light: np.ndarray):
    """Draw a gold-coated membrane at high magnification: brown to orange, grained, clouded."""
    grain = fractal_noise(rng, (size, size), (2.0, 3.5, 7), 0.7)
    clouds = fractal_noise(rng, (size, size), (size / 3, size / 8), 0.6)
    gray = rng.uniform(0.42, 0.75) + rng.uniform(0.004, 0.03) * grain
    gray += rng.uniform(0.005, 0.03) * clouds
    if rng.random() < 0.25:
        gray -= _holes(rng, size) * rng.uniform(0.1, 0.4)
    return gray, np.array([0.35, 0.66, 1.0]) + rng.normal(0, (0.06, 0.04, 0.01))


def _clear_membrane(rng: Generator, size: int, light: np.ndarray):
    """Draw a bare membrane with its grain out of focus: an even blue-grey haze."""
    haze = fractal_noise(rng, (size, size), (size / 3, size / 9, 6), 0.4)
    gray = rng.uniform(0.55, 0.74) + rng.uniform(0.004, 0.012) * haze
    if rng.random() < 0.3:
        gray += 0.2 * _holes(rng, size)
    return gray, rng.normal((0.97, 1.0, 0.93), 0.02)


def _black_membrane(rng: Generator, size: int, light: np.ndarray):
    """Draw a dark field: black, with a faint brown glimmer of the membrane's pores."""
    glimmer = np.clip(fractal_noise(rng, (size, size), (2.5, 5), 0.7) - 0.6, 0, 2)
    clouds = np.clip(1 + 0.7 * fractal_noise(rng, (size, size), (size / 3,)), 0, 3)
    gray = rng.uniform(0.01, 0.06) * clouds + rng.uniform(0.0, 0.12) * glimmer
    return gray, np.array([0.35, 0.6, 1.0]) + rng.normal(0, 0.08, 3)


def _glowing_membrane(rng: Generator, size: int, light: np.ndarray):
    """Draw a dark field filled with light scattered by the membrane: olive, soft, clouded."""
    clouds = fractal_noise(rng, (size, size), (size / 2, size / 5, size / 14), 0.6)
    grain = fractal_noise(rng, (size, size), (3.0, 6), 0.7)
    gray = rng.uniform(0.33, 0.66) + rng.uniform(0.01, 0.04) * clouds + 0.006 * grain
    return gray, rng.choice([(0.55, 0.9, 1.0), (0.42, 0.8, 1.0), (0.75, 0.98, 1.0)])


def _holes(rng: Generator, size: int) -> np.ndarray:
    """Draw coarse pores, 0 to 1: soft discs of one size."""
    pores = np.zeros((size, size), np.float32)
    spots = rng.integers(0, size, (2, int(size * size / rng.uniform(150, 700))))
    pores[tuple(spots)] = 1
    sigma = rng.uniform(1.0, 2.4)
    return np.minimum(cv2.GaussianBlur(pores, (0, 0), sigma) * (6.28 * sigma**2), 1)


_DRAW = {
    "glass_fiber": _glass_fiber,
    "cellulose": _cellulose,
    "gridded_cellulose": _gridded_cellulose,
    "dish": _dish,
    "polycarbonate": _polycarbonate,
    "nylon_mesh": _nylon_mesh,
    "dark_polycarbonate": _dark_polycarbonate,
    "gold_membrane": _gold_membrane,
    "clear_membrane": _clear_membrane,
    "black_membrane": _black_membrane,
    "glowing_membrane": _glowing_membrane,
}


def _stain(rng: Generator, canvas: np.ndarray) -> None:
    """Let silt discolour parts of the filter: soft brown clouds with a grainy edge."""
    shape = canvas.shape[:2]
    cloud = fractal_noise(rng, shape, (max(shape) / 3, max(shape) / 8, 6, 2.5), 0.45)
    amount = np.clip((cloud - 0.5) * 0.5, 0, 1) * rng.uniform(0.25, 0.7)
    tint = np.array([0.55, 0.72, 0.84], np.float32) * rng.uniform(0.9, 1.05)
    canvas *= 1 - amount[..., None] * (1 - tint)


def _printed_grid(rng: Generator, canvas: np.ndarray) -> None:
    """Print the grid of counting filters: straight lines of ink soaked into the felt."""
    size = canvas.shape[0]
    pitch = max(rng.uniform(0.55, 1.3) * size, 180)
    angle, width = rng.uniform(-0.2, 0.2), rng.uniform(5, 11)
    grid = Grid(angle, pitch, tuple(rng.uniform(0, pitch, 2).tolist()), width)
    rows, columns = np.mgrid[:size, :size].astype(np.float32)
    lines = _lines(grid, columns, rows)
    lines *= np.clip(0.75 + 0.25 * fractal_noise(rng, (size, size), (3, 8)), 0, 1)
    inks = np.array([(0.55, 0.75, 0.45), (0.6, 0.6, 0.6), (0.85, 0.6, 0.45)], np.float32)
    ink = inks[rng.integers(len(inks))]
    canvas *= 1 - (rng.uniform(0.5, 0.8) * lines)[..., None] * (1 - ink)


def _lines(grid: Grid, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Compute the ink of a grid at pixels, float32, 0 to 1, with soft edges."""
    off = np.minimum(*(np.abs(grid.offset(family, x, y)) for family in (0, 1)))
    return np.clip((grid.width / 2 - off) / 2.5 + 0.5, 0, 1)


def print_grid(rng: Generator, scene: Scene, um_per_px: float) -> Grid:
    """Print the squares of a gridded membrane in dark green, black or blue ink.

    They have 3 mm, or 0.35 to 0.9 times the picture's side where 3 mm are less or more. The lines
    bend with the membrane, and their ink is patchy.
    """
    size = scene.canvas.shape[0]
    pitch = float(np.clip(_SQUARE_UM / um_per_px, 0.35 * size, 0.9 * size))
    shifts = tuple(rng.uniform(0, pitch, 2).tolist())
    grid = Grid(rng.uniform(0, np.pi / 2), pitch, shifts, max(pitch * rng.uniform(0.014, 0.03), 3))
    rows, columns = np.mgrid[:size, :size].astype(np.float32)
    bend = [size / 250 * smooth_noise(rng, rows.shape, size / 4) for _ in range(2)]
    lines = _lines(grid, columns + bend[0], rows + bend[1])
    lines *= np.clip(0.85 + 0.3 * fractal_noise(rng, rows.shape, (2.5, 9, 40)), 0.15, 1)
    ink = np.array([(0.30, 0.42, 0.20), (0.2, 0.2, 0.2), (0.5, 0.3, 0.2)])[rng.integers(3)]
    scene.canvas *= 1 - (rng.uniform(0.45, 0.95) * lines)[..., None] * (1 - ink.astype(np.float32))
    return grid


def lay_dish(rng: Generator, scene: Scene) -> Polygon | None:
    """Draw a dish around the scene: scratches, and often a piece of its wall.

    The wall reflects the lamp in bright lines, shades the bottom beside it and throws a shadow on
    the table. Return the outline of the bottom, in px, or None if no wall is in the picture.
    """
    size = scene.canvas.shape[0]
    scratch(rng, scene, rng.uniform(2, 8))
    if rng.random() < 0.3:
        return None
    unit, turn = size / 512, rng.uniform(0, 2 * np.pi)
    radius, reach = size * rng.uniform(0.7, 1.5), size * rng.uniform(0.26, 0.56)
    center = size / 2 + (reach - radius) * np.array([math.cos(turn), math.sin(turn)])
    rows, columns = np.mgrid[:size, :size].astype(np.float32) + 0.5
    x, y = columns - np.float32(center[0]), rows - np.float32(center[1])
    r = np.hypot(x, y)
    beyond, wall = (r - radius) / unit, rng.uniform(12, 34)  # from the bottom's edge outwards
    facing = _towards(scene.light, x, y) / np.maximum(r, 1)  # 1 on the lamp's side
    table = np.array(rng.choice([(0.25, 0.25, 0.27), (0.6, 0.6, 0.6), (0.85, 0.9, 0.92)]))
    table = table * (1 + 0.03 * fractal_noise(rng, r.shape, (size / 3, 5)))[..., None]
    # The dish's shadow falls on the table on the side away from the lamp.
    shadow = 0.45 * np.clip(0.4 - facing, 0, 1) * np.exp(-np.clip(beyond - wall, 0, None) / 22)
    _blend(scene.canvas, np.clip(beyond - wall, 0, 1), table * (1 - shadow)[..., None])
    # On the lamp's side the wall shades the bottom.
    inner = np.exp(np.minimum(beyond, 0) / rng.uniform(8, 22)) * (beyond < wall)
    gain = 1 - inner * rng.uniform(0.1, 0.35) * (0.6 + 0.4 * facing)
    for place, breadth, depth in ((0, 1.2, 0.45), (0.6, 3.0, 0.2), (1, 1.5, 0.5)):
        gain -= rng.uniform(0.5, 1) * depth * np.exp(-(((beyond - place * wall) / breadth) ** 2))
    scene.canvas *= np.clip(gain, 0.1, None)[..., None]
    # Reflections come and go along the wall.
    along = 0.35 + 0.65 * np.cos(0.5 * (np.arctan2(y, x) - rng.uniform(0, 2 * np.pi))) ** 6
    along = along * np.clip(1 + 0.4 * smooth_noise(rng, r.shape, size / 5), 0, 2)
    for place, breadth in ((0.18, 1.4), (rng.uniform(0.35, 0.8), 2.6), (0.9, 1.0)):
        line = np.exp(-(((beyond - place * wall) / breadth) ** 2))
        scene.canvas += (rng.uniform(0.2, 0.7) * line * along)[..., None]
    np.clip(scene.canvas, 0, 1.1, out=scene.canvas)
    return Point(*center).buffer(radius, quad_segs=64)


def _specks(rng: Generator, scene: Scene, count: int) -> None:
    """Draw dots of 1 to 3 px: soot, silt, dust."""
    size = scene.canvas.shape[0]
    for sigma in (0.55, 0.9):
        dots = np.zeros((size, size), np.float32)
        spots = rng.integers(0, size, (2, max(count // 2, 0)))
        dots[tuple(spots)] = rng.uniform(0.15, 1.0, spots.shape[1])
        dots = cv2.GaussianBlur(dots, (0, 0), sigma) * (5.5 * sigma**2)
        if scene.dark:
            scene.canvas += 0.25 * np.minimum(dots, 1)[..., None]
        else:
            tint = np.array([0.35, 0.42, 0.5], np.float32)
            scene.canvas *= 1 - 0.75 * np.minimum(dots, 1)[..., None] * (1 - tint)


def _window(rng: Generator, scene: Scene, span: float):
    """Choose a square of the canvas; return it with x and y of its pixels about its middle."""
    size, half = scene.canvas.shape[0], int(span / 2) + 4
    x, y = rng.uniform(0, size), rng.uniform(0, size)
    left, top = max(int(x) - half, 0), max(int(y) - half, 0)
    window = scene.canvas[top : int(y) + half + 1, left : int(x) + half + 1]
    rows, columns = np.mgrid[: window.shape[0], : window.shape[1]].astype(np.float32)
    return window, columns + np.float32(left + 0.5 - x), rows + np.float32(top + 0.5 - y)


def _blend(window: np.ndarray, alpha: np.ndarray, color: np.ndarray) -> None:
    window += alpha[..., None] * (color - window)


def _blob(rng: Generator, x: np.ndarray, y: np.ndarray, radius: float, rough: float):
    """Compute each pixel's depth in px inside an irregular round outline; below 0 outside."""
    angle, turn = np.arctan2(y, x), rng.uniform(0, np.pi)
    stretch = rng.uniform(1.0, 1.7)
    u = (x * math.cos(turn) + y * math.sin(turn)) / stretch
    v = y * math.cos(turn) - x * math.sin(turn)
    wobble = sum(
        rng.normal(0, rough / wave) * np.cos(wave * angle + rng.uniform(0, 6.28))
        for wave in range(2, 6)
    )
    return radius * (1 + wobble) - np.hypot(u, v)


def _grain(rng: Generator, scene: Scene) -> None:
    """Draw a mineral grain: small, rounded, glassy, with a dark rim and a spark of light."""
    radius = rng.uniform(1.8, 4.2)
    window, x, y = _window(rng, scene, 5 * radius)
    inside = _blob(rng, x, y, radius, 0.12)
    alpha = np.clip(inside + 0.5, 0, 1)
    tone = rng.uniform(0.8, 1.05) + 0.25 * _towards(scene.light, x, y) / radius
    tone -= 0.35 * np.exp(-((inside / 1.1) ** 2))
    color = rng.choice([(0.62, 0.74, 0.82), (0.72, 0.78, 0.8), (0.5, 0.62, 0.74)])
    color = color * (0.45 if scene.dark else 1.0)
    _blend(window, 0.62 * alpha, np.clip(color * tone[..., None], 0, 1))


def _flake(rng: Generator, scene: Scene) -> None:
    """Draw a flake of organic matter: soft, mottled, brown, transparent at its edge."""
    radius = rng.uniform(4, 11)
    window, x, y = _window(rng, scene, 5 * radius)
    inside = _blob(rng, x, y, radius, 0.25)
    inside += 0.3 * radius * fractal_noise(rng, x.shape, (radius / 2, 2.5), 0.6)
    alpha = np.clip(inside / (0.7 * radius), 0, 1) * rng.uniform(0.25, 0.5)
    color = rng.choice([(0.30, 0.42, 0.54), (0.26, 0.36, 0.42), (0.36, 0.5, 0.55)])
    color = color * (0.5 if scene.dark else 1.15)
    mottle = 1 + 0.15 * smooth_noise(rng, x.shape, 2.5)
    _blend(window, alpha, color * mottle[..., None])


def _thread(rng: Generator, scene: Scene) -> None:
    """Draw an organic thread: thinner than any fibre here, dull brown, uneven, fading out."""
    size, span = scene.canvas.shape[0], rng.uniform(18, 70)
    start = rng.uniform(0, size, 2)
    heading = rng.uniform(0, 6.28) + np.cumsum(rng.normal(0, 0.35, 16))
    window, line = draw_hairline(scene, walk(start, heading, span / 16))
    if not line.size:
        return
    soft = cv2.GaussianBlur(line, (0, 0), rng.uniform(0.5, 0.8))
    soft *= np.clip(0.8 + 0.4 * smooth_noise(rng, soft.shape, 6), 0, 1.2)
    color = np.array([0.30, 0.40, 0.50]) * rng.uniform(0.7, 1.2)
    _blend(window, np.clip(rng.uniform(0.4, 0.75) * soft, 0, 1), color)


def _pollen(rng: Generator, scene: Scene) -> None:
    """Draw a pollen grain or spore: a small even yellow-brown ball."""
    radius = rng.uniform(3.0, 5.0)
    window, x, y = _window(rng, scene, 3 * radius)
    r = np.hypot(x, y) / radius
    alpha = np.clip((1 - r) * radius + 0.5, 0, 1)
    ball = np.sqrt(np.clip(1 - r**2, 0, 1))
    tone = 0.55 + 0.35 * ball + 0.2 * _towards(scene.light, x, y) / radius
    tone = tone + 0.4 * relief(smooth_noise(rng, x.shape, 1.5), scene.light)
    color = np.array([0.36, 0.62, 0.78]) * rng.uniform(0.8, 1.05) * (0.6 if scene.dark else 1.0)
    _blend(window, 0.8 * alpha, np.clip(color * tone[..., None], 0, 1))


def _towards(light: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return how far pixels lie towards the lamp, in px."""
    return x * float(light[0]) + y * float(light[1])


def _light(photograph: np.ndarray, dark: bool) -> np.ndarray:
    """Estimate the light over the field: slow changes, and half of the cast (half is colour)."""
    if dark:
        return np.ones((1, 1, 1), np.float32)
    size = photograph.shape[0]
    small = cv2.resize(photograph, (32, 32), interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), 6, borderType=cv2.BORDER_REFLECT)
    level = np.maximum(small.mean(2, keepdims=True), 0.02)
    lamp = level / _PLAIN_LEVEL * np.sqrt(np.maximum(small / level, 0.02))
    return cv2.resize(lamp.astype(np.float32), (size, size), interpolation=cv2.INTER_LINEAR)


def _decoded(path: str) -> np.ndarray:
    """Read an image, or take it from the cache of this process."""
    if path in _cache:
        _cache.move_to_end(path)
        return _cache[path]
    image = _cache[path] = read_image(path)
    while len(_cache) > 1 and sum(kept.nbytes for kept in _cache.values()) > _CACHE_BYTES:
        _cache.popitem(last=False)
    return image
