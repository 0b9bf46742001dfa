"""Windows of sound at another rate, as if cut from the whole file resampled.

soxr does the filtering. DALI's own `audio_resample` (2.4) does not limit the band when it lowers the rate, on either
device: see tools/resamplers.md.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import soxr

__all__ = ["resample", "resample_margin"]

_QUALITY = "HQ"  # 20 bits; images and aliases below -120 dB
_FILTER_REACH = 192  # samples of the lower rate; beyond it a window agrees with the whole file to 1e-6


def resample_margin(in_rate: int, out_rate: int) -> int:
    """Native samples to read on both sides of a window, so that its resampling equals that of the whole file.

    A whole number of periods: ``margin * out_rate / in_rate`` is an integer. 0 if the rates are equal.

    Args:
        in_rate: Native samples per second, > 0.
        out_rate: Samples per second after `resample`, > 0.
    """
    if in_rate == out_rate:
        return 0
    period = in_rate // math.gcd(in_rate, out_rate)
    reach = -(-_FILTER_REACH * in_rate // min(in_rate, out_rate))
    return -(-reach // period) * period


def resample(
    audio: npt.NDArray[np.float32], *, in_rate: int, out_rate: int, num_samples: int
) -> npt.NDArray[np.float32]:
    """The middle of a window at another rate.

    Args:
        audio: float32 [shape=(margin + n + margin,)], margin = `resample_margin`: native sound.
        in_rate: Its samples per second, > 0.
        out_rate: Samples per second of the result, > 0.
        num_samples: Samples of the result; n native samples have to last as long.

    Returns:
        float32 [shape=(num_samples,)]; sample k lies at the time of native sample margin + k * in_rate / out_rate.
    """
    if in_rate == out_rate:
        return audio[:num_samples]
    start = resample_margin(in_rate, out_rate) * out_rate // in_rate
    resampled: npt.NDArray[np.float32] = soxr.resample(audio, in_rate, out_rate, quality=_QUALITY)
    return resampled[start : start + num_samples]
