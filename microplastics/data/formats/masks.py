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
from itertools import chain, islice
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import cv2
import numpy as np
import tifffile
from PIL import Image

from microplastics.data.coco import show
from microplastics.data.formats import layout
from microplastics.data.formats.base import ImageRecord, Instance, Notes, ReadOptions, Source
from microplastics.data.formats.layout import class_name, list_files
from microplastics.data.images import (
    check_complete,
    check_pixels,
    decode_with_opencv,
    header_orientation,
    image_header,
    is_deep_png,
    open_image,
    size_mismatch,
)
from microplastics.structures import rle as runs
from microplastics.structures.crop_masks import CropMasks
from microplastics.utils.errors import UserError
from microplastics.utils.io import as_cell, atomic_write, read_table, read_text

DEFAULT_CLASS = "particle"
MAX_INSTANCES = 50_000  # particles of one image: more are a photograph, or noise

_KINDS = {
    "ids": "label images, each number one instance",
    "binary": "binary images, each 8-connected part one instance",
    "values": "label images of classes by classes.csv, each 8-connected part one instance",
    "instance": "one file an instance",
    "class": "one file a class, each 8-connected part one instance",
}
SUFFIXES = frozenset((".png", ".tif", ".tiff", ".bmp", ".gif", ".pgm"))
_MASK_FOLDERS = ("masks", "mask", "labels", "label", "annotations")
# Of all formats, LabelMe's web tool and Pascal VOC included.
_FOLDERS_OF_MASKS = frozenset(
    (*_MASK_FOLDERS, "scribbles", "segmentationclass", "segmentationobject")
)
_CLASSES_CSV, _CLASSES_TXT = "classes.csv", "classes.txt"
_OTHER_FORMATS = frozenset((".json", ".txt", ".xml"))
_MARK = re.compile(r"[_\-. ](?:cp_)?(?:masks?|labels?)$", re.IGNORECASE)
_NUMBERED = re.compile(r"(?:(?P<name>.*?[^\d_\-. ])?[_\-. ]*)?(?<!\d)\d+$", re.DOTALL)
_SEPARATORS = "_-. /"
_SNIFFED_FILES = 200
# Pillow's modes with the numbers as pixels; the pixels of P are indices of a palette.
_MODES = ("1", "L", "LA", "P", "I", "I;16", "I;16B", "I;16L", "F", "RGB", "RGBA", "RGBX")
_LOSSY = ("JPEG", "JPEG2000", "WEBP")
_LOSSY_TIFF = ("JPEG", "OJPEG", "APERIO_JP2000", "WEBP")  # beginnings of tifffile's names
_VOID, _VOID_COLOUR = 255, [224, 224, 192]  # border of the objects in Pascal VOC
_OPAQUE = 128  # half: outlines are drawn with soft edges
_COMPRESSION = "zlib"  # which every TIFF reader knows, unlike zstd
_TOO_MANY = (
    f"has more than {MAX_INSTANCES} particles, like a photograph or noise; expected a label image "
    "or binary mask"
)


class _MaskFile(NamedTuple):
    """One mask file, by its name in the folder of the masks."""

    name: str
    kind: str  # "image" (named as its image), "instance" or "class"
    category: str | None = None  # the class in its name


def detect(path: Path) -> bool:
    """Return whether a folder has images with mask files, and no annotations of another format."""
    if not path.is_dir() or any(not layout.is_manifest(file) for file in path.glob("*.json")):
        return False
    try:
        found = all(map(_has_masks, _find_folders(path).values()))
        return found and not has_web_annotations(path)
    except UserError as error:  # images beside those of the splits, which reading tells
        names = islice(layout.list_files(path), _SNIFFED_FILES)
        return error.code == "name_clash" and any(map(is_mask, names))
    except (OSError, ValueError):
        return False


def has_web_annotations(path: Path) -> bool:
    """Return whether a file or folder has XML of LabelMe's web tool, which may name mask files."""

    def matches(text: bytes) -> bool:
        drawn = b"<polygon>" in text or b"<segm>" in text
        # Pascal VOC's XML is an <annotation> too, with boxes.
        return b"<annotation>" in text and (drawn or b"LabelMeWebtool" in text)

    return layout.sniff(path, matches, frozenset((".xml",)))


def read(path: Path, options: ReadOptions, notes: Notes) -> dict[str, Source]:
    """Open a folder of images and masks (see ``base.Reader.read``).

    ``images/`` and ``masks/`` (or ``labels/``, ``annotations/``) are in the folder or in its split
    folders, or have split folders; or ``IMAGE.png`` and ``IMAGE_mask.png`` are in one folder.
    """
    if not path.is_dir():
        raise UserError(f"{path} is not a folder; expected images and masks.", code="input_empty")
    folders = _find_folders(path)
    given = layout.given_images(options)
    if given is not None:
        if len(folders) > 1:
            raise UserError(
                f"--images does not fit to {path}, whose splits have images; leave it out.",
                code="option_conflict",
            )
        folders = {"all": (given, folders["all"][1])}
    sources = {}
    for split, (images, masks) in folders.items():
        reader = _Reader(images, masks, options, notes)
        sources[split] = Source.noting(
            images, reader.classes, reader.records, notes, len(reader.file_names)
        )
    return sources


class _Reader:
    """One split: the masks of each image and what their pixels mean."""

    def __init__(self, images: Path, masks: Path, options: ReadOptions, notes: Notes):
        self._images, self._folder, self._options = images, masks, options
        beside = images == masks
        self.file_names = [name for name in list_files(images) if not (beside and _is_marked(name))]
        if not self.file_names:
            raise UserError(
                f"{images} has no image; put the photographs there.", code="input_empty"
            )
        self._by_key: dict[str, list[str]] = defaultdict(list)
        for name in self.file_names:
            for key in {name, _stem(name)}:
                self._by_key[key].append(name)
        self._masks = self._find_masks(notes)
        # Of classes.csv: file name of an image, or None for all -> number in it -> class, iscrowd.
        self._rows: dict[str | None, dict[int, tuple[str, int]]] = defaultdict(dict)
        table = self._find(_CLASSES_CSV) or self._find(f"_{_CLASSES_CSV}")  # Roboflow's name
        self._has_table = table is not None
        if table is not None:
            self._read_table(table, notes)
        self._kind = self._find_kind()
        kinds = {mask.kind for masks in self._masks.values() for mask in masks} | {self._kind}
        words = "; ".join(text for kind, text in _KINDS.items() if kind in kinds)
        notes.add("mask_kind", str(masks), words)
        if table is not None and self._kind is None:
            notes.add("field_unknown", str(table), "no label images")
        self.classes = self._class_names()

    def _find(self, name: str) -> Path | None:
        """Return a file in the folder of the masks or the one above, if it is there."""
        paths = (self._folder / name, self._folder.parent / name)
        return next((path for path in paths if path.is_file()), None)

    def _find_masks(self, notes: Notes) -> dict[str, list[_MaskFile]]:
        by_image: dict[str, list[_MaskFile]] = defaultdict(list)
        for name in list_files(self._folder):
            if self._folder == self._images and not _is_marked(name):
                continue
            with layout.skipping(name, self._options, notes, "label_without_image"):
                image, mask = self._match(name)
                by_image[image].append(mask)
        if not by_image:
            raise UserError(
                f"{self._folder} has no mask for the images in {self._images}; expected PNG or "
                "TIFF files named after their images.",
                code="input_empty",
            )
        for masks in by_image.values():
            if len(masks) > 1 and any(mask.kind == "image" for mask in masks):
                names = " and ".join(str(self._folder / mask.name) for mask in masks[:2])
                raise UserError(
                    f"{names} are both masks of one image; keep either the mask of the whole image "
                    "or those of its instances or classes.",
                    code="name_clash",
                )
        return dict(by_image)

    def _match(self, name: str) -> tuple[str, _MaskFile]:
        """Find the image of a mask file.

        ``IMAGE``, ``IMAGE_mask``, ``IMAGE/3``, ``IMAGE/Fiber_3``, ``IMAGE/Fiber``, ``Fiber/IMAGE``,
        ``Fiber/IMAGE_3``, ``IMAGE_3``, ``IMAGE_Fiber_3`` and ``IMAGE_Fiber`` are known.
        """
        key = _MARK.sub("", _stem(name))
        for stem in (name, _stem(name), key):
            image = self._image(stem)
            if image is not None:
                return image, _MaskFile(name, "image")
        image, rest = self._prefix(key)
        if image is not None:
            return image, _MaskFile(name, *_described(rest))
        folder, _, key = key.partition("/")
        category, image = class_name(folder), self._image(key)
        if category is not None and image is not None:
            return image, _MaskFile(name, "class", category)
        image, rest = self._prefix(key)
        if category is not None and image is not None and rest.isdigit():
            return image, _MaskFile(name, "instance", category)
        raise UserError(
            f"{self._folder / name} fits to no image in {self._images}; name it "
            "IMAGE.png, IMAGE_3.png or IMAGE_Fiber.png after its image, or delete it.",
            code="image_missing",
        )

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
            if key[end] in _SEPARATORS:
                image = self._image(key[:end])
                if image is not None:
                    return image, key[end + 1 :]
            if key[end] == "/":
                break
        return None, key

    def _read_table(self, path: Path, notes: Notes) -> None:
        """Read ``classes.csv``: columns image, id, class and maybe iscrowd, or value and class.

        Roboflow's ``_classes.csv`` has the values of a mask as ``Pixel Value``.
        """
        table = read_table(path).rename(columns={"pixel value": "value"})
        if "class" not in table or not ("value" in table or {"image", "id"} <= set(table)):
            raise UserError(
                f"{path} has the columns {show(','.join(table))}; expected image, id and class, "
                "or value and class.",
                code="table_invalid",
            )
        for line, cells in zip(table.index, table.to_numpy(), strict=True):
            row = dict(zip(table.columns, cells, strict=True))
            if not any(cells) or row.get("value") == "0":
                continue
            where = f"{path}, line {line}"
            category = class_name(row["class"])
            number = _number(row["value"] if "value" in row else row["id"])
            crowd = row.get("iscrowd") or "0"
            if category is None or number is None or crowd not in ("0", "1"):
                raise UserError(
                    f"{where} is {show(','.join(cells))}; expected a class, a number from 1 or "
                    "colour #rrggbb, and an iscrowd of 0 or 1.",
                    code="table_invalid",
                )
            image = None
            if "value" not in row:
                image = self._image(row["image"]) or self._image(row["image"].replace("\\", "/"))
                if image is None:
                    place = f"{path.name}, line {line}"
                    notes.add("label_without_image", place, show(row["image"]))
                    continue
            meant = (category, int(crowd))
            if self._rows[image].setdefault(number, meant) != meant:
                raise UserError(
                    f"{where} has the number {number} again; expected one class for each.",
                    code="table_invalid",
                )

    def _find_kind(self) -> str | None:
        """Return the meaning of the numbers in files named as images; None without such files."""
        whole = [
            masks[0].name for _, masks in sorted(self._masks.items()) if masks[0].kind == "image"
        ]
        if not whole:
            return None
        if self._has_table:
            return "values" if None in self._rows else "ids"
        seen = 0
        for name in whole:
            try:
                labels, _ = read_label_image(self._folder / name)
            except UserError:
                continue  # raised or noted when the image's turn comes
            high = int(labels.max(initial=0))
            # Numbers other than 0, the highest one and the one seen before.
            if high and (seen not in (0, high) or ((labels != 0) & (labels != high)).any()):
                return "ids"
            seen = seen or high
        return "binary"

    def _class_names(self) -> list[str]:
        files = [mask for masks in self._masks.values() for mask in masks if mask.kind != "image"]
        found = {mask.category or DEFAULT_CLASS for mask in files}
        if self._kind is not None:
            rows = chain.from_iterable(rows.values() for rows in self._rows.values())
            found.update((name for name, _ in rows) if self._has_table else [DEFAULT_CLASS])
        path = self._find(_CLASSES_TXT)
        lines = [] if path is None else read_text(path).split("\n")
        listed = dict.fromkeys(name for name in map(class_name, lines) if name is not None)
        return [*listed, *sorted(found - set(listed))]

    def records(self, notes: Notes) -> Iterator[ImageRecord]:
        """Read the masks image by image."""
        for file_name in self.file_names:
            masks = self._masks.get(file_name, [])
            if not masks:
                notes.add("image_unlabelled", file_name)
            with layout.skipping(file_name, self._options, notes):
                size, rotated = image_header(self._images / file_name)
                record = ImageRecord(file_name, *size)
                with layout.skipping(file_name, self._options, notes, "label_broken"):
                    for mask in masks:
                        record.instances += self._read(mask, record, rotated, notes)
                    yield record

    def _read(
        self, mask: _MaskFile, record: ImageRecord, rotated: bool, notes: Notes
    ) -> list[Instance]:
        path = self._folder / mask.name
        labels, colour = read_label_image(path)
        check_size(labels, path, self._images / record.file_name, record.size, rotated)
        if colour and mask.kind == "image" and self._kind == "ids":
            notes.add("mask_colours", mask.name)
        try:
            return list(self._instances(record.file_name, mask, labels, notes))
        except ValueError as error:
            raise UserError(f"{path} {error}.", code="image_invalid") from error

    def _instances(
        self, file_name: str, mask: _MaskFile, labels: np.ndarray, notes: Notes
    ) -> Iterator[Instance]:
        """Yield the instances in one mask file, whose numbers must fit to its name."""
        kind = self._kind if mask.kind == "image" else mask.kind
        category = mask.category or DEFAULT_CLASS
        numbers, rles, _ = instance_rles(labels)
        if kind in ("binary", "class") and len(numbers) < 2:
            yield from parts(category, mask.name, labels, notes)
        elif kind == "values":
            for number in numbers:
                if number in self._rows[None]:
                    category = self._rows[None][number][0]
                    yield from parts(category, mask.name, labels == number, notes)
                else:
                    notes.add("shape_unlabelled", f"{mask.name}, value {number}")
        elif kind == "instance":
            if len(numbers) > 1:
                raise ValueError(
                    f"has the values {numbers[:4]}, but is one instance by its name; expected one "
                    "value, or the name of its image for a label image"
                )
            if not numbers:
                notes.add("shape_without_area", mask.name, "no pixel")
            yield from (Instance(category, rle, mask.name) for rle in rles)
        else:
            if kind == "ids" and _VOID in numbers[1:] and _VOID - 1 not in numbers:
                notes.add("mask_border", mask.name)
            rows = dict(self._rows.get(file_name, {})) if kind == "ids" else {}
            if kind != "ids":
                notes.add("mask_numbered", mask.name)
            elif self._has_table:
                category = None
            for number, rle in zip(numbers, rles, strict=True):
                where = f"{mask.name}, id {number}"
                name, iscrowd = rows.pop(number, (category, 0))
                if name is None:
                    notes.add("shape_unlabelled", where)
                else:
                    yield Instance(name, rle, where, iscrowd)
            for number in rows:
                notes.add("id_absent", f"{mask.name}, id {number}")


def parts(category: str, name: str, labels: np.ndarray, notes: Notes) -> Iterator[Instance]:
    """Yield the 8-connected parts of a mask as instances.

    Args:
        category: their class.
        name: of the mask file, for messages.
        labels: (H, W) array, 0 background.
        notes: takes ``mask_speck``.

    Raises:
        ValueError: there are more than ``MAX_INSTANCES``.
    """
    _, labels = cv2.connectedComponents((labels != 0).astype(np.uint8), connectivity=8)
    for number, rle, area in zip(*instance_rles(labels), strict=True):
        where = f"{name}, {category}, part {number}"
        if area == 1:
            notes.add("mask_speck", where)
        yield Instance(category, rle, where)


def check_size(
    labels: np.ndarray, path: Path, image: Path, size: tuple[int, int], rotated: bool = False
) -> None:
    """Raise ``image_size`` unless a mask is of the size of its image.

    Args:
        labels: (H, W) array of the mask.
        path: file of the mask.
        image: file of the image.
        size: its height and width in px.
        rotated: whether its EXIF orientation swaps them.
    """
    if labels.shape != size:
        words = size_mismatch(size[::-1], labels.shape[::-1], rotated)
        words = words.replace("the JSON says", f"its mask {path} is")
        raise UserError(f"{image} {words}.", code="image_size")


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def _described(text: str) -> tuple[str, str | None]:
    """Return kind and class of ``3``, ``Fiber_3`` or ``Fiber``; other digits are an instance."""
    found = _NUMBERED.fullmatch(text)
    if found:
        return "instance", class_name(found["name"])
    return ("instance", None) if re.search(r"\d", text) else ("class", class_name(text))


def _is_marked(name: str) -> bool:
    """Return whether a file is named ``…_mask.png`` or similar."""
    path = PurePosixPath(name)
    return path.suffix.lower() in SUFFIXES and _MARK.search(path.stem) is not None


def is_mask(name: str) -> bool:
    """Return whether an image is a mask, by its path in a folder with photographs."""
    folders = PurePosixPath(name.replace(os.sep, "/").lower()).parts[:-1]
    return _is_marked(name) or not _FOLDERS_OF_MASKS.isdisjoint(folders)


def _has_masks(folders: tuple[Path, Path]) -> bool:
    images, masks = folders
    names = [PurePosixPath(name) for name in islice(list_files(masks, None), _SNIFFED_FILES)]
    own = (_CLASSES_CSV, f"_{_CLASSES_CSV}", _CLASSES_TXT)
    suffixes = {name.suffix.lower() for name in names if name.name not in own}
    cellpose = any(name.name.endswith("_seg.npy") for name in names)  # may have masks beside it
    if cellpose or suffixes & _OTHER_FORMATS or not suffixes & SUFFIXES:
        return False
    return images != masks or any(_is_marked(name.name) for name in names)


def _find_folders(path: Path) -> dict[str, tuple[Path, Path]]:
    """Return the folders of images and masks, which may be the same, of each split."""
    folders = layout.image_folders(path)
    if folders == {"all": path} and (path / "all").is_dir():
        path = path / "all"  # where this package writes a set without splits
        folders = layout.image_folders(path)
    marked = [name for name in list_files(path) if "/" not in name and _is_marked(name)]
    if marked and path not in folders.values():
        raise UserError(
            f"{path / marked[0]} lies beside the folders of images; move it and its image into one "
            "of them, or out of the input.",
            code="name_clash",
        )
    return {split: (images, _masks_of(images, path)) for split, images in folders.items()}


def _masks_of(images: Path, path: Path) -> Path:
    """Return the folder of the masks: ``masks`` for ``images``, and alike in both."""
    for folder in (images, images.parent):
        if folder.name.lower() in layout.IMAGE_FOLDERS and path in folder.parents:
            masks = layout.child_folder(folder.parent, _MASK_FOLDERS) or folder.with_name("masks")
            masks = masks / images.relative_to(folder)
            if not masks.is_dir():
                raise UserError(
                    f"{images} has no masks: {masks} does not exist; add it.", code="file_missing"
                )
            return masks
    return images


def _number(text: str) -> int | None:
    """Return a number from 1, or the number of a colour ``#rrggbb``; None for other text."""
    if re.fullmatch(r"#[0-9a-fA-F]{6}", text):
        return int(text[1:], 16)
    if re.fullmatch(r"[0-9]{1,16}(\.0*)?", text):
        return int(text.split(".")[0]) or None
    return None


def read_label_image(
    path: str | os.PathLike, max_pixels: int | None = None, *, palette: bool = False
) -> tuple[np.ndarray, bool]:
    """Read a PNG, TIFF, BMP, GIF or PPM of whole numbers as it is stored.

    A palette gives its indices, and Pascal VOC's border 255 is background, or, with ``palette``,
    its colours. A colour becomes R * 65536 + G * 256 + B; an alpha channel is dropped. Float
    pixels must be whole numbers, as in ImageJ's label maps. ``max_pixels`` limits the image
    (``MAX_PIXELS`` if None).

    Returns:
        (H, W) array of integers from 0, and whether the file is in colour.

    Raises:
        UserError: the file cannot be read, is compressed with loss or turned by a tag, or has
            several pages, or numbers that are negative or not whole.
    """
    path = os.fspath(path)
    with open_image(path, max_pixels) as image:
        if image is not None and image.format in _LOSSY:
            raise UserError(
                f"{path} is {image.format}, whose compression changes numbers; save masks as PNG "
                "or TIFF.",
                code="image_invalid",
            )
        if image is not None and header_orientation(image) != 1:
            raise UserError(
                f"{path} is turned by a tag; save it upright without the tag.", code="image_invalid"
            )
        if image is None or image.format == "TIFF":
            array = _read_tiff(path, max_pixels)
        elif is_deep_png(image):
            array = decode_with_opencv(path)  # BGR, but only grey is taken of 16 bits
        else:
            array = _read_pillow(image, palette)
        array, colour = _without_channels(array)
        if array.dtype.kind not in "biuf":
            raise ValueError(f"its pixels are of type {array.dtype}")
        low, high = array.min().item(), array.max().item()
        usable = low >= 0 and high < 2**53  # False for NaN
        if not usable or (array.dtype.kind == "f" and not (array == np.rint(array)).all()):
            raise UserError(
                f"{path} has pixels from {low} to {high}; expected whole numbers: particles from "
                "1, background 0.",
                code="image_invalid",
            )
        kinds = {"b": np.uint8, "f": np.int64}
        return array.astype(kinds.get(array.dtype.kind, array.dtype), copy=False), colour


def read_bitmap(path: str | os.PathLike) -> np.ndarray:
    """Read the mask of one particle: where it is opaque, or not 0 if all of it is opaque.

    Returns:
        (H, W) bool array.

    Raises:
        UserError: as :func:`read_label_image`.
    """
    with open_image(os.fspath(path), None) as image:
        if image is not None and image.mode in ("LA", "RGBA"):
            alpha = np.asarray(image)[:, :, -1]
            if alpha.min() < _OPAQUE:
                return alpha >= _OPAQUE
    return read_label_image(path)[0] != 0


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


def _read_pillow(image: Image.Image, as_colours: bool) -> np.ndarray:
    """Return grey or RGB pixels, maybe with alpha, as they are stored."""
    if getattr(image, "n_frames", 1) > 1:
        raise ValueError(f"it has {image.n_frames} frames; save each as a separate file")
    if image.mode not in _MODES:
        raise ValueError(f"its mode is {image.mode}; save it as grey PNG")
    if image.mode == "P" and as_colours:
        return np.asarray(image.convert("RGB"))
    array = np.asarray(image)
    palette = image.getpalette("RGB") if image.mode == "P" else None
    if palette is not None and palette[3 * _VOID : 3 * _VOID + 3] == _VOID_COLOUR:
        array = np.where(array == _VOID, 0, array)
    return array


def _read_tiff(path: str, max_pixels: int | None) -> np.ndarray:
    """Return grey or RGB pixels, maybe with alpha, of the only page of a TIFF."""
    with tifffile.TiffFile(path) as tiff:
        if len(tiff.pages) > 1:
            raise ValueError(f"it has {len(tiff.pages)} pages; save each as a separate file")
        page = tiff.pages[0]
        if page.compression.name.startswith(_LOSSY_TIFF):
            raise UserError(
                f"{path} is compressed as {page.compression.name}, which changes numbers; save "
                "masks without loss.",
                code="image_invalid",
            )
        check_pixels(path, page.imagewidth, page.imagelength, max_pixels)
        if page.samplesperpixel > 4 or page.imagedepth != 1:
            raise ValueError(f"it has {page.samplesperpixel} channels and depth {page.imagedepth}")
        check_complete(page, os.path.getsize(path))
        array = page.asarray()
        if array.ndim == 3 and int(page.planarconfig) == 2:
            array = array.transpose(1, 2, 0)
        if array.shape[:2] != (page.imagelength, page.imagewidth):
            raise ValueError("its pixels do not fill its size")
        return array


def _without_channels(array: np.ndarray) -> tuple[np.ndarray, bool]:
    """Return grey or RGB pixels, maybe with alpha, as (H, W) numbers, and if they have colours."""
    if array.ndim == 2:
        return array, False
    if array.shape[2] < 3:
        return array[:, :, 0], False
    red, green, blue = (array[:, :, channel] for channel in range(3))
    if np.array_equal(blue, green) and np.array_equal(green, red):
        return red, False
    if array.dtype != np.uint8:
        raise ValueError("it has colours of more than 8 bits; save it as grey PNG or TIFF")
    return red.astype(np.int32) << 16 | green.astype(np.int32) << 8 | blue, True


def write(sources: dict[str, Source], output: Path, notes: Notes) -> None:
    """Write one label image an image: ``output/SPLIT/masks/NAME.tif``, int32, zlib.

    Particles are numbered from 1 in their order. ``classes.csv`` beside ``masks`` has ``image``,
    ``id``, ``class`` and ``iscrowd`` of each, ``classes.txt`` the classes in their order. Of
    particles that overlap the later one has the pixels; one that has none left has no row.
    """
    for split, source in sources.items():
        folder = output / split
        with atomic_write(folder / _CLASSES_CSV) as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(("image", "id", "class", "iscrowd"))
            for record, name in layout.records_to_write(split, source, ".tif"):
                labels, kept = _label_image(record, notes)
                content = io.BytesIO()
                tifffile.imwrite(content, labels, compression=_COMPRESSION, metadata=None)
                with atomic_write(folder / "masks" / name, "wb") as image:
                    image.write(content.getbuffer())
                table.writerows(map(as_cell, (record.file_name, *row)) for row in kept)
        with atomic_write(folder / _CLASSES_TXT) as file:
            file.writelines(f"{category}\n" for category in source.classes)


def _label_image(
    record: ImageRecord, notes: Notes
) -> tuple[np.ndarray, list[tuple[int, str, int]]]:
    """Paint the particles of an image; return also id, class and iscrowd of the visible ones."""
    check_pixels(record.file_name, record.width, record.height, None)
    for key in record.extra:
        notes.add("extra_lost", record.file_name, show(key))
    masks = CropMasks.from_coco([each.segmentation for each in record.instances], record.size)
    labels = np.zeros(record.size, dtype=np.int32)
    for number, (crop, (x0, y0)) in enumerate(zip(masks.crops, masks.offsets, strict=True), 1):
        labels[y0 : y0 + crop.shape[0], x0 : x0 + crop.shape[1]][crop] = number
    shown = np.bincount(labels.reshape(-1), minlength=len(masks) + 1).tolist()
    rows = []
    areas = masks.area().tolist()
    for number, (instance, area) in enumerate(zip(record.instances, areas, strict=True), 1):
        for key in instance.extra:
            notes.add("extra_lost", instance.where, show(key))
        if shown[number] < area:
            detail = f"{area - shown[number]} of {area} px"
            notes.add("overlap_lost", instance.where, detail)
        if shown[number]:
            rows.append((number, instance.category, instance.iscrowd))
        else:
            detail = "covered by later ones" if area else "no pixel"
            notes.add("instance_lost", instance.where, detail)
    return labels, rows
