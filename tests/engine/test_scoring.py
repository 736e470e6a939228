"""microplastics/engine/scoring.py."""

import json
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from support import dataset_entry, user_error

from microplastics.data.images import read_image
from microplastics.engine import Trainer
from microplastics.engine import scoring as module
from microplastics.engine.checkpoint import TrainingCheckpointer, read_weights, score_thresholds_of
from microplastics.engine.defaults import finalize_config
from microplastics.engine.scoring import (
    _test_with_augmentation,
    choose_and_store,
    read_own_checkpoint,
    store_thresholds,
)
from microplastics.evaluation.counting import CountingEvaluator
from microplastics.evaluation.validation import validate


def test_test_time_augmentation_sees_16_bit_images_as_prediction_does(
    tiny_cfg, rendered, tmp_path, monkeypatch
):
    data = json.loads((rendered / "annotations" / "instances_val.json").read_text())
    for image in data["images"]:
        grey = np.asarray(Image.open(rendered / "val" / image["file_name"]).convert("L"))
        image["file_name"] = f"{image['id']}.png"
        Image.fromarray(grey.astype(np.uint16) * 200).save(tmp_path / image["file_name"])
    (tmp_path / "deep.json").write_text(json.dumps(data))
    cfg = tiny_cfg(
        *("DATASETS.TEST", repr((f"{tmp_path}/deep.json:{tmp_path}",))),
        *("TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", "(96,)"),
        *("INPUT.PAINT_SCALE_BAR", False),
    )
    cfg = finalize_config(cfg)
    seen = []

    def record(_model, loader, _evaluator, _cfg):
        seen.extend(item for batch in loader for item in batch)
        return {}

    monkeypatch.setattr("microplastics.engine.trainer.validate", record)
    _test_with_augmentation(cfg, Trainer.build_model(cfg))
    assert len(seen) == len(data["images"])
    for item in seen:
        expected = torch.from_numpy(read_image(item["file_name"]).transpose(2, 0, 1).copy())
        assert torch.equal(item["image"], expected)


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


def stored_thresholds(path, names):
    return score_thresholds_of(read_weights(str(path))["microplastics"], str(path), names)


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
    assert stored_thresholds(path, NAMES) is None

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
    ("thresholds", "code", "name"),
    [
        ({"Fiber": 2, "Film": 0.5}, "checkpoint_invalid", "Fiber"),
        ({"Fiber": "0.5"}, "checkpoint_invalid", "Fiber"),
        ({"Fiber": True}, "checkpoint_invalid", "Fiber"),
        ({"Fiber": float("nan")}, "checkpoint_invalid", "Fiber"),
        ({1: 0.5}, "classes_mismatch", "for [1],"),
        ({"Fiber": 0.5, "Bead": 0.5}, "classes_mismatch", "Bead"),
        ([0.5, 0.5], "checkpoint_invalid", "a.pth"),
        (0.5, "checkpoint_invalid", "a.pth"),
    ],
)
def test_thresholds_of_untrusted_files_are_checked(tmp_path, thresholds, code, name):
    write(tmp_path / "a.pth", score_thresholds=thresholds)
    with user_error(code, name):
        stored_thresholds(tmp_path / "a.pth", NAMES)


def test_checkpoints_that_cannot_hold_thresholds(tmp_path):
    write(tmp_path / "a.pth")
    with user_error("classes_mismatch", "Fiber, Film", "Bead"):
        read_own_checkpoint(str(tmp_path / "a.pth"), ["Bead"])
    torch.save({"model": {"a": torch.zeros(1)}}, tmp_path / "plain.pth")
    with user_error("checkpoint_invalid", "plain.pth"):
        read_own_checkpoint(str(tmp_path / "plain.pth"), NAMES)


NAMES_THRESHOLDS = ["Fiber", "Fragment", "Film"]


@pytest.fixture
def cfg(tiny_cfg, rendered):
    """Of two test sets, with a checkpoint in OUTPUT_DIR."""
    sets = (dataset_entry(rendered, "val"), dataset_entry(rendered, "test"))
    cfg = tiny_cfg("DATASETS.TEST", repr(sets))
    TrainingCheckpointer(Trainer.build_model(cfg), cfg, NAMES_THRESHOLDS).save("model_best")
    return cfg


def test_all_test_sets_count_together(cfg):
    outcome = choose_and_store(cfg, "f1")
    assert outcome.num_images == 6
    assert outcome.checkpoint == f"{cfg.OUTPUT_DIR}/model_best.pth"
    info = torch.load(outcome.checkpoint, weights_only=True)["microplastics"]
    assert len(info["score_thresholds_origin"]["datasets"]) == 2
    assert list(info["score_thresholds"]) == NAMES_THRESHOLDS


def test_duplicates_are_those_of_the_config(cfg, monkeypatch):
    seen = []

    def evaluator(*args, **options):
        seen.append(options["max_overlap"])
        return CountingEvaluator(*args, **options)

    monkeypatch.setattr(module, "CountingEvaluator", evaluator)
    cfg.defrost()
    cfg.TEST.COUNTING.MAX_OVERLAP = 0.3
    choose_and_store(cfg, "count")
    assert seen == [0.3, 0.3]


def test_thresholds_for_test_time_augmentation(cfg, monkeypatch):
    models = []

    def watched(model, *args):
        models.append(type(model).__name__)
        return validate(model, *args)

    monkeypatch.setattr(module, "validate", watched)
    cfg.defrost()
    cfg.TEST.AUG.ENABLED, cfg.TEST.AUG.MIN_SIZES = True, (96,)
    assert choose_and_store(cfg, "f1").num_images == 6
    assert models == ["AugmentedRCNN", "AugmentedRCNN"]


def test_a_checkpoint_that_training_replaced_meanwhile_is_left_unchanged(cfg, monkeypatch):
    path = f"{cfg.OUTPUT_DIR}/model_best.pth"

    def train_on(*_args):
        with open(path, "ab") as file:
            file.write(b"newer")
        return []

    monkeypatch.setattr(module, "choose_thresholds", train_on)
    with user_error("checkpoint_mismatch", "model_best.pth"):
        choose_and_store(cfg, "f1")
    with open(path, "rb") as file:
        assert file.read().endswith(b"newer")


def test_fetched_weights_need_a_name_to_be_written_to(cfg, monkeypatch):
    local = f"{cfg.OUTPUT_DIR}/model_best.pth"
    monkeypatch.setattr(module, "fetch_weights", lambda _path: local)
    with user_error("option_missing", "https://x/m.pth", "--output"):
        choose_and_store(cfg, "f1", weights="https://x/m.pth")
