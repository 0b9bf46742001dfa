"""Out-of-sync sampling: rules that say how far the sound of a clip is from its picture, and what label that gets.

An offset is positive where the sound leads: a clip with offset x has the sound of x seconds later, which comes early.
Every rule here *induces* offsets, which are what a model learns; the `av_offset` of an annotation is one that the file
has already, and is corrected on reading:

    start of the sound = time of the first frame - av_offset + induced offset

The sound of an out-of-sync clip begins where that of a clip in sync could begin too: between the first and the last
frame of the row at which a window can start. So it is never told by silence, nor by what stands beside the annotation.
"""

from __future__ import annotations

import csv
import hashlib
import math
import os
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

import numpy as np
import numpy.typing as npt

from avloader import keyed
from avloader.errors import ManifestError
from avloader.timeline import parse_rational, parse_seconds, round_half_up

__all__ = [
    "AllPairs",
    "BinaryOffsets",
    "FixedOffset",
    "FixedOffsets",
    "GridOffsets",
    "OffsetRule",
    "OtherClip",
    "OtherStart",
    "from_itu",
    "from_synchformer",
    "from_syncnet",
    "from_voxceleb2",
]

_MICROSECOND = Fraction(1, 10**6)

_Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherStart:
    """Sound from another start in the same row: Wav2Lip, LatentSync.

    The other start is any frame of the row at which a window can start too, all equally likely. The label is 1 in sync,
    0 out of sync. A row is too short if one of its windows has no other start.

    Attributes:
        probability: Of a clip to be out of sync, in [0, 1].
        guard_seconds: The other start is at least so far away; 0: any other frame, as those models do, so that most
            of the sound may still be right; "clip": the longer of picture and sound, so that they do not overlap.
    """

    probability: float | Fraction = 0.5
    guard_seconds: float | str | Fraction | Literal["clip"] = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "probability", _probability(self.probability))
        if self.guard_seconds != "clip":
            object.__setattr__(self, "guard_seconds", _seconds("guard_seconds", self.guard_seconds, minimum=0))

    def guard(self, clip_seconds: Fraction) -> Fraction:
        """The guard in seconds, for clips of this length."""
        return clip_seconds if self.guard_seconds == "clip" else Fraction(self.guard_seconds)

    def is_out(self, items: _Int64, *, seed: int, epoch: int) -> npt.NDArray[np.bool_]:
        """Which clips are out of sync, bool [shape=(len(items),)]."""
        return _chance(items, Fraction(self.probability), seed=seed, epoch=epoch)


@dataclass(frozen=True, slots=True)
class AllPairs:
    """Every picture of a clip with the sound of every picture of the same clip: syncnet_trainer.

    The clip itself is in sync. The label is [0, 1, ... F - 1]: picture i belongs with the sound that starts at picture
    i, all others are negatives; `AVBatch.pair_offset_seconds` has the true offset of every pair.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class GridOffsets:
    """An offset of a regular grid, all equally likely; the label is its index: Synchformer, SparseSync.

    With ``clips="random"`` the window is drawn among those that the offset leaves room for; else rows are narrowed so
    that every offset has room.

    Attributes:
        max_seconds: The grid reaches from -max_seconds (label 0) to max_seconds, a microsecond or more.
        num_classes: Points of the grid, >= 2; odd if 0 is to be one of them.
        jitter_seconds: Moves each offset by a whole number of microseconds within +- this, less than half a step.
    """

    max_seconds: float | str | Fraction = 2
    num_classes: int = 21
    jitter_seconds: float | str | Fraction = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "max_seconds", _seconds("max_seconds", self.max_seconds, minimum=_MICROSECOND))
        object.__setattr__(self, "jitter_seconds", _seconds("jitter_seconds", self.jitter_seconds, minimum=0))
        if isinstance(self.num_classes, bool) or not isinstance(self.num_classes, int):
            raise TypeError(f"num_classes={self.num_classes!r} must be an int")
        if not 2 <= self.num_classes < 2**31:
            raise ValueError(f"num_classes={self.num_classes} must be in [2, {2**31})")
        if 2 * Fraction(self.jitter_seconds) >= self.step:
            raise ValueError(
                f"jitter_seconds={float(self.jitter_seconds):g} must be less than half of the grid's step, "
                f"{float(self.step):g} s"
            )

    @property
    def step(self) -> Fraction:
        """Seconds from one class to the next."""
        return 2 * Fraction(self.max_seconds) / (self.num_classes - 1)

    @property
    def unit(self) -> Fraction:
        """All offsets are multiples of it."""
        return Fraction(1, math.lcm(self.step.denominator, Fraction(self.max_seconds).denominator, 10**6))

    @property
    def range(self) -> tuple[Fraction, Fraction]:
        """The lowest and the highest offset."""
        reach = Fraction(self.max_seconds) + Fraction(self.jitter_seconds)
        return -reach, reach

    def draw(self, items: _Int64, *, seed: int, epoch: int) -> tuple[_Int64, _Int64]:
        """Offsets in multiples of `unit` and labels, int64 [shape=(len(items),)] both."""
        random = keyed.bits(items, seed=seed, epoch=epoch, purpose=keyed.Purpose.OFFSET)
        labels = keyed.below(np.full(len(items), self.num_classes), random)
        offsets = labels * _whole(self.step / self.unit) - _whole(Fraction(self.max_seconds) / self.unit)
        jitter = math.floor(Fraction(self.jitter_seconds) / _MICROSECOND)
        if jitter:
            random = keyed.bits(items, seed=seed, epoch=epoch, purpose=keyed.Purpose.OFFSET_PLACE)
            moves = keyed.below(np.full(len(items), 2 * jitter + 1), random) - jitter
            offsets += moves * _whole(_MICROSECOND / self.unit)
        return offsets, labels

    def label(self, offset: Fraction) -> int:
        """The class nearest to an offset, the outermost for those beyond the grid."""
        nearest = round_half_up((offset + Fraction(self.max_seconds)) / self.step)
        return min(max(nearest, 0), self.num_classes - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class BinaryOffsets:
    """In sync within a band of offsets that nobody notices, out of sync beyond it: Synchformer's ``uniform_binary``.

    In sync (label 1) any offset of the band is equally likely, out of sync (label 0) any other up to `max_seconds`. All
    are whole numbers of microseconds. Windows are placed as for `GridOffsets`.

    Attributes:
        probability: Of a clip to be out of sync, in [0, 1].
        in_sync: Lowest and highest offset of the band; the default is what ITU-R BT.1359 calls detectable.
        guard_seconds: Offsets up to so far outside the band are not used, >= 0.
        max_seconds: No offset is larger.
    """

    probability: float | Fraction = 0.5
    in_sync: tuple[float | str | Fraction, float | str | Fraction] = (Fraction(-125, 1000), Fraction(45, 1000))
    guard_seconds: float | str | Fraction = 0
    max_seconds: float | str | Fraction = 2

    def __post_init__(self) -> None:
        object.__setattr__(self, "probability", _probability(self.probability))
        if not isinstance(self.in_sync, tuple) or len(self.in_sync) != 2:
            raise TypeError(f"in_sync={self.in_sync!r} must be (lowest, highest) in seconds")
        low, high = (_seconds("in_sync", value) for value in self.in_sync)
        if low > high:
            raise ValueError(f"in_sync={self.in_sync!r} must be (lowest, highest) in seconds")
        object.__setattr__(self, "in_sync", (low, high))
        object.__setattr__(self, "guard_seconds", _seconds("guard_seconds", self.guard_seconds, minimum=0))
        object.__setattr__(self, "max_seconds", _seconds("max_seconds", self.max_seconds, minimum=0))
        if min(self._outside) <= 0:
            raise ValueError(
                f"max_seconds={float(self.max_seconds):g} must lie beyond in_sync={float(low):g} ... {float(high):g} "
                f"and guard_seconds={float(self.guard_seconds):g} on both sides"
            )

    @property
    def unit(self) -> Fraction:
        """All offsets are multiples of it."""
        return _MICROSECOND

    @property
    def range(self) -> tuple[Fraction, Fraction]:
        """The lowest and the highest offset."""
        reach = Fraction(self.max_seconds)
        return -reach, reach

    @property
    def _outside(self) -> tuple[int, int]:
        """How many offsets lie below and above the band and its guard."""
        low, high = map(_microseconds, self.in_sync)
        guard, reach = _microseconds(self.guard_seconds), _microseconds(self.max_seconds)
        return low - guard + reach, reach - high - guard

    def draw(self, items: _Int64, *, seed: int, epoch: int) -> tuple[_Int64, _Int64]:
        """Offsets in multiples of `unit` and labels, int64 [shape=(len(items),)] both."""
        is_out = _chance(items, Fraction(self.probability), seed=seed, epoch=epoch)
        low, high = map(_microseconds, self.in_sync)
        below, above = self._outside
        reach = _microseconds(self.max_seconds)
        random = keyed.bits(items, seed=seed, epoch=epoch, purpose=keyed.Purpose.OFFSET_PLACE)
        places = keyed.below(np.where(is_out, below + above, high - low + 1), random)
        outside = np.where(places < below, places - reach, places - below + reach - above + 1)
        return np.where(is_out, outside, low + places), np.where(is_out, 0, 1)

    def label(self, offset: Fraction) -> int:
        """1 for an offset within the band, else 0."""
        low, high = (Fraction(bound) for bound in self.in_sync)
        return int(low <= offset <= high)


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherClip:
    """Sound of another row, which shares neither picture nor sound file with this one: contrastive learning.

    Row and start are drawn: every such row is equally likely, and every start of a window in it. The label is 1 for the
    clip's own sound, 0 for another's; `AVBatch.audio_row` names the row, `offset_seconds` is NaN where it is another.

    Attributes:
        probability: Of a clip to get another's sound, in [0, 1].
    """

    probability: float | Fraction = 0.5

    def __post_init__(self) -> None:
        object.__setattr__(self, "probability", _probability(self.probability))

    def is_out(self, items: _Int64, *, seed: int, epoch: int) -> npt.NDArray[np.bool_]:
        """Which clips get another's sound, bool [shape=(len(items),)]."""
        return _chance(items, Fraction(self.probability), seed=seed, epoch=epoch)


@dataclass(frozen=True, slots=True)
class FixedOffset:
    """A line of a fixed table.

    Attributes:
        line: 1-based line of the file.
        path: Path of the medium as annotated, or only its name, with or without ending.
        start: Media time at which the picture starts; the nearest frame counts.
        offset: Induced offset in seconds.
    """

    line: int
    path: str
    start: Fraction
    offset: Fraction


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedOffsets:
    """Clips and offsets of a table, for evaluation: Synchformer's ``fixed_offsets`` files.

    A CSV with the columns ``path`` (or ``video_id``), ``vstart_sec`` and ``offset_sec``, others do not count. Each line
    is one clip of every epoch, in this order. It needs ``clips="all"``.

    Attributes:
        table: Path of the file.
        labels: The rule whose labels the offsets get.
        sha256: Of the file as it was read.
        lines: What it says.
    """

    table: str | os.PathLike[str] = field(repr=False)
    labels: GridOffsets | BinaryOffsets = field(default_factory=GridOffsets)
    sha256: str = field(init=False)
    lines: tuple[FixedOffset, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.labels, (GridOffsets, BinaryOffsets)):
            raise TypeError(f"labels={self.labels!r} must be GridOffsets or BinaryOffsets")
        lines, digest = _read_table(self.table)
        object.__setattr__(self, "lines", lines)
        object.__setattr__(self, "sha256", digest)


OffsetRule = OtherStart | AllPairs | GridOffsets | BinaryOffsets | OtherClip | FixedOffsets
"""Any of the rules."""


# The offsets of others as seconds, positive where the sound leads -----------------------------------------------------


def from_syncnet(frames: int, fps: float | str | Fraction = 25) -> Fraction:
    """`av_offset` from SyncNet's "AV offset", in frames; also from the table of syncnet_trainer.

    SyncNet matches picture i with sound i - offset, so a positive one says that the sound leads in the file
    (syncnet_python, ``SyncNetInstance.py``: ``offset = vshift - minidx``).
    """
    return Fraction(frames) / _fps(fps)


def from_voxceleb2(frames: int) -> Fraction:
    """`av_offset` from the line "Offset" of VoxCeleb2's text files: SyncNet's, in frames of 25 a second."""
    return from_syncnet(frames, 25)


def from_synchformer(seconds: float | str | Fraction) -> Fraction:
    """Induced offset from Synchformer's ``offset_sec``.

    Its sound is cut at ``v_start + offset_sec`` (``dataset/transforms.py``), so a positive one makes the sound lead.
    Where its model finds offset_sec in a file, the file's `av_offset` is the same number.
    """
    return _seconds("seconds", seconds)


def from_itu(milliseconds: float | str | Fraction) -> Fraction:
    """`av_offset` from milliseconds as in ITU-R BT.1359: "a positive value indicates that sound is advanced"."""
    return _seconds("milliseconds", milliseconds) / 1000


# Helpers --------------------------------------------------------------------------------------------------------------


def _chance(items: _Int64, probability: Fraction, *, seed: int, epoch: int) -> npt.NDArray[np.bool_]:
    random = keyed.bits(items, seed=seed, epoch=epoch, purpose=keyed.Purpose.OFFSET)
    drawn: npt.NDArray[np.bool_] = (
        keyed.below(np.full(len(items), probability.denominator), random) < probability.numerator
    )
    return drawn


def _probability(value: object) -> Fraction:
    message = f"probability={value!r} must be a number in [0, 1]"
    if isinstance(value, bool) or not isinstance(value, (int, float, Fraction)):
        raise TypeError(message)
    try:
        exact = parse_seconds(value).limit_denominator(10**9)
    except ValueError:
        raise ValueError(message) from None
    if not 0 <= exact <= 1:
        raise ValueError(message)
    return exact


def _seconds(name: str, value: object, *, minimum: Fraction | int | None = None) -> Fraction:
    try:
        seconds = parse_seconds(value)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    if minimum is not None and seconds < minimum:
        raise ValueError(f"{name}={value!r} must be at least {float(minimum):g}")
    if abs(seconds) > 1000:
        raise ValueError(f"{name}={value!r} must be at most 1000")
    return seconds


def _fps(value: object) -> Fraction:
    try:
        return parse_rational(value)
    except ValueError as error:
        raise ValueError(f"fps must be a positive number of frames per second: {error}") from None


def _whole(value: Fraction) -> int:
    assert value.denominator == 1
    return value.numerator


def _microseconds(seconds: float | str | Fraction) -> int:
    return round_half_up(Fraction(seconds) / _MICROSECOND)


def _read_table(table: str | os.PathLike[str]) -> tuple[tuple[FixedOffset, ...], str]:
    """The lines of a table of fixed offsets, and the digest of the file."""
    try:
        with open(table, "rb") as file:
            content = file.read()
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise ManifestError(
            f"the table of offsets cannot be read ({error.strerror})", path=table, remedy="Name a CSV file"
        ) from error
    except UnicodeDecodeError as error:
        raise ManifestError(f"is not UTF-8 text ({error.reason})", path=table, remedy="Name a CSV file") from error
    rows = csv.reader(text.splitlines())
    names = [name.strip() for name in next(rows, [])]
    key = "path" if "path" in names else "video_id"
    missing = [name for name in (key, "vstart_sec", "offset_sec") if name not in names]
    if missing:
        raise ManifestError(
            f"the header of the table of offsets lacks {', '.join(missing)}; it is {','.join(names)[:80]!r}",
            path=table,
            remedy="Write path,vstart_sec,offset_sec as its first line",
        )
    found = []
    for values in rows:
        if not values:
            continue
        fields = dict(zip(names, map(str.strip, values), strict=False))
        try:
            start, offset = (_seconds(name, fields.get(name, "")) for name in ("vstart_sec", "offset_sec"))
        except ValueError as error:
            raise ManifestError(str(error), path=table, row=rows.line_num, row_name="line") from None
        found.append(FixedOffset(rows.line_num, fields[key], start, offset))
    if not found:
        raise ManifestError("the table of offsets holds no line", path=table, remedy="Name another")
    return tuple(found), hashlib.sha256(content).hexdigest()
