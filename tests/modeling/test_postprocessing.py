"""microplastics/modeling/postprocessing.py."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from microplastics.inference.predictor import Predictions
from microplastics.modeling.postprocessing import distinct, drop_duplicates
from microplastics.structures.crop_masks import CropMasks


def rectangles(*boxes):
    crops = [np.ones((h, w), bool) for _, _, w, h in boxes]
    return CropMasks(crops, [box[:2] for box in boxes], (60, 60))


def kept(boxes, classes, scores, overlap=0.5):
    return distinct(rectangles(*boxes), np.array(classes), np.array(scores), overlap).tolist()


def test_a_piece_of_a_fibre_goes_and_a_crossing_fibre_stays():
    fibre, piece, crossing = (0, 20, 60, 4), (10, 20, 30, 4), (28, 0, 4, 60)
    assert kept([fibre, piece, crossing], [0, 0, 0], [0.8, 0.9, 0.7]) == [1, 2]
    assert kept([fibre, piece, crossing], [0, 0, 0], [0.9, 0.8, 0.7]) == [0, 2]


def test_a_fibre_on_a_film_stays_and_a_film_called_fragment_goes():
    film, fibre, fragment = (0, 0, 40, 40), (5, 5, 30, 4), (1, 0, 40, 40)
    assert kept([film, fibre, fragment], [2, 0, 1], [0.9, 0.8, 0.7]) == [0, 1]
    assert kept([film, fibre, fragment], [2, 0, 1], [0.9, 0.8, 0.7], 1.0) == [0, 1, 2]


def test_a_mask_that_goes_takes_no_other_with_it():
    chain = [(0, 0, 20, 4), (8, 0, 20, 4), (16, 0, 20, 4)]
    assert kept(chain, [0, 0, 0], [0.9, 0.8, 0.7]) == [0, 2]


@settings(deadline=None, max_examples=60)
@given(
    boxes=st.lists(st.tuples(*[st.integers(0, 40)] * 2, *[st.integers(1, 20)] * 2), max_size=12),
    overlap=st.floats(0, 1),
    data=st.data(),
)
def test_a_higher_threshold_changes_nothing_among_the_rest(boxes, overlap, data):
    scores = data.draw(st.permutations(np.linspace(0.1, 0.9, len(boxes)).tolist()))
    classes = data.draw(st.lists(st.integers(0, 2), min_size=len(boxes), max_size=len(boxes)))
    everything = kept(boxes, classes, scores, overlap)
    above = [i for i, score in enumerate(scores) if score > 0.5]
    rest = kept(*[[column[i] for i in above] for column in (boxes, classes, scores)], overlap)
    assert [above[i] for i in rest] == [i for i in everything if scores[i] > 0.5]


@pytest.mark.parametrize(("overlap", "left"), [(0.5, 1), (1.0, 2)])
def test_instances_keep_their_type(overlap, left):
    predictions = Predictions((60, 60))
    predictions.scores = torch.tensor([0.9, 0.8])
    predictions.pred_classes = torch.tensor([0, 0])
    predictions.pred_masks = rectangles((0, 0, 9, 9), (1, 0, 9, 9))
    result = drop_duplicates(predictions, overlap)
    assert isinstance(result, Predictions) and len(result) == left
