"""Logarithms of a spectrogram, with floors and references."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from avloader.features.checks import check_choice, check_number

if TYPE_CHECKING:
    from nvidia.dali.data_node import DataNode

__all__ = ["Decibels", "Ln", "Log10", "Scale"]

_Floats = npt.NDArray[np.float32]

_LEAST = float(np.finfo(np.float32).tiny)  # a smaller clamp would be 0 in float32 and its logarithm infinite


@dataclass(frozen=True, kw_only=True)
class Scale(ABC):
    """A logarithm of ``max(x + add, amin)``."""

    amin: float | None = 1e-10
    add: float = 0.0

    def __post_init__(self) -> None:
        if self.amin is not None:
            check_number("amin", self.amin, _LEAST)
        check_number("add", self.add, 0)

    @abstractmethod
    def apply(self, values: DataNode, power: int) -> DataNode:
        """The scaled values, float32 of the same shape.

        Args:
            values: Amplitudes or powers, float32 [shape=(num_bins, num_hops)].
            power: 1 if they are amplitudes, 2 if they are powers.
        """

    @abstractmethod
    def compute(self, values: _Floats, power: int) -> _Floats:
        """The same on the CPU; may change `values`."""

    def _raised(self, values: _Floats, amin: float) -> _Floats:
        if self.add:
            values += np.float32(self.add)
        np.maximum(values, np.float32(amin), out=values)
        return values

    @staticmethod
    def _cropped(values: _Floats, span: float | None) -> _Floats:
        """The same as `_limited` on the CPU."""
        if span is not None:
            np.maximum(values, values.max() - np.float32(span), out=values)
        return values

    def _floored(self, values: DataNode, amin: float) -> DataNode:
        from nvidia.dali import math as dali_math

        return dali_math.max(values + self.add, np.float32(amin))

    @staticmethod
    def _limited(values: DataNode, span: float | None) -> DataNode:
        """Raised to no further than `span` below the greatest value of the clip."""
        from nvidia.dali import fn
        from nvidia.dali import math as dali_math

        return values if span is None else dali_math.max(values, fn.reductions.max(values) - span)


@dataclass(frozen=True, kw_only=True)
class Decibels(Scale):
    """``10 log10(max(x + add, amin) / max(ref, amin))`` of power x, ``20 log10(...)`` of amplitude x.

    librosa's `power_to_db` and `amplitude_to_db`.

    Args:
        ref: The power (amplitude) that is 0 dB, above 0, or ``"max"``: the greatest of each clip.
        amin: Smaller values are raised to this, 1.2e-38 or more. None: 1e-10 for power, 1e-5 for amplitude.
        add: Added to every value before that, at least 0.
        top_db: Nothing lies further than this below the greatest value of its clip; None: no such limit.
    """

    ref: float | Literal["max"] = 1.0
    amin: float | None = None
    top_db: float | None = 80.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.ref, str):
            check_choice("ref", self.ref, ("max",))
        else:
            check_number("ref", self.ref, 0, above=True)
        if self.top_db is not None:
            check_number("top_db", self.top_db, 0)

    def apply(self, values: DataNode, power: int) -> DataNode:  # noqa: D102
        from nvidia.dali import fn
        from nvidia.dali import math as dali_math

        factor, amin = 20.0 / power, self._least(power)
        decibels = factor * dali_math.log10(self._floored(values, amin))
        if self.ref == "max":
            decibels -= factor * dali_math.log10(dali_math.max(fn.reductions.max(values), np.float32(amin)))
        else:
            decibels -= factor * math.log10(max(self.ref, amin))
        return self._limited(decibels, self.top_db)

    def compute(self, values: _Floats, power: int) -> _Floats:  # noqa: D102
        factor, amin = 20.0 / power, self._least(power)
        ref = max(float(values.max()) if self.ref == "max" else self.ref, amin)
        decibels = self._raised(values, amin)
        np.log10(decibels, out=decibels)
        decibels *= np.float32(factor)
        decibels -= np.float32(factor * math.log10(ref))
        return self._cropped(decibels, self.top_db)

    def _least(self, power: int) -> float:
        return self.amin if self.amin is not None else 1e-10 ** (power / 2)


@dataclass(frozen=True, kw_only=True)
class _Logarithm(Scale):
    amin: float = 1e-10
    span: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("amin", self.amin, _LEAST)
        if self.span is not None:
            check_number("span", self.span, 0)


@dataclass(frozen=True, kw_only=True)
class Ln(_Logarithm):
    """``ln(max(x + add, amin))``: ``Ln(add=1e-6)`` is ln(x + 1e-6).

    Args:
        amin: Smaller values are raised to this, 1.2e-38 or more.
        add: Added to every value before that, at least 0.
        span: Nothing lies further than this below the greatest value of its clip; None: no such limit.
    """

    def apply(self, values: DataNode, power: int) -> DataNode:  # noqa: D102
        from nvidia.dali import math as dali_math

        return self._limited(dali_math.log(self._floored(values, self.amin)), self.span)

    def compute(self, values: _Floats, power: int) -> _Floats:  # noqa: D102
        raised = self._raised(values, self.amin)
        return self._cropped(np.log(raised, out=raised), self.span)


@dataclass(frozen=True, kw_only=True)
class Log10(_Logarithm):
    """``log10(max(x + add, amin))``: ``Log10(amin=1e-10, span=8)`` is Whisper's.

    Args:
        amin: Smaller values are raised to this, 1.2e-38 or more.
        add: Added to every value before that, at least 0.
        span: Nothing lies further than this below the greatest value of its clip; None: no such limit.
    """

    def apply(self, values: DataNode, power: int) -> DataNode:  # noqa: D102
        from nvidia.dali import math as dali_math

        return self._limited(dali_math.log10(self._floored(values, self.amin)), self.span)

    def compute(self, values: _Floats, power: int) -> _Floats:  # noqa: D102
        raised = self._raised(values, self.amin)
        return self._cropped(np.log10(raised, out=raised), self.span)
