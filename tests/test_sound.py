"""Sound alone and pictures alone: exact, of any length, in buckets, the same however the loader runs."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import librosa
import numpy as np
import numpy.typing as npt
import pytest
import soundfile
import soxr
import torch
from conftest import TruthMedia
from truth import linear_sound, linear_window

from avloader import AVLoader, Manifest, ManifestError, MelSpectrogram, OtherStart, Spectrogram, build_manifest, probe
from avloader.audio import AudioReader
from avloader.augment import AVTimeMask, Compose, Gain, HorizontalFlip, LowPassFilter, Reverse, Shift
from avloader.batch import AVBatch
from avloader.features import Feature, Log10, Standardize
from avloader.sound_plan import SoundOptions, SoundPlan

on_both = pytest.mark.parametrize("device", ["cpu", pytest.param("gpu", marks=pytest.mark.gpu)])

MEL = MelSpectrogram(n_fft=256, hop_length=80, n_mels=20)
MEDIA = ["sidecar_wav", "sidecar_flac", "sidecar_ogg", "sidecar_mp3", "sidecar_m4a", "mp4_25", "stereo_44100"]


def build(rows: Iterable[Sequence[object]], folder: Path, **options: Any) -> Manifest:
    """A manifest of rows (path, start, end, label[, audio_path[, av_offset]])."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "clips.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "start", "end", "label", "audio_path", "av_offset"])
        writer.writerows([*row, *[""] * (6 - len(row))] for row in rows)
    options = {"streams": "audio"} | options
    return build_manifest(
        folder / "clips.csv", media_root=folder, output=folder / "manifest", progress=False, **options
    )


def loader_of(manifest: Manifest, **options: Any) -> AVLoader:
    defaults: dict[str, Any] = {
        "streams": "audio",
        "batch_size": 5,
        "features": MEL,
        "device": "cpu",
        "num_workers": 1,
    }
    return AVLoader(manifest, **(defaults | options))


@dataclass(frozen=True)
class Heard:
    """One delivered clip, without its padding."""

    facts: tuple[Any, ...]
    audio: bytes
    spectrogram: bytes


def clips_of(batches: Iterable[AVBatch]) -> list[Heard]:
    heard = []
    for batch in batches:
        for place, (length, hops) in enumerate(
            zip(batch.audio_length.tolist(), batch.spectrogram_length.tolist(), strict=True)
        ):
            assert not batch.audio[place, length:].any()
            assert torch.equal(batch.audio_mask[place].nonzero()[:, 0], torch.arange(length, device=batch.row.device))
            assert int(batch.spectrogram_mask[place].sum()) == hops
            facts = (
                int(batch.row[place]),
                int(batch.label[place]),
                float(batch.audio_start_seconds[place]),
                tuple(batch.audio_valid[place].tolist()),
                length,
                hops,
            )
            tensors = batch.audio[place, :length], batch.spectrogram[place, :, :hops]
            heard.append(Heard(facts, *(tensor.cpu().numpy().tobytes() for tensor in tensors)))
    return heard


def check_same(got: Sequence[Heard], expected: Sequence[Heard], device: str) -> None:
    assert [clip.facts for clip in got] == [clip.facts for clip in expected]
    if device == "cpu":
        assert got == expected
    for one, other in zip(got, expected, strict=True):
        assert one.audio == other.audio
        bins = [np.frombuffer(clip.spectrogram, np.float32) for clip in (one, other)]
        np.testing.assert_allclose(*bins, atol=1e-2, rtol=1e-3)


def run(manifest: Manifest, *, epoch: int = 0, **options: Any) -> list[Heard]:
    with loader_of(manifest, **options) as loader:
        loader.set_epoch(epoch)
        return clips_of(loader)


@pytest.fixture(scope="module")
def files(truth_media: TruthMedia, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A file of each kind, Ogg also as libsndfile writes it."""
    folder = tmp_path_factory.mktemp("files")
    vorbis = folder / "vorbis.ogg"
    random = np.random.default_rng(0)
    soundfile.write(vorbis, (0.1 * random.normal(size=(50_000, 2))).astype(np.float32), 22050)
    return [vorbis, *(truth_media[name] for name in MEDIA)]


@pytest.fixture(scope="module")
def manifest(files: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Whole files, and intervals of them: 24 rows."""
    rows: list[tuple[object, ...]] = [(path, "", "", "whole") for path in files]
    for path in files:
        rows += [(path, "0.4", "1.1234", "part"), (path, "1.1234", "1.9", "part")]
    return build(rows, tmp_path_factory.mktemp("sound"))


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Rows of 0.1 s to 2.1 s: 200 of one file."""
    folder = tmp_path_factory.mktemp("many")
    random = np.random.default_rng(1)
    soundfile.write(folder / "noise.wav", (0.1 * random.normal(size=8000 * 12)).astype(np.float32), 8000)
    starts, lengths = random.integers(0, 9000, size=200), random.integers(100, 2100, size=200)
    rows = [
        ("noise.wav", start / 1000, (start + length) / 1000, "")
        for start, length in zip(starts.tolist(), lengths.tolist(), strict=True)
    ]
    return build(rows, folder)


# Manifests ------------------------------------------------------------------------------------------------------------


def test_a_manifest_of_sound_holds_the_samples_of_each_interval(manifest: Manifest, files: list[Path]) -> None:
    assert manifest.streams == "audio"
    assert not manifest.rejected()
    lines = (Path(manifest.path) / "file_list.txt").read_text().splitlines()
    with (Path(manifest.path) / "audio_offsets.csv").open(newline="") as file:
        offsets = list(csv.DictReader(file))
    for number, row in enumerate(manifest.rows()):
        sound = linear_sound(row.path)
        bounds = [(None, None), ("0.4", "1.1234"), ("1.1234", "1.9")]
        start, end = bounds[0] if number < len(files) else bounds[1 + (number - len(files)) % 2]
        first = 0 if start is None else round((Fraction(start) - sound.start) * sound.rate)
        stop = len(sound.samples) if end is None else round((Fraction(end) - sound.start) * sound.rate)
        assert row.audio_start_sample == first
        assert abs(row.audio_start_sample + row.audio_num_samples - stop) <= (0 if end else 1200)  # a decoder trims
        assert row.start_seconds == sound.start + Fraction(first, sound.rate)
        assert (row.first_frame, row.stop_frame, row.path) == (0, 0, row.audio_path)
        assert offsets[number]["row"] == str(number)
        assert int(offsets[number]["num_samples"]) == row.audio_num_samples
        assert lines[number].rsplit(" ", 1)[1] == str(number)
        assert " " in row.path or lines[number] == f"{row.path} {number}"


def test_what_is_not_in_the_sound_is_cut_or_rejected(files: list[Path], tmp_path: Path) -> None:
    path = files[0]  # 50,000 samples at 22,050 Hz
    rows = [
        (path, "1", "9"),
        (path, "3", "4"),
        (path, "2", "1"),
        (path, "1", "1.00001"),
        ("absent.wav", "", ""),
        (path, "1", "1.5", "", "", "0.25"),  # sound leads by 0.25 s: what sounds at 1 s lies at 0.75 s
    ]
    made = build([(*row, "") if len(row) == 3 else row for row in rows], tmp_path)
    kept = list(made.rows())
    assert [(row.audio_start_sample, row.audio_num_samples) for row in kept] == [(22050, 27950), (16538, 11025)]
    assert [row["code"] for row in made.rejected()] == [
        "outside_media",
        "empty_interval",
        "empty_interval",
        "missing_file",
    ]
    with loader_of(made, sample_rate=22050) as loader:
        (batch,) = loader
    assert batch.audio_start_seconds.tolist() == [1.0, 16538 / 22050]


def test_a_side_car_is_the_sound_and_the_picture_is_not_looked_at(truth_media: TruthMedia, tmp_path: Path) -> None:
    made = build([("no such film.mp4", "1", "2", "", truth_media["sidecar_flac"])], tmp_path)
    assert made.row(0).path == str(truth_media["sidecar_flac"])


def test_a_manifest_of_pictures_keeps_media_without_sound(truth_media: TruthMedia, tmp_path: Path) -> None:
    rows = [(truth_media["no_sound"], "1", "3", ""), (truth_media["mp4_25"], "0", "2", "")]
    made = build(rows, tmp_path, streams="video")
    assert made.streams == "video"
    assert [(row.first_frame, row.stop_frame, row.audio_path) for row in made.rows()] == [(25, 75, ""), (0, 50, "")]
    assert len((Path(made.path) / "audio_offsets.csv").read_text().splitlines()) == 1
    with pytest.raises(ManifestError, match=r"pictures alone, but streams='both' is asked for"):
        AVLoader(made, batch_size=1, device="cpu")
    with pytest.raises(
        ManifestError, match=r"Build the manifest with streams='audio', or load it with streams='video'"
    ):
        loader_of(made)


def test_a_manifest_of_sound_gives_an_audiovisual_loader_one_clear_error(manifest: Manifest) -> None:
    with pytest.raises(ManifestError, match=r"its rows hold sound alone, but streams='both' is asked for"):
        AVLoader(manifest, batch_size=1, device="cpu")


@pytest.mark.parametrize("streams", ["sound", None])
def test_other_streams_are_refused(manifest: Manifest, tmp_path: Path, streams: Any) -> None:
    with pytest.raises(ValueError, match="streams="):
        build([("a.wav", "", "", "")], tmp_path, streams=streams)
    with pytest.raises(ValueError, match="streams="):
        loader_of(manifest, streams=streams)


# Sound that is exact --------------------------------------------------------------------------------------------------


def whole_at(path: str, rate: int) -> npt.NDArray[np.float32]:
    """All sound of a file at another rate."""
    sound = linear_sound(path)
    if sound.rate == rate:
        return sound.samples
    resampled: npt.NDArray[np.float32] = soxr.resample(sound.samples, sound.rate, rate, quality="HQ")
    return resampled


@on_both
def test_whole_rows_are_what_a_linear_decode_gives(manifest: Manifest, files: list[Path], device: str) -> None:
    for rate in (48000, 16000):
        found = {}
        with loader_of(manifest, sample_rate=rate, features=None, device=device) as loader:
            for batch in loader:
                assert batch.spectrogram is None
                assert batch.frames is None
                for place, row in enumerate(batch.row.tolist()):
                    length = int(batch.audio_length[place])
                    first, stop = batch.audio_valid[place].tolist()
                    assert first == 0
                    assert length - 1300 < stop <= length
                    found[row] = batch.audio[place, :length].cpu().numpy()
        for row in range(len(files)):
            expected = whole_at(manifest.row(row).path, rate)
            common = min(len(expected), len(found[row]))
            assert abs(len(expected) - len(found[row])) < 1300
            edge = 0 if linear_sound(manifest.row(row).path).rate == rate else 400 * rate // 16000
            inner = slice(edge, common - edge)
            np.testing.assert_allclose(found[row][inner], expected[inner], rtol=0, atol=2e-6)


def test_vorbis_whose_blocks_change_size_has_no_holes(tmp_path: Path) -> None:
    """FFmpeg stamps packets too late where they do, so that sound would be 128 samples off there."""
    random = np.random.default_rng(0)
    swell = 0.5 + 0.5 * np.sin(2 * np.pi * 4 * np.arange(80_000) / 16000)
    path = tmp_path / "swelling.ogg"
    soundfile.write(path, (0.1 * swell * random.normal(size=80_000)).astype(np.float32), 16000)
    expected, _ = soundfile.read(path, dtype="float32")
    with av.open(str(path)) as container:
        stamps = [frame.pts for frame in container.decode(audio=0)]
        assert (np.diff(stamps) == 640).any()  # no packet has more than 512 samples
    info = probe(path).audio
    assert info is not None
    assert (info.gaps, info.num_samples) == ((), 80_000)
    with AudioReader(str(path), info) as reader:
        for begin, end in [
            (0, 80_000),
            *((start, start + 4000) for start in random.integers(0, 76_000, size=60).tolist()),
        ]:
            np.testing.assert_allclose(reader.read(begin, end)[0], expected[begin:end], rtol=0, atol=1e-6)


@on_both
@pytest.mark.parametrize("windows", ["all", "first", "center", "random"])
def test_windows_lie_in_their_rows_and_hold_its_samples(manifest: Manifest, windows: str, device: str) -> None:
    options = {"clips": windows, "audio_seconds": "0.5", "sample_rate": 48000, "features": None, "device": device}
    starts: dict[int, list[float]] = {}
    with loader_of(manifest, **options) as loader:
        batches = [batch for _ in range(2) for batch in loader]
    for batch in batches:
        assert batch.audio.shape[1] == 24000
        for place, number in enumerate(batch.row.tolist()):
            row = manifest.row(number)
            start = float(batch.audio_start_seconds[place])
            starts.setdefault(number, []).append(start)
            assert float(row.start_seconds) <= start
            assert start + 0.5 <= float(row.stop_seconds) + 1e-9
            rate = linear_sound(row.path).rate
            if rate == 48000:
                exact = Fraction(start).limit_denominator(rate)
                expected = linear_window(row.path, exact, 24000)
                assert np.abs(batch.audio[place].cpu().numpy() - expected).max() <= 2e-6
    for number, found in starts.items():
        row = manifest.row(number)
        first, length = float(row.start_seconds), row.audio_num_samples
        rate = linear_sound(row.path).rate
        window = round(0.5 * rate)
        if windows == "all":
            assert found[: len(found) // 2] == [first + k * window / rate for k in range(length // window)]
        elif windows == "random":
            assert found[0] != found[1]
        else:
            expected_start = first if windows == "first" else first + (length - window) // 2 / rate
            assert found == pytest.approx([expected_start] * 2, abs=1e-9)


def test_short_rows_are_followed_by_zeros_that_features_see(manifest: Manifest) -> None:
    feature = Spectrogram(n_fft=512, hop_length=160, normalize=Standardize())
    with loader_of(manifest, audio_seconds=30, features=feature, clips="first") as loader:
        batch = next(iter(loader))
        again = next(iter(loader))
    assert batch.audio.shape == (5, 480_000)
    assert torch.equal(batch.audio, again.audio)
    for place in range(len(batch)):
        length = int(batch.audio_length[place])
        assert length < 480_000
        assert not batch.audio[place, length:].any()
        assert int(batch.spectrogram_length[place]) == 1 + length // 160
        power = np.abs(librosa.stft(batch.audio[place].numpy(), n_fft=512, hop_length=160)) ** 2
        expected = (power - power.mean()) / np.sqrt(power.var() + 1e-5)
        np.testing.assert_allclose(batch.spectrogram[place].numpy(), expected, atol=1e-3 * np.abs(expected).max())


# Any length -----------------------------------------------------------------------------------------------------------


@on_both
@pytest.mark.parametrize(
    "feature",
    [
        MEL,
        MelSpectrogram(n_fft=400, hop_length=160, pad_mode="reflect", scale=Log10(span=8), normalize=Standardize()),
    ],
    ids=["mel", "normalized"],
)
def test_features_are_those_of_each_clip_alone_then_zeros(manifest: Manifest, feature: Feature, device: str) -> None:
    alone = {}
    with loader_of(manifest, features=feature, batch_size=1, device=device) as loader:
        for batch in loader:
            assert batch.audio_mask.all()
            assert batch.spectrogram_mask.all()
            assert batch.spectrogram.shape[1:] == feature.shape(batch.audio.shape[1])
            alone[int(batch.row)] = batch.spectrogram[0].cpu()
    with loader_of(manifest, features=feature, batch_size=24, device=device) as loader:
        (batch,) = loader
    assert len({int(length) for length in batch.audio_length}) > 5
    for place, row in enumerate(batch.row.tolist()):
        hops = int(batch.spectrogram_length[place])
        own, padding = batch.spectrogram[place].cpu().split([hops, batch.spectrogram.shape[2] - hops], dim=1)
        torch.testing.assert_close(own, alone[row], rtol=0, atol=0 if device == "cpu" else 1e-4)
        assert not padding.any()
    place = int(batch.audio_length.argmin())
    audio = batch.audio[place, : int(batch.audio_length[place])].cpu().numpy()
    if feature is MEL:
        mel = librosa.feature.melspectrogram(y=audio, sr=16000, n_fft=256, hop_length=80, n_mels=20)
        np.testing.assert_allclose(alone[int(batch.row[place])], mel, rtol=1e-3, atol=1e-5 * mel.max())


def test_rows_too_short_for_a_column_are_reported(many: Manifest) -> None:
    feature = Spectrogram(n_fft=4096, hop_length=160, center=False)
    short = {row.row for row in many.rows() if row.audio_num_samples * 2 < 4096}
    assert short
    with pytest.raises(ManifestError, match=r"too short: this one has \S+ s of sound, but a clip needs 0.256 s"):
        loader_of(many, features=feature)
    with loader_of(many, features=feature, on_error="skip") as loader:
        assert {clip.row for clip in loader.skipped} == short
        assert {row for batch in loader for row in batch.row.tolist()} == set(range(200)) - short


# The same clips everywhere --------------------------------------------------------------------------------------------

SHUFFLED = {"shuffle": True, "seed": 3, "bucket": 10}


@on_both
@pytest.mark.parametrize("length", [None, "0.3"])
@pytest.mark.parametrize(("num_workers", "batch_size"), [(2, 1), (1, 7), (2, 32)])
def test_neither_workers_nor_batch_size_change_the_clips(
    manifest: Manifest, length: str | None, num_workers: int, batch_size: int, device: str
) -> None:
    options = {"audio_seconds": length, "clips": "random", "shuffle": True, "bucket": None if length else 8}
    expected = run(manifest, **options)
    assert len(expected) == len(manifest)
    got = run(manifest, num_workers=num_workers, batch_size=batch_size, device=device, **options)
    check_same(got, expected, device)


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_put_together_deliver_each_clip_once_in_the_plans_order(many: Manifest, world_size: int) -> None:
    batches = []
    for rank in range(world_size):
        with loader_of(many, rank=rank, world_size=world_size, **SHUFFLED) as loader:
            batches.append(list(loader))
            assert len(batches[-1]) == len(loader)
    in_order = [rank[step] for step in range(max(map(len, batches))) for rank in batches if step < len(rank)]
    assert clips_of(in_order) == run(many, **SHUFFLED)


def test_resumed_with_another_world_and_batch_size_exactly_the_rest_is_delivered(many: Manifest) -> None:
    whole = run(many, epoch=1, **SHUFFLED)
    with loader_of(many, **SHUFFLED) as loader:
        loader.set_epoch(1)
        for batch in itertools.islice(loader, 3):
            del batch
        state = loader.state_dict()
    with loader_of(many, batch_size=8, **SHUFFLED) as loader:
        loader.load_state_dict(state)
        assert clips_of(loader) == whole[15:]
    with loader_of(many, **(SHUFFLED | {"bucket": 20})) as loader, pytest.raises(ValueError, match="another plan"):
        loader.load_state_dict(state)


# Buckets --------------------------------------------------------------------------------------------------------------


def test_buckets_hold_clips_of_similar_length_and_change_from_epoch_to_epoch(many: Manifest) -> None:
    lengths = many.column("audio_num_samples")
    plans = [SoundPlan(many, SoundOptions(shuffle=True, seed=3, bucket=6), epoch=epoch) for epoch in range(3)]
    orders = [[clip.row for (clip,) in plan.clips([position] for position in range(len(plan)))] for plan in plans]
    assert [plan.clip(17).row for plan in plans] == [order[17] for order in orders]
    buckets = []
    for order in orders:
        assert sorted(order) == list(range(200))
        whole = [order[first : first + 6] for first in range(0, 198, 6)]
        spans = [int(np.ptp(lengths[bucket])) for bucket in whole]
        assert np.median(spans) < 0.12 * np.ptp(lengths)
        middles = [float(lengths[bucket].mean()) for bucket in whole]
        assert abs(float(np.corrcoef(middles[:-1], middles[1:])[0, 1])) < 0.5  # neither from short to long
        assert any(lengths[bucket].tolist() != sorted(lengths[bucket]) for bucket in whole)
        buckets.append({frozenset(bucket) for bucket in whole})
    assert len(buckets[0] & buckets[1]) < 0.2 * len(buckets[0])
    unshuffled = [clip.row for clip in map(SoundPlan(many, SoundOptions(bucket=6)).clip, range(200))]
    assert sorted(unshuffled) == list(range(200))
    assert (np.diff(lengths[unshuffled]) >= 0).all()
    assert set(orders[0][198:]) <= set(np.argsort(lengths)[-30:].tolist())


def test_buckets_save_padding(many: Manifest) -> None:
    def padding(**options: Any) -> float:
        with loader_of(many, batch_size=10, features=None, shuffle=True, **options) as loader:
            masks = [batch.audio_mask for batch in loader]
        return 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)

    assert padding(bucket=10) < 0.1
    assert padding() > 0.3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bucket": 0}, "bucket must be at least 1"),
        ({"bucket": 4, "audio_seconds": 1}, "bucket=4 is for audio_seconds=None"),
        ({"bucket": 4, "streams": "both"}, 'bucket=4 is for clips that last differently: it needs streams="audio"'),
        ({"offsets": OtherStart()}, 'needs streams="both"'),
        ({"features": MelSpectrogram(scope="medium")}, "must have scope='clip'"),
        ({"audio_seconds": 0}, "audio_seconds must be positive"),
        ({"augment": HorizontalFlip()}, 'HorizontalFlip augments pictures, but streams="audio" delivers none'),
        ({"augment": AVTimeMask()}, "AVTimeMask augments pictures"),
    ],
)
def test_options_that_do_not_go_with_sound_alone_are_refused(
    manifest: Manifest, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        loader_of(manifest, **options)


# Augmentation, presets ------------------------------------------------------------------------------------------------


@on_both
def test_sound_is_augmented_as_for_clips_with_pictures_also_where_it_would_break_sync(
    many: Manifest, device: str
) -> None:
    augment = Compose([Gain(p=0.7), Shift(p=0.7), LowPassFilter(p=0.5), Reverse(p=0.5)])
    plain = run(many, device=device)
    expected = run(many, augment=augment, batch_size=1)
    changed = sum(one.audio != other.audio for one, other in zip(plain, expected, strict=True))
    assert 100 < changed < 200
    got = run(many, augment=augment, batch_size=32, device=device)
    assert [clip.facts for clip in got] == [clip.facts for clip in expected]
    for one, other in zip(got, expected, strict=True):
        sounds = [np.frombuffer(clip.audio, np.float32) for clip in (one, other)]
        np.testing.assert_allclose(*sounds, rtol=0, atol=1e-6 if device == "cpu" else 1e-5)
    assert run(many, augment=augment, epoch=1)[0].audio != got[0].audio


def test_each_window_of_a_row_is_augmented_by_itself(many: Manifest) -> None:
    options = {"audio_seconds": "0.1", "clips": "all", "features": None, "augment": Gain(p=1)}
    gains: dict[int, list[float]] = {}
    for batch_size in (32, 7):
        with loader_of(many, batch_size=batch_size, **options) as loader:
            for batch in loader:
                for row, gain in zip(batch.row.tolist(), batch.augmentation["Gain"]["gain_db"].tolist(), strict=True):
                    gains.setdefault(row, []).append(gain)
    for row, found in gains.items():
        half = len(found) // 2
        assert half == max(many.row(row).audio_num_samples // 800, 1)
        assert found[:half] == found[half:]
        assert len(set(found[:half])) == half


@on_both
def test_whispers_input_is_that_of_the_sound_padded_to_half_a_minute(manifest: Manifest, device: str) -> None:
    with AVLoader(manifest, preset="whisper", streams="audio", batch_size=3, device=device, num_workers=1) as loader:
        batch = next(iter(loader))
        pictures, sound = loader.preset.inputs(batch)
    assert pictures is None
    assert sound.shape == (3, 80, 3000)
    for audio, got in zip(batch.audio.cpu().numpy(), sound.cpu().numpy(), strict=True):
        assert len(audio) == 480_000
        stft = librosa.stft(audio, n_fft=400, hop_length=160, pad_mode="reflect")[:, :-1]
        mel = librosa.filters.mel(sr=16000, n_fft=400, n_mels=80) @ np.abs(stft) ** 2
        log = np.log10(np.maximum(mel, 1e-10))
        expected = (np.maximum(log, log.max() - 8) + 4) / 4
        np.testing.assert_allclose(got, expected, atol=1e-3)


@pytest.mark.parametrize("name", ["ast", "mel_spectrogram", "mfcc", "power_spectrogram", "auto_avsr"])
def test_presets_of_models_of_sound(manifest: Manifest, name: str) -> None:
    with AVLoader(manifest, preset=name, streams="audio", batch_size=4, device="cpu", num_workers=1) as loader:
        batch = next(iter(loader))
        assert loader.preset is not None
        pictures, sound = loader.preset.inputs(batch)
    assert pictures is None
    assert sound.shape[0] == 4
    assert torch.isfinite(sound).all()
    assert batch.spectrogram_mask.any(dim=1).all()


# Manifests of both, one of them delivered -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def both(truth_media: TruthMedia, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    names = ("mp4_25", "sound_short", "picture_late", "sound_late")
    rows = [(truth_media[name], start, start + 1.6, name) for name in names for start in (0, 1.6, 5)]
    return build(rows, tmp_path_factory.mktemp("both"), streams="both")


@on_both
def test_the_sound_of_a_manifest_of_both_is_that_of_its_frames(both: Manifest, device: str) -> None:
    with loader_of(both, sample_rate=48000, features=None, batch_size=1, device=device, on_error="skip") as loader:
        for batch in loader:
            row = both.row(int(batch.row))
            begin, end = (float(time) for time in (row.start_seconds, row.stop_seconds))
            sound = linear_sound(row.audio_path)
            first = max(begin, float(sound.start))
            assert abs(float(batch.audio_start_seconds) - first) <= 0.5 / 48000
            stop = min(end, float(sound.start) + len(sound.samples) / 48000)
            assert abs(batch.audio.shape[1] - (stop - first) * 48000) <= 1300
            exact = sound.start + Fraction(round((first - float(sound.start)) * 48000), 48000)
            expected = linear_window(row.audio_path, exact, batch.audio.shape[1])
            assert np.abs(batch.audio[0].cpu().numpy() - expected).max() <= 2e-6


@on_both
@pytest.mark.parametrize("decode", ["cpu", pytest.param("nvdec", marks=pytest.mark.gpu)])
def test_pictures_alone_are_those_of_clips_with_sound(both: Manifest, device: str, decode: str) -> None:
    if device == "cpu" and decode == "nvdec":
        pytest.skip("NVDEC needs a GPU")
    options = {"num_frames": 4, "stride": 3, "fps": 12, "size": (36, 64), "normalize": None, "decode": decode}
    options |= {"clips": "random", "shuffle": True, "device": device}
    with loader_of(both, streams="video", **options) as loader:
        alone = list(loader)
        text = repr(alone[0])
    with loader_of(both, streams="both", **options) as loader:
        together = list(loader)
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one.frames, other.frames)
        assert torch.equal(one.frame_seconds, other.frame_seconds)
        assert torch.equal(one.row, other.row)
        sound = ("audio", "spectrogram", "audio_start_seconds", "audio_valid", "audio_row", "audio_length")
        assert {getattr(one, name) for name in (*sound, "spectrogram_length", "offset_seconds")} == {None}
        moved = one.to("cpu")
        assert moved.audio is None
        assert torch.equal(moved.frames, one.frames.cpu())
        for name in ("audio_mask", "spectrogram_mask", "pair_offset_seconds"):
            with pytest.raises(ValueError, match="the batch holds"):
                getattr(one, name)
        assert other.audio_mask.all()
        assert other.spectrogram_mask.all()
    assert "audio: None" in text


def test_media_of_other_rates_and_without_sound_give_pictures(truth_media: TruthMedia, tmp_path: Path) -> None:
    made = build([(truth_media[name], "1", "3", "") for name in ("no_sound", "mp4_29_97")], tmp_path, streams="video")
    options = {"streams": "video", "num_frames": 4, "size": (36, 64), "clips": "first"}
    with loader_of(made, **options, augment=HorizontalFlip(p=1)) as loader:
        (batch,) = loader
    assert batch.frames.shape == (2, 4, 3, 36, 64)
    assert batch.augmentation is not None
    with pytest.raises(ValueError, match='Gain augments sound, but streams="video" delivers none'):
        loader_of(made, **options, augment=Gain())


# When something is wrong ----------------------------------------------------------------------------------------------


def test_sound_that_cannot_be_read_is_raised_or_skipped_by_name(tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    for number in range(4):
        soundfile.write(tmp_path / f"{number}.flac", 0.1 * random.normal(size=16000 + 4000 * number), 16000)
    made = build([(f"{number}.flac", "", "", number) for number in range(4)], tmp_path)
    (tmp_path / "2.flac").unlink()
    with loader_of(made) as loader, pytest.raises(Exception, match=r"2\.flac.*the file is gone"):
        list(loader)
    with loader_of(made, on_error="skip") as loader:
        (batch,) = loader
        assert batch.row.tolist() == [0, 1, 3]
        assert batch.audio_length.tolist() == [16000, 20000, 28000]
        assert [clip.row for clip in loader.skipped] == [2]
