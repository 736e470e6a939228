#!/usr/bin/env python
"""Draw on one picture what each augmentation of INPUT.AUG does to a training image.

python tools/draw_augmentations.py --output output/augmentation.jpg \
    DATASETS.TRAIN '("path/to.json:path/to/images",)' INPUT.AUG.HUE.MAX_SHIFT 30.0
"""

import argparse

from microplastics.cli import run
from microplastics.config import load_config
from microplastics.visualization.galleries import draw_augmentations


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", metavar="FILE", default="", help="path to config file")
    parser.add_argument("--output", required=True, metavar="FILE", help=".jpg or .png to write")
    parser.add_argument("--side", type=int, default=280, metavar="PX", help="side of a panel")
    parser.add_argument("--seed", type=int, default=0, metavar="K", help="of the random numbers")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config KEY VALUE pairs")
    return parser.parse_args()


def main() -> None:
    """Draw, then say where the picture is."""
    args = parse()
    cfg = load_config(args.config_file, args.opts)
    cfg.MODEL.MASK_ON = True
    cfg.freeze()
    counts = draw_augmentations(cfg, args.output, args.side, args.seed)
    print(f"{len(counts)} panels in {args.output}")


if __name__ == "__main__":
    run(main)
