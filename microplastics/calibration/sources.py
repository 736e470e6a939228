"""One scale for an image out of all that is said about it."""

import csv
import io
import math
import os
from collections.abc import Callable
from pathlib import Path, PurePath

import numpy as np

from microplastics.calibration import Calibration
from microplastics.calibration.metadata import read_metadata
from microplastics.calibration.scale_bar import find_scale_bar
from microplastics.utils.errors import UserError

# µm per pixel that a table or an option may name; what lies outside is a slip of the pen.
PLAUSIBLE = (1e-4, 1e4)
_MAX_BYTES = 64 * 2**20
_TITLES = {
    **dict.fromkeys(("um_per_px", "µm_per_px", "um/px", "µm/px", "um_per_pixel"), "um_per_px"),
    **dict.fromkeys(("um", "µm"), "um"),
    **dict.fromkeys(("px", "pixel", "pixels"), "px"),
    **dict.fromkeys(("image", "file", "file_name", "filename"), "image"),
}


class CalibrationTable:
    """µm per pixel of many images.

    Attributes:
        path: the CSV file.
    """

    def __init__(self, path: str, scales: dict[tuple[str, ...], float]) -> None:
        """Hold what :func:`read_calibration_csv` read.

        Args:
            path: the CSV file, for words.
            scales: µm per pixel by the parts of the image's name.
        """
        self.path = path
        self._scales = scales

    def __len__(self) -> int:
        return len(self._scales)

    def lookup(self, path: str | os.PathLike) -> Calibration:
        """Find the scale of an image.

        A row fits when its name is the end of the image's path, with the file's suffix or
        without; the row that names most folders wins, and among those one with the suffix.

        Args:
            path: image file.

        Raises:
            UserError: no row names it.
        """
        parts = _parts(os.fspath(path))
        for start in range(len(parts)):
            for name in (parts[-1], PurePath(parts[-1]).stem):
                scale = self._scales.get((*parts[start:-1], name))
                if scale is not None:
                    return Calibration(scale, Path(self.path).name)
        raise UserError(
            f"{self.path} has no line for {os.fspath(path)}: add one with its name and its "
            "um_per_px, or leave the image out."
        )


def read_calibration_csv(path: str | os.PathLike) -> CalibrationTable:
    """Read a CSV with the columns ``image`` and ``um_per_px``, or ``image``, ``um`` and ``px``.

    The separator is a comma, a semicolon or a tab; the decimal sign a point or a comma. Further
    columns are left alone.

    Args:
        path: CSV file in UTF-8, UTF-16 or Windows-1252.

    Raises:
        UserError: it is missing, no such table, or a line of it has no usable scale.
    """
    path = os.fspath(path)
    text = _text(path)
    header = text.partition("\n")[0]
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=header.count))
    scales: dict[tuple[str, ...], float] = {}
    try:
        columns = _columns(path, next(rows, []))
        for row in rows:
            if any(cell.strip() for cell in row):
                where = f"{path}, line {rows.line_num}"
                cells = {name: row[at].strip() for name, at in columns.items() if at < len(row)}
                key = _parts(cells.get("image", ""))
                if not key:
                    raise UserError(f"{where}: the image is missing; fill it in.")
                if key in scales:
                    raise UserError(
                        f"{where}: {_show('/'.join(key))} is listed twice; list every image once."
                    )
                scales[key] = _scale(where, cells, columns)
    except csv.Error as error:
        raise UserError(f"{path}, line {rows.line_num}: {error}; save it as CSV again.") from error
    if not scales:
        raise UserError(f"{path} lists no image; fill in the columns image and um_per_px.")
    return CalibrationTable(path, scales)


def check_scale(value: float, what: str) -> float:
    """Return a scale in µm per pixel that a person gave.

    Args:
        value: µm per pixel.
        what: names the place, for the error.

    Raises:
        UserError: it is no number, or no scale of a microscope.
    """
    low, high = PLAUSIBLE
    if not (math.isfinite(value) and low <= value <= high):
        raise UserError(
            f"{what}: {value:g} µm per pixel is no scale; give a number from {low:g} to {high:g}."
        )
    return value


def _text(path: str) -> str:
    try:
        if not Path(path).is_file():
            raise UserError(f"{path} does not exist or is no file; correct the path of the CSV.")
        if os.path.getsize(path) > _MAX_BYTES:
            raise UserError(f"{path} is too large for a list of images; give the right file.")
        content = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"Cannot read {path}: {reason}; correct the path.") from error
    wide = content[:2] in (b"\xff\xfe", b"\xfe\xff")
    for encoding in ("utf-16",) if wide else ("utf-8-sig", "cp1252"):
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" not in text:
            return text.lstrip()
    raise UserError(f"{path} is not text; save it as CSV in UTF-8.")


def _columns(path: str, header: list[str]) -> dict[str, int]:
    """Where the columns are that count."""
    # Spreadsheets write the micro sign or the Greek letter.
    titles = [_TITLES.get(t.strip().lower().replace("\u03bc", "µ")) for t in header]
    columns = {name: titles.index(name) for name in titles if name}
    known = len(columns) == sum(title is not None for title in titles)
    if not known or set(columns) not in ({"image", "um_per_px"}, {"image", "um", "px"}):
        found = ", ".join(_show(title.strip()) for title in header[:10]) or "nothing"
        raise UserError(
            f"{path} needs the columns image and um_per_px, or image, um and px, each once, and "
            f"has {found}; correct its first line."
        )
    return columns


def _scale(where: str, cells: dict[str, str], columns: dict[str, int]) -> float:
    values = {}
    for name in columns:
        if name == "image":
            continue
        text = cells.get(name, "")
        if not text:
            raise UserError(f"{where}: {name} is missing; fill it in.")
        try:
            values[name] = float(text.replace(",", ".") if text.count(",") == 1 else text)
        except ValueError as error:
            raise UserError(
                f"{where}: {name} is {_show(text)}, which is no number; write it like 0.5."
            ) from error
        if not (math.isfinite(values[name]) and values[name] > 0):
            raise UserError(f"{where}: {name} is {_show(text)}; give a number above 0.")
    if "um_per_px" in values:
        return check_scale(values["um_per_px"], where)
    return check_scale(values["um"] / values["px"], where)


def _parts(name: str) -> tuple[str, ...]:
    """Parts of a path, whichever system wrote it."""
    return tuple(part for part in name.replace("\\", "/").split("/") if part not in ("", "."))


def _show(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


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
