import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from microplastics.errors import UserError
from microplastics.measurement.edge import edge_weights
from microplastics.measurement.intervals import weighted_poisson_interval


@given(*[st.integers(3, 40)] * 2, st.data())
def test_the_weights_of_all_places_are_as_many_as_the_places(width, height, data):
    w = data.draw(st.integers(1, width - 2))
    h = data.draw(st.integers(1, height - 2))
    # Of a box that fits inside the border, every place of its first pixel on the frame.
    x, y = (a.ravel() for a in np.meshgrid(np.arange(width), np.arange(height)))
    touching = (x == 0) | (y == 0) | (x + w >= width) | (y + h >= height)
    sizes = np.broadcast_to([w, h], (len(x), 2))
    frames = np.broadcast_to([width, height], (len(x), 2))
    weights = edge_weights(touching, sizes, frames, "weight")
    assert weights.sum() == pytest.approx(width * height)


def test_rules():
    touching = np.array([True, False])
    sizes, frames = [[10, 2], [19, 9]], [[40, 20], [40, 20]]
    assert edge_weights(touching, sizes, frames, "count").tolist() == [1, 1]
    assert edge_weights(touching, sizes, frames, "exclude").tolist() == [0, 1]
    found = edge_weights(touching, sizes, frames, "weight")
    assert found.tolist() == [0, pytest.approx(40 * 20 / (20 * 10))]


def test_no_particles_have_no_weights():
    for rule in ("count", "exclude", "weight"):
        assert edge_weights([], [], [], rule).shape == (0,)


def test_errors_are_said():
    with pytest.raises(UserError, match="'half' is none of count, exclude, weight"):
        edge_weights([], [], [], "half")
    with pytest.raises(UserError, match="a box as large as its image"):
        edge_weights([False], [[39, 3]], [[40, 20]], "weight")


def windows_of_a_field(rng, fields):
    """Weights and areas of discs and rods in 60 × 50 px windows of a field much larger."""
    density, frame = 8e-3, np.array([60, 50])
    for _ in range(fields):
        around = 60
        number = rng.poisson(density * (frame + 2 * around).prod())
        first = rng.uniform(-around, frame + around, (number, 2))
        rod = rng.random(number) < 0.4
        size = np.where(rod[:, None], [[24.0, 3.0]], rng.uniform(3, 20, (number, 1)))
        size = np.where((rod & (rng.random(number) < 0.5))[:, None], size[:, ::-1], size)
        start, stop = np.ceil(first - 0.5).astype(int), np.ceil(first + size - 0.5).astype(int)
        seen = (stop > 0).all(axis=1) & (start < frame).all(axis=1)
        touching = (start <= 0).any(axis=1) | (stop >= frame).any(axis=1)
        boxes = np.minimum(stop, frame) - np.maximum(start, 0)
        frames = np.broadcast_to(frame, boxes.shape)
        yield [
            (edge_weights(touching[seen], boxes[seen], frames[seen], rule), rod[seen])
            for rule in ("count", "exclude", "weight")
        ]


def test_a_window_counts_what_its_area_of_the_filter_holds():
    truth = 8e-3 * 60 * 50
    sums, rods, covered = [], [], []
    for rules in windows_of_a_field(np.random.default_rng(3), 1500):
        sums.append([weights.sum() for weights, _ in rules])
        rods.append([weights[rod].sum() for weights, rod in rules])
        weights = rules[2][0]
        bounds = weighted_poisson_interval(weights.sum(), (weights**2).sum(), weights.max())
        covered.append(bounds.low <= truth <= bounds.high)
    (counted, excluded, weighted), error = (
        np.mean(sums, axis=0),
        np.std(sums, axis=0)[2] / 1500**0.5,
    )
    assert weighted == pytest.approx(truth, abs=3 * error)
    assert counted > 1.4 * truth and excluded < 0.75 * truth
    assert np.mean(rods, axis=0)[2] == pytest.approx(0.4 * truth, rel=0.05)
    assert 0.94 < np.mean(covered)
