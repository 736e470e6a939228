"""Exact and near-duplicate photographs.

Near-duplicates show one place: they are confirmed by geometry, never by their brightness. Local
features (SIFT, Lowe 2004, doi:10.1023/B:VISI.0000029664.99615.94) are matched, RANSAC finds the
affine map that most of the matches agree on, and then the detail round nearly every feature must
correlate. A dark band, a grid line, a scale bar or dust on the sensor that different photographs
share explains only the features on it.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

_SIDE = 192  # px, square root of the area of a thumbnail
_LONGEST = 4 * _SIDE
_SMOOTH = 1.0  # px: JPEG destroys finer detail
_SHADING = 8.0  # px: coarser structure is illumination
_LOCAL = 12.0  # px: distance over which contrast is normalised
_FLOOR = 0.5  # grey levels: weaker noise is not amplified
_CLIP = 4.0  # local standard deviations
_LEVELS = 31  # of the thumbnail's int8 per standard deviation
_FEATURES = 256  # of an image
_SIFT = {"nfeatures": _FEATURES, "contrastThreshold": 0.02, "edgeThreshold": 12}

_KEYS = 64  # strongest features of an image, by which candidates are found
_DIMENSIONS = 32  # of their descriptors after PCA
_NEIGHBOURS = 12  # of a key, in other images
_PROBES = 4  # cells in which they are searched
_CANDIDATES = 8  # images that an image is compared with
_VOTES = 4  # neighbours that make a candidate
_CELL = 256  # keys of a cell, at least
_BLOCK = 500  # images whose keys are searched at a time; bounds the memory

_RATIO = 0.9  # of the distances to the best and the second-best match
_TOLERANCE = 3.0  # px of the thumbnail
_MIN_MATCHES = 8  # that agree on a map
_MAX_SCALE = 2.5
_MAX_STRETCH = 1.6  # of the two axes to each other
_PATCH = 5.0  # px, standard deviation of the window of a local correlation
_MIN_CORRELATION = 0.5  # round one feature
_MIN_FEATURES = 12  # in the overlap, of each image
# Fraction of the features in the overlap whose surroundings correlate. Different photographs with
# the same printed grid or dust on the sensor reached 0.63 with 20 matches (docs/splits.md).
_MIN_SHARE = 0.6
_CERTAIN_SHARE, _CERTAIN_MATCHES = 0.8, 30

# SIFT describes 4 x 4 cells by 8 directions, turned to the main direction. Mirrored across that
# direction, the rows of cells are reversed and the directions negated.
_MIRRORED = np.arange(128).reshape(4, 4, 8)[::-1][:, :, -np.arange(8) % 8].reshape(-1)


@dataclass(frozen=True, eq=False)
class Fingerprint:
    """Fingerprint of one image for :func:`find_duplicates`, about 70 kB.

    The thumbnail is the grey image without shading, with even local contrast; 31 levels a
    standard deviation. Features are sorted by strength; an image without detail has none.
    """

    sha256: str  # of the shape and the pixels
    thumbnail: np.ndarray  # int8 (h, w), of about 192 x 192 px
    points: np.ndarray  # float32 (N, 2), x and y of the features in the thumbnail, N <= 256
    descriptors: np.ndarray  # uint8 (N, 128)


class Duplicates(NamedTuple):
    """Groups of indices, each ascending, ordered by their first index.

    Exact duplicates have the same pixels. Near ones show one place but differ in pixels; exact
    duplicates of a member are members. ``links`` are the pairs of near ones that were confirmed,
    each image represented by the first with its pixels.
    """

    exact: list[list[int]]
    near: list[list[int]]
    links: list[tuple[int, int]]


class Link(NamedTuple):
    """Two images that show one place."""

    one: int
    other: int
    share: float  # of the features in the overlap whose surroundings correlate
    matches: int  # features that agree on one map

    @property
    def certain(self) -> bool:
        """Whether it alone joins two groups."""
        return self.share >= _CERTAIN_SHARE and self.matches >= _CERTAIN_MATCHES


def fingerprint(image: np.ndarray) -> Fingerprint:
    """Compute the fingerprint of an image.

    Args:
        image: uint8 of shape (H, W, 3), BGR.
    """
    digest = hashlib.sha256(repr(image.shape).encode())
    digest.update(np.ascontiguousarray(image))
    detail = _detail(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY).astype(np.float32))
    thumbnail = np.rint(detail * _LEVELS).astype(np.int8)
    levels = (thumbnail.astype(np.int16) + 128).astype(np.uint8)
    features, descriptors = cv2.SIFT_create(**_SIFT).detectAndCompute(levels, None)
    # Ties in strength may give more features than asked for, in any order.
    order = sorted(range(len(features)), key=lambda i: (-features[i].response, features[i].pt))
    order = order[:_FEATURES]
    points = np.array([features[i].pt for i in order], np.float32).reshape(-1, 2)
    if not order:
        descriptors = np.zeros((0, 128))
    return Fingerprint(digest.hexdigest(), thumbnail, points, descriptors[order].astype(np.uint8))


def find_duplicates(fingerprints: Sequence[Fingerprint]) -> Duplicates:
    """Group images of the same place.

    Finds copies that were re-encoded, resized, refocused, changed in brightness or contrast,
    mirrored, turned, cropped, and photographs of overlapping places. Images without detail can
    only be exact duplicates.
    """
    same = defaultdict(list)
    for index, print_ in enumerate(fingerprints):
        same[print_.sha256].append(index)
    distinct = [indices[0] for indices in same.values()]
    prints = [fingerprints[index] for index in distinct]
    candidates = list(_candidates(prints))
    bar = tqdm(candidates, "comparing images", leave=False, disable=None)
    compared = (compare(prints[one], prints[other], mirrored) for one, other, mirrored in bar)
    links: dict[tuple[int, int], Link] = {}
    for (one, other, _), found in zip(candidates, compared, strict=True):
        if found is not None:
            links[one, other] = Link(one, other, *found)
    groups = [
        sorted(index for member in group for index in same[fingerprints[distinct[member]].sha256])
        for group in join(list(links.values()))
    ]
    exact = [indices for indices in same.values() if len(indices) > 1]
    pairs = sorted((distinct[one], distinct[other]) for one, other in links)
    return Duplicates(exact, sorted(groups), pairs)


def compare(
    one: Fingerprint, other: Fingerprint, mirrored: bool = False
) -> tuple[float, int] | None:
    """Confirm by geometry that two images show one place.

    Args:
        one: fingerprint of the first image.
        other: of the second.
        mirrored: compare the mirror image of the first.

    Returns:
        the fraction of the features in the overlap whose surroundings correlate, and the number
        of matches that agree on one affine map; None if the images do not show one place.
    """
    fixed, points, descriptors = one.thumbnail, one.points, one.descriptors
    if mirrored:
        fixed, descriptors = fixed[:, ::-1], descriptors[:, _MIRRORED]
        points = points * (-1, 1) + np.float32((fixed.shape[1] - 1, 0))
    rows, columns = _match(descriptors, other.descriptors)
    warp, matches = _affine_map(points[rows], other.points[columns])
    if warp is None:
        return None
    correlation, covered = _local_correlation(fixed, other.thumbnail, warp)
    back = cv2.invertAffineTransform(warp)
    shares = []
    for places in (points, other.points @ back[:, :2].T + back[:, 2]):
        values = _sample(correlation, covered, places)
        if len(values) < _MIN_FEATURES:
            return None
        shares.append(float((values > _MIN_CORRELATION).mean()))
    share = min(shares)
    enough = share >= _MIN_SHARE and matches >= _CERTAIN_MATCHES or share >= _CERTAIN_SHARE
    return (share, matches) if enough else None


def join(links: Sequence[Link]) -> list[list[int]]:
    """Join linked images to groups of two and more, each ascending.

    The best links go first. Two groups of several images are joined by a certain link or by two
    links: one wrong link adds at most one image to a group, and never chains groups.
    """
    group_of: dict[int, set[int]] = {}
    waiting: dict[int, list[int]] = defaultdict(list)
    for link in sorted(links, key=lambda link: (-link.share, -link.matches, link.one, link.other)):
        one = group_of.setdefault(link.one, {link.one})
        other = group_of.setdefault(link.other, {link.other})
        if one is other:
            continue
        second = any(linked in other for member in one for linked in waiting[member])
        if link.certain or min(len(one), len(other)) == 1 or second:
            one |= other
            group_of.update(dict.fromkeys(other, one))
        else:
            waiting[link.one].append(link.other)
            waiting[link.other].append(link.one)
    groups = {id(group): sorted(group) for group in group_of.values() if len(group) > 1}
    return sorted(groups.values())


def _detail(grey: np.ndarray) -> np.ndarray:
    """Shrink or enlarge a grey float32 image to a thumbnail of even local contrast."""
    height, width = grey.shape
    scale = _SIDE / (height * width) ** 0.5
    size = [min(max(round(side * scale), 1), _LONGEST) for side in (width, height)]
    small = cv2.resize(grey, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    detail = cv2.GaussianBlur(small, (0, 0), _SMOOTH) - cv2.GaussianBlur(small, (0, 0), _SHADING)
    # One bright particle would outweigh all else, and particles look alike; nor may it, or a grid
    # line, dim what is round it.
    limit = _CLIP * float(np.median(np.abs(detail))) + _FLOOR
    energy = np.minimum(detail * detail, limit * limit)
    detail /= np.sqrt(cv2.GaussianBlur(energy, (0, 0), _LOCAL) + _FLOOR**2)
    return np.clip(detail, -_CLIP, _CLIP)


def _root(descriptors: np.ndarray) -> np.ndarray:
    """Return RootSIFT descriptors of norm 1 (Arandjelovic and Zisserman 2012), float32."""
    values = descriptors.astype(np.float32)
    return np.sqrt(values / np.maximum(values.sum(axis=1, keepdims=True), 1e-6))


def _match(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices of descriptors that are each other's nearest, nearer than the second-nearest.

    What repeats within an image, such as the threads of a mesh, has no distinct match.
    """
    if min(len(one), len(other)) < _MIN_MATCHES:
        return np.zeros(0, int), np.zeros(0, int)
    cosines = _root(one) @ _root(other).T
    columns = cosines.argmax(axis=1)
    rows = np.flatnonzero(cosines.argmax(axis=0)[columns] == np.arange(len(columns)))
    columns = columns[rows]
    best = cosines[rows, columns]
    cosines[rows, columns] = -1
    second = np.maximum(cosines[rows].max(axis=1), cosines[:, columns].max(axis=0))
    distinct = 1 - best < _RATIO**2 * (1 - second)
    return rows[distinct], columns[distinct]


def _affine_map(points: np.ndarray, others: np.ndarray) -> tuple[np.ndarray | None, int]:
    """Find the affine map, (2, 3), from points to their matches, and how many agree on it."""
    if len(points) < _MIN_MATCHES:
        return None, 0
    warp, agree = cv2.estimateAffine2D(
        points, others, method=cv2.RANSAC, ransacReprojThreshold=_TOLERANCE
    )
    matches = 0 if warp is None else int(agree.sum())
    if matches < _MIN_MATCHES or np.linalg.det(warp[:, :2]) <= 0:
        return None, matches
    large, small = np.linalg.svd(warp[:, :2], compute_uv=False)
    plausible = large < _MAX_SCALE and small > 1 / _MAX_SCALE and large < _MAX_STRETCH * small
    return (warp if plausible else None), matches


def _local_correlation(
    fixed: np.ndarray, moving: np.ndarray, warp: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Correlate two thumbnails round every pixel of the first.

    Returns:
        the Pearson correlations in a Gaussian window, float32 of the shape of the first, and
        where the second covers it, bool.
    """
    size, flags = fixed.shape[::-1], cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    second = cv2.warpAffine(moving.astype(np.float32), warp, size, flags=flags)
    covered = cv2.warpAffine(np.ones(moving.shape, np.float32), warp, size, flags=flags)
    first = fixed.astype(np.float32) * covered
    weight = np.maximum(cv2.GaussianBlur(covered, (0, 0), _PATCH), 1e-3)

    def mean(values: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(values, (0, 0), _PATCH) / weight

    one, other = mean(first), mean(second)
    variances = [
        np.maximum(mean(values * values) - average * average, 1.0)
        for values, average in ((first, one), (second, other))
    ]
    correlation = (mean(first * second) - one * other) / np.sqrt(variances[0] * variances[1])
    return correlation, covered > 0.99


def _sample(values: np.ndarray, covered: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Take the values at those points, (N, 2), that lie in the covered part."""
    places = np.rint(points).astype(int)
    inside = ((places >= 0) & (places < values.shape[::-1])).all(axis=1)
    x, y = places[inside].T
    return values[y, x][covered[y, x]]


def _candidates(fingerprints: Sequence[Fingerprint]) -> list[tuple[int, int, bool]]:
    """Find pairs of images whose keys are alike, one before other, and whether one is mirrored."""
    found: set[tuple[int, int, bool]] = set()
    if not any(len(print_.points) for print_ in fingerprints):
        return []
    keys = _Keys(fingerprints)
    starts = range(0, len(fingerprints), _BLOCK)
    for start in tqdm(starts, "searching alike images", leave=False, disable=None):
        found.update(keys.alike(range(start, min(start + _BLOCK, len(fingerprints)))))
    return sorted(found)


class _Keys:
    """The strongest features of all images, searched for those that are alike.

    They lie in cells round randomly drawn ones, of which only the nearest are searched: the time
    hardly grows faster than the number of images.
    """

    def __init__(self, fingerprints: Sequence[Fingerprint]):
        self._descriptors = [print_.descriptors[:_KEYS] for print_ in fingerprints]
        self._owners = np.repeat(np.arange(len(fingerprints)), list(map(len, self._descriptors)))
        values = _root(np.concatenate(self._descriptors))
        count = len(values)
        self._mean = values.mean(axis=0)
        _, axes = np.linalg.eigh((values - self._mean).T @ (values - self._mean))
        self._axes = axes[:, -_DIMENSIONS:]
        self._values = self._project(values)
        cells = max(1, min(round(count**0.5), count // _CELL))
        drawn = np.random.default_rng(0).choice(count, cells, replace=False)
        self._centres = self._values[drawn]
        cell_of = self._nearest_cells(self._values, 1)[:, 0]
        self._order = np.argsort(cell_of, kind="stable")
        self._starts = np.searchsorted(cell_of[self._order], np.arange(cells + 1))

    def alike(self, images: range) -> Iterator[tuple[int, int, bool]]:
        """Yield the most alike other images of each image.

        Each key votes for the images of its nearest neighbours, by how much nearer they are than
        the last of them (McCann and Lowe 2012, doi:10.1109/CVPR.2012.6248089).
        """
        votes = [self._votes(images, mirrored) for mirrored in (False, True)]
        pairs, weights = map(np.concatenate, zip(*votes, strict=True))
        pairs, places, counts = np.unique(pairs, return_inverse=True, return_counts=True)
        scores = np.bincount(places, weights, len(pairs))
        enough = counts >= _VOTES
        pairs, scores = pairs[enough], scores[enough]
        rest, mirrored = np.divmod(pairs, 2)
        ones, others = np.divmod(rest, len(self._descriptors))
        order = np.lexsort((-scores, ones))
        rank = np.arange(len(order)) - np.searchsorted(ones[order], ones[order])
        for index in order[rank < _CANDIDATES]:
            one, other = sorted((int(ones[index]), int(others[index])))
            yield one, other, bool(mirrored[index])

    def _votes(self, images: range, mirrored: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return the pair, as one number, and the weight of every neighbour of the images' keys."""
        chosen = [self._descriptors[image] for image in images]
        owners = np.repeat(np.array(images), list(map(len, chosen)))
        raw = np.concatenate([np.zeros((0, 128)), *chosen])
        rows, members, distances = self._neighbours(
            self._project(_root(raw[:, _MIRRORED] if mirrored else raw)), owners
        )
        order = np.lexsort((distances, rows))
        rows, members, distances = rows[order], members[order], distances[order]
        firsts = np.searchsorted(rows, rows)
        kept = np.arange(len(rows)) - firsts < _NEIGHBOURS
        lasts = np.minimum(firsts + _NEIGHBOURS, np.searchsorted(rows, rows, "right")) - 1
        weights = (distances[lasts] - distances)[kept]
        pairs = owners[rows[kept]] * len(self._descriptors) + self._owners[members[kept]]
        return pairs * 2 + mirrored, weights

    def _neighbours(
        self, values: np.ndarray, owners: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return rows of ``values``, near keys of other images, and their squared distances."""
        probed = self._nearest_cells(values, _PROBES)
        parts = [(np.zeros(0, int), np.zeros(0, int), np.zeros(0, np.float32))]
        for cell in range(len(self._centres)):
            members = self._order[self._starts[cell] : self._starts[cell + 1]]
            rows = np.flatnonzero((probed == cell).any(axis=1))
            if not len(rows) or not len(members):
                continue
            distances = _squared_distances(values[rows], self._values[members])
            distances[owners[rows][:, None] == self._owners[members]] = np.inf
            count = min(_NEIGHBOURS, len(members))
            nearest = np.argpartition(distances, count - 1, axis=1)[:, :count]
            distances = np.take_along_axis(distances, nearest, axis=1)
            usable = np.isfinite(distances)
            at = np.broadcast_to(rows[:, None], usable.shape)
            parts.append((at[usable], members[nearest[usable]], distances[usable]))
        rows, members, distances = map(np.concatenate, zip(*parts, strict=True))
        return rows, members, distances

    def _project(self, values: np.ndarray) -> np.ndarray:
        return ((values - self._mean) @ self._axes).astype(np.float32)

    def _nearest_cells(self, values: np.ndarray, count: int) -> np.ndarray:
        """Indices of the nearest ``count`` cells of each value, (N, count)."""
        count = min(count, len(self._centres))
        parts = [np.zeros((0, count), int)]
        for start in range(0, len(values), 10_000):
            distances = _squared_distances(values[start : start + 10_000], self._centres)
            parts.append(np.argpartition(distances, count - 1, axis=1)[:, :count])
        return np.concatenate(parts)


def _squared_distances(values: np.ndarray, others: np.ndarray) -> np.ndarray:
    products = values @ others.T
    products *= -2
    products += (values**2).sum(axis=1)[:, None]
    products += (others**2).sum(axis=1)
    return products
