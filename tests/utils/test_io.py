"""microplastics/utils/io.py."""

import errno
import os

import pytest

from microplastics.utils.errors import UserError
from microplastics.utils.io import atomic_write, write_json


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
