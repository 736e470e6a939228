"""microplastics view and plot."""

import json

import numpy as np
import pytest
from PIL import Image
from support import ROOT, dataset_entry

from microplastics.config import get_cfg

QUICK = ("--config-file", f"{ROOT}/configs/microplastics_quick.yaml")


@pytest.fixture
def results(tmp_path):
    path = tmp_path / "results.json"

    def write(*scores):
        box = {"image_id": 1, "category_id": 1, "bbox": [5, 5, 30, 20]}
        path.write_text(json.dumps([{**box, "score": score} for score in scores]))
        return path

    return write


@pytest.mark.parametrize("mode", ["annotations", "batches"])
def test_a_training_set_is_drawn(cli, tiny_opts, tmp_path, mode):
    done = cli("view", mode, *QUICK, *tiny_opts, "--limit", "2", "--output", tmp_path / "new")
    assert done.returncode == 0, done.stderr
    assert f"2 pictures in {tmp_path / 'new'}" in done.stdout
    assert len(list((tmp_path / "new").glob("*.jpg"))) == 2


def test_annotations_need_no_config(cli, rendered, tmp_path):
    entry = repr((dataset_entry(rendered, "test"),))
    options = ("--output", tmp_path / "new", "--limit", "1", "DATASETS.TRAIN", entry)
    done = cli("view", "annotations", *options)
    assert done.returncode == 0 and "1 pictures in" in done.stdout


def test_every_augmentation_has_a_panel(cli, rendered, tmp_path):
    path = tmp_path / "new" / "sheet.png"
    train = ("DATASETS.TRAIN", repr((dataset_entry(rendered, "train"),)))
    size = ("INPUT.MIN_SIZE_TRAIN", "(96,)")
    done = cli("view", "augmentations", *QUICK, "--output", path, "--side", 64, *train, *size)
    assert done.returncode == 0, done.stderr
    count = 1 + len(get_cfg().INPUT.AUG)
    assert f"{count} panels in {path}" in done.stdout
    sheet = np.asarray(Image.open(path))
    assert sheet.shape[1] == 4 * 64 + 3 * 8
    assert sheet.shape[0] > -(-count // 4) * 64


def test_results_are_drawn(cli, rendered, results, tmp_path):
    options = ("--dataset", dataset_entry(rendered, "val"), "--output", tmp_path / "new")
    done = cli("view", "results", "--input", results(0.9), *options)
    assert done.returncode == 0 and "4 pictures in" in done.stdout
    done = cli("view", "results", "--input", results(0.25, 0.31), *options)
    assert done.returncode == 0
    assert "None of the 2 predictions reaches --min-score 0.5" in done.stdout
    assert "highest score is 0.31" in done.stdout
    done = cli("view", "results", "--input", results(), *options, "--limit", 1)
    assert done.returncode == 0 and "holds no predictions at all" in done.stdout
    assert "1 pictures in" in done.stdout


def test_curves_are_plotted(cli, tmp_path):
    metrics = tmp_path / "metrics.json"
    metrics.write_text('{"iteration": 3, "total_loss": 1.0}\n')
    done = cli("plot", "--input", metrics, "--output", tmp_path / "a" / "curves.png")
    assert done.returncode == 0 and "Curves in" in done.stdout
    assert (tmp_path / "a" / "curves.png").read_bytes().startswith(b"\x89PNG")


RESULTS = ("view", "results", "--output", "x", "--dataset", "VAL", "--input")
SHEET = ("view", "augmentations", *QUICK, "--output", "OUT/a.jpg")
MISTAKES = {
    "unknown data": (
        ("view", "annotations", "DATASETS.TRAIN", "('microplastics_trian',)"),
        "microplastics_trian",
    ),
    "no data": (("view", "annotations"), "DATASETS.TRAIN is empty"),
    "no JSON": (("view", "batches", "DATASETS.TRAIN", "('gone.json:.',)"), "gone.json"),
    "no config": (("view", "annotations", "--config-file", "configs/none.yaml"), "none.yaml"),
    "folder": (("view", "annotations", *QUICK, "--output", "/dev/null/x", "TRAIN"), "/dev/null/x"),
    "limit": (("view", "annotations", "--limit", "0"), "--limit"),
    "side": ((*SHEET, "--side", "3"), "--side is 3"),
    "hue": ((*SHEET, "TRAIN", "INPUT.AUG.HUE.MAX_SHIFT", "200.0"), "INPUT.AUG.HUE.MAX_SHIFT"),
    "no results": ((*RESULTS, "gone.json"), "Cannot read gone.json: No such file"),
    "threshold": ((*RESULTS, "x", "--min-score", "50"), "--min-score"),
    "no data for the page": (("view", "--no-browser"), "DATASET is missing"),
    "no such mode": (("view", "annotation"), "Did you mean"),
    "no such data": (("view", "beads"), "The data set 'beads' is unknown"),
    "no predictions": (("view", "VAL", "--predictions", "gone.json"), "Cannot read gone.json"),
    "training and predictions": (
        ("view", "VAL", "--predictions", "x", "TRAIN"),
        "--predictions shows annotations as they are",
    ),
    "augmented predictions": (
        ("view", "VAL", "--predictions", "x", "--augmented", "3"),
        "exclude each other",
    ),
    "seed of nothing": (("view", "VAL", "--seed", "3"), "--seed is of training samples"),
    "score of nothing": (("view", "VAL", "--min-score", "0.3"), "--min-score is of --predictions"),
    "evaluated on nothing": (("view", "--predictions", "x"), "give them as JSON:IMAGES"),
    "no metrics": (("plot", "--input", "gone.json", "--output", "x.png"), "Cannot read gone"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_end_in_one_sentence_and_code_2(cli, rendered, tmp_path, name):
    arguments, words = MISTAKES[name]
    given = []
    for argument in arguments:
        if argument == "TRAIN":
            given += ["DATASETS.TRAIN", repr((dataset_entry(rendered, "train"),))]
        else:
            val = dataset_entry(rendered, "val")
            given.append(argument.replace("VAL", val).replace("OUT", str(tmp_path)))
    done = cli(*given)
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ") and words in last and not list(tmp_path.iterdir())
