import numpy as np
import pycocotools.mask as mask_util
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from microplastics.structures import rle

MASKS = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=24))


def encode(mask):
    return mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))


@given(MASKS)
@settings(deadline=None)
def test_counts_agree_with_pycocotools(mask):
    coco = encode(mask)
    counts = rle.decode_counts(coco["counts"])
    line = mask.T.ravel()
    assert counts.sum() == mask.size
    assert np.array_equal(np.repeat(np.arange(len(counts)) % 2 == 1, counts), line)
    assert rle.encode_counts(counts) == coco["counts"]
    assert np.array_equal(rle.decode_counts(coco["counts"].decode()), counts)
    assert rle.rle_bbox(coco) == tuple(mask_util.toBbox(coco))


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=40))
@settings(deadline=None)
def test_any_lengths_survive_the_string(lengths):
    text = rle.encode_counts(lengths)
    assert rle.decode_counts(text).tolist() == lengths


@given(st.lists(st.integers(0, 2**28), min_size=1, max_size=40))  # C writes past its end above
@settings(deadline=None)
def test_string_is_that_of_pycocotools(lengths):
    coco = mask_util.frPyObjects({"size": [1, 1], "counts": lengths}, 1, 1)
    assert rle.encode_counts(lengths) == coco["counts"]


@given(MASKS, st.integers(0, 9), st.integers(0, 9), st.integers(0, 3), st.integers(0, 3))
@settings(deadline=None)
def test_runs_of_a_crop_are_those_of_its_image(crop, x0, y0, below, right):
    rows, columns = crop.shape
    full = np.zeros((y0 + rows + below, x0 + columns + right), dtype=bool)
    full[y0 : y0 + rows, x0 : x0 + columns] = crop
    edges = rle.runs_of_crop(crop, (x0, y0), len(full))
    counts = rle.counts_of_runs(*edges, full.size)
    assert rle.encode_counts(counts) == encode(full)["counts"]
    tight, x, y = rle.crop_of_runs(*rle.runs_of_counts(counts), len(full))
    again = np.zeros_like(full)
    again[y : y + tight.shape[0], x : x + tight.shape[1]] = tight
    assert np.array_equal(again, full)
    if full.any():
        assert tight.any(axis=0)[[0, -1]].all() and tight.any(axis=1)[[0, -1]].all()


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ([3, -1, 4], "outside 0..6"),
        ([7], "outside 0..6"),
        ([2, 2], "covers 4 pixels, the image has 2 x 3 = 6"),
        ([], "covers 0 pixels"),
        ([1.5, 4.5], "not a list of whole numbers"),
        ([[1], [5]], "not a list of whole numbers"),
        (["1", "5"], "not a list of whole numbers"),
        ([2**70], "not a list of whole numbers"),
        ([2**63 + 5], "outside 0..6"),
        (None, "not a list of whole numbers"),
        ("é", "not a digit"),
        ("\x00", "not a digit"),
        (b"\xff", "not a digit"),
        ("o", "end inside a number"),
        ("oooooooo0", "too large"),
        ("", "covers 0 pixels"),
    ],
)
def test_hostile_counts_are_value_errors(counts, words):
    with pytest.raises(ValueError, match=words):
        rle.counts_of_rle({"size": [2, 3], "counts": counts})


@given(st.binary(max_size=60))
@settings(max_examples=300, deadline=None)
def test_random_bytes_never_do_more_than_value_error(counts):
    try:
        lengths = rle.counts_of_rle({"size": [50, 50], "counts": counts})
    except ValueError:
        return
    assert lengths.sum() == 2500


def test_batch_keeps_order_and_kinds():
    lengths = [[6], [0, 6], [1, 2, 3], [0, 1, 1, 1, 1, 2]]
    texts = rle.encode_counts_batch([np.array(each) for each in lengths])
    mixed = [texts[0], lengths[1], texts[2].decode(), np.array(lengths[3])]
    assert [each.tolist() for each in rle.decode_counts_batch(mixed)] == lengths
    assert rle.encode_counts_batch([]) == [] == rle.decode_counts_batch([])
