"""microplastics/evaluation/base.py."""

import json

import numpy as np
import pytest
from detectron2.structures import Instances

from microplastics.data.catalog import resolve_datasets
from microplastics.evaluation import base
from microplastics.evaluation.base import TruthEvaluator


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
