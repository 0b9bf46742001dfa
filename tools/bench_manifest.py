"""Building a manifest of a thousand mp4 files beside one ffprobe process a file; and probing against a file's length.

    python tools/bench_manifest.py --output tools/bench_manifest.json

Both sides use all cores: `avloader manifest`, from the start of its process to its end, and a pool of threads that each
run ``ffprobe -show_format -show_streams`` as JSON, which does not even tell when frames are shown. The files are warm.
What the manifest says is checked first, against the recipes of the files and against ffprobe. Then both take turns; a
figure is the median of the rounds. Without an ffprobe its place is taken by a process a file that opens it with PyAV.
"""

from __future__ import annotations

import argparse
import csv
import functools
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path
from typing import Any

from make_truth_media import CATALOG, Picture, Recipe, Sound, make

from avloader import Manifest
from avloader.media import probe
from avloader.workers import available_cores

PACKAGES = ("avloader", "av", "numpy", "pyarrow")
RATES = (Fraction(25), Fraction(30000, 1001), Fraction(24000, 1001), Fraction(50))
SECONDS = 10
WITH_PYAV = """
import av, json, sys
with av.open(sys.argv[1]) as container:
    video, audio = container.streams.video[0], container.streams.audio[0]
    print(json.dumps({"streams": [
        {"codec_type": "video", "nb_frames": str(video.frames), "r_frame_rate": str(video.base_rate)},
        {"codec_type": "audio", "sample_rate": str(audio.sample_rate)},
    ]}))
"""


def recipes() -> list[Recipe]:
    """Constant-rate H.264 with B-frames and AAC, of several rates and GOPs."""
    sound = Sound(rate=48000, seconds=Fraction(SECONDS), bit_rate=64_000)
    made = []
    for rate in RATES:
        for gop in (12, 50):
            picture = Picture(
                rate=rate, num_frames=round(rate * SECONDS), width=224, height=224, gop=gop, num_b_frames=2
            )
            name = f"{float(rate):.2f}_{gop}"
            made.append(Recipe(name, f"{name}.mp4", picture, sound))
    return made


def make_files(folder: Path, num_files: int) -> dict[str, Recipe]:
    """Files of their own, each a copy of one of the recipes', by name."""
    (folder / "media").mkdir()
    originals = [(recipe, make(recipe, folder)) for recipe in recipes()]
    files = {}
    for number in range(num_files):
        recipe, original = originals[number % len(originals)]
        shutil.copy(original, folder / "media" / f"{number:04d}.mp4")
        files[f"{number:04d}.mp4"] = recipe
    with (folder / "clips.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "start", "end", "label"])
        writer.writerows([name, "", "", 0] for name in files)
    return files


def build(folder: Path) -> Manifest:
    """The command line, in a process of its own."""
    command = ["manifest", "clips.csv", "--media-root", "media", "--output", "manifest"]
    launch = [sys.executable, "-c", "import sys; from avloader.cli import main; sys.exit(main())"]
    subprocess.run([*launch, *command], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return Manifest.open(folder / "manifest", check_media=False)


def ffprobe_all(command: Sequence[str], files: Sequence[Path]) -> list[dict[str, Any]]:
    """What one process a file says, as many at a time as there are cores."""

    def run(path: Path) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads(subprocess.run([*command, path], check=True, capture_output=True).stdout)
        return facts

    with ThreadPoolExecutor(available_cores()) as pool:
        return list(pool.map(run, files))


def verify(folder: Path, files: dict[str, Recipe], command: Sequence[str]) -> None:
    """Compare every medium of the manifest with its recipe and with what ffprobe says."""
    manifest = build(folder)
    assert (len(manifest), manifest.num_rejected) == (len(files), 0)
    said = ffprobe_all(command, [folder / "media" / name for name in files])
    for media_id, (name, streams) in enumerate(zip(files, said, strict=True)):
        medium, picture = manifest.media(media_id), files[name].picture
        by_type = {stream["codec_type"]: stream for stream in streams["streams"]}
        assert medium.video is not None
        assert medium.audio is not None
        assert picture is not None
        assert os.path.basename(medium.path) == name
        assert medium.video.times_from == "header"
        assert (medium.video.frame_rate, medium.video.times.num_frames) == (picture.rate, picture.num_frames)
        assert medium.video.times.start_seconds == 0
        assert int(by_type["video"]["nb_frames"]) == picture.num_frames
        assert Fraction(by_type["video"]["r_frame_rate"]) == picture.rate
        assert int(by_type["audio"]["sample_rate"]) == medium.audio.sample_rate


def of_length(seconds: int) -> Recipe:
    """A file of the catalogue's sparse kind: its packets are real, its header as long as that of any such file."""
    hour = CATALOG["hour"]
    assert hour.picture is not None
    assert hour.sound is not None
    picture = replace(hour.picture, num_frames=round(hour.picture.rate * seconds))
    sound = replace(hour.sound, seconds=Fraction(seconds) - 1)
    name, gop = f"long_{seconds}", picture.gop
    islands = (0, gop), ((picture.num_frames // gop - 1) * gop, picture.num_frames)
    return replace(hour, name=name, file_name=f"{name}.mp4", picture=picture, sound=sound, islands=islands)


def verify_length(path: Path, recipe: Recipe) -> None:
    """Compare what is said of a file with its recipe."""
    facts = probe(path)
    assert facts.video is not None
    assert facts.audio is not None
    assert recipe.picture is not None
    assert recipe.sound is not None
    assert facts.video.times_from == "header"
    assert (facts.video.frame_rate, len(facts.video.times)) == (recipe.picture.rate, recipe.picture.num_frames)
    assert len(facts.video.keyframe_pts) == -(-recipe.picture.num_frames // recipe.picture.gop)
    assert facts.video.times.start_seconds == facts.audio.start_seconds == 0
    assert not facts.audio.gaps
    assert facts.audio.num_samples == recipe.sound.num_samples // 1024 * 1024


def milliseconds(work: Callable[[], object], repeats: int) -> float:
    """Median CPU time of this process; it has one thread at work."""
    taken = []
    for _ in range(repeats):
        begin = time.process_time()
        work()
        taken.append(time.process_time() - begin)
    return statistics.median(taken) * 1e3


def timed(work: Callable[[], object]) -> float:
    """Seconds."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1000, help="mp4 files (default: 1000)")
    parser.add_argument("--rounds", type=int, default=3, help="how often each figure is taken (default: 3)")
    parser.add_argument("--ffprobe", default=shutil.which("ffprobe"), help="the program (default: from PATH)")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args(argv)
    if arguments.ffprobe:
        command = [arguments.ffprobe, "-v", "error", "-print_format", "json", "-show_format", "-show_streams"]
        banner = subprocess.run([arguments.ffprobe, "-version"], check=True, capture_output=True, text=True).stdout
        against = " ".join(banner.split()[:3])
    else:
        command, against = [sys.executable, "-c", WITH_PYAV], "a process with PyAV a file, for want of ffprobe"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = make_files(folder, arguments.files)
        paths = [folder / "media" / name for name in files]
        verify(folder, files, command)
        rounds = []
        for _ in range(arguments.rounds):
            ours, theirs = timed(lambda: build(folder)), timed(lambda: ffprobe_all(command, paths))
            rounds.append({"manifest, s": ours, "ffprobe, s": theirs, "times as fast": theirs / ours})
        results: dict[str, Any] = {
            "files": arguments.files,
            "against": against,
            "median": {key: statistics.median(each[key] for each in rounds) for key in rounds[0]},
            "rounds": rounds,
            "probe by length, ms of one core": {},
        }
        for seconds in (10, 60, 600, 3600, 7200):
            recipe = of_length(seconds)
            path = make(recipe, folder)
            verify_length(path, recipe)
            results["probe by length, ms of one core"][f"{seconds} s"] = milliseconds(
                functools.partial(probe, path), 30
            )
    print(json.dumps(results, indent=1))
    if arguments.output is not None:
        machine = {
            "cpu": platform.processor() or platform.machine(),
            "cores": available_cores(),
            "python": platform.python_version(),
            **{package: version(package) for package in PACKAGES},
        }
        arguments.output.write_text(json.dumps({"machine": machine, "results": results}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
