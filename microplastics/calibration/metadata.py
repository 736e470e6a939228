"""Scale in an image file's metadata.

Programs write a resolution into nearly every file, most of it meant for printers. Each scale that
is used names its source, and each one that is not used gives a note with the reason.
"""

import json
import math
import os
import re
import warnings
from typing import Any, NamedTuple
from xml.etree import ElementTree

from microplastics.calibration import Calibration
from microplastics.utils.errors import UserError

# µm per pixel of microscopes and macro lenses.
_MICROSCOPE = (0.01, 100.0)
# Resolutions that cameras, scanners and programs write for print and screen, in dpi: every whole
# number up to the first, and these.
_MAX_PRINT_DPI = 720
_PRINT_DPI = (800, 900, 1000, 1200, 1440, 1600, 1800, 2000, 2400, 2880, 3000, 3200, 3600, 4000)
_PRINT_DPI += (4800, 6400, 7200, 9600)
_MAX_DESCRIPTION = 32 * 2**20
# ResolutionUnit in µm: the standard's inch and cm, and mm and µm as tifffile writes them.
_TIFF_UNITS = {2: 25400.0, 3: 10000.0, 4: 1000.0, 5: 1.0}
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

# Units of length in µm, by the names that microscopes' programs write (case is ignored if unknown).
UNITS = {"m": 1e6, "cm": 1e4, "mm": 1e3, "nm": 1e-3, "pm": 1e-6, "Å": 1e-4, "thou": 25.4}
UNITS |= dict.fromkeys(("µm", "um", "micron", "microns", "\\u00b5m"), 1.0)
UNITS |= dict.fromkeys(("micrometer", "micrometre", "micrometers", "micrometres"), 1.0)
UNITS |= dict.fromkeys(("in", "inch", "inches", '"'), 25400.0)
UNITS |= {"nanometer": 1e-3, "millimeter": 1e3, "centimeter": 1e4, "meter": 1e6}

_NOT_POSITIVE = "it is not a positive number"


class _Seen(NamedTuple):
    """A scale that a file has."""

    source: str  # names it
    x: float = math.nan  # µm per pixel along either axis
    y: float | None = None
    why_not: str | None = None  # reason not to use it


def read_metadata(path: str | os.PathLike) -> tuple[list[Calibration], list[str]]:
    """Read the scales that a file's metadata give.

    Args:
        path: image file; its pixels are not read.

    Returns:
        The scales with their sources, the most specific first, and notes: sentences about
        metadata that were seen and not used, and why.

    Raises:
        UserError: the pixels are not square.
    """
    path = os.fspath(path)
    try:
        with open(path, "rb") as file:
            head = file.read(4)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"{path} is not readable ({reason}); correct the path.", code="image_missing"
        ) from error
    with warnings.catch_warnings():
        # Readers warn of each odd tag; the notes say what matters here.
        warnings.simplefilter("ignore")
        try:
            seen = _tiff(path) if head in _TIFF_MAGIC else _picture(path)
        except Exception as error:  # untrusted bytes make parsers raise nearly anything
            words = str(error).split("\n")[0][:120] or type(error).__name__
            return [], [f"{path}: its metadata cannot be read ({words})."]
    found, notes = [], []
    for source, x, y, why_not in seen:
        low, high = _MICROSCOPE
        if why_not is None and not (math.isfinite(x) and x > 0):
            why_not = _NOT_POSITIVE
        elif why_not is None and not low <= x <= high:
            why_not = f"{x:g} µm per pixel is outside the {low:g} to {high:g} of microscopes"
        if why_not:
            notes.append(f"{path}: {source} is not used: {why_not}.")
            continue
        if y is not None and abs(x - y) > 0.01 * max(x, y):
            raise UserError(
                f"{path} has pixels that are not square ({x:g} x {y:g} µm by {source}); resample "
                "it, or give its true scale by --um-per-px with --ignore-metadata.",
                code="scale_invalid",
            )
        found.append(Calibration(x, source))
    return found, notes


def _resolution(source: str, x: Any, y: Any, unit_um: float | None, for_print: bool) -> _Seen:
    """The scale by px per unit along either axis; ``for_print`` leaves out printers' settings."""
    if unit_um is None:
        return _Seen(source, why_not="it has no unit of length")
    x, y = _number(x), _number(y)
    if not (x > 0 and y > 0 and math.isfinite(x) and math.isfinite(y)):
        return _Seen(source)
    scale = unit_um / x
    dpi, per_cm = 25400 / scale, 10000 / scale
    whole = min(abs(dpi - round(dpi)), abs(per_cm - round(per_cm))) <= 0.02
    listed = any(abs(dpi - one) <= 0.02 for one in _PRINT_DPI)
    if for_print and ((dpi <= _MAX_PRINT_DPI and whole) or listed):
        words = f"{dpi:.6g} dpi is a setting for print or screen; if it is the scale, give "
        return _Seen(source, why_not=f"{words}--um-per-px {scale:.6g}")
    return _Seen(source, scale, unit_um / y)


def _number(value: Any) -> float:
    """The value of a tag: a number, a fraction as a pair, or text; NaN for anything else."""
    try:
        if isinstance(value, tuple | list):
            if len(value) == 2:
                return float(value[0]) / float(value[1])
            value = value[0]
        if isinstance(value, str):
            value = value.strip().replace(",", ".")
        return float(value)
    except (TypeError, ValueError, ZeroDivisionError, OverflowError, IndexError):
        return math.nan


def _tiff(path: str) -> list[_Seen]:
    import tifffile  # slow to import and seldom needed

    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        tags = {
            code: page.tags[code].value for code in (270, 282, 283, 296, 51123) if code in page.tags
        }
    description = tags.get(270)
    description = description if isinstance(description, str) else ""
    if len(description) > _MAX_DESCRIPTION:
        return [_Seen("ImageDescription", why_not="it is too long to be read")]
    seen = _ome(description) if description.rstrip("\0 \n").endswith("OME>") else []
    if 51123 in tags:
        seen += _micromanager(tags[51123])
    start = description[:100_000]
    if start.startswith("Aperio") or re.search(r"\|\s*MPP\s*=", start):
        match = re.search(r"\bMPP\s*=\s*([^|\s]{1,40})", start)
        if match:
            seen.append(_Seen("Aperio MPP", _number(match[1])))
    x, y = tags.get(282), tags.get(283, tags.get(282))
    if x is None:
        return seen
    if start.startswith("ImageJ="):
        match = re.search(r"^unit=([^\n]{1,60})$", start, re.MULTILINE)
        if match:
            source, um = "ImageJ metadata", _unit(match[1])
            wrong = _Seen(source, why_not=_wrong_unit(match[1]))
            return [*seen, _resolution(source, x, y, um, for_print=False) if um else wrong]
    unit = _number(tags.get(296, 2))
    # 1 to 1 without a unit means that the writer did not know the scale.
    if not (unit == 1 and _number(x) == _number(y) == 1):
        um = _TIFF_UNITS.get(unit)
        seen.append(_resolution("TIFF resolution tags", x, y, um, unit in (2, 3)))
    return seen


def _unit(name: str) -> float | None:
    """µm of a unit of length, or None."""
    name = name.strip().replace("\u03bc", "µ")
    return UNITS.get(name, UNITS.get(name.lower()))


def _wrong_unit(name: str) -> str:
    return f"its unit is {name.strip()[:40]!r}, not one of length"


def _ome(text: str) -> list[_Seen]:
    """PhysicalSizeX and PhysicalSizeY of the first image of OME-XML."""
    source = "OME-XML PhysicalSizeX"
    # Entities can expand to gigabytes; OME-XML has none.
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        return [_Seen(source, why_not="its XML declares a document type, which is refused")]
    try:
        root = ElementTree.fromstring(text.rstrip("\0 \n").encode())
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        return [_Seen(source, why_not=f"its XML is broken ({error})")]
    pixels = next((e for e in root.iter() if e.tag.rpartition("}")[2] == "Pixels"), None)
    if pixels is None or pixels.get("PhysicalSizeX") is None:
        return []
    sizes = []
    for axis in "XY":
        unit = pixels.get(f"PhysicalSize{axis}Unit", "µm")
        um = _unit(unit)
        if um is None:
            return [_Seen(source, why_not=_wrong_unit(unit))]
        value = pixels.get(f"PhysicalSize{axis}")
        sizes.append(None if value is None else _number(value) * um)
    return [_Seen(source, *sizes)]


def _micromanager(value: Any) -> list[_Seen]:
    """PixelSizeUm of the tag 51123 of MicroManager."""
    if isinstance(value, bytes | str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return [_Seen("MicroManager metadata", why_not="its JSON is broken")]
    size = value.get("PixelSizeUm") if isinstance(value, dict) else None
    return [] if size is None else [_Seen("MicroManager PixelSizeUm", _number(size))]


def _picture(path: str) -> list[_Seen]:
    """Resolutions of JPEG, PNG and the other formats of Pillow, from the header only."""
    from PIL import Image

    seen: list[_Seen] = []
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # no pixel is decoded
    try:
        with Image.open(path) as image:
            info, kind = dict(image.info), image.format
            # Asking a PNG for EXIF that its head lacks would decode all of it.
            exif = image.getexif() if kind in ("JPEG", "WEBP") or "exif" in info else {}
            tags = {code: exif.get(code) for code in (282, 283, 296)}
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    # JFIF's unit 0 is an aspect ratio, in nearly every file 1 to 1.
    if kind == "JPEG" and info.get("jfif_unit") in (1, 2):
        um = _TIFF_UNITS[info["jfif_unit"] + 1]
        seen.append(_resolution("JPEG density", *info["jfif_density"], um, for_print=True))
    elif kind != "JPEG" and isinstance(info.get("dpi"), tuple):
        source = "PNG pHYs" if kind == "PNG" else f"{kind} resolution"
        seen.append(_resolution(source, *info["dpi"], 25400.0, for_print=True))
    if tags[282] is not None:
        y = tags[282] if tags[283] is None else tags[283]
        um = _TIFF_UNITS.get(_number(tags[296] or 2))
        seen.append(_resolution("EXIF resolution", tags[282], y, um, for_print=True))
    return seen
