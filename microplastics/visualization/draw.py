"""Pictures of particles: annotations, predictions, and both beside the photograph."""

import itertools
import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np
from contourpy import FillType, contour_generator
from detectron2.data import Metadata
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances, PolygonMasks
from detectron2.utils.visualizer import ColorMode, VisImage, Visualizer
from matplotlib.patches import Circle, PathPatch
from matplotlib.path import Path as OutlinePath
from PIL import Image, ImageDraw, ImageFont

from microplastics.data.colors import class_colors
from microplastics.structures.crop_masks import CropMasks
from microplastics.utils.errors import UserError
from microplastics.utils.io import atomic_write

# Sides of a picture in px: smaller images are enlarged, larger ones made smaller.
MIN_SIDE, MAX_SIDE = 800, 4000
# In px of a picture of 1000 px; they grow with the picture up to this factor.
_LINE, _HALO, _FONT, _RING, _RING_BELOW = 1.9, 3.8, 13.0, 7.0, 6.0
_GROWTH = 1.6
_FILL_ALPHA, _HALO_ALPHA = 0.15, 0.75
_OUTLINE_POINTS = 48
# Rows of the photograph.
_STRIP = 256
# Side of the cells in which labels are placed, in px, and what a cell of another label costs, in
# cells with an outline.
_CELL, _TAKEN = 4, 1000

_INK, _PAPER = (25, 25, 25), (255, 255, 255)
_GAP = 8


def picture_scale(height: int, width: int, max_side: int = MAX_SIDE) -> float:
    """Choose the px of the picture for each px of an image: a whole factor up, or down to fit."""
    longer = max(height, width)
    return max_side / longer if longer > max_side else float(math.ceil(MIN_SIDE / longer))


def resize(image: np.ndarray, scale: float) -> np.ndarray:
    """Resize a photograph, (H, W, 3) uint8: pixels stay squares, or are averaged."""
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    return cv2.resize(image, size, interpolation=method)


def scale_bar(um_per_px: float, width: float) -> tuple[str, float]:
    """Choose a scale bar for a picture: 1, 2 or 5 times a power of ten, a tenth to a quarter wide.

    Args:
        um_per_px: scale of the image.
        width: of the image in px.

    Returns:
        its label, such as ``500 µm`` or ``2 mm``, and its length in px of the image.
    """
    longest = um_per_px * width / 4
    power = 10.0 ** math.floor(math.log10(longest))
    length = max(step * power for step in (1, 2, 5) if step * power <= longest)
    text = f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} µm"
    return text, length / um_per_px


class ParticleVisualizer(Visualizer):
    """Visualizer whose pictures leave the particles to be seen.

    - Colours are by class, the same in every picture; fills are faint, outlines thin, with a white
      rim that sets them off from any ground.
    - Masks are drawn along the borders of their pixels, with their holes, each from its own crop.
      No mask is too small: what would be a dot in the picture gets a ring.
    - Labels are small and stand beside their particles, covering little. With a single class
      the label is only the score.

    All other methods are Detectron2's own; coordinates are px of the image.
    """

    def __init__(
        self,
        img_rgb: np.ndarray,
        metadata: Metadata | None = None,
        scale: float | None = None,
        labels: bool = True,
    ):
        """
        Args:
            img_rgb: (H, W, 3) uint8, RGB.
            metadata: of the data set; ``thing_classes`` and ``thing_colors`` are used.
            scale: px of the picture for each px of the image; :func:`picture_scale` if ``None``.
            labels: write classes and scores beside the particles.
        """
        height, width = img_rgb.shape[:2]
        scale = picture_scale(height, width) if scale is None else scale
        # Matplotlib shrinks by leaving out pixels, which turns the weave of a filter into moiré.
        picture = resize(img_rgb, scale) if scale < 1 else img_rgb
        super().__init__(picture, metadata, max(scale, 1.0), ColorMode.SEGMENTATION)
        self.output.height, self.output.width, self.output.scale = height, width, scale
        self._show_in_strips(picture)
        # Points of Matplotlib for a unit of the drawing.
        self._unit = float(np.clip(max(height, width) * scale / 1000, 1, _GROWTH))
        self._points = self._unit * 72 / self.output.dpi
        self._default_font_size = _FONT * self._points / scale
        self._labels = labels
        self._class_names, self._colors = _classes(self.metadata)

    def _show_in_strips(self, picture: np.ndarray) -> None:
        """Show the photograph in strips: Matplotlib takes 120 bytes for each pixel of an image."""
        ax, height, width = self.output.ax, self.output.height, self.output.width
        ax.images[0].remove()
        for top in range(0, len(picture), _STRIP):
            bottom = min(top + _STRIP, len(picture))
            rows = bottom * height / len(picture), top * height / len(picture)
            ax.imshow(picture[top:bottom], extent=(0, width, *rows), interpolation="nearest")
        ax.set(xlim=(0, width), ylim=(height, 0))

    def draw_dataset_dict(self, dic: dict[str, Any]) -> VisImage:
        """Draw the annotations of one image in Detectron2's data set format, crowds dashed."""
        annotations = dic.get("annotations") or []
        boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
        masks = [a.get("segmentation") for a in annotations]
        return self.draw_particles(
            boxes,
            [a["category_id"] for a in annotations],
            masks if any(mask is not None for mask in masks) else None,
            dashed=[bool(a.get("iscrowd", 0)) for a in annotations],
        )

    def draw_instance_predictions(
        self, predictions: Instances, jittering: bool = False
    ) -> VisImage:
        """Draw the predictions of one image, as a Detectron2 model returns them.

        ``jittering`` is part of Detectron2's signature, and ignored: colours are by class.
        """
        return self.draw_particles(
            predictions.pred_boxes,
            predictions.pred_classes.tolist(),
            predictions.pred_masks if predictions.has("pred_masks") else None,
            scores=predictions.scores.tolist() if predictions.has("scores") else None,
        )

    def draw_particles(
        self,
        boxes: Boxes | Sequence[Sequence[float]],
        classes: Sequence[int],
        masks: Any = None,
        scores: Sequence[float] | None = None,
        dashed: Sequence[bool] | None = None,
    ) -> VisImage:
        """Draw N particles, the largest first.

        Args:
            boxes: (N, 4) x0, y0, x1, y1 in px of the image.
            classes: N contiguous class numbers.
            masks: what :func:`mask_paths` takes; boxes are drawn without.
            scores, dashed: N scores in [0, 1]; N flags of dashed outlines.
        """
        boxes = boxes.tensor.detach().cpu().numpy() if isinstance(boxes, Boxes) else boxes
        boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
        size = self.output.height, self.output.width
        paths = [None] * len(boxes) if masks is None else mask_paths(masks, size)
        areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
        outlines = {}
        for index in np.argsort(-areas, kind="stable").tolist():
            path, is_dashed = paths[index], bool(dashed and dashed[index])
            if path is None:  # no mask, or one without a pixel: the box is all there is
                x0, y0, x1, y1 = boxes[index]
                path = _closed(np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)]))
                is_dashed = is_dashed or masks is not None
            filled = paths[index] is not None
            color = self.class_color(classes[index])
            outlines[index] = self._draw_path(path, color, filled, is_dashed)
        if self._labels:
            self._draw_labels(outlines, classes, scores, dashed)
        return self.output

    def class_color(self, number: int) -> tuple[float, float, float]:
        """RGB in [0, 1] of a class number."""
        return tuple(channel / 255 for channel in self._colors[number % len(self._colors)])

    def _draw_path(self, path: OutlinePath, color, filled: bool, dashed: bool) -> np.ndarray:
        """Draw one outline, and give the points that its label should not cover."""
        ax, scale = self.output.ax, self.output.scale
        style = (0, (4, 3)) if dashed else "-"
        halo = {"edgecolor": (1, 1, 1, _HALO_ALPHA), "linewidth": _HALO * self._points}
        line = {"edgecolor": color, "linewidth": _LINE * self._points, "linestyle": style}
        x0, y0, x1, y1 = path.get_extents().extents
        if max(x1 - x0, y1 - y0) * scale < _RING_BELOW * self._unit:
            center, radius = ((x0 + x1) / 2, (y0 + y1) / 2), _RING * self._unit / scale
            ax.add_patch(Circle(center, radius, fill=False, **halo))
            ax.add_patch(Circle(center, radius, fill=False, **line))
            line["linewidth"] /= 2
            outline = center + radius * LabelPlacer.DIRECTIONS
        else:
            ax.add_patch(PathPatch(path, fill=False, **halo))
            outline = outline_points(path)
        face = (*color, _FILL_ALPHA) if filled else "none"
        ax.add_patch(PathPatch(path, facecolor=face, **line))
        return outline

    def _draw_labels(self, outlines: dict[int, np.ndarray], classes, scores, dashed) -> None:
        """Write class and score beside each outline."""
        scale, font = self.output.scale, _FONT * self._unit
        height, width = self.output.height * scale, self.output.width * scale
        placer = LabelPlacer((int(height), int(width)))
        for outline in outlines.values():
            placer.cover(outline * scale)
        # The smallest first: large ones have more room around them.
        for index in reversed(outlines):
            number, words = classes[index], []
            if len(self._class_names) != 1:
                known = number < len(self._class_names)
                words.append(self._class_names[number] if known else str(number))
            if scores is not None:
                words.append(f"{100 * scores[index]:.0f}%")
            if dashed is not None and dashed[index]:
                words.append("crowd")
            if not words:
                continue
            text = " ".join(words)
            shape = 1.3 * font, (0.6 * len(text) + 0.3) * font
            x, y = placer.place(outlines[index] * scale, shape, 3 * self._unit, crowded=True)
            color = self._change_color_brightness(self.class_color(number), 0.7)
            position = x / scale, y / scale
            self.draw_text(text, position, color=color, horizontal_alignment="left")


class LabelPlacer:
    """Places each label at the outline of its particle, covering little."""

    _ANGLES = np.arange(8) * (np.pi / 4)
    # Straight up first: among equally good places the first is taken.
    DIRECTIONS = np.stack([np.sin(_ANGLES), -np.cos(_ANGLES)], axis=1)

    def __init__(self, size: tuple[int, int]):
        """Start with an empty picture of ``size``, height and width in px."""
        self._frame = np.array([size[1], size[0]], dtype=np.float64)
        self._cost = np.zeros((size[0] // _CELL + 2, size[1] // _CELL + 2), dtype=np.int32)

    def cover(self, outline: np.ndarray) -> None:
        """Mark (N, 2) points, x and y in px of the picture, that are better not covered."""
        cells = (outline.clip(0, self._frame) / _CELL).astype(np.int64)
        self._cost[cells[:, 1], cells[:, 0]] += 1

    def place(
        self, outline: np.ndarray, shape: Sequence[float], gap: float, crowded: bool = False
    ) -> tuple[int, int] | None:
        """Place one label beside the (N, 2) points of its particle, all in px of the picture.

        Args:
            shape: of the label, height and width last.
            gap: between label and particle.
            crowded: place it even on another label.

        Returns:
            x and y of its upper left corner, inside the picture wherever the label fits into it;
            None if it would cover another label.
        """
        size = np.array([shape[-1], shape[-2]], dtype=np.float64)
        # Only what lies in the picture can be pointed at.
        anchors = outline.clip(0, self._frame)
        extreme = anchors[(anchors @ self.DIRECTIONS.T).argmax(axis=0)]
        # Half the label's size along each direction, so that it stands beside the outline.
        away = np.abs(self.DIRECTIONS) @ size / 2 + gap
        centers = extreme + self.DIRECTIONS * away[:, None]
        corners = (centers - size / 2).clip(0, np.maximum(self._frame - size, 0))
        moved = np.abs(corners + size / 2 - centers).max(axis=1) / _CELL
        low = (corners / _CELL).astype(np.int64)
        high = np.ceil((corners + size) / _CELL).astype(np.int64)
        boxes = np.concatenate([low, high], axis=1).tolist()
        costs = [int(self._cost[y0:y1, x0:x1].sum()) for x0, y0, x1, y1 in boxes] + moved
        best = int(np.argmin(costs))
        # Labels may share a single cell.
        if costs[best] >= 2 * _TAKEN and not crowded:
            return None
        x0, y0, x1, y1 = boxes[best]
        self._cost[y0:y1, x0:x1] += _TAKEN
        return int(corners[best, 0]), int(corners[best, 1])


def outline_points(path: OutlinePath, count: int = _OUTLINE_POINTS) -> np.ndarray:
    """(count, 2) points at even steps along the outline of a particle."""
    points = np.concatenate([p for p in path.to_polygons(closed_only=False) if len(p)])
    steps = np.hypot(*np.diff(points, axis=0).T)
    along = np.concatenate([[0.0], np.cumsum(steps)])
    at = np.linspace(0, along[-1], count)
    return np.stack([np.interp(at, along, points[:, i]) for i in (0, 1)], axis=1)


def mask_paths(masks: Any, image_size: tuple[int, int]) -> list[OutlinePath | None]:
    """Outline masks of any kind, without making full-frame bitmaps.

    Args:
        masks: :class:`CropMasks`, ``PolygonMasks``, ``BitMasks``, an (N, H, W) tensor or array, or
            a list with a COCO segmentation (polygons or RLE) or ``None`` for each particle.
        image_size: height and width in px.

    Returns:
        Outlines in px of the image, filled by the non-zero rule; ``None`` without a pixel.

    Raises:
        ValueError: a segmentation is malformed or of another size.
    """
    if isinstance(masks, PolygonMasks):
        masks = masks.polygons
    elif isinstance(masks, BitMasks) and not isinstance(masks, CropMasks):
        masks = masks.tensor
    if hasattr(masks, "shape"):
        masks = CropMasks.from_bitmasks(masks)
    if isinstance(masks, CropMasks):
        return [crop_path(*pair) for pair in zip(masks.crops, masks.offsets, strict=True)]
    return [_segmentation_path(mask, image_size) for mask in masks]


def crop_path(crop: np.ndarray, offset: Sequence[int]) -> OutlinePath | None:
    """Outline a mask, (h, w) bool, between its pixels and their neighbours, holes included.

    ``offset`` is x0 and y0 of the crop in px of the image.
    """
    if not crop.any():
        return None
    # Padded, so that the outline closes; a pixel's value stands at its centre.
    padded = np.pad(crop, 1).astype(np.float64)
    x = np.arange(padded.shape[1]) + (offset[0] - 0.5)
    y = np.arange(padded.shape[0]) + (offset[1] - 0.5)
    outlines = contour_generator(x, y, padded, fill_type=FillType.OuterCode)
    points, codes = outlines.filled(0.5, 2.0)
    return OutlinePath(np.concatenate(points), np.concatenate(codes))


def _segmentation_path(mask: Any, image_size: tuple[int, int]) -> OutlinePath | None:
    if mask is None:
        return None
    if isinstance(mask, dict):
        return mask_paths(CropMasks.from_rles([mask], image_size), image_size)[0]
    parts = [_closed(np.asarray(part, dtype=np.float64).reshape(-1, 2)) for part in mask]
    return OutlinePath.make_compound_path(*parts) if parts else None


def _closed(points: np.ndarray) -> OutlinePath:
    """A closed polygon that turns the same way as every other: overlapping parts stay filled."""
    x, y = points.T
    if np.dot(x, np.roll(y, -1)) < np.dot(np.roll(x, -1), y):
        points = points[::-1]
    return OutlinePath(np.concatenate([points, points[:1]]), closed=True)


def _classes(metadata: Metadata | None) -> tuple[list[str], Sequence[Sequence[int]]]:
    """Names of a data set's classes, and their colours, RGB in 0–255."""
    names = list((metadata.get("thing_classes", None) if metadata else None) or ())
    colors = metadata.get("thing_colors", None) if metadata else None
    return names, colors or class_colors(names or [str(number) for number in range(7)])


@dataclass(frozen=True)
class Panel:
    """One picture with the words above it."""

    picture: np.ndarray  # (H, W, 3) uint8 RGB
    title: str = ""  # first line
    # Name, count and RGB (0–255) of each class, written below the title.
    legend: Sequence[tuple[str, int, Sequence[int]]] = ()


def draw_instances(
    image: np.ndarray,
    particles: dict[str, Any] | Instances,
    metadata: Metadata | None = None,
    scale: float | None = None,
    labels: bool = True,
) -> np.ndarray:
    """Draw true or predicted particles.

    Args:
        image: (H, W, 3) uint8 RGB.
        particles: a data set dict; ``Instances`` of a mapper, with ``gt_boxes``, ``gt_classes``
            and, if there are any, ``gt_masks``; or those of a model, with ``pred_boxes``,
            ``pred_classes``, ``scores`` and, if there are any, ``pred_masks``.
        metadata: see :class:`ParticleVisualizer`, also for ``scale`` and ``labels``.

    Returns:
        (H·scale, W·scale, 3) uint8 RGB.
    """
    visualizer = ParticleVisualizer(image, metadata, scale, labels)
    if isinstance(particles, dict):
        return visualizer.draw_dataset_dict(particles).get_image()
    particles = particles.to("cpu")
    if not particles.has("gt_boxes"):
        return visualizer.draw_instance_predictions(particles).get_image()
    masks = particles.gt_masks if particles.has("gt_masks") else None
    classes = particles.gt_classes.tolist()
    return visualizer.draw_particles(particles.gt_boxes, classes, masks).get_image()


def class_legend(
    classes: Sequence[int], metadata: Metadata | None
) -> list[tuple[str, int, Sequence[int]]]:
    """Count the particles of each class of the data set, by class number, for a :class:`Panel`."""
    names, colors = _classes(metadata)
    names += [str(number) for number in range(len(names), max(classes, default=-1) + 1)]
    counts = Counter(classes)
    return [
        (name, counts[number], colors[number % len(colors)]) for number, name in enumerate(names)
    ]


def side_by_side(panels: Sequence[Panel]) -> np.ndarray:
    """Set panels in a row, each below its caption: (H, W, 3) uint8 RGB."""
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
    """Write a picture, (H, W, 3) uint8 RGB, as ``.jpg`` or ``.png``, whole or not at all."""
    kind = {".jpg": "JPEG", ".png": "PNG"}.get(Path(path).suffix.lower())
    if kind is None:
        raise UserError(
            f"Pictures are written as .jpg or .png, not as {path}; change its name.",
            code="option_invalid",
        )
    with atomic_write(path, "wb") as file:
        # Colours at full resolution, for the sake of the outlines.
        Image.fromarray(picture).save(file, kind, quality=92, subsampling=0)


def picture_names(paths: Sequence[str]) -> list[str]:
    """Choose a file name for the picture of each image, no two alike on any file system.

    Where two would be the same, the later one gets its folder in front, or else a number behind.
    """
    names: dict[str, str] = {}
    for path in map(Path, paths):
        stem, folder = path.stem or "image", path.parent.name
        candidates = itertools.chain(
            [stem, f"{folder}_{stem}" if folder else stem],
            (f"{stem}_{number}" for number in itertools.count(2)),
        )
        name = next(each for each in candidates if each.casefold() not in names)
        names[name.casefold()] = f"{name}.jpg"
    return list(names.values())


def show_picture(picture: np.ndarray, title: str) -> None:
    """Show a picture, (H, W, 3) uint8 RGB, in a window and wait until it is closed."""
    import matplotlib.pyplot as plt  # chooses a window system, which nothing else here needs

    # get_backend falls back to one that cannot show anything.
    if plt.get_backend().lower() in ("agg", "cairo", "pdf", "pgf", "ps", "svg", "template"):
        raise UserError(
            "--show needs a desktop, and this machine has none; use --output instead.",
            code="device_unavailable",
        )
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
    image = Image.new("RGB", (width, (1 + rows) * line + margin), _PAPER)
    draw = ImageDraw.Draw(image)
    bold, plain = _font(size, "DejaVuSans-Bold.ttf"), _font(size)
    title = _shortened(title, bold, width - 2 * margin)
    draw.text((margin, margin // 2), title, _INK, bold)
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
