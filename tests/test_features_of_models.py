"""What models need beyond librosa's definitions: against the packages that define it, in float64.

Errors are relative to the greatest magnitude of the reference and 1e-4 is allowed, 1e-3 where the reference itself
computes in float32.
"""

from __future__ import annotations

from typing import Any

import kaldi_native_fbank
import librosa
import numpy as np
import pytest
import python_speech_features
import scipy.signal
from feature_runs import DEVICES, RATE, compute, sound

from avloader.features import (
    MFCC,
    Affine,
    Decibels,
    Feature,
    KaldiFilterBank,
    Ln,
    Log10,
    MelSpectrogram,
    Segments,
    Spectrogram,
    SpeechFilterBank,
    SpeechMFCC,
    Standardize,
    Waveform,
)

SMALL = MelSpectrogram(n_fft=256, hop_length=80, n_mels=20, scale=Ln(add=1e-6))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(1906)


def assert_close(actual: np.ndarray, expected: np.ndarray, tolerance: float = 1e-4) -> None:
    assert actual.dtype == np.float32
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= tolerance * np.abs(expected).max()


def kaldi_fbank(audio: np.ndarray, n_mels: int, **options: Any) -> np.ndarray:
    """[shape=(n_mels, hops)], by kaldi-native-fbank."""
    settings = kaldi_native_fbank.FbankOptions()
    settings.frame_opts.dither = 0
    settings.frame_opts.window_type = "hanning"
    settings.frame_opts.samp_freq = RATE
    settings.mel_opts.num_bins = n_mels
    settings.htk_compat = True
    for name, value in options.items():
        setattr(settings.frame_opts if hasattr(settings.frame_opts, name) else settings.mel_opts, name, value)
    fbank = kaldi_native_fbank.OnlineFbank(settings)
    fbank.accept_waveform(RATE, audio.tolist())
    fbank.input_finished()
    return np.stack([fbank.get_frame(t) for t in range(fbank.num_frames_ready)], axis=1)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("feature", "options"),
    [
        (KaldiFilterBank(), {"num_bins": 128}),
        (KaldiFilterBank(n_mels=112), {"num_bins": 112}),
        (KaldiFilterBank(n_mels=23, fmin=64, fmax=7600), {"num_bins": 23, "low_freq": 64, "high_freq": 7600}),
        (KaldiFilterBank(win_length=320, hop_length=80), {"frame_length_ms": 20, "frame_shift_ms": 5}),
        (KaldiFilterBank(remove_mean=False), {"remove_dc_offset": False}),
        (KaldiFilterBank(stretch_preemphasis=0), {"preemph_coeff": 0}),
    ],
)
def test_kaldis_filter_bank(rng: np.random.Generator, device: str, feature: KaldiFilterBank, options: Any) -> None:
    clips = [sound(rng, n) + 0.05 for n in (400, 16000, 16079, 16081)]
    for clip, actual in zip(clips, compute(feature, clips, device), strict=True):
        expected = kaldi_fbank(clip, feature.n_mels, **options)
        assert actual.shape[1] == feature.num_hops(len(clip))
        assert_close(actual, expected, 1e-3)


def as_int16(audio: np.ndarray) -> np.ndarray:
    return np.clip(np.floor(audio.astype(np.float64) * 32768 + 0.5), -32768, 32767).astype(np.int16)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("num_samples", [1, 399, 400, 401, 560, 561, 16000, 16041])
def test_the_filter_bank_and_mfcc_of_python_speech_features(
    rng: np.random.Generator, device: str, num_samples: int
) -> None:
    clip = sound(rng, num_samples)
    clip[: num_samples // 50] *= 20  # beyond full scale
    samples = as_int16(clip)
    (actual,) = compute(SpeechFilterBank(), [clip], device)
    assert actual.shape == (26, SpeechFilterBank().num_hops(num_samples))
    assert_close(actual, python_speech_features.logfbank(samples).T)
    (actual,) = compute(SpeechMFCC(), [clip], device)
    assert_close(actual, python_speech_features.mfcc(samples).T)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("feature", "options"),
    [
        (SpeechMFCC(energy=False), {"appendEnergy": False}),
        (SpeechMFCC(lifter=0, n_mfcc=26), {"ceplifter": 0, "numcep": 26}),
        (SpeechMFCC(win_length=334, hop_length=133, n_fft=512), {"winlen": 334 / RATE, "winstep": 133 / RATE}),
        (SpeechMFCC(preemphasis=0, fmin=100, fmax=7000), {"preemph": 0, "lowfreq": 100, "highfreq": 7000}),
    ],
)
def test_mfcc_of_python_speech_features_with_options(
    rng: np.random.Generator, device: str, feature: SpeechMFCC, options: Any
) -> None:
    clip = sound(rng, 9000)
    assert_close(compute(feature, [clip], device)[0], python_speech_features.mfcc(as_int16(clip), **options).T)


@pytest.mark.parametrize("device", DEVICES)
def test_silence_is_finite(device: str) -> None:
    silence = np.zeros(8000, np.float32)
    for feature in (SpeechFilterBank(), SpeechMFCC(), KaldiFilterBank(normalize=Standardize(over="bin"))):
        assert np.isfinite(compute(feature, [silence], device)[0]).all()
    assert_close(compute(SpeechMFCC(), [silence], device)[0], python_speech_features.mfcc(np.zeros(8000, np.int16)).T)


@pytest.mark.parametrize("device", DEVICES)
def test_scipys_density_of_detrended_stretches(rng: np.random.Generator, device: str) -> None:
    clip = sound(rng, 16001) + 0.2
    feature = Spectrogram(
        n_fft=512, hop_length=159, window=("tukey", 0.25), center=False, detrend=True, density=True, scale=Ln(add=1e-7)
    )
    _, _, density = scipy.signal.spectrogram(clip.astype(np.float64), RATE, nperseg=512, noverlap=353)
    assert_close(compute(feature, [clip], device)[0], np.log(density + 1e-7))


@pytest.mark.parametrize("device", DEVICES)
def test_pairs_of_bins_and_a_floor_under_the_root(rng: np.random.Generator, device: str) -> None:
    clip = sound(rng, 8000)
    power = np.abs(librosa.stft(clip.astype(np.float64), n_fft=1024, hop_length=240)) ** 2
    pairs = np.concatenate([power[:1], (power[1::2] + power[2::2]) / 2])
    assert_close(compute(Spectrogram(n_fft=1024, hop_length=240, average_pairs=True), [clip], device)[0], pairs)
    rooted = Spectrogram(n_fft=1024, hop_length=240, power=1, magnitude_add=1e-3)
    assert_close(compute(rooted, [clip], device)[0], np.sqrt(power + 1e-3))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("padding", [1, 384, 512])
def test_a_width_of_mirrored_padding(rng: np.random.Generator, device: str, padding: int) -> None:
    clips = [sound(rng, n) for n in (8000, 8191)]
    feature = Spectrogram(n_fft=1024, hop_length=256, pad_mode="reflect", padding=padding)
    for clip, actual in zip(clips, compute(feature, clips, device), strict=True):
        padded = np.pad(clip.astype(np.float64), padding, mode="reflect")
        expected = np.abs(librosa.stft(padded, n_fft=1024, hop_length=256, center=False)) ** 2
        assert actual.shape == feature.shape(len(clip))
        assert_close(actual, expected)


# A window of a medium

WAV2LIP = MelSpectrogram(
    n_fft=800,
    hop_length=200,
    pad_mode="reflect",
    power=1,
    n_mels=80,
    fmin=55,
    fmax=7600,
    preemphasis=0.97,
    scope="medium",
    scale=Decibels(ref=10, amin=1e-5, top_db=None),
)


def window_of(medium: np.ndarray, feature: Feature, start: int, num_samples: int) -> tuple[np.ndarray, tuple[int, int]]:
    """What the loader reads for a window of a medium, and which samples of it exist."""
    before, after = feature.context(num_samples)
    first, stop = start - before, start + num_samples + after
    held = max(first, 0), min(stop, len(medium))
    read = np.zeros(stop - first, np.float32)
    if held[0] >= held[1]:
        return read, (0, 0)
    read[held[0] - first : held[1] - first] = medium[held[0] : held[1]]
    return read, (held[0] - first, held[1] - first)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("pad_mode", ["reflect", "constant"])
@pytest.mark.parametrize("preemphasis", [0.0, 0.97])
def test_windows_have_the_columns_of_the_whole_medium(
    rng: np.random.Generator, device: str, pad_mode: Any, preemphasis: float
) -> None:
    medium, num_samples = sound(rng, 16100), 3200
    feature = MelSpectrogram(
        n_fft=800, hop_length=200, pad_mode=pad_mode, n_mels=40, preemphasis=preemphasis, scope="medium"
    )
    filtered = scipy.signal.lfilter([1, -preemphasis], [1], medium.astype(np.float64))
    whole = librosa.feature.melspectrogram(y=filtered, sr=RATE, n_fft=800, hop_length=200, n_mels=40, pad_mode=pad_mode)
    columns = [0, 1, 2, 3, 30, 61, 62, 63, 64]  # the last ones reach up to the end of the medium
    reads = [window_of(medium, feature, column * 200, num_samples) for column in columns]
    outputs = compute(feature, [read for read, _ in reads], device, valid=[held for _, held in reads])
    for column, actual in zip(columns, outputs, strict=True):
        assert actual.shape == feature.shape(num_samples) == (40, 16)
        assert_close(actual, whole[:, column : column + 16])


@pytest.mark.parametrize("device", DEVICES)
def test_windows_have_the_speech_features_of_the_whole_medium(rng: np.random.Generator, device: str) -> None:
    medium, num_samples = sound(rng, 16100), 3200
    bank, mfcc = SpeechFilterBank(scope="medium", stack=4), SpeechMFCC(scope="medium")
    whole = python_speech_features.mfcc(as_int16(medium)).T
    columns = [0, 1, 7, 40, 79]  # the last stretch of the last window is filled up with zeros
    for feature in (mfcc, bank):
        reads = [window_of(medium, feature, column * 160, num_samples) for column in columns]
        outputs = compute(feature, [read for read, _ in reads], device, valid=[held for _, held in reads])
        for column, actual in zip(columns, outputs, strict=True):
            if feature is mfcc:
                assert_close(actual, whole[:, column : column + 20])
            else:
                log = python_speech_features.logfbank(as_int16(medium))[column : column + 20]
                assert_close(actual, log.reshape(5, 104).T)


@pytest.mark.parametrize("device", DEVICES)
def test_windows_outside_the_medium_are_silent(rng: np.random.Generator, device: str) -> None:
    medium = sound(rng, 8000)
    for feature in (WAV2LIP, SpeechMFCC(scope="medium")):
        reads = [window_of(medium, feature, start, 3200) for start in (-80000, 0, 80000)]
        low, inside, high = compute(feature, [read for read, _ in reads], device, valid=[held for _, held in reads])
        silent = compute(feature, [np.zeros_like(reads[0][0])], device, valid=[(0, len(reads[0][0]))])[0]
        assert np.array_equal(low, silent)
        assert np.array_equal(high, silent)
        assert not np.allclose(inside, silent)


# Columns


@pytest.mark.parametrize("device", DEVICES)
def test_whispers_span_is_below_the_clips_own_maximum(rng: np.random.Generator, device: str) -> None:
    clips = [sound(rng, 4000), 1e-3 * sound(rng, 4000)]
    clips[0][:2000] = 0
    plain = MelSpectrogram(n_fft=400, hop_length=160, n_mels=80, scale=Log10())
    spanned = MelSpectrogram(n_fft=400, hop_length=160, n_mels=80, scale=Log10(span=3))
    for one, other in zip(compute(plain, clips, device), compute(spanned, clips, device), strict=True):
        assert one.min() < one.max() - 3
        assert np.array_equal(other, np.maximum(one, one.max() - np.float32(3)))


@pytest.mark.parametrize("device", DEVICES)
def test_columns_are_cut_before_the_span_is_taken(rng: np.random.Generator, device: str) -> None:
    clip = sound(rng, 4000)
    clip[3900:] = 1.0  # the loudest column is one of those that are cut off
    feature = MelSpectrogram(n_fft=400, hop_length=160, n_mels=8, num_columns=20, scale=Log10(span=1))
    plain = compute(MelSpectrogram(n_fft=400, hop_length=160, n_mels=8, scale=Log10()), [clip], device)[0][:, :20]
    assert np.array_equal(compute(feature, [clip], device)[0], np.maximum(plain, plain.max() - np.float32(1)))


@pytest.mark.parametrize("device", DEVICES)
def test_missing_columns_are_filled_up_before_the_normalization(rng: np.random.Generator, device: str) -> None:
    clip = sound(rng, 4000)
    plain = compute(KaldiFilterBank(n_mels=8), [clip], device)[0]
    filled = compute(KaldiFilterBank(n_mels=8, num_columns=30, normalize=Affine(mean=-4, std=2)), [clip], device)[0]
    assert plain.shape == (8, 23)
    np.testing.assert_allclose(filled, (np.pad(plain, ((0, 0), (0, 7))) + 4) / 2, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("num_hops", [1, 4, 5, 7])
def test_columns_are_stacked_one_below_the_other(rng: np.random.Generator, device: str, num_hops: int) -> None:
    clip = sound(rng, 160 * num_hops + 240)
    plain = compute(KaldiFilterBank(n_mels=5), [clip], device)[0]
    stacked = compute(KaldiFilterBank(n_mels=5, stack=4, pad_value=7), [clip], device)[0]
    filled = np.pad(plain, ((0, 0), (0, -num_hops % 4)), constant_values=7)
    assert stacked.shape == KaldiFilterBank(n_mels=5, stack=4).shape(len(clip)) == (20, -(-num_hops // 4))
    assert np.array_equal(stacked.T, filled.T.reshape(-1, 20))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("normalize", "formula"),
    [
        (Standardize(), lambda x: (x - x.mean()) / np.sqrt(x.var() + 1e-5)),
        (
            Standardize(over="bin", epsilon=0.1),
            lambda x: (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 0.1),
        ),
        (
            Standardize(over="hop", epsilon=0.1),
            lambda x: (x - x.mean(0, keepdims=True)) / np.sqrt(x.var(0, keepdims=True) + 0.1),
        ),
        (
            Standardize(over="bin", epsilon=0.1, epsilon_in="deviation", unbiased=True),
            lambda x: (x - x.mean(1, keepdims=True)) / (x.std(1, keepdims=True, ddof=1) + 0.1),
        ),
        (Affine(mean=-5, std=2, low=-1, high=0.5), lambda x: np.clip((x + 5) / 2, -1, 0.5)),
        (
            Affine(mean=range(20), std=[1.0] * 19 + [3.0]),
            lambda x: (x - np.arange(20)[:, None]) / np.array([1.0] * 19 + [3.0])[:, None],
        ),
    ],
)
def test_normalizations_are_the_written_formulas(
    rng: np.random.Generator, device: str, normalize: Any, formula: Any
) -> None:
    clips = [sound(rng, 3000), 0.1 * sound(rng, 5000)]
    feature = MelSpectrogram(n_fft=256, hop_length=80, n_mels=20, scale=Ln(add=1e-6), normalize=normalize)
    plain = compute(SMALL, clips, device)
    for before, after in zip(plain, compute(feature, clips, device), strict=True):
        assert_close(after, formula(before.astype(np.float64)))


@pytest.mark.parametrize("device", DEVICES)
def test_the_ends_are_trimmed_after_the_normalization(rng: np.random.Generator, device: str) -> None:
    clip = sound(rng, 3000)
    options: dict[str, Any] = {"n_fft": 256, "hop_length": 80, "n_mels": 20, "normalize": Standardize(over="bin")}
    whole = compute(MelSpectrogram(**options), [clip], device)[0]
    for trim, columns in (((1, 1), slice(1, -1)), ((2, 0), slice(2, None)), ((0, 3), slice(0, -3))):
        feature = MelSpectrogram(**options, trim=trim)
        assert np.array_equal(compute(feature, [clip], device)[0], whole[:, columns])
        assert feature.num_hops(3000) == whole[:, columns].shape[1]


@pytest.mark.parametrize("device", DEVICES)
def test_segments_are_features_of_their_own_sound(rng: np.random.Generator, device: str) -> None:
    clip = sound(rng, 4000)
    feature = Segments(feature=SMALL, num_segments=3, length=1500, step=1000)
    (actual,) = compute(feature, [clip], device)
    assert actual.shape == feature.shape(4000) == (3, 20, 19)
    for number in range(3):
        alone = compute(SMALL, [clip[number * 1000 : number * 1000 + 1500]], device)[0]
        assert np.array_equal(actual[number], alone)
    with pytest.raises(ValueError, match="num_samples=3499 must be at least 3500"):
        feature.num_hops(3499)


@pytest.mark.parametrize("device", DEVICES)
def test_a_waveform_is_one_bin(rng: np.random.Generator, device: str) -> None:
    clip = sound(rng, 4000)
    assert np.array_equal(compute(Waveform(), [clip], device)[0], clip[None])
    wide = clip.astype(np.float64)[None]
    expected = (wide - wide.mean()) / np.sqrt(wide.var() + 1e-8)
    assert_close(compute(Waveform(normalize=Standardize(epsilon=1e-8)), [clip], device)[0], expected)


@pytest.mark.parametrize("device", DEVICES)
def test_the_mean_of_the_clip_is_subtracted(rng: np.random.Generator, device: str) -> None:
    clip = sound(rng, 4000) + 0.3
    feature = Spectrogram(n_fft=256, hop_length=80, subtract_mean=True)
    plain = compute(Spectrogram(n_fft=256, hop_length=80), [clip - clip.mean()], device)[0]
    assert_close(compute(feature, [clip], device)[0], plain)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Spectrogram(scope="file"), ValueError, "scope='file' must be one of 'clip', 'medium'"),
        (lambda: Spectrogram(scope="medium", subtract_mean=True), ValueError, "subtract_mean=True"),
        (lambda: Spectrogram(num_columns=0), ValueError, "num_columns=0"),
        (lambda: Spectrogram(stack=0), ValueError, "stack=0"),
        (lambda: Spectrogram(trim=1), TypeError, "trim=1 must be a pair"),
        (lambda: Spectrogram(trim=(1, -1)), ValueError, "trim=-1"),
        (lambda: Spectrogram(normalize="mean"), TypeError, "normalize='mean' must be Affine"),
        (lambda: Spectrogram(int16=1), TypeError, "int16=1 must be True or False"),
        (lambda: Spectrogram(padding=5), ValueError, "padding=5 needs"),
        (lambda: Spectrogram(detrend=True), ValueError, "detrend=True needs center=False"),
        (lambda: Spectrogram(magnitude_add=1e-9), ValueError, "magnitude_add=1e-09 needs power=1"),
        (lambda: Spectrogram(density=True, power=1), ValueError, "density=True needs power=2"),
        (lambda: Spectrogram(n_fft=6, average_pairs=True), ValueError, "average_pairs=True"),
        (lambda: Log10(span=-1), ValueError, "span=-1"),
        (lambda: Affine(std=0), ValueError, "std=0 must be finite and above 0"),
        (lambda: Affine(std=[1, -1]), ValueError, "std=-1"),
        (lambda: Affine(low=1, high=0), ValueError, "low=1 must be below high=0"),
        (lambda: Standardize(over="row"), ValueError, "over='row'"),
        (lambda: Standardize(epsilon=0), ValueError, "epsilon=0"),
        (lambda: KaldiFilterBank(win_length=1), ValueError, "win_length=1"),
        (lambda: KaldiFilterBank(scope="medium"), ValueError, "scope='medium' must be 'clip'"),
        (lambda: SpeechFilterBank(n_fft=256), ValueError, "n_fft=256 must be at least 400"),
        (lambda: SpeechMFCC(n_mfcc=27), ValueError, "n_mfcc=27 must be at most n_mels=26"),
        (lambda: Segments(feature=SMALL, num_segments=0, length=1, step=1), ValueError, "num_segments=0"),
        (lambda: Segments(feature=WAV2LIP, num_segments=1, length=1, step=1), ValueError, "must have scope='clip'"),
        (lambda: Segments(feature="mel", num_segments=1, length=1, step=1), TypeError, "feature='mel'"),
        (lambda: Waveform(normalize=2), TypeError, "normalize=2"),
    ],
)
def test_a_wrong_option_is_named_with_its_value(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_too_few_columns_are_refused() -> None:
    with pytest.raises(ValueError, match=r"num_samples=80 leave no column: trim=\(1, 1\)"):
        MFCC(n_fft=256, hop_length=80, trim=(1, 1)).num_hops(80)
    with pytest.raises(ValueError, match="num_samples=399 must be at least 400"):
        KaldiFilterBank().num_hops(399)


@pytest.mark.parametrize("device", DEVICES)
def test_a_clips_feature_does_not_depend_on_its_neighbours(rng: np.random.Generator, device: str) -> None:
    clip, quiet, long = sound(rng, 8000), 1e-4 * sound(rng, 8000), 3 * sound(rng, 20001)
    for feature in (SpeechMFCC(), KaldiFilterBank(normalize=Standardize(unbiased=True))):
        (alone,) = compute(feature, [clip], device)
        batch = compute(feature, [long, clip, quiet, clip], device)
        assert np.array_equal(alone, batch[1])
        assert np.array_equal(alone, batch[3])
