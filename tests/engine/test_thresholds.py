"""microplastics/engine/thresholds.py."""

import pytest
import torch
from support import dataset_entry

from microplastics.engine import Trainer
from microplastics.engine import thresholds as module
from microplastics.engine.checkpoint import TrainingCheckpointer
from microplastics.engine.thresholds import choose_and_store
from microplastics.errors import UserError
from microplastics.evaluation.counting import CountingEvaluator

NAMES = ["Fiber", "Fragment", "Film"]


@pytest.fixture
def cfg(tiny_cfg, rendered):
    """Of two test sets, with a checkpoint in OUTPUT_DIR."""
    sets = (dataset_entry(rendered, "val"), dataset_entry(rendered, "test"))
    cfg = tiny_cfg("DATASETS.TEST", repr(sets))
    TrainingCheckpointer(Trainer.build_model(cfg), cfg, NAMES).save("model_best")
    return cfg


def test_all_test_sets_count_together(cfg):
    outcome = choose_and_store(cfg, "f1")
    assert outcome.num_images == 6
    assert outcome.checkpoint == f"{cfg.OUTPUT_DIR}/model_best.pth"
    info = torch.load(outcome.checkpoint, weights_only=True)["microplastics"]
    assert len(info["score_thresholds_origin"]["datasets"]) == 2
    assert list(info["score_thresholds"]) == NAMES


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


def test_a_checkpoint_that_training_replaced_meanwhile_is_left_alone(cfg, monkeypatch):
    path = f"{cfg.OUTPUT_DIR}/model_best.pth"

    def train_on(*_args):
        with open(path, "ab") as file:
            file.write(b"newer")
        return []

    monkeypatch.setattr(module, "choose_thresholds", train_on)
    with pytest.raises(UserError, match="model_best.pth has changed meanwhile; run again"):
        choose_and_store(cfg, "f1")
    with open(path, "rb") as file:
        assert file.read().endswith(b"newer")


def test_fetched_weights_need_a_name_to_be_written_to(cfg, monkeypatch):
    local = f"{cfg.OUTPUT_DIR}/model_best.pth"
    monkeypatch.setattr(module, "fetch_weights", lambda _path: local)
    with pytest.raises(UserError, match="https://x/m.pth is not a file of yours.*--output"):
        choose_and_store(cfg, "f1", weights="https://x/m.pth")
