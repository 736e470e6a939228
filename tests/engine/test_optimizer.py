"""Optimizer, learning rates, schedules, frozen parts and accumulated gradients."""

import math

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.backbone.vit import SimpleFeaturePyramid, ViT
from detectron2.solver import build_optimizer as detectron2_optimizer
from support import user_error
from timm.layers import DropPath
from torch import nn

from microplastics.config import get_cfg
from microplastics.engine import Trainer
from microplastics.engine.optimizer import build_optimizer, freeze, lr_factors


@META_ARCH_REGISTRY.register()
class MeanColour(nn.Module):
    """A model whose loss is a mean over images, and that has no statistics of batches."""

    def __init__(self, cfg):
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3)

    def forward(self, batch):
        losses = [(self.layer(item["image"] / 255).tanh().mean() - 1) ** 2 for item in batch]
        return {"loss_mean": torch.stack(losses).mean(), "loss_twice": 2 * sum(losses) / len(batch)}


def trained(cfg, scaler=None):
    trainer = Trainer(cfg)
    trainer.grad_scaler = scaler or trainer.grad_scaler
    trainer.resume_or_load(resume=False)
    trainer.train()
    return trainer


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_gradients_are_those_of_the_larger_batch(tiny_cfg, tmp_path, parts):
    opts = ("MODEL.META_ARCHITECTURE", "MeanColour", "MODEL.MASK_ON", False, "DATASETS.TEST", "()")
    opts = (*opts, "SOLVER.IMS_PER_BATCH", 4, "SOLVER.MAX_ITER", 5, "SOLVER.AMP.ENABLED", False)
    opts = (*opts, "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 0.05, "MODEL.CHANNELS_LAST", False)
    whole = trained(tiny_cfg(*opts, "OUTPUT_DIR", str(tmp_path / "whole")))
    loss = whole.storage.history("total_loss").values()
    for number, scaler in enumerate((None, torch.amp.GradScaler("cpu", init_scale=512.0))):
        output = ("OUTPUT_DIR", str(tmp_path / f"{number}"))
        split = trained(tiny_cfg(*opts, *output, "SOLVER.ACCUMULATE", parts), scaler)
        assert split.iter == whole.iter == 5
        for ours, theirs in zip(split.model.parameters(), whole.model.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
        got = split.storage.history("total_loss").values()
        assert [v for v, _ in got] == pytest.approx([v for v, _ in loss], rel=1e-5)
    assert loss[-1][0] < loss[0][0]


def test_parts_of_a_batch_are_equal(tiny_cfg):
    with user_error("config_invalid", "SOLVER.ACCUMULATE is 3", "2 images"):
        Trainer(tiny_cfg("SOLVER.ACCUMULATE", 3))


class Detector(nn.Module):
    """A ViT of three blocks with a feature pyramid and a head."""

    def __init__(self):
        super().__init__()
        vit = ViT(img_size=32, patch_size=8, embed_dim=8, depth=3, num_heads=2, out_feature="last")
        self.backbone = SimpleFeaturePyramid(vit, "last", 4, (1.0,), square_pad=32)
        self.head = nn.Linear(2, 2)


def solver(**keys):
    cfg = get_cfg()
    for key, value in keys.items():
        cfg.SOLVER[key] = value
    return cfg


def rates(optimizer, model):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def test_the_rate_falls_with_every_block_below_the_heads():
    model = Detector()
    cfg = solver(OPTIMIZER="AdamW", BASE_LR=1e-3, LAYER_DECAY=0.5, WEIGHT_DECAY=0.1)
    cfg.SOLVER.WEIGHT_DECAY_NORM = 0.0
    optimizer = build_optimizer(cfg, model)
    assert type(optimizer) is torch.optim.AdamW
    found = rates(optimizer, model)
    assert set(found) == {name for name, _ in model.named_parameters()}
    below = {"patch_embed.proj.weight": 4, "pos_embed": 4, "blocks.0.attn.qkv.weight": 3}
    below |= {"blocks.1.mlp.fc1.weight": 2, "blocks.2.norm1.weight": 1}
    for name, blocks in below.items():
        assert found[f"backbone.net.{name}"][0] == pytest.approx(1e-3 * 0.5**blocks), name
    others = {n: rate for n, (rate, _) in found.items() if not n.startswith("backbone.net.")}
    assert len(others) > 4 and set(others.values()) == {1e-3}
    decays = [found[f"backbone.net.{name}"][1] for name in below]
    assert decays == [0.1, 0.0, 0.1, 0.1, 0.0]
    both = lr_factors(solver(LAYER_DECAY=0.5, BACKBONE_LR_FACTOR=0.1), model)
    assert both("backbone.net.blocks.1.norm1.bias") == pytest.approx(0.25 * 0.1)
    assert both("head.weight") == 1


def test_the_network_below_the_pyramid_has_its_own_rate(tiny_cfg):
    cfg = tiny_cfg("SOLVER.BACKBONE_LR_FACTOR", 0.1)
    model = Trainer.build_model(cfg)
    optimizer = Trainer.build_optimizer(cfg, model)
    assert type(optimizer) is torch.optim.SGD
    found = {name: rate for name, (rate, _) in rates(optimizer, model).items()}
    for name, rate in found.items():
        below = name.startswith("backbone.bottom_up.")
        assert rate == pytest.approx(0.002 if below else 0.02), name
    # A schedule and a plateau scale both alike.
    scheduler = Trainer.build_lr_scheduler(cfg, optimizer)
    assert sorted(set(scheduler.base_lrs)) == pytest.approx([0.002, 0.02])


def test_without_the_keys_it_is_detectron2s(tiny_cfg):
    norm = ("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "norm")
    model = Trainer.build_model(tiny_cfg(*norm))
    ours, theirs = (b(tiny_cfg(*norm), model) for b in (build_optimizer, detectron2_optimizer))
    assert ours.state_dict() == theirs.state_dict()
    adam = build_optimizer(tiny_cfg(*norm, "SOLVER.OPTIMIZER", "AdamW"), model)
    # Each is a class that clips, made from torch's.
    kinds = [type(optimizer) for optimizer in (ours, theirs, adam)]
    assert all(kind.__name__.endswith("WithGradientClip") for kind in kinds)
    assert [kind.__base__ for kind in kinds] == [torch.optim.SGD] * 2 + [torch.optim.AdamW]


@pytest.mark.parametrize(
    "keys, words",
    [
        ({"OPTIMIZER": "Adam"}, "SOLVER.OPTIMIZER is Adam"),
        ({"LAYER_DECAY": 1.5}, "from above 0 to 1"),
        ({"LAYER_DECAY": 0.7}, "is not a ViT"),
        ({"BACKBONE_LR_FACTOR": -1.0}, "of 0 or more"),
    ],
)
def test_other_settings_are_refused(keys, words):
    with user_error("config_invalid", words):
        build_optimizer(solver(**keys), nn.Linear(1, 1))


SCHEDULES = {
    "WarmupMultiStepLR": lambda t: 0.1 ** ((t >= 20) + (t >= 32)),
    "WarmupCosineLR": lambda t: 0.5 * (1 + math.cos(math.pi * t / 40)),
    # Two decays: three equal parts.
    "WarmupStepWithFixedGammaLR": lambda t: 0.1 ** (t * 3 // 40),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_follow_epochs_and_a_plateau_scales_them(tiny_cfg, name):
    opts = ("SOLVER.LR_SCHEDULER_NAME", name, "SOLVER.STEPS_EPOCHS", "[5, 8]")
    opts = (*opts, "SOLVER.MAX_EPOCHS", 10, "SOLVER.NUM_DECAYS", 2, "SOLVER.WARMUP_ITERS", 4)
    trainer = Trainer(tiny_cfg(*opts, "SOLVER.PLATEAU.ENABLED", True))
    assert trainer.max_iter == 40 and trainer.cfg.SOLVER.STEPS == (20, 32)  # 8 images, 2 a batch
    expected, found = [], []
    for step in range(trainer.max_iter):
        if step == 25:
            trainer.set_lr_scale(0.1)
        warmup = 0.001 + (1 - 0.001) * step / 4 if step < 4 else 1
        factor = SCHEDULES[name](step) if step >= 4 else SCHEDULES[name](4)
        expected.append(0.02 * warmup * factor * (0.1 if step >= 25 else 1))
        found.append(trainer.optimizer.param_groups[0]["lr"])
        trainer.optimizer.step()
        trainer.scheduler.step()
    # Detectron2's warm-up of a curve leads to its value after it, from its first one.
    assert found[4:] == pytest.approx(expected[4:])
    assert found[0] == pytest.approx(0.02 * 0.001) and found[1] < found[2] < found[3] < found[4]


def test_frozen_parts_stay_with_their_statistics(tiny_cfg):
    frozen = ["backbone.bottom_up.res2", "backbone.fpn_lateral", "proposal_generator.rpn_head.conv"]
    with user_error("config_invalid", "'backbone.fpn_lateral'", "backbone, backbone.bottom_up"):
        Trainer(tiny_cfg("SOLVER.FREEZE", repr(frozen)))
    frozen[1] = "backbone.fpn_lateral3"
    trainer = Trainer(tiny_cfg("SOLVER.FREEZE", repr(frozen), "SOLVER.MAX_ITER", 3))
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.resume_or_load(resume=False)
    trainer.train()  # with an evaluation after the third step
    after = trainer.model.state_dict()
    same = {name for name in before if torch.equal(before[name], after[name])}
    ours = {n for n in before if n.startswith(tuple(f"{each}." for each in frozen))}
    assert ours and same >= ours
    assert any("running_mean" in name for name in ours)
    changed = {n for n in before if "weight" in n or "running" in n} - ours
    assert not same & changed
    with user_error("config_invalid", "nothing to train"):
        freeze(
            tiny_cfg("SOLVER.FREEZE", "['backbone', 'proposal_generator', 'roi_heads']"),
            trainer.model,
        )


def test_frozen_blocks_are_not_skipped_at_random():
    parts = {"a": DropPath(0.5), "b": nn.Dropout(0.5)}
    model = nn.ModuleDict({n: nn.Sequential(nn.Linear(1, 1), part) for n, part in parts.items()})
    cfg = get_cfg()
    cfg.SOLVER.FREEZE = ["a"]
    assert freeze(cfg, model) == [parts["a"]]


def test_detectron2s_own_key_freezes_stages(tiny_cfg):
    model = Trainer.build_model(tiny_cfg("MODEL.BACKBONE.FREEZE_AT", 2))
    stages = model.backbone.bottom_up.named_parameters()
    left = {name.split(".")[0] for name, parameter in stages if parameter.requires_grad}
    assert left == {"res3", "res4", "res5"}
    norms = [m for m in model.backbone.bottom_up.res2.modules() if "Norm" in type(m).__name__]
    assert norms and all(isinstance(m, FrozenBatchNorm2d) for m in norms)
