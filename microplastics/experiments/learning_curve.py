"""What more images and other starting weights bring: short trainings on subsets, side by side."""

import argparse
import csv
import gc
import io
import logging
import os
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from microplastics.data.coco import read_json
from microplastics.data.loader import check_datasets
from microplastics.engine.defaults import setup
from microplastics.engine.trainer import Trainer
from microplastics.utils.errors import UserError
from microplastics.utils.io import atomic_write, write_json

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

    A subset is drawn at random from the annotated images; with one seed all starts get the same
    one, and a smaller one is part of a larger one. A run that is finished is not done again, one
    that was stopped goes on. Writes ``runs.csv`` (a row a run) and ``summary.csv`` into
    ``output`` after each run.

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
        Stopped: Ctrl-C or SIGTERM; the same call goes on.
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
    """Mean and spread over the seeds, one row for each start and number of images.

    Args:
        runs: as :func:`run_learning_curve` returns them.

    Returns:
        rows of ``images``, ``start``, ``seeds`` and, for each metric, its mean and
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
                f"--start {start.name!r} cannot name a folder of its own; use another name, of "
                "letters, digits, - and _."
            )
        if start.weights and "://" not in start.weights and not os.path.isfile(start.weights):
            raise UserError(f"--start {start.name}: {start.weights} does not exist; correct it.")


def _arguments(config_file: str, opts: Sequence[str]) -> argparse.Namespace:
    # resume: a stopped run goes on, and a first one simply starts.
    return argparse.Namespace(
        config_file=config_file, opts=[str(o) for o in opts], eval_only=False, resume=True
    )


def _subset(cfg: CfgNode, count: int | None, seed: int, folder: Path) -> tuple[str, int]:
    """Write the JSON of ``count`` annotated images; return it and how many images it has."""
    if len(cfg.DATASETS.TRAIN) != 1:
        raise UserError("A learning curve is drawn from one data set: name one in DATASETS.TRAIN.")
    json_file = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).get("json_file")
    if json_file is None:
        raise UserError(f"{cfg.DATASETS.TRAIN[0]} has no COCO JSON to take a part of; give one.")
    data = read_json(json_file)
    ids = sorted({annotation["image_id"] for annotation in data["annotations"]})
    if count is None:
        kept = ids if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS else data["images"]
        return json_file, len(kept)
    if not 1 <= count <= len(ids):
        raise UserError(
            f"--images {count}: {json_file} has {len(ids)} annotated images; give 1 to {len(ids)}."
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
        gc.collect()  # hooks and trainer point at each other
        if exit_code:
            raise Stopped(exit_code)
        if not done:
            raise UserError(
                "The trainings were not evaluated: set TEST.EVAL_PERIOD to SOLVER.MAX_ITER or a "
                "part of it."
            )
        write_json(folder / _RESULT, {"settings": settings, "metrics": done}, indent=1)
    return Run(start.name, number, seed, done)


def _finished(path: Path, settings: dict) -> dict[str, float] | None:
    """The metrics of a run that is finished, or None.

    Raises:
        UserError: a run of other settings is there.
    """
    if not path.is_file():
        return None
    data = read_json(path)
    if data.get("settings") != settings or not isinstance(data.get("metrics"), dict):
        raise UserError(
            f"{path.parent} holds a run of other settings; delete it or choose another --output."
        )
    return data["metrics"]


def _write(runs: Sequence[Run], output: Path) -> None:
    rows = [
        {"start": r.start, "images": r.images, "seed": r.seed}
        | {metric: r.metrics.get(metric) for metric in METRICS}
        for r in runs
    ]
    for name, table in (("runs.csv", rows), ("summary.csv", summarise(runs))):
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, dict.fromkeys(key for row in table for key in row))
        writer.writeheader()
        writer.writerows(table)
        with atomic_write(output / name) as file:
            file.write(buffer.getvalue())
    logger.info("%d runs finished, written to %s", len(runs), output)
