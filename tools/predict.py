#!/usr/bin/env python
"""Find, count and measure the particles on photographs, up to whole stitched filters.

python tools/predict.py --weights output/demo/model/model_best.pth --input photos --output results
"""

import argparse
import sys

from microplastics.cli import run
from microplastics.engine import launch
from microplastics.inference.arguments import parse_predict
from microplastics.runs.run import predict_run


def main(args: argparse.Namespace) -> int:
    """Predict; 3 when images failed and the rest is done."""
    return predict_run(args)


if __name__ == "__main__":
    arguments = parse_predict(sys.argv[1:], __doc__)
    run(lambda: launch(main, arguments))
