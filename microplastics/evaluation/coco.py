"""COCO box and mask AP."""

import itertools
import json
import logging
import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from detectron2.structures import Instances
from detectron2.utils.logger import create_small_table
from faster_coco_eval import COCO, COCOeval_faster
from tabulate import tabulate

from microplastics.evaluation.base import TruthEvaluator
from microplastics.structures.crop_masks import as_crop_masks
from microplastics.utils.io import atomic_write, write_rows

logger = logging.getLogger(__name__)

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
RESULTS_FILE, PR_FILE = "coco_instances_results.json", "evaluation_pr_curves.csv"
IOUS, RECALLS = np.arange(50, 100, 5) / 100, np.arange(101) / 100


class COCOEvaluator(TruthEvaluator):
    """Detectron2's ``COCOEvaluator`` for boxes and masks at any cap on the detections.

    Unlike there, both tasks are always in the results, a cap other than 100 is as fast, and masks
    may be :class:`CropMasks`, whose full frames are never made.
    """

    def __init__(
        self,
        dataset_name: str,
        output_dir: str | os.PathLike | None = None,
        max_dets_per_image: int = 100,
        tasks: Sequence[str] = ("bbox", "segm"),
    ) -> None:
        """
        Args:
            dataset_name: as of :class:`TruthEvaluator`.
            output_dir: where ``coco_instances_results.json`` and the curves of precision against
                recall are written; nowhere if ``None``.
            max_dets_per_image: cap on the detections of an image and category, as in COCO.
            tasks: of ``"bbox"`` and ``"segm"``.
        """
        super().__init__(dataset_name)
        self._output_dir = output_dir
        self._max_dets = max_dets_per_image
        self._tasks = tuple(tasks)
        self._pr_curves: list[dict[str, Any]] = []
        contiguous = self.metadata.get("thing_dataset_id_to_contiguous_id")
        if contiguous is None:
            contiguous = {category: category for category in self.coco_api.cats}
        self._dataset_ids = {number: category for category, number in contiguous.items()}

    def judge(self, image_id: int, instances: Instances) -> dict[str, Any]:
        """Turn the predictions of an image into COCO results."""
        return {"instances": instances_to_results(instances, image_id, self._dataset_ids)}

    def evaluate(self) -> OrderedDict:
        """Return the dict of :func:`summarize` for each task."""
        predictions = self.gathered()
        if predictions is None:
            return OrderedDict()
        results = list(itertools.chain(*(each["instances"] for each in predictions)))
        self._pr_curves.clear()
        if self._output_dir is not None:
            path = os.path.join(self._output_dir, RESULTS_FILE)
            with atomic_write(path) as file:
                file.write(json.dumps(results))  # dump() to a file takes the slow encoder
            logger.info("Saved %d predictions to %s", len(results), path)
        reports = OrderedDict((task, self._evaluate_task(results, task)) for task in self._tasks)
        if self._output_dir is not None:
            write_rows(os.path.join(self._output_dir, PR_FILE), self._pr_curves)
        return reports

    def _evaluate_task(self, results: list[dict[str, Any]], task: str) -> dict[str, float]:
        if not results:
            logger.warning("No predictions from the model: its %s AP is not a number.", task)
        elif task == "segm" and "segmentation" not in results[0]:
            logger.warning("No masks from the model: its segm AP is not a number.")
            results = []
        classes = self.metadata.get("thing_classes") or []
        names = {self._dataset_ids[number]: name for number, name in enumerate(classes)}
        precision = precisions(self.coco_api, results, task, self._max_dets)
        report = summarize(precision, sorted(self.coco_api.cats), names)
        self._pr_curves += _pr_rows(precision[..., 0], sorted(self.coco_api.cats), names, task)
        table = create_small_table({metric: report[metric] for metric in METRICS})
        logger.info("Evaluation results for %s:\n%s", task, table)
        if len(names) > 1:
            rows = [(n, report[f"AP-{n}"], report[f"AP50-{n}"]) for n in names.values()]
            heads = ("category", "AP", "AP50")
            table = tabulate(rows, headers=heads, tablefmt="pipe", floatfmt=".3f")
            logger.info("Per-category %s AP:\n%s", task, table)
        return report


def precisions(
    coco_gt: Any,
    results: Sequence[dict[str, Any]],
    iou_type: str,
    max_dets: int = 100,
    img_ids: Iterable[int] | None = None,
) -> np.ndarray:
    """Compute the precision of results, in [0, 1], at each IoU and recall.

    Args:
        coco_gt, results, iou_type, max_dets, img_ids: see :func:`coco_evaluation`.

    Returns:
        (10, 101, K, 4) over :data:`IOUS`, :data:`RECALLS`, categories by ascending id and areas
        (all, small, medium, large); -1 where there is no truth, NaN if ``results`` is empty.
    """
    if not len(results):
        return np.full((len(IOUS), len(RECALLS), len(coco_gt.cats), 4), np.nan)
    evaluation = coco_evaluation(coco_gt, results, iou_type, max_dets, img_ids)
    evaluation.evaluate()
    evaluation.accumulate()
    return np.asarray(evaluation.eval["precision"])[..., 0]


def summarize(
    precision: np.ndarray, categories: Sequence[int], class_names: dict[int, str] | None = None
) -> dict[str, float]:
    """Summarise precisions as Detectron2's ``COCOEvaluator`` reports them.

    Args:
        precision: of :func:`precisions`.
        categories: the K category ids, ascending.
        class_names: by category id; the figures of each class are added if there are two or more.

    Returns:
        In percent: AP, AP50, AP75, APs, APm, APl, then ``AP-<class>`` and ``AP50-<class>`` of
        every class. NaN where there is no truth, and everywhere if there was no result.
    """
    report = {
        "AP": _percent(precision[..., 0]),
        "AP50": _percent(precision[0, ..., 0]),
        "AP75": _percent(precision[5, ..., 0]),
        "APs": _percent(precision[..., 1]),
        "APm": _percent(precision[..., 2]),
        "APl": _percent(precision[..., 3]),
    }
    if class_names is not None and len(class_names) > 1:
        for prefix, part in (("AP-", precision), ("AP50-", precision[:1])):
            for number, category in enumerate(categories):
                if category in class_names:
                    report[prefix + class_names[category]] = _percent(part[:, :, number, 0])
    return report


def _pr_rows(
    precision: np.ndarray, categories: Sequence[int], names: dict[int, str], task: str
) -> Iterator[dict[str, Any]]:
    """Yield the precision of each class at each recall; a column for each IoU."""
    for number, category in enumerate(categories):
        for recall, at in zip(RECALLS, precision[..., number].T, strict=True):
            values = (round(float(v), 6) if v >= 0 else None for v in at)
            of_ious = zip((f"precision_{iou:.2f}" for iou in IOUS), values, strict=True)
            row = {"task": task, "class": names.get(category, category)}
            yield {**row, "recall": round(float(recall), 2), **dict(of_ious)}


class _MaskEvaluation(COCOeval_faster):
    """Compares masks as they are: the library encodes each of them anew, in half of its time."""

    def computeIoU(self, imgId: int, catId: int) -> np.ndarray:
        sides = (self.gt_dataset, self.dt_dataset)
        truths, found = (side.get_instances([imgId], [catId], True)[0][0] for side in sides)
        order = np.argsort([-each["score"] for each in found], kind="stable")
        masks = [found[index]["segmentation"] for index in order[: self.params.maxDets[-1]]]
        crowds = [each["iscrowd"] for each in truths]
        return mask_util.iou(masks, [self.cocoGt.annToRLE(each) for each in truths], crowds)


def coco_evaluation(
    coco_gt: Any,
    results: Sequence[dict[str, Any]],
    iou_type: str,
    max_dets: int = 100,
    img_ids: Iterable[int] | None = None,
) -> COCOeval_faster:
    """Prepare faster-coco-eval (C++), whose figures are pycocotools', for a task and a cap.

    Args:
        coco_gt: pycocotools' ``COCO`` of the ground truth; the ``area`` of its annotations
            separates small, medium and large.
        results: COCO result dicts with ``image_id``, ``category_id``, ``score`` and
            ``bbox`` (x, y, width, height) or ``segmentation`` (compressed RLE). Not empty.
        iou_type: ``"bbox"`` or ``"segm"``; also decides what the area of a detection is.
        max_dets: cap on the detections of an image and category.
        img_ids: the images to evaluate on; all if left out.

    Returns:
        After ``evaluate()`` and ``accumulate()`` its ``eval["precision"]`` is (T, R, K, A, 1) over
        IoU thresholds 0.50:0.05:0.95, recalls 0:0.01:1, categories by ascending id and areas
        (all, small, medium, large); -1 where there is no truth.
    """
    # New dicts, for the library writes into them. It takes an id of 0 for no match.
    annotations = coco_gt.dataset["annotations"]
    truths = [{**each, "id": number} for number, each in enumerate(annotations, 1)]
    truth = COCO({**coco_gt.dataset, "annotations": truths})
    # With a box in them loadRes takes results for boxes, whatever else they hold.
    other = "segmentation" if iou_type == "bbox" else "bbox"
    found = [{k: v for k, v in each.items() if k != other} for each in results]
    kind = COCOeval_faster if iou_type == "bbox" else _MaskEvaluation
    evaluation = kind(truth, truth.loadRes(found), "bbox")
    evaluation.params.maxDets = [max_dets]
    if img_ids is not None:
        evaluation.params.imgIds = list(img_ids)
    return evaluation


def instances_to_results(
    instances: Instances, image_id: int, dataset_ids: dict[int, int]
) -> list[dict[str, Any]]:
    """Turn the predictions of an image into COCO results, with the category id of each class."""
    boxes = instances.pred_boxes.tensor.detach().cpu().numpy().copy()
    boxes[:, 2:] -= boxes[:, :2]
    classes = instances.pred_classes.tolist()
    if not set(classes) <= set(dataset_ids):
        raise ValueError(
            f"Class {max(set(classes) - set(dataset_ids))} is predicted, "
            f"but the data set has only the classes {sorted(dataset_ids)}"
        )
    results = [
        {"image_id": image_id, "category_id": dataset_ids[number], "bbox": box, "score": score}
        for number, box, score in zip(
            classes, boxes.tolist(), instances.scores.tolist(), strict=True
        )
    ]
    if instances.has("pred_masks"):
        rles = as_crop_masks(instances.pred_masks, instances.image_size).to_rles(as_str=True)
        for result, rle in zip(results, rles, strict=True):
            result["segmentation"] = rle
    return results


def _percent(precision: np.ndarray) -> float:
    values = precision[precision > -1]
    return 100 * float(values.mean()) if values.size else float("nan")
