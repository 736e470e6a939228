"""Tests of stitching: perfect views exactly, poor ones within tolerances."""

import itertools

import cv2
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from stitch_support import (
    LEFT,
    RIGHT,
    SEAM,
    SIZE,
    add,
    assert_found,
    blank,
    disc,
    line,
    moved,
    starts,
    stitch,
    windows_of,
)

from benchmarks.stitch import benchmark
from microplastics.inference.stitching.matching import PackedMasks, objects, pack
from microplastics.inference.stitching.stitcher import Stitcher
from microplastics.measurement import measure
from microplastics.utils.errors import UserError


def connected(mask):
    return cv2.connectedComponents(mask.astype(np.uint8))[0] == 2


def random_layout(rng, size, tile, overlap, count):
    """Draw fibres, discs, touching pairs, rings about windows' corners and films."""
    masks = []
    places = starts(size, tile, overlap)
    frame = (size, size)
    for _ in range(count):
        kind = rng.integers(6)
        x, y = (int(value) for value in rng.integers(0, size, 2))
        if kind <= 1:
            turns = rng.uniform(0, 7) + rng.normal(0, 0.25, 40).cumsum() * 0.6
            steps = rng.uniform(20, 3 * tile) / 40 * np.stack([np.cos(turns), np.sin(turns)], 1)
            points = np.round((steps.cumsum(axis=0) + (x, y)) * 16).astype(np.int32)
            width = int(rng.integers(2, 8))
            mask = cv2.polylines(blank(frame), [points], False, 1, width, cv2.LINE_8, 4) > 0
        elif kind == 2:
            radius = int(rng.integers(1, 20))
            masks.append(disc(x, y, radius, frame))
            mask = disc(x + 2 * radius + 1, y, radius, frame)
        elif kind == 3:
            corner = [int(rng.choice(places) + rng.integers(-3, 4)) for _ in range(2)]
            mask = cv2.circle(blank(frame), corner, int(rng.integers(5, tile)), 1, 4) > 0
        elif kind == 4:
            seam = int(rng.choice(places) + rng.choice([-1, 0, 1, tile - 1, tile, overlap]))
            mask = line((seam, y), (seam + int(rng.integers(-2, 3)), x), width=3, size=frame)
        else:
            corners = (x, y) + rng.uniform(-tile / 2, tile / 2, (6, 2))
            mask = cv2.fillPoly(blank(frame), [cv2.convexHull(corners.astype(np.int32))], 1) > 0
        masks.append(mask)
    return [mask for mask in masks if mask.any() and connected(mask)]


def coincide(masks, windows):
    """Whether two masks are equal in a whole overlap, so that nothing distinguishes them there."""
    for (x, y, w, h), (u, v, *_) in itertools.permutations(windows, 2):
        part = slice(max(y, v), min(y, v) + h), slice(max(x, u), min(x, u) + w)
        shown = [mask[part].tobytes() for mask in masks if mask[part].any()]
        if len(set(shown)) < len(shown):
            return True
    return False


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    size=st.integers(200, 500),
    tile=st.integers(96, 256),
    fraction=st.floats(0.34, 0.5),
    parts=st.booleans(),
)
def test_perfect_views_give_every_particle_once_and_whole(seed, size, tile, fraction, parts):
    rng = np.random.default_rng(seed)
    overlap = max(32, int(fraction * tile))
    truth = random_layout(rng, size, tile, overlap, int(rng.integers(1, 16)))
    windows = windows_of(size, tile, overlap)
    assume(not coincide(truth, windows))
    stitcher = Stitcher((size, size))
    for window in rng.permutation(windows).tolist():
        add(stitcher, tuple(window), truth, parts=parts)
    found = stitcher.finish()
    assert_found(found, truth, (size, size), least=0.98)
    assert not found.notes
    for mask in found.masks:
        assert mask[0].any() and mask[:, -1].any()


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6), tile=st.integers(96, 200), overlap=st.integers(32, 48))
def test_the_order_of_windows_does_not_matter(seed, tile, overlap):
    rng = np.random.default_rng(seed)
    size = (400, 400)
    truth = random_layout(rng, 400, tile, overlap, 10)
    views = []
    for window in windows_of(400, tile, overlap):
        jittered = [moved(m, *rng.integers(-1, 2, 2)) for m in truth]
        views.append((window, [m for m in jittered if m.any() and rng.random() > 0.1]))
    one = stitch(views, size)
    other = stitch([views[i] for i in rng.permutation(len(views))], size)
    assert one.notes == other.notes and len(one) == len(other)
    for a, b in zip(one.masks, other.masks, strict=True):
        assert (a == b).all()
    for name in ("offsets", "classes", "scores"):
        assert (getattr(one, name) == getattr(other, name)).all()


def test_one_window_comes_out_as_it_went_in():
    masks = [disc(50, 50, 9), disc(52, 50, 4), line((5, 5), (150, 100))]
    stitcher = Stitcher(SIZE)
    add(stitcher, (0, 0, 200, 160), masks, classes=[2, 1, 0], scores=[0.5, 0.6, 0.7])
    found = stitcher.finish()
    assert_found(found, masks)
    assert sorted(zip(found.classes, found.scores, strict=True)) == [(0, 0.7), (1, 0.6), (2, 0.5)]
    again = Stitcher(SIZE)
    again.add((0, 0, 200, 160), found.masks, found.offsets, found.classes, found.scores)
    assert all((a == b).all() for a, b in zip(found.masks, again.finish().masks, strict=True))


def test_no_detections_give_no_particles():
    assert len(Stitcher(SIZE).finish()) == 0
    found = stitch([(window, []) for window in SEAM])
    assert len(found) == 0 and found.offsets.shape == (0, 2)


def test_empty_masks_are_counted():
    stitcher = Stitcher(SIZE)
    stitcher.add(LEFT, [np.zeros((4, 4), bool)], [(0, 0)], [0], [0.5])
    assert stitcher.finish().notes == {"empty masks": 1}


@pytest.mark.parametrize(
    ("offset", "classes", "message"),
    [
        ((118, 0), [0], r"covers \[118, 0, 122, 4\]"),
        ((-1, 0), [0], r"covers \[-1, 0, 3, 4\]"),
        ((0, 0), [0, 1], "longer"),
    ],
)
def test_invalid_detections_are_refused(offset, classes, message):
    with pytest.raises(ValueError, match=message):
        Stitcher(SIZE).add(LEFT, [np.ones((4, 4), bool)], [offset], classes, [0.5])


def test_a_long_fibre_is_one_with_its_whole_length():
    size = (300, 900)
    truth = cv2.ellipse(blank(size), (450, 40), (420, 220), 0, 5, 175, 1, 5).astype(bool)
    windows = [(x, y, 128, 128) for y in starts(300, 128, 32) for x in starts(900, 128, 32)]
    found = stitch([(window, [truth]) for window in windows], size)
    assert_found(found, [truth], size)
    whole = measure(truth, kind="fiber").length
    assert measure(found.masks[0], kind="fiber").length == pytest.approx(whole, rel=1e-3)


@pytest.mark.parametrize("parts", [False, True])
@pytest.mark.parametrize(
    "truth",
    [
        [line((0, 20), (199, 140)), line((0, 140), (199, 20))],  # cross in the seam
        [line((0, 78), (199, 82)), line((0, 82), (199, 78))],  # nearly along each other
        [disc(90, 80, 10), disc(111, 80, 10)],  # touch in the seam
        [disc(70, 80, 10), disc(129, 80, 10)],  # meet the overlap by one column
        [line((80, 0), (80, 159)), line((119, 10), (119, 150)), line((100, 5), (100, 100))],
        [line((20, 30), (150, 30), (150, 60), (20, 60))],  # a hairpin: two parts on the left
        [cv2.circle(blank(), (100, 80), 50, 1, 4).astype(bool)],
        [disc(100, 80, 40), disc(100, 80, 8)],  # a fragment on a film
        [disc(0, 0, 20), disc(199, 159, 20), line((0, 100), (199, 100))],
    ],
)
def test_perfect_views_of_hard_places(truth, parts):
    assert_found(stitch([(window, truth) for window in SEAM], parts=parts), truth)


def test_jittered_outlines_are_one_particle():
    fibre, blob = line((10, 30), (190, 60)), disc(100, 110, 15)
    shifted = [moved(mask, 1, 1) for mask in (fibre, blob)]
    thick = [cv2.dilate(m.astype(np.uint8), np.ones((3, 3))) > 0 for m in (fibre, blob)]
    for other in (shifted, thick):
        found = stitch([(LEFT, [fibre, blob]), (RIGHT, other)])
        assert_found(found, [fibre, blob], least=0.6)


def test_masks_that_end_before_the_border_are_joined_without_a_gap():
    fibre = line((10, 30), (190, 60))
    left, right = fibre.copy(), fibre.copy()
    left[:, 113:], right[:, :88] = False, False
    assert_found(stitch([(LEFT, [left]), (RIGHT, [right])]), [fibre])


def test_ends_that_do_not_meet_are_joined_when_they_lie_in_line():
    seam = (0, 0, 112, 160), (88, 0, 112, 160)
    straight = line((10, 30), (190, 60))
    left, right = straight.copy(), straight.copy()
    left[:, 98:], right[:, :102] = False, False
    assert_found(stitch([(seam[0], [left]), (seam[1], [right])]), [left | right])
    turned = line((102, 46), (102, 140))
    assert len(stitch([(seam[0], [left]), (seam[1], [turned])])) == 2


def test_a_truncated_view_does_not_spoil_the_mask():
    blob, sloppy = disc(75, 80, 20), disc(75, 80, 24)
    sloppy[:, :80] = False
    assert_found(stitch([(LEFT, [blob]), (RIGHT, [sloppy])]), [blob], least=0.97)


def test_the_class_and_score_of_the_uncut_view_win():
    blob = disc(90, 80, 20)
    stitcher = Stitcher(SIZE)
    add(stitcher, LEFT, [blob], classes=[2], scores=[0.6])
    add(stitcher, RIGHT, [blob], classes=[1], scores=[0.95])
    found = stitcher.finish()
    assert (found.classes.tolist(), found.scores.tolist()) == ([2], [0.6])


def test_a_cut_fibre_has_the_mean_score_of_its_fragments():
    stitcher = Stitcher(SIZE)
    fibre = line((0, 80), (199, 80))
    add(stitcher, LEFT, [fibre], classes=[1], scores=[0.6])
    add(stitcher, RIGHT, [fibre], classes=[0], scores=[0.8])
    found = stitcher.finish()
    assert found.classes.tolist() == [0] and found.scores[0] == pytest.approx(0.7)


def test_a_false_small_duplicate_is_dropped_and_counted():
    blob, bogus = disc(100, 80, 18), disc(95, 78, 6)
    found = stitch([(LEFT, [blob, bogus]), (RIGHT, [blob])])
    assert_found(found, [blob])
    assert found.notes == {"duplicates and slivers of other particles": 1}


def test_a_particle_missed_by_one_window_stays():
    blobs = [disc(100, 40, 10), disc(100, 110, 10)]
    assert_found(stitch([(LEFT, blobs), (RIGHT, blobs[:1])]), blobs)


@pytest.mark.parametrize("radius", [9, 14])
def test_a_window_that_merges_touching_particles_is_overruled(radius):
    pair = [disc(99 - radius, 80, radius), disc(100 + radius, 80, radius)]
    merged = pair[0] | pair[1]
    for views in ([merged], pair), (pair, [merged]):
        found = stitch(list(zip(SEAM, views, strict=True)))
        assert_found(found, pair, least=0.97)
        assert list(found.notes.values()) == [1]


def test_crossing_fibres_that_a_window_merges_are_separated():
    pair = [line((82, 40), (118, 110)), line((82, 110), (118, 40))]
    found = stitch([(LEFT, [pair[0] | pair[1]]), (RIGHT, pair)])
    assert_found(found, pair, least=0.9)


def test_a_fibre_that_a_window_breaks_is_whole():
    fibre = line((5, 80), (195, 90))
    broken = fibre.copy()
    broken[:, 98:101] = False
    found = stitch([(LEFT, [fibre]), (RIGHT, [broken])], parts=True)
    assert_found(found, [fibre], least=0.98)


@pytest.mark.parametrize("jitter", [0, 1])
def test_poor_views_rarely_change_the_count(jitter):
    size, errors, particles = (500, 500), 0, 0
    for seed in range(4):
        rng = np.random.default_rng(seed)
        truth = [m for m in random_layout(rng, 500, 180, 60, 10) if m.sum() > 60]
        truth = [
            m for m in truth if cv2.distanceTransform(m.astype(np.uint8), cv2.DIST_L2, 3).max() > 2
        ]
        views = []
        for x, y, width, height in windows_of(500, 180, 60):
            seen = np.zeros(size, bool)
            low = [value + int(rng.integers(0, 5)) * (value > 0) for value in (y, x)]
            high = [value - 3 * (value < 500) for value in (y + height, x + width)]
            seen[low[0] : high[0], low[1] : high[1]] = True
            shaky = [moved(m, *rng.integers(-jitter, jitter + 1, 2)) & seen for m in truth]
            views.append(((x, y, width, height), [m for m in shaky if m.sum() > 25]))
        errors += abs(len(stitch(views, size)) - len(truth))
        particles += len(truth)
    assert errors <= 0.03 * particles


def test_packed_masks_are_small_and_exact():
    rng = np.random.default_rng(0)
    fibre = line((0, 0), (1999, 1999), width=4, size=(2000, 2000))
    masks = [rng.random((5, 7)) > 0.5, rng.random((101, 99)) > 0.5, fibre]
    packed = PackedMasks(objects([pack(mask) for mask in masks]))
    for mask, again in zip(masks, packed, strict=True):
        assert again.dtype == bool and again.flags.c_contiguous and (again == mask).all()
    assert len(pack(fibre)[1]) < fibre.size / 50


def test_the_benchmark_judges_by_the_truth():
    report = benchmark(size=1200, particles=60, tile=256, overlap=40, repeat=1)
    (check,) = [check for check in report.checks if check.name.startswith("ours")]
    assert check.agrees and "count error +0" in check.detail
    with pytest.raises(UserError, match="overlap must be"):
        benchmark(tile=64, overlap=64)
