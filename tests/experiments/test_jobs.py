"""Trainings in child processes: records, failures, GPUs, signals, submitit."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from support import ROOT, user_error

from microplastics.experiments import jobs as module
from microplastics.experiments.jobs import (
    RECORD,
    Job,
    Machines,
    check_jobs,
    finished,
    run_jobs,
    same_weights,
)
from microplastics.utils.io import alone


@pytest.fixture
def job(tiny_opts, tmp_path):
    """Makes a job of the tiny config: ``job("a", "SOLVER.MAX_ITER", "2")``."""

    def make(name, *opts):
        short = ("SOLVER.MAX_ITER", "2", "TEST.EVAL_PERIOD", "2")
        return Job(name, "quick", (*tiny_opts, *short, *opts), tmp_path / name)

    return make


def finish(job, **metrics):
    settings = module._settings(job.load_config())
    job.folder.mkdir()
    record = {"settings": settings, "metrics": metrics, "seconds": 60}
    (job.folder / RECORD).write_text(json.dumps(record))


def test_a_failure_is_a_result_and_stops_nothing(job):
    watch = ("SOLVER.EARLY_STOPPING.ENABLED", "True", "SOLVER.EARLY_STOPPING.METRIC", "nonsense")
    done, bad = job("done"), job("bad", *watch)
    finish(done, AP=50.0)
    results = {result.job.name: result for result in run_jobs([bad, done])}
    assert results["done"].metrics == {"AP": 50.0} and results["done"].seconds == 60
    assert results["bad"].metrics is None
    assert results["bad"].error.startswith("SOLVER.EARLY_STOPPING.METRIC is nonsense; expected")
    assert results["bad"].error in (bad.folder / "output.txt").read_text()
    # Nothing was trained in the folder: it may be used with settings that are put right.
    check_jobs([job("bad")])


def test_a_finished_folder_keeps_its_settings(job, tmp_path):
    first = job("a")
    finish(first, AP=1.0)
    check_jobs([first, first._replace(opts=(*first.opts, "SOLVER.BASE_LR", "0.02"))])  # as it was
    with user_error("run_mismatch", first.folder, "SOLVER.BASE_LR 0.02"):
        check_jobs([first._replace(opts=(*first.opts, "SOLVER.BASE_LR", "0.1"))])
    other = job("b")
    other.folder.mkdir()
    (other.folder / "model_0000001.pth").touch()
    with user_error("run_mismatch", other.folder, "not of this study"):
        check_jobs([other])
    with user_error("config_invalid", "DATASETS.TEST is empty"):
        check_jobs([job("c", "DATASETS.TEST", "()")])
    with user_error("config_invalid", "MODEL.META_ARCHITECTURE is nonsense"):
        check_jobs([job("c", "MODEL.META_ARCHITECTURE", "nonsense")])
    with user_error("file_missing", "MODEL.WEIGHTS of c is nowhere.pth"):
        check_jobs([job("c", "MODEL.WEIGHTS", "nowhere.pth")])


def test_two_processes_do_not_share_a_folder(job):
    first = job("a")
    with alone(first.folder, ""):
        with user_error("run_mismatch", "Another process trains in"):
            module.train(first)


def test_weights_are_bound_to_the_file_as_it_is(job, tmp_path):
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"abc")
    cfg = job("a", "MODEL.WEIGHTS", str(weights)).load_config()
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert same_weights(cfg) == ["MODEL.WEIGHTS_SHA256", digest]
    assert same_weights(job("a").load_config()) == []


def test_gpus_are_numbers_among_the_visible_ones(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert module._visible([1, 0]) == ["1", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert module._visible([1]) == ["5"]
    for wrong in ([2], [0, 0], [-1]):
        with user_error("device_unavailable", "2 GPU(s)"):
            module._visible(wrong)


def test_submitting_needs_submitit(job, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with user_error("dependency_missing", "microplastics[submitit]"):
        list(run_jobs([job("a")], Machines(cluster="slurm")))


def test_what_the_cluster_refuses_is_a_sentence(job, tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    for name in ("srun", "sbatch"):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text("#!/bin/sh\necho invalid partition >&2\nexit 1\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    machines = Machines(cluster="slurm", options={"slurm_partition": "nope"})
    with user_error("option_invalid", "--submit slurm", "invalid partition"):
        list(run_jobs([job("a")], machines, tmp_path))


@pytest.mark.slow
def test_jobs_run_through_submitit(job, tmp_path):
    pytest.importorskip("submitit")
    watch = ("SOLVER.EARLY_STOPPING.ENABLED", "True", "SOLVER.EARLY_STOPPING.METRIC", "nonsense")
    both = [job("good"), job("bad", *watch)]
    machines = Machines(cluster="local", options={"timeout_min": 5})
    results = {r.job.name: r for r in run_jobs(both, machines, tmp_path)}
    assert "segm/AP" in results["good"].metrics and results["bad"].error
    with user_error("option_invalid", "nonsense"):
        list(run_jobs([job("c")], Machines(cluster="local", options={"nonsense": 1}), tmp_path))


@pytest.mark.slow
def test_two_lanes_with_a_gpu_each(job, monkeypatch):
    monkeypatch.setattr(module, "_visible", lambda gpus: [str(gpu) for gpu in gpus])
    pair = [job("a"), job("b")]
    results = list(run_jobs(pair, Machines(gpus=[4, 7])))
    assert all(result.metrics for result in results)
    for each, gpu in zip(pair, "47", strict=True):
        assert f"CUDA_VISIBLE_DEVICES={gpu}\n" in (each.folder / "output.txt").read_text()


def start_sweep(tmp_path, tiny_opts, output):
    file = tmp_path / "sweep.yaml"
    file.write_text("config: quick\nseeds: [1, 2]\nruns:\n  - name: plain\n")
    command = [sys.executable, "-m", "microplastics", "sweep", str(file), "--output", str(output)]
    keys = [*tiny_opts, "SOLVER.MAX_ITER", "8", "SOLVER.CHECKPOINT_PERIOD", "2"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}  # bits follow threads
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([*command, *keys], cwd=ROOT, env=env, text=True, **pipes)


def wait_for(path, process):
    deadline = time.monotonic() + 240
    while not path.exists() and process.poll() is None:
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.01)


@pytest.mark.slow
def test_a_study_that_is_killed_or_stopped_continues_in_the_middle(tmp_path, tiny_opts):
    whole = start_sweep(tmp_path, tiny_opts, tmp_path / "whole")
    _, errors = whole.communicate(timeout=300)
    assert whole.returncode == 0, errors
    output = tmp_path / "stopped"
    first, second = (output / f"plain_seed{seed}" for seed in (1, 2))

    process = start_sweep(tmp_path, tiny_opts, output)
    wait_for(first / "model_0000001.pth", process)
    process.kill()
    process.communicate()
    assert not finished_folder(first)

    process = start_sweep(tmp_path, tiny_opts, output)
    wait_for(second / "model_0000001.pth", process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 143, errors
    assert finished_folder(first) and not finished_folder(second)
    assert "SIGTERM: stopped after iteration" in (second / "log.txt").read_text()
    weights = first / "model_final.pth"
    written = weights.stat().st_mtime_ns

    process = start_sweep(tmp_path, tiny_opts, output)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert weights.stat().st_mtime_ns == written
    for folder in (first, second):
        ours = torch.load(folder / "model_final.pth", weights_only=True)["model"]
        theirs = torch.load(
            tmp_path / "whole" / folder.name / "model_final.pth", weights_only=True
        )["model"]
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def finished_folder(folder: Path):
    return finished(Job("", "", (), folder)) is not None
