"""Each clip convolved with its own taps."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from avloader.augment.rows import Rows

__all__ = ["convolve"]

_FFT = 4096  # of every transform, so that its bits do not depend on the length of the sound
_AT_A_TIME = 256  # transforms on a GPU: there the bits depend on how many are done at a time
_PART = _FFT // 2  # longer filters are cut into parts of so many taps


def convolve(rows: Rows, taps: torch.Tensor, middle: int, reach: torch.Tensor | None = None) -> torch.Tensor:
    """y[t] = sum of taps[k] x[t - (k - middle)], zero where the clips hold no sound.

    The sound beyond both ends is taken for zero, its length stays.

    Args:
        rows: The clips.
        taps: float32 [shape=(R, W)].
        middle: The tap of time 0.
        reach: Taps on each side of the middle that may not be 0, int32 [shape=(R,)], if the middle is W // 2: the GPU
            then multiplies small matrices, which gives the same bits in any batch, and is fast up to some thousand.
    """
    if taps.device.type == "cuda" and reach is not None:
        from avloader.augment import kernels

        return kernels.convolve(rows.audio, taps, reach, rows.start, rows.stop)
    return rows.silence_outside(_overlap_save(rows.audio, taps, middle))


def _overlap_save(audio: torch.Tensor, taps: torch.Tensor, middle: int) -> torch.Tensor:
    """By transforms of one length, block after block from sample 0, so that no block depends on N or on the batch."""
    num_rows, num_samples = audio.shape
    width = taps.shape[1]
    part = min(width, _PART)
    num_parts = -(-width // part)
    step = _FFT - part + 1 if num_parts == 1 else part  # so that part p of block b meets the frame of block b - p
    num_blocks = -(-num_samples // step)
    before = num_parts * part - 1 - middle
    padded = audio.new_zeros(num_rows, (num_blocks + num_parts - 2) * step + _FFT)
    kept = min(num_samples, padded.shape[1] - before)
    padded[:, before : before + kept] = audio[:, :kept]
    frames = _transformed(torch.fft.rfft, padded.unfold(1, _FFT, step))
    if width < num_parts * part:
        taps = torch.nn.functional.pad(taps, (0, num_parts * part - width))
    taps = torch.nn.functional.pad(taps.view(num_rows, num_parts, part), (0, _FFT - part))
    filters = _transformed(torch.fft.rfft, taps)
    last = num_parts - 1
    spectrum = _product(frames[:, last : last + num_blocks], filters[:, :1])
    for number in range(1, num_parts):
        first = last - number
        spectrum += _product(frames[:, first : first + num_blocks], filters[:, number : number + 1])
    blocks = _transformed(torch.fft.irfft, spectrum)[:, :, part - 1 : part - 1 + step]
    return blocks.reshape(num_rows, num_blocks * step)[:, :num_samples]


def _transformed(transform: Callable[[torch.Tensor], torch.Tensor], blocks: torch.Tensor) -> torch.Tensor:
    """The transform of each block [shape=(R, blocks, ...)]."""
    if blocks.device.type != "cuda":
        return transform(blocks)
    flat = blocks.reshape(-1, blocks.shape[-1])
    count = len(flat)
    flat = torch.cat([flat, flat.new_zeros(-count % _AT_A_TIME, flat.shape[1])])
    done = torch.cat([transform(flat[first : first + _AT_A_TIME]) for first in range(0, len(flat), _AT_A_TIME)])
    return done[:count].view(*blocks.shape[:-1], -1)


def _product(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    if one.device.type == "cuda":
        return one * other
    # PyTorch rounds the last products of a vectorized loop differently, so where a value stands would matter.
    with np.errstate(invalid="ignore"):  # sound that is not finite
        return torch.from_numpy(one.numpy() * other.numpy())
