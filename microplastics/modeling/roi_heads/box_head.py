"""Box heads: Detectron2's with the project's options."""

from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_BOX_HEAD_REGISTRY
from detectron2.modeling.roi_heads import FastRCNNConvFCHead
from torch import nn

from microplastics.utils.errors import UserError


@ROI_BOX_HEAD_REGISTRY.register()
class ParticleBoxHead(FastRCNNConvFCHead):
    """``FastRCNNConvFCHead`` with dropout and layers of any widths.

    Its weights have the names of Detectron2's, so that checkpoints fit both.
    """

    @configurable
    def __init__(self, input_shape: ShapeSpec, *, dropout: float = 0.0, **kwargs: Any):
        """
        Args:
            input_shape, kwargs: of ``FastRCNNConvFCHead``.
            dropout: share of the values after each linear layer's ReLU that training drops
                (Srivastava et al. 2014).

        Raises:
            UserError: config_invalid.
        """
        if not 0 <= dropout < 1:
            raise UserError(
                f"MODEL.ROI_BOX_HEAD.DROPOUT is {dropout}; expected 0 or more, below 1.",
                code="config_invalid",
            )
        super().__init__(input_shape, **kwargs)
        for number in range(1, len(self.fcs) + 1) if dropout else ():
            # In the place of the ReLU, so that the layers keep their order and their names.
            setattr(self, f"fc_relu{number}", nn.Sequential(nn.ReLU(), nn.Dropout(dropout)))

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        head = cfg.MODEL.ROI_BOX_HEAD
        options = super().from_config(cfg, input_shape)
        if head.FC_DIMS:
            options["fc_dims"] = list(head.FC_DIMS)
        return {**options, "dropout": head.DROPOUT}
