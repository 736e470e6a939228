"""Learning curves: trainings on subsets of the images from several starts."""

import itertools
import logging
import os
import random
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from microplastics.config import load_config
from microplastics.data.loader import check_datasets
from microplastics.experiments.jobs import Job, Machines, Result, run_jobs, same_weights
from microplastics.utils.errors import UserError
from microplastics.utils.io import read_json, write_json, write_rows

logger = logging.getLogger(__name__)

METRICS = ("segm/AP", "segm/AP50", "bbox/AP")


class Run(NamedTuple):
    """One finished training: its start, training images, seed, and flat metrics at its end."""

    start: str
    images: int
    seed: int
    metrics: dict[str, float]


def run_learning_curve(
    config_file: str,
    opts: Sequence[str],
    starts: Sequence[tuple[str, str]],
    images: Sequence[int | None],
    seeds: Sequence[int],
    output: str | os.PathLike,
    machines: Machines | None = None,
) -> tuple[list[Run], list[Result]]:
    """Train from each start on subsets of the training set, and evaluate each at its end.

    A subset is drawn at random from the annotated images; under one seed all starts get the same
    subset, and a smaller subset is part of a larger one. A finished run is not repeated, a stopped
    one is continued.

    Args:
        config_file, opts: the config of all runs; DATASETS.TRAIN names one COCO data set.
        starts: names, and what MODEL.WEIGHTS to start from; empty for random ones.
        images: numbers of training images; None takes all.
        seeds: one run for each.
        output: folder of the runs, with ``runs.csv`` (a row a run) and ``summary.csv``.
        machines: where they run.

    Returns:
        the finished runs, and the results of those that failed.

    Raises:
        UserError: settings or data do not fit.
    """
    output, opts = Path(output), [str(opt) for opt in opts]
    _check_starts(starts)
    cfg = check_datasets(load_config(config_file, opts))
    metadata = MetadataCatalog.get(cfg.DATASETS.TRAIN[0])
    if len(cfg.DATASETS.TRAIN) != 1 or metadata.get("json_file") is None:
        raise UserError(
            f"DATASETS.TRAIN is {', '.join(cfg.DATASETS.TRAIN)}; expected one data set with a COCO "
            "JSON for a learning curve.",
            code="config_invalid",
        )
    jobs: dict[Path, tuple[Job, Run]] = {}
    for count, seed in itertools.product(images, seeds):
        json_file, number = _subset(cfg, count, seed, output / "subsets")
        for start, weights in starts:
            folder = output / f"{start}_{number}_seed{seed}"
            wanted = {
                "DATASETS.TRAIN": repr((f"{json_file}:{metadata.image_root}",)),
                "MODEL.WEIGHTS": weights,
                "SEED": str(seed),
            }
            all_opts = [*opts, *itertools.chain(*wanted.items())]
            all_opts += same_weights(load_config(config_file, all_opts))
            job = Job(folder.name, config_file, tuple(all_opts), folder)
            jobs[folder] = job, Run(start, number, seed, {})
    runs, failed = [], []
    for result in run_jobs([job for job, _ in jobs.values()], machines, output):
        if result.metrics is None:
            failed.append(result)
            continue
        _, run = jobs[result.job.folder]
        runs.append(run._replace(metrics=result.metrics))
        _write(runs, output)
    return runs, failed


def summarise(runs: Sequence[Run]) -> list[dict[str, str | int | float]]:
    """Compute mean and spread (half the range) over the seeds of each start and image number."""
    groups: dict[tuple[int, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.images, run.start), []).append(run)
    rows = []
    for (number, start), members in groups.items():
        row: dict[str, Any] = {"images": number, "start": start, "seeds": len(members)}
        for metric in METRICS:
            values = [m.metrics[metric] for m in members if metric in m.metrics]
            if values:
                row[metric] = statistics.mean(values)
                row[f"{metric} spread"] = (max(values) - min(values)) / 2
        rows.append(row)
    return rows


def _check_starts(starts: Sequence[tuple[str, str]]) -> None:
    names = [name for name, _ in starts]
    for name in names:
        if not name.replace("-", "_").isidentifier() or names.count(name) > 1:
            raise UserError(
                f"--start {name!r} is not the name of a folder of its own; expected another name, "
                "of letters, digits, - and _.",
                code="option_invalid",
            )


def _subset(cfg: CfgNode, count: int | None, seed: int, folder: Path) -> tuple[str, int]:
    """Write the JSON of ``count`` annotated images; return it and its number of images."""
    json_file = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).json_file
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
    write_json(path, data)
    return str(path), count


def _write(runs: Sequence[Run], output: Path) -> None:
    rows = [
        {"start": r.start, "images": r.images, "seed": r.seed}
        | {metric: r.metrics.get(metric) for metric in METRICS}
        for r in runs
    ]
    write_rows(output / "runs.csv", rows)
    write_rows(output / "summary.csv", summarise(runs))
    logger.info("%d runs finished, written to %s", len(runs), output)
