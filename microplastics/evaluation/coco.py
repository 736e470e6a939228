"""COCO box and mask AP, at any cap on the detections and the same on both Detectron2 builds."""

import contextlib
import copy
import gc
import io
import itertools
import json
import logging
import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator as _Detectron2COCOEvaluator
from detectron2.structures import Instances
from detectron2.utils.logger import create_small_table
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tabulate import tabulate

from microplastics.data.coco import coco_api
from microplastics.evaluation.gather import gather_by_image
from microplastics.structures.crop_masks import CropMasks
from microplastics.utils.errors import UserError
from microplastics.utils.io import atomic_write

try:
    from faster_coco_eval import COCOeval_faster
except ImportError:
    COCOeval_faster = None

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


class CocoEvaluation:
    """One run of the COCO protocol: a task, a cap, a set of images.

    Through faster-coco-eval (C++) where it can be imported, else through pycocotools; the figures
    are the same. Neither the ground truth nor the results are changed.

    Attributes:
        max_dets: caps on the detections of an image and category, ascending, the last one for AP.
        category_ids: the K categories in the order of the arrays.
        precision: (T, R, K, A, M) float64 over IoU thresholds 0.50:0.05:0.95, recalls
            0:0.01:1, categories, areas (all, small, medium, large) and caps; -1 where there is
            no truth. Filled by :meth:`run`.
        recall: (T, K, A, M) float64.
    """

    def __init__(
        self,
        coco_gt: COCO,
        results: Sequence[dict[str, Any]],
        iou_type: str,
        max_dets: int = 100,
        img_ids: Iterable[int] | None = None,
        recall_caps: Sequence[int] = (1, 10),
    ) -> None:
        """
        Args:
            coco_gt: the ground truth; its ``area`` fields part small, medium and large.
            results: COCO result dicts with ``image_id``, ``category_id``, ``score`` and
                ``bbox`` (x, y, width, height) or ``segmentation`` (compressed RLE). Not empty.
            iou_type: ``"bbox"`` or ``"segm"``; decides what the area of a detection is, too.
            max_dets: cap on the detections of an image and category.
            img_ids: the images to evaluate on; all when left out.
            recall_caps: lower caps to evaluate at as well, for AR1 and AR10; each costs a third
                of the time of a whole evaluation.

        Raises:
            ValueError: a result is of an image that the ground truth lacks, or lacks its mask.
        """
        strangers = {result["image_id"] for result in results} - set(coco_gt.imgs)
        if strangers:
            raise ValueError(f"Predictions for images not annotated: {sorted(strangers)[:9]}")
        if iou_type == "segm":
            _check_masks(results, coco_gt)
        part = "bbox" if iou_type == "bbox" else "segmentation"
        with _no_garbage_collection():
            truths = [
                _annotation(number, truth, part, truth["area"], int(truth.get("iscrowd", 0)))
                for number, truth in enumerate(coco_gt.dataset["annotations"], 1)
            ]
            detections = [
                {**_annotation(number, result, part, area, 0), "score": result["score"]}
                for number, (result, area) in enumerate(
                    zip(results, _areas(results, iou_type), strict=True), 1
                )
            ]
            gt, dt = _Annotations(coco_gt, truths), _Annotations(coco_gt, detections)
        if COCOeval_faster is None:
            self._eval = COCOeval(gt, dt, iou_type)
        else:
            # Told that it works on boxes it does not decode and encode every mask anew, which
            # would be half of its time: the overlaps are all that differs, and come from here.
            self._eval = COCOeval_faster(gt, dt, "bbox", print_function=_silent)
            self._eval.computeIoU = _Overlaps(gt, dt, part, max_dets)
        if img_ids is not None:
            self._eval.params.imgIds = list(img_ids)
        self.max_dets = [cap for cap in sorted(recall_caps) if cap < max_dets] + [max_dets]
        self._eval.params.maxDets = self.max_dets
        self.category_ids: list[int] = sorted(gt.cats)

    def run(self) -> "CocoEvaluation":
        """Match and accumulate; returns itself."""
        with contextlib.redirect_stdout(io.StringIO()), _no_garbage_collection():
            self._eval.evaluate()
            self._eval.accumulate()
        self.precision = np.asarray(self._eval.eval["precision"])
        self.recall = np.asarray(self._eval.eval["recall"])
        return self

    def figures(self) -> dict[str, float]:
        """Give COCO's 12 figures as fractions, NaN where there is no truth.

        AP and AR are those at the last cap; AR1 and AR10 at these caps, NaN if not evaluated.
        """
        precision, recall = self.precision[..., -1], self.recall
        return {
            "AP": _mean(precision[:, :, :, 0]),
            "AP50": _mean(precision[0, :, :, 0]),
            "AP75": _mean(precision[5, :, :, 0]),
            "APs": _mean(precision[:, :, :, 1]),
            "APm": _mean(precision[:, :, :, 2]),
            "APl": _mean(precision[:, :, :, 3]),
            "AR1": self._recall_at(1),
            "AR10": self._recall_at(10),
            "AR": _mean(recall[:, :, 0, -1]),
            "ARs": _mean(recall[:, :, 1, -1]),
            "ARm": _mean(recall[:, :, 2, -1]),
            "ARl": _mean(recall[:, :, 3, -1]),
        }

    def _recall_at(self, cap: int) -> float:
        cap = min(cap, self.max_dets[-1])
        if cap not in self.max_dets:
            return float("nan")
        return _mean(self.recall[:, :, 0, self.max_dets.index(cap)])

    def category_figures(self) -> dict[int, tuple[float, float]]:
        """Give AP and AP50 of each category id as fractions, NaN where there is no truth."""
        precision = self.precision[:, :, :, 0, -1]
        return {
            category: (_mean(precision[:, :, k]), _mean(precision[0, :, k]))
            for k, category in enumerate(self.category_ids)
        }


def evaluate_predictions(
    coco_gt: COCO,
    results: Sequence[dict[str, Any]],
    iou_type: str,
    max_dets: int = 100,
    img_ids: Iterable[int] | None = None,
    class_names: dict[int, str] | None = None,
) -> dict[str, float]:
    """Evaluate results as Detectron2's ``COCOEvaluator`` reports them.

    Args:
        coco_gt, results, iou_type, max_dets, img_ids: see :class:`CocoEvaluation`.
        class_names: name of each category id; the figures of each class are added where there
            are two classes or more.

    Returns:
        In percent: AP, AP50, AP75, APs, APm, APl, then ``AP-<class>`` and ``AP50-<class>`` of
        every class. NaN where there is no truth, and everywhere when ``results`` is empty.
    """
    names = class_names if class_names is not None and len(class_names) > 1 else {}
    if not len(results):
        per_class = {category: (float("nan"),) * 2 for category in sorted(names)}
        figures = dict.fromkeys(METRICS, float("nan"))
    else:
        evaluation = CocoEvaluation(coco_gt, results, iou_type, max_dets, img_ids, ()).run()
        per_class = evaluation.category_figures()
        figures = evaluation.figures()
    report = {metric: figures[metric] * 100 for metric in METRICS}
    for place, prefix in enumerate(("AP-", "AP50-")):
        for category, values in per_class.items():
            if category in names:
                report[prefix + names[category]] = values[place] * 100
    return report


class _Annotations:
    """As much of ``pycocotools.coco.COCO`` as an evaluation asks for, for ids from 1 on."""

    def __init__(self, coco_gt: COCO, annotations: list[dict[str, Any]]) -> None:
        self.annotations = annotations
        self.imgs = coco_gt.imgs
        self.cats = coco_gt.cats
        self.annToRLE = coco_gt.annToRLE

    def getImgIds(self) -> list[int]:
        return list(self.imgs)

    def getCatIds(self) -> list[int]:
        return list(self.cats)

    def getAnnIds(self, imgIds: Iterable[int], catIds: Iterable[int]) -> list[int]:
        images, categories = set(imgIds), set(catIds)
        return [
            each["id"]
            for each in self.annotations
            if each["image_id"] in images and each["category_id"] in categories
        ]

    def loadAnns(self, ids: Iterable[int]) -> list[dict[str, Any]]:
        return [self.annotations[number - 1] for number in ids]


class _Overlaps:
    """IoU of the detections and truths of an image and category, as ``COCOeval`` computes it."""

    def __init__(self, gt: _Annotations, dt: _Annotations, part: str, max_dets: int) -> None:
        self._part = part
        self._max_dets = max_dets
        self._to_rle = gt.annToRLE
        self._truths, self._truth_groups = _grouped(gt.annotations)
        # Descending by a stable sort, as COCOeval's: which of equal scores comes first decides.
        scores = -np.array([each["score"] for each in dt.annotations], dtype=np.float64)
        self._detections, self._detection_groups = _grouped(dt.annotations, scores)
        if part == "bbox":
            self._truth_boxes = _boxes(self._truths)
            self._detection_boxes = _boxes(self._detections)

    def __call__(self, image_id: int, category_id: int) -> np.ndarray | list:
        truths = self._truth_groups.get((image_id, category_id))
        detections = self._detection_groups.get((image_id, category_id))
        if truths is None or detections is None:
            return []
        detections = slice(
            detections.start, min(detections.stop, detections.start + self._max_dets)
        )
        crowds = [each["iscrowd"] for each in self._truths[truths]]
        if self._part == "bbox":
            return mask_util.iou(
                self._detection_boxes[detections], self._truth_boxes[truths], crowds
            )
        return mask_util.iou(
            [each["segmentation"] for each in self._detections[detections]],
            [self._to_rle(each) for each in self._truths[truths]],
            crowds,
        )


def _grouped(
    annotations: list[dict[str, Any]], keys: np.ndarray | None = None
) -> tuple[list[dict[str, Any]], dict[tuple[int, int], slice]]:
    """Sort by image, category and ``keys``; give the slice of each image and category."""
    if not annotations:
        return [], {}
    images = np.array([each["image_id"] for each in annotations])
    categories = np.array([each["category_id"] for each in annotations])
    order = np.lexsort((categories, images) if keys is None else (keys, categories, images))
    images, categories = images[order], categories[order]
    change = (images[1:] != images[:-1]) | (categories[1:] != categories[:-1])
    starts = np.concatenate(([0], np.flatnonzero(change) + 1))
    ends = np.append(starts[1:], len(annotations))
    names = zip(images[starts].tolist(), categories[starts].tolist(), strict=True)
    slices = (slice(*pair) for pair in zip(starts.tolist(), ends.tolist(), strict=True))
    return [annotations[i] for i in order.tolist()], dict(zip(names, slices, strict=True))


def _boxes(annotations: list[dict[str, Any]]) -> np.ndarray:
    return np.array([each["bbox"] for each in annotations], dtype=np.float64).reshape(-1, 4)


def _annotation(number: int, source: dict, part: str, area: float, iscrowd: int) -> dict[str, Any]:
    """Copy what is needed: both back ends write into annotations, and an id of 0 is no match."""
    return {
        "id": number,
        "image_id": source["image_id"],
        "category_id": source["category_id"],
        "area": area,
        "iscrowd": iscrowd,
        part: source[part],
    }


def _areas(results: Sequence[dict[str, Any]], iou_type: str) -> list[float]:
    """Give the areas that part small, medium and large, as Detectron2 and ``loadRes`` have it."""
    if iou_type == "bbox":
        return [result["bbox"][2] * result["bbox"][3] for result in results]
    masks = [result["segmentation"] for result in results]
    # pycocotools 2.0.11 refuses a list of more than 255 masks under numpy 2.
    return [
        area
        for first in range(0, len(masks), 255)
        for area in mask_util.area(masks[first : first + 255]).tolist()
    ]


def _check_masks(results: Sequence[dict[str, Any]], coco_gt: COCO) -> None:
    """Refuse what pycocotools would compare without a word, or crash on."""
    for result in results:
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


def _silent(*_: Any) -> None:
    """Take what the evaluation says of its progress: it is over in a moment."""


def _mean(values: np.ndarray) -> float:
    values = values[values > -1]
    return float(values.mean()) if values.size else float("nan")


logger = logging.getLogger(__name__)

RESULTS_FILE = "coco_instances_results.json"


class COCOEvaluator(_Detectron2COCOEvaluator):
    """Detectron2's ``COCOEvaluator`` for boxes and masks, without its limits.

    Evaluates at any cap with the compiled arithmetic, on either build; both tasks are always in
    the results; masks may be :class:`CropMasks`, whose frames are never made; the areas of truths
    are those of their masks.
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
            output_dir: where ``coco_instances_results.json`` is written; nowhere when ``None``.
            max_dets_per_image: cap on the detections of an image and category, as COCO has it.
            distributed: collect the predictions of all ranks; else evaluate this rank's.
            tasks: of ``"bbox"`` and ``"segm"``.

        Raises:
            UserError: the data set has no COCO JSON, or the JSON cannot be used.
        """
        # The base's constructor differs between the builds and reads the JSON unchecked.
        self._metadata = MetadataCatalog.get(dataset_name)
        json_file = self._metadata.get("json_file")
        if json_file is None:
            raise UserError(
                f"Data set {dataset_name} has no COCO JSON to be evaluated against; "
                "register it with microplastics.register_microplastics_instances."
            )
        unknown = set(tasks) - {"bbox", "segm"}
        if unknown:
            raise UserError(f"Evaluation task {sorted(unknown)} is not one of bbox and segm.")
        self._coco_api = coco_api(json_file)
        self._do_evaluation = "annotations" in self._coco_api.dataset
        self._output_dir = output_dir
        self._max_dets = max_dets_per_image
        self._distributed = distributed
        self._tasks = tuple(tasks)
        contiguous = self._metadata.get("thing_dataset_id_to_contiguous_id")
        if contiguous is None:
            contiguous = {category: category for category in self._coco_api.cats}
        self._dataset_ids = {number: category for category, number in contiguous.items()}
        self.reset()

    def reset(self) -> None:
        """Forget all predictions."""
        self._predictions: list[dict[str, Any]] = []

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Take in the predictions of a batch.

        Args:
            inputs: dicts with ``image_id``.
            outputs: dicts with ``instances`` in pixels of the original image, whose
                ``pred_masks`` are :class:`CropMasks` or an (N, H, W) bool tensor, if any.
        """
        for each, output in zip(inputs, outputs, strict=True):
            results = instances_to_results(output["instances"], each["image_id"], self._dataset_ids)
            self._predictions.append({"image_id": each["image_id"], "instances": results})

    def evaluate(self, img_ids: Iterable[int] | None = None) -> OrderedDict:
        """Evaluate what was predicted.

        Args:
            img_ids: the images to evaluate on; all of the data set when left out.

        Returns:
            On rank 0, for each task, the dict of :func:`evaluate_predictions`; elsewhere ``{}``.
        """
        predictions = gather_by_image(self._predictions, self._distributed)
        self._results: OrderedDict = OrderedDict()
        if predictions is None:
            return self._results
        results = list(itertools.chain(*(each["instances"] for each in predictions)))
        if self._output_dir is not None:
            path = os.path.join(self._output_dir, RESULTS_FILE)
            with atomic_write(path) as file:
                file.write(json.dumps(results))  # dump() to a file takes the slow encoder
            logger.info(f"Saved {len(results)} predictions to {path}")
        if not self._do_evaluation:
            logger.warning("The data set has no annotations to evaluate against.")
            return self._results
        for task in self._tasks:
            self._results[task] = self._evaluate_task(results, task, img_ids)
        return copy.deepcopy(self._results)

    def _evaluate_task(
        self, results: list[dict[str, Any]], task: str, img_ids: Iterable[int] | None
    ) -> dict[str, float]:
        if not results:
            logger.warning("No predictions from the model: its %s AP is not a number.", task)
        elif task == "segm" and "segmentation" not in results[0]:
            logger.warning("No masks from the model: its segm AP is not a number.")
            results = []
        classes = self._metadata.get("thing_classes")
        names = None
        if classes is not None:
            names = {self._dataset_ids[number]: name for number, name in enumerate(classes)}
        report = evaluate_predictions(self._coco_api, results, task, self._max_dets, img_ids, names)
        logger.info(f"Evaluation results for {task}:\n" + create_small_table(_head(report)))
        if len(report) > len(METRICS):
            rows = [
                (name, report[f"AP-{name}"], report[f"AP50-{name}"])
                for name in names.values()
                if f"AP-{name}" in report
            ]
            table = tabulate(
                rows, headers=("category", "AP", "AP50"), tablefmt="pipe", floatfmt=".3f"
            )
            logger.info(f"Per-category {task} AP:\n{table}")
        return report


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
        ValueError: a predicted class is none of the data set's.
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
        for result, rle in zip(results, masks_to_rles(instances.pred_masks), strict=True):
            result["segmentation"] = rle
    return results


def masks_to_rles(masks: Any) -> list[dict[str, Any]]:
    """Encode :class:`CropMasks` or an (N, H, W) tensor as COCO RLEs with counts as ``str``."""
    if not isinstance(masks, CropMasks):
        masks = CropMasks.from_bitmasks(masks)
    return masks.to_rles(as_str=True)


def _head(report: dict[str, float]) -> dict[str, float]:
    return {metric: report[metric] for metric in METRICS}
