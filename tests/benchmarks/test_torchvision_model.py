"""torchvision's Mask R-CNN computes what Detectron2's does from the same weights."""

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model
from support import ROOT

from benchmarks.torchvision_model import fits, torchvision_model
from microplastics.config import load_config


@pytest.mark.parametrize("stride_in_1x1", [True, False])
def test_every_part_gives_the_same(stride_in_1x1):
    opts = ("MODEL.DEVICE", "cpu", "MODEL.RESNETS.STRIDE_IN_1X1", stride_in_1x1)
    cfg = load_config(f"{ROOT}/configs/microplastics_r50.yaml", opts)
    assert fits(cfg)
    torch.manual_seed(1)
    ours = build_model(cfg).eval()
    for module in ours.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(1, 3)
    theirs = torchvision_model(cfg, ours)
    image = torch.randint(0, 256, (3, 96, 128)).float()
    with torch.inference_mode():
        batch = ours.preprocess_image([{"image": image}])
        resized = theirs.transform.normalize(image / 255)
        torch.testing.assert_close(resized, batch.tensor[0], rtol=1e-4, atol=1e-4)
        features, their_features = ours.backbone(batch.tensor), theirs.backbone(batch.tensor)
        assert_same(list(features.values())[:5], list(their_features.values()))
        levels = list(features.values())
        logits, deltas = ours.proposal_generator.rpn_head(levels)
        assert_same([*logits, *deltas], sum(theirs.rpn.head(levels), []))
        pooled = torch.randn(4, 256, 7, 7)
        scores, boxes = ours.roi_heads.box_predictor(ours.roi_heads.box_head(pooled))
        their_scores, their_boxes = theirs.roi_heads.box_predictor(
            theirs.roi_heads.box_head(pooled)
        )
        assert_same([scores.roll(1, dims=1), boxes], [their_scores, their_boxes[:, 4:]])
        pooled = torch.randn(2, 256, 14, 14)
        masks = ours.roi_heads.mask_head.layers(pooled)
        their_masks = theirs.roi_heads.mask_predictor(theirs.roi_heads.mask_head(pooled))
        assert_same([masks], [their_masks[:, 1:]])


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-4 * own.abs().max().item())


def test_other_architectures_do_not_fit():
    assert not fits(load_config(f"{ROOT}/configs/microplastics_quick.yaml"))
