"""Masks that do not lie in the boxes of their detections."""

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.layers.mask_ops import paste_masks_in_image
from detectron2.structures import BitMasks, Boxes, ROIMasks

from microplastics.structures.crop_masks import CropMasks


class BoxedMasks(ROIMasks):
    """Masks of N detections of one image, each on a grid in a box of its own.

    Stands in the field ``pred_masks`` of raw results, where Detectron2's (N, 1, M, M) tensor would
    lie in ``pred_boxes``. Detectron2's ``detector_postprocess`` takes it as any ``ROIMasks``.

    Attributes:
        tensor: (N, M, M) probabilities in [0, 1].
        boxes: (N, 4) float32 x0, y0, x1, y1 of the grids in px of the network's input; they may
            reach outside of it.
        image_size: height and width of the network's input in px.
    """

    def __init__(self, tensor: torch.Tensor, boxes: torch.Tensor, image_size: Sequence[int]):
        """
        Raises:
            ValueError: the lengths differ, or the masks have other dimensions.
        """
        super().__init__(tensor)
        if len(tensor) != len(boxes):
            raise ValueError(f"{len(tensor)} masks have {len(boxes)} boxes")
        self.boxes = boxes
        self.image_size = tuple(image_size)

    def to(self, *args: Any, **kwargs: Any) -> "BoxedMasks":
        """Move masks and boxes to another device."""
        tensor, boxes = (each.to(*args, **kwargs) for each in (self.tensor, self.boxes))
        return type(self)(tensor, boxes, self.image_size)

    def __getitem__(self, item: slice | torch.Tensor) -> "BoxedMasks":
        """Select masks by slice, (N,) bool vector or vector of indices."""
        return type(self)(self.tensor[item], self.boxes[item], self.image_size)

    @staticmethod
    def cat(masks: Sequence["BoxedMasks"]) -> "BoxedMasks":
        """Concatenate masks of one image and of one M; at least one part."""
        first = masks[0]
        tensor = torch.cat([each.tensor for each in masks])
        boxes = torch.cat([each.boxes for each in masks])
        return type(first)(tensor, boxes, first.image_size)

    def boxes_on(self, size: Sequence[int]) -> torch.Tensor:
        """Scale the grids' boxes to an image of another height and width in px: (N, 4)."""
        (height, width), (from_height, from_width) = size, self.image_size
        scale = (width / from_width, height / from_height)
        return self.boxes * self.boxes.new_tensor(scale * 2)

    def paste(self, size: Sequence[int], threshold: float = 0.5) -> CropMasks:
        """Paste the masks on an image that the network's input was made of.

        Args:
            size: height and width of the image in px.
            threshold: least probability of a pixel of the mask.
        """
        return CropMasks.paste(self.tensor, self.boxes_on(size), size, threshold)

    def to_bitmasks(
        self, boxes: Boxes, height: int, width: int, threshold: float = 0.5
    ) -> BitMasks:
        """Paste the masks on full frames, as Detectron2 asks of ``ROIMasks``.

        Args:
            boxes: of the detections, which the masks do not depend on.
            height, width, threshold: as of :meth:`paste`.
        """
        del boxes
        size = (height, width)
        return BitMasks(paste_masks_in_image(self.tensor, self.boxes_on(size), size, threshold))
