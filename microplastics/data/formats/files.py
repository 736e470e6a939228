"""Finding annotation files and the images that they name, inside one folder and nowhere else."""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from microplastics.data.coco_findings import show
from microplastics.data.coco_load import read_json
from microplastics.data.formats.codes import NOTES
from microplastics.data.formats.file_names import is_printable, list_images
from microplastics.data.formats.notes import Notes
from microplastics.data.formats.records import ImageRecord, ReadOptions, Source
from microplastics.data.images import image_header, size_mismatch
from microplastics.errors import UserError

_SPLITS = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
_IMAGE_FOLDERS = ("", "images", "../images")
MANIFESTS = ("conversion.json", "export.json")  # what our own conversion and export write
_HEAD = 1 << 16
_TAIL = 1 << 12
_LOOKED_AT = 20
_DETAIL = 300
# Fields of a COCO image or annotation that no extra field may take.
_OWN_FIELDS = frozenset(
    ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation")
    + ("file_name", "width", "height", "ignore")
)


class ImageSizeError(UserError):
    """An image is of another size than was annotated."""


def walk(folder: Path) -> Iterator[Path]:
    """Every file below a folder in a fixed order, without hidden ones and our own manifests."""
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and not is_manifest(Path(parent, name)):
                yield Path(parent, name)


def is_manifest(path: Path) -> bool:
    """Whether a file is the ``conversion.json`` or ``export.json`` that this package writes."""
    if path.name not in MANIFESTS:
        return False
    head = _squeezed_ends(path)[0]
    return head.startswith(b'{"version":') and b'"place":' in head


def json_files(path: Path) -> list[Path]:
    """Every ``.json`` file below a folder, or the one file given.

    Raises:
        UserError: there is none.
    """
    if not path.is_dir():
        return [path]
    found = [file for file in walk(path) if file.suffix.lower() == ".json"]
    if not found:
        raise UserError(f"{path} holds no .json file; give the folder of the annotations.")
    return found


def split_folders(path: Path) -> dict[str, Path]:
    """Return split -> folder of an input: its train, val (valid, validation) and test folders.

    ``{"all": path}`` where it is a file or has none of them.

    Raises:
        UserError: the input does not exist, two folders mean one split, or annotation files lie
            beside the folders of the splits.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist; correct the path.")
    if not path.is_dir():
        return {"all": path}
    found: dict[str, Path] = {}
    for folder in sorted(path.iterdir()):
        split = _SPLITS.get(folder.name.lower())
        if split is None or not folder.is_dir():
            continue
        if split in found:
            raise UserError(f"{found[split]} and {folder} mean one split; merge or rename one.")
        found[split] = folder
    if not found:
        return {"all": path}
    for file in sorted(path.iterdir()):
        if file.suffix.lower() != ".json" or not file.is_file() or is_manifest(file):
            continue
        if not file.name.startswith("."):
            raise UserError(
                f"{file} lies beside the folders of the splits ({', '.join(sorted(found))}); move "
                "it into one of them or out of the way."
            )
    return {split: found[split] for split in ("train", "val", "test") if split in found}


def sniff(path: Path, matches: Callable[[bytes, bytes], bool]) -> bool:
    """Whether a file, or one of the first JSON files below a folder, has a head that matches.

    Args:
        path: file or folder; False if it cannot be read.
        matches: takes the first 64 KiB and the last 4 KiB, without NUL bytes (UTF-16) and
            without white space.
    """
    looked = 0
    for file in walk(path) if path.is_dir() else [path]:
        if file.suffix.lower() != ".json":
            continue
        ends = _squeezed_ends(file)
        if not any(ends):
            continue
        if matches(*ends):
            return True
        looked += 1
        if looked == _LOOKED_AT:
            return False
    return False


def _squeezed_ends(path: Path) -> tuple[bytes, bytes]:
    """Head and tail of a file without NUL bytes (UTF-16) and white space; empty if unreadable."""
    try:
        if not path.is_file():  # opening a pipe would wait for ever
            return b"", b""
        with open(path, "rb") as stream:
            head = stream.read(_HEAD)
            stream.seek(max(0, path.stat().st_size - _TAIL))
            tail = stream.read(_TAIL)
    except (OSError, ValueError):
        return b"", b""
    return re.sub(rb"[\0\s]", b"", head), re.sub(rb"[\0\s]", b"", tail)


def read_labels(
    path: Path, expected: type | tuple[type, ...], meant: str, options: ReadOptions, notes: Notes
) -> Any:
    """Read an annotation file; None if it is broken and broken ones are skipped, with a note.

    Raises:
        UserError: as :func:`microplastics.data.coco_load.read_json`, unless skipped.
    """
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is not a file; correct the path.")
        return read_json(path, expected, meant)
    except UserError as error:
        skip_or_raise(error, "label_broken", str(path), options, notes)
        return None


def skip_or_raise(
    error: UserError, code: str, where: str, options: ReadOptions, notes: Notes
) -> None:
    """Note what is broken where the options say so, else raise the error.

    An :class:`ImageSizeError` is noted as ``image_size``, whatever the code given.
    """
    if not options.skip_broken:
        raise error
    code = "image_size" if isinstance(error, ImageSizeError) else code
    notes.add(code, where, str(error)[:_DETAIL])


def class_name(value: Any) -> str | None:
    """Return a stranger's class name without white space around it; None if it is none."""
    if type(value) is int and abs(value) < 2**63:
        value = str(value)
    return value.strip() if is_printable(value) else None


def plain_extra(
    fields: dict[str, Any], known: frozenset[str], where: str, notes: Notes
) -> dict[str, Any]:
    """Return the fields beyond the known ones that a COCO annotation can carry.

    That is what is neither empty nor nested more than once; the rest is noted.
    """
    extra = {}
    for key, value in fields.items():
        if key in known or value is None or value == "" or value == {} or value == []:
            continue
        if key in _OWN_FIELDS or not class_name(key) or not is_plain(value):
            notes.add("field_unknown", where, show(key))
        else:
            extra[key] = value
    return extra


def is_plain(value: Any, nested: bool = False) -> bool:
    """Whether a value is a number, a text, or a short list or object of such ones."""
    if type(value) is bool:
        return True
    if type(value) in (int, float):
        return abs(value) < 2**53  # False for NaN
    if type(value) is str:
        return len(value) <= 10_000 and not re.search("[\ud800-\udfff]", value)
    if nested or not isinstance(value, (list, dict)) or len(value) > 100:
        return False
    if isinstance(value, dict):
        return all(is_plain(key) and is_plain(item, True) for key, item in value.items())
    return all(is_plain(item, True) for item in value)


def take_once(name: str, where: str, seen: dict[str, str]) -> None:
    """Remember which annotations an image has.

    Raises:
        UserError: it has some already.
    """
    if name in seen:
        raise UserError(
            f"{seen[name]} and {where} both annotate {name}; merge them or delete one of them."
        )
    seen[name] = where


def note_unannotated(root: Path, seen: dict[str, str], notes: Notes) -> None:
    """Note every image below a folder that no annotation names."""
    for name in list_images(root):
        if name not in seen:
            notes.add("image_unannotated", name)


class ImageFinder:
    """Finds the image that an annotation names, below one folder.

    A path that was true on another machine is looked for by its base name: beside the annotation
    file, in ``images/`` there or beside that folder, then anywhere below the folder if there is
    exactly one of that name.

    Attributes:
        root: folder of the images; what lies outside of it is never read.
    """

    def __init__(self, folder: Path, split: str, options: ReadOptions):
        """
        Args:
            folder: of the annotations of a split.
            split: its name.
            options: ``images``, or the folder of the split in it, is the root if given.

        Raises:
            UserError: the folder of the images does not exist.
        """
        self.root, given = folder, options.images
        self._given = given is not None
        if given is not None:
            named = (Path(given, name) for name, meant in _SPLITS.items() if meant == split)
            self.root = next((path for path in named if path.is_dir()), Path(given))
            if not self.root.is_dir():
                raise UserError(f"The image folder {given} does not exist; correct --images.")
        self._absolute = os.path.abspath(self.root)
        self._by_name: dict[str, list[str]] | None = None

    def find(self, name: Any, folder: Path, variants: tuple[str, ...] = ()) -> str:
        """Return the path of an image relative to the root, with ``/``.

        Args:
            name: as the annotation file writes it.
            folder: that of the annotation file.
            variants: further base names to look for.

        Raises:
            UserError: it is not there, lies outside of the root, or several have its name.
        """
        if not is_printable(name):
            raise UserError(f"The annotations name {show(name)} as image; write a file's name.")
        name = name.strip().replace("\\", "/")
        base = re.split(r"[?#]", name)[0].rsplit("/", 1)[-1] if "://" in name else ""
        base = base or name.rsplit("/", 1)[-1]
        bases = dict.fromkeys((base, unquote(base), *variants))
        bases = [each for each in bases if each not in ("", ".", "..") and "/" not in each]
        outside = None
        if self._given:
            folder = self.root
        candidates = [] if _is_absolute(name) else [name]
        candidates += [f"{place}/{each}" for each in bases for place in _IMAGE_FOLDERS]
        for candidate in candidates:
            path = os.path.abspath(os.path.join(folder, candidate.lstrip("/")))
            inside = path.startswith(os.path.join(self._absolute, ""))
            if os.path.isfile(path):
                if inside:
                    return os.path.relpath(path, self._absolute).replace(os.sep, "/")
                outside = outside or path
        for each in bases:
            found = self._named(each)
            if len(found) > 1:
                raise UserError(
                    f"{show(name)} is not where the annotations say, and {self.root} holds "
                    f"{len(found)} images of that name ({found[0]}, {found[1]}); give each its "
                    "own name or put it beside its annotations."
                )
            if found:
                return found[0]
        if outside is not None:
            raise UserError(
                f"The image {outside} lies outside of {self.root}; give the folder that holds both "
                "annotations and images, or the folder of the images with --images."
            )
        raise UserError(
            f"No image {show(base)} lies in {folder} or below {self.root}; copy it there, or say "
            "with --images where it is."
        )

    def _named(self, base: str) -> list[str]:
        if self._by_name is None:
            self._by_name = {}
            for name in list_images(self.root):
                self._by_name.setdefault(name.rsplit("/", 1)[-1], []).append(name)
        return self._by_name.get(base, [])


def _is_absolute(name: str) -> bool:
    return (
        name.startswith("/") or re.match(r"[A-Za-z]:|[A-Za-z][A-Za-z0-9+.-]*://", name) is not None
    )


def checked_size(
    path: Path, claimed: tuple[Any, Any] | None, options: ReadOptions
) -> tuple[int, int]:
    """Return width and height of an image by its header.

    Args:
        path: the image.
        claimed: width and height by its annotations; what is no positive number is ignored.
        options: bound of the pixels.

    Raises:
        UserError: the image cannot be read.
        ImageSizeError: it is of another size than claimed.
    """
    size, rotated = image_header(path, options.max_pixels)
    if claimed is not None and all(
        type(side) in (int, float) and 0 < side < 2**31 for side in claimed
    ):
        expected = (round(claimed[0]), round(claimed[1]))
        if size != expected:
            raise ImageSizeError(f"{path} {size_mismatch(size, expected, rotated)}.")
    return size


def make_source(
    root: Path,
    classes: list[str],
    read: Callable[[Notes], Iterator[ImageRecord]],
    notes: Notes,
    num_images: int | None = None,
) -> Source:
    """Return a :class:`Source` whose notes are made in its first pass alone."""
    passes = iter([notes])
    return Source(root, classes, lambda: read(next(passes, Notes(NOTES))), num_images)
