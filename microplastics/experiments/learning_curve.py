"""Learning curves: trainings on subsets of the images from several starts."""

import argparse
import gc
import logging
import os
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from microplastics.data.loader import check_datasets
from microplastics.engine.defaults import setup
from microplastics.engine.trainer import Trainer
from microplastics.utils.errors import UserError
from microplastics.utils.io import read_json, write_json, write_rows

logger = logging.getLogger(__name__)

METRICS = ("segm/AP", "segm/AP50", "bbox/AP")
_RESULT = "learning_curve_run.json"


@dataclass(frozen=True)
class Start:
    """Weights that a training starts from.

    Attributes:
        name: for the table.
        weights: ``MODEL.WEIGHTS``; empty for random ones.
    """

    name: str
    weights: str


@dataclass(frozen=True)
class Run:
    """One finished training.

    Attributes:
        start: name of its starting weights.
        images: training images.
        seed: of the subset and of the training.
        metrics: the last evaluation, flat names to numbers.
    """

    start: str
    images: int
    seed: int
    metrics: dict[str, float]


class Stopped(Exception):
    """A signal ended a training; ``code`` is the exit code for it."""

    def __init__(self, code: int):
        super().__init__(code)
        self.code = code


def run_learning_curve(
    config_file: str,
    opts: Sequence[str],
    starts: Sequence[Start],
    images: Sequence[int | None],
    seeds: Sequence[int],
    output: str | os.PathLike,
) -> list[Run]:
    """Train from each start on subsets of the training set, and evaluate each at its end.

    A subset is drawn at random from the annotated images; under one seed all starts get the same
    subset, and a smaller subset is part of a larger one. A finished run is not repeated, a stopped
    one is continued. Writes ``runs.csv`` (a row a run) and ``summary.csv`` into ``output`` after
    each run.

    Args:
        config_file: the config of all runs; DATASETS.TRAIN names one COCO data set.
        opts: KEY VALUE pairs of the config.
        starts: what to start from.
        images: numbers of training images; None takes all.
        seeds: one run for each.
        output: folder of the runs.

    Returns:
        The runs, by number of images, start and seed.

    Raises:
        UserError: settings or data do not fit.
        Stopped: Ctrl-C or SIGTERM; the same call continues.
    """
    output = Path(output)
    _check_names(starts)
    probe = setup(_arguments(config_file, [*opts, "OUTPUT_DIR", str(output)]))
    cfg = check_datasets(probe)
    runs: list[Run] = []
    for count in images:
        for seed in seeds:
            json_file, number = _subset(cfg, count, seed, output / "subsets")
            for start in starts:
                runs.append(_train(config_file, opts, cfg, start, json_file, number, seed, output))
                _write(runs, output)
    return runs


def summarise(runs: Sequence[Run]) -> list[dict[str, str | int | float]]:
    """Compute mean and spread over the seeds, one row for each start and number of images.

    Args:
        runs: as :func:`run_learning_curve` returns them.

    Returns:
        Rows of ``images``, ``start``, ``seeds`` and, for each metric, its mean and
        ``… spread``: half the distance between the lowest and the highest run.
    """
    groups: dict[tuple[int, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.images, run.start), []).append(run)
    rows = []
    for (number, start), members in groups.items():
        row: dict[str, str | int | float] = {
            "images": number,
            "start": start,
            "seeds": len(members),
        }
        for metric in METRICS:
            values = [m.metrics[metric] for m in members if metric in m.metrics]
            if values:
                row[metric] = statistics.mean(values)
                row[f"{metric} spread"] = (max(values) - min(values)) / 2
        rows.append(row)
    return rows


def _check_names(starts: Sequence[Start]) -> None:
    names = [start.name for start in starts]
    for start in starts:
        if not start.name.replace("-", "_").isidentifier() or names.count(start.name) > 1:
            raise UserError(
                f"--start {start.name!r} is not the name of a folder of its own; expected another "
                "name, of letters, digits, - and _.",
                code="name_clash" if names.count(start.name) > 1 else "option_invalid",
            )
        if start.weights and "://" not in start.weights and not os.path.isfile(start.weights):
            raise UserError(
                f"--start {start.name}: {start.weights} does not exist; expected weights.",
                code="file_missing",
            )


def _arguments(config_file: str, opts: Sequence[str]) -> argparse.Namespace:
    # resume: a stopped run continues, and a new one starts.
    return argparse.Namespace(
        config_file=config_file, opts=[str(o) for o in opts], eval_only=False, resume=True
    )


def _subset(cfg: CfgNode, count: int | None, seed: int, folder: Path) -> tuple[str, int]:
    """Write the JSON of ``count`` annotated images; return it and its number of images."""
    if len(cfg.DATASETS.TRAIN) != 1:
        raise UserError(
            f"DATASETS.TRAIN has {len(cfg.DATASETS.TRAIN)} data sets; expected one for a learning "
            "curve.",
            code="config_invalid",
        )
    json_file = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).get("json_file")
    if json_file is None:
        raise UserError(
            f"Data set {cfg.DATASETS.TRAIN[0]} has no COCO JSON; register it with "
            "microplastics.register_microplastics_instances.",
            code="dataset_unknown",
        )
    data = read_json(json_file)
    ids = sorted({annotation["image_id"] for annotation in data["annotations"]})
    if count is None:
        kept = ids if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS else data["images"]
        return json_file, len(kept)
    if not 1 <= count <= len(ids):
        raise UserError(
            f"--images is {count}; expected 1 to {len(ids)}, the annotated images of {json_file}.",
            code="option_invalid",
        )
    random.Random(seed).shuffle(ids)
    chosen = set(ids[:count])
    data["images"] = [image for image in data["images"] if image["id"] in chosen]
    data["annotations"] = [a for a in data["annotations"] if a["image_id"] in chosen]
    path = folder / f"train_{count}_seed{seed}.json"
    if not path.is_file() or read_json(path) != data:
        write_json(path, data)
    return str(path), count


def _train(
    config_file: str,
    opts: Sequence[str],
    cfg: CfgNode,
    start: Start,
    json_file: str,
    number: int,
    seed: int,
    output: Path,
) -> Run:
    folder = output / f"{start.name}_{number}_seed{seed}"
    image_root = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).image_root
    wanted = {
        "DATASETS.TRAIN": repr((f"{json_file}:{image_root}",)),
        "MODEL.WEIGHTS": start.weights,
        "SEED": str(seed),
        "OUTPUT_DIR": str(folder),
    }
    settings = {"config_file": config_file, "opts": [str(o) for o in opts], **wanted}
    done = _finished(folder / _RESULT, settings)
    if done is None:
        pairs = [text for pair in wanted.items() for text in pair]
        run_cfg = setup(_arguments(config_file, [*opts, *pairs]))
        trainer = Trainer(run_cfg)
        trainer.resume_or_load(resume=True)
        done = dict(trainer.train())
        exit_code = trainer.signals.exit_code
        del trainer
        gc.collect()  # hooks and trainer refer to each other
        if exit_code:
            raise Stopped(exit_code)
        if not done:
            raise UserError(
                "The training was not evaluated; set TEST.EVAL_PERIOD to SOLVER.MAX_ITER or a part "
                "of it.",
                code="config_invalid",
            )
        write_json(folder / _RESULT, {"settings": settings, "metrics": done}, indent=1)
    return Run(start.name, number, seed, done)


def _finished(path: Path, settings: dict) -> dict[str, float] | None:
    """Return the metrics of a finished run, or None.

    Raises:
        UserError: run_mismatch; the run has other settings.
    """
    if not path.is_file():
        return None
    data = read_json(path)
    if data.get("settings") != settings or not isinstance(data.get("metrics"), dict):
        raise UserError(
            f"{path.parent} holds a run of other settings; delete it or choose another --output.",
            code="run_mismatch",
        )
    return data["metrics"]


def _write(runs: Sequence[Run], output: Path) -> None:
    rows = [
        {"start": r.start, "images": r.images, "seed": r.seed}
        | {metric: r.metrics.get(metric) for metric in METRICS}
        for r in runs
    ]
    write_rows(output / "runs.csv", rows)
    write_rows(output / "summary.csv", summarise(runs))
    logger.info("%d runs finished, written to %s", len(runs), output)
