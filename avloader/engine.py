"""Executes batches of clips in order: tracks of DALI pipelines side by side, on the GPU's decoder engines and the CPU.

The clips of a batch may take several ways (see `schedule`); the lanes put them together into batches again (see
`gathering`), and here each batch is waited for.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from avloader.gathering import Gathering, Horizon
from avloader.pipeline import ClipPipeline, GraphOptions, write_file_list
from avloader.reading import ClipRead, ReadAhead, ReadPool, Route, SlotLayout
from avloader.schedule import Piece, RouteOptions, Schedule
from avloader.tracks import Track

__all__ = ["Engine", "ReaderOptions"]

_FIRST_CLIPS = 192  # of the first lanes: the first batch waits until all of their files are known
_LONGEST_CLIPS = 1024  # of later ones: making and ending them holds the others up, and their files stay open
_CPU_BATCHES = 64  # that a lane without NVDEC runs; nothing but the pipeline has to be made
_PULLED_PER_BATCH = 2  # looked up bit by bit: some thousand clips at once would hold the training loop up
_IN_FLIGHT = 2  # pieces that DALI holds of each lane
_BEGUN_BATCHES = 2  # batches that may be begun besides those that one piece of every lane makes
_SHARED_BYTES = 2 * 2**30  # how much decoded material may wait for the graph
_SOUND_SLOTS = 1024  # at least so many clips' sound is read ahead where NVDEC decodes
_RESCUE_WORKERS = 4  # most processes that decode what one reader failed at


@dataclass(frozen=True, slots=True)
class ReaderOptions:
    """How the NVDEC reader reads the clips.

    Attributes:
        num_frames: Frames that it reads of a clip.
        stride: Source frames between two that it reads.
        rearrange: Whether the clip's frames are picked from those.
        timeout: Seconds without a piece after which a reader counts as hanging.
    """

    num_frames: int
    stride: int
    rearrange: bool
    timeout: float

    @property
    def span(self) -> int:
        """Source frames from the first to the last that it reads."""
        return 1 + (self.num_frames - 1) * self.stride


class Engine:
    """Runs batches of clips through DALI.

    Args:
        graph: What to make of frames and sound.
        routes: The ways that clips may take; the CPU's is always among them.
        reader: How NVDEC reads.
        frame_size: (height, width) of the frames that the CPU decodes.
        batch_size: Clips of a full batch.
        device: Where the graph runs.
        device_id: Which GPU.
        num_workers: Processes that read.
        num_threads: Threads of DALI's CPU operators.

    Attributes:
        stream: What is delivered was made on it, and is to be used on it; None where the graph runs on the CPU.
        fallbacks: What NVDEC's readers failed at, as sentences.
    """

    def __init__(
        self,
        graph: GraphOptions,
        *,
        routes: Mapping[Route, RouteOptions],
        reader: ReaderOptions,
        frame_size: tuple[int, int],
        batch_size: int,
        device: Literal["cpu", "gpu"],
        device_id: int,
        num_workers: int,
        num_threads: int,
    ) -> None:
        self._graph, self._routes, self._reader = graph, routes, reader
        self._frames_shape = (graph.num_frames, graph.picture.num_channels, *frame_size)
        self._batch_size, self._device, self._device_id = batch_size, device, device_id
        self._num_workers, self._num_threads = num_workers, num_threads
        lanes = [options for route, options in routes.items() if route is not None for _ in range(options.num_lanes)]
        self._clips_ahead = max(len(lanes) * _LONGEST_CLIPS, _CPU_BATCHES * batch_size)
        self._first_clips = len(lanes) * _FIRST_CLIPS or self._clips_ahead
        at_a_time = sum(options.num_lanes * options.piece_clips for options in routes.values())
        self._num_begun = -(-at_a_time // batch_size) + _BEGUN_BATCHES
        # Twice what lanes hold of their pieces, and what waits for pieces of other lanes.
        sound_slots = sum(2 * (_IN_FLIGHT + 2) * options.piece_clips for options in lanes) + 16 * batch_size
        num_slots = batch_size * 8 * (_IN_FLIGHT + 1)
        if graph.num_frames:
            layout = self._layout(num_slots, max(sound_slots, _SOUND_SLOTS) if lanes else 0)
        else:
            layout = self._layout(0, num_slots)
        self._pool = ReadPool(layout, num_workers=num_workers)
        self.stream = torch.cuda.Stream(device_id) if device == "gpu" else None
        self.fallbacks: list[str] = []

    def close(self) -> None:
        """End the worker processes, and give back the GPU's memory that nobody uses."""
        self._pool.close()
        if self._device == "gpu":
            from nvidia.dali import backend

            backend.ReleaseUnusedMemory()

    def run(self, batches: Iterable[Sequence[ClipRead]], stopped: threading.Event) -> Generator[Gathering]:
        """The batches, in order. Closing the iterator stops reading.

        Args:
            batches: What to deliver.
            stopped: Lets the iterator end soon when it is set, also while it waits for a batch.

        Raises:
            DecodeError, SyncError: If DALI fails, or loses rows, where the CPU decodes.
        """
        ahead = self._pool.read()

        def announce(piece: Piece) -> None:
            with_frames = piece.route is None and self._graph.num_frames > 0
            ahead.add([(piece.number, piece.clips)], with_frames=with_frames)

        schedule = Schedule(
            batches,
            routes=self._routes,
            route_of=_route_of,
            batch_size=self._batch_size,
            announce=announce,
        )
        horizon = Horizon(self._num_begun)
        tracks = {
            (route, lane): self._track(schedule, route, lane, ahead, horizon)
            for route, options in self._routes.items()
            for lane in range(options.num_lanes)
        }
        try:
            for num_clips in (self._first_clips, self._clips_ahead):  # the first lanes start before the rest is known
                while schedule.clips_ahead < num_clips and not stopped.is_set() and schedule.pull():
                    pass
                for track in tracks.values():
                    track.prepare()
            while True:
                for track in tracks.values():
                    track.prepare()
                num_pulled = 0
                while schedule.clips_ahead < self._clips_ahead and num_pulled < _PULLED_PER_BATCH and schedule.pull():
                    num_pulled += 1
                scheduled = schedule.next()
                if scheduled is None:
                    return
                horizon.move(scheduled.batch.number)
                for piece in scheduled.pieces:
                    while not piece.is_settled:
                        taken, read = tracks[piece.route, piece.lane].take(stopped)
                        taken.settle(read)
                yield scheduled.batch
        finally:
            for track in tracks.values():
                track.stop()
            ahead.close()
            for track in tracks.values():
                track.close()

    def _track(self, schedule: Schedule, route: Route, lane: int, ahead: ReadAhead, horizon: Horizon) -> Track:
        num_lanes = self._routes[route].num_lanes
        lengths = [_FIRST_CLIPS, _FIRST_CLIPS + (_LONGEST_CLIPS - _FIRST_CLIPS) * (lane + 1) // num_lanes]
        if route is None:
            lengths = []

        def next_pieces() -> list[Piece]:
            length = lengths[0] if lengths else _LONGEST_CLIPS if route else _CPU_BATCHES * self._batch_size
            pieces = schedule.take(route, lane, length)
            if pieces:
                del lengths[:1]
            return pieces

        def make(pieces: Sequence[Piece], ahead: ReadAhead, folder: Path | None) -> ClipPipeline:
            return self._pipeline(pieces, ahead, folder, self._routes[route].piece_clips)

        return Track(
            next_pieces,
            ahead,
            make,
            make_rescue_pool=self._make_rescue_pool,
            horizon=horizon,
            stream=self.stream,
            timeout=None if route is None else self._reader.timeout,
            report=self.fallbacks.append,
        )

    def _pipeline(
        self, pieces: Sequence[Piece], ahead: ReadAhead, folder: Path | None, piece_clips: int
    ) -> ClipPipeline:
        """A pipeline over `pieces`, with NVDEC's reader if there is a folder for its file list."""
        file_list = None
        if folder is not None:
            file_list = folder / "file_list.txt"
            # The reader knows full batches only: a short piece is filled up, and cut again by the lane. It also reads
            # one batch further than it is asked to: one clip there, which DALI repeats, not a piece from the beginning.
            padded = [clip for piece in pieces for clip in _padded(piece.clips, piece_clips)]
            write_file_list(file_list, [*padded, padded[-1]], num_frames=self._reader.span, links=folder)
        pipe = ClipPipeline(
            map(ahead.take, [piece.number for piece in pieces]),
            ahead.release,
            graph=self._graph,
            file_list=file_list,
            reader_frames=self._reader.num_frames,
            reader_stride=self._reader.stride,
            rearrange=self._reader.rearrange,
            lazy_init=True,
            batch_size=piece_clips,
            device=self._device,
            device_id=self._device_id,
            num_threads=self._num_threads,
            prefetch_queue_depth=_IN_FLIGHT,
        )
        pipe.build()
        return pipe

    def _make_rescue_pool(self) -> ReadPool:
        layout = self._layout(self._batch_size * 2 * (_IN_FLIGHT + 1), 0)
        return ReadPool(layout, num_workers=min(self._num_workers, _RESCUE_WORKERS))

    def _layout(self, num_slots: int, num_sound_slots: int) -> SlotLayout:
        shape, num_samples = self._frames_shape, self._graph.num_read_samples
        fitting = _SHARED_BYTES // SlotLayout(shape, num_samples, num_slots=1, num_sound_slots=0).slot_bytes
        fitting = max(fitting, self._batch_size * (_IN_FLIGHT + 1))
        return SlotLayout(
            shape,
            num_samples,
            num_slots=min(num_slots, fitting),
            num_sound_slots=num_sound_slots if num_slots else min(num_sound_slots, fitting),
            picture=self._graph.picture,
        )


def _route_of(clip: ClipRead) -> Route:
    """The clip's route; the CPU's if the file is not what it was, since that one names it, and NVDEC's would fail."""
    if clip.route is None:
        return None
    try:
        now = os.stat(clip.media.path)
    except OSError:
        return None
    return clip.route if (now.st_size, now.st_mtime_ns) == (clip.media.size, clip.media.mtime_ns) else None


def _padded(clips: Sequence[ClipRead], length: int) -> list[ClipRead]:
    return [*clips, *[clips[-1]] * (length - len(clips))]
