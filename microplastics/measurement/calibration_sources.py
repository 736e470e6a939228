"""One scale for an image out of all that is said about it."""

import os
from collections.abc import Callable

import numpy as np

from microplastics.errors import UserError
from microplastics.measurement.calibration import Calibration
from microplastics.measurement.calibration_metadata import read_metadata
from microplastics.measurement.calibration_table import CalibrationTable, check_scale
from microplastics.measurement.scale_bar import find_scale_bar

Box = tuple[int, int, int, int]

_TOLERANCE = 0.01  # share by which sources may differ
# Not the bare option: spreadsheets take a text that begins with a minus for a formula.
_BY_OPTION = "option --um-per-px"


def resolve_calibration(
    path: str | os.PathLike,
    width: int,
    height: int,
    read: Callable[[int, int, int, int], np.ndarray] | None,
    *,
    um_per_px: float | None = None,
    table: CalibrationTable | None = None,
    scale_bar_um: float | None = None,
    use_metadata: bool = True,
) -> tuple[Calibration | None, list[Box], list[str]]:
    """Find the scale of an image.

    What the user gives comes before what the file says, and all that speak must agree to 1 %
    (a scale bar to 1 px, where that is more).

    Args:
        path: image file.
        width: of the image, px.
        height: of the image, px.
        read: ``read(x0, y0, x1, y1)`` gives uint8 (y1 - y0, x1 - x0, 3), BGR; needed for a scale
            bar alone.
        um_per_px: µm per pixel, as the user gives it.
        table: µm per pixel of each image.
        scale_bar_um: length in µm of the bar that is burnt into the image.
        use_metadata: whether the file's own metadata count.

    Returns:
        The scale, None where nothing gives one; boxes (x, y, width, height) in px that hold no
        particle (the bar and its text, with ``scale_bar_um``); and sentences about metadata that
        was seen and not used.

    Raises:
        UserError: sources differ, one of them is no scale, the table lacks the image, its pixels
            are not square, or there is no scale bar or more than one.
    """
    path = os.fspath(path)
    found: list[tuple[Calibration, float]] = []
    boxes: list[Box] = []
    notes: list[str] = []
    if um_per_px is not None:
        scale = Calibration(check_scale(um_per_px, "--um-per-px"), _BY_OPTION)
        found.append((scale, _TOLERANCE))
    if table is not None:
        found.append((table.lookup(path), _TOLERANCE))
    if scale_bar_um is not None:
        scale, tolerance, boxes = _from_scale_bar(path, width, height, read, scale_bar_um)
        found.append((scale, tolerance))
    given = len(found)
    if use_metadata:
        own, notes = read_metadata(path)
        found += [(scale, _TOLERANCE) for scale in own]
    if not found:
        return None, boxes, notes
    _agree(path, found, given)
    # Two options of the user both stand in the output; the file's own figure stands alone.
    sources = [scale.source for scale, _ in found[: max(given, 1)]]
    return Calibration(found[0][0].um_per_px, " and ".join(sources)), boxes, notes


def _from_scale_bar(
    path: str,
    width: int,
    height: int,
    read: Callable[[int, int, int, int], np.ndarray] | None,
    length_um: float,
) -> tuple[Calibration, float, list[Box]]:
    """The scale by the burnt-in bar, the share by which it may be off, and what the bar covers."""
    if not 0 < length_um < 1e7:
        raise UserError(
            f"--scale-bar-um {length_um:g} is no length; give the bar's length in µm, such as 750."
        )
    bar = find_scale_bar(read, width, height, path)
    source = f"scale bar of {length_um:g} um, {bar.px:.1f} px"
    um_per_px = check_scale(length_um / bar.px, f"{path}, {source}")
    return Calibration(um_per_px, source), max(_TOLERANCE, 1 / bar.px), bar.boxes


def _agree(path: str, found: list[tuple[Calibration, float]], given: int) -> None:
    """Check that all sources mean one scale; the first ``given`` come from the user."""
    for index, (one, slack) in enumerate(found):
        for other, other_slack in found[:index]:
            apart = abs(one.um_per_px - other.um_per_px)
            if apart <= max(slack, other_slack) * max(one.um_per_px, other.um_per_px):
                continue
            if index < given:
                mend = "give one of them, the right one"
            elif given:
                mend = "correct what you give, or add --ignore-metadata if the file is wrong"
            else:
                mend = "give the right one by --um-per-px with --ignore-metadata"
            raise UserError(
                f"{path}: {other.source} says {other.um_per_px:.6g} µm per pixel and "
                f"{one.source} says {one.um_per_px:.6g}: {mend}."
            )
