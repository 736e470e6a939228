"""Counts, matched F1 and size errors of particles; docs/counting.md defines every figure."""

import itertools
import logging
import math
import os
from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.structures import Instances
from tabulate import tabulate

from microplastics.data.catalog import fiber_classes as fiber_classes_of
from microplastics.data.coco import checked_instances
from microplastics.evaluation.base import TruthEvaluator
from microplastics.evaluation.errors import (
    ERRORS_FILE,
    PARTICLES_FILE,
    SCORES_FILE,
    Judged,
    error_record,
    error_table,
    particle_rows,
    score_table,
)
from microplastics.evaluation.matching import candidate_pairs, covered_fraction, match_by_score
from microplastics.measurement import Item, measure_many
from microplastics.measurement.shape import Kind, kind_of
from microplastics.modeling.postprocessing import distinct
from microplastics.structures.crop_masks import CropMasks
from microplastics.utils.errors import UserError, check_option
from microplastics.utils.io import read_json, write_rows

logger = logging.getLogger(__name__)

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


class SizeBins:
    """Size classes by the maximum Feret diameter; one of exactly a bound is in the bin above.

    Attributes:
        names: of the bins, one more than bounds.
    """

    def __init__(self, bounds: Sequence[float] = (32.0, 96.0), unit: str = "px"):
        numbers = all(_is_within(bound, 0, math.inf) for bound in bounds)
        edges = itertools.pairwise((0, *bounds, math.inf))
        ascending = numbers and all(low < high for low, high in edges)
        if not ascending or len(bounds) > _MAX_BOUNDS or unit not in ("px", "um"):
            raise UserError(
                f"TEST.COUNTING.SIZE_BOUNDS is {list(bounds)[:5]} and SIZE_UNIT {unit}; expected "
                f"at most {_MAX_BOUNDS} ascending numbers above 0, such as [32, 96], and px or um.",
                code="config_invalid",
            )
        self.bounds, self.unit = np.array(bounds, dtype=float), unit
        texts = [f"{bound:g}" for bound in bounds]
        middle = [f"{low}-{high}{unit}" for low, high in itertools.pairwise(texts)]
        self.names = ["any size"]
        if texts:
            self.names = [f"<{texts[0]}{unit}", *middle, f">={texts[-1]}{unit}"]

    def assign(self, sizes: np.ndarray, um_per_px: np.ndarray) -> np.ndarray:
        """Return the bins of particles by :func:`measure_sizes` (N, 3) and µm per px (N,)."""
        feret = sizes[:, _FERET] * (um_per_px if self.unit == "um" else 1.0)
        return np.searchsorted(self.bounds, feret, side="right")


class Pooled:
    """Records of :func:`judge_image` of many images, with their ids, and µm per pixel by id.

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

    def __init__(
        self, records: Sequence[dict[str, Any]], scales: dict[int, float] | None = None
    ) -> None:
        # numpy cannot join nothing: an empty image in front gives every array its shape and dtype.
        masks, numbers = CropMasks([], [], (1, 1)), np.zeros(0, dtype=np.int64)
        crowd = np.zeros(0, dtype=bool)
        empty = judge_image(masks, numbers, np.zeros(0), masks, numbers, crowd, np.zeros(1), ())

        def join(key: str) -> np.ndarray:
            return np.concatenate([empty[key], *(record[key] for record in records)])

        def image_of_each(key: str) -> np.ndarray:
            lengths = np.array([len(record[key]) for record in records], dtype=np.int64)
            return np.repeat(np.arange(len(records)), lengths)

        self.num_images = len(records)
        self.blank = np.array([record["blank"] for record in records], dtype=bool)
        self.image, self.true_image = image_of_each("classes"), image_of_each("true_classes")
        self.classes, self.true_classes = join("classes"), join("true_classes")
        self.scores, self.ignored = join("scores"), join("ignored")
        self.confusion = join("confusion")
        starts = np.searchsorted(self.true_image, self.image)[:, None]
        matches = join("matches")
        self.matches = np.where(matches >= 0, matches + starts, -1)
        measured = all("sizes" in record for record in records)
        self.sizes = join("sizes") if measured else None
        self.true_sizes = join("true_sizes") if measured else None
        scales = scales or {}
        self.um_per_px = np.array([scales.get(r["image_id"], np.nan) for r in records], dtype=float)

    def counted(self, thresholds: np.ndarray) -> np.ndarray:
        """Return which predictions, (N,) bool, reach the threshold of their class, (K,)."""
        return self.scores >= thresholds[self.classes]

    def parts(
        self, class_names: Sequence[str]
    ) -> Iterator[tuple[str | None, np.ndarray, np.ndarray]]:
        """Yield each class, and None for all, with its predictions (N,) and truths (M,), bool."""
        for number, name in enumerate(class_names):
            yield name, self.classes == number, self.true_classes == number
        yield None, self.classes >= 0, self.true_classes >= 0


class CountingEvaluator(TruthEvaluator):
    """Counts, matched F1, size errors, confusion of classes and errors by kind.

    Masks are judged on their crops and forgotten: a record of :func:`judge_image` is a few numbers
    for each particle.
    """

    def __init__(
        self,
        dataset_name: str,
        score_thresholds: float | Sequence[float] = 0.5,
        output_dir: str | os.PathLike | None = None,
        measure_sizes: bool = True,
        size_bins: SizeBins | None = None,
        max_overlap: float = 0.5,
        fiber_classes: Collection[str] | None = None,
    ) -> None:
        """
        Args:
            dataset_name: a registered data set whose metadata has ``json_file``.
            score_thresholds: lowest score of a particle that counts, of all classes or of each.
            output_dir: where the seven CSV files are written; nowhere if ``None``.
            measure_sizes: for the size classes and the errors of length, Feret diameter and area;
                about 1 ms a particle.
            size_bins: the default ones if ``None``.
            max_overlap: of two detections, as of
                :func:`microplastics.modeling.postprocessing.distinct`.
            fiber_classes: whose length is that of the centreline; the data set's if ``None``.

        Raises:
            UserError: config_invalid (thresholds or overlap), scale_missing (size classes in µm,
                but images without a scale), or as of :class:`TruthEvaluator`.
        """
        super().__init__(dataset_name)
        checked = checked_instances(self.json_file)
        self._contiguous = checked.contiguous_ids
        categories = self.coco_api.cats
        self.class_names = [categories[number]["name"] for number in sorted(categories)]
        self.thresholds = _per_class(score_thresholds, self.class_names)
        self._output_dir = output_dir
        fibers = checked.fiber_classes if fiber_classes is None else fiber_classes
        self._kinds = [kind_of(name, fibers) for name in self.class_names]
        self._measure = measure_sizes
        self.size_bins = size_bins or SizeBins()
        self._scales = self._read_scales() if measure_sizes else {}
        key, fits = "TEST.COUNTING.MAX_OVERLAP", _is_within(max_overlap, 0, 1)
        check_option(fits, key, max_overlap, "a fraction from 0 to 1", "config_invalid")
        self._max_overlap = max_overlap

    @classmethod
    def from_config(
        cls, cfg: CfgNode, dataset_name: str, output_dir: str | os.PathLike | None
    ) -> "CountingEvaluator":
        """Build the evaluator that TEST.COUNTING describes; errors as of the constructor."""
        settings = cfg.TEST.COUNTING
        key, fits = "TEST.COUNTING.SIZES", settings.SIZES in ("always", "eval_only", "never")
        expected = "always, eval_only or never"
        check_option(fits, key, settings.SIZES, expected, "config_invalid")
        return cls(
            dataset_name,
            score_thresholds=settings.CLASS_SCORE_THRESH or settings.SCORE_THRESH,
            output_dir=output_dir,
            measure_sizes=settings.SIZES == "always",
            size_bins=SizeBins(settings.SIZE_BOUNDS, settings.SIZE_UNIT),
            max_overlap=settings.MAX_OVERLAP,
            fiber_classes=fiber_classes_of(cfg, dataset_name),
        )

    def judge(self, image_id: int, instances: Instances) -> dict[str, Any]:
        """Judge the predictions of an image by :func:`judge_image`."""
        masks = self.masks_of(image_id, instances)
        classes = np.array(instances.pred_classes.tolist(), dtype=np.int64)
        scores = np.array(instances.scores.tolist(), dtype=np.float64)
        annotations = self.coco_api.imgToAnns.get(image_id, [])
        numbers = [self._contiguous[a["category_id"]] for a in annotations]
        truth = (
            CropMasks.from_coco([a["segmentation"] for a in annotations], masks.image_size),
            np.array(numbers, dtype=np.int64),
            np.array([a["iscrowd"] for a in annotations], dtype=bool),
        )
        reached = scores >= self.thresholds[classes]
        kept = np.arange(len(classes))
        if self._max_overlap < 1:
            # Counted detections first, so that nothing below its threshold removes one.
            kept = distinct(masks, classes, scores + reached, self._max_overlap)
        found = masks[kept], classes[kept], scores[kept]
        record = judge_image(
            *found, *truth, self.thresholds, self._kinds if self._measure else None
        )
        counted = kept[reached[kept]]
        return {**record, "errors": error_record(masks, classes, scores, *truth, counted)}

    def evaluate(self) -> OrderedDict:
        """Write the tables and return ``{"counting": {…}, "errors": {…}}`` of flat names."""
        records = self.gathered()
        if records is None:
            return OrderedDict()
        pooled = Pooled(records, self._scales)
        counts = count_table(pooled, self.class_names, self.thresholds, self.size_bins)
        sizes = size_table(pooled, self.class_names, self.thresholds)
        confusion = confusion_table(pooled, self.class_names)
        judged = [record["errors"] for record in records]
        every, counted = (
            Judged.pool([getattr(e, of) for e in judged]) for of in ("every", "counted")
        )
        errors = error_table(every, counted, self.class_names)
        report = flat_figures(counts, sizes)
        if pooled.blank.any():
            counted = pooled.counted(self.thresholds) & pooled.blank[pooled.image]
            report["FP_per_blank"] = int(counted.sum()) / int(pooled.blank.sum())
        pairs = zip(self.class_names, self.thresholds, strict=True)
        thresholds = ", ".join(f"{name} {threshold:g}" for name, threshold in pairs)
        for file, title, rows in (
            ("counting.csv", f"Counts at the score thresholds {thresholds}", counts),
            ("counting_sizes.csv", "Sizes of matched particles, predicted - true", sizes),
            ("counting_confusion.csv", "Confusion of classes (rows true)", confusion),
            (CURVES_FILE, "", curves(pooled, self.class_names)),
            (ERRORS_FILE, "AP50 lost to each kind of error, in percentage points", errors),
            (SCORES_FILE, "", score_table(every, self.class_names)),
            (PARTICLES_FILE, "", list(itertools.chain(*map(self._particle_rows, records)))),
        ):
            if rows and title:
                table = tabulate(_named(rows), headers="keys", tablefmt="pipe", floatfmt=".1f")
                logger.info("%s:\n%s", title, table)
            # A table without a row takes the place of that of an earlier evaluation.
            if self._output_dir is not None and (rows or file in (SCORES_FILE, PARTICLES_FILE)):
                write_table(os.path.join(self._output_dir, file), rows)
        lost = {row["error"]: row["AP50_lost"] for row in errors if row["class"] is None}
        return OrderedDict(counting=report, errors=lost)

    def _particle_rows(self, record: dict[str, Any]) -> list[dict[str, Any]]:
        """List the particles of an image that count, and the missed ones."""
        image_id, sizes = record["image_id"], None
        if "sizes" in record:
            reached = record["scores"] >= self.thresholds[record["classes"]]
            sizes = record["sizes"][reached], record["true_sizes"]
        truths = [a["id"] for a in self.coco_api.imgToAnns.get(image_id, []) if not a["iscrowd"]]
        image = {**self.coco_api.imgs[image_id], "um_per_px": self._scales.get(image_id, "")}
        return particle_rows(record["errors"], image, truths, self.class_names, sizes)

    def _read_scales(self) -> dict[int, float]:
        """Return µm per pixel by image id, of the images with a usable ``um_per_px``."""
        scales, images = {}, self.coco_api.imgs
        for image in read_json(self.json_file)["images"]:
            # 1e-300 and 1e300 are numbers, but not the scale of a microscope.
            if _is_within(image.get("um_per_px"), 1e-6, 1e6):
                scales[image["id"]] = float(image["um_per_px"])
        without = [images[i]["file_name"] for i in images if i not in scales]
        if without and self.size_bins.unit == "um":
            raise UserError(
                f"TEST.COUNTING.SIZE_UNIT is um, but {len(without)} images of {self.json_file} "
                f"have no usable um_per_px, such as {without[0]}; add it to the images, or set "
                "TEST.COUNTING.SIZE_UNIT px.",
                code="scale_missing",
            )
        if without and scales:
            logger.warning(
                "%d of %d images of %s have no usable um_per_px: sizes are compared only in px.",
                len(without),
                len(images),
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
    kinds: Sequence[Kind] | None = None,
) -> dict[str, Any]:
    """Match the predictions of one image.

    Args:
        predicted, classes, scores: N masks, their class numbers and scores.
        true, true_classes, crowd: the annotations' masks, class numbers and, bool, if crowds.
        thresholds: (K,) lowest score of each class that counts.
        kinds: (K,) of each class if sizes are to be measured, else None.

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
    own = classes[pairs.predicted] == true_classes[pairs.true]
    of_class = pairs.predicted[own], pairs.true[own]
    matches = np.stack(
        [match_by_score(scores, *of_class, iou, MIN_IOU) for iou in pairs.iou[own].T], axis=1
    )
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
    if kinds is not None:
        sizes = np.full((len(predicted), len(QUANTITIES)), np.nan)
        sizes[kept] = measure_sizes(predicted[kept], classes[kept], kinds)
        record["sizes"] = sizes
        record["true_sizes"] = measure_sizes(truths, true_classes, kinds)
    return record


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


def count_figures(
    pooled: Pooled, kept: np.ndarray, predictions: np.ndarray, truths: np.ndarray
) -> dict[str, float]:
    """Compute the count and match figures of a part of the particles.

    Args:
        pooled: the records.
        kept: (N,) bool, predictions that count.
        predictions, truths: (N,) and (M,) bool, those of this part.

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
        "count_MAE": _mean(np.abs(per_image)),
    }
    for number, tolerance in enumerate(TOLERANCES):
        matches = pooled.matches[:, number]
        found = np.zeros(len(truths), dtype=bool)
        found[matches[kept & (matches >= 0)]] = True
        hits = int((found & truths).sum())
        false = int((kept & predictions & (matches < 0) & ~pooled.ignored[:, number]).sum())
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
    sizes: list[tuple[str | None, Any, Any]] = [(None, True, True)]
    if pooled.sizes is not None:
        # Below the threshold nothing is measured, and nothing counts.
        predicted = bins.assign(np.nan_to_num(pooled.sizes), pooled.um_per_px[pooled.image])
        true = bins.assign(pooled.true_sizes, pooled.um_per_px[pooled.true_image])
        sizes += [(name, predicted == n, true == n) for n, name in enumerate(bins.names)]
    rows = []
    for class_name, predicted, true in pooled.parts(class_names):
        for size_name, predictions, truths in sizes:
            figures = count_figures(pooled, kept, predicted & predictions, true & truths)
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
    matched = pooled.counted(thresholds) & (matches >= 0)
    units = ["px"]
    if pooled.num_images and not np.isnan(pooled.um_per_px).any():
        units.append("um")
    rows = []
    for class_name, predictions, _ in pooled.parts(class_names):
        chosen = np.flatnonzero(matched & predictions)
        scale = pooled.um_per_px[pooled.image[chosen]]
        for column, quantity in enumerate(QUANTITIES):
            power = 2 if quantity == "area" else 1
            predicted = pooled.sizes[chosen, column]
            true = pooled.true_sizes[matches[chosen], column]
            for unit in units:
                factor = scale**power if unit == "um" else 1.0
                rows.append(
                    {
                        "class": class_name,
                        "quantity": quantity,
                        "unit": f"{unit}2" if power == 2 else unit,
                        "pairs": len(chosen),
                        **agreement(predicted * factor, true * factor),
                    }
                )
    return rows


def confusion_table(pooled: Pooled, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the confusion matrix: a row for each true class, a column for each predicted one."""
    # The last row and column: false positives and missed particles.
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
    """Flatten both tables for ``metrics.json``, but for the size classes of single classes.

    ``F1``, ``F1-Fiber`` (a class), ``F1-<32px`` (a size class), ``length_um_bias-Fiber``, …
    """
    flat: dict[str, float] = {}
    for row in counts:
        name, size = row["class"], row["size_class"]
        if name is None or size is None:
            part = name or size
            suffix = "" if part is None else f"-{part}"
            figures = [figure for figure in row if figure not in ("class", "size_class")]
            flat.update({f"{figure}{suffix}": row[figure] for figure in figures})
    for row in sizes:
        quantity = row["quantity"] + ("_um" if row["unit"].startswith("um") else "")
        suffix = "" if row["class"] is None else f"-{row['class']}"
        for figure in ("bias", "MAE", "loa_low", "loa_high", "MAPE"):
            flat[f"{quantity}_{figure}{suffix}"] = row[figure]
    return flat


def agreement(predicted: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """Compare one quantity (N,) of the same particles after Bland and Altman (1986).

    Returns:
        ``bias`` (mean of predicted - true), ``MAE`` (mean absolute difference) and the limits of
        agreement ``loa_low`` and ``loa_high`` (bias -/+ 1.96 sample standard deviations), in its
        unit; ``MAPE``, the mean absolute difference in % of the true value. NaN without a pair.
    """
    difference = predicted - true
    bias = _mean(difference)
    spread = 1.96 * float(difference.std(ddof=1)) if len(difference) > 1 else float("nan")
    return {
        "bias": bias,
        "MAE": _mean(np.abs(difference)),
        "loa_low": bias - spread,
        "loa_high": bias + spread,
        "MAPE": 100 * _mean(np.abs(difference[true > 0]) / true[true > 0]),
    }


def measure_sizes(masks: CropMasks, classes: Sequence[int], kinds: Sequence[Kind]) -> np.ndarray:
    """Measure length and maximum Feret diameter in px and area in px² of masks.

    The length is along the centreline of fibres, else the Feret diameter.

    Args:
        masks, classes: N masks, of which an empty one measures 0, and their class numbers.
        kinds: by class number.

    Returns:
        (N, 3) float64 in the order of :data:`QUANTITIES`.
    """
    sizes = np.zeros((len(masks), len(QUANTITIES)))
    filled = [index for index, crop in enumerate(masks.crops) if crop.any()]
    items = [
        Item(
            masks.crops[index],
            tuple(masks.offsets[index].tolist()),
            kind=kinds[classes[index]],
        )
        for index in filled
    ]
    for index, shape in zip(filled, measure_many(items, processes=1), strict=True):
        sizes[index] = [getattr(shape, quantity) for quantity in QUANTITIES]
    return sizes


def class_curve(
    pooled: Pooled, predictions: np.ndarray, truths: np.ndarray, thresholds: np.ndarray
) -> dict[str, np.ndarray]:
    """Compute the figures of a part of the particles at many score thresholds.

    Args:
        pooled, predictions, truths: as of :func:`count_figures`.
        thresholds: (T,); a prediction counts from the threshold on.

    Returns:
        Arrays (T,): ``threshold``, ``true``, ``predicted``, ``count_error``, and in %
        ``count_error_pct``, ``precision``, ``recall`` and ``F1``, NaN where undefined.
    """
    chosen = np.flatnonzero(predictions & ~pooled.ignored[:, 0])
    chosen = chosen[np.argsort(pooled.scores[chosen])]
    true = int(truths.sum())
    hits = pooled.matches[chosen, 0] >= 0
    above = np.concatenate([[0], np.cumsum(hits[::-1])])[::-1]  # matches from each score on
    start = np.searchsorted(pooled.scores[chosen], thresholds, side="left")
    predicted, matched = len(chosen) - start, above[start]
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
    for name, *part in pooled.parts(class_names):
        curve = class_curve(pooled, *part, GRID)
        for values in zip(*(column.tolist() for column in curve.values()), strict=True):
            rows.append({"class": name, **dict(zip(curve, values, strict=True))})
    return rows


def write_table(path: str | os.PathLike, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows as CSV, with ``all`` for None."""
    write_rows(path, _named(rows))


def _named(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: "all" if v is None else v for k, v in row.items()} for row in rows]


def _percent(part: float, whole: float) -> float:
    return 100 * part / whole if whole else float("nan")


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _per_class(thresholds: float | Sequence[float], class_names: Sequence[str]) -> np.ndarray:
    """Return one score threshold for each class, checked."""
    given = [thresholds] * len(class_names) if isinstance(thresholds, (int, float)) else thresholds
    if not all(_is_within(t, 0, 1) for t in given) or len(given) != len(class_names):
        raise UserError(
            f"TEST.COUNTING has the score thresholds {given} for the classes "
            f"{', '.join(class_names)}; expected a number from 0 to 1 for each class in "
            "CLASS_SCORE_THRESH, or one for all in SCORE_THRESH.",
            code="config_invalid",
        )
    return np.array(given, dtype=np.float64)


def _is_within(value: Any, low: float, high: float) -> bool:
    """Return whether a value of a config or a JSON is a number from ``low`` to ``high``."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high
