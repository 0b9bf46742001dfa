"""What transforms work on: clips of sound with what was drawn for them, on the host and on the device."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["Clips", "Columns", "Pictures", "Rows", "scaled", "ship"]

Columns = dict[str, npt.NDArray[Any]]

_ALIGNMENT = 16


@dataclass(frozen=True, slots=True)
class Clips:
    """What draws may depend on.

    Attributes:
        num_samples: N.
        sample_rate: Samples per second.
        start: First sample of each clip that holds sound, int64 [shape=(B,)].
        stop: After the last one.
        num_frames: Pictures of each clip; None where they are not known.
        fps: Pictures per second; None where they are not known.
        origin: The sample at which the first picture is shown.
    """

    num_samples: int
    sample_rate: int
    start: npt.NDArray[np.int64]
    stop: npt.NDArray[np.int64]
    num_frames: int | None = None
    fps: float | None = None
    origin: int = 0

    @property
    def length(self) -> npt.NDArray[np.int64]:
        """Samples that hold sound."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Pictures:
    """What draws of pictures may depend on.

    Attributes:
        num_clips: B.
        num_frames: F.
        height: H, of the pictures as they are when the transform's turn comes.
        width: W.
    """

    num_clips: int
    num_frames: int
    height: int
    width: int


@dataclass(slots=True)
class Rows:
    """The clips that one transform works on, R of them.

    Attributes:
        audio: Sound [shape=(R, N)], float32; not to be changed.
        sample_rate: Samples per second.
        start: First sample that holds sound, int32 [shape=(R,)], on the device.
        stop: After the last one.
        is_full: Whether every sample of every clip holds sound.
        columns: What was drawn, on the device.
        host: The same, on the host, with "start" and "stop".
        returned: Tensors to return, by name: those that `Transform.measured` tells of.
        out: Memory for the result, if there is.
    """

    audio: torch.Tensor
    sample_rate: int
    start: torch.Tensor
    stop: torch.Tensor
    is_full: bool
    columns: dict[str, torch.Tensor]
    host: Columns
    returned: dict[str, torch.Tensor] = field(default_factory=dict)
    out: torch.Tensor | None = None

    def empty(self) -> torch.Tensor:
        """Memory for the result, to be used once: where it has to go in the end, if that is known."""
        return torch.empty_like(self.audio) if self.out is None else self.out

    def positions(self) -> torch.Tensor:
        """0 ... N - 1, int32 [shape=(N,)]."""
        return torch.arange(self.audio.shape[1], dtype=torch.int32, device=self.audio.device)

    def only(self, some: npt.NDArray[np.int64]) -> Rows:
        """Some of the rows; on the CPU."""
        if len(some) == len(self.audio):
            return self
        index = torch.from_numpy(some)
        return Rows(
            self.audio[index],
            self.sample_rate,
            self.start[index],
            self.stop[index],
            self.is_full,
            {name: column[index] for name, column in self.columns.items()},
            {name: column[some] for name, column in self.host.items()},
        )

    def silence_outside(self, audio: torch.Tensor) -> torch.Tensor:
        """`audio` with zeros where the clips hold no sound; may change `audio`."""
        if self.is_full:
            return audio
        t = self.positions()
        outside = (t < self.start[:, None]) | (t >= self.stop[:, None])
        return audio.masked_fill_(outside, 0.0)


def scaled(rows: Rows, gain: torch.Tensor) -> torch.Tensor:
    """The sound times a factor for each clip, float32 [shape=(R,)]."""
    result = rows.empty()
    if result.is_cuda:
        return torch.mul(rows.audio, gain[:, None], out=result)
    from avloader.augment import loops

    loops.scale(rows.audio.numpy(), gain.numpy(), result.numpy())
    return result


def ship(columns: Columns, device: torch.device) -> dict[str, torch.Tensor]:
    """Arrays on the device, in one copy that is not waited for, each from a multiple of 16 bytes on."""
    if device.type == "cpu":
        return {name: torch.from_numpy(np.ascontiguousarray(column)) for name, column in columns.items()}
    names_of: dict[np.dtype[Any], list[str]] = {}
    for name, column in columns.items():
        names_of.setdefault(column.dtype, []).append(name)
    size = sum(column.nbytes + _ALIGNMENT for column in columns.values())
    packed = torch.empty(size, dtype=torch.uint8, pin_memory=True)
    view, place = packed.numpy(), 0
    blocks = []
    for kind, names in names_of.items():  # few calls of NumPy and PyTorch, which take longer than the copy
        # The arrays, and what is left open behind one ("").
        unit, labels, flat = _ALIGNMENT // kind.itemsize, list[str](), list[npt.NDArray[Any]]()
        for name in names:
            column = columns[name].reshape(-1)
            labels.append(name)
            flat.append(column)
            if column.size % unit:
                labels.append("")
                flat.append(np.zeros(-column.size % unit, kind))
        sizes = [part.size for part in flat]
        block = slice(place, place + sum(sizes) * kind.itemsize)
        np.concatenate(flat, out=view[block].view(kind))
        blocks.append((labels, block, _torch_type(kind), sizes))
        place = block.stop
    there = packed.to(device, non_blocking=True)
    result = {}
    for labels, block, dtype, sizes in blocks:
        for name, part in zip(labels, there[block].view(dtype).split_with_sizes(sizes), strict=True):
            if name:
                result[name] = part if columns[name].ndim == 1 else part.view(columns[name].shape)
    return result


@functools.lru_cache
def _torch_type(kind: np.dtype[Any]) -> torch.dtype:
    return torch.from_numpy(np.empty(0, kind)).dtype
