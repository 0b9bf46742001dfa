"""The resampler against sines and against the cut of a whole file."""

from __future__ import annotations

import math

import numpy as np
import pytest
import soxr

from avloader.resample import resample, resample_margin

RATES = [(48000, 16000), (44100, 16000), (32000, 16000), (22050, 16000), (8000, 16000), (16000, 22050), (11025, 16000)]


def window_of(whole: np.ndarray, start: int, in_rate: int, out_rate: int, num_samples: int) -> np.ndarray:
    """`num_samples` samples at `out_rate` from native sample `start` on, read with the margin that is asked for."""
    margin = resample_margin(in_rate, out_rate)
    stop = start + math.ceil(num_samples * in_rate / out_rate) + margin
    return resample(whole[start - margin : stop], in_rate=in_rate, out_rate=out_rate, num_samples=num_samples)


@pytest.mark.parametrize(("in_rate", "out_rate"), RATES)
@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5, 0.8, 0.9])
def test_a_resampled_sine_is_the_sine_in_place(in_rate: int, out_rate: int, fraction: float) -> None:
    frequency = fraction * min(in_rate, out_rate) / 2
    whole = np.sin(2 * np.pi * frequency * np.arange(2 * in_rate) / in_rate + 0.3).astype(np.float32)
    start, num_samples = in_rate // 2 + 1, out_rate // 2
    actual = window_of(whole, start, in_rate, out_rate, num_samples)
    phase = 2 * np.pi * frequency * (start / in_rate + np.arange(num_samples) / out_rate) + 0.3
    # 60 dB at 0.9 of the Nyquist frequency bounds a shift in time by 4e-4 samples.
    assert 10 * np.log10(0.5 / np.mean((actual - np.sin(phase)) ** 2)) > 60


@pytest.mark.parametrize(("in_rate", "out_rate"), [pair for pair in RATES if pair[0] > pair[1]])
@pytest.mark.parametrize("fraction", [1.05, 1.1, 1.3])
def test_what_the_new_rate_cannot_hold_is_gone(in_rate: int, out_rate: int, fraction: float) -> None:
    whole = np.sin(np.pi * fraction * out_rate * np.arange(2 * in_rate) / in_rate + 0.3).astype(np.float32)
    actual = window_of(whole, in_rate // 2, in_rate, out_rate, out_rate // 2)
    assert 10 * np.log10(0.5 / np.mean(actual.astype(np.float64) ** 2)) > 100


@pytest.mark.parametrize(("in_rate", "out_rate"), [*RATES, (16000, 16000), (44056, 16000)])
def test_a_window_equals_the_cut_of_the_whole_file_resampled(in_rate: int, out_rate: int) -> None:
    whole = np.random.default_rng(440).uniform(-1, 1, 2 * in_rate).astype(np.float32)
    period = in_rate // math.gcd(in_rate, out_rate)
    assert resample_margin(in_rate, out_rate) % period == 0
    start = in_rate // 2 // period * period
    expected = soxr.resample(whole, in_rate, out_rate)[start * out_rate // in_rate :][:777]
    assert np.abs(window_of(whole, start, in_rate, out_rate, 777) - expected).max() < 1e-5


def test_the_same_rate_is_a_plain_cut() -> None:
    audio = np.arange(100, dtype=np.float32)
    assert resample_margin(16000, 16000) == 0
    assert np.array_equal(resample(audio, in_rate=16000, out_rate=16000, num_samples=90), audio[:90])
