"""Cross-validation: a training for each fold, scored on the images that it has not seen."""

import json
import logging
import math
import os
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from tabulate import tabulate

from microplastics.config import load_config
from microplastics.data.catalog import resolve_datasets
from microplastics.data.coco import coco_api
from microplastics.data.splits.split import MANIFEST, SplitOptions, split_dataset
from microplastics.evaluation.coco import RESULTS_FILE, precisions, summarize
from microplastics.experiments.jobs import Job, Machines, Result, run_jobs, same_weights
from microplastics.utils.errors import UserError
from microplastics.utils.io import OWN_FILE, atomic_write, read_json, write_json, write_rows

logger = logging.getLogger(__name__)

TRUTH_FILE = "annotations.json"


class Fold(NamedTuple):
    """A fold: its name, the JSONs of its training and validation images, and the image folder."""

    name: str
    train: Path
    val: Path
    images: str


class Outcome(NamedTuple):
    """Figures of a cross-validation, a row a metric, and the results of folds that failed."""

    rows: list[dict[str, Any]]
    failed: list[Result]


def run_cross_validation(
    config_file: str,
    opts: Sequence[str],
    folds: str,
    output: str | os.PathLike,
    grouping: SplitOptions | None = None,
    machines: Machines | None = None,
) -> Outcome:
    """Train on all folds but one, for each of them, from the same weights, and score it there.

    The figures are those of the last weights: the best ones of a fold would have been chosen on
    the images that they are scored on. A finished fold is not repeated, a stopped one continued.

    Args:
        config_file, opts: the config; DATASETS.TEST is not used.
        folds: a number, into which the images of DATASETS.TRAIN are divided, or the folder of
            ``microplastics split --folds``.
        output: folder of the folds' trainings, with the tables ``cross_validation.csv``, ``.json``
            and ``.md``, and, when all folds are done, the predictions of all images
            (``coco_instances_results.json``) and their truth (``annotations.json``).
        grouping: how images are grouped, if ``folds`` is a number.
        machines: where they run.

    Raises:
        UserError: settings or data do not fit.
    """
    output, opts = Path(output), [str(opt) for opt in opts]
    cfg = load_config(config_file, opts)
    parts = _folds(cfg, folds, output, grouping or SplitOptions())
    weights = same_weights(cfg)
    jobs = {fold.name: _job(config_file, [*opts, *weights], fold, output) for fold in parts}
    results: dict[Path, Result] = {}
    for result in run_jobs(list(jobs.values()), machines, output):
        results[result.job.folder] = result
        logger.info(
            "%d of %d folds, %s: %s",
            *(len(results), len(jobs), result.job.name),
            result.error or f"segm/AP {result.metrics.get('segm/AP', math.nan):.1f}",
        )
        ended = {name: results.get(job.folder) for name, job in jobs.items()}
        metrics = {name: r.metrics for name, r in ended.items() if r and r.metrics is not None}
        failed = [r for r in ended.values() if r and r.metrics is None]
        rows = summarise(metrics)
        _write(rows, failed, output)
    if not failed:
        rows = summarise(metrics, pool(parts, [job.folder for job in jobs.values()], output, cfg))
        _write(rows, failed, output)
    return Outcome(rows, failed)


def summarise(
    folds: Mapping[str, Mapping[str, float]], pooled: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """Compute a row for each metric: its value in each fold, mean, standard deviation, pooled.

    The deviation is that of a sample (divided by n - 1); a fold without a value (NaN), such as the
    AP of a class that it lacks, is left out of both.
    """
    rows = []
    for metric in dict.fromkeys(name for metrics in folds.values() for name in metrics):
        values = {fold: metrics.get(metric, math.nan) for fold, metrics in folds.items()}
        there = [value for value in values.values() if not math.isnan(value)]
        row = {
            "metric": metric,
            **values,
            "mean": statistics.mean(there) if there else math.nan,
            "sd": statistics.stdev(there) if len(there) > 1 else math.nan,
        }
        if pooled is not None:
            row["pooled"] = pooled.get(metric, math.nan)
        rows.append(row)
    return rows


def pool(
    folds: Sequence[Fold], trainings: Sequence[Path], output: Path, cfg: CfgNode
) -> dict[str, float]:
    """Join truth and predictions of all folds into one file each, and compute their AP.

    Scores of different models are ranked together.

    Args:
        folds: all folds; each image is in the validation set of one.
        trainings: OUTPUT_DIR of each.
        output: where the two files are written.
        cfg: of the trainings.
    """
    truth = _join([read_json(fold.val) for fold in folds], output)
    results = [
        result
        for folder in trainings
        for result in read_json(folder / "inference" / RESULTS_FILE, list, OWN_FILE)
    ]
    write_json(output / TRUTH_FILE, truth)
    with atomic_write(output / RESULTS_FILE) as file:
        file.write(json.dumps(results))
    api = coco_api(str(output / TRUTH_FILE))
    names = {category["id"]: category["name"] for category in truth["categories"]}
    pooled = {}
    for task in ("bbox", "segm") if cfg.MODEL.MASK_ON else ("bbox",):
        precision = precisions(api, results, task, cfg.TEST.DETECTIONS_PER_IMAGE)
        figures = summarize(precision, sorted(names), names)
        pooled |= {f"{task}/{name}": value for name, value in figures.items()}
    return pooled


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Format the rows of :func:`summarise` with mean ± standard deviation."""
    table = []
    for row in rows:
        figures = {key: value for key, value in row.items() if key != "metric"}
        small = all(math.isnan(value) or abs(value) < 10 for value in figures.values())
        text = {
            key: "" if math.isnan(value) else f"{value:.{3 if small else 1}f}"
            for key, value in figures.items()
        }
        mean, sd = text.pop("mean"), text.pop("sd")
        pooled = {key: text.pop(key) for key in ("pooled",) if key in text}
        spread = {"mean ± sd": f"{mean} ± {sd}" if sd else mean}
        table.append({"metric": row["metric"], **text, **spread, **pooled})
    return tabulate(table, headers="keys", tablefmt="pipe", disable_numparse=True) + "\n"


# Folds


def _folds(cfg: CfgNode, folds: str, output: Path, grouping: SplitOptions) -> list[Fold]:
    if cfg.DATASETS.TRAIN_WEIGHTS:
        raise UserError(
            f"DATASETS.TRAIN_WEIGHTS is {cfg.DATASETS.TRAIN_WEIGHTS}; expected none, as folds are "
            "one data set.",
            code="config_invalid",
        )
    if not folds.isdecimal():
        if grouping != SplitOptions():
            raise UserError(
                f"--folds is the folder {folds}, whose images are grouped already; leave out the "
                "options that group them.",
                code="option_conflict",
            )
        return read_folds(Path(folds))
    if int(folds) < 2:
        raise UserError(f"--folds is {folds}; expected 2 or more.", code="option_invalid")
    sets = [MetadataCatalog.get(name) for name in resolve_datasets(cfg.DATASETS.TRAIN)]
    files = [metadata.get("json_file") for metadata in sets]
    if not files or None in files:
        raise UserError(
            f"DATASETS.TRAIN is {', '.join(cfg.DATASETS.TRAIN)}; expected data sets with a COCO "
            "JSON, to be divided into folds.",
            code="config_invalid",
        )
    roots = [metadata.image_root for metadata in sets]
    summary = split_dataset(files, roots, output / "folds", replace(grouping, folds=int(folds)))
    for line in summary.splitlines():
        if line.startswith("warning: "):
            logger.warning(line.removeprefix("warning: "))
    return read_folds(output / "folds")


def read_folds(folder: Path) -> list[Fold]:
    """Read the folds that ``microplastics split --folds`` wrote into a folder.

    Raises:
        UserError: there are none, or their files are missing or damaged.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(
            f"--folds is {folder}, which has no {MANIFEST}; expected a number, or a folder that "
            "microplastics split --folds wrote.",
            code="option_invalid",
        )
    manifest = read_json(path, meant="a manifest of splits")
    try:
        kept = manifest["settings"]["place"] == "keep"
        images = manifest["image_root"] if kept else str(folder / "images")
        files = {name: folder / part["annotations"] for name, part in manifest["splits"].items()}
        names = [name.removesuffix("/val") for name in files if name.endswith("/val")]
        folds = [Fold(n, files[f"{n}/train"], files[f"{n}/val"], images) for n in names]
        # They name folders in --output.
        if not all(re.fullmatch(r"fold\d+", name) for name in names):
            raise ValueError
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path} is not a manifest of folds; write it again with microplastics split --folds.",
            code="file_invalid",
        ) from error
    if len(folds) < 2:
        raise UserError(
            f"{folder} has {len(folds)} folds; expected two or more, written by microplastics "
            "split --folds.",
            code="option_invalid",
        )
    return folds


def _job(config_file: str, opts: Sequence[str], fold: Fold, output: Path) -> Job:
    sets = [
        *("DATASETS.TRAIN", repr((f"{fold.train}:{fold.images}",))),
        *("DATASETS.TEST", repr((f"{fold.val}:{fold.images}",))),
    ]
    return Job(fold.name, config_file, (*opts, *sets), output / fold.name)


def _join(parts: Sequence[dict[str, Any]], output: Path) -> dict[str, Any]:
    """Join the COCO data of validation sets."""
    images = [image for part in parts for image in part["images"]]
    if len({image["id"] for image in images}) < len(images):
        raise UserError(
            f"An image is in the validation set of several folds of {output}; expected it in one.",
            code="annotations_invalid",
        )
    annotations = [each for part in parts for each in part["annotations"]]
    return {**parts[0], "images": images, "annotations": annotations}


def _write(rows: Sequence[dict[str, Any]], failed: Sequence[Result], output: Path) -> None:
    write_rows(output / "cross_validation.csv", rows)
    finite = [
        {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()}
        for row in rows
    ]
    by_metric = {row["metric"]: {k: v for k, v in row.items() if k != "metric"} for row in finite}
    write_json(output / "cross_validation.json", by_metric, indent=1)
    with atomic_write(output / "cross_validation.md") as file:
        file.write(markdown(rows))
        file.writelines(f"\nFailed: {result.job.name}: {result.error}\n" for result in failed)
