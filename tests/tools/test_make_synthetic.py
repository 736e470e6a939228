import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from microplastics.data.synthetic import render_dataset

TOOL = Path(__file__).parents[2] / "tools" / "make_synthetic.py"


def command(output, *options):
    return [sys.executable, str(TOOL), "--output", str(output), "--size", "64", *options]


def run(output, *options):
    return subprocess.run(command(output, *options), capture_output=True, text=True, timeout=120)


def content(root):
    return {p.relative_to(root): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def living(session):
    """States of the processes of a session that are not yet dead."""
    ps = ["ps", "-s", str(session), "-o", "stat="]
    states = subprocess.run(ps, capture_output=True, text=True).stdout.split()
    return [state for state in states if not state.startswith("Z")]


def test_renders_and_says_where(tmp_path):
    options = ["--train", "2", "--val", "1", "--test", "1", "--um-per-px", "2.5", "--seed", "3"]
    result = run(tmp_path / "data", *options)
    assert result.returncode == 0, result.stderr
    train = tmp_path / "data/annotations/instances_train.json"
    assert f"train: 2 images, annotations in {train}" in result.stdout
    coco = json.loads(train.read_text())
    assert coco["info"]["seed"] == 3 and coco["images"][0]["um_per_px"] == 2.5
    for split, count in (("train", 2), ("val", 1), ("test", 1)):
        assert len(list((tmp_path / "data" / split).glob("*.jpg"))) == count


def test_errors_are_one_sentence(tmp_path):
    result = run(tmp_path, "--train", "-4")
    assert result.returncode == 2 and not any(tmp_path.iterdir())
    assert "Traceback" not in result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last == "error: --train is -4: give the number of images, 0 or more."


def test_a_killed_run_is_finished_by_the_next(tmp_path):
    options = ["--train", "60", "--val", "0", "--test", "0", "--workers", "2"]
    process = subprocess.Popen(
        command(tmp_path / "a", *options), stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("a/train/*.jpg")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    while living(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not living(process.pid)
    counts = {"train": 60, "val": 0, "test": 0}
    for folder in ("a", "b"):
        render_dataset(tmp_path / folder, counts, size=64, workers=1)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert len(list(tmp_path.glob("a/train/*.jpg"))) == 60
