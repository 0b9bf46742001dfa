"""Frames equal those of a plain linear decode, bit for bit, from wherever reading starts."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest
from av.video.reformatter import Interpolation
from conftest import TruthMedia
from truth import linear_rgb

from avloader.errors import DecodeError
from avloader.media import VideoInfo, probe
from avloader.pictures import PictureOptions
from avloader.video import VideoReader

NAMES = (
    "mp4_25",
    "three_b_frames",
    "open_gop",
    "one_gop",
    "fragmented",
    "cut",
    "variable_rate_b_frames",
    "intra_refresh",
    "hevc_open_gop",
    "odd_size",
    "mkv_aac",
    "webm",
    "mkv_truly_odd_size",
    "mpegts",
    "avi_mpeg4",
    "avi_mjpeg",
)


def video_of(path: Path) -> VideoInfo:
    video = probe(path).video
    assert video is not None
    return video


def planes(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """[..., H, W, 3] -> [..., 3, H, W]."""
    return np.moveaxis(pixels, -1, -3)


def reader_of(path: Path, size: tuple[int, int] | None = None) -> VideoReader:
    video = video_of(path)
    picture = PictureOptions(size=size)
    return VideoReader(str(path), stream_index=video.stream_index, keyframe_pts=video.keyframe_pts, picture=picture)


@pytest.mark.parametrize("name", NAMES)
def test_frames_equal_a_linear_decode_wherever_reading_starts(name: str, truth_media: TruthMedia) -> None:
    path = truth_media[name]
    times = video_of(path).times
    count = len(times)
    linear = planes(linear_rgb(path, range(count)))
    draw = random.Random(name)
    windows = [[0, 1, 2], [count - 1], [count - 3, count - 2, count - 1], [count // 2] * 3, [0, 0, 5, 5, 30]]
    for _ in range(12):  # random order: forward, back, and within the same group of pictures
        first, step = draw.randrange(count), draw.choice((1, 1, 2, 5))
        windows.append(list(range(first, min(count, first + 10 * step), step)))
    windows += [list(range(first, first + 7)) for first in range(40, 110, 7)]  # one after the other
    with reader_of(path) as reader:
        for window in windows:
            frames = reader.read(times.pts_of(window).tolist())
            assert np.array_equal(frames, linear[window]), window


def test_scaled_frames_do_not_depend_on_what_was_read_before(truth_media: TruthMedia) -> None:
    path = truth_media["mp4_25"]
    pts = video_of(path).times.pts_of(range(60, 76)).tolist()
    with reader_of(path, (56, 96)) as reader, reader_of(path, (56, 96)) as other:
        fresh = reader.read(pts)
        other.read(pts[:3])
        other.read([video_of(path).times.first_pts])
        out = np.zeros((16, 3, 56, 96), dtype=np.uint8)
        assert other.read(pts, out=out) is out
    assert np.array_equal(fresh, out)
    with av.open(str(path)) as container:
        frames = {frame.pts: frame for frame in container.decode(video=0)}
        # With a chroma sample for every pixel, not for two.
        method = Interpolation.BILINEAR | Interpolation.FULL_CHR_H_INT
        expected = frames[pts[5]].to_ndarray(width=96, height=56, format="rgb24", interpolation=method)
    assert np.array_equal(fresh[5], planes(expected))


def test_a_missing_frame_is_an_error_that_names_file_and_time_and_reading_goes_on(truth_media: TruthMedia) -> None:
    path = truth_media["mp4_25"]
    times = video_of(path).times
    with reader_of(path) as reader:
        with pytest.raises(DecodeError, match=r"mp4_25\.mp4: there is no frame at 4\.\d+ s") as caught:
            reader.read([times.pts(100) + 1])
        assert caught.value.path == str(path)
        with pytest.raises(DecodeError, match="ends before"):
            reader.read([times.pts(len(times) - 1) + 512])
        assert np.array_equal(reader.read([times.pts(100)]), planes(linear_rgb(path, [100])))


@pytest.mark.parametrize("name", ["mp4_25", "no_b_frames", "open_gop", "mkv_aac", "mpegts"])
def test_damage_is_an_error_and_never_another_picture(name: str, truth_media: TruthMedia, tmp_path: Path) -> None:
    path = truth_media[name]
    video = video_of(path)
    linear = planes(linear_rgb(path, range(len(video.times))))
    data = bytearray(path.read_bytes())
    data[len(data) // 3 : len(data) // 3 + 3000] = bytes(3000)
    broken = tmp_path / path.name
    broken.write_bytes(data)
    errors = 0
    with VideoReader(str(broken), stream_index=video.stream_index, keyframe_pts=video.keyframe_pts) as reader:
        for first in range(0, len(linear) - 4, 4):
            try:
                frames = reader.read(video.times.pts_of(range(first, first + 4)).tolist())
            except DecodeError:
                errors += 1
            else:
                assert np.array_equal(frames, linear[first : first + 4])
    assert 1 <= errors <= 15


def test_a_truncated_file_gives_its_intact_frames_and_errors_for_the_others(
    truth_media: TruthMedia, tmp_path: Path
) -> None:
    path = truth_media["mpegts"]
    video = video_of(path)
    short = tmp_path / "short.ts"
    short.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with VideoReader(str(short), stream_index=video.stream_index, keyframe_pts=video.keyframe_pts) as reader:
        assert np.array_equal(reader.read([video.times.pts(60)]), planes(linear_rgb(path, [60])))
        with pytest.raises(DecodeError):
            reader.read([video.times.pts(len(video.times) - 2)])
        assert np.array_equal(reader.read([video.times.pts(61)]), planes(linear_rgb(path, [61])))


def test_a_file_that_is_not_there_is_a_decode_error(tmp_path: Path) -> None:
    with pytest.raises(DecodeError, match=r"gone\.mp4: it cannot be opened") as caught:
        VideoReader(str(tmp_path / "gone.mp4"), stream_index=0, keyframe_pts=np.zeros(1, np.int64))
    assert isinstance(caught.value.__cause__, OSError)


def test_wrong_arguments_are_named(truth_media: TruthMedia) -> None:
    with reader_of(truth_media["mp4_25"]) as reader:
        with pytest.raises(ValueError, match="pts must not decrease"):
            reader.read([512, 0])
        with pytest.raises(ValueError, match="out must be uint8"):
            reader.read([0], out=np.zeros((1, 144, 256, 3), dtype=np.uint8))
        assert reader.read([]).shape == (0, 3, 144, 256)
    with pytest.raises(ValueError, match="closed"):
        reader.read([0])
    reader.close()
    with pytest.raises(ValueError, match="size"):
        reader_of(truth_media["mp4_25"], (0, 4))


def test_reading_leaves_no_file_open_and_says_nothing(truth_media: TruthMedia) -> None:
    path = truth_media["open_gop"]
    script = (
        "import os, sys, random\n"
        "from avloader.media import probe\n"
        "from avloader.pictures import PictureOptions\n"
        "from avloader.video import VideoReader\n"
        "video = probe(sys.argv[1]).video\n"
        "picture = PictureOptions(size=(32, 32))\n"
        "before = len(os.listdir('/proc/self/fd'))\n"
        "for _ in range(30):\n"
        "    keys = video.keyframe_pts\n"
        "    with VideoReader(sys.argv[1], stream_index=0, keyframe_pts=keys, picture=picture) as reader:\n"
        "        for _ in range(2):\n"
        "            reader.read([video.times.pts(random.randrange(250))])\n"
        "print(len(os.listdir('/proc/self/fd')) - before)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True, env=environment
    )
    assert (done.stdout, done.stderr) == ("0\n", "")
