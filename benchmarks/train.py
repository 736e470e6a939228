"""An iteration of our trainer, all hooks on, against one of Detectron2's ``DefaultTrainer``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_train_loader, get_detection_dataset_dicts
from detectron2.data.samplers import TrainingSampler
from detectron2.engine import DefaultTrainer
from detectron2.utils.events import EventStorage

from benchmarks.agreement import Check
from benchmarks.setting import (
    COMPARABLE,
    comparable,
    describe,
    plain_config,
    prepare,
    require_positive,
    seeded_model,
    with_keys,
)
from benchmarks.timing import Measurement, Report, alternate, timed
from microplastics.engine.trainer import Trainer
from microplastics.utils.system import seed_all

TARGET = 1.03
PLAIN, OURS, OWN = "Detectron2", "ours, all hooks on", "ours, with its own settings"
# Beyond any benchmark: evaluation and checkpoints are no part of an iteration.
_NEVER = 10**9


class PlainTrainer(DefaultTrainer):
    """``DefaultTrainer`` on the images in the order that ours has them."""

    @classmethod
    def build_train_loader(cls, cfg: CfgNode):
        names, empty = list(cfg.DATASETS.TRAIN), cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
        dicts = get_detection_dataset_dicts(names, filter_empty=empty)
        sampler = TrainingSampler(len(dicts), seed=cfg.SEED)
        return build_detection_train_loader(cfg, dataset=dicts, sampler=sampler)


class _Stepped:
    """A trainer that goes a few iterations at a time."""

    def __init__(self, trainer: DefaultTrainer):
        self.trainer = trainer
        trainer.iter = trainer.start_iter = 0
        trainer.storage = EventStorage(0)

    def start(self) -> None:
        with self.trainer.storage:
            self.trainer.before_train()

    def advance(self, iterations: int) -> dict[str, float]:
        """Train on; seconds an iteration."""
        with self.trainer.storage:
            seconds, _ = timed(lambda: self._loop(iterations), self.trainer.cfg.MODEL.DEVICE)
        return {"iteration": seconds / iterations}

    def _loop(self, iterations: int) -> None:
        # The body of TrainerBase.train.
        for _ in range(iterations):
            self.trainer.before_step()
            self.trainer.run_step()
            self.trainer.after_step()
            self.trainer.iter += 1

    def stop(self) -> None:
        """Close the writers."""
        with self.trainer.storage:
            self.trainer.after_train()


class SteppedOurs(_Stepped):
    """Ours, through its own loop."""

    def start(self) -> None:
        super().start()
        self.trainer._batches = self.trainer.batches_from(
            self.trainer.data_loader, self.trainer.start_iter
        )

    def _loop(self, iterations: int) -> None:
        self.trainer.max_iter = self.trainer.iter + iterations
        self.trainer._loop()
        # Else its end would evaluate and save.
        self.trainer.finished = False

    def stop(self) -> None:
        super().stop()
        self.trainer._batches = None


def benchmark(
    config_file: str,
    opts: Sequence[str] = (),
    *,
    folder: Path,
    dataset: str | None = None,
    images: int = 60,
    size: int = 256,
    iterations: int = 8,
    repeat: int = 7,
    seed: int = 1,
) -> Report:
    """Measure iterations: batch, forward, backward, step, hooks and writers.

    Evaluations and checkpoints are left out on both sides. The same images in the same batches,
    the same first weights, augmentations, workers.

    Args:
        config_file, opts, folder, dataset, images, size, seed: see :func:`prepare`.
        iterations: length of a turn; long enough that workers do not get ahead for free.
        repeat: turns of each.
    """
    require_positive(iterations=iterations, repeat=repeat)
    cfg = all_hooks(
        prepare(
            folder,
            config_file,
            opts,
            split="train",
            dataset=dataset,
            images=images,
            size=size,
            weights="",
            seed=seed,
        )
    )
    stepped, notes = _contestants(cfg, folder)
    weights = seeded_model(cfg).state_dict()
    for each in stepped.values():
        each.trainer.model.load_state_dict(weights)
    checks = _checks(stepped)
    for each in stepped.values():
        each.trainer.model.load_state_dict(weights)
        each.start()
    seconds = alternate(
        {name: lambda s=s: s.advance(iterations) for name, s in stepped.items()}, repeat, warmup=1
    )
    for each in stepped.values():
        each.stop()
    settings = describe(cfg, config_file)
    settings["Turns"] = f"{repeat} of {iterations} iterations, {cfg.SOLVER.IMS_PER_BATCH} a batch"
    measurement = Measurement("an iteration", seconds["iteration"], PLAIN, {OURS: TARGET})
    return Report(settings, [measurement], checks, notes)


def _contestants(cfg: CfgNode, folder: Path) -> tuple[dict[str, _Stepped], list[str]]:
    """The trainers by name, and how they differ."""
    same = comparable(cfg)
    plain_cfg, notes = plain_config(same)
    stepped = {
        PLAIN: _Stepped(PlainTrainer(_output(plain_cfg, folder / "plain"))),
        OURS: SteppedOurs(Trainer(_output(same, folder / "ours"))),
    }
    if same != cfg:
        stepped[OWN] = SteppedOurs(Trainer(_output(cfg, folder / "own")))
        keys = [f"{key} {_value(cfg, key)}" for key in COMPARABLE]
        notes.append(f"{OWN!r} are {', '.join(keys)}; off in the other rows")
    return stepped, notes


def _value(cfg: CfgNode, key: str) -> Any:
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def all_hooks(cfg: CfgNode) -> CfgNode:
    """Every hook there, none of them evaluating or saving within the benchmark."""
    cfg = cfg.clone()
    cfg.defrost()
    for hook in ("PLATEAU", "EARLY_STOPPING", "BEST_CHECKPOINT"):
        cfg.SOLVER[hook].ENABLED = True
    cfg.SOLVER.MAX_EPOCHS = cfg.TEST.EVAL_PERIOD = 0
    cfg.SOLVER.ADAPT_THREADS = False  # it would change the other contestant's threads too
    cfg.TEST.EVAL_PERIOD_EPOCHS = cfg.SOLVER.CHECKPOINT_PERIOD_EPOCHS = 0.0
    cfg.SOLVER.MAX_ITER = cfg.SOLVER.CHECKPOINT_PERIOD = _NEVER
    cfg.freeze()
    return cfg


def _output(cfg: CfgNode, folder: Path) -> CfgNode:
    folder.mkdir()
    return with_keys(cfg, "OUTPUT_DIR", str(folder))


def _checks(stepped: dict[str, _Stepped]) -> list[Check]:
    """The same images in the first batch, and the same loss on it."""
    ours, plain = stepped[OURS].trainer, stepped[PLAIN].trainer
    no_workers = with_keys(plain.cfg, "DATALOADER.NUM_WORKERS", 0)
    batch = next(iter(ours.data_loader))
    theirs = next(iter(plain.build_train_loader(no_workers)))
    names = [[Path(item["file_name"]).name for item in each] for each in (batch, theirs)]
    losses = []
    for trainer in (ours, plain):
        seed_all(0)
        with torch.no_grad(), EventStorage():
            losses.append(float(sum(trainer.model(batch).values())))
    close = abs(losses[0] - losses[1]) <= 1e-4 * abs(losses[1])
    return [
        Check("images of the first batch", names[0] == names[1], ", ".join(names[0])),
        Check("loss of one batch", close, f"{losses[0]:.6f} and {losses[1]:.6f}"),
    ]
