"""Tasks that share decoding go to one worker together: clips of one group of pictures, or of neighbouring ones.

Frames before a clip's first one are decoded for the sake of that one; clips that lie near each other in a file need the
same ones, if they do not overlap anyhow. So a worker that becomes free gets the oldest task and those of the waiting
ones that overlap with it, all at once. Short tasks go several at a time in any case: handing one over takes time too.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, insort
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from avloader.workers import WorkerDied, WorkerPool

__all__ = ["TaskQueue"]

_MOST_TOGETHER = 16  # more gains little, and the first of them waits for the last


@dataclass(slots=True, eq=False)
class _Entry:
    """A task that waits, and what it decodes: `span` of `path`; None: nothing that it could share."""

    order: int
    task: Any
    path: str | None
    span: tuple[int, int]
    at_a_time: int
    future: Future[Any]
    has_begun: bool = False
    is_last_try: bool = False


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
        """Queue a task; the future holds its result or its exception.

        Args:
            task: What a worker gets; must be picklable.
            path: The file that it decodes; None: it shares nothing.
            span: From where to where it decodes, both included.
            at_a_time: How many of its kind a worker gets even if they share nothing, > 0.
        """
        with self._lock:
            entry = _Entry(self._num_tasks, task, path, span, at_a_time, Future())
            self._num_tasks += 1
            self._waiting[entry.order] = entry
            if path is not None:
                insort(self._spans.setdefault(path, []), (span[0], entry.order))
        self._ask()
        return entry.future

    def _ask(self) -> None:
        """Ask for a worker; when one is free, what has waited longest is handed to it."""
        chosen: list[_Entry] = []
        was_asked = False

        def make() -> list[Any] | None:
            nonlocal was_asked
            was_asked = True
            with self._lock:
                chosen.extend(self._choose())
            return [entry.task for entry in chosen] or None

        def finish(future: Future[Any]) -> None:
            if not was_asked:  # the pool was closed, and nobody will ask for this task or any other
                with self._lock:
                    chosen.extend(self._choose())
            self._finish(chosen, future)

        self._pool.submit_later(make).add_done_callback(finish)

    def _choose(self) -> list[_Entry]:
        """Take the oldest task out of the queue, with those that share most with it; none if none waits."""
        while self._waiting:
            oldest = self._remove(next(iter(self._waiting)))
            if oldest.has_begun or oldest.future.set_running_or_notify_cancel():
                break
        else:
            return []
        chosen = [oldest]
        if oldest.has_begun:  # with others before, and the worker died: now alone
            return chosen
        oldest.has_begun = True
        begin, end = oldest.span
        # The last tasks are spread over all workers.
        spread = 1 + len(self._waiting) // (2 * self._pool.num_workers)
        most = min(_MOST_TOGETHER, spread)
        while len(chosen) < most and (near := self._neighbour(oldest.path, begin, end)) is not None:
            if self._join(chosen, near):
                begin, end = min(begin, near.span[0]), max(end, near.span[1])
        most = min(oldest.at_a_time, spread)
        while len(chosen) < most and (older := next(iter(self._waiting.values()), None)) is not None:
            if older.has_begun or older.at_a_time != oldest.at_a_time:
                break
            self._join(chosen, older)
        return chosen

    def _join(self, chosen: list[_Entry], entry: _Entry) -> bool:
        """Take an entry out of the queue, and add it unless it was cancelled."""
        self._remove(entry.order)
        if entry.future.set_running_or_notify_cancel():
            entry.has_begun = True
            chosen.append(entry)
        return entry.has_begun

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

    def _finish(self, entries: Sequence[_Entry], future: Future[Any]) -> None:
        if future.cancelled():
            error: BaseException | None = WorkerDied("the worker pool was closed")
        else:
            error = future.exception()
        if error is None:
            for entry, result in zip(entries, future.result(), strict=True):
                if isinstance(result, BaseException):
                    entry.future.set_exception(result)
                else:
                    entry.future.set_result(result)
        elif isinstance(error, WorkerDied) and not future.cancelled() and not entries[0].is_last_try:
            self._try_alone(entries, error)
        else:
            for entry in entries:
                entry.future.set_exception(error)

    def _try_alone(self, entries: Sequence[_Entry], error: WorkerDied) -> None:
        """Run tasks again, one by one: the worker died of one of them, or was killed for no fault of theirs."""
        for entry in entries:
            entry.path, entry.is_last_try = None, True
            with self._lock:
                self._waiting[entry.order] = entry
            try:
                self._ask()
            except RuntimeError:  # the pool is closed
                with self._lock:
                    self._waiting.pop(entry.order, None)
                entry.future.set_exception(error)
