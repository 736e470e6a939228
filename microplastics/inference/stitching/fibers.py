"""Joining of fibres that the model has broken."""

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from scipy.cluster.hierarchy import DisjointSet
from scipy.spatial import cKDTree

from microplastics.inference.stitching.matching import Detections, dilated, pieces, union
from microplastics.measurement.centerline import Skeleton, skeletonise
from microplastics.structures.view import View, canonical, clip, common_pixels, tight

JOINS = "pieces of fibres joined end to end"
"""Name of the joins in ``Stitched.notes``."""

_THIN = 3.0  # area / width²: thicker pieces are not fibres
_BACK = 3.0  # widths of the centreline that show the direction of an end
_STEPS = 256  # points of a curve that are drawn at a time
_SHORTEST_BACK = 10.0  # px of it, at least
_GAP = 6.0  # largest gap between two ends, in widths
_OVERLAP = 8.0  # largest overlap of two pieces, in widths
_ABUT = 1.0  # widths of overlap that need not be seen in the masks
_TURN = np.cos(np.radians(35))  # largest turn of a fibre between two ends
_SAME = np.cos(np.radians(25))  # the same if both pieces show the stretch between
_ASIDE = 0.5  # widths that an end may lie beside the other's direction, without a gap
_SPREAD = 0.15  # further px beside it for each px of gap
_WIDTHS = 1.26  # largest ratio of two widths
# Limits for two ends in line, whose widths may differ more because masks of one fibre are ragged.
_WIDTHS_IN_LINE = 1.7
_TURN_IN_LINE = np.cos(np.radians(20))
_ASIDE_IN_LINE, _SPREAD_IN_LINE, _OVERLAP_IN_LINE, _GAP_IN_LINE = 0.35, 0.1, 4.0, 2.0
_CLEAR = 1.5  # an end's second choice must cost this many times as much as the first


class End(NamedTuple):
    """An end of a thin piece.

    Attributes:
        particle: number of the particle.
        piece: number of the piece, which is 8-connected.
        at: (2,) x and y of the middle of the end in px of the image.
        way: (2,) unit vector along which the fibre would continue.
        width: of the piece in px.
        length: of the piece's centreline in px, with all its branches.
    """

    particle: int
    piece: int
    at: np.ndarray
    way: np.ndarray
    width: float
    length: float


class Join(NamedTuple):
    """Two ends of one fibre, by number, and px from end to end, more if they are not in line."""

    cost: float
    first: int
    second: int


def join_fibers(merged: Detections, image_size: tuple[int, int], notes: Counter[str]) -> Detections:
    """Join thin pieces of one class that lie end to end, and fill the gaps between them.

    Nothing is filled beyond the image (height, width); the notes receive the number of joins.
    """
    ends = [
        end for particle in range(len(merged)) for end in _ends_of(merged.view(particle), particle)
    ]
    joins = _choose(_candidates(merged, ends))
    if not joins:
        return merged
    notes[JOINS] = len(joins)
    sets = DisjointSet(sorted({ends[k].particle for j in joins for k in (j.first, j.second)}))
    parts: dict[int, list[View]] = defaultdict(list)
    for join in joins:
        one, two = ends[join.first], ends[join.second]
        sets.merge(one.particle, two.particle)
        parts[one.particle].append(clip(_band(one, two), (0, 0, *image_size[::-1])))
    groups = [sorted(group) for group in sets.subsets()]
    for particle in sets:
        parts[particle].append(merged.view(particle))
    joined = Detections.of(
        [tight(*union([part for each in group for part in parts[each]])) for group in groups],
        [merged.classes[group[0]] for group in groups],
        [np.average(merged.scores[group], weights=merged.areas[group]) for group in groups],
    )
    rest = merged.take(np.setdiff1d(np.arange(len(merged)), list(sets)))
    return Detections.cat([rest, joined])


def bridge(parts: Sequence[View], image_size: tuple[int, int]) -> View:
    """Unite particles that are one fibre, and fill the gaps between them as thick as the fibre is.

    Unlike :func:`join_fibers` it takes the word of a person for it, and fills gaps of any length:
    along the directions of two ends that continue one another, the shortest gaps first; else
    straight, where two particles are nearest. Gaps within a particle stay.

    Args:
        parts: masks of the particles, with at least one pixel each.
        image_size: height and width in px; nothing is filled beyond.
    """
    sets = DisjointSet(range(len(parts)))
    mains = [max(pieces(part, 8), key=lambda piece: int(piece.mask.sum())) for part in parts]
    for (a, one), (b, two) in itertools.combinations(enumerate(mains), 2):
        if common_pixels(dilated(one, 1), two):
            sets.merge(a, b)
    ends = [end for number, part in enumerate(parts) for end in _ends_of(part, number)]
    bands, taken = [], set()
    for _, a, b in sorted(_gaps(ends)):
        if not taken & {a, b} and sets.merge(ends[a].particle, ends[b].particle):
            taken |= {a, b}
            bands.append(_band(ends[a], ends[b]))
    bands += _struts(mains, sets)
    return union([*parts, *(clip(band, (0, 0, *image_size[::-1])) for band in bands)])


def _gaps(ends: Sequence[End]) -> Iterator[Join]:
    """Yield the pairs of ends of two particles that continue one another, over any gap."""
    for (a, one), (b, two) in itertools.combinations(enumerate(ends), 2):
        fit = _fit(one, two, any_gap=True) if one.particle != two.particle else None
        if fit is not None and fit[1] >= -_ABUT * min(one.width, two.width):
            yield Join(fit[0], a, b)


def _struts(mains: Sequence[View], sets: DisjointSet) -> list[View]:
    """Join what is still apart by straight bands, each to what is nearest, and note it in sets."""
    points = [np.argwhere(main.mask)[:, ::-1] + (main.x, main.y) for main in mains]
    owners, points = np.repeat(np.arange(len(mains)), [*map(len, points)]), np.concatenate(points)
    struts = []
    while len(groups := sets.subsets()) > 1:
        own = np.isin(owners, list(groups[0]))
        away, nearest = cKDTree(points[own]).query(points[~own])
        there = int(away.argmin())
        here = int(nearest[there])
        one, two = owners[own][here], owners[~own][there]
        width = min(_thickness(mains[number].mask) for number in (one, two)) - 1
        ends = points[own][here], points[~own][there]
        struts.append(_stroke(np.linspace(*ends, int(2 * away[there]) + 2), width))
        sets.merge(int(one), int(two))
    return struts


def _thickness(mask: np.ndarray) -> float:
    """Largest thickness of a mask in px."""
    framed = np.pad(mask, 1).view(np.uint8)
    return 2 * float(cv2.distanceTransform(framed, cv2.DIST_L2, 5).max())


def _ends_of(view: View, particle: int) -> Iterator[End]:
    """Yield the ends of each connected piece of a particle that is thin."""
    for number, piece in enumerate(pieces(view, connectivity=8)):
        part = np.pad(piece.mask, 1)
        thickness = _thickness(piece.mask)
        if np.count_nonzero(part) < _THIN * max(thickness - 1, 2) ** 2:
            continue
        lying, matrix, shift = canonical(part)
        skeleton = skeletonise(lying)
        length = sum(arm.length for arm in skeleton.arms.values()) + thickness
        origin = np.array([piece.x - 1, piece.y - 1])
        for at, way, wide in _tips(skeleton, lying):
            at = matrix @ at + shift + origin
            yield End(particle, number, at, matrix @ way, wide, length)


def _tips(skeleton: Skeleton, mask: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, float]]:
    """Yield middle, direction and width of each end of a mask."""
    for (number, side), *others in skeleton.darts().values():
        if others:
            continue
        points = skeleton.arms[number].points[:: 1 if side == 0 else -1].astype(float)
        radii = skeleton.radii[tuple(skeleton.arms[number].points.T[::-1])]
        width = 2 * float(np.median(radii))
        steps = np.hypot(*np.diff(points, axis=0).T)
        walked = np.concatenate([[0.0], steps.cumsum()])
        # At the very end the skeleton may run into a corner.
        back = max(_SHORTEST_BACK, _BACK * width)
        used = points[(walked >= min(width / 2, walked[-1] / 4)) & (walked <= back)]
        if len(used) < 3:
            continue
        middle = used.mean(axis=0)
        _, _, axes = np.linalg.svd(used - middle, full_matrices=False)
        way = axes[0] * np.sign(axes[0] @ (used[0] - used[-1]))
        # The last pixel of the mask in this direction, near the tip.
        around = int(np.ceil(width)) + 2
        x0, y0 = np.maximum(points[0].astype(int) - around, 0).tolist()
        near = np.argwhere(mask[y0 : y0 + 2 * around + 1, x0 : x0 + 2 * around + 1])[:, ::-1]
        offsets = near + (x0, y0) - middle
        beside = np.abs(offsets @ (way[1], -way[0])) <= max(width / 2, 1)
        reach = (offsets @ way)[beside]
        yield middle + way * float(reach.max(initial=0.0)), way, width


def _candidates(merged: Detections, ends: list[End]) -> list[Join]:
    """Return all pairs of ends that continue one another."""
    if len(ends) < 2:
        return []
    tree = cKDTree(np.array([end.at for end in ends]))
    # The reach depends on each end, so that one broad piece does not enlarge every search.
    reach = [1.1 * max(_GAP, _OVERLAP) * end.width for end in ends]
    around = tree.query_ball_point(tree.data, reach)
    pairs = {(min(a, b), max(a, b)) for a, near in enumerate(around) for b in near if a != b}
    found = []
    for a, b in sorted(pairs):
        one, two = ends[a], ends[b]
        fit = _fit(one, two)
        if fit is None or merged.classes[one.particle] != merged.classes[two.particle]:
            continue
        cost, along = fit
        if along >= -_ABUT * min(one.width, two.width) or (
            _holds(merged.view(one.particle), two) and _holds(merged.view(two.particle), one)
        ):
            found.append(Join(cost, a, b))
    return found


def _holds(view: View, end: End) -> bool:
    """Whether a mask has a pixel within half a width of an end."""
    reach = end.width / 2
    low, high = np.floor(end.at - reach).astype(int), np.ceil(end.at + reach).astype(int) + 1
    part = clip(view, (*low.tolist(), *high.tolist()))
    points = np.argwhere(part.mask)[:, ::-1] + (part.x, part.y)
    return bool((np.hypot(*(points - end.at).T) <= reach).any())


def _fit(one: End, two: End, any_gap: bool = False) -> tuple[float, float] | None:
    """Rate whether two ends continue one another, over a gap of any length or a short one.

    An arc that leaves one end along its direction arrives at the other along that one's direction
    if the line between the ends halves the turn; the deviation from that counts.

    Returns:
        the cost of joining them, and the px from end to end along the fibre, negative if the
        pieces overlap; None if they do not fit.
    """
    if (one.particle, one.piece) == (two.particle, two.piece):
        return None
    width = (one.width + two.width) / 2
    ratio = max(one.width, two.width) / min(one.width, two.width)
    straight = -float(one.way @ two.way)
    if ratio > _WIDTHS_IN_LINE or straight < _TURN:
        return None
    way = one.way - two.way
    way = way / np.hypot(*way)
    gap = two.at - one.at
    along, aside = float(gap @ way), abs(float(gap @ (way[1], -way[0])))
    most = np.inf if any_gap else min(_GAP * width, one.length, two.length)
    if not -_OVERLAP * width <= along <= most:
        return None
    if along < -_ABUT * width and straight < _SAME:
        return None
    if aside > _ASIDE * width + _SPREAD * abs(along):
        return None
    in_line = (
        straight >= _TURN_IN_LINE
        and aside <= _ASIDE_IN_LINE * width + _SPREAD_IN_LINE * abs(along)
        and -_OVERLAP_IN_LINE * width <= along <= _GAP_IN_LINE * width
    )
    if ratio > _WIDTHS and not in_line:
        return None
    return abs(along) + 2 * aside + 1.0, along


def _choose(candidates: list[Join]) -> list[Join]:
    """Select the pairs in which each end is the other's best by a clear margin."""
    costs: dict[int, list[float]] = defaultdict(list)
    for join in candidates:
        for end in (join.first, join.second):
            costs[end].append(join.cost)

    def clear(end: int, cost: float) -> bool:
        best, *others = sorted(costs[end])
        return cost == best and (not others or others[0] >= _CLEAR * best)

    return [j for j in candidates if clear(j.first, j.cost) and clear(j.second, j.cost)]


def _band(one: End, two: End) -> View:
    """Draw a curve of the mean width from end to end, tangent to both directions."""
    width = (one.width + two.width) / 2
    # Starts inside the pieces, because their ends are round.
    start, stop = one.at - width * one.way, two.at - width * two.way
    length = float(np.hypot(*(stop - start)))
    t = np.linspace(0, 1, int(np.ceil(2 * length)) + 2)[:, None]
    leave, arrive = length * one.way, -length * two.way
    curve = (
        (2 * t**3 - 3 * t**2 + 1) * start
        + (t**3 - 2 * t**2 + t) * leave
        + (3 * t**2 - 2 * t**3) * stop
        + (t**3 - t**2) * arrive
    )
    return _stroke(curve, width)


def _stroke(curve: np.ndarray, width: float) -> View:
    """Draw a curve, (N, 2) x and y at most half a px apart, of a width in px."""
    # Part by part: the box around a long one has too many pixels to look at.
    return union([_drawn(part, width) for part in np.array_split(curve, -(-len(curve) // _STEPS))])


def _drawn(curve: np.ndarray, width: float) -> View:
    low = np.floor(curve.min(axis=0) - width).astype(int)
    high = np.ceil(curve.max(axis=0) + width).astype(int) + 1
    pixels = np.stack(np.meshgrid(*(np.arange(a, b) for a, b in zip(low, high, strict=True))), 2)
    near = cKDTree(curve).query(pixels.reshape(-1, 2), distance_upper_bound=max(width / 2, 0.75))
    mask = np.isfinite(near[0]).reshape(pixels.shape[:2])
    return View(mask, int(low[0]), int(low[1]))
