"""VGG Image Annotator: projects of VIA 2 and 3, and the annotations that VIA 2 exports as JSON.

Read by hand: no kept library reads VIA 3, and VIA's own COCO export is unreliable.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from microplastics.data.coco import show
from microplastics.data.formats import layout, shapes
from microplastics.data.formats.base import NOTES, ImageRecord, Instance, Notes, ReadOptions, Source
from microplastics.data.formats.layout import FileReader, open_splits
from microplastics.data.formats.shapes import Segmentation, ShapeError
from microplastics.utils.errors import UserError

MEANT = (
    "a project or an annotation export of VIA; save the project in VIA, or export annotations as "
    "JSON"
)
_CLASS_NAMES = ("class", "label", "type", "name", "category")
# _VIA_RSHAPE of VIA 3, the first number of ``xy``.
_KINDS_3 = {
    1: "point",
    2: "rect",
    3: "circle",
    4: "ellipse",
    5: "polyline",
    6: "polyline",
    7: "polygon",
    8: "extreme_rect",
    9: "extreme_circle",
}
_CHECKBOX_3 = 2  # _VIA_ATTRIBUTE_TYPE of VIA 3
FIELDS = {
    "rect": ("x", "y", "width", "height"),
    "circle": ("cx", "cy", "r"),
    "ellipse": ("cx", "cy", "rx", "ry", "theta"),
}


@dataclass
class Region:
    """What was drawn.

    Attributes:
        kind: a stranger's value; if known, one of VIA 2's names, ``extreme_rect`` (points on the
            four sides) or ``extreme_circle`` (three points).
        shape: a list of its unchecked numbers: those of ``FIELDS``, or x0, y0, x1, y1, …; else
            why there is none.
        attributes: unchecked values by name.
    """

    kind: Any
    shape: Any
    attributes: dict[str, Any]


@dataclass
class Picture:
    """An image with its regions.

    Attributes:
        name: a stranger's path or URL.
        regions: what was drawn on it.
        fields: attributes of the whole image.
        variants: other base names to look for.
    """

    name: Any
    regions: list[Region]
    fields: dict[str, Any]
    variants: tuple[str, ...] = ()


@dataclass
class Attribute:
    """A region attribute: the words of its options by id, in their order."""

    options: dict[str, str] = field(default_factory=dict)
    default: Any = None
    joined_ids: bool = False

    def labels(self, value: Any) -> list[str]:
        """Return the class names that a value means."""
        if value is None:
            value = self.default
        if isinstance(value, dict):  # VIA 2's check boxes
            ids = [key for key, chosen in value.items() if chosen]
        elif self.joined_ids and isinstance(value, str):
            ids = [part.strip() for part in value.split(",")]
        else:
            ids = [value]
        names = (self.options.get(i, i) if isinstance(i, str) else i for i in ids)
        return [name for name in map(layout.class_name, names) if name is not None]


class Document:
    """A VIA project or export.

    Attributes:
        pictures: its images in their order.
        attribute: name of the region attribute that is the class; "" where no region has any.
    """

    def __init__(self, path: Path, data: dict[str, Any]):
        """
        Raises:
            UserError: it is no VIA file, or no attribute is the class.
        """
        self._path = path
        if isinstance(data.get("metadata"), dict) and isinstance(data.get("view"), dict):
            self._attributes = self._read_attributes_3(data)
            self.pictures = self._read_3(data)
        else:
            self._attributes = self._read_attributes_2(data)
            self.pictures = self._read_2(data.get("_via_img_metadata", data))
        self.attribute = self._choose()

    def words(self) -> list[str]:
        """The options of the class attribute in their order."""
        return list(self._attributes.get(self.attribute, Attribute()).options.values())

    def labels(self, region: Region) -> list[str]:
        """Return the class names of a region."""
        attribute = self._attributes.get(self.attribute, Attribute())
        return attribute.labels(region.attributes.get(self.attribute))

    def _choose(self) -> str:
        regions = list(chain.from_iterable(picture.regions for picture in self.pictures))
        used = chain.from_iterable(region.attributes for region in regions)
        names = list(dict.fromkeys((*self._attributes, *used)))
        if not regions:
            return ""
        if not names:
            raise UserError(
                f"The regions of {self._path} have no attribute that could be their class; add one "
                "in VIA, set it for every region and save again."
            )
        if len(names) == 1:
            return names[0]
        for wanted in _CLASS_NAMES:
            for name in names:
                if name.strip().casefold() == wanted:
                    return name
        split = {name: set(re.split(r"[\W_]+", name.casefold())) for name in names}
        found = [name for name in names if split[name].intersection(_CLASS_NAMES)]
        if len(found) == 1:
            return found[0]
        listed = ", ".join(map(show, names[:10]))
        raise UserError(
            f"{self._path} has the region attributes {listed}; name the one that is the class "
            '"class" in VIA and save again.'
        )

    def _objects(self, value: Any, what: str) -> dict[str, dict]:
        if not isinstance(value, dict) or not all(isinstance(v, dict) for v in value.values()):
            raise UserError(f"{self._path} has {what} that are no JSON objects; it is not {MEANT}.")
        return value

    def _read_attributes_2(self, data: dict[str, Any]) -> dict[str, Attribute]:
        attributes = data.get("_via_attributes")
        listed = attributes.get("region") if isinstance(attributes, dict) else None
        if not isinstance(listed, dict):
            return {}
        return {
            name: Attribute(_options(entry.get("options")))
            for name, entry in listed.items()
            if isinstance(entry, dict)
        }

    def _read_2(self, metadata: Any) -> list[Picture]:
        pictures = []
        for entry in self._objects(metadata, "images").values():
            listed = entry.get("regions")
            if isinstance(listed, dict):  # VIA 1
                listed = list(listed.values())
            if "filename" not in entry or not isinstance(listed, list):
                raise UserError(
                    f"{self._path} has images without filename or regions; it is not {MEANT}."
                )
            regions = [_region_2(region) for region in listed]
            fields = entry.get("file_attributes")
            fields = fields if isinstance(fields, dict) else {}
            pictures.append(Picture(entry["filename"], regions, fields))
        return pictures

    def _read_attributes_3(self, data: dict[str, Any]) -> dict[str, Attribute]:
        self._names_3 = {}
        attributes = {}
        for key, entry in self._objects(data.get("attribute", {}), "attributes").items():
            name, anchor = entry.get("aname"), entry.get("anchor_id")
            if not isinstance(name, str) or not isinstance(anchor, str):
                continue
            self._names_3[key] = name
            if anchor.endswith("XY1"):  # of a region, not of a whole file
                attributes[name] = Attribute(
                    _options(entry.get("options")),
                    entry.get("default_option_id"),
                    entry.get("type") == _CHECKBOX_3,
                )
        return attributes

    def _read_3(self, data: dict[str, Any]) -> list[Picture]:
        listed = self._objects(data.get("file"), "files")
        pictures: dict[str, Picture] = {}
        for key, view in self._objects(data["view"], "views").items():
            ids = view.get("fid_list")
            if not isinstance(ids, list) or len(ids) != 1 or str(ids[0]) not in listed:
                raise UserError(
                    f"{self._path} has the view {show(key)} that is not of one file; annotate "
                    "images one by one in VIA."
                )
            entry = listed[str(ids[0])]
            name, source = entry.get("fname"), entry.get("src")
            variants = (Path(name).name,) if isinstance(name, str) else ()
            inline = not isinstance(source, str) or not source or source.startswith("data:")
            pictures[key] = Picture(name if inline else source, [], {}, variants)
        for entry in self._objects(data["metadata"], "metadata").values():
            view, xy, values = entry.get("vid"), entry.get("xy"), entry.get("av")
            if not isinstance(view, (str, int)) or str(view) not in pictures:
                raise UserError(
                    f"{self._path} has metadata of the view {show(view)}, which it does not have; "
                    "save the project again."
                )
            values = values if isinstance(values, dict) else {}
            values = {self._names_3.get(key, key): value for key, value in values.items()}
            picture = pictures[str(view)]
            if xy == []:  # of the whole image
                picture.fields.update(values)
                continue
            shape = xy[1:] if isinstance(xy, list) else xy
            first = xy[0] if isinstance(xy, list) else None
            kind = _KINDS_3.get(first, first) if type(first) is int else first
            picture.regions.append(Region(kind, shape, values))
        return list(pictures.values())


def _options(value: Any) -> dict[str, str]:
    """Return id -> words of the options; the id itself where there are no words."""
    if not isinstance(value, dict):
        return {}
    return {key: words if layout.class_name(words) else key for key, words in value.items()}


def _region_2(region: Any) -> Region:
    region = region if isinstance(region, dict) else {}
    shape, attributes = region.get("shape_attributes"), region.get("region_attributes")
    attributes = attributes if isinstance(attributes, dict) else {}
    if not isinstance(shape, dict):
        return Region("polygon", "no shape_attributes", attributes)
    kind = shape.get("name")
    if kind in ("polygon", "polyline"):
        xs, ys = shape.get("all_points_x"), shape.get("all_points_y")
        if not isinstance(xs, list) or not isinstance(ys, list) or len(xs) != len(ys):
            return Region(kind, "all_points_x and all_points_y differ", attributes)
        return Region(kind, list(chain.from_iterable(zip(xs, ys, strict=True))), attributes)
    if kind in ("rect", "circle", "ellipse"):
        values = [shape.get(key) for key in FIELDS[kind]]
        if kind == "ellipse" and values[-1] is None:  # before VIA 2.0.8
            values.pop()
        return Region(kind, values, attributes)
    return Region(kind, None, attributes)


NAME = "via"

_LEAST_POINTS = {"polyline": 2, "polygon": 3, "extreme_rect": 2, "extreme_circle": 3}


def looks_like(path: Path) -> bool:
    """Whether a file, or one of the first below a folder, is a VIA project or export."""

    def matches(head: bytes, tail: bytes) -> bool:
        if not head.lstrip(b"\xef\xbb\xbf\xff\xfe").startswith(b"{"):
            return False
        if b'"_via_img_metadata":' in head or b'"_via_settings":' in head:
            return True
        if b'"vid_list":' in head and b'"project":' in head:
            return True
        return re.search(rb'^[^{]*\{"[^"]*":\{"', head) is not None and all(
            key in head for key in (b'"filename":', b'"regions":')
        )

    return layout.sniff(Path(path), matches)


def open_dataset(path: Path, options: ReadOptions, notes: Notes) -> dict[str, Source]:
    """Open VIA JSON files.

    The class of a region is its only attribute, or the one called class, label, type, name or
    category; ids of options become the words of the options. Circles and ellipses become polygons
    of the same area; lines get ``options.line_width``. VIA keeps no image sizes: they are those of
    the files.

    Args:
        path: file, or folder of such files; sub-folders train, val and test are splits.
        options: how to read.
        notes: takes what is changed or left out while the records are read.

    Returns:
        split -> source; ``"all"`` where there are no splits.

    Raises:
        UserError: nothing there, a file that cannot be used, or no attribute that is the class.
    """
    return open_splits(_Reader, path, options, notes)


class _Reader(FileReader):
    def survey(self) -> tuple[list[str], int]:
        """Return the classes that occur, in the order of the options, and how many images."""
        order: dict[str, None] = {}
        found: set[str] = set()
        count = 0
        for path in self.paths:
            document = self._document(path, Notes(NOTES))
            if document is None:
                continue
            order.update(dict.fromkeys(filter(None, map(layout.class_name, document.words()))))
            count += len(document.pictures)
            for region in chain.from_iterable(each.regions for each in document.pictures):
                lines = region.kind != "polyline" or self.options.line_width is not None
                if region.kind != "point" and lines:
                    found.update(document.labels(region)[:1])
        return [name for name in order if name in found] + sorted(found - set(order)), count

    def _document(self, path: Path, notes: Notes) -> Document | None:
        data = layout.read_labels(path, dict, MEANT, self.options, notes)
        if data is None:
            return None
        try:
            return Document(path, data)
        except UserError as error:
            where = path.relative_to(self.root).as_posix()
            layout.skip_or_raise(error, "label_broken", where, self.options, notes)
            return None

    def records(self, seen: dict[str, str], notes: Notes) -> Iterator[ImageRecord]:
        """Read one file after the other."""
        for path in self.paths:
            document = self._document(path, notes)
            if document is None:
                continue
            for picture in document.pictures:
                record = self._record(path, document, picture, seen, notes)
                if record is not None:
                    yield record

    def _record(
        self, path: Path, document: Document, picture: Picture, seen: dict, notes: Notes
    ) -> ImageRecord | None:
        where = f"{path.relative_to(self.root).as_posix()}, {show(picture.name)}"
        code = "image_missing"
        try:
            name = self.finder.find(picture.name, path.parent, picture.variants)
            code = "label_broken"
            layout.take_once(name, where, seen)
            code = "image_broken"
            width, height = layout.checked_size(self.finder.root / name, None, self.options)
        except UserError as error:
            layout.skip_or_raise(error, code, where, self.options, notes)
            return None
        record = ImageRecord(name, width, height)
        record.extra = layout.plain_extra(picture.fields, frozenset(), where, notes)
        for number, region in enumerate(picture.regions, 1):
            place = f"{where}, region {number}"
            try:
                labels = document.labels(region)
                if not labels:
                    raise ShapeError("shape_unlabelled")
                area = self._area(region, (height, width), place, notes)
            except ShapeError as error:
                notes.add(error.code, place, error.detail)
                continue
            if len(labels) > 1:
                notes.add("label_ambiguous", place, ", ".join(labels))
            known = frozenset((document.attribute,))
            extra = layout.plain_extra(region.attributes, known, place, notes)
            record.instances.append(Instance(labels[0], area, place, 0, extra))
        return record

    def _area(
        self, region: Region, size: tuple[int, int], place: str, notes: Notes
    ) -> Segmentation:
        kind, values = region.kind, region.shape
        if kind == "point":
            raise ShapeError("shape_without_area", "a point")
        if not isinstance(kind, str) or kind not in FIELDS and kind not in _LEAST_POINTS:
            raise ShapeError("shape_type", show(kind))
        if not isinstance(values, list):
            raise ShapeError("shape_broken", show(values))
        if kind in _LEAST_POINTS:
            points = shapes.flat_points(values, _LEAST_POINTS[kind])
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
        if len(values) < len(FIELDS[kind]) - (kind == "ellipse"):
            raise ShapeError("shape_broken", f"a {kind} of {len(values)} numbers")
        if kind == "rect":
            polygons = shapes.box_polygon(*values[:4])
        elif kind == "circle":
            polygons = shapes.circle_polygon(*values[:3])
        else:
            polygons = shapes.ellipse_polygon(*values[:5])
        notes.add("box_only" if kind == "rect" else "curve_as_polygon", place)
        return polygons
