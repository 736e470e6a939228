"""Set-up before a model is built: device, precision, schedule, output folder, logging."""

import argparse
import functools
import logging
import math
import os
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from microplastics.config import load_config
from microplastics.data.loader import check_datasets
from microplastics.engine.checkpoint import refuse_second_training
from microplastics.model_zoo import config_file
from microplastics.utils.errors import UserError, check_option
from microplastics.utils.io import check_output_dir
from microplastics.utils.system import available_device

logger = logging.getLogger(__name__)


def setup(args: argparse.Namespace) -> CfgNode:
    """Load the config of a command line, frozen; prepare the logger and the output folder.

    Args:
        args: from Detectron2's ``default_argument_parser``.

    Raises:
        UserError: config, device or output folder are wrong.
    """
    cfg = load_config(args.config_file, args.opts)
    cfg.MODEL.DEVICE = available_device(cfg.MODEL.DEVICE)
    cfg.freeze()
    if comm.is_main_process():
        check_output_dir(cfg.OUTPUT_DIR)
    if not (args.eval_only or args.resume):
        # Before config.yaml and log.txt of that training are touched.
        refuse_second_training(cfg.OUTPUT_DIR)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="microplastics")
    # Detectron2 logs the text of the file, which must be a path here.
    path = args.config_file
    if path and not os.path.isfile(path):
        path = config_file(path)
    default_setup(cfg, argparse.Namespace(**{**vars(args), "config_file": path}))
    return cfg


def finalize_config(cfg: CfgNode, splits: Sequence[str] = ("TRAIN", "TEST")) -> CfgNode:
    """Return a final, frozen copy of a config for a data set split or both.

    Its device is there, batch size, rates and periods are for the number of processes, and data
    sets are registered and checked against the number of classes. Only the schedule is open, which
    depends on the images that the training loader finds: :func:`set_schedule`.

    Raises:
        UserError: the device or a data set cannot be used.
    """
    cfg = check_datasets(cfg, tuple(splits))
    cfg.defrost()
    cfg.MODEL.DEVICE = available_device(cfg.MODEL.DEVICE)
    cfg.freeze()
    if "TRAIN" in splits:
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
    return cfg


def amp_dtype(cfg: CfgNode) -> torch.dtype | None:
    """Return the type that autocast computes in, or ``None`` for full precision.

    The CPU needs bf16 instructions, without which bf16 is emulated and slow.

    Raises:
        UserError: config_invalid (an unknown type), device_unavailable (float16 on the CPU).
    """
    settings, name = cfg.SOLVER.AMP, cfg.SOLVER.AMP.DTYPE
    known, expected = ("auto", "bfloat16", "float16"), "auto, bfloat16 or float16"
    check_option(name in known, "SOLVER.AMP.DTYPE", name, expected, "config_invalid")
    if not settings.ENABLED:
        return None
    if torch.device(cfg.MODEL.DEVICE).type == "cpu":
        if name == "float16" and settings.ON_CPU:
            raise UserError(
                "SOLVER.AMP.DTYPE float16 needs a GPU; use bfloat16 on the CPU.",
                code="device_unavailable",
            )
        return torch.bfloat16 if settings.ON_CPU and cpu_has_bf16() else None
    if name == "auto":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return getattr(torch, name)


@functools.cache
def cpu_has_bf16() -> bool:
    """Return whether the processor computes in bf16 (AVX512-BF16, AMX or Arm's BF16)."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def set_schedule(cfg: CfgNode, num_images: float) -> None:
    """Turn the keys that count epochs into Detectron2's, which count iterations, and log them.

    Args:
        cfg: scaled to the number of processes already; MAX_ITER, WARMUP_ITERS, EVAL_PERIOD and
            CHECKPOINT_PERIOD are set.
        num_images: training images that one epoch shows, without the filtered empty ones.
    """
    solver, epoch = cfg.SOLVER, num_images / cfg.SOLVER.IMS_PER_BATCH
    if solver.MAX_EPOCHS <= 0 and solver.MAX_ITER < 1:
        raise UserError(
            "SOLVER.MAX_EPOCHS and SOLVER.MAX_ITER are 0; expected one above 0.",
            code="config_invalid",
        )
    cfg.defrost()
    for node, key, epochs in (
        (solver, "MAX_ITER", solver.MAX_EPOCHS),
        (cfg.TEST, "EVAL_PERIOD", cfg.TEST.EVAL_PERIOD_EPOCHS),
        (solver, "CHECKPOINT_PERIOD", solver.CHECKPOINT_PERIOD_EPOCHS),
    ):
        if epochs > 0:
            node[key] = max(1, math.ceil(epochs * epoch))
    if solver.STEPS_EPOCHS:
        solver.STEPS = tuple(math.ceil(epochs * epoch) for epochs in solver.STEPS_EPOCHS)
    longest = int(solver.WARMUP_MAX_SHARE * solver.MAX_ITER)
    solver.WARMUP_ITERS = min(solver.WARMUP_ITERS, longest)
    cfg.freeze()
    logger.info(
        "Schedule: %.0f training images, %d a batch: %g iterations an epoch; %d iterations "
        "(%.1f epochs), LR %g after %d of warm-up, evaluation every %d, checkpoint every %d",
        *(num_images, solver.IMS_PER_BATCH, epoch, solver.MAX_ITER, solver.MAX_ITER / epoch),
        *(solver.BASE_LR, solver.WARMUP_ITERS, cfg.TEST.EVAL_PERIOD, solver.CHECKPOINT_PERIOD),
    )
