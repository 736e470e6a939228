"""Counts, matched F1 and size errors of particles; docs/counting.md defines every figure."""

import dataclasses
import logging
import math
import os
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.structures import Instances
from tabulate import tabulate

from microplastics.data.coco import checked_instances
from microplastics.evaluation.base import TruthEvaluator
from microplastics.evaluation.matching import (
    Pairs,
    candidate_pairs,
    covered_fraction,
    match_by_score,
)
from microplastics.measurement import Item, measure_many
from microplastics.measurement.shape import kind_of
from microplastics.modeling.postprocessing import distinct
from microplastics.structures.crop_masks import CropMasks
from microplastics.utils.errors import UserError
from microplastics.utils.io import read_json, write_rows

logger = logging.getLogger(__name__)

COUNTS_FILE = "counting.csv"
SIZES_FILE = "counting_sizes.csv"
CONFUSION_FILE = "counting_confusion.csv"
CURVES_FILE = "counting_curves.csv"

MIN_IOU = 0.5
TOLERANCES = (0.0, 1.0, 2.0)
QUANTITIES = ("length", "feret_max", "area")
GRID = np.arange(1, 100) / 100

# Figures that training may watch; errors of counts are signed, so that less is not better.
MAXIMISED = ("F1", "precision", "recall", *(f"F1_tol{t:g}" for t in TOLERANCES[1:]))
MINIMISED = ("count_MAE",)
SIZES_MINIMISED = tuple(f"{quantity}_MAE" for quantity in QUANTITIES)

_FERET = QUANTITIES.index("feret_max")
_MAX_BOUNDS = 100


@dataclasses.dataclass(frozen=True)
class SizeBins:
    """Size classes by the maximum Feret diameter.

    Attributes:
        bounds: ascending; a particle of exactly a bound belongs to the bin above it.
        unit: ``"px"`` or ``"um"``.
        names: one more than bounds; made from them if left out.
    """

    bounds: tuple[float, ...] = (32.0, 96.0)
    unit: str = "px"
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        bounds = tuple(self.bounds)
        sound = all(
            isinstance(b, (int, float)) and not isinstance(b, bool) and 0 < b < math.inf
            for b in bounds
        )
        if (
            not sound
            or len(bounds) > _MAX_BOUNDS
            or any(a >= b for a, b in zip(bounds, bounds[1:], strict=False))
        ):
            raise UserError(
                f"TEST.COUNTING.SIZE_BOUNDS is {list(bounds)[:5]}; expected at most {_MAX_BOUNDS} "
                "ascending numbers above 0, such as [32, 96].",
                code="config_invalid",
            )
        if self.unit not in ("px", "um"):
            raise UserError(
                f"TEST.COUNTING.SIZE_UNIT is {self.unit!r}; expected px or um.",
                code="config_invalid",
            )
        object.__setattr__(self, "bounds", tuple(map(float, bounds)))
        names = tuple(self.names) or self._names()
        if len(names) != len(bounds) + 1 or len(set(names)) < len(names):
            raise ValueError(f"{len(bounds)} bounds make {len(bounds) + 1} bins, not {names}")
        object.__setattr__(self, "names", names)

    def _names(self) -> tuple[str, ...]:
        if not self.bounds:
            return ("any size",)
        first, last = self.bounds[0], self.bounds[-1]
        between = zip(self.bounds, self.bounds[1:], strict=False)
        middle = [f"{low:g}-{high:g}{self.unit}" for low, high in between]
        return (f"<{first:g}{self.unit}", *middle, f">={last:g}{self.unit}")

    def assign(self, sizes: np.ndarray, um_per_px: np.ndarray) -> np.ndarray:
        """Return the number of each particle's bin.

        Args:
            sizes: (N, 3) of :func:`measure_sizes`.
            um_per_px: (N,); used if the unit is µm.
        """
        feret = sizes[:, _FERET] * (um_per_px if self.unit == "um" else 1.0)
        return np.searchsorted(np.array(self.bounds), feret, side="right")


@dataclasses.dataclass(frozen=True)
class Pooled:
    """The records of many images, one after another.

    Attributes:
        num_images: number of images.
        blank: (I,) bool, images without annotations.
        image, classes, scores: (N,) of each prediction; ``image`` counts from 0.
        matches: (N, T) number of the truth among all, -1 for none; by tolerance.
        ignored: (N, T) bool.
        true_image, true_classes: (M,) of each truth.
        confusion: (C, 2).
        sizes, true_sizes: (N, 3) and (M, 3), or None if they were not measured.
        um_per_px: (I,) of each image; NaN where unknown.
    """

    num_images: int
    blank: np.ndarray
    image: np.ndarray
    classes: np.ndarray
    scores: np.ndarray
    matches: np.ndarray
    ignored: np.ndarray
    true_image: np.ndarray
    true_classes: np.ndarray
    confusion: np.ndarray
    sizes: np.ndarray | None
    true_sizes: np.ndarray | None
    um_per_px: np.ndarray

    def counted(self, thresholds: np.ndarray) -> np.ndarray:
        """Return which predictions, (N,) bool, reach the threshold of their class, (K,)."""
        return self.scores >= thresholds[self.classes]


class CountingEvaluator(TruthEvaluator):
    """Counts, matched F1, size errors and confusion of classes at a score threshold.

    Masks are judged on their crops and forgotten: a record, which is sent between ranks, is a few
    numbers for each particle.

    Attributes:
        class_names: of the data set, by class number.
        thresholds: (K,) lowest score that counts.
        size_bins: the size classes.
        records: this rank's, one for each image, as :func:`judge_image` returns them.
    """

    def __init__(
        self,
        dataset_name: str,
        score_thresholds: float | Sequence[float] = 0.5,
        output_dir: str | os.PathLike | None = None,
        measure_sizes: bool = True,
        size_bins: SizeBins | None = None,
        distributed: bool = True,
        max_overlap: float = 0.5,
    ) -> None:
        """
        Args:
            dataset_name: a registered data set whose metadata has ``json_file``.
            score_thresholds: lowest score of a particle that counts, of all classes or of each.
            output_dir: where the four CSV files are written; nowhere if ``None``.
            measure_sizes: measure the shapes (about 1 ms a particle) for the size classes and the
                errors of length, Feret diameter and area.
            size_bins: the size classes; below 32, 32 to 96, and from 96 px if ``None``.
            distributed: collect the records of all ranks; else report this rank's.
            max_overlap: of two detections, for
                :func:`microplastics.modeling.postprocessing.distinct`; 1 counts all.

        Raises:
            UserError: dataset_unknown, config_invalid (thresholds or overlap), scale_missing (size
                classes in µm, but images without a scale), or the JSON cannot be used.
        """
        super().__init__(dataset_name, distributed)
        self._contiguous = checked_instances(self.json_file).contiguous_ids
        categories = self.coco_api.cats
        self.class_names = [categories[number]["name"] for number in sorted(categories)]
        self.thresholds = _per_class(score_thresholds, self.class_names)
        self._output_dir = output_dir
        self._measure = measure_sizes
        self.size_bins = size_bins or SizeBins()
        self._scales = self._read_scales() if measure_sizes else {}
        if isinstance(max_overlap, bool) or not 0 <= max_overlap <= 1:
            raise UserError(
                f"TEST.COUNTING.MAX_OVERLAP is {max_overlap}; expected a fraction from 0 to 1.",
                code="config_invalid",
            )
        self._max_overlap = max_overlap

    @classmethod
    def from_config(
        cls, cfg: CfgNode, dataset_name: str, output_dir: str | os.PathLike | None
    ) -> "CountingEvaluator":
        """Build the evaluator that TEST.COUNTING describes.

        Raises:
            UserError: as in the constructor; config_invalid (a value of TEST.COUNTING).
        """
        settings = cfg.TEST.COUNTING
        if settings.SIZES not in ("always", "eval_only", "never"):
            raise UserError(
                f"TEST.COUNTING.SIZES is {settings.SIZES!r}; expected always, eval_only or never.",
                code="config_invalid",
            )
        return cls(
            dataset_name,
            score_thresholds=settings.CLASS_SCORE_THRESH or settings.SCORE_THRESH,
            output_dir=output_dir,
            measure_sizes=settings.SIZES == "always",
            size_bins=SizeBins(tuple(settings.SIZE_BOUNDS), settings.SIZE_UNIT),
            max_overlap=settings.MAX_OVERLAP,
        )

    def judge(self, image_id: int, instances: Instances) -> dict[str, Any]:
        """Judge the predictions of an image; see :func:`judge_image`.

        Args:
            image_id: COCO id of the image.
            instances: in pixels of the original image, with ``scores``, ``pred_classes`` and
                ``pred_masks``, :class:`CropMasks` or an (N, H, W) bool tensor.

        Raises:
            ValueError: the masks are not of the image's size, or a class is not one of the data
                set's.
        """
        masks = self.masks_of(image_id, instances)
        classes = np.array(instances.pred_classes.tolist(), dtype=np.int64)
        if len(classes) and not 0 <= classes.min() <= classes.max() < len(self.class_names):
            raise ValueError(
                f"Class {classes.max()} is predicted, but the data set has only "
                f"{len(self.class_names)}"
            )
        scores = np.array(instances.scores.tolist(), dtype=np.float64)
        if self._max_overlap < 1:
            # Counted detections first, so that nothing below its threshold removes one.
            ranks = scores + (scores >= self.thresholds[classes])
            kept = distinct(masks, classes, ranks, self._max_overlap)
            masks, classes, scores = masks[kept], classes[kept], scores[kept]
        annotations = self.coco_api.imgToAnns.get(image_id, [])
        numbers = [self._contiguous[a["category_id"]] for a in annotations]
        return judge_image(
            masks,
            classes,
            scores,
            CropMasks.from_coco([a["segmentation"] for a in annotations], masks.image_size),
            np.array(numbers, dtype=np.int64),
            np.array([bool(a.get("iscrowd", 0)) for a in annotations], dtype=bool),
            self.thresholds,
            self.class_names if self._measure else None,
        )

    def pooled(self) -> Pooled | None:
        """Join the records of all images on rank 0, ``None`` on the others; collective."""
        records = self.gathered()
        return None if records is None else pool(records, self._scales)

    def evaluate(self) -> OrderedDict:
        """Return ``{"counting": {…}}`` of flat names; ``{}`` on ranks other than 0."""
        pooled = self.pooled()
        if pooled is None:
            return OrderedDict()
        counts = count_table(pooled, self.class_names, self.thresholds, self.size_bins)
        sizes = size_table(pooled, self.class_names, self.thresholds)
        confusion = confusion_table(pooled, self.class_names)
        report = flat_figures(counts, sizes)
        if pooled.blank.any():
            counted = pooled.counted(self.thresholds) & pooled.blank[pooled.image]
            report["FP_per_blank"] = int(counted.sum()) / int(pooled.blank.sum())
        self._log(counts, sizes, confusion)
        if self._output_dir is not None:
            for name, rows in (
                (COUNTS_FILE, counts),
                (CONFUSION_FILE, confusion),
                (CURVES_FILE, curves(pooled, self.class_names)),
                *([(SIZES_FILE, sizes)] if sizes else []),
            ):
                write_table(os.path.join(self._output_dir, name), rows)
            logger.info("Counting figures written to %s", self._output_dir)
        return OrderedDict(counting=report)

    def _log(self, counts: list[dict], sizes: list[dict], confusion: list[dict]) -> None:
        thresholds = ", ".join(
            f"{name} {threshold:g}"
            for name, threshold in zip(self.class_names, self.thresholds, strict=True)
        )
        tables = [(f"Counts at the score thresholds {thresholds}", counts)]
        if sizes:
            source = ", µm by um_per_px of the JSON" if "um" in {r["unit"] for r in sizes} else ""
            tables.append((f"Sizes of matched particles, predicted - true{source}", sizes))
        tables.append(("Confusion of classes (rows true)", confusion))
        for title, rows in tables:
            text = tabulate(_named(rows), headers="keys", tablefmt="pipe", floatfmt=".1f")
            logger.info("%s:\n%s", title, text)

    def _read_scales(self) -> dict[int, float]:
        entries = read_json(self.json_file).get("images", [])
        scales = read_scales(entries if isinstance(entries, list) else [])
        without = [i for i in self.coco_api.imgs if i not in scales]
        if without and self.size_bins.unit == "um":
            raise UserError(
                f"TEST.COUNTING.SIZE_UNIT is um, but {len(without)} images of {self.json_file} "
                f"have no usable um_per_px, such as "
                f"{self.coco_api.imgs[without[0]]['file_name']}; add it to the images, or set "
                "TEST.COUNTING.SIZE_UNIT px.",
                code="scale_missing",
            )
        if without and scales:
            logger.warning(
                "%d of %d images of %s have no usable um_per_px: sizes are compared only in px.",
                len(without),
                len(self.coco_api.imgs),
                self.json_file,
            )
        return scales


def judge_image(
    predicted: CropMasks,
    classes: np.ndarray,
    scores: np.ndarray,
    true: CropMasks,
    true_classes: np.ndarray,
    crowd: np.ndarray,
    thresholds: np.ndarray,
    size_names: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Match the predictions of one image.

    Args:
        predicted: N masks.
        classes: (N,) class numbers.
        scores: (N,).
        true: masks of the annotations, crowds included.
        true_classes: their class numbers.
        crowd: bool, which of them are crowds.
        thresholds: (K,) lowest score of each class that counts.
        size_names: class names if sizes are to be measured, else None.

    Returns:
        ``blank``, whether there is no annotation; of each prediction ``classes``, ``scores``,
        ``matches`` (N, T) to truths of its class at each tolerance and ``ignored`` (N, T); of the
        M truths that are not crowds ``true_classes``; ``confusion`` (C, 2) of true and predicted
        class, -1 for none; if sizes are measured ``sizes`` (N, 3), NaN below the threshold, and
        ``true_sizes`` (M, 3).
    """
    truths, crowds = true[~crowd], true[crowd]
    crowd_classes, true_classes = true_classes[crowd], true_classes[~crowd]
    pairs = candidate_pairs(predicted, truths, TOLERANCES, MIN_IOU)
    matches = _matches_within_class(pairs, classes, scores, true_classes)
    # As in COCO, an unmatched prediction inside a crowd is neither right nor wrong.
    covered = covered_fraction(predicted, crowds) >= MIN_IOU
    own_crowd = (covered & (classes[:, None] == crowd_classes[None])).any(axis=1)
    kept = scores >= thresholds[classes]
    record = {
        "blank": not len(true),
        "classes": classes,
        "scores": scores,
        "matches": matches,
        "ignored": own_crowd[:, None] & (matches < 0),
        "true_classes": true_classes,
        "confusion": _confusion(pairs, classes, scores, true_classes, kept, covered.any(axis=1)),
    }
    if size_names is not None:
        sizes = np.full((len(predicted), 3), np.nan)
        chosen = np.flatnonzero(kept)
        sizes[chosen] = measure_sizes(predicted[chosen], classes[chosen], size_names)
        record["sizes"] = sizes
        record["true_sizes"] = measure_sizes(truths, true_classes, size_names)
    return record


def _matches_within_class(
    pairs: Pairs, classes: np.ndarray, scores: np.ndarray, true_classes: np.ndarray
) -> np.ndarray:
    """Return the (N, T) truth of its class that each prediction takes, by tolerance; -1: none."""
    own = classes[pairs.predicted] == true_classes[pairs.true]
    predicted, true, iou = pairs.predicted[own], pairs.true[own], pairs.iou[own]
    columns = [
        match_by_score(scores, predicted, true, iou[:, k], MIN_IOU) for k in range(len(TOLERANCES))
    ]
    return np.stack(columns, axis=1)


def _confusion(pairs, classes, scores, true_classes, kept, covered) -> np.ndarray:
    """Return (C, 2) true and predicted class of pairs matched regardless of class, -1: none."""
    among = kept[pairs.predicted]
    matches = match_by_score(
        scores, pairs.predicted[among], pairs.true[among], pairs.iou[among, 0], MIN_IOU
    )
    found = np.flatnonzero(matches >= 0)
    surplus = np.flatnonzero(kept & (matches < 0) & ~covered)
    missed = np.setdiff1d(np.arange(len(true_classes)), matches)
    rows = [
        np.stack([true_classes[matches[found]], classes[found]], axis=1),
        np.stack([np.full(len(surplus), -1), classes[surplus]], axis=1),
        np.stack([true_classes[missed], np.full(len(missed), -1)], axis=1),
    ]
    return np.concatenate(rows).astype(np.int64)


def pool(records: Sequence[dict[str, Any]], scales: dict[int, float] | None = None) -> Pooled:
    """Join records of :func:`judge_image`, each with its ``image_id``.

    Args:
        records: one for each image.
        scales: µm per pixel by image id.
    """
    scales = scales or {}
    # numpy cannot join nothing: an empty record in front gives every array its shape and dtype.
    none, tolerances = np.zeros(0, dtype=np.int64), len(TOLERANCES)
    empty: dict[str, Any] = {
        "classes": none,
        "scores": np.zeros(0),
        "matches": none.reshape(0, tolerances),
        "ignored": np.zeros((0, tolerances), dtype=bool),
        "true_classes": none,
        "confusion": none.reshape(0, 2),
        "sizes": np.zeros((0, 3)),
        "true_sizes": np.zeros((0, 3)),
    }
    measured = all("sizes" in record for record in records)

    def join(key: str) -> np.ndarray:
        return np.concatenate([empty[key], *(record[key] for record in records)])

    starts = np.cumsum([0, *(len(record["true_classes"]) for record in records)])
    shifted = [
        np.where(record["matches"] >= 0, record["matches"] + start, -1)
        for record, start in zip(records, starts, strict=False)
    ]

    def image_of_each(key: str) -> np.ndarray:
        lengths = np.array([len(record[key]) for record in records], dtype=np.int64)
        return np.repeat(np.arange(len(records)), lengths)

    return Pooled(
        num_images=len(records),
        blank=np.array([record["blank"] for record in records], dtype=bool),
        image=image_of_each("classes"),
        classes=join("classes"),
        scores=join("scores"),
        matches=np.concatenate([empty["matches"], *shifted]),
        ignored=join("ignored"),
        true_image=image_of_each("true_classes"),
        true_classes=join("true_classes"),
        confusion=join("confusion"),
        sizes=join("sizes") if measured else None,
        true_sizes=join("true_sizes") if measured else None,
        um_per_px=np.array([scales.get(r["image_id"], np.nan) for r in records], dtype=float),
    )


def count_figures(
    pooled: Pooled, kept: np.ndarray, predictions: np.ndarray, truths: np.ndarray
) -> dict[str, float]:
    """Compute the count and match figures of a part of the particles.

    Args:
        pooled: the records.
        kept: (N,) bool, predictions that count.
        predictions: (N,) bool, the predictions of this part.
        truths: (M,) bool, the truths of this part.

    Returns:
        ``count_true``, ``count_predicted``, ``count_error`` (predicted - true),
        ``count_error_pct``, ``count_MAE`` (mean over images of the absolute error), and in %
        ``precision``, ``recall``, ``F1``, ``F1_tol1``, ``F1_tol2``.
    """
    counted = kept & predictions & ~pooled.ignored[:, 0]
    true, predicted = int(truths.sum()), int(counted.sum())
    per_image = np.bincount(pooled.image[counted], minlength=pooled.num_images) - np.bincount(
        pooled.true_image[truths], minlength=pooled.num_images
    )
    figures = {
        "count_true": true,
        "count_predicted": predicted,
        "count_error": predicted - true,
        "count_error_pct": _percent(predicted - true, true),
        "count_MAE": float(np.abs(per_image).mean()) if pooled.num_images else float("nan"),
    }
    for number, tolerance in enumerate(TOLERANCES):
        matches = pooled.matches[:, number]
        found = np.zeros(len(truths), dtype=bool)
        found[matches[kept & (matches >= 0)]] = True
        hits = int((found & truths).sum())
        surplus = kept & predictions & (matches < 0) & ~pooled.ignored[:, number]
        false = int(surplus.sum())
        if not tolerance:
            figures["precision"] = _percent(hits, hits + false)
            figures["recall"] = _percent(hits, true)
        name = f"F1_tol{tolerance:g}" if tolerance else "F1"
        figures[name] = _percent(2 * hits, hits + false + true)
    return figures


def count_table(
    pooled: Pooled, class_names: Sequence[str], thresholds: np.ndarray, bins: SizeBins
) -> list[dict[str, Any]]:
    """Compute :func:`count_figures` of each class and of all, with sizes of each size class too.

    Returns:
        Rows of ``class`` and ``size_class``, each None for all, and the figures.
    """
    kept = pooled.counted(thresholds)
    sizes: list[tuple[str | None, np.ndarray, np.ndarray]] = [
        (None, np.ones(len(kept), dtype=bool), np.ones(len(pooled.true_classes), dtype=bool))
    ]
    if pooled.sizes is not None:
        # Below the threshold nothing is measured, and nothing counts.
        known = np.where(np.isnan(pooled.sizes), 0.0, pooled.sizes)
        predicted = bins.assign(known, pooled.um_per_px[pooled.image])
        true = bins.assign(pooled.true_sizes, pooled.um_per_px[pooled.true_image])
        sizes += [(name, predicted == n, true == n) for n, name in enumerate(bins.names)]
    rows = []
    for number, class_name in [*enumerate(class_names), (None, None)]:
        every = number is None
        of_class = every | (pooled.classes == number)
        true_of_class = every | (pooled.true_classes == number)
        for size_name, predictions, truths in sizes:
            figures = count_figures(pooled, kept, of_class & predictions, true_of_class & truths)
            rows.append({"class": class_name, "size_class": size_name, **figures})
    return rows


def size_table(
    pooled: Pooled, class_names: Sequence[str], thresholds: np.ndarray
) -> list[dict[str, Any]]:
    """Compute :func:`agreement` of the sizes of matched pairs, in px and in µm.

    Returns:
        Rows of ``class`` (None for all), ``quantity``, ``unit``, ``pairs`` and the agreement; none
        if sizes were not measured. Rows in µm only if every image has a scale.
    """
    if pooled.sizes is None:
        return []
    matches = pooled.matches[:, 0]
    matched = np.flatnonzero(pooled.counted(thresholds) & (matches >= 0))
    scale = pooled.um_per_px[pooled.image[matched]]
    units = [("px", np.ones(len(matched)))]
    if pooled.num_images and not np.isnan(pooled.um_per_px).any():
        units.append(("um", scale))
    rows = []
    for number, class_name in [*enumerate(class_names), (None, None)]:
        chosen = (number is None) | (pooled.classes[matched] == number)
        for column, quantity in enumerate(QUANTITIES):
            power = 2 if quantity == "area" else 1
            for unit, factor in units:
                predicted = pooled.sizes[matched, column] * factor**power
                true = pooled.true_sizes[matches[matched], column] * factor**power
                rows.append(
                    {
                        "class": class_name,
                        "quantity": quantity,
                        "unit": f"{unit}2" if power == 2 else unit,
                        "pairs": int(chosen.sum()),
                        **agreement(predicted[chosen], true[chosen]),
                    }
                )
    return rows


def confusion_table(pooled: Pooled, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the confusion matrix: a row for each true class, a column for each predicted one.

    The last of both is the background: false positives and missed particles.
    """
    background = "(background)" if "background" in class_names else "background"
    names = [*class_names, background]
    matrix = np.zeros((len(names), len(names)), dtype=int)
    np.add.at(matrix, (pooled.confusion[:, 0], pooled.confusion[:, 1]), 1)
    return [
        {"true \\ predicted": name, **dict(zip(names, row.tolist(), strict=True))}
        for name, row in zip(names, matrix, strict=True)
    ]


def flat_figures(
    counts: Sequence[dict[str, Any]], sizes: Sequence[dict[str, Any]]
) -> dict[str, float]:
    """Flatten the figures of both tables for ``metrics.json``.

    ``F1``, ``F1-Fiber`` (a class), ``F1-<32px`` (a size class, all classes together),
    ``length_bias-Fiber``, ``length_um_bias`` and so on. Size classes of each class stand
    only in the table.
    """
    flat: dict[str, float] = {}
    for row in counts:
        name, size = row["class"], row["size_class"]
        if name is not None and size is not None:
            continue
        part = size if name is None else name
        suffix = "" if part is None else f"-{part}"
        for figure, value in row.items():
            if figure not in ("class", "size_class"):
                flat[f"{figure}{suffix}"] = value
    for row in sizes:
        quantity = row["quantity"] + ("_um" if row["unit"].startswith("um") else "")
        suffix = "" if row["class"] is None else f"-{row['class']}"
        for figure in ("bias", "MAE", "loa_low", "loa_high", "MAPE"):
            flat[f"{quantity}_{figure}{suffix}"] = row[figure]
    return flat


def agreement(predicted: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """Compare measurements of the same particles after Bland and Altman (1986).

    Args:
        predicted, true: (N,) of one quantity.

    Returns:
        ``bias`` (mean of predicted - true), ``MAE`` (mean absolute difference) and the limits of
        agreement ``loa_low`` and ``loa_high`` (bias -/+ 1.96 sample standard deviations), in the
        quantity's unit; ``MAPE``, the mean absolute difference in % of the true value.
        NaN without a pair, the limits with fewer than two.
    """
    difference = predicted - true
    nan = float("nan")
    bias = float(difference.mean()) if len(difference) else nan
    spread = 1.96 * float(difference.std(ddof=1)) if len(difference) > 1 else nan
    relative = np.abs(difference[true > 0]) / true[true > 0]
    return {
        "bias": bias,
        "MAE": float(np.abs(difference).mean()) if len(difference) else nan,
        "loa_low": bias - spread,
        "loa_high": bias + spread,
        "MAPE": 100 * float(relative.mean()) if len(relative) else nan,
    }


def measure_sizes(
    masks: CropMasks, classes: Sequence[int], class_names: Sequence[str]
) -> np.ndarray:
    """Measure length and maximum Feret diameter in px and area in px² of masks.

    The length is along the centreline if the class is Fiber or Fibre, in any case of letters, else
    the Feret diameter: see ``microplastics.measurement``.

    Args:
        masks: N masks; an empty one measures 0.
        classes: class number of each mask.
        class_names: by class number.

    Returns:
        (N, 3) float64 in the order of :data:`QUANTITIES`.
    """
    sizes = np.zeros((len(masks), len(QUANTITIES)))
    filled = [index for index, crop in enumerate(masks.crops) if crop.any()]
    items = [
        Item(
            masks.crops[index],
            tuple(masks.offsets[index].tolist()),
            kind=kind_of(class_names[classes[index]]),
        )
        for index in filled
    ]
    for index, shape in zip(filled, measure_many(items, processes=1), strict=True):
        sizes[index] = [getattr(shape, quantity) for quantity in QUANTITIES]
    return sizes


def read_scales(images: Sequence[Any]) -> dict[int, float]:
    """Read µm per pixel of the images of a COCO JSON that have a usable ``um_per_px``.

    Args:
        images: the entries of the JSON, of any form.

    Returns:
        Image id to µm per pixel.
    """
    scales = {}
    for image in images:
        value = image.get("um_per_px") if isinstance(image, dict) else None
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            # 1e-300 and 1e300 are numbers, but not the scale of a microscope.
            if 1e-6 <= value <= 1e6:
                scales[image.get("id")] = float(value)
    return scales


def class_curve(
    pooled: Pooled, number: int | None, thresholds: np.ndarray
) -> dict[str, np.ndarray]:
    """Compute the figures of one class, or of all, at many score thresholds.

    Args:
        pooled: the records.
        number: class number; None for all.
        thresholds: (T,); a prediction counts from the threshold on.

    Returns:
        Arrays (T,): ``threshold``, ``true``, ``predicted``, ``count_error``, and in %
        ``count_error_pct``, ``precision``, ``recall`` and ``F1``, NaN where undefined.
    """
    chosen = ((number is None) | (pooled.classes == number)) & ~pooled.ignored[:, 0]
    true = int(((number is None) | (pooled.true_classes == number)).sum())
    order = np.argsort(pooled.scores[chosen])
    scores = pooled.scores[chosen][order]
    hits = pooled.matches[chosen, 0][order] >= 0
    above = np.concatenate([[0], np.cumsum(hits[::-1])])[::-1]  # matches from each score on
    start = np.searchsorted(scores, thresholds, side="left")
    predicted, matched = len(scores) - start, above[start]
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "threshold": np.asarray(thresholds, dtype=float),
            "true": np.full(len(start), true),
            "predicted": predicted,
            "count_error": predicted - true,
            "count_error_pct": 100.0 * (predicted - true) / np.float64(true),
            "precision": 100.0 * matched / predicted,
            "recall": 100.0 * matched / np.float64(true),
            "F1": 200.0 * matched / (predicted + true),
        }


def curves(pooled: Pooled, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """Return :func:`class_curve` of every class and of all (None) at 0.01, 0.02, … 0.99."""
    rows = []
    for number, name in [*enumerate(class_names), (None, None)]:
        curve = class_curve(pooled, number, GRID)
        for values in zip(*(column.tolist() for column in curve.values()), strict=True):
            rows.append({"class": name, **dict(zip(curve, values, strict=True))})
    return rows


def write_table(path: str | os.PathLike, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows as CSV; None, which stands for all classes or sizes, becomes ``all``."""
    write_rows(path, _named(rows))


def _named(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: "all" if v is None else v for k, v in row.items()} for row in rows]


def _percent(part: float, whole: float) -> float:
    """Return ``part`` in % of ``whole``; NaN if that is 0."""
    return 100 * part / whole if whole else float("nan")


def _per_class(thresholds: float | Sequence[float], class_names: Sequence[str]) -> np.ndarray:
    """Return one score threshold for each class, checked."""
    given = [thresholds] * len(class_names) if isinstance(thresholds, (int, float)) else thresholds
    sound = all(
        isinstance(t, (int, float)) and not isinstance(t, bool) and 0 <= t <= 1 for t in given
    )
    if not sound or len(given) != len(class_names):
        raise UserError(
            f"TEST.COUNTING has the score thresholds {given} for the classes "
            f"{', '.join(class_names)}; expected a number from 0 to 1 for each class in "
            "CLASS_SCORE_THRESH, or one for all in SCORE_THRESH.",
            code="config_invalid",
        )
    return np.array(given, dtype=np.float64)
