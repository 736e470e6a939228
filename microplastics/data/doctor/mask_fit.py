"""What a mask loses in the M x M crop of a mask head, and how wide it is."""

from collections.abc import Sequence

import numpy as np
import torch

from microplastics.structures.crop_masks import CropMasks

# Beyond this many pixels a bin of the largest crop spans 18 px, and a smaller copy tells as much.
_MAX_MASK_PIXELS = 2**22


def mask_width(mask: np.ndarray) -> float:
    """Width in px of a particle: the short side of the rectangle of its area and perimeter.

    Unlike the sides of a box around it, that is a fibre's own width however it lies and curls.
    The perimeter P is Crofton's in four directions (half the mean number of crossings with a
    grid of lines, times pi, times the lines' distance). Where no rectangle is as round as the
    particle, it is the side of the square of its area A: w = P/4 - sqrt(max(0, P²/16 - A)), or
    sqrt(A).

    Args:
        mask: (h, w) bool.
    """
    area = np.count_nonzero(mask)
    padded = np.pad(mask, 1)
    straight = sum(np.count_nonzero(np.diff(padded, axis=axis)) for axis in (0, 1))
    slanted = np.count_nonzero(padded[1:, 1:] != padded[:-1, :-1])
    slanted += np.count_nonzero(padded[1:, :-1] != padded[:-1, 1:])
    quarter = np.pi / 32 * (straight + slanted / np.sqrt(2))
    discriminant = quarter**2 - area
    return float(np.sqrt(area) if discriminant < 0 else quarter - np.sqrt(discriminant))


def mask_round_trip(
    masks: CropMasks, boxes: np.ndarray, resized: tuple[int, int], mask_sizes: Sequence[int]
) -> np.ndarray:
    """IoU of true masks with themselves after the mask head's M x M crop, for several M.

    As in training: the masks are resized with their image, cropped by their boxes and cut at one
    half to targets of M x M; as in inference: a mask equal to its target is pasted into the box
    on the original image. Masks of more than 4 megapixels are judged on a smaller copy.

    Args:
        masks: N true masks on the original image.
        boxes: (N, 4) their boxes x0, y0, x1, y1 in px of the original image.
        resized: height and width in px that the network sees.
        mask_sizes: K sizes M.

    Returns:
        (K, N) float64 in [0, 1]; 0 for a mask without a pixel.
    """
    iou = np.zeros((len(mask_sizes), len(masks)))
    pixels = np.array([crop.size for crop in masks.crops])
    large = np.flatnonzero(pixels > _MAX_MASK_PIXELS)
    iou[:, pixels <= _MAX_MASK_PIXELS] = _round_trip(
        masks[pixels <= _MAX_MASK_PIXELS], boxes[pixels <= _MAX_MASK_PIXELS], resized, mask_sizes
    )
    for index in large:
        factor = np.sqrt(_MAX_MASK_PIXELS / pixels[index])
        copy_size = tuple(max(1, round(side * factor)) for side in masks.image_size)
        copy = masks[[index]].affine(np.eye(2, 3) * factor, copy_size)
        seen = min(tuple(resized), copy_size)
        iou[:, [index]] = _round_trip(copy, boxes[[index]] * factor, seen, mask_sizes)
    return iou


def _round_trip(
    masks: CropMasks, boxes: np.ndarray, resized: tuple[int, int], mask_sizes: Sequence[int]
) -> np.ndarray:
    height, width = masks.image_size
    scale = np.array([resized[1] / width, resized[0] / height])
    seen = masks.affine(np.column_stack([np.diag(scale), (0, 0)]), resized)
    boxes_seen = torch.as_tensor(boxes * np.tile(scale, 2), dtype=torch.float32)
    boxes = torch.as_tensor(boxes, dtype=torch.float32)
    iou = []
    for size in mask_sizes:
        targets = seen.crop_and_resize(boxes_seen, size)
        pasted = CropMasks.paste(targets.float(), boxes, masks.image_size)
        pairs = zip(masks.crops, masks.offsets, pasted.crops, pasted.offsets, strict=True)
        iou.append([_iou(*pair) for pair in pairs])
    return np.array(iou)


def _iou(one: np.ndarray, start: np.ndarray, other: np.ndarray, other_start: np.ndarray) -> float:
    """IoU of two crops of one image; the offsets are x0, y0."""
    left, top = np.maximum(start, other_start)
    right, bottom = np.minimum(start + one.shape[::-1], other_start + other.shape[::-1])
    shared = 0
    if right > left and bottom > top:
        views = [
            crop[top - y : bottom - y, left - x : right - x]
            for crop, (x, y) in ((one, start), (other, other_start))
        ]
        shared = np.count_nonzero(views[0] & views[1])
    union = np.count_nonzero(one) + np.count_nonzero(other) - shared
    return shared / union if union else 0.0
