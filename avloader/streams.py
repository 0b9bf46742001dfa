"""From the packets of a stream, as columns of integers, to the facts of the stream.

Time is exact: ticks of the stream, or fractions of a sample with one denominator, both int64.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from fractions import Fraction

import av
import numpy as np
import numpy.typing as npt

from avloader.facts import AudioInfo, VideoInfo
from avloader.source import Source, as_fraction, codec_name, time_base_of, unreadable
from avloader.timeline import FrameTimes, round_half_up

__all__ = ["NO_PTS", "WHOLE_FRAME_CODECS", "Grid", "Pictures", "Sounds", "audio_info", "video_info"]

_Int64 = npt.NDArray[np.int64]
_Bool = npt.NDArray[np.bool_]

NO_PTS = -(2**63)
"""Stands in a column for a time stamp that is not there."""

WHOLE_FRAME_CODECS = frozenset({"aac", "ac3", "eac3", "mp2", "mp3", "mp3float", "opus", "libopus"})
"""A decoder of these delivers the last frame whole, even where the container says that the sound ends within it."""

_STANDARD_RATES = tuple(
    Fraction(rate) for rate in ("24000/1001", "24", "25", "30000/1001", "30", "48", "50", "60000/1001", "60", "120")
)
_VORBIS_MISSTAMP = 2048  # samples; a quarter of the longest block
_COLOR_MATRICES = {1: "bt709", 4: "fcc", 7: "smpte240m", 9: "bt2020", 10: "bt2020"}  # ITU-T H.273, table 4


@dataclass(frozen=True, eq=False)
class Pictures:
    """Displayed frames in decoding order, at least one.

    Attributes:
        pts, duration: int64 [shape=(num_frames,)], ticks.
        is_key: bool [shape=(num_frames,)], whether decoding can start there.
        refreshed_later: Whether some packets are called key frames but only begin a gradual refresh.
    """

    pts: _Int64
    duration: _Int64
    is_key: _Bool
    refreshed_later: bool


@dataclass(frozen=True, eq=False)
class Grid:
    """Displayed frames at constant intervals.

    Attributes:
        first_pts: Of the first frame.
        step: Ticks between two frames, > 0.
        num_frames: Number of frames, > 1.
        keyframe_pts: int64, sorted; of the frames from which decoding can start.
        average_rate: FFmpeg's average rate of the stream.
    """

    first_pts: int
    step: int
    num_frames: int
    keyframe_pts: _Int64
    average_rate: Fraction


@dataclass(frozen=True, eq=False)
class Sounds:
    """Packets of an audio stream in order.

    Attributes:
        pts: int64 [shape=(n,)], ticks; `NO_PTS` if unset.
        duration: int64 [shape=(n,)], ticks; 0 if unset.
        num_samples: int64 [shape=(n,)], what it decodes to if the packet says so, else 0.
        skip, trim: int64 [shape=(n,)], samples that a decoder drops at start and end.
        is_shown: bool [shape=(n,)], whether it is played at all.
    """

    pts: _Int64
    duration: _Int64
    num_samples: _Int64
    skip: _Int64
    trim: _Int64
    is_shown: _Bool


# Picture --------------------------------------------------------------------------------------------------------------


def video_info(
    source: Source, stream: av.VideoStream, pictures: Pictures | Grid, *, rotation: int, times_from: str
) -> VideoInfo:
    """Facts of a video stream.

    Raises:
        MediaError: If two frames have the same time.
    """
    time_base = time_base_of(stream)
    if isinstance(pictures, Grid):
        times = FrameTimes(time_base, source.origin, pictures.first_pts, pictures.step, pictures.num_frames)
        keyframe_pts = pictures.keyframe_pts
    else:
        order = np.argsort(pictures.pts, kind="stable")
        table = pictures.pts[order]
        if (np.diff(table) <= 0).any():
            raise unreadable(source.path, "two of its frames have the same time")
        last_duration = int(pictures.duration[order[-1]])
        times = FrameTimes.from_pts(table, time_base=time_base, origin=source.origin, last_duration=last_duration)
        keyframe_pts = np.sort(pictures.pts[pictures.is_key])
    context = stream.codec_context
    frame_rate = _frame_rate(stream, times)
    span = times.pts(len(times) - 1) - times.first_pts
    return VideoInfo(
        stream_index=stream.index,
        codec=codec_name(stream),
        pixel_format=context.pix_fmt or "",
        width=context.width,
        height=context.height,
        rotation=rotation,
        times=times,
        frame_rate=frame_rate,
        average_rate=(len(times) - 1) / (span * time_base) if frame_rate is None else frame_rate,
        keyframe_pts=keyframe_pts,
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
    stated = as_fraction(stream.average_rate)
    candidates = [stated] if stated else []
    candidates += [rate for rate in _STANDARD_RATES if abs(rate / average - 1) < Fraction(1, 100)]
    for rate in [*candidates, average.limit_denominator(1001), average]:
        step = 1 / (rate * times.time_base)
        if max(len(times) * step.numerator, int(offsets[-1]) * step.denominator) >= 2**62:
            continue
        # |offset - k * step| <= tolerance, in whole numbers; where a tick is nearly a frame, it proves no rate.
        grid = np.arange(len(times), dtype=np.int64) * step.numerator
        tolerance = min(step.denominator, step.numerator // 4)
        if (np.abs(offsets * step.denominator - grid) <= tolerance).all():
            return rate
    return None


# Sound ----------------------------------------------------------------------------------------------------------------


def audio_info(source: Source, stream: av.AudioStream, sounds: Sounds) -> AudioInfo | None:
    """Facts of an audio stream, or None if it plays nothing.

    Raises:
        MediaError: If the time stamps step back or are missing.
    """
    if codec_name(stream) == "vorbis":  # its first packet only primes the decoder
        sounds = Sounds(*(getattr(sounds, column.name)[1:] for column in fields(sounds)))
    if not len(sounds.pts):
        return None
    time_base, rate = time_base_of(stream), stream.codec_context.sample_rate
    tick = time_base * rate
    frame_size = _frame_size(stream, sounds, tick)
    length = _lengths(stream, sounds, tick, frame_size)
    dropped = _dropped(sounds, length)
    kept = length - dropped - sounds.trim
    played = np.flatnonzero(sounds.is_shown & (kept > 0))
    if not len(played):
        return None
    first = played[0]
    if sounds.pts[first] == NO_PTS:
        raise unreadable(source.path, "its sound stores no times")
    start_pts = int(sounds.pts[first]) + round_half_up(int(dropped[first]) / tick)
    starts = _starts(source, sounds.pts[played], dropped[played], kept[played], tick)
    # Time stamps are rounded to ticks; some muxers are off by less than half a codec frame.
    close = max(Fraction(1), 2 * tick)
    for tolerance in (close, max(close, Fraction(frame_size or 1024, 2))):
        if frame_size:
            placed = _place_on_grid(starts, kept[played], tick.denominator, tolerance)
        else:
            placed = _place_by_stamps(starts, kept[played], tick.denominator, tolerance)
        if placed is not None:
            break
    else:
        raise unreadable(source.path, "the time stamps of its sound step back")
    num_samples, gaps = placed
    if codec_name(stream) == "vorbis":  # where the size of blocks changes, FFmpeg stamps packets of Ogg too late
        gaps = tuple(gap for gap in gaps if gap[1] - gap[0] > _VORBIS_MISSTAMP)
    return AudioInfo(
        stream_index=stream.index,
        codec=codec_name(stream),
        sample_rate=rate,
        num_channels=stream.codec_context.channels,
        time_base=time_base,
        origin=source.origin,
        start_pts=start_pts,
        frame_size=frame_size,
        num_samples=num_samples,
        gaps=gaps,
    )


def _frame_size(stream: av.AudioStream, sounds: Sounds, tick: Fraction) -> int:
    """Samples of a codec frame if all but the last have the same number, else 0."""
    if codec_name(stream).startswith("pcm_") and tick <= 1:
        return 1
    if codec_name(stream) == "vorbis":  # it has frames of two sizes, of which one can be rare
        return 0
    exact = sounds.num_samples[:-1] if len(sounds.num_samples) > 1 else sounds.num_samples
    if exact.any():
        return int(exact[0]) if (exact == exact[0]).all() else 0
    durations = sounds.duration[:-1][sounds.duration[:-1] > 0]
    if not len(durations):
        durations = sounds.duration
    median = int(np.median(durations))
    usual = round_half_up(median * tick)
    size = stream.codec_context.frame_size or 0
    for candidate in (size, 2 * size):
        if candidate and abs(candidate - usual) <= max(Fraction(1), tick):
            return candidate
    is_regular = np.count_nonzero(np.abs(durations - median) <= 1) > 0.9 * len(durations)
    return usual if tick <= 1 and is_regular else 0


def _lengths(stream: av.AudioStream, sounds: Sounds, tick: Fraction, frame_size: int) -> _Int64:
    """Samples that each packet decodes to."""
    stated = _rounded(sounds.duration * tick.numerator, tick.denominator)
    length = np.where(sounds.num_samples > 0, sounds.num_samples, frame_size or stated)
    is_whole = sounds.num_samples[-1] or sounds.trim[-1] or codec_name(stream) in WHOLE_FRAME_CODECS
    if not is_whole and sounds.duration[-1] and stated[-1] < length[-1] - tick:
        length[-1] = stated[-1]
    # Where a packet's end is dropped, its duration may count what is dropped or not: FFmpeg 9 writes what is left.
    others = sounds.duration[:-1]
    is_unusual = len(others) and (np.abs(others - sounds.duration[-1]) > 1).all()
    if sounds.trim[-1] and is_unusual and not (sounds.num_samples[-1] or frame_size):
        length[-1] += sounds.trim[-1]
    return length


def _dropped(sounds: Sounds, length: _Int64) -> _Int64:
    """Samples that a decoder drops at the start of each packet: a skip goes on into the next packets."""
    dropped = np.zeros(len(length), dtype=np.int64)
    for begin in np.flatnonzero(sounds.skip):
        left = int(sounds.skip[begin])
        for index in range(begin, len(length)):
            if left <= 0 or (index > begin and sounds.skip[index]):
                break
            dropped[index] = min(left, length[index])
            left -= int(length[index])
    return dropped


def _starts(source: Source, pts: _Int64, dropped: _Int64, kept: _Int64, tick: Fraction) -> _Int64:
    """Where the played part of each packet starts after the first one's start, in samples / `tick.denominator`."""
    has_pts = pts != NO_PTS
    largest = int(np.abs(pts[has_pts] - pts[0]).max()) * tick.numerator + (int(kept.sum()) + 1) * tick.denominator
    if largest >= 2**61:
        raise unreadable(source.path, "the time stamps of its sound are out of any range")
    starts: _Int64 = (pts - pts[0]) * tick.numerator + (dropped - dropped[0]) * tick.denominator
    for index in np.flatnonzero(~has_pts):
        starts[index] = starts[index - 1] + kept[index - 1] * tick.denominator
    return starts


def _place_on_grid(
    starts: _Int64, length: _Int64, scale: int, tolerance: Fraction
) -> tuple[int, tuple[tuple[int, int], ...]] | None:
    """Samples to the end and the holes of pieces that follow each other exactly; None if one steps back.

    Args:
        starts: Stated start of each piece in samples / `scale`.
        length: Samples of each piece.
        scale: Positive.
        tolerance: Samples by which a stated start may be off.
    """
    drift = starts - (np.cumsum(length) - length) * scale  # how much later than the pieces before it make it
    limit = int(tolerance * scale)
    gaps: list[tuple[int, int]] = []
    expected, lost, index = 0, 0, 0
    while (index := _first_outside(drift, index, expected - limit, expected + limit)) < len(drift):
        jump = int(drift[index]) - expected
        if jump < 0:
            return None
        begin = int(length[:index].sum()) + lost
        missing = round_half_up(Fraction(jump, scale))
        gaps.append((begin, begin + missing))
        lost += missing
        expected = int(drift[index])
    return int(length.sum()) + lost, tuple(gaps)


def _first_outside(values: _Int64, begin: int, low: int, high: int) -> int:
    """Index of the first value from `begin` on outside [low, high]; their number if there is none."""
    size = 1024
    while begin < len(values):
        block = values[begin : begin + size]
        outside = (block < low) | (block > high)
        if outside.any():
            return begin + int(outside.argmax())
        begin, size = begin + size, 2 * size  # many holes: little is read twice; none: few steps
    return len(values)


def _place_by_stamps(
    starts: _Int64, length: _Int64, scale: int, tolerance: Fraction
) -> tuple[int, tuple[tuple[int, int], ...]] | None:
    """The same for pieces whose length is known from rounded times only: they lie where the time stamps say."""
    begin = _rounded(starts, scale)
    end = begin + length
    jumps = begin[1:] - end[:-1]
    if (jumps < -tolerance).any():
        return None
    holes = np.flatnonzero(jumps > tolerance)
    return int(end[-1]), tuple(zip(end[holes].tolist(), begin[holes + 1].tolist(), strict=True))


def _rounded(values: _Int64, scale: int) -> _Int64:
    """floor(values / scale + 1/2)."""
    return np.floor_divide(2 * values + scale, 2 * scale)
