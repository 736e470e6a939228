"""What a COCO instance JSON must hold before Detectron2 may train on it.

What would crash or silently spoil training is an error; what is merely odd is a counted warning.
The kinds and their words are in ``coco_findings``.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from microplastics.data.coco_entries import (
    check_categories,
    check_images,
    drop_placeholders,
    field_error,
    is_id,
)
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


@dataclass
class Examined:
    """Everything that the check made of a JSON, sound or not.

    Attributes:
        findings: what is wrong and what is odd.
        images: by id, as in :class:`CheckedInstances`; one without a usable size has the key
            ``invalid``, and ``file_name`` may be anything (``coco_entries.is_safe_name``).
        categories: as in :class:`CheckedInstances`.
        annotations: the sound ones, as in :class:`CheckedInstances`.
        measured: every annotation whose segmentation can be measured.
        image_indices: image id -> position in the JSON.
    """

    findings: Findings
    images: dict[int, dict[str, Any]]
    categories: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    measured: list["MeasuredEntry"]
    image_indices: dict[int, int]


class MeasuredEntry(NamedTuple):
    """An annotation as it stands in the JSON, its checked image, and its measured mask."""

    index: int
    entry: dict[str, Any]
    image: dict[str, Any]
    measured: Measured
    repeated: bool


def check_content(json_file: str, data: dict[str, Any]) -> CheckedInstances:
    """Check the JSON itself, without looking at the image files.

    Args:
        json_file: its path, for the messages.
        data: its content; it is not changed.

    Raises:
        UserError: naming the first error and how many more there are of which kind.
    """
    problem = structure_problem(data)
    if problem:
        raise UserError(f"{json_file} {problem}.")
    examined = examine(data)
    examined.findings.raise_errors(json_file)
    return CheckedInstances(
        sorted(examined.images.values(), key=lambda image: image["id"]),
        examined.categories,
        examined.annotations,
        list(examined.findings.warnings.values()),
    )


def structure_problem(data: dict[str, Any]) -> str | None:
    """Words (what; mend) for a JSON object that lacks the three lists of COCO, or None."""
    for key in ("images", "annotations", "categories"):
        if not isinstance(data.get(key), list):
            words = f"has no list {key!r}" if key not in data else f"has {key!r} that is no list"
            return (
                f"{words}; export as COCO instance segmentation (images, annotations, categories)"
            )
        if not data[key] and key != "annotations":
            return f"has an empty list {key!r}; export the data set again"
    return None


def examine(data: dict[str, Any]) -> Examined:
    """Find everything that is wrong or odd in a JSON that holds the three lists of COCO.

    Args:
        data: content of the JSON, for which :func:`structure_problem` is None; not changed.
    """
    findings = Findings()
    images, indices = check_images(data["images"], findings)
    categories = check_categories(data["categories"], findings)
    annotations, measured = _check_annotations(data["annotations"], images, categories, findings)
    # An annotation that is broken shows all the same that its category is no placeholder, and
    # that its image is no blank.
    used = {key_of(entry.get("category_id")) for entry in objects_of(data["annotations"])}
    categories = drop_placeholders(categories, used, findings)
    annotated = {key_of(entry.get("image_id")) for entry in objects_of(data["annotations"])}
    for image in images.values():
        if image["id"] not in annotated:
            findings.warn("image_blank", Place("image", indices[image["id"]], image))
    return Examined(findings, images, categories, annotations, measured, indices)


def objects_of(entries: list) -> Iterator[dict]:
    """The entries of a stranger's list that are JSON objects."""
    return (entry for entry in entries if isinstance(entry, dict))


def key_of(value: Any) -> int | None:
    """A stranger's value if it can be an id, else None."""
    return value if is_id(value) else None


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
        problem = file_problem(image, image_root, max_pixels)
        if problem:
            findings.error(problem[0], Place("image", index, image), problem[1])
    findings.raise_errors(json_file)


def file_problem(
    image: dict[str, Any], image_root: str, max_pixels: int | None
) -> tuple[str, str] | None:
    """Compare an image of the JSON with the header of its file.

    Args:
        image: as in :class:`CheckedInstances`; its size is not compared if it is ``invalid``.
        image_root: folder that its ``file_name`` is relative to.
        max_pixels: images of more pixels are refused; ``images.MAX_PIXELS`` if None.

    Returns:
        (code in ``ERRORS``, detail in words), or None where all is well.
    """
    path = os.path.join(image_root, image["file_name"])
    if not os.path.exists(path):
        backslash = ", whose backslashes should be /" if "\\" in path else ""
        return "image_missing", f"no {path}{backslash}"
    try:
        size, rotated = image_header(path, max_pixels)
    except UserError as error:
        return "image_file", str(error).rstrip(".")
    expected = (image["width"], image["height"])
    if size != expected and "invalid" not in image:
        return "image_size", f"{path} {size_mismatch(size, expected, rotated)}"
    return None


def _check_annotations(
    entries: list,
    images: dict[int, dict[str, Any]],
    categories: dict[int, dict[str, Any]],
    findings: Findings,
) -> tuple[list[dict[str, Any]], list[MeasuredEntry]]:
    """Return the sound annotations, and all that could be measured, in the order of the file."""
    annotations, every, ids, seen = [], [], set(), {}
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict):
            findings.error("not_an_object", Place("annotation", index, entry))
            continue
        image = images.get(key_of(entry.get("image_id")))
        place = Place("annotation", index, entry, image)
        unique = _check_id(entry, place, ids, findings)
        if image is None:
            _no_image(entry, place, findings)
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
        box = _check_box(entry.get("bbox"), measured.box, place, findings)
        _warn_oddities(entry, measured, place, findings)
        repeated = is_repeated(entry, measured, seen)
        if repeated:
            findings.warn("annotation_twice", place)
        every.append(MeasuredEntry(index, entry, image, measured, repeated))
        if sound and unique:
            annotations.append(
                {
                    "id": entry["id"],
                    "image_id": entry["image_id"],
                    "category_id": entry["category_id"],
                    "bbox": box,
                    "area": measured.area,
                    "iscrowd": entry.get("iscrowd") or 0,
                    "segmentation": measured.segmentation,
                }
            )
    return annotations, every


def _no_image(entry: dict, place: Place, findings: Findings) -> None:
    image_id = entry.get("image_id")
    if is_id(image_id):
        findings.error("no_image", place, f"image_id {show(image_id)}")
    else:
        findings.error("annotation_field", place, field_error(entry, "image_id", "an image's id"))


def is_repeated(entry: dict, measured: Measured, seen: dict[tuple, Any]) -> bool:
    """Whether an earlier annotation has this one's image, category, iscrowd and segmentation.

    Args:
        entry: the annotation, of a usable ``image_id``.
        measured: its mask.
        seen: what the earlier calls keep; begin with an empty one.
    """
    category, segmentation = key_of(entry.get("category_id")), measured.segmentation
    crowd = show(entry.get("iscrowd") or 0)
    key = (entry["image_id"], category, crowd, measured.box, measured.area)
    # Only for those that agree so far is the whole outline hashed.
    known = seen.setdefault(key, segmentation)
    if known is segmentation:
        return False
    if not isinstance(known, set):
        known = seen[key] = {_hashable(known)}
    outline = _hashable(segmentation)
    repeated = outline in known
    known.add(outline)
    return repeated


def _hashable(segmentation: list | dict) -> tuple:
    if isinstance(segmentation, dict):
        return tuple(segmentation["size"]), segmentation["counts"]
    return tuple(map(tuple, segmentation))


def _check_id(entry: dict, place: Place, ids: set[int], findings: Findings) -> bool:
    """Check the id of an annotation against the earlier ``ids``; return whether it is sound."""
    id_ = entry.get("id")
    if not is_id(id_):
        findings.error("annotation_field", place, field_error(entry, "id", "an integer from 1"))
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
    if not is_id(category_id):
        problem = field_error(entry, "category_id", "a category's id")
        problems.append(("annotation_field", problem))
    elif category_id not in categories:
        problems.append(("no_category", f"category_id {show(category_id)}"))
    if not is_box(box):
        problem = field_error(entry, "bbox", "[x, y, width, height] in px")
        problems.append(("box_field", problem))
    if area is not None and not _is_area(area):
        problem = field_error(entry, "area", "a number of pixels")
        problems.append(("area_field", problem))
    if crowd is not None and not (type(crowd) is int and crowd in (0, 1)):
        problems.append(("annotation_field", field_error(entry, "iscrowd", "0 or 1")))
    if entry.get("ignore"):
        problems.append(("ignore", ""))
    for code, detail in problems:
        findings.error(code, place, detail)
    return not problems


def is_box(value: Any) -> bool:
    """Whether a stranger's value is four finite numbers of sensible size."""
    return type(value) is list and len(value) == 4 and all(map(_is_number, value))


def _is_area(value: Any) -> bool:
    return type(value) in NUMBERS and 0 <= value <= COORDINATE_LIMIT**2


def _is_number(value: Any) -> bool:
    # The comparison is False for NaN.
    return type(value) in NUMBERS and -COORDINATE_LIMIT <= value <= COORDINATE_LIMIT


def _check_box(box: Any, true: tuple[float, ...], place: Place, findings: Findings) -> list[float]:
    """Return the annotated box, or that of the mask (x, y, width, height) where they differ."""
    code = box_oddity(box, true) if is_box(box) else None
    if code:
        findings.warn(code, place)
    return box if is_box(box) and not code else list(true)


def box_oddity(box: list[float], true: tuple[float, ...]) -> str | None:
    """Code in ``WARNINGS`` for a box that is not that of the mask, or None.

    Args:
        box: as annotated, four numbers.
        true: x, y, width, height of the mask in px.
    """
    x, y, width, height = box
    corners = (true[0], true[1], true[0] + true[2], true[1] + true[3])
    if _close((x, y, x + width, y + height), corners) and width > 0 and height > 0:
        return None
    return "bbox_xyxy" if _close(box, corners) else "bbox_differs"


def _close(one: Iterable[float], other: Iterable[float]) -> bool:
    return all(abs(a - b) <= _BOX_TOLERANCE for a, b in zip(one, other, strict=True))


def area_oddity(entry: dict, true: float) -> str | None:
    """Code in ``WARNINGS`` or ``ERRORS`` for an area that is not that of the mask, or None.

    Args:
        entry: the annotation.
        true: pixels of its mask.
    """
    area, box = entry.get("area"), entry.get("bbox")
    if area is None:
        return "area_missing"
    if not _is_area(area):
        return "area_field"
    if abs(area - true) <= max(_AREA_TOLERANCE * true, _AREA_TOLERANCE_PX):
        return None
    box_area = box[2] * box[3] if is_box(box) else -1.0
    return "area_of_box" if abs(area - box_area) <= 1e-3 * abs(box_area) else "area_differs"


def _warn_oddities(entry: dict, measured: Measured, place: Place, findings: Findings) -> None:
    code = area_oddity(entry, measured.area)
    if code and code != "area_field":  # that is an error, reported with the other fields
        findings.warn(code, place)
    if entry.get("iscrowd") is None:
        findings.warn("iscrowd_missing", place)
    elif entry["iscrowd"] == 1:
        findings.warn("crowd", place)
    if measured.clipped:
        findings.warn("polygon_clipped", place)
    if measured.subpixel:
        findings.warn("subpixel", place)
    if entry.get("keypoints"):
        findings.warn("keypoints", place)
