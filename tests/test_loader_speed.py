"""Clips played faster or slower: the frames and the sound of the same times, by content, in media of all kinds."""

from __future__ import annotations

import itertools
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from conftest import TruthMedia
from truth import delay_of, linear_frames, linear_sound, read_number, snr_db

from avloader import AVLoader, Manifest, ManifestError, MelSpectrogram, OtherStart, build_manifest
from avloader.augment import AVTimeMask, ClipKeys, ColorJitter, Compose, Gain, JointSpeed, Node, OneOf
from avloader.batch import AVBatch

on_both = pytest.mark.parametrize("device", ["cpu", pytest.param("gpu", marks=pytest.mark.gpu)])

RATE, NUM_FRAMES, STRIDE = 16000, 8, 2
SPEEDS = ("4/5", 1, 1.1, 1.25)
HALF_WIDTH = 96  # native samples on each side that the reference interpolates from
EVEN = ["mp4_25", "mp4_29_97", "three_b_frames", "stereo_44100", "sound_late"]
OF_ANY_TIMES = [*EVEN, "variable_rate", "mpegts", "mkv_opus"]


def build(truth_media: TruthMedia, names: list[str], folder: Path, spans: list[str]) -> Manifest:
    lines = ["path,start,end,label", *(f"{truth_media[name]},{span},0" for name in names for span in spans)]
    (folder / "clips.csv").write_text("\n".join(lines) + "\n")
    return build_manifest(folder / "clips.csv", media_root=folder, output=folder / "manifest", progress=False)


@pytest.fixture(scope="module")
def manifest(truth_media: TruthMedia, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return build(truth_media, ["mp4_25"], tmp_path_factory.mktemp("speed"), ["0,4.2", "1.3,3", "4.4,9"])


def batches(manifest: Manifest, *, epoch: int = 0, **options: Any) -> list[AVBatch]:
    defaults: dict[str, Any] = {
        "batch_size": 3,
        "num_frames": NUM_FRAMES,
        "stride": STRIDE,
        "size": (36, 64),
        "normalize": None,
        "features": None,
        "device": "cpu",
        "num_workers": 1,
        "seed": 5,
        "augment": JointSpeed(p=0.9, speeds=SPEEDS),
    }
    with AVLoader(manifest, **(defaults | options)) as loader:
        loader.set_epoch(epoch)
        return [batch.to("cpu") for batch in loader]


def clips(found: list[AVBatch]) -> dict[tuple[int, float], tuple[Any, ...]]:
    """Each clip by row and first time: speed, times, pictures, sound."""
    result: dict[tuple[int, float], tuple[Any, ...]] = {}
    for batch in found:
        assert batch.augmentation is not None
        speeds = batch.augmentation["JointSpeed"]["speed"].tolist()
        for place, speed in enumerate(speeds):
            key = int(batch.row[place]), float(batch.frame_seconds[place, 0])
            times = tuple(batch.frame_seconds[place].tolist()), float(batch.audio_start_seconds[place])
            valid = tuple(batch.audio_valid[place].tolist())
            result[key] = (speed, times, valid, batch.frames[place].numpy(), batch.audio[place].numpy())
    assert len(result) == sum(map(len, found))
    return result


def sound_at(path: Path, times: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The sound of a whole file at these media times, between its samples by a windowed sinc in float64."""
    sound = linear_sound(path)
    places = (times - float(sound.start)) * sound.rate
    near = np.floor(places).astype(np.int64)[:, None] + np.arange(1 - HALF_WIDTH, HALF_WIDTH + 1)
    exists = (near >= 0) & (near < len(sound.samples))
    values = np.where(exists, sound.samples[np.clip(near, 0, len(sound.samples) - 1)], 0.0)
    distance = places[:, None] - near
    window = np.i0(12 * np.sqrt(np.maximum(1 - (distance / HALF_WIDTH) ** 2, 0))) / np.i0(12)
    result: npt.NDArray[np.float64] = (values * np.sinc(distance) * window).sum(axis=1)
    return result


@on_both
@pytest.mark.parametrize("fps", [None, "25", "30000/1001"])
def test_pictures_and_sound_are_those_of_the_same_times(
    truth_media: TruthMedia, tmp_path: Path, device: str, fps: str | None
) -> None:
    seen = set()
    for name in EVEN if fps is None else OF_ANY_TIMES:
        folder = tmp_path / name
        folder.mkdir()
        made = build(truth_media, [name], folder, ["4,8.5"])
        truth = linear_frames(truth_media[name])
        times = np.array([float(time) for time in truth.times])
        step = times[1] - times[0] if fps is None else 1 / float(Fraction(fps))
        for (_, first), clip in clips(batches(made, fps=fps, device=device)).items():
            speed, (frame_seconds, audio_start), (begin, end), pictures, audio = clip
            seen.add(speed)
            middle = (times + np.append(times[1:], 2 * times[-1] - times[-2])) / 2
            instants = first + np.arange(NUM_FRAMES) * STRIDE * step * speed
            wanted = np.searchsorted(middle, instants - 1e-9)
            assert np.allclose(frame_seconds, times[wanted], rtol=0, atol=1e-9), (name, speed)
            numbers = [read_number(picture.transpose(1, 2, 0)) for picture in pictures]
            assert numbers == [truth.numbers[index] for index in wanted], (name, speed)
            native = linear_sound(truth_media[name]).rate
            assert abs(audio_start - first) <= 0.5 / native + 1e-9
            # Delivered sample j is what the file plays at this media time.
            expected = sound_at(truth_media[name], audio_start + np.arange(len(audio)) * speed / RATE)
            inner = slice(begin + 400 * (begin > 0), end - 400 * (end < len(audio)))
            assert inner.stop - inner.start > 0.5 * len(audio)
            assert snr_db(audio[inner], expected[inner]) > 40, (name, speed)
            assert abs(delay_of(audio[inner], expected[inner])) < 0.02, (name, speed)
            assert not audio[:begin].any()
            assert not audio[end:].any()
    assert seen == {0.8, 1.0, 1.1, 1.25}


def test_a_clip_at_another_speed_lasts_as_long_and_shows_more_of_the_medium(manifest: Manifest) -> None:
    for batch in batches(manifest, augment=JointSpeed(p=1, speeds=["3/2"])):
        assert batch.audio.shape[1] == NUM_FRAMES * STRIDE * RATE // 25
        span = batch.frame_seconds[:, -1] - batch.frame_seconds[:, 0]
        assert torch.allclose(span, torch.full_like(span, (NUM_FRAMES - 1) * STRIDE * 1.5 / 25))


@on_both
@pytest.mark.parametrize("windows", ["all", "random", "center", "first"])
def test_every_window_lies_in_its_row(manifest: Manifest, device: str, windows: str) -> None:
    ends = {0: 4.2, 1: 3.0, 2: 9.0}
    for epoch in (0, 1):
        found = clips(batches(manifest, clips=windows, epoch=epoch, device=device))
        assert {row for row, _ in found} == {0, 1, 2}
        for (row, first), (_, (seconds, _), *_) in found.items():
            assert seconds[-1] < ends[row]
            assert first >= {0: 0.0, 1: 1.3, 2: 4.4}[row]


@on_both
@pytest.mark.parametrize(
    "options",
    [{"batch_size": 1}, {"batch_size": 7}, {"shuffle": True}, {"num_workers": 2}],
    ids=["single clips", "large batches", "shuffled", "more workers"],
)
def test_a_clip_has_its_speed_however_the_loader_runs(manifest: Manifest, device: str, options: dict[str, Any]) -> None:
    one, other = clips(batches(manifest, device=device)), clips(batches(manifest, device=device, **options))
    assert one.keys() == other.keys()
    for key in one:
        assert one[key][:3] == other[key][:3]
        assert np.array_equal(one[key][4], other[key][4])
        difference = np.abs(one[key][3].astype(np.int64) - other[key][3])
        assert difference.mean() < (4 if device == "gpu" else 1e-9)  # another place may be decoded by another engine


def test_a_clip_has_its_speed_on_any_rank_and_after_a_resume(manifest: Manifest) -> None:
    one = clips(batches(manifest))
    ranks = [batches(manifest, rank=rank, world_size=2) for rank in (0, 1)]
    assert {key: clip[0] for key, clip in clips([*ranks[0], *ranks[1]]).items()} == {
        key: clip[0] for key, clip in one.items()
    }
    options: dict[str, Any] = {"batch_size": 2, "num_frames": NUM_FRAMES, "stride": STRIDE, "size": (36, 64)}
    options |= {"normalize": None, "features": None, "device": "cpu", "num_workers": 1, "seed": 5}
    options["augment"] = JointSpeed(p=0.9, speeds=SPEEDS)
    with AVLoader(manifest, **options) as loader:
        started = list(itertools.islice(loader, 2))
        state = loader.state_dict()
    with AVLoader(manifest, **options) as loader:
        loader.load_state_dict(state)
        resumed = clips([*started, *loader])
        assert resumed.keys() == one.keys()
        assert all(np.array_equal(resumed[key][4], one[key][4]) for key in one)
        following = clips(list(loader))
        assert any(following[key][0] != one[key][0] for key in one), "the next epoch draws anew"
    other = AVLoader(manifest, **(options | {"augment": JointSpeed(speeds=[1.2])}))
    with pytest.raises(ValueError, match="another plan"):
        other.load_state_dict(state)


@on_both
def test_where_it_is_left_out_the_clips_are_those_without_it(manifest: Manifest, device: str) -> None:
    plain = batches(manifest, device=device, augment=None)
    for before, after in zip(plain, batches(manifest, device=device, augment=JointSpeed(p=0)), strict=False):
        rows = [place for place in range(len(before)) if before.row[place] == after.row[place]]
        assert rows
        assert after.augmentation is not None
        assert not after.augmentation["JointSpeed"]["active"].any()
        for place in rows:
            assert torch.equal(before.frames[place], after.frames[place])
            assert torch.equal(before.audio[place], after.audio[place])


@on_both
def test_it_goes_with_other_transforms_and_features(manifest: Manifest, device: str) -> None:
    def chain(speed: Node) -> Node:
        return Compose([Gain(p=1), OneOf([speed, Gain(p=0)]), ColorJitter(p=1), AVTimeMask(p=1, max_frames=4)])

    mel = MelSpectrogram(n_fft=256, hop_length=80, n_mels=20)
    found = batches(manifest, device=device, features=mel, augment=chain(JointSpeed(p=1, speeds=SPEEDS)))
    bare = clips(batches(manifest, device=device, augment=chain(JointSpeed(p=1, speeds=SPEEDS))))
    hit = set()
    for batch in found:
        assert batch.augmentation is not None
        assert batch.spectrogram is not None
        masks, speeds = batch.augmentation["AVTimeMask"], batch.augmentation["JointSpeed"]
        for place in range(len(batch)):
            hit.add(bool(speeds["active"][place]))
            first, count = int(masks["first_frame"][place]), int(masks["num_frames"][place])
            assert not batch.frames[place, first : first + count].any()
            samples = STRIDE * RATE // 25
            assert not batch.audio[place, samples * first : samples * (first + count)].any()
            key = int(batch.row[place]), float(batch.frame_seconds[place, 0])
            assert np.array_equal(batch.audio[place].numpy(), bare[key][4])
    assert hit == {True, False}


def test_what_cannot_be_is_refused(manifest: Manifest, truth_media: TruthMedia, tmp_path: Path) -> None:
    def make(**options: Any) -> AVLoader:
        return AVLoader(manifest, **({"batch_size": 2, "num_frames": 8, "augment": JointSpeed()} | options))

    with pytest.raises(ValueError, match=r"JointSpeed does not go with offsets=OtherStart"):
        make(offsets=OtherStart(probability=0.5, guard_seconds=0.1))
    with pytest.raises(ValueError, match=r"JointSpeed does not go with audio_from='row'"):
        make(audio_from="row", audio_seconds=1)
    with pytest.raises(ValueError, match="a chain may hold one JointSpeed, not 2"):
        make(augment=Compose([JointSpeed(), JointSpeed()]))
    with pytest.raises(ValueError, match="JointSpeed changes what is read of a clip: give it to AVLoader"):
        JointSpeed()(torch.zeros(1, 100), keys=ClipKeys([1]), sample_rate=RATE)
    with pytest.raises(ValueError, match="JointSpeed changes what is read of a clip: give it to AVLoader"):
        Compose([Gain(), JointSpeed()]).augment_frames(torch.zeros(1, 1, 3, 4, 4), keys=ClipKeys([1]))
    for speeds, message in (
        ((), "must be a sequence"),
        ("1.1", "must be a sequence"),
        ((5,), r"must be in \[1/4, 4\]"),
        ((0,), r"must be in \[1/4, 4\]"),
        (("fast",), "'fast' must be a number"),
        ((1.23456789,), "a denominator of at most 1000"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            JointSpeed(speeds=speeds)
    short = build(truth_media, ["mp4_25"], tmp_path, ["0,0.4"])  # ten frames hold a clip of eight, but not at 3/2
    AVLoader(short, batch_size=1, num_frames=8)
    with pytest.raises(ManifestError, match="it spans 11 frames, rows have up to 10"):
        AVLoader(short, batch_size=1, num_frames=8, augment=JointSpeed(speeds=["3/2"]))
