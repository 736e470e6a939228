"""Prediction of large images in overlapping windows."""

import dataclasses
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

import cv2
import numpy as np
from tqdm import tqdm

from microplastics.data.large_images import ImageReader
from microplastics.data.tiling import Tiling, Window, windows_of
from microplastics.inference.predictor import Predictions, Predictor
from microplastics.inference.stitching.merging import enlarge
from microplastics.inference.stitching.stitcher import Stitched, Stitcher
from microplastics.modeling.postprocessing import drop_duplicates
from microplastics.roi.region import Region
from microplastics.structures.particles import Particles
from microplastics.structures.view import View, box_of, clip

# Side in px of the pieces in which the colours of particles are read.
_PIECE = 1024
# Fraction of a window's side below which the coarse pass adds nothing new.
_MIN_COARSE_FRACTION = 0.5


@dataclasses.dataclass
class TiledCounts:
    """Statistics of the windows of one image.

    Attributes:
        windows: predicted.
        constant: not predicted, because all their pixels are equal: the padding of a mosaic.
        outside: not predicted, because they lie farther from the region than a window's side.
        coarse: windows of the coarse pass.
        duplicates: detections dropped because another one of their window covers them.
        fragments: the other detections in all windows, before stitching.
        notes: number of detections that stitching dropped or changed, by the reason.
    """

    windows: int = 0
    constant: int = 0
    outside: int = 0
    coarse: int = 0
    duplicates: int = 0
    fragments: int = 0
    notes: dict[str, int] = dataclasses.field(default_factory=dict)


def predict_tiled(
    predictor: Predictor,
    reader: ImageReader,
    name: str,
    tiling: Tiling,
    *,
    max_overlap: float = 1.0,
    join: bool = True,
    region: Region | None = None,
    quiet: bool | None = None,
) -> tuple[Particles, TiledCounts]:
    """Predict an image window by window and stitch the particles; memory stays constant.

    Args:
        predictor: its score and mask thresholds apply to each window.
        reader: of the image.
        name: of the image, in the outputs.
        tiling: sizes of the windows.
        max_overlap: as of :func:`microplastics.modeling.postprocessing.drop_duplicates`.
        join: join fibres that the model has broken.
        region: of interest. Windows farther from it than their side are not predicted; detections
            of the others outside it are in the result.
        quiet: show no progress; None shows it on a terminal.

    Returns:
        The particles, from top to bottom and numbered from 1, with their pixels' colours; and the
        statistics of the windows.
    """

    def collect(shrink: int, description: str, join: bool) -> tuple[Stitcher, TiledCounts]:
        """Predict the windows of the image shrunk by a factor; offsets in px of that."""
        width, height = -(-reader.width // shrink), -(-reader.height // shrink)
        stitcher, counts = Stitcher((height, width), join_broken=join), TiledCounts()
        frame = np.array([reader.width, reader.height] * 2)
        windows: dict[Window, Window] = {}
        for x, y, w, h in windows_of(width, height, tiling.tile, tiling.overlap):
            x0, y0, x1, y1 = np.minimum(np.array([x, y, x + w, y + h]) * shrink, frame).tolist()
            wide, high = x1 - x0, y1 - y0
            # A particle of the region may reach so far out of it.
            if region is None or region.meets(x0 - wide, y0 - high, x1 + wide, y1 + high):
                windows[x0, y0, wide, high] = (x, y, w, h)
            else:
                counts.outside += 1
        with tqdm(windows, desc=description, unit="window", leave=False, disable=quiet) as progress:
            for window, detected in _predicted(predictor, reader, progress, tiling.scale, shrink):
                if detected is None:
                    counts.constant += 1
                    continue
                found = drop_duplicates(detected, max_overlap)
                counts.windows += 1
                counts.duplicates += len(detected) - len(found)
                counts.fragments += len(found)
                masks, place = found.pred_masks, windows[window]
                classes, scores = found.pred_classes.numpy(), found.scores.numpy()
                stitcher.add(place, masks.crops, masks.offsets + place[:2], classes, scores)
        return stitcher, counts

    stitcher, counts = collect(1, name, join)
    size = (reader.height, reader.width)
    if tiling.coarse:
        small, counts_of_coarse = collect(tiling.coarse, "coarse pass", False)
        counts.coarse = counts_of_coarse.windows
        least = _MIN_COARSE_FRACTION * tiling.tile / tiling.coarse
        _add_coarse(stitcher, small.finish(), tiling.coarse, least)
    stitched = stitcher.finish()
    counts.notes = stitched.notes
    particles = Particles(
        image=name,
        image_size=size,
        masks=stitched.masks,
        offsets=stitched.offsets,
        classes=[predictor.class_names[number] for number in stitched.classes],
        scores=stitched.scores,
        ids=np.arange(1, len(stitched) + 1, dtype=np.int64),
        pixels=particle_pixels(reader, stitched.masks, stitched.offsets),
    )
    return particles, counts


def _add_coarse(stitcher: Stitcher, seen: Stitched, factor: int, least: float) -> None:
    """Add what the shrunk image shows, if it is at least so many px of it long."""
    large = [number for number, mask in enumerate(seen.masks) if max(mask.shape) >= least]
    grown = [
        enlarge(seen.masks[n], seen.offsets[n].tolist(), factor, stitcher.image_size) for n in large
    ]
    stitcher.add_coarse(
        [mask for mask, _ in grown],
        [offset for _, offset in grown],
        seen.classes[large],
        seen.scores[large],
        scale=factor,
    )


def _predicted(
    predictor: Predictor, reader: ImageReader, windows: Iterable[Window], scale: float, shrink: int
) -> Iterator[tuple[Window, Predictions | None]]:
    """Yield the predictions of each window; None if all its pixels are equal.

    The windows are read in the predictor's own thread, ahead of the model.
    """
    order: deque[tuple[Window, bool]] = deque()

    def images() -> Iterator[np.ndarray]:
        for window in windows:
            x, y, width, height = window
            image = reader.read(x, y, x + width, y + height)
            if shrink > 1:
                size = (-(-width // shrink), -(-height // shrink))
                image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
            first = image[0, 0]
            constant = bool((image[::16, ::16] == first).all() and (image == first).all())
            order.append((window, constant))
            if not constant:
                yield image

    for found in predictor.predict_many(images(), dense=True, scale=scale):
        while order[0][1]:
            yield order.popleft()[0], None
        yield order.popleft()[0], found
    while order:
        yield order.popleft()[0], None


def particle_pixels(
    reader: ImageReader, masks: Sequence[np.ndarray], offsets: np.ndarray
) -> list[np.ndarray]:
    """Read the pixels of particles, piece by piece of the image.

    Args:
        reader: of the image.
        masks: N bool arrays of shape (h, w), crops.
        offsets: (N, 2) x and y of their first pixels in the image.

    Returns:
        N uint8 BGR arrays of shape (pixels of the mask, 3), in any order.
    """
    pieces: dict[tuple[int, int], list[int]] = {}
    for number, (mask, (x, y)) in enumerate(zip(masks, offsets.tolist(), strict=True)):
        height, width = mask.shape
        for row in range(y // _PIECE, (y + height - 1) // _PIECE + 1):
            for column in range(x // _PIECE, (x + width - 1) // _PIECE + 1):
                pieces.setdefault((row, column), []).append(number)
    found: list[list[np.ndarray]] = [[] for _ in masks]
    for (row, column), members in sorted(pieces.items()):
        left, top = column * _PIECE, row * _PIECE
        right, bottom = min(left + _PIECE, reader.width), min(top + _PIECE, reader.height)
        image = reader.read(left, top, right, bottom)
        for number in members:
            whole = View(masks[number], *offsets[number].tolist())
            part = clip(whole, (left, top, right, bottom))
            x0, y0, x1, y1 = box_of(part)
            found[number].append(image[y0 - top : y1 - top, x0 - left : x1 - left][part.mask])
    return [np.concatenate(parts) for parts in found]
