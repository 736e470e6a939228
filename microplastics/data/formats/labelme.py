"""LabelMe 4 and 5: one JSON an image.

The package ``labelme`` is not used: it is a Qt application and has neither masks of the whole
image nor groups.
"""

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from microplastics.data.coco import show
from microplastics.data.formats import layout, shapes
from microplastics.data.formats.base import ImageRecord, Instance, Notes, ReadOptions, Source
from microplastics.data.formats.shapes import ShapeError
from microplastics.structures.crop_masks import CropMasks
from microplastics.utils.io import atomic_write

_VERSION = "5.5.0"  # of the JSON that is written
_FILE_FIELDS = frozenset(
    ("version", "shapes", "imagePath", "imageData", "imageHeight", "imageWidth")
    + ("lineColor", "fillColor")
)
_SHAPE_FIELDS = frozenset(
    ("label", "points", "group_id", "shape_type", "mask", "line_color", "fill_color")
)
_KINDS = {  # as shapes.area_of calls them
    **dict.fromkeys(("polygon", "quadrilateral"), "polygon"),
    **dict.fromkeys(("rectangle", "rotation", "oriented_rectangle"), "box"),
    **dict.fromkeys(("line", "linestrip"), "line"),
    **dict.fromkeys(("point", "points"), "point"),
    **{"circle": "circle", "mask": "mask"},
}
_TYPES = {"flags": dict, "description": str}
_CROWD = "iscrowd"  # flag of a region of particles that were not outlined one by one


def detect(path: Path) -> bool:
    """Return whether a file, or one of the first below a folder, is a LabelMe JSON."""

    def matches(text: bytes) -> bool:
        keys = (b'"imagePath":', b'"imageHeight":')
        return text.startswith(b"{") and b'"shapes":[' in text and any(key in text for key in keys)

    return layout.sniff(path, matches)


def read(path: Path, options: ReadOptions, notes: Notes) -> dict[str, Source]:
    """Open one LabelMe JSON, or a folder of them (see ``base.Reader.read``).

    Shapes with the same ``group_id`` and label become one instance. Polygons keep their
    coordinates, circles become polygons of the same area, lines get ``options.line_width``; masks
    and groups with a mask become RLE. ``imageData`` is read where the image file is missing.
    """
    return layout.read_splits(_Reader, path, options, notes)


class _Reader(layout.FileReader):
    meaning = "an object with shapes and imagePath; give a folder of LabelMe's JSON files only"

    def records(self, data: Any, where: str) -> Iterator[ImageRecord]:
        entries = data.get("shapes")
        if not isinstance(entries, list):
            raise self.foreign(f"{where} has no list of shapes")
        claimed = (data.get("imageWidth"), data.get("imageHeight"))
        with layout.skipping(where, self.options, self.notes):
            record = self.image([data.get("imagePath")], where, [claimed], data.get("imageData"))
            record.instances = self._instances(entries, record, where)
            record.extra = layout.extra_fields(data, _FILE_FIELDS, where, self.notes)
            yield record

    def _instances(self, entries: list, record: ImageRecord, where: str) -> list[Instance]:
        members = []
        for number, entry in enumerate(entries, 1):
            place = f"{where}, shape {number}"
            with shapes.noting(self.notes, place):
                instance, group = self._instance(entry, record, place), entry.get("group_id")
                members.append((group if type(group) in (int, str) else None, instance))
        return layout.join_groups(members, record, where, self.notes)

    def _instance(self, entry: Any, record: ImageRecord, place: str) -> Instance:
        if not isinstance(entry, dict):
            raise ShapeError("shape_broken", "not a JSON object")
        label, shape = layout.class_name(entry.get("label")), _shape(entry, record.size)
        flags, crowd = entry.get("flags"), 0
        if isinstance(flags, dict) and _CROWD in flags:
            crowd = int(flags[_CROWD] is True)
            entry = {**entry, "flags": {key: flags[key] for key in flags if key != _CROWD}}
        labels = [label] if label else []
        instance = self.instance(labels, shape, record, place, entry, _SHAPE_FIELDS)
        instance.iscrowd = crowd
        return instance


def _shape(entry: dict[str, Any], size: tuple[int, int]) -> tuple[str, Any]:
    """Return kind and values of a shape, as ``shapes.area_of`` takes them."""
    name = entry.get("shape_type") or "polygon"
    kind = _KINDS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise ShapeError("shape_type", show(name))
    if kind == "mask":
        return kind, _mask(entry, size)
    if kind == "point":
        return kind, []
    values = shapes.flat(entry.get("points"))
    if kind in ("box", "circle") and len(values) == 4:
        x0, y0, x1, y1 = shapes.numbers(values).tolist()
        if kind == "circle":
            return kind, [x0, y0, float(np.hypot(x1 - x0, y1 - y0))]
        return kind, [min(x0, x1), min(y0, y1), abs(x1 - x0), abs(y1 - y0)]
    return kind, values


def _mask(entry: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """Read a ``mask`` shape, whose PNG in base64 fills the box between its two points."""
    values = shapes.flat(entry.get("points"))
    if len(values) != 4:
        raise ShapeError("shape_broken", "a mask without its two corners")
    x0, y0, x1, y1 = np.rint(shapes.numbers(values)).astype(int).tolist()
    # A pixel more than the corners give: some writers take the second one as exclusive.
    width, height = min(x1 - x0 + 2, size[1]), min(y1 - y0 + 2, size[0])
    try:
        content = base64.b64decode(entry.get("mask"), validate=True)
    except (TypeError, ValueError) as error:
        raise ShapeError("shape_broken", "a mask that is not a PNG in base64") from error
    return shapes.crop_rle(shapes.png_mask(content, (height, width)), x0, y0, size)


def write(sources: dict[str, Source], output: Path, notes: Notes) -> None:
    """Write ``output/SPLIT/NAME.json`` for each image, to lie beside the image.

    Polygons keep their coordinates, the parts of an instance get one ``group_id``, RLEs become
    ``mask`` shapes with every pixel, crowds get the flag ``iscrowd``. The second of two images
    that differ only in their suffix gets ``NAME.SUFFIX.json``.
    """
    for split, source in sources.items():
        for record, name in layout.records_to_write(split, source, ".json", keep_both=True):
            with atomic_write(output / split / name) as file:
                file.write(json.dumps(_document(record, notes), ensure_ascii=False))


def _document(record: ImageRecord, notes: Notes) -> dict[str, Any]:
    entries: list[dict[str, Any]] = []
    groups = 0
    for instance in record.instances:
        parts, group = list(_parts(instance)), None
        if len(parts) > 1:
            notes.add("parts_split", instance.where)
            group = groups = groups + 1
        fields = _extra_fields(instance.extra, _SHAPE_FIELDS, instance.where, notes)
        flags = fields.pop("flags", {})
        if instance.iscrowd:
            flags = {**flags, _CROWD: True}
        description = fields.pop("description", "")
        for part in parts:
            entry = {"label": instance.category, **part, "group_id": group}
            entries.append({**entry, "description": description, "flags": flags, **fields})
    fields = _extra_fields(record.extra, _FILE_FIELDS, record.file_name, notes)
    return {
        "version": _VERSION,
        "flags": fields.pop("flags", {}),
        "shapes": entries,
        "imagePath": PurePosixPath(record.file_name).name,
        "imageData": None,
        "imageHeight": record.height,
        "imageWidth": record.width,
        **fields,
    }


def _parts(instance: Instance) -> Iterator[dict[str, Any]]:
    if isinstance(instance.segmentation, list):
        for flat in instance.segmentation:
            pairs = [[x, y] for x, y in zip(flat[::2], flat[1::2], strict=True)]
            yield {"points": pairs, "shape_type": "polygon", "mask": None}
        return
    mask = CropMasks.from_rles([instance.segmentation])
    (crop,), ((x0, y0),) = mask.crops, mask.offsets
    png = io.BytesIO()
    Image.fromarray(crop).save(png, "PNG")
    last = (x0 + crop.shape[1] - 1, y0 + crop.shape[0] - 1)
    corners = [[float(x), float(y)] for x, y in ((x0, y0), last)]
    text = base64.b64encode(png.getvalue()).decode("ascii")
    yield {"points": corners, "shape_type": "mask", "mask": text}


def _extra_fields(
    extra: dict[str, Any], known: frozenset[str], where: str, notes: Notes
) -> dict[str, Any]:
    """Return the further fields that LabelMe can read; note the others."""
    kept = {}
    for key, value in extra.items():
        if key in known or not isinstance(value, _TYPES.get(key, object)):
            notes.add("extra_lost", where, show(key))
        else:
            kept[key] = value
    return kept
