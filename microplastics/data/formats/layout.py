"""Files of annotated data sets: names, splits, images and annotations."""

import base64
import contextlib
import filecmp
import json
import os
import re
import shutil
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice, product
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import unquote
from xml.etree.ElementTree import ParseError

from defusedxml import DefusedXmlException

from microplastics.data.coco import is_class_name, is_printable, is_safe_name, show
from microplastics.data.formats.base import ImageRecord, Instance, Notes, ReadOptions, Source
from microplastics.data.formats.shapes import ShapeError, area_of, checked, noting, union
from microplastics.data.images import NO_LIMIT, image_header, size_mismatch
from microplastics.utils.errors import UserError
from microplastics.utils.io import atomic_write, read_json, write_error

T = TypeVar("T")

IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .tif .tiff .btf .bmp .gif .ppm .pgm .pnm .webp .jp2".split()
)
SPLITS = {  # by the names of files and folders
    **{"train": "train", "training": "train", "test": "test", "testing": "test"},
    **{"val": "val", "valid": "val", "validation": "val"},
}
IMAGE_FOLDERS = ("images", "image", "imgs", "img", "jpegimages")
_NEAR = ("images", "img")  # looked for beside annotation files
MANIFESTS = ("conversion.json", "export.json")  # written by convert
# Fields of a COCO image and annotation, which a further field must not replace.
IMAGE_FIELDS = frozenset(("id", "file_name", "width", "height"))
ANNOTATION_FIELDS = frozenset(
    ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation", "ignore")
)

_JSON = frozenset((".json",))
_DRIVE = re.compile(r"[A-Za-z]:")
_UPLOAD = re.compile(r"[0-9a-f]{8}-(?=.)")  # Label Studio's prefix of uploaded files
_MAX_NAME = 4096
_MAX_PARTS = 16
_MAX_EXTRA = 4096  # bytes of one further field as JSON
_SNIFFED_BYTES = 1 << 16
_SNIFFED_FILES = 20
_DETAIL = 300
_NOTE_CODES = {  # of errors about images
    **{"image_missing": "image_missing", "file_missing": "image_missing"},
    **{"image_size": "image_size", "image_invalid": "image_broken"},
    "image_too_large": "image_broken",
}


# Names


def class_name(value: Any) -> str | None:
    """Return a class name without surrounding white space; None if the value cannot be one."""
    if type(value) is int and abs(value) < 2**63:
        value = str(value)
    return value.strip() if is_class_name(value) else None


def safe_name(name: object, where: str) -> str:
    """Return an unchecked file name, which must stay in its folder, without ``.`` and ``//``."""
    if not is_safe_name(name) or len(name) > _MAX_NAME:
        raise UserError(
            f"{where} has the file name {show(name)}; expected a path within the image folder, "
            "without ..",
            code="annotations_invalid",
        )
    return str(PurePosixPath(name))


def find_file(name: object, folder: Path) -> tuple[str, bool] | None:
    """Find the file in a folder that an unchecked name means.

    Labelling tools write paths of their server, URLs (``/data/local-files/?d=a/b.jpg``) and
    backslashes; in an export the image lies under the last parts of these. So the whole name is
    tried, then ever fewer of its last parts.

    Returns:
        the name relative to ``folder``, with ``/``, and whether it is as given; None if none fits.
    """
    if not is_printable(name) or len(name) > _MAX_NAME:
        return None
    for candidate in _candidates(name):
        if os.path.isfile(os.path.join(folder, candidate)):
            return candidate, candidate == name
    return None


def find_by_stem(name: object, folder: Path) -> tuple[str, bool] | None:
    """Find the only image in a folder that an unchecked name means up to its ending.

    Returns:
        the name relative to ``folder``, with ``/``, and whether the whole name is its stem
        (``a.v2`` of ``a.v2.png``); None if there is none, or several.
    """
    if not is_printable(name) or len(name) > _MAX_NAME:
        return None
    for candidate in _candidates(name):
        for stem in dict.fromkeys((candidate, os.path.splitext(candidate)[0])):
            endings = (e for suffix in IMAGE_SUFFIXES for e in {suffix, suffix.upper()})
            found = [
                stem + ending
                for ending in endings
                if os.path.isfile(os.path.join(folder, stem + ending))
            ]
            if found:
                return (found[0], stem == candidate) if len(found) == 1 else None
    return None


def _candidates(name: str) -> Iterator[str]:
    parts = name.split("/")
    if parts[0] and ".." not in parts and not _DRIVE.match(name):
        yield str(PurePosixPath(name))
    texts = [name]
    if "?" in name:
        head, query = name.split("?", 1)
        texts += [query.split("&")[0].partition("=")[2], head]
    if "%" in name:
        texts += [unquote(text) for text in texts]
    for text in texts:
        parts = [part for part in re.split(r"[/\\]", text) if part not in ("", ".")][-_MAX_PARTS:]
        while parts:
            candidate = "/".join(parts)
            if ".." not in parts and not _DRIVE.match(candidate) and is_printable(candidate):
                yield candidate
                if len(parts) == 1 and _UPLOAD.match(candidate):
                    yield _UPLOAD.sub("", candidate, count=1)
            parts.pop(0)


def split_of(name: str) -> str:
    """Return the split that a name contains: ``instances_val2017`` is val."""
    words = re.split(r"[^a-z]+", name.lower())
    named = {SPLITS[word] for word in words if word in SPLITS}
    return named.pop() if len(named) == 1 else "all"


# Folders


def list_files(folder: Path, suffixes: frozenset[str] | None = IMAGE_SUFFIXES) -> Iterator[str]:
    """List the files in a folder and below it in a fixed order, relative to it, with ``/``.

    Hidden files and this package's own manifests are skipped; links to folders are not followed.
    ``suffixes`` are lower-case endings; None for all files.
    """
    for here, folders, files in os.walk(folder, onerror=_raise_unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        relative = os.path.relpath(here, folder).replace(os.sep, "/")
        for name in sorted(files):
            suffix = os.path.splitext(name)[1].lower()
            if name.startswith(".") or (suffixes is not None and suffix not in suffixes):
                continue
            if not is_manifest(Path(here, name)):
                yield name if relative == "." else f"{relative}/{name}"


def _raise_unreadable(error: OSError) -> None:
    """Refuse a folder whose files would be missed."""
    if isinstance(error, PermissionError):
        raise UserError(
            f"The folder {error.filename} is not readable; change its permissions.",
            code="file_missing",
        ) from error


def is_manifest(path: Path) -> bool:
    """Return whether a file is a ``conversion.json`` or ``export.json`` of this package."""
    if path.name not in MANIFESTS:
        return False
    text = _squeezed(path)
    return text.startswith(b'{"version":') and b'"place":' in text


def in_order(splits: dict[str, T]) -> dict[str, T]:
    """Return the entries of the splits train, val, test and all, in this order."""
    return {split: splits[split] for split in ("train", "val", "test", "all") if split in splits}


def split_folders(folder: Path) -> dict[str, Path]:
    """Return split -> sub-folder for the sub-folders that are named as splits."""
    found: dict[str, Path] = {}
    for child in sorted(folder.iterdir()):
        split = SPLITS.get(child.name.lower())
        if split is None or not child.is_dir():
            continue
        if split in found:
            raise UserError(
                f"{found[split]} and {child} are both the split {split}; merge or rename one.",
                code="name_clash",
            )
        found[split] = child
    return in_order(found)


def image_folders(path: Path, names: Sequence[str] = IMAGE_FOLDERS) -> dict[str, Path]:
    """Return split -> folder of the images: ``images/SPLIT``, ``SPLIT/images`` or ``SPLIT``.

    Without splits it is ``images``, or the folder itself, as ``"all"``. ``names`` are lower-case
    names of a folder of images. Images must not lie beside those of the splits.
    """
    images = child_folder(path, names) or path
    splits = split_folders(images)
    beside = [folder for folder in split_folders(path).values() if child_folder(folder, names)]
    if images != path and (beside or (splits and _has_images(images))):
        raise UserError(
            f"{images} and {(beside or list(splits.values()))[0]} both have images; move them into "
            "folders of splits, or one of them out of the input.",
            code="name_clash",
        )
    folders = {split: child_folder(each, names) or each for split, each in splits.items()}
    return folders or {"all": images}


def _has_images(folder: Path) -> bool:
    """Return whether images lie in a folder itself, not only below it."""
    return "/" not in next(list_files(folder), "/")


def child_folder(folder: Path, names: Sequence[str]) -> Path | None:
    """Return the first of the sub-folders of these lower-case names; None if there is none."""
    children = {child.name.lower(): child for child in sorted(folder.iterdir()) if child.is_dir()}
    return next((children[name] for name in names if name in children), None)


def input_splits(path: Path, suffixes: frozenset[str]) -> dict[str, Path]:
    """Return split -> folder of an input, or ``{"all": path}`` if it has no split folders.

    Files with one of the suffixes must not lie beside split folders.
    """
    splits = split_folders(path) if path.is_dir() else {}
    first = next(list_files(path, suffixes), "") if splits else ""
    if first and "/" not in first:
        raise UserError(
            f"{path / first} lies beside the folders of the splits ({', '.join(sorted(splits))}); "
            "move it into one of them or out of the input.",
            code="name_clash",
        )
    return splits or {"all": path}


def given_images(options: ReadOptions, split: str = "all") -> Path | None:
    """Return the folder of ``--images``, or its sub-folder of a split; None if not given."""
    folder = options.images
    if folder is None:
        return None
    if not folder.is_dir():
        raise UserError(
            f"The image folder {folder} does not exist; correct --images.", code="file_missing"
        )
    return split_folders(folder).get(split, folder)


def sniff(path: Path, matches: Callable[[bytes], Any], suffixes: frozenset[str] = _JSON) -> bool:
    """Return whether a text file, or one of the first below a folder, matches; never raises.

    ``matches`` takes the first and the last 64 KiB, without white space, byte order mark and the
    NUL bytes of UTF-16. ``suffixes`` are lower-case endings of the files.
    """
    files = [path] if path.suffix.lower() in suffixes else []
    if path.is_dir():
        files = (path / name for name in list_files(path, suffixes))
    texts = filter(None, map(_squeezed, files))
    return any(map(matches, islice(texts, _SNIFFED_FILES)))


def _squeezed(path: Path) -> bytes:
    try:
        if not path.is_file():  # opening a pipe would block
            return b""
        with open(path, "rb") as file:
            text = file.read(_SNIFFED_BYTES)
            rest = os.fstat(file.fileno()).st_size - len(text)
            if rest > 0:
                file.seek(-min(rest, _SNIFFED_BYTES), os.SEEK_END)
                text += file.read(_SNIFFED_BYTES)
    except (OSError, ValueError):
        return b""
    return re.sub(rb"[\0\s]", b"", text).lstrip(b"\xef\xbb\xbf\xff\xfe")


# Images


def checked_size(
    path: Path, *claimed: Sequence[Any], content: bytes | None = None
) -> tuple[int, int]:
    """Return width and height of an image in px, by its header, if they are as claimed.

    ``claimed`` are widths and heights by its annotations; ignored unless positive numbers.
    ``content`` is that of an image which is not a file.
    """
    size, rotated = image_header(path, NO_LIMIT, content)
    for sides in claimed:
        if all(type(side) in (int, float) and 0 < side < 2**31 for side in sides):
            expected = (round(sides[0]), round(sides[1]))
            if size != expected:
                raise UserError(
                    f"{path} {size_mismatch(size, expected, rotated)}.", code="image_size"
                )
    return size


@contextlib.contextmanager
def skipping(where: str, options: ReadOptions, notes: Notes, code: str = "") -> Iterator[None]:
    """Note an error that ends a ``with`` block, if ``options.skip_broken``.

    ``code`` is that of the note (see :func:`note_skipped`).
    """
    try:
        yield
    except UserError as error:
        # Of two files with one name nobody can tell which is broken.
        if not options.skip_broken or error.code == "name_clash":
            raise
        note_skipped(error, where, notes, code)


def note_skipped(error: UserError, where: str, notes: Notes, code: str = "") -> None:
    """Note an error as ``code`` unless it is of the size of an image, or else as its code says."""
    if not code or error.code == "image_size":
        code = _NOTE_CODES.get(error.code, "label_broken")
    notes.add(code, where, str(error)[:_DETAIL])


def extra_fields(
    fields: dict[str, Any],
    known: Iterable[str],
    where: str,
    notes: Notes,
    keep_empty: bool = False,
) -> dict[str, Any]:
    """Return the further fields of an image or annotation: not known, and at most 4,096 bytes.

    ``notes`` takes ``field_unknown`` for each other field that holds something.
    """
    extra = {}
    for key, value in fields.items():
        if key in known or (not keep_empty and value in (None, "", [], {})):
            continue
        try:
            text = json.dumps(value, allow_nan=False, ensure_ascii=False)
            fits = is_printable(key) and len(text.encode()) <= _MAX_EXTRA
        except (ValueError, RecursionError):  # NaN, a lone surrogate, an integer of many digits
            fits = False
        if not fits or key in IMAGE_FIELDS or key in ANNOTATION_FIELDS:
            notes.add("field_unknown", where, show(key))
        else:
            extra[key] = value
    return extra


# Annotations


@contextlib.contextmanager
def reading_xml(path: Path, fix: str) -> Iterator[None]:
    """Turn any error of reading an XML in a ``with`` block into a ``UserError`` with its fix."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"Cannot read {path}: {reason}; correct the path.", code="file_missing"
        ) from error
    # LookupError and ValueError: encodings that are unknown, or not read by expat.
    except (ParseError, DefusedXmlException, LookupError, ValueError) as error:
        words = type(error).__name__ if isinstance(error, DefusedXmlException) else error
        raise UserError(
            f"{path} is not XML that can be read ({words}); {fix}.", code="file_invalid"
        ) from error


class FileReader(ABC):
    """Reader of one split in a format of files that name their images, or are named as they.

    A format is a subclass with :meth:`records`, and :meth:`load` if its files are not JSON;
    :func:`read_splits` makes sources of it.

    Attributes:
        suffixes: lower-case endings of the files.
        content: type of the JSON.
        meaning: description of the files, for messages that end in "not …".
        notes: takes what is changed or left out in this pass over the files.
        order: takes class names in the order of the format, before all others.
    """

    suffixes = _JSON
    content: type | tuple[type, ...] = dict
    meaning = ""

    def __init__(self, path: Path, split: str, options: ReadOptions):
        self.options = options
        self.order: dict[str, None] = {}
        self._whole = path.is_dir()
        self._root = path if self._whole else path.parent
        # Given images are looked for without regard to the place of the annotation file.
        self._given = given_images(options, split)
        self._images = self._given or self._root
        self._paths = [path]
        if self._whole:
            self._paths = [path / name for name in list_files(path, self.suffixes)]
        if not self._paths:
            raise UserError(
                f"{path} has no {' or '.join(sorted(self.suffixes))} file; give the folder of the "
                "annotations.",
                code="file_missing",
            )
        self._seen: dict[str, str] = {}
        self._embedded = False

    @abstractmethod
    def records(self, data: Any, where: str) -> Iterator[ImageRecord]:
        """Read the images of the content of one file, of the name ``where``."""

    def load(self, path: Path) -> Any:
        """Return the content of one file."""
        return read_json(path, self.content, self.meaning)

    def foreign(self, words: str) -> UserError:
        """Return the error of a file of another kind, which ``words`` describe."""
        return UserError(f"{words}; it is not {self.meaning}.", code="annotations_invalid")

    def source(self, notes: Notes) -> Source:
        """Return the split as a stream; its classes are collected in a pass of their own."""
        found, count = set(), 0
        for record in self._read(Notes()):
            found.update(instance.category for instance in record.instances)
            count += 1
        classes = [name for name in self.order if name in found] + sorted(found - set(self.order))
        return Source.noting(self._images, classes, self._read, notes, count, self._embedded)

    def image(
        self,
        names: list[Any],
        where: str,
        claimed: Sequence[Sequence[Any]] = (),
        picture: Any = None,
    ) -> ImageRecord:
        """Find an image by its unchecked names and check its size (see :func:`checked_size`).

        ``where`` is the place of its annotations, ``picture`` its content in base64, which counts
        if no file is found.
        """
        content = None
        try:
            found = self._find(names, where)
        except UserError:
            if not isinstance(picture, str) or not picture:
                raise
            content, found = _unpacked(picture, where)
        if found in self._seen:
            raise UserError(
                f"{self._seen[found]} and {where} both annotate {found}; merge them or delete one.",
                code="annotations_invalid",
            )
        self._seen[found] = where
        if content is None:
            return ImageRecord(found, *checked_size(self._images / found, *claimed))
        self._embedded = True
        self.notes.add("picture_embedded", where, found)
        size = checked_size(Path(f"{where}, its embedded picture"), *claimed, content=content)
        return ImageRecord(found, *size, picture=content)

    def named(self, stem: str) -> list[str]:
        """Return the images called ``stem``: those beside the annotation file, or else any."""
        found = self._by_stem.get(stem, [])
        folder = self._given or self._folder
        return [name for name in found if os.path.isfile(folder / name)] or found

    def leave_out(self, name: Any, where: str, noted: bool = True) -> None:
        """Leave out an image, whether it is there or not; note it as not annotated."""
        if noted:
            self.notes.add("image_unannotated", where)
        with contextlib.suppress(UserError):
            self._seen.setdefault(self._find([name], where), where)

    def instance(
        self,
        labels: list[str],
        shape: tuple[str, Any],
        record: ImageRecord,
        where: str,
        fields: dict[str, Any],
        known: Iterable[str],
    ) -> Instance:
        """Return a shape, as ``shapes.area_of`` takes it, as an instance of its first label."""
        if not labels:
            raise ShapeError("shape_unlabelled")
        area = area_of(*shape, record, self.options.line_width, self.notes, where)
        if len(labels) > 1:
            self.notes.add("label_ambiguous", where, ", ".join(labels))
        extra = extra_fields(fields, known, where, self.notes)
        return Instance(labels[0], area, where, 0, extra)

    def _read(self, notes: Notes) -> Iterator[ImageRecord]:
        self.notes = notes
        self._seen.clear()
        for path in self._paths:
            where, self._folder = path.relative_to(self._root).as_posix(), path.parent
            with skipping(where, self.options, notes, "label_broken"):
                if not path.is_file() and not path.is_dir():  # opening a pipe would block
                    raise UserError(f"{path} is not a file; delete it.", code="file_invalid")
                yield from self.records(self.load(path), where)
        if self._whole:
            for name in list_files(self._images):
                if name not in self._seen:
                    notes.add("image_unannotated", name)

    def _find(self, names: list[Any], where: str) -> str:
        """Return the path of an image in its folder, by any of its names.

        It is looked for under its path, then under the last parts of it beside the annotation
        file and in ``images``, then under its base name anywhere in the folder of the images, and
        at last with another ending in the same places.
        """
        names = [name.strip() for name in names if is_printable(name)]
        root = os.path.abspath(self._images)
        outside = ""
        for path in self._places(names):
            if path.startswith(os.path.join(root, "")):
                return os.path.relpath(path, root).replace(os.sep, "/")
            outside = outside or f"{path}, outside of"
        bases = (base for name in names for base in _candidates(name) if "/" not in base)
        found = next((self._by_name[base] for base in bases if base in self._by_name), [])
        if len(found) == 1:
            return found[0]
        other = None if found else self._with_other_ending(names)
        if other is not None:
            path, whole = other
            if not whole:
                self.notes.add("image_ending", where, f"{show(names[0])}, found {path}")
            return path
        several = f"the name of several images ({', '.join(found[:2])}) in" if found else ""
        raise UserError(
            f"{where}: The image {show(names[0] if names else None)} is "
            f"{several or outside or 'neither beside its annotations nor below'} {self._images}; "
            "put it beside its annotations, or give the folder of the images with --images.",
            code="image_missing",
        )

    def _with_other_ending(self, names: list[str]) -> tuple[str, bool] | None:
        """Return the path of an image by its names up to their endings (:func:`find_by_stem`)."""
        for name, place in product(names, dict.fromkeys((*self._near(), self._images))):
            found = find_by_stem(name, place)
            path = found and os.path.relpath(place / found[0], self._images).replace(os.sep, "/")
            if path and not path.startswith("../"):
                return path, found[1]
        return None

    def _near(self) -> list[Path]:
        """Return the folders in which the images of an annotation file are likely to be."""
        folder = self._given or self._folder
        return [folder, *(base / name for base in (folder, folder.parent) for name in _NEAR)]

    def _places(self, names: list[str]) -> Iterator[str]:
        """Yield the absolute paths of existing files that the names may mean."""
        folder = self._given or self._folder
        for name in names:
            path = os.path.abspath(os.path.join(folder, name.replace("\\", "/")))
            own = os.path.splitext(path)[1].lower() in self.suffixes
            if not name.startswith(("/", "\\")) and os.path.isfile(path) and not own:
                yield path
            for place in self._near():
                found = find_file(name, place)
                if found and not own:
                    yield os.path.abspath(place / found[0])

    @cached_property
    def _by_name(self) -> dict[str, list[str]]:
        """The images below the folder by their base names."""
        by_name = defaultdict(list)
        for name in list_files(self._images):
            by_name[name.rsplit("/", 1)[-1]].append(name)
        return dict(by_name)

    @cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        """The base names of the images below the folder by their stems."""
        by_stem = defaultdict(list)
        for name in self._by_name:
            by_stem[os.path.splitext(name)[0]].append(name)
        return dict(by_stem)


def _unpacked(picture: str, where: str) -> tuple[bytes, str]:
    """Return an embedded picture, a PNG or JPEG in base64, and a file name for it."""
    try:
        content = base64.b64decode(picture.partition(",")[2] or picture, validate=True)
    except ValueError:
        content = b""
    for magic, suffix in ((b"\x89PNG\r\n\x1a\n", ".png"), (b"\xff\xd8\xff", ".jpg")):
        if content.startswith(magic):
            return content, str(PurePosixPath(where).with_suffix(suffix))
    raise UserError(
        f"{where}: The image is missing, and its embedded picture is not a PNG or JPEG in base64; "
        "put the image beside its annotations.",
        code="image_missing",
    )


def join_groups(
    members: Iterable[tuple[Any, Instance]], record: ImageRecord, where: str, notes: Notes
) -> list[Instance]:
    """Join the instances of one group and class to one instance.

    Args:
        members: group and instance; an instance of the group None stays as it is.
        record: their image.
        where: its place in the source.
        notes: takes ``group_joined``, ``group_mixed`` and what is left out.
    """
    groups: dict[Any, list[Instance]] = defaultdict(list)
    labels: dict[Any, set[str]] = defaultdict(set)
    for number, (group, instance) in enumerate(members):
        if group is None:
            groups[number].append(instance)
        else:
            labels[group].add(instance.category)
            groups[group, instance.category].append(instance)
    for group, names in labels.items():
        if len(names) > 1:
            notes.add("group_mixed", f"{where}, group {show(group)}", ", ".join(sorted(names)))
    joined = (_joined(each, record, notes) for each in groups.values())
    return [instance for instance in joined if instance is not None]


def _joined(members: list[Instance], record: ImageRecord, notes: Notes) -> Instance | None:
    """Join the shapes of a group into one instance; None if none of them can be used."""
    first = members[0]
    if len(members) == 1:
        return first
    parts = []
    for member in members:
        with noting(notes, member.where):
            parts.append(checked(member.segmentation, record, notes, member.where).segmentation)
    if not parts:
        return None
    notes.add("group_joined", first.where)
    extra: dict[str, Any] = {}
    for member in reversed(members):
        extra.update(member.extra)
    crowd = max(member.iscrowd for member in members)
    return Instance(first.category, union(parts, record.size), first.where, crowd, extra)


def read_splits(
    reader: type[FileReader], path: Path, options: ReadOptions, notes: Notes
) -> dict[str, Source]:
    """Read a file, or a folder with or without split folders (see ``base.Reader.read``)."""
    splits = input_splits(path, reader.suffixes)
    return {split: reader(each, split, options).source(notes) for split, each in splits.items()}


# Writing


def records_to_write(
    split: str, source: Source, suffix: str, keep_both: bool = False
) -> Iterator[tuple[ImageRecord, str]]:
    """Yield the records of a split, each with the name of its annotation file.

    It is called as the image, with another suffix; with ``keep_both`` the second of two
    ``NAME.txt`` is called ``NAME.IMAGE_SUFFIX.txt``, otherwise it is an error.
    """
    taken: dict[str, str] = {}
    for record in source.records():
        name = safe_name(record.file_name, f"An image of {split}")
        target = f"{PurePosixPath(name).with_suffix('')}{suffix}"
        if keep_both and taken.get(target.lower(), name) != name:
            target = f"{name}{suffix}"
        other = taken.setdefault(target.lower(), name)
        if other != name:
            raise UserError(
                f"{other} and {name} of {split} need the same annotation file {target}; rename "
                "one of the images.",
                code="name_clash",
            )
        yield record, target


def write_picture(content: bytes, target: Path) -> None:
    """Write an embedded picture; a file with the same content is left as it is."""
    if os.path.lexists(target):
        if not target.is_file() or target.read_bytes() != content:
            raise UserError(
                f"{target} exists and differs from the picture that would be written there; "
                "choose another --output.",
                code="output_exists",
            )
        return
    with atomic_write(target, "wb") as file:
        file.write(content)


def place_image(source: Path, target: Path, place: str) -> None:
    """Copy or link one image; a file with the same content is left as it is.

    Args:
        source: the image.
        target: the new file; missing folders are made.
        place: ``"copy"``, or ``"link"``: a hard link, or a symbolic one if that fails.
    """
    try:
        if os.path.lexists(target):
            try:
                same = os.path.samefile(source, target) or filecmp.cmp(source, target, False)
            except FileNotFoundError:  # a link whose image is gone
                same = False
            if not same:
                raise UserError(
                    f"{target} exists and differs from {source}, which would be written there; "
                    "choose another --output, or give the images different names.",
                    code="output_exists",
                )
        elif place == "copy":
            with open(source, "rb") as read, atomic_write(target, "wb") as write:
                shutil.copyfileobj(read, write, 1 << 20)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            origin = source.resolve()
            try:
                os.link(origin, target)
            except OSError:  # another file system, or one without hard links
                target.symlink_to(origin)
    except OSError as error:
        raise write_error(target, error) from error
