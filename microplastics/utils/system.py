"""Processors, devices, worker processes and seeds.

Each sample and iteration is seeded from ``(SEED, rank, position)``, so that training resumes bit
for bit without saving the state of a generator.
"""

import contextlib
import logging
import multiprocessing
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import BaseContext
from typing import Any, TypeVar

import cv2
import numpy as np
import torch

from microplastics.utils.errors import UserError

logger = logging.getLogger(__name__)

Task = TypeVar("Task")


def available_processors() -> int:
    """Return the number of processors that this process may use."""
    available = getattr(os, "sched_getaffinity", None)
    return len(available(0)) if available else os.cpu_count() or 1


def available_device(name: str) -> str:
    """Check MODEL.DEVICE; without a GPU CUDA becomes the CPU, with a warning.

    Raises:
        UserError: config_invalid (an unknown device), device_unavailable (not that many GPUs).
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(
            f"MODEL.DEVICE is {name!r}; expected cuda or cpu.", code="config_invalid"
        ) from error
    if device.type != "cuda":
        return name
    if not torch.cuda.is_available():
        logger.warning("MODEL.DEVICE is %s, but there is no GPU here: using the CPU.", device)
        return "cpu"
    if (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"MODEL.DEVICE is {device}, but this machine has {torch.cuda.device_count()} GPU(s); "
            "use cuda:0.",
            code="device_unavailable",
        )
    return name


def map_in_processes(
    function: Callable[[Task], Any], tasks: Sequence[Task], processes: int, chunk: int = 4
) -> Iterator[Any]:
    """Apply a function to all tasks in order, with one OpenCV thread per process.

    Args:
        function: a function of a module, which workers import.
        tasks: its arguments.
        processes: number of workers; 1 works in this process.
        chunk: tasks that a worker takes at a time.

    Raises:
        UserError: ``interrupted``, a worker was killed.
    """
    if processes <= 1:
        threads = cv2.getNumThreads()
        cv2.setNumThreads(1)
        try:
            yield from map(function, tasks)
        finally:
            cv2.setNumThreads(threads)
        return
    context = process_context(function.__module__)
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_start_worker)
    try:
        yield from pool.map(function, tasks, chunksize=chunk)
    except BrokenProcessPool as error:
        raise UserError(
            "A worker process was killed, probably because memory ran out; run the command again "
            "with fewer --workers.",
            code="interrupted",
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def process_context(module: str) -> BaseContext:
    """Return the way to start processes that run functions of ``module``.

    Not fork, after which OpenCV and torch threads can hang. A fork server imports the module once
    for all processes, spawning once for each.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([module])
    return context


def _start_worker() -> None:
    cv2.setNumThreads(1)
    # Ctrl-C reaches the whole group; only the parent reacts.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


def end_with_parent() -> None:
    """End this worker process when its parent is killed; it would block forever."""

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def seed_all(*key: int) -> None:
    """Seed ``random``, numpy and torch (CPU and CUDA), each independently, from ``key``."""
    for_random, for_numpy, for_torch = np.random.SeedSequence(key).generate_state(3).tolist()
    random.seed(for_random)
    np.random.seed(for_numpy)
    torch.manual_seed(for_torch)


@contextlib.contextmanager
def seeded(*key: int, device: str | torch.device = "cpu") -> Iterator[None]:
    """Run a block with seeds derived from ``key``; restore the generators, a CUDA device's too."""
    device = torch.device(device)
    cuda = [device] if device.type == "cuda" else []
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=cuda):
        seed_all(*key)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
