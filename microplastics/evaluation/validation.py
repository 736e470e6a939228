"""Validation: loss and predictions of each image in one pass.

Why not two passes: on the CPU backbone and RPN head take half of a Mask R-CNN's time, and reading
the images comes on top. The loss adds anchor matching, a second proposal selection and the RoI
heads on ``TEST.VAL_LOSS.BATCH_SIZE_PER_IMAGE`` sampled proposals.
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
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn
from tqdm import tqdm

from microplastics.modeling.interface import is_staged, losses_and_predictions
from microplastics.modeling.postprocessing import to_image

logger = logging.getLogger(__name__)

# Seeds of training begin with SEED itself; these must be others.
_SEED_DOMAIN = 0x76616C

Batches = Iterable[list[dict[str, Any]]]


def validate(
    model: nn.Module, loader: Batches, evaluator: DatasetEvaluator, cfg: CfgNode
) -> OrderedDict:
    """Compute the loss and evaluate the predictions on a data set; collective over all ranks.

    The loss is the training loss of each image, without augmentation: proposals and samples are
    drawn under a seed of the image, so that the same weights give the same number on any number
    of ranks. It is averaged over images with annotations.

    Args:
        model: any Detectron2 model, not wrapped; it is left in its mode.
        loader: batches of mapped dicts, with ``instances`` if the image has annotations
            (:class:`microplastics.data.loader.ValidationLoader`).
        evaluator: judges the predictions; masks are :class:`CropMasks`.
        cfg: the config.

    Returns:
        Nested results on rank 0, ``{}`` on the others: ``validation`` with the losses and
        ``total_loss``, and the evaluator's.

    Raises:
        UserError: an image cannot be read.
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
    count = len(loader) if hasattr(loader, "__len__") else 0
    logger.info("Validated %d images in %.1f s.", count, time.perf_counter() - start)
    results = OrderedDict()
    if cfg.TEST.VAL_LOSS.ENABLED:
        results["validation"] = _mean_losses(losses)
    results.update(evaluator.evaluate() or {})
    return results if comm.is_main_process() else OrderedDict()


def loss_names(model: nn.Module, loader: Batches, cfg: CfgNode) -> list[str]:
    """Learn the names of a model's losses from the first image with annotations.

    Args:
        model, loader, cfg: as of :func:`validate`; collective over all ranks.

    Returns:
        The names on every rank; empty if no image has annotations.
    """
    names: list[str] = []
    with _evaluating(model):
        for item in itertools.chain.from_iterable(loader):
            losses, _ = _one_image(model, item, cfg)
            if losses is not None:
                names = list(losses)
                break
    return list(dict.fromkeys(itertools.chain.from_iterable(comm.all_gather(names))))


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
    model: nn.Module, item: dict[str, Any], cfg: CfgNode
) -> tuple[dict[str, float] | None, dict[str, Any]]:
    settings = cfg.TEST.VAL_LOSS
    seed = (_SEED_DOMAIN, zlib.crc32(str(item["image_id"]).encode()))
    losses, outputs = losses_and_predictions(
        model,
        item,
        seed=seed if settings.ENABLED else None,
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
