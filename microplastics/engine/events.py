"""Losses, metric names and event writers of a training."""

import json
import logging
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils import comm
from detectron2.utils.events import (
    CommonMetricPrinter,
    EventStorage,
    EventWriter,
    JSONWriter,
    TensorboardXWriter,
    get_event_storage,
)

from microplastics.evaluation.counting import MAXIMISED, MINIMISED, SIZES_MINIMISED
from microplastics.evaluation.image_metrics import blank_images
from microplastics.utils.errors import UserError
from microplastics.utils.io import atomic_write

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.json"

_AP = ("AP", "AP50", "AP75", "APs", "APm", "APl")
# Of Mask R-CNN; those of other models are learnt from the model.
_LOSSES = ("loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg", "loss_mask")
_WATCHERS = ("PLATEAU", "EARLY_STOPPING", "BEST_CHECKPOINT")


def known_metrics(cfg: CfgNode, losses: Sequence[str] = _LOSSES, blanks: bool = True) -> list[str]:
    """Name the metrics, flattened, that an evaluation under a config yields.

    Args:
        cfg: the config.
        losses: names of the model's losses.
        blanks: read the data sets, and name the metrics of blank images if there are some.
    """
    classes = MetadataCatalog.get(cfg.DATASETS.TEST[0]).get("thing_classes", [])
    tasks = ("bbox", "segm") if cfg.MODEL.MASK_ON else ("bbox",)
    names = []
    if cfg.TEST.VAL_LOSS.ENABLED:
        names += [f"validation/{name}" for name in ("total_loss", *losses)]
    names += [f"{t}/{ap}" for t in tasks for ap in _AP]
    names += [f"{t}/{ap}-{c}" for t in tasks for c in classes for ap in ("AP", "AP50")]
    if cfg.MODEL.MASK_ON:
        names += ["semantic/IoU_best", "semantic/IoU", "semantic/Dice"]
        names += _counting_names(cfg, classes)
    # Blanks are often a test set of their own, beside the one with particles.
    json_files = [MetadataCatalog.get(name).get("json_file") for name in cfg.DATASETS.TEST]
    if blanks and any(file is not None and blank_images(file) for file in json_files):
        names += ["blank/FP_per_image", "blank/images_with_FP"]
        names += [f"blank/FP_per_image-{name}" for name in classes]
    return names


def _counting_names(cfg: CfgNode, classes: Sequence[str]) -> list[str]:
    """Name the figures of counting for which more, or less, is better."""
    if not cfg.TEST.COUNTING.ENABLED:
        return []
    figures = [*MAXIMISED, *MINIMISED]
    if cfg.TEST.COUNTING.SIZES == "always":
        figures += SIZES_MINIMISED
    suffixes = ["", *(f"-{name}" for name in classes)]
    return [f"counting/{figure}{suffix}" for suffix in suffixes for figure in figures]


def check_metric_names(cfg: CfgNode, loss_names: Callable[[], Sequence[str]] | None = None) -> None:
    """Refuse a metric that no evaluation will yield before training, not an epoch later.

    Args:
        cfg: the config.
        loss_names: learns the names of the model's losses, as
            :func:`microplastics.evaluation.validation.loss_names` does; called on all ranks, and
            only if a loss is watched that Mask R-CNN does not have.

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
    known = known_metrics(cfg, blanks=False)
    unknown = [metric for metric in watched.values() if not _is_known(metric, known)]
    if unknown:
        losses: Sequence[str] = _LOSSES
        if cfg.TEST.VAL_LOSS.ENABLED and any("validation/" in metric for metric in unknown):
            losses = loss_names() if loss_names is not None else _LOSSES
        known = known_metrics(cfg, losses or _LOSSES)
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


def write_losses(
    losses: dict[str, torch.Tensor],
    data_time: float,
    batch: list[dict[str, Any]],
    checkpointer: Any,
) -> None:
    """Put the losses, averaged over ranks, into the storage of rank 0.

    Args:
        losses: scalar tensors by name.
        data_time: seconds that the batch took to arrive.
        batch: the batch, for the message.
        checkpointer: knows the newest checkpoint, for the message.

    Raises:
        UserError: training_failed; a loss is not finite on a rank.
    """
    names = list(losses)
    # One transfer for all of them; each .item() would wait for the device by itself.
    row = torch.stack([losses[name].detach().float() for name in names])
    rows = row[None]
    if comm.get_world_size() > 1:
        gathered = [torch.empty_like(row) for _ in range(comm.get_world_size())]
        dist.all_gather(gathered, row)
        rows = torch.stack(gathered)
    values = rows.cpu()
    storage = get_event_storage()
    finite = torch.isfinite(values).all(dim=0)
    if not finite.all():
        broken = [name for name, fine in zip(names, finite, strict=True) if not fine]
        files = [item["file_name"] for item in batch]
        if comm.get_world_size() > 1:
            files = [name for group in comm.all_gather(files) for name in group]
        raise divergence(" and ".join(broken), storage.iter, files, checkpointer)
    if comm.is_main_process():
        means = dict(zip(names, values.mean(dim=0).tolist(), strict=True))
        storage.put_scalar("data_time", data_time)
        _write_dropped(batch, storage)
        storage.put_scalar("total_loss", sum(means.values()))
        storage.put_scalars(**means)


def _write_dropped(batch: list[dict[str, Any]], storage: EventStorage) -> None:
    """Count the particles of this rank's batch that augmentations left too little of, if any."""
    dropped = sum(item.get("dropped_instances", 0) for item in batch)
    if dropped or "dropped_instances" in storage.histories():
        storage.put_scalar("dropped_instances", dropped)


def divergence(what: str, iteration: int, files: list[str], checkpointer: Any) -> UserError:
    """Make the error of a training whose numbers are not finite any more.

    Args:
        what: what became infinite or NaN.
        iteration: when.
        files: images of that batch.
        checkpointer: knows the newest checkpoint.
    """
    last = (checkpointer.resumable() or ["none yet"])[0]
    return UserError(
        f"{what} became infinite or NaN at iteration {iteration} with the images "
        f"{', '.join(files)}; last checkpoint: {last}. Lower SOLVER.BASE_LR, or check the "
        "annotations of these images.",
        code="training_failed",
    )


class _NewScalars:
    """The smoothed scalars that have come since the last call."""

    def __init__(self, window_size: int = 20):
        self._window_size = window_size
        self._last = -1

    def __call__(self) -> dict[int, dict[str, float]]:
        latest = get_event_storage().latest_with_smoothing_hint(self._window_size)
        new: dict[int, dict[str, float]] = {}
        for name, (value, iteration) in latest.items():
            if iteration > self._last:
                new.setdefault(iteration, {})[name] = float(value)
        self._last = max([self._last, *new])
        return dict(sorted(new.items()))


class WandbWriter(EventWriter):
    """Weights & Biases (``pip install wandb``), under WRITERS.WANDB."""

    def __init__(self, cfg: CfgNode):
        try:
            import wandb
        except ImportError as error:
            raise _not_installed("WANDB", "wandb") from error
        settings = cfg.WRITERS.WANDB
        self._run = wandb.init(
            project=settings.PROJECT,
            name=settings.NAME or None,
            dir=cfg.OUTPUT_DIR,
            config=json.loads(json.dumps(cfg, default=str)),
        )
        self._new = _NewScalars()

    def write(self) -> None:
        for iteration, scalars in self._new().items():
            self._run.log(scalars, step=iteration)

    def close(self) -> None:
        self._run.finish()


class MlflowWriter(EventWriter):
    """MLflow (``pip install mlflow``), under WRITERS.MLFLOW."""

    def __init__(self, cfg: CfgNode):
        try:
            import mlflow
        except ImportError as error:
            raise _not_installed("MLFLOW", "mlflow") from error
        settings = cfg.WRITERS.MLFLOW
        if settings.TRACKING_URI:
            mlflow.set_tracking_uri(settings.TRACKING_URI)
        mlflow.set_experiment(settings.EXPERIMENT)
        mlflow.start_run()
        mlflow.log_text(cfg.dump(), "config.yaml")
        self._mlflow = mlflow
        self._new = _NewScalars()

    def write(self) -> None:
        for iteration, scalars in self._new().items():
            # MLflow refuses other characters, which class names may hold.
            clean = {re.sub(r"[^\w\-./ :]", "_", name): v for name, v in scalars.items()}
            self._mlflow.log_metrics(clean, step=iteration)

    def close(self) -> None:
        self._mlflow.end_run()


def _not_installed(section: str, package: str) -> UserError:
    return UserError(
        f"The package {package} is not installed, but WRITERS.{section}.ENABLED needs it; run pip "
        f"install {package}, or set the key False.",
        code="dependency_missing",
    )


def build_writers(cfg: CfgNode, max_iter: int) -> list[EventWriter]:
    """Build the terminal (with ETA), ``metrics.json``, TensorBoard and those of WRITERS."""
    os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
    writers: list[EventWriter] = [
        CommonMetricPrinter(max_iter),
        JSONWriter(os.path.join(cfg.OUTPUT_DIR, METRICS_FILE)),
        TensorboardXWriter(cfg.OUTPUT_DIR),
    ]
    if cfg.WRITERS.WANDB.ENABLED:
        writers.append(WandbWriter(cfg))
    if cfg.WRITERS.MLFLOW.ENABLED:
        writers.append(MlflowWriter(cfg))
    return writers


def truncate_metrics(output_dir: str, start_iter: int) -> None:
    """Drop the lines of ``metrics.json`` that a resumed run will write again.

    Args:
        output_dir: folder of the training.
        start_iter: first iteration that is trained again.
    """
    path = os.path.join(output_dir, METRICS_FILE)
    if not os.path.isfile(path):
        return
    kept = []
    with open(path, encoding="utf-8") as file:
        for line in file:
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                logger.warning("Dropping a half-written line of %s.", path)
                continue
            if record.get("iteration", 0) < start_iter:
                kept.append(line)
    with atomic_write(path) as file:
        file.writelines(kept)
