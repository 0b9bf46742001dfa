"""Tasks that share decoding go to one worker together: clips of one group of pictures, or of neighbouring ones.

Frames before a clip's first one are decoded for the sake of that one; clips that lie near each other in a file need the
same ones, if they do not overlap anyhow. So a worker that becomes free gets the oldest task and those of the waiting
ones that overlap with it, all at once. Short tasks go several at a time in any case: handing one over takes time too.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import Any

from avloader.workers import WorkerDied, WorkerPool

__all__ = ["TaskQueue"]

_MOST_TOGETHER = 16  # more gains little, and the first of them waits for the last


Done = Callable[[int, Any], None]  # told a task's number, and its result or exception


@dataclass(slots=True, eq=False)
class _Entry:
    """A task that waits, and what it decodes: `span` of `path`; None: nothing that it could share."""

    order: int
    task: Any
    path: str | None
    span: tuple[int, int]
    at_a_time: int
    number: int
    done: Done
    is_last_try: bool = False


class _Request:
    """Asks the pool for a worker; when there is one, it gets what is due."""

    __slots__ = ("_chosen", "_queue")

    def __init__(self, queue: TaskQueue) -> None:
        self._queue = queue
        self._chosen: list[_Entry] = []

    def begin(self) -> list[Any] | None:
        self._chosen = self._queue.choose()
        return [entry.task for entry in self._chosen] or None

    def end(self, result: Any, error: BaseException | None) -> None:
        if isinstance(error, CancelledError):  # the pool was closed, and nobody will ask for this task or any other
            self._chosen, error = self._queue.choose(), WorkerDied("the worker pool was closed")
            self._queue.finish(self._chosen, None, error, is_last_try=True)
        else:
            self._queue.finish(self._chosen, result, error)


class TaskQueue:
    """Runs tasks in a pool whose workers take lists of them, and return lists of a result or an exception for each.

    Args:
        pool: The workers.
    """

    def __init__(self, pool: WorkerPool) -> None:
        self._pool = pool
        self._lock = threading.Lock()
        self._num_tasks = 0
        self._waiting: dict[int, _Entry] = {}
        self._spans: dict[str, list[tuple[int, int]]] = {}  # by path: beginning and order of those that may share

    def submit(self, task: Any, *, path: str | None, span: tuple[int, int] = (0, 0), at_a_time: int = 1) -> Future[Any]:
        """Queue a task; the future holds its result or its exception."""
        future: Future[Any] = Future()

        def done(_: int, result: Any) -> None:
            if not future.set_running_or_notify_cancel():
                return
            if isinstance(result, BaseException):
                future.set_exception(result)
            else:
                future.set_result(result)

        self.run([(task, path, span)], done, at_a_time=at_a_time)
        return future

    def run(
        self, tasks: Iterable[tuple[Any, str | None, tuple[int, int]]], done: Done, *, at_a_time: int = 1
    ) -> list[int]:
        """Queue tasks.

        Args:
            tasks: Each with the file that it decodes (None: it shares nothing), and from where to where, both included.
            done: Called once for each, with its number among `tasks`, and its result or exception; in the pool's
                thread, or in one that closes the pool or calls `cancel`.
            at_a_time: How many of their kind a worker gets even if they share nothing, > 0.

        Returns:
            What `cancel` takes.
        """
        orders = []
        with self._lock:
            for number, (task, path, span) in enumerate(tasks):
                order = self._num_tasks
                self._num_tasks += 1
                self._add(_Entry(order, task, path, span, at_a_time, number, done))
                orders.append(order)
        self._pool.run([_Request(self) for _ in orders])
        return orders

    def cancel(self, orders: Iterable[int]) -> None:
        """Give up those tasks that no worker has begun with; each ends with `CancelledError`."""
        with self._lock:
            entries = [self._remove(order) for order in orders if order in self._waiting]
        for entry in entries:
            entry.done(entry.number, CancelledError())

    def choose(self) -> list[_Entry]:
        """Take the oldest task out of the queue, with those that share most with it; none if none waits."""
        with self._lock:
            return self._choose()

    def finish(
        self, entries: Sequence[_Entry], results: Any, error: BaseException | None, *, is_last_try: bool = False
    ) -> None:
        """Hand on what came of tasks."""
        if error is None:
            for entry, result in zip(entries, results, strict=True):
                entry.done(entry.number, result)
            return
        for entry in entries:
            if is_last_try or entry.is_last_try or not isinstance(error, WorkerDied) or not self._try_alone(entry):
                entry.done(entry.number, error)

    def _try_alone(self, entry: _Entry) -> bool:
        """Run a task again: the worker died of it or one of the others, or was killed for no fault of theirs."""
        entry.path, entry.is_last_try = None, True
        with self._lock:
            self._add(entry)
        try:
            self._pool.run([_Request(self)])
        except RuntimeError:  # the pool is closed
            with self._lock:
                return self._waiting.pop(entry.order, None) is None
        return True

    def _add(self, entry: _Entry) -> None:
        self._waiting[entry.order] = entry
        if entry.path is not None:
            insort(self._spans.setdefault(entry.path, []), (entry.span[0], entry.order))

    def _choose(self) -> list[_Entry]:
        if not self._waiting:
            return []
        oldest = self._remove(next(iter(self._waiting)))
        chosen = [oldest]
        if oldest.is_last_try:
            return chosen
        begin, end = oldest.span
        # The last tasks are spread over all workers.
        spread = 1 + len(self._waiting) // (2 * self._pool.num_workers)
        most = min(_MOST_TOGETHER, spread)
        while len(chosen) < most and (near := self._neighbour(oldest.path, begin, end)) is not None:
            chosen.append(self._remove(near.order))
            begin, end = min(begin, near.span[0]), max(end, near.span[1])
        most = min(oldest.at_a_time, spread)
        while len(chosen) < most and (older := next(iter(self._waiting.values()), None)) is not None:
            if older.is_last_try or older.at_a_time != oldest.at_a_time:
                break
            chosen.append(self._remove(older.order))
        return chosen

    def _neighbour(self, path: str | None, begin: int, end: int) -> _Entry | None:
        """A task of `path` that overlaps with [begin, end]."""
        spans = self._spans.get(path, []) if path is not None else []
        place = bisect_left(spans, (begin, -1))
        if place < len(spans) and spans[place][0] <= end:
            return self._waiting[spans[place][1]]
        if place > 0 and self._waiting[spans[place - 1][1]].span[1] >= begin:
            return self._waiting[spans[place - 1][1]]
        return None

    def _remove(self, order: int) -> _Entry:
        entry = self._waiting.pop(order)
        if entry.path is not None:
            spans = self._spans[entry.path]
            del spans[bisect_left(spans, (entry.span[0], order))]
            if not spans:
                del self._spans[entry.path]
        return entry
