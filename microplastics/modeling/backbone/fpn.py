"""Feature pyramids whose coarsest level MODEL.FPN.TOP_BLOCK chooses."""

import fvcore.nn.weight_init as weight_init
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.backbone.resnet import build_resnet_backbone
from torch import nn

from microplastics.utils.errors import UserError

TOP_BLOCKS = ("maxpool", "conv_p5", "conv_c5")


class LastLevelConv(nn.Module):
    """Makes P6 by a 3 x 3 convolution of stride 2, as RetinaNet does (Lin et al. 2017).

    Attributes:
        num_levels, in_feature: what ``FPN`` asks of a top block.
    """

    def __init__(self, in_channels: int, out_channels: int, in_feature: str):
        """
        Args:
            in_channels: of the feature map.
            out_channels: of P6.
            in_feature: its name, ``p5`` of the pyramid or ``res5`` of the network below it.
        """
        super().__init__()
        self.num_levels = 1
        self.in_feature = in_feature
        self.p6 = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)
        weight_init.c2_xavier_fill(self.p6)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [self.p6(x)]


def build_fpn(cfg: CfgNode, bottom_up: Backbone) -> FPN:
    """Build a pyramid on a network by the keys MODEL.FPN.

    Raises:
        UserError: config_invalid (TOP_BLOCK).
    """
    fpn = cfg.MODEL.FPN
    last = fpn.IN_FEATURES[-1]
    stage = last.removeprefix("res")
    if fpn.TOP_BLOCK == "maxpool":
        top_block = LastLevelMaxPool()
    elif fpn.TOP_BLOCK == "conv_p5":
        top_block = LastLevelConv(fpn.OUT_CHANNELS, fpn.OUT_CHANNELS, f"p{stage}")
    elif fpn.TOP_BLOCK == "conv_c5":
        top_block = LastLevelConv(bottom_up.output_shape()[last].channels, fpn.OUT_CHANNELS, last)
    else:
        raise UserError(
            f"MODEL.FPN.TOP_BLOCK is {fpn.TOP_BLOCK}; expected {', '.join(TOP_BLOCKS)}.",
            code="config_invalid",
        )
    return FPN(
        bottom_up=bottom_up,
        in_features=fpn.IN_FEATURES,
        out_channels=fpn.OUT_CHANNELS,
        norm=fpn.NORM,
        top_block=top_block,
        fuse_type=fpn.FUSE_TYPE,
    )


@BACKBONE_REGISTRY.register()
def build_particle_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build Detectron2's ResNet with a pyramid by MODEL.FPN, TOP_BLOCK included."""
    return build_fpn(cfg, build_resnet_backbone(cfg, input_shape))
