"""ROIs of ImageJ: ``.roi`` files and archives of them, as ``predict`` writes them too."""

import json
import re
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from functools import cached_property
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
from roifile import ROI_SUBTYPE, ROI_TYPE, ImagejRoi

from microplastics.data.coco import show
from microplastics.data.formats import layout, shapes
from microplastics.data.formats.base import ImageRecord, Instance, Notes, ReadOptions, Source
from microplastics.data.formats.masks import DEFAULT_CLASS, MAX_INSTANCES
from microplastics.data.formats.shapes import ShapeError
from microplastics.utils.errors import UserError

_ROI, _ZIP = ".roi", ".zip"
_MAX_BYTES = 256 << 20  # of the ROIs of one image, unpacked
_SNIFFED_FILES = 20
_OUTLINES = (ROI_TYPE.POLYGON, ROI_TYPE.FREEHAND, ROI_TYPE.TRACED)
_LINES = (ROI_TYPE.LINE, ROI_TYPE.POLYLINE, ROI_TYPE.FREELINE)
_DRAWINGS = (ROI_SUBTYPE.TEXT, ROI_SUBTYPE.IMAGE)
# What the names of archives have beside the name of the image: RoiSet_a.zip, a-ROIs.zip.
_MARK = re.compile(r"^roi_?sets?[_\-. ]*|[_\-. ]*rois?(?:_?sets?)?$", re.IGNORECASE)
_UUID = re.compile(r"^[0-9a-f]{8}(?:-[0-9a-f]{4}){2}")  # names that the library roifile gives
_NUMBERS = re.compile(r"^[\d_\-. ]+|[\d_\-. ]+$")
_PROPERTY = re.compile(r"^class\s*[:=]\s*(.*?)\s*$", re.MULTILINE)


def detect(path: Path) -> bool:
    """Return whether a file is a ROI or an archive of ROIs, or a folder has such files."""
    try:
        if path.is_file():
            return _holds_rois(path)
        # A run of predict has JSON of its own; its rois folder is meant then.
        if not path.is_dir() or any(not layout.is_manifest(file) for file in path.glob("*.json")):
            return False
        files = islice(layout.list_files(path, _Reader.suffixes), _SNIFFED_FILES)
        return any(_holds_rois(path / name) for name in files)
    except Exception:  # damaged archives raise nearly anything
        return False


def read(path: Path, options: ReadOptions, notes: Notes) -> dict[str, Source]:
    """Open a ROI, an archive of ROIs, or a folder of them (see ``base.Reader.read``).

    An archive is called as its image, with or without ``RoiSet``; so is a ``.roi`` file, or else
    its folder. The class is the property ``class`` of a ROI, or its name without numbers, or its
    group. Polygons keep their points, composites become RLE, ovals polygons of the same area.
    """
    return layout.read_splits(_Reader, path, options, notes)


def _holds_rois(path: Path) -> bool:
    """Return whether a file is a ROI, or an archive that is empty or has one."""
    if not path.is_file() or path.suffix.lower() == _ROI:
        return path.is_file()
    if path.suffix.lower() != _ZIP or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    return not names or any(name.lower().endswith(_ROI) for name in names)


class _Reader(layout.FileReader):
    suffixes = frozenset((_ROI, _ZIP))

    def __init__(self, path: Path, split: str, options: ReadOptions):
        super().__init__(path, split, options)
        # ROIs that are not called as an image are those of the image that their folder is called.
        paths = (each if self._is_own(each) else each.parent for each in self._paths)
        self._paths = list(dict.fromkeys(paths))

    def _is_own(self, path: Path) -> bool:
        if path.suffix.lower() == _ZIP or not self._whole:
            return True
        self._folder = path.parent
        return any(path.stem in self._called.get(folder, ()) for folder in self._near())

    @cached_property
    def _called(self) -> dict[Path, set[str]]:
        """The names of the images in each folder, with and without their endings."""
        called: dict[Path, set[str]] = defaultdict(set)
        for name in layout.list_files(self._images):
            image = self._images / name
            called[image.parent] |= {image.name, image.stem}
        return dict(called)

    def load(self, path: Path) -> list[tuple[str, bytes]]:
        """Return the names and contents of the ROIs of one image."""
        return read_rois(path)

    def records(self, data: list[tuple[str, bytes]], where: str) -> Iterator[ImageRecord]:
        with layout.skipping(where, self.options, self.notes):
            record = self.image(self._names(where), where)
            for number, (name, content) in enumerate(data, 1):
                place = f"{where}, ROI {number} ({show(name)})"
                with shapes.noting(self.notes, place):
                    record.instances.append(self._instance(name, content, record, place))
            yield record

    def _names(self, where: str) -> list[str]:
        """Return the names that the image of a file may have."""
        name = PurePosixPath(where).name
        if PurePosixPath(where).suffix.lower() in self.suffixes:
            name = PurePosixPath(where).stem
        bare = _MARK.sub("", name)
        if not bare:  # RoiSet.zip beside one image
            images = [each for each in layout.list_files(self._folder) if "/" not in each]
            return images if len(images) == 1 else [name]
        # Outputs of predict have the folders in front, joined by __.
        return list(dict.fromkeys((name, bare, name.replace("__", "/"))))

    def _instance(self, name: str, content: bytes, record: ImageRecord, where: str) -> Instance:
        try:
            roi = ImagejRoi.frombytes(content)
            shape = _shape(roi, record, self.notes, where)
        except ShapeError:
            raise
        except NotImplementedError as error:
            raise ShapeError("shape_type", "curves") from error
        # Untrusted bytes make roifile raise nearly anything.
        except Exception as error:
            words = str(error) or type(error).__name__
            raise ShapeError("shape_broken", f"not a ROI ({words[:80]})") from error
        label = self._label(roi, name, where)
        return self.instance([label], shape, record, where, {}, ())

    def _label(self, roi: ImagejRoi, name: str, where: str) -> str:
        found = _PROPERTY.search(roi.props or "")
        label = layout.class_name(_unescaped(found[1])) if found else None
        if label is None:
            name = roi.name or name
            label = layout.class_name("" if _UUID.match(name) else _NUMBERS.sub("", name))
            if label is not None:
                self.notes.add("class_from_name", where, label)
        if label is None and not roi.group:
            self.notes.add("class_absent", where)
        return label or (f"group {roi.group}" if roi.group else DEFAULT_CLASS)


def read_rois(path: Path) -> list[tuple[str, bytes]]:
    """Return the names and unchecked contents of a ROI, or of the ROIs in an archive or folder.

    Nothing is written to the disk.

    Raises:
        UserError: ``file_missing``, or ``file_invalid`` for a damaged archive, more than 50,000
            ROIs or more than 256 MiB.
    """
    try:
        if path.suffix.lower() == _ZIP and path.is_file():
            with open(path, "rb") as file:
                return list(_unzipped(file, path))
        files = [path]
        if path.is_dir():
            files = sorted(each for each in path.iterdir() if each.suffix.lower() == _ROI)
            files = list(filter(Path.is_file, files))  # opening a pipe would block
        _check_bytes(path, [each.stat().st_size for each in files])
        return [(each.stem, each.read_bytes()) for each in files]
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"Cannot read {path}: {reason}; correct the path.", code="file_missing"
        ) from error


def _unzipped(file: IO[bytes], path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the names and contents of the ROIs in an archive."""
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            rois = [each for each in entries if each.filename.lower().endswith(_ROI)]
            if entries and not rois:
                raise UserError(
                    f"{path} is an archive without a .roi file; expected a RoiSet.zip of ImageJ.",
                    code="file_invalid",
                )
            _check_bytes(path, [each.file_size for each in rois])
            for each in rois:
                with archive.open(each) as entry:  # the size in the head may be false
                    content = entry.read(each.file_size)
                yield PurePosixPath(each.filename).stem, content
    except UserError:
        raise
    # Damaged archives make each compression method raise its own errors, even OSError.
    except Exception as error:
        words = str(error) or type(error).__name__
        raise UserError(
            f"{path} is damaged ({words}); save the ROIs again.", code="file_invalid"
        ) from error


def _check_bytes(path: Path, sizes: list[int]) -> None:
    if len(sizes) > MAX_INSTANCES or sum(sizes) > _MAX_BYTES:
        raise UserError(
            f"{path} has {len(sizes)} ROIs of {sum(sizes) >> 20} MiB; expected at most "
            f"{MAX_INSTANCES} and {_MAX_BYTES >> 20} MiB.",
            code="file_invalid",
        )


def _unescaped(text: str) -> str:
    """Return a value of Java's properties, whose escapes are those of JSON."""
    try:
        return json.loads(f'"{text}"')
    except ValueError:
        return text


def _shape(roi: ImagejRoi, record: ImageRecord, notes: Notes, where: str) -> tuple[str, Any]:
    """Return kind and values of a ROI, as ``shapes.area_of`` takes them."""
    frame = max(roi.position, roi.t_position, roi.z_position)
    if frame > 1:
        raise ShapeError(
            "shape_outside", f"on frame {frame} of a stack, of which the first is read"
        )
    if roi.composite:
        rings = [ring.tolist() for ring in roi.coordinates(multi=True) if len(ring) > 2]
        if not rings:
            raise ShapeError("shape_broken", "a composite without an outline")
        return "mask", shapes.even_odd(rings, record, notes, where)
    if roi.roitype in (ROI_TYPE.RECT, ROI_TYPE.OVAL) and roi.subtype not in _DRAWINGS:
        x, y, width, height = roi.left, roi.top, roi.right - roi.left, roi.bottom - roi.top
        if roi.subpixelrect:
            x, y, width, height = roi.xd, roi.yd, roi.widthd, roi.heightd
        values = np.array([x, y, width, height], np.float64)
        if roi.roitype == ROI_TYPE.RECT:
            return "box", values.tolist()
        half = values[2:] / 2
        return "ellipse", [*(values[:2] + half).tolist(), *half.tolist()]
    if roi.roitype in _OUTLINES:
        return "polygon", shapes.flat(_without_repetition(roi.coordinates()))
    if roi.roitype == ROI_TYPE.LINE:
        return "line", [float(each) for each in (roi.x1, roi.y1, roi.x2, roi.y2)]
    if roi.roitype in _LINES:
        return "line", shapes.flat(roi.coordinates().tolist())
    if roi.roitype == ROI_TYPE.POINT:
        return "point", []
    raise ShapeError("shape_type", roi.roitype.name.lower())


def _without_repetition(ring: np.ndarray) -> list[list[float]]:
    points = ring.tolist()
    return points[:-1] if len(points) > 3 and points[0] == points[-1] else points
