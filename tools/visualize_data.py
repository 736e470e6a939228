#!/usr/bin/env python
"""Draw the annotations of a training set, or the augmented batches that training will see.

python tools/visualize_data.py --source annotation --output-dir output/pictures \
    DATASETS.TRAIN '("path/to.json:path/to/images",)'
"""

import argparse

from microplastics.cli import run
from microplastics.config import load_config
from microplastics.utils.errors import UserError
from microplastics.visualization.galleries import draw_annotations, draw_batches


def parse() -> argparse.Namespace:
    """Read the command line: Detectron2's, and --limit."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--source",
        choices=["annotation", "dataloader"],
        required=True,
        help="the annotations as they are, or what the data loader makes of them",
    )
    parser.add_argument("--config-file", metavar="FILE", default="", help="path to config file")
    parser.add_argument("--output-dir", default="./", metavar="DIR", help="folder of the pictures")
    parser.add_argument("--show", action="store_true", help="show them in a window instead")
    parser.add_argument(
        "--limit", type=int, metavar="N", help="draw the first N (default: all; one epoch)"
    )
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config KEY VALUE pairs")
    return parser.parse_args()


def main() -> None:
    """Draw, then say where the pictures are."""
    args = parse()
    if args.limit is not None and args.limit < 1:
        raise UserError(f"--limit is {args.limit}: give the number of pictures, 1 or more.")
    cfg = load_config(args.config_file, args.opts)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.freeze()
    draw = draw_annotations if args.source == "annotation" else draw_batches
    count = draw(cfg, args.output_dir, args.limit, args.show)
    if not args.show:
        print(f"{count} pictures in {args.output_dir}")


if __name__ == "__main__":
    run(main)
