import json
import os
import re
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest

from microplastics.synthetic import render_dataset

COMMAND = (sys.executable, "-m", "microplastics", "render", "dataset")


def command(output, *options):
    return [*COMMAND, "--output", str(output), "--size", "64", *options]


def run(output, *options):
    return subprocess.run(command(output, *options), capture_output=True, text=True, timeout=120)


def content(root):
    return {p.relative_to(root): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def living(session):
    """States of the processes of a session that are not yet dead."""
    ps = ["ps", "-s", str(session), "-o", "stat="]
    states = subprocess.run(ps, capture_output=True, text=True).stdout.split()
    return [state for state in states if not state.startswith("Z")]


def test_renders_and_says_where(tmp_path, cli):
    options = ["--train", "2", "--val", "1", "--test", "1", "--um-per-px", "2.5", "--seed", "3"]
    result = cli("render", "dataset", "--output", tmp_path / "data", "--size", 64, *options)
    assert result.returncode == 0, result.stderr
    train = tmp_path / "data/annotations/instances_train.json"
    assert f"train: 2 images, annotations in {train}" in result.stdout
    coco = json.loads(train.read_text())
    assert coco["info"]["seed"] == 3 and coco["images"][0]["um_per_px"] == 2.5
    for split, count in (("train", 2), ("val", 1), ("test", 1)):
        assert len(list((tmp_path / "data" / split).glob("*.jpg"))) == count


def test_a_preset_on_backgrounds(tmp_path, cli):
    (tmp_path / "blanks").mkdir()
    photograph = np.random.default_rng(0).normal(180, 4, (90, 90, 3)).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "blanks/one.png"), photograph)
    options = ["--size", 64, "--train", 2, "--val", 0, "--test", 0, "--preset", "beads"]
    options += ["--backgrounds", tmp_path / "blanks"]
    result = cli("render", "dataset", "--output", tmp_path / "data", *options)
    assert result.returncode == 0, result.stderr
    coco = json.loads((tmp_path / "data/annotations/instances_train.json").read_text())
    assert [c["name"] for c in coco["categories"]] == ["Bead"]
    assert [i["background"] for i in coco["images"]] == ["one.png", "one.png"]


@pytest.mark.parametrize(
    "options, words",
    [
        (["--preset", "mud"], "--preset is mud; expected one of default, glass-filter"),
        (["--backgrounds", "empty"], "--backgrounds .*empty contains no image; put blank"),
        (["--backgrounds", "broken"], "broken/one.jpg is not an image"),
    ],
)
def test_presets_and_backgrounds_are_refused_in_words(tmp_path, cli, options, words):
    for name in ("empty", "broken"):
        (tmp_path / name).mkdir()
    (tmp_path / "broken/one.jpg").write_bytes(b"")
    if options[0] == "--backgrounds":
        options = [options[0], tmp_path / options[1]]
    result = cli("render", "dataset", "--output", tmp_path / "data", *options)
    assert result.returncode == 2 and not (tmp_path / "data").exists()
    assert re.fullmatch(f"error: .*{words}.*", result.stderr.strip().splitlines()[-1])
    assert "Traceback" not in result.stderr


def test_errors_are_one_sentence(tmp_path):
    result = run(tmp_path, "--train", "-4")
    assert result.returncode == 2 and not any(tmp_path.iterdir())
    assert "Traceback" not in result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last == "error: --train is -4; expected a number of images, 0 or more."


@pytest.mark.slow
def test_a_killed_run_leaves_no_process_and_is_rendered_again(tmp_path):
    options = ["--train", "60", "--val", "0", "--test", "0", "--workers", "2"]
    process = subprocess.Popen(
        command(tmp_path / "a", *options), stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("a/train/*.jpg"))) < 12 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    while living(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not living(process.pid)
    for folder in ("a", "b"):
        render_dataset(tmp_path / folder, {"train": 60, "val": 0, "test": 0}, size=64, workers=1)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert len(list(tmp_path.glob("a/train/*.jpg"))) == 60
