#!/usr/bin/env python
"""Render a stitched photograph of a whole filter, as a tiled TIFF, with exact annotations.

Writes FILE.tif and FILE.json (COCO) beside it.
"""

import argparse
import json

from microplastics.cli import run
from microplastics.synthetic import PRESETS, render_mosaic


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", required=True, metavar="FILE.tif", help="the TIFF")
    parser.add_argument("--size", type=int, default=10_000, metavar="S", help="side in pixels")
    parser.add_argument("--um-per-px", type=float, default=2.0, metavar="U", help="scale")
    parser.add_argument("--seed", type=int, default=0, metavar="K", help="same seed, same bytes")
    parser.add_argument(
        "--particles", type=int, metavar="N", help="particles (default: 15 a megapixel)"
    )
    presets = [name for name in PRESETS if name != "beads"]
    parser.add_argument(
        "--preset", default="default", metavar="NAME", help=f"one of {', '.join(presets)}"
    )
    parser.add_argument(
        "--filter", metavar="NAME", help="the filter, such as cellulose (default: by the seed)"
    )
    parser.add_argument(
        "--jpeg-quality", type=int, default=92, metavar="Q", help="of the TIFF's tiles, 1 to 100"
    )
    parser.add_argument("--lossless", action="store_true", help="deflate in place of JPEG")
    parser.add_argument("--workers", type=int, metavar="W", help="processes (default: as fit)")
    return parser.parse_args()


def main() -> None:
    """Render, then say where the files are."""
    args = parse()
    path = render_mosaic(
        args.output,
        args.size,
        args.um_per_px,
        args.seed,
        particles=args.particles,
        preset=args.preset,
        filter_name=args.filter,
        jpeg_quality=None if args.lossless else args.jpeg_quality,
        workers=args.workers,
    )
    coco = json.loads(path.read_text(encoding="utf-8"))
    found, wanted = len(coco["annotations"]), coco["info"]["particles_wanted"]
    print(f"{args.output}: {found} particles, annotations in {path}")
    if found < wanted:
        print(f"{wanted - found} of {wanted} particles found no room or did not stand out")


if __name__ == "__main__":
    run(main)
