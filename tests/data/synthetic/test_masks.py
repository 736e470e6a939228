import math

import cv2
import numpy as np
import pytest
from pycocotools import mask as mask_util
from shapely.geometry import LineString, Polygon

from microplastics.data.synthetic.fields import generator
from microplastics.data.synthetic.masks import annotate
from microplastics.data.synthetic.particles import FIBER, FRAGMENT, MAKERS, Particle


def decoded(annotation, size):
    rle = annotation["segmentation"]
    if isinstance(rle, list):
        (rle,) = mask_util.frPyObjects(rle, size, size)
    return mask_util.decode(rle)


def straight_fiber(length, radius, x=0.0, y=0.0):
    core = np.array([[x, y], [x + length, y]])
    return Particle(FIBER, LineString(core).buffer(radius, quad_segs=64), core, radius)


def test_annotation_of_a_square_is_exact():
    corners = np.array([[10.0, 20], [16, 20], [16, 25], [10, 25]])
    annotation = annotate(Particle(FRAGMENT, Polygon(corners), corners), 64, 2.0)
    assert annotation["area"] == 30 and annotation["bbox"] == [10, 20, 6, 5]
    assert not annotation["touches_edge"] and annotation["iscrowd"] == 0
    assert annotation["truth"]["area_um2"] == 120


def test_truth_is_whole_where_the_frame_cuts():
    annotation = annotate(straight_fiber(40, 3, x=-20, y=30), 64, 1.0)
    assert annotation["touches_edge"] and annotation["truth"]["length_um"] == 46
    assert annotation["area"] == pytest.approx(20 * 6 + 4.5 * math.pi, abs=3)
    assert min(annotation["segmentation"][0]) >= 0
    assert annotate(straight_fiber(40, 3, x=-60), 64, 1.0) is None


def test_a_ring_is_rle_with_its_hole():
    angle = np.linspace(0, 2 * math.pi, 200)
    core = 32 + 15 * np.stack([np.cos(angle), np.sin(angle)], 1)
    particle = Particle(FIBER, LineString(core).buffer(2.5), core, 2.5)
    annotation = annotate(particle, 64, 1.0)
    assert annotation["segmentation"]["size"] == [64, 64]
    mask = decoded(annotation, 64)
    assert mask[32, 32] == 0 and mask[32, 47] == 1
    assert annotation["area"] == mask.sum() == pytest.approx(2 * math.pi * 15 * 5, rel=0.01)


def test_pieces_left_by_the_frame_are_one_annotation():
    core = np.array([[10.0, 50], [30, 80], [50, 50]])
    annotation = annotate(Particle(FIBER, LineString(core).buffer(3), core, 3.0), 64, 1.0)
    count, _ = cv2.connectedComponents(decoded(annotation, 64))
    assert count - 1 == 2 and isinstance(annotation["segmentation"], dict)


def wedge(length):
    """A fibre that leaves the frame so flatly that its last ``length`` px are under 1 px thick."""
    core = np.array([[20.0, 10], [20.0 + 10 * length, 0]])
    core[:, 1] -= 3
    return Particle(FIBER, LineString(core).buffer(3, quad_segs=16), core, 3.0)


def test_no_tip_thinner_than_a_pixel_is_left_where_the_frame_cuts():
    annotation = annotate(wedge(18), 256, 1.0)
    points = np.reshape(annotation["segmentation"][0], (-1, 2))
    x, y, width, height = annotation["bbox"]
    assert annotation["touches_edge"]
    assert annotation["truth"]["width_um"] == 6
    assert np.abs(points.min(0) - (x, y)).max() < 1
    assert np.abs(points.max(0) - (x + width, y + height)).max() < 1


@pytest.mark.parametrize("kind", MAKERS)
def test_the_polygon_spans_the_box_of_its_mask(kind):
    worst = cut = 0
    for seed in range(300):
        rng = generator(seed, "span", kind)
        particle = MAKERS[kind](rng, 256)
        for _ in range(3):
            annotation = annotate(particle.moved(*rng.uniform(0, 256, 2)), 256, 1.0)
            if annotation is None or isinstance(annotation["segmentation"], dict):
                continue
            points = np.reshape(annotation["segmentation"][0], (-1, 2))
            assert (points != np.roll(points, 1, axis=0)).any(axis=1).all()  # none repeated
            x, y, width, height = annotation["bbox"]
            off = np.concatenate([points.min(0) - (x, y), points.max(0) - (x + width, y + height)])
            worst, cut = max(worst, np.abs(off).max()), cut + annotation["touches_edge"]
    # What check_instances calls bbox_differs begins at 2 px.
    assert worst < 1.8 and cut > 50
