"""What a VIA file holds, whichever version wrote it."""

import re
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from microplastics.data.coco_findings import show
from microplastics.data.formats import files
from microplastics.errors import UserError

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
        return [name for name in map(files.class_name, names) if name is not None]


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
    return {key: words if files.class_name(words) else key for key, words in value.items()}


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
