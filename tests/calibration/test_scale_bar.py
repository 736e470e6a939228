import cv2
import numpy as np
import pytest
from scale_bar_pictures import as_jpeg, draw_bar, draw_style, plain_style, reader, thin_style
from support import user_error

from microplastics.calibration.scale_bar import find_scale_bars, only_bar
from microplastics.synthetic.scene import PRESETS, render_image

NAMES = ("default", "glass-filter", "cellulose", "darkfield", "dense", "blank", "beads")


def found(image):
    return find_scale_bars(reader(image), image.shape[1], image.shape[0])


@pytest.fixture(scope="module")
def grounds():
    """Rendered filters without a bar, of all kinds."""
    import dataclasses

    presets = [dataclasses.replace(PRESETS[name], scale_bar_fraction=0.0) for name in NAMES]
    return [
        render_image((11, "grounds", i), 320, 2.0, presets[i % len(presets)])[0] for i in range(14)
    ]


@pytest.mark.parametrize("ink, ground", [("black", 180), ("white", 60), ("yellow", 40)])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"ticks": "both"},
        {"ticks": "up", "tick": 1},
        {"ticks": "down", "tick": 3},
        {"place": "below", "corner": "nw"},
        {"place": "left", "corner": "sw"},
        {"place": "right", "corner": "ne"},
        {"plate": "solid"},
        {"plate": "translucent"},
        {"outline": 1},
        {"outline": 2, "ticks": "both"},
        {"font": "hershey", "corner": "s"},
        {"font": "pillow", "corner": "n"},
        {"text": ""},
        {"thick": 2.0},
        {"thick": 10.0},
        {"px": 100.5, "thick": 3.6, "whole": False},
    ],
)
def test_every_way_of_drawing(ink, ground, changes):
    drawn = draw_bar(np.full((300, 400, 3), ground, np.uint8), plain_style(ink=ink, **changes))
    (bar,) = found(drawn.image)
    assert bar.px == pytest.approx(drawn.px, abs=0.05)
    assert bar.polarity == ("dark" if ink == "black" else "light")
    x, y, w, h = bar.box
    assert x <= drawn.x and drawn.x + drawn.px <= x + w
    assert y <= drawn.y and drawn.y + drawn.thick <= y + h
    assert (bar.text_box is None) == (drawn.text_box is None)
    # Nothing of what was drawn is left outside the boxes.
    rest = drawn.image.copy()
    for x, y, w, h in bar.boxes:
        rest[y : y + h, x : x + w] = ground
    if changes.get("plate") != "translucent":
        assert (rest == ground).all()


def test_a_solid_box_is_masked_with_its_bar():
    image = np.full((300, 400, 3), 120, np.uint8)
    drawn = draw_bar(image, plain_style(ink="white", plate="solid"))
    assert found(drawn.image)[0].plate_box is not None
    drawn = draw_bar(image, plain_style(ink="white"))
    assert found(drawn.image)[0].plate_box is None


def test_bars_on_rendered_filters(grounds):
    rng = np.random.default_rng(5)
    exact = missed = several = 0
    while exact + missed + several < 30:
        ground = grounds[rng.integers(len(grounds))]
        drawn = draw_bar(ground, draw_style(rng, 320, 320))
        if drawn is None:
            continue
        quality = int(rng.choice([0, 60, 75, 85, 95]))
        bars = found(as_jpeg(drawn.image, quality) if quality else drawn.image)
        if len(bars) == 1:
            # A wrong scale would be worse than none: there must be no such bar.
            assert abs(bars[0].px - drawn.px) <= 1.0, drawn.style
        exact, missed, several = (
            exact + (len(bars) == 1),
            missed + (not bars),
            several + (len(bars) > 1),
        )
    assert exact >= 25


@pytest.mark.parametrize("quality", [None, 85])
def test_filters_without_a_bar(grounds, quality):
    for image in grounds:
        assert found(image if quality is None else as_jpeg(image, quality)) == []


def test_straight_fibres_and_grids_are_not_bars():
    rng = np.random.default_rng(1)
    image = np.full((400, 400, 3), 190.0)
    for y in range(20, 400, 90):
        image[y : y + 3] = 60
        image[:, y : y + 3] = 60
    cv2.line(image, (60, 350), (180, 351), (40, 40, 40), 5, cv2.LINE_AA)
    cv2.ellipse(image, (200, 900), (600, 530), 0, 0, 360, (20, 20, 20), 6, cv2.LINE_AA)
    image = cv2.GaussianBlur(image, (0, 0), 0.8) + rng.normal(0, 4, image.shape)
    assert found(np.clip(image, 0, 255).astype(np.uint8)) == []


def test_none_and_two_are_errors():
    image = np.full((300, 400, 3), 180, np.uint8)
    with user_error("scale_missing", "x.png", "--um-per-px", "--calibration"):
        only_bar(found(image), "x.png")
    one = draw_bar(image, plain_style())
    two = draw_bar(one.image, plain_style(corner="nw", px=80.0))
    with user_error("scale_invalid", "x.png", "2 possible", "80.0 px at (", "120.0 px at ("):
        only_bar(found(two.image), "x.png")
    assert only_bar(found(one.image)).px == 120.0


def covered(bar, image):
    """Which pixels the boxes of a bar hold."""
    inside = np.zeros(image.shape[:2], bool)
    for x, y, w, h in bar.boxes:
        inside[y : y + h, x : x + w] = True
    return inside


@pytest.mark.parametrize("ground, ink", [(150, "black"), (220, "black"), (110, "white")])
@pytest.mark.parametrize("opacity", [1.0, 0.7, 0.5])
def test_thin_bars_with_thin_grey_letters(ground, ink, opacity):
    style = plain_style(ink=ink, thick=1.7, px=193.7, whole=False, shift=(0.1, 0.7), font_px=14)
    style |= {"ticks": "both", "reach": 7, "text_opacity": opacity, "softness": 0.4}
    noise = cv2.GaussianBlur(np.random.default_rng(0).normal(0, 8, (375, 500, 3)), (0, 0), 2)
    drawn = draw_bar(np.clip(ground + noise, 0, 255).astype(np.uint8), style)
    for image in (drawn.image, as_jpeg(drawn.image, 80)):
        (bar,) = found(image)
        assert bar.px == pytest.approx(drawn.px, abs=0.6)
        x, y, w, h = drawn.text_box
        assert covered(bar, image)[y : y + h, x : x + w].all()


def test_thin_bars_on_rendered_filters(grounds):
    rng = np.random.default_rng(5)
    read = labels = drawn_bars = 0
    while drawn_bars < 20:
        ground = cv2.resize(grounds[rng.integers(len(grounds))], (480, 480))
        drawn = draw_bar(ground, thin_style(rng, 480, 480))
        if drawn is None:
            continue
        bars = found(as_jpeg(drawn.image, int(rng.integers(75, 96))))
        drawn_bars += 1
        if len(bars) == 1:
            assert abs(bars[0].px - drawn.px) <= 1.0, drawn.style
            x, y, w, h = drawn.text_box
            labels += covered(bars[0], ground)[y : y + h, x : x + w].mean() > 0.98
            read += 1
    assert read >= 19 and labels >= 18


def test_a_line_that_jpeg_parts_from_its_ticks_keeps_them():
    # Faulty before: the ringing beside a tick ended the line there.
    style = plain_style(ink="white", thick=1.0, px=225.0, tick=2, ticks="both", reach=5)
    drawn = draw_bar(np.full((300, 500, 3), 120, np.uint8), style)
    for quality in range(60, 96, 5):
        (bar,) = found(as_jpeg(drawn.image, quality))
        assert bar.px == pytest.approx(225, abs=0.6)


@pytest.mark.parametrize("reach", [1, 6, 9])
def test_an_end_in_doubt_is_refused(reach):
    # Beyond the right end a shadow fades; one pixel of it could be of the bar.
    image = draw_bar(np.full((300, 400, 3), 180, np.uint8), plain_style(margin=30)).image
    shadow = np.linspace(40, 180, reach + 2)[1:-1]
    image[:, 369 : 369 + reach] = np.minimum(image[:, 369 : 369 + reach], shadow[:, None])
    bars = found(image)
    assert len(bars) < 2 and all(abs(bar.px - 120) <= 0.5 for bar in bars)
    assert bool(bars) == (reach == 1)


@pytest.mark.parametrize("gap", [1, 4, 8])
def test_a_line_that_is_cut_or_divided_is_not_measured_in_part(gap):
    image = draw_bar(np.full((300, 400, 3), 180, np.uint8), plain_style(thick=2.0)).image
    image[270:300, 340 : 340 + gap] = 180
    assert found(image) == []


@pytest.mark.parametrize("part", [30, 100])
@pytest.mark.parametrize("thick, ground, ink", [(2, 180, "black"), (8, 60, "white")])
def test_the_halves_of_a_bar_that_its_label_divides_are_no_bars(part, thick, ground, ink):
    style = plain_style(px=float(part), thick=float(thick), place="right", corner="sw", ink=ink)
    drawn = draw_bar(np.full((300, 500, 3), ground, np.uint8), style)
    assert len(found(drawn.image)) == 1
    image, (x, _, w, _), y = drawn.image, drawn.text_box, round(drawn.y)
    image[y : y + thick, x + w + 6 : x + w + 6 + part] = image[y, round(drawn.x) + 2]
    assert found(image) == [] and found(as_jpeg(image, 85)) == []


@pytest.mark.parametrize("ground, outline", [(120, 0), (120, 1), (255, 1), (255, 0)])
@pytest.mark.parametrize("number, rows", [(2, 1), (3, 1), (5, 1), (3, 2)])
def test_a_field_of_a_bar_is_no_bar(ground, outline, number, rows):
    image = np.full((300, 500, 3), ground, np.uint8)
    image[250 - outline : 250 + 6 * rows + outline, 60 - outline : 60 + 50 * number + outline] = 0
    for row, field in np.ndindex(rows, number):
        y, x = 250 + 6 * row, 60 + 50 * field
        image[y : y + 6, x : x + 50] = 255 * ((row + field) % 2)
    cv2.putText(image, "500 um", (80, 240), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (0, 0, 0), 1)
    # Of two fields without an outline, one shows as much as a bar does where it is white on white.
    expected = (number, rows, ground, outline) == (2, 1, 255, 0)
    assert (len(found(image)) == 1) == expected


@pytest.mark.parametrize("margin", [2, 4, 6])
def test_a_bar_close_to_the_border(margin):
    style = plain_style(px=100.5, thick=3.0, whole=False, margin=margin)
    drawn = draw_bar(np.full((256, 256, 3), 180, np.uint8), style)
    for image in (drawn.image, as_jpeg(drawn.image, 80)):
        assert found(image)[0].px == pytest.approx(100.5, abs=0.4)


def test_a_bar_cut_by_the_border_is_not_found():
    image = np.full((300, 400, 3), 180, np.uint8)
    image[280:285, 300:] = 0
    assert found(image) == []


def test_a_large_picture_is_read_only_along_its_borders():
    width, height = 5000, 4000
    small = draw_bar(
        np.full((300, 900, 3), 180, np.uint8), plain_style(px=600.0, thick=9.0, font_px=40)
    ).image
    largest = 0

    def read(x0, y0, x1, y1):
        nonlocal largest
        largest = max(largest, (x1 - x0) * (y1 - y0))
        window = np.full((y1 - y0, x1 - x0, 3), 180, np.uint8)
        if x1 == width and y1 == height:
            window[-300:, -900:] = small
        return window

    (bar,) = find_scale_bars(read, width, height)
    assert bar.px == 600.0
    assert bar.box[0] > 4000 and bar.box[1] > 3500
    assert largest <= 0.3 * width * height


@pytest.mark.parametrize("shape", [(1, 1), (3, 400), (400, 3), (16, 16), (30, 1000)])
@pytest.mark.parametrize("fill", ["black", "white", "noise"])
def test_odd_pictures(shape, fill):
    image = {"black": np.zeros, "white": lambda s, d: np.full(s, 255, d)}.get(
        fill, lambda s, d: np.random.default_rng(0).integers(0, 256, s).astype(d)
    )((*shape, 3), np.uint8)
    assert found(image) == []
