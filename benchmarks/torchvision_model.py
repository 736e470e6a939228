"""torchvision's Mask R-CNN with the weights of a Detectron2 one."""

import re

import torch
from detectron2.config import CfgNode
from torch import nn
from torchvision.models.detection import MaskRCNN, maskrcnn_resnet50_fpn

# Detectron2's name to torchvision's; layers of classes are turned by _NUMBERED and below.
_RENAMED = (
    (r"^backbone\.bottom_up\.stem\.conv1\.norm\.", "backbone.body.bn1."),
    (r"^backbone\.bottom_up\.stem\.", "backbone.body."),
    (
        r"^(backbone)\.bottom_up\.res(\d)\.(\d+)\.shortcut\.norm\.",
        r"\1.body.layer\2.\3.downsample.1.",
    ),
    (r"^(backbone)\.bottom_up\.res(\d)\.(\d+)\.shortcut\.", r"\1.body.layer\2.\3.downsample.0."),
    (r"^(backbone)\.bottom_up\.res(\d)\.(\d+)\.conv(\d)\.norm\.", r"\1.body.layer\2.\3.bn\4."),
    (r"^(backbone)\.bottom_up\.res(\d)\.(\d+)\.", r"\1.body.layer\2.\3."),
    (r"^backbone\.fpn_lateral(\d)\.", r"backbone.fpn.inner_blocks.\1.0."),
    (r"^backbone\.fpn_output(\d)\.", r"backbone.fpn.layer_blocks.\1.0."),
    (r"^proposal_generator\.rpn_head\.conv\.", "rpn.head.conv.0.0."),
    (r"^proposal_generator\.rpn_head\.objectness_logits\.", "rpn.head.cls_logits."),
    (r"^proposal_generator\.rpn_head\.anchor_deltas\.", "rpn.head.bbox_pred."),
    (r"^roi_heads\.box_head\.fc1\.", "roi_heads.box_head.fc6."),
    (r"^roi_heads\.box_head\.fc2\.", "roi_heads.box_head.fc7."),
    (r"^roi_heads\.mask_head\.mask_fcn(\d)\.", r"roi_heads.mask_head.\1.0."),
    (r"^roi_heads\.mask_head\.deconv\.", "roi_heads.mask_predictor.conv5_mask."),
    (r"^roi_heads\.mask_head\.predictor\.", "roi_heads.mask_predictor.mask_fcn_logits."),
)
# Detectron2 counts stages of the ResNet and the FPN from 2, and mask convolutions from 1.
_NUMBERED = (
    (r"(body\.layer)(\d)", 1),
    (r"(fpn\.(?:inner|layer)_blocks\.)(\d)", 2),
    (r"(roi_heads\.mask_head\.)(\d)", 1),
)


def fits(cfg: CfgNode) -> bool:
    """Whether torchvision's ``maskrcnn_resnet50_fpn`` has the architecture of a config."""
    model = cfg.MODEL
    return (
        model.META_ARCHITECTURE == "GeneralizedRCNN"
        and model.BACKBONE.NAME == "build_resnet_fpn_backbone"
        and model.RESNETS.DEPTH == 50
        and model.RESNETS.NUM_GROUPS == 1
        and model.RESNETS.WIDTH_PER_GROUP == 64
        and model.FPN.OUT_CHANNELS == 256
        and not model.FPN.NORM
        and list(model.RPN.CONV_DIMS) == [-1]
        and (model.ROI_BOX_HEAD.NUM_FC, model.ROI_BOX_HEAD.FC_DIM) == (2, 1024)
        and not model.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG
        and (model.ROI_MASK_HEAD.NUM_CONV, model.ROI_MASK_HEAD.CONV_DIM) == (4, 256)
        and not model.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK
    )


def torchvision_model(cfg: CfgNode, model: nn.Module) -> MaskRCNN:
    """Build torchvision's Mask R-CNN R50-FPN with the weights and thresholds of a Detectron2 one.

    Its input is BGR / 255 in place of RGB / 255, and its anchors, strides and samples of RoIAlign
    are set to Detectron2's. What stays different: its RoIAlign reads half a pixel aside
    (``aligned=False``).

    Args:
        cfg: for which :func:`fits` is true.
        model: built from it.

    Returns:
        The model, in evaluation mode, on the config's device.
    """
    theirs = maskrcnn_resnet50_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=cfg.MODEL.ROI_HEADS.NUM_CLASSES + 1,
        min_size=cfg.INPUT.MIN_SIZE_TEST,
        max_size=cfg.INPUT.MAX_SIZE_TEST,
        image_mean=[value / 255 for value in cfg.MODEL.PIXEL_MEAN],
        image_std=[value / 255 for value in cfg.MODEL.PIXEL_STD],
        rpn_pre_nms_top_n_test=cfg.MODEL.RPN.PRE_NMS_TOPK_TEST,
        rpn_post_nms_top_n_test=cfg.MODEL.RPN.POST_NMS_TOPK_TEST,
        rpn_nms_thresh=cfg.MODEL.RPN.NMS_THRESH,
        box_score_thresh=cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST,
        box_nms_thresh=cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST,
        box_detections_per_img=cfg.TEST.DETECTIONS_PER_IMAGE,
    )
    missing, surplus = theirs.load_state_dict(convert_state(model.state_dict()), strict=False)
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or surplus:
        raise ValueError(f"Weights that torchvision lacks or has more: {missing} {surplus}")
    generator = model.proposal_generator.anchor_generator
    theirs.rpn.anchor_generator.cell_anchors = [a.detach().clone() for a in generator.cell_anchors]
    theirs.roi_heads.box_roi_pool.sampling_ratio = cfg.MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO
    theirs.roi_heads.mask_roi_pool.sampling_ratio = cfg.MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO
    if cfg.MODEL.RESNETS.STRIDE_IN_1X1:
        for stage in ("layer2", "layer3", "layer4"):
            block = getattr(theirs.backbone.body, stage)[0]
            block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
    return theirs.eval().to(cfg.MODEL.DEVICE)


def convert_state(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename the weights of Detectron2's Mask R-CNN R50-FPN as torchvision has them.

    Torchvision counts the background as class 0 of every layer, Detectron2 as the last of the
    box scores alone.
    """
    converted = {}
    for name, value in state.items():
        if name.startswith("pixel_") or "cell_anchors" in name:
            continue
        if name.startswith("roi_heads.box_predictor.cls_score."):
            value = torch.cat([value[-1:], value[:-1]])
        elif name.startswith("roi_heads.box_predictor.bbox_pred."):
            value = torch.cat([torch.zeros_like(value[:4]), value])
        elif name.startswith("roi_heads.mask_head.predictor."):
            value = torch.cat([torch.zeros_like(value[:1]), value])
        for pattern, replacement in _RENAMED:
            name, found = re.subn(pattern, replacement, name)
            if found:
                break
        for pattern, first in _NUMBERED:
            name = re.sub(pattern, lambda m, n=first: f"{m[1]}{int(m[2]) - n}", name)
        converted[name] = value
    return converted
