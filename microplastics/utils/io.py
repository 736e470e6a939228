"""Writing files whole or not at all."""

import contextlib
import errno
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from microplastics.utils.errors import WriteError

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


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
