"""A long mp4 as FFmpeg would see it if it were short: the first and last samples of every track, at their true times.

FFmpeg builds an index of all samples when it opens a file, which costs in proportion to its length. Here it is given
the same file with another header, in which each track has only its first and its last samples; the last of the first
ones lasts until the last ones begin, so that both ends keep their times. What the tables say in between is read from
them directly. Only tables of the plain kind are shortened: one duration for all samples but the last.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from avloader.mp4 import Bytes, Header, Movie, boxes_of_file, parse_content

__all__ = ["NUM_FIRST", "Middle", "Shortened", "shorten"]

NUM_FIRST = 64  # more than FFmpeg reads to learn what a stream holds
_NUM_LAST = 32  # more than frames are out of order
_LARGEST_TABLE = 65536  # bytes of what is kept as it is
_LARGEST_DURATION = 2**31 - 1
_KEPT_BOXES = (b"stsd", b"sgpd", b"sbgp", b"cslg")
_GROUPS_OF_KEY_FRAMES = (b"rap ", b"sync")  # FFmpeg takes the samples in these for key frames

_Int64 = npt.NDArray[np.int64]


class _NotPlainError(Exception):
    """The header has something that is not shortened."""


@dataclass(frozen=True, eq=False)
class Middle:
    """What the tables of a track say of all its samples.

    Attributes:
        num_samples: Number of samples.
        step: Ticks of every sample but the last.
        total: Ticks of all samples.
        ctts: int32 [shape=(2, n)], runs: numbers of samples, and presentation minus decoding time of each; or None.
        stss: Indices of the key frames, or None if all are.
        key_positions: int64 [shape=(n, 2)]: first byte and size of three key frames: the second, one in the middle, the
            last; none if there are fewer than two.
    """

    num_samples: int
    step: int
    total: int
    ctts: npt.NDArray[np.int32] | None
    stss: _Int64 | None
    key_positions: _Int64


@dataclass(frozen=True, eq=False)
class Shortened:
    """A file with another header.

    Attributes:
        path: The file.
        start: Where its header lies.
        patch: What stands there instead, no longer than that.
        movie: What the other header says.
        middles: By track id, what the whole tables say of the tracks that were shortened.
    """

    path: str
    start: int
    patch: bytes
    movie: Movie
    middles: dict[int, Middle]

    def open(self) -> PatchedFile:
        """The file, to be read with the other header."""
        return PatchedFile(self.path, self.start, self.patch)


class PatchedFile:
    """A file some bytes of which read differently, as PyAV takes it.

    Args:
        path: The file.
        start: First byte that differs.
        patch: What stands there.
    """

    def __init__(self, path: str, start: int, patch: bytes) -> None:
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed by close
        self._start = start
        self._patch = patch

    def read(self, size: int) -> bytes:
        """At most `size` bytes from where the file stands."""
        place = self._file.tell()
        data = self._file.read(size)
        first, last = max(place, self._start), min(place + len(data), self._start + len(self._patch))
        if first >= last:
            return data
        return data[: first - place] + self._patch[first - self._start : last - self._start] + data[last - place :]

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a byte."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Where the file stands."""
        return self._file.tell()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def shorten(path: str, header: Header) -> Shortened | None:
    """The file with a header of bounded length; None if a table is not of the plain kind.

    Raises:
        OSError: If the file cannot be read.
        MediaError: If the header is damaged.
    """
    middles: dict[int, Middle] = {}
    try:
        with open(path, "rb", buffering=0) as file:
            content = b"".join(
                _short_track(file, begin, end, middles) if kind == b"trak" else _copied(file, kind, begin, end)
                for kind, begin, end in _inside(file, header.begin, header.end)
            )
    except (_NotPlainError, KeyError, IndexError, ValueError, struct.error):
        return None
    rest = header.end - header.start - len(content) - 16
    if rest < 0 or not middles:
        return None
    patch = _box(b"moov", content) + struct.pack(">I4s", rest + 8, b"free")
    return Shortened(path, header.start, patch, parse_content(path, content, header), middles)


def _inside(file: BinaryIO, begin: int, end: int) -> list[tuple[bytes, int, int]]:
    """(kind, first byte of the content, end) of the boxes inside a box."""
    found = [(kind, content, stop) for kind, _, content, stop in boxes_of_file(file, begin, end)]
    if any(stop > end for _, _, stop in found):
        raise _NotPlainError
    return found


def _read(file: BinaryIO, begin: int, end: int) -> bytes:
    file.seek(begin)
    data = file.read(end - begin)
    if len(data) < end - begin:
        raise _NotPlainError
    return data


def _box(kind: bytes, content: Bytes) -> bytes:
    return struct.pack(">I4s", len(content) + 8, kind) + content


def _copied(file: BinaryIO, kind: bytes, begin: int, end: int) -> bytes:
    if kind == b"mvex" or end - begin > _LARGEST_TABLE:
        raise _NotPlainError
    return _box(kind, _read(file, begin, end))


def _short_track(file: BinaryIO, begin: int, end: int, middles: dict[int, Middle]) -> bytes:
    """The box of a track, shortened if it has many samples; then `middles` gets what the whole one says."""
    parts = {kind: (first, stop) for kind, first, stop in _inside(file, begin, end)}
    head = _read(file, *parts[b"tkhd"])
    (track_id,) = struct.unpack_from(">I", head, 20 if head[0] else 12)

    def rebuilt(begin: int, end: int, *path: bytes) -> bytes:
        content = b""
        for kind, first, stop in _inside(file, begin, end):
            if kind != path[0]:
                content += _copied(file, kind, first, stop)
            elif len(path) > 1:
                content += _box(kind, rebuilt(first, stop, *path[1:]))
            else:
                tables = _Tables(file, {kind: place for kind, *place in _inside(file, first, stop)})
                if tables.num_left_out < NUM_FIRST:
                    content += _copied(file, kind, first, stop)
                else:
                    content += _box(kind, tables.shortened())
                    middles[track_id] = tables.middle()
        return content

    return _box(b"trak", rebuilt(begin, end, b"mdia", b"minf", b"stbl"))


class _Tables:
    """The sample tables of a track, read where they are needed.

    Raises:
        _NotPlainError: If they are not of the plain kind.
    """

    def __init__(self, file: BinaryIO, places: dict[bytes, list[int]]) -> None:
        self._file = file
        self._places = places
        same_size, self.num_samples = struct.unpack(">II", self._bytes(b"stsz", 4, 12))
        if same_size:  # of PCM a sample is no packet
            raise _NotPlainError
        counts, steps = self._rows(b"stts", 2).tolist()
        if len(counts) > 2 or counts[1:] not in ([], [1]) or sum(counts) != self.num_samples:
            raise _NotPlainError
        self.step, self.last_step = steps[0], steps[-1]
        if not 0 <= self.last_step <= self.step or not self.step:
            raise _NotPlainError
        self.num_left_out = self.num_samples - NUM_FIRST - _NUM_LAST
        if (self.num_left_out + 1) * self.step > _LARGEST_DURATION:
            raise _NotPlainError
        self.ctts = self._rows(b"ctts", 2) if b"ctts" in places else None
        if self.ctts is not None and (self.ctts[0].min() <= 0 or self.ctts[0].sum() != self.num_samples):
            raise _NotPlainError
        self.stss = self._rows(b"stss", 1)[0].astype(np.int64) - 1 if b"stss" in places else None
        if self.stss is not None and not (
            len(self.stss)
            and self.stss[0] == 0
            and self.stss[-1] < self.num_samples
            and (self.stss[1:] > self.stss[:-1]).all()
        ):
            raise _NotPlainError
        self._lay_out()

    def _lay_out(self) -> None:
        """Which samples lie in which chunk."""
        first_chunk, self._per_chunk, description = self._rows(b"stsc", 3)
        self._is_long = b"co64" in self._places
        (num_chunks,) = struct.unpack(">I", self._bytes(self._chunks, 4, 8))
        self._first_chunk = first_chunk - 1
        chunks = np.diff(self._first_chunk, append=num_chunks)
        samples = chunks * self._per_chunk.astype(np.int64)
        self._first_sample = np.cumsum(samples) - samples
        if (
            self._first_chunk[0] != 0
            or chunks.min() <= 0
            or self._per_chunk.min() <= 0
            or samples.sum() != self.num_samples
            or (description != 1).any()
        ):
            raise _NotPlainError

    @property
    def _chunks(self) -> bytes:
        return b"co64" if self._is_long else b"stco"

    def _bytes(self, kind: bytes, first: int, stop: int) -> bytes:
        begin, end = self._places[kind]
        if begin + stop > end:
            raise _NotPlainError
        return _read(self._file, begin + first, begin + stop)

    def _rows(self, kind: bytes, columns: int) -> npt.NDArray[np.int32]:
        """All rows of a table that follow an entry count, int32 [shape=(columns, n)]."""
        (count,) = struct.unpack(">I", self._bytes(kind, 4, 8))
        data = self._bytes(kind, 8, 8 + 4 * columns * count)
        rows = np.frombuffer(data, dtype=">i4").reshape(count, columns)
        return np.ascontiguousarray(rows.T, dtype=np.int32)

    def _positions(self, first: int, stop: int) -> _Int64:
        """Where the samples [first, stop) lie in the file, int64 [shape=(n, 2)]: first byte and number of bytes."""
        samples = np.arange(first, stop)
        run = np.searchsorted(self._first_sample, samples, side="right") - 1
        in_run = samples - self._first_sample[run]
        chunk = self._first_chunk[run] + in_run // self._per_chunk[run]
        leader = samples - in_run % self._per_chunk[run]  # the first sample of its chunk
        low = int(leader[0])
        size = np.frombuffer(self._bytes(b"stsz", 12 + 4 * low, 12 + 4 * stop), dtype=">u4").astype(np.int64)
        before = np.cumsum(size) - size
        width = 8 if self._is_long else 4
        low_chunk, stop_chunk = int(chunk[0]), int(chunk[-1]) + 1
        data = self._bytes(self._chunks, 8 + width * low_chunk, 8 + width * stop_chunk)
        offset = np.frombuffer(data, dtype=">i8" if self._is_long else ">u4").astype(np.int64)
        place = offset[chunk - low_chunk] + before[samples - low] - before[leader - low]
        return np.stack([place, size[samples - low]], axis=1)

    def middle(self) -> Middle:
        """What they say of all samples."""
        keys = self.stss
        positions = np.zeros((0, 2), np.int64)
        if keys is not None and len(keys) > 1:
            some = (int(keys[1]), int(keys[len(keys) // 2]), int(keys[-1]))
            positions = np.concatenate([self._positions(key, key + 1) for key in some])
        total = (self.num_samples - 1) * self.step + self.last_step
        return Middle(self.num_samples, self.step, total, self.ctts, keys, positions)

    def shortened(self) -> bytes:
        """The content of a table box with the first and last samples only, each in a chunk of its own."""
        number = NUM_FIRST + _NUM_LAST
        positions = np.concatenate(
            [self._positions(0, NUM_FIRST), self._positions(self.num_samples - _NUM_LAST, self.num_samples)]
        )
        runs = [
            (NUM_FIRST - 1, self.step),
            (1, (self.num_left_out + 1) * self.step),
            (_NUM_LAST - 1, self.step),
            (1, self.last_step),
        ]
        content = b""
        for kind, (begin, end) in self._places.items():
            if kind == b"stts":
                content += _box(kind, struct.pack(">II8I", 0, len(runs), *(value for run in runs for value in run)))
            elif kind == b"ctts" and self.ctts is not None:
                values = np.concatenate([_head(self.ctts, NUM_FIRST), _head(self.ctts[:, ::-1], _NUM_LAST)[::-1]])
                rows = np.column_stack([np.ones(number, np.int32), values])
                content += _box(
                    kind, self._bytes(kind, 0, 4) + struct.pack(">I", number) + rows.astype(">i4").tobytes()
                )
            elif kind == b"stss" and self.stss is not None:
                keys = self.stss[(self.stss < NUM_FIRST) | (self.stss >= self.num_samples - _NUM_LAST)]
                keys = np.where(keys < NUM_FIRST, keys, keys - self.num_left_out) + 1
                content += _box(kind, struct.pack(">II", 0, len(keys)) + keys.astype(">u4").tobytes())
            elif kind == b"stsz":
                content += _box(kind, struct.pack(">III", 0, 0, number) + positions[:, 1].astype(">u4").tobytes())
            elif kind == b"stsc":
                content += _box(kind, struct.pack(">5I", 0, 1, 1, 1, 1))
            elif kind == self._chunks:
                content += _box(b"co64", struct.pack(">II", 0, number) + positions[:, 0].astype(">i8").tobytes())
            elif kind == b"sdtp":
                flags = self._bytes(kind, 0, 4 + self.num_samples)
                content += _box(kind, flags[: 4 + NUM_FIRST] + flags[4 + self.num_samples - _NUM_LAST :])
            elif kind in _KEPT_BOXES:
                copy = _copied(self._file, kind, begin, end)
                if kind == b"sbgp" and copy[12:16] in _GROUPS_OF_KEY_FRAMES:
                    raise _NotPlainError
                content += copy
            else:
                raise _NotPlainError
        return content


def _head(ctts: npt.NDArray[np.int32], number: int) -> npt.NDArray[np.int32]:
    """The first values of runs."""
    counts, values = ctts[:, :number]
    return np.repeat(values, counts.clip(max=number))[:number]
