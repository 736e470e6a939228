"""microplastics/modeling/roi_heads/point_rend.py."""

import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from microplastics.engine import Trainer
from microplastics.structures.crop_masks import CropMasks


def test_a_batch_without_a_particle_has_losses_and_gradients(tiny_cfg):
    model = Trainer.build_model(tiny_cfg(name="quick_pointrend")).train()
    nothing = Instances(
        (64, 64), gt_boxes=Boxes(torch.zeros(0, 4)), gt_classes=torch.zeros(0).long()
    )
    nothing.gt_masks = CropMasks([], [], (64, 64))
    with EventStorage():
        losses = model([{"image": torch.zeros(3, 64, 64), "instances": nothing}] * 2)
    assert losses["loss_mask"] == losses["loss_mask_point"] == 0
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
