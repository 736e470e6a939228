"""One image from pixels to COCO RLE: ours, Detectron2's ``DefaultPredictor`` and torchvision."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.data import transforms as T
from detectron2.engine import DefaultPredictor
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.layers import paste_masks_in_image
from torch import nn
from torchvision.models.detection import maskrcnn_resnet50_fpn

from microplastics.benchmark.agreement import Check, compare_predictions
from microplastics.benchmark.setting import (
    comparable,
    describe,
    plain_config,
    prepare,
    require_positive,
    seeded_model,
    with_keys,
)
from microplastics.benchmark.timing import Measurement, Report, alternate, timed
from microplastics.data.images import read_image
from microplastics.errors import UserError
from microplastics.evaluation.coco import instances_to_results
from microplastics.modeling.postprocess import postprocess
from microplastics.structures.crop_masks import CropMasks

PLAIN, OURS = "DefaultPredictor", "ours"
TORCHVISION = "torchvision, its own random weights"
PASTE_PLAIN, PASTE_OURS = "Detectron2", "ours, CropMasks"

Predict = Callable[[np.ndarray, int], Any]


def benchmark(
    config_file: str,
    opts: Sequence[str] = (),
    *,
    folder: Path,
    weights: str = "",
    dataset: str | None = None,
    images: int = 4,
    size: int = 512,
    detections: Sequence[int] = (100, 20),
    paste_size: int = 4000,
    paste_masks: int = 100,
    repeat: int = 3,
    seed: int = 1,
) -> Report:
    """Measure decoded images to RLEs, and the last step alone on a large frame.

    Args:
        config_file, opts, folder, weights, dataset, images, size, seed: see :func:`prepare`.
        detections: caps on the detections of an image.
        paste_size: side of the frame that masks are pasted into, in pixels; 0 skips it.
        paste_masks: number of masks, of about 100 px.
        repeat: turns of each.

    Raises:
        UserError: the model predicts no masks.
    """
    require_positive(detections=min(detections), paste_masks=paste_masks, repeat=repeat)
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
    if not cfg.MODEL.MASK_ON:
        raise UserError(f"{config_file} predicts no masks; set MODEL.MASK_ON True.")
    report = Report(describe(cfg, config_file))
    state = seeded_model(cfg).state_dict()
    pictures = [read_image(d["file_name"]) for d in DatasetCatalog.get(cfg.DATASETS.TEST[0])]
    for cap in detections:
        capped = with_keys(cfg, "TEST.DETECTIONS_PER_IMAGE", cap)
        _one_cap(capped, state, pictures[:images], repeat, report)
    if paste_size:
        _paste(paste_size, paste_masks, repeat, seed, report)
    return report


def _one_cap(
    cfg: CfgNode,
    state: dict[str, torch.Tensor],
    pictures: list[np.ndarray],
    repeat: int,
    report: Report,
) -> None:
    model = seeded_model(cfg)
    model.load_state_dict(state)
    predictor = DefaultPredictor(with_keys(plain_config(cfg)[0], "MODEL.WEIGHTS", ""))
    predictor.model.load_state_dict(state)
    sides: dict[str, Predict] = {PLAIN: _plain(predictor), OURS: _ours(cfg, model.eval())}
    if cfg.MODEL.RESNETS.DEPTH == 50:
        sides[TORCHVISION] = _torchvision(cfg)
    found: dict[str, list] = {}

    def turn(name: str) -> dict[str, float]:
        def all_pictures() -> list:
            return [sides[name](picture, number) for number, picture in enumerate(pictures)]

        seconds, found[name] = timed(all_pictures, cfg.MODEL.DEVICE)
        return {"image": seconds / len(pictures)}

    contestants = {name: lambda n=name: turn(n) for name in sides}
    seconds = alternate(contestants, repeat, warmup=1)
    results = {name: sum(found[name], []) for name in (PLAIN, OURS)}
    label = f"an image, {len(results[OURS]) / len(pictures):.0f} detections"
    report.measurements.append(Measurement(label, seconds["image"], PLAIN))
    what = f"predictions at a cap of {cfg.TEST.DETECTIONS_PER_IMAGE}"
    report.checks.append(compare_predictions(results[OURS], results[PLAIN], what))
    if TORCHVISION in found:
        report.notes.append(f"torchvision found {np.mean(found[TORCHVISION]):.0f} an image")


def _plain(predictor: DefaultPredictor) -> Predict:
    def predict(picture: np.ndarray, number: int) -> list[dict]:
        return instances_to_coco_json(predictor(picture)["instances"].to("cpu"), number)

    return predict


def _ours(cfg: CfgNode, model: nn.Module) -> Predict:
    resize = T.ResizeShortestEdge(
        [cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MIN_SIZE_TEST], cfg.INPUT.MAX_SIZE_TEST
    )
    classes = {number: number for number in range(cfg.MODEL.ROI_HEADS.NUM_CLASSES)}

    def predict(picture: np.ndarray, number: int) -> list[dict]:
        height, width = picture.shape[:2]
        if cfg.INPUT.FORMAT == "RGB":
            picture = picture[:, :, ::-1]
        image = resize.get_transform(picture).apply_image(picture)
        image = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        with torch.inference_mode():
            (raw,) = model.inference([{"image": image}], do_postprocess=False)
            return instances_to_results(postprocess(raw, height, width), number, classes)

    return predict


def _torchvision(cfg: CfgNode) -> Predict:
    model = maskrcnn_resnet50_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=cfg.MODEL.ROI_HEADS.NUM_CLASSES + 1,
        min_size=cfg.INPUT.MIN_SIZE_TEST,
        max_size=cfg.INPUT.MAX_SIZE_TEST,
        box_score_thresh=cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST,
        box_detections_per_img=cfg.TEST.DETECTIONS_PER_IMAGE,
    )
    model.eval().to(cfg.MODEL.DEVICE)

    def predict(picture: np.ndarray, _number: int) -> int:
        image = torch.from_numpy(np.ascontiguousarray(picture[:, :, ::-1].transpose(2, 0, 1)))
        with torch.inference_mode():
            (result,) = model([image.to(cfg.MODEL.DEVICE).float() / 255])
        return len(_encode((result["masks"][:, 0] > 0.5).cpu()))

    return predict


def _encode(masks: torch.Tensor) -> list[dict]:
    return [
        mask_util.encode(np.array(mask[:, :, None], order="F", dtype="uint8"))[0]
        for mask in masks.numpy()
    ]


def _paste(size: int, count: int, repeat: int, seed: int, report: Report) -> None:
    """Probabilities of 28 x 28 to COCO RLEs of the frame, on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    extent = min(100.0, size / 2) * (0.5 + torch.rand(count, 2, generator=generator))
    corner = torch.rand(count, 2, generator=generator) * (size - extent)
    boxes = torch.cat([corner, corner + extent], dim=1)
    axis = torch.linspace(-1, 1, 28)
    disc = 1 - 0.6 * (axis[:, None] ** 2 + axis**2)
    probs = (disc + 0.1 * torch.randn(count, 28, 28, generator=generator)).clamp(0, 1)
    rles: dict[str, list] = {}

    def plain() -> dict[str, float]:
        seconds, rles[PASTE_PLAIN] = timed(
            lambda: _encode(paste_masks_in_image(probs, boxes, (size, size), threshold=0.5))
        )
        return {"paste": seconds}

    def ours() -> dict[str, float]:
        seconds, rles[PASTE_OURS] = timed(
            lambda: CropMasks.paste(probs, boxes, (size, size)).to_rles()
        )
        return {"paste": seconds}

    seconds = alternate({PASTE_PLAIN: plain, PASTE_OURS: ours}, repeat)["paste"]
    label = f"paste and encode {count} masks, {size} x {size} px"
    report.measurements.append(Measurement(label, seconds, PASTE_PLAIN))
    equal = rles[PASTE_OURS] == rles[PASTE_PLAIN]
    report.checks.append(Check("pasted RLEs", equal, f"{count} masks, byte for byte"))
