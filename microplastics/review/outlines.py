"""Masks from outlines and back; merging and splitting them."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from scipy import ndimage

from microplastics.data.coco import ERRORS
from microplastics.data.segmentation import SegmentationError, measure
from microplastics.inference.stitching.fibers import bridge
from microplastics.inference.stitching.matching import View, union
from microplastics.structures.crop_masks import CropMasks
from microplastics.utils.errors import UserError
from microplastics.writers.qupath_imagej import pixel_polygons

Mask = tuple[np.ndarray, tuple[int, int]]
"""A crop, (h, w) bool, and x and y of its first pixel in the image."""

Polygon = Sequence[Sequence[Sequence[float]]]
"""Rings of points x, y in px: the outer one, then holes."""

MOST_POINTS = 20_000
"""Points of the outlines of one operation."""

_FARTHEST = 1e6  # px


def polygons_of(mask: np.ndarray, offset: Sequence[int]) -> list[list[list[list[int]]]]:
    """Outline a mask: polygons of rings of corners x, y in px, which :func:`mask_of` fills again.

    Args:
        mask: (h, w) bool, with at least one pixel.
        offset: x and y of its first pixel.
    """
    return [[ring.tolist() for ring in rings] for rings in pixel_polygons(mask, offset)]


def mask_of(polygons: Sequence[Polygon], image_size: tuple[int, int]) -> Mask:
    """Fill polygons as pycocotools does; what lies outside of the image is cut off.

    Args:
        polygons: of one particle. Untrusted.
        image_size: height and width in px.

    Raises:
        UserError: an outline is malformed, or holds no pixel.
    """
    parts = [_filled(rings, image_size) for rings in _checked(polygons)]
    united = unite([part for part in parts if part is not None])
    if united is None:
        raise _invalid("holds no pixel of the image; expected one that encloses the particle")
    return united


def _invalid(problem: str) -> UserError:
    return UserError(f"The outline {problem}.", code="annotations_invalid")


def _checked(polygons: Any) -> list[list[list[float]]]:
    """Rings of each polygon as flat lists of numbers."""
    try:
        found = [[np.asarray(ring, dtype=np.float64) for ring in rings] for rings in polygons]
    except (TypeError, ValueError) as error:
        raise _invalid("is not polygons of rings of points; expected [[[[x, y], …], …], …]") from (
            error
        )
    rings = [ring for each in found for ring in each]
    if not all(found) or any(ring.ndim != 2 or ring.shape[1] != 2 for ring in rings):
        raise _invalid("is not polygons of rings of points; expected [[[[x, y], …], …], …]")
    points = sum(len(ring) for ring in rings)
    if points > MOST_POINTS:
        raise _invalid(f"has {points} points; expected at most {MOST_POINTS}")
    if any(len(ring) < 3 for ring in rings):
        raise _invalid("has a ring of fewer than 3 points; expected at least 3")
    if any(not (np.abs(ring) <= _FARTHEST).all() for ring in rings):  # also true for NaN
        raise _invalid("has points that are not in any image; expected x and y in px")
    return [[ring.ravel().tolist() for ring in each] for each in found]


def _filled(rings: list[list[float]], image_size: tuple[int, int]) -> Mask | None:
    """The pixels of a polygon; None if there are none."""
    outer = _ring(rings[0], image_size)
    if outer is None:
        return None
    crop, (x, y) = outer[0].copy(), outer[1]
    for hole in filter(None, (_ring(ring, image_size) for ring in rings[1:])):
        inside, (u, v) = CropMasks([hole[0]], [hole[1]], image_size), hole[1]
        inside = inside.clip(x, y, crop.shape[1], crop.shape[0])
        (u, v), cut = inside.offsets[0].tolist(), inside.crops[0]
        crop[v : v + cut.shape[0], u : u + cut.shape[1]] &= ~cut
    return trimmed(crop, (x, y))


def _ring(ring: list[float], image_size: tuple[int, int]) -> Mask | None:
    try:
        safe = measure([ring], *image_size).segmentation
    except SegmentationError as error:
        if error.code in ("polygon_outside", "zero_area"):
            return None
        raise _invalid(f"cannot be used ({ERRORS[error.code]}); draw it again") from error
    masks = CropMasks.from_coco([safe], image_size)
    return trimmed(masks.crops[0], masks.offsets[0].tolist())


def trimmed(crop: np.ndarray, offset: Sequence[int]) -> Mask | None:
    """Cut a mask down to its pixels; None if there are none."""
    x, y, width, height = cv2.boundingRect(crop.view(np.uint8))
    if not width:
        return None
    tight = np.ascontiguousarray(crop[y : y + height, x : x + width])
    return tight, (int(offset[0]) + x, int(offset[1]) + y)


def unite(masks: Sequence[Mask]) -> Mask | None:
    """Join masks into one; None for an empty list."""
    if not masks:
        return None
    whole, x, y = union([View(crop, *offset) for crop, offset in masks])
    return whole, (x, y)


def join(masks: Sequence[Mask], image_size: tuple[int, int]) -> Mask:
    """Join pieces of one fibre, and fill the gaps between them as thick as the fibre is.

    Args:
        masks: at least one.
        image_size: height and width in px.
    """
    whole, x, y = bridge([View(crop, *offset) for crop, offset in masks], image_size)
    return whole, (x, y)


def split_by_line(mask: Mask, line: Sequence[Sequence[float]]) -> list[Mask]:
    """Cut a mask along a line of points; every pixel stays in one of the pieces.

    Args:
        mask: of the particle.
        line: at least two points x, y in px. Untrusted.

    Raises:
        UserError: the line does not part the mask.
    """
    crop, (x, y) = mask
    try:
        points = np.asarray(line, dtype=np.float64)
    except (TypeError, ValueError):
        points = np.zeros(0)
    usable = points.ndim == 2 and points.shape[1] == 2 and 2 <= len(points) <= MOST_POINTS
    if not usable or not (np.abs(points) <= _FARTHEST).all():
        raise UserError(
            "The line is not a list of points; expected [[x, y], [x, y], …] in px.",
            code="annotations_invalid",
        )
    canvas = np.zeros(crop.shape, dtype=np.uint8)
    corners = np.floor(points - (x, y)).astype(np.int32).reshape(-1, 1, 2)
    # Joined by edges, so that nothing slips through diagonally.
    cv2.polylines(canvas, [corners], isClosed=False, color=1, lineType=cv2.LINE_4)
    cut = (canvas > 0) & crop
    parts, number = ndimage.label(crop & ~cut, np.ones((3, 3)))
    beside = np.unique(parts[ndimage.binary_dilation(cut, np.ones((3, 3)))])
    seeds = np.where(np.isin(parts, beside), parts, 0)
    if number < 2 or len(beside[beside > 0]) < 2:
        raise UserError(
            "The line does not part the particle; draw it from one side to the other.",
            code="annotations_invalid",
        )
    return _grown(seeds, mask)


def split_touching(mask: Mask) -> list[Mask]:
    """Propose pieces of a mask of touching particles, at its necks; one piece if there are none.

    The watershed of the distance to the border (Beucher and Lantuéjoul 1979), from its maxima
    that rise above the pass to a higher one by at least a quarter of the largest distance, and by
    1.5 px.
    """
    from skimage.morphology import local_maxima, reconstruction
    from skimage.segmentation import watershed

    crop, _ = mask
    padded = np.pad(crop, 1)
    depth = cv2.distanceTransform(padded.view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    rise = max(0.25 * float(depth.max()), 1.5)
    levelled = reconstruction(depth - rise, depth)
    seeds, _ = ndimage.label(local_maxima(levelled) & padded, np.ones((3, 3)))
    return _grown(watershed(-depth, seeds, mask=padded)[1:-1, 1:-1], mask)


def _grown(seeds: np.ndarray, mask: Mask) -> list[Mask]:
    """The pieces of a mask: each of its pixels belongs to the nearest seed."""
    crop, offset = mask
    _, (rows, columns) = ndimage.distance_transform_edt(seeds == 0, return_indices=True)
    labels = np.where(crop, seeds[rows, columns], 0)
    return [trimmed(labels == number, offset) for number in np.unique(labels[labels > 0])]
