"""microplastics/evaluation/base.py."""

import json

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from detectron2.structures import Boxes, Instances
from scale_bar_pictures import draw_bar, plain_style

from microplastics.data.catalog import resolve_datasets
from microplastics.data.mapper import MicroplasticsDatasetMapper
from microplastics.evaluation import base
from microplastics.evaluation.base import TruthEvaluator
from microplastics.evaluation.coco import COCOEvaluator


class Evaluator(TruthEvaluator):
    def judge(self, image_id, instances):
        return None if instances is None else {"found": instances}


@pytest.fixture
def name(tmp_path):
    images = [{"id": 5, "file_name": "5.png", "height": 4, "width": 6}]
    path = tmp_path / "truth.json"
    categories = [{"id": 1, "name": "Fiber"}]
    path.write_text(json.dumps({"images": images, "annotations": [], "categories": categories}))
    return resolve_datasets([f"{path}:{tmp_path}"])[0]


def test_one_record_an_image_in_order(name, monkeypatch):
    other = [{"image_id": 5, "found": "other"}, {"image_id": 3, "found": "other"}]
    evaluator = Evaluator(name)
    for image_id, found in ((5, "mine"), (2, "mine"), (9, None)):
        evaluator.process([{"image_id": image_id}], [{"instances": found}])
    assert [record["image_id"] for record in evaluator.gathered()] == [2, 5]
    monkeypatch.setattr(base.comm, "gather", lambda records, dst: [records, other])
    both = evaluator.gathered()
    assert [(r["image_id"], r["found"]) for r in both] == [(2, "mine"), (3, "other"), (5, "mine")]
    monkeypatch.setattr(base.comm, "is_main_process", lambda: False)
    assert evaluator.gathered() is None
    evaluator.reset()
    assert evaluator.records == []


def test_masks_have_the_size_of_the_image(name):
    masks = np.zeros((1, 4, 6), dtype=bool)
    evaluator = Evaluator(name)
    assert len(evaluator.masks_of(5, Instances((4, 6), pred_masks=masks))) == 1
    with pytest.raises(ValueError, match=r"image 5 are of size \(6, 4\)"):
        evaluator.masks_of(5, Instances((6, 4), pred_masks=masks.reshape(1, 6, 4)))


def test_annotations_on_a_painted_scale_bar_are_ignored_and_named_once(tmp_path, caplog):
    drawn = draw_bar(np.full((300, 400, 3), 180, np.uint8), plain_style())
    cv2.imwrite(str(tmp_path / "bar.png"), drawn.image)
    x, y, w, h = drawn.text_box
    annotations = [
        {"id": number, "image_id": 1, "category_id": 1, "bbox": box, "iscrowd": 0, "area": 9}
        for number, box in enumerate(([20, 20, 30, 30], [x, y, w // 3, h]), 1)
    ]
    for each in annotations:
        u, v, wide, high = each["bbox"]
        corners = [u, v, u + wide, v, u + wide, v + high, u, v + high]
        each["segmentation"] = [corners]
    truth = {"images": [{"id": 1, "file_name": "bar.png", "height": 300, "width": 400}]}
    truth |= {"annotations": annotations, "categories": [{"id": 1, "name": "Fiber"}]}
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(truth))
    name = resolve_datasets([f"{path}:{tmp_path}"])[0]
    found = Instances((300, 400), pred_boxes=Boxes([[20.0, 20, 50, 50]]), scores=np.ones(1))
    found.pred_classes = np.zeros(1, int)
    (record,) = DatasetCatalog.get(name)
    for paint, ap in ((True, 100.0), (False, pytest.approx(50.5, abs=0.1))):
        caplog.clear()
        mapper = MicroplasticsDatasetMapper(
            is_train=False, augmentations=[], image_format="BGR", paint_scale_bar=paint
        )
        evaluator = COCOEvaluator(name, tasks=["bbox"])
        evaluator.process([mapper(record)], [{"instances": found}])
        assert evaluator.evaluate()["bbox"]["AP50"] == ap
        assert caplog.text.count("1 annotations of") == (2 if paint else 0)  # the mapper's, too
