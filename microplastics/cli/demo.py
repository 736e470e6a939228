"""The command demo: the main job from end to end on rendered filters."""

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from microplastics.cli.parsing import FILE, command, config_file, option
from microplastics.utils.errors import UserError

if TYPE_CHECKING:
    import pandas as pd


@command(pairs=True, short_help="Do it all on rendered photographs, from data to counts.")
@config_file("Name or path of the config.", default="demo", show_default=True)
@option("--output", default="output/demo", type=FILE, metavar="DIR", help="Folder of all files.")
@option("--train", type=int, default=400, metavar="N", help="Training images.")
@option("--val", type=int, default=60, metavar="N", help="Validation images.")
@option("--test", type=int, default=24, metavar="N", help="Images to count particles on.")
def demo(config_file: str, output: str, train: int, val: int, test: int, opts: list[str]) -> None:
    """Do the main job on rendered filters: render, train, evaluate, predict, measure.

    Each step is a command that also works by itself; it is printed before it runs. A demo that
    was stopped continues where it was.
    """
    folder = Path(output).absolute()
    data = folder / "datasets" / "microplastics_synthetic"
    model, pictures, curves = folder / "model", folder / "pictures", folder / "model/training.png"
    env = {**os.environ, "DETECTRON2_DATASETS": str(folder / "datasets")}
    config = ("--config-file", config_file)
    keys = ("OUTPUT_DIR", str(model), *opts)

    _step(
        "Rendering filter photographs with their exact annotations",
        *("render", "dataset", "--output", str(data), "--size", "256", "--um-per-px", "2"),
        *("--train", str(train), "--val", str(val), "--test", str(test), "--seed", "1"),
        env=env,
    )
    _step(
        "Checking the data sets",
        *("check", "microplastics_synthetic_train", "microplastics_synthetic_val"),
        env=env,
    )
    _step("Training", "train", *config, "--resume", *keys, env=env)
    title = "Choosing the score thresholds that count best on the validation images"
    _step(title, "thresholds", *config, "--metric", "count", *keys, env=env)
    _step("Evaluating the best checkpoint", "evaluate", *config, *keys, env=env)
    results = model / "inference" / "coco_instances_results.json"
    _step(
        "Drawing predictions beside the truth",
        *("view", "results", "--input", str(results), "--output", str(pictures)),
        *("--dataset", "microplastics_synthetic_val", "--limit", "12"),
        env=env,
    )
    _step(
        "Drawing the training curves",
        *("plot", "--input", str(model / "metrics.json"), "--output", str(curves)),
        env=env,
    )
    _count(folder, data, model, env)
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
        f"Particles in µm        {folder / 'particles'}"
    )


def _step(title: str, *arguments: str, env: dict[str, str]) -> None:
    print(f"\n== {title}\n$ {shlex.join(['microplastics', *arguments])}", flush=True)
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "microplastics", *arguments], env=env)
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


def _count(folder: Path, data: Path, model: Path, env: dict[str, str]) -> None:
    """Predict and measure the test images, and print what is there beside what is found."""
    predicted, true = folder / "particles", folder / "true_particles"
    common = ("--um-per-px", "2", "--overwrite")
    _step(
        "Finding and measuring the particles on the test images",
        *("predict", "--weights", str(model / "model_best.pth")),
        *("--input", str(data / "test"), "--output", str(predicted), *common),
        env=env,
    )
    _step(
        "Measuring the true particles",
        *("measure", "--masks", str(data / "annotations" / "instances_test.json")),
        *("--images", str(data / "test"), "--output", str(true), *common, "--formats", "csv"),
        env=env,
    )
    print(f"\n{_compare(predicted / 'summary.csv', true / 'summary.csv')}")


def _compare(predicted: Path, true: Path) -> str:
    """Print-ready table of the particles that were found beside those that are there.

    Args:
        predicted: summary.csv of ``microplastics predict``.
        true: summary.csv of ``microplastics measure`` on the annotations of the same images.
    """
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
    known = table[table[weight] > 0]
    return float((known[value] * known[weight]).sum() / max(known[weight].sum(), 1))
