"""Detectron2's standard ROI heads with the project's options."""

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import StandardROIHeads
from detectron2.structures import Boxes
from torch import nn


def grown(boxes: torch.Tensor, scale: float) -> torch.Tensor:
    """Boxes grown by a factor around their centres.

    Args:
        boxes: (N, 4), XYXY.
        scale: factor on width and height.
    """
    center = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = (boxes[:, 2:] - boxes[:, :2]) * (scale / 2)
    return torch.cat((center - half, center + half), dim=1)


class GrownPooler(nn.Module):
    """A ``ROIPooler`` that pools from boxes grown by a factor around their centres."""

    def __init__(self, pooler: nn.Module, scale: float):
        super().__init__()
        self.pooler = pooler
        self.scale = scale

    @property
    def output_size(self) -> tuple[int, int]:
        """Height and width of the pooled features."""
        return self.pooler.output_size

    def forward(self, features: list[torch.Tensor], boxes: list[Boxes]) -> torch.Tensor:
        """Pool as ``ROIPooler`` does."""
        return self.pooler(features, [Boxes(grown(each.tensor, self.scale)) for each in boxes])


@ROI_HEADS_REGISTRY.register()
class ParticleROIHeads(StandardROIHeads):
    """``StandardROIHeads`` with options for thin and crossing particles.

    The box head sees MODEL.ROI_BOX_HEAD.BOX_SCALE times the proposal, so that it can tell a piece
    of a fibre from a whole one.
    """

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        heads = super()._init_box_head(cfg, input_shape)
        scale = cfg.MODEL.ROI_BOX_HEAD.BOX_SCALE
        if scale != 1:
            heads["box_pooler"] = GrownPooler(heads["box_pooler"], scale)
        return heads
