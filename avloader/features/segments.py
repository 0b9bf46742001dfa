"""The sound itself as a feature, and a feature of several parts of a clip."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from avloader.features.base import Feature
from avloader.features.checks import check_choice, check_integer
from avloader.features.normalizations import Normalization

if TYPE_CHECKING:
    from nvidia.dali.data_node import DataNode

__all__ = ["Segments", "Waveform"]


@dataclass(frozen=True, kw_only=True)
class Waveform(Feature):
    """The sound itself, normalized, as one bin [shape=(1, num_samples)].

    Args:
        normalize: `Standardize`, `Affine`, or None.
    """

    normalize: Normalization | None = None

    def __post_init__(self) -> None:
        if self.normalize is not None and not isinstance(self.normalize, Normalization):
            raise TypeError(f"normalize={self.normalize!r} must be Affine(...), Standardize(...) or None")

    @property
    def num_bins(self) -> int:
        """1."""
        return 1

    def num_hops(self, num_samples: int) -> int:
        """`num_samples`."""
        check_integer("num_samples", num_samples, 1)
        return num_samples

    def compute(  # noqa: D102
        self, audio: npt.NDArray[np.float32], *, sample_rate: int, valid: tuple[int, int] | None = None
    ) -> npt.NDArray[np.float32]:
        row = audio[None].copy()
        return row if self.normalize is None else self.normalize.compute(row)

    def build(  # noqa: D102
        self, audio: DataNode, *, device: Literal["cpu", "gpu"], sample_rate: int, valid: DataNode | None = None
    ) -> DataNode:
        from nvidia.dali import fn

        check_choice("device", device, ("cpu", "gpu"))
        row = fn.reshape(audio.gpu() if device == "gpu" else audio, shape=[1, -1], layout="")
        return row if self.normalize is None else self.normalize.apply(row)


@dataclass(frozen=True, kw_only=True)
class Segments(Feature):
    """A feature of each of several parts of the sound, by themselves [shape=(num_segments, num_bins, num_hops)].

    Args:
        feature: What is made of each; its scope is the clip.
        num_segments: Parts.
        length: Samples of a part.
        step: Samples from the start of one to the start of the next.
    """

    feature: Feature
    num_segments: int
    length: int
    step: int

    def __post_init__(self) -> None:
        if not isinstance(self.feature, Feature) or isinstance(self.feature, Segments):
            raise TypeError(f"feature={self.feature!r} must be a feature, and not of segments itself")
        if self.feature.grid is not None:
            raise ValueError(f"feature={self.feature!r} must have scope='clip'")
        for name in ("num_segments", "length", "step"):
            check_integer(name, getattr(self, name), 1)

    @property
    def num_bins(self) -> int:
        """Those of `feature`."""
        return self.feature.num_bins

    def num_hops(self, num_samples: int) -> int:
        """Those of `feature` for one part."""
        check_integer("num_samples", num_samples, (self.num_segments - 1) * self.step + self.length)
        return self.feature.num_hops(self.length)

    def shape(self, num_samples: int) -> tuple[int, ...]:  # noqa: D102
        return self.num_segments, self.num_bins, self.num_hops(num_samples)

    def compute(  # noqa: D102
        self, audio: npt.NDArray[np.float32], *, sample_rate: int, valid: tuple[int, int] | None = None
    ) -> npt.NDArray[np.float32]:
        starts = range(0, self.num_segments * self.step, self.step)
        return np.stack(
            [self.feature.compute(audio[start : start + self.length], sample_rate=sample_rate) for start in starts]
        )

    def build(  # noqa: D102
        self, audio: DataNode, *, device: Literal["cpu", "gpu"], sample_rate: int, valid: DataNode | None = None
    ) -> DataNode:
        from nvidia.dali import fn

        if device == "gpu":
            audio = audio.gpu()
        parts = [
            fn.slice(audio, start=[number * self.step], shape=[self.length], axes=[0])
            for number in range(self.num_segments)
        ]
        return fn.stack(*(self.feature.build(part, device=device, sample_rate=sample_rate) for part in parts))
