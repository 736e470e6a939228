"""From the model's output to the image: boxes scaled, masks pasted into their own boxes."""

from detectron2.structures import Instances

from microplastics.structures.crop_masks import CropMasks


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
