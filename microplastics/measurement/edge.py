"""Particles at the edge of the image: counted, left out, or made up for by weights."""

from typing import Literal, get_args

import numpy as np

from microplastics.errors import UserError

EdgeRule = Literal["count", "exclude", "weight"]
EDGE_RULES: tuple[str, ...] = get_args(EdgeRule)


def edge_weights(
    touches_edge: np.ndarray, sizes: np.ndarray, frames: np.ndarray, rule: EdgeRule
) -> np.ndarray:
    """How much each particle counts.

    ``"count"`` counts all as 1, ``"exclude"`` those that touch the edge as 0. ``"weight"`` further
    makes up for the larger chance of a large particle to touch it: of the W × H places that the
    first pixel of a w × h box has in the frame, (W - w - 1) · (H - h - 1) keep it off the border's
    pixels, so that those found there stand for W · H over that number (Miles 1974 and Lantuéjoul
    1980; ISO 13322-1). The sum of weights is then an unbiased estimate of the number of particles
    whose first pixel lies in the frame, as many as there are in a frame's area of the filter.

    Args:
        touches_edge: (N,) bool, whether the mask has a pixel on the border of the image.
        sizes: (N, 2) width and height of the particles' boxes in px.
        frames: (N, 2) width and height of their images in px.
        rule: one of :data:`EDGE_RULES`.

    Returns:
        (N,) float64.

    Raises:
        UserError: the rule is unknown, or a box does not fit inside its image's border.
    """
    if rule not in EDGE_RULES:
        raise UserError(f"The edge rule {rule!r} is none of {', '.join(EDGE_RULES)}; choose one.")
    touches_edge = np.asarray(touches_edge, dtype=bool)
    if rule == "count":
        return np.ones(len(touches_edge))
    weights = np.where(touches_edge, 0.0, 1.0)
    if rule == "exclude":
        return weights
    inside = ~touches_edge
    frames, sizes = (
        np.asarray(a, dtype=np.float64).reshape(-1, 2)[inside] for a in (frames, sizes)
    )
    places = frames - sizes - 1
    if (places < 1).any():
        raise UserError(
            "A particle that touches no edge has a box as large as its image; the columns bbox_w, "
            "bbox_h and touches_edge do not agree: write the table again from the images."
        )
    weights[inside] = (frames / places).prod(axis=1)
    return weights
