"""Kill commands, fill the disk under them, kill one of two processes, predict 10,000 images.

python tools/benchmark.py faults kill
"""

import atexit
import contextlib
import dataclasses
import hashlib
import importlib
import json
import logging
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import torch
from tabulate import tabulate

from microplastics.cli import main
from microplastics.config import load_config
from microplastics.data.formats.convert import export_dataset
from microplastics.engine.checkpoint import TrainingCheckpointer, read_weights
from microplastics.engine.trainer import Trainer
from microplastics.synthetic import render_dataset
from microplastics.utils.errors import UserError

ROOT = Path(__file__).resolve().parent.parent

COMMANDS = ("train", "convert", "predict", "split", "render")
# What the commands import takes longer than the tiny work that they do: it is imported once.
_MODULES = ("cli.data", "cli.train", "cli.predict", "engine.trainer", "runs.run", "report.run")
_MODULES += ("data.formats.convert", "data.splits.split", "synthetic")
_TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
_CLASSES = ("Fiber", "Fragment", "Film")
# A random model is sure of nothing.
_PREDICT = ("--confidence-threshold", "0.02", "--um-per-px", "2")
_PATIENCE = 600  # s, for anything to end
# s, for the workers of a killed process, which notice it when they have started.
_ORPHANS = 120
_SIZES = {"train": 8, "val": 4, "test": 300}
_MANY_SIDE = 64  # px
# Little work an image: it is their number that counts here.
_MANY = ("--scale-bar", "ignore", "--tile", "0", "INPUT.MIN_SIZE_TEST", "32")
_MANY += ("TEST.DETECTIONS_PER_IMAGE", "4")
_MANY += ("MODEL.RPN.PRE_NMS_TOPK_TEST", "50", "MODEL.RPN.POST_NMS_TOPK_TEST", "20")
# What tells of the times of a run, and the files that change while it lasts.
_TIMES = ("began", "ended", "seconds", "command")
_CHANGING = ("log.txt", "events.", "metrics.json", "conversion.json", "synthetic.json")
_CHANGING += ("last_checkpoint", "inference/")
# Of metrics.json; losses are smoothed from where the process began.
_EXACT = ("iteration", "validation/", "bbox/", "segm/", "counting/", "semantic/")


@dataclasses.dataclass(frozen=True)
class Job:
    """A command to disturb.

    Attributes:
        arguments: its command line.
        again: what is added to go on with it.
    """

    arguments: tuple[str, ...]
    again: tuple[str, ...] = ()


@dataclasses.dataclass
class Result:
    """What was done, and what was wrong after it.

    Attributes:
        rows: a line each.
        wrong: what must not be.
    """

    rows: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    wrong: list[str] = dataclasses.field(default_factory=list)

    @property
    def disagreements(self) -> list["Wrong"]:
        """What must not be, as the benchmarks list it."""
        return [Wrong(*each.split(": ", 1)) for each in self.wrong]

    def as_dict(self) -> dict[str, Any]:
        """The figures as JSON takes them."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        return "\n".join([tabulate(self.rows, "keys", tablefmt="pipe"), *self.wrong])


@dataclasses.dataclass(frozen=True)
class Wrong:
    """One thing that must not be."""

    name: str
    detail: str


def benchmark(
    folder: Path,
    fault: str,
    commands: Sequence[str] = COMMANDS,
    number: int = 10,
    images: int = 10_000,
    formats: str = "csv",
    seed: int = 0,
) -> Result:
    """Do one kind of harm.

    Args:
        folder: takes data and outputs.
        fault: ``kill``, ``full``, ``rank`` or ``many``.
        commands: those that are harmed; ``rank`` takes train and predict of them.
        number: of times that each is.
        images: that ``many`` predicts.
        formats: that it writes.
        seed: of the moments.
    """
    laboratory, result = Laboratory(folder), Result()
    if fault == "many":
        predict_many(laboratory, images, formats, result)
        return result
    harm = {"kill": kill, "full": fill, "rank": kill_rank}[fault]
    for name in commands:
        if fault == "rank" and name not in ("train", "predict"):
            continue
        rng, whole = random.Random(f"{seed} {fault} {name}"), laboratory.undisturbed(name)
        for _ in range(number):
            harm(laboratory, name, whole, rng, result)
            print(result.rows[-1], *result.wrong, sep="\n", flush=True)
    return result


@dataclasses.dataclass(frozen=True)
class Whole:
    """An undisturbed run: state of its files, seconds from the first to the last, bytes."""

    files: dict[str, str]
    seconds: float
    size: int


class Laboratory:
    """Data, a model, and the commands on them; each writes ``output``."""

    def __init__(self, folder: Path):
        """Make them in a folder."""
        self.folder, self.output = folder, folder / "output"
        self._errors = folder / "errors.txt"
        self.weights = folder / "model.pth"
        os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
        for module in _MODULES:
            importlib.import_module(f"microplastics.{module}")
        tests = _support()
        # This process computes nothing itself, so that no thread of it is missing after a fork.
        _forked(_prepare, folder).join()
        data, export = folder / "data", folder / "export"
        json_file = data / "annotations" / "instances_test.json"
        datasets = [repr((tests.dataset_entry(data, split),)) for split in ("train", "val")]
        training = [*tests.TINY, "DATASETS.TRAIN", datasets[0], "DATASETS.TEST", datasets[1]]
        training += ["SOLVER.MAX_ITER", "24", "SOLVER.CHECKPOINT_PERIOD", "4"]
        training += ["TEST.EVAL_PERIOD", "8", "OUTPUT_DIR", str(self.output)]
        output = ("--output", str(self.output))
        render = ("--train", "60", "--val", "10", "--test", "10", "--size", "96", "--workers", "1")
        split = ("--input", str(json_file), "--images", str(data / "test"), *output, "--copy")
        self.jobs = {
            "train": Job(("train", "--config-file", "quick", *training), ("--resume",)),
            "convert": Job(("convert", "--input", str(export), *output, "--copy")),
            "predict": Job(self.predict(data / "test" / "test_0000[0-3]?.jpg"), ("--resume",)),
            "split": Job(("split", *split)),
            "render": Job(("render", "dataset", *output, *render)),
        }

    def predict(self, images: Path) -> tuple[str, ...]:
        """Give the command line that predicts a folder or glob."""
        paths = ("--input", str(images), "--weights", str(self.weights))
        return ("predict", *paths, "--output", str(self.output), *_PREDICT)

    def start(self, words: Sequence[str]) -> BaseProcess:
        """Start a command."""
        return _forked(_command, words, self._errors)

    def run(self, words: Sequence[str]) -> int:
        """Run a command to its end; return its exit code."""
        return end_of(self.start(words))

    @property
    def errors(self) -> str:
        """What the last command wrote to stderr."""
        return self._errors.read_text(encoding="utf-8", errors="replace")

    def await_files(self, process: BaseProcess) -> None:
        """Wait until a command has written a file, or has ended."""
        wait_until(lambda: not process.is_alive() or any(self.output.glob("*")))

    def begin_anew(self) -> None:
        """Delete the output."""
        for path in self.output.iterdir() if self.output.is_dir() else ():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if self.output.is_dir() and not os.path.ismount(self.output):
            self.output.rmdir()

    def undisturbed(self, name: str) -> Whole:
        """Run a command to its end."""
        self.begin_anew()
        process = self.start(self.jobs[name].arguments)
        self.await_files(process)
        start = time.time()
        if end_of(process):
            raise UserError(f"{name} failed undisturbed: {self.errors[-2000:]}")
        found = [path.stat() for path in self.output.rglob("*")]
        end, blocks = max(each.st_mtime for each in found), sum(each.st_blocks for each in found)
        return Whole(states(self.output), end - start, blocks * 512)

    def go_on(self, name: str, whole: Whole, where: str, result: Result) -> float:
        """Run a command again after a fault, and compare its files with those of a whole run."""
        job, start = self.jobs[name], time.monotonic()
        code = self.run((*job.arguments, *job.again))
        if code:
            result.wrong.append(f"{where}: run again it ended with {code}: {self.errors[-300:]}")
        found = states(self.output)
        for path in sorted(found.keys() | whole.files.keys()):
            if found.get(path) != whole.files.get(path):
                what = "is missing" if path not in found else "differs"
                what = what if path in whole.files else "is left over"
                result.wrong.append(f"{where}: {path} {what}")
        return time.monotonic() - start


def _support() -> ModuleType:
    """Give the tiny model of the tests; imported here, because other benchmarks need no pytest."""
    if str(ROOT / "tests") not in sys.path:
        sys.path.insert(0, str(ROOT / "tests"))
    return importlib.import_module("support")


def _forked(target: Callable[..., None], *args: Any) -> BaseProcess:
    """Start a process with all that this one has imported; there is no fork on Windows."""
    process = multiprocessing.get_context("fork").Process(target=target, args=args)
    process.start()
    return process


def _prepare(folder: Path) -> None:
    """Render images, export them, and write a model of random weights."""
    torch.set_num_threads(1)
    data = folder / "data"
    render_dataset(data, _SIZES, size=96, um_per_px=2.0, seed=3, workers=1)
    export_dataset(data / "annotations" / "instances_test.json", folder / "export", "labelme")
    cfg = load_config("quick", [*_support().TINY, "OUTPUT_DIR", str(folder), "SEED", "1"])
    torch.manual_seed(1)
    TrainingCheckpointer(Trainer.build_model(cfg), cfg, _CLASSES).save("model")


def _command(words: Sequence[str], errors: Path) -> None:
    """Do what ``python -m microplastics`` does, in a session of its own."""
    atexit._clear()  # what this process has to do at its end
    os.setsid()
    os.chdir(ROOT)
    for number, path in ((1, Path(os.devnull)), (2, errors)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
    for name in ("detectron2", "fvcore", "microplastics"):
        logging.getLogger(name).handlers.clear()
    torch.set_num_threads(1)
    sys.argv = ["microplastics", *words]
    try:
        main()
    finally:
        atexit._run_exitfuncs()


def end_of(process: BaseProcess) -> int:
    """Wait for a process; return its exit code, or minus the signal that killed it."""
    process.join(_PATIENCE)
    if process.exitcode is None:
        process.kill()
        raise UserError(f"A command did not end in {_PATIENCE} s.")
    return process.exitcode


def kill(
    laboratory: Laboratory, name: str, whole: Whole, rng: random.Random, result: Result
) -> None:
    """Kill a command at a moment between its first and its last file, and run it again."""
    while True:
        laboratory.begin_anew()
        process = laboratory.start(laboratory.jobs[name].arguments)
        laboratory.await_files(process)
        delay = rng.uniform(0, whole.seconds)
        process.join(delay)
        process.kill()
        # It may have ended before: then it was not killed.
        if end_of(process) == -signal.SIGKILL:
            break
    orphans = end_of_group(process.pid)
    where = f"{name} killed after {delay:.2f} s"
    if orphans > _ORPHANS:
        result.wrong.append(f"{where}: its processes lived for another {orphans:.0f} s")
    files = sum(path.is_file() for path in laboratory.output.rglob("*"))
    seconds = laboratory.go_on(name, whole, where, result)
    result.rows.append(
        {"command": name, "killed after, s": delay, "files then": files, "again, s": seconds}
    )


def fill(
    laboratory: Laboratory, name: str, whole: Whole, rng: random.Random, result: Result
) -> None:
    """Run a command on a disk that is too small for it, then give it space."""
    laboratory.begin_anew()
    share = rng.uniform(0.05, 0.95)
    with small_disk(laboratory.output, int(share * whole.size)) as grow:
        code = laboratory.run(laboratory.jobs[name].arguments)
        errors, where = laboratory.errors, f"{name} on {100 * share:.0f} % of its disk"
        sentences = [line for line in errors.splitlines() if line.startswith("error: ")]
        if code not in (2, 3) or "Traceback" in errors or len(sentences) != 1:
            result.wrong.append(f"{where}: it ended with {code}: {errors[-1500:]}")
        for path, state in states(laboratory.output).items():
            damaged = state != whole.files.get(path, state)
            if path.endswith(".pth"):
                read_weights(str(laboratory.output / path))
            elif damaged and not path.startswith(_CHANGING):
                result.wrong.append(f"{where}: {path} is damaged or left over")
        grow()
        seconds = laboratory.go_on(name, whole, where, result)
        laboratory.begin_anew()
    row = {"command": name, "disk, MB": share * whole.size / 1e6, "exit code": code}
    result.rows.append({**row, "again, s": seconds, "sentence": (sentences or [""])[0]})


def kill_rank(
    laboratory: Laboratory, name: str, whole: Whole, rng: random.Random, result: Result
) -> None:
    """Kill one of two processes under torchrun, and run both again."""
    laboratory.begin_anew()
    job, logs = laboratory.jobs[name], laboratory.folder / "ranks"
    shutil.rmtree(logs, ignore_errors=True)
    launcher = [sys.executable, *_TORCHRUN, "--redirects", "3", "--log-dir", str(logs)]
    process = subprocess.Popen([*launcher, "-m", "microplastics", *job.arguments], cwd=ROOT)
    victim, sign = rng.randrange(2), {"train": "model_*.pth", "predict": "parts/*.parquet"}[name]
    wait_until(lambda: process.poll() is not None or any(laboratory.output.glob(sign)))
    time.sleep(rng.uniform(0, 2))
    os.kill(rank_process(process.pid, victim), signal.SIGKILL)
    start = time.monotonic()
    code = process.wait(_PATIENCE)
    seconds = time.monotonic() - start
    said = next(logs.glob(f"*/*/{1 - victim}/stderr.log")).read_text(encoding="utf-8")
    sentences = [line for line in said.splitlines() if line.startswith("error: ")]
    where = f"{name}, process {victim} killed"
    if not code or seconds > 60 or "Traceback" in said or len(sentences) != 1:
        result.wrong.append(f"{where}: after {seconds:.0f} s {code}: {said[-1500:]}")
    words = ("-m", "microplastics", *job.arguments, *job.again)
    again = subprocess.call([*launcher, *words], cwd=ROOT)
    missing = whole.files.keys() - states(laboratory.output).keys()
    # Two processes train with twice the batch: other checkpoints on the way.
    missing = {path for path in missing if not Path(path).name.startswith(("model_0", "events."))}
    if again or missing:
        result.wrong.append(f"{where}: run again it ended with {again} without {sorted(missing)}")
    row = {"command": name, "killed": victim, "the other ended after, s": seconds}
    result.rows.append({**row, "sentence": (sentences or [""])[0]})


def predict_many(laboratory: Laboratory, images: int, formats: str, result: Result) -> None:
    """Predict many small images; note memory and open files over time, then resume."""
    photographs, rng = laboratory.folder / "many", np.random.default_rng(0)
    photographs.mkdir()
    for number in range(images):
        image = rng.integers(0, 60, (_MANY_SIDE, _MANY_SIDE, 3), dtype=np.uint8)
        x, y, r = rng.integers(10, 54, 3).tolist()
        cv2.circle(image, (x, y), 3 + r // 8, (230, 220, 200), -1)
        cv2.imwrite(str(photographs / f"{number:05d}.jpg"), image)
    laboratory.begin_anew()
    words = (*laboratory.predict(photographs), "--formats", formats, *_MANY)
    start = time.monotonic()
    process = laboratory.start(words)
    parts, due = laboratory.output / "parts", 0
    while process.is_alive():
        time.sleep(0.2)
        done = sum(1 for _ in parts.glob("*.parquet"))
        with contextlib.suppress(OSError):  # it has just ended
            row = {"images": done, "s": time.monotonic() - start, **usage(process.pid)}
            if done >= due:
                result.rows.append(row)
                print(row, flush=True)
                due += max(images // 20, 1)
    result.rows.append({**row, "s": time.monotonic() - start})
    report = laboratory.output / "report.html"
    result.rows.append({"images": f"report.html, MB: {report.stat().st_size / 1e6:.1f}"})
    start = time.monotonic()
    again = laboratory.run((words[0], "--resume", *words[1:]))
    result.rows.append({"images": "again with --resume", "s": time.monotonic() - start})
    if process.exitcode or again:
        result.wrong.append(f"many: they ended with {process.exitcode} and {again}")


def usage(process: int) -> dict[str, float]:
    """Give memory in MB, open files and threads of a process."""
    fields = Path(f"/proc/{process}/status").read_text().splitlines()
    values = dict(line.split(":", 1) for line in fields)
    return {
        "memory, MB": int(values["VmRSS"].split()[0]) / 1024,
        "open files": len(os.listdir(f"/proc/{process}/fd")),
        "threads": int(values["Threads"]),
    }


def states(output: Path) -> dict[str, str]:
    """Give a digest of every file below a folder, without what tells of times."""
    return {
        str(path.relative_to(output)): _state(path)
        for path in sorted(output.rglob("*"))
        if path.is_file() and not path.name.startswith("events.")
    }


def _state(path: Path) -> str:
    if path.name.startswith("log.txt") or path.parent.name == "parts":
        return "there"
    content = path.read_bytes()
    if path.name == "report.html":
        return "whole" if content.rstrip().endswith(b"</html>") else "cut off"
    if path.name == "run.json":
        content = json.dumps(_timeless(json.loads(content))).encode()
    if path.name == "metrics.json" and path.parent.name != "inference":  # one object a line
        with contextlib.suppress(ValueError):  # on a full disk the last one is cut off
            lines = [json.loads(line) for line in content.splitlines()]
            kept = [{k: v for k, v in line.items() if k.startswith(_EXACT)} for line in lines]
            content = json.dumps(kept).encode()
    return hashlib.sha256(content).hexdigest()


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(each) for key, each in value.items() if key not in _TIMES}
    return [_timeless(each) for each in value] if isinstance(value, list) else value


def wait_until(happened: Callable[[], bool]) -> None:
    """Look every few milliseconds."""
    deadline = time.monotonic() + _PATIENCE
    while not happened():
        if time.monotonic() > deadline:
            raise UserError(f"Nothing happened in {_PATIENCE} s.")
        time.sleep(0.005)


def end_of_group(group: int) -> float:
    """Wait until all processes of a group have ended, or end them; return the seconds."""
    start = time.monotonic()
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() - start < _ORPHANS + 1:
            os.killpg(group, 0)
            time.sleep(0.05)
        os.killpg(group, signal.SIGKILL)
    return time.monotonic() - start


def rank_process(launcher: int, rank: int) -> int:
    """Find the process of a rank below torchrun."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    mark = f"\0RANK={rank}\0".encode()
    environments = {each: Path(f"/proc/{each}/environ").read_bytes() for each in children}
    return next(int(each) for each, content in environments.items() if mark in content)


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Callable[[], None]]:
    """Mount a disk in memory of so many bytes on a folder; gives a function that enlarges it.

    Raises:
        UserError: this user may not mount.
    """
    folder.mkdir(exist_ok=True)

    def mount(options: str) -> None:
        words = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode:
            raise UserError(
                f"mount failed ({done.stderr.strip()}); run it as root, or below unshare -rm."
            )

    mount(f"size={max(size, 4096)}")
    try:
        yield lambda: mount("remount,size=4g")
    finally:
        subprocess.run(["umount", str(folder)], check=True)
        folder.rmdir()
