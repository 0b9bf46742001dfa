"""The clips of an epoch in order, whatever they hold, and which of them are whose."""

from __future__ import annotations

import copy
import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

from avloader.manifest import Manifest

__all__ = ["Clip", "EpochPlan", "LastBatch", "batches", "check_integer", "num_batches"]

LastBatch = Literal["partial", "drop"]

_BLOCK = 256  # clips that are resolved at a time

_Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Clip:
    """What is delivered: frames, and the place where their sound begins.

    Attributes:
        position: Place in the epoch's order over all ranks.
        row: Manifest row.
        media_id, audio_id: Rows of ``media.arrow``: the picture's medium and the sound's.
        frames: Frame indices in the medium, non-decreasing; frames may repeat where `fps` exceeds the source's rate.
        audio_start: Media time at which the sound begins: first delivered frame's time - av_offset + induced offset.
        offset_seconds: Induced offset; positive: sound leads; None: the sound is that of another row.
        label: Class id.
        audio_row: Manifest row whose sound it is.
        sync_label: What the offset rule calls it; None without a rule.
        crop: Two random numbers below 2**32: how far down and across the pictures are cropped.
        sound_seconds: How long the sound lasts, of a clip of sound alone; None: as long as the plan says.
        speed: So many seconds of the medium play in one.
    """

    position: int
    row: int
    media_id: int
    audio_id: int
    frames: tuple[int, ...]
    audio_start: Fraction
    offset_seconds: Fraction | None
    label: int
    audio_row: int
    sync_label: int | tuple[int, ...] | None
    crop: tuple[int, int] = (0, 0)
    sound_seconds: Fraction | None = None
    speed: Fraction = Fraction(1)


class _Short(Protocol):
    @property
    def row(self) -> int: ...


class EpochPlan(ABC):
    """The clips of one epoch, over all ranks, in order.

    Attributes:
        manifest: The manifest.
        epoch: The epoch.
        clip_seconds: How long the frames of a clip last; None where that differs, or there are none.
        audio_seconds: Length of the sound; where it differs, of the longest.
        short_rows: Rows that hold no clip; as text, they say why.
    """

    manifest: Manifest
    epoch: int
    clip_seconds: Fraction | None
    audio_seconds: Fraction
    short_rows: Sequence[_Short]
    _num_clips: int
    _order: _Int64 | None

    def __len__(self) -> int:
        """Clips of the epoch, over all ranks."""
        return self._num_clips

    def of_epoch(self, epoch: int) -> EpochPlan:
        """The clips of another epoch: only the order and the random windows differ."""
        check_integer("epoch", epoch, 0, 2**32)
        other = copy.copy(self)
        other.epoch, other._order = epoch, None
        return other

    def prepare(self) -> EpochPlan:
        """The same plan, its order worked out now and not when the first clip is asked for."""
        self._ordered()
        return self

    def clip(self, position: int) -> Clip:
        """The clip at `position` of the epoch's order, 0 <= position < len(self)."""
        if not 0 <= position < self._num_clips:
            raise IndexError(f"position {position} is outside [0, {self._num_clips})")
        return self._resolve([position])[0]

    def clips(self, spans: Iterable[Sequence[int]]) -> Iterator[list[Clip]]:
        """The clips of each span of positions, such as `batches` yields; some spans are resolved ahead, together."""
        remaining = iter(spans)
        for first in remaining:
            group = [first, *itertools.islice(remaining, _BLOCK // max(len(first), 1))]
            clips = iter(self._resolve(list(itertools.chain.from_iterable(group))))
            for span in group:
                yield list(itertools.islice(clips, len(span)))

    def _ordered(self) -> _Int64 | None:
        """The clips in the epoch's order; None: as they are numbered."""
        if self._order is None:
            self._order = self._make_order()
        return self._order

    @abstractmethod
    def _make_order(self) -> _Int64 | None:
        """The same, worked out."""

    @abstractmethod
    def _resolve(self, positions: list[int]) -> list[Clip]:
        """The clips at some positions."""


def batches(
    num_clips: int,
    *,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    last_batch: LastBatch = "partial",
    start: int = 0,
) -> Iterator[range]:
    """Positions of the batches of one rank, in order.

    Step s of all ranks covers positions [start + s * W * B, start + (s + 1) * W * B); rank r takes the r-th block of B.
    The last step, if short, is split evenly among the ranks ("partial") or left out ("drop"). `start` is the number of
    positions already delivered by all ranks, so a run may resume with another world size.

    Args:
        num_clips: Clips of the epoch, >= 0.
        batch_size: Clips of a batch, > 0.
        rank: 0 <= rank < world_size.
        world_size: > 0.
        last_batch: "partial" or "drop". With fewer clips left than ranks, "partial" gives some ranks no last batch.
        start: >= 0.

    Raises:
        TypeError, ValueError: If an argument is not what is said above.
    """
    full_steps, rest = _steps(num_clips, batch_size, rank, world_size, last_batch, start)

    def positions() -> Iterator[range]:
        begin = start + rank * batch_size
        for step in range(full_steps):
            first = begin + step * world_size * batch_size
            yield range(first, first + batch_size)
        end = start + full_steps * world_size * batch_size
        share = range(end + rest * rank // world_size, end + rest * (rank + 1) // world_size)
        if share:
            yield share

    return positions()


def num_batches(
    num_clips: int,
    *,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    last_batch: LastBatch = "partial",
    start: int = 0,
) -> int:
    """How many batches `batches` yields."""
    full_steps, rest = _steps(num_clips, batch_size, rank, world_size, last_batch, start)
    return full_steps + (rest * (rank + 1) // world_size > rest * rank // world_size)


def _steps(
    num_clips: int, batch_size: int, rank: int, world_size: int, last_batch: LastBatch, start: int
) -> tuple[int, int]:
    """Full steps of all ranks, and positions of the short one after them."""
    check_integer("num_clips", num_clips, 0)
    check_integer("batch_size", batch_size, 1)
    check_integer("world_size", world_size, 1)
    check_integer("rank", rank, 0, world_size)
    check_integer("start", start, 0)
    if last_batch not in get_args(LastBatch):
        raise ValueError(f"last_batch must be one of {', '.join(get_args(LastBatch))}, got {last_batch!r}")
    full_steps, rest = divmod(max(num_clips - start, 0), world_size * batch_size)
    return full_steps, rest if last_batch == "partial" else 0


def check_integer(name: str, value: object, minimum: int, stop: int | None = None) -> None:
    """Check that an argument is an integer of at least `minimum`, below `stop` if that is given.

    Raises:
        TypeError, ValueError: If it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < minimum or (stop is not None and value >= stop):
        allowed = f"at least {minimum}" if stop is None else f"in [{minimum}, {stop})"
        raise ValueError(f"{name} must be {allowed}, got {value}")
