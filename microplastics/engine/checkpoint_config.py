"""What a checkpoint says of itself, read as words of a stranger: config, classes, thresholds."""

import logging
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from detectron2.config import CfgNode

from microplastics.config import get_cfg, load_config
from microplastics.errors import UserError

logger = logging.getLogger(__name__)

_MAX_CHARACTERS = 1_000_000
_MAX_VALUES = 100_000
_MEND = "name a config with --config-file, or use another checkpoint"
_CHOOSE = (
    "choose them anew with tools/choose_threshold.py, or give others: --confidence-threshold, in "
    "evaluation TEST.COUNTING.CLASS_SCORE_THRESH"
)

SCORE_THRESHOLDS = "score_thresholds"
"""Key of the score thresholds in what a checkpoint says of itself."""

# Keys that Detectron2 main has and 0.5 has not, with the values that mean what 0.5 does.
_MAIN_ONLY = {
    "MODEL.ROI_BOX_HEAD.USE_FED_LOSS": False,
    "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE": False,
    "MODEL.ROI_BOX_HEAD.FED_LOSS_FREQ_WEIGHT_POWER": 0.5,
    "MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CLASSES": 50,
    "DATALOADER.REPEAT_SQRT": True,
    "SOLVER.BASE_LR_END": 0.0,
    "SOLVER.NUM_DECAYS": 3,
    "SOLVER.RESCALE_INTERVAL": False,
    "FLOAT32_PRECISION": "",
}


def config_of(info: Mapping[str, Any], path: str, opts: Sequence[str] = ()) -> CfgNode:
    """The config that a checkpoint was trained with, and ``KEY VALUE`` pairs on top of it.

    The text is parsed as plain YAML: it runs no code, and opens no ``_BASE_``.

    Args:
        info: what :func:`microplastics.engine.checkpoint.checkpoint_info` gives.
        path: the checkpoint, for the messages.
        opts: alternating keys and values.

    Returns:
        The config, not frozen.

    Raises:
        UserError: no text, not YAML, a key that is unknown here, a value of another type.
    """
    table = _parse(info.get("config"), path)
    if "_BASE_" in table:
        raise UserError(f"The config in {path} names a _BASE_ outside of it; {_MEND}.")
    cfg = get_cfg()
    _drop_keys_of_main(table, cfg)
    if isinstance(table.get("INPUT"), dict):
        # What guards the reader against bombs is the reader's own to lift.
        table["INPUT"].pop("MAX_PIXELS", None)
    try:
        cfg.merge_from_other_cfg(CfgNode(table))
    except KeyError as error:
        key = str(error.args[0]).rpartition(" ")[2]
        raise UserError(
            f"The config in {path} sets {key}, which is not a config key of this version; use the "
            "version that wrote it, or name a config with --config-file."
        ) from error
    except (
        AttributeError,
        AssertionError,
        MemoryError,
        RecursionError,
        SyntaxError,
        TypeError,
        ValueError,
    ) as error:
        # yacs evaluates strings as Python literals, and asserts the types of keys.
        raise UserError(
            f"The config in {path} holds a value that does not fit ({_short(error)}); {_MEND}."
        ) from error
    if cfg.VERSION != get_cfg().VERSION:
        raise UserError(f"The config in {path} is of VERSION {cfg.VERSION}; {_MEND}.")
    with tempfile.TemporaryDirectory() as folder:
        # The one place that applies pairs works on a file.
        file_name = os.path.join(folder, "config.yaml")
        with open(file_name, "w", encoding="utf-8") as file:
            file.write(cfg.dump())
        return load_config(file_name, opts)


def class_names_of(info: Mapping[str, Any], path: str) -> list[str] | None:
    """The class names in a checkpoint; ``None`` where it has none.

    Raises:
        UserError: they are no list of different words.
    """
    names = info.get("class_names")
    if names is None or (isinstance(names, (list, tuple)) and not names):
        return None
    fits = isinstance(names, (list, tuple)) and all(isinstance(n, str) and n for n in names)
    if not fits or len(set(names)) != len(names):
        raise UserError(f"The class names in {path} are no list of different words; {_MEND}.")
    return list(names)


def score_thresholds_of(
    info: Mapping[str, Any], path: str, class_names: Sequence[str]
) -> dict[str, float] | None:
    """The score thresholds that were chosen on a validation set, or ``None``.

    Args:
        info: what :func:`microplastics.engine.checkpoint.checkpoint_info` gives.
        path: the checkpoint, for the messages.
        class_names: of the model or data set that they are for; some may have none.

    Raises:
        UserError: they are no numbers from 0 to 1 by class name, or some are for other classes.
    """
    thresholds = info.get(SCORE_THRESHOLDS)
    if thresholds is None:
        return None
    if not isinstance(thresholds, Mapping):
        raise UserError(f"The score thresholds in {path} are not by class name; {_CHOOSE}.")
    others = [str(name)[:40] for name in thresholds if name not in class_names]
    if others:
        raise UserError(
            f"The score thresholds in {path} are for {', '.join(others[:10])}, not for "
            f"{', '.join(class_names)}; {_CHOOSE}."
        )
    for name, value in thresholds.items():
        if not is_score(value):
            raise UserError(
                f"The score threshold of {name} in {path} is {str(value)[:40]}, not a number from "
                f"0 to 1; {_CHOOSE}."
            )
    return {name: float(value) for name, value in thresholds.items()}


def is_score(value: object) -> bool:
    """Whether a value is a number from 0 to 1."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value) and 0 <= value <= 1


def _parse(text: object, path: str) -> dict[str, Any]:
    if not isinstance(text, str) or len(text) > _MAX_CHARACTERS:
        raise UserError(f"{path} carries no config that can be read; {_MEND}.")
    try:
        # Aliases share a node, so that a few lines can stand for billions of values.
        if _values(yaml.compose(text, yaml.SafeLoader), {}) > _MAX_VALUES:
            raise UserError(f"The config in {path} holds too many values; {_MEND}.")
        table = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError, TypeError, OverflowError) as error:
        raise UserError(
            f"The config in {path} is not plain YAML ({_short(error)}); {_MEND}."
        ) from error
    if not isinstance(table, dict):
        raise UserError(f"The config in {path} is not a table of keys; {_MEND}.")
    return table


def _values(node: yaml.Node | None, known: dict[int, int]) -> int:
    """Values below a YAML node with its aliases written out; infinite for one within itself."""
    if node is None or isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        known[id(node)] = _MAX_VALUES + 1
        children = node.value
        if isinstance(node, yaml.MappingNode):
            children = [child for pair in node.value for child in pair]
        known[id(node)] = 1 + sum(_values(child, known) for child in children)
    return known[id(node)]


def _drop_keys_of_main(table: dict[str, Any], cfg: CfgNode) -> None:
    """Take out of a config of Detectron2 main what means the same when 0.5 leaves it out."""
    for key, value in _MAIN_ONLY.items():
        *sections, last = key.split(".")
        theirs, ours = table, cfg
        for section in sections:
            theirs = theirs.get(section) if isinstance(theirs, dict) else None
            ours = ours[section]
        if last not in ours and isinstance(theirs, dict) and theirs.get(last) == value:
            del theirs[last]


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:160].rstrip(".") or type(error).__name__
