"""The length of a fibre along its centreline, with branches, crossings and loops."""

import functools
import math
from typing import NamedTuple

import cv2
import numpy as np

from microplastics.measurement.median import median
from microplastics.measurement.skeleton import (
    Arm,
    Dart,
    Skeleton,
    pair_straight,
    skeletonise,
)

# Half the smoothing window in widths of the fibre: as long are the waves of its skeleton.
_WINDOW_WIDTHS = 1.0
_SMALLEST_WINDOW, _LARGEST_WINDOW = 4, 14
_RAY_STEP, _SIDE_STEP = 0.1, 0.25  # px
_FEWEST_POINTS = 12  # of the centreline that tell how it goes on at a tip
_ERODED = 20.0  # px that thinning may take off the end of a slanting line 2 px wide
_RAY_GAP = 0.6  # px outside of the mask that a ray steps over: the notches of a line 1 px wide
_ROWS = 8192  # points of a line at a time
_HALF_LEVEL = 0.5 - 1e-6
_LARGEST_SHIFT = 1.5  # px that the skeleton is off the middle
_SEARCH_STEPS = 20_000  # arms tried for the longest path; simple masks need a dozen


class Centerline(NamedTuple):
    """The centreline of one connected mask, in px.

    Attributes:
        length: of the longest path, from tip to tip, or around a ring.
        total_length: of all arms.
        branches: nodes where three arms meet.
        crossings: nodes where four or more arms meet.
        loops: independent closed ways along the centreline.
        radius: largest distance of a pixel's centre to the outline.
    """

    length: float
    total_length: float
    branches: int
    crossings: int
    loops: int
    radius: float


def measure_centerline(mask: np.ndarray) -> Centerline:
    """Measure the centreline of one connected mask.

    The skeleton's longest path uses no arm twice; at a crossing it goes straight on, at a branch
    to where it gets longest. The path is cut back at both tips by the local radius, smoothed by
    a local quadratic fit (Savitzky and Golay 1964, doi:10.1021/ac60214a047), which unlike a mean
    does not shorten bends, and extended along its direction to the outline.

    Args:
        mask: (h, w) bool, one 8-connected part with a border of at least one empty pixel.
    """
    skeleton = skeletonise(mask)
    meeting = skeleton.darts()
    degrees = [len(darts) for darts in meeting.values()]
    rings = sum(arm.closed for arm in skeleton.arms.values())
    # Arms less nodes plus parts: the mask is connected, and a ring is a part of its own.
    nodes = len([degree for degree in degrees if degree])
    loops = rings + (len(skeleton.arms) - rings - nodes + 1 if nodes else 0)
    trail = _longest_trail(skeleton, meeting)
    length = _trail_length(skeleton, meeting, trail, mask)
    used = {number for number, _ in trail}
    rest = sum(arm.length for number, arm in skeleton.arms.items() if number not in used)
    return Centerline(
        length=length,
        total_length=length + rest,
        branches=degrees.count(3),
        crossings=sum(degree > 3 for degree in degrees),
        loops=loops,
        radius=float(skeleton.radii.max()),
    )


def _longest_trail(skeleton: Skeleton, meeting: dict[int, list[Dart]]) -> list[Dart]:
    """The longest way along the arms, each named by the end at which it is entered.

    Searches all ways; of a mask so ragged that they are too many, the longest found by then.
    """
    onward: dict[Dart, list[Dart]] = {}
    for darts in meeting.values():
        if len(darts) > 3:
            for one, other in pair_straight(skeleton, darts):
                onward[one], onward[other] = [other], [one]
        else:
            for dart in darts:
                onward[dart] = [other for other in darts if other != dart]
    lengths = {number: arm.length for number, arm in skeleton.arms.items()}
    tips = [darts[0] for darts in meeting.values() if len(darts) == 1]
    starts = tips or [(number, end) for number in skeleton.arms for end in (0, 1)]
    best: tuple[float, list[Dart]] = (-1.0, [])
    budget = _SEARCH_STEPS
    for start in sorted(starts, key=lambda dart: -lengths[dart[0]]):
        stack = [(start, 0.0, ())]
        while stack and budget > 0:
            budget -= 1
            dart, length, before = stack.pop()
            trail = (*before, dart)
            length += lengths[dart[0]]
            if length > best[0] + 1e-9:
                best = length, list(trail)
            used = {number for number, _ in trail}
            following = [d for d in onward.get((dart[0], 1 - dart[1]), ()) if d[0] not in used]
            # The longest last: it is tried first.
            following.sort(key=lambda d: lengths[d[0]])
            stack.extend((d, length, trail) for d in following)
    return best[1]


def _trail_length(
    skeleton: Skeleton, meeting: dict[int, list[Dart]], trail: list[Dart], mask: np.ndarray
) -> float:
    arms = [skeleton.arms[number] for number, _ in trail]
    radius = _usual_radius(skeleton, arms)
    half = round(min(max(_WINDOW_WIDTHS * 2 * radius, _SMALLEST_WINDOW), _LARGEST_WINDOW))
    if len(arms) == 1 and arms[0].closed:
        return _closed_length(arms[0].points[:-1].astype(float), half, radius, mask)
    first = arms[0].nodes[trail[0][1]]
    last = arms[-1].nodes[1 - trail[-1][1]]
    path = _path(skeleton, meeting, trail)
    if first == last and len(meeting[first]) > 3:
        ends = {trail[0], (trail[-1][0], 1 - trail[-1][1])}
        if any(ends == {*pair} for pair in pair_straight(skeleton, meeting[first])):
            return _closed_length(path, half, radius, mask)
    tips = len(meeting[first]) == 1, len(meeting[last]) == 1
    return _open_length(path, tips, skeleton.radii, half, mask)


def _usual_radius(skeleton: Skeleton, arms: list[Arm]) -> float:
    points = np.concatenate([arm.points for arm in arms])
    return median(skeleton.radii[points[:, 1], points[:, 0]])


def _path(skeleton: Skeleton, meeting: dict[int, list[Dart]], trail: list[Dart]) -> np.ndarray:
    """Points of a trail about 1 px apart; arms bend near a crossing and are bridged there."""
    pieces = []
    for place, (number, end) in enumerate(trail):
        arm = skeleton.arms[number]
        points = arm.points if end == 0 else arm.points[::-1]
        ends = [0, 0]
        for side, dart in ((0, (number, end)), (1, (number, 1 - end))):
            inner = place > 0 if side == 0 else place < len(trail) - 1
            if inner and len(meeting[arm.nodes[dart[1]]]) > 3:
                ends[side] = math.ceil(skeleton.radius(dart))
        if len(points) - sum(ends) >= 2:
            points = points[ends[0] : len(points) - ends[1]]
        pieces.append(points.astype(float))
    joined = [pieces[0]]
    for piece in pieces[1:]:
        start, stop = joined[-1][-1], piece[0]
        count = math.ceil(float(np.hypot(*(stop - start))))
        if count == 0:
            piece = piece[1:]
        elif count > 1:
            joined.append(start + np.outer(np.arange(1, count) / count, stop - start))
        joined.append(piece)
    return np.concatenate([piece for piece in joined if len(piece)])


def _closed_length(points: np.ndarray, half: int, radius: float, mask: np.ndarray) -> float:
    """Length of a ring given by points of which the first is not repeated."""
    points = _smooth(points, half, closed=True)
    points = _smooth(_recenter(points, radius, mask, closed=True), _SMALLEST_WINDOW, closed=True)
    return float(np.hypot(*np.diff(points, axis=0, append=points[:1]).T).sum())


def _open_length(
    path: np.ndarray, tips: tuple[bool, bool], radii: np.ndarray, half: int, mask: np.ndarray
) -> float:
    """Length of an open path, up to the outline at each end that is a tip."""
    if len(path) < 2:
        return 0.0
    along = np.concatenate([[0.0], np.cumsum(_steps(path))])
    local = radii[path[:, 1].round().astype(int), path[:, 0].round().astype(int)]
    start, stop = 0, len(path) - 1
    if tips[0]:
        start = int(np.argmax(along >= local))
    if tips[1]:
        stop = len(path) - 1 - int(np.argmax((along[-1] - along >= local)[::-1]))
    if stop - start < 2:  # as wide as it is long
        return 0.0
    line = _smooth(path[start : stop + 1], half)
    line = _smooth(_recenter(line, median(local), mask), _SMALLEST_WINDOW)
    length = float(_steps(line).sum())
    # Half of a short line at most: one that turns far is no parabola.
    count = min(max(2 * half, _FEWEST_POINTS), max(len(line) // 2, 4))
    if tips[0]:
        length += _to_outline(line, count, float(local[start]), path[0], mask)
    if tips[1]:
        length += _to_outline(line[::-1], count, float(local[stop]), path[-1], mask)
    return length


def _steps(line: np.ndarray) -> np.ndarray:
    """Distances of each of (N, 2) points to the next one, (N - 1,)."""
    steps = line[1:] - line[:-1]
    return np.hypot(steps[:, 0], steps[:, 1])


def _smooth(line: np.ndarray, half: int, closed: bool = False) -> np.ndarray:
    """Fit a parabola to each point and ``half`` points on either side, and take its value."""
    half = min(half, (len(line) - 1) // 2)
    if half < 2:
        return line
    fit = _parabola_fit(half)
    if closed:
        line = np.concatenate([line[-half:], line, line[:half]])
    inner = np.stack([np.convolve(values, fit[half], "valid") for values in line.T], axis=1)
    if closed:
        return inner
    window = 2 * half + 1
    return np.concatenate([fit[:half] @ line[:window], inner, fit[half + 1 :] @ line[-window:]])


@functools.lru_cache
def _parabola_fit(half: int) -> np.ndarray:
    """Matrix that turns 2 half + 1 values into those of the parabola fitted to them."""
    powers = np.vander(np.linspace(-1, 1, 2 * half + 1), 3)
    return powers @ np.linalg.pinv(powers)


def _recenter(
    line: np.ndarray, radius: float, mask: np.ndarray, closed: bool = False
) -> np.ndarray:
    """Move each point of a smooth line to the middle between the outlines on its two sides.

    The skeleton is an integer approximation, and smoothing flattens sharp bends. Where an
    outline is too far, as at a crossing, a point stays.

    Args:
        line: (N, 2) points in px, N at least 2.
        radius: usual distance of the line to the outline in px.
        mask: (h, w) bool.
    """
    if closed:
        tangents = np.roll(line, -1, axis=0) - np.roll(line, 1, axis=0)
    else:
        tangents = np.gradient(line, axis=0)
    tangents /= np.maximum(np.hypot(*tangents.T), 1e-9)[:, None]
    normals = np.stack([-tangents[:, 1], tangents[:, 0]], axis=1)
    distances = np.arange(0, 2 * radius + 2, _SIDE_STEP)
    x, y = line.T[:, :, None]
    away_x, away_y = normals[:, 0, None] * distances, normals[:, 1, None] * distances
    sides = []
    for points_x, points_y in ((x + away_x, y + away_y), (x - away_x, y - away_y)):
        level = _level(mask, points_x, points_y)
        first = (level < _HALF_LEVEL).argmax(axis=1)  # 0 where all or none is inside
        rows = np.flatnonzero(first > 0)
        crossed = first[rows]
        before, after = level[rows, crossed - 1], level[rows, crossed]
        side = np.full(len(line), np.nan)
        share = (before - _HALF_LEVEL) / (before - after)
        side[rows] = (crossed - 1 + share) * _SIDE_STEP
        sides.append(side)
    shifts = (sides[0] - sides[1]) / 2
    shifts = np.where(np.isfinite(shifts), shifts.clip(-_LARGEST_SHIFT, _LARGEST_SHIFT), 0)
    return line + shifts[:, None] * normals


def _level(mask: np.ndarray, points_x: np.ndarray, points_y: np.ndarray) -> np.ndarray:
    """The mask, 0 to 1, at (N, M) points between its pixels, linearly; (N, M)."""
    levels = []
    for start in range(0, len(points_x), _ROWS):  # cv2.remap takes no more than 32766 rows
        x, y = points_x[start : start + _ROWS], points_y[start : start + _ROWS]
        left, top = max(int(x.min()), 0), max(int(y.min()), 0)
        # Nor more of an image: this part of it holds the points.
        window = mask[top : max(int(y.max()) + 2, top + 1), left : max(int(x.max()) + 2, left + 1)]
        level = window.astype(np.float32)
        x, y = (x - left).astype(np.float32), (y - top).astype(np.float32)
        levels.append(cv2.remap(level, x, y, cv2.INTER_LINEAR))
    return levels[0] if len(levels) == 1 else np.concatenate(levels)


def _to_outline(
    line: np.ndarray, count: int, radius: float, end: np.ndarray, mask: np.ndarray
) -> float:
    """Distance from the first point of a line to the outline before it, as the line bends.

    Args:
        line: (N, 2) points that lead away from the tip, N at least 3.
        count: of the points that tell the direction and the bend.
        radius: of the mask at the first point in px.
        end: last pixel of the skeleton towards the tip; the outline lies behind it.
        mask: (h, w) bool.
    """
    place, direction, bend = _osculating(line[: count + 1], 1 / max(2 * radius, 2.0))
    distances = np.arange(0, 3 * radius + _ERODED, _RAY_STEP)
    # A circle of curvature k turns by k·s over the way s: its chord is sin(k·s / 2) / (k / 2).
    half_turns = distances * bend / 2
    chords = distances * np.sinc(half_turns / np.pi)
    cosines, sines = np.cos(half_turns), np.sin(half_turns)
    # Pixels make a tip ragged: of three rays side by side the middle one counts.
    aside = np.array([-1, 0, 1])[:, None]
    points = [
        start + chords * (cosines * along + sines * across) + aside * across * radius / 3
        for start, along, across in zip(
            place, direction, (-direction[1], direction[0]), strict=True
        )
    ]
    reach = sorted(_inside(distances, level) for level in _level(mask, *points))[1]
    return max(reach, float((end - place) @ direction) + 0.5)


def _inside(distances: np.ndarray, level: np.ndarray) -> float:
    """How far along a ray the mask goes on."""
    inside = distances[level >= _HALF_LEVEL]
    if not len(inside) or inside[0] > _RAY_GAP:
        return 0.0
    gaps = np.flatnonzero(inside[1:] - inside[:-1] > _RAY_GAP)
    return float(inside[gaps[0]] if len(gaps) else inside[-1]) + _RAY_STEP / 2


def _osculating(line: np.ndarray, sharpest: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Place, direction and curvature of a line before its first point, by a quadratic fit.

    Args:
        line: (N, 2) points in px, N at least 3.
        sharpest: largest curvature that is believed, in 1/px.
    """
    along = np.concatenate([[0.0], np.cumsum(_steps(line))])
    scale = max(float(along[-1]), 1e-9)  # keeps the normal equations well conditioned
    share = along / scale
    powers = np.stack([np.ones(len(share)), share, share * share], axis=1)
    place, speed, acceleration = np.linalg.solve(powers.T @ powers, powers.T @ line)
    speed, acceleration = speed / scale, acceleration / scale**2
    norm = max(float(np.hypot(*speed)), 1e-9)
    curvature = float(speed[0] * acceleration[1] - speed[1] * acceleration[0]) * 2 / norm**3
    # Backwards the line turns the other way.
    return place, -speed / norm, -min(max(curvature, -sharpest), sharpest)
