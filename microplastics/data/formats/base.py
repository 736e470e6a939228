"""Records, notes and the registry of annotation formats."""

import importlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from microplastics.utils.errors import UserError

# Names of the modules that read a format. "blanks" is never detected: any folder fits it.
READERS = ("coco", "labelme", "via", "yolo", "labelstudio", "cvat", "supervisely", "qupath")
READERS += ("imagej", "masks", "voc", "dsb2018", "cellpose", "sam", "labelme_web", "blanks")

# Code of a note: what it counts. docs/formats.md has the same tables.
NOTES = {
    # Changed by reading, or worth a look.
    "curve_as_polygon": "circles or ellipses written as polygons",
    "line_as_polygon": "lines with a width written as polygons",
    "group_joined": "groups of shapes joined into one instance",
    "category_placeholder": "unused placeholder categories left out",
    "category_merged": "categories of the same name merged",
    "category_renamed": "classes renamed by --categories",
    "class_case": "classes whose names differ in case or spaces only (--categories old=New merges "
    "them)",
    "exif_turned": "images annotated without their EXIF rotation, whose annotations were turned",
    "exif_unsure": "images with an EXIF rotation that keeps their size, whose annotations were "
    "taken as made on the upright picture",
    "class_unnamed": "classes without a name called class_0, class_1, …",
    "shape_clipped": "outlines cut at the border of their image",
    "shape_subpixel": "instances whose mask has no pixel, which can never be matched",
    "crowd_kept": "crowd regions, which training skips (CVAT exports brush masks so; "
    "--crowd-as-instances reads them as particles)",
    "crowd_instance": "crowd regions read as particles by --crowd-as-instances",
    "ignore_as_crowd": "annotations with ignore set written as crowd regions",
    "file_name_fixed": "file names with other folders, found by their last parts",
    "class_absent": "shapes of files without classes, read as particle",
    "class_from_name": "classes made of the names of ROIs, without their numbers",
    "image_ending": "images of another ending than annotated, found by their stem",
    "picture_embedded": "pictures embedded in annotation files, written into the new data set",
    "folder_fixed": "image folders that data.yaml misplaces, found by their names",
    "box_only": "boxes without an outline written as rectangles",
    "group_mixed": "groups of shapes of several classes, joined within each class",
    "label_ambiguous": "shapes with several classes, of which the first is used",
    "image_unlabelled": "images without an annotation file read as blanks",
    "mask_kind": "folders of masks and their kinds",
    "mask_colours": "colour masks read with each colour as one instance",
    "mask_numbered": "masks of one class with several numbers, each read as one instance",
    "mask_speck": "parts of a single pixel kept as instances",
    "mask_border": "masks with a particle 255 and none 254: if it is the border of Pascal VOC, "
    "name the folder of the masks SegmentationObject",
    "mask_void": "masks with a border around particles (Pascal VOC's 255), read as background",
    "mask_classes": "particles with pixels of several classes, of which the most frequent is used",
    # Left out by reading.
    "category_dropped": "instances left out by --categories",
    "shape_without_area": "shapes without an area (points, lines without a width) left out",
    "shape_broken": "shapes with too few points or without usable numbers left out",
    "shape_type": "shapes of an unknown type left out",
    "shape_outside": "shapes wholly outside their image left out",
    "part_broken": "parts of instances with fewer than 3 points left out",
    "shape_unlabelled": "shapes without a class left out",
    "image_missing": "missing images left out with their annotations",
    "image_size": "images of another size than annotated left out with their annotations",
    "image_broken": "unreadable images left out with their annotations",
    "label_broken": "unreadable annotation files left out",
    "split_missing": "splits without images left out",
    "annotation_without_image": "annotations of unlisted images left out",
    "label_without_image": "annotation files without an image left out",
    "field_unknown": "fields that do not fit into the data set left out",
    "annotation_ignored": "annotation files among blanks left out; their images count as blanks",
    "image_unannotated": "images without an annotation left out, not read as blanks",
    "annotation_cancelled": "cancelled annotations of an image left out",
    "annotation_other": "further annotations of an image left out",
    "mask_without_object": "masks with pixels of a class that belong to no particle left out",
    "id_absent": "rows of classes.csv whose number is absent from the label image",
    # Changed or lost by writing.
    "hole_bridged": "holes joined to the outline by a cut of zero width",
    "parts_joined": "instances in several parts joined by a line of zero width",
    "parts_split": "instances in several parts written as several shapes of one group",
    "mask_outlined": "masks written as outlines along their pixels",
    "crowd_lost": "crowd regions written as ordinary instances",
    "overlap_lost": "instances that lost pixels to a later one on top",
    "extra_lost": "fields that the format cannot hold left out",
    "instance_lost": "instances that the format cannot hold left out",
}

_EXAMPLES = 5
_LISTED = 10_000


class Notes:
    """Everything that reading or writing changed or left out, counted by code."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._places: dict[str, list[str]] = defaultdict(list)

    def add(self, code: str, where: str, detail: str = "") -> None:
        """Count one case of a code in ``NOTES``, with its place and the value found there."""
        if code not in NOTES:
            raise KeyError(code)
        self._counts[code] += 1
        if self._counts[code] <= _LISTED:
            self._places[code].append(f"{where} ({detail})" if detail else where)

    def __len__(self) -> int:
        return self._counts.total()

    def count(self, code: str) -> int:
        """Return how often a code was noted."""
        return self._counts[code]

    def lines(self) -> list[str]:
        """Return one line for each code, with its first places."""
        lines = []
        for code, count in self._counts.items():
            places = "; ".join(self._places[code][:_EXAMPLES])
            lines.append(f"{count} x {NOTES[code]}: {places}{'; …' if count > _EXAMPLES else ''}")
        return lines

    def as_dict(self) -> dict[str, Any]:
        """Return code -> words, count and the first 10,000 places, for a JSON file."""
        return {
            code: {"what": NOTES[code], "count": count, "places": self._places[code]}
            for code, count in self._counts.items()
        }


@dataclass
class Instance:
    """One annotated particle.

    Attributes:
        category: class name.
        segmentation: COCO polygons ``[[x0, y0, x1, y1, …], …]`` in px, or compressed RLE
            ``{"size": [height, width], "counts": str}`` of the whole image.
        where: its place in the source, for messages, such as ``"a.json, shape 3"``.
        iscrowd: 1 for a region of particles that were not outlined one by one.
        extra: further fields of the COCO annotation.
    """

    category: str
    segmentation: list[list[float]] | dict[str, Any]
    where: str
    iscrowd: int = 0
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass
class ImageRecord:
    """One image with its instances; a blank has none.

    Attributes:
        file_name: relative to :attr:`Source.image_root`, with ``/``.
        width: in px, of the image as ``data.images.read_image`` returns it.
        height: in px.
        instances: the particles on it.
        extra: further fields of the COCO image.
        picture: content of an image that is embedded in its annotations and not a file.
    """

    file_name: str
    width: int
    height: int
    instances: list[Instance] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)
    picture: bytes | None = field(default=None, repr=False)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in px."""
        return self.height, self.width


@dataclass
class Source:
    """One split of a data set, streamed image by image.

    Attributes:
        image_root: folder of the images.
        classes: every class name that occurs, in the order of the format, or else sorted.
        records: starts a new pass over the images, in a fixed order.
        num_images: number of images, if known.
        embedded: whether images are embedded in their annotations.
        supercategories: of classes, by name, in formats that have them.
    """

    image_root: Path
    classes: list[str]
    records: Callable[[], Iterator[ImageRecord]]
    num_images: int | None = None
    embedded: bool = False
    supercategories: dict[str, str] = field(default_factory=dict)

    @classmethod
    def noting(
        cls,
        image_root: Path,
        classes: list[str],
        read: Callable[[Notes], Iterator[ImageRecord]],
        notes: Notes,
        num_images: int,
        embedded: bool = False,
    ) -> "Source":
        """Return a source that takes notes in its first pass only."""
        passes = iter([notes])
        return cls(image_root, classes, lambda: read(next(passes, Notes())), num_images, embedded)


@dataclass(frozen=True)
class ReadOptions:
    """Options of reading any format.

    Attributes:
        skip_broken: note and leave out missing and broken images and annotation files; otherwise
            they are errors.
        line_width: width in px that turns lines (LabelMe linestrip, VIA polyline) into areas;
            None notes and leaves them out.
        images: folder of the images, if they are not beside the annotations.
        crowd_as_instances: read each of COCO's crowd regions as one particle.
        classes: class names of blanks, by category id from 1; those of the project if None.
    """

    skip_broken: bool = False
    line_width: float | None = None
    images: Path | None = None
    crowd_as_instances: bool = False
    classes: tuple[str, ...] | None = None


class Reader(Protocol):
    """Interface of the modules in ``READERS``."""

    def detect(self, path: Path) -> bool:
        """Return whether a file or folder is in this format; never raises."""

    def read(self, path: Path, options: ReadOptions, notes: Notes) -> dict[str, Source]:
        """Open a file or folder, which exists, as ``"all"`` or as train, val and test.

        ``notes`` takes what is changed and left out, here and in the first pass.
        """


def reader(name: str) -> Reader:
    """Import the module of a format, one of ``READERS``."""
    return importlib.import_module(f"microplastics.data.formats.{name}")


def detect(path: Path) -> str:
    """Return the name of the only format that a file or folder, which exists, fits.

    Raises:
        UserError: no format or several fit, or one that is not read (``format_unknown``).
    """
    names = [name for name in READERS if reader(name).detect(path)]
    known = importlib.import_module(f"{__package__}.unread").recognise(path, names)
    if known is not None:
        raise UserError(f"{path} is {known}.", code="format_unknown")
    if len(names) == 1:
        return names[0]
    if path.suffix.lower() in (".zip", ".gz", ".tar", ".rar", ".7z"):
        words = "is an archive; unpack it and give its folder as --input"
    elif names:
        words = f"fits the formats {' and '.join(names)}; choose one with --from"
    else:
        words = (
            f"fits none of the formats {', '.join(READERS)}; give the folder of the whole export, "
            "or the format with --from (blanks for images without particles)"
        )
    raise UserError(f"{path} {words}.", code="format_unknown")


def open_dataset(
    path: Path, options: ReadOptions, notes: Notes, name: str | None = None
) -> tuple[str, dict[str, Source]]:
    """Open a data set in the format ``name``, detected if None; return the name and the splits."""
    if not path.exists():
        raise UserError(f"{path} does not exist; correct --input.", code="file_missing")
    name = name or detect(path)
    return name, reader(name).read(path, options, notes)
