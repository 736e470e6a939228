"""The vision transformer's feature pyramid."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from support import user_error

from microplastics.config import get_cfg
from microplastics.modeling.backbone import build_vit_fpn_backbone

TINY_VIT = (
    *("MODEL.BACKBONE.NAME", "build_vit_fpn_backbone", "MODEL.FPN.NORM", "LN"),
    *("MODEL.VIT.EMBED_DIM", 32, "MODEL.VIT.DEPTH", 2, "MODEL.VIT.NUM_HEADS", 2),
    *("MODEL.VIT.WINDOW_BLOCKS", "[0]", "MODEL.VIT.WINDOW_SIZE", 4, "MODEL.VIT.IMAGE_SIZE", 96),
)


def config(*opts):
    cfg = get_cfg()
    cfg.merge_from_list([*map(str, (*TINY_VIT, *opts))])
    return cfg


@pytest.mark.parametrize("patch, first", [(8, 1), (16, 2), (32, 3)])
@pytest.mark.parametrize("size", [(128, 128), (64, 192)])
def test_levels_double_their_stride(patch, first, size):
    torch.manual_seed(0)
    net = build_backbone(config("MODEL.VIT.PATCH_SIZE", patch)).eval()
    with torch.no_grad():
        out = net(torch.rand(1, 3, *size))
    assert list(out) == [f"p{level}" for level in range(first, first + 5)]
    for name, features in out.items():
        stride = 2 ** int(name[1:])
        assert net.output_shape()[name] == ShapeSpec(channels=256, stride=stride)
        assert features.shape[2:] == tuple(-(-side // stride) for side in size)


@pytest.mark.parametrize(
    "key, value",
    [
        ("PATCH_SIZE", 14),
        ("IMAGE_SIZE", 8),
        ("NUM_HEADS", 5),
        ("NUM_HEADS", 0),
        ("WINDOW_BLOCKS", [0, 2]),
        ("WINDOW_SIZE", 0),
    ],
)
def test_sizes_that_do_not_fit(key, value):
    with user_error("config_invalid", "MODEL.VIT.", value):
        build_vit_fpn_backbone(config(f"MODEL.VIT.{key}", value), ShapeSpec(channels=3))
