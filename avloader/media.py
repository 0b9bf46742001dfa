"""Exact facts of a media file, from its header or all its packets.

A header that proves the frame times (`avloader.headers`) is enough; otherwise all packets are read
(`avloader.packets`). Nothing is decoded but a few frames at the beginning of files without a proving header.
"""

from __future__ import annotations

import os
from dataclasses import replace

from avloader import headers, packets
from avloader.errors import MediaError
from avloader.facts import AudioInfo, MediaInfo, VideoInfo
from avloader.mp4 import Movie, read_movie
from avloader.nvdec import nvdec_reason
from avloader.prepared import silence_of
from avloader.source import REENCODE, Source, ffmpeg_errors, file_status, open_source, unreadable
from avloader.streams import Pictures, audio_info, video_info

__all__ = ["AudioInfo", "MediaInfo", "Prober", "VideoInfo", "probe"]


def probe(path: str | os.PathLike[str]) -> MediaInfo:
    """Facts of the medium at `path`.

    Raises:
        MediaError: With `code` "missing_file", "unreadable" or "no_streams".
    """
    name = os.fspath(path)
    status = file_status(name)
    with ffmpeg_errors(name):
        movie = read_movie(name)
    if movie is not None and movie.missing_bytes:
        raise unreadable(name, f"the file is cut off: {movie.missing_bytes} bytes are missing", "Get a complete copy")
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
    pictures: Pictures | None,
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
            refreshed_later=pictures is not None and pictures.refreshed_later,
        ),
    )
