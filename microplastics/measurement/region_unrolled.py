"""Pictures unrolled about the centre of a circle: its edge in each direction, and where it lies."""

import math
from dataclasses import dataclass, replace

import cv2
import numpy as np

SECTORS, _ANGLES = 72, 8  # samples of a sector
_NOISE_FLOOR = 0.25


class NoCircleError(Exception):
    """No circle, or more than one; the message says why, to follow the image's name."""


@dataclass(frozen=True)
class Circle:
    """A circle in a picture.

    Attributes:
        x, y: centre in px; the first pixel's centre is (0.5, 0.5).
        radius: in px.
        support: share of its visible sectors that show the edge.
        strength: median of the edge's height there, in standard deviations of what lies beside it.
        brighter: whether it is brighter inside.
    """

    x: float
    y: float
    radius: float
    support: float = 0.0
    strength: float = 0.0
    brighter: bool = True

    def scaled(self, factor: float) -> "Circle":
        """Give the same circle in a picture of another size.

        Args:
            factor: how many times as large that picture is.

        Returns:
            the circle in px of that picture; the rest as it was.
        """
        return replace(self, x=self.x * factor, y=self.y * factor, radius=self.radius * factor)


def fit_circle(height: np.ndarray, visible: np.ndarray, window: float) -> np.ndarray | None:
    """Fit a circle to the highest place in each sector by least squares, outliers trimmed.

    Args:
        height: (``SECTORS``, n) of the edge, in any unit, at radii 1 px apart, the one in the
            middle being that of the circle so far.
        visible: (``SECTORS``, n) bool, whether that lies in the image.
        window: places farther than that from the middle, in px, say nothing.

    Returns:
        float64 moves (x, y, radius) in px of the circle so far; None where too few sectors show
        an edge.
    """
    shown = visible.all(axis=1)
    if shown.sum() < 0.3 * SECTORS:
        return None
    inner = height[:, 1:-1]
    peak = inner.argmax(axis=1) + 1
    rows = np.arange(len(height))
    before, top, after = (height[rows, peak + step] for step in (-1, 0, 1))
    bend = np.minimum(before - 2 * top + after, -1e-6)
    place = peak - height.shape[1] // 2 + np.clip((before - after) / (2 * bend), -0.5, 0.5)
    angle = sector_angles()
    design = np.column_stack([np.cos(angle), np.sin(angle), np.ones_like(angle)])
    # A sector that only shows the rise towards an edge beyond its window says nothing.
    kept = shown & (top > 0) & (np.abs(place) < window)
    for _ in range(6):
        if kept.sum() < 0.25 * SECTORS:
            return None
        solution, *_ = np.linalg.lstsq(design[kept], place[kept], rcond=None)
        rest = np.abs(place - design @ solution)
        limit = max(0.3, 2.5 * 1.4826 * float(np.median(rest[kept])))
        kept = shown & (top > 0) & (rest < limit)
    return solution


def sector_angles() -> np.ndarray:
    """Give the directions of the sectors' middles.

    Returns:
        (``SECTORS``,) float64 in radians, from the x axis towards the y axis.
    """
    return (np.arange(SECTORS) + 0.5) * (2 * math.pi / SECTORS)


def unrolled(
    image: np.ndarray, x: float, y: float, radii: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Sample an image around a centre, and average over sectors.

    Args:
        image: (h, w) float32 grey levels.
        x, y: centre in px; the first pixel's centre is (0.5, 0.5).
        radii: (n,) in px.

    Returns:
        (``SECTORS``, n) float32 means, and (``SECTORS``, n) bool, whether all samples lie in the
        image.
    """
    angle = (np.arange(SECTORS * _ANGLES) + 0.5) * (2 * math.pi / (SECTORS * _ANGLES))
    across = (x - 0.5 + np.cos(angle)[:, None] * radii).astype(np.float32)
    down = (y - 0.5 + np.sin(angle)[:, None] * radii).astype(np.float32)
    inside = (across >= 0) & (down >= 0)
    inside &= (across <= image.shape[1] - 1) & (down <= image.shape[0] - 1)
    samples = cv2.remap(image, across, down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    shape = (SECTORS, _ANGLES, len(radii))
    return samples.reshape(shape).mean(axis=1), inside.reshape(shape).all(axis=1)


def unrolled_slope(
    image: np.ndarray, x: float, y: float, radii: np.ndarray, blur: float, order: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Differentiate an image along the radius, smoothed by a Gaussian.

    Args:
        image: (h, w) float32 grey levels.
        x, y: centre in px; the first pixel's centre is (0.5, 0.5).
        radii: (n,) in px, 1 px apart.
        blur: standard deviation of the Gaussian in px.
        order: 1 or 2, of the derivative.

    Returns:
        (``SECTORS``, n) float32 grey levels per px, or per px², and (``SECTORS``, n) bool,
        whether all that they come from lies in the image.
    """
    half = math.ceil(3 * blur)
    steps = np.arange(-half, half + 1)
    bell = np.exp(-0.5 * (steps / blur) ** 2)
    bell /= bell.sum()
    kernel = bell * (steps / blur**2 if order == 1 else steps**2 / blur**4 - 1 / blur**2)
    kernel -= kernel.mean()
    wide = np.concatenate([radii[0] + steps[:half], radii, radii[-1] + steps[half + 1 :]])
    means, inside = unrolled(image, x, y, wide)
    slope = cv2.filter2D(means, cv2.CV_32F, kernel[None].astype(np.float32))
    visible = cv2.erode(inside.astype(np.uint8), np.ones((1, 2 * half + 1), np.uint8))
    keep = slice(half, half + len(radii))
    return slope[:, keep], visible[:, keep].astype(bool)


def usual_slope(slope: np.ndarray, visible: np.ndarray, floor: float = _NOISE_FLOOR) -> np.ndarray:
    """Estimate the standard deviation of each sector's slopes, by their median.

    Args:
        slope: (``SECTORS``, n) in any unit.
        visible: (``SECTORS``, n) bool, the slopes that count.
        floor: least value of the result.

    Returns:
        (``SECTORS``,) in the same unit.
    """
    masked = np.ma.masked_array(slope, ~visible)
    spread = np.ma.median(np.abs(masked), axis=1).filled(0) * 1.4826
    return np.maximum(spread, floor)
