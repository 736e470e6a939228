"""Mixed precision where the device gains by it."""

import contextlib
import functools
import logging

import torch
from detectron2.config import CfgNode
from torch import nn

from microplastics.errors import UserError

logger = logging.getLogger(__name__)

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def amp_dtype(cfg: CfgNode) -> torch.dtype | None:
    """The type that autocast computes in, or ``None`` for full precision.

    ``SOLVER.AMP.ENABLED`` holds on CUDA; the CPU needs ``SOLVER.AMP.ON_CPU`` as well, and bf16
    instructions, without which bf16 is emulated and slow.

    Raises:
        UserError: ``SOLVER.AMP.DTYPE`` is unknown or cannot run here.
    """
    name = cfg.SOLVER.AMP.DTYPE
    if name not in ("auto", *_DTYPES):
        raise UserError(f"SOLVER.AMP.DTYPE is {name}; use auto, bfloat16 or float16.")
    if not cfg.SOLVER.AMP.ENABLED:
        return None
    if torch.device(cfg.MODEL.DEVICE).type == "cpu":
        if name == "float16" and cfg.SOLVER.AMP.ON_CPU:
            raise UserError("SOLVER.AMP.DTYPE float16 needs a GPU; use bfloat16 on the CPU.")
        return torch.bfloat16 if cfg.SOLVER.AMP.ON_CPU and cpu_has_bf16() else None
    if name == "auto":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return _DTYPES[name]


@functools.cache
def cpu_has_bf16() -> bool:
    """Whether the processor computes in bf16 (AVX512-BF16, AMX or Arm's BF16)."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def autocast(cfg: CfgNode) -> contextlib.AbstractContextManager:
    """Autocast for one forward pass, or a context that does nothing."""
    dtype = amp_dtype(cfg)
    if dtype is None:
        return contextlib.nullcontext()
    return torch.autocast(torch.device(cfg.MODEL.DEVICE).type, dtype=dtype)


def keep_boxes_fp32(model: nn.Module) -> None:
    """Cast the backbone's feature maps back to fp32.

    Detectron2's ``ROIAlign`` casts box coordinates to the type of the features, and bf16 has
    steps of 4 px at 512–1024: boxes would be read off the particle.
    """

    def cast(_module, _inputs, features):
        return {name: feature.float() for name, feature in features.items()}

    model.backbone.register_forward_hook(cast)
