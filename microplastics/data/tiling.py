"""Whether an image is predicted whole or in windows, and in which."""

import contextlib
import dataclasses
import logging
import math
import os
from collections import Counter, OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.structures import BoxMode

from microplastics.data.augmentation.mixing import box_polygon
from microplastics.data.images import image_size, read_image
from microplastics.data.large_images import ImageReader, open_reader
from microplastics.structures.crop_masks import CropMasks
from microplastics.structures.rle import rle_bbox
from microplastics.utils.errors import UserError

logger = logging.getLogger(__name__)

Window = tuple[int, int, int, int]


def windows_of(width: int, height: int, tile_size: int, overlap: int) -> list[Window]:
    """Windows that cover every pixel of an image, row by row.

    All have the same size; the last of a row or column is shifted inside. Along a side that is
    no longer than ``tile_size`` there is one window, as long as that side.

    Args:
        width, height: of the image, in px.
        tile_size: side of the windows, in px.
        overlap: px that neighbours share at least.

    Returns:
        (x, y, width, height) each, in px.
    """
    columns, rows = (_starts(side, tile_size, overlap) for side in (width, height))
    size = min(tile_size, width), min(tile_size, height)
    return [(x, y, *size) for y in rows for x in columns]


def _starts(side: int, tile_size: int, overlap: int) -> list[int]:
    if side <= tile_size:
        return [0]
    return [*range(0, side - tile_size, tile_size - overlap), side - tile_size]


def tile_dicts(
    dataset_dicts: Sequence[dict[str, Any]],
    tile_size: int,
    overlap: int,
    min_visible: float,
    min_pixels: int = 1,
    empty_share: float = 1.0,
) -> list[dict[str, Any]]:
    """Replace each image larger than a tile by windows of it.

    A window is a data set dict of its own: ``width`` and ``height`` are the window's, its
    annotations are clipped to it and in its pixels, ``window`` is (x, y, width, height) and
    ``full_size`` (width, height) of the image, both in px; ``dropped_annotations`` counts the
    fragments that are too small to count as particles. An annotation that the window cuts has
    its mask as RLE and carries ``whole_area``, the px² that all of it covers.

    Args:
        dataset_dicts: Detectron2's format; they are not changed.
        tile_size: side of the windows, in px.
        overlap: px that neighbouring windows share at least.
        min_visible: least share of a particle that a window must show.
        min_pixels: least pixels of a clipped mask.
        empty_share: share of the windows without annotation, or with crowds alone, that are kept,
            evenly picked. An image that has no annotation at all counts too.

    Raises:
        UserError: the numbers do not agree, or a mask is malformed.
    """
    if not 0 <= overlap < tile_size:
        raise UserError(
            f"INPUT.TILE.OVERLAP is {overlap} and INPUT.TILE.SIZE {tile_size}; the overlap must "
            "be at least 0 and smaller than the tile."
        )
    tiled, counts = [], Counter()
    for record in dataset_dicts:
        if max(record["width"], record["height"]) <= tile_size:
            tiled.append(record)
            counts["whole"] += 1
            continue
        counts["cut"] += 1
        for window in _windows_of_record(record, tile_size, overlap, min_visible, min_pixels):
            counts["dropped"] += window["dropped_annotations"]
            counts["windows"] += 1
            if all(a.get("iscrowd", 0) for a in window["annotations"]):
                counts["empty"] += 1
                # Evenly spaced, so that the choice needs no random numbers.
                if math.floor(counts["empty"] * empty_share) == math.floor(
                    (counts["empty"] - 1) * empty_share
                ):
                    counts["left out"] += 1
                    continue
            tiled.append(window)
    logger.info(
        "Tiles of %d px: %d windows of %d images, %d of the windows without a particle (%d of "
        "these left out), %d images whole; %d fragments of particles dropped, each below %.2g of "
        "its particle or %d px.",
        *(tile_size, counts["windows"], counts["cut"], counts["empty"], counts["left out"]),
        *(counts["whole"], counts["dropped"], min_visible, min_pixels),
    )
    return tiled


def _windows_of_record(
    record: dict[str, Any], tile_size: int, overlap: int, min_visible: float, min_pixels: int
) -> list[dict[str, Any]]:
    size = (record["height"], record["width"])
    annotations = record.get("annotations", [])
    boxes = np.array(
        [_extent(a, record["file_name"]) for a in annotations], dtype=np.float64
    ).reshape(-1, 4)
    masks: dict[int, CropMasks] = {}  # of those that a window cuts
    tiled = []
    for x, y, width, height in windows_of(*size[::-1], tile_size, overlap):
        corner = np.array([x, y])
        end = corner + (width, height)
        meets = (boxes[:, :2] < end).all(axis=1) & (boxes[:, 2:] > corner).all(axis=1)
        inside = (boxes[:, :2] >= corner).all(axis=1) & (boxes[:, 2:] <= end).all(axis=1)
        clipped, dropped = [], 0
        for index in np.flatnonzero(meets).tolist():
            annotation = annotations[index]
            if inside[index] and isinstance(annotation.get("segmentation"), list):
                clipped.append(_shifted(annotation, x, y))
                continue
            if index not in masks:
                masks[index] = _mask(annotation, size, record["file_name"])
            piece = _clipped(annotation, masks[index], (x, y, width, height))
            visible = piece["segmentation_area"] if piece else 0
            if visible < max(1, min_pixels, min_visible * masks[index].area().item()):
                # Boxes may meet where masks do not: nothing is lost there.
                dropped += visible > 0
                continue
            piece.pop("segmentation_area")
            clipped.append(piece)
        tiled.append(
            {
                **record,
                "width": width,
                "height": height,
                "window": (x, y, width, height),
                "full_size": size[::-1],
                "annotations": clipped,
                "dropped_annotations": dropped,
            }
        )
    return tiled


def _extent(annotation: dict[str, Any], file_name: str) -> Sequence[float]:
    """x0, y0, x1, y1 around the mask, with which the box need not agree; else around the box."""
    segmentation = annotation.get("segmentation")
    if not segmentation:
        return BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
    try:
        if isinstance(segmentation, dict):
            x, y, width, height = rle_bbox(segmentation)
            return x, y, x + width, y + height
        points = np.concatenate([np.asarray(p, np.float64).reshape(-1, 2) for p in segmentation])
        return *points.min(axis=0), *points.max(axis=0)
    except (KeyError, TypeError, ValueError) as error:
        raise _mask_error(file_name, error) from error


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


def _mask(annotation: dict[str, Any], size: tuple[int, int], file_name: str) -> CropMasks:
    try:
        return CropMasks.from_coco(
            [annotation.get("segmentation") or box_polygon(annotation)], size
        )
    except ValueError as error:
        raise _mask_error(file_name, error) from error


def _mask_error(file_name: str, error: Exception) -> UserError:
    return UserError(
        f"An annotation of {file_name} has a mask that cannot be used ({error}); run "
        "microplastics check on its JSON."
    )


def _clipped(annotation: dict[str, Any], mask: CropMasks, window: Window) -> dict | None:
    """What a window shows of one mask, in the window's pixels; None if nothing."""
    x, y, width, height = window
    crop, (x0, y0) = mask.crops[0], mask.offsets[0].tolist()
    left, top = max(x, x0), max(y, y0)
    right, bottom = min(x + width, x0 + crop.shape[1]), min(y + height, y0 + crop.shape[0])
    if left >= right or top >= bottom:
        return None
    part = CropMasks(
        [crop[top - y0 : bottom - y0, left - x0 : right - x0]],
        [(left - x, top - y)],
        (height, width),
    )
    return {
        **annotation,
        "bbox": part.get_bounding_boxes().tensor[0].tolist(),
        "bbox_mode": BoxMode.XYXY_ABS,
        "segmentation": part.to_rles()[0],
        "segmentation_area": part.area().item(),
        "whole_area": mask.area().item(),
    }


class WindowReader:
    """Reads windows of large images; the images used last are kept open, or decoded.

    Of a TIFF only the tiles or strips that meet the window are unpacked; other formats know no
    pieces and are decoded whole.
    """

    def __init__(self, images: int = 2, max_pixels: int | None = None):
        """
        Args:
            images: keep so many images.
            max_pixels: refuse larger images.
        """
        self._kept = images
        self._max_pixels = max_pixels
        self._images: OrderedDict[str, np.ndarray] = OrderedDict()
        self._open: OrderedDict[str, tuple[ImageReader, contextlib.ExitStack]] = OrderedDict()

    def read(self, path: str, window: Window, full_size: tuple[int, int]) -> np.ndarray:
        """Read a window.

        Args:
            path: image file.
            window: (x, y, width, height) in px.
            full_size: (width, height) of the image in px that the annotations claim.

        Returns:
            (height, width, 3) uint8 BGR, read only: the pixels that
            :func:`microplastics.data.images.read_image` gives there.

        Raises:
            UserError: the image cannot be read, or is of another size.
        """
        x, y, width, height = window
        regions = self._regions(path, full_size)
        if regions is not None:
            region = regions.read(x, y, x + width, y + height)
            region.setflags(write=False)
            return region
        image = self._images.get(path)
        if image is None:
            image = read_image(path, expected_size=full_size, max_pixels=self._max_pixels)
            image.setflags(write=False)
            self._images[path] = image
            if len(self._images) > self._kept:
                self._images.popitem(last=False)
        self._images.move_to_end(path)
        return image[y : y + height, x : x + width]

    def decoded(self, path: str) -> np.ndarray | None:
        """The whole image, read only, if it is one of those kept."""
        return self._images.get(path)

    def _regions(self, path: str, full_size: tuple[int, int]) -> ImageReader | None:
        """The open TIFF; None for every other file, and for one whose size is another."""
        if os.path.splitext(path)[1].lower() not in (".tif", ".tiff", ".btf"):
            return None
        if path not in self._open:
            # Missing files, other sizes and bombs are told of as everywhere else.
            if image_size(path, self._max_pixels) != tuple(full_size):
                return None
            stack = contextlib.ExitStack()
            regions = stack.enter_context(open_reader(path, max_pixels=self._max_pixels))
            self._open[path] = regions, stack
            if len(self._open) > self._kept:
                self._open.popitem(last=False)[1][1].close()
        self._open.move_to_end(path)
        return self._open[path][0]


MIN_OVERLAP = 32
"""Pixels that windows must share for their pieces to be put together."""

# Shrunk by more than this against the training, small particles are lost.
_MAX_SHRINK = 1.25
# Share of a window's side that neighbours share, where nothing else is asked for.
_OVERLAP_SHARE = 0.25
# Sides of a window that the largest expected particle is long, where nothing is said of it.
_LARGEST_SIDES = 4.0


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How an image is cut.

    Attributes:
        tile: side of the windows in px of the photograph.
        overlap: px that neighbours share at least.
        coarse: factor by which the image is shrunk for a second pass that sees particles larger
            than a window; 0 for none.
        scale: px of the network's input for each px of a window, as in training.
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

    In windows goes an image that the network would see shrunk by more than a quarter against
    its training, and every larger one than ``tile`` where that is given. A window is as large as
    the training's images, so that particles have the size that the network knows; neighbours
    share the length of the largest particle, at most half a window and, where it is not given, a
    quarter of one. What is longer than the shared part is put together from several windows; what
    no window sees the end of is found by the coarse pass.

    Args:
        cfg: of the checkpoint.
        image_size: height and width in px.
        training_side: shorter side of the training images in px; None takes INPUT.TILE.SIZE or
            MIN_SIZE_TEST, that is images which were not resized.
        tile: side of the windows in px; 0 never cuts; None chooses.
        overlap: px; None chooses.
        largest: length in px of the largest particle expected, or None.
        coarse: make the coarse pass where it can find anything.

    Returns:
        The tiling, or None for the whole image.

    Raises:
        UserError: the numbers do not agree.
    """
    if tile is not None and tile != 0 and tile < 64:
        raise UserError(f"--tile {tile} is too small; use 64 px or more, or 0 for whole images.")
    if overlap is not None and overlap < MIN_OVERLAP:
        raise UserError(
            f"--overlap {overlap} is too small to tell which pieces belong together; use "
            f"{MIN_OVERLAP} px or more."
        )
    if largest is not None and not 0 < largest < math.inf:
        raise UserError(f"--largest {largest:g} is no length; give the largest particle's in px.")
    if tile and overlap is not None:
        _check_overlap(overlap, tile)
    side = training_side or cfg.INPUT.TILE.SIZE or cfg.INPUT.MIN_SIZE_TEST
    scale = cfg.INPUT.MIN_SIZE_TEST / side
    if tile == 0 or not _needs_windows(cfg, image_size, scale, tile):
        return None
    tile = tile or max(64, side)
    shared = _OVERLAP_SHARE * tile if largest is None else largest
    if overlap is None:
        overlap = round(min(max(shared, _OVERLAP_SHARE * tile, MIN_OVERLAP), tile / 2))
    _check_overlap(overlap, tile)
    longest = min(largest or _LARGEST_SIDES * tile, max(image_size))
    factor = min(8, -(-longest // tile)) if coarse and longest > tile else 0
    return Tiling(tile, overlap, int(factor), scale)


def _check_overlap(overlap: int, tile: int) -> None:
    if overlap > tile / 2:
        raise UserError(
            f"--overlap {overlap} is more than half of the windows' {tile} px; lower it, or raise "
            "--tile."
        )


def _needs_windows(
    cfg: CfgNode, image_size: tuple[int, int], scale: float, tile: int | None
) -> bool:
    if tile is not None:
        return max(image_size) > tile
    whole = min(
        cfg.INPUT.MIN_SIZE_TEST / min(image_size), cfg.INPUT.MAX_SIZE_TEST / max(image_size)
    )
    return whole * _MAX_SHRINK < scale
