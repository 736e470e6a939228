"""One window shows as one what another shows as several: which of the two is right."""

from typing import NamedTuple

import cv2
import numpy as np
from scipy.ndimage import distance_transform_edt
from scipy.spatial import cKDTree

from microplastics.inference.stitch_fragments import (
    Fragments,
    View,
    box_of,
    clip,
    common_pixels,
    union,
)
from microplastics.inference.stitch_overlaps import (
    AGREE,
    MARGIN,
    Overlap,
    Pair,
    overlaps_of,
    pieces,
)

_CONTAINED = 0.6  # least share of a part inside of the merged fragment
_PART = 0.1  # least size of a part, of the merged fragment
_COVERED = 0.5  # least share of the merged fragment that its parts cover
_THIN = 3.0  # area / width²: a fibre
_STRAIGHT = 0.85  # cosine of the angle at which two ends still go on in one another
_ONE_SIDED = 0.3  # of the radius: how far the pixels around an end lie to one side of it
_ROUNDS = 3  # of splitting: what was split may show that a third window merges too


def resolve(fragments: Fragments) -> tuple[Fragments, list[Overlap], list[Pair], int]:
    """Find fragments that another window shows as several, and split or join.

    The window that tells particles apart is believed, for touching particles are merged far more
    often than one is broken: the merged fragment is cut along the parts. Unless the parts lie end
    to end along a fibre, or meet where their own window ends: then they belong together.

    Returns:
        the fragments, their overlaps (without masks), pairs that belong together, and how many
        fragments were split.
    """
    overlaps = {}
    joined: set[tuple] = set()
    split = 0
    for turn in range(_ROUNDS + 1):
        parts: dict[int, list[View]] = {}
        for overlap in overlaps_of(fragments):
            overlaps[overlap.windows] = overlap
            for side in (0, 1):
                for merged, group in _conflicts(overlap, side):
                    if _belong_together(fragments, overlap, side, merged, group):
                        numbers = overlap.numbers[1 - side]
                        joined.update((overlap.numbers[side][merged], numbers[i]) for i in group)
                    elif turn < _ROUNDS and overlap.numbers[side][merged] not in parts:
                        cut = _cut_along(fragments, overlap, side, merged, group)
                        parts[overlap.numbers[side][merged]] = cut
            overlap.forget()
        if not parts:
            break
        split += len(parts)
        # Numbers change: what was found so far is found again.
        fragments = fragments.replaced(parts)
        overlaps, joined = {}, set()
    return fragments, list(overlaps.values()), sorted(joined), split


def _conflicts(overlap: Overlap, side: int) -> list[tuple[int, list[int]]]:
    """Positions of merged fragments on a side, with those of their parts on the other."""
    common = overlap.common if side == 0 else overlap.common.T
    own, other = overlap.areas[side], overlap.areas[1 - side]
    inside = (common >= _CONTAINED * other) & (other >= _PART * own[:, None])
    rows = np.flatnonzero(inside.sum(axis=1) >= 2)
    if not len(rows):
        return []
    found = []
    iou = common / (own[:, None] + other - common)
    for row in rows.tolist():
        if (iou[row] == 1).any():
            continue
        elsewhere = np.delete(iou, row, axis=0)
        free = inside[row] & ~(elsewhere >= AGREE).any(axis=0)
        group = _apart(overlap, side, np.flatnonzero(free).tolist())
        if len(group) >= 2:
            found += [(row, part) for part in _by_piece(overlap, side, row, group)]
    return found


def _apart(overlap: Overlap, side: int, group: list[int]) -> list[int]:
    """Those of some parts that are not nested in a larger one."""
    views, areas = overlap.views[1 - side], overlap.areas[1 - side]
    kept: list[int] = []
    for index in sorted(group, key=lambda i: (-areas[i], i)):
        if all(common_pixels(views[index], views[k]) <= areas[index] / 2 for k in kept):
            kept.append(index)
    return kept


def _by_piece(overlap: Overlap, side: int, row: int, group: list[int]) -> list[list[int]]:
    """The parts by the connected piece of the merged fragment, where this has several."""
    view = overlap.views[side][row]
    labels, areas = pieces(view)
    owners: dict[int, list[int]] = {}
    covered: dict[int, int] = {}
    for index in group:
        part = clip(overlap.views[1 - side][index], box_of(view))
        under = clip(View(labels, view.x, view.y), box_of(part)).mask[part.mask]
        counts = np.bincount(under, minlength=len(areas) + 1)
        counts[0] = 0
        label = int(counts.argmax())
        owners.setdefault(label, []).append(index)
        covered[label] = covered.get(label, 0) + int(counts[label])
    return [
        found
        for label, found in owners.items()
        if len(found) >= 2 and covered[label] >= _COVERED * areas[label - 1]
    ]


def _belong_together(
    fragments: Fragments, overlap: Overlap, side: int, merged: int, group: list[int]
) -> bool:
    views = [overlap.views[1 - side][index] for index in group]
    window = overlap.windows[1 - side]
    fibre = is_thin(overlap.views[side][merged])
    # Every part must hang together with some other one.
    for index, view in enumerate(views):
        joints = [joint_of(view, other) for other in views[:index] + views[index + 1 :]]
        if not any(
            (fibre and each.end_to_end) or near_border(fragments, window, each.first, MARGIN)
            for each in joints
        ):
            return False
    return True


def near_border(fragments: Fragments, window: int, pixel: tuple[int, int], reach: int) -> bool:
    """Whether a pixel lies within some px of an inner border of a window that holds it."""
    x, y = pixel
    return bool(fragments.inner_distance(window, (x, y, x + 1, y + 1))[0, 0] <= reach)


def is_thin(view: View) -> bool:
    """Whether a mask is several times as long as wide, bent or not."""
    framed = cv2.copyMakeBorder(
        np.ascontiguousarray(view.mask).view(np.uint8), *[1] * 4, cv2.BORDER_CONSTANT
    )
    width = 2 * float(cv2.distanceTransform(framed, cv2.DIST_L2, 3).max()) - 1
    return np.count_nonzero(view.mask) >= _THIN * max(width, 2) ** 2


class Joint(NamedTuple):
    """Where two masks come nearest.

    Attributes:
        first, second: x and y of the two pixels that are nearest to each other.
        gap: px between them.
        end_to_end: whether both end there and each goes on in the other.
    """

    first: tuple[int, int]
    second: tuple[int, int]
    gap: float
    end_to_end: bool


def joint_of(first: View, second: View, reach: int = 12) -> Joint:
    """Find where two masks come nearest, and whether both end there.

    Args:
        first, second: the masks.
        reach: px around the nearest points that are looked at.
    """
    points = [np.argwhere(v.mask)[:, ::-1] + (v.x, v.y) for v in (first, second)]
    distances, nearest = cKDTree(points[1]).query(points[0])
    nearest_own = int(distances.argmin())
    spots = points[0][nearest_own], points[1][nearest[nearest_own]]
    ends, ways = [], []
    for own, spot, other in zip(points, spots, spots[::-1], strict=True):
        # The middle of the end: its nearest pixel may be a corner of it.
        local = own[((own - spot) ** 2).sum(axis=1) <= (reach / 2) ** 2]
        away = np.hypot(*(local - other).T)
        end = local[away <= away.min() + 1.5].mean(axis=0)
        offsets = own - end
        ends.append(end)
        ways.append(offsets[(offsets**2).sum(axis=1) <= reach**2].mean(axis=0))
    at = (*(tuple(spot.tolist()) for spot in spots), float(distances[nearest_own]))
    lengths = [float(np.hypot(*way)) for way in ways]
    if min(lengths) < _ONE_SIDED * reach:
        return Joint(*at, False)
    cosine = -float(ways[0] @ ways[1]) / (lengths[0] * lengths[1])
    gap = ends[1] - ends[0]
    if np.hypot(*gap) > 4:
        # Over a gap the direction of the gap must fit as well.
        along = -float(ways[0] @ gap) / (lengths[0] * float(np.hypot(*gap)))
        cosine = min(cosine, along)
    return Joint(*at, cosine >= _STRAIGHT)


def _cut_along(
    fragments: Fragments, overlap: Overlap, side: int, merged: int, group: list[int]
) -> list[View]:
    """Give each pixel of the merged fragment to the nearest part.

    What lies outside of the other window goes to parts that this window cuts, if there are any.
    """
    whole = fragments.view(overlap.numbers[side][merged])
    parts = [clip(overlap.views[1 - side][index], box_of(whole)) for index in group]
    numbers = [overlap.numbers[1 - side][index] for index in group]
    goes_on = fragments.border_gaps(numbers).min(axis=1) <= MARGIN
    if not goes_on.any():
        goes_on[:] = True
    owner = _nearest(whole, parts)
    outside = np.ones_like(whole.mask)
    clip(View(outside, whole.x, whole.y), overlap.region).mask[:] = False
    beyond = _nearest(whole, [part for part, on in zip(parts, goes_on, strict=True) if on])
    owner[outside] = np.flatnonzero(goes_on)[beyond[outside]]
    views = [View(whole.mask & (owner == k), whole.x, whole.y) for k in range(len(parts))]
    # Where parts overlap, as crossing fibres do, each keeps all of its own.
    views = [
        union([view, View(shared.mask & part.mask, *part[1:])])
        for view, part in zip(views, parts, strict=True)
        for shared in [clip(whole, box_of(part))]
    ]
    return [view for view in views if view.mask.any()]


def _nearest(whole: View, parts: list[View]) -> np.ndarray:
    """For each pixel of a mask's array the number of the part nearest to it."""
    seeds = np.full(whole.mask.shape, -1, dtype=np.int32)
    for number, part in enumerate(parts):
        clip(View(seeds, whole.x, whole.y), box_of(part)).mask[part.mask] = number
    rows, columns = distance_transform_edt(seeds < 0, return_distances=False, return_indices=True)
    return seeds[rows, columns]
