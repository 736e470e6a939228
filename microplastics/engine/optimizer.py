"""Optimizer with a global gradient norm, and its state by parameter name."""

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.solver import build_optimizer as _detectron2_build_optimizer
from torch import nn

from microplastics.errors import UserError

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
