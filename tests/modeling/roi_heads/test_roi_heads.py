"""microplastics/modeling/roi_heads/roi_heads.py."""

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from torch import nn

from microplastics.engine import Trainer
from microplastics.modeling.postprocessing import postprocess
from microplastics.modeling.roi_heads.roi_heads import grow

SIZE = (64, 96)
TIGHT = [[30.0, 20.0, 50.0, 36.0]]


class PooledPixels(nn.Module):
    """A perfect mask head: what the pooler cuts from a picture of the mask is the answer."""

    def forward(self, pooled, instances):
        if self.training:
            self.seen = instances
            return {"loss_mask": pooled.sum()}
        instances[0].pred_masks = pooled
        return instances


def perfect_heads(cfg):
    heads = Trainer.build_model(cfg).roi_heads
    heads.mask_in_features, heads.mask_head = ["picture"], PooledPixels()
    del heads.mask_pooler.level_poolers[1:]
    heads.mask_pooler.level_poolers[0].spatial_scale = 1.0
    return heads


def test_boxes_grow_around_their_centres():
    assert grow(torch.tensor(TIGHT), 1.5).tolist() == [[25, 16, 55, 40]]


@pytest.mark.parametrize("name", ["ParticleROIHeads", "ParticleCascadeROIHeads"])
def test_a_mask_is_not_cut_where_the_box_is_too_tight(tiny_cfg, name):
    keys = ("MODEL.ROI_HEADS.NAME", name, "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True)
    keys += ("MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", 56)
    truth = np.zeros(SIZE, bool)
    truth[20:36, 20:60] = True  # 10 px beyond the box at either end
    features = {"picture": torch.from_numpy(truth)[None, None].float()}
    found = {}
    for scale in (1.0, 2.5):
        heads = perfect_heads(tiny_cfg(*keys, "MODEL.ROI_MASK_HEAD.BOX_SCALE", scale))
        instances = Instances(SIZE, pred_boxes=Boxes(torch.tensor(TIGHT)))
        instances.pred_classes = torch.tensor([0])
        (result,) = heads.eval().forward_with_given_boxes(features, [instances])
        assert result is instances and result.pred_boxes.tensor.tolist() == TIGHT
        found[scale] = postprocess(result, *SIZE).pred_masks.to_bitmasks()[0].numpy()
    assert found[1.0].sum() == 16 * 20
    assert np.count_nonzero(found[2.5] != truth) <= 0.05 * truth.sum()

    proposals = Instances(SIZE, proposal_boxes=Boxes(torch.tensor(TIGHT)))
    proposals.gt_classes = torch.tensor([1])
    loss = heads.train()._forward_mask(features, [proposals])["loss_mask"]
    assert loss > 16 * 20 / (50 * 40) * 56**2  # more than the tight box holds of the mask
    assert heads.mask_head.seen[0].proposal_boxes.tensor.tolist() == [[15, 8, 65, 48]]
    assert proposals.proposal_boxes.tensor.tolist() == TIGHT
