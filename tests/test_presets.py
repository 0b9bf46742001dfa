"""Every preset against its model's own definition, written down anew on the whole file.

The reference never sees a window: it computes on all of the sound, in float64 where the model does, and cuts then.
Errors are relative to the greatest magnitude of the reference; 1e-4 is allowed, 1e-3 where the model computes its
logarithms in float32.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import librosa
import numpy as np
import pytest
import python_speech_features
import scipy.fft
import scipy.signal
import torch
from PIL import Image
from test_features_of_models import as_int16, kaldi_fbank
from transformers import ASTFeatureExtractor, WhisperFeatureExtractor
from truth import linear_frames, linear_rgb

from avloader import AVLoader, Manifest, build_manifest
from avloader.batch import AVBatch
from avloader.cli import main
from avloader.pictures import PictureOptions
from avloader.plan import Plan, PlanOptions
from avloader.presets import PRESETS, Preset, find_preset

on_both = pytest.mark.parametrize("device", ["cpu", pytest.param("gpu", marks=pytest.mark.gpu)])

RATE, SECONDS, FPS = 16000, 33, 25
NAMED_IN_THE_REFERENCE = {
    *("wav2lip", "latentsync", "syncnet", "syncnet_fbank", "synchformer", "avhubert", "auto_avsr", "whisper", "ast"),
    *("cav_mae", "imagebind", "languagebind", "avid", "vggsound", "talknet", "mmaudio_16k"),
}


@functools.cache
def speech_like(rate: int) -> np.ndarray:
    """Sound of 33 s in whole numbers: bursts of tones and noise, with silences between them; both ends are loud."""
    rng = np.random.default_rng(25)
    seconds = np.arange(rate * SECONDS) / rate
    level = np.clip(np.sin(2 * np.pi * 1.7 * seconds + 1), 0, 1) * np.clip(1.2 * np.cos(0.4 * seconds) ** 2, 0.05, 1)
    tones = sum(np.sin(2 * np.pi * (110 * k + 30 * np.sin(seconds)) * seconds) / k for k in range(1, 20))
    noise = rng.standard_normal(len(seconds))
    return as_int16(0.08 * level * tones + (0.02 * level + 0.001) * noise)


@pytest.fixture
def sound() -> np.ndarray:
    return speech_like(RATE)


def make_medium(path: Path, size: tuple[int, int], rate: int) -> Path:
    """H.264 at 25 frames/s with the sound of `speech_like` in 16 bits."""
    height, width = size
    down, across = np.mgrid[:height, :width]
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=FPS, options={"crf": "16", "g": "25", "preset": "ultrafast"})
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        audio = container.add_stream("pcm_s16le", rate=rate, layout="mono")
        for number in range(FPS * SECONDS):
            phase = [0.11 * number * (k + 1) + down / (7 + k) + across / (11 - k) for k in range(3)]
            picture = np.stack([127 + 100 * np.sin(angle / 3) for angle in phase], axis=-1).astype(np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode())
        samples = av.AudioFrame.from_ndarray(speech_like(rate)[None], format="s16", layout="mono")
        samples.sample_rate, samples.pts = rate, 0
        container.mux(audio.encode(samples))
        container.mux(audio.encode())
    return path


class Media:
    """Manifests of media of (height, width, sample rate), made when they are first asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: dict[tuple[int, int, int], Manifest] = {}

    def __getitem__(self, key: tuple[int, int, int]) -> Manifest:
        if key not in self._made:
            height, width, rate = key
            folder = self._folder / f"{height}x{width} at {rate}"
            folder.mkdir()
            make_medium(folder / "clip.mov", (height, width), rate)
            rows = ["path,start,end,label", "clip.mov,,,a", "clip.mov,2.2,,a", "clip.mov,7.04,,b"]
            (folder / "clips.csv").write_text("\n".join(rows) + "\n")
            self._made[key] = build_manifest(
                folder / "clips.csv", media_root=folder, output=folder / "manifest", progress=False
            )
        return self._made[key]


@pytest.fixture(scope="session")
def media(tmp_path_factory: pytest.TempPathFactory) -> Media:
    return Media(tmp_path_factory.mktemp("presets"))


def batch_of(manifest: Manifest, preset: str, device: str, **options: Any) -> tuple[AVBatch, Preset]:
    """One batch of all rows."""
    with AVLoader(manifest, preset=preset, batch_size=len(manifest), device=device, **options) as loader:
        assert loader.preset is PRESETS[preset]
        (batch,) = list(loader)
    return batch, loader.preset


# The models' own definitions: the whole sound as whole numbers -> the feature of a clip, in the model's layout. `start`
# is the frame at 25 frames/s for models that count frames, the first sample for those that see a window.

Reference = Callable[[np.ndarray, int], np.ndarray]


def mel_of_wav2lip(samples: np.ndarray) -> np.ndarray:
    """Wav2Lip's audio.py on a whole file."""
    wav = scipy.signal.lfilter([1, -0.97], [1], samples / 32768)
    spectrum = np.abs(librosa.stft(wav, n_fft=800, hop_length=200, win_length=800, pad_mode="reflect"))
    mel = librosa.filters.mel(sr=16000, n_fft=800, n_mels=80, fmin=55, fmax=7600) @ spectrum
    level = 20 * np.log10(np.maximum(1e-5, mel)) - 20
    return np.clip(8 * ((level + 100) / 100) - 4, -4, 4)


def wav2lip(samples: np.ndarray, frame: int) -> np.ndarray:
    first = int(80.0 * (frame / 25.0))
    return mel_of_wav2lip(samples)[None, :, first : first + 16]


def latentsync(samples: np.ndarray, frame: int) -> np.ndarray:
    first = int(80.0 * (frame / 25.0))
    return mel_of_wav2lip(samples)[None, :, first : first + math.ceil(16 / 5 * 16)]


def syncnet(samples: np.ndarray, frame: int) -> np.ndarray:
    return python_speech_features.mfcc(samples, 16000).T[None, :, 4 * frame : 4 * frame + 20]


def talknet(samples: np.ndarray, frame: int) -> np.ndarray:
    features = python_speech_features.mfcc(samples, 16000, numcep=13, winlen=0.025 * 25 / 25, winstep=0.010 * 25 / 25)
    return features[4 * frame : 4 * (frame + 50)]


def avhubert(samples: np.ndarray, frame: int) -> np.ndarray:
    features = python_speech_features.logfbank(samples, samplerate=16000)
    features = np.concatenate([features, np.zeros((-len(features) % 4, 26))]).reshape(-1, 104)
    window = torch.from_numpy(features[frame : frame + 50])
    return torch.nn.functional.layer_norm(window, window.shape[1:]).numpy().T


def hann_power(wav: np.ndarray, n_fft: int, win: int, hop: int, *, center: bool = True) -> np.ndarray:
    """|torch.stft|**2 with a periodic Hann window."""
    spectrum = torch.stft(
        torch.from_numpy(wav), n_fft, hop, win, torch.hann_window(win, dtype=torch.float64), center, return_complex=True
    )
    return spectrum.abs().numpy() ** 2


def htk_mel(power: np.ndarray, n_fft: int, n_mels: int) -> np.ndarray:
    """torchaudio's default mel bands."""
    return librosa.filters.mel(sr=16000, n_fft=n_fft, n_mels=n_mels, fmin=0, fmax=8000, htk=True, norm=None) @ power


def syncnet_fbank(samples: np.ndarray, first: int) -> np.ndarray:
    window = samples[first : first + 30 * 640 + 240].astype(np.float64)
    level = np.log(htk_mel(hann_power(window, 512, 400, 160), 512, 40) + 1e-6)
    normed = torch.nn.InstanceNorm1d(40)(torch.from_numpy(level)[None])[0].numpy()
    return normed[:, 1:-1]


def synchformer(samples: np.ndarray, first: int) -> np.ndarray:
    segments = []
    for number in range(14):
        begin = first + number * 5120
        power = hann_power(samples[begin : begin + 10240] / 32768, 1024, 400, 160)
        level = np.log(htk_mel(power, 1024, 128) + 1e-6)
        level = np.pad(level, ((0, 0), (0, 66 - level.shape[1])))
        segments.append((level + 4.2677393) / (2 * 4.5689974))
    return np.stack(segments)[:, None]


def sparsesync(samples: np.ndarray, first: int) -> np.ndarray:
    level = np.log(hann_power(samples[first : first + 80000] / 32768, 512, 512, 128) + 1e-6)
    return ((level - level.mean(1, keepdims=True)) / (level.std(1, keepdims=True, ddof=1) + 1e-6))[None]


def auto_avsr(samples: np.ndarray, first: int) -> np.ndarray:
    window = torch.from_numpy(samples[first : first + 50 * 640] / 32768)
    return torch.nn.functional.layer_norm(window, window.shape, eps=1e-8).numpy()[:, None]


def whisper_of(n_mels: int) -> Reference:
    def reference(samples: np.ndarray, first: int) -> np.ndarray:
        wav = np.zeros(480000)
        wav[: len(samples) - first] = samples[first : first + 480000] / 32768
        power = hann_power(wav, 400, 400, 160)[:, :-1]
        mel = librosa.filters.mel(sr=16000, n_fft=400, n_mels=n_mels, fmin=0, fmax=8000) @ power
        level = np.log10(np.maximum(mel, 1e-10))
        return (np.maximum(level, level.max() - 8) + 4) / 4

    return reference


def fbank_of_ast(wav: np.ndarray, n_mels: int, num_columns: int, mean: float, std: float) -> np.ndarray:
    """[shape=(n_mels, num_columns)]."""
    fbank = kaldi_fbank((wav - wav.mean()).astype(np.float32), n_mels)[:, :num_columns]
    return (np.pad(fbank, ((0, 0), (0, num_columns - fbank.shape[1]))) - mean) / std


def ast(samples: np.ndarray, first: int) -> np.ndarray:
    return fbank_of_ast(samples[first : first + 160000] / 32768, 128, 1024, -4.2677393, 4.5689974 * 2).T


def cav_mae(samples: np.ndarray, first: int) -> np.ndarray:
    return fbank_of_ast(samples[first : first + 160000] / 32768, 128, 1024, -5.081, 4.4849).T


def imagebind(samples: np.ndarray, first: int) -> np.ndarray:
    clips = [samples[first + start * RATE : first + (start + 2) * RATE] / 32768 for start in (0, 4, 8)]
    return np.stack([fbank_of_ast(clip, 128, 204, -4.268, 9.138) for clip in clips])[:, None]


def languagebind(samples: np.ndarray, first: int) -> np.ndarray:
    one = fbank_of_ast(samples[first : first + 165760] / 32768, 112, 1036, -4.2677393, 2 * 4.5689974)
    return np.stack([one, one, one])


def avid(samples: np.ndarray, first: int) -> np.ndarray:
    window = samples[first : first + 48000] / 32768
    power = np.abs(librosa.stft(window, n_fft=1024, hop_length=240, pad_mode="reflect")) ** 2
    pairs = np.concatenate([power[:1], power[1:].reshape(256, 2, -1).mean(1)])[:, :200]
    return librosa.power_to_db(pairs, top_db=100).T[None]


def vggsound(samples: np.ndarray, first: int) -> np.ndarray:
    window = np.clip(samples[first : first + 160000] / 32768, -1, 1)
    _, _, density = scipy.signal.spectrogram(window, 16000, nperseg=512, noverlap=353)
    level = np.log(density + 1e-7)
    return ((level - level.mean()) / (level.std() + 1e-9))[None]


def mmaudio_mel(wav: np.ndarray, rate: int, n_fft: int, n_mels: int) -> np.ndarray:
    hop = n_fft // 4
    padded = np.pad(wav, (n_fft - hop) // 2, mode="reflect")
    magnitude = np.sqrt(hann_power(padded, n_fft, n_fft, hop, center=False) + 1e-9)
    return np.maximum(librosa.filters.mel(sr=rate, n_fft=n_fft, n_mels=n_mels, fmin=0, fmax=rate / 2) @ magnitude, 1e-5)


def mmaudio_16k(samples: np.ndarray, first: int) -> np.ndarray:
    return np.log10(mmaudio_mel(samples[first : first + 128000] / 32768, 16000, 1024, 80))


def mmaudio_44k(samples: np.ndarray, first: int) -> np.ndarray:
    return np.log(mmaudio_mel(samples[first : first + 353280] / 32768, 44100, 2048, 128))


def power_of_source(samples: np.ndarray, first: int) -> np.ndarray:
    return hann_power(samples[first : first + 16000] / 32768, 512, 400, 160)


def mel_of_source(samples: np.ndarray, first: int) -> np.ndarray:
    mel = librosa.filters.mel(sr=16000, n_fft=512, n_mels=80, fmin=0, fmax=8000) @ power_of_source(samples, first)
    return 10 * np.log10(np.maximum(mel, 10 ** (-80 / 10)))


def mfcc_of_source(samples: np.ndarray, first: int) -> np.ndarray:
    return scipy.fft.dct(mel_of_source(samples, first), axis=0, norm="ortho")[:13]


# Name: the reference, whether it counts frames, the tolerance, and the shapes of one clip as the model takes it.
CONTRACTS: dict[str, tuple[Reference, bool, float, tuple[int, ...], tuple[int, ...]]] = {
    "syncnet": (syncnet, True, 1e-4, (3, 5, 224, 224), (1, 13, 20)),
    "syncnet_fbank": (syncnet_fbank, False, 1e-3, (3, 30, 224, 224), (40, 120)),
    "wav2lip": (wav2lip, True, 1e-4, (15, 48, 96), (1, 80, 16)),
    "latentsync": (latentsync, True, 1e-4, (48, 128, 256), (1, 80, 52)),
    "synchformer": (synchformer, False, 1e-3, (14, 16, 3, 224, 224), (14, 1, 128, 66)),
    "sparsesync": (sparsesync, False, 1e-3, (125, 3, 224, 224), (1, 257, 626)),
    "avhubert": (avhubert, True, 1e-4, (1, 50, 88, 88), (104, 50)),
    "auto_avsr": (auto_avsr, False, 1e-4, (50, 1, 88, 88), (32000, 1)),
    "whisper": (whisper_of(80), False, 1e-3, (1, 3, 224, 224), (80, 3000)),
    "whisper_large_v3": (whisper_of(128), False, 1e-3, (1, 3, 224, 224), (128, 3000)),
    "ast": (ast, False, 1e-3, (1, 3, 224, 224), (1024, 128)),
    "cav_mae": (cav_mae, False, 1e-3, (3, 224, 224), (1024, 128)),
    "imagebind": (imagebind, False, 1e-3, (5, 3, 2, 224, 224), (3, 1, 128, 204)),
    "languagebind": (languagebind, False, 1e-3, (3, 8, 224, 224), (3, 112, 1036)),
    "avid": (avid, False, 1e-4, (3, 8, 224, 224), (1, 200, 257)),
    "vggsound": (vggsound, False, 1e-4, (1, 3, 224, 224), (1, 257, 1004)),
    "talknet": (talknet, True, 1e-4, (50, 112, 112), (200, 13)),
    "mmaudio_16k": (mmaudio_16k, False, 1e-3, (200, 3, 224, 224), (80, 500)),
    "mmaudio_16k_clip": (mmaudio_16k, False, 1e-3, (64, 3, 384, 384), (80, 500)),
    "mmaudio_44k": (mmaudio_44k, False, 1e-3, (200, 3, 224, 224), (128, 690)),
    "power_spectrogram": (power_of_source, False, 1e-4, (25, 3, 224, 224), (257, 101)),
    "mel_spectrogram": (mel_of_source, False, 1e-4, (25, 3, 224, 224), (80, 101)),
    "mfcc": (mfcc_of_source, False, 1e-4, (25, 3, 224, 224), (13, 101)),
}


def assert_close(actual: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    assert actual.shape == expected.shape
    assert np.isfinite(actual).all()
    error = np.abs(actual - expected).max() / np.abs(expected).max()
    assert error <= tolerance


def test_every_model_of_the_reference_has_a_preset_and_every_preset_a_test() -> None:
    assert set(PRESETS) >= NAMED_IN_THE_REFERENCE
    assert list(CONTRACTS) == list(PRESETS)


SMALL = {"size": (16, 16), "resize": None, "crop": "center"}  # where the sound is looked at


@on_both
@pytest.mark.parametrize("name", CONTRACTS)
def test_the_sound_is_what_the_models_code_computes(media: Media, device: str, name: str) -> None:
    reference, counts_frames, tolerance, _, shape = CONTRACTS[name]
    clips = "first" if name in ("syncnet", "sparsesync") else PRESETS[name].clips
    rate = PRESETS[name].sample_rate
    manifest, sound = media[96, 96, rate], speech_like(rate)
    batch, preset = batch_of(manifest, name, device, **SMALL, clips=clips)
    _, features = preset.inputs(batch)
    assert tuple(features.shape) == (3, *shape)
    times = linear_frames(manifest.row(0).path).times
    for place in range(3):
        frame = [float(time) for time in times].index(float(batch.frame_seconds[place, 0]))
        first = round(float(batch.audio_start_seconds[place]) * rate)
        if preset.audio_from == "clip":
            is_wav2lips = preset.features is not None and preset.features.grid == 200
            assert first == (int(80.0 * (frame / 25.0)) * 200 if is_wav2lips else frame * rate // 25)
        np.testing.assert_array_equal(
            batch.audio[place].cpu().numpy()[:1000], (sound[first : first + 1000] / 32768).astype(np.float32)
        )
        expected = reference(sound, frame if counts_frames else first)
        assert_close(features[place].cpu().numpy(), expected, tolerance)


@on_both
@pytest.mark.filterwarnings("ignore:At least one mel filter has all zero values")  # as in the model
def test_whisper_and_ast_are_what_transformers_extracts(media: Media, sound: np.ndarray, device: str) -> None:
    for name, n_mels in (("whisper", 80), ("whisper_large_v3", 128)):
        batch, preset = batch_of(media[96, 96, RATE], name, device, **SMALL)
        extract = WhisperFeatureExtractor(feature_size=n_mels)
        starts = [round(start * RATE) for start in batch.audio_start_seconds.tolist()]
        clips = [(sound[first : first + 480000] / 32768).astype(np.float32) for first in starts]
        expected = extract(clips, sampling_rate=RATE, return_tensors="np")["input_features"]
        assert_close(preset.inputs(batch)[1].cpu().numpy(), expected, 1e-3)
    batch, preset = batch_of(media[96, 96, RATE], "ast", device, **SMALL)
    clips = [batch.audio[place].cpu().numpy() for place in range(3)]
    expected = ASTFeatureExtractor()([clip - clip.mean() for clip in clips], sampling_rate=RATE, return_tensors="np")
    assert_close(preset.inputs(batch)[1].cpu().numpy(), expected["input_values"], 1e-3)


# Which pictures and columns


@pytest.mark.parametrize("name", [name for name, contract in CONTRACTS.items() if contract[1]])
def test_a_thousand_random_windows_have_the_models_frames_and_columns(media: Media, name: str) -> None:
    preset = PRESETS[name]
    assert preset.features is not None
    hop = preset.features.grid
    assert hop is not None
    options = PlanOptions(
        num_frames=preset.num_frames,
        fps=Fraction(preset.fps or 25),
        clips="random",
        seed=5,
        audio_grid=Fraction(hop, preset.sample_rate),
    )
    seen = []
    for epoch in range(334):
        plan = Plan(media[96, 96, RATE], options, epoch=epoch)
        for clip in map(plan.clip, range(len(plan))):
            frame = clip.frames[0]
            assert clip.frames == tuple(range(frame, frame + preset.num_frames))
            column = clip.audio_start * preset.sample_rate / hop
            assert column == (int(80.0 * (frame / 25.0)) if hop == 200 else 4 * frame)
            seen.append(frame)
    assert len(seen) > 1000
    assert len(set(seen)) > 500


STORED = {
    "syncnet": (224, 224),
    "wav2lip": (96, 96),
    "latentsync": (256, 256),
    "synchformer": (256, 340),
    "avhubert": (96, 96),
    "talknet": (112, 112),
    "cav_mae": (224, 300),
    "mmaudio_16k": (224, 300),
}


@on_both
@pytest.mark.parametrize("name", STORED)
def test_pictures_stored_at_the_models_size_are_the_models_pixels(media: Media, device: str, name: str) -> None:
    """Without scaling, what is left is colour, crop and normalization: exact on the CPU, close on a GPU."""
    height, width = STORED[name]
    manifest = media[height, width, RATE]
    batch, preset = batch_of(manifest, name, device, clips="first", seed=3)
    frames, _ = preset.inputs(batch)
    assert tuple(frames.shape) == (3, *CONTRACTS[name][3])
    seconds = [float(time) for time in linear_frames(manifest.row(0).path).times]
    plan = Plan(
        manifest,
        PlanOptions(num_frames=preset.num_frames, fps=25, clips="first", seed=3, random_crop=preset.crop == "random"),
    )
    assert preset.normalize is not None
    mean, std = (np.array(values)[:, None, None] for values in preset.normalize)
    picture = PictureOptions(
        size=preset.size, resize=preset.resize, crop=preset.crop, color=preset.color, interpolation=preset.interpolation
    )
    assert preset.size is not None
    for place in (0, 2):
        indices = [seconds.index(second) for second in batch.frame_seconds[place].tolist()]
        rgb = np.moveaxis(linear_rgb(manifest.row(0).path, indices), -1, 1).astype(np.float64)
        assert picture.scaled(rgb.shape[2:]) == rgb.shape[2:]
        top, left = picture.corner(rgb.shape[2:], plan.clip(place).crop)
        cut = rgb[:, :, top : top + preset.size[0], left : left + preset.size[1]]
        if preset.color == "bgr":
            cut = cut[:, ::-1]
        elif preset.color == "grey":
            cut = np.tensordot(cut, [0.299, 0.587, 0.114], (1, 0))[:, None]
        expected = (cut - mean) / std
        error = np.abs(batch.frames[place].cpu().numpy() - expected) * std
        assert error.max() <= 1.01 if device == "cpu" else error.mean() < 4
    if name in ("wav2lip", "latentsync"):  # the channels of the first picture, then those of the second
        assert torch.equal(frames[0, 3:6], batch.frames[0, 1])
    if name == "synchformer":
        assert torch.equal(frames[0, 3, 5], batch.frames[0, 29])
    if name == "syncnet":
        assert torch.equal(frames[0, :, 4], batch.frames[0, 4])


@on_both
@pytest.mark.parametrize("name", ["wav2lip", "synchformer", "imagebind", "languagebind", "mmaudio_16k_clip"])
def test_pictures_of_other_sizes_are_close_to_pillows(media: Media, device: str, name: str) -> None:
    """Scaled by FFmpeg or DALI they differ from Pillow's and torchvision's by some levels: see test_pictures.py."""
    manifest = media[256, 340, RATE]
    batch, preset = batch_of(manifest, name, device, clips="first", seed=3)
    frames, _ = preset.inputs(batch)
    assert tuple(frames.shape) == (3, *CONTRACTS[name][3])
    seconds = [float(time) for time in linear_frames(manifest.row(0).path).times]
    picture = PictureOptions(
        size=preset.size, resize=preset.resize, crop=preset.crop, color=preset.color, interpolation=preset.interpolation
    )
    assert preset.normalize is not None
    assert preset.size is not None
    mean, std = (np.array(values)[:, None, None] for values in preset.normalize)
    plan = Plan(manifest, PlanOptions(num_frames=1, clips="first", seed=3, random_crop=preset.crop == "random"))
    method = Image.Resampling.BICUBIC if preset.interpolation == "bicubic" else Image.Resampling.BILINEAR
    rgb = linear_rgb(manifest.row(0).path, [seconds.index(batch.frame_seconds[0, -1].item())])[0]
    height, width = picture.scaled(rgb.shape[:2])
    scaled = np.moveaxis(np.asarray(Image.fromarray(rgb).resize((width, height), method)), -1, 0).astype(np.float64)
    top, left = picture.corner(rgb.shape[:2], plan.clip(0).crop)
    expected = scaled[:, top : top + preset.size[0], left : left + preset.size[1]]
    got = batch.frames[0, -1].cpu().numpy() * std + mean
    error = np.abs(got - (expected[::-1] if preset.color == "bgr" else expected))
    assert error.mean() < 2
    # DALI's colours make it 6 levels, give or take what normalizing rounds.
    assert np.quantile(error, 0.99) < (6 if device == "cpu" else 6.001)


def test_pictures_lie_where_the_model_looks(media: Media) -> None:
    manifest = media[96, 96, RATE]
    for name, seconds in {
        "imagebind": list(range(10)),
        "languagebind": [Fraction(249, 175) * k for k in range(8)],
        "avid": [Fraction(k, 16) for k in range(8)],
        "mmaudio_16k_clip": [Fraction(k, 8) for k in range(64)],
    }.items():
        batch, _ = batch_of(manifest, name, "cpu", **SMALL, clips="first", features=None)
        shown = batch.frame_seconds - batch.frame_seconds[:, :1]
        assert (shown - torch.tensor([float(each) for each in seconds])).abs().max() <= 0.02 + 1e-9
    batch, _ = batch_of(manifest, "cav_mae", "cpu", **SMALL, features=None)
    rows = [float(manifest.row(row).start_seconds) for row in batch.row.tolist()]
    assert batch.audio_start_seconds.tolist() == rows
    assert (batch.frame_seconds[:, 0] > batch.audio_start_seconds).any()


# As options of the loader


def test_every_option_can_be_overridden(media: Media) -> None:
    options = {**SMALL, "num_frames": 10, "normalize": None, "color": "rgb", "clips": "first"}
    batch, preset = batch_of(media[96, 96, RATE], "wav2lip", "cpu", **options)
    assert batch.frames.dtype == torch.uint8
    assert tuple(batch.frames.shape) == (3, 10, 3, 16, 16)
    assert batch.spectrogram is not None
    assert tuple(batch.spectrogram.shape) == (3, 80, 32)  # as many columns as the frames last
    assert tuple(preset.inputs(batch)[0].shape) == (3, 30, 16, 16)
    batch, preset = batch_of(media[96, 96, RATE], "wav2lip", "cpu", features=None, **SMALL)
    with pytest.raises(ValueError, match="preset 'wav2lip' has a feature of sound"):
        preset.inputs(batch)


def test_a_preset_of_ones_own_is_taken(media: Media) -> None:
    own = Preset(
        name="own",
        title="mine",
        source="here",
        frames_layout="B C F H W",
        sound_layout="B 2 T M",
        num_frames=4,
        size=(16, 16),
        normalize=None,
        features=PRESETS["mfcc"].features,
    )
    with AVLoader(media[96, 96, RATE], preset=own, batch_size=3, device="cpu") as loader:
        (batch,) = list(loader)
        assert loader.preset is own
    pictures, sound = own.inputs(batch)
    assert tuple(pictures.shape) == (3, 3, 4, 16, 16)
    assert tuple(sound.shape) == (3, 2, 17, 13)
    assert batch.spectrogram is not None
    assert torch.equal(sound[:, 1], batch.spectrogram.transpose(1, 2))


def test_an_unknown_preset_is_answered_with_the_closest(media: Media) -> None:
    with pytest.raises(ValueError, match=r"preset='wav2lib' \(did you mean 'wav2lip'\?\) must be one of syncnet, "):
        AVLoader(media[96, 96, RATE], preset="wav2lib", batch_size=1)
    with pytest.raises(TypeError, match="preset=5 must be the name of a preset"):
        find_preset(5)  # type: ignore[arg-type]


def test_the_command_line_lists_and_prints_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["presets"]) == 0
    listed = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[0] for line in listed] == list(PRESETS)
    for name, preset in PRESETS.items():
        assert main(["presets", name]) == 0
        printed = capsys.readouterr().out
        assert preset.source in printed
        assert all(remark in printed for remark in preset.remarks)
        assert main(["presets", name, "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["name"] == name
        assert told["options"]["num_frames"] == str(preset.num_frames)
    assert main(["presets", "wav2lip", "--json"]) == 0
    features = json.loads(capsys.readouterr().out)["options"]["features"]
    assert features.startswith("MelSpectrogram(")
    assert "n_fft=800" in features
    assert "stack" not in features  # the default
    assert main(["presets", "wav2lab"]) == 2
    assert "did you mean 'wav2lip'?" in capsys.readouterr().err
