"""Two CPU processes under torchrun."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from support import ROOT

from benchmarks.faults import rank_process

pytestmark = pytest.mark.slow
QUICK = ("--config-file", f"{ROOT}/configs/microplastics_quick.yaml")
TORCHRUN = ("-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone")
THREADS = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(scope="module")
def trained(tiny_opts, tmp_path_factory):
    """A two-process run that stops early: its folder."""
    output = tmp_path_factory.mktemp("torchrun")
    early = ("SOLVER.EARLY_STOPPING.ENABLED", "True", "SOLVER.EARLY_STOPPING.PATIENCE", "1")
    # Nothing improves by a thousandfold: the second evaluation stops the run.
    never = ("SOLVER.EARLY_STOPPING.THRESHOLD", "1000.0", "TEST.EVAL_PERIOD", "2")
    options = [
        *QUICK,
        *tiny_opts,
        *early,
        *never,
        "OUTPUT_DIR",
        str(output),
        "SOLVER.MAX_ITER",
        "40",
    ]
    command = [sys.executable, *TORCHRUN, "-m", "microplastics", "train", *options]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **THREADS},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return output


def test_both_ranks_stop_early_together(trained):
    for log in ("log.txt", "log.txt.rank1"):
        text = (trained / log).read_text()
        # EVAL_PERIOD 2 was written for one process: 1 for two. The second evaluation stops.
        assert "Early stopping after iteration 1" in text, log
    assert (trained / "model_final.pth").exists()


def test_the_batch_and_the_rate_follow_the_number_of_processes(trained):
    text = (trained / "log.txt").read_text()
    assert "training images, 4 a batch" in text
    assert "20 iterations" in text and "LR 0.04" in text


def test_one_process_and_two_score_alike(trained, tiny_opts, cli_process):
    scores = {}
    for name, launcher in (("one", ()), ("two", TORCHRUN)):
        weights = ("MODEL.WEIGHTS", str(trained / "model_final.pth"))
        options = (*QUICK, "--eval-only", *tiny_opts, *weights, "OUTPUT_DIR", str(trained / name))
        done = cli_process("train", *options, launcher=launcher, env=THREADS)
        assert done.returncode == 0, done.stderr[-3000:]
        scores[name] = json.loads((trained / name / "inference" / "metrics.json").read_text())
    logged = torch.load(trained / "model_final.pth", weights_only=True)["trainer"]["hooks"]
    logged = logged["ValidationHook"]["metrics"]
    # Sizes are measured by --eval-only alone.
    same = {name: scores["one"][name] for name in logged}
    assert same == pytest.approx(logged, nan_ok=True)
    assert scores["one"] == pytest.approx(scores["two"], nan_ok=True)
    assert scores["one"]["validation/total_loss"] == scores["two"]["validation/total_loss"]


def test_two_processes_accumulate_and_average_like_one(tiny_opts, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(
        "import argparse, sys\n"
        "import test_optimizer  # registers MeanColour\n"
        "from microplastics.cli.train import train_or_evaluate\n"
        "from microplastics.engine import launch\n"
        "args = argparse.Namespace(config_file=sys.argv[1], opts=sys.argv[2:], eval_only=False,\n"
        "    resume=False, num_gpus=0, num_machines=1, machine_rank=0, dist_url='auto')\n"
        "launch(train_or_evaluate, args)\n"
    )
    keys = (
        *("MODEL.META_ARCHITECTURE", "MeanColour", "MODEL.MASK_ON", "False"),
        *("SOLVER.REFERENCE_WORLD_SIZE", "0", "SOLVER.IMS_PER_BATCH", "4"),
        # The ranks draw their flips independently.
        *("INPUT.RANDOM_FLIP", "none", "DATASETS.TEST", "()", "SOLVER.AMP.ENABLED", "False"),
        *("SOLVER.EMA.ENABLED", "True", "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "0.05"),
    )
    folders = [*sys.path, str(ROOT), f"{ROOT}/tests", f"{ROOT}/tests/engine"]
    env = {**os.environ, **THREADS, "PYTHONPATH": os.pathsep.join(folders)}
    finals = []
    for number, (launcher, parts) in enumerate((((), "1"), (TORCHRUN, "2"))):
        output = ("OUTPUT_DIR", str(tmp_path / f"{number}"), "SOLVER.ACCUMULATE", parts)
        command = [sys.executable, *launcher, str(script), QUICK[1], *tiny_opts, *keys, *output]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr[-3000:]
        finals.append(torch.load(tmp_path / f"{number}" / "model_final.pth", weights_only=True))
    one, two = ({**f["model"], **f["trainer"]["hooks"]["WeightAverage"]["weights"]} for f in finals)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-5, atol=1e-7)
    averages = [final["model"]["layer.weight"] for final in finals]
    torch.testing.assert_close(*averages, rtol=1e-5, atol=1e-7)
    assert not torch.equal(averages[0], one["layer.weight"])


@pytest.mark.parametrize("command", ["train", "predict"])
def test_a_killed_process_ends_both(trained, tiny_opts, rendered, tmp_path, command):
    output, logs = tmp_path / "output", tmp_path / "logs"
    weights = ("--weights", trained / "model_final.pth", "--input", rendered / "train")
    words, sign, last = {
        "train": (
            (*QUICK, *tiny_opts, "OUTPUT_DIR", output, "SOLVER.MAX_ITER", 40),
            "model_*.pth",
            "model_final.pth",
        ),
        "predict": ((*weights, "--output", output), "parts/*.parquet", "summary.csv"),
    }[command]
    launcher = [sys.executable, *TORCHRUN, "--redirects", "3", "--log-dir", logs]
    start = [*map(str, (*launcher, "-m", "microplastics", command, *words))]
    env = {**os.environ, **THREADS}
    process = subprocess.Popen(start, cwd=ROOT, env=env, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while not list(output.glob(sign)):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(rank_process(process.pid, 1), signal.SIGKILL)
    assert process.wait(60)
    said = next(logs.glob("*/*/0/stderr.log")).read_text()
    assert "Traceback" not in said and "error: Another process of this command has ended" in said
    done = subprocess.run([*start, "--resume"], cwd=ROOT, env=env, timeout=300)
    assert done.returncode == 0 and (output / last).exists()


def test_processes_end_without_an_abort(tmp_path):
    script = tmp_path / "talk.py"
    script.write_text(
        "import argparse\n"
        "from detectron2.utils import comm\n"
        "from microplastics.engine import launch\n"
        "launch(lambda args: [comm.all_gather({}) for _ in range(30)], argparse.Namespace())\n"
        "assert comm._get_global_gloo_group.cache_info().currsize == 0\n"
        "assert comm._LOCAL_PROCESS_GROUP is None\n"
    )
    command = [sys.executable, *TORCHRUN, str(script)]
    env = {**os.environ, **THREADS, "PYTHONPATH": os.pathsep.join([*sys.path, str(ROOT)])}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
