"""ROI heads: Detectron2's with the project's options."""

from microplastics.modeling.roi_heads.roi_heads import ParticleCascadeROIHeads, ParticleROIHeads

__all__ = ["ParticleCascadeROIHeads", "ParticleROIHeads"]
