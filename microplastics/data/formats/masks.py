"""Label images and binary masks, read from many layouts and written as 32-bit TIFF.

:func:`read` knows four kinds of mask files: label images (each number one particle), binary
images, one file an instance, and one file a class. Names of files and folders give the kind and
the class, ``classes.csv`` the classes of numbers.
"""

import csv
import io
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import cv2
import numpy as np
import tifffile
from PIL import Image

from microplastics.data.coco import show
from microplastics.data.formats import layout
from microplastics.data.formats.base import (
    ImageRecord,
    Instance,
    Notes,
    ReadOptions,
    Source,
    noted_once,
)
from microplastics.data.formats.layout import class_name, list_files
from microplastics.data.images import (
    MAX_PIXELS,
    check_pixels,
    decode_with_opencv,
    image_header,
    is_deep_png,
    open_image,
    size_mismatch,
)
from microplastics.data.segmentation import SegmentationError, measure
from microplastics.structures import rle as runs
from microplastics.structures.crop_masks import CropMasks
from microplastics.utils.errors import UserError
from microplastics.utils.io import atomic_write

DEFAULT_CLASS = "particle"
MAX_INSTANCES = 50_000  # particles of one image: more are a photograph, or noise

_KINDS = {
    "ids": "label images, each number one instance",
    "binary": "binary images, each 8-connected part one instance",
    "values": "label images of classes by classes.csv, each 8-connected part one instance",
    "instance": "one file an instance",
    "class": "one file a class, each 8-connected part one instance",
}
_MASK_SUFFIXES = frozenset((".png", ".tif", ".tiff", ".bmp", ".gif", ".pgm"))
_IMAGE_FOLDERS = ("images", "image", "imgs", "img", "jpegimages")
_MASK_FOLDERS = ("masks", "mask", "segmentationobject", "labels", "label", "annotations")
_CLASSES_CSV, _CLASSES_TXT = "classes.csv", "classes.txt"
_OTHER_FORMATS = frozenset((".json", ".txt", ".xml"))
_MARK = re.compile(r"[_\-. ](?:cp_)?(?:masks?|labels?)$", re.IGNORECASE)
_NUMBERED = re.compile(r"(?:(?P<name>.*?[^\d_\-. ])?[_\-. ]*)?(?<!\d)\d+$", re.DOTALL)
_SEPARATORS = "_-. "
_SNIFFED_FILES = 200
# Pillow's modes with the numbers as pixels; the pixels of P are indices of a palette.
_PLAIN_MODES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L", "F")
_LOSSY = ("JPEG", "JPEG2000", "WEBP")
_VOID, _VOID_COLOUR = 255, [224, 224, 192]  # border of the objects in Pascal VOC
_COMPRESSION = "zlib"  # which every TIFF reader knows, unlike zstd
_TOO_MANY = (
    f"has more than {MAX_INSTANCES} particles, like a photograph or noise; expected a label image "
    "or binary mask"
)


class _Folders(NamedTuple):
    """Folders of the images and the masks of a split, which may be the same."""

    images: Path
    masks: Path

    def find(self, name: str) -> Path | None:
        """Return a file in the folder of the masks or the one above, if it is there."""
        paths = (self.masks / name, self.masks.parent / name)
        return next((path for path in paths if path.is_file()), None)


class _MaskFile(NamedTuple):
    """One mask file.

    Attributes:
        path: the file.
        name: relative to the folder of the masks, with ``/``.
        kind: ``"image"`` (named as its image), ``"instance"`` or ``"class"``.
        category: class in its name, or None.
    """

    path: Path
    name: str
    kind: str
    category: str | None = None


@dataclass
class _ClassTable:
    """Content of ``classes.csv``.

    Attributes:
        by_id: file name of an image -> number in its label image -> (class, iscrowd).
        by_value: number in any label image -> class, if numbers are classes.
        classes: names in the order of the rows.
    """

    by_id: dict[str, dict[int, tuple[str, int]]] = field(default_factory=dict)
    by_value: dict[int, str] = field(default_factory=dict)
    classes: dict[str, None] = field(default_factory=dict)


def detect(path: Path) -> bool:
    """Return whether a folder has images with mask files, and no annotations of another format."""
    if not path.is_dir() or any(not layout.is_manifest(file) for file in path.glob("*.json")):
        return False
    try:
        return all(map(_has_masks, _find_folders(path).values()))
    except (UserError, OSError, ValueError):
        return False


def read(path: Path, options: ReadOptions, notes: Notes) -> dict[str, Source]:
    """Open a folder of images and masks (see ``base.Reader.read``).

    ``images/`` and ``masks/`` (or ``labels/``, ``annotations/``) are in the folder or in its split
    folders, or have split folders; or ``IMAGE.png`` and ``IMAGE_mask.png`` are in one folder.
    """
    if not path.is_dir():
        raise UserError(f"{path} is not a folder; expected images and masks.", code="input_empty")
    folders = _find_folders(path)
    images = layout.given_images(options)
    if images is not None:
        if len(folders) > 1:
            raise UserError(
                f"--images does not fit to {path}, whose splits have images; leave it out.",
                code="option_conflict",
            )
        folders = {"all": _Folders(images, folders["all"].masks)}
    sources = {}
    for split, pair in folders.items():
        reader = _Reader(pair, options, notes)
        sources[split] = noted_once(
            pair.images, reader.classes, reader.records, notes, len(reader.file_names)
        )
    return sources


class _Reader:
    """One split: the masks of each image and what their pixels mean."""

    def __init__(self, folders: _Folders, options: ReadOptions, notes: Notes):
        self._folders, self._options = folders, options
        self.file_names = [
            name
            for name in list_files(folders.images)
            if folders.images != folders.masks or not _is_marked(name)
        ]
        if not self.file_names:
            raise UserError(
                f"{folders.images} has no image; put the photographs there.", code="input_empty"
            )
        self._by_key: dict[str, list[str]] = defaultdict(list)
        for name in self.file_names:
            for key in {name, str(PurePosixPath(name).with_suffix(""))}:
                self._by_key[key].append(name)
        self._masks = self._find_masks(notes)
        self._table = self._read_table(notes)
        self._kind = self._find_kind()
        kinds = {mask.kind for masks in self._masks.values() for mask in masks} - {"image"}
        found = sorted(_KINDS[kind] for kind in kinds | ({self._kind} if self._kind else set()))
        notes.add("mask_kind", str(folders.masks), "; ".join(found))
        if self._table is not None and self._kind not in ("ids", "values"):
            notes.add("field_unknown", str(folders.find(_CLASSES_CSV)), "no label images")
        self.classes = self._class_names()

    def _find_masks(self, notes: Notes) -> dict[str, list[_MaskFile]]:
        images, folder = self._folders
        by_image = defaultdict(list)
        for name in list_files(folder):
            if images == folder and not _is_marked(name):
                continue
            image, mask = self._match(folder / name, name)
            if mask is None:
                error = UserError(
                    f"{folder / name} fits to no image in {images}; name it IMAGE.png, IMAGE_3.png "
                    "or IMAGE_Fiber.png after its image, or delete it.",
                    code="image_missing",
                )
                layout.skip_or_raise(error, name, self._options, notes, "label_without_image")
            else:
                by_image[image].append(mask)
        if not by_image:
            raise UserError(
                f"{folder} has no mask for the images in {images}; expected PNG or TIFF files "
                "named after their images.",
                code="input_empty",
            )
        for masks in by_image.values():
            whole = [mask for mask in masks if mask.kind == "image"]
            if whole and len(masks) > 1:
                other = next(mask for mask in masks if mask is not whole[0])
                raise UserError(
                    f"{whole[0].path} and {other.path} are both masks of one image; keep either "
                    "the mask of the whole image or those of its instances or classes.",
                    code="name_clash",
                )
        return dict(by_image)

    def _match(self, path: Path, name: str) -> tuple[str, _MaskFile] | tuple[None, None]:
        """Find the image of a mask file.

        ``IMAGE``, ``IMAGE_mask``, ``IMAGE/3``, ``IMAGE/Fiber_3``, ``IMAGE/Fiber``, ``Fiber/IMAGE``,
        ``Fiber/IMAGE_3``, ``IMAGE_3``, ``IMAGE_Fiber_3`` and ``IMAGE_Fiber`` are known.
        """
        key = str(PurePosixPath(name).with_suffix(""))
        for stem in dict.fromkeys((name, key, _MARK.sub("", key))):
            image = self._image(stem)
            if image is not None:
                return image, _MaskFile(path, name, "image")
        key = _MARK.sub("", key)
        folder, _, rest = key.rpartition("/")
        image = self._image(folder) if folder else None
        if image is None:
            image, rest = self._prefix(key)
        if image is not None:
            return image, _MaskFile(path, name, *_described(rest))
        first, _, key = key.partition("/")
        category = class_name(first)
        if key and category is not None:
            image = self._image(key)
            if image is not None:
                return image, _MaskFile(path, name, "class", category)
            image, rest = self._prefix(key)
            if image is not None and rest.isdigit():
                return image, _MaskFile(path, name, "instance", category)
        return None, None

    def _image(self, key: str) -> str | None:
        """Return the file name of the image called ``key``, with or without suffix."""
        found = self._by_key.get(key, [])
        if len(found) > 1:
            raise UserError(
                f"{found[0]} and {found[1]} differ only in their suffixes; name the mask "
                f"{found[0]}.png, or rename one of the images.",
                code="name_clash",
            )
        return found[0] if found else None

    def _prefix(self, key: str) -> tuple[str | None, str]:
        """Return the longest image name before a separator, and the text after it."""
        for end in range(len(key) - 1, 0, -1):
            if key[end] in _SEPARATORS and "/" not in key[end:]:
                image = self._image(key[:end])
                if image is not None:
                    return image, key[end + 1 :]
        return None, key

    def _read_table(self, notes: Notes) -> _ClassTable | None:
        """Read ``classes.csv``: columns image, id, class and maybe iscrowd, or value and class."""
        path = self._folders.find(_CLASSES_CSV)
        if path is None:
            return None
        table = _ClassTable()
        for line, row in _read_csv(path):
            where = f"{path}, line {line}"
            category = class_name(row.get("class"))
            if category is None:
                raise _invalid_row(where, f"class {show(row.get('class'))}", "a class name")
            if "value" in row:
                value = _number(row["value"], where)
                if table.by_value.setdefault(value, category) != category:
                    raise _invalid_row(where, f"value {value} again", "one class for each value")
            else:
                number, name = _number(row["id"], where), row["image"] or ""
                image = self._image(name) or self._image(name.replace("\\", "/").strip())
                if image is None:
                    place = f"{path.name}, line {line}"
                    notes.add("label_without_image", place, show(row["image"]))
                    continue
                ids = table.by_id.setdefault(image, {})
                if number in ids:
                    raise _invalid_row(where, f"id {number} of {image} again", "each id once")
                crowd = (row.get("iscrowd") or "").strip() or "0"
                if crowd not in ("0", "1"):
                    raise _invalid_row(where, f"iscrowd {show(crowd)}", "0 or 1")
                ids[number] = (category, int(crowd))
            table.classes[category] = None
        return table

    def _find_kind(self) -> str | None:
        """Return the meaning of the numbers in files named as images; None without such files."""
        whole = [
            masks[0].path for _, masks in sorted(self._masks.items()) if masks[0].kind == "image"
        ]
        if not whole:
            return None
        if self._table is not None:
            return "values" if self._table.by_value else "ids"
        seen = 0
        for path in whole:
            try:
                labels, _ = read_label_image(path, self._options.max_pixels)
            except UserError:
                continue  # raised or noted when the image's turn comes
            high = int(labels.max(initial=0))
            # Numbers other than 0, the highest one and the one seen before.
            if high and (seen not in (0, high) or ((labels != 0) & (labels != high)).any()):
                return "ids"
            seen = seen or high
        return "binary"

    def _class_names(self) -> list[str]:
        found = {
            mask.category or DEFAULT_CLASS
            for masks in self._masks.values()
            for mask in masks
            if mask.kind != "image"
        }
        if self._kind is not None:
            found.update([DEFAULT_CLASS] if self._table is None else self._table.classes)
        path = self._folders.find(_CLASSES_TXT)
        lines = [] if path is None else layout.read_text(path).split("\n")
        listed = dict.fromkeys(name for name in map(class_name, lines) if name is not None)
        return [*listed, *sorted(found - set(listed))]

    def records(self, notes: Notes) -> Iterator[ImageRecord]:
        """Read the masks image by image."""
        for file_name in self.file_names:
            masks = self._masks.get(file_name, [])
            if not masks:
                notes.add("image_unlabelled", file_name)
            code = ""
            try:
                path = self._folders.images / file_name
                size, rotated = image_header(path, self._options.max_pixels)
                instances = []
                for mask in masks:
                    code = "label_broken"
                    labels, colour = read_label_image(mask.path, self._options.max_pixels)
                    if labels.shape != size[::-1]:
                        words = size_mismatch(size, labels.shape[::-1], rotated)
                        words = words.replace("the JSON says", f"its mask {mask.path} is")
                        code = "image_size"
                        raise UserError(f"{path} {words}.", code=code)
                    if colour and mask.kind == "image" and self._kind == "ids":
                        notes.add("mask_colours", mask.name)
                    instances += self._instances(file_name, mask, labels, notes)
            except UserError as error:
                layout.skip_or_raise(error, file_name, self._options, notes, code)
                continue
            yield ImageRecord(file_name, *size, instances)

    def _instances(
        self, file_name: str, mask: _MaskFile, labels: np.ndarray, notes: Notes
    ) -> list[Instance]:
        category, kind = mask.category or DEFAULT_CLASS, mask.kind
        try:
            if kind == "image" and self._kind == "ids":
                return self._numbered(file_name, mask, labels, notes)
            values = _values(labels)
            if kind == "image" and self._kind == "values":
                return self._by_value(mask, labels, values, notes)
            if kind == "instance" and len(values) > 1:
                raise ValueError(
                    f"has the values {values[:4]}, but is one instance by its name; expected one "
                    "value, or the name of its image for a label image"
                )
            if kind == "instance" and not values:
                notes.add("shape_without_area", mask.name, "no pixel")
            if kind == "instance":
                return [Instance(category, rle, mask.name) for rle in instance_rles(labels)[1]]
            if len(values) > 1:
                notes.add("mask_numbered", mask.name)
                return [
                    Instance(category, rle, f"{mask.name}, id {number}")
                    for number, rle, _ in zip(*instance_rles(labels), strict=True)
                ]
            return _parts(category, mask, labels, notes)
        except ValueError as error:
            raise UserError(f"{mask.path} {error}.", code="image_invalid") from error

    def _numbered(
        self, file_name: str, mask: _MaskFile, labels: np.ndarray, notes: Notes
    ) -> list[Instance]:
        default = DEFAULT_CLASS if self._table is None else None
        rows = dict((self._table or _ClassTable()).by_id.get(file_name, {}))
        instances = []
        for number, rle, _ in zip(*instance_rles(labels), strict=True):
            where = f"{mask.name}, id {number}"
            category, iscrowd = rows.pop(number, (default, 0))
            if category is None:
                notes.add("shape_unlabelled", where)
            else:
                instances.append(Instance(category, rle, where, iscrowd))
        for number in rows:
            notes.add("id_absent", f"{mask.name}, id {number}")
        return instances

    def _by_value(
        self, mask: _MaskFile, labels: np.ndarray, values: list[int], notes: Notes
    ) -> list[Instance]:
        instances = []
        for value in values:
            category = self._table.by_value.get(value)
            if category is None:
                notes.add("shape_unlabelled", f"{mask.name}, value {value}")
            else:
                instances += _parts(category, mask, labels == value, notes)
        return instances


def _parts(category: str, mask: _MaskFile, labels: np.ndarray, notes: Notes) -> list[Instance]:
    instances = []
    for number, rle, area in zip(*instance_rles(connected_parts(labels)), strict=True):
        where = f"{mask.name}, {category}, part {number}"
        if area == 1:
            notes.add("mask_speck", where)
        instances.append(Instance(category, rle, where))
    return instances


def _values(labels: np.ndarray) -> list[int]:
    """Return the numbers in a label image except 0, ascending."""
    if labels.dtype == np.uint8:
        found = np.flatnonzero(np.bincount(labels.reshape(-1), minlength=256))
    else:
        found = np.unique(labels)
    return found[found != 0].tolist()


def _described(text: str) -> tuple[str, str | None]:
    """Return kind and class of ``3``, ``Fiber_3`` or ``Fiber``; other digits are an instance."""
    found = _NUMBERED.fullmatch(text)
    if found:
        return "instance", class_name(found["name"])
    return ("instance", None) if re.search(r"\d", text) else ("class", class_name(text))


def _is_marked(name: str) -> bool:
    """Return whether a file is named ``…_mask.png`` or similar."""
    path = PurePosixPath(name)
    return path.suffix.lower() in _MASK_SUFFIXES and _MARK.search(path.stem) is not None


def _has_masks(folders: _Folders) -> bool:
    suffixes, marked = set(), False
    for _, name in zip(range(_SNIFFED_FILES), list_files(folders.masks, None), strict=False):
        if PurePosixPath(name).name not in (_CLASSES_CSV, _CLASSES_TXT):
            suffixes.add(PurePosixPath(name).suffix.lower())
        marked |= _is_marked(name)
    if suffixes & _OTHER_FORMATS or not suffixes & _MASK_SUFFIXES:
        return False
    return marked or folders.images != folders.masks


def _find_folders(path: Path) -> dict[str, _Folders]:
    splits = layout.split_folders(path)
    if splits:
        return {split: _pair(folder) for split, folder in splits.items()}
    pair = _pair(path)
    if pair.images == pair.masks:
        whole = path / "all"  # where this package writes a set without splits
        return {"all": _pair(whole) if whole.is_dir() else pair}
    images, masks = layout.split_folders(pair.images), layout.split_folders(pair.masks)
    if not images:
        return {"all": pair}
    missing = sorted(set(images) - set(masks))
    if missing:
        raise UserError(
            f"{pair.masks} has no folder {missing[0]}, unlike {pair.images}; add it.",
            code="file_missing",
        )
    return {split: _Folders(images[split], masks[split]) for split in images}


def _pair(folder: Path) -> _Folders:
    names = {}
    for child in sorted(folder.iterdir()):
        if child.is_dir():
            names.setdefault(child.name.lower(), child)
    images = [names[name] for name in _IMAGE_FOLDERS if name in names]
    masks = [names[name] for name in _MASK_FOLDERS if name in names]
    if images and not masks:
        raise UserError(
            f"{folder} has {images[0].name} but no folder masks, labels or annotations; add the "
            "masks.",
            code="file_missing",
        )
    return _Folders(images[0] if images else folder, masks[0] if images else folder)


def _read_csv(path: Path) -> list[tuple[int, dict[str, str | None]]]:
    """Return line and fields, by lower-case column, of each row of ``classes.csv``."""
    text = layout.read_text(path)
    first = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=first.count)
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
        names = [(name or "").strip().lower() for name in reader.fieldnames or []]
        if "class" not in names or not ("value" in names or {"image", "id"} <= set(names)):
            raise UserError(
                f"{path} has the columns {show(first.strip())}; expected image, id and class, or "
                "value and class.",
                code="table_invalid",
            )
        reader.fieldnames = names
        return [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise UserError(
            f"{path} is not CSV ({error}); save it as CSV in UTF-8.", code="table_invalid"
        ) from error


def _invalid_row(where: str, has: str, expected: str) -> UserError:
    return UserError(f"{where} has {has}; expected {expected}.", code="table_invalid")


def _number(text: str | None, where: str) -> int:
    text = (text or "").strip()
    if re.fullmatch(r"#[0-9a-fA-F]{6}", text):
        return int(text[1:], 16)
    if re.fullmatch(r"[0-9]{1,16}(\.0*)?", text) and int(text.split(".")[0]) > 0:
        return int(text.split(".")[0])
    raise _invalid_row(where, f"the number {show(text)}", "a number from 1 or a colour #rrggbb")


def read_label_image(
    path: str | os.PathLike, max_pixels: int | None = None
) -> tuple[np.ndarray, bool]:
    """Read a PNG, TIFF, BMP, GIF or PPM of whole numbers as it is stored.

    A palette gives its indices, and Pascal VOC's border 255 is background. A colour becomes
    R * 65536 + G * 256 + B; an alpha channel is dropped. Float pixels must be whole numbers, as
    in ImageJ's label maps.

    Args:
        path: the file.
        max_pixels: limit checked before decoding; ``data.images.MAX_PIXELS`` if None.

    Returns:
        (H, W) array of integers from 0, and whether the file is in colour.

    Raises:
        UserError: the file is missing, broken, too large, compressed with loss, has several
            pages, or numbers that are negative or not whole.
    """
    path = os.fspath(path)
    with open_image(path, max_pixels) as image:
        if image is not None and image.format in _LOSSY:
            raise UserError(
                f"{path} is {image.format}, whose compression changes numbers; save masks as PNG "
                "or TIFF.",
                code="image_invalid",
            )
        if image is None or image.format == "TIFF":
            array = _read_tiff(path, max_pixels)
        elif is_deep_png(image):
            array = decode_with_opencv(path)
        else:
            array = _read_pillow(image)
        return _whole_numbers(array, path)


def instance_rles(labels: np.ndarray) -> tuple[list[int], list[dict[str, Any]], np.ndarray]:
    """Return the mask of every number in a label image, in one pass over it.

    Args:
        labels: (H, W) integers, 0 background.

    Returns:
        the numbers in ascending order, their compressed COCO RLEs (``counts`` as str), and their
        areas in px.

    Raises:
        ValueError: there are more than ``MAX_INSTANCES``.
    """
    size = [int(side) for side in labels.shape]
    line = labels.ravel(order="F")
    edges = np.flatnonzero(line[1:] != line[:-1]) + 1
    starts = np.concatenate(([0], edges))
    values = line[starts]
    lengths = np.diff(starts, append=line.size)
    kept = np.flatnonzero(values)
    kept = kept[np.argsort(values[kept], kind="stable")]
    if not len(kept):
        return [], [], np.zeros(0, np.int64)
    values, starts, lengths = values[kept], starts[kept], lengths[kept]
    first = np.flatnonzero(np.concatenate(([True], values[1:] != values[:-1])))
    if len(first) > MAX_INSTANCES:
        raise ValueError(_TOO_MANY)
    counts = [
        runs.counts_of_runs(begin, begin + length, line.size)
        for begin, length in zip(
            np.split(starts, first[1:]), np.split(lengths, first[1:]), strict=True
        )
    ]
    texts = runs.encode_counts_batch(counts)
    rles = [{"size": list(size), "counts": text.decode("ascii")} for text in texts]
    return values[first].tolist(), rles, np.add.reduceat(lengths, first)


def connected_parts(mask: np.ndarray) -> np.ndarray:
    """Number the 8-connected parts of a mask from 1, as (H, W) int32.

    Raises:
        ValueError: there are more than ``MAX_INSTANCES``.
    """
    count, labels = cv2.connectedComponents((mask != 0).astype(np.uint8), connectivity=8)
    if count - 1 > MAX_INSTANCES:
        raise ValueError(_TOO_MANY)
    return labels


def _read_pillow(image: Image.Image) -> np.ndarray:
    if getattr(image, "n_frames", 1) > 1:
        raise ValueError(f"it has {image.n_frames} frames; save each as a separate file")
    if image.mode == "LA":
        image = image.getchannel(0)
    elif image.mode == "PA":
        raise ValueError("a palette with transparency; save it without")
    elif image.mode in ("RGB", "RGBA", "RGBX"):
        return np.asarray(image)[:, :, 2::-1]
    elif image.mode not in _PLAIN_MODES:
        raise ValueError(f"its mode is {image.mode}; save it as grey PNG")
    array = np.asarray(image)
    palette = image.getpalette("RGB") if image.mode == "P" else None
    if palette is not None and palette[3 * _VOID : 3 * _VOID + 3] == _VOID_COLOUR:
        array = np.where(array == _VOID, 0, array)
    return array


def _read_tiff(path: str, max_pixels: int | None) -> np.ndarray:
    with tifffile.TiffFile(path) as tiff:
        if len(tiff.pages) > 1:
            raise ValueError(f"it has {len(tiff.pages)} pages; save each as a separate file")
        page = tiff.pages[0]
        check_pixels(path, page.imagewidth, page.imagelength, max_pixels)
        if page.samplesperpixel > 4 or page.imagedepth != 1:
            raise ValueError(f"it has {page.samplesperpixel} channels and depth {page.imagedepth}")
        ends = [sum(each) for each in zip(page.dataoffsets, page.databytecounts, strict=True)]
        if max(ends, default=0) > os.path.getsize(path):
            raise ValueError("the file ends before its pixels do")
        array = page.asarray()
        if array.ndim == 3 and int(page.planarconfig) == 2:
            array = array.transpose(1, 2, 0)
        if array.shape[:2] != (page.imagelength, page.imagewidth):
            raise ValueError("its pixels do not fill its size")
    return array[:, :, 2::-1] if array.ndim == 3 and array.shape[2] >= 3 else array


def _whole_numbers(array: np.ndarray, path: str) -> tuple[np.ndarray, bool]:
    """Return grey (H, W), grey with alpha, or BGR pixels as checked numbers, and if in colour."""
    colour = False
    if array.ndim == 3 and array.shape[2] < 3:
        array = array[:, :, 0]
    if array.ndim == 3:
        blue, green, red = (array[:, :, channel] for channel in range(3))
        if np.array_equal(blue, green) and np.array_equal(green, red):
            array = blue
        elif array.dtype != np.uint8:
            raise ValueError("it has colours of more than 8 bits; save it as grey PNG or TIFF")
        else:
            colour = True
            array = red.astype(np.int32) << 16 | green.astype(np.int32) << 8 | blue
    if array.dtype.kind == "b":
        array = array.astype(np.uint8)
    if array.dtype.kind == "f":
        array = array.astype(np.float64)
        with np.errstate(invalid="ignore"):
            whole = (array == np.rint(array)) & (np.abs(array) < 2**31)  # False for NaN
        if not whole.all():
            raise UserError(
                f"{path} has pixels that are not whole numbers; expected a label image.",
                code="image_invalid",
            )
        array = array.astype(np.int64)
    if array.dtype.kind not in "iu":
        raise ValueError(f"its pixels are of type {array.dtype}")
    if array.dtype.kind == "i" and array.size and array.min() < 0:
        raise UserError(
            f"{path} has negative pixels ({array.min()}); expected particles from 1, background 0.",
            code="image_invalid",
        )
    if array.dtype.itemsize > 4 and array.size and array.max() >= 2**53:
        raise UserError(
            f"{path} has the number {array.max()}; expected particles numbered from 1.",
            code="image_invalid",
        )
    return array, colour


def write(sources: dict[str, Source], output: Path, notes: Notes) -> list[Path]:
    """Write one label image an image: ``output/SPLIT/masks/NAME.tif``, int32, zlib.

    Particles are numbered from 1 in their order. ``classes.csv`` beside ``masks`` has ``image``,
    ``id``, ``class`` and ``iscrowd`` of each, ``classes.txt`` the classes in their order. Of
    particles that overlap the later one has the pixels; one that has none left has no row.

    Args:
        sources: split -> images.
        output: folder; the image of ``file_name`` belongs at ``output/SPLIT/images/file_name``.
        notes: takes ``overlap_lost``, ``instance_lost`` and ``extra_lost``.

    Returns:
        the files written.

    Raises:
        UserError: a file cannot be written, a file name leaves the folder, or two images need
            the same label image.
    """
    written = []
    for split, source in sources.items():
        folder = Path(output, split)
        with atomic_write(folder / _CLASSES_CSV) as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(("image", "id", "class", "iscrowd"))
            for record, name in layout.records_to_write(split, source, ".tif"):
                labels, kept = _label_image(record, notes)
                content = io.BytesIO()
                tifffile.imwrite(content, labels, compression=_COMPRESSION, metadata=None)
                written.append(folder / "masks" / name)
                with atomic_write(written[-1], "wb") as image:
                    image.write(content.getbuffer())
                table.writerows((record.file_name, *row) for row in kept)
        with atomic_write(folder / _CLASSES_TXT) as file:
            file.writelines(f"{category}\n" for category in source.classes)
        written += [folder / _CLASSES_CSV, folder / _CLASSES_TXT]
    return written


def _label_image(
    record: ImageRecord, notes: Notes
) -> tuple[np.ndarray, list[tuple[int, str, int]]]:
    """Paint the particles of an image; return also id, class and iscrowd of the visible ones."""
    height, width = record.height, record.width
    if height * width > MAX_PIXELS:
        raise UserError(
            f"{record.file_name} is {width} x {height} px; expected at most {MAX_PIXELS} pixels "
            "for a label image: cut it into smaller ones.",
            code="image_too_large",
        )
    numbers, segmentations = [], []
    for number, instance in enumerate(record.instances, 1):
        for key in instance.extra:
            notes.add("extra_lost", instance.where, show(key))
        try:
            measured = measure(instance.segmentation, height, width)
        except SegmentationError as error:
            notes.add("instance_lost", instance.where, error.detail or error.code)
            continue
        if measured.subpixel:
            notes.add("instance_lost", instance.where, "no pixel")
        else:
            numbers.append(number)
            segmentations.append(measured.segmentation)
    for key in record.extra:
        notes.add("extra_lost", record.file_name, show(key))
    crops = CropMasks.from_coco(segmentations, (height, width))
    labels = np.zeros((height, width), dtype=np.int32)
    for number, crop, (x0, y0) in zip(numbers, crops.crops, crops.offsets, strict=True):
        labels[y0 : y0 + crop.shape[0], x0 : x0 + crop.shape[1]][crop] = number
    shown = np.bincount(labels.reshape(-1), minlength=len(record.instances) + 1).tolist()
    rows = []
    for number, area in zip(numbers, map(int, crops.area()), strict=True):
        instance = record.instances[number - 1]
        if shown[number] < area:
            detail = f"{area - shown[number]} of {area} px"
            notes.add("overlap_lost", instance.where, detail)
        if shown[number]:
            rows.append((number, instance.category, instance.iscrowd))
        else:
            notes.add("instance_lost", instance.where, "covered by later ones")
    return labels, rows
