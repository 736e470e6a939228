"""Colours of classes in every picture and label image."""

from collections.abc import Sequence

# The colour-blind-safe palette of Okabe and Ito (https://jfly.uni-koeln.de/color/), RGB.
_PALETTE = (
    (213, 94, 0),
    (0, 114, 178),
    (0, 158, 115),
    (230, 159, 0),
    (86, 180, 233),
    (204, 121, 167),
    (240, 228, 66),
)


def class_colors(names: Sequence[str]) -> list[list[int]]:
    """Choose one colour per class, colour-blind safe, and fixed for the default classes.

    Args:
        names: class names in order.

    Returns:
        RGB in 0–255 for each name; after seven classes the colours repeat, darker each time.
    """
    fixed = dict(zip(("Fiber", "Fragment", "Film"), _PALETTE, strict=False))
    free = [color for color in _PALETTE if color not in {fixed[n] for n in names if n in fixed}]
    cycle = (
        [int(channel * 0.6**turn) for channel in color]
        for turn in range(len(names) + 1)
        for color in (free if turn == 0 else _PALETTE)
    )
    return [list(fixed[name]) if name in fixed else next(cycle) for name in names]
