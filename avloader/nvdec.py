"""What DALI's video reader on the GPU (NVDEC) can take."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np

from avloader.facts import VideoInfo
from avloader.packets import first_frames
from avloader.source import Source, as_fraction
from avloader.timeline import round_half_up

__all__ = ["nvdec_reason"]

_CODECS = ("h264",)  # of HEVC it loses frames in some streams, and one list cannot hold both
_PROGRESSIVE = 1  # FFmpeg's AV_FIELD_PROGRESSIVE; 0 is unknown
_PIXEL_FORMATS = ("yuv420p", "yuvj420p")


def nvdec_reason(
    source: Source,
    video: VideoInfo | None,
    *,
    is_fragmented: bool,
    refreshed_later: bool,
    average_rate: Fraction | None = None,
) -> str:
    """Why DALI's video reader cannot take the file; "" if it can.

    Args:
        source: The opened medium.
        video: What is known of its picture.
        is_fragmented: Whether it is a fragmented mp4.
        refreshed_later: Whether some key frames only begin a gradual refresh.
        average_rate: FFmpeg's average rate of the stream where the opened one does not have it.
    """
    if source.video is None or video is None:
        return "no video"
    formats = source.container.format.name.split(",")
    if not {"mp4", "matroska"} & set(formats):
        return f"container {formats[0]}"
    if is_fragmented:
        return "fragmented mp4"
    if video.codec not in _CODECS:
        return f"codec {video.codec}"
    if video.pixel_format not in _PIXEL_FORMATS:
        return f"pixel format {video.pixel_format}"
    if _is_interlaced(source.path, source.video):
        return "interlaced"  # it would deinterlace: other pictures than a linear decode shows
    if refreshed_later:
        return "gradual refresh instead of key frames"
    rate = average_rate or as_fraction(source.video.average_rate)
    return _numbering_reason(source.container, source.video, video, rate, is_mkv="matroska" in formats)


def _is_interlaced(path: str, stream: av.VideoStream) -> bool:
    """Whether pictures consist of two fields."""
    field_order: int | None = getattr(stream.codec_context, "field_order", None)
    if field_order is not None:
        return field_order > _PROGRESSIVE
    return first_frames(path, 1).is_interlaced  # PyAV before 18 does not tell without decoding


def _numbering_reason(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    video: VideoInfo,
    rate: Fraction | None,
    *,
    is_mkv: bool,
) -> str:
    """Why the reader would number frames wrongly; "" if it does not.

    It numbers a frame round((pts - start) * rate) with FFmpeg's average rate and takes the number of frames from the
    duration, so that rule must give every frame its own number.
    """
    if rate is None:
        return "no frame rate"
    start = 0 if is_mkv else stream.start_time or 0  # before it reads packets, FFmpeg knows no start in mkv
    scale = rate * video.times.time_base
    # Where frames are as far apart as the rate says, all numbers are as right as the first.
    is_even = video.times.is_constant and video.times.step_pts * scale == 1
    numbers = np.arange(1 if is_even else len(video.times), dtype=np.int64)
    pts = video.times.pts_of(numbers)
    largest = max(abs(int(pts[0])), abs(int(pts[-1]))) + abs(start) + 1
    if largest * 2 * max(scale.numerator, scale.denominator) >= 2**63:
        return "variable frame rate"
    doubled = (pts - start) * (2 * scale.numerator) + scale.denominator
    if (doubled // (2 * scale.denominator) != numbers).any():
        return "variable frame rate"
    if stream.duration is not None:
        num_frames = stream.duration * scale
    else:
        num_frames = Fraction(container.duration or 0, av.time_base) * rate
    return "" if round_half_up(num_frames) >= len(video.times) else "duration shorter than the frames"
