"""Label Studio: its JSON export and its JSON-MIN export of images.

Read by hand: ``label-studio-sdk`` brings a web client along and drops what it does not know.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

import numpy as np

from microplastics.data.coco import show
from microplastics.data.formats import layout, shapes
from microplastics.data.formats.base import NOTES, ImageRecord, Instance, Notes, ReadOptions, Source
from microplastics.data.formats.layout import IMAGE_SUFFIXES, FileReader, open_splits
from microplastics.data.formats.shapes import Segmentation, ShapeError, crop_rle
from microplastics.utils.errors import UserError

_CHANNELS = 4
_VALUE_BITS = 8


def brush_rle(values: Any, size: tuple[int, int]) -> dict[str, Any]:
    """Decode a brush mask.

    A pixel belongs to the mask where its alpha is more than half of the greatest, so that the soft
    rim of a stroke does not widen it.

    Args:
        values: a stranger's list of bytes.
        size: height and width of the image in px.

    Returns:
        compressed COCO RLE.

    Raises:
        ShapeError: it is malformed, cut off, of another size, or empty.
    """
    height, width = size
    line = width * _CHANNELS
    flat, first, last = _decode(_Bits(values), height * line)
    y0, y1 = first // line, last // line + 1
    alpha = flat[y0 * line : y1 * line].reshape(y1 - y0, width, _CHANNELS)[:, :, 3]
    inside = alpha > int(alpha.max(initial=0)) // 2
    columns = np.flatnonzero(inside.any(axis=0))
    if not len(columns):
        raise ShapeError("shape_broken", "a brush mask without a pixel")
    x0, x1 = int(columns[0]), int(columns[-1]) + 1
    return crop_rle(inside[:, x0:x1], x0, y0, size)


class _Bits:
    """Reads numbers of any width, the most significant bit first."""

    def __init__(self, values: Any):
        try:
            self._data = bytes(values) if isinstance(values, list) else b""
        except (TypeError, ValueError) as error:
            raise ShapeError("shape_broken", "a brush mask that is no list of bytes") from error
        self._position, self._end = 0, 8 * len(self._data)

    def read(self, bits: int) -> int:
        """Return the next number."""
        first, end = self._take(bits)
        value = int.from_bytes(self._data[first >> 3 : (end + 7) >> 3], "big")
        return value >> (-end & 7) & ((1 << bits) - 1)

    def read_bytes(self, count: int) -> np.ndarray:
        """Return the next numbers of 8 bits as uint8."""
        first, end = self._take(count * _VALUE_BITS)
        packed = np.frombuffer(self._data[first >> 3 : (end + 7) >> 3], np.uint8)
        bits = np.unpackbits(packed)[first & 7 :][: count * _VALUE_BITS]
        return np.packbits(bits)

    def _take(self, bits: int) -> tuple[int, int]:
        first, end = self._position, self._position + bits
        if end > self._end:
            raise ShapeError("shape_broken", "a brush mask that is cut off")
        self._position = end
        return first, end


def _decode(bits: _Bits, expected: int) -> tuple[np.ndarray, int, int]:
    """Return the values as uint8, and where the first and the last that are not 0 may be."""
    count = bits.read(32)
    if count != expected:
        raise ShapeError("shape_broken", f"a brush mask of {count} values, not {expected}")
    if bits.read(5) + 1 != _VALUE_BITS:
        raise ShapeError("shape_broken", "a brush mask whose values are not of 8 bits")
    widths = [bits.read(4) + 1 for _ in range(4)]
    # Pages that stay zero are never touched.
    values = np.zeros(count, np.uint8)
    first, last, position = count, 0, 0
    while position < count:
        repeated = bits.read(1)
        end = position + bits.read(widths[bits.read(2)]) + 1
        if end > count:
            raise ShapeError("shape_broken", "a brush mask with too many values")
        value = bits.read(_VALUE_BITS) if repeated else bits.read_bytes(end - position)
        if not repeated or value:
            values[position:end] = value
            first, last = min(first, position), end - 1
        position = end
    if first == count:
        raise ShapeError("shape_broken", "a brush mask without a pixel")
    return values, first, last


NAME = "labelstudio"

_MEANT = "a list of tasks; export as JSON or JSON-MIN from Label Studio"
_GEOMETRY = frozenset(
    ("x", "y", "width", "height", "rotation", "points", "closed", "radiusX", "radiusY")
    + ("rle", "format", "imageDataURL", "vertices", "sequence")
)
# Of a region in JSON-MIN, where these stand beside its geometry.
_REGION_FIELDS = frozenset(("original_width", "original_height", "image_rotation"))


@dataclass
class _Task:
    where: str
    fields: dict[str, Any]
    annotations: list[Any]


def looks_like(path: Path) -> bool:
    """Whether a file, or one of the first below a folder, is an export of Label Studio."""

    def matches(head: bytes, tail: bytes) -> bool:
        if not head.lstrip(b"\xef\xbb\xbf\xff\xfe").startswith(b"[{"):
            return False
        full = b'"annotations":[' in head and (b'"result":[' in head or b'"data":{' in head)
        return full or any(
            all(key in part for key in (b'"annotation_id":', b'"annotator":'))
            for part in (head, tail)
        )

    return layout.sniff(Path(path), matches)


def open_dataset(path: Path, options: ReadOptions, notes: Notes) -> dict[str, Source]:
    """Open Label Studio exports.

    Of several annotations of a task the first ground truth counts, else the one updated last;
    predictions never do. Coordinates are percent of the image, which Label Studio keeps unturned.
    Polygons keep their points, brush strokes become RLE, ellipses polygons of the same area.
    Images lie beside the JSON or in ``images/``, with or without the prefix of an upload.

    Args:
        path: file, or folder of such files; sub-folders train, val and test are splits.
        options: how to read.
        notes: takes what is changed or left out while the records are read.

    Returns:
        split -> source; ``"all"`` where there are no splits.

    Raises:
        UserError: nothing there, or a file that cannot be used.
    """
    return open_splits(_Reader, path, options, notes)


class _Reader(FileReader):
    def survey(self) -> tuple[list[str], int]:
        """Return the classes that occur, sorted, and how many images."""
        found: set[str] = set()
        count = 0
        silent = Notes(NOTES)
        for path in self.paths:
            for task in self._tasks(path, silent):
                count += 1
                for _, value in _regions(_chosen(task, silent) or [], task.where, silent):
                    if _kind(value) not in (None, "keypoint"):
                        found.update(_labels(value)[:1])
        return sorted(found), count

    def _tasks(self, path: Path, notes: Notes) -> list[_Task]:
        entries = layout.read_labels(path, list, _MEANT, self.options, notes)
        where = path.relative_to(self.root).as_posix()
        try:
            return [] if entries is None else _read_tasks(path, entries, where)
        except UserError as error:
            layout.skip_or_raise(error, "label_broken", where, self.options, notes)
            return []

    def records(self, seen: dict[str, str], notes: Notes) -> Iterator[ImageRecord]:
        """Read one file after the other."""
        for path in self.paths:
            for task in self._tasks(path, notes):
                record = self._record(path, task, seen, notes)
                if record is not None:
                    yield record

    def _record(
        self, path: Path, task: _Task, seen: dict[str, str], notes: Notes
    ) -> ImageRecord | None:
        results = _chosen(task, notes)
        code = "image_missing"
        try:
            address, variants = _image_name(path, task)
            name = self.finder.find(address, path.parent, variants)
            code = "label_broken"
            layout.take_once(name, task.where, seen)
            if results is None:
                notes.add("image_unannotated", task.where, name)
                return None
            code = "image_broken"
            for claimed in _sizes(results) or [None]:
                size = layout.checked_size(self.finder.root / name, claimed, self.options)
        except UserError as error:
            if results is None:
                notes.add("image_unannotated", task.where)
                return None
            layout.skip_or_raise(error, code, task.where, self.options, notes)
            return None
        record = ImageRecord(name, *size)
        for number, value in _regions(results, task.where, notes):
            place = f"{task.where}, region {number}"
            try:
                record.instances.append(_instance(value, size, place, notes))
            except ShapeError as error:
                notes.add(error.code, place, error.detail)
        return record


def _read_tasks(path: Path, entries: list, where: str) -> list[_Task]:
    tasks: list[_Task] = []
    rows: dict[Any, _Task] = {}
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict):
            raise UserError(f"{path}, task {number} is not a JSON object; it is not {_MEANT}.")
        id_ = entry.get("id")
        place = f"{where}, task {id_ if type(id_) is int else number}"
        annotations = entry.get("annotations", entry.get("completions"))
        if isinstance(annotations, list) and isinstance(entry.get("data"), dict):
            tasks.append(_Task(place, entry["data"], annotations))
        elif annotations is None and "data" not in entry:
            annotation = {"result": _minimal_results(entry), "updated_at": entry.get("updated_at")}
            key = id_ if type(id_) is int else ("row", number)
            if key not in rows:
                rows[key] = _Task(place, entry, [])
                tasks.append(rows[key])
            rows[key].annotations.append(annotation)
        else:
            raise UserError(
                f"{path}, task {number} has no annotations or data; it is not {_MEANT}."
            )
    return tasks


def _minimal_results(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what JSON-MIN keeps of the regions as results of the full export."""
    results = []
    for listed in row.values():
        for region in listed if isinstance(listed, list) else ():
            if isinstance(region, dict) and "original_width" in region:
                sizes = {key: region[key] for key in _REGION_FIELDS if key in region}
                value = {key: region[key] for key in region if key not in _REGION_FIELDS}
                results.append({**sizes, "value": value})
    return results


def _chosen(task: _Task, notes: Notes) -> list | None:
    """Return the results of the annotation that counts; None where there is none."""
    usable = []
    for annotation in task.annotations:
        if not isinstance(annotation, dict) or not isinstance(annotation.get("result"), list):
            notes.add("annotation_other", task.where, "malformed")
        elif annotation.get("was_cancelled") or annotation.get("cancelled"):
            notes.add("annotation_cancelled", task.where)
        else:
            usable.append(annotation)
    if not usable:
        return None
    chosen = next((each for each in usable if each.get("ground_truth") is True), None)
    if chosen is None:
        dates = [str(each["updated_at"]) if each.get("updated_at") else "" for each in usable]
        chosen = usable[max(range(len(usable)), key=lambda index: (dates[index], index))]
    for _ in usable[1:]:
        notes.add("annotation_other", task.where)
    return chosen["result"]


def _regions(results: list, where: str, notes: Notes) -> list[tuple[int, dict[str, Any]]]:
    """Join the results of one region, as ``Labels`` beside ``Polygon`` gives two of them."""
    regions: dict[Any, tuple[int, dict[str, Any]]] = {}
    for number, result in enumerate(results, 1):
        value = result.get("value") if isinstance(result, dict) else None
        if not isinstance(value, dict):
            kind = result.get("type") if isinstance(result, dict) else result
            notes.add("field_unknown", f"{where}, result {number}", show(kind))
            continue
        id_ = result.get("id")
        key = id_ if isinstance(id_, str) else number
        regions.setdefault(key, (number, {}))[1].update(value)
    found = []
    for number, value in regions.values():
        if _GEOMETRY.isdisjoint(value):
            notes.add("field_unknown", f"{where}, result {number}", show(list(value)[:5]))
        else:
            found.append((number, value))
    return found


def _kind(value: dict[str, Any]) -> str | None:
    for key, kind in (("rle", "brush"), ("points", "polygon"), ("radiusX", "ellipse")):
        if key in value:
            return kind
    if "x" not in value or "y" not in value:
        return None
    return "rectangle" if "height" in value else "keypoint"


def _labels(value: dict[str, Any]) -> list[str]:
    """Return the labels of a region, or else what was chosen for it."""
    keys = [key for key in value if key.endswith("labels")] + ["choices"]
    for key in keys:
        listed = value.get(key)
        if isinstance(listed, list) and listed:
            return [name for name in map(layout.class_name, listed) if name is not None]
    return []


def _instance(value: dict[str, Any], size: tuple[int, int], place: str, notes: Notes) -> Instance:
    labels = _labels(value)
    kind = _kind(value)
    if kind is None:
        raise ShapeError("shape_type", show(list(value)[:5]))
    if kind == "keypoint":
        raise ShapeError("shape_without_area", "a key point")
    if not labels:
        raise ShapeError("shape_unlabelled")
    area = _area(kind, value, size)
    if kind == "rectangle":
        notes.add("box_only", place)
    elif kind == "ellipse":
        notes.add("curve_as_polygon", place)
    if len(labels) > 1:
        notes.add("label_ambiguous", place, ", ".join(labels))
    known = _GEOMETRY.union(key for key in value if key.endswith("labels"))
    extra = layout.plain_extra(value, known, place, notes)
    return Instance(labels[0], area, place, 0, extra)


def _area(kind: str, value: dict[str, Any], size: tuple[int, int]) -> Segmentation:
    width, height = size
    if kind == "brush":
        if value.get("format", "rle") != "rle":
            raise ShapeError("shape_type", show(value["format"]))
        return brush_rle(value["rle"], (height, width))
    if kind == "polygon":
        points = shapes.point_pairs(value["points"], 3)
        return shapes.polygon(points * np.array([width, height]) / 100)
    keys = ("width", "height") if kind == "rectangle" else ("radiusX", "radiusY")
    x, y, across, down = shapes.numbers(*(value.get(key) for key in ("x", "y", *keys)))
    (degrees,) = shapes.numbers(value.get("rotation") or 0)
    x, y, across, down = (x * width, y * height, across * width, down * height)
    if kind == "rectangle":
        return shapes.box_polygon(x / 100, y / 100, across / 100, down / 100, degrees)
    # x and y are the centre, whatever the manual says: the ellipse is drawn and turned about it.
    radians = math.radians(degrees)
    return shapes.ellipse_polygon(x / 100, y / 100, across / 100, down / 100, radians)


def _sizes(results: list) -> list[tuple[Any, Any]]:
    """Return the different sizes, width and height in px, that the results claim."""
    sizes: dict[tuple, None] = {}
    for result in results:
        if isinstance(result, dict):
            size = (result.get("original_width"), result.get("original_height"))
            if all(type(side) in (int, float) and 0 < side < 2**31 for side in size):
                sizes[size] = None
    return list(sizes)


def _image_name(path: Path, task: _Task) -> tuple[str, tuple[str, ...]]:
    found = {
        key: value
        for key, value in task.fields.items()
        if isinstance(value, str) and _suffix(value) in IMAGE_SUFFIXES
    }
    if "image" in task.fields and isinstance(task.fields["image"], str):
        value = task.fields["image"]
    elif len(set(found.values())) == 1:
        value = next(iter(found.values()))
    else:
        words = f"several images ({', '.join(map(show, found))})" if found else "no image"
        raise UserError(
            f"{path}: {task.where} has {words} in its data; export tasks of one image each, named "
            '"image".'
        )
    return _plain_name(value)


def _suffix(value: str) -> str:
    return Path(_plain_name(value)[0][-64:]).suffix.lower()


def _plain_name(value: str) -> tuple[str, tuple[str, ...]]:
    """Return the path that a task's image means, and base names that the file may have."""
    address, _, query = value.partition("?")
    asked = parse_qs(query[:10_000], errors="replace").get("d", [""])[0]
    if asked:  # /data/local-files/?d=dir/name.jpg
        return asked, ()
    name = unquote(address)
    base = re.split(r"[/\\]", name)[-1]
    upload = re.match(r"[0-9a-f]{8}-(.+)", base)
    return name, (upload[1],) if upload else ()
