"""Trainings of a study: one after the other, spread over GPUs, or handed to a cluster.

A job that is finished is not repeated, a stopped one is continued, and one that fails does not
stop the others.
"""

import contextlib
import json
import logging
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
import traceback
from argparse import Namespace
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode

from microplastics.config import get_cfg, leaves, load_config
from microplastics.data.loader import check_datasets
from microplastics.engine.defaults import setup
from microplastics.engine.trainer import Trainer
from microplastics.modeling.interface import check_architecture
from microplastics.utils.errors import UserError
from microplastics.utils.io import OWN_FILE, alone, read_json, sha256_of, write_json
from microplastics.utils.system import end_with_parent, process_context

logger = logging.getLogger(__name__)

RECORD = "job.json"
OUTPUT = "output.txt"
# A cluster's job ends then unless timeout_min is given; submitit's own limit is five minutes.
_CLUSTER_MINUTES = 24 * 60


class Job(NamedTuple):
    """A training: a config, ``KEY VALUE`` pairs on it, and the folder that is its OUTPUT_DIR."""

    name: str
    config_file: str
    opts: tuple[str, ...]
    folder: Path

    def load_config(self) -> CfgNode:
        """Return the config; see :func:`microplastics.config.load_config` for the errors."""
        return load_config(self.config_file, self.all_opts())

    def all_opts(self) -> list[str]:
        """Return the pairs with that of OUTPUT_DIR."""
        return [*self.opts, "OUTPUT_DIR", str(self.folder)]


class Result(NamedTuple):
    """What came of a job: flat metrics at the end of training, or the reason why not.

    ``seconds`` are those of training, over all its starts but those that were killed.
    """

    job: Job
    metrics: dict[str, float] | None = None
    error: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Machines:
    """Where jobs run: on GPUs of this machine by number, in one child process each, or a cluster.

    Without either, one after the other on the device of their config.
    """

    gpus: Sequence[int] = ()
    cluster: str = ""  # slurm, or submitit's own local
    options: Mapping[str, Any] = field(default_factory=dict)  # of submitit, such as slurm_partition


def same_weights(cfg: CfgNode) -> list[str]:
    """Return the option that binds all jobs of a study to the file of MODEL.WEIGHTS as it is now.

    A file that is changed while the study runs, or before it is continued, is then refused.
    """
    if cfg.MODEL.WEIGHTS_SHA256 or not os.path.isfile(cfg.MODEL.WEIGHTS):
        return []
    return ["MODEL.WEIGHTS_SHA256", sha256_of(cfg.MODEL.WEIGHTS)]


def check_jobs(jobs: Iterable[Job]) -> None:
    """Check configs, data sets and folders of jobs before any of them runs.

    Raises:
        UserError: a config, a data set or weights cannot be used, nothing would be evaluated, or
            ``run_mismatch``, a folder holds a job of other settings.
    """
    checked = set()
    for job in jobs:
        cfg = job.load_config()
        check_architecture(cfg)
        _check_folder(job, cfg)
        weights = cfg.MODEL.WEIGHTS
        if weights and "://" not in weights and not os.path.isfile(weights):
            raise UserError(
                f"MODEL.WEIGHTS of {job.name} is {weights}, which does not exist; expected a file.",
                code="file_missing",
            )
        data = repr((cfg.DATASETS, cfg.MODEL.ROI_HEADS.NUM_CLASSES))
        if data not in checked:
            check_datasets(cfg)
            checked.add(data)


def run_jobs(
    jobs: Sequence[Job], machines: Machines | None = None, folder: str | os.PathLike = "."
) -> Iterator[Result]:
    """Check jobs, run those that are not finished, and yield the result of each as it comes.

    Ctrl-C and SIGTERM let running jobs save and end; the same call continues them.

    Args:
        jobs: with a folder of its own each.
        machines: where they run.
        folder: for the files of a cluster's jobs.

    Raises:
        UserError: as of :func:`check_jobs`, or the machines are not there.
    """
    machines = machines or Machines()
    check_jobs(jobs)
    results = [finished(job) for job in jobs]
    waiting = [job for job, result in zip(jobs, results, strict=True) if result is None]
    yield from filter(None, results)
    if machines.cluster:
        yield from _submit(waiting, machines, Path(folder, "submitit"))
    else:
        yield from _run_here(waiting, _visible(machines.gpus))


def finished(job: Job) -> Result | None:
    """Return the result of a job that was trained to its end, else None."""
    record = _read(job)
    if not isinstance(record.get("metrics"), dict):
        return None
    return Result(job, record["metrics"], seconds=float(record.get("seconds", 0)))


def train(job: Job) -> None:
    """Train a job in this process from where it stopped, and record its metrics.

    Raises:
        UserError: as of the trainer, or another process trains in the folder.
        SystemExit: a signal stopped it.
    """
    with alone(job.folder, f"Another process trains in {job.folder}; wait for it, or stop it."):
        if finished(job):
            return
        cfg = job.load_config()
        _check_folder(job, cfg)
        record = {"settings": _settings(cfg), "seconds": _read(job).get("seconds", 0)}
        write_json(job.folder / RECORD, record, indent=1)
        start = time.monotonic()
        try:
            record["metrics"] = _train(job)
        except UserError as error:
            record["error"] = str(error)
            raise
        except Exception as error:
            record["error"] = f"{type(error).__name__}: {error}"
            raise
        finally:
            record["seconds"] += round(time.monotonic() - start, 1)
            write_json(job.folder / RECORD, record, indent=1)


def training_config(job: Job) -> CfgNode:
    """Set up this process for a job, and return its config; a stopped training is continued."""
    args = Namespace(config_file=job.config_file, opts=job.all_opts(), eval_only=False, resume=True)
    return setup(args)


def print_to(path: str | os.PathLike) -> None:
    """Append what this process and its libraries print to a file."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    with open(path, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def _train(job: Job) -> dict[str, float]:
    trainer = Trainer(training_config(job))
    trainer.resume_or_load(resume=True)
    metrics = dict(trainer.train())
    if trainer.signals.exit_code:
        raise SystemExit(trainer.signals.exit_code)
    return metrics


# Records


def _read(job: Job) -> dict[str, Any]:
    path = job.folder / RECORD
    return read_json(path, meant=OWN_FILE) if path.is_file() else {}


def _settings(cfg: CfgNode) -> dict[str, Any]:
    """Return the values that differ from the defaults, as JSON gives them back, without OUTPUT_DIR.

    Keys that a later version adds with their defaults make no difference.
    """
    defaults = dict(leaves(get_cfg()))
    changed = {key: value for key, value in leaves(cfg) if defaults.get(key) != value}
    changed.pop("OUTPUT_DIR", None)
    return json.loads(json.dumps(changed))


def _check_folder(job: Job, cfg: CfgNode) -> None:
    record = _read(job)
    earlier, now = record.get("settings"), _settings(cfg)
    begun = "metrics" in record or next(job.folder.glob("model_*.pth"), None) is not None
    if not begun or earlier == now:
        return
    if not isinstance(earlier, dict):
        raise UserError(
            f"{job.folder} holds a training that is not of this study; choose another --output.",
            code="run_mismatch",
        )
    keys = [key for key in {**earlier, **now} if earlier.get(key) != now.get(key)]
    values = ", ".join(f"{key} {earlier.get(key, 'unset')}" for key in keys[:3])
    raise UserError(
        f"{job.folder} holds a run of other settings ({values}); delete it or choose another "
        "--output.",
        code="run_mismatch",
    )


def _result(job: Job, end: str) -> Result:
    """Return the result of a job that ended, ``end`` saying how."""
    result = finished(job)
    if result is not None:
        return result
    record = _read(job)
    reason = record.get("error") or f"it ended with {end} (see {job.folder / OUTPUT})"
    return Result(job, error=reason, seconds=record.get("seconds", 0.0))


# This machine


def _visible(gpus: Sequence[int]) -> list[str]:
    """Return what CUDA_VISIBLE_DEVICES is for each GPU, by its number among the visible ones."""
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for gpu in gpus:
        if not 0 <= gpu < available or list(gpus).count(gpu) > 1:
            raise UserError(
                f"--gpus is {' '.join(map(str, gpus))}; expected each number once, from 0 on, "
                f"of the {available} GPU(s) of this machine.",
                code="device_unavailable",
            )
    given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = given.split(",") if given else list(map(str, range(available)))
    return [names[gpu] for gpu in gpus]


def _run_here(jobs: Sequence[Job], gpus: Sequence[str]) -> Iterator[Result]:
    """Run each job in a child process, one at a time on each GPU."""
    context = process_context(__name__)
    waiting, free = deque(jobs), deque(gpus or [None])
    running: dict[int, tuple[Any, Job, str | None]] = {}
    with _sigterm_raises():
        try:
            while waiting or running:
                while waiting and free:
                    job, gpu = waiting.popleft(), free.popleft()
                    process = context.Process(target=_child, args=(job, gpu))
                    process.start()
                    logger.info("%s: training, printed to %s", job.name, job.folder / OUTPUT)
                    running[process.sentinel] = process, job, gpu
                for sentinel in multiprocessing.connection.wait(running):
                    process, job, gpu = running.pop(sentinel)
                    process.join()
                    free.append(gpu)
                    yield _result(job, _end(process.exitcode))
        finally:
            _stop([process for process, _, _ in running.values()])


def _child(job: Job, gpu: str | None) -> None:
    """Train a job in a process that was started for it."""
    end_with_parent()
    if hasattr(os, "setpgrp"):
        os.setpgrp()  # Ctrl-C goes to the parent alone, which ends the others by SIGTERM
    # A job that is told to end before its trainer listens ends as well.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    job.folder.mkdir(parents=True, exist_ok=True)
    print_to(job.folder / OUTPUT)
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # read when CUDA starts, which nothing did yet
        print(f"CUDA_VISIBLE_DEVICES={gpu}", flush=True)
    try:
        train(job)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Exception:
        traceback.print_exc()
        sys.exit(1)


def _end(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _stop(processes: Sequence[Any]) -> None:
    for process in processes:
        process.terminate()
    try:
        if processes:
            logger.warning("Stopping: %d running trainings save first …", len(processes))
        for process in processes:
            process.join()
    finally:  # a second Ctrl-C
        for process in processes:
            process.kill()


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Turn SIGTERM into SystemExit in this block, so that children are told, too."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, _frame: Any) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


# Clusters


class _Submitted:
    """What a job of submitit runs; one that its cluster preempts is queued again and continues."""

    def __call__(self, job: Job) -> None:
        train(job)

    def checkpoint(self, job: Job) -> Any:
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, job)


def _submit(jobs: Sequence[Job], machines: Machines, folder: Path) -> Iterator[Result]:
    """Submit jobs and wait for them; leaving the loop cancels those that are not done."""
    if not jobs:
        return
    submitted = _handed_over(jobs, machines, folder)
    logger.info("Submitted %d trainings to %s; logs in %s", len(jobs), machines.cluster, folder)
    open_jobs = dict(zip(submitted, jobs, strict=True))
    with _sigterm_raises():
        try:
            while open_jobs:
                for handle in [handle for handle in open_jobs if handle.done()]:
                    yield _result(open_jobs.pop(handle), f"state {handle.state}")
                time.sleep(1.0 if open_jobs else 0.0)
        finally:
            for handle in open_jobs:
                handle.cancel()


def _handed_over(jobs: Sequence[Job], machines: Machines, folder: Path) -> list[Any]:
    """Submit jobs, and return submitit's handle of each."""
    try:
        import submitit
    except ImportError as error:
        raise UserError(
            "--submit needs submitit; install it: pip install microplastics[submitit].",
            code="dependency_missing",
        ) from error
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=machines.cluster)
        defaults = {"name": "microplastics", "timeout_min": _CLUSTER_MINUTES}
        executor.update_parameters(**{**defaults, **machines.options})
        with executor.batch():
            return [executor.submit(_Submitted(), job) for job in jobs]
    except (RuntimeError, ValueError, NameError, TypeError) as error:  # sbatch's are RuntimeErrors
        message = " ".join(str(error).split())
        raise UserError(
            f"--submit {machines.cluster} does not work with its options ({message}); expected "
            "slurm or local, and parameters of submitit's AutoExecutor.",
            code="option_invalid",
        ) from error
