"""Names of files from strangers: where the image lies, and never outside its folder."""

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from microplastics.data.coco_findings import show
from microplastics.errors import UserError

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
