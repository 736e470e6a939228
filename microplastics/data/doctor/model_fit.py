"""Anchors, sizes and mask resolution of a config against the particles, and its epochs."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from tqdm import tqdm

from microplastics.data.anchors import ALL, AnchorGrid, resized_size
from microplastics.data.coco import Place
from microplastics.data.doctor.findings import (
    CODES,
    EXAMPLES,
    INFO,
    WARNING,
    Example,
    Finding,
    ModelFit,
)
from microplastics.modeling.interface import WITHOUT_BOXES, mask_size
from microplastics.modeling.roi_heads.roi_heads import grow
from microplastics.structures.crop_masks import CropMasks

ANCHOR_IOU = 0.5
MIN_WIDTH = 4.0
MASK_SIZES = (28, 56, 112)
# Fractions above which a finding is a warning, or information; mean IoU below which it is one.
WARNING_FRACTION, INFO_FRACTION, WARNING_IOU = 0.05, 0.01, 0.9
MAX_PER_CLASS = 1000  # the error of a mean IoU is below 0.01, of a fraction one or two points
FEW_EPOCHS = 12  # that a network needs at least to learn from a data set
_PERCENT = "{:.1%}"
# Above this many pixels a bin of the largest crop spans 18 px, and a smaller copy suffices.
_MAX_MASK_PIXELS = 2**22


@dataclass
class _Particles:
    """All particles except crowds, as columns of N rows."""

    owners: list[tuple[dict[str, Any], dict[str, Any]]]  # image and annotation of each
    image: np.ndarray  # (N,) index of its image, ascending
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
        examples = []
        for index in np.argsort(values, kind="stable")[:EXAMPLES]:
            dic, annotation = self.owners[rows[index]]
            image = {"id": dic["image_id"], "file_name": os.path.basename(dic["file_name"])}
            place, box = Place("annotation", 0, annotation, image), tuple(annotation["bbox"])
            text = f"{place} ({words.format(values[index])})"
            examples.append(Example(text, "", dic["file_name"], box, annotation["id"]))
        return examples


def measure_fit(
    cfg: CfgNode,
    config_file: str,
    dataset_dicts: Sequence[dict[str, Any]],
    class_names: Sequence[str],
    *,
    sample: int = MAX_PER_CLASS,
) -> tuple[ModelFit, list[Finding]]:
    """Measure how well a model of this config can see the particles of a data set.

    The images are resized by INPUT.MIN_SIZE_TEST and MAX_SIZE_TEST. All boxes are compared with
    the anchors; masks are drawn at random. Crowds are left out, as in training.

    Args:
        cfg: the config.
        config_file: its name, for the report.
        dataset_dicts: as from :func:`microplastics.data.coco.load_instances`; several files with
            the same classes may follow each other.
        class_names: by contiguous id.
        sample: masks that are measured of each class at most.

    Returns:
        The figures, and the findings ``no_anchor``, ``too_small`` and ``mask_resolution``, if
        any: warnings if more than 5 % of the particles of a class, or of all, have no anchor of
        IoU 0.5 or are under 4 px wide, or if the mean IoU of a class is under 0.9 at the mask
        size of the config; information from 1 %.

    Raises:
        UserError: the config has no usable anchors.
    """
    particles = _collect(cfg, dataset_dicts)
    side = mask_size(cfg)
    fit = ModelFit(config_file, mask_size=side or ModelFit.mask_size)
    labels, names = particles.label, list(class_names)
    if not len(labels):
        return fit, []
    anchor_iou = np.ones(len(labels))
    # A model without boxes misses no particle by its anchors.
    if cfg.MODEL.META_ARCHITECTURE not in WITHOUT_BOXES:
        grid = AnchorGrid.from_config(cfg, config_file)
        anchor_iou = grid.best_iou(particles.resized_boxes, particles.after)
    fit.no_anchor = _means(anchor_iou < ANCHOR_IOU, labels, names)
    rows, weights = _draw(labels, sample)
    fit.sampled, drawn = len(rows), labels[rows]
    sizes, box_scale = sorted({*MASK_SIZES, fit.mask_size}), cfg.MODEL.ROI_MASK_HEAD.BOX_SCALE
    width, iou = _measure_masks(particles, rows, sizes, box_scale)
    fit.small = _means(width < MIN_WIDTH, drawn, names, weights)
    by_size = {size: _means(values, drawn, names, weights) for size, values in iou.items()}
    fit.mask_iou = {name: {size: by_size[size][name] for size in by_size} for name in fit.small}
    findings = []
    if severity := _severity(fit.no_anchor):
        about, fix = _words(fit.no_anchor, _PERCENT), CODES["no_anchor"].fix
        every, words = np.arange(len(labels)), "its best anchor has IoU {:.2f}"
        examples = particles.worst(every, anchor_iou, words)
        missed = anchor_iou < ANCHOR_IOU
        findings.append(_finding("no_anchor", fit, about, missed, severity, fix, examples))
    if severity := _severity(fit.small):
        examples = particles.worst(rows, width, "{:.1f} px wide after the resize")
        about, fix, small = _words(fit.small, _PERCENT), _size_fix(width), width < MIN_WIDTH
        findings.append(_finding("too_small", fit, about, small, severity, fix, examples))
    means = by_size[fit.mask_size]
    if side and min(means.values()) < WARNING_IOU:
        about = f"M = {side}; mean IoU: {_words(means)}"
        examples = particles.worst(rows, iou[side], f"IoU {{:.2f}} at {side} x {side}")
        coarse, fix = iou[side] < WARNING_IOU, _mask_fix(cfg, side, by_size)
        findings.append(_finding("mask_resolution", fit, about, coarse, WARNING, fix, examples))
    return fit, findings


@dataclass(frozen=True)
class Outlook:
    """What a training will see.

    Attributes:
        images, particles: of DATASETS.TRAIN; windows count as images.
        iterations, batch_size: of the training.
        fit: what a model of the config can see, without figures if it is none of this package's.
        findings: of :func:`measure_fit`.
    """

    images: int
    particles: int
    iterations: int
    batch_size: int
    fit: ModelFit
    findings: list[Finding]

    @property
    def epochs(self) -> float:
        """Passes over the images."""
        return self.iterations * self.batch_size / max(self.images, 1)

    @property
    def wants_better(self) -> bool:
        """Whether other settings would let the training see clearly more."""
        return self._too_few or any(finding.severity != INFO for finding in self.findings)

    def lines(self) -> list[str]:
        """Sentences for the terminal."""
        lines = [
            f"{self.particles} particles on {self.images} images; {self.iterations} iterations of "
            f"{self.batch_size} are {self.epochs:.3g} epochs"
            + (f", fewer than the {FEW_EPOCHS} that most data sets need." * self._too_few or ".")
        ]
        for name, fraction in self.fit.no_anchor.items():
            kept = self.fit.mask_iou.get(name, {}).get(self.fit.mask_size)
            drawn = f", masks keep an IoU of {kept:.2f}" if kept is not None else ""
            lines.append(
                f"  {name}: {fraction:.0%} without an anchor, {self.fit.small[name]:.0%} under "
                f"{MIN_WIDTH:g} px wide at this input size{drawn}"
            )
        return lines

    @property
    def _too_few(self) -> bool:
        return 0 < self.iterations and self.epochs < FEW_EPOCHS


def outlook(
    cfg: CfgNode,
    dataset_dicts: Sequence[dict[str, Any]],
    config_file: str = "",
    *,
    images: float | None = None,
    sample: int = MAX_PER_CLASS,
) -> Outlook:
    """Measure what a training of this config will see.

    Args:
        cfg: the config, with the number of iterations in SOLVER.MAX_ITER.
        dataset_dicts: of training, see :func:`microplastics.data.loader.training_dicts`.
        config_file: its name, for errors.
        images: in an epoch, if not every one is drawn once.
        sample: masks that are measured of each class at most.

    Raises:
        UserError: the config has no usable anchors.
    """
    names = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).get("thing_classes", [])
    crowds = [a.get("iscrowd", 0) for each in dataset_dicts for a in each.get("annotations", ())]
    fit, findings = ModelFit(config_file), []
    if cfg.MODEL.META_ARCHITECTURE in ("GeneralizedRCNN", *WITHOUT_BOXES):
        seen = as_evaluated(cfg)
        fit, findings = measure_fit(seen, config_file, dataset_dicts, names, sample=sample)
    return Outlook(
        round(images or len(dataset_dicts)),
        crowds.count(0),
        cfg.SOLVER.MAX_ITER,
        cfg.SOLVER.IMS_PER_BATCH,
        fit,
        findings,
    )


def as_evaluated(cfg: CfgNode) -> CfgNode:
    """The config for whole images at the size of evaluation, where crops have the same scale."""
    seen = cfg.clone()
    seen.defrost()
    seen.INPUT.AUG.CROP.PROB = 0.0
    seen.INPUT.MIN_SIZE_TRAIN = (cfg.INPUT.MIN_SIZE_TEST,)
    seen.INPUT.MIN_SIZE_TRAIN_SAMPLING = "choice"
    seen.INPUT.MAX_SIZE_TRAIN = cfg.INPUT.MAX_SIZE_TEST
    return seen


def mask_widths(
    cfg: CfgNode, dataset_dicts: Sequence[dict[str, Any]], sample: int = MAX_PER_CLASS
) -> tuple[np.ndarray, np.ndarray]:
    """Measure :func:`mask_width` after the resize of INPUT.MIN_SIZE_TEST (0: in px of the files).

    Args:
        cfg, dataset_dicts, sample: as of :func:`measure_fit`.

    Returns:
        (N,) widths in px and class numbers of the particles drawn.
    """
    particles = _collect(cfg, dataset_dicts)
    rows, _ = _draw(particles.label, sample) if len(particles.label) else (np.arange(0), None)
    return _measure_masks(particles, rows, (), 1.0)[0], particles.label[rows]


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
    masks: CropMasks,
    boxes: np.ndarray,
    resized: tuple[int, int],
    mask_sizes: Sequence[int],
    box_scale: float = 1.0,
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
        box_scale: MODEL.ROI_MASK_HEAD.BOX_SCALE.

    Returns:
        (K, N) float64 in [0, 1]; 0 for a mask without a pixel.
    """
    iou = np.zeros((len(mask_sizes), len(masks)))
    for index, crop in enumerate(masks.crops):
        mask, box, seen = masks[[index]], boxes[[index]], tuple(resized)
        if crop.size > _MAX_MASK_PIXELS:
            factor = np.sqrt(_MAX_MASK_PIXELS / crop.size)
            size = tuple(max(1, round(side * factor)) for side in mask.image_size)
            mask, box = mask.affine(np.eye(2, 3) * factor, size), box * factor
            seen = min(seen, size)
        height, width = mask.image_size
        scale = np.array([seen[1] / width, seen[0] / height])
        on_input = mask.affine(np.column_stack([np.diag(scale), (0, 0)]), seen)
        box_on_input = torch.as_tensor(box * np.tile(scale, 2), dtype=torch.float32)
        box, true = torch.as_tensor(box, dtype=torch.float32), mask.to_rles()
        if box_scale != 1:
            box_on_input, box = grow(box_on_input, box_scale), grow(box, box_scale)
        for row, size in enumerate(mask_sizes):
            target = on_input.crop_and_resize(box_on_input, size).float()
            pasted = CropMasks.paste(target, box, mask.image_size).to_rles()
            iou[row, index] = mask_util.iou(true, pasted, [0])[0, 0]
    return iou


def _collect(cfg: CfgNode, dataset_dicts: Sequence[dict[str, Any]]) -> _Particles:
    owners, rows, boxes = [], [], []
    for image, dic in enumerate(dataset_dicts):
        size = dic["height"], dic["width"]
        after = resized_size(*size, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
        for annotation in dic["annotations"]:
            if not annotation.get("iscrowd", 0):
                owners.append((dic, annotation))
                rows.append((image, annotation["category_id"], *size, *after))
                boxes.append(annotation["bbox"])
    table = np.array(rows, dtype=np.int64).reshape(-1, 6)
    boxes = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return _Particles(owners, *table[:, :2].T, boxes, table[:, 2:4], table[:, 4:])


def _measure_masks(
    particles: _Particles, rows: np.ndarray, mask_sizes: Sequence[int], box_scale: float
) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """Width of the particles of some rows in px after the resize, and IoU by mask side."""
    width, iou = np.zeros(len(rows)), np.zeros((len(mask_sizes), len(rows)))
    starts = np.flatnonzero(np.diff(particles.image[rows])) + 1
    of_images = np.split(np.arange(len(rows)), starts)
    for places in tqdm(of_images, "Masks and model", unit="image", disable=None):
        members = rows[places]
        outlines = [particles.owners[row][1]["segmentation"] for row in members]
        before, after = particles.before[members[0]], particles.after[members[0]]
        masks = CropMasks.from_coco(outlines, tuple(before.tolist()))
        factor = np.sqrt((after / before).prod())
        width[places] = [mask_width(crop) * factor for crop in masks.crops]
        boxes, seen = particles.boxes[members], tuple(after.tolist())
        iou[:, places] = mask_round_trip(masks, boxes, seen, mask_sizes, box_scale)
    return width, dict(zip(mask_sizes, iou, strict=True))


def _draw(labels: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of at most so many particles a class, and the number that each represents."""
    random, drawn, weights = np.random.default_rng(0), [], []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        kept = random.permutation(rows)[:most]
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


def _severity(fractions: dict[str, float]) -> str | None:
    """Severity of fractions of each class and of all, None if they are small."""
    if max(fractions.values()) > WARNING_FRACTION:
        return WARNING
    return INFO if fractions[ALL] > INFO_FRACTION else None


def _words(figures: dict[str, float], number: str = "{:.2f}") -> str:
    return ", ".join(f"{name} {number.format(figure)}" for name, figure in figures.items())


def _finding(
    code: str,
    fit: ModelFit,
    about: str,
    concerned: np.ndarray,
    severity: str,
    fix: str,
    examples: list[Example],
) -> Finding:
    base, count = CODES[code], int(np.count_nonzero(concerned))
    what = f"{base.what} ({fit.config_file}: {about})"
    return replace(base, what=what, severity=severity, fix=fix, count=count, examples=examples)


def _size_fix(widths: np.ndarray) -> str:
    factor = MIN_WIDTH / max(float(np.quantile(widths, WARNING_FRACTION)), 0.1)
    return (
        f"Set INPUT.MIN_SIZE_TRAIN and MIN_SIZE_TEST {factor:.1f} times as large and "
        "MAX_SIZE_TRAIN and MAX_SIZE_TEST accordingly, cut the images into tiles, or photograph at "
        "a higher magnification if the particles have few pixels in the file."
    )


def _mask_fix(cfg: CfgNode, size: int, by_size: dict[int, dict[str, float]]) -> str:
    """Recommend the smallest larger mask that draws every class well, if there is one."""
    for other, means in by_size.items():
        if other > size and min(means.values()) >= WARNING_IOU:
            how = "Use a larger mask head"
            head = cfg.MODEL.ROI_MASK_HEAD
            if size == 2 * head.POOLER_RESOLUTION or head.NAME == "ParticleMaskHead":
                pooled = head.POOLER_RESOLUTION * other // size
                how = f"Set MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION {pooled}"
            return (
                f"{how}: masks of {other} x {other} keep a mean IoU of {_words(means)}, for "
                f"{(other / size) ** 2:.0f} times the time of the mask head."
            )
    return CODES["mask_resolution"].fix
