"""Results of strangers."""

import json

import numpy as np
import pycocotools.mask as mask_util
import pytest

from microplastics.errors import UserError
from microplastics.report.results import read_results, results_by_image, results_to_instances

GOOD = {"image_id": 1, "category_id": 2, "bbox": [1, 2, 3, 4], "score": 0.5}
SIZE = (10, 20)


def rle(size=SIZE):
    mask = np.zeros(size, np.uint8, order="F")
    mask[2:6, 1:4] = 1
    encoded = mask_util.encode(mask)
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


@pytest.mark.parametrize(
    "content, words",
    [
        (None, "Cannot read"),
        ("", "No JSON in"),
        ("[{", "No JSON in"),
        (b"\xff\xfe\xfa", "No JSON in"),
        ("[" * 100_000, "No JSON in"),
        ("[1" + "0" * 5000 + "]", "No JSON in"),
        ("{}", "holds no list of predictions"),
        ([GOOD, 3], "number 2 of .* is not a JSON object"),
        ([{**GOOD, "image_id": None}], "lacks an image_id"),
        ([{**GOOD, "category_id": 1.5}], "lacks a category_id"),
        ([{**GOOD, "score": float("nan")}], "no number as score"),
        ([{**GOOD, "score": "0.5"}], "no number as score"),
        ([{**GOOD, "bbox": [1, 2, 3]}], "no four numbers as bbox"),
        ([{**GOOD, "bbox": [1, 2, 3, 10**400]}], "no four numbers as bbox"),
        ([{**GOOD, "bbox": [1, 2, -3, 4]}], "negative size"),
        ([{k: v for k, v in GOOD.items() if k != "bbox"}], "neither bbox nor segmentation"),
    ],
)
def test_a_file_that_is_no_list_of_predictions_is_refused(tmp_path, content, words):
    path = tmp_path / "results.json"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError, match=f"{words}(.|\n)*coco_instances_results.json that an"):
        read_results(path)


def test_predictions_for_other_images_are_refused():
    dicts = [{"image_id": 1}, {"image_id": 7}]
    assert results_by_image([GOOD], dicts, "") == {1: [GOOD], 7: []}
    with pytest.raises(
        UserError, match="a and b do not belong together: 2 pred.*image id 8.*--data"
    ):
        results_by_image([GOOD] + [{**GOOD, "image_id": 8}] * 2, dicts, "a and b")


@pytest.mark.parametrize(
    "change, words",
    [
        ({"category_id": 4}, "category 4 is predicted, and the data set has 1, 2"),
        ({"segmentation": rle((20, 20))}, r"RLE of size \[20, 20\] in an image of size \[10, 20\]"),
        ({"segmentation": {"size": [10, 20], "counts": "!!"}}, "does not fit"),
        ({"segmentation": [[1, 2]]}, "at least 3 points"),
        ({"segmentation": 3}, "does not fit"),
        ({"bbox": [30, 2, 3, 4]}, "outside the image of 20 x 10 px"),
        ({"bbox": [-9, 2, 3, 4]}, "outside the image"),
    ],
)
def test_what_does_not_fit_the_data_set_is_refused(change, words):
    with pytest.raises(UserError, match=f"do not belong together: .*{words}"):
        results_to_instances([{**GOOD, **change}], SIZE, {1: 0, 2: 1}, "x")


def test_some_with_and_some_without_masks_are_refused():
    with pytest.raises(UserError, match="some predictions have masks, others not"):
        results_to_instances([GOOD, {**GOOD, "segmentation": rle()}], SIZE, {2: 1}, "x")


def test_instances_have_contiguous_classes_cut_boxes_and_crop_masks():
    polygon = [[15, 5, 19, 5, 19, 9]]
    given = [
        {**GOOD, "bbox": [-1, 2, 30, 4], "segmentation": rle()},
        {"image_id": 1, "category_id": 1, "score": 1, "segmentation": polygon},
    ]
    instances = results_to_instances(given, SIZE, {1: 0, 2: 1}, "x")
    assert instances.pred_classes.tolist() == [1, 0] and instances.scores.tolist() == [0.5, 1]
    assert instances.pred_boxes.tensor[0].tolist() == [0, 2, 20, 6]
    assert instances.pred_masks.area()[0] == 12
    assert instances[instances.scores >= 0.6].pred_boxes.tensor.tolist() == [[16, 5, 19, 8]]


def test_boxes_alone_and_nothing_at_all_are_fine():
    assert not results_to_instances([GOOD], SIZE, {2: 0}, "x").has("pred_masks")
    assert len(results_to_instances([], SIZE, {2: 0}, "x")) == 0
