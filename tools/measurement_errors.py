#!/usr/bin/env python
"""Print how far measurements are off on shapes of known size, as a Markdown table.

Discs, rectangles, ellipses, fibres along lines, arcs, sines and coils, and rings, each drawn at
random places and angles. A cell is the mean error with the smallest and the largest one.
"""

import argparse

from microplastics.cli import run
from microplastics.measurement.analytic import error_table


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--drawings", type=int, default=100, metavar="N", help="times each shape is drawn"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="K", help="same seed, same table")
    args = parser.parse_args()
    if args.drawings < 1:
        parser.error("--drawings must be at least 1")
    return args


def main() -> None:
    """Measure and print."""
    args = parse()
    print(error_table(args.drawings, args.seed))


if __name__ == "__main__":
    run(main)
