"""Where mask files lie: which folders, which image each belongs to, and what its name says."""

import contextlib
import csv
import filecmp
import io
import os
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

import yaml

from microplastics.data.coco import show
from microplastics.data.formats.base import NOTES, ImageRecord, Notes, ReadOptions, Source
from microplastics.data.images import image_header, size_mismatch
from microplastics.data.segmentation import read_json
from microplastics.utils.errors import UserError
from microplastics.utils.io import atomic_write, write_error

IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .tif .tiff .btf .bmp .gif .ppm .pgm .pnm .webp .jp2".split()
)
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
_DRIVE = re.compile(r"[A-Za-z]:")
_MAX_NAME = 4096
_MAX_PARTS = 16


def is_printable(text: object) -> bool:
    """Whether a value is text that is not blank and holds no control character."""
    return isinstance(text, str) and bool(text.strip()) and not _UNPRINTABLE.search(text)


def safe_name(name: object, where: str) -> str:
    """Check that a file name stays in its folder.

    Args:
        name: relative to the image folder, with ``/``.
        where: its place, for the message.

    Returns:
        the name without ``.`` and doubled slashes.

    Raises:
        UserError: it is no text, is absolute, names a drive or holds ``..``.
    """
    if not is_printable(name) or len(name) > _MAX_NAME:
        raise UserError(f"{where}: {show(name)} is not a file's name; correct it.")
    parts = re.split(r"[/\\]", name)
    if not parts[0] or _DRIVE.match(name) or ".." in parts:
        raise UserError(
            f"{where}: {show(name)} leaves the image folder; write it relative to that folder, "
            "without .. in it."
        )
    return str(PurePosixPath(name))


def find_file(name: object, root: Path) -> tuple[str, bool] | None:
    """Find the image that a name means, by the whole name and then by ever fewer last parts.

    Labelling tools write their server's paths, URLs (``/data/local-files/?d=a/b.jpg``) and
    backslashes; the image lies in the export under the last part or parts of these.

    Args:
        name: the stranger's ``file_name``.
        root: the image folder.

    Returns:
        the name relative to ``root``, with ``/``, and whether it is the name as it was given;
        None where there is no such file.
    """
    if not is_printable(name) or len(name) > _MAX_NAME:
        return None
    for candidate in _candidates(name):
        if os.path.isfile(os.path.join(root, candidate)):
            return candidate, candidate == name
    return None


def _candidates(name: str) -> Iterator[str]:
    parts = name.split("/")
    if parts[0] and ".." not in parts and not _DRIVE.match(name):
        yield str(PurePosixPath(name))
    texts = [name]
    if "?" in name:
        head, query = name.split("?", 1)
        texts += [head, query.split("&")[0].partition("=")[2]]
    if "%" in name:
        texts += [unquote(text) for text in texts]
    for text in texts:
        parts = [part for part in re.split(r"[/\\]", text) if part not in ("", ".")]
        parts = parts[-_MAX_PARTS:]
        while parts:
            candidate = "/".join(parts)
            if ".." not in parts and not _DRIVE.match(candidate) and is_printable(candidate):
                yield candidate
            parts.pop(0)


def list_images(folder: Path) -> Iterator[str]:
    """List the images in a folder and those below it, sorted, relative to it, with ``/``.

    Hidden files are left out. Links to folders are not followed.
    """
    for here, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        relative = os.path.relpath(here, folder).replace(os.sep, "/")
        for name in sorted(files):
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
                yield name if relative == "." else f"{relative}/{name}"


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
_FILES_READ = 20
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
        if looked == _FILES_READ:
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
        UserError: as :func:`microplastics.data.segmentation.read_json`, unless skipped.
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


class FileReader(ABC):
    """One split: its annotation files and where their images are.

    Attributes:
        root: folder of the annotation files.
        finder: finds the images that they name.
        paths: the annotation files.
        options: how to read.
    """

    def __init__(self, path: Path, split: str, options: ReadOptions):
        """
        Args:
            path: a file, or a folder of them.
            split: name of the split.
            options: how to read.
        """
        self.root = path if path.is_dir() else path.parent
        self.finder = ImageFinder(self.root, split, options)
        self.paths = json_files(path)
        self.options = options
        self._whole = path.is_dir()

    @abstractmethod
    def survey(self) -> tuple[list[str], int | None]:
        """Return the classes that occur, and how many images."""

    @abstractmethod
    def records(self, seen: dict[str, str], notes: Notes) -> Iterator[ImageRecord]:
        """Read one file after the other.

        Args:
            seen: takes the names of the images that have annotations.
            notes: takes what is changed or left out.
        """

    def read(self, notes: Notes) -> Iterator[ImageRecord]:
        """Read all files, then note the images that none of them names."""
        seen: dict[str, str] = {}
        yield from self.records(seen, notes)
        if self._whole:
            note_unannotated(self.finder.root, seen, notes)

    def source(self, notes: Notes) -> Source:
        """Return the split as a stream whose notes are made in its first pass alone."""
        classes, count = self.survey()
        return make_source(self.finder.root, classes, self.read, notes, count)


def open_splits(
    reader: type[FileReader], path: Path, options: ReadOptions, notes: Notes
) -> dict[str, Source]:
    """Open a file, or a folder with or without sub-folders train, val and test.

    Args:
        reader: of the format.
        path: file or folder.
        options: how to read.
        notes: takes what is changed or left out while the records are read.

    Returns:
        split -> source; ``"all"`` where there are no splits.

    Raises:
        UserError: nothing there, or a file that cannot be used.
    """
    splits = split_folders(Path(path))
    return {split: reader(folder, split, options).source(notes) for split, folder in splits.items()}


PLACES = ("keep", "copy", "link")


def place_image(source: Path, target: Path, place: str) -> None:
    """Copy or link one image. A file with the same content is left as it is.

    Args:
        source: the image.
        target: where it goes; missing folders are made.
        place: ``"copy"``, or ``"link"``: a hard link, or a symbolic one where that cannot be.

    Raises:
        UserError: another file is there, or it cannot be written.
    """
    try:
        if _is_there(source, target):
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


def _is_there(source: Path, target: Path) -> bool:
    if not os.path.lexists(target):
        return False
    same = False
    with contextlib.suppress(OSError):
        same = os.path.samefile(source, target) or filecmp.cmp(source, target, shallow=False)
    if not same:
        raise UserError(
            f"{source} would be written over {target}, which is another file; choose another "
            "--output, or give the images different names."
        )
    return True


ROBOFLOW = "_annotations.coco.json"
SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
_KEYS = re.compile(rb'"(images|annotations|categories)"\s*:\s*\[')
_SAMPLED = 20
_COCO_FILES_READ = 50


def is_coco_json(path: Path) -> bool:
    """Whether the head and the tail of a file look like COCO; never raises."""
    text = head_and_tail(path)
    if not text.lstrip().startswith(b"{"):
        return False
    keys = set(_KEYS.findall(text))
    return (
        len(keys) > 1
        or (b"images" in keys and b'"file_name"' in text)
        or (b"annotations" in keys and b'"image_id"' in text)
    )


def head_and_tail(path: Path) -> bytes:
    """The first and the last 64 kB of a file, as UTF-8; empty where it cannot be read."""
    try:
        if not path.is_file():
            return b""
        with open(path, "rb") as file:
            head = file.read(_HEAD)
            size = os.fstat(file.fileno()).st_size
            if size > _HEAD:
                file.seek(max(_HEAD, size - _HEAD))
                head += b"\n" + file.read(_HEAD)
    except (OSError, ValueError):
        return b""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return head.decode("utf-16", errors="ignore").encode("utf-8", errors="ignore")
    return head.removeprefix(b"\xef\xbb\xbf")


def find_jsons(path: Path) -> dict[str, Path]:
    """Find the COCO files of an export.

    Args:
        path: one JSON, or a folder: with Roboflow's ``_annotations.coco.json`` in it or in its
            ``train``, ``valid`` and ``test``, or with JSON files in it or in ``annotations``.

    Returns:
        split -> file, ``"all"`` where the name of the only file says no split; empty where there
        is none.

    Raises:
        UserError: several files could be the same split.
    """
    if path.is_file():
        return {"all": path}
    found = [
        (split, path / name / ROBOFLOW)
        for name, split in SPLITS.items()
        if (path / name / ROBOFLOW).is_file()
    ]
    if not found and (path / ROBOFLOW).is_file():
        return {"all": path / ROBOFLOW}
    if not found:
        files = [*_jsons(path / "annotations"), *_jsons(path)]
        # COCO itself puts captions and keypoints of the same images beside them.
        files = [file for file in files if file.name.startswith("instances_")] or files
        found = [(split_of(file.stem), file) for file in files]
    jsons: dict[str, Path] = {}
    for split, file in found:
        if split in jsons:
            raise UserError(
                f"{path} has several COCO files for the same images or split: "
                f"{jsons[split].relative_to(path)} and {file.relative_to(path)}; give the one "
                "that is meant as --input."
            )
        jsons[split] = file
    if "all" in jsons and len(jsons) > 1:
        raise UserError(
            f"{path} has {jsons['all'].relative_to(path)} beside the splits "
            f"{', '.join(sorted(set(jsons) - {'all'}))}; give the one that is meant as --input."
        )
    return {split: jsons[split] for split in ("train", "val", "test", "all") if split in jsons}


def split_of(stem: str) -> str:
    """The split that a file's or folder's name says: ``instances_val2017`` is val."""
    words = re.split(r"[^a-z]+", stem.lower())
    named = {SPLITS[word] for word in words if word in SPLITS}
    return named.pop() if len(named) == 1 else "all"


def find_image_root(
    json_file: Path, folder: Path, split: str, names: Iterable[object], given: Path | None
) -> Path:
    """Find the folder of the images: the one in which most of a sample of the names is found.

    Args:
        json_file: the COCO file.
        folder: the export's folder.
        split: of the file.
        names: ``file_name`` of every image.
        given: ``--images``, which is taken as it is.

    Raises:
        UserError: none of the images is in any of the folders looked in.
    """
    if given is not None:
        if not given.is_dir():
            raise UserError(f"The image folder {given} does not exist; correct --images.")
        return given
    names = list(names)
    sample = names[:: max(1, len(names) // _SAMPLED)][:_SAMPLED]
    best, most = None, 0
    folders = _image_folders(json_file, folder, split)
    for root in folders:
        found = [find_file(name, root) for name in sample]
        # A name found as it is written counts for more than one found by its last part.
        score = sum(2 * (hit is not None) + (hit is not None and hit[1]) for hit in found)
        if score > most:
            best, most = root, score
    if best is None:
        looked = ", ".join(map(str, folders))
        raise UserError(
            f"None of the images of {json_file} is in {looked}; say where they are with --images."
        )
    return best


def _image_folders(json_file: Path, folder: Path, split: str) -> list[Path]:
    names = [name for name, meant in SPLITS.items() if meant == split]
    folders = [json_file.parent]
    for base in dict.fromkeys((folder, json_file.parent, json_file.parent.parent)):
        folders += [base, base / "images", base / "images" / "default"]
        for name in (*names, json_file.stem.removeprefix("instances_")):
            folders += [base / "images" / name, base / name, base / name / "images"]
    return [root for root in dict.fromkeys(folders) if root.is_dir()]


def _jsons(folder: Path) -> list[Path]:
    """The COCO files of a folder; of the first ones alone, as LabelMe has one JSON an image."""
    try:
        files = sorted(folder.glob("*.json"))
    except OSError:
        return []
    named = [file for file in files if file.name.startswith("instances_")]
    return [file for file in (named or files)[:_COCO_FILES_READ] if is_coco_json(file)]


YAMLS = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
NAME_FILES = ("classes.txt", "obj.names", "_darknet.labels", "predefined_classes.txt")
_DARKNET = {"obj_train_data": "train", "obj_valid_data": "val", "obj_test_data": "test"}
_YAML_BYTES = 1 << 18
_YAML_DEPTH = 20
_LIST_BYTES = 1 << 26
MAX_CLASSES = 10_000


@dataclass
class ImageFolder:
    """The images of one split.

    Attributes:
        root: folder that the names are relative to.
        names: of the images, with ``/``; None for all images in the folder.
        labels: folder of the labels where it is neither beside ``images`` nor the same folder.
    """

    root: Path
    names: list[str] | None = None
    labels: Path | None = None

    def images(self) -> Iterable[str]:
        """Names of the images in a fixed order."""
        return list_images(self.root) if self.names is None else self.names

    def label(self, name: str) -> Path:
        """Where the label of an image is, or would be."""
        stem = os.path.splitext(name)[0] + ".txt"
        if self.labels is not None:
            places = [self.labels / stem, self.labels / "labels" / stem]
            places.append(self.labels / os.path.basename(stem))
        else:
            beside = self.root / stem
            places = [_swapped(beside), beside]
        return next((place for place in places if os.path.isfile(place)), places[0])


def find_yaml(path: Path) -> Path | None:
    """The data.yaml of a folder, the file itself if it is one, or None."""
    if path.is_file():
        return path if path.suffix.lower() in (".yaml", ".yml") else None
    for name in YAMLS:
        if (path / name).is_file():
            return path / name
    others = [file for file in sorted(path.glob("*.y*ml")) if file.suffix in (".yaml", ".yml")]
    others = [file for file in others if re.search(rb"^names\s*:", _head(file), re.MULTILINE)]
    return others[0] if len(others) == 1 else None


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a small YAML mapping in which every scalar stays the text that it is.

    Aliases are refused: a few of them can stand for gigabytes.

    Raises:
        UserError: it is not readable, too large, nested too deep, or no such YAML.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(_YAML_BYTES + 1)
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}; correct the path.") from error
    if len(content) > _YAML_BYTES:
        raise UserError(f"{path} is larger than a data.yaml ({_YAML_BYTES} bytes); correct it.")
    try:
        depth = 0
        for event in yaml.parse(content, Loader=yaml.BaseLoader):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or depth > _YAML_DEPTH:
                raise UserError(f"{path} has aliases or is nested deep; write it plainly.")
        # BaseLoader makes text, lists and mappings alone.
        data = yaml.load(content, Loader=yaml.BaseLoader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        words = " ".join(str(error).split())[:200]
        raise UserError(f"{path} is not YAML ({words}); correct it.") from error
    if not isinstance(data, dict):
        raise UserError(f"{path} is no data.yaml with names, train and val; correct it.")
    return data


def class_names(path: Path, data: dict[str, Any] | None) -> dict[int, str] | None:
    """Return class index -> name from data.yaml, or from classes.txt or obj.names in a folder.

    Raises:
        UserError: the names cannot be used.
    """
    if data is not None and "names" in data:
        return _yaml_names(path, data["names"])
    folder = path if path.is_dir() else path.parent
    for place in (folder, folder / "labels", folder / "train"):
        for name in NAME_FILES:
            if (place / name).is_file():
                lines = read_lines(place / name)
                while lines and not lines[-1].strip():
                    lines.pop()
                return _checked_names(place / name, dict(enumerate(lines)))
    return None


def find_yolo_folders(
    path: Path,
    yaml_file: Path | None,
    data: dict[str, Any] | None,
    given: Path | None,
    notes: Notes,
) -> dict[str, ImageFolder]:
    """Find the images of every split.

    Args:
        path: the input.
        yaml_file: its data.yaml, or None.
        data: its content.
        given: ``--images``: one folder of all images, with the labels in the input.
        notes: takes ``folder_mended`` and ``split_missing``.

    Raises:
        UserError: no images are found.
    """
    base = path if path.is_dir() else path.parent
    if given is not None:
        if not given.is_dir():
            raise UserError(f"The image folder {given} does not exist; correct --images.")
        return {"all": ImageFolder(given, labels=base)}
    if data is not None and any(data.get(key) for key in SPLITS):
        return _yaml_folders(yaml_file, data, notes)
    folders = _plain_folders(base)
    if not any(next(iter(folder.images()), None) for folder in folders.values()):
        raise UserError(
            f"{path} has no images; give the folder that holds images and labels, or say where "
            "the images are with --images."
        )
    return folders


def read_lines(path: Path) -> list[str]:
    """Read the lines of a text file (UTF-8, or UTF-16 with its mark).

    Raises:
        UserError: it cannot be read, is too large or is no such text.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(_LIST_BYTES + 1)
        if len(content) > _LIST_BYTES:
            raise UserError(f"{path} is larger than {_LIST_BYTES >> 20} MB; check what it is.")
        wide = content.startswith((b"\xff\xfe", b"\xfe\xff"))
        return content.decode("utf-16" if wide else "utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not {error.encoding} text: byte {error.start} does not decode; export it "
            "again."
        ) from error
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}; correct the path.") from error


def _swapped(path: Path) -> Path:
    """Turn the last folder named images into labels, as Ultralytics does."""
    parts = list(path.parts)
    for index in range(len(parts) - 2, -1, -1):
        if parts[index] == "images":
            parts[index] = "labels"
            break
    return Path(*parts)


def _head(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(_YAML_BYTES)
    except OSError:
        return b""


def _yaml_names(path: Path, names: Any) -> dict[int, str]:
    if isinstance(names, list):
        return _checked_names(path, dict(enumerate(names)))
    if not isinstance(names, dict):
        raise UserError(f"{path} has names {show(names)}; write names: [Fiber, Fragment, …].")
    indexed = {}
    for key, name in names.items():
        if not (isinstance(key, str) and key.isascii() and key.isdecimal() and len(key) < 10):
            raise UserError(f"{path} has a class {show(key)}: {show(name)}; number them from 0.")
        indexed[int(key)] = name
    return _checked_names(path, dict(sorted(indexed.items())))


def _checked_names(path: Path, names: dict[int, Any]) -> dict[int, str]:
    if not names or len(names) > MAX_CLASSES:
        raise UserError(f"{path} has {len(names)} class names; write one for each class.")
    for index, name in names.items():
        if not is_printable(name if not isinstance(name, str) else name.strip()):
            raise UserError(f"Class {index} of {path} has the name {show(name)}; correct it.")
    return {index: name.strip() for index, name in names.items()}


def _yaml_folders(yaml_file: Path, data: dict[str, Any], notes: Notes) -> dict[str, ImageFolder]:
    base = yaml_file.absolute().parent
    root = data.get("path") if isinstance(data.get("path"), str) else ""
    found: dict[str, ImageFolder] = {}
    for key, split in SPLITS.items():
        value = data.get(key)
        if value in (None, "", [], "null", "~") or split in found:
            continue
        entries = value if isinstance(value, list) else [value]
        if not all(is_printable(entry) for entry in entries):
            raise UserError(
                f"{yaml_file} has {key}: {show(value)}; write the folder of its images."
            )
        places = []
        for entry in entries:
            place = _near(base, root, entry)
            if place is None:
                notes.add("split_missing", f"{yaml_file.name}, {key}", show(entry))
                continue
            if not place[1]:
                relative = place[0].relative_to(base).as_posix()
                notes.add("folder_mended", f"{yaml_file.name}, {key}", f"{show(entry)}: {relative}")
            places.append(place[0])
        if len(places) == 1 and places[0].is_dir():
            found[split] = ImageFolder(places[0])
        elif places:
            found[split] = ImageFolder(base, list(_named_images(base, places)))
    if not found:
        raise UserError(
            f"None of the image folders that {yaml_file} names is beside it; put it into the "
            "folder of the data set, or say where the images are with --images."
        )
    return {split: found[split] for split in ("train", "val", "test") if split in found}


def _near(base: Path, root: str, text: str) -> tuple[Path, bool] | None:
    """Find a folder or list of images in ``base``, by its path and then by its last parts.

    Returns:
        where it is, and whether data.yaml says so; None where it is not there.
    """
    for written in dict.fromkeys((os.path.join(base, root, text), os.path.join(base, text))):
        place = Path(os.path.normpath(written))
        if place.is_relative_to(base) and _is_file_or_folder(place):
            return place, True
    parts = [part for part in re.split(r"[/\\]", text) if part not in ("", ".", "..")][-16:]
    for start in range(len(parts)):
        if start and parts[start:] == ["images"]:  # would be the same for every split
            break
        place = base.joinpath(*parts[start:])
        if place.is_relative_to(base) and _is_file_or_folder(place):
            return place, False
    return None


def _is_file_or_folder(place: Path) -> bool:
    # Neither a pipe, which would be waited for, nor a name too long to be asked for.
    return os.path.isdir(place) or os.path.isfile(place)


def _named_images(base: Path, places: list[Path]) -> Iterator[str]:
    """The images in several folders, and in lists of images, relative to ``base``."""
    seen = set()
    for place in places:
        if place.is_dir():
            prefix = place.relative_to(base).as_posix()
            names = (f"{prefix}/{name}" if prefix != "." else name for name in list_images(place))
        else:
            lines = (line.strip() for line in read_lines(place))
            # A line that finds no file stays, so that the missing image is named.
            names = ((find_file(line, base) or (line, True))[0] for line in lines if line)
        for name in names:
            if name not in seen:
                seen.add(name)
                yield name


def _plain_folders(base: Path) -> dict[str, ImageFolder]:
    """The splits of a folder without data.yaml, by the names of its folders."""
    darknet = {split: base / name for name, split in _DARKNET.items() if (base / name).is_dir()}
    if darknet:
        splits = darknet if len(darknet) > 1 else {"all": next(iter(darknet.values()))}
        return {split: ImageFolder(folder) for split, folder in splits.items()}
    images = base / "images" if (base / "images").is_dir() else base
    found: dict[str, ImageFolder] = {}
    for name, split in SPLITS.items():
        folder = images / name
        if split not in found and folder.is_dir():
            inner = folder / "images"
            found[split] = ImageFolder(inner if inner.is_dir() else folder)
    return found or {"all": ImageFolder(images)}


MASK_SUFFIXES = frozenset((".png", ".tif", ".tiff", ".bmp", ".gif", ".pgm"))
CLASSES_CSV, CLASSES_TXT = "classes.csv", "classes.txt"
_MASK_IMAGE_FOLDERS = ("images", "image", "imgs", "img", "jpegimages")
_MASK_FOLDERS = ("masks", "mask", "segmentationobject", "labels", "label", "annotations")
_OTHER_FORMATS = frozenset((".json", ".txt", ".xml"))
_MARK = re.compile(r"[_\-. ](?:cp_)?(?:masks?|labels?)$", re.IGNORECASE)
_NUMBERED = re.compile(r"(?:(?P<name>.*?[^\d_\-. ])?[_\-. ]*)?(?<!\d)\d+$", re.DOTALL)
_SEPARATORS = "_-. "
_MASKS_READ = 200
_MAX_CSV = 256 * 2**20


@dataclass(frozen=True)
class Folders:
    """Where one split has its images and its masks; the same folder where they lie together."""

    images: Path
    masks: Path


@dataclass(frozen=True)
class MaskFile:
    """One file of masks of one image.

    Attributes:
        path: the file.
        name: relative to the folder of the masks, with ``/``.
        kind: ``"image"`` (its name is the image's), ``"instance"`` or ``"class"``.
        category: class that the name gives, or None.
    """

    path: Path
    name: str
    kind: str
    category: str | None = None


@dataclass
class ClassTable:
    """What ``classes.csv`` says.

    Attributes:
        by_id: file name of an image -> number in its label image -> (class, iscrowd).
        by_value: number in any label image -> class, where numbers mean classes.
        classes: names in the order in which they occur.
    """

    by_id: dict[str, dict[int, tuple[str, int]]] = field(default_factory=dict)
    by_value: dict[int, str] = field(default_factory=dict)
    classes: list[str] = field(default_factory=list)


def find_mask_folders(path: Path) -> dict[str, Folders]:
    """Find the folders of images and masks of every split.

    ``images/`` and ``masks/`` (or ``labels/``, ``annotations/``) in the folder or in its
    ``train``, ``val`` and ``test``; those three inside of ``images/`` and ``masks/``; or one
    folder with ``IMAGE.png`` and ``IMAGE_mask.png``.

    Raises:
        UserError: a split has images without a folder of masks.
    """
    splits = _splits(path)
    if splits:
        return {split: _pair(folder) for split, folder in splits.items()}
    pair = _pair(path)
    if pair.images == pair.masks:
        whole = path / "all"  # where the export of a set without splits puts it
        return {"all": _pair(whole) if whole.is_dir() else pair}
    images, masks = _splits(pair.images), _splits(pair.masks)
    if not images:
        return {"all": pair}
    missing = sorted(set(images) - set(masks))
    if missing:
        raise UserError(
            f"{pair.masks} has no folder {missing[0]} beside that of {pair.images}; add it."
        )
    return {split: Folders(images[split], masks[split]) for split in images}


def looks_like_masks(path: Path) -> bool:
    """Whether a folder has images with mask files, and no annotations of another format."""
    if not path.is_dir() or any(not is_manifest(file) for file in path.glob("*.json")):
        return False
    for folders in find_mask_folders(path).values():
        suffixes, marked = set(), False
        for count, file in enumerate(walk(folders.masks)):
            if count == _MASKS_READ:
                break
            if file.name not in (CLASSES_CSV, CLASSES_TXT):
                suffixes.add(file.suffix.lower())
            marked |= is_marked(file)
        if suffixes & _OTHER_FORMATS or not suffixes & MASK_SUFFIXES:
            return False
        if folders.images == folders.masks and not marked:
            return False
    return True


def is_marked(file: Path) -> bool:
    """Whether a file is called ``…_mask.png`` or so."""
    return file.suffix.lower() in MASK_SUFFIXES and _MARK.search(file.stem) is not None


class ImageNames:
    """The images of a split, found by what a mask is called."""

    def __init__(self, folders: Folders):
        self.file_names = [
            name
            for name in list_images(folders.images)
            if folders.images != folders.masks or not is_marked(Path(name))
        ]
        self._by_key: dict[str, list[str]] = {}
        for name in self.file_names:
            for key in {name, str(PurePosixPath(name).with_suffix(""))}:
                self._by_key.setdefault(key, []).append(name)

    def get(self, key: str) -> str | None:
        """Return the file name of the image that is called ``key``, with or without ending.

        Raises:
            UserError: there are several.
        """
        found = self._by_key.get(key, [])
        if len(found) > 1:
            raise UserError(
                f"{found[0]} and {found[1]} differ in their endings alone; call the mask "
                f"{found[0]}.png and so on, or rename one of the images."
            )
        return found[0] if found else None

    def match(self, path: Path, name: str) -> tuple[str, MaskFile] | None:
        """Find the image of a mask file.

        ``IMAGE``, ``IMAGE_mask``, ``IMAGE/3``, ``IMAGE/Fiber_3``, ``IMAGE/Fiber``, ``Fiber/IMAGE``,
        ``Fiber/IMAGE_3``, ``IMAGE_3``, ``IMAGE_Fiber_3`` and ``IMAGE_Fiber`` are known.

        Returns:
            file name of the image and the mask file, or None.
        """
        key = str(PurePosixPath(name).with_suffix(""))
        for stem in dict.fromkeys((name, key, _MARK.sub("", key))):
            image = self.get(stem)
            if image is not None:
                return image, MaskFile(path, name, "image")
        key = _MARK.sub("", key)
        folder, _, last = key.rpartition("/")
        image = self.get(folder) if folder else None
        if image is not None:
            return image, _described(path, name, last)
        image, rest = self._prefix(key)
        if image is not None:
            return image, _described(path, name, rest)
        first, _, key = key.partition("/")
        category = class_name(first)
        if not key or category is None:
            return None
        image = self.get(key)
        if image is not None:
            return image, MaskFile(path, name, "class", category)
        image, rest = self._prefix(key)
        if image is not None and rest.isdigit():
            return image, MaskFile(path, name, "instance", category)
        return None

    def _prefix(self, key: str) -> tuple[str | None, str]:
        """The longest image name that a separator ends, and what follows it."""
        for end in range(len(key) - 1, 0, -1):
            if key[end] in _SEPARATORS and "/" not in key[end:]:
                image = self.get(key[:end])
                if image is not None:
                    return image, key[end + 1 :]
        return None, key


def _described(path: Path, name: str, text: str) -> MaskFile:
    """Read ``3``, ``Fiber_3`` or ``Fiber``; any other name with digits is one instance."""
    found = _NUMBERED.fullmatch(text)
    if found:
        return MaskFile(path, name, "instance", class_name(found["name"]))
    if re.search(r"\d", text):
        return MaskFile(path, name, "instance")
    return MaskFile(path, name, "class", class_name(text))


def read_class_table(folders: Folders, images: ImageNames) -> tuple[ClassTable | None, list[str]]:
    """Read ``classes.csv`` from the folder of the masks or the one above.

    Its columns are ``image``, ``id``, ``class`` and, if wanted, ``iscrowd``; or ``value`` and
    ``class`` where the numbers of the label images mean classes. A colour is written ``#rrggbb``.

    Returns:
        the table or None, and ``image, id`` of the rows whose image is not there.

    Raises:
        UserError: the file cannot be read or a row makes no sense.
    """
    path = find_beside(folders, CLASSES_CSV)
    if path is None:
        return None, []
    rows = _read_csv(path)
    table, lost = ClassTable(), []
    for line, row in rows:
        where = f"{path}, line {line}"
        category = class_name(row.get("class"))
        if category is None:
            raise UserError(f"{where}: {show(row.get('class'))} is no class name; correct it.")
        if "value" in row:
            value = _number(row["value"], where)
            if table.by_value.setdefault(value, category) != category:
                raise UserError(f"{where}: the value {value} has two classes; delete one.")
        else:
            number = _number(row["id"], where)
            name = row["image"] or ""
            image = images.get(name) or images.get(name.replace("\\", "/").strip())
            if image is None:
                lost.append(f"{path.name}, line {line} ({show(row['image'])})")
                continue
            ids = table.by_id.setdefault(image, {})
            if number in ids:
                raise UserError(f"{where}: id {number} of {image} stands there twice; delete one.")
            ids[number] = (category, _crowd(row.get("iscrowd"), where))
        if category not in table.classes:
            table.classes.append(category)
    return table, lost


def read_class_list(folders: Folders) -> list[str]:
    """Read ``classes.txt``, one class a line in their order; empty where there is none.

    Raises:
        UserError: it is no text.
    """
    path = find_beside(folders, CLASSES_TXT)
    if path is None:
        return []
    names = [class_name(line) for line in _read_text(path).split("\n")]
    return list(dict.fromkeys(name for name in names if name is not None))


def find_beside(folders: Folders, name: str) -> Path | None:
    """Return a file of the folder of the masks, or of the one that holds it."""
    for path in (folders.masks / name, folders.masks.parent / name):
        if path.is_file():
            return path
    return None


def _splits(path: Path) -> dict[str, Path]:
    """The folders in a folder that are called as splits are: train, val and test, as far as so."""
    found: dict[str, Path] = {}
    for folder in sorted(path.iterdir()):
        split = SPLITS.get(folder.name.lower())
        if split is None or not folder.is_dir():
            continue
        if split in found:
            raise UserError(f"{found[split]} and {folder} mean one split; merge or rename one.")
        found[split] = folder
    return {split: found[split] for split in ("train", "val", "test") if split in found}


def _pair(folder: Path) -> Folders:
    names = {}
    for child in sorted(folder.iterdir()):
        if child.is_dir():
            names.setdefault(child.name.lower(), child)
    images = [names[name] for name in _MASK_IMAGE_FOLDERS if name in names]
    masks = [names[name] for name in _MASK_FOLDERS if name in names]
    if images and not masks:
        raise UserError(
            f"{folder} has {images[0].name} but no folder masks, labels or annotations beside it; "
            "add the masks."
        )
    return Folders(images[0] if images else folder, masks[0] if images else folder)


def _read_csv(path: Path) -> list[tuple[int, dict[str, str | None]]]:
    text = _read_text(path)
    first = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=first.count)
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
        names = [(name or "").strip().lower() for name in reader.fieldnames or []]
        if "class" not in names or not ("value" in names or {"image", "id"} <= set(names)):
            raise UserError(
                f"{path} has the columns {show(first.strip())}; it needs image, id and class, or "
                "value and class."
            )
        reader.fieldnames = names
        return [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise UserError(f"{path} is no CSV ({error}); save it as CSV in UTF-8.") from error


def _read_text(path: Path) -> str:
    try:
        if path.stat().st_size > _MAX_CSV:
            raise UserError(f"{path} is larger than 256 MiB; it is no list of classes.")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text; save it as UTF-8.") from error
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}; correct it.") from error


def _number(text: str | None, where: str) -> int:
    text = (text or "").strip()
    if re.fullmatch(r"#[0-9a-fA-F]{6}", text):
        return int(text[1:], 16)
    if re.fullmatch(r"[0-9]{1,16}(\.0*)?", text) and int(text.split(".")[0]) > 0:
        return int(text.split(".")[0])
    raise UserError(f"{where}: {show(text)} is no number from 1 and no colour #rrggbb; correct it.")


def _crowd(text: str | None, where: str) -> int:
    text = (text or "0").strip()
    if text not in ("0", "1", ""):
        raise UserError(f"{where}: iscrowd is {show(text)}; write 0 or 1.")
    return int(text or 0)
