"""Checkpoints that survive a kill, a full disk and a change of the Detectron2 build."""

import logging
import os
import re
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from torch import nn

import microplastics
from microplastics.compat import detectron2_build
from microplastics.engine.weights import fetch_weights, load_into, read_weights
from microplastics.errors import UserError
from microplastics.files import atomic_write, write_error

logger = logging.getLogger(__name__)

BEST = "model_best"
FINAL = "model_final"
_PERIODIC = re.compile(r"^model_(\d{7,})\.pth$")


class TrainingCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, made safe.

    - A file appears under its name only when it is whole.
    - Each file carries the config, the class names and both versions, so that a ``.pth`` is
      enough to predict with.
    - Only the newest periodic files are kept.
    - Reading never runs code from the file.
    """

    def __init__(
        self,
        model: nn.Module,
        cfg: CfgNode,
        class_names: Sequence[str],
        trainer: Any = None,
        save_to_disk: bool | None = None,
        training_side: int | None = None,
    ):
        """
        Args:
            model: the model, wrapped in DDP or not.
            cfg: stored in each file, and gives OUTPUT_DIR and what MODEL.WEIGHTS must fulfil.
            class_names: stored in each file.
            trainer: an object with ``state_dict`` and ``load_state_dict`` to resume from.
            save_to_disk: rank 0 alone by default.
            training_side: of :attr:`TrainLoader.image_side`, stored in each file, in px.
        """
        super().__init__(model, cfg.OUTPUT_DIR, save_to_disk=save_to_disk)
        self.trainer = trainer
        self._cfg = cfg
        self._class_names = list(class_names)
        self._training_side = training_side

    def save(self, name: str, with_trainer: bool = True, **extra: Any) -> None:
        """Write ``OUTPUT_DIR/name.pth``, whole or not at all.

        Args:
            name: file name without its ending.
            with_trainer: store what resuming needs and make this the newest checkpoint.
            extra: more plain values and tensors to store.

        Raises:
            UserError: it cannot be written; older checkpoints are untouched.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict(), **extra}
        data["microplastics"] = {
            "version": microplastics.__version__,
            "detectron2": detectron2_build(),
            "class_names": self._class_names,
            "config": self._cfg.dump(),
            "training_side": self._training_side,
        }
        with_trainer = with_trainer and self.trainer is not None
        if with_trainer:
            data["trainer"] = self.trainer.state_dict()
        path = os.path.join(self.save_dir, f"{name}.pth")
        try:
            with atomic_write(path, "wb") as file:
                torch.save(data, file)
        except RuntimeError as error:
            # torch's writer wraps the OSError of a full disk.
            if isinstance(error.__context__, OSError):
                raise write_error(path, error.__context__) from error
            raise
        logger.info("Saved %s", path)
        if with_trainer:
            self.tag_last_checkpoint(f"{name}.pth")

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        with atomic_write(os.path.join(self.save_dir, "last_checkpoint")) as file:
            file.write(last_filename_basename)

    def save_periodic(self, iteration: int, keep: int) -> None:
        """Save ``model_{iteration}.pth`` and delete all but the newest ``keep`` of its kind."""
        self.save(f"model_{iteration:07d}")
        if self.save_to_disk:
            for path in self._periodic()[keep:]:
                os.unlink(path)

    def _periodic(self) -> list[str]:
        """Periodic checkpoints, newest first."""
        if not os.path.isdir(self.save_dir):
            return []
        found = [(int(m[1]), m[0]) for m in map(_PERIODIC.match, os.listdir(self.save_dir)) if m]
        return [os.path.join(self.save_dir, name) for _, name in sorted(found, reverse=True)]

    def resumable(self) -> list[str]:
        """Checkpoints to resume from, the one to try first at the front."""
        found = []
        last = self.get_checkpoint_file() if self.has_checkpoint() else ""
        for path in [last, *self._periodic(), os.path.join(self.save_dir, f"{FINAL}.pth")]:
            if path and path not in found and os.path.isfile(path):
                found.append(path)
        return found

    def remove_leftovers(self) -> None:
        """Delete the temporary files of a run that was killed while it wrote."""
        if self.save_to_disk and os.path.isdir(self.save_dir):
            for name in os.listdir(self.save_dir):
                if re.match(r"^\.(model_\w+\.pth|last_checkpoint)\.", name):
                    os.unlink(os.path.join(self.save_dir, name))

    def resume(self) -> str | None:
        """Load the newest whole checkpoint and the trainer's state from it.

        Returns:
            Its path, or ``None`` where there is nothing to resume.

        Raises:
            UserError: checkpoints are there, but none of them can be used.
        """
        paths = self.resumable()
        for number, path in enumerate(paths):
            try:
                checkpoint = read_weights(path)
                if "circumstances" not in checkpoint.get("trainer", {}):
                    raise UserError(f"{path} was not written by this project's trainer.")
            except UserError as error:
                if number + 1 == len(paths):
                    raise
                logger.warning("%s Going back to %s.", error, paths[number + 1])
                continue
            load_into(self.model, checkpoint, path, new_classes=False)
            self.trainer.load_state_dict(checkpoint["trainer"])
            return path
        return None

    def load_weights(self, *, new_classes: bool = True) -> None:
        """Load MODEL.WEIGHTS under the rules of the config; empty leaves the model as it is.

        Args:
            new_classes: see :func:`microplastics.engine.weights.load_into`.
        """
        cfg = self._cfg
        if not cfg.MODEL.WEIGHTS:
            logger.info("MODEL.WEIGHTS is empty: training starts from random weights.")
            return
        checkpoint = read_weights(fetch_weights(cfg.MODEL.WEIGHTS), cfg.MODEL.WEIGHTS_SHA256)
        load_into(
            self.model,
            checkpoint,
            cfg.MODEL.WEIGHTS,
            # An evaluation must never score what was left at its initialisation.
            allow=cfg.MODEL.WEIGHTS_ALLOW_MISMATCH if new_classes else (),
            new_classes=new_classes,
        )


def refuse_second_training(output_dir: str) -> None:
    """Raise a ``UserError`` where OUTPUT_DIR holds a training that a new one would mix with."""
    for name in sorted(os.listdir(output_dir)) if os.path.isdir(output_dir) else []:
        if _PERIODIC.match(name) or name == f"{FINAL}.pth":
            raise UserError(
                f"{os.path.join(output_dir, name)} is of an earlier training; add --resume to go "
                "on with it, or choose another OUTPUT_DIR."
            )


def checkpoint_info(path: str) -> dict[str, Any]:
    """What a checkpoint of this project says of itself: version, class names, config.

    Raises:
        UserError: not a checkpoint of this project.
    """
    return checkpoint_info_of(read_weights(path), path)


def checkpoint_info_of(checkpoint: dict[str, Any], path: str) -> dict[str, Any]:
    """Like :func:`checkpoint_info`, of a checkpoint that is already read."""
    info = checkpoint.get("microplastics")
    if not isinstance(info, dict):
        raise UserError(f"{path} carries no config; name one with --config-file.")
    return info
