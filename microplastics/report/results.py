"""Reading the predictions that an evaluation wrote, as ``coco_instances_results.json``."""

import json
import math
import os
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.structures import Boxes, Instances

from microplastics.errors import UserError
from microplastics.structures.crop_masks import CropMasks

_RIGHT_FILE = "give the coco_instances_results.json that an evaluation wrote"


def read_results(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Read COCO results and check every field that is used.

    Args:
        path: JSON list of ``image_id``, ``category_id``, ``score`` and ``bbox`` (x0, y0, width,
            height in px) or ``segmentation``, or both.

    Returns:
        The list.

    Raises:
        UserError: the file is missing or is not such a list.
    """
    path = os.fspath(path)
    try:
        with open(path, "rb") as file:
            results = json.loads(file.read())
    except (OSError, RecursionError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        words = "Cannot read" if isinstance(error, OSError) else "No JSON in"
        raise UserError(f"{words} {path}: {reason}; {_RIGHT_FILE}.") from error
    if not isinstance(results, list):
        raise UserError(f"{path} holds no list of predictions; {_RIGHT_FILE}.")
    for index, result in enumerate(results):
        wrong = _wrong_field(result)
        if wrong:
            raise UserError(f"Prediction number {index + 1} of {path} {wrong}; {_RIGHT_FILE}.")
    return results


def results_by_image(
    results: Sequence[dict[str, Any]], dataset_dicts: Sequence[dict[str, Any]], names: str
) -> dict[Any, list[dict[str, Any]]]:
    """Sort results by their image.

    Args:
        results: of :func:`read_results`.
        dataset_dicts: the data set's images.
        names: file and data set in words, for the error.

    Returns:
        ``image_id`` to its results; images without any are there too.

    Raises:
        UserError: a result is for an image that the data set does not have.
    """
    by_image: dict[Any, list] = {dic["image_id"]: [] for dic in dataset_dicts}
    unknown = defaultdict(int)
    for result in results:
        if result["image_id"] in by_image:
            by_image[result["image_id"]].append(result)
        else:
            unknown[result["image_id"]] += 1
    if unknown:
        raise UserError(
            f"{names} do not belong together: {sum(unknown.values())} predictions are for images "
            f"that the data set has not (image id {next(iter(unknown))!r}, …); name the data set "
            "that was evaluated with --dataset."
        )
    return by_image


def results_to_instances(
    results: Sequence[dict[str, Any]],
    image_size: tuple[int, int],
    contiguous_ids: dict[int, int],
    names: str,
) -> Instances:
    """Turn the results of one image into Detectron2 ``Instances``.

    Args:
        results: of :func:`read_results`, all of one image.
        image_size: height and width in px.
        contiguous_ids: class number of each COCO category id.
        names: file, data set and image in words, for the errors.

    Returns:
        ``scores``, ``pred_classes``, ``pred_boxes`` (cut at the image's border), and
        ``pred_masks`` (``CropMasks``) where the results have masks.

    Raises:
        UserError: a category, a box or a mask does not fit the data set.
    """

    def misfit(words: str) -> UserError:
        return UserError(
            f"{names} do not belong together: {words}; name the data set that was evaluated with "
            "--dataset."
        )

    unknown = {r["category_id"] for r in results} - set(contiguous_ids)
    if unknown:
        raise misfit(
            f"the category {min(unknown)} is predicted, and the data set has "
            f"{', '.join(map(str, contiguous_ids))}"
        )
    instances = Instances(image_size)
    instances.scores = torch.tensor([float(r["score"]) for r in results])
    classes = [contiguous_ids[r["category_id"]] for r in results]
    instances.pred_classes = torch.tensor(classes, dtype=torch.int64)
    with_mask = [r for r in results if "segmentation" in r]
    masks = None
    if with_mask:
        try:
            masks = CropMasks.from_coco([r["segmentation"] for r in with_mask], image_size)
        except ValueError as error:
            raise misfit(f"a predicted mask does not fit ({error})") from error
        if len(with_mask) < len(results):
            raise misfit("some predictions have masks, others not")
        instances.pred_masks = masks
    boxes = _corners(results, masks)
    frame = np.array(image_size[::-1] * 2, dtype=np.float64)
    if ((boxes[:, :2] > frame[:2]) | (boxes[:, 2:] < 0)).any():
        raise misfit(
            f"a predicted box lies outside the image of {frame[0]:.0f} x {frame[1]:.0f} px"
        )
    instances.pred_boxes = Boxes(torch.from_numpy(boxes.clip(0, frame)))
    return instances


def _corners(results: Sequence[dict[str, Any]], masks: CropMasks | None) -> np.ndarray:
    """(N, 4) x0, y0, x1, y1 in px of each result's box, or of its mask where it has no box."""
    boxes = np.zeros((len(results), 4))
    for index, result in enumerate(results):
        if "bbox" in result:
            x, y, width, height = result["bbox"]
            boxes[index] = x, y, x + width, y + height
        else:
            boxes[index] = masks[index].get_bounding_boxes().tensor[0].numpy()
    return boxes


def _wrong_field(result: Any) -> str:
    """What is wrong with one prediction, or nothing."""
    if not isinstance(result, dict):
        return "is not a JSON object"
    if not isinstance(result.get("image_id"), (int, str)):
        return "lacks an image_id"
    if type(result.get("category_id")) is not int:
        return "lacks a category_id"
    if not _is_number(result.get("score")):
        return "has no number as score"
    if "bbox" in result:
        box = result["bbox"]
        if not (isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))):
            return "has no four numbers as bbox"
        if min(box[2:]) < 0:
            return "has a bbox of negative size"
    elif "segmentation" not in result:
        return "has neither bbox nor segmentation"
    return ""


def _is_number(value: Any) -> bool:
    # An int of a thousand digits is a number, too, but not one that a float holds.
    try:
        return type(value) in (int, float) and math.isfinite(value)
    except OverflowError:
        return False
