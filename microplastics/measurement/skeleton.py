"""The skeleton of a mask as a graph: arms between ends, branches and crossings."""

import itertools
import math
from dataclasses import dataclass, field

import cv2
import numpy as np
from skimage.morphology import skeletonize

# A spur reaches from the centreline to the outline, at most √2 radii away at a square end.
_SPUR_RADII = 1.5
_SPUR_SLACK = 1.0  # px of a ragged outline
# Two branches closer than this many times their radii may be one crossing at a sharp angle.
_CROSSING_RADII = 2.0
_STRAIGHT = math.cos(math.radians(50))  # the most that an arm turns when it goes over a crossing
_DIRECTION_LENGTH = 8  # px of an arm that tell its direction
# Mean lengths of a step, so that a chain is on average as long as the line it follows
# (Vossepoel and Smeulders 1982, doi:10.1016/0146-664X(82)90012-3).
_STRAIGHT_STEP, _DIAGONAL_STEP = 0.948, 1.340

Dart = tuple[int, int]
"""An arm's number and which of its ends: 0 the first point, 1 the last."""


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
        x, y = self.arms[dart[0]].points[0 if dart[1] == 0 else -1]
        return float(self.radii[y, x])

    def direction(self, dart: Dart) -> np.ndarray:
        """Unit vector along which an arm leaves its node, measured outside of the node's disc."""
        points = self.arms[dart[0]].points
        points = points if dart[1] == 0 else points[::-1]
        start = min(round(self.radius(dart)), max(len(points) - 3, 0))
        stop = min(start + _DIRECTION_LENGTH, len(points) - 1)
        vector = (points[stop] - points[start]).astype(float)
        norm = float(np.hypot(*vector))
        return vector / norm if norm else vector


def skeletonise(mask: np.ndarray) -> Skeleton:
    """Thin a connected mask and read the graph, without spurs, crossings in one node.

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


def pair_straight(skeleton: Skeleton, darts: list[Dart]) -> list[tuple[Dart, Dart]]:
    """Pair the arms at a crossing so that they go on as straight as they can.

    Args:
        skeleton: the graph.
        darts: the ends that meet; of an odd number one is left over.
    """
    directions = {dart: skeleton.direction(dart) for dart in darts}
    turns = sorted(
        (float(directions[one] @ directions[other]), one, other)
        for one, other in itertools.combinations(darts, 2)
    )
    pairs, taken = [], set()
    if len(darts) == 4:
        ways = (((0, 1), (2, 3)), ((0, 2), (1, 3)), ((0, 3), (1, 2)))
        cosines = {(one, other): cosine for cosine, one, other in turns}
        cosines.update({(other, one): cosine for cosine, one, other in turns})
        best = min(ways, key=lambda way: sum(cosines[darts[a], darts[b]] for a, b in way))
        return [(darts[a], darts[b]) for a, b in best]
    for _, one, other in turns:
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
            chain = [node, following]
            while degrees[chain[-1]] == 2:
                one, other = neighbors[chain[-1]]
                chain.append(other if one == chain[-2] else one)
            seen.add((chain[-1], chain[-2]))
            seen.add((chain[0], chain[1]))
            chains.append(chain)
    visited = {pixel for chain in chains for pixel in chain}
    names = _name_nodes(nodes, degrees, chains)
    arms = []
    for chain in chains:
        ends = names[chain[0]], names[chain[-1]]
        if len(chain) == 1:  # a lone pixel is an arm of no length with two tips
            arms.append(Arm(points[chain], (ends[0], ends[0] + len(points))))
        # Neighbouring junction pixels are one node, and no hole is as small as their gaps.
        elif len(chain) > 4 or ends[0] != ends[1]:
            arms.append(Arm(points[chain], ends))
    for pixel in range(len(points)):  # what has no node is a ring
        if pixel not in visited:
            ring = [pixel, neighbors[pixel][0]]
            while ring[-1] != pixel:
                one, other = neighbors[ring[-1]]
                ring.append(other if one == ring[-2] else one)
            visited.update(ring)
            arms.append(Arm(points[ring], (-1, -1)))
    return dict(enumerate(arms))


def _neighbors(thin: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> list[list[int]]:
    """Neighbours of each pixel; a diagonal step only where no two straight ones do the same."""
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


def _name_nodes(nodes: list[int], degrees: list[int], chains: list[list[int]]) -> dict[int, int]:
    """Number the nodes; junction pixels that are neighbours share a number."""
    names = {node: node for node in nodes}

    def find(node: int) -> int:
        while names[node] != node:
            names[node] = names[names[node]]
            node = names[node]
        return node

    for chain in chains:
        if len(chain) == 2 and min(degrees[chain[0]], degrees[chain[1]]) > 2:
            names[find(chain[0])] = find(chain[1])
    return {node: find(node) for node in nodes}


def _prune(skeleton: Skeleton) -> None:
    """Take off the spurs that a ragged outline or a square end makes, the shortest first."""
    while True:
        meeting = skeleton.darts()
        spurs = []
        for number, arm in skeleton.arms.items():
            for end, root in ((0, 1), (1, 0)):
                if arm.closed or len(meeting[arm.nodes[end]]) != 1:
                    continue
                if len(meeting[arm.nodes[root]]) < 3:
                    continue
                limit = _SPUR_RADII * max(skeleton.radius((number, root)), 0.5) + _SPUR_SLACK
                if arm.length <= limit:
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
    """Join the two arms at each node where no more than two meet."""
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
        head = first.points if end == 1 else first.points[::-1]
        tail = second.points if start == 0 else second.points[::-1]
        ends = (first.nodes[1 - end], second.nodes[1 - start])
        skeleton.arms[one] = Arm(_linked(head, tail), ends)
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
    """Make one node of two close branches where two lines go straight over both."""
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
        pairs = pair_straight(skeleton, arms[0] + arms[1])
        across = all((one in arms[0]) != (other in arms[0]) for one, other in pairs)
        straight = (skeleton.direction(one) @ skeleton.direction(other) for one, other in pairs)
        if across and all(cosine < -_STRAIGHT for cosine in straight):
            del skeleton.arms[number]
            for dart in arms[1]:
                arm = skeleton.arms[dart[0]]
                ends = list(arm.nodes)
                ends[dart[1]] = left
                arm.nodes = (ends[0], ends[1])
            meeting[left] = arms[0] + arms[1]
            meeting[right] = []
