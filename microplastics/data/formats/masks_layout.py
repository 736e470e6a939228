"""Where mask files lie: which folders, which image each belongs to, and what its name says."""

import csv
import io
import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from microplastics.data.coco_findings import show
from microplastics.data.formats import files
from microplastics.data.formats.coco_layout import SPLITS
from microplastics.data.formats.file_names import list_images
from microplastics.errors import UserError

MASK_SUFFIXES = frozenset((".png", ".tif", ".tiff", ".bmp", ".gif", ".pgm"))
CLASSES_CSV, CLASSES_TXT = "classes.csv", "classes.txt"
_IMAGE_FOLDERS = ("images", "image", "imgs", "img", "jpegimages")
_MASK_FOLDERS = ("masks", "mask", "segmentationobject", "labels", "label", "annotations")
_OTHER_FORMATS = frozenset((".json", ".txt", ".xml"))
_MARK = re.compile(r"[_\-. ](?:cp_)?(?:masks?|labels?)$", re.IGNORECASE)
_NUMBERED = re.compile(r"(?:(?P<name>.*?[^\d_\-. ])?[_\-. ]*)?(?<!\d)\d+$", re.DOTALL)
_SEPARATORS = "_-. "
_LOOKED_AT = 200
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


def find_folders(path: Path) -> dict[str, Folders]:
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
    if not path.is_dir() or any(not files.is_manifest(file) for file in path.glob("*.json")):
        return False
    for folders in find_folders(path).values():
        suffixes, marked = set(), False
        for count, file in enumerate(files.walk(folders.masks)):
            if count == _LOOKED_AT:
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
        category = files.class_name(first)
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
        return MaskFile(path, name, "instance", files.class_name(found["name"]))
    if re.search(r"\d", text):
        return MaskFile(path, name, "instance")
    return MaskFile(path, name, "class", files.class_name(text))


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
        category = files.class_name(row.get("class"))
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
    names = [files.class_name(line) for line in _read_text(path).split("\n")]
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
    images = [names[name] for name in _IMAGE_FOLDERS if name in names]
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
