"""Optimizer with a global gradient norm, and its state by parameter name."""

import contextlib
import functools
import logging
import math
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.solver import build_optimizer as _detectron2_build_optimizer
from torch import nn

from microplastics.utils.errors import UserError

logger = logging.getLogger(__name__)

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def amp_dtype(cfg: CfgNode) -> torch.dtype | None:
    """The type that autocast computes in, or ``None`` for full precision.

    ``SOLVER.AMP.ENABLED`` holds on CUDA; the CPU needs ``SOLVER.AMP.ON_CPU`` as well, and bf16
    instructions, without which bf16 is emulated and slow.

    Raises:
        UserError: ``SOLVER.AMP.DTYPE`` is unknown or cannot run here.
    """
    name = cfg.SOLVER.AMP.DTYPE
    if name not in ("auto", *_DTYPES):
        raise UserError(f"SOLVER.AMP.DTYPE is {name}; use auto, bfloat16 or float16.")
    if not cfg.SOLVER.AMP.ENABLED:
        return None
    if torch.device(cfg.MODEL.DEVICE).type == "cpu":
        if name == "float16" and cfg.SOLVER.AMP.ON_CPU:
            raise UserError("SOLVER.AMP.DTYPE float16 needs a GPU; use bfloat16 on the CPU.")
        return torch.bfloat16 if cfg.SOLVER.AMP.ON_CPU and cpu_has_bf16() else None
    if name == "auto":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return _DTYPES[name]


@functools.cache
def cpu_has_bf16() -> bool:
    """Whether the processor computes in bf16 (AVX512-BF16, AMX or Arm's BF16)."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def autocast(cfg: CfgNode) -> contextlib.AbstractContextManager:
    """Autocast for one forward pass, or a context that does nothing."""
    dtype = amp_dtype(cfg)
    if dtype is None:
        return contextlib.nullcontext()
    return torch.autocast(torch.device(cfg.MODEL.DEVICE).type, dtype=dtype)


def keep_boxes_fp32(model: nn.Module) -> None:
    """Cast the backbone's feature maps back to fp32.

    Detectron2's ``ROIAlign`` casts box coordinates to the type of the features, and bf16 has
    steps of 4 px at 512–1024: boxes would be read off the particle.
    """

    def cast(_module, _inputs, features):
        return {name: feature.float() for name, feature in features.items()}

    model.backbone.register_forward_hook(cast)


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


FULL_MODEL = "full_model"


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Detectron2's optimizer; ``CLIP_TYPE full_model`` leaves clipping to :func:`clip_gradients`.

    Detectron2's own ``CLIP_TYPE`` ``norm`` clips each parameter by itself and knows no
    ``full_model``; the name is the one that projects built on Detectron2 use.
    """
    if cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE == FULL_MODEL:
        cfg = cfg.clone()
        cfg.defrost()
        cfg.SOLVER.CLIP_GRADIENTS.ENABLED = False
    return _detectron2_build_optimizer(cfg, model)


def clip_gradients(cfg: CfgNode, model: nn.Module) -> float | None:
    """Scale all gradients so that their common norm is at most ``CLIP_VALUE``.

    Returns:
        The norm before, or ``None`` where the config does not ask for it.
    """
    settings = cfg.SOLVER.CLIP_GRADIENTS
    if not settings.ENABLED or settings.CLIP_TYPE != FULL_MODEL:
        return None
    norm = torch.nn.utils.clip_grad_norm_(
        model.parameters(), settings.CLIP_VALUE, norm_type=settings.NORM_TYPE
    )
    return float(norm)


def optimizer_state(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Any]:
    """Momentum and the like by parameter name.

    torch numbers parameters by their place in the groups, and the two Detectron2 builds group
    them differently; names are the same in both. Learning rates are not part of it: the
    schedule sets them from the iteration.
    """
    state = {}
    for name, parameter in model.named_parameters():
        if parameter in optimizer.state:
            state[name] = dict(optimizer.state[parameter])
    return state


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, model: nn.Module, state: dict[str, Any]
) -> None:
    """Give an optimizer back what :func:`optimizer_state` took.

    Raises:
        UserError: the state belongs to other parameters.
    """
    parameters = dict(model.named_parameters())
    if unknown := sorted(set(state) - set(parameters)):
        raise UserError(
            f"The checkpoint's optimizer state is of another model ({unknown[0]} is unknown "
            "here); resume with the config that the run began with."
        )
    for name, values in state.items():
        parameter = parameters[name]
        optimizer.state[parameter] = {
            key: value.to(parameter.device, copy=True) if torch.is_tensor(value) else value
            for key, value in values.items()
        }
