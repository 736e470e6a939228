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
