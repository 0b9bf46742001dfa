"""Conforms the media of a manifest to what decodes fastest, and writes a manifest of the result.

The output is a folder with ``media/`` (pictures and sounds), ``manifest/`` (a manifest like any other) and ``rows.csv``
(where each row came from). A file of ``media/`` is named after what was asked for and of which source, and stands there
only when it is complete: so a run that was killed goes on where it was, and no other state is kept.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import fcntl
import hashlib
import json
import math
import os
import re
import shutil
import time
from bisect import bisect_right
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from avloader.annotations import Annotation
from avloader.conform import TEMPORARY, Box, PictureJob, SoundJob, picture_size
from avloader.distribute import check_engine, run_tasks
from avloader.errors import AVLoaderError, ManifestError, MediaError
from avloader.folders import new_folder
from avloader.manifest import Manifest, ManifestRow
from avloader.media import MediaInfo, VideoInfo
from avloader.tables import Resolved, TableWriter
from avloader.timeline import round_half_up, seconds_to_text
from avloader.workers import WorkerDied, available_cores

__all__ = ["PrepareOptions", "Prepared", "prepare_manifest"]

_RECIPE = 1  # increase when the same options give other files
_STANDARD_RATES = tuple(
    Fraction(rate) for rate in ("24000/1001", "24", "25", "30000/1001", "30", "48", "50", "60000/1001", "60")
)
_LEAST_BYTES_A_PIXEL = 0.02  # of a picture: less than that is rare, so what lacks this much room cannot succeed
_ROWS_HEADER = (
    *("row", "source_row", "path", "source_path", "audio_path", "source_audio_path"),
    *("start_seconds", "source_start_seconds", "shift_seconds"),
)
_ENTRIES = ("manifest", "media", "rows.csv")
_OUTPUT_NAME = re.compile(r".+-[0-9a-f]{20}\.(mp4|wav|flac)")

_Job = PictureJob | SoundJob


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """How media are conformed.

    Args:
        fps: Frames per second; None: the source's, and where that varies the standard rate nearest to its average.
        gop: Frames from one key frame to the next, > 0.
        crf: x264's rate factor, 0 to 51; 18 looks like the source, 6 more halve the file.
        short_side: Pixels of the shorter side; larger pictures are scaled down to it. None: as stored.
        box: (left, top, width, height) in stored pixels, even; only this is kept, before any scaling. None: all.
        sample_rate: Of the sound, > 0; None: the source's.
        sound_format: "wav" or "flac".
        sound_only: Leave the pictures where they are.
        clips_only: Keep only what lies in rows, and `margin` around it.
        margin: Seconds, >= 0.
    """

    fps: Fraction | None = Fraction(25)
    gop: int = 12
    crf: int = 18
    short_side: int | None = None
    box: Box | None = None
    sample_rate: int | None = None
    sound_format: str = "wav"
    sound_only: bool = False
    clips_only: bool = False
    margin: Fraction = Fraction(1)

    def __post_init__(self) -> None:
        if self.fps is not None and not 0 < self.fps <= 1000:
            raise ValueError(f"fps must be above 0 and at most 1000, or None for the source's, got {self.fps}")
        for name, least, most in (("gop", 1, 10_000), ("crf", 0, 51), ("short_side", 2, 16384)):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int) and least <= value <= most):
                raise ValueError(f"{name} must be an integer from {least} to {most}, got {value!r}")
        if self.sample_rate is not None and not 1000 <= self.sample_rate <= 384_000:
            raise ValueError(f"sample_rate must be 1000 to 384000, or None for the source's, got {self.sample_rate}")
        if self.box is not None and (
            len(self.box) != 4 or min(self.box[:2]) < 0 or min(self.box[2:]) < 2 or any(side % 2 for side in self.box)
        ):
            raise ValueError(f"box must be (left, top, width, height), even and inside the picture, got {self.box}")
        if self.sound_format not in ("wav", "flac"):
            raise ValueError(f"sound_format must be wav or flac, got {self.sound_format!r}")
        if self.margin < 0:
            raise ValueError(f"margin must be at least 0 seconds, got {self.margin}")
        if self.sound_only and self.clips_only:
            raise ValueError("sound_only cannot be combined with clips_only: a cut sound has another timeline")

    def to_json(self) -> dict[str, str | None]:
        """As texts, for ``manifest.json``."""
        return {name: None if value is None else str(value) for name, value in vars(self).items()}


@dataclass(frozen=True)
class Prepared:
    """What `prepare_manifest` did.

    Attributes:
        manifest: The prepared manifest, opened.
        num_files: Files of the prepared media.
        num_bytes: Their size.
        num_rejected: Rows of the source manifest that could not be kept.
    """

    manifest: Manifest
    num_files: int
    num_bytes: int
    num_rejected: int


@dataclass(frozen=True)
class _Piece:
    """A stretch of a medium that becomes a medium of its own.

    Attributes:
        first_frame, stop_frame: The frames of the source that it takes.
        start: Media time of the source that becomes its media time 0.
        stop: Where its sound ends, None: as late as there is sound.
        picture: How its picture is made; None: the picture stays where it is.
    """

    first_frame: int
    stop_frame: int
    start: Fraction
    stop: Fraction | None
    picture: PictureJob | None


def prepare_manifest(
    manifest: Manifest | str | os.PathLike[str],
    *,
    output: str | os.PathLike[str],
    options: PrepareOptions | None = None,
    engine: str = "local",
    num_workers: int | None = None,
    progress: bool | None = None,
) -> Prepared:
    """Conform the media of a manifest, and write a manifest of the result.

    Rows keep their order, labels, identifiers and extra columns, and without `clips_only` their times. The frames of a
    row are the same where the rate stays; where it changes, its bounds move to the nearest frames of the new rate, and
    each of these shows the source's nearest frame. The sound starts with zeros where the source's starts late;
    `audio_valid` still says where there is sound.

    Args:
        manifest: A manifest or the path of its folder.
        output: Folder to write. If one is there, it has to be one of `prepare_manifest`; what a run that was stopped
            has finished is used, what is not needed any more is removed.
        options: How; None: `PrepareOptions`' defaults.
        engine: "local" or "ray" (`avloader.distribute.run_tasks`).
        num_workers: Media that are conformed at a time, > 0; None: one a core.
        progress: Show a progress bar; None: if standard error is a terminal.

    Returns:
        The opened manifest, and what was written.

    Raises:
        ManifestError: If the manifest cannot be opened, no row can be kept, there is no room, or `output` is something
            else, is in use, or cannot be written.
        ValueError: If an argument is not allowed.
    """
    options = options or PrepareOptions()
    if num_workers is not None and num_workers < 1:
        raise ValueError(f"num_workers must be at least 1, or None for one a core, got {num_workers}")
    check_engine(engine)
    source = manifest if isinstance(manifest, Manifest) else Manifest.open(manifest)
    source.check_streams("both")
    folder = os.path.realpath(output)
    _check_output(folder, source)
    try:
        with _locked(folder):
            media = os.path.join(folder, "media")
            os.makedirs(media, exist_ok=True)
            _remove(media, lambda name: TEMPORARY in name)
            try:
                plan = _Plan(source, options, media)
                _check_room(plan.jobs.values(), folder)
                plan.run(engine, num_workers, progress)
                num_rejected = plan.write(folder)
                prepared = Manifest.open(os.path.join(folder, "manifest"), check_media=False)
                used = plan.used
                _remove(media, lambda name: bool(_OUTPUT_NAME.fullmatch(name)) and name not in used)
            finally:
                _remove(media, lambda name: TEMPORARY in name)
    except OSError as error:
        cause = f"the prepared media cannot be written ({error.strerror or error})"
        remedy = "Make room and run it again, it goes on where it was" if _is_full(error) else "Name another output"
        raise ManifestError(cause, path=folder, remedy=remedy) from error
    sizes = [os.stat(os.path.join(media, name)).st_size for name in used]
    return Prepared(prepared, len(used), sum(sizes), num_rejected)


class _Plan:
    """What becomes of every medium and every row.

    Attributes:
        jobs: What has to be done, by the name of the output.
        used: Names of the outputs that rows of the new manifest use.
    """

    def __init__(self, source: Manifest, options: PrepareOptions, folder: str) -> None:
        self._source, self._options, self._folder = source, options, folder
        self.jobs: dict[str, _Job] = {}
        self.used: set[str] = set()
        self._results: dict[str, MediaInfo | AVLoaderError] = {}
        self._pieces: dict[int, list[_Piece] | MediaError] = {}
        self._sounds: dict[tuple[int, Fraction, Fraction | None], str] = {}
        rows = np.argsort(source.media_id, kind="stable")
        bounds = np.flatnonzero(np.diff(source.media_id[rows], prepend=-1))
        for begin, end in zip(bounds, [*bounds[1:], len(rows)], strict=True):
            self._add(int(source.media_id[rows[begin]]), rows[begin:end])

    def _add(self, media_id: int, rows: Any) -> None:
        medium = self._source.media(media_id)
        try:
            self._pieces[media_id] = pieces = list(self._cut(medium, rows))
        except MediaError as error:
            self._pieces[media_id] = MediaError(error.cause, path=medium.path, remedy=error.remedy, code=error.code)
            return
        for piece in pieces:
            if piece.picture is not None:
                self.jobs[os.path.basename(piece.picture.output)] = piece.picture
        for row in rows:
            piece = _piece_of(pieces, int(self._source.first_frame[row]))
            audio_id = int(self._source.audio_id[row])
            if (audio_id, piece.start, piece.stop) not in self._sounds:
                job = self._sound_job(self._source.media(audio_id), piece)
                self.jobs[os.path.basename(job.output)] = job
                self._sounds[audio_id, piece.start, piece.stop] = os.path.basename(job.output)

    def _cut(self, medium: MediaInfo, rows: Any) -> Iterator[_Piece]:
        """The stretches of a medium that are kept, in order."""
        video, options = _video(medium), self._options
        times = video.times
        if options.sound_only:
            yield _Piece(0, len(times), Fraction(0), None, None)
            return
        size = picture_size(video, options.box, options.short_side)
        rate = options.fps or video.frame_rate or min(_STANDARD_RATES, key=lambda rate: abs(rate - video.average_rate))
        if not options.clips_only:
            yield self._piece(medium, 0, len(times), times.start_seconds, Fraction(0), None, rate, size)
            return
        intervals = [
            (times.seconds(int(self._source.first_frame[row])), int(self._source.first_frame[row]), int(stop))
            for row, stop in zip(rows, self._source.stop_frame[rows], strict=True)
        ]
        intervals.sort()
        margin = options.margin
        while intervals:
            begin, _, stop_frame = intervals.pop(0)
            end = _end(video, stop_frame)
            while intervals and intervals[0][0] - margin <= end + margin:
                end = max(end, _end(video, intervals.pop(0)[2]))
            first = times.first_frame_from(begin - margin)
            stop = max(first + 1, times.first_frame_from(end + margin))
            # The first row keeps its instants exactly: new frames lie before it in whole steps.
            shown = times.seconds(first)
            shown = shown if video.frame_rate == rate else begin - math.floor((begin - shown) * rate) / rate
            # Sound that comes before the first picture is kept too.
            start = Fraction(0) if first == 0 and 0 <= shown <= margin else shown
            yield self._piece(medium, first, stop, shown, start, end + margin, rate, size)

    def _piece(
        self,
        medium: MediaInfo,
        first: int,
        stop: int,
        shown: Fraction,
        start: Fraction,
        end: Fraction | None,
        rate: Fraction,
        size: tuple[int, int],
    ) -> _Piece:
        video, options = _video(medium), self._options
        is_same = video.frame_rate == rate
        num_frames = stop - first if is_same else max(1, round_half_up((_end(video, stop) - shown) * rate))
        job = PictureJob(
            output="",
            source=medium,
            first_frame=first,
            stop_frame=stop,
            begin=shown,
            num_frames=num_frames,
            rate=rate,
            is_same=is_same,
            shift=start,
            box=options.box,
            size=size,
            gop=options.gop,
            crf=options.crf,
        )
        return _Piece(first, stop, start, end, replace(job, output=self._output(job, "mp4")))

    def _sound_job(self, sound: MediaInfo, piece: _Piece) -> SoundJob:
        assert sound.audio is not None
        rate = self._options.sample_rate or sound.audio.sample_rate
        job = SoundJob("", sound, piece.start, piece.stop, rate)
        return replace(job, output=self._output(job, self._options.sound_format))

    def _output(self, job: _Job, extension: str) -> str:
        """A name that says what the file holds: one that is there need not be made again."""
        facts = {name: str(value) for name, value in vars(job).items() if name not in ("output", "source")}
        facts |= {"path": job.source.path, "size": str(job.source.size), "mtime_ns": str(job.source.mtime_ns)}
        facts |= {"recipe": str(_RECIPE), "extension": extension}
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:20]
        stem = os.path.splitext(os.path.basename(job.source.path))[0]
        readable = re.sub(r"[^A-Za-z0-9_.-]+", "_", stem).strip(".")[:60] or "medium"
        return os.path.join(self._folder, f"{readable}-{digest}.{extension}")

    def run(self, engine: str, num_workers: int | None, progress: bool | None) -> None:
        """Do the jobs."""
        # Long ones first: at the end no core waits long for another.
        jobs = sorted(self.jobs.values(), key=_seconds, reverse=True)
        if engine == "local":
            num_workers = min(num_workers or available_cores(), max(1, len(jobs)))
        results = run_tasks("avloader.conform:Conformer", jobs, engine=engine, num_workers=num_workers)
        with contextlib.closing(_with_progress(results, jobs, progress)) as finished:
            for job, result in finished:
                if isinstance(result, WorkerDied):
                    result = MediaError(result.cause, path=job.source.path, remedy="Leave it out", code="undecodable")
                self._results[os.path.basename(job.output)] = result

    def write(self, folder: str) -> int:
        """Write the manifest and the table of rows; returns how many rows could not be kept.

        Raises:
            ManifestError: If none could be kept.
        """
        output = os.path.join(folder, "manifest")
        rejected: list[tuple[Annotation, AVLoaderError]] = []
        num_kept = 0
        table = os.path.join(folder, f"rows{TEMPORARY}csv")
        with new_folder(output) as new:
            with (
                TableWriter(new, output, self._source.labels, self._label_ids()) as writer,
                open(table, "w", encoding="utf-8", errors="backslashreplace", newline="") as file,
            ):
                lines = csv.writer(file)
                lines.writerow(_ROWS_HEADER)
                for row in self._source.rows():
                    annotation = self._annotation(row)
                    try:
                        resolved, piece = self._resolve(row, annotation)
                    except AVLoaderError as error:
                        writer.reject(annotation, error.code or "undecodable", str(error))
                        rejected.append((annotation, error))
                        continue
                    writer.keep(resolved)
                    start = _video(resolved.medium).times.seconds(resolved.first_frame)
                    sound_path = "" if resolved.sound is None else resolved.sound.path
                    lines.writerow(
                        (
                            *(num_kept, row.row, resolved.medium.path, row.path, sound_path, row.audio_path),
                            *(seconds_to_text(time) for time in (start, row.start_seconds, piece.start)),
                        )
                    )
                    num_kept += 1
                if not num_kept:
                    raise ManifestError(
                        f"no row can be kept; the first: {str(rejected[0][1]).rstrip('.')}", path=self._source.path
                    )
                facts = {"annotations": self._source.path, "source_fingerprint": self._source.fingerprint}
                writer.finish(facts | self._options.to_json())
            os.replace(table, os.path.join(folder, "rows.csv"))
        return len(rejected)

    def _resolve(self, row: ManifestRow, annotation: Annotation) -> tuple[Resolved, _Piece]:
        """A row on the new media.

        Raises:
            AVLoaderError: If they could not be made.
        """
        pieces = self._pieces[row.media_id]
        if isinstance(pieces, MediaError):
            raise pieces
        piece = _piece_of(pieces, row.first_frame)
        sound = self._made(self._sounds[row.audio_id, piece.start, piece.stop])
        assert sound.audio is not None
        if piece.picture is None:
            medium = self._source.media(row.media_id)
            first, stop = row.first_frame, row.stop_frame
        else:
            medium = self._made(os.path.basename(piece.picture.output))
            first, stop = _moved(row, piece.picture)
            self.used.add(os.path.basename(medium.path))
        self.used.add(os.path.basename(sound.path))
        return Resolved(annotation, medium, _video(medium), sound, sound.audio, first, stop), piece

    def _made(self, name: str) -> MediaInfo:
        result = self._results[name]
        if isinstance(result, AVLoaderError):
            raise result
        return result

    def _label_ids(self) -> dict[str, int]:
        names = enumerate(self._source.labels)
        ids = {name: label for label, name in names} or {
            str(label): label for label in set(self._source.label.tolist())
        }
        return ids | {"": -1}

    def _annotation(self, row: ManifestRow) -> Annotation:
        labels = self._source.labels
        return Annotation(
            line=row.line,
            path=row.path,
            start=row.start_seconds,
            end=row.stop_seconds,
            label="" if row.label < 0 else labels[row.label] if labels else str(row.label),
            audio_path=row.audio_path,
            av_offset=row.av_offset,
            id=row.id,
            extra=row.extra,
        )


def _moved(row: ManifestRow, job: PictureJob) -> tuple[int, int]:
    """The frames of a row in a conformed picture: adjacent rows stay adjacent, and none becomes empty."""
    if job.is_same:
        return row.first_frame - job.first_frame, row.stop_frame - job.first_frame
    first, stop = (round_half_up((time - job.begin) * job.rate) for time in (row.start_seconds, row.stop_seconds))
    first = min(max(first, 0), job.num_frames - 1)
    return first, min(max(stop, first + 1), job.num_frames)


def _piece_of(pieces: list[_Piece], frame: int) -> _Piece:
    return pieces[bisect_right([piece.first_frame for piece in pieces], frame) - 1]


def _video(medium: MediaInfo) -> VideoInfo:
    if medium.video is None:
        raise MediaError("it has no picture", path=medium.path, remedy="Build the manifest again", code="no_video")
    return medium.video


def _end(video: VideoInfo, stop_frame: int) -> Fraction:
    """Media time at which the frame before `stop_frame` ends."""
    return video.times.seconds(stop_frame) if stop_frame < len(video.times) else video.times.stop_seconds


def _seconds(job: _Job) -> float:
    """How long a job is, in seconds of the medium: pictures count, sound hardly does."""
    if isinstance(job, PictureJob):
        return float(job.num_frames / job.rate)
    assert job.source.audio is not None
    return float((job.end or job.source.audio.stop_seconds) - job.begin) / 20


# The output's folder --------------------------------------------------------------------------------------------------


def _check_output(folder: str, source: Manifest) -> None:
    """Refuse before the work what would be lost by it."""
    remedy = "Name another output"
    if os.path.isdir(folder):
        foreign = sorted(set(os.listdir(folder)) - set(_ENTRIES))
        foreign = [name for name in foreign if TEMPORARY not in name and not name.startswith(".manifest.building-")]
        if foreign:
            cause = f"the folder is not one of prepared media: {foreign[0]!r} is in it"
            raise ManifestError(cause, path=folder, remedy=remedy)
    elif os.path.lexists(folder):
        raise ManifestError("it is not a folder", path=folder, remedy=remedy)
    if os.path.realpath(source.path) == os.path.join(folder, "manifest"):
        raise ManifestError("the output would replace the manifest that it is made from", path=folder, remedy=remedy)


@contextlib.contextmanager
def _locked(folder: str) -> Iterator[None]:
    """Nobody else prepares into this folder meanwhile; the lock dies with the process."""
    os.makedirs(folder, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            remedy = "Wait until it is done, or name another output"
            raise ManifestError("another run prepares into this folder", path=folder, remedy=remedy) from None
        yield
    finally:
        os.close(handle)


def _remove(folder: str, is_left: Any) -> None:
    for name in os.listdir(folder):
        if is_left(name):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(folder, name))


def _check_room(jobs: Iterable[_Job], folder: str) -> None:
    """Refuse work that the disk has no room for.

    Raises:
        ManifestError: Naming what is needed at least and what is there.
    """
    needed = 0
    for job in jobs:
        if os.path.exists(job.output):
            continue
        if isinstance(job, PictureJob):
            needed += int(_LEAST_BYTES_A_PIXEL * math.prod(job.size) * job.num_frames)
        else:
            assert job.source.audio is not None
            seconds = (job.end or job.source.audio.stop_seconds) - job.begin
            needed += int(seconds * job.sample_rate * 2) // (1 if job.output.endswith(".wav") else 4)
    free = shutil.disk_usage(folder).free
    if needed > free:
        cause = f"there is no room: at least {_bytes(needed)} are needed, {_bytes(free)} are free"
        raise ManifestError(cause, path=folder, remedy="Make room, name another output, or choose a smaller picture")


def _bytes(number: int) -> str:
    return f"{number / 10**9:,.1f} GB" if number >= 10**8 else f"{number / 10**6:,.1f} MB"


def _is_full(error: OSError) -> bool:
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


# Progress -------------------------------------------------------------------------------------------------------------


class _DoneColumn(ProgressColumn):
    """Files done, of how many."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.fields['files']:,}/{task.fields['total_files']:,} files")


class _SpeedColumn(ProgressColumn):
    """Seconds of media that are prepared in a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.1f} x real time")


def _with_progress(
    results: Generator[tuple[_Job, Any], None, None], jobs: list[_Job], progress: bool | None
) -> Generator[tuple[_Job, Any], None, None]:
    """The results, with a progress bar on standard error once they have taken two seconds."""
    console = Console(stderr=True)
    shown = console.is_terminal if progress is None else progress
    columns = (TextColumn("{task.description}"), BarColumn(), _DoneColumn(), _SpeedColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console, disable=not shown, speed_estimate_period=600)
    task = bar.add_task("Preparing", total=sum(map(_seconds, jobs)), files=0, total_files=len(jobs))
    begin = time.monotonic()
    started = False
    try:
        for number, (job, result) in enumerate(results, start=1):
            bar.update(task, advance=_seconds(job), files=number)
            if shown and not started and time.monotonic() - begin > 2:
                bar.start()
                started = True
            yield job, result
    finally:
        results.close()
        if started:
            bar.stop()
