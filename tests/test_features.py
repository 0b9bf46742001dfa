"""Features against librosa in float64.

Errors are relative to the greatest magnitude of the reference, ``max|a - b| / max|b|``, and 1e-4 is allowed; on a
logarithmic scale, where that magnitude says little, the absolute error must also stay below 2e-3 (dB, ln or log10).
"""

from __future__ import annotations

import math
import subprocess
import sys
import warnings
from dataclasses import FrozenInstanceError
from typing import Any

import librosa
import numpy as np
import pytest
import scipy.fft
from feature_runs import DEVICES, RATE, compute, sound

from avloader.features import (
    MFCC,
    Decibels,
    Feature,
    Ln,
    Log10,
    MelSpectrogram,
    Spectrogram,
)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(440)


def stft(audio: np.ndarray, feature: Feature) -> np.ndarray:
    window = feature.window
    if not isinstance(window, str) and not isinstance(window[0], str):
        window = np.array(window)
    spectrum = librosa.stft(
        audio.astype(np.float64),
        n_fft=feature.n_fft,
        hop_length=feature.hop_length,
        win_length=feature.win_length,
        window=window,
        center=feature.center,
        pad_mode=feature.pad_mode,
    )
    return np.abs(spectrum) ** feature.power


def mel(audio: np.ndarray, feature: Any, norm: str | None, rate: int = RATE) -> np.ndarray:
    return librosa.feature.melspectrogram(
        S=stft(audio, feature),
        sr=rate,
        n_fft=feature.n_fft,
        n_mels=feature.n_mels,
        fmin=feature.fmin,
        fmax=feature.fmax,
        htk=feature.htk,
        norm=norm,
    )


def assert_equal(actual: np.ndarray, expected: np.ndarray, absolute: float | None = None) -> None:
    assert actual.dtype == np.float32
    assert actual.shape == expected.shape
    error = np.abs(actual - expected).max()
    assert error <= 1e-4 * np.abs(expected).max()
    if absolute is not None:
        assert error <= absolute


# Spectrogram


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("pad_mode", ["constant", "reflect"])
@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize(
    ("n_fft", "win_length", "hop_length"),
    [
        (512, None, 160),
        (512, 400, 160),
        (400, 400, 160),
        (800, 800, 200),
        (1024, 401, 100),
        (401, 200, 100),
        (127, None, 50),
    ],
)
def test_a_spectrogram_equals_librosas(
    rng: np.random.Generator,
    device: str,
    n_fft: int,
    win_length: int | None,
    hop_length: int,
    power: int,
    pad_mode: str,
) -> None:
    feature = Spectrogram(n_fft=n_fft, win_length=win_length, hop_length=hop_length, power=power, pad_mode=pad_mode)
    clips = [sound(rng, n) for n in (4000, 4001, 4799)]
    for clip, actual in zip(clips, compute(feature, clips, device), strict=True):
        assert_equal(actual, stft(clip, feature))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize(
    "window", ["hann", "hamming", "blackman", "boxcar", ("kaiser", 8.0), ("tukey", 0.25), np.linspace(0.1, 1, 400)]
)
def test_every_window_equals_librosas_in_its_place(
    rng: np.random.Generator, device: str, window: Any, center: bool
) -> None:
    feature = Spectrogram(n_fft=512, win_length=400, hop_length=160, window=window, center=center)
    clip = sound(rng, 5003)
    assert_equal(compute(feature, [clip], device)[0], stft(clip, feature))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("pad_mode", ["constant", "reflect"])
@pytest.mark.parametrize("num_samples", [1, 2, 3, 100, 257, 511])
def test_sound_shorter_than_a_transform_equals_librosas(
    rng: np.random.Generator, device: str, num_samples: int, pad_mode: str
) -> None:
    feature = Spectrogram(n_fft=512, hop_length=100, pad_mode=pad_mode)
    clip = sound(rng, num_samples)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # librosa says that the sound is short
        expected = stft(clip, feature)
    assert_equal(compute(feature, [clip], device)[0], expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("n_fft", "hop_length", "center"), [(64, 16, True), (63, 16, True), (64, 17, False), (63, 9, False)]
)
def test_num_hops_is_the_exact_number_of_columns(
    rng: np.random.Generator, device: str, n_fft: int, hop_length: int, center: bool
) -> None:
    feature = Spectrogram(n_fft=n_fft, hop_length=hop_length, center=center)
    lengths = range(64, 200)
    clips = [sound(rng, n) for n in lengths]
    for clip, actual in zip(clips, compute(feature, clips, device), strict=True):
        expected = (feature.num_bins, feature.num_hops(len(clip)))
        assert actual.shape == stft(clip, feature).shape == expected


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "feature",
    [
        Spectrogram(n_fft=401, hop_length=160),
        MelSpectrogram(n_fft=512, hop_length=160, n_mels=80, scale=Decibels(ref="max")),
        MFCC(n_fft=512, hop_length=160, n_mels=40, n_mfcc=13),
    ],
)
def test_a_clips_feature_does_not_depend_on_its_neighbours(
    rng: np.random.Generator, device: str, feature: Feature
) -> None:
    clip, quiet, long = sound(rng, 8000), 1e-4 * sound(rng, 8000), 30 * sound(rng, 20001)
    (alone,) = compute(feature, [clip], device)
    batch = compute(feature, [long, clip, quiet, clip], device)
    assert np.array_equal(alone, batch[1])
    assert np.array_equal(alone, batch[3])


# Scales


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize(
    ("scale", "ref"),
    [
        (Decibels(), 1.0),
        (Decibels(top_db=None), 1.0),
        (Decibels(ref="max", top_db=40), np.max),
        (Decibels(ref=10.0, amin=1e-3, top_db=None), 10.0),
        (Decibels(ref=1e-9, amin=1e-3, top_db=30), 1e-9),
    ],
)
def test_decibels_equal_librosas(rng: np.random.Generator, device: str, scale: Decibels, ref: Any, power: int) -> None:
    feature = Spectrogram(n_fft=512, hop_length=160, power=power, scale=scale)
    convert, amin = (librosa.power_to_db, 1e-10) if power == 2 else (librosa.amplitude_to_db, 1e-5)
    clips = [sound(rng, 8000), 0.01 * sound(rng, 8000), np.zeros(8000, np.float32)]
    for clip, actual in zip(clips, compute(feature, clips, device), strict=True):
        expected = convert(stft(clip, feature), ref=ref, amin=scale.amin or amin, top_db=scale.top_db)
        assert actual.shape == expected.shape
        assert np.abs(actual - expected).max() <= 2e-3


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("scale", "power", "formula"),
    [
        (Ln(add=1e-6), 2, lambda x: np.log(x + 1e-6)),
        (Ln(amin=1e-3), 1, lambda x: np.log(np.maximum(x, 1e-3))),
        (Log10(), 2, lambda x: np.log10(np.maximum(x, 1e-10))),
        (Log10(add=0.5, amin=0.7), 2, lambda x: np.log10(np.maximum(x + 0.5, 0.7))),
        (Decibels(ref=10, amin=1e-5, top_db=None), 1, lambda x: 20 * np.log10(np.maximum(1e-5, x)) - 20),
        (Decibels(add=1e-4, top_db=None), 2, lambda x: 10 * np.log10(x + 1e-4)),
    ],
)
def test_floors_and_clamps_are_the_written_formulas(
    rng: np.random.Generator, device: str, scale: Any, power: int, formula: Any
) -> None:
    feature = MelSpectrogram(n_fft=512, hop_length=160, n_mels=40, power=power, scale=scale)
    clips = [sound(rng, 8000), np.zeros(800, np.float32)]
    for clip, actual in zip(clips, compute(feature, clips, device), strict=True):
        assert_equal(actual, formula(mel(clip, feature, "slaney")), absolute=2e-3)


# Mel bands


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("htk", [False, True])
@pytest.mark.parametrize("norm", ["slaney", None])
@pytest.mark.parametrize(
    ("n_fft", "n_mels", "fmin", "fmax", "rate"),
    [
        (512, 80, 0, None, 16000),
        (800, 80, 55, 7600, 16000),
        (2048, 128, 0, None, 22050),
        (1024, 40, 300.5, 3400, 44100),
        (401, 26, 0, None, 16000),
        (401, 20, 100, 7999, 16000),
        (512, 1, 0, 8000, 16000),
    ],
)
def test_mel_bands_equal_librosas(
    rng: np.random.Generator,
    device: str,
    n_fft: int,
    n_mels: int,
    fmin: float,
    fmax: float | None,
    rate: int,
    htk: bool,
    norm: Any,
) -> None:
    feature = MelSpectrogram(n_fft=n_fft, hop_length=160, n_mels=n_mels, fmin=fmin, fmax=fmax, htk=htk, norm=norm)
    white = rng.standard_normal(6000).astype(np.float32)  # every band is as loud as the others
    actual = compute(feature, [white], device, rate)[0]
    expected = mel(white, feature, norm, rate)
    assert_equal(actual, expected)
    assert np.all(np.abs(actual - expected).max(axis=1) <= 2e-4 * np.abs(expected).max(axis=1))


@pytest.mark.parametrize("device", DEVICES)
def test_a_mel_spectrogram_by_default_is_librosas(rng: np.random.Generator, device: str) -> None:
    clip = sound(rng, 22050)
    expected = librosa.feature.melspectrogram(y=clip.astype(np.float64), sr=22050)
    assert_equal(compute(MelSpectrogram(), [clip], device, 22050)[0], expected)


@pytest.mark.parametrize("device", DEVICES)
def test_bands_between_two_bins_are_empty_as_librosas(rng: np.random.Generator, device: str) -> None:
    feature = MelSpectrogram(n_fft=256, hop_length=100, n_mels=128)
    clip = sound(rng, 4000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # librosa says that filters are empty
        expected = mel(clip, feature, "slaney")
        (actual,) = compute(feature, [clip], device)
    assert (expected == 0).all(axis=1).any()
    assert_equal(actual, expected)


# MFCC


@pytest.mark.parametrize("device", DEVICES)
def test_mfcc_by_default_is_librosas(rng: np.random.Generator, device: str) -> None:
    clip = sound(rng, 22050)
    expected = librosa.feature.mfcc(y=clip.astype(np.float64), sr=22050)
    assert_equal(compute(MFCC(), [clip], device, 22050)[0], expected, absolute=2e-2)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("lifter", [0, 22, 10.5])
@pytest.mark.parametrize(("dct_type", "norm"), [(1, None), (2, "ortho"), (2, None), (3, "ortho"), (3, None)])
def test_mfcc_variants_equal_librosas(
    rng: np.random.Generator, device: str, dct_type: Any, norm: Any, lifter: float
) -> None:
    feature = MFCC(
        n_fft=512,
        hop_length=160,
        n_mels=40,
        n_mfcc=13,
        htk=True,
        mel_norm=None,
        dct_type=dct_type,
        norm=norm,
        lifter=lifter,
    )
    clip = sound(rng, 8000)
    decibels = librosa.power_to_db(mel(clip, feature, None))
    expected = librosa.feature.mfcc(S=decibels, n_mfcc=13, dct_type=dct_type, norm=norm, lifter=lifter)
    actual = compute(feature, [clip], device)[0]
    assert actual.shape[0] == feature.num_bins
    assert_equal(actual, expected)


@pytest.mark.parametrize("device", DEVICES)
def test_mfcc_of_another_scale_transforms_that_scale(rng: np.random.Generator, device: str) -> None:
    feature = MFCC(n_fft=512, hop_length=160, n_mels=26, n_mfcc=26, scale=Ln(amin=1e-9))
    clip = sound(rng, 8000)
    expected = scipy.fft.dct(np.log(np.maximum(mel(clip, feature, "slaney"), 1e-9)), axis=0, norm="ortho")
    assert_equal(compute(feature, [clip], device)[0], expected)


# Options


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Spectrogram(n_fft=1), ValueError, "n_fft=1 must be at least 2"),
        (lambda: Spectrogram(n_fft=512.0), TypeError, "n_fft=512.0 must be an integer"),
        (lambda: Spectrogram(hop_length=0), ValueError, "hop_length=0"),
        (lambda: Spectrogram(n_fft=512, win_length=513), ValueError, "win_length=513 must be at most n_fft=512"),
        (lambda: Spectrogram(window="nosuch"), ValueError, "window='nosuch'"),
        (lambda: Spectrogram(window=("kaiser", "x")), ValueError, "window="),
        (lambda: Spectrogram(window=[1.0, 2.0]), ValueError, "window has 2 weights.*win_length=2048"),
        (lambda: Spectrogram(n_fft=2, window=[1.0, math.nan]), ValueError, "window has a weight that is not finite"),
        (lambda: Spectrogram(window=8), TypeError, "window=8"),
        (lambda: Spectrogram(pad_mode="edge"), ValueError, "pad_mode='edge' must be one of 'constant', 'reflect'"),
        (lambda: Spectrogram(power=3), ValueError, "power=3 must be one of 1, 2"),
        (lambda: Spectrogram(scale="dB"), TypeError, "scale='dB'"),
        (lambda: Decibels(ref=0), ValueError, "ref=0"),
        (lambda: Decibels(ref="mean"), ValueError, "ref='mean' must be one of 'max'"),
        (lambda: Decibels(amin=-1.0), ValueError, "amin=-1.0"),
        (lambda: Decibels(top_db=-1), ValueError, "top_db=-1"),
        (lambda: Ln(amin=0), ValueError, "amin=0 must be finite and at least 1.17549e-38"),
        (lambda: Log10(add=-1e-6), ValueError, "add=-1e-06"),
        (lambda: MelSpectrogram(n_mels=0), ValueError, "n_mels=0"),
        (lambda: MelSpectrogram(fmin=math.nan), ValueError, "fmin=nan"),
        (lambda: MelSpectrogram(fmin=300, fmax=300), ValueError, "fmax=300 must be finite and above 300"),
        (lambda: MelSpectrogram(norm=2), ValueError, "norm=2 must be one of 'slaney', None"),
        (lambda: MFCC(n_mfcc=41, n_mels=40), ValueError, "n_mfcc=41 must be at most n_mels=40"),
        (lambda: MFCC(dct_type=4), ValueError, "dct_type=4"),
        (lambda: MFCC(dct_type=1), ValueError, "dct_type=1; pass norm=None"),
        (lambda: MFCC(lifter=-1), ValueError, "lifter=-1"),
        (lambda: MFCC(mel_norm="ortho"), ValueError, "mel_norm='ortho'"),
    ],
)
def test_a_wrong_option_is_named_with_its_value(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("feature", "message"),
    [
        (MelSpectrogram(fmax=8001), "fmax=8001 must be at most half of the sample rate, 8000 Hz"),
        (MelSpectrogram(fmin=8000), "fmin=8000 must be below half of the sample rate, 8000 Hz"),
    ],
)
def test_bands_above_half_of_the_sample_rate_are_refused(feature: Feature, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compute(feature, [np.zeros(8000, np.float32)], "cpu")


def test_too_few_samples_for_a_hop_are_refused() -> None:
    assert Spectrogram(n_fft=512).num_hops(1) == 1
    assert Spectrogram(n_fft=512, center=False).num_hops(512) == 1
    with pytest.raises(ValueError, match="num_samples=0 must be at least 1"):
        Spectrogram(n_fft=512).num_hops(0)
    with pytest.raises(ValueError, match="num_samples=511 must be at least 512"):
        Spectrogram(n_fft=512, center=False).num_hops(511)


def test_options_are_values() -> None:
    feature = MelSpectrogram(n_fft=4, window=[0.5, 1.0, 1.0, 0.5], scale=Ln(add=1e-6))
    assert feature == MelSpectrogram(n_fft=4, window=(0.5, 1.0, 1.0, 0.5), scale=Ln(add=1e-6))
    assert hash(feature) == hash(MelSpectrogram(n_fft=4, window=(0.5, 1.0, 1.0, 0.5), scale=Ln(add=1e-6)))
    with pytest.raises(FrozenInstanceError):
        feature.n_mels = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        MelSpectrogram(512)  # type: ignore[misc]


def test_options_need_no_dali() -> None:
    code = (
        "import sys; sys.modules['nvidia.dali'] = None; from avloader.features import MFCC; print(MFCC().num_hops(9))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "1\n"
