"""Records of a training: Weights & Biases, MLflow, and ``metrics.json`` of a resumed run."""

import importlib
import json
import logging
import os
import re
from types import ModuleType

from detectron2.config import CfgNode
from detectron2.utils.events import EventWriter, get_event_storage

from microplastics.utils.errors import UserError
from microplastics.utils.io import atomic_write

logger = logging.getLogger(__name__)


class _ScalarWriter(EventWriter):
    """Gives each smoothed scalar once to :meth:`log`."""

    _last = -1

    def write(self) -> None:
        new: dict[int, dict[str, float]] = {}
        latest = get_event_storage().latest_with_smoothing_hint(20)
        for name, (value, iteration) in latest.items():
            if iteration > self._last:
                new.setdefault(iteration, {})[name] = float(value)
        for iteration in sorted(new):
            self.log(new[iteration], iteration)
            self._last = iteration

    def log(self, scalars: dict[str, float], iteration: int) -> None:
        raise NotImplementedError


class WandbWriter(_ScalarWriter):
    """Weights & Biases (``pip install wandb``), under WRITERS.WANDB."""

    def __init__(self, cfg: CfgNode):
        settings = cfg.WRITERS.WANDB
        self._run = _imported("wandb").init(
            project=settings.PROJECT,
            name=settings.NAME or None,
            dir=cfg.OUTPUT_DIR,
            config=json.loads(json.dumps(cfg, default=str)),
        )

    def log(self, scalars: dict[str, float], iteration: int) -> None:
        self._run.log(scalars, step=iteration)

    def close(self) -> None:
        self._run.finish()


class MlflowWriter(_ScalarWriter):
    """MLflow (``pip install mlflow``), under WRITERS.MLFLOW."""

    def __init__(self, cfg: CfgNode):
        settings = cfg.WRITERS.MLFLOW
        self._mlflow = _imported("mlflow")
        if settings.TRACKING_URI:
            self._mlflow.set_tracking_uri(settings.TRACKING_URI)
        self._mlflow.set_experiment(settings.EXPERIMENT)
        self._mlflow.start_run()
        self._mlflow.log_text(cfg.dump(), "config.yaml")

    def log(self, scalars: dict[str, float], iteration: int) -> None:
        # MLflow refuses other characters, which class names may hold.
        clean = {re.sub(r"[^\w\-./ :]", "_", name): v for name, v in scalars.items()}
        self._mlflow.log_metrics(clean, step=iteration)

    def close(self) -> None:
        self._mlflow.end_run()


def _imported(package: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UserError(
            f"The package {package} is not installed, but WRITERS.{package.upper()}.ENABLED needs "
            f"it; run pip install {package}, or set the key False.",
            code="dependency_missing",
        ) from error


def truncate_metrics(output_dir: str, start_iter: int) -> None:
    """Drop the lines of ``metrics.json`` from an iteration on, which is trained again."""
    path = os.path.join(output_dir, "metrics.json")
    if os.path.isfile(path):
        kept = []
        with open(path, encoding="utf-8") as file:
            for line in file:
                try:
                    if json.loads(line).get("iteration", 0) < start_iter:
                        kept.append(line)
                except json.JSONDecodeError:  # a run that was killed left half a line
                    logger.warning("Dropping a half-written line of %s.", path)
        with atomic_write(path) as file:
            file.writelines(kept)
