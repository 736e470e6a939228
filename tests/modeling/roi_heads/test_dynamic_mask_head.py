"""microplastics/modeling/roi_heads/dynamic_mask_head.py."""

import cv2
import numpy as np
import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.layers.mask_ops import _do_paste_mask
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from support import user_error
from torch import nn
from torch.nn import functional as F

from microplastics.engine import Trainer
from microplastics.modeling.roi_heads.dynamic_mask_head import (
    DynamicFCN,
    DynamicMaskHead,
    MaskBranch,
    coarse_targets,
    mask_losses,
    relative_places,
    windows_around,
)
from microplastics.structures.crop_masks import CropMasks, as_crop_masks

SHAPES = {
    "p2": ShapeSpec(channels=8, stride=4),
    "p3": ShapeSpec(channels=8, stride=8),
    "image": ShapeSpec(channels=3, stride=1),
}


def head_of(stride=2, shapes=SHAPES, **changes):
    torch.manual_seed(0)
    levels = [name for name in shapes if name != "image"]
    settings = {
        "branch": MaskBranch(shapes, stride=stride, conv_dim=8, channels=4),
        "pooler": ROIPooler(7, [1 / shapes[name].stride for name in levels], 1, "ROIAlignV2"),
        "pooled_in": levels,
        **{"conv_dims": [8], "conv_norm": "", "fc_dim": 16, "num_layers": 3},
        **{"stride": stride, "channels": 4, "window": 1.5, "margin": 4.0},
        **{"max_instances": 8, "dice_weight": 1.0},
    }
    return DynamicMaskHead(shapes, **{**settings, **changes})


def naive(x, parameters, widths):
    """One particle: (C, H, W) through F.conv2d, layer by layer."""
    start, x = 0, x[None]
    for layer, (rows, columns) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
        weight = parameters[start : start + rows * columns].view(rows, columns).T
        start += rows * columns
        bias = parameters[start : start + columns]
        start += columns
        x = F.conv2d(x.relu() if layer else x, weight[:, :, None, None], bias)
    assert start == len(parameters)
    return x[0]


def test_the_network_equals_a_convolution_for_each_particle():
    widths = [6, 4, 4, 1]
    network, x = DynamicFCN(widths), torch.randn(3, 10, 6)
    parameters = torch.randn(3, sum(network.splits))
    wanted = [
        naive(x[i].T[:, :, None], parameters[i], widths)[:, :, 0].T for i in range(len(parameters))
    ]
    torch.testing.assert_close(network(x, parameters), torch.stack(wanted), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_windows_hold_what_the_network_draws_on_the_whole_image(stride):
    head = head_of(stride, SHAPES)
    shared = torch.randn(2, 4, 64 // stride, 96 // stride)
    boxes = [
        torch.tensor([[3.0, 5, 40, 9], [60, 20, 95, 64], [10, 10, 11, 60]]),
        torch.tensor([[0.0, 0, 96, 64], [90.5, 60.5, 96, 64]]),
    ]
    parameters, sketch = torch.randn(5, sum(head.network.splits)), torch.randn(5, 1, 6, 6)
    windows = [windows_around(each, (64, 96), stride, 1.5, 4) for each in boxes]
    drawn = head._draw(shared, parameters, sketch, boxes, windows)
    y, x = torch.meshgrid(*[torch.arange(n) for n in shared.shape[-2:]], indexing="ij")
    wanted, number = [], 0
    for image, of_image, around in zip(shared, boxes, windows, strict=True):
        for box, (x0, y0, x1, y1) in zip(of_image, around.tolist(), strict=True):
            center, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]).clamp(min=stride) / 2
            places = torch.stack([(x + 0.5) * stride - center[0], (y + 0.5) * stride - center[1]])
            around_center = torch.cat([center - half, center + half])[None] / stride
            hint, _ = _do_paste_mask(sketch[number, None], around_center, *x.shape, False)
            values = torch.cat([image, places / half[:, None, None], hint])
            full = (naive(values, parameters[number], [7, 4, 4, 1]) + hint)[0]
            wanted.append(full[y0:y1, x0:x1].reshape(-1))
            number += 1
    torch.testing.assert_close(drawn, torch.cat(wanted), rtol=1e-4, atol=1e-4)


def test_places_are_relative_to_the_box():
    boxes = torch.tensor([[10.0, 20, 30, 28], [4, 4, 4.5, 6]])
    x, y = torch.tensor([[4, 9], [1, 2]]), torch.tensor([[9, 11], [2, 2]])
    places = relative_places(x, y, boxes, 2)
    wanted = [[[-1.1, -1.25], [-0.1, -0.25]], [[-1.25, 0], [0.75, 0]]]
    torch.testing.assert_close(places, torch.tensor(wanted))


def test_windows_are_boxes_grown_and_cut_at_the_image():
    boxes = torch.tensor([[20.0, 20, 60, 30], [0, 0, 5, 5], [95, 63, 96, 64], [99, 70, 120, 80]])
    found = windows_around(boxes, (64, 96), 2, 1.5, 4).tolist()
    assert found[:3] == [[5, 8, 35, 17], [0, 0, 5, 5], [45, 29, 48, 32]]
    assert found[3] == [46, 31, 48, 32]
    assert windows_around(boxes[:1], (63, 33), 2, 1.5, 4).tolist() == [[5, 8, 17, 17]]


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_targets_are_the_covered_fractions_of_cells(stride):
    rng = np.random.default_rng(0)
    full = cv2.blur(rng.random((3, 64, 96)).transpose(1, 2, 0), (7, 7)).transpose(2, 0, 1) > 0.5
    full[0, :, 50:] = False
    full[2] = False
    windows = np.array([[0, 0, 24, 16], [3, 2, 20, 11], [1, 1, 2, 2]]) * 4 // stride
    found = coarse_targets(CropMasks.from_bitmasks(full), windows, stride)
    cells = F.avg_pool2d(torch.from_numpy(full).float(), stride)
    parts = [
        mask[y0:y1, x0:x1].reshape(-1)
        for mask, (x0, y0, x1, y1) in zip(cells, windows.tolist(), strict=True)
    ]
    torch.testing.assert_close(torch.from_numpy(found), torch.cat(parts))


def test_masks_of_any_type_become_the_same_crops():
    polygons = [[np.array([10.0, 10, 30, 12, 20, 40])], [np.array([50.0, 5, 90, 5, 90, 9, 50, 9])]]
    crops = as_crop_masks(PolygonMasks([polygons[0], polygons[1], polygons[0]]), (64, 96))
    assert crops.crops[0] is crops.crops[2] and len(crops) == 3
    wanted = CropMasks.from_coco([polygons[i] for i in (0, 1, 0)], (64, 96)).to_bitmasks()
    assert torch.equal(crops.to_bitmasks(), wanted)
    assert torch.equal(as_crop_masks(BitMasks(wanted), (64, 96)).to_bitmasks(), wanted)
    assert as_crop_masks(crops, (64, 96)) is crops


def test_losses_are_those_of_each_window_by_itself():
    counts = torch.tensor([4, 9, 1])
    logits, target = torch.randn(14), torch.rand(14)
    entropies, dices = [], []
    for x, t in zip(logits.split(counts.tolist()), target.split(counts.tolist()), strict=True):
        entropies.append(F.binary_cross_entropy_with_logits(x, t))
        p = x.sigmoid()
        dices.append(1 - (2 * (p * t).sum() + 1e-3) / ((p**2).sum() + (t**2).sum() + 1e-3))
    found = mask_losses(logits, target, counts)
    torch.testing.assert_close(found, (torch.stack(entropies).mean(), torch.stack(dices).mean()))


def iou(one, other):
    return float((one & other).sum() / (one | other).sum())


def test_a_thin_diagonal_fibre_comes_out_whole_from_half_a_box():
    """28 x 28 values cannot draw it, even perfect ones; the head learns to in a few steps."""
    canvas = np.zeros((96, 96), np.uint8)
    cv2.line(canvas, (8, 10), (88, 84), 1, 2)
    truth = CropMasks.from_bitmasks(canvas[None])
    box = truth.get_bounding_boxes().tensor
    grid = truth.crop_and_resize(box, 28).float()
    bound = iou(CropMasks.paste(grid, box, (96, 96)).to_bitmasks(), truth.to_bitmasks())

    half = box.clone()
    half[:, 2:] = (box[:, :2] + box[:, 2:]) / 2
    image = torch.from_numpy(canvas).float()[None, None].repeat(1, 3, 1, 1)
    head = head_of(window=3.0)
    stem = nn.ModuleDict({"p2": nn.Conv2d(3, 8, 4, 4), "p3": nn.Conv2d(3, 8, 8, 8)})
    optimizer = torch.optim.Adam([*head.parameters(), *stem.parameters()], 0.01)

    def run(**fields):
        features = {name: layer(image) for name, layer in stem.items()}
        return head({**features, "image": image}, [Instances((96, 96), **fields)])

    for _ in range(60):
        losses = run(proposal_boxes=Boxes(half), gt_masks=truth)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    head.eval()
    with torch.no_grad():
        (found,) = run(pred_boxes=Boxes(half))
    reached = iou(found.pred_masks.paste((96, 96)).to_bitmasks(), truth.to_bitmasks())
    assert bound < 0.6 and reached > bound + 0.3


def test_an_image_without_particles_trains_nothing(tiny_cfg):
    head = head_of()
    features = {"p2": torch.randn(1, 8, 16, 24), "p3": torch.randn(1, 8, 8, 12)}
    none = Instances((64, 96), proposal_boxes=Boxes(torch.zeros(0, 4)))
    none.gt_masks = CropMasks([], [], (64, 96))
    losses = head({**features, "image": torch.randn(1, 3, 64, 96)}, [none])
    sum(losses.values()).backward()
    assert set(losses) == {"loss_mask", "loss_mask_dice"} and sum(losses.values()) == 0


@pytest.mark.parametrize(
    ("opts", "names"),
    [
        (("MODEL.ROI_MASK_HEAD.POOLER_TYPE", "ROIAlignV2"), ("POOLER_TYPE", "ROIAlignV2")),
        (("MODEL.DYNAMIC_MASK_HEAD.STRIDE", 3), ("MODEL.DYNAMIC_MASK_HEAD.STRIDE", 3)),
        (("MODEL.DYNAMIC_MASK_HEAD.MAX_INSTANCES", 0), ("MAX_INSTANCES is 0", "1 or more")),
        (
            ("MODEL.BACKBONE.NAME", "build_backbone_with_image"),
            ("MODEL.ROI_HEADS.NAME is StandardROIHeads", "ParticleROIHeads"),
        ),
        (("TEST.AUG.ENABLED", True), ("TEST.AUG.ENABLED", "DynamicMaskHead")),
    ],
)
def test_a_config_that_does_not_fit_is_refused(tiny_cfg, opts, names):
    name = ("MODEL.ROI_MASK_HEAD.NAME", "DynamicMaskHead", "MODEL.ROI_MASK_HEAD.POOLER_TYPE", "")
    with user_error("config_invalid", *names):
        Trainer.build_model(tiny_cfg(*name, *opts))
