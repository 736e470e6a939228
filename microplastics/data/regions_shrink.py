"""Area means of an image that comes in blocks, in memory that does not grow with it."""

from collections.abc import Iterable

import numpy as np

Block = tuple[int, int, np.ndarray]


def shrink(
    blocks: Iterable[Block], size: tuple[int, int], shrunk_size: tuple[int, int]
) -> np.ndarray:
    """Average each pixel of the shrunk image over the area that it covers, parts of px included.

    Args:
        blocks: (x, y, uint8 array of shape (h, w, 3)) each, in px; they cover the image once, and
            none begins above the one before by more than their rows of blocks.
        size: (width, height) of the image, in px.
        shrunk_size: (width, height) of the result, in px; neither larger than the image's.

    Returns:
        uint8 array of shape (height, width, 3).
    """
    (width, height), (out_width, out_height) = size, shrunk_size
    out = np.empty((out_height, out_width, 3), np.uint8)
    # Sums of the rows that are not complete yet, and the number of px that they hold.
    sums: dict[int, np.ndarray] = {}
    missing: dict[int, int] = {}
    for x, y, block in blocks:
        rows, columns = block.shape[:2]
        top, down = _weights(y, y + rows, height, out_height)
        left, across = _weights(x, x + columns, width, out_width)
        part = (down @ block.reshape(rows, -1).astype(np.float32)).reshape(-1, columns, 3)
        part = np.einsum("ij,rjc->ric", across, part, optimize=True)
        for offset, values in enumerate(part):
            row = top + offset
            if row not in sums:
                sums[row] = np.zeros((out_width, 3), np.float32)
                first, last = row * height // out_height, -(-(row + 1) * height // out_height)
                missing[row] = (last - first) * width
            sums[row][left : left + len(values)] += values
            first = max(y, row * height // out_height)
            last = min(y + rows, -(-(row + 1) * height // out_height))
            missing[row] -= (last - first) * columns
            if missing[row] == 0:
                out[row] = np.rint(sums.pop(row))
                del missing[row]
    if sums:
        raise ValueError("the blocks do not cover the image")
    return out


def _weights(start: int, stop: int, full: int, out: int) -> tuple[int, np.ndarray]:
    """Shares of the px start … stop - 1 in the means of the px of the result that they meet.

    Returns:
        (first px of the result, (px of the result, stop - start) float32).
    """
    first, last = start * out // full, -(-stop * out // full)
    # In units of 1 / out px, so that all is whole numbers.
    result = np.arange(first, last)[:, None] * full
    image = np.arange(start, stop)[None] * out
    overlap = np.minimum(result + full, image + out) - np.maximum(result, image)
    return first, (np.maximum(overlap, 0) / full).astype(np.float32)
