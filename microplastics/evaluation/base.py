"""Base class of the evaluators."""

import itertools
import logging
from collections.abc import Iterable
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Instances
from detectron2.utils import comm
from detectron2.utils.logger import log_first_n

from microplastics.data.coco import coco_api
from microplastics.data.painting import are_hidden
from microplastics.structures.crop_masks import CropMasks, as_crop_masks
from microplastics.utils.errors import UserError


class TruthEvaluator(DatasetEvaluator):
    """Judges the predictions of each image against the COCO JSON of a data set.

    Annotations that lie where the mapper has painted a scale bar over are crowds: neither missed
    nor found.

    A subclass gives :meth:`judge`, which turns the predictions of an image into a small record,
    and ``evaluate``, which makes figures of :meth:`gathered`, ``{}`` on ranks other than 0.

    Attributes:
        metadata: of the data set.
        json_file: path of its COCO JSON.
        coco_api: pycocotools' ``COCO`` of it.
        records: this rank's, one for each image, with its ``image_id``.
    """

    def __init__(self, dataset_name: str) -> None:
        """
        Args:
            dataset_name: a registered data set with a ``json_file``, else dataset_unknown.
        """
        self.metadata = MetadataCatalog.get(dataset_name)
        self.json_file: str | None = self.metadata.get("json_file")
        if self.json_file is None:
            raise UserError(
                f"Data set {dataset_name} has no COCO JSON; register it with "
                "microplastics.register_microplastics_instances.",
                code="dataset_unknown",
            )
        self.coco_api = coco_api(self.json_file)
        self.reset()

    def reset(self) -> None:
        """Forget all records."""
        self.records: list[dict[str, Any]] = []

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Judge the ``instances`` of outputs, each of the ``image_id`` of its input."""
        for each, output in zip(inputs, outputs, strict=True):
            image_id, painted = each["image_id"], each.get("painted")
            hidden = self._hidden(image_id, painted) if painted else []
            self._ignore(hidden)
            record = self.judge(image_id, output["instances"])
            if record is not None:
                self.records.append({"image_id": image_id, "hidden": hidden, **record})

    def judge(self, image_id: int, instances: Instances) -> dict[str, Any] | None:
        """Return the record of an image, plain values and arrays; ``None`` to skip it.

        Args:
            image_id: COCO id of the image.
            instances: in pixels of the original image; ``pred_masks``, if any, are
                :class:`CropMasks` or an (N, H, W) bool tensor.
        """
        raise NotImplementedError

    def gathered(self) -> list[dict[str, Any]] | None:
        """Collect the records of all ranks, sorted by image id, on rank 0; ``None`` elsewhere.

        A sampler that pads its last batch gives an image to two ranks; it has one record.
        """
        comm.synchronize()
        records = itertools.chain(*comm.gather(self.records, dst=0))
        if not comm.is_main_process():
            return None
        unique: dict[Any, dict[str, Any]] = {}
        for record in records:
            unique.setdefault(record["image_id"], record)
        hidden = {number for record in unique.values() for number in record.get("hidden", ())}
        self._ignore(hidden)
        if hidden:
            log_first_n(
                logging.WARNING,
                f"{len(hidden)} annotations of {self.json_file} lie on what looks like a scale "
                "bar, which is painted over: the evaluation ignores them, like crowds.",
                name=__name__,
                key="message",
            )
        return [unique[image_id] for image_id in sorted(unique)]

    def _hidden(self, image_id: int, painted: list) -> list[int]:
        """Ids of the annotations of an image that are painted over."""
        own = self.coco_api.imgToAnns.get(image_id, [])
        boxes = np.array([a["bbox"] for a in own], np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        return [a["id"] for a, hides in zip(own, are_hidden(boxes, painted), strict=True) if hides]

    def _ignore(self, annotations: Iterable[int]) -> None:
        for number in annotations:
            self.coco_api.anns[number]["iscrowd"] = 1

    def masks_of(self, image_id: int, instances: Instances) -> CropMasks:
        """Return the predicted masks of an image as crops; ValueError if they have another size."""
        masks = as_crop_masks(instances.pred_masks, instances.image_size)
        image = self.coco_api.imgs[image_id]
        size = (image["height"], image["width"])
        if masks.image_size != size:
            raise ValueError(
                f"Masks predicted for image {image_id} are of size {masks.image_size}; expected "
                f"the size of the image, {size}"
            )
        return masks
