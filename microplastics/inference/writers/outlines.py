"""Outlines of masks along the edges of their pixels, as polygons with holes."""

from collections.abc import Sequence

import cv2
import numpy as np

from microplastics.data.outlines import outline_corners, outline_rings

Ring = np.ndarray


def pixel_polygons(mask: np.ndarray, offset: Sequence[int] = (0, 0)) -> list[list[Ring]]:
    """Outline a mask so that the polygons hold exactly its pixels.

    Every polygon is valid in the sense of OGC Simple Features: pixels that touch at a corner alone
    are two polygons (4-connected), no ring meets itself, and holes touch other rings in single
    points at most. :func:`microplastics.data.outlines.mask_to_polygons` keeps such pixels in one
    ring and joins holes to it, as COCO needs it.

    Args:
        mask: (h, w) bool, with at least one pixel.
        offset: x and y of its first pixel, added to all points.

    Returns:
        for each polygon its rings, the outer one first: (N, 2) int64 corners x, y in px, the first
        one not repeated, outer rings clockwise on the screen, holes counter-clockwise.
    """
    padded = np.pad(mask, 1)
    ys, xs, partners, doubled = outline_corners(padded, 4)
    rings = outline_rings(partners)
    # All begin along a top edge to the right: with the mask below it, or a hole.
    rings = [r if padded[ys[r[0]] + 1, xs[r[0]] + 1] else r[::-1] for r in rings]
    if doubled:
        places = (ys * padded.shape[1] + xs).tolist()
        rings = [simple for ring in rings for simple in _split(ring, places)]
    points = np.column_stack([xs, ys])
    shift = np.asarray(offset, dtype=np.int64)
    if len(rings) == 1:
        return [[points[rings[0]] + shift]]
    loops = [points[ring] for ring in rings]
    outer = [loop for loop in loops if _signed_area(loop) > 0]
    holes = [loop for loop in loops if _signed_area(loop) < 0]
    polygons = [[loop + shift] for loop in outer]
    if not holes:
        return polygons
    owner = _owners(padded, outer)
    for hole in holes:
        x, y = hole[np.lexsort(hole.T)[0]]
        polygons[owner(y - 1, x)].append(hole + shift)  # the pixel above its topmost edge
    return polygons


def _split(ring: list[int], places: list[int]) -> list[list[int]]:
    """Cut a ring that meets itself in corners into rings that do not."""
    simple, path, position = [], [], {}
    for corner in ring:
        place = places[corner]
        if place in position:
            start = position[place]
            loop = path[start:]
            del path[start:]
            for other in loop:
                del position[places[other]]
            simple.append(loop)
        position[place] = len(path)
        path.append(corner)
    simple.append(path)
    return simple


def _signed_area(loop: Ring) -> int:
    """Twice the area, positive if the loop runs clockwise on the screen."""
    x, y = loop[:, 0], loop[:, 1]
    return int(x[:-1] @ y[1:] - x[1:] @ y[:-1] + x[-1] * y[0] - x[0] * y[-1])


def _owners(padded: np.ndarray, outer: list[Ring]):
    """A function that tells in which of the outer rings a pixel of the mask lies."""
    if len(outer) == 1:
        return lambda y, x: 0
    parts = cv2.connectedComponents(padded.astype(np.uint8), connectivity=4)[1]
    numbers = {}
    for number, loop in enumerate(outer):
        x, y = loop[np.lexsort(loop.T)[0]]
        numbers[int(parts[y + 1, x + 1])] = number
    return lambda y, x: numbers[int(parts[y + 1, x + 1])]
