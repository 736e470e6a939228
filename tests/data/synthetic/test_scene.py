import cv2
import numpy as np
import pytest
from pycocotools import mask as mask_util

from microplastics.data.synthetic import PRESETS, render_image
from microplastics.data.synthetic.fields import generator
from microplastics.data.synthetic.particles import BEAD, MAKERS, make_bead
from microplastics.data.synthetic.presets import MAX_PARTICLES
from microplastics.data.synthetic.scene import _set_against


@pytest.fixture(scope="module")
def pictures():
    return [render_image((5, "train", index), 256, 2.0) for index in range(24)]


def decoded(annotation, size):
    rle = annotation["segmentation"]
    if isinstance(rle, list):
        (rle,) = mask_util.frPyObjects(rle, size, size)
    return mask_util.decode(rle)


def test_area_and_box_are_those_of_the_mask(pictures):
    assert sum(len(annotations) for _, _, annotations in pictures) > 80
    for _, _, annotations in pictures:
        for annotation in annotations:
            mask = decoded(annotation, 256)
            assert annotation["area"] == mask.sum() > 0
            x, y, width, height = cv2.boundingRect(mask)
            assert annotation["bbox"] == [x, y, width, height]


def test_masks_agree_with_the_drawn_geometry(pictures):
    ratios = [
        annotation["area"] * 4 / annotation["truth"]["area_um2"]
        for _, _, annotations in pictures
        for annotation in annotations
        if not annotation["touches_edge"]
    ]
    assert len(ratios) > 40
    assert np.median(ratios) == pytest.approx(1, abs=0.005)
    assert np.abs(np.log(ratios)).max() < 0.08


def test_particles_stand_out_from_what_surrounds_them(pictures):
    low = total = 0
    for image, _, annotations in pictures:
        masks = [decoded(a, 256) for a in annotations]
        anything = np.any(masks, axis=0) if masks else None
        for mask in masks:
            around = (cv2.dilate(mask, np.ones((13, 13), np.uint8)) > 0) & ~anything
            if around.sum() < 30:
                continue
            rim = (mask > 0) & (cv2.erode(mask, np.ones((5, 5), np.uint8)) == 0)
            off = np.abs(image[rim].mean(0) - image[around].mean(0)).max()
            low, total = low + (off < 12), total + 1
    assert total > 80 and low <= 0.02 * total


def test_all_that_makes_a_filter_photograph_occurs(pictures):
    kinds = {a["category_id"] for _, _, annotations in pictures for a in annotations}
    assert kinds == {1, 2, 3}
    records = [record for _, record, _ in pictures]
    assert len({r["filter"] for r in records}) >= 4
    assert 3 <= sum("scale_bar" in r for r in records) <= 16
    assert len({r["jpeg_quality"] for r in records}) > 5
    counts = [len(annotations) for _, _, annotations in pictures]
    assert max(counts) >= 2 * np.median(counts)


def test_a_twentieth_of_the_pictures_are_empty():
    counts = [len(render_image((1, "e", i), 64, 1.0)[2]) for i in range(120)]
    assert 0.01 < np.mean(np.array(counts) == 0) < 0.2


def test_seeds_and_splits_differ():
    images = [render_image(key, 64, 1.0)[0] for key in [(1, "a", 0), (2, "a", 0), (1, "b", 0)]]
    assert len({image.tobytes() for image in images}) == 3


def annotations_of(name, count, size):
    preset = PRESETS[name]
    return [render_image((2, name, i), size, 1.0, preset)[2] for i in range(count)]


def test_dense_is_four_to_six_times_as_dense():
    plain = np.mean([len(a) for a in annotations_of("default", 24, 160)])
    dense = [len(a) for a in annotations_of("dense", 12, 160)]
    assert 3 < np.mean(dense) / plain < 6
    assert min(dense) > 4 and max(dense) <= MAX_PARTICLES


def test_a_blank_is_never_annotated_but_is_not_bare():
    pictures = [render_image((3, "blank", i), 128, 1.0, PRESETS["blank"]) for i in range(6)]
    assert not any(annotations for _, _, annotations in pictures)
    assert all(image.std() > 2 for image, _, _ in pictures)
    assert len({record["filter"] for _, record, _ in pictures}) > 1


def test_beads_are_discs_of_one_batch():
    spreads = []
    for annotations in annotations_of("beads", 12, 256):
        whole = [a for a in annotations if not a["touches_edge"]]
        assert all(a["category_id"] == 1 for a in annotations)
        for annotation in whole:
            assert annotation["bbox"][2] == pytest.approx(annotation["bbox"][3], abs=2)
            assert annotation["area"] == pytest.approx(annotation["truth"]["area_um2"], rel=0.03)
        diameters = [a["truth"]["length_um"] for a in annotations]
        if len(diameters) > 2:
            spreads.append(np.std(diameters) / np.mean(diameters))
    assert len(spreads) > 5 and max(spreads) < 0.12


@pytest.mark.parametrize("kind", MAKERS)
def test_set_against_another_it_touches_and_does_not_overlap(kind):
    rng = generator(4, kind)
    other = make_bead(rng, 256, 40).moved(100, 100)
    placed = _set_against(rng, MAKERS[kind](rng, 256), other)
    assert placed.outline.intersection(other.outline).area < 1e-6
    assert placed.outline.distance(other.outline) < 2
    assert BEAD in MAKERS
