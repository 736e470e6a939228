import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import user_error

from benchmarks.measurement_errors import arc, disc, draw, rectangle
from microplastics.calibration import Calibration
from microplastics.measurement import Item, measure, measure_many, nearest_distances
from microplastics.measurement.table import (
    combine_tables,
    images_table,
    parse_size_classes,
    particle_table,
    table_sizes,
    with_size_classes,
)
from microplastics.structures.particles import Particles

UM = "area_um2 equivalent_diameter_um feret_max_um feret_min_um length_um width_um perimeter_um"
PLACES = "image particle class score x y bbox_x bbox_y bbox_w bbox_h area_px"
FORMS = "length_method aspect_ratio circularity roundness solidity elongation touches_edge"
LAST = "size_class color_lab color_name um_per_px calibration_source"
SHAPES = [disc(6), arc(20, 2, 4), rectangle(20, 8)]
SCALE = Calibration(2.5, "--um-per-px")


def some(count=4, image="a.tif", pixels=False):
    rng = np.random.default_rng(count)
    masks = [draw(SHAPES[n % 3], rng.uniform(0, 6), (0, 0)) for n in range(count)]
    colors = [np.full((int(mask.sum()), 3), (0, 0, 200), np.uint8) for mask in masks]
    classes = [("Fragment", "FIBRE", "Film")[n % 3] for n in range(count)]
    offsets = rng.integers(0, 200, (count, 2)).reshape(-1, 2)
    scores = rng.uniform(0.5, 1, count)
    ids = np.arange(7, 7 + count)
    size = (300, 300)
    return Particles(image, size, masks, offsets, classes, scores, ids, colors if pixels else None)


def test_columns_stand_in_their_order():
    names = f"{PLACES} {UM} nearest_um {FORMS} {LAST}".split()
    assert list(particle_table(some(), SCALE)) == names
    px = [n.replace("_um", "_px") if n in f"{UM} nearest_um".split() else n for n in names]
    px.remove("area_px2")
    assert list(particle_table(some(), None)) == px


@pytest.mark.parametrize("calibration", [SCALE, None])
def test_an_empty_image_has_the_same_dtypes(calibration):
    empty, full = (particle_table(some(count), calibration) for count in (0, 4))
    assert len(empty) == 0
    assert empty.dtypes.equals(full.dtypes)
    assert combine_tables([empty, full]).dtypes.equals(full.dtypes)
    assert combine_tables([empty, empty]).dtypes.equals(full.dtypes)


def test_rows_are_the_shapes_in_micrometres():
    particles = some(6, pixels=True)
    table = particle_table(particles, SCALE)
    assert table["particle"].tolist() == [7, 8, 9, 10, 11, 12]
    assert table["score"].tolist() == particles.scores.tolist()
    for row, mask in enumerate(particles.masks):
        kind = "fiber" if particles.classes[row] == "FIBRE" else "other"
        shape = measure(mask, tuple(particles.offsets[row]), particles.image_size, kind=kind)
        assert table["area_px"][row] == shape.area == mask.sum()
        assert table["area_um2"][row] == pytest.approx(shape.area * 6.25)
        assert table["length_um"][row] == pytest.approx(shape.length * 2.5)
        assert table["circularity"][row] == shape.circularity
        assert tuple(table.loc[row, ["bbox_x", "bbox_y", "bbox_w", "bbox_h"]]) == shape.bbox
    assert set(table["um_per_px"]) == {2.5} and set(table["calibration_source"]) == {"--um-per-px"}
    assert set(table["color_name"]) == {"red"}
    lab = [float(part) for part in table["color_lab"][0].split()]
    assert len(lab) == 3 and lab[1] > 40


def test_what_is_not_known_is_empty():
    table = particle_table(some(1), None)
    empty = ["size_class", "color_lab", "color_name", "um_per_px", "calibration_source"]
    assert table[[*empty, "nearest_px"]].isna().all(axis=None)


@settings(max_examples=15, deadline=None)
@given(st.floats(0.01, 100))
def test_lengths_scale_once_and_areas_twice(factor):
    px = particle_table(some(), None)
    um = particle_table(some(), Calibration(factor, "x"))
    for name in UM.split()[1:]:
        expected = px[name.replace("_um", "_px")] * factor
        assert um[name].to_numpy() == pytest.approx(expected.to_numpy())
    assert um["area_um2"].to_numpy() == pytest.approx(px["area_px"].to_numpy() * factor**2)
    for name in ("aspect_ratio", "solidity", "x", "area_px", "touches_edge"):
        assert um[name].equals(px[name])


def test_other_classes_may_be_fibres():
    thread = particle_table(some(), SCALE, fiber_classes=["Film"])
    plain = particle_table(some(), SCALE)
    assert thread["length_um"][1] == thread["feret_max_um"][1] < plain["length_um"][1]


def test_size_classes_and_small_particles_are_marked():
    bins = parse_size_classes("20,40")
    table = particle_table(some(6), SCALE, size_classes=bins, min_size=35)
    sizes = table["feret_max_um"]
    expected = ["below 35 um" if s < 35 else ">=40 um" if s >= 40 else "20-40 um" for s in sizes]
    assert table["size_class"].tolist() == expected and len(set(expected)) == 2
    px = particle_table(some(6), None, size_classes=bins, min_size=14)
    marked = px["size_class"] == "below 14 px"
    assert marked.equals((px["feret_max_px"] < 14).astype("boolean")) or marked.sum() == 2
    assert px["size_class"][~marked.fillna(False)].isna().all()
    again = with_size_classes(table, bins)
    assert (again["size_class"] == "20-40 um").sum() == (sizes < 40).sum()


@pytest.mark.parametrize("size", [0, -1, np.nan, np.inf])
def test_a_smallest_size_that_is_not_positive_is_refused(size):
    with user_error("option_invalid", "smallest reported size"):
        particle_table(some(1), SCALE, min_size=size)


def test_images_with_and_without_a_scale_keep_their_units():
    table = combine_tables([particle_table(some(2), SCALE), particle_table(some(3, "b.tif"), None)])
    assert table.columns.tolist().index("feret_max_px") > table.columns.tolist().index("nearest_um")
    assert table["feret_max_um"].notna().tolist() == [True] * 2 + [False] * 3
    assert table["feret_max_px"].notna().tolist() == [False] * 2 + [True] * 3
    sizes, calibrated = table_sizes(table)
    assert calibrated.tolist() == [True] * 2 + [False] * 3 and (sizes > 0).all()
    assert table["particle"].dtype == "int64" and table["touches_edge"].dtype == "bool"


def test_tables_travel_through_parquet_and_csv(tmp_path):
    table = combine_tables([particle_table(some(3, pixels=True), SCALE)])
    table.to_parquet(tmp_path / "a.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "a.parquet"), table)
    table.to_csv(tmp_path / "a.csv", index=False)
    back = pd.read_csv(tmp_path / "a.csv", dtype=table.dtypes.to_dict())
    pd.testing.assert_frame_equal(back, table)


def test_images_are_listed():
    images = images_table([("a.tif", (30, 40), SCALE), ("b.tif", (5, 6), None)])
    assert images["image"].tolist() == ["a.tif", "b.tif"]
    assert images[["width_px", "height_px"]].to_numpy().tolist() == [[40, 30], [6, 5]]
    assert images["region_px"].tolist() == [1200, 30]
    assert images.isna().sum().tolist() == [0, 0, 0, 0, 1, 1]
    assert images.iloc[0, 4:].tolist() == [2.5, "--um-per-px"]
    assert images_table([]).dtypes.equals(images.dtypes)


BOXES = st.lists(
    st.tuples(*[st.integers(0, 60)] * 2, *[st.integers(1, 12)] * 2), min_size=2, max_size=9
)


def items(count):
    rng = np.random.default_rng(4)
    shapes = [disc(6), arc(20, 2, 4)]
    masks = [draw(shapes[n % 2], rng.uniform(0, 6), (0, 0)) for n in range(count)]
    places = rng.integers(0, 200, (count, 2)).tolist()
    pixels = [rng.integers(0, 256, (int(mask.sum()), 3), dtype=np.uint8) for mask in masks]
    return [
        Item(mask, (x, y), (300, 300), shapes[n % 2].kind, colors)
        for n, (mask, (x, y), colors) in enumerate(zip(masks, places, pixels, strict=True))
    ]


@pytest.mark.parametrize("processes", [None, 1, 2])
def test_many_are_measured_as_one_by_one(processes):
    several = items(130)
    assert measure_many(several, processes) == [measure(*item) for item in several]


def test_nothing_is_measured_of_nothing():
    assert measure_many([]) == []


def test_an_empty_mask_among_many_is_an_error():
    with pytest.raises(ValueError, match="The mask is empty"):
        measure_many([*items(2), Item(np.zeros((3, 3)))])


def test_the_nearest_particle_is_found_from_edge_to_edge():
    far, near = np.ones((4, 4)), np.ones((2, 30))
    distances = nearest_distances([far, far, near], [(0, 0), (10, 0), (0, 20)])
    assert distances.tolist() == [6, 6, 16]


@pytest.mark.parametrize(
    ("second", "gap"), [((4, 0), 0), ((4, 4), math.sqrt(2) - 1), ((1, 1), 0), ((0, 0), 0)]
)
def test_particles_that_touch_or_overlap_are_not_apart(second, gap):
    square = np.ones((4, 4))
    distances = nearest_distances([square, square], [(0, 0), second])
    assert distances == pytest.approx([gap, gap])


def test_a_particle_inside_of_another_is_not_apart():
    ring = np.ones((40, 40))
    ring[10:30, 10:30] = 0
    on, within = (5, 5), (18, 18)
    assert nearest_distances([np.ones((40, 40)), np.ones((2, 2))], [(0, 0), within])[1] == 0
    assert nearest_distances([ring, np.ones((2, 2))], [(0, 0), on])[1] == 0
    assert nearest_distances([ring, np.ones((2, 2))], [(0, 0), within]).tolist() == [8, 8]


def test_alone_there_is_no_distance():
    assert np.isnan(nearest_distances([np.ones((3, 3))], [(5, 5)])).all()
    assert nearest_distances([], []).shape == (0,)


def test_masks_without_places_are_an_error():
    with pytest.raises(ValueError, match="shorter than"):
        nearest_distances([np.ones((1, 1))] * 2, [(0, 0)])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(BOXES)
def test_distances_are_those_of_all_pairs(boxes):
    masks = [np.ones((height, width)) for _, _, width, height in boxes]
    found = nearest_distances(masks, [(x, y) for x, y, _, _ in boxes])
    for index, (x, y, width, height) in enumerate(boxes):
        gaps = []
        for u, v, w, h in boxes[:index] + boxes[index + 1 :]:
            right, down = max(u - x - width + 1, x - u - w + 1, 0), max(
                v - y - height + 1, y - v - h + 1, 0
            )
            gaps.append(max(math.hypot(right, down) - 1, 0))
        assert found[index] == pytest.approx(min(gaps))
