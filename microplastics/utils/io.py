"""Atomic writing of files, tolerant reading of text and tables."""

import contextlib
import errno
import io
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from microplastics.utils.errors import UserError, WriteError

if TYPE_CHECKING:
    import pandas as pd

_MAX_TEXT_BYTES = 200 * 2**20

_MENDS = {
    errno.ENOSPC: "the disk is full; free some space and run the command again",
    errno.EDQUOT: "the disk quota is used up; free some space and run the command again",
    errno.EACCES: "it is not writable; choose another folder or change its permissions",
    errno.EPERM: "it is not writable; choose another folder or change its permissions",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.ENOTDIR: "a part of the path is a file, not a folder; choose another path",
    errno.EISDIR: "it is a folder, not a file; choose another path",
    errno.EEXIST: "a file of that name stands in the way; choose another path",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
}


def is_write_error(error: OSError) -> bool:
    """Whether an error of the operating system is one that writing meets."""
    return error.errno in _MENDS


def write_error(path: str | os.PathLike, error: OSError) -> WriteError:
    """Turn an ``OSError`` of writing ``path`` into a sentence with its mend."""
    mend = _MENDS.get(error.errno, f"{error.strerror or error}; choose another path")
    return WriteError(f"Cannot write {os.fspath(path)}: {mend}.")


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary file beside ``path`` that takes its name when the block ends well.

    The data is on the disk before the rename, so that a crash leaves the old file or the new
    one, never half of one. When the block raises, ``path`` is untouched.

    Args:
        path: where the file ends up; missing folders are made.
        mode: ``"w"`` (UTF-8 text) or ``"wb"``.

    Raises:
        WriteError: the file cannot be written (no permission, disk full, …).
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name[:64]}.", dir=path.parent)
        with os.fdopen(handle, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)


def write_json(path: str | os.PathLike, data: Any, indent: int | None = None) -> None:
    """Write ``data`` as JSON, whole or not at all (see :func:`atomic_write`)."""
    with atomic_write(path) as file:
        json.dump(data, file, indent=indent)


def read_text(path: str | os.PathLike) -> str:
    """Read a text file as spreadsheets and editors write it: UTF-8, UTF-16 or Windows-1252.

    Raises:
        UserError: ``file_missing``, or ``file_invalid`` for one that is binary or too large.
    """
    path = os.fspath(path)
    try:
        if os.path.getsize(path) > _MAX_TEXT_BYTES:
            raise UserError(f"{path} is too large for a list or table.", code="file_invalid")
        content = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"Cannot read {path}: {reason}; correct the path.", code="file_missing"
        ) from error
    utf_16 = content[:2] in (b"\xff\xfe", b"\xfe\xff")
    for encoding in ("utf-16",) if utf_16 else ("utf-8-sig", "cp1252"):
        with contextlib.suppress(UnicodeDecodeError):
            text = content.decode(encoding)
            if "\0" not in text:
                return text
    raise UserError(f"{path} is not text; save it as CSV or text in UTF-8.", code="file_invalid")


def read_table(path: str | os.PathLike) -> "pd.DataFrame":
    """Read a CSV as text, separated by commas, semicolons or tabs (see :func:`read_text`).

    Returns:
        one string a cell, stripped, "" for a missing one; column names in lower case, as often as
        they occur; the index is the line of the file, if no cell spans several.

    Raises:
        UserError: as for :func:`read_text`, or ``table_invalid``.
    """
    import pandas as pd  # slow to import

    text = read_text(path)
    start = len(text) - len(text.lstrip())
    header = text[start:].partition("\n")[0]
    if not header:
        return pd.DataFrame()
    try:
        cells = pd.read_csv(
            io.StringIO(text[start:], newline=""),
            sep=max(",;\t", key=header.count),
            header=None,
            dtype=str,
            keep_default_na=False,
            skip_blank_lines=False,
            skipinitialspace=True,
        )
    except pd.errors.ParserError as error:
        raise UserError(
            f"{os.fspath(path)} is not a CSV table ({str(error).strip()}); save it as CSV again.",
            code="table_invalid",
        ) from error
    cells = cells.fillna("").map(str.strip)
    cells.index += 1 + text[:start].count("\n")
    return cells[1:].set_axis(cells.iloc[0].str.lower(), axis=1)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
