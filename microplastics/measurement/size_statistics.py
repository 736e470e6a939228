"""Distribution of the particles' sizes in each row of a summary."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from microplastics.measurement.intervals import bootstrap_median_interval
from microplastics.measurement.size_classes import SizeClasses
from microplastics.measurement.summary_rows import Rows

PERCENTILES = (10, 25, 50, 75, 90)
STATISTICS = (
    "mean",
    "sd",
    *(f"p{percentile}" for percentile in PERCENTILES),
    "p50_low",
    "p50_high",
)


def size_columns(
    particles: pd.DataFrame, rows: Rows, size_classes: SizeClasses, weighted: bool, level: float
) -> Iterator[tuple[str, np.ndarray]]:
    """Statistics of ``feret_max`` and counts by size class.

    Args:
        particles: that count, with ``row``, ``size``, ``calibrated`` and ``weight``.
        rows: of the summary.
        size_classes: bins in µm; particles without a calibration are in none.
        weighted: whether the weights are not all 1.
        level: coverage of the median's interval.
    """
    place = particles["row"].to_numpy()
    sizes, weights = particles["size"].to_numpy(), particles["weight"].to_numpy()
    order = np.argsort(place, kind="stable")
    cuts = np.cumsum(np.bincount(place, minlength=len(rows)))[:-1]
    found = np.array(
        [
            _statistics(sizes[own], weights[own] if weighted else None, level)
            for own in (np.split(order, cuts) if len(rows) else [])
        ]
    ).reshape(-1, len(STATISTICS))
    for unit, applies in (("um", rows.calibrated), ("px", ~rows.calibrated)):
        # Without a single image the table is in µm.
        if applies.any() or (unit == "um" and not len(rows)):
            for index, name in enumerate(STATISTICS):
                yield f"feret_max_{name}_{unit}", np.where(applies, found[:, index], np.nan)
    if not rows.calibrated.any() and len(rows):
        return
    calibrated = particles["calibrated"].to_numpy(bool)
    names = size_classes.columns
    bins = size_classes.bins(sizes[calibrated])
    cells = place[calibrated] * len(names) + bins
    shape = (len(rows), len(names))
    numbers = np.bincount(cells, minlength=shape[0] * shape[1]).reshape(shape)
    for index, name in enumerate(names):
        yield f"size_{name}", numbers[:, index].astype(np.int64)
    if weighted:
        sums = np.bincount(cells, weights[calibrated], shape[0] * shape[1]).reshape(shape)
        for index, name in enumerate(names):
            yield f"weighted_size_{name}", sums[:, index].astype(np.float64)


def _statistics(sizes: np.ndarray, weights: np.ndarray | None, level: float) -> list[float]:
    """The values of :data:`STATISTICS`; all NaN without a particle, the spread of one NaN."""
    if not len(sizes):
        return [np.nan] * len(STATISTICS)
    # Sums in one order, so that the order of the particles does not show in the last digit.
    order = np.argsort(sizes, kind="stable") if weights is None else np.lexsort((weights, sizes))
    sizes = sizes[order]
    weights = None if weights is None else weights[order]
    mean = float(np.average(sizes, weights=weights))
    spread = float(np.average((sizes - mean) ** 2, weights=weights))
    number = len(sizes)
    sd = np.sqrt(spread * number / (number - 1)) if number > 1 else np.nan
    low, high = bootstrap_median_interval(sizes, weights, level)
    return [mean, float(sd), *percentiles(sizes, weights), low, high]


def percentiles(sizes: np.ndarray, weights: np.ndarray | None) -> list[float]:
    """The :data:`PERCENTILES` of sorted sizes.

    Args:
        sizes: (N,) ascending, at least one.
        weights: (N,) positive. None interpolates as numpy, pandas, R and Excel do by themselves
            (type 7 of Hyndman and Fan 1996, doi:10.1080/00031305.1996.10473566); weights put each
            size at the middle of its step of the cumulative weight (type 5).
    """
    shares = np.array(PERCENTILES) / 100
    if weights is None:
        return np.quantile(sizes, shares).tolist()
    ends = np.cumsum(weights)
    return np.interp(shares, (ends - weights / 2) / ends[-1], sizes).tolist()
