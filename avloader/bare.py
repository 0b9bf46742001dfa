"""What decodes the pictures of a loader, alone: without sound, features and normalization."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import pickle
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from avloader.errors import AVLoaderError
from avloader.pictures import PictureOptions
from avloader.reading import ClipRead, FrameSource, ReadTask
from avloader.video import VideoReader
from avloader.workers import WorkerPool

if TYPE_CHECKING:
    from avloader.decoding import Decoding

__all__ = ["BareDecoder", "Count", "Show", "count_clips", "decoder_rate"]

_OPEN_FILES = 16  # as many as the loader's workers keep open
_NVDEC_CLIPS = 2048  # of the plan, at most, that readers decode again and again
_PIECES_OF_A_LANE = 8  # in the list of a reader, which starts again at its end
_ONE_CLIP_A_ROW = 2**30  # a step beyond any file's end

Show = Callable[[float], None]  # takes the seconds of a measurement that have passed


@dataclass(frozen=True, slots=True)
class Count:
    """What came in some time.

    Attributes:
        clips: Clips.
        batches: Batches, or whatever they came in.
        seconds: From the end of one batch to the end of another.
    """

    clips: int
    batches: int
    seconds: float

    @property
    def rate(self) -> float:
        """Clips per second."""
        return self.clips / self.seconds


def count_clips(counts: Iterator[int], seconds: float, show: Show) -> Count:
    """What comes in the last two thirds of some seconds.

    Args:
        counts: Endless; the clips of each batch, when it is there.
        seconds: How long to take batches; at least one is counted.
        show: Is told how far it is.
    """
    begin = now = time.perf_counter()
    while now - begin < seconds / 3:
        next(counts)
        now = time.perf_counter()
        show(now - begin)
    start, clips, batches = now, 0, 0
    while not batches or now - begin < seconds:
        clips += next(counts)
        batches += 1
        now = time.perf_counter()
        show(now - begin)
    return Count(clips, batches, now - start)


def decoder_rate(
    reads: Iterator[ClipRead],
    decoding: Decoding,
    *,
    size: tuple[int, int],
    device_id: int,
    skipped: set[int],
    seconds: float,
    show: Show,
) -> tuple[str, float | None]:
    """Clips per second of what decodes alone: NVDEC, of its own clips, where it takes part, otherwise the CPU.

    Args:
        reads: The clips; endless.
        decoding: What decodes what.
        size: (height, width) that pictures are scaled to.
        device_id: Which GPU.
        skipped: Rows that NVDEC's readers are spared.
        seconds: How long to measure.
        show: Is told how far it is.

    Returns:
        What decoded, or why nothing was measured, in words; its rate, or None.
    """
    if not decoding.nvdec_sizes:
        num_workers = decoding.num_workers
        with WorkerPool("avloader.bare:BareDecoder", size, num_workers=num_workers) as pool:
            count = count_clips(_decoded(pool, reads), seconds, show)
        return f"libavcodec in {num_workers} process{'es' if num_workers > 1 else ''}", count.rate
    clips_of_size: dict[tuple[int, int], list[ClipRead]] = {}
    for read in itertools.islice(reads, _NVDEC_CLIPS):
        if read.route is not None and read.row not in skipped:
            clips_of_size.setdefault(read.route, []).append(read)
    if not clips_of_size:
        return "not measured: NVDEC decodes none of the clips", None
    num_lanes = sum(options.num_lanes for route, options in decoding.routes.items() if route is not None)
    part = seconds / len(clips_of_size)
    needed = 0.0  # seconds for all of them
    for number, (route, clips) in enumerate(clips_of_size.items()):
        try:
            with (
                tempfile.TemporaryDirectory(prefix="avloader-") as folder,
                contextlib.closing(
                    _nvdec_pieces(clips, num_lanes, decoding.routes[route].piece_clips, size, device_id, Path(folder))
                ) as pieces,
            ):
                for _ in range(2 * num_lanes):  # until all readers run
                    next(pieces)
                count = count_clips(pieces, part, functools.partial(_show_part, show, number * part))
        except RuntimeError as error:  # DALI's
            return f"not measured: {str(error).strip().splitlines()[-1][:200]}", None
        needed += len(clips) / count.rate
    what = f"NVDEC in {num_lanes} readers"
    if len(clips_of_size) > 1:
        what += f", its {len(clips_of_size)} sizes one after the other"
    return what, sum(map(len, clips_of_size.values())) / needed


def _show_part(show: Show, before: float, passed: float) -> None:
    show(before + passed)


def _decoded(pool: WorkerPool, reads: Iterable[ClipRead]) -> Iterator[int]:
    """1 for each clip when it was decoded; 0 for one that could not be."""
    for _, future in pool.map_unordered(read.task(0, with_frames=True) for read in reads):
        error = future.exception()
        if error is not None and not isinstance(error, AVLoaderError):
            raise error
        yield int(error is None)


class BareDecoder:
    """What a worker process runs: decodes the frames of a clip and forgets them; recent files stay open.

    Args:
        size: (height, width) of the frames.
    """

    def __init__(self, size: tuple[int, int], _: object) -> None:
        self._size = size
        self._reader = functools.lru_cache(_OPEN_FILES)(self._open)
        self._frames = np.empty((0, 3, *size), np.uint8)

    def __call__(self, task: ReadTask) -> None:
        """Decode one clip.

        Raises:
            DecodeError: If a frame cannot be had.
        """
        assert task.frames is not None
        if len(self._frames) != len(task.frame_pts):
            self._frames = np.empty((len(task.frame_pts), 3, *self._size), np.uint8)
        self._reader(task.frames).read(task.frame_pts, out=self._frames)

    def _open(self, pickled: bytes) -> VideoReader:
        source: FrameSource = pickle.loads(pickled)
        picture = PictureOptions(size=self._size)
        return VideoReader(
            source.path, stream_index=source.stream_index, keyframe_pts=source.keyframe_pts, picture=picture
        )


def _nvdec_pieces(
    clips: Sequence[ClipRead],
    num_lanes: int,
    piece_clips: int,
    size: tuple[int, int],
    device_id: int,
    folder: Path,
) -> Generator[int]:
    """Endless: the clips of each piece that readers side by side have decoded and scaled; all clips of one size."""
    from nvidia.dali import Pipeline, fn

    from avloader.pipeline import write_file_list

    steps = {after - before for clip in clips for before, after in itertools.pairwise(clip.frames)}
    span = max(clip.frames[-1] - clip.frames[0] for clip in clips) + 1
    is_even = len(steps) < 2 and 0 not in steps
    stride = next(iter(steps), 1) if is_even else 1
    endless = itertools.cycle(clips)
    pipes = []
    for lane in range(num_lanes):
        links = folder / str(lane)
        links.mkdir()
        own = list(itertools.islice(endless, _PIECES_OF_A_LANE * piece_clips))
        write_file_list(links / "file_list.txt", own, num_frames=span, links=links)
        pipe = Pipeline(batch_size=piece_clips, num_threads=2, device_id=device_id, prefetch_queue_depth=2)
        with pipe:
            frames, _ = fn.readers.video(
                device="gpu",
                file_list=os.fspath(links / "file_list.txt"),
                file_list_frame_num=True,
                file_list_include_preceding_frame=True,
                sequence_length=len(clips[0].frames) if is_even else span,
                stride=stride,
                step=_ONE_CLIP_A_ROW,
                pad_sequences=not is_even,
                lazy_init=True,
                skip_vfr_check=True,
            )
            pipe.set_outputs(fn.resize(frames, size=size))
        pipe.build()
        pipes.append(pipe)
    try:
        for pipe in pipes:
            pipe.schedule_run()
        for pipe in itertools.cycle(pipes):
            pipe.share_outputs()
            pipe.release_outputs()
            pipe.schedule_run()
            yield piece_clips
    finally:
        for pipe in pipes:  # while the folder is there: a reader whose files are gone is waited for without end
            pipe._shutdown()
