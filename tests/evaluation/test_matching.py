"""microplastics/evaluation/matching.py."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microplastics.evaluation.matching import (
    _grow,
    candidate_pairs,
    covered_fraction,
    match_by_score,
)
from microplastics.structures.crop_masks import CropMasks

MASK = st.integers(0, 2**32 - 1).map(
    lambda seed: np.random.default_rng(seed).random((9, 12)) < 0.1 + seed % 7 / 10
)
PLACE = st.tuples(st.integers(0, 14), st.integers(0, 14))
SHAPE = st.tuples(MASK, PLACE)


def crops(*shapes):
    """Masks of (mask, x and y) in an image of 120 px."""
    return CropMasks([m for m, _ in shapes], [place for _, place in shapes], (120, 120))


def tolerant_iou(one, two, tolerance=0):
    """IoU_t by full frames and their distance to the masks."""
    frames = crops(one, two).to_bitmasks().numpy()
    if not frames.any(axis=(1, 2)).all():
        return 0.0
    far = [
        cv2.distanceTransform((~f).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        for f in frames
    ]
    grown = [
        f | (d <= tolerance + 1e-4) if tolerance else f for f, d in zip(frames, far, strict=True)
    ]
    p = (frames[0] & grown[1]).sum() / frames[0].sum()
    r = (frames[1] & grown[0]).sum() / frames[1].sum()
    return p * r / (p + r - p * r) if p * r else 0.0


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
    one, two = (mask, (5, 5)), (mask, np.add(shift, 5))
    for t, value in zip((0, 1, 2), expected, strict=True):
        pairs = candidate_pairs(crops(one), crops(two), (t,), 1e-3)
        assert pairs.iou.ravel().tolist() == ([value] if value else [])
        assert tolerant_iou(one, two, t) == pytest.approx(value)


@given(SHAPE, SHAPE, st.sampled_from([1, 1.5, 2, 3]))
@settings(max_examples=50, deadline=None)
def test_tolerant_iou_is_symmetric_bounded_and_grows_with_the_tolerance(one, two, t):
    there, back = (
        candidate_pairs(crops(a), crops(b), (0, t), 1e-9).iou for a, b in ((one, two), (two, one))
    )
    assert there.tolist() == back.tolist()
    for iou, tolerant in there:
        assert 0 <= iou <= tolerant <= 1
        assert [iou, tolerant] == pytest.approx([tolerant_iou(one, two, x) for x in (0, t)])
    if one[0].any():
        assert candidate_pairs(crops(one), crops(one), (0, t)).iou.tolist() == [[1, 1]]


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
    none, one = (np.zeros((2, 2), dtype=bool), (0, 0)), (np.ones((2, 2), dtype=bool), (0, 0))
    for sides in ((none, one), (one, none), (none, none)):
        assert not len(candidate_pairs(*map(crops, sides), (0, 1)).true)
    assert covered_fraction(crops(none), crops(one)).tolist() == [[0.0]]


@given(st.lists(SHAPE, max_size=4), st.lists(SHAPE, max_size=4), st.sampled_from([0.2, 0.5]))
@settings(max_examples=50, deadline=None)
def test_no_pair_is_overlooked(ones, twos, least):
    pairs = candidate_pairs(crops(*ones), crops(*twos), (0, 1, 2), least)
    indices = zip(pairs.predicted.tolist(), pairs.true.tolist(), strict=True)
    found = dict(zip(indices, pairs.iou.tolist(), strict=True))
    for i, one in enumerate(ones):
        for j, two in enumerate(twos):
            expected = [tolerant_iou(one, two, t) for t in (0, 1, 2)]
            # At the limit itself rounding decides.
            if expected[-1] >= least + 1e-9:
                assert found.pop((i, j)) == pytest.approx(expected)
            elif abs(expected[-1] - least) < 1e-9:
                found.pop((i, j), None)
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
