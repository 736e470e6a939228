#!/usr/bin/env python
"""Train briefly on 5, 10, … images from several starting weights, and compare.

python tools/learning_curve.py --config-file configs/microplastics_quick.yaml --images 5 all \
    --seeds 1 2 --start scratch= --start rendered=output/demo/model/model_best.pth \
    --output output/curve DATASETS.TRAIN '("train.json:images",)'
"""

import argparse

from tabulate import tabulate

from microplastics.cli import run
from microplastics.experiments.learning_curve import Start, Stopped, run_learning_curve, summarise
from microplastics.visualization.curves import plot_learning_curve


def _count(text: str) -> int | None:
    return None if text == "all" else int(text)


def _start(text: str) -> Start:
    name, equals, weights = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r}: write NAME=WEIGHTS, or NAME= for random ones")
    return Start(name, weights)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="config of all runs")
    parser.add_argument(
        "--images", type=_count, nargs="+", required=True, metavar="N", help="numbers, or all"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2], metavar="K")
    parser.add_argument(
        "--start", type=_start, action="append", required=True, metavar="NAME=WEIGHTS"
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of the runs")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config KEY VALUE pairs")
    return parser.parse_args()


def main() -> int:
    """Train, then print the table and say where everything is."""
    args = parse()
    try:
        runs = run_learning_curve(
            args.config_file, args.opts, args.start, args.images, args.seeds, args.output
        )
    except Stopped as stop:
        return stop.code
    rows = summarise(runs)
    plot_learning_curve(rows, f"{args.output}/learning_curve.png")
    print(tabulate(rows, headers="keys", tablefmt="pipe", floatfmt=".1f"))
    print(f"Runs, tables and learning_curve.png in {args.output}")
    return 0


if __name__ == "__main__":
    run(main)
