"""What training, validation and prediction ask of a Detectron2 model.

Any meta-architecture that Detectron2 can build and train works. Those whose inference is
``GeneralizedRCNN``'s (any ROI heads: Cascade, PointRend, own ones) share one backbone pass between
the validation loss and the predictions; all others are run twice.
"""

import contextlib
import operator
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import (
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    ROI_BOX_HEAD_REGISTRY,
    ROI_HEADS_REGISTRY,
    ROI_MASK_HEAD_REGISTRY,
    GeneralizedRCNN,
    build_model,
)
from detectron2.modeling.proposal_generator.rpn import RPN
from detectron2.modeling.roi_heads import StandardROIHeads
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead
from detectron2.projects.point_rend import PointRendMaskHead
from detectron2.projects.point_rend.roi_heads import PointRendROIHeads
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.overrides import TorchFunctionMode

from microplastics.config import get_cfg
from microplastics.modeling.backbone.with_image import WITH_IMAGE
from microplastics.modeling.roi_heads import ParticleBoxHead, ParticleMaskHead
from microplastics.modeling.roi_heads.cascade import StageMasks
from microplastics.modeling.roi_heads.roi_heads import ParticleOptions
from microplastics.utils.errors import UserError
from microplastics.utils.system import seeded

WITHOUT_BOXES = ("SemanticSegmentor", "ParticleSegmentor")
"""Meta-architectures that need no anchors."""

_BOX_ONLY = ("RetinaNet", "FCOS", "ProposalNetwork")
_POINT_HEADS = ("ParticlePointRendMaskHead", "PointRendMaskHead", "ImplicitPointRendMaskHead")
_WITHOUT_GRID = "DynamicMaskHead"
_KNOWN_MODULES = ("detectron2.", "microplastics.")
_TOP_BLOCKS_BUILT_BY = ("build_particle_resnet_fpn_backbone", "build_timm_fpn_backbone")
_REGISTRIES = {
    "META_ARCHITECTURE": META_ARCH_REGISTRY,
    "BACKBONE.NAME": BACKBONE_REGISTRY,
    "BACKBONE.INNER": BACKBONE_REGISTRY,
    "ROI_HEADS.NAME": ROI_HEADS_REGISTRY,
    "ROI_BOX_HEAD.NAME": ROI_BOX_HEAD_REGISTRY,
    "ROI_MASK_HEAD.NAME": ROI_MASK_HEAD_REGISTRY,
}


def num_classes(cfg: CfgNode) -> int:
    """Return the number of classes that the model of a config predicts."""
    return class_node(cfg)[1].NUM_CLASSES


def class_node(cfg: CfgNode) -> tuple[str, CfgNode]:
    """Return the config section, with its dotted name, whose NUM_CLASSES the model obeys.

    It is ``MODEL.<META_ARCHITECTURE>`` if there is one (``MODEL.RETINANET``), ``SEM_SEG_HEAD`` for
    a ``SemanticSegmentor`` and ``ROI_HEADS`` otherwise.
    """
    architecture = cfg.MODEL.META_ARCHITECTURE
    name = "SEM_SEG_HEAD" if architecture == "SemanticSegmentor" else architecture.upper()
    node = cfg.MODEL.get(name)
    if not (isinstance(node, CfgNode) and "NUM_CLASSES" in node):
        name = "ROI_HEADS"
    return f"MODEL.{name}", cfg.MODEL[name]


def builder_key(cfg: CfgNode) -> str:
    """Return which key below MODEL.BACKBONE names the builder of the feature maps."""
    return "INNER" if cfg.MODEL.BACKBONE.NAME == WITH_IMAGE else "NAME"


def predicts_masks(cfg: CfgNode) -> bool:
    """Return whether the model of a config predicts instance masks and not only boxes."""
    return cfg.MODEL.MASK_ON and cfg.MODEL.META_ARCHITECTURE not in _BOX_ONLY


def check_architecture(cfg: CfgNode) -> None:
    """Refuse config keys that contradict each other and that Detectron2 only asserts or ignores.

    Raises:
        UserError: config_invalid.
    """
    model = cfg.MODEL
    for key, registry in _REGISTRIES.items():
        name = operator.attrgetter(key)(model)
        known = {each for each, _ in registry}
        if key == "BACKBONE.INNER":
            known.remove(WITH_IMAGE)
        if name and name not in known:  # "" is none
            raise UserError(
                f"MODEL.{key} is {name}; expected one of {', '.join(sorted(known))}.",
                code="config_invalid",
            )
    if model.MASK_ON and not predicts_masks(cfg):
        raise UserError(
            f"MODEL.MASK_ON is True, but {model.META_ARCHITECTURE} predicts boxes only; set "
            "MODEL.MASK_ON False.",
            code="config_invalid",
        )
    points = model.ROI_MASK_HEAD.NAME in _POINT_HEADS and predicts_masks(cfg)
    if points and model.POINT_HEAD.NUM_CLASSES != model.ROI_HEADS.NUM_CLASSES:
        raise UserError(
            f"MODEL.POINT_HEAD.NUM_CLASSES is {model.POINT_HEAD.NUM_CLASSES}; expected "
            f"MODEL.ROI_HEADS.NUM_CLASSES, {model.ROI_HEADS.NUM_CLASSES}.",
            code="config_invalid",
        )
    if cfg.TEST.AUG.ENABLED and predicts_masks(cfg) and model.ROI_MASK_HEAD.NAME == _WITHOUT_GRID:
        raise UserError(
            f"TEST.AUG.ENABLED is True, but {_WITHOUT_GRID} predicts no masks on a grid, which "
            "could be averaged; expected False.",
            code="config_invalid",
        )
    _check_mask_pooler(cfg)
    _check_options_have_an_effect(cfg)


def _check_mask_pooler(cfg: CfgNode) -> None:
    """Refuse a mask head on whole feature maps that wants RoIs, and the other way round."""
    heads, node = ROI_HEADS_REGISTRY.get(cfg.MODEL.ROI_HEADS.NAME), cfg.MODEL.ROI_MASK_HEAD
    if not (predicts_masks(cfg) and issubclass(heads, StandardROIHeads)):
        return
    if issubclass(heads, PointRendROIHeads) and node.NAME != "PointRendMaskHead":
        raise UserError(
            f"MODEL.ROI_HEADS.NAME is {cfg.MODEL.ROI_HEADS.NAME}, whose only mask head is "
            f"PointRendMaskHead; {node.NAME} expected StandardROIHeads.",
            code="config_invalid",
        )
    head = ROI_MASK_HEAD_REGISTRY.get(node.NAME)
    wants = issubclass(head, MaskRCNNConvUpsampleHead)
    known = _is_known(head) and (wants or issubclass(head, PointRendMaskHead))
    if known and wants != bool(node.POOLER_TYPE):
        raise UserError(
            f"MODEL.ROI_MASK_HEAD.POOLER_TYPE is {node.POOLER_TYPE!r}; {node.NAME} expected "
            f"{'ROIAlignV2 or another' if wants else repr('')}.",
            code="config_invalid",
        )


def _is_known(kind: Any) -> bool:
    return kind.__module__.startswith(_KNOWN_MODULES)


def _check_options_have_an_effect(cfg: CfgNode) -> None:
    """Refuse options of the project's heads that its others and Detectron2's would ignore."""
    heads = ROI_HEADS_REGISTRY, "ROI_HEADS", ParticleOptions, "ParticleROIHeads"
    stages = ROI_HEADS_REGISTRY, "ROI_HEADS", StageMasks, "ParticleCascadeROIHeads"
    box_head = ROI_BOX_HEAD_REGISTRY, "ROI_BOX_HEAD", ParticleBoxHead, "ParticleBoxHead"
    mask_head = ROI_MASK_HEAD_REGISTRY, "ROI_MASK_HEAD", ParticleMaskHead, "ParticleMaskHead"
    plain = get_cfg()
    for key, (registry, section, ours, expected) in {
        "ROI_HEADS.NMS": heads,
        "ROI_BOX_HEAD.BOX_SCALE": heads,
        "ROI_MASK_HEAD.BOX_SCALE": heads,
        "ROI_MASK_HEAD.LOSS_WEIGHT": heads,
        "ROI_BOX_HEAD.CLS_LOSS_WEIGHT": heads,
        "ROI_BOX_CASCADE_HEAD.MASK_AT_EVERY_STAGE": stages,
        "ROI_BOX_HEAD.DROPOUT": box_head,
        "ROI_BOX_HEAD.FC_DIMS": box_head,
        "ROI_MASK_HEAD.UPSAMPLINGS": mask_head,
        "ROI_MASK_HEAD.LOSSES": mask_head,
        "ROI_MASK_HEAD.BOUNDARY.ENABLED": mask_head,
        "ROI_MASK_HEAD.IOU_HEAD.ENABLED": mask_head,
    }.items():
        read, name = operator.attrgetter(f"MODEL.{key}"), cfg.MODEL[section].NAME
        chosen = registry.get(name) if name in registry else ours
        ignored = _is_known(chosen) and not issubclass(chosen, ours)
        off = key.startswith("ROI_MASK_HEAD") and not predicts_masks(cfg)
        if ignored and not off and read(cfg) != read(plain):
            raise UserError(
                f"MODEL.{section}.NAME is {name}, which ignores MODEL.{key} {read(cfg)}; expected "
                f"{expected}.",
                code="config_invalid",
            )
    key = builder_key(cfg)
    backbone, top = cfg.MODEL.BACKBONE[key], cfg.MODEL.FPN.TOP_BLOCK
    ignored = _is_known(BACKBONE_REGISTRY.get(backbone)) and backbone not in _TOP_BLOCKS_BUILT_BY
    if ignored and top != plain.MODEL.FPN.TOP_BLOCK:
        raise UserError(
            f"MODEL.BACKBONE.{key} is {backbone}, which ignores MODEL.FPN.TOP_BLOCK {top}; "
            f"expected {' or '.join(_TOP_BLOCKS_BUILT_BY)}.",
            code="config_invalid",
        )


class WithoutMemory(TorchFunctionMode):
    """Makes new weights on the meta device; what constructors compute with stays on the CPU."""

    _FACTORIES = (torch.empty, torch.zeros, torch.ones, torch.full)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func in self._FACTORIES and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def build_shapes(cfg: CfgNode) -> nn.Module:
    """Build the model of a config without memory for its weights (on the meta device).

    Args:
        cfg: any config that Detectron2 can build.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "meta"
    with WithoutMemory():
        return build_model(cfg)


def class_dependent(cfg: CfgNode) -> set[str]:
    """Find the weights whose shape changes with the number of classes.

    The model is built for one class more, without memory, and the shapes are compared. Every
    NUM_CLASSES below MODEL is raised: heads such as PointRend's have their own.

    Args:
        cfg: the model's config.

    Returns:
        Names as in ``state_dict``.
    """
    more = cfg.clone()
    more.defrost()
    nodes = [more.MODEL]
    while nodes:
        node = nodes.pop()
        nodes += [value for value in node.values() if isinstance(value, CfgNode)]
        if "NUM_CLASSES" in node:
            node.NUM_CLASSES += 1
    shapes = {name: value.shape for name, value in build_shapes(more).state_dict().items()}
    ours = build_shapes(cfg).state_dict()
    return {name for name, value in ours.items() if shapes.get(name) != value.shape}


def mask_size(cfg: CfgNode) -> int | None:
    """Return the side M of the M x M masks that the model of a config predicts in each box.

    Args:
        cfg: the model's config.

    Returns:
        ``None`` if the model has no masks or another kind of mask head.
    """
    if not predicts_masks(cfg):
        return None
    model = build_shapes(cfg)
    heads = getattr(model, "roi_heads", None)
    head = getattr(heads, "mask_head", None)
    if isinstance(head, nn.ModuleList):  # one for each stage: the last one predicts
        head = head[-1]
    if isinstance(head, PointRendMaskHead):
        if not head.mask_point_on:
            return cfg.MODEL.ROI_MASK_HEAD.OUTPUT_SIDE_RESOLUTION
        return head.mask_point_subdivision_init_resolution * 2**head.mask_point_subdivision_steps
    pooler = getattr(heads, "mask_pooler", None)
    if pooler is None or not hasattr(head, "layers"):
        return None
    channels = model.backbone.output_shape()[heads.mask_in_features[0]].channels
    pooled = torch.empty(1, channels, *pooler.output_size, device="meta")
    return head.layers(pooled).shape[-1]


def rescores(model: nn.Module) -> bool:
    """Return whether the mask head lowers the scores of the boxes that it gets."""
    heads = getattr(model, "roi_heads", None)
    return bool(getattr(getattr(heads, "mask_head", None), "rescores", False))


def is_staged(model: nn.Module) -> bool:
    """Return whether a model can be run stage by stage: backbone, proposals, heads.

    Its raw results then are boxes in px of the network's input and, with masks, (N, 1, M, M)
    probabilities in these boxes or a subclass of ``ROIMasks``; those of other models are pasted
    and scaled to the image.
    """
    return (
        isinstance(model, GeneralizedRCNN)
        and type(model).forward is GeneralizedRCNN.forward
        and type(model).inference is GeneralizedRCNN.inference
        and isinstance(model.proposal_generator, RPN)
    )


def keep_boxes_fp32(model: nn.Module) -> None:
    """Cast the backbone's feature maps back to fp32.

    Detectron2's ``ROIAlign`` casts box coordinates to the type of the features, and bf16 has
    steps of 4 px at 512–1024: boxes would miss their particles.
    """

    def cast(_module, _inputs, features):
        return {name: feature.float() for name, feature in features.items()}

    model.backbone.register_forward_hook(cast)


def losses_and_predictions(
    model: nn.Module, item: dict[str, Any], *, seed: tuple[int, ...] | None, rois_per_image: int
) -> tuple[dict[str, float] | None, dict[str, Any]]:
    """Compute the losses of training and the predictions for one image.

    Norm and dropout layers stay as in evaluation, and the model is left as it was, its plain
    attributes such as RetinaNet's running loss normaliser included.

    Args:
        model: in evaluation mode; to be called under ``torch.inference_mode`` and an
            ``EventStorage``.
        item: one image as a mapper gives it.
        seed: of proposals and samples; the generators are restored afterwards. ``None`` computes
            no losses, nor are there any without ``instances``.
        rois_per_image: RoIs sampled for the losses, by heads that sample.

    Returns:
        The losses by name, or ``None``; and the model's output for the image, whose ``instances``
        are raw if :func:`is_staged`.
    """
    with_losses = seed is not None and len(item.get("instances", ())) > 0
    if is_staged(model):
        return _by_stages(model, item, seed if with_losses else None, rois_per_image)
    losses = None
    if with_losses:
        with seeded(*seed, device=next(model.parameters()).device), _training(model):
            # Detectron2's dense detectors average it over the training so far, on each process.
            vars(model).pop("loss_normalizer", None)
            losses = _numbers(model([item]))
    return losses, model([item])[0]


def _by_stages(
    model: GeneralizedRCNN, item: dict[str, Any], seed: tuple[int, ...] | None, rois_per_image: int
) -> tuple[dict[str, float] | None, dict[str, Any]]:
    """Compute both from one pass through the backbone and the RPN's convolutions."""
    images = model.preprocess_image([item])
    features = model.backbone(images.tensor)
    rpn, heads, losses = model.proposal_generator, model.roi_heads, None
    with remembered(rpn.rpn_head):
        proposals, _ = rpn(images, features, None)
        if seed is not None:
            targets = [item["instances"].to(model.device)]
            with seeded(*seed, device=model.device), _training(rpn, heads):
                if hasattr(heads, "batch_size_per_image"):
                    heads.batch_size_per_image = rois_per_image
                try:
                    sampled, losses = rpn(images, features, targets)
                    losses = _numbers({**losses, **heads(images, features, sampled, targets)[1]})
                except FloatingPointError:  # the RPN's answer to weights that are not finite
                    losses = {"loss_rpn_cls": float("nan")}
    results, _ = heads(images, features, proposals, None)
    return losses, {"instances": results[0]}


def _numbers(losses: dict[str, torch.Tensor]) -> dict[str, float]:
    values = torch.stack([value.detach().float() for value in losses.values()]).tolist()
    return dict(zip(losses, values, strict=True))


@contextlib.contextmanager
def remembered(head: nn.Module) -> Iterator[None]:
    """Let calls of the RPN's head, or a mask branch, on the same features share its result."""
    forward, memory = head.forward, []

    def remembering(features):
        if not memory:
            memory.append(forward(features))
        return memory[0]

    head.forward = remembering
    try:
        yield
    finally:
        del head.forward


@contextlib.contextmanager
def changed(modules: Iterable[nn.Module], **attributes: Any) -> Iterator[None]:
    """Set plain attributes of modules, and restore them."""
    before = [(module, {name: vars(module)[name] for name in attributes}) for module in modules]
    try:
        for module, _ in before:
            vars(module).update(attributes)
        yield
    finally:
        for module, values in before:
            vars(module).update(values)


def is_norm_or_dropout(module: nn.Module) -> bool:
    """Return whether training makes a module draw at random or update running statistics."""
    # Stochastic depth (DropPath) has a probability, but not dropout's base class.
    return isinstance(module, (_NormBase, _DropoutNd)) or hasattr(module, "drop_prob")


@contextlib.contextmanager
def _training(*roots: nn.Module) -> Iterator[None]:
    """Switch modules to training, except for norm and dropout layers, and restore them."""
    modules = [module for root in roots for module in root.modules()]
    before = [_plain(module) for module in modules]
    try:
        for module in modules:
            module.training = not is_norm_or_dropout(module)
        yield
    finally:
        for module, attributes in zip(modules, before, strict=True):
            for name in _plain(module).keys() - attributes.keys():
                delattr(module, name)
            vars(module).update(attributes)


def _plain(module: nn.Module) -> dict[str, bool | int | float]:
    return {key: v for key, v in vars(module).items() if isinstance(v, (bool, int, float))}
