"""Loops of `transforms`, compiled when they are first called."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from avloader.compiled import compiled

__all__ = ["cut", "weigh"]

_Floats = npt.NDArray[np.float32]

_TILE = 16  # columns that are worked on side by side, as wide as the processor's registers


@compiled
def cut(
    sound: _Floats, begin: int, hop_length: int, window: _Floats, remove_mean: bool, preemphasis: float, out: _Floats
) -> None:
    """Windowed stretches of sound [shape=(count, n_fft)], the first from sample `begin` on, as `spectrum` says."""
    length = window.shape[0]
    part = np.empty(length, np.float32)
    for t in range(out.shape[0]):
        start = begin + t * hop_length
        inside = min(max(sound.shape[0] - start, 0), length)
        part[:inside] = sound[start : start + inside]
        part[inside:] = np.float32(0)
        if remove_mean:
            sums = np.zeros(_TILE, np.float32)
            for k in range(0, length - _TILE + 1, _TILE):
                for lane in range(_TILE):
                    sums[lane] += part[k + lane]
            total = np.float32(0)
            for lane in range(_TILE):
                total += sums[lane]
            for k in range(length - length % _TILE, length):
                total += part[k]
            mean = total / np.float32(length)
            for k in range(length):
                part[k] -= mean
        row = out[t]
        if preemphasis != 0:
            row[0] = (part[0] - preemphasis * part[0]) * window[0]
            for k in range(1, length):
                row[k] = (part[k] - preemphasis * part[k - 1]) * window[k]
        else:
            for k in range(length):
                row[k] = part[k] * window[k]
        row[length:] = np.float32(0)


@compiled
def weigh(
    parts: _Floats,
    weights: _Floats,
    first: npt.NDArray[np.int64],
    stop: npt.NDArray[np.int64],
    is_amplitude: bool,
    add: float,
    out: _Floats,
) -> None:
    """Bands (see `Bank`) of transforms, their real and imaginary parts in turn [shape=(count, 2 * num_bins)]."""
    num_bins = parts.shape[1] // 2
    tile = np.empty((num_bins, _TILE), np.float32)
    sums = np.empty(_TILE, np.float32)
    for t in range(0, parts.shape[0], _TILE):
        count = min(_TILE, parts.shape[0] - t)
        for lane in range(count):
            row = parts[t + lane]
            for k in range(num_bins):
                tile[k, lane] = row[2 * k] * row[2 * k] + row[2 * k + 1] * row[2 * k + 1]
        for lane in range(count, _TILE):
            tile[:, lane] = np.float32(0)
        if is_amplitude:
            for k in range(num_bins):
                for lane in range(_TILE):
                    tile[k, lane] = math.sqrt(tile[k, lane] + add)
        for band in range(weights.shape[0]):
            for lane in range(_TILE):
                sums[lane] = np.float32(0)
            for k in range(first[band], stop[band]):
                weight = weights[band, k - first[band]]
                for lane in range(_TILE):
                    sums[lane] += weight * tile[k, lane]
            for lane in range(count):
                out[band, t + lane] = sums[lane]
