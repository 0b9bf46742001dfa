"""(manifest, options, seed, epoch, rank) -> ordered clips, each with its exact frames and sound. All choice is here.

Randomness is keyed, not drawn in turn: Philox keyed by (seed, epoch, row, purpose), so that a clip does not depend on
batch size, workers, lanes, ranks, or on where a run resumed.
"""

from __future__ import annotations

import copy
import itertools
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, Protocol, get_args, overload

import numpy as np
import numpy.typing as npt

from avloader import keyed
from avloader.errors import ManifestError
from avloader.manifest import Manifest
from avloader.offsets import (
    AllPairs,
    BinaryOffsets,
    FixedOffset,
    FixedOffsets,
    GridOffsets,
    OffsetRule,
    OtherClip,
    OtherStart,
)
from avloader.timeline import ANNOTATION_TOLERANCE, FrameTimes, parse_rational, parse_seconds

__all__ = [
    "Clip",
    "EpochPlan",
    "Plan",
    "PlanOptions",
    "ShortRow",
    "batches",
    "check_integer",
    "num_batches",
    "parse_length",
]

Windows = Literal["all", "first", "center", "random"]
SoundPlace = Literal["clip", "row", "around"]
LastBatch = Literal["partial", "drop"]

_PLACES_PER_SECOND = 10**6  # where sound can begin around a clip's frames
_BLOCK = 256  # clips that are resolved at a time
_ROWS = 1 << 20  # rows whose clips are counted at a time
_ZERO = Fraction(0)

_Int64 = npt.NDArray[np.int64]


class Speeds(Protocol):
    """Chooses how fast clips play: `avloader.augment.JointSpeed` in a chain."""

    @property
    def factors(self) -> Sequence[Fraction]:
        """All speeds that a clip can have."""

    def choose(self, rows: _Int64, starts: _Int64, epoch: int) -> _Int64:
        """Which of them the clips have that begin with frames `starts` of `rows`."""


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
        offsets: A rule of `avloader.offsets` that puts sound out of sync on purpose; None: all in sync.
        audio_from: Where the sound begins: "clip": with the clip's first frame; "row": with the row's first frame;
            "around": somewhere, another place in each epoch, such that the frames lie in it.
        audio_grid: The sound begins a multiple of so many seconds after the medium's first frame, at that time or less
            than this before it; None: anywhere.
        random_crop: Draw where the pictures of each clip are cropped, another place in each epoch.
        with_sound: Whether clips have sound; without, they may last differently.
        speeds: How fast each clip plays: its frames and its sound are taken from that many times as long a stretch.
            None: all at the medium's own speed.

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
    offsets: OffsetRule | None = None
    audio_from: SoundPlace = "clip"
    audio_grid: Fraction | None = None
    random_crop: bool = False
    with_sound: bool = True
    speeds: Speeds | None = None

    def __post_init__(self) -> None:
        check_integer("num_frames", self.num_frames, 1)
        check_integer("stride", self.stride, 1)
        check_integer("seed", self.seed, 0, 2**64)
        if self.clips not in get_args(Windows):
            raise ValueError(f"clips must be one of {', '.join(get_args(Windows))}, got {self.clips!r}")
        if not isinstance(self.shuffle, bool):
            raise TypeError(f"shuffle must be True or False, got {self.shuffle!r}")
        if self.audio_from not in get_args(SoundPlace):
            raise ValueError(f"audio_from must be one of {', '.join(get_args(SoundPlace))}, got {self.audio_from!r}")
        if self.fps is not None:
            object.__setattr__(self, "fps", _rate(self.fps))
        if self.audio_seconds is not None:
            object.__setattr__(self, "audio_seconds", parse_length(self.audio_seconds))
        if self.offsets is not None and not isinstance(self.offsets, get_args(OffsetRule)):
            names = ", ".join(rule.__name__ for rule in get_args(OffsetRule))
            raise TypeError(f"offsets={self.offsets!r} must be one of {names}, or None")
        if isinstance(self.offsets, FixedOffsets) and self.clips != "all":
            raise ValueError(
                f'clips={self.clips!r} does not go with FixedOffsets, whose table names the clips: use "all"'
            )

        if self.speeds is not None and (self.offsets is not None or self.audio_from != "clip"):
            other = f"offsets={self.offsets!r}" if self.offsets is not None else f"audio_from={self.audio_from!r}"
            raise ValueError(f"JointSpeed does not go with {other}, which counts seconds of the medium: leave one out")


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


@dataclass(frozen=True, slots=True)
class ShortRow:
    """A row that holds no clip of the asked length.

    Attributes:
        row: Manifest row.
        num_frames: Frames it has.
        needed_frames: Source frames that a clip needs, with room for its offset.
    """

    row: int
    num_frames: int
    needed_frames: int

    def __str__(self) -> str:
        return f"{self.num_frames} frames, but a clip spans {self.needed_frames}"


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


class Plan(EpochPlan):
    """The clips of one epoch, over all ranks.

    The windows of a row lie wholly in it. With source frames a window spans 1 + (num_frames - 1) * stride of them; with
    `fps` its last instant lies no later than half a frame after the row's last frame. "all" starts a window every
    num_frames * stride source frames, or at the frame nearest to num_frames * stride / fps after the window before it
    (one frame later at least); "center" leaves as many starts before it as after it, or one less. A rule of offsets
    may leave out starts from which the sound could not be moved as far (see `avloader.offsets`). Where clips play at
    several speeds, a window is one that lies in its row at the greatest of them.

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

    short_rows: Sequence[ShortRow]

    def __init__(self, manifest: Manifest, options: PlanOptions, *, epoch: int = 0) -> None:
        check_integer("epoch", epoch, 0, 2**32)
        manifest.check_streams("both" if options.with_sound else "video")
        self.manifest = manifest
        self.options = options
        self.epoch = epoch
        self.clip_seconds = _clip_seconds(manifest, options)
        sound = options.audio_seconds if options.audio_seconds is not None else self.clip_seconds
        if sound is None and not options.with_sound:
            sound = Fraction(0)
        if sound is None:
            raise _mixed_rates(manifest)
        self.audio_seconds = sound
        if options.audio_from == "around" and self.clip_seconds is None:
            raise _mixed_rates(manifest)

        self._spacing = _Spacing(manifest, options)
        # Whichever speed is drawn later, the window lies in its row.
        speeds = () if options.speeds is None else options.speeds.factors
        self._at_speed = [_Spacing(manifest, options, factor) for factor in speeds]
        self._widest = max(zip(speeds, self._at_speed, strict=True))[1] if speeds else self._spacing
        self._room = _Room(self._widest, options, max(self.clip_seconds or sound, sound))
        is_short, self._ends = self._count_clips()
        short = np.flatnonzero(is_short)
        self.short_rows = _ShortRows(self._widest, self._room, short)
        # Where every row has its clip, clip and row are the same number.
        self._rows: _Int64 | None = None if self._ends is not None or not len(short) else np.flatnonzero(~is_short)
        self._num_clips = len(manifest) - len(short) if self._ends is None else int(self._ends[-1])
        self._fixed: _FixedClips | None = None
        if isinstance(options.offsets, FixedOffsets):
            self._fixed = _FixedClips(self._spacing, options.offsets)
            self._num_clips = len(self._fixed.rows)
            self.short_rows = ()
        if not self._num_clips:
            needed = min(row.needed_frames for row in self.short_rows[:1000])
            longest = max(row.num_frames for row in self.short_rows[:1000])
            raise ManifestError(
                f"no row holds a clip: it spans {needed} frames, rows have up to {longest}",
                path=manifest.path,
                remedy="Ask for fewer frames, or a smaller stride",
            )
        self._others = _OtherRows(manifest, ~is_short) if isinstance(options.offsets, OtherClip) else None
        self._order: _Int64 | None = None

    def _count_clips(self) -> tuple[npt.NDArray[np.bool_], _Int64 | None]:
        """Which rows hold no clip, and where the clips of each row end among all if a row can hold several."""
        num_rows = len(self.manifest)
        is_short = np.zeros(num_rows, np.bool_)
        ends = np.zeros(num_rows, np.int64) if self.options.clips == "all" else None
        for begin in range(0, num_rows, _ROWS):
            rows = np.arange(begin, min(begin + _ROWS, num_rows))
            first, num_starts = self._room.starts(rows)
            is_short[rows] = num_starts <= 0
            if ends is not None:
                ends[rows] = self._spacing.num_windows(rows, first, num_starts)
        return is_short, None if ends is None else np.cumsum(ends, out=ends)

    def _resolve(self, positions: list[int]) -> list[Clip]:
        options, spacing, manifest = self.options, self._spacing, self.manifest
        clips = np.array(positions, np.int64)
        order = self._ordered()
        if order is not None:
            clips = order[clips]
        # What a draw is for: the row, or the clip where a row can hold several.
        if self._fixed is not None:
            items, rows, starts = clips, self._fixed.rows[clips], self._fixed.starts[clips]
            induced = self._fixed.induced(clips)
        elif self._ends is None:
            items = rows = clips if self._rows is None else self._rows[clips]
            induced = self._draw_offsets(items)
            first, num_starts = self._room.starts(rows, induced)
            starts = first
            if options.clips == "center":
                starts = first + (num_starts - 1) // 2
            elif options.clips == "random":
                starts = first + keyed.below(num_starts, self._bits(rows, keyed.Purpose.WINDOW))
        else:
            items = clips
            rows = np.searchsorted(self._ends, clips, side="right")
            windows = clips - np.where(rows > 0, self._ends[rows - 1], 0)
            induced = self._draw_offsets(items)
            starts = spacing.window_starts(rows, self._room.starts(rows)[0], windows)
        sounds = self._sounds(items, rows, starts, induced)
        columns = (
            rows,
            manifest.media_id[rows],
            manifest.label[rows],
            sounds.rows,
            manifest.audio_id[sounds.rows],
            manifest.av_offset_ns[sounds.rows],
            sounds.frames,
            induced.ticks,
        )
        frames, speeds = self._frames(rows, starts)
        facts = zip(*(column.tolist() for column in columns), strict=True)
        return [
            self._clip(position, shown, speed, label, place, induced.unit, *each)
            for position, shown, speed, label, place, each in zip(
                positions, frames, speeds, self._sync_labels(induced), self._places(rows, starts), facts, strict=True
            )
        ]

    def _frames(self, rows: _Int64, starts: _Int64) -> tuple[Iterable[tuple[int, ...]], list[Fraction]]:
        """The frames of the clips that begin with the frames `starts` of `rows`, and how fast they play."""
        rule = self.options.speeds
        if rule is None:
            return map(tuple, self._spacing.frames(rows, starts).tolist()), [Fraction(1)] * len(rows)
        chosen = rule.choose(rows, starts, self.epoch)
        frames = np.empty((len(rows), self.options.num_frames), np.int64)
        for number in np.unique(chosen).tolist():
            places = np.flatnonzero(chosen == number)
            frames[places] = self._at_speed[number].frames(rows[places], starts[places])
        return map(tuple, frames.tolist()), [rule.factors[number] for number in chosen.tolist()]

    def _bits(self, items: _Int64, purpose: keyed.Purpose) -> npt.NDArray[np.uint64]:
        return keyed.bits(items, seed=self.options.seed, epoch=self.epoch, purpose=purpose)

    def _draw_offsets(self, items: _Int64) -> _Induced:
        """What the rule decides before a window is chosen."""
        rule, key = self.options.offsets, {"seed": self.options.seed, "epoch": self.epoch}
        nothing = np.zeros(len(items), np.int64)
        if isinstance(rule, (GridOffsets, BinaryOffsets)):
            ticks, labels = rule.draw(items, **key)
            return _Induced(ticks, rule.unit, nothing.astype(np.bool_), labels)
        if isinstance(rule, (OtherStart, OtherClip)):
            is_out = rule.is_out(items, **key)
            return _Induced(nothing, Fraction(1), is_out, np.where(is_out, 0, 1))
        return _Induced(nothing, Fraction(1), nothing.astype(np.bool_), nothing)

    def _sounds(self, items: _Int64, rows: _Int64, starts: _Int64, induced: _Induced) -> _Sounds:
        """Where the sound is taken from, before it is shifted."""
        places = np.flatnonzero(induced.is_out)
        if not len(places):
            return _Sounds(rows, starts)
        sound_rows, sound_frames = rows.copy(), starts.copy()
        random = self._bits(items[places], keyed.Purpose.OFFSET_PLACE)
        if self._others is None:
            sound_frames[places] = self._room.other_starts(rows[places], starts[places], random)
        else:
            others = self._others.draw(rows[places], self._bits(items[places], keyed.Purpose.OTHER_ROW))
            first, num_starts = self._room.starts(others)
            sound_rows[places] = others
            sound_frames[places] = first + keyed.below(num_starts, random)
        return _Sounds(sound_rows, sound_frames)

    def _sync_labels(self, induced: _Induced) -> Iterable[int | tuple[int, ...] | None]:
        rule, num_clips = self.options.offsets, len(induced.labels)
        if rule is None:
            return itertools.repeat(None, num_clips)
        if isinstance(rule, AllPairs):
            return itertools.repeat(tuple(range(self.options.num_frames)), num_clips)
        labels: list[int] = induced.labels.tolist()
        return labels

    def _clip(
        self,
        position: int,
        frames: tuple[int, ...],
        speed: Fraction,
        sync_label: int | tuple[int, ...] | None,
        place: _Place,
        unit: Fraction,
        row: int,
        media_id: int,
        label: int,
        audio_row: int,
        audio_id: int,
        av_offset_ns: int,
        sound_frame: int,
        ticks: int,
    ) -> Clip:
        start = sound = self._spacing.times(media_id).seconds(frames[0])
        if audio_row != row:
            sound = self._spacing.times(int(self.manifest.media_id[audio_row])).seconds(sound_frame)
        elif sound_frame != frames[0]:
            sound = self._spacing.times(media_id).seconds(sound_frame)
        if ticks:
            sound += ticks * unit
        offset = None
        if audio_row == row:
            offset = _ZERO if sound is start else sound - start
        placed = self._placed(sound, audio_row, sound_frame, place, speed)
        if av_offset_ns:
            placed -= Fraction(av_offset_ns, 10**9)
        return Clip(
            position=position,
            row=row,
            media_id=media_id,
            audio_id=audio_id,
            frames=frames,
            audio_start=placed,
            offset_seconds=offset,
            label=label,
            audio_row=audio_row,
            sync_label=sync_label,
            crop=place.crop,
            speed=speed,
        )

    def _places(self, rows: _Int64, starts: _Int64) -> list[_Place]:
        """Where in the pictures and in the sound the clips that begin with the frames `starts` of `rows` lie."""
        options, num_clips = self.options, len(rows)
        if not options.random_crop and options.audio_from != "around":
            return [_Place((0, 0), 0)] * num_clips
        down = across = lead = [0] * num_clips
        items = rows + (starts << 32)  # a row can hold several clips
        if options.random_crop:
            draws = keyed.bits(items, seed=options.seed, epoch=self.epoch, purpose=keyed.Purpose.CROP)
            down, across = (draws >> np.uint64(32)).tolist(), (draws & np.uint64(0xFFFFFFFF)).tolist()
        if options.audio_from == "around":
            assert self.clip_seconds is not None
            room = max(math.floor((self.audio_seconds - self.clip_seconds) * _PLACES_PER_SECOND), 0)
            draws = keyed.bits(items, seed=options.seed, epoch=self.epoch, purpose=keyed.Purpose.SOUND_PLACE)
            lead = keyed.below(np.full(num_clips, room + 1), draws).tolist()
        return [_Place(pair, each) for pair, each in zip(zip(down, across, strict=True), lead, strict=True)]

    def _placed(self, sound: Fraction, row: int, frame: int, place: _Place, speed: Fraction) -> Fraction:
        """Media time at which the sound begins that would begin at `sound`, near the frame `frame` of `row`."""
        options = self.options
        if options.audio_from == "clip" and options.audio_grid is None:
            return sound
        times = self._spacing.times(int(self.manifest.media_id[row]))
        if options.audio_from == "row":
            sound -= times.seconds(frame) - times.seconds(int(self.manifest.first_frame[row]))
        sound -= Fraction(place.lead, _PLACES_PER_SECOND)
        if options.audio_grid is not None:
            sound -= (sound - times.start_seconds) % (options.audio_grid * speed)
        return sound

    def _make_order(self) -> _Int64 | None:
        if not self.options.shuffle:
            return None
        return keyed.permutation(self._num_clips, seed=self.options.seed, epoch=self.epoch)


@dataclass(frozen=True, slots=True)
class _Induced:
    """What a rule decided about some clips.

    Attributes:
        ticks: How much later the sound is taken, in multiples of `unit` seconds.
        unit: Seconds.
        is_out: Whether the sound is taken from another start or row.
        labels: What the rule calls them.
    """

    ticks: _Int64
    unit: Fraction
    is_out: npt.NDArray[np.bool_]
    labels: _Int64


@dataclass(frozen=True, slots=True)
class _Sounds:
    """Where the sound of some clips begins: with these frames of these rows."""

    rows: _Int64
    frames: _Int64


class _Room:
    """The starts of windows that leave room for the sound, wherever the rule puts it.

    The sound begins between the first and the last frame of the row at which a window can start.
    """

    def __init__(self, spacing: _Spacing, options: PlanOptions, clip_seconds: Fraction) -> None:
        self._spacing = spacing
        self._rule = options.offsets
        self._is_random = options.clips == "random"
        self._guard = self._rule.guard(clip_seconds) if isinstance(self._rule, OtherStart) else Fraction(0)

    def starts(self, rows: _Int64, induced: _Induced | None = None) -> tuple[_Int64, _Int64]:
        """First frame that a window can start at, and how many there are from there on; none: 0 or less.

        Args:
            rows: Manifest rows.
            induced: Their offsets, for a rule that draws them before the window; None: whatever they will be.
        """
        rule, spacing = self._rule, self._spacing
        if isinstance(rule, (GridOffsets, BinaryOffsets)):
            if not self._is_random:
                return spacing.starts_with_room(rows, *self._range(rows, rule), rule.unit)
            if induced is not None:
                return spacing.starts_with_room(rows, induced.ticks, induced.ticks, rule.unit)
            rooms = [spacing.starts_with_room(rows, ticks, ticks, rule.unit)[1] for ticks in self._range(rows, rule)]
            return spacing.first_starts(rows), np.minimum(*rooms)
        num_starts = spacing.num_starts(rows)
        if isinstance(rule, OtherStart):
            num_starts[spacing.have_lonely_starts(rows, num_starts, self._guard)] = 0
        return spacing.first_starts(rows), num_starts

    def other_starts(self, rows: _Int64, starts: _Int64, random: npt.NDArray[np.uint64]) -> _Int64:
        """Another start of each row, at least the guard away."""
        num_before, next_after, num_after = self._spacing.distant_starts(rows, starts, self._guard)
        drawn = keyed.below(num_before + num_after, random)
        return np.where(drawn < num_before, self._spacing.first_starts(rows) + drawn, next_after + drawn - num_before)

    def extra_frames(self, frame_seconds: Fraction) -> int:
        """Frames that a row needs beside those of a window."""
        rule = self._rule
        if isinstance(rule, OtherStart):
            return 2 * max(math.ceil(self._guard / frame_seconds), 1) - 1
        if isinstance(rule, (GridOffsets, BinaryOffsets)):
            before, after = (math.ceil(abs(offset) / frame_seconds) for offset in rule.range)
            return max(before, after) if self._is_random else before + after
        return 0

    @staticmethod
    def _range(rows: _Int64, rule: GridOffsets | BinaryOffsets) -> tuple[_Int64, _Int64]:
        low, high = rule.range
        ticks = math.floor(low / rule.unit), math.ceil(high / rule.unit)
        return np.full(len(rows), ticks[0]), np.full(len(rows), ticks[1])


class _OtherRows:
    """Draws rows that share neither picture nor sound with a given one, all equally likely."""

    def __init__(self, manifest: Manifest, has_clip: npt.NDArray[np.bool_]) -> None:
        self._groups = _connected(manifest)
        rows = np.flatnonzero(has_clip)
        self._rows: _Int64 = rows[np.argsort(self._groups[rows], kind="stable")]
        self._sorted: _Int64 = self._groups[self._rows]
        if self._sorted[0] == self._sorted[-1]:
            raise ManifestError(
                "OtherClip needs rows of two media at least, but all rows with a clip share picture or sound",
                path=manifest.path,
                remedy="Use OtherStart, or add other media",
            )

    def draw(self, rows: _Int64, random: npt.NDArray[np.uint64]) -> _Int64:
        """Another row for each of `rows`."""
        begin, end = (np.searchsorted(self._sorted, self._groups[rows], side=side) for side in ("left", "right"))
        drawn = keyed.below(len(self._rows) - (end - begin), random)
        return self._rows[np.where(drawn < begin, drawn, drawn + end - begin)]


def _connected(manifest: Manifest) -> _Int64:
    """A number for each row, the same for rows that share a medium, directly or through others."""
    media_id, audio_id = manifest.media_id, manifest.audio_id
    if np.array_equal(media_id, audio_id):
        return media_id
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    size = int(max(media_id.max(), audio_id.max())) + 1
    links = coo_matrix((np.ones(len(media_id), np.bool_), (media_id, audio_id)), shape=(size, size))
    component = connected_components(links, directed=False)[1]
    groups: _Int64 = component[media_id].astype(np.int64)
    return groups


class _FixedClips:
    """The clips of a table.

    Attributes:
        rows, starts: Manifest row and first frame of each.
    """

    def __init__(self, spacing: _Spacing, rule: FixedOffsets) -> None:
        manifest = spacing.manifest
        media = _MediaNames(manifest)
        by_medium = np.argsort(manifest.media_id, kind="stable")
        sorted_ids = manifest.media_id[by_medium]
        found = []
        for line in rule.lines:
            media_id = media.find(line, rule)
            begin, end = np.searchsorted(sorted_ids, [media_id, media_id + 1])
            rows = by_medium[begin:end]
            times = spacing.times(media_id)
            frame = times.nearest_frame(line.start)
            first = manifest.first_frame[rows]
            holding = rows[(first <= frame) & (frame < first + spacing.num_starts(rows))]
            is_near = times.start_seconds <= line.start + ANNOTATION_TOLERANCE and line.start < times.stop_seconds
            if not len(holding) or not is_near:
                raise ManifestError(
                    f"no row of {line.path!r} holds a clip that starts at {float(line.start):g} s",
                    path=rule.table,
                    row=line.line,
                    row_name="line",
                    remedy="Take the line out, or ask for fewer frames",
                )
            found.append((int(holding[0]), frame))
        self.rows: _Int64 = np.array([row for row, _ in found])
        self.starts: _Int64 = np.array([frame for _, frame in found])
        self._unit = Fraction(1, math.lcm(*(line.offset.denominator for line in rule.lines)))
        self._ticks: _Int64 = np.array([int(line.offset / self._unit) for line in rule.lines], np.int64)
        self._labels: _Int64 = np.array([rule.labels.label(line.offset) for line in rule.lines], np.int64)

    def induced(self, clips: _Int64) -> _Induced:
        """Offsets and labels of some of them."""
        return _Induced(self._ticks[clips], self._unit, np.zeros(len(clips), np.bool_), self._labels[clips])


class _MediaNames:
    """Finds media by path, or by name with or without ending."""

    def __init__(self, manifest: Manifest) -> None:
        self._found: dict[str, list[tuple[str, int]]] = {}
        for media_id in np.unique(manifest.media_id).tolist():
            path = manifest.media(media_id).path
            name = os.path.basename(path)
            for key in {name, os.path.splitext(name)[0]}:
                self._found.setdefault(key, []).append((path, media_id))

    def find(self, line: FixedOffset, rule: FixedOffsets) -> int:
        """The medium that a line names."""
        end = os.path.normpath(line.path)
        media = [
            media_id
            for path, media_id in self._found.get(os.path.basename(end), [])
            if any(name == end or name.endswith(f"{os.sep}{end}") for name in (path, os.path.splitext(path)[0]))
        ]
        if len(media) != 1:
            raise ManifestError(
                f"{line.path!r} names {len(media) or 'none'} of the manifest's media",
                path=rule.table,
                row=line.line,
                row_name="line",
                remedy="Write the paths as in the annotations",
            )
        return media[0]


@dataclass(frozen=True, slots=True)
class _Place:
    """What was drawn for a clip: where its pictures are cropped, and by how much its sound begins before its frames."""

    crop: tuple[int, int]
    lead: int


class _Spacing:
    """Where windows can start, and which frames they take.

    Where frames are evenly spaced, a window that starts at frame s takes the frames s + offset[k], and the next one
    starts at s + step, the same for all media of a kind: arithmetic on columns. Only `fps` on uneven frames needs their
    table. At another speed than 1 the frames of a window lie that many times as far apart.
    """

    def __init__(self, manifest: Manifest, options: PlanOptions, speed: Fraction = Fraction(1)) -> None:
        self.manifest = manifest
        self._num_frames = options.num_frames
        self._instant_seconds: Fraction | None = None
        self._kind: _Int64 | None = None
        if options.fps is None:
            self._periods: list[Fraction | None] = [options.stride * speed]
        else:
            rates = manifest.media_rates
            self._instant_seconds = options.stride / options.fps * speed
            self._periods = [None if frame is None else self._instant_seconds / frame for frame in rates.frame_seconds]
            self._kind = rates.kind
        self._is_uneven = np.array([period is None for period in self._periods])
        self._spans = np.array([self._offset(period, self._num_frames - 1) for period in self._periods], np.int64)
        self._steps = np.array([max(self._offset(period, self._num_frames), 1) for period in self._periods], np.int64)
        self._grids: dict[int, _Grid] = {}

    def num_starts(self, rows: _Int64) -> _Int64:
        """How many frames of each row a window can start at, negative where it is much too short."""
        first, stop = self.manifest.first_frame[rows], self.manifest.stop_frame[rows]
        result = stop - first - self._of_kind(self._spans, rows)
        for places, grid in self._uneven(rows):
            result[places] = np.searchsorted(grid.last, stop[places]) - first[places]
        return result

    def first_starts(self, rows: _Int64) -> _Int64:
        """The first frame of each row."""
        first: _Int64 = self.manifest.first_frame[rows]
        return first

    def starts_with_room(self, rows: _Int64, lowest: _Int64, highest: _Int64, unit: Fraction) -> tuple[_Int64, _Int64]:
        """First start and number of those from which sound can be moved by `lowest` ... `highest` units of seconds.

        That is, without leaving the time between the first and the last start of the row.
        """
        first, num_starts = self.first_starts(rows), self.num_starts(rows)
        begin, end = first.copy(), first + num_starts
        for places, frame_seconds, times in self._in_time(rows):
            low, high = lowest[places], highest[places]
            if times is None:
                begin[places] += np.maximum(_ceil_times(-low, unit / frame_seconds), 0)
                end[places] -= np.maximum(_ceil_times(high, unit / frame_seconds), 0)
                continue
            pts, per_tick = _table(times), unit / times.time_base
            earliest = pts[begin[places]] + _ceil_times(-low, per_tick)
            latest = pts[np.maximum(end[places] - 1, 0)] - _ceil_times(high, per_tick)
            begin[places] = np.maximum(begin[places], np.searchsorted(pts, earliest, side="left"))
            end[places] = np.minimum(end[places], np.searchsorted(pts, latest, side="right"))
        return begin, np.minimum(end - begin, num_starts)

    def have_lonely_starts(self, rows: _Int64, num_starts: _Int64, guard: Fraction) -> npt.NDArray[np.bool_]:
        """Whether one of the first `num_starts` starts of each row has no other one that is `guard` seconds away."""
        first = self.first_starts(rows)
        result = num_starts <= 0
        for places, frame_seconds, times in self._in_time(rows):
            if times is None:
                result[places] |= num_starts[places] < 2 * max(math.ceil(guard / frame_seconds), 1)
                continue
            pts, distance = _table(times), max(math.ceil(guard / times.time_base), 1)
            last = np.maximum(first[places] + num_starts[places] - 1, 0)
            with_earlier = np.searchsorted(pts, pts[first[places]] + distance, side="left")
            without_later = np.searchsorted(pts, pts[last] - distance, side="right")
            result[places] |= with_earlier > without_later
        return result

    def distant_starts(self, rows: _Int64, starts: _Int64, guard: Fraction) -> tuple[_Int64, _Int64, _Int64]:
        """Starts that are at least `guard` seconds from `starts`: how many before, the next after, how many after."""
        first, stop = self.first_starts(rows), self.first_starts(rows) + self.num_starts(rows)
        before, after = np.empty_like(first), np.empty_like(first)
        for places, frame_seconds, times in self._in_time(rows):
            if times is None:
                distance = max(math.ceil(guard / frame_seconds), 1)
                before[places], after[places] = starts[places] - distance + 1, starts[places] + distance
                continue
            pts, distance = _table(times), max(math.ceil(guard / times.time_base), 1)
            before[places] = np.searchsorted(pts, pts[starts[places]] - distance, side="right")
            after[places] = np.searchsorted(pts, pts[starts[places]] + distance, side="left")
        return np.maximum(before - first, 0), after, np.maximum(stop - after, 0)

    def _in_time(self, rows: _Int64) -> Iterator[tuple[_Int64, Fraction, FrameTimes | None]]:
        """The places in `rows` of rows whose frames are spaced alike: seconds of a frame, or else a table of times."""
        rates = self.manifest.media_rates
        kinds = rates.kind[self.manifest.media_id[rows]]
        for kind in np.unique(kinds).tolist():
            places, frame_seconds = np.flatnonzero(kinds == kind), rates.frame_seconds[kind]
            if frame_seconds is not None:
                yield places, frame_seconds, None
                continue
            for group, media_id in self._by_medium(rows, places):
                yield group, Fraction(0), self.times(media_id)

    def num_windows(self, rows: _Int64, first: _Int64, num_starts: _Int64) -> _Int64:
        """How many windows each row holds if they follow one another from `first` on."""
        result = -(-np.maximum(num_starts, 0) // self._of_kind(self._steps, rows))
        for places, grid in self._uneven(rows):
            facts = zip(places.tolist(), first[places].tolist(), num_starts[places].tolist(), strict=True)
            for place, begin, length in facts:
                result[place] = sum(1 for _ in grid.walk(begin, begin + length))
        return result

    def window_starts(self, rows: _Int64, first: _Int64, windows: _Int64) -> _Int64:
        """First frames of windows numbered in their rows, from `first` on."""
        result = first + windows * self._of_kind(self._steps, rows)
        for places, grid in self._uneven(rows):
            for place in places.tolist():
                walk = grid.walk(int(first[place]), int(self.manifest.stop_frame[rows[place]]))
                result[place] = next(itertools.islice(walk, int(windows[place]), None))
        return result

    def frames(self, rows: _Int64, starts: _Int64) -> _Int64:
        """The frames of the windows that start at `starts`, [shape=(len(rows), num_frames)]."""
        kinds = np.zeros(len(rows), np.int64) if self._kind is None else self._kind[self.manifest.media_id[rows]]
        result = np.repeat(starts[:, None], self._num_frames, axis=1)
        for kind in np.unique(kinds).tolist():
            period = self._periods[kind]
            if period is not None:
                offsets = [self._offset(period, number) for number in range(self._num_frames)]
                result[kinds == kind] += np.array(offsets, np.int64)
        for places, grid in self._uneven(rows):
            result[places] = grid.nearest(starts[places, None], range(self._num_frames))
        return result

    def needed_frames(self, row: int, room: _Room) -> int:
        """Source frames that a short row would need; on uneven frames as many as at their average rate."""
        media_id = int(self.manifest.media_id[row])
        kind = 0 if self._kind is None else int(self._kind[media_id])
        rates = self.manifest.media_rates
        time_kind = int(rates.kind[media_id])
        frame_seconds = rates.frame_seconds[time_kind] or 1 / rates.average_rate[time_kind]
        extra = room.extra_frames(frame_seconds)
        if self._periods[kind] is not None:
            needed = int(self._spans[kind]) + 1 + extra
        else:
            assert self._instant_seconds is not None
            needed = self._offset(self._instant_seconds / frame_seconds, self._num_frames - 1) + 1 + extra
        # Uneven frames may be fewer in the same time than on average.
        return max(needed, self.row_length(row) + 1)

    def row_length(self, row: int) -> int:
        """Frames of a row."""
        return int(self.manifest.stop_frame[row] - self.manifest.first_frame[row])

    def times(self, media_id: int) -> FrameTimes:
        """When the frames of a medium are shown."""
        video = self.manifest.media(media_id).video
        assert video is not None
        return video.times

    @staticmethod
    def _offset(period: Fraction | None, number: int) -> int:
        """The frame nearest to instant `number`, `period` frames apart; the earlier of two."""
        return 0 if period is None else max(math.ceil(number * period - Fraction(1, 2)), 0)

    def _of_kind(self, values: _Int64, rows: _Int64) -> _Int64:
        if len(values) == 1 or self._kind is None:
            return values[:1]  # one for all, by broadcasting
        of_row: _Int64 = values[self._kind[self.manifest.media_id[rows]]]
        return of_row

    def _uneven(self, rows: _Int64) -> Iterator[tuple[_Int64, _Grid]]:
        """The places in `rows` of rows that need the table of their medium, medium by medium."""
        if self._kind is None or not self._is_uneven.any():
            return
        places = np.flatnonzero(self._is_uneven[self._kind[self.manifest.media_id[rows]]])
        for group, media_id in self._by_medium(rows, places):
            yield group, self._grid(media_id)

    def _by_medium(self, rows: _Int64, places: _Int64) -> Iterator[tuple[_Int64, int]]:
        """These places in `rows`, medium by medium."""
        if not len(places):
            return
        media = self.manifest.media_id[rows[places]]
        order = np.argsort(media, kind="stable")
        distinct, begins = np.unique(media[order], return_index=True)
        for media_id, group in zip(distinct.tolist(), np.split(places[order], begins[1:]), strict=True):
            yield group, media_id

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

    def walk(self, first: int, stop: int) -> Iterator[int]:
        """Starts of the windows that follow one another from `first` on, all before `stop`."""
        while first < stop:
            yield first
            first = int(self._next[first])


class _ShortRows(Sequence[ShortRow]):
    """Short rows, made when asked for: there can be millions."""

    def __init__(self, spacing: _Spacing, room: _Room, rows: _Int64) -> None:
        self._spacing, self._room = spacing, room
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
        needed = self._spacing.needed_frames(row, self._room)
        return ShortRow(row, self._spacing.row_length(row), needed)


def _ceil_times(ticks: _Int64, factor: Fraction) -> _Int64:
    """ceil(ticks * factor), exactly."""
    return -((-ticks * factor.numerator) // factor.denominator)


def _table(times: FrameTimes) -> _Int64:
    """The pts of all frames."""
    return times.pts_of(np.arange(times.num_frames)) if times.table is None else times.table


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


def _used_kinds(manifest: Manifest) -> list[int]:
    kinds: list[int] = np.unique(manifest.media_rates.kind[manifest.used_media]).tolist()
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


def _rate(value: object) -> Fraction:
    try:
        return parse_rational(value)
    except ValueError as error:
        raise ValueError(f"fps must be a positive number of frames per second or None: {error}") from None


def parse_length(value: object) -> Fraction:
    """`audio_seconds` as a positive number.

    Raises:
        ValueError: If it is not one.
    """
    try:
        seconds = parse_seconds(value)
    except ValueError as error:
        raise ValueError(f"audio_seconds must be a positive number of seconds or None: {error}") from None
    if seconds <= 0:
        raise ValueError(f"audio_seconds must be positive or None, got {value!r}")
    return seconds
