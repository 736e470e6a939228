"""Set-up before a model is built: final config, device, output folder, logging."""

import argparse
import logging
import os
import tempfile
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
from microplastics.utils.errors import UserError
from microplastics.utils.io import write_error

logger = logging.getLogger(__name__)


def setup(args: argparse.Namespace) -> CfgNode:
    """Load the config of a command line, and prepare the logger and the output folder.

    Args:
        args: from Detectron2's ``default_argument_parser``.

    Returns:
        The config, frozen.

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
    """Make a config final: its device, number of processes and data sets.

    Only the schedule is open afterwards, which depends on the images that the training loader
    finds: :func:`microplastics.engine.solver.set_schedule`.

    Args:
        cfg: the config; it is not changed.
        splits: which of ``DATASETS.TRAIN`` and ``DATASETS.TEST`` are used.

    Returns:
        A frozen copy with a device that is there, batch size, rates and periods for the number of
        processes, and registered data sets that are checked against the number of classes.

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


def check_output_dir(output_dir: str) -> None:
    """Make OUTPUT_DIR and write to it once, before hours of training end in an error.

    Raises:
        UserError: not_writable.
    """
    try:
        os.makedirs(output_dir, exist_ok=True)
        with tempfile.TemporaryFile(dir=output_dir) as probe:
            probe.write(b"\0" * 4096)
            probe.flush()
    except OSError as error:
        raise write_error(output_dir, error) from error
