import cv2
import numpy as np
import pytest
from pycocotools import mask as mask_util

from microplastics.data.synthetic import mosaic_render
from microplastics.data.synthetic.mosaic_plan import MosaicSettings, ground_of, plan_particles
from microplastics.data.synthetic.mosaic_render import _Light, meets, render_window

SIZE = 1500
SETTINGS = MosaicSettings(SIZE, 2.0, 2, 70, "default", "glass_fiber", None)


def stitched(laid, chunk, settings=SETTINGS):
    image = np.zeros((SIZE, SIZE, 3), np.uint8)
    for y in range(0, SIZE, chunk):
        for x in range(0, SIZE, chunk):
            near = [one for one in laid if meets(one, x, y, chunk)]
            piece = render_window(settings, x, y, chunk, near)
            image[y : y + chunk, x : x + chunk] = piece
    return image


@pytest.fixture(scope="module")
def plan():
    return plan_particles(SETTINGS, progress=False)


@pytest.fixture(scope="module")
def picture(plan):
    return stitched(plan[0], 512)


def masks_of(annotations):
    for annotation in annotations:
        rle = annotation["segmentation"]
        if isinstance(rle, list):
            (rle,) = mask_util.frPyObjects(rle, SIZE, SIZE)
        yield mask_util.decode(rle)


def assert_same(one, other):
    difference = np.abs(one.astype(int) - other)
    # Sums of floats in another order may round over to the next grey value.
    assert difference.max() <= 1 and (difference > 0).mean() < 1e-3


def test_pieces_of_any_size_give_one_picture(plan, picture):
    assert_same(stitched(plan[0], 1024), picture)


def test_a_long_fiber_has_no_seam_between_its_blocks(plan, picture, monkeypatch):
    monkeypatch.setattr(mosaic_render, "BLOCK", 512)
    assert_same(stitched(plan[0], 512), picture)


@pytest.mark.parametrize("name", ["glass_fiber", "polycarbonate", "dark_polycarbonate"])
def test_no_border_of_cells_pieces_or_blocks_is_seen(name):
    settings = MosaicSettings(SIZE, 2.0, 3, 0, "default", name, None)
    gray = cv2.cvtColor(stitched([], 512, settings), cv2.COLOR_BGR2GRAY).astype(float)
    for lines in (gray[300:1200, 200:1300], gray[200:1300, 300:1200].T):
        steps, contrast = np.abs(np.diff(lines, axis=1)).mean(0), lines.std(0)
        around = np.median(np.lib.stride_tricks.sliding_window_view(steps, 31), axis=1)
        # Entry c of ``off`` is the step onto column 216 + c of the picture.
        off = steps[15:-15] - around
        spread = 1.48 * np.median(np.abs(off))
        assert all(abs(off[border - 216]) < 4.5 * spread for border in (256, 512, 768, 1024))
        bands = [contrast[border - 232 : border - 168].mean() for border in (256, 768)]
        assert np.mean(bands) == pytest.approx(contrast.mean(), rel=0.2)


def test_what_is_annotated_is_what_is_drawn(plan, picture):
    empty = stitched([], 512)
    changed = np.abs(picture.astype(int) - empty).max(2)
    covered = np.zeros((SIZE, SIZE), np.uint8)
    for mask in masks_of(plan[1]):
        covered |= mask
        inside = cv2.erode(mask, np.ones((3, 3), np.uint8)) > 0
        assert (changed[inside] > 8).mean() > 0.8
    far = cv2.dilate(covered, np.ones((29, 29), np.uint8)) == 0
    assert far.mean() > 0.5 and not changed[far].any()


def test_around_the_membrane_it_is_dark(picture):
    membrane = ground_of(SETTINGS).membrane
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5
    r = np.hypot(x - membrane.center[0], y - membrane.center[1])
    inside, outside = picture[r < 0.98 * membrane.radius], picture[r > 1.02 * membrane.radius]
    assert np.median(inside) > 120 and np.percentile(outside, 99) < 60


def test_fields_of_the_microscope_differ_faintly():
    light = _Light(5, 2048)._fields(0, 0, 2048)
    assert 0.005 < light.std() < 0.04 and np.ptp(light) < 0.2
    assert 1e-4 < np.abs(np.diff(light, axis=1)).max() < 0.02
    assert np.allclose(
        _Light(5, 2048)._fields(700, 900, 512)[8:-8, 8:-8], light[908:1404, 708:1204]
    )
