"""What docs/detectron2.md says of the Detectron2 that is installed."""

import importlib.util
import subprocess
import sys

import pytest
import torch
from detectron2 import model_zoo
from detectron2.layers import DeformConv

import microplastics  # noqa: F401  silences the warning of the old name in timm

VIT = """
import warnings
import microplastics
warnings.filterwarnings("error", message="(?!pkg_resources)", append=True)
import torch
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.backbone.vit import SimpleFeaturePyramid, ViT
vit = ViT(
    img_size=64, patch_size=16, embed_dim=32, depth=2, num_heads=2, drop_path_rate=0.1,
    window_size=2, window_block_indexes=[0], residual_block_indexes=[], use_rel_pos=True,
    out_feature="last",
)
pyramid = SimpleFeaturePyramid(
    vit, "last", 16, [4.0, 2.0, 1.0, 0.5], top_block=LastLevelMaxPool(), norm="LN", square_pad=64
)
print({name: tuple(x.shape) for name, x in pyramid(torch.zeros(1, 3, 64, 64)).items()})
"""


def test_a_vit_backbone_works_with_timm():
    done = subprocess.run([sys.executable, "-c", VIT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    sides = {"p2": 16, "p3": 8, "p4": 4, "p5": 2, "p6": 1}
    assert eval(done.stdout) == {name: (1, 16, side, side) for name, side in sides.items()}


def test_point_rend_and_the_zoo_are_there():
    from detectron2.projects import point_rend

    assert callable(point_rend.add_pointrend_config)
    name = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml"
    assert model_zoo.get_config(name).MODEL.MASK_ON


def test_an_operator_that_is_not_compiled_names_the_missing_file():
    if importlib.util.find_spec("detectron2._C"):
        pytest.skip("this Detectron2 is compiled")
    with pytest.raises(ImportError, match="detectron2._C"):
        DeformConv(4, 4, 3)(torch.zeros(1, 4, 8, 8), torch.zeros(1, 18, 8, 8))
