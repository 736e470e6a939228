"""Masks that do not lie in the boxes of their detections."""

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.layers.mask_ops import paste_masks_in_image
from detectron2.structures import BitMasks, Boxes, ROIMasks
from torch.nn import functional as F

from microplastics.structures.crop_masks import CropMasks
from microplastics.structures.view import tight


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


class WindowMasks(ROIMasks):
    """Mask probabilities of N detections of one image, each in its own window of a grid of cells.

    A cell covers ``stride`` x ``stride`` px of the network's input. All windows share one flat
    tensor, so that memory is what the windows cover. Detectron2's ``detector_postprocess`` and
    ``Instances.cat`` work with it.

    Attributes:
        tensor: (T,) probabilities, window by window and row by row.
        windows: (N, 4) int64 on the CPU: x0, y0, x1, y1 in cells, x1 and y1 exclusive.
        stride: side of a cell in px of the network's input.
        image_size: height and width of the network's input in px, without padding.
    """

    def __init__(
        self,
        tensor: torch.Tensor,
        windows: torch.Tensor,
        stride: int,
        image_size: Sequence[int],
    ):
        """
        Raises:
            ValueError: the windows do not have as many cells as there are probabilities.
        """
        self.windows = windows.reshape(-1, 4).cpu()
        self.stride = stride
        self.image_size = (int(image_size[0]), int(image_size[1]))
        self._areas = areas(self.windows)
        if tensor.shape != (int(self._areas.sum()),):
            raise ValueError(
                f"{tuple(tensor.shape)} values for windows of {int(self._areas.sum())} cells"
            )
        self.tensor = tensor

    def __len__(self) -> int:
        return len(self.windows)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(num_instances={len(self)}, stride={self.stride})"

    def __getitem__(self, item: int | slice | Sequence | torch.Tensor) -> "WindowMasks":
        """Select masks by index, slice, (N,) bool vector or vector of indices."""
        if isinstance(item, torch.Tensor):
            item = item.cpu()
        picked = torch.arange(len(self))[item].reshape(-1)
        parts = self.parts()
        flat = [parts[index].reshape(-1) for index in picked.tolist()]
        tensor = torch.cat([self.tensor[:0], *flat])
        return WindowMasks(tensor, self.windows[picked], self.stride, self.image_size)

    def to(self, device: str | torch.device) -> "WindowMasks":
        """Return the masks with their probabilities on a device."""
        return WindowMasks(self.tensor.to(device), self.windows, self.stride, self.image_size)

    @staticmethod
    def cat(masks: Sequence["WindowMasks"]) -> "WindowMasks":
        """Concatenate masks of one image; at least one part."""
        return WindowMasks(
            torch.cat([each.tensor for each in masks]),
            torch.cat([each.windows for each in masks]),
            masks[0].stride,
            masks[0].image_size,
        )

    def parts(self) -> list[torch.Tensor]:
        """Return the (h, w) probabilities of each window, as views."""
        sizes = (self.windows[:, 2:] - self.windows[:, :2]).tolist()
        flat = self.tensor.split(self._areas.tolist())
        return [part.view(height, width) for part, (width, height) in zip(flat, sizes, strict=True)]

    def paste(self, size: Sequence[int], threshold: float = 0.5) -> CropMasks:
        """Resize the masks bilinearly to an image and cut them at a probability.

        Probabilities are interpolated, not logits: they are learnt as the fraction of a cell that
        the particle covers. Pixels outside of a window do not belong to its mask.

        Args:
            size: height and width of the image in px, any scale of the network's input.
            threshold: least probability of a pixel of the mask.
        """
        crops, offsets = [], []
        for crop, x0, y0 in self._pasted(size, threshold):
            crop, x, y = tight(crop.cpu().numpy(), x0, y0)
            crops.append(crop.copy())
            offsets.append((x, y) if crop.size else (0, 0))
        return CropMasks(crops, offsets, size)

    def to_bitmasks(
        self, boxes: Boxes, height: int, width: int, threshold: float = 0.5
    ) -> BitMasks:
        """Do what :meth:`paste` does, with full frames and ``ROIMasks``'s signature.

        Args:
            boxes: not used; these masks know where they lie.
            height: of the image in px.
            width: of the image in px.
            threshold: least probability of a pixel of the mask.
        """
        masks = self.paste((height, width), threshold).to_bitmasks()
        return BitMasks(masks.to(self.tensor.device))

    def _pasted(self, size: Sequence[int], threshold: float):
        """Yield each mask's (h, w) bool crop of the image, and its x0 and y0."""
        # From cells to px of the image, along x and y.
        scale = [self.stride * size[i] / self.image_size[i] for i in (1, 0)]
        # Pixels whose centres lie in the window.
        ends = (self.windows.double() * torch.tensor(scale * 2) - 0.5).ceil().long()
        ends[:, 0::2].clamp_(0, size[1])
        ends[:, 1::2].clamp_(0, size[0])
        device = self.tensor.device
        for part, window, (x0, y0, x1, y1) in zip(
            self.parts(), self.windows.tolist(), ends.tolist(), strict=True
        ):
            grid = torch.empty(1, y1 - y0, x1 - x0, 2, device=device)
            for axis, (start, end) in enumerate(((x0, x1), (y0, y1))):
                centers = (torch.arange(start, end, device=device) + 0.5) / scale[axis]
                cells = window[axis + 2] - window[axis]
                place = (centers - window[axis]) * (2 / cells) - 1
                grid[..., axis] = place if axis == 0 else place[:, None]
            crop = torch.zeros(y1 - y0, x1 - x0, dtype=torch.bool, device=device)
            if grid.numel():
                values = F.grid_sample(
                    part.float()[None, None], grid, padding_mode="border", align_corners=False
                )
                crop = values[0, 0] >= threshold
            yield crop, x0, y0


def areas(windows: torch.Tensor) -> torch.Tensor:
    """Count the cells of (N, 4) windows x0, y0, x1, y1: (N,) int64."""
    return (windows[:, 2] - windows[:, 0]) * (windows[:, 3] - windows[:, 1])
