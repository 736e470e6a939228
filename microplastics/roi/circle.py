"""Detection of the round membrane or its deposit.

Gradients of the shrunk photograph vote for centres (Hough transform of circles), radii are read
from the picture unrolled about each, and both are refined by least squares on the edge's place in
each direction. Pictures without one certain circle are refused. A search by scikit-image's
``hough_circle`` gave one wrong circle in 40 more and took 2.6 times as long (docs/region.md).
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import cv2
import numpy as np

# Longer side of the picture that is searched, and of the one in which edges vote, in px.
MAX_SIDE, _VOTING_SIDE = 1024, 256
_SECTORS, _ANGLES = 72, 8  # directions, and samples in each
# Least standard deviation of slopes, in grey levels per px: of one sector, and of faint rings.
_NOISE_FLOOR, _FAINT_FLOOR = 0.25, 0.02
_VOTING_FRACTION = 0.12  # of the px, those with the steepest slope
_CENTERS, _PEAKS = 16, 4  # candidates, and radii of each
_RADII = (0.2, 0.75)  # radius as a fraction of the shorter side
# Fractions: of the circle that the image shows, and of that part which has an edge.
_LEAST_VISIBLE, _LEAST_SUPPORT = 0.4, 0.75
_EDGE = 4.0  # height of an edge in standard deviations beside it
# Least radius of a deposit as a fraction of the circle around it.
_LEAST_INNER = 0.6
# A faint ring's height in standard deviations of other radii, and the fraction of sectors that
# agree: from the first pair on there may be one, from the second on there is.
_DOUBTFUL, _CERTAIN = (4.5, 0.6), (8.0, 0.8)
_FAINT_BLURS = (1.2, 2.0, 3.5, 6.0)
# How far off a faint ring's centre may lie, in radii, and how clear a line must be beside a step.
_FAINT_SHIFT, _LINE_FOR_STEP = 0.03, 0.7
# Fraction of the radius at the rim that is not searched; a line's largest bend the other way.
_FAINT_GAP, _LINE_RIVAL = 0.035, 0.87
# Width of a line, in px, below which its middle is taken and not its inner edge.
_STRONG_LINE, _LINE_GUESS = 6.0, 3.5
# Median grey level of a membrane below which a print of a few per cent cannot be seen.
_DARKEST = 40
_TOO_FAINT = "shows a circle in the membrane that is too faint to be certain"


class NoCircleError(Exception):
    """No certain circle; the message gives the reason and follows the image's name."""


@dataclass(frozen=True)
class Circle:
    """A circle in px of a picture, whose first pixel's centre is (0.5, 0.5)."""

    x: float
    y: float
    radius: float
    support: float = 0.0  # fraction of its visible sectors that show the edge
    strength: float = 0.0  # median of the edge's height there, in standard deviations beside it
    brighter: bool = True  # inside


class _Ring(NamedTuple):
    """The clearest ring in the mean over all directions, by one filter."""

    x: float
    y: float
    radius: float
    sign: int
    blur: float
    ratio: float  # of the mean's height to the means of other radii
    agreement: float  # fraction of sectors that rise in its direction
    is_line: bool

    def is_clear(self, least: tuple[float, float]) -> bool:
        return self.ratio >= least[0] and self.agreement >= least[1]


def find_circle(image: np.ndarray) -> Circle:
    """Find the innermost circle that bounds the membrane or its deposit.

    Args:
        image: (h, w, 3) uint8 BGR, the whole photograph shrunk to ``MAX_SIDE`` px or less.

    Raises:
        NoCircleError: no circle is certain.
    """
    lab = cv2.cvtColor(image, cv2.COLOR_BGR2LAB).astype(np.float32)
    for channel in cv2.split(lab):
        strong = _strong_circles(channel)
        if strong:
            outer = _innermost(strong)
            inner = _faint_inner(channel, outer)
            if inner is None and len(strong) == 1 and _median_inside(image, outer) < _DARKEST:
                raise NoCircleError("shows a membrane too dark for the deposit's rim to be seen")
            circle = inner or _middle_of_line(channel, outer)
            return Circle(float(circle.x), float(circle.y), float(circle.radius))
    raise NoCircleError("shows no circle whose edge is certain")


def _strong_circles(channel: np.ndarray) -> list[Circle]:
    """All circles with an edge around them, the strongest first."""
    factor = max(1.0, max(channel.shape) / _VOTING_SIDE)
    size = tuple(max(1, round(side / factor)) for side in channel.shape[::-1])
    small = cv2.resize(channel, size, interpolation=cv2.INTER_AREA)
    factor = channel.shape[1] / size[0]
    found: list[Circle] = []
    for center in _centers(small):
        for guess in _radii(small, *center):
            rough = _refined(small, guess, (5.0, 3.0))
            if rough is None or rough.support < _LEAST_SUPPORT - 0.2:
                continue
            x, y, radius = factor * np.array([rough.x, rough.y, rough.radius])
            large = replace(rough, x=x, y=y, radius=radius)
            circle = _refined(channel, large, (1.2 * factor + 1, 3.0, 2.5))
            if circle is not None and circle.support >= _LEAST_SUPPORT:
                found.append(circle)
    short = min(channel.shape)
    unique: list[Circle] = []
    for circle in sorted(found, key=lambda c: -c.support * c.strength):
        fits = _RADII[0] <= circle.radius / short <= _RADII[1]
        if fits and not any(_is_same(circle, other) for other in unique):
            unique.append(circle)
    return unique


def _centers(image: np.ndarray) -> list[tuple[float, float]]:
    """Places that many edges face, some of them outside of the image."""
    smooth = cv2.GaussianBlur(image, (0, 0), 1.2)
    down, across = (cv2.Scharr(smooth, cv2.CV_32F, *order) / 32 for order in ((0, 1), (1, 0)))
    steep = np.hypot(across, down)
    limit = max(float(np.quantile(steep, 1 - _VOTING_FRACTION)), 0.2)
    y, x = np.nonzero(steep >= limit)
    slope = steep[y, x]
    # A few very strong edges, such as black fibres, must not outvote all others.
    weight = np.minimum(slope, 3 * limit)
    unit = np.stack([across[y, x], down[y, x]]) / np.maximum(slope, 1e-6)
    height, width = image.shape
    low, high = (fraction * min(image.shape) for fraction in _RADII)
    margin = math.ceil(0.32 * high)
    votes = np.zeros((height + 2 * margin, width + 2 * margin))
    for radius in np.arange(low, high + 1):
        for sign in (-1, 1):
            at = np.rint(np.stack([x, y]) + sign * radius * unit).astype(int) + margin
            inside = (at >= 0).all(axis=0) & (at[0] < votes.shape[1]) & (at[1] < votes.shape[0])
            flat = at[1, inside] * votes.shape[1] + at[0, inside]
            votes += np.bincount(flat, weight[inside], votes.size).reshape(votes.shape)
    votes = cv2.GaussianBlur(votes.astype(np.float32), (0, 0), 2.0)
    peaks = votes == cv2.dilate(votes, np.ones((9, 9), np.uint8))
    rows, columns = np.nonzero(peaks)
    best = np.argsort(-votes[rows, columns])[:_CENTERS]
    return [(columns[i] - margin + 0.5, rows[i] - margin + 0.5) for i in best]


def _radii(image: np.ndarray, x: float, y: float) -> list[Circle]:
    """Circles about a centre on which many sectors have an edge of one direction."""
    short = min(image.shape)
    radii = np.arange(_RADII[0] * short - 3, _RADII[1] * short + 4)
    rise, visible = _unrolled_slope(image, x, y, radii, 1.2)
    noise = _usual_slope(rise, visible)
    found = []
    for sign in (-1, 1):
        height = np.clip(sign * rise / noise[:, None], 0, 6)
        height = cv2.dilate(height.astype(np.float32), np.ones((1, 5), np.uint8))
        count = visible.sum(axis=0)
        mean = (height * visible).sum(axis=0) / np.maximum(count, 1)
        mean[count < (_LEAST_VISIBLE - 0.05) * _SECTORS] = 0
        mean = cv2.GaussianBlur(mean[None].astype(np.float32), (0, 0), 1.5)[0]
        peaks = np.flatnonzero((mean[1:-1] >= mean[:-2]) & (mean[1:-1] > mean[2:])) + 1
        for peak in peaks[np.argsort(-mean[peaks])][:_PEAKS]:
            found.append(Circle(x, y, float(radii[peak]), brighter=sign < 0))
    return found


def _refined(image: np.ndarray, guess: Circle, windows: tuple[float, ...]) -> Circle | None:
    """Fit a circle to the edge's place in each sector, in ever narrower windows, and rate it."""
    circle: Circle | None = guess
    for window in windows:
        circle = _fitted(image, circle, window)
        if circle is None:
            return None
    return _rated(image, circle)


def _rated(image: np.ndarray, circle: Circle) -> Circle | None:
    """The circle with its support and strength; None if too little of it is in the image."""
    near = max(1.5, 0.006 * circle.radius)
    beside = max(12.0, 0.12 * circle.radius)
    radii = circle.radius + np.arange(-math.ceil(beside), math.ceil(beside) + 1)
    radii = radii[radii > 2]
    rise, visible = _unrolled_slope(image, circle.x, circle.y, radii, 1.2)
    at = np.abs(radii - circle.radius) <= near
    shown = visible[:, at].all(axis=1)
    if shown.mean() < _LEAST_VISIBLE:
        return None
    apart = np.abs(radii - circle.radius) > near + 4
    noise = _usual_slope(rise[:, apart], visible[:, apart])
    heights = (rise[:, at] * (-1 if circle.brighter else 1)).max(axis=1)[shown] / noise[shown]
    support = float((heights >= _EDGE).mean())
    return replace(circle, support=support, strength=float(np.median(heights)))


def _median_inside(image: np.ndarray, circle: Circle) -> float:
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    y, x = np.ogrid[: grey.shape[0], : grey.shape[1]]
    return float(np.median(grey[np.hypot(x - circle.x, y - circle.y) < 0.9 * circle.radius]))


def _innermost(strong: list[Circle]) -> Circle:
    """The innermost of circles that lie one in another."""
    inner, *others = sorted(strong, key=lambda circle: circle.radius)
    for outer in others:
        apart = math.hypot(inner.x - outer.x, inner.y - outer.y)
        if apart + inner.radius > outer.radius * 1.01:
            raise NoCircleError("shows several circles side by side or across each other")
        if inner.radius < _LEAST_INNER * outer.radius:
            raise NoCircleError("shows a small circle in a large one, and either may be meant")
    return inner


def _is_same(one: Circle, other: Circle) -> bool:
    if one.brighter != other.brighter:
        return False
    apart = math.hypot(one.x - other.x, one.y - other.y) + abs(one.radius - other.radius)
    return apart < max(3.0, 0.012 * other.radius)


def _faint_inner(channel: np.ndarray, outer: Circle) -> Circle | None:
    """The line that a funnel pressed about the deposit, which only the mean over sectors shows."""
    ring = _certain_line(channel, outer)
    if ring is None:
        return None
    circle: Circle | None = Circle(ring.x, ring.y, ring.radius, brighter=ring.sign < 0)
    for window in (6.0, 4.0):
        circle = _fitted(channel, circle, window, ring.blur, order=2, around=2)
        if circle is None:
            raise NoCircleError(_TOO_FAINT)
    # The fit may have been drawn to the rim itself.
    if circle.radius > outer.radius * (1 - _FAINT_GAP) - 1 or abs(circle.radius - ring.radius) > 4:
        raise NoCircleError(_TOO_FAINT)
    return circle


def _certain_line(channel: np.ndarray, outer: Circle) -> _Ring | None:
    """A certain line within the membrane, whose centre may lie beside the membrane's."""
    rings = _faint_rings(channel, outer)
    line, doubtful = _clear_line(rings), any(ring.is_clear(_DOUBTFUL) for ring in rings)
    if line is None:
        reach = _FAINT_SHIFT * outer.radius
        steps = np.arange(-reach, reach + 1, 3.0)
        steps -= steps.mean()
        moved = _faint_rings(channel, outer, (2.0, 3.5), list(itertools.product(steps, steps)))
        line = _clear_line(moved)
        doubtful |= any(ring.is_clear(_CERTAIN) for ring in moved)
    if line is None and doubtful:
        raise NoCircleError(_TOO_FAINT)
    return line


def _clear_line(rings: list[_Ring]) -> _Ring | None:
    """The clearest line, if it is certain and no step is much clearer."""
    least = _LINE_FOR_STEP * max((ring.ratio for ring in rings), default=0)
    lines = [ring for ring in rings if ring.is_line and ring.is_clear(_CERTAIN)]
    line = max(lines, key=lambda ring: ring.ratio, default=None)
    return line if line is not None and line.ratio >= least else None


def _faint_rings(
    image: np.ndarray,
    outer: Circle,
    blurs: tuple[float, ...] = _FAINT_BLURS,
    moves: Sequence[tuple[float, float]] = ((0.0, 0.0),),
) -> list[_Ring]:
    """The clearest ring by each filter, about each of the centres that ``moves`` lead to."""
    angle = _sector_angles()
    shifts = np.array(moves) @ np.stack([np.cos(angle), np.sin(angle)])
    margin = math.ceil(np.abs(shifts).max())
    rows = np.arange(_SECTORS)[:, None]
    rings = []
    for blur, order in itertools.product(blurs, (1, 2)):
        limit = outer.radius - max(_FAINT_GAP * outer.radius, 3 * blur + 4)
        radii = np.arange(_LEAST_INNER * outer.radius - margin, limit + margin)
        count = len(radii) - 2 * margin
        if count < 20:
            continue
        slope, visible = _unrolled_slope(image, outer.x, outer.y, radii, blur, order)
        visible &= radii < limit
        heights = slope / _usual_slope(slope, visible, _FAINT_FLOOR)[:, None]
        # For each move, sector and place.
        places = np.rint(shifts).astype(int)[:, :, None] + margin + np.arange(count)
        weight = visible[rows, places]
        moved = np.clip(heights, -4, 4)[rows, places] * weight
        shown = weight.sum(axis=1)
        mean = moved.sum(axis=1) / np.maximum(shown, 1)
        mean[shown < _LEAST_VISIBLE * _SECTORS] = 0
        usual = 1.4826 * np.median(np.abs(mean), axis=1, keepdims=True)
        ratio = mean / np.maximum(usual, 0.05)
        move, place = np.unravel_index(np.abs(ratio).argmax(), ratio.shape)
        height, sign = abs(mean[move, place]), 1 if mean[move, place] > 0 else -1
        agreement = (sign * moved[move, :, place] > 0.5).sum() / max(shown[move, place], 1)
        radius, reach = radii[place + margin], math.ceil(2.5 * blur)
        # A step bends as much one way before it as the other way behind it; a line does not.
        beside = -sign * mean[move, max(place - reach, 0) : place + reach + 1]
        is_line = order == 2 and radius + reach < limit and beside.max() < _LINE_RIVAL * height
        x, y = outer.x + moves[move][0], outer.y + moves[move][1]
        clear = abs(ratio[move, place]), agreement
        rings.append(_Ring(x, y, radius, sign, blur, *clear, is_line))
    return rings


def _middle_of_line(channel: np.ndarray, inner: Circle) -> Circle:
    """The middle of a narrow line if the circle is its inner edge, else the circle."""
    beyond = replace(inner, radius=inner.radius + _LINE_GUESS, brighter=not inner.brighter)
    outer = _refined(channel, beyond, (4.0, 2.5))
    if outer is None or outer.support < _LEAST_SUPPORT:
        return inner
    width = outer.radius - inner.radius
    if not 0 < width < _STRONG_LINE or math.hypot(inner.x - outer.x, inner.y - outer.y) > 2:
        return inner
    x, y = (inner.x + outer.x) / 2, (inner.y + outer.y) / 2
    return replace(inner, x=x, y=y, radius=inner.radius + width / 2)


def _fitted(
    image: np.ndarray,
    circle: Circle,
    window: float,
    blur: float = 1.2,
    order: int = 1,
    around: int = 0,
) -> Circle | None:
    """Fit a circle to the highest place in each sector by least squares, outliers trimmed.

    A sector's height is the mean with ``around`` others on either side.
    """
    half = math.ceil(window) + 1
    radii = circle.radius + np.arange(-half, half + 1)
    if radii[0] < 4:
        return None
    slope, visible = _unrolled_slope(image, circle.x, circle.y, radii, blur, order)
    shown = visible.all(axis=1)
    if shown.sum() < 0.3 * _SECTORS:
        return None
    height = slope * (-1 if circle.brighter else 1)
    height = np.mean([np.roll(height, n, axis=0) for n in range(-around, around + 1)], axis=0)
    peak = height[:, 1:-1].argmax(axis=1) + 1
    rows = np.arange(len(height))
    before, top, after = (height[rows, peak + step] for step in (-1, 0, 1))
    bend = np.minimum(before - 2 * top + after, -1e-6)
    place = peak - half + np.clip((before - after) / (2 * bend), -0.5, 0.5)
    angle = _sector_angles()
    design = np.column_stack([np.cos(angle), np.sin(angle), np.ones_like(angle)])
    # A sector that only shows the rise towards an edge beyond its window is left out.
    kept = shown & (top > 0) & (np.abs(place) < window)
    for _ in range(6):
        if kept.sum() < 0.25 * _SECTORS:
            return None
        solution, *_ = np.linalg.lstsq(design[kept], place[kept], rcond=None)
        rest = np.abs(place - design @ solution)
        limit = max(0.3, 2.5 * 1.4826 * float(np.median(rest[kept])))
        kept = shown & (top > 0) & (rest < limit)
    dx, dy, off = solution
    return replace(circle, x=circle.x + dx, y=circle.y + dy, radius=circle.radius + off)


def _sector_angles() -> np.ndarray:
    """Give the directions of the sectors' middles."""
    return (np.arange(_SECTORS) + 0.5) * (2 * math.pi / _SECTORS)


def _unrolled(
    image: np.ndarray, x: float, y: float, radii: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Sample an image around a centre, and average over sectors."""
    angle = (np.arange(_SECTORS * _ANGLES) + 0.5) * (2 * math.pi / (_SECTORS * _ANGLES))
    across = (x - 0.5 + np.cos(angle)[:, None] * radii).astype(np.float32)
    down = (y - 0.5 + np.sin(angle)[:, None] * radii).astype(np.float32)
    inside = (across >= 0) & (down >= 0)
    inside &= (across <= image.shape[1] - 1) & (down <= image.shape[0] - 1)
    samples = cv2.remap(image, across, down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    shape = (_SECTORS, _ANGLES, len(radii))
    return samples.reshape(shape).mean(axis=1), inside.reshape(shape).all(axis=1)


def _unrolled_slope(
    image: np.ndarray, x: float, y: float, radii: np.ndarray, blur: float, order: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Differentiate an image along the radius, smoothed by a Gaussian."""
    half = math.ceil(3 * blur)
    steps = np.arange(-half, half + 1)
    bell = np.exp(-0.5 * (steps / blur) ** 2)
    bell /= bell.sum()
    kernel = bell * (steps / blur**2 if order == 1 else steps**2 / blur**4 - 1 / blur**2)
    kernel -= kernel.mean()
    wide = np.concatenate([radii[0] + steps[:half], radii, radii[-1] + steps[half + 1 :]])
    means, inside = _unrolled(image, x, y, wide)
    slope = cv2.filter2D(means, cv2.CV_32F, kernel[None].astype(np.float32))
    visible = cv2.erode(inside.astype(np.uint8), np.ones((1, 2 * half + 1), np.uint8))
    keep = slice(half, half + len(radii))
    return slope[:, keep], visible[:, keep].astype(bool)


def _usual_slope(slope: np.ndarray, visible: np.ndarray, floor: float = _NOISE_FLOOR) -> np.ndarray:
    """Estimate the standard deviation of each sector's slopes, by their median."""
    masked = np.ma.masked_array(slope, ~visible)
    spread = np.ma.median(np.abs(masked), axis=1).filled(0) * 1.4826
    return np.maximum(spread, floor)
