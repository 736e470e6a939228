"""Score thresholds that travel in a checkpoint."""

import os
import zipfile
from collections.abc import Sequence
from typing import Any

import torch

from microplastics.engine.checkpoint_config import SCORE_THRESHOLDS, score_thresholds_of
from microplastics.engine.weights import read_weights
from microplastics.errors import UserError
from microplastics.files import atomic_write, write_error

ORIGIN_KEY = f"{SCORE_THRESHOLDS}_origin"


def stored_thresholds(path: str | os.PathLike, class_names: Sequence[str]) -> dict[str, float]:
    """The score thresholds of a checkpoint, as :func:`checkpoint_config.score_thresholds_of`.

    Args:
        path: a local file that :func:`microplastics.engine.weights.read_weights` accepts.
        class_names: of the data set or model that they are for.

    Returns:
        By class name; none where it has none.

    Raises:
        UserError: they are no numbers from 0 to 1 by class name, or some are for other classes.
    """
    if not zipfile.is_zipfile(path):
        return {}
    # Mapped, not read: the weights are not needed.
    data = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    info = data.get("microplastics") if isinstance(data, dict) else None
    info = info if isinstance(info, dict) else {}
    return score_thresholds_of(info, os.fspath(path), class_names) or {}


def read_own_checkpoint(path: str, class_names: Sequence[str]) -> dict[str, Any]:
    """Read a checkpoint that thresholds can be stored in.

    Args:
        path: a ``.pth`` of this project's training.
        class_names: those that it must have.

    Raises:
        UserError: it cannot be read, carries no class names, or others.
    """
    checkpoint = read_weights(path)
    info = checkpoint.get("microplastics")
    if not isinstance(info, dict) or "class_names" not in info:
        raise UserError(
            f"{path} carries no class names, so thresholds cannot be stored in it; use a .pth "
            "that tools/train_net.py wrote."
        )
    if list(info["class_names"]) != list(class_names):
        raise UserError(
            f"{path} was trained on the classes {', '.join(map(str, info['class_names']))}, but "
            f"the data set has {', '.join(class_names)}; name its own validation set in "
            "DATASETS.TEST."
        )
    return checkpoint


def store_thresholds(
    checkpoint: dict[str, Any],
    output: str | os.PathLike,
    thresholds: dict[str, float],
    origin: dict[str, Any],
) -> None:
    """Write a checkpoint with score thresholds, whole or not at all; all else is unchanged.

    Args:
        checkpoint: of :func:`read_own_checkpoint`, not used up by a model since.
        output: the ``.pth``; it may be the file that was read.
        thresholds: by class name, in [0, 1].
        origin: how they were chosen, plain values.

    Raises:
        UserError: it cannot be written; a file that was there is untouched.
    """
    info = {**checkpoint["microplastics"], SCORE_THRESHOLDS: dict(thresholds), ORIGIN_KEY: origin}
    try:
        with atomic_write(output, "wb") as file:
            torch.save({**checkpoint, "microplastics": info}, file)
    except RuntimeError as error:
        # torch's writer wraps the OSError of a full disk.
        if isinstance(error.__context__, OSError):
            raise write_error(output, error.__context__) from error
        raise
