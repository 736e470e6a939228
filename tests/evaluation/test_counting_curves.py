"""microplastics/evaluation/counting_curves.py."""

import csv

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microplastics.evaluation.counting_curves import GRID, class_curve, curves, write_rows
from microplastics.evaluation.counting_figures import count_table
from microplastics.evaluation.counting_records import judge_image, pool
from microplastics.evaluation.counting_sizes import SizeBins

NAMES = ["Fiber", "Film"]


def random_crops(random, count):
    return [
        (random.random((6, 6)) < 0.9, int(random.integers(8)), int(random.integers(8)))
        for _ in range(count)
    ]


def record(image_id, seed, least=0.0):
    """An image of masks that overlap much, some of them crowd, with scores that repeat."""
    random = np.random.default_rng(seed)
    found, true = random.integers(0, 9, 2)
    predicted, classes = random_crops(random, found), random.integers(0, 2, found)
    scores = random.choice([0.05, 0.31, 0.5, 0.72, 0.9], found)
    kept = np.flatnonzero(scores >= least)
    return judge_image(
        image_id,
        [predicted[i] for i in kept],
        classes[kept],
        scores[kept],
        random_crops(random, true),
        random.integers(0, 2, true),
        random.random(true) < 0.15,
        np.zeros(2),
    )


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=3))
@settings(max_examples=40, deadline=None)
def test_one_matching_gives_what_matching_anew_at_each_threshold_gives(seeds):
    rows = curves(pool([record(i, seed) for i, seed in enumerate(seeds)]), NAMES)
    assert len(rows) == 3 * len(GRID)
    at = {(row["class"], row["threshold"]): row for row in rows}
    for least in (0.05, 0.31, 0.5, 0.6, 0.95):
        anew = pool([record(i, seed, least) for i, seed in enumerate(seeds)])
        for expected in count_table(anew, NAMES, np.zeros(2), SizeBins()):
            row = at[expected["class"], least]
            assert row["predicted"] == expected["count_predicted"]
            for figure in ("F1", "precision", "recall"):
                assert row[figure] == pytest.approx(expected[figure], nan_ok=True)


def test_a_threshold_counts_from_itself_on():
    thresholds = np.zeros(1)
    square = (np.ones((5, 5), dtype=bool), 3, 3)
    apart = (np.ones((5, 5), dtype=bool), 30, 30)
    numbers = np.zeros(2, dtype=np.int64)
    truth = (np.zeros(1, dtype=np.int64), np.zeros(1, dtype=bool))
    pooled = pool(
        [
            judge_image(
                1, [square, apart], numbers, np.array([0.8, 0.5]), [square], *truth, thresholds
            )
        ]
    )
    curve = class_curve(pooled, 0, np.array([0.5, 0.51, 0.8, 0.81]))
    assert curve["predicted"].tolist() == [2, 1, 1, 0]
    assert curve["count_error"].tolist() == [1, 0, 0, -1]
    assert curve["count_error_pct"].tolist() == [100, 0, 0, -100]
    assert curve["recall"].tolist() == [100, 100, 100, 0]
    assert curve["F1"].tolist() == pytest.approx([200 / 3, 100, 100, 0])
    assert np.isnan(curve["precision"][-1])


def test_a_table_has_empty_cells_for_what_is_no_number(tmp_path):
    write_rows(tmp_path / "a.csv", [{"class": None, "F1": float("nan"), "true": 3}])
    with open(tmp_path / "a.csv", newline="") as file:
        assert list(csv.reader(file)) == [["class", "F1", "true"], ["all", "", "3"]]
