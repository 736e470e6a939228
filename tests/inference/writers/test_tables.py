import csv

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from microplastics.inference.writers import write_csv, write_parquet
from microplastics.inference.writers.tables import conform, merge_schemas, open_csv, to_arrow


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


def test_images_with_and_without_a_scale_share_one_table(make_result):
    um, px = to_arrow(make_result().table), to_arrow(make_result(um_per_px=None).table)
    schema = merge_schemas([px.schema, um.schema])
    assert schema.names == merge_schemas([um.schema, px.schema]).names
    assert schema.names.index("area_um2") < schema.names.index("length_px")
    assert schema.names[-1] == "calibration_source"
    joined = pa.concat_tables([conform(px, schema), conform(um, schema)])
    assert joined["length_um"].null_count == joined["length_px"].null_count == 3
    assert joined["area_px"].null_count == 0


def test_other_columns_go_behind_and_whole_numbers_give_way():
    one = to_arrow(pd.DataFrame({"depth": [1], "image": ["a"]}))
    other = to_arrow(pd.DataFrame({"image": ["b"], "depth": [0.5]}))
    schema = merge_schemas([one.schema, other.schema])
    assert schema.names == ["image", "depth"] and schema.field("depth").type == pa.float64()


def test_a_table_that_fails_leaves_the_old_one(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("old")
    table = to_arrow(pd.DataFrame({"image": ["a"]}))
    with pytest.raises(RuntimeError), open_csv(path, table.schema) as add:
        add(table)
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_many_images_become_few_row_groups(tmp_path):
    from microplastics.inference.writers.tables import open_parquet

    table = to_arrow(pd.DataFrame({"particle": range(1000)}))
    with open_parquet(tmp_path / "t.parquet", table.schema) as add:
        for _ in range(250):
            add(table)
    file = pq.ParquetFile(tmp_path / "t.parquet")
    assert file.metadata.num_rows == 250_000 and file.num_row_groups == 3
