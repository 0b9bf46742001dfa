"""A track: one lane after another over the pieces that fall to it.

NVDEC's reader knows its clips from the start and opens all of their files then, so it gets some hundred at a time, and
the next lane is made while this one runs. The tracks do so at different times: otherwise the GPU's memory would have
to hold two lanes of each at once.

A lane whose reader fails, hangs or loses rows is given up, and the CPU decodes what it has not delivered: it either
delivers a clip or says which clip of which file cannot be read.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from avloader.errors import DecodeError, SyncError
from avloader.gathering import Horizon
from avloader.lanes import Lane, LaneFailedError
from avloader.pipeline import ClipPipeline
from avloader.reading import ReadAhead, ReadBatch, ReadPool
from avloader.schedule import Piece

__all__ = ["MakePipeline", "Track"]

_SECONDS_TO_START = 1.5  # what a lane needs until its first batch: the pipeline, and the files of its list

MakePipeline = Callable[[Sequence[Piece], ReadAhead, Path | None], ClipPipeline]


class Track:
    """Runs the pieces of one lane of a route, in order.

    Args:
        next_pieces: The next pieces that a lane should run, as many as one lane should get; none if none are known.
        ahead: Reads the pieces.
        make: Makes a pipeline over pieces; with a folder for its file list if NVDEC decodes.
        make_rescue_pool: Makes workers for what NVDEC's reader failed at.
        horizon: Which batches may be begun.
        stream: Where clips are copied into their batches, or None if they are not on a GPU.
        timeout: Seconds without a piece after which NVDEC's reader counts as hanging; None if the CPU decodes.
        report: Told, as a sentence, what NVDEC's reader failed at.
    """

    def __init__(
        self,
        next_pieces: Callable[[], list[Piece]],
        ahead: ReadAhead,
        make: MakePipeline,
        *,
        make_rescue_pool: Callable[[], ReadPool],
        horizon: Horizon,
        stream: torch.cuda.Stream | None,
        timeout: float | None,
        report: Callable[[str], None],
    ) -> None:
        self._next_pieces, self._ahead, self._make, self._horizon = next_pieces, ahead, make, horizon
        self._make_rescue_pool, self._stream, self._timeout = make_rescue_pool, stream, timeout
        self._report = report
        self._shifts: deque[_Shift] = deque()  # the one that runs, and the next
        self._leaving: list[_Shift] = []  # their lanes end by themselves
        self._last_take, self._pace = 0.0, 0.0  # when a piece was taken, and seconds from one to the next

    def prepare(self) -> None:
        """Make the next lane if it is time to."""
        self._leaving = [shift for shift in self._leaving if not shift.try_close()]
        if len(self._shifts) > 1:
            return
        if self._shifts:
            left = len(self._shifts[0].pieces)
            if not self._last_take or (left > 1 and left * self._pace > _SECONDS_TO_START):
                return
        pieces = self._next_pieces()
        if pieces:
            self._shifts.append(self._start(pieces))

    def take(self, stopped: threading.Event) -> tuple[Piece, ReadBatch]:
        """The next piece, whose clips are in their batches now, and what was read for it.

        Args:
            stopped: Ends the waiting when it is set.

        Raises:
            DecodeError, SyncError: If DALI fails, or loses rows, where the CPU decodes.
        """
        while not self._shifts or not self._shifts[0].pieces:
            if self._shifts:
                self._leaving.append(self._shifts.popleft())
            else:
                self.prepare()
        shift = self._shifts[0]
        read = self._take(shift, stopped)
        now = time.monotonic()
        if self._last_take:
            self._pace += (now - self._last_take - self._pace) / 4 if self._pace else now - self._last_take
        self._last_take = now
        return shift.pieces.popleft(), read

    def stop(self) -> None:
        """Let no lane take up another piece."""
        for shift in self._shifts:
            shift.lane.stop()

    def close(self) -> None:
        """End all lanes."""
        for shift in (*self._leaving, *self._shifts):
            shift.close()

    def _take(self, shift: _Shift, stopped: threading.Event) -> ReadBatch:
        is_nvdec = shift.folder is not None and shift.rescue is None
        try:
            return shift.lane.take(stopped, self._timeout if is_nvdec else None)
        except (LaneFailedError, SyncError) as failure:
            if isinstance(failure, SyncError) and not is_nvdec:
                raise
            if stopped.is_set() or not is_nvdec:
                raise DecodeError(f"DALI failed: {failure}") from failure
            self._rescue(shift, failure)
            return self._take(shift, stopped)

    def _start(self, pieces: list[Piece]) -> _Shift:
        folder = None if pieces[0].route is None else tempfile.TemporaryDirectory(prefix="avloader-")
        path = None if folder is None else Path(folder.name)
        return _Shift(pieces, self._lane(lambda: self._make(pieces, self._ahead, path), pieces), folder)

    def _lane(self, make: Callable[[], ClipPipeline], pieces: Sequence[Piece]) -> Lane:
        return Lane(make, pieces, self._horizon, stream=self._stream)

    def _rescue(self, shift: _Shift, failure: Exception) -> None:
        """Replace the lane by one that decodes on the CPU what is left of its pieces."""
        pieces = list(shift.pieces)
        clip = pieces[0].clips[0]
        self._report(
            f"NVDEC's reader failed at one of {len(pieces[0].clips)} clips from row {clip.row} ({clip.media.path}) on: "
            f"{failure}; the CPU decodes {sum(len(piece.clips) for piece in pieces)} clips in its place"
        )
        shift.lane.close()
        self._ahead.discard(piece.number for piece in pieces)
        pool = self._make_rescue_pool()
        ahead = pool.read()
        ahead.add([(piece.number, piece.clips) for piece in pieces], with_frames=True)
        shift.rescue = pool, ahead
        shift.lane = self._lane(lambda: self._make(pieces, ahead, None), pieces)


class _Shift:
    """The time of one lane: its pieces that were not taken, and what has to be cleaned up after it."""

    def __init__(self, pieces: list[Piece], lane: Lane, folder: tempfile.TemporaryDirectory[str] | None) -> None:
        self.pieces, self.lane, self.folder = deque(pieces), lane, folder
        self.rescue: tuple[ReadPool, ReadAhead] | None = None

    def try_close(self) -> bool:
        """Clean up if the lane has ended by itself."""
        if self.lane.is_running:
            return False
        self.close()
        return True

    def close(self) -> None:
        """End the lane and clean up."""
        self.lane.stop()
        if self.rescue is not None:
            self.rescue[1].close()
        self.lane.close()
        if self.rescue is not None:
            self.rescue[0].close()
        if self.folder is not None:
            self.folder.cleanup()
