"""Detectron2's plain vision transformer under a simple feature pyramid."""

import functools
import math
import warnings

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, SimpleFeaturePyramid, ViT
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from torch import nn

from microplastics.utils.errors import UserError

_FEATURE = "last_feat"
# Of the transformer's resolution: p2 to p5 with patches of 16 px.
_SCALES = (4.0, 2.0, 1.0, 0.5)


@BACKBONE_REGISTRY.register()
def build_vit_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> SimpleFeaturePyramid:
    """Build the backbone of ViTDet with the sizes of MODEL.VIT.

    Li et al. 2022, "Exploring Plain Vision Transformer Backbones for Object Detection":
    attention within windows, in some blocks over the whole image; and four levels and a pooled one
    that are all made of the last feature map. MODEL.FPN.OUT_CHANNELS and MODEL.FPN.NORM are those
    of the levels, which begin at ``p2`` for patches of 16 px. Images of any size are taken:
    positions are interpolated.

    Raises:
        UserError: config_invalid.
    """
    vit, fpn = cfg.MODEL.VIT, cfg.MODEL.FPN
    _check(vit)
    with warnings.catch_warnings():
        # Detectron2 imports timm.models.layers, timm's old name of timm.layers.
        warnings.simplefilter("ignore", FutureWarning)
        net = ViT(
            img_size=vit.IMAGE_SIZE,
            patch_size=vit.PATCH_SIZE,
            in_chans=input_shape.channels,
            embed_dim=vit.EMBED_DIM,
            depth=vit.DEPTH,
            num_heads=vit.NUM_HEADS,
            drop_path_rate=vit.DROP_PATH,
            norm_layer=functools.partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=vit.WINDOW_SIZE,
            window_block_indexes=tuple(vit.WINDOW_BLOCKS),
            out_feature=_FEATURE,
        )
    top = LastLevelMaxPool()
    top.in_feature = f"p{int(math.log2(vit.PATCH_SIZE)) + 1}"
    return SimpleFeaturePyramid(
        net,
        in_feature=_FEATURE,
        out_channels=fpn.OUT_CHANNELS,
        scale_factors=_SCALES,
        top_block=top,
        norm=fpn.NORM,
    )


def _check(vit: CfgNode) -> None:
    """Refuse sizes that Detectron2 only asserts, or stops at in the first iteration."""
    wrong = None
    if vit.PATCH_SIZE not in (8, 16, 32):
        wrong = f"PATCH_SIZE is {vit.PATCH_SIZE}; expected 8, 16 or 32"
    elif vit.IMAGE_SIZE < vit.PATCH_SIZE:
        wrong = f"IMAGE_SIZE is {vit.IMAGE_SIZE}; expected PATCH_SIZE, {vit.PATCH_SIZE}, or more"
    elif min(vit.NUM_HEADS, vit.DEPTH, vit.EMBED_DIM) < 1 or vit.EMBED_DIM % vit.NUM_HEADS:
        wrong = f"EMBED_DIM is {vit.EMBED_DIM}; expected a multiple of NUM_HEADS, {vit.NUM_HEADS}"
    elif not all(0 <= block < vit.DEPTH for block in vit.WINDOW_BLOCKS):
        wrong = f"WINDOW_BLOCKS is {vit.WINDOW_BLOCKS}; expected numbers from 0 to {vit.DEPTH - 1}"
    elif vit.WINDOW_BLOCKS and vit.WINDOW_SIZE < 1:
        wrong = f"WINDOW_SIZE is {vit.WINDOW_SIZE}; expected 1 or more"
    if wrong:
        raise UserError(f"MODEL.VIT.{wrong}.", code="config_invalid")
