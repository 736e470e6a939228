"""YOLO labels: one text file an image, one line an instance.

``class x1 y1 x2 y2 …`` is a polygon, ``class x y width height`` a box, in fractions of the image's
width and height.
"""

import contextlib
import functools
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from microplastics.data.coco import is_printable, show
from microplastics.data.formats import layout
from microplastics.data.formats.base import (
    ImageRecord,
    Instance,
    Notes,
    ReadOptions,
    Source,
    noted_once,
)
from microplastics.data.formats.layout import class_name, find_file, list_files, skip_or_raise
from microplastics.data.formats.shapes import ShapeError
from microplastics.data.segmentation import join_parts, segmentation_to_polygons
from microplastics.utils.errors import UserError
from microplastics.utils.io import atomic_write

_YAMLS = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_NAME_FILES = ("classes.txt", "obj.names", "_darknet.labels", "predefined_classes.txt")
_DARKNET = {"obj_train_data": "train", "obj_valid_data": "val", "obj_test_data": "test"}
_MAX_YAML = 1 << 18  # bytes
_MAX_DEPTH = 20
_MAX_CLASSES = 10_000
_MAX_BROKEN = 1000  # lines of a label file
_DECIMALS = 4  # of a pixel: removes what dividing and multiplying by the side adds
_OUTSIDE = 1.0  # widths or heights that a point may lie outside of the image
_SNIFFED_IMAGES = 20
_OTHER_TEXTS = ("readme", "classes", "train", "val", "test", "obj", "predefined_classes", "notes")


@dataclass
class _Images:
    """The images of one split.

    Attributes:
        root: folder that the names are relative to.
        names: of the images, with ``/``; None for all images in the folder.
        labels: folder of the labels; None if they are beside ``images`` or the images.
    """

    root: Path
    names: list[str] | None = None
    labels: Path | None = None

    def images(self) -> Iterable[str]:
        """Return the names of the images in a fixed order."""
        return list_files(self.root) if self.names is None else self.names

    def label(self, name: str) -> Path:
        """Return the place of an image's label file, which may not exist."""
        stem = os.path.splitext(name)[0] + ".txt"
        if self.labels is not None:
            places = [self.labels / stem, self.labels / "labels" / stem]
            places.append(self.labels / os.path.basename(stem))
        else:
            beside = self.root / stem
            places = [_swapped(beside), beside]
        return next((place for place in places if os.path.isfile(place)), places[0])


def _swapped(path: Path) -> Path:
    """Replace the last folder named images by labels, as Ultralytics does."""
    parts = list(path.parts)
    for index in range(len(parts) - 2, -1, -1):
        if parts[index] == "images":
            parts[index] = "labels"
            break
    return Path(*parts)


def detect(path: Path) -> bool:
    """Return whether a path is a data.yaml or has one, or has images with label files."""
    try:
        yaml_file = _find_yaml(path)
        if yaml_file is not None:
            return not {"names", "nc"}.isdisjoint(_read_yaml(yaml_file))
        return path.is_dir() and any(map(_is_labelled, _plain_folders(path).values()))
    except (UserError, OSError, ValueError):
        return False


def read(path: Path, options: ReadOptions, notes: Notes) -> dict[str, Source]:
    """Open a YOLO data set (see ``base.Reader.read``).

    ``path`` is a data.yaml, or a folder: with a data.yaml, with ``images`` and ``labels``, or with
    labels beside the images.
    """
    yaml_file = _find_yaml(path)
    if yaml_file is None and path.is_file():
        raise UserError(
            f"{path} is not a data.yaml; give it or the folder of the data set as --input.",
            code="format_unknown",
        )
    data = {} if yaml_file is None else _read_yaml(yaml_file)
    folders = _find_folders(path, yaml_file, data, options, notes)
    names = _class_names(path if yaml_file is None else yaml_file, data)
    if names is None:
        names = _numbered_names(folders.values())
        for name in names.values():
            notes.add("class_unnamed", str(path), name)
    classes = list(dict.fromkeys(names.values()))
    for _ in range(len(names) - len(classes)):
        notes.add("category_merged", str(path))
    sources = {}
    for split, folder in folders.items():
        images = list(folder.images())
        records = functools.partial(_records, folder, images, names, options)
        sources[split] = noted_once(folder.root, classes, records, notes, len(images))
    return sources


def _records(
    folder: _Images, images: list[str], names: dict[int, str], options: ReadOptions, notes: Notes
) -> Iterator[ImageRecord]:
    used, places = set(), {}
    for image in images:
        name = layout.safe_name(image, f"An image of {folder.root}")
        label, path = folder.label(name), folder.root / name
        used.add(label)
        places[label.parent] = None
        try:
            size = layout.checked_size(path, options)
        except UserError as error:
            skip_or_raise(error, str(path), options, notes)
            continue
        record = ImageRecord(name, *size)
        if os.path.isfile(label):
            try:
                record.instances = list(_instances(label, size, names, notes))
            except UserError as error:
                skip_or_raise(error, str(label), options, notes, "label_broken")
        else:
            notes.add("image_unlabelled", name)
        yield record
    for label in _other_labels(places, used):
        notes.add("label_without_image", str(label))


def _instances(
    label: Path, size: tuple[int, int], names: dict[int, str], notes: Notes
) -> Iterator[Instance]:
    broken = 0
    for number, line in enumerate(layout.read_text(label).split("\n"), 1):
        tokens = line.split()
        if not tokens:
            continue
        where = f"{label.parent.name}/{label.name}, line {number}"
        try:
            polygon = _polygon(tokens[1:], size)
            index = _class_index(tokens[0])
        except ShapeError as error:
            broken += 1
            if broken > _MAX_BROKEN:
                raise UserError(
                    f"{label} has over {_MAX_BROKEN} lines that are not YOLO labels; expected "
                    '"class x1 y1 x2 y2 …".',
                    code="annotations_invalid",
                ) from error
            notes.add(error.code, where, error.detail)
            continue
        if len(tokens) == 5:
            notes.add("box_only", where)
        if index in names:
            yield Instance(names[index], [polygon], where)
        else:
            notes.add("shape_unlabelled", where, f"class {index} has no name")


def _class_index(token: str) -> int:
    head = token.removesuffix(".0")
    if not (head.isascii() and head.isdecimal() and len(head) < 8):
        raise ShapeError("shape_broken", f"class {show(token)}")
    return int(head)


def _polygon(tokens: list[str], size: tuple[int, int]) -> list[float]:
    """Return the numbers of a line as a polygon in px."""
    if len(tokens) != 4 and (len(tokens) < 6 or len(tokens) % 2):
        raise ShapeError("shape_broken", f"{len(tokens)} coordinates")
    try:
        values = np.array(tokens, dtype=np.float64)
    except (ValueError, OverflowError):
        raise ShapeError("shape_broken", "a coordinate that is not a number") from None
    # The comparison is False for NaN.
    if not (values.min() >= -_OUTSIDE and values.max() <= 1 + _OUTSIDE):
        raise ShapeError("shape_broken", "coordinates that are not from 0 to 1")
    if len(tokens) == 4:
        x, y, width, height = values.tolist()
        if not (width > 0 and height > 0):
            raise ShapeError("shape_without_area", "a box without an area")
        left, right, top, bottom = x - width / 2, x + width / 2, y - height / 2, y + height / 2
        values = np.array([left, top, right, top, right, bottom, left, bottom])
    return (values.reshape(-1, 2) * size).round(_DECIMALS).reshape(-1).tolist()


def _numbered_names(folders: Iterable[_Images]) -> dict[int, str]:
    """Name the classes that occur ``class_0``, ``class_1``, …"""
    found = set()
    for folder in folders:
        for image in folder.images():
            label = folder.label(layout.safe_name(image, f"An image of {folder.root}"))
            if not os.path.isfile(label):
                continue
            for line in layout.read_text(label).split("\n"):
                with contextlib.suppress(ShapeError):  # noted when the records are read
                    found.update(map(_class_index, line.split(None, 1)[:1]))
            if len(found) > _MAX_CLASSES:
                raise UserError(
                    f"{label} has over {_MAX_CLASSES} classes; expected a YOLO label.",
                    code="annotations_invalid",
                )
    return {index: f"class_{index}" for index in sorted(found)}


def _other_labels(places: Iterable[Path], used: set[Path]) -> Iterator[Path]:
    """Yield the label files in these folders that belong to no image."""
    for place in places:
        for file in sorted(place.glob("*.txt")) if place.is_dir() else ():
            other = file.name.lower().startswith(_OTHER_TEXTS) and place.name != "labels"
            if file not in used and not other and file.name not in _NAME_FILES:
                yield file


def _is_labelled(folder: _Images) -> bool:
    """Return whether one of the first images has a label file of numbers."""
    for _, image in zip(range(_SNIFFED_IMAGES), list_files(folder.root), strict=False):
        label = folder.label(image)
        if os.path.isfile(label):
            with open(label, "rb") as file:
                tokens = file.readline(1 << 12).replace(b"\0", b"").split()
            numbers = b"".join(tokens).removeprefix(b"\xef\xbb\xbf").strip(b"\xff\xfe")
            if len(tokens) > 4 and not numbers.strip(b"0123456789.-+e"):
                return True
    # The first images may be blanks: class names and a folder of labels are enough.
    labels = folder.label("name").parent
    near = (root / name for root in (folder.root, folder.root.parent) for name in _NAME_FILES)
    return labels != folder.root and labels.is_dir() and any(map(os.path.isfile, near))


def _find_yaml(path: Path) -> Path | None:
    """Return the data.yaml of a folder, the file itself if it is one, or None."""
    if path.is_file():
        return path if path.suffix.lower() in (".yaml", ".yml") else None
    for name in _YAMLS:
        if (path / name).is_file():
            return path / name
    others = [file for file in sorted(path.glob("*.y*ml")) if file.suffix in (".yaml", ".yml")]
    others = [file for file in others if _has_names(file)]
    return others[0] if len(others) == 1 else None


def _has_names(file: Path) -> bool:
    try:
        return re.search(r"^names\s*:", layout.read_text(file), re.MULTILINE) is not None
    except UserError:
        return False


def _read_yaml(path: Path) -> dict[str, Any]:
    """Read a small YAML mapping with every scalar as text.

    Aliases are refused: a few of them can expand to gigabytes.

    Raises:
        UserError: it is not readable, too large, nested too deep, or not such YAML.
    """

    def invalid(words: str) -> UserError:
        return UserError(f"{path} {words}.", code="annotations_invalid")

    content = layout.read_text(path)
    if len(content) > _MAX_YAML:
        raise invalid(f"is larger than {_MAX_YAML >> 10} KiB; expected a data.yaml")
    try:
        depth = 0
        for event in yaml.parse(content, Loader=yaml.BaseLoader):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or depth > _MAX_DEPTH:
                raise invalid("has aliases or is nested too deep; write it without them")
        data = yaml.load(content, Loader=yaml.BaseLoader)  # makes only text, lists and mappings
    except (yaml.YAMLError, RecursionError) as error:
        words = " ".join(str(error).split())[:200]
        raise invalid(f"is not YAML ({words}); correct it") from error
    if not isinstance(data, dict):
        raise invalid("is not a mapping; expected a data.yaml with names, train and val")
    return data


def _class_names(path: Path, data: dict[str, Any]) -> dict[int, str] | None:
    """Return class index -> name from data.yaml, or from classes.txt or obj.names in a folder."""
    names = data.get("names")
    if names is None:
        folder = path if path.is_dir() else path.parent
        places = (folder, folder / "labels", folder / "train")
        files = (place / name for place in places for name in _NAME_FILES)
        path = next((file for file in files if file.is_file()), None)
        if path is None:
            return None
        names = layout.read_text(path).rstrip().split("\n")
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not 0 < len(names) <= _MAX_CLASSES:
        raise UserError(
            f"{path} has the names {show(names)}; expected names: [Fiber, Fragment, …].",
            code="annotations_invalid",
        )
    indexed = {}
    for key, name in names.items():
        number = str(key)
        if not (number.isascii() and number.isdecimal() and len(number) < 10):
            raise UserError(
                f"{path} has a class {show(key)}: {show(name)}; number the classes from 0.",
                code="annotations_invalid",
            )
        if class_name(name) is None:
            raise UserError(
                f"{path} has the name {show(name)} for class {key}; expected printable text.",
                code="annotations_invalid",
            )
        indexed[int(number)] = class_name(name)
    return dict(sorted(indexed.items()))


def _find_folders(
    path: Path,
    yaml_file: Path | None,
    data: dict[str, Any],
    options: ReadOptions,
    notes: Notes,
) -> dict[str, _Images]:
    """Find the images of every split: in --images, by data.yaml, or by the names of folders."""
    base = path if path.is_dir() else path.parent
    given = layout.given_images(options)
    if given is not None:
        return {"all": _Images(given, labels=base)}
    if yaml_file is not None and any(data.get(key) for key in layout.SPLITS):
        return _yaml_folders(yaml_file, data, notes)
    folders = _plain_folders(base)
    if not any(next(iter(folder.images()), None) for folder in folders.values()):
        raise UserError(
            f"{path} has no images; give the folder that holds images and labels, or the folder "
            "of the images with --images.",
            code="image_missing",
        )
    return folders


def _yaml_folders(yaml_file: Path, data: dict[str, Any], notes: Notes) -> dict[str, _Images]:
    base = yaml_file.absolute().parent
    root = data.get("path") if isinstance(data.get("path"), str) else ""
    found: dict[str, _Images] = {}
    for key, split in layout.SPLITS.items():
        value = data.get(key)
        if value in (None, "", [], "null", "~") or split in found:
            continue
        entries = value if isinstance(value, list) else [value]
        if not all(map(is_printable, entries)):
            raise UserError(
                f"{yaml_file} has {key}: {show(value)}; expected the folder of its images.",
                code="annotations_invalid",
            )
        places = []
        for entry in entries:
            where = f"{yaml_file.name}, {key}"
            place, as_written = _near(base, root, entry)
            if place is None:
                notes.add("split_missing", where, show(entry))
                continue
            if not as_written:
                detail = f"{show(entry)}: {place.relative_to(base).as_posix()}"
                notes.add("folder_fixed", where, detail)
            places.append(place)
        if len(places) == 1 and places[0].is_dir():
            found[split] = _Images(places[0])
        elif places:
            found[split] = _Images(base, list(dict.fromkeys(_named_images(base, places))))
    if not found:
        raise UserError(
            f"None of the image folders of {yaml_file} is beside it; put it into the folder of "
            "the data set, or give the folder of the images with --images.",
            code="image_missing",
        )
    return layout.in_order(found)


def _near(base: Path, root: str, text: str) -> tuple[Path | None, bool]:
    """Find a folder or list of images in ``base``, by its path and then by its last parts.

    Returns:
        its place, or None, and whether that is the path in data.yaml.
    """
    written = [os.path.join(base, root, text), os.path.join(base, text)]
    parts = [part for part in re.split(r"[/\\]", text) if part not in ("", ".", "..")][-16:]
    # Not "images" only, which would be the same for every split.
    ends = [
        parts[start:] for start in range(len(parts)) if not start or parts[start:] != ["images"]
    ]
    for number, each in enumerate([*written, *(os.path.join(base, *end) for end in ends)]):
        place = Path(os.path.normpath(each))
        # isdir and isfile accept names that are too long, and leave pipes out.
        if place.is_relative_to(base) and (os.path.isdir(place) or os.path.isfile(place)):
            return place, number < len(written)
    return None, False


def _named_images(base: Path, places: list[Path]) -> Iterator[str]:
    """Yield the images in several folders and lists of images, relative to ``base``."""
    for place in places:
        if place.is_dir():
            for name in list_files(place):
                yield (place / name).relative_to(base).as_posix()
        else:
            for line in filter(None, map(str.strip, layout.read_text(place).split("\n"))):
                # A line that finds no file stays, so that the missing image is named.
                yield (find_file(line, base) or (line, True))[0]


def _plain_folders(base: Path) -> dict[str, _Images]:
    """Return the splits of a folder without data.yaml."""
    darknet = {split: base / name for name, split in _DARKNET.items() if (base / name).is_dir()}
    if darknet:
        splits = darknet if len(darknet) > 1 else {"all": next(iter(darknet.values()))}
        return {split: _Images(folder) for split, folder in splits.items()}
    images = base / "images" if (base / "images").is_dir() else base
    splits = layout.split_folders(images) if images.is_dir() else {}
    inner = {split: folder / "images" for split, folder in splits.items()}
    return {
        split: _Images(inner[split] if inner[split].is_dir() else folder)
        for split, folder in splits.items()
    } or {"all": _Images(images)}


def write(sources: dict[str, Source], output: Path, notes: Notes) -> list[Path]:
    """Write ``data.yaml`` and ``labels/SPLIT/NAME.txt``, as Ultralytics reads them.

    Coordinates have ten significant digits: a round trip is exact to 1e-4 px up to 20,000 px a
    side. An instance is one ring: parts are joined by lines, and holes by cuts, of zero width.

    Args:
        sources: split -> images.
        output: folder; the image of ``file_name`` belongs at ``output/images/SPLIT/file_name``.
        notes: takes what the format cannot hold.

    Returns:
        data.yaml, then the label files.

    Raises:
        UserError: a file cannot be written, a file name leaves the folder, or two images need
            the same label file.
    """
    output = Path(output)
    classes = list(dict.fromkeys(name for source in sources.values() for name in source.classes))
    indices = {name: index for index, name in enumerate(classes)}
    written = [output / "data.yaml"]
    for split, source in sources.items():
        for record, label in layout.records_to_write(split, source, ".txt"):
            lines = (_line(instance, record, indices, notes) for instance in record.instances)
            with atomic_write(output / "labels" / split / label) as file:
                file.writelines(line for line in lines if line)
            written.append(output / "labels" / split / label)
    with atomic_write(written[0]) as file:
        file.write(_data_yaml(list(sources), classes))
    return written


def _line(instance: Instance, record: ImageRecord, indices: dict[str, int], notes: Notes) -> str:
    where = instance.where
    if instance.iscrowd:
        notes.add("crowd_lost", where)
    if instance.extra:
        notes.add("extra_lost", where, ", ".join(instance.extra)[:200])
    rings = segmentation_to_polygons(instance.segmentation, notes, where)
    if not rings:
        notes.add("instance_lost", where, "no pixel")
        return ""
    if len(rings) > 1:
        notes.add("parts_joined", where, f"{len(rings)} parts")
    ring = join_parts(rings) if len(rings) > 1 else rings[0]
    parts = np.clip(ring / (record.width, record.height), 0, 1).reshape(-1).tolist()
    return f"{indices[instance.category]} {' '.join(format(part, '.10g') for part in parts)}\n"


def _data_yaml(splits: list[str], classes: list[str]) -> str:
    lines = ["# Written by microplastics. Paths are relative to this file."]
    if splits == ["all"]:
        lines += ["# Not split yet: Ultralytics wants a val, which must hold other images."]
        lines += ["train: images/all"]
    else:
        lines += [f"{split}: images/{split}" for split in splits]
    # A JSON string is a YAML string.
    names = [f"  {i}: {json.dumps(name, ensure_ascii=False)}" for i, name in enumerate(classes)]
    return "\n".join([*lines, "names:", *names]) + "\n"
