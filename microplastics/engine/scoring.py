"""Scores and score thresholds of a checkpoint."""

import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import detectron2
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils import comm
from tabulate import tabulate
from torch import nn

import microplastics
from microplastics.data.catalog import fiber_classes
from microplastics.engine.checkpoint import (
    ORIGIN_KEY,
    SCORE_THRESHOLDS,
    TrainingCheckpointer,
    checkpoint_info_of,
    choose_weights,
    class_names_of,
    fetch_weights,
    read_weights,
    score_thresholds_of,
    write_checkpoint,
)
from microplastics.engine.defaults import finalize_config
from microplastics.engine.hooks import flatten_results
from microplastics.engine.trainer import Trainer, evaluation_folders
from microplastics.evaluation.counting import (
    CURVES_FILE,
    CountingEvaluator,
    Pooled,
    curves,
    write_table,
)
from microplastics.evaluation.thresholds import DEFAULT, Choice, Metric, choose_thresholds
from microplastics.evaluation.validation import validate
from microplastics.modeling.test_time_augmentation import AugmentedRCNN
from microplastics.utils.errors import UserError, check_option
from microplastics.utils.io import check_output_dir, sha256_of, write_json, write_rows

logger = logging.getLogger(__name__)

ABOUT_FILE = "evaluation.json"
# Detectron2's own MODEL.ROI_HEADS.SCORE_THRESH_TEST: --eval-only sees nothing below it, either.
LOWEST_SCORE = 0.05

_FIGURES = (
    *("AP", "AP50"),
    *("count_true", "count_predicted", "count_error_pct", "F1", "F1_tol1", "F1_tol2"),
    *("length_bias", "length_MAE", "area_MAPE"),
)


class Outcome(NamedTuple):
    """Result of :func:`choose_and_store`: a choice for each class, files and number of images."""

    choices: list[Choice]
    checkpoint: str
    curves: str
    num_images: int


def evaluate(
    cfg: CfgNode,
    weights_given: bool = False,
    finish: Callable[[Path, str], Any] | None = None,
) -> OrderedDict:
    """Score weights on DATASETS.TEST and write the figures to OUTPUT_DIR/inference.

    Particles count from the score thresholds of the checkpoint, if it has some. With
    ``TEST.AUG.ENABLED`` predictions under test-time augmentation are scored as well, under names
    that end in ``_TTA``.

    Args:
        cfg: the config, set up.
        weights_given: MODEL.WEIGHTS was given on the command line.
        finish: called for each data set with its folder, in which :data:`ABOUT_FILE` says what was
            scored, and its name; draws what people look at.

    Raises:
        UserError: weights are missing or do not fit, or the data set is broken.
    """
    cfg = finalize_config(choose_weights(cfg, weights_given), splits=("TEST",))
    class_names = MetadataCatalog.get(cfg.DATASETS.TEST[0]).get("thing_classes", [])
    model, info = _load(cfg, class_names)
    cfg = _counting_config(cfg, class_names, info)
    results = Trainer.test(cfg, model)
    folders = ["inference"]
    if cfg.TEST.AUG.ENABLED:
        results.update(_test_with_augmentation(cfg, model))
        folders.append("inference_TTA")
    if comm.is_main_process():
        _write(results, cfg, class_names)
        about = _about(cfg, info, class_names)
        for folder in folders:
            for name, path in evaluation_folders(cfg, folder).items():
                described = {**about, **_about_data(cfg, name), "augmented": folder != "inference"}
                write_json(os.path.join(path, ABOUT_FILE), described, indent=2)
                if finish is not None:
                    finish(Path(path), name)
    return results


def _about(cfg: CfgNode, info: dict[str, Any], class_names: Sequence[str]) -> dict[str, Any]:
    """Say what is scored, and how."""
    counting, weights = cfg.TEST.COUNTING, cfg.MODEL.WEIGHTS
    thresholds = counting.CLASS_SCORE_THRESH if counting.ENABLED and cfg.MODEL.MASK_ON else []
    origin = info.get(ORIGIN_KEY)
    # Of an untrusted file: nothing but what choose_and_store writes.
    kinds = {"metric": str, "images": int} if isinstance(origin, dict) else {}
    chosen = {k: origin[k] for k, kind in kinds.items() if isinstance(origin.get(k), kind)}
    return {
        "microplastics": microplastics.__version__,
        "detectron2": detectron2.__version__,
        "torch": torch.__version__,
        "checkpoint": weights,
        "checkpoint_sha256": sha256_of(fetch_weights(weights)),
        "class_names": list(class_names),
        "score_thresholds": dict(zip(class_names, thresholds, strict=False)),
        "score_thresholds_origin": chosen,
        "lowest_score": cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST,
        "detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
        "max_overlap": counting.MAX_OVERLAP,
    }


def _about_data(cfg: CfgNode, name: str) -> dict[str, Any]:
    metadata = MetadataCatalog.get(name)
    images = metadata.get("image_root", "")
    return {
        "dataset": name,
        # The page can be made again from every folder.
        "annotations": os.path.abspath(metadata.json_file),
        "images": images and os.path.abspath(images),
        "fiber_classes": fiber_classes(cfg, name),
    }


def _load(cfg: CfgNode, class_names: Sequence[str]) -> tuple[nn.Module, dict[str, Any]]:
    """Return the model with MODEL.WEIGHTS, and what their file says of itself."""
    model = Trainer.build_model(cfg)
    return model, TrainingCheckpointer(model, cfg, class_names).load_weights(new_classes=False)


def _counting_config(cfg: CfgNode, class_names: list[str], info: dict[str, Any]) -> CfgNode:
    """Return a copy whose counting measures sizes and has the thresholds of the checkpoint."""
    cfg = cfg.clone()
    cfg.defrost()
    counting = cfg.TEST.COUNTING
    if counting.SIZES == "eval_only":
        counting.SIZES = "always"
    if counting.ENABLED and cfg.MODEL.MASK_ON and not counting.CLASS_SCORE_THRESH:
        stored = score_thresholds_of(info, cfg.MODEL.WEIGHTS, class_names) or {}
        if stored:
            logger.info("Particles count from the score thresholds of %s.", cfg.MODEL.WEIGHTS)
        thresholds = [stored.get(name, counting.SCORE_THRESH) for name in class_names]
        counting.CLASS_SCORE_THRESH = thresholds
    numbers = [t for t in counting.CLASS_SCORE_THRESH if isinstance(t, (int, float))]
    lowest = min(numbers, default=1.0)
    if counting.ENABLED and lowest < cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST:
        logger.warning(
            "The score threshold %g is below MODEL.ROI_HEADS.SCORE_THRESH_TEST %g, which removes "
            "the particles between.",
            lowest,
            cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST,
        )
    cfg.freeze()
    return cfg


def _test_with_augmentation(cfg: CfgNode, model: nn.Module) -> OrderedDict:
    """Score test-time augmentation: boxes and masks of flips and sizes merged."""
    logger.info("Test-time augmentation at %s px …", cfg.TEST.AUG.MIN_SIZES)
    evaluators = Trainer.build_evaluators(cfg, "inference_TTA")
    model = AugmentedRCNN(cfg, model.eval())
    cfg = cfg.clone()
    cfg.defrost()
    cfg.TEST.VAL_LOSS.ENABLED = False
    scores = Trainer.test(cfg, model, evaluators)
    if len(cfg.DATASETS.TEST) == 1:
        scores = {"": scores}
    return OrderedDict(
        (f"{name}/{task}_TTA".removeprefix("/"), figures)
        for name, tasks in scores.items()
        for task, figures in tasks.items()
    )


def _write(results: OrderedDict, cfg: CfgNode, class_names: list[str]) -> None:
    folder = os.path.join(cfg.OUTPUT_DIR, "inference")
    metrics = flatten_results(results)
    write_json(os.path.join(folder, "metrics.json"), metrics, indent=2)
    rows = per_class_table(metrics, class_names)
    write_rows(os.path.join(folder, "per_class.csv"), rows)
    table = tabulate(rows, headers="keys", tablefmt="pipe", floatfmt=".1f")
    logger.info("Scores of %s:\n%s\nWritten to %s", cfg.MODEL.WEIGHTS, table, folder)
    if "validation/total_loss" in metrics:
        logger.info("Validation loss %.4f", metrics["validation/total_loss"])


def per_class_table(metrics: dict[str, float], class_names: list[str]) -> list[dict]:
    """Make one row a class, if there are several, and a last row over all, of flat metrics."""
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


def choose_and_store(cfg: CfgNode, metric: Metric, weights: str = "", output: str = "") -> Outcome:
    """Score a checkpoint on all of DATASETS.TEST, choose the thresholds and store them in it.

    The curves are written to OUTPUT_DIR/thresholds. All else in the checkpoint is unchanged. With
    ``TEST.AUG.ENABLED`` the thresholds are those for test-time augmentation.

    Args:
        cfg: the config that the checkpoint was trained with.
        metric: ``"f1"`` or ``"count"``.
        weights: the checkpoint; if empty, ``model_best.pth`` of OUTPUT_DIR or else MODEL.WEIGHTS.
        output: ``.pth`` to write; the checkpoint itself if empty.

    Raises:
        UserError: weights or data do not fit, or a file cannot be written.
    """
    cfg = _prepare(cfg, weights)
    path = fetch_weights(cfg.MODEL.WEIGHTS)
    _check_target(cfg, path, output)
    class_names = MetadataCatalog.get(cfg.DATASETS.TEST[0]).get("thing_classes", [])
    checkpoint = read_own_checkpoint(path, class_names)
    digest = sha256_of(path)
    pooled = _score(cfg, class_names)
    choices = choose_thresholds(pooled, class_names, metric, LOWEST_SCORE)
    table = os.path.join(cfg.OUTPUT_DIR, "thresholds", CURVES_FILE)
    write_table(table, curves(pooled, class_names))
    if sha256_of(path) != digest:
        raise UserError(
            f"{path} was changed meanwhile; run again when its training is over.",
            code="checkpoint_mismatch",
        )
    chosen = {choice.class_name: choice.threshold for choice in choices}
    origin = {
        "metric": metric,
        "datasets": [str(name) for name in cfg.DATASETS.TEST],
        "images": pooled.num_images,
        "kept_default": [choice.class_name for choice in choices if choice.kept_because],
        "default": DEFAULT,
    }
    store_thresholds(checkpoint, output or path, chosen, origin)
    return Outcome(choices, str(output or path), table, pooled.num_images)


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


def _check_target(cfg: CfgNode, path: str, output: str) -> None:
    """Check the output before minutes of prediction."""
    if not output and path != cfg.MODEL.WEIGHTS:
        raise UserError(
            f"{cfg.MODEL.WEIGHTS} is not a local file; name the checkpoint to write with --output.",
            code="option_missing",
        )
    fits = not output or Path(output).suffix == ".pth"
    check_option(fits, "--output", output, "a name that ends in .pth")
    for folder in (os.path.dirname(output or path) or ".", cfg.OUTPUT_DIR):
        check_output_dir(folder)


def _score(cfg: CfgNode, class_names: Sequence[str]) -> Pooled:
    """Judge all images of DATASETS.TEST."""
    model, _ = _load(cfg, class_names)
    if cfg.TEST.AUG.ENABLED:
        model = AugmentedRCNN(cfg, model.eval())
    records = []
    for number, name in enumerate(cfg.DATASETS.TEST):
        overlap = cfg.TEST.COUNTING.MAX_OVERLAP
        evaluator = CountingEvaluator(name, measure_sizes=False, max_overlap=overlap)
        validate(model, Trainer.build_test_loader(cfg, name), evaluator, cfg)
        # Different sets may use the same image ids.
        records += [{**each, "image_id": (number, each["image_id"])} for each in evaluator.records]
    return Pooled(records)


def read_own_checkpoint(path: str, class_names: Sequence[str]) -> dict[str, Any]:
    """Read a checkpoint of this project's, or raise checkpoint_invalid or classes_mismatch."""
    checkpoint = read_weights(path)
    names = class_names_of(checkpoint_info_of(checkpoint, path), path) or ["unknown"]
    if names != list(class_names):
        raise UserError(
            f"{path} was trained on the classes {', '.join(names)}, but the data set has "
            f"{', '.join(class_names)}; name its own validation set in DATASETS.TEST.",
            code="classes_mismatch",
        )
    return checkpoint


def store_thresholds(
    checkpoint: dict[str, Any], output: str, thresholds: dict[str, float], origin: dict[str, Any]
) -> None:
    """Write a checkpoint with score thresholds and how they were chosen, else unchanged."""
    info = {**checkpoint["microplastics"], SCORE_THRESHOLDS: thresholds, ORIGIN_KEY: origin}
    write_checkpoint({**checkpoint, "microplastics": info}, output)
