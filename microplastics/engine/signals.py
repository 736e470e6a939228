"""Ending a training on SIGINT or SIGTERM without losing it."""

import contextlib
import logging
import signal
from collections.abc import Iterator
from typing import Any

from detectron2.utils import comm

logger = logging.getLogger(__name__)

# With several processes a signal is agreed upon every so many iterations.
_PERIOD = 10


class StopSignals:
    """Notes a signal instead of dying of it; a second one acts at once.

    Attributes:
        name: of the signal that came, agreed upon by all ranks once :meth:`agreed` was true.
    """

    def __init__(self):
        self.name: str | None = None

    def _note(self, number: int, _frame: Any) -> None:
        if self.name is not None:
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name
        logger.warning("%s: finishing this iteration and saving …", self.name)

    @contextlib.contextmanager
    def caught(self) -> Iterator[None]:
        """Catch the signals within the block."""
        before = {}
        # Outside the main thread somebody else handles signals.
        with contextlib.suppress(ValueError):
            for number in (signal.SIGINT, signal.SIGTERM):
                before[number] = signal.signal(number, self._note)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def agreed(self, iteration: int) -> bool:
        """Whether all ranks must stop now; to be called on all ranks at the same iteration."""
        if comm.get_world_size() == 1:
            return self.name is not None
        if iteration % _PERIOD:
            return False
        names = [name for name in comm.all_gather(self.name) if name]
        if names:
            # Not otherwise: a signal may have come while the ranks were gathering.
            self.name = names[0]
        return bool(names)

    @property
    def exit_code(self) -> int:
        """0, or what a shell expects of a process that a signal has ended."""
        return 0 if self.name is None else 128 + signal.Signals[self.name]
