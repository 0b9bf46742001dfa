"""Threads that work on clips side by side on the CPU, each with one thread of PyTorch's."""

from __future__ import annotations

import functools
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import torch

__all__ = ["workers"]


def workers() -> ThreadPoolExecutor:
    """The threads, as many as PyTorch uses for one operation.

    PyTorch splits each operation among its own threads and waits for all of them: operations on single clips take
    microseconds, and where other processes keep the cores busy each wait costs milliseconds.
    """
    return _workers(torch.get_num_threads(), os.getpid())


@functools.cache
def _workers(num_threads: int, process: int) -> ThreadPoolExecutor:
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="avloader-clips")
    everyone = threading.Barrier(num_threads + 1)

    def start() -> None:
        torch.set_num_threads(1)  # of this thread, and of those that are still to start
        torch.get_num_threads()  # a thread takes the number over when it first asks for it
        everyone.wait()

    for _ in range(num_threads):
        pool.submit(start)
    everyone.wait()
    torch.set_num_threads(num_threads)  # of those again
    return pool
