#!/usr/bin/env python
"""Export a COCO data set as YOLO, LabelMe, label images or plain COCO.

Writes the annotations and images as the format wants them, and DIR/export.json, which lists what
was changed and what the format cannot hold.
"""

import argparse
from pathlib import Path

from microplastics.cli import run
from microplastics.data.formats.base import ReadOptions
from microplastics.data.formats.convert import FORMATS, describe_export, export_dataset


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--input",
        required=True,
        type=Path,
        metavar="PATH",
        help="COCO JSON, or the folder of a data set with all its splits",
    )
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder of the images")
    parser.add_argument("--to", required=True, choices=FORMATS, help="format to write")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="a new folder")
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--copy", action="store_true", help="copy the images (default)")
    place.add_argument("--link", action="store_true", help="link the images instead")
    place.add_argument("--no-images", action="store_true", help="write the annotations alone")
    parser.add_argument(
        "--polygons", action="store_true", help="outline RLE masks along their pixels"
    )
    parser.add_argument(
        "--skip-broken", action="store_true", help="leave out missing and broken images, listed"
    )
    return parser.parse_args()


def main() -> None:
    """Export, then say what was written and lost."""
    args = parse()
    export = export_dataset(
        args.input,
        args.output,
        args.to,
        place="link" if args.link else "none" if args.no_images else "copy",
        polygons=args.polygons,
        options=ReadOptions(images=args.images, skip_broken=args.skip_broken),
    )
    print(describe_export(export))


if __name__ == "__main__":
    run(main)
