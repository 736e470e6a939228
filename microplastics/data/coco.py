"""COCO instance JSON: checked, as Detectron2 data set dicts, and as ground truth of evaluation.

A file is parsed and checked once a process and kept until it changes. ``coco_check`` says what
is refused and what is mended with a warning.
"""

import contextlib
import io
import logging
import os
import re
import reprlib
import threading
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from detectron2.data.catalog import MetadataCatalog
from detectron2.structures import BoxMode
from pycocotools.coco import COCO

from microplastics.data.images import image_header, size_mismatch
from microplastics.data.segmentation import (
    COORDINATE_LIMIT,
    NUMBERS,
    Measured,
    SegmentationError,
    measure,
    read_json,
)
from microplastics.utils.errors import UserError

# code: (what is wrong, how to mend it)
ERRORS = {
    "not_an_object": ("is not a JSON object", "export the file again"),
    "image_field": ("lacks a field or has one of the wrong type", "correct or export it again"),
    "image_duplicate": ("has an id that another image has", "give every image its own id"),
    "file_name": (
        "has a file_name that leaves the image folder",
        "write it relative to that folder, without ..",
    ),
    "category_field": ("lacks a field or has one of the wrong type", "correct or export it again"),
    "category_duplicate": ("has an id that another category has", "give every one its own id"),
    "category_same_name": (
        "has the name of another category, and both are used",
        "merge the two or rename one",
    ),
    "annotation_field": (
        "lacks a field or has one of the wrong type",
        "correct or export it again",
    ),
    "box_field": ("lacks a field or has one of the wrong type", "correct or export it again"),
    "area_field": ("lacks a field or has one of the wrong type", "correct or export it again"),
    "annotation_zero": (
        "has id 0, which makes pycocotools lose its match",
        "number the annotations from 1",
    ),
    "annotation_duplicate": (
        "has an id that another annotation has",
        "give every annotation its own id",
    ),
    "no_image": (
        "belongs to an image that is not in the file",
        "add the image or delete the annotation",
    ),
    "no_category": (
        "is of a category that is not in the file",
        "add the category or correct category_id",
    ),
    "ignore": ("has ignore set, which Detectron2 refuses", "set iscrowd to 1 instead or delete it"),
    "segmentation_empty": ("has an empty segmentation", "outline the particle or delete it"),
    "segmentation_type": (
        "has a segmentation that is neither polygons nor RLE",
        "export as COCO instance segmentation",
    ),
    "polygon_flat": (
        "has a segmentation of bare numbers",
        "write it as a list of polygons: [[x0, y0, x1, y1, ...]]",
    ),
    "polygon_points": ("has a polygon of fewer than 3 points", "outline it again or delete it"),
    "polygon_odd": (
        "has a polygon with an odd number of coordinates",
        "outline it again or delete it",
    ),
    "polygon_numbers": (
        "has a polygon with coordinates that are not finite numbers",
        "outline it again or delete it",
    ),
    "polygon_outside": (
        "has its polygon wholly outside the image",
        "check that it belongs to this image and that width and height are right",
    ),
    "outline_long": ("has an outline of impossible length", "outline it again or delete it"),
    "zero_area": ("has a segmentation of zero area", "outline it again or delete it"),
    "rle_size": (
        "has an RLE of another size than its image",
        "export the mask at the image's size, as [height, width]",
    ),
    "rle_counts": ("has a malformed RLE", "export the annotation again"),
    "rle_empty": ("has an RLE without a single pixel", "delete it or outline it again"),
    "image_file": ("cannot be used", "correct the file"),
    "image_missing": ("has no file", "copy the images there or correct the image folder"),
    "image_size": ("is of another size than its file", "correct the JSON or the file"),
}
WARNINGS = {
    "area_missing": "annotations without area; it is computed from the mask",
    "area_of_box": "annotations whose area is that of the box; the mask's is used",
    "area_differs": "annotations whose area is not that of the mask; the mask's is used",
    "iscrowd_missing": "annotations without iscrowd; taken as 0",
    "bbox_differs": "boxes that differ from their mask by over 2 px; the mask's are used",
    "bbox_xyxy": "boxes written as x0, y0, x1, y1; those of the masks are used",
    "polygon_clipped": "polygons reach out of the image; they are cut at its border",
    "subpixel": "annotations whose mask has no pixel; they can never be matched",
    "crowd": "annotations with iscrowd 1; training skips them, evaluation ignores them",
    "keypoints": "annotations with keypoints, which are not used",
    "annotation_twice": "annotations repeat another's image, box and category",
    "image_twice": "images name a file that another names",
    "image_blank": "images without annotations",
    "category_placeholder": "unused placeholder categories are left out",
    "category_unused": "categories without annotations",
}
EXAMPLES = 5
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 120


@dataclass
class Finding:
    """How often one kind of problem was found, and the first few places.

    Attributes:
        code: a key of ``ERRORS`` or ``WARNINGS``.
        count: how often.
        places: the first few, each with its detail in words.
    """

    code: str
    count: int = 0
    places: list[tuple["Place", str]] = field(default_factory=list)

    @property
    def examples(self) -> list[str]:
        """The first few places in words."""
        return [
            f"{place.short()}{f' ({detail})' if detail else ''}" for place, detail in self.places
        ]

    def __str__(self) -> str:
        words = WARNINGS.get(self.code) or ERRORS[self.code][0]
        more = "; …" if self.count > len(self.places) else ""
        return f"{self.count} x {words}: {'; '.join(self.examples)}{more}"


class Findings:
    """Collects errors and warnings by kind; the words are made for the first few alone."""

    def __init__(self) -> None:
        self.errors: dict[str, Finding] = {}
        self.warnings: dict[str, Finding] = {}
        self._first = ""

    def error(self, code: str, where: "Place", detail: str = "") -> None:
        """Count one error of a kind in ``ERRORS``."""
        finding = self.errors.setdefault(code, Finding(code))
        what, mend = ERRORS[code]
        if not self._first:
            self._first = f"{where} {what}{f' ({detail})' if detail else ''}: {mend}"
        self._count(finding, where, detail)

    def warn(self, code: str, where: "Place", detail: str = "") -> None:
        """Count one oddity of a kind in ``WARNINGS``."""
        self._count(self.warnings.setdefault(code, Finding(code)), where, detail)

    def raise_errors(self, json_file: str) -> None:
        """Raise a :class:`UserError` that names the first error and counts all by kind."""
        if not self.errors:
            return
        total = sum(finding.count for finding in self.errors.values())
        message = f"{json_file}: {self._first}."
        if total > 1:
            message += f" {total - 1} more problems:" if total > 2 else " One more problem:"
            kinds = list(self.errors.values())
            for finding in kinds[:EXAMPLES]:
                message += f"\n  {finding}"
            if len(kinds) > EXAMPLES:
                message += f"\n  and {len(kinds) - EXAMPLES} other kinds"
        raise UserError(message)

    @staticmethod
    def _count(finding: Finding, where: "Place", detail: str) -> None:
        finding.count += 1
        if len(finding.places) < EXAMPLES:
            finding.places.append((where, detail))


class Place:
    """Where something is wrong, put into words only when it is printed.

    Attributes:
        kind: ``"image"``, ``"category"`` or ``"annotation"``.
        index: position in its list of the JSON, from 0.
        entry: what stands there.
        image: the checked image that an annotation belongs to, or None.
    """

    __slots__ = ("kind", "index", "entry", "image")

    def __init__(self, kind: str, index: int, entry: Any, image: dict | None = None):
        self.kind, self.index, self.entry, self.image = kind, index, entry, image

    def short(self) -> str:
        """Words for a list of several places."""
        kind, index, entry, image = self.kind, self.index, self.entry, self.image
        id_ = entry.get("id") if isinstance(entry, dict) else None
        words = f"{kind} {show(id_)}" if id_ is not None else f"{kind} number {index + 1}"
        if kind != "annotation" and isinstance(entry, dict):
            name = entry.get("file_name" if kind == "image" else "name")
            words += f" ({show(name)})" if name is not None else ""
        elif image is not None:
            words += f" of image {image['id']}"
        return words

    def __str__(self) -> str:
        image = self.image
        return self.short() + (f" ({show(image['file_name'])})" if image is not None else "")


def show(value: Any) -> str:
    """Quote a stranger's value, shortened and printable."""
    return _REPR.repr(value)


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


__all__ = [
    "Report",
    "check_instances",
    "class_names",
    "coco_api",
    "coco_ground_truth",
    "contiguous_ids",
    "load_instances",
    "read_json",
]

logger = logging.getLogger(__name__)

_CACHED_FILES = 8


@dataclass(frozen=True)
class Report:
    """What :func:`check_instances` found in a data set that can be used.

    Attributes:
        json_file: the COCO JSON.
        image_root: its image folder.
        num_images: images in the JSON.
        num_annotations: annotations in the JSON.
        classes: class names by contiguous id.
        instances_per_class: annotations of each class, crowds included.
        warnings: oddities: ``code``, ``count``, ``examples`` of the first few places.
    """

    json_file: str
    image_root: str
    num_images: int
    num_annotations: int
    classes: list[str]
    instances_per_class: dict[str, int]
    warnings: list[Finding]


def check_instances(
    json_file: str,
    image_root: str,
    num_classes: int | None = None,
    *,
    training: bool = False,
    max_pixels: int | None = None,
) -> Report:
    """Check a data set before it is used: the JSON, and the header of every image.

    Oddities are logged, one line a kind, once for each state of the file.

    Args:
        json_file: COCO instance JSON.
        image_root: folder that its ``file_name`` are relative to.
        num_classes: ``MODEL.ROI_HEADS.NUM_CLASSES``, or None not to compare it.
        training: also refuse a data set in which no image has an annotation to learn from.
        max_pixels: images of more pixels are refused; Pillow's bound of 178,956,970 if None.

    Raises:
        UserError: naming file, annotation and mend of the first error, and the number of errors
            of each kind.
    """
    json_file, image_root = os.fspath(json_file), os.fspath(image_root)
    checked = _checked(json_file)
    _log_warnings(json_file, checked)
    names = [category["name"] for category in checked.categories]
    if num_classes is not None and len(names) != num_classes:
        raise UserError(
            f"{json_file} has {len(names)} classes ({', '.join(names)}) but "
            f"MODEL.ROI_HEADS.NUM_CLASSES is {num_classes}; set MODEL.ROI_HEADS.NUM_CLASSES "
            f"{len(names)} or correct the categories of the JSON."
        )
    if training and all(annotation["iscrowd"] for annotation in checked.annotations):
        raise UserError(
            f"{json_file} has no annotation to train on (none at all, or all with iscrowd 1); "
            "annotate some of its images, or, where they are blanks, name it after a set with "
            "particles and set DATALOADER.FILTER_EMPTY_ANNOTATIONS False."
        )
    check_files(json_file, checked.images, image_root, max_pixels)
    counts = Counter(annotation["category_id"] for annotation in checked.annotations)
    return Report(
        json_file=json_file,
        image_root=image_root,
        num_images=len(checked.images),
        num_annotations=len(checked.annotations),
        classes=names,
        instances_per_class={c["name"]: counts[c["id"]] for c in checked.categories},
        warnings=list(checked.warnings),
    )


def load_instances(
    json_file: str, image_root: str, dataset_name: str | None = None
) -> list[dict[str, Any]]:
    """Load a COCO JSON as Detectron2 data set dicts, as ``load_coco_json`` does.

    Unlike there, ``area`` and ``iscrowd`` may be missing, boxes that differ from their mask by
    more than 2 px are those of the mask, polygons end at the image's border, Roboflow's
    placeholder category is left out, and category ids are always contiguous. Nothing else is
    left out: what cannot be used is an error.

    Args:
        json_file: COCO instance JSON.
        image_root: folder that its ``file_name`` are relative to.
        dataset_name: puts ``thing_classes`` and ``thing_dataset_id_to_contiguous_id`` into the
            metadata of this data set, if given.

    Returns:
        For each image, by ascending id: ``file_name``, ``height``, ``width``, ``image_id``,
        ``annotations`` with ``bbox`` (XYWH, px), ``bbox_mode``, ``segmentation`` (polygons in px
        or compressed RLE of the whole image), ``category_id`` (from 0, by ascending id of the
        JSON), ``iscrowd``, ``id``.

    Raises:
        UserError: the JSON cannot be used.
    """
    json_file, image_root = os.fspath(json_file), os.fspath(image_root)
    checked = _checked(json_file)
    _log_warnings(json_file, checked)
    ids = {category["id"]: index for index, category in enumerate(checked.categories)}
    if dataset_name is not None:
        _set_metadata(dataset_name, json_file, [c["name"] for c in checked.categories], ids)
    by_image = defaultdict(list)
    for annotation in checked.annotations:
        by_image[annotation["image_id"]].append(
            {
                "id": annotation["id"],
                "iscrowd": annotation["iscrowd"],
                "bbox": list(annotation["bbox"]),
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": ids[annotation["category_id"]],
                "segmentation": _copied(annotation["segmentation"]),
            }
        )
    return [
        {
            "file_name": os.path.join(image_root, image["file_name"]),
            "height": image["height"],
            "width": image["width"],
            "image_id": image["id"],
            "annotations": by_image[image["id"]],
        }
        for image in checked.images
    ]


def coco_ground_truth(json_file: str) -> dict[str, Any]:
    """Return a COCO dict for evaluation, with nothing that makes an evaluator stumble.

    Categories, boxes and segmentations are those of :func:`load_instances`, with the ids of the
    JSON. ``area`` is the number of pixels of the mask, so that small, medium and large are told
    by mask; ``iscrowd`` is 0 where it was missing.

    Args:
        json_file: COCO instance JSON.

    Returns:
        dict with ``info``, ``images``, ``categories``, ``annotations``; it can be written as
        JSON.

    Raises:
        UserError: the JSON cannot be used.
    """
    checked = _checked(os.fspath(json_file))
    annotations = []
    for annotation in checked.annotations:
        segmentation = _copied(annotation["segmentation"])
        if isinstance(segmentation, dict) and isinstance(segmentation["counts"], bytes):
            segmentation["counts"] = segmentation["counts"].decode("ascii")
        annotations.append(
            {**annotation, "bbox": list(annotation["bbox"]), "segmentation": segmentation}
        )
    return {
        "info": {},
        "images": [dict(image) for image in checked.images],
        "categories": [dict(category) for category in checked.categories],
        "annotations": annotations,
    }


def coco_api(json_file: str) -> COCO:
    """Return :func:`coco_ground_truth` as an indexed ``pycocotools`` object, without its prints.

    Raises:
        UserError: the JSON cannot be used.
    """
    api = COCO()
    api.dataset = coco_ground_truth(json_file)
    with contextlib.redirect_stdout(io.StringIO()):
        api.createIndex()
    return api


def class_names(json_file: str) -> list[str]:
    """Return the class names of a COCO JSON by contiguous id.

    Raises:
        UserError: the JSON cannot be used.
    """
    return [category["name"] for category in _checked(os.fspath(json_file)).categories]


def contiguous_ids(json_file: str) -> dict[int, int]:
    """Return the contiguous id (from 0, by ascending id) of each category id of a COCO JSON.

    Raises:
        UserError: the JSON cannot be used.
    """
    categories = _checked(os.fspath(json_file)).categories
    return {category["id"]: index for index, category in enumerate(categories)}


# Path -> (state of the file, content); the latest used last.
_cache: OrderedDict[str, tuple[tuple[int, ...], CheckedInstances]] = OrderedDict()
_cache_lock = threading.Lock()


def _checked(json_file: str) -> CheckedInstances:
    """Parse and check a JSON, or return what was kept of it. The result must not be changed."""
    key = os.path.abspath(json_file)
    state = _file_state(json_file)
    with _cache_lock:
        if key in _cache and _cache[key][0] == state:
            _cache.move_to_end(key)
            return _cache[key][1]
    checked = check_content(json_file, read_json(json_file))
    with _cache_lock:
        # Of two states of one file only the newer is kept; broken files are not kept at all.
        _cache[key] = (state, checked)
        _cache.move_to_end(key)
        while len(_cache) > _CACHED_FILES:
            _cache.popitem(last=False)
    return checked


def _file_state(json_file: str) -> tuple[int, ...]:
    try:
        status = os.stat(json_file)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"Cannot read {json_file}: {reason}; correct the path.") from error
    return status.st_mtime_ns, status.st_size, status.st_ino


def _log_warnings(json_file: str, checked: CheckedInstances) -> None:
    if not checked.logged:
        checked.logged = True
        for finding in checked.warnings:
            logger.warning("%s: %s", json_file, finding)


def _copied(segmentation: list | dict) -> list | dict:
    """Copy a segmentation, so that a caller's changes do not reach what is kept."""
    if isinstance(segmentation, dict):
        return dict(segmentation)
    return [list(polygon) for polygon in segmentation]


def _set_metadata(name: str, json_file: str, classes: list[str], ids: dict[int, int]) -> None:
    metadata = MetadataCatalog.get(name)
    try:
        metadata.set(thing_classes=classes, thing_dataset_id_to_contiguous_id=ids)
    except AssertionError as error:
        raise UserError(
            f"The classes of {json_file} are {classes}, but the metadata of data set {name!r} "
            "already says otherwise; choose another name, or start Python anew after changing "
            "the JSON."
        ) from error
