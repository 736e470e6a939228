"""Validation: loss and predictions of each image in one pass.

On the CPU backbone and RPN head, which both need, take half of a Mask R-CNN's time.
"""

import contextlib
import itertools
import logging
import time
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Instances
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn
from tqdm import tqdm

from microplastics.modeling.interface import is_staged, losses_and_predictions
from microplastics.modeling.postprocessing import to_image

logger = logging.getLogger(__name__)

# Seeds of training begin with SEED itself; these must be others.
_SEED_DOMAIN = 0x76616C


def validate(
    model: nn.Module, loader: Iterable, evaluator: DatasetEvaluator, cfg: CfgNode
) -> OrderedDict:
    """Compute the loss and evaluate the predictions on a data set; collective over all ranks.

    The loss is that of training, without augmentation, averaged over images with annotations.
    Proposals and samples are drawn under a seed of the image, so that the same weights give the
    same number on any number of ranks.

    Args:
        model: any Detectron2 model, not wrapped; it is left in its mode.
        loader: batches of mapped dicts, with ``instances`` if the image has annotations.
        evaluator: judges the predictions; masks are :class:`CropMasks`.
        cfg: the config.

    Returns:
        On rank 0 the losses as ``validation``, and the evaluator's results.
    """
    evaluator.reset()
    losses: dict[Any, dict[str, float]] = {}
    start = time.perf_counter()
    # None lets tqdm decide by whether stderr is a terminal.
    quiet = None if comm.is_main_process() else True
    with _evaluating(model):
        for item in itertools.chain.from_iterable(
            tqdm(loader, desc="Validation", leave=False, disable=quiet)
        ):
            item_losses, outputs = _one_image(model, item, cfg)
            evaluator.process([item], [outputs])
            if item_losses is not None:
                losses[item["image_id"]] = item_losses
    logger.info("Validated the images in %.1f s.", time.perf_counter() - start)
    results = OrderedDict()
    if cfg.TEST.VAL_LOSS.ENABLED:
        results["validation"] = _mean_losses(losses)
    results.update(evaluator.evaluate() or {})
    return results if comm.is_main_process() else OrderedDict()


def loss_names(model: nn.Module, loader: Iterable, cfg: CfgNode) -> list[str]:
    """Learn the names of a model's losses from the first image with annotations; collective."""
    names: list[str] = []
    with _evaluating(model):
        for item in itertools.chain.from_iterable(loader):
            losses, _ = _one_image(model, item, cfg)
            if losses is not None:
                names = list(losses)
                break
    return list(dict.fromkeys(itertools.chain.from_iterable(comm.all_gather(names))))


def first_predictions(
    model: nn.Module, loader: Iterable, cfg: CfgNode, number: int
) -> list[tuple[dict[str, Any], Instances]]:
    """Predict the first images of a loader, on this rank only.

    Args:
        model: any Detectron2 model, not wrapped; it is left in its mode.
        loader: as of :func:`validate`.
        cfg: the config.
        number: of images at most.

    Returns:
        The mapped dict of each image and its predictions, in px of the original image.
    """
    with _evaluating(model):
        items = itertools.islice(itertools.chain.from_iterable(loader), number)
        found = [(item, _one_image(model, item, cfg, loss=False)[1]) for item in items]
    return [(item, each["instances"]) for item, each in found if "instances" in each]


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), EventStorage():
            yield
    finally:
        model.train(was_training)


def _one_image(
    model: nn.Module, item: dict[str, Any], cfg: CfgNode, loss: bool = True
) -> tuple[dict[str, float] | None, dict[str, Any]]:
    settings = cfg.TEST.VAL_LOSS
    seed = (_SEED_DOMAIN, zlib.crc32(str(item["image_id"]).encode()))
    losses, outputs = losses_and_predictions(
        model,
        item,
        seed=seed if loss and settings.ENABLED else None,
        rois_per_image=settings.BATCH_SIZE_PER_IMAGE,
    )
    if "instances" in outputs:
        size = (item["height"], item["width"])
        outputs = {**outputs, "instances": to_image(outputs["instances"], size, is_staged(model))}
    return losses, outputs


def _mean_losses(losses: dict[Any, dict[str, float]]) -> dict[str, float]:
    """Average over the images of all ranks, by id: the same for any number of ranks."""
    gathered = comm.gather(losses, dst=0)
    if not comm.is_main_process():
        return {}
    merged = dict(itertools.chain.from_iterable(part.items() for part in gathered))
    if not merged:
        return {"total_loss": float("nan")}
    ordered = [merged[key] for key in sorted(merged, key=str)]
    names = dict.fromkeys(name for row in ordered for name in row)
    nan = float("nan")
    means = {n: sum(row.get(n, nan) for row in ordered) / len(ordered) for n in names}
    return {"total_loss": sum(means.values()), **means}
