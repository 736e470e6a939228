import errno
import os

import portalocker
import pytest
from support import user_error

from microplastics.utils.errors import UserError
from microplastics.utils.io import (
    alone,
    atomic_write,
    parse_yaml,
    read_json,
    read_table,
    read_text,
    remove_leftovers,
    write_json,
    write_rows,
)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "deep" / "table.csv"
    with atomic_write(path) as file:
        file.write("old")
    with pytest.raises(RuntimeError), atomic_write(path) as file:
        file.write("half of the n")
        raise RuntimeError
    assert path.read_text() == "old"
    assert os.listdir(path.parent) == ["table.csv"]


def test_a_folder_is_held_by_one_only(tmp_path, monkeypatch):
    with alone(tmp_path / "new", "It is taken."):
        with user_error("run_mismatch", "It is taken."), alone(tmp_path / "new", "It is taken."):
            raise AssertionError("two hold it")
    with alone(tmp_path / "new", "It is taken."):
        pass

    def fail(*_):
        raise portalocker.LockException(OSError(errno.ENOLCK, "No locks available"))

    monkeypatch.setattr(portalocker, "lock", fail)
    with user_error("not_writable", ".lock", "No locks available"), alone(tmp_path, ""):
        raise AssertionError("nobody holds it")
    (tmp_path / "file").touch()
    with user_error("not_writable", "file"), alone(tmp_path / "file", ""):
        raise AssertionError("a file is no folder")


def test_what_a_killed_process_left_is_known_by_its_name(tmp_path):
    child = os.fork()
    if not child:
        with atomic_write(tmp_path / "sub" / "table.csv"):
            os._exit(0)
    os.waitpid(child, 0)
    (left,) = os.listdir(tmp_path / "sub")
    (tmp_path / "sub" / ".mine").touch()
    remove_leftovers(tmp_path, tmp_path / "none")
    assert {left, ".mine"} == set(os.listdir(tmp_path / "sub"))
    remove_leftovers(tmp_path, deep=True)
    assert os.listdir(tmp_path / "sub") == [".mine"]


@pytest.mark.parametrize(
    ("number", "words"), [(errno.ENOSPC, "disk is full"), (errno.EACCES, "not writable")]
)
def test_disk_errors_name_the_file_and_the_fix(tmp_path, monkeypatch, number, words):
    def fail(_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with user_error("not_writable", "model.json", words):
        write_json(tmp_path / "model.json", {})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b'{"images": [1, 2', "is cut off at line 1, column 17"),
        (b'{"images": "ab', "is cut off"),
        (b'{\n "images": oops}', "is not JSON: Expecting value at line 2, column 12"),
        (b'{"a": "\xff\xfe"}', "'utf-8' codec can't decode byte 0xff in position 7"),
        (b"[]", "contains a JSON list; expected an object"),
        (b"[" * 200000, "recursion"),
    ],
)
def test_json_that_cannot_be_read(tmp_path, content, words):
    (tmp_path / "a.json").write_bytes(content)
    with user_error("file_invalid", "a.json", words):
        read_json(tmp_path / "a.json")


def test_a_number_of_thousands_of_digits(tmp_path):
    (tmp_path / "a.json").write_bytes(b'{"a": 1' + b"0" * 5000 + b"}")
    try:
        assert isinstance(read_json(tmp_path / "a.json")["a"], int)
    except UserError as error:  # Python 3.10 has no limit of digits
        assert error.code == "file_invalid"


def test_json_that_is_not_there(tmp_path):
    for path in (tmp_path / "b.json", tmp_path):
        with user_error("file_missing", path):
            read_json(path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_json_in_its_encodings(tmp_path, encoding):
    (tmp_path / "a.json").write_text('{"name": "Fäden"}', encoding=encoding)
    assert read_json(tmp_path / "a.json") == {"name": "Fäden"}


def test_a_table_keeps_every_column_and_counts_lines(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b"\r\nName; name;N\r\na; 007 ;x\r\n\r\nNA\r\n")
    table = read_table(path)
    assert table.columns.tolist() == ["name", "name", "n"]
    assert table.values.tolist() == [["a", "007", "x"], ["", "", ""], ["NA", "", ""]]
    assert table.index.tolist() == [3, 4, 5]


def test_texts_that_cannot_be_read(tmp_path):
    for path in (tmp_path / "none.txt", tmp_path):
        with user_error("file_missing", path):
            read_text(path)
    (tmp_path / "binary.csv").write_bytes(b"\0\1\2")
    with user_error("file_invalid", "binary.csv"):
        read_table(tmp_path / "binary.csv")


def test_spreadsheets_are_given_no_formulas(tmp_path):
    path = tmp_path / "t.csv"
    formulas = ["=1+1", "+cmd", "-2(", "@SUM(A1)", "'=1", "''-a"]
    texts = ["-5", "+1e-3", "a=b", "'a", "\u2013"]
    write_rows(path, [{"name": text, "=n": -1.5} for text in formulas + texts])
    lines = [f"'{text},-1.5" for text in formulas] + [f"{text},-1.5" for text in texts]
    assert path.read_text(encoding="utf-8").splitlines() == ["name,'=n", *lines]
    assert read_table(path)["name"].tolist() == formulas + texts
    assert read_table(path).columns.tolist() == ["name", "=n"]


@pytest.mark.parametrize("text", ["!!bool x", '!!int ""', "!!timestamp x", "a: &a [*a]", "\0", "["])
def test_yaml_that_cannot_be_used_is_a_value_error(text):
    with pytest.raises(ValueError, match="."):
        parse_yaml(text)
