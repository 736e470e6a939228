"""The figures of counting, out of pooled records; ``docs/counting.md`` defines each of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from microplastics.evaluation.counting_records import TOLERANCES, Pooled
from microplastics.evaluation.counting_sizes import QUANTITIES, SizeBins, agreement

# Figures that training may watch; errors of counts are signed, so that less is not better.
MAXIMISED = ("F1", "precision", "recall", *(f"F1_tol{t:g}" for t in TOLERANCES[1:]))
MINIMISED = ("count_MAE",)
SIZES_MINIMISED = tuple(f"{quantity}_MAE" for quantity in QUANTITIES)


def percent(part: float, whole: float) -> float:
    """``part`` in % of ``whole``; NaN where that is 0."""
    return 100 * part / whole if whole else float("nan")


def count_figures(
    pooled: Pooled, kept: np.ndarray, predictions: np.ndarray, truths: np.ndarray
) -> dict[str, float]:
    """Count and match figures of a part of the particles.

    Args:
        pooled: the records.
        kept: (N,) bool, predictions that count.
        predictions: (N,) bool, those of this part.
        truths: (M,) bool, those of this part.

    Returns:
        ``count_true``, ``count_predicted``, ``count_error`` (predicted - true),
        ``count_error_pct``, ``count_MAE`` (mean over images of the error's amount), and in %
        ``precision``, ``recall``, ``F1``, ``F1_tol1``, ``F1_tol2``.
    """
    counted = kept & predictions & ~pooled.ignored[:, 0]
    true, predicted = int(truths.sum()), int(counted.sum())
    per_image = np.bincount(pooled.image[counted], minlength=pooled.num_images) - np.bincount(
        pooled.true_image[truths], minlength=pooled.num_images
    )
    figures = {
        "count_true": true,
        "count_predicted": predicted,
        "count_error": predicted - true,
        "count_error_pct": percent(predicted - true, true),
        "count_MAE": float(np.abs(per_image).mean()) if pooled.num_images else float("nan"),
    }
    for number, tolerance in enumerate(TOLERANCES):
        matches = pooled.matches[:, number]
        found = np.zeros(len(truths), dtype=bool)
        found[matches[kept & (matches >= 0)]] = True
        hits = int((found & truths).sum())
        surplus = kept & predictions & (matches < 0) & ~pooled.ignored[:, number]
        false = int(surplus.sum())
        if not tolerance:
            figures["precision"] = percent(hits, hits + false)
            figures["recall"] = percent(hits, true)
        name = f"F1_tol{tolerance:g}" if tolerance else "F1"
        figures[name] = percent(2 * hits, hits + false + true)
    return figures


def count_table(
    pooled: Pooled, class_names: Sequence[str], thresholds: np.ndarray, bins: SizeBins
) -> list[dict[str, Any]]:
    """:func:`count_figures` of each class and of all; with sizes of each size class too.

    Returns:
        Rows that begin with ``class`` and ``size_class``, each None for all.
    """
    kept = pooled.counted(thresholds)
    sizes: list[tuple[str | None, np.ndarray, np.ndarray]] = [
        (None, np.ones(len(kept), dtype=bool), np.ones(len(pooled.true_classes), dtype=bool))
    ]
    if pooled.sizes is not None:
        # Below the threshold nothing is measured, and nothing counts.
        known = np.where(np.isnan(pooled.sizes), 0.0, pooled.sizes)
        predicted = bins.assign(known, pooled.um_per_px[pooled.image])
        true = bins.assign(pooled.true_sizes, pooled.um_per_px[pooled.true_image])
        sizes += [(name, predicted == n, true == n) for n, name in enumerate(bins.names)]
    rows = []
    for number, class_name in [*enumerate(class_names), (None, None)]:
        every = number is None
        of_class = every | (pooled.classes == number)
        true_of_class = every | (pooled.true_classes == number)
        for size_name, predictions, truths in sizes:
            figures = count_figures(pooled, kept, of_class & predictions, true_of_class & truths)
            rows.append({"class": class_name, "size_class": size_name, **figures})
    return rows


def size_table(
    pooled: Pooled, class_names: Sequence[str], thresholds: np.ndarray
) -> list[dict[str, Any]]:
    """:func:`agreement` of the sizes of matched pairs, in px and, where known, in µm.

    Returns:
        Rows of ``class`` (None for all), ``quantity``, ``unit``, ``pairs`` and the agreement; none
        where sizes were not measured. µm stand there only where every image has a scale.
    """
    if pooled.sizes is None:
        return []
    matches = pooled.matches[:, 0]
    matched = np.flatnonzero(pooled.counted(thresholds) & (matches >= 0))
    scale = pooled.um_per_px[pooled.image[matched]]
    units = [("px", np.ones(len(matched)))]
    if pooled.num_images and not np.isnan(pooled.um_per_px).any():
        units.append(("um", scale))
    rows = []
    for number, class_name in [*enumerate(class_names), (None, None)]:
        chosen = (number is None) | (pooled.classes[matched] == number)
        for column, quantity in enumerate(QUANTITIES):
            power = 2 if quantity == "area" else 1
            for unit, factor in units:
                predicted = pooled.sizes[matched, column] * factor**power
                true = pooled.true_sizes[matches[matched], column] * factor**power
                rows.append(
                    {
                        "class": class_name,
                        "quantity": quantity,
                        "unit": f"{unit}2" if power == 2 else unit,
                        "pairs": int(chosen.sum()),
                        **agreement(predicted[chosen], true[chosen]),
                    }
                )
    return rows


def confusion_table(pooled: Pooled, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """The confusion matrix: a row for each true class, a column for each predicted one.

    The last of both is the background: predicted where nothing is, and missed.
    """
    background = "(background)" if "background" in class_names else "background"
    names = [*class_names, background]
    matrix = np.zeros((len(names), len(names)), dtype=int)
    np.add.at(matrix, (pooled.confusion[:, 0], pooled.confusion[:, 1]), 1)
    return [
        {"true \\ predicted": name, **dict(zip(names, row.tolist(), strict=True))}
        for name, row in zip(names, matrix, strict=True)
    ]


def flat_figures(
    counts: Sequence[dict[str, Any]], sizes: Sequence[dict[str, Any]]
) -> dict[str, float]:
    """Name the figures of both tables for ``metrics.json``.

    ``F1``, ``F1-Fiber`` (a class), ``F1-<32px`` (a size class, all classes together),
    ``length_bias-Fiber``, ``length_um_bias`` and so on. Size classes of each class stand in the
    table alone.
    """
    flat: dict[str, float] = {}
    for row in counts:
        name, size = row["class"], row["size_class"]
        if name is not None and size is not None:
            continue
        part = size if name is None else name
        suffix = "" if part is None else f"-{part}"
        for figure, value in row.items():
            if figure not in ("class", "size_class"):
                flat[f"{figure}{suffix}"] = value
    for row in sizes:
        quantity = row["quantity"] + ("_um" if row["unit"].startswith("um") else "")
        suffix = "" if row["class"] is None else f"-{row['class']}"
        for figure in ("bias", "MAE", "loa_low", "loa_high", "MAPE"):
            flat[f"{quantity}_{figure}{suffix}"] = row[figure]
    return flat
