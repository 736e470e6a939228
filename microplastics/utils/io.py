"""Atomic writing of files, reading of JSON, text and tables."""

import contextlib
import csv
import errno
import hashlib
import io
import json
import math
import os
import re
import stat
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import portalocker
import yaml

from microplastics.utils.errors import UserError, WriteError

if TYPE_CHECKING:
    import pandas as pd

OWN_FILE = "the file as microplastics wrote it; start again in another folder"
"""What :func:`read_json` expects of a file of an earlier run."""

_PROBE = 64 << 10  # bytes
_MAX_TEXT = 64 << 20  # bytes
_MAX_YAML, _MAX_YAML_VALUES = 1 << 18, 100_000  # characters; values with aliases written out
_UNFINISHED = ".unfinished"  # ending of temporary files
_FORMULA, _NUMBER = re.compile(r"'*[=+\-@\t\r]"), re.compile(r"[+-][\d.eE+-]+")
_UMASK = os.umask(0)  # of the process: asking for it again and again would race between threads
os.umask(_UMASK)
_FIXES = {
    errno.ENOSPC: "the disk is full; free some space and run the command again",
    errno.EDQUOT: "the disk quota is used up; free some space and run the command again",
    errno.EACCES: "it is not writable; choose another folder or change its permissions",
    errno.EPERM: "it is not writable; choose another folder or change its permissions",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.ENOTDIR: "a part of the path is a file, not a folder; choose another path",
    errno.EISDIR: "it is a folder, not a file; choose another path",
    errno.EEXIST: "a file of that name exists; choose another path",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
}


def is_write_error(error: OSError) -> bool:
    """Return whether an error is one of writing a file."""
    return error.errno in _FIXES


def write_error(path: str | os.PathLike, error: OSError) -> WriteError:
    """Return the error of writing ``path`` as a sentence with its fix."""
    fix = _FIXES.get(error.errno, f"{error.strerror or error}; choose another path")
    return WriteError(f"Cannot write {os.fspath(path)}: {fix}.")


def read_json(
    path: str | os.PathLike,
    expected: type | tuple[type, ...] = dict,
    meant: str = "an object with images, annotations and categories; export as COCO instance "
    "segmentation",
) -> Any:
    """Read a JSON file (UTF-8 with or without BOM, UTF-16 or UTF-32).

    Args:
        path: the file.
        expected: type of its content: ``dict``, ``list`` or both.
        meant: describes the expected content and the fix, for the message.

    Raises:
        UserError: ``file_missing``, or ``file_invalid``.
    """
    path, content = os.fspath(path), _read_bytes(path)
    try:
        data = json.loads(content)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        cut = not error.doc[error.pos :].strip() or error.msg.startswith("Unterminated")
        problem = f"is cut off at {where}" if cut else f"is not JSON: {error.msg} at {where}"
        if not content.strip():
            problem = "is empty"
    except (ValueError, RecursionError) as error:  # wrongly encoded, a huge number, nested too deep
        problem = f"is not usable JSON ({error})"
    else:
        if not isinstance(data, expected):
            raise UserError(
                f"{path} contains a JSON {type(data).__name__}; expected {meant}.",
                code="file_invalid",
            )
        return data
    raise UserError(f"{path} {problem}; export or copy it again.", code="file_invalid")


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary file beside ``path`` that replaces it when the block ends without error.

    A crash leaves the old file or the new one, and perhaps the temporary one
    (:func:`remove_leftovers`).

    Args:
        path: the file to write; missing folders are made.
        mode: ``"w"`` (UTF-8 text) or ``"wb"``.

    Raises:
        WriteError: the file cannot be written.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        prefix = f".{path.name[:64]}."
        handle, temporary = tempfile.mkstemp(_UNFINISHED, prefix, dir=path.parent)
        with os.fdopen(handle, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_UMASK)
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)


@contextlib.contextmanager
def alone(folder: Path, refusal: str) -> Iterator[None]:
    """Hold a folder, so that no other process that asks for it gets it.

    The lock is one of the operating system on the file ``.lock``, which stays: it ends with the
    process, however that ends.

    Args:
        folder: made if it is not there.
        refusal: the sentence for another process.

    Raises:
        UserError: ``run_mismatch``, another process holds it; ``not_writable``.
    """
    path = folder / ".lock"
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(open(path, "a"))
            portalocker.lock(file, portalocker.LOCK_EX | portalocker.LOCK_NB)
        except portalocker.AlreadyLocked as error:
            raise UserError(refusal, code="run_mismatch") from error
        except portalocker.LockException as error:
            raise WriteError(
                f"Cannot lock {path}: {error.strerror or error}; choose a folder on a file system "
                "with locks."
            ) from error
        except OSError as error:
            raise write_error(path, error) from error
        yield


def remove_leftovers(*folders: str | os.PathLike, deep: bool = False) -> None:
    """Delete the temporary files that a killed process left.

    Args:
        folders: that no other process writes to; they need not exist.
        deep: look into the folders below them, too.

    Raises:
        WriteError: one cannot be deleted.
    """
    for folder in map(Path, folders):
        for path in folder.glob(f"{'**/' * deep}.*{_UNFINISHED}"):
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise write_error(path, error) from error


def check_output_dir(output_dir: str) -> None:
    """Make OUTPUT_DIR and write to it once: not_writable before hours of training, not after."""
    try:
        os.makedirs(output_dir, exist_ok=True)
        with tempfile.TemporaryFile(dir=output_dir) as probe:
            # More than config.yaml, which Detectron2 overwrites in place.
            probe.write(b"\0" * _PROBE)
            probe.flush()
    except OSError as error:
        raise write_error(output_dir, error) from error


def write_json(path: str | os.PathLike, data: Any, indent: int | None = None) -> None:
    """Write ``data`` as JSON with :func:`atomic_write`."""
    with atomic_write(path) as file:
        json.dump(data, file, indent=indent)


def as_cell(value: Any) -> Any:
    """Return what a CSV holds of a value: ``'=A1`` for the text ``=A1``.

    Spreadsheets run a text that begins with ``=``, ``+``, ``-`` or ``@`` as a formula, and names
    of images and classes come from strangers. :func:`of_cell` gives the text back.
    """
    is_formula = isinstance(value, str) and _FORMULA.match(value) and not _NUMBER.fullmatch(value)
    return f"'{value}" if is_formula else value


def of_cell(text: Any) -> Any:
    """Return the value of a cell that :func:`as_cell` made."""
    return text[1:] if isinstance(text, str) and text[:1] == "'" and _FORMULA.match(text) else text


def write_rows(path: str | os.PathLike, rows: Sequence[dict[str, Any]]) -> None:
    """Write dicts as CSV with :func:`atomic_write`.

    The columns are the keys of all rows in their first order; None, NaN and a missing key become
    an empty cell.
    """
    with atomic_write(path) as file:
        columns = dict.fromkeys(key for row in rows for key in row)
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(map(as_cell, columns))
        for row in rows:
            values = (row.get(column) for column in columns)
            # NaN is the only value that differs from itself.
            writer.writerow("" if v is None or v != v else as_cell(v) for v in values)


def read_text(path: str | os.PathLike, *, legacy: bool = True) -> str:
    """Read a text file of at most 64 MiB as spreadsheets and editors write it.

    It is UTF-8, UTF-16 or, if ``legacy``, Windows-1252.

    Raises:
        UserError: ``file_missing``, or ``file_invalid`` for a binary or larger file.
    """
    content = _read_bytes(path, _MAX_TEXT)
    utf_16 = content[:2] in (b"\xff\xfe", b"\xfe\xff")
    for encoding in ("utf-16",) if utf_16 else ("utf-8-sig", "cp1252")[: 1 + legacy]:
        with contextlib.suppress(UnicodeDecodeError):
            text = content.decode(encoding)
            if "\0" not in text:
                return text
    raise UserError(
        f"{os.fspath(path)} is not text; save it as CSV or text in UTF-8.", code="file_invalid"
    )


def parse_yaml(text: str, loader: type = yaml.SafeLoader) -> Any:
    """Parse YAML from a stranger, in time and memory that are bounded.

    Args:
        text: of a config or another short file.
        loader: a loader of PyYAML that runs no code.

    Raises:
        ValueError: it is not YAML, or asks for code; it is longer than 256 KiB, or
            stands for more than 100,000 values.
    """
    try:
        if len(text) > _MAX_YAML:
            raise ValueError(f"it is longer than {_MAX_YAML >> 10} KiB")
        parser = loader(text)
        node = parser.get_single_node()
        # Aliases of aliases let a few lines stand for billions of values.
        if node is not None and _expanded(node, {}) > _MAX_YAML_VALUES:
            raise ValueError(f"with its aliases it has more than {_MAX_YAML_VALUES} values")
        return None if node is None else parser.construct_document(node)
    # PyYAML raises the last three for tags that do not fit their values, such as "!!bool x".
    except (
        *(yaml.YAMLError, RecursionError, TypeError, OverflowError),
        *(KeyError, IndexError, AttributeError),
    ) as error:
        raise ValueError(" ".join(str(error).split())[:200] or type(error).__name__) from error


def _expanded(node: yaml.Node, known: dict[int, float]) -> float:
    """Count the values that a node stands for; infinity if it contains itself."""
    if id(node) not in known:
        known[id(node)] = math.inf
        inside = [] if isinstance(node, yaml.ScalarNode) else node.value
        if isinstance(node, yaml.MappingNode):
            inside = [each for pair in inside for each in pair]
        known[id(node)] = 1 + sum(_expanded(each, known) for each in inside)
    return known[id(node)]


def read_table(path: str | os.PathLike) -> "pd.DataFrame":
    """Read a CSV as text, separated by commas, semicolons or tabs.

    Returns:
        one string a cell, stripped, "" for a missing one; column names in lower case, as often as
        they occur; the index is the line of the file, if no cell spans several.

    Raises:
        UserError: as of :func:`read_text`, or ``table_invalid``.
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
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise UserError(
            f"{os.fspath(path)} is not a CSV table ({str(error).strip()}); save it as CSV again.",
            code="table_invalid",
        ) from error
    cells = cells.fillna("").map(str.strip).map(of_cell)
    cells.index += 1 + text[:start].count("\n")
    return cells[1:].set_axis(cells.iloc[0].str.lower(), axis=1)


def check_regular(path: str | os.PathLike) -> None:
    """Refuse a pipe or a device, which would be waited for, or read without end.

    Raises:
        OSError: it does not exist.
        UserError: ``file_invalid``.
    """
    kind = os.stat(path).st_mode
    if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):  # opening a folder fails by itself
        raise UserError(
            f"{os.fspath(path)} is a pipe or a device; expected a file.", code="file_invalid"
        )


def _read_bytes(path: str | os.PathLike, limit: int = -1) -> bytes:
    try:
        check_regular(path)
        with open(path, "rb") as file:
            content = file.read(limit)
            if file.read(1):
                raise UserError(
                    f"{os.fspath(path)} is larger than {limit >> 20} MiB; expected a text file.",
                    code="file_invalid",
                )
            return content
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"Cannot read {os.fspath(path)}: {reason}; correct the path.", code="file_missing"
        ) from error


def sha256_of(path: str | os.PathLike) -> str:
    """Return the hexadecimal sha256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
