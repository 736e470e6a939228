"""Anchors of the RPN: how well they fit the boxes of a data set, and others that fit better."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data import transforms as T
from detectron2.modeling import build_anchor_generator, build_backbone
from detectron2.structures import BoxMode
from torch import nn

from microplastics.config import write_derived
from microplastics.modeling.interface import WITHOUT_BOXES, WithoutMemory
from microplastics.utils.errors import UserError

Levels = list[list[float]]
"""Anchor sizes in px, or aspect ratios (height / width), of each feature level."""

ALL = "all"
RECALL_IOUS = (0.5, 0.7)
# Boxes that the searches see: the error of a mean IoU is below 0.01.
_MOST_BOXES = 1500
_RESTARTS, _ROUNDS = 8, 50
# Generations and members for each parameter of the differential evolution, and how far it may go
# from k-means: factors on sizes and on ratios.
_GENERATIONS, _MEMBERS = 60, 5
_SIZE_RANGE, _RATIO_RANGE = 2.0, 3.0
# What is in the RPN's head for each anchor.
_HEAD_LAYERS = ("objectness_logits", "anchor_deltas")


@dataclass(frozen=True)
class AnchorGrid:
    """The places and shapes of a config's anchors.

    Attributes:
        generator: Detectron2's ``DefaultAnchorGenerator``.
        cells: of each level (A, 4) float64, the anchors around a point of the grid, in px.
        divisibility: images are padded to a multiple of it, in px.
    """

    generator: nn.Module
    cells: tuple[np.ndarray, ...]
    divisibility: int

    @classmethod
    def from_config(cls, cfg: CfgNode, config_file: str = "") -> "AnchorGrid":
        """Build the grid of a config; its file is named in errors.

        Raises:
            UserError: ``config_invalid`` if backbone and anchors do not fit together, or the
                anchors are rotated.
        """
        try:
            with WithoutMemory():  # only shapes are needed
                backbone = build_backbone(cfg)
            shapes = backbone.output_shape()
            features = [shapes[feature] for feature in cfg.MODEL.RPN.IN_FEATURES]
            generator = build_anchor_generator(cfg, features)
            if generator.box_dim != 4:
                raise ValueError("only those of a DefaultAnchorGenerator are measured")
        except (AssertionError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{config_file or 'The config'} has no usable anchors ({type(error).__name__}: "
                f"{error}); correct MODEL.BACKBONE, MODEL.RPN.IN_FEATURES or "
                "MODEL.ANCHOR_GENERATOR.",
                code="config_invalid",
            ) from error
        cells = tuple(cell.double().numpy() for cell in generator.cell_anchors)
        return cls(generator, cells, max(1, backbone.size_divisibility))

    def with_anchors(self, sizes: Levels, ratios: Levels) -> "AnchorGrid":
        """Return the grid with other anchors, a list for each level."""
        make = self.generator.generate_cell_anchors
        pairs = zip(sizes, ratios, strict=True)
        return replace(self, cells=tuple(make(*pair).double().numpy() for pair in pairs))

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
        padded = -(-sizes // self.divisibility) * self.divisibility
        low, high = boxes[:, :2].astype(np.float64), boxes[:, 2:].astype(np.float64)
        area, best = np.clip(high - low, 0, None).prod(axis=1), np.zeros(len(boxes))
        for cells, stride in zip(self.cells, self.generator.strides, strict=True):
            last = -(-padded[:, ::-1] // stride) - 1
            for cell in cells:
                away = (low + high) / 2 - (cell[:2] + cell[2:]) / 2
                place = np.clip(np.rint(away / stride - self.generator.offset), 0, last)
                shift = (place + self.generator.offset) * stride
                start = np.maximum(low, cell[:2] + shift)
                end = np.minimum(high, cell[2:] + shift)
                common = np.clip(end - start, 0, None).prod(axis=1)
                union = area + (cell[2:] - cell[:2]).prod() - common
                best = np.maximum(best, common / union)
        return best


def resized_size(height: int, width: int, min_size: int, max_size: int) -> tuple[int, int]:
    """Height and width in px after ``ResizeShortestEdge``; ``min_size`` 0 keeps both."""
    if min_size == 0:
        return height, width
    size = T.ResizeShortestEdge.get_output_shape(height, width, min_size, max_size)
    return max(1, size[0]), max(1, size[1])


@dataclass
class TrainingBoxes:
    """The boxes that training sees, one a row.

    Attributes:
        boxes: (N, 4) float64 x0, y0, x1, y1 in px of the network's input.
        sizes: (N, 2) int64 height and width of that input, in px.
        labels: (N,) int64 contiguous class numbers.
        class_names: by class number.
    """

    boxes: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray
    class_names: list[str]

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "TrainingBoxes":
        """Collect the boxes of DATASETS.TRAIN after INPUT.TILE and the resize of training.

        A box counts once for each size of INPUT.MIN_SIZE_TRAIN, of a range for its ends and its
        middle, and once more on its side if augmentation turns images. Crowds are left out.

        Raises:
            UserError: a data set is broken, or ``dataset_empty``.
        """
        # Imported here: the loader brings the mapper and its libraries.
        from microplastics.data.loader import check_datasets, training_dicts

        cfg = check_datasets(cfg, ("TRAIN",))
        boxes, sizes, labels = [], [], []
        for dic in training_dicts(cfg):
            before = dic["height"], dic["width"]
            kept = [each for each in dic["annotations"] if not each.get("iscrowd", 0)]
            corners = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in kept]
            corners = np.array(corners, dtype=np.float64).reshape(-1, 4)
            for shortest in _training_sizes(cfg):
                after = resized_size(*before, shortest, cfg.INPUT.MAX_SIZE_TRAIN)
                factors = np.array(after) / before
                boxes.append(corners * factors[[1, 0, 1, 0]])
                sizes.append(np.tile(after, (len(kept), 1)))
                labels.append([each["category_id"] for each in kept])
        names = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).get("thing_classes", [])
        table = [np.concatenate(each) for each in (boxes, sizes, labels)]
        if not len(table[0]):
            raise UserError(
                f"{', '.join(cfg.DATASETS.TRAIN)} has no boxes but those of crowds; annotate "
                "particles.",
                code="dataset_empty",
            )
        if cfg.INPUT.AUG.RIGHT_ANGLES.PROB or cfg.INPUT.AUG.ROTATION.PROB:
            turned = table[0][:, [1, 0, 3, 2]], table[1][:, ::-1], table[2]
            table = [np.concatenate(each) for each in zip(table, turned, strict=True)]
        return cls(table[0], table[1], table[2].astype(np.int64), list(names))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def weights(self) -> np.ndarray:
        """(N,) float64 that sum to 1, and to the same for each class."""
        weights = 1 / np.bincount(self.labels)[self.labels]
        return weights / weights.sum()

    def drawn(self, most: int, seed: int) -> "TrainingBoxes":
        """Return at most so many boxes drawn at random, of each class alike where it has them."""
        if len(self) <= most:
            return self
        random = np.random.default_rng(seed)
        # Gumbel's trick: the largest keys are a weighted sample without replacement.
        keys = np.log(self.weights) + random.gumbel(size=len(self))
        rows = np.sort(np.argsort(-keys)[:most])
        return replace(
            self, boxes=self.boxes[rows], sizes=self.sizes[rows], labels=self.labels[rows]
        )


def _training_sizes(cfg: CfgNode) -> list[int]:
    sizes = cfg.INPUT.MIN_SIZE_TRAIN
    sizes = [sizes] if isinstance(sizes, int) else list(sizes)
    if cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range":
        sizes = [sizes[0], round(sum(sizes) / 2), sizes[-1]]
    return sorted(set(sizes))


@dataclass(frozen=True)
class AnchorFit:
    """How well anchors fit boxes.

    Attributes:
        sizes, ratios: of the anchors, of each level.
        best: (N,) IoU of the best anchor of each box.
        figures: by class and of ``all``: ``mean_iou``, ``recall_0.5`` and ``recall_0.7`` (the
            share of the boxes with an anchor of at least that IoU: the best possible recall), and
            ``no_anchor`` (the share without one of the upper MODEL.RPN.IOU_THRESHOLDS).
    """

    sizes: Levels
    ratios: Levels
    best: np.ndarray
    figures: dict[str, dict[str, float]]


@dataclass(frozen=True)
class AnchorSearch:
    """Result of :func:`find_anchors`: the fits by method, and the name of the best one."""

    fits: dict[str, AnchorFit]
    chosen: str
    data: TrainingBoxes


def find_anchors(
    cfg: CfgNode,
    config_file: str = "",
    *,
    num_sizes: int | None = None,
    num_ratios: int | None = None,
    seed: int = 0,
) -> AnchorSearch:
    """Find anchors that fit the training boxes of a config.

    A box belongs to the feature level whose configured anchors are nearest to its size. k-means
    with the distance 1 - IoU (Redmon and Farhadi, YOLO9000, 2017) clusters the shapes of each
    level, and differential evolution (Storn and Price 1997; for anchors Zlocha, Dou and Glocker
    2019) goes on from there with what training does: the anchors at the places of their level's
    grid. It maximises the mean IoU of the best anchor plus the recall at IoU 0.5, each class
    counting alike. Levels without boxes keep their anchors.

    Args:
        cfg: the config; DATASETS.TRAIN names the data.
        config_file: its name, for errors.
        num_sizes, num_ratios: of each level; None for as many as the config has.
        seed: of the random numbers.

    Returns:
        The fits ``before``, ``k-means`` and ``evolution``. The best is chosen over all boxes.

    Raises:
        UserError: the config has no anchors, or none that can be used, or the data set no boxes.
    """
    if cfg.MODEL.META_ARCHITECTURE in WITHOUT_BOXES:
        raise UserError(
            f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}, which has no anchors; "
            "expected a config with an RPN.",
            code="config_invalid",
        )
    data = TrainingBoxes.from_config(cfg)
    grid = AnchorGrid.from_config(cfg, config_file)
    sizes, ratios = _configured(cfg, len(grid.cells))
    upper = cfg.MODEL.RPN.IOU_THRESHOLDS[-1]
    fits = {"before": _fit(grid, sizes, ratios, data, upper)}
    counts = num_sizes or len(sizes[0]), num_ratios or len(ratios[0])
    sample = data.drawn(_MOST_BOXES, seed)
    sizes, ratios, used = _cluster(sample, sizes, ratios, counts, seed)
    fits["k-means"] = _fit(grid, sizes, ratios, data, upper)
    sizes, ratios = _evolve(grid, sample, sizes, ratios, used, seed)
    fits["evolution"] = _fit(grid, sizes, ratios, data, upper)
    same_head = counts[0] * counts[1] == len(grid.cells[0])
    candidates = list(fits) if same_head else ["k-means", "evolution"]
    chosen = max(candidates, key=lambda name: _score(fits[name].best, data.weights))
    return AnchorSearch(fits, chosen, data)


def _configured(cfg: CfgNode, levels: int) -> tuple[Levels, Levels]:
    """Return sizes and ratios of the config, a list for each level."""
    spread = []
    for given in (cfg.MODEL.ANCHOR_GENERATOR.SIZES, cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS):
        rows = given if isinstance(given[0], Sequence) else [given]
        spread.append([list(row) for row in (rows * levels if len(rows) == 1 else rows)])
    return spread[0], spread[1]


def _fit(
    grid: AnchorGrid, sizes: Levels, ratios: Levels, data: TrainingBoxes, upper: float
) -> AnchorFit:
    best = grid.with_anchors(sizes, ratios).best_iou(data.boxes, data.sizes)
    groups = {data.class_names[label]: data.labels == label for label in np.unique(data.labels)}
    figures = {}
    for name, rows in {**groups, ALL: np.full(len(data), True)}.items():
        figures[name] = {"mean_iou": float(best[rows].mean())}
        figures[name] |= {f"recall_{t}": float((best[rows] >= t).mean()) for t in RECALL_IOUS}
        figures[name]["no_anchor"] = float((best[rows] < upper).mean())
    return AnchorFit(sizes, ratios, best, figures)


def _score(best: np.ndarray, weights: np.ndarray) -> float:
    """Mean best IoU plus recall, of weights that sum to 1."""
    return float(((best + (best >= RECALL_IOUS[0])) * weights).sum())


def _cluster(
    data: TrainingBoxes, sizes: Levels, ratios: Levels, counts: tuple[int, int], seed: int
) -> tuple[Levels, Levels, list[int]]:
    """Return sizes and ratios of k-means on each level, and the levels that have boxes."""
    shapes, weights = data.boxes[:, 2:] - data.boxes[:, :2], data.weights
    shapes = np.maximum(shapes, 1.0)
    middles = np.array([np.log(level).mean() for level in sizes])
    side = np.log(shapes).mean(axis=1)
    level_of = np.abs(side[:, None] - middles).argmin(axis=1)
    random, used = np.random.default_rng(seed), np.unique(level_of).tolist()
    found_sizes, found_ratios = [], []
    for level, (size, ratio) in enumerate(zip(sizes, ratios, strict=True)):
        if level in used:
            rows = level_of == level
            centres = kmeans(shapes[rows], weights[rows], counts[0] * counts[1], random)
        else:
            root = np.sqrt(ratio)
            centres = np.array([(s / r, s * r) for s in size for r in root])
        areas, slopes = centres.prod(axis=1), centres[:, 1] / centres[:, 0]
        found_sizes.append(_groups(np.sqrt(areas), counts[0]))
        found_ratios.append(_groups(slopes, counts[1]))
    return found_sizes, found_ratios, used


def _groups(values: np.ndarray, number: int) -> list[float]:
    """Geometric means of consecutive groups of sorted positive values."""
    logs = np.sort(np.log(values))
    if len(logs) < number:
        logs = np.interp(np.linspace(0, 1, number), np.linspace(0, 1, len(logs)), logs)
    return _rounded([float(np.exp(group.mean())) for group in np.array_split(logs, number)])


def _rounded(values: Sequence[float]) -> list[float]:
    return [float(f"{value:.4g}") for value in values]


def kmeans(
    shapes: np.ndarray, weights: np.ndarray, number: int, random: np.random.Generator
) -> np.ndarray:
    """Cluster widths and heights by the distance 1 - IoU of boxes with one centre.

    The best of several starts, each from shapes drawn at random far apart (k-means++). Redmon
    and Farhadi, YOLO9000: Better, Faster, Stronger, 2017.

    Args:
        shapes: (N, 2) widths and heights in px, above 0.
        weights: (N,) above 0.
        number: of clusters; there are fewer if there are fewer different shapes.
        random: for the starts.

    Returns:
        (K, 2) widths and heights of the centres: weighted means of their members.
    """
    different = len(np.unique(shapes, axis=0))
    best, best_iou = shapes[:1], -1.0
    for _ in range(_RESTARTS):
        centres = shapes[random.choice(len(shapes), 1, p=weights / weights.sum())]
        while len(centres) < min(number, different):
            distance = weights * (1 - _shape_iou(shapes, centres).max(axis=1))
            distance = np.clip(distance, 0, None)
            if distance.sum() <= 0:
                break
            row = random.choice(len(shapes), p=distance / distance.sum())
            centres = np.vstack([centres, shapes[row]])
        for _ in range(_ROUNDS):
            iou = _shape_iou(shapes, centres)
            member, mean = iou.argmax(axis=1), float(np.average(iou.max(axis=1), weights=weights))
            if mean > best_iou:
                best, best_iou = centres, mean
            moved = centres.copy()
            for index in np.unique(member):
                rows = member == index
                moved[index] = np.average(shapes[rows], axis=0, weights=weights[rows])
            if np.allclose(moved, centres):
                break
            centres = moved
    return best


def _shape_iou(shapes: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """(N, K) IoU of boxes around one centre."""
    common = np.minimum(shapes[:, None], centres).prod(axis=2)
    return common / (shapes.prod(axis=1)[:, None] + centres.prod(axis=1) - common)


def _evolve(
    grid: AnchorGrid,
    data: TrainingBoxes,
    sizes: Levels,
    ratios: Levels,
    used: Sequence[int],
    seed: int,
) -> tuple[Levels, Levels]:
    """Return sizes and ratios of differential evolution around those that are given."""
    from scipy.optimize import differential_evolution

    weights, num_sizes = data.weights, len(sizes[0])
    start = np.log([[*sizes[level], *ratios[level]] for level in used])
    reach = np.log([_SIZE_RANGE] * num_sizes + [_RATIO_RANGE] * len(ratios[0]))
    reach = np.tile(reach, len(used))

    def levels(vector: np.ndarray) -> tuple[Levels, Levels]:
        rows = np.exp(vector).reshape(len(used), -1)
        # The coarser level has the larger anchors.
        rows = rows[np.argsort(rows[:, :num_sizes].prod(axis=1))].tolist()
        new_sizes, new_ratios = list(sizes), list(ratios)
        for level, row in zip(used, rows, strict=True):
            new_sizes[level] = _rounded(sorted(row[:num_sizes]))
            new_ratios[level] = _rounded(sorted(row[num_sizes:]))
        return new_sizes, new_ratios

    def loss(vector: np.ndarray) -> float:
        best = grid.with_anchors(*levels(vector)).best_iou(data.boxes, data.sizes)
        return -_score(best, weights)

    middle = start.ravel()
    result = differential_evolution(
        loss,
        np.stack([middle - reach, middle + reach], axis=1),
        x0=middle,
        maxiter=_GENERATIONS,
        popsize=_MEMBERS,
        seed=seed,
        polish=False,
    )
    return levels(result.x)


def write_anchors(
    search: AnchorSearch, cfg: CfgNode, config_file: str, output: str | os.PathLike
) -> None:
    """Write a config with the chosen anchors that derives from another, completely or not at all.

    Args:
        search: of :func:`find_anchors`.
        cfg: the config that was searched for.
        config_file: its path or name, for ``_BASE_``.
        output: ``.yaml`` to write.

    Raises:
        UserError: ``option_invalid`` (another ending), ``option_conflict`` (the base itself).
    """
    fit, before = search.fits[search.chosen], search.fits["before"]
    values = {
        "MODEL.ANCHOR_GENERATOR.SIZES": fit.sizes,
        "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": fit.ratios,
    }
    comments = [f"Anchors for {', '.join(cfg.DATASETS.TRAIN)}: microplastics anchors."]
    if len(fit.sizes[0]) * len(fit.ratios[0]) != len(before.sizes[0]) * len(before.ratios[0]):
        prefixes = [f"proposal_generator.rpn_head.{layer}" for layer in _HEAD_LAYERS]
        values["MODEL.WEIGHTS_ALLOW_MISMATCH"] = [*cfg.MODEL.WEIGHTS_ALLOW_MISMATCH, *prefixes]
        comments.append("The RPN's head has another number of anchors than MODEL.WEIGHTS.")
    write_derived(output, config_file, values, comments)


def describe(search: AnchorSearch) -> list[dict[str, str]]:
    """Make a row for each class and each of the anchors: mean best IoU, recall, no anchor."""
    return [
        {
            "class": name,
            "anchors": method,
            "mean best IoU": f"{figures['mean_iou']:.3f}",
            **{f"recall at {t}": f"{figures[f'recall_{t}']:.1%}" for t in RECALL_IOUS},
            "without an anchor": f"{figures['no_anchor']:.1%}",
        }
        for name in search.fits["before"].figures
        for method, figures in ((m, fit.figures[name]) for m, fit in search.fits.items())
    ]
