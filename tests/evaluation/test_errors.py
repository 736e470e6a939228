"""microplastics/evaluation/errors.py and the tables that it fills."""

import csv
import json

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from microplastics.data.catalog import resolve_datasets
from microplastics.evaluation.coco import COCOEvaluator
from microplastics.evaluation.counting import CountingEvaluator
from microplastics.evaluation.errors import (
    KINDS,
    OUTCOMES,
    Judged,
    average_precision,
    error_record,
    error_table,
    lost_ap,
)
from microplastics.structures.crop_masks import CropMasks

SIZE = (100, 120)
NAMES = ["Fiber", "Film", "Fragment"]
FIBER, FILM = 0, 1

# Each image: class and box of its truths; score, class and box of its detections.
IMAGES = [
    (
        [(2, (82, 24, 17, 15)), (0, (20, 32, 10, 15)), (2, (93, 77, 18, 19))],
        [
            (0.41, 2, (83, 25, 17, 15)),
            (0.34, 1, (82, 24, 17, 15)),
            (0.25, 2, (91, 33, 17, 15)),
            (0.32, 2, (15, 24, 10, 15)),
            (0.87, 0, (12, 40, 10, 15)),
            (0.46, 2, (91, 80, 18, 19)),
            (0.43, 2, (94, 80, 18, 19)),
        ],
    ),
    ([(2, (75, 52, 21, 11))], []),
    (
        [
            (0, (58, 53, 27, 12)),
            (0, (19, 68, 22, 13)),
            (1, (23, 14, 23, 15)),
            (1, (73, 52, 20, 18)),
        ],
        [
            (0.83, 0, (25, 17, 23, 15)),
            (0.38, 2, (25, 17, 23, 15)),
            (0.47, 1, (23, 13, 23, 15)),
            (0.30, 2, (64, 59, 20, 18)),
            (0.15, 1, (74, 52, 20, 18)),
        ],
    ),
    (
        [
            (1, (18, 62, 27, 18)),
            (0, (1, 73, 10, 23)),
            (1, (87, 70, 25, 19)),
            (2, (35, 60, 25, 8)),
        ],
        [
            (0.75, 0, (9, 69, 10, 23)),
            (0.27, 1, (79, 64, 25, 19)),
            (0.10, 1, (89, 71, 25, 19)),
            (0.50, 2, (34, 61, 25, 8)),
            (0.77, 2, (36, 59, 25, 8)),
        ],
    ),
    (
        [(2, (97, 66, 16, 20)), (0, (43, 36, 11, 28))],
        [
            (0.81, 0, (99, 59, 16, 20)),
            (0.60, 2, (95, 68, 16, 20)),
            (0.19, 2, (99, 64, 16, 20)),
            (0.33, 0, (43, 36, 11, 28)),
            (0.45, 2, (37, 32, 11, 28)),
        ],
    ),
]
# tidecv 1.0.1, TIDE(mode=TIDE.MASK), of IMAGES: AP50, the rise of it and the number of each kind.
TIDE_AP = 42.12164073550213
TIDE = {
    "missed": (16.76803394625172, 6),
    "background": (0.9240924092409202, 2),
    "duplicate": (3.1588873173031544, 3),
    "class": (2.821782178217795, 3),
    "localisation": (2.4752475247524544, 2),
    "both": (0.9751689454659953, 4),
}


def masks(boxes):
    full = np.zeros((len(boxes), *SIZE), dtype=bool)
    for mask, (x, y, width, height) in zip(full, boxes, strict=True):
        mask[y : y + height, x : x + width] = True
    return CropMasks.from_bitmasks(full)


def judge(truths, found, counted=None, crowd=()):
    """The record of an image."""
    scores, classes, boxes = list(zip(*found, strict=True)) or ([], [], [])
    true_classes, true_boxes = list(zip(*truths, strict=True)) or ([], [])
    return error_record(
        masks(boxes),
        np.array(classes, dtype=np.int64),
        np.array(scores, dtype=float),
        masks(true_boxes),
        np.array(true_classes, dtype=np.int64),
        np.isin(np.arange(len(truths)), crowd),
        np.arange(len(found)) if counted is None else np.array(counted, dtype=np.int64),
    )


PLACE = (10, 10, 40, 10)
AWAY = (10, 60, 40, 10)
ONE = {
    # What is found on one fibre at PLACE: outcome, its IoU, and whether the fibre counts as missed.
    "correct": ([(FIBER, (10, 10, 40, 9))], ["correct"], [0.9], False),
    "background": ([(FIBER, AWAY)], ["background"], [0], True),
    "a tenth is background": ([(FILM, (10, 10, 4, 10))], ["background"], [0], True),
    "localisation": ([(FIBER, (10, 10, 40, 4))], ["localisation"], [0.4], False),
    "class": ([(FILM, (10, 10, 40, 8))], ["class"], [0.8], False),
    "both": ([(FILM, (10, 10, 40, 4))], ["both"], [0.4], True),
    "duplicate": (
        [(FIBER, PLACE), (FIBER, (10, 10, 40, 6))],
        ["correct", "duplicate"],
        [1, 0.6],
        False,
    ),
    "half an outline of what is taken": (
        [(FIBER, PLACE), (FIBER, (10, 10, 40, 5))],
        ["correct", "localisation"],
        [1, 0.5],
        False,
    ),
    "nothing": ([], [], [], True),
}


@pytest.mark.parametrize("name", ONE)
def test_the_kind_of_an_error(name):
    found, outcomes, ious, missed = ONE[name]
    scored = [(0.9 - 0.1 * rank, *each) for rank, each in enumerate(found)]
    record = judge([(FIBER, PLACE)], scored)
    assert [OUTCOMES[number] for number in record.every.outcome] == outcomes
    assert record.iou.tolist() == pytest.approx(ious)
    assert record.every.missed.tolist() == [missed]


def test_the_numbers_are_those_of_tidecv():
    every = Judged.pool([judge(*image).every for image in IMAGES])
    ap, _ = lost_ap(every, 3)
    assert ap.mean() == pytest.approx(TIDE_AP)
    rows = error_table(every, every, NAMES)
    of_all = {row["error"]: row for row in rows if row["class"] is None}
    assert {kind: of_all[kind]["AP50_lost"] for kind in KINDS} == pytest.approx(
        {kind: lost for kind, (lost, _) in TIDE.items()}
    )
    assert {kind: of_all[kind]["detections"] for kind in KINDS} == {
        kind: number for kind, (_, number) in TIDE.items()
    }
    for kind in KINDS:
        of_kind = [row for row in rows if row["error"] == kind and row["class"] is not None]
        assert sum(row["detections"] for row in of_kind) == of_all[kind]["detections"]
        mean = np.mean([row["AP50_lost"] for row in of_kind])
        assert mean == pytest.approx(of_all[kind]["AP50_lost"])


@pytest.mark.parametrize(
    ("found", "kind", "ap", "rise"),
    [
        # Of two fibres one is found: precision 1 up to recall 0.5, 51 of 101 recalls.
        ([(0.9, FIBER, PLACE)], "missed", 100 * 51 / 101, 100 * 50 / 101),
        (
            [(0.8, FIBER, PLACE), (0.9, FIBER, (80, 80, 9, 9))],
            "background",
            50 * 51 / 101,
            50 * 51 / 101,
        ),
        # The duplicate comes last: it costs nothing.
        ([(0.9, FIBER, PLACE), (0.8, FIBER, PLACE)], "duplicate", 100 * 51 / 101, 0),
        ([(0.9, FIBER, PLACE), (0.8, FILM, AWAY)], "class", 100 * 51 / 101, 100 * 50 / 101),
        (
            [(0.9, FIBER, PLACE), (0.8, FIBER, (10, 60, 40, 3))],
            "localisation",
            100 * 51 / 101,
            100 * 50 / 101,
        ),
        # Two would be right about the same fibre: one is put right, the other taken away.
        (
            [(0.9, FIBER, (10, 60, 40, 3)), (0.8, FIBER, (10, 60, 40, 2)), (0.7, FIBER, PLACE)],
            "localisation",
            100 / 3 * 51 / 101,
            100 - 100 / 3 * 51 / 101,
        ),
    ],
)
def test_what_an_error_costs(found, kind, ap, rise):
    record = judge([(FIBER, PLACE), (FIBER, AWAY)], found)
    before, rises = lost_ap(record.every, 2)
    assert before[0] == pytest.approx(ap) and np.isnan(before[1])
    assert rises[0, KINDS.index(kind)] == pytest.approx(rise)
    assert np.isnan(rises[1]).all()


def test_a_class_of_which_nothing_is_found_is_missed_altogether():
    record = judge(
        [(FIBER, PLACE), (FILM, AWAY)], [(0.9, FIBER, PLACE), (0.8, FILM, (80, 80, 9, 9))]
    )
    ap, rises = lost_ap(record.every, 2)
    assert ap.tolist() == [100, 0]
    assert rises[:, KINDS.index("missed")].tolist() == [0, 100]


def test_crowds_are_neither_found_nor_missed():
    truths = [(FILM, (0, 0, 60, 60)), (FIBER, (70, 10, 40, 10))]
    found = [(0.9, FILM, (5, 5, 20, 20)), (0.8, FIBER, (5, 5, 20, 20)), (0.7, FILM, (90, 80, 9, 9))]
    record = judge(truths, found, crowd=[0])
    outcomes = [OUTCOMES[number] for number in record.every.outcome]
    assert outcomes == ["ignored", "background", "background"]
    assert record.every.missed.tolist() == [True]
    ap, _ = lost_ap(record.every, 2)
    assert ap[0] == 0 and np.isnan(ap[1])


def test_what_does_not_count_leaves_its_particle_missed():
    found = [(0.9, FIBER, (10, 10, 40, 3)), (0.2, FIBER, PLACE)]
    record = judge([(FIBER, PLACE)], found, counted=[0])
    assert [OUTCOMES[n] for n in record.every.outcome] == ["localisation", "correct"]
    assert [OUTCOMES[n] for n in record.counted.outcome] == ["localisation"]
    rows = {row["error"]: row for row in error_table(record.every, record.counted, ["Fiber"])}
    assert (rows["localisation"]["detections"], rows["localisation"]["counted"]) == (1, 1)
    record = judge([(FIBER, PLACE)], found, counted=[])
    assert record.every.missed.tolist() == [False] and record.counted.missed.tolist() == [True]


def test_no_image_and_no_class():
    rows = error_table(Judged.pool([]), Judged.pool([]), ["Fiber"])
    assert [row["class"] for row in rows] == ["Fiber"] * 6 + [None] * 6
    assert all(np.isnan(row["AP50_lost"]) and row["counted"] == 0 for row in rows)
    assert average_precision(np.zeros(0, dtype=bool), 3) == 0


@pytest.fixture
def evaluated(tmp_path):
    """Folder with what both evaluators write of IMAGES, and their figures."""
    images, annotations = [], []
    for image_id, (truths, _) in enumerate(IMAGES, 1):
        scale = {"um_per_px": 2.0}
        images.append(
            {"id": image_id, "file_name": f"{image_id}.png", "height": 100, "width": 120, **scale}
        )
        for number, (x, y, w, h) in truths:
            corners = [x, y, x + w, y, x + w, y + h, x, y + h]
            annotations.append(
                {
                    "id": 100 + len(annotations),
                    "image_id": image_id,
                    "category_id": number + 1,
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                    "segmentation": [corners],
                }
            )
    categories = [{"id": n, "name": name} for n, name in enumerate(NAMES, 1)]
    path = tmp_path / "truth.json"
    path.write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    (name,) = resolve_datasets([f"{path}:{tmp_path}"])
    both = (
        CountingEvaluator(name, score_thresholds=0.4, output_dir=tmp_path),
        COCOEvaluator(name, tmp_path),
    )
    figures = {}
    for evaluator in both:
        for image_id, (_, found) in enumerate(IMAGES, 1):
            scores, classes, boxes = list(zip(*found, strict=True)) or ([], [], [])
            crops = masks(boxes)
            instances = Instances(SIZE, pred_boxes=Boxes(crops.get_bounding_boxes().tensor))
            instances.scores = torch.tensor(scores, dtype=torch.float64)
            instances.pred_classes = torch.tensor(classes, dtype=torch.int64)
            instances.pred_masks = crops
            evaluator.process([{"image_id": image_id}], [{"instances": instances}])
        figures.update(evaluator.evaluate())
    return tmp_path, figures


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_ap50_is_that_of_the_coco_evaluation(evaluated):
    folder, figures = evaluated
    every = Judged.pool([judge(*image).every for image in IMAGES])
    ap, _ = lost_ap(every, 3)
    assert [figures["segm"][f"AP50-{name}"] for name in NAMES] == pytest.approx(ap.tolist())
    curve = [
        float(row["precision_0.50"])
        for row in read(folder / "evaluation_pr_curves.csv")
        if row["task"] == "segm" and row["class"] == "Film"
    ]
    assert len(curve) == 101 and 100 * np.mean(curve) == pytest.approx(ap[FILM], abs=1e-4)


def test_the_table_of_particles_agrees_with_the_counts(evaluated):
    folder, figures = evaluated
    rows, counts = read(folder / "evaluation_particles.csv"), figures["counting"]
    found = [row for row in rows if row["detection"]]
    right = [row for row in found if row["outcome"] == "correct"]
    assert len(found) == counts["count_predicted"]
    assert 100 * len(right) / len(found) == pytest.approx(counts["precision"])
    errors = [float(row["length_px"]) - float(row["true_length_px"]) for row in right]
    assert np.mean(errors) == pytest.approx(counts["length_bias"])
    table = {row["error"]: row for row in read(folder / "evaluation_errors.csv")[-6:]}
    for kind in KINDS:
        number = sum(row["outcome"] == kind for row in rows)
        assert number == int(table[kind]["counted"]), kind
        assert figures["errors"][kind] == pytest.approx(float(table[kind]["AP50_lost"]))
        assert figures["errors"][kind] == pytest.approx(TIDE[kind][0])
    assert all(row["true_class"] and not row["score"] for row in rows if not row["detection"])


def test_rows_of_particles_point_at_detections_and_annotations(evaluated):
    folder, _ = evaluated
    rows = read(folder / "evaluation_particles.csv")
    results = json.loads((folder / "coco_instances_results.json").read_text())
    truth = json.loads((folder / "truth.json").read_text())
    for row in rows:
        box = [int(row[f"bbox_{side}"]) for side in "xywh"]
        if row["detection"]:
            of_image = [r for r in results if r["image_id"] == int(row["image_id"])]
            result = of_image[int(row["detection"])]
            assert (result["bbox"], result["score"]) == (box, float(row["score"]))
        if row["annotation"]:
            (annotation,) = [a for a in truth["annotations"] if a["id"] == int(row["annotation"])]
            assert NAMES[annotation["category_id"] - 1] == row["true_class"]
            if not row["detection"]:
                assert annotation["bbox"] == box
    assert {row["um_per_px"] for row in rows} == {"2.0"}
