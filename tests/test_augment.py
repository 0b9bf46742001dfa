"""Augmentation of sound against formulas in float64, and its independence of the batch."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import scipy.signal
import torch

from avloader import keyed
from avloader.augment import (
    AddBackgroundNoise,
    AddColorNoise,
    ApplyImpulseResponse,
    BandPassFilter,
    BandStopFilter,
    BitCrush,
    Clip,
    ClipKeys,
    ClippingDistortion,
    Compose,
    Gain,
    GainTransition,
    HighPassFilter,
    ImpulseResponseBank,
    LowPassFilter,
    Mix,
    Node,
    Normalize,
    OneOf,
    PolarityInversion,
    SomeOf,
    SoundBank,
    SpecAugment,
    TanhDistortion,
    TimeMask,
)
from avloader.augment.base import augment_features
from avloader.augment.keys import draws, name_tag, white_noise
from avloader.augment.quantiles import normal_quantiles

RATE = 16000
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
on_every_device = pytest.mark.parametrize("device", DEVICES)

_RANDOM = np.random.default_rng(7)
# One that is longer than the clips below, one shorter, one with a silent half, one of a single sample, one silent.
NOISES = [
    _RANDOM.normal(size=40_000).astype(np.float32) * np.linspace(0.01, 0.5, 40_000, dtype=np.float32),
    _RANDOM.normal(size=3001).astype(np.float32),
    np.concatenate([np.zeros(9000, np.float32), _RANDOM.normal(size=9000).astype(np.float32)]),
    np.array([0.5], np.float32),
]
BANK = SoundBank(NOISES, sample_rate=RATE)
_DECAY = np.exp(-np.arange(6000) / 900.0)
ROOMS = ImpulseResponseBank(
    [
        np.concatenate([np.zeros(470), [1.0], 0.3 * _RANDOM.normal(size=6000) * _DECAY]).astype(np.float32),
        np.array([0.0, -0.8, 0.1, 0.05], np.float32),
    ],
    sample_rate=RATE,
)

TRANSFORMS: dict[str, Callable[[], Node]] = {
    "noise": lambda: AddBackgroundNoise(BANK, p=0.7),
    "absolute noise": lambda: AddBackgroundNoise(BANK, p=0.7, noise_rms="absolute"),
    "mix": lambda: Mix(BANK, p=0.7),
    "color": lambda: AddColorNoise(p=0.7),
    "white": lambda: AddColorNoise(p=0.7, min_f_decay=0, max_f_decay=0),
    "gain": lambda: Gain(p=0.7),
    "polarity": lambda: PolarityInversion(p=0.7),
    "transition": lambda: GainTransition(p=0.7),
    "low pass": lambda: LowPassFilter(p=0.7),
    "high pass": lambda: HighPassFilter(p=0.7),
    "band pass": lambda: BandPassFilter(p=0.7),
    "band stop": lambda: BandStopFilter(p=0.7),
    "room": lambda: ApplyImpulseResponse(ROOMS, p=0.7),
    "clip": lambda: Clip(a_min=-0.1, a_max=0.1, p=0.7),
    "crush": lambda: BitCrush(p=0.7),
    "clipping": lambda: ClippingDistortion(p=0.7),
    "tanh": lambda: TanhDistortion(p=0.7),
    "mask": lambda: TimeMask(p=0.7),
    "peak": lambda: Normalize(p=0.7),
    "rms": lambda: Normalize(to="rms", level=0.1, p=0.7),
    "all": lambda: Compose(
        [
            ApplyImpulseResponse(ROOMS),
            Gain(name="before"),
            AddBackgroundNoise(BANK),
            OneOf([LowPassFilter(p=1), HighPassFilter(p=1), BandPassFilter(p=1), Compose([BandStopFilter(), Gain()])]),
            PolarityInversion(),
            SomeOf([TanhDistortion(), ClippingDistortion(), GainTransition(), TimeMask()], num_transforms=(1, 3)),
            AddColorNoise(),
            Gain(),
        ]
    ),
}
every_transform = pytest.mark.parametrize("make", TRANSFORMS.values(), ids=list(TRANSFORMS))


def sounds(size: int, num_samples: int = 20_003) -> tuple[torch.Tensor, npt.NDArray[np.int64]]:
    """Clips of different levels and lengths, one silent, one of a single sample, one empty."""
    random = np.random.default_rng(3)
    lengths = random.integers(num_samples // 3, num_samples + 1, size)
    lengths[:5] = num_samples, num_samples, 1, 0, num_samples - 1
    audio = random.normal(size=(size, num_samples)) * 10.0 ** random.uniform(-4, 0, (size, 1))
    audio[1] = 0
    audio[np.arange(num_samples) >= lengths[:, None]] = 0
    return torch.from_numpy(audio.astype(np.float32)), lengths


def run(
    node: Node, audio: torch.Tensor, device: str = "cpu", *, clips: Any = None, lengths: Any = None, **key: int
) -> tuple[torch.Tensor, dict[str, dict[str, torch.Tensor]]]:
    """The result on the CPU."""
    keys = ClipKeys(np.arange(len(audio)) if clips is None else clips, **key)
    result = node(audio.to(device), keys=keys, sample_rate=RATE, lengths=lengths)
    assert result.audio.device.type == device
    return result.audio.cpu(), {
        name: {key: value.cpu() for key, value in columns.items()} for name, columns in result.parameters.items()
    }


@pytest.mark.parametrize("seed", [0, 1, 2**32 + 7, 2**64 - 1])
def test_draws_are_philox_of_clip_epoch_and_name(seed: int) -> None:
    """As `keyed.philox` gives them, whose answers are the published ones."""
    clips, epochs = np.array([0, 5, 2**33 + 1, 2**63 - 1]), np.array([0, 3, 2**32 - 1, 1])
    counts = {"Gain": 3, "of eleven words": 11}
    got = draws(ClipKeys(clips, seed=seed, epoch=epochs), counts)
    wide, whole = clips.astype(np.uint64), epochs.astype(np.uint64)
    low, high = wide & np.uint64(0xFFFFFFFF), wide >> np.uint64(32)
    for name, count in counts.items():
        for block in range(-(-count // 4)):
            fourth = np.full(4, 1 << 31 | name_tag(name) << 8 | block, np.uint64)
            words = keyed.philox((low, high, whole, fourth), (seed & 0xFFFFFFFF, seed >> 32))
            assert np.array_equal(got[name].words[4 * block : 4 * block + 4], np.stack(words)[: count - 4 * block])
        assert len(got[name].words) == count


@on_every_device
@every_transform
def test_bits_do_not_depend_on_the_batch(make: Callable[[], Node], device: str) -> None:
    audio, lengths = sounds(32, 6007)
    clips = np.arange(32) * 2**33 + 5
    whole, parameters = run(make(), audio, device, clips=clips, lengths=lengths, seed=3, epoch=2)
    assert not torch.equal(whole, audio)
    order = np.random.default_rng(0).permutation(32)
    for size in (1, 7, 32):
        for first in range(0, 32, size):
            some = order[first : first + size]
            part, own = run(make(), audio[some], device, clips=clips[some], lengths=lengths[some], seed=3, epoch=2)
            assert torch.equal(part.view(torch.int32), whole[some].view(torch.int32))
            for name, columns in own.items():
                assert columns.keys() == parameters[name].keys()
                for key, column in columns.items():
                    assert torch.equal(column, parameters[name][key][some])


@on_every_device
@every_transform
def test_the_same_is_returned_of_any_batch(make: Callable[[], Node], device: str) -> None:
    audio, lengths = sounds(8)
    _, expected = run(make(), audio, device, lengths=lengths)  # one clip is empty, so that nothing is done to it
    for some in (audio, audio[:1], audio[:0]):
        _, parameters = run(make(), some, device)
        for name, columns in parameters.items():
            assert columns.keys() == expected[name].keys()
            for key, column in columns.items():
                assert column.shape == (len(some), *expected[name][key].shape[1:])
                assert column.dtype == expected[name][key].dtype


@on_every_device
@every_transform
def test_bits_do_not_depend_on_how_far_the_batch_is_padded(make: Callable[[], Node], device: str) -> None:
    audio, lengths = sounds(8)
    wide = torch.nn.functional.pad(audio, (0, 777))
    expected, _ = run(make(), audio, device, lengths=lengths)
    result, _ = run(make(), wide, device, lengths=lengths)
    assert torch.equal(result[:, : audio.shape[1]], expected)


@on_every_device
@every_transform
def test_tails_stay_zero_and_odd_clips_stay_finite(make: Callable[[], Node], device: str) -> None:
    audio, lengths = sounds(32)
    before = audio.clone()
    result, _ = run(make(), audio, device, lengths=lengths)
    assert torch.equal(audio, before), "the input was changed"
    tail = torch.arange(audio.shape[1]) >= torch.from_numpy(lengths)[:, None]
    assert not result[tail].any()
    assert torch.isfinite(result).all()


@every_transform
def test_sound_before_the_first_sample_stays_zero(make: Callable[[], Node]) -> None:
    audio, _ = sounds(8)
    ranges = np.stack([np.arange(8) * 300, np.arange(8) * 300 + 9000], axis=1)
    t = torch.arange(audio.shape[1])
    outside = (t < torch.from_numpy(ranges[:, :1])) | (t >= torch.from_numpy(ranges[:, 1:]))
    audio[0] = audio[4]
    audio[outside] = 0
    result, _ = run(make(), audio, lengths=ranges)
    assert not result[outside].any()


@on_every_device
@every_transform
def test_a_clip_that_is_not_finite_leaves_the_others_alone(make: Callable[[], Node], device: str) -> None:
    audio, lengths = sounds(8)
    expected, _ = run(make(), audio, device, lengths=lengths)
    broken = audio.clone()
    broken[5, 100] = float("nan")
    broken[6, 100] = float("inf")
    result, _ = run(make(), broken, device, lengths=lengths)
    others = [0, 1, 2, 3, 4, 7]
    assert torch.equal(result[others], expected[others])


@pytest.mark.parametrize("other", [{"seed": 1}, {"epoch": 1}])
def test_another_seed_or_epoch_draws_anew(other: dict[str, int]) -> None:
    audio, _ = sounds(32)
    one, _ = run(Gain(p=1), audio)
    two, _ = run(Gain(p=1), audio, **other)
    assert (one[5:] != two[5:]).any(dim=1).all()


def test_a_transform_draws_the_same_in_any_chain() -> None:
    audio, _ = sounds(32)
    alone = run(TimeMask(p=0.5), audio)[1]["TimeMask"]
    chain = Compose([LowPassFilter(), Gain(), OneOf([Clip(), TimeMask(p=0.5)], weights=(0, 1)), Gain()])
    inside = run(chain, audio)[1]["TimeMask"]
    assert all(torch.equal(alone[key], inside[key]) for key in alone)
    assert 8 < alone["active"].sum() < 24


def test_two_of_a_class_draw_apart() -> None:
    audio, _ = sounds(32)
    parameters = run(Compose([Gain(p=1), Gain(p=1)]), audio)[1]
    assert not torch.isclose(parameters["Gain"]["gain_db"], parameters["Gain.2"]["gain_db"]).all()


def test_one_of_takes_each_as_often_as_its_weight() -> None:
    audio = torch.zeros(6000, 4)
    node = OneOf([Gain(p=1), Clip(p=1), PolarityInversion(p=1)], weights=(1, 2, 0), p=0.5)
    parameters = run(node, audio)[1]
    active = torch.stack([parameters[name]["active"] for name in ("Gain", "Clip", "PolarityInversion")])
    assert active.sum(0).max() == 1
    assert abs(active.sum(1).float() - torch.tensor([1000.0, 2000.0, 0.0])).max() < 190  # five standard deviations


def test_some_of_takes_so_many_and_each_equally_often() -> None:
    audio = torch.zeros(6000, 4)
    node = SomeOf([Gain(p=1), Clip(p=1), PolarityInversion(p=1)], num_transforms=(1, 2))
    parameters = run(node, audio)[1]
    active = torch.stack([columns["active"] for columns in parameters.values()])
    count = torch.bincount(active.sum(0), minlength=4)
    assert count[0] == count[3] == 0
    assert abs(count[1] - 3000) < 200
    assert abs(active.sum(1) - 3000).max() < 200


@on_every_device
def test_gain_and_polarity_are_their_formulas(device: str) -> None:
    audio, _ = sounds(32)
    result, parameters = run(Compose([Gain(p=1), PolarityInversion(p=0.5)]), audio, device)
    decibels, inverted = parameters["Gain"]["gain_db"], parameters["PolarityInversion"]["active"]
    assert decibels.min() >= -12
    assert decibels.max() <= 12
    factor = torch.where(inverted, -1, 1) * 10 ** (decibels / 20)
    torch.testing.assert_close(result.double(), audio.double() * factor[:, None], rtol=2e-7, atol=0)


@on_every_device
def test_clip_and_bit_crush_are_their_formulas(device: str) -> None:
    audio, lengths = sounds(32)
    result, _ = run(Clip(p=1, a_min=-0.02, a_max=0.3), audio, device, lengths=lengths)
    assert np.array_equal(result.numpy()[lengths > 0], np.clip(audio.numpy(), -0.02, 0.3)[lengths > 0])
    audio[:, 0] = 0.0
    result, parameters = run(BitCrush(p=1, min_bit_depth=3, max_bit_depth=12), audio, device, lengths=lengths)
    depths = parameters["BitCrush"]["bit_depth"].numpy()
    assert set(depths[lengths > 0]) <= set(range(3, 13))
    for row in np.flatnonzero(lengths > 0):
        steps = np.float32(2 ** depths[row] / 2 + 1)
        np.testing.assert_allclose(result[row].numpy(), np.round(audio[row].numpy() * steps) / steps, rtol=2e-7)


def clicks(num_samples: int = 20_000) -> tuple[torch.Tensor, list[int]]:
    """A click in each of 32 clips, and where."""
    places = np.linspace(1000, num_samples - 1000, 32).astype(int).tolist()
    audio = torch.full((32, num_samples), 1e-3)  # so that percentiles and levels are those of sound, not of silence
    audio[torch.arange(32), torch.tensor(places)] = 0.9
    return audio, places


@on_every_device
@pytest.mark.parametrize(
    "make",
    [
        lambda p: AddBackgroundNoise(BANK, p=p),
        lambda p: AddBackgroundNoise(BANK, return_noise=True, p=p),
        lambda p: AddColorNoise(return_noise=True, p=p),
        lambda p: Mix(BANK, p=p),
    ],
    ids=["noise", "noise returned", "colour", "mix"],
)
def test_what_is_returned_has_one_form_whichever_clips_are_in_the_batch(
    make: Callable[[float], Node], device: str
) -> None:
    audio, lengths = sounds(6)
    ((some,), (none,)) = (run(make(p), audio, device, lengths=lengths)[1].values() for p in (1.0, 0.0))
    assert {key: (column.shape, column.dtype) for key, column in some.items()} == {
        key: (column.shape, column.dtype) for key, column in none.items()
    }
    assert not any(column.any() for column in none.values())


@on_every_device
@pytest.mark.parametrize("name", [name for name in TRANSFORMS if name != "all"])
def test_a_click_stays_at_its_sample(name: str, device: str) -> None:
    audio, places = clicks()
    result, parameters = run(TRANSFORMS[name](), audio, device)
    (columns,) = parameters.values()
    assert columns["active"].any()
    for row, place in enumerate(places):
        if name == "mask" and int(columns["t0"][row]) <= place < int(columns["t0"][row] + columns["t"][row]):
            continue
        near = result[row, place - 200 : place + 201].abs()
        assert near[200] == near.max()


@on_every_device
@every_transform
def test_the_same_draws_give_the_same_bits_again(make: Callable[[], Node], device: str) -> None:
    audio, lengths = sounds(8, 6007)
    one, other = (run(make(), audio, device, lengths=lengths, seed=2, epoch=7)[0] for _ in range(2))
    assert torch.equal(one, other)


@on_every_device
@pytest.mark.parametrize("unit", ["seconds", "samples", "fraction"])
def test_gain_transition_is_linear_in_decibels(device: str, unit: Any) -> None:
    audio, lengths = sounds(32)
    least, most = {"seconds": (0.2, 1.0), "samples": (50, 5000), "fraction": (0.1, 0.9)}[unit]
    node = GainTransition(p=1, duration_unit=unit, min_duration=least, max_duration=most)
    result, parameters = run(node, audio, device, lengths=lengths)
    columns = {key: column.numpy() for key, column in parameters["GainTransition"].items()}
    for row in np.flatnonzero(lengths > 0):
        first, last, begin, fade = (
            columns[key][row] for key in ("start_gain_db", "end_gain_db", "t0", "fade_time_samples")
        )
        decibels = np.interp(np.arange(audio.shape[1]), begin + np.arange(fade), np.linspace(first, last, fade))
        expected = audio[row].numpy().astype(np.float64) * 10 ** (decibels / 20)
        np.testing.assert_allclose(result[row].numpy(), expected, rtol=2e-6, atol=0)
        assert 2 - fade <= begin <= max(lengths[row] - 2, 2 - fade)


def _snr(sound: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    return 10 * torch.log10(sound.double().square().sum(1) / noise.double().square().sum(1))


@on_every_device
def test_noise_has_its_snr_over_the_clips_own_samples(device: str) -> None:
    audio, lengths = sounds(64)
    node = AddBackgroundNoise(BANK, p=1, min_snr_db=-10, max_snr_db=40, return_noise=True)
    result, parameters = run(node, audio, device, lengths=lengths)
    columns = parameters["AddBackgroundNoise"]
    heard = columns["gain"] > 0
    assert heard.sum() > 50
    assert torch.equal(result, audio + columns["noise"])
    assert abs(_snr(audio, columns["noise"]) - columns["snr_db"])[heard].max() < 1e-4
    assert abs(_snr(audio, result - audio) - columns["snr_db"])[heard & (columns["snr_db"] < 20)].max() < 1e-2
    for row in heard.nonzero()[:, 0].tolist():
        sound, offset, length = int(columns["sound"][row]), int(columns["offset"][row]), int(lengths[row])
        tiled = np.resize(np.roll(NOISES[sound], -offset), length) * float(columns["gain"][row])
        got = columns["noise"][row, :length].numpy()
        np.testing.assert_allclose(got, tiled, atol=2e-5 * abs(NOISES[sound]).max() * float(columns["gain"][row]))


def test_a_short_noise_is_repeated_without_a_wrong_level() -> None:
    audio, _ = sounds(16)
    bank = SoundBank([np.repeat([1.0, 0.01], 1500).astype(np.float32)], sample_rate=RATE)  # two levels, 40 dB apart
    node = AddBackgroundNoise(bank, p=1, return_noise=True)
    columns = run(node, audio[:, :4000], lengths=None)[1]["AddBackgroundNoise"]
    heard = columns["gain"] > 0
    assert abs(_snr(audio[:, :4000], columns["noise"]) - columns["snr_db"])[heard].max() < 1e-4


@on_every_device
def test_silence_is_left_alone_and_noise_that_is_silent_adds_nothing(device: str) -> None:
    audio, _ = sounds(8)
    silent = SoundBank([np.zeros(500, np.float32)], sample_rate=RATE)
    result, parameters = run(AddBackgroundNoise(silent, p=1), audio, device)
    assert torch.equal(result, audio)
    assert not parameters["AddBackgroundNoise"]["gain"].any()
    result, parameters = run(AddBackgroundNoise(BANK, p=1), torch.zeros(8, 20_000), device)
    assert not result.any()


@on_every_device
def test_absolute_noise_has_its_rms(device: str) -> None:
    audio, lengths = sounds(32)
    node = AddBackgroundNoise(BANK, p=1, noise_rms="absolute", return_noise=True)
    columns = run(node, audio, device, lengths=lengths)[1]["AddBackgroundNoise"]
    heard = columns["gain"] > 0
    assert heard[1], "a silent clip gets noise, too"
    rms = (columns["noise"].double().square().sum(1) / torch.from_numpy(lengths)).sqrt()
    assert abs(20 * torch.log10(rms) - columns["rms_db"])[heard].max() < 1e-4
    assert columns["rms_db"][heard].min() >= -45
    assert columns["rms_db"][heard].max() <= -15


@on_every_device
def test_mix_returns_both_sources(device: str) -> None:
    audio, lengths = sounds(32)
    result, parameters = run(Compose([Gain(p=1), Mix(BANK)]), audio, device, lengths=lengths)
    columns = parameters["Mix"]
    heard = columns["gain"] > 0
    assert torch.equal(columns["sources"].sum(1), result)
    clean = audio.double() * 10 ** (parameters["Gain"]["gain_db"] / 20)[:, None]
    torch.testing.assert_close(columns["sources"][:, 0].double()[heard], clean[heard], rtol=2e-7, atol=0)
    assert abs(_snr(columns["sources"][:, 0], columns["sources"][:, 1]) - columns["snr_db"])[heard].max() < 1e-4


@on_every_device
@pytest.mark.parametrize("decay", [-6.02, -3.01, 0.0, 3.01, 6.02])
def test_color_noise_has_its_slope_its_snr_and_no_period(device: str, decay: float) -> None:
    audio = torch.full((8, 10 * RATE), 0.1)
    node = AddColorNoise(p=1, min_f_decay=decay, max_f_decay=decay, return_noise=True)
    columns = run(node, audio, device)[1]["AddColorNoise"]
    assert abs(_snr(audio, columns["noise"]) - columns["snr_db"]).max() < 1e-4
    noise = (columns["noise"] / columns["noise"].square().mean(1, keepdim=True).sqrt()).double().numpy()
    frequency, power = scipy.signal.welch(noise, RATE, nperseg=4096)
    octaves = np.log2(np.geomspace(150, 7000, 12))
    bands = [(frequency >= 2**low) & (frequency < 2**high) for low, high in itertools.pairwise(octaves)]
    level = [10 * np.log10(power[:, band].mean()) for band in bands]
    middle = [np.log2(frequency[band]).mean() for band in bands]
    assert abs(np.polyfit(middle, level, 1)[0] - decay) < 0.2
    spectrum = np.fft.rfft(noise - noise.mean(1, keepdims=True), 2 * noise.shape[1])
    alike = np.fft.irfft(abs(spectrum) ** 2)[:, RATE // 2 : -RATE // 2] / noise.shape[1]
    assert abs(alike).max() < 0.5  # brown noise wanders slowly; noise that repeats has 0.5 and more


def test_white_noise_is_normal() -> None:
    noise = white_noise(torch.tensor([1, -(2**62)]), 400_000).double()
    assert abs(noise.mean()) < 5 / 800_000**0.5
    assert abs(noise.var() - 1) < 5 * (2 / 800_000) ** 0.5
    assert abs((noise**4).mean() - 3) < 5 * (96 / 800_000) ** 0.5
    assert scipy.stats.kstest(noise[0].numpy(), "norm").pvalue > 1e-3
    assert abs(torch.corrcoef(noise)[0, 1]) < 5 / 400_000**0.5
    table = normal_quantiles()
    assert np.array_equal(table, -table[::-1])


@pytest.mark.gpu
def test_white_noise_has_the_same_bits_on_the_gpu() -> None:
    key = torch.tensor([1, -(2**62), 2**63 - 1])
    assert torch.equal(white_noise(key.cuda(), 50_001).cpu(), white_noise(key, 50_001))


FILTERS = {
    "low": lambda: LowPassFilter(p=1),
    "high": lambda: HighPassFilter(p=1),
    "pass": lambda: BandPassFilter(p=1),
    "stop": lambda: BandStopFilter(p=1),
}


def _reference_filter(name: str, parameters: dict[str, torch.Tensor], row: int) -> npt.NDArray[np.float64]:
    def low_pass(cutoff: float) -> npt.NDArray[np.float64]:
        cutoff = min(max(cutoff / RATE, 4 / 4095), 0.5)
        half = int(4 / cutoff)
        taps = np.zeros(8191)
        if cutoff < 0.5:
            taps[4095 - half : 4096 + half] = scipy.signal.firwin(2 * half + 1, cutoff, window="hann", fs=1)
        else:
            taps[4095] = 1
        return taps

    delta = np.zeros(8191)
    delta[4095] = 1
    if name in ("low", "high"):
        taps = low_pass(float(parameters["cutoff_freq"][row]))
        return taps if name == "low" else delta - taps
    center, width = float(parameters["center_freq"][row]), float(parameters["bandwidth"][row])
    band = low_pass(center + width / 2) - low_pass(center - width / 2)
    return band if name == "pass" else delta - band


@on_every_device
@pytest.mark.parametrize("name", FILTERS)
def test_filters_are_scipys_without_delay(device: str, name: str) -> None:
    audio, lengths = sounds(32)
    audio[4:] /= audio[4:].abs().amax(1, keepdim=True)
    result, parameters = run(FILTERS[name](), audio, device, lengths=lengths)
    (columns,) = parameters.values()
    for row in np.flatnonzero(lengths > 0):
        taps = _reference_filter(name, columns, row)
        expected = scipy.signal.fftconvolve(audio[row].numpy().astype(np.float64), taps)[4095:-4095]
        expected[lengths[row] :] = 0
        np.testing.assert_allclose(result[row].numpy(), expected, rtol=0, atol=4e-6)


@on_every_device
@pytest.mark.parametrize("name", FILTERS)
def test_an_impulse_stays_at_its_sample_with_its_sign(device: str, name: str) -> None:
    places = np.linspace(0, 19_999, 32).astype(int)
    audio = torch.zeros(32, 20_000)
    audio[np.arange(32), places] = 1
    result, _ = run(FILTERS[name](), audio, device)
    assert result.abs().argmax(1).tolist() == places.tolist()
    assert (result[np.arange(32), places] > 0).all()


@on_every_device
@pytest.mark.parametrize("name", FILTERS)
def test_filters_pass_and_stop_with_the_right_sign(device: str, name: str) -> None:
    """The response at a frequency is a positive real number: 1 in the band that passes, 0 in the one that does not."""
    impulse = torch.zeros(32, 20_000)
    impulse[:, 10_000] = 1
    result, parameters = run(FILTERS[name](), impulse, device)
    response = np.fft.rfft(np.roll(result.double().numpy(), -10_000, axis=1), axis=1)
    assert abs(response.imag).max() < 2e-5
    hertz = np.fft.rfftfreq(20_000, 1 / RATE)
    (columns,) = parameters.values()
    for row in range(32):
        if name in ("low", "high"):
            cutoff = float(columns["cutoff_freq"][row])
            low, high = (0.0, cutoff) if name == "low" else (cutoff, 8000.0)
        else:
            center, width = float(columns["center_freq"][row]), float(columns["bandwidth"][row])
            low, high = center - width / 2, center + width / 2
        inside = (hertz > low + 0.6 * max(low, 16) * (low > 0)) & (hertz < high - 0.6 * high * (high < 8000))
        outside = (hertz < low - 0.6 * low) | (hertz > high + 0.6 * high)
        passed, stopped = (outside, inside) if name == "stop" else (inside, outside)
        if low > 40 or low == 0:
            assert abs(response.real[row, passed] - 1).max(initial=0) < 0.02
            assert abs(response.real[row, stopped]).max(initial=0) < 0.02


@on_every_device
@pytest.mark.parametrize("level", ["rms", "direct"])
def test_rooms_keep_the_direct_path_in_place(device: str, level: Any) -> None:
    audio, lengths = sounds(32)
    result, parameters = run(ApplyImpulseResponse(ROOMS, p=1, level=level), audio, device, lengths=lengths)
    for row in np.flatnonzero(lengths > 1):
        taps = ROOMS.taps[int(parameters["ApplyImpulseResponse"]["response"][row])].astype(np.float64)
        clean = audio[row].numpy().astype(np.float64)
        expected = scipy.signal.fftconvolve(clean, taps)[ROOMS.middle : ROOMS.middle + len(clean)]
        expected[lengths[row] :] = 0
        if level == "rms" and clean.any():
            expected *= np.sqrt((clean**2).sum() / (expected**2).sum())
        np.testing.assert_allclose(result[row].numpy(), expected, rtol=0, atol=1e-5 * max(abs(expected).max(), 1e-30))
    impulse = torch.zeros(8, 20_000)
    impulse[:, 9000] = 1
    result, _ = run(ApplyImpulseResponse(ROOMS, p=1, level=level), impulse, device)
    assert result.abs().argmax(1).tolist() == [9000] * 8
    assert (result[:, 9000] > 0).all()


@on_every_device
def test_clipping_and_tanh_are_numpys_percentiles(device: str) -> None:
    audio, lengths = sounds(32)
    audio += 0.02 * (audio != 0)
    clipped, parameters = run(ClippingDistortion(p=1), audio, device, lengths=lengths)
    bent, bent_parameters = run(TanhDistortion(p=1), audio, device, lengths=lengths)
    for row in np.flatnonzero(lengths > 0):
        own = audio[row, : lengths[row]].numpy().astype(np.float64)
        share = int(parameters["ClippingDistortion"]["percentile_threshold"][row]) // 2
        expected = np.clip(own, *np.percentile(own, [share, 100 - share]))
        np.testing.assert_allclose(clipped[row, : lengths[row]].numpy(), expected, rtol=1e-6, atol=1e-9)
        amount = float(bent_parameters["TanhDistortion"]["distortion_amount"][row])
        expected = np.tanh(0.5 / (np.percentile(abs(own), 100 - 99 * amount) + 1e-6) * own)
        if own.any():
            expected *= np.sqrt((own**2).mean() / (expected**2).mean())
        np.testing.assert_allclose(bent[row, : lengths[row]].numpy(), expected, rtol=1e-5, atol=1e-9)


@on_every_device
@pytest.mark.parametrize("place", ["start", "end", "random"])
@pytest.mark.parametrize("fade", [0.0, 0.005])
def test_time_mask_fades_out_and_in(device: str, place: Any, fade: float) -> None:
    audio, lengths = sounds(32)
    node = TimeMask(p=1, mask_location=place, fade_duration=fade)
    result, parameters = run(node, audio, device, lengths=lengths)
    columns = parameters["TimeMask"]
    for row in np.flatnonzero(lengths > 0):
        first, length = int(columns["t0"][row]), int(columns["t"][row])
        assert 0 <= first <= first + length <= lengths[row]
        assert int(0.01 * lengths[row]) <= length <= int(0.2 * lengths[row])
        assert place != "start" or first == 0
        assert place != "end" or first + length == lengths[row]
        curve = np.ones(audio.shape[1])
        curve[first : first + length] = 0
        steps = min(round(fade * RATE), length // 2)
        if steps >= 2:
            x = np.linspace(0, 1, steps)
            product = x * (1 - x)
            fade_in = (product * (1 - 0.70912 * product) + x) ** 2
            curve[first : first + steps] = fade_in[::-1]
            curve[first + length - steps : first + length] = fade_in
        expected = audio[row].numpy() * curve
        np.testing.assert_allclose(result[row].numpy(), expected, rtol=2e-6, atol=1e-6 * abs(expected).max())


@on_every_device
def test_normalize_reaches_its_level(device: str) -> None:
    audio, lengths = sounds(32)
    loud = lengths > 0
    loud[1] = False
    peak, _ = run(Normalize(level=0.5), audio, device, lengths=lengths)
    torch.testing.assert_close(peak.abs().amax(1)[loud], torch.full((int(loud.sum()),), 0.5), rtol=1e-6, atol=0)
    rms, _ = run(Normalize(to="rms", level=0.1), audio, device, lengths=lengths)
    got = (rms.double().square().sum(1) / torch.from_numpy(lengths)).sqrt()[loud]
    torch.testing.assert_close(got, torch.full_like(got, 0.1), rtol=1e-6, atol=0)


@on_every_device
@pytest.mark.parametrize("value", [0.0, -3.5, "mean", "min"])
def test_spec_augment_masks_what_it_drew(device: str, value: Any) -> None:
    spectrogram = torch.from_numpy(np.random.default_rng(0).normal(size=(16, 40, 300)).astype(np.float32))
    hops = np.array([300] * 8 + [120] * 7 + [1])
    keys = ClipKeys(np.arange(16) + 9)
    node = SpecAugment(n_freq_masks=2, freq_mask_param=12, time_mask_param=60, max_time_part=0.3, value=value, p=0.8)
    result = node(spectrogram.to(device), keys=keys, num_hops=hops).cpu()
    drawn = augment_features(node, spectrogram, keys=keys, num_hops=hops)[1]["SpecAugment"]
    hit = 0
    for row in range(16):
        expected = spectrogram[row].clone()
        own = spectrogram[row, :, : hops[row]].double()
        fill = {"mean": own.mean(), "min": own.min()}.get(value, value)
        for first, width in zip(drawn["time_start"][row], drawn["time_width"][row], strict=True):
            assert 0 <= first <= first + width <= hops[row]
            assert width <= min(60, 0.3 * hops[row])
            expected[:, first : first + width] = fill
        for first, width in zip(drawn["freq_start"][row], drawn["freq_width"][row], strict=True):
            assert 0 <= first <= first + width <= 40
            assert width <= 12
            expected[first : first + width] = fill
        torch.testing.assert_close(result[row], expected, rtol=0, atol=1e-6)
        hit += not torch.equal(result[row], spectrogram[row])
    assert 8 <= hit <= 15
    alone = node(spectrogram[3:4].to(device), keys=ClipKeys([12]), num_hops=hops[3:4]).cpu()
    assert torch.equal(alone[0], result[3])


@pytest.mark.gpu
@every_transform
def test_gpu_and_cpu_agree(make: Callable[[], Node]) -> None:
    audio, lengths = sounds(32)
    expected, parameters = run(make(), audio, lengths=lengths)
    result, own = run(make(), audio, "cuda", lengths=lengths)
    scale = expected.abs().amax(1, keepdim=True).clamp(min=1e-9)
    assert ((result - expected).abs() / scale).max() < 4e-6
    for name, columns in parameters.items():
        for key, column in columns.items():
            torch.testing.assert_close(own[name][key], column, rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
def test_exact_transforms_have_the_same_bits_on_the_gpu() -> None:
    audio, lengths = sounds(32)
    node = Compose([Gain(), AddBackgroundNoise(BANK), PolarityInversion(), Clip(p=1)])
    assert torch.equal(run(node, audio, lengths=lengths)[0], run(node, audio, "cuda", lengths=lengths)[0])


@pytest.mark.gpu
def test_a_bank_that_does_not_fit_gives_the_same_bits() -> None:
    audio, lengths = sounds(32)
    small = SoundBank(NOISES, sample_rate=RATE, device_bytes=1000)
    one, _ = run(AddBackgroundNoise(BANK, p=1), audio, "cuda", lengths=lengths)
    two, _ = run(AddBackgroundNoise(small, p=1), audio, "cuda", lengths=lengths)
    assert torch.equal(one, two)


def test_a_bank_holds_what_files_hold(tmp_path: Any) -> None:
    import av

    sound = (0.25 * np.sin(np.arange(48_000) / 48_000 * 2 * np.pi * 440)).astype(np.float32)
    for name, scale in (("b.wav", 0.5), ("a.wav", 1.0)):
        with av.open(str(tmp_path / name), "w") as container:
            stream = container.add_stream("pcm_f32le", rate=48_000, layout="mono")
            frame = av.AudioFrame.from_ndarray(scale * sound[None], "flt", "mono")
            frame.sample_rate = 48_000
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    bank = SoundBank.from_files(tmp_path, sample_rate=RATE)
    assert [name.rsplit("/", 1)[1] for name in bank.names] == ["a.wav", "b.wav"]
    assert bank.length.tolist() == [16_000, 16_000]
    expected = 0.25 * np.sin(np.arange(16_000) / 16_000 * 2 * np.pi * 440)
    np.testing.assert_allclose(bank.sound(0)[200:-200], expected[200:-200], atol=2e-5)
    np.testing.assert_allclose(bank.sound(1)[200:-200], 0.5 * expected[200:-200], atol=2e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Gain(p=1.5), "p=1.5 must be in"),
        (lambda: Gain(min_gain_db=3, max_gain_db=1), "min_gain_db=3 must not be above max_gain_db=1"),
        (lambda: LowPassFilter(min_cutoff_freq=0), "min_cutoff_freq=0 must be"),
        (lambda: TimeMask(mask_location="middle"), "mask_location='middle' must be one of"),  # type: ignore[arg-type]
        (lambda: Compose([]), "at least one"),
        (lambda: OneOf([Gain()], weights=(1, 2)), "one a transform"),
        (lambda: SomeOf([Gain()], num_transforms=2), "at most 1"),
        (lambda: SoundBank([], sample_rate=RATE), "at least one sound"),
        (lambda: SoundBank([np.full(3, np.nan, np.float32)], sample_rate=RATE), "not finite"),
        (lambda: ImpulseResponseBank([np.zeros(3, np.float32)], sample_rate=RATE), "silent"),
        (lambda: ClipKeys([-1]), "must be in"),
        (lambda: Gain()(torch.zeros(2, 5), keys=ClipKeys([1]), sample_rate=RATE), "keys has 1 clips"),
        (lambda: Gain()(torch.zeros(1, 5), keys=ClipKeys([1]), sample_rate=RATE, lengths=[6]), "lengths must lie"),
        (lambda: Gain()(torch.zeros(1, 5), keys=ClipKeys([1]), sample_rate=0), "sample_rate=0"),
        (
            lambda: AddBackgroundNoise(BANK)(torch.zeros(1, 5), keys=ClipKeys([1]), sample_rate=8000),
            "sample_rate=16000, but the sound has 8000",
        ),
        (lambda: run(Compose([Gain(name="a"), Clip(name="a")]), torch.zeros(1, 5)), "two transforms are named 'a'"),
    ],
)
def test_wrong_arguments_say_what_is_wrong(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
