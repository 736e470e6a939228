import numpy as np
import shapely
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from microplastics.inference.writers.outlines import pixel_polygons

masks = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=9)).filter(np.any)


def shape_of(polygons):
    return shapely.MultiPolygon([shapely.Polygon(rings[0], rings[1:]) for rings in polygons])


@given(mask=masks, x=st.integers(-3, 10**6), y=st.integers(0, 10**6))
def test_polygons_are_valid_and_hold_the_pixels_of_the_mask_alone(mask, x, y):
    shape = shape_of(pixel_polygons(mask, (x, y)))
    rows, columns = np.mgrid[: mask.shape[0], : mask.shape[1]]
    assert shape.is_valid, shapely.is_valid_reason(shape)
    assert shape.area == mask.sum()
    assert (shapely.contains_xy(shape, columns + x + 0.5, rows + y + 0.5) == mask).all()


@given(mask=masks)
def test_outer_rings_run_clockwise_on_the_screen_and_holes_the_other_way(mask):
    for rings in pixel_polygons(mask):
        # In shapely's axes, y up, clockwise on the screen is counter-clockwise.
        assert shapely.LinearRing(rings[0]).is_ccw
        assert not any(shapely.LinearRing(ring).is_ccw for ring in rings[1:])


def test_a_rectangle_has_four_corners():
    (((rings),),) = [pixel_polygons(np.ones((2, 3), dtype=bool), (10, 20))]
    assert [ring.tolist() for ring in rings] == [[[10, 20], [13, 20], [13, 22], [10, 22]]]


def test_a_particle_pinched_twice_is_two_polygons_without_a_hole():
    mask = np.array([[0, 1, 1], [1, 0, 0], [1, 0, 0], [0, 1, 1]], dtype=bool)
    assert [len(rings) for rings in pixel_polygons(mask)] == [1, 1, 1]
    ring = np.array([[1, 1, 0], [1, 0, 1], [0, 1, 1]], dtype=bool)
    assert [len(rings) for rings in pixel_polygons(ring)] == [1, 1]
