"""Outlines that QuPath (GeoJSON) and ImageJ (ROIs, alone or zipped) wrote, as one geometry."""

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from roifile import ROI_TYPE, ImagejRoi
from shapely.errors import ShapelyError
from shapely.geometry.base import BaseGeometry

from microplastics.data.coco_findings import show
from microplastics.data.coco_load import read_json
from microplastics.errors import UserError

GEOJSON = frozenset((".geojson", ".json"))
ROIS = frozenset((".roi", ".zip"))
_MAX_BYTES, _MAX_ROIS, _MAX_PARTS = 256 << 20, 10_000, 1000
# Points that outlines may have together, and how far out they may lie, in px.
_MAX_POINTS, _FARTHEST = 2_000_000, 1e7
# Points up to which outlines are united or mended exactly: crossings grow with their square.
_EXACT_POINTS = 2000
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
    except OSError as error:
        raise unreadable(path, error) from error
    if content[:4] == b"Iout":
        return _roi_polygons(content, path)
    try:
        return _zipped_polygons(content, path)
    except UserError:
        raise
    # Each way of compression has errors of its own, OSError among them.
    except Exception as error:
        words = str(error) or type(error).__name__
        raise UserError(f"{path} is damaged ({words}); save the ROIs again.") from error


def _zipped_polygons(content: bytes, path: str) -> Polygons:
    polygons: Polygons = []
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = [e for e in archive.infolist() if e.filename.lower().endswith(".roi")]
        if len(entries) > _MAX_ROIS or sum(e.file_size for e in entries) > _MAX_BYTES:
            raise UserError(
                f"{path} holds too many or too large ROIs for a region; give it as a mask image."
            )
        for entry in entries:
            where = f"{path}, {show(entry.filename)}"
            if entry.flag_bits & 1:
                raise UserError(f"{where} is encrypted; save the ROIs without a password.")
            with archive.open(entry) as file:  # the size in the head may be false
                polygons += _roi_polygons(file.read(entry.file_size), where)
    return polygons


def _roi_polygons(content: bytes, where: str) -> Polygons:
    try:
        roi = ImagejRoi.frombytes(content)
        if roi.composite:
            rings = _composite_rings(roi, where)
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
    if len(rings) == 1:
        return [rings]
    (rings,) = checked([rings], where)
    try:
        return _nested(rings, where)
    except ShapelyError as error:
        raise _tangled(where, error) from error


def _composite_rings(roi: ImagejRoi, where: str) -> list[np.ndarray]:
    try:
        return roi.coordinates(multi=True)
    except NotImplementedError as error:
        raise UserError(
            f"{where} has curves, which cannot be read; in ImageJ use Edit > Selection > "
            "Interpolate, or save a mask."
        ) from error


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
        if sum(map(len, rings)) > _EXACT_POINTS:
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


def checked(polygons: Polygons, source: str) -> Polygons:
    """Refuse rings that are none.

    Args:
        polygons: of each its rings: (N, 2) numbers, x and y in px.
        source: where they came from, in words, for errors.

    Returns:
        the same, as float64.

    Raises:
        UserError: a ring has fewer than 3 points, a coordinate makes no sense, or all together
            have too many points.
    """
    arrays = [[np.asarray(ring, dtype=np.float64) for ring in rings] for rings in polygons]
    for ring in (ring for rings in arrays for ring in rings):
        if ring.ndim != 2 or ring.shape[1] != 2 or len(ring) < 3:
            raise UserError(f"{source} has an outline of fewer than 3 points; draw it again.")
        # Written so that NaN fails it too.
        if not (np.abs(ring) <= _FARTHEST).all():
            raise UserError(
                f"{source} has a coordinate that is no place in an image; give coordinates in px."
            )
    points = sum(len(ring) for rings in arrays for ring in rings)
    if points > _MAX_POINTS:
        raise UserError(
            f"{source} has {points} points, more than {_MAX_POINTS}: simplify its outline, or "
            "give the region as a mask image."
        )
    return arrays


def united(polygons: Polygons, source: str) -> BaseGeometry | None:
    """Unite polygons; those that cross themselves are filled by the even-odd rule.

    Args:
        polygons: of each its rings, the outer one first: (N, 2) float64 x and y in px.
        source: where they came from, in words, for errors.

    Returns:
        the exact union; None where it could take for ever: of more than 2000 points in several
        polygons, or in one that crosses itself.

    Raises:
        UserError: the library of geometry gives up.
    """
    try:
        shapes = [shapely.Polygon(rings[0], rings[1:]) for rings in polygons]
        valid = shapely.is_valid(shapes)
        if len(shapes) == 1 and valid[0]:
            return shapes[0]
        if sum(len(ring) for rings in polygons for ring in rings) > _EXACT_POINTS:
            return None
        mended = [
            shape if is_valid else _mended(rings)
            for shape, is_valid, rings in zip(shapes, valid, polygons, strict=True)
        ]
        return _surfaces(shapely.unary_union(mended))
    except ShapelyError as error:
        raise _tangled(source, error) from error


def within(geometry: BaseGeometry, image_size: tuple[int, int], source: str) -> BaseGeometry:
    """Cut a geometry off at the borders of its image.

    Args:
        geometry: polygons, in px.
        image_size: (height, width) of the image in px.
        source: where it came from, in words, for errors.

    Raises:
        UserError: the library of geometry gives up.
    """
    frame = shapely.box(0, 0, image_size[1], image_size[0])
    try:
        return geometry if frame.covers(geometry) else _surfaces(geometry & frame)
    except ShapelyError as error:
        raise _tangled(source, error) from error


def _mended(rings: list[np.ndarray]) -> BaseGeometry:
    parts = shapely.make_valid([shapely.Polygon(ring) for ring in rings])
    outer, *holes = (_surfaces(part) for part in parts)
    return outer - shapely.unary_union(holes)


def _surfaces(geometry: BaseGeometry) -> BaseGeometry:
    """A geometry without what has no area."""
    parts = shapely.get_parts(geometry)
    while (shapely.get_type_id(parts) > shapely.GeometryType.POLYGON).any():
        parts = shapely.get_parts(parts)
    return shapely.MultiPolygon(list(parts[shapely.get_type_id(parts) == 3]))


def _tangled(source: str, error: ShapelyError) -> UserError:
    return UserError(
        f"{source} has outlines that cannot be put together ({error}); draw them again, or give "
        "the region as a mask image."
    )


def unreadable(path: str, error: OSError) -> UserError:
    """Turn an error of reading a file into a sentence.

    Args:
        path: the file.
        error: what the operating system said.

    Returns:
        the exception to raise.
    """
    return UserError(f"Cannot read {path}: {error.strerror or error}; correct the path.")
