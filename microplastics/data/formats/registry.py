"""Readers of annotation formats by name, and which of them a path is for."""

import importlib
from pathlib import Path
from types import ModuleType

from microplastics.data.formats.base import Notes, ReadOptions, Source
from microplastics.utils.errors import UserError

_FOUND_OUT = ("coco", "labelme", "via", "yolo", "labelstudio", "masks")
# Any folder of photographs could be one of blanks: that has to be said.
READERS = (*_FOUND_OUT, "blanks")


def reader(name: str) -> ModuleType:
    """Import a reader.

    Args:
        name: one of ``READERS``.

    Returns:
        module with ``NAME``, ``looks_like(path)`` and ``open_dataset(path, options, notes)``.

    Raises:
        UserError: there is no reader of that name.
    """
    if name not in READERS:
        raise UserError(f"No format {name!r} can be read; choose one of {', '.join(READERS)}.")
    return importlib.import_module(f"microplastics.data.formats.{name}")


def detect(path: Path) -> str:
    """Find out which format a file or folder is in.

    Returns:
        the name of the only reader that knows it.

    Raises:
        UserError: the path does not exist, or none or several of the readers know it.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path} does not exist; correct --input.")
    names = [name for name in _FOUND_OUT if reader(name).looks_like(path)]
    if len(names) == 1:
        return names[0]
    if path.suffix.lower() in (".zip", ".gz", ".tar", ".rar", ".7z"):
        raise UserError(f"{path} is an archive; unpack it and give its folder as --input.")
    if names:
        raise UserError(f"{path} could be {' or '.join(names)}; say which with --from.")
    raise UserError(
        f"{path} is in none of the known formats ({', '.join(_FOUND_OUT)}); give the folder of "
        "the whole export, or the format with --from (blanks for images without a particle)."
    )


def open_dataset(
    path: Path, options: ReadOptions, notes: Notes, name: str | None = None
) -> tuple[str, dict[str, Source]]:
    """Open a data set in a foreign format.

    Args:
        path: file or folder.
        options: how to read it.
        notes: takes what is changed and left out.
        name: its format; found out if None.

    Returns:
        the name of the format, and split -> source: ``"all"``, or train, val and test.

    Raises:
        UserError: the format is not known, or the data set cannot be used.
    """
    path = Path(path)
    name = name or detect(path)
    if not path.exists():
        raise UserError(f"{path} does not exist; correct --input.")
    return name, reader(name).open_dataset(path, options, notes)
