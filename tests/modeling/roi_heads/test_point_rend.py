"""microplastics/modeling/roi_heads/point_rend.py."""

import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from support import user_error

from microplastics.config import load_config
from microplastics.engine import Trainer
from microplastics.modeling.interface import build_shapes, check_architecture
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


def test_models_of_earlier_configs_have_the_same_weights():
    names = "MODEL.ROI_HEADS.NAME PointRendROIHeads MODEL.ROI_MASK_HEAD.NAME PointRendMaskHead"
    shapes = []
    for opts in ([], names.split()):
        cfg = load_config("quick_pointrend", opts)
        check_architecture(cfg)
        state = build_shapes(cfg).state_dict()
        shapes.append({name: value.shape for name, value in state.items()})
    assert shapes[0] == shapes[1]


def test_the_roi_heads_of_earlier_configs_take_no_other_mask_head():
    cfg = load_config("quick_pointrend", ["MODEL.ROI_HEADS.NAME", "PointRendROIHeads"])
    with user_error("config_invalid", "PointRendROIHeads", "StandardROIHeads"):
        check_architecture(cfg)
