"""The scale that an image file itself carries.

Programs write a resolution into nearly every file, most of it meant for printers. What is used
is said by its source, and what is not used by a note with the reason.
"""

import json
import math
import os
import re
import warnings
from typing import Any
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
# ResolutionUnit beyond the standard's inch and cm, as tifffile writes it: mm and µm.
_FINE_UNITS = {4: 1000.0, 5: 1.0}
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

_PREFIXES = {"Y": 24, "Z": 21, "E": 18, "P": 15, "T": 12, "G": 9, "M": 6, "k": 3, "h": 2, "da": 1}
_PREFIXES |= {"": 0, "d": -1, "c": -2, "m": -3, "µ": -6, "u": -6, "n": -9, "p": -12, "f": -15}
_PREFIXES |= {"a": -18, "z": -21, "y": -24}
# Units of length in µm: SI, and the others of OME-XML and ImageJ.
UNITS = {f"{prefix}m": 10.0 ** (power + 6) for prefix, power in _PREFIXES.items()}
UNITS |= {"Å": 1e-4, "angstrom": 1e-4, "thou": 25.4, "li": 25400 / 12, "in": 25400.0}
UNITS |= {"ft": 304800.0, "yd": 914400.0, "mi": 1.609344e9, "pt": 25400 / 72}
UNITS |= {"ua": 1.495978707e17, "ly": 9.4607304725808e21, "pc": 3.0856775814913673e22}
UNITS |= dict.fromkeys(("micron", "microns", "micrometer", "micrometre", "micrometers"), 1.0)
UNITS |= dict.fromkeys(("micrometres", "\\u00b5m"), 1.0)
UNITS |= dict.fromkeys(("inch", "inches", '"'), 25400.0)
UNITS |= {"nanometer": 1e-3, "millimeter": 1e3, "centimeter": 1e4, "meter": 1e6}


def read_metadata(path: str | os.PathLike) -> tuple[list[Calibration], list[str]]:
    """Read the scales that a file's metadata give.

    Args:
        path: image file; its pixels are not read.

    Returns:
        The scales with their sources, the most telling first, and notes: sentences about
        metadata that was seen and not used, and why.

    Raises:
        UserError: the pixels are not square.
    """
    path = os.fspath(path)
    try:
        with open(path, "rb") as file:
            head = file.read(4)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"Cannot read {path}: {reason}; correct the path.") from error
    with warnings.catch_warnings():
        # Readers warn of each odd tag; the notes say what matters here.
        warnings.simplefilter("ignore")
        try:
            seen = _tiff(path) if head in _TIFF_MAGIC else _picture(path)
        except Exception as error:  # hostile bytes make the parsers raise nearly anything
            words = str(error).split("\n")[0][:120] or type(error).__name__
            return [], [f"{path}: its metadata cannot be read ({words})."]
    found, notes = [], []
    for source, x, y, why_not in seen:
        if why_not is None:
            why_not = _implausible(x)
        if why_not is not None:
            notes.append(f"{path}: {source} is not used: {why_not}.")
            continue
        if y is not None and abs(x - y) > 0.01 * max(x, y):
            raise UserError(
                f"{path}: {source} says that its pixels are not square ({x:g} x {y:g} µm): "
                "resample the image, or give its true scale by --um-per-px with --ignore-metadata."
            )
        found.append(Calibration(x, source))
    return found, notes


# What a reader saw: source, µm per pixel along x, along y or None, and why it is none or None.
_Seen = tuple[str, float, float | None, str | None]


def _implausible(scale: float) -> str | None:
    """Why a scale in µm per pixel is no microscope's, or None."""
    low, high = _MICROSCOPE
    if not math.isfinite(scale) or scale <= 0:
        return "it is no positive number"
    if not low <= scale <= high:
        return f"{scale:g} µm per pixel is outside the {low:g} to {high:g} of microscopes"
    return None


def _density(source: str, x: Any, y: Any, unit_um: float) -> _Seen:
    """What a resolution in pixels per unit says, print resolutions told apart."""
    x, y = _number(x), _number(y)
    if not (x > 0 and y > 0 and math.isfinite(x) and math.isfinite(y)):
        return source, math.nan, None, "it is no positive number"
    scale = unit_um / x
    dpi, per_cm = 25400 / scale, 10000 / scale
    whole = min(abs(dpi - round(dpi)), abs(per_cm - round(per_cm))) <= 0.02
    listed = any(abs(dpi - one) <= 0.02 for one in _PRINT_DPI)
    if (dpi <= _MAX_PRINT_DPI and whole) or listed:
        words = f"{dpi:.6g} dpi is a setting for print or screen; if it is the scale, give "
        return source, scale, None, f"{words}--um-per-px {scale:.6g}"
    return source, scale, unit_um / y, None


def _number(value: Any) -> float:
    """A number out of a tag: a number, a fraction as a pair, or text; NaN for anything else."""
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

    seen: list[_Seen] = []
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        tags = {
            code: page.tags[code].value for code in (270, 282, 283, 296, 51123) if code in page.tags
        }
    description = tags.get(270)
    description = description if isinstance(description, str) else ""
    if len(description) > _MAX_DESCRIPTION:
        return [("ImageDescription", math.nan, None, "it is too long to be read")]
    if description.rstrip("\0 \n").endswith("OME>"):
        seen += _ome(description)
    if 51123 in tags:
        seen += _micromanager(tags[51123])
    if description.startswith("Aperio") or re.search(r"\|\s*MPP\s*=", description[:100_000]):
        match = re.search(r"\bMPP\s*=\s*([^|\s]{1,40})", description[:100_000])
        if match:
            seen.append(("Aperio MPP", _number(match[1]), None, None))
    x, y = tags.get(282), tags.get(283, tags.get(282))
    if description.startswith("ImageJ="):
        match = re.search(r"^unit=([^\n]{1,60})$", description[:100_000], re.MULTILINE)
        if match and x is not None:
            return [*seen, _imagej(match[1].strip(), _number(x), _number(y))]
    # 1 to 1 without a unit is what writers put that have nothing to say.
    unit = _code(tags.get(296, 2))
    if x is not None and not (unit == 1 and _number(x) == _number(y) == 1):
        unit_um = {2: 25400.0, 3: 10000.0}.get(unit)
        source = "TIFF resolution tags"
        if unit in _FINE_UNITS:
            seen.append(_resolution(source, _number(x), _number(y), _FINE_UNITS[unit]))
        elif unit_um is None:
            seen.append((source, math.nan, None, "they have no unit of length"))
        else:
            seen.append(_density(source, x, y, unit_um))
    return seen


def _imagej(unit: str, x: float, y: float) -> _Seen:
    """ImageJ's resolution in pixels per unit of its own."""
    source, um = "ImageJ metadata", _unit(unit)
    if um is None:
        return source, math.nan, None, f"its unit is {unit!r}, which is no length"
    return _resolution(source, x, y, um)


def _resolution(source: str, x: float, y: float, unit_um: float) -> _Seen:
    """What a resolution in pixels per unit says that no printer's program writes."""
    if not (x > 0 and y > 0):
        return source, math.nan, None, "it is no positive number"
    return source, unit_um / x, unit_um / y, None


def _code(value: Any) -> int:
    number = _number(value)
    return int(number) if math.isfinite(number) else 0


def _unit(name: str) -> float | None:
    """µm of a unit of length, or None."""
    name = name.strip().replace("\u03bc", "µ")
    return UNITS.get(name, UNITS.get(name.lower()))


def _ome(text: str) -> list[_Seen]:
    """PhysicalSizeX and PhysicalSizeY of the first image of OME-XML."""
    source = "OME-XML PhysicalSizeX"
    # Entities can unfold to gigabytes; OME-XML has none.
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        return [(source, math.nan, None, "its XML declares a document type, which is refused")]
    try:
        root = ElementTree.fromstring(text.rstrip("\0 \n").encode())
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        return [(source, math.nan, None, f"its XML is broken ({error})")]
    pixels = next((e for e in root.iter() if e.tag.rpartition("}")[2] == "Pixels"), None)
    if pixels is None or pixels.get("PhysicalSizeX") is None:
        return []
    sizes = []
    for axis in "XY":
        unit = pixels.get(f"PhysicalSize{axis}Unit", "µm")
        um = _unit(unit)
        if um is None:
            return [(source, math.nan, None, f"its unit is {unit[:40]!r}, which is no length")]
        value = pixels.get(f"PhysicalSize{axis}")
        sizes.append(None if value is None else _number(value) * um)
    return [(source, sizes[0], sizes[1], None)]


def _micromanager(value: Any) -> list[_Seen]:
    """PixelSizeUm of the tag 51123 of MicroManager."""
    if isinstance(value, bytes | str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return [("MicroManager metadata", math.nan, None, "its JSON is broken")]
    size = value.get("PixelSizeUm") if isinstance(value, dict) else None
    if size is None:
        return []
    return [("MicroManager PixelSizeUm", _number(size), None, None)]


def _picture(path: str) -> list[_Seen]:
    """Resolutions of JPEG, PNG and what else Pillow reads, from the head alone."""
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
    unit_um = {2: 25400.0, 3: 10000.0}.get(_code(tags[296] or 2))
    if kind == "JPEG" and "jfif_density" in info:
        um = {1: 25400.0, 2: 10000.0}.get(info.get("jfif_unit"))
        # Unit 0 is an aspect ratio, in nearly every file 1 to 1.
        if um is not None:
            seen.append(_density("JPEG density", *info["jfif_density"], um))
    elif kind == "PNG" and "dpi" in info:
        seen.append(_density("PNG pHYs", *info["dpi"], 25400.0))
    elif kind not in ("JPEG", "PNG") and isinstance(info.get("dpi"), tuple):
        seen.append(_density(f"{kind} resolution", *info["dpi"], 25400.0))
    if tags[282] is not None:
        source = "EXIF resolution"
        if unit_um is None:
            seen.append((source, math.nan, None, "it has no unit of length"))
        else:
            y = tags[282] if tags[283] is None else tags[283]
            seen.append(_density(source, tags[282], y, unit_um))
    return seen
