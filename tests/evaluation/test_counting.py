"""microplastics/evaluation/counting.py and the tables that it writes."""

import contextlib
import csv
import io
import json
import math

import numpy as np
import pytest
import torch
from detectron2.structures import Instances
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from support import user_error

from microplastics.data.catalog import resolve_datasets
from microplastics.evaluation import base
from microplastics.evaluation.counting import (
    GRID,
    MIN_IOU,
    CountingEvaluator,
    Pooled,
    SizeBins,
    agreement,
    class_curve,
    count_table,
    curves,
    judge_image,
    measure_sizes,
    write_table,
)
from microplastics.structures.crop_masks import CropMasks

SIZE = (100, 200)
FIBER, FILM = 0, 1
# x, y, width, height of the truths of each image; image 3 is blank, in image 4 all is crowd.
TRUTH = {
    1: [(FIBER, (10, 10, 60, 4)), (FIBER, (10, 30, 120, 4)), (FILM, (10, 50, 20, 20))],
    2: [(FILM, (50, 50, 20, 20))],
    3: [],
    4: [(FILM, (0, 0, 100, 100))],
}
# Score, class and box of what is predicted.
FOUND = {
    1: [
        (0.9, FIBER, (10, 10, 60, 4)),
        (0.8, FIBER, (11, 31, 120, 4)),  # off by a pixel diagonally: IoU 0.59
        (0.7, FIBER, (10, 33, 120, 4)),  # IoU 1/7, tolerant IoU with 1 px 1/3
        (0.6, FILM, (10, 52, 20, 20)),  # IoU 9/11
        (0.3, FILM, (100, 60, 20, 20)),
    ],
    2: [(0.6, FIBER, (50, 50, 20, 20))],
    3: [(0.7, FILM, (0, 0, 9, 9)), (0.2, FIBER, (20, 20, 9, 9))],
    4: [(0.9, FILM, (10, 10, 50, 50)), (0.9, FILM, (150, 10, 40, 4))],
}


def full_masks(boxes):
    masks = np.zeros((len(boxes), *SIZE), dtype=bool)
    for mask, (x, y, width, height) in zip(masks, boxes, strict=True):
        mask[y : y + height, x : x + width] = True
    return masks


def write_truth(path, scales=None):
    images, annotations = [], []
    for image_id, particles in TRUTH.items():
        image = {"id": image_id, "file_name": f"{image_id}.png", "height": 100, "width": 200}
        images.append({**image, **({"um_per_px": scales[image_id]} if scales else {})})
        for number, (x, y, w, h) in particles:
            corners = [x, y, x + w, y, x + w, y + h, x, y + h]
            rle = CropMasks.from_bitmasks(full_masks([(x, y, w, h)])).to_rles(as_str=True)[0]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": 3 + 4 * number,
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": int(image_id == 4),
                    "segmentation": rle if image_id == 4 else [corners],
                }
            )
    categories = [{"id": 3, "name": "Fiber"}, {"id": 7, "name": "Film"}]
    path.write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    return resolve_datasets([f"{path}:{path.parent}"])[0]


@pytest.fixture
def name(tmp_path):
    return write_truth(tmp_path / "truth.json")


def predicted(found, crop=True):
    scores, classes, boxes = zip(*found, strict=True)
    masks = torch.from_numpy(full_masks(boxes))
    return {
        "instances": Instances(
            SIZE,
            scores=torch.tensor(scores),
            pred_classes=torch.tensor(classes),
            pred_masks=CropMasks.from_bitmasks(masks) if crop else masks,
        )
    }


def judge(name, image_ids=FOUND, crop=True, **options):
    evaluator = CountingEvaluator(name, **options)
    for image_id in image_ids:
        evaluator.process([{"image_id": image_id}], [predicted(FOUND[image_id], crop)])
    return evaluator.evaluate()["counting"]


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("crop", [True, False])
def test_counts_and_f1(name, crop):
    figures = judge(name, crop=crop, measure_sizes=False)
    # Fiber: 4 found in images 1 and 2, 2 are right; Film: 3 that count, one is right.
    expected = {
        "count_true-Fiber": 2,
        "count_predicted-Fiber": 4,
        "count_error-Fiber": 2,
        "count_error_pct-Fiber": 100,
        "count_MAE-Fiber": 2 / 4,
        "precision-Fiber": 50,
        "recall-Fiber": 100,
        "F1-Fiber": 200 * 2 / 6,
        "F1_tol1-Fiber": 200 * 2 / 6,
        "F1_tol2-Fiber": 200 * 2 / 6,
        "count_true-Film": 2,
        "count_predicted-Film": 3,
        "count_MAE-Film": 3 / 4,
        "F1-Film": 200 * 1 / 5,
        "count_error": 3,
        "count_error_pct": 75,
        "count_MAE": 3 / 4,  # 1, 0, 1 and 1
        "precision": 100 * 3 / 7,
        "recall": 75,
        "F1": 200 * 3 / 11,
        "FP_per_blank": 1,
    }
    assert {key: figures[key] for key in expected} == pytest.approx(expected)
    assert not any("length" in key or "px" in key for key in figures)


def test_a_tolerance_of_a_pixel_forgives_the_annotators_hand(name):
    def f1(shift):
        found = [(0.9, FIBER, (10, 10 + shift, 60, 4)), (0.9, FIBER, (10, 30, 120, 4))]
        evaluator = CountingEvaluator(name, measure_sizes=False)
        evaluator.process([{"image_id": 1}], [predicted(found)])
        figures = evaluator.evaluate()["counting"]
        return [figures[f"{key}-Fiber"] for key in ("F1", "F1_tol1", "F1_tol2")]

    assert f1(1) == [100, 100, 100]
    assert f1(2) == [50, 100, 100]  # IoU 1/3, then 3/5
    assert f1(3) == [50, 50, 100]  # tolerant IoU 2/6, then 3/5


def test_thresholds_of_each_class(name):
    figures = judge(name, measure_sizes=False, score_thresholds=[0.75, 0.1])
    assert (figures["count_predicted-Fiber"], figures["count_predicted-Film"]) == (2, 4)
    assert figures["F1-Fiber"] == 100


def count(name, found, **options):
    evaluator = CountingEvaluator(name, measure_sizes=False, **options)
    evaluator.process([{"image_id": 1}], [predicted(found)])
    figures = evaluator.evaluate()["counting"]
    return figures["count_predicted-Fiber"], figures["count_predicted-Film"]


def test_a_particle_detected_twice_counts_once(name):
    pieces = [(0.9, FIBER, (10, 10, 60, 4)), (0.8, FIBER, (20, 10, 30, 4))]
    assert count(name, pieces) == (1, 0)
    assert count(name, pieces, max_overlap=1) == (2, 0)
    assert count(name, pieces[:1] + [(0.8, FIBER, (55, 10, 40, 4))]) == (2, 0)


def test_what_is_below_its_threshold_takes_nothing_away(name):
    both = [(0.8, FILM, (10, 10, 20, 20)), (0.6, FIBER, (10, 10, 20, 20))]
    assert count(name, both) == (0, 1)
    assert count(name, both, score_thresholds=[0.5, 0.85]) == (1, 0)
    assert count(name, both, score_thresholds=[0.7, 0.7]) == (0, 1)


def test_the_confusion_matrix_has_a_background(name, tmp_path):
    judge(name, output_dir=tmp_path / "out", measure_sizes=False)
    rows = read(tmp_path / "out" / "counting_confusion.csv")
    assert [list(row.values()) for row in rows] == [
        ["Fiber", "2", "0", "0"],
        ["Film", "1", "1", "0"],
        ["background", "1", "2", "0"],
    ]
    assert list(rows[0]) == ["true \\ predicted", "Fiber", "Film", "background"]
    assert not (tmp_path / "out" / "counting_sizes.csv").exists()


def test_sizes_of_matched_pairs(name):
    figures = judge(name, measure_sizes=True)
    assert figures["area_bias-Fiber"] == figures["area_MAE"] == 0
    assert figures["area_loa_low-Film"] != figures["area_loa_low-Film"]  # one pair has no spread
    assert not any("_um" in key for key in figures)
    found = [(0.9, FIBER, (10, 10, 50, 4)), (0.9, FIBER, (10, 30, 122, 4))]
    evaluator = CountingEvaluator(name)
    evaluator.process([{"image_id": 1}], [predicted(found)])
    figures = evaluator.evaluate()["counting"]
    spread = 1.96 * 12 / math.sqrt(2)  # lengths off by -10 and 2
    expected = {"bias": -4, "MAE": 6, "loa_low": -4 - spread, "loa_high": -4 + spread}
    for key, value in expected.items():
        assert figures[f"length_{key}-Fiber"] == pytest.approx(value, abs=0.1), key
        assert figures[f"feret_max_{key}-Fiber"] == pytest.approx(value, abs=0.1), key
        assert figures[f"area_{key}-Fiber"] == pytest.approx(4 * value), key
    assert figures["area_MAPE-Fiber"] == pytest.approx(100 * (40 / 240 + 8 / 480) / 2)


def test_size_classes(name, tmp_path):
    figures = judge(name, size_bins=SizeBins((32, 96)), output_dir=tmp_path)
    counts = {
        key: [figures[f"count_{key}-{size}"] for size in ("<32px", "32-96px", ">=96px")]
        for key in ("true", "predicted")
    }
    assert counts == {"true": [2, 1, 1], "predicted": [3, 2, 2]}
    assert figures["F1-32-96px"] == pytest.approx(100 * 2 / 3)
    table = {(r["class"], r["size_class"]): r for r in read(tmp_path / "counting.csv")}
    assert len(table) == 12
    assert table["Fiber", ">=96px"]["count_predicted"] == "2"
    assert table["Film", "<32px"]["recall"] == "50.0"
    for key in ("count_true", "count_predicted"):
        parts = [int(r[key]) for (c, size), r in table.items() if "all" not in (c, size)]
        assert sum(parts) == int(table["all", "all"][key])


def test_micrometres_come_from_the_json(tmp_path, caplog):
    scaled = write_truth(tmp_path / "a.json", {1: 2, 2: 2.0, 3: 2.0, 4: 2.0})
    bins = SizeBins((64, 192), "um")
    figures = judge(scaled, size_bins=bins)
    assert figures["count_true-<64um"] == 2
    assert figures["length_um_bias"] == 2 * figures["length_bias"]
    assert figures["area_um_MAPE"] == figures["area_MAPE"]
    broken = write_truth(tmp_path / "b.json", {1: 2.0, 2: "2", 3: True, 4: float("nan")})
    assert "length_um_bias" not in judge(broken)
    assert "3 of 4 images of" in caplog.text
    with user_error("scale_missing", "3 images", "b.json", "2.png"):
        CountingEvaluator(broken, size_bins=bins)


def test_ranks_do_not_matter(name, monkeypatch):
    expected = judge(name)
    ranks = [CountingEvaluator(name), CountingEvaluator(name)]
    for image_id in [*FOUND, 1]:  # the last is padded
        ranks[image_id % 2].process([{"image_id": image_id}], [predicted(FOUND[image_id])])
    records = [rank.records for rank in ranks]
    monkeypatch.setattr(base.comm, "gather", lambda mine, dst: records)
    assert ranks[0].evaluate()["counting"] == pytest.approx(expected, nan_ok=True)
    monkeypatch.setattr(base.comm, "is_main_process", lambda: False)
    assert ranks[1].evaluate() == {}


def test_nothing_predicted_and_nothing_seen(name):
    evaluator = CountingEvaluator(name)
    none = Instances(
        SIZE,
        scores=torch.zeros(0),
        pred_classes=torch.zeros(0, dtype=torch.int64),
        pred_masks=CropMasks([], [], SIZE),
    )
    evaluator.process([{"image_id": 1}], [{"instances": none}])
    figures = evaluator.evaluate()["counting"]
    assert (figures["F1"], figures["count_error"], figures["recall-Film"]) == (0, -3, 0)
    assert figures["precision"] != figures["precision"]
    evaluator.reset()
    figures = evaluator.evaluate()["counting"]
    assert figures["count_true"] == 0 and figures["F1"] != figures["F1"]


def test_an_empty_mask_counts_and_is_wrong(name):
    evaluator = CountingEvaluator(name)
    instances = Instances(
        SIZE,
        scores=torch.ones(1),
        pred_classes=torch.zeros(1, dtype=torch.int64),
        pred_masks=torch.zeros(1, *SIZE, dtype=torch.bool),
    )
    evaluator.process([{"image_id": 3}], [{"instances": instances}])
    assert evaluator.evaluate()["counting"]["count_error-<32px"] == 1


@pytest.mark.parametrize("overlap", [-0.1, 1.5, float("nan"), True])
def test_an_overlap_is_a_fraction(name, overlap):
    with user_error("config_invalid", "MAX_OVERLAP"):
        CountingEvaluator(name, max_overlap=overlap)


def test_refusals(name):
    with user_error("dataset_unknown", "nowhere"):
        CountingEvaluator("nowhere")
    for wrong in ([0.5], [0.5, 2], ["a", 1], 1.5, [0.5, float("nan")]):
        with user_error("config_invalid", "Fiber, Film", "SCORE_THRESH"):
            CountingEvaluator(name, score_thresholds=wrong)
    instances = Instances(
        (9, 9),
        scores=torch.ones(1),
        pred_classes=torch.zeros(1, dtype=torch.int64),
        pred_masks=torch.ones(1, 9, 9, dtype=torch.bool),
    )
    with pytest.raises(ValueError, match=r"of size \(9, 9\).*\(100, 200\)"):
        CountingEvaluator(name).process([{"image_id": 1}], [{"instances": instances}])


NAMES = ["Fiber", "Film"]


def random_crops(random, count):
    crops = [random.random((6, 6)) < 0.9 for _ in range(count)]
    return CropMasks(crops, random.integers(8, size=(count, 2)), (14, 14))


def record(image_id, seed, least=0.0):
    """An image of masks that overlap much, some of them crowd, with scores that repeat."""
    random = np.random.default_rng(seed)
    found, true = random.integers(0, 9, 2)
    predicted, classes = random_crops(random, found), random.integers(0, 2, found)
    scores = random.choice([0.05, 0.31, 0.5, 0.72, 0.9], found)
    kept = np.flatnonzero(scores >= least)
    judged = judge_image(
        predicted[kept],
        classes[kept],
        scores[kept],
        random_crops(random, true),
        random.integers(0, 2, true),
        random.random(true) < 0.15,
        np.zeros(2),
    )
    return {"image_id": image_id, **judged}


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=3))
@settings(max_examples=40, deadline=None)
def test_one_matching_gives_what_matching_anew_at_each_threshold_gives(seeds):
    rows = curves(Pooled([record(i, seed) for i, seed in enumerate(seeds)]), NAMES)
    assert len(rows) == 3 * len(GRID)
    at = {(row["class"], row["threshold"]): row for row in rows}
    for least in (0.05, 0.31, 0.5, 0.6, 0.95):
        anew = Pooled([record(i, seed, least) for i, seed in enumerate(seeds)])
        for expected in count_table(anew, NAMES, np.zeros(2), SizeBins()):
            row = at[expected["class"], least]
            assert row["predicted"] == expected["count_predicted"]
            for figure in ("F1", "precision", "recall"):
                assert row[figure] == pytest.approx(expected[figure], nan_ok=True)


def test_a_threshold_counts_from_itself_on():
    square = np.ones((5, 5), dtype=bool)
    found = CropMasks([square, square], [(3, 3), (30, 30)], (40, 40))
    true, none = (np.zeros(1, dtype=np.int64), np.zeros(1, dtype=bool)), np.zeros(1)
    classes, scores = np.zeros(2, dtype=np.int64), np.array([0.8, 0.5])
    judged = judge_image(found, classes, scores, found[:1], *true, none)
    pooled = Pooled([{"image_id": 1, **judged}])
    everything = np.ones(2, dtype=bool), np.ones(1, dtype=bool)
    curve = class_curve(pooled, *everything, np.array([0.5, 0.51, 0.8, 0.81]))
    assert curve["predicted"].tolist() == [2, 1, 1, 0]
    assert curve["count_error"].tolist() == [1, 0, 0, -1]
    assert curve["count_error_pct"].tolist() == [100, 0, 0, -100]
    assert curve["recall"].tolist() == [100, 100, 100, 0]
    assert curve["F1"].tolist() == pytest.approx([200 / 3, 100, 100, 0])
    assert np.isnan(curve["precision"][-1])


def test_a_table_has_empty_cells_for_nan(tmp_path):
    write_table(tmp_path / "a.csv", [{"class": None, "F1": float("nan"), "true": 3}])
    with open(tmp_path / "a.csv", newline="") as file:
        assert list(csv.reader(file)) == [["class", "F1", "true"], ["all", "", "3"]]


SMALL = (24, 24)


def random_masks(random, count):
    masks = np.zeros((count, *SMALL), dtype=bool)
    for mask in masks:
        x, y = random.integers(0, 12, 2)
        width, height = random.integers(5, 13, 2)
        mask[y : y + height, x : x + width] = True
    return CropMasks.from_bitmasks(masks)


def coco_matches(found, classes, scores, true, true_classes, crowd):
    """Matched (not to a crowd) and ignored predictions of each class, as pycocotools has them."""
    api = COCO()
    frame = {"image_id": 1, "iscrowd": 0}
    annotations = [
        {**frame, "id": i + 1, "category_id": int(c), "segmentation": rle, "area": 1.0} | extra
        for i, (c, rle, extra) in enumerate(
            zip(
                true_classes,
                true.to_rles(as_str=True),
                [{"iscrowd": int(flag), "bbox": [0, 0, 1, 1]} for flag in crowd],
                strict=True,
            )
        )
    ]
    api.dataset = {
        "info": {},
        "images": [{"id": 1, "height": SMALL[0], "width": SMALL[1]}],
        "categories": [{"id": 0, "name": "a"}, {"id": 1, "name": "b"}],
        "annotations": annotations,
    }
    results = [
        {"image_id": 1, "category_id": int(c), "segmentation": rle, "score": float(s)}
        for c, rle, s in zip(classes, found.to_rles(as_str=True), scores, strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        api.createIndex()
        judge = COCOeval(api, api.loadRes(results), "segm")
        judge.params.iouThrs = np.array([MIN_IOU])
        judge.params.areaRng, judge.params.areaRngLbl = [[0, 1e10]], ["all"]
        judge.evaluate()
    counts = {}
    for number, image in enumerate(judge.evalImgs):
        matched = image["dtMatches"][0] > 0 if image else np.zeros(0, dtype=bool)
        ignored = image["dtIgnore"][0].astype(bool) if image else matched
        counts[number] = (int((matched & ~ignored).sum()), int(ignored.sum()))
    return counts


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_matches_are_those_of_pycocotools(seed):
    random = np.random.default_rng(seed)
    found, true = (random_masks(random, int(n)) for n in random.integers(1, 9, 2))
    classes, true_classes = (random.integers(0, 2, len(masks)) for masks in (found, true))
    crowd = random.random(len(true)) < 0.2
    scores = random.random(len(found))
    record = judge_image(found, classes, scores, true, true_classes, crowd, np.zeros(2))
    expected = coco_matches(found, classes, scores, true, true_classes, crowd)
    for number, (matched, ignored) in expected.items():
        own = classes == number
        assert (record["matches"][own, 0] >= 0).sum() == matched
        assert record["ignored"][own, 0].sum() == ignored


def test_each_particle_stands_once_in_the_confusion():
    random = np.random.default_rng(5)
    for _ in range(50):
        found, true = (random_masks(random, int(n)) for n in random.integers(0, 9, 2))
        classes, true_classes = (random.integers(0, 2, len(masks)) for masks in (found, true))
        scores, none = random.random(len(found)), np.zeros(len(true), dtype=bool)
        record = judge_image(found, classes, scores, true, true_classes, none, np.full(2, 0.4))
        truths, guesses = record["confusion"].T
        assert sorted(truths[truths >= 0]) == sorted(true_classes)
        assert sorted(guesses[guesses >= 0]) == sorted(classes[scores >= 0.4])
        assert not ((truths < 0) & (guesses < 0)).any()


def test_bins_are_named_after_their_bounds():
    assert SizeBins().names == ["<32px", "32-96px", ">=96px"]
    assert SizeBins((20, 0.5e3), "um").names == ["<20um", "20-500um", ">=500um"]
    assert SizeBins(()).names == ["any size"]


def test_a_bound_belongs_to_the_bin_above():
    sizes = np.array([[0, 9.9, 0], [0, 10, 0], [0, 25, 0]])
    assert SizeBins((10, 20)).assign(sizes, np.ones(3)).tolist() == [0, 1, 2]
    assert SizeBins((10, 20), "um").assign(sizes, np.full(3, 2.0)).tolist() == [1, 2, 2]


@pytest.mark.parametrize(
    "bounds", [(3, 2), (2, 2), (0,), (-1, 4), (float("nan"),), ("a",), (True,), range(1, 102)]
)
def test_bounds_that_make_no_bins(bounds):
    with user_error("config_invalid", "SIZE_BOUNDS"):
        SizeBins(bounds)


def test_an_unknown_unit():
    with user_error("config_invalid", "SIZE_UNIT", "mm"):
        SizeBins((1,), "mm")


def test_only_fibres_have_a_centreline():
    arc = np.zeros((60, 60), dtype=bool)
    arc[10:50, 10:14] = arc[46:50, 10:50] = True  # an L of 76 px along its middle
    masks = CropMasks([arc, arc, arc[:5, :5]], [(0, 0), (5, 5), (0, 0)], (80, 80))
    fiber, film, none = measure_sizes(masks, [0, 1, 0], ["fiber", "other"])
    assert fiber[0] > 1.25 * fiber[1] and film[0] == film[1] == fiber[1]
    assert fiber[2] == film[2] == np.count_nonzero(arc)
    assert none.tolist() == [0, 0, 0]


def test_agreement_is_that_of_bland_and_altman():
    figures = agreement(np.array([1.0, 4.0, 4.0]), np.array([2.0, 2.0, 2.0]))
    deviation = math.sqrt(3)
    assert figures == pytest.approx(
        {
            "bias": 1,
            "MAE": 5 / 3,
            "loa_low": 1 - 1.96 * deviation,
            "loa_high": 1 + 1.96 * deviation,
            "MAPE": 100 * 5 / 6,
        }
    )
    assert all(math.isnan(value) for value in agreement(np.zeros(0), np.zeros(0)).values())
