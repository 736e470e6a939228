import json
import uuid

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Instances
from hypothesis import given, settings
from hypothesis import strategies as st

from microplastics.errors import UserError
from microplastics.evaluation import gather
from microplastics.evaluation.semantic import SemanticEvaluator, _overlap, _union
from microplastics.structures.crop_masks import CropMasks

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
def name(tmp_path_factory):
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
    name = f"test_semantic_{uuid.uuid4().hex}"
    MetadataCatalog.get(name).set(json_file=str(path), thing_classes=["Fiber"])
    yield name
    MetadataCatalog.pop(name, None)


def judge(name, image_id, output, **options):
    evaluator = SemanticEvaluator(name, **options)
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
def test_one_image(name, image_id, spans, scores, best, iou, dice, crop):
    figures = judge(name, image_id, predicted(spans, scores, crop))
    assert figures == pytest.approx({"IoU_best": best, "IoU": iou, "Dice": dice})


def test_threshold_and_mean_over_images(name):
    assert judge(name, 1, predicted([(0, 10)], [0.3]), score_threshold=0.3)["IoU"] == 100
    evaluator = SemanticEvaluator(name)
    for image_id, span in ((1, (0, 10)), (2, (0, 5)), (3, (0, 1))):
        evaluator.process([{"image_id": image_id}], [predicted([span], [0.9])])
    assert evaluator.evaluate()["semantic"]["IoU"] == 50
    evaluator.reset()
    assert np.isnan(evaluator.evaluate()["semantic"]["IoU"])


def test_ranks_do_not_matter(name, monkeypatch):
    outputs = {1: predicted([(0, 7)], [0.9]), 2: predicted([(1, 4)], [0.9]), 3: predicted([], [])}
    whole, ranks = SemanticEvaluator(name), [SemanticEvaluator(name), SemanticEvaluator(name)]
    for image_id, output in outputs.items():
        whole.process([{"image_id": image_id}], [output])
        ranks[image_id % 2].process([{"image_id": image_id}], [output])
    ranks[0].process([{"image_id": 1}], [outputs[1]])  # padded
    expected = whole.evaluate()
    records = [evaluator._figures for evaluator in ranks]
    monkeypatch.setattr(gather.comm, "gather", lambda mine, dst: records)
    assert ranks[0].evaluate() == expected
    monkeypatch.setattr(gather.comm, "is_main_process", lambda: False)
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


def test_refusals(name):
    with pytest.raises(UserError, match="Data set nowhere has no COCO JSON"):
        SemanticEvaluator("nowhere")
    small = Instances((9, 9), scores=torch.ones(1), pred_masks=torch.ones(1, 9, 9, dtype=bool))
    with pytest.raises(ValueError, match=r"of size \[9, 9\], the image of size \[20, 30\]"):
        SemanticEvaluator(name).process([{"image_id": 1}], [{"instances": small}])
