"""From the model's output to the image: boxes scaled, masks pasted into their own boxes."""

import numpy as np
from detectron2.structures import Instances

from microplastics.structures.crop_masks import CropMasks


def drop_duplicates(instances: Instances, max_overlap: float) -> Instances:
    """Leave out what a better-scored particle covers already; see :func:`distinct`.

    Args:
        instances: of one image, with ``scores``, ``pred_classes`` and ``pred_masks`` as
            :class:`CropMasks`.
        max_overlap: as of :func:`distinct`.
    """
    if max_overlap >= 1 or len(instances) < 2:
        return instances
    kept = distinct(
        instances.pred_masks,
        instances.pred_classes.cpu().numpy(),
        instances.scores.cpu().numpy(),
        max_overlap,
    )
    return instances if len(kept) == len(instances) else instances[kept]


def distinct(
    masks: CropMasks, classes: np.ndarray, scores: np.ndarray, max_overlap: float
) -> np.ndarray:
    """Number the masks that are no duplicates, best score first in deciding.

    A mask is a duplicate of a better-scored one that is kept: of the same class, where they share
    more than ``max_overlap`` of the smaller of both; of another class, where they share more than
    that of their union, since a fibre may well lie on a film. Whether a mask is kept depends on
    better-scored ones alone, so that a higher score threshold for all classes changes nothing
    among the rest; one for a single class may bring back what that class covered of another.

    Args:
        masks: N masks of one image.
        classes: (N,) numbers.
        scores: (N,).
        max_overlap: share from 0 on; 1 keeps all.

    Returns:
        ascending numbers, int64.
    """
    areas = masks.area().numpy()
    starts = masks.offsets
    ends = starts + np.array([crop.shape[::-1] for crop in masks.crops]).reshape(-1, 2)
    kept: list[int] = []
    for index in np.argsort(-scores, kind="stable").tolist():
        others = np.array(kept, dtype=np.int64)
        shared = np.minimum(ends[index], ends[others]) - np.maximum(starts[index], starts[others])
        for other in others[(shared > 0).all(axis=1)].tolist():
            # No more than the smaller area can be shared: most pairs need no look at pixels.
            whole = min(areas[index], areas[other])
            if classes[index] != classes[other]:
                if whole <= max_overlap * max(areas[index], areas[other]):
                    continue
                common = _common(masks, index, other)
                whole = areas[index] + areas[other] - common
            else:
                common = _common(masks, index, other)
            if common > max_overlap * whole:
                break
        else:
            kept.append(index)
    return np.sort(np.array(kept, dtype=np.int64))


def _common(masks: CropMasks, one: int, other: int) -> int:
    """Pixels that two masks share."""
    left, top = np.maximum(masks.offsets[one], masks.offsets[other])
    parts = []
    for index in (one, other):
        x, y = masks.offsets[index]
        parts.append(masks.crops[index][top - y :, left - x :])
    height, width = np.minimum(parts[0].shape, parts[1].shape)
    return int(np.count_nonzero(parts[0][:height, :width] & parts[1][:height, :width]))


def postprocess(results: Instances, height: int, width: int, threshold: float = 0.5) -> Instances:
    """Detectron2's ``detector_postprocess`` without a full-frame bitmap.

    Args:
        results: raw output of the RoI heads for one image: ``pred_boxes`` in pixels of the
            network's input, ``pred_masks`` (N, 1, M, M) probabilities.
        height: of the original image, in pixels.
        width: of the original image, in pixels.
        threshold: mask probability from which a pixel belongs to the particle.

    Returns:
        New ``Instances`` of the original size, whose ``pred_masks`` are ``CropMasks``: the same
        boxes, and pixel for pixel the same masks, as Detectron2's.
    """
    scale_x = width / results.image_size[1]
    scale_y = height / results.image_size[0]
    results = Instances((height, width), **results.get_fields())
    boxes = results.pred_boxes.clone()
    boxes.scale(scale_x, scale_y)
    boxes.clip(results.image_size)
    results.pred_boxes = boxes
    results = results[boxes.nonempty()]
    if results.has("pred_masks"):
        results.pred_masks = CropMasks.paste(
            results.pred_masks[:, 0], results.pred_boxes.tensor, (height, width), threshold
        )
    return results
