"""Sample tables of mp4 and mov files: what the header states about every frame, without reading the frames.

Terms of ISO/IEC 14496-12: a file is a tree of *boxes*; ``moov`` holds the header; a *track* is a stream; a *sample* of
a track is one packet; the *edit list* maps a track's own clock to the movie's.
"""

from __future__ import annotations

import functools
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from avloader.source import unreadable

__all__ = ["AvcDescription", "Movie", "Track", "read_movie"]

_Int64 = npt.NDArray[np.int64]

_ROTATIONS = {(1, 0, 0, 1): 0, (0, 1, -1, 0): 270, (-1, 0, 0, -1): 180, (0, -1, 1, 0): 90}
_MAX_HEADER_BYTES = 2**30
_VISUAL_ENTRY_BYTES = 78  # before the boxes in it
_PLAIN_AVC_BOXES = frozenset({b"avcC", b"btrt", b"colr", b"pasp"})
_FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")


@dataclass(frozen=True, slots=True)
class AvcDescription:
    """What a sample description says of H.264 (ISO/IEC 14496-15, section 5.4.2).

    Attributes:
        config: AVCDecoderConfigurationRecord.
        width, height: Of the pictures.
        colour: Primaries, transfer function and matrix (ITU-T H.273), or None where nothing is said.
        full_range: Whether all values from 0 to 255 are in use; None: nothing is said.
    """

    config: bytes
    width: int
    height: int
    colour: tuple[int, int, int] | None
    full_range: bool | None


@dataclass(frozen=True, eq=False)
class Track:
    """One track; samples are in decoding order.

    Attributes:
        track_id: The id, FFmpeg's `stream.id`.
        timescale: Ticks per second.
        num_samples: Number of samples.
        stts: int64 [shape=(n, 2)], runs of (number of samples, duration in ticks).
        ctts: int64 [shape=(n, 2)], runs of (number of samples, presentation minus decoding time), or None.
        stss: int64 [shape=(n,)], indices of the key frames, or None if all are.
        offset: Ticks to add to `composition` for the pts: minus the start of the edit, plus a late start.
        edit: Half-open range of `composition` that is shown.
        has_edit: Whether an edit list says so.
        sample_size: Bytes of every sample, int64 [shape=(num_samples,)]; shape (1,) if all have the same.
        chunk_offset: int64, the chunks' places in the file.
        stsc: int64 [shape=(n, 3)], runs of chunks: first chunk (from 1), samples in each, description.
        aac_config: AudioSpecificConfig of ISO/IEC 14496-3 if all samples are AAC of one description, else empty.
        avc: How to decode the samples if all are H.264 of one plain description, else None.
    """

    track_id: int
    timescale: int
    num_samples: int
    stts: _Int64
    ctts: _Int64 | None
    stss: _Int64 | None
    offset: int
    edit: tuple[int, int]
    has_edit: bool
    sample_size: _Int64
    chunk_offset: _Int64
    stsc: _Int64
    aac_config: bytes
    avc: AvcDescription | None

    @functools.cached_property
    def duration(self) -> _Int64:
        """Ticks of every sample, int64 [shape=(num_samples,)]."""
        return np.repeat(self.stts[:, 1], self.stts[:, 0])

    @functools.cached_property
    def decoding_time(self) -> _Int64:
        """Decoding time of every sample in ticks of the track's own clock, int64 [shape=(num_samples,)]."""
        return np.cumsum(self.duration) - self.duration

    @functools.cached_property
    def composition(self) -> _Int64:
        """Presentation time of every sample in ticks of the track's own clock, int64 [shape=(num_samples,)]."""
        times = self.decoding_time
        return times if self.ctts is None else times + np.repeat(self.ctts[:, 1], self.ctts[:, 0])

    @functools.cached_property
    def is_shown(self) -> npt.NDArray[np.bool_]:
        """Whether the edit list shows a sample, bool [shape=(num_samples,)]."""
        return (self.composition >= self.edit[0]) & (self.composition < self.edit[1])

    @functools.cached_property
    def is_key(self) -> npt.NDArray[np.bool_]:
        """Whether a sample is a key frame, bool [shape=(num_samples,)]."""
        if self.stss is None:
            return np.ones(self.num_samples, dtype=np.bool_)
        key = np.zeros(self.num_samples, dtype=np.bool_)
        key[self.stss] = True
        return key

    @functools.cached_property
    def _layout(self) -> tuple[_Int64, _Int64]:
        """Index of each chunk's first sample, and the bytes before each sample (of the first only if all are equal)."""
        first_chunk = self.stsc[:, 0] - 1
        per_chunk = np.repeat(self.stsc[:, 1], np.diff(first_chunk, append=len(self.chunk_offset)))
        return np.cumsum(per_chunk) - per_chunk, np.cumsum(self.sample_size) - self.sample_size

    def positions(self, samples: _Int64) -> _Int64:
        """Where samples lie in the file, int64 [shape=(n, 2)]: first byte and number of bytes."""
        first_sample, before = self._layout
        chunk = np.searchsorted(first_sample, samples, side="right") - 1
        first = first_sample[chunk]
        if len(before) == 1:
            size = np.full(len(samples), self.sample_size[0])
            return np.stack([self.chunk_offset[chunk] + (samples - first) * size, size], axis=1)
        return np.stack([self.chunk_offset[chunk] + before[samples] - before[first], self.sample_size[samples]], axis=1)


@dataclass(frozen=True, eq=False)
class Movie:
    """A file's header.

    Attributes:
        is_fragmented: Whether samples are described outside the header as well.
        tracks: By id; only those that are described completely and in a way this reader knows.
        rotations: By track id: degrees to turn the picture counter-clockwise for display.
        kinds: By track id, of all tracks: b"soun", b"vide" ...
        missing_bytes: How far the file is shorter than its boxes say.
    """

    is_fragmented: bool
    tracks: dict[int, Track]
    rotations: dict[int, int]
    kinds: dict[int, bytes]
    missing_bytes: int


def read_movie(path: str) -> Movie | None:
    """The header of an mp4 or mov file; None for other files.

    Raises:
        OSError: If the file cannot be read.
        MediaError: If the header is damaged.
    """
    size = os.path.getsize(path)
    header = b""
    is_fragmented = False
    missing = 0
    with open(path, "rb", buffering=0) as file:
        if file.read(8)[4:] not in _FIRST_BOXES:
            return None
        for kind, begin, end in _file_boxes(file, size):
            if kind in (b"moov", b"mdat", b"moof"):
                missing = max(missing, end - size)
            if kind == b"moov" and end <= size and end - begin <= _MAX_HEADER_BYTES:
                file.seek(begin)
                header = file.read(end - begin)
            is_fragmented |= kind == b"moof"
    if not header:
        return Movie(is_fragmented, {}, {}, {}, missing) if missing else None
    try:
        return _movie(header, is_fragmented, missing)
    except (IndexError, struct.error):
        raise unreadable(path, "its header is damaged: a box is too short", "Get an intact copy") from None


def _movie(header: bytes, is_fragmented: bool, missing: int) -> Movie:
    """What the content of ``moov`` says.

    Raises:
        IndexError, struct.error: If a box of the movie or of a track's head is too short.
    """
    timescale = 0
    tracks: dict[int, Track] = {}
    rotations: dict[int, int] = {}
    kinds: dict[int, bytes] = {}
    for kind, box in _boxes(header):
        if kind == b"mvhd":
            timescale = _u32(box, 20 if box[0] else 12)
        elif kind == b"mvex":
            is_fragmented = True
    for kind, box in _boxes(header):
        if kind != b"trak":
            continue
        parts = dict(_boxes(box))
        if b"tkhd" not in parts:
            continue
        track_id, rotation = _track_header(parts[b"tkhd"])
        rotations[track_id] = rotation
        kinds[track_id] = dict(_boxes(parts.get(b"mdia", b""))).get(b"hdlr", b"")[8:12]
        try:
            track = _track(parts, track_id, timescale)
        except (KeyError, IndexError, ValueError, ZeroDivisionError, struct.error):
            continue  # incomplete or unknown: whoever asks must look at the packets
        if track is not None:
            tracks[track_id] = track
    return Movie(is_fragmented, tracks, rotations, kinds, missing)


def _file_boxes(file: BinaryIO, size: int) -> Iterator[tuple[bytes, int, int]]:
    """(kind, first byte of the content, end) of the boxes at the top level."""
    position = 0
    while position + 8 <= size:
        file.seek(position)
        head = file.read(16)
        length, kind = struct.unpack_from(">I4s", head)
        content = position + 8
        if length == 1 and len(head) == 16:
            length, content = struct.unpack_from(">Q", head, 8)[0], position + 16
        elif length == 0:
            length = size - position
        if length < content - position:
            return  # rubbish after the last box
        yield kind, content, position + length
        position += length


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(kind, content) of the boxes inside a box."""
    position = 0
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        content = position + 8
        if length == 1 and position + 16 <= len(data):
            length, content = struct.unpack_from(">Q", data, position + 8)[0], position + 16
        if length < content - position or position + length > len(data):
            return
        yield kind, data[content : position + length]
        position += length


def _u32(data: bytes, position: int) -> int:
    return int(struct.unpack_from(">I", data, position)[0])


def _table(box: bytes, columns: int, head: int = 4, kind: str = ">i4") -> _Int64:
    """The rows that follow an entry count at `head`, int64 [shape=(n, columns)]."""
    count = _u32(box, head)
    values = np.frombuffer(box, dtype=kind, count=count * columns, offset=head + 4)
    return values.astype(np.int64).reshape(count, columns)


def _track_header(box: bytes) -> tuple[int, int]:
    """Track id and rotation."""
    track_id = _u32(box, 20 if box[0] else 12)
    matrix = struct.unpack_from(">9i", box, 52 if box[0] else 40)
    quarter = tuple(value / 65536 for value in (matrix[0], matrix[1], matrix[3], matrix[4]))
    return track_id, _ROTATIONS.get(quarter, 0)


def _track(parts: dict[bytes, bytes], track_id: int, movie_timescale: int) -> Track | None:
    media = dict(_boxes(parts[b"mdia"]))
    tables = dict(_boxes(dict(_boxes(media[b"minf"]))[b"stbl"]))
    timescale = _u32(media[b"mdhd"], 20 if media[b"mdhd"][0] else 12)
    same_size, num_samples = _u32(tables[b"stsz"], 4), _u32(tables[b"stsz"], 8)
    stts = _table(tables[b"stts"], 2)
    ctts = _table(tables[b"ctts"], 2) if b"ctts" in tables else None
    edit = _edit(dict(_boxes(parts.get(b"edts", b""))).get(b"elst"), timescale, movie_timescale)
    if edit is None or not num_samples or (stts < 0).any() or stts[:, 0].sum() != num_samples:
        return None
    if ctts is not None and ((ctts[:, 0] < 0).any() or ctts[:, 0].sum() != num_samples):
        return None
    stss = _table(tables[b"stss"], 1)[:, 0] - 1 if b"stss" in tables else None
    if stss is not None and len(stss) and not 0 <= stss.min() <= stss.max() < num_samples:
        return None
    if b"stco" in tables:
        chunk_offset = _table(tables[b"stco"], 1, kind=">u4")[:, 0]
    else:
        chunk_offset = _table(tables[b"co64"], 1, kind=">i8")[:, 0]
    stsc = _table(tables[b"stsc"], 3)
    runs = np.diff(stsc[:, 0], append=len(chunk_offset) + 1)
    if stsc[0, 0] != 1 or (runs <= 0).any() or (stsc[:, 1] < 0).any() or (stsc[:, 1] * runs).sum() < num_samples:
        return None
    return Track(
        track_id=track_id,
        timescale=timescale,
        num_samples=num_samples,
        stts=stts,
        ctts=ctts,
        stss=stss,
        offset=edit[0],
        edit=edit[1:],
        has_edit=b"edts" in parts,
        sample_size=np.array([same_size]) if same_size else _table(tables[b"stsz"], 1, head=8)[:, 0],
        chunk_offset=chunk_offset,
        stsc=stsc,
        aac_config=_aac_config(tables.get(b"stsd", b"")),
        avc=_avc_description(tables.get(b"stsd", b"")),
    )


def _aac_config(box: bytes) -> bytes:
    """The decoder's configuration in a sample description (ISO/IEC 14496-1, section 7.2.6), b"" if it is not AAC."""
    entries = list(_boxes(box[8:]))
    if len(entries) != 1 or entries[0][0] != b"mp4a" or entries[0][1][8:10] != b"\0\0":
        return b""
    descriptor = dict(_boxes(entries[0][1][28:])).get(b"esds", b"")[4:]
    tag, content = _descriptor(descriptor)
    if tag != 3 or len(content) < 3 or content[2] & 0xE0:  # a stream that depends on others
        return b""
    tag, content = _descriptor(content[3:])
    if tag != 4 or content[:1] != b"\x40":  # MPEG-4 audio
        return b""
    tag, content = _descriptor(content[13:])
    return content if tag == 5 else b""


def _avc_description(box: bytes) -> AvcDescription | None:
    entries = list(_boxes(box[8:]))
    if len(entries) != 1 or entries[0][0] != b"avc1" or len(entries[0][1]) < _VISUAL_ENTRY_BYTES:
        return None
    entry = entries[0][1]
    parts = list(_boxes(entry[_VISUAL_ENTRY_BYTES:]))
    kinds = [kind for kind, _ in parts]
    if kinds.count(b"avcC") != 1 or len(set(kinds)) < len(kinds) or not _PLAIN_AVC_BOXES.issuperset(kinds):
        return None
    colr = dict(parts).get(b"colr")
    colour, full_range = None, None
    if colr is not None:
        if len(colr) < 10 or colr[:4] not in (b"nclx", b"nclc"):
            return None
        colour = struct.unpack_from(">HHH", colr, 4)
        full_range = bool(colr[10] & 0x80) if colr[:4] == b"nclx" and len(colr) > 10 else None
    width, height = struct.unpack_from(">HH", entry, 24)
    return AvcDescription(dict(parts)[b"avcC"], width, height, colour, full_range)


def _descriptor(data: bytes) -> tuple[int, bytes]:
    """Tag and content of the descriptor that `data` begins with; (0, b"") if it is not whole."""
    length = 0
    for index, byte in enumerate(data[1:5], start=2):
        length = length << 7 | byte & 0x7F
        if not byte & 0x80:
            return (data[0], data[index : index + length]) if index + length <= len(data) else (0, b"")
    return 0, b""


def _edit(box: bytes | None, timescale: int, movie_timescale: int) -> tuple[int, int, int] | None:
    """Offset to the pts, and the range that is shown, in ticks of the track; None if it is more than one plain cut."""
    if box is None:
        return 0, -(2**62), 2**62
    long = box[0] == 1
    entry = struct.Struct(">QqI" if long else ">IiI")
    late = 0
    found: tuple[int, int, int] | None = None
    for index in range(_u32(box, 4)):
        duration, start, rate = entry.unpack_from(box, 8 + index * entry.size)
        ticks = (2 * duration * timescale + movie_timescale) // (2 * movie_timescale)
        if start == -1 and found is None:
            late += ticks
        elif start < 0 or found is not None or rate != 0x10000 or not duration:
            return None
        else:
            found = late - start, start, start + ticks
    return found
