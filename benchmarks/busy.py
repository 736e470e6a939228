"""An iteration of our trainer on an idle machine and beside a process that computes."""

import contextlib
import logging
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode

from benchmarks.setting import describe, prepare, require_positive, with_keys
from benchmarks.timing import Measurement, Report, alternate
from benchmarks.train import SteppedOurs, all_hooks
from microplastics import SPIN_COUNT
from microplastics.data.loader import check_datasets
from microplastics.engine.trainer import Trainer

IDLE_TARGET, BUSY_TARGET = 1.03, 2.5
BEFORE, AFTER = "OpenMP's defaults", "ours"
IDLE, BUSY = "idle", "beside a busy process"
# libgomp's spin count if nothing is set, and whether threads are fitted to the load.
_SETTINGS = {BEFORE: ("300000", False), AFTER: (SPIN_COUNT, True)}
# The load is measured over 2 s; an iteration that has begun is not interrupted.
_SECONDS_TO_SETTLE = 5.0


class _Child:
    """A training in a process of its own: OpenMP reads its settings when it is loaded."""

    def __init__(self, name: str, cfg: CfgNode):
        spin_count, adapt = _SETTINGS[name]
        cfg = with_keys(
            cfg, "SOLVER.ADAPT_THREADS", adapt, "OUTPUT_DIR", f"{cfg.OUTPUT_DIR}-{spin_count}"
        )
        context = multiprocessing.get_context("spawn")
        self._pipe, pipe = context.Pipe()
        self._process = context.Process(target=_train, args=(cfg, torch.get_num_threads(), pipe))
        with _environment(GOMP_SPINCOUNT=spin_count, OMP_NUM_THREADS=None, OMP_WAIT_POLICY=None):
            self._process.start()
        pipe.close()  # so that the end of the child is noticed

    def measure(self, iterations: int) -> dict[str, float]:
        """Seconds of an iteration, idle and busy, once the threads have been fitted."""
        seconds = {IDLE: self._settled(iterations)}
        with _busy_process():
            seconds[BUSY] = self._settled(iterations)
        return seconds

    def _settled(self, iterations: int) -> float:
        end = time.monotonic() + _SECONDS_TO_SETTLE
        while time.monotonic() < end:
            self._advance(1)
        return self._advance(iterations)

    def _advance(self, iterations: int) -> float:
        self._pipe.send(iterations)
        return self._pipe.recv()

    def stop(self) -> None:
        self._pipe.send(0)
        self._process.join()


def _train(cfg: CfgNode, threads: int, pipe: Any) -> None:
    logging.disable(logging.INFO)
    Path(cfg.OUTPUT_DIR).mkdir()
    torch.set_num_threads(threads)
    trainer = SteppedOurs(Trainer(check_datasets(cfg)))
    trainer.start()
    while iterations := pipe.recv():
        pipe.send(trainer.advance(iterations)["iteration"])
    trainer.stop()


@contextlib.contextmanager
def _environment(**variables: str | None) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update({name: value for name, value in variables.items() if value is not None})
    for name in (name for name, value in variables.items() if value is None):
        os.environ.pop(name, None)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def _busy_process() -> Iterator[None]:
    # A session of its own, as a program in another terminal has: Linux shares cores by session.
    code = f"import os\nwhile os.getppid() == {os.getpid()}: pass"  # ends with this process
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def benchmark(
    config_file: str,
    opts: Sequence[str] = (),
    *,
    folder: Path,
    dataset: str | None = None,
    images: int = 60,
    size: int = 256,
    iterations: int = 8,
    repeat: int = 5,
    seed: int = 1,
) -> Report:
    """Measure iterations with OpenMP's defaults and with ours, idle and beside a busy process.

    Args:
        config_file, opts, folder, dataset, images, size, seed: see :func:`prepare`.
        iterations: length of a turn, after some seconds in which the threads are fitted.
        repeat: turns of each.
    """
    require_positive(iterations=iterations, repeat=repeat)
    cfg = prepare(
        folder,
        config_file,
        opts,
        split="train",
        dataset=dataset,
        images=images,
        size=size,
        weights="",
        seed=seed,
    )
    settings = describe(cfg, config_file)
    settings["Turns"] = f"{repeat} of {iterations} iterations, {cfg.SOLVER.IMS_PER_BATCH} a batch"
    children = {name: _Child(name, all_hooks(cfg)) for name in (BEFORE, AFTER)}
    turns = {name: lambda c=child: c.measure(iterations) for name, child in children.items()}
    seconds = alternate(turns, repeat)
    for child in children.values():
        child.stop()
    ours = {state: seconds[state][AFTER] for state in (IDLE, BUSY)}
    measurements = [
        Measurement(f"an iteration, {IDLE}", seconds[IDLE], BEFORE, {AFTER: IDLE_TARGET}),
        Measurement(f"an iteration, {BUSY}", seconds[BUSY], BEFORE),
        Measurement("an iteration of ours", ours, IDLE, {BUSY: BUSY_TARGET}),
    ]
    return Report(settings, measurements)
