"""Backbones registered with Detectron2."""

from microplastics.modeling.backbone import imagenet  # registers imagenet://
from microplastics.modeling.backbone.module import ModuleBackbone
from microplastics.modeling.backbone.timm import TimmBackbone, build_timm_fpn_backbone

__all__ = ["ModuleBackbone", "TimmBackbone", "build_timm_fpn_backbone", "imagenet"]
