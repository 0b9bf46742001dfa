"""Augmentation in the loader: the same for a clip however the loader runs, before features and normalization."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import librosa
import numpy as np
import pytest
import torch
from conftest import TruthMedia

from avloader import AVLoader, Manifest, MelSpectrogram, build_manifest
from avloader.augment import (
    AddBackgroundNoise,
    AVTimeMask,
    ClipKeys,
    ColorJitter,
    Compose,
    Gain,
    HorizontalFlip,
    LowPassFilter,
    Node,
    RandomCrop,
    Shift,
    SoundBank,
    SpecAugment,
)
from avloader.batch import AVBatch

on_both = pytest.mark.parametrize("device", ["cpu", pytest.param("gpu", marks=pytest.mark.gpu)])

MEL = MelSpectrogram(n_fft=256, hop_length=80, n_mels=20)
BANK = SoundBank([np.random.default_rng(0).normal(size=9000).astype(np.float32)], sample_rate=16000)


def sound_chain() -> Node:
    return Compose([AddBackgroundNoise(BANK, p=0.7), Gain(p=0.7), LowPassFilter(p=0.5)])


def whole_chain() -> Node:
    return Compose([sound_chain(), RandomCrop((30, 50)), HorizontalFlip(), AVTimeMask(max_frames=4)])


@pytest.fixture(scope="module")
def manifest(truth_media: TruthMedia, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("augment")
    lines = ["path,start,end,label"]
    for name in ("mp4_25", "three_b_frames"):
        lines += [f"{truth_media[name]},{start},{start + 1},0" for start in (0, 1.3, 2.4, 4)]
    (folder / "clips.csv").write_text("\n".join(lines) + "\n")
    return build_manifest(folder / "clips.csv", media_root=folder, output=folder / "manifest", progress=False)


def batches(manifest: Manifest, **options: Any) -> list[AVBatch]:
    defaults: dict[str, Any] = {
        "batch_size": 3,
        "num_frames": 8,
        "size": (36, 64),
        "normalize": None,
        "features": MEL,
        "device": "cpu",
        "num_workers": 1,
        "cpu_share": 0,  # where a clip stands in the epoch would decide who decodes it
        "seed": 5,
    }
    with AVLoader(manifest, **(defaults | options)) as loader:
        return [batch.to("cpu") for batch in loader]


def by_clip(found: list[AVBatch]) -> dict[tuple[int, float], dict[str, torch.Tensor]]:
    return {
        (int(batch.row[place]), float(batch.frame_seconds[place, 0])): {
            "frames": batch.frames[place],
            "audio": batch.audio[place],
            **({} if batch.spectrogram is None else {"spectrogram": batch.spectrogram[place]}),
        }
        for batch in found
        for place in range(len(batch))
    }


def assert_same(one: list[AVBatch], other: list[AVBatch]) -> None:
    first, second = by_clip(one), by_clip(other)
    assert first.keys() == second.keys()
    for clip, tensors in first.items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, second[clip][name]), (clip, name)


@on_both
def test_sound_is_augmented_before_its_features(manifest: Manifest, device: str) -> None:
    plain = batches(manifest, device=device)
    for before, after in zip(plain, batches(manifest, device=device, augment=sound_chain()), strict=True):
        assert torch.equal(after.frames, before.frames)
        frames = torch.round(before.frame_seconds[:, 0] * 25).long()
        keys = ClipKeys(before.row * 2**31 + frames, seed=5, epoch=0)
        expected = sound_chain()(before.audio, keys=keys, sample_rate=16000, lengths=before.audio_valid)
        torch.testing.assert_close(after.audio, expected.audio, rtol=0, atol=0 if device == "cpu" else 1e-5)
        assert after.augmentation is not None
        assert torch.equal(after.augmentation["Gain"]["gain_db"], expected.parameters["Gain"]["gain_db"])
        assert after.spectrogram is not None
        for audio, spectrogram in zip(after.audio.numpy(), after.spectrogram.numpy(), strict=True):
            mel = librosa.feature.melspectrogram(y=audio, sr=16000, n_fft=256, hop_length=80, n_mels=20)
            np.testing.assert_allclose(spectrogram, mel, rtol=1e-3, atol=1e-5 * mel.max())


@on_both
@pytest.mark.parametrize(
    "options",
    [{"batch_size": 7}, {"batch_size": 1}, {"shuffle": True}, {"num_workers": 2, "num_threads": 1}],
    ids=["large batches", "single clips", "shuffled", "more workers"],
)
def test_a_clip_is_the_same_however_the_loader_runs(manifest: Manifest, device: str, options: dict[str, Any]) -> None:
    one = batches(manifest, device=device, augment=whole_chain())
    assert_same(one, batches(manifest, device=device, augment=whole_chain(), **options))


@on_both
def test_a_clip_is_the_same_on_any_rank_and_after_a_resume(manifest: Manifest, device: str) -> None:
    one = batches(manifest, device=device, augment=whole_chain())
    ranks = [batches(manifest, device=device, augment=whole_chain(), rank=rank, world_size=2) for rank in (0, 1)]
    assert_same(one, ranks[0] + ranks[1])
    options: dict[str, Any] = {"batch_size": 3, "num_frames": 8, "size": (36, 64), "normalize": None, "features": MEL}
    options |= {"device": device, "num_workers": 1, "seed": 5, "augment": whole_chain(), "cpu_share": 0}
    with AVLoader(manifest, **options) as loader:
        started = [batch.to("cpu") for _, batch in zip(range(2), loader, strict=False)]
        state = loader.state_dict()
    with AVLoader(manifest, **options) as loader:
        loader.load_state_dict(state)
        assert_same(one, started + [batch.to("cpu") for batch in loader])
        assert not torch.equal(next(iter(loader)).audio.cpu(), one[0].audio), "the next epoch draws anew"


@on_both
@pytest.mark.parametrize("normalize", [((120.0, 110.0, 100.0), (60.0, 50.0, 40.0)), "per_clip", None])
def test_pictures_are_normalized_after_augmentation(manifest: Manifest, device: str, normalize: Any) -> None:
    off = Compose([HorizontalFlip(p=0), Gain(p=0)])
    plain = batches(manifest, device=device, normalize=normalize)
    for before, after in zip(plain, batches(manifest, device=device, normalize=normalize, augment=off), strict=True):
        torch.testing.assert_close(after.frames, before.frames, rtol=0, atol=2e-5 if normalize else 0)
        assert torch.equal(after.audio, before.audio)
    raw = batches(manifest, device=device)
    changed = batches(manifest, device=device, normalize=normalize, augment=ColorJitter(p=1))
    for before, after in zip(raw, changed, strict=True):
        frames = torch.round(before.frame_seconds[:, 0] * 25).long()
        keys = ClipKeys(before.row * 2**31 + frames, seed=5, epoch=0)
        expected = ColorJitter(p=1).augment_frames(before.frames, keys=keys).frames.float()
        if normalize == "per_clip":
            std, mean = torch.std_mean(expected, dim=(1, 3, 4), keepdim=True, correction=0)
            expected = (expected - mean) / std
        elif normalize is not None:
            mean, std = (torch.tensor(values).view(1, 1, 3, 1, 1) for values in normalize)
            expected = (expected - mean) / std
        torch.testing.assert_close(after.frames.float(), expected, rtol=1e-4, atol=1e-3)


def test_a_mask_of_both_hides_the_sound_of_the_frames_that_it_hides(manifest: Manifest) -> None:
    for batch in batches(manifest, augment=AVTimeMask(p=1, min_frames=2, max_frames=5)):
        assert batch.augmentation is not None
        columns = batch.augmentation["AVTimeMask"]
        for place in range(len(batch)):
            first = int(columns["first_frame"][place])
            stop = first + int(columns["num_frames"][place])
            assert not batch.frames[place, first:stop].any()
            assert not batch.audio[place, 640 * first : 640 * stop].any()
            assert batch.audio[place, : 640 * first].any() or first == 0


@on_both
def test_spectrograms_are_masked_after_they_are_made(manifest: Manifest, device: str) -> None:
    augment = Compose([Gain(p=1), SpecAugment(time_mask_param=20, freq_mask_param=6, value=-3.0, p=0.8)])
    plain = batches(manifest, device=device, augment=Compose([Gain(p=1)]))
    hit = 0
    for before, after in zip(plain, batches(manifest, device=device, augment=augment), strict=True):
        assert torch.equal(after.frames, before.frames)
        assert torch.equal(after.audio, before.audio)
        assert after.augmentation is not None
        assert before.spectrogram is not None
        assert after.spectrogram is not None
        drawn = after.augmentation["SpecAugment"]
        for place in range(len(before)):
            expected = before.spectrogram[place].clone()
            for first, width in zip(drawn["time_start"][place], drawn["time_width"][place], strict=True):
                expected[:, first : first + width] = -3
            for first, width in zip(drawn["freq_start"][place], drawn["freq_width"][place], strict=True):
                expected[first : first + width] = -3
            assert torch.equal(after.spectrogram[place], expected)
            hit += not torch.equal(expected, before.spectrogram[place])
    assert hit > len(plain)
    again = batches(manifest, device=device, augment=augment, batch_size=7, shuffle=True)
    assert_same(again, batches(manifest, device=device, augment=augment, batch_size=1))


def test_what_cannot_be_kept_in_step_is_refused(manifest: Manifest) -> None:
    with pytest.raises(ValueError, match="Shift cannot be applied to clips with pictures: it moves sound in time"):
        AVLoader(manifest, batch_size=2, augment=Compose([Gain(), Shift()]))
    with pytest.raises(ValueError, match="ColorJitter needs pictures of color='rgb', not 'grey'"):
        AVLoader(manifest, batch_size=2, augment=ColorJitter(), color="grey", normalize=None)
    with pytest.raises(ValueError, match="AVTimeMask needs frames that are evenly spaced and sound that begins"):
        AVLoader(manifest, batch_size=2, augment=AVTimeMask(), audio_from="row", audio_seconds=1)
    with pytest.raises(ValueError, match="SpecAugment needs features= that give one spectrogram a clip, not None"):
        AVLoader(manifest, batch_size=2, augment=SpecAugment(), features=None)
    with pytest.raises(TypeError, match="augment='noise' must be a transform"):
        AVLoader(manifest, batch_size=2, augment="noise")  # type: ignore[arg-type]


def test_a_clip_that_cannot_be_read_is_left_out(manifest: Manifest, truth_media: TruthMedia, tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(truth_media["mp4_25"].read_bytes())
    lines = ["path,start,end,label", f"{truth_media['mp4_25']},0,1,0", f"{broken},0,1,0"]
    (tmp_path / "clips.csv").write_text("\n".join(lines) + "\n")
    made = build_manifest(tmp_path / "clips.csv", media_root=tmp_path, output=tmp_path / "manifest", progress=False)
    broken.unlink()
    found = batches(made, augment=whole_chain(), on_error="skip", batch_size=8)
    assert [batch.row.tolist() for batch in found] == [[0] * len(found[0])]
    assert found[0].augmentation is not None
    assert len(found[0].augmentation["Gain"]["gain_db"]) == len(found[0].audio) == len(found[0].frames)
