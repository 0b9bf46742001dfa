"""The same for sound alone: (manifest, options, seed, epoch) -> ordered clips, each with its exact samples.

A clip never leaves its row. Where clips may have any length, those of similar length can follow one another, so that a
batch needs little padding; that too is decided here, by manifest, options, seed and epoch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import get_args, overload

import numpy as np
import numpy.typing as npt

from avloader import keyed
from avloader.epochs import Clip, EpochPlan, check_integer
from avloader.errors import ManifestError
from avloader.manifest import Manifest
from avloader.plan import Windows, parse_length
from avloader.timeline import samples_to_seconds, seconds_to_samples

__all__ = ["ShortSound", "SoundOptions", "SoundPlan"]

_SPREAD = 0.1  # by up to this part clips count as longer than they are when they are sorted
_MOST_STARTS = 2**31 - 1  # that `keyed.below` draws from: 12 hours at 48 kHz

_Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class SoundOptions:
    """What decides which clips of sound an epoch holds; validated on construction.

    Attributes:
        audio_seconds: Length of a clip, > 0; None: each row as a whole.
        clips: Windows of a row: "all" (one after another, not overlapping), "first", "center", "random" (one, another
            in each epoch); a row that is shorter is one clip.
        shuffle: Permute the clips of an epoch, another permutation in each epoch.
        seed: 0 <= seed < 2**64.
        bucket: So many clips of similar length follow one another, > 0; None: any length. For rows as a whole.
        least_seconds: Rows with less sound hold no clip, >= 0.

    Raises:
        TypeError, ValueError: If an option is not what is said above.
    """

    audio_seconds: Fraction | None = None
    clips: Windows = "all"
    shuffle: bool = False
    seed: int = 0
    bucket: int | None = None
    least_seconds: Fraction = Fraction(0)

    def __post_init__(self) -> None:
        check_integer("seed", self.seed, 0, 2**64)
        if self.clips not in get_args(Windows):
            raise ValueError(f"clips must be one of {', '.join(get_args(Windows))}, got {self.clips!r}")
        if not isinstance(self.shuffle, bool):
            raise TypeError(f"shuffle must be True or False, got {self.shuffle!r}")
        if self.audio_seconds is not None:
            object.__setattr__(self, "audio_seconds", parse_length(self.audio_seconds))
        if self.bucket is not None:
            check_integer("bucket", self.bucket, 1)
            if self.audio_seconds is not None:
                raise ValueError(f"bucket={self.bucket} is for audio_seconds=None: else all clips have one length")


@dataclass(frozen=True, slots=True)
class ShortSound:
    """A row that holds no clip of sound.

    Attributes:
        row: Manifest row.
        seconds: Sound that it has.
        needed_seconds: Sound that a clip needs.
    """

    row: int
    seconds: float
    needed_seconds: float

    def __str__(self) -> str:
        if self.seconds <= 0:
            return "no sound"
        return f"{self.seconds:g} s of sound, but a clip needs {self.needed_seconds:g} s"


class SoundPlan(EpochPlan):
    """The clips of sound of one epoch, over all ranks.

    With `audio_seconds` a clip is a window that lies wholly in its row: "all" one after the other, what is left at the
    end of a row left out; "center" leaves as many starts before it as after it, or one less. Of a row that is shorter
    the clip is all there is. Windows start on a sample of the medium.

    With `bucket`, clips are sorted by length and cut into buckets. With `shuffle` each counts as up to a tenth longer
    for that, so that buckets differ from epoch to epoch, and they and the clips in each are shuffled; what is left over
    by the last bucket, the longest clips, comes last.

    Attributes:
        options: The options.

    Args:
        manifest: What to take clips from.
        options: What clips to take.
        epoch: 0 <= epoch < 2**32.

    Raises:
        ManifestError: No row holds a clip.
    """

    short_rows: Sequence[ShortSound]

    def __init__(self, manifest: Manifest, options: SoundOptions, *, epoch: int = 0) -> None:
        check_integer("epoch", epoch, 0, 2**32)
        manifest.check_streams("audio")
        self.manifest, self.options, self.epoch = manifest, options, epoch
        self.clip_seconds, self._order = None, None
        sounds, audio_id = manifest.media_sounds, manifest.audio_id
        begin = manifest.column("audio_start_sample")
        end = np.minimum(begin + manifest.column("audio_num_samples"), sounds.stop_sample[audio_id])
        self._first: _Int64 = np.maximum(begin, sounds.first_sample[audio_id])
        self._length: _Int64 = end - self._first
        self._rates, kind = np.unique(sounds.sample_rate[audio_id], return_inverse=True)
        self._kind: _Int64 = kind
        rates = self._rates.tolist()
        least = np.array([max(math.ceil(options.least_seconds * rate), 1) for rate in rates])[kind]
        is_short = self._length < least
        self.short_rows = _ShortSounds(self, np.flatnonzero(is_short))
        self._rows: _Int64 | None = np.flatnonzero(~is_short) if is_short.any() else None
        self._num_clips = len(manifest) - len(self.short_rows)
        if not self._num_clips:
            raise ManifestError(f"no row holds a clip: the first has {self.short_rows[0]}", path=manifest.path)
        self._window: _Int64 | None = None  # samples of a window, by kind of rate
        self._ends: _Int64 | None = None  # where the clips of each row end among all, if a row can hold several
        if options.audio_seconds is None:
            longest = (int(self._length[kind == number].max()) for number in range(len(rates)))
            self.audio_seconds = max(map(samples_to_seconds, longest, rates))
        else:
            self.audio_seconds = options.audio_seconds
            self._window = np.array([max(seconds_to_samples(options.audio_seconds, rate), 1) for rate in rates])
            if options.clips == "all":
                num_windows = np.maximum(self._length // self._window[kind], 1)
                self._ends = np.cumsum(np.where(is_short, 0, num_windows))
                self._num_clips = int(self._ends[-1])

    def _make_order(self) -> _Int64 | None:
        options, num_clips = self.options, self._num_clips
        order: _Int64 | None = None
        if options.shuffle:
            order = keyed.permutation(num_clips, seed=options.seed, epoch=self.epoch)
        if options.bucket is None:
            return order
        places = np.arange(num_clips)
        clips = places if order is None else order
        rows = clips if self._rows is None else self._rows[clips]
        length = self._length[rows] / self._rates[self._kind[rows]]
        key = {"seed": options.seed, "epoch": self.epoch}
        if options.shuffle:  # other neighbours in each epoch
            random = keyed.bits(clips, **key, purpose=keyed.Purpose.LENGTH) >> np.uint64(11)
            length *= 1 + _SPREAD * 2.0**-53 * random
        by_length = np.lexsort((places, length))
        if options.shuffle:
            num_buckets = num_clips // options.bucket
            rank = np.arange(num_buckets + 1)  # what is left over stays behind them
            rank[keyed.bits(rank[:-1], **key, purpose=keyed.Purpose.BUCKET).argsort(kind="stable")] = rank[:-1].copy()
            by_length = by_length[np.lexsort((by_length, rank[places // options.bucket]))]
        result: _Int64 = clips[by_length]
        return result

    def _resolve(self, positions: list[int]) -> list[Clip]:
        options, manifest = self.options, self.manifest
        clips = np.array(positions, np.int64)
        order = self._ordered()
        if order is not None:
            clips = order[clips]
        first_clips: _Int64 | None = None
        if self._ends is None:
            rows = clips if self._rows is None else self._rows[clips]
        else:
            rows = np.searchsorted(self._ends, clips, side="right")
            first_clips = np.where(rows > 0, self._ends[rows - 1], 0)
        starts, lengths = self._first[rows], self._length[rows]
        if self._window is not None:
            window = self._window[self._kind[rows]]
            room = np.maximum(lengths - window, 0)
            if first_clips is not None:
                starts = starts + (clips - first_clips) * window
            elif options.clips == "center":
                starts = starts + room // 2
            elif options.clips == "random":
                purpose = keyed.Purpose.WINDOW
                random = keyed.bits(rows, seed=options.seed, epoch=self.epoch, purpose=purpose)
                starts = starts + keyed.below(np.minimum(room + 1, _MOST_STARTS), random)
            lengths = np.minimum(lengths, window)
        columns = (rows, manifest.audio_id[rows], manifest.label[rows], starts, lengths)
        facts = zip(positions, *(column.tolist() for column in columns), strict=True)
        return [self._clip(*each) for each in facts]

    def _clip(self, position: int, row: int, audio_id: int, label: int, start: int, length: int) -> Clip:
        audio = self.manifest.media(audio_id).audio
        assert audio is not None
        return Clip(
            position=position,
            row=row,
            media_id=audio_id,
            audio_id=audio_id,
            frames=(),
            audio_start=audio.start_seconds + samples_to_seconds(start, audio.sample_rate),
            offset_seconds=Fraction(0),
            label=label,
            audio_row=row,
            sync_label=None,
            sound_seconds=samples_to_seconds(length, audio.sample_rate),
        )


class _ShortSounds(Sequence[ShortSound]):
    """Short rows, made when asked for: there can be millions."""

    def __init__(self, plan: SoundPlan, rows: _Int64) -> None:
        self._least_seconds = float(plan.options.least_seconds)
        self._rows = rows
        self._seconds = np.maximum(plan._length[rows], 0) / plan._rates[plan._kind[rows]]

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> ShortSound: ...
    @overload
    def __getitem__(self, index: slice) -> list[ShortSound]: ...
    def __getitem__(self, index: int | slice) -> ShortSound | list[ShortSound]:
        if isinstance(index, slice):
            return [self[place] for place in range(len(self))[index]]
        return ShortSound(int(self._rows[index]), float(self._seconds[index]), self._least_seconds)
