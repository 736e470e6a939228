"""microplastics/evaluation/image_metrics.py."""

import json

import numpy as np
import pytest
import torch
from detectron2.structures import Instances
from hypothesis import given, settings
from hypothesis import strategies as st
from support import dataset_entry, user_error

from microplastics.data.catalog import resolve_datasets
from microplastics.evaluation import base
from microplastics.evaluation.image_metrics import (
    BlankEvaluator,
    SemanticEvaluator,
    _overlap,
    _union,
)
from microplastics.structures.crop_masks import CropMasks


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


def test_false_positives_are_counted_only_on_blanks(name):
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


def test_a_test_set_of_blanks_alone_is_evaluated(tiny_cfg, rendered, tmp_path):
    from microplastics.data.loader import check_datasets
    from microplastics.engine import Trainer
    from microplastics.engine.hooks import known_metrics

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
    from microplastics.engine.hooks import check_metric_names

    data = json.loads((rendered / "annotations" / "instances_val.json").read_text())
    path = tmp_path / "blank.json"
    path.write_text(json.dumps({**data, "annotations": []}))
    sets = repr((dataset_entry(rendered, "val"), f"{path}:{rendered}/val"))
    watched = ("SOLVER.BEST_CHECKPOINT.METRIC", "blank/FP_per_image")
    check_metric_names(check_datasets(tiny_cfg("DATASETS.TEST", sets, *watched)), list)


SIZE = (20, 30)
ROWS = {1: [(0, 10)], 2: [(0, 5), (5, 10)], 3: [], 4: [(0, 10), (10, 20)]}  # rows of each truth


def rows(*spans):
    masks = np.zeros((len(spans), *SIZE), dtype=bool)
    for mask, (start, end) in zip(masks, spans, strict=True):
        mask[start:end] = True
    return masks


def predicted(spans, scores, crop=True):
    masks = rows(*spans)
    return {
        "instances": Instances(
            SIZE,
            scores=torch.tensor(scores, dtype=torch.float32),
            pred_masks=CropMasks.from_bitmasks(masks) if crop else torch.from_numpy(masks),
        )
    }


@pytest.fixture(scope="module")
def bands(tmp_path_factory):
    """Four images of horizontal bands; in image 4 the second truth is a crowd."""
    coco = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "Fiber"}]}
    for image_id, spans in ROWS.items():
        coco["images"].append(
            {"id": image_id, "height": SIZE[0], "width": SIZE[1], "file_name": f"{image_id}.png"}
        )
        for rle, (start, end) in zip(
            CropMasks.from_bitmasks(rows(*spans)).to_rles(as_str=True), spans, strict=True
        ):
            coco["annotations"].append(
                {
                    "id": len(coco["annotations"]) + 1,
                    "image_id": image_id,
                    "category_id": 1,
                    "segmentation": rle,
                    "bbox": [0, start, 30, end - start],
                    "area": 30 * (end - start),
                    "iscrowd": int(image_id == 4 and start == 10),
                }
            )
    path = tmp_path_factory.mktemp("semantic") / "truth.json"
    path.write_text(json.dumps(coco))
    yield resolve_datasets([f"{path}:{path.parent}"])[0]


def judge(bands, image_id, output, **options):
    evaluator = SemanticEvaluator(bands, **options)
    evaluator.process([{"image_id": image_id}], [output])
    return evaluator.evaluate()["semantic"]


@pytest.mark.parametrize("crop", [True, False])
@pytest.mark.parametrize(
    ("image_id", "spans", "scores", "best", "iou", "dice"),
    [
        (1, [(0, 10)], [0.9], 100, 100, 100),
        (1, [(0, 5)], [0.9], 50, 50, 200 / 3),
        (1, [(0, 5), (5, 10)], [0.9, 0.8], 50, 100, 100),
        (1, [(0, 5), (0, 10), (12, 20)], [0.6, 0.7, 0.4], 100, 100, 100),
        (1, [(0, 10)], [0.3], 100, 0, 0),
        (1, [], [], 0, 0, 0),
        (2, [(2, 12)], [0.5], 100 * 8 / 12, 100 * 8 / 12, 80),
        (3, [], [], 100, 100, 100),
        (3, [(0, 1)], [0.2], 0, 100, 100),
        (3, [(0, 1)], [0.7], 0, 0, 0),
        (4, [(0, 20)], [0.9], 100, 100, 100),  # rows 10 to 20 are crowd
        (4, [(15, 20)], [0.9], 0, 0, 0),
    ],
)
def test_one_image(bands, image_id, spans, scores, best, iou, dice, crop):
    figures = judge(bands, image_id, predicted(spans, scores, crop))
    assert figures == pytest.approx({"IoU_best": best, "IoU": iou, "Dice": dice})


def test_threshold_and_mean_over_images(bands):
    assert judge(bands, 1, predicted([(0, 10)], [0.3]), score_threshold=0.3)["IoU"] == 100
    evaluator = SemanticEvaluator(bands)
    for image_id, span in ((1, (0, 10)), (2, (0, 5)), (3, (0, 1))):
        evaluator.process([{"image_id": image_id}], [predicted([span], [0.9])])
    assert evaluator.evaluate()["semantic"]["IoU"] == 50
    evaluator.reset()
    assert np.isnan(evaluator.evaluate()["semantic"]["IoU"])


def test_ranks_do_not_matter(bands, monkeypatch):
    outputs = {1: predicted([(0, 7)], [0.9]), 2: predicted([(1, 4)], [0.9]), 3: predicted([], [])}
    whole, ranks = SemanticEvaluator(bands), [
        SemanticEvaluator(bands),
        SemanticEvaluator(bands),
    ]
    for image_id, output in outputs.items():
        whole.process([{"image_id": image_id}], [output])
        ranks[image_id % 2].process([{"image_id": image_id}], [output])
    ranks[0].process([{"image_id": 1}], [outputs[1]])  # padded
    expected = whole.evaluate()
    records = [evaluator.records for evaluator in ranks]
    monkeypatch.setattr(base.comm, "gather", lambda mine, dst: records)
    assert ranks[0].evaluate() == expected
    monkeypatch.setattr(base.comm, "is_main_process", lambda: False)
    assert ranks[1].evaluate() == {}


MASK = st.integers(0, 2**32 - 1).map(lambda s: np.random.default_rng(s).random(SIZE) < 0.3)


@given(st.lists(MASK, max_size=3), st.lists(MASK, max_size=3), st.lists(MASK, max_size=2))
@settings(max_examples=50, deadline=None)
def test_runs_agree_with_pixels(prediction, truth, crowd):
    def union(masks):
        full = np.array(masks, dtype=bool).reshape(-1, *SIZE)
        return _union(CropMasks.from_bitmasks(full).to_rles(), list(SIZE)), full.any(axis=0)

    (p, p_pixels), (t, t_pixels), (c, c_pixels) = map(union, (prediction, truth, crowd))
    p_pixels, t_pixels = p_pixels & ~c_pixels, t_pixels & ~c_pixels
    both, either = (p_pixels & t_pixels).sum(), (p_pixels | t_pixels).sum()
    iou, dice = _overlap(p, t, c)
    assert iou == (both / either if either else 1)
    assert dice == (2 * both / (p_pixels.sum() + t_pixels.sum()) if either else 1)


@pytest.mark.parametrize("kind", [SemanticEvaluator, BlankEvaluator])
def test_a_data_set_without_a_json_is_refused(kind):
    with user_error("dataset_unknown", "nowhere"):
        kind("nowhere")
