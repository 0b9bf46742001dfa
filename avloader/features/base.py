"""What all features have in common: how they see the sound, and what becomes of their columns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from avloader.features.checks import check_choice, check_flag, check_integer, check_number
from avloader.features.normalizations import Normalization
from avloader.features.scales import Scale
from avloader.features.sound import as_int16

if TYPE_CHECKING:
    from nvidia.dali.data_node import DataNode

__all__ = ["Columns", "Feature"]

_MOST_SAMPLES = 2**31


@dataclass(frozen=True, kw_only=True)
class Feature(ABC):
    """A feature of sound: computed on the CPU, or a node of a DALI pipeline, equal but for rounding."""

    @property
    @abstractmethod
    def num_bins(self) -> int:
        """Rows of the result."""

    @abstractmethod
    def num_hops(self, num_samples: int) -> int:
        """Columns of the result for that many samples of sound.

        Raises:
            ValueError: If there are too few samples for a column.
        """

    def shape(self, num_samples: int) -> tuple[int, ...]:
        """Shape of the result for that many samples of sound."""
        return self.num_bins, self.num_hops(num_samples)

    @property
    def least_samples(self) -> int:
        """The fewest samples that make a column."""
        return 1 + bisect_left(range(1, _MOST_SAMPLES), True, key=self.is_enough)

    def is_enough(self, num_samples: int) -> bool:
        """Whether so many samples make a column."""
        try:
            self.num_hops(num_samples)
        except ValueError:
            return False
        return True

    def context(self, num_samples: int) -> tuple[int, int]:
        """How many samples before and after a window of sound the feature of that window depends on."""
        return 0, 0

    @property
    def grid(self) -> int | None:
        """Samples of the grid, from the start of the medium on, that a window has to start on; None: anywhere."""
        return None

    @abstractmethod
    def compute(
        self, audio: npt.NDArray[np.float32], *, sample_rate: int, valid: tuple[int, int] | None = None
    ) -> npt.NDArray[np.float32]:
        """The feature, computed on the CPU.

        Args:
            audio: Sound, float32 [shape=(num_samples,)], num_samples as in `num_hops`, and `context(num_samples)` more
                before and after them.
            sample_rate: Samples per second.
            valid: The range of `audio` that exists in the medium; None: all.

        Returns:
            float32 [shape=(num_bins, num_hops)], C-contiguous.

        Raises:
            ValueError: If an option does not go with the sample rate.
        """

    @abstractmethod
    def build(
        self,
        audio: DataNode,
        *,
        device: Literal["cpu", "gpu"],
        sample_rate: int,
        valid: DataNode | None = None,
    ) -> DataNode:
        """The feature as a node of the pipeline under definition.

        Args:
            audio: Sound, float32 [shape=(num_samples,)], on the CPU or on `device`; num_samples as in `num_hops`, and
                `context(num_samples)` more before and after them.
            device: Where the feature is computed.
            sample_rate: Samples per second.
            valid: int32 [shape=(2,)] on the CPU: the range of `audio` that exists in the medium; None: all.

        Returns:
            float32 [shape=(num_bins, num_hops)] on `device`. Each clip's result depends on that clip alone.

        Raises:
            ValueError: If an option does not go with the sample rate.
        """


@dataclass(frozen=True, kw_only=True)
class Columns(Feature):
    """A feature made of columns, one each `hop_length` samples.

    The steps, in this order, each left out unless its option says otherwise: the sound in whole numbers, less its mean,
    pre-emphasized; the columns and their bins; the columns after `num_columns` cut off; `scale`; columns of `pad_value`
    added up to `num_columns`; columns stacked; `normalize`; columns at the ends cut off.

    Args:
        int16: The sound in the whole numbers of a 16-bit file, -32768 to 32767, instead of -1 to 1.
        subtract_mean: The sound less its mean over the clip.
        preemphasis: x[t] - preemphasis * x[t - 1]; the first sample of the clip (of the medium) as it is.
        scope: ``"clip"``: the feature of the clip's sound alone, padded at its ends. ``"medium"``: the columns that a
            feature of the medium's whole sound has at the clip, for models that slice one: the sound around the clip is
            seen, only the ends of the medium are padded, and the clip's sound starts on a column.
        num_columns: Exactly so many: others are cut off, or, missing, are `pad_value`. None: what the sound gives; for
            scope ``"medium"`` as many as start in the clip.
        scale: `Decibels`, `Ln`, `Log10`, or None to leave it linear.
        pad_value: What the columns are that `num_columns` or `stack` add, before `normalize`.
        stack: So many columns, one below the other, become one.
        normalize: `Affine`, `Standardize`, or None.
        trim: Columns cut off at the start and at the end, after `normalize`.
    """

    hop_length: int = 512
    int16: bool = False
    subtract_mean: bool = False
    preemphasis: float = 0.0
    scope: Literal["clip", "medium"] = "clip"
    num_columns: int | None = None
    scale: Scale | None = None
    pad_value: float = 0.0
    stack: int = 1
    normalize: Normalization | None = None
    trim: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        check_integer("hop_length", self.hop_length, 1)
        check_flag("int16", self.int16)
        check_flag("subtract_mean", self.subtract_mean)
        check_number("preemphasis", self.preemphasis, 0)
        check_choice("scope", self.scope, ("clip", "medium"))
        if self.subtract_mean and self.scope == "medium":
            raise ValueError("subtract_mean=True does not go with scope='medium': the mean of the medium is not known")
        if self.num_columns is not None:
            check_integer("num_columns", self.num_columns, 1)
        if self.scale is not None and not isinstance(self.scale, Scale):
            raise TypeError(f"scale={self.scale!r} must be Decibels(...), Ln(...), Log10(...) or None")
        check_number("pad_value", self.pad_value)
        check_integer("stack", self.stack, 1)
        if self.normalize is not None and not isinstance(self.normalize, Normalization):
            raise TypeError(f"normalize={self.normalize!r} must be Affine(...), Standardize(...) or None")
        if not isinstance(self.trim, tuple) or len(self.trim) != 2:
            raise TypeError(f"trim={self.trim!r} must be a pair of integers")
        for count in self.trim:
            check_integer("trim", count, 0)

    @property
    @abstractmethod
    def _reach(self) -> tuple[int, int]:
        """Samples [-before, after) around its first sample that a column is made of."""

    @abstractmethod
    def _own_columns(self, num_samples: int) -> int:
        """Columns of a clip's own sound.

        Raises:
            ValueError: If there are too few samples for one.
        """

    def _natural_columns(self, num_samples: int) -> int:
        """Columns before `num_columns`."""
        if self.scope == "medium":
            check_integer("num_samples", num_samples, 1)
            return self.num_columns or -(-num_samples // self.hop_length)
        return self._own_columns(num_samples)

    def num_hops(self, num_samples: int) -> int:  # noqa: D102
        columns = self._natural_columns(num_samples)
        columns = -(-(self.num_columns or columns) // self.stack) - sum(self.trim)
        if columns < 1:
            raise ValueError(f"num_samples={num_samples} leave no column: trim={self.trim} cuts them all off")
        return columns

    def context(self, num_samples: int) -> tuple[int, int]:  # noqa: D102
        if self.scope == "clip":
            return 0, 0
        before, after = self._reach
        last = (self._natural_columns(num_samples) - 1) * self.hop_length
        return before + bool(self.preemphasis), max(last + after - num_samples, 0)

    @property
    def grid(self) -> int | None:  # noqa: D102
        return self.hop_length if self.scope == "medium" else None

    def _sound(self, audio: DataNode, device: str) -> DataNode:
        """The sound on its device, in whole numbers, less its mean, pre-emphasized."""
        from nvidia.dali import fn

        check_choice("device", device, ("cpu", "gpu"))
        if device == "gpu":
            audio = audio.gpu()
        if self.int16:
            audio = as_int16(audio)
        if self.subtract_mean:
            audio = audio - fn.reductions.mean(audio, keep_dims=True)
        if self.preemphasis:
            audio = fn.preemphasis_filter(audio, preemph_coeff=float(self.preemphasis), border="zero")
        return audio

    def _heard(self, audio: npt.NDArray[np.float32], *, keep_mean: bool = False) -> npt.NDArray[np.float32]:
        """The same as `_sound` on the CPU; with `keep_mean` for what takes the mean away later."""
        if self.int16:
            audio = np.clip(np.floor(audio * np.float32(32768) + np.float32(0.5)), -32768, 32767)
        if self.subtract_mean and not (keep_mean and not self.preemphasis):
            audio = audio - np.float32(audio.mean(dtype=np.float64))
        if self.preemphasis:
            before, audio = audio, audio.copy()
            audio[1:] -= np.float32(self.preemphasis) * before[:-1]
        return audio

    def _num_kept(self, num_columns: int) -> int:
        """How many of so many columns are made."""
        return num_columns if self.num_columns is None else min(num_columns, self.num_columns)

    def _completed(self, columns: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The same as `_finished` on the CPU."""
        wanted = self.num_columns or columns.shape[1]
        wanted += -wanted % self.stack
        count = columns.shape[1]
        if wanted > count:
            padded = np.empty((len(columns), wanted), np.float32)
            padded[:, :count], padded[:, count:] = columns, self.pad_value
            columns = padded
        if self.stack > 1:
            groups = columns.reshape(len(columns), -1, self.stack)
            columns = groups.transpose(2, 0, 1).reshape(self.num_bins, -1)
        if self.normalize is not None:
            columns = self.normalize.compute(columns)
        first, last = self.trim
        return np.ascontiguousarray(columns[:, first : columns.shape[1] - last])

    def _cut(self, columns: DataNode) -> DataNode:
        """No more than `num_columns`."""
        from nvidia.dali import fn

        if self.num_columns is None:
            return columns
        return fn.slice(columns, start=[0], shape=[self.num_columns], axes=[1], out_of_bounds_policy="trim_to_shape")

    def _finished(self, columns: DataNode) -> DataNode:
        """From scaled columns to the result."""
        from nvidia.dali import fn

        if self.num_columns is not None:
            columns = fn.pad(columns, axes=[1], shape=[self.num_columns], fill_value=float(self.pad_value))
        if self.stack > 1:
            columns = fn.pad(columns, axes=[1], align=[self.stack], fill_value=float(self.pad_value))
            groups = fn.reshape(columns, shape=[self.num_bins // self.stack, -1, self.stack], layout="")
            columns = fn.reshape(fn.transpose(groups, perm=[2, 0, 1]), shape=[self.num_bins, -1])
        if self.normalize is not None:
            columns = self.normalize.apply(columns)
        first, last = self.trim
        if first or last:
            columns = columns[:, first : -last if last else None]
        return columns
