"""Non-maximum suppression: which of several detections of one particle stays."""

import dataclasses
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.structures import Boxes, Instances, pairwise_iou
from torch import nn

from microplastics.modeling.postprocessing import distinct, postprocess
from microplastics.utils.errors import UserError

KINDS = ("box", "mask", "soft_linear", "soft_gaussian")


@dataclasses.dataclass(frozen=True)
class NMS:
    """How detections are suppressed: MODEL.ROI_HEADS.NMS and the keys beside it.

    Attributes:
        kind: one of :data:`KINDS`; ``"box"`` is Detectron2's.
        box_threshold: of soft_linear, the IoU from which boxes lose score.
        sigma: of soft_gaussian.
        mask_threshold: of mask, the IoU of two masks above which the worse-scored one goes.
        candidate_threshold: of mask, the IoU of two boxes above which no mask is predicted for the
            worse-scored one.
        candidates: of mask, the number of masks that are predicted for an image at most.
        min_score: soft NMS drops what it has lowered to this score.
    """

    kind: str = "box"
    box_threshold: float = 0.5
    sigma: float = 0.5
    mask_threshold: float = 0.5
    candidate_threshold: float = 0.9
    candidates: int = 400
    min_score: float = 0.05

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "NMS":
        """Read the settings of a config.

        Raises:
            UserError: config_invalid.
        """
        heads = cfg.MODEL.ROI_HEADS
        masks, fraction = heads.MASK_NMS, "a number above 0, up to 1"
        kinds = KINDS if cfg.MODEL.MASK_ON else [kind for kind in KINDS if kind != "mask"]
        for key, value, fits, expected in (
            ("NMS", heads.NMS, heads.NMS in kinds, f"one of {', '.join(kinds)}"),
            ("SOFT_NMS_SIGMA", heads.SOFT_NMS_SIGMA, heads.SOFT_NMS_SIGMA > 0, "more than 0"),
            ("MASK_NMS.THRESH", masks.THRESH, 0 < masks.THRESH <= 1, fraction),
            (
                *("MASK_NMS.CANDIDATE_THRESH", masks.CANDIDATE_THRESH),
                *(0 < masks.CANDIDATE_THRESH <= 1, fraction),
            ),
            ("MASK_NMS.CANDIDATES", masks.CANDIDATES, masks.CANDIDATES > 0, "1 or more"),
        ):
            if not fits:
                raise UserError(
                    f"MODEL.ROI_HEADS.{key} is {value}; expected {expected}.",
                    code="config_invalid",
                )
        return cls(
            kind=heads.NMS,
            box_threshold=heads.NMS_THRESH_TEST,
            sigma=heads.SOFT_NMS_SIGMA,
            mask_threshold=heads.MASK_NMS.THRESH,
            candidate_threshold=heads.MASK_NMS.CANDIDATE_THRESH,
            candidates=heads.MASK_NMS.CANDIDATES,
            min_score=heads.SCORE_THRESH_TEST,
        )

    @property
    def soft(self) -> bool:
        """Whether boxes lose score instead of being dropped."""
        return self.kind.startswith("soft")


class ChosenNMS:
    """Mixin for ROI heads that replaces their NMS by the one of MODEL.ROI_HEADS.NMS.

    The box predictors are set to let all candidates through. Soft NMS follows the box head, and
    mask NMS the mask head: in :meth:`forward`, or by whoever calls the heads one by one.

    Attributes:
        nms: the settings.
        detections_per_image: number of detections that mask and soft NMS leave at most; -1 for any.
    """

    @configurable
    def __init__(self, *, nms: NMS = NMS(), detections_per_image: int = 100, **kwargs: Any):
        """
        Args:
            nms: the settings.
            detections_per_image: TEST.DETECTIONS_PER_IMAGE.
            kwargs: of the other ROI heads.
        """
        super().__init__(**kwargs)
        self.nms = nms
        self.detections_per_image = detections_per_image
        for predictor in stages_of(self.box_predictor):
            if nms.kind == "mask":
                predictor.test_nms_thresh = nms.candidate_threshold
                predictor.test_topk_per_image = nms.candidates
            elif nms.soft:
                predictor.test_nms_thresh, predictor.test_topk_per_image = 1.0, -1

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict) -> dict[str, Any]:
        options = super().from_config(cfg, input_shape)
        options["nms"] = NMS.from_config(cfg)
        options["detections_per_image"] = cfg.TEST.DETECTIONS_PER_IMAGE
        return options

    def forward(self, images, features, proposals, targets=None):
        results, losses = super().forward(images, features, proposals, targets)
        return (results if self.training else self.after_masks(results)), losses

    def _forward_box(self, features, proposals, *targets):
        found = super()._forward_box(features, proposals, *targets)
        return found if self.training else self.after_boxes(found)

    def after_boxes(self, found: list[Instances]) -> list[Instances]:
        """Rescore the candidates of whole images by soft NMS, if it is chosen."""
        if not self.nms.soft:
            return found
        return [self._capped(soft_nms(each, self.nms)) for each in found]

    def after_masks(self, found: list[Instances]) -> list[Instances]:
        """Suppress candidates of whole images, with all their masks, by mask NMS, if chosen."""
        if self.nms.kind != "mask" or not self.mask_on:
            return found
        return [self._capped(mask_nms(each, self.nms)) for each in found]

    def _capped(self, found: Instances) -> Instances:
        return found if self.detections_per_image < 0 else found[: self.detections_per_image]


def stages_of(module: nn.Module) -> list[nn.Module]:
    """Return the parts of a cascade for its stages, or the only one of other heads."""
    return list(module) if isinstance(module, nn.ModuleList) else [module]


def mask_nms(found: Instances, nms: NMS) -> Instances:
    """Drop detections whose masks overlap a better-scored one of the same class.

    Boxes of crossing fibres overlap, and their masks hardly do. Masks are compared as crops in px
    of the network's input; detections whose mask has no pixel go, too.

    Args:
        found: raw results of one image, with ``pred_masks``.
        nms: the settings.

    Returns:
        Those that stay, best score first.
    """
    device = found.scores.device
    found = found[found.pred_boxes.nonempty()]
    masks = postprocess(found, *found.image_size).pred_masks
    has_pixels = masks.nonempty()
    found, masks = found[has_pixels.to(device)], masks[has_pixels]
    classes, scores = found.pred_classes.cpu().numpy(), found.scores.cpu().numpy()
    kept = distinct(masks, classes, scores, nms.mask_threshold, across_classes=False)
    # A mask head may have changed the scores, and with them the order.
    kept = kept[np.argsort(-scores[kept], kind="stable")]
    return found[torch.from_numpy(kept).to(device)]


def soft_nms(found: Instances, nms: NMS) -> Instances:
    """Lower the scores of boxes that overlap better-scored ones of their class.

    Bodla et al. 2017, "Soft-NMS -- Improving Object Detection With One Line of Code": the best
    box of the rest stays, and the others of its class are multiplied by 1 - IoU from
    ``nms.box_threshold`` on (linear), or by exp(-IoU² / ``nms.sigma``) (Gaussian).

    Args:
        found: boxes of one image, without NMS.
        nms: the settings.

    Returns:
        Those still scored above ``nms.min_score``, best first.
    """
    boxes, rest = found.pred_boxes.tensor.cpu(), found.scores.cpu().clone()
    classes = found.pred_classes.cpu()
    order, scores = [], []
    while len(order) < len(found):
        best = int(rest.argmax())
        score = float(rest[best])
        if score <= nms.min_score:
            break
        order.append(best)
        scores.append(score)
        iou = pairwise_iou(Boxes(boxes[best : best + 1]), Boxes(boxes))[0]
        if nms.kind == "soft_linear":
            factor = torch.where(iou >= nms.box_threshold, 1 - iou, 1.0)
        else:
            factor = torch.exp(-iou.square() / nms.sigma)
        rest = torch.where(classes == classes[best], rest * factor, rest)
        rest[best] = -1
    device = found.scores.device
    found = found[torch.tensor(order, dtype=torch.int64, device=device)]
    found.scores = torch.tensor(scores, dtype=found.scores.dtype, device=device)
    return found
