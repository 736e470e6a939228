"""Randomness as a function of where the training stands, not of what ran before.

A stateful generator would have to be saved at the very moment of a kill to resume bit for bit.
Seeding each sample and each iteration from ``(SEED, rank, position)`` needs no saved state.
"""

import contextlib
import multiprocessing
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

import cv2
import numpy as np
import torch

from microplastics.utils.errors import UserError

Task = TypeVar("Task")


def available_processors() -> int:
    """Processors that this process may use."""
    available = getattr(os, "sched_getaffinity", None)
    return len(available(0)) if available else os.cpu_count() or 1


def map_in_processes(
    function: Callable[[Task], Any], tasks: Sequence[Task], processes: int, chunk: int = 4
) -> Iterator[Any]:
    """Apply a function to every task, in their order, with one OpenCV thread a process.

    Args:
        function: a function of a module, so that workers can import it.
        tasks: its arguments; they and the results travel between processes.
        processes: 1 works in this process.
        chunk: tasks that a worker takes at a time.

    Raises:
        UserError: a worker was killed.
    """
    if processes <= 1:
        with _one_opencv_thread():
            yield from map(function, tasks)
        return
    context = _context(function.__module__)
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_start_worker)
    try:
        yield from pool.map(function, tasks, chunksize=chunk)
    except BrokenProcessPool as error:
        raise UserError(
            "A worker process was killed, most likely for want of memory: run the command again "
            "with fewer --workers."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _one_opencv_thread() -> Iterator[None]:
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)


def _context(module: str) -> multiprocessing.context.BaseContext:
    """Never plain fork: a process in which OpenCV or torch has threads can hang after it.

    A fork server imports the module once for all workers, where spawning does so for each.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([module])
    return context


def _start_worker() -> None:
    cv2.setNumThreads(1)
    # Ctrl-C reaches the whole group; the parent alone answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # A worker of a killed parent would wait for its next task for ever.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def derive_seeds(*key: int) -> tuple[int, int, int]:
    """Three independent 32-bit seeds (``random``, numpy, torch) from non-negative integers."""
    state = np.random.SeedSequence(key).generate_state(3)
    return int(state[0]), int(state[1]), int(state[2])


def seed_all(*key: int) -> None:
    """Seed ``random``, numpy and torch (CPU and CUDA) from ``key``."""
    for_random, for_numpy, for_torch = derive_seeds(*key)
    random.seed(for_random)
    np.random.seed(for_numpy)
    torch.manual_seed(for_torch)


@contextlib.contextmanager
def seeded(*key: int, device: str | torch.device = "cpu") -> Iterator[None]:
    """Run a block under seeds derived from ``key`` and give the generators back as they were.

    Args:
        key: non-negative integers.
        device: a CUDA device whose generator is restored as well.
    """
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
