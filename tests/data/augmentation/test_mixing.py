"""microplastics/data/augmentation/mixing.py."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microplastics.data.augmentation.mixing import CopyPaste, Mosaic, Sample
from microplastics.structures.crop_masks import CropMasks
from microplastics.utils.system import seeded


def sample(shapes, size=(120, 160), ground=0, colour=255):
    """Filled ellipses (x, y, a, b, angle), one class each."""
    image = np.full((*size, 3), ground, np.uint8)
    masks = np.zeros((len(shapes), *size), bool)
    for index, (x, y, a, b, angle) in enumerate(shapes):
        layer = np.zeros(size, np.uint8)
        cv2.ellipse(layer, (x, y), (a, b), angle, 0, 360, 1, -1)
        masks[index] = layer > 0
        image[masks[index]] = colour
    whole = masks.sum(axis=(1, 2)).astype(float)
    return Sample(image, np.arange(len(shapes)), CropMasks.from_bitmasks(masks), whole)


EMPTY = sample([])
DONOR = sample([(50, 50, 20, 8, 30), (110, 70, 12, 12, 0), (0, 60, 10, 10, 0)])


def union(result):
    full = result.masks.to_bitmasks().numpy()
    return full.any(axis=0) if len(full) else np.zeros(result.masks.image_size, bool)


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**16), edge=st.sampled_from([0.0, 1.0, 2.0]))
def test_pasted_pixels_lie_under_pasted_masks(seed, edge):
    paste = CopyPaste(scale=(0.7, 1.5), edge=edge, max_cover=0.0)
    with seeded(seed):
        result = paste(EMPTY, DONOR)
    assert 1 <= len(result.masks) <= 2  # the third touches the border of its image
    assert not EMPTY.image.any()
    assert iou(union(result), result.image[:, :, 0] >= 128) >= 0.97
    assert set(result.classes.tolist()) <= {0, 1}
    assert result.whole.tolist() == result.masks.area().tolist()


def test_a_seed_repeats_it():
    for seed in (1, 2):
        results = []
        for _ in range(2):
            with seeded(seed):
                results.append(CopyPaste()(EMPTY, DONOR))
        assert np.array_equal(results[0].image, results[1].image)
        assert results[0].masks.to_rles() == results[1].masks.to_rles()


def test_unturned_and_unscaled_particles_are_copied_exactly():
    paste = CopyPaste(scale=(1.0, 1.0), rotate=False, edge=0.0, max_particles=1)
    areas = DONOR.masks.area().tolist()
    for seed in range(10):
        with seeded(seed):
            result = paste(EMPTY, DONOR)
        assert result.masks.area().item() == areas[result.classes.item()]
        assert np.array_equal(result.image[:, :, 0] == 255, union(result))


@pytest.mark.parametrize("occlusion", ["modal", "amodal"])
def test_what_is_covered_is_cut_off_or_kept(occlusion):
    below = sample([(80, 60, 75, 55, 0)], colour=100)
    paste = CopyPaste(max_cover=0.9, occlusion=occlusion)
    with seeded(0):
        result = paste(below, DONOR)
    first, *pasted = result.masks.to_bitmasks().numpy()
    assert pasted and result.whole[0] == below.whole[0]
    top = np.any(pasted, axis=0)
    original = below.masks.to_bitmasks()[0].numpy()
    assert (original & top).any()
    expected = original & ~top if occlusion == "modal" else original
    assert np.array_equal(first, expected)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**16), max_cover=st.floats(0, 1))
def test_no_particle_is_covered_by_more_than_its_share(seed, max_cover):
    below = sample([(40, 40, 30, 30, 0), (110, 80, 35, 20, 0)], colour=100)
    with seeded(seed):
        result = CopyPaste(max_cover=max_cover)(below, DONOR)
    visible = result.masks.area().numpy()
    assert (visible >= (1 - max_cover) * result.whole - 1e-9).all()


def test_nothing_to_paste_or_no_room_changes_nothing():
    border_only = sample([(0, 60, 10, 10, 0)])
    small = sample([], size=(10, 10))
    with seeded(0):
        assert CopyPaste()(EMPTY, border_only) is EMPTY
        result = CopyPaste()(small, DONOR)
    assert len(result.masks) == 0 and np.array_equal(result.image, small.image)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    scale=st.sampled_from([(0.5, 1.0), (1.0, 1.0), (1.5, 2.0)]),
    sizes=st.lists(st.tuples(st.integers(40, 150), st.integers(40, 150)), min_size=3, max_size=3),
)
def test_mosaic_masks_lie_on_their_particles(seed, scale, sizes):
    others = [sample([(w // 2, h // 2, 14, 9, 20)], size=(h, w)) for h, w in sizes]
    with seeded(seed):
        result = Mosaic(scale)([DONOR, *others])
    assert result.image.shape == DONOR.image.shape
    assert len(result.masks) == len(result.classes) == len(result.whole) == 6
    drawn = result.image[:, :, 0] >= 128
    if drawn.sum() > 500:
        assert iou(union(result), drawn) >= 0.93
    assert (result.masks.area().numpy() <= 1.3 * result.whole + 12).all()


def test_a_tiny_image_fills_its_quarter_too():
    tiny = [sample([], size=(h, w), ground=9) for h, w in ((1, 1), (2, 1), (1, 90))]
    with seeded(0):
        result = Mosaic()([EMPTY, *tiny])
    assert result.image.shape == EMPTY.image.shape and (result.image == 9).mean() > 0.4


def test_mosaic_of_plain_images_has_four_quarters():
    grounds = [sample([], ground=level) for level in (10, 20, 30, 40)]
    with seeded(3):
        image = Mosaic()(grounds).image[:, :, 0]
    assert (image[0, 0], image[0, -1], image[-1, 0], image[-1, -1]) == (10, 20, 30, 40)
    assert set(np.unique(image)) == {10, 20, 30, 40}
