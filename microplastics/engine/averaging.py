"""The exponential moving average of the weights."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine.hooks import HookBase, PreciseBN
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from microplastics.utils.errors import check_option


class WeightAverage(HookBase):
    """Averages the weights over the iterations (Polyak and Juditsky 1992).

    After step t the average moves by 1 - d_t towards the weights, with d_t the lower one of
    DECAY and (1 + t) / (10 + t): what training began with is soon forgotten. The running
    statistics of norm layers are averaged likewise; frozen weights stay where they are.

    Training goes on with the weights themselves. Evaluation and checkpoints take the average; the
    state of this hook holds the others, so that a resumed training goes on with both.

    Attributes:
        averages: by the names of the model's state dict; empty before training.
        updates: number of steps so far.
    """

    def __init__(self, model: nn.Module, cfg: CfgNode):
        """
        Args:
            model: the model, not wrapped, on its device.
            cfg: SOLVER.EMA is used.

        Raises:
            UserError: ``config_invalid``.
        """
        self._model, self._decay = model, cfg.SOLVER.EMA.DECAY
        expected = "a number from 0 to below 1"
        fits = 0 <= self._decay < 1
        check_option(fits, "SOLVER.EMA.DECAY", self._decay, expected, "config_invalid")
        self.averages: dict[str, torch.Tensor] = {}
        self.updates = 0

    def _live(self) -> dict[str, torch.Tensor]:
        """Return what training changes, by name: trained weights and running statistics."""
        fixed = {name for name, p in self._model.named_parameters() if not p.requires_grad}
        # keep_vars: the tensors themselves, whose data applied() exchanges.
        state = self._model.state_dict(keep_vars=True)
        return {n: v for n, v in state.items() if v.is_floating_point() and n not in fixed}

    def _pairs(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return each tensor and its average once, those with several names too."""
        live = {id(value): (value, self.averages[name]) for name, value in self._live().items()}
        return list(live.values())

    def start(self) -> None:
        """Begin with the weights that the model has now."""
        live = self._live()
        copies = {id(value): value.detach().clone() for value in live.values()}
        self.averages.update((name, copies[id(value)]) for name, value in live.items())

    def before_train(self) -> None:
        if not self.averages:
            self.start()

    def after_step(self) -> None:
        self.updates += 1
        decay = min(self._decay, (1 + self.updates) / (10 + self.updates))
        live, averages = zip(*self._pairs(), strict=True)
        live = [value.detach() for value in live]
        get_ema_multi_avg_fn(decay)(list(averages), live, self.updates)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Let the model compute with the average instead of its own weights."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        for value, average in self._pairs():
            value.data, average.data = average.data, value.data

    def state_dict(self) -> dict[str, Any]:
        weights = {name: value.detach() for name, value in self._live().items()}
        return {"updates": self.updates, "weights": weights} if self.averages else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of a checkpoint whose average the model has loaded already."""
        self.start()
        self.updates = state["updates"]
        with torch.no_grad():
            for name, value in self._live().items():
                value.copy_(state["weights"].get(name, value))


class ResumablePreciseBN(PreciseBN):
    """Detectron2's TEST.PRECISE_BN, for the average of the weights if there is one.

    The iteration chooses the batches, so that a resumed training sees the same ones.
    """

    def update_stats(self) -> None:
        average = self.trainer.average
        self._data_iter = self.trainer.batches_from(self._data_loader, self.trainer.iter + 1)
        with average.applied() if average else contextlib.nullcontext():
            super().update_stats()
        self._data_iter = None  # ends its workers
