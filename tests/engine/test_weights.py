"""microplastics/engine/weights.py."""

import hashlib
import os
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from microplastics.engine.weights import fetch_weights, load_into, read_weights
from microplastics.utils.errors import UserError


class Net(nn.Module):
    def __init__(self, classes=4):
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.bottom_up = nn.Linear(2, 2)
        self.roi_heads = nn.Module()
        self.roi_heads.box_predictor = nn.Module()
        self.roi_heads.box_predictor.cls_score = nn.Linear(2, classes)


def state(**kwargs):
    return {"model": Net(**kwargs).state_dict()}


class Evil:
    def __reduce__(self):
        return os.system, ("touch pwned",)


@pytest.mark.parametrize("name", ["evil.pkl", "evil.pth"])
def test_a_malicious_pickle_does_not_run(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    data = {"model": Evil(), "__author__": "mallory"}
    if name.endswith("pkl"):
        (tmp_path / name).write_bytes(pickle.dumps(data))
    else:
        torch.save(data, name)
    with pytest.raises(UserError, match="holds more than weights.*it was not loaded"):
        read_weights(name)
    assert not os.path.exists("pwned")


@pytest.mark.parametrize("protocol", range(5))
def test_numpy_pickles_of_any_protocol_are_read(tmp_path, protocol):
    path = tmp_path / "zoo.pkl"
    weights = {"a": np.arange(6, dtype=np.float32).reshape(2, 3)}
    path.write_bytes(pickle.dumps({"model": weights, "__author__": "zoo"}, protocol))
    assert (read_weights(str(path))["model"]["a"] == weights["a"]).all()


def test_caffe2_backbones_are_marked_for_name_matching(tmp_path):
    path = tmp_path / "R-50.pkl"
    path.write_bytes(
        pickle.dumps({"blobs": {"conv1_w": np.ones(3), "conv1_w_momentum": np.ones(3)}})
    )
    data = read_weights(str(path))
    assert data["matching_heuristics"] and list(data["model"]) == ["conv1_w"]


def test_every_flipped_byte_of_the_tensors_is_noticed(tmp_path):
    path = tmp_path / "model.pth"
    torch.save({"model": {"a": torch.zeros(4096)}}, path)
    whole = path.read_bytes()
    broken = bytearray(whole)
    broken[whole.index(bytes(16_000)) + 8_000] ^= 1
    path.write_bytes(broken)
    with pytest.raises(UserError, match="model.pth is damaged"):
        read_weights(str(path))
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="model.pth is damaged"):
        read_weights(str(path))


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"\x80\x04]."])
def test_rubbish_is_a_sentence(tmp_path, content):
    for name in ("rubbish.pkl", "rubbish.pth"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=name):
            read_weights(str(tmp_path / name))


def test_sha256_is_demanded(tmp_path):
    path = tmp_path / "model.pth"
    torch.save(state(), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    read_weights(str(path), digest.upper())
    with pytest.raises(UserError, match=f"{digest}, but MODEL.WEIGHTS_SHA256 demands 00"):
        read_weights(str(path), "00")


def test_weights_out_of_reach_name_three_ways_on(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    for address in ("https://127.0.0.1:9/model.pkl", "nowhere.pth"):
        with pytest.raises(UserError) as error:
            fetch_weights(address)
        for word in (address, "local file", "R-50.pkl", "microplastics_r50_scratch.yaml"):
            assert word in str(error.value)


def test_heads_of_other_classes_are_left_and_listed(caplog):
    model = Net(classes=4)
    before = model.roi_heads.box_predictor.cls_score.weight.clone()
    left = load_into(model, state(classes=81), "coco.pkl")
    assert left == [f"roi_heads.box_predictor.cls_score.{n}" for n in ("bias", "weight")]
    assert torch.equal(model.roi_heads.box_predictor.cls_score.weight, before)
    assert "cls_score.weight is (81, 2) there and (4, 2) here" in caplog.text
    with pytest.raises(UserError, match="cls_score"):
        load_into(model, state(classes=81), "coco.pkl", new_classes=False)


def test_anything_else_that_does_not_fit_is_an_error_unless_allowed():
    weights = state()
    weights["model"]["extra.weight"] = torch.ones(1)
    del weights["model"]["backbone.bottom_up.bias"]
    again = {"model": dict(weights["model"])}
    with pytest.raises(UserError) as error:
        load_into(Net(), weights, "other.pth")
    assert "backbone.bottom_up.bias is missing there" in str(error.value)
    assert "extra.weight is unknown here" in str(error.value)
    left = load_into(Net(), again, "other.pth", allow=["extra", "backbone.bottom_up.bias"])
    assert left == ["backbone.bottom_up.bias"]


def test_an_imagenet_backbone_fills_the_backbone_alone(tiny_cfg, tmp_path):
    from microplastics.engine import Trainer

    model, source = (Trainer.build_model(tiny_cfg()) for _ in range(2))
    prefix = "backbone.bottom_up."
    weights = {
        name.removeprefix(prefix): value.numpy()
        for name, value in source.state_dict().items()
        if name.startswith(prefix)
    }
    weights["stem.fc.weight"] = np.ones((1000, 512), np.float32)
    path = tmp_path / "R-18.pkl"
    zoo = {"model": weights, "__author__": "torchvision", "matching_heuristics": True}
    path.write_bytes(pickle.dumps(zoo))
    left = load_into(model, read_weights(str(path)), "R-18.pkl")
    assert not [name for name in left if name.startswith(prefix)]
    for name in ("backbone.fpn_lateral2.weight", "roi_heads.box_predictor.cls_score.weight"):
        assert name in left
    state = model.state_dict()
    for name, value in source.state_dict().items():
        if name.startswith(prefix):
            assert torch.equal(state[name], value), name
    with pytest.raises(UserError, match="is missing there"):
        load_into(model, read_weights(str(path)), "R-18.pkl", new_classes=False)
