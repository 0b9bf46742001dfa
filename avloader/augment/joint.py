"""What concerns sound and picture together, and what would move one against the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch

from avloader.augment.base import PictureTransform, ReadingTransform, Transform
from avloader.augment.checks import check_integer, check_number, check_range
from avloader.augment.keys import Draw
from avloader.augment.picture import fill_frames, mask_of_frames
from avloader.augment.rows import Clips, Columns, Pictures, Rows

__all__ = ["AVTimeMask", "JointSpeed", "Reverse", "Shift"]

_SLOWEST, _FASTEST = Fraction(1, 4), Fraction(4)


@dataclass(frozen=True, kw_only=True)
class JointSpeed(ReadingTransform):
    """Play sound and picture of a clip faster or slower, together; the sound's pitch changes with it.

    For `AVLoader(augment=...)` alone, since it changes what is read, wherever it stands in a chain: frame k is the one
    nearest to k / fps * speed seconds of the medium after the first frame, and sample j of the sound lies
    j / sample_rate * speed seconds after it. A clip keeps its number of frames and samples; its ``frame_seconds`` are
    those of its frames in the medium, so they lie that many times as far apart. A row has to hold a clip at the
    greatest speed.

    Args:
        speeds: Speeds to choose from, all equally likely: numbers, `Fraction`, or text such as "11/10", in [1/4, 4].
        p: See `Node`.
        name: See `Node`.

    Returns ``speed``, 1 where it is not applied.
    """

    speeds: Sequence[float | str | Fraction] = (0.9, 1.0, 1.1)  # kept as fractions

    num_words = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.speeds, str) or not isinstance(self.speeds, Sequence) or not self.speeds:
            raise TypeError(f"speeds={self.speeds!r} must be a sequence of at least one number")
        object.__setattr__(self, "speeds", tuple(_speed(value) for value in self.speeds))

    @property
    def factors(self) -> tuple[Fraction, ...]:
        """All speeds that a clip can have, in order: with 1, which it has where this is not applied."""
        return tuple(sorted({Fraction(1), *(Fraction(speed) for speed in self.speeds)}))

    def draw_factors(self, draw: Draw, active: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        """Which of `factors` each clip has [shape=(B,)]."""
        places = np.array([self.factors.index(Fraction(speed)) for speed in self.speeds])
        drawn = places[draw.integers(1, 0, len(places))]
        return np.where(active, drawn, self.factors.index(Fraction(1)))


def _speed(value: object) -> Fraction:
    try:
        speed = Fraction(str(value))
    except (ValueError, ZeroDivisionError):
        raise TypeError(f"speeds: {value!r} must be a number, or text such as '11/10'") from None
    if not _SLOWEST <= speed <= _FASTEST or speed.denominator > 1000:
        raise ValueError(f"speeds: {value} must be in [1/4, 4], a fraction with a denominator of at most 1000")
    return speed


@dataclass(frozen=True, kw_only=True)
class AVTimeMask(Transform, PictureTransform):
    """Silence a stretch of sound and fill the frames that are shown during it.

    Args:
        min_frames: Least number of frames, at least 0.
        max_frames: Greatest number; no more than the clip has.
        value: What the frames are filled with, in [0, 255].
        p: See `Node`.
        name: See `Node`.

    Returns ``first_frame`` and ``num_frames``; the sound is silent from the first of these frames on until the frame
    after the last one, to the nearest sample.
    """

    min_frames: int = 0
    max_frames: int = 10
    value: float = 0.0

    num_words: ClassVar[int] = 2
    takes_scale: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("min_frames", self.min_frames, 0)
        check_integer("max_frames", self.max_frames, self.min_frames)
        check_number("value", self.value, 0, 255)

    def draw(self, draw: Draw, clips: Clips) -> Columns:  # noqa: D102
        if clips.num_frames is None or clips.fps is None:
            raise ValueError("AVTimeMask needs num_frames= and fps= to know which sound belongs to which frame")
        columns = mask_of_frames(draw, clips.num_frames, self.min_frames, self.max_frames)
        edges = (columns["first_frame"], columns["first_frame"] + columns["num_frames"])
        first, stop = (np.floor(edge * (clips.sample_rate / clips.fps) + 0.5).astype(np.int64) for edge in edges)
        return columns | {"first_sample": first + clips.origin, "stop_sample": stop + clips.origin}

    def apply(self, rows: Rows) -> torch.Tensor:  # noqa: D102
        t = rows.positions()
        first, stop = rows.columns["first_sample"][:, None], rows.columns["stop_sample"][:, None]
        return (rows.audio * rows.columns["scale"][:, None]).masked_fill_((t >= first) & (t < stop), 0.0)

    def draw_frames(self, draw: Draw, pictures: Pictures) -> Columns:  # noqa: D102
        return mask_of_frames(draw, pictures.num_frames, self.min_frames, self.max_frames)

    def apply_to_frames(self, frames: torch.Tensor, columns: dict[str, torch.Tensor]) -> torch.Tensor:  # noqa: D102
        return fill_frames(frames, columns, self.value)


def _moved(rows: Rows, source: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """Each sample from where `source` says, counted from the clip's first; 0 where not `inside` or not in the clip."""
    length = (rows.stop - rows.start)[:, None]
    t = rows.positions() - rows.start[:, None]
    inside = inside & (t >= 0) & (t < length)
    place = torch.where(inside, source + rows.start[:, None], 0).long()
    return rows.audio.gather(1, place).masked_fill_(~inside, 0.0)


@dataclass(frozen=True, kw_only=True)
class Shift(Transform):
    """Move sound in time, by whole samples. For sound alone: it breaks sync.

    Args:
        min_shift: Least shift as a part of the clip, in [-1, 1]; negative: earlier.
        max_shift: Greatest shift.
        rollover: What leaves at one end comes in at the other; else silence does.
        p: See `Node`.
        name: See `Node`.

    Returns ``num_places``, samples.
    """

    min_shift: float = -0.5
    max_shift: float = 0.5
    rollover: bool = True

    num_words = 1
    breaks_sync = "it moves sound in time and leaves the frames where they are"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "min_shift", "max_shift", -1, 1)

    def draw(self, draw: Draw, clips: Clips) -> Columns:  # noqa: D102
        part = draw.uniform(1, self.min_shift, self.max_shift)
        return {"num_places": np.floor(part * clips.length + 0.5).astype(np.int64)}

    def apply(self, rows: Rows) -> torch.Tensor:  # noqa: D102
        length = (rows.stop - rows.start)[:, None]
        source = rows.positions() - rows.start[:, None] - rows.columns["num_places"][:, None]
        if self.rollover:
            return _moved(rows, source % length, torch.ones_like(source, dtype=torch.bool))
        return _moved(rows, source, (source >= 0) & (source < length))


@dataclass(frozen=True, kw_only=True)
class Reverse(Transform):
    """Play sound backwards. For sound alone: it breaks sync.

    Args:
        p: See `Node`.
        name: See `Node`.
    """

    breaks_sync = "it plays sound backwards and the frames forwards"

    def draw(self, draw: Draw, clips: Clips) -> Columns:  # noqa: D102
        return {}

    def apply(self, rows: Rows) -> torch.Tensor:  # noqa: D102
        source = (rows.stop - 1)[:, None] - rows.positions()
        return _moved(rows, source, torch.ones_like(source, dtype=torch.bool))
