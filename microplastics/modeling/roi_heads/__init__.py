"""ROI heads: Detectron2's with the project's options."""

from microplastics.modeling.roi_heads.dynamic_mask_head import DynamicMaskHead
from microplastics.modeling.roi_heads.roi_heads import ParticleROIHeads

__all__ = ["DynamicMaskHead", "ParticleROIHeads"]
