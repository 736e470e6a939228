"""Dataset mapper: from a Detectron2 data set dict to the input of a model."""

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import transforms as T
from detectron2.structures import Boxes, BoxMode, Instances, PolygonMasks
from detectron2.utils.logger import log_first_n

from microplastics.calibration.scale_bar import Box
from microplastics.data.augmentation import transforms
from microplastics.data.augmentation.mixing import MOSAIC_IMAGES, CopyPaste, Mosaic, Sample
from microplastics.data.images import image_header, read_image, size_mismatch
from microplastics.data.large_images import ImageReader, open_reader
from microplastics.data.painting import (
    PaintedRegions,
    Picture,
    Regions,
    are_hidden,
    boxes_to_paint,
)
from microplastics.data.segmentation import usable_masks
from microplastics.structures.crop_masks import CropMasks
from microplastics.utils.errors import UserError

logger = logging.getLogger(__name__)

# Images whose windows are read that stay open.
_OPEN_IMAGES = 2
# Keys of INPUT: (least, greatest), also of both numbers of a pair. NaN is never between them.
_RANGES = {
    "AUG.CROP.SIZE": (1, 10**6),
    "AUG.CROP.SHIFT": (0, 1),
    "AUG.ROTATION.MAX_ANGLE": (0, 180),
    "AUG.SCALE.RANGE": (0.05, 20),
    "AUG.BRIGHTNESS.RANGE": (0, 10),
    "AUG.CONTRAST.RANGE": (0, 10),
    "AUG.SATURATION.RANGE": (0, 10),
    "AUG.HUE.MAX_SHIFT": (0, 180),
    "AUG.BLUR.SIGMA": (0.05, 50),
    "AUG.NOISE.SIGMA": (0, 255),
    "AUG.NOISE.SHOT": (0, 255),
    "AUG.JPEG.QUALITY": (1, 100),
    "AUG.MOSAIC.SCALE": (0.05, 20),
    "AUG.COPY_PASTE.MAX_PARTICLES": (1, 10**4),
    "AUG.COPY_PASTE.MAX_COVER": (0, 1),
    "AUG.COPY_PASTE.SCALE": (0.05, 20),
    "AUG.COPY_PASTE.EDGE": (0, 50),
    "MIN_VISIBLE_SHARE": (0, 0.99),
    "MIN_MASK_PIXELS": (1, 10**6),
    "TILE.SIZE": (0, 10**6),
    "TILE.EMPTY_SHARE": (0, 1),
}
_INTEGERS = ("AUG.JPEG.QUALITY", "AUG.CROP.SIZE")
_CHOICES = {
    "AUG.ROTATION.FRAME": ("same", "expand", "inside"),
    "AUG.ROTATION.BORDER": ("reflect", "median", "black"),
    "AUG.BLUR.KIND": ("gaussian", "defocus", "both"),
    "AUG.COPY_PASTE.OCCLUSION": ("modal", "amodal"),
    "RANDOM_FLIP": ("none", "horizontal", "vertical", "both"),
    "MASK_FORMAT": ("polygon", "bitmask"),
}


def check_augmentation(cfg: CfgNode) -> None:
    """Check the values of INPUT that the project adds or uses.

    Raises:
        UserError: ``config_invalid``, naming the key and the values it may have.
    """
    probabilities = {f"AUG.{name}.PROB": (0, 1) for name in cfg.INPUT.AUG}
    overlap = {"TILE.OVERLAP": (0, cfg.INPUT.TILE.SIZE - 1)} if cfg.INPUT.TILE.SIZE else {}
    for key, (low, high) in {**probabilities, **_RANGES, **overlap}.items():
        value = functools.reduce(getattr, key.split("."), cfg.INPUT)
        is_pair = isinstance(value, (tuple, list))
        has_bounds = is_pair and key != "AUG.CROP.SIZE"
        values = list(value) if is_pair else [value]
        kinds = (int,) if key in _INTEGERS else (int, float)
        is_valid = all(type(v) in kinds and low <= v <= high for v in values)
        is_valid = is_valid and len(values) == (2 if is_pair else 1)
        if not is_valid or (has_bounds and values[0] > values[1]):
            kind = "integer" if key in _INTEGERS else "number"
            expected = f"{f'two {kind}s' if is_pair else f'a {kind}'} from {low} to {high}"
            expected += ", the lower one first" if has_bounds else ""
            raise UserError(f"INPUT.{key} is {value}; expected {expected}.", code="config_invalid")
    for key, choices in _CHOICES.items():
        value = functools.reduce(getattr, key.split("."), cfg.INPUT)
        if value not in choices:
            raise UserError(
                f"INPUT.{key} is {value!r}; expected one of {', '.join(choices)}.",
                code="config_invalid",
            )


def build_augmentations(cfg: CfgNode) -> list[T.Augmentation]:
    """Return the augmentations of one training image, in their order.

    First the crop, whose rest then costs nothing; then the effects of lens, light, sensor and
    file, on the pixels of the photograph; then rotation, size and flips. With all of INPUT.AUG off
    these are Detectron2's own.
    """
    aug, crop, turn = cfg.INPUT.AUG, cfg.INPUT.CROP, cfg.INPUT.AUG.ROTATION
    rotation = transforms.RandomRotation(turn.MAX_ANGLE, turn.FRAME, turn.BORDER)
    listed: list[tuple[float, T.Augmentation]] = [
        (float(crop.ENABLED), T.RandomCrop(crop.TYPE, crop.SIZE)),
        (aug.CROP.PROB, transforms.RandomParticleCrop(*aug.CROP.SIZE, aug.CROP.SHIFT)),
        (aug.BLUR.PROB, transforms.RandomBlur(*aug.BLUR.SIGMA, aug.BLUR.KIND)),
        (aug.BRIGHTNESS.PROB, transforms.RandomBrightness(*aug.BRIGHTNESS.RANGE)),
        (aug.CONTRAST.PROB, transforms.RandomContrast(*aug.CONTRAST.RANGE)),
        (aug.SATURATION.PROB, transforms.RandomSaturation(*aug.SATURATION.RANGE)),
        (aug.HUE.PROB, transforms.RandomHue(aug.HUE.MAX_SHIFT)),
        (aug.NOISE.PROB, transforms.RandomNoise(aug.NOISE.SIGMA, aug.NOISE.SHOT)),
        (aug.JPEG.PROB, transforms.RandomJPEG(*aug.JPEG.QUALITY)),
        (aug.RIGHT_ANGLES.PROB, T.RandomRotation([90, 180, 270], sample_style="choice")),
        (turn.PROB, rotation),
    ]
    built = [a if prob == 1 else T.RandomApply(a, prob) for prob, a in listed if prob > 0]
    size = cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING
    if aug.SCALE.PROB > 0 or cfg.INPUT.FAST_RESIZE:
        jitter = tuple(aug.SCALE.RANGE), aug.SCALE.PROB
        built.append(transforms.ResizeWithJitter(*size, *jitter, cfg.INPUT.FAST_RESIZE))
    else:
        built.append(T.ResizeShortestEdge(*size))
    if cfg.INPUT.RANDOM_FLIP in ("horizontal", "both"):
        built.append(T.RandomFlip())
    if cfg.INPUT.RANDOM_FLIP in ("vertical", "both"):
        built.append(T.RandomFlip(horizontal=False, vertical=True))
    return built


class MicroplasticsDatasetMapper:
    """Detectron2's ``DatasetMapper`` for any image file and any mixture of masks.

    - Images are read by :func:`microplastics.data.images.read_image`: 16-bit, grey, CMYK, alpha
      and EXIF rotation become 8-bit BGR, broken files an error of one sentence. A data set dict
      with a ``window`` (:mod:`microplastics.data.tiling`) is that part of its image.
    - An image with only polygons gets ``PolygonMasks``. If ``mask_format`` is ``"bitmask"``, an
      instance is RLE or an augmentation cuts, all masks become ``CropMasks``, which are
      ``BitMasks`` without full frames.
    - Scale bars and their labels are painted over, as in prediction, with the particles on them.
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
        paint_scale_bar: bool = False,
        min_visible_fraction: float = 0.0,
        min_mask_pixels: int = 1,
        mosaic: Mosaic | None = None,
        copy_paste: CopyPaste | None = None,
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
            paint_scale_bar: paint scale bars and their labels over.
            min_visible_fraction: drop particles of which less is left; with ``recompute_boxes``.
            min_mask_pixels: drop particles of fewer pixels, or px² of polygon.
            mosaic, copy_paste: mix other images into the image, in this order.
        """
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.use_instance_mask = use_instance_mask
        self.mask_format = mask_format
        self._mosaic = mosaic or Mosaic(prob=0.0)
        self._copy_paste = copy_paste or CopyPaste(prob=0.0)
        self.mixes = self._mosaic.prob > 0 or self._copy_paste.prob > 0
        self.recompute_boxes = recompute_boxes or self.mixes
        self.min_visible_fraction = min_visible_fraction
        self.min_mask_pixels = min_mask_pixels
        self.partners: Sequence[dict[str, Any]] = ()
        self.partner_weights: np.ndarray | None = None
        self._read = RecordReader(cache_bytes, max_pixels, paint_scale_bar)
        mode = "training" if is_train else "validation"
        logger.info("Augmentations used in %s: %s", mode, augmentations)

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        check_augmentation(cfg)
        common = {
            "is_train": is_train,
            "image_format": cfg.INPUT.FORMAT,
            "use_instance_mask": cfg.MODEL.MASK_ON,
            "mask_format": cfg.INPUT.MASK_FORMAT,
            "max_pixels": cfg.INPUT.MAX_PIXELS,
            "paint_scale_bar": cfg.INPUT.PAINT_SCALE_BAR,
        }
        if not is_train:
            # The size and pixels of DefaultPredictor.
            size = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
            return {"augmentations": [T.ResizeShortestEdge(*size, "choice")], **common}
        aug, crops = cfg.INPUT.AUG, cfg.INPUT.CROP.ENABLED
        # Flips and resizing keep every particle, as in Detectron2.
        limits = crops or cfg.INPUT.TILE.SIZE > 0 or any(node.PROB > 0 for node in aug.values())
        return {
            "augmentations": build_augmentations(cfg),
            # These cut particles, or need their boxes.
            "recompute_boxes": crops or aug.ROTATION.PROB > 0 or aug.CROP.PROB > 0,
            "cache_bytes": cfg.DATALOADER.CACHE_MB * 2**20 // max(1, cfg.DATALOADER.NUM_WORKERS),
            "min_visible_fraction": cfg.INPUT.MIN_VISIBLE_SHARE if limits else 0.0,
            "min_mask_pixels": cfg.INPUT.MIN_MASK_PIXELS if limits else 1,
            "mosaic": Mosaic(**{key.lower(): v for key, v in aug.MOSAIC.items()}),
            "copy_paste": CopyPaste(**{key.lower(): v for key, v in aug.COPY_PASTE.items()}),
            **common,
        }

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """
        Args:
            dataset_dict: one image in Detectron2's data set format.

        Returns:
            The same with ``image`` (3, H, W) uint8 tensor and ``instances`` in place of
            ``annotations``; ``dropped_instances``, the number of particles of which a part is in
            view, but too little; in validation ``painted``, boxes x, y, width and height in px of
            the image that are painted over.

        Raises:
            UserError: the image cannot be read, its size differs from the annotations, or its
                masks need more memory than there is.
        """
        mapped = {k: v for k, v in dataset_dict.items() if k != "annotations"}
        image = self._read(dataset_dict)
        if not self.is_train:
            mapped["painted"] = self._read.painted(dataset_dict)
        has_annotations = "annotations" in dataset_dict
        if has_annotations and self.recompute_boxes:
            sample = self._mix(self._sample(image, dataset_dict))
            # Without particles that a mosaic hides: nothing to crop around or paint over.
            boxes = sample.masks[sample.masks.nonempty()].get_bounding_boxes().tensor.numpy()
            aug_input = T.AugInput(sample.image, boxes=boxes)
            applied = self.augmentations(aug_input)
            self._add_clipped(mapped, sample, applied, aug_input.image.shape[:2])
        else:
            aug_input = T.AugInput(image)
            applied = self.augmentations(aug_input)
        if has_annotations and not self.recompute_boxes:
            sizes = image.shape[:2], aug_input.image.shape[:2]
            instances = self._instances(dataset_dict, applied, *sizes)
            keep = self._large_enough(instances)
            mapped["instances"] = instances[keep]
            mapped["dropped_instances"] = int((~keep).sum())
        image = aug_input.image[:, :, ::-1] if self.image_format == "RGB" else aug_input.image
        mapped["image"] = torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1)))
        return mapped

    def _mix(self, sample: Sample) -> Sample:
        """Mosaic and copy-paste, each with its probability."""
        if not self.mixes:
            return sample
        if not self.partners:
            log_first_n(
                logging.WARNING,
                "Copy-paste and mosaic are off: MicroplasticsDatasetMapper.partners is empty, from "
                "which they draw other images.",
            )
            return sample
        if np.random.uniform() < self._mosaic.prob:
            others = [self._random_partner() for _ in range(MOSAIC_IMAGES - 1)]
            sample = self._mosaic([sample, *others])
        if np.random.uniform() < self._copy_paste.prob:
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
        return self._sample(self._read(partner), partner)

    def _sample(self, image: np.ndarray, dataset_dict: dict[str, Any]) -> Sample:
        with usable_masks(dataset_dict["file_name"]):
            return Sample.from_annotations(image, self._particles(dataset_dict))

    def _particles(self, dataset_dict: dict[str, Any]) -> list[dict[str, Any]]:
        """The annotations that training and validation use: no crowds, none painted over."""
        particles = [a for a in dataset_dict.get("annotations", ()) if not a.get("iscrowd", 0)]
        painted = self._read.painted(dataset_dict)
        if not (painted and particles):
            return particles
        hidden = are_hidden(_boxes(particles), painted)
        kept = [a for a, is_hidden in zip(particles, hidden, strict=True) if not is_hidden]
        if len(kept) < len(particles):
            log_first_n(
                logging.WARNING,
                f"{len(particles) - len(kept)} annotations of {dataset_dict['file_name']} lie on "
                "what looks like a scale bar, which is painted over, and are left out; if it is "
                "none, set INPUT.PAINT_SCALE_BAR False.",
                name=__name__,
                key="message",
            )
        return kept

    def _add_clipped(
        self,
        mapped: dict[str, Any],
        sample: Sample,
        applied: T.TransformList,
        size_after: tuple[int, int],
    ) -> None:
        """Transform masks; keep those of which enough is left, with tight boxes."""
        masks, whole = sample.masks, sample.whole
        for part, size in _frames(applied, size_after):
            matrix = affine_matrix(part)
            masks = masks.affine(matrix, size)
            whole = whole * abs(np.linalg.det(matrix[:, :2]))
        area = masks.area().numpy()
        keep = area >= np.maximum(self.min_mask_pixels, self.min_visible_fraction * whole)
        mapped["dropped_instances"] = int((~keep & (area > 0)).sum())
        masks = masks[keep]
        instances = Instances(size_after)
        instances.gt_boxes = masks.get_bounding_boxes()
        instances.gt_classes = torch.from_numpy(sample.classes[keep])
        if self.use_instance_mask:
            instances.gt_masks = masks
        mapped["instances"] = instances

    def _instances(
        self,
        dataset_dict: dict[str, Any],
        applied: T.TransformList,
        size_before: tuple[int, int],
        size_after: tuple[int, int],
    ) -> Instances:
        annotations = self._particles(dataset_dict)
        instances = Instances(size_after)
        boxes = applied.apply_box(_boxes(annotations)).clip(min=0)
        boxes = np.minimum(boxes, np.asarray(size_after + size_after)[[1, 0, 3, 2]])
        instances.gt_boxes = Boxes(torch.as_tensor(boxes, dtype=torch.float32))
        classes = [a["category_id"] for a in annotations]
        instances.gt_classes = torch.as_tensor(classes, dtype=torch.int64)
        if self.use_instance_mask:
            segmentations = [a["segmentation"] for a in annotations]
            if self.mask_format == "polygon" and all(isinstance(s, list) for s in segmentations):
                instances.gt_masks = _transform_polygons(segmentations, applied)
            else:
                with usable_masks(dataset_dict["file_name"]):
                    masks = CropMasks.from_coco(segmentations, size_before)
                instances.gt_masks = masks.affine(affine_matrix(applied), size_after)
        return instances

    def _large_enough(self, instances: Instances) -> torch.Tensor:
        """Return which instances are not empty and have enough pixels: (N,) bool."""
        keep = instances.gt_boxes.nonempty(threshold=1e-5)
        if instances.has("gt_masks"):
            keep &= instances.gt_masks.nonempty()
            if self.min_mask_pixels > 1:
                keep &= torch.as_tensor(instances.gt_masks.area() >= self.min_mask_pixels)
        return keep


class RecordReader:
    """Reads the images, or windows of them, of data set dicts.

    Decoded images are kept up to ``cache_bytes``, later ones are not. Large images whose windows
    were read last stay open. Images of more than ``max_pixels`` are refused. With
    ``paint_scale_bar`` scale bars and their labels are painted over; they are looked for at the
    first read of a file.
    """

    def __init__(
        self,
        cache_bytes: int = 0,
        max_pixels: int | None = None,
        paint_scale_bar: bool = False,
    ):
        self._free_bytes, self._max_pixels = cache_bytes, max_pixels
        self._paint = paint_scale_bar
        self._bars: dict[str, list[Box]] = {}
        self._kept: dict[str, np.ndarray] = {}

    def __call__(self, record: dict[str, Any]) -> np.ndarray:
        """Read (height, width, 3) uint8 BGR, possibly read only: the pixels of ``read_image``.

        Args:
            record: data set dict with ``file_name``, ``width`` and ``height``, of a window with
                ``window`` and ``full_size`` (see ``tiling.tile_dicts``).

        Raises:
            UserError: the image cannot be read, or ``image_size``.
        """
        path, whole = record["file_name"], (0, 0, record["width"], record["height"])
        x, y, width, height = record.get("window", whole)
        if path in self._kept:
            return self._kept[path][y : y + height, x : x + width]
        if "window" not in record:
            image = read_image(path, (width, height), self._max_pixels)
            picture = Picture(image)
            regions = self._painted(path, picture)
            return self._keep(path, image if regions is picture else regions.read(*whole))
        reader, regions, _ = self._open(path, tuple(record["full_size"]))
        part = regions.read(x, y, x + width, y + height)
        if reader.decoded is not None and reader.decoded.nbytes <= self._free_bytes:
            self._keep(path, regions.read(0, 0, *record["full_size"]))
        return part

    def painted(self, record: dict[str, Any]) -> list[Box]:
        """Boxes x, y, width and height in px of a record that was read, painted over."""
        x, y = record.get("window", (0, 0))[:2]
        return [(u - x, v - y, w, h) for u, v, w, h in self._bars.get(record["file_name"], ())]

    def _painted(self, path: str, regions: Regions) -> Regions:
        """The image without its scale bars; itself if it has none."""
        if self._paint and path not in self._bars:
            self._bars[path] = boxes_to_paint(regions)
        boxes = self._bars.get(path)
        return PaintedRegions(regions, boxes) if boxes else regions

    def _keep(self, path: str, image: np.ndarray) -> np.ndarray:
        # Epochs visit every image once: evicting would keep the cache cold for all of them.
        if image.nbytes <= self._free_bytes:
            image.setflags(write=False)
            self._kept[path] = image
            self._free_bytes -= image.nbytes
        return image

    @functools.cached_property  # made in the process that reads: open files cannot be pickled
    def _open(self) -> Callable:
        return functools.lru_cache(_OPEN_IMAGES)(self._opened)

    def _opened(
        self, path: str, full_size: tuple[int, int]
    ) -> tuple[ImageReader, Regions, contextlib.ExitStack]:
        """Open an image, as it is and painted; its file is closed when the stack is dropped."""
        size, rotated = image_header(path, self._max_pixels)
        if size != full_size:
            raise UserError(f"{path} {size_mismatch(size, full_size, rotated)}.", code="image_size")
        stack = contextlib.ExitStack()
        reader = stack.enter_context(open_reader(path, max_pixels=self._max_pixels))
        return reader, self._painted(path, reader), stack


def affine_matrix(applied: T.TransformList) -> np.ndarray:
    """Return the 2×3 matrix of a list of affine transforms, in continuous pixel coordinates.

    All geometric augmentations here and in Detectron2 (resize, flip, crop, rotation, shear) are
    affine, so three points define them.
    """
    origin, right, down = applied.apply_coords(np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
    return np.stack([right - origin, down - origin, origin], axis=1)


def _frames(
    applied: T.TransformList, size_after: tuple[int, int]
) -> Iterator[tuple[T.TransformList, tuple[int, int]]]:
    """Yield the transforms up to each crop and up to the end, with the (height, width) after them.

    A rotation after a crop shows places outside the crop. The image has no particles there, so the
    masks must end at the crop.
    """
    part: list[T.Transform] = []
    for transform in applied.transforms:
        part.append(transform)
        if isinstance(transform, T.CropTransform):
            yield T.TransformList(part), (transform.h, transform.w)
            part = []
    if part or not applied.transforms:
        yield T.TransformList(part), size_after


def _boxes(annotations: list[dict[str, Any]]) -> np.ndarray:
    """Return (N, 4) x0, y0, x1, y1 in px, float64."""
    boxes = np.array([a["bbox"] for a in annotations], dtype=np.float64).reshape(-1, 4)
    has_size = [a["bbox_mode"] == BoxMode.XYWH_ABS for a in annotations]
    boxes[has_size, 2:] += boxes[has_size, :2]
    return boxes


def _transform_polygons(
    segmentations: list[list[list[float]]], applied: T.TransformList
) -> PolygonMasks:
    polygons = [np.asarray(p, dtype=np.float64).reshape(-1, 2) for s in segmentations for p in s]
    if not polygons:
        return PolygonMasks([])
    # One call for all points: the overhead of a transform per polygon exceeds its arithmetic.
    points = applied.apply_coords(np.concatenate(polygons))
    pieces = iter(np.split(points, np.cumsum([len(p) for p in polygons])[:-1]))
    return PolygonMasks([[next(pieces).reshape(-1) for _ in s] for s in segmentations])
