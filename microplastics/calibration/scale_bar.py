"""Detection of burnt-in scale bars.

A bar differs from fibres, printed grids and the filter's rim in that it is drawn: one colour,
straight to a fraction of a pixel, with upright ends, mostly with a line of text at it. A picture
with none or several is an error: a wrong scale would falsify every size in the table.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator

import cv2
import numpy as np

from microplastics.utils.errors import UserError

Box = tuple[int, int, int, int]
Read = Callable[[int, int, int, int], np.ndarray]

# Grey levels that count as ink: pure ink first, then ink that JPEG, a half-covered row or a
# translucent stroke has lightened.
_INK_LEVELS = (14, 45, 80)
# By these a thin line is darker than what is above and below, on whatever ground.
_LINE_DEPTHS = (56, 28)
_THIN = 4  # px, thickness up to which it is searched
_MIN_CONTRAST = 18.0  # along the bar, in grey levels
_MIN_MEDIAN_CONTRAST = 40.0
_MIN_END_CONTRAST = 28.0  # at its ends, which decide the length
_LEAST_CHROMA = 40  # between the channels of coloured ink, in grey levels
_REACH = 3  # px beyond an edge in which the ground shows
_MAX_TICK = 10  # px, largest width of an end tick

_MIN_LETTER = 5  # px, height of legible digits
# Fractions of the bar's contrast by which letters stand out, the plainest first.
_LETTER_DEPTHS = (0.5, 0.35, 0.22)
_SPACE = 1.3  # heights, largest space between two words of a line
_PLATE_TOLERANCE = 14  # grey levels that JPEG moves an even box
_MAX_PLATE = 0.3  # fraction of the picture: anything larger is its ground

# Larger pictures are searched only along their borders.
_WHOLE_PIXELS = 16_000_000
_BAND = 1024  # px, depth of the bands along the upper and lower border of a larger one
_SIDE = 2048  # px, width of the bands along its sides
_OVERLAP = 256
_WIDEST = 16_384  # px, longest piece of a band that is in memory
_MARGIN = 0.3  # fraction of the height or width from a border in which bars lie

_FIX = "give its scale by --um-per-px or in a CSV with --calibration instead"


@dataclasses.dataclass(frozen=True)
class ScaleBar:
    """A burnt-in scale bar.

    Attributes:
        px: length from outer end to outer end in px, sub-pixel if the ends are anti-aliased.
        box: (x, y, width, height) in px around the bar with its ticks and its outline.
        text_box: the same around its text, if it has one.
        plate_box: the same around the even box behind both, if there is one.
        polarity: ``"dark"`` or ``"light"``: the ink against its ground.
        um: length in µm that its label names, if it was read.
    """

    px: float
    box: Box
    text_box: Box | None
    plate_box: Box | None
    polarity: str
    um: float | None = None

    @property
    def boxes(self) -> list[Box]:
        """All boxes, none of which holds a particle."""
        return [box for box in (self.box, self.text_box, self.plate_box) if box is not None]


@dataclasses.dataclass(frozen=True)
class _Stroke:
    """A horizontal bar in px of its plane, and its grey levels."""

    x0: float  # left end, sub-pixel; pixel 0 reaches from 0 to 1
    x1: float
    y0: int  # first row of the bar without its ticks
    y1: int  # row after its last
    top: int  # first row of bar and end ticks
    bottom: int
    ticks: int  # columns of the ticks at either end, 0 without
    ink: float
    contrast: float  # between ink and ground, the median along the bar
    spread: float  # standard deviation of the ink
    above: float  # the ground above, the median along the bar
    below: float

    @property
    def length(self) -> float:
        """Outer end to outer end, in px."""
        return self.x1 - self.x0

    @property
    def thickness(self) -> int:
        """Rows of the bar."""
        return self.y1 - self.y0

    @property
    def has_ticks(self) -> bool:
        """Whether both ends stand out alike."""
        return self.bottom - self.top >= self.thickness + 3


@dataclasses.dataclass(frozen=True, eq=False)
class _Candidate:
    """A bar in px of the picture."""

    stroke: _Stroke
    span: tuple[float, float, int, int]  # x0, x1, y0, y1
    box: Box  # with its ticks
    text: Box | None
    plate: Box | None
    polarity: str
    grey: bool

    @property
    def rank(self) -> tuple[bool, bool, float]:
        """Better finds of one bar rank higher; JPEG keeps only the grey image's detail."""
        sharp = self.grey and self.stroke.contrast >= 60
        return self.text is not None, sharp, self.stroke.contrast

    @property
    def middle(self) -> float:
        """Row through the middle of the bar."""
        return (self.span[2] + self.span[3]) / 2


def find_scale_bars(read: Read, width: int, height: int) -> list[ScaleBar]:
    """Find the horizontal scale bars of a picture.

    Pictures over 16 megapixels are searched only along their borders, band by band.

    Args:
        read: ``read(x0, y0, x1, y1)`` gives uint8 (y1 - y0, x1 - x0, 3), BGR.
        width, height: of the picture, px.

    Returns:
        whatever may be a scale bar, from left to right.
    """
    shortest = int(min(max(24, 0.04 * width), 100))
    found = []
    for x0, y0, x1, y1 in _windows(width, height):
        image = read(x0, y0, x1, y1)
        for plane, polarity, grey in _planes(image, shortest):
            for stroke in _find_strokes(plane, shortest, int(0.75 * width)):
                if _near_border(_span(stroke, x0, y0), width, height):
                    found.append(_candidate(plane, stroke, polarity, grey, x0, y0))
    bars = _without_outlines(_without_repeats(found))
    # A bar that has its text leaves no doubt; one without must be drawn all the clearer.
    bars = [c for c in bars if _is_clear(c.stroke, width, c.text is not None)]
    texts = [c.text for c in bars if c.text is not None]
    bars = [c for c in bars if not any(_inside(c, text) for text in texts if text != c.text)]
    return sorted((_bar(c, width, height) for c in bars), key=lambda bar: bar.box)


def only_bar(bars: list[ScaleBar], name: str = "The image") -> ScaleBar:
    """Return the one scale bar of :func:`find_scale_bars` in the picture ``name``.

    Raises:
        UserError: there is none, or more than one.
    """
    if not bars:
        raise UserError(f"{name} shows no clear scale bar; {_FIX}.", code="scale_missing")
    if len(bars) > 1:
        places = " and ".join(f"{b.px:.1f} px at ({b.box[0]}, {b.box[1]})" for b in bars[:3])
        raise UserError(
            f"{name} shows {len(bars)} possible scale bars ({places}); {_FIX}.",
            code="scale_invalid",
        )
    return bars[0]


def _windows(width: int, height: int) -> Iterator[Box]:
    """Windows (x0, y0, x1, y1) that cover all places of a bar."""
    if width * height <= _WHOLE_PIXELS or height <= 2 * _BAND:
        # A long and low picture is its own band.
        yield 0, 0, width, height
        return
    for x0 in range(0, max(width - _WIDEST // 2, 1), _WIDEST // 2):
        x1 = min(x0 + _WIDEST, width)
        yield x0, 0, x1, _BAND
        yield x0, height - _BAND, x1, height
    side = min(_SIDE, width // 2)
    for y0 in range(_BAND - _OVERLAP, height - _BAND, _BAND - _OVERLAP):
        y1 = min(y0 + _BAND, height - _BAND + _OVERLAP)
        yield 0, y0, side, y1
        yield width - side, y0, width, y1


def _planes(image: np.ndarray, shortest: int) -> Iterator[tuple[np.ndarray, str, bool]]:
    """Planes in which ink is dark: of the grey image, and of the colours for coloured ink."""
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    yield grey, "dark", True
    yield 255 - grey, "light", True
    channels = cv2.split(image)
    most, least = (functools.reduce(of, channels) for of in (cv2.max, cv2.min))
    colourful = (cv2.subtract(most, least) >= _LEAST_CHROMA).view(np.uint8)
    line = np.ones((1, shortest | 1), np.uint8)
    if not cv2.morphologyEx(colourful, cv2.MORPH_OPEN, line).any():
        return
    for plane in channels:
        yield plane, "dark", False
        yield 255 - plane, "light", False


def _candidate(
    plane: np.ndarray, stroke: _Stroke, polarity: str, grey: bool, x: int, y: int
) -> _Candidate:
    """The find in a window at (x, y) of the picture."""
    left, right = int(np.floor(stroke.x0 + 0.05)), int(np.ceil(stroke.x1 - 0.05))
    box = left, stroke.top, right - left, stroke.bottom - stroke.top
    text = _find_text(plane, box, stroke)
    plate = _find_plate(plane, box, text)
    boxes = (b and (b[0] + x, b[1] + y, b[2], b[3]) for b in (box, text, plate))
    return _Candidate(stroke, _span(stroke, x, y), *boxes, polarity, grey)


def _span(stroke: _Stroke, x: int, y: int) -> tuple[float, float, int, int]:
    """Ends x0, x1, y0, y1 in px of the picture of a stroke in a window at (x, y)."""
    return x + stroke.x0, x + stroke.x1, y + stroke.y0, y + stroke.y1


def _near_border(span: tuple[float, float, int, int], width: int, height: int) -> bool:
    x0, x1, y0, y1 = span
    aside = min(x0, width - x1) <= 0.12 * width
    return y1 <= _MARGIN * height or y0 >= (1 - _MARGIN) * height or aside


def _without_repeats(found: list[_Candidate]) -> list[_Candidate]:
    """One find for each bar: the best of those that overlap."""
    kept: list[_Candidate] = []
    for one in sorted(found, key=lambda c: c.rank, reverse=True):
        x0, x1, y0, y1 = one.span
        for other in kept:
            u0, u1, v0, v1 = other.span
            common = min(x1, u1) - max(x0, u0)
            if min(y1, v1) > max(y0, v0) and common > 0.5 * min(x1 - x0, u1 - u0):
                break
        else:
            kept.append(one)
    return kept


def _without_outlines(bars: list[_Candidate]) -> list[_Candidate]:
    """Leave out the strokes that an outline or a box makes along the bar that it surrounds."""
    along = {bar: [other for other in bars if _lies_along(other, bar)] for bar in bars}
    # An outline or a box shows as a contrary stroke on either side of its bar.
    held = {
        bar
        for bar, others in along.items()
        if any(other.middle < bar.middle for other in others)
        and any(other.middle > bar.middle for other in others)
    }
    dropped = {other for bar in held for other in along[bar]} - held
    for bar in bars:
        if bar not in dropped:
            dropped |= {other for other in along[bar] if _is_around(other, bar)}
    return [bar for bar in bars if bar not in dropped]


def _lies_along(one: _Candidate, other: _Candidate) -> bool:
    """Whether two strokes of contrary ink lie on each other, the ends of one within the other's."""
    x0, x1, y0, y1 = one.span
    u0, u1, v0, v1 = other.span
    if one.polarity == other.polarity or max(v0 - y1, y0 - v1) > 2:
        return False
    return (x0 <= u0 + 1 and x1 >= u1 - 1) or (u0 <= x0 + 1 and u1 >= x1 - 1)


def _is_around(outer: _Candidate, inner: _Candidate) -> bool:
    """Whether the longer of two strokes is of a box around the shorter, or a shadow."""
    x0, x1, _, _ = outer.span
    u0, u1, _, _ = inner.span
    if abs((x1 - x0) - (u1 - u0)) <= 1.2:
        return outer.stroke.thickness < inner.stroke.thickness
    # A line that is thin beside the other may be the outline between the ticks of a bar: both
    # stay, and the picture shows two.
    if 2 * inner.stroke.thickness < outer.stroke.thickness:
        return False
    # The box shows again beyond the bar; between the ticks of a bar there is its ground.
    level = abs(inner.stroke.above - inner.stroke.below)
    return x1 - x0 > u1 - u0 and level <= 14


def _is_clear(stroke: _Stroke, width: int, has_text: bool) -> bool:
    """Whether a stroke is drawn clearly enough for a bar, without text and ticks all the more."""
    # A line of an outline, or the gap between two ticks, has the bar on one side.
    if abs(stroke.above - stroke.below) > 60:
        return False
    pure = stroke.ink <= 30 and stroke.spread <= 4 and stroke.contrast >= 60
    if has_text or stroke.has_ticks:
        return pure or (stroke.contrast >= 55 and stroke.length >= 0.08 * width)
    return pure and stroke.thickness >= 2 and 0.06 * width <= stroke.length <= 0.5 * width


def _inside(candidate: _Candidate, text: Box) -> bool:
    """Whether a bar is a stroke of the letters of another."""
    x0, x1, y0, y1 = candidate.span
    x, y, w, h = text
    if x1 - x0 > 1.5 * h:
        return False
    return x - 2 <= x0 and x1 <= x + w + 2 and y - 2 <= y0 and y1 <= y + h + 2


def _bar(candidate: _Candidate, width: int, height: int) -> ScaleBar:
    box, text = _grown(candidate.box, 2, width, height), candidate.text
    if text is not None:
        text = _grown(text, max(2, round(0.12 * text[3])), width, height)
    return ScaleBar(candidate.stroke.length, box, text, candidate.plate, candidate.polarity)


def _grown(box: Box, by: int, width: int, height: int) -> Box:
    """A box with what anti-aliasing, JPEG and an outline put around it."""
    x0, y0 = max(box[0] - by, 0), max(box[1] - by, 0)
    x1, y1 = min(box[0] + box[2] + by, width), min(box[1] + box[3] + by, height)
    return x0, y0, x1 - x0, y1 - y0


def _find_strokes(plane: np.ndarray, shortest: int, longest: int) -> list[_Stroke]:
    """Find the drawn horizontal bars of a plane."""
    found = []
    lines = cv2.morphologyEx(plane, cv2.MORPH_BLACKHAT, np.ones((2 * _THIN + 1, 1), np.uint8))
    masks = [plane <= level for level in _INK_LEVELS]
    masks += [lines >= depth for depth in _LINE_DEPTHS]
    for number, mask in enumerate(masks):
        for box in _dark_boxes(mask.view(np.uint8), shortest, longest):
            if number >= len(_INK_LEVELS):
                box = _to_its_ends(plane, *box)
            stroke = _measure_stroke(plane, *box)
            if stroke is not None:
                found.append(stroke)
    found = list(dict.fromkeys(found))
    return [one for one in found if not any(_is_part(one, other) for other in found)]


def _to_its_ends(plane: np.ndarray, x: int, y: int, w: int, h: int) -> Box:
    """The box of a line with its ends, which ticks hide from what looks above and below."""
    row = plane[y : y + h].min(axis=0)
    ink = np.median(row[x : x + w])
    contrast = np.median(_ground(plane, x, y, w, -1)) - ink
    dark = row <= ink + 0.5 * contrast
    before, after = dark[max(x - _MAX_TICK, 0) : x][::-1], dark[x + w : x + w + _MAX_TICK]
    # A run of them from the line on; False stands for what comes after.
    left, right = (int(np.argmin(np.append(part, False))) for part in (before, after))
    return x - left, y, w + left + right, h


def _is_part(one: _Stroke, other: _Stroke) -> bool:
    """Whether a stroke lacks an end of another, which JPEG has parted from it beside a tick."""
    before, after = one.x0 - other.x0, other.x1 - one.x1
    meets = min(one.y1, other.y1) > max(one.y0, other.y0)
    return meets and min(before, after) > -0.5 and 0.5 < max(before, after) <= _MAX_TICK


def _dark_boxes(
    mask: np.ndarray, shortest: int, longest: int
) -> Iterator[tuple[int, int, int, int]]:
    """Boxes (x, y, w, h) of what stays of a mask when only long horizontal runs are kept."""
    # OpenCV shifts what it opens by an even kernel.
    mask = cv2.morphologyEx(mask, cv2.MORPH_OPEN, np.ones((1, shortest | 1), np.uint8))
    if not mask.any():
        return
    # Every run is long enough to show in some of these columns, at a fraction of the time.
    step = shortest // 4
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask[:, ::step].copy(), connectivity=4)
    x, y, w, h, area = stats[1:].T
    kept = ((w - 1) * step <= longest) & ((w + 1) * step >= 3 * h) & (area >= 0.7 * w * h)
    kept &= (y > 0) & (y + h < mask.shape[0])
    for left, top, wide, high in stats[1:, :4][kept].tolist():
        left = max((left - 1) * step, 0)
        right = left + (wide + 2) * step
        part = mask[top : top + high, left:right].copy()
        _, _, inner, _ = cv2.connectedComponentsWithStats(part, connectivity=4)
        x, y, w, h, area = inner[1:].T
        kept = (w >= shortest) & (w <= longest) & (w >= 3 * h) & (area >= 0.85 * w * h)
        kept &= (x > 0) & (x + w < part.shape[1])
        for u, v, w, h in inner[1:, :4][kept].tolist():
            yield left + u, top + v, w, h


def _measure_stroke(plane: np.ndarray, x: int, y: int, w: int, h: int) -> _Stroke | None:
    """Measure the bar that a dark box holds, if it is drawn as one."""
    ink, spread = _ink(plane[y : y + h, x + 2 : x + w - 2])
    if spread > 16.0:
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
    rows = _with_ticks(plane, (x, y, w, h), ticks, ink + 0.6 * median)
    if ends is None or rows is None:
        return None
    grounds = float(np.median(above[middle])), float(np.median(below[middle]))
    return _Stroke(*ends, y, y + h, *rows, ticks, ink, median, spread, *grounds)


def _ink(core: np.ndarray) -> tuple[float, float]:
    """Grey level of the ink and its standard deviation, taken from the darkest row."""
    rows = core[np.argsort(core.mean(1))[: max(1, len(core) // 2)]]
    return float(np.median(rows)), float(rows.std())


def _ground(plane: np.ndarray, x: int, row: int, w: int, step: int) -> np.ndarray:
    """The lightest of the few pixels beyond an edge in each column, float32 (w,)."""
    rows = [row + step * d for d in range(1, _REACH + 1)]
    rows = [r for r in rows if 0 <= r < len(plane)]
    return plane[rows, x : x + w].max(0).astype(np.float32)


def _tick_width(free: np.ndarray) -> int | None:
    """Columns of the ticks at either end; 0 without, None if particles touch the bar."""
    reach = min(_MAX_TICK, free.size // 6)
    # Of a tick that covers its first column in part, the ground shows there.
    left, right = (
        reach - int(np.argmin(end)) if not end.all() else 0
        for end in (free[:reach][::-1], free[-reach:])
    )
    if free.mean() < 0.6 or abs(left - right) > 2:
        return None
    inner = free[left : free.size - right]
    # Near an end the ground must be lighter than the ink, or the end is not certain.
    edge = max(3, inner.size // 25)
    if inner.mean() < 0.97 or not (inner[:edge].all() and inner[-edge:].all()):
        return None
    return max(left, right)


def _with_ticks(plane: np.ndarray, box: Box, ticks: int, limit: float) -> tuple[int, int] | None:
    """First row of a bar with its ticks and the row after the last; None if they differ."""
    x, y, w, h = box
    wide = max(ticks, 1)
    columns = slice(x, x + wide), slice(x + w - wide, x + w)
    up, down = (
        [_tick_height(plane, column, row, step, limit) for column in columns]
        for row, step in ((y - 1, -1), (y + h, 1))
    )
    if ticks and not (_alike(*up) and _alike(*down)):
        return None
    # Hair-fine ticks leave the ground visible, and still belong to the bar.
    above, below = (max(heights) if _alike(*heights) else 0 for heights in (up, down))
    return (y - above, y + h + below) if max(above, below) <= 2 * h + 8 else None


def _alike(left: int | None, right: int | None) -> bool:
    """Whether two ticks are drawn alike; a dark particle at one end is not a tick."""
    if left is None or right is None:
        return False
    # A row that the bar covers in part may count at one end only.
    if min(left, right) == 0:
        return max(left, right) <= 1
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
    """Sub-pixel ends of a bar from its rows, float32 (n, W); None if they are not upright."""
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
    """How far ink reaches along a profile that begins in it; None if it does not end sharply.

    The covered parts of the pixels are added up: exact if a pixel's grey level is the mean over
    its area, as anti-aliasing makes it.
    """
    window = profile[:12]
    for start in range(2, min(6, window.size - 2)):
        ground = float(window[start : start + 3].max())
        if ground - ink >= _MIN_END_CONTRAST and window[start] - ink > 0.5 * (ground - ink):
            break
    else:
        return None
    covered = np.clip((ground - window) / (ground - ink), 0, 1)
    # The profile begins in ink, which JPEG may have lightened beside a tick.
    covered[:2] = 1
    full = int(np.argmax(covered < 0.85))
    total = float(covered[:full].sum())
    for part, before in zip(covered[full : full + 4], covered[full - 1 :], strict=False):
        # If it rises again the ground's own texture has begun.
        if part < 0.15 or part > before + 0.05:
            return total
        total += float(part)
    return None


def _find_text(plane: np.ndarray, bar: Box, stroke: _Stroke) -> Box | None:
    """Find the line of letters, in the bar's ink, above, below or beside it; it is not read."""
    x, y, w, h = bar
    height, width = plane.shape
    tall = int(min(max(0.14 * height, 24), max(0.6 * w, 24), 200))
    x0, x1 = max(0, x - 8 * tall), min(width, x + w + 8 * tall)
    y0, y1 = max(0, y - 3 * tall), min(height, y + h + 3 * tall)
    window = plane[y0:y1, x0:x1]
    bare = _beside_bar(bar, stroke, x0, y0, window.shape)
    # What stands out of its surroundings: thin letters are grey, and the ground is not even.
    side = max(15, tall // 3) | 1
    depth = cv2.morphologyEx(window, cv2.MORPH_BLACKHAT, np.ones((side, side), np.uint8))
    contrast = stroke.contrast
    masks = [(window < stroke.ink + 0.5 * contrast, window < stroke.ink + 0.3 * contrast)]
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


def _beside_bar(bar: Box, stroke: _Stroke, x0: int, y0: int, shape: tuple[int, int]) -> np.ndarray:
    """Which pixels of a window at (x0, y0) are neither of a bar nor of its ticks."""
    x, y, w, h = bar
    bare = np.ones(shape, bool)
    rows = slice(max(stroke.y0 - y0 - 1, 0), stroke.y1 - y0 + 1)
    bare[rows, max(x - x0 - 1, 0) : x + w - x0 + 1] = False
    if stroke.has_ticks:
        wide = stroke.ticks + 2
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


def _find_plate(plane: np.ndarray, bar: Box, text: Box | None) -> Box | None:
    """Find the even rectangle in which a bar lies."""
    x, y, w, h = bar
    height, width = plane.shape
    places = [(x + w // 4, y + h + 2), (x + 3 * w // 4, y - 3), (x - 3, y + h // 2)]
    places += [(x + w // 4, y - 3), (x + 3 * w // 4, y + h + 2), (x + w + 2, y + h // 2)]
    seeds = [(v, u) for u, v in places if 0 <= u < width and 0 <= v < height]
    if not seeds:
        return None
    level = float(np.median([plane[seed] for seed in seeds]))
    even = (np.abs(plane.astype(np.float32) - level) <= _PLATE_TOLERANCE).astype(np.uint8)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(even, connectivity=4)
    found = [labels[seed] for seed in seeds if labels[seed]]
    if not found:
        return None
    label = max(set(found), key=found.count)
    left, top, wide, high, area = stats[label].tolist()
    holds = left <= x and top <= y and left + wide >= x + w and top + high >= y + h
    if wide * high > _MAX_PLATE * plane.size or not holds:
        return None
    # Bar and letters are holes in it; the rest of the rectangle must be full, sides included.
    holes = sum(box[2] * box[3] for box in (bar, text) if box is not None)
    region = labels[top : top + high, left : left + wide] == label
    sides = [region[0].mean(), region[-1].mean(), region[:, 0].mean(), region[:, -1].mean()]
    if area < 0.93 * wide * high - holes or min(sides) < 0.8:
        return None
    return left, top, wide, high
