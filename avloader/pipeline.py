"""The DALI graph: frames and sound in; normalized frames, sound and its features out; on a CPU or on a GPU.

Frames come from DALI's NVDEC reader or from worker processes, sound from worker processes. One list of clips tells both
what to read, and the row ids that the reader returns are compared with that list in every batch.
"""

from __future__ import annotations

import csv
import itertools
import os
import tempfile
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

import numpy as np
import numpy.typing as npt
import nvidia.dali.fn as fn
import nvidia.dali.types as types
from nvidia.dali.data_node import DataNode
from nvidia.dali.pipeline import Pipeline

from avloader.errors import ManifestError, SyncError
from avloader.features import Feature
from avloader.media import MediaInfo, VideoInfo, probe
from avloader.reading import ClipRead, ReadAhead, ReadBatch, ReadPool, SlotLayout, SoundWindow
from avloader.timeline import parse_seconds, round_half_up
from avloader.workers import available_cores

__all__ = ["AudioVisualPipeline", "ClipPipeline", "GraphOptions"]

Normalize = tuple[Sequence[float], Sequence[float]] | Literal["per_clip"] | None

_READER = "video"
_ONE_CLIP_A_ROW = 2**30  # a step beyond any file's end, so that a row yields its first sequence only
_PER_CLIP_VARIANCE_FLOOR = 1e-6  # keeps a clip of one flat colour from dividing by zero


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphOptions:
    """What the graph makes of frames and sound.

    Attributes:
        num_frames: Frames of a clip, > 0.
        size: (height, width) to deliver, or None for the stored size.
        normalize: (mean, std) per channel in 0-255 units; "per_clip": each clip's own, per channel; None: uint8 frames.
        sample_rate: Of the delivered sound, > 0.
        num_samples: Samples of the delivered sound, > 0.
        features: What becomes of the sound; None: sound only.
    """

    num_frames: int
    size: tuple[int, int] | None
    normalize: Normalize
    sample_rate: int
    num_samples: int
    features: Feature | None

    @property
    def output_names(self) -> list[str]:
        """Names of the pipeline's outputs, in order."""
        return ["frames", "audio", *(["spectrogram"] if self.features else []), "row"]


class ClipPipeline(Pipeline):  # type: ignore[misc]  # DALI has no types
    """Executes batches of clips in order.

    Outputs, in the order of `output_names`: ``frames`` (F, C, H, W), ``audio`` (N,), ``spectrogram`` (bins, hops),
    and ``row`` on the CPU.

    Args:
        batches: The batches, read; the pipeline ends where they end.
        release: Called with a batch once DALI no longer looks into its arrays.
        graph: What to make of frames and sound.
        file_list: The clips of all batches in DALI's form, for the NVDEC reader; None: `batches` hold frames.
        reader_frames: Frames that the NVDEC reader reads of a row.
        reader_stride: Frames between two that it reads.
        rearrange: Whether a clip's frames are picked from those that were read, instead of being just them.
        lazy_init: Let the NVDEC reader open its files in a thread of its own, after the first `schedule_run`; else
            building opens them, with Python's lock held. The file list has to stay until the first batch is out.
        batch_size: Clips of a full batch; the NVDEC reader knows full batches only.
        device: Where the graph runs.
        device_id: Which GPU.
        num_threads: Threads of DALI's CPU operators.
        prefetch_queue_depth: Batches in flight.
    """

    _pipe = None  # DALI's destructor asks for it, also where making a pipeline failed before DALI set it

    def __init__(
        self,
        batches: Iterator[ReadBatch],
        release: Callable[[ReadBatch], None],
        *,
        graph: GraphOptions,
        file_list: Path | None,
        reader_frames: int = 0,
        reader_stride: int = 1,
        rearrange: bool = False,
        lazy_init: bool = False,
        batch_size: int,
        device: Literal["cpu", "gpu"],
        device_id: int | None = None,
        num_threads: int = 2,
        prefetch_queue_depth: int = 2,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            num_threads=num_threads,
            device_id=device_id if device == "gpu" else None,
            prefetch_queue_depth=prefetch_queue_depth,
        )
        self.output_names = graph.output_names
        self._batches, self._release = batches, release
        self._graph = graph
        self.uses_reader, self._rearrange = file_list is not None, rearrange
        self._in_flight: deque[tuple[ReadBatch, npt.NDArray[np.float32]]] = deque()
        with self:
            self.set_outputs(*self._define(file_list, reader_frames, reader_stride, lazy_init, device))

    def _define(
        self,
        file_list: Path | None,
        reader_frames: int,
        reader_stride: int,
        lazy_init: bool,
        device: Literal["cpu", "gpu"],
    ) -> list[DataNode]:
        """The graph."""
        options = self._graph
        inputs = dict(zip(self._input_names(), self._external_inputs(), strict=True))
        if file_list is None:
            frames, row = inputs["frames"], inputs["row"]
            if device == "gpu":
                frames = frames.gpu()
        else:
            frames, row = fn.readers.video(
                name=_READER,
                device="gpu",
                file_list=os.fspath(file_list),
                file_list_frame_num=True,
                file_list_include_preceding_frame=True,
                sequence_length=reader_frames,
                stride=reader_stride,
                step=_ONE_CLIP_A_ROW,
                pad_sequences=self._rearrange,  # near a file's end fewer frames than the longest clip needs
                pad_last_batch=True,
                lazy_init=lazy_init,
                random_shuffle=False,
                skip_vfr_check=True,  # DALI compares one duration; `probe` proved the number of every frame
                image_type=types.YCbCr,  # DALI's own conversion takes every video for BT.601
                dtype=types.UINT8,
            )
            row = row.cpu()
            if self._rearrange:
                frames = fn.sequence_rearrange(frames, new_order=inputs["order"])
            if options.size is not None:
                frames = fn.resize(frames, size=options.size)
            frames = fn.coord_transform(frames, M=inputs["matrix"], T=inputs["shift"], dtype=types.UINT8)
        audio = inputs["audio"].gpu() if device == "gpu" else inputs["audio"]
        outputs = [_normalized(frames, options.normalize), audio]
        if options.features is not None:
            outputs.append(options.features.build(audio, device=device, sample_rate=options.sample_rate))
        return [*outputs, row]

    def _input_names(self) -> list[str]:
        if not self.uses_reader:
            return ["audio", "frames", "row"]
        return ["audio", "matrix", "shift", *(["order"] if self._rearrange else [])]

    def _external_inputs(self) -> list[DataNode]:
        kinds: dict[str, tuple[int, types.DALIDataType, str | None]] = {
            "audio": (1, types.FLOAT, None),
            "frames": (4, types.UINT8, "FHWC"),
            "row": (1, types.INT64, None),
            "matrix": (2, types.FLOAT, None),
            "shift": (1, types.FLOAT, None),
            "order": (1, types.INT32, None),
        }
        ndim, dtype, layout = zip(*(kinds[name] for name in self._input_names()), strict=True)
        return list(
            fn.external_source(
                source=self._feed,
                num_outputs=len(ndim),
                ndim=list(ndim),
                dtype=list(dtype),
                layout=[text or "" for text in layout],
                batch=True,
            )
        )

    def _feed(self) -> tuple[Any, ...]:
        """The inputs of the next batch; DALI calls it when it schedules a run."""
        batch = next(self._batches)  # its StopIteration tells DALI that there is no more
        sound = np.stack(batch.sounds)
        self._in_flight.append((batch, sound))
        columns: dict[str, list[npt.NDArray[Any]]] = {"audio": batch.sounds, "frames": batch.frames}
        columns["row"] = [np.array([clip.row], np.int64) for clip in batch.clips]
        if self.uses_reader:
            colours = [_ycbcr_to_rgb(clip.video) for clip in batch.clips]
            columns["matrix"], columns["shift"] = ([pair[k] for pair in colours] for k in (0, 1))
            columns["order"] = [np.array(clip.frames, np.int32) - clip.frames[0] for clip in batch.clips]
        padding = self.max_batch_size - len(batch.clips) if self.uses_reader else 0
        inputs: dict[str, Any] = {name: columns[name] + columns[name][-1:] * padding for name in self._input_names()}
        # In one piece, so that DALI need not gather it.
        inputs["audio"] = np.concatenate([sound, np.repeat(sound[-1:], padding, axis=0)]) if padding else sound
        return tuple(inputs.values())

    def shut_down(self) -> None:
        """End the pipeline, in this thread and now; calling it twice is harmless.

        DALI's destructor waits for the reader with Python's lock held, and the pipeline is part of a cycle: the garbage
        collector would call it at any time, in any thread.
        """
        self._shutdown()

    @property
    def has_batch(self) -> bool:
        """Whether a batch is under way."""
        return bool(self._in_flight)

    @property
    def oldest_batch(self) -> ReadBatch:
        """The batch that `share_outputs` delivers next."""
        return self._in_flight[0][0]

    @property
    def oldest_sound(self) -> npt.NDArray[np.float32]:
        """Its sound [shape=(clips, num_samples)], as it was handed to DALI."""
        return self._in_flight[0][1]

    def share_outputs(self, cuda_stream: Any = None) -> tuple[Any, ...]:
        """The outputs of the oldest run, after comparing the rows that DALI read with those that were asked for.

        Args:
            cuda_stream: A stream with a method `synchronize`, such as PyTorch's, that the outputs are bound to.

        Raises:
            SyncError: If they differ.
        """
        outputs: tuple[Any, ...] = super().share_outputs(cuda_stream)
        self._compare_rows(outputs[-1], cuda_stream)
        return outputs

    def outputs(self, cuda_stream: Any = None) -> tuple[Any, ...]:
        """Like `share_outputs`, after giving the outputs before these back; what `run` returns.

        Raises:
            SyncError: If DALI read other rows than it was asked for.
        """
        outputs: tuple[Any, ...] = super().outputs(cuda_stream)
        self._compare_rows(outputs[-1], cuda_stream)
        return outputs

    def _compare_rows(self, rows: Any, cuda_stream: Any) -> None:
        if cuda_stream is not None:  # then DALI does not wait for them itself
            cuda_stream.synchronize()
        batch, _ = self._in_flight.popleft()
        got = np.asarray(rows.as_array()).reshape(-1)[: len(batch.clips)].tolist()
        self._release(batch)
        for clip, row in zip(batch.clips, got, strict=True):
            if row != clip.row:
                raise SyncError(
                    f"the video reader delivered row {row} where row {clip.row} was asked for",
                    path=clip.media.path,
                    row=clip.row,
                    remedy="A file of the list cannot be read; run `avloader check`",
                )


def _normalized(frames: DataNode, normalize: Normalize) -> DataNode:
    """(F, H, W, C) uint8 -> (F, C, H, W), float32 if normalized."""
    if normalize is None:
        return fn.transpose(frames, perm=[0, 3, 1, 2], output_layout="FCHW")
    if normalize == "per_clip":
        own = fn.normalize(fn.cast(frames, dtype=types.FLOAT), axis_names="FHW", epsilon=_PER_CLIP_VARIANCE_FLOOR)
        return fn.transpose(own, perm=[0, 3, 1, 2], output_layout="FCHW")
    mean, std = normalize
    return fn.crop_mirror_normalize(frames, mean=list(mean), std=list(std), dtype=types.FLOAT, output_layout="FCHW")


_LUMA_WEIGHTS = {  # (red, blue): ITU-T H.273, table 4; what FFmpeg's scaler uses, BT.601 where the stream says nothing
    "bt709": (0.2126, 0.0722),
    "bt2020": (0.2627, 0.0593),
    "smpte240m": (0.212, 0.087),
    "fcc": (0.30, 0.11),
    "bt601": (0.299, 0.114),
}


def _ycbcr_to_rgb(video: VideoInfo) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Matrix and shift with RGB = matrix @ (Y, Cb, Cr) + shift, in 0-255 units (ITU-T H.273, section 8.3)."""
    red, blue = _LUMA_WEIGHTS[video.color_matrix]
    green = 1.0 - red - blue
    luma, chroma, black = (1.0, 1.0, 0.0) if video.full_range else (255 / 219, 255 / 224, 16.0)
    matrix = np.array(
        [
            [luma, 0.0, 2 * (1 - red) * chroma],
            [luma, -2 * (1 - blue) * blue / green * chroma, -2 * (1 - red) * red / green * chroma],
            [luma, 2 * (1 - blue) * chroma, 0.0],
        ]
    )
    shift = -matrix @ np.array([black, 128.0, 128.0])
    return matrix.astype(np.float32), shift.astype(np.float32)


def write_file_list(path: Path, reads: Sequence[ClipRead], *, num_frames: int, links: Path) -> None:
    """Write clips as DALI's file list: ``path row first_frame stop_frame``, of `num_frames` source frames or fewer.

    Args:
        path: The file to write.
        reads: The clips, in order.
        num_frames: Source frames that the reader reads of each; cut at the end of the medium.
        links: A folder for symbolic links to media whose path a file list cannot hold (it splits at white space).
    """
    names: dict[str, str] = {}
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for read in reads:
            name = names.get(read.media.path)
            if name is None:
                name = read.media.path
                if any(character.isspace() for character in name):
                    link = links / f"{len(names)}{Path(name).suffix}"
                    link.symlink_to(name)
                    name = os.fspath(link)
                names[read.media.path] = name
            first = read.frames[0]
            file.write(f"{name} {read.row} {first} {min(first + num_frames, read.video.times.num_frames)}\n")


class AudioVisualPipeline(ClipPipeline):
    """A DALI pipeline over ``file_list.txt`` and ``audio_offsets.csv``, one clip a row, in the order of the rows.

    Works with `DALIGenericIterator`::

        pipe = AudioVisualPipeline("file_list.txt", "audio_offsets.csv", batch_size=4, num_frames=16)
        iterator = DALIGenericIterator(pipe, pipe.output_names, size=pipe.num_clips, auto_reset=True,
                                       last_batch_policy=LastBatchPolicy.PARTIAL, last_batch_padded=True)

    Each batch holds ``frames`` (B, F, C, H, W), ``audio`` (B, N) float32 at `sample_rate`, ``spectrogram``
    (B, bins, hops) float32 unless `features` is None, and ``row`` (B, 1).

    Args:
        file_list: Lines ``path row first_frame stop_frame``; a clip is the first `num_frames` of them.
        audio_offsets: Table ``row,path,start_sample,num_samples,sample_rate,start_seconds,duration_seconds``.
        batch_size: Clips of a batch, > 0.
        num_frames: Frames of a clip, > 0.
        stride: Source frames between two delivered ones, > 0.
        size: (height, width), or None for the stored size.
        normalize: (mean, std) per channel in 0-255 units, "per_clip", or None for uint8 frames.
        sample_rate: Of the delivered sound, > 0.
        audio_seconds: Length of the sound; None: as long as the frames last.
        features: `Spectrogram`, `MelSpectrogram`, `MFCC`, or None.
        device: "gpu": NVDEC decodes and the graph runs on the GPU; "cpu": worker processes decode.
        device_id: Which GPU.
        num_threads: Threads of DALI's CPU operators.
        num_workers: Processes that read; None: one a core for "cpu", up to four for "gpu".
        prefetch_queue_depth: Batches in flight.

    Raises:
        ManifestError: If the two tables disagree, a row is too short, or its medium has no picture or sound.
        MediaError: If a medium cannot be read.
    """

    def __init__(
        self,
        file_list: str | os.PathLike[str],
        audio_offsets: str | os.PathLike[str],
        *,
        batch_size: int,
        num_frames: int,
        stride: int = 1,
        size: tuple[int, int] | None = (224, 224),
        normalize: Normalize = ((127.5, 127.5, 127.5), (127.5, 127.5, 127.5)),
        sample_rate: int = 16000,
        audio_seconds: float | Fraction | None = None,
        features: Feature | None = None,
        device: Literal["cpu", "gpu"] = "gpu",
        device_id: int = 0,
        num_threads: int = 2,
        num_workers: int | None = None,
        prefetch_queue_depth: int = 2,
    ) -> None:
        for name, value in (("batch_size", batch_size), ("num_frames", num_frames), ("stride", stride)):
            if value < 1:
                raise ValueError(f"{name}={value} must be 1 or more")
        if device not in ("cpu", "gpu"):
            raise ValueError(f"device={device!r} must be 'cpu' or 'gpu'")
        rows = _read_tables(Path(file_list), Path(audio_offsets))
        span = 1 + (num_frames - 1) * stride
        for row in rows:
            if row.stop_frame - row.first_frame < span:
                raise ManifestError(
                    f"the row has {row.stop_frame - row.first_frame} frames, but a clip of num_frames={num_frames} and "
                    f"stride={stride} spans {span}",
                    path=row.path,
                    row=row.row,
                    remedy="Lower num_frames or stride, or leave the row out",
                )
        media = {
            path: probe(path) for path in dict.fromkeys(path for row in rows for path in (row.path, row.audio_path))
        }
        if audio_seconds is None:
            seconds = num_frames * stride / _common_rate(rows, media)
        else:
            seconds = parse_seconds(audio_seconds)
        num_samples = max(round_half_up(seconds * sample_rate), 1)
        reads = [
            ClipRead(
                row.row,
                media[row.path],
                tuple(range(row.first_frame, row.first_frame + span, stride)),
                SoundWindow.at(media[row.audio_path], row.start, num_samples=num_samples, sample_rate=sample_rate),
            )
            for row in rows
        ]
        for read in reads:
            if read.frames[-1] >= read.video.times.num_frames:
                raise ManifestError(
                    f"the row asks for frame {read.frames[-1]}, the medium has {read.video.times.num_frames} frames",
                    path=read.media.path,
                    row=read.row,
                    remedy="Build the manifest again",
                )
        if device == "gpu":
            _check_for_nvdec(reads)
        stored = _stored_size(reads) if size is None else size
        graph = GraphOptions(
            num_frames=num_frames,
            size=size,
            normalize=normalize,
            sample_rate=sample_rate,
            num_samples=num_samples,
            features=features,
        )
        self.num_clips = len(reads)
        self._folder = tempfile.TemporaryDirectory(prefix="avloader-")
        lines: Path | None = None
        if device == "gpu":
            lines = Path(self._folder.name, "file_list.txt")
            write_file_list(lines, reads, num_frames=span, links=Path(self._folder.name))
        layout = SlotLayout(
            num_slots=batch_size * (prefetch_queue_depth + 2),
            frames_shape=None if lines else (num_frames, *stored, 3),
            num_samples=num_samples,
        )
        cores = available_cores()
        pool = ReadPool(layout, num_workers=num_workers or (cores if device == "cpu" else min(cores, 4)))
        # Nobody closes a pipeline that is just dropped; the pool's thread would keep its processes for ever.
        self._end = weakref.finalize(self, _end, pool, self._folder)
        ahead = pool.read()
        super().__init__(
            _intact(ahead, _endless_batches(reads, batch_size), prefetch_queue_depth + 2),
            ahead.release,
            graph=graph,
            file_list=lines,
            reader_frames=num_frames,
            reader_stride=stride,
            batch_size=batch_size,
            device=device,
            device_id=device_id,
            num_threads=num_threads,
            prefetch_queue_depth=prefetch_queue_depth,
        )

    def close(self) -> None:
        """End the pipeline and its worker processes. Calling it twice is harmless."""
        self.shut_down()
        self._end()


def _end(pool: ReadPool, folder: tempfile.TemporaryDirectory[str]) -> None:
    pool.close()
    folder.cleanup()


def _intact(ahead: ReadAhead, batches: Iterator[Sequence[ClipRead]], num_ahead: int) -> Iterator[ReadBatch]:
    """All batches, up to the first with a clip that cannot be read."""
    numbered = enumerate(batches)
    ahead.add(itertools.islice(numbered, num_ahead))
    for number in itertools.count():
        batch = ahead.take(number)
        for error in batch.errors.values():
            raise error
        ahead.add(itertools.islice(numbered, 1))
        yield batch


def _endless_batches(reads: Sequence[ClipRead], batch_size: int) -> Iterator[Sequence[ClipRead]]:
    """Full batches of epoch after epoch, the last of each filled by repeating the last clip, as DALI's reader does."""
    padded = [*reads, *itertools.repeat(reads[-1], -len(reads) % batch_size)]
    while True:
        for first in range(0, len(padded), batch_size):
            yield padded[first : first + batch_size]


def _common_rate(rows: Sequence[_TableRow], media: dict[str, MediaInfo]) -> Fraction:
    """Frames per second of all rows."""
    rates: dict[Fraction | None, _TableRow] = {}
    for row in rows:
        video = media[row.path].video
        if video is None:
            raise ManifestError("the medium has no picture", path=row.path, row=row.row, remedy="Leave the row out")
        rates.setdefault(video.frame_rate, row)
    (rate, first), *others = rates.items()
    if rate is None or others:
        facts = [
            f"row {row.row} has {'a variable frame rate' if rate is None else f'{rate} frames/s'} ({row.path})"
            for rate, row in [(rate, first), *others][:2]
        ]
        raise ManifestError(
            f"clips would last differently: {', '.join(facts)}",
            remedy="Give audio_seconds= to fix the length of the sound",
            code="mixed_rates",
        )
    return rate


def _check_for_nvdec(reads: Sequence[ClipRead]) -> None:
    """Refuse what NVDEC's reader cannot take: DALI would stop, hang, or overwrite memory."""
    first = reads[0].video
    for read in reads:
        reason = read.media.nvdec_reason
        if not reason and (read.video.width, read.video.height) != (first.width, first.height):
            reason = (
                f"its pictures are {read.video.width}x{read.video.height}, those of row {reads[0].row} "
                f"{first.width}x{first.height}, and one list holds one size"
            )
        if reason:
            raise ManifestError(
                f"NVDEC's reader cannot take it: {reason}",
                path=read.media.path,
                row=read.row,
                remedy='Use device="cpu", or AVLoader, which chooses',
            )


def _stored_size(reads: Sequence[ClipRead]) -> tuple[int, int]:
    sizes = {(read.video.height, read.video.width): read for read in reads}
    if len(sizes) > 1:
        (first, one), (second, other) = list(sizes.items())[:2]
        raise ManifestError(
            f"size=None keeps the stored size, but row {one.row} is {first[1]}x{first[0]} and row {other.row} is "
            f"{second[1]}x{second[0]}",
            path=other.media.path,
            row=other.row,
            remedy="Give size=(height, width)",
        )
    return next(iter(sizes))


@dataclass(frozen=True, slots=True)
class _TableRow:
    row: int
    path: str
    first_frame: int
    stop_frame: int
    audio_path: str
    start: Fraction


def _read_tables(file_list: Path, audio_offsets: Path) -> list[_TableRow]:
    """The rows of both tables, joined by row."""
    lines = _read_lines(file_list)
    try:
        sounds = {int(line["row"]): line for line in csv.DictReader(_read_lines(audio_offsets))}
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise ManifestError(
            f"is not a table of audio offsets ({error})", path=audio_offsets, remedy="Build a manifest first"
        ) from error
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            path, row, first, stop = line.split()
            sound = sounds[int(row)]
            if not os.path.exists(path) and os.path.exists(unquote(path)):
                path = unquote(path)  # how a manifest in a folder with white space names it
            rows.append(
                _TableRow(int(row), path, int(first), int(stop), sound["path"], parse_seconds(sound["start_seconds"]))
            )
        except (ValueError, KeyError) as error:
            raise ManifestError(
                f"line {line[:80]!r} is not `path row first_frame stop_frame` of a row in {audio_offsets}",
                path=file_list,
                row=number,
                row_name="line",
                remedy="Build the manifest again",
            ) from error
    if not rows:
        raise ManifestError("holds no clip", path=file_list, remedy="Build a manifest with at least one clip")
    return rows


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines(keepends=True)
    except OSError as error:
        raise ManifestError(f"cannot be read ({error.strerror})", path=path, remedy="Build a manifest first") from error
    except UnicodeDecodeError as error:
        raise ManifestError(
            f"is not UTF-8 text ({error.reason})", path=path, remedy="Build a manifest first"
        ) from error
