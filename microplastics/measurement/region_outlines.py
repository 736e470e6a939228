"""Outlines that QuPath (GeoJSON) and ImageJ (ROIs, alone or zipped) wrote, as polygons."""

import io
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from roifile import ROI_TYPE, ImagejRoi

from microplastics.data.coco_findings import show
from microplastics.data.coco_load import read_json
from microplastics.errors import UserError

GEOJSON = frozenset((".geojson", ".json"))
ROIS = frozenset((".roi", ".zip"))
_MAX_BYTES, _MAX_ROIS, _MAX_PARTS = 256 << 20, 10_000, 1000
# Points of a composite up to which outlines that cross themselves are mended.
_MAX_CROSSING = 2000
_OVAL_POINTS = 720
_POLYGONAL = (ROI_TYPE.POLYGON, ROI_TYPE.FREEHAND, ROI_TYPE.TRACED)

Polygons = list[list[np.ndarray]]


def read_polygons(path: str) -> Polygons:
    """Read the polygons of a GeoJSON or ROI file.

    Args:
        path: the file; its suffix tells the kind.

    Returns:
        of each polygon its rings, the outer one first: (N, 2) float64 x and y in px.

    Raises:
        UserError: the file is missing, broken, or holds something that has no area.
    """
    try:
        size = os.path.getsize(path)
    except OSError as error:
        raise unreadable(path, error) from error
    if size > _MAX_BYTES:
        raise UserError(f"{path} is too large for an outline; simplify it, or give a mask image.")
    polygons = _read_geojson(path) if Path(path).suffix.lower() in GEOJSON else _read_rois(path)
    if not polygons:
        raise UserError(f"{path} holds no outline; draw the region and export it again.")
    return polygons


def _read_geojson(path: str) -> Polygons:
    """All polygons of a file of GeoJSON, as QuPath exports it."""
    meant = "GeoJSON; export the region from QuPath as GeoJSON"
    waiting: list[Any] = [read_json(path, (dict, list), meant)]
    polygons: Polygons = []
    while waiting:
        item = waiting.pop()
        kind = item.get("type") if isinstance(item, dict) else None
        if isinstance(item, list):
            waiting += reversed(item)
        elif kind in ("FeatureCollection", "GeometryCollection"):
            parts = item.get("features" if kind == "FeatureCollection" else "geometries")
            if not isinstance(parts, list):
                raise UserError(f"{path} has a {kind} without a list of parts; export it again.")
            waiting += reversed(parts)
        elif kind == "Feature":
            waiting.append(item.get("geometry"))
        elif kind == "Polygon":
            polygons.append(_geojson_rings(item.get("coordinates"), path))
        elif kind == "MultiPolygon" and isinstance(item.get("coordinates"), list):
            polygons += [_geojson_rings(rings, path) for rings in item["coordinates"]]
        else:
            raise UserError(
                f"{path} holds {show(kind) if kind else show(item)} where a Polygon or "
                "MultiPolygon is needed; outline the region as an area and export it again."
            )
    return polygons


def _geojson_rings(rings: Any, path: str) -> list[np.ndarray]:
    arrays = []
    for ring in rings if isinstance(rings, list) else ():
        try:
            array = np.asarray(ring)
        except (ValueError, OverflowError):  # lists of different lengths
            break
        if array.dtype.kind not in "iuf" or array.ndim != 2 or array.shape[1] < 2:
            break
        arrays.append(array[:, :2].astype(np.float64))
    if not arrays or len(arrays) != len(rings):
        raise UserError(
            f"{path} has a polygon whose coordinates are no lists of x and y; export it again."
        )
    return arrays


def _read_rois(path: str) -> Polygons:
    try:
        with open(path, "rb") as file:
            content = file.read(_MAX_BYTES)
        if content[:4] == b"Iout":
            return _roi_polygons(content, path)
        polygons: Polygons = []
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = [e for e in archive.infolist() if e.filename.lower().endswith(".roi")]
            if len(entries) > _MAX_ROIS or sum(e.file_size for e in entries) > _MAX_BYTES:
                raise UserError(f"{path} holds too many or too large ROIs for a region.")
            for entry in entries:
                with archive.open(entry) as file:  # the size in the head may be false
                    content = file.read(entry.file_size)
                polygons += _roi_polygons(content, f"{path}, {show(entry.filename)}")
        return polygons
    except OSError as error:
        raise unreadable(path, error) from error
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} is damaged ({error}); save the ROIs again.") from error


def _roi_polygons(content: bytes, where: str) -> Polygons:
    try:
        roi = ImagejRoi.frombytes(content)
        if roi.composite:
            rings = roi.coordinates(multi=True)
        elif roi.roitype in _POLYGONAL:
            rings = [roi.coordinates()]
        elif roi.roitype in (ROI_TYPE.RECT, ROI_TYPE.OVAL):
            return [[_framed(roi)]]
        else:
            name = roi.roitype.name.lower()
            raise UserError(f"{where} is a {name}, which has no area; outline the region.")
    # A stranger's bytes can make roifile raise nearly anything.
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{where} is damaged ({error}); save the ROIs again.") from error
    rings = [np.asarray(ring, dtype=np.float64) for ring in rings if len(ring) > 2]
    if not rings:
        raise UserError(f"{where} has no outline; draw the region and save it again.")
    return [rings] if len(rings) == 1 else _nested(rings, where)


def _framed(roi: ImagejRoi) -> np.ndarray:
    """The outline of a rectangle, with round corners or not, or of an oval."""
    x, y, width, height = roi.left, roi.top, roi.right - roi.left, roi.bottom - roi.top
    if roi.subpixelrect:
        x, y, width, height = roi.xd, roi.yd, roi.widthd, roi.heightd
    if roi.roitype == ROI_TYPE.OVAL:
        angle = np.linspace(0, 2 * np.pi, _OVAL_POINTS, endpoint=False)
        round_ = np.column_stack([np.cos(angle), np.sin(angle)]) + 1
        return round_ * (width / 2, height / 2) + (x, y)
    arc = min(roi.rounded_rect_arc_size / 2, width / 2, height / 2)
    if arc <= 0:
        return np.array([(x, y), (x + width, y), (x + width, y + height), (x, y + height)], float)
    core = shapely.box(x + arc, y + arc, x + width - arc, y + height - arc)
    return shapely.get_coordinates(core.buffer(arc, quad_segs=32).exterior)


def _nested(rings: list[np.ndarray], where: str) -> Polygons:
    """Rings of a composite, which do not cross, as polygons with their holes."""
    if len(rings) > _MAX_PARTS:
        raise UserError(f"{where} has {len(rings)} parts; give the region as a mask image.")
    shapes = [shapely.Polygon(ring) for ring in rings]
    if not shapely.is_valid(shapes).all():
        if sum(map(len, rings)) > _MAX_CROSSING:
            raise UserError(f"{where} has outlines that cross themselves; draw it again.")
        shapes = [shapely.make_valid(shape) for shape in shapes]
    order = sorted(range(len(rings)), key=lambda i: -shapes[i].area)
    owners: dict[int, int] = {}  # of the rings that are no holes: their polygon
    polygons: Polygons = []
    for place, index in enumerate(order):
        around = [i for i in order[:place] if shapes[i].covers(shapes[index].point_on_surface())]
        if len(around) % 2:
            polygons[owners[[i for i in around if i in owners][-1]]].append(rings[index])
        else:
            owners[index] = len(polygons)
            polygons.append([rings[index]])
    return polygons


def unreadable(path: str, error: OSError) -> UserError:
    """Turn an ``OSError`` of reading ``path`` into a sentence."""
    return UserError(f"Cannot read {path}: {error.strerror or error}; correct the path.")
