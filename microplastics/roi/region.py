"""What ``--region`` names: "circle", a file, or a folder with one file an image."""

import hashlib
import io
import math
import os
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import shapely
from PIL import Image
from roifile import ROI_TYPE, ImagejRoi
from shapely.errors import ShapelyError
from shapely.geometry.base import BaseGeometry

from microplastics.data.coco import show
from microplastics.data.formats.masks import read_label_image
from microplastics.data.images import EXIF_ORIENTATION, MAX_PIXELS, open_image, reading
from microplastics.data.images import image_size as size_of_file
from microplastics.data.large_images import SegmentCache, TiffPixels, is_readable
from microplastics.data.segmentation import outline_corners, outline_rings, read_json
from microplastics.roi.circle import MAX_SIDE, NoCircleError, find_circle
from microplastics.utils.errors import UserError

if TYPE_CHECKING:
    import tifffile

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


# Side of the grid on which masks are kept, in cells.
MAX_GRID = 4096
# Cells that outlines on a grid may pass through, and that their boxes may have, together.
_MAX_CROSSED, _MAX_BOXES = 20_000_000, 1_000_000_000
_CHUNK = 2_000_000
# Binary digits of a cell to which OpenCV draws.
_SHIFT = 4
_CIRCLE_POINTS = 720
# Side of the grid on which a mask is outlined, in cells, and how many corners make it coarser.
_OUTLINE_SIDE, _MAX_CORNERS = 1024, 100_000
# Points are asked for so many px beside their place (see Region.contains).
_BESIDE = np.array([1.0, math.sqrt(2)]) * 1e-7


class Region:
    """The part of one image in which particles count; made by the ``from_…`` methods.

    Attributes:
        image_size: (height, width) of the image in px.
        source: where it came from, in words.
        area_px: pixels inside.
    """

    def __init__(
        self, shape: "_Circle | _Polygons | _Mask", image_size: tuple[int, int], source: str
    ):
        """Take a shape; raises UserError where no pixel of the image is inside."""
        self._shape, self.image_size, self.source = shape, image_size, source
        self.area_px = shape.area()
        if self.area_px < 1:
            raise UserError(
                f"{source} has no pixel inside the image of {image_size[1]} x {image_size[0]} px; "
                "give a region in px of this image, (0, 0) being its upper left corner."
            )

    @classmethod
    def from_circle(
        cls,
        center: tuple[float, float],
        radius: float,
        image_size: tuple[int, int],
        source: str | None = None,
    ) -> "Region":
        """Take what lies in a circle and in the image.

        Args:
            center: x and y in px; the first pixel's centre is (0.5, 0.5).
            radius: in px.
            image_size: (height, width) of the image in px.
            source: where the circle came from; None tells centre and radius.

        Raises:
            UserError: no pixel's centre lies inside.
        """
        x, y = float(center[0]), float(center[1])
        if not all(map(math.isfinite, (x, y, radius))):
            raise ValueError(f"a circle at ({x}, {y}) of radius {radius}")
        words = source or f"circle at ({x:.1f}, {y:.1f}), radius {radius:.1f} px"
        return cls(_Circle(x, y, float(radius), image_size), image_size, words)

    @classmethod
    def from_polygons(
        cls, polygons: Polygons, image_size: tuple[int, int], source: str
    ) -> "Region":
        """Take the union of polygons.

        Outlines that cross themselves are filled by the even-odd rule. More than 2000 points in
        several polygons, or in one that crosses itself, are drawn on a grid of at most 4096 cells
        a side: exact, pixel by pixel, in images no larger than that.

        Args:
            polygons: of each its rings, the outer one first and then its holes: (N, 2) x and y
                in px of the image, the first pixel's centre being (0.5, 0.5).
            image_size: (height, width) of the image in px.
            source: where they came from, in words, for errors too.

        Raises:
            UserError: coordinates make no sense, there are too many, or no pixel is inside.
        """
        polygons = checked(polygons, source)
        geometry = united(polygons, source)
        if geometry is not None:
            geometry = within(geometry, image_size, source)
            return cls(_Polygons(geometry, image_size), image_size, source)
        return cls(_drawn(polygons, image_size, source), image_size, source)

    @classmethod
    def from_mask(
        cls,
        mask: np.ndarray,
        image_size: tuple[int, int],
        source: str,
        *,
        touched: np.ndarray | None = None,
        step: int = 1,
        full_size: tuple[int, int] | None = None,
        pixels: int | None = None,
    ) -> "Region":
        """Take the pixels of a mask, scaled up to the image by the nearest.

        Args:
            mask: (h, w) bool, at most 4096 a side. Its aspect ratio is not checked.
            image_size: (height, width) of the image in px.
            source: where it came from, in words.
            touched: (h, w) bool, cells of which any pixel is inside; None: those of ``mask``.
            step: px of the full mask along a cell, where it was shrunk.
            full_size: (height, width) in px of the mask before that; None: that of ``mask``.
            pixels: how many px of the full mask are inside; None counts cells.

        Raises:
            UserError: no pixel is inside.
        """
        if max(mask.shape) > MAX_GRID:
            raise ValueError(f"a mask of {mask.shape}, larger than {MAX_GRID} a side")
        full = full_size or mask.shape
        cells = tuple(_cells(side, part, step) for side, part in zip(image_size, full, strict=True))
        shape = _Mask(mask, mask if touched is None else touched, *cells)
        if pixels is not None:
            share = image_size[0] * image_size[1] / (full[0] * full[1])
            shape.known_area = round(pixels * share)
        return cls(shape, image_size, source)

    def contains(self, points: np.ndarray) -> np.ndarray:
        """Tell which points lie inside.

        Of regions that abut, a point on the common border lies in one alone: points are asked for
        1e-7 px to the right of and below their place, in a direction that no border has.

        Args:
            points: (N, 2) x and y in px; the first pixel's centre is (0.5, 0.5).

        Returns:
            (N,) bool; False outside of the image.
        """
        points = np.asarray(points, dtype=np.float64).reshape(-1, 2)
        height, width = self.image_size
        x, y = points.T
        inside = (x >= 0) & (y >= 0) & (x < width) & (y < height)
        inside[inside] = self._shape.contains(points[inside])
        return inside

    def meets(self, x0: float, y0: float, x1: float, y1: float) -> bool:
        """Tell whether a box may hold a pixel of the region; never False where it does.

        Args:
            x0, y0: left upper corner in px.
            x1, y1: right lower corner in px, not included.
        """
        height, width = self.image_size
        x0, y0, x1, y1 = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
        return x0 < x1 and y0 < y1 and self._shape.meets(x0, y0, x1, y1)

    def outlines(self) -> list[np.ndarray]:
        """Outline the region within the image, holes too, for drawing.

        A mask is outlined on a grid of at most 1024 cells a side, each of which is inside if at
        least half of it is; on a coarser one where that has more than 100,000 corners.

        Returns:
            closed outlines, (M, 2) float64 x and y in px of the image.
        """
        return self._shape.outlines()


# What is inside of a region. Points and boxes that these classes are asked for lie in the image.


class _Circle:
    def __init__(self, x: float, y: float, radius: float, image_size: tuple[int, int]):
        self._x, self._y, self._radius = x, y, radius
        self._height, self._width = image_size

    def area(self) -> int:
        """Pixels whose centre lies inside, counted row by row."""
        across = np.arange(self._height) + 0.5 - self._y
        across = across[np.abs(across) < self._radius]
        half = np.sqrt(self._radius**2 - across**2)
        first = np.maximum(np.floor(self._x - half - 0.5) + 1, 0)
        last = np.minimum(np.ceil(self._x + half - 0.5) - 1, self._width - 1)
        return int(np.maximum(last - first + 1, 0).sum())

    def contains(self, points: np.ndarray) -> np.ndarray:
        return np.hypot(points[:, 0] - self._x, points[:, 1] - self._y) < self._radius

    def meets(self, x0: float, y0: float, x1: float, y1: float) -> bool:
        nearest = min(max(self._x, x0), x1), min(max(self._y, y0), y1)
        return math.dist(nearest, (self._x, self._y)) <= self._radius

    def outlines(self) -> list[np.ndarray]:
        angle = np.linspace(0, 2 * math.pi, _CIRCLE_POINTS, endpoint=False)
        ring = np.column_stack([np.cos(angle), np.sin(angle)]) * self._radius
        disc = shapely.Polygon(ring + (self._x, self._y))
        return _rings(disc & shapely.box(0, 0, self._width, self._height))


class _Polygons:
    def __init__(self, geometry: BaseGeometry, image_size: tuple[int, int]):
        self._geometry = geometry
        self._last = np.nextafter((image_size[1], image_size[0]), 0)
        shapely.prepare(self._geometry)

    def area(self) -> int:
        return round(self._geometry.area)

    def contains(self, points: np.ndarray) -> np.ndarray:
        return shapely.contains_xy(self._geometry, np.minimum(points + _BESIDE, self._last))

    def meets(self, x0: float, y0: float, x1: float, y1: float) -> bool:
        return bool(shapely.intersects(self._geometry, shapely.box(x0, y0, x1, y1)))

    def outlines(self) -> list[np.ndarray]:
        return _rings(self._geometry)


class _Mask:
    def __init__(
        self, inside: np.ndarray, touched: np.ndarray, rows: np.ndarray, columns: np.ndarray
    ):
        """
        Args:
            inside: (h, w) bool.
            touched: (h, w) bool, cells of which a part is inside.
            rows, columns: the cell of each row and column of the image.
        """
        self._inside, self._touched = inside, touched
        self._rows, self._columns = rows, columns
        # Pixels inside, where that is known better than by the cells.
        self.known_area: int | None = None

    def area(self) -> int:
        if self.known_area is not None:
            return self.known_area
        height, width = self._inside.shape
        down = np.bincount(self._rows, minlength=height)
        across = np.bincount(self._columns, minlength=width)
        inside = zip(self._inside, down.tolist(), strict=True)
        return sum(times * int(across[row].sum()) for row, times in inside if times)

    def contains(self, points: np.ndarray) -> np.ndarray:
        x, y = points.astype(np.int64).T
        return self._inside[self._rows[y], self._columns[x]]

    def meets(self, x0: float, y0: float, x1: float, y1: float) -> bool:
        top, bottom = self._rows[math.floor(y0)], self._rows[math.ceil(y1) - 1]
        left, right = self._columns[math.floor(x0)], self._columns[math.ceil(x1) - 1]
        return bool(self._touched[top : bottom + 1, left : right + 1].any())

    def outlines(self) -> list[np.ndarray]:
        inside, step = _shrunk(self._inside, _OUTLINE_SIDE)
        ys, xs, partners, _ = outline_corners(np.pad(inside, 1), 4)
        while len(ys) > _MAX_CORNERS:
            inside, step = _shrunk(self._inside, max(inside.shape) // 2)
            ys, xs, partners, _ = outline_corners(np.pad(inside, 1), 4)
        starts = [
            np.searchsorted(cells // step, np.arange(count + 1))
            for cells, count in zip((self._columns, self._rows), inside.shape[::-1], strict=True)
        ]
        corners = np.column_stack([starts[0][xs], starts[1][ys]]).astype(np.float64)
        return [corners[[*ring, ring[0]]] for ring in outline_rings(partners)]


def _shrunk(mask: np.ndarray, side: int) -> tuple[np.ndarray, int]:
    """A mask of at most ``side`` cells a side, by the majority, and the cells along one of its.

    Where no cell has a majority, those count of which any part is inside.
    """
    step = -(-max(mask.shape) // side)
    if step == 1:
        return mask, 1
    places = [np.arange(0, full, step) for full in mask.shape]
    counts = np.add.reduceat(mask, places[0], axis=0, dtype=np.int32)
    counts = np.add.reduceat(counts, places[1], axis=1)
    sides = (np.minimum(step, full - place) for full, place in zip(mask.shape, places, strict=True))
    most = counts * 2 >= np.multiply.outer(*sides)
    return (most if most.any() else counts > 0), step


def _cells(side: int, full: int, step: int) -> np.ndarray:
    """The cell of each of ``side`` px when ``full`` px of a mask, ``step`` a cell, span them."""
    return ((np.arange(side) * 2 + 1) * full // (2 * side) // step).astype(np.int32)


def _rings(geometry: BaseGeometry) -> list[np.ndarray]:
    parts = [part for part in shapely.get_parts(geometry) if part.geom_type == "Polygon"]
    return [
        shapely.get_coordinates(ring)
        for part in parts
        if not part.is_empty
        for ring in (part.exterior, *part.interiors)
    ]


def _drawn(polygons: Polygons, image_size: tuple[int, int], source: str) -> _Mask:
    """Polygons on a grid: the cells whose centre lies inside of one."""
    shrink = max(1.0, max(image_size) / MAX_GRID)
    shape = tuple(min(MAX_GRID, math.ceil(side / shrink)) for side in image_size)
    cells = tuple(_cells(side, part, 1) for side, part in zip(image_size, shape, strict=True))
    scale = np.array([shape[1] / image_size[1], shape[0] / image_size[0]])
    limit = np.array([shape[1], shape[0]])
    scaled = [[ring * scale for ring in rings] for rings in polygons]
    crossed = boxes = 0.0
    for rings in scaled:
        for ring in rings:
            ends = np.clip(ring, 0, limit)
            crossed += np.abs(np.diff(ends, axis=0, append=ends[:1])).sum()
            boxes += float(np.prod(np.ptp(ends, axis=0) + 2))
    if crossed > _MAX_CROSSED or boxes > _MAX_BOXES:
        raise UserError(
            f"{source} has too many long outlines to be worked on; simplify them, or give the "
            "region as a mask image."
        )
    inside = np.zeros(shape, dtype=bool)
    touched = np.zeros(shape, dtype=np.uint8)
    for rings in scaled:
        _fill(inside, rings)
        drawn = [np.rint((ring - 0.5) * (1 << _SHIFT)).astype(np.int32) for ring in rings]
        cv2.polylines(touched, drawn, True, 1, shift=_SHIFT)
    # Lines leave out cells that they pass near a corner.
    touched = cv2.dilate(touched, np.ones((3, 3), np.uint8)).view(bool)
    return _Mask(inside, touched | inside, *cells)


def _fill(canvas: np.ndarray, rings: list[np.ndarray]) -> None:
    """Set the cells whose centre lies in the first ring and in none of the others."""
    low = np.floor(rings[0].min(axis=0)).astype(int).clip(0)
    high = np.ceil(rings[0].max(axis=0)).astype(int).clip(0, canvas.shape[::-1])
    if (low >= high).any():
        return
    window = canvas[low[1] : high[1], low[0] : high[0]]
    outer, *holes = (_even_odd(ring - low, window.shape) for ring in rings)
    for hole in holes:
        outer &= ~hole
    window |= outer


def _even_odd(ring: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """(h, w) bool: the cells whose centre lies inside a ring by the even-odd rule."""
    height, width = shape
    following = np.roll(ring, -1, axis=0)
    # Downwards, that rings that share an edge round it to the same place.
    down = (ring[:, 1] <= following[:, 1])[:, None]
    ring, following = np.where(down, ring, following), np.where(down, following, ring)
    low, high = ring[:, 1], following[:, 1]
    first, last = (np.ceil(y - 0.5).clip(0, height).astype(np.int64) for y in (low, high))
    counts = last - first
    turns = np.zeros((height, width + 1), dtype=bool)
    pieces = np.flatnonzero(np.diff(counts.cumsum() // _CHUNK)) + 1
    for edges in np.split(np.arange(len(ring)), pieces):
        edges = np.repeat(edges, counts[edges])
        starts = np.flatnonzero(np.diff(edges, prepend=-1))
        steps = np.arange(len(edges)) - np.repeat(starts, np.diff(starts, append=len(edges)))
        rows = first[edges] + steps
        start, run = ring[edges], following[edges] - ring[edges]
        x = start[:, 0] + (rows + 0.5 - start[:, 1]) * run[:, 0] / run[:, 1]
        columns = np.ceil(x - 0.5).clip(0, width).astype(np.int64)
        np.logical_xor.at(turns, (rows, columns), True)
    return np.logical_xor.accumulate(turns[:, :width], axis=1)


CIRCLE = "circle"
_MASKS = frozenset((".png", ".tif", ".tiff", ".bmp", ".gif", ".pgm"))
_KNOWN = _MASKS | GEOJSON | ROIS
_KINDS = "a mask image (PNG, TIFF, BMP, GIF, PGM), GeoJSON or ImageJ ROIs (.roi, .zip)"
_NO_LIMIT = 1 << 62
# Of TIFFs: JPEG (two numbers), JPEG 2000 (four numbers), WebP; grey either way, RGB, palette, mask.
_LOSSY = frozenset((6, 7, 33003, 33004, 33005, 34712, 50001))
_PHOTOMETRICS = frozenset((0, 1, 2, 3, 4))
_UNCOMPRESSED, _MAX_CHANNELS, _MAX_LEVELS = 1, 4, 64
_HAS_ALPHA = "is transparent in places; draw the region in white on black without transparency"
# Of the circle's finder: a change of it changes what a run finds.
_CIRCLE_VERSION = 1

Overview = Callable[[int], tuple[np.ndarray, float]]


# What Region.from_mask takes of a mask image.
_MaskCells = dict[str, Any]


class RegionSource:
    """Where the regions of a run's images come from.

    Attributes:
        what: ``"circle"``, or the path of a file or folder.
        needs_image: whether the photographs are looked at.
    """

    def __init__(self, what: str):
        """
        Args:
            what: as :attr:`what`.

        Raises:
            UserError: it is none of them, or a folder without a file of a known kind.
        """
        self.what = os.fspath(what)
        if not self.what.strip():
            raise UserError(f"--region is empty; give 'circle', {_KINDS}, or a folder of these.")
        self.needs_image = self.what == CIRCLE
        self._path = Path(self.what)
        self._files: list[str] = []
        self._chosen: dict[str, Path] = {}
        self._polygons: Polygons | None = None
        self._mask: _MaskCells | None = None
        self._folder = not self.needs_image and self._path.is_dir()
        if self._folder:
            self._files = sorted(_known_files(self._path))
            if not self._files:
                raise UserError(
                    f"--region {self.what} holds no file of a known kind; put {_KINDS} there for "
                    "each image, called as the image is."
                )
        elif not self.needs_image:
            if not self._path.is_file():
                raise UserError(
                    f"--region {self.what} does not exist; give 'circle', {_KINDS}, or a folder "
                    "with one of these for each image."
                )
            if self._path.suffix.lower() not in _KNOWN:
                raise UserError(f"--region {self.what} is of no known kind; give {_KINDS}.")

    def check(self, names: Sequence[str], images: Mapping[str, str] | None = None) -> None:
        """Find the file of each image; needed before :meth:`of_image` where there is a folder.

        ``folder/a.tif`` takes ``folder/a`` with the suffix of any known kind, else ``a`` of the
        folder itself, if no other image is called so.

        Args:
            names: of all images of the run, with ``/``.
            images: paths of the photographs by name, "" where there is none. They are no masks:
                the folder may be theirs.

        Raises:
            UserError: an image has no file, or two; two images have the same; or the one file
                for all is one of the photographs.
        """
        if self.needs_image:
            return
        photographs = _identities((images or {}).values())
        if not self._folder:
            if not photographs.isdisjoint(_identities([self._path])):
                raise UserError(
                    f"--region {self.what} is one of the photographs; give 'circle', {_KINDS} "
                    "that tells where particles count."
                )
            return
        by_stem: dict[str, list[str]] = {}
        for file in self._files:
            if photographs and not photographs.isdisjoint(_identities([self._path / file])):
                continue
            by_stem.setdefault(_stem(file), []).append(file)
        usual = Counter(PurePosixPath(_stem(name)).name for name in set(names))
        taken: dict[str, str] = {}
        for name in dict.fromkeys(names):
            base = PurePosixPath(_stem(name)).name
            found = by_stem.get(_stem(name), [])
            if not found and usual[base] == 1:
                found = by_stem.get(base, [])
            if not found:
                raise UserError(
                    f"--region {self.what} has no file for the image {name}; put "
                    f"{_stem(name)}.geojson there, or a mask or ROI so called, or leave the image "
                    "out."
                )
            if len(found) > 1:
                raise UserError(
                    f"--region {self.what} has {len(found)} files for the image {name}: "
                    f"{', '.join(found[:4])}; keep one."
                )
            other = taken.setdefault(found[0], name)
            if other != name:
                raise UserError(
                    f"--region {self.what}: {found[0]} would serve both {other} and {name}; give "
                    "each image a file in the same folder and of the same name as it."
                )
            self._chosen[name] = self._path / found[0]

    def path_of(self, name: str) -> Path | None:
        """Give the file that an image's region comes from.

        Args:
            name: of an image that was named to :meth:`check`.

        Returns:
            its path; None where circles are looked for.
        """
        if self.needs_image:
            return None
        if not self._folder:
            return self._path
        if name not in self._chosen:
            raise ValueError(f"{name} was not named to check()")
        return self._chosen[name]

    def fingerprint(self) -> str:
        """Hash what a run uses: the kind, and names and bytes of the files.

        Returns:
            SHA-256 in hexadecimal; of a folder, over the files that :meth:`check` has chosen.

        Raises:
            UserError: a file cannot be read.
        """
        digest = hashlib.sha256()
        if self.needs_image:
            digest.update(f"{CIRCLE} {_CIRCLE_VERSION}".encode())
            return digest.hexdigest()
        folder = self._path if self._folder else self._path.parent
        files = [self._path.name]
        if self._folder:
            if not self._chosen:
                raise ValueError("check() has not chosen the files yet")
            files = sorted(path.relative_to(folder).as_posix() for path in self._chosen.values())
        digest.update(b"folder" if self._folder else b"file")
        for file in files:
            content = hashlib.sha256()
            try:
                with open(folder / file, "rb") as opened:
                    while block := opened.read(1 << 20):
                        content.update(block)
            except OSError as error:
                raise unreadable(str(folder / file), error) from error
            digest.update(f"\0{file}\0{content.hexdigest()}".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def of_image(self, name: str, image_size: tuple[int, int], overview: Overview | None) -> Region:
        """Give the region of an image.

        Args:
            name: of the image in the run, such as ``folder/a.tif``.
            image_size: its (height, width) in px.
            overview: ``overview(max_side)`` gives the image shrunk, uint8 (h, w, 3) BGR, and px
                of the image per px of it; only used where :attr:`needs_image` is true.

        Raises:
            UserError: no circle can be told for certain; or the file cannot be used, fits another
                image, or holds no pixel of this one.
        """
        if self.needs_image:
            if overview is None:
                raise ValueError("a circle is looked for in an image")
            return _circle_of(name, image_size, overview(MAX_SIDE)[0])
        path = str(self.path_of(name))
        source = str(Path(path).relative_to(self._path)) if self._folder else self._path.name
        if Path(path).suffix.lower() in _MASKS:
            mask = self._mask
            height, width = mask["full_size"] if mask else size_of_file(path, _NO_LIMIT)[::-1]
            _check_fit(path, (height, width), name, image_size)
            if mask is None:
                mask = _read_mask(path, height, width)
                if not self._folder:
                    self._mask = mask
            return Region.from_mask(image_size=image_size, source=source, **mask)
        polygons = self._polygons
        if polygons is None:
            polygons = read_polygons(path)
            if not self._folder:
                self._polygons = polygons
        return Region.from_polygons(polygons, image_size, source)


def _known_files(folder: Path) -> Iterator[str]:
    """Files of known kinds below a folder, relative to it, with ``/``."""
    for parent, _, files in os.walk(folder):
        for file in files:
            path = Path(parent, file)
            if path.suffix.lower() in _KNOWN and not file.startswith(".") and path.is_file():
                yield path.relative_to(folder).as_posix()


def _identities(paths: Iterable[str | os.PathLike]) -> set[tuple[int, int]]:
    """Device and number of the files that exist, by which links and spellings are the same."""
    found = set()
    for path in filter(None, paths):
        try:
            status = os.stat(path)
        except (OSError, ValueError):  # said where the photograph is opened
            continue
        found.add((status.st_dev, status.st_ino))
    return found


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix("")) if PurePosixPath(name).name else name


def _circle_of(name: str, image_size: tuple[int, int], image: np.ndarray) -> Region:
    try:
        found = find_circle(image)
    except NoCircleError as error:
        raise UserError(
            f"{name} {error}; run this image by itself with a mask or GeoJSON as --region, and put "
            "the runs together by microplastics measure --merge-runs."
        ) from error
    # Both sides of the shrunk image are rounded to whole px.
    down, across = (full / part for full, part in zip(image_size, image.shape, strict=False))
    center = found.x * across, found.y * down
    return Region.from_circle(center, found.radius * (across + down) / 2, image_size)


def _check_fit(path: str, mask: tuple[int, int], name: str, image: tuple[int, int]) -> None:
    """Refuse a mask that is no smaller picture of the image; sizes are (height, width) in px."""
    height, width = mask
    fits = (
        abs(width - height * image[1] / image[0]) <= 1
        or abs(height - width * image[0] / image[1]) <= 1
    )
    if height > image[0] or width > image[1] or not fits:
        raise UserError(
            f"{path} is {width} x {height} px (width x height) and its image {name} "
            f"{image[1]} x {image[0]} px; give a mask of the same size, or a smaller one of the "
            "same aspect ratio."
        )


def _read_mask(path: str, height: int, width: int) -> _MaskCells:
    step = -(-max(width, height) // MAX_GRID)
    counts = np.zeros((-(-height // step), -(-width // step)), np.int32)
    with open_image(path, _NO_LIMIT) as image:
        is_tiff = image is None or image.format == "TIFF"
        if not is_tiff:
            _check_picture(path, image)
    if is_tiff:
        _count_tiff(path, counts, step)
    else:
        _count(read_label_image(path)[0] != 0, 0, 0, counts, step)
    pixels = int(counts.sum(dtype=np.int64))
    if not pixels:
        raise UserError(f"{path} has no pixel that is not 0, so that nothing would count.")
    sides = (np.minimum(step, full - np.arange(0, full, step)) for full in (height, width))
    cell = np.multiply.outer(*sides)
    return {
        "mask": counts * 2 >= cell,
        "touched": counts > 0,
        "step": step,
        "full_size": (height, width),
        "pixels": pixels,
    }


def _check_picture(path: str, image: Image.Image) -> None:
    """Refuse a mask of another format than TIFF that tells no inside for certain."""
    if image.width * image.height > MAX_PIXELS:
        raise UserError(
            f"{path} is {image.width} x {image.height} px, more than can be read of its format; "
            "shrink it with the same aspect ratio, or save it as a TIFF."
        )
    if getattr(image, "n_frames", 1) > 1:
        raise UserError(f"{path} has {image.n_frames} frames; save the one that counts alone.")
    if "A" in image.getbands() or "transparency" in image.info:
        alpha = image if "A" in image.getbands() else image.convert("RGBA")
        if alpha.getchannel("A").getextrema()[0] < 255:
            raise UserError(f"{path} {_HAS_ALPHA}.")
    if (image.getexif().get(EXIF_ORIENTATION) or 1) != 1:
        raise UserError(f"{path} is turned by a tag; save it upright without the tag.")


def _count_tiff(path: str, counts: np.ndarray, step: int) -> None:
    """Count the stored values of a TIFF that are not 0, read piece by piece."""
    import tifffile  # slow to import and seldom needed

    with reading(path), tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        wrong = _unfit(tiff, page)
        if wrong:
            raise UserError(f"{path} {wrong}.")
        pixels = TiffPixels(path, tiff, page, SegmentCache(), MAX_PIXELS)
        colours = page.samplesperpixel - len(page.extrasamples)
        for x0, y0, x1, y1 in pixels.blocks():
            values = pixels.read(x0, y0, x1, y1, slice(None))
            if (values[:, :, colours:] != 2**page.bitspersample - 1).any():
                raise UserError(f"{path} {_HAS_ALPHA}.")
            values = values[:, :, :colours]
            if values.dtype.kind in "if":
                with np.errstate(invalid="ignore"):
                    whole = (values >= 0) & (values == np.rint(values)) & (values < np.inf)
                if not whole.all():  # False for NaN
                    raise UserError(
                        f"{path} has pixels that are negative, fractional or no numbers; save a "
                        "mask of 0 and 255."
                    )
            _count((values != 0).any(axis=2), x0, y0, counts, step)


def _unfit(tiff: "tifffile.TiffFile", page: "tifffile.TiffPage") -> str:
    """Why the first page of a TIFF cannot be taken for a mask, and the mend; empty if it can."""
    for index in range(1, _MAX_LEVELS):
        try:
            other = tiff.pages[index]
        except IndexError:
            break
        if not other.is_reduced:
            return "has several pages; save the one that counts alone"
    else:
        return "has too many pages; save the one that counts alone"
    if int(page.compression) in _LOSSY:
        return "is compressed as photographs are, which changes pixels; save it with LZW or deflate"
    if not is_readable(page) or page.dtype.kind not in "buif":
        return "is a rare kind of TIFF; save it as grey of 8 bits"
    if int(page.photometric) not in _PHOTOMETRICS or page.samplesperpixel > _MAX_CHANNELS:
        return "is not grey, RGB or a palette; save it as grey of 8 bits"
    if page.extrasamples and page.dtype.kind != "u":
        return "has a channel beside its colours; save it as grey of 8 bits"
    if (page.tags.valueof(EXIF_ORIENTATION) or 1) != 1:
        return "is turned by a tag; save it upright without the tag"
    rows, columns = page.rowsperstrip, page.imagewidth
    if page.is_tiled:
        rows, columns = page.tilelength, page.tilewidth
    packed = int(page.compression) != _UNCOMPRESSED or page.bitspersample % 8
    if packed and min(rows, max(page.imagelength, page.tilelength)) * columns > MAX_PIXELS:
        return "has too large strips or tiles; save it with tiles of 256 px"
    return ""


def _count(inside: np.ndarray, x0: int, y0: int, counts: np.ndarray, step: int) -> None:
    """Add the pixels of a piece at (x0, y0) to those of the cells."""
    rows, columns = (
        (start + np.arange(side)) // step
        for start, side in zip((y0, x0), inside.shape, strict=True)
    )
    top, left = (np.flatnonzero(np.diff(cells, prepend=-1)) for cells in (rows, columns))
    sums = np.add.reduceat(inside, top, axis=0, dtype=np.int32)
    sums = np.add.reduceat(sums, left, axis=1)
    counts[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] += sums
