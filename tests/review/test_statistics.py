"""Precision, recall and agreement from decisions."""

import numpy as np
import pytest
from review_support import box
from support import user_error

from microplastics.counts.intervals import wilson_interval
from microplastics.review.statistics import agreement, cohen_kappa, model_quality

BOB = {"reviewer": "bob"}


def overall(table, name="any particle"):
    return table[table["score_low"].isna()].set_index("class").loc[name]


def test_precision_and_recall(review):
    # a.png: 1 Fiber .9, 2 Film .4, 3 Fiber .7; b.png: 4 Film .55.
    review.reject({"a.png": [1]}, **BOB, version=0)
    review.set_class({"a.png": [2]}, "Fiber", **BOB, version=1)
    review.draw("a.png", box(1, 30), "Film", **BOB, version=2)
    review.finish(["a.png"], **BOB, version=3)
    review.accept({"b.png": [4]}, **BOB, version=4)  # not finished: its recall is not known
    table = model_quality(review)
    every = overall(table)
    assert every[["decided", "correct", "present", "found"]].tolist() == [4, 3, 3, 2]
    low, high = wilson_interval(np.array(0.75), np.array(4))
    assert every[["precision", "precision_low", "precision_high"]].tolist() == [0.75, low, high]
    fiber, film = overall(table, "Fiber"), overall(table, "Film")
    assert fiber[["decided", "correct", "present", "found"]].tolist() == [2, 1, 2, 1]
    assert film[["decided", "correct", "present", "found"]].tolist() == [2, 1, 1, 0]
    bins = table[(table["class"] == "any particle") & table["score_low"].notna()]
    assert bins["score_low"].round(1).tolist() == [0.4, 0.5, 0.7, 0.9]
    assert bins["correct"].tolist() == [1, 1, 1, 0]


def test_merged_pieces_and_a_split_particle(review):
    review.merge("a.png", [1, 2], "Fiber", **BOB, version=0)
    review.split("a.png", 3, line=[[45, 34.5], [75, 34.5]], **BOB, version=1)
    review.split("a.png", 5, line=[[55.5, 20], [55.5, 45]], **BOB, version=2)
    review.finish(["a.png"], **BOB, version=3)
    every = overall(model_quality(review))
    # Two pieces are one particle, one is three: 2 of 3 right, 2 of 4 found.
    assert every[["decided", "correct", "present", "found"]].tolist() == [3, 2, 4, 2]


def test_nothing_is_known_without_decisions(review):
    every = overall(model_quality(review))
    assert every["decided"] == 0 and every[["precision", "recall"]].isna().all()


def test_agreement(review, reopen):
    review.draw("a.png", box(1, 30), "Film", **BOB, version=0)
    review.set_outline("a.png", 3, box(50, 30, 10, 20), **BOB, version=1)
    review.finish(["a.png"], **BOB, version=2)
    review.accept({"b.png": [4]}, **BOB, version=3)
    with reopen("ann") as other:
        other.reject({"a.png": [1]}, reviewer="ann", version=0)
        other.draw("a.png", box(1, 31), "Film", reviewer="ann", version=1)
        other.draw("a.png", box(30, 40), "Fiber", reviewer="ann", version=2)
        other.finish(["a.png"], reviewer="ann", version=3)
        found = agreement(review, other)
    assert found.units["class_one"].tolist() == ["Fiber", "Film", "Fiber", "Film", ""]
    assert found.units["class_other"].tolist() == ["", "Film", "Fiber", "Film", "Fiber"]
    decisions = found.decisions.set_index("decision")
    assert decisions.loc["all", ["units", "agreed"]].tolist() == [5, 3]
    # Observed 3/5; by chance (2·2 + 2·2 + 1·1)/25.
    assert decisions.loc["all", "kappa"] == pytest.approx((0.6 - 9 / 25) / (1 - 9 / 25))
    assert decisions.loc["Film", "kappa"] == 1
    size = found.sizes.set_index("measure").loc["feret_max"]
    assert size[["pairs", "differing"]].tolist() == [3, 1]
    square, oblong = review.table("a.png")["feret_max_px"].iloc[[1, 2]]
    assert size["mean_difference"] == pytest.approx((square - oblong) / 3)


def test_agreement_needs_common_decisions(review, reopen):
    with reopen("ann") as other, user_error("input_empty", "no decision in common"):
        agreement(review, other)


def test_kappa_and_its_standard_error():
    table = np.array([[20, 5], [10, 15]])
    pairs = [(i, j) for (i, j), number in np.ndenumerate(table) for _ in range(number)]
    kappa, (low, high) = cohen_kappa(pairs)
    assert kappa == pytest.approx(0.4)

    def value(p):
        observed, chance = np.trace(p), p.sum(axis=1) @ p.sum(axis=0)
        return (observed - chance) / (1 - chance)

    # The delta method, by differences instead of by the formula.
    p, step, slopes = table / 50, 1e-6, np.zeros((2, 2))
    for index in np.ndindex(2, 2):
        up, down = p.copy(), p.copy()
        up[index] += step
        down[index] -= step
        slopes[index] = (value(up) - value(down)) / (2 * step)
    variance = ((p * slopes**2).sum() - (p * slopes).sum() ** 2) / 50
    assert (high - low) / 2 == pytest.approx(1.959964 * np.sqrt(variance), rel=1e-5)
    assert np.isnan(cohen_kappa([("a", "a")] * 3)[0])
