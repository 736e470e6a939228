"""Instance masks as crops."""

import functools
import os
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.structures import BitMasks, Boxes, PolygonMasks
from torch.nn import functional as F
from torchvision.ops import roi_align

from microplastics.structures import rle as runs
from microplastics.structures.view import View, box_of, clip, tight

# pycocotools walks along a polygon in steps of a fifth of a pixel and allocates every one.
_POLYGON_STEPS_LIMIT = 50_000_000


@functools.cache
def _most_pixels() -> int:
    """Half of this machine's memory in bytes; a pixel of a mask's box takes one.

    A few bytes of run lengths can stand for a mask as large as the largest image.
    """
    if not hasattr(os, "sysconf"):  # Windows
        return 8 << 30
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


class CropMasks(BitMasks):
    """Binary masks of N instances of one image, each as a crop and its position.

    Replaces Detectron2's ``BitMasks`` and ``PolygonMasks``: ``gt_masks`` in training,
    ``pred_masks`` in results. A particle covers a thousandth of its image, and so its crop takes
    a thousandth of the memory of a full-frame bitmap. The crops stay on the CPU;
    :meth:`crop_and_resize` answers on the device of its boxes. Full frames are made on request:
    by :attr:`tensor` (PointRend samples its points there), or one at a time by iterating.
    ``numpy.asarray`` gives COCO RLEs, which the ``Visualizer`` draws.

    Attributes:
        crops: N bool arrays of shape (h_i, w_i), read only; (0, 0) is an empty mask. Made of
            arrays or CPU tensors that are non-zero inside the mask.
        offsets: (N, 2) int64 array, x0 and y0 of each crop in image pixels.
        image_size: height and width of the image in pixels.
        device: where :attr:`tensor` is made.
    """

    device: torch.device = torch.device("cpu")

    def __init__(
        self, crops: Sequence[np.ndarray], offsets: Any, image_size: Sequence[int]
    ) -> None:
        """
        Raises:
            ValueError: a crop reaches outside the image, or the lengths differ.
        """
        self.crops = [np.asarray(crop).astype(bool, copy=False) for crop in crops]
        self.offsets = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)
        self.image_size = (int(image_size[0]), int(image_size[1]))
        if len(self.crops) != len(self.offsets):
            raise ValueError(f"{len(self.crops)} crops have {len(self.offsets)} offsets")
        shapes = np.array([crop.shape for crop in self.crops], dtype=np.int64).reshape(-1, 2)
        ends = self.offsets + shapes[:, ::-1]
        if (self.offsets < 0).any() or (ends > self.image_size[::-1]).any():
            raise ValueError(f"A crop reaches outside the image of {self.image_size} pixels")

    @classmethod
    def from_coco(
        cls, segmentations: Sequence[list | dict[str, Any]], image_size: Sequence[int]
    ) -> "CropMasks":
        """Rasterise COCO segmentations as pycocotools does, polygons and RLEs mixed.

        Args:
            segmentations: for each instance a list of polygons [x0, y0, x1, y1, ...] in image
                pixels, or an RLE dict, compressed or not.
            image_size: height and width in pixels.

        Raises:
            ValueError: a segmentation is malformed, or an RLE of another image size.
        """
        height, width = int(image_size[0]), int(image_size[1])
        rles = []
        for segmentation in segmentations:
            if isinstance(segmentation, dict):
                rles.append(segmentation)
            else:
                # In image coordinates, since shifting a polygon changes how pycocotools rounds
                # ties. It works on the outline: the size of the image costs nothing.
                parts = mask_util.frPyObjects(_checked_polygons(segmentation), height, width)
                rles.append(mask_util.merge(parts))
        return cls.from_rles(rles, (height, width))

    @classmethod
    def from_rles(
        cls, rles: Sequence[dict[str, Any]], image_size: Sequence[int] | None = None
    ) -> "CropMasks":
        """Decode COCO RLEs of the full frame, each into the crop that holds it.

        Args:
            rles: dicts with ``size`` (height, width) and ``counts``, compressed (bytes or str)
                or a list of run lengths.
            image_size: height and width; taken from the first RLE if None.

        Raises:
            ValueError: an RLE is damaged or of another size.
        """
        if image_size is None:
            if not len(rles):
                raise ValueError("image_size is needed if there are no RLEs")
            image_size = rles[0]["size"]
        size = (int(image_size[0]), int(image_size[1]))
        try:
            batch = [rle["counts"] for rle in rles]
            sizes = [list(rle["size"]) for rle in rles]
        except (KeyError, TypeError) as error:
            raise ValueError("An RLE lacks its size or its counts") from error
        for other in sizes:
            if other != list(size):
                raise ValueError(f"RLE of size {other} in an image of size {list(size)}")
        crops, offsets, pixels = [], [], 0
        for counts in runs.decode_counts_batch(batch):
            edges = runs.runs_of_counts(runs.check_counts(counts, size))
            left, top, right, bottom = runs.box_of_runs(*edges, size[0])
            pixels += (right - left) * (bottom - top)
            if pixels > _most_pixels():
                raise ValueError("the boxes around the masks need more than half of the memory")
            crop, *offset = runs.crop_of_runs(*edges, size[0])
            crops.append(crop)
            offsets.append(offset)
        return cls(crops, offsets, size)

    @classmethod
    def from_bitmasks(cls, masks: torch.Tensor | np.ndarray) -> "CropMasks":
        """Cut full-frame masks, (N, H, W) and non-zero inside, down to their crops."""
        if isinstance(masks, torch.Tensor):
            masks = masks.detach().cpu().numpy()
        masks = masks.astype(bool, copy=False)
        crops, offsets = [], []
        for mask in masks:
            crop, *offset = tight(mask, 0, 0)
            crops.append(crop.copy())
            offsets.append(offset)
        return cls(crops, offsets, masks.shape[1:])

    @classmethod
    def paste(
        cls,
        mask_probs: torch.Tensor,
        boxes: torch.Tensor,
        image_size: Sequence[int],
        threshold: float = 0.5,
    ) -> "CropMasks":
        """Paste the mask head's output into the image, each mask into its own box.

        Gives the pixels of ``detectron2.layers.paste_masks_in_image`` on the CPU in float32,
        without its full frames.

        Args:
            mask_probs: (N, M, M) probabilities in [0, 1].
            boxes: (N, 4) x0, y0, x1, y1 in image pixels.
            image_size: height and width in pixels.
            threshold: least probability of a pixel of the mask.

        Raises:
            ValueError: a box is not finite, or the lengths differ.
        """
        crops, offsets = [], []
        for pasted, offset in paste_probabilities(mask_probs, boxes, image_size):
            crops.append((pasted >= threshold).numpy())
            offsets.append(offset)
        return cls(crops, offsets, image_size)

    @staticmethod
    def cat(masks: Sequence["CropMasks"]) -> "CropMasks":
        """Concatenate masks of one image; at least one part."""
        crops = [crop for mask in masks for crop in mask.crops]
        offsets = np.concatenate([mask.offsets for mask in masks])
        joined = CropMasks(crops, offsets, masks[0].image_size)
        joined.device = masks[0].device
        return joined

    def __len__(self) -> int:
        return len(self.crops)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(num_instances={len(self)}, image_size={self.image_size})"

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield each mask as a full-frame (H, W) bool array, one at a time."""
        for index in range(len(self)):
            yield self[index].to_bitmasks()[0].numpy()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Return an object array of COCO RLEs, which the ``Visualizer`` draws."""
        array = np.empty(len(self), dtype=object)
        array[:] = self.to_rles()
        return array

    def __getitem__(self, item: int | slice | Sequence | np.ndarray | torch.Tensor) -> "CropMasks":
        """Select masks by index, slice, (N,) bool vector or vector of indices."""
        if not isinstance(item, slice):
            item = item.cpu().numpy() if isinstance(item, torch.Tensor) else np.asarray(item)
            item = item if item.size else item.astype(np.int64)
        picked = np.arange(len(self))[item].reshape(-1)
        result = CropMasks([self.crops[i] for i in picked], self.offsets[picked], self.image_size)
        result.device = self.device
        return result

    def to(self, device: str | torch.device, **kwargs: Any) -> "CropMasks":
        """Return the masks with ``tensor`` on another device; the crops stay on the CPU."""
        if torch.device(device) == self.device:
            return self
        moved = self[:]
        moved.device = torch.device(device)
        return moved

    @property
    def tensor(self) -> torch.Tensor:
        """Full-frame masks, (N, H, W) bool on :attr:`device`: N * H * W bytes, made each time."""
        return self.to_bitmasks().to(self.device)

    def to_bitmasks(self) -> torch.Tensor:
        """Make the full-frame masks on the CPU, (N, H, W) bool."""
        full = np.zeros((len(self), *self.image_size), dtype=bool)
        for mask, crop, (x0, y0) in zip(full, self.crops, self.offsets, strict=True):
            mask[y0 : y0 + crop.shape[0], x0 : x0 + crop.shape[1]] = crop
        return torch.from_numpy(full)

    def views(self) -> list[View]:
        """Return each crop with its position."""
        return [View(*pair) for pair in zip(self.crops, *self.offsets.T.tolist(), strict=True)]

    def nonempty(self) -> torch.Tensor:
        """Return whether each mask has a pixel: (N,) bool."""
        return torch.tensor([bool(crop.any()) for crop in self.crops], dtype=torch.bool)

    def area(self) -> torch.Tensor:
        """Count the pixels of each mask: (N,) int64."""
        return torch.tensor([np.count_nonzero(crop) for crop in self.crops], dtype=torch.int64)

    def get_bounding_boxes(self) -> Boxes:
        """Return tight boxes in image pixels, x1 and y1 exclusive; zeros for an empty mask."""
        boxes = np.zeros((len(self), 4), dtype=np.float32)
        for box, view in zip(boxes, self.views(), strict=True):
            view = tight(*view)
            if view.mask.size:
                box[:] = box_of(view)
        return Boxes(torch.from_numpy(boxes))

    def crop_and_resize(self, boxes: torch.Tensor, mask_size: int) -> torch.Tensor:
        """Crop each mask by its box and resize it: the targets of the mask head.

        The same as ``BitMasks.crop_and_resize`` of the full frames (ROIAlign of He et al. 2017,
        "Mask R-CNN"), but for float32 rounding of coordinates.

        Args:
            boxes: (N, 4) x0, y0, x1, y1 in image pixels, one for each mask.
            mask_size: M.

        Returns:
            (N, M, M) bool tensor on the device of ``boxes``.
        """
        rois = boxes.detach().to("cpu", torch.float32)
        # torchvision crashes on boxes whose sides are swapped.
        valid = (rois[:, 2:] > rois[:, :2]).all(dim=1).tolist()
        result = torch.zeros(len(self), mask_size, mask_size, dtype=torch.bool)
        # Proposals of one instance have one crop, which is prepared once.
        groups: dict[tuple[int, int, int], list[int]] = {}
        for index, (crop, offset) in enumerate(zip(self.crops, self.offsets.tolist(), strict=True)):
            if valid[index] and crop.size:
                groups.setdefault((id(crop), *offset), []).append(index)
        for (_, x0, y0), indices in groups.items():
            crop = self.crops[indices[0]]
            # ROIAlign extends a border pixel outwards: right at the image's border, and elsewhere
            # a pixel of background keeps the mask from growing.
            left, top = int(x0 > 0), int(y0 > 0)
            right = int(x0 + crop.shape[1] < self.image_size[1])
            bottom = int(y0 + crop.shape[0] < self.image_size[0])
            padded = F.pad(torch.from_numpy(crop).float(), (left, right, top, bottom))
            local = rois[indices] - torch.tensor([x0 - left, y0 - top] * 2)
            targets = roi_align(padded[None, None], [local], mask_size, 1.0, 0, aligned=True)
            result[indices] = targets[:, 0] >= 0.5
        return result.to(boxes.device)

    def to_rles(self, as_str: bool = False) -> list[dict[str, Any]]:
        """Encode each mask as ``pycocotools.mask.encode`` encodes its full frame.

        Args:
            as_str: counts as ``str`` (for JSON) instead of ``bytes``.
        """
        height, width = self.image_size
        lengths = [
            runs.counts_of_runs(*runs.runs_of_crop(crop, offset, height), height * width)
            for crop, offset in zip(self.crops, self.offsets.tolist(), strict=True)
        ]
        return [
            {"size": [height, width], "counts": counts.decode("ascii") if as_str else counts}
            for counts in runs.encode_counts_batch(lengths)
        ]

    def clip(self, x: int, y: int, width: int, height: int) -> "CropMasks":
        """Cut the masks to a window of the image, in px, which becomes their image."""
        crops, offsets = [], []
        for view in self.views():
            part, left, top = clip(view, (x, y, x + width, y + height))
            crops.append(part if part.size else np.zeros((0, 0), dtype=bool))
            offsets.append((left - x, top - y) if part.size else (0, 0))
        return CropMasks(crops, offsets, (height, width))

    def affine(self, matrix: np.ndarray, output_size: Sequence[int]) -> "CropMasks":
        """Warp each mask into another image, and clip it there.

        Linear interpolation with a threshold of one half: exact for flips, rotations by right
        angles and shifts by whole pixels.

        Args:
            matrix: (2, 3) from (x, y, 1) to new (x, y), in continuous pixel coordinates, where
                the centre of the first pixel lies at (0.5, 0.5).
            output_size: height and width of the new image in pixels.
        """
        matrix = np.asarray(matrix, dtype=np.float64)
        linear, shift = matrix[:, :2], matrix[:, 2]
        height, width = int(output_size[0]), int(output_size[1])
        inverse = np.linalg.inv(linear)
        crops, offsets = [], []
        unit = np.array([[0, 0], [1, 0], [0, 1], [1, 1]])
        for crop, offset in zip(self.crops, self.offsets, strict=True):
            corners = (offset + unit * crop.shape[::-1]) @ linear.T + shift
            # With a margin: rounding must not cost a pixel at the border.
            start = np.floor(corners.min(axis=0) - 1e-3).clip(0, (width, height)).astype(int)
            end = np.ceil(corners.max(axis=0) + 1e-3).clip(0, (width, height)).astype(int)
            size = np.maximum(end - start, 0)
            warped = np.zeros((0, 0), dtype=np.float32)
            if crop.size and size.all():
                # The origin of cv2 is the centre of the crop's first pixel.
                back = inverse @ (start + 0.5 - shift) - 0.5 - offset
                warped = cv2.warpAffine(
                    crop.astype(np.float32),
                    np.column_stack([inverse, back]),
                    size.tolist(),
                    flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                )
            offsets.append(start)
            crops.append(warped >= 0.5)
        return CropMasks(crops, offsets, (height, width))


def as_crop_masks(
    masks: BitMasks | PolygonMasks | torch.Tensor, image_size: Sequence[int]
) -> CropMasks:
    """Return masks of any of Detectron2's types, or (N, H, W) bool, as crops.

    What several boxes share, as in the proposals of one particle, is rasterised once and stays
    shared.
    """
    if isinstance(masks, CropMasks):
        return masks
    if not isinstance(masks, PolygonMasks):
        return CropMasks.from_bitmasks(masks.tensor if isinstance(masks, BitMasks) else masks)
    # PolygonMasks copies its arrays whenever it is indexed.
    keys = [b" ".join(p.tobytes() for p in polygons) for polygons in masks.polygons]
    distinct = dict(zip(keys, masks.polygons, strict=True))
    number = {key: index for index, key in enumerate(distinct)}
    crops = CropMasks.from_coco(list(distinct.values()), image_size)
    return crops[[number[key] for key in keys]]


def paste_probabilities(
    mask_probs: torch.Tensor, boxes: torch.Tensor, image_size: Sequence[int]
) -> Iterator[tuple[torch.Tensor, tuple[int, int]]]:
    """Paste the mask head's output into the image, each mask into a window around its box.

    The arguments and errors are those of :meth:`CropMasks.paste`.

    Yields:
        (h, w) float32 probabilities on the CPU, and x0 and y0 of the window in image pixels.
        Outside of it they are 0.
    """
    probs = mask_probs.detach().to("cpu", torch.float32)
    boxes = boxes.detach().to("cpu", torch.float32)
    if not torch.isfinite(boxes).all():
        raise ValueError("A box of a mask is not finite")
    height, width = int(image_size[0]), int(image_size[1])
    frame = torch.tensor([width, height], dtype=torch.float32)
    start = (boxes[:, :2].floor() - 1).clamp(min=0).minimum(frame).to(torch.int64)
    end = (boxes[:, 2:].ceil() + 1).clamp(min=0).minimum(frame).to(torch.int64)
    windows = torch.cat([start, end.maximum(start)], dim=1).tolist()
    centers_x = torch.arange(width, dtype=torch.float32) + 0.5
    centers_y = torch.arange(height, dtype=torch.float32) + 0.5
    for prob, box, (x0, y0, x1, y1) in zip(probs, boxes, windows, strict=True):
        grid = torch.empty(1, y1 - y0, x1 - x0, 2)
        grid[..., 0] = (centers_x[x0:x1] - box[0]) / (box[2] - box[0]) * 2 - 1
        grid[..., 1] = ((centers_y[y0:y1] - box[1]) / (box[3] - box[1]) * 2 - 1)[:, None]
        pasted = torch.zeros(1, 1, y1 - y0, x1 - x0)
        if grid.numel():
            pasted = F.grid_sample(prob[None, None], grid, align_corners=False)
        yield pasted[0, 0], (x0, y0)


def _checked_polygons(segmentation: Any) -> list[np.ndarray]:
    """Return polygons that are safe for pycocotools, or raise ``ValueError``."""
    try:
        polygons = [np.asarray(polygon, dtype=np.float64) for polygon in segmentation]
    except (TypeError, ValueError) as error:
        raise ValueError("A polygon is not a list of numbers") from error
    if not polygons:
        raise ValueError("A segmentation is empty")
    for polygon in polygons:
        if polygon.ndim != 1 or len(polygon) % 2 or len(polygon) < 6:
            raise ValueError("A polygon needs at least 3 points, each an x and a y")
        if not np.isfinite(polygon).all():
            raise ValueError("A polygon has a coordinate that is not finite")
        points = polygon.reshape(-1, 2)
        steps = 5 * np.abs(points - np.roll(points, 1, axis=0)).max(axis=1)
        if np.abs(points).max() > 1e8 or steps.sum() > _POLYGON_STEPS_LIMIT:
            raise ValueError("A polygon reaches too far outside of any image")
    return polygons
