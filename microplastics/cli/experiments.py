"""Commands for studies: curve, cross-validate, sweep."""

from collections.abc import Sequence
from typing import Any

import click

from microplastics.cli.parsing import (
    NamedFile,
    command,
    config_file,
    flag,
    option,
    path,
    section,
)
from microplastics.model_zoo import sweep_names

SOME_FAILED = 3


def _numbers(ctx: click.Context, param: click.Parameter, texts: tuple[str, ...]) -> list:
    try:
        return [None if text == "all" else int(text) for text in texts]
    except ValueError as error:
        raise click.BadParameter(f"{error}; give numbers, or all.") from error


def _starts(ctx: click.Context, param: click.Parameter, texts: tuple[str, ...]) -> list:
    for text in texts:
        if "=" not in text:
            raise click.BadParameter(f"{text!r} has no =; write NAME=WEIGHTS, or NAME= for random.")
    return [tuple(text.split("=", 1)) for text in texts]


def _parameters(ctx: click.Context, param: click.Parameter, texts: tuple[str, ...]) -> dict:
    import yaml

    for text in texts:
        if "=" not in text:
            raise click.BadParameter(f"{text!r} has no =; write NAME=VALUE.")
    pairs = [text.split("=", 1) for text in texts]
    try:
        return {name: yaml.safe_load(value) for name, value in pairs}
    except yaml.YAMLError as error:
        raise click.BadParameter(
            f"a value is not YAML ({' '.join(str(error).split())})."
        ) from error


_machines = section(
    "Where trainings run: here, one after the other, if nothing is given",
    option(
        "--gpus=N", "Numbers of GPUs, each of which trains one at a time.", multiple=True, type=int
    ),
    option(
        "--submit=CLUSTER",
        "Hand the trainings to submitit, for Slurm or (local) for this machine, all at once.",
        type=click.Choice(["slurm", "local"]),
    ),
    option(
        "--submit-option=NAME=VALUE",
        "Parameters of submitit's executor: slurm_partition=gpu timeout_min=600.",
        multiple=True,
        callback=_parameters,
    ),
)


def _where(given: dict[str, Any]) -> Any:
    """Take the options of :data:`_machines` out of a command's; let its loggers print."""
    from detectron2.utils.logger import setup_logger

    from microplastics.experiments.jobs import Machines

    setup_logger(name="microplastics")
    return Machines(given.pop("gpus"), given.pop("submit") or "", given.pop("submit_option"))


def _report_failed(failed: Sequence[Any]) -> int:
    """Print what failed, and return the exit code."""
    for result in failed:
        print(f"Failed: {result.job.name}: {result.error}")
    return SOME_FAILED if failed else 0


@command(
    pairs=True,
    exclusive=[("gpus", "submit")],
    short_help="Learn whether more annotated images would help.",
)
@config_file("Name or path of the config of all runs.", required=True)
@option(
    "--images=N",
    "Numbers of training images, or all.",
    multiple=True,
    required=True,
    callback=_numbers,
)
@option("--seeds=K", "Seeds: a run for each.", multiple=True, type=int, default=[1, 2])
@option(
    "--start=NAME=WEIGHTS",
    "Starting weights and a name for them; NAME= for random ones.",
    multiple=True,
    required=True,
    callback=_starts,
)
@path("--output=DIR", "Folder of the runs.", required=True)
@_machines
def curve(
    config_file: str,
    opts: list[str],
    images: list[int | None],
    seeds: list[int],
    start: list[tuple[str, str]],
    output: str,
    **given: Any,
) -> int:
    """Compare short trainings on 5, 10, ... images and several starts.

    It tells what starting weights are worth, and whether more annotated images would help.

    \b
    microplastics curve --config-file quick --images 5 10 all --seeds 1 2 --start scratch= \\
        --start rendered=output/demo/model/model_best.pth --output output/curve \\
        DATASETS.TRAIN '("train.json:photos",)'
    """
    from tabulate import tabulate

    from microplastics.experiments.learning_curve import run_learning_curve, summarise
    from microplastics.visualization.curves import plot_learning_curve

    runs, failed = run_learning_curve(
        config_file, opts, start, images, seeds, output, _where(given)
    )
    rows = summarise(runs)
    if rows:
        plot_learning_curve(rows, f"{output}/learning_curve.png")
        print(tabulate(rows, headers="keys", tablefmt="pipe", floatfmt=".1f"))
        print(f"Runs, tables and learning_curve.png in {output}")
    return _report_failed(failed)


@command(
    "cross-validate",
    pairs=True,
    exclusive=[("group_regex", "groups"), ("gpus", "submit")],
    short_help="Score a config on every image, by folds.",
)
@config_file("Name or path of the config.", required=True)
@option(
    "--folds=K",
    "Divide DATASETS.TRAIN into K folds, or take those of a folder that split --folds wrote.",
    default="5",
)
@option(
    "--group-regex=REGEX", "Its one group names the filter in a file name; a filter stays whole."
)
@path("--groups=CSV", "Table with the columns image and group.")
@flag("--by-similarity", "Keep copies of one photograph together, found by their pixels.")
@path("--output=DIR", "Folder of the folds.", required=True)
@_machines
def cross_validate(
    config_file: str, opts: list[str], folds: str, output: str, groups: str | None, **given: Any
) -> int:
    """Train on all folds but one, for each of them, and score it on the images it has not seen.

    Writes the figures of each fold with mean and standard deviation, and the predictions of all
    images with their pooled AP. The same command continues a stopped one (docs/experiments.md).

    \b
    microplastics cross-validate --config-file demo_finetune --folds 5 \\
        --group-regex '^(F\\d+)_' --output output/folds \\
        DATASETS.TRAIN '("all.json:photos",)' MODEL.WEIGHTS output/demo/model/model_best.pth
    """
    from microplastics.data.splits.split import SplitOptions
    from microplastics.experiments.cross_validation import markdown, run_cross_validation

    machines = _where(given)
    grouping = SplitOptions(groups_csv=groups, **given)
    outcome = run_cross_validation(config_file, opts, folds, output, grouping, machines)
    ends = ("/AP", "/AP50", "/F1")
    print(markdown([row for row in outcome.rows if row["metric"].endswith(ends)]))
    print(f"All figures in {output}/cross_validation.csv, .json and .md")
    return _report_failed(outcome.failed)


@command(
    pairs=True, exclusive=[("gpus", "submit")], short_help="Compare settings under several seeds."
)
@click.argument("file", type=NamedFile("file", sweep_names))
@path("--output=DIR", "Folder of the runs.", required=True)
@flag("--dry-run", "Only say how many runs there are, and how long they will take.")
@_machines
def sweep(file: str, opts: list[str], output: str, dry_run: bool, **given: Any) -> int:
    """Train several settings under several seeds, and compare them.

    FILE is a YAML with configs, keys and seeds, or the name of one of the project's
    (docs/experiments.md). The same command continues a stopped one.

    \b
    microplastics sweep roi_pooling --output output/roi_pooling --dry-run
    microplastics sweep mine.yaml --output output/mine --gpus 0 1 SOLVER.MAX_ITER 2000
    """
    from tabulate import tabulate

    from microplastics.experiments.sweep import expect, read_sweep, run_sweep

    machines = _where(given)
    study = read_sweep(file, opts, output)
    if dry_run:
        expected = expect(study)
        print(tabulate(expected.rows, headers="keys", tablefmt="pipe", floatfmt=".1f"))
        lanes = max(1, expected.left if machines.cluster else len(machines.gpus))
        print(
            f"{len(study.jobs)} runs, of which {expected.left} are left: about "
            f"{expected.seconds / lanes / 60:.0f} minutes, {lanes} at a time"
        )
        return 0
    results = run_sweep(study, machines)
    with open(study.output / "sweep.md", encoding="utf-8") as table:
        print(table.read())
    print(f"sweep.md, sweep.csv, sweep.png and runs.csv in {output}")
    return _report_failed([result for result in results.values() if result.metrics is None])
