"""ROI heads: Detectron2's with the project's options."""

from microplastics.modeling.roi_heads.box_head import ParticleBoxHead
from microplastics.modeling.roi_heads.roi_heads import ParticleROIHeads

__all__ = ["ParticleBoxHead", "ParticleROIHeads"]
