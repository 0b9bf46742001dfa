"""The files of a manifest: their columns, and the one writer that makes them all from the same records."""

from __future__ import annotations

import csv
import dataclasses
import functools
import hashlib
import json
import os
import re
from array import array
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from fractions import Fraction
from typing import Any, Literal, NamedTuple
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from avloader import records
from avloader.annotations import Annotation, BadAnnotation
from avloader.errors import ManifestError
from avloader.media import AudioInfo, MediaInfo, VideoInfo
from avloader.timeline import (
    FrameTimes,
    Rounding,
    divide_half_up,
    nanoseconds_to_text,
    round_half_up,
    rounding,
    samples_to_seconds,
    seconds_to_text,
)

__all__ = [
    "FOLDER_ENTRIES",
    "MEDIA_PER_CHUNK",
    "ROWS_PER_CHUNK",
    "SCHEMA_VERSION",
    "TABLES",
    "Resolved",
    "Streams",
    "TableWriter",
    "file_digest",
    "read_schema",
]

SCHEMA_VERSION = 1

Streams = Literal["both", "audio", "video"]
"""What rows hold, or what a loader delivers: picture and sound, or one of them."""

_TEXTS = ("file_list.txt", "audio_offsets.csv", "rejected.csv")
ROWS_PER_CHUNK = 65536
MEDIA_PER_CHUNK = 2048
_INTEGER_COLUMNS = (
    "media_id",
    "audio_id",
    "first_frame",
    "stop_frame",
    "first_pts",
    "audio_start_sample",
    "audio_num_samples",
    "label",
    "av_offset_ns",
    "line",
)
_CLIPS_SCHEMA = pa.schema(
    [pa.field(name, pa.int64(), nullable=False) for name in _INTEGER_COLUMNS]
    + [pa.field("id", pa.string()), pa.field("extra", pa.map_(pa.string(), pa.string()), nullable=False)]
)
# Derived, so that nobody has to read the tables of frame times to learn which media have one.
_MEDIA_SCHEMA = records.arrow_schema(MediaInfo).append(pa.field("constant_times", pa.bool_()))
TABLES = {"media.arrow": _MEDIA_SCHEMA, "clips.parquet": _CLIPS_SCHEMA}
FOLDER_ENTRIES = ("manifest.json", *TABLES, *_TEXTS, "links")
_OFFSETS_HEADER = ("row", "path", "start_sample", "num_samples", "sample_rate", "start_seconds", "duration_seconds")
_REJECTED_HEADER = ("line", "path", "start", "end", "label", "code", "message")
_CLOCKS_IN_MEMORY = 1024  # rows of one medium mostly follow one another
_NO_EXTRA: list[tuple[str, str]] = []
_SAYS_WHAT_HELPS = ("unreadable", "no_streams", "no_video", "no_audio")
_WHITE_SPACE = re.compile(r"[ \t\n\v\f\r]")


class Resolved(NamedTuple):
    """An annotation with its media: everything that is written about a row comes from here.

    Attributes:
        annotation: As the annotation file states it.
        medium: The medium of the picture; in rows of sound alone, of that.
        video: Its picture; None: the row has only sound.
        sound: The medium of the sound; None: the row has only pictures.
        audio: Its sound.
        first_frame, stop_frame: The frames [first_frame, stop_frame) of the picture.
        first_sample, stop_sample: The samples of the sound, in rows of sound alone.
    """

    annotation: Annotation
    medium: MediaInfo
    video: VideoInfo | None
    sound: MediaInfo | None
    audio: AudioInfo | None
    first_frame: int = 0
    stop_frame: int = 0
    first_sample: int = 0
    stop_sample: int = 0


class TableWriter:
    """Writes the tables side by side, chunk by chunk.

    Args:
        folder: Where to write.
        output: Where the folder will stand in the end.
        labels: Names of the classes.
        label_ids: Class id of every label.
        streams: What the rows hold.
    """

    def __init__(
        self, folder: str, output: str, labels: list[str], label_ids: dict[str, int], *, streams: Streams = "both"
    ) -> None:
        self._folder = folder
        self._output = output
        self._labels = labels
        self._label_ids = label_ids
        self._streams = streams
        self._media_ids: dict[str, int] = {}
        self._media: list[dict[str, Any]] = []
        self._list_paths: dict[str, str] = {}
        self._integers = array("q")  # _INTEGER_COLUMNS of the rows of a chunk: no objects that last
        self._ids: list[str | None] = []
        self._extras: list[list[tuple[str, str]]] = []
        self._clocks: dict[tuple[int, int], _Clocks] = {}
        self._list_path = functools.lru_cache(maxsize=1024)(self._make_list_path)
        self._num_rows = 0
        self._reasons: Counter[str] = Counter()
        self._first_rejection = self._first_code = ""
        self._hashers = {name: hashlib.sha256() for name in (*_INTEGER_COLUMNS, "media") if name != "line"}
        self._files = ExitStack()

    def __enter__(self) -> TableWriter:
        self._clips = self._files.enter_context(pq.ParquetWriter(self._path("clips.parquet"), _CLIPS_SCHEMA))
        sink = self._files.enter_context(pa.OSFile(self._path("media.arrow"), "wb"))  # a path alone it does not close
        self._media_table = self._files.enter_context(pa.ipc.new_file(sink, _MEDIA_SCHEMA))
        open_text = functools.partial(open, mode="w", encoding="utf-8", errors="backslashreplace", newline="")
        self._file_list = self._files.enter_context(open_text(self._path("file_list.txt")))
        self._offsets = csv.writer(self._files.enter_context(open_text(self._path("audio_offsets.csv"))))
        self._rejected = csv.writer(self._files.enter_context(open_text(self._path("rejected.csv"))))
        self._offsets.writerow(_OFFSETS_HEADER)
        self._rejected.writerow(_REJECTED_HEADER)
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def keep(self, resolved: Resolved) -> None:
        """Write a row."""
        annotation, audio = resolved.annotation, resolved.audio
        offset_ns = round_half_up(annotation.av_offset * 10**9) if annotation.av_offset else 0
        media_id = self._media_id(resolved.medium)
        sound_id = -1 if resolved.sound is None else self._media_id(resolved.sound)
        first_pts = start_sample = num_samples = start_ns = duration_ns = 0  # of the sound
        if resolved.video is not None:
            times, first, stop = resolved.video.times, resolved.first_frame, resolved.stop_frame
            first_pts = times.pts(first)
            num_ticks = times.end_pts(stop - 1) - first_pts
            if audio is not None:
                clocks = None if offset_ns else self._clocks.get((media_id, sound_id))
                if clocks is None:
                    clocks = _clocks(times, audio, offset_ns)
                    if len(self._clocks) == _CLOCKS_IN_MEMORY:
                        self._clocks.clear()
                    if not offset_ns:
                        self._clocks[media_id, sound_id] = clocks
                start_sample, num_samples = clocks.start_sample(first_pts), clocks.num_samples(num_ticks)
                start_ns, duration_ns = clocks.start_ns(first_pts), clocks.duration_ns(num_ticks)
        elif audio is not None:
            start_sample, num_samples = resolved.first_sample, resolved.stop_sample - resolved.first_sample
            start_ns = round_half_up(
                10**9 * (audio.start_seconds + samples_to_seconds(start_sample, audio.sample_rate))
            )
            duration_ns = divide_half_up(10**9 * num_samples, audio.sample_rate)
        self._integers.extend(
            (
                media_id,
                sound_id,
                resolved.first_frame,
                resolved.stop_frame,
                first_pts,
                start_sample,
                num_samples,
                self._label_ids[annotation.label],
                offset_ns,
                annotation.line,
            )
        )
        self._ids.append(annotation.id)
        self._extras.append(list(annotation.extra.items()) if annotation.extra else _NO_EXTRA)
        row = self._num_rows
        # DALI's reader of videos takes frames after the row, its reader of files takes none.
        frames = "" if resolved.video is None else f" {resolved.first_frame} {resolved.stop_frame}"
        self._file_list.write(f"{self._list_path(resolved.medium.path)} {row}{frames}\n")
        if resolved.sound is not None and audio is not None:
            seconds = nanoseconds_to_text(start_ns), nanoseconds_to_text(duration_ns)
            self._offsets.writerow((row, resolved.sound.path, start_sample, num_samples, audio.sample_rate, *seconds))
        self._num_rows += 1
        if self._num_rows % ROWS_PER_CHUNK == 0:
            self._flush()

    def reject(self, entry: Annotation | BadAnnotation, code: str, message: str) -> None:
        """Write a row of ``rejected.csv``."""
        if isinstance(entry, Annotation):
            bounds = ("" if bound is None else seconds_to_text(bound) for bound in (entry.start, entry.end))
            fields = (entry.path, *bounds, entry.label)
        else:
            fields = (entry.text, "", "", "")
        # Before Python 3.11, csv neither writes nor reads a null.
        self._rejected.writerow([str(field).replace("\0", r"\0") for field in (entry.line, *fields, code, message)])
        self._reasons[code] += 1
        if not self._first_rejection:
            self._first_rejection, self._first_code = f"line {entry.line}: {message}", code

    def finish(self, options: Mapping[str, str | None]) -> None:
        """Write what remains, and ``manifest.json`` last.

        Raises:
            ManifestError: If no row was kept.
        """
        if not self._num_rows:
            raise self._nothing_kept(options["annotations"])
        self._flush()
        self._flush_media()
        self._files.close()
        fingerprint = hashlib.sha256("\n".join(self._labels).encode())
        for name, hasher in self._hashers.items():
            fingerprint.update(f"{name} {hasher.hexdigest()}\n".encode())
        facts = {
            "schema_version": SCHEMA_VERSION,
            "streams": self._streams,
            "options": options,
            "num_rows": self._num_rows,
            "num_media": len(self._media_ids),
            "num_rejected": self._reasons.total(),
            "reasons": dict(self._reasons.most_common()),
            "labels": self._labels,
            "fingerprint": fingerprint.hexdigest(),
            "files": {
                name: {"size": os.stat(self._path(name)).st_size, "sha256": file_digest(self._path(name))}
                for name in (*TABLES, *_TEXTS)
            },
        }
        with open(self._path("manifest.json"), "w", encoding="utf-8", errors="backslashreplace") as file:
            json.dump(facts, file, indent=2, ensure_ascii=False)
            file.write("\n")

    def _nothing_kept(self, path: str | None) -> ManifestError:
        if not self._reasons:
            return ManifestError("it holds no annotation", path=path, remedy="Add lines below its header")
        counts = ", ".join(f"{count} {code}" for code, count in self._reasons.most_common())
        cause = f"no annotation can be kept: {counts}; the first is {self._first_rejection.rstrip('.')}"
        if "missing_file" in self._reasons:
            remedy = "Check the media root"
        else:
            remedy = "" if self._first_code in _SAYS_WHAT_HELPS else "Correct the annotations"
        return ManifestError(cause, path=path, remedy=remedy)

    def _path(self, name: str) -> str:
        return os.path.join(self._folder, name)

    def _media_id(self, medium: MediaInfo) -> int:
        media_id = self._media_ids.get(medium.path)
        if media_id is None:
            media_id = self._media_ids[medium.path] = len(self._media_ids)
            facts = {name: value for name, value in vars(medium).items() if name not in ("path", "mtime_ns")}
            self._hashers["media"].update(json.dumps(facts, sort_keys=True, default=_plain).encode())
            constant = None if medium.video is None else medium.video.times.is_constant
            self._media.append(records.encode(medium) | {"constant_times": constant})
            if len(self._media) == MEDIA_PER_CHUNK:
                self._flush_media()
        return media_id

    def _make_list_path(self, path: str) -> str:
        """How DALI's file list, which white space splits, names a medium."""
        if not _WHITE_SPACE.search(path):
            return path
        if path not in self._list_paths:
            extension = os.path.splitext(path)[1]
            name = f"{self._media_ids[path]}{'' if _WHITE_SPACE.search(extension) else extension}"
            os.makedirs(self._path("links"), exist_ok=True)
            os.symlink(path, os.path.join(self._folder, "links", name))
            # A link in a folder with white space helps nobody: the line stays, so that rows and lines agree.
            self._list_paths[path] = _WHITE_SPACE.sub(_percent, os.path.join(self._output, "links", name))
        return self._list_paths[path]

    def _flush(self) -> None:
        if not self._ids:
            return
        integers = np.frombuffer(self._integers, np.int64).reshape(-1, len(_INTEGER_COLUMNS)).T.copy()
        for name, values in zip(_INTEGER_COLUMNS, integers, strict=True):
            if name in self._hashers:
                self._hashers[name].update(values.astype("<i8", copy=False).tobytes())
        columns = [
            *map(pa.array, integers),
            pa.array(self._ids, pa.string()),
            pa.array(self._extras, _CLIPS_SCHEMA.field("extra").type),
        ]
        self._clips.write_batch(pa.RecordBatch.from_arrays(columns, schema=_CLIPS_SCHEMA))
        self._integers = array("q")
        self._ids.clear()
        self._extras.clear()

    def _flush_media(self) -> None:
        if self._media:
            self._media_table.write_batch(pa.RecordBatch.from_pylist(self._media, schema=_MEDIA_SCHEMA))
            self._media.clear()


class _Clocks(NamedTuple):
    """How the times of a picture become those of its sound: from pts, and from ticks that pass.

    Attributes:
        start_sample, start_ns: From the pts of the first frame: the sample that sounds with it, its media time.
        num_samples, duration_ns: From the ticks that the frames last.
    """

    start_sample: Rounding
    start_ns: Rounding
    num_samples: Rounding
    duration_ns: Rounding


def _clocks(times: FrameTimes, audio: AudioInfo, offset_ns: int) -> _Clocks:
    tick, rate, start = times.time_base, audio.sample_rate, times.origin + Fraction(offset_ns, 10**9)
    return _Clocks(
        rounding(tick * rate, -(start + audio.start_seconds) * rate),
        rounding(tick * 10**9, -start * 10**9),
        rounding(tick * rate),
        rounding(tick * 10**9),
    )


def file_digest(path: str) -> str:
    """SHA-256 of a file, as hex digits."""
    hasher = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            hasher.update(block)
    return hasher.hexdigest()


def read_schema(path: str) -> pa.Schema:
    """The columns of a table, from its file."""
    if path.endswith(".parquet"):
        return pq.read_schema(path)
    with pa.memory_map(path) as file:
        return pa.ipc.open_file(file).schema


def _percent(match: re.Match[str]) -> str:
    return quote(match.group())


def _plain(value: Any) -> Any:
    """A fact as JSON can say it."""
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return value.tolist() if isinstance(value, np.ndarray) else str(value)
