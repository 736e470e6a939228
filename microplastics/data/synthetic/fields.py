"""Random numbers and random fields that everything in this package draws from."""

import zlib
from collections.abc import Sequence

import cv2
import numpy as np


def generator(*key: int | str) -> np.random.Generator:
    """Make the counter-based generator that belongs to ``key``.

    Keys that differ in one entry give independent streams, so that an image depends on its own
    key alone and not on which process drew it or what was drawn before.

    Args:
        key: integers >= 0 and words; a word counts as its CRC-32.
    """
    entropy = [zlib.crc32(k.encode()) if isinstance(k, str) else int(k) for k in key]
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], cell: float) -> np.ndarray:
    """Draw a smooth random field with structures of about ``cell`` pixels.

    Args:
        rng: where the numbers come from.
        shape: (height, width) in px.
        cell: size of the structures in px.

    Returns:
        float32 (height, width), mean about 0, standard deviation about 0.6 to 1.
    """
    height, width = shape
    rows, columns = int(height / cell) + 3, int(width / cell) + 3
    grid = rng.standard_normal((rows, columns), dtype=np.float32)
    if cell <= 1:
        return grid[:height, :width]
    # A random shift of the grid: its knots are not to lie on the same pixels in every image.
    dy, dx = rng.random(2)
    scale = np.array([[1 / cell, 0, dx], [0, 1 / cell, dy]], np.float32)
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(grid, scale, (width, height), flags=flags, borderMode=cv2.BORDER_REFLECT)


def plane_noise(key: int, left: int, top: int, shape: tuple[int, int], cell: float) -> np.ndarray:
    """Draw a window of an endless smooth random field: windows that overlap agree.

    Knots ``cell`` pixels apart, each from a hash of its place, joined by bicubic convolution
    (Keys 1981, with OpenCV's a = -0.75).

    Args:
        key: what tells fields apart, 0 to 2^63.
        left, top: of the window, in px; they may be negative.
        shape: (height, width) of the window in px.
        cell: size of the structures in px.

    Returns:
        float32 (height, width), mean 0, standard deviation about 0.6 to 1.
    """
    first_row, rows = _knot_weights(top, shape[0], cell)
    first_column, columns = _knot_weights(left, shape[1], cell)
    knots = _hashed_normals(key, first_row, first_column, rows.shape[1], columns.shape[1])
    return rows @ knots @ columns.T


def _knot_weights(start: int, count: int, cell: float) -> tuple[int, np.ndarray]:
    """First knot along an axis, and the weight of each for each pixel, float32 (count, knots)."""
    place = (start + 0.5 + np.arange(count)) / cell
    below = np.floor(place).astype(np.int64)
    part = place - below
    first = int(below[0]) - 1
    weights = np.zeros((count, int(below[-1]) + 3 - first), np.float32)
    pixels, a = np.arange(count), -0.75
    for tap in range(-1, 3):
        off = np.abs(part - tap)
        near = ((a + 2) * off - (a + 3)) * off**2 + 1
        far = a * (((off - 5) * off + 8) * off - 4)
        weights[pixels, below + tap - first] = np.where(off <= 1, near, far)
    return first, weights


def _hashed_normals(key: int, top: int, left: int, rows: int, columns: int) -> np.ndarray:
    """Standard normal numbers, float32 (rows, columns), each a function of its place alone."""
    mask = 0xFFFFFFFFFFFFFFFF
    y = (np.arange(top, top + rows, dtype=np.int64).astype(np.uint64))[:, None]
    x = (np.arange(left, left + columns, dtype=np.int64).astype(np.uint64))[None]
    bits = _mixed(_mixed(y + np.uint64(key * 0x9E3779B97F4A7C15 & mask)) + x)
    radius = np.sqrt(-2 * np.log(((bits >> np.uint64(32)).astype(np.float64) + 0.5) / 2**32))
    angle = (bits & np.uint64(0xFFFFFFFF)).astype(np.float64) * (2 * np.pi / 2**32)
    return (radius * np.cos(angle)).astype(np.float32)


def _mixed(bits: np.ndarray) -> np.ndarray:
    """Spread each bit of uint64 numbers over all of them (splitmix64: Steele et al. 2014)."""
    bits = bits + np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def fractal_noise(
    rng: np.random.Generator, shape: tuple[int, int], cells: Sequence[float], falloff: float = 1.0
) -> np.ndarray:
    """Sum :func:`smooth_noise` over scales and bring it to standard deviation 1.

    Args:
        rng: where the numbers come from.
        shape: (height, width) in px.
        cells: structure sizes in px; the first has weight 1, each further one ``falloff`` times
            that of the one before.
        falloff: see ``cells``.

    Returns:
        float32 (height, width), mean 0, standard deviation 1.
    """
    field, weight = np.zeros(shape, np.float32), 1.0
    for cell in cells:
        field += weight * smooth_noise(rng, shape, cell)
        weight *= falloff
    field -= field.mean()
    return field / max(float(field.std()), 1e-6)


def relief(height: np.ndarray, light: np.ndarray) -> np.ndarray:
    """Slope of a height field towards the light: what makes a texture look raised.

    Args:
        height: float32 (H, W).
        light: unit vector (x, y) in the image that points to the light.

    Returns:
        float32 (H, W), positive on slopes that face the light.
    """
    height = np.asarray(height, np.float32)
    dx = cv2.Sobel(height, cv2.CV_32F, 1, 0, ksize=3, scale=0.125)
    dy = cv2.Sobel(height, cv2.CV_32F, 0, 1, ksize=3, scale=0.125)
    return -(dx * float(light[0]) + dy * float(light[1]))


def lognormal(
    rng: np.random.Generator, median: float, sigma: float, low: float, high: float
) -> float:
    """Draw one log-normal number, held within [low, high] (low wins where they cross)."""
    return float(max(low, min(high, median * np.exp(sigma * rng.standard_normal()))))
