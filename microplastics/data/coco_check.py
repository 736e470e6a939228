"""What a COCO instance JSON must hold before Detectron2 may train on it.

What would crash or silently spoil training is an error; what is merely odd is a counted warning.
The kinds and their words are in ``coco_findings``.
"""

import os
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from microplastics.data.coco_findings import Finding, Findings, Place, show
from microplastics.data.coco_load import (
    COORDINATE_LIMIT,
    NUMBERS,
    Measured,
    SegmentationError,
    measure,
)
from microplastics.data.images import image_header, size_mismatch
from microplastics.errors import UserError

_BOX_TOLERANCE = 2.0
_AREA_TOLERANCE = 0.2  # of the mask's area
_AREA_TOLERANCE_PX = 10.0
_ID_LIMIT = 2**53  # evaluation keeps ids as float64
_PIXEL_LIMIT = 2**31  # pycocotools counts the pixels of a mask in 32 bits
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")


@dataclass
class CheckedInstances:
    """The usable content of a COCO JSON; every value is of its right type.

    Attributes:
        images: dicts of id, file_name, height, width; by ascending id.
        categories: dicts of id, name, supercategory; by ascending id, placeholders left out.
        annotations: dicts of id, image_id, category_id, bbox, area, iscrowd, segmentation, in
            the order of the file; area and segmentation as ``coco_load.measure`` gives them.
        warnings: what was odd, by kind.
        logged: the warnings were logged.
    """

    images: list[dict[str, Any]]
    categories: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    warnings: list[Finding]
    logged: bool = False


def check_content(json_file: str, data: dict[str, Any]) -> CheckedInstances:
    """Check the JSON itself, without looking at the image files.

    Args:
        json_file: its path, for the messages.
        data: its content; it is not changed.

    Raises:
        UserError: naming the first error and how many more there are of which kind.
    """
    for key in ("images", "annotations", "categories"):
        if not isinstance(data.get(key), list):
            words = f"has no list {key!r}" if key not in data else f"has {key!r} that is no list"
            raise UserError(
                f"{json_file} {words}; export as COCO instance segmentation (images, annotations, "
                "categories)."
            )
        if not data[key] and key != "annotations":
            raise UserError(f"{json_file} has an empty list {key!r}; export the data set again.")
    findings = Findings()
    images = _check_images(data["images"], findings)
    categories = _check_categories(data["categories"], findings)
    annotations = _check_annotations(data["annotations"], images, categories, findings)
    used = {annotation["category_id"] for annotation in annotations}
    categories = _drop_placeholders(categories, used, findings)
    findings.raise_errors(json_file)
    annotated = {annotation["image_id"] for annotation in annotations}
    for index, image in enumerate(images.values()):
        if image["id"] not in annotated:
            findings.warn("image_blank", Place("image", index, image))
    return CheckedInstances(
        sorted(images.values(), key=lambda image: image["id"]),
        categories,
        annotations,
        list(findings.warnings.values()),
    )


def check_files(
    json_file: str, images: Iterable[dict[str, Any]], image_root: str, max_pixels: int | None
) -> None:
    """Check that every image is there, and is of its size by its header.

    Raises:
        UserError: naming the first error and how many more there are of which kind.
    """
    if not os.path.isdir(image_root):
        raise UserError(f"The image folder {image_root} of {json_file} does not exist; correct it.")
    findings = Findings()
    for index, image in enumerate(images):
        path = os.path.join(image_root, image["file_name"])
        place = Place("image", index, image)
        if not os.path.exists(path):
            backslash = ", whose backslashes should be /" if "\\" in path else ""
            findings.error("image_missing", place, f"no {path}{backslash}")
            continue
        try:
            size, rotated = image_header(path, max_pixels)
        except UserError as error:
            findings.error("image_file", place, str(error).rstrip("."))
            continue
        expected = (image["width"], image["height"])
        if size != expected:
            findings.error("image_size", place, f"{path} {size_mismatch(size, expected, rotated)}")
    findings.raise_errors(json_file)


def _is_id(value: Any) -> bool:
    return type(value) is int and 0 <= value < _ID_LIMIT


def _field_error(entry: dict, key: str, wanted: str) -> str:
    return f"{key} is {show(entry[key])}, not {wanted}" if key in entry else f"no {key}"


def _check_images(entries: list, findings: Findings) -> dict[int, dict[str, Any]]:
    """Return the images with a usable id, by id."""
    images: dict[int, dict[str, Any]] = {}
    names: set[str] = set()
    for index, entry in enumerate(entries):
        place = Place("image", index, entry)
        if not isinstance(entry, dict):
            findings.error("not_an_object", place)
            continue
        if not _is_id(entry.get("id")):
            findings.error("image_field", place, _field_error(entry, "id", "an integer from 0"))
            continue
        if entry["id"] in images:
            findings.error("image_duplicate", place)
            continue
        image = {key: entry.get(key) for key in ("id", "file_name", "height", "width")}
        images[image["id"]] = image
        for key in ("width", "height"):
            if type(image[key]) is not int or image[key] < 1:
                wanted = "a positive integer"
                findings.error("image_field", place, _field_error(entry, key, wanted))
                image["invalid"] = True
        if "invalid" not in image and image["width"] * image["height"] >= _PIXEL_LIMIT:
            size = f"{show(image['width'])} x {show(image['height'])} px is too large"
            findings.error("image_field", place, size)
            image["invalid"] = True
        _check_file_name(entry, place, findings)
        if isinstance(image["file_name"], str):
            if image["file_name"] in names:
                findings.warn("image_twice", place)
            names.add(image["file_name"])
    return images


def _check_file_name(entry: dict, place: Place, findings: Findings) -> None:
    name = entry.get("file_name")
    if not isinstance(name, str) or not name.strip() or _UNPRINTABLE.search(name):
        findings.error("image_field", place, _field_error(entry, "file_name", "a file's name"))
        return
    parts = re.split(r"[/\\]", name)
    if not parts[0] or re.match(r"[A-Za-z]:", name) or ".." in parts:
        findings.error("file_name", place)


def _check_categories(entries: list, findings: Findings) -> dict[int, dict[str, Any]]:
    """Return the categories with a usable id, by ascending id."""
    categories: dict[int, dict[str, Any]] = {}
    for index, entry in enumerate(entries):
        place = Place("category", index, entry)
        if not isinstance(entry, dict):
            findings.error("not_an_object", place)
        elif not _is_id(entry.get("id")):
            findings.error("category_field", place, _field_error(entry, "id", "an integer from 0"))
        elif entry["id"] in categories:
            findings.error("category_duplicate", place)
        else:
            name, group = entry.get("name"), entry.get("supercategory")
            if not isinstance(name, str) or not name.strip() or _UNPRINTABLE.search(name):
                findings.error("category_field", place, _field_error(entry, "name", "a name"))
                name = ""
            categories[entry["id"]] = {
                "id": entry["id"],
                "name": name,
                "supercategory": group if isinstance(group, str) else "",
            }
    return dict(sorted(categories.items()))


def _drop_placeholders(
    categories: dict[int, dict[str, Any]], used: set[int], findings: Findings
) -> list[dict[str, Any]]:
    """Leave out what Roboflow puts at id 0, whichever of the splits is read.

    That is an unused category with the name of another one, or with the name that is the
    supercategory of all others while its own is "none".
    """
    by_name = defaultdict(list)
    for category in categories.values():
        by_name[category["name"]].append(category)
    dropped = set()
    for name, group in by_name.items():
        kept = [category for category in group if category["id"] in used] or group[-1:]
        for category in kept[1:] if name else ():
            findings.error("category_same_name", Place("category", 0, category))
        dropped.update(c["id"] for c in group if c["id"] not in {k["id"] for k in kept})
    first = categories.get(0)
    if first and len(categories) > 1 and 0 not in used and first["supercategory"] == "none":
        others = {c["supercategory"] for c in categories.values() if c["id"] != 0}
        if others == {first["name"]}:
            dropped.add(0)
    for category in categories.values():
        if category["id"] in dropped:
            findings.warn("category_placeholder", Place("category", 0, category))
        elif category["id"] not in used:
            findings.warn("category_unused", Place("category", 0, category))
    return [category for category in categories.values() if category["id"] not in dropped]


def _check_annotations(
    entries: list,
    images: dict[int, dict[str, Any]],
    categories: dict[int, dict[str, Any]],
    findings: Findings,
) -> list[dict[str, Any]]:
    """Return the sound annotations, measured, in the order of the file."""
    annotations, ids, seen = [], set(), set()
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict):
            findings.error("not_an_object", Place("annotation", index, entry))
            continue
        image_id = entry.get("image_id")
        image = images.get(image_id) if _is_id(image_id) else None
        place = Place("annotation", index, entry, image)
        unique = _check_id(entry, place, ids, findings)
        if not _is_id(image_id):
            problem = _field_error(entry, "image_id", "an image's id")
            findings.error("annotation_field", place, problem)
        elif image is None:
            findings.error("no_image", place, f"image_id {show(image_id)}")
        sound = _check_fields(entry, place, categories, findings)
        if image is None or "invalid" in image:
            continue
        try:
            measured = measure(entry["segmentation"], image["height"], image["width"])
        except KeyError:
            findings.error("annotation_field", place, "no segmentation")
            continue
        except SegmentationError as error:
            findings.error(error.code, place, error.detail)
            continue
        if not (sound and unique):
            continue
        annotation = {
            "id": entry["id"],
            "image_id": entry["image_id"],
            "category_id": entry["category_id"],
            "bbox": _check_box(entry["bbox"], measured.box, place, findings),
            "area": measured.area,
            "iscrowd": entry.get("iscrowd") or 0,
            "segmentation": measured.segmentation,
        }
        _warn_oddities(entry, measured, place, findings)
        key = (entry["image_id"], entry["category_id"], *entry["bbox"])
        if key in seen:
            findings.warn("annotation_twice", place)
        seen.add(key)
        annotations.append(annotation)
    return annotations


def _check_id(entry: dict, place: Place, ids: set[int], findings: Findings) -> bool:
    """Check the id of an annotation against the earlier ``ids``; return whether it is sound."""
    id_ = entry.get("id")
    if not _is_id(id_):
        findings.error("annotation_field", place, _field_error(entry, "id", "an integer from 1"))
        return False
    if id_ in ids or id_ == 0:
        findings.error("annotation_duplicate" if id_ in ids else "annotation_zero", place)
        return False
    ids.add(id_)
    return True


def _check_fields(
    entry: dict, place: Place, categories: dict[int, dict[str, Any]], findings: Findings
) -> bool:
    """Check what is neither an id nor the segmentation; return whether it is sound."""
    problems = []
    category_id, box = entry.get("category_id"), entry.get("bbox")
    area, crowd = entry.get("area"), entry.get("iscrowd")
    if not _is_id(category_id):
        problem = _field_error(entry, "category_id", "a category's id")
        problems.append(("annotation_field", problem))
    elif category_id not in categories:
        problems.append(("no_category", f"category_id {show(category_id)}"))
    if type(box) is not list or len(box) != 4 or not all(map(_is_number, box)):
        problem = _field_error(entry, "bbox", "[x, y, width, height] in px")
        problems.append(("annotation_field", problem))
    if area is not None and not (type(area) in NUMBERS and 0 <= area < float("inf")):
        problem = _field_error(entry, "area", "a number of pixels")
        problems.append(("annotation_field", problem))
    if crowd is not None and not (type(crowd) is int and crowd in (0, 1)):
        problems.append(("annotation_field", _field_error(entry, "iscrowd", "0 or 1")))
    if entry.get("ignore"):
        problems.append(("ignore", ""))
    for code, detail in problems:
        findings.error(code, place, detail)
    return not problems


def _is_number(value: Any) -> bool:
    # The comparison is False for NaN.
    return type(value) in NUMBERS and -COORDINATE_LIMIT <= value <= COORDINATE_LIMIT


def _check_box(
    box: list[float], true: tuple[float, ...], place: Place, findings: Findings
) -> list[float]:
    """Return the annotated box, or that of the mask (x, y, width, height) where they differ."""
    x, y, width, height = box
    corners = (true[0], true[1], true[0] + true[2], true[1] + true[3])
    if _close((x, y, x + width, y + height), corners) and width > 0 and height > 0:
        return box
    findings.warn("bbox_xyxy" if _close(box, corners) else "bbox_differs", place)
    return list(true)


def _close(one: Iterable[float], other: Iterable[float]) -> bool:
    return all(abs(a - b) <= _BOX_TOLERANCE for a, b in zip(one, other, strict=True))


def _warn_oddities(entry: dict, measured: Measured, place: Place, findings: Findings) -> None:
    area, true = entry.get("area"), measured.area
    if area is None:
        findings.warn("area_missing", place)
    elif abs(area - true) > max(_AREA_TOLERANCE * true, _AREA_TOLERANCE_PX):
        box_area = entry["bbox"][2] * entry["bbox"][3]
        of_box = abs(area - box_area) <= 1e-3 * abs(box_area)
        findings.warn("area_of_box" if of_box else "area_differs", place)
    if entry.get("iscrowd") is None:
        findings.warn("iscrowd_missing", place)
    elif entry["iscrowd"]:
        findings.warn("crowd", place)
    if measured.clipped:
        findings.warn("polygon_clipped", place)
    if measured.subpixel:
        findings.warn("subpixel", place)
    if entry.get("keypoints"):
        findings.warn("keypoints", place)
