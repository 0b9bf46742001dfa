"""Packets of an mp4's track, read straight from their places in the file: no demuxer, no search, no index to build.

FFmpeg's demuxer lists every packet of a file when it opens it, which takes longer the longer the file is, and looks for
the next one among all streams each time. Who knows the places from the header just reads there.
"""

from __future__ import annotations

import functools
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Generic, TypeVar

import av
import numpy as np

from avloader.errors import MediaError
from avloader.mp4 import Movie, Track, read_movie

__all__ = ["Decoders", "FileBytes", "TrackPackets", "only_track"]

_MOST_BUFFERS = 512  # of one system call; the system allows 1024
_BETWEEN = memoryview(bytearray(16384))  # packets of other streams, which are read over rather than read around
_MOST_IDLE = 16  # decoders that are kept for the next file
_OPENED_TOGETHER = 16  # media whose header is kept: sound is opened after the pictures of some clips


_Context = TypeVar("_Context", bound=av.CodecContext)


class FileBytes:
    """A file to read at given places, closed with the last reference to it.

    Raises:
        OSError: If it cannot be opened.
    """

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.close = weakref.finalize(self, os.close, self._fd)

    def fill(self, buffers: Sequence[Any], position: int, num_bytes: int) -> None:
        """Fill buffers with `num_bytes`, which is their size, from `position` on.

        Raises:
            OSError: If the system cannot read.
            EOFError: If the file ends before.
        """
        if os.preadv(self._fd, buffers, position) != num_bytes:
            raise EOFError


class TrackPackets:
    """The packets of one track.

    Args:
        path: The file.
        track: What its header says.

    Raises:
        OSError: If the file cannot be opened.
    """

    def __init__(self, path: str, track: Track) -> None:
        self._track = track
        self._file = FileBytes(path)

    def read(self, start: int, stop: int) -> list[av.Packet[Any]]:
        """Packets [start, stop) in decoding order, without times; those that lie near each other are read together.

        Raises:
            OSError: If the system cannot read.
            EOFError: If the file ends before, or a packet is empty.
        """
        packets: list[av.Packet[Any]] = []
        buffers: list[Any] = []  # of one system call: packets, and what lies between them
        begin = end = 0
        for position, size in self._track.positions(np.arange(start, stop)).tolist():
            if not size:
                raise EOFError  # FFmpeg takes an empty packet for the end
            gap = position - end
            if buffers and not (0 <= gap <= len(_BETWEEN) and len(buffers) < _MOST_BUFFERS):
                self._file.fill(buffers, begin, end - begin)
                buffers.clear()
            if not buffers:
                begin = position
            elif gap:
                buffers.append(_BETWEEN[:gap])
            packets.append(av.Packet(size))
            buffers.append(packets[-1])
            end = position + size
        if buffers:
            self._file.fill(buffers, begin, end - begin)
        return packets

    def close(self) -> None:
        """Close the file; calling it twice is harmless."""
        self._file.close()


class Decoders(Generic[_Context]):
    """Decoders that wait for another file with the same configuration: to open one takes as long as to decode frames.

    Safe for use from several threads.

    Args:
        make: Makes a decoder for a configuration.
    """

    def __init__(self, make: Callable[[Any], _Context]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._idle: deque[tuple[Any, _Context]] = deque(maxlen=_MOST_IDLE)

    def take(self, configuration: Hashable) -> _Context:
        """A decoder that knows of no packet."""
        with self._lock:
            found = next((entry for entry in self._idle if entry[0] == configuration), None)
            if found is None:
                return self._make(configuration)
            self._idle.remove(found)
        found[1].flush_buffers()
        return found[1]

    def give_back(self, configuration: Hashable, decoder: _Context) -> None:
        """Keep a decoder in which nothing went wrong."""
        with self._lock:
            self._idle.append((configuration, decoder))


def only_track(path: str, kind: bytes) -> Track | None:
    """The only track of a kind (b"vide", b"soun") in a whole mp4 whose header lists all of its packets, else None.

    Raises:
        OSError: If the file cannot be read.
    """
    status = os.stat(path)
    try:
        movie = _movie(path, status.st_size, status.st_mtime_ns)
    except MediaError:
        return None
    if movie is None or movie.is_fragmented or movie.missing_bytes or list(movie.kinds.values()).count(kind) != 1:
        return None
    return next((track for number, track in movie.tracks.items() if movie.kinds[number] == kind), None)


@functools.lru_cache(_OPENED_TOGETHER)
def _movie(path: str, size: int, mtime_ns: int) -> Movie | None:
    return read_movie(path)
