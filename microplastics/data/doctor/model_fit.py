"""Anchors, sizes and mask resolution of a config against the particles."""

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.modeling import build_anchor_generator, build_backbone
from tqdm import tqdm

from microplastics.data.doctor.findings import (
    CODES,
    EXAMPLES,
    INFO,
    WARNING,
    Example,
    Finding,
    ModelFit,
)
from microplastics.modeling.interface import mask_size
from microplastics.structures.crop_masks import CropMasks
from microplastics.utils.errors import UserError

ANCHOR_IOU = 0.5
MIN_WIDTH = 4.0
MASK_SIZES = (28, 56, 112)
# Fractions above which a finding is a warning, or information; mean IoU below which it is one.
WARNING_FRACTION, INFO_FRACTION, WARNING_IOU = 0.05, 0.01, 0.9
MAX_PER_CLASS = 1000  # the error of a mean IoU is below 0.01, of a fraction one or two points
ALL = "all"
_BOXES_AT_ONCE = 2**16
# Above this many pixels a bin of the largest crop spans 18 px, and a smaller copy suffices.
_MAX_MASK_PIXELS = 2**22
# Other anchors to recommend, the simplest first: factor of the sizes, (sizes per size, ratios).
_ANCHOR_FACTORS = (1.0, 0.5, 0.25, 0.125, 2.0)
_ANCHOR_SHAPES = (
    ((1.0,), ()),
    ((1.0, 2**0.5), ()),
    ((1.0,), (0.25, 0.5, 1.0, 2.0, 4.0)),
    ((1.0, 2**0.5), (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)),
)
_TRIED = 2**13  # boxes
_WORTH_A_CHANGE = 0.02  # fraction of the boxes


@dataclass(frozen=True)
class AnchorGrid:
    """Positions of a config's anchors in an image.

    Attributes:
        cells: for each level (A, 4) float64 x0, y0, x1, y1 in px around a grid position.
        strides: px between the grid positions of each level.
        offset: of the first grid position, in strides.
        divisibility: both sides of an image are padded to a multiple of it.
    """

    cells: list[np.ndarray]
    strides: list[int]
    offset: float
    divisibility: int

    @classmethod
    def from_config(cls, cfg: CfgNode, config_file: str = "") -> "AnchorGrid":
        """Lay out the anchors of the config's RPN.

        Args:
            cfg: the config.
            config_file: its name, for errors.

        Raises:
            UserError: ``config_invalid`` if backbone and anchors do not fit together, or the
                anchors are rotated.
        """
        name = config_file or "The config"
        try:
            # Only shapes are needed: on this device no weights are made.
            with torch.device("meta"):
                backbone = build_backbone(cfg)
            shapes = backbone.output_shape()
            features = [shapes[feature] for feature in cfg.MODEL.RPN.IN_FEATURES]
            generator = build_anchor_generator(cfg, features)
        except (AssertionError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{name} has no usable anchors ({type(error).__name__}: {error}); correct "
                "MODEL.BACKBONE, MODEL.RPN.IN_FEATURES or MODEL.ANCHOR_GENERATOR.",
                code="config_invalid",
            ) from error
        if generator.box_dim != 4:
            raise UserError(
                f"{name} has rotated anchors, which are not measured; set "
                "MODEL.ANCHOR_GENERATOR.NAME DefaultAnchorGenerator.",
                code="config_invalid",
            )
        return cls(
            [cell.double().numpy() for cell in generator.cell_anchors],
            [int(feature.stride) for feature in features],
            float(cfg.MODEL.ANCHOR_GENERATOR.OFFSET),
            max(1, int(backbone.size_divisibility)),
        )

    def best_iou(self, boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Find for each box the IoU of the best anchor.

        The overlap of two boxes is the product of their overlaps along x and y, each of which can
        only shrink as the centres move apart along its axis. So the best position of an anchor is
        the nearest column and row of the grid. Anchors that leave the image count, as in
        Detectron2 by default (``MODEL.RPN.BOUNDARY_THRESH`` -1).

        Args:
            boxes: (N, 4) float x0, y0, x1, y1 in px of the resized images.
            sizes: (N, 2) height and width of the resized image of each box, in px.

        Returns:
            (N,) float64 in [0, 1].
        """
        best = np.zeros(len(boxes))
        for start in range(0, len(boxes), _BOXES_AT_ONCE):
            part = slice(start, start + _BOXES_AT_ONCE)
            best[part] = self._best_iou(boxes[part].astype(np.float64), sizes[part])
        return best

    def changed(
        self, factor: float = 1.0, steps: Sequence[float] = (1.0,), ratios: Sequence[float] = ()
    ) -> "AnchorGrid":
        """Lay out other anchors at the same positions.

        Args:
            factor: multiplies every size.
            steps: each size occurs once multiplied by each of these.
            ratios: height / width of the anchors of each size; the present ones if empty.
        """
        cells = []
        for cell in self.cells:
            width, height = (cell[:, 2:] - cell[:, :2]).T
            if ratios:
                sizes, shapes = np.unique(np.sqrt(width * height).round(3)), np.sqrt(ratios)
                width, height = (sizes[:, None] / shapes).ravel(), np.outer(sizes, shapes).ravel()
            half = np.concatenate([np.stack([width, height], 1) * factor * k / 2 for k in steps])
            cells.append(np.concatenate([-half, half], axis=1))
        return replace(self, cells=cells)

    def _best_iou(self, boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        padded = -(-sizes // self.divisibility) * self.divisibility
        best = np.zeros(len(boxes))
        low, high = boxes[:, None, :2], boxes[:, None, 2:]
        for cells, stride in zip(self.cells, self.strides, strict=True):
            last = -(-padded[:, None, ::-1] // stride) - 1
            away = (low + high) / 2 - (cells[:, :2] + cells[:, 2:]) / 2
            place = np.clip(np.rint(away / stride - self.offset), 0, last)
            shift = (place + self.offset) * stride
            start = np.maximum(low, cells[:, :2] + shift)
            end = np.minimum(high, cells[:, 2:] + shift)
            common = np.clip(end - start, 0, None).prod(axis=2)
            area = np.clip(high - low, 0, None).prod(axis=2)
            union = area + (cells[:, 2:] - cells[:, :2]).prod(axis=1) - common
            iou = np.divide(common, union, out=np.zeros_like(common), where=union > 0)
            best = np.maximum(best, iou.max(axis=1))
        return best


@dataclass
class _Particles:
    """All particles except crowds, as columns of N rows."""

    dicts: Sequence[dict[str, Any]]
    image: np.ndarray  # (N,) index of its image
    place: np.ndarray  # (N,) index of its annotation in that image
    label: np.ndarray  # (N,) contiguous class number
    boxes: np.ndarray  # (N, 4) x0, y0, x1, y1 in px of the file
    before: np.ndarray  # (N, 2) height and width of the file in px
    after: np.ndarray  # (N, 2) the same after the resize

    @property
    def resized_boxes(self) -> np.ndarray:
        """(N, 4) in px of the network's input."""
        return self.boxes * (self.after / self.before)[:, [1, 0, 1, 0]]

    def worst(self, rows: np.ndarray, values: np.ndarray, words: str) -> list[Example]:
        """Examples of the rows with the lowest values; ``words`` is a format of a value."""
        order = np.argsort(values, kind="stable")[:EXAMPLES]
        return [self._example(rows[index], words.format(values[index])) for index in order]

    def _example(self, row: int, detail: str) -> Example:
        dic = self.dicts[self.image[row]]
        id_ = dic["annotations"][self.place[row]]["id"]
        name = os.path.basename(dic["file_name"])
        x0, y0, x1, y1 = self.boxes[row].tolist()
        text = f"annotation {id_} of image {dic['image_id']} ({name!r}) ({detail})"
        return Example(text, "", dic["file_name"], (x0, y0, x1 - x0, y1 - y0), id_)


@dataclass(frozen=True)
class _Masks:
    """Measures of the sampled masks, as columns of S rows."""

    row: np.ndarray  # (S,) row in _Particles
    weight: np.ndarray  # (S,) number of particles that each represents
    width: np.ndarray  # (S,) px after the resize
    iou: dict[int, np.ndarray]  # mask side M -> (S,)


def measure_fit(
    cfg: CfgNode,
    config_file: str,
    dataset_dicts: Sequence[dict[str, Any]],
    class_names: Sequence[str],
) -> tuple[ModelFit, list[Finding]]:
    """Measure how well a model of this config can see the particles of a data set.

    The images are resized by INPUT.MIN_SIZE_TEST and MAX_SIZE_TEST. All boxes are compared with
    the anchors; at most 1,000 masks a class are measured, drawn at random. Crowds are left out,
    as in training.

    Args:
        cfg: the config.
        config_file: its name, for the report.
        dataset_dicts: as from :func:`microplastics.data.coco.load_instances`; several files with
            the same classes may follow each other.
        class_names: by contiguous id.

    Returns:
        The figures, and the findings ``no_anchor``, ``too_small`` and ``mask_resolution``, if
        any: warnings if more than 5 % of the particles of a class, or of all, have no anchor of
        IoU 0.5 or are under 4 px wide, or if the mean IoU of a class is under 0.9 at the mask
        size of the config; information from 1 %.

    Raises:
        UserError: the config has no usable anchors.
    """
    grid = AnchorGrid.from_config(cfg, config_file)
    particles = _collect(cfg, dataset_dicts)
    side = mask_size(cfg)
    fit = ModelFit(config_file, mask_size=side or ModelFit.mask_size)
    if not len(particles.label):
        return fit, []
    anchor_iou = grid.best_iou(particles.resized_boxes, particles.after)
    masks = _measure_masks(particles, sorted({*MASK_SIZES, fit.mask_size}))
    fit.sampled = len(masks.row)
    labels, names = particles.label, list(class_names)
    fit.no_anchor = _means(anchor_iou < ANCHOR_IOU, labels, names)
    of_sample = (labels[masks.row], names, masks.weight)
    fit.small = _means(masks.width < MIN_WIDTH, *of_sample)
    by_size = {size: _means(iou, *of_sample) for size, iou in masks.iou.items()}
    fit.mask_iou = {name: {size: by_size[size][name] for size in by_size} for name in fit.small}
    findings = (
        _no_anchor(cfg, grid, particles, anchor_iou, fit),
        _too_small(cfg, particles, masks, fit),
        _mask_resolution(cfg, particles, masks, fit) if side else None,
    )
    return fit, [finding for finding in findings if finding is not None]


def resized_size(height: int, width: int, min_size: int, max_size: int) -> tuple[int, int]:
    """Height and width in px after ``ResizeShortestEdge``; ``min_size`` 0 keeps both.

    Args:
        height: of the image, in px.
        width: of the image, in px.
        min_size: INPUT.MIN_SIZE_TEST, in px.
        max_size: INPUT.MAX_SIZE_TEST, in px.
    """
    if min_size == 0:
        return height, width
    size = T.ResizeShortestEdge.get_output_shape(height, width, min_size, max_size)
    return max(1, size[0]), max(1, size[1])


def mask_width(mask: np.ndarray) -> float:
    """Width in px of a particle: short side of the rectangle with its area and perimeter.

    Unlike the sides of a box around it, this is the width of a fibre in any direction and curl.
    The perimeter P is Crofton's in four directions (half the mean number of crossings with a
    grid of lines, times pi, times the distance of the lines). w = P/4 - sqrt(P²/16 - A) for an
    area A, or sqrt(A) for a particle rounder than any rectangle.

    Args:
        mask: (h, w) bool.
    """
    area = np.count_nonzero(mask)
    padded = np.pad(mask, 1)
    straight = sum(np.count_nonzero(np.diff(padded, axis=axis)) for axis in (0, 1))
    slanted = np.count_nonzero(padded[1:, 1:] != padded[:-1, :-1])
    slanted += np.count_nonzero(padded[1:, :-1] != padded[:-1, 1:])
    quarter = np.pi / 32 * (straight + slanted / np.sqrt(2))
    discriminant = quarter**2 - area
    return float(np.sqrt(area) if discriminant < 0 else quarter - np.sqrt(discriminant))


def mask_round_trip(
    masks: CropMasks, boxes: np.ndarray, resized: tuple[int, int], mask_sizes: Sequence[int]
) -> np.ndarray:
    """IoU of true masks with themselves after the mask head's M x M crop, for several M.

    As in training, the masks are resized with their image, cropped by their boxes and
    thresholded at one half to M x M targets; as in inference, the target is pasted into the box
    on the original image. Masks of more than 4 megapixels are measured on a smaller copy.

    Args:
        masks: N true masks on the original image.
        boxes: (N, 4) their boxes x0, y0, x1, y1 in px of the original image.
        resized: height and width of the network's input, in px.
        mask_sizes: K sides M.

    Returns:
        (K, N) float64 in [0, 1]; 0 for a mask without a pixel.
    """
    iou = np.zeros((len(mask_sizes), len(masks)))
    pixels = np.array([crop.size for crop in masks.crops])
    usual = pixels <= _MAX_MASK_PIXELS
    iou[:, usual] = _round_trip(masks[usual], boxes[usual], resized, mask_sizes)
    for index in np.flatnonzero(~usual):
        factor = np.sqrt(_MAX_MASK_PIXELS / pixels[index])
        copy_size = tuple(max(1, round(side * factor)) for side in masks.image_size)
        copy = masks[[index]].affine(np.eye(2, 3) * factor, copy_size)
        seen = min(tuple(resized), copy_size)
        iou[:, [index]] = _round_trip(copy, boxes[[index]] * factor, seen, mask_sizes)
    return iou


def _round_trip(
    masks: CropMasks, boxes: np.ndarray, resized: tuple[int, int], mask_sizes: Sequence[int]
) -> np.ndarray:
    height, width = masks.image_size
    scale = np.array([resized[1] / width, resized[0] / height])
    seen = masks.affine(np.column_stack([np.diag(scale), (0, 0)]), resized)
    boxes_seen = torch.as_tensor(boxes * np.tile(scale, 2), dtype=torch.float32)
    boxes = torch.as_tensor(boxes, dtype=torch.float32)
    iou = np.zeros((len(mask_sizes), len(masks)))
    true = masks.to_rles()
    for row, size in zip(iou, mask_sizes, strict=True):
        targets = seen.crop_and_resize(boxes_seen, size)
        pasted = CropMasks.paste(targets.float(), boxes, masks.image_size).to_rles()
        row[:] = [mask_util.iou([a], [b], [0])[0, 0] for a, b in zip(true, pasted, strict=True)]
    return iou


def _collect(cfg: CfgNode, dataset_dicts: Sequence[dict[str, Any]]) -> _Particles:
    rows, boxes = [], []
    for image, dic in enumerate(dataset_dicts):
        size = dic["height"], dic["width"]
        after = resized_size(*size, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
        for place, annotation in enumerate(dic["annotations"]):
            if not annotation.get("iscrowd", 0):
                rows.append((image, place, annotation["category_id"], *size, *after))
                boxes.append(annotation["bbox"])
    table = np.array(rows, dtype=np.int64).reshape(-1, 7)
    boxes = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return _Particles(dataset_dicts, *table[:, :3].T, boxes, table[:, 3:5], table[:, 5:])


def _measure_masks(particles: _Particles, mask_sizes: Sequence[int]) -> _Masks:
    index, weight = _draw(particles.label)
    width, iou = np.zeros(len(index)), np.zeros((len(mask_sizes), len(index)))
    by_image = defaultdict(list)
    for row, image in enumerate(particles.image[index].tolist()):
        by_image[image].append(row)
    for image, rows in tqdm(by_image.items(), "Masks and model", unit="image", disable=None):
        dic, members = particles.dicts[image], index[rows]
        shapes = [dic["annotations"][place]["segmentation"] for place in particles.place[members]]
        masks = CropMasks.from_coco(shapes, (dic["height"], dic["width"]))
        before, after = particles.before[members[0]], particles.after[members[0]]
        factor = np.sqrt((after / before).prod())
        width[rows] = [mask_width(crop) * factor for crop in masks.crops]
        seen = tuple(after.tolist())
        iou[:, rows] = mask_round_trip(masks, particles.boxes[members], seen, mask_sizes)
    return _Masks(index, weight, width, dict(zip(mask_sizes, iou, strict=True)))


def _draw(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of at most MAX_PER_CLASS particles a class, and the number that each represents."""
    random, drawn, weights = np.random.default_rng(0), [], []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        kept = random.permutation(rows)[:MAX_PER_CLASS]
        drawn.append(kept)
        weights.append(np.full(len(kept), len(rows) / len(kept)))
    index, weight = np.concatenate(drawn), np.concatenate(weights)
    order = np.argsort(index)
    return index[order], weight[order]


def _means(
    values: np.ndarray, labels: np.ndarray, names: Sequence[str], weights: np.ndarray | None = None
) -> dict[str, float]:
    """Mean of each class that has a particle, and of all."""
    present = np.unique(labels).tolist()
    means = {names[label]: float(values[labels == label].mean()) for label in present}
    return {**means, ALL: float(np.average(values, weights=weights))}


def _found(code: str, fractions: dict[str, float], config: str, **changes: Any) -> Finding | None:
    """The finding of a code for fractions of a class and of all, if they are large enough."""
    if fractions[ALL] <= INFO_FRACTION and max(fractions.values()) <= WARNING_FRACTION:
        return None
    severity = WARNING if max(fractions.values()) > WARNING_FRACTION else INFO
    words = ", ".join(f"{name} {100 * fraction:.1f} %" for name, fraction in fractions.items())
    what = f"{CODES[code].what} ({config}: {words})"
    return replace(CODES[code], severity=severity, what=what, **changes)


def _no_anchor(
    cfg: CfgNode, grid: AnchorGrid, particles: _Particles, iou: np.ndarray, fit: ModelFit
) -> Finding | None:
    return _found(
        "no_anchor",
        fit.no_anchor,
        fit.config_file,
        fix=_anchor_fix(cfg, grid, particles),
        count=int(np.count_nonzero(iou < ANCHOR_IOU)),
        examples=particles.worst(np.arange(len(iou)), iou, "its best anchor has IoU {:.2f}"),
    )


def _anchor_fix(cfg: CfgNode, grid: AnchorGrid, particles: _Particles) -> str:
    """Recommend the simplest of a few other anchors that leaves few boxes without one."""
    rows = np.random.default_rng(0).permutation(len(particles.label))[:_TRIED]
    boxes, sizes = particles.resized_boxes[rows], particles.after[rows]
    best, lowest = None, 1.0
    for (steps, ratios), factor in product(_ANCHOR_SHAPES, _ANCHOR_FACTORS):
        iou = grid.changed(factor, steps, ratios).best_iou(boxes, sizes)
        fraction = float((iou < ANCHOR_IOU).mean())
        if best is None or fraction < lowest - _WORTH_A_CHANGE:
            best, lowest = (factor, steps, ratios), fraction
    factor, steps, ratios = best
    words = []
    if factor != 1 or len(steps) > 1:
        levels = cfg.MODEL.ANCHOR_GENERATOR.SIZES
        levels = levels if isinstance(levels[0], Sequence) else [levels]
        changed = [[float(f"{s * factor * k:.4g}") for k in steps for s in row] for row in levels]
        words.append(f"MODEL.ANCHOR_GENERATOR.SIZES {changed}")
    if ratios:
        words.append(f"MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS {[list(ratios)]}")
    if not words:
        return "Set INPUT.MIN_SIZE_TRAIN and MIN_SIZE_TEST larger, or cut the images into tiles."
    trained = " (the RPN head is then trained from scratch)" if ratios or len(steps) > 1 else ""
    return f"Set {', '.join(words)}{trained}: {100 * lowest:.1f} % are left."


def _too_small(cfg: CfgNode, particles: _Particles, masks: _Masks, fit: ModelFit) -> Finding | None:
    narrow = max(float(np.quantile(masks.width, WARNING_FRACTION)), 0.1)
    wanted = f"{MIN_WIDTH / narrow:.1f} times as large"
    if cfg.INPUT.MIN_SIZE_TEST:
        wanted += f" (about {10 * round(cfg.INPUT.MIN_SIZE_TEST * MIN_WIDTH / narrow / 10)} px)"
    return _found(
        "too_small",
        fit.small,
        fit.config_file,
        fix=f"Set INPUT.MIN_SIZE_TRAIN and MIN_SIZE_TEST {wanted} and MAX_SIZE_TRAIN and "
        "MAX_SIZE_TEST accordingly, cut the images into tiles, or photograph at a higher "
        "magnification if the particles have few pixels in the file.",
        count=int(np.count_nonzero(masks.width < MIN_WIDTH)),
        examples=particles.worst(masks.row, masks.width, "{:.1f} px wide after the resize"),
    )


def _mask_resolution(
    cfg: CfgNode, particles: _Particles, masks: _Masks, fit: ModelFit
) -> Finding | None:
    size = fit.mask_size
    means = {name: by_size[size] for name, by_size in fit.mask_iou.items()}
    if min(means.values()) >= WARNING_IOU:
        return None
    fixes = []
    larger = [other for other in masks.iou if other > size]
    lowest = {other: min(by[other] for by in fit.mask_iou.values()) for other in larger}
    enough = [other for other in larger if lowest[other] >= WARNING_IOU]
    for other in (enough or larger[-1:])[:1]:
        how = "Use a larger mask head"
        if size == 2 * cfg.MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION:
            how = f"Set MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION {other // 2}"
        after = ", ".join(f"{name} {by_size[other]:.2f}" for name, by_size in fit.mask_iou.items())
        fixes.append(
            f"{how}: masks of {other} x {other} keep a mean IoU of {after}, for "
            f"{(other / size) ** 2:.0f} times the time of the mask head."
        )
    if not enough:
        fixes.append(
            "Set INPUT.MIN_SIZE_TRAIN and MIN_SIZE_TEST larger, or cut the images into tiles: no "
            "mask size recovers the detail lost in the resize."
        )
    base, words = CODES["mask_resolution"], ", ".join(
        f"{n} {mean:.2f}" for n, mean in means.items()
    )
    return replace(
        base,
        what=f"{base.what} (M = {size} of {fit.config_file}; mean IoU: {words})",
        fix=" ".join(fixes),
        count=int(np.count_nonzero(masks.iou[size] < WARNING_IOU)),
        examples=particles.worst(masks.row, masks.iou[size], f"IoU {{:.2f}} at {size} x {size}"),
    )
