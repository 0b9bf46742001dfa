"""What `test_augment_kernels` runs in a process of its own, with TRITON_INTERPRET set."""

from __future__ import annotations

import sys

import numpy as np
import torch

from avloader.augment import SoundBank, kernels, loops
from avloader.augment.convolve import convolve
from avloader.augment.energy import Energy, bits_for, energy
from avloader.augment.filters import _half, filter_taps
from avloader.augment.keys import white_noise
from avloader.augment.rows import Rows

random = np.random.default_rng(1)
N = 5003
lengths = np.array([N, 4096, 17, N - 1])
audio = random.normal(size=(4, N)) * np.array([[1e-4], [0.3], [20.0], [0.1]])
audio[np.arange(N) >= lengths[:, None]] = 0
sound = torch.from_numpy(audio.astype(np.float32))
bits = torch.from_numpy(bits_for(lengths))
start, stop = torch.zeros(4, dtype=torch.int32), torch.from_numpy(lengths.astype(np.int32))
bank = SoundBank([random.normal(size=n).astype(np.float32) for n in (9000, 700)], sample_rate=16000)
which = np.array([0, 1, 1, 0])
host = {"sound": which, "offset": np.array([5, 699, 0, 8999]), "start": np.zeros(4, np.int64), "stop": lengths}
places = bank.places(which)


def check_energy() -> None:
    expected = energy(sound, bits)
    assert torch.equal(kernels.energy(sound, expected.peak, bits), expected.sums)


def check_mix_span() -> None:
    kernels._CLIP_TILE = 1024  # so that a clip has several
    first, length = (torch.from_numpy(places[name]) for name in ("first", "length"))
    samples, offset = torch.from_numpy(bank.samples), torch.from_numpy(host["offset"])
    begin = np.array([0, 1030, 5, 4000])
    start = torch.from_numpy(begin.astype(np.int32))
    spans = (places["first"], places["length"], host["offset"], begin, host["stop"])
    sums = np.empty(4, np.int64)
    loops.span_energies(bank.samples, *spans, sums)
    scale, ratio = torch.tensor([1.0, 0.5, -2.0, 1.0]), torch.tensor([0.1, 1.0, 0.3, 0.0]).double()
    step = torch.tensor([1.0, 3.0, 1e-4, 1.0]).double()
    levels = torch.from_numpy(lengths.astype(np.float64))
    broken = sound.clone()
    broken[1, 7], broken[2, 3] = float("nan"), float("inf")
    for clips, energy_of in ((sound, None), (sound, levels), (broken, None)):
        own = energy(clips, bits)
        target = own.value() * scale.double() ** 2 if energy_of is None else energy_of
        expected_gain = torch.where(target > 0, ratio * (target / torch.from_numpy(sums).double()).sqrt(), 0.0)
        expected, expected_noise = np.empty((4, N), np.float32), np.empty((4, N), np.float32)
        gains = expected_gain.float().numpy()
        loops.mix_span(clips.numpy(), scale.numpy(), bank.samples, *spans, gains, expected, expected_noise)
        for return_noise in (False, True):
            mixed, noise, gain = kernels.mix_span(
                clips, samples, first, length, offset, start, stop,
                bits=bits, scale=scale, ratio=ratio, energy=energy_of, step=step, return_noise=return_noise,
            )  # fmt: skip
            assert torch.equal(gain, expected_gain / step)
            assert np.array_equal(mixed.numpy(), expected, equal_nan=True)
            assert not return_noise or np.array_equal(noise.numpy(), expected_noise)


def check_add_noise() -> None:
    scale, ratio = torch.tensor([1.0, 0.5, -2.0, 1.0]), torch.tensor([0.1, 1.0, 0.3, 0.0]).double()
    own = energy(sound, bits)
    other = torch.from_numpy(random.normal(size=(4, N)).astype(np.float32))
    of_other: Energy = energy(other, bits)
    expected_gain = ratio * (own.value() * scale.double() ** 2 / of_other.value()).sqrt()
    for return_noise in (False, True):
        scaled = other.clone()
        result, gain = kernels.add_noise(
            sound, (own.sums, own.peak), scaled, (of_other.sums, of_other.peak),
            bits=bits, scale=scale, ratio=ratio, return_noise=return_noise,
        )  # fmt: skip
        assert torch.equal(gain, expected_gain)
        assert torch.equal(result, sound * scale[:, None] + other * expected_gain.float()[:, None])
        assert torch.equal(scaled, other * expected_gain.float()[:, None] if return_noise else other)


frequency = np.array([[0.01, 0.2], [0.3, 0.3], [0.004, 0.5], [0.05, 0.06]])
weight = np.array([[-1.0, 1.0], [1.0, 0.0], [1.0, -1.0], [-1.0, 0.0]])
impulse = np.array([0.0, 0.0, 1.0, 1.0])
half = _half(frequency)
reach = np.where(weight != 0, half, 0).max(axis=1).astype(np.int32)


def taps() -> torch.Tensor:
    width = 2 * int(reach.max()) + 1
    arrays = frequency, weight, half, impulse, np.array([1, 2, 0.5, -1], np.float32), reach
    return kernels.lowpass_taps(*map(torch.from_numpy, arrays), width)


def check_taps() -> None:
    expected = filter_taps(frequency, weight, impulse, int(reach.max())) * np.array([[1], [2], [0.5], [-1]])
    for row, got in enumerate(taps()):
        middle, side = len(got) // 2, reach[row]
        some = slice(middle - side, middle + side + 1)
        np.testing.assert_allclose(got[some].numpy(), expected[row, some], rtol=1e-6, atol=1e-9)


def check_convolve() -> None:
    wide = taps()
    m = np.arange(wide.shape[1]) - wide.shape[1] // 2
    clean = wide.masked_fill(torch.from_numpy(abs(m) > reach[:, None]), 0)
    expected = convolve(Rows(sound, 16000, start, stop, False, {}, {}), clean, wide.shape[1] // 2)
    got = kernels.convolve(sound, wide, torch.from_numpy(reach), start, stop)
    assert not got[2, 17:].any()
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def check_white_noise() -> None:
    key = torch.tensor([1, -(2**62), 2**63 - 1])
    assert torch.equal(kernels.white_noise(key, N), white_noise(key, N))


if __name__ == "__main__":
    globals()[f"check_{sys.argv[1]}"]()
