"""Exact and near-duplicate photographs."""

import pickle

import cv2
import numpy as np
import pytest

from microplastics.data.splits.similarity import find_duplicates, fingerprint


def photograph(seed, size=(192, 256), particles=6):
    """A noisy membrane with particles; two of them differ only by the seed."""
    rng = np.random.default_rng(seed)
    texture = cv2.GaussianBlur(rng.normal(0, 24, size), (0, 0), 2) + rng.normal(0, 2, size)
    image = np.repeat((150 + texture)[..., None], 3, axis=2)
    for _ in range(particles):
        centre = (int(rng.integers(size[1])), int(rng.integers(size[0])))
        cv2.circle(image, centre, int(rng.integers(4, 14)), (60, 80, 90), -1, cv2.LINE_AA)
    return np.clip(image, 0, 255).astype(np.uint8)


def crop(image, fraction):
    height, width = image.shape[:2]
    return image[round(height * fraction) :, round(width * fraction) :]


def jpeg(image, quality):
    return cv2.imdecode(cv2.imencode(".jpg", image, [1, quality])[1], cv2.IMREAD_COLOR)


COPIES = {
    "JPEG": lambda image: jpeg(image, 40),
    "half": lambda image: cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
    "double": lambda image: cv2.resize(image, None, fx=2, fy=2),
    "squeezed": lambda image: cv2.resize(image, (200, 200), interpolation=cv2.INTER_AREA),
    "brighter": lambda image: cv2.convertScaleAbs(image, alpha=1.3),
    "darker": lambda image: cv2.convertScaleAbs(image, alpha=0.7, beta=5),
    "flipped": lambda image: cv2.flip(image, 1),
    "turned": lambda image: cv2.rotate(image, cv2.ROTATE_90_CLOCKWISE),
    "mirrored": lambda image: image.transpose(1, 0, 2),
    "cropped": lambda image: crop(image, 0.05),
    "all": lambda image: jpeg(crop(cv2.rotate(image, cv2.ROTATE_180), 0.03), 60),
}


@pytest.mark.parametrize("copy", COPIES.values(), ids=COPIES)
def test_copies_are_found_and_nothing_else(copy):
    images = [photograph(seed) for seed in range(12)]
    prints = [fingerprint(image) for image in (*images, *map(copy, images))]
    duplicates = find_duplicates(prints)
    assert duplicates.exact == []
    assert duplicates.near == [[n, n + 12] for n in range(12)]


def test_filters_that_look_alike_are_not_copies():
    blanks = [photograph(seed, particles=0) for seed in range(20)]
    # Each with one bead close to the middle: alike but for the membrane's texture.
    beads = [
        cv2.circle(b.copy(), (128 + n % 5, 96), 30, (40, 40, 40), -1) for n, b in enumerate(blanks)
    ]
    duplicates = find_duplicates([fingerprint(image) for image in (*blanks, *beads)])
    within = [group for group in duplicates.near if len({index % 20 for index in group}) > 1]
    assert duplicates.exact == [] and within == []


def test_exact_copies_are_named_apart_from_near_ones():
    one, two, three = (photograph(seed) for seed in range(3))
    images = [one, two, one, cv2.flip(two, 0), two, three, one.copy()]
    duplicates = find_duplicates([fingerprint(image) for image in images])
    assert duplicates.exact == [[0, 2, 6], [1, 4]]
    assert duplicates.near == [[1, 3, 4]]


def test_images_of_one_colour_are_only_exact_duplicates():
    grey = np.full((40, 60, 3), 90, np.uint8)
    prints = [fingerprint(image) for image in (grey, grey + 1, grey, grey[:, ::2].copy())]
    duplicates = find_duplicates(prints)
    assert duplicates.exact == [[0, 2]] and duplicates.near == []


def test_the_shape_counts_for_identity():
    grey = np.zeros((4, 6, 3), np.uint8)
    assert fingerprint(grey).sha256 != fingerprint(grey.reshape(6, 4, 3)).sha256
    view = np.zeros((8, 6, 3), np.uint8)[::2]
    assert fingerprint(view).sha256 == fingerprint(grey).sha256


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 500, 3), (3000, 2, 3)])
def test_odd_shapes_have_a_fingerprint(shape):
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    print_ = fingerprint(image)
    assert find_duplicates([print_, fingerprint(255 - image)]).exact == []
    restored = pickle.loads(pickle.dumps(print_))
    assert find_duplicates([print_, restored]).exact == [[0, 1]]
    assert len(pickle.dumps(print_)) < 18_000


def test_nothing_and_one():
    assert find_duplicates([]).near == []
    assert find_duplicates([fingerprint(photograph(0))]).exact == []
