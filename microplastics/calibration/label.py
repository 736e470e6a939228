"""The label of a scale bar: where it is, and its number, read by RapidOCR if it is installed."""

import functools
import logging
import re
from typing import Any

import cv2
import numpy as np

from microplastics.utils.errors import UserError

Box = tuple[int, int, int, int]

_MIN_LETTER = 5  # px, height of legible digits
# Fractions of the bar's contrast by which letters stand out, the plainest first.
_LETTER_DEPTHS = (0.5, 0.35, 0.22)
_SPACE = 1.3  # heights, largest space between two words of a line

# µm of a unit. The line is read by shape: a micro sign comes out as one of its look-alikes.
_UNITS = {"mm": 1000.0, "nm": 0.001, "cm": 10_000.0}
_MICRO = re.compile(r"[µμuUpyjH]m|microns?|um", re.IGNORECASE)
_LABEL = re.compile(r"(\d{1,5}(?:[.,]\d{1,4})?)([^\d\s.,]{2,7})")
_ZEROS = re.compile(r"(?<=\d)[OoQ]+")
_LEAST_SCORE = 0.7
_HEIGHT = 48  # px of a line as the network takes it
_WHITE = 0.4  # heights around a line


def is_installed() -> bool:
    """Whether labels can be read."""
    try:
        _reader()
    except ImportError:
        return False
    return True


def check_installed() -> None:
    """Check that labels can be read.

    Raises:
        UserError: ``dependency_missing``.
    """
    if not is_installed():
        raise UserError(
            "--scale-bar auto reads the number beside the bar, for which RapidOCR is not "
            "installed; run pip install 'microplastics[ocr]', or give the number by "
            "--scale-bar-um.",
            code="dependency_missing",
        )


def read_label(image: np.ndarray, dark: bool) -> float | None:
    """Read the length that a label names.

    It is read twice, as it is and with its contrast stretched; a length counts if no reading
    contradicts it.

    Args:
        image: uint8 (h, w, 3), BGR, the label with a little ground around it.
        dark: whether its ink is darker than its ground.

    Returns:
        µm; None if it is no number with a unit, or cannot be read for certain.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    grey = grey if dark else 255 - grey
    low, high = np.percentile(grey, (1, 90))
    even = np.clip((grey - low) * (255 / max(high - low, 1)), 0, 255).astype(np.uint8)
    lengths = set()
    for plane in (grey, even):
        scale = _HEIGHT / plane.shape[0]
        plane = cv2.resize(plane, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
        margin = round(_WHITE * _HEIGHT / 2)
        ground = int(np.percentile(plane, 75))
        plane = cv2.copyMakeBorder(plane, *[margin] * 4, cv2.BORDER_CONSTANT, value=ground)
        read = _reader()(np.dstack([plane] * 3), use_det=False, use_cls=False, use_rec=True)
        for text, score in zip(read.txts or (), read.scores or (), strict=True):
            length = parse_label(text) if score >= _LEAST_SCORE else None
            if length is not None:
                lengths.add(length)
    return lengths.pop() if len(lengths) == 1 else None


def parse_label(text: str) -> float | None:
    """Return the length in µm that a text such as ``0,5 mm`` names; None if it names none."""
    text = _ZEROS.sub(lambda letters: "0" * len(letters[0]), "".join(text.split()))
    match = _LABEL.fullmatch(text)
    if match is None:
        return None
    number, unit = match.groups()
    factor = 1.0 if _MICRO.fullmatch(unit) else _UNITS.get(unit.lower())
    length = float(number.replace(",", "."))
    return length * factor if factor and length > 0 else None


@functools.cache
def _reader() -> Any:
    """The network that reads lines, whose weights are in the package.

    Raises:
        ImportError: it is not installed.
    """
    import onnxruntime  # noqa: F401  RapidOCR itself only asks for it at the first line
    from rapidocr import RapidOCR

    reader = RapidOCR(params={"Global.log_level": "critical"})
    logging.getLogger("RapidOCR").setLevel(logging.CRITICAL)
    return reader


def find_label(
    plane: np.ndarray,
    bar: Box,
    rows: tuple[int, int],
    ticks: int | None,
    ink: float,
    contrast: float,
) -> Box | None:
    """Find the line of letters, in the bar's ink, above, below or beside it; it is not read.

    Args:
        plane: uint8 (H, W), in which ink is dark.
        bar: x, y, width and height of the bar with its ticks, px.
        rows: first row of the bar without its ticks, and the row after its last.
        ticks: columns of the ticks at either end; None without.
        ink: grey level of the bar.
        contrast: between the bar and its ground, in grey levels.

    Returns:
        x, y, width and height, px; None if there is none.
    """
    x, y, w, h = bar
    height, width = plane.shape
    tall = int(min(max(0.14 * height, 24), max(0.6 * w, 24), 200))
    x0, x1 = max(0, x - 8 * tall), min(width, x + w + 8 * tall)
    y0, y1 = max(0, y - 3 * tall), min(height, y + h + 3 * tall)
    window = plane[y0:y1, x0:x1]
    bare = _beside_bar(bar, rows, ticks, x0, y0, window.shape)
    # What stands out of its surroundings: thin letters are grey, and the ground is not even.
    side = max(15, tall // 3) | 1
    depth = cv2.morphologyEx(window, cv2.MORPH_BLACKHAT, np.ones((side, side), np.uint8))
    masks = [(window < ink + 0.5 * contrast, window < ink + 0.3 * contrast)]
    masks += [(depth > part * contrast, depth > 1.4 * part * contrast) for part in _LETTER_DEPTHS]
    found = []
    for mask, pure in masks:
        for line in _lines(_letters(mask & bare, pure, tall)):
            line = line + np.array([x0, y0, 0, 0])
            distance = _distance(line, bar)
            if distance is not None:
                # Two particles side by side look like two letters, seldom like three.
                few = _large(line).shape[0] < 3
                found.append((few, distance, len(found), line))
        if found and not min(found)[0]:
            break
    if not found:
        return None
    best = min(found)[3]
    faint = np.vstack([_letters(mask & bare, mask, tall) for mask, _ in masks[1:]])
    return _around(_with_faint(best, faint + np.array([x0, y0, 0, 0])))


def _beside_bar(
    bar: Box,
    rows: tuple[int, int],
    ticks: int | None,
    x0: int,
    y0: int,
    shape: tuple[int, int],
) -> np.ndarray:
    """Which pixels of a window at (x0, y0) are neither of a bar nor of its ticks."""
    x, y, w, h = bar
    bare = np.ones(shape, bool)
    bare[max(rows[0] - y0 - 1, 0) : rows[1] - y0 + 1, max(x - x0 - 1, 0) : x + w - x0 + 1] = False
    if ticks is not None:
        wide = ticks + 2
        for left in (x - 1, x + w + 1 - wide):
            left = max(left - x0, 0)
            bare[max(y - y0 - 1, 0) : y + h - y0 + 1, left : left + wide] = False
    return bare


def _with_faint(line: np.ndarray, specks: np.ndarray) -> np.ndarray:
    """A line of letters, boxes (n, 4), with the fainter ones and dots that go on with it."""
    left, top, wide, high = _around(line)
    rows = specks[:, 1] >= top - 0.6 * high
    rows &= specks[:, 1] + specks[:, 3] <= top + 1.5 * high
    near = specks[rows & (specks[:, 2] <= 6 * high) & (specks[:, 3] >= 0.45 * high)]
    limits = left - 6 * high, left + wide + 6 * high
    for step in (1, -1, 1):
        for x, y, w, h in near[np.argsort(step * near[:, 0])].tolist():
            gap = max(x - (left + wide), left - (x + w))
            if gap <= 0.8 * high and limits[0] <= x and x + w <= limits[1]:
                line = np.vstack([line, (x, y, w, h)])
                left, _, wide, _ = _around(line)
    return line


def _around(boxes: np.ndarray) -> Box:
    """The box around boxes (n, 4)."""
    left, top = boxes[:, :2].min(0)
    right, bottom = (boxes[:, :2] + boxes[:, 2:]).max(0)
    return int(left), int(top), int(right - left), int(bottom - top)


def _letters(mask: np.ndarray, pure: np.ndarray, tall: int) -> np.ndarray:
    """Boxes (n, 4) of the specks of a mask that are shaped like letters, dots included."""
    mask = mask.view(np.uint8)
    number, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    x, y, w, h, area = stats[1:].T
    kept = (h <= tall) & (w <= 5 * tall) & (area >= 2) & (area >= 0.12 * w * h)
    # A speck that the window cuts is a part of something larger.
    kept &= (x > 0) & (y > 0) & (x + w < mask.shape[1]) & (y + h < mask.shape[0])
    # A speck of the ground is as dark as the ink in few of its pixels.
    inked = np.bincount(labels[pure], minlength=number)[1:]
    kept &= inked >= 0.2 * area
    boxes = stats[1:, :4][kept]
    return boxes[np.argsort(-boxes[:, 3])][:4000].astype(int)


def _lines(boxes: np.ndarray) -> list[np.ndarray]:
    """Group the boxes (n, 4), tallest first, into lines of text."""
    lines = []
    free = np.ones(len(boxes), bool)
    bottoms = boxes[:, 1] + boxes[:, 3]
    for seed, (_, top, _, height) in enumerate(boxes):
        if height < _MIN_LETTER:
            break
        if not free[seed]:
            continue
        # Descenders are on the line too.
        near = free & (boxes[:, 1] >= top - 0.35 * height) & (bottoms <= top + 1.4 * height)
        order = np.flatnonzero(near & (bottoms >= top + 0.3 * height))
        order = order[np.argsort(boxes[order, 0])]
        right = np.maximum.accumulate(boxes[order, 0] + boxes[order, 2])
        gaps = boxes[order[1:], 0] - right[:-1] > _SPACE * height
        parts = np.concatenate([[0], np.cumsum(gaps)])
        members = order[parts == parts[order == seed]]
        line = boxes[members]
        if _is_text(line, height):
            free[members] = False
            lines.append(line)
    return lines


def _large(line: np.ndarray) -> np.ndarray:
    """The letters of a line without its dots."""
    return line[line[:, 3] >= 0.5 * line[:, 3].max()]


def _is_text(line: np.ndarray, height: int) -> bool:
    """Whether boxes are a number with its unit: two letters at least, wider than high."""
    width = (line[:, 0] + line[:, 2]).max() - line[:, 0].min()
    return len(_large(line)) >= 2 and 1.1 * height <= width <= 14 * height


def _distance(line: np.ndarray, bar: Box) -> float | None:
    """Gap in px between a line of text and its bar; None if it does not belong to it."""
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
