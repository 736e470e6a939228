import contextlib
import copy
import io

import numpy as np
import pycocotools.mask as mask_util
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from microplastics.evaluation import average_precision
from microplastics.evaluation.average_precision import CocoEvaluation, evaluate_predictions

SIZE = 200


def random_shape(rng, center=None):
    center = rng.uniform(0, SIZE, 2) if center is None else center + rng.normal(0, 1.5, 2)
    angle = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    radius = rng.choice([4, 12, 40, 90], p=[0.3, 0.4, 0.2, 0.1]) * rng.uniform(0.7, 1.3, (2, 1))
    points = (center[:, None] + radius * np.stack([np.cos(angle), np.sin(angle)])).clip(0, SIZE)
    low, extent = points.min(axis=1), np.ptp(points, axis=1)
    return center, [points.T.ravel().tolist()], [*low.tolist(), *extent.tolist()]


def random_data(seed, predicted):
    """Six images, one of them blank and one without a prediction; category 5 is never true."""
    rng = np.random.default_rng(seed)
    images = [{"id": i, "width": SIZE, "height": SIZE} for i in (7, 2, 3, 30, 5, 11)]
    categories = [{"id": i, "name": f"class {i}"} for i in (1, 2, 4, 5)]
    annotations, results = [], []
    for image in images:
        truths = []
        for _ in range(0 if image["id"] == 3 else 12):
            center, polygon, box = random_shape(rng)
            category = int(rng.choice([1, 2, 4]))
            truths.append((center, category))
            area = float(mask_util.area(mask_util.frPyObjects(polygon, SIZE, SIZE))[0])
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
            rle = mask_util.frPyObjects(polygon, SIZE, SIZE)[0]
            results.append(
                {
                    "image_id": image["id"],
                    "category_id": category if rng.random() < 0.9 else 5,
                    "score": round(float(rng.random()), 1),  # ties: the order decides
                    "bbox": box,
                    "segmentation": {"size": [SIZE, SIZE], "counts": rle["counts"].decode()},
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


BACK_ENDS = ["faster-coco-eval", "pycocotools"]


def use(back_end, monkeypatch):
    if back_end == "pycocotools":
        monkeypatch.setattr(average_precision, "COCOeval_faster", None)
    else:
        pytest.importorskip("faster_coco_eval")
        monkeypatch.setattr(COCOeval, "evaluateImg", None)  # the Python loop would crash


def close(ours, theirs):
    return np.abs(np.asarray(ours) - np.asarray(theirs)).max() <= 1e-12


@pytest.mark.parametrize("back_end", BACK_ENDS)
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("cap", [1, 4, 10, 100, 400])
def test_arrays_and_figures_are_those_of_pycocotools(cap, iou_type, back_end, monkeypatch):
    dataset, results = random_data(cap, 450 if cap == 400 else 60)
    caps = sorted({min(1, cap), min(10, cap), cap})
    expected = pycocotools_evaluation(dataset, results, iou_type, caps)
    use(back_end, monkeypatch)
    before, gt = copy.deepcopy(results), index(dataset)
    ours = CocoEvaluation(gt, results, iou_type, cap).run()
    assert ours.max_dets == caps
    assert ours.category_ids == [1, 2, 4, 5]
    assert close(ours.precision, expected.eval["precision"])
    assert close(ours.recall, expected.eval["recall"])
    assert results == before and gt.dataset == dataset
    figures = ours.figures()
    assert len(figures) == 12 and 0 < figures["AP"] < 1
    if cap == 100:
        assert close(np.nan_to_num(list(figures.values()), nan=-1), expected.stats)


@pytest.mark.parametrize("back_end", BACK_ENDS)
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_some_of_the_images(iou_type, back_end, monkeypatch):
    dataset, results = random_data(5, 30)
    expected = pycocotools_evaluation(dataset, results, iou_type, [1, 10, 100], [30, 2])
    use(back_end, monkeypatch)
    ours = CocoEvaluation(index(dataset), results, iou_type, img_ids=[30, 2]).run()
    assert close(ours.precision, expected.eval["precision"])
    assert close(np.nan_to_num(list(ours.figures().values()), nan=-1), expected.stats)


def test_the_cap_counts():
    dataset, results = random_data(1, 60)
    gt = index(dataset)
    assert np.isnan(CocoEvaluation(gt, results, "bbox", recall_caps=()).run().figures()["AR10"])
    recall = [
        CocoEvaluation(gt, results, "segm", cap).run().figures()["AR"] for cap in (1, 5, 20, 100)
    ]
    assert recall == sorted(recall) and recall[0] < recall[-1]


def test_report_names_classes_and_counts_in_percent():
    dataset, results = random_data(2, 60)
    names = {1: "Fiber", 2: "Fragment", 4: "Film", 5: "Foam"}
    report = evaluate_predictions(index(dataset), results, "segm", class_names=names)
    assert list(report) == [
        *["AP", "AP50", "AP75", "APs", "APm", "APl"],
        *["AP-Fiber", "AP-Fragment", "AP-Film", "AP-Foam"],
        *["AP50-Fiber", "AP50-Fragment", "AP50-Film", "AP50-Foam"],
    ]
    figures = CocoEvaluation(index(dataset), results, "segm").run().figures()
    assert report["AP50"] == figures["AP50"] * 100
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
        report = evaluate_predictions(gt, perfect, iou_type, class_names=names)
        assert report["AP"] == report["AP-a"] == report["AP50-b"] == pytest.approx(100)
        empty = evaluate_predictions(gt, [], iou_type, class_names=names)
        assert empty.keys() == report.keys()
        assert np.isnan(list(empty.values())).all()


def test_results_that_do_not_fit_are_refused():
    dataset, results = random_data(4, 10)
    gt = index(dataset)
    with pytest.raises(ValueError, match=r"images not annotated: \[999\]"):
        CocoEvaluation(gt, [{**results[0], "image_id": 999}], "bbox")
    mask = {"size": [SIZE, SIZE + 1], "counts": "0"}
    with pytest.raises(ValueError, match="image 7 is of 200 x 201 pixels, the image of 200 x 200"):
        CocoEvaluation(gt, [{**results[0], "segmentation": mask}], "segm")
    del results[3]["segmentation"]
    with pytest.raises(ValueError, match="has no mask"):
        CocoEvaluation(gt, results, "segm")
