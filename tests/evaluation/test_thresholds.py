"""microplastics/evaluation/thresholds.py."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microplastics.evaluation.counting import TOLERANCES, Pooled, class_curve
from microplastics.evaluation.thresholds import _short_number, choose_thresholds


def pooled(scores, right, true, classes=None):
    """One image; ``right`` tells which predictions are matched."""
    right = np.array(right, dtype=bool)
    matches = np.where(right, np.cumsum(right) - 1, -1)
    classes = np.zeros(len(scores), dtype=np.int64) if classes is None else np.array(classes)
    return Pooled(
        [
            {
                "image_id": 1,
                "blank": False,
                "classes": classes,
                "scores": np.array(scores, dtype=float),
                "matches": np.repeat(matches[:, None], len(TOLERANCES), axis=1),
                "ignored": np.zeros((len(scores), len(TOLERANCES)), dtype=bool),
                "true_classes": np.zeros(true, dtype=np.int64),
                "confusion": np.zeros((0, 2), dtype=np.int64),
            }
        ]
    )


def choose(metric, *args, **options):
    return choose_thresholds(pooled(*args), ["Fiber"], metric, **options)[0]


def test_f1_and_count_want_different_thresholds():
    # Ten true: nine right ones from 0.9 on, then wrong ones, then one right one.
    scores = [0.9] * 9 + [0.6] * 1 + [0.3, 0.2]
    right = [True] * 9 + [False] + [False, True]
    f1 = choose("f1", scores, right, 10)
    assert 0.6 < f1.threshold <= 0.9 and f1.threshold == 0.75
    assert f1.after["F1"] == pytest.approx(200 * 9 / 19) and f1.before["predicted"] == 10
    count = choose("count", scores, right, 10)
    assert count.threshold == 0.5 and count.after["count_error"] == 0  # 10 predicted already


def test_the_default_stays_where_nothing_is_better():
    scores = [0.8] * 10 + [0.1] * 5
    assert choose("f1", scores, [True] * 10 + [False] * 5, 10).threshold == 0.5


def test_ties():
    nine_or_eleven = [0.9] * 9 + [0.3] * 2
    right = [True] * 9 + [False] * 2
    # The count is off by one below and above: F1 decides, then the way to the default.
    assert choose("count", nine_or_eleven, right, 10, default=0.1).threshold == 0.6
    assert choose("count", nine_or_eleven, [False] * 11, 10, default=0.1).threshold == 0.1
    assert choose("count", nine_or_eleven, [False] * 11, 10).threshold == 0.5


@pytest.mark.parametrize(
    ("scores", "true", "words"),
    [
        ([0.9] * 9, 9, "Fiber has 9 true particles, fewer than the 10 that a choice needs"),
        ([], 20, "No Fiber is predicted at any score: it keeps 0.5"),
    ],
)
def test_without_a_choice_the_default_is_kept(scores, true, words):
    choice = choose("f1", scores, [True] * len(scores), true)
    assert choice.threshold == 0.5
    assert words in choice.kept_because


@given(
    st.lists(
        st.tuples(st.sampled_from([0.02, 0.2, 0.45, 0.5, 0.55, 0.7, 0.999]), st.booleans()),
        min_size=1,
        max_size=30,
    ),
    st.sampled_from(["f1", "count"]),
)
@settings(max_examples=100, deadline=None)
def test_no_threshold_is_better(predictions, metric):
    scores, right = zip(*predictions, strict=True)
    data = pooled(scores, right, max(sum(right), 12))
    (choice,) = choose_thresholds(data, ["Fiber"], metric, lowest=0.01)
    assert 0.01 < choice.threshold <= max(scores)
    everything = np.ones(len(scores), dtype=bool), np.ones(len(data.true_classes), dtype=bool)
    curve = class_curve(data, *everything, np.unique(scores))
    if metric == "f1":
        assert choice.after["F1"] == curve["F1"].max()
        rivals = curve["F1"] == curve["F1"].max()
        assert abs(choice.after["count_error"]) == abs(curve["count_error"][rivals]).min()
    else:
        assert abs(choice.after["count_error"]) == abs(curve["count_error"]).min()


@given(st.floats(0, 1), st.floats(0, 1))
def test_a_short_number_lies_between(one, other):
    low, high = sorted((one, other))
    if low < high:
        assert low < _short_number(low, high) <= high


def test_scores_on_both_sides_of_a_threshold_are_off_it():
    # 0.5 and 0.75 are scores themselves: evaluation counts them, a detector's > does not.
    choice = choose("f1", [0.75] * 6 + [0.5] * 6 + [0.25], [True] * 12 + [False], 12)
    assert 0.25 < choice.threshold < 0.5


def test_short_numbers():
    assert _short_number(0.6, 0.9) == 0.75
    assert _short_number(0.8123, 0.8131) == 0.813
