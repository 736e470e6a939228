"""From annotation files to a plan: which image goes into which split or fold, and why."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from microplastics.data.coco import check_instances, contiguous_ids, read_json
from microplastics.data.coco_findings import show
from microplastics.data.similarity import Components
from microplastics.data.splits.assignment import check_shares, deviation, folds, split
from microplastics.data.splits.groups import (
    NameIndex,
    compile_pattern,
    folds_from_csv,
    group_of,
    groups_by_similarity,
    groups_from_csv,
    listed,
    read_text,
    roboflow_original,
)
from microplastics.errors import UserError

DEFAULT_SHARES = (0.7, 0.15, 0.15)
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class SplitOptions:
    """How to form groups and share them out.

    Attributes:
        shares: of train and val, or of train, val and test; ``DEFAULT_SHARES`` if all of shares,
            folds and fold_lists are left out.
        folds: number of folds.
        fold_lists: one CSV with the columns image and fold, or a text file of names for each fold.
        group_regex: takes the group out of a file name (``groups.group_of``).
        groups_csv: table with the columns image and group.
        by_similarity: copies of one photograph are one group, whatever the other ways say.
        join_roboflow_copies: so are Roboflow's augmented copies of one original.
        seed: decides between equals.
    """

    shares: tuple[float, ...] | None = None
    folds: int | None = None
    fold_lists: tuple[str, ...] = ()
    group_regex: str | None = None
    groups_csv: str | None = None
    by_similarity: bool = False
    join_roboflow_copies: bool = True
    seed: int = 0


@dataclass(frozen=True)
class Source:
    """One data set, put together from its annotation files.

    Attributes:
        data: the COCO dict; entries as they were, but for ids and file_name of several files.
        image_root: folder that every ``file_name`` is relative to.
        names: ``file_name`` of each image as its own JSON has it.
        classes: class names.
        counts: int64 (N, C), particles of each class in each image, crowds left out.
        blank: bool (N,), images without any annotation.
        inputs: path, images and sha256 of each annotation file.
    """

    data: dict[str, Any]
    image_root: str
    names: list[str]
    classes: list[str]
    counts: np.ndarray
    blank: np.ndarray
    inputs: list[dict[str, str]]

    @property
    def file_names(self) -> list[str]:
        """``file_name`` of each image below ``image_root``."""
        return [image["file_name"] for image in self.data["images"]]


@dataclass
class Plan:
    """Which image goes where.

    Attributes:
        source: the data set.
        parts: names of the splits, or of the folds.
        are_folds: the parts are folds, of which each is the validation set once.
        assignment: int64 (N,), the part of each image.
        groups: the group of each image.
        deviation: largest difference between a part's share of a class, of the images or of the
            blanks, and the share that was asked for.
        notes: what the person should know.
    """

    source: Source
    parts: list[str]
    are_folds: bool
    assignment: np.ndarray
    groups: list[str]
    deviation: float
    notes: list[str] = field(default_factory=list)


def read_source(json_files: Sequence[str], image_roots: Sequence[str]) -> Source:
    """Read, check and put together annotation files.

    Args:
        json_files: COCO instance JSONs.
        image_roots: the image folder of all, or one for each. Where they differ, ``file_name``
            becomes relative to the folder that holds them all.

    Raises:
        UserError: a file cannot be used, categories differ, or an image comes twice.
    """
    roots = list(image_roots) * (len(json_files) if len(image_roots) == 1 else 1)
    if len(roots) != len(json_files):
        raise UserError(
            f"{len(json_files)} annotation files have {len(image_roots)} image folders; give one "
            "folder for all, or one for each."
        )
    common = roots[0] if len(set(roots)) == 1 else os.path.commonpath(map(os.path.abspath, roots))
    images, annotations, names, inputs = [], [], [], []
    for json_file, root in zip(json_files, roots, strict=True):
        check_instances(json_file, root)
        ids = contiguous_ids(json_file)
        data = read_json(json_file)
        if not inputs:
            first, classes = data, ids
        report_names = {c["id"]: c["name"] for c in data["categories"] if c["id"] in ids}
        if ids != classes or report_names != _class_names(first, classes):
            raise UserError(
                f"The categories of {json_file} are {report_names}, those of {json_files[0]} are "
                f"{_class_names(first, classes)}; give all the same ids and names."
            )
        digest = hashlib.sha256(Path(json_file).read_bytes()).hexdigest()
        inputs.append({"annotations": json_file, "images": root, "sha256": digest})
        names += [image["file_name"] for image in data["images"]]
        prefix = os.path.relpath(root, common) if root != common else "."
        if len(json_files) > 1:
            _renumber(data, len(images), len(annotations), prefix)
        images += data["images"]
        annotations += data["annotations"]
    if len(json_files) > 1:
        _check_unique([image["file_name"] for image in images])
    counts, blank = _count(images, annotations, classes)
    return Source(
        data={**first, "images": images, "annotations": annotations},
        image_root=common,
        names=names,
        classes=list(_class_names(first, classes).values()),
        counts=counts,
        blank=blank,
        inputs=inputs,
    )


def _class_names(data: dict[str, Any], classes: dict[int, int]) -> dict[int, str]:
    names = {category["id"]: category["name"] for category in data["categories"]}
    return {id_: names[id_] for id_ in classes}


def _renumber(data: dict[str, Any], images: int, annotations: int, prefix: str) -> None:
    """Give a file's entries ids after those of earlier files, and names below the common folder."""
    ids = {image["id"]: images + n for n, image in enumerate(data["images"], 1)}
    data["images"] = [
        {
            **image,
            "id": ids[image["id"]],
            "file_name": os.path.normpath(os.path.join(prefix, image["file_name"])),
        }
        for image in data["images"]
    ]
    data["annotations"] = [
        {**annotation, "id": annotations + n, "image_id": ids[annotation["image_id"]]}
        for n, annotation in enumerate(data["annotations"], 1)
    ]


def _check_unique(file_names: Sequence[str]) -> None:
    seen: set[str] = set()
    twice = [name for name in file_names if name in seen or seen.add(name)]
    if twice:
        raise UserError(
            f"{len(twice)} images are in the annotations more than once: {listed(twice)}; name "
            "each image in one annotation file alone."
        )


def _count(
    images: Sequence[dict], annotations: Sequence[dict], classes: dict[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    places = {image["id"]: index for index, image in enumerate(images)}
    counts, blank = np.zeros((len(images), len(classes)), np.int64), np.ones(len(images), bool)
    for annotation in annotations:
        place = places[annotation["image_id"]]
        blank[place] = False
        if not annotation.get("iscrowd"):
            counts[place, classes[annotation["category_id"]]] += 1
    return counts, blank


def plan_splits(source: Source, options: SplitOptions) -> Plan:
    """Form the groups and share them out.

    Raises:
        UserError: the options contradict each other or do not fit the images.
    """
    wanted = [options.shares is not None, options.folds is not None, bool(options.fold_lists)]
    if sum(wanted) > 1:
        raise UserError("Give one of --shares, --folds and --fold-lists.")
    if options.seed < 0:
        raise UserError(f"The seed {options.seed} is negative; give an integer from 0.")
    notes: list[str] = []
    groups = _groups(source, options, notes)
    kinds = np.column_stack([source.counts, source.blank, np.ones(len(groups), np.int64)])
    if options.fold_lists:
        parts, assignment = _external_folds(source, options.fold_lists)
        shares = np.full(len(parts), 1 / len(parts))
        _note_torn_groups(groups, assignment, notes)
    else:
        names, rows = np.unique(groups, return_inverse=True)
        rows = rows.reshape(-1)  # numpy 2.0 alone gives another shape
        table = np.zeros((len(names), kinds.shape[1]), np.int64)
        np.add.at(table, rows, kinds)
        if options.folds is not None:
            chosen = folds(names.tolist(), table, options.folds, options.seed)
            parts = [f"fold{k + 1}" for k in range(options.folds)]
            shares = np.full(options.folds, 1 / options.folds)
        else:
            shares = check_shares(options.shares or DEFAULT_SHARES)
            if not 2 <= len(shares) <= len(SPLITS):
                raise UserError("Give two shares (train, val) or three (train, val, test).")
            parts = list(SPLITS[: len(shares)])
            chosen = split(names.tolist(), table, shares, options.seed)
        assignment = chosen[rows]
    _note_missing_classes(source, parts, assignment, notes)
    return Plan(
        source,
        parts,
        options.folds is not None or bool(options.fold_lists),
        assignment,
        groups,
        deviation(kinds, assignment, shares),
        notes,
    )


def _groups(source: Source, options: SplitOptions, notes: list[str]) -> list[str]:
    """Name the group of each image."""
    file_names, names = source.file_names, source.names
    if options.group_regex is not None and options.groups_csv is not None:
        raise UserError("Give --group-regex or --groups, not both.")
    if options.group_regex is not None:
        pattern = compile_pattern(options.group_regex)
        keys = [group_of(name, pattern) for name in names]
    elif options.groups_csv is not None:
        table = NameIndex(file_names).assign(
            groups_from_csv(options.groups_csv), options.groups_csv, "group"
        )
        keys = [table[name] for name in file_names]
    else:
        keys = file_names
        if not options.by_similarity and not options.fold_lists:
            notes.append(
                "no way of grouping was given, so that images are split singly: pieces of one "
                "filter can be in training and test, which flatters the score; give --group-regex "
                "or --groups"
            )
    components = Components(len(keys))
    _join_equal(components, keys)
    # Entries that name one file, be it as ./name, are one photograph.
    _join_equal(components, list(map(os.path.normpath, file_names)))
    before = len(components.groups())
    if options.join_roboflow_copies:
        _join_equal(
            components, [roboflow_original(name) or index for index, name in enumerate(names)]
        )
        copies = before - len(components.groups())
        if copies:
            notes.append(f"{copies} groups were joined to others: Roboflow's copies of one image")
    if options.by_similarity:
        before = len(components.groups())
        paths = [os.path.join(source.image_root, name) for name in file_names]
        _join_equal(components, groups_by_similarity(paths))
        alike = before - len(components.groups())
        if alike:
            notes.append(f"{alike} groups were joined to others: the same photograph by its pixels")
    first_keys: dict[int, str] = {}
    for index, key in enumerate(keys):
        node = components.find(index)
        first_keys[node] = min(first_keys.get(node, key), key)
    return [first_keys[components.find(index)] for index in range(len(keys))]


def _join_equal(components: Components, keys: Sequence[Any]) -> None:
    first: dict[Any, int] = {}
    for index, key in enumerate(keys):
        components.join(first.setdefault(key, index), index)


def _external_folds(source: Source, paths: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Read a fold definition: names of the folds, and the fold of each image, as given."""
    if len(paths) == 1:
        table = folds_from_csv(paths[0])
    else:
        table = {}
        for number, path in enumerate(paths, 1):
            names = list(filter(None, map(str.strip, read_text(path).splitlines())))
            if not names:
                raise UserError(f"{path} lists no image; fill it in, or leave it out.")
            for name in names:
                if table.setdefault(name, str(number)) != str(number):
                    other = paths[int(table[name]) - 1]
                    raise UserError(f"{show(name)} is in {other} and in {path}; list it in one.")
    folds_of = NameIndex(source.file_names).assign(table, " + ".join(paths), "fold")
    labels = set(folds_of.values())
    numeric = all(label.isdecimal() and len(label) < 10 for label in labels)
    order = sorted(labels, key=int if numeric else None)
    if len(order) < 2:
        raise UserError(f"{paths[0]} defines one fold; two or more are needed.")
    places = {label: place for place, label in enumerate(order)}
    assignment = [places[folds_of[name]] for name in source.file_names]
    return [f"fold{k + 1}" for k in range(len(order))], np.array(assignment, np.int64)


def _note_torn_groups(groups: Sequence[str], assignment: np.ndarray, notes: list[str]) -> None:
    parts_of = defaultdict(set)
    for group, part in zip(groups, assignment.tolist(), strict=True):
        parts_of[group].add(part)
    torn = [group for group, parts in parts_of.items() if len(parts) > 1]
    if torn:
        notes.append(f"the fold lists have {len(torn)} groups in several folds: {listed(torn)}")


def _note_missing_classes(
    source: Source, parts: Sequence[str], assignment: np.ndarray, notes: list[str]
) -> None:
    for part, name in enumerate(parts):
        counts = source.counts[assignment == part].sum(axis=0)
        missing = [
            label
            for label, count, total in zip(
                source.classes, counts, source.counts.sum(axis=0), strict=True
            )
            if total and not count
        ]
        if missing:
            notes.append(f"{name} has no {', '.join(missing)}: they lie in too few groups")
