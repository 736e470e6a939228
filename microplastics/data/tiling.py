"""Windows of large images, for training and prediction."""

import dataclasses
import logging
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.structures import BoxMode

from microplastics.data.augmentation.mixing import box_polygon
from microplastics.data.segmentation import usable_masks
from microplastics.structures.crop_masks import CropMasks
from microplastics.structures.rle import rle_bbox
from microplastics.utils.errors import check_option

logger = logging.getLogger(__name__)

Window = tuple[int, int, int, int]

MIN_OVERLAP = 32
"""Pixels that windows must share for their pieces to be joined."""
_MIN_TILE = 64
# Images downscaled by more than this relative to training lose small particles.
_MAX_SHRINK = 1.25
# Fraction of a window's side shared with a neighbour, by default.
_OVERLAP_FRACTION = 0.25
# Largest expected particle in sides of a window, by default.
_LARGEST_SIDES = 4.0
_MAX_COARSE = 8


def windows_of(width: int, height: int, tile_size: int, overlap: int) -> list[Window]:
    """Return windows of equal size that cover every pixel of an image, row by row.

    The last of a row or column is shifted inside. Along a side that is not longer than
    ``tile_size`` there is one window of that length: a small image is one window.

    Args:
        width, height: of the image, in px.
        tile_size: side of the windows, in px.
        overlap: least px shared by neighbours.

    Returns:
        (x, y, width, height) each, in px.
    """
    columns, rows = (
        [*range(0, side - tile_size, tile_size - overlap), max(side - tile_size, 0)]
        for side in (width, height)
    )
    size = min(tile_size, width), min(tile_size, height)
    return [(x, y, *size) for y in rows for x in columns]


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How an image is cut for prediction.

    Attributes:
        tile: side of the windows in px of the image.
        overlap: least px shared by neighbours.
        coarse: factor by which the image is downscaled for a second pass that finds particles
            larger than a window; 0 for none.
        scale: px of the network's input per px of a window, as in training.
    """

    tile: int
    overlap: int
    coarse: int
    scale: float


def choose_tiling(
    cfg: CfgNode,
    image_size: tuple[int, int],
    training_side: int | None = None,
    *,
    tile: int | None = None,
    overlap: int | None = None,
    largest: float | None = None,
    coarse: bool = True,
) -> Tiling | None:
    """Choose between the whole image and windows.

    Images that would be downscaled by more than 25 % relative to training are tiled, as are those
    larger than ``tile`` if it is given. A window is as large as the training images, so particles
    have the size that the network knows. Neighbours share the length of the largest particle, at
    most half a window, by default a quarter of one. Longer particles are joined from several
    windows; those longer than a window are found by the coarse pass.

    Args:
        cfg: of the checkpoint.
        image_size: height and width in px.
        training_side: shorter side of the training images in px; None takes INPUT.TILE.SIZE or
            MIN_SIZE_TEST, which means images that were not resized.
        tile: side of the windows in px; 0 never cuts; None chooses.
        overlap: px; None chooses.
        largest: length in px of the largest expected particle, or None.
        coarse: allow the coarse pass.

    Returns:
        The tiling, or None for the whole image.

    Raises:
        UserError: ``option_invalid``.
    """
    fits = tile in (None, 0) or tile >= _MIN_TILE
    check_option(fits, "--tile", tile, f"{_MIN_TILE} px or more, or 0 for whole images")
    fits = largest is None or 0 < largest < math.inf
    check_option(fits, "--largest", largest, "the length of the largest particle in px")
    side = training_side or cfg.INPUT.TILE.SIZE or cfg.INPUT.MIN_SIZE_TEST
    chosen = tile or max(_MIN_TILE, side)
    scale = cfg.INPUT.MIN_SIZE_TEST / side
    if tile is None:
        shortest, longest = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
        whole = min(shortest / min(image_size), longest / max(image_size))
        is_whole = whole * _MAX_SHRINK >= scale
    else:
        is_whole = not tile or max(image_size) <= tile
    most = math.inf if is_whole and not tile else chosen / 2
    check_option(
        overlap is None or MIN_OVERLAP <= overlap <= most,
        "--overlap",
        overlap,
        f"{MIN_OVERLAP} px, from which pieces of one particle can be joined, to half of the "
        f"windows' {chosen} px",
    )
    if is_whole:
        return None
    if overlap is None:
        shared = max(largest or 0, _OVERLAP_FRACTION * chosen, MIN_OVERLAP)
        overlap = round(min(shared, chosen / 2))
    longest = min(largest or _LARGEST_SIDES * chosen, max(image_size))
    factor = min(_MAX_COARSE, -(-longest // chosen)) if coarse and longest > chosen else 0
    return Tiling(chosen, overlap, int(factor), scale)


def tile_dicts(
    dataset_dicts: Sequence[dict[str, Any]],
    tile_size: int,
    overlap: int,
    min_visible: float,
    min_pixels: int = 1,
    empty_fraction: float = 1.0,
) -> list[dict[str, Any]]:
    """Replace each image larger than a tile by its windows.

    A window is a data set dict: ``width`` and ``height`` are the window's, its annotations are
    clipped to it and in its pixels, ``window`` is (x, y, width, height) and ``full_size`` (width,
    height) of the image, both in px; ``dropped_annotations`` counts the fragments that are too
    small to count as particles. A clipped annotation has its mask as RLE, and as ``whole_area``
    the px² of its whole mask.

    Args:
        dataset_dicts: Detectron2's format; they are not changed.
        tile_size: side of the windows, in px.
        overlap: least px shared by neighbours, below ``tile_size``.
        min_visible: least fraction of a particle that a window must show.
        min_pixels: least pixels of a clipped mask.
        empty_fraction: fraction of the windows without annotation, or only with crowds, that are
            kept, evenly spaced. An image without any annotation counts too.
    """
    tiled, counts = [], Counter()
    for record in dataset_dicts:
        windows = windows_of(record["width"], record["height"], tile_size, overlap)
        if len(windows) == 1:
            tiled.append(record)
            counts["whole"] += 1
            continue
        counts["cut"] += 1
        for window in _windows_of_record(record, windows, min_visible, min_pixels):
            counts["dropped"] += window["dropped_annotations"]
            counts["windows"] += 1
            if all(a.get("iscrowd", 0) for a in window["annotations"]):
                before = math.floor(counts["empty"] * empty_fraction)
                counts["empty"] += 1
                # Evenly spaced, so the choice needs no random numbers.
                if math.floor(counts["empty"] * empty_fraction) == before:
                    counts["left out"] += 1
                    continue
            tiled.append(window)
    logger.info(
        "Tiles of %d px: %d windows of %d images, %d of the windows without a particle (%d of "
        "these left out), %d images whole; %d fragments of particles dropped.",
        *(tile_size, counts["windows"], counts["cut"], counts["empty"], counts["left out"]),
        *(counts["whole"], counts["dropped"]),
    )
    return tiled


def _windows_of_record(
    record: dict[str, Any], windows: list[Window], min_visible: float, min_pixels: int
) -> list[dict[str, Any]]:
    size = (record["height"], record["width"])
    annotations = record.get("annotations", [])
    masks: dict[int, CropMasks] = {}  # of annotations that a window clips
    tiled = []
    boxes = np.array([_extent(a) for a in annotations], dtype=np.float64).reshape(-1, 4)
    for window in windows:
        corner = np.array(window[:2])
        end = corner + window[2:]
        meets = (boxes[:, :2] < end).all(axis=1) & (boxes[:, 2:] > corner).all(axis=1)
        inside = (boxes[:, :2] >= corner).all(axis=1) & (boxes[:, 2:] <= end).all(axis=1)
        clipped, dropped = [], 0
        for index in np.flatnonzero(meets).tolist():
            annotation = annotations[index]
            if inside[index] and isinstance(annotation.get("segmentation"), list):
                clipped.append(_shifted(annotation, *window[:2]))
                continue
            if index not in masks:
                outline = annotation.get("segmentation") or box_polygon(annotation)
                with usable_masks(record["file_name"]):
                    masks[index] = CropMasks.from_coco([outline], size)
            part, whole = masks[index].clip(*window), masks[index].area().item()
            visible = part.area().item()
            if visible < max(1, min_pixels, min_visible * whole):
                # Boxes may meet if masks do not: nothing is lost then.
                dropped += visible > 0
                continue
            clipped.append(
                {
                    **annotation,
                    "bbox": part.get_bounding_boxes().tensor[0].tolist(),
                    "bbox_mode": BoxMode.XYXY_ABS,
                    "segmentation": part.to_rles()[0],
                    "whole_area": whole,
                }
            )
        tiled.append(
            {
                **record,
                "width": window[2],
                "height": window[3],
                "window": window,
                "full_size": size[::-1],
                "annotations": clipped,
                "dropped_annotations": dropped,
            }
        )
    return tiled


def _extent(annotation: dict[str, Any]) -> Sequence[float]:
    """Return x0, y0, x1, y1 around the mask, or without one of the box."""
    segmentation = annotation.get("segmentation")
    if not segmentation:
        return BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
    if isinstance(segmentation, dict):
        x, y, width, height = rle_bbox(segmentation)
        return x, y, x + width, y + height
    points = np.concatenate([np.asarray(p, np.float64).reshape(-1, 2) for p in segmentation])
    return *points.min(axis=0), *points.max(axis=0)


def _shifted(annotation: dict[str, Any], x: int, y: int) -> dict[str, Any]:
    x0, y0, x1, y1 = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
    polygons = []
    for polygon in annotation["segmentation"]:
        points = np.asarray(polygon, dtype=np.float64).reshape(-1, 2) - (x, y)
        polygons.append(points.ravel().tolist())
    return {
        **annotation,
        "bbox": [x0 - x, y0 - y, x1 - x, y1 - y],
        "bbox_mode": BoxMode.XYXY_ABS,
        "segmentation": polygons,
    }
