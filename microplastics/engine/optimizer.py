"""Optimizers, learning rates of parts of a model, and parts that are not trained."""

import itertools
import logging
from collections.abc import Callable

import torch
from detectron2.config import CfgNode
from detectron2.engine.hooks import HookBase
from detectron2.modeling.backbone.vit import ViT, get_vit_lr_decay_rate
from detectron2.solver import build_optimizer as build_sgd
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from fvcore.common.param_scheduler import ParamScheduler
from torch import nn

from microplastics.modeling.interface import is_norm_or_dropout
from microplastics.utils.errors import UserError, check_option

logger = logging.getLogger(__name__)

# Where the network below a feature pyramid is: FPN and SimpleFeaturePyramid.
_BODIES = ("backbone.bottom_up.", "backbone.net.")


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer of SOLVER.OPTIMIZER; with the default keys Detectron2's own.

    Raises:
        UserError: ``config_invalid``.
    """
    solver = cfg.SOLVER
    name = solver.OPTIMIZER
    fits = name in ("SGD", "AdamW")
    check_option(fits, "SOLVER.OPTIMIZER", name, "SGD or AdamW", "config_invalid")
    factor = lr_factors(cfg, model)
    if factor is None and name == "SGD":
        return build_sgd(cfg, model)
    params = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
        lr_factor_func=factor,
        # As Detectron2's ViTDet trains: no weight decay on position embeddings.
        overrides={"pos_embed": {"weight_decay": 0.0}},
    )
    shared = {"lr": solver.BASE_LR, "weight_decay": solver.WEIGHT_DECAY, "foreach": True}
    if name == "AdamW":
        optimizer = torch.optim.AdamW(params, betas=tuple(solver.ADAMW_BETAS), **shared)
    else:
        momentum = {"momentum": solver.MOMENTUM, "nesterov": solver.NESTEROV}
        optimizer = torch.optim.SGD(params, **momentum, **shared)
    return maybe_add_gradient_clipping(cfg, optimizer)


class UntilTheEnd(ParamScheduler):
    """A schedule that is also defined at its end, where fvcore's one of equal steps fails.

    Detectron2 asks for the rate once more after the last iteration.
    """

    def __init__(self, schedule: ParamScheduler):
        self._schedule = schedule

    def __call__(self, where: float) -> float:
        try:
            return self._schedule(where)
        except IndexError:
            return self._schedule(1 - 2 * self.WHERE_EPSILON)


def lr_factors(cfg: CfgNode, model: nn.Module) -> Callable[[str], float] | None:
    """Return the factor on the LR by parameter name; None if it is 1 for all.

    SOLVER.LAYER_DECAY multiplies once for each block of a ViT that lies between a parameter and
    the heads (Clark et al., ELECTRA, 2020; for detection Li et al., ViTDet, 2022);
    SOLVER.BACKBONE_LR_FACTOR is for the network below the feature pyramid, without a pyramid for
    the whole backbone.

    Raises:
        UserError: ``config_invalid``: the backbone is not a ViT, or a factor is out of range.
    """
    solver = cfg.SOLVER
    decay, backbone = solver.LAYER_DECAY, solver.BACKBONE_LR_FACTOR
    for key in ("LAYER_DECAY", "BACKBONE_LR_FACTOR"):
        if not 0 < solver[key] <= 1 and key == "LAYER_DECAY" or solver[key] < 0:
            expected = "from above 0 to 1" if key == "LAYER_DECAY" else "of 0 or more"
            raise UserError(
                f"SOLVER.{key} is {solver[key]:g}; expected a number {expected}.",
                code="config_invalid",
            )
    if decay == backbone == 1:
        return None
    depth = max((len(m.blocks) for m in model.modules() if isinstance(m, ViT)), default=0)
    if decay != 1 and not depth:
        raise UserError(
            f"SOLVER.LAYER_DECAY is {decay:g}, but {cfg.MODEL.BACKBONE.NAME} is not a ViT; set it "
            "to 1.0, or use SOLVER.BACKBONE_LR_FACTOR.",
            code="config_invalid",
        )
    names = [name for name, _ in model.named_parameters()]
    bodies = [body for body in _BODIES if any(name.startswith(body) for name in names)]
    below = tuple(bodies) or ("backbone.",)

    def factor(name: str) -> float:
        layer = get_vit_lr_decay_rate(name, decay, depth) if decay != 1 else 1.0
        return layer * (backbone if name.startswith(below) else 1.0)

    return factor


def freeze(cfg: CfgNode, model: nn.Module) -> list[nn.Module]:
    """Freeze the parameters of SOLVER.FREEZE in place; return norm and dropout layers of them.

    Raises:
        UserError: ``config_invalid``; a prefix fits nothing, or nothing is left to train.
    """
    prefixes = tuple(cfg.SOLVER.FREEZE)
    if not prefixes:
        return []

    def frozen(name: str, prefix: str | tuple[str, ...] = prefixes) -> bool:
        prefix = (prefix,) if isinstance(prefix, str) else prefix
        return any(f"{name}.".startswith(f"{each.rstrip('.')}.") for each in prefix)

    parameters = dict(model.named_parameters())
    for prefix in prefixes:
        if not any(frozen(name, prefix) for name in parameters):
            parts = dict.fromkeys(
                ".".join(name.split(".")[:depth])
                for name, depth in itertools.product(parameters, (1, 2))
            )
            raise UserError(
                f"SOLVER.FREEZE has {prefix!r}, but no parameter begins with it; expected names "
                f"such as {', '.join(sorted(parts))}.",
                code="config_invalid",
            )
    for name, parameter in parameters.items():
        parameter.requires_grad_(parameter.requires_grad and not frozen(name))
    left = sum(p.requires_grad for p in parameters.values())
    if not left:
        raise UserError(
            f"SOLVER.FREEZE {list(prefixes)} leaves nothing to train.", code="config_invalid"
        )
    logger.info("SOLVER.FREEZE: %d of %d parameters are trained.", left, len(parameters))
    return [m for name, m in model.named_modules() if is_norm_or_dropout(m) and frozen(name)]


class FrozenLayers(HookBase):
    """Keeps frozen norm and dropout layers in evaluation mode, as in Detectron2's FREEZE_AT."""

    def __init__(self, layers: list[nn.Module]):
        self._layers = layers

    def before_step(self) -> None:
        # Again for each step: an evaluation puts the whole model back into training mode.
        for layer in self._layers:
            layer.training = False
