"""Centrelines of fibres."""

import functools
import itertools
import math
from dataclasses import dataclass, field
from typing import NamedTuple

import cv2
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from skimage.morphology import skeletonize

# A spur reaches from the centreline to the outline, at most √2 radii away at a square end.
_SPUR_RADII = 1.5
_SPUR_SLACK = 1.0  # px of a ragged outline
# Two branches closer than this many times their radii may be one crossing at a sharp angle.
_CROSSING_RADII = 2.0
_STRAIGHT = math.cos(math.radians(50))  # largest turn of an arm that goes over a crossing
_DIRECTION_LENGTH = 8  # px of an arm that give its direction
# Mean lengths of a step, so that a chain is on average as long as the line it follows
# (Vossepoel and Smeulders 1982, doi:10.1016/0146-664X(82)90012-3).
_STRAIGHT_STEP, _DIAGONAL_STEP = 0.948, 1.340

Dart = tuple[int, int]
"""An arm's number and which of its ends: 0 the first point, 1 the last."""

# Half the smoothing window in widths of the fibre, which is the length of its skeleton's waves.
_WINDOW_WIDTHS = 1.0
_SMALLEST_WINDOW, _LARGEST_WINDOW = 4, 14
_RAY_STEP, _SIDE_STEP = 0.1, 0.25  # px
_FEWEST_POINTS = 12  # of the centreline from which it is extended at a tip
_ERODED = 20.0  # px that thinning may take off the end of a slanting line 2 px wide
_RAY_GAP = 0.6  # px outside of the mask that a ray steps over: the notches of a line 1 px wide
_ROWS = 8192  # points of a line at a time
_HALF_LEVEL = 0.5 - 1e-6
_LARGEST_SHIFT = 1.5  # px between the skeleton and the middle
# Arms tried for the longest path: simple masks need a dozen, very ragged ones have too many.
_SEARCH_STEPS = 20_000


@dataclass
class Arm:
    """A line of the skeleton between two nodes.

    Attributes:
        points: (N, 2) x and y of the pixels in order, in px of the mask.
        nodes: numbers of the nodes at the first and the last point; -1 twice for a closed ring.
        length: of the chain of pixels in px, corrected for its steps.
    """

    points: np.ndarray
    nodes: tuple[int, int]
    length: float = field(init=False)

    def __post_init__(self) -> None:
        diagonal = int(np.abs(np.diff(self.points, axis=0)).sum()) - (len(self.points) - 1)
        straight = len(self.points) - 1 - diagonal
        self.length = _STRAIGHT_STEP * straight + _DIAGONAL_STEP * diagonal

    @property
    def closed(self) -> bool:
        """Whether it is a ring without a node."""
        return self.nodes[0] < 0

    def points_from(self, end: int) -> np.ndarray:
        """Its points from either end on."""
        return self.points if end == 0 else self.points[::-1]


@dataclass
class Skeleton:
    """The arms of one connected mask.

    Attributes:
        arms: by number.
        radii: float32 (h, w), distance of each pixel's centre to the outline in px.
    """

    arms: dict[int, Arm]
    radii: np.ndarray

    def darts(self) -> dict[int, list[Dart]]:
        """The ends of arms that meet at each node."""
        meeting: dict[int, list[Dart]] = {}
        for number, arm in self.arms.items():
            if not arm.closed:
                meeting.setdefault(arm.nodes[0], []).append((number, 0))
                meeting.setdefault(arm.nodes[1], []).append((number, 1))
        return meeting

    def radius(self, dart: Dart) -> float:
        """Radius of the mask at an end of an arm in px."""
        x, y = self.arms[dart[0]].points_from(dart[1])[0]
        return float(self.radii[y, x])

    def direction(self, dart: Dart) -> np.ndarray:
        """Unit vector along which an arm leaves its node, measured outside of the node's disc."""
        points = self.arms[dart[0]].points_from(dart[1])
        start = min(round(self.radius(dart)), max(len(points) - 3, 0))
        stop = min(start + _DIRECTION_LENGTH, len(points) - 1)
        vector = (points[stop] - points[start]).astype(float)
        norm = float(np.hypot(*vector))
        return vector / norm if norm else vector


class Centerline(NamedTuple):
    """The centreline of one connected mask, in px."""

    length: float  # of the longest path, from tip to tip, or around a ring
    total_length: float  # of all arms
    branches: int  # nodes of three arms
    crossings: int  # nodes of four or more arms
    loops: int  # independent closed paths along the centreline
    radius: float  # largest distance of a pixel's centre to the outline


def measure_centerline(mask: np.ndarray) -> Centerline:
    """Measure the centreline of one connected mask.

    The skeleton's longest path uses no arm twice; at a crossing it goes straight on, at a branch
    to the side that makes it longest. The path is cut back at both tips by the local radius,
    smoothed by a local quadratic fit (Savitzky and Golay 1964, doi:10.1021/ac60214a047), which
    unlike a mean does not shorten bends, and extended along its direction to the outline.

    Args:
        mask: (h, w) bool, one 8-connected part with a border of at least one empty pixel.
    """
    skeleton = skeletonise(mask)
    meeting = skeleton.darts()
    degrees = [len(darts) for darts in meeting.values()]
    rings = sum(arm.closed for arm in skeleton.arms.values())
    # Arms less nodes plus parts: the mask is connected, and a ring is a part of its own.
    nodes = sum(degree > 0 for degree in degrees)
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


def skeletonise(mask: np.ndarray) -> Skeleton:
    """Thin a connected mask to its graph, without spurs and with one node for each crossing.

    Args:
        mask: (h, w) bool with a border of at least one empty pixel, one 8-connected part.
    """
    distance = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    # The distance goes to the centre of the first pixel outside, half a pixel behind the outline.
    # Lee's method keeps the ends of slanting lines 2 px wide, which Zhang's may take off.
    thin = skeletonize(mask, method="lee") > 0
    arms = _trace(thin)
    if not arms:  # a clump of junction pixels without an arm
        row, column = np.unravel_index(int(distance.argmax()), distance.shape)
        arms = {0: Arm(np.array([[column, row]]), (0, 1))}
    skeleton = Skeleton(arms, distance - 0.5)
    _dissolve(skeleton)
    _prune(skeleton)
    _join_crossings(skeleton)
    return skeleton


def _pair_straight(skeleton: Skeleton, darts: list[Dart]) -> list[tuple[Dart, Dart]]:
    """Pair the arms at a crossing so that they go on as straight as possible; an odd one stays."""
    directions = {dart: skeleton.direction(dart) for dart in darts}
    cosines = {
        (one, other): float(directions[one] @ directions[other])
        for one, other in itertools.combinations(darts, 2)
    }
    if len(darts) == 4:
        first, *others = darts
        ways = [
            ((first, other), tuple(dart for dart in others if dart != other)) for other in others
        ]
        return list(min(ways, key=lambda way: cosines[way[0]] + cosines[way[1]]))
    pairs, taken = [], set()
    for one, other in sorted(cosines, key=lambda pair: (cosines[pair], pair)):
        if one not in taken and other not in taken:
            pairs.append((one, other))
            taken.update((one, other))
    return pairs


def _trace(thin: np.ndarray) -> dict[int, Arm]:
    """Follow the pixels of a skeleton from node to node."""
    rows, columns = np.nonzero(thin)
    points = np.stack([columns, rows], axis=1)
    neighbors = _neighbors(thin, rows, columns)
    degrees = [len(n) for n in neighbors]
    nodes = [i for i, degree in enumerate(degrees) if degree != 2]
    chains, seen = [], set()
    for node in nodes:
        if degrees[node] == 0:
            chains.append([node])
        for following in neighbors[node]:
            if (node, following) in seen:
                continue
            chain = _chain(node, following, neighbors)
            seen.add((chain[-1], chain[-2]))
            seen.add((chain[0], chain[1]))
            chains.append(chain)
    visited = {pixel for chain in chains for pixel in chain}
    numbers = _node_numbers(degrees, chains)
    arms = []
    for chain in chains:
        ends = numbers[chain[0]], numbers[chain[-1]]
        if len(chain) == 1:  # a lone pixel is an arm of no length with two tips
            arms.append(Arm(points[chain], (ends[0], ends[0] + len(points))))
        # Neighbouring junction pixels are one node, and no hole is as small as their gaps.
        elif len(chain) > 4 or ends[0] != ends[1]:
            arms.append(Arm(points[chain], ends))
    for pixel in range(len(points)):  # what has no node is a ring
        if pixel not in visited:
            ring = _chain(pixel, neighbors[pixel][0], neighbors)
            visited.update(ring)
            arms.append(Arm(points[ring], (-1, -1)))
    return dict(enumerate(arms))


def _chain(pixel: int, following: int, neighbors: list[list[int]]) -> list[int]:
    """Pixels from one over its neighbour up to a node, or around a ring."""
    chain = [pixel, following]
    while len(neighbors[chain[-1]]) == 2 and chain[-1] != pixel:
        one, other = neighbors[chain[-1]]
        chain.append(other if one == chain[-2] else one)
    return chain


def _neighbors(thin: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> list[list[int]]:
    """Neighbours of each pixel; a diagonal one only if no two straight steps lead there."""
    height, width = thin.shape
    flat = thin.ravel()
    place = rows * width + columns
    number = np.full(height * width, -1)
    number[place] = np.arange(len(place))
    found: list[list[int]] = [[] for _ in place]
    for step, corners in (
        (1, None),
        (width, None),
        (width + 1, (1, width)),
        (width - 1, (-1, width)),
    ):
        linked = flat[place + step]
        if corners:
            linked = linked & ~flat[place + corners[0]] & ~flat[place + corners[1]]
        ones = np.flatnonzero(linked)
        for one, other in zip(ones.tolist(), number[place[ones] + step].tolist(), strict=True):
            found[one].append(other)
            found[other].append(one)
    return found


def _node_numbers(degrees: list[int], chains: list[list[int]]) -> list[int]:
    """Number of each pixel's node; junction pixels that are neighbours have the same."""
    links = [c for c in chains if len(c) == 2 and min(degrees[c[0]], degrees[c[1]]) > 2]
    count = len(degrees)
    if not links:
        return list(range(count))
    graph = coo_array((np.ones(len(links)), tuple(zip(*links, strict=True))), (count, count))
    return connected_components(graph, directed=False)[1].tolist()


def _prune(skeleton: Skeleton) -> None:
    """Remove the spurs of ragged outlines and square ends, the shortest first."""
    while True:
        meeting = skeleton.darts()
        spurs = []
        for number, arm in skeleton.arms.items():
            for end, root in ((0, 1), (1, 0)):
                if arm.closed or len(meeting[arm.nodes[end]]) > 1:
                    continue
                limit = _SPUR_RADII * max(skeleton.radius((number, root)), 0.5) + _SPUR_SLACK
                if arm.length <= limit and len(meeting[arm.nodes[root]]) > 2:
                    spurs.append((arm.length, number, arm.nodes[root]))
        if not spurs:
            return
        # Spurs of different junctions do not depend on each other.
        touched: set[int] = set()
        for _, number, root in sorted(spurs):
            if root not in touched:
                touched.add(root)
                del skeleton.arms[number]
        _dissolve(skeleton)


def _dissolve(skeleton: Skeleton) -> None:
    """Join the two arms at each node that has just two."""
    meeting = skeleton.darts()
    for node in sorted(meeting):
        if len(meeting[node]) != 2:
            continue
        (one, end), (other, start) = meeting.pop(node)
        if one == other:
            ring = skeleton.arms[one].points
            skeleton.arms[one] = Arm(_linked(ring, ring[:1]), (-1, -1))
            continue
        first, second = skeleton.arms.pop(one), skeleton.arms.pop(other)
        ends = (first.nodes[1 - end], second.nodes[1 - start])
        points = _linked(first.points_from(1 - end), second.points_from(start))
        skeleton.arms[one] = Arm(points, ends)
        renamed = {(one, 1 - end): (one, 0), (other, 1 - start): (one, 1)}
        for far in set(ends):
            meeting[far] = [renamed.get(dart, dart) for dart in meeting[far]]


def _linked(head: np.ndarray, tail: np.ndarray) -> np.ndarray:
    """Chain two lines of pixels; the pixels between them in the middle of a node are filled in."""
    gap = int(np.abs(tail[0] - head[-1]).max())
    if gap == 0:
        return np.concatenate([head, tail[1:]])
    between = head[-1] + np.rint(np.outer(np.arange(1, gap) / gap, tail[0] - head[-1])).astype(int)
    return np.concatenate([head, between, tail])


def _join_crossings(skeleton: Skeleton) -> None:
    """Make one node of two close branches if two lines go straight over both."""
    meeting = skeleton.darts()
    for number in sorted(skeleton.arms, key=lambda n: (skeleton.arms[n].length, n)):
        bridge = skeleton.arms[number]
        left, right = bridge.nodes
        if bridge.closed or left == right or len(meeting[left]) != 3 or len(meeting[right]) != 3:
            continue
        reach = skeleton.radius((number, 0)) + skeleton.radius((number, 1))
        if bridge.length > _CROSSING_RADII * reach + 1:
            continue
        arms = [[dart for dart in meeting[node] if dart[0] != number] for node in (left, right)]
        pairs = _pair_straight(skeleton, arms[0] + arms[1])
        across = all((one in arms[0]) != (other in arms[0]) for one, other in pairs)
        straight = (skeleton.direction(one) @ skeleton.direction(other) for one, other in pairs)
        if across and all(cosine < -_STRAIGHT for cosine in straight):
            del skeleton.arms[number]
            for dart in arms[1]:
                arm = skeleton.arms[dart[0]]
                arm.nodes = (left, arm.nodes[1]) if dart[1] == 0 else (arm.nodes[0], left)
            meeting[left] = arms[0] + arms[1]
            meeting[right] = []


def _longest_trail(skeleton: Skeleton, meeting: dict[int, list[Dart]]) -> list[Dart]:
    """The longest path along the arms, each given by the end at which it is entered."""
    onward: dict[Dart, list[Dart]] = {}
    for darts in meeting.values():
        if len(darts) > 3:
            for one, other in _pair_straight(skeleton, darts):
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
    x, y = np.concatenate([arm.points for arm in arms]).T
    radius = float(np.median(skeleton.radii[y, x]))
    half = round(min(max(_WINDOW_WIDTHS * 2 * radius, _SMALLEST_WINDOW), _LARGEST_WINDOW))
    if len(arms) == 1 and arms[0].closed:
        return _closed_length(arms[0].points[:-1].astype(float), half, radius, mask)
    first = arms[0].nodes[trail[0][1]]
    last = arms[-1].nodes[1 - trail[-1][1]]
    path = _path(skeleton, meeting, trail)
    if first == last and len(meeting[first]) > 3:
        ends = {trail[0], (trail[-1][0], 1 - trail[-1][1])}
        if any(ends == {*pair} for pair in _pair_straight(skeleton, meeting[first])):
            return _closed_length(path, half, radius, mask)
    tips = len(meeting[first]) == 1, len(meeting[last]) == 1
    return _open_length(path, tips, skeleton.radii, half, mask)


def _path(skeleton: Skeleton, meeting: dict[int, list[Dart]], trail: list[Dart]) -> np.ndarray:
    """Points of a trail about 1 px apart; arms bend near a crossing and are bridged there."""
    pieces = []
    for place, (number, end) in enumerate(trail):
        arm = skeleton.arms[number]
        points = arm.points_from(end)
        start, stop = 0, len(points)
        if place > 0 and len(meeting[arm.nodes[end]]) > 3:
            start += math.ceil(skeleton.radius((number, end)))
        if place < len(trail) - 1 and len(meeting[arm.nodes[1 - end]]) > 3:
            stop -= math.ceil(skeleton.radius((number, 1 - end)))
        if stop - start >= 2:
            points = points[start:stop]
        pieces.append(points.astype(float))
    path = pieces[0]
    for piece in pieces[1:]:
        gap = piece[0] - path[-1]
        count = math.ceil(float(np.hypot(*gap)))
        between = path[-1] + np.outer(np.arange(1, count) / max(count, 1), gap)
        path = np.concatenate([path, between, piece[1:] if count == 0 else piece])
    return path


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
    line = _smooth(_recenter(line, float(np.median(local)), mask), _SMALLEST_WINDOW)
    length = float(_steps(line).sum())
    # Half of a short line at most: one that turns far does not fit a parabola.
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
    """Matrix that smooths 2 half + 1 values by a fitted parabola."""
    powers = np.vander(np.linspace(-1, 1, 2 * half + 1), 3)
    return powers @ np.linalg.pinv(powers)


def _recenter(
    line: np.ndarray, radius: float, mask: np.ndarray, closed: bool = False
) -> np.ndarray:
    """Move each point of a smooth line to the middle between the outlines on its two sides."""
    # The skeleton is of whole px, and smoothing flattens sharp bends. A point far from an outline,
    # as at a crossing, stays.
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
        first = (level < _HALF_LEVEL).argmax(axis=1)  # 0 if all or none is inside
        rows = np.flatnonzero(first > 0)
        crossed = first[rows]
        before, after = level[rows, crossed - 1], level[rows, crossed]
        side = np.full(len(line), np.nan)
        beyond = (before - _HALF_LEVEL) / (before - after)
        side[rows] = (crossed - 1 + beyond) * _SIDE_STEP
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
    """Distance from the first point of a line to the outline before it, as the line bends."""
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
    """Length of a ray within the mask, in px."""
    inside = distances[level >= _HALF_LEVEL]
    if not len(inside) or inside[0] > _RAY_GAP:
        return 0.0
    gaps = np.flatnonzero(inside[1:] - inside[:-1] > _RAY_GAP)
    return float(inside[gaps[0]] if len(gaps) else inside[-1]) + _RAY_STEP / 2


def _osculating(line: np.ndarray, sharpest: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Place, direction and curvature at a line's start, looking backwards, by a quadratic fit."""
    along = np.concatenate([[0.0], np.cumsum(_steps(line))])
    scale = max(float(along[-1]), 1e-9)  # keeps the normal equations well conditioned
    place = along / scale
    powers = np.stack([np.ones(len(place)), place, place * place], axis=1)
    place, speed, acceleration = np.linalg.solve(powers.T @ powers, powers.T @ line)
    speed, acceleration = speed / scale, acceleration / scale**2
    norm = max(float(np.hypot(*speed)), 1e-9)
    curvature = float(speed[0] * acceleration[1] - speed[1] * acceleration[0]) * 2 / norm**3
    # Backwards the line turns the other way.
    return place, -speed / norm, -min(max(curvature, -sharpest), sharpest)
