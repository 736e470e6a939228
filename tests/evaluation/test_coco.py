import contextlib
import io
import json
import logging
import uuid

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator as Detectron2Evaluator
from detectron2.structures import Boxes, Instances

from microplastics.errors import UserError
from microplastics.evaluation import gather
from microplastics.evaluation.coco import COCOEvaluator
from microplastics.structures.crop_masks import CropMasks

SIZE = 160
IDS = (1, 2, 3)
NAMES = ["Fiber", "Fragment", "Film"]


def ellipses(rng, number):
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5
    center, radius = rng.uniform(8, SIZE - 8, (number, 2)), rng.uniform(3, 75, (number, 2))
    return center, radius, draw(center, radius, x, y)


def draw(center, radius, x, y):
    scaled = (np.stack([x, y]) - center[:, :, None, None]) / radius[:, :, None, None]
    return (scaled**2).sum(axis=1) <= 1


def box_of(masks):
    return CropMasks.from_bitmasks(masks).get_bounding_boxes().tensor


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Name of a registered data set, its inputs and outputs; masks are full frames."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5
    coco = {"images": [], "annotations": [], "categories": []}
    coco["categories"] = [{"id": i, "name": name} for i, name in zip(IDS, NAMES, strict=True)]
    inputs, outputs = [], []
    for image_id in (4, 9, 1, 12, 7, 8):
        coco["images"].append(
            {"id": image_id, "width": SIZE, "height": SIZE, "file_name": f"{image_id}.png"}
        )
        center, radius, masks = ellipses(rng, 6)
        classes = rng.integers(0, 3, 6)
        for mask, box, number in zip(masks, box_of(masks).tolist(), classes, strict=True):
            rle = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
            rle["counts"] = rle["counts"].decode()
            coco["annotations"].append(
                {
                    "id": len(coco["annotations"]) + 1,
                    "image_id": image_id,
                    "category_id": IDS[number],
                    "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
                    "area": float(mask.sum()),
                    "iscrowd": 0,
                    "segmentation": rle,
                }
            )
        _, _, noise = ellipses(rng, 5)
        moved = draw(center + rng.normal(0, 1.5, (6, 2)), radius * rng.uniform(0.9, 1.1), x, y)
        masks = np.concatenate([moved, noise])
        instances = Instances((SIZE, SIZE), pred_boxes=Boxes(box_of(masks) + 0.25))
        instances.scores = torch.from_numpy(rng.random(11).astype(np.float32))
        instances.pred_classes = torch.from_numpy(np.concatenate([classes, rng.integers(0, 3, 5)]))
        instances.pred_masks = torch.from_numpy(masks)
        inputs.append({"image_id": image_id, "height": SIZE, "width": SIZE})
        outputs.append({"instances": instances if image_id != 8 else instances[:0]})
    path = tmp_path_factory.mktemp("coco") / "truth.json"
    path.write_text(json.dumps(coco))
    name = f"test_coco_{uuid.uuid4().hex}"
    MetadataCatalog.get(name).set(
        json_file=str(path),
        thing_classes=NAMES,
        thing_dataset_id_to_contiguous_id={1: 0, 2: 1, 3: 2},
        evaluator_type="coco",
    )
    yield name, inputs, outputs
    MetadataCatalog.pop(name, None)


def cropped(outputs):
    result = []
    for output in outputs:
        instances = Instances((SIZE, SIZE), **output["instances"].get_fields())
        instances.pred_masks = CropMasks.from_bitmasks(instances.pred_masks)
        result.append({"instances": instances})
    return result


def evaluate(evaluator, inputs, outputs):
    evaluator.reset()
    for each, output in zip(inputs, outputs, strict=True):
        evaluator.process([each], [output])
    return evaluator.evaluate()


def test_figures_are_those_of_detectron2(data, tmp_path):
    name, inputs, outputs = data
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = Detectron2Evaluator(
            name, tasks=("bbox", "segm"), distributed=False, use_fast_impl=False
        )
        expected = evaluate(theirs, inputs, outputs)
    results = evaluate(COCOEvaluator(name, tmp_path), inputs, outputs)
    assert list(results) == ["bbox", "segm"]
    assert 10 < results["segm"]["AP"] < 95
    for task, figures in expected.items():
        ours = {k: v for k, v in results[task].items() if not k.startswith("AP50-")}
        assert list(ours) == list(figures)
        assert list(ours.values()) == pytest.approx(list(figures.values()), abs=1e-9, nan_ok=True)
        assert [k for k in results[task] if k.startswith("AP50-")] == [f"AP50-{n}" for n in NAMES]
    saved = json.loads((tmp_path / "coco_instances_results.json").read_text())
    theirs = {(r["image_id"], r["score"]): r for p in theirs._predictions for r in p["instances"]}
    assert len(saved) == len(theirs) == 55
    for result in saved:
        wanted = theirs[result["image_id"], result["score"]]
        assert result == {key: wanted[key] for key in result}
        assert list(result) == ["image_id", "category_id", "bbox", "score", "segmentation"]


def test_crops_full_frames_order_and_repeats_do_not_matter(data):
    name, inputs, outputs = data
    evaluator = COCOEvaluator(name, distributed=False)
    expected = evaluate(evaluator, inputs, outputs)
    assert evaluate(evaluator, inputs, cropped(outputs)) == expected
    assert evaluate(evaluator, inputs[::-1], outputs[::-1]) == expected
    assert evaluate(evaluator, inputs + inputs[:2], outputs + outputs[:2]) == expected
    assert evaluator.evaluate() == expected  # once more
    some = evaluator.evaluate(img_ids=[4, 9])
    assert some["bbox"]["AP"] != expected["bbox"]["AP"]


def test_ranks_do_not_matter(data, monkeypatch, tmp_path):
    name, inputs, outputs = data
    expected = evaluate(COCOEvaluator(name), inputs, outputs)
    ranks = []
    for rank in (0, 1):
        evaluator = COCOEvaluator(name, output_dir=tmp_path / str(rank))
        # The sampler pads: image 0 is seen by both.
        for i in [*range(rank, len(inputs), 2), 0]:
            evaluator.process(inputs[i : i + 1], outputs[i : i + 1])
        ranks.append(evaluator)
    records = [evaluator._predictions for evaluator in ranks]
    monkeypatch.setattr(gather.comm, "gather", lambda mine, dst: records)
    assert ranks[0].evaluate() == expected
    monkeypatch.setattr(gather.comm, "gather", lambda mine, dst: [])
    monkeypatch.setattr(gather.comm, "is_main_process", lambda: False)
    assert ranks[1].evaluate() == {}
    assert [path.name for path in tmp_path.iterdir()] == ["0"]


def test_cap_is_applied(data):
    name, inputs, outputs = data
    at = {
        cap: evaluate(COCOEvaluator(name, max_dets_per_image=cap), inputs, outputs)["segm"]["AP"]
        for cap in (1, 100, 400)
    }
    assert at[1] < at[100] == at[400]


def test_nothing_predicted_is_nan_in_both_tasks(data, caplog):
    name, inputs, outputs = data
    empty = [{"instances": output["instances"][:0]} for output in outputs]
    with caplog.at_level(logging.WARNING):
        results = evaluate(COCOEvaluator(name), inputs, empty)
    assert list(results) == ["bbox", "segm"]
    assert np.isnan([v for task in results.values() for v in task.values()]).all()
    assert "AP50-Film" in results["segm"]
    assert caplog.text.count("No predictions from the model") == 2
    assert list(COCOEvaluator(name).evaluate()) == ["bbox", "segm"]


def test_a_model_without_masks(data, caplog):
    name, inputs, outputs = data
    boxes = []
    for output in outputs:
        fields = dict(output["instances"].get_fields())
        del fields["pred_masks"]
        boxes.append({"instances": Instances((SIZE, SIZE), **fields)})
    results = evaluate(COCOEvaluator(name), inputs, boxes)
    assert results["bbox"]["AP"] > 0
    assert np.isnan(results["segm"]["AP"])
    assert "No masks from the model" in caplog.text
    assert list(evaluate(COCOEvaluator(name, tasks=["bbox"]), inputs, boxes)) == ["bbox"]


def test_tables_are_logged(data, caplog):
    name, inputs, outputs = data
    with caplog.at_level(logging.INFO):
        evaluate(COCOEvaluator(name), inputs, outputs)
    assert "Evaluation results for segm:" in caplog.text
    assert "| category   |     AP |   AP50 |" in caplog.text
    assert "| Fragment" in caplog.text


def test_refusals(data, tmp_path):
    name, inputs, outputs = data
    with pytest.raises(UserError, match="Data set nowhere_to_be_found has no COCO JSON"):
        COCOEvaluator("nowhere_to_be_found")
    with pytest.raises(UserError, match=r"\['keypoints'\] is not one of bbox and segm"):
        COCOEvaluator(name, tasks=("bbox", "keypoints"))
    wrong = Instances((SIZE, SIZE), **outputs[0]["instances"].get_fields())
    wrong.pred_classes = wrong.pred_classes + 3
    with pytest.raises(ValueError, match=r"Class 5 is predicted.*only the classes \[0, 1, 2\]"):
        COCOEvaluator(name).process(inputs[:1], [{"instances": wrong}])
    (tmp_path / "file").write_text("")
    evaluator = COCOEvaluator(name, output_dir=tmp_path / "file" / "inside")
    evaluator.process(inputs[:1], outputs[:1])
    with pytest.raises(UserError, match="Cannot write"):
        evaluator.evaluate()
