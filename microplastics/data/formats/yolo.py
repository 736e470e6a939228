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
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from microplastics.data.coco import is_printable, show
from microplastics.data.formats import layout
from microplastics.data.formats.base import ImageRecord, Instance, Notes, ReadOptions, Source
from microplastics.data.formats.layout import class_name, find_file, list_files
from microplastics.data.formats.shapes import ShapeError, noting
from microplastics.data.segmentation import join_parts, segmentation_to_polygons
from microplastics.utils.errors import UserError
from microplastics.utils.io import atomic_write, parse_yaml, read_text

_YAMLS = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_NAME_FILES = ("classes.txt", "obj.names", "_darknet.labels", "predefined_classes.txt")
_DARKNET = {"obj_train_data": "train", "obj_valid_data": "val", "obj_test_data": "test"}
_DECIMALS = 4  # of a pixel: removes what dividing and multiplying by the side adds
_OUTSIDE = 1.0  # widths or heights that a point may lie outside of the image
_SNIFFED_IMAGES = 20
_OTHER_TEXTS = ("readme", "classes", "train", "val", "test", "obj", "predefined_classes", "notes")


@dataclass
class _Images:
    """The images of one split, by their names in ``root``."""

    root: Path
    names: list[str]
    labels: Path | None = None  # folder of the labels, if not beside ``images`` or the images

    def label(self, name: str) -> Path:
        """Return the place of an image's label file, which may not exist."""
        stem = os.path.splitext(name)[0] + ".txt"
        if self.labels is not None:
            places = [self.labels / stem, self.labels / "labels" / stem]
            places.append(self.labels / os.path.basename(stem))
        else:
            beside = self.root / stem
            # The last folder named images is replaced by labels, as Ultralytics does.
            images = (folder for folder in beside.parents if folder.name == "images")
            twins = (folder.with_name("labels") / beside.relative_to(folder) for folder in images)
            places = [*islice(twins, 1), beside]
        return next((place for place in places if os.path.isfile(place)), places[0])


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
    """Open a data.yaml, or a folder with one or with labels (see ``base.Reader.read``)."""
    yaml_file = _find_yaml(path)
    if yaml_file is None and path.is_file():
        raise UserError(
            f"{path} is not a data.yaml; give it or the folder of the data set as --input.",
            code="format_unknown",
        )
    data = {} if yaml_file is None else _read_yaml(yaml_file)
    base = path if path.is_dir() else path.parent
    given = layout.given_images(options)
    if given is not None:
        folders = {"all": _Images(given, list(list_files(given)), base)}
    elif yaml_file is not None and any(data.get(key) for key in layout.SPLITS):
        folders = _yaml_folders(yaml_file, data, notes)
    else:
        folders = _plain_folders(base)
    if not any(folder.names for folder in folders.values()):
        raise UserError(
            f"{path} has no images; give the folder that holds images and labels, or the folder "
            "of the images with --images.",
            code="image_missing",
        )
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
        records = functools.partial(_records, folder, names, options)
        sources[split] = Source.noting(folder.root, classes, records, notes, len(folder.names))
    return sources


def _records(
    folder: _Images, names: dict[int, str], options: ReadOptions, notes: Notes
) -> Iterator[ImageRecord]:
    labels = set()
    for name in folder.names:
        label, path = folder.label(name), folder.root / name
        labels.add(label)
        with layout.skipping(str(path), options, notes):
            record = ImageRecord(name, *layout.checked_size(path))
            if os.path.isfile(label):
                with layout.skipping(str(label), options, notes, "label_broken"):
                    record.instances = list(_instances(label, record, names, notes))
            else:
                notes.add("image_unlabelled", name)
            yield record
    for place in sorted({label.parent for label in labels}):
        for file in sorted(place.glob("*.txt")):
            other = file.name.lower().startswith(_OTHER_TEXTS) and place.name != "labels"
            if file not in labels and not other and file.name not in _NAME_FILES:
                notes.add("label_without_image", str(file))


def _instances(
    label: Path, record: ImageRecord, names: dict[int, str], notes: Notes
) -> Iterator[Instance]:
    for number, line in enumerate(read_text(label, legacy=False).split("\n"), 1):
        tokens = line.split()
        where = f"{label.parent.name}/{label.name}, line {number}"
        with noting(notes, where):
            if tokens:
                polygon = _polygon(tokens[1:], record)
                index = _class_index(tokens[0])
                if len(tokens) == 5:
                    notes.add("box_only", where)
                if index not in names:
                    raise ShapeError("shape_unlabelled", f"class {index} has no name")
                yield Instance(names[index], [polygon], where)


def _class_index(token: str) -> int:
    if not re.fullmatch(r"[0-9]{1,7}(\.0)?", token):
        raise ShapeError("shape_broken", f"class {show(token)}")
    return int(token.removesuffix(".0"))


def _polygon(tokens: list[str], record: ImageRecord) -> list[float]:
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
    pixels = values.reshape(-1, 2) * (record.width, record.height)
    return pixels.round(_DECIMALS).reshape(-1).tolist()


def _numbered_names(folders: Iterable[_Images]) -> dict[int, str]:
    """Name the classes that occur ``class_0``, ``class_1``, …"""
    found = set()
    for folder in folders:
        for image in folder.names:
            label = folder.label(image)
            lines = []
            with contextlib.suppress(UserError):  # noted when the records are read
                lines = read_text(label, legacy=False).split("\n")
            for line in lines:
                with contextlib.suppress(ShapeError):  # likewise
                    found.update(map(_class_index, line.split(None, 1)[:1]))
    return {index: f"class_{index}" for index in sorted(found)}


def _is_labelled(folder: _Images) -> bool:
    """Return whether one of the first images has a label file of numbers."""
    for image in folder.names[:_SNIFFED_IMAGES]:
        label, tokens = folder.label(image), []
        with contextlib.suppress(UserError):  # missing or broken; others may be labels
            tokens = read_text(label).split("\n")[0].split()
        if len(tokens) > 4 and not "".join(tokens).strip("0123456789.-+e"):
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
    others = []
    for file in filter(Path.is_file, [*path.glob("*.yaml"), *path.glob("*.yml")]):
        with contextlib.suppress(UserError):  # a file that is no text does not name classes
            others += [file] if re.search(r"^names\s*:", read_text(file), re.MULTILINE) else []
    return others[0] if len(others) == 1 else None


def _read_yaml(path: Path) -> dict[str, Any]:
    """Read a small YAML mapping with every scalar as text."""
    content = read_text(path)
    try:
        data = parse_yaml(content, yaml.BaseLoader)  # makes only text, lists and mappings
        if not isinstance(data, dict):
            raise ValueError("it is not a mapping")
    except ValueError as error:
        raise UserError(
            f"{path} is not YAML with names, train and val ({error}); correct it.",
            code="annotations_invalid",
        ) from error
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
        names = read_text(path).rstrip().split("\n")
    if isinstance(names, list):
        names = {str(index): name for index, name in enumerate(names)}
    indexed = {}
    for key, name in names.items() if isinstance(names, dict) else ():
        if not (re.fullmatch("[0-9]{1,9}", key) and class_name(name)):
            raise UserError(
                f"{path} has the class {show(key)}: {show(name)}; expected a number from 0 and "
                "printable text.",
                code="annotations_invalid",
            )
        indexed[int(key)] = class_name(name)
    if not indexed:
        raise UserError(
            f"{path} has the names {show(names)}; expected names: [Fiber, Fragment, …].",
            code="annotations_invalid",
        )
    return dict(sorted(indexed.items()))


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
            found[split] = _Images(places[0], list(list_files(places[0])))
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
    """Find a folder or list of images by its path, as it is or else its last parts, in ``base``."""
    written = [os.path.join(root, text), text]
    parts = [part for part in re.split(r"[/\\]", text) if part not in ("", ".", "..")][-16:]
    # Not "images" only, which would be the same for every split.
    ends = ["/".join(parts[start:]) for start in range(len(parts))]
    ends = [end for end in ends if end != "images" or len(parts) == 1]
    for number, each in enumerate([*written, *ends]):
        place = Path(os.path.normpath(os.path.join(base, each)))
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
            for line in filter(None, map(str.strip, read_text(place).split("\n"))):
                # A line that finds no file stays, so that the missing image is named.
                name, _ = find_file(line, base) or (line, True)
                yield layout.safe_name(name, f"An image of {place}")


def _plain_folders(base: Path) -> dict[str, _Images]:
    """Return the splits of a folder without data.yaml."""
    folders = {split: base / name for name, split in _DARKNET.items() if (base / name).is_dir()}
    if len(folders) == 1:
        folders = {"all": next(iter(folders.values()))}
    folders = folders or layout.image_folders(base, ("images",))
    return {split: _Images(folder, list(list_files(folder))) for split, folder in folders.items()}


def write(sources: dict[str, Source], output: Path, notes: Notes) -> None:
    """Write ``data.yaml`` and ``labels/SPLIT/NAME.txt``, as Ultralytics reads them.

    Coordinates have ten significant digits: a round trip is exact to 1e-4 px up to 20,000 px a
    side. An instance is one ring: parts are joined by lines, and holes by cuts, of zero width.
    """
    classes = list(dict.fromkeys(name for source in sources.values() for name in source.classes))
    indices = {name: index for index, name in enumerate(classes)}
    for split, source in sources.items():
        for record, label in layout.records_to_write(split, source, ".txt"):
            lines = (_line(instance, record, indices, notes) for instance in record.instances)
            with atomic_write(output / "labels" / split / label) as file:
                file.writelines(lines)
    lines = ["# Written by microplastics. Paths are relative to this file."]
    if list(sources) == ["all"]:
        lines += ["# Not split yet: Ultralytics wants a val, which must hold other images."]
        lines += ["train: images/all"]
    else:
        lines += [f"{split}: images/{split}" for split in sources]
    # A JSON string is a YAML string.
    names = [f"  {i}: {json.dumps(name, ensure_ascii=False)}" for i, name in enumerate(classes)]
    with atomic_write(output / "data.yaml") as file:
        file.write("\n".join([*lines, "names:", *names]) + "\n")


def _line(instance: Instance, record: ImageRecord, indices: dict[str, int], notes: Notes) -> str:
    where = instance.where
    if instance.iscrowd:
        notes.add("crowd_lost", where)
    if instance.extra:
        notes.add("extra_lost", where, ", ".join(instance.extra)[:200])
    rings = segmentation_to_polygons(instance.segmentation, notes, where)
    if len(rings) > 1:
        notes.add("parts_joined", where, f"{len(rings)} parts")
    parts = np.clip(join_parts(rings) / (record.width, record.height), 0, 1).reshape(-1).tolist()
    return f"{indices[instance.category]} {' '.join(format(part, '.10g') for part in parts)}\n"
