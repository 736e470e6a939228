import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import user_error

from microplastics.calibration import Calibration
from microplastics.counts.corrections import Sampling
from microplastics.counts.intervals import poisson_interval
from microplastics.counts.summary import summarize
from microplastics.measurement.table import images_table, parse_size_classes, table_columns

SCALE = Calibration(2.0, "TIFF")
CLASSES = ("Fiber", "Fragment", "Film")


def made(rows, um=True):
    """A table of (image, class, feret_max, touches_edge, bbox_w, bbox_h)."""
    columns = table_columns(um, not um)
    table = pd.DataFrame(0.0, index=range(len(rows)), columns=list(columns))
    names = ["image", "class", f"feret_max_{'um' if um else 'px'}", "touches_edge"]
    for index, name in enumerate([*names, "bbox_w", "bbox_h"]):
        table[name] = pd.Series([row[index] for row in rows], dtype=columns[name])
    table["um_per_px"] = SCALE.um_per_px if um else np.nan
    text = {name: "" for name, dtype in columns.items() if dtype == "string"}
    text = {name: "" for name in text if name not in ("image", "class")}
    return table.assign(**text).astype(columns)


def images(*names, calibration=SCALE):
    return images_table([(name, (500, 1000), calibration) for name in names])


def row_of(summary, index=0):
    return summary.iloc[index].to_dict()


ROWS = [
    ("a", "Fiber", 400.0, False, 100, 50),
    ("a", "Fiber", 60.0, True, 20, 20),
    ("a", "Fragment", 40.0, False, 10, 10),
    ("a", "Fragment", 8.0, False, 3, 3),
    ("c", "Film", 55.0, True, 10, 10),
]


def test_counts_of_each_image():
    summary = summarize(made(ROWS), images("a", "b", "c"), classes=CLASSES)
    assert summary["image"].tolist() == ["a", "b", "c"]
    assert summary["count"].tolist() == summary["particles"].tolist() == [4, 0, 1]
    assert summary["Fiber.count"].tolist() == [2, 0, 0]
    assert summary["Film.count"].tolist() == [0, 0, 1]
    first = row_of(summary)
    assert first["area_mm2"] == pytest.approx(500 * 1000 * 4 / 1e6) == 2
    assert first["count_per_mm2"] == 2
    low, high = poisson_interval(4)
    assert (first["count_low"], first["count_high"]) == pytest.approx((float(low), float(high)))
    assert first["count_per_mm2_high"] == pytest.approx(high / 2)
    assert first["Fiber.fraction"] == 0.5 and first["Film.fraction"] == 0
    assert first["feret_max_p50_um"] == 50
    assert first["feret_max_mean_um"] == 127
    assert first["feret_max_sd_um"] == pytest.approx(np.std([400, 60, 40, 8], ddof=1))
    assert first["feret_max_p50_low_um"] >= 8 and first["feret_max_p50_high_um"] <= 400
    assert first["size_below_20_um"] == 1 and first["Fiber.size_300_500_um"] == 1
    assert first["touching_edge"] == 1
    assert first["calibration_source"] == "TIFF"


def test_an_image_without_a_particle_has_zeros():
    summary = summarize(made([]), images("b"), classes=CLASSES)
    only = row_of(summary)
    zeros = ["count", "count_low", "weighted_count", "Film.count", "size_100_300_um", "particles"]
    assert [only[name] for name in zeros] == [0] * 6
    assert only["count_high"] == pytest.approx(3.689, abs=1e-3)
    assert np.isnan([only["feret_max_p50_um"], only["Fiber.fraction"]]).all()
    full = summarize(made(ROWS), images("a", "b", "c"), classes=CLASSES)
    assert summary.dtypes.equals(full.dtypes)


def test_classes_of_the_table_follow_those_given():
    summary = summarize(made([("a", "Pellet", 9.0, False, 3, 3), *ROWS]), images("a", "c"))
    found = [name[:-6] for name in summary if name.endswith(".count")]
    assert found == ["Fiber", "Film", "Fragment", "Pellet"]


def test_small_particles_are_listed_but_not_counted():
    only = row_of(summarize(made(ROWS[:4]), images("a"), min_size=50, classes=CLASSES))
    assert (only["particles"], only["below_min_size"], only["count"]) == (4, 2, 2)
    assert only["Fragment.count"] == only["size_20_50_um"] == 0


def test_the_edge_is_left_out_or_weighted():
    only = row_of(summarize(made(ROWS[:4]), images("a"), edge="exclude"))
    assert (only["count"], only["excluded_at_edge"], only["weighted_count"]) == (3, 1, 3)
    assert "weighted_size_20_50_um" not in only
    only = row_of(summarize(made(ROWS[:4]), images("a"), edge="weight"))
    weights = [1000 * 500 / (899 * 449), 1000 * 500 / (989 * 489), 1000 * 500 / (996 * 496)]
    assert only["count"] == 3
    assert only["weighted_count"] == pytest.approx(sum(weights))
    assert only["weighted_count_low"] < only["weighted_count"] < only["weighted_count_high"]
    assert only["weighted_size_300_500_um"] == pytest.approx(weights[0])
    assert only["Fiber.fraction"] == pytest.approx(weights[0] / sum(weights))
    mean = np.average([400, 40, 8], weights=weights)
    assert only["feret_max_mean_um"] == pytest.approx(mean)


def test_groups_sum_their_images():
    groups = {"a": "river", "b": "river", "c": "lake"}
    summary = summarize(made(ROWS), images("a", "b", "c"), classes=CLASSES, groups=groups)
    assert summary["group"].tolist() == ["lake", "river"]
    river = row_of(summary, 1)
    assert (river["images"], river["count"], river["area_mm2"]) == (2, 4, 4)
    assert (river["count_per_image"], river["Fiber.count_per_image"]) == (2, 1)
    assert river["count_per_image_sd"] == pytest.approx(np.std([4, 0], ddof=1))
    assert (river["count_per_image_low"], river["count_per_image_high"]) == (0, 4)
    assert np.isnan(row_of(summary)["count_per_image_low"])
    assert river["um_per_px"] == 2 and river["calibration_source"] == "TIFF"


def test_a_group_names_all_sources():
    pictures = images_table(
        [(f"i{n}", (10, 10), Calibration(1 + n, f"source {n}")) for n in range(7)]
    )
    summary = summarize(made([]), pictures, groups={f"i{n}": "g" for n in range(7)})
    only = row_of(summary)
    assert np.isnan(only["um_per_px"])
    assert only["calibration_source"].startswith("source 0; source 1")
    assert only["calibration_source"].endswith("and 2 more")
    assert only["area_mm2"] == pytest.approx(sum(100 * n**2 for n in range(1, 8)) / 1e6)


def test_images_without_a_scale_are_counted_in_px():
    rows = [("a", "Film", 30.0, False, 9, 9), ("a", "Film", 10.0, False, 9, 9)]
    only = row_of(summarize(made(rows, um=False), images("a", calibration=None), min_size=20))
    assert (only["count"], only["below_min_size"], only["feret_max_p50_px"]) == (1, 1, 30)
    assert np.isnan([only["area_mm2"], only["count_per_mm2"]]).all()
    assert not [name for name in only if "size_b" in name and name != "below_min_size"]


def test_concentrations_follow_from_the_volume():
    summary = summarize(made(ROWS), images("a", "c"), sampling=Sampling(0.5, counted_fraction=0.25))
    first = row_of(summary)
    assert first["particles_per_l"] == 4 / 0.5 / 0.25 == 32
    assert first["particles_per_m3_high"] == pytest.approx(poisson_interval(4).high * 8000)
    assert first["Fiber.particles_per_l"] == 16
    by_area = row_of(
        summarize(made(ROWS), images("a", "c"), sampling=Sampling(0.5, filter_area_mm2=8))
    )
    assert by_area["particles_per_l"] == pytest.approx(32)


def test_blanks_are_subtracted():
    rows = [("s", "Fiber", 50.0, False, 9, 9)] * 10
    rows += [("b1", "Fiber", 50.0, False, 9, 9)] * 2 + [("b2", "Film", 50.0, False, 9, 9)] * 4
    summary = summarize(
        made(rows),
        images("s", "b1", "b2"),
        classes=CLASSES,
        blanks=["b1", "b2"],
        sampling=Sampling(2.0),
    )
    sample = row_of(summary)
    assert summary["is_blank"].tolist() == [False, True, True]
    assert sample["blank_expected"] == 3 and sample["count_corrected"] == 7
    assert sample["Fiber.count_corrected"] == 9
    assert (sample["Film.count_corrected"], sample["Film.count_corrected_unclipped"]) == (0, -2)
    assert sample["Film.count_corrected_low"] == 0
    assert sample["count_corrected_sd"] == pytest.approx(np.sqrt(10 + 6 / 4))
    assert sample["lod"] == pytest.approx(3 + 3.3 * np.std([2, 4], ddof=1))
    assert sample["particles_per_l_corrected"] == 3.5
    assert summary["count_corrected"].isna().tolist() == [False, True, True]
    assert summary["particles_per_l"].isna().tolist() == [False, True, True]
    without = summarize(made(rows), images("s", "b1", "b2"))
    assert not [name for name in without if "blank" in name or "correct" in name or "lod" in name]


def test_blanks_of_a_group_count_by_area():
    rows = [("s1", "Film", 50.0, False, 9, 9)] * 9 + [("b", "Film", 50.0, False, 9, 9)] * 2
    groups = {"s1": "sample", "s2": "sample", "s3": "sample", "b": "blank"}
    found = summarize(made(rows), images("s1", "s2", "s3", "b"), groups=groups, blanks=["b"])
    sample = row_of(found, 1)
    assert (sample["blank_expected"], sample["count_corrected"]) == (pytest.approx(6), 3)
    assert np.isnan(sample["lod"])  # one blank has no spread
    k = 1.6448536
    limit = 6 + k**2 + 2 * k * np.sqrt(6 + 18)
    assert sample["currie_detection_limit"] == pytest.approx(limit)


def test_the_area_of_a_region_counts():
    pictures = images_table([("a", (500, 1000), SCALE, 125_000), ("c", (500, 1000), SCALE)])
    summary = summarize(made(ROWS), pictures)
    assert summary["area_mm2"].tolist() == [0.5, 2]
    assert summary["count_per_mm2"].tolist() == [8, 0.5]
    assert summary["region_px"].tolist() == [125_000, 500_000]
    with user_error("option_conflict", "a has a region", "--edge weight"):
        summarize(made(ROWS), pictures, edge="weight")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ({"groups": {"a": "g", "c": "g"}, "blanks": ["a"]}, "option_conflict", "The group g"),
        ({"blanks": ["z"]}, "option_invalid", "The blank z"),
        ({"min_size": -1.0}, "option_invalid", "smallest reported size is -1"),
        ({"sampling": Sampling(1.0, filter_area_mm2=1)}, "option_invalid", "filter's 1 mm²"),
    ],
)
def test_settings_that_do_not_fit_are_refused(arguments, code, words):
    with user_error(code, words):
        summarize(made(ROWS), images("a", "c"), **arguments)


def test_a_group_of_px_and_micrometres_is_an_error():
    pictures = images_table([("a", (9, 9), SCALE), ("b", (9, 9), None)])
    with user_error("option_conflict", "The group g", "with and without a calibration"):
        summarize(made([]), pictures, groups={"a": "g", "b": "g"})
    assert summarize(made([]), pictures)["area_mm2"].isna().tolist() == [False, True]


def test_bugs_keep_their_traceback():
    with pytest.raises(ValueError, match="not among the images"):
        summarize(made(ROWS), images("a"))
    with pytest.raises(ValueError, match="stands twice"):
        summarize(made([]), images("a", "a"))


PARTICLES = st.lists(
    st.tuples(
        st.sampled_from("abc"),
        st.sampled_from(CLASSES),
        st.floats(0.5, 9000),
        st.booleans(),
        st.integers(1, 200),
        st.integers(1, 200),
    ),
    max_size=25,
)


@settings(max_examples=25, deadline=None)
@given(
    PARTICLES,
    st.sampled_from(["count", "exclude", "weight"]),
    st.sampled_from([None, 30.0]),
    st.randoms(use_true_random=False),
)
def test_nothing_is_lost_and_no_order_matters(rows, edge, min_size, random):
    bins = parse_size_classes("50,1000")
    options = {"edge": edge, "min_size": min_size, "size_classes": bins, "classes": CLASSES}
    summary = summarize(made(rows), images(*"abc"), **options)
    assert summary["particles"].sum() == len(rows)
    parts = ["count", "below_min_size", "excluded_at_edge"]
    assert summary[parts].sum(axis=1).equals(summary["particles"])
    assert summary[[f"{c}.count" for c in CLASSES]].sum(axis=1).equals(summary["count"])
    for prefix in ("", "Film."):
        sizes = summary[[f"{prefix}size_{name}" for name in bins.columns]].sum(axis=1)
        assert sizes.equals(summary[f"{prefix}count"])
    weighted = summary[[f"{c}.weighted_count" for c in CLASSES]].sum(axis=1)
    assert weighted.to_numpy() == pytest.approx(summary["weighted_count"].to_numpy())
    assert (summary["count_low"] <= summary["count"]).all()
    fractions = summary[[f"{c}.fraction" for c in CLASSES]].sum(axis=1)[summary["count"] > 0]
    assert fractions.to_numpy() == pytest.approx(1)
    shuffled = rows.copy()
    random.shuffle(shuffled)
    again = summarize(made(shuffled), images(*"abc"), **options)
    pd.testing.assert_frame_equal(summary, again, rtol=1e-12)
    whole = summarize(made(rows), images(*"abc"), groups=dict.fromkeys("abc", "g"), **options)
    for name in ("count", "Fiber.count", "below_min_size", "size_50_1000_um"):
        assert whole[name].tolist() == [summary[name].sum()]
