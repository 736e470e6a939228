"""Exact and near-duplicate photographs."""

import pickle

import cv2
import numpy as np
import pytest

from microplastics.data.splits.similarity import Link, find_duplicates, fingerprint, join


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
    "refocused": lambda image: cv2.GaussianBlur(image, (0, 0), 1.5),
    "turned by 5°": lambda image: cv2.warpAffine(
        image, cv2.getRotationMatrix2D((128, 96), 5, 1.15), (256, 192)
    ),
    "cropped by 30 %": lambda image: crop(image, 0.3),
    "all": lambda image: jpeg(crop(cv2.rotate(image, cv2.ROTATE_180), 0.03), 60),
}


@pytest.mark.parametrize("copy", COPIES.values(), ids=COPIES)
def test_copies_are_found_and_nothing_else(copy):
    images = [photograph(seed) for seed in range(6)]
    prints = [fingerprint(image) for image in (*images, *map(copy, images))]
    duplicates = find_duplicates(prints)
    assert duplicates.exact == []
    assert duplicates.near == [[n, n + 6] for n in range(6)]


def found_among(images):
    return find_duplicates([fingerprint(image) for image in images]).near


def test_overlapping_places_are_found():
    # A row of fields of view, each of which shares 60 % with the next, and 20 % with the one after.
    wide = photograph(1, size=(192, 1000), particles=30)
    fields = [wide[:, left : left + 256] for left in range(0, 700, 102)]
    others = [photograph(seed) for seed in range(2, 8)]
    duplicates = find_duplicates([fingerprint(image) for image in (*fields, *others)])
    assert duplicates.near == [list(range(len(fields)))]
    steps = {other - one for one, other in duplicates.links}
    assert {1} <= steps <= {1, 2}


def test_filters_that_look_alike_are_not_copies():
    blanks = [photograph(seed, particles=0) for seed in range(12)]
    # Each with one bead close to the middle: alike but for the membrane's texture.
    beads = [
        cv2.circle(b.copy(), (128 + n % 5, 96), 30, (40, 40, 40), -1) for n, b in enumerate(blanks)
    ]
    groups = found_among([*blanks, *beads])
    assert [group for group in groups if len({index % 12 for index in group}) > 1] == []


def band(seed, shift):
    """One of several places of a filter with its own dirt, and a soft dark band across it."""
    rng = np.random.default_rng(seed)
    image = 175 + cv2.GaussianBlur(rng.normal(0, 20, (750, 1000)), (0, 0), 2)
    for _ in range(120):
        centre = int(rng.integers(1000)), int(rng.integers(750))
        cv2.circle(image, centre, int(rng.integers(1, 5)), float(rng.integers(70, 140)), -1)
    line = np.zeros((750, 1000), np.float32)
    cv2.line(line, (480 + shift, 800), (1000 + shift, -50), 1.0, 90)
    image *= 1 - 0.75 * cv2.GaussianBlur(line, (0, 0), 6)
    return cv2.cvtColor(np.clip(image, 0, 255).astype(np.uint8), cv2.COLOR_GRAY2BGR)


@pytest.mark.parametrize("shift", [0, 40])
def test_places_that_share_a_soft_dark_band_are_not_copies(shift):
    assert found_among([band(seed, shift * (seed % 2)) for seed in range(8)]) == []


def draw_bar(image):
    cv2.line(image, (400, 440), (600, 440), (0, 0, 0), 3)
    cv2.putText(image, "500 um", (420, 425), cv2.FONT_HERSHEY_SIMPLEX, 1, (0, 0, 0), 2)


def draw_dust(image):
    rng = np.random.default_rng(99)
    for _ in range(25):
        centre = int(rng.integers(640)), int(rng.integers(480))
        cv2.circle(image, centre, int(rng.integers(2, 6)), (90, 90, 90), -1, cv2.LINE_AA)


def draw_grid(image):
    for x in range(60, 640, 200):
        cv2.line(image, (x, 0), (x, 480), (20, 20, 20), 6)
        cv2.line(image, (0, x), (640, x), (20, 20, 20), 6)


def draw_rim(image):
    cv2.circle(image, (320, 900), 700, (10, 10, 10), 40)


def draw_mesh(image):
    y, x = np.mgrid[:480, :640]
    threads = cv2.GaussianBlur(np.float32((x % 24 < 8) | (y % 24 < 8)), (0, 0), 1.5)
    image[:] = np.clip(image - 40 * threads[..., None], 0, 255)


@pytest.mark.parametrize("draw", [draw_bar, draw_dust, draw_grid, draw_rim, draw_mesh])
def test_what_different_photographs_share_does_not_make_them_copies(draw):
    images = [photograph(seed, size=(480, 640)) for seed in range(8)]
    for image in images:
        draw(image)
    assert found_among(images) == []
    assert found_among([images[0], images[1], cv2.convertScaleAbs(images[0], alpha=0.8)]) == [
        [0, 2]
    ]


def test_a_wrong_link_does_not_chain_groups():
    certain = [Link(a, b, 0.99, 90) for a, b in ((0, 1), (1, 2), (3, 4), (4, 5), (6, 7))]
    doubtful = [Link(2, 3, 0.65, 35), Link(5, 6, 0.62, 31), Link(7, 8, 0.61, 30)]
    assert join(certain + doubtful) == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    # A second one, or a certain one, joins them; so does one to an image that is alone.
    assert join([*certain, *doubtful, Link(0, 5, 0.6, 32)]) == [[0, 1, 2, 3, 4, 5], [6, 7, 8]]
    assert join([*certain, Link(5, 6, 0.9, 40)]) == [[0, 1, 2], [3, 4, 5, 6, 7]]
    assert join([]) == []


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
    assert len(pickle.dumps(print_)) < 80_000


def test_nothing_and_one():
    assert find_duplicates([]).near == []
    assert find_duplicates([fingerprint(photograph(0))]).exact == []
