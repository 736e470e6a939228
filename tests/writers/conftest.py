"""Small particles whose every pixel is known."""

import numpy as np
import pytest

from microplastics.calibration import Calibration
from microplastics.measurement.table import particle_table
from microplastics.structures.particles import Particles
from microplastics.writers.tables import ImageResult

CLASSES = ("Fiber", "Fragment", "Film")
SHAPES = (
    np.ones((2, 9), dtype=bool),
    np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]], dtype=bool),  # a hole
    np.array([[1, 0, 0], [0, 1, 1]], dtype=bool),  # two parts that touch at a corner
)


class Photograph:
    """What an overlay reads."""

    def __init__(self, array):
        self.array = array
        self.height, self.width = array.shape[:2]

    def overview(self, max_side):
        step = -(-max(self.array.shape[:2]) // max_side)
        return self.array[::step, ::step], float(step)


@pytest.fixture(scope="session")
def photograph():
    return Photograph


@pytest.fixture(scope="session")
def make_result():
    """Builds the result of one image: ``make_result(masks, offsets, classes, …)``."""

    def build(
        masks=SHAPES,
        offsets=((3, 4), (20, 10), (30, 30)),
        classes=CLASSES,
        *,
        size=(40, 50),
        image="a/x.jpg",
        ids=None,
        scores=None,
        um_per_px=2.0,
        photo=None,
    ):
        count = len(masks)
        particles = Particles(
            image,
            size,
            list(masks),
            np.array(offsets, dtype=np.int64).reshape(-1, 2),
            list(classes),
            np.linspace(0.5, 1, count) if scores is None else np.array(scores, dtype=float),
            np.arange(1, count + 1) if ids is None else np.array(ids, dtype=np.int64),
        )
        calibration = None if um_per_px is None else Calibration(um_per_px, "stage micrometer, µm")
        table = particle_table(particles, calibration)
        return ImageResult(particles, table, CLASSES, calibration, photo)

    return build


@pytest.fixture(scope="session")
def frame():
    """Paints one particle of a result into the whole image."""

    def paint(result, index):
        particles = result.particles
        whole = np.zeros(particles.image_size, dtype=bool)
        (x, y), mask = particles.offsets[index], particles.masks[index]
        whole[y : y + mask.shape[0], x : x + mask.shape[1]] = mask
        return whole

    return paint
