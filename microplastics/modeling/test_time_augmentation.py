"""Detection on several sizes and flips of an image (TEST.AUG)."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.layers import batched_nms
from detectron2.structures import Boxes, Instances, ROIMasks
from torch import nn

from microplastics.modeling.interface import changed, is_staged
from microplastics.modeling.nms import NMS, ChosenNMS, stages_of
from microplastics.modeling.postprocessing import postprocess
from microplastics.utils.errors import UserError

FindBoxes = Callable[[torch.Tensor], Instances]
"""Takes a (C, H, W) image and gives raw boxes, without masks."""
AddMasks = Callable[[torch.Tensor, Instances], Instances]
"""Takes a (C, H, W) image and boxes on it, and gives these with ``pred_masks``."""


class TestTimeAugmentation:
    """Merges what a model finds on several views of an image: sizes and flips.

    As Detectron2's ``GeneralizedRCNNWithTTA``: boxes of all views go through the NMS of the model
    together; then masks are predicted for the ones that stay, on each view, and their
    probabilities are averaged. One view is in memory at a time, and no mask is pasted.
    """

    __test__ = False  # not a test of pytest's

    def __init__(self, cfg: CfgNode, model: nn.Module):
        """
        Args:
            cfg: with TEST.AUG.
            model: in evaluation mode.

        Raises:
            UserError: config_invalid; the sizes are not positive, or the model cannot be run stage
                by stage.
        """
        aug = cfg.TEST.AUG
        if not aug.MIN_SIZES or min(*aug.MIN_SIZES, aug.MAX_SIZE) < 1:
            raise UserError(
                f"TEST.AUG.MIN_SIZES is {aug.MIN_SIZES} and MAX_SIZE {aug.MAX_SIZE}; expected "
                "sides of 1 px or more.",
                code="config_invalid",
            )
        if not is_staged(model) or not hasattr(model.roi_heads, "forward_with_given_boxes"):
            raise UserError(
                f"TEST.AUG.ENABLED is True, which {cfg.MODEL.META_ARCHITECTURE} with "
                f"{cfg.MODEL.ROI_HEADS.NAME} cannot follow; expected a GeneralizedRCNN whose heads "
                "take boxes, or False.",
                code="config_invalid",
            )
        self._min_sizes, self._max_size = tuple(aug.MIN_SIZES), aug.MAX_SIZE
        self._input_size = cfg.INPUT.MIN_SIZE_TEST
        horizontal = (False, True) if aug.FLIP else (False,)
        vertical = (False, True) if aug.VERTICAL_FLIP else (False,)
        self._flips = [(x, y) for y in vertical for x in horizontal]
        self._heads = model.roi_heads

    def views(self, size: Sequence[int], scaled: bool = False) -> list[T.TransformList]:
        """List the transforms that make the views of an image.

        Args:
            size: height and width of the network's input in px.
            scaled: the input was not resized by INPUT.MIN_SIZE_TEST, as a tile: the sizes are
                taken relative to that.
        """
        height, width = size
        sizes = [self._view_size(height, width, side, scaled) for side in self._min_sizes]
        views = []
        for new_height, new_width in dict.fromkeys(sizes):
            for x, y in self._flips:
                steps = [T.ResizeTransform(height, width, new_height, new_width)]
                steps += [T.HFlipTransform(new_width)] if x else []
                steps += [T.VFlipTransform(new_height)] if y else []
                views.append(T.TransformList(steps))
        return views

    def _view_size(self, height: int, width: int, side: int, scaled: bool) -> tuple[int, int]:
        if not scaled:
            return T.ResizeShortestEdge.get_output_shape(height, width, side, self._max_size)
        if not self._input_size:
            raise UserError(
                "INPUT.MIN_SIZE_TEST is 0, but TEST.AUG.MIN_SIZES are relative to it on windows of "
                "a large image; expected px.",
                code="config_invalid",
            )
        factor = min(side / self._input_size, self._max_size / max(height, width))
        return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))

    @torch.no_grad()
    def __call__(
        self, image: torch.Tensor, find: FindBoxes, add_masks: AddMasks, scaled: bool = False
    ) -> Instances:
        """Detect on all views of a (C, H, W) network's input, 0 to 255, on the CPU.

        ``find`` and ``add_masks`` are the model's; ``scaled`` is as of :meth:`views`. Returned are
        raw results in px of the input, best score first.
        """
        heads, size = self._heads, tuple(image.shape[1:])
        views = self.views(size, scaled)
        with changed(self._chosen, nms=NMS()), changed(self._masked, mask_on=False):
            parts = [_on_image(find(_seen(image, view)), view, size) for view in views]
        (found,) = self._merged(Instances.cat(parts))
        if getattr(heads, "mask_on", False):
            found = self._with_masks(found, image, views, add_masks)
        for chosen in self._chosen:
            (found,) = chosen.after_masks([found])
        return found

    def _with_masks(
        self,
        found: Instances,
        image: torch.Tensor,
        views: Sequence[T.TransformList],
        add_masks: AddMasks,
    ) -> Instances:
        """Average what the mask head says on each view: masks, and scores if it changes them."""
        probabilities, scores = 0, 0
        for view in views:
            seen = add_masks(_seen(image, view), _on_view(found, view))
            masks, boxes = _grids(seen.pred_masks)
            probabilities = probabilities + masks.flip(_flipped_axes(view))
            scores = scores + seen.scores
        found.scores = scores / len(views)
        found.pred_masks = probabilities / len(views)
        if boxes is not None:  # where they lie is the same on all views
            masks, boxes = found.pred_masks[:, 0], _to_image(boxes, view)
            found.pred_masks = type(seen.pred_masks)(masks, boxes, found.image_size)
        return found[found.scores.argsort(descending=True, stable=True)]

    @property
    def _chosen(self) -> list[ChosenNMS]:
        return [self._heads] if isinstance(self._heads, ChosenNMS) else []

    @property
    def _masked(self) -> list[nn.Module]:
        return [self._heads] if hasattr(self._heads, "mask_on") else []

    def _merged(self, found: Instances) -> list[Instances]:
        """Suppress boxes as the box head's own inference does."""
        predictor = stages_of(self._heads.box_predictor)[-1]
        kept = batched_nms(
            found.pred_boxes.tensor, found.scores, found.pred_classes, predictor.test_nms_thresh
        )
        if predictor.test_topk_per_image >= 0:
            kept = kept[: predictor.test_topk_per_image]
        merged = [found[kept]]
        for chosen in self._chosen:
            merged = chosen.after_boxes(merged)
        return merged


class AugmentedRCNN(nn.Module):
    """A ``GeneralizedRCNN`` that detects with test-time augmentation, for evaluation."""

    def __init__(self, cfg: CfgNode, model: nn.Module):
        """
        Args:
            cfg, model: as of :class:`TestTimeAugmentation`, which raises the same errors.
        """
        super().__init__()
        self.model = model
        self._augmentation = TestTimeAugmentation(cfg, model)

    def forward(self, inputs: Sequence[dict[str, Any]]) -> list[dict[str, Instances]]:
        """Detect on mapped dicts; masks are :class:`CropMasks` on the original images."""
        return [
            {"instances": postprocess(self.detect(item["image"]), item["height"], item["width"])}
            for item in inputs
        ]

    def detect(self, image: torch.Tensor) -> Instances:
        """Detect on a (C, H, W) network's input; raw results in px of it."""
        return self._augmentation(image.cpu(), self._find, self._add_masks)

    def _find(self, image: torch.Tensor) -> Instances:
        return self.model.inference([{"image": image}], do_postprocess=False)[0]

    def _add_masks(self, image: torch.Tensor, found: Instances) -> Instances:
        return self.model.inference([{"image": image}], [found], do_postprocess=False)[0]


def _seen(image: torch.Tensor, view: T.TransformList) -> torch.Tensor:
    """Make a view of an image."""
    array = view.transforms[0].apply_image(image.permute(1, 2, 0).numpy())
    return torch.from_numpy(array.transpose(2, 0, 1).copy()).flip(_flipped_axes(view))


def _on_image(found: Instances, view: T.TransformList, size: tuple[int, int]) -> Instances:
    """Bring boxes on a view to the image."""
    boxes = Boxes(_to_image(found.pred_boxes.tensor, view))
    return Instances(size, pred_boxes=boxes, scores=found.scores, pred_classes=found.pred_classes)


def _on_view(found: Instances, view: T.TransformList) -> Instances:
    """Bring boxes on the image to a view."""
    resize, boxes = view.transforms[0], found.pred_boxes.tensor
    there = torch.from_numpy(view.apply_box(boxes.cpu().numpy())).to(boxes)
    fields = {**found.get_fields(), "pred_boxes": Boxes(there)}
    return Instances((resize.new_h, resize.new_w), **fields)


def _to_image(boxes: torch.Tensor, view: T.TransformList) -> torch.Tensor:
    return torch.from_numpy(view.inverse().apply_box(boxes.cpu().numpy())).to(boxes)


def _grids(masks: torch.Tensor | ROIMasks) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return (N, 1, M, M) probabilities, and the (N, 4) boxes of their grids if they have own."""
    if isinstance(masks, torch.Tensor):
        return masks, None
    if not hasattr(masks, "boxes"):
        raise UserError(
            f"TEST.AUG.ENABLED is True, but the mask head predicts {type(masks).__name__}; "
            "expected masks on a grid in a box, or TEST.AUG.ENABLED False.",
            code="config_invalid",
        )
    return masks.tensor[:, None], masks.boxes


def _flipped_axes(view: T.TransformList) -> list[int]:
    axes = {T.HFlipTransform: -1, T.VFlipTransform: -2}
    return [axes[type(step)] for step in view.transforms[1:]]
