"""Loading and checking of COCO instance JSON.

A file is parsed, checked and kept until it changes. Errors are refused; oddities are corrected and
logged.
"""

import contextlib
import csv
import functools
import io
import logging
import os
import re
import reprlib
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from detectron2.structures import BoxMode
from pycocotools.coco import COCO

from microplastics.data.images import image_header, size_mismatch
from microplastics.data.segmentation import (
    COORDINATE_LIMIT,
    NUMBERS,
    Measured,
    SegmentationError,
    measure,
)
from microplastics.measurement.shape import find_fiber_classes
from microplastics.utils.errors import UserError
from microplastics.utils.io import read_json

logger = logging.getLogger(__name__)

# The words of each code are the doctor's.
with open(Path(__file__).with_name("doctor") / "codes.csv", newline="", encoding="utf-8") as _file:
    CODES = list(csv.DictReader(_file))
ERRORS = {row["code"]: row["what"] for row in CODES if row["severity"] == "problem"}
WARNINGS = {row["code"]: row["what"] for row in CODES if row["severity"] != "problem"}
EXAMPLES = 5
ID_LIMIT = 2**53  # evaluation keeps ids as float64
_PIXEL_LIMIT = 2**31  # pycocotools counts the pixels of a mask in 32 bits
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
_LONGEST_CLASS, _MOST_CLASSES = 200, 500
_BOX_TOLERANCE = 2.0
_AREA_TOLERANCE = 0.2  # of the mask's area
_AREA_TOLERANCE_PX = 10.0
_CACHED_FILES = 8
# Codes of UserError; all others are annotations_invalid.
_USER_CODES = {code: code for code in ("image_missing", "image_size")}
_USER_CODES["image_file"] = "image_invalid"
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 120


def show(value: Any) -> str:
    """Quote an untrusted value, shortened and printable."""
    return _REPR.repr(value)


def same_but_case(names: Iterable[str]) -> list[list[str]]:
    """Return the groups of class names that differ in case or spaces only."""
    groups: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        groups.setdefault(" ".join(name.split()).casefold(), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


class Place(NamedTuple):
    """An entry of a COCO JSON, described only if it is printed."""

    kind: str  # "image", "category" or "annotation"
    index: int  # in its list of the JSON
    entry: Any
    image: dict | None = None  # the checked image that an annotation belongs to

    def __str__(self) -> str:
        id_ = self.entry.get("id") if isinstance(self.entry, dict) else None
        words = f"{self.kind} {show(id_)}" if id_ is not None else f"{self.kind} #{self.index + 1}"
        if self.kind != "annotation" and isinstance(self.entry, dict):
            name = self.entry.get("file_name" if self.kind == "image" else "name")
            words += f" ({show(name)})" if name is not None else ""
        elif self.image is not None:
            words += f" of image {self.image['id']} ({show(self.image['file_name'])})"
        return words


@dataclass
class Tally:
    """Number of problems of one kind, with the first few places and a detail in words of each."""

    code: str
    count: int = 0
    places: list[tuple[Place, str]] = field(default_factory=list)

    def __str__(self) -> str:
        places = [f"{place} ({words})" if words else str(place) for place, words in self.places]
        what = ERRORS.get(self.code) or WARNINGS[self.code]
        return f"{self.count} x {what}: {'; '.join(places)}{'; …' * (self.count > len(places))}"


@dataclass
class Findings:
    """Errors and warnings by code."""

    errors: dict[str, Tally] = field(default_factory=dict)
    warnings: dict[str, Tally] = field(default_factory=dict)

    def add(self, code: str, place: Place, detail: str = "") -> None:
        """Count a problem; ``code`` is in ``ERRORS`` or ``WARNINGS``."""
        tally = (self.errors if code in ERRORS else self.warnings).setdefault(code, Tally(code))
        tally.count += 1
        if len(tally.places) < EXAMPLES:
            tally.places.append((place, detail))

    def raise_errors(self, json_file: str) -> None:
        """Raise a :class:`UserError` that names the first error and counts all by code."""
        if self.errors:
            first = next(iter(self.errors.values()))
            kinds = ", ".join(f"{tally.count} {code}" for code, tally in self.errors.items())
            raise UserError(
                f"{json_file}: {first}; correct them, as `microplastics check` explains ({kinds}).",
                code=_USER_CODES.get(first.code, "annotations_invalid"),
            )


class MeasuredEntry(NamedTuple):
    """An annotation of the JSON, its checked image, its measured mask, and if it is a repeat."""

    index: int
    entry: dict[str, Any]
    image: dict[str, Any]
    measured: Measured
    repeated: bool


@dataclass
class Examined:
    """Content of a COCO JSON; every value has its right type.

    Attributes:
        findings: errors and oddities.
        images: dicts of id, file_name, height, width, by id. With errors: one without a usable
            size has the key ``invalid``, and ``file_name`` may be anything
            (see :func:`is_safe_name`).
        categories: dicts of id, name, supercategory; by ascending id, without placeholders.
        annotations: the sound ones, dicts of id, image_id, category_id, bbox, area, iscrowd,
            segmentation, in the order of the file; area and segmentation as measured by
            ``segmentation.measure``.
        measured: every annotation whose segmentation can be measured.
    """

    findings: Findings
    images: dict[int, dict[str, Any]]
    categories: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    measured: list[MeasuredEntry]

    @property
    def classes(self) -> list[str]:
        """Class names by contiguous id."""
        return [category["name"] for category in self.categories]

    @property
    def fiber_classes(self) -> list[str]:
        """Classes that are fibres by their names or supercategories."""
        return find_fiber_classes({each["name"]: each["supercategory"] for each in self.categories})

    @property
    def contiguous_ids(self) -> dict[int, int]:
        """Contiguous id (from 0, by ascending id) of each category id."""
        return {category["id"]: index for index, category in enumerate(self.categories)}


def check_instances(
    json_file: str, image_root: str, *, training: bool = False, max_pixels: int | None = None
) -> Examined:
    """Check the JSON of a data set and the header of every image.

    Args:
        json_file: COCO instance JSON.
        image_root: folder that its ``file_name`` are relative to.
        training: also refuse a data set without an annotation to learn from.
        max_pixels: images of more pixels are refused; Pillow's limit of 178,956,970 if None.

    Returns:
        The content without ``measured``, which must not be changed.

    Raises:
        UserError: ``annotations_invalid``, ``image_missing``, ``image_size``, … naming the first
            error and the number of errors of each kind; ``dataset_empty``.
    """
    checked = checked_instances(json_file)
    if training and all(annotation["iscrowd"] for annotation in checked.annotations):
        raise UserError(
            f"{json_file} has no annotation to train on (none, or only with iscrowd 1); annotate "
            "some of its images, or, if these are blank images, list it after a data set with "
            "annotations and set DATALOADER.FILTER_EMPTY_ANNOTATIONS False.",
            code="dataset_empty",
        )
    check_image_root(json_file, image_root)
    findings = Findings()
    for image in checked.images.values():
        problem = file_problem(image, image_root, max_pixels)
        if problem:
            findings.add(problem[0], Place("image", 0, image), problem[1])
    findings.raise_errors(json_file)
    return checked


def load_instances(json_file: str, image_root: str) -> list[dict[str, Any]]:
    """Load a COCO JSON as Detectron2 data set dicts, as ``load_coco_json`` does.

    In addition, ``area`` and ``iscrowd`` may be missing, boxes that differ from their mask by
    more than 2 px are replaced, polygons are clipped at the image's border, Roboflow's
    placeholder category is left out, and category ids are always made contiguous. Nothing else
    is left out: an entry that cannot be used is an error.

    Args:
        json_file: COCO instance JSON.
        image_root: folder that its ``file_name`` are relative to.

    Returns:
        For each image, by ascending id: ``file_name``, ``height``, ``width``, ``image_id``,
        ``annotations`` with ``bbox`` (XYWH, px), ``bbox_mode``, ``segmentation`` (polygons in px
        or compressed RLE of the whole image), ``category_id`` (from 0, by ascending id of the
        JSON), ``iscrowd``, ``id``.

    Raises:
        UserError: the JSON cannot be used.
    """
    checked = checked_instances(json_file)
    ids = checked.contiguous_ids
    by_image = defaultdict(list)
    for annotation in map(_copied, checked.annotations):
        del annotation["area"]
        annotation["bbox_mode"] = BoxMode.XYWH_ABS
        annotation["category_id"] = ids[annotation["category_id"]]
        by_image[annotation.pop("image_id")].append(annotation)
    return [
        {
            "file_name": os.path.join(os.fspath(image_root), image["file_name"]),
            "height": image["height"],
            "width": image["width"],
            "image_id": id_,
            "annotations": by_image[id_],
        }
        for id_, image in sorted(checked.images.items())
    ]


def coco_api(json_file: str) -> COCO:
    """Return the checked content as an indexed ``pycocotools`` object, without its prints.

    Categories, boxes and segmentations are as in :func:`load_instances`, with the ids of the
    JSON. ``area`` is the number of pixels of the mask, from which evaluators tell small, medium
    and large; ``iscrowd`` is 0 if it was missing. ``dataset`` can be written as JSON.

    Raises:
        UserError: the JSON cannot be used.
    """
    checked = checked_instances(json_file)
    annotations = [_copied(annotation) for annotation in checked.annotations]
    for annotation in annotations:
        segmentation = annotation["segmentation"]
        if isinstance(segmentation, dict) and isinstance(segmentation["counts"], bytes):
            segmentation["counts"] = segmentation["counts"].decode("ascii")
    api = COCO()
    api.dataset = {
        "info": {},
        "images": [dict(image) for _, image in sorted(checked.images.items())],
        "categories": [dict(category) for category in checked.categories],
        "annotations": annotations,
    }
    with contextlib.redirect_stdout(io.StringIO()):
        api.createIndex()
    return api


def checked_instances(json_file: str) -> Examined:
    """Parse and check a COCO JSON without its images, or return the result kept from before.

    Returns:
        The content without ``measured``, which must not be changed.

    Raises:
        UserError: the JSON cannot be used.
    """
    json_file, state = os.fspath(json_file), ()
    with contextlib.suppress(OSError, ValueError):  # read_json describes them
        status = os.stat(json_file)
        state = status.st_mtime_ns, status.st_size, status.st_ino
    return _parsed(json_file, state)


@functools.lru_cache(maxsize=_CACHED_FILES)
def _parsed(json_file: str, _state: tuple[int, ...]) -> Examined:
    """Check a JSON and log its oddities, one line per kind."""
    checked = check_content(json_file, read_json(json_file))
    for tally in checked.findings.warnings.values():
        logger.warning("%s: %s", json_file, tally)
    return checked


def _copied(annotation: dict[str, Any]) -> dict[str, Any]:
    """Copy an annotation, so that changes by a caller do not reach the cache."""
    mask = annotation["segmentation"]
    mask = dict(mask) if isinstance(mask, dict) else [list(polygon) for polygon in mask]
    return {**annotation, "bbox": list(annotation["bbox"]), "segmentation": mask}


def check_content(json_file: str, data: dict[str, Any]) -> Examined:
    """Check the content of a JSON, which is not changed, without its image files.

    Raises:
        UserError: ``annotations_invalid``, naming the first errors and counting all by kind.
    """
    problem = structure_problem(data)
    if problem:
        raise UserError(f"{json_file} {problem}.", code="annotations_invalid")
    examined = examine(data)
    examined.findings.raise_errors(json_file)
    examined.measured.clear()  # only the doctor needs the entries of the file
    return examined


def structure_problem(data: dict[str, Any]) -> str | None:
    """Describe a JSON object without the three lists of COCO, or with too many classes, or None."""
    for key in ("images", "annotations", "categories"):
        if not isinstance(data.get(key), list):
            return (
                f"has no list {key!r}; export as COCO instance segmentation (images, annotations, "
                "categories)"
            )
        if not data[key] and key != "annotations":
            return f"has an empty list {key!r}; export the data set again"
    if len(data["categories"]) > _MOST_CLASSES:
        return f"has {len(data['categories'])} categories; expected at most {_MOST_CLASSES}"
    return None


def examine(data: dict[str, Any]) -> Examined:
    """Find all errors and oddities in a JSON for which :func:`structure_problem` is None."""
    findings = Findings()
    images = check_images(data["images"], findings)
    categories = check_categories(data["categories"], findings)
    annotations, measured = _check_annotations(data["annotations"], images, categories, findings)
    # Even a broken annotation shows that its category is not a placeholder and that its image
    # is not blank.
    entries = list(objects_of(data["annotations"]))
    used = {key_of(entry.get("category_id")) for entry in entries}
    annotated = {key_of(entry.get("image_id")) for entry in entries}
    kept = drop_placeholders(categories, used, findings)
    for id_, image in images.items():
        if id_ not in annotated:
            findings.add("image_blank", Place("image", 0, image))
    return Examined(findings, images, kept, annotations, measured)


def objects_of(entries: list) -> Iterator[dict]:
    """Yield the entries of an untrusted list that are JSON objects."""
    return (entry for entry in entries if isinstance(entry, dict))


def is_id(value: Any) -> bool:
    """Return whether an untrusted value can be an id."""
    return type(value) is int and 0 <= value < ID_LIMIT


def key_of(value: Any) -> int | None:
    """Return an untrusted value if it can be an id, else None."""
    return value if is_id(value) else None


def field_error(entry: dict, key: str, expected: str) -> str:
    """Describe a field that is missing or has the wrong type."""
    return f"{key} is {show(entry[key])}; expected {expected}" if key in entry else f"no {key}"


def is_printable(value: Any) -> bool:
    """Return whether a value is text that is not blank and has no control characters."""
    return isinstance(value, str) and bool(value.strip()) and not _UNPRINTABLE.search(value)


def is_class_name(value: Any) -> bool:
    """Return whether a value can be a class name, which tables and plots can show."""
    return is_printable(value) and len(value) <= _LONGEST_CLASS


def is_safe_name(value: Any) -> bool:
    """Return whether an untrusted value names a file inside the image folder."""
    if not is_printable(value):
        return False
    parts = re.split(r"[/\\]", value)
    return bool(parts[0]) and not re.match(r"[A-Za-z]:", value) and ".." not in parts


def check_images(entries: list, findings: Findings) -> dict[int, dict[str, Any]]:
    """Return the images with a usable id, by id."""
    images: dict[int, dict[str, Any]] = {}
    names: set[str] = set()
    for index, entry in enumerate(entries):
        place = Place("image", index, entry)
        if not _check_id(place, images, findings):
            continue
        image = {key: entry.get(key) for key in ("id", "file_name", "height", "width")}
        images[image["id"]] = image
        problems = [
            field_error(entry, key, "a positive integer")
            for key in ("width", "height")
            if type(image[key]) is not int or image[key] < 1
        ]
        if not problems and image["width"] * image["height"] >= _PIXEL_LIMIT:
            problems = [f"{show(image['width'])} x {show(image['height'])} px is too large"]
        for problem in problems:
            findings.add("image_field", place, problem)
            image["invalid"] = True
        name = image["file_name"]
        if not is_printable(name):
            findings.add("image_field", place, field_error(entry, "file_name", "a file name"))
        elif not is_safe_name(name):
            findings.add("file_name", place)
        if isinstance(name, str):
            name = name and os.path.normpath(name)  # ./a is a
            if name in names:
                findings.add("image_twice", place)
            names.add(name)
    return images


def _check_id(place: Place, known: Container[int], findings: Findings) -> bool:
    """Check that an entry is an object with an id of its own."""
    id_ = place.entry.get("id") if isinstance(place.entry, dict) else None
    if not isinstance(place.entry, dict):
        findings.add("not_an_object", place)
    elif not is_id(id_):
        findings.add(
            f"{place.kind}_field", place, field_error(place.entry, "id", "an integer from 0")
        )
    elif id_ in known:
        findings.add(f"{place.kind}_duplicate", place)
    elif id_ == 0 and place.kind == "annotation":
        findings.add("annotation_zero", place)
    else:
        return True
    return False


def check_categories(entries: list, findings: Findings) -> dict[int, dict[str, Any]]:
    """Return the categories with a usable id, by ascending id."""
    categories: dict[int, dict[str, Any]] = {}
    for index, entry in enumerate(entries):
        place = Place("category", index, entry)
        if not _check_id(place, categories, findings):
            continue
        name, group = entry.get("name"), entry.get("supercategory")
        if not is_class_name(name):
            expected = f"a name of at most {_LONGEST_CLASS} characters"
            findings.add("category_field", place, field_error(entry, "name", expected))
            name = ""
        group = group if isinstance(group, str) else ""
        categories[entry["id"]] = {"id": entry["id"], "name": name, "supercategory": group}
    return dict(sorted(categories.items()))


def drop_placeholders(
    categories: dict[int, dict[str, Any]], used: set[int], findings: Findings
) -> list[dict[str, Any]]:
    """Leave out the placeholder that Roboflow writes at id 0, in every split alike.

    It is an unused category with the name of another one, or with the name that is the
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
            findings.add("category_same_name", Place("category", 0, category))
        dropped.update(c["id"] for c in group if c["id"] not in {k["id"] for k in kept})
    first = categories.get(0)
    if first and len(categories) > 1 and 0 not in used and first["supercategory"] == "none":
        others = {c["supercategory"] for c in categories.values() if c["id"] != 0}
        if others == {first["name"]}:
            dropped.add(0)
    for category in categories.values():
        if category["id"] in dropped:
            findings.add("category_placeholder", Place("category", 0, category))
        elif category["id"] not in used:
            findings.add("category_unused", Place("category", 0, category))
    return [category for category in categories.values() if category["id"] not in dropped]


def check_image_root(json_file: str, image_root: str) -> None:
    """Raise ``file_missing`` unless the image folder of a JSON exists."""
    if not os.path.isdir(image_root):
        raise UserError(
            f"The image folder {image_root} of {json_file} does not exist; correct the path.",
            code="file_missing",
        )


def pair_image_roots(
    json_files: Sequence[str | os.PathLike], image_roots: Sequence[str | os.PathLike]
) -> list[tuple[str, str]]:
    """Give each annotation file its image folder: its own, or the one for all.

    Raises:
        UserError: ``option_invalid`` for another number of folders, ``option_conflict`` for a
            file given twice.
    """
    known: set[str] = set()
    for path in json_files:
        if os.path.realpath(path) in known:
            raise UserError(
                f"{path} is given twice; name every annotation file once.", code="option_conflict"
            )
        known.add(os.path.realpath(path))
    roots = list(image_roots) * (len(json_files) if len(image_roots) == 1 else 1)
    if len(roots) != len(json_files):
        raise UserError(
            f"--images names {len(roots)} folders for {len(json_files)} annotation files; give "
            "one for all, or one for each in the same order.",
            code="option_invalid",
        )
    return [
        (os.fspath(path), os.fspath(root)) for path, root in zip(json_files, roots, strict=True)
    ]


def file_problem(
    image: dict[str, Any], image_root: str, max_pixels: int | None
) -> tuple[str, str] | None:
    """Compare an image of :class:`Examined` with the header of its file.

    Returns:
        (code in ``ERRORS``, detail in words), or None.
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
    annotations, every, ids, seen = [], [], set(), set()
    for index, entry in enumerate(entries):
        image = images.get(key_of(entry.get("image_id"))) if isinstance(entry, dict) else None
        place = Place("annotation", index, entry, image)
        sound = _check_id(place, ids, findings)
        if not isinstance(entry, dict):
            continue
        if sound:
            ids.add(entry["id"])
        sound &= _check_fields(place, categories, findings)
        if image is None or "invalid" in image:
            continue
        try:
            measured = measure(entry["segmentation"], image["height"], image["width"])
        except KeyError:
            findings.add("annotation_field", place, "no segmentation")
            continue
        except SegmentationError as error:
            findings.add(error.code, place, error.detail)
            continue
        repeated = is_repeated(entry, measured, seen)
        box = _warn_oddities(place, measured, repeated, findings)
        every.append(MeasuredEntry(index, entry, image, measured, repeated))
        if sound:
            annotation = {key: entry[key] for key in ("id", "image_id", "category_id")}
            annotation |= {"bbox": box, "area": measured.area, "iscrowd": entry.get("iscrowd") or 0}
            annotations.append({**annotation, "segmentation": measured.segmentation})
    return annotations, every


def is_box(value: Any) -> bool:
    """Return whether an untrusted value is four finite numbers of sensible size."""
    return type(value) is list and len(value) == 4 and all(map(_is_number, value))


def _is_area(value: Any) -> bool:
    return type(value) in NUMBERS and 0 <= value <= COORDINATE_LIMIT**2


def _is_number(value: Any) -> bool:
    # The comparison is False for NaN.
    return type(value) in NUMBERS and -COORDINATE_LIMIT <= value <= COORDINATE_LIMIT


# key of an annotation: (code in ERRORS, check, what is expected)
_FIELDS = {
    "image_id": ("annotation_field", is_id, "the id of an image"),
    "category_id": ("annotation_field", is_id, "the id of a category"),
    "bbox": ("box_field", is_box, "[x, y, width, height] in px"),
    "area": ("area_field", lambda v: v is None or _is_area(v), "a number of pixels"),
    "iscrowd": (
        "annotation_field",
        lambda v: v is None or (type(v) is int and v in (0, 1)),
        "0 or 1",
    ),
}


def _check_fields(place: Place, categories: dict[int, dict[str, Any]], findings: Findings) -> bool:
    """Check all fields but the id and the segmentation; return whether they are sound."""
    entry = place.entry
    problems = [
        (code, field_error(entry, key, expected))
        for key, (code, is_valid, expected) in _FIELDS.items()
        if not is_valid(entry.get(key))
    ]
    if place.image is None and is_id(entry.get("image_id")):
        problems.append(("no_image", f"image_id {show(entry['image_id'])}"))
    if is_id(entry.get("category_id")) and entry["category_id"] not in categories:
        problems.append(("no_category", f"category_id {show(entry['category_id'])}"))
    if entry.get("ignore"):
        problems.append(("ignore", ""))
    for code, detail in problems:
        findings.add(code, place, detail)
    return not problems


def _warn_oddities(
    place: Place, measured: Measured, repeated: bool, findings: Findings
) -> list[float]:
    """Count the oddities of an annotation; return its box, or that of its mask if they differ."""
    entry = place.entry
    box = entry["bbox"] if is_box(entry.get("bbox")) else None
    differs = box_oddity(box, measured.box) if box else None
    area = area_oddity(entry, measured.area)
    codes = [
        differs,
        area if area != "area_field" else None,  # an error, counted with the other fields
        "iscrowd_missing" if entry.get("iscrowd") is None else None,
        "crowd" if entry.get("iscrowd") == 1 else None,
        "polygon_clipped" if measured.clipped else None,
        "subpixel" if measured.subpixel else None,
        "keypoints" if entry.get("keypoints") else None,
        "annotation_twice" if repeated else None,
    ]
    for code in filter(None, codes):
        findings.add(code, place)
    return list(measured.box) if differs or not box else box


def box_oddity(box: list[float], true: tuple[float, ...]) -> str | None:
    """Return the code in ``WARNINGS`` for a box unlike its mask's (XYWH in px), or None."""
    x, y, width, height = box
    corners = (true[0], true[1], true[0] + true[2], true[1] + true[3])
    if _close((x, y, x + width, y + height), corners) and width > 0 and height > 0:
        return None
    return "bbox_xyxy" if _close(box, corners) else "bbox_differs"


def _close(one: Iterable[float], other: Iterable[float]) -> bool:
    return all(abs(a - b) <= _BOX_TOLERANCE for a, b in zip(one, other, strict=True))


def area_oddity(entry: dict, true: float) -> str | None:
    """Return the code in ``WARNINGS`` or ``ERRORS`` for an area unlike its mask's, or None."""
    area, box = entry.get("area"), entry.get("bbox")
    if area is None:
        return "area_missing"
    if not _is_area(area):
        return "area_field"
    if abs(area - true) <= max(_AREA_TOLERANCE * true, _AREA_TOLERANCE_PX):
        return None
    box_area = box[2] * box[3] if is_box(box) else -1.0
    return "area_of_box" if abs(area - box_area) <= 1e-3 * abs(box_area) else "area_differs"


def is_repeated(entry: dict, measured: Measured, seen: set[tuple]) -> bool:
    """Return whether an earlier annotation has the same image, category, iscrowd and mask.

    ``seen`` keeps the state between calls; start with an empty set.
    """
    outline = measured.segmentation
    if isinstance(outline, dict):
        outline = outline["counts"]
    else:
        outline = tuple(map(tuple, outline))
    category, crowd = key_of(entry.get("category_id")), show(entry.get("iscrowd") or 0)
    # The hash of an outline needs less memory; with box and area it is unique.
    key = (entry["image_id"], category, crowd, measured.box, measured.area, hash(outline))
    repeated = key in seen
    seen.add(key)
    return repeated
