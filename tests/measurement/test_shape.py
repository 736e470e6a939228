import ast
import dataclasses
import math
import warnings

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from support import ROOT

from benchmarks.measurement_errors import arc, disc, draw, rectangle, straight
from microplastics.measurement import Shape, measure
from microplastics.measurement.shape import (
    NAMED_COLORS,
    choose_fiber_classes,
    color_names,
    find_fiber_classes,
    is_fiber_class,
    median_lab,
)
from microplastics.utils.errors import UserError

PLACE = {"x", "y", "bbox", "touches_edge"}
KINDS = st.sampled_from(["fiber", "other"])
MASKS = arrays(bool, st.tuples(st.integers(1, 24), st.integers(1, 24))).filter(np.any)


@st.composite
def tubes(draw_):
    """A fibre along an arc, or straight."""
    width = draw_(st.floats(2.5, 8))
    angle, shift = draw_(st.floats(0, 6.28)), draw_(st.tuples(*[st.floats(-0.5, 0.5)] * 2))
    if draw_(st.booleans()):
        return draw(straight(draw_(st.floats(3, 8)) * width, width), angle, shift)
    return draw(arc(draw_(st.floats(3, 6)) * width, draw_(st.floats(1, 4)), width), angle, shift)


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def form(shape: Shape) -> dict:
    return {k: v for k, v in dataclasses.asdict(shape).items() if k not in PLACE}


def test_a_square_on_the_grid_is_exact():
    mask = np.zeros((12, 14), bool)
    mask[2:8, 3:9] = True
    shape = measure(mask, offset=(100, 200))
    assert (shape.x, shape.y) == (106.0, 205.0)
    assert shape.bbox == (103, 202, 6, 6)
    assert shape.area == 36
    assert shape.feret_min == shape.width == 6
    assert shape.feret_max == shape.length == pytest.approx(math.sqrt(72), abs=0.5)
    assert shape.solidity == 1
    assert shape.equivalent_diameter == pytest.approx(math.sqrt(144 / math.pi))
    assert shape.roundness == pytest.approx(144 / math.pi / shape.feret_max**2)
    assert shape.elongation == pytest.approx(1 - 6 / shape.feret_max)
    assert shape.aspect_ratio == pytest.approx(shape.feret_max / 6)
    assert shape.circularity == pytest.approx(144 * math.pi / shape.perimeter**2)
    assert (shape.parts, shape.holes, shape.centerline_length, shape.loops) == (1, 0, 0, 0)
    assert (shape.touches_edge, shape.color_lab, shape.color_name) == (None, None, None)


@pytest.mark.parametrize(
    ("mask", "length", "width"),
    [
        (np.ones((1, 1)), 1, 1),
        (np.ones((1, 2)), 2, 1),
        (np.ones((1, 20)), 20, 1),
        (np.ones((20, 1)), 20, 1),
        (np.ones((2, 2)), 2.3, 1.75),
        (np.ones((2, 9)), 9, 2),
        (np.eye(10), 10 * math.sqrt(2), 1 / math.sqrt(2)),
        (np.fliplr(np.eye(30)), 30 * math.sqrt(2), 1 / math.sqrt(2)),
    ],
)
def test_the_smallest_masks_have_sensible_sizes(mask, length, width):
    shape = measure(mask, kind="fiber")
    assert shape.length == pytest.approx(length, abs=0.5)
    assert shape.width == pytest.approx(width, rel=0.06)
    assert shape.feret_max == pytest.approx(length, abs=0.3)


def test_holes_and_parts_are_counted():
    mask = np.zeros((20, 30), bool)
    mask[2:12, 2:12] = True
    mask[4:6, 4:6] = mask[8:10, 8] = False
    mask[15, 25] = True
    shape = measure(mask)
    assert (shape.parts, shape.holes, shape.area) == (2, 2, 95)
    assert shape.feret_max == pytest.approx(math.hypot(24, 14), abs=1)
    assert shape.solidity < 0.6


def test_a_mask_that_fills_its_crop_is_padded():
    mask = draw(disc(10), 0, (0, 0))
    tight = mask[mask.any(axis=1)][:, mask.any(axis=0)]
    assert form(measure(tight)) == form(measure(np.pad(mask, 7)))


@pytest.mark.parametrize(
    ("offset", "touches"),
    [((0, 5), True), ((5, 0), True), ((5, 5), False), ((17, 5), True), ((5, 27), True)],
)
def test_the_edge_is_that_of_the_image(offset, touches):
    assert measure(np.ones((3, 3)), offset, (30, 20)).touches_edge is touches


def test_margins_of_a_crop_do_not_touch_the_edge():
    mask = np.zeros((5, 5), bool)
    mask[2, 2] = True
    assert measure(mask, (0, 0), (5, 5)).touches_edge is False


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"mask": np.zeros((4, 4))}, "The mask is empty"),
        ({"mask": np.zeros((0, 0))}, "The mask is empty"),
        ({"mask": np.ones((2, 2, 2))}, "two dimensions, not 3"),
        ({"mask": np.ones((2, 2)), "kind": "Fiber"}, "not 'Fiber'"),
        ({"mask": np.ones((2, 2)), "pixels": np.zeros((3, 3), np.uint8)}, r"has colours \(3, 3\)"),
    ],
)
def test_what_cannot_be_measured_is_an_error(arguments, words):
    with pytest.raises(ValueError, match=words):
        measure(**arguments)


def test_the_color_is_that_of_the_mask_alone():
    image = np.full((40, 50, 3), 255, np.uint8)
    image[10:14, 20:26] = (200, 60, 20)
    mask = np.zeros((8, 10), bool)
    mask[2:6, 2:8] = True
    assert measure(mask, (18, 8), pixels=image[8:16, 18:28][mask]).color_name == "blue"


@settings(max_examples=60, deadline=None, derandomize=True)
@given(MASKS, KINDS, st.integers(0, 7), st.tuples(st.integers(0, 9), st.integers(0, 9)))
def test_the_place_and_the_eight_positions_change_nothing(mask, kind, position, offset):
    turned = np.rot90(mask.T if position & 4 else mask, position & 3)
    there = measure(np.pad(turned, ((offset[0], 1), (2, offset[1]))), offset, kind=kind)
    assert form(measure(mask, kind=kind)) == form(there)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(MASKS, KINDS)
def test_what_holds_for_every_mask(mask, kind):
    shape = measure(mask, kind=kind)
    numbers = [v for v in form(shape).values() if v is not None]
    assert {type(number) for number in numbers} == {int, float}
    assert np.isfinite(numbers).all()
    assert shape.area == np.count_nonzero(mask)
    assert 0 < shape.solidity <= 1
    assert 0 <= shape.elongation < 1
    assert 0 < shape.feret_min <= shape.feret_max
    assert shape.feret_max <= math.hypot(*shape.bbox[2:]) + 2.4
    assert shape.feret_max >= max(shape.bbox[2:]) - 1
    assert min(shape.length, shape.width, shape.perimeter) > 0
    assert shape.parts >= 1
    if kind == "fiber":
        # Short by no more than the largest radius in it.
        assert shape.length >= shape.feret_max - max(min(shape.bbox[2:]) / 2 + 0.5, 0.5)
        assert shape.parts > 1 or shape.centerline_length >= shape.length - 1e-9


@settings(max_examples=40, deadline=None, derandomize=True)
@given(tubes())
def test_twice_the_resolution_is_twice_the_size(mask):
    assume(np.count_nonzero(mask) > 30)
    one = measure(mask, kind="fiber")
    two = measure(mask.repeat(2, axis=0).repeat(2, axis=1), kind="fiber")
    assert two.area == 4 * one.area
    assert two.feret_max / 2 == pytest.approx(one.feret_max, abs=1.2)
    assert two.feret_min / 2 == pytest.approx(one.feret_min, abs=0.8)
    assert two.length / 2 == pytest.approx(one.length, rel=0.05, abs=3.5)
    assert (two.parts, two.holes) == (one.parts, one.holes)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.floats(3, 60), st.floats(0, 6.3), st.tuples(*[st.floats(-0.5, 0.5)] * 2))
def test_discs_are_solid_and_round(radius, angle, shift):
    shape = measure(draw(disc(radius), angle, shift))
    assert shape.solidity == 1
    assert shape.feret_max == pytest.approx(2 * radius, abs=1)
    assert shape.circularity == pytest.approx(1, abs=0.2)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.floats(4, 40), st.floats(4, 40), st.floats(0, 6.3))
def test_convex_shapes_are_solid(one, other, angle):
    shape = measure(draw(rectangle(max(one, other), min(one, other)), angle, (0.3, -0.2)))
    assert shape.solidity == 1


def test_measurement_imports_neither_torch_nor_detectron2():
    for path in (ROOT / "microplastics/measurement").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in getattr(node, "names", [])] + [getattr(node, "module", "")]
            assert not any(str(n).split(".")[0] in ("torch", "detectron2") for n in names), path


def pixels(*colors):
    return np.array(colors, np.uint8).reshape(-1, 3)


@pytest.mark.parametrize(
    ("bgr", "lab"),
    [
        ((255, 255, 255), (100.0, 0.0, 0.0)),
        ((0, 0, 0), (0.0, 0.0, 0.0)),
        ((0, 0, 255), (53.24, 80.09, 67.20)),
        ((255, 0, 0), (32.30, 79.19, -107.86)),
    ],
)
def test_lab_is_that_of_srgb_under_d65(bgr, lab):
    assert median_lab(pixels(bgr)) == pytest.approx(lab, abs=0.05)


def test_the_median_leaves_a_minority_out():
    assert median_lab(pixels(*[(9, 9, 9)] * 3, *[(250, 0, 0)] * 2)) == median_lab(pixels((9, 9, 9)))


@pytest.mark.parametrize(
    ("bgr", "name"),
    [
        ((15, 15, 15), "black"),
        ((128, 128, 128), "grey"),
        ((250, 250, 250), "white"),
        ((30, 30, 200), "red"),
        ((0, 0, 255), "red"),
        ((20, 130, 240), "orange"),
        ((40, 220, 240), "yellow"),
        ((60, 140, 50), "green"),
        ((200, 190, 60), "cyan"),
        ((180, 90, 30), "blue"),
        ((255, 0, 0), "blue"),
        ((80, 40, 30), "blue"),
        ((150, 50, 130), "purple"),
        ((190, 170, 250), "pink"),
        ((40, 70, 110), "brown"),
        ((170, 200, 220), "beige"),
    ],
)
def test_colors_have_their_names(bgr, name):
    assert color_names([median_lab(pixels(bgr))]) == [name]


def test_every_named_color_is_nearest_to_itself():
    pairs = [(name, lab) for name, labs in NAMED_COLORS.items() for lab in labs]
    names, labs = zip(*pairs, strict=True)
    assert color_names(labs) == list(names)
    assert color_names([]) == []


@pytest.mark.parametrize(
    "name", ["Fiber", "FIBRES", "PET_fibre", "Mikrofaser", "black thread", "filament 2", "纤维"]
)
def test_classes_are_fibres_by_their_words(name):
    assert is_fiber_class(name)


@pytest.mark.parametrize("name", ["Film", "fiberglass", "non-fiber", "nicht Faser", "", "12"])
def test_other_words_are_no_fibres(name):
    assert not is_fiber_class(name)


def test_a_supercategory_says_fibre_unless_the_names_tell_its_classes_apart():
    assert find_fiber_classes({"dark": "fibre", "light": "fibre", "film": None}) == [
        "dark",
        "light",
    ]
    assert find_fiber_classes({"Film": "fibers", "Fiber": "fibers"}) == ["Fiber"]
    assert find_fiber_classes({"Film": "fiber-detection-v2", "bead": ""}) == []


def test_fibre_classes_are_named_in_any_case():
    assert choose_fiber_classes(["DARK"], ["light", "dark"]) == ["dark"]
    with pytest.raises(UserError, match="'drak' is not among the classes") as caught:
        choose_fiber_classes(["drak"], ["light", "dark"])
    assert caught.value.code == "classes_mismatch"
