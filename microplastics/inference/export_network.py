"""A Detectron2 Mask R-CNN as one module of tensors alone, which ``torch.jit.trace`` can follow."""

import torch
from detectron2.layers import ROIAlign
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator.rpn import RPN
from detectron2.modeling.roi_heads import StandardROIHeads
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.modeling.roi_heads.mask_head import BaseMaskRCNNHead
from torch import nn
from torch.nn import functional as F
from torchvision.ops import nms


def why_not_exportable(model: nn.Module) -> str | None:
    """Name the part of a model that :class:`ExportNetwork` does not know; ``None`` if none."""
    if type(model) is not GeneralizedRCNN:
        return f"the architecture {type(model).__name__}"
    rpn, heads = model.proposal_generator, model.roi_heads
    parts = [
        (rpn, RPN),
        (getattr(rpn, "anchor_generator", None), DefaultAnchorGenerator),
        (heads, StandardROIHeads),
        (getattr(heads, "box_predictor", None), FastRCNNOutputLayers),
    ]
    for part, known in parts:
        if type(part) is not known:
            return f"{type(part).__name__} in place of {known.__name__}"
    poolers = [heads.box_pooler]
    if heads.mask_on:
        if not isinstance(heads.mask_head, BaseMaskRCNNHead):
            return f"the mask head {type(heads.mask_head).__name__}"
        poolers.append(heads.mask_pooler)
    for pooler in poolers:
        if not isinstance(pooler, ROIPooler):
            return f"the pooler {type(pooler).__name__}"
        for level in pooler.level_poolers:
            if not isinstance(level, ROIAlign):
                return f"{type(level).__name__} in place of ROIAlign"
    if heads.keypoint_on:
        return "keypoints"
    if getattr(model.backbone, "padding_constraints", {}).get("square_size"):
        return "inputs padded to a square"
    return None


class ExportNetwork(nn.Module):
    """From one resized image to its detections, as Detectron2's ``GeneralizedRCNN`` finds them.

    Normalises, pads, detects, and cuts by score before the mask head. The sums are Detectron2's
    on either of its builds; sizes of the image and numbers of boxes are never turned into Python
    numbers, so that a trace holds for others. NMS runs for each level and class on its own, which
    torchvision does for many boxes only and for few by shifting them apart.
    """

    def __init__(self, model: nn.Module, score_thresholds: torch.Tensor):
        """
        Args:
            model: in evaluation mode, one without :func:`why_not_exportable`.
            score_thresholds: (K,) float32; a detection is scored above its class's.
        """
        super().__init__()
        self.backbone = model.backbone
        self.rpn = model.proposal_generator
        self.heads = model.roi_heads
        self.register_buffer("mean", model.pixel_mean.clone())
        self.register_buffer("std", model.pixel_std.clone())
        self.register_buffer("thresholds", score_thresholds)
        self.divisor = max(1, model.backbone.size_divisibility)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """
        Args:
            image: (3, H, W) uint8, channels in the order of INPUT.FORMAT.

        Returns:
            boxes: (N, 4) float32 x0, y0, x1, y1 in px of ``image``, best score first.
            scores: (N,) float32.
            classes: (N,) int64, 0 to K - 1.
            masks: (N, 1, M, M) float32 probabilities inside the boxes; left out without a mask
                head.
            size: (2,) int64, H and W.
        """
        height, width = _tensor(image.shape[1]), _tensor(image.shape[2])
        size = torch.stack([height, width])
        # Counted on the image's own device: what is moved there is moved to the trace's device.
        across = torch.ones_like(image[0, 0], dtype=torch.float32).sum()
        down = torch.ones_like(image[0, :, 0], dtype=torch.float32).sum()
        limits = torch.stack([across, down, across, down])
        pixels = (image.float() - self.mean) / self.std
        padding = [0, (-width) % self.divisor, 0, (-height) % self.divisor]
        features = self.backbone(F.pad(pixels, padding)[None])
        boxes = self._propose([features[name] for name in self.rpn.in_features], limits)
        boxes, scores, classes = self._detect(features, boxes, limits)
        if not self.heads.mask_on:
            return boxes, scores, classes, size
        levels = [features[name] for name in self.heads.mask_in_features]
        logits = self.heads.mask_head.layers(_pool(self.heads.mask_pooler, levels, boxes))
        if logits.shape[1] != 1:
            chosen = classes[:, None, None, None].expand(-1, 1, logits.shape[2], logits.shape[3])
            logits = logits.gather(1, chosen)
        return boxes, scores, classes, logits.sigmoid(), size

    def _propose(self, features: list[torch.Tensor], limits: torch.Tensor) -> torch.Tensor:
        """Boxes (P, 4) worth a look, by RPN."""
        rpn = self.rpn
        boxes, scores = [], []
        all_logits, all_deltas = rpn.rpn_head(features)
        generator = rpn.anchor_generator
        for feature, logits, deltas, cells, stride in zip(
            features, all_logits, all_deltas, generator.cell_anchors, generator.strides, strict=True
        ):
            anchors = _anchors(feature, cells, stride, generator.offset)
            logits = logits[0].permute(1, 2, 0).flatten()
            count = torch.clamp(_tensor(logits.shape[0]), max=rpn.pre_nms_topk[False])
            best, chosen = logits.topk(count)
            deltas = deltas[0].unflatten(0, (-1, 4)).permute(2, 3, 0, 1).reshape(-1, 4)
            found = rpn.box2box_transform.apply_deltas(deltas[chosen], anchors[chosen])
            finite = torch.isfinite(found).all(dim=1) & torch.isfinite(best)
            found, best = _clip(found[finite], limits), best[finite]
            sides = found[:, 2:] - found[:, :2]
            large = (sides > rpn.min_box_size).all(dim=1)
            found, best = found[large], best[large]
            kept = nms(found, best, rpn.nms_thresh)
            boxes.append(found[kept])
            scores.append(best[kept])
        order = torch.cat(scores).argsort(descending=True)
        return torch.cat(boxes)[order[: rpn.post_nms_topk[False]]]

    def _detect(
        self, features: dict[str, torch.Tensor], proposals: torch.Tensor, limits: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Boxes, scores and classes above their thresholds, by the box head."""
        heads, predictor = self.heads, self.heads.box_predictor
        levels = [features[name] for name in heads.box_in_features]
        logits, deltas = predictor(heads.box_head(_pool(heads.box_pooler, levels, proposals)))
        found = predictor.box2box_transform.apply_deltas(deltas, proposals)
        if getattr(predictor, "use_sigmoid_ce", False):  # Detectron2 main alone
            probabilities = logits.sigmoid()
        else:
            probabilities = logits.softmax(dim=-1)
        finite = torch.isfinite(found).all(dim=1) & torch.isfinite(probabilities).all(dim=1)
        boxes, scores, classes = [], [], []
        for number in range(len(self.thresholds)):
            score = probabilities[:, number]
            high = finite & (score > predictor.test_score_thresh)
            first = 4 * number if found.shape[1] > 4 else 0
            of_class, score = _clip(found[high, first : first + 4], limits), score[high]
            kept = nms(of_class, score, predictor.test_nms_thresh)
            boxes.append(of_class[kept])
            scores.append(score[kept])
            classes.append(torch.full_like(kept, number))
        score = torch.cat(scores)
        order = score.argsort(descending=True)
        if predictor.test_topk_per_image >= 0:
            order = order[: predictor.test_topk_per_image]
        box, score, label = torch.cat(boxes)[order], score[order], torch.cat(classes)[order]
        above = score > self.thresholds[label]
        return box[above], score[above], label[above]


def _tensor(side: int | torch.Tensor) -> torch.Tensor:
    # Within a trace sides are tensors already, and must stay what was traced.
    return side if isinstance(side, torch.Tensor) else torch.tensor(side)


def _anchors(
    feature: torch.Tensor, cells: torch.Tensor, stride: int, offset: float
) -> torch.Tensor:
    # Running sums of ones: torch.arange would write the device of the trace into it.
    x = (torch.ones_like(feature[0, 0, 0]).cumsum(0) - 1 + offset) * stride
    y = (torch.ones_like(feature[0, 0, :, 0]).cumsum(0) - 1 + offset) * stride
    x, y = x[None] + 0 * y[:, None], y[:, None] + 0 * x[None]
    return (torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4) + cells).reshape(-1, 4)


def _clip(boxes: torch.Tensor, limits: torch.Tensor) -> torch.Tensor:
    return torch.minimum(boxes.clamp(min=0), limits)


def _pool(pooler: ROIPooler, features: list[torch.Tensor], boxes: torch.Tensor) -> torch.Tensor:
    """Detectron2's ``ROIPooler`` for one image; boxes keep their order."""
    rois = torch.cat([torch.zeros_like(boxes[:, :1]), boxes], dim=1)
    if len(features) == 1:
        return pooler.level_poolers[0](features[0], rois)
    sides = boxes[:, 2:] - boxes[:, :2]
    size = (sides[:, 0] * sides[:, 1]).sqrt()
    level = (pooler.canonical_level + torch.log2(size / pooler.canonical_box_size + 1e-8)).floor()
    level = level.clamp(pooler.min_level, pooler.max_level) - pooler.min_level
    parts, order = [], []
    for number, (align, feature) in enumerate(zip(pooler.level_poolers, features, strict=True)):
        chosen = (level == number).nonzero()[:, 0]
        parts.append(align(feature, rois[chosen]))
        order.append(chosen)
    return torch.cat(parts)[torch.cat(order).argsort()]
