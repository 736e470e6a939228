"""Pictures of particles: annotations, predictions, and both beside the photograph."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from detectron2.data import Metadata
from detectron2.structures import Instances
from PIL import Image, ImageDraw, ImageFont

from microplastics.data.catalog import class_colors
from microplastics.errors import UserError
from microplastics.files import atomic_write
from microplastics.report.visualizer import ParticleVisualizer, picture_scale, resize

_INK, _PAPER, _GREY = (25, 25, 25), (255, 255, 255), (110, 110, 110)
_GAP = 8


@dataclass(frozen=True)
class Panel:
    """One picture with the words above it.

    Attributes:
        picture: (H, W, 3) uint8 RGB.
        title: first line.
        legend: name, count and RGB (0–255) of each class, written below the title.
        note: grey words below the title, where no legend stands.
    """

    picture: np.ndarray
    title: str = ""
    legend: Sequence[tuple[str, int, Sequence[int]]] = ()
    note: str = ""


def draw_photograph(image: np.ndarray, scale: float | None = None) -> np.ndarray:
    """Show the photograph alone, at the size of the drawings.

    Args:
        image: (H, W, 3) uint8 RGB.
        scale: px of the picture for each px of the image; by ``picture_scale`` if ``None``.

    Returns:
        (H·scale, W·scale, 3) uint8 RGB.
    """
    return resize(image, picture_scale(*image.shape[:2]) if scale is None else scale)


def draw_instances(
    image: np.ndarray,
    annotations: dict[str, Any] | Sequence[dict[str, Any]] | Instances,
    metadata: Metadata | None = None,
    scale: float | None = None,
    labels: bool = True,
) -> np.ndarray:
    """Draw true particles.

    Args:
        image: (H, W, 3) uint8 RGB.
        annotations: a data set dict, its ``annotations``, or mapped ``Instances`` with
            ``gt_boxes``, ``gt_classes`` and, if there are any, ``gt_masks`` (``PolygonMasks``,
            ``BitMasks`` or ``CropMasks``).
        metadata: of the data set: class names and colours.
        scale: px of the picture for each px of the image; by ``picture_scale`` if ``None``.
        labels: write the classes beside the particles.

    Returns:
        (H·scale, W·scale, 3) uint8 RGB.
    """
    visualizer = ParticleVisualizer(image, metadata, scale, labels)
    if isinstance(annotations, Instances):
        masks = annotations.gt_masks if annotations.has("gt_masks") else None
        classes = annotations.gt_classes.tolist()
        return visualizer.draw_particles(annotations.gt_boxes, classes, masks).get_image()
    if not isinstance(annotations, dict):
        annotations = {"annotations": list(annotations)}
    return visualizer.draw_dataset_dict(annotations).get_image()


def draw_predictions(
    image: np.ndarray,
    predictions: Instances,
    metadata: Metadata | None = None,
    scale: float | None = None,
    labels: bool = True,
) -> np.ndarray:
    """Draw predicted particles with their scores.

    Args:
        image: (H, W, 3) uint8 RGB.
        predictions: as a Detectron2 model returns them: ``pred_boxes``, ``pred_classes``,
            ``scores``, and if there are any ``pred_masks`` (``CropMasks`` or (N, H, W) tensor).
        metadata: of the data set: class names and colours.
        scale: px of the picture for each px of the image; by ``picture_scale`` if ``None``.
        labels: write classes and scores beside the particles.

    Returns:
        (H·scale, W·scale, 3) uint8 RGB.
    """
    visualizer = ParticleVisualizer(image, metadata, scale, labels)
    return visualizer.draw_instance_predictions(predictions.to("cpu")).get_image()


def class_legend(
    classes: Sequence[int], metadata: Metadata | None
) -> list[tuple[str, int, Sequence[int]]]:
    """Count the particles of each class, for a :class:`Panel`.

    Args:
        classes: contiguous class number of each particle.
        metadata: of the data set; every class of it is listed.
    """
    names = list((metadata.get("thing_classes", None) if metadata else None) or ())
    names += [str(number) for number in range(len(names), max(classes, default=-1) + 1)]
    colors = (metadata.get("thing_colors", None) if metadata else None) or class_colors(names)
    counts = Counter(classes)
    return [
        (name, counts[number], colors[number % len(colors)]) for number, name in enumerate(names)
    ]


def side_by_side(panels: Sequence[Panel]) -> np.ndarray:
    """Set panels in a row, each below its caption.

    Args:
        panels: with pictures of the same height.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ValueError: there is no panel.
    """
    if not panels:
        raise ValueError("There is no panel to set")
    captions = [_caption(panel) for panel in panels]
    top = max(caption.height for caption in captions)
    height = top + max(panel.picture.shape[0] for panel in panels)
    width = sum(panel.picture.shape[1] for panel in panels) + _GAP * (len(panels) - 1)
    page = Image.new("RGB", (width, height), _PAPER)
    left = 0
    for panel, caption in zip(panels, captions, strict=True):
        page.paste(caption, (left, 0))
        page.paste(Image.fromarray(panel.picture), (left, top))
        left += panel.picture.shape[1] + _GAP
    return np.asarray(page)


def save_picture(picture: np.ndarray, path: str | os.PathLike) -> None:
    """Write a picture whole or not at all; the suffix decides the format.

    Args:
        picture: (H, W, 3) uint8 RGB.
        path: ``.jpg`` (full colour resolution, for the sake of the outlines) or ``.png``.

    Raises:
        UserError: the file cannot be written.
    """
    suffix = Path(path).suffix.lower()
    options = {
        ".jpg": {"format": "JPEG", "quality": 92, "subsampling": 0},
        ".png": {"format": "PNG"},
    }
    if suffix not in options:
        raise UserError(f"Pictures are written as .jpg or .png, not as {path}; change its name.")
    with atomic_write(path, "wb") as file:
        Image.fromarray(picture).save(file, **options[suffix])


def picture_names(paths: Sequence[str]) -> list[str]:
    """Choose a file name for the picture of each image, no two alike on any file system.

    Args:
        paths: of the images.

    Returns:
        The images' names with ``.jpg`` as suffix. Where two would be the same, the later one
        gets its folder in front; where that does not help, a number behind.
    """
    names: list[str] = []
    used: set[str] = set()
    for path in map(Path, paths):
        stem, folder = path.stem or "image", path.parent.name
        candidates = [stem, f"{folder}_{stem}" if folder else stem]
        number = 2
        while candidates and candidates[0].casefold() in used:
            candidates.pop(0)
            if not candidates:
                candidates.append(f"{stem}_{number}")
                number += 1
        used.add(candidates[0].casefold())
        names.append(f"{candidates[0]}.jpg")
    return names


def show_picture(picture: np.ndarray, title: str) -> None:
    """Show a picture in a window and wait until it is closed.

    Args:
        picture: (H, W, 3) uint8 RGB.
        title: of the window.

    Raises:
        UserError: there is no desktop to show it on.
    """
    import matplotlib.pyplot as plt  # chooses a window system, which nothing else here needs

    # get_backend falls back to one that cannot show anything.
    if plt.get_backend().lower() in ("agg", "cairo", "pdf", "pgf", "ps", "svg", "template"):
        raise UserError("--show needs a desktop, and there is none here; use --output-dir instead.")
    figure = plt.figure(num=title, figsize=(12, 12 * picture.shape[0] / picture.shape[1]))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    axes.imshow(picture)
    plt.show()
    plt.close(figure)


def _caption(panel: Panel) -> Image.Image:
    width = panel.picture.shape[1]
    size = max(12, min(26, width // 40))
    line, margin = round(1.5 * size), size // 2
    total = sum(count for _, count, _ in panel.legend)
    title = f"{panel.title}: {total}" if panel.legend else panel.title
    words, rows = _wrapped(panel.legend, size, width - 2 * margin)
    rows = 1 + max(rows, bool(panel.note))
    image = Image.new("RGB", (width, rows * line + margin), _PAPER)
    draw = ImageDraw.Draw(image)
    bold, plain = _font(size, "DejaVuSans-Bold.ttf"), _font(size)
    title = _shortened(title, bold, width - 2 * margin)
    draw.text((margin, margin // 2), title, _INK, bold)
    if not panel.legend:
        note = _shortened(panel.note, plain, width - 2 * margin)
        draw.text((margin, margin // 2 + line - size // 8), note, _GREY, plain)
    for x, row, text, color in words:
        top = margin // 2 + (1 + row) * line
        draw.rectangle((margin + x, top, margin + x + size, top + size), fill=tuple(color))
        draw.text((margin + x + 1.4 * size, top - size // 8), text, _INK, plain)
    return image


def _wrapped(legend, size: int, width: float) -> tuple[list, int]:
    """Place legend entries in rows: ``(x, row, text, color)`` each, and the number of rows."""
    font, placed, x, row = _font(size), [], 0.0, 0
    for name, count, color in legend:
        text = _shortened(f"{name} {count}", font, width - 1.4 * size)
        step = font.getlength(text) + 2.6 * size
        if x and x + step - size > width:
            x, row = 0.0, row + 1
        placed.append((x, row, text, color))
        x += step
    return placed, row + 1 if placed else 0


def _shortened(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """Leave out the middle of a text that is too long."""
    if font.getlength(text) <= width:
        return text
    for kept in range(len(text) - 1, 1, -1):
        short = text[: kept - kept // 2] + "…" + text[len(text) - kept // 2 :]
        if font.getlength(short) <= width:
            return short
    return ""


@lru_cache(maxsize=16)
def _font(size: int, name: str = "DejaVuSans.ttf") -> ImageFont.FreeTypeFont:
    # Matplotlib brings this font everywhere; it knows most scripts of class names.
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, size)
