"""What a lab asks of a model: how many particles of each class and size, and how well measured."""

import logging
import os
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from tabulate import tabulate

from microplastics.data.coco import coco_api, contiguous_ids, read_json
from microplastics.errors import UserError
from microplastics.evaluation.counting_curves import curves, write_rows
from microplastics.evaluation.counting_figures import (
    confusion_table,
    count_table,
    flat_figures,
    size_table,
)
from microplastics.evaluation.counting_records import Pooled, crops_of, judge_image, pool
from microplastics.evaluation.counting_sizes import SizeBins, read_scales
from microplastics.evaluation.gather import gather_by_image
from microplastics.modeling.duplicates import distinct
from microplastics.structures.crop_masks import CropMasks

logger = logging.getLogger(__name__)

COUNTS_FILE = "counting.csv"
SIZES_FILE = "counting_sizes.csv"
CONFUSION_FILE = "counting_confusion.csv"
CURVES_FILE = "counting_curves.csv"


class CountingEvaluator(DatasetEvaluator):
    """Counts, matched F1, size errors and confusion of classes at a score threshold.

    ``docs/counting.md`` defines every figure. Masks are judged on their crops and forgotten; what
    is kept of an image, and sent between ranks, is a few numbers for each particle.

    Attributes:
        class_names: of the data set, by class number.
        thresholds: (K,) least score that counts.
        size_bins: the size classes.
        records: this rank's, one for each image, as ``counting_records.judge_image`` gives them.
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
            score_thresholds: least score of a particle that counts, of all classes or of each.
            output_dir: where the four CSV files are written; nowhere when ``None``.
            measure_sizes: measure the shapes (about 1 ms a particle) for the size classes and the
                errors of length, Feret diameter and area.
            size_bins: the size classes; below 32, 32 to 96, and from 96 px when ``None``.
            distributed: collect the records of all ranks; else report this rank's.
            max_overlap: of two detections, as of :func:`modeling.duplicates.distinct`; 1 counts
                all.

        Raises:
            UserError: no COCO JSON, or one that cannot be used, thresholds that do not fit, or
                size classes in µm for images of unknown scale.
        """
        metadata = MetadataCatalog.get(dataset_name)
        json_file = metadata.get("json_file")
        if json_file is None:
            raise UserError(
                f"Data set {dataset_name} has no COCO JSON to be evaluated against; "
                "register it with microplastics.register_microplastics_instances."
            )
        self._coco_api = coco_api(json_file)
        self._contiguous = contiguous_ids(json_file)
        self.class_names = [category["name"] for category in _by_id(self._coco_api.cats)]
        self.thresholds = _per_class(score_thresholds, self.class_names)
        self._output_dir = output_dir
        self._measure = measure_sizes
        self.size_bins = size_bins or SizeBins()
        self._scales = self._read_scales(json_file) if measure_sizes else {}
        self._distributed = distributed
        if isinstance(max_overlap, bool) or not 0 <= max_overlap <= 1:
            raise UserError(
                f"TEST.COUNTING.MAX_OVERLAP is {max_overlap}; give a share from 0 to 1."
            )
        self._max_overlap = max_overlap
        self.reset()

    @classmethod
    def from_config(
        cls, cfg: CfgNode, dataset_name: str, output_dir: str | os.PathLike | None
    ) -> "CountingEvaluator":
        """Build it as TEST.COUNTING says.

        Raises:
            UserError: as the constructor, or a value of TEST.COUNTING is none of the choices.
        """
        settings = cfg.TEST.COUNTING
        if settings.SIZES not in ("always", "eval_only", "never"):
            raise UserError(
                f"TEST.COUNTING.SIZES is {settings.SIZES!r}; use always, eval_only or never."
            )
        return cls(
            dataset_name,
            score_thresholds=settings.CLASS_SCORE_THRESH or settings.SCORE_THRESH,
            output_dir=output_dir,
            measure_sizes=settings.SIZES == "always",
            size_bins=SizeBins(tuple(settings.SIZE_BOUNDS), settings.SIZE_UNIT),
            max_overlap=settings.MAX_OVERLAP,
        )

    def reset(self) -> None:
        """Forget all records."""
        self.records: list[dict[str, Any]] = []

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Take in the predictions of a batch.

        Args:
            inputs: dicts with ``image_id``.
            outputs: dicts with ``instances`` in pixels of the original image, with ``scores``,
                ``pred_classes`` and ``pred_masks``, :class:`CropMasks` or an (N, H, W) bool
                tensor.

        Raises:
            ValueError: a mask is not of the image's size, or a class is none of the data set's.
        """
        for each, output in zip(inputs, outputs, strict=True):
            instances, image_id = output["instances"], each["image_id"]
            masks = instances.pred_masks
            if not isinstance(masks, CropMasks):
                masks = CropMasks.from_bitmasks(masks)
            image = self._coco_api.imgs[image_id]
            size = (image["height"], image["width"])
            if masks.image_size != size:
                raise ValueError(
                    f"Masks predicted for image {image_id} are of size {masks.image_size}, the "
                    f"image of size {size}"
                )
            classes = np.array(instances.pred_classes.tolist(), dtype=np.int64)
            if len(classes) and not 0 <= classes.min() <= classes.max() < len(self.class_names):
                raise ValueError(
                    f"Class {classes.max()} is predicted, but the data set has only "
                    f"{len(self.class_names)}"
                )
            scores = np.array(instances.scores.tolist(), dtype=np.float64)
            if self._max_overlap < 1:
                # What counts first, so that nothing below its threshold takes it away.
                ranks = scores + (scores >= self.thresholds[classes])
                kept = distinct(masks, classes, ranks, self._max_overlap)
                masks, classes, scores = masks[kept], classes[kept], scores[kept]
            annotations = self._coco_api.imgToAnns.get(image_id, [])
            truth = CropMasks.from_coco([a["segmentation"] for a in annotations], size)
            numbers = [self._contiguous[a["category_id"]] for a in annotations]
            record = judge_image(
                image_id,
                crops_of(masks),
                classes,
                scores,
                crops_of(truth),
                np.array(numbers, dtype=np.int64),
                np.array([bool(a.get("iscrowd", 0)) for a in annotations], dtype=bool),
                self.thresholds,
                self.class_names if self._measure else None,
            )
            self.records.append(record)

    def pooled(self) -> Pooled | None:
        """The records of all images on rank 0, ``None`` on the others; collective."""
        records = gather_by_image(self.records, self._distributed)
        return None if records is None else pool(records, self._scales)

    def evaluate(self) -> OrderedDict:
        """Give ``{"counting": {…}}`` of flat names; ``{}`` on ranks other than 0."""
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
                write_rows(os.path.join(self._output_dir, name), rows)
            logger.info("Counting figures in %s", self._output_dir)
        return OrderedDict(counting=report)

    def _log(self, counts: list[dict], sizes: list[dict], confusion: list[dict]) -> None:
        shown = ", ".join(
            f"{name} {threshold:g}"
            for name, threshold in zip(self.class_names, self.thresholds, strict=True)
        )
        logger.info("Counts at the score thresholds %s:\n%s", shown, _table(counts))
        if sizes:
            logger.info("Sizes of matched particles, predicted - true:\n%s", _table(sizes))
            if any(row["unit"].startswith("um") for row in sizes):
                logger.info("Micrometres are by um_per_px of the COCO JSON.")
        logger.info("Confusion of classes (rows true):\n%s", _table(confusion))

    def _read_scales(self, json_file: str) -> dict[int, float]:
        entries = read_json(json_file).get("images", [])
        scales = read_scales(entries if isinstance(entries, list) else [])
        without = [i for i in self._coco_api.imgs if i not in scales]
        if without and self.size_bins.unit == "um":
            raise UserError(
                f"TEST.COUNTING.SIZE_UNIT is um, but {len(without)} images of {json_file} have no "
                f"usable um_per_px, such as {self._coco_api.imgs[without[0]]['file_name']}; add "
                "it to the images, or set TEST.COUNTING.SIZE_UNIT px."
            )
        if without and scales:
            logger.warning(
                "%d of %d images of %s have no usable um_per_px: sizes are compared in px alone.",
                len(without),
                len(self._coco_api.imgs),
                json_file,
            )
        return scales


def _by_id(categories: dict[int, dict[str, Any]]) -> list[dict[str, Any]]:
    return [categories[number] for number in sorted(categories)]


def _per_class(thresholds: float | Sequence[float], class_names: Sequence[str]) -> np.ndarray:
    """One score threshold for each class, checked."""
    given = [thresholds] * len(class_names) if isinstance(thresholds, (int, float)) else thresholds
    sound = all(
        isinstance(t, (int, float)) and not isinstance(t, bool) and 0 <= t <= 1 for t in given
    )
    if not sound or len(given) != len(class_names):
        raise UserError(
            f"TEST.COUNTING has the score thresholds {given} for the classes "
            f"{', '.join(class_names)}; give a number from 0 to 1 for each class in "
            "CLASS_SCORE_THRESH, or one for all in SCORE_THRESH."
        )
    return np.array(given, dtype=np.float64)


def _table(rows: list[dict[str, Any]]) -> str:
    shown = [{k: "all" if v is None else v for k, v in row.items()} for row in rows]
    return tabulate(shown, headers="keys", tablefmt="pipe", floatfmt=".1f")
