"""What concerns sound and picture together, and what would move one against the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from avloader.augment.base import Clips, Columns, Pictures, PictureTransform, Rows, Transform
from avloader.augment.checks import check_integer, check_number, check_range
from avloader.augment.keys import Draw
from avloader.augment.picture import fill_frames, mask_of_frames

__all__ = ["AVTimeMask", "Reverse", "Shift"]


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
