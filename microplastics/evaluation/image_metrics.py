"""Semantic IoU and Dice, and false positives on blank images."""

import logging
from collections import Counter, OrderedDict
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from detectron2.structures import Instances
from detectron2.utils.logger import create_small_table

from microplastics.evaluation.base import TruthEvaluator

logger = logging.getLogger(__name__)


class SemanticEvaluator(TruthEvaluator):
    """Compares predicted pixels with true pixels, whatever their classes and instances.

    For each image, with T the union of its true masks:

    - ``IoU_best``: IoU of T with the one mask of the highest score, whatever that score is;
    - ``IoU`` and ``Dice``: with the union P of the masks that score ``score_threshold`` or more:
      |P and T| / |P or T| and 2 |P and T| / (|P| + |T|).

    Both sides empty count as 1, one empty as 0. The pixels of crowd annotations count on neither
    side. The report is the mean over images in percent.
    """

    def __init__(self, dataset_name: str, score_threshold: float = 0.5) -> None:
        super().__init__(dataset_name)
        self._score_threshold = score_threshold

    def judge(self, image_id: int, instances: Instances) -> dict[str, float]:
        """Return the figures of an image."""
        rles = []
        if instances.has("pred_masks"):
            rles = self.masks_of(image_id, instances).to_rles()
        scores = np.array(instances.scores.tolist())
        image, annotations = self.coco_api.imgs[image_id], self.coco_api.imgToAnns[image_id]
        size = [image["height"], image["width"]]
        truth, crowd = (
            _union([self.coco_api.annToRLE(a) for a in annotations if a["iscrowd"] == flag], size)
            for flag in (0, 1)
        )
        best = [rles[int(scores.argmax())]] if rles else []
        confident = [
            rle for rle, s in zip(rles, scores, strict=False) if s >= self._score_threshold
        ]
        iou_best, _ = _overlap(_union(best, size), truth, crowd)
        iou, dice = _overlap(_union(confident, size), truth, crowd)
        return {"IoU_best": iou_best, "IoU": iou, "Dice": dice}

    def evaluate(self) -> OrderedDict:
        """Return the means over images in percent, NaN without an image."""
        figures = self.gathered()
        if figures is None:
            return OrderedDict()
        report = {}
        for name in ("IoU_best", "IoU", "Dice"):
            total = sum(each[name] for each in figures)
            report[name] = 100 * total / len(figures) if figures else float("nan")
        logger.info("Evaluation results for semantic:\n%s", create_small_table(report))
        return OrderedDict(semantic=report)


class BlankEvaluator(TruthEvaluator):
    """Counts detections on the images of a data set that have no annotation at all.

    With D_i the detections on blank i that score ``score_threshold`` or more:

    - ``images``: the number of blanks;
    - ``FP_per_image``: mean of D_i, and ``FP_per_image-CLASS`` of each class;
    - ``images_with_FP``: percentage of blanks with D_i > 0.
    """

    def __init__(self, dataset_name: str, score_threshold: float = 0.5) -> None:
        super().__init__(dataset_name)
        self._score_threshold = score_threshold

    def judge(self, image_id: int, instances: Instances) -> dict[str, Any] | None:
        """Count the detections on a blank by class; ``None`` for an image with annotations."""
        if self.coco_api.imgToAnns.get(image_id):
            return None
        kept = instances.pred_classes[instances.scores >= self._score_threshold]
        return {"counts": Counter(kept.tolist())}

    def evaluate(self) -> OrderedDict:
        """Return the figures; nothing without a blank."""
        records = self.gathered()
        if not records:
            return OrderedDict()
        counts = [record["counts"] for record in records]
        totals = [sum(each.values()) for each in counts]
        report = {
            "images": len(records),
            "FP_per_image": sum(totals) / len(records),
            "images_with_FP": 100 * sum(total > 0 for total in totals) / len(records),
        }
        for index, name in enumerate(self.metadata.thing_classes):
            found = sum(each[index] for each in counts)
            report[f"FP_per_image-{name}"] = found / len(records)
        logger.info(
            "False positives of score %.2f or more on blank images:\n%s",
            self._score_threshold,
            create_small_table(report),
        )
        return OrderedDict(blank=report)


def _union(rles: list[dict[str, Any]], size: list[int]) -> dict[str, Any]:
    if not rles:
        return mask_util.frPyObjects({"size": size, "counts": [size[0] * size[1]]}, *size)
    return mask_util.merge(rles)


def _overlap(prediction: dict, truth: dict, crowd: dict) -> tuple[float, float]:
    """Return IoU and Dice of two masks outside of a third."""
    common = mask_util.merge([prediction, truth], intersect=True)
    inside = [
        mask_util.merge([mask, crowd], intersect=True) for mask in (common, prediction, truth)
    ]
    areas = [int(area) for area in mask_util.area([common, prediction, truth, *inside])]
    both, predicted, true = (areas[i] - areas[i + 3] for i in range(3))
    if not predicted + true:
        return 1.0, 1.0
    return both / (predicted + true - both), 2 * both / (predicted + true)
