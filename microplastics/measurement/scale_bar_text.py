"""The line of text that belongs to a bar."""

import cv2
import numpy as np

Box = tuple[int, int, int, int]

_MIN_HEIGHT = 5  # px, of digits that can be read
_SPACE = 1.3  # heights, between two words of a line at most


def find_text(plane: np.ndarray, bar: Box, ink: float, contrast: float) -> Box | None:
    """Find the line of letters above, below or beside a bar.

    Letters are upright specks of the bar's own ink, of like height and on one line. Nothing is
    read: the length comes from the user.

    Args:
        plane: uint8 (H, W), ink is dark.
        bar: (x, y, w, h) of the bar with its ticks.
        ink: grey level of the bar.
        contrast: grey levels between the bar and its ground.

    Returns:
        (x, y, w, h) around the letters, or None where there is no such line.
    """
    x, y, w, h = bar
    height, width = plane.shape
    tall = int(min(max(0.14 * height, 24), max(0.6 * w, 24), 200))
    x0, x1 = max(0, x - 8 * tall), min(width, x + w + 8 * tall)
    y0, y1 = max(0, y - 3 * tall), min(height, y + h + 3 * tall)
    window = plane[y0:y1, x0:x1]
    mask = (window < ink + 0.5 * contrast).astype(np.uint8)
    mask[max(y - y0 - 1, 0) : y + h - y0 + 1, max(x - x0 - 1, 0) : x + w - x0 + 1] = 0
    letters = _letters(mask, window < ink + 0.3 * contrast, tall)
    found = []
    for line in _lines(letters):
        line = line + np.array([x0, y0, 0, 0])
        distance = _distance(line, bar)
        if distance is not None:
            # Two particles side by side look like two letters, seldom like three.
            few = _large(line).shape[0] < 3
            found.append((few, distance, len(found), line))
    if not found:
        return None
    best = min(found)[3]
    left, top = best[:, :2].min(0)
    right, bottom = (best[:, :2] + best[:, 2:]).max(0)
    return int(left), int(top), int(right - left), int(bottom - top)


def _letters(mask: np.ndarray, pure: np.ndarray, tall: int) -> np.ndarray:
    """Boxes (n, 4) of the specks of a mask that are shaped like letters, dots included.

    Args:
        mask: uint8 (H, W), what is dark.
        pure: bool (H, W), what is of the bar's own ink.
        tall: px, height of a letter at most.
    """
    number, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    x, y, w, h, area = stats[1:].T
    kept = (h <= tall) & (w <= 5 * tall) & (area >= 2) & (area >= 0.12 * w * h)
    # What the window cuts is a part of something larger.
    kept &= (x > 0) & (y > 0) & (x + w < mask.shape[1]) & (y + h < mask.shape[0])
    # A speck of the ground is as dark as the ink in few of its pixels.
    inked = np.bincount(labels[pure], minlength=number)[1:]
    kept &= inked >= 0.2 * area
    boxes = stats[1:, :4][kept]
    return boxes[np.argsort(-boxes[:, 3])][:4000].astype(int)


def _lines(boxes: np.ndarray) -> list[np.ndarray]:
    """Group the boxes (n, 4), tallest first, into lines of text."""
    lines = []
    taken = np.zeros(len(boxes), bool)
    for seed in range(len(boxes)):
        height = boxes[seed, 3]
        if height < _MIN_HEIGHT:
            break
        if taken[seed]:
            continue
        near = _same_line(boxes, boxes[seed]) & ~taken
        members = _chain(boxes, near, seed, _SPACE * height)
        line = boxes[members]
        if _is_text(line, height):
            taken[members] = True
            lines.append(line)
    return lines


def _same_line(boxes: np.ndarray, seed: np.ndarray) -> np.ndarray:
    """Boxes whose rows keep to those of the seed, a descender aside."""
    top, height = seed[1], seed[3]
    bottoms = boxes[:, 1] + boxes[:, 3]
    inside = (boxes[:, 1] >= top - 0.35 * height) & (bottoms <= top + 1.4 * height)
    return inside & (bottoms >= top + 0.3 * height)


def _chain(boxes: np.ndarray, near: np.ndarray, seed: int, space: float) -> list[int]:
    """Indices of the boxes that follow each other from the seed with no gap over ``space``."""
    members = [seed]
    left, right = boxes[seed, 0], boxes[seed, 0] + boxes[seed, 2]
    order = np.flatnonzero(near)
    order = order[np.argsort(boxes[order, 0])]
    for index in order[boxes[order, 0] >= left]:
        if index != seed and boxes[index, 0] - right <= space:
            members.append(int(index))
            right = max(right, boxes[index, 0] + boxes[index, 2])
    for index in order[boxes[order, 0] < left][::-1]:
        if left - (boxes[index, 0] + boxes[index, 2]) <= space:
            members.append(int(index))
            left = min(left, boxes[index, 0])
    return members


def _large(line: np.ndarray) -> np.ndarray:
    """The letters of a line without its dots."""
    return line[line[:, 3] >= 0.5 * line[:, 3].max()]


def _is_text(line: np.ndarray, height: int) -> bool:
    """Whether boxes are a number with its unit: two letters at least, wider than high."""
    width = (line[:, 0] + line[:, 2]).max() - line[:, 0].min()
    return len(_large(line)) >= 2 and 1.1 * height <= width <= 14 * height


def _distance(line: np.ndarray, bar: Box) -> float | None:
    """Gap in px between a line of text and its bar; None where it does not belong to it."""
    x, y, w, h = bar
    left, top = line[:, :2].min(0)
    right, bottom = (line[:, :2] + line[:, 2:]).max(0)
    height = line[:, 3].max()
    across = max(x - right, left - (x + w), 0)
    along = max(y - bottom, top - (y + h), 0)
    if across == 0:
        centred = abs((left + right) / 2 - (x + w / 2)) <= max(w, right - left) / 2
        return float(along) if centred and along <= 1.8 * height + 4 else None
    beside = top - 0.6 * height <= y + h / 2 <= bottom + 0.6 * height
    return float(across) if beside and across <= 2.2 * height + 4 else None
