"""The configs of docs/model_zoo.md: each one from training to export, at tiny size."""

import functools

import pytest
from detectron2 import model_zoo as detectron2_zoo
from detectron2.config import instantiate
from detectron2.model_zoo.model_zoo import _ModelZooUrls
from lifecycle import from_training_to_export

from benchmarks.zoo import different_models
from microplastics import model_zoo
from microplastics.modeling.interface import WithoutMemory, build_shapes, mask_size

# A ResNet of the depth that the config has, a ViT and heads that train in a tenth of a second. From
# random weights they need batch statistics, and no stage that is frozen.
SMALL = (
    *("MODEL.WEIGHTS", "", "MODEL.BACKBONE.FREEZE_AT", 0, "MODEL.RESNETS.NORM", "BN"),
    *("MODEL.VIT.EMBED_DIM", 32, "MODEL.VIT.DEPTH", 3, "MODEL.VIT.NUM_HEADS", 2),
    *("MODEL.VIT.WINDOW_BLOCKS", "[0, 1]", "MODEL.VIT.WINDOW_SIZE", 4, "MODEL.VIT.IMAGE_SIZE", 96),
    *("MODEL.ROI_BOX_HEAD.CONV_DIM", 16, "MODEL.SEM_SEG_HEAD.CONVS_DIM", 32),
    *("MODEL.ROI_MASK_HEAD.FC_DIM", 32, "MODEL.POINT_HEAD.FC_DIM", 16),
    *("MODEL.RPN.POST_NMS_TOPK_TRAIN", 200, "MODEL.RPN.POST_NMS_TOPK_TEST", 100),
    *("SOLVER.MAX_EPOCHS", 0, "SOLVER.CHECKPOINT_PERIOD_EPOCHS", 0.0),
    *("TEST.EVAL_PERIOD_EPOCHS", 0.0, "SOLVER.EARLY_STOPPING.ENABLED", False, "SEED", 1),
)
# A ResNet-18 has one width.
NARROW = (
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", 16, "MODEL.RESNETS.RES2_OUT_CHANNELS", 16),
    *("MODEL.RESNETS.WIDTH_PER_GROUP", 8),
)
# Those with code of their own; the others differ in numbers alone.
FAST = ("r50_pointrend", "vitdet_b")
LOSSES = {
    "cascade": "loss_mask_stage2",
    "pointrend": "loss_mask_point",
    "semantic": "loss_sem_seg",
}
slow = functools.partial(pytest.param, marks=pytest.mark.slow)


@pytest.mark.parametrize("name", model_zoo.config_names())
def test_every_config_builds_at_full_size(name):
    cfg = model_zoo.get_config(name)
    model = build_shapes(cfg)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    sides = {"mask56": 56, "mask112": 112, "r50_pointrend": 224, "quick_pointrend": 112}
    expected = next((side for part, side in sides.items() if name.endswith(part)), 28)
    has_grid = not name.endswith(("semantic", "dynamic"))
    assert mask_size(cfg) == (expected if has_grid else None)


@pytest.mark.parametrize(
    "name", [name if name in FAST else slow(name) for name in different_models()]
)
def test_from_training_to_export(tiny_cfg, tmp_path, name):
    opts = SMALL if name.startswith("quick") else (*SMALL, *NARROW)
    if name == "r50_scratch":  # 32 groups of channels
        opts += ("MODEL.FPN.OUT_CHANNELS", 32)
    loss = LOSSES.get(name.partition("_")[2], "loss_mask")
    from_training_to_export(functools.partial(tiny_cfg, *opts, name=name), tmp_path, loss)


@pytest.mark.parametrize(
    "name, reference",
    [
        ("r101", "COCO-InstanceSegmentation/mask_rcnn_R_101_FPN_3x.yaml"),
        ("x101", "COCO-InstanceSegmentation/mask_rcnn_X_101_32x8d_FPN_3x.yaml"),
        ("r50_cascade", "Misc/cascade_mask_rcnn_R_50_FPN_3x.yaml"),
        ("r50_mask112", "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml"),
        ("r50_semantic", "COCO-PanopticSegmentation/panoptic_fpn_R_50_3x.yaml"),
    ],
)
def test_coco_weights_fit(name, reference):
    cfg, theirs = model_zoo.get_config(name), detectron2_zoo.get_config(reference)
    url = detectron2_zoo.get_checkpoint_url(reference)
    assert cfg.MODEL.WEIGHTS.replace("detectron2://", _ModelZooUrls.S3_PREFIX) == url
    theirs.MODEL.SEM_SEG_HEAD.NUM_CLASSES = cfg.MODEL.ROI_HEADS.NUM_CLASSES + 1
    theirs.MODEL.ROI_HEADS.NUM_CLASSES = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    assert_same_shapes(cfg, build_shapes(theirs))
    for key in ("PIXEL_MEAN", "PIXEL_STD"):
        assert cfg.MODEL[key] == theirs.MODEL[key]
    assert cfg.MODEL.RESNETS.STRIDE_IN_1X1 == theirs.MODEL.RESNETS.STRIDE_IN_1X1


def test_vitdets_coco_weights_fit():
    cfg = model_zoo.get_config("vitdet_b")
    theirs = detectron2_zoo.get_config("common/models/mask_rcnn_vitdet.py").model
    theirs.roi_heads.num_classes = 3
    with WithoutMemory():
        assert_same_shapes(cfg, instantiate(theirs))
    assert (cfg.MODEL.PIXEL_MEAN, cfg.INPUT.FORMAT) == (theirs.pixel_mean, theirs.input_format)


def assert_same_shapes(cfg, theirs):
    """The weights of another model have the names and shapes of a config's."""
    weights, model = dict(theirs.state_dict()), build_shapes(cfg)
    for name, module in model.named_modules():
        if hasattr(module, "adapt_weights"):
            module.adapt_weights(weights, f"{name}.")
    allowed = tuple(cfg.MODEL.WEIGHTS_ALLOW_MISMATCH)
    ours = {name: value.shape for name, value in model.state_dict().items()}
    assert ours == {n: v.shape for n, v in weights.items() if not n.startswith(allowed)}
