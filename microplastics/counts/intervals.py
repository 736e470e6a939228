"""95 % confidence intervals of counts, fractions, means and medians.

Functions of arrays work on each entry; NaN stands for an interval that does not exist.
"""

import functools
from typing import NamedTuple

import numpy as np
from scipy.special import gammainccinv, gammaincinv, ndtri, stdtrit

_LEVEL = 0.95
RESAMPLES = 2000
SEED = 20240187
_CHUNK = 4_000_000  # numbers drawn at a time


class Interval(NamedTuple):
    """Lower and upper bound, each a float64 array of the same shape."""

    low: np.ndarray
    high: np.ndarray

    def columns(self, name: str, values: np.ndarray) -> dict[str, np.ndarray]:
        """Give the columns of a table with these values and their intervals."""
        return {name: values, f"{name}_low": self.low, f"{name}_high": self.high}


def poisson_interval(counts: np.ndarray) -> Interval:
    """Exact interval of the mean of a Poisson count.

    Source: Garwood 1936, doi:10.1093/biomet/28.3-4.437.

    Args:
        counts: whole numbers from 0 on.
    """
    return weighted_poisson_interval(counts, counts, 1)


def weighted_poisson_interval(
    sums: np.ndarray, squares: np.ndarray, largest: np.ndarray
) -> Interval:
    """Interval of the mean of a sum of weighted Poisson counts.

    With all weights 1 it equals :func:`poisson_interval`. Source: the gamma interval of Fay and
    Feuer 1997, doi:10.1002/(SICI)1097-0258(19970415)16:7<791::AID-SIM500>3.0.CO;2-#.

    Args:
        sums: of the weights of what was counted.
        squares: sum of the squared weights.
        largest: largest weight that another particle could have; 1 if unknown.
    """
    sums = np.asarray(sums, dtype=np.float64)
    squares = np.asarray(squares, dtype=np.float64)
    tail = (1 - _LEVEL) / 2
    some = sums > 0
    mean, variance = np.where(some, sums, 1.0), np.where(some, squares, 1.0)
    low = np.where(some, variance / mean * gammaincinv(mean**2 / variance, tail), 0.0)
    mean, variance = sums + largest, squares + np.square(largest)
    return Interval(low, variance / mean * gammainccinv(mean**2 / variance, tail))


def wilson_interval(fractions: np.ndarray, numbers: np.ndarray) -> Interval:
    """Score interval of a fraction.

    Source: Wilson 1927, doi:10.1080/01621459.1927.10502953; of common
    intervals its coverage is closest to the level (Brown, Cai and DasGupta 2001,
    doi:10.1214/ss/1009213286).

    Args:
        fractions: in [0, 1].
        numbers: sample sizes; for a weighted fraction Kish's (Σw)² / Σw². 0 gives NaN.
    """
    fractions = np.asarray(fractions, dtype=np.float64)
    numbers = np.asarray(numbers, dtype=np.float64)
    numbers = np.where(numbers > 0, numbers, np.nan)
    square = ndtri((1 + _LEVEL) / 2) ** 2
    center = (fractions + square / (2 * numbers)) / (1 + square / numbers)
    variance = fractions * (1 - fractions) / numbers + square / (4 * numbers**2)
    half = np.sqrt(square * variance) / (1 + square / numbers)
    # At 0 and 1 the bound is exact, its rounding is not.
    low = np.where(fractions == 0, 0 * center, np.clip(center - half, 0, 1))
    return Interval(low, np.where(fractions == 1, 1 + 0 * center, np.clip(center + half, 0, 1)))


def difference_interval(
    one: np.ndarray, one_interval: Interval, other: np.ndarray, other_interval: Interval
) -> Interval:
    """Interval of the difference of two independent estimates, from the interval of each.

    Source: the method of variance estimates recovery, Zou and Donner 2008, doi:10.1002/sim.3095.

    Args:
        one, other: estimates; the difference is ``one - other``.
        one_interval, other_interval: their intervals of the same level.
    """
    difference = np.asarray(one, dtype=np.float64) - other
    low = np.hypot(one - one_interval.low, other_interval.high - other)
    high = np.hypot(one_interval.high - one, other - other_interval.low)
    return Interval(difference - low, difference + high)


def bootstrap_median_interval(
    values: np.ndarray, weights: np.ndarray | None = None
) -> tuple[float, float]:
    """Percentile bootstrap interval of a median, whatever the order of the values.

    Source: Efron and Tibshirani 1993, chapter 13. Resampling n of n values and taking the median is
    the same as drawing the middle order statistics of n uniform numbers, which needs two random
    numbers, not n.

    Args:
        values: (n,); an empty array gives NaN.
        weights: (n,) positive, probabilities of resampling up to a factor; None for equal ones.
    """
    values = np.asarray(values, dtype=np.float64)
    if not len(values):
        return float("nan"), float("nan")
    order = np.argsort(values, kind="stable")
    values = values[order]
    below, above = _median_positions(len(values))
    if weights is None:
        ranks = [(uniform * len(values)).astype(np.int64) for uniform in (below, above)]
    else:
        steps = np.cumsum(np.asarray(weights, dtype=np.float64)[order])
        ranks = [np.searchsorted(steps, uniform * steps[-1]) for uniform in (below, above)]
    medians = sum(values[np.minimum(rank, len(values) - 1)] for rank in ranks) / 2
    low, high = np.quantile(medians, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return float(low), float(high)


@functools.lru_cache(maxsize=64)
def _median_positions(number: int) -> tuple[np.ndarray, np.ndarray]:
    """The two middle order statistics of ``number`` uniform numbers, (RESAMPLES,) each."""
    rng = np.random.default_rng(SEED)
    rank = (number + 1) // 2
    below = rng.beta(rank, number + 1 - rank, RESAMPLES)
    if number % 2:
        return below, below
    # The next one is the smallest of the number - rank that lie between it and 1.
    above = 1 - (1 - below) * rng.random(RESAMPLES) ** (1 / (number - rank))
    return below, above


def bootstrap_mean_interval(values: np.ndarray) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean, whatever the order of the values.

    Args:
        values: (n,); fewer than two give NaN.
    """
    values = np.sort(np.asarray(values, dtype=np.float64))
    if len(values) < 2:
        return float("nan"), float("nan")
    rng = np.random.default_rng(SEED)
    rows = max(_CHUNK // len(values), 1)
    means = []
    for start in range(0, RESAMPLES, rows):
        drawn = rng.integers(0, len(values), (min(rows, RESAMPLES - start), len(values)))
        means.append(values[drawn].mean(axis=1))
    low, high = np.quantile(np.concatenate(means), [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return float(low), float(high)


def t_interval(values: np.ndarray) -> tuple[float, float]:
    """Interval of the mean of a normal population, from its standard deviation in a sample.

    Source: Student 1908, doi:10.2307/2331554. Of differences within pairs it is that of the paired
    t-test. For the few values that repeated trainings give, a bootstrap interval is too narrow.

    Args:
        values: (n,); fewer than two give NaN.
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) < 2:
        return float("nan"), float("nan")
    half = stdtrit(len(values) - 1, (1 + _LEVEL) / 2) * values.std(ddof=1) / len(values) ** 0.5
    return float(values.mean() - half), float(values.mean() + half)
