"""The DALI graph: frames and sound in; normalized frames, sound and its features out; on a CPU or on a GPU.

Frames come from DALI's NVDEC reader or from worker processes, sound from worker processes. One list of clips tells both
what to read, and the row ids that the reader returns are compared with that list in every batch.
"""

from __future__ import annotations

import csv
import functools
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
import torch
from nvidia.dali.data_node import DataNode
from nvidia.dali.pipeline import Pipeline

from avloader.augment.clips import ClipAugment
from avloader.errors import ManifestError, SyncError
from avloader.features import Feature
from avloader.media import MediaInfo, probe
from avloader.pictures import Color, PictureOptions
from avloader.reading import ClipRead, ReadAhead, ReadBatch, ReadPool, SlotLayout, SoundWindow
from avloader.threads import workers
from avloader.timeline import parse_seconds, round_half_up
from avloader.workers import available_cores

__all__ = ["AUGMENTATION", "PER_CLIP_VARIANCE_FLOOR", "AudioVisualPipeline", "ClipPipeline", "GraphOptions"]

AUGMENTATION = "augmentation\n"  # how names of outputs begin that say what was drawn

Normalize = tuple[Sequence[float], Sequence[float]] | Literal["per_clip"] | None

_READER = "video"
_ONE_CLIP_A_ROW = 2**30  # a step beyond any file's end, so that a row yields its first sequence only
PER_CLIP_VARIANCE_FLOOR = 1e-6  # keeps a clip of one flat colour from dividing by zero


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphOptions:
    """What the graph makes of frames and sound.

    Attributes:
        num_frames: Frames of a clip; 0: no pictures.
        picture: What is made of each picture.
        normalize: (mean, std) per channel in 0-255 units; "per_clip": each clip's own, per channel; None: uint8 frames.
        sample_rate: Of the delivered sound, > 0.
        num_samples: Samples of the delivered sound, at most; 0: no sound.
        features: What becomes of the sound; None: sound only.
        is_ragged: Whether clips have sound of any length: the features of each are those of it alone, and batches are
            padded with zeros to the longest clip. Else shorter sound is padded first, and the features see that.
        augment: What happens to the sound before that; None: nothing.
    """

    num_frames: int
    picture: PictureOptions
    normalize: Normalize
    sample_rate: int
    num_samples: int
    features: Feature | None
    is_ragged: bool = False
    augment: ClipAugment | None = None

    @property
    def output_names(self) -> list[str]:
        """Names of the pipeline's outputs, in order."""
        frames = ["frames"] if self.num_frames else []
        sound = ["audio"] if self.num_samples else []
        return [*frames, *sound, *(["spectrogram"] if self.features else []), "row"]

    @property
    def context(self) -> tuple[int, int]:
        """Samples that are read before and after those that are delivered, because the features see them."""
        return self.features.context(self.num_samples) if self.features else (0, 0)

    @property
    def num_read_samples(self) -> int:
        """Samples that are read."""
        return self.num_samples + sum(self.context)


class ClipPipeline(Pipeline):  # type: ignore[misc]  # DALI has no types
    """Executes batches of clips in order.

    Outputs, in the order of `output_names`: ``frames`` (F, C, H, W), ``audio`` (N,), ``spectrogram`` (bins, hops),
    those that there are, and ``row`` on the CPU.

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
        self._in_flight: deque[tuple[ReadBatch, npt.NDArray[np.float32] | None]] = deque()
        self._fetched: dict[str, deque[ReadBatch]] = {"others": deque()}
        self._heard: deque[tuple[torch.Tensor, dict[str, torch.Tensor]]] = deque()
        self._augment_stream: torch.cuda.Stream | None = None
        # DALI's operators of sound take several times as long on a CPU.
        self._computes_features = device == "cpu" and graph.features is not None
        if graph.augment is not None or self._computes_features:
            self._fetched["sound"] = deque()
            if device == "gpu":
                self._augment_stream = torch.cuda.Stream(device_id)
        if not self.uses_reader and graph.num_frames:
            self._fetched["frames"] = deque()
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
            frames, row = self._external_frames(device) if options.num_frames else None, inputs["row"]
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
            frames = self._scaled(frames, inputs)
            frames = fn.coord_transform(frames, M=inputs["matrix"], T=inputs["shift"], dtype=types.UINT8)
            if options.picture.color == "grey":  # of colours that were clipped to 0-255, as on the CPU
                frames = fn.coord_transform(frames, M=_GREY_OF_RGB, dtype=types.UINT8)
        outputs = []
        if frames is not None:
            outputs.append(_normalized(frames, options.normalize, is_planar=file_list is None, device=device))
        if not options.num_samples:
            return [*outputs, row]
        if self._computes_features:
            assert options.features is not None
            ndim = len(options.features.shape(options.num_samples))
            audio, feature = fn.external_source(
                source=self._feed_sound, num_outputs=2, ndim=[1, ndim], dtype=[types.FLOAT, types.FLOAT], batch=True
            )
        elif options.augment is not None:
            audio = fn.external_source(source=self._feed_sound, ndim=1, dtype=types.FLOAT, batch=True, device=device)
        else:
            audio = inputs["audio"].gpu() if device == "gpu" else inputs["audio"]
        before, after = options.context
        is_whole = not (before or after)
        delivered = audio if is_whole else fn.slice(audio, start=[before], shape=[options.num_samples], axes=[0])
        outputs.append(delivered)
        if options.features is not None:
            if options.is_ragged and not self._computes_features:
                audio = fn.slice(audio, start=[0], shape=inputs["length"], axes=[0])
            if not self._computes_features:
                feature = options.features.build(
                    audio, device=device, sample_rate=options.sample_rate, valid=inputs.get("valid")
                )
            outputs.append(fn.pad(feature, fill_value=0.0) if options.is_ragged else feature)
        return [*outputs, row]

    def _scaled(self, frames: DataNode, inputs: dict[str, DataNode]) -> DataNode:
        """NVDEC's frames, scaled and cropped."""
        picture = self._graph.picture
        size = inputs["scaled"] if picture.is_cropped else picture.size
        if size is not None:
            kind = types.INTERP_CUBIC if picture.interpolation == "bicubic" else types.INTERP_LINEAR
            frames = fn.resize(frames, size=size, interp_type=kind)
        if picture.is_cropped:
            frames = fn.slice(frames, start=inputs["corner"], shape=picture.size, axes=[1, 2])
        return frames

    def _input_names(self) -> list[str]:
        options = self._graph
        sound = ["audio"] if options.num_samples and "sound" not in self._fetched else []
        if options.features is not None and not self._computes_features:
            sound += ["valid"] if self._sees_medium else []
            sound += ["length"] if options.is_ragged else []
        if not self.uses_reader:
            return [*sound, "row"]
        crop = ["scaled", "corner"] if self._graph.picture.is_cropped else []
        return [*sound, "matrix", "shift", *(["order"] if self._rearrange else []), *crop]

    @property
    def _sees_medium(self) -> bool:
        """Whether the features have to know where the medium's sound ends."""
        return self._graph.features is not None and self._graph.features.grid is not None

    def _external_inputs(self) -> list[DataNode]:
        kinds: dict[str, tuple[int, types.DALIDataType, str | None]] = {
            "audio": (1, types.FLOAT, None),
            "row": (1, types.INT64, None),
            "matrix": (2, types.FLOAT, None),
            "shift": (1, types.FLOAT, None),
            "order": (1, types.INT32, None),
            "valid": (1, types.INT32, None),
            "length": (1, types.INT32, None),
            "scaled": (1, types.FLOAT, None),
            "corner": (1, types.INT32, None),
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

    def _external_frames(self, device: Literal["cpu", "gpu"]) -> DataNode:
        frames = fn.external_source(
            source=self._feed_frames,
            ndim=4,
            dtype=types.UINT8,
            layout="FCHW",
            batch=True,
            # A batch is released after its outputs are there: what is made of its frames needs no copy of them first.
            no_copy=device == "gpu" or self._graph.normalize is not None,
        )
        return frames.gpu() if device == "gpu" else frames

    def _feed_frames(self) -> list[npt.NDArray[np.uint8]]:
        """The frames of the next batch."""
        return self._next_batch("frames").frames

    def _feed_sound(self) -> npt.NDArray[np.float32] | torch.Tensor | tuple[Any, Any]:
        """The sound of the next batch, augmented where the graph runs; on the CPU with its features."""
        batch = self._next_batch("sound")
        sound = torch.from_numpy(self._padded(batch))
        if self._graph.augment is None:
            self._heard.append((sound, {}))
        else:
            sound = self._augmented(sound, batch, self._graph.augment)
        if self._augment_stream is not None:
            return sound
        heard = sound.numpy()
        return (heard, self._computed(heard, batch)) if self._computes_features else heard

    def _augmented(self, sound: torch.Tensor, batch: ReadBatch, augment: ClipAugment) -> torch.Tensor:
        with torch.cuda.stream(self._augment_stream):
            if self._augment_stream is not None:
                sound = sound.pin_memory().to(self._augment_stream.device, non_blocking=True)
            sound, drawn = augment.sound(
                sound,
                batch.clips,
                batch.valid,
                sample_rate=self._graph.sample_rate,
                origin=self._graph.context[0],
            )
            padding = self.max_batch_size - len(sound) if self.uses_reader else 0
            if padding:
                sound = torch.cat([sound, sound[-1:].expand(padding, -1)])
            columns = {f"{AUGMENTATION}{name}\n{key}": drawn[name][key] for name in drawn for key in drawn[name]}
            before, num_samples = self._graph.context[0], self._graph.num_samples
            for key, column in columns.items():
                if column.shape[-1] == sound.shape[1] and column.ndim > 1:  # sound, such as the noise
                    columns[key] = column[..., before : before + num_samples]
            self._heard.append((sound, columns))  # held until DALI has copied it
            if self._augment_stream is not None:
                self._augment_stream.synchronize()  # DALI copies on a stream of its own
            return sound

    def _computed(
        self, sound: npt.NDArray[np.float32], batch: ReadBatch
    ) -> npt.NDArray[np.float32] | list[npt.NDArray[np.float32]]:
        """The features of each clip; one array where they are of one shape, which DALI need not gather."""
        options = self._graph
        features = options.features
        assert features is not None

        def compute(place: int) -> npt.NDArray[np.float32]:
            length = len(batch.sounds[place]) if options.is_ragged else sound.shape[1]
            valid = batch.valid[place] if self._sees_medium else None
            return features.compute(sound[place, :length], sample_rate=options.sample_rate, valid=valid)

        if options.is_ragged:
            return list(workers().map(compute, range(len(sound))))
        whole = np.empty((len(sound), *features.shape(options.num_samples)), np.float32)

        def fill(place: int) -> None:
            whole[place] = compute(place)

        for _ in workers().map(fill, range(len(sound))):
            pass
        return whole

    def _padded(self, batch: ReadBatch) -> npt.NDArray[np.float32]:
        """The sound of a batch as one array [shape=(clips, num_samples)], zeros behind what is shorter."""
        lengths = [len(sound) for sound in batch.sounds]
        num_samples = max(lengths) if self._graph.is_ragged else self._graph.num_read_samples
        if min(lengths) == num_samples:
            return np.stack(batch.sounds)
        padded = np.zeros((len(lengths), num_samples), np.float32)
        for row, sound in zip(padded, batch.sounds, strict=True):
            row[: len(sound)] = sound
        return padded

    def _next_batch(self, reader: Literal["frames", "others", "sound"]) -> ReadBatch:
        """The batch that `reader` has to feed next; DALI asks them in any order."""
        if not self._fetched[reader]:
            batch = next(self._batches)  # its StopIteration tells DALI that there is no more
            for queue in self._fetched.values():
                queue.append(batch)
        return self._fetched[reader].popleft()

    def _feed(self) -> tuple[Any, ...]:
        """The other inputs of the next batch; DALI calls it when it schedules a run."""
        batch = self._next_batch("others")
        options = self._graph
        names = self._input_names()
        sound = self._padded(batch) if "audio" in names else None
        self._in_flight.append((batch, sound))
        inputs: list[npt.NDArray[Any]] = [] if sound is None else [sound]
        if "valid" in names:
            inputs.append(np.array(batch.valid, np.int32))
        if "length" in names:
            inputs.append(np.array([[len(each)] for each in batch.sounds], np.int32))
        if not self.uses_reader:
            return *inputs, np.array([[clip.row] for clip in batch.clips], np.int64)
        colours = [
            _ycbcr_to_color(clip.video.color_matrix, clip.video.full_range, options.picture.color)
            for clip in batch.clips
        ]
        inputs += [np.stack([matrix for matrix, _ in colours]), np.stack([shift for _, shift in colours])]
        if self._rearrange:
            frames = np.array([clip.frames for clip in batch.clips], np.int32)
            inputs.append(frames - frames[:, :1])
        if options.picture.is_cropped:
            stored = [(clip.video.height, clip.video.width) for clip in batch.clips]
            inputs.append(np.array([options.picture.scaled(size) for size in stored], np.float32))
            inputs.append(np.array([clip.corner for clip in batch.clips], np.int32))
        padding = self.max_batch_size - len(batch.clips)
        return tuple(np.concatenate([column, np.repeat(column[-1:], padding, axis=0)]) for column in inputs)

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
    def oldest_sound(self) -> npt.NDArray[np.float32] | torch.Tensor | None:
        """The sound of it that is delivered [shape=(clips, num_samples)], as it was handed to DALI; None: none is."""
        batch, sound = self._in_flight[0]
        if not self._graph.num_samples:
            return None
        whole = self._heard[0][0][: len(batch.clips)] if sound is None else sound
        before, _ = self._graph.context
        return whole[:, before : before + self._graph.num_samples]

    @property
    def oldest_draws(self) -> dict[str, torch.Tensor]:
        """What was drawn to augment its sound: columns by `AUGMENTATION`, transform's name, new line, column's name."""
        return self._heard[0][1] if self._heard else {}

    def release_outputs(self) -> None:
        """Give back what `share_outputs` delivered; it was copied."""
        super().release_outputs()
        self._release_heard()

    def _release_heard(self) -> None:
        if "sound" in self._fetched:
            self._heard.popleft()

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
        self._release_heard()
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


def _normalized(frames: DataNode, normalize: Normalize, *, is_planar: bool, device: Literal["cpu", "gpu"]) -> DataNode:
    """(F, C, H, W) uint8 if they are planar, else (F, H, W, C) -> (F, C, H, W), float32 if normalized."""
    if normalize is None:
        return frames if is_planar else fn.transpose(frames, perm=[0, 3, 1, 2], output_layout="FCHW")
    if normalize == "per_clip":
        own = fn.normalize(fn.cast(frames, dtype=types.FLOAT), axis_names="FHW", epsilon=PER_CLIP_VARIANCE_FLOOR)
        return own if is_planar else fn.transpose(own, perm=[0, 3, 1, 2], output_layout="FCHW")
    mean, std = normalize
    if is_planar and device == "cpu":  # takes half the time of crop_mirror_normalize there
        means, stddevs = (np.array(values, np.float32).reshape(1, -1, 1, 1) for values in (mean, std))
        return fn.normalize(frames, mean=means, stddev=stddevs, dtype=types.FLOAT)
    return fn.crop_mirror_normalize(frames, mean=list(mean), std=list(std), dtype=types.FLOAT, output_layout="FCHW")


_GREY_OF_RGB = [0.299, 0.587, 0.114]  # one row; OpenCV's and FFmpeg's grey

_LUMA_WEIGHTS = {  # (red, blue): ITU-T H.273, table 4; what FFmpeg's scaler uses, BT.601 where the stream says nothing
    "bt709": (0.2126, 0.0722),
    "bt2020": (0.2627, 0.0593),
    "smpte240m": (0.212, 0.087),
    "fcc": (0.30, 0.11),
    "bt601": (0.299, 0.114),
}


@functools.lru_cache
def _ycbcr_to_color(
    color_matrix: str, full_range: bool, color: Color
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Matrix and shift with channels = matrix @ (Y, Cb, Cr) + shift, in 0-255 units (ITU-T H.273, section 8.3)."""
    red, blue = _LUMA_WEIGHTS[color_matrix]
    green = 1.0 - red - blue
    luma, chroma, black = (1.0, 1.0, 0.0) if full_range else (255 / 219, 255 / 224, 16.0)
    matrix = np.array(
        [
            [luma, 0.0, 2 * (1 - red) * chroma],
            [luma, -2 * (1 - blue) * blue / green * chroma, -2 * (1 - red) * red / green * chroma],
            [luma, 2 * (1 - blue) * chroma, 0.0],
        ]
    )
    if color == "bgr":
        matrix = matrix[::-1]
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
        if features is not None and features.grid is not None:
            raise ValueError(f"features={features!r} must have scope='clip'; AVLoader can deliver those of a medium")
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
            picture=PictureOptions(size=size),
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
        num_slots = batch_size * (prefetch_queue_depth + 2)
        layout = SlotLayout(
            frames_shape=(num_frames, 3, *stored),
            num_samples=num_samples,
            num_slots=0 if lines else num_slots,
            num_sound_slots=num_slots if lines else 0,
        )
        cores = available_cores()
        pool = ReadPool(layout, num_workers=num_workers or (cores if device == "cpu" else min(cores, 4)))
        # Nobody closes a pipeline that is just dropped; the pool's thread would keep its processes for ever.
        self._end = weakref.finalize(self, _end, pool, self._folder)
        ahead = pool.read()
        super().__init__(
            _intact(ahead, _endless_batches(reads, batch_size), prefetch_queue_depth + 2, with_frames=lines is None),
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


def _intact(
    ahead: ReadAhead, batches: Iterator[Sequence[ClipRead]], num_ahead: int, *, with_frames: bool
) -> Iterator[ReadBatch]:
    """All batches, up to the first with a clip that cannot be read."""
    numbered = enumerate(batches)
    ahead.add(itertools.islice(numbered, num_ahead), with_frames=with_frames)
    for number in itertools.count():
        batch = ahead.take(number)
        for error in batch.errors.values():
            raise error
        ahead.add(itertools.islice(numbered, 1), with_frames=with_frames)
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
