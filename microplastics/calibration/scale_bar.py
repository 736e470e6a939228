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

from microplastics.calibration.label import Box, find_label
from microplastics.utils.errors import UserError

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
_INSIDE, _OUTSIDE = 8, 12  # px of a profile on either side of an end
_MAX_DOUBT = 0.7  # px by which an end may differ with the ground that is taken for its own
_MAX_BLUR = 4  # px over which an end may fade
_REACH = 3  # px beyond an edge in which the ground shows
_MAX_TICK = 10  # px, largest width of an end tick
_PARTS = 4  # lengths of a part within which the other parts of a divided bar lie

_PLATE_TOLERANCE = 14  # grey levels that JPEG moves an even box
_MAX_PLATE = 0.3  # fraction of the picture: anything larger is its ground

_RUN = np.ones((1, 3), np.uint8)  # quarters of the shortest bar that its ends do not touch

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


@dataclasses.dataclass
class _Plane:
    """A channel in which ink is dark.

    Attributes:
        narrow: uint8 (height, width / step), each pixel the mean of ``step`` in a row, which hides
            noise and keeps straight lines.
        source: uint8 (height, width), in which the ink has the ``polarity``.
        polarity: ``"dark"`` or ``"light"``.
        grey: of the grey image; JPEG keeps only its detail.
    """

    narrow: np.ndarray
    source: np.ndarray
    polarity: str
    grey: bool

    @functools.cached_property
    def full(self) -> np.ndarray:
        """The channel itself, uint8 (height, width)."""
        return self.source if self.polarity == "dark" else 255 - self.source


@dataclasses.dataclass(frozen=True, eq=False)
class _Candidate:
    """A bar in px of the picture, and the plane of its window at (x, y)."""

    stroke: _Stroke
    plane: _Plane
    x: int
    y: int

    @property
    def span(self) -> tuple[float, float, int, int]:
        """Ends x0, x1, y0, y1 without ticks."""
        one, x, y = self.stroke, self.x, self.y
        return x + one.x0, x + one.x1, y + one.y0, y + one.y1

    @property
    def rank(self) -> tuple[bool, float]:
        """Better finds of one bar rank higher."""
        return self.plane.grey and self.stroke.contrast >= 60, self.stroke.contrast

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
    bars: list[ScaleBar] = []
    for x0, y0, x1, y1 in _windows(width, height):
        finds = _candidates(read(x0, y0, x1, y1), x0, y0, shortest, (width, height))
        for bar in _with_labels(finds, width, height):
            # Windows overlap.
            if not any(_meet(bar.box, other.box) for other in bars):
                bars.append(bar)
    return sorted(bars, key=lambda bar: bar.box)


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


def _candidates(
    image: np.ndarray, x: int, y: int, shortest: int, size: tuple[int, int]
) -> list[_Candidate]:
    """Find the strokes in a window at (x, y) that may be bars, uint8 (H, W, 3), BGR."""
    step, found = shortest // 4, []
    if image.shape[1] < shortest:
        return []
    planes = _planes(image, step)
    boxes: dict[tuple, None] = {}
    for number, u, v, w, h in _rough_boxes([plane.narrow for plane in planes]):
        u, w = u * step, w * step
        if w <= 0.75 * size[0] and _near_border(x + u, x + u + w, y + v, y + v + h, *size):
            boxes[number, _exact_box(planes[number].full, u, v, w, h)] = None
    for number, box in boxes:
        plane = planes[number]
        stroke = _measure_stroke(plane.full, *box) if box and box[2] >= shortest else None
        if stroke is not None:
            found.append(_Candidate(stroke, plane, x, y))
    return found


def _planes(image: np.ndarray, step: int) -> list[_Plane]:
    """Planes in which ink is dark: of the grey image, and of the colours for coloured ink."""
    columns = image.shape[1] // step
    size = columns, image.shape[0]
    narrow = cv2.resize(image[:, : columns * step], size, interpolation=cv2.INTER_AREA)
    small, grey = (cv2.cvtColor(each, cv2.COLOR_BGR2GRAY) for each in (narrow, image))
    planes = [_Plane(small, grey, "dark", True), _Plane(255 - small, grey, "light", True)]
    # Of pure coloured ink one channel is dark and another light.
    least, most = _extremes(narrow)
    colourful = (cv2.subtract(most, least) >= _LEAST_CHROMA).view(np.uint8)
    if cv2.morphologyEx(colourful, cv2.MORPH_OPEN, _RUN).any():
        for kind, one, other in zip(
            ("dark", "light"), (least, 255 - most), _extremes(image), strict=True
        ):
            planes.append(_Plane(one, other, kind, False))
    return planes


def _extremes(image: np.ndarray) -> list[np.ndarray]:
    """The least and the greatest of the channels of each pixel."""
    return [functools.reduce(of, cv2.split(image)) for of in (cv2.min, cv2.max)]


def _with_labels(found: list[_Candidate], width: int, height: int) -> Iterator[ScaleBar]:
    """The bars among the finds of a window, each once, with their texts."""
    groups = {group[0]: group for group in _same(found)}
    bars = []
    for best in _without_parts(_without_outlines(list(groups))):
        if not _is_clear(best.stroke, width, True):
            continue
        # Only in the plane in which the letters are of the bar's ink may they show.
        texts = ((one, _text_of(one)) for one in groups[best])
        one, text = next((pair for pair in texts if pair[1] is not None), (best, None))
        # A bar that has its text leaves no doubt; one without must be drawn all the clearer.
        if _is_clear(best.stroke, width, text is not None):
            bars.append((best, one, text))
    for bar, one, text in bars:
        others = [other for _, _, other in bars if other is not None and other != text]
        if not any(_inside(bar, other) for other in others):
            yield _bar(bar, one, text, width, height)


def _near_border(x0: float, x1: float, y0: float, y1: float, width: int, height: int) -> bool:
    aside = min(x0, width - x1) <= 0.12 * width
    return y1 <= _MARGIN * height or y0 >= (1 - _MARGIN) * height or aside


def _same(found: list[_Candidate]) -> list[list[_Candidate]]:
    """Group the finds of each bar, the best first."""
    groups: list[list[_Candidate]] = []
    for one in sorted(found, key=lambda c: c.rank, reverse=True):
        x0, x1, y0, y1 = one.span
        for group in groups:
            u0, u1, v0, v1 = group[0].span
            common = min(x1, u1) - max(x0, u0)
            if min(y1, v1) > max(y0, v0) and common > 0.5 * min(x1 - x0, u1 - u0):
                # In the plane of another colour a bar and its outline are one.
                within = min(x0 - u0, u1 - x1) > 0.7 and min(y0 - v0, v1 - y1) >= 1
                plain = one.stroke.contrast >= 0.8 * group[0].stroke.contrast
                group.insert(0 if within and plain else len(group), one)
                break
        else:
            groups.append([one])
    return groups


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
    if one.plane.polarity == other.plane.polarity or max(v0 - y1, y0 - v1) > 2:
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
    plain = inner.stroke.contrast >= 0.8 * outer.stroke.contrast
    return x1 - x0 > u1 - u0 and level <= 14 and plain


def _is_clear(stroke: _Stroke, width: int, has_text: bool) -> bool:
    """Whether a stroke is drawn clearly enough for a bar, without text and ticks all the more."""
    # A line of an outline, or the gap between two ticks, has the bar on one side.
    if abs(stroke.above - stroke.below) > 60:
        return False
    pure = stroke.ink <= 30 and stroke.spread <= 4 and stroke.contrast >= 60
    if has_text or stroke.has_ticks:
        return pure or (stroke.contrast >= 55 and stroke.length >= 0.08 * width)
    return pure and stroke.thickness >= 2 and 0.06 * width <= stroke.length <= 0.5 * width


def _without_parts(bars: list[_Candidate]) -> list[_Candidate]:
    """Leave out the parts of bars that their label or black and white fields divide."""
    parts = {each for each in bars if _has_like(each) or _has_contrary(each)}
    # Fields in two rows touch at their corners.
    return [each for each in bars if not any(_touch(each, part) for part in parts)]


def _has_like(candidate: _Candidate) -> bool:
    """Whether a like stroke lies in the same rows, a few lengths away."""
    one, plane = candidate.stroke, candidate.plane.full
    x0, x1 = round(one.x0), round(one.x1)
    left, right = max(x0 - _PARTS * (x1 - x0), 0), x1 + _PARTS * (x1 - x0)
    core = plane[one.y0 : one.y1, left:right]
    beyond = plane[[max(one.y0 - 2, 0), min(one.y1 + 1, len(plane) - 1)], left:right]
    limit = one.ink + 0.5 * one.contrast
    like = (core <= limit).all(axis=0) & (beyond > limit).all(axis=0)
    like[max(x0 - 2 - left, 0) : x1 + 2 - left] = False
    ends = np.flatnonzero(np.diff(like, prepend=False, append=False)).reshape(-1, 2)
    return any(
        0.5 <= (end - start) / (x1 - x0) <= 2
        and abs(core[:, start:end].min(axis=0).mean() - one.ink) <= 0.2 * one.contrast
        for start, end in ends.tolist()
    )


def _has_contrary(candidate: _Candidate) -> bool:
    """Whether a field of the contrary ink goes on from an end."""
    one, plane = candidate.stroke, candidate.plane.full
    # Beyond an outline there is the ground.
    around = plane[[max(one.y0 - _REACH - 1, 0), min(one.y1 + _REACH, len(plane) - 1)]]
    light = plane[one.y0 : one.y1].min(axis=0) >= around.max(axis=0) + _MIN_END_CONTRAST
    x0, x1, least = round(one.x0) - 2, round(one.x1) + 2, round(one.length / 2)
    sides = light[max(x0 - least, 0) : max(x0, 0)], light[x1 : x1 + least]
    return any(len(side) == least and side.all() for side in sides)


def _touch(one: _Candidate, other: _Candidate) -> bool:
    """Whether two strokes lie on each other or meet, but for a pixel or two of an outline."""
    x0, x1, y0, y1 = one.span
    u0, u1, v0, v1 = other.span
    return max(u0 - x1, x0 - u1, v0 - y1, y0 - v1) <= 2


def _inside(candidate: _Candidate, text: Box) -> bool:
    """Whether a bar is a stroke of the letters of another, whose box is in px of the window."""
    x0, x1, y0, y1 = candidate.span
    x, y, w, h = text[0] + candidate.x, text[1] + candidate.y, *text[2:]
    if x1 - x0 > 1.5 * h:
        return False
    return x - 2 <= x0 and x1 <= x + w + 2 and y - 2 <= y0 and y1 <= y + h + 2


def _box_of(stroke: _Stroke) -> Box:
    """The box around a stroke with its ticks."""
    left, right = int(np.floor(stroke.x0 + 0.05)), int(np.ceil(stroke.x1 - 0.05))
    return left, stroke.top, right - left, stroke.bottom - stroke.top


def _text_of(one: _Candidate) -> Box | None:
    own = one.stroke
    ticks = own.ticks if own.has_ticks else None
    rows = own.y0, own.y1
    return find_label(one.plane.full, _box_of(own), rows, ticks, own.ink, own.contrast)


def _bar(
    bar: _Candidate, of_text: _Candidate, text: Box | None, width: int, height: int
) -> ScaleBar:
    """The bar of a window, in px of the picture."""
    plate = _find_plate(of_text.plane.full, _box_of(of_text.stroke), text)

    def moved(box: Box | None, by: int) -> Box | None:
        if box is None:
            return None
        return _grown((box[0] + bar.x, box[1] + bar.y, *box[2:]), by, width, height)

    text_box = moved(text, 0 if text is None else max(2, round(0.12 * text[3])))
    box = moved(_box_of(bar.stroke), 2)
    return ScaleBar(bar.stroke.length, box, text_box, moved(plate, 0), bar.plane.polarity)


def _meet(one: Box, other: Box) -> bool:
    """Whether two boxes have over half of the smaller in common."""
    wide, high = (
        min(one[i] + one[i + 2], other[i] + other[i + 2]) - max(one[i], other[i]) for i in (0, 1)
    )
    areas = one[2] * one[3], other[2] * other[3]
    return min(wide, high) > 0 and wide * high > 0.5 * min(areas)


def _grown(box: Box, by: int, width: int, height: int) -> Box:
    """A box with what anti-aliasing, JPEG and an outline put around it."""
    x0, y0 = max(box[0] - by, 0), max(box[1] - by, 0)
    x1, y1 = min(box[0] + box[2] + by, width), min(box[1] + box[3] + by, height)
    return x0, y0, x1 - x0, y1 - y0


def _rough_boxes(planes: list[np.ndarray]) -> Iterator[tuple[int, int, int, int, int]]:
    """Number of the plane and box of the dark horizontal runs of narrow planes."""
    height, width = planes[0].shape
    kernel = np.ones((2 * _THIN + 1, 1), np.uint8)
    masks = np.zeros((len(planes), len(_INK_LEVELS) + len(_LINE_DEPTHS), height, width), bool)
    for plane, own in zip(planes, masks, strict=True):
        lines = cv2.morphologyEx(plane, cv2.MORPH_BLACKHAT, kernel)
        own[:] = [plane <= level for level in _INK_LEVELS] + [lines >= d for d in _LINE_DEPTHS]
    # All in one image, for speed; what touches the upper or lower border is no bar.
    masks[:, :, [0, -1]] = False
    tall = masks.reshape(-1, width).view(np.uint8)
    tall = cv2.morphologyEx(tall, cv2.MORPH_OPEN, _RUN)
    _, _, stats, _ = cv2.connectedComponentsWithStats(tall, connectivity=4)
    x, y, w, h, area = stats[1:].T
    kept = area >= 0.7 * w * h
    x, y, w, h = (each[kept] for each in (x, y, w, h))
    number, y = y // (masks.shape[1] * height), y % height
    # The mean of a row from x on is a difference of two of these.
    sums = np.zeros((len(planes), height, width + 1), np.int32)
    np.cumsum(planes, axis=2, out=sums[:, :, 1:])

    def level(row: np.ndarray) -> np.ndarray:
        row = np.clip(row, 0, height - 1)
        return (sums[number, row, x + w] - sums[number, row, x]) / w

    above, below = (
        np.max([level(edge + way * step) for step in range(1, _REACH + 1)], axis=0)
        for edge, way in ((y, -1), (y + h - 1, 1))
    )
    stands_out = np.minimum(above, below) - level(y + h // 2) >= 0.7 * _MIN_MEDIAN_CONTRAST
    rows = np.stack([number, x, y, w, h], axis=1)[stands_out]
    yield from dict.fromkeys(map(tuple, rows.tolist()))


def _exact_box(plane: np.ndarray, x: int, y: int, w: int, h: int) -> Box | None:
    """The box of the stroke at a rough one: what is darker than half of its contrast."""
    top = max(y - _REACH - 1, 0)
    rows = np.median(plane[top : y + h + _REACH + 1, x : x + w], axis=1)
    darkest = int(rows.argmin())
    if not 0 < darkest < len(rows) - 1:
        return None
    contrast = min(rows[:darkest].max(), rows[darkest + 1 :].max()) - rows[darkest]
    y0, y1 = _run(rows <= rows[darkest] + 0.5 * contrast, darkest)
    if y0 == 0 or y1 == len(rows):
        return None
    # What lies beyond an end may be darker than the ground along the bar.
    limit = rows[darkest] + max(0.25 * contrast, min(_MIN_END_CONTRAST, 0.5 * contrast))
    x0, x1 = _run(plane[top + y0 : top + y1].min(axis=0) <= limit, x + w // 2)
    if x0 == 0 or x1 == plane.shape[1] or 3 * (y1 - y0) > x1 - x0:
        return None
    return x0, top + y0, x1 - x0, y1 - y0


def _run(mask: np.ndarray, at: int) -> tuple[int, int]:
    """First index of the run of a mask around one, and the index after its last."""
    before, after = np.flatnonzero(~mask[:at]), np.flatnonzero(~mask[at:])
    return (
        int(before[-1]) + 1 if before.size else 0,
        at + (int(after[0]) if after.size else mask.size - at),
    )


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
    if ends is None or rows is None or _goes_on(plane, (x, y, w, h), ink + 0.5 * median):
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
    right, left = slice(x + w - _INSIDE, x + w + _OUTSIDE), slice(max(x - _OUTSIDE, 0), x + _INSIDE)
    mean = rows.mean(0)
    after, before = _end(mean[right], ink), _end(mean[left][::-1], ink)
    if after is None or before is None:
        return None
    upright = 0
    for row in rows:
        one = _end(row[right], ink), _end(row[left][::-1], ink)
        upright += None not in one and max(abs(one[0] - after), abs(one[1] - before)) <= 0.8
    if upright < 0.7 * len(rows):
        return None
    return x + _INSIDE - before, x + w - _INSIDE + after


def _end(profile: np.ndarray, ink: float) -> float | None:
    """How far ink reaches along a profile that begins in it; None if it does not end sharply.

    The covered parts of the pixels are added up: exact if a pixel's grey level is the mean over
    its area, as anti-aliasing makes it. The lightest and the darkest ground that may lie beside
    the end must say the same.
    """
    for at in range(_INSIDE - 3, min(_INSIDE + 4, profile.size - 1)):
        ground = float(profile[at + 1 : at + 4].max())
        if ground - ink >= _MIN_END_CONTRAST and profile[at] - ink > 0.5 * (ground - ink):
            break
    else:
        return None
    top = at
    while profile[top + 1 :].size and profile[top + 1] - ink > 1.05 * (profile[top] - ink):
        top += 1
    edge, most = profile[: top + 1], profile[top : top + 4].max()
    least, most = (_covered(edge, ink, float(ground)) for ground in (profile[top], most))
    part = (profile[top] - edge) / (profile[top] - ink)
    if most - least > _MAX_DOUBT or ((part > 0.1) & (part < 0.9)).sum() > _MAX_BLUR:
        return None
    return (least + most) / 2


def _goes_on(plane: np.ndarray, box: Box, limit: float) -> bool:
    """Whether the line shows again beyond an end, where light ground or a division has cut it."""
    x, y, w, h = box
    dark = plane[max(y - 2, 0) : y + h + 2] <= limit
    line = dark[2:-2].all(axis=0) & ~dark[0] & ~dark[-1]
    # An end that JPEG has blurred goes on for two.
    return bool(
        max(line[max(x - 14, 0) : max(x - 2, 0)].sum(), line[x + w + 2 : x + w + 14].sum()) > 5
    )


def _covered(edge: np.ndarray, ink: float, ground: float) -> float:
    """How many pixels of a profile from ink to its ground are covered, in parts."""
    part = np.clip((ground - edge) / (ground - ink), 0, 1)
    full = np.flatnonzero(part >= 0.9)
    if not full.size:
        return 0.0
    return float(full[-1] + 1 + part[full[-1] + 1 :].sum())


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
