"""Where the files of a YOLO data set lie: data.yaml, class names, images and their labels."""

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from microplastics.data.coco_findings import show
from microplastics.data.formats.coco_layout import SPLITS
from microplastics.data.formats.file_names import find_file, is_printable, list_images
from microplastics.data.formats.notes import Notes
from microplastics.errors import UserError

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


def find_folders(
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
