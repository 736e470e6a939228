"""microplastics/roi/circle.py."""

import cv2
import numpy as np
import pytest

from microplastics.roi.circle import NoCircleError, find_circle

HEIGHT, WIDTH = 420, 520


def draw(circles, stage=20.0, seed=0, noise=3.0, dirt=30):
    """Discs (x, y, radius, grey) one on the other, with fibres, dirt and noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    image = np.full((HEIGHT, WIDTH), stage, np.float32)
    for cx, cy, radius, grey in circles:
        image += np.clip(radius - np.hypot(x - cx, y - cy) + 0.5, 0, 1) * (grey - image)
    cx, cy, radius, _ = circles[-1] if circles else (WIDTH / 2, HEIGHT / 2, HEIGHT / 2, 0)
    for _ in range(dirt):
        angle, far = rng.uniform(0, 2 * np.pi), radius * np.sqrt(rng.uniform(0, 1.1))
        at = np.array([cx + far * np.cos(angle), cy + far * np.sin(angle)])
        end = at + rng.uniform(-50, 50, 2)
        ends = [tuple(int(v) for v in place) for place in (at, end)]
        if rng.random() < 0.5:
            cv2.line(image, *ends, float(rng.uniform(0, 255)), 2)
        else:
            cv2.circle(image, ends[0], int(rng.integers(2, 9)), float(rng.uniform(0, 255)), -1)
    image *= 1 + 0.2 * (x / WIDTH - 0.5)  # uneven light
    texture = cv2.GaussianBlur(rng.normal(0, 1, image.shape), (0, 0), 1.5)
    image = cv2.GaussianBlur(image, (0, 0), 0.7) + texture / texture.std() * noise
    return np.repeat(np.clip(image, 0, 255).astype(np.uint8)[..., None], 3, axis=2)


def found(image):
    circle = find_circle(image)
    # Not of numpy: they are written to JSON.
    assert all(type(value) in (float, bool) for value in vars(circle).values())
    return circle.x, circle.y, circle.radius


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("stage", "grey"), [(20, 190), (230, 150), (120, 80)])
def test_a_disc_is_found_to_a_tenth_of_a_pixel(stage, grey, seed):
    rng = np.random.default_rng(seed)
    radius = rng.uniform(100, 190)
    truth = (260 + rng.uniform(-20, 20), 210 + rng.uniform(-15, 15), radius)
    image = draw([(*truth, grey)], stage, seed)
    assert found(image) == pytest.approx(truth, abs=0.1)


@pytest.mark.parametrize(
    "truth", [(260.3, 60.7, 190.2), (100.5, 100.2, 180.4), (260.1, 210.9, 240.6)]
)
def test_a_disc_that_the_border_cuts(truth):
    assert found(draw([(*truth, 190)])) == pytest.approx(truth, abs=0.4)


def test_the_inner_edge_of_a_ring_bounds_the_deposit():
    image = draw([(260, 210, 195, 120), (261.2, 209.4, 170.3, 200)])
    assert found(image) == pytest.approx((261.2, 209.4, 170.3), abs=0.3)


def test_a_pressed_line_bounds_the_deposit():
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    line = 1 - 0.08 * np.exp(-(((np.hypot(x - 258.6, y - 211.3) - 172.4) / 2) ** 2))
    image = draw([(258.6, 211.3, 195, 200)], noise=2.0, dirt=8)
    image = (image * line[..., None]).astype(np.uint8)
    assert found(image) == pytest.approx((258.6, 211.3, 172.4), abs=1.0)


def test_an_edge_only_of_colour():
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    inside = np.hypot(x - 255.3, y - 205.8) < 150.4
    lab = np.full((HEIGHT, WIDTH, 3), (140, 128, 128), np.uint8)
    lab[inside, 1] = 165
    image = cv2.cvtColor(lab, cv2.COLOR_LAB2BGR)
    # Grey levels of sRGB are rounded: its edge is as good as its pixels.
    assert found(image) == pytest.approx((255.3, 205.8, 150.4), abs=0.5)


@pytest.mark.parametrize(
    ("circles", "words"),
    [
        ([], "no circle"),
        ([(140, 210, 100, 190), (390, 210, 100, 190)], "side by side or across"),
        ([(260, 210, 195, 120), (240, 200, 95, 200)], "small circle in a large one"),
        ([(260, 210, 190, 26)], "too dark for the deposit's rim"),
    ],
)
def test_what_is_not_certain_is_refused(circles, words):
    stage = 5.0 if circles and circles[-1][3] < 40 else 20.0
    with pytest.raises(NoCircleError, match=words):
        find_circle(draw(circles, stage, noise=0.5 if stage < 20 else 3.0, dirt=10))


@pytest.mark.parametrize("form", ["ellipse", "square", "gradient", "noise", "black", "tiny"])
def test_other_forms_are_refused(form):
    rng = np.random.default_rng(0)
    image = np.full((HEIGHT, WIDTH, 3), 40.0, np.float32)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    if form == "ellipse":
        cv2.ellipse(image, (260, 210), (200, 160), 20, 0, 360, (200, 200, 200), -1)
    elif form == "square":
        image[60:360, 100:400] = 200
    elif form == "gradient":
        image += 150 * np.exp(-((x - 250) ** 2 + (y - 200) ** 2) / 2e4)[..., None]
    image += rng.normal(0, 3, image.shape)
    image = {"black": image * 0, "tiny": image[:3, :2]}.get(form, image)
    with pytest.raises(NoCircleError):
        find_circle(np.clip(image, 0, 255).astype(np.uint8))


def test_a_rendered_photograph_is_refused(tmp_path):
    from microplastics.synthetic import render_dataset

    render_dataset(tmp_path / "d", {"train": 3}, size=256, um_per_px=2.0, seed=5, workers=1)
    pictures = list(tmp_path.glob("d/train/*.jpg"))
    assert len(pictures) == 3
    for picture in pictures:
        with pytest.raises(NoCircleError):
            find_circle(cv2.imread(str(picture)))


def test_a_rendered_filter_is_found(tmp_path):
    from microplastics.data.large_images import open_reader
    from microplastics.synthetic.whole_filter import draw_membrane, render_mosaic

    path = tmp_path / "filter.tif"
    render_mosaic(path, 1024, seed=34, particles=20, filter_name="polycarbonate", workers=1)
    deposit = draw_membrane(34, 1024)
    with open_reader(path) as reader:
        image, _ = reader.overview(1024)
    circle = find_circle(image)
    assert (circle.x, circle.y) == pytest.approx(deposit.center, abs=3)
    assert circle.radius == pytest.approx(deposit.deposit_radius, abs=2)
