"""Weights in microplastics/engine/checkpoint.py."""

import hashlib
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from support import user_error
from torch import nn

from microplastics.engine.checkpoint import fetch_weights, load_into, read_weights


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.bottom_up = nn.Linear(2, 2)


def state():
    return {"model": Net().state_dict()}


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
    with user_error("checkpoint_invalid", name):
        read_weights(name)
    assert not os.path.exists("pwned")


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x04}" + b")" + b"\x85" * 200_000 + b"Ns.",  # a key that crashes pickle
        b"\x80\x04Nr\xff\xff\xff\x7f.",  # a memo of 16 GiB
    ],
)
def test_a_pickle_that_breaks_pickle_is_refused(tmp_path, content):
    path = tmp_path / "evil.pkl"
    path.write_bytes(content)
    with user_error("checkpoint_invalid", "evil.pkl"):
        read_weights(str(path))


def test_a_checkpoint_that_unpacks_to_more_is_refused(tmp_path):
    torch.save({"model": {"weight": torch.zeros(1 << 20)}}, tmp_path / "whole.pth")
    with zipfile.ZipFile(tmp_path / "whole.pth") as whole:
        with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as bomb:
            for name in whole.namelist():
                bomb.writestr(name, whole.read(name))
    assert len(read_weights(str(tmp_path / "whole.pth"))["model"]) == 1
    with user_error("checkpoint_invalid", "bomb.pth", "compressed"):
        read_weights(str(tmp_path / "bomb.pth"))


def test_a_checkpoint_of_endless_tensors_is_refused(tmp_path):
    weight = torch.zeros(1)
    torch.save({"model": {f"w{i}": weight for i in range(20_001)}}, tmp_path / "a.pth")
    with user_error("checkpoint_invalid", "a.pth"):
        read_weights(str(tmp_path / "a.pth"))


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


@pytest.mark.parametrize("content", ["", "text", "a list", "half"])
@pytest.mark.parametrize("name", ["broken.pkl", "broken.pth"])
def test_damaged_files_are_named(tmp_path, name, content):
    torch.save({"model": {"a": torch.zeros(4096)}}, tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    contents = {"": b"", "text": b"no checkpoint", "a list": b"\x80\x04].", "half": whole[:9000]}
    (tmp_path / name).write_bytes(contents[content])
    with user_error("checkpoint_invalid", name):
        read_weights(str(tmp_path / name))


def test_sha256_is_demanded(tmp_path):
    path = tmp_path / "model.pth"
    torch.save(state(), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    read_weights(str(path), digest.upper())
    with user_error("checkpoint_mismatch", digest, "MODEL.WEIGHTS_SHA256, 00"):
        read_weights(str(path), "00")


def test_weights_out_of_reach_name_three_ways_on(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    for address in ("https://127.0.0.1:9/model.pkl", "nowhere.pth"):
        with user_error("file_missing", address, "R-50.pkl", "microplastics_r50_scratch.yaml"):
            fetch_weights(address)


def test_heads_of_other_classes_are_left_and_listed(tiny_cfg, caplog):
    from microplastics.engine import Trainer

    cfg = tiny_cfg()
    model = Trainer.build_model(cfg)
    other = {"model": Trainer.build_model(tiny_cfg("MODEL.ROI_HEADS.NUM_CLASSES", 5)).state_dict()}
    before = model.roi_heads.box_predictor.cls_score.weight.clone()
    layers = ("box_predictor.bbox_pred", "box_predictor.cls_score", "mask_head.predictor")
    left = load_into(model, {"model": dict(other["model"])}, "coco.pkl", fine_tune=cfg)
    assert left == [f"roi_heads.{layer}.{n}" for layer in layers for n in ("bias", "weight")]
    assert torch.equal(model.roi_heads.box_predictor.cls_score.weight, before)
    assert "cls_score.weight is (6, 32) there and (4, 32) here" in caplog.text
    with user_error("checkpoint_mismatch", "coco.pkl", "bbox_pred"):
        load_into(model, {"model": dict(other["model"])}, "coco.pkl")
    wider = Trainer.build_model(tiny_cfg("MODEL.ROI_BOX_HEAD.FC_DIM", 16)).state_dict()
    with user_error("checkpoint_mismatch", "box_head.fc1"):
        load_into(model, {"model": wider}, "coco.pkl", fine_tune=cfg)


def test_anything_else_that_does_not_fit_is_an_error_unless_allowed():
    weights = state()
    weights["model"]["extra.weight"] = torch.ones(1)
    del weights["model"]["backbone.bottom_up.bias"]
    again = {"model": dict(weights["model"])}
    with user_error("checkpoint_mismatch", "other.pth", "bottom_up.bias", "extra.weight"):
        load_into(Net(), weights, "other.pth")
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
    left = load_into(model, read_weights(str(path)), "R-18.pkl", fine_tune=tiny_cfg())
    assert not [name for name in left if name.startswith(prefix)]
    for name in ("backbone.fpn_lateral2.weight", "roi_heads.box_predictor.cls_score.weight"):
        assert name in left
    state = model.state_dict()
    for name, value in source.state_dict().items():
        if name.startswith(prefix):
            assert torch.equal(state[name], value), name
    with user_error("checkpoint_mismatch", "R-18.pkl"):
        load_into(model, read_weights(str(path)), "R-18.pkl")
