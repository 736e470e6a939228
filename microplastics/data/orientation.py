"""Whether a photograph with an EXIF rotation was annotated upright or as it is stored.

Where the rotation keeps the size (mirrored, upside down, or a square turned by 90°), the size of
the annotations says nothing. The picture may: masks lie on edges in one of the two readings only.
"""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import pycocotools.mask as mask_util

from microplastics.data.images import AXES_SWAPPED, turn
from microplastics.structures.crop_masks import CropMasks

UPRIGHT, STORED, UNSURE = "upright", "stored", "unsure"
_BLUR = 1 / 500  # of the image's side: the noise that no outline follows
_SLACK = 2  # times the blur: how far annotators draw beside an edge
_STEP = 2.0  # px between samples of an outline
_SAMPLES = 200_000  # of an image
# Ranks of the gradient, 0 to 1, under the outlines: the least of the right reading, and the least
# difference to the other for many particles and for one (docs/doctor.md). At a random place it is
# 0.5 on average; where pores of a membrane are sharper than the particles, the right one is lower.
_ON_EDGES = 0.7
_DIFFERENCE, _DIFFERENCE_OF_ONE = 0.12, 0.4


def keeps_size(orientation: int, width: int, height: int) -> bool:
    """Return whether an EXIF orientation turns or mirrors an image but keeps its size."""
    return orientation in (2, 3, 4) or (orientation in AXES_SWAPPED and width == height)


def reading(
    image: np.ndarray, orientation: int, segmentations: Sequence[list[list[float]] | dict[str, Any]]
) -> str:
    """Find out in which reading the masks of an image lie on its edges.

    Args:
        image: uint8 (H, W, 3), BGR, turned upright.
        orientation: EXIF orientation of its file, for which :func:`keeps_size` is True.
        segmentations: as in :class:`~microplastics.data.segmentation.Measured`.

    Returns:
        ``UPRIGHT``, ``STORED``, or ``UNSURE`` if the picture does not decide.
    """
    ranks = _edge_ranks(image)
    height, width = ranks.shape
    limit = max(1, _SAMPLES // max(1, len(segmentations)))
    found = []
    for segmentation in segmentations:
        points = _outline(segmentation)
        points = points[:: max(1, len(points) // limit)]
        if len(points):
            stored = turn_points(points, orientation, width, height)
            found.append([_mean_rank(ranks, points), _mean_rank(ranks, stored)])
    if not found:
        return UNSURE
    upright, stored = np.mean(found, axis=0)
    least = max(_DIFFERENCE, _DIFFERENCE_OF_ONE / len(found) ** 0.5)
    if abs(upright - stored) < least or max(upright, stored) < _ON_EDGES:
        return UNSURE
    return UPRIGHT if upright > stored else STORED


def turn_points(points: np.ndarray, orientation: int, width: int, height: int) -> np.ndarray:
    """Turn points, (N, 2) x and y in px, of an image as stored to its upright picture.

    ``width`` and ``height`` are those of the upright picture.
    """
    points = points[:, ::-1] if orientation in AXES_SWAPPED else points
    x = width - points[:, 0] if orientation in (2, 3, 6, 7) else points[:, 0]
    y = height - points[:, 1] if orientation in (3, 4, 7, 8) else points[:, 1]
    return np.stack([x, y], axis=1)


def turn_segmentation(
    segmentation: list[list[float]] | dict[str, Any], orientation: int, width: int, height: int
) -> list[list[float]] | dict[str, Any]:
    """Turn a segmentation of an image as stored to its upright picture of this size in px."""
    if isinstance(segmentation, dict):
        mask = np.asfortranarray(turn(mask_util.decode(segmentation), orientation))
        return {"size": [height, width], "counts": mask_util.encode(mask)["counts"].decode("ascii")}
    rings = (np.array(ring, np.float64).reshape(-1, 2) for ring in segmentation)
    turned = (turn_points(ring, orientation, width, height) for ring in rings)
    return [ring.reshape(-1).tolist() for ring in turned]


def _edge_ranks(image: np.ndarray) -> np.ndarray:
    """Fraction of an image's pixels with a weaker gradient than the strongest near each pixel."""
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY).astype(np.float32)
    sigma = max(1.0, _BLUR * (grey.shape[0] * grey.shape[1]) ** 0.5)
    grey = cv2.GaussianBlur(grey, (0, 0), sigma)
    gradient = np.hypot(*(cv2.Sobel(grey, cv2.CV_32F, *axis) for axis in ((1, 0), (0, 1))))
    side = 2 * round(_SLACK * sigma) + 1
    near = cv2.dilate(gradient, np.ones((side, side), np.uint8))
    levels = np.quantile(near.reshape(-1)[:: max(1, near.size // 100_000)], np.linspace(0, 1, 256))
    return np.searchsorted(levels, near).astype(np.float32) / 256


def _outline(segmentation: list[list[float]] | dict[str, Any]) -> np.ndarray:
    """Points along the outline of a mask, (N, 2), x and y in px."""
    if isinstance(segmentation, dict):
        mask = CropMasks.from_rles([segmentation])
        crop = np.pad(np.asarray(mask.crops[0], np.uint8), 1)
        inner = cv2.erode(crop, np.ones((3, 3), np.uint8))
        y, x = np.nonzero(crop & ~inner & 1)
        return np.stack([x, y], axis=1) - 0.5 + mask.offsets[0]
    parts = [np.zeros((0, 2))]
    for ring in segmentation:
        points = np.array(ring, np.float64).reshape(-1, 2)
        for start, end in zip(points, np.roll(points, -1, axis=0), strict=True):
            count = max(1, int(np.abs(end - start).max() / _STEP))
            parts.append(start + (end - start) * np.arange(count)[:, None] / count)
    return np.concatenate(parts)


def _mean_rank(ranks: np.ndarray, points: np.ndarray) -> float:
    height, width = ranks.shape
    x, y = np.clip(points.astype(int), 0, (width - 1, height - 1)).T
    return float(ranks[y, x].mean())
