"""microplastics/evaluation/matching.py."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microplastics.evaluation.matching import (
    _grow,
    candidate_pairs,
    covered_share,
    match_by_score,
    tolerant_iou,
)

MASK = st.integers(0, 2**32 - 1).map(
    lambda seed: np.random.default_rng(seed).random((9, 12)) < 0.1 + seed % 7 / 10
)
PLACE = st.tuples(st.integers(0, 14), st.integers(0, 14))
SHAPE = st.tuples(MASK, PLACE)


@pytest.mark.parametrize(
    ("shape", "shift", "expected"),
    [
        ((10, 10), (1, 0), [90 / 110, 1, 1]),
        ((10, 10), (3, 0), [70 / 130, 80 / 120, 90 / 110]),
        ((4, 100), (1, 1), [297 / 503, 399 / 401, 1]),  # only the corner is more than 1 px away
        ((4, 100), (0, 4), [0, 100 / 700, 200 / 600]),
        ((4, 100), (0, 7), [0, 0, 0]),
    ],
)
def test_shifted_boxes(shape, shift, expected):
    mask = np.ones(shape, dtype=bool)
    assert [tolerant_iou(mask, mask, t, (5, 5), np.add(shift, 5)) for t in (0, 1, 2)] == expected


@given(SHAPE, SHAPE, st.sampled_from([0, 1, 1.5, 2, 3]), st.sampled_from([0.5, 1]))
@settings(max_examples=100, deadline=None)
def test_tolerant_iou_is_symmetric_bounded_and_grows_with_the_tolerance(one, two, t, more):
    (a, at), (b, bt) = one, two
    value = tolerant_iou(a, b, t, at, bt)
    assert value == tolerant_iou(b, a, t, bt, at)
    assert 0 <= value <= tolerant_iou(a, b, t + more, at, bt) <= 1
    assert tolerant_iou(a, a, t, at, at) == 1
    full = np.zeros((2, 30, 30), dtype=bool)
    for frame, mask, (x, y) in zip(full, (a, b), (at, bt), strict=True):
        frame[y : y + 9, x : x + 12] = mask
    both, either = (full[0] & full[1]).sum(), (full[0] | full[1]).sum()
    assert tolerant_iou(a, b, 0, at, bt) == (both / either if either else 1)


@given(MASK, st.sampled_from([1, 1.5, 2, 3.7]))
@settings(max_examples=50, deadline=None)
def test_a_mask_grows_by_euclidean_distance(mask, tolerance):
    grown, x, y = _grow((mask, 7, 8), tolerance)
    reach = int(tolerance)
    outside = (~np.pad(mask, reach)).astype(np.uint8)
    far = cv2.distanceTransform(outside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    expected = far <= tolerance + 1e-4 if mask.any() else np.zeros_like(far, dtype=bool)
    assert (x, y) == (7 - reach, 8 - reach)
    assert (grown == expected).all()


def test_empty_masks():
    none, one = np.zeros((2, 2), dtype=bool), np.ones((2, 2), dtype=bool)
    assert tolerant_iou(none, one) == tolerant_iou(one, none, 1) == 0
    assert tolerant_iou(none, none) == 1
    assert not len(candidate_pairs([(none, 0, 0)], [(none, 0, 0)]).true)
    assert covered_share([(none, 0, 0)], [(one, 0, 0)]).tolist() == [[0.0]]


@given(st.lists(SHAPE, max_size=4), st.lists(SHAPE, max_size=4), st.sampled_from([0.2, 0.5]))
@settings(max_examples=50, deadline=None)
def test_no_pair_is_overlooked(ones, twos, least):
    predicted, true = ([(m, x, y) for m, (x, y) in side] for side in (ones, twos))
    pairs = candidate_pairs(predicted, true, (0, 1, 2), least)
    found = {
        (i, j): iou
        for i, j, iou in zip(
            pairs.predicted.tolist(), pairs.true.tolist(), pairs.iou.tolist(), strict=True
        )
    }
    for i, (m, place) in enumerate(ones):
        for j, (n, other) in enumerate(twos):
            expected = [tolerant_iou(m, n, t, place, other) for t in (0, 1, 2)]
            if m.any() and n.any() and expected[-1] >= least:
                assert found.pop((i, j)) == expected
    assert not found


def test_the_higher_score_takes_the_best_truth_and_the_lower_what_is_left():
    predicted, true = np.array([0, 0, 1, 1, 2]), np.array([0, 1, 0, 1, 1])
    iou = np.array([0.6, 0.7, 0.9, 0.8, 0.5])
    assert match_by_score(np.array([0.9, 0.8, 0.7]), predicted, true, iou, 0.5).tolist() == [
        1,
        0,
        -1,
    ]
    assert match_by_score(np.array([0.7, 0.8, 0.9]), predicted, true, iou, 0.5).tolist() == [
        -1,
        0,
        1,
    ]
    assert match_by_score(np.array([0.9, 0.8, 0.7]), predicted, true, iou, 0.75).tolist() == [
        -1,
        0,
        -1,
    ]


@given(
    st.lists(st.sampled_from([0.2, 0.4, 0.4001, 0.9]), min_size=1, max_size=6),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.3, 0.4, 0.41]),
)
@settings(max_examples=100, deadline=None)
def test_matches_above_a_threshold_do_not_depend_on_what_is_below(scores, seed, threshold):
    scores = np.array(scores)
    iou = np.random.default_rng(seed).random((len(scores), 4)).round(1)
    predicted, true = np.nonzero(iou >= 0.5)
    every = match_by_score(scores, predicted, true, iou[predicted, true], 0.5)
    taken = every[every >= 0]
    assert len(set(taken.tolist())) == len(taken)
    above = scores[predicted] >= threshold
    alone = match_by_score(scores, predicted[above], true[above], iou[predicted, true][above], 0.5)
    assert (alone == np.where(scores >= threshold, every, -1)).all()
