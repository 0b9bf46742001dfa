"""Packets of one picture stream from a key frame on.

They come straight from the file where its header lists them, else by FFmpeg's demuxer, which copes with everything.
"""

from __future__ import annotations

from collections import deque
from fractions import Fraction
from typing import Any, Protocol

import av
import av.container
import av.error
import numpy as np
import numpy.typing as npt
from av.video.codeccontext import VideoCodecContext

from avloader.mp4 import AvcDescription, Track
from avloader.mp4packets import TrackPackets, only_track
from avloader.source import open_container

__all__ = ["DemuxedPackets", "ListedPackets", "PacketError", "PacketSource", "open_listed", "packet_stamp"]

_TOGETHER = 16  # packets that are read at a time
_LOOKED_AT = 4096  # packets that show how far decoding runs ahead of presentation
_DEEPEST = 16  # frames of reordering that H.264 allows
_RANGES = {None: 0, False: 1, True: 2}  # FFmpeg's AVColorRange


class PacketError(Exception):
    """Packets did not come; the message says why."""


class PacketSource(Protocol):
    """An opened picture stream.

    Attributes:
        context: Its decoder.
        time_base: Seconds per tick.
        average_rate: Frames per second, or None.
    """

    context: VideoCodecContext
    time_base: Fraction
    average_rate: Fraction | None

    def rewind(self) -> None:
        """Make the next packet the first of the file, and forget what was decoded.

        Raises:
            PacketError: If the file cannot be read.
        """

    def seek(self, key: int) -> bool:
        """Make the key frame with this pts the next packet, and forget what was decoded; False if it is not found."""

    def next(self) -> av.Packet[Any] | None:
        """The next packet; an empty one at the end, which drains the decoder, then None.

        Raises:
            PacketError: If the file cannot be read.
        """

    def close(self) -> None:
        """Close the file; calling it twice is harmless."""


def packet_stamp(packet: av.Packet[Any]) -> int | None:
    """The packet's pts; its dts where the container stores only that."""
    return packet.pts if packet.pts is not None else packet.dts


class DemuxedPackets:
    """By FFmpeg's demuxer.

    Args:
        path: The medium.
        stream_index: The stream in its container.
        num_threads: Threads of the codec.

    Raises:
        PacketError: If it cannot be opened.
    """

    def __init__(self, path: str, stream_index: int, *, num_threads: int) -> None:
        self._path, self._stream_index, self._num_threads = path, stream_index, num_threads
        self._held: av.Packet[Any] | None = None  # the packet that comes next
        self._is_fresh = True  # nothing was read
        self._open()

    def rewind(self) -> None:
        """See `PacketSource.rewind`."""
        if not self._is_fresh:
            self._open()
        self._is_fresh = False

    def seek(self, key: int) -> bool:
        """See `PacketSource.seek`."""
        self._is_fresh = False
        margin = 0
        while key - margin >= (self._stream.start_time or 0) - 1 or not margin:
            if self._seek(key, margin):
                return True
            margin = 2 * margin or max(1, int(1 / self.time_base))
        return False

    def next(self) -> av.Packet[Any] | None:
        """See `PacketSource.next`."""
        packet, self._held = self._held, None
        try:
            return packet if packet is not None else next(self._packets, None)
        except (av.error.FFmpegError, OSError) as error:
            raise PacketError(f"it cannot be read ({error.strerror})") from error

    def close(self) -> None:
        """Close the file; calling it twice is harmless."""
        self._held = None
        self._container.close()

    def _open(self) -> None:
        try:
            self._container: av.container.InputContainer = open_container(self._path)
            stream = self._container.streams[self._stream_index]
        except (av.error.FFmpegError, OSError) as error:
            raise PacketError(f"it cannot be opened ({error.strerror})") from error
        except IndexError:
            raise PacketError(f"it has no stream {self._stream_index}") from None
        if not isinstance(stream, av.VideoStream) or stream.time_base is None:
            raise PacketError(f"its stream {self._stream_index} is no picture")
        if stream.codec_context is None:
            raise PacketError(f"the codec of its stream {self._stream_index} is unknown")
        self._stream = stream
        self.context = stream.codec_context
        _set_threads(self.context, self._num_threads)
        self.time_base = Fraction(stream.time_base.numerator, stream.time_base.denominator)
        rate = stream.average_rate
        self.average_rate = Fraction(rate.numerator, rate.denominator) if rate else None
        self._packets = self._container.demux(stream)
        self._held, self._is_fresh = None, True

    def _seek(self, key: int, margin: int) -> bool:
        """Seek `margin` ticks before the key frame and read up to it; False if the seek ended past it."""
        try:
            # Most containers seek by dts, MPEG-TS by a guess: where it ended, only the packets tell.
            self._container.seek(key - margin, stream=self._stream, backward=True)
            self._packets = self._container.demux(self._stream)
            self._held = None
            for packet in self._packets:
                if packet.is_keyframe and packet.size:
                    stamp = packet_stamp(packet)
                    if stamp == key:
                        self._held = packet
                        return True
                    if stamp is not None and stamp > key:
                        break
        except (av.error.FFmpegError, OSError):
            return False
        return False


class ListedPackets:
    """H.264 of an mp4 whose header lists its packets.

    Args:
        path: The medium.
        track: The track.
        avc: Its description.
        num_threads: Threads of the codec.

    Raises:
        OSError: If the file cannot be opened.
    """

    def __init__(self, path: str, track: Track, avc: AvcDescription, *, num_threads: int) -> None:
        self._track = track
        self._stamps = track.composition + track.offset
        keys = np.arange(track.num_samples) if track.stss is None else track.stss
        order = np.argsort(self._stamps[keys], kind="stable")
        self._keys, self._key_stamps = keys[order], self._stamps[keys[order]]
        self._depth = _reordering(track.composition)
        self.time_base = Fraction(1, track.timescale)
        ticks = int(track.stts[:, 0] @ track.stts[:, 1])
        self.average_rate = Fraction(track.num_samples * track.timescale, ticks) if ticks else None
        self.context = _decoder(avc, num_threads)
        self._read_ahead: deque[av.Packet[Any]] = deque()
        self._packets = TrackPackets(path, track)
        self._next = 0
        self._is_fresh = True

    def has_keys(self, key_pts: npt.NDArray[np.int64]) -> bool:
        """Whether there is a key frame at each of these pts."""
        found = np.searchsorted(self._key_stamps, key_pts)
        return bool((found < len(self._keys)).all() and (self._key_stamps[found] == key_pts).all())

    def rewind(self) -> None:
        """See `PacketSource.rewind`."""
        self._go_to(0)

    def seek(self, key: int) -> bool:
        """See `PacketSource.seek`."""
        place = int(np.searchsorted(self._key_stamps, key))
        if place == len(self._keys) or self._key_stamps[place] != key:
            return False
        self._go_to(int(self._keys[place]))
        return True

    def next(self) -> av.Packet[Any] | None:
        """See `PacketSource.next`."""
        if not self._read_ahead:
            self._fill()
        return self._read_ahead.popleft() if self._read_ahead else None

    def close(self) -> None:
        """Close the file; calling it twice is harmless."""
        self._packets.close()

    def _go_to(self, sample: int) -> None:
        self._next = sample
        self._read_ahead.clear()
        if not self._is_fresh:
            self.context.flush_buffers()
        self._is_fresh = False
        if hasattr(self.context, "reorder_depth"):  # PyAV 18; before, the decoder has to find out
            self.context.reorder_depth = self._depth

    def _fill(self) -> None:
        start, stop = self._next, min(self._next + _TOGETHER, self._track.num_samples)
        self._next = stop + (start == stop)
        if start == stop:
            self._read_ahead.append(av.Packet(0))
        if start >= stop:
            return
        try:
            packets = self._packets.read(start, stop)
        except (OSError, EOFError) as error:
            raise PacketError("it cannot be read where its header says") from error
        for packet, stamp in zip(packets, self._stamps[start:stop].tolist(), strict=True):
            packet.pts = stamp
        self._read_ahead.extend(packets)


def open_listed(path: str, keyframe_pts: npt.NDArray[np.int64], *, num_threads: int) -> ListedPackets | None:
    """The packets of a medium's only picture track if its header says all about them, else None.

    Args:
        path: The medium.
        keyframe_pts: Where decoding can start, as is known of the medium.
        num_threads: Threads of the codec.
    """
    try:
        track = only_track(path, b"vide")
        if track is None or track.avc is None:
            return None
        listed = ListedPackets(path, track, track.avc, num_threads=num_threads)
    except (OSError, av.error.FFmpegError):
        return None
    if not listed.has_keys(keyframe_pts):
        listed.close()
        return None
    return listed


def _reordering(composition: npt.NDArray[np.int64]) -> int:
    """How many frames are decoded before one that is shown before them, at most."""
    times = composition[:_LOOKED_AT]
    later = np.zeros(len(times), np.int64)
    for distance in range(1, min(_DEEPEST + 1, len(times))):
        later[distance:] += times[:-distance] > times[distance:]
    return min(int(later.max(initial=0)), _DEEPEST)


def _decoder(avc: AvcDescription, num_threads: int) -> VideoCodecContext:
    context = av.CodecContext.create("h264", "r")
    assert isinstance(context, VideoCodecContext)
    context.extradata = avc.config
    context.width, context.height = avc.width, avc.height
    if avc.colour is not None:
        context.color_primaries, context.color_trc, context.colorspace = avc.colour
    context.color_range = _RANGES[avc.full_range]
    _set_threads(context, num_threads)
    context.open()
    return context


def _set_threads(context: VideoCodecContext, num_threads: int) -> None:
    context.thread_count = num_threads
    if num_threads == 1:
        context.thread_type = "NONE"
