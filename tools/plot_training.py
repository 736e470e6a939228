#!/usr/bin/env python
"""Plot losses, learning rate and AP of a training.

python tools/plot_training.py --input output/model/metrics.json --output curves.png
"""

import argparse

from microplastics.cli import run
from microplastics.visualization import plot_training_curves


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--input", required=True, metavar="JSON", help="metrics.json of a training's OUTPUT_DIR"
    )
    parser.add_argument(
        "--output", required=True, metavar="FILE", help=".png, .jpg, .pdf or .svg file"
    )
    return parser.parse_args()


def main() -> None:
    """Plot, then say where the picture is."""
    args = parse()
    plot_training_curves(args.input, args.output)
    print(f"Curves in {args.output}")


if __name__ == "__main__":
    run(main)
