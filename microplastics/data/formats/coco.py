"""COCO instance JSON of CVAT, Roboflow, Label Studio, Detectron2 and this project."""

import functools
import os
import re
from collections import defaultdict
from collections.abc import Container, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from microplastics.data.coco import (
    Findings,
    drop_placeholders,
    is_class_name,
    is_printable,
    show,
    structure_problem,
)
from microplastics.data.formats import layout, shapes
from microplastics.data.formats.base import ImageRecord, Instance, Notes, ReadOptions, Source
from microplastics.data.formats.layout import find_by_stem, find_file
from microplastics.data.formats.shapes import Segmentation
from microplastics.utils.errors import UserError
from microplastics.utils.io import read_json

_ROBOFLOW = "_annotations.coco.json"
_KEYS = re.compile(rb'"(images|annotations|categories)":\[')
_SNIFFED_FILES = 50
_SAMPLED_NAMES = 20
_PIXEL_LIMIT = 2**31  # pycocotools counts the pixels of a mask in 32 bits
# Part of every export, and useless without the rest of its file.
_BOILERPLATE = frozenset(("license", "coco_url", "flickr_url", "num_keypoints"))


def detect(path: Path) -> bool:
    """Return whether a file or a folder looks like COCO, by names and the heads of files."""
    try:
        return _is_coco(path) if path.is_file() else bool(_find_jsons(path))
    except UserError:  # several files for one split
        return True
    except (OSError, ValueError):
        return False


def read(path: Path, options: ReadOptions, notes: Notes) -> dict[str, Source]:
    """Open a COCO JSON, or the folder of an export (see ``base.Reader.read``)."""
    jsons = _find_jsons(path)
    if not jsons:
        raise UserError(
            f"{path} has no COCO JSON: export as COCO instance segmentation, or give the file as "
            "--input.",
            code="file_missing",
        )
    sources = {}
    for split, json_file in jsons.items():
        document = _Document(json_file, notes)
        root = layout.given_images(options, split)
        if root is None:
            names = [entry["file_name"] for entry in document.images.values()]
            root = _find_image_root(json_file, path, split, names)
        records = functools.partial(document.records, root, options)
        source = Source.noting(root, document.classes, records, notes, len(document.images))
        sources[split] = replace(source, supercategories=document.supercategories)
    return sources


def _find_jsons(path: Path) -> dict[str, Path]:
    """Return split -> COCO file of an export: Roboflow's split folders, or named by the splits."""
    if path.is_file():
        return {"all": path}
    found = {split: folder / _ROBOFLOW for split, folder in layout.split_folders(path).items()}
    found = [(split, file) for split, file in found.items() if file.is_file()]
    files = [*_jsons(path / "annotations"), *_jsons(path)]
    if found and files:
        folders = ", ".join(file.parent.name for _, file in found)
        raise UserError(
            f"{files[0]} lies beside the folders of the splits ({folders}), which have annotation "
            "files of their own; move it and its images into one of them, or out of the input, "
            "or give it alone as --input.",
            code="name_clash",
        )
    if not found:
        # COCO itself has captions and keypoints of the same images beside them.
        files = [file for file in files if file.name.startswith("instances_")] or files
        found = [(layout.split_of(file.stem), file) for file in files]
    jsons = dict(found)
    if len(jsons) < len(found) or ("all" in jsons and len(jsons) > 1):
        names = ", ".join(file.relative_to(path).as_posix() for _, file in found)
        raise UserError(
            f"{path} has several COCO files that are not one for each split, {names}; give the "
            "file that is meant as --input.",
            code="name_clash",
        )
    return layout.in_order(jsons)


def _is_coco(path: Path) -> bool:
    def matches(text: bytes) -> bool:
        keys = set(_KEYS.findall(text)) if text.startswith(b"{") else set()
        if b"images" not in keys and b'"image":{' in text:  # Segment Anything's, of one image
            return False
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


def _find_image_root(json_file: Path, path: Path, split: str, names: list[str]) -> Path:
    """Return the folder in which most of a sample of the images is found."""
    sample = names[:: max(1, len(names) // _SAMPLED_NAMES)][:_SAMPLED_NAMES]

    def score(root: Path) -> int:
        found = filter(None, (_find(name, root) for name in sample))
        # A name found as it is written counts for more than one found by its last part.
        return sum(2 + (code == "") for _, code in found)

    folders = _image_folders(json_file, path if path.is_dir() else path.parent, split)
    best = max(folders, key=score)
    if not score(best):
        raise UserError(
            f"The images of {json_file} are in none of {', '.join(map(str, folders))}; give their "
            "folder with --images.",
            code="image_missing",
        )
    return best


def _image_folders(json_file: Path, folder: Path, split: str) -> list[Path]:
    manifest = folder / layout.MANIFESTS[0]
    images = read_json(manifest).get("images") if layout.is_manifest(manifest) else None
    kept = images.get(split) if isinstance(images, dict) else None
    if is_printable(kept):  # a conversion left them in their place
        if not os.path.isdir(kept):
            raise UserError(
                f"The images of {json_file} were in {kept}, which does not exist; give their "
                "folder with --images.",
                code="image_missing",
            )
        return [Path(kept)]
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
        problem = structure_problem(data)
        if problem:
            raise _invalid(json_file, problem)
        self._label = f"{json_file.absolute().parent.name}/{json_file.name}"
        self.images = _images(data["images"], json_file)
        categories = _categories(data["categories"], json_file)
        self._by_image = defaultdict(list)
        used = set()
        for number, entry in enumerate(data["annotations"], 1):
            place = f"{self._label}, annotation {number}"
            if not isinstance(entry, dict):
                notes.add("shape_broken", place, "not a JSON object")
                continue
            image_id, category = _key(entry.get("image_id")), _key(entry.get("category_id"))
            if image_id not in self.images:
                notes.add("annotation_without_image", place, show(entry.get("image_id")))
            elif category not in categories:
                detail = f"category_id {show(entry.get('category_id'))}"
                notes.add("shape_unlabelled", place, detail)
            else:
                used.add(category)
                self._by_image[image_id].append((place, category, entry))
        self._names = _class_names(categories, used, self._label, notes)
        self.classes = list(dict.fromkeys(self._names.values()))
        self.supercategories = {
            name: categories[id_]["supercategory"] for id_, name in self._names.items()
        }

    def records(self, root: Path, options: ReadOptions, notes: Notes) -> Iterator[ImageRecord]:
        for id_, entry in self.images.items():
            name = entry["file_name"]
            where = f"{self._label}, image {name}"
            found = _find(name, root)
            if found is None:  # a name within the folder, for the writer's message
                file_name = re.split(r"[/\\]", name.rstrip("/\\"))[-1]
                file_name = "unnamed" if file_name in ("", "..") else file_name
            else:
                file_name, code = found
                if code:
                    notes.add(code, where, file_name)
            with layout.skipping(str(root / file_name), options, notes):
                size = _size(entry) or layout.checked_size(root / file_name)
                record = ImageRecord(file_name, *size)
                record.extra = _extra(entry, layout.IMAGE_FIELDS, where, notes)
                for place, category, annotation in self._by_image[id_]:
                    with shapes.noting(notes, place):
                        segmentation = _segmentation(annotation, record, notes, place)
                        instance = Instance(self._names[category], segmentation, place)
                        instance.iscrowd = _crowd(annotation, options, notes, place)
                        instance.extra = _extra(annotation, layout.ANNOTATION_FIELDS, place, notes)
                        record.instances.append(instance)
                yield record


def _find(name: str, root: Path) -> tuple[str, str] | None:
    """Return the name of an image in a folder and the code of a note if it is not as written."""
    found = find_file(name, root)
    if found is not None:
        return found[0], "" if found[1] else "file_name_fixed"
    other = find_by_stem(name, root)
    return None if other is None else (other[0], "image_ending")


def _segmentation(entry: dict, record: ImageRecord, notes: Notes, where: str) -> Segmentation:
    """Return the checked segmentation of an annotation, or its box."""
    segmentation = entry.get("segmentation")
    # CVAT writes rectangles with an empty list.
    if segmentation in (None, [], {}, [[]]):
        box = entry.get("bbox")
        box = box if isinstance(box, list) and len(box) == 4 else None
        segmentation = shapes.area_of("box", box, record, None, notes, where)
    return shapes.checked(segmentation, record, notes, where).segmentation


def _crowd(entry: dict, options: ReadOptions, notes: Notes, where: str) -> int:
    crowd = entry.get("iscrowd") in (1, True, "1")
    if entry.get("ignore") in (1, True, "1") and not crowd:
        crowd = True
        notes.add("ignore_as_crowd", where)
    if crowd:
        notes.add("crowd_instance" if options.crowd_as_instances else "crowd_kept", where)
    return int(crowd and not options.crowd_as_instances)


def _extra(entry: dict, standard: frozenset[str], where: str, notes: Notes) -> dict[str, Any]:
    if standard.issuperset(entry):
        return {}
    if "keypoints" in entry:
        notes.add("field_unknown", where, "'keypoints'")
    known = {"keypoints", *standard, *_BOILERPLATE}
    known |= set() if entry.get("date_captured") else {"date_captured"}
    return layout.extra_fields(entry, known, where, notes, keep_empty=True)


def _invalid(where: object, words: str) -> UserError:
    return UserError(f"{where} {words}.", code="annotations_invalid")


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


def _images(entries: list, json_file: Path) -> dict[int | str, dict[str, Any]]:
    """Return id -> entry of the images, checked."""
    images: dict[int | str, dict[str, Any]] = {}
    for number, entry in enumerate(entries, 1):
        where = f"{json_file}, image {number}"
        id_ = _own_id(entry, where, images)
        if not is_printable(entry.get("file_name")):
            words = f"has the file_name {show(entry.get('file_name'))}; expected printable text"
            raise _invalid(where, words)
        sides = _size(entry) or (1, 1)
        is_size = all(type(side) is int and side > 0 for side in sides)
        if not is_size or sides[0] * sides[1] >= _PIXEL_LIMIT:
            width, height = show(entry.get("width")), show(entry.get("height"))
            words = f"is {width} x {height} px; expected positive integers, below 2^31 pixels"
            raise _invalid(where, words)
        images[id_] = entry
    return images


def _size(entry: dict) -> tuple[Any, Any] | None:
    """Return width and height of an image; None if only its file has them."""
    sides = entry.get("width"), entry.get("height")
    return (_key(sides[0]), _key(sides[1])) if any(sides) else None


def _categories(entries: list, json_file: Path) -> dict[int | str, dict[str, Any]]:
    """Return id -> id, name and supercategory."""
    categories: dict[int | str, dict[str, Any]] = {}
    for number, entry in enumerate(entries, 1):
        where = f"{json_file}, category {number}"
        id_ = _own_id(entry, where, categories)
        name, group = entry.get("name"), entry.get("supercategory")
        if not is_class_name(name):
            raise _invalid(where, f"has the name {show(name)}; expected short printable text")
        group = group if isinstance(group, str) else ""
        categories[id_] = {"id": id_, "name": name.strip(), "supercategory": group}
    return categories


def _class_names(
    categories: dict[int | str, dict[str, Any]], used: set, label: str, notes: Notes
) -> dict[int | str, str]:
    """Return the class name of each category id, without unused ones of the same name."""
    kept = drop_placeholders(categories, used, Findings())
    names = {category["id"]: category["name"] for category in kept}
    seen = set()
    for id_, category in categories.items():
        where, name = f"{label}, category {show(id_)}", category["name"]
        if id_ == 0 and id_ not in names:
            notes.add("category_placeholder", where, show(name))
            continue
        if id_ not in names or name in seen:
            notes.add("category_merged", where, show(name))
        seen.add(name)
    return names
