"""From a vector outline to the COCO annotation that says exactly the same."""

from typing import Any

import numpy as np
from pycocotools import mask as mask_util
from shapely.geometry import MultiPolygon, Polygon, box

from microplastics.data.synthetic.particles import Particle, opened
from microplastics.structures.rle import counts_of_runs, encode_counts, runs_of_crop


def annotate(particle: Particle, size: int, um_per_px: float) -> dict[str, Any] | None:
    """Annotate a particle: its whole body inside the frame, also where another lies on it.

    One simple outline becomes a polygon; an outline with holes or in several pieces becomes RLE,
    rasterised ring by ring by pycocotools. ``area`` and ``bbox`` are those of the mask.

    Args:
        particle: the particle, in px of the image.
        size: side of the image in px.
        um_per_px: micrometres per pixel.

    Returns:
        A COCO annotation without ids, with ``truth`` (see :meth:`Particle.truth`) and
        ``touches_edge``: the frame cuts the particle or its mask meets the border, so that
        ``truth`` goes beyond what is seen. None where no pixel of it is inside the frame.
    """
    left, top, right, bottom = particle.outline.bounds
    cut = min(left, top) < 0 or max(right, bottom) > size
    shape = particle.outline
    if cut:
        # A tube cut at a flat angle leaves a wedge, whose tip no pixel of the mask would show.
        shape = opened(shape.intersection(box(0, 0, size, size)))
    pieces = _pieces(shape)
    if not pieces:
        return None
    if len(pieces) == 1 and not pieces[0].interiors:
        segmentation: Any = [_ring(pieces[0].exterior)]
        rle = mask_util.frPyObjects(segmentation, size, size)[0]
    else:
        rle = _rings_to_rle(pieces, size)
        segmentation = {"size": [size, size], "counts": rle["counts"].decode("ascii")}
    area = int(mask_util.area(rle))
    if area == 0:
        return None
    x, y, width, height = (float(v) for v in mask_util.toBbox(rle))
    meets = min(x, y) <= 0 or x + width >= size or y + height >= size
    return {
        "category_id": particle.category_id,
        "segmentation": segmentation,
        "area": area,
        "bbox": [x, y, width, height],
        "iscrowd": 0,
        "touches_edge": bool(cut or meets),
        "truth": {k: float(f"{v:.8g}") for k, v in particle.truth(um_per_px).items()},
    }


def _pieces(shape) -> list[Polygon]:
    """The polygons of a shape, without the points and lines that clipping can leave."""
    parts = getattr(shape, "geoms", [shape])
    return [
        p
        for part in parts
        for p in (part.geoms if isinstance(part, MultiPolygon) else [part])
        if isinstance(p, Polygon) and p.area > 0.5
    ]


def _ring(ring) -> list[float]:
    # A hundredth of a pixel is finer than the fifth to which pycocotools rounds.
    points = np.round(np.asarray(ring.coords)[:-1], 2)
    return points[(points != np.roll(points, 1, axis=0)).any(axis=1)].ravel().tolist()


def _rings_to_rle(pieces: list[Polygon], size: int) -> dict[str, Any]:
    """Rasterise polygons with holes inside the box that holds them, as full-frame RLE."""
    bounds = np.array([piece.bounds for piece in pieces])
    x, y = (int(v) for v in bounds[:, :2].min(0))
    right, bottom = (min(int(v) + 2, size) for v in bounds[:, 2:].max(0))
    mask = np.zeros((bottom - y, right - x), np.uint8)
    for piece in pieces:
        left, top, right, bottom = (int(v) for v in piece.bounds)
        width, height = min(right + 2, size) - left, min(bottom + 2, size) - top
        window = np.zeros((height, width), np.uint8)
        for ring, value in [(piece.exterior, 1)] + [(hole, 0) for hole in piece.interiors]:
            points = np.reshape(_ring(ring), (-1, 2)) - (left, top)
            rle = mask_util.frPyObjects([points.ravel().tolist()], height, width)[0]
            window[mask_util.decode(rle) > 0] = value
        mask[top - y : top - y + height, left - x : left - x + width] |= window
    runs = counts_of_runs(*runs_of_crop(mask, (x, y), size), size * size)
    return {"size": [size, size], "counts": encode_counts(runs)}
