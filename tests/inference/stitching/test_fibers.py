"""Tests of fibre joining: pieces of one fibre become one particle, its neighbours do not."""

import tracemalloc

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stitch_support import SIZE, add, assert_found, blank, disc, full, iou, line

from microplastics.inference.stitching.fibers import JOINS, bridge
from microplastics.inference.stitching.matching import View
from microplastics.inference.stitching.stitcher import Stitcher
from microplastics.measurement import measure


def joined(masks, size=SIZE, classes=None, scores=None):
    stitcher = Stitcher(size, join_broken=True)
    add(stitcher, (0, 0, size[1], size[0]), masks, classes=classes, scores=scores)
    return stitcher.finish()


def without(mask, *columns):
    """Return the parts of a mask that remain when spans of columns are removed."""
    parts, start = [], 0
    for low, high in (*columns, (mask.shape[1], mask.shape[1])):
        part = mask.copy()
        part[:, :start], part[:, low:] = False, False
        parts.append(part)
        start = high
    return parts


def curve(width=6, size=(200, 400), lift=0.0):
    x = np.linspace(20, 380, 80)
    points = np.stack([x, 100 + lift + 45 * np.sin(x / 60)], 1)
    points = np.round(points * 16).astype(np.int32)
    return cv2.polylines(blank(size), [points], False, 1, width, cv2.LINE_8, 4) > 0


@pytest.mark.parametrize("gap", [1, 6, 16])
def test_a_broken_fibre_is_one_with_its_whole_length(gap):
    whole = curve()
    found = joined(without(whole, (120, 120 + gap), (230, 230 + gap)), whole.shape)
    assert_found(found, [whole], whole.shape, least=0.95)
    assert found.notes == {JOINS: 2}
    length = measure(found.masks[0], kind="fiber").length
    assert length == pytest.approx(measure(whole, kind="fiber").length, rel=0.02)


@pytest.mark.parametrize("shift", [0, 1])
def test_pieces_that_overlap_are_one(shift):
    whole = curve()
    left, right = whole.copy(), np.roll(whole, shift, axis=0)
    left[:, 220:], right[:, :190] = False, False
    found = joined([left, right], whole.shape)
    assert_found(found, [left | right], whole.shape, least=0.98)


def test_parts_of_one_mask_are_connected():
    whole = line((10, 80), (190, 90), width=5)
    broken = whole.copy()
    broken[:, 90:100] = False
    found = joined([broken])
    assert_found(found, [whole], least=0.97)
    assert measure(found.masks[0], kind="fiber").parts == 1


@pytest.mark.parametrize(
    "masks",
    [
        [line((0, 20), (199, 140)), line((0, 140), (199, 20))],  # cross
        [line((10, 60), (190, 60)), line((10, 68), (190, 68))],  # side by side
        [line((10, 60), (90, 60)), line((100, 70), (190, 70))],  # side by side, one after another
        [line((10, 80), (190, 80)), line((100, 82), (100, 150))],  # T
        [line((10, 80), (190, 80)), line((100, 90), (100, 150))],  # ends near a flank
        [line((10, 80), (90, 80)), line((98, 88), (98, 150))],  # a corner
        [line((10, 80), (90, 80)), line((160, 80), (190, 80))],  # far apart
        [line((10, 80), (90, 80)), line((100, 80), (190, 80), width=14)],  # thin and thick
        [line((10, 80), (90, 80)), disc(104, 80, 9)],
        [cv2.ellipse(blank(), (100, 80), (50, 50), 0, 10, 350, 1, 4) > 0],  # nearly a ring
        [line((10, 80), (90, 80)), line((100, 77), (190, 70)), line((100, 83), (190, 90))],  # or?
    ],
)
def test_neighbours_are_not_joined(masks):
    found = joined(masks)
    assert_found(found, masks)
    assert JOINS not in found.notes


def test_a_fibre_broken_by_one_that_crosses_it_is_one():
    over, under = line((100, 10), (100, 150), width=8), line((10, 60), (190, 100), width=6)
    found = joined([over, *without(under, (94, 107))])
    assert_found(found, [over, under], least=0.94)


def test_two_parallel_fibres_broken_at_one_place_are_two():
    pair = [line((10, y), (190, y), width=4) for y in (70, 80)]
    found = joined([part for mask in pair for part in without(mask, (95, 103))])
    assert_found(found, pair, least=0.97)


def test_only_pieces_of_one_class_are_joined():
    parts = without(line((10, 80), (190, 80)), (95, 103))
    assert len(joined(parts, classes=[0, 1])) == 2
    assert len(joined(parts, classes=[2, 2])) == 1


def test_the_score_is_weighted_by_area():
    parts = without(line((10, 80), (190, 80)), (65, 70))
    areas = [part.sum() for part in parts]
    found = joined(parts, scores=[0.5, 0.9])
    assert found.scores[0] == pytest.approx(np.average([0.5, 0.9], weights=areas))
    assert found.classes.tolist() == [0]


def test_joining_is_off_by_default():
    parts = without(line((10, 80), (190, 80)), (95, 103))
    stitcher = Stitcher(SIZE)
    add(stitcher, (0, 0, 200, 160), parts)
    found = stitcher.finish()
    assert_found(found, parts)


def test_a_join_at_the_border_stays_in_the_image():
    parts = without(line((0, 1), (199, 1), width=5), (95, 103))
    found = joined(parts)
    assert len(found) == 1
    assert found.offsets.min() == 0 and found.masks[0].shape[1] == 200


def layout(rng, size, count=6):
    """Draw fibres that cross at 25° or more or run side by side at 1.5 to 4 widths."""
    masks, taken = [], []
    for _ in range(count):
        width = int(rng.integers(4, 11))
        angle = rng.choice(np.arange(6)) * np.pi / 6 + rng.uniform(-0.05, 0.05)
        way = np.array([np.cos(angle), np.sin(angle)])
        middle = rng.uniform(0.25, 0.75, 2) * size
        reach = rng.uniform(40, 0.3 * size)
        beside = rng.uniform(1.5, 4) * width * np.array([-way[1], way[0]])
        for shift in (0 * beside, beside)[: int(rng.integers(1, 3))]:
            ends = np.stack([middle + shift - reach * way, middle + shift + reach * way])
            at = float(ends[0] @ (-way[1], way[0]))
            # Two in one line or with their ends together look like a broken one.
            if any(
                (abs(way @ w) > 0.9 and abs(at - a) < 12)
                or np.hypot(*(ends[:, None] - e).T).min() < 7 * 11
                for w, a, e in taken
                if way is not w
            ):
                continue
            taken.append((way, at, ends))
            points = np.round(ends * 16).astype(np.int32)
            frame = blank((size, size))
            masks.append(cv2.polylines(frame, [points], False, 1, width, cv2.LINE_8, 4) > 0)
    return masks


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_whole_fibres_stay_unchanged(seed):
    masks = layout(np.random.default_rng(seed), 400)
    found = joined(masks, (400, 400))
    assert_found(found, masks, (400, 400))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), turns=st.integers(0, 3), flip=st.booleans())
def test_order_and_position_do_not_matter(seed, turns, flip):
    rng = np.random.default_rng(seed)
    size = (200, 400)
    masks = without(curve(int(rng.integers(4, 9)), size, rng.uniform(-20, 20)), (150, 160))
    masks += without(np.rot90(curve(5, (400, 200)[::-1]), 2).copy(), (300, 306))
    one = joined(masks, size)
    moved = [np.rot90(mask[:, ::-1] if flip else mask, turns).copy() for mask in masks]
    shape = moved[0].shape
    other = joined([moved[k] for k in rng.permutation(len(moved))], shape)
    assert len(one) == len(other) and one.notes == other.notes
    back = [np.rot90(full(other, k, shape), -turns) for k in range(len(other))]
    back = [mask[:, ::-1] if flip else mask for mask in back]
    for k in range(len(one)):
        assert max(iou(full(one, k, size), mask) for mask in back) > 0.97


def arc(start, stop, width=6):
    """A piece of a circle with a radius of 100 px, in degrees."""
    mask = np.zeros((300, 300), np.uint8)
    cv2.ellipse(mask, (150, 150), (100, 100), 0, start, stop, 1, width)
    return View(mask > 0, 0, 0)


def length(view):
    return measure(view.mask, kind="fiber").length


@pytest.mark.parametrize("pieces", [[(0, 60), (80, 200)], [(100, 200), (0, 40), (60, 90)]])
def test_gaps_of_any_length_are_bridged_along_the_fibre(pieces):
    whole = arc(0, 200)
    joined = bridge([arc(*piece) for piece in pieces], (300, 300))
    assert measure(joined.mask).parts == 1
    assert length(joined) == pytest.approx(length(whole), rel=0.01)
    assert joined.mask.sum() == pytest.approx(whole.mask.sum(), rel=0.03)


def test_pieces_that_do_not_lie_end_to_end_are_bridged_straight():
    masks = line((20, 60), (180, 60)), line((100, 90), (100, 150))
    parts = [View(mask, 0, 0) for mask in masks]
    joined = bridge(parts, SIZE)
    added = joined.mask.sum() - sum(part.mask.sum() for part in parts)
    assert measure(joined.mask).parts == 1 and 60 < added < 180  # 27 px of 4 px


def test_what_touches_and_gaps_within_a_particle_stay():
    first = arc(0, 60).mask | disc(20, 20, 2, (300, 300))
    parts = [View(first, 0, 0), arc(60, 100)]
    assert np.array_equal(bridge(parts, (300, 300)).mask, first | arc(60, 100).mask)


def test_a_long_gap_takes_little_memory():
    end = np.ones((4, 60), bool)
    tracemalloc.start()
    joined = bridge([View(end, 0, 0), View(end, 2000, 2000)], (2100, 2100))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert measure(joined.mask).parts == 1
    assert peak < 10 * joined.mask.size
