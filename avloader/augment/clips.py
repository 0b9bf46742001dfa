"""A chain applied to the clips of a loader: their keys, their frame rate, their valid samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from avloader.augment.base import (
    FeatureTransform,
    Node,
    PictureTransform,
    Transform,
    activations,
    augment_features,
    augment_pictures,
    augment_sound,
)
from avloader.augment.joint import JointSpeed
from avloader.augment.keys import ClipKeys

__all__ = ["ClipAugment", "ClipSpeeds", "clip_keys"]

_Int64 = npt.NDArray[np.int64]


class _Clip(Protocol):
    @property
    def row(self) -> int: ...
    @property
    def first(self) -> int: ...
    @property
    def epoch(self) -> int: ...


def clip_keys(rows: _Int64, starts: _Int64, *, seed: int, epoch: int | _Int64) -> ClipKeys:
    """The keys of clips: of their manifest rows and first frames, so that no batch, lane or rank matters."""
    return ClipKeys(rows << 31 | starts, seed=seed, epoch=epoch)


class ClipSpeeds:
    """How fast clips play, as the `JointSpeed` of a chain draws it; what the plan asks before it chooses frames.

    Args:
        node: A chain with one `JointSpeed`.
        seed: 0 <= seed < 2**64.

    Attributes:
        factors: All speeds that a clip can have, in order.

    Raises:
        ValueError: If there is more than one.
    """

    def __init__(self, node: Node, *, seed: int) -> None:
        found = [below for below in node.transforms_below() if isinstance(below, JointSpeed)]
        if len(found) != 1:
            raise ValueError(f"a chain may hold one JointSpeed, not {len(found)}; give all speeds to one")
        self._node, self._seed, self._speed = node, seed, found[0]
        self.factors = self._speed.factors

    @classmethod
    def of(cls, node: object, *, seed: int) -> ClipSpeeds | None:
        """None if `node` is no chain with a `JointSpeed`."""
        has_one = isinstance(node, Node) and any(isinstance(below, JointSpeed) for below in node.transforms_below())
        return cls(node, seed=seed) if isinstance(node, Node) and has_one else None

    def choose(self, rows: _Int64, starts: _Int64, epoch: int | _Int64) -> _Int64:
        """Which of `factors` the clips have that begin with frames `starts` of manifest rows `rows` [shape=(B,)]."""
        return self._draw(clip_keys(rows, starts, seed=self._seed, epoch=epoch))[2]

    def columns(self, keys: ClipKeys) -> tuple[str, dict[str, torch.Tensor]]:
        """The transform's name, and what is returned of it."""
        name, active, chosen = self._draw(keys)
        speed = np.array([float(factor) for factor in self.factors])[chosen]
        return name, {"active": torch.from_numpy(active), "speed": torch.from_numpy(speed)}

    def _draw(self, keys: ClipKeys) -> tuple[str, npt.NDArray[np.bool_], _Int64]:
        for leaf, name, draw, active in activations(self._node, keys):
            if leaf is self._speed:
                return name, active, self._speed.draw_factors(draw, active)
        raise AssertionError("every transform of a chain is activated, for some clips or none")

    def __repr__(self) -> str:
        return repr(self._speed)


class ClipAugment:
    """A chain for clips of sound and pictures, or of one of them.

    A clip's draws are keyed by (seed, epoch, manifest row, first frame or sample), so they do not depend on which
    batch, lane or rank the clip goes through. `JointSpeed` was applied when the clips were read (`ClipSpeeds`).

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
        self._speeds = ClipSpeeds.of(node, seed=seed)
        self.has_sound = self._speeds is not None or any(isinstance(transform, Transform) for transform in below)
        self.has_features = any(isinstance(transform, FeatureTransform) for transform in below)
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
        keys = self._keys(clips)
        done = augment_sound(
            self._node,
            sound,
            keys=keys,
            sample_rate=sample_rate,
            lengths=lengths,
            num_frames=self._num_frames,
            fps=self._fps,
            origin=origin,
        )
        speeds = {} if self._speeds is None else dict([self._speeds.columns(keys)])
        return done.audio, speeds | done.parameters

    def pictures(
        self, frames: torch.Tensor, clips: Sequence[_Clip]
    ) -> tuple[torch.Tensor, dict[str, dict[str, torch.Tensor]]]:
        """The pictures after it [shape=(B, F, C, H, W)], and what was drawn."""
        done = augment_pictures(self._node, frames, keys=self._keys(clips))
        return done.frames, done.parameters

    def features(
        self, spectrogram: torch.Tensor, clips: Sequence[_Clip], num_hops: Sequence[int]
    ) -> tuple[torch.Tensor, dict[str, dict[str, torch.Tensor]]]:
        """The spectrograms after it [shape=(B, bins, hops)], each of so many hops, and what was drawn."""
        return augment_features(self._node, spectrogram, keys=self._keys(clips), num_hops=num_hops)

    def _keys(self, clips: Sequence[_Clip]) -> ClipKeys:
        facts = np.array([(clip.row, clip.first, clip.epoch) for clip in clips], np.int64).reshape(-1, 3)
        return clip_keys(facts[:, 0], facts[:, 1], seed=self._seed, epoch=facts[:, 2])
