"""Reading the frames and the sound of one clip in one visit; runs in worker processes."""

from __future__ import annotations

import contextlib
import functools
import math
import mmap
import os
import pickle
import threading
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from avloader.audio import AudioReader
from avloader.errors import AVLoaderError, DecodeError
from avloader.media import AudioInfo, MediaInfo, VideoInfo
from avloader.pictures import PictureOptions
from avloader.resample import resample, resample_margin
from avloader.timeline import seconds_to_samples
from avloader.together import TaskQueue
from avloader.video import VideoReader
from avloader.workers import SharedMemory, WorkerDied, WorkerPool

__all__ = [
    "ClipRead",
    "ClipReader",
    "FrameSource",
    "ReadAhead",
    "ReadBatch",
    "ReadPool",
    "ReadTask",
    "Route",
    "SlotLayout",
    "SoundSource",
    "SoundWindow",
]

_OPEN_FILES = 16  # containers that a worker keeps open
_KNOWN_MEDIA = 1024  # media whose facts are kept pickled, and in a worker unpickled
_SOUNDS_PER_TASK = 8  # a window of sound takes a worker about as long as to hand it a task
_PIXELS_PER_TASK = 4_000_000

_Result = tuple[int, int] | AVLoaderError  # the range of samples that exist in the medium, or what went wrong

Route = tuple[int, int] | None  # (width, height) of pictures that NVDEC decodes; None: the CPU decodes


@dataclass(frozen=True, slots=True)
class FrameSource:
    """Where frames come from: what `VideoReader` needs to know of a medium."""

    path: str
    stream_index: int
    keyframe_pts: npt.NDArray[np.int64]
    mtime_ns: int
    size: int


@dataclass(frozen=True, slots=True)
class SoundSource:
    """Where sound comes from: what `AudioReader` needs to know of a medium."""

    path: str
    info: AudioInfo
    mtime_ns: int
    size: int


@dataclass(frozen=True, slots=True)
class SoundWindow:
    """The sound of a clip.

    Attributes:
        media: The medium or side-car file.
        info: Facts of its audio stream.
        start: The native sample where the sound begins, counted from sample 0 of `info`.
        num_samples: Samples to read.
        sample_rate: At this rate.
        before: So many of them lie before `start`: what the feature of the sound sees around it.
        speed: So many seconds of the medium play in one.
    """

    media: MediaInfo
    info: AudioInfo
    start: int
    num_samples: int
    sample_rate: int
    before: int = 0
    speed: Fraction = Fraction(1)

    @classmethod
    def at(
        cls,
        media: MediaInfo,
        start: Fraction,
        *,
        num_samples: int,
        sample_rate: int,
        before: int = 0,
        speed: Fraction = Fraction(1),
    ) -> SoundWindow:
        """The window whose sound begins at the native sample nearest to media time `start`."""
        if media.audio is None:
            raise DecodeError("the medium has no sound", path=media.path, remedy="Build the manifest again")
        first = seconds_to_samples(start - media.audio.start_seconds, media.audio.sample_rate)
        return cls(media, media.audio, first, num_samples, sample_rate, before, speed)

    @property
    def start_seconds(self) -> Fraction:
        """Media time where the sound begins."""
        return self.info.start_seconds + Fraction(self.start, self.info.sample_rate)


@dataclass(frozen=True, slots=True)
class ReadTask:
    """What a worker is to read for one clip.

    What belongs to a medium comes pickled: that is done once for all of its clips, and undone once in each worker.

    Attributes:
        row: Manifest row, for error messages.
        slot: Where in the shared memory the result goes.
        frames: A `FrameSource`, or None if the GPU decodes the frames.
        frame_pts: pts of the wanted frames.
        sound: A `SoundSource`, or None if no sound is wanted.
        start: The native sample where the sound begins.
        num_samples, sample_rate: The sound to read.
        before: Samples of it before `start`.
        corner: (top, left) of what is cut out of the pictures.
        speed: So many seconds of the medium play in one: numerator and denominator.
    """

    row: int
    slot: int
    frames: bytes | None
    frame_pts: tuple[int, ...]
    sound: bytes | None
    start: int
    num_samples: int
    sample_rate: int
    before: int = 0
    corner: tuple[int, int] = (0, 0)
    speed: tuple[int, int] = (1, 1)

    def __reduce__(self) -> tuple[type[ReadTask], tuple[object, ...]]:  # three times as fast as that of a dataclass
        return ReadTask, (
            self.row,
            self.slot,
            self.frames,
            self.frame_pts,
            self.sound,
            self.start,
            self.num_samples,
            self.sample_rate,
            self.before,
            self.corner,
            self.speed,
        )


@dataclass(frozen=True, slots=True)
class SlotLayout:
    """How the shared memory is divided: one slot a clip; those with frames first, those for sound alone after them.

    Attributes:
        frames_shape: (F, C, H, W) of the frames of a clip.
        num_samples: Samples of its sound, at most.
        num_slots: Slots for clips whose frames the CPU decodes, >= 0; the sound follows the frames.
        num_sound_slots: Slots for clips whose frames the GPU decodes, or that have none, >= 0.
        picture: What is made of each picture; None: RGB, scaled to (H, W).
    """

    frames_shape: tuple[int, int, int, int]
    num_samples: int
    num_slots: int
    num_sound_slots: int
    picture: PictureOptions | None = None

    @property
    def _frames_bytes(self) -> int:
        return _aligned(math.prod(self.frames_shape))

    @property
    def _sound_bytes(self) -> int:
        return _aligned(4 * self.num_samples)

    @property
    def slot_bytes(self) -> int:
        """Bytes of a slot with frames."""
        return self._frames_bytes + self._sound_bytes

    @property
    def num_bytes(self) -> int:
        """Bytes of all slots."""
        return self.num_slots * self.slot_bytes + self.num_sound_slots * self._sound_bytes

    def slots(self, *, with_frames: bool) -> range:
        """The slots of one kind."""
        return range(self.num_slots) if with_frames else range(self.num_slots, self.num_slots + self.num_sound_slots)

    def frames(self, memory: mmap.mmap, slot: int) -> npt.NDArray[np.uint8]:
        """uint8 [shape=(F, C, H, W)]: the frames of a slot."""
        if slot >= self.num_slots:
            raise ValueError(f"slot {slot} holds no frames")
        frames: npt.NDArray[np.uint8] = np.ndarray(self.frames_shape, np.uint8, memory, offset=slot * self.slot_bytes)
        return frames

    def sound(self, memory: mmap.mmap, slot: int) -> npt.NDArray[np.float32]:
        """float32 [shape=(num_samples,)]: the sound of a slot."""
        if slot < self.num_slots:
            offset = slot * self.slot_bytes + self._frames_bytes
        else:
            offset = self.num_slots * self.slot_bytes + (slot - self.num_slots) * self._sound_bytes
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

    def __call__(self, tasks: Sequence[ReadTask]) -> list[_Result]:
        """Read clips.

        Returns:
            For each the half-open range of samples that exist in the medium, or an error naming file and row.
        """
        results = self._read_frames(tasks)
        for task in sorted(tasks, key=lambda task: task.start):  # neighbours share the decoding of their sound
            if task.slot in results:
                continue
            results[task.slot] = 0, 0
            if task.sound is not None:
                try:
                    source: SoundSource = _unpickled(task.sound)
                    sound = self._layout.sound(self._memory, task.slot)[: task.num_samples]
                    results[task.slot] = _read_sound(task, source.info, self._sound(source), sound)
                except AVLoaderError as error:
                    results[task.slot] = error.at_row(task.row)
        return [results[task.slot] for task in tasks]

    def _read_frames(self, tasks: Sequence[ReadTask]) -> dict[int, _Result]:
        """Read the frames of all, and return what went wrong by slot."""
        by_medium: dict[bytes, list[ReadTask]] = {}
        for task in tasks:
            if task.frames is not None:
                by_medium.setdefault(task.frames, []).append(task)
        errors: dict[int, _Result] = {}
        for source, together in by_medium.items():
            if self._try_to_read(_unpickled(source), together) is not None:
                for task in together:  # it may be the fault of one of them
                    error = self._try_to_read(_unpickled(source), [task])
                    if error is not None:
                        errors[task.slot] = error.at_row(task.row)
        return errors

    def _try_to_read(self, source: FrameSource, tasks: Sequence[ReadTask]) -> AVLoaderError | None:
        requests = [(task.frame_pts, task.corner, self._layout.frames(self._memory, task.slot)) for task in tasks]
        try:
            self._video(source).read_together(requests)
        except AVLoaderError as error:
            return error
        return None

    def _video(self, source: FrameSource) -> VideoReader:
        if source.path in self._videos:
            self._videos.move_to_end(source.path)
            return self._videos[source.path]
        _check_unchanged(source)
        reader = VideoReader(
            source.path,
            stream_index=source.stream_index,
            keyframe_pts=source.keyframe_pts,
            picture=self._layout.picture or PictureOptions(size=self._layout.frames_shape[2:]),
        )
        self._videos[source.path] = reader
        if len(self._videos) > _OPEN_FILES:
            self._videos.popitem(last=False)[1].close()
        return reader

    def _sound(self, source: SoundSource) -> AudioReader:
        if source.path in self._sounds:
            self._sounds.move_to_end(source.path)
            return self._sounds[source.path]
        _check_unchanged(source)
        reader = AudioReader(source.path, source.info)
        self._sounds[source.path] = reader
        if len(self._sounds) > _OPEN_FILES:
            self._sounds.popitem(last=False)[1].close()
        return reader


def _read_sound(task: ReadTask, info: AudioInfo, reader: AudioReader, out: npt.NDArray[np.float32]) -> tuple[int, int]:
    """Write the window's samples into `out` [shape=(num_samples,)].

    Returns:
        The half-open range of them that exist in the medium; the others are zero but for the filter's reach.
    """
    # At another speed the medium's rate counts as that much higher; only the quotient of both rates matters.
    native_rate, rate = (
        rate * part for rate, part in zip((info.sample_rate, task.sample_rate), task.speed, strict=True)
    )
    if native_rate == rate:
        return reader.read(task.start - task.before, task.start - task.before + task.num_samples, out=out)[1]
    margin = resample_margin(native_rate, rate)
    # The samples before the start lie on its grid: whole periods of both rates are read, and some of them dropped.
    period = native_rate // math.gcd(native_rate, rate)
    lead = -(-task.before * native_rate // (rate * period)) * period
    drop = lead * rate // native_rate - task.before
    length = -(-(drop + task.num_samples) * native_rate // rate)
    native, valid = reader.read(task.start - lead - margin, task.start - lead + length + margin)
    num_samples = drop + task.num_samples
    out[:] = resample(native, in_rate=native_rate, out_rate=rate, num_samples=num_samples)[drop:]
    first, stop = (min(max(-(-(index - margin) * rate // native_rate) - drop, 0), task.num_samples) for index in valid)
    if first >= stop:
        out[:] = 0.0
        return 0, 0
    out[:first] = out[stop:] = 0.0
    return first, stop


def _check_unchanged(source: FrameSource | SoundSource) -> None:
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
        frames: Frame indices in the medium, non-decreasing; none in clips of sound alone.
        sound: The window of sound; None in clips of pictures alone.
        route: What decodes the frames.
        corner: (top, left) of what is cut out of the scaled pictures.
        epoch: The epoch that the clip is delivered in.
    """

    row: int
    media: MediaInfo
    frames: tuple[int, ...]
    sound: SoundWindow | None
    route: Route = None
    corner: tuple[int, int] = (0, 0)
    epoch: int = 0

    @property
    def first(self) -> int:
        """Its first frame, or sample if it has no frames: with the row, what tells it from others; below 2**31."""
        if self.frames:
            return self.frames[0]
        return 0 if self.sound is None else self.sound.start & 0x7FFFFFFF

    @property
    def video(self) -> VideoInfo:
        """The video stream."""
        if self.media.video is None:
            raise DecodeError("the medium has no picture", path=self.media.path, row=self.row)
        return self.media.video

    @property
    def decoded_span(self) -> tuple[int, int]:
        """Pts from the key frame before the first frame to the last frame."""
        first, last = self.video.times.pts(self.frames[0]), self.video.times.pts(self.frames[-1])
        keys = self.video.keyframe_pts
        index = int(keys.searchsorted(first, side="right")) - 1
        return int(keys[index]) if index >= 0 else first, last

    def task(self, slot: int, *, with_frames: bool) -> ReadTask:
        """What a worker is to read of it into `slot`."""
        frames, frame_pts, sound = None, (), self.sound
        wanted: tuple[bytes | None, int, int, int, int] = (None, 0, 0, 1, 0)
        speed = 1, 1
        if sound is not None:
            source, speed = _sound_source(sound.media), sound.speed.as_integer_ratio()
            wanted = source, sound.start, sound.num_samples, sound.sample_rate, sound.before
        if with_frames:
            frames = _frame_source(self.media)
            frame_pts = tuple(self.video.times.pts_of(self.frames).tolist())
        return ReadTask(self.row, slot, frames, frame_pts, *wanted, self.corner, speed)


@functools.lru_cache(_KNOWN_MEDIA)
def _frame_source(media: MediaInfo) -> bytes:
    assert media.video is not None
    return pickle.dumps(
        FrameSource(media.path, media.video.stream_index, media.video.keyframe_pts, media.mtime_ns, media.size)
    )


@functools.lru_cache(_KNOWN_MEDIA)
def _sound_source(media: MediaInfo) -> bytes:
    assert media.audio is not None
    return pickle.dumps(SoundSource(media.path, media.audio, media.mtime_ns, media.size))


@functools.lru_cache(_KNOWN_MEDIA)
def _unpickled(data: bytes) -> Any:
    return pickle.loads(data)


@dataclass(frozen=True, slots=True)
class ReadBatch:
    """A batch that was read; the arrays look into shared memory and are valid until it is released.

    Attributes:
        clips: What was asked for.
        frames: One uint8 [shape=(F, C, H, W)] a clip; empty if the GPU decodes.
        sounds: One float32 [shape=(num_samples,)] a clip; zeros for a clip that failed; empty if none is wanted.
        valid: The range of samples that exist in the medium, one a clip.
        errors: What went wrong, by place in the batch.
        slots: Slots that it occupies, all of one kind.
    """

    clips: Sequence[ClipRead]
    frames: list[npt.NDArray[np.uint8]]
    sounds: list[npt.NDArray[np.float32]]
    valid: list[tuple[int, int]]
    errors: dict[int, AVLoaderError]
    slots: list[int]


class ReadAhead:
    """Reads batches through a pool of workers, as far ahead as there are free slots: of each kind in the order given.

    Clips that lie near each other in one file are read together.

    Batches may be taken in any order and from several threads. Each has to be released before its slots are used again.

    Args:
        pool: Workers that run `ClipReader` on `layout` and `memory`.
        layout: How `memory` is divided.
        memory: Where the workers write.
    """

    def __init__(self, pool: WorkerPool, layout: SlotLayout, memory: SharedMemory) -> None:
        self._pool, self._layout, self._memory = pool, layout, memory
        self._queue = TaskQueue(pool)
        self._kinds = {with_frames: _Kind(list(layout.slots(with_frames=with_frames))) for with_frames in (True, False)}
        self._pictures_at_a_time = max(3 * _PIXELS_PER_TASK // max(math.prod(layout.frames_shape), 1), 1)
        self._under_way: dict[int, _UnderWay] = {}
        self._closed = False
        self._lock = threading.Lock()
        self._wanted: dict[int, threading.Event] = {}  # batches that somebody waits for, and that have no slots yet

    def add(self, batches: Iterable[tuple[int, Sequence[ClipRead]]], *, with_frames: bool) -> None:
        """Read these batches too, after those that were added before; each has the number by which it is taken."""
        with self._lock:
            self._kinds[with_frames].waiting.extend(batches)
            self._submit()

    def take(self, number: int) -> ReadBatch:
        """Wait until the batch called `number` is read; each can be taken once.

        Raises:
            StopIteration: If it is closed.
        """
        with self._lock:
            begun = self._wanted[number] = threading.Event()
            if self._closed or number in self._under_way:
                begun.set()
        begun.wait()
        with self._lock:
            del self._wanted[number]
            if self._closed:
                raise StopIteration
            batch = self._under_way.pop(number)
        batch.finished.wait()
        valid: list[tuple[int, int]] = []
        errors: dict[int, AVLoaderError] = {}
        sounds: list[npt.NDArray[np.float32]] = []
        for place, (clip, slot, result) in enumerate(zip(batch.clips, batch.slots, batch.results, strict=True)):
            sound = self._layout.sound(self._memory.memory, slot)
            sound = sound[: 0 if clip.sound is None else clip.sound.num_samples]
            if isinstance(result, AVLoaderError):
                errors[place] = _with_place(result, clip)
                sound[:] = 0.0
                result = (0, 0)
            elif isinstance(result, BaseException):
                raise result
            valid.append(result)
            sounds.append(sound)
        frames = [
            self._layout.frames(self._memory.memory, slot) for slot in batch.slots if slot < self._layout.num_slots
        ]
        return ReadBatch(batch.clips, frames, sounds, valid, errors, batch.slots)

    def release(self, batch: ReadBatch) -> None:
        """Give the slots of a batch back."""
        self._free(batch.slots)

    def discard(self, numbers: Iterable[int]) -> None:
        """Give up batches that nobody will take, and use their slots for others."""
        unwanted = set(numbers)
        with self._lock:
            for kind in self._kinds.values():
                kind.waiting = deque(batch for batch in kind.waiting if batch[0] not in unwanted)
            given_up = [self._under_way.pop(number) for number in unwanted if number in self._under_way]
        self._give_up(given_up)
        self._free([slot for batch in given_up for slot in batch.slots])

    def close(self) -> None:
        """Read no more, and wait until no worker writes into a slot."""
        with self._lock:
            self._closed = True
            given_up = list(self._under_way.values())
            self._under_way.clear()
            for kind in self._kinds.values():
                kind.waiting.clear()
            for begun in self._wanted.values():
                begun.set()
        self._give_up(given_up)

    def _give_up(self, batches: Sequence[_UnderWay]) -> None:
        """Wait until no worker writes into their slots, nor will."""
        for batch in batches:
            batch.is_given_up = True
            self._queue.cancel(batch.orders)
        for batch in batches:
            batch.finished.wait()

    def _free(self, slots: Sequence[int]) -> None:
        with self._lock:
            for slot in slots:
                self._kinds[slot < self._layout.num_slots].free.append(slot)
            self._submit()

    def _submit(self) -> None:
        for with_frames, kind in self._kinds.items():
            while kind.waiting and len(kind.free) >= len(kind.waiting[0][1]):
                number, clips = kind.waiting.popleft()
                batch = _UnderWay(clips, [kind.free.pop() for _ in clips])
                self._begin(batch, with_frames=with_frames)
                self._under_way[number] = batch  # after that: where the pool is closed, nobody would ever finish it
                if number in self._wanted:
                    self._wanted[number].set()

    def _begin(self, batch: _UnderWay, *, with_frames: bool) -> None:
        tasks = [clip.task(slot, with_frames=with_frames) for clip, slot in zip(batch.clips, batch.slots, strict=True)]
        if with_frames:
            places = [(clip.media.path, clip.decoded_span) for clip in batch.clips]
            sharing = [(task, *place) for task, place in zip(tasks, places, strict=True)]
            batch.orders = self._queue.run(sharing, batch.done, at_a_time=self._pictures_at_a_time)
        elif all(task.sound is None for task in tasks):  # the GPU decodes the pictures, and no sound is wanted
            for place in range(len(tasks)):
                batch.done(place, (0, 0))
        else:
            starts = range(0, len(tasks), _SOUNDS_PER_TASK)
            self._pool.run([_Sounds(batch, start, tasks[start:][:_SOUNDS_PER_TASK], self._queue) for start in starts])


@dataclass(slots=True)
class _Kind:
    """Free slots of a kind, and the batches that wait for some."""

    free: list[int]
    waiting: deque[tuple[int, Sequence[ClipRead]]] = field(default_factory=deque)


class _UnderWay:
    """A batch that workers read.

    Attributes:
        clips: What is read.
        slots: Where to.
        orders: What cancels it in the queue.
        results: What came of each clip.
        finished: Set when that is known of all.
        is_given_up: Whether nobody wants it any more.
    """

    def __init__(self, clips: Sequence[ClipRead], slots: list[int]) -> None:
        self.clips, self.slots, self.orders = clips, slots, list[int]()
        self.results: list[Any] = [None] * len(clips)
        self.finished = threading.Event()
        self.is_given_up = False
        self._num_left = len(clips)
        self._lock = threading.Lock()

    def done(self, place: int, result: Any) -> None:
        """One clip is read: the range of samples that exist, or an exception."""
        self.results[place] = result
        with self._lock:
            self._num_left -= 1
            is_last = not self._num_left
        if is_last:
            self.finished.set()


class _Sounds:
    """Clips of which workers read only the sound, several at a time: it takes little longer than to hand a task over.

    Args:
        batch: Their batch.
        first: The place of the first in it.
        tasks: What to read.
        queue: Runs them again if the worker dies, perhaps over one of them.
    """

    __slots__ = ("_batch", "_first", "_queue", "_tasks")

    def __init__(self, batch: _UnderWay, first: int, tasks: list[ReadTask], queue: TaskQueue) -> None:
        self._batch, self._first, self._tasks, self._queue = batch, first, tasks, queue

    def begin(self) -> list[ReadTask] | None:
        if not self._batch.is_given_up:
            return self._tasks
        self.end(None, CancelledError())
        return None

    def end(self, result: Any, error: BaseException | None) -> None:
        if isinstance(error, WorkerDied):
            with contextlib.suppress(RuntimeError):  # the pool is closed
                self._queue.run([(task, None, (0, 0)) for task in self._tasks], self._done)
                return
        for number in range(len(self._tasks)):
            self._done(number, result[number] if error is None else error)

    def _done(self, number: int, result: Any) -> None:
        self._batch.done(self._first + number, result)


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
