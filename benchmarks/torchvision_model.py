"""torchvision's Mask R-CNN with the weights of a Detectron2 one."""

from collections.abc import Iterable

import torch
from detectron2.config import CfgNode
from torch import nn
from torchvision.models.detection import MaskRCNN, maskrcnn_resnet50_fpn

from microplastics.modeling.torchvision import detectron2_names


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
    state = convert_state(model.state_dict(), theirs.state_dict())
    missing, surplus = theirs.load_state_dict(state, strict=False)
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


def convert_state(state: dict[str, torch.Tensor], names: Iterable[str]) -> dict[str, torch.Tensor]:
    """Give weights of Detectron2's Mask R-CNN torchvision's names.

    Torchvision counts the background as class 0 of every layer, Detectron2 as the last of the
    box scores alone.

    Args:
        state: of Detectron2's model.
        names: of torchvision's model.
    """
    converted = {}
    for theirs, name in detectron2_names(names).items():
        value = state[name]
        if name.startswith("roi_heads.box_predictor.cls_score."):
            value = value.roll(1, dims=0)
        elif name.startswith("roi_heads.box_predictor.bbox_pred."):
            value = torch.cat([torch.zeros_like(value[:4]), value])
        elif name.startswith("roi_heads.mask_head.predictor."):
            value = torch.cat([torch.zeros_like(value[:1]), value])
        converted[theirs] = value
    return converted
