"""Sound read straight from its place in the file: no demuxer, no seek, nothing but the packets of a window.

It serves windows about which the file leaves no doubt: AAC whose packets a header lists, inside the sound, undamaged;
plain WAV; and FLAC, which libsndfile decodes. What it does not serve, `avloader.audio` reads with FFmpeg's demuxer,
which copes with everything.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, BinaryIO, Protocol

import av
import av.error
import numpy as np
import numpy.typing as npt
from av.audio.codeccontext import AudioCodecContext

from avloader.facts import AudioInfo
from avloader.mp4 import Track
from avloader.mp4packets import Decoders, FileBytes, TrackPackets, only_track

if TYPE_CHECKING:
    import soundfile

__all__ = ["DirectSound", "open_direct"]

# Packets that AAC-LC needs before the first wanted one: half of a frame is the second half of the one before it, whose
# window shape the frame before that gave. HE-AAC's bands and filters remember more.
_LOW_COMPLEXITY, _LOW_COMPLEXITY_PREROLL, _PREROLL = 2, 2, 8

_Float32 = npt.NDArray[np.float32]


class DirectSound(Protocol):
    """Sound of one file."""

    def read(self, first: int, last: int, out: _Float32) -> bool:
        """Write samples [first, last), mono, into `out` [shape=(last - first,)]; False: it is not known to be right."""

    def close(self) -> None:
        """Close the file."""


def open_direct(path: str, info: AudioInfo) -> DirectSound | None:
    """The sound of a file that can be read directly, else None.

    Args:
        path: The medium or side-car file.
        info: Facts of its audio stream.

    Raises:
        OSError: If the file cannot be opened.
    """
    if info.gaps or info.samples_per_tick != 1:
        return None
    if info.codec == "aac":
        return _open_track(path, info)
    if info.codec in _WAV_TYPES:
        return _open_wav(path, info)
    if info.codec == "flac":
        return _open_flac(path, info)
    return None


# AAC in mp4 -----------------------------------------------------------------------------------------------------------


def _open_track(path: str, info: AudioInfo) -> _TrackSound | None:
    track = only_track(path, b"soun")
    if track is None or not track.aac_config or track.timescale != info.sample_rate or track.ctts is not None:
        return None
    durations = track.stts
    is_regular = len(durations) == 1 or (len(durations) == 2 and durations[1, 0] == 1)
    if not is_regular or durations[0, 1] != info.frame_size:
        return None
    return _TrackSound(path, info, track)


class _TrackSound:
    """AAC of an mp4 whose header lists its packets."""

    def __init__(self, path: str, info: AudioInfo, track: Track) -> None:
        self._size = info.frame_size
        self._track = track
        self._origin = int(track.composition[0]) + track.offset - info.start_pts  # where packet 0 begins
        # What a cut leaves before its start, a demuxer may or may not send to the decoder.
        self._first = 0 if -self._size <= self._origin <= 0 else -(self._origin // self._size) + _PREROLL
        # How the last packets are trimmed, the demuxer knows.
        self._stop = min(track.num_samples - 1, (info.num_samples - self._origin) // self._size - 1)
        is_plain = track.aac_config[0] >> 3 == _LOW_COMPLEXITY and self._size == 1024
        self._preroll = _LOW_COMPLEXITY_PREROLL if is_plain else _PREROLL
        self._decoder: AudioCodecContext | None = None
        self._is_intact = True  # the decoder has met nothing that it cannot decode
        self._num_channels = info.num_channels
        self._kept = np.zeros(0, np.float32)  # what was read last: the next window often begins in it
        self._next = -1  # the packet that follows it
        self._packets = TrackPackets(path, track)

    def read(self, first: int, last: int, out: _Float32) -> bool:
        begin, stop = (first - self._origin) // self._size, -((self._origin - last) // self._size)
        if begin < self._first or stop > self._stop:
            return False
        kept_begin = self._next - len(self._kept) // self._size
        if not (self._next >= 0 and kept_begin <= begin and stop <= self._next):
            mono = np.empty((stop - begin) * self._size, np.float32)
            if self._next >= 0 and kept_begin <= begin <= self._next + self._preroll:
                known = max(self._next - begin, 0) * self._size
                mono[:known] = self._kept[len(self._kept) - known :]
                is_right = self._decode(self._next, max(begin, self._next), stop, mono[known:])
            else:
                start = max(begin - self._preroll, 0)
                if not start:  # nothing comes before that drives out what the decoder keeps when it is flushed
                    self._decoder = _aac_decoder(self._track.aac_config)
                elif self._decoder is None:
                    self._decoder = _DECODERS.take(self._track.aac_config)
                else:
                    self._decoder.flush_buffers()
                is_right = self._decode(start, begin, stop, mono)
            self._kept, self._next = mono, stop if is_right else -1
            self._is_intact &= is_right
            if not is_right:
                return False
            kept_begin = begin
        at = first - self._origin - kept_begin * self._size
        out[:] = self._kept[at : at + last - first]
        return True

    def close(self) -> None:
        if self._decoder is not None and self._is_intact:
            _DECODERS.give_back(self._track.aac_config, self._decoder)
        self._decoder = None
        self._packets.close()

    def _decode(self, start: int, begin: int, stop: int, mono: _Float32) -> bool:
        """Decode packets [start, stop) and write the mean of the channels of those from `begin` on."""
        assert self._decoder is not None
        size, decode = self._size, self._decoder.decode
        channels = np.empty((self._num_channels, len(mono)), np.float32)
        at = (start - begin) * size
        try:
            for packet in self._packets.read(start, stop):
                frames = decode(packet)
                if len(frames) != 1 or frames[0].samples != size or frames[0].is_corrupt:
                    return False
                if at >= 0:
                    planes = frames[0].planes
                    if len(planes) != len(channels):
                        return False
                    for channel, plane in zip(channels, planes, strict=True):
                        channel[at : at + size] = np.frombuffer(memoryview(plane), np.float32, size)
                at += size
        except (av.error.FFmpegError, OSError, EOFError):
            return False
        if len(channels) == 1:
            mono[:] = channels[0]
        else:
            np.mean(channels, axis=0, dtype=np.float32, out=mono)
        return True


def _aac_decoder(config: bytes) -> AudioCodecContext:
    decoder = av.CodecContext.create("aac", "r")
    assert isinstance(decoder, AudioCodecContext)
    decoder.extradata = config
    decoder.thread_count = 1
    decoder.open()
    return decoder


_DECODERS = Decoders(_aac_decoder)


# PCM in WAV -----------------------------------------------------------------------------------------------------------

_WAV_TYPES = {"pcm_s16le": ("<i2", 2.0**-15), "pcm_s32le": ("<i4", 2.0**-31), "pcm_f32le": ("<f4", 1.0)}
_MOST_CHUNKS = 64  # before the sound


def _open_wav(path: str, info: AudioInfo) -> _WavSound | None:
    with open(path, "rb", buffering=0) as file:
        begin = _wav_data(file, info)
    return None if begin is None or info.start_pts else _WavSound(path, info, begin)


def _wav_data(file: BinaryIO, info: AudioInfo) -> int | None:
    """Where the samples begin in a RIFF file that holds all samples of `info`, else None."""
    head = file.read(12)
    if head[:4] != b"RIFF" or head[8:] != b"WAVE":
        return None
    block = info.num_channels * np.dtype(_WAV_TYPES[info.codec][0]).itemsize
    position, has_format = 12, False
    for _ in range(_MOST_CHUNKS):
        file.seek(position)
        head = file.read(8)
        if len(head) < 8:
            return None
        kind, size = head[:4], int.from_bytes(head[4:], "little")
        if kind == b"fmt ":
            channels, rate, _, align = struct.unpack_from("<HIIH", file.read(14), 2)
            has_format = (channels, rate, align) == (info.num_channels, info.sample_rate, block)
        elif kind == b"data":
            needed = info.num_samples * block
            is_whole = needed <= size and position + 8 + needed <= os.fstat(file.fileno()).st_size
            return position + 8 if has_format and is_whole else None
        position += 8 + size + size % 2
    return None


class _WavSound:
    """PCM that lies in one piece."""

    def __init__(self, path: str, info: AudioInfo, begin: int) -> None:
        kind, scale = _WAV_TYPES[info.codec]
        self._kind, self._scale = np.dtype(kind), np.float32(scale)
        self._begin, self._num_channels, self._num_samples = begin, info.num_channels, info.num_samples
        self._block = info.num_channels * self._kind.itemsize
        self._samples = np.empty(0, self._kind)  # as they were read last; windows are often of one length
        self._file = FileBytes(path)

    def read(self, first: int, last: int, out: _Float32) -> bool:
        if last > self._num_samples:
            return False
        count = (last - first) * self._num_channels
        samples = self._samples
        if len(samples) != count:
            samples = self._samples = np.empty(count, self._kind)
        try:
            self._file.fill((samples,), self._begin + first * self._block, (last - first) * self._block)
        except (OSError, EOFError):
            return False
        if self._num_channels == 1:
            out[:] = samples
            out *= self._scale  # a power of two: exact
        else:
            samples = samples.reshape(-1, self._num_channels)
            scaled = (samples * float(self._scale)).astype(np.float32) if self._scale != 1 else samples
            np.mean(scaled.T, axis=0, dtype=np.float32, out=out)
        return True

    def close(self) -> None:
        self._file.close()


# FLAC -----------------------------------------------------------------------------------------------------------------

_FLAC_TYPES = ("PCM_16", "PCM_24")  # whose samples are exact in float32


def _open_flac(path: str, info: AudioInfo) -> _FlacSound | None:
    with open(path, "rb", buffering=0) as file:
        if file.read(4) != b"fLaC" or info.start_pts:  # a container of another kind
            return None
    import soundfile

    try:
        sound = soundfile.SoundFile(path)
    except soundfile.SoundFileError:
        return None
    found = sound.format, sound.samplerate, sound.channels, sound.frames
    if found == ("FLAC", info.sample_rate, info.num_channels, info.num_samples) and sound.subtype in _FLAC_TYPES:
        return _FlacSound(sound)
    sound.close()
    return None


class _FlacSound:
    """FLAC that libsndfile decodes: its frames do not pass through Python one by one."""

    def __init__(self, sound: soundfile.SoundFile) -> None:
        self._sound = sound

    def read(self, first: int, last: int, out: _Float32) -> bool:
        from soundfile import SoundFileError

        sound, count = self._sound, last - first
        if last > sound.frames:
            return False
        samples = np.empty((count, sound.channels), np.float32)
        try:
            if sound.tell() != first:
                sound.seek(first)
            if sound.buffer_read_into(samples, "float32") != count:
                return False
        except SoundFileError:  # damaged
            return False
        if sound.channels == 1:
            out[:] = samples[:, 0]
        else:
            np.mean(samples.T, axis=0, dtype=np.float32, out=out)
        return True

    def close(self) -> None:
        self._sound.close()
