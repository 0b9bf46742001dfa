"""(manifest, options, seed, epoch, rank) -> ordered clips, each with its exact frames and sound. All choice is here.

Randomness is keyed, not drawn in turn: Philox keyed by (seed, epoch, row, purpose), so that a clip does not depend on
batch size, workers, lanes, ranks, or on where a run resumed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from avloader.manifest import Manifest

__all__ = ["Clip", "Plan", "PlanOptions", "ShortRow", "batches", "num_batches"]


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
        seed: >= 0.
        audio_seconds: Length of the sound; None: as long as the frames last.
    """

    num_frames: int = 16
    stride: int = 1
    fps: Fraction | None = None
    clips: Literal["all", "first", "center", "random"] = "all"
    shuffle: bool = False
    seed: int = 0
    audio_seconds: Fraction | None = None


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

    Attributes:
        clip_seconds: How long the frames of a clip last (num_frames * stride / rate).
        audio_seconds: Length of the sound.
        short_rows: Rows that hold no clip.

    Raises:
        ManifestError: Mixed or variable frame rates without `fps` and without `audio_seconds` (the batch would be ragged).
    """

    def __init__(self, manifest: Manifest, options: PlanOptions, *, epoch: int = 0) -> None:
        raise NotImplementedError

    def __len__(self) -> int:
        """Clips of the epoch, over all ranks."""
        raise NotImplementedError

    def clip(self, position: int) -> Clip:
        """The clip at `position` of the epoch's order, 0 <= position < len(self)."""
        raise NotImplementedError


def batches(
    num_clips: int,
    *,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    last_batch: Literal["partial", "drop"] = "partial",
    start: int = 0,
) -> Iterator[range]:
    """Positions of the batches of one rank, in order.

    Step s of all ranks covers positions [start + s * W * B, start + (s + 1) * W * B); rank r takes the r-th block of B.
    The last step, if short, is split evenly among the ranks ("partial") or left out ("drop"). `start` is the number of
    positions already delivered by all ranks, so a run may resume with another world size.
    """
    raise NotImplementedError


def num_batches(
    num_clips: int, *, batch_size: int, rank: int = 0, world_size: int = 1, last_batch: str = "partial", start: int = 0
) -> int:
    """How many batches `batches` yields."""
    raise NotImplementedError
