"""YOLO labels: a text file an image, a line an instance, coordinates as parts of the image's sides.

``class x1 y1 x2 y2 …`` is a polygon, ``class x y width height`` a box.
"""

import functools
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from microplastics.data.coco import show
from microplastics.data.formats import layout
from microplastics.data.formats.base import ImageRecord, Instance, Notes, ReadOptions, Source
from microplastics.data.formats.layout import (
    NAME_FILES,
    ImageFolder,
    list_images,
    make_source,
    safe_name,
    skip_or_raise,
)
from microplastics.data.images import image_size
from microplastics.data.segmentation import join_parts, segmentation_to_polygons
from microplastics.utils.errors import UserError
from microplastics.utils.io import atomic_write

NAME = "yolo"
_DECIMALS = 4  # of a pixel: takes away what dividing and multiplying by the side has added
_OUTSIDE = 1.0  # sides of the image that a point may lie outside of it
_BROKEN_LINES = 1000  # more in one file: it is no label file
_LOOKED_AT = 20
_OTHER_TEXTS = ("readme", "classes", "train", "val", "test", "obj", "predefined_classes", "notes")


def looks_like(path: Path) -> bool:
    """Whether a path looks like YOLO: a data.yaml, or images with label files; never raises."""
    try:
        yaml_file = layout.find_yaml(path)
        if yaml_file is not None:
            data = layout.read_yaml(yaml_file)
            return "names" in data or "nc" in data
        if not path.is_dir():
            return False
        return any(
            map(_is_labelled, layout.find_yolo_folders(path, None, None, None, None).values())
        )
    except (UserError, OSError, ValueError):
        return False


def open_dataset(path: Path, options: ReadOptions, notes: Notes) -> dict[str, Source]:
    """Open a YOLO data set.

    Args:
        path: a data.yaml, or a folder: with a data.yaml, or with ``images`` and ``labels``, or
            with labels beside the images.
        options: ``images`` is the folder of the images where it is not in the data set.
        notes: takes what is changed and left out, here and while records are read.

    Returns:
        split -> source; ``"all"`` where neither data.yaml nor folders name splits.

    Raises:
        UserError: no images are found, or data.yaml cannot be used.
    """
    yaml_file = layout.find_yaml(path)
    if yaml_file is None and path.is_file():
        raise UserError(f"{path} is no data.yaml; give it, or the folder of the data set.")
    data = None if yaml_file is None else layout.read_yaml(yaml_file)
    folders = layout.find_yolo_folders(path, yaml_file, data, options.images, notes)
    names = layout.class_names(path if yaml_file is None else yaml_file, data)
    if names is None:
        names = _numbered_names(folders)
        for name in names.values():
            notes.add("class_unnamed", str(path), name)
    twice = len(names) - len(set(names.values()))
    for _ in range(twice):
        notes.add("category_merged", str(path))
    sources = {}
    for split, folder in folders.items():
        images = list(folder.images())
        read = functools.partial(_records, folder, images, names, options)
        classes = list(dict.fromkeys(names.values()))
        sources[split] = make_source(folder.root, classes, read, notes, len(images))
    return sources


def _records(
    folder: ImageFolder,
    images: list[str],
    names: dict[int, str],
    options: ReadOptions,
    notes: Notes,
) -> Iterator[ImageRecord]:
    used, places = set(), {}
    for image in images:
        name = safe_name(image, f"An image of {folder.root}")
        label, path = folder.label(name), folder.root / name
        used.add(label)
        places[label.parent] = None
        try:
            size = image_size(path, options.max_pixels)
        except UserError as error:
            code = "image_broken" if os.path.exists(path) else "image_missing"
            skip_or_raise(error, code, str(path), options, notes)
            continue
        record = ImageRecord(name, *size)
        if os.path.isfile(label):
            try:
                record.instances = list(_instances(label, size, names, notes))
            except UserError as error:
                skip_or_raise(error, "label_broken", str(label), options, notes)
        else:
            notes.add("image_unlabelled", name)
        yield record
    for label in _other_labels(list(places), used):
        notes.add("label_without_image", str(label))


def _instances(
    label: Path, size: tuple[int, int], names: dict[int, str], notes: Notes
) -> Iterator[Instance]:
    broken = 0
    shown = f"{label.parent.name}/{label.name}"
    for number, line in enumerate(layout.read_lines(label), 1):
        tokens = line.split()
        if not tokens:
            continue
        where = f"{shown}, line {number}"
        try:
            polygon = _polygon(tokens[1:], size)
            if len(tokens) == 5:
                notes.add("box_only", where)
            index = _class_index(tokens[0])
        except _BrokenLine as error:
            broken += 1
            if broken > _BROKEN_LINES:
                raise UserError(
                    f"{label} has over {_BROKEN_LINES} lines that are no YOLO label; check what "
                    "it is."
                ) from error
            notes.add(error.code, where, error.detail)
            continue
        if index not in names:
            notes.add("shape_unlabelled", where, f"class {index} has no name")
            continue
        yield Instance(names[index], [polygon], where)


class _BrokenLine(Exception):
    """A line that cannot be used; ``code`` is that of a note."""

    def __init__(self, detail: str, code: str = "shape_broken"):
        super().__init__(detail)
        self.code, self.detail = code, detail


def _class_index(token: str) -> int:
    head = token.removesuffix(".0")
    if not (head.isascii() and head.isdecimal() and len(head) < 8):
        raise _BrokenLine(f"class {show(token)}")
    return int(head)


def _polygon(tokens: list[str], size: tuple[int, int]) -> list[float]:
    """Turn the numbers of a line into a polygon in px."""
    if len(tokens) != 4 and (len(tokens) < 6 or len(tokens) % 2):
        raise _BrokenLine(f"{len(tokens)} coordinates")
    try:
        values = np.array(tokens, dtype=np.float64)
    except (ValueError, OverflowError):
        raise _BrokenLine("a coordinate that is no number") from None
    # The comparison is False for NaN.
    if not (values.min() >= -_OUTSIDE and values.max() <= 1 + _OUTSIDE):
        raise _BrokenLine("coordinates that are not from 0 to 1")
    if len(tokens) == 4:
        x, y, width, height = values.tolist()
        if not (width > 0 and height > 0):
            raise _BrokenLine("a box without an area", "shape_without_area")
        left, right, top, bottom = x - width / 2, x + width / 2, y - height / 2, y + height / 2
        values = np.array([left, top, right, top, right, bottom, left, bottom])
    return (values.reshape(-1, 2) * size).round(_DECIMALS).reshape(-1).tolist()


def _numbered_names(folders: dict[str, ImageFolder]) -> dict[int, str]:
    """Name the classes that occur ``class_0``, ``class_1``, …"""
    found = set()
    for folder in folders.values():
        for image in folder.images():
            label = folder.label(safe_name(image, f"An image of {folder.root}"))
            if not os.path.isfile(label):
                continue
            for line in layout.read_lines(label):
                token = line.split(None, 1)[:1]
                try:
                    found.update(map(_class_index, token))
                except _BrokenLine:
                    continue  # noted when the records are read
            if len(found) > layout.MAX_CLASSES:
                raise UserError(f"{label} is no YOLO label: it has thousands of classes.")
    return {index: f"class_{index}" for index in sorted(found)}


def _other_labels(places: list[Path], used: set[Path]) -> Iterator[Path]:
    """The label files in these folders that belong to no image."""
    for place in places:
        try:
            files = sorted(place.glob("*.txt"))
        except OSError:
            continue
        for file in files:
            other = file.name.lower().startswith(_OTHER_TEXTS) and place.name != "labels"
            if file not in used and not other and file.name not in NAME_FILES:
                yield file


def _is_labelled(folder: ImageFolder) -> bool:
    """Whether one of the first images has a label file of numbers."""
    for count, image in enumerate(list_images(folder.root)):
        label = folder.label(image)
        if os.path.isfile(label):
            with open(label, "rb") as file:
                tokens = file.readline(1 << 12).replace(b"\0", b"").split()
            numbers = b"".join(tokens).removeprefix(b"\xef\xbb\xbf").strip(b"\xff\xfe")
            if len(tokens) > 4 and not numbers.strip(b"0123456789.-+e"):
                return True
        if count >= _LOOKED_AT:
            break
    # Or the first images are blanks: class names and a folder of labels are enough.
    labels = folder.label("name").parent
    near = (root / name for root in (folder.root, folder.root.parent) for name in NAME_FILES)
    return labels != folder.root and labels.is_dir() and any(map(os.path.isfile, near))


def write_dataset(sources: dict[str, Source], output: Path, notes: Notes) -> list[Path]:
    """Write ``data.yaml`` and ``labels/SPLIT/NAME.txt``, as Ultralytics reads them.

    Coordinates have ten significant digits: a round trip is exact to 1e-4 px up to 20,000 px a
    side. An instance is one ring: parts are joined by lines, and holes by cuts, of no width.

    Args:
        sources: split -> images.
        output: folder; the image of ``file_name`` belongs at ``output/images/SPLIT/file_name``.
        notes: takes what the format cannot hold.

    Returns:
        data.yaml, then the label files.

    Raises:
        UserError: a file cannot be written, a file name leaves the folder, or two images would
            share a label file.
    """
    output = Path(output)
    classes = list(dict.fromkeys(name for source in sources.values() for name in source.classes))
    indices = {name: index for index, name in enumerate(classes)}
    written = [output / "data.yaml"]
    for split, source in sources.items():
        taken: dict[str, str] = {}
        progress = tqdm(
            source.records(), split, source.num_images, unit="image", disable=None, leave=False
        )
        for record in progress:
            name = safe_name(record.file_name, f"An image of {split}")
            label = os.path.splitext(name)[0] + ".txt"
            other = taken.setdefault(label.lower(), name)
            if other != name:
                raise UserError(
                    f"{name} and {other} of {split} would share the label file {label}; rename "
                    "one of them."
                )
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
    rings = segmentation_to_polygons(
        instance.segmentation, record.height, record.width, notes, where
    )
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
