"""Backbones that pass on the image beside their feature maps."""

import functools

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import nn

# The name of the image among the feature maps.
IMAGE = "image"
WITH_IMAGE = "build_backbone_with_image"


@BACKBONE_REGISTRY.register()
def build_backbone_with_image(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """Build MODEL.BACKBONE.INNER and let it return the normalised image too, as ``image``.

    Heads that draw fine detail need more than the feature maps of stride 4. The parameters and the
    type of the backbone are those of the inner one: its checkpoints fit.
    """
    backbone = BACKBONE_REGISTRY.get(cfg.MODEL.BACKBONE.INNER)(cfg, input_shape)
    shapes = {**backbone.output_shape(), IMAGE: ShapeSpec(input_shape.channels, stride=1)}
    backbone.output_shape = functools.partial(dict, shapes)
    backbone.register_forward_hook(_add_image)
    return backbone


def _add_image(
    _module: nn.Module, inputs: tuple[torch.Tensor], features: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    return {**features, IMAGE: inputs[0]}
