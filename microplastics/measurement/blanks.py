"""Correcting counts for the particles that blanks have too."""

from typing import NamedTuple

import numpy as np
from scipy.special import ndtri

from microplastics.measurement.intervals import (
    LEVEL,
    Interval,
    difference_interval,
    weighted_poisson_interval,
)

_LOD_SDS, _LOQ_SDS = 3.3, 10.0
_ERROR_RATE = 0.05  # of both kinds in Currie's limit


class Counts(NamedTuple):
    """Particles counted in each of R rows.

    Attributes:
        numbers: (R,) int64.
        sums: (R,) sum of their weights.
        squares: (R,) sum of their squared weights, the variance of ``sums``.
        largest: (R,) largest weight, at least 1.
    """

    numbers: np.ndarray
    sums: np.ndarray
    squares: np.ndarray
    largest: np.ndarray

    def interval(self, level: float = LEVEL) -> Interval:
        """Interval of the mean of ``sums``."""
        return weighted_poisson_interval(self.sums, self.squares, self.largest, level)


class Corrected(NamedTuple):
    """Counts less what blanks have; NaN in the rows of the blanks.

    Attributes:
        estimates: (R,) from 0 on.
        interval: of them, from 0 on.
        columns: all that the summary tells, by name.
    """

    estimates: np.ndarray
    interval: Interval
    columns: dict[str, np.ndarray]


def correct_for_blanks(
    counts: Counts, exposures: np.ndarray, blanks: np.ndarray, level: float = LEVEL
) -> Corrected:
    """Subtract from each row what blanks of the same size have on average.

    A row of exposure e is corrected by e · Σ(counts of the blanks) / Σ(their exposures). The
    variance is that of both Poisson counts, the interval that of a difference
    (:func:`microplastics.measurement.intervals.difference_interval`). Limits of detection and
    quantification are the blanks' mean and 3.3 or 10 standard deviations over them; and Currie's
    detection limit (1968, doi:10.1021/ac60259a007), which a single blank gives too.

    Args:
        counts: of R rows, blanks among them.
        exposures: (R,) how much was looked at in each: area or number of images.
        blanks: (R,) bool, at least one.
        level: coverage of the interval.
    """
    of_blanks = float(exposures[blanks].sum())
    scale = np.where(blanks, np.nan, exposures / of_blanks)
    total, squares = counts.sums[blanks].sum(), counts.squares[blanks].sum()
    largest = counts.largest[blanks].max()
    bounds = weighted_poisson_interval(total, squares, largest, level)
    expected = scale * total
    raw = counts.sums - expected
    interval = difference_interval(
        counts.sums,
        counts.interval(level),
        expected,
        Interval(scale * bounds.low, scale * bounds.high),
    )
    interval = Interval(np.maximum(interval.low, 0), np.maximum(interval.high, 0))
    rates = counts.sums[blanks] / exposures[blanks]
    spread = rates.std(ddof=1) if len(rates) > 1 else np.nan
    exposures = np.where(blanks, np.nan, exposures)
    k = ndtri(1 - _ERROR_RATE)
    estimates = np.maximum(raw, 0)
    columns = {
        "blank_expected": expected,
        "count_corrected": estimates,
        "count_corrected_low": interval.low,
        "count_corrected_high": interval.high,
        "count_corrected_unclipped": raw,
        "count_corrected_sd": np.sqrt(counts.squares + scale**2 * squares),
        "lod": exposures * (rates.mean() + _LOD_SDS * spread),
        "loq": exposures * (rates.mean() + _LOQ_SDS * spread),
        "currie_detection_limit": expected
        + k**2
        + 2 * k * np.sqrt(scale * squares + scale**2 * squares),
    }
    return Corrected(estimates, interval, columns)
