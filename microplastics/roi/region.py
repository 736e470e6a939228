"""Regions of interest of a run's images."""

import hashlib
import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import cv2
import numpy as np
import shapely
from roifile import ROI_TYPE, ImagejRoi
from shapely.errors import ShapelyError
from shapely.geometry import Polygon, shape
from shapely.geometry.base import BaseGeometry

from microplastics.data.coco import show
from microplastics.data.formats.imagej import read_rois
from microplastics.data.formats.masks import read_label_image
from microplastics.data.images import NO_LIMIT, image_header, open_image
from microplastics.data.segmentation import outline_corners, outline_rings
from microplastics.roi.circle import MAX_SIDE, NoCircleError, find_circle
from microplastics.utils.errors import UserError
from microplastics.utils.io import read_json, sha256_of

CIRCLE = "circle"
# Side of the grid on which masks are kept, and of the one on which they are outlined, in cells.
_MAX_GRID, _OUTLINE_GRID = 4096, 1024
_GEOJSON, _ROIS = frozenset((".geojson", ".json")), frozenset((".roi", ".zip"))
_MASKS = frozenset((".png", ".tif", ".tiff", ".bmp", ".gif", ".pgm"))
_KINDS = "a mask image (PNG, TIFF, BMP, GIF, PGM), GeoJSON or ImageJ ROIs (.roi, .zip)"
# Part of the fingerprint of "circle": raise it when the finder may give another circle.
_CIRCLE_VERSION = 2
# Limits on untrusted files: bytes, ROIs in a zip, points in all, px from the origin.
_MAX_BYTES, _MAX_ROIS, _MAX_POINTS, _FARTHEST = 256 << 20, 10_000, 2_000_000, 1e7
# Limit on (length of all outlines)² / area of their box, to which crossings are proportional;
# the largest takes half a minute.
_MAX_TANGLE = 1e6
_CURVE_POINTS = 1024  # of a circle or an oval
# Points are tested this far beside their place, in px (see Region.contains).
_BESIDE = np.array([1.0, math.sqrt(2)]) * 1e-7
_ROI_OUTLINES = (ROI_TYPE.POLYGON, ROI_TYPE.FREEHAND, ROI_TYPE.TRACED)
Overview = Callable[[int], tuple[np.ndarray, float]]


class Region:
    """The part of one image in which particles count.

    Attributes:
        image_size: (height, width) of the image in px.
        source: its origin, in words.
        area_px: pixels inside.
    """

    def __init__(
        self, shape: "_Outlines | _Mask", image_size: tuple[int, int], source: str
    ) -> None:
        self._shape, self.image_size, self.source = shape, image_size, source
        self.area_px = round(shape.area)
        if self.area_px < 1:
            raise _invalid(
                source,
                f"has no pixel inside the image of {image_size[1]} x {image_size[0]} px; give a "
                "region in px of this image, (0, 0) being its upper left corner",
            )

    @staticmethod
    def from_circle(
        center: tuple[float, float], radius: float, image_size: tuple[int, int]
    ) -> "Region":
        """Take a disc; arguments and errors as for :meth:`from_polygons`."""
        source = f"circle at ({center[0]:.1f}, {center[1]:.1f}), radius {radius:.1f} px"
        return Region.from_polygons([_ellipse(center, radius, radius)], image_size, source)

    @staticmethod
    def from_polygons(
        polygons: Sequence[Polygon], image_size: tuple[int, int], source: str
    ) -> "Region":
        """Take the union of polygons; outlines that cross themselves are filled even-odd.

        Args:
            polygons: in px of the image, the first pixel's centre being (0.5, 0.5); they need not
                be valid.
            image_size: (height, width) of the image in px.
            source: their origin, in words, also for errors.

        Raises:
            UserError: a coordinate is not a place in an image, there are too many points or
                crossings, or all of it lies outside of the image.
        """
        return Region(
            _Outlines(_united(polygons, image_size, source), image_size), image_size, source
        )

    def contains(self, points: np.ndarray) -> np.ndarray:
        """Tell which points lie inside.

        Of regions that abut, a point on the common border lies in exactly one: points are tested
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
        """Tell whether a box may hold a pixel of the region; never False if it does.

        Args:
            x0, y0: upper left corner in px.
            x1, y1: lower right corner in px, not included.
        """
        height, width = self.image_size
        x0, y0, x1, y1 = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
        return x0 < x1 and y0 < y1 and self._shape.meets(x0, y0, x1, y1)

    def outlines(self) -> list[np.ndarray]:
        """Give closed outlines, holes too, for drawing: (M, 2) float64 x and y in px of the image.

        Those of a mask are of one of at most 1024 px a side.
        """
        return self._shape.outlines()


class _Outlines:
    """The inside of polygons; points and boxes asked for lie in the image."""

    def __init__(self, geometry: shapely.MultiPolygon, image_size: tuple[int, int]):
        self._geometry, self.area = geometry, geometry.area
        self._last = np.nextafter((image_size[1], image_size[0]), 0)
        shapely.prepare(geometry)

    def contains(self, points: np.ndarray) -> np.ndarray:
        return shapely.contains_xy(self._geometry, np.minimum(points + _BESIDE, self._last))

    def meets(self, x0: float, y0: float, x1: float, y1: float) -> bool:
        return bool(shapely.intersects(self._geometry, shapely.box(x0, y0, x1, y1)))

    def outlines(self) -> list[np.ndarray]:
        polygons = shapely.get_parts(self._geometry)
        return [shapely.get_coordinates(ring) for ring in shapely.get_rings(polygons)]


class _Grid(NamedTuple):
    """A mask of at most 4096 px a side."""

    inside: np.ndarray  # (h, w) bool
    full_size: tuple[int, int]  # (height, width) of the mask as it was read
    area: int  # number of its px inside


class _Mask:
    """The inside of a mask, scaled by the nearest; points and boxes asked for lie in the image."""

    def __init__(self, grid: _Grid, image_size: tuple[int, int]):
        self._inside, self._image_size = grid.inside, image_size
        # The row and column of the grid of each of the image.
        self._rows, self._columns = (
            ((np.arange(side) * 2 + 1) * cells // (2 * side)).astype(np.int32)
            for side, cells in zip(image_size, grid.inside.shape, strict=True)
        )
        self.area = grid.area * math.prod(image_size) / math.prod(grid.full_size)
        if grid.inside.shape == grid.full_size:
            widths = np.bincount(self._columns, minlength=grid.full_size[1])
            self.area = sum(widths[grid.inside[row]].sum() for row in self._rows)

    def contains(self, points: np.ndarray) -> np.ndarray:
        x, y = points.astype(np.int64).T
        return self._inside[self._rows[y], self._columns[x]]

    def meets(self, x0: float, y0: float, x1: float, y1: float) -> bool:
        top, bottom = self._rows[math.floor(y0)], self._rows[math.ceil(y1) - 1]
        left, right = self._columns[math.floor(x0)], self._columns[math.ceil(x1) - 1]
        return bool(self._inside[top : bottom + 1, left : right + 1].any())

    def outlines(self) -> list[np.ndarray]:
        inside = _shrunk(self._inside, _OUTLINE_GRID)
        ys, xs, partners, _ = outline_corners(np.pad(inside, 1), 4)
        scale = np.array(self._image_size[::-1]) / inside.shape[::-1]
        corners = np.column_stack([xs, ys]) * scale
        return [corners[[*ring, ring[0]]] for ring in outline_rings(partners)]


def _shrunk(mask: np.ndarray, side: int) -> np.ndarray:
    """A bool mask of at most ``side`` px a side; a px is inside if most of it is."""
    factor = max(mask.shape) / side
    if factor <= 1:
        return mask
    size = [max(1, round(full / factor)) for full in mask.shape[::-1]]
    return cv2.resize(mask.view(np.uint8), size, interpolation=cv2.INTER_AREA).view(bool)


# Files


class RegionSource:
    """Source of the regions of a run's images.

    Attributes:
        what: ``"circle"``, or the path of a file or folder.
        needs_image: whether the photographs are looked at.
    """

    def __init__(self, what: str):
        """Check a source, given as :attr:`what`, without reading its files.

        Raises:
            UserError: it is none of these, or a folder without a file of a known kind.
        """
        self.what = os.fspath(what)
        self.needs_image = self.what == CIRCLE
        self._path = Path(self.what)
        self._folder = bool(self.what.strip()) and self._path.is_dir() and not self.needs_image
        below = sorted(self._path.rglob("[!.]*")) if self._folder else []
        self._files = [path for path in below if _is_known(path)]
        self._chosen: dict[str, Path] = {}
        # The file that was read last, so that one for all images is read once.
        self._content: tuple[Path, _Grid | list[Polygon]] | None = None
        if not (self.needs_image or self._files or _is_known(self._path)):
            exists = self._folder or self._path.is_file()
            raise UserError(
                f"--region {self.what or repr('')} "
                f"{'has no file of a known kind' if exists else 'does not exist'}; give 'circle', "
                f"{_KINDS}, or a folder with one of these for each image.",
                code="region_invalid" if exists else "file_missing",
            )

    def check(self, names: Sequence[str], images: Mapping[str, str] | None = None) -> None:
        """Find the file of each image; needed before :meth:`of_image` if a folder is given.

        ``folder/a.tif`` takes ``folder/a`` with the suffix of any known kind, else ``a`` of the
        folder itself, if no other image has that name.

        Args:
            names: of all images of the run, with ``/``.
            images: paths of the photographs by name, "" if there is none. They are not masks: the
                folder may be theirs.

        Raises:
            UserError: an image has no file, or two; two images have the same; or the one file
                for all is one of the photographs.
        """
        if self.needs_image:
            return
        photographs = {os.path.realpath(path) for path in (images or {}).values() if path}
        if not self._folder:
            if os.path.realpath(self._path) in photographs:
                raise UserError(
                    f"--region {self.what} is one of the photographs; give 'circle' or {_KINDS}.",
                    code="option_conflict",
                )
            return
        by_stem: dict[str, list[str]] = {}
        for path in self._files:
            if os.path.realpath(path) not in photographs:
                file = path.relative_to(self._path).as_posix()
                by_stem.setdefault(_stem(file), []).append(file)
        usual = Counter(PurePosixPath(_stem(name)).name for name in set(names))
        owners: dict[str, str] = {}
        for name in dict.fromkeys(names):
            stem, base = _stem(name), PurePosixPath(_stem(name)).name
            found = by_stem.get(stem) or (by_stem.get(base, []) if usual[base] == 1 else [])
            if len(found) != 1:
                files = f"{len(found)} files ({', '.join(found[:4])})" if found else "no file"
                fix = "keep one" if found else f"put {stem}.geojson, a mask or a ROI there"
                raise _invalid(f"--region {self.what}", f"has {files} for the image {name}; {fix}")
            other = owners.setdefault(found[0], name)
            if other != name:
                raise UserError(
                    f"--region {self.what}: {found[0]} is the file of both {other} and {name}; "
                    "give each image a file in the same folder and with the same name.",
                    code="name_clash",
                )
            self._chosen[name] = self._path / found[0]

    def path_of(self, name: str) -> Path | None:
        """Give the file of the region of an image that :meth:`check` was given; None of circles."""
        return None if self.needs_image else self._chosen.get(name, self._path)

    def fingerprint(self) -> str:
        """Hash what a run uses: the kind, and names and bytes of the files that are used (SHA-256).

        Raises:
            UserError: a file cannot be read.
        """
        if self.needs_image:
            return hashlib.sha256(f"{CIRCLE} {_CIRCLE_VERSION}".encode()).hexdigest()
        folder = self._path if self._folder else self._path.parent
        files = self._chosen.values() if self._folder else [self._path]
        digest = hashlib.sha256(b"folder" if self._folder else b"file")
        for name in sorted(path.relative_to(folder).as_posix() for path in files):
            try:
                content = sha256_of(folder / name)
            except OSError as error:
                raise _unreadable(str(folder / name), error) from error
            digest.update(f"\0{name}\0{content}".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def of_image(self, name: str, image_size: tuple[int, int], overview: Overview | None) -> Region:
        """Give the region of an image.

        Args:
            name: of the image in the run, such as ``folder/a.tif``.
            image_size: its (height, width) in px.
            overview: ``overview(max_side)`` gives the image shrunk, uint8 (h, w, 3) BGR, and px of
                the image per px of it; only used if :attr:`needs_image` is true.

        Raises:
            UserError: no circle is certain; or the file cannot be used, does not fit, or has no
                pixel inside.
        """
        if self.needs_image:
            return _circle_of(name, image_size, overview(MAX_SIDE)[0])
        path = self.path_of(name)
        source = path.relative_to(self._path).as_posix() if self._folder else path.name
        if self._content is None or self._content[0] != path:
            if path.suffix.lower() in _MASKS:
                # Before it is decoded: a mask is at most as large as its image.
                width, height = image_header(path, NO_LIMIT)[0]
                _check_fit(str(path), (height, width), name, image_size)
                self._content = path, _read_mask(str(path))
            else:
                self._content = path, _read_polygons(str(path))
        content = self._content[1]
        if not isinstance(content, _Grid):
            return Region.from_polygons(content, image_size, source)
        _check_fit(str(path), content.full_size, name, image_size)
        return Region(_Mask(content, image_size), image_size, source)


def _is_known(path: Path) -> bool:
    return path.suffix.lower() in _MASKS | _GEOJSON | _ROIS and path.is_file()


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix("")) if PurePosixPath(name).name else name


def _circle_of(name: str, image_size: tuple[int, int], image: np.ndarray) -> Region:
    try:
        found = find_circle(image)
    except NoCircleError as error:
        raise _invalid(
            name,
            f"{error}; run this image by itself with a mask or GeoJSON as --region, and put "
            "the runs together by microplastics measure --merge-runs",
        ) from error
    # Both sides of the shrunk image are rounded to whole px.
    down, across = (full / part for full, part in zip(image_size, image.shape, strict=False))
    center = found.x * across, found.y * down
    return Region.from_circle(center, found.radius * (across + down) / 2, image_size)


def _check_fit(path: str, mask: tuple[int, int], name: str, image: tuple[int, int]) -> None:
    """Refuse a mask that is not a smaller picture of the image; sizes are (height, width)."""
    height, width = mask
    # At most 1 px too wide or too high.
    fits = abs(width * image[0] - height * image[1]) <= max(image)
    if height > image[0] or width > image[1] or not fits:
        raise UserError(
            f"{path} is {width} x {height} px (width x height) and its image {name} "
            f"{image[1]} x {image[0]} px; give a mask of the same size, or a smaller one of the "
            "same aspect ratio.",
            code="image_size",
        )


# Polygons


def _united(
    polygons: Sequence[Polygon], image_size: tuple[int, int], source: str
) -> shapely.MultiPolygon:
    """The union of polygons within the image."""
    _check_outlines(polygons, source)
    try:
        whole = shapely.union_all([_filled(polygon) for polygon in polygons])
        return _areas(whole & shapely.box(0, 0, image_size[1], image_size[0]))
    except ShapelyError as error:
        raise _invalid(
            source,
            f"has outlines that cannot be combined ({error}); draw them again, or give "
            "the region as a mask image",
        ) from error


def _check_outlines(polygons: Sequence[Polygon], source: str) -> None:
    """Refuse what GEOS cannot combine, or not in half a minute."""
    points = shapely.get_coordinates(polygons)
    # Written so that NaN fails it too.
    if not (np.abs(points) <= _FARTHEST).all():
        raise _invalid(
            source, "has a coordinate that is not a place in an image; give coordinates in px"
        )
    left, top, right, bottom = shapely.total_bounds(polygons)
    box = max(right - left, 1) * max(bottom - top, 1)
    tangle = shapely.length(polygons).sum() ** 2 / box
    if len(points) > _MAX_POINTS or tangle > _MAX_TANGLE:
        raise _invalid(
            source,
            f"has outlines of {len(points)} points that are too long to be combined; simplify "
            "them, or give the region as a mask image",
        )


def _filled(polygon: Polygon) -> BaseGeometry:
    """A polygon whose outlines may cross themselves or each other, filled even-odd."""
    if polygon.is_valid:
        return polygon
    return _even_odd(polygon.exterior) - shapely.union_all(list(map(_even_odd, polygon.interiors)))


def _even_odd(*rings: BaseGeometry) -> BaseGeometry:
    """The area that closed lines enclose an odd number of times."""
    faces = shapely.get_parts(shapely.polygonize(shapely.get_parts(shapely.union_all(rings))))
    places = shapely.get_coordinates(shapely.point_on_surface(faces))
    odd = np.zeros(len(faces), dtype=bool)
    for ring in shapely.polygons(rings):
        shapely.prepare(ring)
        odd ^= shapely.contains_xy(ring, places)  # counts crossings of a ray
    return shapely.coverage_union_all(faces[odd])


def _areas(geometry: BaseGeometry) -> shapely.MultiPolygon:
    """A geometry without its points and lines."""
    parts = shapely.get_parts(shapely.get_parts(geometry))
    return shapely.MultiPolygon([part for part in parts if isinstance(part, Polygon) and part])


def _ellipse(center: tuple[float, float], across: float, down: float) -> Polygon:
    """An ellipse of two radii, as large as its outline's many corners can make it."""
    angle = np.linspace(0, 2 * np.pi, _CURVE_POINTS, endpoint=False)
    # Corners a little outside, so that the area equals the ellipse's.
    scale = math.sqrt(2 * np.pi / _CURVE_POINTS / math.sin(2 * np.pi / _CURVE_POINTS))
    ring = np.column_stack([np.cos(angle), np.sin(angle)]) * scale
    return Polygon(ring * (across, down) + center)


def _read_polygons(path: str) -> list[Polygon]:
    """Read the polygons of a GeoJSON or ROI file."""
    try:
        if os.path.getsize(path) > _MAX_BYTES:
            raise _invalid(path, "is too large for an outline; simplify it, or give a mask image")
        if Path(path).suffix.lower() in _GEOJSON:
            found = _read_geojson(path)
        else:
            found = _read_rois(path)
    except OSError as error:
        raise _unreadable(path, error) from error
    polygons = [polygon for polygon in found if not polygon.is_empty]
    if not polygons:
        raise _invalid(path, "has no outline; draw the region and export it again")
    return polygons


def _read_geojson(path: str) -> list[Polygon]:
    """All polygons of a GeoJSON document, as QuPath exports it."""
    meant = "GeoJSON; export the region from QuPath as GeoJSON"
    waiting: list[Any] = [read_json(path, (dict, list), meant)]
    polygons: list[Polygon] = []
    while waiting:
        item = waiting.pop()
        kind = item.get("type") if isinstance(item, dict) else None
        if kind == "FeatureCollection":
            item = item.get("features")
        elif kind == "GeometryCollection":
            item = item.get("geometries")
        if isinstance(item, list):
            waiting += reversed(item)
        elif kind == "Feature":
            waiting.append(item.get("geometry"))
        elif kind in ("Polygon", "MultiPolygon"):
            try:
                polygons += shapely.get_parts(shapely.force_2d(shape(item))).tolist()
            # Malformed coordinates make NumPy and Shapely raise nearly anything.
            except Exception as error:
                raise _invalid(
                    path,
                    f"has a {kind} whose coordinates are not lists of at least 3 points, "
                    f"each of x and y ({error}); export it again",
                ) from error
        else:
            raise _invalid(
                path,
                f"has {show(kind or item)} in place of a Polygon or MultiPolygon; outline "
                "the region as an area and export it again",
            )
    return polygons


def _read_rois(path: str) -> list[Polygon]:
    """All polygons of a ROI, or of the ROIs in a zip file."""
    rois, polygons = read_rois(Path(path)), []
    if len(rois) > _MAX_ROIS:
        raise _invalid(path, "has too many ROIs for a region; give it as a mask image")
    for name, content in rois:
        try:
            polygons += _roi_polygons(content, f"{path}, {show(name)}")
        except UserError:
            raise
        except NotImplementedError as error:
            raise _invalid(
                path,
                "has curves or is of another kind that cannot be read; in ImageJ use Edit > "
                "Selection > Interpolate, or save a mask",
            ) from error
        except Exception as error:  # untrusted bytes make roifile raise nearly anything
            words = str(error) or type(error).__name__
            raise UserError(
                f"{path} is damaged ({words}); save the ROIs again.", code="file_invalid"
            ) from error
    return polygons


def _roi_polygons(content: bytes, where: str) -> list[Polygon]:
    roi = ImagejRoi.frombytes(content)
    if not roi.composite and roi.roitype in (ROI_TYPE.RECT, ROI_TYPE.OVAL):
        return [_framed(roi)]
    if not roi.composite and roi.roitype not in _ROI_OUTLINES:
        name = roi.roitype.name.lower()
        raise _invalid(where, f"is a {name}, which has no area; outline the region")
    rings = [Polygon(ring) for ring in roi.coordinates(multi=True) if len(ring) > 2]
    if not rings:
        return []
    _check_outlines(rings, where)
    # Those of a composite enclose an area where an odd number of them does.
    return list(_areas(_even_odd(*(ring.exterior for ring in rings))).geoms)


def _framed(roi: ImagejRoi) -> Polygon:
    """A rectangle, with round corners or not, or an oval."""
    x, y, width, height = roi.left, roi.top, roi.right - roi.left, roi.bottom - roi.top
    if roi.subpixelrect:
        x, y, width, height = roi.xd, roi.yd, roi.widthd, roi.heightd
    if roi.roitype == ROI_TYPE.OVAL:
        return _ellipse((x + width / 2, y + height / 2), width / 2, height / 2)
    arc = max(min(roi.rounded_rect_arc_size, width, height), 0) / 2
    core = shapely.box(x + arc, y + arc, x + width - arc, y + height - arc)
    return core.buffer(arc, quad_segs=32) if arc else core


# Masks


def _read_mask(path: str) -> _Grid:
    """Read a mask image; pixels that are not 0 are inside."""
    with open_image(path, NO_LIMIT) as image:
        alpha = None
        if image is not None and ("A" in image.getbands() or "transparency" in image.info):
            alpha = image.convert("RGBA").getchannel("A")
        if alpha is not None and alpha.getextrema()[0] < 255:
            raise _invalid(
                path,
                "is transparent in places; draw the region in white on black without transparency",
            )
    labels, _ = read_label_image(path, NO_LIMIT)
    in_place = labels.itemsize == 1 and labels.flags.writeable  # masks of filters are large
    inside = np.not_equal(labels, 0, out=labels.view(bool) if in_place else None)
    if not inside.any():
        raise _invalid(path, "has no pixel that is not 0; draw the region in white on black")
    return _Grid(_shrunk(inside, _MAX_GRID), inside.shape, np.count_nonzero(inside))


def _invalid(thing: str, problem: str) -> UserError:
    return UserError(f"{thing} {problem}.", code="region_invalid")


def _unreadable(path: str, error: OSError) -> UserError:
    words = error.strerror or error
    return UserError(f"{path} is not readable ({words}); correct the path.", code="file_missing")
