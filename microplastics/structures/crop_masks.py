"""Instance masks kept as crops, never as N x H x W."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.structures import Boxes
from torch.nn import functional as F

from microplastics.structures import rle as runs

_F = np.float32


@dataclass(frozen=True)
class _Axis:
    """Where the samples of each bin fall along one axis, and how they weigh their two pixels."""

    low: np.ndarray  # (M, grid) int64, pixel index in the crop, may lie outside of it
    high: np.ndarray
    low_weight: np.ndarray  # (M, grid) float32
    high_weight: np.ndarray
    length: int  # of the crop along this axis

    def matrix(self) -> np.ndarray:
        """Give the (M, length) float32 weights of each pixel in each bin."""
        bins, grid = self.low.shape
        index = np.concatenate([self.low, self.high], axis=1)
        weight = np.concatenate([self.low_weight, self.high_weight], axis=1)
        inside = (index >= 0) & (index < self.length)
        index = index + np.arange(bins)[:, None] * self.length
        flat = np.bincount(index[inside], weight[inside], minlength=bins * self.length)
        return flat.reshape(bins, self.length).astype(_F)


def roi_align_binary(
    crop: np.ndarray,
    offset: tuple[int, int],
    image_size: tuple[int, int],
    boxes: np.ndarray,
    output_size: int,
) -> np.ndarray:
    """Crop a mask by boxes and resize it, exactly as ROIAlign of the whole image's mask does.

    The same as ``ROIAlign((M, M), 1.0, 0, aligned=True)(mask, boxes) >= 0.5`` of Detectron2 (He
    et al. 2017, "Mask R-CNN"; torchvision's CPU kernel), bit for bit. The mean over a bin's
    samples is two matrix products, whose rounding differs from the kernel's in the last places;
    the few bins too close to one half to tell are summed again in the kernel's own order.

    Args:
        crop: (h, w) bool mask; zero everywhere else in the image.
        offset: x0 and y0 of the crop in image pixels.
        image_size: height and width of the image in pixels.
        boxes: (K, 4) float32 x0, y0, x1, y1 in image pixels.
        output_size: M.

    Returns:
        (K, M, M) bool array.
    """
    result = np.zeros((len(boxes), output_size, output_size), dtype=bool)
    if not crop.size:
        return result
    values = crop.astype(_F)
    start = boxes[:, :2] - _F(0.5)
    bin_size = ((boxes[:, 2:] - _F(0.5)) - start) / _F(output_size)
    grid = np.ceil(bin_size).astype(np.int64)
    for index in np.flatnonzero((grid > 0).all(axis=1)):
        x, y = (
            _axis(
                start[index, axis],
                bin_size[index, axis],
                int(grid[index, axis]),
                output_size,
                (image_size[1 - axis], offset[axis], crop.shape[1 - axis]),
            )
            for axis in (0, 1)
        )
        count = int(grid[index].prod())
        mean = y.matrix() @ values @ x.matrix().T / _F(count)
        result[index] = mean >= _F(0.5)
        # Bound of the rounding error of a sum of that many float32 terms.
        doubt = (count + sum(crop.shape)) * np.finfo(_F).eps
        rows, columns = np.nonzero(np.abs(mean - _F(0.5)) <= doubt)
        if len(rows):
            result[index, rows, columns] = _kernel_mean(values, y, x, rows, columns) >= _F(0.5)
    return result


def _axis(
    start: np.float32, bin_size: np.float32, grid: int, bins: int, extent: tuple[int, int, int]
) -> _Axis:
    """Place the samples along one axis; ``extent`` is image length, crop offset, crop length."""
    image_length, offset, length = extent
    step = (np.arange(grid, dtype=_F) + _F(0.5)) * bin_size / _F(grid)
    sample = (start + np.arange(bins, dtype=_F) * bin_size)[:, None] + step
    outside = (sample < -1) | (sample > image_length)
    sample = np.maximum(sample, _F(0))
    low = sample.astype(np.int64)
    last = low >= image_length - 1
    low[last] = image_length - 1
    high = np.where(last, low, low + 1)
    fraction = np.where(last, _F(0), sample - low.astype(_F))
    low_weight = _F(1) - fraction
    fraction[outside] = 0
    low_weight[outside] = 0
    return _Axis(low - offset, high - offset, low_weight, fraction, length)


def _kernel_mean(
    values: np.ndarray, y: _Axis, x: _Axis, rows: np.ndarray, columns: np.ndarray
) -> np.ndarray:
    """Sum the samples of some bins one after another in float32, as torchvision's kernel does."""
    shape = (len(rows), y.low.shape[1], x.low.shape[1])
    terms = np.zeros(shape, dtype=_F)
    for y_index, y_weight in ((y.low, y.low_weight), (y.high, y.high_weight)):
        for x_index, x_weight in ((x.low, x.low_weight), (x.high, x.high_weight)):
            row, column = y_index[rows][:, :, None], x_index[columns][:, None, :]
            inside = (row >= 0) & (row < y.length) & (column >= 0) & (column < x.length)
            pixel = values[row.clip(0, y.length - 1), column.clip(0, x.length - 1)] * inside
            terms += y_weight[rows][:, :, None] * x_weight[columns][:, None, :] * pixel
    terms = terms.reshape(len(rows), -1)
    return np.add.accumulate(terms, axis=1)[:, -1] / _F(terms.shape[1])


# pycocotools walks along a polygon in steps of a fifth of a pixel and allocates every one.
_POLYGON_STEPS_LIMIT = 50_000_000


class CropMasks:
    """Binary masks of N instances of one image, each as a crop and its place.

    Stands where Detectron2 has ``BitMasks`` or ``PolygonMasks``: as ``gt_masks`` in training and
    as ``pred_masks`` in results. A particle covers a thousandth of its image, so a thousandth of
    the memory and time of a full-frame bitmap will do. The masks stay on the CPU, where all that
    is done with them is done; :meth:`crop_and_resize` answers on the device of its boxes.
    Iterating gives full-frame arrays one at a time and ``numpy.asarray`` COCO RLEs, the two forms
    that Detectron2's ``Visualizer`` and ``COCOEvaluator`` take.

    Attributes:
        crops: N bool arrays of shape (h_i, w_i), read only; (0, 0) is an empty mask.
        offsets: (N, 2) int64 array, x0 and y0 of each crop in image pixels.
        image_size: height and width of the image in pixels.
    """

    def __init__(
        self, crops: Sequence[np.ndarray], offsets: Any, image_size: Sequence[int]
    ) -> None:
        """
        Args:
            crops: N arrays or CPU tensors of shape (h_i, w_i), non-zero inside the mask.
            offsets: (N, 2) x0 and y0 in image pixels.
            image_size: height and width in pixels.

        Raises:
            ValueError: a crop does not lie inside the image, or the numbers do not agree.
        """
        self.crops = [np.asarray(crop).astype(bool, copy=False) for crop in crops]
        self.offsets = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)
        self.image_size = (int(image_size[0]), int(image_size[1]))
        self._counts: list[bytes] | None = None
        if len(self.crops) != len(self.offsets):
            raise ValueError(f"{len(self.crops)} crops have {len(self.offsets)} offsets")
        if any(crop.ndim != 2 for crop in self.crops):
            raise ValueError("A crop is not of two dimensions")
        ends = self.offsets + self._shapes()[:, ::-1]
        if (self.offsets < 0).any() or (ends > self.image_size[::-1]).any():
            raise ValueError(f"A crop lies outside of the image of {self.image_size} pixels")

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
            ValueError: a segmentation is no valid polygon list or RLE of an image of this size.
        """
        height, width = int(image_size[0]), int(image_size[1])
        rles = []
        for segmentation in segmentations:
            if isinstance(segmentation, dict):
                rles.append(segmentation)
            else:
                # In the whole image's coordinates: shifting a polygon moves the ties of
                # pycocotools' rounding. It works on the outline, so the image's size is no cost.
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
            image_size: height and width; that of the RLEs when left out.

        Raises:
            ValueError: an RLE is damaged or of another size.
        """
        if image_size is None:
            if not len(rles):
                raise ValueError("Without an RLE the image's size must be given")
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
        crops, offsets = [], []
        for counts in runs.decode_counts_batch(batch):
            edges = runs.runs_of_counts(runs.check_counts(counts, size))
            crop, x0, y0 = runs.crop_of_runs(*edges, size[0])
            crops.append(crop)
            offsets.append((x0, y0))
        return cls(crops, offsets, size)

    @classmethod
    def from_bitmasks(cls, masks: torch.Tensor | np.ndarray) -> "CropMasks":
        """Cut full-frame masks, (N, H, W) and non-zero inside, down to their crops."""
        if isinstance(masks, torch.Tensor):
            masks = masks.detach().cpu().numpy()
        masks = masks.astype(bool, copy=False)
        crops, offsets = [], []
        for mask in masks:
            rows = np.flatnonzero(mask.any(axis=1))
            if not len(rows):
                crops.append(np.zeros((0, 0), dtype=bool))
                offsets.append((0, 0))
                continue
            band = mask[rows[0] : rows[-1] + 1]
            columns = np.flatnonzero(band.any(axis=0))
            crops.append(band[:, columns[0] : columns[-1] + 1].copy())
            offsets.append((columns[0], rows[0]))
        return cls(crops, offsets, masks.shape[1:])

    @classmethod
    def paste(
        cls,
        mask_probs: torch.Tensor,
        boxes: torch.Tensor | Boxes,
        image_size: Sequence[int],
        threshold: float = 0.5,
    ) -> "CropMasks":
        """Paste the mask head's output into the image, each mask into its own box only.

        Pixel for pixel what ``detectron2.layers.paste_masks_in_image`` gives on the CPU, without
        its frames. Runs on the CPU and in float32 whatever the inputs are.

        Args:
            mask_probs: (N, M, M) probabilities in [0, 1].
            boxes: (N, 4) x0, y0, x1, y1 in image pixels.
            image_size: height and width in pixels.
            threshold: a pixel is in the mask from this probability on.

        Raises:
            ValueError: a box is not finite, or the numbers do not agree.
        """
        boxes = boxes.tensor if isinstance(boxes, Boxes) else boxes
        probs = mask_probs.detach().to("cpu", torch.float32)
        boxes = boxes.detach().to("cpu", torch.float32)
        if len(probs) != len(boxes):
            raise ValueError(f"{len(probs)} masks have {len(boxes)} boxes")
        if not torch.isfinite(boxes).all():
            raise ValueError("A box of a mask is not finite")
        height, width = int(image_size[0]), int(image_size[1])
        frame = torch.tensor([width, height], dtype=torch.float32)
        start = (boxes[:, :2].floor() - 1).clamp(min=0).minimum(frame).to(torch.int64)
        end = (boxes[:, 2:].ceil() + 1).clamp(min=0).minimum(frame).to(torch.int64)
        end = end.maximum(start)
        centers_x = torch.arange(width, dtype=torch.float32) + 0.5
        centers_y = torch.arange(height, dtype=torch.float32) + 0.5
        crops = []
        for prob, box, (x0, y0), (x1, y1) in zip(
            probs, boxes, start.tolist(), end.tolist(), strict=True
        ):
            grid = torch.empty(1, y1 - y0, x1 - x0, 2)
            grid[..., 0] = (centers_x[x0:x1] - box[0]) / (box[2] - box[0]) * 2 - 1
            grid[..., 1] = ((centers_y[y0:y1] - box[1]) / (box[3] - box[1]) * 2 - 1)[:, None]
            if not grid.numel():
                crops.append(np.zeros((y1 - y0, x1 - x0), dtype=bool))
                continue
            pasted = F.grid_sample(prob[None, None], grid, align_corners=False)
            crops.append((pasted[0, 0] >= threshold).numpy())
        return cls(crops, start.numpy(), (height, width))

    @staticmethod
    def cat(masks: Sequence["CropMasks"]) -> "CropMasks":
        """Join masks of the same image size one after another.

        Raises:
            ValueError: there is none, or they are of several image sizes.
        """
        sizes = {mask.image_size for mask in masks}
        if len(sizes) != 1:
            raise ValueError(f"Masks of one image size are needed, got sizes {sorted(sizes)}")
        crops = [crop for mask in masks for crop in mask.crops]
        return CropMasks(crops, np.concatenate([mask.offsets for mask in masks]), sizes.pop())

    def __len__(self) -> int:
        return len(self.crops)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(num_instances={len(self)}, image_size={self.image_size})"

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield each mask as a full-frame (H, W) bool array, one at a time."""
        for index in range(len(self)):
            yield self._full(index)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Give an object array of COCO RLEs, which the ``Visualizer`` draws."""
        array = np.empty(len(self), dtype=object)
        array[:] = self.to_rles()
        return array

    def __getitem__(self, item: int | slice | Sequence | np.ndarray | torch.Tensor) -> "CropMasks":
        """Select masks: by number, slice, a (N,) bool vector or a vector of numbers."""
        if isinstance(item, (int, np.integer)):
            picked = np.arange(len(self))[item][None]
        elif isinstance(item, slice):
            picked = np.arange(len(self))[item]
        else:
            item = item.cpu().numpy() if isinstance(item, torch.Tensor) else np.asarray(item)
            picked = np.arange(len(self))[item if item.size else item.astype(np.int64)]
            picked = picked.reshape(-1)
        result = CropMasks([self.crops[i] for i in picked], self.offsets[picked], self.image_size)
        if self._counts is not None:
            result._counts = [self._counts[i] for i in picked]
        return result

    def to(self, *args: Any, **kwargs: Any) -> "CropMasks":
        """Return itself: the masks stay on the CPU whatever device is asked for."""
        return self

    @property
    def device(self) -> torch.device:
        """Always the CPU."""
        return torch.device("cpu")

    def nonempty(self) -> torch.Tensor:
        """Tell for each mask whether it has a pixel: (N,) bool."""
        return torch.tensor([bool(crop.any()) for crop in self.crops], dtype=torch.bool)

    def area(self) -> torch.Tensor:
        """Count the pixels of each mask: (N,) int64."""
        return torch.tensor([np.count_nonzero(crop) for crop in self.crops], dtype=torch.int64)

    def get_bounding_boxes(self) -> Boxes:
        """Give the tight boxes, x1 and y1 exclusive, in image pixels; zeros for an empty mask."""
        boxes = np.zeros((len(self), 4), dtype=np.float32)
        for index, (crop, (x0, y0)) in enumerate(zip(self.crops, self.offsets, strict=True)):
            columns, rows = np.flatnonzero(crop.any(axis=0)), np.flatnonzero(crop.any(axis=1))
            if len(rows):
                boxes[index] = (
                    columns[0] + x0,
                    rows[0] + y0,
                    columns[-1] + x0 + 1,
                    rows[-1] + y0 + 1,
                )
        return Boxes(torch.from_numpy(boxes))

    def crop_and_resize(self, boxes: torch.Tensor, mask_size: int) -> torch.Tensor:
        """Crop each mask by its box and resize it: the mask head's training targets.

        Equal to ``BitMasks.crop_and_resize`` of the full frames on the CPU, bit for bit.

        Args:
            boxes: (N, 4) x0, y0, x1, y1 in image pixels, one for each mask.
            mask_size: M.

        Returns:
            (N, M, M) bool tensor on the device of ``boxes``.
        """
        if len(boxes) != len(self):
            raise ValueError(f"{len(self)} masks have {len(boxes)} boxes")
        rois = boxes.detach().to("cpu", torch.float32).numpy()
        result = np.zeros((len(self), mask_size, mask_size), dtype=bool)
        # Many proposals share an instance: its crop is prepared once for all of them.
        shared: dict[tuple[int, int, int], list[int]] = {}
        for index, (crop, (x0, y0)) in enumerate(
            zip(self.crops, self.offsets.tolist(), strict=True)
        ):
            shared.setdefault((id(crop), x0, y0), []).append(index)
        for (_, x0, y0), indices in shared.items():
            result[indices] = roi_align_binary(
                self.crops[indices[0]], (x0, y0), self.image_size, rois[indices], mask_size
            )
        return torch.from_numpy(result).to(boxes.device)

    def to_rles(self, as_str: bool = False) -> list[dict[str, Any]]:
        """Encode each mask as the compressed COCO RLE of its full frame.

        Byte for byte what ``pycocotools.mask.encode`` gives for the full-frame bitmap, by
        arithmetic on the crop's runs. Encoded once and remembered.

        Args:
            as_str: counts as ``str``, which JSON can hold, instead of ``bytes``.
        """
        height, width = self.image_size
        if self._counts is None:
            self._counts = runs.encode_counts_batch(
                [
                    runs.counts_of_runs(*runs.runs_of_crop(crop, offset, height), height * width)
                    for crop, offset in zip(self.crops, self.offsets.tolist(), strict=True)
                ]
            )
        return [
            {"size": [height, width], "counts": counts.decode("ascii") if as_str else counts}
            for counts in self._counts
        ]

    def to_bitmasks(self) -> torch.Tensor:
        """Make the full-frame masks, (N, H, W) bool: N * H * W bytes."""
        full = np.zeros((len(self), *self.image_size), dtype=bool)
        for index, mask in enumerate(full):
            self._paint(index, mask)
        return torch.from_numpy(full)

    def affine(self, matrix: np.ndarray, output_size: Sequence[int]) -> "CropMasks":
        """Warp each mask into its own box of another image.

        Linear interpolation, in the mask from one half on: exact for flips, turns by right
        angles and shifts by whole pixels. What leaves the new image is cut off.

        Args:
            matrix: (2, 3) from (x, y, 1) to new (x, y), in continuous pixel coordinates, where
                the centre of the first pixel lies at (0.5, 0.5).
            output_size: height and width of the new image in pixels.

        Raises:
            ValueError: the matrix cannot be inverted or is not finite.
        """
        matrix = np.asarray(matrix, dtype=np.float64)
        linear, shift = matrix[:, :2], matrix[:, 2]
        if not np.isfinite(matrix).all() or np.linalg.det(linear) == 0:
            raise ValueError("The affine matrix cannot be inverted")
        height, width = int(output_size[0]), int(output_size[1])
        inverse = np.linalg.inv(linear)
        crops, offsets = [], []
        for crop, offset in zip(self.crops, self.offsets, strict=True):
            unit = np.array([[0, 0], [1, 0], [0, 1], [1, 1]])
            corners = (offset + unit * crop.shape[::-1]) @ linear.T + shift
            # Rounding must not cost a pixel at the border, hence a little more.
            start = np.floor(corners.min(axis=0) - 1e-3).clip(0, (width, height)).astype(int)
            end = np.ceil(corners.max(axis=0) + 1e-3).clip(0, (width, height)).astype(int)
            size = np.maximum(end - start, 0)
            offsets.append(start)
            if not crop.size or not size.all():
                crops.append(np.zeros((0, 0), dtype=bool))
                continue
            # cv2 counts from pixel centres, and from the crops' corners.
            back = inverse @ (start + 0.5 - shift) - 0.5 - offset
            warped = cv2.warpAffine(
                crop.astype(np.float32),
                np.column_stack([inverse, back]),
                size.tolist(),
                flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            )
            crops.append(warped >= 0.5)
        return CropMasks(crops, offsets, (height, width))

    def _shapes(self) -> np.ndarray:
        return np.array([crop.shape for crop in self.crops], dtype=np.int64).reshape(-1, 2)

    def _full(self, index: int) -> np.ndarray:
        mask = np.zeros(self.image_size, dtype=bool)
        self._paint(index, mask)
        return mask

    def _paint(self, index: int, mask: np.ndarray) -> None:
        crop, (x0, y0) = self.crops[index], self.offsets[index]
        mask[y0 : y0 + crop.shape[0], x0 : x0 + crop.shape[1]] = crop


def _checked_polygons(segmentation: Any) -> list[np.ndarray]:
    """Give polygons that pycocotools can be trusted with, or raise ``ValueError``."""
    try:
        polygons = [np.asarray(polygon, dtype=np.float64) for polygon in segmentation]
    except (TypeError, ValueError) as error:
        raise ValueError("A polygon is not a list of numbers") from error
    if not polygons:
        raise ValueError("A segmentation has no polygon")
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
