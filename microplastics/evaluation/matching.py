"""Matching of predicted and true masks by an IoU that tolerates t pixels.

With P and T the masks and P⊕t all pixels whose centre is at most t px away from one of P:

    p = |P ∩ (T⊕t)| / |P|        r = |T ∩ (P⊕t)| / |T|        IoU_t = p·r / (p + r - p·r)

It is symmetric, 1 for equal masks and never falls as t grows; IoU_0 is the IoU. docs/counting.md
has the sources.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from microplastics.structures.crop_masks import CropMasks

# A bool mask, and x and y of its first pixel.
_Crop = tuple[np.ndarray, int, int]


class Pairs(NamedTuple):
    """Numbers (M,) of predicted and true masks that may be matched, and IoU_t (M, T)."""

    predicted: np.ndarray
    true: np.ndarray
    iou: np.ndarray


def candidate_pairs(
    predicted: CropMasks,
    true: CropMasks,
    tolerances: Sequence[float] = (0.0,),
    min_iou: float = 0.5,
) -> Pairs:
    """Find all pairs whose IoU_t is ``min_iou`` or more at the largest tolerance.

    Args:
        predicted, true: the masks of one image.
        tolerances: the T values of t, ascending, in px.
        min_iou: in (0, 1].
    """
    crops = _crops(predicted), _crops(true)
    areas = [np.array([np.count_nonzero(c[0]) for c in side]) for side in crops]
    rows, columns = _near(*crops, areas, tolerances[-1], min_iou)
    grow = functools.cache(lambda side, index, t: _grow(crops[side][index], t))
    kept, values = [], []
    for i, j in zip(rows.tolist(), columns.tolist(), strict=True):
        ious = []
        # The largest tolerance first: below it the IoU is no higher.
        for t in reversed(tolerances):
            sizes = areas[0][i], areas[1][j]
            ious.append(_iou(crops[0][i], crops[1][j], grow(0, i, t), grow(1, j, t), sizes))
            if ious[0] < min_iou:
                break
        else:
            kept.append((i, j))
            values.append(ious[::-1])
    index = np.array(kept, dtype=np.int64).reshape(-1, 2)
    return Pairs(index[:, 0], index[:, 1], np.array(values).reshape(len(kept), len(tolerances)))


def match_by_score(
    scores: np.ndarray, predicted: np.ndarray, true: np.ndarray, iou: np.ndarray, min_iou: float
) -> np.ndarray:
    """Match predictions to truths one to one, the highest score first.

    As in COCO, each prediction takes the truth of the highest IoU that no higher score has taken,
    if that IoU is ``min_iou`` or more. A match does not depend on predictions of a lower score, so
    the matches at a higher score threshold are simply those of the predictions above it.

    Args:
        scores: (N,) of all predictions; of equal scores the first goes first.
        predicted, true, iou: (M,) the pairs.
        min_iou: lowest IoU of a match.

    Returns:
        (N,) int64, the number of the truth that each prediction took; -1 for none.
    """
    matches = np.full(len(scores), -1, dtype=np.int64)
    rank = np.empty(len(scores), dtype=np.int64)
    rank[np.argsort(-np.asarray(scores), kind="stable")] = np.arange(len(scores))
    taken = set()
    fits = np.flatnonzero(iou >= min_iou)
    for index in fits[np.lexsort((true[fits], -iou[fits], rank[predicted[fits]]))].tolist():
        i, j = int(predicted[index]), int(true[index])
        if matches[i] < 0 and j not in taken:
            matches[i] = j
            taken.add(j)
    return matches


def covered_fraction(predicted: CropMasks, regions: CropMasks) -> np.ndarray:
    """Return the fraction (N, R) of each prediction's pixels in each region, 0 if it has none."""
    fractions = np.zeros((len(predicted), len(regions)))
    for i, crop in enumerate(_crops(predicted)):
        area = np.count_nonzero(crop[0])
        for j, region in enumerate(_crops(regions)):
            fractions[i, j] = _common(crop, region) / area if area else 0.0
    return fractions


def _crops(masks: CropMasks) -> list[_Crop]:
    return [(crop, *xy) for crop, xy in zip(masks.crops, masks.offsets.tolist(), strict=True)]


def _near(
    predicted: Sequence[_Crop],
    true: Sequence[_Crop],
    areas: list[np.ndarray],
    tolerance: float,
    min_iou: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the pairs whose boxes and areas do not rule out an IoU_t of ``min_iou``."""
    one, two = (
        np.array([(x, y, x + m.shape[1], y + m.shape[0]) for m, x, y in side]).reshape(-1, 4)
        for side in (predicted, true)
    )
    start = np.maximum(one[:, None, :2], two[None, :, :2]) - tolerance
    end = np.minimum(one[:, None, 2:], two[None, :, 2:]) + tolerance
    within = np.prod((end - start).clip(0), axis=2)
    # p and r are no less than IoU_t; the pixels in common are at most those of the boxes' overlap.
    larger = np.maximum(areas[0][:, None], areas[1][None])
    smaller = np.minimum(areas[0][:, None], areas[1][None])
    return np.nonzero((smaller > 0) & (within > 0) & (within >= min_iou * larger))


def _iou(
    one: _Crop, two: _Crop, one_grown: _Crop, two_grown: _Crop, areas: tuple[int, int]
) -> float:
    # In whole numbers up to the one division, so that an IoU of exactly one half is one.
    a, b = _common(one, two_grown), _common(two, one_grown)
    if not a * b:
        return 0.0
    return a * b / (int(areas[0]) * b + int(areas[1]) * a - a * b)


def _common(one: _Crop, two: _Crop) -> int:
    """Return the number of pixels that two masks have in common."""
    (a, ax, ay), (b, bx, by) = one, two
    left, top = max(ax, bx), max(ay, by)
    right = min(ax + a.shape[1], bx + b.shape[1])
    bottom = min(ay + a.shape[0], by + b.shape[0])
    if left >= right or top >= bottom:
        return 0
    a = a[top - ay : bottom - ay, left - ax : right - ax]
    b = b[top - by : bottom - by, left - bx : right - bx]
    return int(np.count_nonzero(a & b))


def _grow(crop: _Crop, tolerance: float) -> _Crop:
    """Return all pixels whose centre is at most ``tolerance`` px from one of the mask."""
    reach = int(tolerance)
    if not reach:
        return crop
    mask, x, y = crop
    padded = cv2.copyMakeBorder(
        mask.astype(np.uint8), reach, reach, reach, reach, cv2.BORDER_CONSTANT, value=0
    )
    return cv2.dilate(padded, _disc(tolerance)).astype(bool), x - reach, y - reach


@functools.cache
def _disc(radius: float) -> np.ndarray:
    reach = np.arange(-int(radius), int(radius) + 1)
    return (reach[:, None] ** 2 + reach[None] ** 2 <= radius * radius).astype(np.uint8)
