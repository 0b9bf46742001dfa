"""Exact facts of a media file, from its header or all its packets.

A header that proves the frame times (`avloader.headers`) is enough; otherwise all packets are read
(`avloader.packets`). Nothing is decoded but a few frames at the beginning of files without a proving header.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace

from avloader import headers, packets
from avloader.errors import MediaError
from avloader.facts import AudioInfo, MediaInfo, VideoInfo
from avloader.mp4 import Header, Movie, find_header, parse_movie
from avloader.nvdec import nvdec_reason
from avloader.prepared import silence_of
from avloader.shorten import shorten
from avloader.source import REENCODE, Source, ffmpeg_errors, file_status, open_source, unreadable
from avloader.streams import Grid, Pictures, audio_info, video_info

__all__ = ["AudioInfo", "MediaInfo", "Prober", "VideoInfo", "probe"]

_LONG_HEADER = 65536  # bytes of a header from which on reading its ends alone pays


def probe(path: str | os.PathLike[str]) -> MediaInfo:
    """Facts of the medium at `path`.

    Raises:
        MediaError: With `code` "missing_file", "unreadable" or "no_streams".
    """
    name = os.fspath(path)
    status = file_status(name)
    movie = None
    with ffmpeg_errors(name):
        header = find_header(name)
        if header is not None:
            if header.missing_bytes:
                cause = f"the file is cut off: {header.missing_bytes} bytes are missing"
                raise unreadable(name, cause, "Get a complete copy")
            info = _probe_shortened(name, status, header)
            if info is not None:
                return info
            movie = parse_movie(name, header)
    if movie is not None and not movie.is_fragmented:
        with open_source(name, "mp4") as source:
            proved = headers.prove(source, movie)
            if proved is not None:
                pictures, sound = proved
                return _media_info(source, status, movie, pictures, sound, "header")
    with open_source(name) as source:  # anew: the first packets of some files cannot be had by seeking
        pictures, sounds = packets.scan(source)
        rotation = 0
        if pictures is not None:
            pictures, rotation = packets.decoded_beginning(name, pictures)
        sound = None if source.audio is None or sounds is None else audio_info(source, source.audio, sounds)
        return _media_info(source, status, movie, pictures, sound, "packets", rotation)


def _probe_shortened(name: str, status: os.stat_result, header: Header) -> MediaInfo | None:
    """Facts of a long mp4, in a time that depends little on its length; None if it is not of the plainest kind."""
    if header.is_fragmented or header.end - header.begin < _LONG_HEADER:
        return None
    shortened = shorten(name, header)
    if shortened is None:
        return None
    with contextlib.closing(shortened.open()) as file, open_source(name, "mp4", file) as source:
        proved = headers.prove(source, shortened.movie, shortened.middles)
        if proved is None:
            return None
        return _media_info(source, status, shortened.movie, *proved, "header")


class Prober:
    """What a worker process runs to probe media."""

    def __init__(self, init: None = None, memory: None = None) -> None:
        pass

    def __call__(self, path: str) -> MediaInfo | MediaError:
        """Facts of the medium, or why there are none."""
        try:
            if path.encode(errors="ignore").decode().replace("\0", "") != path:
                raise unreadable(path, "its path is not UTF-8 or holds a null", "Rename it")
            return probe(path)
        except MediaError as error:
            return error
        except Exception as error:  # one odd file of a million must not end the work on the others
            words = " ".join(f"{type(error).__name__}: {error}".split())
            return unreadable(path, f"probing it failed unexpectedly ({words})")


def _media_info(
    source: Source,
    status: os.stat_result,
    movie: Movie | None,
    pictures: Pictures | Grid | None,
    sound: AudioInfo | None,
    times_from: str,
    rotation: int = 0,
) -> MediaInfo:
    video = None
    if source.video is not None and pictures is not None:
        if movie is not None:
            rotation = movie.rotations.get(source.video.id, rotation)
        video = video_info(source, source.video, pictures, rotation=rotation, times_from=times_from)
    if sound is not None:
        sound = replace(sound, silence=silence_of(source.container.metadata))
    if video is None and sound is None:
        raise MediaError("its streams hold no data", path=source.path, remedy=REENCODE, code="no_streams")
    return MediaInfo(
        path=source.path,
        size=status.st_size,
        mtime_ns=status.st_mtime_ns,
        container=source.container.format.name,
        origin=source.origin,
        video=video,
        audio=sound,
        nvdec_reason=nvdec_reason(
            source,
            video,
            is_fragmented=movie is not None and movie.is_fragmented,
            refreshed_later=isinstance(pictures, Pictures) and pictures.refreshed_later,
            average_rate=pictures.average_rate if isinstance(pictures, Grid) else None,
        ),
    )
