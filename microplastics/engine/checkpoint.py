"""Checkpoints: writing, resuming and what they say of themselves."""

import logging
import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import detectron2
import torch
import yaml
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.engine import HookBase, hooks
from detectron2.utils import comm
from torch import nn

import microplastics
from microplastics.config import get_cfg, merge, merge_options
from microplastics.data.loader import TrainLoader
from microplastics.engine.distributed import unwrap
from microplastics.engine.solver import amp_dtype, load_optimizer_state, optimizer_state
from microplastics.engine.weights import fetch_weights, load_into, read_weights
from microplastics.modeling.backbone.imagenet import PREFIX as IMAGENET
from microplastics.modeling.backbone.imagenet import timm_state
from microplastics.utils.errors import UserError
from microplastics.utils.io import atomic_write, write_error

logger = logging.getLogger(__name__)


FINAL = "model_final"
SCORE_THRESHOLDS = "score_thresholds"
"""Key of the score thresholds in the description that a checkpoint carries."""

_PERIODIC = re.compile(r"^model_(\d{7,})\.pth$")
_MAX_CONFIG = 1_000_000
_MAX_ALIASES = 30
_FIX = "name a config with --config-file, or use another checkpoint"
_FIX_THRESHOLDS = (
    "choose them again with microplastics thresholds, or give others: --confidence-threshold, in "
    "evaluation TEST.COUNTING.CLASS_SCORE_THRESH"
)
# Key that a newer Detectron2 main writes and the one from PyPI (April 2024) does not know, with the
# value that changes nothing.
_NEWER_KEY, _NEUTRAL_VALUE = "FLOAT32_PRECISION", ""


class TrainingCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer with atomic, self-describing files.

    - A file appears under its name only when it is complete.
    - Each file carries the config, the class names and both versions, so a ``.pth`` is enough to
      predict with.
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
            cfg: stored in each file; OUTPUT_DIR and the MODEL.WEIGHTS keys are used.
            class_names: stored in each file.
            trainer: an object with ``state_dict`` and ``load_state_dict`` to resume from.
            save_to_disk: only on rank 0 by default.
            training_side: of :attr:`TrainLoader.image_side`, stored in each file, in px.
        """
        super().__init__(model, cfg.OUTPUT_DIR, save_to_disk=save_to_disk)
        self.trainer = trainer
        self._cfg = cfg
        self._class_names = list(class_names)
        self._training_side = training_side

    def save(self, name: str, with_trainer: bool = True, **extra: Any) -> None:
        """Write ``OUTPUT_DIR/name.pth``, completely or not at all.

        Args:
            name: file name without its ending.
            with_trainer: store the trainer's state too and make this the newest checkpoint.
            extra: more plain values and tensors to store.

        Raises:
            UserError: not_writable; older checkpoints are untouched.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict(), **extra}
        data["microplastics"] = {
            "version": microplastics.__version__,
            "detectron2": detectron2.__version__,
            "class_names": self._class_names,
            "config": self._cfg.dump(),
            "training_side": self._training_side,
        }
        with_trainer = with_trainer and self.trainer is not None
        if with_trainer:
            data["trainer"] = self.trainer.state_dict()
        path = os.path.join(self.save_dir, f"{name}.pth")
        write_checkpoint(data, path)
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
        """Return the periodic checkpoints, newest first."""
        if not os.path.isdir(self.save_dir):
            return []
        found = [(int(m[1]), m[0]) for m in map(_PERIODIC.match, os.listdir(self.save_dir)) if m]
        return [os.path.join(self.save_dir, name) for _, name in sorted(found, reverse=True)]

    def resumable(self) -> list[str]:
        """Return the checkpoints to resume from, the one to try first at the front."""
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
        """Load the newest complete checkpoint and the trainer's state from it.

        Returns:
            Its path, or ``None`` if there is nothing to resume.

        Raises:
            UserError: there are checkpoints, but none of them can be used.
        """
        paths = self.resumable()
        for number, path in enumerate(paths):
            try:
                checkpoint = read_weights(path)
                if "circumstances" not in checkpoint.get("trainer", {}):
                    raise UserError(
                        f"{path} was not written by microplastics train, and cannot be resumed.",
                        code="checkpoint_mismatch",
                    )
            except UserError as error:
                if number + 1 == len(paths):
                    raise
                logger.warning("%s Trying %s.", error, paths[number + 1])
                continue
            load_into(self.model, checkpoint, path)
            self.trainer.load_state_dict(checkpoint["trainer"])
            return path
        return None

    def load_weights(self, *, new_classes: bool = True) -> None:
        """Load MODEL.WEIGHTS under the rules of the config; empty leaves the model as it is.

        Args:
            new_classes: for training; see ``fine_tune`` of
                :func:`microplastics.engine.weights.load_into`.
        """
        cfg = self._cfg
        if not cfg.MODEL.WEIGHTS:
            logger.info("MODEL.WEIGHTS is empty: training starts from random weights.")
            return
        checkpoint = read_weights(fetch_weights(cfg.MODEL.WEIGHTS), cfg.MODEL.WEIGHTS_SHA256)
        if cfg.MODEL.WEIGHTS.startswith(IMAGENET):
            network = cfg.MODEL.WEIGHTS.removeprefix(IMAGENET)
            checkpoint["model"] = timm_state(checkpoint["model"], network)
            checkpoint["matching_heuristics"] = True
        load_into(
            self.model,
            checkpoint,
            cfg.MODEL.WEIGHTS,
            # An evaluation must never score what was left at its initialisation.
            allow=cfg.MODEL.WEIGHTS_ALLOW_MISMATCH if new_classes else (),
            fine_tune=cfg if new_classes else None,
        )


def write_checkpoint(data: dict[str, Any], path: str | os.PathLike) -> None:
    """Write a ``.pth``, completely or not at all.

    Raises:
        UserError: not_writable; an existing file is untouched.
    """
    try:
        with atomic_write(path, "wb") as file:
            torch.save(data, file)
    except RuntimeError as error:
        # torch's writer wraps the OSError of a full disk.
        if isinstance(error.__context__, OSError):
            raise write_error(path, error.__context__) from error
        raise


def refuse_second_training(output_dir: str) -> None:
    """Check that OUTPUT_DIR has no training that a new one would mix with.

    Raises:
        UserError: training_exists.
    """
    for name in sorted(os.listdir(output_dir)) if os.path.isdir(output_dir) else []:
        if _PERIODIC.match(name) or name == f"{FINAL}.pth":
            raise UserError(
                f"{os.path.join(output_dir, name)} belongs to an earlier training; add --resume to "
                "continue it, or choose another OUTPUT_DIR.",
                code="training_exists",
            )


def checkpoint_info(path: str) -> dict[str, Any]:
    """Read the description in a checkpoint of this project: version, class names, config.

    Raises:
        UserError: checkpoint_invalid; not a checkpoint of this project.
    """
    return checkpoint_info_of(read_weights(path), path)


def checkpoint_info_of(checkpoint: dict[str, Any], path: str) -> dict[str, Any]:
    """Return :func:`checkpoint_info` of a checkpoint that is already read."""
    info = checkpoint.get("microplastics")
    if not isinstance(info, dict):
        raise UserError(
            f"{path} has no config; name one with --config-file.", code="checkpoint_invalid"
        )
    return info


def config_of(info: Mapping[str, Any], path: str, opts: Sequence[str] = ()) -> CfgNode:
    """Return the config that a checkpoint was trained with, with ``KEY VALUE`` pairs applied.

    The text is parsed as plain YAML: it runs no code and opens no ``_BASE_``.

    Args:
        info: description of the checkpoint, see :func:`checkpoint_info`.
        path: the checkpoint, for the messages.
        opts: alternating keys and values.

    Returns:
        The config, not frozen.

    Raises:
        UserError: checkpoint_invalid (no config, not YAML, a ``_BASE_``, another VERSION),
            config_invalid (a key that is unknown here, a value of another type).
    """
    text = info.get("config")
    if not isinstance(text, str) or len(text) > _MAX_CONFIG:
        raise UserError(
            f"{path} has no readable config of at most {_MAX_CONFIG} characters; {_FIX}.",
            code="checkpoint_invalid",
        )
    try:
        # Aliases of aliases let a few lines stand for billions of values.
        if sum(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)) > _MAX_ALIASES:
            raise ValueError(f"it has more than {_MAX_ALIASES} aliases")
        table = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError, TypeError, OverflowError) as error:
        reason = " ".join(str(error).split())[:160].rstrip(".") or type(error).__name__
        raise UserError(
            f"The config in {path} is not plain YAML ({reason}); {_FIX}.", code="checkpoint_invalid"
        ) from error
    cfg = get_cfg()
    version = cfg.VERSION
    if not isinstance(table, dict) or "_BASE_" in table or table.get("VERSION", version) != version:
        raise UserError(
            f"The config in {path} is not a table of keys of VERSION {version} without _BASE_; "
            f"{_FIX}.",
            code="checkpoint_invalid",
        )
    if _NEWER_KEY not in cfg and table.get(_NEWER_KEY) == _NEUTRAL_VALUE:
        del table[_NEWER_KEY]
    if isinstance(table.get("INPUT"), dict):
        # The limit against decompression bombs is the reader's decision, not the file's.
        table["INPUT"].pop("MAX_PIXELS", None)
    merge(cfg, f"The config in {path}", lambda: cfg.merge_from_other_cfg(CfgNode(table)))
    merge_options(cfg, opts)
    return cfg


def class_names_of(info: Mapping[str, Any], path: str) -> list[str] | None:
    """Return the class names in a checkpoint; ``None`` if there are none.

    Raises:
        UserError: checkpoint_invalid; they are not a list of different words.
    """
    names = info.get("class_names")
    if names is None or (isinstance(names, (list, tuple)) and not names):
        return None
    fits = isinstance(names, (list, tuple)) and all(isinstance(n, str) and n for n in names)
    if not fits or len(set(names)) != len(names):
        raise UserError(
            f"The class names in {path} are not a list of different words; {_FIX}.",
            code="checkpoint_invalid",
        )
    return list(names)


def score_thresholds_of(
    info: Mapping[str, Any], path: str, class_names: Sequence[str]
) -> dict[str, float] | None:
    """Return the score thresholds that were chosen on a validation set, or ``None``.

    Args:
        info: description of the checkpoint, see :func:`checkpoint_info`.
        path: the checkpoint, for the messages.
        class_names: of the model or data set; not every class needs a threshold.

    Raises:
        UserError: checkpoint_invalid (not numbers from 0 to 1 by class name), classes_mismatch.
    """
    thresholds = info.get(SCORE_THRESHOLDS)
    if thresholds is None:
        return None
    if not isinstance(thresholds, Mapping):
        raise UserError(
            f"The score thresholds in {path} are not by class name; {_FIX_THRESHOLDS}.",
            code="checkpoint_invalid",
        )
    others = [str(name)[:40] for name in thresholds if name not in class_names]
    if others:
        raise UserError(
            f"The score thresholds in {path} are for {', '.join(others[:10])}, not for "
            f"{', '.join(class_names)}; {_FIX_THRESHOLDS}.",
            code="classes_mismatch",
        )
    for name, value in thresholds.items():
        if not is_score(value):
            raise UserError(
                f"The score threshold of {name} in {path} is {str(value)[:40]}; expected a number "
                f"from 0 to 1; {_FIX_THRESHOLDS}.",
                code="checkpoint_invalid",
            )
    return {name: float(value) for name, value in thresholds.items()}


def is_score(value: object) -> bool:
    """Return whether a value is a number from 0 to 1."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value) and 0 <= value <= 1


def trainer_state(trainer) -> dict[str, Any]:
    """Return the state of a ``Trainer``, loadable with ``weights_only=True``."""
    states = {type(hook).__name__: _hook_state(hook) for hook in trainer._hooks}
    state = {
        "iteration": trainer.finished_iters - 1,
        "seed": trainer.seed,
        "lr_scale": trainer.lr_scale,
        "optimizer": optimizer_state(trainer.optimizer, unwrap(trainer.model)),
        "hooks": {name: hook_state for name, hook_state in states.items() if hook_state},
        "circumstances": _circumstances(trainer),
    }
    if trainer.grad_scaler is not None:
        state["grad_scaler"] = trainer.grad_scaler.state_dict()
    return state


def load_trainer_state(trainer, state: dict[str, Any]) -> None:
    """Restore :func:`trainer_state`; other circumstances than then are logged as warnings.

    Raises:
        UserError: checkpoint_mismatch; the state belongs to another model.
    """
    ours = _circumstances(trainer)
    for key, theirs in state["circumstances"].items():
        if ours.get(key) != theirs:
            logger.warning(
                "Resuming under other circumstances: %s was %s and is %s; training continues, but "
                "not bit for bit as it would have.",
                key,
                theirs,
                ours.get(key),
            )
    trainer.finished_iters = state["iteration"] + 1
    trainer.seed = state["seed"]
    if isinstance(trainer.data_loader, TrainLoader):
        trainer.data_loader.seed = trainer.seed
    load_optimizer_state(trainer.optimizer, unwrap(trainer.model), state["optimizer"])
    if trainer.grad_scaler is not None and "grad_scaler" in state:
        trainer.grad_scaler.load_state_dict(state["grad_scaler"])
    trainer.scheduler.last_epoch = trainer.finished_iters
    trainer.set_lr_scale(state["lr_scale"])
    for hook in trainer._hooks:
        if type(hook).__name__ in state["hooks"]:
            hook.load_state_dict(state["hooks"][type(hook).__name__])


def _hook_state(hook: HookBase) -> dict[str, Any]:
    # The state of Detectron2's LR hook follows from iteration and scale.
    return {} if isinstance(hook, hooks.LRScheduler) else hook.state_dict()


def _circumstances(trainer) -> dict[str, Any]:
    device = torch.device(trainer.cfg.MODEL.DEVICE).type
    return {
        "Detectron2 build": detectron2.__version__,
        "torch": torch.__version__.split("+")[0],
        "number of processes": comm.get_world_size(),
        "device": device,
        # Sums over threads differ in their last bits.
        **({"number of threads": torch.get_num_threads()} if device == "cpu" else {}),
        "batch size": trainer.cfg.SOLVER.IMS_PER_BATCH,
        "training images": trainer.schedule.images,
        "MAX_ITER": trainer.max_iter,
        "precision": str(amp_dtype(trainer.cfg) or torch.float32),
    }
