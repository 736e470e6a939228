#!/usr/bin/env python
"""Split a data set by filter or sample into train, val and test, or into folds.

Writes DIR/annotations/instances_{train,val,test}.json, or DIR/fold1/annotations/… and so on, and
DIR/splits.json. docs/splits.md says how the groups are formed and what splits.json holds.
"""

import argparse

from microplastics.cli import run
from microplastics.data.splits.split import DEFAULT_SHARES, SplitOptions, split_dataset


def shares(text: str) -> tuple[float, ...]:
    """Parse comma-separated numbers."""
    return tuple(float(share) for share in text.split(","))


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add(
        "--input",
        required=True,
        nargs="+",
        metavar="JSON",
        help="COCO instance JSON; several are put together first",
    )
    add("--images", required=True, nargs="+", metavar="DIR", help="image folder, or one a JSON")
    add("--output", required=True, metavar="DIR", help="folder for the splits")
    way = parser.add_mutually_exclusive_group()
    default = ",".join(map(str, DEFAULT_SHARES))
    way.add_argument(
        "--shares",
        type=shares,
        metavar="A,B[,C]",
        help=f"of train, val and test (default: {default})",
    )
    way.add_argument("--folds", type=int, metavar="K", help="folds of equal shares instead")
    way.add_argument(
        "--fold-lists",
        nargs="+",
        default=(),
        metavar="FILE",
        help="folds as they are given: a text file of names for each, or one CSV image,fold",
    )
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--group-regex", metavar="REGEX", help="its one (group) names the filter in a file name"
    )
    group.add_argument("--groups", metavar="CSV", help="table with the columns image and group")
    add(
        "--by-similarity",
        action="store_true",
        help="keep copies of one photograph together, found by their pixels; also beside these",
    )
    add(
        "--split-roboflow-copies",
        action="store_true",
        help="do not keep Roboflow's augmented " "copies of one image together",
    )
    add("--seed", type=int, default=0, metavar="N", help="same seed, same splits (default: 0)")
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--copy", action="store_true", help="copy the images into DIR")
    place.add_argument("--link", action="store_true", help="link the images into DIR")
    return parser.parse_args()


def main() -> None:
    """Split, then say what is where."""
    args = parse()
    options = SplitOptions(
        shares=args.shares,
        folds=args.folds,
        fold_lists=tuple(args.fold_lists),
        group_regex=args.group_regex,
        groups_csv=args.groups,
        by_similarity=args.by_similarity,
        join_roboflow_copies=not args.split_roboflow_copies,
        seed=args.seed,
    )
    place = "copy" if args.copy else "link" if args.link else "keep"
    print(split_dataset(args.input, args.images, args.output, options, place))


if __name__ == "__main__":
    run(main)
