"""Annotations and media become one folder of tables; from one record per row, so that they cannot disagree."""

from __future__ import annotations

import csv
import functools
import json
import os
import re
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from avloader import records
from avloader.annotations import Annotation, BadAnnotation, read_annotations
from avloader.errors import ManifestError, MediaError
from avloader.folders import new_folder
from avloader.media import MediaInfo, Prober, VideoInfo
from avloader.tables import (
    FOLDER_ENTRIES,
    MEDIA_PER_CHUNK,
    ROWS_PER_CHUNK,
    SCHEMA_VERSION,
    TABLES,
    Resolved,
    TableWriter,
    end_of_frame,
    file_digest,
)
from avloader.timeline import FrameTimes, seconds_to_text
from avloader.workers import WorkerDied, WorkerPool, available_cores

__all__ = ["SCHEMA_VERSION", "Manifest", "ManifestRow", "MediaRates", "build_manifest"]

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
_MEDIA_OF_A_WORKER = 64  # for fewer media a process does not pay
_INTEGER = re.compile(r"-?[0-9]{1,18}")

_Int64 = npt.NDArray[np.int64]
_Entry = Annotation | BadAnnotation


@dataclass(frozen=True, slots=True)
class ManifestRow:
    """One kept annotation, resolved on its media.

    Attributes:
        row: Its number in the manifest.
        path: Absolute path of the medium.
        audio_path: Absolute path of the sound: the medium itself or a side-car file.
        media_id, audio_id: Rows of ``media.parquet``.
        first_frame, stop_frame: The frames [first_frame, stop_frame) of the medium.
        start_seconds, stop_seconds: Media time of the first frame and of the end of the last one.
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
    """

    path: str
    labels: list[str]
    fingerprint: str
    num_rejected: int

    def __init__(self, path: str, facts: dict[str, Any]) -> None:
        self.path = path
        self.labels = facts["labels"]
        self.fingerprint = facts["fingerprint"]
        self.num_rejected = facts["num_rejected"]
        self._facts = facts
        self._lock = threading.Lock()
        self._media_chunk = functools.lru_cache(maxsize=64)(self._read_media_chunk)
        self._media = functools.lru_cache(maxsize=65536)(self._decode_media)

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, check_media: bool = True) -> Manifest:
        """Open the folder at `path`.

        Args:
            path: A folder that `build_manifest` wrote.
            check_media: Compare size and modification time of every medium with what was recorded.

        Raises:
            ManifestError: Missing, of another schema version, tampered or truncated, or media changed.
        """
        manifest = cls(os.path.abspath(path), _read_facts(os.path.abspath(path)))
        manifest.check_tables()
        if check_media:
            for media_id, what in manifest.changed_media():
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
        """Row of ``media.parquet`` that holds the picture."""
        return self.column("media_id")

    @functools.cached_property
    def audio_id(self) -> _Int64:
        """Row of ``media.parquet`` that holds the sound."""
        return self.column("audio_id")

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
            table = pq.read_table(os.path.join(self.path, "clips.parquet"), columns=[name])
            values = table.column(name).combine_chunks().to_numpy(zero_copy_only=False)
        return _read_only(values)

    @property
    def num_media(self) -> int:
        """Rows of ``media.parquet``."""
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
        return _media_rates(self._media_columns("frame_rate", "average_rate", "times.time_base", "times.step_pts"))

    def row(self, row: int) -> ManifestRow:
        """One row, for people and for error messages; `plan` uses the columns."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} is outside [0, {len(self)})")
        values = self._clips_row(row)
        medium, sound = self.media(values["media_id"]), self.media(values["audio_id"])
        times = _video(medium).times
        return ManifestRow(
            row=row,
            path=medium.path,
            audio_path=sound.path,
            media_id=values["media_id"],
            audio_id=values["audio_id"],
            first_frame=values["first_frame"],
            stop_frame=values["stop_frame"],
            start_seconds=times.seconds(values["first_frame"]),
            stop_seconds=end_of_frame(times, values["stop_frame"] - 1),
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
        for name, recorded in self._facts["files"].items():
            path = os.path.join(self.path, name)
            try:
                size = os.stat(path).st_size
                is_same = not (texts or name in TABLES) or file_digest(path) == recorded["sha256"]
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
        for name, schema in TABLES.items():
            path = os.path.join(self.path, name)
            with self._damage(name):
                missing = records.field_names(schema) - records.field_names(pq.read_schema(path))
            if missing:
                cause = f"it lacks the columns {', '.join(sorted(missing))}, another version of avloader wrote it"
                raise ManifestError(cause, path=path, remedy=_REBUILD)

    def changed_media(self) -> Iterator[tuple[int, str]]:
        """Media that are no longer what was probed, as (media id, what changed)."""
        with self._damage("media.parquet"):
            columns = ["path", "size", "mtime_ns"]
            table = pq.read_table(os.path.join(self.path, "media.parquet"), columns=columns)
        values = (table[name].to_pylist() for name in columns)
        for media_id, (path, size, mtime_ns) in enumerate(zip(*values, strict=True)):
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
    def _media_file(self) -> pq.ParquetFile:
        return pq.ParquetFile(os.path.join(self.path, "media.parquet"), memory_map=True)

    @functools.cached_property
    def _clips_file(self) -> pq.ParquetFile:
        return pq.ParquetFile(os.path.join(self.path, "clips.parquet"), memory_map=True)

    def _read_media_chunk(self, chunk: int) -> pa.StructArray:
        with self._damage("media.parquet"), self._lock:
            return self._media_file.read_row_group(chunk).to_struct_array().combine_chunks()

    def _decode_media(self, media_id: int) -> MediaInfo:
        if not 0 <= media_id < self.num_media:
            raise IndexError(f"medium {media_id} is outside [0, {self.num_media})")
        chunk, place = divmod(media_id, MEDIA_PER_CHUNK)
        return records.decode(MediaInfo, self._media_chunk(chunk)[place])

    def _media_columns(self, *names: str) -> list[pa.Array]:
        """Columns of all media: constant_times, then the fields `names` of the picture."""
        with self._damage("media.parquet"), self._lock:
            table = self._media_file.read(columns=["constant_times", *(f"video.{name}" for name in names)])
        columns = [table["constant_times"].combine_chunks()]
        for name in names:
            values = table["video"].combine_chunks()
            for part in name.split("."):
                values = pa.compute.struct_field(values, part)
            columns.append(values)
        return columns

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
    num_workers: int | None = None,
    progress: bool | None = None,
) -> Manifest:
    """Resolve annotations on their media and write a manifest folder.

    Args:
        annotations: The annotation file.
        media_root: Folder that relative media paths start from.
        output: Folder to write; replaced as a whole if it is a manifest already.
        format: Name of the annotation format, or "auto".
        media_template: How to make a media path from an annotation's fields, for example "{id}_{start:06d}.mp4".
        num_workers: Workers that probe media, > 0; None: one a core.
        progress: Show a progress bar; None: if standard error is a terminal.

    Returns:
        The opened manifest.

    Raises:
        AnnotationError: If the annotation file as a whole cannot be used.
        ManifestError: If no row can be kept, `media_root` is not a folder, or `output` exists and is not a manifest, or
            cannot be written.
        ValueError: If `num_workers` is not positive.
    """
    if num_workers is not None and num_workers < 1:
        raise ValueError(f"num_workers must be at least 1, or None for one a core, got {num_workers}")
    output = os.path.realpath(output)
    _check_output(output)

    def read() -> Iterator[_Entry]:
        return read_annotations(annotations, format=format, media_template=media_template)

    root = os.path.abspath(media_root)
    if not os.path.isdir(root):
        cause = "the media root is not a folder" if os.path.lexists(root) else "there is no such folder"
        raise ManifestError(cause, path=root, remedy="Name the folder that media paths start from", code="missing_file")
    paths: dict[str, None] = {}  # a dict keeps the order of the file
    names: set[str] = set()
    for entry in read():
        if isinstance(entry, Annotation):
            paths.update(dict.fromkeys(_absolute(root, path) for path in (entry.path, entry.audio_path) if path))
            names.add(entry.label)
    media = _probe_all(list(paths), num_workers, progress)

    options = {
        "annotations": os.path.abspath(annotations),
        "media_root": root,
        "format": format,
        "media_template": media_template,
    }
    try:
        with new_folder(output) as folder, TableWriter(folder, output, *_label_ids(names)) as writer:
            for entry in read():
                try:
                    writer.keep(_resolve(entry, root, media))
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


def _probe_all(
    paths: Sequence[str], num_workers: int | None, progress: bool | None
) -> dict[str, MediaInfo | MediaError]:
    """Facts of every medium, or why there are none."""
    found: dict[str, MediaInfo | MediaError] = {}
    for path, facts in _with_progress(_probe_each(paths, num_workers), len(paths), progress):
        found[path] = facts
    return {path: found[path] for path in paths}  # in an order that does not depend on which worker was faster


def _probe_each(paths: Sequence[str], num_workers: int | None) -> Iterator[tuple[str, MediaInfo | MediaError]]:
    num_workers = min(num_workers or available_cores(), len(paths) // _MEDIA_OF_A_WORKER)
    if num_workers < 2:
        prober = Prober()
        yield from ((path, prober(path)) for path in paths)
        return
    with WorkerPool("avloader.media:Prober", num_workers=num_workers) as pool:
        for path, future in pool.map_unordered(paths):
            try:
                yield path, future.result()
            except WorkerDied as error:  # FFmpeg crashed in it
                yield path, MediaError(error.cause, path=path, remedy="Replace the file", code="unreadable")


def _with_progress(
    results: Iterable[tuple[str, MediaInfo | MediaError]], total: int, progress: bool | None
) -> Iterator[tuple[str, MediaInfo | MediaError]]:
    """The results, with a progress bar on standard error once they have taken two seconds."""
    console = Console(stderr=True)
    shown = console.is_terminal if progress is None else progress
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console, disable=not shown)
    task = bar.add_task("Probing media", total=total)
    begin = time.monotonic()
    started = False
    try:
        for result in results:
            bar.advance(task)
            if shown and not started and time.monotonic() - begin > 2:
                bar.start()
                started = True
            yield result
    finally:
        if started:
            bar.stop()


def _resolve(entry: _Entry, root: str, media: dict[str, MediaInfo | MediaError]) -> Resolved:
    """Find an annotation's media and frames."""
    if isinstance(entry, BadAnnotation):
        raise _RejectedError(entry.code, entry.message)
    medium = _probed(media, _absolute(root, entry.path))
    if medium.video is None:
        raise _RejectedError("no_video", f"{medium.path}: the medium has no picture. Name a file with video.")
    sound = _probed(media, _absolute(root, entry.audio_path)) if entry.audio_path else medium
    if sound.audio is None:
        cause = (
            "the side-car file has no sound" if entry.audio_path else "the medium has no sound, nor has it a side-car"
        )
        raise _RejectedError("no_audio", f"{sound.path}: {cause}. Name a file with sound in the column audio_path.")
    first, stop = _frames(entry, medium.video.times)
    return Resolved(entry, medium, medium.video, sound, sound.audio, first, stop)


def _absolute(root: str, path: str) -> str:
    return os.path.normpath(os.path.join(root, path))


def _probed(media: dict[str, MediaInfo | MediaError], path: str) -> MediaInfo:
    found = media.get(path)
    if found is None:
        raise _RejectedError("bad_line", "the annotation file changed while the manifest was built")
    if isinstance(found, MediaError):
        raise _RejectedError(found.code, str(found))
    return found


def _frames(entry: Annotation, times: FrameTimes) -> tuple[int, int]:
    """The frames [first, stop) of an annotation."""
    start = times.start_seconds if entry.start is None else entry.start
    if entry.end is not None and entry.end <= start and entry.start is not None:
        raise _RejectedError("empty_interval", f"the interval {_interval(start, entry.end)} holds no time")
    first, stop = times.frames_between(start, entry.end)
    if first < stop:
        return first, stop
    if start >= times.stop_seconds or (entry.end is not None and entry.end <= times.start_seconds):
        picture = _interval(times.start_seconds, times.stop_seconds)
        cause = f"the interval {_interval(start, entry.end)} lies outside the picture's, {picture}"
        raise _RejectedError("outside_media", cause)
    raise _RejectedError("empty_interval", f"no frame is shown in the interval {_interval(start, entry.end)}")


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
    if wrong or not TABLES.keys() <= facts["files"].keys():
        cause = f"what it says about {', '.join(wrong) or 'files'} was changed"
        raise ManifestError(cause, path=name, remedy=_REBUILD, code="damaged")
    return dict(facts)


def _media_rates(columns: list[pa.Array]) -> MediaRates:
    constant, frame_rate, average_rate, time_base, step_pts = columns
    # Where the times come from a table, neither the step nor the exact average says more than "variable".
    no_table = pa.compute.fill_null(constant, False)
    known = pa.compute.or_(no_table, pa.compute.is_valid(frame_rate))
    codes = np.stack(
        [
            pa.compute.fill_null(pa.compute.dictionary_encode(values).indices, -1).to_numpy(zero_copy_only=False)
            for values in (
                constant,
                frame_rate,
                pa.compute.if_else(known, average_rate, None),
                pa.compute.if_else(no_table, time_base, None),
                pa.compute.if_else(no_table, step_pts, None),
            )
        ],
        axis=1,
    )
    _, examples, kind = np.unique(codes, axis=0, return_index=True, return_inverse=True)
    kind = kind.reshape(-1)  # NumPy 2.0 gives it another shape
    rates, averages, steps = [], [], []
    for number, example in enumerate(examples):
        if not constant[example].is_valid:
            kind = np.where(kind == number, -1, kind)
        rate, average = frame_rate[example].as_py(), average_rate[example].as_py()
        rates.append(Fraction(rate) if rate else None)
        averages.append(Fraction(average or 1))
        exact = no_table[example].as_py()
        steps.append(Fraction(time_base[example].as_py()) * step_pts[example].as_py() if exact else None)
    return MediaRates(_read_only(kind.astype(np.int64)), rates, averages, steps)


def _video(medium: MediaInfo) -> VideoInfo:
    if medium.video is None:
        raise ManifestError("the row's medium has no picture", path=medium.path, remedy=_REBUILD, code="damaged")
    return medium.video


def _read_only(values: npt.NDArray[Any]) -> _Int64:
    values.flags.writeable = False
    return values
