"""Everything that differs between Detectron2 main and 0.5, in one place."""

from contextlib import suppress

import detectron2
import torch.distributed as dist
from detectron2.engine import TrainerBase
from detectron2.utils import comm


def detectron2_build() -> str:
    """``"0.5"`` or ``"0.6"`` (main): what is noted in checkpoints and run files."""
    return detectron2.__version__


def create_local_process_group(processes_per_machine: int) -> None:
    """Tell ``detectron2.utils.comm`` which ranks share a machine (0.5 has no function for it).

    All ranks must call it together, after ``torch.distributed.init_process_group``.
    """
    if hasattr(comm, "create_local_process_group"):
        comm.create_local_process_group(processes_per_machine)
        return
    for first in range(0, dist.get_world_size(), processes_per_machine):
        ranks = list(range(first, first + processes_per_machine))
        group = dist.new_group(ranks)
        if dist.get_rank() in ranks:
            comm._LOCAL_PROCESS_GROUP = group


def destroy_process_groups() -> None:
    """End ``torch.distributed``, and with it the groups that ``detectron2.utils.comm`` keeps.

    A gloo group that is still referenced when Python ends takes its threads down with an abort,
    after a training that went well.
    """
    comm._get_global_gloo_group.cache_clear()
    comm._LOCAL_PROCESS_GROUP = None
    dist.destroy_process_group()


def drop_cell_anchors(keys: list[str]) -> None:
    """Remove the anchors' buffers, which 0.5 saves and main does not, from a list of names."""
    for key in [k for k in keys if "anchor_generator.cell_anchors" in k]:
        with suppress(ValueError):
            keys.remove(key)


def after_backward(trainer) -> None:
    """Call the hooks' ``after_backward``, which main has and 0.5 has not."""
    if hasattr(TrainerBase, "after_backward"):
        trainer.after_backward()
