"""The command demo: the main job from end to end on rendered filters."""

import functools
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from microplastics.cli.parsing import command, config_file, option, path
from microplastics.utils.errors import UserError

if TYPE_CHECKING:
    import pandas as pd


@command(pairs=True, short_help="Do it all on rendered photographs, from data to counts.")
@config_file("Name or path of the config.", default="demo", show_default=True)
@path("--output=DIR", "Folder of all files.", default="output/demo")
@option("--train=N", "Training images.", default=400)
@option("--val=N", "Validation images.", default=60)
@option("--test=N", "Images to count particles on.", default=24)
def demo(config_file: str, output: str, train: int, val: int, test: int, opts: list[str]) -> None:
    """Do the main job on rendered filters: render, train, evaluate, predict, measure.

    Each step is a command that also works by itself; it is printed before it runs. After a
    stop, the training goes on where it was.
    """
    folder = Path(output).absolute()
    data = folder / "datasets" / "microplastics_synthetic"
    model, pictures, curves = folder / "model", folder / "pictures", folder / "model/training.png"
    particles, test_images = folder / "particles", data / "test"
    config, keys = ("--config-file", config_file), ("OUTPUT_DIR", model, *opts)
    scale = ("--um-per-px", "2")
    step = functools.partial(run_step, DETECTRON2_DATASETS=folder / "datasets")

    step(
        "Rendering filter photographs with their exact annotations",
        *("render", "dataset", "--output", data, "--size", "256", *scale),
        *("--train", train, "--val", val, "--test", test, "--seed", "1"),
    )
    names = "microplastics_synthetic_train", "microplastics_synthetic_val"
    step("Checking the data sets", "check", *names)
    step("Training", "train", *config, "--resume", *keys)
    title = "Choosing the score thresholds that count best on the validation images"
    step(title, "thresholds", *config, "--metric", "count", *keys)
    step("Evaluating the best checkpoint", "evaluate", *config, *keys)
    step(
        "Drawing predictions beside the truth",
        *("view", "results", "--input", model / "inference" / "coco_instances_results.json"),
        *("--output", pictures, "--dataset", names[1], "--limit", "12"),
    )
    title = "Drawing the training curves"
    step(title, "plot", "--input", model / "metrics.json", "--output", curves)
    step(
        "Finding and measuring the particles on the test images",
        *("predict", "--weights", model / "model_best.pth"),
        *("--input", test_images, "--output", particles, *scale, "--overwrite"),
    )
    step(
        "Measuring the true particles",
        *("measure", "--masks", data / "annotations" / "instances_test.json"),
        *("--images", test_images, "--output", folder / "true_particles", *scale),
        *("--overwrite", "--formats", "csv", "--no-report"),
    )
    print(f"\n{_compare(particles / 'summary.csv', folder / 'true_particles' / 'summary.csv')}")
    with open(model / "inference" / "metrics.json", encoding="utf-8") as file:
        metrics = json.load(file)
    print(
        f"\nOn {val} validation images: mask AP50 {metrics['segm/AP50']:.1f}, "
        f"mask AP {metrics['segm/AP']:.1f}, box AP {metrics['bbox/AP']:.1f}.\n"
        f"Rendered data          {data}\n"
        f"Best model             {model / 'model_best.pth'}\n"
        f"Scores                 {model / 'inference'}\n"
        f"Predictions and truth  {pictures}\n"
        f"Training curves        {curves}\n"
        f"Particles in µm        {particles}\n"
        f"Report to read         {particles / 'report.html'}"
    )


def run_step(title: str, *arguments: object, **environment: object) -> None:
    """Print a command of this program and run it.

    Args:
        title: what it does.
        arguments: its words after ``microplastics``.
        environment: variables set for it.

    Raises:
        UserError: ``run_invalid``, it ended with an error, which it has printed.
    """
    env = {**os.environ, **{name: str(value) for name, value in environment.items()}}
    line = list(map(str, arguments))
    print(f"\n== {title}\n$ {shlex.join(['microplastics', *line])}", flush=True)
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "microplastics", *line], env=env)
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.wait()  # Ctrl-C reached it too: it saves and ends by itself
        raise
    if code:
        raise UserError(
            f"The step above ended with exit code {code}; fix it and start again.",
            code="run_invalid",
        )
    print(f"-- {time.perf_counter() - start:.0f} s", flush=True)


def _compare(predicted: Path, true: Path) -> str:
    """Print-ready table of two summary.csv: particles found beside those that are there."""
    import pandas as pd
    from tabulate import tabulate

    found, there = pd.read_csv(predicted), pd.read_csv(true)
    rows = []
    for name in [column.removesuffix("count") for column in there if column.endswith(".count")]:
        sizes = f"{name}feret_max_mean_um"
        rows.append(
            {
                "class": name.rstrip("."),
                "true": there[f"{name}count"].sum(),
                "found": found[f"{name}count"].sum(),
                "mean size, true µm": _weighted_mean(there, sizes, f"{name}count"),
                "found µm": _weighted_mean(found, sizes, f"{name}count"),
            }
        )
    return tabulate(rows, headers="keys", tablefmt="pipe", floatfmt=".0f")


def _weighted_mean(table: "pd.DataFrame", value: str, weight: str) -> float:
    # The mean of no particle is NaN, which the sum leaves out.
    return float((table[value] * table[weight]).sum() / max(table[weight].sum(), 1))
