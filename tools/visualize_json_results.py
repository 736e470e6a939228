#!/usr/bin/env python
"""Draw photograph, truth and prediction side by side from the results of an evaluation.

python tools/visualize_json_results.py --dataset microplastics_val --output output/pictures \
    --input output/microplastics_r50/inference/coco_instances_results.json
"""

import argparse

from microplastics.cli import run
from microplastics.utils.errors import UserError
from microplastics.visualization.galleries import draw_results


def parse() -> argparse.Namespace:
    """Read the command line: Detectron2's, and --limit."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--input", required=True, metavar="JSON", help="predictions of a model")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of the pictures")
    parser.add_argument(
        "--dataset",
        default="microplastics_val",
        metavar="NAME",
        help="registered data set or path/to.json:path/to/images (default: %(default)s)",
    )
    parser.add_argument(
        "--conf-threshold",
        default=0.5,
        type=float,
        metavar="SCORE",
        help="least score of what is drawn (default: %(default)s)",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="draw the first N images alone")
    return parser.parse_args()


def main() -> None:
    """Draw, then say where the pictures are and how much they show."""
    args = parse()
    if args.limit is not None and args.limit < 1:
        raise UserError(f"--limit is {args.limit}: give the number of pictures, 1 or more.")
    if not 0 <= args.conf_threshold <= 1:
        raise UserError(f"--conf-threshold is {args.conf_threshold:g}: give a score from 0 to 1.")
    done = draw_results(args.input, args.dataset, args.output, args.conf_threshold, args.limit)
    print(f"{done.pictures} pictures in {args.output}")
    if not done.predictions:
        print(f"{args.input} holds no predictions at all: the pictures show the truth alone.")
    elif not done.drawn:
        print(
            f"None of the {done.predictions} predictions reaches --conf-threshold "
            f"{args.conf_threshold:g}: the pictures show the truth alone. The highest score is "
            f"{done.best_score:.2g}."
        )


if __name__ == "__main__":
    run(main)
