"""Heads and architectures that the project does not know, from training to export."""

import math

import pytest
import torch
from detectron2.engine import DefaultPredictor
from detectron2.modeling import ROI_MASK_HEAD_REGISTRY
from detectron2.modeling.roi_heads.mask_head import (
    MaskRCNNConvUpsampleHead,
    mask_rcnn_inference,
    mask_rcnn_loss,
)
from support import barred_image, user_error
from torch import nn

from microplastics.data.loader import check_datasets
from microplastics.engine import Trainer
from microplastics.engine.checkpoint import TrainingCheckpointer
from microplastics.export.export import export_model
from microplastics.inference.predictor import Predictor, to_particles
from microplastics.modeling.interface import class_dependent, mask_size, num_classes


@ROI_MASK_HEAD_REGISTRY.register()
class NestedMaskHead(nn.Module):
    """Two mask heads, one within the other, each with a loss of its own, and dropout."""

    def __init__(self, cfg, input_shape):
        super().__init__()
        self.coarse = MaskRCNNConvUpsampleHead(cfg, input_shape)
        self.fine = nn.Sequential(
            nn.ConvTranspose2d(input_shape.channels, 8, 4, stride=4),
            nn.Dropout(0.9),
            nn.Conv2d(8, cfg.MODEL.ROI_HEADS.NUM_CLASSES, 1),
        )

    def layers(self, features):
        return self.fine(features)

    def forward(self, features, instances):
        if self.training:
            coarse = self.coarse(features, instances)["loss_mask"]
            fine = mask_rcnn_loss(self.layers(features), instances)
            return {"loss_mask": fine, "loss_mask_coarse": coarse}
        mask_rcnn_inference(self.layers(features), instances)
        return instances


HEADS = {
    "cascade": (
        *("MODEL.ROI_HEADS.NAME", "CascadeROIHeads"),
        *("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "True"),
    ),
    "point_rend": (
        *("MODEL.ROI_HEADS.NAME", "PointRendROIHeads", "INPUT.MASK_FORMAT", "bitmask"),
        *("MODEL.ROI_MASK_HEAD.NAME", "PointRendMaskHead", "MODEL.ROI_MASK_HEAD.POOLER_TYPE", ""),
        *("MODEL.ROI_MASK_HEAD.POINT_HEAD_ON", "True", "MODEL.ROI_MASK_HEAD.FC_DIM", "32"),
        *("MODEL.POINT_HEAD.FC_DIM", "16", "MODEL.POINT_HEAD.NUM_CLASSES", "3"),
        *("MODEL.POINT_HEAD.SUBDIVISION_STEPS", "3"),
    ),
    "dynamic": (
        *("MODEL.BACKBONE.NAME", "build_backbone_with_image"),
        *("MODEL.ROI_HEADS.NAME", "ParticleROIHeads", "MODEL.ROI_MASK_HEAD.POOLER_TYPE", ""),
        *("MODEL.ROI_MASK_HEAD.NAME", "DynamicMaskHead"),
    ),
    "own": ("MODEL.ROI_MASK_HEAD.NAME", "NestedMaskHead"),
    "timm": (
        *("MODEL.BACKBONE.NAME", "build_timm_fpn_backbone"),
        *("MODEL.TIMM.NAME", "mobilenetv3_small_100"),
    ),
}
LOSSES = {
    "cascade": "loss_cls_stage2",
    "point_rend": "loss_mask_point",
    "dynamic": "loss_mask_dice",
    "own": "loss_mask_coarse",
    "timm": "loss_mask",
}
MASK_SIZES = {"cascade": 28, "point_rend": 56, "dynamic": None, "own": 56, "timm": 28}
SHORT = ("SOLVER.MAX_ITER", 2, "SOLVER.CHECKPOINT_PERIOD", 2, "TEST.EVAL_PERIOD", 2)
RETINA = (
    *("MODEL.META_ARCHITECTURE", "RetinaNet", "MODEL.RETINANET.NUM_CLASSES", "3"),
    *("MODEL.BACKBONE.NAME", "build_retinanet_resnet_fpn_backbone", "MODEL.MASK_ON", "False"),
    *("MODEL.RESNETS.OUT_FEATURES", "['res3', 'res4', 'res5']"),
    *("MODEL.FPN.IN_FEATURES", "['res3', 'res4', 'res5']", "MODEL.RETINANET.NUM_CONVS", "1"),
    *("SOLVER.BEST_CHECKPOINT.METRIC", "validation/loss_box_reg"),
)


def train(cfg, resume=False):
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume)
    metrics = trainer.train()
    return trainer, metrics


@pytest.mark.parametrize("head", HEADS)
def test_from_training_to_export(tiny_cfg, tmp_path, head):
    opts, watched = HEADS[head], f"validation/{LOSSES[head]}"
    with user_error("metric_unknown", "validation/loss_nope", watched):
        Trainer(tiny_cfg(*opts, "SOLVER.BEST_CHECKPOINT.METRIC", "validation/loss_nope"))
    opts += ("SOLVER.BEST_CHECKPOINT.METRIC", watched)
    cfg = tiny_cfg(*opts, *SHORT)
    assert mask_size(cfg) == MASK_SIZES[head]

    trainer, metrics = train(cfg)
    assert math.isfinite(metrics[watched])
    trainer.model.train()
    again = Trainer.test(trainer.cfg, trainer.model)["validation"]  # on no dropout, no state
    assert again["total_loss"] == metrics["validation/total_loss"]
    assert all(module.training for module in trainer.model.modules())

    trainer, _ = train(tiny_cfg(*opts, *SHORT, "SOLVER.MAX_ITER", 4), resume=True)
    assert (trainer.start_iter, trainer.finished_iters) == (2, 4)

    path, picture = f"{cfg.OUTPUT_DIR}/model_final.pth", barred_image(90, 120)
    predictor = Predictor.from_checkpoint(path, ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.01"))
    found, expected = predictor(picture), DefaultPredictor(predictor.cfg)(picture)["instances"]
    assert len(found) == len(expected) > 0
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-5)
    masks = found.pred_masks.to_bitmasks()
    assert (masks != expected.pred_masks).sum() <= 1e-3 * expected.pred_masks.sum() + 1
    (tile,) = predictor.predict_many([picture], dense=True)
    assert len(tile) > len(found) == cfg.TEST.DETECTIONS_PER_IMAGE
    half = Predictor.from_checkpoint(path, precision="bf16")(picture)
    torch.testing.assert_close(half.scores[:3], found.scores[:3], rtol=0, atol=0.02)

    check_fine_tuning(tiny_cfg, path, opts)
    if head == "dynamic":
        with user_error("export_unsupported", "DynamicMaskHead", "M x M"):
            export_model(predictor, tmp_path / "model.ts", "torchscript", size=(96, 96))
        return
    export_model(predictor, tmp_path / "model.ts", "torchscript", size=(96, 96))


def check_fine_tuning(tiny_cfg, path, opts):
    """The layers that depend on the number of classes, and no others, are left as they are."""
    other = ("MODEL.ROI_HEADS.NUM_CLASSES", 5, "MODEL.POINT_HEAD.NUM_CLASSES", 5)
    cfg = tiny_cfg(*opts, *other, "MODEL.WEIGHTS", path)
    model = Trainer.build_model(cfg)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    checkpointer = TrainingCheckpointer(model, cfg, ["a", "b", "c", "d", "e"])
    with user_error("checkpoint_mismatch", path):
        checkpointer.load_weights(new_classes=False)
    checkpointer.load_weights()
    trained = torch.load(path, weights_only=True)["model"]
    left = class_dependent(cfg)
    assert left and not any(name.startswith("backbone") for name in left)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name] if name in left else trained[name]), name


def test_a_model_that_is_not_an_rcnn(tiny_cfg, tmp_path):
    with user_error("config_invalid", "MODEL.MASK_ON", "RetinaNet"):
        Trainer.build_model(tiny_cfg(*RETINA, "MODEL.MASK_ON", True))
    cfg = tiny_cfg(*RETINA, *SHORT)
    assert num_classes(cfg) == 3 and mask_size(cfg) is None
    trainer, metrics = train(cfg)
    assert set(metrics) >= {"validation/loss_cls", "validation/loss_box_reg", "bbox/AP50"}
    normaliser = trainer.model.loss_normalizer
    again = Trainer.test(trainer.cfg, trainer.model)["validation"]
    assert again["total_loss"] == metrics["validation/total_loss"] > 0
    assert trainer.model.loss_normalizer == normaliser

    path, picture = f"{cfg.OUTPUT_DIR}/model_final.pth", barred_image(90, 120)
    predictor = Predictor.from_checkpoint(path, score_threshold=0.006)
    found, expected = predictor(picture), DefaultPredictor(predictor.cfg)(picture)["instances"]
    assert len(found) == len(expected) > 0 and not predictor.has_masks
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-5)
    with pytest.raises(AttributeError, match="pred_masks"):
        to_particles(found, "picture.png", predictor.class_names)
    with user_error("export_unsupported", "RetinaNet"):
        export_model(predictor, tmp_path / "model.ts", "torchscript")
    other = check_datasets(tiny_cfg(*RETINA), ("TEST",))
    assert num_classes(other) == 3


def test_point_rends_own_number_of_classes_must_fit(tiny_cfg):
    with user_error("config_invalid", "MODEL.POINT_HEAD.NUM_CLASSES", "80"):
        Trainer.build_model(tiny_cfg(*HEADS["point_rend"], "MODEL.POINT_HEAD.NUM_CLASSES", 80))
