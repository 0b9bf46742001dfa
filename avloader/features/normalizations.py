"""Normalizations of a feature: by fixed numbers, or by the mean and deviation of what is there."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from avloader.features.checks import check_choice, check_flag, check_number
from avloader.features.nodes import constant_for

if TYPE_CHECKING:
    from nvidia.dali.data_node import DataNode

_Floats = npt.NDArray[np.float32]

__all__ = ["Affine", "Normalization", "Standardize"]


class Normalization(ABC):
    """What becomes of a feature at last."""

    @abstractmethod
    def apply(self, values: DataNode) -> DataNode:
        """The normalized values, float32 of the same shape [shape=(num_bins, num_hops)]."""

    @abstractmethod
    def compute(self, values: _Floats) -> _Floats:
        """The same on the CPU; may change `values`."""


@dataclass(frozen=True, kw_only=True)
class Affine(Normalization):
    """``(x - mean) / std``, then cut to [low, high].

    Args:
        mean: A number, or one a bin.
        std: A number above 0, or one a bin.
        low, high: Bounds of the result; None: none.
    """

    mean: float | Sequence[float] = 0.0
    std: float | Sequence[float] = 1.0
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        for name, minimum in (("mean", -math.inf), ("std", 0.0)):
            value = getattr(self, name)
            if isinstance(value, (Sequence, np.ndarray)) and not isinstance(value, str):
                value = tuple(float(each) for each in value)  # hashable
                object.__setattr__(self, name, value)
                for each in value:
                    check_number(name, each, minimum, above=True)
            else:
                check_number(name, value, minimum, above=True)
        for name in ("low", "high"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name))
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError(f"low={self.low} must be below high={self.high}")

    def apply(self, values: DataNode) -> DataNode:  # noqa: D102
        from nvidia.dali import math as dali_math

        mean, std = (constant_for(values, np.atleast_1d(value)[:, None]) for value in (self.mean, self.std))
        result = (values - mean) / std
        if self.low is not None:
            result = dali_math.max(result, np.float32(self.low))
        if self.high is not None:
            result = dali_math.min(result, np.float32(self.high))
        return result

    def compute(self, values: _Floats) -> _Floats:  # noqa: D102
        mean, std = (np.atleast_1d(np.asarray(value, np.float32))[:, None] for value in (self.mean, self.std))
        values -= mean
        values /= std
        if self.low is not None or self.high is not None:
            np.clip(values, self.low, self.high, out=values)
        return values


@dataclass(frozen=True, kw_only=True)
class Standardize(Normalization):
    """``(x - mean) / deviation``, both taken over a part of the clip's own feature.

    Args:
        over: ``"clip"``: all of it; ``"bin"``: each bin over time (instance norm); ``"hop"``: each hop over its bins
            (layer norm).
        epsilon: Keeps silence from dividing by zero, above 0.
        epsilon_in: ``"variance"``: the deviation is sqrt(variance + epsilon); ``"deviation"``: sqrt(variance) +
            epsilon.
        unbiased: Whether the variance of n numbers is divided by n - 1 instead of n.
    """

    over: Literal["clip", "bin", "hop"] = "clip"
    epsilon: float = 1e-5
    epsilon_in: Literal["variance", "deviation"] = "variance"
    unbiased: bool = False

    def __post_init__(self) -> None:
        check_choice("over", self.over, ("clip", "bin", "hop"))
        check_number("epsilon", self.epsilon, 0, above=True)
        check_choice("epsilon_in", self.epsilon_in, ("variance", "deviation"))
        check_flag("unbiased", self.unbiased)

    def apply(self, values: DataNode) -> DataNode:  # noqa: D102
        from nvidia.dali import fn, types
        from nvidia.dali import math as dali_math

        axes = {"clip": [0, 1], "bin": [1], "hop": [0]}[self.over]
        centred = values - fn.reductions.mean(values, axes=axes, keep_dims=True)
        variance = fn.reductions.mean(centred * centred, axes=axes, keep_dims=True)
        if self.unbiased:
            count = fn.cast(fn.reductions.sum(values * 0.0 + 1.0, axes=axes, keep_dims=True), dtype=types.FLOAT)
            variance = variance * count / (count - 1.0)
        if self.epsilon_in == "variance":
            return centred / dali_math.sqrt(variance + self.epsilon)
        return centred / (dali_math.sqrt(variance) + self.epsilon)

    def compute(self, values: _Floats) -> _Floats:  # noqa: D102
        axis = {"clip": (0, 1), "bin": (1,), "hop": (0,)}[self.over]
        centred: _Floats = values - values.mean(axis=axis, keepdims=True, dtype=np.float64).astype(np.float32)
        variance = np.mean(centred * centred, axis=axis, keepdims=True, dtype=np.float64)
        if self.unbiased:
            count = math.prod(values.shape[each] for each in axis)
            variance *= count / (count - 1)
        if self.epsilon_in == "variance":
            deviation = np.sqrt(variance + self.epsilon)
        else:
            deviation = np.sqrt(variance) + self.epsilon
        centred /= deviation.astype(np.float32)
        return centred
