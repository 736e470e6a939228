"""Images and targets as torchvision's detectors take them: checked, converted, written as COCO."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import cv2
import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from torch.nn import functional as F

from microplastics.structures.crop_masks import CropMasks
from microplastics.utils.errors import UserError
from microplastics.utils.io import atomic_write, write_json

# Beyond it, values are those of 8-bit or of normalised images.
_VALUES = (-0.5, 1.5)
# Rounding of boxes at the border of the image, in px.
_BOX_SLACK = 0.01


class Target(TypedDict):
    """The N particles of one image, as torchvision has them.

    Attributes:
        boxes: (N, 4) float x0, y0, x1, y1 in px.
        labels: (N,) integers, 1 to K.
        masks: (N, H, W) uint8 or bool, not 0 inside the particle.
    """

    boxes: torch.Tensor
    labels: torch.Tensor
    masks: torch.Tensor


def _invalid(sentence: str) -> UserError:
    return UserError(sentence, code="option_invalid")


def check_images(images: Any) -> None:
    """Refuse what is not a list of (3, H, W) float tensors from 0 to 1.

    Raises:
        UserError: option_invalid.
    """
    if not isinstance(images, (list, tuple)) or not images:
        found = "an empty list" if isinstance(images, (list, tuple)) else _kind(images)
        raise _invalid(f"The images are {found}; expected a list of (3, H, W) float tensors.")
    for number, image in enumerate(images):
        check_image(image, f"images[{number}]")


def check_image(image: Any, name: str) -> None:
    """Refuse what is not a (3, H, W) float tensor from 0 to 1, by its name in the sentence."""
    is_image = torch.is_tensor(image) and image.dim() == 3 and image.shape[0] == 3
    if not is_image or not image.is_floating_point():
        raise _invalid(f"{name} is {_kind(image)}; expected a (3, H, W) float tensor, RGB.")
    if not image.numel():
        raise _invalid(f"{name} is {_kind(image)}; expected an image with pixels.")
    low, high = image.detach().aminmax()
    if not (low >= _VALUES[0] and high <= _VALUES[1]):
        raise _invalid(
            f"{name} has values from {low:.4g} to {high:.4g}; expected 0 to 1, not normalised."
        )


def check_targets(targets: Any, images: Sequence[torch.Tensor], num_classes: int) -> None:
    """Refuse targets that do not fit their images, in one sentence.

    Args:
        targets: :class:`Target` of each image.
        images: checked.
        num_classes: K.

    Raises:
        UserError: option_invalid.
    """
    if not isinstance(targets, (list, tuple)) or len(targets) != len(images):
        found = len(targets) if isinstance(targets, (list, tuple)) else _kind(targets)
        raise _invalid(
            f"The targets are {found}; expected a list of {len(images)} dicts, one for each image."
        )
    for number, (target, image) in enumerate(zip(targets, images, strict=True)):
        check_target(target, image.shape[-2:], num_classes, f"targets[{number}]")


def check_target(target: Any, size: Sequence[int], num_classes: int, name: str) -> None:
    """Refuse a target that does not fit an image of a size (height, width)."""
    if not isinstance(target, Mapping):
        raise _invalid(f"{name} is {_kind(target)}; expected a dict of boxes, labels and masks.")
    missing = [key for key in Target.__annotations__ if key not in target]
    if missing:
        raise _invalid(
            f"{name} has no {' and no '.join(missing)}; expected boxes, labels and masks."
        )
    boxes, labels, masks = (target[key] for key in ("boxes", "labels", "masks"))
    height, width = size
    count = labels.shape[0] if torch.is_tensor(labels) and labels.dim() == 1 else -1
    kinds = (torch.uint8, torch.bool)
    for key, value, is_kind, shape, kind in (
        ("labels", labels, lambda v: not v.is_floating_point(), (count,), "(N,) integers"),
        ("boxes", boxes, torch.is_floating_point, (count, 4), "float"),
        ("masks", masks, lambda v: v.dtype in kinds, (count, height, width), "uint8 or bool"),
    ):
        if not torch.is_tensor(value) or not is_kind(value) or value.shape != shape:
            expected = kind if key == "labels" else f"{shape} {kind}"
            raise _invalid(f"{name}[{key!r}] is {_kind(value)}; expected {expected}.")
    wrong = ((labels < 1) | (labels > num_classes)).nonzero().flatten().tolist()
    if wrong:
        raise _invalid(
            f"{name}['labels'][{wrong[0]}] is {int(labels[wrong[0]])}; expected 1 to {num_classes}."
        )
    _check_boxes(boxes, size, name)
    empty = (~masks.bool().flatten(1).any(dim=1)).nonzero().flatten().tolist()
    if empty:
        raise _invalid(f"{name}['masks'][{empty[0]}] has no pixel; leave the particle out.")


def _check_boxes(boxes: torch.Tensor, size: Sequence[int], name: str) -> None:
    height, width = size
    ends = boxes.new_tensor([width, height])
    is_inside = (boxes[:, :2] >= -_BOX_SLACK).all(dim=1) & (boxes[:, 2:] <= ends + _BOX_SLACK).all(
        dim=1
    )
    is_valid = is_inside & (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    wrong = (~is_valid).nonzero().flatten().tolist()  # NaN is neither inside nor outside
    if wrong:
        box = ", ".join(f"{value:g}" for value in boxes[wrong[0]].tolist())
        raise _invalid(
            f"{name}['boxes'][{wrong[0]}] is {box}; expected 0 <= x0 < x1 <= {width} and 0 <= y0 < "
            f"y1 <= {height}."
        )


def _kind(value: Any) -> str:
    if torch.is_tensor(value):
        return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    return type(value).__name__


def resized_image(image: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Resize (C, H, W) to (height, width) with anti-aliasing, as Pillow does 8-bit images."""
    if image.shape[-2:] == tuple(size):
        return image
    return F.interpolate(
        image[None], tuple(size), mode="bilinear", align_corners=False, antialias=True
    )[0]


def to_instances(target: Target, size_before: Sequence[int], size: Sequence[int]) -> Instances:
    """Turn a checked target into Detectron2's, on an image of another size (height, width)."""
    scale_x, scale_y = size[1] / size_before[1], size[0] / size_before[0]
    boxes = Boxes(target["boxes"].detach().to(torch.float32).clone())
    boxes.scale(scale_x, scale_y)
    boxes.clip(tuple(size))
    masks = CropMasks.from_bitmasks(target["masks"])
    if tuple(size) != tuple(size_before):
        masks = masks.affine(np.array([[scale_x, 0, 0], [0, scale_y, 0]]), size)
    return Instances(
        tuple(size), gt_boxes=boxes, gt_classes=target["labels"].long() - 1, gt_masks=masks
    )


def write_coco(dataset: Any, folder: Path, class_names: Sequence[str]) -> str:
    """Write a data set of torchvision's kind as PNG files and a COCO JSON.

    Args:
        dataset: ``dataset[i]`` is an image and its target, as :func:`check_image` and
            :func:`check_target` want them; each is asked for once.
        folder: for the files; those that are there are overwritten.
        class_names: of the labels 1 to K.

    Returns:
        ``JSON:IMAGES``, an entry for DATASETS.TRAIN and DATASETS.TEST.

    Raises:
        UserError: option_invalid, not_writable.
    """
    images, annotations = [], []
    for number in range(len(dataset)):
        image, target = dataset[number]
        check_image(image, f"The image {number} of the data set")
        size = image.shape[-2:]
        check_target(target, size, len(class_names), f"The target {number} of the data set")
        pixels = (image.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
        encoded = cv2.imencode(".png", pixels.permute(1, 2, 0).numpy()[:, :, ::-1])[1]
        name = f"{number:06d}.png"
        with atomic_write(folder / name, "wb") as file:
            file.write(encoded.tobytes())
        images.append({"id": number + 1, "file_name": name, "height": size[0], "width": size[1]})
        masks = CropMasks.from_bitmasks(target["masks"])
        rows = zip(
            target["boxes"].tolist(),
            target["labels"].tolist(),
            masks.to_rles(as_str=True),
            masks.area().tolist(),
            strict=True,
        )
        for (x0, y0, x1, y1), label, rle, area in rows:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number + 1,
                    "category_id": label,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "segmentation": rle,
                    "area": area,
                    "iscrowd": 0,
                }
            )
    categories = [{"id": k, "name": name} for k, name in enumerate(class_names, start=1)]
    json_file = folder / "instances.json"
    write_json(json_file, {"images": images, "annotations": annotations, "categories": categories})
    return f"{json_file}:{folder}"
