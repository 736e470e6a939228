"""What happens before a model is built: config, device, output folder, logging."""

import argparse
import logging
import os
import tempfile

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from microplastics.config import load_config
from microplastics.engine.checkpoint import refuse_second_training
from microplastics.model_zoo import config_file
from microplastics.utils.errors import UserError
from microplastics.utils.io import write_error

logger = logging.getLogger(__name__)


def resolve_device(cfg: CfgNode) -> CfgNode:
    """A copy of the config whose device is there: CUDA falls back to the CPU with a warning.

    Raises:
        UserError: the device is unknown.
    """
    try:
        device = torch.device(cfg.MODEL.DEVICE)
    except RuntimeError as error:
        raise UserError(
            f"MODEL.DEVICE {cfg.MODEL.DEVICE!r} is unknown; use cuda or cpu."
        ) from error
    if device.type != "cuda":
        return cfg
    if torch.cuda.is_available():
        if (device.index or 0) >= torch.cuda.device_count():
            raise UserError(
                f"MODEL.DEVICE is {device}, but this machine has {torch.cuda.device_count()} "
                "GPU(s); use cuda:0."
            )
        return cfg
    logger.warning("MODEL.DEVICE is %s, but there is no GPU here: using the CPU.", device)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    cfg.freeze()
    return cfg


def check_output_dir(output_dir: str) -> None:
    """Make OUTPUT_DIR and try it, before hours of training end in a file that cannot be written.

    Raises:
        UserError: it cannot be made or written to.
    """
    try:
        os.makedirs(output_dir, exist_ok=True)
        with tempfile.TemporaryFile(dir=output_dir) as probe:
            probe.write(b"\0" * 4096)
            probe.flush()
    except OSError as error:
        raise write_error(output_dir, error) from error


def setup(args: argparse.Namespace) -> CfgNode:
    """Config from the command line, frozen, with the logger and the output folder ready.

    Args:
        args: of Detectron2's ``default_argument_parser``.

    Raises:
        UserError: config, device or output folder are wrong.
    """
    cfg = load_config(args.config_file, args.opts)
    cfg.freeze()
    if comm.is_main_process():
        check_output_dir(cfg.OUTPUT_DIR)
    if not (args.eval_only or args.resume):
        # Before config.yaml and log.txt of that training are touched.
        refuse_second_training(cfg.OUTPUT_DIR)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="microplastics")
    cfg = resolve_device(cfg)
    # Detectron2 logs the file's text, and knows no names.
    path = args.config_file and config_file(args.config_file)
    default_setup(cfg, argparse.Namespace(**{**vars(args), "config_file": path}))
    return cfg
