"""What ``--region`` names: "circle", a file, or a folder with one file an image."""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from microplastics.data.formats.label_images import read_label_image
from microplastics.data.image_files import MAX_PIXELS, open_image, reading
from microplastics.data.images import EXIF_ORIENTATION
from microplastics.data.images import image_size as size_of_file
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

if TYPE_CHECKING:
    import tifffile

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
            "the runs together by tools/measure.py --merge-runs."
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
