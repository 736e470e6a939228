"""Overlays: the photograph with outlined and numbered particles, as PNG.

Drawn with OpenCV and Pillow, in tenths of a millisecond a particle; Matplotlib, which draws the
pictures of :mod:`microplastics.visualization`, takes longer than the model. The colours of the
classes are those of :mod:`microplastics.data.colors`, as in every picture.
"""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from microplastics.utils.io import atomic_write
from microplastics.visualization.draw import (
    LabelPlacer,
    Panel,
    crop_path,
    picture_scale,
    resize,
    scale_bar,
    side_by_side,
)
from microplastics.writers.tables import ImageResult

MAX_SIDE = 3000
"""Longer side of an overlay in px; larger images are shown as a thumbnail of that size."""
# In px of a picture of 1000 px; they grow with the picture up to this factor.
_LINE, _RIM, _FONT, _RING, _RING_BELOW, _GAP = 1.5, 1.0, 15.0, 6.0, 6.0, 2.0
_GROWTH = 1.6
# Below this scale (px of the picture per px of the image) lines are thin, to show thin fibres.
_THIN_BELOW = 0.75
# Tolerance of simplified outlines, in px of the picture.
_TOLERANCE = 0.35
# Numbers shrink, down to a lowest size in px, if they would cover more than this fraction.
_LARGEST_FRACTION, _LEAST_FONT = 0.12, 12
_DARKER = 0.7
# Characters of a name in the caption.
_NAME_LENGTH = 100
# Parts of a pixel that OpenCV draws to, as a power of two.
_SHIFT = 4
_WHITE, _BLACK = (255, 255, 255), (0, 0, 0)
_PNG = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE]

Color = tuple[int, int, int]


def write_overlay(result: ImageResult, path: Path) -> dict[str, int]:
    """Write the photograph of one image with its particles drawn on it.

    Small images are enlarged by a whole factor, those above :data:`MAX_SIDE` px are shown as a
    thumbnail, on which lines keep their size. Outlines have the colours of the classes, numbers
    are the column ``particle``; a particle that would be a dot gets a ring. Counted as
    ``overlay_numbers_left_out`` are numbers without room beside those of other particles.
    """
    height, width = result.particles.image_size
    picture = result.image.overview(min(MAX_SIDE, max(height, width)))[0]
    factor = picture_scale(*picture.shape[:2], MAX_SIDE)
    picture = resize(picture, factor) if factor != 1 else picture.copy()
    scale = np.array([picture.shape[1] / width, picture.shape[0] / height])
    unit = float(np.clip(max(picture.shape[:2]) / 1000, 1, _GROWTH))
    if result.region is not None:
        edges = [line * scale for line in result.region.outlines()]
        _draw_lines(picture, edges, (_BLACK, round(4 * unit)), (_WHITE, round(2 * unit)))
    left_out = _draw_particles(result, picture, scale, unit)
    panels = [_caption(result, picture.shape[1], left_out), *_scale_bar(result, picture, unit)]
    page = np.concatenate([*panels, picture])
    encoded = cv2.imencode(".png", page, _PNG)[1]
    with atomic_write(path, "wb") as file:
        file.write(encoded.data)
    return {"overlay_numbers_left_out": left_out} if left_out else {}


def _draw_particles(
    result: ImageResult, picture: np.ndarray, scale: np.ndarray, unit: float
) -> int:
    """Draw all particles, the largest first, and give how many numbers had no room."""
    particles = result.particles
    thin = scale.max() < _THIN_BELOW
    line = 2 if thin else round(_LINE * unit)
    rim = line + 2 * (1 if thin else round(_RIM * unit))
    placer = LabelPlacer(picture.shape[:2])
    sizes = np.array([mask.size for mask in particles.masks], dtype=np.int64)
    order = np.argsort(-sizes, kind="stable").tolist()
    colors = [tuple(result.colors[number][::-1]) for number in result.class_numbers]
    outlines = {}
    for index in order:
        lines = outline_lines(particles.masks[index], particles.offsets[index], scale)
        points = np.concatenate(lines)
        if np.ptp(points, axis=0).max() < _RING_BELOW * unit:
            lines = [ring(points.mean(axis=0), _RING * unit)]
        _draw_lines(picture, lines, (_WHITE, rim), (colors[index], line))
        outlines[index] = np.concatenate(lines)
        placer.cover(outlines[index])
    texts = [str(number) for number in particles.ids.tolist()]
    font = _font(sum(map(len, texts)), picture, _FONT * unit)
    rim, left_out = max(1, round(font.size / 10)), 0
    _, top, _, bottom = font.getbbox("0123456789-", stroke_width=rim)
    canvas = Image.fromarray(picture)
    pen = ImageDraw.Draw(canvas)
    for index in order:
        shape = bottom - top, math.ceil(font.getlength(texts[index])) + 2 * rim
        corner = placer.place(outlines[index], shape, _GAP * unit)
        if corner is None:
            left_out += 1
            continue
        place = corner[0] + rim, corner[1] - top
        dark = tuple(round(_DARKER * channel) for channel in colors[index])
        pen.text(place, texts[index], dark, font, stroke_width=rim, stroke_fill=_WHITE)
    picture[:] = canvas
    return left_out


def _draw_lines(
    picture: np.ndarray, lines: Sequence[np.ndarray], *strokes: tuple[Color, int]
) -> None:
    """Draw closed lines, (N, 2) points each, once for every colour and thickness."""
    # OpenCV counts from the centre of the first pixel.
    points = [np.round((each - 0.5) * 2**_SHIFT).astype(np.int32) for each in lines]
    for color, thickness in strokes:
        cv2.polylines(picture, points, True, color, thickness, cv2.LINE_AA, _SHIFT)


def _font(characters: int, picture: np.ndarray, usual: float) -> ImageFont.FreeTypeFont:
    size = round(usual)
    fraction = characters * (0.7 * usual) * (1.1 * usual) / (picture.shape[0] * picture.shape[1])
    if fraction > _LARGEST_FRACTION:
        size = max(_LEAST_FONT, round(usual * math.sqrt(_LARGEST_FRACTION / fraction)))
    # Matplotlib brings this font everywhere.
    path = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans-Bold.ttf")
    return ImageFont.truetype(path, size)


def outline_lines(mask: np.ndarray, offset: np.ndarray, scale: np.ndarray) -> list[np.ndarray]:
    """Outline a mask and its holes.

    Args:
        mask: (h, w) bool with a pixel.
        offset: x and y of its first pixel in px of the image.
        scale: px of the picture for each px of the image, across and down.

    Returns:
        closed lines, (N, 2) points each, simplified, in px of the picture.
    """
    step = max(1, math.floor(0.5 / scale.max()))
    if step > 1:
        # Where several pixels are one of the picture: no thin part is lost, and no large crop is
        # outlined pixel by pixel.
        height, width = mask.shape
        padded = np.pad(mask, ((0, -height % step), (0, -width % step)))
        blocks = padded.reshape(padded.shape[0] // step, step, padded.shape[1] // step, step)
        mask = blocks.any(axis=(1, 3))
    outline = crop_path(mask, (0, 0))
    points = (outline.vertices * step + offset) * scale
    starts = np.flatnonzero(outline.codes == outline.MOVETO)
    return [
        cv2.approxPolyDP(line.astype(np.float32), _TOLERANCE, True)[:, 0]
        for line in np.split(points, starts[1:])
    ]


def ring(center: np.ndarray, radius: float) -> np.ndarray:
    """Draw a circle around a particle that would be a dot, (24, 2) points."""
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    return center + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _caption(result: ImageResult, width: int, left_out: int) -> np.ndarray:
    """Name, scale, and the number of particles of each class, (h, width, 3) BGR."""
    title = _short(result.particles.image)
    if result.calibration is not None:
        title += f" · {result.calibration.um_per_px:.4g} µm per px ({result.calibration.source})"
    counts = Counter(result.particles.classes)
    legend = [
        (_short(name), counts[name], color)
        for name, color in zip(result.class_names, result.colors, strict=True)
    ]
    blank = np.zeros((1, width, 3), dtype=np.uint8)
    panels = [Panel(blank, title, legend)]
    if left_out:
        panels.append(Panel(blank, f"No room for the numbers of {left_out} particles"))
    return np.concatenate([side_by_side([panel])[:-1] for panel in panels])[..., ::-1]


def _scale_bar(result: ImageResult, picture: np.ndarray, unit: float) -> list[np.ndarray]:
    """The scale bar on a strip of its own, where it hides no particle; none without a scale."""
    if result.calibration is None:
        return []
    width = result.particles.image_size[1]
    text, length = scale_bar(result.calibration.um_per_px, width)
    font, line, left = _font(0, picture, _FONT * unit), round(3 * unit), round(4 * unit)
    height, end = round(1.7 * font.size), left + length * picture.shape[1] / width
    strip = Image.new("RGB", (picture.shape[1], height), _WHITE)
    pen = ImageDraw.Draw(strip)
    middle = height / 2
    pen.line([left, middle, end, middle], _BLACK, line)
    for x in (left, end):
        pen.line([x, middle - 2 * line, x, middle + 2 * line], _BLACK, max(1, line // 2))
    pen.text((end + font.size / 2, middle), text, _BLACK, font, anchor="lm")
    return [np.asarray(strip)]


def _short(name: str) -> str:
    """The end of a long name."""
    return name if len(name) <= _NAME_LENGTH else "…" + name[1 - _NAME_LENGTH :]
