"""What counting keeps of each image, and the same of all images in one table."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from microplastics.evaluation.counting_sizes import measure_sizes
from microplastics.evaluation.matching import (
    Crop,
    Pairs,
    candidate_pairs,
    covered_share,
    match_by_score,
)

LEAST_IOU = 0.5
TOLERANCES = (0.0, 1.0, 2.0)


def crops_of(masks: Any) -> list[Crop]:
    """The crops of ``CropMasks``, each with its place."""
    places = masks.offsets.tolist()
    return [(crop, x, y) for crop, (x, y) in zip(masks.crops, places, strict=True)]


def judge_image(
    image_id: int,
    predicted: Sequence[Crop],
    classes: np.ndarray,
    scores: np.ndarray,
    true: Sequence[Crop],
    true_classes: np.ndarray,
    crowd: np.ndarray,
    thresholds: np.ndarray,
    size_names: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Match the predictions of one image and forget its masks.

    Args:
        image_id: id of the image.
        predicted: N masks.
        classes: (N,) class numbers.
        scores: (N,).
        true: masks of the annotations, crowds included.
        true_classes: their class numbers.
        crowd: bool, which of them are crowds.
        thresholds: (K,) least score of each class that counts.
        size_names: class names where sizes are to be measured, else None.

    Returns:
        ``image_id``; ``blank``, no annotation at all; of each prediction ``classes``, ``scores``,
        ``matches`` (N, T) to truths of its class at each tolerance and ``ignored`` (N, T);
        of the M truths that are no crowds ``true_classes``; ``confusion`` (C, 2) of true and
        predicted class, -1 for none; where sizes are wanted ``sizes`` (N, 3), NaN below the
        threshold, and ``true_sizes`` (M, 3).
    """
    crowds = [crop for crop, flag in zip(true, crowd, strict=True) if flag]
    truths = [crop for crop, flag in zip(true, crowd, strict=True) if not flag]
    crowd_classes, true_classes = true_classes[crowd], true_classes[~crowd]
    pairs = candidate_pairs(predicted, truths, TOLERANCES, LEAST_IOU)
    matches = _matches_within_class(pairs, classes, scores, true_classes)
    # As in COCO, what lies in a crowd and has no partner is neither right nor wrong.
    covered = covered_share(predicted, crowds) >= LEAST_IOU
    own_crowd = (covered & (classes[:, None] == crowd_classes[None])).any(axis=1)
    kept = scores >= thresholds[classes]
    record = {
        "image_id": image_id,
        "blank": not len(true),
        "classes": classes,
        "scores": scores,
        "matches": matches,
        "ignored": own_crowd[:, None] & (matches < 0),
        "true_classes": true_classes,
        "confusion": _confusion(pairs, classes, scores, true_classes, kept, covered.any(axis=1)),
    }
    if size_names is not None:
        sizes = np.full((len(predicted), 3), np.nan)
        chosen = np.flatnonzero(kept)
        sizes[chosen] = measure_sizes([predicted[i] for i in chosen], classes[chosen], size_names)
        record["sizes"] = sizes
        record["true_sizes"] = measure_sizes(truths, true_classes, size_names)
    return record


def _matches_within_class(
    pairs: Pairs, classes: np.ndarray, scores: np.ndarray, true_classes: np.ndarray
) -> np.ndarray:
    """(N, T) truth of its own class that each prediction takes at each tolerance, -1 for none."""
    own = classes[pairs.predicted] == true_classes[pairs.true]
    predicted, true, iou = pairs.predicted[own], pairs.true[own], pairs.iou[own]
    columns = [
        match_by_score(scores, predicted, true, iou[:, k], LEAST_IOU)
        for k in range(len(TOLERANCES))
    ]
    return np.stack(columns, axis=1)


def _confusion(pairs, classes, scores, true_classes, kept, covered) -> np.ndarray:
    """(C, 2) true and predicted class of pairs matched whatever their classes, -1 for none."""
    among = kept[pairs.predicted]
    matches = match_by_score(
        scores, pairs.predicted[among], pairs.true[among], pairs.iou[among, 0], LEAST_IOU
    )
    found = np.flatnonzero(matches >= 0)
    surplus = np.flatnonzero(kept & (matches < 0) & ~covered)
    missed = np.setdiff1d(np.arange(len(true_classes)), matches)
    rows = [
        np.stack([true_classes[matches[found]], classes[found]], axis=1),
        np.stack([np.full(len(surplus), -1), classes[surplus]], axis=1),
        np.stack([true_classes[missed], np.full(len(missed), -1)], axis=1),
    ]
    return np.concatenate(rows).astype(np.int64)


@dataclasses.dataclass(frozen=True)
class Pooled:
    """The records of many images, one after another.

    Attributes:
        num_images: number of images.
        blank: (I,) bool, images without annotation.
        image, classes, scores: (N,) of each prediction; ``image`` counts from 0.
        matches: (N, T) number of the truth among all, -1 for none; by tolerance.
        ignored: (N, T) bool.
        true_image, true_classes: (M,) of each truth.
        confusion: (C, 2).
        sizes, true_sizes: (N, 3) and (M, 3), or None where they were not measured.
        um_per_px: (I,) of each image; NaN where unknown.
    """

    num_images: int
    blank: np.ndarray
    image: np.ndarray
    classes: np.ndarray
    scores: np.ndarray
    matches: np.ndarray
    ignored: np.ndarray
    true_image: np.ndarray
    true_classes: np.ndarray
    confusion: np.ndarray
    sizes: np.ndarray | None
    true_sizes: np.ndarray | None
    um_per_px: np.ndarray

    def counted(self, thresholds: np.ndarray) -> np.ndarray:
        """(N,) bool: predictions of at least their class's threshold, (K,)."""
        return self.scores >= thresholds[self.classes]


def pool(records: Sequence[dict[str, Any]], scales: dict[int, float] | None = None) -> Pooled:
    """Join records of :func:`judge_image`.

    Args:
        records: one for each image.
        scales: µm per pixel by image id.
    """
    scales = scales or {}
    # numpy cannot join nothing: an empty record in front gives every array its shape and dtype.
    none, tolerances = np.zeros(0, dtype=np.int64), len(TOLERANCES)
    empty: dict[str, Any] = {
        "classes": none,
        "scores": np.zeros(0),
        "matches": none.reshape(0, tolerances),
        "ignored": np.zeros((0, tolerances), dtype=bool),
        "true_classes": none,
        "confusion": none.reshape(0, 2),
        "sizes": np.zeros((0, 3)),
        "true_sizes": np.zeros((0, 3)),
    }
    measured = all("sizes" in record for record in records)

    def join(key: str) -> np.ndarray:
        return np.concatenate([empty[key], *(record[key] for record in records)])

    starts = np.cumsum([0, *(len(record["true_classes"]) for record in records)])
    shifted = [
        np.where(record["matches"] >= 0, record["matches"] + start, -1)
        for record, start in zip(records, starts, strict=False)
    ]

    def image_of_each(key: str) -> np.ndarray:
        lengths = np.array([len(record[key]) for record in records], dtype=np.int64)
        return np.repeat(np.arange(len(records)), lengths)

    return Pooled(
        num_images=len(records),
        blank=np.array([record["blank"] for record in records], dtype=bool),
        image=image_of_each("classes"),
        classes=join("classes"),
        scores=join("scores"),
        matches=np.concatenate([empty["matches"], *shifted]),
        ignored=join("ignored"),
        true_image=image_of_each("true_classes"),
        true_classes=join("true_classes"),
        confusion=join("confusion"),
        sizes=join("sizes") if measured else None,
        true_sizes=join("true_sizes") if measured else None,
        um_per_px=np.array([scales.get(r["image_id"], np.nan) for r in records], dtype=float),
    )
