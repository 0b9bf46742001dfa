"""Pictures are scaled, cropped and coloured as asked, and placed by keyed draws."""

from __future__ import annotations

import csv
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from conftest import TruthMedia
from PIL import Image
from truth import linear_frames, linear_rgb

from avloader import AVLoader, Manifest, MelSpectrogram, build_manifest
from avloader.demo import demo_clip
from avloader.media import probe
from avloader.pictures import PictureOptions
from avloader.plan import Plan, PlanOptions
from avloader.video import VideoReader

on_both = pytest.mark.parametrize("device", ["cpu", pytest.param("gpu", marks=pytest.mark.gpu)])
INDICES = [3, 40, 41, 130]


@pytest.fixture(scope="session")
def manifest(truth_media: TruthMedia, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("pictures")
    with (folder / "clips.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "start", "end", "label"])
        writer.writerows([truth_media["mp4_25"], f"{second}", f"{second + 2}", "a"] for second in range(8))
    return build_manifest(folder / "clips.csv", media_root=folder, output=folder / "manifest", progress=False)


def read(path: Path, picture: PictureOptions, draws: tuple[int, int] = (0, 0)) -> np.ndarray:
    """The frames `INDICES`, [shape=(F, H, W, C)]."""
    video = probe(path).video
    assert video is not None
    corner = picture.corner((video.height, video.width), draws)
    with VideoReader(
        str(path), stream_index=video.stream_index, keyframe_pts=video.keyframe_pts, picture=picture
    ) as reader:
        return np.moveaxis(reader.read(video.times.pts_of(INDICES).tolist(), corner=corner), 1, -1)


@pytest.mark.parametrize(
    ("stored", "options", "scaled", "corner"),
    [
        ((144, 256), {}, (144, 256), (0, 0)),
        ((144, 256), {"size": (64, 48)}, (64, 48), (0, 0)),
        ((144, 257), {"size": (96, 96), "resize": 96}, (96, 171), (0, 38)),  # 37.5: to the even number
        ((257, 144), {"size": (96, 96), "resize": 96}, (171, 96), (38, 0)),
        ((96, 96), {"size": (88, 88), "resize": (96, 96)}, (96, 96), (4, 4)),
        ((96, 96), {"size": (48, 96), "resize": (96, 96), "crop": "bottom"}, (96, 96), (48, 0)),
        ((240, 320), {"size": (88, 91), "resize": 96, "crop": "bottom"}, (96, 128), (8, 18)),
    ],
)
def test_what_is_cut_out_of_what(stored: Any, options: Any, scaled: Any, corner: Any) -> None:
    picture = PictureOptions(**options)
    assert picture.scaled(stored) == scaled
    assert picture.corner(stored) == corner


def test_random_corners_reach_every_place_alike() -> None:
    picture = PictureOptions(size=(88, 90), resize=(96, 96), crop="random")
    words = [number << 26 for number in range(64)]  # spread over all words of 32 bits
    tops = [picture.corner((96, 96), (word, 0))[0] for word in words]
    lefts = [picture.corner((96, 96), (0, word))[1] for word in words]
    assert (min(tops), max(tops), min(lefts), max(lefts)) == (0, 8, 0, 6)
    assert set(np.bincount(tops)) <= {7, 8}
    assert set(np.bincount(lefts)) <= {9, 10}
    assert picture.corner((96, 96), (2**32 - 1, 2**32 - 1)) == (8, 6)


def test_colours_and_crops_without_scaling_equal_a_linear_decode(truth_media: TruthMedia) -> None:
    path = truth_media["mp4_25"]
    rgb = linear_rgb(path, INDICES)
    assert rgb.shape[1:] == (144, 256, 3)
    assert np.array_equal(read(path, PictureOptions(color="bgr")), rgb[..., ::-1])
    grey = read(path, PictureOptions(color="grey"))[..., 0]
    expected = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in rgb])
    assert np.abs(grey.astype(int) - expected).max() <= 1
    assert np.mean(grey == expected) > 0.99
    cut = PictureOptions(size=(100, 200), resize=(144, 256), crop="random", color="bgr")
    top, left = cut.corner((144, 256), (2**31, 2**30))
    assert (top, left) == (22, 14)
    assert np.array_equal(read(path, cut, (2**31, 2**30)), rgb[:, top : top + 100, left : left + 200, ::-1])
    bottom = PictureOptions(size=(72, 256), resize=(144, 256), crop="bottom")
    assert np.array_equal(read(path, bottom), rgb[:, 72:])


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(224, 224), (96, 96), (256, 455)])
def test_scaling_is_close_to_pillows(size: tuple[int, int], interpolation: Any) -> None:
    """Pillow and torchvision scale RGB; FFmpeg scales the planes of the codec, and converts them then.

    So pictures of a real clip differ by 1.1 on average, and by 4 or less in 99 values of a hundred. (OpenCV looks at
    four pixels only: from it they differ by 5 to 8 on average. Store pictures at the model's size to match it.)
    """
    path = demo_clip()
    got = read(path, PictureOptions(size=size, interpolation=interpolation)).astype(int)
    method = Image.Resampling.BICUBIC if interpolation == "bicubic" else Image.Resampling.BILINEAR
    expected = [np.asarray(Image.fromarray(frame).resize(size[::-1], method)) for frame in linear_rgb(path, INDICES)]
    error = np.abs(got - np.stack(expected))
    assert error.mean() < 1.3
    assert np.quantile(error, 0.99) <= 4
    assert error.max() <= 32


OPTIONS: dict[str, Any] = {
    "batch_size": 4,
    "num_frames": 4,
    "size": (60, 80),
    "resize": 96,
    "normalize": None,
    "features": None,
}


@on_both
@pytest.mark.parametrize("crop", ["center", "random", "bottom"])
def test_a_loader_cuts_what_a_plan_says(manifest: Manifest, device: str, crop: Any) -> None:
    with AVLoader(manifest, **OPTIONS, crop=crop, color="bgr", clips="first", device=device) as loader:
        frames = torch.cat([batch.frames for batch in loader]).cpu().numpy()
    plan = Plan(manifest, PlanOptions(num_frames=4, clips="first", random_crop=crop == "random"))
    whole = PictureOptions(size=(96, 170))
    places = set()
    for clip, got in zip(map(plan.clip, range(8)), frames, strict=True):
        video = manifest.media(clip.media_id).video
        assert video is not None
        top, left = PictureOptions(size=(60, 80), resize=96, crop=crop).corner((144, 256), clip.crop)
        places.add((top, left))
        with VideoReader(
            manifest.media(clip.media_id).path,
            stream_index=video.stream_index,
            keyframe_pts=video.keyframe_pts,
            picture=whole,
        ) as reader:
            rgb = reader.read(video.times.pts_of(clip.frames).tolist())
        expected = rgb[:, ::-1, top : top + 60, left : left + 80].astype(int)
        error = np.abs(got.astype(int) - expected)
        assert error.max() == 0 if device == "cpu" else error.mean() < 4
    assert len(places) == (8 if crop == "random" else 1)


@on_both
def test_grey_pictures_have_one_channel(manifest: Manifest, device: str) -> None:
    grey = {"mean": 0.421 * 255, "std": 0.165 * 255}
    options = OPTIONS | {"normalize": ([grey["mean"]], [grey["std"]])}
    with AVLoader(manifest, **options, color="grey", clips="first", device=device) as loader:
        normalized = next(iter(loader)).frames.cpu()
    with AVLoader(manifest, **OPTIONS, clips="first", device=device) as loader:
        rgb = next(iter(loader)).frames.cpu().double()
    assert normalized.shape == (4, 4, 1, 60, 80)
    expected = 0.299 * rgb[:, :, :1] + 0.587 * rgb[:, :, 1:2] + 0.114 * rgb[:, :, 2:]
    assert (normalized * grey["std"] + grey["mean"] - expected).abs().max() <= 1.01


def test_random_crops_depend_on_clip_and_epoch_alone(manifest: Manifest) -> None:
    def crops(epoch: int, **options: Any) -> dict[tuple[int, int], tuple[int, int]]:
        plan = Plan(manifest, PlanOptions(num_frames=4, random_crop=True, **options), epoch=epoch)
        clips = [plan.clip(position) for position in range(len(plan))]
        return {(clip.row, clip.frames[0]): clip.crop for clip in clips}

    once = crops(0)
    assert len(set(once.values())) == len(once) == 8 * 13 - 8
    assert crops(0, shuffle=True) == once
    assert set(crops(1).values()).isdisjoint(once.values())
    assert crops(0, clips="first") == {clip: once[clip] for clip in crops(0, clips="first")}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop": "random"}, "crop='random' needs resize="),
        ({"resize": 96}, "resize=96 needs size="),
        ({"resize": 96, "size": (88, 97)}, r"size=\(88, 97\) must be at most resize=96"),
        ({"resize": (96, 96), "size": (97, 88)}, r"size=\(97, 88\) must be at most"),
        ({"resize": 0, "size": (1, 1)}, "resize=0 must be 1 or more"),
        ({"color": "gray"}, "color='gray' must be one of 'rgb', 'bgr', 'grey'"),
        ({"interpolation": "area"}, "interpolation='area'"),
    ],
)
def test_a_wrong_option_is_named_with_its_value(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PictureOptions(**options)


# Where the sound begins


def test_sound_begins_on_the_last_column_before_the_frames(manifest: Manifest) -> None:
    options = {"num_frames": 5, "clips": "random", "audio_grid": Fraction(1, 80)}
    starts = set()
    for epoch in range(130):
        plan = Plan(manifest, PlanOptions(**options), epoch=epoch)
        for clip in map(plan.clip, range(len(plan))):
            column = clip.audio_start * 80
            assert column.denominator == 1
            assert column == int(80.0 * (clip.frames[0] / 25.0))  # as Wav2Lip computes it
            starts.add(clip.frames[0])
    assert len(starts) > 190


@on_both
def test_sound_may_begin_with_the_row_or_around_the_frames(manifest: Manifest, device: str) -> None:
    path = manifest.row(0).path
    options = OPTIONS | {"audio_seconds": 1, "clips": "random", "device": device}
    times = linear_frames(path).times
    with AVLoader(manifest, **options, audio_from="row") as loader:
        for batch in loader:
            for row, start in zip(batch.row.tolist(), batch.audio_start_seconds.tolist(), strict=True):
                assert start == float(times[25 * row])
    leads = []
    with AVLoader(manifest, **options, audio_from="around") as loader:
        for _ in range(20):
            for batch in loader:
                leads += (batch.frame_seconds[:, 0] - batch.audio_start_seconds).tolist()
    assert min(leads) >= -1e-4
    assert max(leads) <= 1 - 4 / 25 + 1e-4  # the frames end where the sound ends, or before it
    assert np.all(np.histogram(leads, 4, (0, 0.84))[0] > 20)


@on_both
def test_the_sound_around_a_window_is_seen_and_not_delivered(manifest: Manifest, device: str) -> None:
    def batches(features: Any, **options: Any) -> list[Any]:
        with AVLoader(
            manifest, **(OPTIONS | {"features": features}), clips="first", device=device, **options
        ) as loader:
            return list(loader)

    options: dict[str, Any] = {"n_fft": 512, "hop_length": 160, "n_mels": 20, "pad_mode": "reflect"}
    for rate in (48000, 16000):  # as stored, and resampled
        of_clip = batches(MelSpectrogram(**options), sample_rate=rate, audio_seconds=2)
        of_medium = batches(MelSpectrogram(**options, scope="medium"), sample_rate=rate, audio_seconds=1)
        for long, short in zip(of_clip, of_medium, strict=True):
            count = short.audio.shape[1]
            assert torch.equal(short.audio_start_seconds, long.audio_start_seconds)
            torch.testing.assert_close(short.audio, long.audio[:, :count], atol=1e-5, rtol=0)
            assert short.audio_valid.tolist() == [[0, count]] * 4
            columns = short.spectrogram.shape[2]
            assert columns == rate // 160
            # But for the first columns, a longer clip's own sound gives them too.
            torch.testing.assert_close(
                short.spectrogram[..., 2:], long.spectrogram[..., 2:columns], atol=1e-3, rtol=1e-3
            )
            is_inside = short.row != 0  # row 0 begins with the medium, where both are padded
            differs = (short.spectrogram[..., 0] - long.spectrogram[..., 0]).abs().amax(1) > 1e-2
            assert torch.equal(differs.cpu(), is_inside.cpu())
