"""What the workers run in test_workers.py: they import it by name, as they do the package's own modules."""

from __future__ import annotations

import mmap
import os
import signal
import sys
import time
from typing import Any

import numpy as np

from avloader.errors import DecodeError


class Doer:
    """Does what a task says."""

    def __init__(self, init: Any, memory: mmap.mmap | None) -> None:
        self.init, self.memory = init, memory

    def __call__(self, task: tuple[str, Any]) -> Any:
        verb, value = task
        if verb == "init":
            return self.init
        if verb == "echo":
            return value
        if verb == "sleep":
            time.sleep(value)
            return value
        if verb == "raise":
            raise DecodeError("spoilt", path="a b.mp4", row=value, remedy="Cook another")
        if verb == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if verb == "write":
            np.frombuffer(self.memory, np.uint8)[value] = 7
            return os.getpid()
        if verb == "modules":
            return sorted(name.split(".")[0] for name in sys.modules)
        if verb == "open files":
            return len(os.listdir("/proc/self/fd"))
        raise ValueError(verb)


class Broken:
    """Cannot be made."""

    def __init__(self, init: Any, memory: mmap.mmap | None) -> None:
        raise RuntimeError("no such codec")


class Together:
    """Does what each of some tasks says; a name says who came together."""

    def __init__(self, init: Any, memory: mmap.mmap | None) -> None:
        pass

    def __call__(self, tasks: list[Any]) -> list[Any]:
        return [self._do(task, tasks) for task in tasks]

    def _do(self, task: Any, tasks: list[Any]) -> Any:
        if task == "sleep":
            time.sleep(0.3)
            return "slept"
        if task == "die":
            os._exit(9)
        if isinstance(task, tuple):
            verb, value = task
            if verb == "die once":
                try:
                    open(value, "x").close()
                except FileExistsError:
                    return "alive"
                os._exit(9)
            return LookupError(value) if verb == "fail" else value
        return "".join(sorted(name for name in tasks if isinstance(name, str) and len(name) == 1)) or task
