"""Dataset mapper: from a Detectron2 data set dict to the input of a model."""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import transforms as T
from detectron2.structures import Boxes, BoxMode, Instances, PolygonMasks

from microplastics.data import augmentation
from microplastics.data.augmentation import MOSAIC_IMAGES, CopyPaste, Mosaic, Sample
from microplastics.data.images import ImageCache, read_image
from microplastics.data.tiling import Window, WindowReader
from microplastics.structures.crop_masks import CropMasks

logger = logging.getLogger(__name__)


class MicroplasticsDatasetMapper:
    """Detectron2's ``DatasetMapper`` for any image file and any mixture of masks.

    - Images are read by :func:`microplastics.data.images.read_image`: 16-bit, grey, CMYK, alpha
      and EXIF rotation become 8-bit BGR, broken files an error of one sentence. A data set dict
      with a ``window`` (:mod:`microplastics.data.tiling`) is that part of its image.
    - An image with only polygons gets ``PolygonMasks``. If ``mask_format`` is ``"bitmask"``, an
      instance is RLE or an augmentation cuts, all masks become ``CropMasks``, which are
      ``BitMasks`` without full frames.
    - Particles of which too little is left are dropped and counted.
    - Validation keeps the annotations, which the validation loss needs.

    All randomness comes from numpy's global generator.

    Attributes:
        partners: data set dicts that copy-paste and mosaic draw from, set by the loader. If it is
            empty, both are off.
        partner_weights: (N,) float64, relative frequency of each of them; None draws all equally
            often.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        augmentations: Sequence[T.Augmentation | T.Transform],
        image_format: str,
        use_instance_mask: bool = True,
        mask_format: str = "polygon",
        recompute_boxes: bool = False,
        max_pixels: int | None = None,
        cache_bytes: int = 0,
        min_visible_fraction: float = 0.0,
        min_mask_pixels: int = 1,
        mosaic: Mosaic | None = None,
        mosaic_prob: float = 0.0,
        copy_paste: CopyPaste | None = None,
        copy_paste_prob: float = 0.0,
    ):
        """
        Args:
            is_train: training (images without instances left are still returned).
            augmentations: Detectron2 augmentations, applied in order. They see the image in BGR
                order, and the boxes of the particles if ``recompute_boxes`` is set.
            image_format: ``"BGR"`` or ``"RGB"``, the channel order of the model.
            use_instance_mask: give the instances ``gt_masks``.
            mask_format: ``"polygon"``, or ``"bitmask"`` for heads that need ``BitMasks``
                (PointRend).
            recompute_boxes: augmentations cut particles: boxes are fitted to the rest of the
                masks. Always set if images are mixed.
            max_pixels: larger images are refused.
            cache_bytes: keep decoded images up to this many bytes in this process.
            min_visible_fraction: drop particles of which less is left; with ``recompute_boxes``.
            min_mask_pixels: drop particles of fewer pixels, or px² of polygon.
            mosaic, mosaic_prob: the mosaic, and its probability for an image.
            copy_paste, copy_paste_prob: likewise; after the mosaic.
        """
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.use_instance_mask = use_instance_mask
        self.mask_format = mask_format
        self.mixes = mosaic_prob > 0 or copy_paste_prob > 0
        self.recompute_boxes = recompute_boxes or self.mixes
        self.max_pixels = max_pixels
        self.min_visible_fraction = min_visible_fraction
        self.min_mask_pixels = min_mask_pixels
        self.partners: Sequence[dict[str, Any]] = ()
        self.partner_weights: np.ndarray | None = None
        self._mosaic, self._mosaic_prob = mosaic, mosaic_prob
        self._copy_paste, self._copy_paste_prob = copy_paste, copy_paste_prob
        self._cache = ImageCache(cache_bytes)
        self._windows: WindowReader | None = None
        self._warned = False
        mode = "training" if is_train else "validation"
        logger.info("Augmentations used in %s: %s", mode, augmentations)

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        common = {
            "is_train": is_train,
            "image_format": cfg.INPUT.FORMAT,
            "use_instance_mask": cfg.MODEL.MASK_ON,
            "mask_format": cfg.INPUT.MASK_FORMAT,
            "max_pixels": cfg.INPUT.MAX_PIXELS,
        }
        if not is_train:
            augmentation.check_augmentation(cfg)
            return {"augmentations": augmentation.build_validation(cfg), **common}
        workers = max(1, cfg.DATALOADER.NUM_WORKERS)
        # Flips and resizing keep every particle, as in Detectron2.
        limits = augmentation.is_augmented(cfg)
        aug = cfg.INPUT.AUG
        return {
            "augmentations": augmentation.build_augmentations(cfg),
            "recompute_boxes": augmentation.clips(cfg),
            "cache_bytes": cfg.DATALOADER.CACHE_MB * 2**20 // workers,
            "min_visible_fraction": cfg.INPUT.MIN_VISIBLE_SHARE if limits else 0.0,
            "min_mask_pixels": cfg.INPUT.MIN_MASK_PIXELS if limits else 1,
            "mosaic": Mosaic(tuple(aug.MOSAIC.SCALE)) if aug.MOSAIC.PROB > 0 else None,
            "mosaic_prob": aug.MOSAIC.PROB,
            "copy_paste": augmentation.build_copy_paste(cfg) if aug.COPY_PASTE.PROB > 0 else None,
            "copy_paste_prob": aug.COPY_PASTE.PROB,
            **common,
        }

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """
        Args:
            dataset_dict: one image in Detectron2's data set format.

        Returns:
            The same with ``image`` (3, H, W) uint8 tensor and ``instances`` in place of
            ``annotations``; ``dropped_instances``, the number of particles of which too little
            was left, and ``outside_instances``, the number of those wholly out of view.

        Raises:
            UserError: the image cannot be read, or its size differs from the annotations.
        """
        mapped = {k: v for k, v in dataset_dict.items() if k != "annotations"}
        image = self._read(dataset_dict)
        if "annotations" not in dataset_dict:
            aug_input = T.AugInput(image)
            self.augmentations(aug_input)
        elif self.recompute_boxes:
            sample = self._mix(Sample.from_annotations(image, _particles(dataset_dict)))
            # Without particles that a mosaic hides: nothing to crop around or paint over.
            boxes = sample.masks[sample.masks.nonempty()].get_bounding_boxes().tensor.numpy()
            aug_input = T.AugInput(sample.image, boxes=boxes)
            transforms = self.augmentations(aug_input)
            self._add_clipped(mapped, sample, transforms, aug_input.image.shape[:2])
        else:
            aug_input = T.AugInput(image)
            transforms = self.augmentations(aug_input)
            sizes = image.shape[:2], aug_input.image.shape[:2]
            instances = self._instances(_particles(dataset_dict), transforms, *sizes)
            keep = self._large_enough(instances)
            dropped = int((~keep).sum())
            mapped["instances"] = instances[keep] if dropped else instances
            mapped["dropped_instances"] = dropped
            mapped["outside_instances"] = 0
        mapped["image"] = self._tensor(aug_input.image)
        return mapped

    def _tensor(self, image: np.ndarray) -> torch.Tensor:
        planes = torch.empty(3, *image.shape[:2], dtype=torch.uint8)
        order = (2, 1, 0) if self.image_format == "RGB" else (0, 1, 2)
        if image.flags.c_contiguous:
            # A third of the time of numpy's transpose.
            cv2.split(image, [planes[channel].numpy() for channel in order])
        else:
            for channel, plane in zip(order, planes.numpy(), strict=True):
                plane[:] = image[:, :, channel]
        return planes

    def _read(self, dataset_dict: dict[str, Any]) -> np.ndarray:
        path = dataset_dict["file_name"]
        if "window" in dataset_dict:
            return self._read_window(path, dataset_dict["window"], dataset_dict["full_size"])
        image = self._cache.get(path)
        if image is None:
            size = (dataset_dict["width"], dataset_dict["height"])
            image = read_image(path, expected_size=size, max_pixels=self.max_pixels)
            self._cache.put(path, image)
        return image

    def _read_window(self, path: str, window: Window, full_size: tuple[int, int]) -> np.ndarray:
        image = self._cache.get(path)
        if image is not None:
            x, y, width, height = window
            return image[y : y + height, x : x + width]
        if self._windows is None:
            self._windows = WindowReader(max_pixels=self.max_pixels)
        part = self._windows.read(path, window, full_size)
        decoded = self._windows.decoded(path)
        if decoded is not None:
            self._cache.put(path, decoded)
        return part

    def _mix(self, sample: Sample) -> Sample:
        """Mosaic and copy-paste, each with its probability."""
        if not self.mixes:
            return sample
        if not self.partners:
            if not self._warned:
                logger.warning(
                    "Copy-paste and mosaic are off: MicroplasticsDatasetMapper.partners is empty, "
                    "from which they draw other images."
                )
                self._warned = True
            return sample
        if np.random.uniform() < self._mosaic_prob:
            others = [self._random_partner() for _ in range(MOSAIC_IMAGES - 1)]
            sample = self._mosaic([sample, *others])
        if np.random.uniform() < self._copy_paste_prob:
            sample = self._copy_paste(sample, self._random_partner())
        return sample

    def _random_partner(self) -> Sample:
        if self.partner_weights is None:
            index = np.random.randint(len(self.partners))
        else:
            ends = np.cumsum(self.partner_weights)
            index = np.searchsorted(ends, np.random.uniform(0, ends[-1]), side="right")
            index = min(int(index), len(self.partners) - 1)
        partner = self.partners[index]
        return Sample.from_annotations(self._read(partner), _particles(partner))

    def _add_clipped(
        self,
        mapped: dict[str, Any],
        sample: Sample,
        transforms: T.TransformList,
        size_after: tuple[int, int],
    ) -> None:
        """Transform masks; keep those of which enough is left, with tight boxes."""
        masks, whole = sample.masks, sample.whole
        outside = np.zeros(len(masks), dtype=bool)
        for part, size in _frames(transforms, size_after):
            matrix = affine_matrix(part)
            outside |= _out_of_view(masks, matrix, size)
            masks = masks.affine(matrix, size)
            whole = whole * abs(np.linalg.det(matrix[:, :2]))
        area = masks.area().numpy()
        keep = area >= np.maximum(self.min_mask_pixels, self.min_visible_fraction * whole)
        keep &= area > 0
        # Without a pixel before the transforms: too small, not out of view.
        outside &= ~keep & (whole > 0)
        mapped["dropped_instances"] = int((~keep & ~outside).sum())
        mapped["outside_instances"] = int(outside.sum())
        masks = masks[keep]
        instances = Instances(size_after)
        instances.gt_boxes = masks.get_bounding_boxes()
        instances.gt_classes = torch.from_numpy(sample.classes[keep])
        if self.use_instance_mask:
            instances.gt_masks = masks
        mapped["instances"] = instances

    def _instances(
        self,
        annotations: list[dict[str, Any]],
        transforms: T.TransformList,
        size_before: tuple[int, int],
        size_after: tuple[int, int],
    ) -> Instances:
        instances = Instances(size_after)
        boxes = transforms.apply_box(_boxes(annotations)).clip(min=0)
        boxes = np.minimum(boxes, np.asarray(size_after + size_after)[[1, 0, 3, 2]])
        instances.gt_boxes = Boxes(torch.as_tensor(boxes, dtype=torch.float32))
        classes = [a["category_id"] for a in annotations]
        instances.gt_classes = torch.as_tensor(classes, dtype=torch.int64)
        if self.use_instance_mask:
            segmentations = [a["segmentation"] for a in annotations]
            if self.mask_format == "polygon" and all(isinstance(s, list) for s in segmentations):
                instances.gt_masks = _transform_polygons(segmentations, transforms)
            else:
                masks = CropMasks.from_coco(segmentations, size_before)
                instances.gt_masks = masks.affine(affine_matrix(transforms), size_after)
        return instances

    def _large_enough(self, instances: Instances) -> torch.Tensor:
        """Return which instances are not empty and have enough pixels: (N,) bool."""
        keep = instances.gt_boxes.nonempty(threshold=1e-5)
        if instances.has("gt_masks"):
            keep &= instances.gt_masks.nonempty()
            if self.min_mask_pixels > 1:
                keep &= torch.as_tensor(instances.gt_masks.area() >= self.min_mask_pixels)
        return keep


def affine_matrix(transforms: T.TransformList) -> np.ndarray:
    """Return the 2×3 matrix of a list of affine transforms, in continuous pixel coordinates.

    All geometric augmentations here and in Detectron2 (resize, flip, crop, rotation, shear) are
    affine, so three points define them.
    """
    origin, right, down = transforms.apply_coords(np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
    return np.stack([right - origin, down - origin, origin], axis=1)


def _frames(
    transforms: T.TransformList, size_after: tuple[int, int]
) -> Iterator[tuple[T.TransformList, tuple[int, int]]]:
    """Yield the transforms up to each crop and up to the end, with the (height, width) after them.

    A rotation after a crop shows places outside the crop. The image has no particles there, so the
    masks must end at the crop.
    """
    part: list[T.Transform] = []
    for transform in transforms.transforms:
        part.append(transform)
        if isinstance(transform, T.CropTransform):
            yield T.TransformList(part), (transform.h, transform.w)
            part = []
    if part or not transforms.transforms:
        yield T.TransformList(part), size_after


def _particles(dataset_dict: dict[str, Any]) -> list[dict[str, Any]]:
    return [a for a in dataset_dict.get("annotations", ()) if not a.get("iscrowd", 0)]


def _boxes(annotations: list[dict[str, Any]]) -> np.ndarray:
    """Return (N, 4) x0, y0, x1, y1 in px, float64."""
    modes = {a["bbox_mode"] for a in annotations}
    if len(modes) == 1:  # one conversion for all of them
        boxes = np.array([a["bbox"] for a in annotations], dtype=np.float64)
        return BoxMode.convert(boxes, modes.pop(), BoxMode.XYXY_ABS)
    boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
    return np.array(boxes, dtype=np.float64).reshape(-1, 4)


def _out_of_view(masks: CropMasks, matrix: np.ndarray, output_size: tuple[int, int]) -> np.ndarray:
    """Return whether each mask is empty, or its transformed box misses the image: (N,) bool."""
    boxes = masks.get_bounding_boxes().tensor.numpy().astype(np.float64)
    corners = boxes[:, [[0, 1], [2, 1], [0, 3], [2, 3]]] @ matrix[:, :2].T + matrix[:, 2]
    start, end = corners.min(axis=1), corners.max(axis=1)
    empty = (boxes[:, 2:] <= boxes[:, :2]).any(axis=1)
    return empty | (end <= 0).any(axis=1) | (start >= output_size[::-1]).any(axis=1)


def _transform_polygons(
    segmentations: list[list[list[float]]], transforms: T.TransformList
) -> PolygonMasks:
    polygons = [np.asarray(p, dtype=np.float64).reshape(-1, 2) for s in segmentations for p in s]
    if not polygons:
        return PolygonMasks([])
    # One call for all points: the overhead of a transform per polygon exceeds its arithmetic.
    points = transforms.apply_coords(np.concatenate(polygons))
    pieces = iter(np.split(points, np.cumsum([len(p) for p in polygons])[:-1]))
    return PolygonMasks([[next(pieces).reshape(-1) for _ in s] for s in segmentations])
