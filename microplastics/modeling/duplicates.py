"""Particles that were detected twice, told by their masks.

Boxes alone, which Detectron2's non-maximum suppression compares, do not tell: those of two pieces
of one slanted fibre overlap little, those of two crossing fibres a lot.
"""

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
