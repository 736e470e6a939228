"""Tests of the coarse pass: it adds what is larger than a window, and nothing else."""

import cv2
import numpy as np
import pytest
from stitch_support import SIZE, add, assert_found, disc, line, windows_of

from microplastics.inference.stitching.merging import enlarge
from microplastics.inference.stitching.stitcher import Stitcher


def coarse(stitcher, masks, scale=4.0, scores=None):
    """Add masks as a pass at 1 / scale would see them."""
    for k, mask in enumerate(masks):
        height, width = mask.shape
        small = cv2.resize(
            mask.astype(np.uint8) * 255,
            (round(width / scale), round(height / scale)),
            interpolation=cv2.INTER_AREA,
        )
        large, offset = enlarge(small >= 128, (0, 0), scale, mask.shape)
        score = 0.7 if scores is None else scores[k]
        stitcher.add_coarse([large], [offset], [2], [score], scale=scale)


def fine(size, tile, overlap, see):
    """Make a stitcher of the full-frame masks that ``see(window)`` returns."""
    stitcher = Stitcher((size, size))
    for window in windows_of(size, tile, overlap):
        add(stitcher, window, see(window))
    return stitcher


def test_the_coarse_pass_joins_pieces_of_one_large_thing():
    size = 600
    film = disc(300, 300, 220, (size, size))
    missed = (192, 192, 128, 128)
    stitcher = fine(size, 128, 32, lambda window: [] if window == missed else [film])
    stitcher.add(missed, [], [], [], [])
    coarse(stitcher, [film])
    found = stitcher.finish()
    assert_found(found, [film], (size, size), least=0.97)


def test_the_coarse_pass_completes_what_fine_windows_see_scraps_of():
    size = 600
    film = disc(300, 300, 220, (size, size))
    scraps = [(480, 288, 120, 120), (288, 480, 120, 120)]
    windows = windows_of(size, 120, 24)
    stitcher = fine(size, 120, 24, lambda window: [film] if window in scraps else [])
    assert all(window in windows for window in scraps)
    coarse(stitcher, [film])
    found = stitcher.finish()
    assert_found(found, [film], (size, size), least=0.95)
    assert found.classes.tolist() == [2]
    assert found.notes == {"coarse detections that join fine ones": 1}


def test_the_coarse_pass_finds_what_fine_windows_missed():
    film = disc(300, 300, 220, (600, 600))
    stitcher = fine(600, 128, 32, lambda _: [])
    coarse(stitcher, [film])
    assert_found(stitcher.finish(), [film], (600, 600), least=0.95)


def test_two_ends_of_a_fibre_are_joined_over_a_window_that_missed_it():
    size = 600
    fibre = line((30, 300), (570, 290), width=9, size=(size, size))
    stitcher = fine(size, 128, 32, lambda w: [] if 200 < w[0] + w[2] / 2 < 380 else [fibre])
    assert len(stitcher.finish()) == 2
    coarse(stitcher, [fibre], scale=3.0)
    assert_found(stitcher.finish(), [fibre], (size, size), least=0.85)


def test_the_coarse_pass_adds_nothing_to_what_is_right():
    size = 600
    truth = [
        line((30, 30), (560, 400), width=8, size=(size, size)),
        disc(430, 130, 90, (size, size)),
        disc(100, 480, 20, (size, size)),
    ]
    stitcher = fine(size, 128, 32, lambda _: truth)
    coarse(stitcher, truth, scale=3.0)
    found = stitcher.finish()
    assert_found(found, truth, (size, size))
    assert sum(found.notes.values()) == 3
    assert all(reason.startswith("coarse detections left out") for reason in found.notes)


def test_a_false_coarse_blob_does_not_glue_whole_particles():
    size = 600
    truth = [disc(x, y, 30, (size, size)) for x in range(200, 420, 66) for y in (230, 296, 362)]
    truth.append(line((150, 420), (450, 430), width=6, size=(size, size)))
    stitcher = fine(size, 128, 32, lambda _: truth)
    coarse(stitcher, [disc(300, 300, 170, (size, size))])
    assert_found(stitcher.finish(), truth, (size, size))


def test_invalid_coarse_detections_are_refused():
    stitcher = Stitcher(SIZE)
    with pytest.raises(ValueError, match=r"covers \[199, 0, 201, 2\]"):
        stitcher.add_coarse([np.ones((2, 2), bool)], [(199, 0)], [0], [0.5], scale=2)
