"""Lanes: DALI pipelines that work side by side, each in a thread of its own."""

from __future__ import annotations

import contextlib
import ctypes
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.dlpack import from_dlpack

from avloader.errors import AVLoaderError, SyncError
from avloader.gathering import Horizon, fill
from avloader.pipeline import ClipPipeline
from avloader.reading import ReadBatch
from avloader.schedule import Piece

__all__ = ["Lane", "LaneFailedError"]

_READY = 1  # finished batches that wait in a lane for their turn
_PATIENCE = 10.0  # seconds that a closing lane has to finish what it is at


class LaneFailedError(Exception):
    """The GPU's reader failed or hangs; what the lane has not delivered has to be had in another way."""


class Lane:
    """Runs one pipeline to its end, and puts the clips of its pieces into their batches.

    Args:
        make: Makes the pipeline; called in the lane's thread.
        pieces: What it runs.
        horizon: Which batches it may put clips into.
        stream: Where the outputs are copied, or None if they are not on a GPU. One for all lanes: PyTorch gives memory
            that was freed out again on the same stream only, and what one lane copies after another is the later.
    """

    def __init__(
        self,
        make: Callable[[], ClipPipeline],
        pieces: Sequence[Piece],
        horizon: Horizon,
        *,
        stream: torch.cuda.Stream | None,
    ) -> None:
        self._pieces, self._horizon = pieces, horizon
        self._ready: queue.Queue[ReadBatch | Exception] = queue.Queue(_READY)
        self._stopped = threading.Event()
        self._filling = threading.Lock()  # held while it may write into batches, which ends for ever if it hangs
        self._stream = stream
        self._pipe: ClipPipeline | None = None
        self._waits_since: float | None = None  # when it began to wait for DALI, if it does
        self._hangs = False
        self._thread = threading.Thread(target=self._work, args=(make,), name="avloader-lane", daemon=True)
        self._thread.start()

    def take(self, stopped: threading.Event, timeout: float | None) -> ReadBatch:
        """What was read for the next piece, whose clips are in their batches now.

        Args:
            stopped: Ends the waiting when it is set.
            timeout: Seconds after which the reader counts as hanging; None: never.

        Raises:
            LaneFailedError: If DALI fails, delivers nothing for so long, or the waiting was ended.
            AVLoaderError: If the rows that it read are not those that it was asked for.
        """
        while not stopped.is_set():
            with contextlib.suppress(queue.Empty):
                item = self._ready.get(timeout=0.2)
                if isinstance(item, Exception):
                    raise item
                return item
            since = self._waits_since
            if timeout is not None and since is not None and time.monotonic() - since > timeout:
                with self._filling:
                    self._hangs = True
                raise LaneFailedError(f"no batch came for {timeout:g} seconds")
        raise LaneFailedError("it was stopped")

    @property
    def is_running(self) -> bool:
        """Whether its thread is at work."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Take no further batch; `close` waits for the one that is under way."""
        self._stopped.set()

    def close(self) -> None:
        """Stop the thread and destroy the pipeline; a pipeline that hangs is left alone for ever."""
        self.stop()
        self._thread.join(0 if self._hangs else _PATIENCE)
        pipe = self._pipe
        if self._thread.is_alive() and pipe is not None:
            self._hangs = True
            _leave_alone(pipe)

    def _work(self, make: Callable[[], ClipPipeline]) -> None:
        num_come = 0  # pieces that came out of DALI
        try:
            self._pipe = pipe = make()
            own_stream = None if self._stream is None else torch.cuda.Stream(self._stream.device)
            pipe.schedule_run()
            # One batch is waited for even if nobody wants it any more: the reader needs its file list until then.
            while pipe.has_batch and not (num_come and self._stopped.is_set()):
                read, sound, drawn = pipe.oldest_batch, pipe.oldest_sound, pipe.oldest_draws
                self._waits_since = time.monotonic()
                outputs = pipe.share_outputs(own_stream)
                self._waits_since = None
                parts = self._pieces[num_come].parts
                num_come += 1
                if not self._horizon.wait(parts[0].batch.number, self._stopped):
                    return
                with torch.cuda.stream(own_stream):  # DALI may first have to gather a batch
                    views = _views(pipe.output_names, outputs)
                with self._filling, torch.cuda.stream(self._stream):  # on the default one it would wait for the model
                    if self._hangs:
                        return
                    if own_stream is not None and self._stream is not None:
                        self._stream.wait_stream(own_stream)
                    fill(parts, views | drawn)
                    # DALI's memory may be used again as soon as the last reference goes, whatever the GPU still has to
                    # do: for that both of these wait.
                    if sound is not None:
                        _compare_sound(views["audio"], sound, read)
                    elif self._stream is not None:
                        self._stream.synchronize()
                del views
                pipe.release_outputs()
                del outputs
                self._put(read)
                if not self._stopped.is_set():
                    pipe.schedule_run()
        except AVLoaderError as error:
            self._put(error)
        except Exception as error:  # whatever DALI raises, the engine has to hear of it
            failure = LaneFailedError(str(error).strip().splitlines()[-1][:200])
            failure.__cause__ = error
            self._put(failure)
        finally:
            self._end_pipe(has_failed=not num_come)

    def _end_pipe(self, *, has_failed: bool) -> None:
        pipe, self._pipe = self._pipe, None
        if pipe is None:
            return
        if self._hangs or (has_failed and pipe.uses_reader):
            _leave_alone(pipe)  # a reader that died while it opened its files would be waited for without end
        else:
            pipe.shut_down()
            _give_back_memory()

    def _put(self, item: ReadBatch | Exception) -> None:
        while not self._stopped.is_set():
            with contextlib.suppress(queue.Full):
                self._ready.put(item, timeout=0.1)
                return


def _give_back_memory() -> None:
    """Have the C library give back what it holds for nothing: every thread of every pipeline had a heap of its own."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
    if trim is not None:
        trim(0)


def _leave_alone(pipe: ClipPipeline) -> None:
    """Keep the pipeline for ever: its destructor would wait for its reader, at the latest when Python ends."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(pipe))


def _views(names: list[str], outputs: tuple[Any, ...]) -> dict[str, torch.Tensor]:
    """DALI's outputs, but for the rows."""
    return {name: from_dlpack(output.as_tensor()) for name, output in zip(names[:-1], outputs, strict=False)}


def _compare_sound(audio: torch.Tensor, sound: npt.NDArray[np.float32] | torch.Tensor, read: ReadBatch) -> None:
    """Check that the sound that came out of DALI is the sound that was read for these clips.

    Raises:
        SyncError: If it is not: the memory of the batch was overwritten.
    """
    # On the CPU, where one copy is all that PyTorch has to do: its threads take longer to wake than this takes.
    expected = sound.cpu().numpy() if isinstance(sound, torch.Tensor) else sound
    got = audio.cpu().numpy()[: len(read.clips)]
    same = (got.view(np.int32) == expected.view(np.int32)).all(axis=1)  # as bits: NaN equals itself
    for clip, is_same in zip(read.clips, same.tolist(), strict=True):
        if not is_same:
            raise SyncError(
                "the sound of the row was overwritten while it was under way in DALI",
                path=clip.media.path,
                row=clip.row,
                remedy='Use decode="cpu"',
            )
