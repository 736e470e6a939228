"""Commands in processes that are bounded and watched: what files from strangers may not do."""

import atexit
import functools
import multiprocessing
import os
import re
import resource
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

SECRET = "secret.png"
"""Name of a file that no command may open."""

_RUNS = {"os.system", "os.exec", "os.posix_spawn", "os.startfile", "pty.spawn", "subprocess.Popen"}
_ASKS = {"socket.connect", "socket.getaddrinfo", "urllib.Request"}
# How many of its first arguments are paths that an event changes.
_CHANGES = {"os.rename": 2, "os.link": 2, "os.symlink": 2, "os.truncate": 1, "os.chmod": 1}
_CHANGES |= {"os.mkdir": 1, "os.rmdir": 1, "os.remove": 1, "shutil.rmtree": 1}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_HARMLESS = ("/dev/null", "/dev/shm/", "/dev/tty", "/proc/self/")
_FORBIDDEN, _HANGS = 98, 99


class Outcome(NamedTuple):
    """The exit code of a command and what it printed.

    The code is negative for a signal, 98 for what it may not do, 99 if it did not end.
    """

    code: int
    text: str

    @property
    def error(self) -> str:
        """What follows the last ``error: `` at the beginning of a line."""
        return f"\n{self.text}".rpartition("\nerror: ")[2] if "error: " in self.text else ""


def run_jailed(
    *arguments: object, folder: Path, seconds: float = 60, megabytes: int = 1000
) -> Outcome:
    """Run ``microplastics`` so that it can write below ``folder`` only.

    It ends at once if it starts a program, asks another machine, or opens a file of the name
    ``SECRET``; and is given no more than ``megabytes`` and ``seconds``.
    """
    log = folder / "jail.log"
    log.write_bytes(b"")
    given = [str(argument) for argument in arguments]
    starter = _starter()
    starter.send(((given, str(folder), str(log), megabytes), seconds))
    return Outcome(starter.recv(), log.read_text(errors="replace"))


@functools.cache
def _starter() -> Connection:
    """Start the process that each command is forked from: it has imported everything already."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    context.Process(target=_start, args=(theirs,)).start()
    theirs.close()
    atexit.register(ours.close)  # which ends it
    return ours


def _start(requests: Connection) -> None:
    """Run commands, one after the other, and send their exit codes."""
    import jail_imports  # noqa: F401

    context = multiprocessing.get_context("fork")
    while True:
        try:
            arguments, seconds = requests.recv()
        except EOFError:
            return
        process = context.Process(target=_confined, args=arguments)
        process.start()
        process.join(seconds)
        hangs = process.is_alive()
        if hangs:
            process.kill()
            process.join()
        requests.send(_HANGS if hangs else process.exitcode)


def _confined(arguments: list[str], folder: str, log: str, megabytes: int) -> None:
    """Run in the new process."""
    import jail_imports  # noqa: F401, in any case before what it does is watched

    from microplastics.cli import main

    for stream in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_APPEND), stream)
    # What may be written to, not what is only reserved, as Arrow does.
    used = re.search(r"VmData:\s*(\d+) kB", Path("/proc/self/status").read_text())
    limit = (int(used[1]) << 10) + (megabytes << 20)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    os.environ["TMPDIR"] = folder
    sys.addaudithook(_watch(os.path.realpath(folder)))
    main(arguments)


def _watch(folder: str) -> Callable[[str, tuple], None]:
    """Return an audit hook that ends the process when it does what it may not."""

    def inside(path: object) -> bool:
        if isinstance(path, int):  # an open file
            return True
        path = os.path.abspath(os.fsdecode(path))
        real = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
        return f"{real}/".startswith(f"{folder}/") or path.startswith(_HARMLESS)

    def forbidden(event: str, given: tuple) -> bool:
        if event == "open" and isinstance(given[0], (str, bytes)):
            if os.path.basename(os.path.realpath(os.fsdecode(given[0]))) == SECRET:
                return True
            return bool(given[2] & _WRITING) and not inside(given[0])
        if event in _CHANGES:
            return not all(map(inside, given[: _CHANGES[event]]))
        return event in _RUNS or event in _ASKS

    def hook(event: str, given: tuple) -> None:
        if forbidden(event, given):
            os.write(2, f"forbidden: {event} {given!r}\n".encode("utf-8", "replace"))
            os._exit(_FORBIDDEN)

    return hook
