"""Feret diameters, convex area and perimeter.

A pixel belongs to a mask when its centre lies inside the particle. The hull of these centres is
therefore a little too small: an edge along the pixel grid hides half a pixel, a corner more, an
edge askew to the grid nearly nothing. These amounts are estimated and added. (The outline at half
level, and the outline along the pixels' corners, add the same half pixel, or one, everywhere.)
"""

import math
from typing import NamedTuple

import cv2
import numpy as np

# Depth in px down to which a tip's form is fitted: deeper pixels would leave a small radius.
_TIP_DEPTH = 5.0
_SMALLEST_TIP_DEPTH = 1.5
# Area of a tip down to depth d grows as d^k: 1.5 for a round one, 2 for a corner.
_ROUND, _CORNER = 1.4, 2.0
_THIN = 1.5  # px: narrower than two pixels
_LARGEST_GAIN = 1.2  # px that a tip can hide
_RIVALS = 1.5  # px: calipers that may become the narrowest once their far side is corrected
# Crofton's formula with lines in four directions: rows and columns lie 1 px apart, diagonals less.
_DIAGONAL = 1 / math.sqrt(2)


class Hull(NamedTuple):
    """Measures of a mask's convex hull, in px."""

    feret_max: float  # largest extent over all directions
    feret_min: float  # smallest extent over all directions
    area: int  # of the smallest digitally convex mask that holds the mask, in px²


def measure_hull(mask: np.ndarray) -> Hull:
    """Measure the convex hull of a mask.

    ``feret_max`` is the largest distance of two pixel centres plus what each of the two tips
    hides. With A(d) = c·d^k the area of a tip down to depth d, and pixel centres spread evenly,
    a tip hides k / (k + 1) · c^(-1/k) on average; c and k follow from the number and the mean
    depth of the tip's pixels.

    ``feret_min`` is the smallest distance of parallel lines about the centres, one of them along
    an edge of the hull (rotating calipers: Shamos 1978, Toussaint 1983). An edge with the
    primitive integer direction (p, q) lies on lines of pixel centres 1 / √(p² + q²) apart, of
    which it hides half a distance; the far side hides the same, or what a tip does if that is
    more.

    ``area`` counts the lattice points in the hull of the centres by Pick's theorem,
    A + B / 2 + 1 with A its area and B the lattice points on its border. It is the mask's own
    area for every mask of a convex shape.

    Args:
        mask: (h, w) bool with at least one pixel.
    """
    rows, columns = np.nonzero(mask)
    points = np.stack([columns, rows], axis=1).astype(np.int32)
    # Only the ends of each row can be corners.
    last = np.flatnonzero(rows[1:] != rows[:-1])
    ends = np.concatenate([[0], last, last + 1, [len(rows) - 1]])
    corners = cv2.convexHull(points[ends])[:, 0].astype(np.int64)
    following = np.concatenate([corners[1:], corners[:1]])
    edges = following - corners
    steps = np.gcd(np.abs(edges[:, 0]), np.abs(edges[:, 1]))
    twice_area = abs(int((corners[:, 0] * following[:, 1] - corners[:, 1] * following[:, 0]).sum()))
    area = (twice_area + int(steps.sum())) // 2 + 1
    if len(corners) == 1:
        return Hull(1.0, 1.0, area)
    pixels = points.astype(np.float64)
    narrow = _feret_min(corners, edges, steps, pixels)
    wide = _feret_max(corners, pixels, narrow)
    return Hull(max(wide, narrow), narrow, area)


def crofton_perimeter(mask: np.ndarray) -> float:
    """Measure the perimeter of an (h, w) bool mask in px, holes included, by Crofton's formula.

    It equals ``skimage.measure.perimeter_crofton(mask, directions=4)``.
    """
    padded = with_border(mask)
    straight = np.count_nonzero(padded[:, 1:] != padded[:, :-1])
    straight += np.count_nonzero(padded[1:] != padded[:-1])
    diagonal = np.count_nonzero(padded[1:, 1:] != padded[:-1, :-1])
    diagonal += np.count_nonzero(padded[1:, :-1] != padded[:-1, 1:])
    return math.pi / 8 * (int(straight) + _DIAGONAL * int(diagonal))


def with_border(mask: np.ndarray) -> np.ndarray:
    """Add one empty pixel on all sides to an (h, w) bool mask, ten times as fast as ``np.pad``."""
    padded = np.zeros((mask.shape[0] + 2, mask.shape[1] + 2), dtype=bool)
    padded[1:-1, 1:-1] = mask
    return padded


def _feret_max(corners: np.ndarray, pixels: np.ndarray, narrow: float) -> float:
    apart = corners[:, None] - corners[None]
    squares = (apart * apart).sum(axis=-1)
    one, other = np.unravel_index(int(squares.argmax()), squares.shape)
    span = math.sqrt(int(squares[one, other]))
    direction = (corners[other] - corners[one]) / span
    if narrow < _THIN:  # a line of single pixels ends half a step behind the last one
        return span + 1 / float(np.abs(direction).max())
    along = pixels @ direction
    depth = min(max(narrow / 2, _SMALLEST_TIP_DEPTH), _TIP_DEPTH)
    return span + _hidden(along.max() - along, depth) + _hidden(along - along.min(), depth)


def _feret_min(
    corners: np.ndarray, edges: np.ndarray, steps: np.ndarray, pixels: np.ndarray
) -> float:
    lengths = np.hypot(edges[:, 0], edges[:, 1])
    spacings = steps / lengths
    normals = np.stack([-edges[:, 1], edges[:, 0]], axis=1) / lengths[:, None]
    spans = np.ptp(corners @ normals.T, axis=0)
    widths = spans + spacings
    narrowest, rivals = math.inf, widths.min() + _RIVALS
    for index in np.argsort(widths, kind="stable"):
        if widths[index] > rivals or widths[index] >= narrowest:
            break
        away = np.abs((pixels - corners[index]) @ normals[index])
        far = spans[index] - away
        depth = min(max(widths[index] / 2, _SMALLEST_TIP_DEPTH), _TIP_DEPTH)
        hidden = max(_hidden(far, depth), spacings[index] / 2) if spans[index] > 0.5 else 0.5
        narrowest = min(narrowest, spans[index] + spacings[index] / 2 + hidden)
    return float(narrowest)


def _hidden(depths: np.ndarray, limit: float) -> float:
    """How far a tip, of pixel centres so deep, reaches beyond its outermost one, on average."""
    inside = depths[depths <= limit]
    mean = float(np.add.reduce(inside)) / len(inside)
    hidden = 0.4
    for _ in range(6):  # depths count from the true tip, which is unknown
        ratio = (mean + hidden) / (limit + hidden)  # k / (k + 1)
        power = ratio / (1 - ratio)
        power = _ROUND if power < _ROUND else _CORNER if power > _CORNER else power
        scale = len(inside) / (limit + hidden) ** power
        hidden = min(_LARGEST_GAIN, power / (power + 1) * scale ** (-1 / power))
    return hidden
