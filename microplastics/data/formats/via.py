"""VGG Image Annotator: projects of VIA 2 and 3, and the annotations that VIA 2 exports as JSON.

Read by hand: no kept library reads VIA 3, and VIA's own COCO export is unreliable.
"""

import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np

from microplastics.data.coco_findings import show
from microplastics.data.formats import files, shapes
from microplastics.data.formats.codes import NOTES
from microplastics.data.formats.file_reader import FileReader, open_splits
from microplastics.data.formats.notes import Notes
from microplastics.data.formats.records import ImageRecord, Instance, ReadOptions, Source
from microplastics.data.formats.shapes import Segmentation, ShapeError
from microplastics.data.formats.via_document import FIELDS, MEANT, Document, Picture, Region
from microplastics.errors import UserError

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

    return files.sniff(Path(path), matches)


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
            order.update(dict.fromkeys(filter(None, map(files.class_name, document.words()))))
            count += len(document.pictures)
            for region in chain.from_iterable(each.regions for each in document.pictures):
                lines = region.kind != "polyline" or self.options.line_width is not None
                if region.kind != "point" and lines:
                    found.update(document.labels(region)[:1])
        return [name for name in order if name in found] + sorted(found - set(order)), count

    def _document(self, path: Path, notes: Notes) -> Document | None:
        data = files.read_labels(path, dict, MEANT, self.options, notes)
        if data is None:
            return None
        try:
            return Document(path, data)
        except UserError as error:
            where = path.relative_to(self.root).as_posix()
            files.skip_or_raise(error, "label_broken", where, self.options, notes)
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
            files.take_once(name, where, seen)
            code = "image_broken"
            width, height = files.checked_size(self.finder.root / name, None, self.options)
        except UserError as error:
            files.skip_or_raise(error, code, where, self.options, notes)
            return None
        record = ImageRecord(name, width, height)
        record.extra = files.plain_extra(picture.fields, frozenset(), where, notes)
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
            extra = files.plain_extra(region.attributes, known, place, notes)
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
