"""ImageJ ROI archives: one region of interest a particle, for the ROI Manager."""

import re
import zipfile
from pathlib import Path

import numpy as np
from roifile import ROI_OPTIONS, ROI_TYPE, ImagejRoi

from microplastics.files import atomic_write
from microplastics.inference.writers.base import ImageResult
from microplastics.inference.writers.outlines import Ring, pixel_polygons

# ImageJ reads 16-bit coordinates from -5000 to 60535, and 8-bit groups.
_LARGEST_COORDINATE, _LARGEST_CROP, _LARGEST_GROUP = 60535, 32767, 255
_MOVE_TO, _LINE_TO, _CLOSE = 0, 1, 4
_UNSAFE = re.compile(r'[\x00-\x1f\x7f\ud800-\udfff<>:"/\\|?*]')
_NO_DATE = (1980, 1, 1, 0, 0, 0)


def write_rois(result: ImageResult, path: Path) -> dict[str, int]:
    """Write the particles of one image as a zip of ImageJ ROIs.

    A ROI holds exactly the pixels of its mask: a traced polygon, or a composite where the mask
    has holes or several parts. It is called ``0001 Fiber``, by particle and class; the class is
    also its group (1 for the first class) and colour, and stands with score and calibration in its
    properties.

    Args:
        result: of the image.
        path: of the zip.

    Returns:
        nothing to count.

    Raises:
        UserError: the file cannot be written.
    """
    particles = result.particles
    columns = zip(
        particles.masks,
        particles.offsets.tolist(),
        particles.ids.tolist(),
        particles.classes,
        result.class_numbers,
        particles.scores.tolist(),
        strict=True,
    )
    with atomic_write(path, "wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as zip_:
        for mask, offset, particle, name, number, score in columns:
            roi = _roi(mask, offset)
            roi.name = _plain(f"{particle:04d} {name}")
            roi.group = number + 1 if number < _LARGEST_GROUP else 0
            roi.stroke_color = bytes((255, *result.colors[number]))
            roi.props = _properties(result, name, score)
            # Without a date, the same particles give the same bytes.
            entry = zipfile.ZipInfo(f"{roi.name}.roi", _NO_DATE)
            entry.compress_type = zipfile.ZIP_DEFLATED
            zip_.writestr(entry, roi.tobytes(), compresslevel=1)
    return {}


def _roi(mask: np.ndarray, offset: list[int]) -> ImagejRoi:
    polygons = pixel_polygons(mask, offset)
    height, width = mask.shape
    x0, y0 = offset
    roi = ImagejRoi()
    roi.options = ROI_OPTIONS.OVERLAY_LABELS | ROI_OPTIONS.OVERLAY_BACKGROUNDS
    roi.left, roi.top, roi.right, roi.bottom = x0, y0, x0 + width, y0 + height
    fits = max(roi.right, roi.bottom) <= _LARGEST_COORDINATE and max(mask.shape) <= _LARGEST_CROP
    if len(polygons) == 1 and len(polygons[0]) == 1 and fits:
        points = polygons[0][0]
        corner = points.min(axis=0)
        roi.left, roi.top = corner.tolist()
        roi.right, roi.bottom = points.max(axis=0).tolist()
        roi.roitype = ROI_TYPE.TRACED
        roi.integer_coordinates = (points - corner).astype(np.int32)
        roi.n_coordinates = len(points)
        return roi
    roi.roitype = ROI_TYPE.RECT  # with a path of whole coordinates: a composite
    path = np.concatenate([_path(ring) for rings in polygons for ring in rings])
    roi.multi_coordinates = path
    roi.shape_roi_size = len(path)
    return roi


def _path(ring: Ring) -> np.ndarray:
    """A ring as the numbers of a Java path, filled by the even-odd rule."""
    steps = np.empty((len(ring), 3), dtype=np.float32)
    steps[:, 0] = _LINE_TO
    steps[0, 0] = _MOVE_TO
    steps[:, 1:] = ring
    return np.append(steps.ravel(), np.float32(_CLOSE))


def _properties(result: ImageResult, name: str, score: float) -> str:
    """Lines of ``key: value`` as ``java.util.Properties`` reads them."""
    values = {"class": name}
    if np.isfinite(score):
        values["score"] = f"{score:.6g}"
    if result.calibration is not None:
        values["um_per_px"] = repr(result.calibration.um_per_px)
        values["calibration_source"] = result.calibration.source
    return "".join(f"{key}: {_escape(value)}\n" for key, value in values.items())


def _escape(text: str) -> str:
    escaped = []
    for character in text:
        if " " <= character <= "~" and character != "\\":
            escaped.append(character)
        else:
            units = character.encode("utf-16-be", "surrogatepass").hex()
            escaped += (f"\\u{units[i : i + 4]}" for i in range(0, len(units), 4))
    return "".join(escaped)


def _plain(name: str) -> str:
    """A name that is safe in a zip and of one UTF-16 unit a character, as roifile counts them."""
    name = "".join(c if ord(c) < 0x10000 else "\ufffd" for c in name)
    return _UNSAFE.sub("_", name)[:100]
