"""An exported model beside the predictor that it came from, on rendered pictures."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.structures import Boxes, Instances

from microplastics.data.synthetic import render_image
from microplastics.errors import UserError
from microplastics.inference.predictions import Predictions
from microplastics.inference.predictor import Predictor
from microplastics.modeling.postprocess import postprocess

Runner = Callable[[torch.Tensor], Sequence[torch.Tensor]]
"""Takes a (3, H, W) uint8 tensor and gives the outputs of ``ExportNetwork``."""

# Ten times what untrained networks, whose sums are large, show of rounding.
BOX_TOLERANCE, SCORE_TOLERANCE, PIXEL_TOLERANCE = 2e-2, 1e-3, 1e-2
# Detections that rounding puts on the other side of a threshold or of NMS.
_STRAYS = 0.02
_RENDERED_SIDES = (64, 1024)


def check_exported(
    run: Runner, predictor: Predictor, sizes: Sequence[tuple[int, int]]
) -> dict[str, Any]:
    """Run an exported model and its predictor on pictures of particles.

    Args:
        run: the exported model.
        predictor: it.
        sizes: height and width in px of the pictures, which are not resized.

    Returns:
        The number of pictures and of detections, of detections that only one of the two has,
        and the largest differences of the others.

    Raises:
        UserError: they do not find the same.
    """
    report = {"pictures": len(sizes), "detections": 0, "unmatched": 0}
    report |= {"boxes_px": 0.0, "scores": 0.0, "mask_pixels_share": 0.0}
    for number, size in enumerate(sizes):
        picture = render_picture(number, size)
        (expected,) = predictor.predict_many([picture], scale=1.0)
        image = network_input(picture, predictor.cfg.INPUT.FORMAT)
        found = to_predictions(run(image), size, predictor.mask_threshold)
        _compare(found, expected, report)
    allowed = 1 + _STRAYS * report["detections"]
    if (
        report["unmatched"] > allowed
        or report["scores"] > SCORE_TOLERANCE
        or report["mask_pixels_share"] > PIXEL_TOLERANCE
    ):
        figures = ", ".join(f"{name} {value:g}" for name, value in report.items())
        raise UserError(
            f"The exported model does not find what the model finds ({figures}), so nothing was "
            "written; try the other --format."
        )
    return report


def to_predictions(
    outputs: Sequence[torch.Tensor], image_size: tuple[int, int], mask_threshold: float = 0.5
) -> Predictions:
    """Bring the outputs of an exported model onto the image, as :class:`Predictor` does.

    Args:
        outputs: of ``ExportNetwork``, with masks or without.
        image_size: height and width in px of the image before it was resized.
        mask_threshold: mask probability from which a pixel belongs to the particle.
    """
    boxes, scores, classes, *masks, size = outputs
    raw = Instances(tuple(size.tolist()))
    raw.pred_boxes, raw.scores, raw.pred_classes = Boxes(boxes), scores, classes
    if masks:
        raw.pred_masks = masks[0]
    result = postprocess(raw, *image_size, mask_threshold)
    return Predictions(image_size, **result.get_fields())


def render_picture(number: int, size: tuple[int, int]) -> np.ndarray:
    """Particles on a filter, uint8 BGR (H, W, 3); each number is another one."""
    side = min(max(*size, _RENDERED_SIDES[0]), _RENDERED_SIDES[1])
    picture = render_image(("export", number), side, um_per_px=2.0)[0]
    repeats = (-(-size[0] // side), -(-size[1] // side), 1)
    return np.ascontiguousarray(np.tile(picture, repeats)[: size[0], : size[1]])


def network_input(image: np.ndarray, channels: str) -> torch.Tensor:
    """Make a BGR image (H, W, 3) of the network's size its input, (3, H, W).

    Args:
        image: uint8.
        channels: ``"BGR"`` or ``"RGB"``, as INPUT.FORMAT.
    """
    ordered = image[:, :, ::-1] if channels == "RGB" else image
    return torch.from_numpy(np.ascontiguousarray(ordered.transpose(2, 0, 1)))


def _compare(found: Predictions, expected: Predictions, report: dict[str, Any]) -> None:
    """Pair detections of one class by their boxes, and add what differs to the report."""
    report["detections"] += len(expected)
    boxes, others = found.pred_boxes.tensor, expected.pred_boxes.tensor
    apart = (boxes[:, None] - others[None]).abs().amax(dim=2)
    apart[found.pred_classes[:, None] != expected.pred_classes[None]] = torch.inf
    pairs: dict[int, int] = {}
    for row, column in (apart <= BOX_TOLERANCE).nonzero().tolist():
        if row not in pairs and column not in pairs.values():
            pairs[row] = column
    report["unmatched"] += len(found) + len(expected) - 2 * len(pairs)
    if not pairs:
        return
    rows, columns = list(pairs), list(pairs.values())
    scores = (found.scores[rows] - expected.scores[columns]).abs().max()
    report["boxes_px"] = max(report["boxes_px"], float(apart[rows, columns].max()))
    report["scores"] = max(report["scores"], float(scores))
    if expected.has("pred_masks"):
        pixels = differing = 0
        for row, column in pairs.items():
            (mine,), (theirs,) = found.pred_masks[row], expected.pred_masks[column]
            differing += int(np.count_nonzero(mine != theirs))
            pixels += int(np.count_nonzero(theirs))
        share = differing / max(pixels, 1)
        report["mask_pixels_share"] = max(report["mask_pixels_share"], share)
