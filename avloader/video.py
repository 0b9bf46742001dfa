"""Frames on the CPU: exactly the wanted ones, from any container and codec that FFmpeg reads."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, NamedTuple

import av
import av.error
import numpy as np
import numpy.typing as npt
from av.video.plane import VideoPlane
from av.video.reformatter import Interpolation, VideoReformatter

from avloader.errors import DecodeError
from avloader.pictures import PictureOptions
from avloader.videopackets import DemuxedPackets, PacketError, PacketSource, open_listed, packet_stamp

__all__ = ["VideoReader"]

# Decoders that leave out non-reference frames on demand without a trace in the other frames.
_SKIPPING_CODECS = frozenset({"h264", "hevc"})

_PLAIN_FORMATS = frozenset({"yuv420p", "yuvj420p"})

_Planes = tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], npt.NDArray[np.uint8]]  # red, green, blue
_Places = dict[int, list[tuple[tuple[int, int], npt.NDArray[np.uint8]]]]  # by pts: corners, and where they go

_CHEAPER_THAN_SEEK = 4  # frames before the next key frame that are decoded rather than left out by a seek


class VideoReader:
    """Frames of one medium by pts. Keeps the container open between calls; not safe for use from two threads.

    Args:
        path: The medium.
        stream_index: The video stream in its container.
        keyframe_pts: int64, sorted; pts of key frames from which decoding can start (`VideoInfo.keyframe_pts`).
        picture: What is made of each picture; None: RGB of the stored size.
        num_threads: Threads of the codec.

    Raises:
        DecodeError: If the medium cannot be opened.
    """

    def __init__(
        self,
        path: str,
        *,
        stream_index: int,
        keyframe_pts: npt.NDArray[np.int64],
        picture: PictureOptions | None = None,
        num_threads: int = 1,
    ) -> None:
        if num_threads < 1:
            raise ValueError(f"num_threads must be at least 1, got {num_threads}")
        self._path = path
        self._stream_index = stream_index
        self._keyframe_pts = np.asarray(keyframe_pts, dtype=np.int64)
        self._picture = picture or PictureOptions()
        self._num_threads = num_threads
        self._reformatter = VideoReformatter()
        self._source: PacketSource | None = None
        self._trusts_header = True  # else FFmpeg's demuxer finds the packets
        self._position: int | None = None  # pts of the last frame taken
        self._closed = False
        try:
            self._open()
        except _ReadError as failure:
            raise self._error(failure) from failure.__cause__

    def read(
        self, pts: Sequence[int], *, corner: tuple[int, int] = (0, 0), out: npt.NDArray[np.uint8] | None = None
    ) -> npt.NDArray[np.uint8]:
        """The frames with these pts.

        Args:
            pts: Non-decreasing; a pts may repeat.
            corner: (top, left) of what is cut out of the scaled picture (`PictureOptions.corner`).
            out: uint8 [shape=(len(pts), C, H, W)] to write into; None: a new array.

        Returns:
            uint8 [shape=(len(pts), C, H, W)], bit-identical before scaling to a plain linear decode.

        Raises:
            DecodeError: If a frame cannot be had; nothing is substituted.
        """
        if self._closed:
            raise ValueError(f"the reader of {self._path} is closed")
        if out is None:
            out = np.empty((len(pts), self._picture.num_channels, *self._size), dtype=np.uint8)
        self.read_together([(pts, corner, out)])
        return out

    def read_together(self, requests: Sequence[tuple[Sequence[int], tuple[int, int], npt.NDArray[np.uint8]]]) -> None:
        """What `read` does with each (pts, corner, out), but what several need is decoded and converted once.

        Raises:
            DecodeError: If any of the frames cannot be had.
        """
        if self._closed:
            raise ValueError(f"the reader of {self._path} is closed")
        places: _Places = {}
        for pts, corner, out in requests:
            fits = [0 <= at <= whole - part for at, part, whole in zip(corner, self._size, self._shape, strict=True)]
            if not all(fits):
                raise ValueError(f"corner={corner} leaves no room for {self._size} in a picture of {self._shape}")
            shape = (len(pts), self._picture.num_channels, *self._size)
            if out.shape != shape or out.dtype != np.uint8:
                raise ValueError(f"out must be uint8 of shape {shape}, got {out.dtype} of shape {out.shape}")
            if any(after < before for before, after in itertools.pairwise(pts)):
                raise ValueError(f"pts must not decrease, got {list(pts)}")
            for stamp, frame in zip(pts, out, strict=True):
                places.setdefault(int(stamp), []).append((corner, frame))
        if not places:
            return
        for wanted in self._runs(sorted(places)):
            starts = list(self._starts(wanted[0]))
            if self._trusts_header:
                failure = self._try_from(starts[:1], wanted, places)
                if failure is None:
                    continue
                self._trusts_header = False
                starts = [start for start in starts if not start.is_continued]
            failure = self._try_from(starts, wanted, places)
            if failure is not None:
                raise self._error(failure) from failure.__cause__

    def _try_from(self, starts: Iterable[_Start], wanted: list[int], places: _Places) -> _ReadError | None:
        """Read the frames from the first of these places that yields them all; what went wrong last if none does."""
        failure: _ReadError | None = None
        for start in starts:
            try:
                self._go_to(start)
                self._decode(wanted, places, start)
            except _ReadError as found:
                failure = found
                self._release()  # flushing does not rid a decoder of everything that damage leaves in it
            else:
                return None
        return failure

    def close(self) -> None:
        """Close the file; calling it twice is harmless."""
        self._closed = True
        self._release()

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # The file ---------------------------------------------------------------------------------------------------------

    def _open(self) -> PacketSource:
        """The opened file, opened anew unless it is open."""
        if self._source is not None:
            return self._source
        source: PacketSource | None = None
        if self._trusts_header:
            source = open_listed(self._path, self._keyframe_pts, num_threads=self._num_threads)
            self._trusts_header = source is not None
        if source is None:
            try:
                source = DemuxedPackets(self._path, self._stream_index, num_threads=self._num_threads)
            except PacketError as error:
                raise _ReadError(str(error)) from error.__cause__
        self._source, context = source, source.context
        self._seconds_per_tick, rate = source.time_base, source.average_rate
        self._reach = int(_CHEAPER_THAN_SEEK / (rate * self._seconds_per_tick)) if rate else 0
        self._can_skip = context.codec.name in _SKIPPING_CODECS
        # VP8 has packets that only refresh a reference.
        self._owes_every_frame = context.codec.name != "vp8"
        self._shape = self._picture.scaled((context.height, context.width))
        self._size = self._picture.size or self._shape
        self._restart()
        return source

    def _restart(self) -> None:
        """Forget everything about what was read so far."""
        self._ahead: deque[av.VideoFrame] = deque()  # decoded, but not taken
        self._position = None
        self._newest: int | None = None  # pts of the last decoded frame
        self._highest: int | None = None  # of all packets sent to the decoder
        self._owed: set[int] = set()  # pts of the packets whose frames have not come out
        self._damage: int | None = None  # pts of the first damaged frame

    def _release(self) -> None:
        self._restart()
        if self._source is not None:
            self._source.close()
            self._source = None

    def _error(self, failure: _ReadError) -> DecodeError:
        remedy = "Get an intact copy, or build the manifest again if the file changed"
        return DecodeError(str(failure), path=self._path, remedy=remedy)

    def _time(self, pts: int) -> str:
        return f"{float(pts * self._seconds_per_tick):.3f} s (pts {pts})"

    # Where to start ---------------------------------------------------------------------------------------------------

    def _runs(self, wanted: list[int]) -> list[list[int]]:
        """Frames that increase, parted where a seek to a key frame costs less than decoding up to it."""
        runs = [wanted[:1]]
        index = np.searchsorted(self._keyframe_pts, wanted, side="right") - 1
        for after, key in zip(wanted[1:], index[1:].tolist(), strict=True):
            if key >= 0 and self._keyframe_pts[key] > runs[-1][-1] + self._reach:
                runs.append([])
            runs[-1].append(after)
        return runs

    def _starts(self, first: int) -> Iterator[_Start]:
        """Where to decode from to get the frame `first`: the cheapest place first, at last the start of the file."""
        index = int(np.searchsorted(self._keyframe_pts, first, side="right")) - 1
        near = int(self._keyframe_pts[index]) if index >= 0 else None
        position = self._position
        if position is not None and position < first and (near is None or near <= position + self._reach):
            yield _Start(None, near, is_continued=True, may_skip=self._can_skip)
        if near is not None:
            if self._can_skip:
                yield _Start(near, near, may_skip=True)
            yield _Start(near, near)
            for earlier in (index - 1, index - 3):
                if earlier >= 0:
                    yield _Start(int(self._keyframe_pts[earlier]), near)
        yield _Start(None, near)

    def _go_to(self, start: _Start) -> None:
        """Make the next packet be the one at which `start` begins.

        Raises:
            _ReadError: If it cannot be found.
        """
        if start.is_continued:
            return
        source = self._open()
        self._restart()
        try:
            if start.key is None:
                source.rewind()
            elif not source.seek(start.key):
                raise _ReadError(f"the key frame at {self._time(start.key)} is missing")
        except PacketError as error:
            raise _ReadError(str(error)) from error.__cause__

    # Decoding ---------------------------------------------------------------------------------------------------------

    def _decode(self, wanted: list[int], places: _Places, start: _Start) -> None:
        """Write the frames `wanted`, which increase, to where they belong, decoding from the next packet on.

        Raises:
            _ReadError: If a frame did not come, or came damaged, or may refer to a damaged one.
        """
        place, last = 0, wanted[-1]
        # The wanted frames may refer to frames up to here: these must come out too, to show whether they are whole.
        horizon = max(last, self._highest) if self._highest is not None else last
        while place < len(wanted) or self._newest is None or self._newest < horizon:
            if place < len(wanted) and self._ahead:
                frame = self._ahead.popleft()
                self._position = shown_pts = _frame_stamp(frame)
                if shown_pts < wanted[place]:
                    continue
                if shown_pts > wanted[place]:
                    raise _ReadError(f"there is no frame at {self._time(wanted[place])}")
                planes = self._planes(frame)
                for corner, picture in places[shown_pts]:
                    self._cut(planes, corner, picture)
                place += 1
                continue
            packet = self._next_packet()
            if packet is None:
                if place < len(wanted):
                    raise _ReadError(f"the file ends before the frame at {self._time(wanted[place])}")
                self._position = None  # the decoder is drained: it cannot go on
                break
            stamp = packet_stamp(packet)
            self._feed(packet, start, may_skip=stamp is not None and stamp < last and stamp not in places)
            if stamp is not None and stamp <= last and self._highest is not None:
                horizon = max(horizon, self._highest)
        if self._damage is not None and self._damage <= horizon:
            raise _ReadError(f"the picture is damaged at {self._time(self._damage)}")

    def _next_packet(self) -> av.Packet[Any] | None:
        try:
            return self._open().next()
        except PacketError as error:
            raise _ReadError(str(error)) from error.__cause__

    def _feed(self, packet: av.Packet[Any], start: _Start, *, may_skip: bool) -> None:
        """Send one packet to the decoder and keep the frames that it gives."""
        stamp = packet_stamp(packet) if packet.size else None
        # What lies before the key frame was decoded without its references, and nothing after it refers to it.
        counts = stamp is not None and (start.near is None or stamp >= start.near)
        is_skipping = may_skip and start.may_skip
        context = self._open().context
        context.skip_frame = "NONREF" if is_skipping else "DEFAULT"
        try:
            frames = context.decode(packet)
        except (av.error.FFmpegError, OSError) as error:
            if counts or stamp is None:
                where = "" if stamp is None else f" at {self._time(stamp)}"
                raise _ReadError(f"the picture cannot be decoded{where} ({error.strerror})") from error
            return
        if stamp is not None and not packet.is_discard:
            self._highest = stamp if self._highest is None else max(self._highest, stamp)
            # A lost part of a file often reads as zeros, which decoders take for nothing at all.
            if counts and (packet.is_corrupt or not any(memoryview(packet)[:8])):
                self._note_damage(stamp)
            if counts and not is_skipping and self._owes_every_frame:
                self._owed.add(stamp)
        for frame in frames:
            self._newest = _frame_stamp(frame)
            self._owed.discard(self._newest)
            if self._owed and min(self._owed) < self._newest:
                self._note_damage(min(self._owed))
            if frame.is_corrupt and (start.near is None or self._newest >= start.near):
                self._note_damage(self._newest)
            self._ahead.append(frame)

    def _note_damage(self, pts: int) -> None:
        self._damage = pts if self._damage is None else min(self._damage, pts)

    def _planes(self, frame: av.VideoFrame) -> _Planes:
        """Red, green and blue of the whole picture, scaled, each uint8 [shape=(height, width)]."""
        height, width = self._shape
        is_stored = (frame.height, frame.width) == self._shape
        if self._picture.size is None and not is_stored:
            raise _ReadError(f"the size of the picture changes to {frame.width} x {frame.height}")
        # Planes are what is wanted, and where FFmpeg has a way of its own to them, they come soonest. But without
        # scaling, that one alone gives the values of rgb24, and (FFmpeg 8) it leaves out columns of other widths.
        is_planar = not is_stored or (frame.format.name in _PLAIN_FORMATS and width % 16 == 0 and height % 2 == 0)
        picture = self._reformatter.reformat(
            frame,
            width,
            height,
            "gbrp" if is_planar else "rgb24",
            interpolation=Interpolation.BICUBIC if self._picture.interpolation == "bicubic" else Interpolation.BILINEAR,
            threads=1,
        )
        if is_planar:
            green, blue, red = (_rows(plane)[:height, :width] for plane in picture.planes)
            return red, green, blue
        pixels = _rows(picture.planes[0])[:height, : 3 * width]
        return pixels[:, 0::3], pixels[:, 1::3], pixels[:, 2::3]

    def _cut(self, planes: _Planes, corner: tuple[int, int], out: npt.NDArray[np.uint8]) -> None:
        """Write what is cut out of a picture to `out`, uint8 [shape=(C, H, W)]."""
        top, left = corner
        height, width = self._size
        red, green, blue = (plane[top : top + height, left : left + width] for plane in planes)
        if self._picture.color == "grey":
            out[0] = _grey(red, green, blue)
            return
        for channel, plane in enumerate((blue, green, red) if self._picture.color == "bgr" else (red, green, blue)):
            out[channel] = plane


def _rows(plane: VideoPlane) -> npt.NDArray[np.uint8]:
    return np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)


def _grey(
    red: npt.NDArray[np.uint8], green: npt.NDArray[np.uint8], blue: npt.NDArray[np.uint8]
) -> npt.NDArray[np.uint32]:
    """0.299 red + 0.587 green + 0.114 blue, rounded."""
    total = np.multiply(red, 19595, dtype=np.uint32)
    total += np.multiply(green, 38470, dtype=np.uint32)
    total += np.multiply(blue, 7471, dtype=np.uint32)
    total += 1 << 15
    total >>= 16
    return total


class _Start(NamedTuple):
    """Where decoding begins.

    Attributes:
        key: pts of the key frame; None: the start of the file, or where the last call ended.
        near: pts of the last key frame before the first wanted frame: damage before it is harmless.
        is_continued: Whether to go on where the last call ended.
        may_skip: Whether non-reference frames that are not wanted are left out.
    """

    key: int | None
    near: int | None
    is_continued: bool = False
    may_skip: bool = False


class _ReadError(Exception):
    """Frames did not come from one of the places to start from; its message says why."""


def _frame_stamp(frame: av.VideoFrame) -> int:
    stamp = frame.pts if frame.pts is not None else frame.dts
    if stamp is None:
        raise _ReadError("a frame has no time")
    return stamp
