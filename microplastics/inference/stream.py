"""Items through three stages at once, in order: prepared ahead, run in batches, finished behind."""

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Item = TypeVar("Item")
Prepared = TypeVar("Prepared")
Result = TypeVar("Result")

_END = object()


def stream(
    items: Iterable[Item],
    prepare: Callable[[Item], Prepared],
    run: Callable[[Sequence[Prepared]], Sequence[Any]],
    finish: Callable[[Prepared, Any], Result],
    kind: Callable[[Prepared], Hashable],
    batch_size: int,
) -> Iterator[Result]:
    """Work on items while one thread prepares those to come and another finishes those done.

    Batches are of one kind. To fill them, items overtake others of another kind by at most four
    batches; the results come in the order of the items. At most about eight batches of items are
    in memory, however many there are.

    Args:
        items: drawn from in the preparing thread.
        prepare: called in a thread of its own.
        run: called in the caller's thread, on 1 to ``batch_size`` prepared items.
        finish: called in a third thread, with a prepared item and what ``run`` gave for it.
        kind: what the prepared items of a batch must share.
        batch_size: 1 or more.

    Yields:
        What ``finish`` gave. An error of ``items`` or of ``prepare`` is raised after the results
        of all items before it.
    """
    iterator = iter(items)
    room = batch_size if batch_size == 1 else 4 * batch_size

    def take() -> Any:
        try:
            item = next(iterator)
        except StopIteration:
            return _END
        return prepare(item)

    before = ThreadPoolExecutor(1, thread_name_prefix="prepare")
    behind = ThreadPoolExecutor(1, thread_name_prefix="finish")
    try:
        queue = _Queue(lambda: before.submit(take), ahead=2 * batch_size, kind=kind)
        futures: dict[int, Future] = {}
        following = 0
        while batch := queue.batch(batch_size, room):
            outputs = run([prepared for _, prepared in batch])
            for (number, prepared), output in zip(batch, outputs, strict=True):
                futures[number] = behind.submit(finish, prepared, output)
            while following in futures and (
                futures[following].done() or len(futures) > room + batch_size
            ):
                yield futures.pop(following).result()
                following += 1
        while following in futures:
            yield futures.pop(following).result()
            following += 1
        if queue.error is not None:
            raise queue.error
    finally:
        # An abandoned generator must not leave threads at work.
        before.shutdown(cancel_futures=True)
        behind.shutdown(cancel_futures=True)


class _Queue:
    """Prepared items, of which batches of one kind are taken, the oldest item always among them."""

    def __init__(
        self, submit: Callable[[], Future], ahead: int, kind: Callable[[Any], Hashable]
    ) -> None:
        self.error: BaseException | None = None
        self._submit, self._kind = submit, kind
        self._coming = deque(submit() for _ in range(ahead))
        self._waiting: list[tuple[int, Any]] = []
        self._count = 0
        self._ended = False

    def batch(self, size: int, room: int) -> list[tuple[int, Any]]:
        """Up to ``size`` numbered items of the oldest one's kind; none at the end."""
        picked: list[tuple[int, Any]] = []
        while len(picked) < size:
            if not self._ended and len(self._waiting) < room:
                self._wait_for_one()
            first = self._waiting[0] if self._waiting else None
            if first is None:
                break
            kind = self._kind(first[1])
            picked = [each for each in self._waiting if self._kind(each[1]) == kind][:size]
            if self._ended or len(self._waiting) >= room:
                break
        numbers = {number for number, _ in picked}
        self._waiting = [each for each in self._waiting if each[0] not in numbers]
        return picked

    def _wait_for_one(self) -> None:
        try:
            prepared = self._coming.popleft().result()
        except Exception as error:
            # Told after the results of the items before it.
            self.error, self._ended = error, True
            return
        if prepared is _END:
            self._ended = True
            return
        self._coming.append(self._submit())
        self._waiting.append((self._count, prepared))
        self._count += 1
