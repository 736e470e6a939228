"""The grey levels between which a deep image is stretched to 8 bits, found in bounded memory."""

from collections.abc import Callable, Iterable

import numpy as np

from microplastics.data.images import PERCENTILES

Limits = tuple[float, float] | None


def stretch_limits(blocks: Callable[[], Iterable[np.ndarray]], dtype: np.dtype) -> Limits:
    """Find what :func:`microplastics.data.images.to_uint8` makes 0 and 255, exactly.

    The values are never held together: their bits are read as integers of the same order, and
    the percentiles are narrowed down by 16 bits in each pass (a radix selection): one pass over
    the image for 8 and 16 bits, two for 32, four for 64.

    Args:
        blocks: gives the image in blocks of any shape, from its start at each call.
        dtype: of the blocks; unsigned, signed or float.

    Returns:
        (low, high), or None where no value is finite.
    """
    dtype = np.dtype(dtype)
    shift = dtype.itemsize * 8
    digits = min(16, shift)
    prefixes: list[int] = [0, 0]
    ranks: list[int] = [0, 0]
    smallest = largest = None
    while shift:
        shift -= digits
        counts = [np.zeros(1 << digits, np.int64) for _ in PERCENTILES]
        first = smallest is None
        total = 0
        for block in blocks():
            values = block.reshape(-1)
            if dtype.kind == "f":
                values = values[np.isfinite(values)]
            if values.size == 0:
                continue
            keys = _keys(values)
            if first:
                total += keys.size
                ends = int(keys.min()), int(keys.max())
                smallest = ends[0] if smallest is None else min(smallest, ends[0])
                largest = ends[1] if largest is None else max(largest, ends[1])
            _count(keys, prefixes, shift, digits, counts)
        if smallest is None:
            return None
        if first:
            ranks = [_rank(total, share, dtype) for share in PERCENTILES]
        for number, count in enumerate(counts if not first else [counts[0], counts[0]]):
            cumulated = np.cumsum(count)
            digit = int(np.searchsorted(cumulated, ranks[number]))
            ranks[number] -= int(cumulated[digit] - count[digit])
            prefixes[number] = prefixes[number] << digits | digit
    low, high = (_value(key, dtype) for key in prefixes)
    if low == high:
        low, high = _value(smallest, dtype), _value(largest, dtype)
    return low, high


def _count(
    keys: np.ndarray, prefixes: list[int], shift: int, digits: int, counts: list[np.ndarray]
) -> None:
    """Count the next digit of the keys that begin with each prefix, in place."""
    bits = keys.dtype.itemsize * 8
    mask = (1 << digits) - 1
    if shift + digits == bits:  # no prefix yet: one count serves both percentiles
        digit = keys >> keys.dtype.type(shift)
        counts[0] += np.bincount(digit.astype(np.int64), minlength=mask + 1)
        return
    heads = keys >> keys.dtype.type(shift + digits)
    for prefix, count in zip(prefixes, counts, strict=True):
        chosen = keys[heads == keys.dtype.type(prefix)]
        digit = (chosen >> keys.dtype.type(shift)) & keys.dtype.type(mask)
        count += np.bincount(digit.astype(np.int64), minlength=mask + 1)


def _rank(total: int, share: float, dtype: np.dtype) -> int:
    """Place, from 1, of a percentile among the sorted values, rounded as ``to_uint8`` does."""
    if dtype == np.uint16:
        return int(max(1, np.ceil(share * total)))
    # As numpy.quantile does: the inverted distribution function, one subtracted before rounding.
    return int(max(0, np.ceil(total * np.float64(share) - 1))) + 1


def _keys(values: np.ndarray) -> np.ndarray:
    """Unsigned integers in the order of the values."""
    unsigned = np.dtype(f"u{values.dtype.itemsize}")
    sign = unsigned.type(1 << (values.dtype.itemsize * 8 - 1))
    keys = np.ascontiguousarray(values).view(unsigned)
    if values.dtype.kind == "i":
        return keys ^ sign
    if values.dtype.kind == "f":
        return np.where(keys & sign, ~keys, keys | sign)
    return keys


def _value(key: int, dtype: np.dtype) -> float:
    bits = dtype.itemsize * 8
    sign = 1 << (bits - 1)
    if dtype.kind == "i":
        key ^= sign
    elif dtype.kind == "f":
        key = key ^ sign if key & sign else key ^ ((1 << bits) - 1)
    return float(np.array([key], np.dtype(f"u{dtype.itemsize}")).view(dtype)[0])
