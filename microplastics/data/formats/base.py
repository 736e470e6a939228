"""Segmentations from strangers, made safe and measured, or noted and left out."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from microplastics.data.coco import ERRORS
from microplastics.data.segmentation import (
    COORDINATE_LIMIT,
    NUMBERS,
    Measured,
    SegmentationError,
    measure,
)

NOTES = {
    # Changed on the way in, or worth a look.
    "curve_as_polygon": "circles or ellipses written as polygons",
    "line_as_polygon": "lines with a width written as polygons",
    "group_joined": "groups of shapes joined into one instance",
    "category_placeholder": "unused placeholder categories left out",
    "category_merged": "categories of the same name merged",
    "category_renamed": "classes renamed by --categories",
    "class_unnamed": "classes without a name called class_0, class_1, …",
    "shape_clipped": "outlines cut at the border of their image",
    "shape_subpixel": "instances whose mask has no pixel, which can never be matched",
    "crowd_kept": "crowd regions, which training skips (CVAT marks brush masks so: "
    "--crowd-as-instances takes them as particles)",
    "crowd_instance": "crowd regions taken as particles by --crowd-as-instances",
    "ignore_as_crowd": "annotations with ignore set written as crowd regions",
    "file_name_mended": "file names whose folders are not there, found by their last parts",
    "folder_mended": "image folders that are not where data.yaml says, found by their names",
    "box_only": "boxes without an outline written as rectangles",
    "group_mixed": "groups of shapes of several classes, joined by class alone",
    "label_ambiguous": "shapes with several classes, given the first",
    "image_unlabelled": "images without an annotation file taken as blank",
    "mask_kind": "folders of masks, and what was found in them",
    "mask_colours": "colour masks read with each colour as one instance",
    "mask_numbered": "masks of one class with several numbers, each read as one instance",
    "mask_speck": "parts of a single pixel kept as instances",
    # Left out on the way in.
    "category_dropped": "instances left out by --categories",
    "shape_without_area": "shapes without an area (points, lines without a width) left out",
    "shape_broken": "shapes with too few points or without usable numbers left out",
    "shape_type": "shapes of a type that is not known left out",
    "shape_outside": "shapes wholly outside their image left out",
    "part_broken": "parts of instances with fewer than 3 points left out",
    "shape_unlabelled": "shapes without a class left out",
    "image_missing": "images that are not on the disk left out with their annotations",
    "image_size": "images of another size than was annotated left out with their annotations",
    "image_broken": "images that cannot be read left out with their annotations",
    "label_broken": "annotation files that cannot be read left out",
    "split_missing": "splits whose images are not there left out",
    "annotation_without_image": "annotations of images that are not in the file left out",
    "label_without_image": "annotation files without an image left out",
    "field_unknown": "fields that the data set has no place for left out",
    "annotation_ignored": "annotation files among blanks left out, whose images count as blank",
    "image_unannotated": "images without an annotation of their own left out, not taken as blank",
    "annotation_cancelled": "cancelled annotations of an image left out",
    "annotation_other": "further annotations of an image left out",
    "id_absent": "rows of classes.csv whose number is not in the label image",
    # What the format written to cannot hold.
    "hole_bridged": "holes joined to the outline by a cut of no width",
    "parts_joined": "instances in several parts joined by a line of no width",
    "parts_split": "instances in several parts written as several shapes of one group",
    "mask_outlined": "masks written as outlines along their pixels",
    "crowd_lost": "crowd regions written as ordinary instances",
    "overlap_lost": "instances that lost pixels to a later one that lies over them",
    "extra_lost": "fields left out that the format has no place for",
    "instance_lost": "instances left out that the format cannot hold",
}


_EXAMPLES = 5
_LISTED = 10_000


class Notes:
    """Counts what was changed or left out, by code, with every place up to a bound."""

    def __init__(self, words: dict[str, str]):
        """
        Args:
            words: what each code means, in words that follow a number and ``x``.
        """
        self._words = words
        self._counts: dict[str, int] = {}
        self._places: dict[str, list[str]] = {}

    def add(self, code: str, where: str, detail: str = "") -> None:
        """Count one case.

        Args:
            code: one of those in the words given.
            where: file and place in it.
            detail: the stranger's value, shortened (see ``coco_findings.show``).
        """
        if code not in self._words:
            raise KeyError(code)
        self._counts[code] = self._counts.get(code, 0) + 1
        places = self._places.setdefault(code, [])
        if len(places) < _LISTED:
            places.append(f"{where} ({detail})" if detail else where)

    def __len__(self) -> int:
        return sum(self._counts.values())

    def count(self, code: str) -> int:
        """How often a code was noted."""
        return self._counts.get(code, 0)

    def lines(self) -> list[str]:
        """One line a code, with the first few places."""
        lines = []
        for code, count in self._counts.items():
            places = self._places[code][:_EXAMPLES]
            more = "; …" if count > len(places) else ""
            lines.append(f"{count} x {self._words[code]}: {'; '.join(places)}{more}")
        return lines

    def as_dict(self) -> dict[str, Any]:
        """Code -> words, count and places (the first 10,000), for a JSON file."""
        return {
            code: {"what": self._words[code], "count": count, "places": self._places[code]}
            for code, count in self._counts.items()
        }


@dataclass
class Instance:
    """One annotated particle.

    Attributes:
        category: class name.
        segmentation: COCO polygons ``[[x0, y0, x1, y1, …], …]`` in px, or compressed RLE
            ``{"size": [height, width], "counts": str}`` of the whole image.
        where: its place in the source, for messages, such as ``"a.json, shape 3"``.
        iscrowd: 1 for a region of particles that were not told apart.
        extra: further fields that go into the COCO annotation under their own names.
    """

    category: str
    segmentation: list[list[float]] | dict[str, Any]
    where: str
    iscrowd: int = 0
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass
class ImageRecord:
    """One image with its instances; none is a blank.

    Attributes:
        file_name: relative to :attr:`Source.image_root`, with ``/``.
        width: in px, of the image as ``data.images.read_image`` gives it.
        height: in px.
        instances: what lies on it.
        extra: further fields that go into the COCO image under their own names.
    """

    file_name: str
    width: int
    height: int
    instances: list[Instance] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass
class Source:
    """One split of a data set in a foreign format.

    Attributes:
        image_root: folder of the images.
        classes: every class name that occurs, in the order that the format gives, or else sorted.
        records: starts the stream anew at each call; images in a fixed order.
    """

    image_root: Path
    classes: list[str]
    records: Callable[[], Iterator[ImageRecord]]
    num_images: int | None = None


@dataclass(frozen=True)
class ReadOptions:
    """What a person may choose about reading any format.

    Attributes:
        skip_broken: leave out images and annotation files that are missing or broken, with a
            note each, where reading would stop with an error.
        line_width: width in px that turns lines (LabelMe linestrip, VIA polyline) into areas;
            None leaves them out, with a note each.
        max_pixels: refuse larger images; ``data.images.MAX_PIXELS`` if None.
        images: folder of the images where it is not found beside the annotations.
        crowd_as_instances: take COCO's crowd regions as one particle each.
        classes: class names of blanks, by category id from 1; those of the project if None.
    """

    skip_broken: bool = False
    line_width: float | None = None
    max_pixels: int | None = None
    images: Path | None = None
    crowd_as_instances: bool = False
    classes: tuple[str, ...] | None = None


_CODES = {
    "polygon_outside": "shape_outside",
    "zero_area": "shape_without_area",
    "rle_empty": "shape_without_area",
}


def measured_segmentation(
    segmentation: Any, height: int, width: int, notes: Notes, where: str
) -> Measured | None:
    """Check and measure one segmentation.

    Polygons end at the image's border (``shape_clipped``), parts of fewer than 3 points are left
    out (``part_broken``), RLE comes back compressed. What cannot be used is noted.

    Args:
        segmentation: COCO polygons or RLE, of any content.
        height: of the image in px.
        width: of the image in px.
        notes: takes what is changed and left out.
        where: place of the instance.

    Returns:
        the segmentation with its area and box, or None where it cannot be used.
    """
    if type(segmentation) is list:
        segmentation = _usable_parts(segmentation, notes, where)
    try:
        measured = measure(segmentation, height, width)
    except SegmentationError as error:
        detail = error.detail or ERRORS[error.code][0]
        notes.add(_CODES.get(error.code, "shape_broken"), where, detail)
        return None
    if measured.clipped:
        notes.add("shape_clipped", where)
    rle = measured.segmentation
    if isinstance(rle, dict) and isinstance(rle["counts"], bytes):
        rle["counts"] = rle["counts"].decode("ascii")
    return measured


def box_polygon(box: Any) -> list[float] | None:
    """Give the rectangle of ``[x, y, width, height]`` as a polygon; None where it is none."""
    if type(box) is not list or len(box) != 4 or not NUMBERS.issuperset(map(type, box)):
        return None
    # False for NaN too.
    if not all(-COORDINATE_LIMIT <= value <= COORDINATE_LIMIT for value in box):
        return None
    x, y, width, height = box
    if not (width > 0 and height > 0):
        return None
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def is_finite(value: Any) -> bool:
    """Whether a value is a finite number."""
    return type(value) is int or (type(value) is float and math.isfinite(value))


def _usable_parts(polygons: list, notes: Notes, where: str) -> list:
    if polygons and NUMBERS.issuperset(map(type, polygons)):  # one polygon without its brackets
        return [polygons]
    if len(polygons) < 2:
        return polygons
    usable = [part for part in polygons if not (type(part) is list and len(part) < 6)]
    if not usable:
        return polygons
    for _ in range(len(polygons) - len(usable)):
        notes.add("part_broken", where)
    return usable
