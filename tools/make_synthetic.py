#!/usr/bin/env python
"""Render a data set of filter photographs with fibres, fragments and films, or with beads.

Writes DIR/{train,val,test}/*.jpg and DIR/annotations/instances_{train,val,test}.json.
"""

import argparse

from microplastics.cli import run
from microplastics.synthetic import PRESETS, render_dataset


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of the data set")
    parser.add_argument("--train", type=int, default=240, metavar="N", help="training images")
    parser.add_argument("--val", type=int, default=60, metavar="N", help="validation images")
    parser.add_argument("--test", type=int, default=60, metavar="N", help="test images")
    parser.add_argument("--size", type=int, default=512, metavar="S", help="side in pixels")
    parser.add_argument("--um-per-px", type=float, default=4.0, metavar="U", help="scale")
    parser.add_argument("--seed", type=int, default=0, metavar="K", help="same seed, same bytes")
    parser.add_argument(
        "--preset",
        default="default",
        metavar="NAME",
        help="what is drawn: " + "; ".join(f"{name}: {p.about}" for name, p in PRESETS.items()),
    )
    parser.add_argument(
        "--backgrounds", metavar="DIR", help="folder of blank filter images to draw particles on"
    )
    parser.add_argument("--workers", type=int, metavar="W", help="processes (default: as fit)")
    return parser.parse_args()


def main() -> None:
    """Render, then say where the annotations are."""
    args = parse()
    counts = {"train": args.train, "val": args.val, "test": args.test}
    paths = render_dataset(
        args.output,
        counts,
        args.size,
        args.um_per_px,
        args.seed,
        workers=args.workers,
        preset=args.preset,
        backgrounds=args.backgrounds,
    )
    for split, path in paths.items():
        print(f"{split}: {counts[split]} images, annotations in {path}")


if __name__ == "__main__":
    run(main)
