"""Filters without delay: windowed-sinc, odd and symmetric, so that every frequency stays at its sample.

A low-pass of cutoff f has ``2 * floor(4 * rate / f) + 1`` taps under a Hann window and adds up to 1; it is 6 dB down at
the cutoff. Cutoffs below rate / 1024 (15.6 Hz at 16 kHz) count as that, so that no filter gets longer than 8191 taps.
The others are made of low-passes: high-pass = 1 - low-pass, band-pass = low-pass(high edge) - low-pass(low edge),
band-stop = 1 - band-pass. So the sign is kept in every band.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch

from avloader.augment.base import Transform
from avloader.augment.checks import check_range
from avloader.augment.convolve import convolve
from avloader.augment.keys import Draw
from avloader.augment.rows import Clips, Columns, Rows

__all__ = ["BandPassFilter", "BandStopFilter", "HighPassFilter", "LowPassFilter", "filter_taps"]

_Floats = npt.NDArray[np.float64]

_ZERO_CROSSINGS = 4  # of the sinc on each side
_HALVES = (
    128,
    512,
    1023,
    2047,
    4095,
)  # the CPU transforms each clip by the first of these lengths that its filter fits in
_LEAST_FREQUENCY = _ZERO_CROSSINGS / _HALVES[-1]  # cycles a sample: 15.6 Hz at 16 kHz


@functools.lru_cache
def _hertz_to_mel(hertz: float) -> float:
    return float(2595.0 * np.log10(1.0 + hertz / 700.0))


def _mel_to_hertz(mel: _Floats) -> _Floats:
    return 700.0 * (10.0 ** (mel / 2595.0) - 1.0)


def _mel_uniform(draw: Draw, index: int, low: float, high: float) -> _Floats:
    return _mel_to_hertz(draw.uniform(index, _hertz_to_mel(low), _hertz_to_mel(high)))


def filter_taps(frequency: _Floats, weight: _Floats, impulse: _Floats, middle: int) -> _Floats:
    """``impulse * delta + sum over i of weight[i] * lowpass(frequency[i])``, float64 [shape=(R, 2 * middle + 1)].

    Args:
        frequency: Cutoffs in cycles a sample [shape=(R, 2)], in (0, 0.5].
        weight: Their weights [shape=(R, 2)].
        impulse: Weight of the impulse [shape=(R,)].
        middle: The tap of time 0.
    """
    m = np.arange(middle + 1)
    right = np.zeros((len(frequency), middle + 1))
    for column in np.flatnonzero(weight.any(axis=0)):
        cutoff = frequency[:, column, None]
        half = _half(frequency[:, column])[:, None]
        tap = np.where(m <= half, np.sinc(2 * cutoff * m) * (0.5 + 0.5 * np.cos(np.pi * m / half)), 0.0)
        total = tap[:, :1] + 2 * tap[:, 1:].sum(axis=1, keepdims=True)
        right += weight[:, column, None] * tap / total
    right[:, 0] += impulse
    return np.concatenate([right[:, :0:-1], right], axis=1)


def _half(frequency: _Floats) -> npt.NDArray[np.int32]:
    """Taps on each side of the middle."""
    return np.maximum((_ZERO_CROSSINGS / frequency).astype(np.int32), 1)


@dataclass(frozen=True, kw_only=True)
class _Filter(Transform):
    takes_scale = True

    def _columns(self, clips: Clips, edges: _Floats, weight: tuple[float, float], impulse: float) -> Columns:
        """What `apply` needs, of band edges in Hz [shape=(B, 2)]."""
        frequency = np.minimum(np.maximum(edges / clips.sample_rate, _LEAST_FREQUENCY), 0.5)
        half = _half(frequency)
        used = half[:, 0] if weight[1] == 0 else half.max(axis=1)
        return {
            "frequency": frequency,
            "weight": np.tile(weight, (len(edges), 1)),
            "half": half,
            "impulse": np.full(len(edges), impulse),
            "reach": used,
        }

    def reported(self, columns: Columns) -> Columns:
        """The columns to return."""
        private = ("frequency", "weight", "half", "impulse", "reach")
        return {key: column for key, column in columns.items() if key not in private}

    def apply(self, rows: Rows) -> torch.Tensor:
        """The sound after it."""
        if rows.audio.device.type == "cuda":
            from avloader.augment import kernels

            columns, width = rows.columns, 2 * int(rows.host["reach"].max()) + 1
            taps = kernels.lowpass_taps(
                columns["frequency"],
                columns["weight"],
                columns["half"],
                columns["impulse"],
                columns["scale"],
                columns["reach"],
                width,
            )
            return convolve(rows, taps, width // 2, rows.columns["reach"])
        result = torch.empty_like(rows.audio)
        host = rows.host
        length_class = np.searchsorted(_HALVES, host["reach"])
        for number in np.unique(length_class):
            some = np.flatnonzero(length_class == number)
            half = _HALVES[number]
            wide = filter_taps(host["frequency"][some], host["weight"][some], host["impulse"][some], half)
            taps = torch.from_numpy((wide * host["scale"][some, None]).astype(np.float32))
            result[torch.from_numpy(some)] = convolve(rows.only(some), taps, half)
        return result


@dataclass(frozen=True, kw_only=True)
class _CutoffFilter(_Filter):
    min_cutoff_freq: float
    max_cutoff_freq: float

    num_words = 1
    _low_pass_weight: ClassVar[float]
    _impulse: ClassVar[float]

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "min_cutoff_freq", "max_cutoff_freq", 1)

    def draw(self, draw: Draw, clips: Clips) -> Columns:
        """What is drawn for each clip."""
        cutoff = _mel_uniform(draw, 1, self.min_cutoff_freq, self.max_cutoff_freq)
        edges = np.repeat(cutoff[:, None], 2, axis=1)
        return {"cutoff_freq": cutoff} | self._columns(clips, edges, (self._low_pass_weight, 0.0), self._impulse)


@dataclass(frozen=True, kw_only=True)
class LowPassFilter(_CutoffFilter):
    """Keep what lies below a cutoff.

    Args:
        min_cutoff_freq: Least cutoff in Hz, > 0.
        max_cutoff_freq: Greatest cutoff; above half of the sample rate it counts as that.
        p: See `Node`.
        name: See `Node`.

    Returns ``cutoff_freq``, uniform on the mel scale.
    """

    min_cutoff_freq: float = 150.0
    max_cutoff_freq: float = 7500.0

    _low_pass_weight = 1.0
    _impulse = 0.0


@dataclass(frozen=True, kw_only=True)
class HighPassFilter(_CutoffFilter):
    """Keep what lies above a cutoff.

    Args:
        min_cutoff_freq: Least cutoff in Hz, > 0.
        max_cutoff_freq: Greatest cutoff; above half of the sample rate it counts as that.
        p: See `Node`.
        name: See `Node`.

    Returns ``cutoff_freq``, uniform on the mel scale.
    """

    min_cutoff_freq: float = 20.0
    max_cutoff_freq: float = 2400.0

    _low_pass_weight = -1.0
    _impulse = 1.0


@dataclass(frozen=True, kw_only=True)
class _BandFilter(_Filter):
    min_center_freq: float = 200.0
    max_center_freq: float = 4000.0
    min_bandwidth_fraction: float = 0.5
    max_bandwidth_fraction: float = 1.99

    num_words = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "min_center_freq", "max_center_freq", 1)
        check_range(self, "min_bandwidth_fraction", "max_bandwidth_fraction", 0.01, 1.99)

    def _draw_band(self, draw: Draw, clips: Clips, weight: tuple[float, float], impulse: float) -> Columns:
        center = _mel_uniform(draw, 1, self.min_center_freq, self.max_center_freq)
        bandwidth = center * draw.uniform(2, self.min_bandwidth_fraction, self.max_bandwidth_fraction)
        edges = np.stack([center - bandwidth / 2, center + bandwidth / 2], axis=1)
        return {"center_freq": center, "bandwidth": bandwidth} | self._columns(clips, edges, weight, impulse)


@dataclass(frozen=True, kw_only=True)
class BandPassFilter(_BandFilter):
    """Keep a band.

    Args:
        min_center_freq: Least middle of the band in Hz, > 0.
        max_center_freq: Greatest middle.
        min_bandwidth_fraction: Least width of the band as a part of its middle, in [0.01, 1.99].
        max_bandwidth_fraction: Greatest width.
        p: See `Node`.
        name: See `Node`.

    Returns ``center_freq``, uniform on the mel scale, and ``bandwidth``, both in Hz.
    """

    def draw(self, draw: Draw, clips: Clips) -> Columns:  # noqa: D102
        return self._draw_band(draw, clips, (-1.0, 1.0), 0.0)


@dataclass(frozen=True, kw_only=True)
class BandStopFilter(_BandFilter):
    """Remove a band.

    Args:
        min_center_freq: Least middle of the band in Hz, > 0.
        max_center_freq: Greatest middle.
        min_bandwidth_fraction: Least width of the band as a part of its middle, in [0.01, 1.99].
        max_bandwidth_fraction: Greatest width.
        p: See `Node`.
        name: See `Node`.

    Returns ``center_freq``, uniform on the mel scale, and ``bandwidth``, both in Hz.
    """

    def draw(self, draw: Draw, clips: Clips) -> Columns:  # noqa: D102
        return self._draw_band(draw, clips, (1.0, -1.0), 1.0)
