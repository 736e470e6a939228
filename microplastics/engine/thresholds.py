"""Choosing score thresholds: a checkpoint scored once on validation images, then written anew."""

import dataclasses
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from microplastics.data.loader import check_datasets
from microplastics.engine.checkpoint import TrainingCheckpointer
from microplastics.engine.evaluate import choose_weights
from microplastics.engine.setup import check_output_dir, resolve_device
from microplastics.engine.stored_thresholds import read_own_checkpoint, store_thresholds
from microplastics.engine.trainer import Trainer
from microplastics.engine.weights import fetch_weights, sha256_of
from microplastics.errors import UserError
from microplastics.evaluation.counting import CURVES_FILE, CountingEvaluator
from microplastics.evaluation.counting_curves import curves, write_rows
from microplastics.evaluation.counting_records import Pooled, pool
from microplastics.evaluation.thresholds import DEFAULT, Choice, Metric, choose_thresholds
from microplastics.evaluation.validation import validate
from microplastics.report.counting import plot_counting_curves

logger = logging.getLogger(__name__)

# Detectron2's own MODEL.ROI_HEADS.SCORE_THRESH_TEST: --eval-only sees nothing below it, either.
LOWEST_SCORE = 0.05
PICTURE_FILE = "counting_curves.png"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What :func:`choose_and_store` did.

    Attributes:
        choices: one for each class.
        checkpoint: the file that holds the thresholds.
        curves, picture: figures over the threshold, as CSV and PNG.
        num_images: images that they were chosen on.
    """

    choices: list[Choice]
    checkpoint: str
    curves: str
    picture: str
    num_images: int


def choose_and_store(
    cfg: CfgNode, metric: Metric, weights: str = "", output: str = "", trainer_class=Trainer
) -> Outcome:
    """Score a checkpoint on DATASETS.TEST, choose the thresholds and store them in it.

    The images of all sets of DATASETS.TEST count together. Curves and picture are written to
    OUTPUT_DIR/thresholds.

    Args:
        cfg: the config that the checkpoint was trained with.
        metric: ``"f1"`` or ``"count"``.
        weights: the checkpoint; ``model_best.pth`` of OUTPUT_DIR where empty, else MODEL.WEIGHTS.
        output: ``.pth`` to write; the checkpoint itself where empty.
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
    folder = os.path.join(cfg.OUTPUT_DIR, "thresholds")
    table, picture = os.path.join(folder, CURVES_FILE), os.path.join(folder, PICTURE_FILE)
    write_rows(table, curves(pooled, class_names))
    plot_counting_curves(table, picture, chosen)
    if sha256_of(path) != digest:
        raise UserError(f"{path} has changed meanwhile; run again when its training is over.")
    origin = {
        "metric": metric,
        "datasets": [str(name) for name in cfg.DATASETS.TEST],
        "images": pooled.num_images,
        "kept_default": [choice.class_name for choice in choices if choice.kept_because],
        "default": DEFAULT,
    }
    store_thresholds(checkpoint, output or path, chosen, origin)
    return Outcome(choices, str(output or path), table, picture, pooled.num_images)


def _check_target(cfg: CfgNode, path: str, output: str) -> None:
    """Refuse, before minutes of prediction, what cannot be written."""
    if not output and path != cfg.MODEL.WEIGHTS:
        raise UserError(
            f"{cfg.MODEL.WEIGHTS} is not a file of yours; name the checkpoint to write with "
            "--output."
        )
    if output and Path(output).suffix != ".pth":
        raise UserError(f"A checkpoint's name ends in .pth, unlike {output}; rename it.")
    for folder in (os.path.dirname(output or path) or ".", cfg.OUTPUT_DIR):
        check_output_dir(folder)


def _score(cfg: CfgNode, class_names: Sequence[str], trainer_class) -> Pooled:
    """The records of all images of DATASETS.TEST."""
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
        # Ids of images repeat from set to set.
        records += [
            {**record, "image_id": (number, record["image_id"])} for record in evaluator.records
        ]
    return pool(records)


def _prepare(cfg: CfgNode, weights: str) -> CfgNode:
    """The config of one pass over the validation images that keeps all but noise."""
    cfg = cfg.clone()
    cfg.defrost()
    if weights:
        cfg.MODEL.WEIGHTS, cfg.MODEL.WEIGHTS_SHA256 = weights, ""
    if not cfg.MODEL.MASK_ON:
        raise UserError(
            "Thresholds are chosen by matching masks, but MODEL.MASK_ON is False; use a config "
            "with masks."
        )
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = LOWEST_SCORE
    cfg.TEST.VAL_LOSS.ENABLED = False
    cfg = choose_weights(cfg, weights_given=bool(weights))
    return check_datasets(resolve_device(cfg), splits=("TEST",))
