"""Tests of tiled prediction, with the truth in place of the model."""

import cv2
import numpy as np
import pytest
import torch
from detectron2.structures import Boxes

from microplastics.data.large_images import ImageReader
from microplastics.data.painting import PaintedRegions
from microplastics.data.tiling import Tiling
from microplastics.inference.predictor import Predictions
from microplastics.inference.tiled import particle_pixels, predict_tiled
from microplastics.measurement.table import particle_table
from microplastics.roi.region import Region
from microplastics.runs.images import within
from microplastics.structures.crop_masks import CropMasks

SIZE = (700, 900)


def in_memory(pixels):
    reader = ImageReader("a.png", pixels.shape[1], pixels.shape[0])
    reader.decoded = pixels
    return reader


@pytest.fixture(scope="module")
def scene():
    """Render a photograph with one colour per class; its last columns are constant."""
    image = np.random.default_rng(3).integers(40, 60, (*SIZE, 3), dtype=np.uint8)
    image[:, 640:] = 7
    fibre = np.array([[20, 30], [200, 300], [400, 200], [600, 650]], np.int32)
    cv2.polylines(image, [fibre], False, (0, 0, 200), 6)
    for number, center in enumerate([(100, 600), (256, 256), (500, 100), (330, 500)]):
        cv2.circle(image, center, 12 + 5 * number, (0, 200 - number, 0), -1)
    cv2.rectangle(image, (40, 420), (230, 520), (200, 0, 0), -1)
    return image


class Oracle:
    """Detects particles by colour, each as a whole, up to a largest size in px.

    ``scale`` and ``dense`` are as of ``Predictor``.
    """

    class_names = ["Fiber", "Fragment", "Film"]

    def __init__(self, largest=10**6):
        self.largest = largest

    def predict_many(self, images, dense, scale):
        assert dense and scale == 1.0
        for image in images:
            yield self.predict(image)

    def predict(self, image):
        masks, classes = [], []
        red = (image[:, :, 2] > 120) & (image[:, :, 1] < 60)
        blue = image[:, :, 0] > 120
        greens = [image[:, :, 1] == 200 - number for number in range(4)]
        for number, mask in zip([0, 2, 1, 1, 1, 1], [red, blue, *greens], strict=True):
            if mask.sum() > 8 and max(np.ptp(np.nonzero(mask), axis=1)) < self.largest:
                masks.append(mask)
                classes.append(number)
        stack = np.array(masks).reshape(-1, *image.shape[:2])
        found = Predictions(image.shape[:2])
        found.pred_masks = CropMasks.from_bitmasks(stack)
        found.pred_boxes = Boxes(found.pred_masks.get_bounding_boxes().tensor)
        found.scores = torch.full((len(masks),), 0.9)
        found.pred_classes = torch.tensor(classes, dtype=torch.int64)
        return found


def truth(image):
    found = Oracle().predict(image)
    return [found.pred_masks[i] for i in range(len(found))], found.pred_classes.tolist()


def test_windows_far_from_the_region_are_not_predicted(scene):
    region = Region.from_circle((330.5, 500.5), 60, SIZE)
    tiling = Tiling(128, 32, 0, 1.0)
    particles, counts = predict_tiled(
        Oracle(), in_memory(scene), "a", tiling, region=region, join=False, quiet=True
    )
    assert counts.outside > 20
    inside, rows = within(particles, particle_table(particles, None), region)
    (disc,) = inside.masks
    assert len(particles) > 1 and disc.shape == (55, 55)  # whole, though it meets four windows
    assert rows["particle"].tolist() == inside.ids.tolist() != [1]


@pytest.mark.parametrize(("tile", "overlap"), [(128, 32), (200, 100), (256, 64)])
def test_every_particle_comes_out_once_and_whole(scene, tile, overlap):
    tiling = Tiling(tile, overlap, 0, 1.0)
    particles, counts = predict_tiled(
        Oracle(), in_memory(scene), "a", tiling, join=False, quiet=True
    )
    masks, classes = truth(scene)
    assert sorted(particles.classes) == sorted(Oracle.class_names[number] for number in classes)
    assert counts.windows and counts.constant
    found = CropMasks(list(particles.masks), particles.offsets, SIZE)
    for mask in masks:
        areas = [int((found[i].to_bitmasks() & mask.to_bitmasks()).sum()) for i in range(6)]
        assert max(areas) == int(mask.area()) == int(found.area()[int(np.argmax(areas))])
    for index, name in enumerate(particles.classes):
        color = np.median(particles.pixels[index], axis=0)
        assert color.argmax() == {"Film": 0, "Fragment": 1, "Fiber": 2}[name]


def test_the_coarse_pass_finds_what_no_window_holds(scene):
    tiling = Tiling(128, 32, 4, 1.0)
    oracle = Oracle(largest=120)  # sees nothing that fills its window
    particles, counts = predict_tiled(oracle, in_memory(scene), "a", tiling, quiet=True)
    assert counts.coarse and particles.classes.count("Film") == 1
    film = particles.masks[particles.classes.index("Film")]
    assert np.count_nonzero(film) == pytest.approx(191 * 101, rel=0.05)
    without = Tiling(128, 32, 0, 1.0)
    particles, _ = predict_tiled(oracle, in_memory(scene), "a", without, quiet=True)
    areas = [np.count_nonzero(mask) for mask in particles.masks]
    assert max(areas) < 191 * 101 / 2


def test_particle_pixels_are_read_inside_the_mask():
    image = np.arange(60 * 50 * 3, dtype=np.uint8).reshape(60, 50, 3)
    masks, offsets = [np.eye(20, dtype=bool), np.ones((3, 4), bool)], np.array([[5, 7], [40, 50]])
    found = particle_pixels(in_memory(image), masks, offsets)
    assert np.array_equal(found[0], image[np.arange(7, 27), np.arange(5, 25)])
    assert np.array_equal(found[1], image[50:53, 40:44].reshape(-1, 3))


def test_a_scale_bar_is_painted_over():
    image = np.full((50, 80, 3), 90, np.uint8)
    image[40:44, 60:75] = 255
    regions = PaintedRegions(in_memory(image), [(58, 38, 20, 8)])
    assert (regions.read(0, 0, 80, 50) == 90).all()
    assert (regions.read(60, 41, 70, 50) == 90).all()
    assert image[41, 61, 0] == 255
