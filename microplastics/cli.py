"""How every tool of the project starts and ends."""

import os
import sys
from collections.abc import Callable

from microplastics.utils.errors import UserError
from microplastics.utils.io import is_write_error, write_error


def report(message: str) -> None:
    """Print ``error: message`` on stderr."""
    sys.stdout.flush()
    print(f"error: {message}", file=sys.stderr, flush=True)


def run(main: Callable[[], int | None]) -> None:
    """Run a tool's ``main`` and leave the process with its exit code.

    0 when it returned ``None``; 2 after a :class:`UserError`, printed as one line without a
    traceback; 130 after Ctrl-C; 141 when nobody reads its output any more, as after ``| head``.
    Bugs keep their traceback.
    """
    try:
        code = main() or 0
        sys.stdout.flush()
    except UserError as error:
        report(str(error))
        code = 2
    except BrokenPipeError:
        # Python would complain once more when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except OSError as error:
        # A full disk or a missing permission can surface in any library that writes.
        if not is_write_error(error):
            raise
        report(str(write_error(error.filename or os.getcwd(), error)))
        code = 2
    except KeyboardInterrupt:
        report("Stopped by Ctrl-C.")
        code = 130
    sys.exit(code)
