"""The append-only file of decisions."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from microplastics.data.coco import show
from microplastics.utils.errors import UserError
from microplastics.utils.io import alone, write_error

FORMAT = 1
"""Of the lines; raised when an older version could misread them."""

_LONGEST_LINE = 64 << 20  # bytes


class LogContent(NamedTuple):
    """What a log holds.

    Attributes:
        head: its first line, with what it stands on.
        entries: the decisions, numbered from 1 without a gap by their ``n``.
        size: bytes of whole lines.
        torn: bytes after them: a line that a crash cut off.
    """

    head: dict[str, Any]
    entries: list[dict[str, Any]]
    size: int
    torn: int

    def check(self, path: str | os.PathLike, sha256: str) -> None:
        """Refuse a log that stands on something of another hash.

        Raises:
            UserError: ``run_mismatch``.
        """
        if self.head.get("sha256") != sha256:
            raise UserError(
                f"{path} holds decisions on {show(self.head.get('source'))} in another state; "
                "choose another --output, or restore that run.",
                code="run_mismatch",
            )


def read_log(path: str | os.PathLike) -> LogContent:
    """Read a log; its last line may be torn.

    Raises:
        UserError: ``file_missing``; ``run_invalid`` for a damaged line that is not the last, or a
            file that is not a log.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); give the folder of a review.",
            code="file_missing",
        ) from error
    lines, size = [], 0
    pieces = content.split(b"\n")
    for number, line in enumerate(pieces[:-1], start=1):
        data = _parsed(line)
        if data is None or (lines and data.get("n") != len(lines)):
            if number == len(pieces) - 1 and data is None:
                break
            raise UserError(
                f"{path} is damaged in line {number}; restore a copy, or delete this line and "
                "those after it.",
                code="run_invalid",
            )
        lines.append(data)
        size += len(line) + 1
    if lines and lines[0].get("review") != FORMAT:
        raise UserError(
            f"{path} is a log of form {show(lines[0].get('review'))}; expected {FORMAT}, as this "
            "version writes it.",
            code="run_invalid",
        )
    return LogContent(lines[0] if lines else {}, lines[1:], size, len(content) - size)


def _parsed(line: bytes) -> dict[str, Any] | None:
    if len(line) > _LONGEST_LINE:
        return None
    try:
        data = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


class DecisionLog:
    """A log that this process alone appends to.

    Attributes:
        path: of the file.
        entries: the decisions that it held when it was opened.
        torn: bytes of a cut-off last line, which are removed.
    """

    def __init__(self, path: Path, basis: dict[str, Any]):
        """Open a log or begin one, and lock it.

        Args:
            path: of the file.
            basis: plain values that say what the decisions stand on; ``sha256`` must be that of
                the log.

        Raises:
            UserError: ``run_mismatch`` if another process has it open or it stands on something
                else; as :func:`read_log`; ``not_writable``.
        """
        self.path = path
        with contextlib.ExitStack() as stack:
            stack.enter_context(
                alone(
                    path.parent,
                    f"Another process has {path} open; use the page that it serves, stop it, or "
                    "choose another --output.",
                )
            )
            try:
                self._file = stack.enter_context(open(path, "ab", buffering=0))
            except OSError as error:
                raise write_error(path, error) from error
            content = read_log(path)
            self.entries, self.torn, self._size = content.entries, content.torn, content.size
            if self.torn:
                self._file.truncate(self._size)
            if not content.head:
                self._write({"review": FORMAT, **basis})
            else:
                content.check(path, basis["sha256"])
            self._held = stack.pop_all()

    def append(self, entry: dict[str, Any]) -> None:
        """Write one decision, which is on the disk when this returns.

        Raises:
            WriteError: it could not be written; the log is as before.
        """
        self._write(entry)

    def _write(self, data: dict[str, Any]) -> None:
        line = json.dumps(data, separators=(",", ":")).encode() + b"\n"
        try:
            written = 0
            while written < len(line):
                written += self._file.write(line[written:])
            os.fsync(self._file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):  # a torn line is dropped when it is read
                self._file.truncate(self._size)
            raise write_error(self.path, error) from error
        self._size += len(line)

    def close(self) -> None:
        """Close the file and give up its lock."""
        self._held.close()
