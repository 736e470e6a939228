"""Training that is killed or stopped, and resumed."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from support import ROOT

pytestmark = pytest.mark.slow
QUICK = f"{ROOT}/configs/microplastics_quick.yaml"


def arguments(tiny_opts, output):
    hooks = [
        *("SOLVER.MAX_ITER", "12", "TEST.EVAL_PERIOD", "2", "SOLVER.CHECKPOINT_PERIOD", "2"),
        *("SOLVER.PLATEAU.ENABLED", "True", "SOLVER.PLATEAU.PATIENCE", "0"),
        # An improvement must be large: the LR falls, so that its state matters.
        *("SOLVER.PLATEAU.THRESHOLD", "0.3", "SOLVER.PLATEAU.FACTOR", "0.5"),
        *("SOLVER.EARLY_STOPPING.ENABLED", "True", "SOLVER.EARLY_STOPPING.PATIENCE", "5"),
        *("SOLVER.EARLY_STOPPING.THRESHOLD", "0.3", "DATALOADER.NUM_WORKERS", "1"),
    ]
    return ["--config-file", QUICK, *tiny_opts, *hooks, "OUTPUT_DIR", str(output)]


def start(arguments):
    command = [sys.executable, "-m", "microplastics", "train", "--resume", *arguments]
    # With a number left open threads follow the load of the machine, and bits follow threads.
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=ROOT, env=env, text=True, **pipes)


def wait_for(path, process):
    deadline = time.monotonic() + 120
    while not path.exists() and process.poll() is None:
        assert time.monotonic() < deadline, f"{path.name} never came"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def uninterrupted(tiny_opts, tmp_path_factory):
    """The final checkpoint of a run that nobody disturbed."""
    output = tmp_path_factory.mktemp("uninterrupted")
    process = start(arguments(tiny_opts, output))
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return torch.load(output / "model_final.pth", weights_only=True)


def assert_same(first, second):
    """Bit for bit, momentum and counters included."""
    for name, value in first["model"].items():
        assert torch.equal(value, second["model"][name]), name
    ours, theirs = first["trainer"], second["trainer"]
    # As text: AP of an absent size is NaN, which equals nothing.
    assert repr(ours["hooks"]) == repr(theirs["hooks"])
    assert ours["lr_scale"] == theirs["lr_scale"] < 1
    assert ours["iteration"] == theirs["iteration"]
    for name, state in ours["optimizer"].items():
        assert torch.equal(state["momentum_buffer"], theirs["optimizer"][name]["momentum_buffer"])


def test_a_run_killed_again_and_again_ends_with_the_same_bits(tiny_opts, tmp_path, uninterrupted):
    for checkpoint, delay in (("model_0000003.pth", 0.0), ("model_0000007.pth", 0.35)):
        process = start(arguments(tiny_opts, tmp_path))
        wait_for(tmp_path / checkpoint, process)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
    # The last one was killed while it wrote: half a file under its name, and a leftover.
    newest = max(p for p in tmp_path.glob("model_00*.pth"))
    newest.write_bytes(newest.read_bytes()[:1000])
    (tmp_path / ".model_0000009.pth.abc.unfinished").write_bytes(b"half")
    process = start(arguments(tiny_opts, tmp_path))
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert f"{newest.name} is damaged" in (tmp_path / "log.txt").read_text()
    assert_same(uninterrupted, torch.load(tmp_path / "model_final.pth", weights_only=True))
    with open(tmp_path / "metrics.json") as file:
        logged = [json.loads(line)["iteration"] for line in file]
    assert logged == sorted(set(logged)) and logged[-1] == 12 - 1
    names = set(os.listdir(tmp_path))
    assert {"model_best.pth", "model_final.pth", "last_checkpoint", "metrics.json"} <= names
    assert len([n for n in names if n.startswith("model_00")]) == 3
    assert not [n for n in names if n.startswith(".")]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_first(tiny_opts, tmp_path, uninterrupted, number, code):
    process = start(arguments(tiny_opts, tmp_path))
    wait_for(tmp_path / "model_0000001.pth", process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == code, errors
    assert "--resume continues from there" in (tmp_path / "log.txt").read_text()
    assert not (tmp_path / "model_final.pth").exists()
    process = start(arguments(tiny_opts, tmp_path))
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert_same(uninterrupted, torch.load(tmp_path / "model_final.pth", weights_only=True))
