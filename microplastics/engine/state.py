"""What a trainer must remember to go on as if nothing had happened.

Randomness is a function of seed and iteration (:mod:`microplastics.data.rng`) and the LR one of
iteration and plateau scale, so little is left: plain numbers and tensors by parameter name, the
same for both Detectron2 builds.
"""

import logging
from typing import Any

import torch
from detectron2.engine import HookBase, hooks
from detectron2.utils import comm

from microplastics.compat import detectron2_build
from microplastics.data.loader import TrainLoader
from microplastics.engine.optimizer import load_optimizer_state, optimizer_state
from microplastics.engine.parallel import unwrap
from microplastics.engine.precision import amp_dtype

logger = logging.getLogger(__name__)


def trainer_state(trainer) -> dict[str, Any]:
    """The state of a :class:`microplastics.engine.Trainer`, fit for ``weights_only=True``."""
    states = {type(hook).__name__: _hook_state(hook) for hook in trainer._hooks}
    state = {
        "iteration": trainer.finished_iters - 1,
        "seed": trainer.seed,
        "lr_scale": trainer.lr_scale,
        "optimizer": optimizer_state(trainer.optimizer, unwrap(trainer.model)),
        "hooks": {name: hook_state for name, hook_state in states.items() if hook_state},
        "circumstances": _circumstances(trainer),
    }
    if trainer.grad_scaler is not None:
        state["grad_scaler"] = trainer.grad_scaler.state_dict()
    return state


def load_trainer_state(trainer, state: dict[str, Any]) -> None:
    """Take :func:`trainer_state` back; what differs from then is logged as a warning.

    Raises:
        UserError: the state is of another model.
    """
    ours = _circumstances(trainer)
    for key, theirs in state["circumstances"].items():
        if ours.get(key) != theirs:
            logger.warning(
                "Resuming under other circumstances: %s was %s and is %s; the run goes on, but "
                "not bit for bit as it would have.",
                key,
                theirs,
                ours.get(key),
            )
    trainer.finished_iters = state["iteration"] + 1
    trainer.seed = state["seed"]
    if isinstance(trainer.data_loader, TrainLoader):
        trainer.data_loader.seed = trainer.seed
    load_optimizer_state(trainer.optimizer, unwrap(trainer.model), state["optimizer"])
    if trainer.grad_scaler is not None and "grad_scaler" in state:
        trainer.grad_scaler.load_state_dict(state["grad_scaler"])
    trainer.scheduler.last_epoch = trainer.finished_iters
    trainer.set_lr_scale(state["lr_scale"])
    for hook in trainer._hooks:
        if type(hook).__name__ in state["hooks"]:
            hook.load_state_dict(state["hooks"][type(hook).__name__])


def _hook_state(hook: HookBase) -> dict[str, Any]:
    # Detectron2's own LR hook saves what iteration and scale already say.
    return {} if isinstance(hook, hooks.LRScheduler) else hook.state_dict()


def _circumstances(trainer) -> dict[str, Any]:
    return {
        "Detectron2 build": detectron2_build(),
        "torch": torch.__version__.split("+")[0],
        "number of processes": comm.get_world_size(),
        "device": torch.device(trainer.cfg.MODEL.DEVICE).type,
        "batch size": trainer.cfg.SOLVER.IMS_PER_BATCH,
        "training images": trainer.schedule.images,
        "MAX_ITER": trainer.max_iter,
        "precision": str(amp_dtype(trainer.cfg) or torch.float32),
    }
