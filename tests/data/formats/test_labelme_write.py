import json

import numpy as np
import pycocotools.mask as mask_util
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support import user_error

from microplastics.data.formats import labelme
from microplastics.data.formats.base import NOTES, ImageRecord, Instance, Notes, ReadOptions, Source


def _coco_records():
    rng = np.random.default_rng(3)
    polygons = [(rng.random((12, 2)) * [64, 48]).reshape(-1).tolist() for _ in range(3)]
    blob = rng.random((48, 64)) > 0.6
    rle = mask_util.encode(np.asfortranarray(blob))
    rle = {"size": [48, 64], "counts": rle["counts"].decode()}
    extra = {"description": "d", "score": 0.25, "flags": {"f": True}, "attributes": {"a": 1}}
    instances = [
        Instance("Fiber", polygons[:1], "0", extra=extra),
        Instance("Film", polygons[1:], "1"),
        Instance("Film", rle, "2", iscrowd=1),
    ]
    return [
        ImageRecord("sub/a.png", 64, 48, instances, {"sample": "S1"}),
        ImageRecord("sub/a.tif", 64, 48, []),
    ]


def test_nothing_is_lost_in_the_round_trip(tmp_path):
    records = _coco_records()
    source = Source(tmp_path / "in", ["Fiber", "Film"], lambda: iter(records), 2)
    notes = Notes()
    paths = labelme.write({"train": source}, tmp_path / "out", notes)
    assert [path.relative_to(tmp_path / "out").as_posix() for path in paths] == [
        "train/sub/a.json",
        "train/sub/a.tif.json",
    ]
    assert [line.split(":")[0] for line in notes.lines()] == [f"1 x {NOTES['parts_split']}"]
    for record in records:
        Image.new("RGB", (64, 48)).save(tmp_path / "out/train" / record.file_name)
    notes = Notes()
    back = labelme.read(tmp_path / "out", ReadOptions(), notes)["train"]
    first, second = back.records()
    assert back.classes == ["Fiber", "Film"] and notes.count("group_joined") == 1
    assert (first.file_name, second.file_name) == ("sub/a.png", "sub/a.tif")
    assert first.extra == {"sample": "S1"} and second.instances == []
    for before, after in zip(records[0].instances, first.instances, strict=True):
        assert after.segmentation == before.segmentation
        assert (after.category, after.iscrowd) == (before.category, before.iscrowd)
        assert after.extra == before.extra


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 40), st.floats(0, 1))
def test_any_mask_survives_the_round_trip(seed, height, width, share):
    blob = np.random.default_rng(seed).random((height, width)) < share
    rle = mask_util.encode(np.asfortranarray(blob))
    instance = Instance("A", {"size": [height, width], "counts": rle["counts"].decode()}, "0")
    notes = Notes()
    document = labelme._document(ImageRecord("a.png", width, height, [instance]), notes)
    if not blob.any():
        assert document["shapes"] == [] and notes.count("instance_lost") == 1
        return
    assert labelme._mask(document["shapes"][0], (height, width)) == instance.segmentation


def test_what_labelme_cannot_hold_is_noted(tmp_path):
    extra = {"label": "x", "flags": [1], "long": "x" * 5000}
    broken = Instance("A", {"size": [48, 64], "counts": "zz"}, "1")
    record = ImageRecord(
        "a.png", 64, 48, [Instance("A", [[1, 1, 9, 1, 9, 9]], "0", 0, extra), broken]
    )
    notes = Notes()
    source = Source(tmp_path, ["A"], lambda: iter([record]))
    (path,) = labelme.write({"all": source}, tmp_path, notes)
    (shape,) = json.loads(path.read_text())["shapes"]
    assert notes.count("extra_lost") == 3 and notes.count("instance_lost") == 1
    assert shape["label"] == "A" and shape["flags"] == {}


def test_a_name_that_leaves_the_folder_is_not_written(tmp_path):
    record = ImageRecord("../a.png", 64, 48)
    source = Source(tmp_path, [], lambda: iter([record]))
    with user_error("annotations_invalid", "'../a.png'"):
        labelme.write({"all": source}, tmp_path / "out", Notes())
    assert not (tmp_path / "a.json").exists()
