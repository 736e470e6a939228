"""COCO box and mask AP."""

import contextlib
import gc
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
from faster_coco_eval import COCOeval_faster
from tabulate import tabulate

from microplastics.evaluation.base import TruthEvaluator, as_crops
from microplastics.utils.io import atomic_write

logger = logging.getLogger(__name__)

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
RESULTS_FILE = "coco_instances_results.json"

# Annotations by image id and category id.
_Groups = dict[tuple[int, int], list[dict[str, Any]]]


class COCOEvaluator(TruthEvaluator):
    """Detectron2's ``COCOEvaluator`` for boxes and masks at any cap on the detections.

    Unlike there, both tasks are always in the results, a cap other than 100 is as fast, and masks
    may be :class:`CropMasks`, whose full frames are never made. The area of a true particle is the
    ``area`` of the JSON.
    """

    def __init__(
        self,
        dataset_name: str,
        output_dir: str | os.PathLike | None = None,
        max_dets_per_image: int = 100,
        distributed: bool = True,
        tasks: Sequence[str] = ("bbox", "segm"),
    ) -> None:
        """
        Args:
            dataset_name: a registered data set whose metadata has ``json_file``.
            output_dir: where ``coco_instances_results.json`` is written; nowhere if ``None``.
            max_dets_per_image: cap on the detections of an image and category, as in COCO.
            distributed: collect the predictions of all ranks; else evaluate this rank's.
            tasks: of ``"bbox"`` and ``"segm"``.

        Raises:
            UserError: the data set has no COCO JSON, or the JSON cannot be used.
            ValueError: an unknown task.
        """
        super().__init__(dataset_name, distributed)
        if unknown := set(tasks) - {"bbox", "segm"}:
            raise ValueError(f"Evaluation task {sorted(unknown)} is not one of bbox and segm")
        self._output_dir = output_dir
        self._max_dets = max_dets_per_image
        self._tasks = tuple(tasks)
        contiguous = self.metadata.get("thing_dataset_id_to_contiguous_id")
        if contiguous is None:
            contiguous = {category: category for category in self.coco_api.cats}
        self._dataset_ids = {number: category for category, number in contiguous.items()}

    def judge(self, image_id: int, instances: Instances) -> dict[str, Any]:
        """Turn the predictions of an image into COCO results.

        Args:
            image_id: COCO id of the image.
            instances: in pixels of the original image, with ``pred_boxes``, ``scores``,
                ``pred_classes`` and maybe ``pred_masks``, :class:`CropMasks` or an (N, H, W) bool
                tensor.
        """
        return {"instances": instances_to_results(instances, image_id, self._dataset_ids)}

    def evaluate(self, img_ids: Iterable[int] | None = None) -> OrderedDict:
        """Evaluate the predictions.

        Args:
            img_ids: images to evaluate on; all of the data set if left out.

        Returns:
            On rank 0, for each task, the dict of :func:`evaluate_predictions`; elsewhere ``{}``.
        """
        predictions = self.gathered()
        report: OrderedDict = OrderedDict()
        if predictions is None:
            return report
        results = list(itertools.chain(*(each["instances"] for each in predictions)))
        if self._output_dir is not None:
            path = os.path.join(self._output_dir, RESULTS_FILE)
            with atomic_write(path) as file:
                file.write(json.dumps(results))  # dump() to a file takes the slow encoder
            logger.info("Saved %d predictions to %s", len(results), path)
        for task in self._tasks:
            report[task] = self._evaluate_task(results, task, img_ids)
        return report

    def _evaluate_task(
        self, results: list[dict[str, Any]], task: str, img_ids: Iterable[int] | None
    ) -> dict[str, float]:
        if not results:
            logger.warning("No predictions from the model: its %s AP is not a number.", task)
        elif task == "segm" and "segmentation" not in results[0]:
            logger.warning("No masks from the model: its segm AP is not a number.")
            results = []
        classes = self.metadata.get("thing_classes") or []
        names = {self._dataset_ids[number]: name for number, name in enumerate(classes)}
        report = evaluate_predictions(self.coco_api, results, task, self._max_dets, img_ids, names)
        table = create_small_table({metric: report[metric] for metric in METRICS})
        logger.info("Evaluation results for %s:\n%s", task, table)
        rows = [
            (name, report[f"AP-{name}"], report[f"AP50-{name}"])
            for name in names.values()
            if f"AP-{name}" in report
        ]
        if rows:
            heads = ("category", "AP", "AP50")
            table = tabulate(rows, headers=heads, tablefmt="pipe", floatfmt=".3f")
            logger.info("Per-category %s AP:\n%s", task, table)
        return report


def evaluate_predictions(
    coco_gt: Any,
    results: Sequence[dict[str, Any]],
    iou_type: str,
    max_dets: int = 100,
    img_ids: Iterable[int] | None = None,
    class_names: dict[int, str] | None = None,
) -> dict[str, float]:
    """Evaluate results as Detectron2's ``COCOEvaluator`` reports them.

    Args:
        coco_gt, results, iou_type, max_dets, img_ids: see :class:`CocoEvaluation`.
        class_names: name of each category id; the figures of each class are added if there are
            two or more.

    Returns:
        In percent: AP, AP50, AP75, APs, APm, APl, then ``AP-<class>`` and ``AP50-<class>`` of
        every class. NaN where there is no truth, and everywhere if ``results`` is empty.
    """
    precision = None
    if len(results):
        precision = CocoEvaluation(coco_gt, results, iou_type, max_dets, img_ids).run().precision

    def percent(index: tuple[Any, ...]) -> float:
        return float("nan") if precision is None else 100 * _mean(precision[index])

    every = slice(None)
    report = {
        "AP": percent((every, every, every, 0)),
        "AP50": percent((0, every, every, 0)),
        "AP75": percent((5, every, every, 0)),
        "APs": percent((every, every, every, 1)),
        "APm": percent((every, every, every, 2)),
        "APl": percent((every, every, every, 3)),
    }
    if class_names is not None and len(class_names) > 1:
        for prefix, thresholds in (("AP-", every), ("AP50-", 0)):
            for number, category in enumerate(sorted(coco_gt.cats)):
                if category in class_names:
                    figure = percent((thresholds, every, number, 0))
                    report[prefix + class_names[category]] = figure
    return report


class CocoEvaluation(COCOeval_faster):
    """One run of the COCO protocol by faster-coco-eval (C++): a task, a cap, a set of images.

    The figures are pycocotools'. Neither the ground truth nor the results are changed. Unlike the
    base class it does not index all annotations by image once more, nor decode and encode every
    mask again, which would be half of its time.

    Attributes:
        precision: (T, R, K, A) float64 over IoU thresholds 0.50:0.05:0.95, recalls 0:0.01:1,
            categories by ascending id and areas (all, small, medium, large); -1 where there is
            no truth. Filled by :meth:`run`.
        recall: (T, K, A) float64, likewise.
    """

    def __init__(
        self,
        coco_gt: Any,
        results: Sequence[dict[str, Any]],
        iou_type: str,
        max_dets: int = 100,
        img_ids: Iterable[int] | None = None,
    ) -> None:
        """
        Args:
            coco_gt: pycocotools' ``COCO`` of the ground truth; the ``area`` of its annotations
                separates small, medium and large.
            results: COCO result dicts with ``image_id``, ``category_id``, ``score`` and
                ``bbox`` (x, y, width, height) or ``segmentation`` (compressed RLE). Not empty.
            iou_type: ``"bbox"`` or ``"segm"``; also decides what the area of a detection is.
            max_dets: cap on the detections of an image and category.
            img_ids: the images to evaluate on; all if left out.

        Raises:
            ValueError: a result is of an image that the ground truth lacks, or lacks its mask.
        """
        super().__init__(iouType="bbox")
        self.params.imgIds = list(coco_gt.imgs if img_ids is None else img_ids)
        self.params.catIds = sorted(coco_gt.cats)
        self.params.maxDets = [max_dets]
        _check_results(results, coco_gt, iou_type)
        self._part = "bbox" if iou_type == "bbox" else "segmentation"
        self._to_rle = coco_gt.annToRLE
        with _no_garbage_collection():
            truths, areas = coco_gt.dataset["annotations"], _areas(results, iou_type)
            # By a stable sort, as in COCOeval: it decides which of equal scores comes first.
            order = np.argsort([-each["score"] for each in results], kind="stable").tolist()
            scored = [results[i] for i in order]
            self._truths = self._grouped(truths, [each["area"] for each in truths])
            self._detections = self._grouped(scored, [areas[i] for i in order])
            if iou_type == "bbox":
                self._truth_boxes = np.array([each["bbox"] for each in truths], dtype=float)
                self._detection_boxes = np.array([each["bbox"] for each in scored], dtype=float)

    def _grouped(self, annotations: Sequence[dict[str, Any]], areas: Sequence[float]) -> _Groups:
        # Copies of what is needed: the base class writes into them, and an id of 0 means no match.
        groups: _Groups = {}
        for number, (each, area) in enumerate(zip(annotations, areas, strict=True), 1):
            crowd = int(each.get("iscrowd", 0))
            annotation = {
                "id": number,
                "image_id": each["image_id"],
                "category_id": each["category_id"],
                "area": area,
                "iscrowd": crowd,
                "ignore": crowd,
                "score": each.get("score", 0),
                self._part: each[self._part],
            }
            groups.setdefault((each["image_id"], each["category_id"]), []).append(annotation)
        return groups

    def run(self) -> "CocoEvaluation":
        """Match and accumulate; returns itself."""
        with _no_garbage_collection():
            self.evaluate()
            self.accumulate()
        self.precision = np.asarray(self.eval["precision"])[..., 0]
        self.recall = np.asarray(self.eval["recall"])[..., 0]
        return self

    def _prepare(self) -> None:
        for dataset, groups in (
            (self.gt_dataset, self._truths),
            (self.dt_dataset, self._detections),
        ):
            dataset.clean()
            for (image, category), annotations in groups.items():
                for annotation in annotations:
                    dataset.append_ref(image, category, annotation)
        self._nonempty_iou_pairs = self._truths.keys() & self._detections.keys()

    def computeIoU(self, imgId: int, catId: int) -> np.ndarray:
        """Return the (D, G) IoU of an image's detections and truths of one category."""
        truths = self._truths[imgId, catId]
        detections = self._detections[imgId, catId][: self.params.maxDets[-1]]
        crowds = [each["iscrowd"] for each in truths]
        if self._part == "bbox":
            own, true = ([each["id"] - 1 for each in side] for side in (detections, truths))
            return mask_util.iou(self._detection_boxes[own], self._truth_boxes[true], crowds)
        masks = [each["segmentation"] for each in detections]
        return mask_util.iou(masks, [self._to_rle(each) for each in truths], crowds)


def instances_to_results(
    instances: Instances, image_id: int, dataset_ids: dict[int, int]
) -> list[dict[str, Any]]:
    """Turn the predictions of one image into COCO result dicts.

    Args:
        instances: with ``pred_boxes``, ``scores``, ``pred_classes`` and, if masks are predicted,
            ``pred_masks`` (:class:`CropMasks` or an (N, H, W) bool tensor).
        image_id: COCO id of the image.
        dataset_ids: COCO category id of each class number.

    Raises:
        ValueError: a predicted class is not one of the data set's.
    """
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
        rles = as_crops(instances.pred_masks).to_rles(as_str=True)
        for result, rle in zip(results, rles, strict=True):
            result["segmentation"] = rle
    return results


def _areas(results: Sequence[dict[str, Any]], iou_type: str) -> list[float]:
    """Return the areas that separate small, medium and large, as ``loadRes`` does."""
    if iou_type == "bbox":
        return [result["bbox"][2] * result["bbox"][3] for result in results]
    masks = [result["segmentation"] for result in results]
    # pycocotools 2.0.11 refuses a list of more than 255 masks under numpy 2.
    return [
        area
        for first in range(0, len(masks), 255)
        for area in mask_util.area(masks[first : first + 255]).tolist()
    ]


def _check_results(results: Sequence[dict[str, Any]], coco_gt: Any, iou_type: str) -> None:
    """Refuse results that the libraries would compare silently or crash on."""
    unknown = {result["image_id"] for result in results} - set(coco_gt.imgs)
    if unknown:
        raise ValueError(f"Predictions for images not annotated: {sorted(unknown)[:9]}")
    for result in results if iou_type == "segm" else ():
        if "segmentation" not in result:
            raise ValueError("A prediction has no mask, so that its mask AP cannot be computed")
        image = coco_gt.imgs[result["image_id"]]
        height, width = result["segmentation"]["size"]
        if height != image["height"] or width != image["width"]:
            raise ValueError(
                f"A mask predicted for image {image['id']} is of {height} x {width} pixels, "
                f"the image of {image['height']} x {image['width']}"
            )


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Spare the collector the search through some 100,000 new dicts: a third of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _mean(values: np.ndarray) -> float:
    values = values[values > -1]
    return float(values.mean()) if values.size else float("nan")
