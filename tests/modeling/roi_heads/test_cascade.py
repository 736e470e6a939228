"""Mask heads at every stage of a cascade."""

import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances, ROIMasks
from detectron2.utils.events import EventStorage
from torch import nn
from torchvision.ops import box_iou

from microplastics.engine import Trainer
from microplastics.engine.checkpoint import load_into
from microplastics.modeling.roi_heads.cascade import StageMaskHeads
from microplastics.utils.system import seed_all

TRUTH = torch.tensor([[8.0, 8, 40, 30], [50, 20, 90, 80], [10, 60, 80, 70]])


@pytest.fixture
def cascade(tiny_cfg):
    """Builds the tiny heads of quick_cascade, their mask predictors at random."""

    def build(*opts):
        seed_all(0)
        heads = Trainer.build_model(tiny_cfg(*opts, name="quick_cascade")).roi_heads
        for name, parameter in heads.mask_head.named_parameters():
            if "predictor.weight" in name:
                nn.init.normal_(parameter, 0, 0.1)
        return heads

    return build


def features():
    generator = torch.Generator().manual_seed(0)
    sides = {"p2": 24, "p3": 12, "p4": 6, "p5": 3}
    return {n: torch.randn(1, 16, s, s, generator=generator) for n, s in sides.items()}


def truth():
    masks = torch.zeros(3, 96, 96, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, TRUTH.int().tolist(), strict=True):
        mask[y0:y1, x0 : (x0 + x1) // 2] = True
    fields = {"gt_boxes": Boxes(TRUTH), "gt_classes": torch.tensor([0, 1, 2])}
    return Instances((96, 96), **fields, gt_masks=BitMasks(masks))


def proposals():
    generator = torch.Generator().manual_seed(1)
    boxes = (TRUTH.repeat(5, 1) + 3 * torch.randn(15, 4, generator=generator)).clamp(0, 96)
    return Instances((96, 96), proposal_boxes=Boxes(boxes), objectness_logits=torch.zeros(15))


def detections():
    fields = {"pred_boxes": Boxes(TRUTH), "pred_classes": torch.tensor([0, 1, 2])}
    return [Instances((96, 96), **fields)]


def train(heads):
    seed_all(0)
    with EventStorage():
        return heads.train()(None, features(), [proposals()], [truth()])[1]


def test_each_stage_trains_its_own_head_on_its_own_boxes(cascade, monkeypatch):
    heads, seen = cascade(), []
    for head in heads.mask_head:
        forward = head.forward
        monkeypatch.setattr(head, "forward", lambda x, i, f=forward: seen.append(i[0]) or f(x, i))
    losses = train(heads)
    for stage in range(3):
        loss = losses[f"loss_mask_stage{stage}"]
        for number, head in enumerate(heads.mask_head):
            gradients = torch.autograd.grad(
                loss, list(head.parameters()), retain_graph=True, allow_unused=True
            )
            assert all((gradient is not None) == (number == stage) for gradient in gradients)
    # Cai and Vasconcelos 2019: a box is positive from IoU 0.5, 0.6 and 0.7 on, and its mask is that
    # of the particle with the highest IoU.
    for each, least in zip(seen, (0.5, 0.6, 0.7), strict=True):
        best, matched = box_iou(each.proposal_boxes.tensor, TRUTH).max(dim=1)
        assert len(each) and (best >= least).all()
        assert torch.equal(each.gt_masks.tensor, truth().gt_masks.tensor[matched])


def test_features_learn_from_the_mean_of_the_stages(cascade):
    heads = cascade().train()
    for head in heads.mask_head[1:]:
        head.load_state_dict(heads.mask_head[0].state_dict())
    labelled = heads.label_and_sample_proposals
    with EventStorage():
        (same,) = labelled([proposals()], [truth()])
        gradients = []
        for later in ([], [[same], [same]]):
            given = {name: each.requires_grad_() for name, each in features().items()}
            heads._later_stages = later
            losses = heads._forward_mask(given, [same])
            assert len(losses) == 1 + len(later)
            gradients.append(torch.autograd.grad(sum(losses.values()), given["p2"])[0])
    torch.testing.assert_close(*gradients)
    assert gradients[0].abs().max() > 0


def test_masks_are_the_mean_of_all_heads(cascade):
    heads = cascade().eval()
    with torch.no_grad():
        (found,) = heads.forward_with_given_boxes(features(), detections())
        expected, every = 0, heads.mask_head
        for head in every:
            heads.mask_head = head
            expected += heads.forward_with_given_boxes(features(), detections())[0].pred_masks / 3
    torch.testing.assert_close(found.pred_masks, expected)


def test_masks_outside_of_boxes_are_averaged_too():
    class Constant(nn.Module):
        def __init__(self, value):
            super().__init__()
            self.value = value

        def forward(self, features, instances):
            instances[0].pred_masks = ROIMasks(torch.full((3, 4, 4), self.value))
            return instances

    (found,) = StageMaskHeads([Constant(0.2), Constant(0.6)]).eval()({}, detections())
    assert isinstance(found.pred_masks, ROIMasks)
    torch.testing.assert_close(found.pred_masks.tensor, torch.full((3, 4, 4), 0.4))


def test_scores_that_mask_heads_change_are_averaged(cascade):
    head = "MODEL.ROI_MASK_HEAD"
    heads = cascade(f"{head}.NAME", "ParticleMaskHead", f"{head}.IOU_HEAD.ENABLED", True).eval()
    for stage, part in zip(heads.mask_head, (0.2, 0.5, 0.8), strict=True):
        nn.init.zeros_(stage.iou_head.predictor.weight)
        nn.init.constant_(stage.iou_head.predictor.bias, part)
    (given,) = detections()
    given.scores = torch.tensor([0.9, 0.6, 0.3])
    with torch.no_grad():
        (found,) = heads.forward_with_given_boxes(features(), [given])
    torch.testing.assert_close(found.scores, torch.tensor([0.45, 0.3, 0.15]))
    assert heads.mask_head.rescores


def test_without_the_key_it_is_detectron2s_cascade(cascade):
    off = ("MODEL.ROI_BOX_CASCADE_HEAD.MASK_AT_EVERY_STAGE", False)
    ours, theirs = cascade(*off), cascade(*off, "MODEL.ROI_HEADS.NAME", "CascadeROIHeads")
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert train(ours) == train(theirs)


def test_an_image_without_particles(cascade):
    heads, empty = cascade(), truth()[:0]
    with EventStorage():
        _, losses = heads.train()(None, features(), [proposals()], [empty])
    assert all(losses[f"loss_mask_stage{stage}"] == 0 for stage in range(3))


def test_one_mask_head_of_a_checkpoint_starts_all_stages(tiny_cfg):
    off = ("MODEL.ROI_BOX_CASCADE_HEAD.MASK_AT_EVERY_STAGE", False)
    other = ("MODEL.ROI_HEADS.NUM_CLASSES", 5)
    single = Trainer.build_model(tiny_cfg(*off, *other, name="quick_cascade")).state_dict()
    cfg = tiny_cfg(name="quick_cascade")
    model = Trainer.build_model(cfg)
    left = load_into(model, {"model": dict(single)}, "coco.pkl", fine_tune=cfg)
    assert {name for name in left if "mask_head" in name} == {
        f"roi_heads.mask_head.{stage}.predictor.{each}"
        for stage in range(3)
        for each in ("weight", "bias")
    }
    for head in model.roi_heads.mask_head:
        assert torch.equal(head.mask_fcn1.weight, single["roi_heads.mask_head.mask_fcn1.weight"])
