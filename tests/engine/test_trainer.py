"""microplastics/engine: trainer, checkpoint, solver, events, distributed."""

import argparse
import json
import os
import sys
import types

import detectron2
import pytest
import torch
from support import user_error

from microplastics.engine import Trainer, launch
from microplastics.engine.checkpoint import checkpoint_info_of, read_weights
from microplastics.engine.defaults import amp_dtype, cpu_has_bf16
from microplastics.engine.events import truncate_metrics
from microplastics.engine.trainer import clip_gradients


def trained(cfg, resume=False):
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer


def test_it_is_a_default_trainer_with_its_attributes(tiny_cfg):
    from detectron2.engine import DefaultTrainer

    trainer = Trainer(tiny_cfg())
    assert isinstance(trainer, DefaultTrainer)
    assert trainer.model.training and trainer.optimizer.param_groups


def test_checkpoints_hold_the_fibre_classes(tiny_cfg):
    cfg = tiny_cfg("DATASETS.FIBER_CLASSES", "['film']", "SOLVER.MAX_ITER", 1)
    trained(cfg)
    path = os.path.join(cfg.OUTPUT_DIR, "model_final.pth")
    assert torch.load(path, weights_only=True)["microplastics"]["fiber_classes"] == ["Film"]
    with user_error("classes_mismatch", "wool"):
        Trainer(tiny_cfg("DATASETS.FIBER_CLASSES", "['wool']"))


def test_tensorboard_shows_predictions_and_training_is_the_same(tiny_cfg, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    short = ("SOLVER.MAX_ITER", 4, "TEST.EVAL_PERIOD", 2, "TEST.COUNTING.SCORE_THRESH", 0.0)
    plain, drawn = (
        trained(
            tiny_cfg(*short, "TEST.PICTURES", number, "OUTPUT_DIR", str(tmp_path / str(number)))
        )
        for number in (0, 3)
    )
    assert torch.equal(*(next(each.model.parameters()) for each in (plain, drawn)))
    events = EventAccumulator(str(tmp_path / "3"), {"images": 0}).Reload()
    assert len(events.Tags()["images"]) == 3
    assert {e.step for tag in events.Tags()["images"] for e in events.Images(tag)} <= {1, 2, 3, 4}


def test_the_last_three_and_the_best_are_kept(tiny_cfg):
    cfg = tiny_cfg("SOLVER.CHECKPOINT_PERIOD", 1, "TEST.EVAL_PERIOD", 0)
    trained(cfg)
    names = sorted(n for n in os.listdir(cfg.OUTPUT_DIR) if n.endswith(".pth"))
    periodic = [f"model_{i:07d}.pth" for i in (3, 4, 5)]
    assert names == [*periodic, "model_best.pth", "model_final.pth"]
    path = f"{cfg.OUTPUT_DIR}/model_best.pth"
    info = checkpoint_info_of(read_weights(path), path)
    assert info["detectron2"] == detectron2.__version__


def test_fine_tuning_on_other_classes_keeps_everything_but_the_class_layers(tiny_cfg, tmp_path):
    cfg = tiny_cfg("SOLVER.MAX_ITER", 1, "TEST.EVAL_PERIOD", 0)
    first = trained(cfg)
    weights = f"{cfg.OUTPUT_DIR}/model_final.pth"
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS, cfg.MODEL.ROI_HEADS.NUM_CLASSES = weights, 5
    cfg.OUTPUT_DIR = str(tmp_path / "second")
    model = Trainer.build_model(cfg)
    from microplastics.engine.checkpoint import TrainingCheckpointer

    TrainingCheckpointer(model, cfg, []).load_weights()
    ours, theirs = model.state_dict(), first.model.state_dict()
    same = {k for k in ours if ours[k].shape == theirs[k].shape}
    assert {k for k in ours if k not in same} == {
        f"roi_heads.{layer}.{part}"
        for layer in ("box_predictor.cls_score", "box_predictor.bbox_pred", "mask_head.predictor")
        for part in ("weight", "bias")
    }
    assert all(torch.equal(ours[k], theirs[k]) for k in same)


def test_momentum_is_stored_by_name_and_survives_other_parameter_groups(tiny_cfg):
    from microplastics.engine.checkpoint import load_optimizer_state, optimizer_state

    trainer = trained(tiny_cfg("SOLVER.MAX_ITER", 2, "TEST.EVAL_PERIOD", 0))
    state = optimizer_state(trainer.optimizer, trainer.model)
    # Grouped in another way: one group a parameter, in another order.
    groups = [{"params": [p]} for p in reversed([*trainer.model.parameters()]) if p.requires_grad]
    other = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    load_optimizer_state(other, trainer.model, state)
    for name, parameter in trainer.model.named_parameters():
        if name in state:
            assert torch.equal(
                other.state[parameter]["momentum_buffer"], state[name]["momentum_buffer"]
            )
    with user_error("checkpoint_mismatch", "gone.weight"):
        load_optimizer_state(other, trainer.model, {"gone.weight": {}})


def test_a_run_of_another_detectron2_continues_with_a_warning(tiny_cfg, caplog):
    cfg = tiny_cfg("SOLVER.MAX_ITER", 2, "TEST.EVAL_PERIOD", 0)
    trained(cfg)
    path = f"{cfg.OUTPUT_DIR}/model_final.pth"
    data = torch.load(path, weights_only=True)
    data["trainer"]["circumstances"] |= {"Detectron2 build": "another", "number of threads": 99}
    torch.save(data, path)
    trainer = Trainer(tiny_cfg("SOLVER.MAX_ITER", 3, "TEST.EVAL_PERIOD", 0))
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == 2
    assert "Detectron2 build was another" in caplog.text
    assert "number of threads was 99" in caplog.text


def test_no_validation_set_trains_without_deciding_hooks(tiny_cfg):
    trainer = trained(tiny_cfg("DATASETS.TEST", "()", "SOLVER.MAX_ITER", 1))
    assert trainer.last_eval is None
    with user_error("option_conflict", "SOLVER.EARLY_STOPPING"):
        Trainer(tiny_cfg("DATASETS.TEST", "()", "SOLVER.EARLY_STOPPING.ENABLED", True))


def test_a_gradient_that_is_not_finite_never_reaches_the_weights(tiny_cfg, monkeypatch):
    monkeypatch.setattr("microplastics.engine.trainer.clip_gradients", lambda *_: float("nan"))
    trainer = Trainer(tiny_cfg())
    trainer.resume_or_load(resume=False)
    before = {k: v.clone() for k, v in trainer.model.named_parameters()}
    with user_error("training_failed", "The gradient", "iteration 0"):
        trainer.train()
    assert all(torch.equal(v, before[k]) for k, v in trainer.model.named_parameters())


def test_a_loss_that_is_not_finite_names_itself_and_the_images(tiny_cfg):
    trainer = Trainer(tiny_cfg())
    trainer.resume_or_load(resume=False)
    torch.nn.init.constant_(trainer.model.roi_heads.box_predictor.cls_score.bias, float("nan"))
    with user_error("training_failed", "loss_cls became infinite", "iteration 0", ".jpg"):
        trainer.train()


def test_class_names_with_slashes_have_their_row():
    from microplastics.engine.scoring import per_class_table

    metrics = {"segm/AP": 1.0, "segm/AP50": 2.0, "segm/AP-PE/PP": 3.0, "segm/AP50-PE/PP": 4.0}
    (row,) = per_class_table({"segm/AP": 3.0, "segm/AP50": 4.0}, ["Bead"])
    assert row == {"class": "all", "segm AP": 3.0, "segm AP50": 4.0}
    assert per_class_table(metrics, ["PE/PP"]) == [
        {"class": "PE/PP", "segm AP": 3.0, "segm AP50": 4.0},
        {"class": "all", "segm AP": 1.0, "segm AP50": 2.0},
    ]


def test_the_global_norm_is_clipped_and_reported(tiny_cfg):
    cfg = tiny_cfg("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 1.0)
    model = torch.nn.Linear(2, 1)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 10.0)
    assert clip_gradients(cfg, model) == pytest.approx(300**0.5)
    norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
    assert norm.item() == pytest.approx(1.0, rel=1e-4)


def test_mixed_precision_on_the_cpu_only_if_asked_for(tiny_cfg):
    on = ("SOLVER.AMP.ENABLED", True, "SOLVER.AMP.ON_CPU", True)
    off = ("SOLVER.AMP.ENABLED", True, "SOLVER.AMP.ON_CPU", False)
    assert amp_dtype(tiny_cfg(*off)) is None
    assert amp_dtype(tiny_cfg(*on)) is (torch.bfloat16 if cpu_has_bf16() else None)
    with user_error("device_unavailable", "float16"):
        amp_dtype(tiny_cfg(*on, "SOLVER.AMP.DTYPE", "float16"))
    with user_error("config_invalid", "SOLVER.AMP.DTYPE", "half"):
        amp_dtype(tiny_cfg(*on, "SOLVER.AMP.DTYPE", "half"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_training_on_cuda(tiny_cfg):
    trainer = trained(tiny_cfg("MODEL.DEVICE", "cuda", "SOLVER.MAX_ITER", 3))
    assert trainer.finished and "segm/AP" in trainer.last_eval[1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_options_of_training_on_cuda(tiny_cfg, optimizer):
    scaled = ("SOLVER.AMP.DTYPE", "float16", "SOLVER.ACCUMULATE", 2, "SOLVER.EMA.ENABLED", True)
    opts = ("MODEL.DEVICE", "cuda", "SOLVER.OPTIMIZER", optimizer, "SOLVER.BASE_LR", 1e-3, *scaled)
    for last, first in ((2, 0), (4, 2)):
        trainer = trained(tiny_cfg(*opts, "SOLVER.MAX_ITER", last), resume=first > 0)
        assert trainer.start_iter == first and trainer.finished
    assert trainer.average.updates == 4
    assert all(bool(p.isfinite().all()) for p in trainer.model.parameters())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_is_one_warning_or_an_error_that_names_torchrun(tiny_cfg, caplog):
    from microplastics.engine.defaults import finalize_config

    given = tiny_cfg("MODEL.DEVICE", "cuda")
    assert finalize_config(given).MODEL.DEVICE == "cpu" and given.MODEL.DEVICE == "cuda"
    warnings = [r.message for r in caplog.records if r.levelname == "WARNING"]
    assert warnings == ["MODEL.DEVICE is cuda, but there is no GPU here: using the CPU."]
    args = argparse.Namespace(num_gpus=2, num_machines=1, machine_rank=0, dist_url="auto")
    with user_error("device_unavailable", "--num-gpus 2", "torchrun"):
        launch(lambda _: None, args)
    for number in (0, 1):
        args.num_gpus = number
        assert launch(lambda _: "ran", args) == "ran"


def test_metrics_of_iterations_that_are_trained_again_are_dropped(tmp_path):
    path = tmp_path / "metrics.json"
    lines = [json.dumps({"iteration": i}) for i in (1, 3, 5)]
    path.write_text("\n".join(lines) + '\n{"itera')
    truncate_metrics(str(tmp_path), start_iter=4)
    assert [json.loads(line)["iteration"] for line in path.read_text().splitlines()] == [1, 3]


class Recorder(types.ModuleType):
    """Replaces wandb and mlflow, and records their calls."""

    def __init__(self, name):
        super().__init__(name)
        self.logged, self.ended = [], False

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: self

    def log(self, scalars, step):
        self.logged.append((step, scalars))

    log_metrics = log

    def finish(self):
        self.ended = True

    end_run = finish


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_other_writers_get_the_scalars_and_are_closed(tiny_cfg, tmp_path, monkeypatch, name):
    recorder = Recorder(name)
    monkeypatch.setitem(sys.modules, name, recorder)
    trained(tiny_cfg(f"WRITERS.{name.upper()}.ENABLED", True, "SOLVER.MAX_ITER", 2))
    names = {key for _, scalars in recorder.logged for key in scalars}
    assert {"total_loss", "segm/AP50"} <= names and recorder.ended
    monkeypatch.setitem(sys.modules, name, None)
    with user_error("dependency_missing", f"pip install {name}"):
        trained(tiny_cfg(f"WRITERS.{name.upper()}.ENABLED", True, "OUTPUT_DIR", str(tmp_path)))
