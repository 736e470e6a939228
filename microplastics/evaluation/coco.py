"""COCO box and mask AP, at any cap on the detections and the same on both Detectron2 builds."""

import copy
import itertools
import json
import logging
import os
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator as _Detectron2COCOEvaluator
from detectron2.structures import Instances
from detectron2.utils.logger import create_small_table
from tabulate import tabulate

from microplastics.data.coco import coco_api
from microplastics.errors import UserError
from microplastics.evaluation.average_precision import METRICS, evaluate_predictions
from microplastics.evaluation.gather import gather_by_image
from microplastics.files import atomic_write
from microplastics.structures.crop_masks import CropMasks

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
