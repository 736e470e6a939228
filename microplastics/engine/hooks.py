"""Training hooks: validation and what watches its metrics, checkpoints, writers, threads.

What decides by the validation sees the same results on every rank, so that all decide alike.
"""

import contextlib
import logging
import math
import multiprocessing
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine.hooks import HookBase, PeriodicWriter
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from detectron2.utils.events import EventWriter

from microplastics.data.coco import coco_api
from microplastics.engine.checkpoint import BEST
from microplastics.evaluation.coco import METRICS
from microplastics.evaluation.counting import MAXIMISED, MINIMISED, SIZES_MINIMISED
from microplastics.utils.errors import UserError
from microplastics.utils.io import is_write_error, write_error
from microplastics.utils.system import available_processors

logger = logging.getLogger(__name__)

# A process that gets less than this part of a core is not worth giving a core up for.
_NEGLIGIBLE_CORES = 0.4
# Anchored, for the path of a data set may precede the metric and look like it.
_MINIMISED = re.compile(
    r"(^|/)(validation/[^/]*$|blank/(FP_per_image|images_with_FP)|counting/[a-z_]+_MAE)"
)
# Of Mask R-CNN; those of other models are learnt from the model.
_LOSSES = ("loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg", "loss_mask")
_WATCHERS = ("PLATEAU", "EARLY_STOPPING", "BEST_CHECKPOINT")


def flatten_results(results: dict[str, Any]) -> dict[str, float]:
    """Turn ``{"segm": {"AP50": x}}`` into ``{"segm/AP50": x}``, at any depth."""
    return {name: float(value) for name, value in flatten_results_dict(results).items()}


def metric_value(metrics: dict[str, float], name: str) -> float:
    """Return a metric, or raise metric_unknown; of several test sets the first that is no NaN."""
    # One of only blanks has neither AP nor loss.
    found = [value for key, value in metrics.items() if key == name or key.endswith(f"/{name}")]
    if found:
        return next((value for value in found if not math.isnan(value)), found[0])
    raise UserError(
        f"{name} is not a metric of the evaluation; expected one of {', '.join(metrics)}.",
        code="metric_unknown",
    )


def known_metrics(cfg: CfgNode, losses: Sequence[str] = _LOSSES) -> list[str]:
    """Name the metrics, flattened, that an evaluation of a model with such losses yields."""
    classes = MetadataCatalog.get(cfg.DATASETS.TEST[0]).get("thing_classes", [])
    tasks = ("bbox", "segm") if cfg.MODEL.MASK_ON else ("bbox",)
    names = []
    if cfg.TEST.VAL_LOSS.ENABLED:
        names += [f"validation/{name}" for name in ("total_loss", *losses)]
    names += [f"{t}/{ap}" for t in tasks for ap in METRICS]
    if len(classes) > 1:  # of one class alone Detectron2 gives only the AP of all
        names += [f"{t}/{ap}-{c}" for t in tasks for c in classes for ap in ("AP", "AP50")]
    if cfg.MODEL.MASK_ON:
        names += ["semantic/IoU_best", "semantic/IoU", "semantic/Dice"]
    if cfg.MODEL.MASK_ON and cfg.TEST.COUNTING.ENABLED:
        figures = [*MAXIMISED, *MINIMISED]
        if cfg.TEST.COUNTING.SIZES == "always":
            figures += SIZES_MINIMISED
        suffixes = ["", *(f"-{name}" for name in classes)]
        names += [f"counting/{figure}{suffix}" for suffix in suffixes for figure in figures]
    # Blanks are often a test set of their own, beside the one with particles.
    json_files = [MetadataCatalog.get(name).get("json_file") for name in cfg.DATASETS.TEST]
    apis = [coco_api(file) for file in json_files if file is not None]
    if any(not api.imgToAnns.get(image_id) for api in apis for image_id in api.imgs):
        names += ["blank/FP_per_image", "blank/images_with_FP"]
        names += [f"blank/FP_per_image-{name}" for name in classes]
    return names


def check_metric_names(cfg: CfgNode, loss_names: Callable[[], Sequence[str]]) -> None:
    """Refuse a metric that no evaluation will yield before training, not an epoch later.

    ``loss_names`` learns the names of the model's losses; it is called on all ranks, and only if a
    loss is watched that Mask R-CNN does not have.

    Raises:
        UserError: option_conflict (there is nothing to evaluate on), metric_unknown.
    """
    watched = {key: cfg.SOLVER[key].METRIC for key in _WATCHERS if cfg.SOLVER[key].ENABLED}
    if not cfg.DATASETS.TEST:
        # The best checkpoint is on by default; the others were asked for.
        for key in watched.keys() - {"BEST_CHECKPOINT"}:
            raise UserError(
                f"DATASETS.TEST is empty, but SOLVER.{key} needs its evaluation; name a validation "
                f"set, or set SOLVER.{key}.ENABLED False.",
                code="option_conflict",
            )
        return
    known = known_metrics(cfg)
    others = [metric for metric in watched.values() if not _is_known(metric, known)]
    if cfg.TEST.VAL_LOSS.ENABLED and any("validation/" in metric for metric in others):
        known = known_metrics(cfg, loss_names() or _LOSSES)
    for key, metric in watched.items():
        if not _is_known(metric, known):
            raise UserError(
                f"SOLVER.{key}.METRIC is {metric}; expected one that this config's evaluation "
                f"yields: {', '.join(known)}.",
                code="metric_unknown",
            )


def _is_known(metric: str, known: Sequence[str]) -> bool:
    # With several test sets a metric may be preceded by the name of one.
    return any(metric == name or metric.endswith(f"/{name}") for name in known)


class ValidationHook(HookBase):
    """Evaluates every ``period`` iterations and after the last one, on all ranks alike.

    The newest results are ``trainer.last_eval``: ``(iteration, flat metrics)``.
    """

    def __init__(self, period: int, evaluate: Callable[[], dict[str, Any]]):
        self._period = period
        self._evaluate = evaluate

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if self._period > 0 and done % self._period == 0:
            self._run(done)

    def after_train(self) -> None:
        # Not after a crash, nor after a stop by a signal, when time is short.
        if self.trainer.finished and (self.trainer.last_eval or (None,))[0] != self.trainer.iter:
            self._run(self.trainer.iter)

    def _run(self, done: int) -> None:
        metrics = flatten_results(self._evaluate())
        self.trainer.last_eval = (done, metrics)
        if comm.is_main_process():
            self.trainer.storage.put_scalars(**metrics, smoothing_hint=False)

    def state_dict(self) -> dict[str, Any]:
        if self.trainer.last_eval is None:
            return {}
        iteration, metrics = self.trainer.last_eval
        return {"iteration": iteration, "metrics": dict(metrics)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.trainer.last_eval = (state["iteration"], dict(state["metrics"]))


class ValidationPictures(HookBase):
    """Gives the writers, such as TensorBoard's, pictures after each evaluation; on rank 0.

    ``draw`` makes names and pictures, (H, W, 3) uint8 RGB.
    """

    def __init__(self, draw: Callable[[], Iterable[tuple[str, np.ndarray]]]):
        self._draw, self._shown = draw, None

    def before_train(self) -> None:
        self._shown = self._evaluated()

    def after_train(self) -> None:
        self.after_step()

    def _evaluated(self) -> int | None:
        return self.trainer.last_eval[0] if self.trainer.last_eval else None

    def after_step(self) -> None:
        if self._shown == self._evaluated():
            return
        self._shown = self._evaluated()
        try:
            for name, picture in self._draw():
                self.trainer.storage.put_image(name, picture.transpose(2, 0, 1))
        except Exception:
            # No reason to lose a night's training.
            logger.exception("The pictures of the evaluation could not be drawn")


class MetricHook(HookBase):
    """Calls :meth:`decide` once for each evaluation.

    Attributes:
        metric: flattened name.
        minimise: it is a loss, false positives on blanks or a mean absolute error of counting.
        best: its best value so far.
        bad_evaluations: number of evaluations since then.
    """

    def __init__(self, metric: str, threshold: float = 0.0):
        # The relative change that counts as better (torch's "rel" mode).
        self.metric, self._threshold = metric, threshold
        self.minimise = _MINIMISED.search(metric) is not None
        self.best: float | None = None
        self.bad_evaluations = 0
        self._seen: int | None = None

    def improved(self, value: float) -> bool:
        """Take a new value and return whether it is better than all before; NaN never is."""
        if self.best is None:
            better = not math.isnan(value)
        else:
            margin = self._threshold * abs(self.best)
            better = value < self.best - margin if self.minimise else value > self.best + margin
        if better:
            self.best = float(value)
        return better

    def stagnation(self) -> str:
        """Describe in words how long there was no improvement."""
        best = "any number" if self.best is None else f"{self.best:.5g}"
        return f"{self.metric} has not improved on {best} in {self.bad_evaluations} evaluations"

    def after_step(self) -> None:
        if self.trainer.last_eval is not None and self.trainer.last_eval[0] != self._seen:
            self._seen, metrics = self.trainer.last_eval
            better = self.improved(metric_value(metrics, self.metric))
            self.bad_evaluations = 0 if better else self.bad_evaluations + 1
            self.decide(better)

    def after_train(self) -> None:
        if self.trainer.finished:
            self.after_step()

    def decide(self, better: bool) -> None:
        """Act on an evaluation that was, or was not, better than all before."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        return {
            "metric": self.metric,
            "best": self.best,
            "seen": self._seen,
            "bad_evaluations": self.bad_evaluations,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["metric"] != self.metric:
            logger.warning(
                "%s watched %s in the checkpoint and watches %s now: it starts again.",
                type(self).__name__,
                state["metric"],
                self.metric,
            )
            return
        self.best, self._seen = state["best"], state["seen"]
        self.bad_evaluations = state["bad_evaluations"]


class PlateauLR(MetricHook):
    """torch's ``ReduceLROnPlateau`` as a factor on top of any Detectron2 schedule."""

    def __init__(self, cfg: CfgNode):
        self._settings = cfg.SOLVER.PLATEAU
        super().__init__(self._settings.METRIC, self._settings.THRESHOLD)

    def decide(self, better: bool) -> None:
        if self.bad_evaluations <= self._settings.PATIENCE:
            return
        before = self.trainer.lr_scale
        scale = max(before * self._settings.FACTOR, self._settings.MIN_SCALE)
        if scale < before:
            logger.info("%s: LR scaled by %g.", self.stagnation(), scale / before)
            self.trainer.set_lr_scale(scale)
        self.bad_evaluations = 0


class EarlyStopping(MetricHook):
    """Ends training when a metric has not improved for PATIENCE evaluations."""

    def __init__(self, cfg: CfgNode):
        settings = cfg.SOLVER.EARLY_STOPPING
        super().__init__(settings.METRIC, settings.THRESHOLD)
        self._patience = settings.PATIENCE

    def before_train(self) -> None:
        # A training that has stopped stays stopped when it is resumed.
        self.decide(better=False)

    def decide(self, better: bool) -> None:
        if self.bad_evaluations >= self._patience:
            self.trainer.request_stop(self.stagnation())


class BestCheckpoint(MetricHook):
    """Keeps the weights of the best evaluation as ``model_best.pth``."""

    def __init__(self, cfg: CfgNode, checkpointer):
        super().__init__(cfg.SOLVER.BEST_CHECKPOINT.METRIC)
        self._checkpointer = checkpointer

    def decide(self, better: bool) -> None:
        if better:
            iteration, metrics = self.trainer.last_eval
            logger.info("%s %.5g is the best so far: saving %s.pth.", self.metric, self.best, BEST)
            self._checkpointer.save(
                BEST, with_trainer=False, iteration=iteration, metrics=dict(metrics)
            )


class PeriodicCheckpoints(HookBase):
    """Saves every ``period`` iterations, after the decisions of the same iteration."""

    def __init__(self, checkpointer, period: int):
        self._checkpointer = checkpointer
        self._period = period

    def after_step(self) -> None:
        if self._period > 0 and (self.trainer.iter + 1) % self._period == 0:
            self._checkpointer.save_periodic(self.trainer.iter)


class Writers(PeriodicWriter):
    """Detectron2's, built when training starts: a resume replaces metrics.json before."""

    def __init__(self, build_writers: Callable[[], list[EventWriter]]):
        super().__init__([])
        self._build_writers = build_writers

    def before_train(self) -> None:
        self._writers = self._build_writers()

    def after_step(self) -> None:
        with self._naming_folder():
            super().after_step()

    def after_train(self) -> None:
        with self._naming_folder():
            super().after_train()

    @contextlib.contextmanager
    def _naming_folder(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:  # that of TensorBoard's thread has no name
            if not is_write_error(error):
                raise
            raise write_error(self.trainer.cfg.OUTPUT_DIR, error) from error


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


class OtherProcesses:
    """Cores that other processes use, measured from call to call.

    The process itself and its ``multiprocessing`` children (data loader workers) do not count.
    """

    def __init__(self) -> None:
        self._last = self._read()

    def cores(self, seconds: float = 2.0) -> float | None:
        """Return the cores used since the last call; ``None`` before so many seconds, off Linux."""
        if self._last is None or time.monotonic() - self._last[0] < seconds:
            return None
        (before, used_before), last = self._last, self._read()
        self._last = last
        return None if last is None else max(0.0, (last[1] - used_before) / (last[0] - before))

    @staticmethod
    def _read() -> tuple[float, float] | None:
        """Return the time, and CPU seconds of all processes but ours on the cores we may use."""
        try:
            with open("/proc/stat", encoding="ascii") as file:
                lines = [line.split() for line in file if line.startswith("cpu")]
        except OSError:
            return None  # not Linux
        ours = {f"cpu{number}" for number in os.sched_getaffinity(0)}
        # user, nice, system, (idle, iowait,) irq, softirq
        ticks = sum(sum(map(int, (*f[1:4], *f[6:8]))) for f in lines if f[0] in ours)
        for child in multiprocessing.active_children():
            # A child that has just ended is counted by os.times() when it has been waited for.
            with (
                contextlib.suppress(OSError),
                open(f"/proc/{child.pid}/stat", encoding="utf-8") as file,
            ):
                fields = file.read().rpartition(")")[2].split()
                ticks -= int(fields[11]) + int(fields[12])
        times = os.times()
        ended = times.children_user + times.children_system
        return time.monotonic(), ticks / os.sysconf("SC_CLK_TCK") - time.process_time() - ended


def fitting_threads(most: int, cores: int, others: float) -> int:
    """Choose a number of threads that leaves other processes their cores, but at least half.

    Threads that compute one thing together wait for the slowest of them, so one thread that has
    to share its core delays all. ``cores`` are those of this process, ``others`` those in use.
    """
    free = cores - math.ceil(others - _NEGLIGIBLE_CORES)
    return min(most, max(free, most // 2, 1))
