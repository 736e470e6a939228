"""microplastics gpu-check and benchmarks/gpu.py, from end to end at tiny size on the CPU."""

import json
import subprocess
from types import SimpleNamespace

import pytest
import torch
from support import ROOT, TINY, user_error

import microplastics
from benchmarks import gpu
from benchmarks.agreement import Check
from microplastics.engine.defaults import cpu_has_bf16

SHORT = {"images": 2, "size": 96, "iterations": 1, "repeat": 1}
QUICK = f"{ROOT}/configs/microplastics_quick.yaml"
STEPS = [
    "training, fp32, 2 images",
    *["training, bfloat16, 2 images"] * cpu_has_bf16(),
    "inference, DefaultPredictor",
    "inference, ours, fp32, 1 at a time",
    "inference, ours, fp32, 8 at a time",
    "inference, ours, bf16, 1 at a time",
    "inference, ours, bf16, 8 at a time",
]


@pytest.fixture
def without_tests(monkeypatch):
    monkeypatch.setattr(gpu, "_run_tests", lambda *_: Check("tests on the GPU", True, "none"))


@pytest.mark.slow
def test_every_step_runs_to_its_end(tmp_path, without_tests):
    report = gpu.benchmark([QUICK], TINY, folder=tmp_path, device="cpu", **SHORT)
    assert [(row.config, row.what) for row in report.rows] == [("quick", step) for step in STEPS]
    assert all(row.seconds[0] > 0 and row.memory is None for row in report.rows)
    assert all((row.data is None) == row.what.startswith("inference") for row in report.rows)
    assert len(report.checks) == 3 and not report.disagreements and not report.notes
    assert str(report).count("| quick") == len(STEPS) and "| peak memory" in str(report)
    json.dumps(report.as_dict())


def test_what_is_over_time_is_named(tmp_path, without_tests):
    report = gpu.benchmark([QUICK], TINY, folder=tmp_path, device="cpu", minutes=0.0, **SHORT)
    assert not report.rows and len(report.notes) == len(STEPS)
    assert report.notes[0] == f"quick, {STEPS[0]} was left out: 0 minutes were over"


@pytest.mark.slow
def test_what_needs_more_memory_is_named(tmp_path, without_tests, monkeypatch):
    def train(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(gpu, "_train", train)
    report = gpu.benchmark([QUICK], TINY, folder=tmp_path, device="cpu", **SHORT)
    assert [row.what for row in report.rows] == STEPS[-5:] and not report.disagreements
    assert report.notes[0] == f"quick, {STEPS[0]} needs more memory than there is"


def test_failing_tests_are_named(monkeypatch):
    output = "F\n=== short test summary info ===\nFAILED tests/a.py::test_b - x\n1 failed in 2 s\n"
    done = SimpleNamespace(returncode=1, stdout=output, stderr="")
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: done)
    check = gpu._run_tests(["tests"], 60)
    assert not check.agrees
    assert check.detail == "1 failed in 2 s; FAILED tests/a.py::test_b - x"


def test_no_gpu_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with user_error("device_unavailable", "--device cpu"):
        gpu.benchmark([QUICK], folder=tmp_path)


def test_the_command_hands_its_options_on(cli, monkeypatch, tmp_path):
    called = []

    def run(words):
        called.extend(words)
        return SimpleNamespace(returncode=1)

    monkeypatch.setattr(subprocess, "run", run)
    options = ("--config-file", "r50", "mine.yaml", "--minutes", "4")
    assert cli("gpu-check", *options, "SOLVER.IMS_PER_BATCH", "8").returncode == 1
    assert called[1:3] == [f"{ROOT}/tools/benchmark.py", "gpu"]
    assert called[3:6] == ["--config-file", "r50", "mine.yaml"]
    assert called[called.index("--minutes") + 1] == "4.0" and "--size" not in called
    assert called[-3:] == ["--", "SOLVER.IMS_PER_BATCH", "8"]
    monkeypatch.setattr(microplastics, "__file__", str(tmp_path / "microplastics" / "__init__.py"))
    done = cli("gpu-check")
    assert done.returncode == 2 and "checkout of the repository (make gpu)" in done.stderr


@pytest.mark.slow
def test_the_whole_command(cli, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    short = [str(word) for name, value in SHORT.items() for word in (f"--{name}", value)]
    options = ("--device", "cpu", *short, "--json", tmp_path / "figures.json")
    one = ("--tests", "tests/engine/test_trainer.py")
    done = cli("gpu-check", "--config-file", QUICK, "demo", *options, *one, *TINY)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "figures.json").read_text())
    assert [row["config"] for row in report["rows"]] == ["quick"] * len(STEPS) + ["demo"] * len(
        STEPS
    )
    assert "skipped" in report["checks"][0]["detail"]
