"""Where the files of a COCO export lie: which JSON is which split, and where its images are."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from microplastics.data.formats.file_names import find_file
from microplastics.errors import UserError

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
_HEAD = 1 << 16
_KEYS = re.compile(rb'"(images|annotations|categories)"\s*:\s*\[')
_SAMPLED = 20
_LOOKED_AT = 50


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
    return [file for file in (named or files)[:_LOOKED_AT] if is_coco_json(file)]
