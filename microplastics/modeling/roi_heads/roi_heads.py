"""Detectron2's standard ROI heads with the project's options."""

from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import StandardROIHeads

from microplastics.modeling.nms import ChosenNMS


@ROI_HEADS_REGISTRY.register()
class ParticleROIHeads(ChosenNMS, StandardROIHeads):
    """``StandardROIHeads`` with options for thin and crossing particles."""
