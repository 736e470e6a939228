import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from microplastics.counts import intervals
from microplastics.counts.intervals import (
    Interval,
    bootstrap_mean_interval,
    bootstrap_median_interval,
    difference_interval,
    poisson_interval,
    weighted_poisson_interval,
    wilson_interval,
)

SIZES = st.lists(st.floats(0.5, 5000), min_size=1, max_size=30)


@given(st.integers(0, 100_000))
def test_the_poisson_interval_is_exact(count):
    low, high = poisson_interval(count)
    tail = 0.025
    assert low == pytest.approx(stats.chi2.ppf(tail, 2 * count) / 2 if count else 0)
    assert high == pytest.approx(stats.chi2.ppf(1 - tail, 2 * count + 2) / 2)
    assert stats.poisson.cdf(count, float(high)) == pytest.approx(tail)
    assert low <= count < high


def test_the_poisson_interval_grows_with_the_count():
    low, high = poisson_interval(np.arange(2000))
    assert (np.diff(low) > 0).all() and (np.diff(high) > 0).all()
    assert high[0] == pytest.approx(3.6889, abs=1e-4)


def test_weights_of_one_give_the_poisson_interval():
    counts = np.arange(300)
    weighted = weighted_poisson_interval(counts, counts, np.ones(300))
    for one, other in zip(weighted, poisson_interval(counts), strict=True):
        assert one == pytest.approx(other)


@given(st.integers(0, 60), st.floats(0.1, 20))
def test_equal_weights_scale_the_poisson_interval(count, weight):
    found = weighted_poisson_interval(count * weight, count * weight**2, weight)
    for one, other in zip(found, poisson_interval(count), strict=True):
        assert one == pytest.approx(weight * other)


@given(st.integers(1, 500), st.data())
def test_the_wilson_interval_is_that_of_scipy(number, data):
    hits = data.draw(st.integers(0, number))
    expected = stats.binomtest(hits, number).proportion_ci(method="wilson")
    low, high = wilson_interval(hits / number, number)
    assert (float(low), float(high)) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0 <= low <= hits / number <= high <= 1


def test_a_share_of_nothing_has_no_interval():
    assert np.isnan(wilson_interval(np.array([np.nan]), np.array([0]))).all()


@pytest.mark.parametrize(("sample", "blank", "number"), [(6, 2, 3), (30, 5, 1), (0.5, 0.2, 4)])
def test_differences_are_covered(sample, blank, number):
    rng = np.random.default_rng(7)
    counts = rng.poisson(sample + blank, 4000)
    blanks = rng.poisson(blank * number, 4000)
    bounds = poisson_interval(blanks)
    found = difference_interval(
        counts,
        poisson_interval(counts),
        blanks / number,
        Interval(bounds.low / number, bounds.high / number),
    )
    covered = ((found.low <= sample) & (sample <= found.high)).mean()
    assert 0.945 < covered <= 1  # Garwood's intervals are as short as they can be


def test_nothing_taken_off_leaves_the_interval():
    counts = np.array([0, 3, 80])
    zero = np.zeros(3)
    found = difference_interval(counts, poisson_interval(counts), zero, Interval(zero, zero))
    for one, other in zip(found, poisson_interval(counts), strict=True):
        assert one == pytest.approx(other)


@pytest.mark.parametrize("number", [1, 2, 5, 8])
def test_the_bootstrap_of_medians_is_that_of_plain_resampling(number, monkeypatch):
    monkeypatch.setattr(intervals, "RESAMPLES", 20_000)
    intervals._median_positions.cache_clear()
    values = np.arange(number, dtype=float)
    ranks = intervals._median_positions(number)
    intervals._median_positions.cache_clear()
    fast = sum((uniform * number).astype(int) for uniform in ranks) / 2
    rng = np.random.default_rng(5)
    plain = np.median(values[rng.integers(0, number, (20_000, number))], axis=1)
    grid = np.arange(0, number, 0.5)
    fractions = [np.array([(m <= g + 0.1).mean() for g in grid]) for m in (fast, plain)]
    assert np.abs(fractions[0] - fractions[1]).max() < 0.015


@settings(max_examples=50, deadline=None)
@given(SIZES, st.randoms(use_true_random=False))
def test_the_bootstrap_knows_no_order_and_stays_within_the_values(sizes, random):
    shuffled = sizes.copy()
    random.shuffle(shuffled)
    found = bootstrap_median_interval(np.array(sizes))
    assert found == bootstrap_median_interval(np.array(shuffled))
    assert min(sizes) <= found[0] <= found[1] <= max(sizes)
    assert bootstrap_median_interval(np.array(sizes), np.ones(len(sizes))) == pytest.approx(found)


def test_heavy_particles_draw_the_median():
    values = np.arange(1.0, 101)
    light = bootstrap_median_interval(values)
    heavy = bootstrap_median_interval(values, values)
    assert light[0] < 50.5 < light[1] < heavy[1]
    assert heavy[0] < 100 / np.sqrt(2) < heavy[1]


def test_the_median_is_covered():
    rng = np.random.default_rng(1)
    found = [bootstrap_median_interval(rng.lognormal(4, 0.6, 40)) for _ in range(500)]
    covered = np.mean([low <= np.exp(4) <= high for low, high in found])
    assert 0.91 < covered < 0.98


def test_the_mean_of_images_is_covered_where_images_differ():
    rng = np.random.default_rng(2)
    samples = rng.negative_binomial(4, 0.2, (300, 30))  # mean 16, variance 80
    found = [bootstrap_mean_interval(counts) for counts in samples]
    covered = np.mean([low <= 16 <= high for low, high in found])
    assert 0.9 < covered < 0.98
    poisson = [poisson_interval(counts.sum()) for counts in samples]
    assert np.mean([low <= 16 * 30 <= high for low, high in poisson]) < 0.7


def test_no_interval_of_nothing():
    assert np.isnan(bootstrap_median_interval(np.array([]))).all()
    assert np.isnan(bootstrap_mean_interval(np.array([3.0]))).all()
    assert bootstrap_median_interval(np.array([3.0])) == (3, 3)
