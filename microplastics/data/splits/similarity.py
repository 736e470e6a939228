"""Exact and near-duplicate photographs.

Candidates come from low DCT frequencies (``cv2.dct``) as floats: the 64 bits of ``imagehash``
collide on filters of uniform texture. A candidate counts if the aligned images correlate.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

_SIDE = 128  # px of a thumbnail
_SMOOTH = 1.0  # px: JPEG destroys finer detail
_SHADING = 10.0  # px: coarser structure is illumination
_LOCAL = 16.0  # px: distance over which contrast is normalised
_FLOOR = 0.5  # grey levels: weaker noise is not amplified
_CLIP = 4.0  # standard deviations
_LEVELS = 31  # of the thumbnail's int8 per standard deviation
_FLAT = 1e-3  # standard deviation below which an image has no detail to compare
_FREQUENCIES = 8
_ALIGN = 64  # px of the thumbnails for alignment
_COARSE = 32  # px of the thumbnails for the search of a shift
_COARSE_SHIFT = 2  # px of them, either way
# Measured in docs/splits.md. Aligned, different photographs reached 0.40 in ordinary sets and 0.63
# with one large bead in the middle of each; copies fell below 0.65 only if overexposed.
_MIN_COSINE = 0.5
_MIN_COARSE = 0.4
_MIN_CORRELATION = 0.65
_MAX_STRETCH = 0.1  # of an alignment: a crop of 5 % needs 0.054
_MAX_SHIFT = 0.08 * _SIDE
_MIN_OVERLAP = 0.8
_BLOCK = 64  # images compared with all others at a time


@dataclass(frozen=True, eq=False)
class Fingerprint:
    """Fingerprint of one image for :func:`find_duplicates`, 17 kB.

    The descriptor holds the lowest DCT coefficients of the thumbnail except its mean, with norm 1;
    zeros for an image without detail. The thumbnail is the grey image resized to a square, without
    shading, with even local contrast; 31 levels a standard deviation.
    """

    sha256: str  # of the shape and the pixels
    descriptor: np.ndarray  # float32 (8, 8)
    thumbnail: np.ndarray  # int8 (128, 128)


class Duplicates(NamedTuple):
    """Groups of indices, each ascending, ordered by their first index.

    Exact duplicates have the same pixels. Near ones are of one photograph but differ in pixels;
    exact duplicates of a member are members.
    """

    exact: list[list[int]]
    near: list[list[int]]


def fingerprint(image: np.ndarray) -> Fingerprint:
    """Compute the fingerprint of an image.

    Args:
        image: uint8 of shape (H, W, 3), BGR.
    """
    digest = hashlib.sha256(repr(image.shape).encode())
    digest.update(np.ascontiguousarray(image))
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY).astype(np.float32)
    small = cv2.resize(grey, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    detail = cv2.GaussianBlur(small, (0, 0), _SMOOTH) - cv2.GaussianBlur(small, (0, 0), _SHADING)
    # One bright particle would outweigh all else, and particles look alike.
    detail /= np.sqrt(cv2.GaussianBlur(detail * detail, (0, 0), _LOCAL) + _FLOOR**2)
    deviation = float(detail.std())
    detail = np.clip(detail / deviation, -_CLIP, _CLIP) if deviation > _FLAT else 0 * detail
    thumbnail = np.rint(detail * _LEVELS).astype(np.int8)
    descriptor = cv2.dct(thumbnail.astype(np.float32))[:_FREQUENCIES, :_FREQUENCIES].copy()
    descriptor[0, 0] = 0
    descriptor /= max(float(np.linalg.norm(descriptor)), 1e-6)
    return Fingerprint(digest.hexdigest(), descriptor, thumbnail)


def find_duplicates(fingerprints: Sequence[Fingerprint]) -> Duplicates:
    """Group images of the same photograph.

    Finds copies that were re-encoded, resized (also to another aspect ratio), changed in
    brightness or contrast, flipped, rotated by right angles, or cropped by up to 5 %. Images of
    one colour can only be exact duplicates.
    """
    same = defaultdict(list)
    for index, print_ in enumerate(fingerprints):
        same[print_.sha256].append(index)
    distinct = [indices[0] for indices in same.values()]
    matcher = _Matcher([fingerprints[index] for index in distinct])
    labels = np.arange(len(distinct))
    for candidate in matcher.candidates():
        one, other = labels[candidate.one], labels[candidate.other]
        # An alignment takes milliseconds: images that are joined already are not compared.
        if one != other and matcher.same_photograph(candidate):
            labels[labels == other] = one
    near = [
        sorted(
            index
            for member in np.flatnonzero(labels == label)
            for index in same[fingerprints[distinct[member]].sha256]
        )
        for label in np.flatnonzero(np.bincount(labels) > 1)
    ]
    exact = [indices for indices in same.values() if len(indices) > 1]
    return Duplicates(exact, sorted(near))


class _Candidate(NamedTuple):
    """Two images that may show one photograph after the first is oriented and shifted."""

    one: int
    other: int
    orientation: int
    shift: tuple[float, float]  # x and y, fractions of the side, from the first to the other


class _Matcher:
    """Compares images with different pixels by their fingerprints."""

    def __init__(self, fingerprints: Sequence[Fingerprint]):
        self._thumbnails = [print_.thumbnail for print_ in fingerprints]
        count = len(fingerprints)
        self._descriptors = np.zeros((count, _FREQUENCIES, _FREQUENCIES), np.float32)
        self._spectra = np.zeros((count, _COARSE, _COARSE // 2 + 1), np.complex64)
        for index, print_ in enumerate(fingerprints):
            self._descriptors[index] = print_.descriptor
            self._spectra[index] = np.fft.rfft2(_coarse(print_.thumbnail))

    def candidates(self) -> Iterator[_Candidate]:
        """Yield each pair that may match, ``one`` before ``other``, in its best orientation."""
        count = len(self._descriptors)
        flat = self._descriptors.reshape(count, _FREQUENCIES**2)
        for start in tqdm(range(0, count, _BLOCK), "comparing images", leave=False, disable=None):
            block = self._descriptors[start : start + _BLOCK]
            turned = np.stack([_orient_dct(block, o) for o in range(8)], axis=1)
            cosines = turned.reshape(-1, flat.shape[1]) @ flat[start:].T
            rows, columns = np.nonzero(cosines > _MIN_COSINE)
            ones, orientations = np.divmod(rows, 8)
            ordered = columns > ones
            ones, orientations, columns = ones[ordered], orientations[ordered], columns[ordered]
            # np.nonzero goes row by row: the pairs of one image are adjacent.
            for one in np.unique(ones):
                pairs = slice(*np.searchsorted(ones, (one, one + 1)))
                yield from self._shifted(
                    start + int(one), orientations[pairs], start + columns[pairs]
                )

    def _shifted(
        self, one: int, orientations: np.ndarray, others: np.ndarray
    ) -> Iterator[_Candidate]:
        """Yield the ``others`` whose coarse thumbnails correlate at a small shift."""
        turned = [_coarse(_orient(self._thumbnails[one], o)) for o in range(8)]
        spectra = np.fft.rfft2(np.stack(turned)).astype(np.complex64)
        steps = np.arange(-_COARSE_SHIFT, _COARSE_SHIFT + 1)
        peaks, places = np.empty(len(others), np.float32), np.empty(len(others), np.int64)
        for start in range(0, len(others), _BLOCK):  # bounds the memory for many copies
            part = slice(start, start + _BLOCK)
            product = spectra[orientations[part]] * self._spectra[others[part]].conj()
            surface = np.fft.irfft2(product, s=(_COARSE, _COARSE))
            surface = surface[:, steps[:, None], steps].reshape(len(product), -1)
            peaks[part], places[part] = surface.max(axis=1), surface.argmax(axis=1)
        # Only the best orientation of each pair is aligned.
        order = np.lexsort((-peaks, others))
        best = order[np.flatnonzero(np.diff(others[order], prepend=-1))]
        for index in best[peaks[best] > _MIN_COARSE]:
            y, x = divmod(int(places[index]), len(steps))
            shift = tuple(-float(steps[step]) / _COARSE for step in (x, y))
            yield _Candidate(one, int(others[index]), int(orientations[index]), shift)

    def same_photograph(self, candidate: _Candidate) -> bool:
        """Whether two images correlate, aligned by an affine map close to the identity.

        The alignment maximises the enhanced correlation coefficient (Evangelidis and Psarakis
        2008, doi:10.1109/TPAMI.2008.113).
        """
        one, other = self._thumbnails[candidate.one], self._thumbnails[candidate.other]
        fixed = _orient(one, candidate.orientation).astype(np.float32)
        moving = other.astype(np.float32)
        warp = np.eye(2, 3, dtype=np.float32)
        warp[:, 2] = np.array(candidate.shift) * _ALIGN
        stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 25, 1e-3)
        small = [
            cv2.resize(i, (_ALIGN, _ALIGN), interpolation=cv2.INTER_AREA) for i in (fixed, moving)
        ]
        try:
            _, warp = cv2.findTransformECC(*small, warp, cv2.MOTION_AFFINE, stop, None, 3)
        except cv2.error:  # not converged: different photographs
            return False
        stretch = warp[:, :2] - np.eye(2)
        # From pixel centres of the small images to pixel centres of the thumbnails.
        factor = _SIDE / _ALIGN
        warp[:, 2] = warp[:, 2] * factor - stretch.sum(axis=1) * (factor - 1) / 2
        # Shift of the centre, since the shift of a corner includes the stretch.
        shift = warp[:, 2] + stretch.sum(axis=1) * (_SIDE - 1) / 2
        if not (np.abs(stretch).max() <= _MAX_STRETCH and np.abs(shift).max() <= _MAX_SHIFT):
            return False
        return _correlation(fixed, moving, warp) > _MIN_CORRELATION


def _correlation(fixed: np.ndarray, moving: np.ndarray, warp: np.ndarray) -> float:
    """Pearson correlation over the overlap of warped and fixed image; -1 if it is small."""
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    covered = cv2.warpAffine(np.ones_like(moving), warp, (_SIDE, _SIDE), flags=flags) > 0.99
    if covered.mean() < _MIN_OVERLAP:
        return -1.0
    pairs = fixed[covered], cv2.warpAffine(moving, warp, (_SIDE, _SIDE), flags=flags)[covered]
    one, other = (values - values.mean() for values in pairs)
    return float(one @ other / max(np.sqrt((one @ one) * (other @ other)), 1e-6))


def _coarse(thumbnail: np.ndarray) -> np.ndarray:
    """Shrink a thumbnail to float32 (32, 32) of norm 1, or zeros."""
    size = (_COARSE, _COARSE)
    small = cv2.resize(thumbnail.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    return small / max(float(np.linalg.norm(small)), 1e-6)


def _orient(array: np.ndarray, orientation: int) -> np.ndarray:
    """One of the 8 orientations of a square: transposed from 4 up, then flipped."""
    if orientation & 4:
        array = array.T
    if orientation & 2:
        array = array[::-1]
    if orientation & 1:
        array = array[:, ::-1]
    return np.ascontiguousarray(array)


def _orient_dct(coefficients: np.ndarray, orientation: int) -> np.ndarray:
    """Apply :func:`_orient` to images given by their DCT coefficients, (N, K, K)."""
    if orientation & 4:
        coefficients = coefficients.transpose(0, 2, 1)
    signs = (-1.0) ** np.arange(coefficients.shape[1], dtype=np.float32)
    if orientation & 2:
        coefficients = coefficients * signs[:, None]
    if orientation & 1:
        coefficients = coefficients * signs
    return coefficients
