"""Scores and score thresholds of a checkpoint."""

import dataclasses
import logging
import os
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import inference_on_dataset
from detectron2.modeling import GeneralizedRCNNWithTTA
from detectron2.utils import comm
from tabulate import tabulate

from microplastics.engine.checkpoint import (
    SCORE_THRESHOLDS,
    TrainingCheckpointer,
    score_thresholds_of,
    write_checkpoint,
)
from microplastics.engine.defaults import check_output_dir, finalize_config
from microplastics.engine.hooks import flatten_results
from microplastics.engine.trainer import Trainer
from microplastics.engine.weights import choose_weights, fetch_weights, read_weights, sha256_of
from microplastics.evaluation.counting import (
    CURVES_FILE,
    CountingEvaluator,
    Pooled,
    curves,
    pool,
    write_table,
)
from microplastics.evaluation.thresholds import DEFAULT, Choice, Metric, choose_thresholds
from microplastics.evaluation.validation import validate
from microplastics.utils.errors import UserError
from microplastics.utils.io import write_json, write_rows

logger = logging.getLogger(__name__)

ORIGIN_KEY = f"{SCORE_THRESHOLDS}_origin"
# Detectron2's own MODEL.ROI_HEADS.SCORE_THRESH_TEST: --eval-only sees nothing below it, either.
LOWEST_SCORE = 0.05

_FIGURES = (
    *("AP", "AP50"),
    *("count_true", "count_predicted", "count_error_pct", "F1", "F1_tol1", "F1_tol2"),
    *("length_bias", "length_MAE", "area_MAPE"),
)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Result of :func:`choose_and_store`.

    Attributes:
        choices: one for each class.
        checkpoint: the file with the thresholds.
        curves: CSV of the figures over the threshold.
        num_images: images that the thresholds were chosen on.
    """

    choices: list[Choice]
    checkpoint: str
    curves: str
    num_images: int


def evaluate(
    cfg: CfgNode,
    weights_given: bool = False,
    trainer_class=Trainer,
    draw_curves: Callable[[Path, Path, dict[str, float]], Any] | None = None,
) -> OrderedDict:
    """Score weights on DATASETS.TEST and write the figures to OUTPUT_DIR/inference.

    Writes ``metrics.json`` (flat names to numbers), ``per_class.csv``,
    ``coco_instances_results.json`` and the tables of counting. Particles count from the score
    thresholds of the checkpoint, if it has some. With ``TEST.AUG.ENABLED`` predictions under
    test-time augmentation are scored as well, under names that end in ``_TTA``.

    Args:
        cfg: the config, set up.
        weights_given: MODEL.WEIGHTS was given on the command line.
        trainer_class: its ``build_model`` and ``test`` are used.
        draw_curves: called on rank 0 for each table of threshold curves: its path, the path for a
            picture, and the score threshold of each class, as
            :func:`microplastics.visualization.curves.plot_counting_curves` takes them.

    Returns:
        Nested results (``{}`` on ranks above 0).

    Raises:
        UserError: weights are missing or do not fit, or the data set is broken.
    """
    cfg = finalize_config(choose_weights(cfg, weights_given), splits=("TEST",))
    model = trainer_class.build_model(cfg)
    class_names = MetadataCatalog.get(cfg.DATASETS.TEST[0]).get("thing_classes", [])
    TrainingCheckpointer(model, cfg, class_names).load_weights(new_classes=False)
    cfg = _counting_config(cfg, class_names)
    results = trainer_class.test(cfg, model)
    if cfg.TEST.AUG.ENABLED:
        results.update(_test_with_augmentation(cfg, model, trainer_class))
    if comm.is_main_process():
        _write(results, cfg, class_names)
        if draw_curves is not None and cfg.TEST.COUNTING.ENABLED:
            thresholds = cfg.TEST.COUNTING.CLASS_SCORE_THRESH or (
                [cfg.TEST.COUNTING.SCORE_THRESH] * len(class_names)
            )
            marked = dict(zip(class_names, thresholds, strict=True))
            for table in sorted(Path(cfg.OUTPUT_DIR, "inference").rglob(CURVES_FILE)):
                draw_curves(table, table.with_suffix(".png"), marked)
    return results


def _counting_config(cfg: CfgNode, class_names: list[str]) -> CfgNode:
    """Return a copy whose counting measures sizes and has the thresholds of the checkpoint."""
    cfg = cfg.clone()
    cfg.defrost()
    counting = cfg.TEST.COUNTING
    if counting.SIZES == "eval_only":
        counting.SIZES = "always"
    if counting.ENABLED and cfg.MODEL.MASK_ON and not counting.CLASS_SCORE_THRESH:
        stored = stored_thresholds(fetch_weights(cfg.MODEL.WEIGHTS), class_names)
        if stored:
            logger.info("Particles count from the score thresholds of %s.", cfg.MODEL.WEIGHTS)
            thresholds = [stored.get(name, counting.SCORE_THRESH) for name in class_names]
            counting.CLASS_SCORE_THRESH = thresholds
    given = counting.CLASS_SCORE_THRESH or [counting.SCORE_THRESH]
    lowest = min((t for t in given if isinstance(t, (int, float))), default=1.0)
    if counting.ENABLED and lowest < cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST:
        logger.warning(
            "The score threshold %g is below MODEL.ROI_HEADS.SCORE_THRESH_TEST %g, which removes "
            "the particles between.",
            lowest,
            cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST,
        )
    cfg.freeze()
    return cfg


def _test_with_augmentation(cfg: CfgNode, model, trainer_class) -> OrderedDict:
    """Score Detectron2's test-time augmentation (boxes and masks of flips and scales merged)."""
    logger.info("Test-time augmentation at %s px …", cfg.TEST.AUG.MIN_SIZES)
    model = GeneralizedRCNNWithTTA(cfg, model.eval())
    results = OrderedDict()
    for name in cfg.DATASETS.TEST:
        folder = os.path.join(cfg.OUTPUT_DIR, "inference_TTA")
        if len(cfg.DATASETS.TEST) > 1:
            folder = os.path.join(folder, "".join(c if c.isalnum() else "_" for c in name))
        evaluator = trainer_class.build_evaluator(cfg, name, folder)
        # Not Detectron2's, which would read 16-bit images as white.
        loader = trainer_class.build_test_loader(cfg, name)
        scores = inference_on_dataset(model, loader, evaluator) or {}
        prefix = f"{name}/" if len(cfg.DATASETS.TEST) > 1 else ""
        results.update({f"{prefix}{task}_TTA": figures for task, figures in scores.items()})
    return results


def _write(results: OrderedDict, cfg: CfgNode, class_names: list[str]) -> None:
    folder = os.path.join(cfg.OUTPUT_DIR, "inference")
    metrics = flatten_results(results)
    write_json(os.path.join(folder, "metrics.json"), metrics, indent=2)
    rows = per_class_table(metrics, class_names)
    write_rows(os.path.join(folder, "per_class.csv"), rows)
    logger.info(
        "Scores of %s:\n%s\nWritten to %s",
        cfg.MODEL.WEIGHTS,
        tabulate(rows, headers="keys", tablefmt="pipe", floatfmt=".1f"),
        folder,
    )
    if "validation/total_loss" in metrics:
        logger.info("Validation loss %.4f", metrics["validation/total_loss"])


def per_class_table(metrics: dict[str, float], class_names: list[str]) -> list[dict]:
    """Make one row a class, if there are several, and a last row over all, in percent.

    Columns: AP and AP50 of boxes and masks; for counting the numbers of true and predicted
    particles, the count error, F1, and the errors of lengths and areas.

    Args:
        metrics: flat metrics.
        class_names: the data set's classes.
    """
    rows = []
    for name in [*class_names, None]:
        row = {"class": name or "all"}
        for key, value in metrics.items():
            for figure in _FIGURES:
                # Class names may contain slashes, so the end of the key decides.
                end = f"/{figure}-{name}" if name else f"/{figure}"
                if key.endswith(end):
                    row[f"{key.removesuffix(end)} {figure.removeprefix('count_')}"] = value
        # With a single class, Detectron2 gives only the figures over all.
        if name is None or any(column.endswith(("AP", "AP50")) for column in row):
            rows.append(row)
    return rows


def choose_and_store(
    cfg: CfgNode, metric: Metric, weights: str = "", output: str = "", trainer_class=Trainer
) -> Outcome:
    """Score a checkpoint on DATASETS.TEST, choose the thresholds and store them in it.

    The images of all sets of DATASETS.TEST count together. The curves are written to
    OUTPUT_DIR/thresholds.

    Args:
        cfg: the config that the checkpoint was trained with.
        metric: ``"f1"`` or ``"count"``.
        weights: the checkpoint; if empty, ``model_best.pth`` of OUTPUT_DIR or else MODEL.WEIGHTS.
        output: ``.pth`` to write; the checkpoint itself if empty.
        trainer_class: its ``build_model`` and ``build_test_loader`` are used.

    Raises:
        UserError: weights or data do not fit, or a file cannot be written.
    """
    cfg = _prepare(cfg, weights)
    path = fetch_weights(cfg.MODEL.WEIGHTS)
    _check_target(cfg, path, output)
    class_names = MetadataCatalog.get(cfg.DATASETS.TEST[0]).get("thing_classes", [])
    checkpoint = read_own_checkpoint(path, class_names)
    digest = sha256_of(path)
    pooled = _score(cfg, class_names, trainer_class)
    choices = choose_thresholds(pooled, class_names, metric, LOWEST_SCORE)
    chosen = {choice.class_name: choice.threshold for choice in choices}
    table = os.path.join(cfg.OUTPUT_DIR, "thresholds", CURVES_FILE)
    write_table(table, curves(pooled, class_names))
    if sha256_of(path) != digest:
        raise UserError(
            f"{path} was changed meanwhile; run again when its training is over.",
            code="checkpoint_mismatch",
        )
    origin = {
        "metric": metric,
        "datasets": [str(name) for name in cfg.DATASETS.TEST],
        "images": pooled.num_images,
        "kept_default": [choice.class_name for choice in choices if choice.kept_because],
        "default": DEFAULT,
    }
    store_thresholds(checkpoint, output or path, chosen, origin)
    return Outcome(choices, str(output or path), table, pooled.num_images)


def _check_target(cfg: CfgNode, path: str, output: str) -> None:
    """Check the output before minutes of prediction."""
    if not output and path != cfg.MODEL.WEIGHTS:
        raise UserError(
            f"{cfg.MODEL.WEIGHTS} is not a local file; name the checkpoint to write with --output.",
            code="option_missing",
        )
    if output and Path(output).suffix != ".pth":
        raise UserError(
            f"--output is {output}; expected a name that ends in .pth.", code="option_invalid"
        )
    for folder in (os.path.dirname(output or path) or ".", cfg.OUTPUT_DIR):
        check_output_dir(folder)


def _score(cfg: CfgNode, class_names: Sequence[str], trainer_class) -> Pooled:
    """Judge all images of DATASETS.TEST."""
    model = trainer_class.build_model(cfg)
    TrainingCheckpointer(model, cfg, class_names).load_weights(new_classes=False)
    records = []
    for number, name in enumerate(cfg.DATASETS.TEST):
        evaluator = CountingEvaluator(
            name,
            measure_sizes=False,
            distributed=False,
            max_overlap=cfg.TEST.COUNTING.MAX_OVERLAP,
        )
        validate(model, trainer_class.build_test_loader(cfg, name), evaluator, cfg)
        # Different sets may use the same image ids.
        records += [
            {**record, "image_id": (number, record["image_id"])} for record in evaluator.records
        ]
    return pool(records)


def _prepare(cfg: CfgNode, weights: str) -> CfgNode:
    """Return the config of a pass over the validation images down to the lowest score."""
    cfg = cfg.clone()
    cfg.defrost()
    if weights:
        cfg.MODEL.WEIGHTS, cfg.MODEL.WEIGHTS_SHA256 = weights, ""
    if not cfg.MODEL.MASK_ON:
        raise UserError(
            "MODEL.MASK_ON is False, but thresholds are chosen by matching masks; use a config "
            "with masks.",
            code="config_invalid",
        )
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = LOWEST_SCORE
    cfg.TEST.VAL_LOSS.ENABLED = False
    cfg = choose_weights(cfg, weights_given=bool(weights))
    return finalize_config(cfg, splits=("TEST",))


def stored_thresholds(path: str | os.PathLike, class_names: Sequence[str]) -> dict[str, float]:
    """Read the score thresholds of a checkpoint, checked as :func:`score_thresholds_of` does.

    Args:
        path: a local file that :func:`microplastics.engine.weights.read_weights` accepts.
        class_names: of the data set or model.

    Returns:
        By class name; empty if there are none.

    Raises:
        UserError: see :func:`score_thresholds_of`.
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
        class_names: the ones that it must have.

    Raises:
        UserError: checkpoint_invalid (unreadable, or without class names), classes_mismatch.
    """
    checkpoint = read_weights(path)
    info = checkpoint.get("microplastics")
    if not isinstance(info, dict) or "class_names" not in info:
        raise UserError(
            f"{path} has no class names, so thresholds cannot be stored in it; use a .pth that "
            "microplastics train wrote.",
            code="checkpoint_invalid",
        )
    if list(info["class_names"]) != list(class_names):
        raise UserError(
            f"{path} was trained on the classes {', '.join(map(str, info['class_names']))}, but "
            f"the data set has {', '.join(class_names)}; name its own validation set in "
            "DATASETS.TEST.",
            code="classes_mismatch",
        )
    return checkpoint


def store_thresholds(
    checkpoint: dict[str, Any],
    output: str | os.PathLike,
    thresholds: dict[str, float],
    origin: dict[str, Any],
) -> None:
    """Write a checkpoint with score thresholds; all else in it is unchanged.

    Args:
        checkpoint: of :func:`read_own_checkpoint`; not one that a model has used up.
        output: the ``.pth`` to write, maybe the file that was read.
        thresholds: by class name, in [0, 1].
        origin: how they were chosen, plain values.

    Raises:
        UserError: not_writable; an existing file is untouched.
    """
    info = {**checkpoint["microplastics"], SCORE_THRESHOLDS: dict(thresholds), ORIGIN_KEY: origin}
    write_checkpoint({**checkpoint, "microplastics": info}, output)
