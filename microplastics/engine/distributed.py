"""Launching of one or several processes, and what they exchange."""

import argparse
import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from detectron2.engine import default_argument_parser as argument_parser  # noqa: F401
from detectron2.engine import launch as _detectron2_launch
from detectron2.utils import comm
from torch import nn
from torch.multiprocessing import ProcessExitedException
from torch.nn.parallel import DistributedDataParallel

from microplastics.utils.errors import UserError, report_error

_AGAIN = "run it again, with --resume to go on where it was"


def launch(main: Callable[[argparse.Namespace], Any], args: argparse.Namespace) -> Any:
    """Run ``main(args)`` in the number of processes asked for; return its result if in this one.

    Under torchrun that is as one of its processes, with NCCL on CUDA and gloo otherwise; with
    several GPUs or machines by Detectron2's launcher; else in this process.

    Args:
        main: a function at module level.
        args: from Detectron2's ``default_argument_parser``.

    Raises:
        UserError: option_invalid (ranks, machines), device_unavailable, interrupted (a process was
            killed).
    """
    if all(key in os.environ for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")):
        return _run_under_torchrun(main, args)
    _check_num_gpus(args)
    if args.num_gpus * args.num_machines <= 1:
        return main(args)
    try:
        _detectron2_launch(
            _report_errors,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(main, args),
        )
    except ProcessExitedException as error:
        if error.signal_name is not None:
            raise UserError(
                f"Process {error.error_index} of this command was killed by {error.signal_name}, "
                f"which ends the others; {_AGAIN}.",
                code="interrupted",
            ) from None
        # The process has printed the error already.
        raise SystemExit(error.exit_code) from None
    return None


def distribute(model: nn.Module, device: str) -> nn.Module:
    """Wrap a model in DDP, on the CPU too, where Detectron2's own wrapper fails."""
    ids = None if torch.device(device).type == "cpu" else [comm.get_local_rank()]
    return DistributedDataParallel(model, device_ids=ids, broadcast_buffers=False)


def share_buffers(model: nn.Module) -> None:
    """Give all ranks the running statistics of rank 0, which are the ones that are saved."""
    if comm.get_world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside DDP, or the model itself."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def _check_num_gpus(args: argparse.Namespace) -> None:
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    number, machines = args.num_gpus, args.num_machines
    if number < 0:
        raise UserError(f"--num-gpus is {number}; expected 0 or more.", code="option_invalid")
    if number > max(available, 1) or (number * machines > 1 and not available):
        raise UserError(
            f"--num-gpus {number} on {machines} machine(s) needs GPUs, but this machine has "
            f"{available}; use --num-gpus 0 for one CPU process, or torchrun --nproc_per_node=N -m "
            "microplastics … for several.",
            code="device_unavailable",
        )
    if machines > 1 and (not 0 <= args.machine_rank < machines or args.dist_url == "auto"):
        raise UserError(
            f"--machine-rank is {args.machine_rank} and --dist-url {args.dist_url}; expected a "
            f"rank from 0 to {machines - 1} and tcp://HOST:PORT of the first machine.",
            code="option_invalid",
        )


def _run_under_torchrun(main: Callable[[argparse.Namespace], Any], args: Any) -> Any:
    local_rank = int(os.environ["LOCAL_RANK"])
    cuda = torch.cuda.is_available()
    if cuda:
        if local_rank >= torch.cuda.device_count():
            raise UserError(
                f"torchrun starts more processes than the {torch.cuda.device_count()} GPU(s) of "
                "this machine; lower --nproc_per_node, or set CUDA_VISIBLE_DEVICES= to train on "
                "the CPU.",
                code="device_unavailable",
            )
        torch.cuda.set_device(local_rank)
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        with _ending_with_others():
            world_size = dist.get_world_size()
            comm.create_local_process_group(int(os.environ.get("LOCAL_WORLD_SIZE", world_size)))
            comm.synchronize()
            return main(args)
    finally:
        # A gloo group that Detectron2 still keeps when Python ends aborts after a good training.
        comm._get_global_gloo_group.cache_clear()
        comm._LOCAL_PROCESS_GROUP = None
        dist.destroy_process_group()


class _Terminated(BaseException):
    """SIGTERM came."""


@contextlib.contextmanager
def _ending_with_others() -> Iterator[None]:
    """Turn the end of another process, of which this one learns in two ways, into a sentence.

    A message to the other one fails, or the launcher sends SIGTERM to those that are left.

    Raises:
        UserError: interrupted.
    """

    def terminate(_number: int, _frame: Any) -> None:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    except (_Terminated, RuntimeError) as error:
        # What gloo raises has no type of its own.
        if not (isinstance(error, (_Terminated, dist.DistError)) or "gloo" in str(error)):
            raise
        raise UserError(
            f"Another process of this command has ended, or the command was stopped; {_AGAIN}.",
            code="interrupted",
        ) from error
    finally:
        signal.signal(signal.SIGTERM, before)


def _report_errors(main: Callable[[argparse.Namespace], Any], args: argparse.Namespace) -> None:
    """Run in a spawned process; a user error is printed as one line, once."""
    try:
        with _ending_with_others():
            code = main(args)
    except UserError as error:
        report_error(str(error))
        raise SystemExit(2) from None
    if code:
        raise SystemExit(code)
