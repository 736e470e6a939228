"""Whether a dark stretch of a picture is a drawn bar, and how long it is.

A burnt-in bar differs from a straight fibre or a printed line in that it was drawn, not
photographed: one colour all along, edges on one row of pixels from end to end, and ends that are
upright. Everything here takes a plane in which ink is dark; light ink comes as 255 - plane.
"""

import dataclasses
from collections.abc import Iterator

import cv2
import numpy as np

# Grey levels that count as ink: pure ink first, then ink that JPEG, a half-covered row or a
# translucent stroke has lightened.
INK_LEVELS = (14, 45, 80)
_MIN_CONTRAST = 18.0  # along the bar, in grey levels
_MIN_MEDIAN_CONTRAST = 40.0
_MIN_END_CONTRAST = 28.0  # at its ends, which decide the length
_REACH = 3  # px beyond an edge in which the ground shows
_MAX_TICK = 10  # px, width of an end tick at most


@dataclasses.dataclass(frozen=True)
class Stroke:
    """A horizontal bar as :func:`measure_stroke` found it, in px of the plane.

    Attributes:
        x0: left end, sub-pixel; pixel 0 reaches from 0 to 1.
        x1: right end.
        y0: first row of the bar without its ticks.
        y1: row after its last.
        top: first row of bar and end ticks.
        bottom: row after their last.
        ink: grey level of the ink.
        contrast: grey levels between ink and ground, the median along the bar.
        spread: standard deviation of the ink's grey level.
        above: grey level of the ground above, the median along the bar.
        below: grey level of the ground below.
    """

    x0: float
    x1: float
    y0: int
    y1: int
    top: int
    bottom: int
    ink: float
    contrast: float
    spread: float
    above: float
    below: float

    @property
    def length(self) -> float:
        """Outer end to outer end, in px."""
        return self.x1 - self.x0

    @property
    def thickness(self) -> int:
        """Rows of the bar."""
        return self.y1 - self.y0


def find_strokes(plane: np.ndarray, shortest: int, longest: int) -> list[Stroke]:
    """Find the drawn horizontal bars of a plane.

    Args:
        plane: uint8 (H, W), ink is dark.
        shortest: px, least length.
        longest: px, greatest length.

    Returns:
        The bars; one that shows at several grey levels of ink comes once for each.
    """
    found = []
    for level in INK_LEVELS:
        for box in _dark_boxes(plane, level, shortest, longest):
            stroke = measure_stroke(plane, *box)
            if stroke is not None:
                found.append(stroke)
    return found


def _dark_boxes(
    plane: np.ndarray, level: int, shortest: int, longest: int
) -> Iterator[tuple[int, int, int, int]]:
    """Boxes (x, y, w, h) of what stays of the ink when only long horizontal runs are kept."""
    mask = (plane <= level).view(np.uint8)
    # OpenCV shifts what it opens by an even kernel.
    mask = cv2.morphologyEx(mask, cv2.MORPH_OPEN, np.ones((1, shortest | 1), np.uint8))
    if not mask.any():
        return
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
    x, y, w, h, area = stats[1:].T
    kept = (w >= shortest) & (w <= longest) & (w >= 3 * h) & (area >= 0.85 * w * h)
    kept &= (x > 0) & (y > 0) & (x + w < plane.shape[1]) & (y + h < plane.shape[0])
    for index in np.flatnonzero(kept):
        yield int(x[index]), int(y[index]), int(w[index]), int(h[index])


def measure_stroke(plane: np.ndarray, x: int, y: int, w: int, h: int) -> Stroke | None:
    """Hold a dark box to what a drawn bar is, and measure it.

    Args:
        plane: uint8 (H, W), ink is dark.
        x: left column of the box.
        y: upper row.
        w: columns.
        h: rows.

    Returns:
        The bar, or None where the box holds none.
    """
    ink, spread = _ink(plane[y : y + h, x + 2 : x + w - 2])
    if spread > 12.0:
        return None
    above, below = _ground(plane, x, y, w, -1), _ground(plane, x, y + h - 1, w, 1)
    contrast = np.minimum(above, below) - ink
    ticks = _tick_width(contrast >= _MIN_CONTRAST)
    if ticks is None:
        return None
    middle = slice(max(ticks, 1), w - max(ticks, 1))
    median = float(np.median(contrast[middle]))
    if median < _MIN_MEDIAN_CONTRAST:
        return None
    if not _is_straight(plane, (x, y, w, h), ink, above, below, middle):
        return None
    # Rows that the bar covers in part would pass for a paler end.
    full = np.median(plane[y : y + h, x : x + w], axis=1) <= ink + 0.1 * median
    if not full.any():
        return None
    ends = _ends(plane[y : y + h][full].astype(np.float32), x, w, ink)
    if ends is None:
        return None
    limit = ink + 0.6 * median
    wide = max(ticks, 1)
    columns = slice(x, x + wide), slice(x + w - wide, x + w)
    up, down = (
        [_tick_height(plane, column, row, step, limit) for column in columns]
        for row, step in ((y - 1, -1), (y + h, 1))
    )
    if ticks and not (_alike(*up) and _alike(*down)):
        return None
    # Hair-fine ticks leave the ground visible, and still belong to the bar.
    top = y - max(up) if _alike(*up) else y
    bottom = y + h + (max(down) if _alike(*down) else 0)
    if max(y - top, bottom - y - h) > 2 * h + 8:
        return None
    grounds = float(np.median(above[middle])), float(np.median(below[middle]))
    return Stroke(*ends, y, y + h, top, bottom, ink, median, spread, *grounds)


def _ink(core: np.ndarray) -> tuple[float, float]:
    """Grey level of the ink and its standard deviation, taken from the darkest row."""
    rows = core[np.argsort(core.mean(1))[: max(1, len(core) // 2)]]
    return float(np.median(rows)), float(rows.std())


def _ground(plane: np.ndarray, x: int, row: int, w: int, step: int) -> np.ndarray:
    """The lightest of the few pixels beyond an edge, float32 (w,), for each column."""
    rows = [row + step * d for d in range(1, _REACH + 1)]
    rows = [r for r in rows if 0 <= r < len(plane)]
    return plane[rows, x : x + w].max(0).astype(np.float32)


def _tick_width(free: np.ndarray) -> int | None:
    """Columns of the ticks at either end; 0 without ticks, None where the bar is not free.

    Args:
        free: bool (w,), the columns with ground above and below.
    """
    clear = np.flatnonzero(free)
    if clear.size < 0.6 * free.size:
        return None
    left, right = int(clear[0]), int(free.size - 1 - clear[-1])
    if abs(left - right) > 1 or max(left, right) > min(_MAX_TICK, free.size // 6):
        return None
    inner = free[left : free.size - right]
    # Where the ground is as dark as the ink near an end, the end cannot be told.
    edge = max(3, inner.size // 25)
    if inner.mean() < 0.97 or not (inner[:edge].all() and inner[-edge:].all()):
        return None
    return max(left, right)


def _alike(left: int | None, right: int | None) -> bool:
    """Whether two ticks are drawn alike: a dark particle at one end makes no tick."""
    if left is None or right is None or (left > 0) != (right > 0):
        return False
    return abs(left - right) <= max(2, 0.5 * max(left, right))


def _tick_height(
    plane: np.ndarray, columns: slice, row: int, step: int, limit: float
) -> int | None:
    """Rows that a tick reaches beyond the bar, its grey under ``limit``; None if it has no end."""
    for height in range(max(16, plane.shape[0] // 12)):
        at = row + step * height
        if not 0 <= at < len(plane):
            return None
        if plane[at, columns].min() > limit:
            return height
    return None


def _is_straight(
    plane: np.ndarray,
    box: tuple[int, int, int, int],
    ink: float,
    above: np.ndarray,
    below: np.ndarray,
    middle: slice,
) -> bool:
    """Whether both edges keep to one height, to a fraction of a pixel, from end to end."""
    x, y, w, h = box
    half = (h + 1) // 2
    upper = plane[max(y - 2, 0) : y + half, x : x + w].astype(np.float32)
    lower = plane[y + h - half : y + h + 2, x : x + w].astype(np.float32)
    for part, ground in ((upper, above), (lower, below)):
        part, ground = part[:, middle], ground[middle]
        strong = ground - ink >= _MIN_CONTRAST
        part, ground = part[:, strong], ground[strong]
        if part.shape[1] < 8:
            return False
        covered = np.clip((ground - part) / (ground - ink), 0, 1).sum(0)
        at = np.arange(covered.size) - covered.size / 2
        slope = float(at @ (covered - covered.mean()) / (at @ at))
        # A mean over pieces of the length: noise of the ground averages out, a bend does not.
        pieces = np.array([piece.mean() for piece in np.array_split(covered, 8)])
        if abs(slope) * w > 0.6 or np.ptp(pieces) > 0.8 or covered.std() > 0.55:
            return False
    return True


def _ends(rows: np.ndarray, x: int, w: int, ink: float) -> tuple[float, float] | None:
    """Sub-pixel ends of a bar from its rows, float32 (n, W); None where they are not upright."""
    mean = rows.mean(0)
    right, left = _end(mean[x + w - 3 :], ink), _end(mean[: x + 3][::-1], ink)
    if left is None or right is None:
        return None
    upright = 0
    for row in rows:
        one = _end(row[x + w - 3 :], ink), _end(row[: x + 3][::-1], ink)
        upright += None not in one and max(abs(one[0] - right), abs(one[1] - left)) <= 0.8
    if upright < 0.7 * len(rows):
        return None
    return x + 3 - left, x + w - 3 + right


def _end(profile: np.ndarray, ink: float) -> float | None:
    """How far ink reaches along a profile that begins in it; None where it does not end sharply.

    The covered parts of the pixels are added up: exact where a pixel's grey level is the mean
    over its area, as anti-aliasing makes it.
    """
    window = profile[:12]
    for start in range(2, min(6, window.size - 2)):
        ground = float(window[start : start + 3].max())
        if ground - ink >= _MIN_END_CONTRAST and window[start] - ink > 0.5 * (ground - ink):
            break
    else:
        return None
    covered = np.clip((ground - window) / (ground - ink), 0, 1)
    full = int(np.argmax(covered < 0.85))
    total = float(covered[:full].sum())
    for share, before in zip(covered[full : full + 4], covered[full - 1 :], strict=False):
        # Where it rises again the ground's own texture has begun.
        if share < 0.15 or share > before + 0.05:
            return total
        total += float(share)
    return None
