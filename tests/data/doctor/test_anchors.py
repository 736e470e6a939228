"""The anchors of a config, against all of Detectron2's own."""

import numpy as np
import pytest
import torch
from detectron2.modeling import build_anchor_generator, build_backbone
from detectron2.structures import Boxes, pairwise_iou
from support import ROOT

from microplastics.config import get_cfg, load_config
from microplastics.data.doctor.anchors import AnchorGrid
from microplastics.errors import UserError

QUICK = f"{ROOT}/configs/microplastics_quick.yaml"
R50 = f"{ROOT}/configs/microplastics_r50.yaml"


def config(*opts, file=QUICK):
    return load_config(file, opts)


def all_anchors(cfg, height, width):
    """Detectron2's own anchors of one padded image."""
    backbone = build_backbone(cfg)
    shapes = backbone.output_shape()
    features = [shapes[name] for name in cfg.MODEL.RPN.IN_FEATURES]
    generator = build_anchor_generator(cfg, features)
    pad = max(1, backbone.size_divisibility)
    height, width = -(-height // pad) * pad, -(-width // pad) * pad
    with torch.no_grad():
        maps = backbone(torch.zeros(1, 3, height, width))
    return Boxes.cat(generator([maps[name] for name in cfg.MODEL.RPN.IN_FEATURES]))


@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_the_nearest_grid_position_is_as_good_as_all_anchors(offset):
    cfg = config("MODEL.ANCHOR_GENERATOR.OFFSET", offset)
    size = 150, 210
    anchors = all_anchors(cfg, *size)
    random = np.random.default_rng(0)
    sides = np.exp(random.uniform(np.log(2), np.log(200), (400, 2)))
    start = random.uniform(-20, 1, (400, 2)) + random.random((400, 2)) * size[::-1]
    boxes = np.concatenate([start, start + sides], axis=1)
    brute = pairwise_iou(Boxes(torch.tensor(boxes, dtype=torch.float32)), anchors).max(dim=1)[0]
    ours = AnchorGrid.from_config(cfg).best_iou(boxes, np.tile(size, (400, 1)))
    assert ours == pytest.approx(brute.numpy(), abs=1e-5)
    assert 0.2 < (ours < 0.5).mean() < 0.8


def test_a_box_equal_to_an_anchor_is_matched_wholly():
    cfg = config()
    anchors = all_anchors(cfg, 128, 128).tensor.numpy()[::97]
    best = AnchorGrid.from_config(cfg).best_iou(anchors, np.tile((128, 128), (len(anchors), 1)))
    assert best == pytest.approx(np.ones(len(anchors)), abs=1e-5)


def test_many_boxes_are_judged_in_parts(monkeypatch):
    grid = AnchorGrid.from_config(config())
    boxes = np.array([(3.0, 3, 3 + side, 3 + side) for side in range(1, 40)])
    sizes = np.tile((64, 64), (39, 1))
    whole = grid.best_iou(boxes, sizes)
    monkeypatch.setattr("microplastics.data.doctor.anchors._CHUNK", 7)
    assert (grid.best_iou(boxes, sizes) == whole).all()


def test_other_anchors_are_those_of_a_config_with_other_keys():
    grid = AnchorGrid.from_config(config(file=R50))
    keys = "MODEL.ANCHOR_GENERATOR.SIZES", "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS"
    sizes = "[[16, 22.627417], [32, 45.254834], [64, 90.509668], [128, 181.01934], [256, 362.0387]]"
    wanted = config(keys[0], sizes, keys[1], "[[0.25, 4.0]]", file=R50)
    changed = grid.changed(0.5, (1.0, 2**0.5), (0.25, 4.0))
    for ours, theirs in zip(changed.cells, AnchorGrid.from_config(wanted).cells, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-3)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("MODEL.RPN.IN_FEATURES", "['p2', 'p9']", "'p9'"),
        ("MODEL.ANCHOR_GENERATOR.SIZES", "[[8], [16]]", "MODEL.ANCHOR_GENERATOR"),
        ("MODEL.BACKBONE.NAME", "nothing", "MODEL.BACKBONE"),
        ("MODEL.ANCHOR_GENERATOR.NAME", "RotatedAnchorGenerator", "DefaultAnchorGenerator"),
    ],
)
def test_a_config_without_usable_anchors_is_named(key, value, words):
    cfg = get_cfg()
    cfg.merge_from_file(QUICK)
    cfg.merge_from_list([key, value])
    with pytest.raises(UserError, match="mine.yaml") as error:
        AnchorGrid.from_config(cfg, "mine.yaml")
    assert words in str(error.value)
