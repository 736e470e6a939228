import contextlib
import copy
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
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from support import user_error

from microplastics.evaluation import base
from microplastics.evaluation.coco import COCOEvaluator, coco_evaluation, precisions, summarize
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
    evaluator = COCOEvaluator(name)
    expected = evaluate(evaluator, inputs, outputs)
    assert evaluate(evaluator, inputs, cropped(outputs)) == expected
    assert evaluate(evaluator, inputs[::-1], outputs[::-1]) == expected
    assert evaluate(evaluator, inputs + inputs[:2], outputs + outputs[:2]) == expected
    assert evaluator.evaluate() == expected  # once more


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
    records = [evaluator.records for evaluator in ranks]
    monkeypatch.setattr(base.comm, "gather", lambda mine, dst: records)
    assert ranks[0].evaluate() == expected
    monkeypatch.setattr(base.comm, "gather", lambda mine, dst: [])
    monkeypatch.setattr(base.comm, "is_main_process", lambda: False)
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
    with user_error("dataset_unknown", "nowhere_to_be_found"):
        COCOEvaluator("nowhere_to_be_found")
    wrong = Instances((SIZE, SIZE), **outputs[0]["instances"].get_fields())
    wrong.pred_classes = wrong.pred_classes + 3
    with pytest.raises(ValueError, match=r"Class 5 is predicted.*only the classes \[0, 1, 2\]"):
        COCOEvaluator(name).process(inputs[:1], [{"instances": wrong}])
    (tmp_path / "file").write_text("")
    evaluator = COCOEvaluator(name, output_dir=tmp_path / "file" / "inside")
    evaluator.process(inputs[:1], outputs[:1])
    with user_error("not_writable", tmp_path / "file"):
        evaluator.evaluate()


SIDE = 200


def random_shape(rng, center=None):
    center = rng.uniform(0, SIDE, 2) if center is None else center + rng.normal(0, 1.5, 2)
    angle = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    radius = rng.choice([4, 12, 40, 90], p=[0.3, 0.4, 0.2, 0.1]) * rng.uniform(0.7, 1.3, (2, 1))
    points = (center[:, None] + radius * np.stack([np.cos(angle), np.sin(angle)])).clip(0, SIDE)
    low, extent = points.min(axis=1), np.ptp(points, axis=1)
    return center, [points.T.ravel().tolist()], [*low.tolist(), *extent.tolist()]


def random_data(seed, predicted):
    """Six images, one of them blank and one without a prediction; category 5 is never true."""
    rng = np.random.default_rng(seed)
    images = [{"id": i, "width": SIDE, "height": SIDE} for i in (7, 2, 3, 30, 5, 11)]
    categories = [{"id": i, "name": f"class {i}"} for i in (1, 2, 4, 5)]
    annotations, results = [], []
    for image in images:
        truths = []
        for _ in range(0 if image["id"] == 3 else 12):
            center, polygon, box = random_shape(rng)
            category = int(rng.choice([1, 2, 4]))
            truths.append((center, category))
            area = float(mask_util.area(mask_util.frPyObjects(polygon, SIDE, SIDE))[0])
            annotations.append(
                {
                    "id": len(annotations),  # from 0: the id that pycocotools takes for no match
                    "image_id": image["id"],
                    "category_id": category,
                    "segmentation": polygon,
                    "bbox": box,
                    "area": area,
                    "iscrowd": int(rng.random() < 0.1),
                }
            )
        for k in range(0 if image["id"] == 11 else predicted):
            center, category = truths[k % 12] if truths else (None, int(rng.choice([1, 5])))
            _, polygon, box = random_shape(rng, center)
            rle = mask_util.frPyObjects(polygon, SIDE, SIDE)[0]
            results.append(
                {
                    "image_id": image["id"],
                    "category_id": category if rng.random() < 0.9 else 5,
                    "score": round(float(rng.random()), 1),  # ties: the order decides
                    "bbox": box,
                    "segmentation": {
                        "size": [SIDE, SIDE],
                        "counts": rle["counts"].decode(),
                    },
                }
            )
    return {"images": images, "annotations": annotations, "categories": categories}, results


def index(dataset):
    coco = COCO()
    coco.dataset = copy.deepcopy(dataset)
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def pycocotools_evaluation(dataset, results, iou_type, caps, img_ids=None):
    dataset = copy.deepcopy(dataset)
    for annotation in dataset["annotations"]:
        annotation["id"] += 1
    other = "bbox" if iou_type == "segm" else "segmentation"
    results = [{key: each[key] for key in each if key != other} for each in results]
    gt = index(dataset)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(gt, gt.loadRes(results), iou_type)
        evaluation.params.maxDets = caps
        if img_ids is not None:
            evaluation.params.imgIds = img_ids
        evaluation.evaluate()
        evaluation.accumulate()
        if caps == [1, 10, 100]:
            evaluation.summarize()
    return evaluation


def evaluated(*arguments):
    """Precision and recall of ours."""
    evaluation = coco_evaluation(*arguments)
    evaluation.evaluate()
    evaluation.accumulate()
    return [np.asarray(evaluation.eval[key])[..., 0] for key in ("precision", "recall")]


def close(ours, theirs):
    return np.abs(np.asarray(ours) - np.asarray(theirs)).max() <= 1e-12


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize(
    "cap, img_ids", [(1, None), (4, None), (100, None), (400, None), (100, [30, 2])]
)
def test_arrays_are_those_of_pycocotools(cap, img_ids, iou_type):
    dataset, results = random_data(cap, 450 if cap == 400 else 60)
    expected = pycocotools_evaluation(dataset, results, iou_type, [cap], img_ids)
    before, gt = copy.deepcopy(results), index(dataset)
    precision, recall = evaluated(gt, results, iou_type, cap, img_ids)
    assert close(precision, expected.eval["precision"][..., 0])
    assert close(recall, expected.eval["recall"][..., 0])
    assert results == before and gt.dataset == dataset


def test_the_cap_counts():
    dataset, results = random_data(1, 60)
    recall = [
        evaluated(index(dataset), results, "segm", cap)[1][:, :3, 0].mean()
        for cap in (1, 5, 20, 100)
    ]
    assert recall == sorted(recall) and recall[0] < recall[-1]


def figures(gt, results, iou_type, names):
    return summarize(precisions(gt, results, iou_type), sorted(names), names)


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_report_names_classes_and_counts_in_percent(iou_type):
    dataset, results = random_data(2, 60)
    names = {1: "Fiber", 2: "Fragment", 4: "Film", 5: "Foam"}
    report = figures(index(dataset), results, iou_type, names)
    assert list(report) == [
        *["AP", "AP50", "AP75", "APs", "APm", "APl"],
        *["AP-Fiber", "AP-Fragment", "AP-Film", "AP-Foam"],
        *["AP50-Fiber", "AP50-Fragment", "AP50-Film", "AP50-Foam"],
    ]
    stats = pycocotools_evaluation(dataset, results, iou_type, [1, 10, 100]).stats[:6]
    assert list(report.values())[:6] == pytest.approx(100 * np.array(stats), abs=1e-9)
    assert np.isnan(report["AP-Foam"])  # it has no truth
    seen = [report[f"AP50-{name}"] for name in ("Fiber", "Fragment", "Film")]
    assert np.mean(seen) == pytest.approx(report["AP50"], abs=1e-9)


def test_perfect_predictions_score_100_and_none_nan():
    dataset, _ = random_data(3, 1)
    for annotation in dataset["annotations"]:
        annotation["iscrowd"] = 0
    gt = index(dataset)
    perfect = [
        {**each, "score": 1 - n / 1000, "segmentation": gt.annToRLE(each)}
        for n, each in enumerate(gt.dataset["annotations"])
    ]
    names = {1: "a", 2: "b", 4: "c", 5: "d"}
    for iou_type in ("bbox", "segm"):
        report = figures(gt, perfect, iou_type, names)
        assert report["AP"] == report["AP-a"] == report["AP50-b"] == pytest.approx(100)
        empty = figures(gt, [], iou_type, names)
        assert empty.keys() == report.keys()
        assert np.isnan(list(empty.values())).all()
