"""ROI heads and mask heads: Detectron2's with the project's options."""

from microplastics.modeling.roi_heads.box_head import ParticleBoxHead
from microplastics.modeling.roi_heads.cascade import ParticleCascadeROIHeads
from microplastics.modeling.roi_heads.dynamic_mask_head import DynamicMaskHead
from microplastics.modeling.roi_heads.mask_head import ParticleMaskHead
from microplastics.modeling.roi_heads.roi_heads import ParticleROIHeads

__all__ = [
    "DynamicMaskHead",
    "ParticleBoxHead",
    "ParticleCascadeROIHeads",
    "ParticleMaskHead",
    "ParticleROIHeads",
]
