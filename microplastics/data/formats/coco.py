"""COCO instance JSON as CVAT, Roboflow, Label Studio, Detectron2 and this project write it."""

import functools
import json
import os
import re
from collections import defaultdict
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

from microplastics.data.coco import show
from microplastics.data.formats import layout
from microplastics.data.formats.base import (
    ImageRecord,
    Instance,
    Notes,
    ReadOptions,
    Source,
    box_polygon,
    is_finite,
    measured_segmentation,
)
from microplastics.data.formats.layout import find_file, is_printable, make_source
from microplastics.data.images import image_size
from microplastics.data.segmentation import read_json
from microplastics.utils.errors import UserError

NAME = "coco"
_PIXEL_LIMIT = 2**31  # pycocotools counts the pixels of a mask in 32 bits
_MAX_EXTRA = 4096  # characters of one further field as JSON
_IMAGE_FIELDS = frozenset(("id", "file_name", "width", "height"))
_ANNOTATION_FIELDS = frozenset(
    ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation", "ignore")
)
# Said by every export and of no use without the rest of its file.
_BOILERPLATE = frozenset(("license", "coco_url", "flickr_url", "num_keypoints"))
_EMPTY = (None, "", 0, [], {})


def looks_like(path: Path) -> bool:
    """Whether a file or a folder looks like COCO, by names and the heads of files."""
    try:
        if path.is_file():
            return path.suffix.lower() == ".json" and layout.is_coco_json(path)
        jsons = layout.find_jsons(path)
    except UserError:  # several files for one split
        return True
    except (OSError, ValueError):
        return False
    return any(map(layout.is_coco_json, jsons.values()))


def open_dataset(path: Path, options: ReadOptions, notes: Notes) -> dict[str, Source]:
    """Open a COCO JSON, or the folder of an export.

    Args:
        path: the JSON or the folder (see ``coco_layout.find_jsons``).
        options: ``images`` is the folder of the images where it is not found.
        notes: takes what is changed and left out, here and while records are read.

    Returns:
        split -> source; ``"all"`` for the only file of no split.

    Raises:
        UserError: no COCO file is there, it cannot be used, or its images are not found.
    """
    jsons = layout.find_jsons(path)
    if not jsons:
        raise UserError(
            f"{path} has no COCO JSON: export as COCO instance segmentation, or give the file "
            "as --input."
        )
    folder = path if path.is_dir() else path.parent
    sources = {}
    for split, json_file in jsons.items():
        document = _Document(json_file, notes)
        names = [entry["file_name"] for entry in document.images]
        root = layout.find_image_root(json_file, folder, split, names, options.images)
        sources[split] = document.source(root, options)
    return sources


def open_json(json_file: Path, image_root: Path, options: ReadOptions, notes: Notes) -> Source:
    """Open one COCO JSON with its image folder.

    Raises:
        UserError: the JSON cannot be used, or the folder is not there.
    """
    image_root = Path(image_root)
    if not image_root.is_dir():
        raise UserError(f"The image folder {image_root} does not exist; correct it.")
    return _Document(Path(json_file), notes).source(image_root, options)


class _Document:
    """The content of one JSON, with its images and categories checked."""

    def __init__(self, json_file: Path, notes: Notes):
        data = read_json(json_file)
        self.json_file, self._notes = json_file, notes
        self._label = f"{json_file.absolute().parent.name}/{json_file.name}"
        self.images = _images(_list(data, "images", json_file), json_file)
        annotations = _list(data, "annotations", json_file)
        categories = _categories(_list(data, "categories", json_file), json_file)
        self._by_image = defaultdict(list)
        ids = {image["id"] for image in self.images}
        used = set()
        for index, entry in enumerate(annotations):
            place = f"{self._label}, annotation {index + 1}"
            if not isinstance(entry, dict):
                notes.add("shape_broken", place, "not a JSON object")
                continue
            image_id = _key(entry.get("image_id"))
            if image_id not in ids:
                notes.add("annotation_without_image", place, show(entry.get("image_id")))
                continue
            category = _key(entry.get("category_id"))
            if category not in categories:
                detail = f"category_id {show(entry.get('category_id'))}"
                notes.add("shape_unlabelled", place, detail)
                continue
            used.add(category)
            self._by_image[image_id].append((index, category, entry))
        self._names = _class_names(categories, used, self._label, notes)
        self.classes = list(dict.fromkeys(self._names.values()))

    def source(self, image_root: Path, options: ReadOptions) -> Source:
        read = functools.partial(self._records, image_root, options)
        return make_source(image_root, self.classes, read, self._notes, len(self.images))

    def _records(
        self, image_root: Path, options: ReadOptions, notes: Notes
    ) -> Iterator[ImageRecord]:
        for entry in self.images:
            where = f"{self._label}, image {entry['file_name']}"
            found = find_file(entry["file_name"], image_root)
            if found is None:
                # As it stands where it stays in the folder, so that the writer can name it.
                file_name = re.split(r"[/\\]", entry["file_name"].rstrip("/\\"))[-1]
                file_name = file_name if file_name not in ("", "..") else "unnamed"
            else:
                file_name, as_written = found
                if not as_written:
                    notes.add("file_name_mended", where, file_name)
            size = entry["size"]
            if size is None:
                size = _size_of_file(image_root / file_name, options, notes)
                if size is None:
                    continue
            record = ImageRecord(file_name, *size)
            record.extra = _extra(entry["entry"], _IMAGE_FIELDS, notes, where)
            for index, category, annotation in self._by_image[entry["id"]]:
                place = f"{self._label}, annotation {index + 1}"
                instance = _instance(annotation, record, options, notes, place)
                if instance is not None:
                    instance.category = self._names[category]
                    record.instances.append(instance)
            yield record


def _instance(
    entry: dict, record: ImageRecord, options: ReadOptions, notes: Notes, where: str
) -> Instance | None:
    """Read one annotation, without its class; None, with a note, where it cannot be used."""
    segmentation = entry.get("segmentation")
    # CVAT writes rectangles with an empty list.
    if segmentation in (None, [], {}, [[]]):
        rectangle = box_polygon(entry.get("bbox"))
        if rectangle is None:
            notes.add("shape_broken", where, "neither segmentation nor bbox")
            return None
        segmentation = [rectangle]
        notes.add("box_only", where)
    measured = measured_segmentation(segmentation, record.height, record.width, notes, where)
    if measured is None:
        return None
    crowd = 1 if entry.get("iscrowd") in (1, True, "1") else 0
    if entry.get("ignore") in (1, True, "1") and not crowd:
        crowd = 1
        notes.add("ignore_as_crowd", where)
    if crowd and options.crowd_as_instances:
        crowd = 0
        notes.add("crowd_instance", where)
    elif crowd:
        notes.add("crowd_kept", where)
    extra = _extra(entry, _ANNOTATION_FIELDS, notes, where)
    return Instance("", measured.segmentation, where, crowd, extra)


def _list(data: dict, key: str, json_file: Path) -> list:
    value = data.get(key)
    if not isinstance(value, list) or (key != "annotations" and not value):
        words = "no list" if not isinstance(value, list) else "an empty list"
        raise UserError(
            f"{json_file} has {words} {key!r}; export as COCO instance segmentation (images, "
            "annotations, categories)."
        )
    return value


def _key(value: Any) -> int | str | None:
    """An id: integers and their decimal strings are the same."""
    if type(value) is str:
        value = value.strip()
        is_number = value.isascii() and value.isdecimal() and len(value) < 19
        return int(value) if is_number else value or None
    if type(value) is float and is_finite(value) and value == int(value):
        return int(value)
    return value if type(value) is int else None


def _side(value: Any) -> int | None:
    side = _key(value)
    return side if type(side) is int and side > 0 else None


def _own_id(entry: Any, where: str, known: Container[int | str]) -> int | str:
    """Return the id of an image or category, which none of the ``known`` has."""
    if not isinstance(entry, dict):
        raise UserError(f"{where} is not a JSON object; export the file again.")
    id_ = _key(entry.get("id"))
    if id_ is None or id_ in known:
        words = "has no usable id" if id_ is None else f"has the id {show(id_)} of another one"
        raise UserError(f"{where} {words}; give each its own id.")
    return id_


def _images(entries: list, json_file: Path) -> list[dict[str, Any]]:
    """Return id, file_name, size (None where the file's is taken) and entry of every image."""
    images, ids = [], set()
    for index, entry in enumerate(entries):
        where = f"{json_file}, image {index + 1}"
        id_ = _own_id(entry, where, ids)
        name = entry.get("file_name")
        if not is_printable(name):
            raise UserError(f"{where} has the file_name {show(name)}; correct or export it again.")
        ids.add(id_)
        size = (_side(entry.get("width")), _side(entry.get("height")))
        if None in size:
            if entry.get("width") or entry.get("height"):
                sides = f"{show(entry.get('width'))} x {show(entry.get('height'))}"
                raise UserError(f"{where} is {sides} px; correct or export it again.")
            size = None
        elif size[0] * size[1] >= _PIXEL_LIMIT:
            raise UserError(f"{where} is {show(size[0])} x {show(size[1])} px, which is too large.")
        images.append({"id": id_, "file_name": name, "size": size, "entry": entry})
    return images


def _size_of_file(path: Path, options: ReadOptions, notes: Notes) -> tuple[int, int] | None:
    try:
        return image_size(path, options.max_pixels)
    except UserError as error:
        if not options.skip_broken:
            raise
        code = "image_broken" if os.path.exists(path) else "image_missing"
        notes.add(code, str(path), str(error))
        return None


def _categories(entries: list, json_file: Path) -> dict[int | str, dict[str, Any]]:
    categories = {}
    for index, entry in enumerate(entries):
        where = f"{json_file}, category {index + 1}"
        id_ = _own_id(entry, where, categories)
        name = entry.get("name")
        if not is_printable(name):
            raise UserError(f"{where} has the name {show(name)}; correct or export it again.")
        group = entry.get("supercategory")
        categories[id_] = {
            "name": name.strip(),
            "supercategory": group if isinstance(group, str) else "",
        }
    return categories


def _class_names(
    categories: dict[int | str, dict[str, Any]], used: set, label: str, notes: Notes
) -> dict[int | str, str]:
    """Return the class name of each category id, without Roboflow's unused placeholder.

    That has id 0 and either the name of another category or, with its own supercategory "none",
    the name that is the supercategory of all others.
    """
    names, first = {}, {}
    for id_, category in categories.items():
        name, where = category["name"], f"{label}, category {show(id_)}"
        others = [other for key, other in categories.items() if key != id_]
        same = any(other["name"] == name for other in others)
        groups = {other["supercategory"] for other in others}
        placeholder = category["supercategory"] == "none" and groups == {name}
        if id_ not in used and id_ == 0 and (same or placeholder):
            notes.add("category_placeholder", where, show(name))
            continue
        if name in first:
            notes.add("category_merged", where, f"{show(name)}, as category {show(first[name])}")
        first.setdefault(name, id_)
        names[id_] = name
    return names


def _extra(entry: dict, standard: frozenset, notes: Notes, where: str) -> dict[str, Any]:
    """Return the further fields of an entry that are plain and small; the others are noted."""
    if standard.issuperset(entry):
        return {}
    extra = {}
    for key, value in entry.items():
        if key in standard or key in _BOILERPLATE or value in _EMPTY and key == "date_captured":
            continue
        if key == "keypoints" or not is_printable(key) or not _is_small(value):
            notes.add("field_unknown", where, show(key))
        else:
            extra[key] = value
    return extra


def _is_small(value: Any) -> bool:
    if type(value) in (bool, int, float, str, type(None)):
        if type(value) is str:
            return len(value) <= _MAX_EXTRA
        return type(value) in (bool, type(None)) or (is_finite(value) and abs(value) < 1e300)
    try:
        return len(json.dumps(value, allow_nan=False)) <= _MAX_EXTRA
    except (ValueError, RecursionError):  # NaN, or an integer of thousands of digits
        return False
