"""Wrapping a model for several processes."""

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel


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
