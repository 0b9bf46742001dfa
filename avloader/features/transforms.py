"""Spectra on the CPU: stretches of sound, their transforms, and bands of those, some hundred at a time.

What is between sound and bands stays in the processor's cache. A clip's result depends on that clip alone.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

__all__ = ["Bank", "spectrum"]

_Floats = npt.NDArray[np.float32]

_BLOCK_SAMPLES = 131072  # of the stretches that are worked on at a time
_LEAST_BLOCK = 16


@dataclass(frozen=True, eq=False)
class Bank:
    """Bands of neighbouring bins.

    Attributes:
        weights: float32 [shape=(num_bands, width)], of a band's bins in order, as many as the widest band has.
        first: int64 [shape=(num_bands,)], the first bin of each.
        stop: After the last one.
    """

    weights: _Floats
    first: npt.NDArray[np.int64]
    stop: npt.NDArray[np.int64]

    @classmethod
    def of(cls, matrix: npt.NDArray[Any]) -> Bank:
        """The bank that multiplies by a matrix [shape=(num_bands, num_bins)]."""
        used = matrix != 0
        some = used.any(axis=1)
        first = np.where(some, used.argmax(axis=1), 0)
        stop = np.where(some, used.shape[1] - used[:, ::-1].argmax(axis=1), 0)
        weights = np.zeros((len(matrix), int((stop - first).max())), np.float32)
        for own, row, begin, end in zip(weights, matrix, first.tolist(), stop.tolist(), strict=True):
            own[: end - begin] = row[begin:end]
        return cls(weights, first, stop)

    @classmethod
    def of_bins(cls, num_bins: int) -> Bank:
        """Each bin by itself."""
        bins = np.arange(num_bins)
        return cls(np.ones((num_bins, 1), np.float32), bins, bins + 1)


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
    """
    import torch

    from avloader.features.transform_loops import cut, weigh

    bank = Bank.of_bins(n_fft // 2 + 1) if bank is None else bank
    result = np.empty((len(bank.weights), num_columns), np.float32)
    stretches, spectra = _buffers(n_fft)
    for first in range(0, num_columns, len(stretches)):
        count = min(len(stretches), num_columns - first)
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
    import torch

    kept = _own.buffers
    if n_fft not in kept:
        size = max(_BLOCK_SAMPLES // n_fft, _LEAST_BLOCK)
        kept[n_fft] = torch.empty(size, n_fft), torch.empty(size, n_fft // 2 + 1, dtype=torch.complex64)
    return kept[n_fft]


class _Own(threading.local):
    def __init__(self) -> None:
        self.buffers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}


_own = _Own()
