"""COCO instance JSON of CVAT, Roboflow, Label Studio, Detectron2 and this project."""

import functools
import re
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from typing import Any

from microplastics.data.coco import is_printable, show
from microplastics.data.formats import layout, shapes
from microplastics.data.formats.base import (
    ImageRecord,
    Instance,
    Notes,
    ReadOptions,
    Source,
    noted_once,
)
from microplastics.data.formats.layout import find_file
from microplastics.data.formats.shapes import ShapeError, measured_segmentation
from microplastics.utils.errors import UserError
from microplastics.utils.io import read_json

_ROBOFLOW = "_annotations.coco.json"
_KEYS = re.compile(rb'"(images|annotations|categories)":\[')
_SNIFFED_FILES = 50
_SAMPLED_NAMES = 20
_PIXEL_LIMIT = 2**31  # pycocotools counts the pixels of a mask in 32 bits
_IMAGE_FIELDS = frozenset(("id", "file_name", "width", "height"))
_ANNOTATION_FIELDS = frozenset(
    ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation", "ignore")
)
# Part of every export, and useless without the rest of its file.
_BOILERPLATE = frozenset(("license", "coco_url", "flickr_url", "num_keypoints"))


def detect(path: Path) -> bool:
    """Return whether a file or a folder looks like COCO, by names and the heads of files."""
    try:
        return _is_coco(path) if path.is_file() else bool(find_jsons(path))
    except UserError:  # several files for one split
        return True
    except (OSError, ValueError):
        return False


def read(
    path: Path, options: ReadOptions, notes: Notes, roots: dict[str, Path] | None = None
) -> dict[str, Source]:
    """Open a COCO JSON, or the folder of an export (see ``base.Reader.read``).

    Args:
        path: the JSON or the folder (see :func:`find_jsons`).
        options: how to read.
        notes: takes what is changed and left out, here and in the first pass.
        roots: image folder of each split, if known.

    Raises:
        UserError: there is no COCO file, it cannot be used, or its images are not found.
    """
    jsons = find_jsons(path)
    if not jsons:
        raise UserError(
            f"{path} has no COCO JSON: export as COCO instance segmentation, or give the file as "
            "--input.",
            code="file_missing",
        )
    sources = {}
    for split, json_file in jsons.items():
        document = _Document(json_file, notes)
        root = (roots or {}).get(split) or layout.given_images(options, split)
        if root is None:
            names = [entry["file_name"] for entry in document.images]
            root = _find_image_root(json_file, path, split, names)
        records = functools.partial(document.records, root, options)
        sources[split] = noted_once(root, document.classes, records, notes, len(document.images))
    return sources


def find_jsons(path: Path) -> dict[str, Path]:
    """Find the COCO files of an export.

    Args:
        path: one JSON, or a folder: with Roboflow's ``_annotations.coco.json`` in it or in its
            split folders, or with JSON files in it or in ``annotations``.

    Returns:
        split -> file, ``"all"`` if the name of the only file contains no split; empty if there
        is none.

    Raises:
        UserError: several files could be the same split (``name_clash``).
    """
    if path.is_file():
        return {"all": path}
    found = {split: folder / _ROBOFLOW for split, folder in layout.split_folders(path).items()}
    found = [(split, file) for split, file in found.items() if file.is_file()]
    if not found:
        files = [*_jsons(path / "annotations"), *_jsons(path)]
        # COCO itself has captions and keypoints of the same images beside them.
        files = [file for file in files if file.name.startswith("instances_")] or files
        found = [(layout.split_of(file.stem), file) for file in files]
    jsons: dict[str, Path] = {}
    for split, file in found:
        other = jsons.setdefault(split, file)
        if other != file:
            raise UserError(
                f"{path} has two COCO files for the same images or split, "
                f"{other.relative_to(path)} and {file.relative_to(path)}; give one as --input.",
                code="name_clash",
            )
    if "all" in jsons and len(jsons) > 1:
        raise UserError(
            f"{path} has {jsons['all'].relative_to(path)} beside the splits "
            f"{', '.join(sorted(set(jsons) - {'all'}))}; give the file that is meant as --input.",
            code="name_clash",
        )
    return layout.in_order(jsons)


def _is_coco(path: Path) -> bool:
    def matches(text: bytes) -> bool:
        keys = set(_KEYS.findall(text)) if text.startswith(b"{") else set()
        return (
            len(keys) > 1
            or (b"images" in keys and b'"file_name"' in text)
            or (b"annotations" in keys and b'"image_id"' in text)
        )

    return layout.sniff(path, matches)


def _jsons(folder: Path) -> list[Path]:
    """Return the COCO files of a folder, among the first files only: LabelMe has one an image."""
    files = sorted(folder.glob("*.json")) if folder.is_dir() else []
    named = [file for file in files if file.name.startswith("instances_")]
    return [file for file in (named or files)[:_SNIFFED_FILES] if _is_coco(file)]


def _find_image_root(json_file: Path, path: Path, split: str, names: Iterable[object]) -> Path:
    """Return the folder in which most of a sample of the images is found."""
    names = list(names)
    sample = names[:: max(1, len(names) // _SAMPLED_NAMES)][:_SAMPLED_NAMES]
    best, most = None, 0
    folders = _image_folders(json_file, path if path.is_dir() else path.parent, split)
    for root in folders:
        found = [find_file(name, root) for name in sample]
        # A name found as it is written counts for more than one found by its last part.
        score = sum(2 + hit[1] for hit in found if hit is not None)
        if score > most:
            best, most = root, score
    if best is None:
        raise UserError(
            f"The images of {json_file} are in none of {', '.join(map(str, folders))}; give their "
            "folder with --images.",
            code="image_missing",
        )
    return best


def _image_folders(json_file: Path, folder: Path, split: str) -> list[Path]:
    names = [name for name, meant in layout.SPLITS.items() if meant == split]
    folders = [json_file.parent]
    for base in dict.fromkeys((folder, json_file.parent, json_file.parent.parent)):
        folders += [base, base / "images", base / "images" / "default"]
        for name in (*names, json_file.stem.removeprefix("instances_")):
            folders += [base / "images" / name, base / name, base / name / "images"]
    return [root for root in dict.fromkeys(folders) if root.is_dir()]


class _Document:
    """Content of one JSON: the checked images and categories, and the annotations by image."""

    def __init__(self, json_file: Path, notes: Notes):
        data = read_json(json_file)
        self.json_file = json_file
        self._label = f"{json_file.absolute().parent.name}/{json_file.name}"
        self.images = _images(_list(data, "images", json_file), json_file)
        categories = _categories(_list(data, "categories", json_file), json_file)
        annotations = _list(data, "annotations", json_file)
        self._by_image = defaultdict(list)
        ids = {image["id"] for image in self.images}
        used = set()
        for number, entry in enumerate(annotations, 1):
            place = f"{self._label}, annotation {number}"
            if not isinstance(entry, dict):
                notes.add("shape_broken", place, "not a JSON object")
                continue
            image_id, category = _key(entry.get("image_id")), _key(entry.get("category_id"))
            if image_id not in ids:
                notes.add("annotation_without_image", place, show(entry.get("image_id")))
            elif category not in categories:
                detail = f"category_id {show(entry.get('category_id'))}"
                notes.add("shape_unlabelled", place, detail)
            else:
                used.add(category)
                self._by_image[image_id].append((number, category, entry))
        self._names = _class_names(categories, used, self._label, notes)
        self.classes = list(dict.fromkeys(self._names.values()))

    def records(self, root: Path, options: ReadOptions, notes: Notes) -> Iterator[ImageRecord]:
        for image in self.images:
            where = f"{self._label}, image {image['file_name']}"
            found = find_file(image["file_name"], root)
            if found is None:  # a name within the folder, for the writer's message
                file_name = re.split(r"[/\\]", image["file_name"].rstrip("/\\"))[-1]
                file_name = "unnamed" if file_name in ("", "..") else file_name
            else:
                file_name, as_written = found
                if not as_written:
                    notes.add("file_name_fixed", where, file_name)
            size = image["size"]
            if size is None:
                try:
                    size = layout.checked_size(root / file_name, options)
                except UserError as error:
                    layout.skip_or_raise(error, str(root / file_name), options, notes)
                    continue
            record = ImageRecord(file_name, *size)
            record.extra = _extra(image["entry"], _IMAGE_FIELDS, where, notes)
            for number, category, annotation in self._by_image[image["id"]]:
                place = f"{self._label}, annotation {number}"
                name = self._names[category]
                instance = _instance(annotation, name, record, options, notes, place)
                record.instances += [] if instance is None else [instance]
            yield record


def _instance(
    entry: dict, name: str, record: ImageRecord, options: ReadOptions, notes: Notes, where: str
) -> Instance | None:
    """Read one annotation; None, with a note, if it cannot be used."""
    segmentation = entry.get("segmentation")
    # CVAT writes rectangles with an empty list.
    if segmentation in (None, [], {}, [[]]):
        box = entry.get("bbox")
        try:
            if not isinstance(box, list) or len(box) != 4:
                raise ShapeError("shape_broken", "neither segmentation nor bbox")
            segmentation = shapes.box_polygon(*shapes.numbers(*box))
        except ShapeError as error:
            notes.add(error.code, where, error.detail)
            return None
        notes.add("box_only", where)
    measured = measured_segmentation(segmentation, record.height, record.width, notes, where)
    if measured is None:
        return None
    crowd = 1 if entry.get("iscrowd") in (1, True, "1") else 0
    if entry.get("ignore") in (1, True, "1") and not crowd:
        crowd = 1
        notes.add("ignore_as_crowd", where)
    if crowd:
        notes.add("crowd_instance" if options.crowd_as_instances else "crowd_kept", where)
        crowd = 0 if options.crowd_as_instances else 1
    extra = _extra(entry, _ANNOTATION_FIELDS, where, notes)
    return Instance(name, measured.segmentation, where, crowd, extra)


def _extra(entry: dict, standard: frozenset[str], where: str, notes: Notes) -> dict[str, Any]:
    if standard.issuperset(entry):
        return {}
    if "keypoints" in entry:
        notes.add("field_unknown", where, "'keypoints'")
    known = {"keypoints", *standard, *_BOILERPLATE}
    known |= set() if entry.get("date_captured") else {"date_captured"}
    return layout.extra_fields(entry, known, where, notes)


def _invalid(where: object, words: str) -> UserError:
    return UserError(f"{where} {words}.", code="annotations_invalid")


def _list(data: dict, key: str, json_file: Path) -> list:
    value = data.get(key)
    if not isinstance(value, list) or (key != "annotations" and not value):
        what = f"an empty list {key!r}" if value == [] else f"no list {key!r}"
        words = f"has {what}; export as COCO instance segmentation (images, annotations, "
        raise _invalid(json_file, words + "categories)")
    return value


def _key(value: Any) -> int | str | None:
    """Return an id: integers and their decimal strings are the same."""
    if type(value) is str:
        value = value.strip()
        is_number = value.isascii() and value.isdecimal() and len(value) < 19
        return int(value) if is_number else value or None
    if type(value) is float and value.is_integer():
        return int(value)
    return value if type(value) is int else None


def _own_id(entry: Any, where: str, known: Container[int | str]) -> int | str:
    """Return the id of an image or category, which must not be among the known ones."""
    if not isinstance(entry, dict):
        raise _invalid(where, "is not a JSON object; export the file again")
    id_ = _key(entry.get("id"))
    if id_ is None or id_ in known:
        words = "has no usable id" if id_ is None else f"has the id {show(id_)} of another one"
        raise _invalid(where, f"{words}; give each its own id")
    return id_


def _images(entries: list, json_file: Path) -> list[dict[str, Any]]:
    """Return id, file_name, size (None for the size of the file) and entry of every image."""
    images, ids = [], set()
    for number, entry in enumerate(entries, 1):
        where = f"{json_file}, image {number}"
        id_ = _own_id(entry, where, ids)
        ids.add(id_)
        name, width, height = (entry.get(key) for key in ("file_name", "width", "height"))
        if not is_printable(name):
            raise _invalid(where, f"has the file_name {show(name)}; expected printable text")
        size = (_key(width), _key(height))
        if not (width or height):
            size = None
        elif not all(type(side) is int and side > 0 for side in size):
            words = f"is {show(width)} x {show(height)} px; expected positive integers"
            raise _invalid(where, words)
        elif size[0] * size[1] >= _PIXEL_LIMIT:
            words = f"is {show(width)} x {show(height)} px; expected less than 2^31 pixels"
            raise _invalid(where, words)
        images.append({"id": id_, "file_name": name, "size": size, "entry": entry})
    return images


def _categories(entries: list, json_file: Path) -> dict[int | str, tuple[str, Any]]:
    """Return id -> name and supercategory."""
    categories = {}
    for number, entry in enumerate(entries, 1):
        where = f"{json_file}, category {number}"
        id_ = _own_id(entry, where, categories)
        name = entry.get("name")
        if not is_printable(name):
            raise _invalid(where, f"has the name {show(name)}; expected printable text")
        group = entry.get("supercategory")
        categories[id_] = (name.strip(), group if isinstance(group, str) else "")
    return categories


def _class_names(
    categories: dict[int | str, tuple[str, str]], used: set, label: str, notes: Notes
) -> dict[int | str, str]:
    """Return the class name of each category id, without Roboflow's unused placeholder.

    The placeholder has id 0 and either the name of another category or, with its own supercategory
    "none", the name that is the supercategory of all others.
    """
    names, first = {}, {}
    for id_, (name, group) in categories.items():
        where = f"{label}, category {show(id_)}"
        others = [other for key, other in categories.items() if key != id_]
        same = any(other_name == name for other_name, _ in others)
        placeholder = group == "none" and {other_group for _, other_group in others} == {name}
        if id_ not in used and id_ == 0 and (same or placeholder):
            notes.add("category_placeholder", where, show(name))
            continue
        if name in first:
            notes.add("category_merged", where, f"{show(name)}, as category {show(first[name])}")
        first.setdefault(name, id_)
        names[id_] = name
    return names
