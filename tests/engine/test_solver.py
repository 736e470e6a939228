"""microplastics/engine/solver.py."""

from microplastics.config import load_config
from microplastics.engine.solver import resolve_schedule


def test_epochs_become_iterations_and_are_printed(caplog):
    caplog.set_level("INFO")
    cfg = load_config("configs/microplastics_r50.yaml")
    resolved, schedule = resolve_schedule(cfg, num_images=1203)
    assert resolved.SOLVER.MAX_ITER == schedule.max_iter == 30075
    assert resolved.TEST.EVAL_PERIOD == resolved.SOLVER.CHECKPOINT_PERIOD == 602
    assert resolved.SOLVER.WARMUP_ITERS == 1000
    assert cfg.SOLVER.MAX_ITER != 30075
    assert "1203 training images, 2 a batch" in caplog.text
    assert "30075 iterations (50.0 epochs)" in caplog.text


def test_warm_up_never_fills_a_short_training():
    cfg = load_config("configs/microplastics_r50.yaml")
    resolved, _ = resolve_schedule(cfg, num_images=30)
    assert (resolved.SOLVER.MAX_ITER, resolved.SOLVER.WARMUP_ITERS) == (750, 75)


def test_iterations_stay_where_no_epochs_are_asked_for():
    cfg = load_config("configs/microplastics_quick.yaml")
    resolved, _ = resolve_schedule(cfg, num_images=240)
    assert resolved.SOLVER.MAX_ITER == cfg.SOLVER.MAX_ITER
    assert resolved.TEST.EVAL_PERIOD == cfg.TEST.EVAL_PERIOD
