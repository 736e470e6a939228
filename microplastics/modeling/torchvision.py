"""Weights and anchors of torchvision's Mask R-CNN for Detectron2's.

The architectures are the same, and so are the detections: the config ``torchvision`` is
``maskrcnn_resnet50_fpn``, and ``torchvision_v2`` its second version.
"""

import re
from collections.abc import Iterable, Mapping

import torch
from detectron2.modeling.anchor_generator import ANCHOR_GENERATOR_REGISTRY, DefaultAnchorGenerator
from detectron2.structures import Boxes

# What Detectron2 and torchvision add to variances of batch norms, unless said otherwise.
EPS = 1e-5
# Start of the sha256 (torchvision puts it into the file's name) of the COCO weights of
# maskrcnn_resnet50_fpn, for which torchvision sets eps to 0.
COCO_V1_SHA256 = "bf2d0c1e"
# Weights that only torchvision's detectors with a ResNet-FPN have.
TELLING_NAMES = {"backbone.body.conv1.weight", "rpn.head.cls_logits.weight"}

_STAGE = r"backbone\.body\.layer(?P<layer>\d)\.(?P<block>\d+)\."
_RES = "backbone.bottom_up.res{stage}.{block}."
# Names of torchvision, and Detectron2's for them. Older files have fewer numbers, as has the one
# on torchvision's server.
_NAMES = (
    (r"backbone\.body\.conv1\.", "backbone.bottom_up.stem.conv1."),
    (r"backbone\.body\.bn1\.", "backbone.bottom_up.stem.conv1.norm."),
    (_STAGE + r"conv(?P<n>\d)\.", _RES + "conv{n}."),
    (_STAGE + r"bn(?P<n>\d)\.", _RES + "conv{n}.norm."),
    (_STAGE + r"downsample\.0\.", _RES + "shortcut."),
    (_STAGE + r"downsample\.1\.", _RES + "shortcut.norm."),
    (r"backbone\.fpn\.inner_blocks\.(?P<n>\d)\.1\.", "backbone.fpn_lateral{level}.norm."),
    (r"backbone\.fpn\.inner_blocks\.(?P<n>\d)\.(0\.)?", "backbone.fpn_lateral{level}."),
    (r"backbone\.fpn\.layer_blocks\.(?P<n>\d)\.1\.", "backbone.fpn_output{level}.norm."),
    (r"backbone\.fpn\.layer_blocks\.(?P<n>\d)\.(0\.)?", "backbone.fpn_output{level}."),
    (r"rpn\.head\.conv\.((?P<n>\d)\.0\.)?", "proposal_generator.rpn_head.conv.{rpn_conv}"),
    (r"rpn\.head\.cls_logits\.", "proposal_generator.rpn_head.objectness_logits."),
    (r"rpn\.head\.bbox_pred\.", "proposal_generator.rpn_head.anchor_deltas."),
    (r"roi_heads\.box_head\.fc6\.", "roi_heads.box_head.fc1."),
    (r"roi_heads\.box_head\.fc7\.", "roi_heads.box_head.fc2."),
    (r"roi_heads\.box_head\.(?P<n>\d+)\.0\.", "roi_heads.box_head.conv{next}."),
    (r"roi_heads\.box_head\.(?P<n>\d+)\.1\.", "roi_heads.box_head.conv{next}.norm."),
    (r"roi_heads\.box_head\.(?P<n>\d+)\.(?=weight|bias)", "roi_heads.box_head.fc1."),
    (r"roi_heads\.mask_head\.(?P<n>\d)\.0\.", "roi_heads.mask_head.mask_fcn{next}."),
    (r"roi_heads\.mask_head\.(?P<n>\d)\.1\.", "roi_heads.mask_head.mask_fcn{next}.norm."),
    (r"roi_heads\.mask_predictor\.conv5_mask\.", "roi_heads.mask_head.deconv."),
    (r"roi_heads\.mask_predictor\.mask_fcn_logits\.", "roi_heads.mask_head.predictor."),
)
_CLASS_SCORES = "roi_heads.box_predictor.cls_score."
_CLASS_BOXES = "roi_heads.box_predictor.bbox_pred."
_CLASS_MASKS = "roi_heads.mask_head.predictor."


def detectron2_names(names: Iterable[str]) -> dict[str, str]:
    """Return Detectron2's name for each of torchvision's; a foreign one stays as it is.

    What Detectron2 does not count, the batches that a norm has seen, is left out.
    """
    names = [name for name in names if not name.endswith(".num_batches_tracked")]
    numbers = [re.match(r"backbone\.fpn\.inner_blocks\.(\d)", name) for name in names]
    # The last level is always p5; torchvision numbers those that there are.
    first = 5 - max((int(found[1]) for found in numbers if found), default=3)
    deep = "rpn.head.conv.1.0.weight" in names
    return {name: _detectron2_name(name, first, deep) for name in names}


def _detectron2_name(name: str, first_level: int, deep_rpn: bool) -> str:
    for pattern, theirs in _NAMES:
        found = re.match(pattern, name)
        if found is None:
            continue
        parts = found.groupdict()
        number = int(parts.get("n") or 0)
        start = theirs.format(
            stage=int(parts.get("layer") or 0) + 1,
            block=parts.get("block"),
            n=number,
            next=number + 1,
            level=number + first_level,
            rpn_conv=f"conv{number}." if deep_rpn else "",
        )
        return start + name[found.end() :]
    return name


def from_torchvision(
    state: Mapping[str, torch.Tensor], eps: float = EPS
) -> dict[str, torch.Tensor]:
    """Give the weights of torchvision's Mask R-CNN Detectron2's names and its order of classes.

    Torchvision counts the background as class 0 in every layer; Detectron2 counts it last among
    the scores, and nowhere else.

    Args:
        state: of ``maskrcnn_resnet50_fpn``, ``maskrcnn_resnet50_fpn_v2`` or another ResNet-FPN.
        eps: of torchvision's batch norms. Detectron2's is added anyway, so that the variances
            change by the difference.

    Returns:
        Weights by Detectron2's names.
    """
    converted = {}
    for theirs, name in detectron2_names(state).items():
        value = state[theirs]
        if name.startswith(_CLASS_SCORES):
            value = value.roll(-1, dims=0)
        elif name.startswith(_CLASS_BOXES):
            value = value[4:]
        elif name.startswith(_CLASS_MASKS):
            value = value[1:]
        elif name.endswith(".running_var"):
            value = value + (eps - EPS)
        converted[name] = value
    return converted


@ANCHOR_GENERATOR_REGISTRY.register()
class TorchvisionAnchorGenerator(DefaultAnchorGenerator):
    """Anchors as torchvision's ``AnchorGenerator`` places them.

    Their corners are rounded to whole px, and their distance on a level is the size of the padded
    input through that of the feature map, rounded down: 61 px instead of 64 on p6 of 800 px.
    """

    def generate_cell_anchors(
        self, sizes: Iterable[float] = (32, 64, 128, 256, 512), aspect_ratios=(0.5, 1, 2)
    ) -> torch.Tensor:
        return super().generate_cell_anchors(sizes, aspect_ratios).round()

    def forward(self, features: list[torch.Tensor]) -> list[Boxes]:
        """
        Args:
            features: (N, C, H, W) maps, the one of the highest resolution first.

        Returns:
            Anchors of each map in px.
        """
        height, width = (side * self.strides[0] for side in features[0].shape[-2:])
        placed = []
        for feature, cell in zip(features, self.cell_anchors, strict=True):
            rows, columns = feature.shape[-2:]
            ys = torch.arange(rows, device=cell.device) * (height // rows)
            xs = torch.arange(columns, device=cell.device) * (width // columns)
            y, x = torch.meshgrid(ys, xs, indexing="ij")
            shifts = torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4)
            placed.append(Boxes((shifts + cell).reshape(-1, 4)))
        return placed
