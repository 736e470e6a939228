"""Config keys from plain arguments, and models around a backbone that no config can say."""

from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import (
    BACKBONE_REGISTRY,
    Backbone,
    GeneralizedRCNN,
    build_proposal_generator,
    build_roi_heads,
)
from torch import nn

from microplastics.config import merge_options
from microplastics.modeling.backbone.module import GIVEN, ModuleBackbone, pyramid_on
from microplastics.modeling.interface import builder_key, check_architecture, class_node
from microplastics.utils.errors import UserError

# Arguments that are a config key each.
_KEYS = {
    "pool_size": "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION",
    "hidden_dim": "MODEL.ROI_BOX_HEAD.FC_DIM",
    "dropout": "MODEL.ROI_BOX_HEAD.DROPOUT",
    "mask_pool_size": "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION",
    "mask_hidden_channels": "MODEL.ROI_MASK_HEAD.CONV_DIM",
}
# What torchvision's backbones, and most others, were trained with: RGB, 0 to 255.
_IMAGENET = {
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
    "INPUT.FORMAT": "RGB",
}
# Level of a backbone without pyramid, of stride 16, as in Faster R-CNN.
_SINGLE_LEVEL = "res4"


def set_arguments(
    cfg: CfgNode,
    *,
    backbone: nn.Module | str | None,
    use_fpn: bool | None,
    num_classes: int | None,
    anchor_sizes: Sequence | None,
    aspect_ratios: Sequence | None,
    mask_out_size: int | None,
    **heads: Any,
) -> Backbone | None:
    """Set the config keys of arguments in place; what is None stays as it is.

    The arguments are those of :class:`microplastics.mask_rcnn.MaskRCNN`.

    Returns:
        The backbone to build the model around, if it is a module.

    Raises:
        UserError: option_invalid, option_conflict, option_missing, config_invalid.
    """
    built = _set_backbone(cfg, backbone, use_fpn)
    _set_heads(cfg, mask_out_size, **heads)
    if num_classes is not None:
        _set_classes(cfg, num_classes)
    _set_anchors(cfg, anchor_sizes, aspect_ratios)
    return built


def build_around(backbone: Backbone, cfg: CfgNode) -> GeneralizedRCNN:
    """Build the model of a config, but for its backbone, as ``GeneralizedRCNN`` does.

    Raises:
        UserError: config_invalid.
    """
    check_architecture(cfg)
    if cfg.MODEL.META_ARCHITECTURE != "GeneralizedRCNN":
        raise UserError(
            f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}; expected GeneralizedRCNN "
            "around a backbone module.",
            code="config_invalid",
        )
    shape = backbone.output_shape()
    model = GeneralizedRCNN(
        backbone=backbone,
        proposal_generator=build_proposal_generator(cfg, shape),
        roi_heads=build_roi_heads(cfg, shape),
        pixel_mean=cfg.MODEL.PIXEL_MEAN,
        pixel_std=cfg.MODEL.PIXEL_STD,
        input_format=cfg.INPUT.FORMAT,
    )
    return model.to(cfg.MODEL.DEVICE)


def _set_backbone(
    cfg: CfgNode, backbone: nn.Module | str | None, use_fpn: bool | None
) -> nn.Module | None:
    """Set the keys of a backbone, and return it if a config cannot say it."""
    model = cfg.MODEL
    if isinstance(backbone, nn.Module):
        return _set_module(cfg, backbone, use_fpn)
    key = builder_key(cfg)
    if isinstance(backbone, str):
        model.BACKBONE[key], model.TIMM.NAME = "build_timm_fpn_backbone", backbone
        model.BACKBONE.FREEZE_AT = 0
    if model.BACKBONE.NAME == GIVEN:
        raise UserError(
            "This model was made with a backbone of somebody's own code; give it as backbone.",
            code="option_missing",
        )
    name = model.BACKBONE[key]
    if use_fpn is False:
        plain = name.replace("build_particle_", "build_").replace("_fpn_", "_")
        if plain not in BACKBONE_REGISTRY:
            raise UserError(
                f"use_fpn is False, but the backbone of the config is {name}, which "
                "is not made without; use a ResNet or a network of timm.",
                code="option_conflict",
            )
        model.BACKBONE[key] = plain
        model.RESNETS.OUT_FEATURES = [_SINGLE_LEVEL]
        _set_levels(cfg, [_SINGLE_LEVEL], [_SINGLE_LEVEL])
    elif use_fpn and "fpn" not in name:
        raise UserError(
            f"use_fpn is True, but the backbone of the config is {name}; use a "
            "config with a feature pyramid.",
            code="option_conflict",
        )
    return None


def _set_module(cfg: CfgNode, backbone: nn.Module, use_fpn: bool | None) -> nn.Module:
    body = ModuleBackbone(backbone)
    widths = {shape.channels for shape in body.output_shape().values()}
    if use_fpn is None:
        use_fpn = len(widths) > 1
    if use_fpn:
        pyramid = pyramid_on(body, cfg.MODEL.FPN.OUT_CHANNELS, cfg.MODEL.FPN.NORM)
        names = list(pyramid.output_shape())
        _set_levels(cfg, names, names[:-1])
    elif len(widths) > 1:
        raise UserError(
            f"The feature maps of the backbone have {sorted(widths)} channels; expected the same "
            "number, or use_fpn=True.",
            code="option_conflict",
        )
    else:
        pyramid = body
        _set_levels(cfg, list(body.output_shape()), body.roi_features)
    if cfg.MODEL.BACKBONE.NAME != GIVEN:  # else of a checkpoint, which knows better
        merge_options(cfg, [part for pair in _IMAGENET.items() for part in pair])
        cfg.MODEL.BACKBONE.NAME = GIVEN
    return pyramid


def _set_levels(cfg: CfgNode, rpn: list[str], roi: list[str]) -> None:
    """Name the feature maps, and give them the sizes of anchors that the config has in all."""
    model = cfg.MODEL
    model.RPN.IN_FEATURES, model.ROI_HEADS.IN_FEATURES = rpn, roi
    sizes = model.ANCHOR_GENERATOR.SIZES
    if len(sizes) not in (1, len(rpn)):
        model.ANCHOR_GENERATOR.SIZES = [sorted({size for level in sizes for size in level})]


def _set_heads(cfg: CfgNode, mask_out_size: int | None, **given: float | None) -> None:
    if mask_out_size is not None:
        given["mask_pool_size"] = _set_mask_size(cfg, mask_out_size, given["mask_pool_size"])
    for name, value in given.items():
        if value is None:
            continue
        fits = 0 <= value < 1 if name == "dropout" else isinstance(value, int) and value > 0
        if not fits:
            expected = "0 or more, below 1" if name == "dropout" else "an integer above 0"
            raise UserError(f"{name} is {value}; expected {expected}.", code="option_invalid")
        merge_options(cfg, (_KEYS[name], value))
        if name == "hidden_dim":
            cfg.MODEL.ROI_BOX_HEAD.FC_DIMS = []  # which would go first
        if name == "dropout" and value:  # Detectron2's own head has none
            merge_options(cfg, ("MODEL.ROI_BOX_HEAD.NAME", "ParticleBoxHead"))


def _set_mask_size(cfg: CfgNode, size: int, pooled: int | None) -> int:
    """Choose a mask head that gives masks of a size, and return the size that it pools."""
    node = cfg.MODEL.ROI_MASK_HEAD
    if not node.POOLER_TYPE:
        raise UserError(
            f"mask_out_size is {size}, but the mask head of the config is {node.NAME}, which pools "
            "no RoIs; leave it out.",
            code="option_conflict",
        )
    if pooled is None:
        pooled = node.POOLER_RESOLUTION
        pooled = pooled if size in (pooled * 2**n for n in range(4)) else size // 2
    doublings = [n for n in range(4) if size == pooled * 2**n]
    if not doublings:
        raise UserError(
            f"mask_out_size is {size} and mask_pool_size {pooled}; expected once, twice, four or "
            "eight times mask_pool_size.",
            code="option_conflict",
        )
    if doublings != [1] or node.UPSAMPLINGS != 1:  # once is what Detectron2's own head does
        head = "MODEL.ROI_MASK_HEAD"
        merge_options(cfg, (f"{head}.NAME", "ParticleMaskHead", f"{head}.UPSAMPLINGS", *doublings))
    return pooled


def _set_classes(cfg: CfgNode, num_classes: int) -> None:
    if not isinstance(num_classes, int) or num_classes < 1:
        raise UserError(
            f"num_classes is {num_classes}; expected the number of classes without the background, "
            "1 or more.",
            code="option_invalid",
        )
    class_node(cfg)[1].NUM_CLASSES = cfg.MODEL.POINT_HEAD.NUM_CLASSES = num_classes


def _set_anchors(cfg: CfgNode, sizes: Sequence | None, ratios: Sequence | None) -> None:
    node, levels = cfg.MODEL.ANCHOR_GENERATOR, len(cfg.MODEL.RPN.IN_FEATURES)
    if sizes is not None:
        flat = all(isinstance(size, (int, float)) for size in sizes)
        node.SIZES = [[size] for size in sizes] if flat and levels > 1 else _nested(sizes)
    if ratios is not None:
        node.ASPECT_RATIOS = _nested(ratios)
    for name, given in (("anchor_sizes", node.SIZES), ("aspect_ratios", node.ASPECT_RATIOS)):
        lengths = {len(level) for level in given}
        numbers = [number for level in given for number in level]
        if not numbers or len(lengths) > 1 or len(given) not in (1, levels) or min(numbers) <= 0:
            raise UserError(
                f"{name} is {given}; expected numbers above 0, as many for each of the {levels} "
                f"feature maps ({', '.join(cfg.MODEL.RPN.IN_FEATURES)}).",
                code="option_invalid",
            )


def _nested(values: Sequence) -> list[list[float]]:
    if all(isinstance(value, (int, float)) for value in values):
        return [list(values)]
    return [list(level) for level in values]
