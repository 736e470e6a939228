"""Three stages at once: order, batches, errors and memory."""

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microplastics.inference.stream import stream


def run_through(items, batch_size, kinds=3, batches=None):
    def run(batch):
        if batches is not None:
            batches.append(batch)
        return [item + 1000 for item in batch]

    return stream(
        items,
        prepare=lambda item: item * 2,
        run=run,
        finish=lambda prepared, output: (prepared, output),
        kind=lambda prepared: prepared // 2 % kinds,
        batch_size=batch_size,
    )


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 50), max_size=40), st.integers(1, 6), st.integers(1, 4))
def test_every_item_comes_once_and_in_order(items, batch_size, kinds):
    batches = []
    found = list(run_through(items, batch_size, kinds, batches))
    assert found == [(item * 2, item * 2 + 1000) for item in items]
    assert all(1 <= len(batch) <= batch_size for batch in batches)
    assert all(len({item // 2 % kinds for item in batch}) == 1 for batch in batches)


def test_batches_are_filled_across_kinds():
    batches = []
    list(run_through([0, 1] * 8, 4, 2, batches))
    assert [len(batch) for batch in batches] == [4] * 4


def test_few_items_are_drawn_ahead():
    drawn = []

    def items():
        for number in range(10_000):
            drawn.append(number)
            yield number

    for count, _ in enumerate(run_through(items(), 2, 3), 1):
        assert len(drawn) - count <= 8 * 2 + 4
        if count == 200:
            break


def test_the_stages_run_in_threads_of_their_own():
    threads = {}

    def note(stage, value):
        threads[stage] = threading.get_ident()
        return value

    list(
        stream(
            [1, 2],
            prepare=lambda item: note("prepare", item),
            run=lambda batch: note("run", batch),
            finish=lambda _, output: note("finish", output),
            kind=lambda _: 0,
            batch_size=1,
        )
    )
    assert threads["run"] == threading.get_ident() and len(set(threads.values())) == 3


@pytest.mark.parametrize("stage", ["prepare", "run", "finish"])
def test_an_error_of_any_stage_surfaces(stage):
    def fail(*_):
        raise ZeroDivisionError(stage)

    stages = {"prepare": lambda i: i, "run": lambda batch: batch, "finish": lambda _, o: o}
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError, match=stage):
        list(stream(range(9), **{**stages, stage: fail}, kind=lambda _: 0, batch_size=2))
    assert threading.active_count() == before
