"""Exact time: `Fraction` and integers only, one rounding rule, no input or output.

The *media timeline* of a file counts seconds from the container's start, which is what players and ``ffmpeg -ss`` count
from. Each stream keeps its own start on it. A time stamp (`pts`) is an integer count of a stream's `time_base` seconds:

    media time = pts * time_base - origin        origin: the container's start, in seconds on the stream's clock

Ranges are half-open everywhere.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = [
    "ANNOTATION_TOLERANCE",
    "FrameTimes",
    "Rounding",
    "divide_half_up",
    "nanoseconds_to_text",
    "parse_rational",
    "parse_seconds",
    "pts_to_media_time",
    "pts_to_seconds",
    "round_half_up",
    "rounding",
    "samples_to_seconds",
    "seconds_to_samples",
    "seconds_to_text",
]

ANNOTATION_TOLERANCE = Fraction(1, 2000)
"""Half a millisecond: what a time loses when it is rounded to a millisecond, in a CSV or in a container."""


def round_half_up(value: Fraction | int) -> int:
    """The nearest integer, halves upwards: floor(value + 1/2). The only rounding rule of the package."""
    return divide_half_up(value.numerator, value.denominator)


def divide_half_up(dividend: int, divisor: int) -> int:
    """The integer nearest to dividend / divisor, halves upwards; divisor > 0."""
    return (2 * dividend + divisor) // (2 * divisor)


class Rounding(NamedTuple):
    """round_half_up(value * scale + offset) for many integers, each in one step; made by `rounding`.

    Attributes:
        factor, shift, divisor: It is floor((value * factor + shift) / divisor).
    """

    factor: int
    shift: int
    divisor: int

    def __call__(self, value: int) -> int:
        """The rounded integer."""
        return (value * self.factor + self.shift) // self.divisor


def rounding(scale: Fraction, offset: Fraction | int = 0) -> Rounding:
    """See `Rounding`."""
    divisor = 2 * scale.denominator * offset.denominator
    shift = 2 * offset.numerator * scale.denominator + divisor // 2
    return Rounding(2 * scale.numerator * offset.denominator, shift, divisor)


def pts_to_seconds(pts: int, time_base: Fraction) -> Fraction:
    """Seconds on the stream's own clock."""
    return Fraction(pts * time_base.numerator, time_base.denominator)


def pts_to_media_time(pts: int, time_base: Fraction, origin: Fraction) -> Fraction:
    """Seconds on the media timeline; `origin` is the container's start in seconds on the stream's clock."""
    # In integers: a `Fraction` reduces after every step, and millions of rows are resolved.
    seconds = int(pts) * time_base.numerator * origin.denominator - origin.numerator * time_base.denominator
    return Fraction(seconds, time_base.denominator * origin.denominator)


def seconds_to_samples(seconds: Fraction, sample_rate: int) -> int:
    """Index of the audio sample nearest to `seconds` after sample 0."""
    return divide_half_up(seconds.numerator * sample_rate, seconds.denominator)


def samples_to_seconds(num_samples: int, sample_rate: int) -> Fraction:
    """Duration of `num_samples` audio samples."""
    return Fraction(num_samples, sample_rate)


def parse_seconds(value: object) -> Fraction:
    """Seconds as an exact `Fraction`.

    Args:
        value: A decimal text ("12.345", "1e-3"), an `int`, `float`, `Decimal` or `Fraction`. A float stands for the
            shortest decimal that prints as it: 0.1 is one tenth.

    Raises:
        ValueError: If it is not a finite number.
    """
    if type(value) is str:
        return _parse_text(value)
    if isinstance(value, Fraction):
        return value
    if isinstance(value, bool):
        raise ValueError(f"{value!r} is not a number of seconds")
    return _parse_decimal(value)


@functools.lru_cache(maxsize=8192)  # tables of clips have the same times again and again
def _parse_text(text: str) -> Fraction:
    whole, _, part = text.partition(".")
    if len(text) <= 18 and text.isascii() and whole.isdigit() and (part.isdigit() or text == whole):
        return Fraction(int(whole + part), 10 ** len(part))
    return _parse_decimal(text)


def _parse_decimal(value: object) -> Fraction:
    try:
        number = Decimal(str(value).strip())
    except InvalidOperation:
        raise ValueError(f"{value!r} is not a number of seconds") from None
    if not number.is_finite():
        raise ValueError(f"{value!r} is not a finite number of seconds")
    if number and abs(number.adjusted()) > 18:  # also keeps 1e999999 from becoming a million-digit integer
        raise ValueError(f"{value!r} is not a plausible number of seconds")
    return Fraction(number)


def seconds_to_text(seconds: Fraction) -> str:
    """Decimal seconds rounded to a nanosecond, without trailing zeros: "1.5", "0.033366667"."""
    return nanoseconds_to_text(divide_half_up(seconds.numerator * 10**9, seconds.denominator))


def nanoseconds_to_text(nanoseconds: int) -> str:
    """The same of nanoseconds."""
    sign = "-" if nanoseconds < 0 else ""
    whole, rest = divmod(abs(nanoseconds), 10**9)
    return f"{sign}{whole}.{rest:09d}".rstrip("0").rstrip(".") if rest else f"{sign}{whole}"


def parse_rational(value: object) -> Fraction:
    """A rate or time base as an exact `Fraction`: "30000/1001", "25", "29.97" (as 2997/100), 25, 12.5.

    Raises:
        ValueError: If it is not a positive finite number.
    """
    try:
        number = Fraction(str(value).strip())
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"{value!r} is not a rational number") from None
    if number <= 0:
        raise ValueError(f"{value!r} is not a positive number")
    return number


@dataclass(frozen=True, eq=False)
class FrameTimes:
    """Presentation times of the displayed frames of a video stream, in presentation order.

    Frame 0 is the first frame that a player shows; hidden pre-roll frames do not count. Either constant (`table` is
    None: frame `i` has pts ``first_pts + i * step_pts``) or a table of pts.

    Attributes:
        time_base: Seconds per tick of pts.
        origin: The container's start in seconds on the stream's clock; media time is ``pts * time_base - origin``.
        first_pts: pts of frame 0.
        step_pts: Ticks between two frames; for a table, the duration of the last frame in ticks.
        num_frames: Number of displayed frames, > 0.
        table: int64 [shape=(num_frames,)], strictly increasing, or None.
    """

    time_base: Fraction
    origin: Fraction
    first_pts: int
    step_pts: int
    num_frames: int
    table: npt.NDArray[np.int64] | None = None

    @classmethod
    def from_pts(
        cls, pts: Iterable[int] | npt.NDArray[np.int64], *, time_base: Fraction, origin: Fraction, last_duration: int
    ) -> FrameTimes:
        """Times from sorted, distinct pts; stored as constant if their spacing is constant.

        Args:
            pts: pts of every displayed frame, strictly increasing, at least one.
            time_base: Seconds per tick.
            origin: The container's start in seconds on the stream's clock.
            last_duration: Duration of the last frame in ticks; 0 if unknown (then the spacing before it, or 1 tick).
        """
        table = np.asarray(pts if isinstance(pts, np.ndarray) else list(pts), dtype=np.int64)
        if not len(table):
            raise ValueError("pts must hold at least one frame")
        steps = np.diff(table)
        if len(steps) and steps.min() <= 0:
            raise ValueError("pts must be strictly increasing")
        last = int(last_duration) or (int(steps[-1]) if len(steps) else 1)
        if not len(steps) or steps.min() == steps.max():
            step = int(steps[0]) if len(steps) else last
            return cls(time_base, origin, int(table[0]), step, len(table))
        return cls(time_base, origin, int(table[0]), last, len(table), table)

    def __len__(self) -> int:
        return self.num_frames

    @property
    def is_constant(self) -> bool:
        """Whether the spacing of the frames is exactly constant in ticks."""
        return self.table is None

    def pts(self, index: int) -> int:
        """Pts of frame `index`, 0 <= index < num_frames."""
        if not 0 <= index < self.num_frames:
            raise IndexError(f"frame {index} is outside [0, {self.num_frames})")
        return self.first_pts + index * self.step_pts if self.table is None else int(self.table[index])

    def pts_of(self, indices: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Pts of the frames `indices` [shape=(n,)], int64."""
        index = np.asarray(indices, dtype=np.int64)
        if index.size and (index.min() < 0 or index.max() >= self.num_frames):
            raise IndexError(f"frames {index.min()} to {index.max()} are not all inside [0, {self.num_frames})")
        return self.first_pts + index * self.step_pts if self.table is None else self.table[index]

    def pts_to_media_time(self, pts: int) -> Fraction:
        """Media time of a pts of this stream."""
        return pts_to_media_time(pts, self.time_base, self.origin)

    def end_pts(self, index: int) -> int:
        """Pts at which frame `index` ends: that of the next one, or the last one's own and its duration."""
        return self.pts(index + 1) if index + 1 < self.num_frames else self.pts(index) + self.step_pts

    def seconds(self, index: int) -> Fraction:
        """Media time at which frame `index` is shown."""
        return self.pts_to_media_time(self.pts(index))

    @property
    def start_seconds(self) -> Fraction:
        """Media time of the first frame."""
        return self.seconds(0)

    @property
    def stop_seconds(self) -> Fraction:
        """Media time at which the last frame ends."""
        return self.pts_to_media_time(self.end_pts(self.num_frames - 1))

    def first_frame_from(self, seconds: Fraction) -> int:
        """Index of the first frame shown at or after `seconds`; `num_frames` if there is none."""
        return self._first_frame_from(seconds, self._exact)

    def frames_between(self, start: Fraction, end: Fraction | None) -> tuple[int, int]:
        """The frames [first, stop) whose presentation time lies in [start, end).

        Both bounds are compared with a tolerance of half a millisecond in the same direction, so that bounds rounded to
        a millisecond select the same frames, and adjacent intervals share no frame and lose none.

        Args:
            start: Media time.
            end: Media time, or None for the end of the medium.
        """
        first = self._first_frame_from(start, self._tolerant)
        stop = self.num_frames if end is None else self._first_frame_from(end, self._tolerant)
        return first, max(first, stop)

    def nearest_frame(self, seconds: Fraction) -> int:
        """Index of the frame whose presentation time is nearest to `seconds`; the earlier of two equally near ones."""
        after = self.first_frame_from(seconds)
        if after == 0:
            return 0
        if after == self.num_frames:
            return self.num_frames - 1
        return after if self.seconds(after) - seconds < seconds - self.seconds(after - 1) else after - 1

    @functools.cached_property
    def _exact(self) -> tuple[int, int, int]:
        """How seconds become ticks, in whole numbers: see `_first_frame_from`."""
        return _to_ticks(self.time_base, self.origin)

    @functools.cached_property
    def _tolerant(self) -> tuple[int, int, int]:
        """The same for seconds that were rounded."""
        return _to_ticks(self.time_base, self.origin - ANNOTATION_TOLERANCE)

    def _first_frame_from(self, seconds: Fraction, to_ticks: tuple[int, int, int]) -> int:
        factor, shift, divisor = to_ticks
        dividend, denominator = seconds.numerator, seconds.denominator
        # The next whole tick.
        return self._first_pts_index(-(-(dividend * factor + denominator * shift) // (denominator * divisor)))

    def _first_pts_index(self, pts: int) -> int:
        if self.table is None:
            index = -((self.first_pts - pts) // self.step_pts)  # ceil((pts - first_pts) / step_pts)
        else:
            index = int(np.searchsorted(self.table, pts, side="left"))
        return min(max(index, 0), self.num_frames)


def _to_ticks(time_base: Fraction, origin: Fraction) -> tuple[int, int, int]:
    """(factor, shift, divisor): n / d seconds of media time are (n * factor + d * shift) / (d * divisor) ticks."""
    return (
        origin.denominator * time_base.denominator,
        origin.numerator * time_base.denominator,
        origin.denominator * time_base.numerator,
    )
