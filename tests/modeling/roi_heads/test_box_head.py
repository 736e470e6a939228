"""Box heads, the pyramid's top, and Detectron2's keys of the box branch."""

import math

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from detectron2.modeling.roi_heads import build_box_head
from support import barred_image, user_error

from microplastics.engine import Trainer
from microplastics.export.export import export_model
from microplastics.inference.predictor import Predictor
from microplastics.modeling.interface import check_architecture

PARTICLE = ("MODEL.ROI_BOX_HEAD.NAME", "ParticleBoxHead")
RESNET = ("MODEL.BACKBONE.NAME", "build_particle_resnet_fpn_backbone")
TIMM = ("MODEL.BACKBONE.NAME", "build_timm_fpn_backbone", "MODEL.TIMM.NAME", "resnet18")


def seeded(build, *args):
    torch.manual_seed(0)
    return build(*args)


def test_box_head_drops_in_training_only_and_has_detectron2s_weights(tiny_cfg):
    shape, x = ShapeSpec(channels=16, height=7, width=7), torch.randn(64, 16, 7, 7)
    theirs = seeded(build_box_head, tiny_cfg(), shape).eval()
    cfg = tiny_cfg(*PARTICLE, "MODEL.ROI_BOX_HEAD.DROPOUT", 0.3)
    ours = seeded(build_box_head, cfg, shape)
    ours.load_state_dict(theirs.state_dict())
    expected = theirs(x)
    assert torch.equal(ours.eval()(x), expected)
    dropped = ours.train()(x)
    assert 0.2 < 1 - (dropped != 0).sum() / (expected != 0).sum() < 0.6
    wide = build_box_head(tiny_cfg(*PARTICLE, "MODEL.ROI_BOX_HEAD.FC_DIMS", [24, 8]), shape)
    assert [layer.out_features for layer in wide.fcs] == [24, 8]
    assert wide(x).shape == (64, 8) and wide.output_shape.channels == 8


@pytest.mark.parametrize("network", [RESNET, TIMM])
def test_the_pyramids_top(tiny_cfg, network):
    x = torch.randn(1, 3, 64, 96)
    pyramids = {
        name: seeded(build_backbone, tiny_cfg(*network, "MODEL.FPN.TOP_BLOCK", name)).eval()
        for name in ("maxpool", "conv_p5", "conv_c5")
    }
    with torch.no_grad():
        tops = {name: pyramid(x) for name, pyramid in pyramids.items()}
        assert torch.equal(tops["maxpool"]["p6"], tops["maxpool"]["p5"][:, :, ::2, ::2])
        for name, source in (("conv_p5", tops["conv_p5"]["p5"]), ("conv_c5", None)):
            pyramid = pyramids[name]
            source = pyramid.bottom_up(x)["res5"] if source is None else source
            assert torch.equal(tops[name]["p6"], pyramid.top_block.p6(source))
            assert tops[name]["p6"].shape == tops["maxpool"]["p6"].shape
    if network is RESNET:
        plain = seeded(build_backbone, tiny_cfg()).eval()
        with torch.no_grad():
            assert all(torch.equal(plain(x)[k], v) for k, v in tops["maxpool"].items())


def test_keys_that_nothing_would_follow_are_refused(tiny_cfg):
    for key, value, name in (
        ("ROI_BOX_HEAD.DROPOUT", 0.5, "ParticleBoxHead"),
        ("ROI_BOX_HEAD.FC_DIMS", [8], "ParticleBoxHead"),
        ("FPN.TOP_BLOCK", "conv_c5", RESNET[1]),
        ("ROI_BOX_CASCADE_HEAD.MASK_AT_EVERY_STAGE", True, "ParticleCascadeROIHeads"),
    ):
        with user_error("config_invalid", f"MODEL.{key} {value}", name):
            check_architecture(tiny_cfg(f"MODEL.{key}", value))
    image = ("MODEL.BACKBONE.NAME", "build_backbone_with_image")
    with user_error("config_invalid", "BACKBONE.INNER is build_resnet_fpn", RESNET[1]):
        check_architecture(tiny_cfg(*image, "MODEL.FPN.TOP_BLOCK", "conv_c5"))
    with user_error("config_invalid", "MODEL.BACKBONE.INNER is build_backbone_with_image"):
        check_architecture(tiny_cfg(*image, "MODEL.BACKBONE.INNER", image[1]))
    for key in ("BACKBONE.NAME", "ROI_HEADS.NAME", "ROI_BOX_HEAD.NAME", "ROI_MASK_HEAD.NAME"):
        with user_error("config_invalid", f"MODEL.{key} is nothing; expected one of"):
            check_architecture(tiny_cfg(f"MODEL.{key}", "nothing"))
    with user_error("config_invalid", "MODEL.ROI_MASK_HEAD.POOLER_TYPE is ''", "ROIAlignV2"):
        check_architecture(tiny_cfg("MODEL.ROI_MASK_HEAD.POOLER_TYPE", ""))
    with user_error("config_invalid", "FPN.TOP_BLOCK is p6"):
        build_backbone(tiny_cfg(*RESNET, "MODEL.FPN.TOP_BLOCK", "p6"))
    with user_error("config_invalid", "DROPOUT is 1.0"):
        build_box_head(tiny_cfg(*PARTICLE, "MODEL.ROI_BOX_HEAD.DROPOUT", 1.0), ShapeSpec(16, 7, 7))


def test_the_keys_together_from_training_to_export(tiny_cfg, tmp_path):
    cfg = tiny_cfg(
        *PARTICLE,
        *RESNET,
        *("MODEL.ROI_BOX_HEAD.DROPOUT", 0.2, "MODEL.ROI_BOX_HEAD.FC_DIMS", [32, 16]),
        *("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True),
        *("MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE", "giou", "MODEL.FPN.TOP_BLOCK", "conv_c5"),
        *("MODEL.RPN.BBOX_REG_LOSS_TYPE", "giou", "MODEL.ROI_HEADS.NAME", "ParticleROIHeads"),
        *("SOLVER.MAX_ITER", 2, "SOLVER.CHECKPOINT_PERIOD", 2, "TEST.EVAL_PERIOD", 2),
    )
    trainer = Trainer(cfg)
    trainer.resume_or_load(False)
    metrics = trainer.train()
    assert math.isfinite(metrics["validation/loss_box_reg"])
    assert trainer.model.roi_heads.box_predictor.bbox_pred.out_features == 4
    path = f"{cfg.OUTPUT_DIR}/model_final.pth"
    predictor = Predictor.from_checkpoint(path, ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.01"))
    assert len(predictor(barred_image(90, 120)))
    export_model(predictor, tmp_path / "model.ts", "torchscript", size=(96, 96))
    soft = Predictor.from_checkpoint(path, ("MODEL.ROI_HEADS.NMS", "soft_linear"))
    with user_error("export_unsupported", "MODEL.ROI_HEADS.NMS is soft_linear"):
        export_model(soft, tmp_path / "soft.ts", "torchscript", size=(96, 96))
    augmented = Predictor.from_checkpoint(path, ("TEST.AUG.ENABLED", "True"))
    with user_error("export_unsupported", "TEST.AUG.ENABLED"):
        export_model(augmented, tmp_path / "augmented.ts", "torchscript", size=(96, 96))
