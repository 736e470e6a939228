"""Training hooks: validation, plateau LR, best checkpoint, early stopping, writers, threads.

The hooks that decide by the validation see the same broadcast results on every rank, so every rank
decides alike, and keep their state in the checkpoint.
"""

import logging
import math
import os
import re
from collections.abc import Callable
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.events import EventWriter

from microplastics.engine.weights import BEST
from microplastics.utils.errors import UserError
from microplastics.utils.system import available_processors
from microplastics.utils.threads import OtherProcesses, fitting_threads

logger = logging.getLogger(__name__)


# Anchored, for the path of a data set may precede the metric and look like it.
_MINIMISED = re.compile(
    r"(^|/)(validation/[^/]*$|blank/(FP_per_image|images_with_FP)|counting/[a-z_]+_MAE)"
)


def flatten_results(results: dict[str, Any]) -> dict[str, float]:
    """Turn ``{"segm": {"AP50": x}}`` into ``{"segm/AP50": x}``, at any depth."""
    flat = {}
    for key, value in results.items():
        if isinstance(value, dict):
            flat.update({f"{key}/{k}": v for k, v in flatten_results(value).items()})
        else:
            flat[key] = float(value)
    return flat


def metric_value(metrics: dict[str, float], name: str) -> float:
    """Return a metric; with several test sets a bare name means the first that has a number.

    A test set of only blanks has neither AP nor loss: both are NaN there.

    Raises:
        UserError: metric_unknown.
    """
    found = [value for key, value in metrics.items() if key == name or key.endswith(f"/{name}")]
    if found:
        return next((value for value in found if not math.isnan(value)), found[0])
    raise UserError(
        f"{name} is not a metric of the evaluation; expected one of {', '.join(metrics)}.",
        code="metric_unknown",
    )


class Improvement:
    """Best value of one metric."""

    def __init__(self, metric: str, threshold: float = 0.0):
        """
        Args:
            metric: flattened name; ``validation/`` (losses), ``blank/`` (false positives) and
                the mean absolute errors of ``counting/`` are minimised.
            threshold: relative change that counts as better (torch's ``rel`` mode).
        """
        self.metric = metric
        self.minimise = _MINIMISED.search(metric) is not None
        self.threshold = threshold
        self.best: float | None = None

    def update(self, value: float) -> bool:
        """Take a new value and return whether it is better than all before; NaN never is."""
        if math.isnan(value):
            return False
        if self.best is not None:
            margin = self.threshold * abs(self.best)
            better = value < self.best - margin if self.minimise else value > self.best + margin
            if not better:
                return False
        self.best = float(value)
        return True


class ValidationHook(HookBase):
    """Evaluates every ``period`` iterations and after the last one, on all ranks.

    The newest results are ``trainer.last_eval``: ``(iteration, flat metrics)``.
    """

    def __init__(self, period: int, evaluate):
        """
        Args:
            period: iterations; 0 evaluates only at the end.
            evaluate: returns nested results, equal on all ranks.
        """
        self._period = period
        self._evaluate = evaluate

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if self._period > 0 and done % self._period == 0:
            self._run()

    def after_train(self) -> None:
        # Not after a crash, nor after a stop by a signal, when time is short.
        if self.trainer.finished and (self.trainer.last_eval or (None,))[0] != self.trainer.iter:
            self._run(at=self.trainer.iter)

    def _run(self, at: int | None = None) -> None:
        metrics = flatten_results(self._evaluate())
        self.trainer.last_eval = (self.trainer.iter + 1 if at is None else at, metrics)
        if comm.is_main_process():
            self.trainer.storage.put_scalars(**metrics, smoothing_hint=False)

    def state_dict(self) -> dict[str, Any]:
        if self.trainer.last_eval is None:
            return {}
        iteration, metrics = self.trainer.last_eval
        return {"iteration": iteration, "metrics": dict(metrics)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.trainer.last_eval = (state["iteration"], dict(state["metrics"]))


class _MetricHook(HookBase):
    """Calls ``decide`` once for each evaluation.

    Attributes:
        improvement: the metric and its best value.
        bad_evaluations: evaluations since then, if the subclass counts them.
    """

    def __init__(self, metric: str, threshold: float = 0.0):
        self.improvement = Improvement(metric, threshold)
        self.bad_evaluations = 0
        self._seen: int | None = None

    def after_step(self) -> None:
        self._look()

    def after_train(self) -> None:
        if self.trainer.finished:
            self._look()

    def _look(self) -> None:
        if self.trainer.last_eval is None or self.trainer.last_eval[0] == self._seen:
            return
        self._seen, metrics = self.trainer.last_eval
        self.decide(metric_value(metrics, self.improvement.metric))

    def decide(self, value: float) -> None:
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        return {
            "metric": self.improvement.metric,
            "best": self.improvement.best,
            "seen": self._seen,
            "bad_evaluations": self.bad_evaluations,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["metric"] != self.improvement.metric:
            logger.warning(
                "%s watched %s in the checkpoint and watches %s now: it starts again.",
                type(self).__name__,
                state["metric"],
                self.improvement.metric,
            )
            return
        self.improvement.best = state["best"]
        self._seen = state["seen"]
        self.bad_evaluations = state.get("bad_evaluations", 0)


class PlateauLR(_MetricHook):
    """torch's ``ReduceLROnPlateau`` as a factor on top of any Detectron2 schedule."""

    def __init__(self, cfg: CfgNode):
        settings = cfg.SOLVER.PLATEAU
        super().__init__(settings.METRIC, settings.THRESHOLD)
        self._factor = settings.FACTOR
        self._patience = settings.PATIENCE
        self._min_scale = settings.MIN_SCALE

    def decide(self, value: float) -> None:
        if self.improvement.update(value):
            self.bad_evaluations = 0
            return
        self.bad_evaluations += 1
        if self.bad_evaluations > self._patience:
            self.bad_evaluations = 0
            scale = max(self.trainer.lr_scale * self._factor, self._min_scale)
            if scale < self.trainer.lr_scale:
                logger.info(
                    "%s has not improved on %.5g in %d evaluations: LR scaled by %g.",
                    self.improvement.metric,
                    self.improvement.best if self.improvement.best is not None else math.nan,
                    self._patience + 1,
                    scale / self.trainer.lr_scale,
                )
                self.trainer.set_lr_scale(scale)


class EarlyStopping(_MetricHook):
    """Ends training when a metric has not improved for PATIENCE evaluations."""

    def __init__(self, cfg: CfgNode):
        settings = cfg.SOLVER.EARLY_STOPPING
        super().__init__(settings.METRIC, settings.THRESHOLD)
        self._patience = settings.PATIENCE

    def before_train(self) -> None:
        # A training that has stopped stays stopped when it is resumed.
        self._stop_if_due()

    def decide(self, value: float) -> None:
        self.bad_evaluations = 0 if self.improvement.update(value) else self.bad_evaluations + 1
        self._stop_if_due()

    def _stop_if_due(self) -> None:
        if self.bad_evaluations >= self._patience:
            best = self.improvement.best
            self.trainer.request_stop(
                f"{self.improvement.metric} has not improved on "
                f"{'any number' if best is None else f'{best:.5g}'} "
                f"in {self.bad_evaluations} evaluations"
            )


class BestCheckpoint(_MetricHook):
    """Keeps the weights of the best evaluation as ``model_best.pth``."""

    def __init__(self, cfg: CfgNode, checkpointer):
        super().__init__(cfg.SOLVER.BEST_CHECKPOINT.METRIC)
        self._checkpointer = checkpointer

    def decide(self, value: float) -> None:
        before = self.improvement.best
        if self.improvement.update(value):
            iteration, metrics = self.trainer.last_eval
            logger.info(
                "%s %.5g is the best so far%s: saving %s.pth.",
                self.improvement.metric,
                value,
                "" if before is None else f" (before: {before:.5g})",
                BEST,
            )
            self._checkpointer.save(
                BEST, with_trainer=False, iteration=iteration, metrics=dict(metrics)
            )


class PeriodicCheckpoints(HookBase):
    """Saves every ``period`` iterations, after the decisions of the same iteration."""

    def __init__(self, checkpointer, period: int, keep: int):
        self._checkpointer = checkpointer
        self._period = period
        self._keep = keep

    def after_step(self) -> None:
        if self._period > 0 and (self.trainer.iter + 1) % self._period == 0:
            self._checkpointer.save_periodic(self.trainer.iter, self._keep)


class Writers(HookBase):
    """Detectron2's ``PeriodicWriter`` for a loop that may end early."""

    def __init__(self, build_writers: Callable[[], list[EventWriter]], period: int = 20):
        """
        Args:
            build_writers: called when training starts: a resume replaces metrics.json before.
            period: iterations.
        """
        self._build_writers = build_writers
        self._writers: list[EventWriter] = []
        self._period = period

    def before_train(self) -> None:
        self._writers = self._build_writers()

    def after_step(self) -> None:
        if (self.trainer.iter + 1) % self._period == 0:
            self._write()

    def after_train(self) -> None:
        self._write()
        for writer in self._writers:
            writer.close()

    def _write(self) -> None:
        for writer in self._writers:
            writer.write()


class AdaptThreads(HookBase):
    """Trains on fewer threads while other processes compute.

    The threads of oneDNN's gradients of convolution weights wait for each other by spinning, in
    generated code that no setting of OpenMP reaches: when a thread loses its core, an iteration
    takes several times as long as on one thread.
    """

    def __init__(self) -> None:
        self._most = torch.get_num_threads()
        self._logged = False

    @classmethod
    def applies(cls, cfg: CfgNode) -> bool:
        """Return whether training is one process on CPU threads whose number is not set."""
        return (
            cfg.SOLVER.ADAPT_THREADS
            and "OMP_NUM_THREADS" not in os.environ
            and torch.device(cfg.MODEL.DEVICE).type == "cpu"
            and comm.get_world_size() == 1
            and torch.get_num_threads() > 1
        )

    def before_train(self) -> None:
        self._others = OtherProcesses()

    def before_step(self) -> None:
        others = self._others.cores()
        if others is None:
            return
        threads = fitting_threads(self._most, available_processors(), others)
        if threads == torch.get_num_threads():
            return
        torch.set_num_threads(threads)
        if not self._logged:
            logger.info(
                "Other processes use %.1f cores: training takes %d of %d threads until they end "
                "(SOLVER.ADAPT_THREADS). Results differ in their last bits; set OMP_NUM_THREADS "
                "to keep the number fixed.",
                others,
                threads,
                self._most,
            )
            self._logged = True

    def after_train(self) -> None:
        torch.set_num_threads(self._most)
