"""Our validation pass (loss, AP, semantic figures) against Detectron2's evaluation alone."""

import contextlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, DatasetMapper, build_detection_test_loader
from detectron2.data.detection_utils import build_augmentation
from detectron2.engine import DefaultTrainer
from detectron2.evaluation import COCOEvaluator
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn

from benchmarks.agreement import Check, compare_figures, compare_predictions
from benchmarks.setting import (
    comparable,
    describe,
    plain_config,
    prepare,
    require_positive,
    seeded_model,
    with_keys,
)
from benchmarks.timing import Measurement, Report, alternate, timed
from microplastics.engine.trainer import Trainer
from microplastics.evaluation.coco import RESULTS_FILE

TARGET = 1.4
PLAIN, OURS = "Detectron2, AP alone", "ours: loss, AP, semantic"
TWO_PASSES = "Detectron2, then a loss pass"


def benchmark(
    config_file: str,
    opts: Sequence[str] = (),
    *,
    folder: Path,
    weights: str = "",
    dataset: str | None = None,
    images: int = 6,
    size: int = 512,
    detections: Sequence[int] = (100, 20),
    repeat: int = 3,
    seed: int = 1,
) -> Report:
    """Measure one evaluation as a training does it: loaders and evaluators are made anew.

    The number of detections decides what share of the time the mask head has. Random weights
    find as many as the cap allows, so that each cap is measured.

    Args:
        config_file, opts, folder, weights, dataset, images, size, seed: see :func:`prepare`.
        detections: caps on the detections of an image (TEST.DETECTIONS_PER_IMAGE).
        repeat: turns of each.
    """
    require_positive(detections=min(detections), repeat=repeat)
    cfg = comparable(
        prepare(
            folder,
            config_file,
            opts,
            split="val",
            dataset=dataset,
            images=images,
            size=size,
            weights=weights,
            seed=seed,
        )
    )
    report = Report(describe(cfg, config_file))
    state = seeded_model(cfg).state_dict()
    for cap in detections:
        capped = with_keys(
            cfg, "TEST.DETECTIONS_PER_IMAGE", cap, "OUTPUT_DIR", str(folder / f"ours_{cap}")
        )
        _one_cap(capped, state, folder / f"plain_{cap}", repeat, report)
    return report


def _one_cap(
    cfg: CfgNode, state: dict[str, torch.Tensor], folder: Path, repeat: int, report: Report
) -> None:
    plain_cfg, notes = plain_config(cfg)
    report.notes += [note for note in notes if "gradient" not in note and note not in report.notes]
    model, plain_model = Trainer.build_model(cfg), build_model(plain_cfg)
    for each in (model, plain_model):
        each.load_state_dict(state)
        each.eval()
    device = cfg.MODEL.DEVICE
    results: dict[str, dict] = {}
    losses: set[float] = set()

    def ours() -> dict[str, float]:
        seconds, results[OURS] = timed(lambda: Trainer.test(cfg, model), device)
        losses.add(results[OURS]["validation"]["total_loss"])
        return {"pass": seconds}

    def plain() -> dict[str, float]:
        seconds, results[PLAIN] = timed(lambda: _evaluate(plain_cfg, plain_model, folder), device)
        return {"pass": seconds}

    def loss_pass() -> dict[str, float]:
        seconds, _ = timed(lambda: _loss_pass(plain_cfg, plain_model), device)
        plain_model.load_state_dict(state)  # batch norm has learnt in that pass
        plain_model.eval()
        return {"pass": seconds}

    seconds = alternate({PLAIN: plain, OURS: ours, TWO_PASSES: loss_pass}, repeat)["pass"]
    pairs = zip(seconds[PLAIN], seconds[TWO_PASSES], strict=True)
    seconds[TWO_PASSES] = [first + second for first, second in pairs]
    cap = cfg.TEST.DETECTIONS_PER_IMAGE
    predictions = [
        json.loads((path / RESULTS_FILE).read_text())
        for path in (Path(cfg.OUTPUT_DIR) / "inference", folder)
    ]
    found = len(predictions[0]) / len(DatasetCatalog.get(cfg.DATASETS.TEST[0]))
    label = f"validation, {found:.0f} detections an image"
    report.measurements.append(Measurement(label, seconds, PLAIN, {OURS: TARGET}))
    report.checks += [
        compare_predictions(*predictions, what=f"predictions at a cap of {cap}"),
        Check(f"validation loss of all turns, cap {cap}", len(losses) == 1, str(sorted(losses))),
        compare_figures(results[OURS], results[PLAIN], what=f"figures at a cap of {cap}"),
    ]


def _evaluate(cfg: CfgNode, model: nn.Module, folder: Path) -> dict[str, Any]:
    """Detectron2's evaluation, as its ``train_net.py`` has it."""
    cap = cfg.TEST.DETECTIONS_PER_IMAGE
    options = {"max_dets_per_image": cap} if cap > 100 else {}
    tasks = ("bbox", "segm") if cfg.MODEL.MASK_ON else ("bbox",)
    evaluator = COCOEvaluator(cfg.DATASETS.TEST[0], tasks, False, str(folder), **options)
    # pycocotools prints its tables instead of logging them.
    with contextlib.redirect_stdout(io.StringIO()):
        return DefaultTrainer.test(cfg, model, [evaluator])


def _loss_pass(cfg: CfgNode, model: nn.Module) -> None:
    """The usual second pass for the validation loss: training mode, augmentations of the test."""
    mapper = DatasetMapper(cfg, True, augmentations=build_augmentation(cfg, False))
    model.train()
    with torch.no_grad(), EventStorage():
        for batch in build_detection_test_loader(cfg, cfg.DATASETS.TEST[0], mapper=mapper):
            sum(model(batch).values()).item()
