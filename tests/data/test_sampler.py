"""microplastics/data/sampler.py and rng.py."""

import itertools
import random

import numpy as np
import pytest
import torch
from detectron2.data.samplers import TrainingSampler
from hypothesis import given
from hypothesis import strategies as st

from microplastics.data.rng import derive_seeds, seed_all, seeded
from microplastics.data.sampler import BatchStream, repeat_factors, set_factors


def batches(count, start=0, size=7, groups=None, batch_size=3):
    stream = BatchStream(TrainingSampler(size, seed=5), groups, batch_size, start)
    return list(itertools.islice(stream, count))


@given(st.integers(1, 9), st.integers(1, 4), st.integers(0, 12), st.data())
def test_starting_at_batch_k_is_skipping_k(size, batch_size, start, data):
    groups = data.draw(st.lists(st.integers(0, 1), min_size=size, max_size=size))
    whole = batches(start + 4, 0, size, groups, batch_size)
    assert batches(4, start, size, groups, batch_size) == whole[start:]
    assert all(len({groups[i] for i, _ in batch}) == 1 for batch in whole)


def test_each_image_comes_once_an_epoch_and_positions_never_repeat():
    stream = [item for batch in batches(7) for item in batch]
    assert sorted(index for index, _ in stream) == sorted(list(range(7)) * 3)
    assert [position for _, position in stream] == list(range(21))


def draw():
    return random.random(), np.random.rand(), torch.rand(1).item()


def test_seeded_blocks_repeat_and_leave_no_trace():
    seed_all(1)
    before = draw()
    seed_all(1)
    with seeded(2, 3):
        first = draw()
    assert draw() == before
    with seeded(2, 3):
        assert draw() == first
    with seeded(3, 2):
        assert draw() != first
    assert derive_seeds(1, 2) != derive_seeds(2, 1)


@given(
    st.lists(st.tuples(st.integers(1, 50), st.floats(0.1, 10)), min_size=1, max_size=4),
)
def test_sets_are_drawn_in_proportion_to_their_weights(sets):
    sizes, weights = zip(*sets, strict=True)
    factors = set_factors(sizes, weights, [str(k) for k in range(len(sizes))])
    drawn = [part.sum().item() for part in factors.split(sizes)]
    expected = [sum(sizes) * weight / sum(weights) for weight in weights]
    assert drawn == pytest.approx(expected, rel=1e-4)


def test_images_with_a_rare_class_are_repeated_and_blanks_are_not(caplog):
    def image(*classes):
        return {"annotations": [{"category_id": c} for c in classes]}

    caplog.set_level("INFO")
    dicts = [image(0), image(0, 0), image(0, 1), image()]
    factors = repeat_factors(dicts, 0.5, ["Fiber", "Film", "Foam"])
    # Film is on a quarter of the images: sqrt(0.5 / 0.25).
    assert factors.tolist() == pytest.approx([1, 1, 2**0.5, 1])
    assert "Film" in caplog.text and "1.41" in caplog.text and "4 images for 4" in caplog.text
    repeat_factors(dicts, 0.1, ["Fiber", "Film", "Foam"])
    assert "raise DATALOADER.REPEAT_THRESHOLD" in caplog.text
