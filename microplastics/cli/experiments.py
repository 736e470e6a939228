"""Commands for studies: curve, measurement-errors."""

from typing import Any

import click

from microplastics.cli.parsing import command, config_file, option, path


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


@command(pairs=True, short_help="Learn whether more annotated images would help.")
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
def curve(config_file: str, opts: list[str], output: str, **given: Any) -> int:
    """Compare short trainings on 5, 10, ... images and several starts.

    It tells what starting weights are worth, and whether more annotated images would help.

    \b
    microplastics curve --config-file quick --images 5 10 all --seeds 1 2 --start scratch= \\
        --start rendered=output/demo/model/model_best.pth --output output/curve \\
        DATASETS.TRAIN '("train.json:photos",)'
    """
    from tabulate import tabulate

    from microplastics.experiments import learning_curve
    from microplastics.visualization.curves import plot_learning_curve

    starts = [learning_curve.Start(name, weights) for name, weights in given["start"]]
    try:
        runs = learning_curve.run_learning_curve(
            config_file, opts, starts, given["images"], given["seeds"], output
        )
    except learning_curve.Stopped as stop:
        return stop.code
    rows = learning_curve.summarise(runs)
    plot_learning_curve(rows, f"{output}/learning_curve.png")
    print(tabulate(rows, headers="keys", tablefmt="pipe", floatfmt=".1f"))
    print(f"Runs, tables and learning_curve.png in {output}")
    return 0


@command("measurement-errors", short_help="Print the errors of measurements on known shapes.")
@option("--drawings=N", "Times that each shape is drawn.", type=click.IntRange(1), default=100)
@option("--seed=K", "Same seed, same table.", default=0)
def measurement_errors(**given: Any) -> None:
    """Print how far measurements are off on shapes of known size.

    Discs, rectangles, ellipses, fibres along lines, arcs, sines and coils, and rings, each drawn
    at random places and angles. A cell is the mean error with the smallest and the largest one.
    """
    from microplastics.measurement.analytic import error_table

    print(error_table(**given))
