"""microplastics/modeling/roi_heads/mask_head.py."""

import numpy as np
import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import build_mask_head
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from support import user_error

from microplastics.engine import Trainer
from microplastics.modeling.interface import mask_size
from microplastics.modeling.roi_heads.mask_head import MaskIoUHead
from microplastics.structures.crop_masks import CropMasks

SHAPE = ShapeSpec(channels=16, height=14, width=14)
OWN = ("MODEL.ROI_MASK_HEAD.NAME", "ParticleMaskHead")
IOU = (
    *("MODEL.ROI_MASK_HEAD.IOU_HEAD.ENABLED", True),
    *("MODEL.ROI_MASK_HEAD.IOU_HEAD.CONV_DIM", 8, "MODEL.ROI_MASK_HEAD.IOU_HEAD.FC_DIM", 8),
)
BRANCHES = (*IOU, "MODEL.ROI_MASK_HEAD.BOUNDARY.ENABLED", True)


def build(cfg, seed=0):
    torch.manual_seed(seed)
    return build_mask_head(cfg, SHAPE)


def particles(count=3):
    """Proposals of 28 x 28 px, so that cells are pixels, on rectangles that reach out of them."""
    full = np.zeros((count, 60, 60), bool)
    boxes = torch.zeros(count, 4)
    for index in range(count):
        full[index, 8 + index : 20, 10 : 30 + 5 * index] = True
        boxes[index] = torch.tensor([6.0, 5.0, 34.0, 33.0])
    instances = Instances((60, 60), proposal_boxes=Boxes(boxes))
    instances.gt_classes = torch.arange(count) % 3
    instances.gt_masks = CropMasks.from_bitmasks(full)
    return instances, full


def losses(head, x, instances):
    with EventStorage() as storage:
        return head.train()(x, instances), dict(storage.latest())


def test_without_options_it_is_detectron2s_head(tiny_cfg):
    plain, own = build(tiny_cfg()), build(tiny_cfg(*OWN), seed=1)
    own.load_state_dict(plain.state_dict())
    x, (instances, _) = torch.randn(3, 16, 14, 14), particles()
    (expected, logged), (found, also_logged) = losses(plain, x, [instances]), losses(
        own, x, [instances]
    )
    assert (
        torch.equal(found["loss_mask"], expected["loss_mask"]) and found.keys() == expected.keys()
    )
    assert logged == also_logged and "mask_rcnn/accuracy" in logged
    results = []
    for head in (plain, own):
        each = Instances((60, 60), pred_classes=instances.gt_classes, scores=torch.rand(3))
        results.append(head.eval()(x, [each])[0].pred_masks)
    assert torch.equal(*results)


@pytest.mark.parametrize(
    ("pooler", "upsamplings", "side"),
    [(14, 0, 14), (14, 1, 28), (14, 2, 56), (14, 3, 112), (28, 2, 112)],
)
def test_sizes_of_masks(tiny_cfg, pooler, upsamplings, side):
    keys = ("MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", pooler)
    cfg = tiny_cfg(*OWN, *keys, *BRANCHES, "MODEL.ROI_MASK_HEAD.UPSAMPLINGS", upsamplings)
    assert mask_size(cfg) == side
    head = build_mask_head(cfg, ShapeSpec(channels=16, height=pooler, width=pooler))
    x, (instances, _) = torch.randn(3, 16, pooler, pooler), particles()
    parts, _ = losses(head, x, [instances])
    assert all(part.isfinite() for part in parts.values()) and len(parts) == 3
    each = Instances((60, 60), pred_classes=instances.gt_classes, scores=torch.rand(3))
    assert head.eval()(x, [each])[0].pred_masks.shape == (3, 1, side, side)


@pytest.mark.parametrize("agnostic", [False, True])
def test_a_plain_checkpoint_keeps_its_masks_and_scores_under_new_branches(tiny_cfg, agnostic):
    keys = ("MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", agnostic)
    plain, own = build(tiny_cfg(*keys)), build(tiny_cfg(*OWN, *keys, *BRANCHES), seed=1)
    missing, unexpected = own.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected and {name.split(".")[0] for name in missing} == {"boundary", "iou_head"}
    x = torch.randn(3, 16, 14, 14)
    assert torch.equal(own.layers(x), plain.layers(x))
    scores = torch.tensor([0.9, 0.8, 0.7])
    each = Instances((60, 60), pred_classes=torch.tensor([0, 1, 2]), scores=scores)
    (result,) = own.eval()(x, [each])
    torch.testing.assert_close(result.scores, scores, rtol=0.02, atol=0)


def test_no_foreground_gives_every_layer_a_gradient_of_zero(tiny_cfg):
    head = build(tiny_cfg(*OWN, *BRANCHES))
    parts, _ = losses(head, torch.zeros(0, 16, 14, 14), [particles()[0][:0]])
    assert parts.keys() == {"loss_mask", "loss_boundary", "loss_mask_iou"}
    sum(parts.values()).backward()
    assert not any(value.grad.any() for value in head.parameters())


def test_the_iou_head_learns_the_iou_with_the_whole_particle(tiny_cfg):
    head = build(tiny_cfg(*OWN, *IOU))
    logits = torch.full((3, 3, 28, 28), -5.0)
    logits[:, :, 2:16, 4:20] = 5.0
    (instances, full), found = particles(), np.zeros((60, 60), bool)
    found[5 + 2 : 5 + 16, 6 + 4 : 6 + 20] = True
    iou = [(found & each).sum() / (found | each).sum() for each in full]
    x = torch.randn(3, 16, 14, 14)
    head._masks_and_boundaries = lambda _: (logits, None)
    expected = np.mean(
        (head.iou_head(x, logits[:, :1].sigmoid())[[0, 1, 2], [0, 1, 2]].detach().numpy() - iou)
        ** 2
    )
    assert float(losses(head, x, [instances])[0]["loss_mask_iou"]) == pytest.approx(expected)
    each = Instances((60, 60), pred_classes=torch.tensor([0, 1, 2]), scores=torch.rand(3))
    before = each.scores
    with torch.no_grad():
        head.iou_head.predictor.bias[:] = torch.tensor([0.5, 7.0, -7.0])
        factors = head.iou_head(x, logits[:, :1].sigmoid())[0, 0], 1.0, 0.0
        (result,) = head.eval()(x, [each])
    torch.testing.assert_close(result.scores, before * torch.tensor(factors))


def test_the_iou_head_tells_good_masks_from_bad_ones():
    torch.manual_seed(0)
    head = MaskIoUHead(SHAPE, 1, 8, 16)
    x = torch.zeros(64, 16, 14, 14)
    x[:, 0, 4:10, 4:10] = 1
    masks = torch.zeros(64, 1, 28, 28)
    widths = torch.arange(64) % 12 + 1
    for mask, width in zip(masks, widths.tolist(), strict=True):
        mask[0, 8:20, 8 : 8 + width] = 1
    optimizer = torch.optim.Adam(head.parameters(), 3e-3)
    for _ in range(60):
        loss = (head(x, masks)[:, 0] - widths / 12).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 5e-3  # the variance is 0.08


FIVE = {
    "loss_rpn_cls": ("MODEL.RPN.LOSS_WEIGHT", 2.0),
    "loss_rpn_loc": ("MODEL.RPN.BBOX_REG_LOSS_WEIGHT", 2.0),
    "loss_cls": ("MODEL.ROI_BOX_HEAD.CLS_LOSS_WEIGHT", 2.0),
    "loss_box_reg": ("MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT", 2.0),
    "loss_mask": ("MODEL.ROI_MASK_HEAD.LOSS_WEIGHT", 2.0),
}


def training_losses(cfg):
    torch.manual_seed(0)
    model, (instances, _) = Trainer.build_model(cfg).train(), particles()
    targets = Instances((60, 60), gt_boxes=instances.gt_masks.get_bounding_boxes())
    targets.gt_classes, targets.gt_masks = instances.gt_classes, instances.gt_masks
    image = torch.rand(3, 60, 60, generator=torch.Generator().manual_seed(0)) * 255
    torch.manual_seed(1)
    with EventStorage():
        found = model([{"image": image, "instances": targets}])
    return {name: float(loss) for name, loss in found.items()}


def test_each_of_the_five_losses_has_a_weight(tiny_cfg):
    heads = ("MODEL.ROI_HEADS.NAME", "ParticleROIHeads")
    plain = training_losses(tiny_cfg(*heads))
    assert plain == training_losses(tiny_cfg()) and min(plain.values()) > 0
    for name, keys in FIVE.items():
        found = training_losses(tiny_cfg(*heads, *keys))
        # Detectron2's LOSS_WEIGHT of the RPN is a factor on both of its losses.
        doubled = {name, "loss_rpn_loc"} if name == "loss_rpn_cls" else {name}
        expected = {key: value * (1 + (key in doubled)) for key, value in plain.items()}
        assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("MODEL.ROI_MASK_HEAD.BOX_SCALE", 1.2, "ParticleROIHeads"),
        ("MODEL.ROI_MASK_HEAD.LOSS_WEIGHT", 2.0, "ParticleROIHeads"),
        ("MODEL.ROI_BOX_HEAD.CLS_LOSS_WEIGHT", 2.0, "ParticleROIHeads"),
        ("MODEL.ROI_MASK_HEAD.UPSAMPLINGS", 2, "ParticleMaskHead"),
        ("MODEL.ROI_MASK_HEAD.LOSSES", "[['dice', 1.0]]", "ParticleMaskHead"),
        ("MODEL.ROI_MASK_HEAD.BOUNDARY.ENABLED", True, "ParticleMaskHead"),
        ("MODEL.ROI_MASK_HEAD.IOU_HEAD.ENABLED", True, "ParticleMaskHead"),
    ],
)
def test_options_that_the_chosen_heads_ignore_are_refused(tiny_cfg, key, value, expected):
    with user_error("config_invalid", key, expected):
        Trainer.build_model(tiny_cfg(key, value))


@pytest.mark.parametrize(
    ("opts", "words"),
    [
        (("MODEL.ROI_MASK_HEAD.UPSAMPLINGS", 5), "UPSAMPLINGS is 5"),
        ((*IOU, "MODEL.ROI_MASK_HEAD.IOU_HEAD.LOSS_WEIGHT", 0.0), "IOU_HEAD.LOSS_WEIGHT is 0.0"),
        (
            ("MODEL.ROI_HEADS.NAME", "ParticleROIHeads", "MODEL.ROI_MASK_HEAD.BOX_SCALE", 0.5),
            "BOX_SCALE is 0.5",
        ),
        (("MODEL.ROI_MASK_HEAD.LOSSES", "[['focal', 1.0]]"), "focal"),
        (
            (
                "MODEL.ROI_MASK_HEAD.UPSAMPLINGS",
                0,
                "MODEL.ROI_MASK_HEAD.NUM_CONV",
                0,
                "MODEL.ROI_MASK_HEAD.CONV_DIM",
                8,
            ),
            "NUM_CONV",
        ),
    ],
)
def test_wrong_values(tiny_cfg, opts, words):
    with user_error("config_invalid", words):
        Trainer.build_model(tiny_cfg(*OWN, *opts))
