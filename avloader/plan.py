"""(manifest, options, seed, epoch, rank) -> ordered clips, each with its exact frames and sound. All choice is here.

Randomness is keyed, not drawn in turn: Philox keyed by (seed, epoch, row, purpose), so that a clip does not depend on
batch size, workers, lanes, ranks, or on where a run resumed.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, Protocol, get_args, overload

import numpy as np
import numpy.typing as npt

from avloader import keyed
from avloader.epochs import Clip, EpochPlan, check_integer
from avloader.errors import ManifestError
from avloader.manifest import Manifest
from avloader.offsets import (
    AllPairs,
    BinaryOffsets,
    FixedOffsets,
    GridOffsets,
    OffsetRule,
    OtherClip,
    OtherStart,
)
from avloader.out_of_sync import FixedClips, Induced, OtherRows, Room, SoundStarts
from avloader.spacing import Spacing
from avloader.timeline import parse_rational, parse_seconds

__all__ = ["Plan", "PlanOptions", "ShortRow", "SoundPlace", "Windows", "parse_length"]

Windows = Literal["all", "first", "center", "random"]
SoundPlace = Literal["clip", "row", "around"]

_PLACES_PER_SECOND = 10**6  # where sound can begin around a clip's frames
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

        spacing = functools.partial(
            Spacing, manifest, num_frames=options.num_frames, stride=options.stride, fps=options.fps
        )
        self._spacing = spacing()
        # Whichever speed is drawn later, the window lies in its row.
        speeds = () if options.speeds is None else options.speeds.factors
        self._at_speed = [spacing(speed=factor) for factor in speeds]
        self._widest = max(zip(speeds, self._at_speed, strict=True))[1] if speeds else self._spacing
        self._room = Room(
            self._widest,
            options.offsets,
            max(self.clip_seconds or sound, sound),
            is_random=options.clips == "random",
        )
        is_short, self._ends = self._count_clips()
        short = np.flatnonzero(is_short)
        self.short_rows = _ShortRows(self._widest, self._room, short)
        # Where every row has its clip, clip and row are the same number.
        self._rows: _Int64 | None = None if self._ends is not None or not len(short) else np.flatnonzero(~is_short)
        self._num_clips = len(manifest) - len(short) if self._ends is None else int(self._ends[-1])
        self._fixed: FixedClips | None = None
        if isinstance(options.offsets, FixedOffsets):
            self._fixed = FixedClips(self._spacing, options.offsets)
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
        self._others = OtherRows(manifest, ~is_short) if isinstance(options.offsets, OtherClip) else None
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

    def _draw_offsets(self, items: _Int64) -> Induced:
        """What the rule decides before a window is chosen."""
        rule, key = self.options.offsets, {"seed": self.options.seed, "epoch": self.epoch}
        nothing = np.zeros(len(items), np.int64)
        if isinstance(rule, (GridOffsets, BinaryOffsets)):
            ticks, labels = rule.draw(items, **key)
            return Induced(ticks, rule.unit, nothing.astype(np.bool_), labels)
        if isinstance(rule, (OtherStart, OtherClip)):
            is_out = rule.is_out(items, **key)
            return Induced(nothing, Fraction(1), is_out, np.where(is_out, 0, 1))
        return Induced(nothing, Fraction(1), nothing.astype(np.bool_), nothing)

    def _sounds(self, items: _Int64, rows: _Int64, starts: _Int64, induced: Induced) -> SoundStarts:
        """Where the sound is taken from, before it is shifted."""
        places = np.flatnonzero(induced.is_out)
        if not len(places):
            return SoundStarts(rows, starts)
        sound_rows, sound_frames = rows.copy(), starts.copy()
        random = self._bits(items[places], keyed.Purpose.OFFSET_PLACE)
        if self._others is None:
            sound_frames[places] = self._room.other_starts(rows[places], starts[places], random)
        else:
            others = self._others.draw(rows[places], self._bits(items[places], keyed.Purpose.OTHER_ROW))
            first, num_starts = self._room.starts(others)
            sound_rows[places] = others
            sound_frames[places] = first + keyed.below(num_starts, random)
        return SoundStarts(sound_rows, sound_frames)

    def _sync_labels(self, induced: Induced) -> Iterable[int | tuple[int, ...] | None]:
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
class _Place:
    """What was drawn for a clip: where its pictures are cropped, and by how much its sound begins before its frames."""

    crop: tuple[int, int]
    lead: int


class _ShortRows(Sequence[ShortRow]):
    """Short rows, made when asked for: there can be millions."""

    def __init__(self, spacing: Spacing, room: Room, rows: _Int64) -> None:
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
        needed = self._spacing.needed_frames(row, self._room.extra_frames)
        return ShortRow(row, self._spacing.row_length(row), needed)


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
