"""Heads and architectures that the project does not know, from training to export."""

import functools

import pytest
import torch
from detectron2.engine import DefaultPredictor
from detectron2.modeling import ROI_MASK_HEAD_REGISTRY
from detectron2.modeling.roi_heads.mask_head import (
    MaskRCNNConvUpsampleHead,
    mask_rcnn_inference,
    mask_rcnn_loss,
)
from lifecycle import SHORT, from_training_to_export, train
from support import barred_image, user_error
from torch import nn

from microplastics.data.loader import check_datasets
from microplastics.engine import Trainer
from microplastics.export.export import export_model
from microplastics.inference.predictor import Predictor, to_particles
from microplastics.modeling.interface import mask_size, num_classes


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


# Keys, a loss, and the side of the masks. PointRend is among the configs of test_ladder.py.
HEADS = {
    "cascade": (
        (
            *("MODEL.ROI_HEADS.NAME", "CascadeROIHeads"),
            *("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True),
        ),
        "loss_cls_stage2",
        28,
    ),
    "own": (("MODEL.ROI_MASK_HEAD.NAME", "NestedMaskHead"), "loss_mask_coarse", 56),
    "grown": (
        (
            *("MODEL.ROI_HEADS.NAME", "ParticleROIHeads", "MODEL.ROI_MASK_HEAD.BOX_SCALE", "1.3"),
            *("MODEL.ROI_MASK_HEAD.NAME", "NestedMaskHead", "MODEL.ROI_MASK_HEAD.NORM", "BN"),
            *("MODEL.ROI_MASK_HEAD.POOLER_TYPE", "ROIPool", "MODEL.ROI_MASK_HEAD.NUM_CONV", "2"),
        ),
        "loss_mask_coarse",
        56,
    ),
    "options": (
        (
            *("MODEL.ROI_HEADS.NAME", "ParticleROIHeads", "MODEL.ROI_MASK_HEAD.BOX_SCALE", "1.2"),
            *("MODEL.ROI_MASK_HEAD.NAME", "ParticleMaskHead"),
            *("MODEL.ROI_MASK_HEAD.UPSAMPLINGS", "2", "MODEL.ROI_MASK_HEAD.LOSSES"),
            "[['gce', 1.0], ['sdt', 1.0], ['dice', 1], ['lovasz', 1]]",
            *("MODEL.ROI_MASK_HEAD.BOUNDARY.ENABLED", "True"),
            *("MODEL.ROI_MASK_HEAD.IOU_HEAD.ENABLED", "True"),
            *("MODEL.ROI_MASK_HEAD.IOU_HEAD.CONV_DIM", "8"),
            *("MODEL.ROI_MASK_HEAD.IOU_HEAD.FC_DIM", "8"),
        ),
        "loss_mask_iou",
        56,
    ),
    "dynamic": (
        (
            *("MODEL.BACKBONE.NAME", "build_backbone_with_image"),
            *("MODEL.ROI_HEADS.NAME", "ParticleROIHeads", "MODEL.ROI_MASK_HEAD.POOLER_TYPE", ""),
            *("MODEL.ROI_MASK_HEAD.NAME", "DynamicMaskHead"),
        ),
        "loss_mask_dice",
        None,
    ),
    "timm": (
        (
            *("MODEL.BACKBONE.NAME", "build_timm_fpn_backbone"),
            *("MODEL.TIMM.NAME", "mobilenetv3_small_100"),
        ),
        "loss_mask",
        28,
    ),
}
RETINA = (
    *("MODEL.META_ARCHITECTURE", "RetinaNet", "MODEL.RETINANET.NUM_CLASSES", "3"),
    *("MODEL.BACKBONE.NAME", "build_retinanet_resnet_fpn_backbone", "MODEL.MASK_ON", "False"),
    *("MODEL.RESNETS.OUT_FEATURES", "['res3', 'res4', 'res5']"),
    *("MODEL.FPN.IN_FEATURES", "['res3', 'res4', 'res5']", "MODEL.RETINANET.NUM_CONVS", "1"),
    *("SOLVER.BEST_CHECKPOINT.METRIC", "validation/loss_box_reg"),
)


@pytest.mark.parametrize(
    "head", ["own", *(pytest.param(h, marks=pytest.mark.slow) for h in HEADS if h != "own")]
)
def test_from_training_to_export(tiny_cfg, tmp_path, head):
    opts, loss, side = HEADS[head]
    with user_error("metric_unknown", "validation/loss_nope", f"validation/{loss}"):
        Trainer(tiny_cfg(*opts, "SOLVER.BEST_CHECKPOINT.METRIC", "validation/loss_nope"))
    assert mask_size(tiny_cfg(*opts)) == side
    from_training_to_export(functools.partial(tiny_cfg, *opts), tmp_path, loss)


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
    keys = ("MODEL.POINT_HEAD.NUM_CLASSES", 80)
    with user_error("config_invalid", keys[0], "80"):
        Trainer.build_model(tiny_cfg(*keys, name="quick_pointrend"))
