import numpy as np
import pytest

from microplastics.measurement.blanks import Counts, correct_for_blanks


def counts(*numbers):
    sums = np.array(numbers, dtype=float)
    return Counts(sums.astype(int), sums, sums, np.ones(len(sums)))


@pytest.mark.parametrize(
    ("sample", "blank", "blanks", "area"), [(20, 4, 3, 1), (5, 1, 1, 1), (3, 6, 4, 2.5)]
)
def test_the_corrected_count_is_unbiased_and_covered(sample, blank, blanks, area):
    rng = np.random.default_rng(11)
    rows = 3000  # samples, each with blanks of its own
    found = rng.poisson(sample + blank * area, rows)
    empty = rng.poisson(blank, (rows, blanks))
    exposures = np.array([area, *[1.0] * blanks])
    is_blank = np.array([False] + [True] * blanks)
    results = [
        correct_for_blanks(counts(one, *own), exposures, is_blank)
        for one, own in zip(found, empty, strict=True)
    ]
    raw = np.array([result.columns["count_corrected_unclipped"][0] for result in results])
    sds = np.array([result.columns["count_corrected_sd"][0] for result in results])
    assert raw.mean() == pytest.approx(sample, abs=4 * raw.std() / rows**0.5)
    assert np.mean(sds**2) == pytest.approx(raw.var(), rel=0.1)
    covered = [r.interval.low[0] <= sample <= r.interval.high[0] for r in results]
    assert 0.945 < np.mean(covered) <= 1


def test_limits_follow_from_the_blanks():
    found = correct_for_blanks(
        counts(9, 1, 2, 3), np.ones(4), np.array([False, True, True, True])
    ).columns
    assert found["lod"][0] == pytest.approx(2 + 3.3)
    assert found["loq"][0] == pytest.approx(2 + 10)
    k = 1.6448536
    assert found["currie_detection_limit"][0] == pytest.approx(
        2 + k**2 + 2 * k * np.sqrt(2 + 6 / 9)
    )


def test_empty_blanks_take_nothing_off():
    found = correct_for_blanks(counts(9, 0), np.ones(2), np.array([False, True]))
    assert found.estimates[0] == 9
    assert found.interval.low[0] < counts(9).interval().low[0]  # none found is not none there
    assert found.interval.high[0] == pytest.approx(counts(9).interval().high[0])


def test_less_than_the_blanks_is_none():
    found = correct_for_blanks(counts(1, 30), np.ones(2), np.array([False, True]))
    assert (found.estimates[0], found.interval.low[0], found.interval.high[0]) == (0, 0, 0)
    assert found.columns["count_corrected_unclipped"][0] == -29
