"""Precision, schedule and optimizer of a training."""

import contextlib
import functools
import logging
import math
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.solver import build_optimizer as _detectron2_build_optimizer
from torch import nn

from microplastics.utils.errors import UserError

logger = logging.getLogger(__name__)

FULL_MODEL = "full_model"

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def amp_dtype(cfg: CfgNode) -> torch.dtype | None:
    """Return the type that autocast computes in, or ``None`` for full precision.

    ``SOLVER.AMP.ENABLED`` holds on CUDA; the CPU needs ``SOLVER.AMP.ON_CPU`` as well, and bf16
    instructions, without which bf16 is emulated and slow.

    Raises:
        UserError: config_invalid (an unknown type), device_unavailable (float16 on the CPU).
    """
    name = cfg.SOLVER.AMP.DTYPE
    if name not in ("auto", *_DTYPES):
        raise UserError(
            f"SOLVER.AMP.DTYPE is {name}; expected auto, bfloat16 or float16.",
            code="config_invalid",
        )
    if not cfg.SOLVER.AMP.ENABLED:
        return None
    if torch.device(cfg.MODEL.DEVICE).type == "cpu":
        if name == "float16" and cfg.SOLVER.AMP.ON_CPU:
            raise UserError(
                "SOLVER.AMP.DTYPE float16 needs a GPU; use bfloat16 on the CPU.",
                code="device_unavailable",
            )
        return torch.bfloat16 if cfg.SOLVER.AMP.ON_CPU and cpu_has_bf16() else None
    if name == "auto":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return _DTYPES[name]


@functools.cache
def cpu_has_bf16() -> bool:
    """Return whether the processor computes in bf16 (AVX512-BF16, AMX or Arm's BF16)."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def autocast(cfg: CfgNode) -> contextlib.AbstractContextManager:
    """Return autocast for one forward pass, or a context that does nothing."""
    dtype = amp_dtype(cfg)
    if dtype is None:
        return contextlib.nullcontext()
    return torch.autocast(torch.device(cfg.MODEL.DEVICE).type, dtype=dtype)


def keep_boxes_fp32(model: nn.Module) -> None:
    """Cast the backbone's feature maps back to fp32.

    Detectron2's ``ROIAlign`` casts box coordinates to the type of the features, and bf16 has
    steps of 4 px at 512–1024: boxes would miss their particles.
    """

    def cast(_module, _inputs, features):
        return {name: feature.float() for name, feature in features.items()}

    model.backbone.register_forward_hook(cast)


class Schedule(NamedTuple):
    """Length and periods of a training.

    Attributes:
        images: training images that one epoch shows.
        epoch: iterations of an epoch.
    """

    images: float
    epoch: float


def set_schedule(cfg: CfgNode, num_images: float) -> Schedule:
    """Turn the keys that count epochs into Detectron2's, which count iterations, and log them.

    Args:
        cfg: scaled to the number of processes already (``DefaultTrainer.auto_scale_workers``);
            MAX_ITER, WARMUP_ITERS, EVAL_PERIOD and CHECKPOINT_PERIOD are set.
        num_images: training images that one epoch shows, without the filtered empty ones.

    Raises:
        UserError: config_invalid.
    """
    solver, epoch = cfg.SOLVER, num_images / cfg.SOLVER.IMS_PER_BATCH
    if solver.MAX_EPOCHS <= 0 and solver.MAX_ITER < 1:
        raise UserError(
            "SOLVER.MAX_EPOCHS and SOLVER.MAX_ITER are 0; expected one above 0.",
            code="config_invalid",
        )
    frozen = cfg.is_frozen()
    cfg.defrost()
    for node, key, epochs in (
        (solver, "MAX_ITER", solver.MAX_EPOCHS),
        (cfg.TEST, "EVAL_PERIOD", cfg.TEST.EVAL_PERIOD_EPOCHS),
        (solver, "CHECKPOINT_PERIOD", solver.CHECKPOINT_PERIOD_EPOCHS),
    ):
        if epochs > 0:
            node[key] = max(1, math.ceil(epochs * epoch))
    longest = int(solver.WARMUP_MAX_SHARE * solver.MAX_ITER)
    solver.WARMUP_ITERS = min(solver.WARMUP_ITERS, longest)
    if frozen:
        cfg.freeze()
    logger.info(
        "Schedule: %.0f training images, %d a batch: %g iterations an epoch; %d iterations "
        "(%.1f epochs), LR %g after %d of warm-up, evaluation every %d, checkpoint every %d",
        num_images,
        solver.IMS_PER_BATCH,
        epoch,
        solver.MAX_ITER,
        solver.MAX_ITER / epoch,
        solver.BASE_LR,
        solver.WARMUP_ITERS,
        cfg.TEST.EVAL_PERIOD,
        solver.CHECKPOINT_PERIOD,
    )
    return Schedule(num_images, epoch)


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Build Detectron2's optimizer; ``CLIP_TYPE full_model`` is left to :func:`clip_gradients`.

    Detectron2's own ``CLIP_TYPE`` ``norm`` clips each parameter by itself, and ``full_model``,
    the name that its LazyConfig projects use, is unknown to it.
    """
    if cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE == FULL_MODEL:
        cfg = cfg.clone()
        cfg.defrost()
        cfg.SOLVER.CLIP_GRADIENTS.ENABLED = False
    return _detectron2_build_optimizer(cfg, model)


def clip_gradients(cfg: CfgNode, model: nn.Module) -> float | None:
    """Scale all gradients so that their common norm is at most ``CLIP_VALUE``.

    Returns:
        The norm before, or ``None`` if the config does not ask for it.
    """
    settings = cfg.SOLVER.CLIP_GRADIENTS
    if not settings.ENABLED or settings.CLIP_TYPE != FULL_MODEL:
        return None
    norm = torch.nn.utils.clip_grad_norm_(
        model.parameters(), settings.CLIP_VALUE, norm_type=settings.NORM_TYPE
    )
    return float(norm)


def optimizer_state(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Any]:
    """Return momentum and similar state by parameter name.

    torch numbers parameters by their place in the groups, which Detectron2's versions form
    differently. Learning rates are left out: the schedule sets them from the iteration.
    """
    state = {}
    for name, parameter in model.named_parameters():
        if parameter in optimizer.state:
            state[name] = dict(optimizer.state[parameter])
    return state


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, model: nn.Module, state: dict[str, Any]
) -> None:
    """Restore :func:`optimizer_state`.

    Raises:
        UserError: checkpoint_mismatch; the state belongs to other parameters.
    """
    parameters = dict(model.named_parameters())
    if unknown := sorted(set(state) - set(parameters)):
        raise UserError(
            f"The checkpoint's optimizer state belongs to another model ({unknown[0]} is unknown "
            "here); resume with the config that the training started with.",
            code="checkpoint_mismatch",
        )
    for name, values in state.items():
        parameter = parameters[name]
        optimizer.state[parameter] = {
            key: value.to(parameter.device, copy=True) if torch.is_tensor(value) else value
            for key, value in values.items()
        }
