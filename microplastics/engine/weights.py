"""Loading of model weights, without running code from untrusted files."""

import hashlib
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
from microplastics.utils.errors import UserError

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

_ALTERNATIVES = (
    "give MODEL.WEIGHTS a local file, start from an ImageNet backbone (MODEL.WEIGHTS "
    "detectron2://ImageNetPretrained/MSRA/R-50.pkl), or train from scratch "
    "(configs/microplastics_r50_scratch.yaml)"
)


def choose_weights(cfg: CfgNode, weights_given: bool) -> CfgNode:
    """Choose the weights that evaluation and prediction use.

    Args:
        cfg: the config.
        weights_given: MODEL.WEIGHTS was given on the command line; else ``model_best.pth`` of
            OUTPUT_DIR goes before it, if there is one.

    Returns:
        A frozen copy with MODEL.WEIGHTS set.

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
    """Return the local file of ``MODEL.WEIGHTS``, downloading a URL or ``detectron2://`` address.

    Raises:
        UserError: file_missing; it does not exist or cannot be fetched.
    """
    try:
        local = PathManager.get_local_path(path)
    except Exception as error:
        # Handlers raise whatever their transport raises: URLError, OSError, RuntimeError, …
        raise UserError(
            f"MODEL.WEIGHTS {path} cannot be fetched ({_first_line(error)}); {_ALTERNATIVES}.",
            code="file_missing",
        ) from error
    if not os.path.isfile(local):
        raise UserError(
            f"The weights file {path} does not exist; {_ALTERNATIVES}.", code="file_missing"
        )
    return local


def sha256_of(path: str) -> str:
    """Return the hexadecimal sha256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_weights(path: str, sha256: str = "") -> dict[str, Any]:
    """Read a ``.pkl`` or ``.pth`` checkpoint without running code from it.

    ``.pkl`` files go through an unpickler that allows only numpy arrays and plain containers,
    ``.pth`` files through ``torch.load(weights_only=True)``. The sha256 is logged.

    Args:
        path: a local file.
        sha256: the digest that it must have; empty for any.

    Returns:
        The content, with the weights under ``"model"`` and, for model-zoo backbones,
        ``"matching_heuristics"`` and ``"__author__"`` as Detectron2 has them.

    Raises:
        UserError: file_invalid (cannot be read), checkpoint_mismatch (another digest),
            checkpoint_invalid (damaged, or holds more than weights).
    """
    try:
        digest = sha256_of(path)
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); check its permissions.",
            code="file_invalid",
        ) from error
    logger.info("Weights %s, sha256 %s", path, digest)
    if sha256 and digest != sha256.lower():
        raise UserError(
            f"The sha256 of {path} is {digest}; expected MODEL.WEIGHTS_SHA256, {sha256}.",
            code="checkpoint_mismatch",
        )
    try:
        if path.endswith(".pkl"):
            with open(path, "rb") as file:
                data = _ArrayUnpickler(file, encoding="latin1").load()
        else:
            data = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:
        # A damaged or hostile file can make the readers raise anything, OSError included.
        raise UserError(
            f"{path} is damaged or holds more than weights and was not loaded "
            f"({_first_line(error)}); use another checkpoint.",
            code="checkpoint_invalid",
        ) from error
    data = _with_model(data, caffe2=path.endswith(".pkl"))
    state = data.get("model")
    if not (isinstance(state, dict) and state and all(map(_is_weight, state.items()))):
        raise UserError(
            f"{path} is not a table of weights; expected a Detectron2 checkpoint.",
            code="checkpoint_invalid",
        )
    return data


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED_GLOBALS:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}")
        return super().find_class(module, name)


def _with_model(data: Any, caffe2: bool) -> dict[str, Any]:
    """Put the weights under ``"model"``, as Detectron2's checkpointer does."""
    if not isinstance(data, dict):
        return {}
    if caffe2 and not ("model" in data and "__author__" in data):
        data = data.get("blobs", data)
        data = {k: v for k, v in data.items() if not str(k).endswith("_momentum")}
        return {"model": data, "__author__": "Caffe2", "matching_heuristics": True}
    return data if "model" in data else {"model": data}


def _is_weight(item: tuple[Any, Any]) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], (torch.Tensor, np.ndarray))


def load_into(
    model: nn.Module,
    checkpoint: dict[str, Any],
    source: str,
    *,
    allow: Sequence[str] = (),
    fine_tune: CfgNode | None = None,
) -> list[str]:
    """Copy weights into a model.

    Args:
        model: the model, not wrapped.
        checkpoint: from :func:`read_weights`; its ``"model"`` is used up.
        source: name of the file, for the messages.
        allow: prefixes of parameter names that need not fit.
        fine_tune: config of the model, if layers whose shape depends on the number of classes may
            keep their initialisation, as may all beside the backbone if the checkpoint is one of
            a backbone. ``None`` (evaluation, resume) makes both an error.

    Returns:
        Names of the parameters left at their initialisation.

    Raises:
        UserError: checkpoint_mismatch.
    """
    backbone_only = _is_backbone_only(checkpoint)
    result = _copy_what_fits(model, checkpoint, source)
    shapes = {
        name: f"{name} is {tuple(theirs)} there and {tuple(ours)} here"
        for name, theirs, ours in result.incorrect_shapes
    }
    missing = [name for name in result.missing_keys if name not in shapes]
    surplus, reshaped = list(result.unexpected_keys), set(shapes)
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
    _refuse_misfits(source, [p for p in problems if not p.startswith(tuple(allow))])
    if left:
        logger.warning(
            "%d parameters are missing in %s or have another shape there and keep their "
            "initialisation:\n  %s",
            len(left),
            source,
            "\n  ".join(shapes.get(name, name) for name in left),
        )
    return left


class _StateLoader(DetectionCheckpointer):
    """Detectron2's name matching and conversion for a checkpoint that is already read."""

    def __init__(self, model: nn.Module):
        super().__init__(model, save_to_disk=False)

    def apply(self, checkpoint: dict[str, Any]):
        return self._load_model(checkpoint)


def _copy_what_fits(model: nn.Module, checkpoint: dict[str, Any], source: str) -> Any:
    """Copy weights by name and shape; return Detectron2's list of what does not fit."""
    try:
        return _StateLoader(model).apply(checkpoint)
    except (RuntimeError, ValueError, AssertionError, KeyError) as error:
        raise UserError(
            f"{source} does not fit this model ({_first_line(error)}); use a checkpoint of the "
            "same architecture.",
            code="checkpoint_mismatch",
        ) from error


def _refuse_misfits(source: str, problems: Sequence[str]) -> None:
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(
            f"{source} does not fit this model: {'; '.join(problems[:3])}{more}. Use a checkpoint "
            "of the same architecture and classes, or name the prefixes in "
            "MODEL.WEIGHTS_ALLOW_MISMATCH.",
            code="checkpoint_mismatch",
        )


def _is_backbone_only(checkpoint: dict[str, Any]) -> bool:
    if not checkpoint.get("matching_heuristics", False):
        return False
    words = ("rpn", "roi_heads", "proposal_generator", "fpn")
    return not any(word in name for name in checkpoint["model"] for word in words)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")[:200]
