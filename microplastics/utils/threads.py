"""Threads beside other processes that compute."""

import contextlib
import math
import multiprocessing
import os
import sys
import time
from collections.abc import MutableMapping

# GOMP_SPINCOUNT: how often a waiting thread looks again before it sleeps. libgomp's own 300,000
# are milliseconds, in which it keeps a core from the thread that it waits for.
SPIN_COUNT = "10000"
_OWN_SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
# A process that gets less than this part of a core is not worth giving a core up for.
_NEGLIGIBLE_CORES = 0.4


def limit_spinning(environ: MutableMapping[str, str] = os.environ) -> None:
    """Let OpenMP threads wait briefly before they sleep, unless the user has chosen.

    OpenMP reads its settings when it is loaded, so this must come before torch is imported; when
    torch is there already, nothing is changed.

    Args:
        environ: environment variables to change.
    """
    if "torch" not in sys.modules and not any(name in environ for name in _OWN_SETTINGS):
        environ["GOMP_SPINCOUNT"] = SPIN_COUNT


class OtherProcesses:
    """Cores that other processes use, measured from call to call.

    The process itself and its ``multiprocessing`` children (data loader workers) do not count.
    """

    def __init__(self) -> None:
        self._last = self._read()

    def cores(self, seconds: float = 2.0) -> float | None:
        """Measure the cores that other processes used since the last measurement.

        Args:
            seconds: shortest time to measure over.

        Returns:
            cores, from 0 on; ``None`` if less time has passed or the system has no /proc/stat.
        """
        if self._last is None or time.monotonic() - self._last[0] < seconds:
            return None
        (before, used_before), last = self._last, self._read()
        self._last = last
        return None if last is None else max(0.0, (last[1] - used_before) / (last[0] - before))

    @staticmethod
    def _read() -> tuple[float, float] | None:
        """Time, and CPU seconds of all but our processes on the cores that we may use."""
        try:
            with open("/proc/stat", encoding="ascii") as file:
                lines = [line.split() for line in file if line.startswith("cpu")]
        except OSError:
            return None  # not Linux
        ours = {f"cpu{number}" for number in os.sched_getaffinity(0)}
        # user, nice, system, (idle, iowait,) irq, softirq
        ticks = sum(sum(map(int, (*f[1:4], *f[6:8]))) for f in lines if f[0] in ours)
        for child in multiprocessing.active_children():
            # A child that has just ended is counted by os.times() when it has been waited for.
            with (
                contextlib.suppress(OSError),
                open(f"/proc/{child.pid}/stat", encoding="utf-8") as file,
            ):
                fields = file.read().rpartition(")")[2].split()
                ticks -= int(fields[11]) + int(fields[12])
        times = os.times()
        ended = times.children_user + times.children_system
        return time.monotonic(), ticks / os.sysconf("SC_CLK_TCK") - time.process_time() - ended


def fitting_threads(most: int, cores: int, others: float) -> int:
    """Choose a number of threads that leaves other processes their cores.

    Threads that compute one thing together wait for the slowest of them, so one thread that has
    to share its core delays all. Half of them stay in any case: that is a fair part beside
    another program that uses all cores.

    Args:
        most: threads when nothing else runs.
        cores: cores that this process may use.
        others: cores that other processes use.
    """
    free = cores - math.ceil(others - _NEGLIGIBLE_CORES)
    return min(most, max(free, most // 2, 1))
