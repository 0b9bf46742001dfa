"""Exact facts of a media file, from its headers and packets, never by decoding."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Protocol, TypeAlias

import av
import av.container
import av.error
import av.stream
import numpy as np
import numpy.typing as npt
from av.stream import Disposition

from avloader.errors import MediaError
from avloader.mp4 import Movie, Track, read_movie
from avloader.timeline import FrameTimes, round_half_up

__all__ = ["AudioInfo", "MediaInfo", "Prober", "VideoInfo", "probe"]


@dataclass(frozen=True, eq=False)
class VideoInfo:
    """The video stream of a medium (the one that FFmpeg calls best).

    Attributes:
        stream_index: Index of the stream in its container.
        codec: FFmpeg's codec name: "h264", "hevc", "vp9" ...
        pixel_format: FFmpeg's name: "yuv420p" ...
        width, height: Stored size in pixels.
        rotation: Degrees to turn the stored picture counter-clockwise for display: 0, 90, 180 or 270.
        times: When each displayed frame is shown.
        frame_rate: Frames per second if constant (every pts within one tick of a regular grid), else None.
        average_rate: (num_frames - 1) / (last - first) frames per second; `frame_rate` where that is constant.
        keyframe_pts: int64, sorted; pts of the displayed key frames from which decoding can start.
        times_from: "header" if the sample tables prove the times, "packets" if all packets were read.
        color_matrix: From Y, Cb, Cr to RGB: "bt601" (also where the stream says nothing), "bt709", "bt2020", "fcc",
            "smpte240m".
        full_range: Whether luma takes all of 0 to 255, not 16 to 235.
    """

    stream_index: int
    codec: str
    pixel_format: str
    width: int
    height: int
    rotation: int
    times: FrameTimes
    frame_rate: Fraction | None
    average_rate: Fraction
    keyframe_pts: npt.NDArray[np.int64]
    times_from: str
    color_matrix: str = "bt601"
    full_range: bool = False


@dataclass(frozen=True)
class AudioInfo:
    """The audio stream of a medium (the one that FFmpeg calls best).

    Sample 0 is the first sample that a linear decode delivers (priming removed).

    Attributes:
        stream_index: Index of the stream in its container.
        codec: FFmpeg's codec name: "aac", "opus", "pcm_s16le" ...
        sample_rate: Samples per second as decoded (HE-AAC: the output rate).
        num_channels: Channels as decoded.
        time_base: Seconds per tick of the stream's pts.
        origin: The container's start in seconds on the stream's clock (the same meaning as `FrameTimes.origin`).
        start_pts: pts of sample 0.
        frame_size: Samples of one codec frame if all but the last have the same number, else 0.
        num_samples: Samples from sample 0 to the end, holes included (the end of the last packet; a decoder may trim
            some hundred samples of padding more).
        gaps: Holes as (start, stop) in samples counted from sample 0, sorted; sound in them is zero.
    """

    stream_index: int
    codec: str
    sample_rate: int
    num_channels: int
    time_base: Fraction
    origin: Fraction
    start_pts: int
    frame_size: int
    num_samples: int
    gaps: tuple[tuple[int, int], ...] = ()

    @property
    def start_seconds(self) -> Fraction:
        """Media time of sample 0."""
        return self.start_pts * self.time_base - self.origin

    @property
    def stop_seconds(self) -> Fraction:
        """Media time at which the sound ends."""
        return self.start_seconds + Fraction(self.num_samples, self.sample_rate)


@dataclass(frozen=True, eq=False)
class MediaInfo:
    """Facts of one medium.

    Attributes:
        path: The path that was probed.
        size: Bytes.
        mtime_ns: Modification time in nanoseconds.
        container: FFmpeg's format name, for example "mov,mp4,m4a,3gp,3g2,mj2".
        origin: The container's start in seconds on its streams' clocks: media time 0.
        video, audio: The streams, or None.
        nvdec_reason: Why DALI's video reader cannot take the file; "" if it can.
    """

    path: str
    size: int
    mtime_ns: int
    container: str
    origin: Fraction
    video: VideoInfo | None
    audio: AudioInfo | None
    nvdec_reason: str


_Packet: TypeAlias = "av.Packet[av.stream.Stream]"
_STANDARD_RATES = tuple(
    Fraction(rate) for rate in ("24000/1001", "24", "25", "30000/1001", "30", "48", "50", "60000/1001", "60", "120")
)
_COLOR_MATRICES = {1: "bt709", 4: "fcc", 7: "smpte240m", 9: "bt2020", 10: "bt2020"}  # ITU-T H.273, table 4
_NVDEC_CODECS = ("h264", "hevc")
_NVDEC_PIXEL_FORMATS = ("yuv420p", "yuvj420p")
_FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")  # of an mp4 or mov file
_REENCODE = "Convert it with 'avloader prepare', or get a complete copy"


def probe(path: str | os.PathLike[str]) -> MediaInfo:
    """Facts of the medium at `path`.

    Reads headers only where they prove the frame times, else all packets; never decodes.

    Raises:
        MediaError: With `code` "missing_file", "unreadable" or "no_streams".
    """
    name = os.fspath(path)
    status = _status(name)
    with _ffmpeg_errors(name):
        movie = _movie(name)
        if movie is not None and not movie.is_fragmented:
            with av.open(name) as container:
                facts = _facts(name, status, container, movie, _from_tables)
            if facts is not None:
                return facts
        with av.open(name) as container:  # anew: the first packets of some files cannot be had by seeking
            facts = _facts(name, status, container, movie, _from_packets)
            assert facts is not None
            return facts


class Prober:
    """What a worker process runs to probe media."""

    def __init__(self, init: None = None, memory: None = None) -> None:
        pass

    def __call__(self, path: str) -> MediaInfo | MediaError:
        """Facts of the medium, or why there are none."""
        try:
            if path.encode(errors="ignore").decode().replace("\0", "") != path:
                raise MediaError(
                    "its path is not UTF-8 or holds a null", path=path, remedy="Rename it", code="unreadable"
                )
            return probe(path)
        except MediaError as error:
            return error


def _facts(
    path: str,
    status: os.stat_result,
    container: av.container.InputContainer,
    movie: Movie | None,
    read_streams: Callable[[_Source], tuple[_Pictures | None, AudioInfo | None] | None],
) -> MediaInfo | None:
    """Facts by `read_streams`; None if that proves nothing."""
    video, audio = _best_streams(container)
    if video is None and audio is None:
        raise MediaError("it holds neither picture nor sound", path=path, remedy=_REENCODE, code="no_streams")
    source = _Source(path, container, movie, video, audio, _origin(container))
    found = read_streams(source)
    if found is None:
        return None
    pictures, audio_info = found
    times_from = "header" if read_streams is _from_tables else "packets"
    video_info = None if pictures is None else _video_info(source, pictures, times_from)
    if video_info is None and audio_info is None:
        raise MediaError("its streams hold no data", path=path, remedy=_REENCODE, code="no_streams")
    return MediaInfo(
        path=path,
        size=status.st_size,
        mtime_ns=status.st_mtime_ns,
        container=container.format.name,
        origin=source.origin,
        video=video_info,
        audio=audio_info,
        nvdec_reason=_nvdec_reason(source, video_info, pictures),
    )


@dataclass(frozen=True, eq=False)
class _Source:
    """An opened medium: its header if it is mp4 or mov, the streams that FFmpeg calls best, its start in seconds."""

    path: str
    container: av.container.InputContainer
    movie: Movie | None
    video: av.VideoStream | None
    audio: av.AudioStream | None
    origin: Fraction

    @property
    def streams(self) -> list[av.VideoStream | av.AudioStream]:
        """The streams that there are."""
        return [stream for stream in (self.video, self.audio) if stream is not None]


# Opening --------------------------------------------------------------------------------------------------------------


def _status(path: str) -> os.stat_result:
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise MediaError("there is no such file", path=path, remedy="Check the path", code="missing_file") from None
    except OSError as error:
        raise _unreadable(path, f"it cannot be read ({_words(error)})", "Check the permissions") from None
    if stat.S_ISDIR(status.st_mode):
        raise _unreadable(path, "it is a folder, not a media file", "Name a file in it")
    if not stat.S_ISREG(status.st_mode):
        raise _unreadable(path, "it is not a regular file", "Name a media file")
    if not status.st_size:
        raise _unreadable(path, "the file is empty", "Get a complete copy")
    return status


def _movie(path: str) -> Movie | None:
    """The header of an mp4 or mov file; None for other files."""
    with open(path, "rb") as file:
        if file.read(8)[4:] not in _FIRST_BOXES:
            return None
    movie = read_movie(path)
    if movie is not None and movie.missing_bytes:
        raise _unreadable(path, f"the file is cut off: {movie.missing_bytes} bytes are missing", "Get a complete copy")
    return movie


def _unreadable(path: str, cause: str, remedy: str) -> MediaError:
    return MediaError(cause, path=path, remedy=remedy, code="unreadable")


def _words(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


@contextlib.contextmanager
def _ffmpeg_errors(path: str) -> Iterator[None]:
    """Turns what FFmpeg reports into a MediaError."""
    try:
        yield
    except PermissionError:
        raise _unreadable(path, "there is no permission to read it", "Change its permissions") from None
    except av.error.InvalidDataError:
        cause = "FFmpeg finds no media in it: not a media file, or cut off before its index was written"
        raise _unreadable(path, cause, _REENCODE) from None
    except (av.error.FFmpegError, OSError) as error:
        if isinstance(error, OSError) and error.errno == errno.ENOENT:
            raise MediaError("the file vanished", path=path, remedy="Check the path", code="missing_file") from None
        words = _words(error) if isinstance(error, OSError) else str(error)
        raise _unreadable(path, f"FFmpeg cannot read it ({words})", _REENCODE) from None


def _best_streams(
    container: av.container.InputContainer,
) -> tuple[av.VideoStream | None, av.AudioStream | None]:
    """The picture and the sound that FFmpeg calls best and can decode."""
    video, audio = container.streams.best("video"), container.streams.best("audio")
    if not isinstance(video, av.VideoStream) or video.codec_context is None or _is_cover_art(video):
        video = None
    if not isinstance(audio, av.AudioStream) or audio.codec_context is None:
        audio = None
    return video, audio


def _is_cover_art(stream: av.VideoStream) -> bool:
    return bool(stream.disposition & Disposition.attached_pic)


class _Rational(Protocol):
    @property
    def numerator(self) -> int: ...
    @property
    def denominator(self) -> int: ...


def _fraction(value: _Rational | None) -> Fraction | None:
    """A rational attribute, whichever type PyAV gives it; None if unset."""
    return Fraction(value.numerator, value.denominator) if value else None


def _time_base(stream: av.VideoStream | av.AudioStream) -> Fraction:
    time_base = _fraction(stream.time_base)
    assert time_base is not None, "FFmpeg gives every stream a time base"
    return time_base


def _origin(container: av.container.InputContainer) -> Fraction:
    """The container's start in seconds: the exact value behind its `start_time`, which is rounded to microseconds."""
    starts = [
        stream.start_time * time_base
        for stream in container.streams
        if stream.start_time is not None and (time_base := _fraction(stream.time_base)) is not None
    ]
    if container.start_time is None:
        return min(starts, default=Fraction(0))
    rounded = Fraction(container.start_time, av.time_base)
    return min((start for start in starts if abs(start - rounded) <= Fraction(1, av.time_base)), default=rounded)


def _codec_name(stream: av.VideoStream | av.AudioStream) -> str:
    codec = stream.codec_context.codec
    return str(getattr(codec, "canonical_name", codec.name))


# Packets --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Pictures:
    """Displayed frames in decoding order.

    Attributes:
        pts, duration: int64 [shape=(num_frames,)], ticks.
        is_key: bool [shape=(num_frames,)], whether decoding can start there.
        refreshed_later: Whether some packets are called key frames but only begin a gradual refresh.
    """

    pts: npt.NDArray[np.int64]
    duration: npt.NDArray[np.int64]
    is_key: npt.NDArray[np.bool_]
    refreshed_later: bool


@dataclass
class _Sounds:
    """Packets of an audio stream in order; `skip` and `trim` are samples that a decoder drops at start and end."""

    pts: list[int | None] = field(default_factory=list)
    duration: list[int] = field(default_factory=list)
    num_samples: list[int] = field(default_factory=list)  # 0: the packet does not tell
    skip: list[int] = field(default_factory=list)
    trim: list[int] = field(default_factory=list)
    is_shown: list[bool] = field(default_factory=list)

    def append(self, packet: _Packet, num_samples: int) -> None:
        """Note a packet."""
        skip = trim = 0
        if packet.has_sidedata("skip_samples"):
            side = bytes(packet.get_sidedata("skip_samples"))
            skip, trim = int.from_bytes(side[:4], "little"), int.from_bytes(side[4:8], "little")
        self.pts.append(packet.pts)
        self.duration.append(packet.duration or 0)
        self.num_samples.append(num_samples)
        self.skip.append(skip)
        self.trim.append(trim)
        self.is_shown.append(not packet.is_discard)


def _from_packets(source: _Source) -> tuple[_Pictures | None, AudioInfo | None]:
    """What all packets say."""
    video, audio = source.video, source.audio
    video_index = -1 if video is None else video.index
    is_vp8 = video is not None and _codec_name(video) == "vp8"
    key_check = None if video is None else _KeyCheck(_codec_name(video), video.codec_context.extradata)
    count_samples = None if audio is None else _SampleCounter(audio)
    sounds = _Sounds()
    pts: list[int | None] = []
    dts: list[int | None] = []
    durations: list[int] = []
    keys: list[bool] = []
    refreshed_later = False
    for packet in source.container.demux(source.streams):
        if not packet.size:
            continue
        if packet.stream_index == video_index:
            # A VP8 reference frame that is never shown has a packet of its own.
            if packet.is_discard or (is_vp8 and not memoryview(packet)[0] & 0x10):
                continue
            is_key = packet.is_keyframe
            if is_key and key_check is not None and key_check.is_refreshed_later(bytes(packet)):
                is_key, refreshed_later = False, True
            pts.append(packet.pts)
            dts.append(packet.dts)
            durations.append(packet.duration or 0)
            keys.append(is_key)
        elif count_samples is not None:
            sounds.append(packet, count_samples(packet))
    if video is not None and any(stamp is None for stamp in pts):
        if video.codec_context.has_b_frames:
            raise _no_times(source.path)
        pts = dts
    stamps = [stamp for stamp in pts if stamp is not None]
    if len(stamps) < len(pts):
        raise _no_times(source.path)
    pictures = None
    if stamps:
        as_array = np.array(stamps, dtype=np.int64), np.array(durations, dtype=np.int64), np.array(keys, dtype=np.bool_)
        pictures = _Pictures(*as_array, refreshed_later)
    return pictures, None if audio is None else _audio_info(source, audio, sounds)


class _KeyCheck:
    """Tells H.264 key frames that are whole pictures from those where a gradual refresh only begins.

    Args:
        codec: FFmpeg's codec name.
        extradata: The stream's codec configuration.
    """

    def __init__(self, codec: str, extradata: bytes | None) -> None:
        self.is_h264 = codec == "h264"
        # avcC: every NAL unit follows its length; else Annex B: every one follows 00 00 01.
        self.length_size = (extradata[4] & 3) + 1 if extradata and len(extradata) > 4 and extradata[0] == 1 else 0

    def is_refreshed_later(self, data: bytes) -> bool:
        """Whether the picture is complete only some frames after this packet."""
        if not self.is_h264:
            return False
        for unit in self._units(data):
            kind = unit[0] & 31
            if kind in (1, 5):
                return False
            if kind == 6 and _recovery_frames(unit) > 0:
                return True
        return False

    def _units(self, data: bytes) -> Iterator[bytes]:
        position = 0
        if self.length_size:
            while position + self.length_size < len(data):
                start = position + self.length_size
                position = start + int.from_bytes(data[position:start], "big")
                if start < position:
                    yield data[start : min(position, start + 256)]
            return
        position = data.find(b"\0\0\1")
        while 0 <= position < len(data) - 3:
            following = data.find(b"\0\0\1", position + 3)
            yield data[position + 3 : following if following >= 0 else position + 259]
            position = following


def _recovery_frames(unit: bytes) -> int:
    """`recovery_frame_cnt` of a recovery point message in an H.264 SEI unit; 0 if there is none."""
    payload = unit[1:].replace(b"\0\0\3", b"\0\0")
    position = 0
    while position + 2 < len(payload):
        values = []
        for _ in range(2):  # type, then size: bytes of 255 are continued
            value = 0
            while position < len(payload) and payload[position] == 255:
                value, position = value + 255, position + 1
            if position == len(payload):
                return 0
            values.append(value + payload[position])
            position += 1
        if values[0] == 6:
            bits = int.from_bytes(payload[position : position + 8].ljust(8, b"\0"), "big")
            zeros = 64 - bits.bit_length()
            return ((bits << zeros & 2**64 - 1) >> 63 - zeros) - 1 if zeros < 32 else 0
        position += values[1]
    return 0


class _SampleCounter:
    """Samples that a packet decodes to, where codec or packet tell it exactly; 0 where they do not."""

    def __init__(self, stream: av.AudioStream) -> None:
        context = stream.codec_context
        self.codec = _codec_name(stream)
        self.block_bytes = 0
        if self.codec.startswith("pcm_"):
            bits = int("".join(filter(str.isdigit, self.codec)) or 8)
            self.block_bytes = bits // 8 * context.channels
        if self.codec in ("pcm_alaw", "pcm_mulaw"):
            self.block_bytes = context.channels

    def __call__(self, packet: _Packet) -> int:
        """Samples per channel."""
        if self.block_bytes:
            return packet.size // self.block_bytes
        if self.codec == "opus":
            return _opus_samples(bytes(memoryview(packet)[:2]))
        if self.codec == "flac":
            return _flac_samples(bytes(memoryview(packet)[:16]))
        return 0


def _opus_samples(head: bytes) -> int:
    """Samples at 48 kHz of an Opus packet, from its first two bytes (RFC 6716, section 3.1)."""
    config, code = head[0] >> 3, head[0] & 3
    if config < 12:
        frame = (480, 960, 1920, 2880)[config & 3]
    elif config < 16:
        frame = (480, 960)[config & 1]
    else:
        frame = (120, 240, 480, 960)[config & 3]
    count = (1, 2, 2, head[1] & 63 if len(head) > 1 else 0)[code]
    return frame * count


def _flac_samples(head: bytes) -> int:
    """Samples of a FLAC frame, from its header (RFC 9639, section 9.1); 0 if it is none."""
    if len(head) < 16 or head[0] != 0xFF or head[1] & 0xFE != 0xF8:
        return 0
    code = head[2] >> 4
    if code in (6, 7):  # the number minus one follows the frame number, which is coded as in UTF-8
        lead = head[4]
        size = 1 if lead < 0x80 else 8 - (lead ^ 0xFF).bit_length()
        return int.from_bytes(head[4 + size : 4 + size + code - 5], "big") + 1
    return 192 if code == 1 else 576 << code - 2 if 2 <= code <= 5 else 256 << code - 8 if code >= 8 else 0


# Sample tables --------------------------------------------------------------------------------------------------------

# A decoder delivers their last frame whole, even where the container says that the sound ends within it.
_WHOLE_FRAME_CODECS = frozenset({"aac", "ac3", "eac3", "mp2", "mp3", "mp3float", "opus", "libopus"})
_NUM_CHECKED = 6
_MAX_CHECK_PACKETS = 2000


def _from_tables(source: _Source) -> tuple[_Pictures | None, AudioInfo | None] | None:
    """What the header's tables say, if FFmpeg's packets agree with them at both ends; else None."""
    assert source.movie is not None
    ends = []
    for stream in source.streams:
        track = source.movie.tracks.get(stream.id)
        if track is None or track.timescale * _time_base(stream) != 1:
            return None
        end = _Ends.of(stream, track)
        if end is None:
            return None
        ends.append(end)
    if not _check_head(source.container, ends) or not all(end.check_tail(source.container) for end in ends):
        return None
    pictures: _Pictures | None = None
    audio_info: AudioInfo | None = None
    for end in ends:
        if isinstance(end.stream, av.VideoStream):
            pictures = _pictures_from_table(source.path, end)
            if pictures is None or int(pictures.pts.min()) != end.stream.start_time:
                return None
        else:
            audio_info = _audio_info(source, end.stream, end.sounds)
            if audio_info is None or audio_info.gaps or audio_info.start_pts != end.stream.start_time:
                return None
            if not audio_info.frame_size:
                return None
            tick = audio_info.time_base * audio_info.sample_rate
            num_samples = round_half_up((end.stop_pts - audio_info.start_pts) * tick)
            audio_info = replace(audio_info, num_samples=num_samples)
    return pictures, audio_info


@dataclass(eq=False)
class _Ends:
    """Compares the tables of one track with FFmpeg's first and last packets.

    Attributes:
        stream: FFmpeg's stream.
        track: The tables.
        pts: int64, of every sample that is a packet of its own, in decoding order; empty for PCM, whose packets are
            what FFmpeg makes of it.
        is_shown, is_key: bool, of the same.
        stop_pts: End of the last packet in ticks.
        sounds: The first packets of an audio stream.
        next_sample: The sample that must come next; -1: any.
        num_shown: How many shown packets came.
    """

    stream: av.VideoStream | av.AudioStream
    track: Track
    pts: npt.NDArray[np.int64]
    is_shown: npt.NDArray[np.bool_]
    is_key: npt.NDArray[np.bool_]
    stop_pts: int = 0
    sounds: _Sounds = field(default_factory=_Sounds)
    next_sample: int = -1
    num_shown: int = 0

    @classmethod
    def of(cls, stream: av.VideoStream | av.AudioStream, track: Track) -> _Ends | None:
        """None where the tables alone prove nothing."""
        none = np.zeros(0, dtype=np.bool_)
        if isinstance(stream, av.VideoStream):
            pts = track.composition + track.offset
            late = track.offset + track.edit[0]
            if track.has_edit and track.is_shown.any():
                # FFmpeg moves a picture that a cut begins within to the cut's start.
                pts -= max(0, int(pts[track.is_shown].min()) - late)
            return cls(stream, track, pts, track.is_shown, track.is_key)
        if track.ctts is not None or not _is_gapless(track.stts):
            return None
        if _codec_name(stream).startswith("pcm_"):
            total = int((track.stts[:, 0] * track.stts[:, 1]).sum())
            if track.edit[0] > 0:
                return None
            return cls(stream, track, np.zeros(0, np.int64), none, none, min(total, track.edit[1]) + track.offset)
        # Of a packet that only ends inside the edit, FFmpeg drops the first samples.
        ends = track.composition + np.repeat(track.stts[:, 1], track.stts[:, 0])
        is_shown = (ends > track.edit[0]) & (track.composition < track.edit[1])
        return cls(stream, track, track.composition + track.offset, is_shown, track.is_key)

    @property
    def last_shown(self) -> int:
        """The last shown sample in decoding order."""
        return int(np.flatnonzero(self.is_shown)[-1])

    def agrees(self, packet: _Packet) -> bool:
        """Whether this packet is the sample that the tables say comes next."""
        if packet.pts is None:
            return False
        if not len(self.pts):
            return True
        if self.next_sample < 0:
            matches = np.flatnonzero(self.pts == packet.pts)
            if len(matches) != 1:
                return False
            self.next_sample = int(matches[0])
        sample = self.next_sample
        self.next_sample += 1
        return (
            sample < len(self.pts)
            and int(self.pts[sample]) == packet.pts
            and bool(self.is_shown[sample]) != packet.is_discard
            and (bool(self.is_key[sample]) == packet.is_keyframe)
        )

    def check_tail(self, container: av.container.InputContainer) -> bool:
        """Whether FFmpeg's last packets are the tables' last shown samples."""
        if len(self.pts):
            if not self.is_shown.any():
                return False
            last = self.last_shown
            target = int(self.pts[max(0, last - _NUM_CHECKED) : last + 1].min())
        else:
            last = -1
            target = self.stop_pts - 1
        # All streams are positioned, but only this one must be read: its last packets come first or soon.
        container.seek(target, stream=self.stream, any_frame=True)
        self.next_sample = -1
        for seen, packet in enumerate(container.demux(self.stream)):
            if not packet.size or seen > _MAX_CHECK_PACKETS or not self.agrees(packet):
                return False
            assert packet.pts is not None
            stop = packet.pts + (packet.duration or 0)
            if _codec_name(self.stream) in _WHOLE_FRAME_CODECS:
                stop = max(stop, packet.pts + int(self.track.stts[0, 1]))
            if not len(self.pts):
                if stop == self.stop_pts:
                    return True
            elif self.next_sample == last + 1:
                self.stop_pts = stop
                return True
        return False


def _is_gapless(stts: npt.NDArray[np.int64]) -> bool:
    """Whether all samples but the last have the same duration, and the last is no longer."""
    if len(stts) > 2 or (len(stts) == 2 and stts[1, 0] != 1):
        return False
    return bool(stts[0, 1] > 0 and stts[-1, 1] <= stts[0, 1])


def _check_head(container: av.container.InputContainer, ends: list[_Ends]) -> bool:
    """Whether FFmpeg's first packets are the tables' first samples, and nothing shown lies before them."""
    waiting = {end.stream.index: end for end in ends}
    counters = {end.stream.index: _SampleCounter(end.stream) for end in ends if isinstance(end.stream, av.AudioStream)}
    for seen, packet in enumerate(container.demux([end.stream for end in ends])):
        end = waiting.get(packet.stream_index)
        if end is None:
            continue
        if not packet.size:
            waiting.pop(packet.stream_index)
            if not waiting:
                break
            continue
        is_first = end.next_sample < 0
        if seen > _MAX_CHECK_PACKETS or not end.agrees(packet):
            return False
        if is_first and end.is_shown[: max(end.next_sample - 1, 0)].any():
            return False
        if packet.stream_index in counters:
            end.sounds.append(packet, counters[packet.stream_index](packet))
        end.num_shown += not packet.is_discard
        if end.num_shown == _NUM_CHECKED:
            waiting.pop(packet.stream_index)
            if not waiting:
                break
    return all(end.num_shown for end in ends)


def _pictures_from_table(path: str, end: _Ends) -> _Pictures | None:
    track, stream = end.track, end.stream
    shown = end.is_shown
    is_key = end.is_key.copy()
    refreshed_later = False
    check = _KeyCheck(_codec_name(stream), stream.codec_context.extradata)
    keys = np.flatnonzero(is_key)
    if check.is_h264 and 1 < len(keys) < len(is_key):
        # Three of them tell how the file was made; where these are not all whole pictures, every one is looked at.
        some = keys[[1, len(keys) // 2, len(keys) - 1]]
        if _refreshed_later(path, track, some, check).any():
            later = keys[_refreshed_later(path, track, keys, check)]
            is_key[later] = False
            refreshed_later = True
    durations = np.repeat(track.stts[:, 1], track.stts[:, 0])
    return _Pictures(end.pts[shown], durations[shown], is_key[shown], refreshed_later)


def _refreshed_later(
    path: str, track: Track, samples: npt.NDArray[np.int64], check: _KeyCheck
) -> npt.NDArray[np.bool_]:
    found = np.zeros(len(samples), dtype=np.bool_)
    with open(path, "rb") as file:
        for index, (begin, size) in enumerate(track.positions(samples).tolist()):
            file.seek(begin)
            found[index] = check.is_refreshed_later(file.read(min(size, 4096)))
    return found


# Picture --------------------------------------------------------------------------------------------------------------


def _no_times(path: str) -> MediaError:
    return _unreadable(path, "the file stores no frame times", "Conform it with 'avloader prepare'")


def _video_info(source: _Source, pictures: _Pictures, times_from: str) -> VideoInfo:
    stream = source.video
    assert stream is not None
    order = np.argsort(pictures.pts, kind="stable")
    table = pictures.pts[order]
    if (np.diff(table) <= 0).any():
        raise _unreadable(source.path, "two of its frames have the same time", _REENCODE)
    last_duration = int(pictures.duration[order[-1]])
    times = FrameTimes.from_pts(table, time_base=_time_base(stream), origin=source.origin, last_duration=last_duration)
    context = stream.codec_context
    frame_rate = _frame_rate(stream, times)
    span = times.seconds(len(times) - 1) - times.start_seconds
    return VideoInfo(
        stream_index=stream.index,
        codec=_codec_name(stream),
        pixel_format=context.pix_fmt or "",
        width=context.width,
        height=context.height,
        rotation=source.movie.rotations.get(stream.id, 0) if source.movie else 0,
        times=times,
        frame_rate=frame_rate,
        average_rate=(len(times) - 1) / span if frame_rate is None else frame_rate,
        keyframe_pts=np.sort(pictures.pts[pictures.is_key]),
        times_from=times_from,
        color_matrix=_COLOR_MATRICES.get(int(context.colorspace), "bt601"),
        full_range=context.color_range == 2 or (context.pix_fmt or "").startswith("yuvj"),
    )


def _frame_rate(stream: av.VideoStream, times: FrameTimes) -> Fraction | None:
    """The rate of the regular grid that all frames lie on within one tick, or None."""
    if times.table is None:
        return 1 / (times.step_pts * times.time_base)
    offsets = times.table - times.first_pts
    average = (len(times) - 1) / (int(offsets[-1]) * times.time_base)
    stated = _fraction(stream.average_rate)
    candidates = [stated] if stated else []
    candidates += [rate for rate in _STANDARD_RATES if abs(rate / average - 1) < Fraction(1, 100)]
    for rate in [*candidates, average.limit_denominator(1001), average]:
        step = 1 / (rate * times.time_base)
        if len(times) * step.numerator >= 2**62:
            continue
        # |offset - k * step| <= tolerance, in whole numbers; where a tick is nearly a frame, it proves no rate.
        grid = np.arange(len(times), dtype=np.int64) * step.numerator
        tolerance = min(step.denominator, step.numerator // 4)
        if (np.abs(offsets * step.denominator - grid) <= tolerance).all():
            return rate
    return None


# Sound ----------------------------------------------------------------------------------------------------------------


def _audio_info(source: _Source, stream: av.AudioStream, found: _Sounds) -> AudioInfo | None:
    context = stream.codec_context
    time_base, rate = _time_base(stream), context.sample_rate
    tick = time_base * rate  # samples
    if not found.pts:
        return None
    frame_size = _frame_size(stream, found)
    start_pts = 0
    skip = 0
    pieces: list[tuple[Fraction, int]] = []
    expected: Fraction | None = None
    last = len(found.pts) - 1
    for index, pts in enumerate(found.pts):
        skip = found.skip[index] or skip
        length = found.num_samples[index] or frame_size or round_half_up(found.duration[index] * tick)
        is_last_stated = index == last and found.duration[index] and not found.trim[index]
        if is_last_stated and not found.num_samples[index] and _codec_name(stream) not in _WHOLE_FRAME_CODECS:
            duration = round_half_up(found.duration[index] * tick)
            if duration < length - tick:
                length = duration
        if not found.is_shown[index]:
            skip = max(0, skip - length)
            continue
        dropped = min(skip, length)
        skip -= dropped
        kept = length - dropped - found.trim[index]
        if kept <= 0:
            continue
        if pts is None:
            if expected is None:
                raise _unreadable(source.path, "its sound stores no times", _REENCODE)
            at = expected
        else:
            at = pts * tick + dropped
        pieces.append((at, kept))
        expected = at + kept
        if len(pieces) == 1:
            start_pts = (pts or 0) + round_half_up(dropped / tick)
    if not pieces:
        return None
    tolerance = max(Fraction(1), 2 * tick)
    placed = _place(pieces, tolerance, is_variable=not frame_size)
    if placed is None:
        placed = _place(pieces, max(tolerance, Fraction(frame_size or 1024, 2)), is_variable=not frame_size)
    if placed is None:
        raise _unreadable(source.path, "the time stamps of its sound step back", _REENCODE)
    num_samples, gaps = placed
    return AudioInfo(
        stream_index=stream.index,
        codec=_codec_name(stream),
        sample_rate=rate,
        num_channels=context.channels,
        time_base=time_base,
        origin=source.origin,
        start_pts=start_pts,
        frame_size=frame_size,
        num_samples=num_samples,
        gaps=tuple(gaps),
    )


def _place(
    pieces: list[tuple[Fraction, int]], tolerance: Fraction, is_variable: bool
) -> tuple[int, list[tuple[int, int]]] | None:
    """Samples to the end and the holes of decoded pieces (time in samples, length); None if one steps back."""
    origin = pieces[0][0]
    position = 0
    gaps: list[tuple[int, int]] = []
    for at, length in pieces:
        jump = at - origin - position
        if jump < -tolerance:
            return None
        if jump > tolerance:
            stop = position + round_half_up(jump)
            gaps.append((position, stop))
            position = stop
            origin = at - position
        elif is_variable:
            position = round_half_up(at - origin)  # lengths are rounded to ticks as well: follow the time stamps
        position += length
    return position, gaps


def _frame_size(stream: av.AudioStream, found: _Sounds) -> int:
    """Samples of a codec frame if all but the last have the same number, else 0."""
    tick = _time_base(stream) * stream.codec_context.sample_rate
    if _codec_name(stream).startswith("pcm_") and tick <= 1:
        return 1
    exact = set(found.num_samples[:-1] or found.num_samples)
    if exact != {0}:
        return min(exact) if len(exact) == 1 else 0
    durations = np.array([duration for duration in found.duration[:-1] if duration] or found.duration)
    usual = round_half_up(int(np.median(durations)) * tick)
    size = stream.codec_context.frame_size or 0
    for candidate in (size, 2 * size):
        if candidate and abs(candidate - usual) <= max(Fraction(1), tick):
            return candidate
    if tick <= 1 and np.count_nonzero(np.abs(durations - np.median(durations)) <= 1) > 0.9 * len(durations):
        return usual
    return 0


# What the GPU reader can take -----------------------------------------------------------------------------------------


def _nvdec_reason(source: _Source, video: VideoInfo | None, pictures: _Pictures | None) -> str:
    """Why DALI's video reader cannot take the file; "" if it can.

    The reader numbers a frame round((pts - start) * rate) with FFmpeg's average rate and takes the number of frames
    from the duration, so a file is fit if that rule gives every frame its own number.
    """
    container, stream = source.container, source.video
    if stream is None or video is None or pictures is None:
        return "no video"
    names = container.format.name.split(",")
    is_mkv = "matroska" in names
    if "mp4" not in names and not is_mkv:
        return f"container {names[0]}"
    if source.movie is not None and source.movie.is_fragmented:
        return "fragmented mp4"
    if video.codec not in _NVDEC_CODECS:
        return f"codec {video.codec}"
    if video.pixel_format not in _NVDEC_PIXEL_FORMATS:
        return f"pixel format {video.pixel_format}"
    if pictures.refreshed_later:
        return "gradual refresh instead of key frames"
    rate = _fraction(stream.average_rate)
    if rate is None:
        return "no frame rate"
    start = 0 if is_mkv else stream.start_time or 0  # before it reads packets, FFmpeg knows no start in mkv
    scale = rate * video.times.time_base
    numbers = np.arange(len(video.times), dtype=np.int64)
    pts = video.times.pts_of(numbers)
    if (int(np.abs(pts).max()) + abs(start) + 1) * 2 * max(scale.numerator, scale.denominator) >= 2**63:
        return "variable frame rate"
    doubled = (pts - start) * (2 * scale.numerator) + scale.denominator
    if (doubled // (2 * scale.denominator) != numbers).any():
        return "variable frame rate"
    if stream.duration is not None:
        num_frames = stream.duration * scale
    else:
        num_frames = Fraction(container.duration or 0, av.time_base) * rate
    return "" if round_half_up(num_frames) >= len(numbers) else "duration shorter than the frames"
