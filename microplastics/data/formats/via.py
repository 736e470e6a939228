"""VGG Image Annotator: projects of VIA 2 and 3, and the JSON annotations of VIA 2.

VIA's own COCO export is unreliable, and no maintained library reads VIA 3.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from microplastics.data.coco import show
from microplastics.data.formats import layout, shapes
from microplastics.data.formats.base import ImageRecord, Instance, Notes, ReadOptions, Source
from microplastics.data.formats.layout import class_name
from microplastics.data.formats.shapes import Segmentation, ShapeError
from microplastics.utils.errors import UserError

_MEANING = "a project or annotation export of VIA; save the project, or export annotations as JSON"
_CLASS_ATTRIBUTES = ("class", "label", "type", "name", "category")
# _VIA_RSHAPE of VIA 3, the first number of ``xy``.
_KINDS_3 = {
    **{1: "point", 2: "rect", 3: "circle", 4: "ellipse", 5: "polyline", 6: "polyline"},
    **{7: "polygon", 8: "extreme_rect", 9: "extreme_circle"},
}
_CHECKBOX_3 = 2  # _VIA_ATTRIBUTE_TYPE of VIA 3
_NUMBERS = {
    "rect": ("x", "y", "width", "height"),
    "circle": ("cx", "cy", "r"),
    "ellipse": ("cx", "cy", "rx", "ry", "theta"),
}
_MIN_POINTS = {"polyline": 2, "polygon": 3, "extreme_rect": 2, "extreme_circle": 3}


@dataclass
class _Region:
    """A drawn region, unchecked.

    Attributes:
        kind: a name of VIA 2, ``extreme_rect`` (points on the four sides), ``extreme_circle``
            (three points), or anything else.
        values: the numbers of ``_NUMBERS``, or x0, y0, x1, y1, …; anything else is broken.
        attributes: values by name.
    """

    kind: Any
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

    return layout.sniff(Path(path), matches)


def read(path: Path, options: ReadOptions, notes: Notes) -> dict[str, Source]:
    """Open a VIA JSON, or a folder of them (see ``base.Reader.read``).

    The class of a region is its only attribute, or the one called class, label, type, name or
    category; ids of options become their words. Circles and ellipses become polygons of the same
    area; lines get ``options.line_width``. VIA stores no image sizes: the sizes of the files are
    used.
    """
    return layout.read_splits(_Reader, path, options, notes)


class _Reader(layout.FileReader):
    meaning = _MEANING

    def records(self, data: Any, where: str, notes: Notes) -> Iterator[ImageRecord]:
        if isinstance(data.get("metadata"), dict) and isinstance(data.get("view"), dict):
            attributes, pictures = _read_3(data, where)
        else:
            attributes, pictures = _read_2(data, where)
        name = _class_attribute(attributes, pictures, where)
        attribute = attributes.get(name, _Attribute())
        words = map(class_name, attribute.options.values())
        self.order.update(dict.fromkeys(filter(None, words)))
        for picture in pictures:
            place = f"{where}, {show(picture.name)}"
            record = self.image(picture.name, place, notes, other=picture.other)
            if record is None:
                continue
            fields = layout.without_empty(picture.fields)
            record.extra = layout.extra_fields(fields, (), place, notes)
            for number, region in enumerate(picture.regions, 1):
                labels = attribute.labels(region.attributes.get(name))
                self._add(record, region, labels, name, f"{place}, region {number}", notes)
            yield record

    def _add(
        self,
        record: ImageRecord,
        region: _Region,
        labels: list[str],
        attribute: str,
        place: str,
        notes: Notes,
    ) -> None:
        try:
            if not labels:
                raise ShapeError("shape_unlabelled")
            area = self._area(region, (record.height, record.width), place, notes)
        except ShapeError as error:
            notes.add(error.code, place, error.detail)
            return
        if len(labels) > 1:
            notes.add("label_ambiguous", place, ", ".join(labels))
        fields = layout.without_empty(region.attributes)
        extra = layout.extra_fields(fields, (attribute,), place, notes)
        record.instances.append(Instance(labels[0], area, place, 0, extra))

    def _area(
        self, region: _Region, size: tuple[int, int], place: str, notes: Notes
    ) -> Segmentation:
        kind, values = region.kind, region.values
        if kind == "point":
            raise ShapeError("shape_without_area", "a point")
        if not isinstance(kind, str) or kind not in _NUMBERS and kind not in _MIN_POINTS:
            raise ShapeError("shape_type", show(kind))
        if not isinstance(values, list):
            raise ShapeError("shape_broken", show(values))
        if kind in _MIN_POINTS:
            points = shapes.flat_points(values, _MIN_POINTS[kind])
            if kind == "polygon":
                return shapes.polygon(points)
            if kind == "polyline":
                area = shapes.line_area(points, self.options.line_width, size)
                notes.add("line_as_polygon", place)
                return area
            if kind == "extreme_rect":
                values = [*points.min(axis=0).tolist(), *np.ptp(points, axis=0).tolist()]
                kind = "rect"
            else:
                values, kind = list(shapes.circle_through(points[:3])), "circle"
        values = shapes.numbers(*values)
        if len(values) < len(_NUMBERS[kind]) - (kind == "ellipse"):  # no theta before VIA 2.0.8
            raise ShapeError("shape_broken", f"a {kind} of {len(values)} numbers")
        draw = {"rect": shapes.box_polygon, "circle": shapes.circle_polygon}
        polygons = draw.get(kind, shapes.ellipse_polygon)(*values[: len(_NUMBERS[kind])])
        notes.add("box_only" if kind == "rect" else "curve_as_polygon", place)
        return polygons


def _class_attribute(
    attributes: dict[str, _Attribute], pictures: Iterable[_Picture], where: str
) -> str:
    """Return the name of the region attribute that is the class; "" if there is no region."""
    regions = list(chain.from_iterable(picture.regions for picture in pictures))
    used = chain.from_iterable(region.attributes for region in regions)
    names = list(dict.fromkeys((*attributes, *used)))
    if not regions:
        return ""
    if len(names) == 1:
        return names[0]
    for wanted in _CLASS_ATTRIBUTES:
        for name in names:
            if name.strip().casefold() == wanted:
                return name
    words = {name: set(re.split(r"[\W_]+", name.casefold())) for name in names}
    found = [name for name in names if words[name].intersection(_CLASS_ATTRIBUTES)]
    if len(found) == 1:
        return found[0]
    listed = ", ".join(map(show, names[:10])) or "none"
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


def _options(value: Any) -> dict[str, str]:
    """Return id -> words of the options; the id itself if it has no words."""
    if not isinstance(value, dict):
        return {}
    return {key: words if class_name(words) else key for key, words in value.items()}


def _read_2(data: dict, where: str) -> tuple[dict[str, _Attribute], list[_Picture]]:
    listed = data.get("_via_attributes")
    listed = listed.get("region") if isinstance(listed, dict) else None
    attributes = {
        name: _Attribute(_options(entry.get("options")))
        for name, entry in (listed if isinstance(listed, dict) else {}).items()
        if isinstance(entry, dict)
    }
    pictures = []
    for entry in _objects(data.get("_via_img_metadata", data), where, "images").values():
        regions = entry.get("regions")
        if isinstance(regions, dict):  # VIA 1
            regions = list(regions.values())
        if "filename" not in entry or not isinstance(regions, list):
            raise _invalid(where, "has images without filename or regions")
        fields = entry.get("file_attributes")
        picture = _Picture(entry["filename"], regions=[_region_2(each) for each in regions])
        picture.fields = fields if isinstance(fields, dict) else {}
        pictures.append(picture)
    return attributes, pictures


def _region_2(region: Any) -> _Region:
    region = region if isinstance(region, dict) else {}
    shape, attributes = region.get("shape_attributes"), region.get("region_attributes")
    attributes = attributes if isinstance(attributes, dict) else {}
    if not isinstance(shape, dict):
        return _Region("polygon", "no shape_attributes", attributes)
    kind, values = shape.get("name"), None
    if kind in ("polygon", "polyline"):
        xs, ys = shape.get("all_points_x"), shape.get("all_points_y")
        values = "all_points_x and all_points_y differ"
        if isinstance(xs, list) and isinstance(ys, list) and len(xs) == len(ys):
            values = list(chain.from_iterable(zip(xs, ys, strict=True)))
    elif kind in ("rect", "circle", "ellipse"):
        values = [shape.get(key) for key in _NUMBERS[kind]]
        if kind == "ellipse" and values[-1] is None:
            values.pop()
    return _Region(kind, values, attributes)


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
            attributes[name] = _Attribute(_options(entry.get("options")), default, joined)
    pictures = _pictures_3(data, where)
    for entry in _objects(data["metadata"], where, "metadata").values():
        view, xy, values = entry.get("vid"), entry.get("xy"), entry.get("av")
        if not isinstance(view, (str, int)) or str(view) not in pictures:
            raise _invalid(where, f"has metadata of the view {show(view)}, which it does not have")
        values = values if isinstance(values, dict) else {}
        values = {names.get(key, key): value for key, value in values.items()}
        picture = pictures[str(view)]
        if xy == []:  # of the whole image
            picture.fields.update(values)
            continue
        first, *rest = xy if isinstance(xy, list) else [xy]
        kind = _KINDS_3.get(first, first) if type(first) is int else first
        picture.regions.append(_Region(kind, rest, values))
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
