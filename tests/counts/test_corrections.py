import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import user_error

from microplastics.counts.corrections import (
    Counts,
    Sampling,
    concentration_columns,
    correct_for_blanks,
    edge_weights,
    parse_volume,
)
from microplastics.counts.intervals import poisson_interval, weighted_poisson_interval
from microplastics.utils.errors import UserError


def counts(*numbers):
    sums = np.array(numbers, dtype=float)
    return Counts(sums.astype(int), sums, sums, np.ones(len(sums)))


@pytest.mark.parametrize(
    ("sample", "blank", "blanks", "area"), [(20, 4, 3, 1), (5, 1, 1, 1), (3, 6, 4, 2.5)]
)
def test_the_corrected_count_is_unbiased_and_covered(sample, blank, blanks, area):
    rng = np.random.default_rng(11)
    rows = 3000  # samples, each with blanks of its own
    found = rng.poisson(sample + blank * area, rows)
    empty = rng.poisson(blank, (rows, blanks))
    exposures = np.array([area, *[1.0] * blanks])
    is_blank = np.array([False] + [True] * blanks)
    results = [
        correct_for_blanks(counts(one, *own), exposures, is_blank)
        for one, own in zip(found, empty, strict=True)
    ]
    raw = np.array([result["count_corrected_unclipped"][0] for result in results])
    sds = np.array([result["count_corrected_sd"][0] for result in results])
    assert raw.mean() == pytest.approx(sample, abs=4 * raw.std() / rows**0.5)
    assert np.mean(sds**2) == pytest.approx(raw.var(), rel=0.1)
    covered = [
        r["count_corrected_low"][0] <= sample <= r["count_corrected_high"][0] for r in results
    ]
    assert 0.945 < np.mean(covered) <= 1


def test_limits_follow_from_the_blanks():
    found = correct_for_blanks(counts(9, 1, 2, 3), np.ones(4), np.array([False, True, True, True]))
    assert found["lod"][0] == pytest.approx(2 + 3.3)
    assert found["loq"][0] == pytest.approx(2 + 10)
    k = 1.6448536
    assert found["currie_detection_limit"][0] == pytest.approx(
        2 + k**2 + 2 * k * np.sqrt(2 + 6 / 9)
    )


def test_empty_blanks_take_nothing_off():
    found = correct_for_blanks(counts(9, 0), np.ones(2), np.array([False, True]))
    assert found["count_corrected"][0] == 9
    # None found is not none there.
    assert found["count_corrected_low"][0] < counts(9).interval().low[0]
    assert found["count_corrected_high"][0] == pytest.approx(counts(9).interval().high[0])


def test_less_than_the_blanks_is_none():
    found = correct_for_blanks(counts(1, 30), np.ones(2), np.array([False, True]))
    ends = ("", "_low", "_high", "_unclipped")
    assert [found[f"count_corrected{end}"][0] for end in ends] == [0, 0, 0, -29]


@pytest.mark.parametrize(
    ("text", "liters"),
    [
        ("2 L", 2),
        ("2l", 2),
        ("0.5 m3", 500),
        (" 0.5 m³ ", 500),
        ("300 mL", 0.3),
        ("3e2 ml", 0.3),
        ("5 dL", 0.5),
        ("1 litre", 1),
        ("1.5 hl", 150),
        ("10 cm3", 0.01),
    ],
)
def test_volumes(text, liters):
    assert parse_volume(text) == pytest.approx(liters)


@pytest.mark.parametrize(
    "text",
    ["", "2", "L", "0,5 L", "1.2.3 L", "-2 L", "0 L", "1e999 L", "nan L", "2 gallons", "9" * 10**6],
)
def test_what_is_not_a_volume_is_refused(text):
    with user_error("option_invalid", "sampled volume", "2 L, 0.5 m3") as error:
        parse_volume(text)
    assert len(str(error.value)) < 250


@given(st.text(max_size=30))
def test_any_text_is_a_volume_or_an_error(text):
    try:
        assert parse_volume(text) > 0
    except UserError:
        pass


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0.0,), "The sampled volume is 0 L"),
        (({"river": np.nan},), "The sampled volume of river is nan L"),
        ((1.0, 0.0), "The counted fraction is 0"),
        ((1.0, 1.1), "at most 1"),
        ((1.0, np.nan), "The counted fraction is nan"),
        ((1.0, 1.0, -3.0), "The filter's area is -3 mm²"),
    ],
)
def test_samplings_that_cannot_be_are_refused(arguments, words):
    with user_error("option_invalid", words):
        Sampling(*arguments)


def test_the_counted_volume_follows_from_the_area():
    sampling = Sampling({"a": 2.0, "b": 1.0}, filter_area_mm2=100)
    assert sampling.counted_liters(["a", "b"], np.array([50.0, 100.0])).tolist() == [1, 1]
    with user_error("scale_missing", "The images of a "):
        sampling.counted_liters(["a"], np.array([np.nan]))
    assert Sampling(3.0, 0.5).counted_liters(["a"], np.array([np.nan])).tolist() == [1.5]


def test_intervals_scale_as_the_estimates():
    counts = np.array([0.0, 12.0])
    found = concentration_columns(counts, poisson_interval(counts), np.array([0.5, 0.5]), "_x")
    assert found["particles_per_l_x"].tolist() == [0, 24]
    assert found["particles_per_m3_x"].tolist() == [0, 24_000]
    assert found["particles_per_l_x_low"][1] == pytest.approx(poisson_interval(12).low * 2)
    assert list(found) == [
        *("particles_per_l_x", "particles_per_l_x_low", "particles_per_l_x_high"),
        *("particles_per_m3_x", "particles_per_m3_x_low", "particles_per_m3_x_high"),
    ]


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


def test_boxes_that_cannot_be():
    with user_error("table_invalid", "bbox_w", "touches_edge"):
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
