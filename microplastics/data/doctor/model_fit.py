"""What a model of a given config can see of the particles: anchors, sizes, mask resolution."""

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.modeling import build_anchor_generator, build_backbone
from detectron2.structures import BoxMode
from tqdm import tqdm

from microplastics.data.doctor.findings import EXAMPLES, INFO, WARNING, Example, Finding, ModelFit
from microplastics.modeling.interface import mask_size
from microplastics.structures.crop_masks import CropMasks
from microplastics.utils.errors import UserError

_BOXES_AT_ONCE = 2**16


@dataclass(frozen=True)
class AnchorGrid:
    """Where the anchors of a config lie on an image.

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
        """Lay out the anchors that Detectron2's RPN of this config has.

        Args:
            cfg: the config.
            config_file: its name, for errors.

        Raises:
            UserError: the config describes no backbone and anchors that fit together, or anchors
                that are turned.
        """
        name = config_file or "The config"
        try:
            # Only the shapes are asked for: on this device no weight is made.
            with torch.device("meta"):
                backbone = build_backbone(cfg)
            shapes = backbone.output_shape()
            features = [shapes[feature] for feature in cfg.MODEL.RPN.IN_FEATURES]
            generator = build_anchor_generator(cfg, features)
        except (AssertionError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{name} has no anchors that can be laid out ({type(error).__name__}: {error}); "
                "correct MODEL.BACKBONE, MODEL.RPN.IN_FEATURES or MODEL.ANCHOR_GENERATOR."
            ) from error
        if generator.box_dim != 4:
            raise UserError(
                f"{name} has anchors that are turned, which are not measured; set "
                "MODEL.ANCHOR_GENERATOR.NAME DefaultAnchorGenerator."
            )
        return cls(
            [cell.double().numpy() for cell in generator.cell_anchors],
            [int(feature.stride) for feature in features],
            float(cfg.MODEL.ANCHOR_GENERATOR.OFFSET),
            max(1, int(backbone.size_divisibility)),
        )

    def best_iou(self, boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Find for each box the IoU of the anchor that matches it best.

        The overlap of two boxes is the product of their overlaps along x and y, and each of them
        can only shrink when the centres move apart along its axis. So of all places of an anchor
        the one at the nearest column and the nearest row of the grid is the best, and the others
        need not be looked at. Anchors that reach out of the image count, as Detectron2 matches
        them by default (``MODEL.RPN.BOUNDARY_THRESH`` -1).

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
            shared = np.clip(end - start, 0, None).prod(axis=2)
            area = np.clip(high - low, 0, None).prod(axis=2)
            union = area + (cells[:, 2:] - cells[:, :2]).prod(axis=1) - shared
            iou = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
            best = np.maximum(best, iou.max(axis=1))
        return best

    def changed(
        self,
        factor: float = 1.0,
        steps: Sequence[float] = (1.0,),
        ratios: Sequence[float] = (),
    ) -> "AnchorGrid":
        """Lay out other anchors at the same places.

        Args:
            factor: by which every size is enlarged.
            steps: each size stands there once times each of these.
            ratios: height / width of the anchors of each size; the own ones if empty.
        """
        cells = []
        for cell in self.cells:
            width, height = (cell[:, 2:] - cell[:, :2]).T
            if ratios:
                sizes, shapes = np.unique(np.sqrt(width * height).round(3)), np.sqrt(ratios)
                width, height = (sizes[:, None] / shapes).ravel(), np.outer(sizes, shapes).ravel()
            half = np.concatenate([np.stack([width, height], 1) * factor * k / 2 for k in steps])
            cells.append(np.concatenate([-half, half], axis=1))
        return AnchorGrid(cells, self.strides, self.offset, self.divisibility)


# Beyond this many pixels a bin of the largest crop spans 18 px, and a smaller copy tells as much.
_MAX_MASK_PIXELS = 2**22


def mask_width(mask: np.ndarray) -> float:
    """Width in px of a particle: the short side of the rectangle of its area and perimeter.

    Unlike the sides of a box around it, that is a fibre's own width however it lies and curls.
    The perimeter P is Crofton's in four directions (half the mean number of crossings with a
    grid of lines, times pi, times the lines' distance). Where no rectangle is as round as the
    particle, it is the side of the square of its area A: w = P/4 - sqrt(max(0, P²/16 - A)), or
    sqrt(A).

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

    As in training: the masks are resized with their image, cropped by their boxes and cut at one
    half to targets of M x M; as in inference: a mask equal to its target is pasted into the box
    on the original image. Masks of more than 4 megapixels are judged on a smaller copy.

    Args:
        masks: N true masks on the original image.
        boxes: (N, 4) their boxes x0, y0, x1, y1 in px of the original image.
        resized: height and width in px that the network sees.
        mask_sizes: K sizes M.

    Returns:
        (K, N) float64 in [0, 1]; 0 for a mask without a pixel.
    """
    iou = np.zeros((len(mask_sizes), len(masks)))
    pixels = np.array([crop.size for crop in masks.crops])
    large = np.flatnonzero(pixels > _MAX_MASK_PIXELS)
    iou[:, pixels <= _MAX_MASK_PIXELS] = _round_trip(
        masks[pixels <= _MAX_MASK_PIXELS], boxes[pixels <= _MAX_MASK_PIXELS], resized, mask_sizes
    )
    for index in large:
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
    iou = []
    for size in mask_sizes:
        targets = seen.crop_and_resize(boxes_seen, size)
        pasted = CropMasks.paste(targets.float(), boxes, masks.image_size)
        pairs = zip(masks.crops, masks.offsets, pasted.crops, pasted.offsets, strict=True)
        iou.append([_iou(*pair) for pair in pairs])
    return np.array(iou)


def _iou(one: np.ndarray, start: np.ndarray, other: np.ndarray, other_start: np.ndarray) -> float:
    """IoU of two crops of one image; the offsets are x0, y0."""
    left, top = np.maximum(start, other_start)
    right, bottom = np.minimum(start + one.shape[::-1], other_start + other.shape[::-1])
    shared = 0
    if right > left and bottom > top:
        views = [
            crop[top - y : bottom - y, left - x : right - x]
            for crop, (x, y) in ((one, start), (other, other_start))
        ]
        shared = np.count_nonzero(views[0] & views[1])
    union = np.count_nonzero(one) + np.count_nonzero(other) - shared
    return shared / union if union else 0.0


ANCHOR_IOU = 0.5
MIN_WIDTH = 4.0
MASK_SIZES = (28, 56, 112)
# Shares above which a finding is a warning, or is worth a word; mean IoU below which it is one.
WARNING_SHARE, INFO_SHARE, WARNING_IOU = 0.05, 0.01, 0.9
MAX_PER_CLASS = 1000  # a mean IoU is then off by less than 0.01, a share by one point or two
ALL = "all"
# Boxes and height/width ratios that mends are tried with; () are those of the config.
_TRIED = 2**13
_RATIOS = ((), (0.25, 0.5, 1.0, 2.0, 4.0), (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0))


@dataclass
class _Particles:
    """All particles that are no crowds, as columns of N rows."""

    dicts: Sequence[dict[str, Any]]
    image: np.ndarray  # (N,) number of its image
    place: np.ndarray  # (N,) number of its annotation in that image
    label: np.ndarray  # (N,) contiguous class number
    boxes: np.ndarray  # (N, 4) x0, y0, x1, y1 in px of the file
    before: np.ndarray  # (N, 2) height and width of the file in px
    after: np.ndarray  # (N, 2) the same after the resize

    @property
    def resized_boxes(self) -> np.ndarray:
        """(N, 4) in px that the network sees."""
        return self.boxes * (self.after / self.before)[:, [1, 0, 1, 0]]

    def example(self, index: int, detail: str) -> Example:
        dic = self.dicts[self.image[index]]
        annotation = dic["annotations"][self.place[index]]
        x0, y0, x1, y1 = self.boxes[index].tolist()
        return Example(
            f"annotation {annotation['id']} of image {dic['image_id']} "
            f"({os.path.basename(dic['file_name'])!r}) ({detail})",
            image=dic["file_name"],
            box=(x0, y0, x1 - x0, y1 - y0),
            annotation_id=annotation["id"],
        )


@dataclass(frozen=True)
class _Masks:
    """What the sampled masks measure, as columns of S rows."""

    index: np.ndarray  # (S,) row in _Particles
    weight: np.ndarray  # (S,) particles that each stands for
    width: np.ndarray  # (S,) px after the resize
    iou: dict[int, np.ndarray]  # crop size M -> (S,)


def measure_fit(
    cfg: CfgNode,
    config_file: str,
    dataset_dicts: Sequence[dict[str, Any]],
    class_names: Sequence[str],
    seed: int = 0,
) -> tuple[ModelFit, list[Finding]]:
    """Measure what a model of this config can see of the particles of a data set.

    The images are resized by INPUT.MIN_SIZE_TEST and MAX_SIZE_TEST. All boxes are held against
    the anchors; of the masks at most 1,000 a class are looked at, drawn by chance. Crowds are
    left out, as in training.

    Args:
        cfg: the config.
        config_file: its name, for the report.
        dataset_dicts: as :func:`microplastics.data.coco.load_instances` gives them; of several
            files one after another, when they have the same classes.
        class_names: by contiguous id.
        seed: of the drawing.

    Returns:
        The figures, and the findings ``no_anchor``, ``too_small`` and ``mask_resolution`` (those
        that there are): warnings where more than 5 % of the particles of a class, or of all, have
        no anchor of IoU 0.5 or are under 4 px wide, or where the mean IoU of a class is under 0.9
        at the mask size of the config; info from 1 % on.

    Raises:
        UserError: the config has no usable anchors.
    """
    grid = AnchorGrid.from_config(cfg, config_file)
    particles = _collect(cfg, dataset_dicts)
    fit = ModelFit(config_file, mask_size=mask_size(cfg) or ModelFit.mask_size)
    if not len(particles.label):
        return fit, []
    anchor_iou = grid.best_iou(particles.resized_boxes, particles.after)
    masks = _measure_masks(particles, sorted({*MASK_SIZES, fit.mask_size}), seed)
    fit.sampled = len(masks.index)
    labels, names = particles.label, list(class_names)
    fit.no_anchor_share = _means(anchor_iou < ANCHOR_IOU, labels, names)
    of_sample = (labels[masks.index], names, masks.weight)
    fit.small_share = _means(masks.width < MIN_WIDTH, *of_sample)
    by_size = {size: _means(iou, *of_sample) for size, iou in masks.iou.items()}
    fit.mask_iou = {
        name: {size: means[name] for size, means in by_size.items()} for name in fit.small_share
    }
    findings = [
        _no_anchor(cfg, grid, particles, anchor_iou, fit),
        _too_small(cfg, particles, masks, fit),
        _mask_resolution(cfg, particles, masks, fit),
    ]
    return fit, [finding for finding in findings if finding is not None]


def resized_size(height: int, width: int, min_size: int, max_size: int) -> tuple[int, int]:
    """Height and width in px after Detectron2's ``ResizeShortestEdge``; ``min_size`` 0 keeps both.

    Args:
        height: of the image, in px.
        width: of the image, in px.
        min_size: INPUT.MIN_SIZE_TEST, in px.
        max_size: INPUT.MAX_SIZE_TEST, in px.
    """
    if min_size == 0:
        return height, width
    # Asked for its shape alone; an array of one byte that claims to be of that size will do.
    image = np.broadcast_to(np.uint8(0), (height, width))
    transform = T.ResizeShortestEdge([min_size], max_size, "choice").get_transform(image)
    return max(1, transform.new_h), max(1, transform.new_w)


def _collect(cfg: CfgNode, dataset_dicts: Sequence[dict[str, Any]]) -> _Particles:
    sizes: dict[tuple[int, int], tuple[int, int]] = {}
    rows, boxes, modes = [], [], []
    for image, dic in enumerate(dataset_dicts):
        size = dic["height"], dic["width"]
        if size not in sizes:
            sizes[size] = resized_size(*size, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
        for place, annotation in enumerate(dic["annotations"]):
            if not annotation.get("iscrowd", 0):
                rows.append((image, place, annotation["category_id"], *size, *sizes[size]))
                boxes.append(annotation["bbox"])
                modes.append(annotation["bbox_mode"])
    table = np.array(rows, dtype=np.int64).reshape(-1, 7)
    corners = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    for mode in set(modes):
        of_mode = np.array([other == mode for other in modes])
        corners[of_mode] = BoxMode.convert(corners[of_mode], mode, BoxMode.XYXY_ABS)
    return _Particles(
        dataset_dicts, *table[:, :3].T, boxes=corners, before=table[:, 3:5], after=table[:, 5:]
    )


def _measure_masks(particles: _Particles, mask_sizes: Sequence[int], seed: int) -> _Masks:
    index, weight = _draw(particles.label, np.random.default_rng(seed))
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


def _draw(labels: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rows of at most MAX_PER_CLASS particles a class, and how many each of them stands for."""
    drawn, weights = [], []
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
    weights = np.ones(len(values)) if weights is None else weights
    means = {
        names[label]: float(values[labels == label].mean()) for label in np.unique(labels).tolist()
    }
    return {**means, ALL: float(np.average(values, weights=weights))}


def _severity(shares: dict[str, float]) -> str | None:
    if max(shares.values()) > WARNING_SHARE:
        return WARNING
    return INFO if shares[ALL] > INFO_SHARE else None


def _per_class(shares: dict[str, float]) -> str:
    return ", ".join(f"{name} {100 * share:.1f} %" for name, share in shares.items())


def _worst(
    particles: _Particles, index: np.ndarray, values: np.ndarray, words: str
) -> list[Example]:
    """The particles with the lowest values; ``words`` is a format for one of them."""
    order = np.argsort(values, kind="stable")[:EXAMPLES]
    return [particles.example(index[i], words.format(values[i])) for i in order]


def _no_anchor(
    cfg: CfgNode, grid: AnchorGrid, particles: _Particles, best: np.ndarray, fit: ModelFit
) -> Finding | None:
    severity = _severity(fit.no_anchor_share)
    if severity is None:
        return None
    return Finding(
        "no_anchor",
        severity,
        f"boxes that no anchor of {fit.config_file} matches at IoU {ANCHOR_IOU:g} after the "
        f"resize ({_per_class(fit.no_anchor_share)})",
        "The RPN learns each of them from its single best anchor alone (allow_low_quality_matches; "
        f"others count from IoU {cfg.MODEL.RPN.IOU_THRESHOLDS[-1]:g} of MODEL.RPN.IOU_THRESHOLDS "
        "on), which its box regression must move and stretch far: few proposals reach such "
        "particles, and recall suffers.",
        _anchor_mend(cfg, grid, particles),
        int(np.count_nonzero(best < ANCHOR_IOU)),
        _worst(particles, np.arange(len(best)), best, "its best anchor has IoU {:.2f}"),
    )


def _anchor_mend(cfg: CfgNode, grid: AnchorGrid, particles: _Particles) -> str:
    """Try other anchors and a larger input, and say what each would leave without an anchor."""
    index = np.arange(len(particles.label))
    if len(index) > _TRIED:
        index = np.random.default_rng(0).permutation(index)[:_TRIED]
    boxes, sizes = particles.resized_boxes[index], particles.after[index]

    def best(tries: list[tuple]) -> tuple[float, tuple]:
        shares = []
        for by, *anchors in tries:
            seen = np.rint(sizes * by).astype(np.int64)
            shares.append((grid.changed(*anchors).best_iou(boxes * by, seen) < ANCHOR_IOU).mean())
        # A point of share is worth no further change.
        costs = [
            abs(np.log2(factor)) + len(steps) - 1 + len(ratios) / 3 + by
            for by, factor, steps, ratios in tries
        ]
        chosen = int(np.argmin(np.array(shares) + 0.01 * np.array(costs)))
        return float(shares[chosen]), tries[chosen]

    steps = ((1.0,), (1.0, 2**0.5))
    now, _ = best([(1.0, 1.0, (1.0,), ())])
    found = [best([(1.0, *one) for one in product((1.0, 0.5, 0.25, 0.125, 2.0), steps, _RATIOS)])]
    if cfg.INPUT.MIN_SIZE_TEST:
        found.append(best(list(product((1.5, 2.0, 3.0), (1.0,), steps, _RATIOS[:1]))))
    mends = [
        f"set {_words(cfg, *chosen)}: {100 * share:.1f} % are left"
        for share, chosen in found
        if share < now
    ]
    words = "; or ".join(mends) or "cut the images into tiles, so that particles are larger in them"
    return f"{words[0].upper()}{words[1:]}."


def _words(
    cfg: CfgNode, by: float, factor: float, steps: Sequence[float], ratios: Sequence[float]
) -> str:
    """The config keys of an input ``by`` times as large and of changed anchors."""
    words = []
    if by != 1:
        size, limit = (
            _plain(by * side) for side in (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
        )
        words.append(f"INPUT.MIN_SIZE_TRAIN and MIN_SIZE_TEST {size}")
        words.append(f"MAX_SIZE_TRAIN and MAX_SIZE_TEST {limit}")
    if factor != 1 or len(steps) > 1:
        sizes = cfg.MODEL.ANCHOR_GENERATOR.SIZES
        levels = [
            [_plain(size * factor * step) for step in steps for size in level]
            for level in (sizes if isinstance(sizes[0], Sequence) else [sizes])
        ]
        words.append(f"MODEL.ANCHOR_GENERATOR.SIZES {levels}")
    if ratios:
        words.append(f"MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS {[list(ratios)]}")
    anew = len(steps) > 1 or ratios
    return ", ".join(words) + (" (the RPN's head then starts anew)" if anew else "")


def _plain(number: float) -> float:
    """Four digits, and no ``.0`` behind a whole number."""
    short = float(f"{number:.4g}")
    return int(short) if short.is_integer() else short


def _too_small(cfg: CfgNode, particles: _Particles, masks: _Masks, fit: ModelFit) -> Finding | None:
    severity = _severity(fit.small_share)
    if severity is None:
        return None
    narrow = max(float(np.quantile(masks.width, WARNING_SHARE)), 0.1)
    wanted = f"{MIN_WIDTH / narrow:.1f} times as large"
    if cfg.INPUT.MIN_SIZE_TEST:
        wanted += f" (about {10 * round(cfg.INPUT.MIN_SIZE_TEST * MIN_WIDTH / narrow / 10)} px)"
    return Finding(
        "too_small",
        severity,
        f"of {fit.sampled} particles looked at are under {MIN_WIDTH:g} px wide when the network "
        f"of {fit.config_file} sees them ({_per_class(fit.small_share)})",
        "The first features of the network have steps of 4 px: what is narrower leaves little "
        "trace in them, is seldom found, and its mask is guessed.",
        f"Set INPUT.MIN_SIZE_TRAIN and MIN_SIZE_TEST {wanted}, and MAX_SIZE_TRAIN and "
        "MAX_SIZE_TEST by as much, or cut the images into tiles; where particles have few pixels "
        "in the file itself, photograph at a higher magnification.",
        int(np.count_nonzero(masks.width < MIN_WIDTH)),
        _worst(particles, masks.index, masks.width, "{:.1f} px wide after the resize"),
    )


def _mask_resolution(
    cfg: CfgNode, particles: _Particles, masks: _Masks, fit: ModelFit
) -> Finding | None:
    means = {name: by_size[fit.mask_size] for name, by_size in fit.mask_iou.items()}
    if mask_size(cfg) is None or min(means.values()) >= WARNING_IOU:
        return None
    iou, larger = masks.iou[fit.mask_size], [size for size in masks.iou if size > fit.mask_size]
    worst = {size: min(by_size[size] for by_size in fit.mask_iou.values()) for size in larger}
    enough = [size for size in larger if worst[size] >= WARNING_IOU]
    mend = ""
    if larger:
        size = (enough or larger[-1:])[0]
        after = ", ".join(f"{name} {by_size[size]:.2f}" for name, by_size in fit.mask_iou.items())
        mend = (
            f"Set MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION {size // 2}: masks of {size} x {size} keep "
            f"a mean IoU of {after}, for {(size / fit.mask_size) ** 2:.0f} times the time of the "
            "mask head. "
        )
    if not enough:
        mend += (
            "Set INPUT.MIN_SIZE_TRAIN and MIN_SIZE_TEST larger, or cut the images into tiles: no "
            "size of mask brings back what the resize takes away."
        )
    return Finding(
        "mask_resolution",
        WARNING,
        f"of {fit.sampled} particles looked at come back from the {fit.mask_size} x "
        f"{fit.mask_size} mask of {fit.config_file} with IoU under {WARNING_IOU:g} (mean: "
        + ", ".join(f"{name} {mean:.2f}" for name, mean in means.items())
        + ")",
        "However long it is trained, and with a perfect box, the mask head cannot draw them "
        "better than that: mask AP at high IoU, areas and widths stay wrong.",
        mend.strip(),
        int(np.count_nonzero(iou < WARNING_IOU)),
        _worst(particles, masks.index, iou, f"IoU {{:.2f}} at {fit.mask_size} x {fit.mask_size}"),
    )
