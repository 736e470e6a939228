#!/usr/bin/env python
"""Measure given masks: annotations, predictions of any model, or label images.

python tools/measure.py --masks annotations.json --images photos --um-per-px 2.5 --output results
"""

import argparse
import sys

from microplastics.cli import run
from microplastics.inference.arguments import parse_measure
from microplastics.runs.run import measure_run


def main(args: argparse.Namespace) -> int:
    """Measure; 3 when images failed and the rest is done."""
    return measure_run(args)


if __name__ == "__main__":
    run(lambda: main(parse_measure(sys.argv[1:], __doc__)))
