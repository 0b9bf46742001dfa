"""An opened medium: the streams that FFmpeg calls best, its start, and what is wrong with it in one line."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol, TypeAlias

import av
import av.container
import av.error
import av.stream
from av.stream import Disposition

from avloader.errors import MediaError
from avloader.prepared import is_prepared

__all__ = [
    "REENCODE",
    "File",
    "Packet",
    "Source",
    "Stream",
    "as_fraction",
    "codec_name",
    "ffmpeg_errors",
    "file_status",
    "open_container",
    "open_source",
    "time_base_of",
    "unreadable",
]

Packet: TypeAlias = "av.Packet[av.stream.Stream]"
Stream: TypeAlias = "av.VideoStream | av.AudioStream"

REENCODE = "Convert it with FFmpeg, or get a complete copy"
_REPLACE = "Name a media file, or get a complete copy"

# PyAV before 19 raises at metadata that are not UTF-8 unless it is told not to; PyAV 19 never does.
_ANY_METADATA: dict[str, Any] = {} if int(av.__version__.partition(".")[0]) >= 19 else {"metadata_errors": "replace"}

_STATUS_REMEDIES = {
    errno.EACCES: "Change the permissions of its folders",
    errno.ELOOP: "Replace the links, which lead in a circle",
    errno.ENAMETOOLONG: "Rename it, or check the path",
}


class _Rational(Protocol):
    @property
    def numerator(self) -> int: ...
    @property
    def denominator(self) -> int: ...


class File(Protocol):
    """An open file, as PyAV reads it."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Go to a byte."""

    def tell(self) -> int:
        """The byte that is read next."""


@dataclass(frozen=True, eq=False)
class Source:
    """An opened medium.

    Attributes:
        path: Its path.
        container: FFmpeg's demuxer.
        video, audio: The streams that FFmpeg calls best and can decode, or None.
        origin: The container's start in seconds on its streams' clocks.
    """

    path: str
    container: av.container.InputContainer
    video: av.VideoStream | None
    audio: av.AudioStream | None
    origin: Fraction

    @property
    def streams(self) -> list[Stream]:
        """The streams that there are."""
        return [stream for stream in (self.video, self.audio) if stream is not None]


def open_container(path: str | File, container_format: str | None = None) -> av.container.InputContainer:
    """Opens a medium whatever its titles are encoded in.

    Args:
        path: A file, by its path or open.
        container_format: FFmpeg's name, which saves it a guess; None: it guesses.

    Raises:
        av.error.FFmpegError: As PyAV raises it.
    """
    container: av.container.InputContainer = av.open(path, format=container_format, **_ANY_METADATA)
    return container


@contextlib.contextmanager
def open_source(path: str, container_format: str | None = None, file: File | None = None) -> Iterator[Source]:
    """Opens a medium; what FFmpeg reports while it is open becomes a MediaError.

    Args:
        path: A regular file.
        container_format: FFmpeg's name, which saves it a guess; None: it guesses.
        file: What is read instead of the file at `path`; None: that file.

    Raises:
        MediaError: With `code` "unreadable", "missing_file" or "no_streams".
    """
    with ffmpeg_errors(path), open_container(file or path, container_format) as container:
        video, audio = container.streams.best("video"), container.streams.best("audio")
        if not isinstance(video, av.VideoStream) or video.codec_context is None or _is_cover_art(video):
            video = None
        if not isinstance(audio, av.AudioStream) or audio.codec_context is None:
            audio = None
        if video is None and audio is None:
            raise MediaError("it holds neither picture nor sound", path=path, remedy=_REPLACE, code="no_streams")
        yield Source(path, container, video, audio, _origin(container))


def file_status(path: str) -> os.stat_result:
    """Status of a regular file that is not empty.

    Raises:
        MediaError: With `code` "missing_file" or "unreadable".
    """
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        is_link = os.path.islink(path)
        cause = f"there is no such file: it is a link to {os.readlink(path)}" if is_link else "there is no such file"
        remedy = "Check where the link leads" if is_link else "Check the path"
        raise MediaError(cause, path=path, remedy=remedy, code="missing_file") from None
    except OSError as error:
        remedy = _STATUS_REMEDIES.get(error.errno or 0, "Check the disk or the network that it lies on")
        raise unreadable(path, f"it cannot be read ({_words(error)})", remedy) from None
    if stat.S_ISDIR(status.st_mode):
        raise unreadable(path, "it is a folder, not a media file", "Name a file in it")
    if not stat.S_ISREG(status.st_mode):
        raise unreadable(path, "it is not a regular file", "Name a media file")
    if not status.st_size:
        raise unreadable(path, "the file is empty", "Get a complete copy")
    return status


def unreadable(path: str, cause: str, remedy: str = REENCODE) -> MediaError:
    """A MediaError with `code` "unreadable"."""
    return MediaError(cause, path=path, remedy=remedy, code="unreadable")


def as_fraction(value: _Rational | None) -> Fraction | None:
    """A rational attribute, whichever type PyAV gives it; None if unset."""
    return Fraction(value.numerator, value.denominator) if value else None


def time_base_of(stream: Stream) -> Fraction:
    """Seconds per tick of a stream."""
    time_base = as_fraction(stream.time_base)
    assert time_base is not None, "FFmpeg gives every stream a time base"
    return time_base


def codec_name(stream: Stream) -> str:
    """FFmpeg's name of the codec, not of the decoder: "vp9", also where libvpx decodes it."""
    return str(stream.codec_context.codec.canonical_name)


def _is_cover_art(stream: av.VideoStream) -> bool:
    return bool(stream.disposition & Disposition.attached_pic)


def _origin(container: av.container.InputContainer) -> Fraction:
    """The container's start in seconds: the exact value behind its `start_time`, which is rounded to microseconds.

    A prepared file says that its media time 0 is time stamp 0, even if nothing begins there.
    """
    if is_prepared(container.metadata):
        return Fraction(0)
    starts = [
        stream.start_time * time_base
        for stream in container.streams
        if stream.start_time is not None and (time_base := as_fraction(stream.time_base)) is not None
    ]
    if container.start_time is None:
        return min(starts, default=Fraction(0))
    rounded = Fraction(container.start_time, av.time_base)
    return min((start for start in starts if abs(start - rounded) <= Fraction(1, av.time_base)), default=rounded)


def _words(error: av.error.FFmpegError | OSError) -> str:
    # Not str(error): it shows FFmpeg's number of the error, and the path once more.
    return (error.strerror or type(error).__name__).lower()


@contextlib.contextmanager
def ffmpeg_errors(path: str) -> Iterator[None]:
    """Turns what FFmpeg or the system reports into a MediaError."""
    try:
        yield
    except PermissionError:
        raise unreadable(path, "there is no permission to read it", "Change its permissions") from None
    except FileNotFoundError:
        raise MediaError("the file vanished", path=path, remedy="Check the path", code="missing_file") from None
    except (av.error.InvalidDataError, av.error.EOFError):
        cause = "FFmpeg finds no media in it: not a media file, or cut off before its index was written"
        raise unreadable(path, cause, _REPLACE) from None
    except (av.error.FFmpegError, OSError) as error:
        raise unreadable(path, f"FFmpeg cannot read it ({_words(error)})") from None
