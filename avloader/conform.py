"""One picture or one sound, conformed to what decodes fastest; runs in worker processes.

A picture becomes H.264 in mp4: constant rate, progressive yuv420p, closed groups of one length, header first. A sound
becomes mono 16-bit PCM whose sample 0 lies at media time 0. A file appears under its name only when it is complete,
was flushed to disk, and was probed to hold what it should. Encoders run in one thread, so the same job gives the same
bytes wherever and beside whatever it runs.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import av
import av.container
import av.error
import av.filter
import numpy as np
import numpy.typing as npt
import soxr

from avloader.audio import AudioReader
from avloader.errors import AVLoaderError, MediaError
from avloader.media import MediaInfo, VideoInfo, probe
from avloader.prepared import prepared_comment
from avloader.resample import resample_margin
from avloader.source import ffmpeg_errors, open_container
from avloader.timeline import round_half_up, seconds_to_samples

__all__ = ["TEMPORARY", "Box", "Conformer", "PictureJob", "SoundJob", "chosen_frames", "picture_size"]

Box = tuple[int, int, int, int]
"""Left, top, width, height in pixels of the stored picture; all even, since colours are stored for 2 x 2 pixels."""

TEMPORARY = ".part."
"""Stands in the names of files that are not complete."""

# Without deblocking and CABAC a clip decodes in half the time, for a tenth more bytes; B-frames would gain nothing:
# tools/prepare_gop.md.
_CODING = {"preset": "veryfast", "tune": "fastdecode", "bf": "0"}
_MAX_TIMESCALE = 10_000_000
_SOUND_BLOCK = 1 << 18  # samples read at a time
_TAIL_SAMPLES = 8192  # how much further than its packets say the sound may go on, at most

_WRITE_ERRORS = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.ENOENT))

_Int64 = npt.NDArray[np.int64]
_Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class PictureJob:
    """A stretch of the frames of a medium.

    Attributes:
        output: The mp4 to write.
        source: Facts of the medium.
        first_frame, stop_frame: Frames of the source that may be shown.
        begin: Media time of the source at which the first written frame is shown.
        num_frames: Frames to write, > 0.
        rate: Frames per second; frame `k` is the one nearest to ``begin + k / rate`` of the source.
        is_same: Whether the frames are exactly [first_frame, stop_frame), because the rate does not change.
        shift: What is subtracted from the source's media times to get those of the output.
        box: What is cut out of the picture, or None.
        size: (width, height) of the output, even.
        gop: Frames from one key frame to the next.
        crf: x264's rate factor.
    """

    output: str
    source: MediaInfo
    first_frame: int
    stop_frame: int
    begin: Fraction
    num_frames: int
    rate: Fraction
    is_same: bool
    shift: Fraction
    box: Box | None
    size: tuple[int, int]
    gop: int
    crf: int


@dataclass(frozen=True)
class SoundJob:
    """A stretch of the sound of a medium.

    Attributes:
        output: The file to write; its extension decides the format, .wav or .flac.
        source: Facts of the medium.
        begin, end: Media times of the source; `end` None: as long as there is sound. Sample 0 lies at `begin`.
        sample_rate: Samples per second of the output.
    """

    output: str
    source: MediaInfo
    begin: Fraction
    end: Fraction | None
    sample_rate: int


def picture_size(video: VideoInfo, box: Box | None, short_side: int | None) -> tuple[int, int]:
    """(width, height) of a conformed picture: even, the sides in proportion, never larger than the source.

    Raises:
        MediaError: If the box reaches past the picture, or nothing is left of it.
    """
    width, height = video.width // 2 * 2, video.height // 2 * 2
    if box is not None:
        left, top, width, height = box
        if left + width > video.width or top + height > video.height:
            cause = f"the box {box} reaches past the picture, which has {video.width} x {video.height} pixels"
            raise MediaError(cause, remedy="Name a box that lies in every picture", code="outside_picture")
    if not width or not height:
        raise MediaError("its picture is too small for yuv420p", remedy="Leave it out", code="outside_picture")
    if short_side is not None and short_side < min(width, height):
        scale = Fraction(short_side, min(width, height))
        width, height = (max(2, 2 * round_half_up(side * scale / 2)) for side in (width, height))
    return width, height


def chosen_frames(job: PictureJob) -> _Int64:
    """The source's frame for every frame of the output, int64 [shape=(num_frames,)], non-decreasing."""
    if job.is_same:
        return np.arange(job.first_frame, job.stop_frame)
    assert job.source.video is not None
    times = job.source.video.times
    frames = (times.nearest_frame(job.begin + number / job.rate) for number in range(job.num_frames))
    return np.clip(np.fromiter(frames, np.int64, job.num_frames), job.first_frame, job.stop_frame - 1)


class Conformer:
    """What a worker process runs: does jobs that are not yet done."""

    def __init__(self, init: None = None, memory: None = None) -> None:
        self._parent = os.getppid()

    def __call__(self, job: PictureJob | SoundJob) -> MediaInfo | AVLoaderError:
        """Facts of the output, or why there is none.

        Raises:
            OSError: If the output cannot be written: nothing would come of other jobs either.
        """
        try:
            with contextlib.suppress(AVLoaderError):
                return _finished(job, job.output)
            _check_unchanged(job.source)
            folder, name = os.path.split(job.output)
            stem, extension = os.path.splitext(name)
            temporary = os.path.join(folder, f".{stem}-{os.getpid()}{TEMPORARY}{extension[1:]}")
            try:
                if isinstance(job, PictureJob):
                    self._write_picture(job, temporary)
                else:
                    self._write_sound(job, temporary)
                _check_unchanged(job.source)
                _settle(job, temporary)
                info = _finished(job, temporary)
                self._check_parent()
                os.rename(temporary, job.output)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary)
            return replace(info, path=job.output)
        except AVLoaderError as error:
            return error
        except av.error.FFmpegError as error:
            if error.errno in _WRITE_ERRORS:  # what reading reports is a MediaError by now
                raise OSError(error.errno, error.strerror, job.output) from error
            return _failure(job, f"FFmpeg cannot convert it ({error.strerror})")
        except OSError:
            raise
        except Exception as error:  # one odd file of a million must not end the work on the others
            return _failure(
                job, " ".join(f"converting it failed unexpectedly ({type(error).__name__}: {error})".split())
            )

    def _check_parent(self) -> None:
        """Leave at once if whoever wants the result is gone: nothing half-written may be worked on for hours."""
        if os.getppid() != self._parent:
            os._exit(1)

    # Picture ----------------------------------------------------------------------------------------------------------

    def _write_picture(self, job: PictureJob, path: str) -> None:
        chosen = chosen_frames(job)
        timescale = _timescale(job.rate, job.begin - job.shift)
        start, step = round_half_up((job.begin - job.shift) * timescale), timescale / job.rate
        options = {"movflags": "+faststart", "movie_timescale": str(timescale), "video_track_timescale": str(timescale)}
        with av.open(path, "w", format="mp4", options=options | {"fflags": "+bitexact"}) as output:
            output.metadata["comment"] = prepared_comment()
            stream: Any = None
            convert: Any = None
            place = 0
            for number, frame in self._frames(job.source, int(chosen[0]), int(chosen[-1]) + 1):
                if stream is None:
                    stream = _add_picture(output, job, frame, timescale)
                    convert = _converter(job, frame, stream.codec_context.pix_fmt)
                if place < len(chosen) and chosen[place] == number:
                    picture = convert(frame)
                while place < len(chosen) and chosen[place] == number:
                    picture.pts = start + int(place * step)
                    picture.time_base = Fraction(1, timescale)
                    picture.pict_type = 0  # the encoder's choice, not the source's
                    output.mux(stream.encode(picture))
                    place += 1
            if stream is None or place < len(chosen):
                raise _failure(job, "its frames end too early")
            output.mux(stream.encode(None))

    def _frames(self, source: MediaInfo, first: int, stop: int) -> Iterator[tuple[int, av.VideoFrame]]:
        """Frames [first, stop) of a linear decode, with their numbers; none damaged, none left out.

        Raises:
            MediaError: If one cannot be had.
        """
        video = source.video
        assert video is not None
        first_pts = video.times.pts(first)
        index = int(np.searchsorted(video.keyframe_pts, first_pts, side="right")) - 1
        keys = [int(video.keyframe_pts[number]) for number in (index, index - 2) if number > 0]
        for key in [*keys, None]:
            with ffmpeg_errors(source.path):
                opened = open_container(source.path)
            with opened as container:
                stream = container.streams[video.stream_index]
                assert isinstance(stream, av.VideoStream)
                assert stream.codec_context is not None
                stream.codec_context.thread_count = 1
                stream.codec_context.thread_type = "NONE"
                if key is not None:
                    with contextlib.suppress(av.error.FFmpegError):  # then it stands at the start
                        container.seek(key, stream=stream, backward=True)
                expected = first
                for frame in self._decoded(source, container, stream, key):
                    pts = frame.pts if frame.pts is not None else frame.dts
                    if pts is None:
                        raise _damaged(source, video, expected, "has no time")
                    if pts < video.times.pts(expected):
                        continue
                    if pts > video.times.pts(expected):
                        if expected == first and key is not None:
                            break  # the seek ended too late: begin earlier
                        raise _damaged(source, video, expected, "is missing")
                    yield expected, frame
                    expected += 1
                    if expected == stop:
                        return
                if expected > first or key is None:
                    raise _damaged(source, video, expected, "is missing")

    def _decoded(
        self, source: MediaInfo, container: av.container.InputContainer, stream: av.VideoStream, key: int | None
    ) -> Iterator[av.VideoFrame]:
        """Decoded frames from where the container stands; what lies before the key frame may be damaged."""
        assert source.video is not None
        packets = container.demux(stream)
        while True:
            self._check_parent()
            try:
                packet = next(packets, None)
            except (av.error.FFmpegError, OSError) as error:
                raise _failure_of(source, f"it cannot be read ({error.strerror})") from error
            if packet is None:
                return
            stamp = packet.pts if packet.pts is not None else packet.dts
            counts = stamp is not None and (key is None or stamp >= key)
            # A lost part of a file often reads as zeros, which decoders take for nothing at all.
            if counts and packet.size and (packet.is_corrupt or not any(memoryview(packet)[:8])):
                raise _damaged_at(source, float(source.video.times.pts_to_media_time(stamp or 0)), "is damaged")
            try:
                frames = packet.decode()
            except (av.error.FFmpegError, OSError) as error:
                if counts or stamp is None:
                    raise _failure_of(source, f"its picture cannot be decoded ({error.strerror})") from error
                continue
            for frame in frames:
                if frame.is_corrupt and frame.pts is not None and (key is None or frame.pts >= key):
                    seconds = float(source.video.times.pts_to_media_time(frame.pts))
                    raise _damaged_at(source, seconds, "is damaged")
                yield frame

    # Sound ------------------------------------------------------------------------------------------------------------

    def _write_sound(self, job: SoundJob, path: str) -> None:
        assert job.source.audio is not None
        audio, rate = job.source.audio, job.sample_rate
        silence, length = _sound_range(job)
        options = {"fflags": "+bitexact"} | ({"rf64": "auto"} if path.endswith(".wav") else {})
        with AudioReader(job.source.path, audio) as reader, av.open(path, "w", options=options) as output:
            output.metadata["comment"] = prepared_comment(silence)
            codec = "pcm_s16le" if path.endswith(".wav") else "flac"
            stream = output.add_stream(codec, rate=rate, layout="mono", format="s16")
            assert isinstance(stream, av.AudioStream)
            stream.codec_context.open()
            written = 0
            blocks = _blocks(self._samples(job, reader, length), stream.codec_context.frame_size or 1 << 16)
            for block in blocks:
                self._check_parent()
                block[: max(0, silence - written)] = 0
                # Full scale as `AudioReader` reads it, so that mono 16-bit sound stays what it is, bit by bit.
                scaled = np.clip(np.rint(block * np.float32(32768)), -32768, 32767).astype(np.int16)
                frame = av.AudioFrame.from_ndarray(scaled[None], format="s16", layout="mono")
                frame.sample_rate, frame.pts, frame.time_base = rate, written, Fraction(1, rate)
                output.mux(stream.encode(frame))
                written += len(block)
            output.mux(stream.encode(None))

    def _samples(self, job: SoundJob, reader: AudioReader, length: int) -> Iterator[_Float32]:
        """Blocks of the output's samples; `length` of them in all, fewer if the sound ends earlier."""
        audio = job.source.audio
        assert audio is not None
        native, rate = audio.sample_rate, job.sample_rate
        margin = resample_margin(native, rate)
        begin = seconds_to_samples(job.begin - audio.start_seconds, native)
        position = begin - margin
        stop = begin + -(-length * native // rate)
        skipped, produced = margin * rate // native, 0
        resampler = None if native == rate else soxr.ResampleStream(native, rate, 1, dtype="float32", quality="HQ")
        while position < stop + margin and produced < length:
            until = min(position + _SOUND_BLOCK, stop + margin)
            block, valid = reader.read(position, until)
            # Where its packets do not tell, only decoding shows where the sound ends.
            if until > audio.num_samples and valid[1] < until - position:
                length = min(length, -(-(position + valid[1] - begin) * rate // native))
            position = until
            if resampler is not None:
                block = resampler.resample_chunk(block, last=position >= stop + margin)
            block, skipped = block[skipped:], max(0, skipped - len(block))
            block = block[: length - produced]
            produced += len(block)
            yield block


def _sound_range(job: SoundJob) -> tuple[int, int]:
    """Samples of the output that lie before the sound begins, and before it ends."""
    audio = job.source.audio
    assert audio is not None
    native, rate = audio.sample_rate, job.sample_rate
    begin = seconds_to_samples(job.begin - audio.start_seconds, native)
    stop = audio.num_samples - begin + (0 if audio.frame_size else _TAIL_SAMPLES)
    length = -(-stop * rate // native)
    if job.end is not None:
        length = min(length, -((job.begin - job.end) * rate // 1))
    silence = max(0, -(-(audio.silence - begin) * rate // native))
    if length <= silence:  # there is no sound at all: a moment of silence, so that there is a file
        length = silence = max(silence if job.end is None else 0, rate // 10)
    return silence, length


def _blocks(pieces: Iterator[_Float32], size: int) -> Iterator[_Float32]:
    """The same samples in blocks of `size`, the last one shorter."""
    held: list[_Float32] = []
    num_held = 0
    for piece in pieces:
        held.append(piece)
        num_held += len(piece)
        if num_held < size:
            continue
        joined = np.concatenate(held)
        whole = len(joined) // size * size
        for begin in range(0, whole, size):
            yield joined[begin : begin + size]
        held, num_held = [joined[whole:]], len(joined) - whole
    if num_held:
        yield np.concatenate(held)


# Writing a picture ----------------------------------------------------------------------------------------------------


def _timescale(rate: Fraction, start: Fraction) -> int:
    """Ticks per second in which the step is a whole number, and the start too unless that takes too many."""
    exact = int(np.lcm.reduce([rate.numerator, start.denominator], dtype=object))
    least = rate.numerator * -(-10_000 // rate.numerator)
    if exact <= _MAX_TIMESCALE:
        return exact * -(-10_000 // exact)
    return least * max(1, 1_000_000 // least)


def _add_picture(output: av.container.OutputContainer, job: PictureJob, frame: av.VideoFrame, timescale: int) -> Any:
    assert job.source.video is not None
    stream: Any = output.add_stream("libx264", rate=job.rate)
    stream.width, stream.height = job.size
    stream.pix_fmt = "yuvj420p" if job.source.video.full_range else "yuv420p"
    stream.time_base = stream.codec_context.time_base = Fraction(1, timescale)
    stream.codec_context.thread_count = 1  # with more, the bytes would depend on their number
    if not frame.format.is_rgb:
        for name in ("colorspace", "color_primaries", "color_trc"):
            value = getattr(frame, name, None)
            if value is not None and int(value) > 0:
                setattr(stream.codec_context, name, value)
    stream.options = {
        **_CODING,
        "crf": str(job.crf),
        "g": str(job.gop),
        "keyint_min": str(job.gop),
        "sc_threshold": "0",
        "x264-params": "open-gop=0:force-cfr=1",
    }
    return stream


def _converter(job: PictureJob, frame: av.VideoFrame, pixel_format: str) -> Any:
    """A function from a decoded frame to one that the encoder takes."""
    width, height = frame.width, frame.height

    def check(frame: av.VideoFrame) -> None:
        if (frame.width, frame.height) != (width, height):
            raise _failure(job, f"the size of its picture changes to {frame.width} x {frame.height}")

    if frame.format.name == pixel_format and (width, height) == job.size and job.box is None:

        def keep(frame: av.VideoFrame) -> av.VideoFrame:
            check(frame)
            return frame

        return keep
    left, top, inner_width, inner_height = job.box or (0, 0, width // 2 * 2, height // 2 * 2)
    graph = av.filter.Graph()
    source = graph.add_buffer(width=width, height=height, format=frame.format, time_base=Fraction(1, 90000))
    steps = [
        graph.add("crop", f"{inner_width}:{inner_height}:{left}:{top}"),
        graph.add("scale", f"{job.size[0]}:{job.size[1]}:flags=bicubic+accurate_rnd"),
        graph.add("format", f"pix_fmts={pixel_format}"),
        graph.add("buffersink"),
    ]
    for before, after in zip([source, *steps], steps, strict=False):
        before.link_to(after)
    graph.configure()

    def run(frame: av.VideoFrame) -> av.VideoFrame:
        check(frame)
        frame.pts, frame.time_base = 0, Fraction(1, 90000)
        graph.push(frame)
        picture = graph.pull()
        assert isinstance(picture, av.VideoFrame)
        return picture

    return run


# Finished files -------------------------------------------------------------------------------------------------------


def _settle(job: PictureJob | SoundJob, path: str) -> None:
    """Flush a file to disk, and date it as its source: a resumed run gives the same manifest."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    os.utime(path, ns=(job.source.mtime_ns, job.source.mtime_ns))


def _finished(job: PictureJob | SoundJob, path: str) -> MediaInfo:
    """Facts of an output that holds what it should.

    Raises:
        MediaError: If it does not, or is not there.
    """
    info = probe(path)
    if isinstance(job, SoundJob):
        audio, source = info.audio, job.source.audio
        assert source is not None
        silence, length = _sound_range(job)
        # Without a fixed number of samples in a packet, only the decoder knew where the sound ends.
        unknown = 0 if source.frame_size else 2 * _TAIL_SAMPLES * max(1, -(-job.sample_rate // source.sample_rate))
        is_whole = audio is not None and length - unknown <= audio.num_samples <= length
        is_right = audio is not None and (audio.sample_rate, audio.silence) == (job.sample_rate, silence)
        if not (is_whole and is_right) or audio is None or audio.start_seconds:
            raise _failure(job, "the converted sound is not as it should be")
        return info
    video = info.video
    if video is None or info.nvdec_reason:
        raise _failure(job, f"the converted picture is not as it should be ({info.nvdec_reason or 'no picture'})")
    start = job.begin - job.shift
    error = abs(video.times.start_seconds - start)
    if (len(video.times), video.frame_rate) != (job.num_frames, job.rate) or error > Fraction(1, 10**5):
        found = f"{len(video.times)} frames at {video.frame_rate} from {float(video.times.start_seconds)} s"
        wanted = f"{job.num_frames} at {job.rate} from {float(start)} s"
        raise _failure(job, f"the converted picture is not as it should be ({found} instead of {wanted})")
    return info


def _check_unchanged(source: MediaInfo) -> None:
    try:
        now = os.stat(source.path)
    except OSError as error:
        raise MediaError(f"it is gone ({error.strerror})", path=source.path, code="media_changed") from error
    if (now.st_size, now.st_mtime_ns) != (source.size, source.mtime_ns):
        remedy = "Build the manifest again"
        raise MediaError("it was changed meanwhile", path=source.path, remedy=remedy, code="media_changed")


def _failure(job: PictureJob | SoundJob, cause: str) -> MediaError:
    return _failure_of(job.source, cause)


def _failure_of(source: MediaInfo, cause: str) -> MediaError:
    return MediaError(cause, path=source.path, remedy="Get an intact copy", code="undecodable")


def _damaged(source: MediaInfo, video: VideoInfo, frame: int, how: str) -> MediaError:
    return _damaged_at(source, float(video.times.seconds(frame)), how)


def _damaged_at(source: MediaInfo, seconds: float, how: str) -> MediaError:
    return _failure_of(source, f"the frame at {seconds:.3f} s {how}")
