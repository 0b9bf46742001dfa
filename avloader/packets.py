"""What all packets of a medium say, for files whose header proves no times.

Packets tell what a linear decode shows, with exceptions that only the decoder knows: what it cannot decode at the
beginning of a recording that was joined in progress. There the first frames are decoded and compared. Packets that are
damaged further on are not found here; `avloader check` finds them.
"""

from __future__ import annotations

from array import array
from dataclasses import replace
from typing import NamedTuple

import av
import numpy as np
import numpy.typing as npt

from avloader.bitstream import KeyCheck, sample_counter
from avloader.source import Packet, Source, codec_name, open_source, unreadable
from avloader.streams import NO_PTS, Pictures, Sounds

__all__ = ["SoundLog", "begins_with_key_frame", "decoded_beginning", "first_frames", "scan", "skipped_samples"]

_VP8_SHOW_FRAME = 0x10  # RFC 6386, section 9.1
_SKIP_SAMPLES_BYTES = 10  # MPEG-TS has other side data with every packet, whose type costs more to ask for
_NUM_SETTLING = 16  # frames after which a decoder that began between key frames shows what the packets say


def skipped_samples(packet: Packet) -> tuple[int, int]:
    """How many samples a decoder drops at the start and at the end of what a packet decodes to."""
    for side in packet.iter_sidedata():
        if side.data_size == _SKIP_SAMPLES_BYTES and side.data_type == "skip_samples":
            data = bytes(side)
            return int.from_bytes(data[:4], "little"), int.from_bytes(data[4:8], "little")
    return 0, 0


class SoundLog:
    """Collects packets of an audio stream as plain integers, since an hour has hundreds of thousands."""

    _WIDTH = 6

    def __init__(self, stream: av.AudioStream) -> None:
        self._count = sample_counter(stream)
        self._rows = array("q")

    def add(self, packet: Packet) -> None:
        """Note a packet."""
        skip, trim = skipped_samples(packet)
        num_samples = 0 if self._count is None else self._count(packet)
        pts = packet.pts
        self._rows.extend(
            (
                NO_PTS if pts is None else pts,
                packet.duration or 0,
                num_samples,
                skip,
                trim,
                not packet.is_discard,
            )
        )

    def sounds(self) -> Sounds:
        """The packets so far."""
        pts, duration, num_samples, skip, trim, is_shown = np.array(self._rows).reshape(-1, self._WIDTH).T
        return Sounds(pts, duration, num_samples, skip, trim, is_shown.astype(np.bool_))


class _PictureLog:
    """Collects the displayed packets of a video stream as plain integers."""

    _WIDTH = 4

    def __init__(self, stream: av.VideoStream) -> None:
        self._stream = stream
        self._key_check = KeyCheck(stream)
        self._is_vp8 = codec_name(stream) == "vp8"
        self._rows = array("q")
        self._refreshed_later = False

    def add(self, packet: Packet) -> None:
        """Note a packet."""
        # A VP8 reference frame that is never shown has a packet of its own.
        if packet.is_discard or (self._is_vp8 and not memoryview(packet)[0] & _VP8_SHOW_FRAME):
            return
        is_key = packet.is_keyframe
        if is_key and self._key_check.is_h264 and self._key_check.is_refreshed_later(bytes(packet)):
            is_key, self._refreshed_later = False, True
        pts, dts = packet.pts, packet.dts
        self._rows.extend(
            (NO_PTS if pts is None else pts, NO_PTS if dts is None else dts, packet.duration or 0, is_key)
        )

    def pictures(self, path: str) -> Pictures | None:
        """The frames that a linear decode shows, None if there are none."""
        pts, dts, duration, is_key = np.array(self._rows).reshape(-1, self._WIDTH).T
        if (pts == NO_PTS).any() and not self._stream.codec_context.has_b_frames:
            pts = dts
        if (pts == NO_PTS).any():
            raise unreadable(path, "the file stores no frame times", "Convert it with FFmpeg")
        if not len(pts):
            return None
        return Pictures(pts, duration, is_key.astype(np.bool_), self._refreshed_later)


def scan(source: Source) -> tuple[Pictures | None, Sounds | None]:
    """What all packets of the best streams say.

    Raises:
        MediaError: If frames have no times.
    """
    sound_log = None if source.audio is None else SoundLog(source.audio)
    picture_log = None if source.video is None else _PictureLog(source.video)
    video_index = -1 if source.video is None else source.video.index
    for packet in source.container.demux(source.streams):
        if not packet.size:
            continue
        if packet.stream_index == video_index:
            assert picture_log is not None
            picture_log.add(packet)
        elif sound_log is not None:
            sound_log.add(packet)
    return (
        None if picture_log is None else picture_log.pictures(source.path),
        None if sound_log is None else sound_log.sounds(),
    )


def decoded_beginning(path: str, pictures: Pictures) -> tuple[Pictures, int]:
    """The frames that a decoder shows of those that the packets hold, and their rotation.

    Raises:
        MediaError: If they cannot be told.
    """
    is_settled = begins_with_key_frame(pictures.pts, pictures.is_key)
    decoded, rotation, _ = first_frames(path, 1 if is_settled else _NUM_SETTLING)
    if not len(decoded):
        raise unreadable(path, "none of its frames can be decoded")
    if is_settled:
        return pictures, rotation
    if not ((np.diff(decoded) > 0).all() and np.isin(decoded, pictures.pts).all()):
        cause = "it begins between key frames, and its packets do not tell which frames a player shows"
        raise unreadable(path, cause, "Convert it with FFmpeg")
    shown = (pictures.pts > decoded[-1]) | np.isin(pictures.pts, decoded)
    return replace(
        pictures, pts=pictures.pts[shown], duration=pictures.duration[shown], is_key=pictures.is_key[shown]
    ), rotation


class FirstFrames(NamedTuple):
    """What a decoder says at the beginning.

    Attributes:
        pts: int64 [shape=(n,)], in the order in which the frames are shown.
        rotation: Of the first frame: degrees to turn it counter-clockwise for display.
        is_interlaced: Whether the first frame consists of two fields.
    """

    pts: npt.NDArray[np.int64]
    rotation: int
    is_interlaced: bool


def first_frames(path: str, num_frames: int) -> FirstFrames:
    """Decodes at least `num_frames` frames of the best video stream, fewer if there are no more."""
    frames: list[av.VideoFrame] = []
    with open_source(path) as source:
        assert source.video is not None
        source.video.codec_context.thread_count = 1  # several threads would read far ahead
        for packet in source.container.demux(source.video):
            try:
                frames += source.video.codec_context.decode(packet)
            except (av.error.InvalidDataError, av.error.ArgumentError):
                continue  # some decoders refuse what comes before the first key frame
            if len(frames) >= num_frames:
                break
        pts = np.array([NO_PTS if frame.pts is None else frame.pts for frame in frames], dtype=np.int64)
        rotation = frames[0].rotation % 360 if frames else 0
        return FirstFrames(pts, rotation, bool(frames and frames[0].interlaced_frame))


def begins_with_key_frame(pts: npt.NDArray[np.int64], is_key: npt.NDArray[np.bool_]) -> bool:
    """Whether frames, in decoding order, begin with a key frame that nothing precedes on the screen."""
    return bool(is_key[0]) and bool(pts[0] == pts.min())
