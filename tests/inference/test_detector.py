"""microplastics/inference/detector.py."""

import pytest
import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from detectron2.modeling import ROI_HEADS_REGISTRY, GeneralizedRCNNWithTTA, build_model
from detectron2.modeling.roi_heads import CascadeROIHeads
from detectron2.structures import Boxes, ROIMasks
from support import user_error
from torch import nn

from microplastics.config import get_cfg
from microplastics.inference.detector import Detector, inference_copy
from microplastics.modeling.nms import ChosenNMS
from microplastics.modeling.test_time_augmentation import AugmentedRCNN, TestTimeAugmentation


@pytest.fixture(scope="module")
def build():
    """Builds a small seeded Mask R-CNN whose norms have statistics of their own."""

    def make(*opts):
        cfg = get_cfg()
        cfg.merge_from_list(
            [
                *("MODEL.DEVICE", "cpu", "MODEL.MASK_ON", True),
                *("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone"),
                *("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64),
                *("MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"]),
                *("MODEL.FPN.IN_FEATURES", ["res2", "res3", "res4", "res5"]),
                *("MODEL.FPN.OUT_CHANNELS", 16),
                *("MODEL.ANCHOR_GENERATOR.SIZES", [[8], [16], [32], [64], [128]]),
                *("MODEL.RPN.IN_FEATURES", ["p2", "p3", "p4", "p5", "p6"]),
                *("MODEL.RPN.PRE_NMS_TOPK_TEST", 100, "MODEL.RPN.POST_NMS_TOPK_TEST", 60),
                *("MODEL.ROI_HEADS.NAME", "StandardROIHeads"),
                *("MODEL.ROI_HEADS.IN_FEATURES", ["p2", "p3", "p4", "p5"]),
                *("MODEL.ROI_HEADS.NUM_CLASSES", 3),
                *("MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead", "MODEL.ROI_BOX_HEAD.NUM_FC", 1),
                *("MODEL.ROI_BOX_HEAD.FC_DIM", 32, "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 7),
                *("MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead"),
                *("MODEL.ROI_MASK_HEAD.NUM_CONV", 1, "MODEL.ROI_MASK_HEAD.CONV_DIM", 16),
                *opts,
            ]
        )
        torch.manual_seed(1)
        model = build_model(cfg).eval()
        for module in model.modules():
            if isinstance(module, (FrozenBatchNorm2d, nn.BatchNorm2d)):
                with torch.no_grad():
                    module.weight.uniform_(0.5, 1.5)
                    module.bias.uniform_(-0.5, 0.5)
                    module.running_mean.normal_()
                    module.running_var.uniform_(0.5, 20)
        return model

    return make


def picture(height=96, width=128):
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8)


@pytest.mark.parametrize("norm", ["FrozenBN", "BN"])
def test_norms_are_folded_into_the_convolutions_of_a_copy(build, norm):
    model = build("MODEL.RESNETS.NORM", norm)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fast = inference_copy(model)
    norms = [m for m in fast.modules() if isinstance(m, (FrozenBatchNorm2d, nn.BatchNorm2d))]
    assert norms == [] and not any(p.requires_grad for p in fast.parameters())
    image = torch.randn(1, 3, 96, 128)
    with torch.no_grad():
        theirs, ours = model.backbone(image), fast.backbone(image)
    for name, feature in theirs.items():
        scale = feature.abs().max()
        assert (ours[name] - feature).abs().max() < 1e-5 * scale
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_a_norm_without_weights_and_a_convolution_with_bias_fold_too():
    conv = Conv2d(3, 4, 3, bias=True, norm=nn.BatchNorm2d(4, affine=False))
    conv.norm.running_mean.normal_()
    conv.norm.running_var.uniform_(0.5, 2)
    image = torch.randn(1, 3, 8, 8)
    expected = conv.eval()(image)
    torch.testing.assert_close(inference_copy(conv)(image), expected, rtol=1e-5, atol=1e-6)


def test_other_norms_and_foreign_convolutions_stay():
    class Own(Conv2d):
        def forward(self, x):
            return self.norm(super(Conv2d, self).forward(x)) * 2

    own = Own(3, 4, 1, norm=nn.BatchNorm2d(4))
    grouped = Conv2d(4, 4, 1, norm=nn.GroupNorm(2, 4))
    fast = inference_copy(nn.Sequential(own, grouped).eval())
    assert isinstance(fast[0].norm, nn.BatchNorm2d) and isinstance(fast[1].norm, nn.GroupNorm)


@pytest.mark.parametrize("norm", ["FrozenBN", "GN"])
def test_bf16_keeps_scores_and_boxes_in_fp32(build, norm):
    model = build("MODEL.RESNETS.NORM", norm)
    fast = inference_copy(model, "bf16")
    assert fast.backbone.fpn_output2.weight.dtype == torch.bfloat16
    assert fast.roi_heads.box_predictor.cls_score.weight.dtype == torch.float32
    assert fast.proposal_generator.rpn_head.anchor_deltas.weight.dtype == torch.float32
    image = picture()
    (found,) = Detector(fast, [0.05] * 3)([image], [(96, 128)])
    assert len(found)
    for value in (found.pred_boxes.tensor, found.scores, found.pred_masks):
        assert value.dtype == torch.float32
    with torch.no_grad():
        theirs, ours = (m.backbone(image[None].float()) for m in (model, fast))
    for name, feature in theirs.items():
        difference = (ours[name].float() - feature).abs().mean()
        assert 0 < difference < 0.03 * feature.abs().mean()


@ROI_HEADS_REGISTRY.register()
class CascadeWithChosenNMS(ChosenNMS, CascadeROIHeads):
    """Cascade R-CNN's stages, and the NMS of MODEL.ROI_HEADS.NMS."""


HEADS = {
    "standard": (),
    "cascade": (
        *("MODEL.ROI_HEADS.NAME", "CascadeROIHeads"),
        *("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True),
    ),
    "one level": (
        *("MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.DEPTH", 50),
        *("MODEL.RESNETS.RES2_OUT_CHANNELS", 8, "MODEL.RESNETS.STEM_OUT_CHANNELS", 8),
        *("MODEL.RESNETS.WIDTH_PER_GROUP", 4, "MODEL.RESNETS.OUT_FEATURES", ["res4"]),
        *("MODEL.RPN.IN_FEATURES", ["res4"], "MODEL.ANCHOR_GENERATOR.SIZES", [[16, 32, 64]]),
        *("MODEL.ROI_HEADS.NAME", "Res5ROIHeads", "MODEL.ROI_HEADS.IN_FEATURES", ["res4"]),
        *("MODEL.ROI_MASK_HEAD.NUM_CONV", 0),
    ),
    **{
        kind: (
            *("MODEL.ROI_HEADS.NAME", "ParticleROIHeads", "MODEL.ROI_HEADS.NMS", kind),
            *("MODEL.ROI_HEADS.MASK_NMS.THRESH", 0.3),
        )
        for kind in ("mask", "soft_linear", "soft_gaussian")
    },
    "cascade, soft": (
        *("MODEL.ROI_HEADS.NAME", "CascadeWithChosenNMS", "MODEL.ROI_HEADS.NMS", "soft_gaussian"),
        *("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True),
    ),
    "retina": (
        *("MODEL.META_ARCHITECTURE", "RetinaNet", "MODEL.RETINANET.NUM_CLASSES", 3),
        *("MODEL.BACKBONE.NAME", "build_retinanet_resnet_fpn_backbone"),
        *("MODEL.RETINANET.IN_FEATURES", ["p3", "p4", "p5"], "MODEL.RETINANET.NUM_CONVS", 1),
        *("MODEL.RESNETS.OUT_FEATURES", ["res3", "res4", "res5"]),
        *("MODEL.FPN.IN_FEATURES", ["res3", "res4", "res5"]),
        *("MODEL.ANCHOR_GENERATOR.SIZES", [[8], [16], [32]]),
        *("MODEL.RETINANET.SCORE_THRESH_TEST", 0.0),
    ),
}


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("threshold", [0.05, 0.35, 0.999])
def test_cutting_before_the_masks_is_cutting_after(build, heads, threshold):
    model = build(*HEADS[heads])
    inputs = [{"image": picture(96, 128), "height": 96, "width": 128}]
    with torch.no_grad():
        if heads == "retina":
            (expected,) = (output["instances"] for output in model(inputs))
        else:
            (expected,) = model.inference(inputs, do_postprocess=False)
    expected = expected[expected.scores > threshold]
    detector = Detector(model, [threshold] * 3)
    (found,) = detector([inputs[0]["image"]], [(96, 128)])
    assert detector.staged == (heads != "retina")
    assert torch.equal(found.scores, expected.scores)
    assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)
    assert torch.equal(found.pred_classes, expected.pred_classes)
    if heads != "retina":
        torch.testing.assert_close(found.pred_masks, expected.pred_masks, rtol=1e-4, atol=1e-6)


def test_each_class_has_its_threshold(build):
    model = build()
    image = picture()
    (all_found,) = Detector(model, [0.0] * 3)([image], [(96, 128)])
    thresholds = [0.0, float(all_found.scores.median()), 1.0]
    (found,) = Detector(model, thresholds)([image], [(96, 128)])
    keep = all_found.scores > torch.tensor(thresholds)[all_found.pred_classes]
    assert 0 < keep.sum() < len(all_found)
    assert torch.equal(found.scores, all_found.scores[keep])


@pytest.mark.parametrize("heads", ["standard", "cascade", "one level"])
def test_dense_lifts_the_caps_and_restores_them(build, heads):
    caps = (*("TEST.DETECTIONS_PER_IMAGE", 5), *("MODEL.RPN.POST_NMS_TOPK_TEST", 10))
    caps += ("MODEL.RPN.PRE_NMS_TOPK_TEST", 20, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0)
    model = build(*HEADS[heads], *caps)
    detector = Detector(model, [0.0] * 3)
    images = [picture(96, 128), picture(96, 128)]
    capped = detector(images, [(96, 128)] * 2)
    dense = detector(images, [(96, 128)] * 2, dense=True)
    again = detector(images, [(96, 128)] * 2)
    for first, more, last in zip(capped, dense, again, strict=True):
        assert len(first) == 5 and len(more) > 30
        assert len(more.pred_masks) == len(more)
        assert torch.equal(first.scores, last.scores)


def test_a_cascade_looks_at_all_proposals_of_crowded_tiles_only(build):
    caps = ("MODEL.RPN.POST_NMS_TOPK_TEST", 8, "MODEL.RPN.PRE_NMS_TOPK_TEST", 16)
    model, images = build(*HEADS["cascade"], *caps), [picture(96, 128), picture(96, 128)]
    looked_at = []
    model.roi_heads.box_head[0].register_forward_hook(
        lambda _module, _inputs, out: looked_at.append(len(out))
    )
    for threshold, expected in ((1.0, [12, 4]), (0.0, [12, 4, 96, 32, 128])):
        looked_at.clear()
        detector = Detector(model, [threshold] * 3, tile_topk=64)
        found = detector(images, [(96, 128)] * 2, dense=True)
        assert looked_at == expected
        assert all(map(len, found)) == (threshold == 0)
    plain = Detector(model, [0.35] * 3)(images, [(96, 128)] * 2)
    best = max(float(each.scores.max()) for each in plain)
    detector = Detector(model, [best - 1e-6] * 3)
    (few,), (dense,) = (detector(images[:1], [(96, 128)], dense) for dense in (False, True))
    assert torch.equal(few.scores, dense.scores)


@pytest.mark.parametrize("heads", ["standard", "cascade"])
def test_a_crowded_tile_changes_none_of_its_batch(build, heads):
    caps = ("MODEL.RPN.POST_NMS_TOPK_TEST", 8, "MODEL.RPN.PRE_NMS_TOPK_TEST", 16)
    model = build(*HEADS[heads], *caps)
    images, sizes = [picture(96, 128), picture(96, 128) * 0, picture(96, 128) / 2], [(96, 128)] * 3
    found = Detector(model, [0.0] * 3, tile_topk=64)(images, sizes, dense=True)
    least = min(float(each.scores.max()) for each in found)
    for threshold, empty in ((0.3, 0), (least, 1)):
        detector = Detector(model, [threshold] * 3, tile_topk=64)
        together = detector(images, sizes, dense=True)
        for image, each in zip(images, together, strict=True):
            expected = detector([image, image], sizes[:2], dense=True)[0]
            torch.testing.assert_close(each.scores, expected.scores)
        assert [len(each) for each in together].count(0) == empty


def test_dense_looks_at_proposals_while_they_help(build):
    """All that TILE_TOPK proposals give; fewer in an image whose first ones give nothing."""
    caps = ("MODEL.RPN.POST_NMS_TOPK_TEST", 8, "MODEL.RPN.PRE_NMS_TOPK_TEST", 16)
    plenty = ("MODEL.RPN.POST_NMS_TOPK_TEST", 128, "MODEL.RPN.PRE_NMS_TOPK_TEST", 128)
    lifted = ("TEST.DETECTIONS_PER_IMAGE", -1, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.3)
    image, model = picture(), build(*caps, *lifted)
    detector = Detector(model, [0.3] * 3, tile_topk=128)
    (found,) = detector([image], [(96, 128)], dense=True)
    (expected,) = Detector(build(*plenty, *lifted), [0.3] * 3)([image], [(96, 128)])
    assert len(found) == len(expected) > 100
    torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor)
    torch.testing.assert_close(found.pred_masks, expected.pred_masks, rtol=1e-4, atol=1e-6)
    assert detector.windows_cut_short == 1
    looked_at = []
    hook = model.roi_heads.box_head.register_forward_hook(
        lambda _module, _inputs, out: looked_at.append(len(out))
    )
    strict = Detector(model, [1.0] * 3, tile_topk=128)
    (found,) = strict([image], [(96, 128)], dense=True)
    hook.remove()
    assert len(found) == 0 and sum(looked_at) == 8 and strict.windows_cut_short == 0
    assert found.pred_masks.shape[0] == 0


@pytest.mark.parametrize("kind", ["box", "mask", "soft_linear", "soft_gaussian"])
def test_each_nms_on_dense_tiles_is_the_models_own_without_caps(build, kind):
    few = ("MODEL.RPN.POST_NMS_TOPK_TEST", 8, "MODEL.RPN.PRE_NMS_TOPK_TEST", 16)
    many = ("MODEL.RPN.POST_NMS_TOPK_TEST", 128, "MODEL.RPN.PRE_NMS_TOPK_TEST", 128)
    opts = (
        *("MODEL.ROI_HEADS.NAME", "ParticleROIHeads", "MODEL.ROI_HEADS.NMS", kind),
        *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.3, "MODEL.ROI_HEADS.MASK_NMS.THRESH", 0.3),
    )
    no_cap = ("TEST.DETECTIONS_PER_IMAGE", -1, "MODEL.ROI_HEADS.MASK_NMS.CANDIDATES", 10_000)
    image = picture()
    detector = Detector(build(*opts, *few), [0.3] * 3, tile_topk=128)
    (found,) = detector([image], [(96, 128)], dense=True)
    with torch.no_grad():
        whole = build(*opts, *many, *no_cap)
        (expected,) = whole.inference([{"image": image}], do_postprocess=False)
    assert len(found) == len(expected) > 20
    torch.testing.assert_close(found.scores, expected.scores)
    torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor)
    torch.testing.assert_close(found.pred_masks, expected.pred_masks, rtol=1e-4, atol=1e-6)


def augmentation(model, *opts):
    cfg = get_cfg()
    cfg.merge_from_list(["INPUT.MIN_SIZE_TEST", 96, *opts])
    return TestTimeAugmentation(cfg, model)


def equal(found, expected, atol=1e-4):
    assert len(found) == len(expected) > 5
    for name in ("scores", "pred_masks"):
        torch.testing.assert_close(found.get(name), expected.get(name), rtol=0, atol=atol)
    boxes, others = found.pred_boxes.tensor, expected.pred_boxes.tensor
    torch.testing.assert_close(boxes, others, rtol=0, atol=100 * atol)
    assert torch.equal(found.pred_classes, expected.pred_classes)


MASK_IOU = (
    *("MODEL.ROI_MASK_HEAD.NAME", "ParticleMaskHead"),
    *("MODEL.ROI_MASK_HEAD.IOU_HEAD.ENABLED", True, "MODEL.ROI_MASK_HEAD.IOU_HEAD.FC_DIM", 16),
)
IDENTITY = ("TEST.AUG.MIN_SIZES", (96,), "TEST.AUG.FLIP", False)


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("heads", ["cascade", "one level", "mask", "soft_gaussian", "mask IoU"])
def test_the_image_itself_as_the_only_view_changes_nothing(build, heads, dense):
    few = ("MODEL.RPN.POST_NMS_TOPK_TEST", 20, "TEST.DETECTIONS_PER_IMAGE", 10)
    model = build(*HEADS.get(heads, MASK_IOU), *few)
    image, thresholds = picture(), [0.2] * 3
    if heads == "mask IoU":  # some of its scores fall below the threshold
        nn.init.normal_(model.roi_heads.mask_head.iou_head.predictor.weight)
    (expected,) = Detector(model, thresholds, tile_topk=30)([image], [(96, 128)], dense)
    views = augmentation(model, *IDENTITY)
    detector = Detector(model, thresholds, tile_topk=30, augmentation=views)
    (found,) = detector([image], [(96, 128)], dense, scaled=dense)
    equal(found, expected, 1e-6)
    assert detector.windows_cut_short <= 1


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("heads", ["standard", "mask", "soft_gaussian"])
def test_a_flipped_image_has_flipped_results(build, heads, axis):
    model = build(*HEADS[heads], "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.3)
    flips = ("TEST.AUG.FLIP", True, "TEST.AUG.VERTICAL_FLIP", True)
    views = augmentation(model, *flips, "TEST.AUG.MIN_SIZES", (96,))
    assert len(views.views((96, 128))) == 4
    detector, image = Detector(model, [0.3] * 3, augmentation=views), picture()
    (found,) = detector([image], [(96, 128)])
    (mirrored,) = detector([image.flip(axis)], [(96, 128)])
    boxes = found.pred_boxes.tensor.clone()
    low, high = (0, 2) if axis == 2 else (1, 3)
    boxes[:, [low, high]] = image.shape[axis] - boxes[:, [high, low]]
    found.pred_boxes, found.pred_masks = Boxes(boxes), found.pred_masks.flip(axis + 1)
    # Sums of views come in another order, and so may detections of one score.
    equal(found, mirrored)


def test_views_are_merged_as_detectron2_merges_them(build):
    model = build("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.2)
    sizes = ("TEST.AUG.MIN_SIZES", (64, 120), "TEST.AUG.MAX_SIZE", 150)
    cfg = get_cfg()
    cfg.merge_from_list(["MODEL.MASK_ON", True, "MODEL.ROI_HEADS.NUM_CLASSES", 3, *sizes])
    theirs, image = GeneralizedRCNNWithTTA(cfg, model, batch_size=1), picture()
    with torch.no_grad():
        (expected,) = theirs([{"image": image, "height": 96, "width": 128}])
        (ours,) = AugmentedRCNN(cfg, model)([{"image": image, "height": 96, "width": 128}])
    found, expected = ours["instances"], expected["instances"]
    found.pred_masks = found.pred_masks.to_bitmasks()
    equal(found, expected, 1e-5)


class MasksInOwnBoxes(ROIMasks):
    def __init__(self, tensor, boxes, image_size):
        super().__init__(tensor)
        self.boxes, self.image_size = boxes, image_size

    def __getitem__(self, item):
        return type(self)(self.tensor[item], self.boxes[item], self.image_size)


@pytest.mark.parametrize("kind", [MasksInOwnBoxes, ROIMasks])
def test_views_of_masks_that_know_where_they_lie(build, kind, monkeypatch):
    model, image = build("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.35), picture()
    views = augmentation(model, "TEST.AUG.MIN_SIZES", (64, 120))
    detector = Detector(model, [0.35] * 3, augmentation=views)
    (expected,) = detector([image], [(96, 128)])
    plain = model.roi_heads.forward_with_given_boxes

    def in_own_boxes(features, found):
        results = plain(features, found)
        for each in results:
            place = (each.pred_boxes.tensor, each.image_size) if kind is MasksInOwnBoxes else ()
            each.pred_masks = kind(each.pred_masks[:, 0], *place)
        return results

    monkeypatch.setattr(model.roi_heads, "forward_with_given_boxes", in_own_boxes)
    monkeypatch.setattr("microplastics.inference.detector._MASK_CHUNK", 10**6)
    if kind is ROIMasks:
        with user_error("config_invalid", "ROIMasks", "TEST.AUG.ENABLED"):
            detector([image], [(96, 128)])
        return
    (found,) = detector([image], [(96, 128)])
    masks, boxes = expected.pred_masks[:, 0], expected.pred_boxes.tensor
    torch.testing.assert_close(found.pred_masks.tensor, masks, rtol=1e-4, atol=1e-6)
    assert found.pred_masks.image_size == (96, 128) and len(found) > 5
    torch.testing.assert_close(found.pred_masks.boxes, boxes, rtol=0, atol=1e-4)


def test_views_of_a_tile_are_relative_to_it(build):
    views = augmentation(build(), "TEST.AUG.MIN_SIZES", (96, 192), "TEST.AUG.FLIP", False)
    views = [view.transforms[0] for view in views.views((500, 400), scaled=True)]
    assert [(each.new_h, each.new_w) for each in views] == [(500, 400), (1000, 800)]
    with user_error("config_invalid", "INPUT.MIN_SIZE_TEST"):
        augmentation(build(), "INPUT.MIN_SIZE_TEST", 0).views((500, 400), scaled=True)
    with user_error("config_invalid", "TEST.AUG.MIN_SIZES"):
        augmentation(build(), "TEST.AUG.MIN_SIZES", ())
    with user_error("config_invalid", "TEST.AUG.ENABLED", "GeneralizedRCNN"):
        augmentation(build(*HEADS["retina"]))


def test_dense_without_stages_keeps_the_models_own_caps_and_says_so(build, caplog):
    model = build(*HEADS["retina"], "TEST.DETECTIONS_PER_IMAGE", 5)
    detector = Detector(model, [0.0] * 3, detections_per_image=5)
    (found,) = detector([picture()], [(96, 128)], dense=True)
    assert len(found) == 5 and detector.windows_cut_short == 1
    assert "A tile may hold more particles" in caplog.text
