"""Detectron2's standard ROI heads with the project's options."""

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import StandardROIHeads
from detectron2.structures import Boxes, Instances, ROIMasks
from torch import nn

from microplastics.modeling.backbone.with_image import IMAGE
from microplastics.modeling.nms import ChosenNMS, stages_of
from microplastics.modeling.roi_masks import BoxedMasks
from microplastics.utils.errors import UserError


class ParticleOptions:
    """Options for thin and crossing particles, to be mixed into Detectron2's ROI heads."""

    @configurable
    def __init__(
        self,
        *,
        box_scale: float = 1.0,
        mask_box_scale: float = 1.0,
        mask_loss_weight: float = 1.0,
        cls_loss_weight: float = 1.0,
        **kwargs: Any,
    ):
        """
        Args:
            box_scale: factor by which proposals grow around their centres for the box head, so
                that it sees whether a fibre goes on beyond the box.
            mask_box_scale: factor by which boxes grow around their centres for the mask head.
            mask_loss_weight: of all losses of the mask head.
            cls_loss_weight: of the classification, at every stage.
            kwargs: of Detectron2's class.
        """
        super().__init__(**kwargs)
        if box_scale != 1:
            self.box_pooler = GrownPooler(self.box_pooler, box_scale)
        self.mask_box_scale = mask_box_scale
        self.mask_loss_weight = mask_loss_weight
        for predictor in stages_of(self.box_predictor):
            weight = predictor.loss_weight.get("loss_cls", 1.0) * cls_loss_weight
            predictor.loss_weight = {**predictor.loss_weight, "loss_cls": weight}

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict) -> dict[str, Any]:
        for name in ("ROI_BOX_HEAD", "ROI_MASK_HEAD"):
            scale = cfg.MODEL[name].BOX_SCALE
            if not 1 <= scale <= 10:
                raise UserError(
                    f"MODEL.{name}.BOX_SCALE is {scale}; expected a factor from 1 to 10.",
                    code="config_invalid",
                )
        return {
            **super().from_config(cfg, input_shape),
            "box_scale": cfg.MODEL.ROI_BOX_HEAD.BOX_SCALE,
            "mask_box_scale": cfg.MODEL.ROI_MASK_HEAD.BOX_SCALE,
            "mask_loss_weight": cfg.MODEL.ROI_MASK_HEAD.LOSS_WEIGHT,
            "cls_loss_weight": cfg.MODEL.ROI_BOX_HEAD.CLS_LOSS_WEIGHT,
        }

    @classmethod
    def _init_mask_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        if cfg.MODEL.MASK_ON and not cfg.MODEL.ROI_MASK_HEAD.POOLER_TYPE and IMAGE in input_shape:
            # A mask head that pools by itself also gets the image, if the backbone passes it on.
            cfg = cfg.clone()
            cfg.defrost()
            cfg.MODEL.ROI_HEADS.IN_FEATURES = [*cfg.MODEL.ROI_HEADS.IN_FEATURES, IMAGE]
        return super()._init_mask_head(cfg, input_shape)

    def _forward_mask(
        self, features: dict[str, torch.Tensor], instances: list[Instances]
    ) -> dict[str, torch.Tensor] | list[Instances]:
        given, grows = instances, self.mask_on and self.mask_box_scale != 1
        if grows:
            name = "proposal_boxes" if self.training else "pred_boxes"
            # Mask heads read boxes from the instances, as do the targets: growing them there is
            # growing them everywhere.
            given = [_with_boxes_grown(each, name, self.mask_box_scale) for each in instances]
        results = super()._forward_mask(features, given)
        if self.training:
            return {name: loss * self.mask_loss_weight for name, loss in results.items()}
        if not grows:
            return results
        pairs = zip(instances, results, strict=True)
        return [_with_masks_of(each, other) for each, other in pairs]


@ROI_HEADS_REGISTRY.register()
class ParticleROIHeads(ChosenNMS, ParticleOptions, StandardROIHeads):
    """``StandardROIHeads`` with options for thin and crossing particles."""


class GrownPooler(nn.Module):
    """A ``ROIPooler`` that pools from boxes grown by a factor around their centres."""

    def __init__(self, pooler: ROIPooler, factor: float):
        """
        Args:
            pooler: pools from the grown boxes.
            factor: as of :func:`grow`.
        """
        super().__init__()
        self.pooler = pooler
        self.factor = factor

    def forward(self, features: list[torch.Tensor], boxes: list[Boxes]) -> torch.Tensor:
        """Pool as ``ROIPooler`` does."""
        return self.pooler(features, [Boxes(grow(each.tensor, self.factor)) for each in boxes])


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
