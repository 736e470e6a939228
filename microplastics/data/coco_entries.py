"""Checking the images and categories of a COCO JSON; the annotations are in ``coco_check``."""

import os
import re
from collections import defaultdict
from typing import Any

from microplastics.data.coco_findings import Findings, Place, show

ID_LIMIT = 2**53  # evaluation keeps ids as float64
_PIXEL_LIMIT = 2**31  # pycocotools counts the pixels of a mask in 32 bits
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")


def is_id(value: Any) -> bool:
    """Whether a stranger's value can be an id."""
    return type(value) is int and 0 <= value < ID_LIMIT


def field_error(entry: dict, key: str, wanted: str) -> str:
    """Words for a field that is missing or of the wrong type."""
    return f"{key} is {show(entry[key])}, not {wanted}" if key in entry else f"no {key}"


def check_images(
    entries: list, findings: Findings
) -> tuple[dict[int, dict[str, Any]], dict[int, int]]:
    """Return the images with a usable id, and their positions in the list, by id."""
    images: dict[int, dict[str, Any]] = {}
    indices: dict[int, int] = {}
    names: set[str] = set()
    for index, entry in enumerate(entries):
        place = Place("image", index, entry)
        if not isinstance(entry, dict):
            findings.error("not_an_object", place)
            continue
        if not is_id(entry.get("id")):
            findings.error("image_field", place, field_error(entry, "id", "an integer from 0"))
            continue
        if entry["id"] in images:
            findings.error("image_duplicate", place)
            continue
        image = {key: entry.get(key) for key in ("id", "file_name", "height", "width")}
        images[image["id"]] = image
        indices[image["id"]] = index
        for key in ("width", "height"):
            if type(image[key]) is not int or image[key] < 1:
                wanted = "a positive integer"
                findings.error("image_field", place, field_error(entry, key, wanted))
                image["invalid"] = True
        if "invalid" not in image and image["width"] * image["height"] >= _PIXEL_LIMIT:
            size = f"{show(image['width'])} x {show(image['height'])} px is too large"
            findings.error("image_field", place, size)
            image["invalid"] = True
        _check_file_name(entry, place, findings)
        if isinstance(image["file_name"], str):
            name = image["file_name"] and os.path.normpath(image["file_name"])  # ./a is a
            if name in names:
                findings.warn("image_twice", place)
            names.add(name)
    return images, indices


def _check_file_name(entry: dict, place: Place, findings: Findings) -> None:
    name = entry.get("file_name")
    if not _is_name(name):
        findings.error("image_field", place, field_error(entry, "file_name", "a file's name"))
    elif not is_safe_name(name):
        findings.error("file_name", place)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and not _UNPRINTABLE.search(value)


def is_safe_name(value: Any) -> bool:
    """Whether a stranger's value names a file that lies within the image folder."""
    if not _is_name(value):
        return False
    parts = re.split(r"[/\\]", value)
    return bool(parts[0]) and not re.match(r"[A-Za-z]:", value) and ".." not in parts


def check_categories(entries: list, findings: Findings) -> dict[int, dict[str, Any]]:
    """Return the categories with a usable id, by ascending id."""
    categories: dict[int, dict[str, Any]] = {}
    for index, entry in enumerate(entries):
        place = Place("category", index, entry)
        if not isinstance(entry, dict):
            findings.error("not_an_object", place)
        elif not is_id(entry.get("id")):
            findings.error("category_field", place, field_error(entry, "id", "an integer from 0"))
        elif entry["id"] in categories:
            findings.error("category_duplicate", place)
        else:
            name, group = entry.get("name"), entry.get("supercategory")
            if not _is_name(name):
                findings.error("category_field", place, field_error(entry, "name", "a name"))
                name = ""
            categories[entry["id"]] = {
                "id": entry["id"],
                "name": name,
                "supercategory": group if isinstance(group, str) else "",
            }
    return dict(sorted(categories.items()))


def drop_placeholders(
    categories: dict[int, dict[str, Any]], used: set[int], findings: Findings
) -> list[dict[str, Any]]:
    """Leave out what Roboflow puts at id 0, whichever of the splits is read.

    That is an unused category with the name of another one, or with the name that is the
    supercategory of all others while its own is "none".
    """
    by_name = defaultdict(list)
    for category in categories.values():
        if category["name"]:
            by_name[category["name"]].append(category)
    dropped = set()
    for group in by_name.values():
        kept = [category for category in group if category["id"] in used] or group[-1:]
        for category in kept[1:]:
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
