"""Colour of a particle: the median CIE Lab of its pixels and the nearest named colour."""

from collections.abc import Sequence

import cv2
import numpy as np
from skimage.color import deltaE_ciede2000

from microplastics.measurement.median import median

# CIE L*, a*, b* under D65 of sRGB colours. A name has as many entries as its dark, muted and
# light shades need: what plastic looks like under a microscope is seldom a pure colour.
NAMED_COLORS: tuple[tuple[str, tuple[float, float, float]], ...] = (
    ("black", (8.0, 0.0, 0.0)),
    ("grey", (35.0, 0.0, 0.0)),
    ("grey", (55.0, 0.0, 0.0)),
    ("grey", (74.0, 0.0, 0.0)),
    ("white", (95.0, 0.0, 0.0)),
    ("red", (28.0, 45.0, 28.0)),
    ("red", (48.0, 65.0, 42.0)),
    ("orange", (60.0, 42.0, 55.0)),
    ("orange", (73.0, 26.0, 65.0)),
    ("yellow", (75.0, 2.0, 60.0)),
    ("yellow", (91.0, -8.0, 60.0)),
    ("green", (30.0, -25.0, 20.0)),
    ("green", (52.0, -40.0, 32.0)),
    ("green", (80.0, -35.0, 35.0)),
    ("cyan", (55.0, -28.0, -12.0)),
    ("cyan", (82.0, -32.0, -10.0)),
    ("blue", (20.0, 12.0, -35.0)),
    ("blue", (32.0, 79.0, -108.0)),
    ("blue", (42.0, 4.0, -42.0)),
    ("blue", (72.0, -8.0, -28.0)),
    ("purple", (28.0, 35.0, -32.0)),
    ("purple", (52.0, 38.0, -38.0)),
    ("pink", (58.0, 52.0, 0.0)),
    ("pink", (80.0, 26.0, 4.0)),
    ("brown", (28.0, 16.0, 24.0)),
    ("brown", (45.0, 18.0, 32.0)),
    ("beige", (80.0, 4.0, 20.0)),
)
_LABS = np.array([lab for _, lab in NAMED_COLORS])


def median_lab(pixels: np.ndarray) -> tuple[float, float, float]:
    """Median of L*, a* and b*, each on its own (CIE 1976, D65, from sRGB).

    Args:
        pixels: (N, 3) uint8, BGR, at least one.
    """
    scaled = pixels.reshape(1, -1, 3).astype(np.float32) / 255
    lightness, a, b = cv2.cvtColor(scaled, cv2.COLOR_BGR2Lab)[0].T
    return median(lightness), median(a), median(b)


def color_names(labs: Sequence[tuple[float, float, float]]) -> list[str]:
    """Name the entries of :data:`NAMED_COLORS` that are nearest by CIEDE2000.

    Source of the distance: Sharma, Wu and Dalal 2005, doi:10.1002/col.20070.

    Args:
        labs: N times CIE L*, a*, b*.
    """
    colors = np.asarray(labs, dtype=np.float64).reshape(-1, 1, 3)
    nearest = deltaE_ciede2000(colors, _LABS[None]).argmin(axis=1)
    return [NAMED_COLORS[index][0] for index in nearest]
