import copy
import json
import os

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.data import MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.structures import BoxMode
from pycocotools.cocoeval import COCOeval

from microplastics.data import coco
from microplastics.data.coco import (
    class_names,
    coco_api,
    coco_ground_truth,
    contiguous_ids,
    load_instances,
)
from microplastics.errors import UserError


def _clean(seed=0, images=6, each=5):
    """A JSON in which polygons, both kinds of RLE, sparse ids and shuffled lists occur."""
    rng = np.random.default_rng(seed)
    data = {
        "images": [
            {"id": 10 * i + 3, "file_name": f"{i}.png", "width": 90, "height": 60, "license": 1}
            for i in range(images)
        ],
        "categories": [
            {"id": 7, "name": "Film"},
            {"id": 2, "name": "Fiber"},
            {"id": 4, "name": "Fragment"},
        ],
        "annotations": [],
    }
    for image in data["images"]:
        for _ in range(each):
            id_ = len(data["annotations"]) + 1
            x, y = rng.integers(0, [60, 40]).tolist()
            width, height = rng.integers(5, 20, 2).tolist()
            mask = np.zeros((60, 90), np.uint8)
            mask[y : y + height, x : x + width] = 1
            rle = mask_util.encode(np.asfortranarray(mask))
            runs = np.flatnonzero(np.diff(mask.T.ravel(), prepend=0, append=0))
            runs = np.diff([0, *runs.tolist(), 5400]).tolist()
            segmentation = [
                [[x, y, x + width, y, x + width, y + height, x, y + height]],
                {"size": [60, 90], "counts": rle["counts"].decode()},
                {"size": [60, 90], "counts": runs},
            ][id_ % 3]
            data["annotations"].append(
                {
                    "id": id_,
                    "image_id": image["id"],
                    "category_id": [2, 4, 7][id_ % 3],
                    "bbox": [x, y, width, height],
                    "area": width * height,
                    "iscrowd": int(id_ % 7 == 0),
                    "segmentation": segmentation,
                }
            )
    rng.shuffle(data["images"])
    rng.shuffle(data["annotations"])
    return data


@pytest.fixture
def path(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(_clean()))
    return str(tmp_path / "a.json")


def test_loads_as_detectron2_does(path):
    name = f"loads as Detectron2 {path}"
    expected = load_coco_json(path, "/images", name, extra_annotation_keys=["id"])
    loaded = load_instances(path, "/images")
    assert loaded == expected
    assert loaded[0]["annotations"][0]["bbox_mode"] is BoxMode.XYWH_ABS
    metadata = MetadataCatalog.get(name)
    assert class_names(path) == metadata.thing_classes == ["Fiber", "Fragment", "Film"]
    assert contiguous_ids(path) == metadata.thing_dataset_id_to_contiguous_id == {2: 0, 4: 1, 7: 2}


def test_metadata_of_the_named_data_set(path):
    load_instances(path, "/images", f"named {path}")
    load_instances(path, "/images", f"named {path}")
    assert MetadataCatalog.get(f"named {path}").thing_classes == ["Fiber", "Fragment", "Film"]
    MetadataCatalog.get(f"other {path}").thing_classes = ["Pellet"]
    with pytest.raises(UserError, match="metadata of data set .* says otherwise"):
        load_instances(path, "/images", f"other {path}")


def test_changes_of_a_caller_do_not_reach_the_next(path):
    first = load_instances(path, "/images")
    kept = copy.deepcopy(first)
    truth = coco_ground_truth(path)
    for image in first:
        for annotation in image["annotations"]:
            annotation["bbox"][0] = -1
            if isinstance(annotation["segmentation"], dict):
                annotation["segmentation"]["counts"] = "oo"
            else:
                annotation["segmentation"][0].clear()
        image["annotations"].clear()
    for annotation in truth["annotations"]:
        annotation.clear()
    assert load_instances(path, "/images") == kept


def test_missing_area_iscrowd_and_wrong_boxes_are_filled_in_from_the_mask(path):
    data = _clean()
    expected = load_instances(path, "/images")
    for annotation in data["annotations"]:
        del annotation["area"]
        annotation["bbox"] = [0, 0, 1, 0]
        if not annotation["iscrowd"]:
            del annotation["iscrowd"]
    with open(path, "w") as file:
        json.dump(data, file)
    assert load_instances(path, "/images") == expected


def test_ground_truth_has_the_areas_of_the_masks(path):
    data = _clean()
    areas = {annotation["id"]: annotation["area"] for annotation in data["annotations"]}
    for annotation in data["annotations"]:
        annotation["area"] *= 17
    with open(path, "w") as file:
        json.dump(data, file)
    truth = coco_ground_truth(path)
    assert {annotation["id"]: annotation["area"] for annotation in truth["annotations"]} == areas
    assert json.loads(json.dumps(truth)) == truth
    assert [category["id"] for category in truth["categories"]] == [2, 4, 7]


def test_coco_api_evaluates_and_prints_nothing(path, capsys):
    api = coco_api(path)
    assert capsys.readouterr().out == ""
    assert len(api.anns) == 30 and sorted(api.imgs) == [3, 13, 23, 33, 43, 53]
    results = [
        {
            "image_id": annotation["image_id"],
            "category_id": annotation["category_id"],
            "segmentation": api.annToRLE(annotation),
            "score": 0.9,
        }
        for annotation in api.dataset["annotations"]
        if not annotation["iscrowd"]
    ]
    evaluation = COCOeval(api, api.loadRes(results), "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1)


def test_roboflow_layout_loads_as_one_class(tmp_path):
    data = _clean()
    data["categories"] = [
        {"id": 0, "name": "Microplastics", "supercategory": "none"},
        {"id": 1, "name": "Microplastics", "supercategory": "Microplastics"},
    ]
    for annotation in data["annotations"]:
        annotation["category_id"] = 1
    path = str(tmp_path / "_annotations.coco.json")
    with open(path, "w") as file:
        json.dump(data, file)
    assert class_names(path) == ["Microplastics"] and contiguous_ids(path) == {1: 0}
    ids = {a["category_id"] for image in load_instances(path, "") for a in image["annotations"]}
    assert ids == {0}
    assert list(coco_api(path).cats) == [1]


def test_a_file_is_parsed_once_until_it_changes(path, monkeypatch):
    reads = []
    read_json = coco.read_json
    monkeypatch.setattr(coco, "read_json", lambda path: reads.append(path) or read_json(path))
    class_names(path), load_instances(path, ""), coco_api(path)
    class_names(os.path.relpath(path))
    assert reads == [path]
    data = _clean()
    data["categories"][0]["name"] = "Foam"
    with open(path, "w") as file:
        json.dump(data, file)
    assert class_names(path) == ["Fiber", "Fragment", "Foam"] and reads == [path, path]


def test_a_broken_file_stays_broken_until_it_is_mended(path):
    content = open(path).read()
    with open(path, "w") as file:
        file.write(content[:500])
    for _ in range(2):
        with pytest.raises(UserError, match="is cut off"):
            load_instances(path, "")
    with open(path, "w") as file:
        file.write(content)
    assert len(load_instances(path, "")) == 6
    os.unlink(path)
    with pytest.raises(UserError, match="No such file"):
        load_instances(path, "")
