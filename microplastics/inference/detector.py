"""One batch through a Detectron2 model: scores cut before the mask head, caps lifted on demand."""

import contextlib
import copy
import logging
import threading
from collections.abc import Iterator, Sequence

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.proposal_generator.rpn import RPN, StandardRPNHead
from detectron2.modeling.roi_heads import StandardROIHeads
from detectron2.structures import ImageList, Instances
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from microplastics.utils.errors import UserError

PRECISIONS = ("fp32", "bf16")


def inference_copy(model: nn.Module, precision: str = "fp32") -> nn.Module:
    """Copy a model and make the copy fast; it can no longer be trained.

    Batch norms, frozen or in evaluation mode, are folded into their convolutions
    (``w' = w g / sqrt(var + eps)``, ``b' = (b - mean) g / sqrt(var + eps) + beta``, in float64),
    and convolutions are kept in NHWC order. In bf16 the weights of the backbone and the heads
    are bf16 too, except for the last layer of the RPN and of the box head, so that scores,
    objectness and box coordinates stay fp32.

    Args:
        model: a Detectron2 model; it is not changed.
        precision: ``"fp32"`` or ``"bf16"``. In bf16 the backbone of the copy gives bf16 features:
            cast them to fp32 before Detectron2's ``ROIAlign``, which reads box coordinates in the
            type of the features (steps of 4 px at 512 to 1024 in bf16).

    Returns:
        The copy, in evaluation mode and without gradients.

    Raises:
        ValueError: the precision is unknown.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"Precision {precision!r} is not one of {', '.join(PRECISIONS)}")
    model = copy.deepcopy(model).eval().requires_grad_(False)
    with torch.no_grad():
        for module in model.modules():
            # A subclass with a forward of its own may use its norm in another way.
            if isinstance(module, Conv2d) and type(module).forward is Conv2d.forward:
                _fold(module)
        if precision == "bf16":
            _use_bf16(model)
    return model.to(memory_format=torch.channels_last)


def _fold(conv: Conv2d) -> None:
    norm = conv.norm
    if not isinstance(norm, (FrozenBatchNorm2d, _BatchNorm)) or norm.running_mean is None:
        return
    mean, variance = norm.running_mean.double(), norm.running_var.double()
    gain = (variance + norm.eps).rsqrt()
    if norm.weight is not None:
        gain = gain * norm.weight.double()
    bias = -mean if conv.bias is None else conv.bias.double() - mean
    bias = bias * gain
    if norm.bias is not None:
        bias = bias + norm.bias.double()
    weight = conv.weight.double() * gain.reshape(-1, 1, 1, 1)
    conv.weight = nn.Parameter(weight.to(conv.weight.dtype), requires_grad=False)
    conv.bias = nn.Parameter(bias.to(conv.weight.dtype), requires_grad=False)
    conv.norm = None


def _use_bf16(model: nn.Module) -> None:
    if hasattr(model, "backbone"):
        _cast(model.backbone)
    rpn_head = getattr(getattr(model, "proposal_generator", None), "rpn_head", None)
    if isinstance(rpn_head, StandardRPNHead):
        _cast(rpn_head.conv)
        _cast(rpn_head.objectness_logits, torch.float32)
        _cast(rpn_head.anchor_deltas, torch.float32)
    heads = getattr(model, "roi_heads", None)
    if isinstance(heads, StandardROIHeads):
        _cast(heads.box_head)
        _cast(heads.box_predictor, torch.float32)
        if heads.mask_on:
            _cast(heads.mask_head)
            predictor = getattr(heads.mask_head, "predictor", None)
            if isinstance(predictor, nn.Module):
                # Sums near the threshold are fine in bf16, their sigmoid is not.
                predictor.register_forward_hook(lambda _module, _inputs, logits: logits.float())


def _cast(root: nn.Module, dtype: torch.dtype = torch.bfloat16) -> None:
    """Keep convolutions and linear layers in a type, norms and the rest in fp32.

    Each module turns its inputs into the type of its own weights.
    """
    for module in root.modules():
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if not own:
            continue
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(dtype)
        module.register_forward_pre_hook(_inputs_in(own[0].dtype))


def _inputs_in(dtype: torch.dtype):
    def cast(_module: nn.Module, inputs: tuple) -> tuple:
        return tuple(
            x.to(dtype) if isinstance(x, torch.Tensor) and x.is_floating_point() else x
            for x in inputs
        )

    return cast


logger = logging.getLogger(__name__)

Features = dict[str, torch.Tensor]

# The caps of the config are raised to at most so many times themselves.
_MAX_GROWTH = 16
# What the heads take at a time. It bounds the memory of crowded windows, and it is faster: larger
# tensors than these (26 MB in R50) come as fresh pages from the system each time. Measured for
# 1000 proposals and 100 detections of R50 on the CPU: a tenth less time than in one piece.
_MASK_CHUNK = 64
_BOX_CHUNK = 512


class Detector:
    """Runs a model on batches; the results are those of Detectron2's own inference.

    Masks are predicted for those detections alone that are scored above their class's threshold.
    A model whose ``inference`` is not ``GeneralizedRCNN``'s is run as it is and cut afterwards.

    Attributes:
        model: the model.
        staged: masks come as the mask head's probabilities, boxes in px of the network's input;
            else all is pasted and scaled already, as :meth:`__call__`'s ``sizes`` say.
        windows_cut_short: windows on which the caps were still in the way when they had been
            raised as far as they go.
    """

    def __init__(self, model: nn.Module, score_thresholds: Sequence[float]):
        """
        Args:
            model: in evaluation mode; of :func:`inference_copy` or plain.
            score_thresholds: for each class; detections must be scored above it.
        """
        self.model = model
        generator = getattr(model, "proposal_generator", None)
        self.staged = (
            isinstance(model, GeneralizedRCNN)
            and type(model).inference is GeneralizedRCNN.inference
            and isinstance(generator, RPN)
        )
        self.windows_cut_short = 0
        self._thresholds = torch.tensor(list(score_thresholds), dtype=torch.float32)
        self._lock = threading.Lock()
        parameter = next(model.parameters())
        self._device = parameter.device
        convolutions = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d)]
        self._channels_last = any(
            w.is_contiguous(memory_format=torch.channels_last) and not w.is_contiguous()
            for w in convolutions
        )
        if not self.staged and hasattr(model, "backbone"):
            model.backbone.register_forward_hook(lambda _m, _i, out: _in_fp32(out))

    def __call__(
        self,
        images: Sequence[torch.Tensor],
        sizes: Sequence[tuple[int, int]],
        dense: bool = False,
    ) -> list[Instances]:
        """Detect on a batch.

        Args:
            images: (C, H, W) tensors in the channel order of INPUT.FORMAT, 0 to 255.
            sizes: height and width in px of each image before it was resized.
            dense: raise the caps on proposals where they are in the way, and have none on
                detections; see :meth:`_detect_all`.

        Returns:
            Raw ``Instances`` on the model's device, best score first.

        Raises:
            UserError: ``dense`` with a model whose caps are not known.
        """
        with self._lock, torch.inference_mode():
            if self.staged:
                return self._staged(images, dense)
            if dense:
                raise UserError(
                    f"{type(self.model).__name__} has caps on its detections that cannot be "
                    "lifted for the windows of a large image; use a GeneralizedRCNN."
                )
            inputs = [
                {"image": image, "height": height, "width": width}
                for image, (height, width) in zip(images, sizes, strict=True)
            ]
            outputs = [output["instances"] for output in self.model(inputs)]
            return [instances[self._above(instances)] for instances in outputs]

    def _staged(self, images: Sequence[torch.Tensor], dense: bool) -> list[Instances]:
        batch = self.model.preprocess_image([{"image": image} for image in images])
        if self._channels_last:
            batch.tensor = batch.tensor.contiguous(memory_format=torch.channels_last)
        features = self.model.backbone(batch.tensor)
        # ROIAlign reads box coordinates in the features' type and wants NCHW order: both are
        # given to it once for both heads.
        pooled = {name: f.contiguous() for name, f in _in_fp32(features).items()}
        if dense:
            found = self._detect_all(batch, features, pooled)
        else:
            found, _ = self._detect(batch, features, pooled)
        heads = self.model.roi_heads
        if not isinstance(heads, StandardROIHeads):
            return found
        step = max(1, _MASK_CHUNK // len(found))
        if max(map(len, found)) <= _MASK_CHUNK:
            return heads.forward_with_given_boxes(pooled, found)
        parts = [
            heads.forward_with_given_boxes(pooled, [each[start : start + step] for each in found])
            for start in range(0, max(map(len, found)), step)
        ]
        return [Instances.cat(list(of_image)) for of_image in zip(*parts, strict=True)]

    def _above(self, instances: Instances) -> torch.Tensor:
        thresholds = self._thresholds.to(instances.scores.device)
        return instances.scores > thresholds[instances.pred_classes]

    def _detect(
        self, batch: ImageList, features: Features, pooled: Features
    ) -> tuple[list[Instances], list[torch.Tensor | None]]:
        """Detections above their thresholds, and the objectness that each was proposed with."""
        proposals, _ = self.model.proposal_generator(batch, features, None)
        found, kept = self._boxes(batch, pooled, proposals)
        results, objectness = [], []
        for number, instances in enumerate(found):
            above = self._above(instances)
            results.append(instances[above])
            logits = None
            if kept is not None:
                logits = proposals[number].objectness_logits[kept[number][above]]
            objectness.append(logits)
        return results, objectness

    def _boxes(
        self, batch: ImageList, pooled: Features, proposals: list[Instances]
    ) -> tuple[list[Instances], list[torch.Tensor] | None]:
        """Boxes of all proposals, and the number of the proposal of each where that is known."""
        heads = self.model.roi_heads
        if not isinstance(heads, StandardROIHeads):
            return heads(batch, pooled, proposals, None)[0], None
        if type(heads)._forward_box is not StandardROIHeads._forward_box:
            return heads._forward_box(pooled, proposals), None
        levels = [pooled[name] for name in heads.box_in_features]
        boxes = [each.proposal_boxes for each in proposals]
        chunks = [boxes]
        if len(boxes) == 1 and len(boxes[0]) > _BOX_CHUNK:
            chunks = [
                [boxes[0][start : start + _BOX_CHUNK]]
                for start in range(0, len(boxes[0]), _BOX_CHUNK)
            ]
        parts = [
            heads.box_predictor(heads.box_head(heads.box_pooler(levels, chunk))) for chunk in chunks
        ]
        predictions = parts[0]
        if len(parts) > 1:
            predictions = tuple(torch.cat(column) for column in zip(*parts, strict=True))
        return heads.box_predictor.inference(predictions, proposals)

    def _detect_all(
        self, batch: ImageList, features: Features, pooled: Features
    ) -> list[Instances]:
        """Detect without losing anything to the caps.

        There is no cap on detections. Those on proposals are in the way of an image where a
        detection was proposed with no more objectness than something that was cut off: it is
        detected again with the caps doubled, until that is no longer so or until doubling finds
        nothing new.
        """
        with self._caps(1), self._cut_off() as cut:
            found, objectness = self._detect(batch, features, pooled)
        limits = list(cut)
        for number in range(len(found)):
            growth, logits, limit = 1, objectness[number], limits[number]
            alone = {name: f[number : number + 1] for name, f in features.items()}
            alone_pooled = {name: f[number : number + 1] for name, f in pooled.items()}
            image = ImageList(batch.tensor[number : number + 1], [batch.image_sizes[number]])
            while _in_the_way(logits, limit):
                if growth == _MAX_GROWTH:
                    self._tell_cut_short()
                    break
                growth *= 2
                with self._caps(growth), self._cut_off() as cut:
                    (again,), (logits,) = self._detect(image, alone, alone_pooled)
                (limit,) = cut
                nothing_new = len(again) <= len(found[number])
                found[number] = again
                if nothing_new:
                    break
        return found

    def _tell_cut_short(self) -> None:
        self.windows_cut_short += 1
        if self.windows_cut_short == 1:
            logger.warning(
                "A window holds more particles than %d times MODEL.RPN.POST_NMS_TOPK_TEST "
                "proposals can find: use a smaller --tile.",
                _MAX_GROWTH,
            )

    @contextlib.contextmanager
    def _caps(self, growth: int) -> Iterator[None]:
        """Caps on proposals ``growth`` times those of the config, and none on detections."""
        rpn = self.model.proposal_generator
        predictors = getattr(self.model.roi_heads, "box_predictor", ())
        predictors = predictors if isinstance(predictors, nn.ModuleList) else [predictors]
        before = rpn.pre_nms_topk, rpn.post_nms_topk, [p.test_topk_per_image for p in predictors]
        try:
            rpn.pre_nms_topk = {key: growth * value for key, value in before[0].items()}
            rpn.post_nms_topk = {key: growth * value for key, value in before[1].items()}
            for predictor in predictors:
                predictor.test_topk_per_image = -1
            yield
        finally:
            rpn.pre_nms_topk, rpn.post_nms_topk = before[:2]
            for predictor, cap in zip(predictors, before[2], strict=True):
                predictor.test_topk_per_image = cap

    @contextlib.contextmanager
    def _cut_off(self) -> Iterator[list[torch.Tensor]]:
        """Fills a list with the highest objectness that was cut off, for each image."""
        rpn, limits = self.model.proposal_generator, []
        logits: list[torch.Tensor] = []
        hooks = [
            rpn.rpn_head.register_forward_hook(lambda _m, _i, out: logits.extend(out[0])),
            rpn.register_forward_hook(lambda _m, _i, out: limits.extend(_limits(rpn, logits, out))),
        ]
        try:
            yield limits
        finally:
            for hook in hooks:
                hook.remove()


def _limits(rpn: RPN, logits: list[torch.Tensor], output: tuple) -> list[torch.Tensor]:
    before, after = rpn.pre_nms_topk[False], rpn.post_nms_topk[False]
    limits = []
    for number, proposals in enumerate(output[0]):
        of_image = [level[number].flatten() for level in logits]
        cuts = [level.topk(before).values[-1] for level in of_image if len(level) > before]
        if len(proposals) >= after > 0:
            cuts.append(proposals.objectness_logits.min())
        floor = logits[0].new_full((), -torch.inf)
        limits.append(torch.stack([floor, *cuts]).max())
    return limits


def _in_the_way(objectness: torch.Tensor | None, limit: torch.Tensor) -> bool:
    if objectness is None:  # which proposal was whose is not known
        return bool(limit > -torch.inf)
    return bool((objectness <= limit).any())


def _in_fp32(features: Features) -> Features:
    return {name: feature.float() for name, feature in features.items()}
