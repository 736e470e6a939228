"""COCO run-length encoding as arithmetic on runs.

A COCO RLE lists the lengths of alternating runs of zeros and ones over the image in column-major
order, zeros first. The compressed form writes each length (from the fourth on its difference to
the length two before) as a signed little-endian number in base 32, one character per digit, like
``rleToString`` in pycocotools' ``maskApi.c``. Invalid input ends in ``ValueError``.
"""

import contextlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

Counts = bytes | str | Sequence[int] | np.ndarray

# Signed numbers below 2^34 need at most 7 digits of 5 bits: more than any image has pixels.
_MAX_DIGITS = 7
_DIGIT_LIMITS = 1 << (5 * np.arange(1, _MAX_DIGITS, dtype=np.int64) - 1)


def decode_counts(counts: Counts) -> np.ndarray:
    """Return the run lengths, int64 in pixels and zeros first, of a string or of themselves."""
    return decode_counts_batch([counts])[0]


def encode_counts(counts: Sequence[int] | np.ndarray) -> bytes:
    """Compress the run lengths of one RLE (see :func:`decode_counts`)."""
    return encode_counts_batch([np.asarray(counts, dtype=np.int64)])[0]


def decode_counts_batch(batch: Sequence[Counts]) -> list[np.ndarray]:
    """:func:`decode_counts` of many RLEs, with the strings read in one pass."""
    strings = [counts for counts in batch if isinstance(counts, (bytes, str))]
    decoded = iter(_decode_strings(strings))
    return [
        next(decoded) if isinstance(counts, (bytes, str)) else _as_lengths(counts)
        for counts in batch
    ]


def encode_counts_batch(batch: Sequence[np.ndarray]) -> list[bytes]:
    """:func:`encode_counts` of many int64 arrays, written in one pass."""
    if not batch:
        return []
    deltas = []
    for counts in batch:
        delta = counts.copy()
        delta[3:] -= counts[1:-2]
        deltas.append(delta)
    values = np.concatenate(deltas)
    digits = 1 + np.searchsorted(_DIGIT_LIMITS, np.where(values < 0, ~values, values), side="right")
    place = np.arange(digits.max(initial=1))
    characters = (values[:, None] >> (5 * place)) & 31
    characters += 48 + 32 * (place < digits[:, None] - 1)
    text = characters[place < digits[:, None]].astype(np.uint8)
    ends = np.cumsum(digits)[np.cumsum([len(delta) for delta in deltas]) - 1]
    return [part.tobytes() for part in np.split(text, ends[:-1])]


def check_counts(counts: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return int64 run lengths if they fill an image (height, width in pixels) exactly."""
    pixels = size[0] * size[1]
    # The bound on each length also keeps the sum from overflowing.
    if len(counts) and (counts.min() < 0 or counts.max() > pixels):
        raise ValueError(f"RLE has a run outside 0..{pixels} pixels")
    if counts.sum() != pixels:
        raise ValueError(
            f"RLE covers {counts.sum()} pixels, the image has {size[0]} x {size[1]} = {pixels}"
        )
    return counts


def counts_of_rle(rle: dict[str, Any]) -> np.ndarray:
    """Return the checked run lengths of one COCO RLE with ``size`` and ``counts``."""
    return check_counts(decode_counts(rle["counts"]), tuple(rle["size"]))


def runs_of_counts(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the starts and ends (exclusive) of the non-empty runs of ones."""
    edges = np.cumsum(counts)
    starts, ends = edges[0:-1:2], edges[1::2]
    full = ends > starts
    return starts[full], ends[full]


def counts_of_runs(starts: np.ndarray, ends: np.ndarray, pixels: int) -> np.ndarray:
    """Convert sorted runs of ones to the counts of pycocotools' encoder.

    Args:
        starts, ends: int64 arrays of non-empty runs; touching neighbours are joined.
        pixels: height * width of the image.
    """
    if not len(starts):
        return np.array([pixels], dtype=np.int64)
    apart = starts[1:] != ends[:-1]
    edges = np.empty(2 * (1 + np.count_nonzero(apart)) + 2, dtype=np.int64)
    edges[0], edges[-1] = 0, pixels
    edges[1], edges[3:-1:2] = starts[0], starts[1:][apart]
    edges[-2], edges[2:-2:2] = ends[-1], ends[:-1][apart]
    counts = np.diff(edges)
    return counts[:-1] if counts[-1] == 0 else counts


def runs_of_crop(crop: np.ndarray, offset: Iterable[int], height: int) -> tuple:
    """Return the runs of ones of a crop in the column-major order of its image.

    Args:
        crop: (h, w) bool array.
        offset: x0 and y0 of the crop in image pixels.
        height: height of the image in pixels.

    Returns:
        starts and ends (exclusive) as int64 arrays; no run crosses the end of a column.
    """
    (rows, columns), (x0, y0) = crop.shape, offset
    # One zero before the first pixel and one below each column, so that each run has two edges.
    line = np.zeros(columns * (rows + 1) + 1, dtype=bool)
    line[1:].reshape(columns, rows + 1)[:, :rows] = crop.T
    column, row = np.divmod(np.flatnonzero(line[1:] != line[:-1]), rows + 1)
    edges = (x0 + column) * height + y0 + row
    return edges[0::2], edges[1::2]


def crop_of_runs(starts: np.ndarray, ends: np.ndarray, height: int) -> tuple:
    """Paint runs of ones into the smallest crop that contains them.

    Args:
        starts, ends: int64 arrays of sorted, non-empty runs in column-major order.
        height: height of the image in pixels.

    Returns:
        (h, w) bool array, x0, y0; a (0, 0) array at 0, 0 if there are no runs.
    """
    x0, y0, x1, y1 = box_of_runs(starts, ends, height)
    rows, columns = y1 - y0, x1 - x0
    if not len(starts):
        return np.zeros((0, 0), dtype=bool), 0, 0
    # A run over the end of a column makes the crop as high as the image: both orders agree.
    column, row = np.divmod(starts, height)
    begin = (column - x0) * rows + row - y0
    edges = np.empty(2 * len(starts) + 2, dtype=np.int64)
    edges[0], edges[-1] = 0, rows * columns
    edges[1:-1:2], edges[2::2] = begin, begin + ends - starts
    ones = np.arange(len(edges) - 1) % 2 == 1
    line = np.repeat(ones, np.diff(edges))
    return np.ascontiguousarray(line.reshape(columns, rows).T), x0, y0


def box_of_runs(starts: np.ndarray, ends: np.ndarray, height: int) -> tuple[int, int, int, int]:
    """Return x0, y0, x1, y1 (exclusive) around runs of ones; zeros if there are none."""
    if not len(starts):
        return 0, 0, 0, 0
    (left, top), (right, bottom) = np.divmod(starts, height), np.divmod(ends - 1, height)
    if np.any(left != right):  # over the end of a column
        return int(left[0]), 0, int(right[-1]) + 1, height
    return int(left[0]), int(top.min()), int(right[-1]) + 1, int(bottom.max()) + 1


def rle_bbox(rle: dict[str, Any]) -> tuple[int, int, int, int]:
    """Return x, y, width, height in pixels of one COCO RLE; zeros if it is empty."""
    x0, y0, x1, y1 = box_of_runs(*runs_of_counts(counts_of_rle(rle)), rle["size"][0])
    return x0, y0, x1 - x0, y1 - y0


def _as_lengths(counts: Any) -> np.ndarray:
    with contextlib.suppress(OverflowError, TypeError, ValueError):
        lengths = np.asarray(counts)
        if lengths.ndim == 1 and (not lengths.size or lengths.dtype.kind in "iu"):
            return lengths.astype(np.int64)
    raise ValueError("RLE counts are not a list of whole numbers")


def _decode_strings(strings: list[bytes | str]) -> list[np.ndarray]:
    # What is not ASCII becomes bytes that are no digits.
    strings = [s.encode(errors="surrogatepass") if isinstance(s, str) else s for s in strings]
    sizes = np.array([len(string) for string in strings], dtype=np.int64)
    if not sizes.sum():
        return [np.zeros(0, dtype=np.int64) for _ in strings]
    digits = np.frombuffer(b"".join(strings), dtype=np.uint8).astype(np.int64) - 48
    if digits.min() < 0 or digits.max() > 63:
        raise ValueError("RLE counts contain a character that is not a digit")
    final = digits < 32
    bounds = np.cumsum(sizes)
    if not final[bounds[sizes > 0] - 1].all():
        raise ValueError("RLE counts end inside a number")
    ends = np.flatnonzero(final)
    starts = np.concatenate(([0], ends[:-1] + 1))
    widths = ends - starts + 1
    if widths.max() > _MAX_DIGITS:
        raise ValueError("RLE counts contain a number that is too large")
    shift = 5 * (np.arange(len(digits)) - np.repeat(starts, widths))
    values = np.add.reduceat((digits & 31) << shift, starts)
    values -= (digits[ends] >> 4 & 1) << (5 * widths)
    until = np.concatenate(([0], np.cumsum(final)))[bounds]
    result = []
    for counts in np.split(values, until[:-1]):
        counts[1::2] = np.cumsum(counts[1::2])
        counts[2::2] = np.cumsum(counts[2::2])
        result.append(counts)
    return result
