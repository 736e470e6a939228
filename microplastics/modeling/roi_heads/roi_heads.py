"""Detectron2's standard ROI heads with the project's options."""

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import StandardROIHeads

from microplastics.modeling.backbone.with_image import IMAGE


@ROI_HEADS_REGISTRY.register()
class ParticleROIHeads(StandardROIHeads):
    """``StandardROIHeads`` with options for thin and crossing particles.

    A mask head that pools by itself also gets the image, if the backbone passes it on.
    """

    @classmethod
    def _init_mask_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        if cfg.MODEL.MASK_ON and not cfg.MODEL.ROI_MASK_HEAD.POOLER_TYPE and IMAGE in input_shape:
            cfg = cfg.clone()
            cfg.defrost()
            cfg.MODEL.ROI_HEADS.IN_FEATURES = [*cfg.MODEL.ROI_HEADS.IN_FEATURES, IMAGE]
        return super()._init_mask_head(cfg, input_shape)
