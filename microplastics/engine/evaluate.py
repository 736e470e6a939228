"""``--eval-only``: scoring a trained model."""

import csv
import io
import logging
import os
from collections import OrderedDict
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import inference_on_dataset
from detectron2.modeling import GeneralizedRCNNWithTTA
from detectron2.utils import comm
from tabulate import tabulate

from microplastics.data.loader import check_datasets
from microplastics.engine.checkpoint import BEST, TrainingCheckpointer
from microplastics.engine.hooks import flatten_results
from microplastics.engine.stored_thresholds import stored_thresholds
from microplastics.engine.trainer import Trainer
from microplastics.engine.weights import fetch_weights
from microplastics.errors import UserError
from microplastics.evaluation.counting import CURVES_FILE
from microplastics.files import atomic_write, write_json
from microplastics.report.counting import plot_counting_curves

logger = logging.getLogger(__name__)

_FIGURES = (
    *("AP", "AP50"),
    *("count_true", "count_predicted", "count_error_pct", "F1", "F1_tol1", "F1_tol2"),
    *("length_bias", "length_MAE", "area_MAPE"),
)


def choose_weights(cfg: CfgNode, weights_given: bool) -> CfgNode:
    """A copy of the config whose MODEL.WEIGHTS is what ``--eval-only`` scores.

    ``model_best.pth`` of OUTPUT_DIR, unless MODEL.WEIGHTS was given on the command line; where
    there is none, MODEL.WEIGHTS of the config file.

    Raises:
        UserError: there are no weights, and random ones would be scored.
    """
    best = os.path.join(cfg.OUTPUT_DIR, f"{BEST}.pth")
    cfg = cfg.clone()
    cfg.defrost()
    if not weights_given and os.path.isfile(best):
        # A demanded sha256 was that of the file which training started from.
        cfg.MODEL.WEIGHTS, cfg.MODEL.WEIGHTS_SHA256 = best, ""
    if not cfg.MODEL.WEIGHTS:
        raise UserError(
            f"--eval-only has no weights to score: {best} is not there and MODEL.WEIGHTS is "
            "empty; train first, or add MODEL.WEIGHTS path/to/model.pth."
        )
    cfg.freeze()
    return cfg


def evaluate(cfg: CfgNode, weights_given: bool = False, trainer_class=Trainer) -> OrderedDict:
    """Score weights on DATASETS.TEST and write the figures to OUTPUT_DIR/inference.

    Writes ``metrics.json`` (flat names to numbers), ``per_class.csv``,
    ``coco_instances_results.json``, and the tables and the picture of counting. Particles count
    from the score thresholds on that the checkpoint carries, if any. With ``TEST.AUG.ENABLED``
    predictions under test-time augmentation are scored as well, under names that end in ``_TTA``.

    Args:
        cfg: the config, set up.
        weights_given: MODEL.WEIGHTS stood on the command line.
        trainer_class: its ``build_model`` and ``test`` are used.

    Returns:
        Nested results (``{}`` on ranks above 0).

    Raises:
        UserError: no weights, weights that do not fit, or a broken data set.
    """
    cfg = check_datasets(choose_weights(cfg, weights_given), splits=("TEST",))
    model = trainer_class.build_model(cfg)
    class_names = MetadataCatalog.get(cfg.DATASETS.TEST[0]).get("thing_classes", [])
    TrainingCheckpointer(model, cfg, class_names).load_weights(new_classes=False)
    cfg = _counting_config(cfg, class_names)
    results = trainer_class.test(cfg, model)
    if cfg.TEST.AUG.ENABLED:
        results.update(_test_with_augmentation(cfg, model, trainer_class))
    if comm.is_main_process():
        _write(results, cfg, class_names)
    return results


def _counting_config(cfg: CfgNode, class_names: list[str]) -> CfgNode:
    """A copy whose counting measures sizes and has the thresholds of the checkpoint."""
    cfg = cfg.clone()
    cfg.defrost()
    counting = cfg.TEST.COUNTING
    if counting.SIZES == "eval_only":
        counting.SIZES = "always"
    if counting.ENABLED and cfg.MODEL.MASK_ON and not counting.CLASS_SCORE_THRESH:
        stored = stored_thresholds(fetch_weights(cfg.MODEL.WEIGHTS), class_names)
        if stored:
            logger.info("Particles count from the score thresholds of %s on.", cfg.MODEL.WEIGHTS)
            thresholds = [stored.get(name, counting.SCORE_THRESH) for name in class_names]
            counting.CLASS_SCORE_THRESH = thresholds
    given = counting.CLASS_SCORE_THRESH or [counting.SCORE_THRESH]
    lowest = min((t for t in given if isinstance(t, (int, float))), default=1.0)
    if counting.ENABLED and lowest < cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST:
        logger.warning(
            "Particles should count from the score %g on, but MODEL.ROI_HEADS.SCORE_THRESH_TEST "
            "%g leaves none below itself.",
            lowest,
            cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST,
        )
    cfg.freeze()
    return cfg


def _test_with_augmentation(cfg: CfgNode, model, trainer_class) -> OrderedDict:
    """Detectron2's test-time augmentation (boxes and masks of flips and scales merged)."""
    logger.info("Test-time augmentation at %s px …", cfg.TEST.AUG.MIN_SIZES)
    model = GeneralizedRCNNWithTTA(cfg, model.eval())
    results = OrderedDict()
    for name in cfg.DATASETS.TEST:
        folder = os.path.join(cfg.OUTPUT_DIR, "inference_TTA")
        if len(cfg.DATASETS.TEST) > 1:
            folder = os.path.join(folder, "".join(c if c.isalnum() else "_" for c in name))
        evaluator = trainer_class.build_evaluator(cfg, name, folder)
        # The project's own: Detectron2's would read 16-bit images as white.
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
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, dict.fromkeys(key for row in rows for key in row))
    writer.writeheader()
    writer.writerows(rows)
    with atomic_write(os.path.join(folder, "per_class.csv")) as file:
        file.write(buffer.getvalue())
    logger.info(
        "Scores of %s:\n%s\nWritten to %s",
        cfg.MODEL.WEIGHTS,
        tabulate(rows, headers="keys", tablefmt="pipe", floatfmt=".1f"),
        folder,
    )
    if cfg.TEST.COUNTING.ENABLED:
        _plot_counting(folder, cfg, class_names)
    if "validation/total_loss" in metrics:
        logger.info("Validation loss %.4f", metrics["validation/total_loss"])


def _plot_counting(folder: str, cfg: CfgNode, class_names: list[str]) -> None:
    """Draw every table of threshold curves that the evaluation wrote, beside it."""
    settings = cfg.TEST.COUNTING
    thresholds = settings.CLASS_SCORE_THRESH or [settings.SCORE_THRESH] * len(class_names)
    marked = dict(zip(class_names, thresholds, strict=True))
    for table in sorted(Path(folder).rglob(CURVES_FILE)):
        plot_counting_curves(table, table.with_suffix(".png"), marked)


def per_class_table(metrics: dict[str, float], class_names: list[str]) -> list[dict]:
    """One row a class, where there are several, and a last row over all, in percent.

    The columns are AP and AP50 of boxes and masks, and of counting the numbers of true and
    predicted particles, the count error, F1, and the errors of lengths and areas.

    Args:
        metrics: flat metrics.
        class_names: the data set's classes.
    """
    rows = []
    for name in [*class_names, None]:
        row = {"class": name or "all"}
        for key, value in metrics.items():
            for figure in _FIGURES:
                # Class names may hold slashes: only the end of the key tells.
                end = f"/{figure}-{name}" if name else f"/{figure}"
                if key.endswith(end):
                    row[f"{key.removesuffix(end)} {figure.removeprefix('count_')}"] = value
        # Of a single class Detectron2's figures are those over all.
        if name is None or any(column.endswith(("AP", "AP50")) for column in row):
            rows.append(row)
    return rows
