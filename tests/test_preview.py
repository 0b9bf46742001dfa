"""The picture, by its pixels: what stands where."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from truth import linear_frames, linear_window, read_number, snr_db

from avloader import build_manifest, preview
from avloader.batch import AVBatch
from avloader.preview import DPI, PreviewClip

SAMPLE_RATE = 16000
LEFT, RIGHT = round(0.62 * DPI), round(0.74 * DPI)


def _colours(count: int) -> npt.NDArray[np.uint8]:
    """Saturated colours, all different, none of which the picture uses for anything else."""
    levels = np.linspace(60, 250, count).astype(np.uint8)
    return np.stack([np.full(count, 20, np.uint8), levels, levels[::-1]], axis=1)


def _clip(
    seconds: list[float],
    stop: float,
    *,
    size: tuple[int, int] = (72, 128),
    click: float | None = None,
    **changes: object,
) -> PreviewClip:
    colours = _colours(len(seconds))
    frames = np.broadcast_to(colours[:, None, None], (len(seconds), *size, 3)).copy()
    audio = np.zeros(round((stop - seconds[0]) * SAMPLE_RATE), np.float32)
    if click is not None:
        audio[round((click - seconds[0]) * SAMPLE_RATE)] = 1
    fields = {
        "frames": frames,
        "frame_seconds": np.array(seconds),
        "stop_seconds": stop,
        "audio": audio,
        "sample_rate": SAMPLE_RATE,
        "audio_start_seconds": seconds[0],
        "audio_valid": (0, len(audio)),
        "title": "café.mp4",
        "caption": "a caption",
    }
    return PreviewClip(**(fields | changes))


def _pixels(clip: PreviewClip, tmp_path: object, **size: int) -> npt.NDArray[np.int16]:
    path = f"{tmp_path}/picture.png"
    preview.save(preview.draw_clip(clip, **size), path)
    return np.asarray(Image.open(path).convert("RGB")).astype(np.int16)


def _extent(pixels: npt.NDArray[np.int16], colour: npt.NDArray[np.uint8]) -> tuple[int, int, int, int]:
    """Left, right, top, bottom (exclusive) of the pixels of one colour."""
    rows, columns = np.nonzero((np.abs(pixels - colour.astype(np.int16)) <= 1).all(axis=2))
    assert len(rows), f"no pixel has colour {colour}"
    return columns.min(), columns.max() + 1, rows.min(), rows.max() + 1


def _column(seconds: float, clip: PreviewClip, width: int) -> float:
    first = min(clip.frame_seconds[0], clip.audio_start_seconds)
    last = max(clip.stop_seconds, clip.sound_stop_seconds)
    return LEFT + (seconds - first) / (last - first) * (width - LEFT - RIGHT)


@pytest.mark.parametrize(
    ("seconds", "stop"),
    [
        ([0.0, 0.04, 0.08, 0.12], 0.16),
        ([3.0 + k * 1001 / 30000 for k in range(16)], 3.0 + 16 * 1001 / 30000),
        ([k / 25 for k in range(32)], 32 / 25),
        ([1.0, 1.1, 1.15, 1.5, 1.62], 1.8),
    ],
    ids=["four", "ntsc", "thirty_two", "variable"],
)
@pytest.mark.parametrize("width", [900, 2400])
def test_the_left_edge_of_each_thumbnail_stands_at_its_presentation_time(seconds, stop, width, tmp_path):
    clip = _clip(seconds, stop)
    pixels = _pixels(clip, tmp_path, width=width)
    for colour, time in zip(_colours(len(seconds)), seconds, strict=True):
        left, *_ = _extent(pixels, colour)
        assert abs(left - _column(time, clip, width)) <= 2  # the line at the edge covers a pixel


@pytest.mark.parametrize("count", [1, 4, 16, 32])
@pytest.mark.parametrize("size", [(72, 128), (128, 128), (128, 72)], ids=["wide", "square", "tall"])
def test_thumbnails_keep_their_shape_and_hide_none(count, size, tmp_path):
    clip = _clip([k / 25 for k in range(count)], count / 25, size=size)
    pixels = _pixels(clip, tmp_path)
    for colour in _colours(count):
        left, right, top, bottom = _extent(pixels, colour)
        assert (bottom - top) / (right - left) == pytest.approx(size[0] / size[1], rel=0.08)
        inside = (np.abs(pixels[top:bottom, left:right] - colour.astype(np.int16)) <= 1).all(axis=2)
        assert inside.mean() > 0.95


@pytest.mark.parametrize(("width", "height"), [(600, 400), (1600, 900), (1000, 3000), (4000, 500)])
def test_the_picture_has_the_size_that_was_asked_for(width, height, tmp_path):
    assert _pixels(_clip([0.0, 0.5], 1.0), tmp_path, width=width, height=height).shape == (height, width, 3)


@pytest.mark.parametrize("click", [0.25, 0.5, 0.9])
def test_a_click_stands_at_its_time_in_the_spectrogram(click, tmp_path):
    clip = _clip([0.0, 0.7], 1.0, click=click)
    pixels = _pixels(clip, tmp_path)
    spectrogram = pixels[-round(1.5 * DPI) : -round(0.6 * DPI), LEFT : 1600 - RIGHT].sum(axis=(0, 2)).astype(float)
    spectrogram[spectrogram < 0.7 * spectrogram.max()] = 0
    centre = (spectrogram * np.arange(len(spectrogram))).sum() / spectrogram.sum() + LEFT
    assert abs(centre - _column(click, clip, 1600)) <= 3


def test_sound_that_starts_before_the_first_frame_widens_the_axis(tmp_path):
    clip = _clip([1.0, 1.5], 2.0, audio_start_seconds=0.5)
    left, *_ = _extent(_pixels(clip, tmp_path), _colours(2)[0])
    assert abs(left - _column(1.0, clip, 1600)) <= 2
    assert left > LEFT + 200


def test_missing_sound_is_marked(tmp_path):
    whole, half = _clip([0.0, 0.5], 1.0), _clip([0.0, 0.5], 1.0, audio_valid=(8000, 16000))
    rows, columns = np.nonzero((_pixels(whole, tmp_path) != _pixels(half, tmp_path)).any(axis=2))
    assert len(rows) > 1000
    assert columns.min() >= LEFT - 2
    assert columns.max() <= _column(0.5, half, 1600) + 2


def test_a_clip_without_samples_and_a_silent_one_can_be_drawn(tmp_path):
    empty = _clip([0.0, 0.5], 1.0, audio=np.zeros(0, np.float32), audio_valid=(0, 0))
    assert _pixels(empty, tmp_path).shape == _pixels(_clip([0.0, 0.5], 1.0), tmp_path).shape


def test_titles_may_hold_any_text(tmp_path):
    for title in ("$x^2$_{a", "映画.mp4", "x" * 500, ""):
        _pixels(_clip([0.0], 1.0, title=title, caption=title), tmp_path)


@pytest.mark.parametrize(("width", "height"), [(599, None), (8001, None), (1600, 399), (1600, 8001)])
def test_a_size_out_of_range_is_refused_by_name(width, height):
    with pytest.raises(ValueError, match=r"(width|height)=\d+ is out of range: allowed is"):
        preview.draw_clip(_clip([0.0], 1.0), width=width, height=height)


def test_frames_of_the_wrong_shape_are_refused():
    with pytest.raises(ValueError, match="frames has shape"):
        _clip([0.0], 1.0, frames=np.zeros((1, 3, 8, 8), np.uint8))
    with pytest.raises(ValueError, match="frame_seconds has shape"):
        _clip([0.0], 1.0, frame_seconds=np.zeros(2))


@pytest.mark.parametrize("name", ["cut", "picture_late", "mpegts_29_97", "variable_rate"])
def test_a_clip_read_from_a_manifest_has_the_frames_and_the_sound_of_a_linear_decode(name, truth_media, tmp_path):
    medium = truth_media[name]
    table = tmp_path / "clips.csv"
    table.write_text(f"path,start,end,label\n{medium.name},2,3,a\n")
    manifest = build_manifest(table, media_root=medium.parent, output=tmp_path / "out", num_workers=1)
    clip = preview.read_clip(manifest, num_frames=5, stride=2)
    linear = linear_frames(medium)
    first = next(index for index, time in enumerate(linear.times) if time >= Fraction(2) - Fraction(1, 2000))
    indices = range(first, first + 10, 2)
    assert [read_number(frame) for frame in clip.frames] == [linear.numbers[index] for index in indices]
    assert clip.frame_seconds == pytest.approx([float(linear.times[index]) for index in indices], abs=1e-9)
    assert clip.stop_seconds == pytest.approx(float(linear.times[first + 10]), abs=1e-9)
    assert abs(clip.audio_start_seconds - clip.frame_seconds[0]) <= 0.5 / clip.sample_rate + 1e-9
    assert snr_db(clip.audio, linear_window(medium, linear.times[first], len(clip.audio))) > 60


def test_a_row_with_fewer_frames_than_asked_for_shows_those_it_has(truth_media, tmp_path):
    table = tmp_path / "clips.csv"
    table.write_text("path,start,end,label\nmp4_25.mp4,1,1.12,a\n")
    medium = truth_media["mp4_25"]
    manifest = build_manifest(table, media_root=medium.parent, output=tmp_path / "out", num_workers=1)
    assert len(preview.read_clip(manifest, num_frames=16).frames) == 3


@pytest.mark.parametrize("changes", [{"row": 1}, {"row": -1}, {"num_frames": 0}, {"stride": 0}])
def test_reading_a_clip_with_a_wrong_argument_names_it(changes, truth_media, tmp_path):
    table = tmp_path / "clips.csv"
    table.write_text("path,start,end,label\nmp4_25.mp4,1,2,a\n")
    medium = truth_media["mp4_25"]
    manifest = build_manifest(table, media_root=medium.parent, output=tmp_path / "out", num_workers=1)
    ((name, value),) = changes.items()
    with pytest.raises(ValueError, match=f"{name}={value} "):
        preview.read_clip(manifest, **changes)


def _batch(frames: torch.Tensor) -> AVBatch:
    return AVBatch(
        frames=frames,
        audio=torch.linspace(-1, 1, 2 * 3200).reshape(2, 3200),
        spectrogram=None,
        label=torch.tensor([0, 1]),
        row=torch.tensor([4, 7]),
        frame_seconds=torch.tensor([[0, 0.1], [3, 3.1]], dtype=torch.float64),
        audio_start_seconds=torch.tensor([0, 3.01], dtype=torch.float64),
        audio_valid=torch.tensor([[0, 3200], [100, 3200]]),
        offset_seconds=torch.zeros(2, dtype=torch.float64),
        audio_row=torch.tensor([4, 7]),
    )


def test_a_clip_of_a_batch_keeps_pictures_sound_and_times():
    frames = torch.arange(2 * 2 * 3 * 4 * 5, dtype=torch.uint8).reshape(2, 2, 3, 4, 5)
    clip = preview.clip_of_batch(_batch(frames), 1, sample_rate=SAMPLE_RATE)
    assert np.array_equal(clip.frames, frames[1].numpy().transpose(0, 2, 3, 1))
    assert clip.frame_seconds.tolist() == [3, 3.1]
    assert clip.stop_seconds == pytest.approx(3.2)
    assert clip.audio_start_seconds == 3.01
    assert clip.audio_valid == (100, 3200)
    assert clip.audio[0] > 0
    assert clip.title == "row 7"
    assert "+10.000 ms" in clip.caption


def test_normalized_frames_are_stretched_to_their_range():
    frames = torch.linspace(-2, 2, 2 * 2 * 3 * 4 * 5).reshape(2, 2, 3, 4, 5)
    clip = preview.clip_of_batch(_batch(frames), 0, sample_rate=SAMPLE_RATE)
    assert (clip.frames.min(), clip.frames.max()) == (0, 255)


def test_a_clip_that_the_batch_does_not_hold_is_refused():
    with pytest.raises(ValueError, match="index=2 is outside the batch: allowed is 0 to 1"):
        preview.clip_of_batch(_batch(torch.zeros(2, 2, 3, 4, 5)), 2, sample_rate=SAMPLE_RATE)


def test_drawing_a_batch_gives_a_picture(tmp_path):
    figure = preview.draw(_batch(torch.rand(2, 2, 3, 36, 64)), 1, sample_rate=SAMPLE_RATE, width=800, height=600)
    preview.save(figure, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (800, 600)
