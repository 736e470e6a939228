"""Backbones registered with Detectron2."""

from microplastics.modeling.backbone import imagenet  # registers imagenet://
from microplastics.modeling.backbone.fpn import build_particle_resnet_fpn_backbone
from microplastics.modeling.backbone.module import ModuleBackbone
from microplastics.modeling.backbone.timm import TimmBackbone, build_timm_fpn_backbone
from microplastics.modeling.backbone.vit import build_vit_fpn_backbone
from microplastics.modeling.backbone.with_image import build_backbone_with_image

__all__ = [
    "ModuleBackbone",
    "TimmBackbone",
    "build_backbone_with_image",
    "build_particle_resnet_fpn_backbone",
    "build_timm_fpn_backbone",
    "build_vit_fpn_backbone",
    "imagenet",
]
