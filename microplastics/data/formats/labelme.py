"""LabelMe 4 and 5: one JSON an image, read and written.

Read and written by hand, not by the ``labelme`` package: that brings a Qt application along and
gives neither masks of the whole image nor groups.
"""

import base64
import io
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from microplastics.data.coco import show
from microplastics.data.formats import layout, shapes
from microplastics.data.formats.base import NOTES, ImageRecord, Instance, Notes, ReadOptions, Source
from microplastics.data.formats.layout import FileReader, open_splits
from microplastics.data.formats.shapes import Segmentation, ShapeError
from microplastics.data.segmentation import SegmentationError, measure
from microplastics.structures import rle as runs
from microplastics.utils.errors import UserError
from microplastics.utils.io import atomic_write

NAME = "labelme"

_VERSION = "5.5.0"  # of the JSON that is written
_MEANT = "an object with shapes and imagePath; give the folder of LabelMe's JSON files alone"
_FILE_FIELDS = frozenset(
    ("version", "shapes", "imagePath", "imageData", "imageHeight", "imageWidth")
    + ("lineColor", "fillColor")
)
_SHAPE_FIELDS = frozenset(
    ("label", "points", "group_id", "shape_type", "mask", "line_color", "fill_color")
)
_POLYGONS = ("polygon", "quadrilateral")
_BOXES = ("rectangle", "rotation", "oriented_rectangle")
_LINES = ("line", "linestrip")
_POINTS = ("point", "points")
_CROWD = "iscrowd"  # the flag of a region of particles that were not told apart


def looks_like(path: Path) -> bool:
    """Whether a file, or one of the first below a folder, is a LabelMe JSON."""

    def matches(head: bytes, tail: bytes) -> bool:
        if not head.lstrip(b"\xef\xbb\xbf\xff\xfe").startswith(b"{") or b'"shapes":[' not in head:
            return False
        return any(
            key in part for key in (b'"imagePath":', b'"imageHeight":') for part in (head, tail)
        )

    return layout.sniff(Path(path), matches)


def open_dataset(path: Path, options: ReadOptions, notes: Notes) -> dict[str, Source]:
    """Open a folder of LabelMe JSON files, its sub-folders included, or one file.

    Shapes of one ``group_id`` and label become one instance. Polygons keep their coordinates;
    circles become polygons of the same area; lines get ``options.line_width``; masks, and groups
    that hold one, become RLE. ``imageData`` is never used.

    Args:
        path: folder or file; sub-folders train, val and test are splits.
        options: how to read.
        notes: takes what is changed or left out while the records are read.

    Returns:
        split -> source; ``"all"`` where there are no splits.

    Raises:
        UserError: nothing there, or a file that cannot be used.
    """
    return open_splits(_Reader, path, options, notes)


class _Reader(FileReader):
    def survey(self) -> tuple[list[str], int | None]:
        """Read every file for its labels."""
        found = set()
        for path in self.paths:
            data = layout.read_labels(path, dict, _MEANT, self.options, Notes(NOTES))
            entries = data.get("shapes") if data is not None else None
            for entry in entries if isinstance(entries, list) else ():
                if isinstance(entry, dict) and self._has_area(entry):
                    found.add(layout.class_name(entry.get("label")))
        return sorted(found - {None}), len(self.paths)

    def _has_area(self, entry: dict[str, Any]) -> bool:
        kind = entry.get("shape_type")
        return kind not in _POINTS and (kind not in _LINES or self.options.line_width is not None)

    def records(self, seen: dict[str, str], notes: Notes) -> Iterator[ImageRecord]:
        """Read one file after the other."""
        for path in self.paths:
            data = layout.read_labels(path, dict, _MEANT, self.options, notes)
            if data is None:
                continue
            record = self._record(path, data, seen, notes)
            if record is not None:
                yield record

    def _record(
        self, path: Path, data: dict, seen: dict[str, str], notes: Notes
    ) -> ImageRecord | None:
        where = path.relative_to(self.root).as_posix()
        code = "label_broken"
        try:
            entries = data.get("shapes")
            if not isinstance(entries, list):
                raise UserError(f"{path} has no list of shapes; it is not {_MEANT}.")
            code = "image_missing"
            name = _find_image(path, data, self.finder)
            code = "label_broken"
            layout.take_once(name, where, seen)
            code = "image_broken"
            claimed = (data.get("imageWidth"), data.get("imageHeight"))
            width, height = layout.checked_size(self.finder.root / name, claimed, self.options)
        except UserError as error:
            layout.skip_or_raise(error, code, where, self.options, notes)
            return None
        instances = self._instances(entries, (height, width), where, notes)
        extra = layout.plain_extra(data, _FILE_FIELDS, where, notes)
        return ImageRecord(name, width, height, instances, extra)

    def _instances(
        self, entries: list, size: tuple[int, int], where: str, notes: Notes
    ) -> list[Instance]:
        groups: dict[tuple, list[tuple[Instance, Segmentation]]] = {}
        labels = defaultdict(set)
        for number, entry in enumerate(entries, 1):
            place = f"{where}, shape {number}"
            try:
                instance = self._instance(entry, size, place, notes)
            except ShapeError as error:
                notes.add(error.code, place, error.detail)
                continue
            group = entry.get("group_id")
            if type(group) not in (int, str):
                groups[(number,)] = [(instance, instance.segmentation)]
                continue
            labels[group].add(instance.category)
            key = (group, instance.category)
            groups.setdefault(key, []).append((instance, instance.segmentation))
        for group, names in labels.items():
            if len(names) > 1:
                notes.add("group_mixed", f"{where}, group {show(group)}", ", ".join(sorted(names)))
        joined = (_joined(members, size, notes) for members in groups.values())
        return [instance for instance in joined if instance is not None]

    def _instance(self, entry: Any, size: tuple[int, int], place: str, notes: Notes) -> Instance:
        if not isinstance(entry, dict):
            raise ShapeError("shape_broken", "not a JSON object")
        category = layout.class_name(entry.get("label"))
        if category is None:
            raise ShapeError("shape_unlabelled", f"label {show(entry.get('label'))}")
        segmentation = self._segmentation(entry, size, place, notes)
        extra = layout.plain_extra(entry, _SHAPE_FIELDS, place, notes)
        flags = extra.get("flags")
        crowd = 0
        if isinstance(flags, dict) and _CROWD in flags:
            flags = dict(flags)
            crowd = int(flags.pop(_CROWD) is True)
            extra = {**extra, "flags": flags}
            if not flags:
                del extra["flags"]
        return Instance(category, segmentation, place, crowd, extra)

    def _segmentation(
        self, entry: dict, size: tuple[int, int], place: str, notes: Notes
    ) -> Segmentation:
        kind, pairs = entry.get("shape_type") or "polygon", entry.get("points")
        if kind == "mask":
            return _mask(entry, size)
        if kind in _POLYGONS:
            return shapes.polygon(shapes.point_pairs(pairs, 3))
        if kind in _BOXES:
            points = shapes.point_pairs(pairs, 2)
            if len(points) not in (2, 4):
                raise ShapeError("shape_broken", f"a rectangle of {len(points)} points")
            notes.add("box_only", place)
            if len(points) == 4:
                return shapes.polygon(points)
            low = points.min(axis=0).tolist()
            return shapes.box_polygon(*low, *np.ptp(points, axis=0).tolist())
        if kind == "circle":
            points = shapes.point_pairs(pairs, 2)
            if len(points) != 2:
                raise ShapeError("shape_broken", f"a circle of {len(points)} points")
            radius = float(np.hypot(*(points[1] - points[0])))
            curve = shapes.circle_polygon(*points[0].tolist(), radius)
            notes.add("curve_as_polygon", place)
            return curve
        if kind in _LINES:
            points = shapes.point_pairs(pairs, 2)
            area = shapes.line_area(points, self.options.line_width, size)
            notes.add("line_as_polygon", place)
            return area
        if kind in _POINTS:
            raise ShapeError("shape_without_area", "points")
        raise ShapeError("shape_type", show(kind))


def _find_image(path: Path, data: dict[str, Any], finder: layout.ImageFinder) -> str:
    try:
        return finder.find(data.get("imagePath"), path.parent)
    except UserError as error:
        if isinstance(data.get("imageData"), str) and data["imageData"]:
            raise UserError(
                f"{path}: {str(error).rstrip('.')}; its picture is embedded as imageData, which is "
                "not read: save it beside the JSON under the name in imagePath (LabelMe's "
                "labelme_export_json does)."
            ) from error
        raise UserError(f"{path}: {error}") from error


def _joined(
    members: list[tuple[Instance, Segmentation]], size: tuple[int, int], notes: Notes
) -> Instance | None:
    """Make one instance of the shapes of a group; None where none of them can be used."""
    first = members[0][0]
    if len(members) == 1:
        return first
    if not all(isinstance(part, list) for _, part in members):
        members = [member for member in members if _can_be_mask(*member, size, notes)]
        if not members:
            return None
    notes.add("group_joined", first.where)
    extra: dict[str, Any] = {}
    for instance, _ in reversed(members):
        extra.update(instance.extra)
    segmentation = shapes.union([part for _, part in members], size)
    crowd = max(instance.iscrowd for instance, _ in members)
    return Instance(first.category, segmentation, first.where, crowd, extra)


def _can_be_mask(
    instance: Instance, part: Segmentation, size: tuple[int, int], notes: Notes
) -> bool:
    try:
        measure(part, *size)
    except SegmentationError as error:
        outside = error.code == "polygon_outside"
        notes.add("shape_outside" if outside else "shape_broken", instance.where, error.detail)
        return False
    return True


def _mask(entry: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """Read a ``mask`` shape: its PNG lies at the first of its two points and fills them."""
    corners = shapes.point_pairs(entry.get("points"), 2)
    if len(corners) != 2:
        raise ShapeError("shape_broken", "a mask without its two corners")
    (x0, y0), (x1, y1) = np.rint(corners).astype(int).tolist()
    # A pixel more than the corners say: some writers take the second one as exclusive.
    limits = (min(y1 - y0 + 2, size[0]), min(x1 - x0 + 2, size[1]))
    return shapes.crop_rle(shapes.png_crop(entry.get("mask"), limits), x0, y0, size)


def write_dataset(sources: dict[str, Source], output: Path, notes: Notes) -> list[Path]:
    """Write one LabelMe JSON an image: ``output/SPLIT/NAME.json``, made to lie beside its image.

    Polygons keep their coordinates, several parts of an instance share a ``group_id``, RLEs
    become ``mask`` shapes with every pixel, a crowd gets the flag ``iscrowd``. Two images whose
    names differ in the ending alone get JSON files with the whole name.

    Args:
        sources: split -> images.
        output: folder; the image of ``file_name`` belongs at ``output/SPLIT/file_name``.
        notes: takes what the format cannot hold.

    Returns:
        the files written.

    Raises:
        UserError: a file cannot be written, or a file name leaves the folder.
    """
    written = []
    for split, source in sources.items():
        taken: set[str] = set()
        progress = tqdm(
            source.records(), split, source.num_images, unit="image", disable=None, leave=False
        )
        for record in progress:
            name = PurePosixPath(record.file_name)
            if name.is_absolute() or ".." in name.parts or re.match(r"[A-Za-z]:", str(name)):
                raise UserError(
                    f"The image {show(record.file_name)} leaves its folder; write its name "
                    "relative to that folder, without .."
                )
            target = name.with_suffix(".json")
            if str(target).lower() in taken:
                target = name.with_name(f"{name.name}.json")
            taken.add(str(target).lower())
            path = Path(output, split, *target.parts)
            with atomic_write(path) as file:
                file.write(json.dumps(_document(record, notes), ensure_ascii=False))
            written.append(path)
    return written


def _document(record: ImageRecord, notes: Notes) -> dict[str, Any]:
    entries: list[dict[str, Any]] = []
    groups = 0
    for instance in record.instances:
        try:
            parts = list(_parts(instance))
        except ValueError as error:
            notes.add("instance_lost", instance.where, str(error))
            continue
        group = None
        if len(parts) > 1:
            notes.add("parts_split", instance.where)
            groups += 1
            group = groups
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
    size = instance.segmentation["size"]
    counts = runs.check_counts(runs.decode_counts(instance.segmentation["counts"]), tuple(size))
    crop, x0, y0 = runs.crop_of_runs(*runs.runs_of_counts(counts), size[0])
    if not crop.size:
        raise ValueError("a mask without a pixel")
    png = io.BytesIO()
    Image.fromarray(crop).save(png, "PNG")
    corners = [[float(x0), float(y0)]]
    corners += [[float(x0 + crop.shape[1] - 1), float(y0 + crop.shape[0] - 1)]]
    text = base64.b64encode(png.getvalue()).decode("ascii")
    yield {"points": corners, "shape_type": "mask", "mask": text}


def _extra_fields(
    extra: dict[str, Any], known: frozenset[str], where: str, notes: Notes
) -> dict[str, Any]:
    """Return what a shape or file can carry beside its own fields; the rest is noted."""
    fields = {}
    for key, value in extra.items():
        fits = isinstance(value, {"flags": dict, "description": str}.get(key, object))
        if key in known or not fits or not layout.is_plain(value):
            notes.add("extra_lost", where, show(key))
        else:
            fields[key] = value
    return fields
