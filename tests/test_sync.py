"""The promise, end to end: what the loader delivers against a plain linear decode, for every ground-truth medium."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TruthMedia
from truth import CATALOG, Recipe, delay_of, linear_frames, linear_sound, linear_window, read_number, snr_db

from avloader import AVLoader, Manifest, build_manifest
from avloader.batch import AVBatch

NUM_FRAMES = 8
AUDIO_SECONDS = Fraction(2, 5)
SIZE = (144, 256)
SIDE_CARS = [name for name, recipe in CATALOG.items() if recipe.picture is None]
RATES = sorted({recipe.sound.rate for recipe in CATALOG.values() if recipe.sound is not None})


@dataclass(frozen=True)
class Row:
    """An annotation, and where the truth about it is."""

    picture: Path
    sound: Path
    start: Fraction
    end: Fraction | None


def rows_of(recipe: Recipe, media: TruthMedia) -> list[Row]:
    """Intervals at 0, across a key frame, between two frames, anywhere, and at the end."""
    path = media[recipe.name]
    assert recipe.picture is not None
    times = linear_frames(path).times
    last = times[-1]
    across = max(recipe.picture.gop / recipe.picture.rate, Fraction(1))
    starts = [Fraction(0), across - Fraction(1, 8), Fraction("1.0333"), Fraction("3.98"), Fraction("5.617"), last / 2]
    intervals = [(start, start + Fraction(4, 5)) for start in starts]
    # A hole of the variable-rate media leaves some of them without enough frames.
    intervals = [(start, end) for start, end in intervals if sum(start <= t < end for t in times) > NUM_FRAMES]
    intervals.append((times[-NUM_FRAMES], None))
    return [Row(path, path, start, end) for start, end in intervals]


def build(rows: Sequence[Row], folder: Path) -> Manifest:
    annotations = folder / "clips.csv"
    with annotations.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "start", "end", "label", "audio_path"])
        for number, row in enumerate(rows):
            side_car = "" if row.sound == row.picture else row.sound
            end = "" if row.end is None else f"{float(row.end):.3f}"
            # Rounded to a millisecond, as annotations are.
            writer.writerow([row.picture, f"{float(row.start):.3f}", end, number, side_car])
    manifest = build_manifest(annotations, media_root=folder, output=folder / "manifest", progress=False)
    assert len(manifest) == len(rows), manifest.rejected()
    return manifest


def loader_of(manifest: Manifest, *, sample_rate: int, device: str = "cpu", **more: Any) -> AVLoader:
    options: dict[str, Any] = {
        "batch_size": 16,
        "num_frames": NUM_FRAMES,
        "size": SIZE,
        "normalize": None,
        "audio_seconds": AUDIO_SECONDS,
        "features": None,
        "clips": "first",
    }
    return AVLoader(manifest, sample_rate=sample_rate, device=device, **(options | more))


def check_clip(batch: AVBatch, place: int, row: Row) -> None:
    """One delivered clip is what a linear decode shows and plays."""
    frames, sound = linear_frames(row.picture), linear_sound(row.sound)
    start = Fraction(f"{float(row.start):.3f}")
    first = next(index for index, time in enumerate(frames.times) if time + Fraction(1, 2000) >= start)
    indices = range(first, first + NUM_FRAMES)
    shown = [read_number(frame) for frame in batch.frames[place].permute(0, 2, 3, 1).cpu().numpy()]
    assert shown == [frames.numbers[index] for index in indices]
    assert batch.frame_seconds[place].tolist() == [float(frames.times[index]) for index in indices]

    rate, begin = sound.rate, frames.times[first]
    audio = batch.audio[place].cpu().numpy()
    expected = linear_window(row.sound, begin, len(audio))
    assert abs(batch.audio_start_seconds[place].item() - float(begin)) <= 0.5 / rate + 1e-9
    offset = round((Fraction(batch.audio_start_seconds[place].item()) - sound.start) * rate)
    valid = [min(max(edge - offset, 0), len(audio)) for edge in (0, len(sound.samples))]
    assert batch.audio_valid[place].tolist() == (valid if valid[0] < valid[1] else [0, 0])
    if not expected.any():
        assert not audio.any()
        return
    head = rate // 50
    assert snr_db(audio, expected) > 60
    if expected[:head].any():
        assert snr_db(audio[:head], expected[:head]) > 60
    assert not audio[expected == 0].any() or np.abs(audio[expected == 0]).max() < 1e-3
    assert abs(delay_of(audio, expected)) / rate < 1e-4


def check_all(loader: AVLoader, rows: Sequence[Row]) -> None:
    seen = 0
    for batch in loader:
        for place, row in enumerate(batch.row.tolist()):
            assert row == seen
            assert batch.label[place] == row
            try:
                check_clip(batch, place, rows[row])
            except AssertionError as error:
                raise AssertionError(f"row {row}, {rows[row]}: {error}") from error
            seen += 1
    assert seen == len(rows)
    assert loader.fallbacks == []


def truth_rows(media: TruthMedia, rate: int) -> list[Row]:
    rows = [
        row
        for recipe in CATALOG.values()
        if recipe.picture is not None and recipe.sound is not None and recipe.sound.rate == rate
        if not recipe.islands
        for row in rows_of(recipe, media)
    ]
    picture = media["picture_for_sidecar"]
    for name in SIDE_CARS:
        sound = CATALOG[name].sound
        if sound is not None and sound.rate == rate:
            rows += [Row(picture, media[name], Fraction(n), n + Fraction(4, 5)) for n in (0, 3, 8)]
    return rows


@pytest.mark.parametrize("rate", RATES)
def test_every_medium_is_delivered_as_a_linear_decode_shows_and_plays_it(
    truth_media: TruthMedia, tmp_path: Path, rate: int
) -> None:
    rows = truth_rows(truth_media, rate)
    with loader_of(build(rows, tmp_path), sample_rate=rate) as loader:
        assert "the CPU decodes" in loader.engine
        check_all(loader, rows)


@pytest.mark.gpu
@pytest.mark.parametrize("rate", RATES)
def test_every_medium_is_delivered_right_on_a_gpu(truth_media: TruthMedia, tmp_path: Path, rate: int) -> None:
    rows = truth_rows(truth_media, rate)
    with loader_of(build(rows, tmp_path), sample_rate=rate, device="gpu") as loader:
        assert "NVDEC decodes" in loader.engine
        assert ("the CPU decodes the other media because NVDEC's reader cannot take" in loader.engine) == (
            rate == 48000
        )
        check_all(loader, rows)


@pytest.mark.gpu
@pytest.mark.parametrize("rate", RATES)
def test_nvdec_delivers_every_medium_that_it_can_take(truth_media: TruthMedia, tmp_path: Path, rate: int) -> None:
    rows = truth_rows(truth_media, rate)
    (tmp_path / "all").mkdir()
    manifest = build(rows, tmp_path / "all")
    taken = [row for number, row in enumerate(rows) if manifest.media_pictures.nvdec[manifest.media_id[number]]]
    assert taken
    with loader_of(build(taken, tmp_path), sample_rate=rate, device="gpu", decode="nvdec") as loader:
        assert "NVDEC decodes every medium as asked" in loader.engine
        check_all(loader, taken)


@pytest.mark.gpu
@pytest.mark.parametrize("batch_size", [1, 5, 16])
def test_pictures_of_several_sizes_stand_side_by_side_in_a_batch(
    truth_media: TruthMedia, tmp_path: Path, batch_size: int
) -> None:
    """A reader that is given two sizes writes frames past the memory made for others: seen as picture in the sound."""
    pairs = zip(*(rows_of(CATALOG[name], truth_media) for name in ("mp4_25", "odd_size")), strict=True)
    rows = [row for pair in pairs for row in pair] * 10
    with loader_of(
        build(rows, tmp_path), sample_rate=48000, device="gpu", decode="nvdec", batch_size=batch_size
    ) as loader:
        check_all(loader, rows)


@pytest.mark.gpu
@pytest.mark.parametrize("cpu_share", [0, 0.3, 1])
def test_the_cpu_beside_nvdec_delivers_the_same_clips(
    truth_media: TruthMedia, tmp_path: Path, cpu_share: float
) -> None:
    rows = rows_of(CATALOG["mp4_25"], truth_media) * 10
    with loader_of(build(rows, tmp_path), sample_rate=48000, device="gpu", cpu_share=cpu_share) as loader:
        assert f"the CPU decodes {cpu_share:.0%}" in loader.engine or not cpu_share
        check_all(loader, rows)


@pytest.mark.parametrize("device", ["cpu", pytest.param("gpu", marks=pytest.mark.gpu)])
def test_an_hour_at_29_97_does_not_drift(truth_media: TruthMedia, tmp_path: Path, device: str) -> None:
    path = truth_media["hour"]
    islands = [Fraction(start * 1001, 30000) for start, _ in CATALOG["hour"].islands]
    rows = [Row(path, path, start + Fraction(2), start + Fraction(3)) for start in islands]
    sound = CATALOG["hour"].sound
    assert sound is not None
    with loader_of(build(rows, tmp_path), sample_rate=sound.rate, device=device) as loader:
        check_all(loader, rows)


def test_sound_at_another_rate_stays_in_step(truth_media: TruthMedia, tmp_path: Path) -> None:
    """At 16 kHz: against the linear decode resampled as a whole, at sub-sample precision."""
    import soxr

    rows = [row for name in ("mp4_29_97", "stereo_44100", "mkv_opus") for row in rows_of(CATALOG[name], truth_media)]
    with loader_of(build(rows, tmp_path), sample_rate=16000) as loader:
        for batch in loader:
            for place, number in enumerate(batch.row.tolist()):
                row = rows[number]
                sound = linear_sound(row.sound)
                first = round((Fraction(batch.audio_start_seconds[place].item()) - sound.start) * sound.rate)
                before = min(first, sound.rate // 10 // 441 * 441)  # some whole periods of both rates
                before -= before % 441
                native = sound.samples[first - before : first + sound.rate]
                expected = soxr.resample(native, sound.rate, 16000)[before * 16000 // sound.rate :]
                start, stop = batch.audio_valid[place].tolist()
                # The last samples see what follows, which is cut off here at the end of the sound only.
                length = min(stop, len(expected)) - 200
                audio = batch.audio[place].numpy()
                assert start == 0
                assert snr_db(audio[:length], expected[:length]) > 60
                assert abs(delay_of(audio, expected)) / 16000 < 1e-4


def _clips(loader: AVLoader) -> list[tuple[int, tuple[float, ...], float]]:
    return [
        (row, tuple(batch.frame_seconds[place].tolist()), batch.audio_start_seconds[place].item())
        for batch in loader
        for place, row in enumerate(batch.row.tolist())
    ]


@pytest.mark.parametrize("device", ["cpu", pytest.param("gpu", marks=pytest.mark.gpu)])
def test_fps_takes_the_nearest_source_frame_to_each_instant(
    truth_media: TruthMedia, tmp_path: Path, device: str
) -> None:
    names = ["mp4_25", "mp4_29_97", "mp4_59_94", "mp4_23_976"] + (
        ["variable_rate", "mpegts"] if device == "cpu" else []
    )
    rows = [Row(truth_media[name], truth_media[name], Fraction(1), Fraction(4)) for name in names]
    fps = Fraction(30)
    loader = AVLoader(
        build(rows, tmp_path),
        batch_size=4,
        num_frames=16,
        fps=fps,
        size=SIZE,
        normalize=None,
        features=None,
        device=device,
    )
    with loader:
        for batch in loader:
            for place, number in enumerate(batch.row.tolist()):
                frames = linear_frames(rows[number].picture)
                begin = frames.times[frames.times.index(_exact(batch.frame_seconds[place][0].item(), frames.times))]
                nearest = [
                    min(range(len(frames.times)), key=lambda index: abs(frames.times[index] - begin - k / fps))
                    for k in range(16)
                ]
                shown = [read_number(frame) for frame in batch.frames[place].permute(0, 2, 3, 1).cpu().numpy()]
                assert shown == [frames.numbers[index] for index in nearest]
                assert batch.frame_seconds[place].tolist() == [float(frames.times[index]) for index in nearest]
        assert batch.audio.shape[1] == 16 * 16000 // 30 + 1 == 8534 or batch.audio.shape[1] == 8533


def _exact(seconds: float, times: Sequence[Fraction]) -> Fraction:
    return min(times, key=lambda time: abs(time - Fraction(seconds)))


def test_av_offset_shifts_the_sound_against_the_picture(truth_media: TruthMedia, tmp_path: Path) -> None:
    """Positive: the file's sound leads, so the sound that belongs to a frame stands earlier in it."""
    path = truth_media["mp4_25"]
    annotations = tmp_path / "clips.csv"
    annotations.write_text(f"path,start,end,label,av_offset\n{path},2,3,a,0.12\n{path},2,3,a,-0.08\n")
    manifest = build_manifest(annotations, media_root=tmp_path, output=tmp_path / "m", progress=False)
    with AVLoader(manifest, batch_size=2, num_frames=8, sample_rate=48000, features=None, clips="first") as loader:
        (batch,) = loader
    for place, start in enumerate((Fraction("1.88"), Fraction("2.08"))):
        expected = linear_window(path, start, batch.audio.shape[1])
        assert batch.audio_start_seconds[place].item() == pytest.approx(float(start), abs=1e-9)
        assert snr_db(batch.audio[place].numpy(), expected) > 60
    assert torch.equal(batch.offset_seconds, torch.zeros(2, dtype=torch.float64))
