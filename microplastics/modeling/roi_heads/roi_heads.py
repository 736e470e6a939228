"""Detectron2's standard ROI heads with the project's options."""

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import CascadeROIHeads, StandardROIHeads
from detectron2.structures import Boxes, Instances, ROIMasks

from microplastics.modeling.roi_masks import BoxedMasks


class _ParticleOptions:
    """The options, to be mixed into Detectron2's ROI heads."""

    @configurable
    def __init__(self, *, mask_box_scale: float = 1.0, **kwargs: Any):
        """
        Args:
            mask_box_scale: factor by which boxes grow around their centres for the mask head.
            kwargs: of Detectron2's class.
        """
        super().__init__(**kwargs)
        self.mask_box_scale = mask_box_scale

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict) -> dict[str, Any]:
        options = super().from_config(cfg, input_shape)
        options["mask_box_scale"] = cfg.MODEL.ROI_MASK_HEAD.BOX_SCALE
        return options

    def _forward_mask(
        self, features: dict[str, torch.Tensor], instances: list[Instances]
    ) -> dict[str, torch.Tensor] | list[Instances]:
        if not self.mask_on or self.mask_box_scale == 1:
            return super()._forward_mask(features, instances)
        name = "proposal_boxes" if self.training else "pred_boxes"
        # Mask heads read boxes from the instances, as do the targets: growing them there is
        # growing them everywhere.
        grown = [_with_boxes_grown(each, name, self.mask_box_scale) for each in instances]
        results = super()._forward_mask(features, grown)
        if self.training:
            return results
        return [_with_masks_of(each, other) for each, other in zip(instances, results, strict=True)]


@ROI_HEADS_REGISTRY.register()
class ParticleROIHeads(_ParticleOptions, StandardROIHeads):
    """``StandardROIHeads`` with options for thin and crossing particles."""


@ROI_HEADS_REGISTRY.register()
class ParticleCascadeROIHeads(_ParticleOptions, CascadeROIHeads):
    """``CascadeROIHeads`` with the same options."""


def grow(boxes: torch.Tensor, factor: float) -> torch.Tensor:
    """Grow boxes by a factor around their centres.

    Args:
        boxes: (N, 4) x0, y0, x1, y1.
        factor: new sides through old ones.
    """
    margin = (boxes[:, 2:] - boxes[:, :2]) * ((factor - 1) / 2)
    return torch.cat([boxes[:, :2] - margin, boxes[:, 2:] + margin], dim=1)


def _with_boxes_grown(instances: Instances, name: str, factor: float) -> Instances:
    grown = Instances(instances.image_size, **instances.get_fields())
    grown.set(name, Boxes(grow(grown.get(name).tensor, factor)))
    return grown


def _with_masks_of(instances: Instances, grown: Instances) -> Instances:
    """Add what the mask head left in instances with grown boxes."""
    fields = grown.get_fields()
    boxes, masks = fields["pred_boxes"].tensor, fields["pred_masks"]
    if not isinstance(masks, ROIMasks):
        masks = BoxedMasks(masks[:, 0], boxes, grown.image_size)
    for name, value in {**fields, "pred_masks": masks}.items():
        if name != "pred_boxes":
            instances.set(name, value)
    return instances
