import csv

import numpy as np
import pytest
import tifffile

from microplastics.data.formats import masks
from microplastics.data.formats.codes import NOTES
from microplastics.data.formats.notes import Notes
from microplastics.data.formats.records import ImageRecord, Instance, Source
from microplastics.errors import UserError


def square(x, y, side, category="Fiber", **fields):
    ring = [x, y, x + side, y, x + side, y + side, x, y + side]
    return Instance(category, [[float(v) for v in ring]], f"{category} at {x}", **fields)


def write(tmp_path, *records, classes=("Fiber", "Film")):
    notes = Notes(NOTES)
    source = Source(tmp_path, list(classes), lambda: iter(records))
    return masks.write_dataset({"train": source}, tmp_path / "out", notes), notes


def test_written_label_images(tmp_path):
    record = ImageRecord(
        "s/a.jpg", 30, 20, [square(2, 2, 5), square(4, 4, 5, "Film", iscrowd=1)], {"site": "X"}
    )
    paths, notes = write(tmp_path, record)
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == [
        "out/train/masks/s/a.tif",
        "out/train/classes.csv",
        "out/train/classes.txt",
    ]
    labels = tifffile.imread(paths[0])
    assert labels.dtype == np.int32 and labels.shape == (20, 30)
    expected = np.zeros((20, 30))
    expected[2:7, 2:7] = 1
    expected[4:9, 4:9] = 2
    assert np.array_equal(labels, expected)
    assert list(csv.reader(paths[1].open())) == [
        ["image", "id", "class", "iscrowd"],
        ["s/a.jpg", "1", "Fiber", "0"],
        ["s/a.jpg", "2", "Film", "1"],
    ]
    assert notes.as_dict()["overlap_lost"]["places"] == ["Fiber at 2 (9 of 25 px)"]
    assert notes.count("extra_lost") == 1


def test_covered_particles_are_lost_with_a_note(tmp_path):
    paths, notes = write(tmp_path, ImageRecord("a.jpg", 30, 20, [square(3, 3, 2), square(2, 2, 5)]))
    assert len(paths[1].read_text().splitlines()) == 2
    assert notes.as_dict()["instance_lost"]["places"] == ["Fiber at 3 (wholly under later ones)"]


def test_names_that_differ_in_the_ending_alone(tmp_path):
    records = [ImageRecord(name, 30, 20, [square(2, 2, 5)]) for name in ("a.jpg", "a.png")]
    with pytest.raises(UserError, match="would share the label image a.tif"):
        write(tmp_path, *records)


def test_hostile_names_and_sizes_are_not_written(tmp_path):
    with pytest.raises(UserError, match="leaves the image folder"):
        write(tmp_path, ImageRecord("../a.jpg", 30, 20))
    with pytest.raises(UserError, match="above the limit"):
        write(tmp_path, ImageRecord("a.jpg", 10**6, 10**6))
