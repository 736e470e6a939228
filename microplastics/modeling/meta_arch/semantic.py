"""Semantic segmentation whose connected components are the particles."""

from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, SemanticSegmentor
from detectron2.structures import Boxes, Instances

from microplastics.structures.crop_masks import CropMasks, as_crop_masks
from microplastics.utils.errors import UserError


class _Component(NamedTuple):
    score: float
    class_index: int
    box: tuple[int, int, int, int]
    mask: np.ndarray  # within the box


@META_ARCH_REGISTRY.register()
class ParticleSegmentor(SemanticSegmentor):
    """Detectron2's ``SemanticSegmentor``, trained on and predicting instances.

    It is the baseline without boxes, as U-Net pipelines are: each pixel gets a class or the
    background, and each 8-connected component of a class is a particle, so that particles of one
    class which touch or cross become one. A component's score is the mean probability of its class
    over its pixels.

    The classes are those of MODEL.ROI_HEADS.NUM_CLASSES, and the background comes after them;
    MODEL.SEM_SEG_HEAD.NUM_CLASSES is not used. MODEL.ROI_HEADS.SCORE_THRESH_TEST and
    TEST.DETECTIONS_PER_IMAGE limit the detections as they do with any other model.
    """

    @configurable
    def __init__(
        self,
        *,
        num_classes: int,
        score_threshold: float,
        detections_per_image: int,
        min_pixels: int,
        **kwargs: Any,
    ):
        """
        Args:
            num_classes: without the background.
            score_threshold: detections must be scored above it.
            detections_per_image: greatest number of detections, those with the best scores.
            min_pixels: smaller components, in px of the original image, are dropped.
            kwargs: of ``SemanticSegmentor``.
        """
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.score_threshold = score_threshold
        self.detections_per_image = detections_per_image
        self.min_pixels = min_pixels

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        if not cfg.MODEL.MASK_ON:
            raise UserError(
                "MODEL.MASK_ON is False, but ParticleSegmentor learns from masks; set it True.",
                code="config_invalid",
            )
        cfg = cfg.clone()
        cfg.defrost()
        classes = cfg.MODEL.ROI_HEADS.NUM_CLASSES
        cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = classes + 1
        return {
            **super().from_config(cfg),
            "num_classes": classes,
            "score_threshold": cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST,
            "detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "min_pixels": cfg.MODEL.SEM_SEG_HEAD.MIN_PIXELS,
        }

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Compute losses or detections.

        Args:
            batched_inputs: dicts of a mapper, one an image; in training with ``instances``.

        Returns:
            In training the losses by name. Else a dict for each image: ``sem_seg``,
            (classes + 1, H, W) logits, and ``instances``, best score first, both of the original
            image's size.
        """
        if self.training:
            return super().forward(
                [{**each, "sem_seg": self.semantic_target(each)} for each in batched_inputs]
            )
        outputs = super().forward(batched_inputs)
        return [{**each, "instances": self.to_instances(each["sem_seg"])} for each in outputs]

    def semantic_target(self, item: dict[str, Any]) -> torch.Tensor:
        """Paint the particles of an image as classes: (H, W) int64, small ones over large ones."""
        size = item["image"].shape[-2:]
        target = np.full(size, self.num_classes, dtype=np.int64)
        instances = item["instances"]
        if len(instances):
            masks, classes = as_crop_masks(instances.gt_masks, size), instances.gt_classes.tolist()
            for index in np.argsort(-masks.area().numpy(), kind="stable").tolist():
                crop, (x, y) = masks.crops[index], masks.offsets[index]
                target[y : y + crop.shape[0], x : x + crop.shape[1]][crop] = classes[index]
        return torch.from_numpy(target)

    def to_instances(self, logits: torch.Tensor) -> Instances:
        """Find the particles in a semantic segmentation.

        Args:
            logits: (classes + 1, H, W), the background last.

        Returns:
            ``Instances`` of size (H, W) on the device of ``logits``, with ``pred_masks``
            (N, H, W) bool.
        """
        probabilities = logits.float().softmax(dim=0).cpu().numpy()
        winner = probabilities.argmax(axis=0)
        found = [
            component
            for number in range(self.num_classes)
            for component in self._components(winner == number, probabilities[number], number)
        ]
        found.sort(key=lambda component: -component.score)
        found = found[: self.detections_per_image]
        size = winner.shape
        masks = CropMasks([each.mask for each in found], [each.box[:2] for each in found], size)
        boxes = torch.tensor([each.box for each in found], dtype=torch.float32).reshape(-1, 4)
        result = Instances(size)
        result.pred_boxes = Boxes(boxes)
        result.scores = torch.tensor([each.score for each in found], dtype=torch.float32)
        result.pred_classes = torch.tensor([each.class_index for each in found], dtype=torch.int64)
        result.pred_masks = masks.to_bitmasks()
        return result.to(logits.device)

    def _components(
        self, pixels: np.ndarray, probability: np.ndarray, class_index: int
    ) -> list[_Component]:
        """Find the components of a class that are large and probable enough.

        ``pixels`` are (H, W) bool, where the class wins, and ``probability`` is that of the class.
        """
        count, labels, stats, _ = cv2.connectedComponentsWithStats(pixels.view(np.uint8), None, 8)
        sums = np.bincount(labels.reshape(-1), probability.reshape(-1), minlength=count)
        scores = sums / np.maximum(stats[:, cv2.CC_STAT_AREA], 1)
        keep = (stats[:, cv2.CC_STAT_AREA] >= self.min_pixels) & (scores > self.score_threshold)
        keep[0] = False  # what is not of this class
        found = []
        for label in np.flatnonzero(keep).tolist():
            x, y, width, height, _ = stats[label].tolist()
            mask = labels[y : y + height, x : x + width] == label
            box = (x, y, x + width, y + height)
            found.append(_Component(float(scores[label]), class_index, box, mask))
        return found
