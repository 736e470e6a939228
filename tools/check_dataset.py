#!/usr/bin/env python
"""Find everything that is wrong in an annotated data set, and mend what can be mended.

python tools/check_dataset.py train.json test.json --images data/train data/test --report look
python tools/check_dataset.py train.json --images data/train --fix mended.json

Exit code 0: clean, or warnings alone; 1: problems; 2: the command makes no sense.
"""

import argparse
import os
import sys
from pathlib import Path

from microplastics.cli import run
from microplastics.config import get_cfg, load_config
from microplastics.data.doctor import diagnose, fix_datasets
from microplastics.data.doctor.findings import describe, describe_fixed
from microplastics.data.doctor.fix import check_output
from microplastics.utils.errors import UserError


def parse() -> argparse.Namespace:
    """Read the command line; ``opts`` begins at the first config key."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "annotations",
        nargs="+",
        metavar="ANN.json",
        help="COCO JSON, JSON:IMAGES, or the name of a registered data set",
    )
    parser.add_argument(
        "--images",
        nargs="+",
        metavar="DIR",
        help="image folder: one for all, or one for each JSON (default: beside the JSON)",
    )
    parser.add_argument(
        "--config-file", metavar="FILE", help="hold the data to this config's classes and model"
    )
    parser.add_argument(
        "--group-regex", metavar="R", help="takes the sample or filter out of a file name: (S\\d+)_"
    )
    parser.add_argument(
        "--fix",
        metavar="OUT",
        help="write a mended copy to this file (a folder for several JSONs) and list the changes",
    )
    parser.add_argument("--report", metavar="DIR", help="write report.json and a page to look at")
    parser.add_argument("--workers", type=int, metavar="W", help="processes (default: as fit)")
    arguments, sections = sys.argv[1:], get_cfg()
    keys = (
        i
        for i, a in enumerate(arguments)
        if "." in a and a.partition(".")[0] in sections and not os.path.exists(a)
    )
    first = next(keys, len(arguments))
    args = parser.parse_args(arguments[:first], argparse.Namespace(opts=arguments[first:]))
    if args.opts and args.config_file is None:
        raise UserError(f"{args.opts[0]} changes a config; name it with --config-file.")
    return args


def resolve(annotations: list[str], images: list[str] | None) -> tuple[list[str], list[str]]:
    """Turn the entries of the command line into annotation files and image folders."""
    if images:
        return annotations, images
    from detectron2.data import MetadataCatalog

    from microplastics.data.catalog import resolve_datasets

    found = [MetadataCatalog.get(name) for name in resolve_datasets(annotations)]
    return [data.json_file for data in found], [data.image_root for data in found]


def main() -> int:
    """Check, then print the findings, worst first."""
    args = parse()
    json_files, image_roots = resolve(args.annotations, args.images)
    if args.fix:
        check_output(json_files, args.fix)
    cfg = None if args.config_file is None else load_config(args.config_file, args.opts)
    diagnosis = diagnose(
        json_files,
        image_roots,
        cfg=cfg,
        config_file=args.config_file or "",
        group_regex=args.group_regex,
        workers=args.workers,
        max_pixels=None if cfg is None else cfg.INPUT.MAX_PIXELS,
    )
    print(describe(diagnosis))
    if args.report:
        from microplastics.report.dataset import write_report

        print(f"\nReport: {write_report(diagnosis, Path(args.report))}")
    if args.fix:
        print(f"\n{describe_fixed(fix_datasets(diagnosis, args.fix))}")
    return int(diagnosis.has_problems)


if __name__ == "__main__":
    run(main)
