"""Label Studio: its JSON and JSON-MIN exports of images, and pre-annotations for it.

The package ``label-studio-sdk`` is not used: it brings a web client and drops unknown regions.
"""

import io
import json
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import quote, unquote
from xml.sax.saxutils import quoteattr

import numpy as np

from microplastics import __version__
from microplastics.data.coco import show
from microplastics.data.colors import class_colors
from microplastics.data.formats import layout, shapes
from microplastics.data.formats.base import ImageRecord, Instance, Notes, ReadOptions, Source
from microplastics.data.formats.layout import IMAGE_SUFFIXES
from microplastics.data.formats.shapes import ShapeError, crop_rle
from microplastics.structures import rle
from microplastics.structures.crop_masks import CropMasks
from microplastics.utils.errors import UserError
from microplastics.utils.io import atomic_write

_GEOMETRY = frozenset(
    ("x", "y", "width", "height", "rotation", "points", "closed", "radiusX", "radiusY")
    + ("rle", "format", "imageDataURL", "vertices", "sequence")
)
# Fields of a region that JSON-MIN puts beside its geometry.
_REGION_FIELDS = frozenset(("original_width", "original_height", "image_rotation"))
_CHANNELS = 4  # of a brush mask: RGBA, 8 bits each
# Bits of the lengths of its runs, as Label Studio chooses them.
_WIDTHS = (3, 4, 8, 16)
_TASKS, _INTERFACE = "tasks.json", "interface.xml"
_POLYGON, _BRUSH = "polygon", "brush"  # names of the tools in the interface
# Relative to the folder that Label Studio serves (LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT).
_LOCAL_FILE = "/data/local-files/?d="


class _Task(NamedTuple):
    where: str
    fields: dict[str, Any]
    annotations: list[Any]


def detect(path: Path) -> bool:
    """Return whether a file, or one of the first below a folder, is a Label Studio export."""

    def matches(text: bytes) -> bool:
        full = b'"annotations":[' in text and (b'"result":[' in text or b'"data":{' in text)
        minimal = b'"annotation_id":' in text and b'"annotator":' in text
        return text.startswith(b"[{") and (full or minimal)

    return layout.sniff(path, matches)


def read(path: Path, options: ReadOptions, notes: Notes) -> dict[str, Source]:
    """Open a Label Studio export, or a folder of them (see ``base.Reader.read``).

    Of several annotations of a task the first ground truth is used, else the latest; predictions
    never are. Coordinates are percent of the image without its EXIF rotation. Polygons keep their
    points, brush strokes become RLE, ellipses polygons of the same area.
    """
    return layout.read_splits(_Reader, path, options, notes)


class _Reader(layout.FileReader):
    content = list
    meaning = "a list of tasks; export as JSON or JSON-MIN from Label Studio"

    def records(self, data: Any, where: str) -> Iterator[ImageRecord]:
        notes = self.notes
        for task in self._tasks(data, where):
            with layout.skipping(task.where, self.options, notes):
                name = _image_name(task)
                results = _chosen(task, notes)
                if results is None:
                    self.leave_out(name, task.where)
                    continue
                claimed = [
                    (each.get("original_width"), each.get("original_height"))
                    for each in results
                    if isinstance(each, dict)
                ]
                record = self.image([name], task.where, claimed)
                for number, value in _regions(results, task.where, notes):
                    place = f"{task.where}, region {number}"
                    with shapes.noting(notes, place):
                        labels, shape = _labels(value), _shape(value, record.size)
                        known = _GEOMETRY.union(key for key in value if key.endswith("labels"))
                        instance = self.instance(labels, shape, record, place, value, known)
                        record.instances.append(instance)
                yield record

    def _tasks(self, entries: list, where: str) -> Iterable[_Task]:
        # JSON-MIN has a row for each annotation of a task.
        tasks: dict[Any, _Task] = {}
        for number, entry in enumerate(entries, 1):
            fields = entry if isinstance(entry, dict) else {}
            id_ = fields.get("id") if type(fields.get("id")) is int else None
            annotations, data = fields.get("annotations", fields.get("completions")), fields.get(
                "data"
            )
            key: Any = ("task", number)
            if fields and annotations is None and "data" not in fields:
                annotations, data = [_minimal(fields)], fields
                key = key if id_ is None else id_
            if not isinstance(annotations, list) or not isinstance(data, dict):
                raise self.foreign(f"{where}, task {number} has no annotations and data")
            task = _Task(f"{where}, task {number if id_ is None else id_}", data, [])
            tasks.setdefault(key, task).annotations.extend(annotations)
        return tasks.values()


def _minimal(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of JSON-MIN as an annotation of the full export."""
    results = []
    for listed in row.values():
        for region in listed if isinstance(listed, list) else ():
            if isinstance(region, dict) and "original_width" in region:
                value = {key: region[key] for key in region if key not in _REGION_FIELDS}
                results.append({**region, "id": None, "value": value})
    return {"result": results, "updated_at": row.get("updated_at")}


def _chosen(task: _Task, notes: Notes) -> list | None:
    """Return the results of the annotation that is used; None if there is none."""
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
    for _ in usable[1:]:
        notes.add("annotation_other", task.where)
    for annotation in usable:
        if annotation.get("ground_truth") is True:
            return annotation["result"]
    latest = max(reversed(usable), key=lambda each: str(each.get("updated_at") or ""))
    return latest["result"]


def _regions(results: list, where: str, notes: Notes) -> Iterator[tuple[int, dict[str, Any]]]:
    """Join the results of each region: ``Labels`` beside ``Polygon`` gives two of them."""
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
    for number, value in regions.values():
        if _GEOMETRY.isdisjoint(value):
            notes.add("field_unknown", f"{where}, result {number}", show(list(value)[:5]))
        else:
            yield number, value


def _labels(value: dict[str, Any]) -> list[str]:
    """Return the labels of a region, or else its choices."""
    for key in [*(key for key in value if key.endswith("labels")), "choices"]:
        listed = value.get(key)
        if isinstance(listed, list) and listed:
            return [name for name in map(layout.class_name, listed) if name is not None]
    return []


def _shape(value: dict[str, Any], size: tuple[int, int]) -> tuple[str, Any]:
    """Return kind and values of a region, as ``shapes.area_of`` takes them."""
    height, width = size
    if "rle" in value:
        if value.get("format", "rle") != "rle":
            raise ShapeError("shape_type", show(value["format"]))
        return "mask", brush_rle(value["rle"], size)
    if "points" in value:
        points = shapes.points(shapes.flat(value["points"]))
        # Percent do not hold px to the last bit, and pixels at the border hang on it.
        pixels = np.round(points * np.array([width, height]) / 100, 6)
        return "polygon", pixels.reshape(-1).tolist()
    if "x" not in value or "y" not in value:
        raise ShapeError("shape_type", show(list(value)[:5]))
    # x and y are the centre of an ellipse, unlike in the manual: it is turned about it.
    kind, keys = "ellipse", ("x", "y", "radiusX", "radiusY")
    if "radiusX" not in value:
        kind, keys = "box", ("x", "y", "width", "height")
        if "height" not in value:  # a key point
            return "point", []
    x, y, across, down, degrees = shapes.numbers(
        [*(value.get(key) for key in keys), value.get("rotation") or 0]
    ).tolist()
    percent = [x * width / 100, y * height / 100, across * width / 100, down * height / 100]
    return kind, [*percent, math.radians(degrees)]


def _image_name(task: _Task) -> str:
    """Return the path or URL of a task's only image."""
    value = task.fields.get("image")
    if isinstance(value, str):
        return value
    found = {
        key: value
        for key, value in task.fields.items()
        if isinstance(value, str)
        and PurePosixPath(unquote(value.split("?")[0])).suffix.lower() in IMAGE_SUFFIXES
    }
    if len(set(found.values())) == 1:
        return next(iter(found.values()))
    words = f"several images ({', '.join(map(show, found))})" if found else "no image"
    raise UserError(
        f'{task.where} has {words} in its data; expected one image, named "image".',
        code="annotations_invalid",
    )


def brush_rle(values: Any, size: tuple[int, int]) -> dict[str, Any]:
    """Decode a brush mask.

    A pixel belongs to the mask if its alpha is more than half of the largest: the soft rim of a
    stroke does not widen it.

    Args:
        values: list of bytes, unchecked: 32 bits with the number of values, 5 with their width,
            4 times 4 with the widths of run lengths; then runs of one value or of literals.
        size: height and width of the image in px.

    Returns:
        compressed COCO RLE.

    Raises:
        ShapeError: it is malformed, cut off, of another size, or empty.
    """
    height, width = size
    line = width * _CHANNELS
    read = _bit_reader(values)
    count = read(32)
    if count != height * line:
        raise ShapeError("shape_broken", f"a brush mask of {count} values, not {height * line}")
    if read(5) + 1 != 8:
        raise ShapeError("shape_broken", "a brush mask of values that are not bytes")
    widths = [read(4) + 1 for _ in range(4)]
    flat = np.zeros(count, np.uint8)  # pages that stay zero are never touched
    first, last, position = count, 0, 0
    while position < count:
        repeated = read(1)
        length = read(widths[read(2)]) + 1
        end = position + length
        if end > count:
            raise ShapeError("shape_broken", "a brush mask with too many values")
        values = read(8) if repeated else list(read(8 * length).to_bytes(length, "big"))
        if values:  # not a run of 0
            flat[position:end] = values
            first, last = min(first, position), end - 1
        position = end
    y0, y1 = first // line, last // line + 1
    alpha = flat[y0 * line : y1 * line].reshape(-1, width, _CHANNELS)[:, :, 3]
    inside = alpha > int(alpha.max(initial=0)) // 2
    if not inside.any():
        raise ShapeError("shape_broken", "a brush mask without a pixel")
    return crop_rle(inside, 0, y0, size)


def _bit_reader(values: Any) -> Callable[[int], int]:
    """Return a function that reads the next number of so many bits, the highest first."""
    try:
        data = bytes(values) if isinstance(values, list) else b""
    except (TypeError, ValueError) as error:
        raise ShapeError("shape_broken", "a brush mask that is not a list of bytes") from error
    text = io.StringIO("".join(map("{:08b}".format, data)))

    def read(bits: int) -> int:
        digits = text.read(bits)
        if len(digits) < bits:
            raise ShapeError("shape_broken", "a brush mask that is cut off")
        return int(digits, 2)

    return read


def write(sources: dict[str, Source], output: Path, notes: Notes) -> None:
    """Write pre-annotations: ``output/SPLIT/tasks.json`` to import, and ``output/interface.xml``.

    Particles are predictions of their tasks, which people take over and correct. Those of one
    polygon keep their points; masks and several polygons become brush strokes with every pixel.
    Images are named as local files below ``output``.
    """
    classes: dict[str, None] = {}
    for split, source in sources.items():
        classes.update(dict.fromkeys(source.classes))
        with atomic_write(output / split / _TASKS) as file:
            separator = "["
            for record in source.records():
                name = layout.safe_name(record.file_name, f"An image of {split}")
                task = _task(record, f"{split}/{name}", notes)
                file.write(separator + json.dumps(task, ensure_ascii=False))
                separator = ",\n"
            file.write("]\n" if separator != "[" else "[]\n")
    with atomic_write(output / _INTERFACE) as file:
        file.write(_interface(list(classes)))


def _interface(classes: list[str]) -> str:
    """The labelling interface of a project, with the names that the tasks use."""
    colors = ["#{:02x}{:02x}{:02x}".format(*color) for color in class_colors(classes)]
    labels = "".join(
        f"    <Label value={quoteattr(name)} background={quoteattr(color)}/>\n"
        for name, color in zip(classes, colors, strict=True)
    )
    tools = "".join(
        f'  <{tool} name="{name}" toName="image">\n{labels}  </{tool}>\n'
        for tool, name in (("PolygonLabels", _POLYGON), ("BrushLabels", _BRUSH))
    )
    return f'<View>\n  <Image name="image" value="$image" zoom="true"/>\n{tools}</View>\n'


def _task(record: ImageRecord, path: str, notes: Notes) -> dict[str, Any]:
    results = []
    for number, instance in enumerate(record.instances, 1):
        kind, value = _value(instance, record)
        result = {
            "id": f"particle{number}",
            "type": f"{kind}labels",
            "from_name": kind,
            "to_name": "image",
            "original_width": record.width,
            "original_height": record.height,
            "image_rotation": 0,
            "value": {**value, f"{kind}labels": [instance.category]},
        }
        score = instance.extra.get("score")
        if isinstance(score, (int, float)):
            result["score"] = score
        for key in instance.extra.keys() - {"score"}:
            notes.add("extra_lost", instance.where, show(key))
        if instance.iscrowd:
            notes.add("crowd_lost", instance.where)
        results.append(result)
    for key in record.extra:
        notes.add("extra_lost", record.file_name, show(key))
    prediction = {"model_version": f"microplastics {__version__}", "result": results}
    return {"data": {"image": _LOCAL_FILE + quote(path)}, "predictions": [prediction]}


def _value(instance: Instance, record: ImageRecord) -> tuple[str, dict[str, Any]]:
    segmentation, (height, width) = instance.segmentation, record.size
    if isinstance(segmentation, list) and len(segmentation) == 1:
        points = np.reshape(segmentation[0], (-1, 2)) * 100 / np.array([width, height])
        return _POLYGON, {"points": points.tolist(), "closed": True}
    masks = CropMasks.from_coco([segmentation], record.size)
    brush = encode_brush(masks.crops[0], masks.offsets[0], width, height)
    return _BRUSH, {"format": "rle", "rle": brush}


def encode_brush(crop: np.ndarray, offset: Iterable[int], width: int, height: int) -> list[int]:
    """Encode a mask as :func:`brush_rle` reads it, from its crop only.

    Args:
        crop: (h, w) bool.
        offset: x and y of its first pixel.
        width, height: of the image in px.
    """
    x, y = offset
    # Columns of the transposed mask are its rows.
    runs = rle.runs_of_crop(crop.T, (int(y), int(x)), width)
    lengths = rle.counts_of_runs(*runs, width * height) * _CHANNELS
    longest = 1 << _WIDTHS[-1]
    bits = [f"{width * height * _CHANNELS:032b}", f"{8 - 1:05b}"]
    bits += [f"{each - 1:04b}" for each in _WIDTHS]
    for number, length in enumerate(lengths.tolist()):
        value = 255 * (number % 2)
        for size in [longest] * (length // longest) + [length % longest] * (length % longest > 0):
            choice = next(i for i, each in enumerate(_WIDTHS) if size <= 1 << each)
            bits.append(f"1{choice:02b}{size - 1:0{_WIDTHS[choice]}b}{value:08b}")
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))
