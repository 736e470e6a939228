"""What can be wrong with a COCO instance JSON, in words, counted by kind."""

import reprlib
from dataclasses import dataclass, field
from typing import Any

from microplastics.errors import UserError

# code: (what is wrong, how to mend it)
ERRORS = {
    "not_an_object": ("is not a JSON object", "export the file again"),
    "image_field": ("lacks a field or has one of the wrong type", "correct or export it again"),
    "image_duplicate": ("has an id that another image has", "give every image its own id"),
    "file_name": (
        "has a file_name that leaves the image folder",
        "write it relative to that folder, without ..",
    ),
    "category_field": ("lacks a field or has one of the wrong type", "correct or export it again"),
    "category_duplicate": ("has an id that another category has", "give every one its own id"),
    "category_same_name": (
        "has the name of another category, and both are used",
        "merge the two or rename one",
    ),
    "annotation_field": (
        "lacks a field or has one of the wrong type",
        "correct or export it again",
    ),
    "box_field": ("lacks a field or has one of the wrong type", "correct or export it again"),
    "area_field": ("lacks a field or has one of the wrong type", "correct or export it again"),
    "annotation_zero": (
        "has id 0, which makes pycocotools lose its match",
        "number the annotations from 1",
    ),
    "annotation_duplicate": (
        "has an id that another annotation has",
        "give every annotation its own id",
    ),
    "no_image": (
        "belongs to an image that is not in the file",
        "add the image or delete the annotation",
    ),
    "no_category": (
        "is of a category that is not in the file",
        "add the category or correct category_id",
    ),
    "ignore": ("has ignore set, which Detectron2 refuses", "set iscrowd to 1 instead or delete it"),
    "segmentation_empty": ("has an empty segmentation", "outline the particle or delete it"),
    "segmentation_type": (
        "has a segmentation that is neither polygons nor RLE",
        "export as COCO instance segmentation",
    ),
    "polygon_flat": (
        "has a segmentation of bare numbers",
        "write it as a list of polygons: [[x0, y0, x1, y1, ...]]",
    ),
    "polygon_points": ("has a polygon of fewer than 3 points", "outline it again or delete it"),
    "polygon_odd": (
        "has a polygon with an odd number of coordinates",
        "outline it again or delete it",
    ),
    "polygon_numbers": (
        "has a polygon with coordinates that are not finite numbers",
        "outline it again or delete it",
    ),
    "polygon_outside": (
        "has its polygon wholly outside the image",
        "check that it belongs to this image and that width and height are right",
    ),
    "outline_long": ("has an outline of impossible length", "outline it again or delete it"),
    "zero_area": ("has a segmentation of zero area", "outline it again or delete it"),
    "rle_size": (
        "has an RLE of another size than its image",
        "export the mask at the image's size, as [height, width]",
    ),
    "rle_counts": ("has a malformed RLE", "export the annotation again"),
    "rle_empty": ("has an RLE without a single pixel", "delete it or outline it again"),
    "image_file": ("cannot be used", "correct the file"),
    "image_missing": ("has no file", "copy the images there or correct the image folder"),
    "image_size": ("is of another size than its file", "correct the JSON or the file"),
}
WARNINGS = {
    "area_missing": "annotations without area; it is computed from the mask",
    "area_of_box": "annotations whose area is that of the box; the mask's is used",
    "area_differs": "annotations whose area is not that of the mask; the mask's is used",
    "iscrowd_missing": "annotations without iscrowd; taken as 0",
    "bbox_differs": "boxes that differ from their mask by over 2 px; the mask's are used",
    "bbox_xyxy": "boxes written as x0, y0, x1, y1; those of the masks are used",
    "polygon_clipped": "polygons reach out of the image; they are cut at its border",
    "subpixel": "annotations whose mask has no pixel; they can never be matched",
    "crowd": "annotations with iscrowd 1; training skips them, evaluation ignores them",
    "keypoints": "annotations with keypoints, which are not used",
    "annotation_twice": "annotations repeat another's image, box and category",
    "image_twice": "images name a file that another names",
    "image_blank": "images without annotations",
    "category_placeholder": "unused placeholder categories are left out",
    "category_unused": "categories without annotations",
}
EXAMPLES = 5
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 120


@dataclass
class Finding:
    """How often one kind of problem was found, and the first few places.

    Attributes:
        code: a key of ``ERRORS`` or ``WARNINGS``.
        count: how often.
        places: the first few, each with its detail in words.
    """

    code: str
    count: int = 0
    places: list[tuple["Place", str]] = field(default_factory=list)

    @property
    def examples(self) -> list[str]:
        """The first few places in words."""
        return [
            f"{place.short()}{f' ({detail})' if detail else ''}" for place, detail in self.places
        ]

    def __str__(self) -> str:
        words = WARNINGS.get(self.code) or ERRORS[self.code][0]
        more = "; …" if self.count > len(self.places) else ""
        return f"{self.count} x {words}: {'; '.join(self.examples)}{more}"


class Findings:
    """Collects errors and warnings by kind; the words are made for the first few alone."""

    def __init__(self) -> None:
        self.errors: dict[str, Finding] = {}
        self.warnings: dict[str, Finding] = {}
        self._first = ""

    def error(self, code: str, where: "Place", detail: str = "") -> None:
        """Count one error of a kind in ``ERRORS``."""
        finding = self.errors.setdefault(code, Finding(code))
        what, mend = ERRORS[code]
        if not self._first:
            self._first = f"{where} {what}{f' ({detail})' if detail else ''}: {mend}"
        self._count(finding, where, detail)

    def warn(self, code: str, where: "Place", detail: str = "") -> None:
        """Count one oddity of a kind in ``WARNINGS``."""
        self._count(self.warnings.setdefault(code, Finding(code)), where, detail)

    def raise_errors(self, json_file: str) -> None:
        """Raise a :class:`UserError` that names the first error and counts all by kind."""
        if not self.errors:
            return
        total = sum(finding.count for finding in self.errors.values())
        message = f"{json_file}: {self._first}."
        if total > 1:
            message += f" {total - 1} more problems:" if total > 2 else " One more problem:"
            kinds = list(self.errors.values())
            for finding in kinds[:EXAMPLES]:
                message += f"\n  {finding}"
            if len(kinds) > EXAMPLES:
                message += f"\n  and {len(kinds) - EXAMPLES} other kinds"
        raise UserError(message)

    @staticmethod
    def _count(finding: Finding, where: "Place", detail: str) -> None:
        finding.count += 1
        if len(finding.places) < EXAMPLES:
            finding.places.append((where, detail))


class Place:
    """Where something is wrong, put into words only when it is printed.

    Attributes:
        kind: ``"image"``, ``"category"`` or ``"annotation"``.
        index: position in its list of the JSON, from 0.
        entry: what stands there.
        image: the checked image that an annotation belongs to, or None.
    """

    __slots__ = ("kind", "index", "entry", "image")

    def __init__(self, kind: str, index: int, entry: Any, image: dict | None = None):
        self.kind, self.index, self.entry, self.image = kind, index, entry, image

    def short(self) -> str:
        """Words for a list of several places."""
        kind, index, entry, image = self.kind, self.index, self.entry, self.image
        id_ = entry.get("id") if isinstance(entry, dict) else None
        words = f"{kind} {show(id_)}" if id_ is not None else f"{kind} number {index + 1}"
        if kind != "annotation" and isinstance(entry, dict):
            name = entry.get("file_name" if kind == "image" else "name")
            words += f" ({show(name)})" if name is not None else ""
        elif image is not None:
            words += f" of image {image['id']}"
        return words

    def __str__(self) -> str:
        image = self.image
        return self.short() + (f" ({show(image['file_name'])})" if image is not None else "")


def show(value: Any) -> str:
    """Quote a stranger's value, shortened and printable."""
    return _REPR.repr(value)
