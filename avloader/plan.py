"""(manifest, options, seed, epoch, rank) -> ordered clips, each with its exact frames and sound. All choice is here.

Randomness is keyed, not drawn in turn: Philox keyed by (seed, epoch, row, purpose), so that a clip does not depend on
batch size, workers, lanes, ranks, or on where a run resumed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, get_args, overload

import numpy as np
import numpy.typing as npt

from avloader import keyed
from avloader.errors import ManifestError
from avloader.manifest import Manifest
from avloader.timeline import FrameTimes, parse_rational, parse_seconds

__all__ = ["Clip", "Plan", "PlanOptions", "ShortRow", "batches", "num_batches"]

Windows = Literal["all", "first", "center", "random"]
LastBatch = Literal["partial", "drop"]

_BLOCK = 256  # clips that are resolved at a time

_Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """What decides which clips an epoch holds; validated on construction.

    Attributes:
        num_frames: Frames of a clip, > 0.
        stride: Frames between two delivered frames, > 0; of the source, or of the `fps` grid where that is given.
        fps: Deliver at this rate: for each instant t0 + k * stride / fps the nearest source frame. None: source frames.
        clips: Windows of a row: "all" (one after another, not overlapping), "first", "center", "random" (one, another
            in each epoch).
        shuffle: Permute the clips of an epoch, another permutation in each epoch.
        seed: 0 <= seed < 2**64.
        audio_seconds: Length of the sound, > 0; None: as long as the frames last.

    Raises:
        TypeError, ValueError: If an option is not what is said above.
    """

    num_frames: int = 16
    stride: int = 1
    fps: Fraction | None = None
    clips: Windows = "all"
    shuffle: bool = False
    seed: int = 0
    audio_seconds: Fraction | None = None

    def __post_init__(self) -> None:
        _check_integer("num_frames", self.num_frames, 1)
        _check_integer("stride", self.stride, 1)
        _check_integer("seed", self.seed, 0, 2**64)
        if self.clips not in get_args(Windows):
            raise ValueError(f"clips must be one of {', '.join(get_args(Windows))}, got {self.clips!r}")
        if not isinstance(self.shuffle, bool):
            raise TypeError(f"shuffle must be True or False, got {self.shuffle!r}")
        if self.fps is not None:
            object.__setattr__(self, "fps", _rate(self.fps))
        if self.audio_seconds is not None:
            object.__setattr__(self, "audio_seconds", _length(self.audio_seconds))


@dataclass(frozen=True, slots=True)
class Clip:
    """What is delivered: frames, and the place where their sound begins.

    Attributes:
        position: Place in the epoch's order over all ranks.
        row: Manifest row.
        media_id, audio_id: Rows of ``media.parquet``: the picture's medium and the sound's.
        frames: Frame indices in the medium, non-decreasing; frames may repeat where `fps` exceeds the source's rate.
        audio_start: Media time at which the sound begins: first delivered frame's time - av_offset + induced offset.
        offset_seconds: Induced offset; positive: sound leads.
        label: Class id.
    """

    position: int
    row: int
    media_id: int
    audio_id: int
    frames: tuple[int, ...]
    audio_start: Fraction
    offset_seconds: Fraction
    label: int


@dataclass(frozen=True, slots=True)
class ShortRow:
    """A row that holds no clip of the asked length.

    Attributes:
        row: Manifest row.
        num_frames: Frames it has.
        needed_frames: Source frames that a clip spans.
    """

    row: int
    num_frames: int
    needed_frames: int


class Plan:
    """The clips of one epoch, over all ranks.

    The windows of a row lie wholly in it. With source frames a window spans 1 + (num_frames - 1) * stride of them; with
    `fps` its last instant lies no later than half a frame after the row's last frame. "all" starts a window every
    num_frames * stride source frames, or at the frame nearest to num_frames * stride / fps after the window before it
    (one frame later at least); "center" leaves as many starts before it as after it, or one less.

    Attributes:
        manifest: The manifest.
        options: The options.
        epoch: The epoch.
        clip_seconds: How long the frames of a clip last (num_frames * stride / rate); None where rates are mixed.
        audio_seconds: Length of the sound.
        short_rows: Rows that hold no clip.

    Args:
        manifest: What to take clips from.
        options: What clips to take.
        epoch: 0 <= epoch < 2**32.

    Raises:
        ManifestError: Mixed or variable frame rates without `fps` and without `audio_seconds` (the batch would be
            ragged), or no row holds a clip.
    """

    clip_seconds: Fraction | None
    audio_seconds: Fraction
    short_rows: Sequence[ShortRow]

    def __init__(self, manifest: Manifest, options: PlanOptions, *, epoch: int = 0) -> None:
        _check_integer("epoch", epoch, 0, 2**32)
        self.manifest = manifest
        self.options = options
        self.epoch = epoch
        self.clip_seconds = _clip_seconds(manifest, options)
        sound = options.audio_seconds if options.audio_seconds is not None else self.clip_seconds
        if sound is None:
            raise _mixed_rates(manifest)
        self.audio_seconds = sound

        self._spacing = _Spacing(manifest, options)
        starts_that_fit = self._spacing.num_starts()
        short = starts_that_fit <= 0
        self.short_rows = _ShortRows(self._spacing, np.flatnonzero(short))
        if options.clips == "all":
            per_row = self._spacing.num_windows(starts_that_fit)
            self._ends: _Int64 | None = np.cumsum(per_row)
            self._rows: _Int64 | None = None
            self._num_clips = int(self._ends[-1]) if len(self._ends) else 0
        else:
            self._ends = None
            self._rows = np.flatnonzero(~short) if short.any() else None
            self._num_clips = len(manifest) - len(self.short_rows)
        if not self._num_clips:
            needed = min(row.needed_frames for row in self.short_rows[:1000])
            longest = max(row.num_frames for row in self.short_rows[:1000])
            raise ManifestError(
                f"no row holds a clip: it spans {needed} frames, rows have up to {longest}",
                path=manifest.path,
                remedy="Ask for fewer frames, or a smaller stride",
            )
        self._order: _Int64 | None = None
        self._block_number = -1
        self._block: tuple[list[int], list[list[int]]] = ([], [])

    def __len__(self) -> int:
        """Clips of the epoch, over all ranks."""
        return self._num_clips

    def clip(self, position: int) -> Clip:
        """The clip at `position` of the epoch's order, 0 <= position < len(self)."""
        if not 0 <= position < self._num_clips:
            raise IndexError(f"position {position} is outside [0, {self._num_clips})")
        number, place = divmod(position, _BLOCK)
        if number != self._block_number:
            self._block = self._resolve(number)
            self._block_number = number
        rows, frames = self._block
        row = rows[place]
        manifest = self.manifest
        media_id = int(manifest.media_id[row])
        offset = Fraction(0)
        start = self._spacing.times(media_id).seconds(frames[place][0])
        return Clip(
            position=position,
            row=row,
            media_id=media_id,
            audio_id=int(manifest.audio_id[row]),
            frames=tuple(frames[place]),
            audio_start=start - Fraction(int(manifest.av_offset_ns[row]), 10**9) + offset,
            offset_seconds=offset,
            label=int(manifest.label[row]),
        )

    def _resolve(self, number: int) -> tuple[list[int], list[list[int]]]:
        """Rows and frames of the clips of a block of positions."""
        positions = np.arange(number * _BLOCK, min((number + 1) * _BLOCK, self._num_clips))
        options, spacing = self.options, self._spacing
        clips = self._shuffled()[positions] if options.shuffle else positions
        if self._ends is None:
            rows = clips if self._rows is None else self._rows[clips]
            starts = self.manifest.first_frame[rows]
            if options.clips == "center":
                starts = starts + (spacing.num_starts(rows) - 1) // 2
            elif options.clips == "random":
                draws = keyed.bits(rows, seed=options.seed, epoch=self.epoch, purpose=keyed.Purpose.WINDOW)
                starts = starts + keyed.below(spacing.num_starts(rows), draws)
        else:
            rows = np.searchsorted(self._ends, clips, side="right")
            windows = clips - np.where(rows > 0, self._ends[rows - 1], 0)
            starts = spacing.window_starts(rows, windows)
        return rows.tolist(), spacing.frames(rows, starts).tolist()

    def _shuffled(self) -> _Int64:
        if self._order is None:
            self._order = keyed.permutation(self._num_clips, seed=self.options.seed, epoch=self.epoch)
        return self._order


class _Spacing:
    """Where windows can start, and which frames they take.

    Where frames are evenly spaced, a window that starts at frame s takes the frames s + offset[k], and the next one
    starts at s + step, the same for all media of a kind: arithmetic on columns. Only `fps` on uneven frames needs their
    table.
    """

    def __init__(self, manifest: Manifest, options: PlanOptions) -> None:
        self._manifest = manifest
        self._num_frames = options.num_frames
        self._instant_seconds: Fraction | None = None
        self._kind: _Int64 | None = None
        self._table_rows: _Int64 = np.empty(0, np.int64)
        if options.fps is None:
            self._periods: list[Fraction | None] = [Fraction(options.stride)]
        else:
            rates = manifest.media_rates
            self._instant_seconds = options.stride / options.fps
            self._periods = [None if frame is None else self._instant_seconds / frame for frame in rates.frame_seconds]
            self._kind = rates.kind
            uneven = np.array([period is None for period in self._periods])
            if uneven.any():
                self._table_rows = np.flatnonzero(uneven[rates.kind][manifest.media_id])
        self._spans = np.array([self._offset(period, self._num_frames - 1) for period in self._periods], np.int64)
        self._steps = np.array([max(self._offset(period, self._num_frames), 1) for period in self._periods], np.int64)
        self._grids: dict[int, _Grid] = {}
        self._table_starts: list[_Int64] = []

    def num_starts(self, rows: _Int64 | None = None) -> _Int64:
        """How many frames of each row a window can start at, negative where it is much too short; None: all rows."""
        select = slice(None) if rows is None else rows
        first, stop = self._manifest.first_frame[select], self._manifest.stop_frame[select]
        result = stop - first - self._of_kind(self._spans, select)
        for places, grid in self._uneven(rows):
            result[places] = np.searchsorted(grid.last, stop[places]) - first[places]
        return result

    def num_windows(self, num_starts: _Int64) -> _Int64:
        """How many windows each row holds if they follow one another."""
        steps = self._of_kind(self._steps, slice(None))
        result = -(-np.maximum(num_starts, 0) // steps)
        self._table_starts = [np.empty(0, np.int64)] * len(self._table_rows)
        for rows, grid in self._uneven(None):
            for place, row in zip(np.searchsorted(self._table_rows, rows).tolist(), rows.tolist(), strict=True):
                first = int(self._manifest.first_frame[row])
                starts = grid.walk(first, first + int(num_starts[row]))
                self._table_starts[place] = starts
                result[row] = len(starts)
        return result

    def window_starts(self, rows: _Int64, windows: _Int64) -> _Int64:
        """First frames of windows numbered in their rows."""
        result = self._manifest.first_frame[rows] + windows * self._of_kind(self._steps, rows)
        for places, _ in self._uneven(rows):
            for place in places.tolist():
                table = int(np.searchsorted(self._table_rows, rows[place]))
                result[place] = self._table_starts[table][windows[place]]
        return result

    def frames(self, rows: _Int64, starts: _Int64) -> _Int64:
        """The frames of the windows that start at `starts`, [shape=(len(rows), num_frames)]."""
        kinds = np.zeros(len(rows), np.int64) if self._kind is None else self._kind[self._manifest.media_id[rows]]
        result = np.repeat(starts[:, None], self._num_frames, axis=1)
        for kind in np.unique(kinds).tolist():
            period = self._periods[kind]
            if period is not None:
                offsets = [self._offset(period, number) for number in range(self._num_frames)]
                result[kinds == kind] += np.array(offsets, np.int64)
        for places, grid in self._uneven(rows):
            result[places] = grid.nearest(starts[places, None], range(self._num_frames))
        return result

    def needed_frames(self, row: int) -> int:
        """Source frames that a window in the row spans; on uneven frames as many as at their average rate."""
        media_id = int(self._manifest.media_id[row])
        kind = 0 if self._kind is None else int(self._kind[media_id])
        if self._periods[kind] is not None:
            return int(self._spans[kind]) + 1
        video = self._manifest.media(media_id).video
        assert video is not None
        assert self._instant_seconds is not None
        offset = self._offset(self._instant_seconds * video.average_rate, self._num_frames - 1)
        return max(offset, self.row_length(row)) + 1

    def row_length(self, row: int) -> int:
        """Frames of a row."""
        return int(self._manifest.stop_frame[row] - self._manifest.first_frame[row])

    def times(self, media_id: int) -> FrameTimes:
        """When the frames of a medium are shown."""
        video = self._manifest.media(media_id).video
        assert video is not None
        return video.times

    @staticmethod
    def _offset(period: Fraction | None, number: int) -> int:
        """The frame nearest to instant `number`, `period` frames apart; the earlier of two."""
        return 0 if period is None else max(math.ceil(number * period - Fraction(1, 2)), 0)

    def _of_kind(self, values: _Int64, select: slice | _Int64) -> _Int64:
        if len(values) == 1 or self._kind is None:
            return values[:1]  # one for all, by broadcasting
        of_medium: _Int64 = values[self._kind]
        return of_medium[self._manifest.media_id[select]]

    def _uneven(self, rows: _Int64 | None) -> Iterator[tuple[_Int64, _Grid]]:
        """The places in `rows` of rows that need the table of a medium, medium by medium; None: all rows."""
        if rows is None:
            places = self._table_rows
        elif len(self._table_rows):
            nearest = np.searchsorted(self._table_rows, rows).clip(max=len(self._table_rows) - 1)
            places = np.flatnonzero(self._table_rows[nearest] == rows)
        else:
            places = np.empty(0, np.int64)
        if not len(places):
            return
        media = self._manifest.media_id[places if rows is None else rows[places]]
        order = np.argsort(media, kind="stable")
        distinct, begins = np.unique(media[order], return_index=True)
        for media_id, group in zip(distinct.tolist(), np.split(places[order], begins[1:]), strict=True):
            yield group, self._grid(media_id)

    def _grid(self, media_id: int) -> _Grid:
        if media_id not in self._grids:
            if len(self._grids) >= _BLOCK:
                self._grids.clear()
            assert self._instant_seconds is not None
            self._grids[media_id] = _Grid(self.times(media_id), self._instant_seconds, self._num_frames)
        return self._grids[media_id]


class _Grid:
    """Instants at a constant rate on unevenly spaced frames, in integers.

    Attributes:
        last: For a window that starts at each frame, the frame nearest to its last instant; the number of frames if
            that lies more than half a frame after the medium's last frame.
    """

    def __init__(self, times: FrameTimes, instant_seconds: Fraction, num_frames: int) -> None:
        self._pts = times.pts_of(np.arange(times.num_frames))
        ends = np.append(self._pts[1:], self._pts[-1] + times.step_pts)
        self._twice_middle = self._pts + ends  # twice the pts half-way to the next frame
        self._instant_pts = instant_seconds / times.time_base
        self._num_frames = num_frames
        frames = np.arange(times.num_frames)
        self.last: _Int64 = self.nearest(frames, [num_frames - 1])
        self._next = np.maximum(self.nearest(frames, [num_frames]), frames + 1)

    def nearest(self, starts: _Int64, instants: Sequence[int]) -> _Int64:
        """The frame nearest to each instant after the frames `starts` (broadcast); the earlier of two."""
        # An integer is less than a rational exactly if it is less than the integer above that.
        later = np.array([math.ceil(2 * number * self._instant_pts) for number in instants], np.int64)
        return np.searchsorted(self._twice_middle, 2 * self._pts[starts] + later)

    def walk(self, first: int, stop: int) -> _Int64:
        """Starts of the windows that follow one another from `first` on, all before `stop`."""
        starts = []
        while first < stop:
            starts.append(first)
            first = int(self._next[first])
        return np.array(starts, np.int64)


class _ShortRows(Sequence[ShortRow]):
    """Short rows, made when asked for: there can be millions."""

    def __init__(self, spacing: _Spacing, rows: _Int64) -> None:
        self._spacing = spacing
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> ShortRow: ...
    @overload
    def __getitem__(self, index: slice) -> list[ShortRow]: ...
    def __getitem__(self, index: int | slice) -> ShortRow | list[ShortRow]:
        if isinstance(index, slice):
            return [self._make(row) for row in self._rows[index].tolist()]
        return self._make(int(self._rows[index]))

    def _make(self, row: int) -> ShortRow:
        return ShortRow(row, self._spacing.row_length(row), self._spacing.needed_frames(row))


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
    _check_integer("num_clips", num_clips, 0)
    _check_integer("batch_size", batch_size, 1)
    _check_integer("world_size", world_size, 1)
    _check_integer("rank", rank, 0, world_size)
    _check_integer("start", start, 0)
    if last_batch not in get_args(LastBatch):
        raise ValueError(f"last_batch must be one of {', '.join(get_args(LastBatch))}, got {last_batch!r}")
    full_steps, rest = divmod(max(num_clips - start, 0), world_size * batch_size)
    return full_steps, rest if last_batch == "partial" else 0


def _used_kinds(manifest: Manifest) -> list[int]:
    used = np.bincount(manifest.media_id, minlength=manifest.num_media) > 0
    kinds: list[int] = np.unique(manifest.media_rates.kind[used]).tolist()
    return kinds


def _clip_seconds(manifest: Manifest, options: PlanOptions) -> Fraction | None:
    rate = options.fps
    if rate is None:
        rates = {manifest.media_rates.frame_rate[kind] for kind in _used_kinds(manifest)}
        rate = rates.pop() if len(rates) == 1 else None
    return None if rate is None else options.num_frames * options.stride / rate


def _mixed_rates(manifest: Manifest) -> ManifestError:
    rates, media_id = manifest.media_rates, manifest.media_id
    kind = int(rates.kind[media_id[0]])
    others = [other for other in _used_kinds(manifest) if rates.frame_rate[other] != rates.frame_rate[kind]]
    rows = [0]
    if others:
        rows.append(int(np.argmax(np.isin(rates.kind, others)[media_id])))
    facts = []
    for row in rows:
        rate = rates.frame_rate[rates.kind[media_id[row]]]
        path = manifest.media(int(media_id[row])).path
        facts.append(f"row {row} has {'a variable frame rate' if rate is None else f'{rate} frames/s'} ({path})")
    return ManifestError(
        f"clips would last differently: {', '.join(facts)}",
        path=manifest.path,
        remedy="Give fps= to deliver one rate, or audio_seconds= to fix the length of the sound",
        code="mixed_rates",
    )


def _check_integer(name: str, value: object, minimum: int, stop: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < minimum or (stop is not None and value >= stop):
        allowed = f"at least {minimum}" if stop is None else f"in [{minimum}, {stop})"
        raise ValueError(f"{name} must be {allowed}, got {value}")


def _rate(value: object) -> Fraction:
    try:
        return parse_rational(value)
    except ValueError as error:
        raise ValueError(f"fps must be a positive number of frames per second or None: {error}") from None


def _length(value: object) -> Fraction:
    try:
        seconds = parse_seconds(value)
    except ValueError as error:
        raise ValueError(f"audio_seconds must be a positive number of seconds or None: {error}") from None
    if seconds <= 0:
        raise ValueError(f"audio_seconds must be positive or None, got {value!r}")
    return seconds
