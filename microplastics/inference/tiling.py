"""Whether an image is predicted whole or in windows, and in which."""

import dataclasses
import math

from detectron2.config import CfgNode

from microplastics.errors import UserError

MIN_OVERLAP = 32
"""Pixels that windows must share for their pieces to be put together."""

# Shrunk by more than this against the training, small particles are lost.
_MAX_SHRINK = 1.25
# Share of a window's side that neighbours share, where nothing else is asked for.
_OVERLAP_SHARE = 0.25
# Sides of a window that the largest expected particle is long, where nothing is said of it.
_LARGEST_SIDES = 4.0


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How an image is cut.

    Attributes:
        tile: side of the windows in px of the photograph.
        overlap: px that neighbours share at least.
        coarse: factor by which the image is shrunk for a second pass that sees particles larger
            than a window; 0 for none.
        scale: px of the network's input for each px of a window, as in training.
    """

    tile: int
    overlap: int
    coarse: int
    scale: float


def choose_tiling(
    cfg: CfgNode,
    image_size: tuple[int, int],
    training_side: int | None = None,
    *,
    tile: int | None = None,
    overlap: int | None = None,
    largest: float | None = None,
    coarse: bool = True,
) -> Tiling | None:
    """Choose between the whole image and windows.

    In windows goes an image that the network would see shrunk by more than a quarter against
    its training, and every larger one than ``tile`` where that is given. A window is as large as
    the training's images, so that particles have the size that the network knows; neighbours
    share the length of the largest particle, at most half a window and, where it is not given, a
    quarter of one. What is longer than the shared part is put together from several windows; what
    no window sees the end of is found by the coarse pass.

    Args:
        cfg: of the checkpoint.
        image_size: height and width in px.
        training_side: shorter side of the training images in px; None takes INPUT.TILE.SIZE or
            MIN_SIZE_TEST, that is images which were not resized.
        tile: side of the windows in px; 0 never cuts; None chooses.
        overlap: px; None chooses.
        largest: length in px of the largest particle expected, or None.
        coarse: make the coarse pass where it can find anything.

    Returns:
        The tiling, or None for the whole image.

    Raises:
        UserError: the numbers do not agree.
    """
    if tile is not None and tile != 0 and tile < 64:
        raise UserError(f"--tile {tile} is too small; use 64 px or more, or 0 for whole images.")
    if overlap is not None and overlap < MIN_OVERLAP:
        raise UserError(
            f"--overlap {overlap} is too small to tell which pieces belong together; use "
            f"{MIN_OVERLAP} px or more."
        )
    if largest is not None and not 0 < largest < math.inf:
        raise UserError(f"--largest {largest:g} is no length; give the largest particle's in px.")
    if tile and overlap is not None:
        _check_overlap(overlap, tile)
    side = training_side or cfg.INPUT.TILE.SIZE or cfg.INPUT.MIN_SIZE_TEST
    scale = cfg.INPUT.MIN_SIZE_TEST / side
    if tile == 0 or not _needs_windows(cfg, image_size, scale, tile):
        return None
    tile = tile or max(64, side)
    shared = _OVERLAP_SHARE * tile if largest is None else largest
    if overlap is None:
        overlap = round(min(max(shared, _OVERLAP_SHARE * tile, MIN_OVERLAP), tile / 2))
    _check_overlap(overlap, tile)
    longest = min(largest or _LARGEST_SIDES * tile, max(image_size))
    factor = min(8, -(-longest // tile)) if coarse and longest > tile else 0
    return Tiling(tile, overlap, int(factor), scale)


def _check_overlap(overlap: int, tile: int) -> None:
    if overlap > tile / 2:
        raise UserError(
            f"--overlap {overlap} is more than half of the windows' {tile} px; lower it, or raise "
            "--tile."
        )


def _needs_windows(
    cfg: CfgNode, image_size: tuple[int, int], scale: float, tile: int | None
) -> bool:
    if tile is not None:
        return max(image_size) > tile
    whole = min(
        cfg.INPUT.MIN_SIZE_TEST / min(image_size), cfg.INPUT.MAX_SIZE_TEST / max(image_size)
    )
    return whole * _MAX_SHRINK < scale
