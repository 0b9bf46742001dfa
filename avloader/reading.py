"""Reading the frames and the sound of one clip in one visit; runs in worker processes."""

from __future__ import annotations

import mmap
import os
import threading
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from avloader.audio import AudioReader
from avloader.errors import AVLoaderError, DecodeError
from avloader.media import AudioInfo, MediaInfo, VideoInfo
from avloader.resample import resample, resample_margin
from avloader.timeline import seconds_to_samples
from avloader.video import VideoReader
from avloader.workers import SharedMemory, WorkerPool

__all__ = [
    "ClipRead",
    "ClipReader",
    "FrameSource",
    "ReadAhead",
    "ReadBatch",
    "ReadPool",
    "ReadTask",
    "SlotLayout",
    "SoundWindow",
]

_OPEN_FILES = 16  # containers that a worker keeps open


@dataclass(frozen=True, slots=True)
class FrameSource:
    """Where frames come from: what `VideoReader` needs to know of a medium."""

    path: str
    stream_index: int
    keyframe_pts: npt.NDArray[np.int64]
    mtime_ns: int
    size: int


@dataclass(frozen=True, slots=True)
class SoundWindow:
    """The sound of a clip.

    Attributes:
        path: The medium or side-car file.
        info: Facts of its audio stream.
        start: The native sample where the sound begins, counted from sample 0 of `info`.
        num_samples: Samples to deliver.
        sample_rate: At this rate.
        mtime_ns, size: Of the file when it was probed.
    """

    path: str
    info: AudioInfo
    start: int
    num_samples: int
    sample_rate: int
    mtime_ns: int
    size: int

    @classmethod
    def at(cls, media: MediaInfo, start: Fraction, *, num_samples: int, sample_rate: int) -> SoundWindow:
        """The window that begins at the native sample nearest to media time `start`."""
        if media.audio is None:
            raise DecodeError("the medium has no sound", path=media.path, remedy="Build the manifest again")
        first = seconds_to_samples(start - media.audio.start_seconds, media.audio.sample_rate)
        return cls(media.path, media.audio, first, num_samples, sample_rate, media.mtime_ns, media.size)

    @property
    def start_seconds(self) -> Fraction:
        """Media time of the first sample."""
        return self.info.start_seconds + Fraction(self.start, self.info.sample_rate)

    def read(self, reader: AudioReader, out: npt.NDArray[np.float32]) -> tuple[int, int]:
        """Write the samples into `out` [shape=(num_samples,)].

        Returns:
            The half-open range of them that exist in the medium; the others are zero but for the filter's reach.
        """
        native_rate, rate = self.info.sample_rate, self.sample_rate
        if native_rate == rate:
            return reader.read(self.start, self.start + self.num_samples, out=out)[1]
        margin = resample_margin(native_rate, rate)
        length = -(-self.num_samples * native_rate // rate)
        native, valid = reader.read(self.start - margin, self.start + length + margin)
        out[:] = resample(native, in_rate=native_rate, out_rate=rate, num_samples=self.num_samples)
        first, stop = (min(max(-(-(index - margin) * rate // native_rate), 0), self.num_samples) for index in valid)
        if first >= stop:
            out[:] = 0.0
            return 0, 0
        out[:first] = out[stop:] = 0.0
        return first, stop


@dataclass(frozen=True, slots=True)
class ReadTask:
    """What a worker is to read for one clip.

    Attributes:
        row: Manifest row, for error messages.
        slot: Where in the shared memory the result goes.
        frames: Where frames come from, or None if the GPU decodes them.
        frame_pts: pts of the wanted frames.
        sound: The window of sound.
    """

    row: int
    slot: int
    frames: FrameSource | None
    frame_pts: tuple[int, ...]
    sound: SoundWindow


@dataclass(frozen=True, slots=True)
class SlotLayout:
    """How the shared memory is divided: one slot a clip, frames first, sound after them.

    Attributes:
        num_slots: Slots.
        frames_shape: (F, H, W, 3), or None if the GPU decodes.
        num_samples: Samples of the sound.
    """

    num_slots: int
    frames_shape: tuple[int, int, int, int] | None
    num_samples: int

    @property
    def _frames_bytes(self) -> int:
        return _aligned(int(np.prod(self.frames_shape))) if self.frames_shape else 0

    @property
    def slot_bytes(self) -> int:
        """Bytes of one slot."""
        return self._frames_bytes + _aligned(4 * self.num_samples)

    @property
    def num_bytes(self) -> int:
        """Bytes of all slots."""
        return self.num_slots * self.slot_bytes

    def frames(self, memory: mmap.mmap, slot: int) -> npt.NDArray[np.uint8]:
        """uint8 [shape=(F, H, W, 3)]: the frames of a slot."""
        if self.frames_shape is None:
            raise ValueError("this layout holds no frames")
        frames: npt.NDArray[np.uint8] = np.ndarray(self.frames_shape, np.uint8, memory, offset=slot * self.slot_bytes)
        return frames

    def sound(self, memory: mmap.mmap, slot: int) -> npt.NDArray[np.float32]:
        """float32 [shape=(num_samples,)]: the sound of a slot."""
        offset = slot * self.slot_bytes + self._frames_bytes
        sound: npt.NDArray[np.float32] = np.ndarray((self.num_samples,), np.float32, memory, offset=offset)
        return sound


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // 64) * 64


class ClipReader:
    """What a worker process runs: reads clips into slots of the shared memory, and keeps recent files open."""

    def __init__(self, layout: SlotLayout, memory: mmap.mmap) -> None:
        self._layout = layout
        self._memory = memory
        self._videos: OrderedDict[str, VideoReader] = OrderedDict()
        self._sounds: OrderedDict[str, AudioReader] = OrderedDict()

    def __call__(self, task: ReadTask) -> tuple[int, int]:
        """Read one clip.

        Returns:
            The half-open range of samples that exist in the medium.

        Raises:
            DecodeError: Naming file and row.
        """
        try:
            if task.frames is not None:
                self._video(task.frames).read(task.frame_pts, out=self._layout.frames(self._memory, task.slot))
            valid = task.sound.read(self._sound(task.sound), self._layout.sound(self._memory, task.slot))
        except AVLoaderError as error:
            raise error.at_row(task.row) from None
        return valid

    def _video(self, source: FrameSource) -> VideoReader:
        if source.path in self._videos:
            self._videos.move_to_end(source.path)
            return self._videos[source.path]
        _check_unchanged(source)
        assert self._layout.frames_shape is not None
        reader = VideoReader(
            source.path,
            stream_index=source.stream_index,
            keyframe_pts=source.keyframe_pts,
            size=self._layout.frames_shape[1:3],
        )
        self._videos[source.path] = reader
        if len(self._videos) > _OPEN_FILES:
            self._videos.popitem(last=False)[1].close()
        return reader

    def _sound(self, window: SoundWindow) -> AudioReader:
        if window.path in self._sounds:
            self._sounds.move_to_end(window.path)
            return self._sounds[window.path]
        _check_unchanged(window)
        reader = AudioReader(window.path, window.info)
        self._sounds[window.path] = reader
        if len(self._sounds) > _OPEN_FILES:
            self._sounds.popitem(last=False)[1].close()
        return reader


def _check_unchanged(source: FrameSource | SoundWindow) -> None:
    try:
        now = os.stat(source.path)
    except OSError as error:
        raise DecodeError(
            f"the file is gone ({error.strerror})", path=source.path, remedy="Restore it or build the manifest again"
        ) from error
    if (now.st_size, now.st_mtime_ns) != (source.size, source.mtime_ns):
        raise DecodeError(
            "the file was replaced or changed since the manifest was built",
            path=source.path,
            remedy="Build the manifest again",
        )


@dataclass(frozen=True, slots=True)
class ClipRead:
    """One clip as an engine reads it: a `Clip` with everything looked up in the manifest.

    Attributes:
        row: Manifest row.
        media: The picture's medium.
        frames: Frame indices in the medium, non-decreasing.
        sound: The window of sound.
    """

    row: int
    media: MediaInfo
    frames: tuple[int, ...]
    sound: SoundWindow

    @property
    def video(self) -> VideoInfo:
        """The video stream."""
        if self.media.video is None:
            raise DecodeError("the medium has no picture", path=self.media.path, row=self.row)
        return self.media.video

    def task(self, slot: int, *, with_frames: bool) -> ReadTask:
        """What a worker is to read of it into `slot`."""
        source, frame_pts = None, ()
        if with_frames:
            video, media = self.video, self.media
            source = FrameSource(media.path, video.stream_index, video.keyframe_pts, media.mtime_ns, media.size)
            frame_pts = tuple(video.times.pts_of(self.frames).tolist())
        return ReadTask(self.row, slot, source, frame_pts, self.sound)


@dataclass(frozen=True, slots=True)
class ReadBatch:
    """A batch that was read; the arrays look into shared memory and are valid until it is released.

    Attributes:
        clips: What was asked for.
        frames: One uint8 [shape=(F, H, W, 3)] a clip; empty if the GPU decodes.
        sounds: One float32 [shape=(num_samples,)] a clip; zeros for a clip that failed.
        valid: The range of samples that exist in the medium, one a clip.
        errors: What went wrong, by place in the batch.
        slots: Slots that it occupies.
    """

    clips: Sequence[ClipRead]
    frames: list[npt.NDArray[np.uint8]]
    sounds: list[npt.NDArray[np.float32]]
    valid: list[tuple[int, int]]
    errors: dict[int, AVLoaderError]
    slots: list[int]


class ReadAhead:
    """Reads batches through a pool of workers, in order, as far ahead as there are free slots.

    Batches may be taken in any order and from several threads. Each has to be released before its slots are used again.

    Args:
        pool: Workers that run `ClipReader` on `layout` and `memory`.
        layout: How `memory` is divided.
        memory: Where the workers write.
    """

    def __init__(self, pool: WorkerPool, layout: SlotLayout, memory: SharedMemory) -> None:
        self._pool, self._layout, self._memory = pool, layout, memory
        self._waiting: deque[tuple[int, Sequence[ClipRead]]] = deque()
        self._free = list(range(layout.num_slots))
        self._under_way: dict[int, tuple[Sequence[ClipRead], list[int], list[Future[tuple[int, int]]]]] = {}
        self._closed = False
        self._changed = threading.Condition()

    def add(self, batches: Iterable[tuple[int, Sequence[ClipRead]]]) -> None:
        """Read these batches too, after those that were added before; each has the number by which it is taken."""
        with self._changed:
            self._waiting.extend(batches)
            self._submit()
            self._changed.notify_all()

    def take(self, number: int) -> ReadBatch:
        """Wait until the batch called `number` is read; each can be taken once.

        Raises:
            StopIteration: If it is closed.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._closed or number in self._under_way)
            if self._closed:
                raise StopIteration
            clips, slots, futures = self._under_way.pop(number)
        valid: list[tuple[int, int]] = []
        errors: dict[int, AVLoaderError] = {}
        sounds: list[npt.NDArray[np.float32]] = []
        for place, (clip, slot, future) in enumerate(zip(clips, slots, futures, strict=True)):
            sound = self._layout.sound(self._memory.memory, slot)
            try:
                valid.append(future.result())
            except AVLoaderError as error:
                errors[place] = _with_place(error, clip)
                sound[:] = 0.0
                valid.append((0, 0))
            sounds.append(sound)
        shape = self._layout.frames_shape
        frames = [self._layout.frames(self._memory.memory, slot) for slot in slots] if shape else []
        return ReadBatch(clips, frames, sounds, valid, errors, slots)

    def release(self, batch: ReadBatch) -> None:
        """Give the slots of a batch back."""
        with self._changed:
            self._free.extend(batch.slots)
            self._submit()
            self._changed.notify_all()

    def discard(self, numbers: Iterable[int]) -> None:
        """Give up batches that nobody will take, and use their slots for others."""
        unwanted = set(numbers)
        with self._changed:
            self._waiting = deque(batch for batch in self._waiting if batch[0] not in unwanted)
            given_up = [self._under_way.pop(number) for number in unwanted if number in self._under_way]
        wait_for(future for _, _, futures in given_up for future in futures)  # until no worker writes there
        with self._changed:
            self._free.extend(slot for _, slots, _ in given_up for slot in slots)
            self._submit()
            self._changed.notify_all()

    def close(self) -> None:
        """Read no more, and wait until no worker writes into a slot."""
        with self._changed:
            self._closed = True
            futures = [future for _, _, batch in self._under_way.values() for future in batch]
            self._under_way.clear()
            self._waiting.clear()
            self._changed.notify_all()
        for future in futures:
            future.cancel()
        wait_for(future for future in futures if not future.cancelled())

    def _submit(self) -> None:
        with_frames = self._layout.frames_shape is not None
        while self._waiting and len(self._free) >= len(self._waiting[0][1]):
            number, clips = self._waiting.popleft()
            slots = [self._free.pop() for _ in clips]
            tasks = (clip.task(slot, with_frames=with_frames) for clip, slot in zip(clips, slots, strict=True))
            self._under_way[number] = (clips, slots, [self._pool.submit(task) for task in tasks])


class ReadPool:
    """Worker processes, and the memory that they read clips into.

    Args:
        layout: How the memory is divided.
        num_workers: Processes, > 0.
    """

    def __init__(self, layout: SlotLayout, *, num_workers: int) -> None:
        self._layout = layout
        self._memory = SharedMemory(layout.num_bytes)
        self._pool = WorkerPool("avloader.reading:ClipReader", layout, num_workers=num_workers, memory=self._memory)

    def read(self) -> ReadAhead:
        """Begin to read, one such reading at a time."""
        return ReadAhead(self._pool, self._layout, self._memory)

    def close(self) -> None:
        """End the processes and give the memory back; calling it twice is harmless."""
        self._pool.close()
        self._memory.close()


def _with_place(error: AVLoaderError, clip: ClipRead) -> AVLoaderError:
    """`error`, naming file and row also where a worker could not, because it died."""
    if error.row is not None:
        return error
    return DecodeError(error.cause, path=error.path or clip.media.path, row=clip.row, remedy=error.remedy)
