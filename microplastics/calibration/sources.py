"""Scale of an image from all its sources."""

import dataclasses
import itertools
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath
from typing import NamedTuple

import numpy as np

from microplastics.calibration import Calibration, label
from microplastics.calibration.metadata import read_metadata
from microplastics.calibration.scale_bar import ScaleBar, find_scale_bars, only_bar
from microplastics.utils.errors import UserError
from microplastics.utils.io import read_table

# µm per pixel that a table or an option may name; anything else is a typing error.
PLAUSIBLE = (1e-4, 1e4)
# A label that gives another scale has lost its decimal point.
_LABELLED = (0.01, 100.0)
_TOLERANCE = 0.01  # fraction by which sources may differ
# Not the bare option: spreadsheets take a text that begins with a minus for a formula.
_BY_OPTION = "option --um-per-px"
_COLUMNS = {
    **dict.fromkeys(("um_per_px", "µm_per_px", "um/px", "µm/px", "um_per_pixel"), "um_per_px"),
    **dict.fromkeys(("um", "µm"), "um"),
    **dict.fromkeys(("px", "pixel", "pixels"), "px"),
    **dict.fromkeys(("image", "file", "file_name", "filename"), "image"),
}


class CalibrationTable(NamedTuple):
    """µm per pixel of many images.

    Attributes:
        path: the CSV file.
        scales: µm per pixel by the parts of the image's name.
    """

    path: str
    scales: dict[tuple[str, ...], float]

    def lookup(self, path: str | os.PathLike) -> Calibration:
        """Find the scale of an image file.

        A row fits when its name is the end of the image's path, with the file's suffix or
        without; the row that names most folders wins, and among those one with the suffix.

        Raises:
            UserError: no row names it.
        """
        parts = _parts(os.fspath(path))
        for start in range(len(parts)):
            for name in (parts[-1], PurePath(parts[-1]).stem):
                scale = self.scales.get((*parts[start:-1], name))
                if scale is not None:
                    return Calibration(scale, Path(self.path).name)
        raise UserError(
            f"{self.path} has no row for {os.fspath(path)}; add one with its name and its "
            "um_per_px, or leave the image out.",
            code="scale_missing",
        )


def read_calibration_csv(path: str | os.PathLike) -> CalibrationTable:
    """Read a CSV with the columns ``image`` and ``um_per_px``, or ``image``, ``um`` and ``px``.

    The separator is a comma, a semicolon or a tab; the decimal sign a point or a comma. Other
    columns are ignored.

    Args:
        path: CSV file in UTF-8, UTF-16 or Windows-1252.

    Raises:
        UserError: it is missing or not such a table, or a row has no usable scale.
    """
    path = os.fspath(path)
    table = read_table(path)
    titles = ", ".join(map(str, table.columns))[:100] or "of an empty file"
    # Spreadsheets write the micro sign or the Greek letter.
    table.columns = [_COLUMNS.get(str(title).replace("\u03bc", "µ"), "") for title in table.columns]
    table = table.loc[:, table.columns != ""]
    if sorted(table.columns) not in (["image", "um_per_px"], ["image", "px", "um"]):
        raise UserError(
            f"{path} has the columns {titles}; its first line must name image and um_per_px, or "
            "image, um and px, each once.",
            code="table_invalid",
        )
    scales: dict[tuple[str, ...], float] = {}
    for line, row in table[(table != "").any(axis=1)].iterrows():
        where = f"{path}, line {line}"
        key = _parts(row["image"])
        if not key or key in scales:
            problem = "is listed twice; list every image once" if key else "is missing; fill it in"
            name = repr("/".join(key)[:60]) if key else "the image"
            raise UserError(f"{where}: {name} {problem}.", code="table_invalid")
        if "um" in row:
            scale = _number(where, row, "um") / _number(where, row, "px")
        else:
            scale = _number(where, row, "um_per_px")
        scales[key] = check_scale(scale, where)
    if not scales:
        raise UserError(
            f"{path} has no image; fill in the columns image and um_per_px.", code="table_invalid"
        )
    return CalibrationTable(path, scales)


def check_scale(value: float, what: str) -> float:
    """Return a scale in µm per pixel that a person gave, ``what`` by name, if it is plausible.

    Raises:
        UserError: it is not a number, or not the scale of a microscope.
    """
    low, high = PLAUSIBLE
    if not (math.isfinite(value) and low <= value <= high):
        raise UserError(
            f"{what}: {value:g} µm per pixel is not a scale; expected {low:g} to {high:g}.",
            code="scale_invalid",
        )
    return value


def resolve_calibration(
    path: str | os.PathLike,
    width: int,
    height: int,
    read: Callable[[int, int, int, int], np.ndarray] | None,
    *,
    um_per_px: float | None = None,
    table: CalibrationTable | None = None,
    scale_bar_um: float | None = None,
    scale_bar: str | None = None,
    use_metadata: bool = True,
) -> tuple[Calibration | None, list[ScaleBar], list[str]]:
    """Find the scale of an image.

    What the user gives comes before what the file says, and all sources must agree to 1 % (a scale
    bar to 1 px, if that is more).

    Args:
        path: image file.
        width, height: of the image, px.
        read: ``read(x0, y0, x1, y1)`` gives uint8 (y1 - y0, x1 - x0, 3), BGR; None if there is
            no photograph, and so no scale bar.
        um_per_px: µm per pixel, as the user gives it.
        table: µm per pixel of each image.
        scale_bar_um: length in µm of the bar that is burnt into the image.
        scale_bar: ``auto`` reads that length from the bar's label; ``ignore`` looks for no bar.
        use_metadata: whether the file's own metadata count.

    Returns:
        The scale, None without a source; all that looks like a scale bar, whose boxes hold no
        particle; and sentences about metadata that were seen and not used.

    Raises:
        UserError: sources differ, one of them is not a scale, the table lacks the image, its pixels
            are not square, or the bar that the scale comes from is not the only one, or cannot be
            read, or names another length than ``scale_bar_um``.
    """
    path = os.fspath(path)
    found: list[tuple[Calibration, float]] = []  # and their tolerances
    bars: list[ScaleBar] = []
    notes: list[str] = []
    if read is not None and scale_bar != "ignore":
        bars = find_scale_bars(read, width, height)
    if um_per_px is not None:
        scale = Calibration(check_scale(um_per_px, "--um-per-px"), _BY_OPTION)
        found.append((scale, _TOLERANCE))
    if table is not None:
        found.append((table.lookup(path), _TOLERANCE))
    if read is not None and (scale_bar_um is not None or scale_bar == "auto"):
        bars = [_with_length(only_bar(bars, path), read, width, scale_bar_um, path)]
        um, px = bars[0].um, bars[0].px
        source = f"scale bar of {um:g} um, {px:.1f} px"
        scale = Calibration(check_scale(um / px, f"{path}, {source}"), source)
        found.append((scale, max(_TOLERANCE, 1 / px)))
    given = len(found)
    if use_metadata:
        own, notes = read_metadata(path)
        found += [(scale, _TOLERANCE) for scale in own]
    if not found:
        return None, bars, notes
    _check_agreement(path, found)
    # All options of the user are named in the output; of the file's figures only the first.
    sources = [scale.source for scale, _ in found[: max(given, 1)]]
    return Calibration(found[0][0].um_per_px, " and ".join(sources)), bars, notes


def check_length(scale_bar_um: float) -> None:
    """Check the length in µm that a person gave for scale bars.

    Raises:
        UserError: it is none.
    """
    if not 0 < scale_bar_um < 1e7:
        raise UserError(
            f"--scale-bar-um {scale_bar_um:g} is not a length; give the bar's length in µm, such "
            "as 750.",
            code="option_invalid",
        )


def _with_length(
    bar: ScaleBar,
    read: Callable[..., np.ndarray],
    width: int,
    given: float | None,
    path: str,
) -> ScaleBar:
    """The bar with its length in µm: the given one unless its label says another."""
    named = None
    if given is not None:
        check_length(given)
        check_scale(given / bar.px, f"{path}, scale bar of {given:g} um, {bar.px:.1f} px")
    if bar.text_box is not None and (given is None or label.is_installed()):
        x, y, w, h = bar.text_box
        # With a letter's width more at either end: a digit that was cut off makes another number.
        region = read(max(x - h, 0), y, min(x + w + h, width), y + h)
        named = label.read_label(region, bar.polarity == "dark")
        if named is not None and not _LABELLED[0] <= named / bar.px <= _LABELLED[1]:
            named = None
    if given is None and named is None:
        raise UserError(
            f"{path}: the scale bar is {bar.px:.1f} px long, and the number beside it cannot be "
            "read; give it by --scale-bar-um, or the scale by --um-per-px or --calibration.",
            code="scale_missing",
        )
    if None not in (given, named) and abs(given - named) > _TOLERANCE * given:
        raise UserError(
            f"{path}: --scale-bar-um says {given:g} µm and the label of its scale bar {named:g} "
            "µm; measure it by itself, or all by --scale-bar auto.",
            code="scale_conflict",
        )
    return dataclasses.replace(bar, um=named if given is None else given)


def _check_agreement(path: str, found: list[tuple[Calibration, float]]) -> None:
    """Check that all sources mean one scale."""
    for (one, slack), (other, other_slack) in itertools.combinations(found, 2):
        apart = abs(one.um_per_px - other.um_per_px)
        if apart > max(slack, other_slack) * max(one.um_per_px, other.um_per_px):
            raise UserError(
                f"{path}: {one.source} says {one.um_per_px:.6g} µm per pixel and {other.source} "
                f"says {other.um_per_px:.6g}; give only the right one, by --um-per-px with "
                "--ignore-metadata if the file is wrong.",
                code="scale_conflict",
            )


def _number(where: str, row: Mapping[str, str], name: str) -> float:
    text = row[name]
    try:
        value = float(text.replace(",", ".") if text.count(",") == 1 else text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise UserError(
            f"{where}: {name} is {text[:60]!r}; expected a number above 0, such as 0.5.",
            code="table_invalid",
        )
    return value


def _parts(name: str) -> tuple[str, ...]:
    """Parts of a path, whichever system wrote it."""
    return tuple(part for part in name.replace("\\", "/").split("/") if part not in ("", "."))
