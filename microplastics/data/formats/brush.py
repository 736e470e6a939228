"""Label Studio's run-length encoding of brush strokes.

The format is that of ``@thi.ng/rle-pack``: a stream of bits, most significant first, that holds the
number of values (32 bits), the bits of a value less one (5), four widths of run lengths less one
(4 each), and then runs until there are enough values: one bit that says whether one value is
repeated, two that choose the width, the length less one, and the value or the values. The values
are the bytes of the RGBA picture, row by row; alpha is the mask.
"""

from typing import Any

import numpy as np

from microplastics.data.formats.shapes import ShapeError, crop_rle

_CHANNELS = 4
_VALUE_BITS = 8


def brush_rle(values: Any, size: tuple[int, int]) -> dict[str, Any]:
    """Decode a brush mask.

    A pixel belongs to the mask where its alpha is more than half of the greatest, so that the soft
    rim of a stroke does not widen it.

    Args:
        values: a stranger's list of bytes.
        size: height and width of the image in px.

    Returns:
        compressed COCO RLE.

    Raises:
        ShapeError: it is malformed, cut off, of another size, or empty.
    """
    height, width = size
    line = width * _CHANNELS
    flat, first, last = _decode(_Bits(values), height * line)
    y0, y1 = first // line, last // line + 1
    alpha = flat[y0 * line : y1 * line].reshape(y1 - y0, width, _CHANNELS)[:, :, 3]
    inside = alpha > int(alpha.max(initial=0)) // 2
    columns = np.flatnonzero(inside.any(axis=0))
    if not len(columns):
        raise ShapeError("shape_broken", "a brush mask without a pixel")
    x0, x1 = int(columns[0]), int(columns[-1]) + 1
    return crop_rle(inside[:, x0:x1], x0, y0, size)


class _Bits:
    """Reads numbers of any width, the most significant bit first."""

    def __init__(self, values: Any):
        try:
            self._data = bytes(values) if isinstance(values, list) else b""
        except (TypeError, ValueError) as error:
            raise ShapeError("shape_broken", "a brush mask that is no list of bytes") from error
        self._position, self._end = 0, 8 * len(self._data)

    def read(self, bits: int) -> int:
        """Return the next number."""
        first, end = self._take(bits)
        value = int.from_bytes(self._data[first >> 3 : (end + 7) >> 3], "big")
        return value >> (-end & 7) & ((1 << bits) - 1)

    def read_bytes(self, count: int) -> np.ndarray:
        """Return the next numbers of 8 bits as uint8."""
        first, end = self._take(count * _VALUE_BITS)
        packed = np.frombuffer(self._data[first >> 3 : (end + 7) >> 3], np.uint8)
        bits = np.unpackbits(packed)[first & 7 :][: count * _VALUE_BITS]
        return np.packbits(bits)

    def _take(self, bits: int) -> tuple[int, int]:
        first, end = self._position, self._position + bits
        if end > self._end:
            raise ShapeError("shape_broken", "a brush mask that is cut off")
        self._position = end
        return first, end


def _decode(bits: _Bits, expected: int) -> tuple[np.ndarray, int, int]:
    """Return the values as uint8, and where the first and the last that are not 0 may be."""
    count = bits.read(32)
    if count != expected:
        raise ShapeError("shape_broken", f"a brush mask of {count} values, not {expected}")
    if bits.read(5) + 1 != _VALUE_BITS:
        raise ShapeError("shape_broken", "a brush mask whose values are not of 8 bits")
    widths = [bits.read(4) + 1 for _ in range(4)]
    # Pages that stay zero are never touched.
    values = np.zeros(count, np.uint8)
    first, last, position = count, 0, 0
    while position < count:
        repeated = bits.read(1)
        end = position + bits.read(widths[bits.read(2)]) + 1
        if end > count:
            raise ShapeError("shape_broken", "a brush mask with too many values")
        value = bits.read(_VALUE_BITS) if repeated else bits.read_bytes(end - position)
        if not repeated or value:
            values[position:end] = value
            first, last = min(first, position), end - 1
        position = end
    if first == count:
        raise ShapeError("shape_broken", "a brush mask without a pixel")
    return values, first, last
