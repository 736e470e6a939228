"""Finding the scale bar that a microscope's software has burnt into a photograph.

A bar is told from fibres, printed grids and the filter's rim by being drawn: one colour, straight
to a fraction of a pixel, with upright ends, mostly with a line of text at it. Where a picture
shows none or several, that is said: a wrong scale would falsify every size in the table.
"""

import dataclasses
from collections.abc import Callable, Iterator

import cv2
import numpy as np

from microplastics.errors import UserError
from microplastics.measurement.scale_bar_plate import find_plate
from microplastics.measurement.scale_bar_shape import Stroke, find_strokes
from microplastics.measurement.scale_bar_text import find_text

Box = tuple[int, int, int, int]
Read = Callable[[int, int, int, int], np.ndarray]

# Larger pictures are searched along their borders alone.
_WHOLE_PIXELS = 16_000_000
_BAND = 1024  # px, depth of the bands along the upper and lower border of a larger one
_SIDE = 2048  # px, width of the bands along its sides
_OVERLAP = 256
_MARGIN = 0.3  # share of the height or width from a border in which bars lie


@dataclasses.dataclass(frozen=True)
class ScaleBar:
    """A burnt-in scale bar.

    Attributes:
        px: length from outer end to outer end in px, sub-pixel where the ends are anti-aliased.
        box: (x, y, width, height) in px around the bar with its ticks and its outline.
        text_box: the same around its text, or None where it has none.
        plate_box: the same around the even box behind both, or None where there is none.
        polarity: ``"dark"`` or ``"light"``: the ink against its ground.
    """

    px: float
    box: Box
    text_box: Box | None
    plate_box: Box | None
    polarity: str

    @property
    def boxes(self) -> list[Box]:
        """All boxes that hold no particle."""
        return [box for box in (self.box, self.text_box, self.plate_box) if box is not None]


@dataclasses.dataclass(frozen=True)
class _Candidate:
    stroke: Stroke
    text: Box | None
    plate: Box | None
    polarity: str
    grey: bool
    x: int  # of the window in the picture
    y: int

    @property
    def rank(self) -> tuple[bool, bool, float]:
        """Better finds of one bar rank higher; JPEG keeps the detail of the grey image alone."""
        sharp = self.grey and self.stroke.contrast >= 60
        return self.text is not None, sharp, self.stroke.contrast

    @property
    def middle(self) -> float:
        """Row of the picture through the middle of the bar."""
        return self.y + (self.stroke.y0 + self.stroke.y1) / 2

    @property
    def span(self) -> tuple[float, float, int, int]:
        """x0, x1, y0, y1 of the bar in the picture."""
        s = self.stroke
        return self.x + s.x0, self.x + s.x1, self.y + s.y0, self.y + s.y1


def find_scale_bar(read: Read, width: int, height: int, name: str = "The image") -> ScaleBar:
    """Find the one scale bar of a picture.

    Args:
        read: ``read(x0, y0, x1, y1)`` gives uint8 (y1 - y0, x1 - x0, 3), BGR.
        width: of the picture, px.
        height: of the picture, px.
        name: the picture's name, for the words of the error.

    Returns:
        The bar.

    Raises:
        UserError: there is none, or there are several.
    """
    bars = find_scale_bars(read, width, height)
    if not bars:
        raise UserError(
            f"{name} shows no scale bar that can be told for certain: give its scale by "
            "--um-per-px or in a CSV with --calibration instead of --scale-bar-um."
        )
    if len(bars) > 1:
        places = " and ".join(f"{b.px:.1f} px at ({b.box[0]}, {b.box[1]})" for b in bars[:3])
        raise UserError(
            f"{name} shows {len(bars)} things that may be its scale bar ({places}): give its "
            "scale by --um-per-px or in a CSV with --calibration instead of --scale-bar-um."
        )
    return bars[0]


def find_scale_bars(read: Read, width: int, height: int) -> list[ScaleBar]:
    """Find the horizontal scale bars of a picture.

    Pictures over 16 megapixels are searched along their borders alone, one band after the other.

    Args:
        read: ``read(x0, y0, x1, y1)`` gives uint8 (y1 - y0, x1 - x0, 3), BGR.
        width: of the picture, px.
        height: of the picture, px.

    Returns:
        What may be a scale bar, from left to right: none, one, or several.
    """
    shortest = int(min(max(24, 0.04 * width), 100))
    found = []
    for x0, y0, x1, y1 in _windows(width, height):
        image = read(x0, y0, x1, y1)
        for plane, polarity, grey in _planes(image):
            for stroke in find_strokes(plane, shortest, int(0.75 * width)):
                found.append(_candidate(plane, stroke, polarity, grey, x0, y0))
    found = [c for c in found if _near_border(c, width, height)]
    bars = _without_outlines(_without_repeats(found))
    # A bar that has its text leaves no doubt; one without must be drawn all the clearer.
    bars = [c for c in bars if _is_clear(c.stroke, width, c.text is not None)]
    texts = [c.text for c in bars if c.text is not None]
    bars = [c for c in bars if not any(_inside(c, text) for text in texts if text != c.text)]
    return sorted((_bar(c, width, height) for c in bars), key=lambda bar: bar.box)


def _windows(width: int, height: int) -> Iterator[Box]:
    """Windows (x0, y0, x1, y1) that hold every place where a bar may lie."""
    if width * height <= _WHOLE_PIXELS or height <= 2 * _BAND:
        # A long and low picture is its own band.
        yield 0, 0, width, height
        return
    yield 0, 0, width, _BAND
    yield 0, height - _BAND, width, height
    side = min(_SIDE, width // 2)
    for y0 in range(_BAND - _OVERLAP, height - _BAND, _BAND - _OVERLAP):
        y1 = min(y0 + _BAND, height - _BAND + _OVERLAP)
        yield 0, y0, side, y1
        yield width - side, y0, width, y1


def _planes(image: np.ndarray) -> Iterator[tuple[np.ndarray, str, bool]]:
    """Planes in which ink is dark: of the grey image, and of the colours for coloured ink."""
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    yield grey, "dark", True
    yield 255 - grey, "light", True
    for channel in range(3):
        plane = np.ascontiguousarray(image[:, :, channel])
        yield plane, "dark", False
        yield 255 - plane, "light", False


def _candidate(
    plane: np.ndarray, stroke: Stroke, polarity: str, grey: bool, x: int, y: int
) -> _Candidate:
    box = _pixels(stroke)
    text = find_text(plane, box, stroke.ink, stroke.contrast)
    plate = find_plate(plane, box, text)
    text, plate = (b and (b[0] + x, b[1] + y, b[2], b[3]) for b in (text, plate))
    return _Candidate(stroke, text, plate, polarity, grey, x, y)


def _pixels(stroke: Stroke) -> Box:
    """(x, y, w, h) of whole pixels around a bar with its ticks."""
    x0, x1 = int(np.floor(stroke.x0 + 0.05)), int(np.ceil(stroke.x1 - 0.05))
    return x0, stroke.top, x1 - x0, stroke.bottom - stroke.top


def _near_border(candidate: _Candidate, width: int, height: int) -> bool:
    x0, x1, y0, y1 = candidate.span
    aside = min(x0, width - x1) <= 0.12 * width
    return y1 <= _MARGIN * height or y0 >= (1 - _MARGIN) * height or aside


def _without_repeats(found: list[_Candidate]) -> list[_Candidate]:
    """One find for each bar: the best of those that overlap."""
    kept: list[_Candidate] = []
    for one in sorted(found, key=lambda c: c.rank, reverse=True):
        x0, x1, y0, y1 = one.span
        for other in kept:
            u0, u1, v0, v1 = other.span
            shared = min(x1, u1) - max(x0, u0)
            if min(y1, v1) > max(y0, v0) and shared > 0.5 * min(x1 - x0, u1 - u0):
                break
        else:
            kept.append(one)
    return kept


def _without_outlines(bars: list[_Candidate]) -> list[_Candidate]:
    """Leave out the strokes that an outline or a box makes along the bar that it surrounds."""
    along = {id(c): [o for o in bars if _lies_along(o, c)] for c in bars}
    # An outline or a box shows as a contrary stroke on either side of its bar.
    held = [
        c
        for c in bars
        if any(o.middle < c.middle for o in along[id(c)])
        and any(o.middle > c.middle for o in along[id(c)])
    ]
    dropped = {id(o) for c in held for o in along[id(c)]} - {id(c) for c in held}
    for c in bars:
        if id(c) not in dropped:
            dropped |= {id(o) for o in along[id(c)] if id(o) not in dropped and _is_around(o, c)}
    return [c for c in bars if id(c) not in dropped]


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


def _is_clear(stroke: Stroke, width: int, has_text: bool) -> bool:
    """Whether a stroke is drawn clearly enough for a bar, without text all the more."""
    # A line of an outline, or the gap between two ticks, has the bar on one side.
    if abs(stroke.above - stroke.below) > 60:
        return False
    pure = stroke.ink <= 30 and stroke.spread <= 4 and stroke.contrast >= 60
    if has_text:
        long = stroke.length >= 0.08 * width and stroke.thickness >= 2
        return pure or (long and stroke.spread <= 8)
    return pure and stroke.thickness >= 2 and 0.06 * width <= stroke.length <= 0.5 * width


def _inside(candidate: _Candidate, text: Box) -> bool:
    """Whether a bar is a stroke of the letters of another."""
    x0, x1, y0, y1 = candidate.span
    x, y, w, h = text
    if x1 - x0 > 1.5 * h:
        return False
    return x - 2 <= x0 and x1 <= x + w + 2 and y - 2 <= y0 and y1 <= y + h + 2


def _bar(candidate: _Candidate, width: int, height: int) -> ScaleBar:
    x, y, w, h = _pixels(candidate.stroke)
    box = _grown((x + candidate.x, y + candidate.y, w, h), 2, width, height)
    text = candidate.text
    if text is not None:
        text = _grown(text, max(2, round(0.12 * text[3])), width, height)
    return ScaleBar(candidate.stroke.length, box, text, candidate.plate, candidate.polarity)


def _grown(box: Box, by: int, width: int, height: int) -> Box:
    """A box with what anti-aliasing, JPEG and an outline put around it."""
    x0, y0 = max(box[0] - by, 0), max(box[1] - by, 0)
    x1, y1 = min(box[0] + box[2] + by, width), min(box[1] + box[3] + by, height)
    return x0, y0, x1 - x0, y1 - y0
