"""Starting one process or many: alone, by Detectron2's launcher, or by torchrun."""

import argparse
import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from detectron2.engine import default_argument_parser as _detectron2_argument_parser
from detectron2.engine import launch as _detectron2_launch
from detectron2.utils import comm
from torch import nn
from torch.multiprocessing import ProcessExitedException
from torch.nn.parallel import DistributedDataParallel

from microplastics.cli import report
from microplastics.utils.errors import UserError


def distribute(model: nn.Module, device: str) -> nn.Module:
    """DDP where there are several processes, on the CPU too (main's own wrapper fails there)."""
    if comm.get_world_size() == 1:
        return model
    ids = None if torch.device(device).type == "cpu" else [comm.get_local_rank()]
    return DistributedDataParallel(model, device_ids=ids, broadcast_buffers=False)


def share_buffers(model: nn.Module) -> None:
    """Give all ranks rank 0's running statistics, which are the ones that are saved."""
    if comm.get_world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside DDP, or the model itself."""
    return model.module if isinstance(model, DistributedDataParallel) else model


USER_ERROR = 2


def argument_parser(epilog: str | None = None) -> argparse.ArgumentParser:
    """Detectron2's own: ``--config-file --num-gpus --resume --eval-only … KEY VALUE``."""
    return _detectron2_argument_parser(epilog)


def under_torchrun() -> bool:
    """Whether torchrun (or another launcher of its kind) started this process."""
    return all(key in os.environ for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR"))


def launch(main: Callable[[argparse.Namespace], Any], args: argparse.Namespace) -> Any:
    """Run ``main(args)`` on as many processes as asked for.

    - under torchrun: as one of its processes, with NCCL where CUDA is and gloo elsewhere;
    - ``--num-gpus`` above 1, or several machines: by Detectron2's launcher;
    - else: in this process.

    Args:
        main: a function at module level.
        args: of Detectron2's ``default_argument_parser``.

    Returns:
        What ``main`` returned, where it ran in this process.

    Raises:
        UserError: more GPUs are asked for than there are.
    """
    if under_torchrun():
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
        # The process has already said in a sentence what is wrong.
        raise SystemExit(error.exit_code) from None
    return None


def _check_num_gpus(args: argparse.Namespace) -> None:
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if args.num_gpus < 0:
        raise UserError(f"--num-gpus {args.num_gpus} makes no sense; use 0 or more.")
    if not there and args.num_gpus * args.num_machines > 1:
        raise UserError(
            f"--num-gpus {args.num_gpus} on {args.num_machines} machine(s) needs CUDA, and there "
            "is no GPU here; use --num-gpus 0 for one CPU process, or torchrun "
            "--nproc_per_node=N -m microplastics … for several."
        )
    if args.num_gpus > max(there, 1):
        raise UserError(
            f"--num-gpus {args.num_gpus} is above the {there} GPU(s) of this machine; "
            f"use --num-gpus {there}."
        )
    if args.num_machines > 1 and not 0 <= args.machine_rank < args.num_machines:
        raise UserError(
            f"--machine-rank {args.machine_rank} must lie between 0 and --num-machines "
            f"{args.num_machines} minus 1."
        )
    if args.num_machines > 1 and args.dist_url == "auto":
        raise UserError(
            "--dist-url is missing; expected tcp://HOST:PORT of the first machine for several "
            "machines.",
            code="option_missing",
        )


def _run_under_torchrun(main: Callable[[argparse.Namespace], Any], args: Any) -> Any:
    local_rank = int(os.environ["LOCAL_RANK"])
    cuda = torch.cuda.is_available()
    if cuda:
        if local_rank >= torch.cuda.device_count():
            raise UserError(
                f"torchrun starts more processes than the {torch.cuda.device_count()} GPU(s) of "
                "this machine; lower --nproc_per_node, or hide them with CUDA_VISIBLE_DEVICES= to "
                "train on the CPU."
            )
        torch.cuda.set_device(local_rank)
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        world_size = dist.get_world_size()
        comm.create_local_process_group(int(os.environ.get("LOCAL_WORLD_SIZE", world_size)))
        comm.synchronize()
        return main(args)
    finally:
        _destroy_process_groups()


def _destroy_process_groups() -> None:
    """End ``torch.distributed`` and drop the groups that ``detectron2.utils.comm`` keeps.

    A gloo group that is still referenced when Python ends takes its threads down with an abort,
    after a training that went well.
    """
    comm._get_global_gloo_group.cache_clear()
    comm._LOCAL_PROCESS_GROUP = None
    dist.destroy_process_group()


def _report_errors(main: Callable[[argparse.Namespace], Any], args: argparse.Namespace) -> None:
    """Body of a spawned process: a person's mistake is one line, said once."""
    try:
        code = main(args)
    except UserError as error:
        report(str(error))
        raise SystemExit(USER_ERROR) from None
    if code:
        raise SystemExit(code)
