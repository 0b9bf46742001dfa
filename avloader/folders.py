"""A folder appears whole or not at all."""

from __future__ import annotations

import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["new_folder"]


@contextmanager
def new_folder(output: str) -> Iterator[str]:
    """A temporary folder that replaces the folder `output` when the block ends without an exception.

    What builds that were killed have left is removed; a folder that one of them had already moved away comes back.

    Args:
        output: Absolute path.
    """
    parent, name = os.path.split(output)
    os.makedirs(parent, exist_ok=True)
    prefix = os.path.join(parent, f".{name}.building-")
    for left in glob.glob(f"{glob.escape(prefix)}*"):
        _remove_if_dead(left, output)
    folder = tempfile.mkdtemp(prefix=prefix)
    new = os.path.join(folder, "new")
    try:
        # The lock dies with the process: how the next build knows whether anybody is still at work here.
        with open(os.path.join(folder, "lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            os.mkdir(new)  # not made by mkdtemp, so that it has the permissions that the user's mask asks for
            yield new
            if os.path.lexists(output):
                os.rename(output, os.path.join(folder, "old"))
            os.rename(new, output)
    finally:
        _remove_if_dead(folder, output)


def _remove_if_dead(folder: str, output: str) -> None:
    try:
        with open(os.path.join(folder, "lock"), "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            old = os.path.join(folder, "old")
            if os.path.lexists(old) and not os.path.lexists(output):
                os.rename(old, output)
            shutil.rmtree(folder)
    except (BlockingIOError, FileNotFoundError, PermissionError):
        return  # another build is at work in it or has just removed it, or it is another user's
