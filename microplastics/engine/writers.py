"""Where the numbers of a training go."""

import json
import logging
import os
import re

from detectron2.config import CfgNode
from detectron2.utils.events import (
    CommonMetricPrinter,
    EventWriter,
    JSONWriter,
    TensorboardXWriter,
    get_event_storage,
)

from microplastics.errors import UserError
from microplastics.files import atomic_write

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.json"


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
            raise UserError(
                "WRITERS.WANDB.ENABLED needs the package wandb; run pip install wandb, or switch "
                "it off."
            ) from error
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
            raise UserError(
                "WRITERS.MLFLOW.ENABLED needs the package mlflow; run pip install mlflow, or "
                "switch it off."
            ) from error
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


def build_writers(cfg: CfgNode, max_iter: int) -> list[EventWriter]:
    """Terminal with ETA, ``metrics.json``, TensorBoard, and what WRITERS asks for."""
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
