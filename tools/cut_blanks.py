#!/usr/bin/env python
"""Cut particle-free squares out of annotated images, as backgrounds for make_synthetic.py.

python tools/cut_blanks.py --input instances_train.json --images train --output blanks
python tools/make_synthetic.py --backgrounds blanks --output rendered
"""

import argparse

from microplastics.cli import run
from microplastics.synthetic.filters import cut_blank_windows


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--input", required=True, metavar="JSON", help="all particles annotated")
    parser.add_argument("--images", required=True, metavar="DIR", help="image folder of the JSON")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of the squares")
    parser.add_argument("--min-size", type=int, default=256, metavar="PX", help="least side")
    parser.add_argument("--margin", type=int, default=25, metavar="PX", help="around particles")
    return parser.parse_args()


def main() -> None:
    """Cut, then say what was found."""
    args = parse()
    written, without = cut_blank_windows(
        args.input, args.images, args.output, args.min_size, args.margin
    )
    print(f"{len(written)} blank squares in {args.output}")
    if without:
        print(f"{len(without)} images have none of {args.min_size} px: {', '.join(without)}")


if __name__ == "__main__":
    run(main)
