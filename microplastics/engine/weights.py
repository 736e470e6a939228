"""Reading model weights that come from strangers, without running their code."""

import hashlib
import logging
import os
import pickle
import re
import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.file_io import PathManager
from torch import nn

from microplastics.utils.errors import UserError

logger = logging.getLogger(__name__)

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

# Layers whose shapes follow the number of classes: replaced when a model learns other classes.
CLASS_DEPENDENT = re.compile(
    r"^roi_heads\.(box_predictor(\.\d+)?\.(cls_score|bbox_pred)|mask_head\.predictor)\."
)

_WAYS_ON = (
    "download it elsewhere and set MODEL.WEIGHTS to the local file, start from an ImageNet "
    "backbone (MODEL.WEIGHTS detectron2://ImageNetPretrained/MSRA/R-50.pkl), or train from "
    "scratch (configs/microplastics_r50_scratch.yaml)"
)


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED_GLOBALS:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}")
        return super().find_class(module, name)


def fetch_weights(path: str) -> str:
    """Local file name of ``MODEL.WEIGHTS``, which may be a URL or a ``detectron2://`` address.

    Raises:
        UserError: there is no such file, or it cannot be fetched.
    """
    try:
        local = PathManager.get_local_path(path)
    except Exception as error:
        # Handlers raise whatever their transport raises: URLError, OSError, RuntimeError, …
        raise UserError(
            f"Cannot fetch MODEL.WEIGHTS {path} ({_first_line(error)}): {_WAYS_ON}."
        ) from error
    if not os.path.isfile(local):
        raise UserError(f"There is no weights file {path}: {_WAYS_ON}.")
    return local


def sha256_of(path: str) -> str:
    """Hexadecimal sha256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_weights(path: str, sha256: str = "") -> dict[str, Any]:
    """Read a ``.pkl`` or ``.pth`` checkpoint without running code from it.

    ``.pkl`` files go through an unpickler that allows numpy arrays and plain containers alone,
    ``.pth`` files through ``torch.load(weights_only=True)``. The sha256 is logged.

    Args:
        path: a local file.
        sha256: demanded digest; empty demands none.

    Returns:
        What the file holds, with the weights under ``"model"`` and, for model-zoo backbones,
        ``"matching_heuristics"`` and ``"__author__"`` as Detectron2 has them.

    Raises:
        UserError: damaged, of another digest, or holding more than weights.
    """
    try:
        digest = sha256_of(path)
    except OSError as error:
        raise UserError(f"Cannot read {path} ({error.strerror}); check its permissions.") from error
    logger.info("Weights %s, sha256 %s", path, digest)
    if sha256 and digest != sha256.lower():
        raise UserError(
            f"{path} has the sha256 {digest}, but MODEL.WEIGHTS_SHA256 demands {sha256}; "
            "fetch the file again, or correct the demand."
        )
    try:
        data = _unpickle(path) if path.endswith(".pkl") else _torch_load(path)
    except MemoryError:
        raise
    except Exception as error:
        # A damaged or hostile file can make the readers raise anything, OSError included.
        raise UserError(
            f"{path} is damaged or holds more than weights ({_first_line(error)}); it was not "
            "loaded. Use another checkpoint, or fetch this one again from a source you trust."
        ) from error
    if not isinstance(data, dict):
        raise UserError(f"{path} holds no table of weights; use a Detectron2 checkpoint.")
    if path.endswith(".pkl") and not ("model" in data and "__author__" in data):
        data = data.get("blobs", data)
        data = {k: v for k, v in data.items() if not str(k).endswith("_momentum")}
        data = {"model": data, "__author__": "Caffe2", "matching_heuristics": True}
    if "model" not in data:
        data = {"model": data}
    _check_state(path, data["model"])
    return data


def _unpickle(path: str) -> Any:
    with open(path, "rb") as file:
        return _ArrayUnpickler(file, encoding="latin1").load()


def _torch_load(path: str) -> Any:
    if not zipfile.is_zipfile(path):
        # The format before torch 1.6; its reader is guarded by weights_only just the same.
        return torch.load(path, map_location="cpu", weights_only=True)
    with zipfile.ZipFile(path) as archive:
        # torch reads tensors without looking at their checksums.
        broken = archive.testzip()
    if broken is not None:
        raise ValueError(f"the checksum of {broken} is wrong")
    return torch.load(path, map_location="cpu", weights_only=True)


def _check_state(path: str, state: Any) -> None:
    fits = isinstance(state, dict) and all(
        isinstance(k, str) and isinstance(v, (torch.Tensor, np.ndarray)) for k, v in state.items()
    )
    if not fits or not state:
        raise UserError(f"{path} holds no table of weights; use a Detectron2 checkpoint.")


class _StateLoader(DetectionCheckpointer):
    """Detectron2's name matching and conversion, fed with an already read checkpoint."""

    def __init__(self, model: nn.Module):
        super().__init__(model, save_to_disk=False)

    def apply(self, checkpoint: dict[str, Any]):
        return self._load_model(checkpoint)


def load_into(
    model: nn.Module,
    checkpoint: dict[str, Any],
    source: str,
    *,
    allow: Sequence[str] = (),
    new_classes: bool = True,
) -> list[str]:
    """Copy weights into a model; what does not fit is allowed by rule or by name, or an error.

    Args:
        model: the model, not wrapped.
        checkpoint: from :func:`read_weights`; its ``"model"`` is used up.
        source: name of the file, for the messages.
        allow: prefixes of parameter names that need not fit.
        new_classes: leave class-dependent layers of another shape at their initialisation
            (fine-tuning). Without it they are an error (evaluation, resume).

    Returns:
        Names of the parameters left at their initialisation.

    Raises:
        UserError: something does not fit.
    """
    backbone_only = _is_backbone_only(checkpoint)
    incompatible = _copy_what_fits(model, checkpoint, source)
    missing = list(incompatible.missing_keys)
    surplus = list(incompatible.unexpected_keys)
    reshaped = {name for name, _, _ in incompatible.incorrect_shapes}
    shapes = {
        name: f"{name} is {tuple(theirs)} there and {tuple(ours)} here"
        for name, theirs, ours in incompatible.incorrect_shapes
    }
    missing = [name for name in missing if name not in reshaped]
    if new_classes and backbone_only:
        missing = [n for n in missing if n.startswith("backbone.bottom_up.")]
        # The classifier's last layer and what else the ImageNet network had of its own.
        logger.info("Not used of %s: %s", source, ", ".join(surplus) or "nothing")
        surplus = []
    problems = [
        shapes[n] for n in sorted(reshaped) if not (new_classes and CLASS_DEPENDENT.match(n))
    ]
    problems += [f"{name} is missing there" for name in missing]
    problems += [f"{name} is unknown here" for name in surplus]
    _refuse_misfits(source, problems, allow)
    left = sorted(reshaped | set(incompatible.missing_keys) - set(shapes))
    if left:
        logger.warning(
            "%d parameters are not in %s or of another shape there and keep their "
            "initialisation:\n  %s",
            len(left),
            source,
            "\n  ".join(shapes.get(name, name) for name in left),
        )
    return left


def _copy_what_fits(model: nn.Module, checkpoint: dict[str, Any], source: str) -> Any:
    """Copy weights by name and shape; Detectron2's list of what does not fit is returned."""
    try:
        return _StateLoader(model).apply(checkpoint)
    except UserError:
        raise
    except (RuntimeError, ValueError, AssertionError, KeyError) as error:
        raise UserError(
            f"{source} does not fit this model ({_first_line(error)}); use a checkpoint of the "
            "same architecture."
        ) from error


def _refuse_misfits(source: str, problems: Sequence[str], allow: Sequence[str]) -> None:
    """Raise what does not fit, each a sentence that begins with the parameter's name."""
    problems = [p for p in problems if not any(p.startswith(prefix) for prefix in allow)]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(
            f"{source} does not fit this model: {'; '.join(problems[:3])}{more}. Use a checkpoint "
            "of the same architecture and classes, or name the prefixes in "
            "MODEL.WEIGHTS_ALLOW_MISMATCH."
        )


def _is_backbone_only(checkpoint: dict[str, Any]) -> bool:
    if not checkpoint.get("matching_heuristics", False):
        return False
    words = ("rpn", "roi_heads", "proposal_generator", "fpn")
    return not any(word in name for name in checkpoint["model"] for word in words)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")[:200]
