"""A chain applied to the clips of a loader: their keys, their frame rate, their valid samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from avloader.augment.base import Node, PictureTransform, Transform
from avloader.augment.keys import ClipKeys

__all__ = ["ClipAugment"]


class _Clip(Protocol):
    @property
    def row(self) -> int: ...
    @property
    def first(self) -> int: ...
    @property
    def epoch(self) -> int: ...


class ClipAugment:
    """A chain for clips of sound and pictures, or of one of them.

    A clip's draws are keyed by (seed, epoch, manifest row, first frame or sample), so they do not depend on which
    batch, lane or rank the clip goes through.

    Args:
        node: The transforms.
        seed: 0 <= seed < 2**64.
        num_frames: Frames of a clip; None: sound alone.
        fps: Frames per second; None where they are not evenly spaced, or the sound does not begin with them.
        with_sound: Whether the clips have sound.
        color: Order of the pictures' channels.

    Raises:
        TypeError: If `node` is no transform.
        ValueError: If it would move sound against picture, or needs what is not known of them.
    """

    def __init__(
        self,
        node: Node,
        *,
        seed: int,
        num_frames: int | None,
        fps: float | None,
        with_sound: bool = True,
        color: str = "rgb",
    ) -> None:
        if not isinstance(node, Node):
            raise TypeError(
                f"augment={node!r} must be a transform of avloader.augment, such as Compose([...]), or None"
            )
        if num_frames is not None and with_sound:
            node.check_sync()
        self._node, self._seed, self._num_frames, self._fps = node, seed, num_frames, fps
        below = node.transforms_below()
        for transform in below:
            name = type(transform).__name__
            if num_frames is None and isinstance(transform, PictureTransform):
                raise ValueError(f'{name} augments pictures, but streams="audio" delivers none')
            if not with_sound and isinstance(transform, Transform):
                raise ValueError(f'{name} augments sound, but streams="video" delivers none')
            if isinstance(transform, PictureTransform) and transform.needs_rgb and color != "rgb":
                raise ValueError(f"{name} needs pictures of color='rgb', not {color!r}")
            if isinstance(transform, PictureTransform) and isinstance(transform, Transform) and fps is None:
                raise ValueError(
                    f"{name} needs frames that are evenly spaced and sound that begins with them: give fps= where "
                    'frame rates differ, and audio_from="clip"'
                )
        self.has_sound = any(isinstance(transform, Transform) for transform in below)
        self.has_pictures = any(isinstance(transform, PictureTransform) for transform in below)

    def sound(
        self,
        sound: torch.Tensor,
        clips: Sequence[_Clip],
        valid: Sequence[tuple[int, int]],
        *,
        sample_rate: int,
        origin: int,
    ) -> tuple[torch.Tensor, dict[str, dict[str, torch.Tensor]]]:
        """The sound after it [shape=(B, N)], and what was drawn."""
        lengths = np.array(valid, np.int64).reshape(len(clips), 2)
        done = self._node(
            sound,
            keys=self._keys(clips),
            sample_rate=sample_rate,
            lengths=lengths,
            num_frames=self._num_frames,
            fps=self._fps,
            origin=origin,
        )
        return done.audio, done.parameters

    def pictures(
        self, frames: torch.Tensor, clips: Sequence[_Clip]
    ) -> tuple[torch.Tensor, dict[str, dict[str, torch.Tensor]]]:
        """The pictures after it [shape=(B, F, C, H, W)], and what was drawn."""
        done = self._node.augment_frames(frames, keys=self._keys(clips))
        return done.frames, done.parameters

    def _keys(self, clips: Sequence[_Clip]) -> ClipKeys:
        keys: npt.NDArray[np.int64] = np.array([clip.row << 31 | clip.first for clip in clips], np.int64)
        return ClipKeys(keys, seed=self._seed, epoch=np.array([clip.epoch for clip in clips], np.int64))
