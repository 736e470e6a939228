"""Choice of the score threshold of each class on a validation set."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np

from microplastics.evaluation.counting import Pooled, class_curve

Metric = Literal["f1", "count"]

DEFAULT = 0.5
MIN_PARTICLES = 10


@dataclasses.dataclass(frozen=True)
class Choice:
    """Threshold of one class and its effect on the set that it was chosen on.

    Attributes:
        threshold: lowest score of a particle of this class that counts.
        true: number of true particles.
        before, after: ``predicted``, ``count_error``, ``precision``, ``recall``, ``F1`` (%) at
            the default and at the chosen threshold.
        kept_because: why the default was kept without a choice; empty if one was made.
    """

    class_name: str
    threshold: float
    true: int
    before: dict[str, float]
    after: dict[str, float]
    kept_because: str = ""


def choose_thresholds(
    pooled: Pooled,
    class_names: Sequence[str],
    metric: Metric,
    lowest: float = 0.0,
    default: float = DEFAULT,
) -> list[Choice]:
    """Choose the threshold of each class by itself.

    Every set of predictions that a threshold can leave is tried. Of equal ones the smaller
    count error (``"f1"``) or the higher F1 (``"count"``) wins, then the one nearest to the default,
    then the higher threshold. All thresholds between two scores are equivalent: the default is
    taken if it is between them, else a short number near their middle.

    Args:
        pooled: the records of the validation set, with predictions from ``lowest`` on.
        class_names: by class number.
        metric: ``"f1"`` maximises F1 at IoU 0.5; ``"count"`` minimises the absolute error.
        lowest: lowest score that was predicted.
        default: threshold of a class without enough particles to choose.
    """
    choices = []
    for name, *part in pooled.parts(class_names):
        if name is None:
            continue
        true, reason = int(part[1].sum()), ""
        scores = np.unique(pooled.scores[part[0] & ~pooled.ignored[:, 0]])
        threshold = default
        if true < MIN_PARTICLES:
            reason = (
                f"{name} has {true} true particles, fewer than the {MIN_PARTICLES} that a "
                f"choice needs: it keeps {default:g}."
            )
        elif not len(scores):
            reason = f"No {name} is predicted at any score: it keeps {default:g}."
        else:
            curve = class_curve(pooled, *part, scores)
            threshold = _choose(curve, metric, lowest, default)
        curve = class_curve(pooled, *part, np.array([default, threshold]))
        before, after = (
            {key: column[index].item() for key, column in curve.items()} for index in (0, 1)
        )
        choices.append(Choice(name, threshold, true, before, after, reason))
    return choices


def _choose(curve: dict[str, np.ndarray], metric: Metric, lowest: float, default: float) -> float:
    """Return the best threshold by a curve over the distinct scores."""
    scores, f1, error = curve["threshold"], -curve["F1"], np.abs(curve["count_error"])
    first, second = (f1, error) if metric == "f1" else (error, f1)
    below = np.concatenate([[min(lowest, scores[0])], scores[:-1]])
    far = np.maximum(np.maximum(below - default, default - scores), 0)
    best = np.lexsort((-scores, far, second, first))[0]
    if below[best] < default < scores[best]:
        return default
    return _short_number(float(below[best]), float(scores[best]))


def _short_number(low: float, high: float) -> float:
    """Return the number of fewest decimals, at least two, near the middle of (low, high).

    Not ``high`` itself if avoidable: evaluation counts scores from the threshold on, Detectron2
    and the predictor scores above it.
    """
    for decimals in range(2, 17):
        number = round((low + high) / 2, decimals)
        if low < number < high:
            return number
    return high
