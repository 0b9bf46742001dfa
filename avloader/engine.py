"""Executes batches of clips in order: lanes of DALI pipelines, each over a stretch of the plan.

NVDEC's reader drives one decoder engine of the GPU and knows its clips from the start, so batch k of a stretch goes to
lane k modulo the number of lanes, each lane has a file list of its own, and the lanes of the next stretch are made
while this one runs. With decoding on the CPU one lane suffices: workers decode, the lane runs the graph.

A lane whose reader fails, hangs or loses rows is given up, and what it has not delivered is decoded on the CPU, which
either delivers it or says which clip of which file cannot be read.
"""

from __future__ import annotations

import itertools
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from avloader.errors import DecodeError, SyncError
from avloader.lanes import Delivered, Lane, LaneFailedError
from avloader.pipeline import ClipPipeline, GraphOptions, write_file_list
from avloader.reading import ClipRead, ReadAhead, ReadPool, SlotLayout

__all__ = ["Engine", "ReaderOptions"]

_FIRST_STRETCH = 32  # batches of the first stretch: the first batch waits until all of its files are known
_LONGEST_STRETCH = 256  # later ones grow threefold up to this: it hides their making, and bounds their open files
_IN_FLIGHT = 2  # batches that DALI holds of each lane
_SHARED_BYTES = 2 * 2**30  # how much decoded material may wait for the graph

Batches = Sequence[tuple[int, Sequence[ClipRead]]]


@dataclass(frozen=True, slots=True)
class ReaderOptions:
    """How the NVDEC reader reads the clips.

    Attributes:
        num_frames: Frames that it reads of a clip.
        stride: Source frames between two that it reads.
        rearrange: Whether the clip's frames are picked from those.
        lanes: Readers side by side.
        timeout: Seconds without a batch after which a reader counts as hanging.
    """

    num_frames: int
    stride: int
    rearrange: bool
    lanes: int
    timeout: float

    @property
    def span(self) -> int:
        """Source frames from the first to the last that it reads."""
        return 1 + (self.num_frames - 1) * self.stride


class Engine:
    """Runs batches of clips through DALI.

    Args:
        graph: What to make of frames and sound.
        reader: NVDEC's options, or None to decode on the CPU.
        frame_size: (height, width) of the frames that the CPU decodes.
        batch_size: Clips of a full batch.
        device: Where the graph runs.
        device_id: Which GPU.
        num_workers: Processes that read.
        num_threads: Threads of DALI's CPU operators.

    Attributes:
        fallbacks: What NVDEC's readers failed at, as sentences.
    """

    def __init__(
        self,
        graph: GraphOptions,
        *,
        reader: ReaderOptions | None,
        frame_size: tuple[int, int],
        batch_size: int,
        device: Literal["cpu", "gpu"],
        device_id: int,
        num_workers: int,
        num_threads: int,
    ) -> None:
        self._graph, self._reader = graph, reader
        self._frames_shape = (graph.num_frames, *frame_size, 3)
        self._batch_size, self._device, self._device_id = batch_size, device, device_id
        self._num_workers, self._num_threads = num_workers, num_threads
        self._pool = self._make_pool(with_frames=reader is None)
        self.fallbacks: list[str] = []

    def close(self) -> None:
        """End the worker processes."""
        self._pool.close()

    def run(self, batches: Iterable[Sequence[ClipRead]], stopped: threading.Event) -> Iterator[Delivered]:
        """The batches, in order. Closing the iterator stops reading.

        Args:
            batches: What to deliver.
            stopped: Lets the iterator end soon when it is set, also while it waits for a batch.

        Raises:
            DecodeError, SyncError: If DALI fails, or loses rows, where the CPU decodes.
        """
        source = enumerate(batches)
        ahead = self._pool.read()
        stretches: list[_Stretch] = []  # the one that runs, and the next
        try:
            self._start(stretches, ahead, list(itertools.islice(source, _FIRST_STRETCH)))
            while stretches:
                yield from self._run(stretches, ahead, source, stopped)
                stretches.pop(0).close()
        finally:
            ahead.close()
            for stretch in stretches:
                stretch.close()

    def _run(
        self,
        stretches: list[_Stretch],
        ahead: ReadAhead,
        source: Iterator[tuple[int, Sequence[ClipRead]]],
        stopped: threading.Event,
    ) -> Iterator[Delivered]:
        """The batches of the first stretch; starts the next one when this one nears its end."""
        stretch = stretches[0]
        upcoming: list[tuple[int, Sequence[ClipRead]]] = []
        length = min(3 * len(stretch.batches), _LONGEST_STRETCH)
        time_to_start = max(len(stretch.batches) - 2 * _IN_FLIGHT * stretch.num_lanes, 0)
        for number in range(len(stretch.batches)):
            # Looked up bit by bit: some thousand clips at once would hold the training loop up.
            if number < time_to_start:
                upcoming += itertools.islice(source, min(length - len(upcoming), 4))
            elif number == time_to_start:
                upcoming += itertools.islice(source, length - len(upcoming))
                self._start(stretches, ahead, upcoming)
            yield self._take(stretch, number, stopped)

    def _take(self, stretch: _Stretch, number: int, stopped: threading.Event) -> Delivered:
        lane = stretch.lanes[number % stretch.num_lanes]
        is_nvdec = self._reader is not None and number % stretch.num_lanes not in stretch.rescued
        try:
            return lane.take(stopped, self._reader.timeout if self._reader and is_nvdec else None)
        except (LaneFailedError, SyncError) as failure:
            if isinstance(failure, SyncError) and not is_nvdec:
                raise
            if stopped.is_set() or not is_nvdec:
                raise DecodeError(f"DALI failed: {failure}") from failure
            self._rescue(stretch, number, failure)
            return self._take(stretch, number, stopped)

    def _start(self, stretches: list[_Stretch], ahead: ReadAhead, batches: Batches) -> None:
        """Set lanes to work on the next batches, if there are any."""
        if not batches:
            return
        ahead.add(batches)
        stretch = _Stretch(batches, ahead, min(self._reader.lanes if self._reader else 1, len(batches)))
        stretches.append(stretch)
        for number in range(stretch.num_lanes):
            stretch.lanes.append(self._lane(stretch, batches[number :: stretch.num_lanes], ahead, number))

    def _lane(self, stretch: _Stretch, batches: Batches, ahead: ReadAhead, number: int) -> Lane:
        def make() -> ClipPipeline:
            folder = Path(stretch.folder.name, str(number))
            return self._pipeline(batches, ahead, None if self._reader is None else folder)

        return Lane(make, device_id=self._device_id if self._device == "gpu" else None)

    def _pipeline(self, batches: Batches, ahead: ReadAhead, folder: Path | None) -> ClipPipeline:
        """A pipeline over `batches`, with NVDEC's reader if there is a folder for its file list."""
        file_list = None
        if folder is not None and self._reader is not None:
            folder.mkdir()
            file_list = folder / "file_list.txt"
            # The reader knows full batches only: a short one is filled up, and cut again by the lane.
            padded = [clip for _, batch in batches for clip in (*batch, *[batch[-1]] * (self._batch_size - len(batch)))]
            write_file_list(file_list, padded, num_frames=self._reader.span, links=folder)
        pipe = ClipPipeline(
            map(ahead.take, [index for index, _ in batches]),
            ahead.release,
            graph=self._graph,
            file_list=file_list,
            reader_frames=self._reader.num_frames if self._reader else 0,
            reader_stride=self._reader.stride if self._reader else 1,
            rearrange=self._reader.rearrange if self._reader else False,
            lazy_init=True,
            batch_size=self._batch_size,
            device=self._device,
            device_id=self._device_id,
            num_threads=self._num_threads,
            prefetch_queue_depth=_IN_FLIGHT,
        )
        pipe.build()
        return pipe

    def _rescue(self, stretch: _Stretch, number: int, failure: Exception) -> None:
        """Replace the lane whose turn it is by one that decodes on the CPU what is left of its batches."""
        lane = number % stretch.num_lanes
        batches = stretch.batches[number :: stretch.num_lanes]
        clip = batches[0][1][0]
        self.fallbacks.append(
            f"NVDEC's reader failed at one of {len(batches[0][1])} clips from row {clip.row} ({clip.media.path}) on: "
            f"{failure}; the CPU decodes {sum(len(clips) for _, clips in batches)} clips in its place"
        )
        stretch.lanes[lane].close()
        stretch.ahead.discard(number for number, _ in batches)
        pool = self._make_pool(with_frames=True)
        ahead = pool.read()
        ahead.add(batches)
        stretch.rescued[lane] = pool, ahead
        device_id = self._device_id if self._device == "gpu" else None
        stretch.lanes[lane] = Lane(lambda: self._pipeline(batches, ahead, None), device_id=device_id)

    def _make_pool(self, *, with_frames: bool) -> ReadPool:
        shape = self._frames_shape if with_frames else None
        lanes = self._reader.lanes if self._reader and not with_frames else 1
        needed = 2 * lanes * (_IN_FLIGHT + 1)  # what lanes hold ahead of their turn, those of the next stretch too
        fitting = _SHARED_BYTES // SlotLayout(self._batch_size, shape, self._graph.num_samples).num_bytes
        num_slots = min(max(fitting, _IN_FLIGHT + 1), 2 * needed) * self._batch_size
        return ReadPool(SlotLayout(num_slots, shape, self._graph.num_samples), num_workers=self._num_workers)


@dataclass(slots=True)
class _Stretch:
    """The lanes over some hundred batches, and the folder with their file lists."""

    batches: Batches
    ahead: ReadAhead
    num_lanes: int
    lanes: list[Lane] = field(default_factory=list)
    rescued: dict[int, tuple[ReadPool, ReadAhead]] = field(default_factory=dict)
    folder: tempfile.TemporaryDirectory[str] = field(
        default_factory=lambda: tempfile.TemporaryDirectory(prefix="avloader-")
    )

    def close(self) -> None:
        """End the lanes and remove the folder."""
        for lane in self.lanes:
            lane.stop()
        for _, ahead in self.rescued.values():
            ahead.close()
        for lane in self.lanes:
            lane.close()
        for pool, _ in self.rescued.values():
            pool.close()
        self.folder.cleanup()
