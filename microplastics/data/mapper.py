"""From a Detectron2 data set dict to what the model takes."""

import logging
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import detection_utils
from detectron2.data import transforms as T
from detectron2.structures import Boxes, BoxMode, Instances, PolygonMasks

from microplastics.data.images import read_image
from microplastics.structures.crop_masks import CropMasks

logger = logging.getLogger(__name__)


class MicroplasticsDatasetMapper:
    """Detectron2's ``DatasetMapper`` for strangers' images and for any mixture of masks.

    - Images are read by :func:`microplastics.data.images.read_image`: 16-bit, grey, CMYK, alpha
      and EXIF rotation come out as 8-bit BGR, broken files as a sentence.
    - An image whose instances are all polygons gets ``PolygonMasks``; where one is RLE, all become
      ``CropMasks``. No instance is ever decoded to the full frame.
    - Validation keeps the annotations, which the validation loss needs.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        augmentations: Sequence[T.Augmentation | T.Transform],
        image_format: str,
        use_instance_mask: bool = True,
        recompute_boxes: bool = False,
        max_pixels: int | None = None,
        cache_bytes: int = 0,
    ):
        """
        Args:
            is_train: training (images without instances left are still returned).
            augmentations: Detectron2 augmentations, applied in order.
            image_format: ``"BGR"`` or ``"RGB"``.
            use_instance_mask: give the instances ``gt_masks``.
            recompute_boxes: make boxes tight around the masks after a crop.
            max_pixels: refuse larger images.
            cache_bytes: keep decoded images up to so many bytes in this process.
        """
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.use_instance_mask = use_instance_mask
        self.recompute_boxes = recompute_boxes
        self.max_pixels = max_pixels
        self._cache = ImageCache(cache_bytes)
        mode = "training" if is_train else "validation"
        logger.info("Augmentations used in %s: %s", mode, augmentations)

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        augmentations = detection_utils.build_augmentation(cfg, is_train)
        crop = cfg.INPUT.CROP.ENABLED and is_train
        if crop:
            augmentations.insert(0, T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE))
        workers = max(1, cfg.DATALOADER.NUM_WORKERS)
        return {
            "is_train": is_train,
            "augmentations": augmentations,
            "image_format": cfg.INPUT.FORMAT,
            "use_instance_mask": cfg.MODEL.MASK_ON,
            "recompute_boxes": crop and cfg.MODEL.MASK_ON,
            "max_pixels": cfg.INPUT.MAX_PIXELS,
            "cache_bytes": cfg.DATALOADER.CACHE_MB * 2**20 // workers if is_train else 0,
        }

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """
        Args:
            dataset_dict: one image in Detectron2's data set format.

        Returns:
            The same with ``image`` (3, H, W) uint8 tensor and ``instances`` in place of
            ``annotations``.

        Raises:
            UserError: the image cannot be read or is of another size than announced.
        """
        image = self._read(dataset_dict)
        aug_input = T.AugInput(image)
        transforms = self.augmentations(aug_input)
        image = aug_input.image
        mapped = {k: v for k, v in dataset_dict.items() if k != "annotations"}
        mapped["image"] = torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1)))
        if "annotations" in dataset_dict:
            annotations = [a for a in dataset_dict["annotations"] if not a.get("iscrowd", 0)]
            instances = self._instances(
                annotations,
                transforms,
                (dataset_dict["height"], dataset_dict["width"]),
                image.shape[:2],
            )
            mapped["instances"] = _drop_empty(instances)
        return mapped

    def _read(self, dataset_dict: dict[str, Any]) -> np.ndarray:
        path = dataset_dict["file_name"]
        image = self._cache.get(path)
        if image is None:
            size = (dataset_dict["width"], dataset_dict["height"])
            image = read_image(path, expected_size=size, max_pixels=self.max_pixels)
            if self.image_format == "RGB":
                image = image[:, :, ::-1]
            self._cache.put(path, image)
        return image

    def _instances(
        self,
        annotations: list[dict[str, Any]],
        transforms: T.TransformList,
        size_before: tuple[int, int],
        size_after: tuple[int, int],
    ) -> Instances:
        instances = Instances(size_after)
        boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
        boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
        boxes = transforms.apply_box(boxes).clip(min=0)
        boxes = np.minimum(boxes, np.asarray(size_after + size_after)[[1, 0, 3, 2]])
        instances.gt_boxes = Boxes(torch.as_tensor(boxes, dtype=torch.float32))
        classes = [a["category_id"] for a in annotations]
        instances.gt_classes = torch.as_tensor(classes, dtype=torch.int64)
        if self.use_instance_mask:
            segmentations = [a["segmentation"] for a in annotations]
            # A crop cuts through polygons; CropMasks are clipped to what is left in view.
            if not self.recompute_boxes and all(isinstance(s, list) for s in segmentations):
                instances.gt_masks = _transform_polygons(segmentations, transforms)
            else:
                masks = CropMasks.from_coco(segmentations, size_before)
                instances.gt_masks = masks.affine(affine_matrix(transforms), size_after)
            if self.recompute_boxes:
                instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
        return instances


class ImageCache:
    """Decoded images up to a number of bytes; what does not fit any more is read again."""

    def __init__(self, max_bytes: int):
        self._max_bytes = max_bytes
        self._bytes = 0
        self._images: OrderedDict[str, np.ndarray] = OrderedDict()

    def get(self, path: str) -> np.ndarray | None:
        return self._images.get(path)

    def put(self, path: str, image: np.ndarray) -> None:
        # Epochs visit every image once: evicting would keep the cache cold for all of them.
        if self._bytes + image.nbytes <= self._max_bytes:
            image.setflags(write=False)
            self._images[path] = image
            self._bytes += image.nbytes


def affine_matrix(transforms: T.TransformList) -> np.ndarray:
    """The 2×3 matrix of a list of affine transforms, in continuous pixel coordinates.

    All of Detectron2's geometric augmentations (resize, flip, crop, rotation, shear) are affine,
    so three points tell them whole.
    """
    origin, right, down = transforms.apply_coords(np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
    return np.stack([right - origin, down - origin, origin], axis=1)


def _transform_polygons(
    segmentations: list[list[list[float]]], transforms: T.TransformList
) -> PolygonMasks:
    polygons = [np.asarray(p, dtype=np.float64).reshape(-1, 2) for s in segmentations for p in s]
    if not polygons:
        return PolygonMasks([])
    # One call for all points: a transform's overhead per polygon costs more than its arithmetic.
    points = transforms.apply_coords(np.concatenate(polygons))
    pieces = iter(np.split(points, np.cumsum([len(p) for p in polygons])[:-1]))
    return PolygonMasks([[next(pieces).reshape(-1) for _ in s] for s in segmentations])


def _drop_empty(instances: Instances) -> Instances:
    keep = instances.gt_boxes.nonempty(threshold=1e-5)
    if instances.has("gt_masks"):
        keep &= instances.gt_masks.nonempty()
    return instances[keep]
