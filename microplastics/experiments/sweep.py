"""Sweeps: trainings of several settings under several seeds, compared with each other."""

import logging
import math
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tabulate import tabulate

from microplastics.config import leaves, load_config, merging
from microplastics.counts.intervals import t_interval
from microplastics.data.loader import check_datasets
from microplastics.engine.hooks import known_metrics
from microplastics.experiments.jobs import (
    Job,
    Machines,
    Result,
    check_jobs,
    finished,
    run_jobs,
    same_weights,
)
from microplastics.experiments.timing import expected_seconds
from microplastics.model_zoo import sweep_file
from microplastics.utils.errors import UserError
from microplastics.utils.io import atomic_write, parse_yaml, read_text, write_rows
from microplastics.visualization.curves import plot_sweep

logger = logging.getLogger(__name__)

METRICS = ("segm/AP", "segm/AP50", "bbox/AP")
_FIELDS = ("config", "seeds", "metrics", "opts", "runs")
_OWN_KEYS = ("SEED", "OUTPUT_DIR")


@dataclass(frozen=True)
class Sweep:
    """A sweep: its trainings by the name of their settings and their seed, and what to compare."""

    jobs: Mapping[tuple[str, int], Job]
    metrics: Sequence[str]
    output: Path

    @property
    def names(self) -> list[str]:
        """Names of the settings in the order of the file; the first is what others differ from."""
        return list(dict.fromkeys(name for name, _ in self.jobs))

    @property
    def seeds(self) -> list[int]:
        """Seeds in the order of the file."""
        return list(dict.fromkeys(seed for _, seed in self.jobs))


class Expected(NamedTuple):
    """What is left of a sweep, and the expected seconds of all that, one after the other."""

    rows: list[dict[str, Any]]
    left: int
    seconds: float


def read_sweep(file: str, opts: Sequence[str], output: str | os.PathLike) -> Sweep:
    """Read a sweep file and check all of it.

    Args:
        file: path, or name of one of the project's. See docs/experiments.md for its fields.
        opts: ``KEY VALUE`` pairs for all runs, which come after those of the file.
        output: folder of the runs.

    Raises:
        UserError: the file or a config in it does not exist or is not valid.
    """
    path = sweep_file(file)
    data = _load(path)
    seeds, opts = _seeds(data, path), [str(opt) for opt in opts]
    common = _pairs(data.get("opts") or {}, f"opts of {path}")
    settings = {}
    for row in _rows(data, path):
        name, config = row.pop("name"), row.pop("config", data.get("config"))
        where = f"Run {name!r} of {path}"
        if not isinstance(config, str):
            raise _invalid(f"{where} has no config; expected the name or path of one.")
        own = _pairs(row, where)
        _check_not_overridden(own, opts, path)
        cfg = load_config(config)
        with merging(cfg, where):
            cfg.merge_from_list([*common, *own])
        pairs = [*common, *own, *opts]
        settings[name] = config, (*pairs, *same_weights(load_config(config, pairs)))
    jobs = {
        (name, seed): Job(
            f"{name}, seed {seed}",
            config,
            (*pairs, "SEED", str(seed)),
            Path(output, f"{name}_seed{seed}"),
        )
        for seed in seeds  # all settings under one seed first, so that they can be compared
        for name, (config, pairs) in settings.items()
    }
    metrics = _metrics(data, path, next(iter(jobs.values())))
    return Sweep(jobs, metrics, Path(output))


def expect(sweep: Sweep) -> Expected:
    """Estimate the time that is left, from finished runs of the same settings, else by timing.

    Raises:
        UserError: as of :func:`microplastics.experiments.jobs.check_jobs`.
    """
    check_jobs(sweep.jobs.values())
    known: dict[str, list[float]] = {}
    left: dict[str, list[Job]] = {name: [] for name in sweep.names}
    for (name, _), job in sweep.jobs.items():
        result = finished(job)
        if result is None:
            left[name].append(job)
        else:
            known.setdefault(name, []).append(result.seconds)
    timed = [name for name, jobs in left.items() if jobs and name not in known]
    measured = expected_seconds([left[name][0] for name in timed])
    each = {name: statistics.mean(seconds) for name, seconds in known.items()}
    each |= dict(zip(timed, measured, strict=True))
    rows = [
        {
            "run": name,
            "seeds": len(sweep.seeds),
            "finished": len(sweep.seeds) - len(jobs),
            "minutes each": each[name] / 60,
            "from": "finished runs" if name in known else "a few iterations",
        }
        for name, jobs in left.items()
    ]
    seconds = sum(each[name] * len(jobs) for name, jobs in left.items())
    return Expected(rows, sum(map(len, left.values())), seconds)


def run_sweep(sweep: Sweep, machines: Machines | None = None) -> dict[tuple[str, int], Result]:
    """Run what is not finished of a sweep; after each run write the tables and the picture anew.

    ``runs.csv`` has a row a run with all its metrics, ``sweep.csv`` and ``sweep.md`` a row for
    each settings, ``sweep.png`` shows them.

    Raises:
        UserError: before anything runs, see :func:`microplastics.experiments.jobs.run_jobs`.
    """
    names = {job.folder: key for key, job in sweep.jobs.items()}
    results: dict[tuple[str, int], Result] = {}
    for result in run_jobs(list(sweep.jobs.values()), machines, sweep.output):
        results[names[result.job.folder]] = result
        logger.info(
            "%d of %d, %s: %s",
            *(len(results), len(sweep.jobs), result.job.name),
            result.error or _figures(result.metrics, sweep.metrics),
        )
        _write(sweep, results)
    return results


def summarise(
    values: Mapping[tuple[str, int], Mapping[str, float]], metrics: Sequence[str]
) -> list[dict[str, Any]]:
    """Compute a row for each settings: mean, interval and paired difference of each metric.

    Args:
        values: metrics of each finished run by the name of its settings and its seed; differences
            are from the settings of the first name.
        metrics: which; a run that lacks one, or has NaN, is left out of it.

    Returns:
        For each metric its mean over the seeds, ``sd`` (of a sample), ``low`` and ``high`` of
        Student's 95 % interval of the mean, and ``difference`` from the first settings under the
        same seeds, with its own interval. NaN where there are too few seeds.
    """
    names = list(dict.fromkeys(name for name, _ in values))
    rows = []
    for name in names:
        row: dict[str, Any] = {"run": name, "seeds": sum(other == name for other, _ in values)}
        for metric in metrics:
            first, own = _of(values, names[0], metric), _of(values, name, metric)
            row |= _describe(metric, list(own.values()))
            if name != names[0]:
                pairs = [own[seed] - first[seed] for seed in own if seed in first]
                row |= _describe(f"{metric} difference", pairs)
        rows.append(row)
    return rows


def _of(values: Mapping, name: str, metric: str) -> dict[int, float]:
    """Values of a metric by seed."""
    found = {
        seed: run.get(metric, math.nan) for (other, seed), run in values.items() if other == name
    }
    return {seed: value for seed, value in found.items() if not math.isnan(value)}


def _describe(name: str, values: Sequence[float]) -> dict[str, float]:
    low, high = t_interval(np.array(values))
    return {
        name: statistics.mean(values) if values else math.nan,
        f"{name} sd": statistics.stdev(values) if len(values) > 1 else math.nan,
        f"{name} low": low,
        f"{name} high": high,
    }


# Reading


def _load(path: str) -> dict[str, Any]:
    try:
        data = parse_yaml(read_text(path))
    except ValueError as error:
        raise _invalid(f"{path} is not YAML ({error}).") from error
    if not isinstance(data, dict) or not data:
        raise _invalid(f"{path} is empty or no mapping; expected {', '.join(_FIELDS)}.")
    unknown = [str(key) for key in data if key not in _FIELDS]
    if unknown:
        raise _invalid(f"{path} has the unknown field {unknown[0]}; expected {', '.join(_FIELDS)}.")
    return data


def _seeds(data: dict[str, Any], path: str) -> list[int]:
    seeds = data.get("seeds", [1])
    valid = isinstance(seeds, list) and seeds and all(type(s) is int and s >= 0 for s in seeds)
    if not valid or len(set(seeds)) < len(seeds):
        raise _invalid(f"seeds of {path} is {seeds}; expected a list of different whole numbers.")
    return seeds


def _rows(data: dict[str, Any], path: str) -> Iterator[dict[str, Any]]:
    rows = data.get("runs")
    if not isinstance(rows, list) or not rows:
        raise _invalid(f"{path} has no runs; expected a list, each with a name and config keys.")
    names = set()
    for row in rows:
        name = str(row.get("name", "")) if isinstance(row, dict) else ""
        if not name.replace("-", "").replace("_", "").isalnum():
            raise _invalid(
                f"A run of {path} has the name {name!r}; expected one of letters, digits, - and _."
            )
        if name in names:
            raise _invalid(f"Two runs of {path} are named {name}; expected different names.")
        names.add(name)
        yield {**row, "name": name}


def _pairs(options: Any, where: str) -> list[str]:
    """Return config keys as on a command line; they may be nested, as in a config."""
    if not isinstance(options, dict):
        raise _invalid(f"{where} is {options}; expected KEY: VALUE.")
    pairs = list(leaves(options))
    for key, _ in pairs:
        if key in _OWN_KEYS:
            raise _invalid(f"{where} sets {key}, which the sweep sets itself; remove it.")
    # Text stands without quotes.
    return [x for k, v in pairs for x in (k, v if isinstance(v, str) else repr(v))]


def _check_not_overridden(own: Sequence[str], opts: Sequence[str], path: str) -> None:
    for key in (*own[::2], *_OWN_KEYS):
        if key in opts[::2]:
            raise UserError(
                f"{key} is given on the command line, but {path} sets it for each run; give only "
                "keys that all runs share.",
                code="option_conflict",
            )


def _metrics(data: dict[str, Any], path: str, job: Job) -> list[str]:
    wanted = data.get("metrics", list(METRICS))
    if not isinstance(wanted, list) or not wanted:
        raise _invalid(f"metrics of {path} is {wanted}; expected a list of names.")
    known = known_metrics(check_datasets(job.load_config()))
    for name in wanted:
        if name not in known and not str(name).startswith("validation/"):
            raise UserError(
                f"metrics of {path} has {name}; expected names of {', '.join(known)}.",
                code="metric_unknown",
            )
    return wanted


def _invalid(message: str) -> UserError:
    return UserError(message, code="config_invalid")


# Writing


def _figures(metrics: Mapping[str, float], names: Sequence[str]) -> str:
    return ", ".join(f"{name} {metrics.get(name, math.nan):.1f}" for name in names)


def _write(sweep: Sweep, results: Mapping[tuple[str, int], Result]) -> None:
    runs = [(key, results[key]) for key in sweep.jobs if key in results]
    write_rows(
        sweep.output / "runs.csv",
        [
            {"run": name, "seed": seed, "minutes": result.seconds / 60, "error": result.error}
            | (result.metrics or {})
            for (name, seed), result in runs
        ],
    )
    done = {key: result for key, result in runs if result.metrics is not None}
    rows = summarise({key: result.metrics for key, result in done.items()}, sweep.metrics)
    for row in rows:
        of_row = [result.seconds for (name, _), result in done.items() if name == row["run"]]
        row["minutes"] = statistics.mean(of_row) / 60
    write_rows(sweep.output / "sweep.csv", rows)
    with atomic_write(sweep.output / "sweep.md") as file:
        file.write(markdown(rows, sweep.metrics))
        for _, result in runs:
            if result.error:
                file.write(f"\nFailed: {result.job.name}: {result.error}\n")
    if rows:
        points = [
            {"run": name, "seed": seed, **result.metrics} for (name, seed), result in done.items()
        ]
        plot_sweep(rows, points, sweep.metrics, sweep.output / "sweep.png")


def markdown(rows: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> str:
    """Format the rows of :func:`summarise`: means, differences, and their intervals."""
    table = []
    for row in rows:
        line = {"run": row["run"], "seeds": row["seeds"]}
        for metric in metrics:
            line[metric] = _cell(row, metric)
            line[f"Δ {metric}"] = _cell(row, f"{metric} difference", sign="+")
        table.append(line | {"minutes": f"{row.get('minutes', math.nan):.1f}"})
    return tabulate(table, headers="keys", tablefmt="pipe", disable_numparse=True) + "\n"


def _cell(row: Mapping[str, Any], name: str, sign: str = "") -> str:
    value, low, high = (row.get(key, math.nan) for key in (name, f"{name} low", f"{name} high"))
    if math.isnan(value):
        return ""
    text = f"{value:{sign}.1f}"
    return text if math.isnan(low) else f"{text} [{low:{sign}.1f}, {high:{sign}.1f}]"
