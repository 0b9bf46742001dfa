"""Keyed randomness: a draw depends on what it is for, never on how many draws came before it.

Philox 4x32 with ten rounds (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", 2011) with the
seed as key and (item, epoch, purpose) as counter. Integers only, so the draws are the same on every machine.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import numpy.typing as npt

__all__ = ["Purpose", "below", "bits", "permutation", "philox"]

_Words = npt.NDArray[np.uint64]
_FourWords = tuple[_Words, _Words, _Words, _Words]

_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL = 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_BLOCK = 1 << 14  # counters at a time, so that the work stays in the processor's cache


class Purpose(IntEnum):
    """What a draw is for. A number keeps its meaning for ever: new purposes get new numbers."""

    SHUFFLE = 0
    WINDOW = 1
    OFFSET = 2
    OFFSET_PLACE = 3
    OTHER_ROW = 4
    CROP = 5
    SOUND_PLACE = 6
    BUCKET = 7
    LENGTH = 8


def philox(counter: _FourWords, key: tuple[int, int]) -> _FourWords:
    """Four random 32-bit words for each counter of four 32-bit words.

    Args:
        counter: uint64 arrays of one shape, each value below 2**32.
        key: Two words below 2**32.
    """
    first, second, third, fourth = counter
    for number in range(_ROUNDS):
        left, right = first * _MULTIPLIERS[0], third * _MULTIPLIERS[1]
        keys = [np.uint64((word + number * weyl) & 0xFFFFFFFF) for word, weyl in zip(key, _WEYL, strict=True)]
        first, second, third, fourth = (
            (right >> _HALF) ^ second ^ keys[0],
            right & _LOW,
            (left >> _HALF) ^ fourth ^ keys[1],
            left & _LOW,
        )
    return first, second, third, fourth


def bits(items: npt.ArrayLike, *, seed: int, epoch: int, purpose: Purpose) -> _Words:
    """64 random bits for each item.

    Args:
        items: Integers [shape=(n,)], 0 <= item < 2**63.
        seed: 0 <= seed < 2**64.
        epoch: 0 <= epoch < 2**32.
        purpose: What the draw is for.
    """
    numbers = np.asarray(items).astype(np.uint64, copy=False)
    result = np.empty_like(numbers)
    for begin in range(0, len(numbers), _BLOCK):
        block = numbers[begin : begin + _BLOCK]
        counter = block & _LOW, block >> _HALF, np.full_like(block, epoch), np.full_like(block, int(purpose))
        first, second, _, _ = philox(counter, (seed & 0xFFFFFFFF, seed >> 32))
        result[begin : begin + _BLOCK] = first << _HALF | second
    return result


def below(limits: npt.ArrayLike, random: _Words) -> npt.NDArray[np.int64]:
    """An integer 0 <= x < limit from 64 random bits, for each of `limits` (0 < limit < 2**31)."""
    limit = np.asarray(limits).astype(np.uint64)
    high, low = random >> _HALF, random & _LOW
    result: npt.NDArray[np.int64] = (high * limit + (low * limit >> _HALF) >> _HALF).astype(np.int64)
    return result  # floor(random * limit / 2**64)


def permutation(num_items: int, *, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """A random order of the integers below `num_items`, int64 [shape=(num_items,)]."""
    # The item in the low bits makes every key distinct, so that the order does not depend on how NumPy sorts.
    mask = np.uint64((1 << num_items.bit_length()) - 1)
    keys = np.empty(num_items, np.uint64)
    for begin in range(0, num_items, _BLOCK):  # so that nothing but the keys is in memory as a whole
        items = np.arange(begin, min(begin + _BLOCK, num_items), dtype=np.uint64)
        keys[begin : begin + _BLOCK] = bits(items, seed=seed, epoch=epoch, purpose=Purpose.SHUFFLE) & ~mask | items
    keys.sort()
    keys &= mask
    return keys.view(np.int64)
