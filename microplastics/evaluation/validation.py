"""The validation pass: one backbone pass an image feeds the loss and the predictions.

Why not two passes: on the CPU backbone and RPN head are half of a Mask R-CNN's time, and reading
the images comes on top. What the loss adds is anchor matching, a second proposal selection, and
the RoI heads over a sample of ``TEST.VAL_LOSS.BATCH_SIZE_PER_IMAGE`` proposals.
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
from detectron2.structures import ImageList, Instances
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn
from tqdm import tqdm

from microplastics.inference.postprocess import postprocess
from microplastics.utils.errors import UserError
from microplastics.utils.system import seeded

logger = logging.getLogger(__name__)

# Kept apart from the seeds of training, which begin with SEED itself.
_SEED_DOMAIN = 0x76616C


def validate(
    model: nn.Module,
    loader: Iterable[list[dict[str, Any]]],
    evaluator: DatasetEvaluator,
    cfg: CfgNode,
) -> OrderedDict:
    """Loss and predictions over a data set; collective over all ranks.

    The loss is that of training on each image alone, without augmentation: proposals and samples
    are drawn under a seed of the image, so that the same weights give the same number, on any
    number of ranks. It is averaged over images with annotations.

    Args:
        model: a ``GeneralizedRCNN``, not wrapped; left in the mode that it came in.
        loader: batches of one mapped dict, with ``instances`` where the image has annotations
            (:class:`microplastics.data.loader.ValidationLoader`).
        evaluator: judges the predictions.
        cfg: the config.

    Returns:
        Nested results on rank 0, ``{}`` on the others: ``validation`` with the losses and
        ``total_loss``, and what the evaluator yields.

    Raises:
        UserError: an image cannot be read, or the model is of a kind that has no losses.
    """
    evaluator.reset()
    losses: dict[Any, dict[str, float]] = {}
    was_training = model.training
    model.eval()
    start = time.perf_counter()
    progress = tqdm(loader, desc="Validation", leave=False, disable=_quiet())
    try:
        with torch.inference_mode(), EventStorage():
            for inputs in progress:
                for item in inputs:
                    predictions, item_losses = _one_image(model, item, cfg)
                    evaluator.process([item], [{"instances": predictions}])
                    if item_losses is not None:
                        losses[item["image_id"]] = item_losses
    finally:
        model.train(was_training)
    count = len(loader) if hasattr(loader, "__len__") else 0
    logger.info("Validated %d images in %.1f s.", count, time.perf_counter() - start)
    results = OrderedDict()
    if cfg.TEST.VAL_LOSS.ENABLED:
        results["validation"] = _mean_losses(losses)
    results.update(evaluator.evaluate() or {})
    return results if comm.is_main_process() else OrderedDict()


def _quiet() -> bool | None:
    # None lets tqdm decide by whether stderr is a terminal.
    return None if comm.is_main_process() else True


def _one_image(
    model: nn.Module, item: dict[str, Any], cfg: CfgNode
) -> tuple[Instances, dict[str, float] | None]:
    images = model.preprocess_image([item])
    features = model.backbone(images.tensor)
    losses = None
    with _remember_rpn_head(model):
        proposals, _ = model.proposal_generator(images, features, None)
        if cfg.TEST.VAL_LOSS.ENABLED and len(item.get("instances", ())):
            losses = _losses(model, images, features, item, cfg)
    results, _ = model.roi_heads(images, features, proposals, None)
    raw = results[0]
    predictions = postprocess(raw, item["height"], item["width"])
    return predictions, losses


def _losses(
    model: nn.Module,
    images: ImageList,
    features: dict[str, torch.Tensor],
    item: dict[str, Any],
    cfg: CfgNode,
) -> dict[str, float]:
    targets = [item["instances"].to(model.device)]
    key = zlib.crc32(str(item["image_id"]).encode())
    with (
        seeded(_SEED_DOMAIN, key, device=model.device),
        _training_heads(model, cfg.TEST.VAL_LOSS.BATCH_SIZE_PER_IMAGE),
    ):
        try:
            proposals, losses = model.proposal_generator(images, features, targets)
            _, roi_losses = model.roi_heads(images, features, proposals, targets)
        except FloatingPointError:  # the RPN's word for weights that are not finite
            return {"loss_rpn_cls": float("nan")}
    losses = {**losses, **roi_losses}
    values = torch.stack([v.detach().float() for v in losses.values()]).tolist()
    return dict(zip(losses, values, strict=True))


@contextlib.contextmanager
def _training_heads(model: nn.Module, rois_per_image: int) -> Iterator[None]:
    """Set the heads' own ``training`` flags, and not those of their layers.

    The flag decides whether a Detectron2 head computes losses; batch norm and dropout inside must
    stay as in evaluation.
    """
    if not hasattr(model.roi_heads, "batch_size_per_image"):
        raise UserError(
            f"{type(model.roi_heads).__name__} samples no proposals, so there is no validation "
            "loss; set TEST.VAL_LOSS.ENABLED False."
        )
    heads = [model.proposal_generator, model.roi_heads]
    heads += [h for name, h in model.roi_heads.named_children() if name.endswith("_head")]
    sampled = model.roi_heads.batch_size_per_image
    model.roi_heads.batch_size_per_image = rois_per_image
    try:
        for head in heads:
            head.training = True
        yield
    finally:
        model.roi_heads.batch_size_per_image = sampled
        for head in heads:
            head.training = False


@contextlib.contextmanager
def _remember_rpn_head(model: nn.Module) -> Iterator[None]:
    """Let two calls of the RPN on the same features share its convolutions."""
    head = getattr(model.proposal_generator, "rpn_head", None)
    if head is None:
        yield
        return
    forward, memory = head.forward, []

    def remembering(features):
        if not memory:
            memory.append(forward(features))
        return memory[0]

    head.forward = remembering
    try:
        yield
    finally:
        del head.forward


def _mean_losses(losses: dict[Any, dict[str, float]]) -> dict[str, float]:
    """Mean over the images of all ranks, in the order of their ids: the same for any sharding."""
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
