"""Batches of images through a Detectron2 model."""

import contextlib
import copy
import functools
import logging
import operator
import threading
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from detectron2.modeling import FPN, ResNet
from detectron2.modeling.proposal_generator.rpn import StandardRPNHead
from detectron2.modeling.roi_heads import StandardROIHeads
from detectron2.modeling.roi_heads.mask_head import BaseMaskRCNNHead
from detectron2.structures import ImageList, Instances, pairwise_iou
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from microplastics.modeling.backbone import TimmBackbone
from microplastics.modeling.interface import (
    changed,
    is_staged,
    keep_boxes_fp32,
    remembered,
    rescores,
)
from microplastics.modeling.nms import ChosenNMS, stages_of
from microplastics.modeling.roi_heads.dynamic_mask_head import MaskBranch
from microplastics.modeling.roi_heads.mask_head import MaskIoUHead
from microplastics.modeling.test_time_augmentation import TestTimeAugmentation

logger = logging.getLogger(__name__)

PRECISIONS = ("fp32", "bf16")

Features = dict[str, torch.Tensor]

# What the heads take at a time. It bounds the memory of crowded tiles, and it is faster: larger
# tensors than these (26 MB in R50) come as fresh pages from the system each time. Measured for
# 1000 proposals and 100 detections of R50 on the CPU: a tenth less time than in one piece.
_MASK_CHUNK = 64
_BOX_CHUNK = 512


def inference_copy(model: nn.Module, precision: str = "fp32") -> nn.Module:
    """Copy a model in evaluation mode and make the copy fast; it can no longer be trained.

    Batch norms of Detectron2's ``Conv2d``, frozen or in evaluation mode, are folded into their
    convolutions (``w' = w g / sqrt(var + eps)``, ``b' = (b - mean) g / sqrt(var + eps) + beta``,
    in float64), and convolutions are kept in NHWC order. In bf16 the parts that are known to keep
    their accuracy get bf16 weights: ResNets and networks of timm, the RPN's and the box head's
    layers but the last, Mask R-CNN's mask heads. Scores, objectness and box coordinates stay fp32.

    Args:
        model: a Detectron2 model; it is not changed.
        precision: ``"fp32"`` or ``"bf16"``. In bf16 the backbone of the copy gives bf16 features:
            cast them to fp32 before Detectron2's ``ROIAlign``, which reads box coordinates in the
            type of the features (steps of 4 px at 512 to 1024 in bf16).
    """
    model = copy.deepcopy(model).eval().requires_grad_(False)
    with torch.no_grad():
        for module in list(model.modules()):
            if isinstance(module, TimmBackbone):
                module.fold_norms()
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
    tensors = conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.weight, norm.bias
    *given, scale, shift = (None if t is None else t.double() for t in tensors)
    fused = fuse_conv_bn_weights(*given, norm.eps, scale, shift)
    kind = conv.weight.dtype
    conv.weight, conv.bias = (nn.Parameter(each.to(kind), requires_grad=False) for each in fused)
    conv.norm = None


def _use_bf16(model: nn.Module) -> None:
    backbone = getattr(model, "backbone", None)
    bottom_up = getattr(backbone, "bottom_up", backbone)
    if isinstance(bottom_up, (ResNet, TimmBackbone)) and isinstance(backbone, (FPN, ResNet)):
        _cast(backbone)
    rpn_head = getattr(getattr(model, "proposal_generator", None), "rpn_head", None)
    if isinstance(rpn_head, StandardRPNHead):
        _cast(rpn_head.conv)
        _cast(rpn_head.objectness_logits, torch.float32)
        _cast(rpn_head.anchor_deltas, torch.float32)
    heads = getattr(model, "roi_heads", None)
    if isinstance(heads, StandardROIHeads):
        _cast(heads.box_head)
        _cast(heads.box_predictor, torch.float32)
        for head in stages_of(getattr(heads, "mask_head", nn.ModuleList())):
            if isinstance(head, BaseMaskRCNNHead):
                _cast(head)
                iou_head = getattr(head, "iou_head", None)
                if isinstance(iou_head, MaskIoUHead):
                    _cast(iou_head.predictor, torch.float32)
                predictor = getattr(head, "predictor", None)
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
        module.register_forward_pre_hook(functools.partial(_to_dtype, own[0].dtype))


def _to_dtype(dtype: torch.dtype, _module: nn.Module, inputs: tuple) -> tuple:
    return tuple(
        x.to(dtype) if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in inputs
    )


class Detector:
    """Runs a model on batches, with the results of Detectron2's own inference.

    Masks are predicted only for detections scored above their class's threshold; if the mask head
    lowers scores, those must be above it as well. A model that is not staged is run as it is, and
    its detections are cut afterwards.

    Attributes:
        model: the model.
        staged: the results are raw, see :func:`microplastics.modeling.interface.is_staged`.
        windows_cut_short: tiles that may hold more particles than the caps let through.
    """

    def __init__(
        self,
        model: nn.Module,
        score_thresholds: Sequence[float],
        *,
        tile_topk: int = 2000,
        detections_per_image: int = 100,
        augmentation: TestTimeAugmentation | None = None,
    ):
        """
        Args:
            model: in evaluation mode; of :func:`inference_copy` or plain.
            score_thresholds: for each class; detections must be scored above it.
            tile_topk, detections_per_image: keys of TEST; a model that is not staged keeps the
                latter on tiles.
            augmentation: of this model.
        """
        self.model = model
        self.staged = is_staged(model)
        self.windows_cut_short = 0
        self._tile_topk = tile_topk
        self._detections_per_image = detections_per_image
        self._augmentation = augmentation
        self._thresholds = torch.tensor(list(score_thresholds), dtype=torch.float32)
        self._lock = threading.Lock()
        heads = getattr(model, "roi_heads", None)
        self._standard = isinstance(heads, StandardROIHeads)
        self._chosen_nms = [heads] if isinstance(heads, ChosenNMS) else []
        self._box_predictors = stages_of(getattr(heads, "box_predictor", nn.ModuleList()))
        # As in Mask R-CNN, each proposal by itself.
        self._plain = self._standard and _box_branch(heads) is StandardROIHeads._forward_box
        if not self.staged and hasattr(model, "backbone"):
            keep_boxes_fp32(model)

    def __call__(
        self,
        images: Sequence[torch.Tensor],
        sizes: Sequence[tuple[int, int]],
        dense: bool = False,
        scaled: bool = False,
    ) -> list[Instances]:
        """Detect on a batch.

        Args:
            images: (C, H, W) tensors in the channel order of INPUT.FORMAT, 0 to 255.
            sizes: height and width in px of each image before it was resized.
            dense: the images are tiles: TEST.TILE_TOPK proposals, and no cap on detections.
            scaled: they were not resized by INPUT.MIN_SIZE_TEST.

        Returns:
            ``Instances`` on the model's device, best score first.
        """
        with self._lock, torch.inference_mode():
            if self.staged:
                return self._staged(images, dense, scaled)
            inputs = [
                {"image": image, "height": height, "width": width}
                for image, (height, width) in zip(images, sizes, strict=True)
            ]
            found = [output["instances"] for output in self.model(inputs)]
            if dense:
                full = (len(each) >= self._detections_per_image for each in found)
                self._note_cut_short(sum(full))
            return self._above(found)

    def _staged(self, images: Sequence[torch.Tensor], dense: bool, scaled: bool) -> list[Instances]:
        nms, predictors = (self._chosen_nms, self._box_predictors) if dense else ([], [])
        with (
            changed(nms, detections_per_image=-1),
            changed(predictors, test_topk_per_image=-1),
        ):
            if self._augmentation is not None:
                return [self._augmented(image, dense, scaled) for image in images]
            found, pooled = self._found(images, dense)
            if self._standard:
                found = self._with_masks(pooled, found)
            for heads in self._chosen_nms:
                found = heads.after_masks(found)
            return found

    def _augmented(self, image: torch.Tensor, dense: bool, scaled: bool) -> Instances:
        """Detect on views of one image, one after the other."""

        def find(view: torch.Tensor) -> Instances:
            return self._found([view], dense)[0][0]

        def add_masks(view: torch.Tensor, found: Instances) -> Instances:
            # All of them on each view, whatever their scores become there.
            return self._masks(self._features([view])[2], [found])[0]

        before = self.windows_cut_short
        result = self._augmentation(image, find, add_masks, scaled)
        self.windows_cut_short = min(self.windows_cut_short, before + 1)
        return self._above([result])[0]  # soft NMS or the mask head has lowered scores

    def _features(self, images: Sequence[torch.Tensor]) -> tuple[ImageList, Features, Features]:
        """Return the batch, its features, and these as the heads take them."""
        batch = self.model.preprocess_image([{"image": image} for image in images])
        features = self.model.backbone(batch.tensor)
        # ROIAlign reads box coordinates in the features' type and wants NCHW order: both are
        # given to it once for both heads.
        pooled = {name: feature.float().contiguous() for name, feature in features.items()}
        return batch, features, pooled

    def _found(
        self, images: Sequence[torch.Tensor], dense: bool
    ) -> tuple[list[Instances], Features]:
        """Detect boxes; heads that are not standard add their masks at once."""
        batch, features, pooled = self._features(images)
        if dense:
            found = self._dense_boxes(batch, features, pooled)
        else:
            proposals, _ = self.model.proposal_generator(batch, features, None)
            found = self._boxes(batch, pooled, proposals)
        return self._above(found), pooled

    def _with_masks(self, pooled: Features, found: list[Instances]) -> list[Instances]:
        found = self._masks(pooled, found)
        if rescores(self.model):
            return [each[each.scores.argsort(descending=True)] for each in self._above(found)]
        return found

    def _masks(self, pooled: Features, found: list[Instances]) -> list[Instances]:
        heads = self.model.roi_heads
        step, longest = max(1, _MASK_CHUNK // len(found)), max(map(len, found))
        if longest <= _MASK_CHUNK:
            return heads.forward_with_given_boxes(pooled, found)
        with contextlib.ExitStack() as stack:
            for module in heads.modules():
                if isinstance(module, MaskBranch):
                    stack.enter_context(remembered(module))
            parts = [
                heads.forward_with_given_boxes(pooled, [each[i : i + step] for each in found])
                for i in range(0, longest, step)
            ]
        return [Instances.cat(list(of_image)) for of_image in zip(*parts, strict=True)]

    def _above(self, found: list[Instances]) -> list[Instances]:
        """Keep what is scored above its class's threshold."""
        thresholds = self._thresholds.to(found[0].scores.device)
        return [each[each.scores > thresholds[each.pred_classes]] for each in found]

    def _boxes(
        self, batch: ImageList, pooled: Features, proposals: list[Instances]
    ) -> list[Instances]:
        if self._plain and len(proposals) == 1:
            return [self._boxes_of_one(pooled, proposals[0], _BOX_CHUNK, len(proposals[0]))[0]]
        if self._standard:
            return self.model.roi_heads._forward_box(pooled, proposals)
        return self.model.roi_heads(batch, pooled, proposals, None)[0]

    def _dense_boxes(
        self, batch: ImageList, features: Features, pooled: Features
    ) -> list[Instances]:
        """Detect boxes on tiles, with TEST.TILE_TOPK proposals if they are crowded.

        Tiles are crowded if the last quarter of the proposals that the config's own caps let
        through holds a detection; of other heads than the plain box head, which often turn poor
        proposals into good boxes, one that the first proposals do not hold. The plain box head
        then looks at further proposals of a single tile as long as they hold any, the others look
        at all of them.
        """
        rpn, by_chunks = self.model.proposal_generator, self._plain and len(batch) == 1
        topk = {False: self._tile_topk}
        with remembered(rpn.rpn_head):
            crowded = [True] * len(batch)
            if self._standard:
                few, _ = rpn(batch, features, None)
                enough = len(few[0])
            if by_chunks:
                quarter = max(1, -(-enough // 4))
                found, crowded[0] = self._boxes_of_one(pooled, few[0], quarter, enough)
                first = [found]
            elif self._standard:
                first, crowded = self._boxes_of_most(batch, pooled, few)
            if not any(crowded):
                return first
            with changed([rpn], pre_nms_topk=topk, post_nms_topk=topk):
                many, _ = rpn(batch, features, None)
        full = [len(each) >= self._tile_topk for each in many]
        if by_chunks:
            found, crowded[0] = self._boxes_of_one(pooled, many[0], _BOX_CHUNK, enough)
            self._note_cut_short(crowded[0] and full[0])
            return [found]
        if not self._standard:
            self._note_cut_short(sum(full))
            return self._boxes(batch, pooled, many)
        more, still = self._boxes_of_most(batch, pooled, _only(many, crowded))
        if any(still):
            self._note_cut_short(sum(map(operator.and_, still, full)))
            more = _chosen(still, self._boxes(batch, pooled, _only(many, still)), more)
        return _chosen(crowded, more, first)

    def _boxes_of_most(
        self, batch: ImageList, pooled: Features, proposals: list[Instances]
    ) -> tuple[list[Instances], list[bool]]:
        """Detect boxes of the first three quarters of the proposals of each image.

        Returns:
            The detections, and whether the last quarter would add some.
        """
        first, last = (
            self._above(self._boxes(batch, pooled, part))
            for part in (
                [each[: len(each) * 3 // 4] for each in proposals],
                [each[len(each) * 3 // 4 :] for each in proposals],
            )
        )
        return first, list(map(_adds, first, last))

    def _boxes_of_one(
        self, pooled: Features, proposals: Instances, step: int, enough: int
    ) -> tuple[Instances, bool]:
        """Detect boxes of one image by the plain box head, ``step`` proposals at a time.

        Returns the detections, and whether the last proposals looked at held one; beyond
        ``enough`` of them the first ``step`` without one end the search.
        """
        heads, predictor = self.model.roi_heads, self.model.roi_heads.box_predictor
        levels = [pooled[name] for name in heads.box_in_features]
        thresholds = self._thresholds.to(self.model.device)
        parts, done, any_above = [], 0, True
        while not parts or done < len(proposals) and (done < enough or any_above):
            chunk = proposals[done : done + step]
            done += step
            boxes = heads.box_pooler(levels, [chunk.proposal_boxes])
            parts.append(predictor(heads.box_head(boxes)))
            if done >= enough:
                (scores,) = predictor.predict_probs(parts[-1], [chunk])
                any_above = bool((scores[:, :-1] > thresholds).any())
        predictions = tuple(torch.cat(column) for column in zip(*parts, strict=True))
        found, _ = predictor.inference(predictions, [proposals[:done]])
        for chosen in self._chosen_nms:
            found = chosen.after_boxes(found)
        return found[0], any_above

    def _note_cut_short(self, tiles: int) -> None:
        if tiles and not self.windows_cut_short:
            logger.warning(
                "A tile may hold more particles than the model can report (TEST.TILE_TOPK is %d); "
                "use a smaller --tile.",
                self._tile_topk,
            )
        self.windows_cut_short += int(tiles)


def _only(proposals: Sequence[Instances], wanted: Sequence[bool]) -> list[Instances]:
    """Leave out the proposals of the other images."""
    return [each if want else each[:0] for each, want in zip(proposals, wanted, strict=True)]


def _chosen(which: Sequence[bool], yes: Sequence[Any], no: Sequence[Any]) -> list[Any]:
    return [a if want else b for want, a, b in zip(which, yes, no, strict=True)]


def _adds(first: Instances, more: Instances) -> bool:
    """Whether there are detections with an IoU below 0.5 with each of the first ones."""
    if not len(first) or not len(more):
        return bool(len(more))
    iou = pairwise_iou(more.pred_boxes, first.pred_boxes)
    return bool((iou.max(dim=1).values < 0.5).any())


def _box_branch(heads: StandardROIHeads) -> Any:
    """Return the function that detects boxes, below the choice of NMS."""
    owners = (each for each in type(heads).__mro__ if each is not ChosenNMS)
    return next(vars(each)["_forward_box"] for each in owners if "_forward_box" in vars(each))
