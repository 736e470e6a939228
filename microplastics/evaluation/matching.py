"""Which prediction is which true particle: mask IoU, with a tolerance for the outline.

A shift of a 4 px wide fibre by one pixel diagonally costs it 0.4 of its IoU, and no annotator's
hand is that steady. So beside the IoU there is one that forgives t pixels. With P and T the masks
and P⊕t all pixels whose centre is at most t px away from one of P's:

    p = |P ∩ (T⊕t)| / |P|        r = |T ∩ (P⊕t)| / |T|        IoU_t = p·r / (p + r - p·r)

p and r are the relaxed precision and recall of Mnih and Hinton (Learning to detect roads in
high-resolution aerial images, ECCV 2010), who took them from the correctness and completeness
within a buffer of Wiedemann, Heipke, Mayer and Jamet (Empirical evaluation of automatically
extracted road axes, 1998); the way that they are joined is the latter's "quality". It is the same
for (P, T) and (T, P), 1 for equal masks, never falls as t grows, and IoU_0 is the IoU itself.
Boundary IoU (Cheng et al. 2021) would not do: it is stricter than IoU, and equal to it on masks
that are thinner than twice its distance.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

Crop = tuple[np.ndarray, int, int]  # bool mask, and x and y of its first pixel


class Pairs(NamedTuple):
    """Pairs of a predicted and a true mask that may be matched.

    Attributes:
        predicted: (M,) int64, number of the prediction.
        true: (M,) int64, number of the truth.
        iou: (M, T) float64, IoU_t at each tolerance.
    """

    predicted: np.ndarray
    true: np.ndarray
    iou: np.ndarray


def tolerant_iou(
    mask: np.ndarray,
    other: np.ndarray,
    tolerance: float = 0.0,
    offset: tuple[int, int] = (0, 0),
    other_offset: tuple[int, int] = (0, 0),
) -> float:
    """IoU_t of two masks, as the module's docstring has it.

    Args:
        mask, other: bool arrays of two dimensions, each a crop of the same image.
        tolerance: t in px.
        offset, other_offset: x and y of the crops' first pixels in the image.

    Returns:
        In [0, 1]; 0 where one mask is empty, 1 where both are.
    """
    one = (np.asarray(mask, dtype=bool), *map(int, offset))
    two = (np.asarray(other, dtype=bool), *map(int, other_offset))
    areas = np.count_nonzero(one[0]), np.count_nonzero(two[0])
    if not min(areas):
        return float(areas[0] == areas[1])
    return _iou(one, two, _grow(one, tolerance), _grow(two, tolerance), areas)


def candidate_pairs(
    predicted: Sequence[Crop],
    true: Sequence[Crop],
    tolerances: Sequence[float] = (0.0,),
    least: float = 0.5,
) -> Pairs:
    """All pairs whose IoU_t is ``least`` or more at the largest tolerance.

    No full frame is made: every mask is grown once within its own crop.

    Args:
        predicted, true: the masks of one image.
        tolerances: ascending, in px.
        least: in (0, 1].
    """
    areas = [np.array([np.count_nonzero(c[0]) for c in side]) for side in (predicted, true)]
    rows, columns = _near(predicted, true, areas, tolerances[-1], least)
    grown: dict[tuple[int, int, float], Crop] = {}

    def grow(side: int, index: int, tolerance: float) -> Crop:
        key = (side, index, tolerance)
        if key not in grown:
            grown[key] = _grow((predicted, true)[side][index], tolerance)
        return grown[key]

    kept, values = [], []
    for i, j in zip(rows.tolist(), columns.tolist(), strict=True):
        ious = []
        # The largest tolerance first: below it the IoU is no higher.
        for t in reversed(tolerances):
            sizes = areas[0][i], areas[1][j]
            ious.append(_iou(predicted[i], true[j], grow(0, i, t), grow(1, j, t), sizes))
            if ious[0] < least:
                break
        else:
            kept.append((i, j))
            values.append(ious[::-1])
    index = np.array(kept, dtype=np.int64).reshape(-1, 2)
    return Pairs(index[:, 0], index[:, 1], np.array(values).reshape(len(kept), len(tolerances)))


def match_by_score(
    scores: np.ndarray, predicted: np.ndarray, true: np.ndarray, iou: np.ndarray, least: float
) -> np.ndarray:
    """Match predictions to truths one to one, the highest score first.

    As COCO does: each prediction takes, of the truths that no higher score has taken, the one of
    the highest IoU, if that is ``least`` or more. What a prediction takes does not depend on any
    of a lower score, so the matches at a higher score threshold are simply those of the
    predictions above it. That holds for no optimal assignment (Hungarian method), which would
    have to be solved anew for each threshold. Both are the same where masks do not overlap and
    ``least`` is over 0.5: then no mask has two partners.

    Args:
        scores: (N,) of all predictions; of equal scores the first goes first.
        predicted, true, iou: (M,) the pairs.
        least: least IoU of a match.

    Returns:
        (N,) int64, the number of the truth that each prediction took; -1 for none.
    """
    matches = np.full(len(scores), -1, dtype=np.int64)
    rank = np.empty(len(scores), dtype=np.int64)
    rank[np.argsort(-np.asarray(scores), kind="stable")] = np.arange(len(scores))
    taken = set()
    fits = np.flatnonzero(iou >= least)
    for index in fits[np.lexsort((true[fits], -iou[fits], rank[predicted[fits]]))].tolist():
        i, j = int(predicted[index]), int(true[index])
        if matches[i] < 0 and j not in taken:
            matches[i] = j
            taken.add(j)
    return matches


def covered_share(predicted: Sequence[Crop], regions: Sequence[Crop]) -> np.ndarray:
    """The largest share of each prediction's pixels that lies in one of the regions.

    COCO's overlap with a crowd.

    Returns:
        (N, R) float64; 0 for an empty prediction.
    """
    shares = np.zeros((len(predicted), len(regions)))
    for i, crop in enumerate(predicted):
        area = np.count_nonzero(crop[0])
        for j, region in enumerate(regions):
            shares[i, j] = _common(crop, region) / area if area else 0.0
    return shares


def _near(
    predicted: Sequence[Crop],
    true: Sequence[Crop],
    areas: list[np.ndarray],
    tolerance: float,
    least: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs whose boxes and areas do not rule out an IoU_t of ``least``."""
    if not (len(predicted) and len(true)):
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    one, two = (
        np.array([(x, y, x + m.shape[1], y + m.shape[0]) for m, x, y in side], dtype=float)
        for side in (predicted, true)
    )
    start = np.maximum(one[:, None, :2], two[None, :, :2] - tolerance)
    end = np.minimum(one[:, None, 2:], two[None, :, 2:] + tolerance)
    within = np.prod((end - start).clip(0), axis=2)
    # p and r are no less than IoU_t; neither's common pixels are more than the boxes share.
    possible = (within > 0) & (within >= least * areas[0][:, None])
    start = np.maximum(one[:, None, :2] - tolerance, two[None, :, :2])
    end = np.minimum(one[:, None, 2:] + tolerance, two[None, :, 2:])
    possible &= np.prod((end - start).clip(0), axis=2) >= least * areas[1][None]
    possible &= (areas[0][:, None] > 0) & (areas[1][None] > 0)
    return np.nonzero(possible)


def _iou(one: Crop, two: Crop, one_grown: Crop, two_grown: Crop, areas: tuple[int, int]) -> float:
    # In whole numbers up to the one division, so that an IoU of exactly one half is one.
    a, b = _common(one, two_grown), _common(two, one_grown)
    if not a * b:
        return 0.0
    return a * b / (int(areas[0]) * b + int(areas[1]) * a - a * b)


def _common(one: Crop, two: Crop) -> int:
    """Number of pixels that two masks share."""
    (a, ax, ay), (b, bx, by) = one, two
    left, top = max(ax, bx), max(ay, by)
    right = min(ax + a.shape[1], bx + b.shape[1])
    bottom = min(ay + a.shape[0], by + b.shape[0])
    if left >= right or top >= bottom:
        return 0
    a = a[top - ay : bottom - ay, left - ax : right - ax]
    b = b[top - by : bottom - by, left - bx : right - bx]
    return int(np.count_nonzero(a & b))


def _grow(crop: Crop, tolerance: float) -> Crop:
    """All pixels whose centre lies at most ``tolerance`` px from one of the mask's."""
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
