"""microplastics/cli.py."""

import errno
import subprocess
import sys

import pytest

from microplastics.cli import run
from microplastics.utils.errors import UserError


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


def test_a_reader_that_left_is_no_error():
    script = (
        "from microplastics.cli import run\n"
        "run(lambda: [print('x' * 1000) for _ in range(10000)] and None)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.readline()
    process.stdout.close()
    errors = process.stderr.read()
    assert process.wait(timeout=60) == 141
    assert "Traceback" not in errors and "Broken" not in errors
