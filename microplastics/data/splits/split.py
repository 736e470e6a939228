"""Splits and folds by whole groups."""

import hashlib
import json
import os
import shlex
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from tabulate import tabulate
from tqdm import tqdm

from microplastics.data.coco import check_instances, pair_image_roots
from microplastics.data.formats.layout import place_image
from microplastics.data.splits.groups import (
    NameIndex,
    compile_pattern,
    group_of,
    groups_by_similarity,
    listed,
    roboflow_original,
    table_from_csv,
)
from microplastics.utils.errors import UserError
from microplastics.utils.io import read_json, read_text, remove_leftovers, write_json

DEFAULT_SHARES = (0.7, 0.15, 0.15)
SPLITS = ("train", "val", "test")
MANIFEST = "splits.json"

_CONFIG = "r50"
_SWAP_SAMPLE = 256  # groups whose swaps are tried together
_IDLE_ROUNDS = 4  # further samples without gain before the search ends
_MAX_ROUNDS = 2000
_STARTS = 16
_TOLERANCE = 1e-12


@dataclass(frozen=True)
class SplitOptions:
    """How to form groups and divide them; by ``DEFAULT_SHARES`` if no way is chosen."""

    shares: tuple[float, ...] | None = None  # fractions of train and val, or train, val and test
    folds: int | None = None  # number of folds
    fold_lists: tuple[str, ...] = ()  # a CSV with image and fold, or a text file of names per fold
    group_regex: str | None = None  # extracts the group from a file name (groups.group_of)
    groups_csv: str | None = None  # table with the columns image and group
    by_similarity: bool = False  # also keep copies of one photograph together
    join_roboflow_copies: bool = True  # also keep Roboflow's copies of one original together
    seed: int = 0  # decides between equally good assignments


@dataclass(frozen=True)
class Source:
    """One data set of N images and C classes, merged from its annotation files."""

    data: dict[str, Any]  # COCO; of several files with new ids and file names
    image_root: str  # folder that every file_name is relative to
    names: list[str]  # file_name of each image in its own JSON
    classes: list[str]
    counts: np.ndarray  # int64 (N, C), particles of each class in each image, without crowds
    blank: np.ndarray  # bool (N,), images without any annotation
    inputs: list[dict[str, str]]  # path, images and sha256 of each annotation file

    @property
    def file_names(self) -> list[str]:
        """``file_name`` of each image below ``image_root``."""
        return [image["file_name"] for image in self.data["images"]]


@dataclass
class Plan:
    """Assignment of every image to a split or fold."""

    source: Source
    parts: list[str]  # names of the splits or folds
    are_folds: bool  # each part is the validation set once
    assignment: np.ndarray  # int64 (N,), the part of each image
    groups: list[str]  # the group of each image
    deviation: float  # over classes, blanks and images
    notes: list[str]  # warnings for the user


@dataclass(frozen=True)
class Output:
    """One annotation file to write."""

    name: str  # train, or fold1/train
    path: Path
    image_root: Path  # folder that its file names are relative to
    chosen: np.ndarray  # bool (N,), its images

    @property
    def entry(self) -> str:
        """``("JSON:IMAGES",)`` for ``DATASETS.TRAIN`` and ``DATASETS.TEST``, quoted for a shell."""
        return shlex.quote(f'("{self.path}:{self.image_root}",)')


def split_dataset(
    json_files: Sequence[str],
    image_roots: Sequence[str],
    output: str | os.PathLike,
    options: SplitOptions,
    place: str = "keep",
) -> str:
    """Split a data set and write the result; everything is checked before anything is written.

    Args:
        json_files: COCO instance JSONs.
        image_roots: the image folder of all of them, or one for each.
        output: folder for the annotation files and ``splits.json``.
        options: how to split.
        place: ``"keep"`` leaves the images where they are; ``"copy"`` and ``"link"`` put them
            into ``output``: below ``train``, ``val``, ``test``, or below ``images`` for folds.

    Returns:
        a summary with a table.

    Raises:
        UserError: the input cannot be used, or ``output`` holds other splits.
    """
    output = Path(output)
    given = {"annotations": list(json_files), "images": list(image_roots), "place": place}
    settings = json.loads(json.dumps(given | asdict(options)))  # as the manifest will hold them
    earlier = _earlier_places(output, settings)
    plan = plan_splits(read_source(json_files, image_roots), options)
    outputs = _outputs(plan, output, place)
    _check_free(plan, output, outputs, earlier)
    remove_leftovers(output, *(item.path.parent for item in outputs))
    if place != "keep":
        remove_leftovers(*(item.image_root for item in outputs), deep=True)
        _place_images(plan, outputs, place)
    manifest = _manifest(plan, outputs, settings, output)
    # First: with it the same command completes a run that was stopped.
    write_json(output / MANIFEST, manifest, indent=1)
    for item in tqdm(outputs, desc="writing", unit="file", disable=None, leave=False):
        write_json(item.path, _selected(plan.source.data, item.chosen))
    return _describe(plan, outputs, manifest, output)


def read_source(json_files: Sequence[str], image_roots: Sequence[str]) -> Source:
    """Read, check and merge annotation files.

    Args:
        json_files: COCO instance JSONs.
        image_roots: the image folder of all, or one for each. If they differ, ``file_name``
            becomes relative to their common folder.

    Raises:
        UserError: a file cannot be used, categories differ, or an image is listed twice.
    """
    pairs = pair_image_roots(json_files, image_roots)
    roots = [root for _, root in pairs]
    common = roots[0] if len(set(roots)) == 1 else os.path.commonpath(map(os.path.abspath, roots))
    first, classes = None, {}
    images, annotations, names, inputs = [], [], [], []
    for json_file, root in pairs:
        checked, data = check_instances(json_file, root), read_json(json_file)
        of_file = {category["id"]: category["name"] for category in checked.categories}
        if first is None:
            first, classes = data, of_file
        elif of_file != classes:
            raise UserError(
                f"{json_file} has the categories {of_file} and {pairs[0][0]} has {classes}; "
                "give all files the same ids and names.",
                code="classes_mismatch",
            )
        digest = hashlib.sha256(Path(json_file).read_bytes()).hexdigest()
        inputs.append({"annotations": json_file, "images": root, "sha256": digest})
        names += [image["file_name"] for image in data["images"]]
        if len(pairs) > 1:
            prefix = os.path.relpath(root, common) if root != common else "."
            _renumber(data, len(images), len(annotations), prefix)
        images += data["images"]
        annotations += data["annotations"]
    listing = Counter(image["file_name"] for image in images) if len(pairs) > 1 else {}
    twice = [name for name, count in listing.items() if count > 1]
    if twice:
        raise UserError(
            f"The annotation files list {len(twice)} images more than once ({listed(twice)}); "
            "list each image in one file only.",
            code="option_conflict",
        )
    counts, blank = _count(images, annotations, list(classes))
    merged = {**first, "images": images, "annotations": annotations}
    return Source(merged, common, names, list(classes.values()), counts, blank, inputs)


def plan_splits(source: Source, options: SplitOptions) -> Plan:
    """Form the groups and divide them.

    Raises:
        UserError: ``option_invalid``, ``split_impossible``, or a table of groups or folds does
            not fit the images.
    """
    notes: list[str] = []
    groups = _groups(source, options, notes)
    kinds = np.column_stack([source.counts, source.blank, np.ones(len(groups), np.int64)])
    are_folds = options.folds is not None or bool(options.fold_lists)
    if options.fold_lists:
        parts, assignment = _external_folds(source, options.fold_lists)
        _note_divided_groups(groups, assignment, notes)
        fractions = np.full(len(parts), 1 / len(parts))
    else:
        if are_folds:
            fractions = np.full(options.folds, 1 / options.folds)
            fractions /= fractions.sum()
            parts = [f"fold{k + 1}" for k in range(options.folds)]
        else:
            fractions = check_shares(options.shares or DEFAULT_SHARES)
            parts = list(SPLITS[: len(fractions)])
        assignment = split(groups, kinds, fractions, options.seed)
    _note_missing_classes(source, parts, assignment, notes)
    difference = deviation(kinds, assignment, fractions)
    return Plan(source, parts, are_folds, assignment, groups, difference, notes)


def split(
    groups: Sequence[str], kinds: np.ndarray, fractions: Sequence[float], seed: int
) -> np.ndarray:
    """Assign every group to one split so that each split has its fraction of every class.

    Minimises the sum over splits s and columns c of (part of c in s - fraction of s)^2.
    Exhaustive search is infeasible; the result is a good local optimum.

    Args:
        groups: name of the group of each of N images; their order has no influence.
        kinds: (N, C), counts of each kind in an image; a kind is a class, the images without
            particles, or all images. Finite and not negative.
        fractions: of S splits, each above 0, with sum 1.
        seed: decides between equally good assignments.

    Returns:
        int64 (N,): the split of each image, 0 to S - 1; every split gets at least one group.

    Raises:
        UserError: ``split_impossible``, there are fewer groups than splits.
    """
    names, rows = np.unique(groups, return_inverse=True)
    rows = rows.reshape(-1)  # numpy 2.0 returns another shape
    if len(names) < len(fractions):
        raise UserError(
            f"The {len(names)} groups are fewer than the {len(fractions)} splits, and a group is "
            "never divided; ask for fewer splits or form smaller groups.",
            code="split_impossible",
        )
    counts = np.zeros((len(names), kinds.shape[1]))
    np.add.at(counts, rows, kinds)
    parts, rng, best = _parts(counts), np.random.default_rng(seed), None
    for start in range(_STARTS if len(names) <= _SWAP_SAMPLE else 1):
        search = _Search(parts, np.asarray(fractions), rng)
        search.fill(shuffle=start > 0)
        search.improve()
        if best is None or search.cost() < best.cost() - _TOLERANCE:
            best = search
    return best.assignment[rows]


def check_shares(shares: Sequence[float]) -> np.ndarray:
    """Return the fractions of two or three splits as float64 with sum 1.

    Raises:
        UserError: a fraction is not above 0, or the sum differs from 1 by more than 0.001.
    """
    array = np.asarray(shares, np.float64)
    is_sum = abs(array.sum() - 1) <= 1e-3
    if not 2 <= len(array) <= len(SPLITS) or not (array > 0).all() or not is_sum:
        words = ", ".join(f"{share:g}" for share in shares)
        raise UserError(
            f"--shares is {words}; expected two (train, val) or three numbers (train, val, test) "
            "above 0 that add up to 1, such as 0.7,0.15,0.15.",
            code="option_invalid",
        )
    return array / array.sum()


def deviation(kinds: np.ndarray, assignment: np.ndarray, fractions: Sequence[float]) -> float:
    """Return the largest difference, 0 to 1, between a split's part of a kind and its fraction.

    The arguments are those of :func:`split`; kinds without members are left out.
    """
    parts = _parts(np.asarray(kinds, np.float64))
    loads = np.zeros((len(fractions), parts.shape[1]))
    np.add.at(loads, assignment, parts)
    return float(np.abs(loads - np.asarray(fractions)[:, None]).max(initial=0.0))


def _parts(counts: np.ndarray) -> np.ndarray:
    """Fraction of each kind in each group, (G, C), without the kinds that have no members."""
    totals = counts.sum(axis=0)
    return counts[:, totals > 0] / totals[totals > 0]


class _Search:
    """An assignment of groups to splits and its distance from the wanted fractions."""

    def __init__(self, parts: np.ndarray, fractions: np.ndarray, rng: np.random.Generator):
        self._parts, self._rng = parts, rng
        self._squares = (parts * parts).sum(axis=1)
        self._excess = np.repeat(-fractions[:, None], parts.shape[1], axis=1)  # (S, C)
        self._members = np.zeros(len(fractions), np.int64)
        self.assignment = np.full(len(parts), -1, np.int64)

    def cost(self) -> float:
        """Sum of the squared differences from the fractions."""
        return float((self._excess**2).sum())

    def fill(self, shuffle: bool) -> None:
        """Assign every group, the largest (if shuffled, roughly the largest) first.

        The seed decides between equals.
        """
        size = self._parts.sum(axis=1)
        if shuffle:
            size = size * self._rng.uniform(0.3, 1.0, len(size))
        shuffled = self._rng.permutation(len(size))
        order = shuffled[np.argsort(-size[shuffled], kind="stable")]
        for place, group in enumerate(order):
            # Adding x to the excess e changes |e|^2 by 2 e.x + |x|^2; only 2 e.x differs.
            gains = self._excess @ self._parts[group]
            if len(order) - place <= (self._members == 0).sum():
                gains = np.where(self._members == 0, gains, np.inf)
            best = np.flatnonzero(gains <= gains.min() + _TOLERANCE)
            # Equals, such as groups without a count, go to the split with the fewest groups.
            self._put(int(group), min(best.tolist(), key=lambda s: (self._members[s], s)))

    def improve(self) -> None:
        """Move and swap groups while that lowers the cost."""
        idle, patience = 0, 1 if len(self._parts) <= _SWAP_SAMPLE else _IDLE_ROUNDS
        for _ in range(_MAX_ROUNDS):
            idle = 0 if self._move() or self._swap() else idle + 1
            if idle >= patience:
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
        self._put(int(sample[one]), int(at[other]))
        self._put(int(sample[other]), int(at[one]))
        return True


def _renumber(data: dict[str, Any], images: int, annotations: int, prefix: str) -> None:
    """Give the entries ids after those already used, and names below the common folder."""
    ids = {image["id"]: images + n for n, image in enumerate(data["images"], 1)}
    for image in data["images"]:
        image["id"] = ids[image["id"]]
        image["file_name"] = os.path.normpath(os.path.join(prefix, image["file_name"]))
    for n, annotation in enumerate(data["annotations"], annotations + 1):
        annotation.update(id=n, image_id=ids[annotation["image_id"]])


def _count(
    images: Sequence[dict], annotations: Sequence[dict], category_ids: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Counts (N, C) of the particles of each class in each image, and the blank images (N,)."""
    rows = {image["id"]: index for index, image in enumerate(images)}
    columns = {id_: index for index, id_ in enumerate(category_ids)}
    counts, blank = np.zeros((len(rows), len(columns)), np.int64), np.ones(len(rows), bool)
    for annotation in annotations:
        row = rows[annotation["image_id"]]
        blank[row] = False
        if not annotation.get("iscrowd"):
            counts[row, columns[annotation["category_id"]]] += 1
    return counts, blank


def _groups(source: Source, options: SplitOptions, notes: list[str]) -> list[str]:
    """Name the group of each image."""
    file_names, keys = source.file_names, _given_groups(source, options, notes)
    # Entries that name one file, even as ./name, are one photograph.
    labels = _connected(keys, list(map(os.path.normpath, file_names)))
    further: list[tuple[str, Sequence[Hashable]]] = []
    if options.join_roboflow_copies:
        originals = [roboflow_original(name) or index for index, name in enumerate(source.names)]
        further.append(("Roboflow's copies of one image", originals))
    if options.by_similarity:
        paths = [os.path.join(source.image_root, name) for name in file_names]
        further.append(("the same photograph by its pixels", groups_by_similarity(paths)))
    for words, way in further:
        joined = _connected(labels.tolist(), way)
        if joined.max() < labels.max():
            count = labels.max() - joined.max()
            notes.append(f"{count} groups were joined to others: {words}")
        labels = joined
    names: dict[int, str] = {}
    for label, key in zip(labels.tolist(), keys, strict=True):
        names[label] = min(names.get(label, key), key)
    return [names[label] for label in labels.tolist()]


def _given_groups(source: Source, options: SplitOptions, notes: list[str]) -> list[str]:
    """Name the group of each image by ``group_regex`` or ``groups_csv``, else by its file."""
    if options.group_regex is not None:
        pattern = compile_pattern(options.group_regex)
        return [group_of(name, pattern) for name in source.names]
    if options.groups_csv is not None:
        table = table_from_csv(options.groups_csv, "image", "group")
        index = NameIndex(source.file_names)
        groups = index.assign(table.items(), options.groups_csv, "group")
        return [groups[name] for name in source.file_names]
    if not options.by_similarity and not options.fold_lists:
        notes.append(
            "the images are split one by one, without groups: pieces of one filter can be in "
            "training and test, which makes the score too good; give --group-regex or --groups"
        )
    return source.file_names


def _connected(*ways: Sequence[Hashable]) -> np.ndarray:
    """Number, from 0, the groups of N images connected by equal keys in any of the ways: (N,)."""
    rows, columns = [], []
    for keys in ways:
        first: dict[Hashable, int] = {}
        rows += range(len(keys))
        columns += [first.setdefault(key, index) for index, key in enumerate(keys)]
    count = len(ways[0])
    graph = coo_matrix((np.ones(len(rows), np.int8), (rows, columns)), (count, count))
    return connected_components(graph, directed=False)[1]


def _external_folds(source: Source, paths: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Read fold lists: names of the folds, and the fold of each image."""
    if len(paths) == 1:
        rows = list(table_from_csv(paths[0], "image", "fold").items())
    else:
        lists = [filter(None, map(str.strip, read_text(path).splitlines())) for path in paths]
        rows = [(name, str(number)) for number, names in enumerate(lists, 1) for name in names]
    where = " + ".join(paths)
    folds_of = NameIndex(source.file_names).assign(rows, where, "fold")
    labels = set(folds_of.values())
    if len(labels) < max(2, len(paths)):
        raise UserError(
            f"{where} gives images to {len(labels)} folds; expected 2 or more folds and images in "
            "each list.",
            code="table_invalid",
        )
    numeric = all(label.isdecimal() and len(label) < 10 for label in labels)
    order = sorted(labels, key=int if numeric else None)
    assignment = [order.index(folds_of[name]) for name in source.file_names]
    return [f"fold{k + 1}" for k in range(len(order))], np.array(assignment, np.int64)


def _note_divided_groups(groups: Sequence[str], assignment: np.ndarray, notes: list[str]) -> None:
    places = dict.fromkeys(zip(groups, assignment.tolist(), strict=True))
    parts = Counter(group for group, _ in places)
    divided = [group for group, count in parts.items() if count > 1]
    if divided:
        notes.append(
            f"the fold lists have {len(divided)} groups in several folds: {listed(divided)}"
        )


def _note_missing_classes(
    source: Source, parts: Sequence[str], assignment: np.ndarray, notes: list[str]
) -> None:
    present = source.counts.any(axis=0)
    for part, name in enumerate(parts):
        missing = present & ~source.counts[assignment == part].any(axis=0)
        if missing.any():
            words = ", ".join(np.array(source.classes, object)[missing])
            notes.append(f"{name} has no {words}: they are in too few groups")


def _earlier_places(output: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """Places of the images in an earlier run with the same settings, None if there was none."""
    if not os.path.lexists(output / MANIFEST):
        return None
    manifest = read_json(output / MANIFEST, meant="a manifest of splits")
    earlier, images = (
        value if isinstance(value, dict) else {}
        for value in (manifest.get("settings"), manifest.get("images"))
    )
    changed = [key for key, value in settings.items() if earlier.get(key) != value]
    if changed:
        raise _occupied(output, f"splits made with other settings ({', '.join(changed)})")
    return images


def _check_free(
    plan: Plan, output: Path, outputs: Sequence[Output], earlier: dict[str, Any] | None
) -> None:
    """Refuse to overwrite other files, or to move an image after the input has changed.

    A model trained on the earlier splits would be tested on images that it has seen.
    """
    existing = [item.path for item in outputs if os.path.lexists(item.path)]
    if earlier is None and existing:
        raise _occupied(output, f"{existing[0]} without a {MANIFEST}")
    moved = [
        name
        for name, place in _places(plan).items()
        if _part((earlier or {}).get(name)) not in (None, _part(place))
    ]
    if moved:
        what = f"splits of an earlier input with {len(moved)} images in other places"
        raise _occupied(output, f"{what} ({listed(moved)})")


def _occupied(output: Path, what: str) -> UserError:
    return UserError(
        f"{output} holds {what}; choose another --output, or delete the annotation files and "
        f"{MANIFEST} there.",
        code="output_exists",
    )


def _part(place: Any) -> Any:
    return place.get("fold", place.get("split")) if isinstance(place, dict) else None


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
    # Folds share one folder: each image occurs several times and is placed once.
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
    source, splits = plan.source, {}
    for item in outputs:
        particles = source.counts[item.chosen].sum(axis=0).tolist()
        splits[item.name] = {
            "annotations": os.path.relpath(item.path, output),
            "images": int(item.chosen.sum()),
            "groups": len({plan.groups[index] for index in np.flatnonzero(item.chosen)}),
            "blanks": int(source.blank[item.chosen].sum()),
            "particles": dict(zip(source.classes, particles, strict=True)),
        }
    return {
        "settings": settings,
        "inputs": source.inputs,
        "seed": settings["seed"],
        "image_root": source.image_root,
        "classes": source.classes,
        "groups": len(set(plan.groups)),
        "deviation": round(plan.deviation, 6),
        "notes": plan.notes,
        "splits": splits,
        "images": _places(plan),
    }


def _places(plan: Plan) -> dict[str, dict[str, str]]:
    """The group and the split or fold of each image, by its name."""
    rows = zip(plan.source.file_names, plan.groups, plan.assignment.tolist(), strict=True)
    key = "fold" if plan.are_folds else "split"
    return {name: {"group": group, key: plan.parts[part]} for name, group, part in rows}


def _describe(plan: Plan, outputs: Sequence[Output], manifest: dict[str, Any], output: Path) -> str:
    rows = []
    for name, figures in manifest["splits"].items():
        counts = (figures[key] for key in ("images", "groups", "blanks"))
        rows.append([name, *counts, *figures["particles"].values()])
    headers = ["split", "images", "groups", "blanks", *plan.source.classes]
    lines = [
        *(f"warning: {note}" for note in plan.notes),
        tabulate(rows, headers, tablefmt="pipe"),
        "",
        f"Largest difference from the fractions asked for: {100 * plan.deviation:.1f} percentage "
        "points.",
        f"Group and place of every image: {output / MANIFEST}",
        "",
    ]
    if not plan.are_folds:
        keys = {"train": "DATASETS.TRAIN", "val": "DATASETS.TEST", "test": "DATASETS.TEST (test)"}
        return "\n".join([*lines, *(f"{keys[item.name]} {item.entry}" for item in outputs)])
    for number, (train, val) in enumerate(zip(outputs[::2], outputs[1::2], strict=True), 1):
        lines.append(
            f"microplastics train --config-file {_CONFIG} DATASETS.TRAIN {train.entry} "
            f"DATASETS.TEST {val.entry} MODEL.ROI_HEADS.NUM_CLASSES "
            f"{len(plan.source.classes)} OUTPUT_DIR output/fold{number}"
        )
    return "\n".join(lines)
