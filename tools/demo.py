#!/usr/bin/env python
"""The main job from end to end on rendered filters: render, train, evaluate, predict, measure.

Each step is a command that also works by itself; it is printed before it runs. A demo that was
stopped goes on where it was.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
from tabulate import tabulate

from microplastics.cli import run
from microplastics.utils.errors import UserError

ROOT = Path(__file__).resolve().parent.parent


def step(title: str, *command: str, env: dict[str, str]) -> None:
    shown = " ".join(["python", *map(shlex.quote, command)])
    print(f"\n== {title}\n$ {shown}", flush=True)
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT, env=env)
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.wait()  # Ctrl-C reached it too: it saves and ends by itself
        raise
    if code:
        raise UserError(f"The step above ended with exit code {code}; mend it and start again.")
    print(f"-- {time.perf_counter() - start:.0f} s", flush=True)


def compare(predicted: Path, true: Path) -> str:
    """Particles found beside those that are there, as text.

    Args:
        predicted: summary.csv of tools/predict.py.
        true: summary.csv of tools/measure.py on the annotations of the same images.
    """
    found, there = pd.read_csv(predicted), pd.read_csv(true)
    rows = []
    for name in [column.removesuffix("count") for column in there if column.endswith(".count")]:
        sizes = f"{name}feret_max_mean_um"
        rows.append(
            {
                "class": name.rstrip("."),
                "true": there[f"{name}count"].sum(),
                "found": found[f"{name}count"].sum(),
                "mean size, true µm": weighted_mean(there, sizes, f"{name}count"),
                "found µm": weighted_mean(found, sizes, f"{name}count"),
            }
        )
    return tabulate(rows, headers="keys", tablefmt="pipe", floatfmt=".0f")


def weighted_mean(table: pd.DataFrame, value: str, weight: str) -> float:
    known = table[table[weight] > 0]
    return float((known[value] * known[weight]).sum() / max(known[weight].sum(), 1))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", default="output/demo", help="folder of all that is made")
    parser.add_argument("--train", type=int, default=400, help="training images")
    parser.add_argument("--val", type=int, default=60, help="validation images")
    parser.add_argument("--test", type=int, default=24, help="images to count particles on")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config KEY VALUE pairs")
    return parser.parse_args()


def main() -> None:
    args = parse()
    output = Path(args.output).absolute()
    data = output / "datasets" / "microplastics_synthetic"
    model, pictures, curves = output / "model", output / "pictures", output / "model/training.png"
    env = {**os.environ, "DETECTRON2_DATASETS": str(output / "datasets")}
    config = ("--config-file", "configs/microplastics_quick.yaml")
    opts = ("OUTPUT_DIR", str(model), *args.opts)

    step(
        "Rendering filter photographs with their exact annotations",
        *("tools/make_synthetic.py", "--output", str(data), "--size", "256", "--um-per-px", "2"),
        *("--train", str(args.train), "--val", str(args.val), "--test", str(args.test)),
        *("--seed", "1"),
        env=env,
    )
    step(
        "Checking the data sets",
        *("tools/check_dataset.py", "microplastics_synthetic_train", "microplastics_synthetic_val"),
        env=env,
    )
    step("Training", "tools/train_net.py", *config, "--resume", *opts, env=env)
    title = "Choosing the score thresholds that count best on the validation images"
    step(title, "tools/choose_threshold.py", *config, "--metric", "count", *opts, env=env)
    title = "Evaluating the best checkpoint"
    step(title, "tools/train_net.py", *config, "--eval-only", *opts, env=env)
    results = model / "inference" / "coco_instances_results.json"
    step(
        "Drawing predictions beside the truth",
        *("tools/visualize_json_results.py", "--input", str(results), "--output", str(pictures)),
        *("--dataset", "microplastics_synthetic_val", "--limit", "12"),
        env=env,
    )
    step(
        "Drawing the training curves",
        *("tools/plot_training.py", "--input", str(model / "metrics.json")),
        *("--output", str(curves)),
        env=env,
    )
    count(output, data, model, env)
    with open(model / "inference" / "metrics.json", encoding="utf-8") as file:
        metrics = json.load(file)
    print(
        f"\nOn {args.val} validation images: mask AP50 {metrics['segm/AP50']:.1f}, "
        f"mask AP {metrics['segm/AP']:.1f}, box AP {metrics['bbox/AP']:.1f}.\n"
        f"Rendered data          {data}\n"
        f"Best model             {model / 'model_best.pth'}\n"
        f"Scores                 {model / 'inference'}\n"
        f"Predictions and truth  {pictures}\n"
        f"Training curves        {curves}\n"
        f"Particles in µm        {output / 'particles'}"
    )


def count(output: Path, data: Path, model: Path, env: dict[str, str]) -> None:
    """Predict and measure the test images, and print what is there beside what is found."""
    predicted, true = output / "particles", output / "true_particles"
    common = ("--um-per-px", "2", "--overwrite")
    step(
        "Finding and measuring the particles on the test images",
        *("tools/predict.py", "--weights", str(model / "model_best.pth")),
        *("--input", str(data / "test"), "--output", str(predicted), *common),
        env=env,
    )
    step(
        "Measuring the true particles",
        *("tools/measure.py", "--masks", str(data / "annotations" / "instances_test.json")),
        *("--images", str(data / "test"), "--output", str(true), *common, "--formats", "csv"),
        env=env,
    )
    print(f"\n{compare(predicted / 'summary.csv', true / 'summary.csv')}")


if __name__ == "__main__":
    run(main)
