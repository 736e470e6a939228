"""Any network as a Detectron2 backbone."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from torch import nn

from microplastics.utils.errors import UserError

GIVEN = "build_given_backbone"
"""MODEL.BACKBONE.NAME of models whose backbone is a module of the user's own code."""

# Side in px of the empty image that shows the strides; RoI heads take maps up to the other.
_PROBE_SIDE = 256
_LARGEST_ROI_STRIDE = 32


class ModuleBackbone(Backbone):
    """A module that takes (N, 3, H, W) images and returns one feature map or several.

    Its names, strides and channels are learnt from an empty image.

    Attributes:
        body: the module.
        roi_features: names of the maps that RoI heads pool from.
    """

    def __init__(self, body: nn.Module):
        """
        Args:
            body: returns a (N, C, H / stride, W / stride) tensor, or a dict, list or tuple of
                them, with strides that are powers of 2.

        Raises:
            UserError: option_invalid; it returns something else.
        """
        super().__init__()
        self.body = body
        maps = self._probe()
        sizes = {name: each.shape[-1] for name, each in maps.items()}
        strides = {name: _PROBE_SIDE // max(size, 1) for name, size in sizes.items()}
        for name, each in maps.items():
            stride = strides[name]
            fits = each.shape[2:] == (sizes[name],) * 2 and sizes[name] * stride == _PROBE_SIDE
            if not fits or not math.log2(stride).is_integer():
                raise UserError(
                    f"The backbone turns {_PROBE_SIDE} x {_PROBE_SIDE} px into a feature map of "
                    f"{tuple(each.shape[2:])}; expected a stride that is a power of 2.",
                    code="option_invalid",
                )
        self._out_features = sorted(strides, key=strides.get)
        self._out_feature_strides = strides
        self._out_feature_channels = {name: each.shape[1] for name, each in maps.items()}
        roi = [name for name in self._out_features if strides[name] <= _LARGEST_ROI_STRIDE]
        self.roi_features = roi or self._out_features[:1]

    def _probe(self) -> dict[str, torch.Tensor]:
        modes = {module: module.training for module in self.body.modules()}
        weight = next(self.body.parameters(), torch.empty(0))
        self.body.eval()
        try:
            with torch.no_grad():
                x = torch.zeros(1, 3, _PROBE_SIDE, _PROBE_SIDE).to(weight)
                return _feature_maps(self.body(x))
        finally:
            for module, mode in modes.items():
                module.training = mode

    @property
    def size_divisibility(self) -> int:
        return min(max(self._out_feature_strides.values()), _LARGEST_ROI_STRIDE)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the feature maps of (N, 3, H, W) normalised images by name."""
        return _feature_maps(self.body(x))


def _feature_maps(output: Any) -> dict[str, torch.Tensor]:
    if isinstance(output, torch.Tensor):
        output = [output]
    if isinstance(output, (list, tuple)):
        output = {str(number): each for number, each in enumerate(output)}
    is_table = isinstance(output, Mapping) and len(output) > 0
    if not is_table or not all(torch.is_tensor(v) and v.dim() == 4 for v in output.values()):
        found = tuple(output["0"].shape) if is_table and "0" in output else type(output).__name__
        raise UserError(
            f"The backbone returns {found}; expected a feature map (N, C, H, W), or a dict or list "
            "of feature maps: leave out pooling and classifier.",
            code="option_invalid",
        )
    return {str(name): each for name, each in output.items()}


def pyramid_on(body: ModuleBackbone, out_channels: int, norm: str) -> FPN:
    """Build Detectron2's feature pyramid, with one level more by max pooling, on several maps."""
    strides = [body._out_feature_strides[name] for name in body._out_features]
    if len(strides) < 2 or any(b != 2 * a for a, b in zip(strides, strides[1:], strict=False)):
        raise UserError(
            f"use_fpn is True and the backbone has feature maps of the strides {strides}; expected "
            "at least two, each with twice the stride of the one before.",
            code="option_conflict",
        )
    top = LastLevelMaxPool()
    top.in_feature = f"p{int(math.log2(strides[-1]))}"
    return FPN(
        bottom_up=body,
        in_features=body._out_features,
        out_channels=out_channels,
        norm=norm,
        top_block=top,
    )


@BACKBONE_REGISTRY.register()
def build_given_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """Refuse to build what only the user's own code can build."""
    raise UserError(
        "The backbone of this model is a module of somebody's own code; open it in Python with "
        "microplastics.MaskRCNN.load(path, backbone=module).",
        code="config_invalid",
    )
