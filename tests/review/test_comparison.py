"""Predictions beside annotations."""

import json
import shutil
from collections import Counter

import cv2
import numpy as np
import pandas as pd
import pytest
from judged_images import IMAGES, evaluate, write_truth
from support import user_error

from microplastics.review import comparison
from microplastics.review.comparison import open_comparison

THRESHOLD = 0.1


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("judged")


@pytest.fixture(scope="module")
def truth(folder):
    return write_truth(folder)


@pytest.fixture(scope="module")
def evaluation(truth, folder):
    """Folder of an evaluation."""
    evaluate(truth, folder / "inference", threshold=THRESHOLD)
    return folder / "inference"


@pytest.fixture
def run(evaluation, folder, tmp_path, cli):
    """Folder of a run that measured what the evaluation found."""
    results = evaluation / comparison.RESULTS_FILE
    done = cli(
        *("measure", "--masks", results, "--dataset", folder / "truth.json", "--images", folder),
        *("--um-per-px", 2, "--min-score", THRESHOLD, "--output", tmp_path / "run"),
    )
    assert done.returncode == 0, done.stderr
    return tmp_path / "run"


def outcomes_of(source):
    return {
        name: Counter(each.outcome for each in o.values()) for name, o in source.outcomes.items()
    }


def test_outcomes_are_those_of_the_evaluation(truth, evaluation):
    source, messages = open_comparison(truth, evaluation, THRESHOLD)
    rows = pd.read_csv(evaluation / "evaluation_particles.csv")
    expected = {name: Counter(of_image["outcome"]) for name, of_image in rows.groupby("image")}
    found = outcomes_of(source)
    assert {name: each - Counter({"": each[""]}) for name, each in found.items()} == expected
    assert set(rows["outcome"]) >= {"missed", "background", "class", "both", "correct"}
    assert not messages
    ious = rows[rows["annotation"].notna() & rows["detection"].notna()]
    ious = ious.set_index(["image", "detection"])["iou"].to_dict()
    assert {
        (name, int(each.label.split()[1]) - 1): each.iou
        for name, of_image in source.outcomes.items()
        for each in of_image.values()
        if each.partner
    } == pytest.approx(ious)


def test_the_worst_come_first(truth, evaluation):
    source, _ = open_comparison(truth, evaluation, THRESHOLD)
    found = outcomes_of(source)
    right = ("", "correct")
    errors = [sum(n for o, n in found[i.name].items() if o not in right) for i in source.images]
    assert errors == sorted(errors, reverse=True) and errors[0] > errors[-1]
    for of_image in source.outcomes.values():
        ranked = sorted(of_image.values(), key=lambda each: each.rank)
        assert [each.rank for each in ranked] == list(range(len(ranked)))
        degrees = [each.disagreement for each in ranked]
        assert degrees == sorted(degrees, reverse=True)
    of_first = source.outcomes["1.png"].values()
    by_label = {each.label: each for each in of_first}
    degrees = {label: each.disagreement for label, each in by_label.items() if each.outcome}
    right, shifted = 16 * 14 / (2 * 17 * 15 - 16 * 14), 8 * 6 / (2 * 17 * 15 - 8 * 6)
    assert degrees == pytest.approx(
        {
            "Annotation 101": 1,
            "Detection 5": 0.87,  # background
            "Detection 3": 1 - shifted,
            "Detection 4": 0.32,  # class and outline
            "Detection 1": 1 - right,
            "Detection 6": 1 - 16 * 16 / (2 * 18 * 19 - 16 * 16),
        }
    )


def test_particles_are_measured_together(truth, evaluation):
    source, _ = open_comparison(truth, evaluation, THRESHOLD)
    for image in source.images:
        own = source.outcomes[image.name]
        assert image.particles.ids.tolist() == list(own) == list(range(1, len(own) + 1))
        for id_, outcome in own.items():
            if outcome.partner:
                assert outcome.true_class == image.particles.classes[outcome.partner - 1]
                assert own[outcome.partner].label.startswith("Annotation")
            assert outcome.label.startswith("Annotation") == (
                not image.particles.scores[id_ - 1] > 0
            )
    assert {image.calibration.um_per_px for image in source.images} == {2.0}


def test_a_run_counts_all_that_it_has(truth, evaluation, run, monkeypatch):
    monkeypatch.setattr(comparison, "_MAX_OVERLAP", 1.0)
    source, _ = open_comparison(truth, evaluation / comparison.RESULTS_FILE, THRESHOLD)
    of_run, messages = open_comparison(truth, run)
    assert outcomes_of(of_run) == outcomes_of(source) and not messages


def test_what_a_run_lacks_is_left_out(truth, run, folder, tmp_path, cli):
    shutil.copytree(folder, tmp_path / "set" / "deep", ignore=lambda *_: ["inference"])
    data = json.loads((folder / "truth.json").read_text())
    kept = [image for image in data["images"] if image["id"] < 4]
    for image in kept:
        image["file_name"] = f"deep/{image['file_name']}"
    extra = {"id": 9, "file_name": "deep/9.png", "width": 120, "height": 100}
    shutil.copy(folder / "1.png", tmp_path / "set" / "deep" / "9.png")
    data["images"] = [*kept, extra]
    data["annotations"] = [a for a in data["annotations"] if a["image_id"] < 4]
    (tmp_path / "set.json").write_text(json.dumps(data))
    source, messages = open_comparison(f"{tmp_path / 'set.json'}:{tmp_path / 'set'}", run)
    assert {image.name for image in source.images} == {f"deep/{n}.png" for n in (1, 2, 3)}
    assert messages == [
        f"1 annotated images are left out: {run} does not have them.",
        "2 images with predictions are left out: they are not annotated, such as 4.png.",
    ]


def test_particles_outside_of_a_runs_region_are_not_missed(
    truth, evaluation, folder, tmp_path, cli
):
    left = np.zeros((100, 120), np.uint8)
    left[:, :50] = 255
    cv2.imwrite(str(tmp_path / "left.png"), left)
    done = cli(
        *("measure", "--masks", evaluation / comparison.RESULTS_FILE, "--output", tmp_path / "run"),
        *("--dataset", folder / "truth.json", "--images", folder, "--um-per-px", 2),
        *("--region", tmp_path / "left.png"),
    )
    assert done.returncode == 0, done.stderr
    source, messages = open_comparison(truth, tmp_path / "run")
    lefts = sum(x + w / 2 < 50 for truths, _ in IMAGES for _, (x, _, w, _) in truths)
    assert messages == [
        f"{14 - lefts} annotations are left out: outside of the run's region of interest."
    ]
    labels = [each.label for own in source.outcomes.values() for each in own.values()]
    assert sum(label.startswith("Annotation") for label in labels) == lefts < 14


def test_other_annotations_agree_with_themselves(truth, folder):
    source, _ = open_comparison(truth, folder / "truth.json")
    assert sum(outcomes_of(source).values(), Counter()) == {"": 14, "correct": 14}
    assert {e.disagreement for own in source.outcomes.values() for e in own.values()} == {0.0}


def test_a_crowd_is_neither_right_nor_wrong(folder, evaluation, tmp_path):
    data = json.loads((folder / "truth.json").read_text())
    for annotation in data["annotations"]:
        annotation["iscrowd"] = int(annotation["image_id"] == 1)
    (tmp_path / "crowd.json").write_text(json.dumps(data))
    source, _ = open_comparison(f"{tmp_path / 'crowd.json'}:{folder}", evaluation, THRESHOLD)
    of_image = outcomes_of(source)["1.png"]
    assert of_image["ignored"] and not of_image["missed"] and not of_image["correct"]


def test_what_does_not_belong_together(truth, evaluation, folder, tmp_path):
    data = json.loads((folder / "truth.json").read_text())

    def changed(**fields):
        path = tmp_path / "other.json"
        path.write_text(json.dumps({**data, **fields}))
        return path

    with user_error("option_missing", "JSON:IMAGES"):
        open_comparison(None, evaluation)
    renamed = [{**each, "name": f"New{each['id']}"} for each in data["categories"]]
    with user_error("classes_mismatch", "New1", "Fiber"):
        open_comparison(truth, changed(categories=renamed))
    others = [{**each, "file_name": f"other{each['id']}.png"} for each in data["images"]]
    with user_error("input_empty", "5 annotated images"):
        open_comparison(truth, changed(images=others))
    wide = [{**each, "width": 121} for each in data["images"]]
    with user_error("image_size", "121 x 100", "120 x 100"):
        open_comparison(truth, changed(images=wide))
    with user_error("file_missing"):
        open_comparison(truth, tmp_path / "gone.json")
