"""Segmentation masks in the folders of Pascal VOC, as CVAT and labelme2voc write them too.

``SegmentationClass`` has the classes of pixels, ``SegmentationObject`` the particles,
``JPEGImages`` the photographs, and ``ImageSets/Segmentation`` the splits. ``labelmap.txt`` (CVAT's
"Segmentation mask 1.1": colours) or ``class_names.txt`` (labelme2voc: numbers) names the classes.
"""

import contextlib
import functools
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from microplastics.data.coco import show
from microplastics.data.formats import layout
from microplastics.data.formats.base import ImageRecord, Instance, Notes, ReadOptions, Source
from microplastics.data.formats.layout import child_folder, class_name, list_files
from microplastics.data.formats.masks import (
    DEFAULT_CLASS,
    SUFFIXES,
    check_size,
    instance_rles,
    parts,
    read_label_image,
)
from microplastics.data.images import image_header
from microplastics.utils.errors import UserError
from microplastics.utils.io import read_text

# labelme2voc before 5.0 has NumPy files in the folders without PNG in their names.
_CLASS_FOLDERS = ("segmentationclasspng", "segmentationclass")
_OBJECT_FOLDERS = ("segmentationobjectpng", "segmentationobject")
_LABELMAP = "labelmap.txt"
_NAMES = ("class_names.txt", "classes.txt", "labels.txt")
_BACKGROUND = frozenset("background _background_ __background__ bg".split())
_IGNORED = frozenset("void ignore ignored __ignore__ _void_".split())
_VOID, _VOID_COLOUR = 255, 0xE0E0C0  # the border of objects, and objects too difficult to outline
_MOST = 2**24  # numbers of one mask, as many as there are colours
_MOST_CLASSES = 1_000  # of one mask: more are a photograph


def detect(path: Path) -> bool:
    """Return whether a folder, or one of its split folders, has masks in Pascal VOC's folders."""
    try:
        return path.is_dir() and any(_has_masks(root) for root in _roots(path).values())
    except (UserError, OSError, ValueError):
        return False


def read(path: Path, options: ReadOptions, notes: Notes) -> dict[str, Source]:
    """Open a folder in the layout of Pascal VOC (see ``base.Reader.read``).

    The splits are folders, or lists in ``ImageSets/Segmentation``. An object has the class of most
    of its pixels; without ``SegmentationObject`` each 8-connected part of a class is a particle.
    """
    if not path.is_dir():
        raise UserError(f"{path} is not a folder; expected Pascal VOC's.", code="input_empty")
    sources: dict[str, Source] = {}
    for split, root in _roots(path).items():
        reader = _Reader(root, split, options, notes)
        for name, stems in reader.splits(notes).items():
            name = name if split == "all" else split
            if name in sources:
                raise UserError(
                    f"{root} is the split {split} and has lists of splits itself; delete its "
                    "ImageSets.",
                    code="name_clash",
                )
            records = functools.partial(reader.records, stems)
            sources[name] = Source.noting(reader.images, reader.classes, records, notes, len(stems))
    return layout.in_order(sources)


def _roots(path: Path) -> dict[str, Path]:
    splits = {split: root for split, root in layout.split_folders(path).items() if _folders(root)}
    return splits or {"all": path}


def _folders(root: Path) -> list[Path]:
    found = (child_folder(root, _CLASS_FOLDERS), child_folder(root, _OBJECT_FOLDERS))
    return [folder for folder in found if folder is not None]


def _has_masks(root: Path) -> bool:
    return any(next(list_files(folder, SUFFIXES), None) for folder in _folders(root))


class _Labels:
    """Names of the classes by the numbers and by the colours of masks.

    Attributes:
        names: the classes in their order; empty if no file has them.
        colours: the file gives a colour for each class.
    """

    def __init__(self, root: Path):
        self.names: list[str] = []
        self._numbers: dict[int, str | None] = {0: None}
        self._colours: dict[int, str | None] = {0: None}
        self.colours = (root / _LABELMAP).is_file()
        path = next((root / name for name in (_LABELMAP, *_NAMES) if (root / name).is_file()), None)
        if path is None:
            return
        number = 1
        for where, name, colour in self._lines(path):
            if name.lower() in _BACKGROUND | _IGNORED:
                if colour is not None:
                    self._colours[colour] = None
                continue
            colour = _voc_colour(number) if colour is None else colour
            if colour == 0:
                raise UserError(
                    f"{where} gives {show(name)} the colour 0,0,0 of the background; call it "
                    "background, or give it the colour that it has in the masks.",
                    code="table_invalid",
                )
            if name in self.names or self._colours.get(colour) is not None:
                raise UserError(
                    f"{where} has the class {show(name)} or its colour again; name each once.",
                    code="table_invalid",
                )
            self.names.append(name)
            self._numbers[number] = self._colours[colour] = name
            number += 1
        if not self.names:
            raise UserError(f"{path} has no class; name one a line.", code="table_invalid")

    def _lines(self, path: Path) -> Iterator[tuple[str, str, int | None]]:
        """Yield place, name and colour of each line."""
        for number, line in enumerate(read_text(path).splitlines(), 1):
            where, line = f"{path}, line {number}", line.strip()
            if not line or (self.colours and line.startswith("#")):
                continue
            text, _, rest = line.partition(":") if self.colours else (line, "", "")
            name, colour = class_name(text), _colour(rest.partition(":")[0])
            if name is None or (colour is None and rest.strip(":")):
                raise UserError(
                    f"{where} is {show(line)}; expected a class name, and in {_LABELMAP} also its "
                    "colour, as NAME:R,G,B::.",
                    code="table_invalid",
                )
            yield where, name, colour

    def use(self, masks: list[Path], notes: Notes) -> None:
        """Name the classes by the numbers in the masks, if no file does."""
        seen = {False: set(), True: set()}  # by whether they are colours
        for path in masks:
            with contextlib.suppress(UserError, ValueError):  # raised when the image's turn comes
                labels, colour = read_label_image(path)
                seen[colour].update(_values(labels))
        numbers = seen[False] | {_VOID if n == _VOID_COLOUR else n for n in seen[True]}
        void = set() if numbers <= {0, _VOID} else {_VOID}
        numbers -= {0} | void
        alone = len(numbers) == 1
        for colour, names in ((False, self._numbers), (True, self._colours)):
            for number in sorted(seen[colour] - {0, _VOID_COLOUR} - void):
                names[number] = DEFAULT_CLASS if alone else _unnamed(number, colour)
                if names[number] not in self.names:
                    self.names.append(names[number])
                    if not alone:
                        notes.add("class_unnamed", names[number])

    def name(self, number: int, colour: bool) -> tuple[str | None, bool]:
        """Return the class of a number of a mask, None for background, and whether it is known."""
        names = self._colours if colour else self._numbers
        return names.get(number), number in names


def _colour(text: str) -> int | None:
    """Return the number of a colour ``R,G,B``; None for other text."""
    parts = [part.strip() for part in text.split(",")]  # int() takes fewer blanks than strip()
    if len(parts) != 3 or not all(part.isdecimal() for part in parts):
        return None
    red, green, blue = (int(part) if len(part) < 9 else 256 for part in parts)
    return red << 16 | green << 8 | blue if max(red, green, blue) < 256 else None


def _voc_colour(number: int) -> int:
    """Return Pascal VOC's colour of a number: its bits in turn, from the highest of each channel.

    As ``VOClabelcolormap.m`` of the VOC development kit.
    """
    colour = 0
    for place in range(8):
        for channel, shift in enumerate((16, 8, 0)):
            colour |= (number >> (3 * place + channel) & 1) << (7 - place) << shift
    return colour


def _unnamed(number: int, colour: bool) -> str:
    return f"class_#{number:06x}" if colour else f"class_{number}"


class _Reader:
    """One folder of images and masks.

    Attributes:
        images: folder of the images.
        classes: names of the classes.
    """

    def __init__(self, root: Path, split: str, options: ReadOptions, notes: Notes):
        self._root, self._options = root, options
        images = layout.given_images(options, split) or child_folder(root, layout.IMAGE_FOLDERS)
        if images is None:
            raise UserError(
                f"{root} has no folder JPEGImages; export with images, or give their folder with "
                "--images.",
                code="image_missing",
            )
        self.images = images
        self._files = _by_stem(images, layout.IMAGE_SUFFIXES)
        self._classes = self._masks(_CLASS_FOLDERS, notes)
        self._objects = self._masks(_OBJECT_FOLDERS, notes)
        self._labels = _Labels(root)
        self.classes = self._class_names(notes)

    def _masks(self, folders: tuple[str, ...], notes: Notes) -> dict[str, Path]:
        """Return the stem of an image -> its mask."""
        folder = child_folder(self._root, folders)
        found = {} if folder is None else _by_stem(folder, SUFFIXES)
        masks = {}
        for stem, name in found.items():
            with layout.skipping(name, self._options, notes, "label_without_image"):
                if stem not in self._files:
                    raise UserError(
                        f"{folder / name} has no image {stem} in {self.images}; add it, or delete "
                        "the mask.",
                        code="image_missing",
                    )
                masks[stem] = folder / name
        return masks

    def _class_names(self, notes: Notes) -> list[str]:
        where = str(self._root)
        if not self._classes:
            notes.add("mask_kind", where, "one label image of particles an image")
            if len(self._labels.names) > 1:
                raise UserError(
                    f"{where} has several classes and no masks in SegmentationClass, which tell "
                    "them apart; add these.",
                    code="file_missing",
                )
            return self._labels.names or [DEFAULT_CLASS]
        words = "each 8-connected part of a class one particle"
        words = "label images of particles and of classes" if self._objects else words
        notes.add("mask_kind", where, words)
        if not self._labels.names:
            self._labels.use(list(self._classes.values()), notes)
        return self._labels.names

    def splits(self, notes: Notes) -> dict[str, list[str]]:
        """Return split -> stems of its images, by the lists in ``ImageSets/Segmentation``."""
        lists = sorted((self._root / "ImageSets" / "Segmentation").glob("*.txt"))
        found: dict[str, str] = {}
        # Lists of splits first: trainval has the same images again.
        for path in sorted(lists, key=lambda path: path.stem.lower() not in layout.SPLITS):
            split = layout.SPLITS.get(path.stem.lower(), "all")
            for line in read_text(path).splitlines():
                stem = line.strip().strip('"')
                if stem and self._is_new(stem, split, found, path, notes):
                    found[stem] = split
        for stem in self._files:
            if not lists or stem in self._classes or stem in self._objects:
                found.setdefault(stem, "all")
            elif stem not in found:
                notes.add("image_unannotated", self._files[stem])
        splits = defaultdict(list)
        for stem in sorted(found):
            splits[found[stem]].append(stem)
        return layout.in_order(splits)

    def _is_new(
        self, stem: str, split: str, found: dict[str, str], path: Path, notes: Notes
    ) -> bool:
        """Return whether a name in a list is an image that no other list has."""
        with layout.skipping(path.name, self._options, notes):
            if stem not in self._files:
                raise UserError(
                    f"{path} names {show(stem)}, which is not in {self.images}; add the image, or "
                    "delete the line.",
                    code="image_missing",
                )
            if split != "all" and found.get(stem, split) != split:
                raise UserError(
                    f"{path} names {show(stem)}, which is also in {found[stem]}; delete it in one "
                    "of the lists.",
                    code="annotations_invalid",
                )
            return stem not in found
        return False

    def records(self, stems: list[str], notes: Notes) -> Iterator[ImageRecord]:
        """Read images with their masks."""
        for stem in stems:
            name = self._files[stem]
            with layout.skipping(name, self._options, notes):
                size, rotated = image_header(self.images / name)
                record = ImageRecord(name, *size)
                with layout.skipping(name, self._options, notes, "label_broken"):
                    record.instances = self._instances(stem, record, rotated, notes)
                    yield record

    def _instances(
        self, stem: str, record: ImageRecord, rotated: bool, notes: Notes
    ) -> list[Instance]:
        paths = [masks[stem] for masks in (self._classes, self._objects) if stem in masks]
        if not paths:
            notes.add("image_unlabelled", record.file_name)
            return []
        if len(paths) < bool(self._classes) + bool(self._objects):
            other = child_folder(
                self._root, _CLASS_FOLDERS if stem in self._objects else _OBJECT_FOLDERS
            )
            raise UserError(
                f"{paths[0]} has no mask beside it in {other}; add it.", code="file_missing"
            )
        # Two objects may have one colour in a palette.
        read = [
            read_label_image(path, palette=self._labels.colours and path == self._classes.get(stem))
            for path in paths
        ]
        for path, (labels, _) in zip(paths, read, strict=True):
            check_size(labels, path, self.images / record.file_name, record.size, rotated)
            if labels.max(initial=0) >= _MOST:
                raise UserError(
                    f"{path} has the number {labels.max()}; expected less than {_MOST}.",
                    code="image_invalid",
                )
        try:
            if not self._classes:
                return self._by_object(*read[0], paths[0].name, notes)
            classes, colour = read[0]
            classes, names = self._named(classes, colour, paths[0].name, notes)
            if self._objects:
                return self._by_both(classes, names, read[1][0], paths[1].name, notes)
            areas = ((name, classes == number) for number, name in names.items())
            return [each for name, area in areas for each in parts(name, stem, area, notes)]
        except ValueError as error:
            raise UserError(f"{paths[-1]} {error}.", code="image_invalid") from error

    def _named(
        self, classes: np.ndarray, colour: bool, where: str, notes: Notes
    ) -> tuple[np.ndarray, dict[int, str]]:
        """Return the class mask with 0 for all that is no class, and the names of its numbers."""
        names = {}
        for number in _values(classes):
            name, known = self._labels.name(number, colour)
            if name is not None:
                names[number] = name
            elif not known and _is_void(number, colour):
                notes.add("mask_void", where)
            elif not known:
                notes.add("shape_unlabelled", f"{where}, {_unnamed(number, colour)}")
        return np.where(np.isin(classes, list(names)), classes, 0), names

    def _by_object(
        self, objects: np.ndarray, colour: bool, where: str, notes: Notes
    ) -> list[Instance]:
        """Return the objects of a mask without one of classes."""
        numbers, rles, _ = instance_rles(objects)
        found = []
        for number, rle in zip(numbers, rles, strict=True):
            # With 254 there may be 255 objects; alone it is the value of a binary mask.
            if _is_void(number, colour) and len(numbers) > 1 and _VOID - 1 not in numbers:
                notes.add("mask_void", where)
            else:
                found.append(Instance(self.classes[0], rle, f"{where}, object {number}"))
        return found

    def _by_both(
        self,
        classes: np.ndarray,
        names: dict[int, str],
        objects: np.ndarray,
        where: str,
        notes: Notes,
    ) -> list[Instance]:
        """Return the objects, each of the class that most of its pixels have."""
        inside = objects > 0
        pairs = objects[inside].astype(np.int64) * _MOST + classes[inside]
        keys, counts = np.unique(pairs, return_counts=True)
        shares: dict[int, list[tuple[int, str]]] = defaultdict(list)
        for key, count in zip(keys.tolist(), counts.tolist(), strict=True):
            number, value = divmod(key, _MOST)
            if value:
                shares[number].append((count, names[value]))
        found = []
        numbers, rles, _ = instance_rles(objects)
        for number, rle in zip(numbers, rles, strict=True):
            place = f"{where}, object {number}"
            ranked = sorted(shares[number], reverse=True)
            if len(ranked) > 1:
                notes.add("mask_classes", place, ", ".join(f"{n} px {name}" for n, name in ranked))
            if ranked:
                found.append(Instance(ranked[0][1], rle, place))
            elif number not in (_VOID, _VOID_COLOUR):
                notes.add("shape_unlabelled", place)
        left = int(np.count_nonzero(classes[~inside]))
        if left:
            notes.add("mask_without_object", where, f"{left} px")
        return found


def _values(labels: np.ndarray) -> list[int]:
    """Return the different numbers in a mask of classes."""
    values = np.unique(labels).tolist()
    if len(values) > _MOST_CLASSES:
        raise ValueError(f"has {len(values)} colours, like a photograph; expected one each class")
    return values


def _is_void(number: int, colour: bool) -> bool:
    return number == (_VOID_COLOUR if colour else _VOID)


def _by_stem(folder: Path, suffixes: frozenset[str]) -> dict[str, str]:
    """Return the files in a folder by their names without suffix."""
    found: dict[str, str] = {}
    for name in list_files(folder, suffixes):
        stem = str(PurePosixPath(name).with_suffix(""))
        if stem in found:
            raise UserError(
                f"{folder / found[stem]} and {folder / name} differ only in their suffixes; rename "
                "or delete one of them.",
                code="name_clash",
            )
        found[stem] = name
    return found
