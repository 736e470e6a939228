"""microplastics/evaluation/blanks.py."""

import json

import pytest
import torch
from detectron2.structures import Instances
from support import dataset_entry

from microplastics.data.catalog import resolve_datasets
from microplastics.evaluation.blanks import BlankEvaluator, blank_images


@pytest.fixture
def name(tmp_path):
    """Image 1 has a particle, 2 and 3 have none."""
    images = [{"id": i, "file_name": f"{i}.png", "height": 10, "width": 10} for i in (1, 2, 3)]
    square = {"segmentation": [[1, 1, 4, 1, 4, 4, 1, 4]], "bbox": [1, 1, 3, 3], "area": 9}
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, **square}
    categories = [{"id": 1, "name": "Fiber"}, {"id": 2, "name": "Film"}]
    path = tmp_path / "blanks.json"
    data = {"images": images, "annotations": [annotation], "categories": categories}
    path.write_text(json.dumps(data))
    return resolve_datasets([f"{path}:{tmp_path}"])[0]


def found(scores, classes):
    return {
        "instances": Instances(
            (10, 10), scores=torch.tensor(scores), pred_classes=torch.tensor(classes)
        )
    }


def test_false_positives_are_counted_on_blanks_alone(name):
    evaluator = BlankEvaluator(name, score_threshold=0.5)
    evaluator.process([{"image_id": 1}], [found([0.9, 0.9], [0, 1])])
    evaluator.process([{"image_id": 2}], [found([0.9, 0.5, 0.4], [0, 1, 1])])
    evaluator.process([{"image_id": 3}], [found([0.1], [0])])
    assert evaluator.evaluate()["blank"] == {
        "images": 2,
        "FP_per_image": 1.0,
        "images_with_FP": 50.0,
        "FP_per_image-Fiber": 0.5,
        "FP_per_image-Film": 0.5,
    }
    evaluator.reset()
    assert not evaluator.evaluate()


def test_blanks_are_images_without_annotation(name):
    assert blank_images(name.split(":")[0]) == {2, 3}


def test_a_test_set_of_blanks_alone_is_evaluated(tiny_cfg, rendered, tmp_path):
    from microplastics.data.loader import check_datasets
    from microplastics.engine import Trainer
    from microplastics.engine.metrics import known_metrics

    data = json.loads((rendered / "annotations" / "instances_val.json").read_text())
    path = tmp_path / "blank.json"
    path.write_text(json.dumps({**data, "annotations": []}))
    cfg = check_datasets(tiny_cfg("DATASETS.TEST", repr((f"{path}:{rendered}/val",))))
    assert "blank/FP_per_image-Film" in known_metrics(cfg)
    results = Trainer.test(cfg, Trainer.build_model(cfg))
    assert results["blank"]["images"] == 4
    assert results["segm"]["AP"] != results["segm"]["AP"]  # NaN: nothing to find


def test_blanks_in_a_test_set_of_their_own_can_be_watched(tiny_cfg, rendered, tmp_path):
    from microplastics.data.loader import check_datasets
    from microplastics.engine.metrics import check_metric_names

    data = json.loads((rendered / "annotations" / "instances_val.json").read_text())
    path = tmp_path / "blank.json"
    path.write_text(json.dumps({**data, "annotations": []}))
    sets = repr((dataset_entry(rendered, "val"), f"{path}:{rendered}/val"))
    watched = ("SOLVER.BEST_CHECKPOINT.METRIC", "blank/FP_per_image")
    check_metric_names(check_datasets(tiny_cfg("DATASETS.TEST", sets, *watched)))
