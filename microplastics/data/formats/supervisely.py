"""Supervisely: ``meta.json``, and ``DATASET/ann/IMAGE.json`` for each ``DATASET/img/IMAGE``.

The package ``supervisely`` is not used: it brings a web client and half of a video stack.
"""

import base64
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from microplastics.data.coco import show
from microplastics.data.formats import layout, shapes
from microplastics.data.formats.base import ImageRecord, Instance, Notes, ReadOptions, Source
from microplastics.data.formats.shapes import Segmentation, ShapeError
from microplastics.utils.errors import UserError
from microplastics.utils.io import read_json

_META, _ANNOTATIONS = "meta.json", "ann"
_JSON = frozenset((".json",))
_MAX_BYTES = 64 << 20  # of the PNG of one bitmap
# Of an object, beside its geometry; who drew it and when is left out.
_KNOWN = frozenset(
    ("id", "key", "classId", "classTitle", "geometryType", "shape", "points", "bitmap", "tags")
    + ("labelerLogin", "createdAt", "updatedAt", "nnCreated", "nnUpdated", "objectId")
)


def detect(path: Path) -> bool:
    """Return whether a file, or one of the first below a folder, is of Supervisely."""

    def matches(text: bytes) -> bool:
        return text.startswith(b"{") and b'"objects":[' in text and b'"size":{' in text

    return layout.sniff(path, matches)


def read(path: Path, options: ReadOptions, notes: Notes) -> dict[str, Source]:
    """Open a project or a data set of Supervisely (see ``base.Reader.read``).

    Polygons keep their points, those with holes and bitmaps become RLE.
    """
    folders = layout.split_folders(path) if path.is_dir() else {}
    for name in layout.list_files(path, _JSON) if folders else ():
        first, *others = PurePosixPath(name).parts[:-1] or ("",)
        if _ANNOTATIONS in (first, *others) and path / first not in folders.values():
            raise UserError(
                f"{path / name} lies beside the folders of the splits "
                f"({', '.join(sorted(folders))}); move it into one of them or out of the input.",
                code="name_clash",
            )
    meta = path / _META if path.is_dir() else path.parent.parent.parent / _META
    order = _classes(meta) if meta.is_file() else []
    sources = {}
    for split, folder in (folders or {"all": path}).items():
        reader = _Reader(folder, split, options)
        reader.order.update(dict.fromkeys(order))
        sources[split] = reader.source(notes)
    return sources


def _classes(meta: Path) -> list[str]:
    """Return the names of the classes in their order."""
    listed = read_json(meta, dict, "the meta.json of a project of Supervisely").get("classes")
    entries = listed if isinstance(listed, list) else []
    names = [layout.class_name(each.get("title")) for each in entries if isinstance(each, dict)]
    return [name for name in names if name is not None]


class _Reader(layout.FileReader):
    meaning = "an object with size and objects; export the project as JSON with images"

    def __init__(self, path: Path, split: str, options: ReadOptions):
        super().__init__(path, split, options)
        named = [each for each in self._paths if each.parent.name == _ANNOTATIONS]
        self._paths = named or [each for each in self._paths if each.name != _META]

    def records(self, data: Any, where: str) -> Iterator[ImageRecord]:
        objects, size = data.get("objects"), data.get("size")
        if not isinstance(objects, list) or not isinstance(size, dict):
            raise self.foreign(f"{where} has no size and list of objects")
        with layout.skipping(where, self.options, self.notes):
            name, claimed = PurePosixPath(where).stem, (size.get("width"), size.get("height"))
            record = self.image([name], where, [claimed])
            fields = {"description": data.get("description"), "tags": _tags(data)}
            record.extra = layout.extra_fields(fields, (), where, self.notes)
            for number, each in enumerate(objects, 1):
                place = f"{where}, object {number}"
                with shapes.noting(self.notes, place):
                    record.instances.append(self._instance(each, record, place))
            yield record

    def _instance(self, entry: Any, record: ImageRecord, where: str) -> Instance:
        if not isinstance(entry, dict):
            raise ShapeError("shape_broken", "not a JSON object")
        label = layout.class_name(entry.get("classTitle"))
        shape = _shape(entry, record, self.notes, where)
        extra = {key: value for key, value in entry.items() if key not in _KNOWN}
        extra["tags"] = _tags(entry)
        return self.instance([label] if label else [], shape, record, where, extra, ())


def _tags(entry: dict[str, Any]) -> dict[str, Any]:
    """Return the values of tags by their names."""
    listed = entry.get("tags")
    tags = listed if isinstance(listed, list) else []
    return {str(each.get("name")): each.get("value") for each in tags if isinstance(each, dict)}


def _shape(entry: dict[str, Any], record: ImageRecord, notes: Notes, where: str) -> tuple[str, Any]:
    """Return kind and values of an object, as ``shapes.area_of`` takes them."""
    kind = entry.get("geometryType") or entry.get("shape")
    if kind == "bitmap" or (kind is None and entry.get("bitmap")):
        return "mask", _bitmap(entry.get("bitmap"), record.size)
    points = entry.get("points")
    points = points if isinstance(points, dict) else {}
    exterior, interior = points.get("exterior"), points.get("interior") or []
    if kind == "polygon":
        if not isinstance(interior, list):
            raise ShapeError("shape_broken", "interior is not a list of holes")
        return "mask", shapes.with_holes(exterior, interior, record, notes, where)
    if kind == "rectangle":
        (x0, y0), (x1, y1) = _corners(exterior)
        return "box", [min(x0, x1), min(y0, y1), abs(x1 - x0), abs(y1 - y0)]
    if kind in ("line", "polyline"):
        return "line", shapes.flat(exterior)
    if kind == "point":
        return kind, []
    raise ShapeError("shape_type", show(kind))


def _corners(exterior: Any) -> list[list[float]]:
    values = shapes.flat(exterior)
    if len(values) != 4:
        raise ShapeError("shape_broken", "a rectangle without its two corners")
    return shapes.numbers(values).reshape(2, 2).tolist()


def _bitmap(bitmap: Any, size: tuple[int, int]) -> Segmentation:
    """Read a bitmap: a PNG, packed by zlib, in base64, with its upper left corner."""
    bitmap = bitmap if isinstance(bitmap, dict) else {}
    x0, y0 = (int(value) for value in shapes.points([*_list(bitmap.get("origin")), 0, 0])[0])
    try:
        packed = base64.b64decode(bitmap.get("data"), validate=True)
        content = zlib.decompressobj().decompress(packed, _MAX_BYTES)
    except (TypeError, ValueError, zlib.error) as error:
        raise ShapeError("shape_broken", "a bitmap that is not a packed PNG in base64") from error
    return shapes.crop_rle(shapes.png_mask(content, size), x0, y0, size)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
