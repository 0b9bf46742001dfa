"""What augmentation draws: keyed by (seed, epoch, clip, name), never drawn in turn.

A draw belongs to one clip and one named transform, so it stays the same whatever the batch size, the order of the
batch, the number of ranks, or the transforms before it. Philox as in `avloader.keyed`, its fourth counter word with
the highest bit set, which no `keyed.Purpose` has.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from avloader.augment import loops
from avloader.augment.quantiles import normal_quantiles

__all__ = ["ClipKeys", "Draw", "draws", "name_tag", "white_noise"]

_Words = npt.NDArray[np.uint64]

_HALF = np.uint64(32)
_AUGMENT = 1 << 31
_NAME_BITS, _BLOCK_BITS = 23, 8


@dataclass(frozen=True, eq=False)
class ClipKeys:
    """Which draws a batch gets.

    Args:
        clips: What identifies each clip in the data set, integers [shape=(B,)], 0 <= clip < 2**63; a list, an array or
            a tensor on the CPU. Never its place in the batch.
        seed: 0 <= seed < 2**64.
        epoch: 0 <= epoch < 2**32, or one a clip [shape=(B,)].
    """

    clips: npt.NDArray[np.int64]
    seed: int = 0
    epoch: int | npt.NDArray[np.int64] = 0

    def __post_init__(self) -> None:
        clips = np.asarray(self.clips)
        if clips.ndim != 1 or (clips.size and clips.dtype.kind not in "iu"):
            raise TypeError(f"clips must be integers of shape (B,), got {clips.dtype} of shape {clips.shape}")
        if clips.size and not (clips.min() >= 0 and clips.max() < 2**63):
            raise ValueError(f"clips must be in [0, 2**63), got values from {clips.min()} to {clips.max()}")
        if not isinstance(self.seed, (int, np.integer)) or isinstance(self.seed, bool):
            raise TypeError(f"seed={self.seed!r} must be an integer")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed={self.seed} must be in [0, {2**64})")
        epoch = np.asarray(self.epoch)
        if epoch.shape not in ((), clips.shape) or epoch.dtype.kind not in "iu":
            raise TypeError(f"epoch={self.epoch!r} must be an integer, or one a clip")
        if epoch.size and not (epoch.min() >= 0 and epoch.max() < 2**32):
            raise ValueError(f"epoch={self.epoch} must be in [0, {2**32})")
        object.__setattr__(self, "clips", clips.astype(np.int64))
        object.__setattr__(self, "epoch", np.broadcast_to(epoch.astype(np.int64), clips.shape))

    def __len__(self) -> int:
        return len(self.clips)


class Draw:
    """The draws of one name, one column a clip.

    Args:
        words: 32-bit words [shape=(n, B)].
    """

    def __init__(self, words: _Words) -> None:
        self.words = words

    def uniform(self, index: int, low: float = 0.0, high: float = 1.0) -> npt.NDArray[np.float64]:
        """float64 [shape=(B,)] in [low, high); `low` where both are equal."""
        result: npt.NDArray[np.float64] = low + (high - low) * (self.words[index] * 2.0**-32)
        return result

    def key(self, index: int) -> npt.NDArray[np.int64]:
        """64 random bits from words `index` and `index + 1` [shape=(B,)]."""
        result: npt.NDArray[np.int64] = (self.words[index] | self.words[index + 1] << _HALF).astype(np.int64)
        return result

    def integers(self, index: int, low: npt.ArrayLike, stop: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """int64 [shape=(B,)] in [low, stop), both scalars or one a clip; `low` where the range is empty."""
        first = np.asarray(low, np.int64)
        count = np.maximum(np.asarray(stop, np.int64) - first, 1).astype(np.uint64)
        result: npt.NDArray[np.int64] = first + (self.words[index] * count >> _HALF).astype(np.int64)
        return result


def draws(keys: ClipKeys, num_words: Mapping[str, int]) -> dict[str, Draw]:
    """The draws of a batch.

    Args:
        keys: The clips.
        num_words: How many words each name needs, at most 1024.
    """
    fourth = _fourth_words(tuple(num_words.items()))
    words = np.empty((4 * len(fourth), len(keys)), np.uint64)
    epochs = np.asarray(keys.epoch).astype(np.uint64)
    loops.draw_words(keys.clips.view(np.uint64), epochs, fourth, np.uint64(keys.seed), words)
    result, first = {}, 0
    for name, count in num_words.items():
        result[name] = Draw(words[first : first + count])
        first += 4 * -(-count // 4)
    return result


@functools.lru_cache
def _fourth_words(num_words: tuple[tuple[str, int], ...]) -> _Words:
    """The fourth words of the counters, four random words each."""
    tags = ((_AUGMENT | name_tag(name) << _BLOCK_BITS, count) for name, count in num_words)
    return np.array([tag | block for tag, count in tags for block in range(-(-count // 4))], np.uint64)


@functools.lru_cache(maxsize=4096)
def name_tag(name: str) -> int:
    """What stands for a name in the counter, 23 bits."""
    return zlib.crc32(name.encode()) & ((1 << _NAME_BITS) - 1)


def white_noise(key: torch.Tensor, num_samples: int) -> torch.Tensor:
    """Normal noise, mean 0, variance 1, float32 [shape=(B, num_samples)], on the key's device.

    Sample t of a clip is the quantile at 16 of the bits that Philox gives for counter t // 8 under the clip's key: the
    same bits on CPU and GPU, whatever the batch.

    Args:
        key: 64 random bits a clip [shape=(B,)], int64.
        num_samples: Samples of each clip.
    """
    if key.device.type == "cuda":
        from avloader.augment import kernels

        return kernels.white_noise(key, num_samples)
    noise = np.empty((len(key), num_samples), np.float32)
    loops.white_noise(key.numpy().view(np.uint64), normal_quantiles(), noise)
    return torch.from_numpy(noise)
