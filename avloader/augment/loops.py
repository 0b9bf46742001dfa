"""The CPU's loops over samples, compiled when they are first called: one pass over a clip where NumPy needs several.

Each works row after row on float32 [shape=(R, N)], C-contiguous, without Python's lock, so that threads run it side by
side. Float32 is multiplied and added in the order of the GPU's kernels and never contracted, sums are of integers: the
same bits in any batch, and where only these happen on the GPU too.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from avloader.compiled import compiled

__all__ = [
    "clip",
    "draw_words",
    "energies",
    "gain_transition",
    "mix",
    "mix_span",
    "order_statistics",
    "peaks",
    "scale",
    "span_energies",
    "time_mask",
    "white_noise",
]

_Floats = npt.NDArray[np.float32]
_Words = npt.NDArray[np.uint64]

_RAMP = 64  # samples of a gain transition that share one exponential


@compiled
def scale(x: _Floats, gain: _Floats, out: _Floats) -> None:
    """``gain[r] * x[r]``."""
    for row in range(x.shape[0]):
        for t in range(x.shape[1]):
            out[row, t] = x[row, t] * gain[row]


@compiled
def clip(x: _Floats, low: _Floats, high: _Floats, out: _Floats) -> None:
    """`x` within [low[r], high[r]]; NaN stays."""
    for row in range(x.shape[0]):
        least, most = low[row], high[row]
        for t in range(x.shape[1]):
            value = x[row, t]
            value = least if value < least else value
            out[row, t] = most if value > most else value


@compiled
def peaks(bits: npt.NDArray[np.int32], out: npt.NDArray[np.int32]) -> None:
    """Bits of the greatest absolute value of each row, of the bits of its samples; infinite or NaN if one is."""
    for row in range(bits.shape[0]):
        most = np.int32(0)
        for t in range(bits.shape[1]):
            value = np.int32(bits[row, t] & np.int32(0x7FFFFFFF))
            most = max(most, value)
        out[row] = most


@compiled
def energies(x: _Floats, factor: _Floats, out: npt.NDArray[np.int64]) -> None:
    """Sums of squares of ``floor(factor[r] * x[r] + 0.5)``; 0 where the factor is."""
    for row in range(x.shape[0]):
        total = np.int64(0)
        if factor[row] > 0:
            for t in range(x.shape[1]):
                whole = np.int64(np.int32(np.floor(x[row, t] * factor[row] + np.float32(0.5))))
                total += whole * whole
        out[row] = total


@compiled
def mix(x: _Floats, gain: _Floats, noise: _Floats, noise_gain: _Floats, out: _Floats) -> None:
    """``gain[r] * x[r] + noise_gain[r] * noise[r]``; the noise becomes what was added."""
    for row in range(x.shape[0]):
        for t in range(x.shape[1]):
            added = noise_gain[row] * noise[row, t]
            noise[row, t] = added
            out[row, t] = gain[row] * x[row, t] + added


@compiled
def _scaled(x: _Floats, gain: np.float32, out: _Floats) -> None:
    for t in range(len(x)):
        out[t] = x[t] * gain


@compiled
def _with_samples(
    x: _Floats, gain: np.float32, samples: npt.NDArray[np.int16], noise_gain: np.float32, out: _Floats
) -> None:
    for t in range(len(x)):
        out[t] = gain * x[t] + noise_gain * np.float32(samples[t])


@compiled
def _faded(x: _Floats, gain: np.float32, first: int, length: int, fade: int, shape: np.float32, out: _Floats) -> None:
    """Samples of a mask from its sample `first` on."""
    lead, steps = (np.float32(0), np.float32(fade - 1)) if fade >= 2 else (np.float32(1), np.float32(1))
    for t in range(len(x)):
        inside = np.float32(min(first + t, length - 1 - first - t))
        depth = min((inside + lead) / steps, np.float32(1))
        rest = np.float32(1) - depth
        product = depth * rest
        curve = product * (np.float32(1) + shape * product) + rest
        out[t] = x[t] * (curve * curve * gain)


@compiled
def _ramped(x: _Floats, base: float, ramp: npt.NDArray[np.float64], out: _Floats) -> None:
    for t in range(len(x)):
        out[t] = x[t] * np.float32(base * ramp[t])


@compiled
def mix_span(
    x: _Floats,
    gain: _Floats,
    bank: npt.NDArray[np.int16],
    first: npt.NDArray[np.int64],
    length: npt.NDArray[np.int64],
    offset: npt.NDArray[np.int64],
    start: npt.NDArray[np.int64],
    stop: npt.NDArray[np.int64],
    noise_gain: _Floats,
    out: _Floats,
    noise: _Floats,
) -> None:
    """`mix` with stretches of a bank, repeated where they are short, in [start[r], stop[r]).

    Args:
        x: Sound.
        gain: Its factors.
        bank: The samples of all sounds.
        first: Where the sound of each row begins in it.
        length: How long it is.
        offset: Its sample under the row's sample `start`.
        start: First sample that holds sound.
        stop: After the last one.
        noise_gain: The factors of the bank's samples.
        out: The result.
        noise: What was added, for rows that it has.
    """
    for row in range(x.shape[0]):
        _scaled(x[row, : start[row]], gain[row], out[row, : start[row]])
        _scaled(x[row, stop[row] :], gain[row], out[row, stop[row] :])
        if noise.shape[0]:
            noise[row, : start[row]] = 0
            noise[row, stop[row] :] = 0
        begin, place = start[row], offset[row]
        while begin < stop[row]:
            count = min(length[row] - place, stop[row] - begin)
            end = begin + count
            samples = bank[first[row] + place : first[row] + place + count]
            _with_samples(x[row, begin:end], gain[row], samples, noise_gain[row], out[row, begin:end])
            if noise.shape[0]:
                for t in range(count):
                    noise[row, begin + t] = noise_gain[row] * np.float32(samples[t])
            begin, place = end, 0


@compiled
def _square_sum(samples: npt.NDArray[np.int16]) -> int:
    total = np.int64(0)
    for t in range(len(samples)):
        value = np.int64(samples[t])
        total += value * value
    return total  # type: ignore[no-any-return]


@compiled
def span_energies(
    bank: npt.NDArray[np.int16],
    first: npt.NDArray[np.int64],
    length: npt.NDArray[np.int64],
    offset: npt.NDArray[np.int64],
    start: npt.NDArray[np.int64],
    stop: npt.NDArray[np.int64],
    out: npt.NDArray[np.int64],
) -> None:
    """Sums of squares of the stretches that `mix_span` adds."""
    for row in range(len(out)):
        total, begin, place = np.int64(0), start[row], offset[row]
        while begin < stop[row]:
            count = min(length[row] - place, stop[row] - begin)
            total += _square_sum(bank[first[row] + place : first[row] + place + count])
            begin, place = begin + count, 0
        out[row] = total


@compiled
def time_mask(
    x: _Floats,
    gain: _Floats,
    first: npt.NDArray[np.int64],
    length: npt.NDArray[np.int64],
    fade: npt.NDArray[np.int64],
    shape: np.float32,
    out: _Floats,
) -> None:
    """``gain[r] * x[r]``, faded out and in over `fade` samples inside [first, first + length), silent between."""
    for row in range(x.shape[0]):
        begin, end = first[row], first[row] + length[row]
        edge = min(max(fade[row], 0), length[row] // 2)
        own = gain[row]
        _scaled(x[row, :begin], own, out[row, :begin])
        _faded(x[row, begin : begin + edge], own, 0, length[row], fade[row], shape, out[row, begin : begin + edge])
        out[row, begin + edge : end - edge] = 0
        back = length[row] - edge
        _faded(x[row, end - edge : end], own, back, length[row], fade[row], shape, out[row, end - edge : end])
        _scaled(x[row, end:], own, out[row, end:])


@compiled
def gain_transition(
    x: _Floats,
    gain: _Floats,
    begin: npt.NDArray[np.int64],
    fade: npt.NDArray[np.int64],
    first_db: npt.NDArray[np.float64],
    last_db: npt.NDArray[np.float64],
    out: _Floats,
) -> None:
    """`x` times a gain that goes evenly in dB from one to the other within `fade` samples from `begin` on."""
    num_samples = x.shape[1]
    ramp = np.empty(_RAMP)
    for row in range(x.shape[0]):
        step = math.log(10.0) / 20 * (last_db[row] - first_db[row]) / (fade[row] - 1)
        for t in range(_RAMP):
            ramp[t] = math.exp(step * t)
        start = math.exp(math.log(10.0) / 20 * first_db[row]) * gain[row]
        after = start * math.exp(step * (fade[row] - 1))
        low = min(max(begin[row], 0), num_samples)
        high = min(max(begin[row] + fade[row], 0), num_samples)
        _scaled(x[row, :low], np.float32(start), out[row, :low])
        # Blocks begin where the way does, so that nothing depends on where the clip is cut off.
        for block in range(begin[row] + (low - begin[row]) // _RAMP * _RAMP, high, _RAMP):
            base = start * math.exp(step * (block - begin[row]))
            one, other = max(low, block), min(high, block + _RAMP)
            _ramped(x[row, one:other], base, ramp[one - block :], out[row, one:other])
        _scaled(x[row, high:], np.float32(after), out[row, high:])


@compiled
def order_statistics(
    bits: npt.NDArray[np.int32],
    start: npt.NDArray[np.int64],
    stop: npt.NDArray[np.int64],
    ranks: npt.NDArray[np.int64],
    absolute: bool,
    out: npt.NDArray[np.int32],
) -> None:
    """The samples of some ranks among those in [start[r], stop[r]), of the bits of all samples.

    Counts the upper halves of the bits first and then sorts the few samples that share the half of a wanted one.

    Args:
        bits: Bits of the samples [shape=(R, N)].
        start: First sample that counts [shape=(R,)].
        stop: After the last one.
        ranks: Places in the order from the least on [shape=(R, K)].
        absolute: Whether absolute values are ordered.
        out: Bits of the samples there [shape=(R, K)].
    """
    counts = np.empty(1 << 16, np.int64)
    kept = np.int32(0x7FFFFFFF) if absolute else np.int32(-1)
    for row in range(bits.shape[0]):
        counts[:] = 0
        own = bits[row, start[row] : stop[row]]
        for t in range(len(own)):
            # Integers in the order of the numbers: those below 0 with all their other bits turned over.
            value = np.int32(own[t] & kept)
            key = np.int32(value ^ ((value >> 31) & np.int32(0x7FFFFFFF)))
            counts[(key >> 16) + 32768] += 1
        last, near = -1, np.empty(0, np.int32)
        for column in range(ranks.shape[1]):
            rank, half = ranks[row, column], 0
            while rank >= counts[half]:
                rank -= counts[half]
                half += 1
            if half != last:
                near, last = np.empty(counts[half], np.int32), half
                found = 0
                for t in range(len(own)):
                    value = np.int32(own[t] & kept)
                    key = np.int32(value ^ ((value >> 31) & np.int32(0x7FFFFFFF)))
                    if (key >> 16) + 32768 == half:
                        near[found] = key
                        found += 1
                near.sort()
            key = near[rank]
            out[row, column] = np.int32(key ^ ((key >> 31) & np.int32(0x7FFFFFFF)))


@compiled
def _philox(
    one: np.uint64, two: np.uint64, three: np.uint64, four: np.uint64, left_key: np.uint64, right_key: np.uint64
) -> tuple[np.uint64, np.uint64, np.uint64, np.uint64]:
    """`avloader.keyed.philox` for one counter."""
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    for _ in range(10):
        left, right = one * np.uint64(0xD2511F53), three * np.uint64(0xCD9E8D57)
        one, two = (right >> half) ^ two ^ left_key, right & low
        three, four = (left >> half) ^ four ^ right_key, left & low
        left_key = (left_key + np.uint64(0x9E3779B9)) & low
        right_key = (right_key + np.uint64(0xBB67AE85)) & low
    return one, two, three, four


@compiled
def draw_words(clips: _Words, epochs: _Words, fourth: _Words, seed: np.uint64, out: _Words) -> None:
    """Random words of counters (clip's low and high half, epoch, fourth[i]): rows 4 i to 4 i + 3 of `out`."""
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    for column in range(clips.shape[0]):
        for number in range(fourth.shape[0]):
            words = _philox(
                clips[column] & low, clips[column] >> half, epochs[column], fourth[number], seed & low, seed >> half
            )
            for place in range(4):
                out[4 * number + place, column] = words[place]


@compiled
def white_noise(key: _Words, table: _Floats, out: _Floats) -> None:
    """Quantiles at the bits that Philox gives for counters (t // 8, 0, 0, 0) under each row's key."""
    low, half, zero = np.uint64(0xFFFFFFFF), np.uint64(32), np.uint64(0)
    words = np.empty(4, np.uint64)
    for row in range(out.shape[0]):
        for block in range((out.shape[1] + 7) // 8):
            words[0], words[1], words[2], words[3] = _philox(
                np.uint64(block), zero, zero, zero, key[row] & low, key[row] >> half
            )
            for place in range(min(8, out.shape[1] - 8 * block)):
                word = words[place // 2]
                index = word >> np.uint64(16) if place % 2 else word & np.uint64(0xFFFF)
                out[row, 8 * block + place] = table[np.int64(index)]
