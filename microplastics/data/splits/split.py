"""Writing splits and folds: the annotation files, the images where asked, and the manifest."""

import hashlib
import os
import shlex
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate
from tqdm import tqdm

from microplastics.data.coco import check_instances, contiguous_ids, read_json, show
from microplastics.data.formats.layout import place_image
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
from microplastics.data.splits.similarity import Components
from microplastics.utils.errors import UserError
from microplastics.utils.io import write_json

_SWAP_SAMPLE = 256  # groups whose swaps are all tried at once
_IDLE_ROUNDS = 4  # of other samples, before the search for swaps ends
_MAX_ROUNDS = 2000
_STARTS = 16
_TOLERANCE = 1e-12


def split(
    groups: Sequence[str], class_counts: np.ndarray, shares: Sequence[float], seed: int
) -> np.ndarray:
    """Assign every group to one split, each class by its share.

    Minimises the sum over splits s and columns c of (part of c that is in s - share of s)^2.

    Args:
        groups: the names of G groups, each once; their order does not matter.
        class_counts: (G, C), how many of each kind a group holds; a kind is a class, or the
            images without particles, or all images. Finite and not negative.
        shares: of S splits, each above 0, together 1.
        seed: decides between equals.

    Returns:
        int64 (G,): the split of each group, 0 to S - 1; every split gets at least one group.

    Raises:
        UserError: the shares do not add up, or there are fewer groups than splits.
    """
    shares = check_shares(shares)
    counts = np.asarray(class_counts, np.float64)
    if len(set(groups)) != len(groups) or counts.ndim != 2 or len(counts) != len(groups):
        raise ValueError(f"{len(groups)} groups, of unique names, need as many rows of counts")
    if len(groups) < len(shares):
        raise UserError(
            f"There are {len(groups)} groups for {len(shares)} splits, and a group is never "
            "divided; ask for fewer splits or form smaller groups."
        )
    # By name, so that the order of the input has no influence.
    order = np.array(sorted(range(len(groups)), key=groups.__getitem__), np.int64)
    parts, rng = _parts(counts[order]), np.random.default_rng(seed)
    best = None
    for start in range(_STARTS if len(groups) <= _SWAP_SAMPLE else 1):
        search = _Search(parts, shares, rng)
        search.fill(shuffle=start > 0)
        search.improve()
        if best is None or search.cost() < best.cost() - _TOLERANCE:
            best = search
    assignment = np.empty(len(groups), np.int64)
    assignment[order] = best.assignment
    return assignment


def folds(groups: Sequence[str], class_counts: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Assign every group to one of ``count`` folds of equal shares; see :func:`split`.

    Raises:
        UserError: fewer than 2 folds, or fewer groups than folds.
    """
    if count < 2:
        raise UserError(f"{count} folds are too few; ask for 2 or more.")
    if count > len(groups):
        raise UserError(
            f"There are {len(groups)} groups for {count} folds, and a group is never divided; "
            "ask for fewer folds or form smaller groups."
        )
    return split(groups, class_counts, [1 / count] * count, seed)


def check_shares(shares: Sequence[float]) -> np.ndarray:
    """Return the shares as float64 that add up to 1.

    Raises:
        UserError: a share is not above 0, or they do not add up to 1 within 0.001.
    """
    array = np.asarray(shares, np.float64)
    words = ", ".join(f"{share:g}" for share in shares)
    if not len(array) or not (array > 0).all() or not abs(array.sum() - 1) <= 1e-3:
        raise UserError(
            f"The shares {words} must each be above 0 and add up to 1; write 0.7,0.15,0.15."
        )
    return array / array.sum()


def deviation(class_counts: np.ndarray, assignment: np.ndarray, shares: Sequence[float]) -> float:
    """Largest difference between a split's part of a kind and its share, over splits and kinds.

    Args:
        class_counts: (G, C), as for :func:`split`.
        assignment: (G,), the split of each group.
        shares: of S splits.

    Returns:
        from 0, perfect, to 1; kinds that nothing belongs to do not count.
    """
    parts = _parts(np.asarray(class_counts, np.float64))
    loads = np.zeros((len(shares), parts.shape[1]))
    np.add.at(loads, assignment, parts)
    return float(np.abs(loads - np.asarray(shares)[:, None]).max(initial=0.0))


def _parts(counts: np.ndarray) -> np.ndarray:
    """What part of each kind a group holds, (G, C); kinds that nothing belongs to are left out."""
    totals = counts.sum(axis=0)
    return counts[:, totals > 0] / totals[totals > 0]


class _Search:
    """An assignment of groups to splits, and how far each split is from its shares."""

    def __init__(self, parts: np.ndarray, shares: np.ndarray, rng: np.random.Generator):
        self._parts, self._rng = parts, rng
        self._squares = (parts * parts).sum(axis=1)
        self._excess = np.repeat(-shares[:, None], parts.shape[1], axis=1)  # (S, C)
        self._members = np.zeros(len(shares), np.int64)
        self.assignment = np.full(len(parts), -1, np.int64)

    def cost(self) -> float:
        """Sum of the squared differences from the shares."""
        return float((self._excess**2).sum())

    def fill(self, shuffle: bool) -> None:
        """Assign every group, the largest first; the seed decides between equals.

        Args:
            shuffle: take the groups only roughly in the order of their size.
        """
        size = self._parts.sum(axis=1)
        if shuffle:
            size = size * self._rng.uniform(0.3, 1.0, len(size))
        shuffled = self._rng.permutation(len(size))
        order = shuffled[np.argsort(-size[shuffled], kind="stable")]
        splits = len(self._excess)
        for place, group in enumerate(order):
            # Adding x to the excess e changes |e|^2 by 2 e.x + |x|^2; only 2 e.x differs.
            gains = self._excess @ self._parts[group]
            if len(order) - place <= (self._members == 0).sum():
                gains = np.where(self._members == 0, gains, np.inf)
            best = np.flatnonzero(gains <= gains.min() + _TOLERANCE)
            # Equals, such as groups without a count: where the fewest are for the share.
            target = min(best.tolist(), key=lambda s: (self._members[s], s)) if splits > 1 else 0
            self._put(int(group), target)

    def improve(self) -> None:
        """Move and swap while that brings the splits closer to their shares."""
        idle = 0
        for _ in range(_MAX_ROUNDS):
            if self._move() or self._swap():
                idle = 0
                continue
            idle += 1
            if idle >= _IDLE_ROUNDS or len(self._parts) <= _SWAP_SAMPLE:
                return

    def _put(self, group: int, target: int) -> None:
        source = self.assignment[group]
        if source >= 0:
            self._excess[source] -= self._parts[group]
            self._members[source] -= 1
        self._excess[target] += self._parts[group]
        self._members[target] += 1
        self.assignment[group] = target

    def _move(self) -> bool:
        """Make the best move of one group, if it helps."""
        products = self._parts @ self._excess.T  # (G, S)
        here = products[np.arange(len(products)), self.assignment]
        change = products - here[:, None] + self._squares[:, None]
        change[np.arange(len(products)), self.assignment] = 0
        change[self._members[self.assignment] == 1] = 0  # a split is never left without a group
        group, target = divmod(int(change.argmin()), change.shape[1])
        if change[group, target] >= -_TOLERANCE:
            return False
        self._put(group, target)
        return True

    def _swap(self) -> bool:
        """Make the best swap of two groups out of a sample, if it helps."""
        sample = np.arange(len(self._parts))
        if len(sample) > _SWAP_SAMPLE:
            sample = np.sort(self._rng.choice(len(sample), _SWAP_SAMPLE, replace=False))
        parts, at = self._parts[sample], self.assignment[sample]
        products = parts @ self._excess.T
        here = products[np.arange(len(sample)), at]
        # x of split a for y of split b: (x - y).(e_b - e_a) + |x - y|^2, e before the swap.
        cross = products[:, at] - here[:, None]
        gaps = self._squares[sample][:, None] + self._squares[sample] - 2 * parts @ parts.T
        change = cross + cross.T + gaps
        change[at[:, None] == at] = 0
        one, other = divmod(int(change.argmin()), len(sample))
        if change[one, other] >= -_TOLERANCE:
            return False
        first, second = int(sample[one]), int(sample[other])
        splits = int(at[one]), int(at[other])
        self._put(first, splits[1])
        self._put(second, splits[0])
        return True


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


MANIFEST = "splits.json"
_CONFIG = "configs/microplastics_r50.yaml"


@dataclass(frozen=True)
class Output:
    """One annotation file.

    Attributes:
        name: ``train``, or ``fold1/train``.
        path: where it lies.
        image_root: folder that its file names are relative to.
        chosen: bool (N,), its images.
    """

    name: str
    path: Path
    image_root: Path
    chosen: np.ndarray

    @property
    def entry(self) -> str:
        """``JSON:IMAGES`` for ``DATASETS.TRAIN`` and ``DATASETS.TEST``."""
        return f"{self.path}:{self.image_root}"


def split_dataset(
    json_files: Sequence[str],
    image_roots: Sequence[str],
    output: str | os.PathLike,
    options: SplitOptions,
    place: str = "keep",
) -> str:
    """Split a data set and write it; nothing is written before everything has been checked.

    Args:
        json_files: COCO instance JSONs.
        image_roots: the image folder of all of them, or one for each.
        output: folder for the annotation files and ``splits.json``.
        options: how to split.
        place: ``"keep"`` leaves the images where they are; ``"copy"`` and ``"link"`` put them
            into ``output``: below ``train``, ``val``, ``test``, or below ``images`` for folds.

    Returns:
        words and a table for the person: what is where.

    Raises:
        UserError: the input cannot be used, or ``output`` holds other splits.
    """
    output = Path(output)
    settings = {
        "annotations": list(json_files),
        "images": list(image_roots),
        "place": place,
        **asdict(options),
        "shares": list(options.shares) if options.shares is not None else None,
        "fold_lists": list(options.fold_lists),
    }
    earlier = _check_earlier(output, settings)
    plan = plan_splits(read_source(json_files, image_roots), options)
    _check_unmoved(plan, output, earlier)
    outputs = _outputs(plan, output, place)
    _check_free(plan, output, outputs, json_files)
    if place != "keep":
        _place_images(plan, outputs, place)
    for item in tqdm(outputs, desc="writing", unit="file", disable=None, leave=False):
        write_json(item.path, _selected(plan.source.data, item.chosen))
    write_json(output / MANIFEST, _manifest(plan, outputs, settings, output), indent=1)
    return _describe(plan, outputs, output)


def _check_earlier(output: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the manifest of an earlier run with these settings; empty where there was none."""
    if not os.path.lexists(output / MANIFEST):
        return {}
    manifest = read_json(output / MANIFEST, meant="a manifest of splits")
    earlier = manifest.get("settings")
    if earlier == settings:
        return manifest
    earlier = earlier if isinstance(earlier, dict) else {}
    changed = [key for key in settings if earlier.get(key) != settings[key]]
    raise UserError(
        f"{output} holds splits made with other settings ({', '.join(changed)}); choose another "
        f"--output, or delete {output / MANIFEST} and the annotation files beside it."
    )


def _check_unmoved(plan: Plan, output: Path, earlier: dict[str, Any]) -> None:
    """Refuse to move an image from one split to another, as where the input has changed.

    A model that was trained on the earlier splits would be tested on what it has seen.
    """
    before, now = earlier.get("images"), _places(plan)
    before = before if isinstance(before, dict) else {}
    moved = [
        name for name, place in now.items() if _part(before.get(name)) not in (None, _part(place))
    ]
    if moved:
        raise UserError(
            f"{output} holds splits of an earlier state of the input, in which {len(moved)} images "
            f"lie elsewhere ({listed(moved)}); choose another --output, or delete "
            f"{output / MANIFEST} and the annotation files beside it."
        )


def _part(place: Any) -> Any:
    return place.get("fold", place.get("split")) if isinstance(place, dict) else None


def _check_free(
    plan: Plan, output: Path, outputs: Sequence[Output], json_files: Sequence[str]
) -> None:
    inputs = {os.path.realpath(path) for path in json_files}
    known = os.path.lexists(output / MANIFEST)
    for item in outputs:
        if os.path.realpath(item.path) in inputs:
            raise UserError(
                f"{item.path} is an input and would be overwritten; choose another " "--output."
            )
        # A run that was stopped leaves files without a manifest, which are as they would be now.
        if os.path.lexists(item.path) and not known and not _is_written(plan, item):
            raise UserError(
                f"{item.path} is there already, without a {MANIFEST}; choose another --output, or "
                "delete it."
            )


def _is_written(plan: Plan, item: Output) -> bool:
    return item.path.is_file() and read_json(item.path) == _selected(plan.source.data, item.chosen)


def _outputs(plan: Plan, output: Path, place: str) -> list[Output]:
    kept = Path(plan.source.image_root)
    found = []
    for part, name in enumerate(plan.parts):
        inside = plan.assignment == part
        if not plan.are_folds:
            path = output / "annotations" / f"instances_{name}.json"
            found.append(Output(name, path, kept if place == "keep" else output / name, inside))
            continue
        root = kept if place == "keep" else output / "images"
        for role, chosen in (("train", ~inside), ("val", inside)):
            path = output / name / "annotations" / f"instances_{role}.json"
            found.append(Output(f"{name}/{role}", path, root, chosen))
    return found


def _place_images(plan: Plan, outputs: Sequence[Output], place: str) -> None:
    names = plan.source.file_names
    # Folds share one folder: there every image comes several times, and is placed once.
    wanted = {
        item.image_root / names[index]: Path(plan.source.image_root) / names[index]
        for item in outputs
        for index in np.flatnonzero(item.chosen)
    }
    for target, source in tqdm(wanted.items(), desc=f"{place} images", unit="image", disable=None):
        place_image(source, target, place)


def _selected(data: dict[str, Any], chosen: np.ndarray) -> dict[str, Any]:
    images = [image for image, inside in zip(data["images"], chosen, strict=True) if inside]
    ids = {image["id"] for image in images}
    annotations = [entry for entry in data["annotations"] if entry["image_id"] in ids]
    return {**data, "images": images, "annotations": annotations}


def _manifest(
    plan: Plan, outputs: Sequence[Output], settings: dict[str, Any], output: Path
) -> dict[str, Any]:
    source = plan.source
    return {
        "settings": settings,
        "inputs": source.inputs,
        "seed": settings["seed"],
        "image_root": source.image_root,
        "classes": source.classes,
        "groups": len(set(plan.groups)),
        "deviation": round(plan.deviation, 6),
        "notes": plan.notes,
        "splits": {
            item.name: {
                "annotations": os.path.relpath(item.path, output),
                **_figures(plan, item.chosen),
            }
            for item in outputs
        },
        "images": _places(plan),
    }


def _places(plan: Plan) -> dict[str, dict[str, str]]:
    """The group and the split or fold of each image, by its name."""
    rows = zip(plan.source.file_names, plan.groups, plan.assignment.tolist(), strict=True)
    key = "fold" if plan.are_folds else "split"
    return {name: {"group": group, key: plan.parts[part]} for name, group, part in rows}


def _figures(plan: Plan, chosen: np.ndarray) -> dict[str, Any]:
    source = plan.source
    particles = source.counts[chosen].sum(axis=0).tolist()
    return {
        "images": int(chosen.sum()),
        "groups": len({plan.groups[index] for index in np.flatnonzero(chosen)}),
        "blanks": int(source.blank[chosen].sum()),
        "particles": dict(zip(source.classes, particles, strict=True)),
    }


def _describe(plan: Plan, outputs: Sequence[Output], output: Path) -> str:
    rows = []
    for item in outputs:
        figures = _figures(plan, item.chosen)
        counts = (figures[key] for key in ("images", "groups", "blanks"))
        rows.append([item.name, *counts, *figures["particles"].values()])
    headers = ["split", "images", "groups", "blanks", *plan.source.classes]
    lines = [
        *(f"warning: {note}" for note in plan.notes),
        tabulate(rows, headers, tablefmt="pipe"),
        "",
        f"Largest difference from the shares asked for: {100 * plan.deviation:.1f} points of 100.",
        f"The group and place of every image: {output / MANIFEST}",
        "",
    ]
    if not plan.are_folds:
        keys = {"train": "DATASETS.TRAIN", "val": "DATASETS.TEST", "test": "DATASETS.TEST (test)"}
        return "\n".join([*lines, *(f"{keys[i.name]} {_quoted(i)}" for i in outputs)])
    for number, (train, val) in enumerate(zip(outputs[::2], outputs[1::2], strict=True), 1):
        lines.append(
            f"microplastics train --config-file {_CONFIG} DATASETS.TRAIN {_quoted(train)} "
            f"DATASETS.TEST {_quoted(val)} MODEL.ROI_HEADS.NUM_CLASSES "
            f"{len(plan.source.classes)} OUTPUT_DIR output/fold{number}"
        )
    return "\n".join(lines)


def _quoted(item: Output) -> str:
    return shlex.quote(f'("{item.entry}",)')
