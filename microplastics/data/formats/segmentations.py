"""Segmentations from strangers, made safe and measured, or noted and left out."""

import math
from typing import Any

from microplastics.data.coco_findings import ERRORS
from microplastics.data.coco_load import (
    COORDINATE_LIMIT,
    NUMBERS,
    Measured,
    SegmentationError,
    measure,
)
from microplastics.data.formats.notes import Notes

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
