"""microplastics/engine/hooks.py."""

import math
from types import SimpleNamespace

import pytest
import torch
from support import user_error

from microplastics.config import get_cfg
from microplastics.engine import hooks
from microplastics.engine.hooks import (
    AdaptThreads,
    BestCheckpoint,
    EarlyStopping,
    MetricHook,
    PlateauLR,
    flatten_results,
    metric_value,
)


class FakeTrainer:
    """The part of a trainer that hooks use."""

    def __init__(self):
        self.lr_scale, self.last_eval, self.stopped, self.finished = 1.0, None, None, True

    def set_lr_scale(self, scale):
        self.lr_scale = scale

    def request_stop(self, reason):
        self.stopped = reason


def feed(hook, values, start=0):
    """Evaluations one after another; yields the trainer after each."""
    trainer = hook.trainer = getattr(hook, "trainer", None) or FakeTrainer()
    for number, value in enumerate(values, start + 1):
        trainer.last_eval = (number, {hook.metric: value})
        hook.after_step()
        yield trainer


def configured(**patience):
    cfg = get_cfg()
    for key, value in patience.items():
        cfg.SOLVER[key].PATIENCE = value
    return cfg


def test_plateau_lowers_after_more_than_patience_evaluations_as_torch_does():
    losses = [3.0, 2.0, 2.0, 2.0, 2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    parameter = torch.nn.Parameter(torch.zeros(1))
    reference = torch.optim.SGD([parameter], lr=1.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(reference, factor=0.1, patience=2)
    expected = []
    for loss in losses:
        scheduler.step(loss)
        expected.append(reference.param_groups[0]["lr"])
    scales = [t.lr_scale for t in feed(PlateauLR(configured(PLATEAU=2)), losses)]
    assert scales == pytest.approx(expected)
    assert min(scales) < 1


def test_early_stopping_counts_patience_and_nan():
    hook = EarlyStopping(configured(EARLY_STOPPING=3))
    stops = [t.stopped for t in feed(hook, [1.0, 0.5, math.nan, 0.6, 0.5])]
    assert stops[:4] == [None] * 4
    assert "validation/total_loss has not improved on 0.5 in 3 evaluations" in stops[4]


def test_a_stopped_run_stays_stopped_when_resumed():
    first = EarlyStopping(configured(EARLY_STOPPING=1))
    list(feed(first, [1.0, 2.0]))
    second = EarlyStopping(configured(EARLY_STOPPING=1))
    second.trainer = FakeTrainer()
    second.load_state_dict(first.state_dict())
    second.before_train()
    assert second.trainer.stopped


def test_counters_go_on_after_a_restart():
    losses = [1.0, 2.0, 2.0, 2.0]
    first = PlateauLR(configured(PLATEAU=2))
    list(feed(first, losses[:2]))
    second = PlateauLR(configured(PLATEAU=2))
    second.load_state_dict(first.state_dict())
    assert [t.lr_scale for t in feed(second, losses[2:], start=2)] == pytest.approx([1.0, 0.1])


class Checkpointer:
    def __init__(self):
        self.saved = []

    def save(self, name, **extra):
        self.saved.append((name, extra["iteration"]))


def test_best_checkpoint_ignores_nan_and_worse_even_after_a_restart():
    cfg, files = get_cfg(), Checkpointer()
    first = BestCheckpoint(cfg, files)
    list(feed(first, [math.nan, 10.0, 30.0, 20.0, math.nan]))
    assert files.saved == [("model_best", 2), ("model_best", 3)]
    second = BestCheckpoint(cfg, files)
    second.load_state_dict(first.state_dict())
    list(feed(second, [25.0, 31.0], start=5))
    assert files.saved[2:] == [("model_best", 7)]


def test_an_evaluation_is_counted_once():
    hook = EarlyStopping(configured(EARLY_STOPPING=2))
    list(feed(hook, [1.0, 2.0]))
    hook.after_step()
    hook.after_train()
    assert hook.bad_evaluations == 1


def test_improvement_direction_follows_the_name():
    assert not MetricHook("bbox/AP").minimise
    assert MetricHook("validation/loss_mask").minimise


def test_metric_names_are_looked_up_with_and_without_the_data_set():
    metrics = flatten_results({"val": {"segm": {"AP50": 3.0}}, "other": {"segm": {"AP50": 4.0}}})
    assert metrics == {"val/segm/AP50": 3.0, "other/segm/AP50": 4.0}
    assert metric_value(metrics, "segm/AP50") == 3.0
    assert metric_value(metrics, "other/segm/AP50") == 4.0
    with user_error("metric_unknown", "segm/AP51", "val/segm/AP50"):
        metric_value(metrics, "segm/AP51")


@pytest.mark.parametrize(
    "metric, minimised",
    [
        ("validation/total_loss", True),
        ("a.json:b/validation/total_loss", True),
        ("blank/FP_per_image-Film/foil", True),
        ("a.json:b/blank/images_with_FP", True),
        ("data/validation/a.json:data/blank/segm/AP50", False),
        ("data/blank/images/segm/AP-Fiber", False),
    ],
)
def test_losses_and_false_positives_are_minimised_whatever_the_folders_are_called(
    metric, minimised
):
    assert MetricHook(metric, 1e-4).minimise is minimised


def test_a_bare_metric_is_that_of_the_first_set_with_particles():
    metrics = {"blanks/segm/AP50": float("nan"), "val/segm/AP50": 41.0, "test/segm/AP50": 7.0}
    assert metric_value(metrics, "segm/AP50") == 41.0
    assert metric_value({"segm/AP50": float("nan")}, "segm/AP50") != 0


@pytest.fixture
def two_threads(monkeypatch):
    """torch with two threads and a machine with two cores."""
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(hooks, "available_processors", lambda: 2)
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_threads_follow_the_load(two_threads, monkeypatch, caplog):
    loads = iter([None, 0.1, 1.0, None, 0.9, 0.0])
    monkeypatch.setattr(hooks, "OtherProcesses", lambda: SimpleNamespace(cores=lambda: next(loads)))
    hook = AdaptThreads()
    hook.before_train()
    counts = []
    with caplog.at_level("INFO", "microplastics.engine.hooks"):
        for _ in range(6):
            hook.before_step()
            counts.append(torch.get_num_threads())
    assert counts == [2, 2, 1, 1, 1, 2]
    assert len(caplog.messages) == 1 and "OMP_NUM_THREADS" in caplog.messages[0]
    torch.set_num_threads(1)
    hook.after_train()
    assert torch.get_num_threads() == 2


def test_threads_that_the_user_has_set_stay(two_threads, monkeypatch):
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    assert not AdaptThreads.applies(cfg)
    cfg.SOLVER.ADAPT_THREADS = True
    assert AdaptThreads.applies(cfg)
    cfg.MODEL.DEVICE = "cuda"
    assert not AdaptThreads.applies(cfg)
    cfg.MODEL.DEVICE = "cpu"
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert not AdaptThreads.applies(cfg)
