"""Distances to the nearest neighbour while particles come and go."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from microplastics.measurement import Item, nearest_distances
from microplastics.measurement.nearest import Neighbors

PLACES = st.tuples(st.integers(0, 60), st.integers(0, 40), st.integers(1, 9), st.integers(1, 9))


@settings(max_examples=60, deadline=None)
@given(
    start=st.lists(PLACES, min_size=6, max_size=14),
    steps=st.lists(st.tuples(st.integers(0, 16), st.none() | PLACES), max_size=10),
)
def test_the_same_as_all_at_once(start, steps):
    def item(place):
        x, y, width, height = place
        return Item(np.ones((height, width), bool), (x, y))

    items, neighbors = {n: item(place) for n, place in enumerate(start)}, Neighbors()
    neighbors.update(items, items)
    for key, place in [(0, None), *steps]:
        items = {k: v for k, v in items.items() if k != key}
        if place is not None:
            items[key] = item(place)
        neighbors.update(items, [key])
        expected = nearest_distances(
            [each.mask for each in items.values()], [each.offset for each in items.values()]
        )
        np.testing.assert_array_equal(neighbors.distances(items), expected)
