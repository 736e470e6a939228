"""The schedule of microplastics/engine/defaults.py."""

from microplastics.config import load_config
from microplastics.engine.defaults import set_schedule


def test_epochs_become_iterations_and_are_printed(caplog):
    caplog.set_level("INFO")
    cfg = load_config("configs/microplastics_r50.yaml")
    cfg.freeze()
    set_schedule(cfg, 1203)
    assert cfg.SOLVER.MAX_ITER == 30075 and cfg.is_frozen()
    assert cfg.TEST.EVAL_PERIOD == cfg.SOLVER.CHECKPOINT_PERIOD == 602
    assert cfg.SOLVER.WARMUP_ITERS == 1000
    assert "1203 training images, 2 a batch: 601.5 iterations an epoch" in caplog.text
    assert "30075 iterations (50.0 epochs)" in caplog.text


def test_warm_up_never_fills_a_short_training():
    cfg = load_config("configs/microplastics_r50.yaml")
    set_schedule(cfg, 30)
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.WARMUP_ITERS) == (750, 75)


def test_iterations_stay_without_epochs():
    cfg = load_config("configs/microplastics_quick.yaml")
    before = cfg.SOLVER.MAX_ITER, cfg.TEST.EVAL_PERIOD
    set_schedule(cfg, 240)
    assert (cfg.SOLVER.MAX_ITER, cfg.TEST.EVAL_PERIOD) == before
