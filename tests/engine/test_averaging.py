"""microplastics/engine/averaging.py: SOLVER.EMA."""

import numpy as np
import pytest
import torch
from support import user_error
from torch import nn

from microplastics.config import get_cfg
from microplastics.engine import Trainer
from microplastics.engine.averaging import WeightAverage
from microplastics.engine.checkpoint import load_into, read_weights

EMA = ("SOLVER.EMA.ENABLED", True, "SOLVER.EMA.DECAY", 0.6)


def average_of(model, decay):
    cfg = get_cfg()
    cfg.SOLVER.EMA.DECAY = decay
    hook = WeightAverage(model, cfg)
    hook.before_train()
    return hook


def test_it_is_the_textbook_average_with_its_start_forgotten():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    model[0].bias.requires_grad_(False)
    hook = average_of(model, decay=0.5)
    names = ["0.weight", "1.weight", "1.bias", "1.running_mean", "1.running_var"]
    assert list(hook.averages) == names  # no counter, nothing frozen
    wanted = {name: hook.averages[name].double().numpy().copy() for name in names}
    for step in range(1, 13):
        with torch.no_grad():
            for name in names:
                model.state_dict()[name].add_(torch.randn(wanted[name].shape))
        hook.after_step()
        decay = min(0.5, (1 + step) / (10 + step))  # 2/11, 3/12, … 0.5 from the eighth on
        for name in names:
            new = model.state_dict()[name].double().numpy()
            wanted[name] = decay * wanted[name] + (1 - decay) * new
    for name in names:
        np.testing.assert_allclose(hook.averages[name].numpy(), wanted[name], rtol=1e-4, atol=1e-5)


def test_it_is_applied_and_taken_back_also_where_weights_are_shared():
    layer = nn.Linear(2, 2)
    model = nn.Sequential(layer, layer)
    hook = average_of(model, decay=0.9)
    before = layer.weight.detach().clone()
    with torch.no_grad():
        layer.weight.add_(1)
    hook.after_step()
    changed, data = layer.weight.detach().clone(), layer.weight
    middle = before + (1 - 2 / 11)
    with hook.applied():
        assert torch.allclose(layer.weight, middle) and layer.weight is data
        assert torch.allclose(model(torch.eye(2)), (middle.T + layer.bias) @ middle.T + layer.bias)
    assert torch.equal(layer.weight, changed)
    assert torch.allclose(hook.averages["0.weight"], middle)
    assert hook.averages["0.weight"] is hook.averages["1.weight"]


@pytest.mark.parametrize("decay", [1.0, -0.1])
def test_other_decays_are_refused(decay):
    with user_error("config_invalid", "SOLVER.EMA.DECAY", f"{decay:g}"):
        average_of(nn.Linear(1, 1), decay)


def test_evaluation_and_files_have_the_average(tiny_cfg):
    precise = ("TEST.PRECISE_BN.ENABLED", True, "TEST.PRECISE_BN.NUM_ITER", 1)
    cfg = tiny_cfg(*EMA, *precise, "SOLVER.MAX_ITER", 2, "SOLVER.CHECKPOINT_PERIOD", 0)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    logged, before = trainer.last_eval[1], dict(trainer.model.named_parameters())
    before = {name: value.detach().clone() for name, value in before.items()}
    path, raw = f"{cfg.OUTPUT_DIR}/model_final.pth", trainer.model.state_dict()
    for name in (path, f"{cfg.OUTPUT_DIR}/model_best.pth"):
        checkpoint = read_weights(name)
        for key, value in checkpoint["model"].items():
            average = trainer.average.averages.get(key)
            assert torch.equal(value, raw[key] if average is None else average)
    load_into(trainer.model, checkpoint, path)
    scored = Trainer.test(cfg, trainer.model)["validation"]["total_loss"]
    assert scored == logged["validation/total_loss"]
    weight = "roi_heads.box_predictor.cls_score.weight"
    assert not torch.equal(before[weight], trainer.average.averages[weight])


PRECISE = ("TEST.PRECISE_BN.ENABLED", True, "TEST.PRECISE_BN.NUM_ITER", 1, "TEST.EVAL_PERIOD", 1)


@pytest.mark.parametrize(
    "opts",
    [
        # Without the largest part of the network the files are small, and written soon.
        ("SOLVER.FREEZE", "['backbone.bottom_up']", "SOLVER.ACCUMULATE", 2),
        PRECISE,
    ],
)
def test_a_resumed_training_ends_with_the_same_bits(tiny_cfg, tmp_path, opts):
    adam = ("SOLVER.OPTIMIZER", "AdamW", "SOLVER.BASE_LR", 0.001, "DATASETS.TEST", "()")
    opts = (*EMA, *adam, *opts, "SOLVER.MAX_ITER", 4, "SOLVER.CHECKPOINT_PERIOD", 2)
    finals = []
    for resume in (False, True):
        cfg = tiny_cfg(*opts)
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=resume)
        assert trainer.start_iter == (2 if resume else 0)
        trainer.train()
        finals.append(read_weights(f"{cfg.OUTPUT_DIR}/model_final.pth"))
        (tmp_path / "output" / "last_checkpoint").write_text("model_0000001.pth")
    first, second = finals
    for name, value in first["model"].items():
        assert torch.equal(value, second["model"][name]), name
    ours, theirs = (final["trainer"]["hooks"]["WeightAverage"] for final in finals)
    assert ours["updates"] == theirs["updates"] == 4
    for name, value in ours["weights"].items():
        assert torch.equal(value, theirs["weights"][name]), name
        # Of what is frozen only the statistics of norms are there.
        frozen = "SOLVER.FREEZE" in opts and "bottom_up" in name
        assert "running" in name if frozen else not torch.equal(value, first["model"][name]), name
    states = (final["trainer"]["optimizer"] for final in finals)
    for one, two in zip(*(state.values() for state in states), strict=True):
        for key, value in one.items():
            assert torch.equal(value, two[key])
