"""Windows of sound by sample position, from a container's audio stream or a side-car file."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from types import TracebackType
from typing import NamedTuple

import av
import av.container
import av.error
import numpy as np
import numpy.typing as npt

from avloader.direct import DirectSound, open_direct
from avloader.errors import DecodeError
from avloader.media import AudioInfo
from avloader.source import open_container
from avloader.timeline import round_half_up

__all__ = ["AudioReader"]

# Packets after which a decoder's output equals that of a linear decode. Opus converges slowly: 320 ms reach 93 dB,
# 960 ms the same bits. Codecs without memory need none.
_PREROLL_PACKETS = {"opus": 48, "mp3": 24, "mp2": 4, "aac": 8, "vorbis": 4, "flac": 0, "alac": 0}
_OTHER_PREROLL_PACKETS = 16
_USUAL_FRAME = 1024

_FLOAT32, _SHORT = np.dtype(np.float32), np.float32(2.0**-15)
_MONO_TYPES = {
    name: np.dtype(kind) for kind, names in (("f4", ("flt", "fltp")), ("i2", ("s16", "s16p"))) for name in names
}

_TAINTED_FRAMES = 2  # frames after a lost packet that overlap with it

_TAIL_SAMPLES = 4096  # by how much a decoder may trim the last packet
_FORWARD_SECONDS = 1  # windows that follow this closely are reached without a seek


class AudioReader:
    """Sound of one medium. Keeps the container open between calls; not safe for use from two threads.

    Args:
        path: The medium or side-car file.
        info: Facts of its audio stream.

    Raises:
        DecodeError: If the medium cannot be opened.
    """

    def __init__(self, path: str, info: AudioInfo) -> None:
        self._path = path
        self._info = info
        self._samples_per_tick = info.samples_per_tick
        self._tolerance = max(Fraction(1), 2 * self._samples_per_tick)
        # The same in integers, since every frame is placed.
        self._tick = self._samples_per_tick.numerator, self._samples_per_tick.denominator
        self._slack = int(self._tolerance * self._tick[1])
        self._is_stamped_late = info.codec == "vorbis" and self._samples_per_tick == 1
        packets = 0 if info.codec.startswith("pcm_") else _PREROLL_PACKETS.get(info.codec, _OTHER_PREROLL_PACKETS)
        self._preroll = packets * (info.frame_size or _USUAL_FRAME)
        # Packets of varying length do not tell where in the last one the sound ends; the decoder does.
        self._first, self._last = info.silence, info.num_samples + (0 if info.frame_size else _TAIL_SAMPLES)
        self._phase: int | None = None
        self._container: av.container.InputContainer | None = None
        self._blocks: deque[_Block] = deque()  # decoded blocks that the next window may begin in
        self._next_position: int | None = None  # where the next frame is expected
        self._is_fresh = False
        self._closed = False
        self._direct: DirectSound | None = None
        try:
            try:
                self._direct = open_direct(path, info)
            except OSError as error:
                raise _ReadError(f"it cannot be opened ({error.strerror})") from error
            if self._direct is None:
                self._open()
        except _ReadError as failure:
            raise self._error(failure) from failure.__cause__

    def read(
        self, start: int, stop: int, out: npt.NDArray[np.float32] | None = None
    ) -> tuple[npt.NDArray[np.float32], tuple[int, int]]:
        """Samples [start, stop) at the native rate, mono (mean of the channels), as a plain linear decode gives them.

        Args:
            start: First sample, counted from sample 0 of `info`; may be negative.
            stop: After the last sample; may lie past the end.
            out: float32 [shape=(stop - start,)] to write into; None: a new array.

        Returns:
            float32 [shape=(stop - start,)], range about -1 to 1, zeros where the medium has no sound (holes too); and
            the half-open range, relative to `start`, of samples that exist in the medium (holes inside it included).

        Raises:
            DecodeError: If sound that should be there cannot be decoded.
        """
        if self._closed:
            raise ValueError(f"the reader of {self._path} is closed")
        if stop < start:
            raise ValueError(f"stop must not be less than start, got {start} and {stop}")
        if out is None:
            out = np.empty(stop - start, dtype=np.float32)
        elif out.shape != (stop - start,) or out.dtype != np.float32:
            raise ValueError(f"out must be float32 of shape {(stop - start,)}, got {out.dtype} of shape {out.shape}")
        first = start if start > self._first else self._first
        last = stop if stop < self._last else self._last
        if first >= last:
            out[:] = 0
            return out, (0, 0)
        valid = first - start, last - start
        if self._direct is not None:  # then there are no gaps
            is_whole = valid == (0, stop - start)
            if self._direct.read(first, last, out if is_whole else out[valid[0] : valid[1]]):
                if not is_whole:
                    out[: valid[0]] = out[valid[1] :] = 0
                return out, valid
        elif any(begin <= first and last <= end for begin, end in self._info.gaps):
            out[:] = 0
            return out, valid
        failure: _ReadError | None = None
        for origin in self._starts(first):
            try:
                self._go_to(origin)
                end = self._fill(start, first, last, out)
                return out, (first - start, end - start) if first < end else (0, 0)
            except _ReadError as found:
                failure = found
                self._release()  # flushing does not rid a decoder of everything that damage leaves in it
        assert failure is not None
        raise self._error(failure) from failure.__cause__

    def close(self) -> None:
        """Close the file; calling it twice is harmless."""
        self._closed = True
        self._release()
        if self._direct is not None:
            self._direct.close()

    def __enter__(self) -> AudioReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # The file ---------------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        """Open the file, or open it anew, at its start."""
        self._release()
        try:
            self._container = container = open_container(self._path)
            stream = container.streams[self._info.stream_index]
        except (av.error.FFmpegError, OSError) as error:
            raise _ReadError(f"it cannot be opened ({error.strerror})") from error
        except IndexError:
            raise _ReadError(f"it has no stream {self._info.stream_index}") from None
        if not isinstance(stream, av.AudioStream):
            raise _ReadError(f"its stream {self._info.stream_index} is no sound")
        if stream.codec_context is None:
            raise _ReadError(f"the codec of its stream {self._info.stream_index} is unknown")
        stream.codec_context.thread_count = 1
        self._stream = stream
        self._is_fresh = True
        self._restart()

    def _restart(self) -> None:
        """Forget everything about what was read so far."""
        assert self._container is not None
        self._packets = self._container.demux(self._stream)
        self._blocks.clear()
        self._next_position = None
        self._held: av.Packet[av.AudioStream] | None = None  # the first packet to decode
        self._decoded = self._frames()
        self._num_tainted = 0  # frames that the loss of a packet still disturbs
        self._cause: Exception | None = None  # of the last packet that could not be decoded

    def _release(self) -> None:
        self._blocks.clear()
        self._held = self._next_position = None
        if self._container is not None:
            self._container.close()
            self._container = None

    def _error(self, failure: _ReadError) -> DecodeError:
        remedy = "Get an intact copy, or build the manifest again if the file changed"
        return DecodeError(str(failure), path=self._path, remedy=remedy)

    def _time(self, sample: int) -> str:
        return f"{float(self._info.start_seconds + Fraction(sample, self._info.sample_rate)):.3f} s (sample {sample})"

    # Where to start ---------------------------------------------------------------------------------------------------

    def _starts(self, first: int) -> Iterator[_Start]:
        """Where to decode from to get sample `first`: the cheapest place first, at last the start of the file."""
        if self._next_position is not None:
            begin = self._blocks[0].start if self._blocks else self._next_position
            near = self._next_position + max(self._preroll, _FORWARD_SECONDS * self._info.sample_rate)
            if begin <= first <= near:
                yield _Start(None, is_continued=True)
        if self._is_locatable:
            for preroll in (self._preroll, 8 * self._preroll + self._info.sample_rate):
                if first - preroll > 2 * (self._info.frame_size or _USUAL_FRAME):
                    yield _Start(first - preroll)
        yield _Start(None)

    @property
    def _is_locatable(self) -> bool:
        """Whether the time stamp of a frame tells its position to the sample."""
        return bool(self._info.frame_size) or self._samples_per_tick <= 1

    def _go_to(self, start: _Start) -> None:
        if start.is_continued:
            return
        if start.sample is None:
            if not (self._is_fresh and self._container is not None):
                self._open()
            self._is_fresh = False
            self._next_position = 0
            return
        if self._info.frame_size and self._phase is None:
            self._learn_phase()
        if self._container is None:
            self._open()
        self._is_fresh = False
        margin = 0
        while margin <= start.sample:
            if self._seek(start.sample, margin):
                return
            margin = 2 * margin or self._info.sample_rate
        raise _ReadError(f"the sound at {self._time(start.sample)} cannot be found")

    def _learn_phase(self) -> None:
        """Decode the first frame: what priming leaves of it tells where the later ones begin."""
        if not (self._is_fresh and self._container is not None):
            self._open()
        self._is_fresh = False
        frame = next(self._decoded, None)
        if frame is None:
            raise _ReadError("it holds no sound")
        self._phase = frame.samples % self._info.frame_size

    def _seek(self, sample: int, margin: int) -> bool:
        """Seek `margin` samples before `sample`; False if the seek ended past it."""
        assert self._container is not None
        info = self._info
        pts = info.start_pts + (Fraction(sample - margin) / self._samples_per_tick).__floor__()
        try:
            # Containers seek by index, by bisection or by a guess: where it ended, only the packets tell.
            self._container.seek(pts, stream=self._stream, backward=True)
            self._restart()
            for packet in self._packets:
                stamp = packet.pts if packet.pts is not None else packet.dts
                if not packet.size or stamp is None:
                    continue
                if (stamp - info.start_pts) * self._samples_per_tick > sample + self._tolerance:
                    return False
                self._held = packet
                return True
        except (av.error.FFmpegError, OSError):
            return False
        return False

    # Decoding ---------------------------------------------------------------------------------------------------------

    def _fill(self, start: int, first: int, last: int, out: npt.NDArray[np.float32]) -> int:
        """Write samples [first, last) to `out`, whose sample 0 is `start`, and zeros around them.

        Returns:
            `last`, or where the sound ends if that comes first.

        Raises:
            _ReadError: If sound is missing or damaged.
        """
        out[:] = 0
        written = first  # all before it is there
        while self._blocks and self._blocks[0].stop <= first:
            self._blocks.popleft()
        for block in self._blocks:
            written = self._write(block, start, written, last, out)
        while written < last:
            following = self._next_block()
            if following is None:
                self._check_absent(written, min(last, self._info.num_samples - _TAIL_SAMPLES))
                self._next_position = None  # the decoder is drained: it cannot go on
                return written
            if following.stop > first:
                self._blocks.append(following)
                written = self._write(following, start, written, last, out)
        return last

    def _write(self, block: _Block, start: int, written: int, last: int, out: npt.NDArray[np.float32]) -> int:
        """Write the part of a block that lies in the window; returns up to where the window is complete."""
        first, stop, mono, is_damaged = block  # hundreds a window: no calls where comparisons do
        if first > written:
            self._check_absent(written, min(first, last))
        begin = first if first > start else start
        begin = begin if begin > 0 else 0
        end = stop if stop < last else last
        if begin < end:
            if is_damaged:
                raise _ReadError(f"the sound is damaged at {self._time(begin)}")
            out[begin - start : end - start] = mono[begin - first : end - first]
        return end if end > written else written

    def _check_absent(self, begin: int, end: int) -> None:
        """Check that no sound is due in [begin, end), but for rounding."""
        rounding = int(self._tolerance) + 1
        for gap_begin, gap_end in self._info.gaps:
            if gap_begin - rounding <= begin < gap_end:
                begin = gap_end
        if end - begin > rounding:
            raise _ReadError(f"the sound at {self._time(begin)} is missing") from self._cause

    def _next_block(self) -> _Block | None:
        """The next decoded frame in its place, or None at the end."""
        frame = next(self._decoded, None)
        if frame is None:
            return None
        start = self._place(frame)
        stop = self._next_position = start + frame.samples
        is_damaged = frame.is_corrupt or self._num_tainted > 0
        if self._num_tainted:
            self._num_tainted -= 1
        return _Block(start, stop, _mono(frame), is_damaged)

    def _place(self, frame: av.AudioFrame) -> int:
        """Position of the first sample of a frame.

        Frames follow each other without a break, unless a time stamp jumps further than rounding explains.
        """
        expected = self._next_position
        if frame.pts is None:
            if expected is None:
                raise _ReadError("its sound has no times")
            return expected
        pts = frame.pts
        if self._is_stamped_late and frame.duration:
            # In Ogg FFmpeg stamps packets where the size of blocks changes too late, but their ends are right.
            pts += frame.duration - frame.samples
        estimate = (pts - self._info.start_pts) * self._tick[0]
        if expected is not None and abs(estimate - expected * self._tick[1]) <= self._slack:
            return expected
        return self._snap(Fraction(estimate, self._tick[1]))

    def _snap(self, estimate: Fraction) -> int:
        """The place nearest to `estimate` where a frame can begin."""
        size, gaps = self._info.frame_size, self._info.gaps
        nearest = round_half_up(estimate)
        if self._samples_per_tick == 1 or not size:
            return nearest
        behind = bisect_right([gap[1] for gap in gaps], nearest + int(self._tolerance))
        anchor = gaps[behind - 1][1] if behind else 0
        if abs(nearest - anchor) <= self._tolerance:
            return anchor
        phase = 0 if behind else self._phase or 0
        return anchor + phase + round_half_up((estimate - anchor - phase) / size) * size

    def _frames(self) -> Iterator[av.AudioFrame]:
        """Decoded frames from the next packet on; a packet that cannot be decoded leaves a gap."""
        while True:
            packet, self._held = self._held, None
            try:
                if packet is None:
                    packet = next(self._packets, None)
            except (av.error.FFmpegError, OSError) as error:
                raise _ReadError(f"it cannot be read ({error.strerror})") from error
            if packet is None:
                return
            if packet.is_corrupt:
                self._num_tainted = _TAINTED_FRAMES
            try:
                frames = packet.decode()
            except (av.error.FFmpegError, OSError) as error:
                self._cause, self._num_tainted = error, _TAINTED_FRAMES
                continue
            yield from frames


class _Start(NamedTuple):
    """Where decoding begins: at or before `sample`, at the start of the file, or where the last call ended."""

    sample: int | None
    is_continued: bool = False


class _Block(NamedTuple):
    """Mono samples [start, stop)."""

    start: int
    stop: int
    mono: npt.NDArray[np.float32]
    is_damaged: bool


class _ReadError(Exception):
    """Sound did not come from one of the places to start from; its message says why."""


def _mono(frame: av.AudioFrame) -> npt.NDArray[np.float32]:
    """Mean of the channels, float32 [shape=(num_samples,)], full scale 1."""
    kind = _MONO_TYPES.get(frame.format.name)
    if kind is not None and frame.layout.nb_channels == 1:  # a third of the time
        own = np.frombuffer(memoryview(frame.planes[0]), kind, frame.samples)
        return own if kind == _FLOAT32 else own * _SHORT  # a view keeps the frame's memory
    samples = frame.to_ndarray()
    if not frame.format.is_planar:
        samples = samples.reshape(-1, frame.layout.nb_channels).T
    if samples.dtype.kind == "i":
        samples = (samples / float(1 << 8 * samples.dtype.itemsize - 1)).astype(np.float32)
    elif samples.dtype.kind == "u":
        samples = ((samples - 128.0) / 128).astype(np.float32)
    mono: npt.NDArray[np.float32] = samples.mean(axis=0, dtype=np.float32)
    return mono
