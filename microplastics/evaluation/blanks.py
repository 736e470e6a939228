"""What the model sees where there is nothing: false positives on blank images."""

import logging
from collections import Counter, OrderedDict
from collections.abc import Sequence
from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils.logger import create_small_table

from microplastics.data.coco import coco_api
from microplastics.errors import UserError
from microplastics.evaluation.gather import gather_by_image

logger = logging.getLogger(__name__)


class BlankEvaluator(DatasetEvaluator):
    """Counts detections on the images of a data set that have no annotation at all.

    AP mixes these false positives with all others; a procedural blank must be judged by
    itself. With D_i the detections on blank i that score ``score_threshold`` or more:

    - ``images``: the number of blanks;
    - ``FP_per_image``: mean of D_i, and ``FP_per_image-CLASS`` of each class;
    - ``images_with_FP``: percentage of blanks with D_i > 0.

    A data set without blanks yields nothing.
    """

    def __init__(
        self, dataset_name: str, score_threshold: float = 0.5, distributed: bool = True
    ) -> None:
        """
        Args:
            dataset_name: a registered data set whose metadata has ``json_file``.
            score_threshold: least score of a detection that counts.
            distributed: collect the counts of all ranks; else report this rank's.

        Raises:
            UserError: the data set has no COCO JSON, or the JSON cannot be used.
        """
        metadata = MetadataCatalog.get(dataset_name)
        json_file = metadata.get("json_file")
        if json_file is None:
            raise UserError(
                f"Data set {dataset_name} has no COCO JSON to be evaluated against; "
                "register it with microplastics.register_microplastics_instances."
            )
        self._classes: Sequence[str] = metadata.thing_classes
        self._blanks = blank_images(json_file)
        self._score_threshold = score_threshold
        self._distributed = distributed
        self.reset()

    def reset(self) -> None:
        """Forget all counts."""
        self._records: list[dict[str, Any]] = []

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Take in the predictions of a batch.

        Args:
            inputs: dicts with ``image_id``.
            outputs: dicts with ``instances`` that have ``scores`` and ``pred_classes``.
        """
        for each, output in zip(inputs, outputs, strict=True):
            if each["image_id"] in self._blanks:
                instances = output["instances"]
                kept = instances.pred_classes[instances.scores >= self._score_threshold]
                counts = Counter(kept.tolist())
                self._records.append({"image_id": each["image_id"], "counts": counts})

    def evaluate(self) -> OrderedDict:
        """Give ``{"blank": {…}}``; empty without a blank, and on ranks other than 0."""
        records = gather_by_image(self._records, self._distributed)
        if not records:
            return OrderedDict()
        counts = [record["counts"] for record in records]
        totals = [sum(each.values()) for each in counts]
        report = {
            "images": len(records),
            "FP_per_image": sum(totals) / len(records),
            "images_with_FP": 100 * sum(total > 0 for total in totals) / len(records),
        }
        for index, name in enumerate(self._classes):
            found = sum(each[index] for each in counts)
            report[f"FP_per_image-{name}"] = found / len(records)
        logger.info(
            "False positives of score %.2f or more on blank images:\n%s",
            self._score_threshold,
            create_small_table(report),
        )
        return OrderedDict(blank=report)


def blank_images(json_file: str) -> set[int]:
    """Return the ids of the images without any annotation, crowds included.

    Raises:
        UserError: the JSON cannot be used.
    """
    api = coco_api(json_file)
    return {image_id for image_id in api.imgs if not api.imgToAnns.get(image_id)}
