"""GeoJSON for QuPath and ROI archives for ImageJ."""

import json
import math
import re
import uuid
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from roifile import ROI_OPTIONS, ROI_TYPE, ImagejRoi

from microplastics import __version__
from microplastics.data.segmentation import outline_corners, outline_rings
from microplastics.utils.io import atomic_write
from microplastics.writers.tables import ImageResult

Ring = np.ndarray

# Ids are derived in this namespace from the image's name and the particle.
_NAMESPACE = uuid.UUID("0d7f3f0c-5c53-5b8e-9a3e-6d1c5f4b2a90")
# Told elsewhere in the feature.
_NO_MEASUREMENT = frozenset(("image", "particle", "class"))
# ImageJ reads 16-bit coordinates from -5000 to 60535, and 8-bit groups.
_LARGEST_COORDINATE, _LARGEST_CROP, _LARGEST_GROUP = 60535, 32767, 255
_MOVE_TO, _LINE_TO, _CLOSE = 0, 1, 4
_UNSAFE = re.compile(r'[\x00-\x1f\x7f\ud800-\udfff<>:"/\\|?*]')
_NO_DATE = (1980, 1, 1, 0, 0, 0)


def pixel_polygons(mask: np.ndarray, offset: Sequence[int] = (0, 0)) -> list[list[Ring]]:
    """Outline a mask so that the polygons hold exactly its pixels.

    Every polygon is valid in the sense of OGC Simple Features: pixels that touch only at a
    corner are two polygons (4-connected), no ring meets itself, and holes touch other rings in
    single points at most. :func:`microplastics.data.segmentation.mask_to_polygons` keeps such
    pixels in one ring and joins holes to it, as COCO needs it.

    Args:
        mask: (h, w) bool, with at least one pixel.
        offset: x and y of its first pixel, added to all points.

    Returns:
        for each polygon its rings, the outer one first: (N, 2) int64 corners x, y in px, the first
        one not repeated, outer rings clockwise on the screen, holes counter-clockwise.
    """
    padded = np.pad(mask, 1)
    ys, xs, partners, doubled = outline_corners(padded, 4)
    rings = outline_rings(partners)
    # All begin along a top edge to the right: with the mask below it, or a hole.
    rings = [r if padded[ys[r[0]] + 1, xs[r[0]] + 1] else r[::-1] for r in rings]
    if doubled:
        places = (ys * padded.shape[1] + xs).tolist()
        rings = [simple for ring in rings for simple in _split(ring, places)]
    points = np.column_stack([xs, ys])
    shift = np.asarray(offset, dtype=np.int64)
    if len(rings) == 1:
        return [[points[rings[0]] + shift]]
    parts = cv2.connectedComponents(padded.astype(np.uint8), connectivity=4)[1]
    polygons: dict[int, list[Ring]] = {}
    for loop in (points[ring] for ring in rings):
        # The part has a pixel below the topmost edge of its outer ring, and above that of a hole.
        x, y = loop[np.lexsort(loop.T)[0]]
        outer = _signed_area(loop) > 0
        own = polygons.setdefault(parts[y + outer, x + 1], [])
        own.insert(0 if outer else len(own), loop + shift)
    return list(polygons.values())


def _split(ring: list[int], places: list[int]) -> list[list[int]]:
    """Cut a ring that meets itself in corners into rings that do not."""
    simple, path, position = [], [], {}
    for corner in ring:
        place = places[corner]
        if place in position:
            start = position[place]
            loop = path[start:]
            del path[start:]
            for other in loop:
                del position[places[other]]
            simple.append(loop)
        position[place] = len(path)
        path.append(corner)
    simple.append(path)
    return simple


def _signed_area(loop: Ring) -> int:
    """Twice the area, positive if the loop runs clockwise on the screen."""
    x, y = loop[:, 0], loop[:, 1]
    return int(x[:-1] @ y[1:] - x[1:] @ y[:-1] + x[-1] * y[0] - x[0] * y[-1])


def write_geojson(result: ImageResult, path: Path) -> dict[str, int]:
    """Write the particles of one image as a FeatureCollection that QuPath (0.4 and later) imports.

    Geometries hold exactly the pixels of the masks and are valid, with holes. The objects are
    detections: they show their measurements, their class can be changed and they can be deleted.
    """
    particles = result.particles
    rows = zip(
        particles.masks,
        particles.offsets.tolist(),
        result.class_numbers,
        result.table.to_dict("records"),
        strict=True,
    )
    about = {"version": __version__, **result.provenance}
    head = {"type": "FeatureCollection", "microplastics": about, "features": []}
    separator = "\n"
    with atomic_write(path) as file:
        file.write(json.dumps(head)[: -len("]}")])
        for mask, offset, number, row in rows:
            measurements, metadata = _described(row)
            feature = {
                "type": "Feature",
                "id": str(uuid.uuid5(_NAMESPACE, f"{particles.image}\n{row['particle']}")),
                "geometry": _geometry(pixel_polygons(mask, offset)),
                "properties": {
                    "objectType": "detection",
                    "name": str(row["particle"]),
                    "classification": {"name": row["class"], "color": result.colors[number]},
                    "measurements": measurements,
                    "metadata": metadata,
                },
            }
            file.write(separator + json.dumps(feature))
            separator = ",\n"
        file.write("\n]}\n")
    return {}


def _described(row: dict[str, Any]) -> tuple[dict[str, float], dict[str, str]]:
    """The numbers and the texts of a row by column, without missing ones."""
    numbers, texts = {}, {}
    for column, value in row.items():
        if column not in _NO_MEASUREMENT and not pd.isna(value):
            if isinstance(value, str):
                texts[column] = value
            elif math.isfinite(value):
                rounded = float(f"{value:.7g}")
                whole = rounded.is_integer() and abs(rounded) < 2**53
                numbers[column] = int(rounded) if whole else rounded
    return numbers, texts


def _geometry(polygons: list[list[Ring]]) -> dict[str, Any]:
    coordinates = [[_closed(ring) for ring in rings] for rings in polygons]
    if len(coordinates) == 1:
        return {"type": "Polygon", "coordinates": coordinates[0]}
    return {"type": "MultiPolygon", "coordinates": coordinates}


def _closed(ring: Ring) -> list[list[int]]:
    points = ring.tolist()
    points.append(points[0])
    return points


def write_rois(result: ImageResult, path: Path) -> dict[str, int]:
    """Write the particles of one image as a zip of ImageJ ROIs.

    A ROI holds exactly the pixels of its mask: a traced polygon, or a composite where the mask
    has holes or several parts. It is called ``0001 Fiber``, by particle and class; the class is
    also its group (1 for the first class) and colour, and stands with score and calibration in its
    properties.
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
        roi.roitype = ROI_TYPE.TRACED
        roi.integer_coordinates = (polygons[0][0] - offset).astype(np.int32)
        roi.n_coordinates = len(roi.integer_coordinates)
    else:
        roi.roitype = ROI_TYPE.RECT  # with a path of whole coordinates: a composite
        roi.multi_coordinates = np.concatenate([_path(ring) for each in polygons for ring in each])
        roi.shape_roi_size = len(roi.multi_coordinates)
    return roi


def _path(ring: Ring) -> np.ndarray:
    """A ring as the numbers of a Java path, filled by the even-odd rule."""
    commands = np.full((len(ring), 1), _LINE_TO)
    commands[0] = _MOVE_TO
    return np.append(np.hstack([commands, ring]), _CLOSE).astype(np.float32)


def _properties(result: ImageResult, name: str, score: float) -> str:
    """Lines of ``key: value`` as ``java.util.Properties`` reads them."""
    values = {"class": name}
    if np.isfinite(score):
        values["score"] = f"{score:.6g}"
    if result.calibration is not None:
        values["um_per_px"] = repr(result.calibration.um_per_px)
        values["calibration_source"] = result.calibration.source
    # Java reads the escapes of JSON.
    return "".join(f"{key}: {json.dumps(value)[1:-1]}\n" for key, value in values.items())


def _plain(name: str) -> str:
    """A name that is safe in a zip and of one UTF-16 unit a character, as roifile counts them."""
    name = "".join(c if ord(c) < 0x10000 else "\ufffd" for c in name)
    return _UNSAFE.sub("_", name)[:100]
