"""Which figures of counting training may watch, and in which direction."""

import pytest
from support import user_error

from microplastics.data.loader import check_datasets
from microplastics.engine.hooks import MetricHook, check_metric_names, known_metrics

WATCH = "SOLVER.BEST_CHECKPOINT.METRIC"


@pytest.mark.parametrize(
    ("metric", "minimise"),
    [
        ("counting/F1", False),
        ("counting/F1_tol1-Fiber", False),
        ("counting/recall", False),
        ("counting/count_MAE", True),
        ("a/b/counting/count_MAE-Film", True),
        ("counting/feret_max_MAE-Fiber", True),
        ("segm/AP-counting_MAE", False),
    ],
)
def test_errors_are_minimised_and_scores_maximised(metric, minimise):
    assert MetricHook(metric).minimise is minimise


def test_counting_can_be_watched(tiny_cfg):
    cfg = check_datasets(tiny_cfg(WATCH, "counting/F1-Fiber"))
    check_metric_names(cfg, list)
    known = known_metrics(cfg)
    assert {"counting/F1", "counting/count_MAE-Film", "counting/F1_tol2"} <= set(known)
    assert not any("length" in name or "count_error" in name for name in known)
    measured = check_datasets(tiny_cfg("TEST.COUNTING.SIZES", "always"))
    assert "counting/length_MAE-Fiber" in known_metrics(measured)
    off = check_datasets(tiny_cfg("TEST.COUNTING.ENABLED", False, WATCH, "counting/F1"))
    with user_error("metric_unknown", WATCH, "counting/F1"):
        check_metric_names(off, list)
    signed = check_datasets(tiny_cfg(WATCH, "counting/count_error"))
    with user_error("metric_unknown", WATCH, "counting/count_error"):
        check_metric_names(signed, list)


def test_every_known_figure_is_there(tiny_cfg):
    from microplastics.engine import Trainer
    from microplastics.engine.hooks import flatten_results

    cfg = check_datasets(tiny_cfg("TEST.COUNTING.SIZES", "always"))
    metrics = flatten_results(Trainer.test(cfg, Trainer.build_model(cfg)))
    known = {name for name in known_metrics(cfg) if name.startswith("counting/")}
    assert known and known <= set(metrics)


def test_sizes_is_one_of_three(tiny_cfg):
    from microplastics.engine import Trainer

    cfg = check_datasets(tiny_cfg("TEST.COUNTING.SIZES", "sometimes"))
    with user_error("config_invalid", "TEST.COUNTING.SIZES", "sometimes"):
        Trainer.build_evaluator(cfg, cfg.DATASETS.TEST[0])
