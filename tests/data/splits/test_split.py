"""Assignment of groups to splits and folds."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import user_error

from microplastics.data.splits.split import check_shares, deviation, split

FRACTIONS = (0.7, 0.15, 0.15)


def names(count):
    return [f"filter {n}" for n in range(count)]


def cost(counts, assignment, fractions):
    parts = counts / counts.sum(axis=0)
    chosen = np.array(assignment)
    loads = [parts[chosen == s].sum(axis=0) - wanted for s, wanted in enumerate(fractions)]
    return float(np.square(loads).sum())


@st.composite
def tables(draw):
    groups, kinds = draw(st.integers(3, 40)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scale = draw(st.sampled_from([0.2, 3, 1000]))
    return rng.poisson(rng.gamma(0.5, scale, (groups, kinds)))


@settings(max_examples=60, deadline=None)
@given(tables(), st.integers(0, 2**31), st.randoms())
def test_every_group_is_in_one_split_whatever_the_order(counts, seed, random):
    groups = names(len(counts))
    assignment = split(groups, counts, FRACTIONS, seed)
    assert assignment.shape == (len(counts),) and set(assignment.tolist()) == {0, 1, 2}
    order = list(range(len(counts)))
    random.shuffle(order)
    again = split([groups[n] for n in order], counts[order], FRACTIONS, seed)
    assert again.tolist() == assignment[order].tolist()


def test_the_search_is_near_the_best_of_all_ways():
    fractions = np.array([0.6, 0.2, 0.2])
    ratios = []
    for seed in range(8):
        counts = np.random.default_rng(seed).integers(0, 30, (7, 3))
        ways = [way for way in itertools.product(range(3), repeat=7) if len(set(way)) == 3]
        best = min(cost(counts, way, fractions) for way in ways)
        ratios.append(cost(counts, split(names(7), counts, fractions, 0), fractions) / best)
    assert np.median(ratios) == pytest.approx(1) and max(ratios) < 1.2


def test_classes_and_blanks_are_divided():
    # 60 filters: fibres on a third of them, films on a sixth, ten blanks.
    counts = np.zeros((60, 4), np.int64)
    counts[:, 0] = 5
    counts[::3, 1] = 4
    counts[::6, 2] = 1
    counts[50:] = 0
    counts[50:, 3] = 1
    assignment = split(names(60), counts, [0.2] * 5, seed=1)
    loads = np.stack([counts[assignment == k].sum(axis=0) for k in range(5)])
    assert loads[:, 3].tolist() == [2] * 5 and loads[:, 0].tolist() == [50] * 5
    assert np.ptp(loads[:, 1]) <= 4 and np.ptp(loads[:, 2]) <= 1
    assert deviation(counts, assignment, [0.2] * 5) == pytest.approx(
        np.abs(loads / counts.sum(axis=0) - 0.2).max()
    )


def test_groups_without_a_count_are_spread_too():
    assignment = split(names(9), np.zeros((9, 2)), [1 / 3] * 3, 0)
    assert np.bincount(assignment).tolist() == [3, 3, 3]


def test_one_giant_group_leaves_no_split_empty():
    counts = np.array([[1000], [1], [1]])
    assert sorted(split(names(3), counts, FRACTIONS, 0).tolist()) == [0, 1, 2]
    assert split(names(3), counts, FRACTIONS, 0)[0] == 0


def test_the_seed_decides_between_equals():
    counts = np.ones((12, 1))
    ways = {tuple(split(names(12), counts, (0.5, 0.5), seed).tolist()) for seed in range(5)}
    assert len(ways) > 1 and all(sum(way) == 6 for way in ways)


def test_twenty_thousand_single_images():
    counts = np.random.default_rng(0).poisson(2, (20_000, 4))
    assignment = split([f"{n}.jpg" for n in range(20_000)], counts, FRACTIONS, 0)
    assert deviation(counts, assignment, FRACTIONS) < 1e-3


@pytest.mark.parametrize(
    "shares",
    [(1.2, -0.2), (0.5, 0.4), (float("nan"), 1), (70, 30), (1, 0), (float("inf"), 1), (1,)]
    + [(0.25, 0.25, 0.25, 0.25)],
)
def test_shares_that_do_not_add_up(shares):
    with user_error("option_invalid", "--shares"):
        check_shares(shares)


def test_too_few_groups():
    with user_error("split_impossible", "2", "3"):
        split(names(2), np.ones((2, 1)), FRACTIONS, 0)
