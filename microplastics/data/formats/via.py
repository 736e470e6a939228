"""VGG Image Annotator: projects of VIA 2 and 3, and the annotations of VIA 2 as JSON or CSV.

VIA's own COCO export is unreliable, and no maintained library reads VIA 3.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from microplastics.data.coco import show
from microplastics.data.formats import layout, shapes
from microplastics.data.formats.base import ImageRecord, Notes, ReadOptions, Source
from microplastics.data.formats.layout import class_name
from microplastics.data.formats.masks import DEFAULT_CLASS
from microplastics.data.formats.shapes import ShapeError
from microplastics.utils.errors import UserError
from microplastics.utils.io import read_table

_CSV = frozenset((".csv",))
_COLUMNS = ("filename", "file_attributes", "region_shape_attributes", "region_attributes")
_MEANING = "a project or annotation export of VIA; save the project, or export annotations as JSON"
_CLASS_ATTRIBUTES = ("class", "label", "type", "name", "category")
_KINDS: dict[str | int, str] = {
    **{"point": "point", "rect": "box", "circle": "circle", "ellipse": "ellipse"},
    **{"polyline": "line", "polygon": "polygon"},
    # _VIA_RSHAPE of VIA 3, the first number of ``xy``.
    **{1: "point", 2: "box", 3: "circle", 4: "ellipse", 5: "line", 6: "line", 7: "polygon"},
    **{8: "extreme_rect", 9: "extreme_circle"},  # points on the outline
}
_CHECKBOX_3 = 2  # _VIA_ATTRIBUTE_TYPE of VIA 3
_NUMBERS = {
    "rect": ("x", "y", "width", "height"),
    "circle": ("cx", "cy", "r"),
    "ellipse": ("cx", "cy", "rx", "ry", "theta"),
}


@dataclass
class _Region:
    """A drawn region."""

    kind: Any  # unchecked, as is the list of numbers
    values: Any
    attributes: dict[str, Any]


@dataclass
class _Picture:
    """An image with its regions: its path or URL, a second name, and attributes of the image."""

    name: Any
    other: Any = None
    regions: list[_Region] = field(default_factory=list)
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass
class _Attribute:
    """A region attribute: the words of its options by id, in their order."""

    options: dict[str, str] = field(default_factory=dict)
    default: Any = None
    joined_ids: bool = False

    def labels(self, value: Any) -> list[str]:
        """Return the class names that a value means."""
        value = self.default if value is None else value
        if isinstance(value, dict):  # VIA 2's check boxes
            ids = [key for key, chosen in value.items() if chosen]
        elif self.joined_ids and isinstance(value, str):
            ids = [part.strip() for part in value.split(",")]
        else:
            ids = [value]
        names = (self.options.get(i, i) if isinstance(i, str) else i for i in ids)
        return [name for name in map(class_name, names) if name is not None]


def detect(path: Path) -> bool:
    """Return whether a file, or one of the first below a folder, is a VIA project or export."""

    def matches(text: bytes) -> bool:
        if b'"_via_img_metadata":' in text or b'"_via_settings":' in text:
            return True
        if b'"vid_list":' in text and b'"project":' in text:
            return True
        export = re.match(rb'\{"[^"]*":\{"', text) is not None
        return export and b'"filename":' in text and b'"regions":' in text

    return layout.sniff(path, matches) or layout.sniff(path, _is_csv, _CSV)


def _is_csv(text: bytes) -> bool:
    return b"region_shape_attributes" in text or b"CSV_HEADER=metadata_id" in text


def read(path: Path, options: ReadOptions, notes: Notes) -> dict[str, Source]:
    """Open a VIA JSON or CSV, or a folder of them (see ``base.Reader.read``).

    The class of a region is its only attribute, or the one called class, label, type, name or
    category; ids of options become their words. Circles and ellipses become polygons of the same
    area; lines get ``options.line_width``. VIA stores no image sizes: the sizes of the files are
    used.
    """
    return layout.read_splits(_Reader, path, options, notes)


class _Reader(layout.FileReader):
    suffixes = frozenset((".json", *_CSV))
    meaning = _MEANING

    def __init__(self, path: Path, split: str, options: ReadOptions):
        super().__init__(path, split, options)
        if self._whole:  # other tables lie beside photographs too
            self._paths = [
                each
                for each in self._paths
                if each.suffix.lower() not in _CSV or layout.sniff(each, _is_csv, _CSV)
            ]

    def load(self, path: Path) -> dict[str, Any]:
        """Return the content of one file, a CSV as that of the JSON of the same project."""
        return _read_csv(path) if path.suffix.lower() in _CSV else super().load(path)

    def records(self, data: Any, where: str) -> Iterator[ImageRecord]:
        is_3 = isinstance(data.get("metadata"), dict) and isinstance(data.get("view"), dict)
        attributes, pictures = _read_3(data, where) if is_3 else _read_2(data, where)
        name = _class_attribute(attributes, pictures, where)
        attribute = attributes.get(name, _Attribute())
        words = map(class_name, attribute.options.values())
        self.order.update(dict.fromkeys(filter(None, words)))
        notes = self.notes
        for picture in pictures:
            where_picture = f"{where}, {show(picture.name)}"
            with layout.skipping(where_picture, self.options, notes):
                record = self.image([picture.name, picture.other], where_picture)
                record.extra = layout.extra_fields(picture.fields, (), where_picture, notes)
                for number, region in enumerate(picture.regions, 1):
                    place = f"{where_picture}, region {number}"
                    with shapes.noting(notes, place):
                        labels = attribute.labels(region.attributes.get(name))
                        if not name:
                            labels = [DEFAULT_CLASS]
                            notes.add("class_absent", place)
                        shape, fields = _shape(region), region.attributes
                        instance = self.instance(labels, shape, record, place, fields, (name,))
                        record.instances.append(instance)
                yield record


def _shape(region: _Region) -> tuple[str, Any]:
    """Return kind and values of a region, as ``shapes.area_of`` takes them."""
    kind = _KINDS.get(region.kind) if isinstance(region.kind, (str, int)) else None
    if kind is None:
        raise ShapeError("shape_type", show(region.kind))
    if kind == "extreme_rect":
        points = shapes.points(region.values)
        return "box", [*points.min(axis=0).tolist(), *np.ptp(points, axis=0).tolist()]
    if kind == "extreme_circle":
        return "circle", _circle_through(shapes.points(region.values)[:3])
    return kind, region.values


def _circle_through(points: np.ndarray) -> list[float]:
    """Return centre x, y and radius in px of the circle through (3, 2) points."""
    if len(points) < 3:
        raise ShapeError("shape_broken", "a circle through fewer than three points")
    origin, (ax, ay), (bx, by) = points[0], points[1] - points[0], points[2] - points[0]
    twice = 2 * (ax * by - ay * bx)
    if abs(twice) < 1e-9:
        raise ShapeError("shape_broken", "a circle through three points on one line")
    a, b = ax * ax + ay * ay, bx * bx + by * by
    x, y = (by * a - ay * b) / twice, (ax * b - bx * a) / twice
    return [float(origin[0] + x), float(origin[1] + y), math.hypot(x, y)]


def _class_attribute(
    attributes: dict[str, _Attribute], pictures: Iterable[_Picture], where: str
) -> str:
    """Return the name of the region attribute that is the class; "" if there is none at all."""
    regions = list(chain.from_iterable(picture.regions for picture in pictures))
    used = chain.from_iterable(region.attributes for region in regions)
    names = list(dict.fromkeys((*attributes, *used)))
    if not regions or not names:
        return ""
    if len(names) == 1:
        return names[0]
    for wanted in _CLASS_ATTRIBUTES:
        for name in names:
            if name.strip().casefold() == wanted:
                return name
    words = {name: re.split(r"[\W_]+", name.casefold()) for name in names}
    likely = [name for name in names if not set(_CLASS_ATTRIBUTES).isdisjoint(words[name])]
    if len(likely) == 1:  # particle_type
        return likely[0]
    listed = ", ".join(map(show, names[:10]))
    raise UserError(
        f"{where} has the region attributes {listed}; call the one that is the class "
        '"class" in VIA, set it for every region, and save again.',
        code="annotations_invalid",
    )


def _invalid(where: str, words: str) -> UserError:
    return UserError(f"{where} {words}; it is not {_MEANING}.", code="annotations_invalid")


def _objects(value: Any, where: str, what: str) -> dict[str, dict]:
    if not isinstance(value, dict) or not all(isinstance(v, dict) for v in value.values()):
        raise _invalid(where, f"has {what} that are not JSON objects")
    return value


def _object(value: Any) -> dict[str, Any]:
    """Return an unchecked value if it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def _options(attribute: Any) -> dict[str, str]:
    """Return id -> words of an attribute's options; the id itself if it has no words."""
    options = _object(_object(attribute).get("options"))
    return {key: words if class_name(words) else key for key, words in options.items()}


def _read_2(data: dict, where: str) -> tuple[dict[str, _Attribute], list[_Picture]]:
    listed = _object(_object(data.get("_via_attributes")).get("region"))
    attributes = {name: _Attribute(_options(entry)) for name, entry in listed.items()}
    pictures = []
    for entry in _objects(data.get("_via_img_metadata", data), where, "images").values():
        regions = entry.get("regions")
        if isinstance(regions, dict):  # VIA 1
            regions = list(regions.values())
        if "filename" not in entry or not isinstance(regions, list):
            raise _invalid(where, "has images without filename or regions")
        fields = dict(_object(entry.get("file_attributes")))
        pictures.append(_Picture(entry["filename"], None, list(map(_region_2, regions)), fields))
    return attributes, pictures


def _region_2(region: Any) -> _Region:
    region = _object(region)
    shape = _object(region.get("shape_attributes"))
    kind, xs, ys = (shape.get(key) for key in ("name", "all_points_x", "all_points_y"))
    if isinstance(xs, list) and isinstance(ys, list) and len(xs) == len(ys):
        values = list(chain.from_iterable(zip(xs, ys, strict=True)))
    else:
        keys = _NUMBERS.get(str(kind), ())
        # No theta before VIA 2.0.8.
        values = [shape.get(key) for key in keys if key != "theta" or shape.get(key) is not None]
    return _Region(kind, values, _object(region.get("region_attributes")))


def _read_csv(path: Path) -> dict[str, Any]:
    """Read the CSV of VIA 2, a row for each region, or for an image without one."""
    table = read_table(path).rename(columns=lambda name: name.lstrip("#"))
    if any(list(table.columns).count(name) != 1 for name in _COLUMNS):
        raise _invalid(str(path), f"lacks one of the columns {', '.join(_COLUMNS)}")
    pictures: dict[str, Any] = {}
    for line, row in zip(table.index, table[list(_COLUMNS)].to_numpy().tolist(), strict=True):
        name, *cells = row
        try:
            fields, shape, attributes = (json.loads(cell or "{}") for cell in cells)
        except (ValueError, RecursionError) as error:
            raise _invalid(str(path), f"has a cell that is not JSON in line {line}") from error
        entry = {"filename": name, "file_attributes": fields, "regions": []}
        regions = pictures.setdefault(name, entry)["regions"]
        if shape != {}:
            regions.append({"shape_attributes": shape, "region_attributes": attributes})
    return pictures


def _read_3(data: dict, where: str) -> tuple[dict[str, _Attribute], list[_Picture]]:
    names, attributes = {}, {}
    for key, entry in _objects(data.get("attribute", {}), where, "attributes").items():
        name, anchor = entry.get("aname"), entry.get("anchor_id")
        if not isinstance(name, str) or not isinstance(anchor, str):
            continue
        names[key] = name
        if anchor.endswith("XY1"):  # of a region, not of a whole file
            joined = entry.get("type") == _CHECKBOX_3
            default = entry.get("default_option_id")
            attributes[name] = _Attribute(_options(entry), default, joined)
    pictures = _pictures_3(data, where)
    for entry in _objects(data["metadata"], where, "metadata").values():
        view, xy = entry.get("vid"), entry.get("xy")
        picture = pictures.get(str(view)) if isinstance(view, (str, int)) else None
        if picture is None:
            raise _invalid(where, f"has metadata of the view {show(view)}, which it does not have")
        values = {names.get(key, key): value for key, value in _object(entry.get("av")).items()}
        if xy == []:  # of the whole image
            picture.fields.update(values)
            continue
        kind, *numbers = xy if isinstance(xy, list) else [xy]
        picture.regions.append(_Region(kind, numbers, values))
    return attributes, list(pictures.values())


def _pictures_3(data: dict, where: str) -> dict[str, _Picture]:
    files = _objects(data.get("file"), where, "files")
    pictures = {}
    for key, view in _objects(data["view"], where, "views").items():
        ids = view.get("fid_list")
        if not isinstance(ids, list) or len(ids) != 1 or str(ids[0]) not in files:
            raise UserError(
                f"{where} has the view {show(key)}, which does not have one file; annotate images "
                "one by one in VIA.",
                code="annotations_invalid",
            )
        name, source = (files[str(ids[0])].get(each) for each in ("fname", "src"))
        inline = not isinstance(source, str) or not source or source.startswith("data:")
        pictures[key] = _Picture(name) if inline else _Picture(source, name)
    return pictures
