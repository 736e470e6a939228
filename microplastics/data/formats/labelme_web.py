"""Annotations of LabelMe's web tool: one XML an image, with outlines and mask files.

``Annotations/FOLDER/IMAGE.xml``, ``Images/FOLDER/IMAGE.jpg`` and ``Masks/FOLDER/*.png``, or the XML
beside the image and ``Masks``, as CVAT's "LabelMe 3.0" has them.
"""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree.ElementTree import Element

from defusedxml import ElementTree

from microplastics.data.coco import is_printable, show
from microplastics.data.formats import layout, shapes
from microplastics.data.formats.base import ImageRecord, Instance, Notes, ReadOptions, Source
from microplastics.data.formats.masks import (
    check_size,
    has_web_annotations,
    instance_rles,
    read_bitmap,
)
from microplastics.data.formats.shapes import ShapeError
from microplastics.utils.errors import UserError

_XML = frozenset((".xml",))
_MASKS = ("masks",)
_DRAWN = frozenset((*_MASKS, "scribbles"))  # folders without photographs
_KEPT = ("occluded", "attributes", "verified")
_MOST_BYTES = 64 << 20


def detect(path: Path) -> bool:
    """Return whether a file, or one of the first below a folder, is an XML of the web tool."""
    return has_web_annotations(path)


def read(path: Path, options: ReadOptions, notes: Notes) -> dict[str, Source]:
    """Open one XML, or a folder of them (see ``base.Reader.read``).

    Outlines stay polygons, masks become RLE. Objects that the annotator deleted are left out.
    """
    return layout.read_splits(_Reader, path, options, notes)


class _Reader(layout.FileReader):
    suffixes = _XML

    def __init__(self, path: Path, split: str, options: ReadOptions):
        super().__init__(path, split, options)
        images = layout.child_folder(self._root, layout.IMAGE_FOLDERS) if self._whole else None
        self._images = self._given or images or self._root
        self._drawn = {
            name: ""
            for name in layout.list_files(self._images)
            if not _DRAWN.isdisjoint(name.lower().split("/")[:-1])
        }

    def load(self, path: Path) -> Element:
        """Return the root element of one file."""
        with layout.reading_xml(path, "export it again"):
            if os.path.getsize(path) > _MOST_BYTES:
                raise ValueError(f"more than {_MOST_BYTES >> 20} MiB")
            return ElementTree.parse(path).getroot()

    def records(self, data: Element, where: str) -> Iterator[ImageRecord]:
        self._seen |= self._drawn  # no photographs
        if data.tag != "annotation":
            raise UserError(
                f"{where} is a {show(data.tag)}; expected an annotation of LabelMe's web tool.",
                code="annotations_invalid",
            )
        claimed = (_number(data, "imagesize/ncols"), _number(data, "imagesize/nrows"))
        with layout.skipping(where, self.options, self.notes):
            record = self.image(self._names(data), where, [claimed])
            with layout.skipping(where, self.options, self.notes, "label_broken"):
                for number, element in enumerate(data.iterfind("object"), 1):
                    place = f"{where}, object {number}"
                    with shapes.noting(self.notes, place):
                        record.instances.append(self._instance(element, data, record, place))
                yield record

    def _names(self, data: Element) -> list[str]:
        """Return the names of the image: in its folder of ``Images``, and alone."""
        name, folder = _text(data, "filename"), _text(data, "folder")
        names = [name] if is_printable(name) else []
        if names and is_printable(folder):
            place = os.path.relpath(self._images, self._folder)
            names.insert(0, str(PurePosixPath(place.replace(os.sep, "/"), folder.strip("/"), name)))
        return names

    def _instance(
        self, element: Element, data: Element, record: ImageRecord, place: str
    ) -> Instance:
        if _text(element, "deleted") == "1":
            raise ShapeError("annotation_cancelled", "deleted by the annotator")
        label = layout.class_name(_text(element, "name"))
        if element.find("segm") is not None:
            shape = ("mask", self._mask(_text(element, "segm/mask"), data, record, place))
        else:
            points = element.iterfind("polygon/pt")
            pairs = [[_number(point, "x"), _number(point, "y")] for point in points]
            kind = "box" if _text(element, "type") == "bounding_box" else "polygon"
            shape = (kind, shapes.flat(pairs))
        fields = {key: _text(element, key) for key in _KEPT}
        fields = {key: value for key, value in fields.items() if value not in ("", "0", "no")}
        return self.instance([label] if label else [], shape, record, place, fields, ())

    def _mask(self, name: str, data: Element, record: ImageRecord, place: str) -> dict[str, Any]:
        """Read a mask file, of the size of the image, in ``Masks``."""
        folder = _text(data, "folder").strip("/")
        bases = (self._folder, self._root)
        for masks in filter(None, (layout.child_folder(base, _MASKS) for base in bases)):
            found = layout.find_file(f"{folder}/{name}", masks)
            if found is None:
                continue
            path = masks / found[0]
            bitmap = read_bitmap(path)
            check_size(bitmap, path, self._images / record.file_name, record.size)
            rles = instance_rles(bitmap)[1]
            if not rles:
                raise ShapeError("shape_without_area", f"{path.name} has no pixel")
            return rles[0]
        raise UserError(
            f"{place}: The mask {show(name)} is not in a folder Masks; add it.", code="file_missing"
        )


def _text(element: Element, path: str) -> str:
    return (element.findtext(path) or "").strip()


def _number(element: Element, path: str) -> float | None:
    try:
        return float(_text(element, path))
    except ValueError:
        return None
