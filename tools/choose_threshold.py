#!/usr/bin/env python
"""Choose the score threshold of each class on the validation set and store it in the checkpoint.

python tools/choose_threshold.py --config-file configs/microplastics_quick.yaml --metric f1 \
    --weights output/model/model_best.pth OUTPUT_DIR output/model
"""

import argparse

from detectron2.utils.logger import setup_logger
from tabulate import tabulate

from microplastics.cli import run
from microplastics.config import load_config
from microplastics.engine.evaluate import Outcome, choose_and_store


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="that of training")
    parser.add_argument(
        "--weights",
        metavar="FILE",
        default="",
        help="checkpoint; model_best.pth of OUTPUT_DIR when left out",
    )
    parser.add_argument(
        "--metric",
        choices=("f1", "count"),
        default="f1",
        help="maximise F1 at mask IoU 0.5 (default), or minimise the count error",
    )
    parser.add_argument(
        "--output", metavar="FILE", default="", help="write a copy and leave the checkpoint alone"
    )
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config KEY VALUE pairs")
    return parser.parse_args()


def table(outcome: Outcome) -> str:
    """The choices as text."""
    rows = [
        {
            "class": c.class_name,
            "threshold": f"{c.threshold:g}",
            "F1": f"{c.before['F1']:.1f} -> {c.after['F1']:.1f}",
            "true": c.true,
            "predicted": f"{c.before['predicted']} -> {c.after['predicted']}",
        }
        for c in outcome.choices
    ]
    return tabulate(rows, headers="keys", tablefmt="pipe", disable_numparse=True)


def main() -> None:
    """Choose, then print the table and say where everything is."""
    args = parse()
    cfg = load_config(args.config_file, args.opts)
    cfg.freeze()
    setup_logger(name="microplastics")
    weights = args.weights or (cfg.MODEL.WEIGHTS if "MODEL.WEIGHTS" in args.opts else "")
    outcome = choose_and_store(cfg, args.metric, weights, args.output)
    print(f"Thresholds by {args.metric} on {outcome.num_images} images (from 0.5 on -> chosen):")
    print(table(outcome))
    for choice in outcome.choices:
        if choice.kept_because:
            print(choice.kept_because)
    print("On other images expect somewhat less: the thresholds were chosen on these very ones.")
    print(f"Stored in {outcome.checkpoint}; curves in {outcome.curves} and {outcome.picture}")


if __name__ == "__main__":
    run(main)
