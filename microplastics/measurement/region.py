"""The part of an image in which particles count, such as the disc of a filter's membrane.

Circles and polygons stay what they are, masks are kept on a grid of at most 4096 px a side: memory
does not grow with the image.
"""

import math

import cv2
import numpy as np
import shapely
from shapely.geometry.base import BaseGeometry

from microplastics.data.outlines import outline_corners, outline_rings
from microplastics.errors import UserError
from microplastics.measurement.region_outlines import Polygons, checked, united, within

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
