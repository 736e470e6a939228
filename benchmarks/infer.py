"""One image from pixels to COCO RLE: ours, Detectron2's ``DefaultPredictor`` and torchvision."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultPredictor
from detectron2.evaluation.coco_evaluation import instances_to_coco_json

from benchmarks import paste
from benchmarks.infer_agreement import average_precision, check_same, difference
from benchmarks.setting import (
    describe,
    plain_config,
    prepare,
    require_positive,
    seeded_model,
    with_keys,
)
from benchmarks.timing import Measurement, Report, alternate, timed
from benchmarks.torchvision_model import fits, torchvision_model
from microplastics.data.images import read_image
from microplastics.evaluation.coco import instances_to_results
from microplastics.inference.predictor import Predictor
from microplastics.utils.errors import UserError

PLAIN, FP32, BF16, TORCHVISION = "DefaultPredictor", "ours, fp32", "ours, bf16", "torchvision"
# Of issue 4, on the CPU, by shorter side in px.
_TARGETS = {512: {FP32: 0.92, BF16: 0.55}, 800: {FP32: 0.92, BF16: 0.50}}
_AP_TARGET = 0.2
_SIZES = (512, 800)

# All images to COCO results, each image with its number for an id and class numbers for ids.
Contestant = Callable[[], list[dict]]


def benchmark(
    config_file: str,
    opts: Sequence[str] = (),
    *,
    folder: Path,
    weights: str = "",
    dataset: str | None = None,
    images: int = 4,
    size: Sequence[int] | None = None,
    detections: Sequence[int] = (100,),
    paste_size: int = 4000,
    paste_masks: int = 100,
    repeat: int = 3,
    seed: int = 1,
) -> Report:
    """Measure decoded images to RLEs, and the last step alone on a large frame.

    With ``weights`` the AP of each side against the truth is told too.

    Args:
        config_file, opts, folder, weights, dataset, images, seed: see :func:`prepare`.
        size: shorter sides of the images in the network, in px; 512 and 800 if None, and for a
            data set the config's.
        detections: caps on the detections of an image.
        paste_size: side of the frame that masks are pasted into, in pixels; 0 skips it.
        paste_masks: number of masks, of about 100 px.
        repeat: turns of each.

    Raises:
        UserError: the model predicts no masks.
    """
    sizes: Sequence[int | None] = size or (_SIZES if dataset is None else (None,))
    smallest = min(each for each in (*sizes, 1) if each is not None)
    require_positive(
        size=smallest, detections=min(detections), paste_masks=paste_masks, repeat=repeat
    )
    report, state = None, None
    for side in sizes:
        cfg = _config(folder / f"{side}", config_file, opts, side, dataset, images, weights, seed)
        if not cfg.MODEL.MASK_ON:
            raise UserError(f"{config_file} predicts no masks; set MODEL.MASK_ON True.")
        if report is None:
            state = seeded_model(cfg).state_dict()
            torch.save({"model": state}, folder / "weights.pth")
            report = Report(describe(cfg, config_file))
        for cap in detections:
            capped = with_keys(cfg, "TEST.DETECTIONS_PER_IMAGE", cap)
            _one_setting(capped, str(folder / "weights.pth"), images, repeat, report)
    if paste_size:
        paste.measure(paste_size, paste_masks, repeat, seed, report)
    return report


def _config(
    folder: Path,
    config_file: str,
    opts: Sequence[str],
    side: int | None,
    dataset: str | None,
    images: int,
    weights: str,
    seed: int,
) -> CfgNode:
    shared = {"split": "val", "dataset": dataset, "images": images, "weights": weights}
    folder.mkdir(parents=True, exist_ok=True)
    cfg = prepare(folder, config_file, opts, size=side or 0, seed=seed, **shared)
    if side is None:
        return cfg
    # A config for small images would shrink what is asked for again.
    longest = max(cfg.INPUT.MAX_SIZE_TEST, side)
    return with_keys(cfg, "INPUT.MIN_SIZE_TEST", side, "INPUT.MAX_SIZE_TEST", longest)


def _one_setting(cfg: CfgNode, weights: str, images: int, repeat: int, report: Report) -> None:
    """Time all contestants at one size and cap, and compare what they found."""
    dicts = DatasetCatalog.get(cfg.DATASETS.TEST[0])[:images]
    pictures = [read_image(each["file_name"]) for each in dicts]
    sides = _contestants(cfg, weights, pictures)
    found: dict[str, list[dict]] = {}

    def turn(name: str) -> dict[str, float]:
        seconds, found[name] = timed(sides[name], cfg.MODEL.DEVICE)
        return {"image": seconds / len(pictures)}

    seconds = alternate({name: lambda n=name: turn(n) for name in sides}, repeat, warmup=1)
    side = cfg.INPUT.MIN_SIZE_TEST
    setting = f"{side} px, {len(found[FP32]) / len(pictures):.0f} detections"
    targets = _TARGETS.get(side, {}) if cfg.MODEL.DEVICE == "cpu" else {}
    report.measurements.append(
        Measurement(f"an image of {setting}", seconds["image"], PLAIN, targets)
    )
    cap = cfg.TEST.DETECTIONS_PER_IMAGE
    report.checks.append(check_same(found[FP32], found[PLAIN], f"fp32 at {side} px, cap {cap}"))
    for name in (BF16, TORCHVISION):
        if name in found:
            words = difference(found[name], found[FP32])
            report.notes.append(f"{side} px, cap {cap}: {name} beside {FP32}: {words}")
    if cfg.MODEL.WEIGHTS:
        _compare_precision(cfg, dicts, found, report)


def _contestants(
    cfg: CfgNode, weights: str, pictures: Sequence[np.ndarray]
) -> dict[str, Contestant]:
    ours = with_keys(cfg, "MODEL.WEIGHTS", weights, "MODEL.WEIGHTS_SHA256", "")
    plain = DefaultPredictor(with_keys(plain_config(cfg)[0], "MODEL.WEIGHTS", ""))
    state = torch.load(weights, map_location="cpu", weights_only=True)["model"]
    plain.model.load_state_dict(state)
    names = [f"class {number}" for number in range(cfg.MODEL.ROI_HEADS.NUM_CLASSES)]
    sides = {
        PLAIN: plain_contestant(plain, pictures),
        FP32: our_contestant(Predictor(ours, names), pictures),
        BF16: our_contestant(Predictor(ours, names, precision="bf16"), pictures),
    }
    if fits(cfg):
        sides[TORCHVISION] = _torchvision(cfg, plain.model, pictures)
    return sides


def plain_contestant(predictor: DefaultPredictor, pictures: Sequence[np.ndarray]) -> Contestant:
    def run() -> list[dict]:
        results = []
        for number, picture in enumerate(pictures):
            instances = predictor(picture)["instances"].to("cpu")
            results += instances_to_coco_json(instances, number)
        return results

    return run


def our_contestant(predictor: Predictor, pictures: Sequence[np.ndarray]) -> Contestant:
    classes = {number: number for number in range(len(predictor.class_names))}

    def run() -> list[dict]:
        results = []
        for number, predictions in enumerate(predictor.predict_many(pictures)):
            results += instances_to_results(predictions, number, classes)
        return results

    return run


def _torchvision(
    cfg: CfgNode, model: torch.nn.Module, pictures: Sequence[np.ndarray]
) -> Contestant:
    theirs = torchvision_model(cfg, model)
    to_bgr = slice(None) if cfg.INPUT.FORMAT == "BGR" else slice(None, None, -1)

    def predict(picture: np.ndarray, number: int) -> list[dict]:
        image = np.ascontiguousarray(picture[:, :, to_bgr].transpose(2, 0, 1))
        image = torch.from_numpy(image).to(cfg.MODEL.DEVICE).float() / 255
        with torch.inference_mode():
            (result,) = theirs([image])
        boxes = result["boxes"].cpu().numpy().copy()
        boxes[:, 2:] -= boxes[:, :2]
        rles = paste.encode((result["masks"][:, 0] >= 0.5).cpu())
        columns = (result["labels"].tolist(), boxes.tolist(), result["scores"].tolist(), rles)
        return [
            {
                "image_id": number,
                "category_id": label - 1,
                "bbox": box,
                "score": score,
                "segmentation": {**rle, "counts": rle["counts"].decode("ascii")},
            }
            for label, box, score, rle in zip(*columns, strict=True)
        ]

    def run() -> list[dict]:
        results = []
        for number, picture in enumerate(pictures):
            results += predict(picture, number)
        return results

    return run


def _compare_precision(
    cfg: CfgNode, dicts: Sequence[dict], found: dict[str, list[dict]], report: Report
) -> None:
    """Score each contestant against the truth."""
    metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0])
    ids = {n: category for category, n in metadata.thing_dataset_id_to_contiguous_id.items()}
    scores = {}
    for name, results in found.items():
        placed = [
            {
                **result,
                "image_id": dicts[result["image_id"]]["image_id"],
                "category_id": ids[result["category_id"]],
            }
            for result in results
        ]
        scores[name] = average_precision(
            placed,
            metadata.json_file,
            cfg.TEST.DETECTIONS_PER_IMAGE,
            [each["image_id"] for each in dicts],
        )
    side = cfg.INPUT.MIN_SIZE_TEST
    for name, figures in scores.items():
        report.notes.append(
            f"{side} px: {name} box AP {figures['bbox']:.2f}, mask AP {figures['segm']:.2f}"
        )
    lost = max(scores[FP32][task] - scores[BF16][task] for task in ("bbox", "segm"))
    verdict = "met" if lost <= _AP_TARGET else "MISSED"
    particles = sum(len(each["annotations"]) for each in dicts)
    report.notes.append(
        f"{side} px: bf16 loses {lost:.2f} AP to fp32 on {particles} particles (at most "
        f"{_AP_TARGET}: {verdict}; on a few hundred one detection more or less is a tenth)"
    )
