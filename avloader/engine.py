"""Executes batches of clips in order: lanes of DALI pipelines, each over a stretch of the plan.

NVDEC's reader drives one decoder engine of the GPU and knows its clips from the start, so batch k of a stretch goes to
lane k modulo the number of lanes, each lane has a file list of its own, and the lanes of the next stretch are made
while this one runs. With decoding on the CPU one lane suffices: workers decode, the lane runs the graph.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils.dlpack import from_dlpack

from avloader.errors import DecodeError
from avloader.pipeline import ClipPipeline, GraphOptions, write_file_list
from avloader.reading import ClipRead, ReadAhead, ReadBatch, SlotLayout
from avloader.workers import SharedMemory, WorkerPool

__all__ = ["Delivered", "Engine", "ReaderOptions"]

_STRETCH_BATCHES = 256  # batches of a stretch: long enough to hide its making, short enough to bound its open files
_IN_FLIGHT = 2  # batches that DALI holds of each lane
_SHARED_BYTES = 2 * 2**30  # how much decoded material may wait for the graph


@dataclass(frozen=True, slots=True)
class ReaderOptions:
    """How the NVDEC reader reads the clips.

    Attributes:
        num_frames: Frames that it reads of a clip.
        stride: Source frames between two that it reads.
        rearrange: Whether the clip's frames are picked from those.
        lanes: Readers side by side.
    """

    num_frames: int
    stride: int
    rearrange: bool
    lanes: int

    @property
    def span(self) -> int:
        """Source frames from the first to the last that it reads."""
        return 1 + (self.num_frames - 1) * self.stride


@dataclass(frozen=True, slots=True)
class Delivered:
    """A batch that left the graph.

    Attributes:
        read: What was read for it.
        tensors: The graph's outputs by name, one entry a clip, also for the clips that failed.
        ready: On a GPU: the event after which the tensors hold their content.
    """

    read: ReadBatch
    tensors: dict[str, torch.Tensor]
    ready: torch.cuda.Event | None


class Engine:
    """Runs batches of clips through DALI.

    Args:
        graph: What to make of frames and sound.
        reader: NVDEC's options, or None to decode on the CPU.
        frames_shape: (F, H, W, 3) of a clip as decoded on the CPU; None with NVDEC.
        batch_size: Clips of a full batch.
        device: Where the graph runs.
        device_id: Which GPU.
        num_workers: Processes that read.
        num_threads: Threads of DALI's CPU operators.
    """

    def __init__(
        self,
        graph: GraphOptions,
        *,
        reader: ReaderOptions | None,
        frames_shape: tuple[int, int, int, int] | None,
        batch_size: int,
        device: Literal["cpu", "gpu"],
        device_id: int,
        num_workers: int,
        num_threads: int,
    ) -> None:
        self._graph, self._reader = graph, reader
        self._batch_size, self._device, self._device_id = batch_size, device, device_id
        self._num_threads = num_threads
        lanes = reader.lanes if reader else 1
        fitting = _SHARED_BYTES // SlotLayout(batch_size, frames_shape, graph.num_samples).num_bytes
        # Lanes take their first batches ahead of their turn, those of the next stretch too.
        needed = 2 * lanes * _IN_FLIGHT + 1
        batches = min(max(fitting, needed), 2 * needed)
        self._layout = SlotLayout(batches * batch_size, frames_shape, graph.num_samples)
        self._memory = SharedMemory(self._layout.num_bytes)
        self._pool = WorkerPool(
            "avloader.reading:ClipReader", self._layout, num_workers=num_workers, memory=self._memory
        )
        self._stream = torch.cuda.Stream(device_id) if device == "gpu" else None

    def close(self) -> None:
        """End the worker processes."""
        self._pool.close()
        self._memory.close()

    def run(self, batches: Iterable[Sequence[ClipRead]]) -> Iterator[Delivered]:
        """The batches, in order. Closing the iterator stops reading.

        Raises:
            DecodeError: If the GPU's reader fails.
            SyncError: If it delivers other rows than it was asked for.
        """
        for_reading, for_lanes = itertools.tee(batches)
        ahead = ReadAhead(self._pool, self._layout, self._memory, for_reading)
        try:
            yield from self._run(ahead, enumerate(for_lanes))
        finally:
            ahead.close()

    def _run(self, ahead: ReadAhead, batches: Iterator[tuple[int, Sequence[ClipRead]]]) -> Iterator[Delivered]:
        following = self._next_stretch(ahead, batches)
        while following is not None:
            stretch, following = following, None
            with stretch:
                ahead_of_end = max(stretch.num_batches - 2 * _IN_FLIGHT * len(stretch.lanes), 0)
                for number in range(stretch.num_batches):
                    lane = stretch.lanes[number % len(stretch.lanes)]
                    delivered = self._collect(lane)
                    if number == ahead_of_end:
                        following = self._next_stretch(ahead, batches)
                    yield delivered

    def _next_stretch(self, ahead: ReadAhead, batches: Iterator[tuple[int, Sequence[ClipRead]]]) -> _Stretch | None:
        """Lanes for the next batches, already at work; None if there are no more."""
        own = list(itertools.islice(batches, _STRETCH_BATCHES))
        if not own:
            return None
        folder = tempfile.TemporaryDirectory(prefix="avloader-")
        num_lanes = min(self._reader.lanes if self._reader else 1, len(own))
        lanes = []
        for lane in range(num_lanes):
            indices = [index for index, _ in own[lane::num_lanes]]
            lanes.append(
                self._lane(ahead, indices, [clips for _, clips in own[lane::num_lanes]], Path(folder.name, str(lane)))
            )
        for pipe in lanes:
            pipe.schedule_run()
        return _Stretch(folder, lanes, len(own))

    def _lane(
        self, ahead: ReadAhead, indices: Sequence[int], batches: Sequence[Sequence[ClipRead]], folder: Path
    ) -> ClipPipeline:
        file_list: Path | None = None
        if self._reader is not None:
            folder.mkdir()
            file_list = folder / "file_list.txt"
            # The reader knows full batches only: a short one is filled up, and cut again in `_collect`.
            padded = [clip for batch in batches for clip in (*batch, *[batch[-1]] * (self._batch_size - len(batch)))]
            write_file_list(file_list, padded, num_frames=self._reader.span, links=folder)
        pipe = ClipPipeline(
            map(ahead.take, indices),
            ahead.release,
            graph=self._graph,
            file_list=file_list,
            reader_frames=self._reader.num_frames if self._reader else 0,
            reader_stride=self._reader.stride if self._reader else 1,
            rearrange=self._reader.rearrange if self._reader else False,
            batch_size=self._batch_size,
            device=self._device,
            device_id=self._device_id,
            num_threads=self._num_threads,
            prefetch_queue_depth=_IN_FLIGHT,
        )
        pipe.build()
        return pipe

    def _collect(self, lane: ClipPipeline) -> Delivered:
        """The lane's next batch; sets the lane to work on the one after."""
        read = lane.oldest_batch
        try:
            outputs = lane.share_outputs()
        except RuntimeError as error:
            rows = ", ".join(f"{clip.row} ({clip.media.path})" for clip in read.clips[:3])
            raise DecodeError(
                f"DALI's video reader failed at one of the rows {rows} ...: {str(error).splitlines()[-1][:200]}",
                remedy='Use decode="cpu" to find the file, or run `avloader check`',
            ) from error
        tensors, ready = self._to_torch(outputs, len(read.clips))
        lane.release_outputs()
        lane.schedule_run()
        return Delivered(read, tensors, ready)

    def _to_torch(
        self, outputs: Sequence[Any], num_clips: int
    ) -> tuple[dict[str, torch.Tensor], torch.cuda.Event | None]:
        names = self._graph.output_names[:-1]  # the rows were compared already
        tensors = {
            name: from_dlpack(output.as_tensor())[:num_clips] for name, output in zip(names, outputs, strict=False)
        }
        if self._stream is None:
            return tensors, None
        # DALI's memory may be used again as soon as the last reference goes, whatever the GPU still has to do with it;
        # PyTorch's allocator waits for the streams that it was told of.
        with torch.cuda.stream(self._stream):
            copies = {name: tensor.clone() for name, tensor in tensors.items()}
            ready = torch.cuda.Event()
            ready.record()
        ready.synchronize()
        return copies, ready


@dataclass(frozen=True, slots=True)
class _Stretch:
    """The lanes over some hundred batches, and the folder with their file lists."""

    folder: tempfile.TemporaryDirectory[str]
    lanes: list[ClipPipeline]
    num_batches: int

    def __enter__(self) -> None:
        return None

    def __exit__(self, *exception: object) -> None:
        self.lanes.clear()
        self.folder.cleanup()
