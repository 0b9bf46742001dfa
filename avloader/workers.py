"""Processes that run functions of this package: for decoding, and for probing media.

Unlike `multiprocessing`'s spawn method, a worker never imports the user's script, so a script needs no
``if __name__ == "__main__"`` guard; unlike fork, it is safe beside threads and CUDA. Large results go through memory
that parent and workers share.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import mmap
import os
import pickle
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future, InvalidStateError
from multiprocessing.connection import Connection
from typing import Any, Protocol

from avloader.errors import AVLoaderError

__all__ = ["Job", "SharedMemory", "WorkerDied", "WorkerPool", "available_cores"]

_TASKS_PER_WORKER = 2  # one running, one waiting in the pipe, so that a worker never idles for its next task


class WorkerDied(AVLoaderError):  # noqa: N818 - says what happened
    """A worker process ended while it ran a task: a crash inside a codec, or the system ran out of memory."""


def available_cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class SharedMemory:
    """Anonymous memory that worker processes can map; it vanishes with the last process that holds it.

    Args:
        num_bytes: Size, > 0. Pages take physical memory only once they are written.
    """

    def __init__(self, num_bytes: int) -> None:
        if hasattr(os, "memfd_create"):
            self.fd = os.memfd_create("avloader")
        else:
            with tempfile.TemporaryFile() as file:
                self.fd = os.dup(file.fileno())
        os.ftruncate(self.fd, num_bytes)
        self.memory = mmap.mmap(self.fd, num_bytes)

    def close(self) -> None:
        """Give the file descriptor back; the mapping goes with the last array that looks into it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        with contextlib.suppress(BufferError):  # an array still looks into it
            self.memory.close()


class Job(Protocol):
    """What a pool runs: both are called by the pool's thread."""

    def begin(self) -> Any:
        """The task for a worker that is free now; None: there is none any more."""

    def end(self, result: Any, error: BaseException | None) -> None:
        """What came of it, once; `CancelledError`: the pool was closed before it began."""


class _ForFuture:
    """A task whose result somebody waits for."""

    __slots__ = ("_future", "_task")

    def __init__(self, task: Any, future: Future[Any]) -> None:
        self._task, self._future = task, future

    def begin(self) -> Any:
        return None if self._future.cancelled() else self._task

    def end(self, result: Any, error: BaseException | None) -> None:
        if isinstance(error, CancelledError):
            self._future.cancel()
            return
        with contextlib.suppress(InvalidStateError):  # cancelled meanwhile
            if error is None:
                self._future.set_result(result)
            else:
                self._future.set_exception(error)


class _SecondTry:
    """A job whose worker died of the task before it."""

    __slots__ = ("_task", "end")

    def __init__(self, task: Any, job: Job) -> None:
        self._task, self.end = task, job.end

    def begin(self) -> Any:
        return self._task


class _Worker:
    """One process, the connection to it, and the tasks that it was sent, oldest first."""

    def __init__(self, target: str, init: Any, memory: SharedMemory | None) -> None:
        ours, theirs = socket.socketpair()
        fds = [theirs.fileno()] + ([memory.fd] if memory else [])
        command = f"import sys; sys.path[:] = {sys.path!r}; from avloader.workers import _serve; _serve({fds!r})"
        self.process = subprocess.Popen(
            [sys.executable, "-c", command], pass_fds=fds, stdin=subprocess.DEVNULL, start_new_session=False
        )
        theirs.close()
        self.connection = Connection(ours.detach())
        self.sent: deque[tuple[Any, Job]] = deque()
        self.connection.send_bytes(pickle.dumps((target, init)))

    def end(self, timeout: float) -> None:
        self.connection.close()  # the worker sees the end of its input and leaves
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class WorkerPool:
    """Runs tasks in worker processes, first come first served.

    Args:
        target: "module:Class". Each worker makes one ``Class(init, memory)`` and calls it with each task.
        init: First argument of the class; must be picklable.
        num_workers: Processes, > 0.
        memory: Shared memory, handed to the class as a writable buffer; None: none.

    Attributes:
        num_workers: Processes.

    A worker that dies fails the task that it ran with `WorkerDied`, and is replaced.
    """

    def __init__(self, target: str, init: Any = None, *, num_workers: int, memory: SharedMemory | None = None) -> None:
        if num_workers < 1:
            raise ValueError(f"num_workers={num_workers} must be at least 1")
        self._make_worker: Callable[[], _Worker] = lambda: _Worker(target, init, memory)
        self.num_workers = num_workers
        self._waiting: deque[Job] = deque()
        self._lock = threading.RLock()  # the garbage collector may close a pool from anywhere
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        self._closed = False
        self._workers = [self._make_worker() for _ in range(num_workers)]
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        for worker in self._workers:
            self._selector.register(worker.connection, selectors.EVENT_READ, worker)
        self._thread = threading.Thread(target=self._dispatch, name="avloader-workers", daemon=True)
        self._thread.start()
        _open_pools.add(self)

    def submit(self, task: Any) -> Future[Any]:
        """Queue a task; the future holds its result or its exception."""
        future: Future[Any] = Future()
        self.run([_ForFuture(task, future)])
        return future

    def run(self, jobs: Iterable[Job]) -> None:
        """Queue jobs, first come first served.

        Raises:
            RuntimeError: If the pool is closed.
        """
        with self._lock:
            if self._closed:
                raise RuntimeError("the worker pool is closed")
            self._waiting.extend(jobs)
            self._wake()

    def map_unordered(self, tasks: Iterable[Any]) -> Iterator[tuple[Any, Future[Any]]]:
        """Each task with its finished future, as they finish; a bounded number of them is under way at a time."""
        done: deque[tuple[Any, Future[Any]]] = deque()
        finished = threading.Semaphore(0)
        remaining = iter(tasks)
        running = 0

        def start_one() -> bool:
            for task in remaining:
                future = self.submit(task)

                def note(future: Future[Any], task: Any = task) -> None:
                    done.append((task, future))
                    finished.release()

                future.add_done_callback(note)
                return True
            return False

        limit = 4 * _TASKS_PER_WORKER * len(self._workers)
        while running < limit and start_one():
            running += 1
        while running:
            finished.acquire()
            yield done.popleft()
            running -= not start_one()

    def close(self) -> None:
        """End the workers; tasks that have not finished are cancelled. Calling it twice is harmless."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._wake()
        _open_pools.discard(self)
        if threading.current_thread() is not self._thread:  # else the garbage collector called, and it ends by itself
            self._thread.join()

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # full: it will wake
            os.write(self._wake_write, b"x")

    def _dispatch(self) -> None:
        """The pool's thread: hands out tasks and takes results until the pool is closed."""
        try:
            while True:
                self._send_waiting()
                for key, _ in self._selector.select():
                    if key.data is not None:
                        self._receive(key.data)
                    else:
                        os.read(self._wake_read, 4096)
                        if self._closed:
                            return
        finally:
            self._selector.close()
            for worker in self._workers:
                worker.connection.close()
            for worker in self._workers:
                worker.end(timeout=2.0)
                for _, job in worker.sent:
                    job.end(None, WorkerDied("the worker pool was closed"))
            with self._lock:
                self._closed = True  # from here on nobody wakes this thread
                os.close(self._wake_read)
                os.close(self._wake_write)
            for job in self._waiting:
                job.end(None, CancelledError())

    def _send_waiting(self) -> None:
        while True:
            worker = min(self._workers, key=lambda worker: len(worker.sent))
            if len(worker.sent) >= _TASKS_PER_WORKER:
                return
            with self._lock:
                if not self._waiting:
                    return
                job = self._waiting.popleft()
            task = job.begin()
            if task is None:
                continue
            worker.sent.append((task, job))
            try:
                worker.connection.send_bytes(pickle.dumps(task))
            except OSError:  # it died since; `_receive` sees the end of its output and deals with its tasks
                return

    def _receive(self, worker: _Worker) -> None:
        try:
            is_error, result = pickle.loads(worker.connection.recv_bytes())
        except (EOFError, OSError):
            self._replace(worker)
            return
        _, job = worker.sent.popleft()
        if is_error:
            job.end(None, result)
        else:
            job.end(result, None)

    def _replace(self, worker: _Worker) -> None:
        self._selector.unregister(worker.connection)
        worker.end(timeout=2.0)
        code = worker.process.returncode
        cause = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        if worker.sent:
            _, job = worker.sent.popleft()
            job.end(None, WorkerDied(f"the worker process that read it ended with {cause}"))
        with self._lock:
            for task, job in reversed(worker.sent):  # it had not begun with these
                self._waiting.appendleft(_SecondTry(task, job))
        new = self._workers[self._workers.index(worker)] = self._make_worker()
        self._selector.register(new.connection, selectors.EVENT_READ, new)


_open_pools: weakref.WeakSet[WorkerPool] = weakref.WeakSet()


@atexit.register
def _close_open_pools() -> None:
    for pool in list(_open_pools):
        pool.close()


def _serve(fds: list[int]) -> None:
    """The worker's side: read tasks, run them, send results, until the parent closes the connection."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle; it ends us by closing the pipe
    connection = Connection(fds[0])
    memory = mmap.mmap(fds[1], 0) if len(fds) > 1 else None
    if memory is not None:
        os.close(fds[1])
    with contextlib.suppress(EOFError, OSError):
        target, init = pickle.loads(connection.recv_bytes())
        module, _, name = target.partition(":")
        server: Callable[[Any], Any]
        try:
            server = getattr(importlib.import_module(module), name)(init, memory)
        except Exception as error:
            server = _Broken(error)  # every task tells why, instead of a worker that dies again and again
        while True:
            message = connection.recv_bytes()
            try:
                answer = pickle.dumps((False, server(pickle.loads(message))))
            except Exception as error:
                answer = pickle.dumps((True, error))
            connection.send_bytes(answer)


class _Broken:
    """Stands in for a server that could not be made."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __call__(self, task: Any) -> Any:
        raise self._error
