"""What ``--region`` names: "circle", a file, or a folder with one file an image."""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from microplastics.data.formats.label_images import read_label_image
from microplastics.data.image_files import MAX_PIXELS, reading
from microplastics.data.images import EXIF_ORIENTATION, image_size
from microplastics.data.regions_tiff import SegmentCache, TiffPixels, is_readable
from microplastics.errors import UserError
from microplastics.measurement.region import MAX_GRID, Region
from microplastics.measurement.region_circle import MAX_SIDE, find_circle
from microplastics.measurement.region_outlines import (
    GEOJSON,
    ROIS,
    Polygons,
    read_polygons,
    unreadable,
)
from microplastics.measurement.region_unrolled import NoCircleError

CIRCLE = "circle"
_MASKS = frozenset((".png", ".tif", ".tiff", ".bmp", ".gif", ".pgm"))
_KNOWN = _MASKS | GEOJSON | ROIS
_KINDS = "a mask image (PNG, TIFF, BMP, GIF, PGM), GeoJSON or ImageJ ROIs (.roi, .zip)"
_NO_LIMIT = 1 << 62
_WHITE_IS_ZERO, _LOSSY = 0, (6, 7)
# Of the circle's finder: a change of it changes what a run finds.
_CIRCLE_VERSION = 1

Overview = Callable[[int], tuple[np.ndarray, float]]


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
        self.needs_image = self.what == CIRCLE
        self._path = Path(self.what)
        self._files: list[str] = []
        self._chosen: dict[str, Path] = {}
        self._polygons: Polygons | None = None
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

    def check(self, names: Sequence[str]) -> None:
        """Find the file of each image; needed before :meth:`of_image` where there is a folder.

        ``folder/a.tif`` takes ``folder/a`` with the suffix of any known kind, else ``a`` of the
        folder itself, if no other image is called so.

        Args:
            names: of all images of the run, with ``/``.

        Raises:
            UserError: an image has no file, or two; or two images have the same.
        """
        if not self._folder:
            return
        by_stem: dict[str, list[str]] = {}
        for file in self._files:
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
                    f"{_stem(name)}.geojson or {_stem(name)}.png there, or leave the image out."
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

    def fingerprint(self) -> str:
        """SHA-256 over what was given: the kind, and names and bytes of the files.

        Raises:
            UserError: a file cannot be read.
        """
        digest = hashlib.sha256()
        if self.needs_image:
            digest.update(f"{CIRCLE} {_CIRCLE_VERSION}".encode())
            return digest.hexdigest()
        files = self._files if self._folder else [self._path.name]
        folder = self._path if self._folder else self._path.parent
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
        if self._folder and name not in self._chosen:
            raise ValueError(f"{name} was not named to check()")
        path = str(self._chosen[name] if self._folder else self._path)
        source = str(Path(path).relative_to(self._path)) if self._folder else self._path.name
        if Path(path).suffix.lower() in _MASKS:
            return _mask_region(path, source, name, image_size)
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


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix("")) if PurePosixPath(name).name else name


def _circle_of(name: str, image_size: tuple[int, int], image: np.ndarray) -> Region:
    try:
        found = find_circle(image)
    except NoCircleError as error:
        raise UserError(
            f"{name} {error}; give the part of it that counts as a mask image or GeoJSON by "
            "--region."
        ) from error
    # Both sides of the shrunk image are rounded to whole px.
    down, across = (full / part for full, part in zip(image_size, image.shape, strict=False))
    center = found.x * across, found.y * down
    return Region.from_circle(center, found.radius * (across + down) / 2, image_size)


def _mask_region(path: str, source: str, name: str, size: tuple[int, int]) -> Region:
    width, height = image_size(path, _NO_LIMIT)
    fits = (
        abs(width - height * size[1] / size[0]) <= 1 or abs(height - width * size[0] / size[1]) <= 1
    )
    if height > size[0] or width > size[1] or not fits:
        raise UserError(
            f"{path} is {width} x {height} px (width x height) and its image {name} "
            f"{size[1]} x {size[0]} px; give a mask of the same size, or a smaller one of the "
            "same aspect ratio."
        )
    if Path(path).suffix.lower() in (".tif", ".tiff") and max(width, height) > MAX_GRID:
        step = -(-max(width, height) // MAX_GRID)
        counts = _tiff_counts(path, step)
    else:
        inside = read_label_image(path)[0] != 0
        height, width = inside.shape
        step = -(-max(width, height) // MAX_GRID)
        counts = np.zeros((-(-height // step), -(-width // step)), np.int32)
        _count(inside, 0, 0, counts, step)
    pixels = int(counts.sum(dtype=np.int64))
    if not pixels:
        raise UserError(f"{path} has no pixel that is not 0, so that nothing would count.")
    sides = (np.minimum(step, full - np.arange(0, full, step)) for full in (height, width))
    cell = np.multiply.outer(*sides)
    return Region.from_mask(
        counts * 2 >= cell,
        size,
        source,
        touched=counts > 0,
        step=step,
        full_size=(height, width),
        pixels=pixels,
    )


def _tiff_counts(path: str, step: int) -> np.ndarray:
    """How many px that are not 0 each cell of a large TIFF has, read piece by piece."""
    import tifffile  # slow to import and seldom needed

    with reading(path), tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        if not is_readable(page) or (page.tags.valueof(EXIF_ORIENTATION) or 1) != 1:
            raise ValueError("a rare kind of TIFF, or turned by a tag; save it as a tiled TIFF")
        if int(page.compression) in _LOSSY:
            raise ValueError("JPEG changes its pixels; save it with deflate, LZW or no compression")
        pixels = TiffPixels(path, tiff, page, SegmentCache(), MAX_PIXELS)
        outside = 0
        if int(page.photometric) == _WHITE_IS_ZERO:
            outside = 2**page.bitspersample - 1
        samples = slice(0, max(1, page.samplesperpixel - len(page.extrasamples)))
        shape = (-(-pixels.height // step), -(-pixels.width // step))
        counts = np.zeros(shape, np.int32)
        for x0, y0, x1, y1 in pixels.blocks():
            inside = (pixels.read(x0, y0, x1, y1, samples) != outside).any(axis=2)
            _count(inside, x0, y0, counts, step)
    return counts


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
