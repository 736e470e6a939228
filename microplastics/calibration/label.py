"""Number and unit beside a scale bar, read by RapidOCR if it is installed."""

import functools
import logging
import re
from typing import Any

import cv2
import numpy as np

from microplastics.utils.errors import UserError

# µm of a unit. The line is read by shape: a micro sign comes out as one of its look-alikes.
_UNITS = {"mm": 1000.0, "nm": 0.001, "cm": 10_000.0}
_MICRO = re.compile(r"[µμuUpyjH]m|microns?|um", re.IGNORECASE)
_LABEL = re.compile(r"(\d{1,5}(?:[.,]\d{1,4})?)([^\d\s.,]{2,7})")
_ZEROS = re.compile(r"(?<=\d)[OoQ]+")
_LEAST_SCORE = 0.7
_HEIGHT = 48  # px of a line as the network takes it
_WHITE = 0.4  # heights around a line


def is_installed() -> bool:
    """Whether labels can be read."""
    try:
        _reader()
    except ImportError:
        return False
    return True


def check_installed() -> None:
    """Check that labels can be read.

    Raises:
        UserError: ``dependency_missing``.
    """
    if not is_installed():
        raise UserError(
            "--scale-bar auto reads the number beside the bar, for which RapidOCR is not "
            "installed; run pip install 'microplastics[ocr]', or give the number by "
            "--scale-bar-um.",
            code="dependency_missing",
        )


def read_label(image: np.ndarray, dark: bool) -> float | None:
    """Read the length that a label names.

    It is read twice, as it is and with its contrast stretched; a length counts if no reading
    contradicts it.

    Args:
        image: uint8 (h, w, 3), BGR, the label with a little ground around it.
        dark: whether its ink is darker than its ground.

    Returns:
        µm; None if it is no number with a unit, or cannot be read for certain.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    grey = grey if dark else 255 - grey
    low, high = np.percentile(grey, (1, 90))
    even = np.clip((grey - low) * (255 / max(high - low, 1)), 0, 255).astype(np.uint8)
    lengths = set()
    for plane in (grey, even):
        scale = _HEIGHT / plane.shape[0]
        plane = cv2.resize(plane, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
        margin = round(_WHITE * _HEIGHT / 2)
        ground = int(np.percentile(plane, 75))
        plane = cv2.copyMakeBorder(plane, *[margin] * 4, cv2.BORDER_CONSTANT, value=ground)
        read = _reader()(np.dstack([plane] * 3), use_det=False, use_cls=False, use_rec=True)
        for text, score in zip(read.txts or (), read.scores or (), strict=True):
            length = parse_label(text) if score >= _LEAST_SCORE else None
            if length is not None:
                lengths.add(length)
    return lengths.pop() if len(lengths) == 1 else None


def parse_label(text: str) -> float | None:
    """Return the length in µm that a text such as ``0,5 mm`` names; None if it names none."""
    text = _ZEROS.sub(lambda letters: "0" * len(letters[0]), "".join(text.split()))
    match = _LABEL.fullmatch(text)
    if match is None:
        return None
    number, unit = match.groups()
    factor = 1.0 if _MICRO.fullmatch(unit) else _UNITS.get(unit.lower())
    length = float(number.replace(",", "."))
    return length * factor if factor and length > 0 else None


@functools.cache
def _reader() -> Any:
    """The network that reads lines, whose weights are in the package.

    Raises:
        ImportError: it is not installed.
    """
    import onnxruntime  # noqa: F401  RapidOCR itself only asks for it at the first line
    from rapidocr import RapidOCR

    reader = RapidOCR(params={"Global.log_level": "critical"})
    logging.getLogger("RapidOCR").setLevel(logging.CRITICAL)
    return reader
