"""Annotations and media become one folder of tables; from one record per row, so that they cannot disagree."""

from __future__ import annotations

import csv
import functools
import json
import os
import re
import stat
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from avloader import records
from avloader.annotations import Annotation, BadAnnotation, read_annotations
from avloader.distribute import check_engine
from avloader.errors import ManifestError, MediaError
from avloader.folders import new_folder
from avloader.media import AudioInfo, MediaInfo, VideoInfo
from avloader.probing import ProbedMedia, probe_all
from avloader.tables import (
    FOLDER_ENTRIES,
    MEDIA_PER_CHUNK,
    ROWS_PER_CHUNK,
    SCHEMA_VERSION,
    TABLES,
    Resolved,
    Streams,
    TableWriter,
    file_digest,
    read_schema,
)
from avloader.timeline import FrameTimes, samples_to_seconds, seconds_to_samples, seconds_to_text

__all__ = [
    "SCHEMA_VERSION",
    "Manifest",
    "ManifestRow",
    "MediaPictures",
    "MediaRates",
    "MediaSounds",
    "Streams",
    "build_manifest",
    "write_manifest",
]

_REBUILD = "Build the manifest again"
_FACTS = {
    "num_rows": int,
    "num_media": int,
    "num_rejected": int,
    "reasons": dict,
    "labels": list,
    "fingerprint": str,
    "files": dict,
}
_MEDIA_AT_OPEN = 4096  # compared with the files when a manifest is opened; every one is when it is read
_MEDIA_IN_MEMORY = 4096
_INTEGER = re.compile(r"-?[0-9]{1,18}")

_Int64 = npt.NDArray[np.int64]
_Entry = Annotation | BadAnnotation


@dataclass(frozen=True, slots=True)
class ManifestRow:
    """One kept annotation, resolved on its media.

    Attributes:
        row: Its number in the manifest.
        path: Absolute path of the medium.
        audio_path: Absolute path of the sound: the medium itself or a side-car file; "" in rows of pictures alone.
        media_id, audio_id: Rows of ``media.arrow``; -1: no sound.
        first_frame, stop_frame: The frames [first_frame, stop_frame) of the medium; none in rows of sound alone.
        start_seconds, stop_seconds: Media time of the first frame and of the end of the last one; of the sound in rows
            of sound alone.
        audio_start_sample: Sample that sounds with the first frame, counted from sample 0 of the sound at its own rate;
            negative if the sound starts later.
        audio_num_samples: Samples that the frames last.
        label: Class id.
        av_offset: Seconds; offset already in the file, positive: sound leads.
        id: The annotation's own identifier, or None.
        line: Line of the annotation file.
        extra: The annotation's other columns.
    """

    row: int
    path: str
    audio_path: str
    media_id: int
    audio_id: int
    first_frame: int
    stop_frame: int
    start_seconds: Fraction
    stop_seconds: Fraction
    audio_start_sample: int
    audio_num_samples: int
    label: int
    av_offset: Fraction
    id: str | None
    line: int
    extra: dict[str, str]


@dataclass(frozen=True, eq=False)
class MediaRates:
    """How the frames of all media are spaced, by kind: a handful of kinds in millions of media.

    Attributes:
        kind: int64 [shape=(num_media,)], index into the lists below; -1: the medium has no picture.
        frame_rate: Frames per second, or None where variable.
        average_rate: Frames per second on average; of one medium of the kind where it is variable.
        frame_seconds: Exact time between two frames, or None where it is not exactly constant (variable rate, and
            constant rates in a container that rounds its time stamps).
    """

    kind: _Int64
    frame_rate: list[Fraction | None]
    average_rate: list[Fraction]
    frame_seconds: list[Fraction | None]


@dataclass(frozen=True, eq=False)
class MediaPictures:
    """The pictures of all media.

    Attributes:
        width, height: int64 [shape=(num_media,)]; 0: the medium has no picture.
        nvdec: bool [shape=(num_media,)], whether DALI's video reader on the GPU can take the medium.
    """

    width: _Int64
    height: _Int64
    nvdec: npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class MediaSounds:
    """The sound of all media.

    Attributes:
        sample_rate: int64 [shape=(num_media,)], samples per second; 0: the medium has no sound.
        first_sample, stop_sample: int64 [shape=(num_media,)], the samples [first, stop) that are sound.
    """

    sample_rate: _Int64
    first_sample: _Int64
    stop_sample: _Int64


class Manifest:
    """An opened manifest folder. Columns are read when first asked for; picklable by its path.

    The columns `media_id`, `audio_id`, `first_frame`, `stop_frame`, `label` and `av_offset_ns` are read-only int64
    arrays with one entry a row.

    Attributes:
        path: The folder.
        labels: Names of the classes, a class id is an index into it; empty where labels are integers (the ids
            themselves) or where there are none (the id is -1).
        fingerprint: Hex digest of what decides clips: the identity of the data set, wherever its files lie.
        num_rejected: Rows of ``rejected.csv``.
        streams: What its rows hold: "both" picture and sound, or "audio" or "video" alone.
    """

    path: str
    labels: list[str]
    fingerprint: str
    num_rejected: int
    streams: Streams

    def __init__(self, path: str, facts: dict[str, Any]) -> None:
        self.path = path
        self.labels = facts["labels"]
        self.fingerprint = facts["fingerprint"]
        self.num_rejected = facts["num_rejected"]
        self.streams = facts.get("streams", "both")
        self._facts = facts
        self._lock = threading.Lock()
        # Weakly: a cycle would keep the tables mapped until the garbage collector comes by.
        decode = weakref.WeakMethod(self._decode_media)
        self._media: Callable[[int], MediaInfo] = functools.lru_cache(_MEDIA_IN_MEMORY)(lambda media: decode()(media))  # type: ignore[misc]

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, check_media: bool = True) -> Manifest:
        """Open the folder at `path`.

        Args:
            path: A folder that `build_manifest` wrote.
            check_media: Compare size and modification time of media with what was recorded: of all, or of 4096 spread
                evenly if there are more. A loader compares every medium again when it reads it; `changed_media` and
                ``avloader check`` compare all.

        Raises:
            ManifestError: Missing, of another schema version, tampered or truncated, or media changed.
        """
        manifest = cls(os.path.abspath(path), _read_facts(os.path.abspath(path)))
        manifest.check_tables()
        if check_media:
            for media_id, what in manifest.changed_media(at_most=_MEDIA_AT_OPEN):
                raise ManifestError(
                    what,
                    path=manifest.media(media_id).path,
                    row=manifest.row_of_media(media_id),
                    remedy="Bring the file back as it was, or build the manifest again; "
                    "in Python, check_media=False opens it nevertheless",
                    code="media_changed",
                )
        return manifest

    def __reduce__(self) -> tuple[Callable[[str, str], Manifest], tuple[str, str]]:
        return _reopen, (self.path, self.fingerprint)

    def __repr__(self) -> str:
        return f"Manifest({self.path!r}, {len(self)} rows, {self.num_media} media, {self.num_rejected} rejected)"

    def __len__(self) -> int:
        return int(self._facts["num_rows"])

    @functools.cached_property
    def media_id(self) -> _Int64:
        """Row of ``media.arrow`` that holds the picture."""
        return self.column("media_id")

    @functools.cached_property
    def used_media(self) -> _Int64:
        """The media that hold the picture of a row, ascending."""
        return np.flatnonzero(np.bincount(self.media_id, minlength=self.num_media))

    @functools.cached_property
    def audio_id(self) -> _Int64:
        """Row of ``media.arrow`` that holds the sound."""
        own = self.column("audio_id")
        return self.media_id if np.array_equal(own, self.media_id) else own  # without side-cars one array for both

    @functools.cached_property
    def first_frame(self) -> _Int64:
        """First frame of the row in its medium."""
        return self.column("first_frame")

    @functools.cached_property
    def stop_frame(self) -> _Int64:
        """The frame after the last one."""
        return self.column("stop_frame")

    @functools.cached_property
    def label(self) -> _Int64:
        """Class id; -1 where the annotation has no label."""
        return self.column("label")

    @functools.cached_property
    def av_offset_ns(self) -> _Int64:
        """Offset already in the file in nanoseconds, positive: sound leads."""
        return self.column("av_offset_ns")

    def column(self, name: str) -> _Int64:
        """An integer column of ``clips.parquet``, read-only."""
        with self._damage("clips.parquet"):
            values = np.empty(len(self), np.int64)
            end = 0
            with pq.ParquetFile(os.path.join(self.path, "clips.parquet"), memory_map=True) as file:
                for batch in file.iter_batches(ROWS_PER_CHUNK, columns=[name]):
                    begin, end = end, end + len(batch)
                    values[begin:end] = batch.column(0).to_numpy()
        if end and (values == values[0]).all():
            return np.broadcast_to(values[0], end)  # takes no memory
        return _read_only(values[:end])

    @property
    def num_media(self) -> int:
        """Rows of ``media.arrow``."""
        return int(self._facts["num_media"])

    @property
    def num_classes(self) -> int:
        """Class ids lie in [0, num_classes); 0 if no row has a label."""
        return len(self.labels) or max(int(self.label.max()) + 1, 0)

    @property
    def reasons(self) -> dict[str, int]:
        """Rejected annotations by reason code, the most frequent first."""
        return dict(self._facts["reasons"])

    def media(self, media_id: int) -> MediaInfo:
        """Facts of one medium, its path absolute (cached)."""
        return self._media(int(media_id))

    @functools.cached_property
    def media_rates(self) -> MediaRates:
        """How the frames of all media are spaced."""
        names = ("frame_rate",), ("average_rate",), ("times", "time_base"), ("times", "step_pts")
        return _media_rates(
            self._media_column("constant_times"), *(self._media_column("video", *each) for each in names)
        )

    @functools.cached_property
    def media_pictures(self) -> MediaPictures:
        """The pictures of all media."""
        width, height = (
            pa.compute.fill_null(self._media_column("video", name), 0).to_numpy() for name in ("width", "height")
        )
        nvdec = pa.compute.equal(self._media_column("nvdec_reason"), "").to_numpy(zero_copy_only=False)
        return MediaPictures(_read_only(width), _read_only(height), nvdec)

    @functools.cached_property
    def media_sounds(self) -> MediaSounds:
        """The sound of all media."""
        names = ("sample_rate", "silence", "num_samples")
        columns = (pa.compute.fill_null(self._media_column("audio", name), 0).to_numpy() for name in names)
        return MediaSounds(*map(_read_only, columns))

    def check_streams(self, streams: Streams) -> None:
        """Check that the rows hold what is asked for.

        Raises:
            ManifestError: If they do not.
        """
        if self.streams in ("both", streams):
            return
        has = {"audio": "sound", "video": "pictures"}[self.streams]
        raise ManifestError(
            f"its rows hold {has} alone, but streams={streams!r} is asked for",
            path=self.path,
            remedy=f"Build the manifest with streams={streams!r}, or load it with streams={self.streams!r}",
            code="other_streams",
        )

    def row(self, row: int) -> ManifestRow:
        """One row, for people and for error messages; `plan` uses the columns."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} is outside [0, {len(self)})")
        return self._manifest_row(row, self._clips_row(row))

    def rows(self) -> Iterator[ManifestRow]:
        """All rows in order, a part of the table in memory at a time."""
        number = 0
        with self._damage("clips.parquet"):
            for batch in pq.ParquetFile(os.path.join(self.path, "clips.parquet")).iter_batches():
                for values in batch.to_pylist():
                    yield self._manifest_row(number, values)
                    number += 1

    def _manifest_row(self, row: int, values: dict[str, Any]) -> ManifestRow:
        medium = self.media(values["media_id"])
        sound = medium if self.streams == "video" else self.media(values["audio_id"])
        if self.streams == "audio":
            audio, first = _audio(sound), values["audio_start_sample"]
            start, stop = (
                audio.start_seconds + samples_to_seconds(sample, audio.sample_rate)
                for sample in (first, first + values["audio_num_samples"])
            )
        else:
            times = _video(medium).times
            start = times.seconds(values["first_frame"])
            stop = times.pts_to_media_time(times.end_pts(values["stop_frame"] - 1))
        return ManifestRow(
            row=row,
            path=medium.path,
            audio_path="" if self.streams == "video" else sound.path,
            media_id=values["media_id"],
            audio_id=values["audio_id"],
            first_frame=values["first_frame"],
            stop_frame=values["stop_frame"],
            start_seconds=start,
            stop_seconds=stop,
            audio_start_sample=values["audio_start_sample"],
            audio_num_samples=values["audio_num_samples"],
            label=values["label"],
            av_offset=Fraction(values["av_offset_ns"], 10**9),
            id=values["id"],
            line=values["line"],
            extra=dict(values["extra"]),
        )

    def rejected(self) -> list[dict[str, str]]:
        """The rows of ``rejected.csv``."""
        with open(os.path.join(self.path, "rejected.csv"), encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    def check_tables(self, *, texts: bool = False) -> None:
        """Compare the files of the folder with the sizes and digests in ``manifest.json``, and their columns.

        Args:
            texts: Also the digests of the text files, which the package itself does not read back.

        Raises:
            ManifestError: If one is missing, truncated or changed.
        """
        files = self._facts["files"]
        with ThreadPoolExecutor(len(files)) as pool:  # hashing needs no GIL
            for _ in pool.map(lambda name: self._check_file(name, read=texts or name in TABLES), files):
                pass
        for name, schema in TABLES.items():
            path = os.path.join(self.path, name)
            with self._damage(name):
                missing = records.field_names(schema) - records.field_names(read_schema(path))
            if missing:
                cause = f"it lacks the columns {', '.join(sorted(missing))}, another version of avloader wrote it"
                raise ManifestError(cause, path=path, remedy=_REBUILD)

    def _check_file(self, name: str, *, read: bool) -> None:
        path, recorded = os.path.join(self.path, name), self._facts["files"][name]
        try:
            size = os.stat(path).st_size
            is_same = not read or file_digest(path) == recorded["sha256"]
        except FileNotFoundError:
            raise ManifestError("this file of the manifest is missing", path=path, remedy=_REBUILD) from None
        except OSError as error:
            raise _cannot_be_read(path, error) from error
        if size != recorded["size"]:
            raise ManifestError(
                f"it has {size} bytes, {recorded['size']} were written", path=path, remedy=_REBUILD, code="damaged"
            )
        if not is_same:
            raise ManifestError("its content was changed", path=path, remedy=_REBUILD, code="damaged")

    def changed_media(self, *, at_most: int | None = None) -> Iterator[tuple[int, str]]:
        """Media that are no longer what was probed, as (media id, what changed).

        Args:
            at_most: Compare only so many, spread evenly; None: all.
        """
        number = self.num_media if at_most is None else min(at_most, self.num_media)
        for media_id in (place * self.num_media // number for place in range(number)):
            chunk, place = divmod(media_id, MEDIA_PER_CHUNK)
            with self._damage("media.arrow"):
                batch = self._media_chunks[chunk]
                path, size, mtime_ns = (batch.field(name)[place].as_py() for name in ("path", "size", "mtime_ns"))
            try:
                now = os.stat(path)
            except OSError as error:
                yield media_id, f"the medium cannot be reached any more ({error.strerror or error})"
                continue
            if not stat.S_ISREG(now.st_mode):
                yield media_id, "the medium is not a file any more"
            elif now.st_size != size:
                yield media_id, f"the medium has {now.st_size} bytes, it had {size} when the manifest was built"
            elif now.st_mtime_ns != mtime_ns:
                yield media_id, "the medium was modified after the manifest was built"

    def row_of_media(self, media_id: int) -> int:
        """The first row that uses a medium."""
        return int(np.argmax((self.media_id == media_id) | (self.audio_id == media_id)))

    @functools.cached_property
    def _media_chunks(self) -> list[pa.StructArray]:
        """The rows of ``media.arrow``, in pieces of `MEDIA_PER_CHUNK`; in memory only where they are looked at."""
        with self._damage("media.arrow"):
            table = pa.ipc.open_file(pa.memory_map(os.path.join(self.path, "media.arrow")))
            return [table.get_batch(number).to_struct_array() for number in range(table.num_record_batches)]

    @functools.cached_property
    def _clips_file(self) -> pq.ParquetFile:
        return pq.ParquetFile(os.path.join(self.path, "clips.parquet"), memory_map=True)

    def _decode_media(self, media_id: int) -> MediaInfo:
        if not 0 <= media_id < self.num_media:
            raise IndexError(f"medium {media_id} is outside [0, {self.num_media})")
        chunk, place = divmod(media_id, MEDIA_PER_CHUNK)
        return records.decode(MediaInfo, self._media_chunks[chunk][place])

    def _media_column(self, *names: str) -> pa.Array:
        """A column of all media, by the names of the fields that lead to it."""
        chunks = pa.chunked_array(self._media_chunks)
        return pa.compute.struct_field(chunks, list(names)).combine_chunks()

    def _clips_row(self, row: int) -> dict[str, Any]:
        chunk, place = divmod(row, ROWS_PER_CHUNK)
        with self._damage("clips.parquet"), self._lock:
            values: dict[str, Any] = self._clips_file.read_row_group(chunk).slice(place, 1).to_pylist()[0]
        return values

    @contextmanager
    def _damage(self, name: str) -> Iterator[None]:
        """Arrow's errors as errors of the manifest."""
        try:
            yield
        except (pa.ArrowException, OSError) as error:
            cause = f"the table cannot be read ({str(error).splitlines()[0]})"
            raise ManifestError(cause, path=os.path.join(self.path, name), remedy=_REBUILD, code="damaged") from error


def build_manifest(
    annotations: str | os.PathLike[str],
    *,
    media_root: str | os.PathLike[str],
    output: str | os.PathLike[str],
    format: str = "auto",
    media_template: str | None = None,
    streams: Streams = "both",
    num_workers: int | None = None,
    engine: str = "local",
    progress: bool | None = None,
) -> Manifest:
    """Resolve annotations on their media and write a manifest folder.

    Args:
        annotations: The annotation file.
        media_root: Folder that relative media paths start from.
        output: Folder to write; replaced as a whole if it is a manifest already.
        format: Name of the annotation format, or "auto".
        media_template: How to make a media path from an annotation's fields, for example "{id}_{start:06d}.mp4".
        streams: What rows hold: "both" picture and sound; "audio": sound alone, of audio files or videos, an interval
            being its samples; "video": pictures alone, whether the media have sound or not.
        num_workers: Workers that probe media, > 0; None: one a core.
        engine: Where the workers run: "local" or "ray" (`avloader.distribute.run_tasks`).
        progress: Show a progress bar; None: if standard error is a terminal.

    Returns:
        The opened manifest.

    Raises:
        AnnotationError: If the annotation file as a whole cannot be used.
        ManifestError: If no row can be kept, `media_root` is not a folder, or `output` exists and is not a manifest, or
            cannot be written.
        ValueError: If `num_workers` is not positive, or `engine` or `streams` cannot be used.
    """
    if streams not in get_args(Streams):
        raise ValueError(f"streams={streams!r} must be one of {', '.join(map(repr, get_args(Streams)))}")
    if num_workers is not None and num_workers < 1:
        raise ValueError(f"num_workers must be at least 1, or None for one a core, got {num_workers}")
    check_engine(engine)
    output = os.path.realpath(output)
    _check_output(output)

    def read() -> Iterator[_Entry]:
        return read_annotations(annotations, format=format, media_template=media_template)

    root = os.path.abspath(media_root)
    if not os.path.isdir(root):
        cause = "the media root is not a folder" if os.path.lexists(root) else "there is no such folder"
        raise ManifestError(cause, path=root, remedy="Name the folder that media paths start from", code="missing_file")
    paths: dict[str, None] = {}  # a dict keeps the order of the file
    labels: set[str] = set()
    for entry in read():
        if isinstance(entry, Annotation):
            paths.update(dict.fromkeys(_absolute(root, path) for path in _paths(entry, streams)))
            labels.add(entry.label)

    def probe(media: ProbedMedia) -> None:
        probe_all(paths, media, engine=engine, num_workers=num_workers, progress=progress)

    options = {
        "annotations": os.path.abspath(annotations),
        "media_root": root,
        "format": format,
        "media_template": media_template,
    }
    return write_manifest(read(), probe, labels=labels, root=root, output=output, options=options, streams=streams)


def write_manifest(
    entries: Iterable[Annotation | BadAnnotation],
    probe: Callable[[ProbedMedia], None],
    *,
    labels: set[str],
    root: str,
    output: str,
    options: Mapping[str, str | None],
    streams: Streams = "both",
) -> Manifest:
    """Write a manifest folder from annotations and the facts of their media; in memory a row takes nothing.

    Args:
        entries: The annotations, read one by one.
        probe: Adds the facts of every medium.
        labels: Those of all annotations.
        root: Absolute path that relative media paths start from.
        output: Absolute path of the folder.
        options: What to say in ``manifest.json`` about how it was made; `annotations` at least.
        streams: What rows hold.

    Raises:
        ManifestError: If no row can be kept, or the folder cannot be written.
    """
    try:
        with (
            new_folder(output) as folder,
            ProbedMedia(os.path.dirname(folder)) as media,
            TableWriter(folder, output, *_label_ids(labels), streams=streams) as writer,
        ):
            probe(media)
            for entry in entries:
                try:
                    writer.keep(_resolve(entry, root, media, streams))
                except _RejectedError as reason:
                    writer.reject(entry, reason.code, reason.message)
            writer.finish(options)
    except OSError as error:
        cause = f"the manifest cannot be written ({error.strerror or error})"
        raise ManifestError(cause, path=output, remedy="Name another output, or make room") from error
    return Manifest.open(output, check_media=False)


class _RejectedError(Exception):
    """An annotation cannot be kept."""

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        self.message = message
        super().__init__(message)


def _paths(entry: Annotation, streams: Streams) -> list[str]:
    """The media that an annotation needs."""
    if streams == "audio":
        return [entry.audio_path or entry.path]
    return [entry.path] if streams == "video" or not entry.audio_path else [entry.path, entry.audio_path]


def _resolve(entry: _Entry, root: str, media: ProbedMedia, streams: Streams) -> Resolved:
    """Find an annotation's media and frames, or samples."""
    if isinstance(entry, BadAnnotation):
        raise _RejectedError(entry.code, entry.message)
    if streams == "audio":
        sound = _probed(media, _absolute(root, entry.audio_path or entry.path))
        audio = _sound_of(entry, sound)
        first, stop = _samples(entry, audio)
        return Resolved(entry, sound, None, sound, audio, first_sample=first, stop_sample=stop)
    medium = _probed(media, _absolute(root, entry.path))
    if medium.video is None:
        raise _RejectedError("no_video", f"{medium.path}: the medium has no picture. Name a file with video.")
    if streams == "video":
        return Resolved(entry, medium, medium.video, None, None, *_frames(entry, medium.video.times))
    sound = _probed(media, _absolute(root, entry.audio_path)) if entry.audio_path else medium
    return Resolved(entry, medium, medium.video, sound, _sound_of(entry, sound), *_frames(entry, medium.video.times))


def _sound_of(entry: Annotation, sound: MediaInfo) -> AudioInfo:
    if sound.audio is None:
        cause = (
            "the side-car file has no sound" if entry.audio_path else "the medium has no sound, nor has it a side-car"
        )
        raise _RejectedError("no_audio", f"{sound.path}: {cause}. Name a file with sound in the column audio_path.")
    return sound.audio


@functools.lru_cache(maxsize=4096)
def _absolute(root: str, path: str) -> str:
    return os.path.normpath(os.path.join(root, path))


def _probed(media: ProbedMedia, path: str) -> MediaInfo:
    found = media.get(path)
    if found is None:
        raise _RejectedError("bad_line", "the annotation file changed while the manifest was built")
    if isinstance(found, MediaError):
        raise _RejectedError(found.code, str(found))
    return found


def _frames(entry: Annotation, times: FrameTimes) -> tuple[int, int]:
    """The frames [first, stop) of an annotation."""
    _check_interval(entry)
    start = times.start_seconds if entry.start is None else entry.start
    first, stop = times.frames_between(start, entry.end)
    if first < stop:
        return first, stop
    if start >= times.stop_seconds or (entry.end is not None and entry.end <= times.start_seconds):
        picture = _interval(times.start_seconds, times.stop_seconds)
        cause = f"the interval {_interval(start, entry.end)} lies outside the picture's, {picture}"
        raise _RejectedError("outside_media", cause)
    raise _RejectedError("empty_interval", f"no frame is shown in the interval {_interval(start, entry.end)}")


def _samples(entry: Annotation, audio: AudioInfo) -> tuple[int, int]:
    """The samples [first, stop) of an annotation, those nearest to its ends; cut to the sound."""
    _check_interval(entry)
    first, stop = (
        edge if bound is None else seconds_to_samples(bound - entry.av_offset - audio.start_seconds, audio.sample_rate)
        for bound, edge in ((entry.start, audio.silence), (entry.end, audio.num_samples))
    )
    if max(first, audio.silence) < min(stop, audio.num_samples):
        return max(first, audio.silence), min(stop, audio.num_samples)
    given = _interval(entry.start or Fraction(0), entry.end)
    if stop <= audio.silence or first >= audio.num_samples:
        begin = audio.start_seconds + samples_to_seconds(audio.silence, audio.sample_rate)
        sound = _interval(begin, audio.stop_seconds)
        raise _RejectedError("outside_media", f"the interval {given} lies outside the sound's, {sound}")
    raise _RejectedError("empty_interval", f"no sample lies in the interval {given}")


def _check_interval(entry: Annotation) -> None:
    if entry.start is not None and entry.end is not None and entry.end <= entry.start:
        raise _RejectedError("empty_interval", f"the interval {_interval(entry.start, entry.end)} holds no time")


def _interval(start: Fraction, end: Fraction | None) -> str:
    return f"[{seconds_to_text(start)}, {'end' if end is None else seconds_to_text(end)}) s"


def _label_ids(names: set[str]) -> tuple[list[str], dict[str, int]]:
    """The label names and the class id of every label; "" (no label) is -1."""
    given = sorted(names - {""})
    if all(_INTEGER.fullmatch(name) for name in given):
        return [], {"": -1} | {name: int(name) for name in given}
    return given, {"": -1} | {name: class_id for class_id, name in enumerate(given)}


def _check_output(output: str) -> None:
    """Refuse before the work what would be lost by it, or could not be written after it."""
    remedy = "Name another output"
    if output.encode(errors="ignore").decode() != output:
        raise ManifestError("its path is not UTF-8", path=output, remedy=remedy)
    if os.path.isdir(output):
        # The folder is replaced as a whole: nothing else may be in it.
        names = sorted(os.listdir(output))
        foreign = [name for name in names if name not in FOLDER_ENTRIES]
        if foreign or (names and "manifest.json" not in names):
            found = f"{foreign[0]!r} is in it" if foreign else "it has no manifest.json"
            raise ManifestError(f"the folder is not a manifest: {found}", path=output, remedy=remedy)
    elif os.path.lexists(output):
        raise ManifestError("it is not a folder", path=output, remedy=remedy)
    ancestor = os.path.dirname(output)
    while not os.path.lexists(ancestor):
        ancestor = os.path.dirname(ancestor)
    if not os.path.isdir(ancestor):
        raise ManifestError(f"it cannot be written: {ancestor} is not a folder", path=output, remedy=remedy)
    if not os.access(ancestor, os.W_OK | os.X_OK):
        cause = f"it cannot be written: there is no permission to write in {ancestor}"
        raise ManifestError(cause, path=output, remedy=f"{remedy}, or change the permissions")


def _reopen(path: str, fingerprint: str) -> Manifest:
    """Unpickle: the tables were verified when the manifest was opened, only its identity is compared."""
    manifest = Manifest(path, _read_facts(path))
    if manifest.fingerprint != fingerprint:
        raise ManifestError("the manifest was replaced while it was in use", path=path, remedy="Start again")
    return manifest


def _cannot_be_read(path: str, error: OSError) -> ManifestError:
    return ManifestError(f"it cannot be read ({error.strerror})", path=path, remedy="Check its permissions")


def _read_facts(path: str) -> dict[str, Any]:
    name = os.path.join(path, "manifest.json")
    try:
        with open(name, encoding="utf-8") as file:
            facts = json.load(file)
    except (FileNotFoundError, NotADirectoryError):
        is_part = os.path.isfile(path) and os.path.basename(path) in FOLDER_ENTRIES
        remedy = f"Name its folder, {os.path.dirname(path)}" if is_part else "Build one with 'avloader manifest'"
        raise ManifestError("there is no manifest here", path=path, remedy=remedy, code="missing_file") from None
    except OSError as error:
        raise _cannot_be_read(name, error) from error
    except ValueError as error:
        raise ManifestError(f"it is not JSON ({error})", path=name, remedy=_REBUILD, code="damaged") from error
    version = facts.get("schema_version") if isinstance(facts, dict) else None
    if version != SCHEMA_VERSION:
        cause = f"it has schema version {version}, this avloader reads {SCHEMA_VERSION}"
        remedy = _REBUILD if version else f"{_REBUILD}, or name another folder: this one may be another program's"
        raise ManifestError(cause, path=name, remedy=remedy)
    missing = sorted(_FACTS.keys() - facts.keys())
    if missing:
        raise ManifestError(f"it lacks {', '.join(missing)}", path=name, remedy=_REBUILD, code="damaged")
    wrong = [key for key, kind in _FACTS.items() if not isinstance(facts[key], kind)]
    if facts.get("streams", "both") not in get_args(Streams):
        wrong.append("streams")
    if wrong or not TABLES.keys() <= facts["files"].keys():
        cause = f"what it says about {', '.join(wrong) or 'files'} was changed"
        raise ManifestError(cause, path=name, remedy=_REBUILD, code="damaged")
    return dict(facts)


def _media_rates(
    constant: pa.Array, frame_rate: pa.Array, average_rate: pa.Array, time_base: pa.Array, step_pts: pa.Array
) -> MediaRates:
    # Where the times come from a table, neither the step nor the exact average says more than "variable".
    no_table = pa.compute.fill_null(constant, False)
    known = pa.compute.or_(no_table, pa.compute.is_valid(frame_rate))
    kind = np.zeros(len(constant), np.int64)
    for values in (
        constant,
        frame_rate,
        pa.compute.if_else(known, average_rate, None),
        pa.compute.if_else(no_table, time_base, None),
        pa.compute.if_else(no_table, step_pts, None),
    ):
        codes = _codes(values)
        kind = _codes(pa.array(kind * (int(codes.max(initial=0)) + 1) + codes))
    examples = np.zeros(int(kind.max(initial=-1)) + 1, np.int64)
    examples[kind[::-1]] = np.arange(len(kind))[::-1]  # the first of each
    rates, averages, steps = [], [], []
    for number, example in enumerate(examples.tolist()):
        if not constant[example].is_valid:
            kind = np.where(kind == number, -1, kind)
        rate, average = frame_rate[example].as_py(), average_rate[example].as_py()
        rates.append(Fraction(rate) if rate else None)
        averages.append(Fraction(average or 1))
        exact = no_table[example].as_py()
        steps.append(Fraction(time_base[example].as_py()) * step_pts[example].as_py() if exact else None)
    return MediaRates(_read_only(kind), rates, averages, steps)


def _codes(values: pa.Array) -> _Int64:
    """A number from 0 on for each distinct value, null included."""
    indices = pa.compute.dictionary_encode(values, null_encoding="encode").indices
    codes: _Int64 = indices.to_numpy(zero_copy_only=False).astype(np.int64)
    return codes


def _audio(medium: MediaInfo) -> AudioInfo:
    if medium.audio is None:
        raise ManifestError("the row's medium has no sound", path=medium.path, remedy=_REBUILD, code="damaged")
    return medium.audio


def _video(medium: MediaInfo) -> VideoInfo:
    if medium.video is None:
        raise ManifestError("the row's medium has no picture", path=medium.path, remedy=_REBUILD, code="damaged")
    return medium.video


def _read_only(values: npt.NDArray[Any]) -> _Int64:
    values.flags.writeable = False
    return values
