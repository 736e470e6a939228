"""Places on photographs and histograms for the doctor's report."""

import io
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from microplastics.data.doctor.diagnosis import DatasetSummary, Example, Finding
from microplastics.report.doctor_pictures import draw_histograms, draw_place, draw_places

ORANGE, BLUE = (213, 94, 0), (0, 114, 178)


def finding(*examples):
    return Finding("odd", "warning", "odd things", "Worse AP.", "Mend them.", 3, list(examples))


def summary(**more):
    values = {
        "class_of": ["Fiber", "Film"],
        "particles_per_image": [0, 1, 1],
        "size_px": [12.0, 40.0],
        "long_side_px": [60.0, 50.0],
        "aspect_ratio": [12.0, 1.2],
        "um_per_px": [2.0, None],
    }
    return DatasetSummary("train.json", "images", **{**values, **more})


def save(path, width=120, height=90, color=(40, 50, 60)):
    Image.new("RGB", (width, height), color).save(path)
    return str(path)


def colors(picture):
    return {tuple(pixel) for pixel in picture.reshape(-1, 3).tolist()}


def test_a_place_is_drawn_around_its_box():
    image = np.zeros((200, 300, 3), np.uint8)
    image[90:110, 140:180] = (0, 255, 0)
    picture = draw_place(image, [((140, 90, 40, 20), ORANGE)], 300)
    assert colors(picture) == {(0, 0, 0), (0, 255, 0), (255, 255, 255), ORANGE}
    # 0.6 of the longer side around: 88 px by 68 px, three times as large.
    assert picture.shape == (204, 264, 3)
    green = np.argwhere((picture == (0, 255, 0)).all(axis=2))
    assert (green.min(axis=0).tolist(), len(green)) == ([72, 72], 60 * 120)
    assert (picture[71, 72:192] == ORANGE).all()
    both = draw_place(image, [((5, 5, 9, 9), ORANGE), ((200, 150, 9, 9), BLUE)], 300)
    assert {ORANGE, BLUE} < colors(both)


def test_a_large_photograph_is_made_smaller_and_a_box_at_its_border_stays_visible():
    image = np.zeros((1000, 2000, 3), np.uint8)
    picture = draw_place(image, [((0, 0, 2000, 1000), ORANGE)], 300)
    assert picture.shape == (150, 300, 3)
    assert (picture[[0, -1]] == ORANGE).all()
    assert draw_place(image, [], 300).shape == (150, 300, 3)


numbers = st.one_of(
    st.integers(-50, 200), st.floats(allow_nan=True), st.sampled_from([1e308, -1e308, 0.0])
)


@given(st.lists(st.tuples(numbers, numbers, numbers, numbers), max_size=3))
@settings(max_examples=150, deadline=None)
def test_any_box_of_a_stranger_gives_a_picture(boxes):
    image = np.full((40, 60, 3), 9, np.uint8)
    picture = draw_place(image, [(box, ORANGE) for box in boxes], 100)
    assert picture.dtype == np.uint8
    assert 1 <= min(picture.shape[:2]) <= max(picture.shape[:2]) <= 100


def test_pairs_and_images_that_cannot_be_read(tmp_path):
    one, two = save(tmp_path / "1.png"), save(tmp_path / "2.png", color=(200, 0, 0))
    (tmp_path / "cut.png").write_bytes((tmp_path / "1.png").read_bytes()[:60])
    (tmp_path / "text.jpg").write_text("no image")
    findings = [
        finding(Example("pair", image=one, other_image=two)),
        finding(
            Example("cut", image=str(tmp_path / "cut.png"), other_image=two),
            Example("text", image=str(tmp_path / "text.jpg")),
            Example("gone", image=str(tmp_path / "gone.png")),
            Example("no image"),
        ),
    ]
    (pair,), (cut, text, gone, none) = draw_places(findings)
    assert (len(pair.jpegs), pair.why) == (2, "")
    reds = [np.asarray(Image.open(io.BytesIO(data)))[5, 5, 0] for data in pair.jpegs]
    assert reds == pytest.approx([40, 200], abs=3)
    assert len(cut.jpegs) == 1
    assert "cut.png" in cut.why
    assert "text.jpg is not an image" in text.why
    assert "gone.png does not exist" in gone.why
    assert none == type(none)()


def test_pictures_keep_within_their_bytes(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    findings = [
        finding(*(Example(str(n), image=str(tmp_path / "noise.png")) for n in range(5)))
        for _ in range(4)
    ]
    free, bound = (
        sum(
            len(data)
            for of_finding in draw_places(findings, limit)
            for p in of_finding
            for data in p.jpegs
        )
        for limit in (10**9, 400_000)
    )
    assert 200_000 < bound <= 400_000 < free


def test_histograms_stand_only_where_there_are_values():
    titles = [h.title.split(":")[0] for h in draw_histograms([summary()], ["Fiber", "Film"], ["t"])]
    assert titles == [
        "Size",
        "Longer side of the box",
        "Longer side of the box, by um_per_px of the image in the JSON",
        "Aspect ratio",
        "Particles per image",
    ]
    unscaled = summary(
        um_per_px=[None, math.nan], size_px=[math.inf, -1.0], aspect_ratio=[0, 1e300]
    )
    drawn = draw_histograms([unscaled], ["Fiber", "Film"], ["t"])
    assert [h.title for h in drawn] == ["Longer side of the box", "Particles per image"]
    for histogram in drawn:
        assert np.asarray(Image.open(io.BytesIO(histogram.png)).convert("L")).std() > 5
    assert drawn[0].legend == [("Fiber", (213, 94, 0)), ("Film", (0, 158, 115))]
    assert drawn[1].note == "Median 1, most 1, 1 blank images."
