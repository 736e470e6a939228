"""Masks of Segment Anything: one JSON an image, as in SA-1B or as its mask generator gives them.

The file is ``{"image": {…}, "annotations": […]}``, or the list of the masks alone. Masks have no
class.
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from microplastics.data.coco import show
from microplastics.data.formats import layout, shapes
from microplastics.data.formats.base import ImageRecord, Instance, Notes, ReadOptions, Source
from microplastics.data.formats.masks import DEFAULT_CLASS
from microplastics.data.formats.shapes import ShapeError
from microplastics.utils.errors import UserError


def detect(path: Path) -> bool:
    """Return whether a file, or one of the first below a folder, has masks of Segment Anything."""

    def matches(text: bytes) -> bool:
        one_image = text.startswith(b"{") and b'"image":{' in text and b'"annotations":[' in text
        masks = text.startswith(b"[{") and b'"predicted_iou":' in text
        return (one_image or masks) and b'"segmentation":' in text and b'"images":[' not in text

    return layout.sniff(path, matches)


def read(path: Path, options: ReadOptions, notes: Notes) -> dict[str, Source]:
    """Open one JSON, or a folder of them (see ``base.Reader.read``).

    The image is the one that the JSON names, or else the one of the JSON's name. Further fields,
    such as ``predicted_iou`` and ``stability_score``, are kept.
    """
    return layout.read_splits(_Reader, path, options, notes)


class _Reader(layout.FileReader):
    content = (dict, list)
    meaning = "an object with image and annotations; give a folder of Segment Anything's files only"

    def records(self, data: Any, where: str) -> Iterator[ImageRecord]:
        data = data if isinstance(data, dict) else {"image": {}, "annotations": data}
        image, entries = data.get("image"), data.get("annotations")
        if not isinstance(image, dict) or not isinstance(entries, list):
            raise UserError(f"{where} is not {self.meaning}.", code="annotations_invalid")
        names = [image.get("file_name"), *self.named(PurePosixPath(where).stem)]
        claimed = (image.get("width"), image.get("height"))
        with layout.skipping(where, self.options, self.notes):
            record = self.image(names, where, [claimed])
            for number, entry in enumerate(entries, 1):
                place = f"{where}, annotation {number}"
                with shapes.noting(self.notes, place):
                    record.instances.append(self._instance(entry, record, place))
            yield record

    def _instance(self, entry: Any, record: ImageRecord, place: str) -> Instance:
        if not isinstance(entry, dict):
            raise ShapeError("shape_broken", f"{show(entry)} is not a JSON object")
        area = shapes.checked(entry.get("segmentation"), record, self.notes, place).segmentation
        fields = layout.ANNOTATION_FIELDS
        return self.instance([DEFAULT_CLASS], ("mask", area), record, place, entry, fields)
