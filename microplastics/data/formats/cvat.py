"""CVAT for images 1.1, read and written: one XML with the shapes of many images.

The package ``datumaro`` is not used: it holds a data set in memory and knows neither ellipses nor
rotated boxes.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element
from xml.sax.saxutils import escape, quoteattr

import numpy as np
from defusedxml.ElementTree import iterparse

from microplastics.data.coco import show
from microplastics.data.formats import layout, shapes
from microplastics.data.formats.base import ImageRecord, Instance, Notes, ReadOptions, Source
from microplastics.data.formats.shapes import ShapeError
from microplastics.structures import rle
from microplastics.structures.crop_masks import CropMasks
from microplastics.utils.errors import UserError
from microplastics.utils.io import atomic_write

_XML = frozenset((".xml",))
_MEANING = "an export of CVAT for images 1.1"
_POINTS = {"polygon": "polygon", "polyline": "line", "points": "point"}
_CORNERS, _BOX = ("xtl", "ytl", "xbr", "ybr"), ("left", "top", "width", "height")
_LABELS = ".//labels/label/name"


def detect(path: Path) -> bool:
    """Return whether a file, or one of the first below a folder, is an XML of CVAT."""

    def matches(text: bytes) -> bool:
        return b"<annotations>" in text and (b"<imageid=" in text or b"<trackid=" in text)

    return layout.sniff(path, matches, _XML)


def read(path: Path, options: ReadOptions, notes: Notes) -> dict[str, Source]:
    """Open an XML of CVAT, or a folder of them (see ``base.Reader.read``).

    Splits are folders, or the subsets of a project. Shapes of one group and label become one
    instance. Polygons keep their points, masks become RLE, ellipses polygons of the same area.
    """
    folders = layout.input_splits(path, _XML)
    readers = {split: _Reader(folder, split, options) for split, folder in folders.items()}
    if list(readers) == ["all"]:
        subsets = readers["all"].subsets()
        if subsets != {"all"}:
            readers = {split: _Reader(path, split, options, split) for split in subsets}
    return {split: reader.source(notes) for split, reader in layout.in_order(readers).items()}


class _Reader(layout.FileReader):
    suffixes = _XML

    def __init__(self, path: Path, split: str, options: ReadOptions, subset: str | None = None):
        super().__init__(path, split, options)
        self._subset = subset  # of the images that are read; None for all

    def subsets(self) -> set[str]:
        """Return the splits to which the images belong."""
        found = set()
        for path in filter(Path.is_file, self._paths):  # others are refused later
            with layout.skipping(str(path), self.options, Notes()):
                found.update(_subset(each) for each in self.load(path) if each.tag == "image")
        return found or {"all"}

    def load(self, path: Path) -> Iterator[Element]:
        """Return the elements of one file."""
        return _elements(path)

    def records(self, data: Iterator[Element], where: str) -> Iterator[ImageRecord]:
        for element in data:
            if element.tag == "meta":
                names = (layout.class_name(name.text) for name in element.iterfind(_LABELS))
                self.order.update(dict.fromkeys(filter(None, names)))
            elif element.tag == "image":
                name = element.get("name")
                if self._subset not in (None, _subset(element)):
                    self.leave_out(name, where, noted=False)
                    continue
                place = f"{where}, {show(name)}"
                with layout.skipping(place, self.options, self.notes):
                    yield self._record(element, place)

    def _record(self, element: Element, where: str) -> ImageRecord:
        claimed = (_number(element.get("width")), _number(element.get("height")))
        record = self.image([element.get("name")], where, [claimed])
        tags = [tag.get("label") for tag in element.iterfind("tag")]
        record.extra = layout.extra_fields({"tags": tags}, (), where, self.notes)
        members = []
        drawn = (each for each in element if each.tag != "tag")
        for number, each in enumerate(drawn, 1):
            place = f"{where}, shape {number}"
            with shapes.noting(self.notes, place):
                group = each.get("group_id", "0")
                instance = self._instance(each, record, place)
                members.append((None if group in ("", "0") else group, instance))
        record.instances = layout.join_groups(members, record, where, self.notes)
        return record

    def _instance(self, element: Element, record: ImageRecord, where: str) -> Instance:
        label, shape = layout.class_name(element.get("label")), _shape(element, record.size)
        attributes = {str(each.get("name")): each.text for each in element.iterfind("attribute")}
        if element.get("occluded") == "1":
            attributes["occluded"] = True
        fields = {"attributes": attributes}
        return self.instance([label] if label else [], shape, record, where, fields, ())


def _elements(path: Path) -> Iterator[Element]:
    """Yield the elements below the root of a file, each of which is forgotten thereafter.

    A file with a document type, and thus with entities, is refused, as is one with tracks.
    """
    problem, root, depth = "", None, 0
    with layout.reading_xml(path, f"expected {_MEANING}"), open(path, "rb") as file:
        for event, element in iterparse(file, ("start", "end"), forbid_dtd=True):
            depth += 1 if event == "start" else -1
            if root is None:
                root = element
                if root.tag != "annotations":
                    problem = f"has the root element {show(root.tag)}"
                    break
            elif element.tag == "track" and depth == 2:
                problem = "has tracks (CVAT for video 1.1)"
                break
            elif event == "end" and depth == 1:
                yield element
                root.clear()
    if problem:
        raise UserError(
            f"{path} {problem}; expected {_MEANING}: export the task in this format.",
            code="annotations_invalid",
        )


def _subset(image: Element) -> str:
    return layout.SPLITS.get(image.get("subset", "").strip().lower(), "all")


def _shape(element: Element, size: tuple[int, int]) -> tuple[str, Any]:
    """Return kind and values of a shape, as ``shapes.area_of`` takes them."""
    if element.tag == "mask":
        return "mask", _mask(element, size)
    if element.tag in _POINTS:
        pairs = element.get("points", "").replace(";", ",").split(",")
        return _POINTS[element.tag], [_number(value) for value in pairs]
    turn = math.radians(shapes.numbers([_number(element.get("rotation", "0"))])[0])
    if element.tag == "ellipse":
        return "ellipse", [*(_number(element.get(key)) for key in ("cx", "cy", "rx", "ry")), turn]
    if element.tag != "box":
        raise ShapeError("shape_type", show(element.tag))
    x0, y0, x1, y1 = shapes.numbers([_number(element.get(key)) for key in _CORNERS]).tolist()
    if not turn:
        return "box", [x0, y0, x1 - x0, y1 - y0]
    # Turned about its centre; area_of turns boxes about their corner.
    corners = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
    middle, (cos, sin) = corners.mean(axis=0), (math.cos(turn), math.sin(turn))
    turned = middle + (corners - middle) @ np.array([[cos, sin], [-sin, cos]])
    return "box", turned.reshape(-1).tolist()


def _mask(element: Element, size: tuple[int, int]) -> dict[str, Any]:
    """Read a mask: runs of 0 and 1 in turn, row by row, in a box."""
    left, top, width, height = (
        int(value) for value in shapes.numbers([_number(element.get(key)) for key in _BOX])
    )
    shapes.check_mask_size(height, width, size)
    try:
        counts = np.array(element.get("rle", "").split(","), np.int64)
    except (ValueError, OverflowError):
        counts = np.full(1, -1)
    if counts.min() < 0 or counts.max() > width * height or counts.sum() != width * height:
        raise ShapeError("shape_broken", "a mask whose runs do not fill its box")
    crop = np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(height, width)
    return shapes.crop_rle(crop, left, top, size)


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None


def write(sources: dict[str, Source], output: Path, notes: Notes) -> None:
    """Write ``output/SPLIT/annotations.xml``, to upload into a task with ``output/SPLIT/images``.

    Polygons keep their points, several of one particle get a group; masks keep every pixel.
    """
    for split, source in sources.items():
        labels = "".join(f"<label><name>{escape(n)}</name></label>" for n in source.classes)
        with atomic_write(output / split / "annotations.xml") as file:
            file.write('<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n')
            file.write("<version>1.1</version>\n")
            file.write(f"<meta><task><labels>{labels}</labels></task></meta>\n")
            for number, record in enumerate(source.records()):
                name = layout.safe_name(record.file_name, f"An image of {split}")
                size = f'width="{record.width}" height="{record.height}"'
                file.write(f'<image id="{number}" name={quoteattr(name)} {size}>\n')
                for group, instance in enumerate(record.instances, 1):
                    file.writelines(_elements_of(instance, group, record, notes))
                for key in record.extra:
                    notes.add("extra_lost", record.file_name, show(key))
                file.write("</image>\n")
            file.write("</annotations>\n")


def _elements_of(
    instance: Instance, group: int, record: ImageRecord, notes: Notes
) -> Iterator[str]:
    for key in instance.extra:
        notes.add("extra_lost", instance.where, show(key))
    if instance.iscrowd:
        notes.add("crowd_lost", instance.where)
    common = f'label={quoteattr(instance.category)} source="auto" occluded="0" z_order="0"'
    if isinstance(instance.segmentation, dict):
        masks = CropMasks.from_rles([instance.segmentation])
        (crop,), ((left, top),) = masks.crops, masks.offsets.tolist()
        height, width = crop.shape
        # Columns of the transposed mask are its rows.
        runs = rle.counts_of_runs(*rle.runs_of_crop(crop.T, (0, 0), width), crop.size)
        box = f'left="{left}" top="{top}" width="{width}" height="{height}"'
        yield f'<mask {common} rle="{", ".join(map(str, runs.tolist()))}" {box}/>\n'
        return
    if len(instance.segmentation) > 1:
        notes.add("parts_split", instance.where)
        common += f' group_id="{group}"'
    for flat in instance.segmentation:
        points = ";".join(f"{x!r},{y!r}" for x, y in zip(flat[::2], flat[1::2], strict=True))
        yield f'<polygon {common} points="{points}"/>\n'
