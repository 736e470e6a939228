"""Cross-validation: folds, their figures, and predictions of all images."""

import csv
import json
import math

import numpy as np
import pycocotools.mask as mask_util
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from support import ROOT, dataset_entry, user_error

from microplastics.data.splits.split import SplitOptions
from microplastics.experiments.cross_validation import (
    markdown,
    pool,
    read_folds,
    run_cross_validation,
    summarise,
)


def test_mean_and_deviation_over_folds():
    folds = {"fold1": {"AP": 40.0, "F1": 1.0}, "fold2": {"AP": 44.0}, "fold3": {"AP": math.nan}}
    ap, f1 = summarise(folds, {"AP": 41.0})
    assert (ap["mean"], ap["sd"], ap["pooled"]) == (
        42.0,
        pytest.approx(np.std([40, 44], ddof=1)),
        41,
    )
    assert f1["mean"] == 1.0 and math.isnan(f1["sd"]) and math.isnan(f1["pooled"])
    assert "42.0 ± 2.8 " in markdown([ap, f1])


@pytest.fixture
def folded(cli, rendered, tmp_path):
    """Folder of two folds of the 4 images of val."""
    json_file = rendered / "annotations" / "instances_val.json"
    arguments = ("--input", json_file, "--images", rendered / "val", "--folds", "2")
    assert cli("split", *arguments, "--output", tmp_path / "folds").returncode == 0
    return tmp_path / "folds"


def encoded(mask):
    rle = mask_util.encode(np.asfortranarray(mask))
    return {**rle, "counts": rle["counts"].decode()}


def test_pooled_ap_is_pycocotools_on_all_images(folded, tiny_cfg, tmp_path):
    folds = read_folds(folded)
    rng = np.random.default_rng(0)
    for fold in folds:
        data = json.loads(fold.val.read_text())
        truth = COCO(str(fold.val))
        results = [
            {
                "image_id": each["image_id"],
                "category_id": int(rng.choice([1, 2, each["category_id"]])),
                "bbox": each["bbox"],
                "score": float(rng.random()),
                "segmentation": encoded(truth.annToMask(each)),
            }
            for each in data["annotations"]
        ]
        folder = tmp_path / fold.name / "inference"
        folder.mkdir(parents=True)
        (folder / "coco_instances_results.json").write_text(json.dumps(results))
    trainings = [tmp_path / fold.name for fold in folds]
    pooled = pool(folds, trainings, tmp_path, tiny_cfg())
    truth = COCO(str(tmp_path / "annotations.json"))
    assert len(truth.imgs) == 4
    for task in ("bbox", "segm"):
        found = truth.loadRes(str(tmp_path / "coco_instances_results.json"))
        evaluation = COCOeval(truth, found, task)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        assert 1 < pooled[f"{task}/AP"] < 99
        assert pooled[f"{task}/AP"] == pytest.approx(100 * evaluation.stats[0])
        assert pooled[f"{task}/AP50"] == pytest.approx(100 * evaluation.stats[1])
    twice = [folds[0], folds[0]]
    with user_error("annotations_invalid", "several folds"):
        pool(twice, trainings, tmp_path, tiny_cfg())


def test_every_image_is_predicted_by_a_model_that_has_not_seen_it(
    cli, rendered, tiny_opts, tmp_path
):
    train, output = dataset_entry(rendered, "train"), tmp_path / "out"
    command = (
        *("cross-validate", "--config-file", ROOT / "configs/microplastics_quick.yaml"),
        *("--folds", "2", "--output", output, *tiny_opts, "DATASETS.TRAIN", repr((train,))),
        *("SOLVER.MAX_ITER", "2", "TEST.EVAL_PERIOD", "2"),
        *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"),
    )
    done = cli(*command)
    assert done.returncode == 0, done.stderr
    assert "the images are split one by one" in done.stdout and "pooled" in done.stdout
    data = json.loads((rendered / "annotations" / "instances_train.json").read_text())
    every = {image["id"] for image in data["images"]}
    results = json.loads((output / "coco_instances_results.json").read_text())
    assert {result["image_id"] for result in results} == every
    for fold in read_folds(output / "folds"):
        seen, held_out = (
            {image["id"] for image in json.loads(path.read_text())["images"]}
            for path in (fold.train, fold.val)
        )
        assert not seen & held_out and seen | held_out == every
        own = json.loads(
            (output / fold.name / "inference" / "coco_instances_results.json").read_text()
        )
        assert {result["image_id"] for result in own} <= held_out
    (row,) = [
        row
        for row in csv.DictReader(open(output / "cross_validation.csv"))
        if row["metric"] == "validation/total_loss"
    ]
    mean = (float(row["fold1"]) + float(row["fold2"])) / 2
    assert float(row["mean"]) == pytest.approx(mean) and row["pooled"] == ""
    weights = output / "fold2" / "model_final.pth"
    written = weights.stat().st_mtime_ns
    assert cli(*command).returncode == 0 and weights.stat().st_mtime_ns == written
    figures = json.loads((output / "cross_validation.json").read_text())
    assert set(figures["segm/AP"]) == {"fold1", "fold2", "mean", "sd", "pooled"}


@pytest.mark.parametrize(
    ("folds", "opts", "code", "words"),
    [
        ("1", [], "option_invalid", "--folds is 1"),
        ("nowhere", [], "option_invalid", "nowhere"),
        ("2", ["DATASETS.TRAIN_WEIGHTS", "[1.0]"], "config_invalid", "TRAIN_WEIGHTS"),
        ("99", [], "split_impossible", "99"),
    ],
)
def test_mistakes_are_sentences(folds, opts, code, words, tiny_opts, tmp_path):
    with user_error(code, words):
        run_cross_validation("quick", [*tiny_opts, *opts], folds, tmp_path / "out")


def test_a_folder_of_folds_is_not_grouped_again(folded, tiny_opts, tmp_path):
    with user_error("option_conflict", folded):
        grouping = SplitOptions(group_regex="(.)")
        run_cross_validation("quick", tiny_opts, str(folded), tmp_path / "out", grouping)


def test_a_fold_that_fails_is_listed(cli, folded, tiny_opts, tmp_path):
    watch = ("SOLVER.EARLY_STOPPING.ENABLED", "True", "SOLVER.EARLY_STOPPING.METRIC", "nonsense")
    output = tmp_path / "out"
    done = cli(
        *("cross-validate", "--config-file", "quick", "--folds", folded, "--output", output),
        *(*tiny_opts, *watch),
    )
    assert done.returncode == 3, done.stderr
    assert done.stdout.count("is nonsense; expected") >= 2
    assert "Failed: fold2: " in (output / "cross_validation.md").read_text()
    assert not (output / "coco_instances_results.json").exists()


def test_splits_are_no_folds(cli, rendered, tmp_path):
    json_file = rendered / "annotations" / "instances_train.json"
    cli("split", "--input", json_file, "--images", rendered / "train", "--output", tmp_path)
    with user_error("option_invalid", "0 folds"):
        read_folds(tmp_path)
    part = {"annotations": "a.json"}
    away = {f"../away{number}/{name}": part for number in "12" for name in ("train", "val")}
    manifest = {"settings": {"place": "copy"}, "splits": away}
    for broken in ({}, manifest):
        (tmp_path / "splits.json").write_text(json.dumps(broken))
        with user_error("file_invalid", "splits.json"):
            read_folds(tmp_path)
