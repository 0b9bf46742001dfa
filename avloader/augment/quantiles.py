"""The table that turns random bits into normal noise."""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

__all__ = ["normal_quantiles"]


@functools.cache
def normal_quantiles() -> npt.NDArray[np.float32]:
    """The 2**16 quantiles of a normal distribution, mean 0, variance 1.

    A table where others use logarithms and cosines: the same bits on every device.
    """
    from scipy.special import ndtri

    middle = ndtri((np.arange(1 << 15, 1 << 16) + 0.5) / (1 << 16))
    half = middle / np.sqrt(np.mean(middle**2))
    return np.concatenate([-half[::-1], half]).astype(np.float32)
