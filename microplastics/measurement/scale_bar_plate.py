"""The even box that some software puts behind a bar and its text."""

import cv2
import numpy as np

Box = tuple[int, int, int, int]

_TOLERANCE = 14  # grey levels that JPEG moves an even box
_MAX_SHARE = 0.3  # of the picture: what is larger is its ground


def find_plate(plane: np.ndarray, bar: Box, text: Box | None) -> Box | None:
    """Find the even rectangle in which a bar lies.

    Args:
        plane: uint8 (H, W).
        bar: (x, y, w, h) of the bar with its ticks.
        text: the same of its text, or None.

    Returns:
        (x, y, w, h) of the rectangle, or None where the ground is not one.
    """
    x, y, w, h = bar
    height, width = plane.shape
    seeds = [(x + w // 4, y + h + 2), (x + 3 * w // 4, y - 3), (x - 3, y + h // 2)]
    seeds += [(x + w // 4, y - 3), (x + 3 * w // 4, y + h + 2), (x + w + 2, y + h // 2)]
    levels = [int(plane[v, u]) for u, v in seeds if 0 <= u < width and 0 <= v < height]
    if not levels:
        return None
    level = float(np.median(levels))
    even = (np.abs(plane.astype(np.float32) - level) <= _TOLERANCE).astype(np.uint8)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(even, connectivity=4)
    inside = [labels[v, u] for u, v in seeds if 0 <= u < width and 0 <= v < height]
    inside = [label for label in inside if label]
    if not inside:
        return None
    label = max(set(inside), key=inside.count)
    left, top, wide, high, area = (int(v) for v in stats[label])
    if wide * high > _MAX_SHARE * plane.size or not _holds((left, top, wide, high), bar):
        return None
    # Bar and letters are holes in it; the rest of the rectangle must be full, sides included.
    holes = sum(box[2] * box[3] for box in (bar, text) if box is not None)
    region = labels[top : top + high, left : left + wide] == label
    sides = [region[0].mean(), region[-1].mean(), region[:, 0].mean(), region[:, -1].mean()]
    if area < 0.93 * wide * high - holes or min(sides) < 0.8:
        return None
    return left, top, wide, high


def _holds(outer: Box, inner: Box) -> bool:
    right, bottom = inner[0] + inner[2], inner[1] + inner[3]
    across = outer[0] <= inner[0] and right <= outer[0] + outer[2]
    return across and outer[1] <= inner[1] and bottom <= outer[1] + outer[3]
