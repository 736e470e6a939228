"""Counts, precision, recall and F1 over the score threshold.

One matching serves all thresholds: with the matching by score a prediction's partner depends on
predictions of a higher score alone (:func:`microplastics.evaluation.matching.match_by_score`), so
the matches at a threshold are those of the predictions that reach it. Where
TEST.COUNTING.MAX_OVERLAP leaves duplicates out, that is exact at one threshold for all classes:
with different ones a particle may come back that one of another class covered
(``docs/counting.md``).
"""

import csv
import io
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from microplastics.evaluation.counting_records import Pooled
from microplastics.files import atomic_write

GRID = np.arange(1, 100) / 100


def class_curve(
    pooled: Pooled, number: int | None, thresholds: np.ndarray
) -> dict[str, np.ndarray]:
    """Figures of one class, or of all, at many score thresholds.

    Args:
        pooled: the records.
        number: class number; None for all.
        thresholds: (T,); a prediction counts from the threshold on.

    Returns:
        Arrays (T,): ``threshold``, ``true``, ``predicted``, ``count_error``, and in %
        ``count_error_pct``, ``precision``, ``recall`` and ``F1``, NaN where undefined.
    """
    chosen = ((number is None) | (pooled.classes == number)) & ~pooled.ignored[:, 0]
    true = int(((number is None) | (pooled.true_classes == number)).sum())
    order = np.argsort(pooled.scores[chosen])
    scores = pooled.scores[chosen][order]
    hits = pooled.matches[chosen, 0][order] >= 0
    above = np.concatenate([[0], np.cumsum(hits[::-1])])[::-1]  # matches from each score on
    start = np.searchsorted(scores, thresholds, side="left")
    predicted, matched = len(scores) - start, above[start]
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "threshold": np.asarray(thresholds, dtype=float),
            "true": np.full(len(start), true),
            "predicted": predicted,
            "count_error": predicted - true,
            "count_error_pct": 100.0 * (predicted - true) / np.float64(true),
            "precision": 100.0 * matched / predicted,
            "recall": 100.0 * matched / np.float64(true),
            "F1": 200.0 * matched / (predicted + true),
        }


def curves(pooled: Pooled, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """:func:`class_curve` of every class, and of all (None), at 0.01, 0.02, … 0.99, as rows."""
    rows = []
    for number, name in [*enumerate(class_names), (None, None)]:
        curve = class_curve(pooled, number, GRID)
        for values in zip(*(column.tolist() for column in curve.values()), strict=True):
            rows.append({"class": name, **dict(zip(curve, values, strict=True))})
    return rows


def write_rows(path: str | os.PathLike, rows: Sequence[dict[str, Any]]) -> None:
    """Write dicts of the same keys as CSV, whole or not at all.

    NaN becomes an empty cell, and None, which stands for all classes or sizes, ``all``.
    """
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: "all" if v is None else "" if v != v else v for k, v in row.items()})
    with atomic_write(path) as file:
        file.write(buffer.getvalue())
