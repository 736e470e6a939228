"""microplastics curve and microplastics/experiments/learning_curve.py."""

import csv
import json
import os
from pathlib import Path

import pytest
from support import ROOT

from microplastics.experiments.learning_curve import Run, summarise
from microplastics.visualization.curves import plot_learning_curve

CONFIG = ("--config-file", ROOT / "configs" / "microplastics_quick.yaml")


@pytest.mark.slow
def test_every_start_sees_the_same_images_and_finished_runs_stay(cli, tiny_opts, tmp_path):
    arguments = (
        *CONFIG,
        *("--images", "2", "all", "--seeds", "1", "--start", "scratch=", "--start", "again="),
        *("--output", tmp_path, *tiny_opts),
        *("SOLVER.MAX_ITER", "2", "TEST.EVAL_PERIOD", "2"),
    )
    result = cli("curve", *arguments)
    assert result.returncode == 0, result.stderr
    rows = list(csv.DictReader(open(tmp_path / "runs.csv")))
    assert [(r["start"], r["images"]) for r in rows[:2]] == [("scratch", "2"), ("again", "2")]
    assert rows[0]["segm/AP"] == rows[1]["segm/AP"]  # same subset, same seed, same weights
    subset = json.loads((tmp_path / "subsets" / "train_2_seed1.json").read_text())
    assert len(subset["images"]) == 2 and subset["annotations"]
    assert "| start" in result.stdout and (tmp_path / "learning_curve.png").stat().st_size > 5000

    weights = Path(tmp_path, "scratch_2_seed1", "model_final.pth")
    before = os.stat(weights).st_mtime_ns
    assert cli("curve", *arguments).returncode == 0
    assert os.stat(weights).st_mtime_ns == before
    changed = cli("curve", *arguments, "SOLVER.BASE_LR", "0.001")
    assert changed.returncode == 2 and "holds a run of other settings" in changed.stderr


@pytest.mark.parametrize(
    "options, words",
    [
        (("--images", "99", "--start", "scratch="), "--images is 99; expected 1 to 8"),
        (("--images", "1", "--start", "a=missing.pth"), "missing.pth, which does not exist"),
        (("--images", "1", "--start", "../up="), "--start '../up' is not the name of a folder"),
        (("--start", "a=", "--submit-option", "a=["), "a value is not YAML"),
    ],
)
def test_what_cannot_be_run_is_a_sentence(cli, tiny_opts, tmp_path, options, words):
    result = cli("curve", *CONFIG, *options, "--output", tmp_path, *tiny_opts)
    assert result.returncode == 2
    assert words in result.stderr and "Traceback" not in result.stderr


def test_mean_and_spread_over_seeds(tmp_path):
    runs = [Run("scratch", 5, seed, {"segm/AP": ap}) for seed, ap in ((1, 10.0), (2, 14.0))]
    (row,) = summarise(runs)
    assert (row["segm/AP"], row["segm/AP spread"], row["seeds"]) == (12.0, 2.0, 2)
    plot_learning_curve([row], tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
