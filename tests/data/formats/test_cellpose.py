"""Cellpose's …_seg.npy."""

import os

import numpy as np
import pycocotools.mask as mask_util
import pytest
from format_fuzz import check_cases, check_damaged
from PIL import Image
from support import user_error

from microplastics.data.formats import cellpose, masks
from microplastics.data.formats.base import Notes, ReadOptions, detect

LABELS = np.zeros((20, 30), np.uint16)
LABELS[2:6, 3:9] = 1
LABELS[10:18, 5:7] = 2
LABELS[10:12, 20:25] = 300


def photo(path, size=(30, 20)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "grey").save(path)


def seg(path, masks=LABELS, **more):
    """Save as Cellpose's GUI does."""
    table = {"outlines": 0 * LABELS, "colors": [[1, 2, 3]], "masks": masks, "filename": "x/a.tif"}
    table |= {"flows": [np.zeros((20, 30, 3), np.float32), []], "ismanual": np.zeros(3, bool)}
    np.save(path, {**table, "est_diam": np.float32(30), "model_path": None, **more})


def read(path, **options):
    notes = Notes()
    (source,) = cellpose.read(path, ReadOptions(**options), notes).values()
    return list(source.records()), notes


class Evil:
    def __reduce__(self):
        return os.system, ("touch pwned",)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, ">u4", np.int64])
def test_masks_of_any_depth(tmp_path, dtype):
    photo(tmp_path / "a.png")
    photo(tmp_path / "b.png")
    seg(tmp_path / "a_seg.npy", np.asfortranarray(LABELS.astype(dtype)))
    (record,), notes = read(tmp_path)
    assert record.file_name == "a.png" and notes.as_dict()["image_unannotated"]["places"] == [
        "b.png"
    ]
    for number, each in zip((1, 2, 300), record.instances, strict=True):
        assert np.array_equal(mask_util.decode(each.segmentation), LABELS == number)
        assert each.category == "particle"
    assert read(tmp_path / "a_seg.npy")[0] == [record]


def test_cellpose_s_other_files_are_no_annotations(tmp_path):
    photo(tmp_path / "a.tif")
    seg(tmp_path / "a_seg.npy", LABELS[None])
    np.save(tmp_path / "a_flows.npy", LABELS)
    Image.fromarray(LABELS).save(tmp_path / "a_cp_masks.png")
    assert detect(tmp_path) == "cellpose" and not masks.detect(tmp_path)
    assert len(read(tmp_path)[0][0].instances) == 3


def test_the_named_image_of_several(tmp_path):
    photo(tmp_path / "a.png")
    photo(tmp_path / "a.tif")
    seg(tmp_path / "a_seg.npy")
    assert read(tmp_path)[0][0].file_name == "a.tif"
    seg(tmp_path / "a_seg.npy", filename="C:\\x\\b.tif")
    with user_error("name_clash", "a.png", "a.tif"):
        read(tmp_path)
    (tmp_path / "a.png").unlink()
    (tmp_path / "a.tif").unlink()
    with user_error("image_missing", "a_seg.npy"):
        read(tmp_path)


def test_nothing_in_the_file_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photo(tmp_path / "a.png")
    seg(tmp_path / "a_seg.npy", flows=[Evil()])
    with user_error("file_invalid", "a_seg.npy", "system", "nothing in it was run"):
        read(tmp_path)
    assert not os.path.exists("pwned")


@pytest.mark.parametrize(
    ("masks", "code"),
    [
        (LABELS[1:], "image_size"),
        (LABELS[None].repeat(2, 0), "annotations_invalid"),
        (LABELS.astype(np.float32), "annotations_invalid"),
        (LABELS.astype(np.int32) - 1, "annotations_invalid"),
        ([[1]], "annotations_invalid"),
        (np.arange(1, 90_001).reshape(300, 300), "image_size"),
    ],
)
def test_unusable_masks(tmp_path, masks, code):
    photo(tmp_path / "a.png")
    seg(tmp_path / "a_seg.npy", masks)
    with user_error(code, "a_seg.npy"):
        read(tmp_path)
    records, notes = read(tmp_path, skip_broken=True)
    assert not records and len(notes) == 1


def test_noise_is_refused(tmp_path):
    photo(tmp_path / "a.png", (300, 300))
    seg(tmp_path / "a_seg.npy", np.arange(1, 90_001).reshape(300, 300))
    with user_error("image_invalid", "a_seg.npy", "50000"):
        read(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY\x01\0", LABELS, np.array([{}, {}])])
def test_other_files(tmp_path, content):
    photo(tmp_path / "a.png")
    path = tmp_path / "a_seg.npy"
    path.write_bytes(content) if isinstance(content, bytes) else np.save(path, content)
    with user_error("file_invalid", "a_seg.npy"):
        read(tmp_path)


def test_a_pipe_is_not_waited_for(tmp_path):
    photo(tmp_path / "a.png")
    os.mkfifo(tmp_path / "a_seg.npy")
    with user_error("file_invalid", "a_seg.npy", "is not a file"):
        read(tmp_path)


def test_damaged_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    photo(folder / "a.png")
    seg(folder / "a_seg.npy")
    check_cases(lambda seed: check_damaged(cellpose, folder, seed, "*.npy"))
