"""Data set report: strict JSON and one safe, self-contained page."""

import io
import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support import user_error

from microplastics.data.doctor.findings import DatasetSummary, Diagnosis, Example, Finding, ModelFit
from microplastics.report.dataset import (
    Place,
    draw_histograms,
    draw_place,
    draw_places,
    render_report,
    short_names,
    verdict,
    write_report,
)

EVIL = '<script>alert("x")</script>'


def save(path, width=120, height=90, color=(40, 50, 60)):
    Image.new("RGB", (width, height), color).save(path)
    return str(path)


def finding(*examples, severity="warning", code="odd", count=3, **more):
    words = {"what": "odd things", "consequence": "Worse AP.", "fix": "Fix them."}
    return Finding(code, severity, **{**words, **more}, count=count, examples=list(examples))


def summary(name="train.json", classes=("Fiber", "Film"), **more):
    values = {
        "num_images": 3,
        "num_annotations": 2,
        "classes": dict.fromkeys(classes, 1),
        "blanks": 1,
        "particles_per_image": [0, 1, 1],
        "class_of": list(classes),
        "size_px": [12.0, 40.0],
        "long_side_px": [60.0, 50.0],
        "aspect_ratio": [12.0, 1.2],
        "um_per_px": [2.0, None],
    }
    return DatasetSummary(f"/data/{name}", **{"image_root": "/data/images", **values, **more})


class Page(HTMLParser):
    """Everything that a browser would see as tags, and the text."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.addresses, self.words = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [v for k, v in attrs if k in ("src", "href", "action", "data", "srcset")]

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def test_the_page_holds_everything_in_words(tmp_path):
    fit = ModelFit(
        "quick.yaml",
        {"Fiber": 0.25, "all": 0.2},
        {"Fiber": 0.5, "all": 0.4},
        {name: {28: 0.71234, 56: 0.8, 112: 0.9} for name in ("Fiber", "all")},
        sampled=77,
    )
    findings = [
        finding(Example("annotation 4 of image 2"), fixable=True),
        finding(severity="info", code="note", count=1, what="thing to know"),
        finding(severity="problem", code="broken", count=2, what="broken things"),
    ]
    datasets = [summary(), summary("val.json", ("Film", "Foam"))]
    path = write_report(Diagnosis(datasets, findings, fit), tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "report.html"
    page = Page(path.read_text(encoding="utf-8"))
    text = page.text
    assert "Not ready for training: 1 problem in 2 places, and 1 warning in 3 places." in text
    order = [text.index(words) for words in ("2 broken things", "3 odd things", "1 thing to know")]
    assert order == sorted(order)
    for words in ("Worse AP.", "Fix them.", "annotation 4 of image 2", "train.json", "Foam"):
        assert words in text
    assert text.count("mended by --fix") == 1
    assert "Fiber 25.0 % 50.0 % 0.712 0.800 0.900" in text
    assert "Masks measured: 77" in text
    assert "µm of 2 particles; 2 without a value are left out." in text
    assert page.tags.count("img") == 5
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)


def test_untrusted_text_is_escaped(tmp_path):
    image = save(tmp_path / "a.png")
    diagnosis = Diagnosis(
        [summary(f"{EVIL}.json", (EVIL, "$\\frac{1}"), image_root=EVIL)],
        [finding(Example(f"{EVIL}.png", f"/data/{EVIL}.json", image, (1, 1, 9, 9)), what=EVIL)],
        ModelFit(EVIL, {EVIL: 0.5}, {EVIL: 0.5}, {EVIL: {28: 0.5}}),
    )
    html = render_report(diagnosis)
    page = Page(html)
    assert "script" not in page.tags
    assert "<script" not in html.lower()
    assert page.text.count("script") >= 7
    assert "default-src 'none'" in html
    assert not re.search(r"(https?:)?//[a-z]", re.sub(r"base64,[\w+/=]+", "", html))


def test_the_json_is_strict(tmp_path):
    diagnosis = Diagnosis(
        [summary(size_px=[math.nan, math.inf], um_per_px=[np.float64(2), None])],
        [finding(Example("here", box=(0.0, -math.inf, 1, 2)))],
        ModelFit("quick.yaml", {"all": math.nan}, mask_iou={"all": {28: 0.5}}),
    )
    write_report(diagnosis, tmp_path)

    def refuse(constant):
        raise AssertionError(constant)

    text = (tmp_path / "report.json").read_text(encoding="utf-8")
    data = json.loads(text, parse_constant=refuse)
    assert data["datasets"][0]["size_px"] == [None, None]
    assert data["datasets"][0]["um_per_px"] == [2.0, None]
    assert data["findings"][0]["examples"][0]["box"] == [0.0, None, 1, 2]
    assert data["model_fit"]["no_anchor"] == {"all": None}
    assert data["model_fit"]["mask_iou"] == {"all": {"28": 0.5}}


def test_half_a_surrogate_pair_is_written(tmp_path):
    path = write_report(Diagnosis([summary("\ud800.json")], [finding(what="\udfff")]), tmp_path)
    assert "3 ?" in Page(path.read_text(encoding="utf-8")).text
    assert json.loads((tmp_path / "report.json").read_text())["findings"][0]["what"] == "\udfff"


@pytest.mark.parametrize(
    ("severities", "datasets", "words"),
    [
        ([], [summary()], "Clean: nothing stands in the way of training."),
        (["info"], [summary()], "Clean: nothing stands in the way of training."),
        (["warning"], [summary()], "It can be trained on, but look at 1 warning in 3 places first"),
        (["problem", "problem"], [summary()], "Not ready for training: 2 problems in 6 places."),
        ([], [], "The data set has no image to train on."),
        (["warning"], [summary(num_images=0)], "The data set has no image to train on."),
    ],
)
def test_the_verdict(severities, datasets, words):
    findings = [finding(severity=severity) for severity in severities]
    assert verdict(Diagnosis(datasets, findings)).startswith(words)


def test_an_empty_diagnosis_is_reported(tmp_path):
    html = write_report(Diagnosis(), tmp_path).read_text(encoding="utf-8")
    assert 'class="verdict warning"' in html
    page = Page(html)
    assert "No annotation file could be read." in page.text
    assert "img" not in page.tags
    bare = DatasetSummary("a.json", "images")
    page = Page(render_report(Diagnosis([bare], [], ModelFit("quick.yaml"))))
    assert "The data set has no particle to compare it with." in page.text


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with user_error("not_writable", tmp_path / "file"):
        write_report(Diagnosis(), tmp_path / "file" / "report")


def test_many_classes_and_files_stay_readable():
    names = [f"class {n}" for n in range(40)]
    values = {
        "class_of": names,
        "size_px": [10.0] * 40,
        "long_side_px": list(range(40)),
        "aspect_ratio": [1.0] * 40,
        "um_per_px": [None] * 40,
        "particles_per_image": [10**6, 0],
    }
    datasets = [summary(f"{n}.json", names, **values) for n in range(12)]
    page = Page(render_report(Diagnosis(datasets)))
    assert "and 10 rarer classes, in report.json" in page.text
    assert "other classes" in page.text
    assert "other files" in page.text


def test_long_texts_are_shortened():
    html = render_report(Diagnosis([summary("x" * 10**6)], [finding(what="y" * 10**6)]))
    assert len(re.sub(r"base64,[\w+/=]+", "", html)) < 30_000


def test_names_of_files_are_short():
    paths = ["/a/train/ann.json", "/a/test/ann.json", "/a/other.json"]
    assert short_names(paths) == ["train/ann.json", "test/ann.json", "other.json"]
    assert short_names(["/a/b.json"] * 2) == ["b.json"] * 2 and short_names([]) == []


def test_pictures_or_reasons_are_in_the_page(tmp_path):
    one, two = save(tmp_path / "1.png"), save(tmp_path / "2.png")
    findings = [
        finding(Example("a pair", image=one, other_image=two)),
        finding(Example("cut", image=str(tmp_path / "gone.png"), other_image=two)),
        finding(Example("only words")),
    ]
    page = Page(render_report(Diagnosis([], findings)))
    assert page.text.count("No picture: ") == 1
    assert "gone.png does not exist" in page.text
    assert "only words" in page.text
    assert page.tags.count("img") == 3
    assert all(address.startswith("data:image/jpeg;base64,") for address in page.addresses)


ORANGE, BLUE = (213, 94, 0), (0, 114, 178)


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
def test_any_untrusted_box_gives_a_picture(boxes):
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
    assert (sorted(pair.pictures), pair.why) == ([0, 1], "")
    reds = [
        np.asarray(Image.open(io.BytesIO(data)))[5, 5, 0]
        for _, data in sorted(pair.pictures.items())
    ]
    assert reds == pytest.approx([40, 200], abs=3)
    assert list(cut.pictures) == [1]
    assert "cut.png" in cut.why
    assert "text.jpg is not an image" in text.why
    assert "gone.png does not exist" in gone.why
    assert none == Place()


def test_histograms_need_values():
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
    assert drawn[1].note == "Median 1 particles of 3 images."
