#!/usr/bin/env python
"""Convert annotations of other tools into the COCO data set that this project trains on.

Writes DIR/annotations/instances_SPLIT.json and DIR/conversion.json. docs/formats.md says what is
read, changed and left out.
"""

import argparse
from pathlib import Path

from microplastics.cli import run
from microplastics.data.formats import READERS
from microplastics.data.formats.base import ReadOptions
from microplastics.data.formats.convert import PROJECT_CLASSES, convert_dataset, describe_conversion


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--input", required=True, type=Path, metavar="PATH", help="file or folder")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="new data set")
    parser.add_argument(
        "--from",
        dest="format",
        choices=READERS,
        help="(default: found out, except blanks: images without a particle)",
    )
    parser.add_argument(
        "--classes",
        metavar="A,B,…",
        help="classes of --from blanks, which must be those of the set that they are used with, "
        f"in its order (default: {','.join(PROJECT_CLASSES)})",
    )
    parser.add_argument(
        "--categories",
        metavar="old=New,…",
        help="rename classes, merge those of one new name, leave out those of none (old=)",
    )
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--copy", action="store_true", help="copy the images into DIR")
    place.add_argument("--link", action="store_true", help="link the images into DIR")
    parser.add_argument("--images", type=Path, metavar="DIR", help="where they are, if not found")
    parser.add_argument("--line-width", type=float, metavar="PX", help="make lines this wide")
    parser.add_argument(
        "--crowd-as-instances",
        action="store_true",
        help="take crowd regions as particles (CVAT exports brush masks as crowds)",
    )
    parser.add_argument(
        "--skip-broken", action="store_true", help="leave out missing and broken files, listed"
    )
    return parser.parse_args()


def main() -> None:
    """Convert, then say what was read, what was changed, and where it is."""
    args = parse()
    options = ReadOptions(
        skip_broken=args.skip_broken,
        line_width=args.line_width,
        images=args.images,
        crowd_as_instances=args.crowd_as_instances,
        classes=None if args.classes is None else tuple(map(str.strip, args.classes.split(","))),
    )
    place = "copy" if args.copy else "link" if args.link else "keep"
    conversion = convert_dataset(
        args.input,
        args.output,
        args.format,
        categories=args.categories,
        place=place,
        options=options,
    )
    print(describe_conversion(conversion))


if __name__ == "__main__":
    run(main)
