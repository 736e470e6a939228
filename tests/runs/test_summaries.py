import json

import numpy as np
import pandas as pd
import pytest
from support import user_error

from microplastics.calibration import Calibration
from microplastics.counts.summary import summarize
from microplastics.measurement.table import combine_tables, images_table, particle_table
from microplastics.runs.summaries import merge_runs, read_particles
from microplastics.structures.particles import Particles

SCALE = Calibration(0.1 + 0.2, 'the file\'s own, "TIFF"')


def particles(image, count):
    rng = np.random.default_rng(count)
    masks = [np.ones(shape, bool) for shape in rng.integers(2, 12, (count, 2))]
    colors = [np.full((mask.sum(), 3), 90, np.uint8) for mask in masks]
    offsets = rng.integers(0, 80, (count, 2)).reshape(-1, 2)
    scores = np.where(np.arange(count) % 2, np.nan, 1 / 3)
    numbers = np.arange(1, count + 1)
    return Particles(image, (99, 98), masks, offsets, ["Film"] * count, scores, numbers, colors)


@pytest.fixture
def run(tmp_path):
    def write(name, counts, calibration=SCALE, settings=None):
        tables = [particle_table(particles(i, c), calibration) for i, c in counts.items()]
        table = combine_tables(tables)
        images = images_table([(image, (99, 98), calibration) for image in counts])
        folder = tmp_path / name
        folder.mkdir()
        table.to_csv(folder / "particles.csv", index=False)
        summarize(table, images).to_csv(folder / "summary.csv", index=False)
        if settings:
            (folder / "run.json").write_text(json.dumps(settings))
        return folder, table, images

    return write


@pytest.mark.parametrize("calibration", [SCALE, None])
def test_runs_are_as_if_they_were_one(run, calibration):
    one = run("one", {"NA": 3, "ümlaut, 1.tif": 1}, calibration)
    other = run("other", {"=cmd": 0, "007": 2}, calibration)
    table, images = merge_runs([one[0], other[0]])
    pd.testing.assert_frame_equal(table, combine_tables([one[1], other[1]]))
    pd.testing.assert_frame_equal(images, pd.concat([one[2], other[2]], ignore_index=True))
    assert summarize(table, images)["particles"].tolist() == [3, 1, 0, 2]


def test_a_run_without_particles_is_merged(run):
    table, images = merge_runs([run("one", {"a": 0})[0]])
    assert len(table) == 0 and images["image"].tolist() == ["a"]


def test_excel_may_have_saved_it(run):
    folder, table, _ = run("one", {"a": 2})
    path = folder / "particles.csv"
    text = path.read_text(encoding="utf-8").replace("True", "TRUE").replace("False", "FALSE")
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    pd.testing.assert_frame_equal(read_particles(path), table)


def test_an_image_in_two_runs_is_an_error(run):
    one, other = run("one", {"a": 1})[0], run("other", {"b": 0, "a": 1})[0]
    with user_error("name_clash", "a", one, other):
        merge_runs([one, other])
    with user_error("name_clash", "a", one):
        merge_runs([one, one])


def test_different_units_are_an_error(run):
    one, other = run("one", {"a": 1})[0], run("other", {"b": 0}, None)[0]
    with user_error("scale_missing", one, other):
        merge_runs([one, other])


def test_different_settings_are_an_error(run):
    one = run("one", {"a": 1}, settings={"thresholds": {"Film": 0.5}, "time": 3})[0]
    other = run("other", {"b": 1}, settings={"thresholds": {"Film": 0.6}, "time": 4})[0]
    merge_runs([one, other], same=["weights"])
    with user_error("run_mismatch", "thresholds", one, other):
        merge_runs([one, other], same=["weights", "thresholds"])


def changed(path, column, value, row=0):
    cells = pd.read_csv(path, dtype=str, keep_default_na=False)
    cells.loc[row, column] = value
    cells.to_csv(path, index=False)


@pytest.mark.parametrize(
    ("file", "column", "value", "named"),
    [
        ("particles.csv", "x", "1,5", "1,5"),
        ("particles.csv", "x", "", "row 2"),
        ("particles.csv", "x", "1e999", "row 2"),
        ("particles.csv", "bbox_w", "2.5", "particles.csv"),
        ("particles.csv", "bbox_w", "9" * 30, "particles.csv"),
        ("particles.csv", "touches_edge", "maybe", "particles.csv"),
        ("particles.csv", "image", "", "row 2"),
        ("particles.csv", "class", "", "row 2"),
        ("particles.csv", "bbox_h", "-4", "image a"),
        ("particles.csv", "image", "z", "particles.csv"),
        ("particles.csv", "um_per_px", "7", "scales"),
        ("particles.csv", "feret_max_um", "", "row 2"),
        ("particles.csv", "feret_max_um", "-3", "row 2"),
        ("summary.csv", "particles", "5", "image a"),
        ("summary.csv", "width_px", "0", "image a"),
        ("summary.csv", "um_per_px", "-1", "image a"),
        ("summary.csv", "image", "b", "image b"),
    ],
)
def test_cells_that_are_wrong_are_named(run, file, column, value, named):
    folder = run("one", {"a": 2, "b": 1})[0]
    changed(folder / file, column, value)
    with user_error("run_invalid", folder, named):
        merge_runs([folder])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"image;particle\na;1\n",
        b"\xff\xfe\x00\xd8",
        b"image,x\n1,2\n3,4,5,6\n",
        b"image,x\n1,2,3\n4,5,6\n",
        b'image,x\n"a,1\n',
        b"\x00" * 50,
    ],
)
def test_what_is_not_a_table_is_an_error(run, content):
    folder = run("one", {"a": 2})[0]
    (folder / "particles.csv").write_bytes(content)
    with user_error("run_invalid", folder / "particles.csv"):
        merge_runs([folder])


def test_a_missing_table_is_an_error(tmp_path):
    with user_error("file_missing", tmp_path / "particles.csv"):
        merge_runs([tmp_path])


def test_a_summary_of_groups_is_not_taken_for_images(run):
    folder, table, images = run("one", {"a": 1})
    summarize(table, images, groups={"a": "g"}).to_csv(folder / "summary.csv", index=False)
    with user_error("run_invalid", "summary.csv", "group"):
        merge_runs([folder])
