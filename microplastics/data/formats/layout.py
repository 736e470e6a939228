"""Files of annotated data sets: names, splits, images and annotations."""

import contextlib
import filecmp
import json
import os
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import unquote

from microplastics.data.coco import is_printable, is_safe_name, show
from microplastics.data.formats.base import ImageRecord, Notes, ReadOptions, Source, noted_once
from microplastics.data.images import image_header, size_mismatch
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
MANIFESTS = ("conversion.json", "export.json")  # written by convert
PLACES = ("keep", "copy", "link")

_DRIVE = re.compile(r"[A-Za-z]:")
_UPLOAD = re.compile(r"[0-9a-f]{8}-(?=.)")  # Label Studio's prefix of uploaded files
_MAX_NAME = 4096
_MAX_PARTS = 16
_MAX_TEXT = 1 << 26  # bytes
_MAX_EXTRA = 4096  # bytes of one further field as JSON
_SNIFFED_BYTES = 1 << 16
_SNIFFED_FILES = 20
_DETAIL = 300
_NOTE_CODES = {  # of errors about images
    **{"image_missing": "image_missing", "file_missing": "image_missing"},
    **{"image_size": "image_size", "image_invalid": "image_broken"},
    "image_too_large": "image_broken",
}
# Fields of a COCO image or annotation that an extra field must not replace.
_OWN_FIELDS = frozenset(
    ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation")
    + ("file_name", "width", "height", "ignore")
)


# Names


def class_name(value: Any) -> str | None:
    """Return a class name without surrounding white space; None if the value cannot be one."""
    if type(value) is int and abs(value) < 2**63:
        value = str(value)
    return value.strip() if is_printable(value) else None


def safe_name(name: object, where: str) -> str:
    """Return a file name without ``.`` and doubled slashes, checked to stay in its folder.

    Args:
        name: unchecked.
        where: its place, for the message.

    Raises:
        UserError: it is not printable text, is absolute, names a drive or contains ``..``.
    """
    if not is_safe_name(name) or len(name) > _MAX_NAME:
        raise UserError(
            f"{where} has the file name {show(name)}; expected a path within the image folder, "
            "without ..",
            code="annotations_invalid",
        )
    return str(PurePosixPath(name))


def find_file(name: object, folder: Path) -> tuple[str, bool] | None:
    """Find the file that a name means: by the whole name, then by ever fewer of its last parts.

    Labelling tools write paths of their server, URLs (``/data/local-files/?d=a/b.jpg``) and
    backslashes; in an export the image lies under the last parts of these.

    Args:
        name: any value.
        folder: where to look; nothing outside of it is found.

    Returns:
        the name relative to ``folder``, with ``/``, and whether it is the name as given; None if
        there is no such file.
    """
    if not is_printable(name) or len(name) > _MAX_NAME:
        return None
    for candidate in _candidates(name):
        if os.path.isfile(os.path.join(folder, candidate)):
            return candidate, candidate == name
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

    Args:
        folder: where to look.
        suffixes: lower-case endings, by default those of images; None for all files.
    """
    for here, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        relative = os.path.relpath(here, folder).replace(os.sep, "/")
        for name in sorted(files):
            suffix = os.path.splitext(name)[1].lower()
            if name.startswith(".") or (suffixes is not None and suffix not in suffixes):
                continue
            if not is_manifest(Path(here, name)):
                yield name if relative == "." else f"{relative}/{name}"


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
    """Return split -> sub-folder for the sub-folders that are named as splits.

    Raises:
        UserError: two of them mean the same split (``name_clash``).
    """
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


def input_splits(path: Path, suffixes: frozenset[str]) -> dict[str, Path]:
    """Return split -> folder of an input, or ``{"all": path}`` if it has no split folders.

    Args:
        path: file or folder.
        suffixes: endings of the files that must not lie beside the split folders.

    Raises:
        UserError: two folders are the same split, or a file lies beside the split folders
            (``name_clash``).
    """
    splits = split_folders(path) if path.is_dir() else {}
    for file in sorted(path.iterdir()) if splits else ():
        hidden = file.name.startswith(".") or is_manifest(file)
        if file.suffix.lower() in suffixes and file.is_file() and not hidden:
            raise UserError(
                f"{file} lies beside the folders of the splits ({', '.join(sorted(splits))}); move "
                "it into one of them or out of the input.",
                code="name_clash",
            )
    return splits or {"all": path}


def given_images(options: ReadOptions, split: str = "all") -> Path | None:
    """Return the folder of ``--images``, or its sub-folder of a split; None if not given.

    Raises:
        UserError: it does not exist (``file_missing``).
    """
    if options.images is None:
        return None
    folder = Path(options.images)
    if not folder.is_dir():
        raise UserError(
            f"The image folder {folder} does not exist; correct --images.", code="file_missing"
        )
    return split_folders(folder).get(split, folder)


def sniff(path: Path, matches: Callable[[bytes], Any]) -> bool:
    """Return whether a JSON file, or one of the first below a folder, matches; never raises.

    Args:
        path: file or folder.
        matches: takes the first and the last 64 KiB of the file, without white space, byte order
            mark and the NUL bytes of UTF-16.
    """
    if not path.is_dir():
        return path.suffix.lower() == ".json" and bool(matches(_squeezed(path)))
    looked = 0
    for name in list_files(path, frozenset((".json",))):
        text = _squeezed(path / name)
        if text and matches(text):
            return True
        looked += bool(text)
        if looked == _SNIFFED_FILES:
            break
    return False


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


def read_text(path: Path) -> str:
    """Read a text file of up to 64 MiB: UTF-8, or UTF-16 with its byte order mark.

    Raises:
        UserError: it cannot be read, is too large or not such text (``file_invalid``).
    """
    try:
        with open(path, "rb") as file:
            content = file.read(_MAX_TEXT + 1)
        if len(content) > _MAX_TEXT:
            raise UserError(
                f"{path} is larger than {_MAX_TEXT >> 20} MiB; expected a small text file.",
                code="file_invalid",
            )
        wide = content.startswith((b"\xff\xfe", b"\xfe\xff"))
        return content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        words = f"is not {error.encoding} text (byte {error.start}); save it as UTF-8"
        raise UserError(f"{path} {words}.", code="file_invalid") from error
    except OSError as error:
        words = f"cannot be read ({error.strerror}); correct the path"
        raise UserError(f"{path} {words}.", code="file_invalid") from error


# Images


class ImageFinder:
    """Finds the images that annotations name, within one folder.

    Attributes:
        root: folder of the images; nothing outside of it is read.
    """

    def __init__(self, root: Path, given: bool):
        # A given root is looked in without regard to the place of the annotation file.
        self.root, self._given = root, given
        self._absolute = os.path.abspath(root)
        self._by_name: dict[str, list[str]] | None = None

    def find(self, name: Any, folder: Path, other: Any = None) -> str:
        """Return the path of an image relative to the root, with ``/``.

        It is looked for under its path, then under the last parts of it beside the annotation
        file and in ``images``, then under its base name anywhere in the root.

        Args:
            name: as the annotation file has it.
            folder: of the annotation file.
            other: a second name that the file may have.

        Raises:
            UserError: it is not there, lies outside of the root, or several have its name
                (``image_missing``).
        """
        names = [each.strip() for each in (name, other) if is_printable(each)]
        if not names:
            raise UserError(
                f"The image is named {show(name)}; expected a file name.", code="image_missing"
            )
        outside = None
        for path in self._places(names, self.root if self._given else folder):
            if path.startswith(os.path.join(self._absolute, "")):
                return os.path.relpath(path, self._absolute).replace(os.sep, "/")
            outside = outside or path
        found = self._named(names)
        if len(found) == 1:
            return found[0]
        if found:
            words = f"is the name of {len(found)} images in {self.root} ({found[0]}, {found[1]}); "
            words += "give each its own name or put it beside its annotations"
        elif outside:
            words = f"is {outside}, outside of {self.root}; give the folder that holds both "
            words += "annotations and images, or the folder of the images with --images"
        else:
            words = f"is neither beside its annotations nor below {self.root}; copy it there or "
            words += "give the folder of the images with --images"
        raise UserError(f"The image {show(names[0])} {words}.", code="image_missing")

    def _places(self, names: list[str], folder: Path) -> Iterator[str]:
        """Yield the absolute paths of existing files that the names may mean."""
        for name in names:
            path = os.path.abspath(os.path.join(folder, name.replace("\\", "/")))
            if not _is_absolute(name) and os.path.isfile(path):
                yield path
            for place in (folder, folder / "images", folder.parent / "images"):
                found = find_file(name, place)
                if found:
                    yield os.path.abspath(place / found[0])

    def _named(self, names: list[str]) -> list[str]:
        """Return the images in the root that have the base name of one of the names."""
        if self._by_name is None:
            self._by_name = {}
            for each in list_files(self.root):
                self._by_name.setdefault(each.rsplit("/", 1)[-1], []).append(each)
        bases = (base for name in names for base in _candidates(name) if "/" not in base)
        return next((self._by_name[base] for base in bases if base in self._by_name), [])


def _is_absolute(name: str) -> bool:
    return re.match(r"[/\\]|[A-Za-z]:|[A-Za-z][A-Za-z0-9+.-]*://", name) is not None


def checked_size(path: Path, options: ReadOptions, *claimed: Sequence[Any]) -> tuple[int, int]:
    """Return width and height of an image by its header.

    Args:
        path: the image.
        options: limit of the pixels.
        claimed: widths and heights by its annotations; ignored unless positive numbers.

    Raises:
        UserError: the image cannot be read, or has another size than claimed (``image_size``).
    """
    size, rotated = image_header(path, options.max_pixels)
    for sides in claimed:
        if all(type(side) in (int, float) and 0 < side < 2**31 for side in sides):
            expected = (round(sides[0]), round(sides[1]))
            if size != expected:
                raise UserError(
                    f"{path} {size_mismatch(size, expected, rotated)}.", code="image_size"
                )
    return size


def skip_or_raise(
    error: UserError, where: str, options: ReadOptions, notes: Notes, code: str = ""
) -> None:
    """Raise an error, or note it if ``options.skip_broken``, by default as its own code says."""
    if not options.skip_broken:
        raise error
    code = code or _NOTE_CODES.get(error.code, "label_broken")
    notes.add(code, where, str(error)[:_DETAIL])


def extra_fields(
    fields: dict[str, Any],
    known: Iterable[str],
    where: str,
    notes: Notes,
    code: str = "field_unknown",
) -> dict[str, Any]:
    """Return the further fields of an image or annotation: not known, and at most 4,096 bytes.

    ``notes`` takes ``code`` for each other field.
    """
    extra = {}
    for key, value in fields.items():
        if key in known:
            continue
        if key in _OWN_FIELDS or not is_printable(key) or not _is_small(value):
            notes.add(code, where, show(key))
        else:
            extra[key] = value
    return extra


def without_empty(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that hold something."""
    return {key: value for key, value in fields.items() if value not in (None, "", [], {})}


def _is_small(value: Any) -> bool:
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False)
        return len(text.encode()) <= _MAX_EXTRA
    except (ValueError, RecursionError):  # NaN, a lone surrogate, an integer of many digits
        return False


class FileReader(ABC):
    """Reader of one split in a format of JSON files that name their images.

    A format is a subclass with :meth:`records`; :func:`read_splits` makes sources of it.

    Attributes:
        content: type of the JSON.
        meaning: description of the files, for messages that end in "not …".
        options: how to read.
        order: takes class names in the order of the format, before all others.
    """

    content: type = dict
    meaning = ""

    def __init__(self, path: Path, split: str, options: ReadOptions):
        """Open a file, or a folder of files, which must not be empty."""
        self.options = options
        self.order: dict[str, None] = {}
        self._root = path if path.is_dir() else path.parent
        images = given_images(options, split)
        self._finder = ImageFinder(images or self._root, images is not None)
        self._paths = [path]
        if path.is_dir():
            self._paths = [path / name for name in list_files(path, frozenset((".json",)))]
        if not self._paths:
            raise UserError(
                f"{path} has no .json file; give the folder of the annotations.",
                code="file_missing",
            )
        self._whole = path.is_dir()
        self._seen: dict[str, str] = {}

    @abstractmethod
    def records(self, data: Any, where: str, notes: Notes) -> Iterator[ImageRecord]:
        """Read the images of one file.

        Args:
            data: content of the file.
            where: its name, for messages.
            notes: takes what is changed or left out.
        """

    def source(self, notes: Notes) -> Source:
        """Return the split as a stream; its classes are collected in a pass of their own."""
        found, count = set(), 0
        for record in self._read(Notes()):
            found.update(instance.category for instance in record.instances)
            count += 1
        classes = [name for name in self.order if name in found] + sorted(found - set(self.order))
        return noted_once(self._finder.root, classes, self._read, notes, count)

    def image(
        self,
        name: Any,
        where: str,
        notes: Notes,
        *,
        other: Any = None,
        claimed: Sequence[Sequence[Any]] = (),
        hint: str = "",
    ) -> ImageRecord | None:
        """Find an image and check its size; None, with a note, if it is to be skipped.

        Args:
            name: as the file has it.
            where: place of its annotations, for messages.
            notes: takes the note.
            other: a second name that the image may have.
            claimed: widths and heights by its annotations.
            hint: what to do if it is missing.

        Raises:
            UserError: it is missing, broken, of another size, or annotated twice.
        """
        try:
            try:
                found = self._finder.find(name, self._folder, other)
            except UserError as error:
                words = f"{where}: {str(error).rstrip('.')}{hint and f'; {hint}'}."
                raise UserError(words, code=error.code) from error
            self._take(found, where)
            size = checked_size(self._finder.root / found, self.options, *claimed)
        except UserError as error:
            skip_or_raise(error, where, self.options, notes)
            return None
        return ImageRecord(found, *size)

    def leave_out(self, name: Any, where: str, notes: Notes) -> None:
        """Note an image that nobody has annotated, whether it is there or not."""
        notes.add("image_unannotated", where)
        with contextlib.suppress(UserError):
            self._seen.setdefault(self._finder.find(name, self._folder), where)

    def _take(self, name: str, where: str) -> None:
        if name in self._seen:
            raise UserError(
                f"{self._seen[name]} and {where} both annotate {name}; merge them or delete one.",
                code="annotations_invalid",
            )
        self._seen[name] = where

    def _read(self, notes: Notes) -> Iterator[ImageRecord]:
        self._seen.clear()
        for path in self._paths:
            where, self._folder = path.relative_to(self._root).as_posix(), path.parent
            try:
                if not path.is_file():
                    raise UserError(f"{path} is not a file; delete it.", code="file_invalid")
                yield from self.records(read_json(path, self.content, self.meaning), where, notes)
            except UserError as error:
                skip_or_raise(error, where, self.options, notes, "label_broken")
        if self._whole:
            for name in list_files(self._finder.root):
                if name not in self._seen:
                    notes.add("image_unannotated", name)


def read_splits(
    reader: type[FileReader], path: Path, options: ReadOptions, notes: Notes
) -> dict[str, Source]:
    """Read a file, or a folder with or without split folders (see ``base.Reader.read``)."""
    splits = input_splits(Path(path), frozenset((".json",)))
    return {split: reader(each, split, options).source(notes) for split, each in splits.items()}


# Writing


def records_to_write(
    split: str, source: Source, suffix: str, keep_both: bool = False
) -> Iterator[tuple[ImageRecord, str]]:
    """Yield the records of a split, each with the name of its annotation file.

    Args:
        split: its name.
        source: its images.
        suffix: ending of the annotation files, which otherwise are called as their images.
        keep_both: call the second of two ``NAME.txt`` ``NAME.IMAGE_SUFFIX.txt``.

    Raises:
        UserError: a file name leaves the folder, or two images need the same annotation file
            (``name_clash``).
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


def place_image(source: Path, target: Path, place: str) -> None:
    """Copy or link one image; a file with the same content is left as it is.

    Args:
        source: the image.
        target: the new file; missing folders are made.
        place: ``"copy"``, or ``"link"``: a hard link, or a symbolic one if that fails.

    Raises:
        UserError: another file is there (``output_exists``), or it cannot be written.
    """
    try:
        if os.path.lexists(target):
            _check_same(source, target)
            return
        if place == "copy":
            with open(source, "rb") as read, atomic_write(target, "wb") as write:
                shutil.copyfileobj(read, write, 1 << 20)
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        origin = source.resolve()
        try:
            os.link(origin, target)
        except FileExistsError:
            raise
        except OSError:  # another file system, or one without hard links
            target.symlink_to(origin)
    except OSError as error:
        raise write_error(target, error) from error


def _check_same(source: Path, target: Path) -> None:
    with contextlib.suppress(OSError):
        if os.path.samefile(source, target) or filecmp.cmp(source, target, shallow=False):
            return
    raise UserError(
        f"{target} exists and differs from {source}, which would be written there; choose another "
        "--output, or give the images different names.",
        code="output_exists",
    )
