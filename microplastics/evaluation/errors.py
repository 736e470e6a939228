"""Errors of detections by kind, and the AP that each kind costs.

The kinds are those of Bolya et al. (ECCV 2020, "TIDE"), whose ``tidecv`` gives the same numbers. A
detection that is not correct, with IoU the largest with a true particle of its class (own) or of
another one (other), is the first of

    localisation    0.1 <= own IoU <= 0.5
    class           other IoU >= 0.5
    duplicate       own IoU >= 0.5 with a true particle that a higher score has taken
    background      IoU <= 0.1 with every true particle
    both            what remains: wrong class and wrong outline

and ``missed`` are true particles that no detection takes, nor would if its class or outline were
right.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from microplastics.evaluation.matching import (
    Pairs,
    candidate_pairs,
    covered_fraction,
    match_by_score,
)
from microplastics.structures.crop_masks import CropMasks

ERRORS_FILE, PARTICLES_FILE = "evaluation_errors.csv", "evaluation_particles.csv"
SCORES_FILE = "evaluation_scores.csv"
FOREGROUND, BACKGROUND = 0.5, 0.1
KINDS = ("missed", "background", "duplicate", "class", "localisation", "both")
# Numbers of an outcome: KINDS, then these.
CORRECT, IGNORED = len(KINDS), len(KINDS) + 1
OUTCOMES = (*KINDS, "correct", "ignored")
MEANINGS = {
    "missed": "a true particle that nothing was found for",
    "background": "found where there is no particle",
    "duplicate": "a particle found once more",
    "class": "outline right, class wrong",
    "localisation": "class right, outline wrong: IoU 0.1 to 0.5",
    "both": "class and outline wrong",
    "correct": "class and outline right: IoU of 0.5 or more",
    "ignored": "in a region annotated as crowd",
}
_MISSED, _BACKGROUND, _DUPLICATE, _CLASS, _LOCALISATION, _BOTH = range(len(KINDS))

_BOX = ("bbox_x", "bbox_y", "bbox_w", "bbox_h")
_SIZES = ("length_px", "feret_max_px", "area_px")
_TRUE_SIZES = tuple(f"true_{name}" for name in _SIZES)
_BIN = 0.05
_RECALLS = np.linspace(0, 1, 101)  # COCO's


class ImageErrors(NamedTuple):
    """Outcome of the N detections and M true particles of one image.

    Attributes:
        outcome: (N,) int64, place in :data:`OUTCOMES`.
        truth: (N,) int64, the true particle that a detection is about; -1 for background.
        iou: (N,) with that particle; 0 if none is 0.1 or more.
        fixes: (N,) bool, whether it would be the match of ``truth`` if its error were put right.
        missed: (M,) bool.
    """

    outcome: np.ndarray
    truth: np.ndarray
    iou: np.ndarray
    fixes: np.ndarray
    missed: np.ndarray


def judge_errors(
    pairs: Pairs,
    classes: np.ndarray,
    scores: np.ndarray,
    true_classes: np.ndarray,
    ignored: np.ndarray,
) -> ImageErrors:
    """Find the kind of each error of one image.

    Args:
        pairs: all pairs whose IoU, the first column, is :data:`BACKGROUND` or more.
        classes, scores: (N,) of the detections.
        true_classes: (M,), without crowds.
        ignored: (N,) bool, detections that are neither right nor wrong if they match nothing.
    """
    own = classes[pairs.predicted] == true_classes[pairs.true]
    matches = match_by_score(scores, *_rows(pairs, own), FOREGROUND)
    taken = np.zeros(len(true_classes), dtype=bool)
    taken[matches[matches >= 0]] = True
    best = [
        _best(len(classes), *_rows(pairs, among))
        for among in (own, ~own, own & taken[pairs.true], slice(None))
    ]
    (of_own, own_iou), (of_other, other_iou), (of_taken, taken_iou), (of_any, any_iou) = best
    conditions = {
        CORRECT: (matches >= 0, matches),
        IGNORED: (ignored, np.full(len(classes), -1)),
        _LOCALISATION: ((own_iou >= BACKGROUND) & (own_iou <= FOREGROUND), of_own),
        _CLASS: (other_iou >= FOREGROUND, of_other),
        _DUPLICATE: (taken_iou >= FOREGROUND, of_taken),
        _BACKGROUND: (any_iou <= BACKGROUND, np.full(len(classes), -1)),
    }
    chosen = [condition for condition, _ in conditions.values()]
    outcome = np.select(chosen, list(conditions), _BOTH).astype(np.int64)
    truth = np.select(chosen, [of for _, of in conditions.values()], of_any).astype(np.int64)
    fixes = _fixes(outcome, truth, scores, taken)
    missed = ~taken
    missed[truth[fixes]] = False
    return ImageErrors(outcome, truth, _ious(pairs, truth), fixes, missed)


def _rows(pairs: Pairs, chosen: np.ndarray | slice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return pairs.predicted[chosen], pairs.true[chosen], pairs.iou[chosen, 0]


def _best(
    number: int, predicted: np.ndarray, true: np.ndarray, iou: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the true particle of the highest IoU, -1 for none, and that IoU, 0 for none."""
    order = np.lexsort((-true, iou))  # the best is written last
    best, value = np.full(number, -1, dtype=np.int64), np.zeros(number)
    best[predicted[order]] = true[order]
    value[predicted[order]] = iou[order]
    return best, value


def _ious(pairs: Pairs, truth: np.ndarray) -> np.ndarray:
    """Return the IoU of each detection with its ``truth``."""
    about = pairs.true == truth[pairs.predicted]
    value = np.zeros(len(truth))
    value[pairs.predicted[about]] = pairs.iou[about, 0]
    return value


def _fixes(
    outcome: np.ndarray, truth: np.ndarray, scores: np.ndarray, taken: np.ndarray
) -> np.ndarray:
    """Return which errors would become matches: for each free particle the highest score."""
    fixes = np.zeros(len(outcome), dtype=bool)
    order = np.argsort(-scores, kind="stable")
    order = order[np.isin(outcome[order], (_CLASS, _LOCALISATION))]
    order = order[~taken[truth[order]]]
    _, first = np.unique(truth[order], return_index=True)
    fixes[order[first]] = True
    return fixes


class Judged(NamedTuple):
    """Detections and true particles of one image or many, as of :class:`ImageErrors`.

    Attributes:
        classes, scores, outcome, iou, fixes: (N,) of the detections.
        target: (N,) class of the true particle that each is about; -1 for none.
        true_classes, missed: (M,).
    """

    classes: np.ndarray
    scores: np.ndarray
    outcome: np.ndarray
    iou: np.ndarray
    fixes: np.ndarray
    target: np.ndarray
    true_classes: np.ndarray
    missed: np.ndarray

    @staticmethod
    def pool(parts: Sequence["Judged"]) -> "Judged":
        """Join images."""
        numbers, flags = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=bool)
        reals = np.zeros(0)
        empty = Judged(numbers, reals, numbers, reals, flags, numbers, numbers, flags)
        return Judged(*(np.concatenate(column) for column in zip(empty, *parts, strict=True)))


class ErrorRecord(NamedTuple):
    """What one image leaves behind.

    Attributes:
        every, counted: all detections; those that count as particles.
        detection: (C,) number, among all of the image, of each that counts.
        truth: (C,) as of :class:`ImageErrors`.
        boxes, true_boxes: (C, 4) and (M, 4) x, y, width, height of the masks in px.
    """

    every: Judged
    counted: Judged
    detection: np.ndarray
    truth: np.ndarray
    boxes: np.ndarray
    true_boxes: np.ndarray


def error_record(
    masks: CropMasks,
    classes: np.ndarray,
    scores: np.ndarray,
    true: CropMasks,
    true_classes: np.ndarray,
    crowd: np.ndarray,
    counted: np.ndarray,
) -> ErrorRecord:
    """Judge the errors of one image, of all detections and of those that count.

    Args:
        masks, classes, scores: N detections.
        true, true_classes, crowd: the annotations' masks, class numbers and, bool, if crowds.
        counted: numbers, ascending, of the detections that count as particles.
    """
    truths, true_numbers = true[~crowd], true_classes[~crowd]
    own_crowd = classes[:, None] == true_classes[crowd][None]
    ignored = ((covered_fraction(masks, true[crowd]) >= FOREGROUND) & own_crowd).any(axis=1)
    pairs = candidate_pairs(masks, truths, (0.0,), BACKGROUND)
    place = np.full(len(classes), -1, dtype=np.int64)
    place[counted] = np.arange(len(counted))
    among = place[pairs.predicted] >= 0
    part = Pairs(place[pairs.predicted[among]], pairs.true[among], pairs.iou[among])

    def judged(pairs: Pairs, chosen: np.ndarray | slice) -> tuple[Judged, ImageErrors]:
        own = classes[chosen], scores[chosen]
        errors = judge_errors(pairs, *own, true_numbers, ignored[chosen])
        target = np.append(true_numbers, -1)[errors.truth]
        of_detections = errors.outcome, errors.iou, errors.fixes, target
        return Judged(*own, *of_detections, true_numbers, errors.missed), errors

    every, _ = judged(pairs, slice(None))
    of_counted, errors = judged(part, counted)
    boxes = _boxes(masks[counted]), _boxes(truths)
    return ErrorRecord(every, of_counted, counted, errors.truth, *boxes)


def _boxes(masks: CropMasks) -> np.ndarray:
    boxes = masks.get_bounding_boxes().tensor.numpy().astype(np.int64)
    boxes[:, 2:] -= boxes[:, :2]
    return boxes


def average_precision(hits: np.ndarray, positives: int) -> float:
    """Compute COCO's AP, in %, of the detections of one class at one IoU.

    Args:
        hits: (N,) bool, by falling score.
        positives: number of true particles, above 0.
    """
    found = np.cumsum(hits)
    precision = found / np.arange(1, len(hits) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(found / positives, _RECALLS, side="left")
    return 100 * float(np.append(precision, 0.0)[places].mean())


def lost_ap(judged: Judged, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Compute AP50, and how much it would rise if all errors of one kind were put right.

    A class or localisation error becomes a match, unless the particle has one; other detections
    are removed, and missed particles are. The rises of all kinds do not sum up to the AP that
    lacks to 100.

    Returns:
        AP50 (K,) of each class and the rises (K, 6) in the order of :data:`KINDS`, in percentage
        points. NaN for classes without a true particle; the mean over the others is what TIDE
        reports. By rounding to 101 recalls a rise may be slightly negative. A class of which
        nothing is found loses all to ``missed``, for which TIDE has no number.
    """
    order = np.argsort(-judged.scores, kind="stable")
    order = order[judged.outcome[order] != IGNORED]
    classes, outcome = judged.classes[order], judged.outcome[order]
    fixes, target = judged.fixes[order], judged.target[order]
    positives = np.bincount(judged.true_classes, minlength=num_classes)
    hits = outcome == CORRECT

    def of_classes(classes: np.ndarray, hits: np.ndarray, positives: np.ndarray) -> np.ndarray:
        values = np.full(num_classes, 100.0)
        for number in np.flatnonzero(positives):
            values[number] = average_precision(hits[classes == number], int(positives[number]))
        return values

    before = of_classes(classes, hits, positives)
    after = []
    for kind in range(len(KINDS)):
        of_kind = outcome == kind
        kept = ~of_kind | fixes
        fixed = np.where(of_kind, target, classes)[kept]
        missed = judged.true_classes[judged.missed] if kind == _MISSED else np.zeros(0, np.int64)
        remaining = positives - np.bincount(missed, minlength=num_classes)
        after.append(of_classes(fixed, (hits | of_kind)[kept], remaining))
    rises, there = np.stack(after, axis=1) - before[:, None], positives > 0
    return np.where(there, before, np.nan), np.where(there[:, None], rises, np.nan)


def error_table(every: Judged, counted: Judged, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """List the errors of each class, and of all (None), by kind.

    Returns:
        Rows of ``class``, ``error`` (of :data:`KINDS`), ``AP50_lost`` in percentage points (of
        all: the mean over the classes with a true particle), ``detections`` among all of them,
        and ``counted`` among those that count as particles; of ``missed`` both are true particles.
    """
    _, rises = lost_ap(every, len(class_names))
    there = rises[~np.isnan(rises[:, 0])]
    mean = there.mean(axis=0) if len(there) else np.full(len(KINDS), np.nan)
    rows = []
    for number, name in [*enumerate(class_names), (None, None)]:
        lost = mean if number is None else rises[number]
        for kind, error in enumerate(KINDS):
            rows.append(
                {
                    "class": name,
                    "error": error,
                    "AP50_lost": float(np.maximum(lost[kind], 0)),
                    "detections": _count(every, kind, number),
                    "counted": _count(counted, kind, number),
                }
            )
    return rows


def _count(judged: Judged, kind: int, number: int | None) -> int:
    """Number of errors of a kind, of the class that is predicted; of missed, of the true one."""
    of_kind, classes = judged.outcome == kind, judged.classes
    if kind == _MISSED:
        of_kind, classes = judged.missed, judged.true_classes
    return int((of_kind if number is None else of_kind & (classes == number)).sum())


def score_table(every: Judged, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """Count detections by class, score and IoU, in bins of 0.05.

    Returns:
        Rows of ``class``, the lower bounds ``score`` and ``iou``, ``detections``, and how many of
        them are ``correct``; without those in crowds. A bin with nothing in it has no row.
    """
    number = round(1 / _BIN)
    # Scores are float32, whose 0.6 is a little more or less.
    bins = [
        np.clip((v / _BIN + 1e-6).astype(int), 0, number - 1) for v in (every.scores, every.iou)
    ]
    there = every.outcome != IGNORED
    of_each = np.stack([every.classes, *bins, every.outcome == CORRECT], axis=1)[there]
    groups, inverse, detections = np.unique(
        of_each[:, :3], axis=0, return_inverse=True, return_counts=True
    )
    correct = np.bincount(inverse.ravel(), of_each[:, 3], minlength=len(groups))
    return [
        {
            "class": class_names[name],
            "score": round(score * _BIN, 2),
            "iou": round(iou * _BIN, 2),
            "detections": count,
            "correct": int(right),
        }
        for (name, score, iou), count, right in zip(
            groups.tolist(), detections.tolist(), correct, strict=True
        )
    ]


def particle_rows(
    errors: ErrorRecord,
    image: dict[str, Any],
    annotations: Sequence[int],
    class_names: Sequence[str],
    sizes: tuple[np.ndarray, np.ndarray] | None = None,
) -> list[dict[str, Any]]:
    """List the particles of one image: what counts, in the order of the detections, then missed.

    Args:
        errors: of the image.
        image: its ``id``, ``file_name`` and ``um_per_px``.
        annotations: (M,) ids of the true particles.
        class_names: by class number.
        sizes: length, maximum Feret diameter and area of what counts, (C, 3), and of the true
            particles, (M, 3), in px.

    Returns:
        Rows of the same columns; "" where something is not there.
    """
    judged, rows = errors.counted, []
    founds = [*range(len(errors.truth)), *[-1] * int(judged.missed.sum())]
    truths = [*errors.truth.tolist(), *np.flatnonzero(judged.missed).tolist()]
    for found, truth in zip(founds, truths, strict=True):
        is_found, is_true = found >= 0, truth >= 0
        box = errors.boxes[found] if is_found else errors.true_boxes[truth]
        own = sizes[0][found].tolist() if sizes and is_found else [""] * len(_SIZES)
        true = sizes[1][truth].tolist() if sizes and is_true else [""] * len(_SIZES)
        rows.append(
            {
                "image": image["file_name"],
                "image_id": image["id"],
                "outcome": OUTCOMES[judged.outcome[found] if is_found else _MISSED],
                "class": class_names[judged.classes[found]] if is_found else "",
                "true_class": class_names[judged.true_classes[truth]] if is_true else "",
                "score": float(judged.scores[found]) if is_found else "",
                "iou": float(judged.iou[found]) if is_found else "",
                **dict(zip(_BOX, box.tolist(), strict=True)),
                **dict(zip(_SIZES, own, strict=True)),
                **dict(zip(_TRUE_SIZES, true, strict=True)),
                "um_per_px": image["um_per_px"],
                "detection": int(errors.detection[found]) if is_found else "",
                "annotation": annotations[truth] if is_true else "",
            }
        )
    return rows
