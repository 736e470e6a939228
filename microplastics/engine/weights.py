"""Loading of model weights, without running code from untrusted files."""

import logging
import os
import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager
from torch import nn

from microplastics.modeling.interface import class_dependent
from microplastics.modeling.torchvision import (
    COCO_V1_SHA256,
    EPS,
    from_torchvision,
    is_torchvision,
)
from microplastics.utils.errors import UserError
from microplastics.utils.io import sha256_of

logger = logging.getLogger(__name__)

BEST = "model_best"
"""Name of the checkpoint with the best metric, without its ending."""

# Everything that a pickle of numpy arrays in plain containers refers to, and nothing else.
_ALLOWED_GLOBALS = {
    ("collections", "OrderedDict"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("_codecs", "encode"),
}


def choose_weights(cfg: CfgNode, weights_given: bool) -> CfgNode:
    """Return a frozen copy of a config with the MODEL.WEIGHTS of evaluation and prediction.

    ``model_best.pth`` of OUTPUT_DIR goes before those that were not given on the command line.

    Raises:
        UserError: option_missing; random weights would be scored.
    """
    best = os.path.join(cfg.OUTPUT_DIR, f"{BEST}.pth")
    cfg = cfg.clone()
    cfg.defrost()
    if not weights_given and os.path.isfile(best):
        # A demanded sha256 is that of the file which training started from.
        cfg.MODEL.WEIGHTS, cfg.MODEL.WEIGHTS_SHA256 = best, ""
    if not cfg.MODEL.WEIGHTS:
        raise UserError(
            f"{best} does not exist and MODEL.WEIGHTS is empty; train first, or add MODEL.WEIGHTS "
            "path/to/model.pth.",
            code="option_missing",
        )
    cfg.freeze()
    return cfg


def fetch_weights(path: str) -> str:
    """Return the local file of a path or address (URL, ``detectron2://``, ``imagenet://``).

    Raises:
        UserError: file_missing.
    """
    try:
        local = PathManager.get_local_path(path)
        if not os.path.isfile(local):
            raise FileNotFoundError("it does not exist")
    except UserError:
        raise
    except Exception as error:
        # Handlers raise whatever their transport raises: URLError, OSError, RuntimeError, …
        raise UserError(
            f"The weights file {path} cannot be fetched ({_first_line(error)}); give "
            "MODEL.WEIGHTS a local file, start from an ImageNet backbone (MODEL.WEIGHTS "
            "detectron2://ImageNetPretrained/MSRA/R-50.pkl), or train from scratch "
            "(configs/microplastics_r50_scratch.yaml).",
            code="file_missing",
        ) from error
    return local


def read_weights(path: str, sha256: str = "") -> dict[str, Any]:
    """Read a ``.pkl`` or ``.pth`` checkpoint without running code from it; log its sha256.

    The content is as Detectron2 has it, with the weights under ``"model"``. Those of torchvision's
    Mask R-CNN, recognised by their names, get Detectron2's, and ``"torchvision"`` is True.

    Args:
        path: a local file.
        sha256: the digest that it must have; empty for any.

    Raises:
        UserError: file_invalid (not readable), checkpoint_mismatch (another digest),
            checkpoint_invalid (damaged, or holds more than weights).
    """
    try:
        digest = sha256_of(path)
        logger.info("Weights %s, sha256 %s", path, digest)
        if sha256 and digest != sha256.lower():
            raise UserError(
                f"The sha256 of {path} is {digest}; expected MODEL.WEIGHTS_SHA256, {sha256}.",
                code="checkpoint_mismatch",
            )
        if path.endswith(".pkl"):
            with open(path, "rb") as file:
                data = _with_model(_ArrayUnpickler(file, encoding="latin1").load())
        else:
            data = torch.load(path, map_location="cpu", weights_only=True)
            if not isinstance(data, dict):
                raise ValueError("it is not a table of weights")
            data = data if "model" in data else {"model": data}
        if not data["model"] or not all(
            isinstance(name, str) and isinstance(value, (torch.Tensor, np.ndarray))
            for name, value in data["model"].items()
        ):
            raise ValueError("it is not a table of weights")
        if is_torchvision(data["model"]):
            eps = 0.0 if digest.startswith(COCO_V1_SHA256) else EPS
            data = {"model": from_torchvision(data["model"], eps), "torchvision": True}
    except (MemoryError, UserError):
        raise
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); check the path and its permissions.",
            code="file_invalid",
        ) from error
    except Exception as error:
        # A damaged or hostile file can make the readers raise anything, OSError included.
        raise UserError(
            f"{path} is damaged, not readable or holds more than weights and was not loaded "
            f"({_first_line(error)}); use another checkpoint.",
            code="checkpoint_invalid",
        ) from error
    return data


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED_GLOBALS:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}")
        return super().find_class(module, name)


def _with_model(data: Any) -> dict[str, Any]:
    """Put the weights of a ``.pkl`` under ``"model"``, as Detectron2's checkpointer does."""
    if "model" in data and "__author__" in data:
        return data
    blobs = data.get("blobs", data)
    weights = {k: v for k, v in blobs.items() if not str(k).endswith("_momentum")}
    return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}


def load_into(
    model: nn.Module,
    checkpoint: dict[str, Any],
    source: str,
    *,
    allow: Sequence[str] = (),
    fine_tune: CfgNode | None = None,
) -> list[str]:
    """Copy weights into a model; return the names that keep their initialisation.

    Args:
        model: the model, not wrapped.
        checkpoint: from :func:`read_weights`; its ``"model"`` is used up.
        source: name of the file, for the messages.
        allow: prefixes of parameter names that need not fit.
        fine_tune: config of the model, if layers whose shape depends on the number of classes may
            keep their initialisation, and all beside the backbone if the checkpoint has no more.

    Raises:
        UserError: checkpoint_mismatch.
    """
    heads = ("rpn", "roi_heads", "proposal_generator", "fpn")
    backbone_only = checkpoint.get("matching_heuristics", False) and not any(
        word in name for name in checkpoint["model"] for word in heads
    )
    for name, module in model.named_modules():
        if hasattr(module, "adapt_weights"):
            module.adapt_weights(checkpoint["model"], f"{name}.")
    try:
        # Not load(), which would read the file by itself.
        result = DetectionCheckpointer(model, save_to_disk=False)._load_model(checkpoint)
    except (RuntimeError, ValueError, AssertionError, KeyError) as error:
        raise _misfit(source, [_first_line(error)]) from error
    shapes = {
        name: f"{name} is {tuple(theirs)} there and {tuple(ours)} here"
        for name, theirs, ours in result.incorrect_shapes
    }
    missing = [name for name in result.missing_keys if name not in shapes and _is_weight(name)]
    surplus, reshaped = [name for name in result.unexpected_keys if _is_weight(name)], set(shapes)
    left = sorted({*missing, *shapes})
    if fine_tune is not None and backbone_only:
        missing = [name for name in missing if name.startswith("backbone.bottom_up.")]
        # The classifier's last layer and what else the ImageNet network had of its own.
        logger.info("Not used of %s: %s", source, ", ".join(surplus) or "nothing")
        surplus = []
    if fine_tune is not None and reshaped:
        reshaped -= class_dependent(fine_tune)
    problems = [shapes[name] for name in sorted(reshaped)]
    problems += [f"{name} is missing there" for name in missing]
    problems += [f"{name} is unknown here" for name in surplus]
    problems = [problem for problem in problems if not problem.startswith(tuple(allow))]
    if problems:
        raise _misfit(source, problems)
    if left:
        logger.warning(
            "%d parameters are missing in %s or have another shape there and keep their "
            "initialisation:\n  %s",
            len(left),
            source,
            "\n  ".join(shapes.get(name, name) for name in left),
        )
    return left


def _is_weight(name: str) -> bool:
    """Return whether it is not the counter of a norm, which frozen norms do not have."""
    return not name.endswith(".num_batches_tracked")


def _misfit(source: str, problems: Sequence[str]) -> UserError:
    more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
    return UserError(
        f"{source} does not fit this model: {'; '.join(problems[:3])}{more}. Use a checkpoint of "
        "the same architecture and classes, or name the prefixes in MODEL.WEIGHTS_ALLOW_MISMATCH.",
        code="checkpoint_mismatch",
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")[:200]
