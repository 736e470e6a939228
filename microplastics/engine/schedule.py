"""Epochs into iterations."""

import logging
import math
from dataclasses import dataclass

from detectron2.config import CfgNode

from microplastics.errors import UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Schedule:
    """What SOLVER and TEST come to for one data set, in iterations."""

    images: float
    batch_size: int
    epoch: float
    max_iter: int
    warmup_iters: int
    eval_period: int
    checkpoint_period: int
    base_lr: float

    def __str__(self) -> str:
        return (
            f"{self.images:.0f} training images, {self.batch_size} a batch: "
            f"{self.epoch:g} iterations an epoch; {self.max_iter} iterations "
            f"({self.max_iter / self.epoch:.1f} epochs), LR {self.base_lr:g} "
            f"after {self.warmup_iters} of warm-up, evaluation every {self.eval_period}, "
            f"checkpoint every {self.checkpoint_period}"
        )


def resolve_schedule(cfg: CfgNode, num_images: float) -> tuple[CfgNode, Schedule]:
    """Turn the keys that count epochs into Detectron2's, which count iterations.

    Args:
        cfg: scaled to the number of processes already (``DefaultTrainer.auto_scale_workers``).
        num_images: training images that one epoch shows, after the filter of empty ones.

    Returns:
        A frozen copy with MAX_ITER, WARMUP_ITERS, EVAL_PERIOD and CHECKPOINT_PERIOD set, and
        the resolved numbers.
    """
    cfg = cfg.clone()
    cfg.defrost()
    if cfg.SOLVER.MAX_EPOCHS <= 0 and cfg.SOLVER.MAX_ITER < 1:
        raise UserError("Neither SOLVER.MAX_EPOCHS nor SOLVER.MAX_ITER is above 0; set one.")
    epoch = num_images / cfg.SOLVER.IMS_PER_BATCH

    def iterations(epochs: float) -> int:
        return max(1, math.ceil(epochs * epoch))

    if cfg.SOLVER.MAX_EPOCHS > 0:
        cfg.SOLVER.MAX_ITER = iterations(cfg.SOLVER.MAX_EPOCHS)
    if cfg.TEST.EVAL_PERIOD_EPOCHS > 0:
        cfg.TEST.EVAL_PERIOD = iterations(cfg.TEST.EVAL_PERIOD_EPOCHS)
    if cfg.SOLVER.CHECKPOINT_PERIOD_EPOCHS > 0:
        cfg.SOLVER.CHECKPOINT_PERIOD = iterations(cfg.SOLVER.CHECKPOINT_PERIOD_EPOCHS)
    longest = int(cfg.SOLVER.WARMUP_MAX_SHARE * cfg.SOLVER.MAX_ITER)
    cfg.SOLVER.WARMUP_ITERS = min(cfg.SOLVER.WARMUP_ITERS, longest)
    cfg.freeze()
    schedule = Schedule(
        images=num_images,
        batch_size=cfg.SOLVER.IMS_PER_BATCH,
        epoch=epoch,
        max_iter=cfg.SOLVER.MAX_ITER,
        warmup_iters=cfg.SOLVER.WARMUP_ITERS,
        eval_period=cfg.TEST.EVAL_PERIOD,
        checkpoint_period=cfg.SOLVER.CHECKPOINT_PERIOD,
        base_lr=cfg.SOLVER.BASE_LR,
    )
    logger.info("Schedule: %s", schedule)
    return cfg, schedule
