"""Triton kernels for the GPU. Every program's work is fixed by its own clip: no result depends on the batch.

Imported on GPU machines only. Grids are (clip, tile of time); sums are of integers, so their order does not matter; FMA
is off where the CPU has to give the same bits.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl

from avloader.augment.quantiles import normal_quantiles

__all__ = ["add_noise", "convolve", "energy", "lowpass_taps", "mix_span", "white_noise"]

_TILE = 4096
_WARPS = 8
_CLIP_TILE, _CLIP_WARPS = 8192, 16  # where one program does a whole clip
_FIR_ROWS, _FIR_COLUMNS, _FIR_STEP = 64, 64, 32
_TAPS_BLOCK = 512


@triton.jit
def _power_of_two(exponent):  # type: ignore[no-untyped-def]
    return ((exponent + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _shift_of(peak, bits):  # type: ignore[no-untyped-def]
    """Exponent that takes values up to `peak` to integers of `bits` bits."""
    exponent = ((peak.to(tl.int32, bitcast=True) >> 23) & 255) - 126
    return tl.minimum(tl.maximum(bits - exponent, -126), 127)


@triton.jit  # type: ignore[untyped-decorator]
def _energy(x_ptr, peak_ptr, bits_ptr, sums_ptr, n, TILE: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    clip = tl.program_id(0).to(tl.int64)
    t = tl.program_id(1) * TILE + tl.arange(0, TILE)
    scale = _power_of_two(_shift_of(tl.load(peak_ptr + clip), tl.load(bits_ptr + clip)))
    x = tl.load(x_ptr + clip * n + t, mask=t < n, other=0.0)
    value = tl.floor(x * scale + 0.5).to(tl.int32).to(tl.int64)
    tl.atomic_add(sums_ptr + clip, tl.sum(value * value))


@triton.jit
def _energy_of(sum_, peak, bits):  # type: ignore[no-untyped-def]
    unit = ((1023 - 2 * _shift_of(peak, bits).to(tl.int64)) << 52).to(tl.float64, bitcast=True)
    return sum_.to(tl.float64) * unit


@triton.jit
def _gain(x_sum, x_peak, bits, scale, noise_sum, noise_energy, ratio):  # type: ignore[no-untyped-def]
    """The factor of noise at a ratio of energies; 0 where either is silent, or the sound is not finite."""
    target = _energy_of(x_sum, x_peak, bits) * (scale.to(tl.float64) * scale.to(tl.float64))
    return _gain_to(target, (x_sum > 0) & (x_peak < float("inf")), noise_sum, noise_energy, ratio)


@triton.jit
def _gain_to(target, is_wanted, noise_sum, noise_energy, ratio):  # type: ignore[no-untyped-def]
    is_good = is_wanted & (noise_sum > 0)
    return tl.where(is_good, ratio * tl.sqrt(target / tl.where(is_good, noise_energy, 1.0)), 0.0)


@triton.jit
def _span(base_ptr, t, start, stop, offset, length, wraps):  # type: ignore[no-untyped-def]
    """Samples `t` of a clip that sound of a bank lies under, from `offset` on; 0 outside [start, stop)."""
    inside = (t >= start) & (t < stop)
    place = offset + tl.where(inside, t - start, 0)
    if wraps:
        place = place % length
    return tl.load(base_ptr + place, mask=inside, other=0)


@triton.jit  # type: ignore[untyped-decorator]
def _mix_span(  # type: ignore[no-untyped-def]
    x_ptr,
    bank_ptr,
    first_ptr,
    length_ptr,
    offset_ptr,
    start_ptr,
    stop_ptr,
    bits_ptr,
    scale_ptr,
    ratio_ptr,
    energy_ptr,
    step_ptr,
    y_ptr,
    noise_ptr,
    gain_ptr,
    n,
    IS_ABSOLUTE: tl.constexpr,  # noqa: N803
    RETURN_NOISE: tl.constexpr,  # noqa: N803
    TILE: tl.constexpr,  # noqa: N803
):
    """All of a clip in one program: its peak, both energies, the mix. Three launches less take longer than that."""
    clip = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, TILE)
    start, stop = tl.load(start_ptr + clip), tl.load(stop_ptr + clip)
    offset, length = tl.load(offset_ptr + clip), tl.load(length_ptr + clip)
    wraps = offset + (stop - start) > length
    bits, scale, ratio = tl.load(bits_ptr + clip), tl.load(scale_ptr + clip), tl.load(ratio_ptr + clip)
    base_ptr, row_ptr = bank_ptr + tl.load(first_ptr + clip), x_ptr + clip * n
    most = tl.zeros((TILE,), tl.int32)
    if not IS_ABSOLUTE:
        for begin in range(0, n, TILE):
            x = tl.load(row_ptr + begin + lane, mask=begin + lane < n, other=0.0)
            most = tl.maximum(most, x.to(tl.int32, bitcast=True) & 0x7FFFFFFF)  # so that NaN counts as the greatest
    x_peak = tl.max(most).to(tl.float32, bitcast=True)
    to_whole = _power_of_two(_shift_of(x_peak, bits))
    x_sums, noise_sums = tl.zeros((TILE,), tl.int64), tl.zeros((TILE,), tl.int64)
    for begin in range(0, n, TILE):
        noise = _span(base_ptr, begin + lane, start, stop, offset, length, wraps).to(tl.int64)
        noise_sums += noise * noise
        if not IS_ABSOLUTE:
            x = tl.load(row_ptr + begin + lane, mask=begin + lane < n, other=0.0)
            value = tl.floor(x * to_whole + 0.5).to(tl.int32).to(tl.int64)
            x_sums += value * value
    noise_sum = tl.sum(noise_sums)
    noise_energy = noise_sum.to(tl.float64)
    if IS_ABSOLUTE:
        gain = _gain_to(tl.load(energy_ptr + clip), noise_sum > 0, noise_sum, noise_energy, ratio)
    else:
        gain = _gain(tl.sum(x_sums), x_peak, bits, scale, noise_sum, noise_energy, ratio)
    for begin in range(0, n, TILE):
        t = begin + lane
        noise = _span(base_ptr, t, start, stop, offset, length, wraps).to(tl.float32)
        x = tl.load(row_ptr + t, mask=t < n, other=0.0)
        scaled = gain.to(tl.float32) * noise
        tl.store(y_ptr + clip * n + t, scale * x + scaled, mask=t < n)
        if RETURN_NOISE:
            tl.store(noise_ptr + clip * n + t, scaled, mask=t < n)
    tl.store(gain_ptr + clip, gain / tl.load(step_ptr + clip))


@triton.jit  # type: ignore[untyped-decorator]
def _add_noise(  # type: ignore[no-untyped-def]
    x_ptr,
    x_sum_ptr,
    x_peak_ptr,
    noise_ptr,
    noise_sum_ptr,
    noise_peak_ptr,
    bits_ptr,
    scale_ptr,
    ratio_ptr,
    y_ptr,
    gain_ptr,
    n,
    RETURN_NOISE: tl.constexpr,  # noqa: N803
    TILE: tl.constexpr,  # noqa: N803
):
    clip = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    t = tile * TILE + tl.arange(0, TILE)
    bits = tl.load(bits_ptr + clip)
    scale = tl.load(scale_ptr + clip)
    x_sum, x_peak = tl.load(x_sum_ptr + clip), tl.load(x_peak_ptr + clip)
    noise_sum = tl.load(noise_sum_ptr + clip)
    noise_energy = _energy_of(noise_sum, tl.load(noise_peak_ptr + clip), bits)
    gain = _gain(x_sum, x_peak, bits, scale, noise_sum, noise_energy, tl.load(ratio_ptr + clip))
    x = tl.load(x_ptr + clip * n + t, mask=t < n, other=0.0)
    noise = tl.load(noise_ptr + clip * n + t, mask=t < n, other=0.0)
    scaled = gain.to(tl.float32) * noise
    tl.store(y_ptr + clip * n + t, scale * x + scaled, mask=t < n)
    if RETURN_NOISE:
        tl.store(noise_ptr + clip * n + t, scaled, mask=t < n)
    if tile == 0:
        tl.store(gain_ptr + clip, gain)


@triton.jit
def _sin_pi(x):  # type: ignore[no-untyped-def]
    """sin(pi x) in float64 to 1e-14: the series, after taking whole half-turns away."""
    whole = tl.floor(x + 0.5)
    z = (x - whole) * 3.141592653589793
    s = z * z
    p = 1.0 - s * (1.0 / 342.0)
    p = 1.0 - s * (1.0 / 272.0) * p
    p = 1.0 - s * (1.0 / 210.0) * p
    p = 1.0 - s * (1.0 / 156.0) * p
    p = 1.0 - s * (1.0 / 110.0) * p
    p = 1.0 - s * (1.0 / 72.0) * p
    p = 1.0 - s * (1.0 / 42.0) * p
    p = 1.0 - s * (1.0 / 20.0) * p
    p = 1.0 - s * (1.0 / 6.0) * p
    return z * p * (1.0 - 2.0 * (whole - 2.0 * tl.floor(whole * 0.5)))


@triton.jit
def _windowed_sinc(m, frequency, half):  # type: ignore[no-untyped-def]
    """Tap m of a low-pass that is not yet normalized, float64; `frequency` in cycles a sample."""
    place = m.to(tl.float64)
    angle = 2.0 * frequency * place
    sinc = tl.where(m == 0, 1.0, _sin_pi(angle) / tl.where(m == 0, 1.0, 3.141592653589793 * angle))
    window = 0.5 + 0.5 * _sin_pi(place / half + 0.5)
    return tl.where(m <= half, sinc * window, 0.0)


@triton.jit  # type: ignore[untyped-decorator]
def _lowpass_taps(  # type: ignore[no-untyped-def]
    frequency_ptr,
    weight_ptr,
    half_ptr,
    impulse_ptr,
    scale_ptr,
    reach_ptr,
    taps_ptr,
    width,
    BLOCK: tl.constexpr,  # noqa: N803
):
    """Impulse * delta + sum of weight_i * lowpass_i, times scale, around the middle column."""
    clip = tl.program_id(0).to(tl.int64)
    middle = width // 2
    low, high = tl.load(frequency_ptr + 2 * clip), tl.load(frequency_ptr + 2 * clip + 1)
    low_half, high_half = tl.load(half_ptr + 2 * clip), tl.load(half_ptr + 2 * clip + 1)
    low_sum = low * 0.0
    high_sum = low * 0.0
    for first in range(0, low_half + 1, BLOCK):
        m = first + tl.arange(0, BLOCK)
        low_sum += tl.sum(tl.where(m == 0, 1.0, 2.0) * _windowed_sinc(m, low, low_half))
    for first in range(0, high_half + 1, BLOCK):
        m = first + tl.arange(0, BLOCK)
        high_sum += tl.sum(tl.where(m == 0, 1.0, 2.0) * _windowed_sinc(m, high, high_half))
    low_weight, high_weight = tl.load(weight_ptr + 2 * clip), tl.load(weight_ptr + 2 * clip + 1)
    impulse, scale = tl.load(impulse_ptr + clip), tl.load(scale_ptr + clip).to(tl.float64)
    for first in range(0, tl.load(reach_ptr + clip) + 1, BLOCK):
        m = first + tl.arange(0, BLOCK)
        tap = low_weight * _windowed_sinc(m, low, low_half) / low_sum
        tap += high_weight * _windowed_sinc(m, high, high_half) / high_sum
        tap = ((tap + tl.where(m == 0, impulse, 0.0)) * scale).to(tl.float32)
        tl.store(taps_ptr + clip * width + middle + m, tap, mask=m <= middle)
        tl.store(taps_ptr + clip * width + middle - m, tap, mask=m <= middle)


@triton.jit  # type: ignore[untyped-decorator]
def _convolve(  # type: ignore[no-untyped-def]
    x_ptr,
    taps_ptr,
    reach_ptr,
    start_ptr,
    stop_ptr,
    y_ptr,
    n,
    width,
    ROWS: tl.constexpr,  # noqa: N803
    COLUMNS: tl.constexpr,  # noqa: N803
    STEP: tl.constexpr,  # noqa: N803
):
    """y[t] = sum over m in [-reach, reach] of taps[middle + m] x[t - m], as products of small matrices.

    Row r, column c of a tile is sample first + r * COLUMNS + c. The left matrix holds stretches of sound, the right one
    the taps, moved on by one in each column.
    """
    clip = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * ROWS * COLUMNS
    reach = tl.load(reach_ptr + clip)
    row, column, step = tl.arange(0, ROWS), tl.arange(0, COLUMNS), tl.arange(0, STEP)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for done in range(0, COLUMNS + 2 * reach, STEP):
        t = first + row[:, None] * COLUMNS + (done + step - reach)[None, :]
        sound = tl.load(x_ptr + clip * n + t, mask=(t >= 0) & (t < n), other=0.0)
        m = column[None, :] - (done + step)[:, None] + reach
        tap = tl.load(taps_ptr + clip * width + width // 2 + m, mask=(m >= -reach) & (m <= reach), other=0.0)
        total += tl.dot(sound, tap, input_precision="tf32x3")
    t = first + row[:, None] * COLUMNS + column[None, :]
    inside = (t >= tl.load(start_ptr + clip)) & (t < tl.load(stop_ptr + clip))
    tl.store(y_ptr + clip * n + t, tl.where(inside, total, 0.0), mask=t < n)


@triton.jit  # type: ignore[untyped-decorator]
def _white_noise(key_ptr, table_ptr, out_ptr, n, TILE: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    clip = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * TILE
    counter = first // 8 + tl.arange(0, TILE // 8)
    zero = counter * 0
    w0, w1, w2, w3 = tl.philox(tl.load(key_ptr + clip), counter, zero, zero, zero)
    words = tl.join(tl.join(w0, w2), tl.join(w1, w3))
    halves = tl.reshape(tl.join(words & 0xFFFF, words >> 16), (TILE,))
    t = first + tl.arange(0, TILE)
    value = tl.load(table_ptr + halves.to(tl.int32), mask=t < n, other=0.0)
    tl.store(out_ptr + clip * n + t, value, mask=t < n)


def _grid(x: torch.Tensor, tile: int = _TILE) -> tuple[int, int]:
    return x.shape[0], triton.cdiv(x.shape[1], tile)


def energy(x: torch.Tensor, peak: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """Sums of squares in units of 2**-2s [shape=(R,)], int64; see `energy.Energy`."""
    x = x.contiguous()  # a kernel reads row after row
    sums = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
    _energy[_grid(x)](x, peak, bits, sums, x.shape[1], TILE=_TILE, num_warps=_WARPS)
    return sums


def mix_span(
    x: torch.Tensor,
    bank: torch.Tensor,
    first: torch.Tensor,
    length: torch.Tensor,
    offset: torch.Tensor,
    start: torch.Tensor,
    stop: torch.Tensor,
    *,
    bits: torch.Tensor,
    scale: torch.Tensor,
    ratio: torch.Tensor,
    energy: torch.Tensor | None,
    step: torch.Tensor,
    return_noise: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``scale * x + gain * noise``, gain * noise (if it is wanted), and gain / step [shape=(R,)], float64.

    Args:
        x: Sound [shape=(R, N)].
        bank: Samples of all noises, int16 [shape=(M,)].
        first: Where each clip's noise begins in it, int64 [shape=(R,)].
        length: Its length.
        offset: Its sample that stands at `start`; behind its last one the first one follows.
        start: Where noise is mixed in, int32 [shape=(R,)].
        stop: And up to where.
        bits: Of `energy.bits_for`, int32 [shape=(R,)].
        scale: float32 [shape=(R,)].
        ratio: Amplitude of the noise over that of the sound, float64 [shape=(R,)].
        energy: Absolute energy, float64 [shape=(R,)]; None: that of the sound.
        step: What one unit of the bank is, float64 [shape=(R,)].
        return_noise: Whether the noise is wanted.
    """
    x = x.contiguous()
    y = torch.empty_like(x)
    noise = torch.empty_like(x) if return_noise else y
    gain = torch.empty(len(x), dtype=torch.float64, device=x.device)
    _mix_span[(len(x),)](
        x,
        bank,
        first,
        length,
        offset,
        start,
        stop,
        bits,
        scale,
        ratio,
        ratio if energy is None else energy,
        step,
        y,
        noise,
        gain,
        x.shape[1],
        IS_ABSOLUTE=energy is not None,
        RETURN_NOISE=return_noise,
        TILE=_CLIP_TILE,
        num_warps=_CLIP_WARPS,
        enable_fp_fusion=False,
    )
    return y, noise, gain


def add_noise(
    x: torch.Tensor,
    x_energy: tuple[torch.Tensor, torch.Tensor],
    noise: torch.Tensor,
    noise_energy: tuple[torch.Tensor, torch.Tensor],
    *,
    bits: torch.Tensor,
    scale: torch.Tensor,
    ratio: torch.Tensor,
    return_noise: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``scale * x + gain * noise`` and the gain [shape=(R,)], float64; with `return_noise` noise becomes gain * noise.

    Args:
        x: Sound [shape=(R, N)].
        x_energy: Its sums and peaks.
        noise: Noise [shape=(R, N)].
        noise_energy: Its sums and peaks.
        bits: Of `energy.bits_for`, int32 [shape=(R,)].
        scale: float32 [shape=(R,)].
        ratio: Amplitude of the noise over that of the sound, float64 [shape=(R,)].
        return_noise: Whether to scale the noise too.
    """
    x = x.contiguous()
    y = torch.empty_like(x)
    gain = torch.empty(len(x), dtype=torch.float64, device=x.device)
    _add_noise[_grid(x)](
        x,
        *x_energy,
        noise,
        *noise_energy,
        bits,
        scale,
        ratio,
        y,
        gain,
        x.shape[1],
        RETURN_NOISE=return_noise,
        TILE=_TILE,
        num_warps=_WARPS,
        enable_fp_fusion=False,
    )
    return y, gain


def lowpass_taps(
    frequency: torch.Tensor,
    weight: torch.Tensor,
    half: torch.Tensor,
    impulse: torch.Tensor,
    scale: torch.Tensor,
    reach: torch.Tensor,
    width: int,
) -> torch.Tensor:
    """Taps of `filters.filter_taps` [shape=(R, width)], float32; columns beyond a clip's reach are not written."""
    taps = torch.empty(len(scale), width, dtype=torch.float32, device=scale.device)
    _lowpass_taps[(len(scale),)](
        frequency, weight, half, impulse, scale, reach, taps, width, BLOCK=_TAPS_BLOCK, num_warps=4
    )
    return taps


def convolve(
    x: torch.Tensor, taps: torch.Tensor, reach: torch.Tensor, start: torch.Tensor, stop: torch.Tensor
) -> torch.Tensor:
    """Each row convolved with its own taps, whose middle column is time 0; zero outside [start, stop)."""
    x = x.contiguous()
    y = torch.empty_like(x)
    _convolve[_grid(x, _FIR_ROWS * _FIR_COLUMNS)](
        x,
        taps,
        reach,
        start,
        stop,
        y,
        x.shape[1],
        taps.shape[1],
        ROWS=_FIR_ROWS,
        COLUMNS=_FIR_COLUMNS,
        STEP=_FIR_STEP,
        num_warps=4,
    )
    return y


@functools.cache
def _quantiles(device: torch.device) -> torch.Tensor:
    return torch.from_numpy(normal_quantiles()).to(device)


def white_noise(key: torch.Tensor, num_samples: int) -> torch.Tensor:
    """See `keys.white_noise`."""
    out = torch.empty(len(key), num_samples, dtype=torch.float32, device=key.device)
    _white_noise[_grid(out)](key, _quantiles(key.device), out, num_samples, TILE=_TILE, num_warps=_WARPS)
    return out
