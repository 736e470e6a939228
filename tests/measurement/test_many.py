import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microplastics.measurement import Item, measure, measure_many, nearest_distances
from microplastics.measurement.analytic import arc, disc, draw

BOXES = st.lists(
    st.tuples(*[st.integers(0, 60)] * 2, *[st.integers(1, 12)] * 2), min_size=2, max_size=9
)


def items(count):
    rng = np.random.default_rng(4)
    image = rng.integers(0, 256, (300, 300, 3), dtype=np.uint8)
    shapes = [disc(6), arc(20, 2, 4)]
    masks = [draw(shapes[n % 2], rng.uniform(0, 6), (0, 0)) for n in range(count)]
    places = rng.integers(0, 200, (count, 2)).tolist()
    return [
        Item(mask, (x, y), (300, 300), image, shapes[n % 2].kind)
        for n, (mask, (x, y)) in enumerate(zip(masks, places, strict=True))
    ]


@pytest.mark.parametrize("processes", [None, 1, 2])
def test_many_are_measured_as_one_by_one(processes):
    several = items(130)
    assert measure_many(several, processes) == [measure(*item) for item in several]


def test_pixels_give_the_colours_of_their_image():
    several = items(4)
    pixels = []
    for mask, (x, y), _, image, _, _ in several:
        pixels.append(image[y : y + mask.shape[0], x : x + mask.shape[1]][mask])
    without = [
        item._replace(image=None, pixels=own) for item, own in zip(several, pixels, strict=True)
    ]
    assert measure_many(without) == measure_many(several)
    with pytest.raises(ValueError, match="not both"):
        measure_many([several[0]._replace(pixels=pixels[0])])
    with pytest.raises(ValueError, match=r"has colours \(3, 3\)"):
        measure_many([without[0]._replace(pixels=pixels[0][:3])])


def test_nothing_is_measured_of_nothing():
    assert measure_many([]) == []


def test_an_empty_mask_among_many_is_an_error():
    with pytest.raises(ValueError, match="The mask is empty"):
        measure_many([*items(2), Item(np.zeros((3, 3)))])


def test_the_nearest_particle_is_found_from_edge_to_edge():
    far, near = np.ones((4, 4)), np.ones((2, 30))
    distances = nearest_distances([far, far, near], [(0, 0), (10, 0), (0, 20)])
    assert distances.tolist() == [6, 6, 16]


@pytest.mark.parametrize(
    ("second", "gap"), [((4, 0), 0), ((4, 4), math.sqrt(2) - 1), ((1, 1), 0), ((0, 0), 0)]
)
def test_particles_that_touch_or_overlap_are_not_apart(second, gap):
    square = np.ones((4, 4))
    distances = nearest_distances([square, square], [(0, 0), second])
    assert distances == pytest.approx([gap, gap])


def test_a_particle_inside_of_another_is_not_apart():
    ring = np.ones((40, 40))
    ring[10:30, 10:30] = 0
    on, within = (5, 5), (18, 18)
    assert nearest_distances([np.ones((40, 40)), np.ones((2, 2))], [(0, 0), within])[1] == 0
    assert nearest_distances([ring, np.ones((2, 2))], [(0, 0), on])[1] == 0
    assert nearest_distances([ring, np.ones((2, 2))], [(0, 0), within]).tolist() == [8, 8]


def test_alone_there_is_no_distance():
    assert np.isnan(nearest_distances([np.ones((3, 3))], [(5, 5)])).all()
    assert nearest_distances([], []).shape == (0,)


def test_masks_without_places_are_an_error():
    with pytest.raises(ValueError, match="2 masks have 1 offsets"):
        nearest_distances([np.ones((1, 1))] * 2, [(0, 0)])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(BOXES)
def test_distances_are_those_of_all_pairs(boxes):
    masks = [np.ones((height, width)) for _, _, width, height in boxes]
    found = nearest_distances(masks, [(x, y) for x, y, _, _ in boxes])
    for index, (x, y, width, height) in enumerate(boxes):
        gaps = []
        for u, v, w, h in boxes[:index] + boxes[index + 1 :]:
            right, down = max(u - x - width + 1, x - u - w + 1, 0), max(
                v - y - height + 1, y - v - h + 1, 0
            )
            gaps.append(max(math.hypot(right, down) - 1, 0))
        assert found[index] == pytest.approx(min(gaps))
