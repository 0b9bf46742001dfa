"""Filter banks: librosa's, Kaldi's, python_speech_features'; and any matrix with short rows as DALI nodes."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from avloader.features.nodes import constant_for
from avloader.features.transforms import Bank

if TYPE_CHECKING:
    from nvidia.dali.data_node import DataNode

__all__ = ["apply_bank", "as_bank", "kaldi_bank", "mel_bank", "speech_bank"]

_Weights = npt.NDArray[np.float64]

_FUSED_BINS = 16  # up to so many bins of a band a sum of products is quicker than a product and a sum


def apply_bank(spectrogram: DataNode, bank: _Weights) -> DataNode:
    """``bank @ spectrogram`` [shape=(num_bands, num_hops)].

    DALI has no product of matrices: the bins of each band are gathered, weighted, and summed.

    Args:
        spectrogram: float32 [shape=(num_bins, num_hops)].
        bank: [shape=(num_bands, num_bins)], few bins of each band not zero.
    """
    from nvidia.dali import fn

    num_bands, num_bins = bank.shape
    widths = [int(used[-1] - used[0]) + 1 if len(used := np.flatnonzero(row)) else 1 for row in bank]
    width = max(widths)
    begins = [min(int(np.flatnonzero(row)[0]), num_bins - width) if row.any() else 0 for row in bank]
    rows = fn.reshape(spectrogram, layout="FX")
    weights = np.stack([row[begin : begin + width] for row, begin in zip(bank, begins, strict=True)])
    if width <= _FUSED_BINS:  # one expression is computed in one go
        terms = (
            fn.sequence_rearrange(rows, new_order=[begin + place for begin in begins])
            * constant_for(rows, weights[:, place, None])
            for place in range(width)
        )
        return fn.reshape(functools.reduce(operator.add, terms), layout="")
    gathered = fn.sequence_rearrange(rows, new_order=[begin + place for begin in begins for place in range(width)])
    weighted = gathered * constant_for(gathered, weights.reshape(-1, 1))
    return fn.reductions.sum(fn.reshape(weighted, shape=[num_bands, width, -1], layout=""), axes=[1])


@functools.lru_cache(maxsize=16)
def mel_bank(
    *, sample_rate: int, n_fft: int, n_mels: int, fmin: float, fmax: float, htk: bool, norm: str | None
) -> Bank:
    """The triangles of `librosa.filters.mel`."""
    import librosa

    options: dict[str, Any] = {"fmin": fmin, "fmax": fmax, "htk": htk, "norm": norm}
    return Bank.of(librosa.filters.mel(sr=sample_rate, n_fft=n_fft, n_mels=n_mels, **options))


@functools.lru_cache(maxsize=16)
def as_bank(bank: Callable[..., _Weights], *, factor: float = 1.0, with_sum: bool = False, **options: Any) -> Bank:
    """What a function here gives for `options`, times a factor; with the sum of all bins as one band more."""
    weights = bank(**options)
    if with_sum:
        weights = np.concatenate([weights, np.ones((1, weights.shape[1]))])
    return Bank.of(factor * weights)


@functools.lru_cache(maxsize=16)
def kaldi_bank(*, sample_rate: int, n_fft: int, n_mels: int, fmin: float, fmax: float) -> _Weights:
    """Kaldi's triangles [shape=(n_mels, n_fft // 2 + 1)]: straight lines over the mel scale, each of height 1.

    The mel scale is 1127 ln(1 + f / 700); the bin at half of the sample rate counts for nothing. As in Kaldi's
    ``feat/mel-computations.cc``.
    """
    edges = np.linspace(float(_kaldi_mel(fmin)), float(_kaldi_mel(fmax)), n_mels + 2)
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    bins = _kaldi_mel(np.arange(n_fft // 2) * (sample_rate / n_fft))
    weights = np.maximum(np.minimum((bins - low) / (middle - low), (high - bins) / (high - middle)), 0.0)
    return np.pad(weights, ((0, 0), (0, 1)))


def _kaldi_mel(frequency: npt.ArrayLike) -> _Weights:
    mel: _Weights = 1127.0 * np.log1p(np.asarray(frequency, np.float64) / 700.0)
    return mel


@functools.lru_cache(maxsize=16)
def speech_bank(*, sample_rate: int, n_fft: int, n_mels: int, fmin: float, fmax: float) -> _Weights:
    """python_speech_features' triangles [shape=(n_mels, n_fft // 2 + 1)]: between whole bins, each of height 1.

    The mel scale is 2595 log10(1 + f / 700), the edges are floor((n_fft + 1) * f / sample_rate). As in its `base.py`.
    """
    mels = np.linspace(2595 * np.log10(1 + fmin / 700.0), 2595 * np.log10(1 + fmax / 700.0), n_mels + 2)
    edges = np.floor((n_fft + 1) * (700 * (10 ** (mels / 2595.0) - 1)) / sample_rate).astype(np.int64)
    weights = np.zeros((n_mels, n_fft // 2 + 1))
    for row, low, middle, high in zip(weights, edges[:-2], edges[1:-1], edges[2:], strict=True):
        row[low:middle] = (np.arange(low, middle) - low) / (middle - low)
        row[middle:high] = (high - np.arange(middle, high)) / (high - middle)
    return weights
