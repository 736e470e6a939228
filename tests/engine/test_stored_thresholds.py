"""microplastics/engine/stored_thresholds.py."""

import zipfile

import pytest
import torch

from microplastics.engine.stored_thresholds import (
    read_own_checkpoint,
    store_thresholds,
    stored_thresholds,
)
from microplastics.errors import UserError

NAMES = ["Fiber", "Film"]


def write(path, **info):
    shared = torch.arange(6.0)
    state = torch.nn.Linear(2, 3).state_dict()
    state["shared"], state["half"] = shared, torch.full((2, 3), -0.1, dtype=torch.bfloat16)
    checkpoint = {
        "model": state,
        "trainer": {"momentum": shared, "iteration": 7, "best": float("nan")},
        "microplastics": {"version": "0", "class_names": NAMES, "config": "VERSION: 2", **info},
    }
    torch.save(checkpoint, path)


def test_all_else_is_untouched_bit_for_bit(tmp_path):
    path, copy = tmp_path / "a.pth", tmp_path / "deep" / "b.pth"
    write(path)
    before = path.read_bytes()
    store_thresholds(
        read_own_checkpoint(str(path), NAMES), copy, {"Fiber": 0.25, "Film": 0.5}, {"metric": "f1"}
    )
    assert path.read_bytes() == before
    assert stored_thresholds(copy, NAMES) == {"Fiber": 0.25, "Film": 0.5}
    assert stored_thresholds(copy, [*NAMES, "Bead"]) == {"Fiber": 0.25, "Film": 0.5}
    assert stored_thresholds(path, NAMES) == {}

    def tensors(file):
        with zipfile.ZipFile(file) as archive:
            names = [n for n in archive.namelist() if "/data/" in n]
            return {n.split("/", 1)[1]: archive.read(n) for n in names}

    assert tensors(copy) == tensors(path)
    old, new = (torch.load(p, weights_only=True) for p in (path, copy))
    assert new["model"]["shared"].data_ptr() == new["trainer"]["momentum"].data_ptr()
    assert new["model"]._metadata == old["model"]._metadata
    assert list(new) == list(old) and list(new["model"]) == list(old["model"])
    assert new["trainer"]["iteration"] == 7
    added = {k: v for k, v in new["microplastics"].items() if k not in old["microplastics"]}
    assert added == {
        "score_thresholds": {"Fiber": 0.25, "Film": 0.5},
        "score_thresholds_origin": {"metric": "f1"},
    }


def test_a_write_that_fails_leaves_the_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "a.pth"
    write(path)
    before = path.read_bytes()
    checkpoint = read_own_checkpoint(str(path), NAMES)

    def half(_data, file):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(KeyboardInterrupt):
        store_thresholds(checkpoint, path, {"Fiber": 0.1, "Film": 0.2}, {})
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("thresholds", "words"),
    [
        ({"Fiber": 2, "Film": 0.5}, "threshold of Fiber in .* is 2, not a number from 0 to 1"),
        ({"Fiber": "0.5"}, "threshold of Fiber in .* is 0.5, not a number"),
        ({"Fiber": True}, "threshold of Fiber in .* is True"),
        ({"Fiber": float("nan")}, "threshold of Fiber in .* is nan"),
        ({1: 0.5}, "are for 1, not for Fiber, Film"),
        ({"Fiber": 0.5, "Bead": 0.5}, "are for Bead, not for Fiber, Film; choose them anew"),
        ([0.5, 0.5], "are not by class name"),
        (0.5, "are not by class name"),
    ],
)
def test_thresholds_of_strangers_are_checked(tmp_path, thresholds, words):
    write(tmp_path / "a.pth", score_thresholds=thresholds)
    with pytest.raises(UserError, match=words):
        stored_thresholds(tmp_path / "a.pth", NAMES)


def test_checkpoints_that_cannot_hold_thresholds(tmp_path):
    write(tmp_path / "a.pth")
    with pytest.raises(UserError, match="trained on the classes Fiber, Film, but the data set"):
        read_own_checkpoint(str(tmp_path / "a.pth"), ["Bead"])
    torch.save({"model": {"a": torch.zeros(1)}}, tmp_path / "plain.pth")
    with pytest.raises(UserError, match="carries no class names"):
        read_own_checkpoint(str(tmp_path / "plain.pth"), NAMES)
    assert stored_thresholds(tmp_path / "plain.pth", NAMES) == {}
    (tmp_path / "backbone.pkl").write_bytes(b"not a zip")
    assert stored_thresholds(tmp_path / "backbone.pkl", NAMES) == {}
