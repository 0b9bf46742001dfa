"""Spectra on the CPU: stretches of sound, their transforms, and bands of those, some hundred at a time.

What is between sound and bands stays in the processor's cache. A clip's result depends on that clip alone.
"""

from __future__ import annotations

import functools
import threading
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from avloader.features.transform_loops import cut, weigh

__all__ = ["Bank", "spectrum"]

_Floats = npt.NDArray[np.float32]

_BLOCK = 256  # transforms at a time


@dataclass(frozen=True, eq=False)
class Bank:
    """A matrix whose rows are mostly zero.

    Args:
        weights: float32 [shape=(num_bands, num_bins)].
    """

    weights: _Floats
    first: npt.NDArray[np.int64] = field(init=False)
    stop: npt.NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        used = self.weights != 0
        some = used.any(axis=1)
        num_bins = used.shape[1]
        object.__setattr__(self, "weights", np.ascontiguousarray(self.weights))
        object.__setattr__(self, "first", np.where(some, used.argmax(axis=1), 0))
        object.__setattr__(self, "stop", np.where(some, num_bins - used[:, ::-1].argmax(axis=1), 0))


@functools.lru_cache(16)
def _every_bin(num_bins: int) -> Bank:
    """No bands: each bin by itself."""
    return Bank(np.eye(num_bins, dtype=np.float32))


def spectrum(
    sound: _Floats,
    num_columns: int,
    *,
    window: _Floats,
    n_fft: int,
    hop_length: int,
    bank: Bank | None = None,
    power: int = 2,
    magnitude_add: float = 0.0,
    remove_mean: bool = False,
    preemphasis: float = 0.0,
    room: int = 0,
) -> _Floats:
    """Amplitude or power of windowed stretches of sound, or bands of it, float32 [shape=(num_bands, num_columns)].

    Args:
        sound: float32 [shape=(num_samples,)]; zeros follow.
        num_columns: Stretches; stretch t begins at sample t * hop_length.
        window: float32 [shape=(length,)], length <= n_fft: weights of a stretch, after which zeros follow.
        n_fft: Samples of a transform.
        hop_length: Samples from one stretch to the next.
        bank: What is added up; None: each bin by itself.
        power: 1 for amplitude, 2 for power.
        magnitude_add: The amplitude is sqrt(power + magnitude_add).
        remove_mean: Each stretch less its mean.
        preemphasis: After that x[t] - preemphasis * x[t - 1] in each stretch, its first sample standing before itself.
        room: The result is the beginning of an array with so many columns, if these are more.
    """
    bank = _every_bin(n_fft // 2 + 1) if bank is None else bank
    result = np.empty((len(bank.weights), max(num_columns, room)), np.float32)[:, :num_columns]
    stretches, spectra = _buffers(n_fft)
    for first in range(0, num_columns, _BLOCK):
        count = min(_BLOCK, num_columns - first)
        cut(
            sound,
            first * hop_length,
            hop_length,
            window,
            remove_mean,
            np.float32(preemphasis),
            stretches[:count].numpy(),
        )
        torch.fft.rfft(stretches[:count], out=spectra[:count])
        parts = torch.view_as_real(spectra[:count]).view(count, -1).numpy()
        weigh(
            parts,
            bank.weights,
            bank.first,
            bank.stop,
            power == 1,
            np.float32(magnitude_add),
            result[:, first : first + count],
        )
    return result


def _buffers(n_fft: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Memory of this thread for a block's stretches, and for their transforms."""
    kept = _own.buffers
    if n_fft not in kept:
        kept[n_fft] = torch.empty(_BLOCK, n_fft), torch.empty(_BLOCK, n_fft // 2 + 1, dtype=torch.complex64)
    return kept[n_fft]


class _Own(threading.local):
    def __init__(self) -> None:
        self.buffers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}


_own = _Own()
