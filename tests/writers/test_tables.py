import csv
import json
import tracemalloc

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from support import user_error

from microplastics.writers.tables import (
    merge_schemas,
    open_csv,
    open_parquet,
    to_arrow,
    write_csv,
    write_labels,
    write_parquet,
)


def rows(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_numbers_have_six_digits_and_no_exponents_where_they_are_large(tmp_path):
    table = pd.DataFrame(
        {
            "area_um2": [1 / 3, 12345678.9, 2.0, np.nan, 1e-7],
            "um_per_px": [0.123456789, 1.0, 2.0, np.nan, 1.0],
            "particle": [1, 2, 3, 4, 1234567890],
            "touches_edge": [True, False, True, False, True],
        }
    )
    write_csv(table, tmp_path / "t.csv")
    found = rows(tmp_path / "t.csv")
    assert [row["area_um2"] for row in found] == ["0.333333", "12345679", "2", "", "1e-07"]
    assert found[0]["um_per_px"] == "0.123456789" and found[3]["um_per_px"] == ""
    assert found[4]["particle"] == "1234567890"
    assert [row["touches_edge"] for row in found[:2]] == ["TRUE", "FALSE"]


def test_texts_come_back_whatever_they_hold(tmp_path):
    names = ['a,b"c.jpg', "two\nlines.jpg", "µ.jpg", None]
    write_csv(pd.DataFrame({"image": names}), tmp_path / "t.csv")
    write_parquet(pd.DataFrame({"image": names}), tmp_path / "t.parquet")
    assert [row["image"] for row in rows(tmp_path / "t.csv")] == [*names[:3], ""]
    assert pd.read_parquet(tmp_path / "t.parquet")["image"].tolist()[:3] == names[:3]
    assert (tmp_path / "t.csv").read_bytes().startswith(b'image\n"a,b""c.jpg"\n')


def test_parquet_keeps_numbers_as_they_are(make_result, tmp_path):
    table = make_result().table
    write_parquet(table, tmp_path / "t.parquet")
    read = pd.read_parquet(tmp_path / "t.parquet")
    assert list(read) == list(table)
    for name in table:
        if table[name].dtype == "float64":
            assert (read[name].to_numpy() == table[name].to_numpy()).all() | read[name].isna().any()
        else:
            assert read[name].astype(str).tolist() == table[name].astype(str).tolist()


def test_types_do_not_depend_on_what_an_image_holds(make_result):
    full, empty = make_result(), make_result((), (), ())
    assert to_arrow(full.table).schema == to_arrow(empty.table).schema
    nothing = pd.DataFrame({"color_name": [None, None], "bbox_x": [1, 2], "score": [None, None]})
    assert [f.type for f in to_arrow(nothing).schema] == [pa.string(), pa.int64(), pa.float64()]


def test_images_with_and_without_a_scale_share_one_table(make_result, tmp_path):
    um, px = to_arrow(make_result().table), to_arrow(make_result(um_per_px=None).table)
    schema = merge_schemas([px.schema, um.schema])
    assert schema.names == merge_schemas([um.schema, px.schema]).names
    assert schema.names.index("area_um2") < schema.names.index("length_px")
    assert schema.names[-1] == "calibration_source"
    with open_parquet(tmp_path / "t.parquet", schema) as add:
        add(px)
        add(um)
    joined = pq.read_table(tmp_path / "t.parquet")
    assert joined["length_um"].null_count == joined["length_px"].null_count == 3
    assert joined["area_px"].null_count == 0


def test_a_table_that_fails_leaves_the_old_one(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("old")
    table = to_arrow(pd.DataFrame({"image": ["a"]}))
    with pytest.raises(RuntimeError), open_csv(path, table.schema) as add:
        add(table)
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_many_images_become_few_row_groups(tmp_path):
    table = to_arrow(pd.DataFrame({"particle": range(1000)}))
    with open_parquet(tmp_path / "t.parquet", table.schema) as add:
        for _ in range(250):
            add(table)
    file = pq.ParquetFile(tmp_path / "t.parquet")
    assert file.metadata.num_rows == 250_000 and file.num_row_groups == 3


def test_pixels_hold_the_number_of_their_particle(make_result, frame, tmp_path):
    result = make_result(ids=(7, 2**31 - 1, 1))
    assert write_labels(result, tmp_path / "x.tif") == {}
    image = tifffile.imread(tmp_path / "x.tif")
    assert image.dtype == np.int32 and image.shape == (40, 50)
    for index, particle in enumerate((7, 2**31 - 1, 1)):
        assert ((image == particle) == frame(result, index)).all()


def test_the_scale_travels_in_the_tags(make_result, tmp_path):
    write_labels(make_result(um_per_px=0.65), tmp_path / "x.tif")
    page = tifffile.TiffFile(tmp_path / "x.tif").pages[0]
    numerator, denominator = page.tags["XResolution"].value
    assert numerator / denominator == pytest.approx(10_000 / 0.65, rel=1e-9)
    assert page.tags["ResolutionUnit"].value == 3
    about = json.loads(page.tags["ImageDescription"].value)
    assert about["um_per_px"] == 0.65 and about["calibration_source"] == "stage micrometer, µm"
    write_labels(make_result(um_per_px=None), tmp_path / "y.tif")
    page = tifffile.TiffFile(tmp_path / "y.tif").pages[0]
    assert page.tags["ResolutionUnit"].value == 1  # none


def test_the_smaller_particle_is_on_top_and_what_it_hides_is_counted(make_result, tmp_path):
    big, small = np.ones((10, 10), dtype=bool), np.ones((2, 3), dtype=bool)
    result = make_result((small, big), ((4, 4), (2, 2)), ("Film", "Fiber"))
    assert write_labels(result, tmp_path / "x.tif") == {"label_pixels_hidden": 6}
    image = tifffile.imread(tmp_path / "x.tif")
    assert (image == 1).sum() == 6 and (image == 2).sum() == 94


def test_particles_wholly_under_others_are_counted(make_result, tmp_path):
    same = np.ones((2, 2), dtype=bool)
    result = make_result((same, same), ((4, 4), (4, 4)), ("Film", "Film"))
    assert write_labels(result, tmp_path / "x.tif") == {
        "label_pixels_hidden": 4,
        "label_particles_hidden": 1,
    }
    assert np.unique(tifffile.imread(tmp_path / "x.tif")).tolist() == [0, 2]


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_strips_hold_the_particles(data, make_result, tmp_path_factory):
    folder = tmp_path_factory.mktemp("labels")
    height, width = data.draw(st.integers(1, 700)), data.draw(st.integers(1, 700))
    masks, offsets = [], []
    for _ in range(data.draw(st.integers(0, 5))):
        h, w = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
        masks.append(np.ones((h, w), dtype=bool))
        offsets.append(
            (data.draw(st.integers(0, width - w)), data.draw(st.integers(0, height - h)))
        )
    result = make_result(masks, offsets, ["Film"] * len(masks), size=(height, width))
    write_labels(result, folder / "x.tif")
    painted = np.zeros((height, width), dtype=np.int32)
    for index in np.argsort([-mask.size for mask in masks], kind="stable"):
        (x, y), (h, w) = offsets[index], masks[index].shape
        painted[y : y + h, x : x + w] = index + 1
    assert (tifffile.imread(folder / "x.tif") == painted).all()


def test_a_mosaic_is_never_held(make_result, tmp_path):
    masks = [np.ones((30, 40), dtype=bool)] * 3
    size = (12_000, 12_000)
    result = make_result(masks, ((0, 0), (490, 5000), (11_960, 11_970)), ["Film"] * 3, size=size)
    tracemalloc.start()
    write_labels(result, tmp_path / "x.tif")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6  # the frame would take 576 MB
    with tifffile.TiffFile(tmp_path / "x.tif") as tiff:
        assert not tiff.is_bigtiff
        assert (tiff.pages[0].asarray()[5000:5030, 490:530] == 2).all()


def test_a_claimed_size_does_not_fill_the_disk(make_result, tmp_path):
    with user_error("image_too_large", "1000000 x 1000000"):
        write_labels(make_result(size=(10**6, 10**6)), tmp_path / "x.tif")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("particle", [0, -3, 2**31])
def test_numbers_that_do_not_fit_are_an_error(make_result, tmp_path, particle):
    with user_error("annotations_invalid", particle, "--formats"):
        write_labels(make_result(ids=(1, 2, particle)), tmp_path / "x.tif")
    assert not list(tmp_path.iterdir())
