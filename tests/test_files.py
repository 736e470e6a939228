"""microplastics/files.py and cli.py."""

import errno
import os

import pytest

from microplastics.cli import run
from microplastics.errors import UserError
from microplastics.files import atomic_write, write_json


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "deep" / "table.csv"
    with atomic_write(path) as file:
        file.write("old")
    with pytest.raises(RuntimeError), atomic_write(path) as file:
        file.write("half of the n")
        raise RuntimeError
    assert path.read_text() == "old"
    assert os.listdir(path.parent) == ["table.csv"]


@pytest.mark.parametrize(
    ("number", "words"), [(errno.ENOSPC, "disk is full"), (errno.EACCES, "not writable")]
)
def test_disk_errors_name_the_file_and_the_mend(tmp_path, monkeypatch, number, words):
    def fail(_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UserError, match=f"model.json.*{words}"):
        write_json(tmp_path / "model.json", {})
    assert os.listdir(tmp_path) == []


def raising(error):
    def main():
        raise error

    return main


@pytest.mark.parametrize(
    ("main", "code", "words"),
    [
        (lambda: None, 0, ""),
        (lambda: 3, 3, ""),
        (raising(UserError("Mend it.")), 2, "error: Mend it.\n"),
        (raising(KeyboardInterrupt()), 130, "Ctrl-C"),
        (
            raising(PermissionError(errno.EACCES, "no", "/x/log.txt")),
            2,
            "log.txt: it is not writable",
        ),
    ],
)
def test_tools_end_with_a_code_and_a_line(main, code, words, capsys):
    with pytest.raises(SystemExit) as end:
        run(main)
    assert end.value.code == code
    assert words in capsys.readouterr().err


def test_bugs_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 // 0)
