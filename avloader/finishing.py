"""What makes a batch of what leaves the graph: pictures and features augmented, and what is said of the clips."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from avloader.augment.clips import ClipAugment
from avloader.batch import AVBatch
from avloader.epochs import Clip
from avloader.errors import AVLoaderError
from avloader.features import Feature
from avloader.feed import PlannedBatch
from avloader.gathering import Gathering
from avloader.pipeline import AUGMENTATION, PER_CLIP_VARIANCE_FLOOR, Normalize
from avloader.reading import ClipRead, SoundWindow

__all__ = ["AfterGraph", "Finishing", "Made", "finish"]

_EXACT = 2**53  # integers up to here are exact as float64, and so their quotient is the float nearest to the exact one


@dataclass(frozen=True, slots=True)
class Made:
    """A batch as it is handed to the training loop.

    Attributes:
        planned: What was planned.
        batch: Its clips that could be read; None if none could.
        errors: What went wrong, by place in the batch.
        stream: The stream that it was made for.
    """

    planned: PlannedBatch
    batch: AVBatch | None
    errors: dict[int, AVLoaderError]
    stream: torch.cuda.Stream | None


def finish(
    planned: PlannedBatch,
    gathered: Gathering,
    stream: torch.cuda.Stream | None,
    user: torch.cuda.Stream | None,
    finishing: Finishing,
) -> Made:
    """The batch, finished: whatever the GPU has to do for it is done.

    Args:
        planned: What was planned.
        gathered: What left the graph.
        stream: The engine's, on which that was made; None on the CPU.
        user: The stream that the batch is used on; its memory is kept for that.
        finishing: What is still to be done.
    """
    with torch.cuda.stream(stream):
        batch = _batch(planned, gathered, stream, finishing)
    if stream is not None:
        stream.synchronize()
    if batch is not None and user is not None:
        batch.record_stream(user)
    return Made(planned, batch, gathered.errors, user)


def _batch(
    planned: PlannedBatch,
    delivered: Gathering,
    stream: torch.cuda.Stream | None,
    finishing: Finishing,
) -> AVBatch | None:
    clips, tensors = planned.clips, delivered.tensors
    kept = [place for place in range(len(clips)) if place not in delivered.errors]
    if not kept:
        return None
    if len(kept) < len(clips):
        tensors = {name: tensor[kept] for name, tensor in tensors.items()}
    reads = [planned.reads[place] for place in kept]
    lengths = _lengths(delivered, reads)
    hops = [] if finishing.features is None else [_hops(finishing.features, length) for length in lengths]
    facts = _facts(planned, delivered, kept, lengths, hops, None if stream is None else stream.device)
    drawn: dict[str, dict[str, torch.Tensor]] = {}
    for key, column in tensors.items():
        if key.startswith(AUGMENTATION):
            _, name, own = key.split("\n")
            drawn.setdefault(name, {})[own] = column
    frames, spectrogram = tensors.get("frames"), tensors.get("spectrogram")
    if finishing.augment is not None:
        frames, of_frames = finishing.augment.pictures(frames, reads)
        spectrogram, of_spectrogram = finishing.augment.features(spectrogram, reads, hops)
        for name, columns in (*of_frames.items(), *of_spectrogram.items()):
            drawn[name] = drawn.get(name, {}) | columns
    return AVBatch(
        frames=frames,
        audio=tensors.get("audio"),
        spectrogram=spectrogram,
        augmentation=drawn or None,
        **facts,
    )


class AfterGraph:
    """What happens after the graph: pictures are augmented, then normalized; spectrograms are augmented."""

    def __init__(self, augment: ClipAugment | None, normalize: Normalize) -> None:
        assert augment is not None
        self._augment, self._normalize = augment, normalize

    def pictures(
        self, frames: torch.Tensor | None, clips: Sequence[ClipRead]
    ) -> tuple[torch.Tensor | None, dict[str, dict[str, torch.Tensor]]]:
        """The pictures, and what was drawn."""
        if frames is None or not self._augment.has_pictures:
            return frames, {}
        frames, drawn = self._augment.pictures(frames, clips)
        if self._normalize is None:
            return frames, drawn
        if self._normalize == "per_clip":
            mean, std = _per_clip_statistics(frames)
        else:
            mean, std = (torch.tensor(values, device=frames.device).view(1, 1, -1, 1, 1) for values in self._normalize)
        return (frames - mean).div_(std), drawn

    def features(
        self, spectrogram: torch.Tensor | None, clips: Sequence[ClipRead], num_hops: Sequence[int]
    ) -> tuple[torch.Tensor | None, dict[str, dict[str, torch.Tensor]]]:
        """The spectrograms, each of so many hops, and what was drawn."""
        if spectrogram is None or not self._augment.has_features:
            return spectrogram, {}
        return self._augment.features(spectrogram, clips, num_hops)


@dataclass(frozen=True, slots=True)
class Finishing:
    """What makes a batch of what leaves the graph.

    Attributes:
        augment: What happens to pictures and spectrograms; None: nothing.
        features: What was made of the sound.
    """

    augment: AfterGraph | None
    features: Feature | None


def _per_clip_statistics(frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of each channel of each clip [shape=(B, 1, C, 1, 1)], from exact sums."""
    whole = frames.to(torch.int32)
    count = frames[0, :, 0].numel()
    total = whole.sum(dim=(1, 3, 4), keepdim=True).double()
    squares = (whole * whole).sum(dim=(1, 3, 4), keepdim=True).double()
    mean = total / count
    variance = squares / count - mean * mean
    return mean.float(), (variance + PER_CLIP_VARIANCE_FLOOR).sqrt().float()


def _facts(
    planned: PlannedBatch,
    delivered: Gathering,
    kept: Sequence[int],
    lengths: Sequence[int],
    hops: Sequence[int],
    device: torch.device | None,
) -> dict[str, torch.Tensor]:
    """What a batch says of its clips: views of one block of memory, so that one copy brings all to the device."""
    clips, reads = [planned.clips[place] for place in kept], [planned.reads[place] for place in kept]
    columns: dict[str, npt.NDArray[Any]] = {
        "label": np.array([clip.label for clip in clips], np.int64),
        "row": np.array([clip.row for clip in clips], np.int64),
    }
    with_pictures, sounds = bool(reads[0].frames), [read.sound for read in reads if read.sound is not None]
    if with_pictures:
        columns["frame_seconds"] = _frame_seconds(reads)
    if sounds:
        columns["audio_start_seconds"] = np.array([_start_seconds(sound) for sound in sounds])
        columns["audio_valid"] = _delivered_ranges(delivered, kept)
        columns["audio_row"] = np.array([clip.audio_row for clip in clips], np.int64)
        columns["audio_length"] = np.array(lengths, np.int64)
        if hops:
            columns["spectrogram_length"] = np.array(hops, np.int64)
    if sounds and with_pictures:
        columns["offset_seconds"] = np.array([_offset(clip) for clip in clips])
    if clips[0].sync_label is not None:
        columns["sync_label"] = np.array([clip.sync_label for clip in clips])
    block = torch.from_numpy(np.concatenate([column.reshape(-1).view(np.int64) for column in columns.values()]))
    if device is not None:
        block = block.to(device, non_blocking=True)
    sizes = [column.size for column in columns.values()]
    facts: dict[str, torch.Tensor] = {}
    for (name, column), whole, real in zip(
        columns.items(), block.split_with_sizes(sizes), block.view(torch.float64).split_with_sizes(sizes), strict=True
    ):
        part = whole if column.dtype == np.int64 else real
        facts[name] = part.view(column.shape) if column.ndim > 1 else part
    return facts


def _lengths(delivered: Gathering, reads: Sequence[ClipRead]) -> list[int]:
    """Delivered samples of each clip; none of clips without sound."""
    # Where more is read than is delivered, for the features, no clip is shorter than the others.
    return [
        min(read.sound.num_samples, delivered.tensors["audio"].shape[1]) for read in reads if read.sound is not None
    ]


@functools.lru_cache
def _hops(features: Feature, num_samples: int) -> int:
    return features.num_hops(num_samples) if features.is_enough(num_samples) else 0


def _offset(clip: Clip) -> float:
    return math.nan if clip.offset_seconds is None else float(clip.offset_seconds)


def _delivered_ranges(delivered: Gathering, kept: Sequence[int]) -> npt.NDArray[np.int64]:
    """Which of the clips' delivered samples exist in their media; more may have been read, for the features."""
    sounds = [delivered.clips[place].sound for place in kept]
    before = np.array([[sound.before if sound else 0] for sound in sounds])
    read = np.array([delivered.valid[place] for place in kept], np.int64)
    ranges: npt.NDArray[np.int64] = (read - before).clip(0, delivered.tensors["audio"].shape[1])
    ranges[ranges[:, 0] >= ranges[:, 1]] = 0
    return ranges


def _start_seconds(sound: SoundWindow) -> float:
    """Where in its medium a window begins: the float nearest to the exact value."""
    start, rate = sound.info.start_seconds, sound.info.sample_rate
    return (start.numerator * rate + sound.start * start.denominator) / (start.denominator * rate)


def _frame_seconds(clips: Sequence[ClipRead]) -> npt.NDArray[np.float64]:
    """Media times of the clips' frames [shape=(B, F)], each the float nearest to the exact value."""
    pts = np.stack([clip.video.times.pts_of(clip.frames) for clip in clips])
    clocks, is_exact = [], True
    for clip, first, last in zip(clips, pts[:, 0].tolist(), pts[:, -1].tolist(), strict=True):
        tick, origin = clip.video.times.time_base, clip.video.times.origin
        scale, shift = tick.numerator * origin.denominator, origin.numerator * tick.denominator
        unit = tick.denominator * origin.denominator
        clocks.append((scale, shift, unit))
        is_exact &= max(abs(first), abs(last)) * scale + abs(shift) < _EXACT and unit < _EXACT
    if is_exact:
        scales, shifts, units = np.array(clocks).T[:, :, None]
        seconds: npt.NDArray[np.float64] = (pts * scales - shifts) / units
        return seconds
    return np.array(
        [
            [(value * scale - shift) / unit for value in row]
            for row, (scale, shift, unit) in zip(pts.tolist(), clocks, strict=True)
        ]
    )
