"""Cascade R-CNN with the project's options and a mask head at every stage."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import CascadeROIHeads
from detectron2.modeling.roi_heads.cascade_rcnn import _ScaleGradient
from detectron2.structures import Instances, ROIMasks, pairwise_iou
from detectron2.utils.events import get_event_storage
from torch import nn

from microplastics.modeling.nms import ChosenNMS
from microplastics.modeling.roi_heads.roi_heads import ParticleOptions

Features = dict[str, torch.Tensor]


class StageMaskHeads(nn.ModuleList):
    """Mask heads of the stages of a cascade, which predict the mean of their probabilities.

    The scores of heads that change them are averaged as well.

    Attributes:
        stage: the head that is trained.
    """

    stage = 0

    @property
    def rescores(self) -> bool:
        """Whether the scores of detections change with their masks."""
        return any(getattr(head, "rescores", False) for head in self)

    def forward(self, features: Any, instances: list[Instances]) -> Any:
        """Train the head of the stage, or predict masks with all heads; as any mask head."""
        if self.training:
            return self[self.stage](features, instances)
        by_stage = []
        for head in self:
            given = [Instances(each.image_size, **each.get_fields()) for each in instances]
            by_stage.append(head(features, given))
        for each, stages in zip(instances, zip(*by_stage, strict=True), strict=True):
            each.pred_masks = _mean([stage.pred_masks for stage in stages])
            if self.rescores:
                each.scores = torch.stack([stage.scores for stage in stages]).mean(dim=0)
        return instances

    def adapt_weights(self, weights: dict[str, torch.Tensor], prefix: str) -> None:
        """Give each stage the weights of a checkpoint with a single mask head, in place.

        Args:
            weights: of the checkpoint, by parameter name.
            prefix: of the names of this module's parameters.
        """
        rest = (name.removeprefix(prefix) for name in list(weights) if name.startswith(prefix))
        for name in [name for name in rest if not name.split(".")[0].isdigit()]:
            value = weights.pop(prefix + name)
            weights.update({f"{prefix}{stage}.{name}": value for stage in range(len(self))})


def _mean(masks: Sequence[torch.Tensor | ROIMasks]) -> torch.Tensor | ROIMasks:
    """Average the masks of several heads for the same boxes."""
    if isinstance(masks[0], torch.Tensor):
        return torch.stack(list(masks)).mean(dim=0)
    # Masks that lie elsewhere than in the boxes lie in the same place for all heads.
    result = copy.copy(masks[0])
    result.tensor = torch.stack([each.tensor for each in masks]).mean(dim=0)
    return result


class StageMasks:
    """Mask heads that are trained at every stage, to be mixed into ``CascadeROIHeads``.

    Cai and Vasconcelos 2019, "Cascade R-CNN: High Quality Object Detection and Instance
    Segmentation", Section 4.3: each stage trains a mask head on the boxes that it was given, and
    the mask of a detection is the mean of the masks that all heads predict in its final box.
    Detectron2's own ``CascadeROIHeads`` trains one head, on the boxes of the first stage; so does
    this one if MODEL.ROI_BOX_CASCADE_HEAD.MASK_AT_EVERY_STAGE is False.
    """

    _later_stages: Sequence[list[Instances]] = ()

    @classmethod
    def _init_mask_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        build, cascade = super()._init_mask_head, cfg.MODEL.ROI_BOX_CASCADE_HEAD
        parts = build(cfg, input_shape)
        if not parts or not cascade.MASK_AT_EVERY_STAGE:
            return parts
        others = [build(cfg, input_shape)["mask_head"] for _ in cascade.IOUS[1:]]
        return {**parts, "mask_head": StageMaskHeads([parts["mask_head"], *others])}

    def _forward_box(
        self, features: Features, proposals: list[Instances], targets: Any = None
    ) -> Any:
        self._later_stages = ()
        return super()._forward_box(features, proposals, targets)

    def _match_and_label_boxes(
        self, proposals: list[Instances], stage: int, targets: list[Instances]
    ) -> list[Instances]:
        proposals = super()._match_and_label_boxes(proposals, stage, targets)
        if self.mask_on and isinstance(self.mask_head, StageMaskHeads):
            for each, truth in zip(proposals, targets, strict=True):
                if len(truth):
                    iou = pairwise_iou(truth.gt_boxes, each.proposal_boxes)
                    each.gt_masks = truth.gt_masks[self.proposal_matchers[stage](iou)[0]]
            self._later_stages = [*self._later_stages, proposals]
        return proposals

    def _forward_mask(self, features: Features, instances: list[Instances]) -> Any:
        if not (self.training and self.mask_on and isinstance(self.mask_head, StageMaskHeads)):
            return super()._forward_mask(features, instances)
        stages, self._later_stages = [instances, *self._later_stages], ()
        # As for the boxes: the losses are added, but the features must not learn faster by it.
        share = 1 / len(stages)
        features = {name: _ScaleGradient.apply(each, share) for name, each in features.items()}
        losses = {}
        for stage, labelled in enumerate(stages):
            self.mask_head.stage = stage
            with get_event_storage().name_scope(f"stage{stage}"):
                found = super()._forward_mask(features, labelled)
            losses |= {f"{name}_stage{stage}": loss for name, loss in found.items()}
        return losses


@ROI_HEADS_REGISTRY.register()
class ParticleCascadeROIHeads(ChosenNMS, StageMasks, ParticleOptions, CascadeROIHeads):
    """``CascadeROIHeads`` with the options of ``ParticleROIHeads`` and masks at every stage."""
