"""Backbones registered with Detectron2."""

from microplastics.modeling.backbone import imagenet  # registers imagenet://
from microplastics.modeling.backbone.fpn import build_particle_resnet_fpn_backbone
from microplastics.modeling.backbone.timm import TimmBackbone, build_timm_fpn_backbone

__all__ = [
    "TimmBackbone",
    "build_particle_resnet_fpn_backbone",
    "build_timm_fpn_backbone",
    "imagenet",
]
