"""Detections on the image: masks pasted, duplicates removed."""

import numpy as np
import torch
from detectron2.structures import Instances, ROIMasks

from microplastics.structures.crop_masks import CropMasks
from microplastics.structures.view import common_pixels


def to_image(
    results: Instances, size: tuple[int, int], staged: bool, threshold: float = 0.5
) -> Instances:
    """Bring the output of a model onto the original image.

    Args:
        results: of one image.
        size: height and width of the original image in px.
        staged: the results are raw, see :func:`microplastics.modeling.interface.is_staged`; else
            only their full-frame masks are changed.
        threshold: mask probability from which a pixel belongs to the particle, for raw results.

    Returns:
        New ``Instances`` whose ``pred_masks``, if any, are :class:`CropMasks`.
    """
    if staged:
        return postprocess(results, *size, threshold)
    # Cloned: tensors of inference mode cannot be changed in place.
    results = results[torch.arange(len(results), device=results.scores.device)]
    if results.has("pred_masks") and not isinstance(results.pred_masks, CropMasks):
        results.pred_masks = CropMasks.from_bitmasks(results.pred_masks.cpu())
    return results


def postprocess(results: Instances, height: int, width: int, threshold: float = 0.5) -> Instances:
    """Do what Detectron2's ``detector_postprocess`` does, without full-frame bitmaps.

    Args:
        results: raw output of the RoI heads for one image: ``pred_boxes`` in px of the network's
            input and, if there are masks, ``pred_masks``: (N, 1, M, M) probabilities in these
            boxes, or ``ROIMasks`` that know where they lie, by a method ``paste`` such as
            :meth:`microplastics.modeling.roi_masks.BoxedMasks.paste`.
        height, width: of the original image in px.
        threshold: mask probability from which a pixel belongs to the particle.

    Returns:
        New ``Instances`` of the original size, whose ``pred_masks`` are :class:`CropMasks`: the
        same boxes, and pixel for pixel the same masks, as Detectron2's.
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
        results.pred_masks = _pasted(results, threshold)
    return results


def _pasted(results: Instances, threshold: float) -> CropMasks:
    masks, size = results.pred_masks, results.image_size
    if hasattr(masks, "paste"):
        return masks.paste(size, threshold)
    probs = masks.tensor if isinstance(masks, ROIMasks) else masks[:, 0]
    return CropMasks.paste(probs, results.pred_boxes.tensor, size, threshold)


def drop_duplicates(instances: Instances, max_overlap: float) -> Instances:
    """Drop detections that a better-scored one covers already; see :func:`distinct`.

    Args:
        instances: of one image, with ``scores``, ``pred_classes`` and ``pred_masks`` as
            :class:`CropMasks`.
        max_overlap: as of :func:`distinct`.
    """
    if max_overlap >= 1 or len(instances) < 2:
        return instances
    classes, scores = instances.pred_classes.cpu().numpy(), instances.scores.cpu().numpy()
    kept = distinct(instances.pred_masks, classes, scores, max_overlap)
    return instances if len(kept) == len(instances) else instances[kept]


def distinct(
    masks: CropMasks,
    classes: np.ndarray,
    scores: np.ndarray,
    max_overlap: float,
    *,
    across_classes: bool = True,
) -> np.ndarray:
    """Number the masks that are not duplicates, deciding best score first.

    A mask is a duplicate of a better-scored one that is kept: of the same class, if both have more
    than ``max_overlap`` of the smaller one in common; of another class, if they have more than
    that fraction of their union in common, since a fibre may well lie on a film. Only better-scored
    masks decide, so that a higher score threshold for all classes changes nothing among the rest;
    one for a single class may bring back what that class covered of another.

    Args:
        masks: N masks of one image.
        classes: (N,) numbers.
        scores: (N,).
        max_overlap: fraction from 0 on; 1 keeps all.
        across_classes: the rule above. False is plain non-maximum suppression: only masks of one
            class are compared, by their IoU.

    Returns:
        ascending numbers, int64.
    """
    areas, views = masks.area().numpy(), masks.views()
    starts = masks.offsets
    ends = starts + np.array([crop.shape[::-1] for crop in masks.crops]).reshape(-1, 2)
    kept: list[int] = []
    for index in np.argsort(-scores, kind="stable").tolist():
        others = np.array(kept, dtype=np.int64)
        common = np.minimum(ends[index], ends[others]) - np.maximum(starts[index], starts[others])
        near = (common > 0).all(axis=1)
        if not across_classes:
            near &= classes[others] == classes[index]
        for other in others[near].tolist():
            # At most the smaller area can be common: most pairs need no look at pixels.
            whole = min(areas[index], areas[other])
            if not across_classes or classes[index] != classes[other]:
                if whole <= max_overlap * max(areas[index], areas[other]):
                    continue
                pixels = common_pixels(views[index], views[other])
                whole = areas[index] + areas[other] - pixels
            else:
                pixels = common_pixels(views[index], views[other])
            if pixels > max_overlap * whole:
                break
        else:
            kept.append(index)
    return np.sort(np.array(kept, dtype=np.int64))
