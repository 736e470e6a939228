"""Checkpoints and weights: choosing, reading without running code, resuming, writing.

A checkpoint says of itself what it was trained with.
"""

import glob
import itertools
import logging
import mmap
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import detectron2
import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager
from torch import nn

import microplastics
from microplastics.config import get_cfg, merge_options, merging
from microplastics.data.coco import is_class_name, show
from microplastics.measurement.shape import is_fiber_class
from microplastics.modeling.backbone.imagenet import PREFIX as IMAGENET
from microplastics.modeling.backbone.imagenet import timm_state
from microplastics.modeling.interface import class_dependent
from microplastics.modeling.torchvision import (
    COCO_V1_SHA256,
    EPS,
    TELLING_NAMES,
    from_torchvision,
)
from microplastics.utils.errors import UserError
from microplastics.utils.io import atomic_write, parse_yaml, sha256_of, write_error
from microplastics.utils.pickles import array_of, read_pickle

logger = logging.getLogger(__name__)

FINAL = "model_final"
SCORE_THRESHOLDS = "score_thresholds"
"""Key of the score thresholds in the description that a checkpoint carries."""
ORIGIN_KEY = f"{SCORE_THRESHOLDS}_origin"
"""Key of how they were chosen."""

_MAX_TENSORS = 20_000  # names are compared with all of the model
_MAX_LAYERS = 1000
_PERIODIC = f"model_{'[0-9]' * 7}.pth"
_FIX = "name a config with --config-file, or use another checkpoint"
# Key that a newer Detectron2 main writes and the one from PyPI (April 2024) does not know, with the
# value that changes nothing.
_NEWER_KEY, _NEUTRAL_VALUE = "FLOAT32_PRECISION", ""

BEST = "model_best"
"""Name of the checkpoint with the best metric, without its ending."""


class TrainingCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer with files that are complete or not there at all.

    Each file carries the config, the class names and both versions, so that a ``.pth`` is enough
    to predict with. Reading never runs code from the file.
    """

    def __init__(
        self,
        model: nn.Module,
        cfg: CfgNode,
        class_names: Sequence[str],
        trainer: Any = None,
        training_side: int | None = None,
        fiber_classes: Sequence[str] | None = None,
    ):
        """
        Args:
            model: the model, wrapped in DDP or not.
            cfg, class_names: stored in each file; OUTPUT_DIR and MODEL.WEIGHTS are used.
            trainer: an object with ``state_dict`` and ``load_state_dict`` to resume from.
            training_side: of :attr:`TrainLoader.image_side`, stored in each file, in px.
            fiber_classes: stored in each file; by the names of the classes if None.
        """
        super().__init__(model, cfg.OUTPUT_DIR)
        self.trainer = trainer
        # What files hold instead of the model's own weights, by name: their average.
        self.averages: dict[str, torch.Tensor] = {}
        self._cfg = cfg
        self._class_names = list(class_names)
        self._training_side = training_side
        if fiber_classes is None:
            fiber_classes = filter(is_fiber_class, class_names)
        self._fiber_classes = list(fiber_classes)

    def save(self, name: str, with_trainer: bool = True, **extra: Any) -> None:
        """Write ``OUTPUT_DIR/name.pth`` as :func:`write_checkpoint` does.

        Args:
            name: file name without its ending.
            with_trainer: store the trainer's state too and make this the newest checkpoint.
            extra: more plain values and tensors to store.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        state = self.model.state_dict()
        state.update(self.averages)
        data = {"model": state, **extra}
        data["microplastics"] = {
            "version": microplastics.__version__,
            "detectron2": detectron2.__version__,
            "class_names": self._class_names,
            "fiber_classes": self._fiber_classes,
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

    def save_periodic(self, iteration: int) -> None:
        """Save ``model_{iteration}.pth``, and keep only the newest CHECKPOINTS_TO_KEEP."""
        self.save(f"model_{iteration:07d}")
        if self.save_to_disk:
            paths = _files(self.save_dir, _PERIODIC)
            for path in paths[self._cfg.SOLVER.CHECKPOINTS_TO_KEEP :]:
                os.unlink(path)

    def resumable(self) -> list[str]:
        """Return the checkpoints to resume from, the one to try first at the front."""
        last = self.get_checkpoint_file() if self.has_checkpoint() else ""
        others = [*_files(self.save_dir, _PERIODIC), os.path.join(self.save_dir, f"{FINAL}.pth")]
        return [path for path in dict.fromkeys([last, *others]) if os.path.isfile(path)]

    def resume(self) -> str | None:
        """Load the newest usable checkpoint with the trainer's state; return its path, if any."""
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

    def load_weights(self, *, new_classes: bool = True) -> dict[str, Any]:
        """Load MODEL.WEIGHTS, if there are some; return what the file says of itself.

        ``new_classes``, for training, lets layers keep their initialisation: see ``fine_tune`` of
        :func:`microplastics.engine.checkpoint.load_into`.
        """
        cfg = self._cfg
        if not cfg.MODEL.WEIGHTS:
            logger.info("MODEL.WEIGHTS is empty: training starts from random weights.")
            return {}
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
        info = checkpoint.get("microplastics")
        return info if isinstance(info, dict) else {}


def write_checkpoint(data: dict[str, Any], path: str | os.PathLike) -> None:
    """Write a ``.pth``, completely or, with the error not_writable, not at all."""
    try:
        with atomic_write(path, "wb") as file:
            torch.save(data, file)
    except RuntimeError as error:
        # torch's writer wraps the OSError of a full disk.
        if isinstance(error.__context__, OSError):
            raise write_error(path, error.__context__) from error
        raise


def refuse_second_training(output_dir: str) -> None:
    """Raise training_exists if OUTPUT_DIR has a training that a new one would mix with."""
    for path in _files(output_dir, _PERIODIC, f"{FINAL}.pth"):
        raise UserError(
            f"{path} belongs to an earlier training; add --resume to continue it, or choose "
            "another OUTPUT_DIR.",
            code="training_exists",
        )


def _files(folder: str, *patterns: str) -> list[str]:
    """Return the files of a folder that fit a pattern, the last name first."""
    paths = [os.path.join(glob.escape(folder), pattern) for pattern in patterns]
    return sorted(itertools.chain(*map(glob.glob, paths)), reverse=True)


def checkpoint_info_of(checkpoint: dict[str, Any], path: str) -> dict[str, Any]:
    """Return what a checkpoint of this project says of itself, or raise checkpoint_invalid."""
    info = checkpoint.get("microplastics")
    if not isinstance(info, dict):
        raise UserError(
            f"{path} has no config and class names; use a .pth that microplastics train wrote, or "
            "name a config with --config-file.",
            code="checkpoint_invalid",
        )
    return info


def config_of(info: Mapping[str, Any], path: str, opts: Sequence[str] = ()) -> CfgNode:
    """Return the config in a checkpoint, not frozen, with ``KEY VALUE`` pairs applied.

    The text is parsed as plain YAML: it runs no code and opens no ``_BASE_``.

    Args:
        info: of :func:`checkpoint_info_of`.
        path: the checkpoint, for the messages.
        opts: alternating keys and values.

    Raises:
        UserError: checkpoint_invalid, config_invalid (a key or value that does not fit).
    """
    cfg, text = get_cfg(), info.get("config")
    try:
        if not isinstance(text, str):
            raise ValueError("it is not a text")
        table = parse_yaml(text)
        if not isinstance(table, dict) or "_BASE_" in table:
            raise ValueError("it is not a table of keys without _BASE_")
        if table.get("VERSION", cfg.VERSION) != cfg.VERSION:
            raise ValueError(f"its VERSION is not {cfg.VERSION}")
    except ValueError as error:
        raise UserError(
            f"The config in {path} is not plain YAML as microplastics writes it ({error}); {_FIX}.",
            code="checkpoint_invalid",
        ) from error
    if _NEWER_KEY not in cfg and table.get(_NEWER_KEY) == _NEUTRAL_VALUE:
        del table[_NEWER_KEY]
    if isinstance(table.get("INPUT"), dict):
        # The limit against decompression bombs is the reader's decision, not the file's.
        table["INPUT"].pop("MAX_PIXELS", None)
    with merging(cfg, f"The config in {path}"):
        cfg.merge_from_other_cfg(CfgNode(table))
        for key, number in _numbers_of_layers(cfg.MODEL):
            if number > _MAX_LAYERS:
                raise ValueError(f"{key} is {number}; expected at most {_MAX_LAYERS}")
    merge_options(cfg, opts)
    return cfg


def _numbers_of_layers(node: CfgNode) -> Iterator[tuple[str, int]]:
    """Yield the keys NUM_CONV, NUM_FC, … of a section, with their whole numbers."""
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from _numbers_of_layers(value)
        elif key.startswith("NUM_") and isinstance(value, int):
            yield key, value


def class_names_of(info: Mapping[str, Any], path: str) -> list[str] | None:
    """Return the class names in a checkpoint, ``None`` if there are none, or checkpoint_invalid."""
    names = info.get("class_names")
    listed = isinstance(names, (list, tuple))
    if names is None or (listed and not names):
        return None
    fits = listed and all(map(is_class_name, names))
    if not fits or len(set(names)) != len(names):
        raise UserError(
            f"The class names in {path} are not a list of different words; {_FIX}.",
            code="checkpoint_invalid",
        )
    return list(names)


def fiber_classes_of(info: Mapping[str, Any], path: str, class_names: Sequence[str]) -> list[str]:
    """Return the fibre classes in a checkpoint, in an older one those whose names say so.

    Args:
        info, path: as of :func:`config_of`.
        class_names: of the model.

    Raises:
        UserError: checkpoint_invalid.
    """
    names = info.get("fiber_classes")
    if names is None:
        return list(filter(is_fiber_class, class_names))
    if not isinstance(names, (list, tuple)) or any(name not in class_names for name in names):
        raise UserError(
            f"The fibre classes in {path} are {show(names)}; expected some of "
            f"{', '.join(class_names)}; {_FIX}.",
            code="checkpoint_invalid",
        )
    return list(names)


def training_side_of(info: Mapping[str, Any], path: str) -> int | None:
    """Return the shorter side of the training images in px, if a checkpoint has it.

    Args:
        info, path: as of :func:`config_of`.

    Raises:
        UserError: checkpoint_invalid.
    """
    side = info.get("training_side")
    if side is not None and not (type(side) is int and 0 < side < 2**31):
        raise UserError(
            f"The side of training images in {path} is {show(side)}; expected px; {_FIX}.",
            code="checkpoint_invalid",
        )
    return side


def score_thresholds_of(
    info: Mapping[str, Any], path: str, class_names: Sequence[str]
) -> dict[str, float] | None:
    """Return the score thresholds by class that a checkpoint carries, or ``None``.

    Args:
        info, path: as of :func:`config_of`.
        class_names: of the model or data set; not every class needs a threshold.

    Raises:
        UserError: checkpoint_invalid (not numbers from 0 to 1 by class name), classes_mismatch.
    """
    thresholds = info.get(SCORE_THRESHOLDS)
    if thresholds is None:
        return None
    fix = (
        "choose them again with microplastics thresholds, or give others: --confidence-threshold, "
        "in evaluation TEST.COUNTING.CLASS_SCORE_THRESH"
    )
    if not isinstance(thresholds, Mapping) or not all(map(is_score, thresholds.values())):
        raise UserError(
            f"The score thresholds in {path} are {show(thresholds)}; expected a number from 0 to 1 "
            f"by class name; {fix}.",
            code="checkpoint_invalid",
        )
    others = [name for name in thresholds if name not in class_names]
    if others:
        raise UserError(
            f"The score thresholds in {path} are for {show(others)}, not for "
            f"{', '.join(class_names)}; {fix}.",
            code="classes_mismatch",
        )
    return {name: float(value) for name, value in thresholds.items()}


def is_score(value: object) -> bool:
    """Return whether a value is a number from 0 to 1."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1


def optimizer_state(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Any]:
    """Return momentum and similar state by parameter name.

    torch numbers parameters by their place in the groups, which Detectron2's versions form
    differently. Learning rates are left out: the schedule sets them from the iteration.
    """
    return {
        name: dict(optimizer.state[parameter])
        for name, parameter in model.named_parameters()
        if parameter in optimizer.state
    }


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, model: nn.Module, state: dict[str, Any]
) -> None:
    """Restore :func:`optimizer_state`; checkpoint_mismatch if it belongs to another model."""
    parameters = dict(model.named_parameters())
    if unknown := sorted(set(state) - set(parameters)):
        raise UserError(
            f"The checkpoint's optimizer state belongs to another model ({unknown[0]} is unknown "
            "here); resume with the config that the training started with.",
            code="checkpoint_mismatch",
        )
    for name, values in state.items():
        parameter = parameters[name]
        optimizer.state[parameter] = {
            # AdamW's counter of steps stays on the CPU.
            key: (
                value.to("cpu" if key == "step" else parameter.device, copy=True)
                if torch.is_tensor(value)
                else value
            )
            for key, value in values.items()
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
            data = _read_pickle(path)
        else:
            _check_packed(path)
            data = torch.load(path, map_location="cpu", weights_only=True)
            if not isinstance(data, dict):
                raise ValueError("it is not a table of weights")
            data = data if "model" in data else {"model": data}
        if not 0 < len(data["model"]) <= _MAX_TENSORS or not all(
            isinstance(name, str) and isinstance(value, (torch.Tensor, np.ndarray))
            for name, value in data["model"].items()
        ):
            raise ValueError("it is not a table of weights")
        if TELLING_NAMES <= data["model"].keys():
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


def _check_packed(path: str) -> None:
    """Refuse a file that unpacks to more than it holds: torch does not pack what it writes."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as file:
            sizes = [entry.file_size for entry in file.infolist()]
        if len(sizes) > 2 * _MAX_TENSORS or sum(sizes) > os.path.getsize(path):
            raise ValueError(f"it is compressed, or has {len(sizes)} parts")


def _read_pickle(path: str) -> Any:
    """Read the pickle of a model zoo, with the weights as arrays."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        data = _with_model(read_pickle(content))
    data["model"] = {name: array_of(value) for name, value in data["model"].items()}
    return data


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
