"""Facts of a medium: what `avloader.media.probe` says and what a manifest stores."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from avloader.timeline import FrameTimes, pts_to_media_time

__all__ = ["AudioInfo", "MediaInfo", "VideoInfo"]


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
        silence: Zeros that a prepared file begins with because its sound begins later than its media time 0; like what
            lies before sample 0, they do not count as sound.
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
    silence: int = 0

    @property
    def samples_per_tick(self) -> Fraction:
        """Samples in one tick of the stream's pts."""
        return self.time_base * self.sample_rate

    @functools.cached_property
    def start_seconds(self) -> Fraction:
        """Media time of sample 0."""
        return pts_to_media_time(self.start_pts, self.time_base, self.origin)

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
