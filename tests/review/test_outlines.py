"""Masks from outlines, merged and split."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from review_support import box
from support import user_error

from microplastics.review import outlines


def pixels(mask, size):
    crop, (x, y) = mask
    full = np.zeros(size, bool)
    full[y : y + crop.shape[0], x : x + crop.shape[1]] = crop
    return full


@settings(max_examples=60, deadline=None)
@given(
    bits=st.lists(st.booleans(), min_size=48, max_size=48).filter(any),
    offset=st.tuples(st.integers(0, 12), st.integers(0, 4)),
)
def test_an_outline_gives_its_mask_back(bits, offset):
    mask = outlines.trimmed(np.reshape(bits, (6, 8)), offset)
    again = outlines.mask_of(outlines.polygons_of(*mask), (10, 20))
    assert again[1] == mask[1] and np.array_equal(again[0], mask[0])


def test_outlines_are_cut_at_the_border():
    crop, offset = outlines.mask_of(box(-5, -5, 8, 8), (10, 20))
    assert (crop.shape, offset) == ((3, 3), (0, 0))


def test_several_polygons_are_one_particle():
    crop, offset = outlines.mask_of(box(1, 1, 2, 2) + box(7, 5, 2, 2), (10, 20))
    assert crop.sum() == 8 and crop.shape == (6, 8) and offset == (1, 1)


@pytest.mark.parametrize(
    "polygons",
    [
        None,
        [],
        [[]],
        [[[]]],
        "abc",
        [[[[0, 0], [1, 1]]]],
        [[[[0, 0, 0], [1, 1, 1], [2, 0, 0]]]],
        [[[["a", 0], [1, 1], [2, 2]]]],
        [[[[float("nan"), 0], [5, 5], [9, 0]]]],
        [[[[1e9, 0], [5, 5], [9, 0]]]],
        [[[[0, 0], [5, 5]] * 10_001]],
        box(100, 100),
        [[[[1, 1], [5, 5], [3, 3]]]],
    ],
)
def test_bad_outlines_are_refused(polygons):
    with user_error("annotations_invalid", "The outline"):
        outlines.mask_of(polygons, (10, 20))


def test_a_cut_keeps_every_pixel():
    disc = cv2.circle(np.zeros((41, 41), np.uint8), (20, 20), 20, 1, -1) > 0
    mask = disc, (100, 50)
    pieces = outlines.split_by_line(mask, [[95, 48], [120, 70], [142, 96]])
    masks = [pixels(piece, (200, 200)) for piece in pieces]
    assert len(masks) == 2 and not (masks[0] & masks[1]).any()
    assert np.array_equal(masks[0] | masks[1], pixels(mask, (200, 200)))
    assert abs(int(masks[0].sum()) - int(masks[1].sum())) < 90


def test_a_cut_splits_what_it_crosses_only():
    mask = np.zeros((10, 30), bool)
    mask[2:5, :12] = mask[2:5, 20:] = True  # two parts; the cut crosses the first
    pieces = outlines.split_by_line((mask, (0, 0)), [[4, 0], [4, 9]])
    assert sorted(int(piece[0].sum()) for piece in pieces) == [15, 51]  # with the cut


def test_a_slanting_fibre_is_cut():
    fiber = np.eye(40, dtype=bool)
    pieces = outlines.split_by_line((fiber, (0, 0)), [[0, 30], [30, 0]])
    assert sorted(int(piece[0].sum()) for piece in pieces) in ([15, 25], [16, 24])


@pytest.mark.parametrize("line", [[[0, 5], [3, 5]], [[0, 0]], "ab", [[0, float("inf")], [1, 1]], 3])
def test_a_line_that_cuts_nothing_is_refused(line):
    with user_error("annotations_invalid", "line"):
        outlines.split_by_line((np.ones((10, 10), bool), (0, 0)), line)


def test_touching_discs_are_split_and_a_fibre_is_not():
    discs = np.zeros((40, 120), np.uint8)
    for x in (20, 56, 92):
        cv2.circle(discs, (x, 20), 19, 1, -1)
    pieces = outlines.split_touching((discs > 0, (0, 0)))
    assert len(pieces) == 3 and sum(int(p[0].sum()) for p in pieces) == np.count_nonzero(discs)
    curve = np.zeros((200, 200), np.uint8)
    cv2.ellipse(curve, (100, 100), (80, 60), 0, 0, 250, 1, 6)
    assert len(outlines.split_touching((curve > 0, (0, 0)))) == 1
    assert len(outlines.split_touching((np.ones((3, 3), bool), (0, 0)))) == 1
