"""microplastics/evaluation/errors.py and the tables that it fills."""

import csv
import json

import numpy as np
import pytest
from judged_images import FIBER, FILM, IMAGES, NAMES, evaluate, masks, write_truth

from microplastics.evaluation.errors import (
    KINDS,
    OUTCOMES,
    Judged,
    average_precision,
    error_record,
    error_table,
    lost_ap,
)

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
    assert record.every.iou.tolist() == pytest.approx(ious)
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
    """Folder with what the evaluators write of IMAGES, and their figures."""
    return tmp_path, evaluate(write_truth(tmp_path), tmp_path)


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


def test_scores_against_ious(evaluated):
    folder, _ = evaluated
    rows = read(folder / "evaluation_scores.csv")
    assert sum(int(row["detections"]) for row in rows) == 22
    assert sum(int(row["correct"]) for row in rows) == 8
    (row,) = [r for r in rows if r["class"] == "Fragment" and r["score"] == "0.6"]
    # 14 x 18 px of 16 x 20 each are common: 252 / 388.
    assert (row["iou"], row["detections"], row["correct"]) == ("0.6", "1", "1")
