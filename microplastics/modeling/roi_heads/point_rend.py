"""PointRend's mask head, for batches without a particle too."""

import torch
from detectron2.modeling import ROI_MASK_HEAD_REGISTRY
from detectron2.projects.point_rend.mask_head import PointRendMaskHead
from detectron2.structures import Instances


@ROI_MASK_HEAD_REGISTRY.register()
class ParticlePointRendMaskHead(PointRendMaskHead):
    """Detectron2's ``PointRendMaskHead``, which stops at a training batch without a particle.

    All its losses are 0 there. Its weights have the same names.
    """

    def _sample_train_points(
        self, coarse_mask: torch.Tensor, instances: list[Instances]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if len(coarse_mask):
            return super()._sample_train_points(coarse_mask, instances)
        points = self.mask_point_train_num_points
        return coarse_mask.new_zeros(0, points, 2), coarse_mask.new_zeros(0, points)
