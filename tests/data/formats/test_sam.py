"""Segment Anything's JSON."""

import json

import numpy as np
import pycocotools.mask as mask_util
import pytest
from format_fuzz import check_cases, check_reader
from PIL import Image
from support import user_error

from microplastics.data.formats import coco, sam
from microplastics.data.formats.base import Notes, ReadOptions, detect

MASK = np.zeros((20, 30), np.uint8)
MASK[2:6, 3:9] = 1


def annotation(**more):
    rle = mask_util.encode(np.asfortranarray(MASK))
    rle["counts"] = rle["counts"].decode()
    entry = {"id": 7, "area": 24, "bbox": [3, 2, 6, 4], "segmentation": rle}
    return entry | {"predicted_iou": 0.9, "stability_score": 0.8, "point_coords": [[4, 3]]} | more


def document(**more):
    image = {"image_id": 1, "width": 30, "height": 20, "file_name": "a.jpg"}
    return {"image": image, "annotations": [annotation(), annotation(**more)]}


def write(path, document, image="a.jpg"):
    path.write_text(json.dumps(document))
    Image.new("RGB", (30, 20)).save(path.with_name(image))


def read(path, **options):
    notes = Notes()
    (source,) = sam.read(path, ReadOptions(**options), notes).values()
    assert source.classes == ["particle"]
    return list(source.records()), notes


def test_masks_and_their_scores(tmp_path):
    counts = {"size": [20, 30], "counts": [62, 4, 534]}
    write(tmp_path / "sa_1.json", document(segmentation=counts))
    assert detect(tmp_path) == detect(tmp_path / "sa_1.json") == "sam" and not coco.detect(tmp_path)
    (record,), notes = read(tmp_path)
    first, second = record.instances
    assert np.array_equal(mask_util.decode(first.segmentation), MASK)
    assert mask_util.area(second.segmentation) == 4 and len(notes) == 0
    assert first.extra["predicted_iou"] == 0.9 and first.extra["point_coords"] == [[4, 3]]


def test_the_list_of_the_mask_generator(tmp_path):
    write(tmp_path / "b.json", [annotation()], "b.png")
    write(tmp_path / "c.json", [annotation()], "c.tif")
    assert detect(tmp_path) == "sam"
    assert [record.file_name for record in read(tmp_path)[0]] == ["b.png", "c.tif"]


@pytest.mark.parametrize(
    ("segmentation", "code"),
    [
        ({"size": [30, 20], "counts": "0"}, "shape_broken"),
        ({"size": [20, 30], "counts": [600]}, "shape_without_area"),
        (None, "shape_broken"),
    ],
)
def test_unusable_masks_are_noted(tmp_path, segmentation, code):
    write(tmp_path / "a.json", document(segmentation=segmentation))
    (record,), notes = read(tmp_path)
    assert len(record.instances) == 1 and notes.count(code) == 1


def test_unusable_files(tmp_path):
    write(tmp_path / "a.json", {"image": [], "annotations": []})
    with user_error("annotations_invalid", "a.json"):
        read(tmp_path)
    write(tmp_path / "a.json", {**document(), "image": {"file_name": "/etc/passwd"}}, "z.jpg")
    (tmp_path / "a.jpg").unlink()
    with user_error("image_missing", "passwd"):
        read(tmp_path)


@pytest.fixture(scope="module")
def fuzz_path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sam")
    Image.new("RGB", (30, 20)).save(folder / "a.jpg")
    return folder / "a.json"


def test_fuzzed(fuzz_path):
    documents = [document(), [annotation()]]
    check_cases(lambda seed: check_reader(sam, fuzz_path, documents, seed))
