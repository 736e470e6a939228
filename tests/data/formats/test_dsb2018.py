"""A folder an image, with one mask file a particle."""

import numpy as np
import pycocotools.mask as mask_util
import pytest
from format_fuzz import check_cases, check_damaged
from PIL import Image
from support import user_error

from microplastics.data.formats import dsb2018, masks
from microplastics.data.formats.base import Notes, ReadOptions

PARTS = np.zeros((20, 30), np.uint8)
PARTS[2:6, 3:9] = PARTS[12:14, 20:25] = 255  # one particle in two parts
SMALL = np.zeros((20, 30), np.uint8)
SMALL[8:10, 3:9] = 255


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def make(folder, name):
    save(folder / name / "images" / f"{name}.png", np.full((20, 30, 4), 99, np.uint8))
    save(folder / name / "masks" / "7b38.png", PARTS)
    save(folder / name / "masks" / "fe01.png", SMALL)


def read(folder, **options):
    notes = Notes()
    sources = dsb2018.read(folder, ReadOptions(**options), notes)
    return {split: list(source.records()) for split, source in sources.items()}, notes


def test_each_file_is_one_particle(tmp_path):
    make(tmp_path, "a1")
    make(tmp_path, "b2")
    (tmp_path / "c3/images").mkdir(parents=True)
    assert dsb2018.detect(tmp_path) and not masks.detect(tmp_path)
    found, notes = read(tmp_path)
    assert [record.file_name for record in found["all"]] == [
        *("a1/images/a1.png", "b2/images/b2.png")
    ]
    for record in found["all"]:
        assert [each.category for each in record.instances] == ["particle"] * 2
        for each, mask in zip(record.instances, (PARTS, SMALL), strict=True):
            assert np.array_equal(mask_util.decode(each.segmentation), mask > 0)
    assert notes.as_dict()["image_unannotated"]["places"] == ["c3"]


def test_stages_are_splits(tmp_path):
    make(tmp_path / "stage1_train", "a1")
    make(tmp_path / "stage1_test", "b2")
    assert list(read(tmp_path)[0]) == ["train", "test"]
    make(tmp_path / "stage2_test", "c3")
    assert dsb2018.detect(tmp_path)
    with user_error("name_clash", "stage1_test", "stage2_test"):
        read(tmp_path)


def test_folders_of_splits_are_another_format(tmp_path):
    save(tmp_path / "train/images/a.png", PARTS)
    save(tmp_path / "train/masks/a.png", PARTS)
    assert masks.detect(tmp_path) and not dsb2018.detect(tmp_path)


@pytest.mark.parametrize(
    ("name", "array", "code"),
    [
        ("masks/7b38.png", PARTS[1:], "image_size"),
        ("masks/7b38.png", PARTS + SMALL // 2, "image_invalid"),
        ("masks/7b38.jpg", PARTS, "image_invalid"),
        ("images/other.png", PARTS, "image_missing"),
    ],
)
def test_unusable_files(tmp_path, name, array, code):
    make(tmp_path, "a1")
    make(tmp_path, "b2")
    save(tmp_path / "b2" / name, array)
    with user_error(code, "b2"):
        read(tmp_path)
    found, notes = read(tmp_path, skip_broken=True)
    assert [record.file_name for record in found["all"]] == ["a1/images/a1.png"]
    assert len(notes) == 1


def test_other_images_are_not_ignored(tmp_path):
    make(tmp_path, "a1")
    with user_error("option_conflict", "--images"):
        read(tmp_path, images=tmp_path)


def test_an_empty_mask_is_noted(tmp_path):
    make(tmp_path, "a1")
    save(tmp_path / "a1/masks/0.png", 0 * PARTS)
    found, notes = read(tmp_path)
    assert len(found["all"][0].instances) == 2 and notes.count("shape_without_area") == 1


def test_damaged_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    make(folder, "a1")
    save(folder / "a1/masks/0.tif", SMALL)  # without a check sum
    check_cases(lambda seed: check_damaged(dsb2018, folder, seed, "masks/*"))
