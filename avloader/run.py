"""A run: batches are made ahead of the training loop, in a thread of their own, until the loader is closed."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections import deque
from collections.abc import Iterator

import torch

from avloader.engine import Engine
from avloader.feed import PlannedBatch
from avloader.finishing import Finishing, Made, finish
from avloader.reading import ClipRead

__all__ = ["Resources", "Run"]

_BATCHES_READY = 2  # finished batches that wait for the training loop
_BATCHES_KEPT = 1  # of those that were handed over
_BATCHES_LEAVING = 2  # that wait to be freed


class Run:
    """Batches of epoch after epoch: made in a thread of their own, taken by the training loop.

    Attributes:
        next: The epoch, and the position in it, that the next pass can begin at; None while there is a pass.
    """

    def __init__(
        self,
        engine: Engine,
        batches: Iterator[PlannedBatch],
        start: tuple[int, int],
        device: torch.device,
        finishing: Finishing,
    ) -> None:
        self.next: tuple[int, int] | None = start
        self._finishing = finishing
        self._device = device if device.type == "cuda" else None
        self._stream: torch.cuda.Stream | None = None
        self._use_stream()
        self._ready: queue.Queue[Made | Exception | None] = queue.Queue(_BATCHES_READY)
        # To free a batch on a GPU takes longer than to hand one over: neither the training loop's thread does it, nor
        # the one that makes batches.
        self._kept: deque[Made] = deque()
        self._leaving: queue.Queue[Made | None] = queue.Queue(_BATCHES_LEAVING)
        self._freeing = threading.Thread(target=self._free, name="avloader-free", daemon=True)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(engine, batches), name="avloader", daemon=True)
        self._freeing.start()
        self._thread.start()

    def epoch(self) -> Iterator[Made]:
        """What is left of the epoch that `next` names."""
        self.next = None
        while True:
            item = self._ready.get()
            if item is None:
                return
            if isinstance(item, Exception):
                raise item
            planned = item.planned
            if planned.is_last:
                self.next = planned.epoch + 1, 0
            stream = self._use_stream()
            if item.batch is not None and stream is not None and stream != item.stream:
                item.batch.record_stream(stream)
            if stream is not None:
                self._kept.append(item)
            yield item
            if planned.is_last:
                return

    def _use_stream(self) -> torch.cuda.Stream | None:
        """The stream of the training loop, whose thread this is called in."""
        if self._device is not None:
            self._stream = torch.cuda.current_stream(self._device)
        return self._stream

    @property
    def is_stopped(self) -> bool:
        """Whether it was closed."""
        return self._stopped.is_set()

    def close(self) -> None:
        """Stop the thread and wait for it, and let whoever iterates come to an end; calling it twice is harmless."""
        self._stopped.set()
        if threading.current_thread().name.startswith("avloader"):
            return  # the garbage collector called from one of the loader's own threads, for which others would wait
        self._thread.join()
        self._freeing.join()
        self._kept.clear()
        with contextlib.suppress(queue.Empty):
            while True:
                self._ready.get_nowait()
        self._ready.put(None)

    def _work(self, engine: Engine, batches: Iterator[PlannedBatch]) -> None:
        pending: deque[PlannedBatch] = deque()

        def reads() -> Iterator[list[ClipRead]]:
            for batch in batches:
                pending.append(batch)
                yield batch.reads

        try:
            with contextlib.closing(engine.run(reads(), self._stopped)) as run:
                for gathered in run:
                    while len(self._kept) > _BATCHES_KEPT:
                        self._leaving.put(self._kept.popleft())
                    # For the training loop's stream as it was: if the loop did it, it would hand this thread Python's
                    # lock just when it wants to go on.
                    stream = self._stream
                    if not self._put(finish(pending.popleft(), gathered, engine.stream, stream, self._finishing)):
                        return
            self._put(None)
        except Exception as error:
            self._put(error)
        finally:
            self._leaving.put(None)

    def _free(self) -> None:
        while self._leaving.get() is not None:
            pass

    def _put(self, item: Made | Exception | None) -> bool:
        while not self._stopped.is_set():
            with contextlib.suppress(queue.Full):
                self._ready.put(item, timeout=0.1)
                return True
        return False


class Resources:
    """What has to be ended when a loader is closed or goes: knows nothing of the loader, so that it can go."""

    def __init__(self) -> None:
        self.engine: Engine | None = None
        self.run: Run | None = None

    def stop_run(self) -> None:
        """End what is under way."""
        if self.run is not None:
            self.run.close()
        self.run = None

    def close(self) -> None:
        """End everything; the engine can be made anew."""
        self.stop_run()
        if self.engine is not None:
            self.engine.close()
            self.engine = None
